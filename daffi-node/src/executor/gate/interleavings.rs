//! Threads that enter, run and leave, in orders picked by shuttle; see `tests/sync`.
//!
//! These were seen to catch each of the following planted mistakes: `place` releases the lock before it says
//! that it is done; one more runs than is allowed; work behind a reserved place passes it; a place that is
//! given up still counts.

use std::sync::{
    Arc,
    atomic::{AtomicUsize as Count, Ordering::SeqCst},
};

use daffi_test_sync::shuttle::{self, thread};

use super::*;

const RUNS: usize = 3_000;

/// Where the executor has put what may run, and how many are running.
struct Hall {
    gate: Gate<u64>,
    limit: usize,
    placed: Mutex<VecDeque<u64>>,
    inside: Count,
    ran: Mutex<Vec<u64>>,
}

impl Hall {
    fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            gate: Gate::new(NonZeroUsize::new(limit).unwrap()),
            limit,
            placed: Mutex::default(),
            inside: Count::new(0),
            ran: Mutex::default(),
        })
    }

    fn place(&self) {
        self.gate.place(|request| self.placed.lock().push_back(request));
    }

    fn enter(&self, ticket: Ticket) {
        self.gate.enter(ticket, ticket.request);
        self.place();
    }

    /// Runs what may run, as a thread of the pool does, until nothing may.
    fn run(&self) {
        loop {
            let next = self.placed.lock().pop_front();
            let Some(request) = next else { return };
            assert!(self.inside.fetch_add(1, SeqCst) < self.limit, "more run than may");
            self.ran.lock().push(request);
            thread::yield_now();
            self.inside.fetch_sub(1, SeqCst);
            self.gate.leave();
            self.place();
        }
    }

    /// Checks that all of these have run, and nothing is left.
    fn assert_done(&self, mut requests: Vec<u64>) {
        let state = self.gate.state.lock();
        assert_eq!(
            (state.running, state.line.len(), state.reserved),
            (0, 0, 0),
            "something was left in line"
        );
        assert!(!state.placing);
        let mut ran = self.ran.lock().clone();
        ran.sort();
        requests.sort();
        assert_eq!(ran, requests);
    }
}

fn ticket(caller: u64, request: u64) -> Ticket {
    Ticket { caller, request }
}

fn spawn(hall: &Arc<Hall>, run: impl FnOnce(&Hall) + Send + 'static) -> thread::JoinHandle<()> {
    let hall = hall.clone();
    thread::spawn(move || run(&hall))
}

fn check(run: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

#[test]
fn all_get_through_and_no_more_than_the_limit_at_once() {
    for limit in [1, 2] {
        check(move || {
            let hall = Hall::new(limit);
            let threads = [[1, 2], [3, 4], [5, 6]].map(|requests| {
                spawn(&hall, move |hall| {
                    for request in requests {
                        hall.enter(ticket(request, request));
                        hall.run();
                    }
                })
            });
            for thread in threads {
                thread.join().unwrap();
            }
            // Whoever last placed something may have ended before it came.
            hall.run();
            hall.assert_done(vec![1, 2, 3, 4, 5, 6]);
        });
    }
}

/// A place is kept for work whose payload is still coming in: those behind it wait, whether it comes or not.
#[test]
fn a_reserved_place_keeps_the_order_whether_its_request_comes_or_not() {
    for comes in [true, false] {
        check(move || {
            let hall = Hall::new(1);
            hall.gate.reserve(ticket(1, 1));
            let late = spawn(&hall, move |hall| {
                if comes {
                    hall.enter(ticket(1, 1));
                } else {
                    hall.gate.forgo(ticket(1, 1));
                    hall.place();
                }
                hall.run();
            });
            let next = spawn(&hall, |hall| {
                hall.enter(ticket(1, 2));
                hall.run();
            });
            let other = spawn(&hall, |hall| {
                hall.enter(ticket(7, 3));
                hall.run();
            });
            for thread in [late, next, other] {
                thread.join().unwrap();
            }
            hall.run();
            let of_one: Vec<_> = hall.ran.lock().iter().copied().filter(|request| *request != 3).collect();
            assert_eq!(of_one, if comes { vec![1, 2] } else { vec![2] });
            hall.assert_done(if comes { vec![1, 2, 3] } else { vec![2, 3] });
        });
    }
}
