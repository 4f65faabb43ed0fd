//! Threads of a reactor that take the lead from each other, in orders chosen by shuttle; see `tests/sync`.
//!
//! These tests find each of these mistakes when planted: `stand_by` takes the lead without ending the step;
//! `step_aside` gives up the lead without ending it; `take_lead` leaves `watched` set; `be_watched` does not
//! signal; `stand_by` goes to sleep without checking once more; `step` asks to be watched before it has
//! begun. The last two really were in the code, where a blocking callback could hold up everything.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool as Flag, AtomicUsize as Count, Ordering::SeqCst},
    },
};

use daffi_test_sync::shuttle::{self, thread};

use super::*;

const RUNS: usize = 2_000;

/// A piece of work.
#[derive(Clone, Copy)]
enum Work {
    Quick,
    /// Waits until all quick work is done.
    Blocks,
    /// The same, but steps aside first.
    StepsAside,
}

/// A reactor without sockets, which stops when all its work is done.
struct Reactor {
    lead: Lead,
    work: Mutex<VecDeque<Work>>,
    quick_left: Mutex<usize>,
    quick_done: Condvar,
    left: Count,
    /// Some thread is where only the one that leads may be.
    driving: Flag,
    /// Threads that have not ended.
    threads: Mutex<usize>,
    ended: Condvar,
}

impl Reactor {
    fn run(work: &[Work]) {
        let quick = work.iter().filter(|work| matches!(work, Work::Quick)).count();
        let reactor = Arc::new(Self {
            lead: Lead::default(),
            work: Mutex::new(work.iter().copied().collect()),
            quick_left: Mutex::new(quick),
            quick_done: Condvar::new(),
            left: Count::new(work.len()),
            driving: Flag::new(false),
            threads: Mutex::new(0),
            ended: Condvar::new(),
        });
        reactor.spawn(Role::Lead);
        reactor.lead.wait_closed();
        assert_eq!(reactor.left.load(SeqCst), 0, "it was closed before all work was done");
        // Shuttle reports threads that wait forever.
        let mut threads = reactor.threads.lock();
        while *threads > 0 {
            reactor.ended.wait(&mut threads);
        }
    }

    fn spawn(self: &Arc<Self>, mut role: Role) {
        *self.threads.lock() += 1;
        let reactor = self.clone();
        thread::spawn(move || {
            loop {
                role = match role {
                    Role::Lead => reactor.lead(),
                    Role::StandBy => reactor.lead.stand_by(),
                    Role::Rest => panic!("there are no guests"),
                    Role::End => break,
                };
            }
            *reactor.threads.lock() -= 1;
            reactor.ended.notify_all();
        });
    }

    /// Like `Shared::lead`.
    fn lead(self: &Arc<Self>) -> Role {
        self.lead.begin();
        loop {
            loop {
                let Some(work) = self.next() else { break };
                let stand_by = || {
                    self.spawn(Role::StandBy);
                    true
                };
                self.lead.step(stand_by, |step| {
                    self.work(work);
                    // As long as this thread leads, it continues within the step.
                    while step.again()
                        && let Some(work) = self.next()
                    {
                        self.work(work);
                    }
                });
                if !self.lead.leads() {
                    return self.lead.resign();
                }
            }
            assert!(!self.driving.swap(true, SeqCst), "two threads lead");
            thread::yield_now();
            self.driving.store(false, SeqCst);
            if self.left.load(SeqCst) == 0 {
                self.lead.stop();
                self.lead.close();
                return Role::End;
            }
        }
    }

    fn next(&self) -> Option<Work> {
        self.work.lock().pop_front()
    }

    fn work(self: &Arc<Self>, work: Work) {
        match work {
            Work::Quick => {
                *self.quick_left.lock() -= 1;
                self.quick_done.notify_all();
            }
            Work::Blocks => self.wait(),
            Work::StepsAside => {
                self.lead.step_aside(|| {
                    self.spawn(Role::Lead);
                    true
                });
                self.wait();
            }
        }
        self.left.fetch_sub(1, SeqCst);
    }

    fn wait(&self) {
        let mut left = self.quick_left.lock();
        while *left > 0 {
            self.quick_done.wait(&mut left);
        }
    }
}

fn check(work: &'static [Work]) {
    shuttle::check_random(|| Reactor::run(work), RUNS);
}

#[test]
fn work_that_blocks_is_taken_over() {
    check(&[Work::Quick, Work::Blocks, Work::Quick, Work::Quick]);
}

#[test]
fn work_that_blocks_again_and_again_is_taken_over_each_time() {
    check(&[Work::Blocks, Work::Blocks, Work::Quick]);
}

#[test]
fn the_lead_is_given_away_before_waiting() {
    check(&[Work::StepsAside, Work::Quick, Work::StepsAside, Work::Quick]);
}

#[test]
fn giving_away_and_taking_over_meet() {
    check(&[Work::Blocks, Work::StepsAside, Work::Quick]);
}
