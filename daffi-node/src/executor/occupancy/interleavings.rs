//! Requests that are looked at, run and end while a thread waits for the last of them, in orders picked by
//! shuttle; see `tests/sync`.
//!
//! These were seen to catch each of the following planted mistakes: `leave` does not take the lock; `looked`
//! notifies nobody; `drain` releases the lock before it closes.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool as Flag, AtomicUsize as Count, Ordering::SeqCst},
    },
};

use daffi_test_sync::shuttle::{self, thread};

use super::*;

const RUNS: usize = 3_000;

/// What has come and was not looked at yet, in place of a node's requests.
#[derive(Debug, Default)]
struct Requests {
    come: VecDeque<u32>,
    in_hand: bool,
    closed: bool,
}

/// A node's executor: one thread looks at what has come, another runs it.
#[derive(Debug, Default)]
struct Executor {
    occupancy: Occupancy,
    requests: Mutex<Requests>,
    running: Mutex<VecDeque<u32>>,
    /// How many came in time, and have run.
    taken: Count,
    ran: Count,
    /// Whether the I/O thread has looked at everything.
    has_looked: Flag,
}

impl Executor {
    fn come(&self, request: u32) {
        let mut requests = self.requests.lock();
        if !requests.closed {
            requests.come.push_back(request);
            self.taken.fetch_add(1, SeqCst);
        }
    }

    /// Looks at what has come, as the I/O thread does, until nothing is left.
    fn look(&self) {
        loop {
            let next = {
                let mut requests = self.requests.lock();
                requests.in_hand = false;
                let next = requests.come.pop_front();
                requests.in_hand = next.is_some();
                next
            };
            let Some(request) = next else { return self.occupancy.looked() };
            self.occupancy.enter();
            self.running.lock().push_back(request);
        }
    }

    /// Runs what was looked at, as a thread of the pool does, until nothing is left.
    fn run(&self) {
        loop {
            let next = self.running.lock().pop_front();
            if next.is_none() {
                return;
            }
            self.ran.fetch_add(1, SeqCst);
            self.occupancy.leave(&self.requests);
        }
    }

    fn drain(&self, but: usize) -> bool {
        let waits = |requests: &Requests| requests.in_hand || !requests.come.is_empty();
        let close = |requests: &mut Requests| requests.closed = true;
        self.occupancy.drain(&self.requests, but, Instant::now(), waits, close)
    }
}

/// The waiting thread sees the end of everything that came in time, and nothing runs after that. Shuttle
/// reports if it waits forever.
#[test]
fn all_that_came_in_time_has_run_when_it_is_drained() {
    let run = || {
        let executor = Arc::new(Executor::default());
        executor.come(1);
        // Only the I/O thread takes requests and looks at them.
        let looks = {
            let executor = executor.clone();
            thread::spawn(move || {
                executor.look();
                executor.come(2);
                executor.look();
                executor.has_looked.store(true, SeqCst);
            })
        };
        let runs = {
            let executor = executor.clone();
            thread::spawn(move || {
                while !executor.has_looked.load(SeqCst) {
                    executor.run();
                    thread::yield_now();
                }
                executor.run();
            })
        };
        assert!(executor.drain(0));
        assert_eq!(executor.ran.load(SeqCst), executor.taken.load(SeqCst), "something is left");
        looks.join().unwrap();
        runs.join().unwrap();
        assert_eq!(
            executor.ran.load(SeqCst),
            executor.taken.load(SeqCst),
            "it was drained, and something ran after it"
        );
    };
    let still = move || daffi_test_sync::while_time_stands_still(run);
    shuttle::check_random(still, RUNS);
    shuttle::check_pct(still, RUNS, 3);
}

/// A callback that stops its own process is not waited for.
#[test]
fn one_that_waits_for_the_end_is_not_waited_for() {
    let run = || {
        let executor = Arc::new(Executor::default());
        executor.occupancy.enter();
        executor.come(1);
        let other = {
            let executor = executor.clone();
            thread::spawn(move || {
                executor.look();
                executor.run();
            })
        };
        assert!(executor.drain(1));
        other.join().unwrap();
        assert_eq!(executor.ran.load(SeqCst), 1);
        executor.occupancy.leave(&executor.requests);
        assert_eq!(executor.occupancy.held(), 0);
    };
    let still = move || daffi_test_sync::while_time_stands_still(run);
    shuttle::check_random(still, RUNS);
    shuttle::check_pct(still, RUNS, 3);
}
