//! Threads that lead while they wait, and those that wake them, in orders chosen by shuttle; see
//! `tests/sync`.
//!
//! These tests find each of these mistakes when planted: `wake_soon` does not mark the bell, or rouses
//! nobody; `wake` does not call the thread that rests; `wake_guest` does nothing; a guest checks whether it
//! is still welcome before it answers the bell, and not again in its turn; a guest that wants the lead rouses
//! nobody, or sleeps on while another one leads; `visit` leaves the lead vacant, or does not call the resting
//! thread if this one may not lead; a follower is not counted off; `leave` ignores the bell, checks it while
//! the guest still leads, ignores followers, `sleeps`, or that there are no more guests; `rest` takes a lead
//! that is not vacant, or does not say that it sleeps; `yields` tells nobody, or keeps the answer to the bell
//! for itself; `welcome` does not wake a guest.
//!
//! What `wake_soon` brings may wait until the thread that rests checks again. Whether it marks or checks
//! first makes it come slightly earlier or later, which these tests do not find.

use std::sync::{
    Arc,
    atomic::{AtomicBool as Flag, Ordering::SeqCst},
};

use daffi_test_sync::{
    shuttle::{self, thread},
    while_time_stands_still,
};

use super::*;
use crate::sync::{Condvar, Mutex};

const RUNS: usize = 1_000;

/// A reactor without sockets, in whose turns an oracle answers.
#[derive(Default)]
struct Reactor {
    lead: Lead,
    oracle: Mutex<Oracle>,
    answered: Condvar,
    /// What `mio::Waker` is to `mio::Poll`.
    event: Mutex<bool>,
    came: Condvar,
    /// Some thread is where only the one that leads may be.
    driving: Flag,
    stopped: Flag,
    /// Something to wait for that no turn brings.
    free: Mutex<bool>,
    freed: Condvar,
    /// The reactor's own thread.
    own: Mutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Default)]
struct Oracle {
    asked: usize,
    answered: usize,
    /// Nothing is answered until this is gone.
    riddle: bool,
}

/// How the reactor is woken.
#[derive(Clone, Copy)]
enum Wake {
    Now,
    Soon,
}

impl Reactor {
    fn start() -> Arc<Self> {
        let reactor = Arc::new(Self::default());
        reactor.lead.welcome(true, || unreachable!("it wakes nobody"));
        let own = reactor.clone();
        *reactor.own.lock() = Some(thread::spawn(move || {
            let mut role = Role::Lead;
            loop {
                role = match role {
                    Role::Lead => own.lead(),
                    Role::Rest => own.lead.rest(),
                    Role::StandBy => panic!("there is no work"),
                    Role::End => return,
                };
            }
        }));
        reactor
    }

    /// Like `Shared::lead`.
    fn lead(&self) -> Role {
        self.lead.begin();
        loop {
            self.lead.bell.answer();
            if self.lead.yields() {
                return Role::Rest;
            }
            if self.stopped.load(SeqCst) {
                self.lead.close();
                return Role::End;
            }
            self.turn(&|| false);
        }
    }

    /// Like `Driver::turn`.
    fn turn(&self, leaves: &dyn Fn() -> bool) -> bool {
        assert!(!self.driving.swap(true, SeqCst), "two threads lead");
        let mut oracle = self.oracle.lock();
        if !oracle.riddle {
            oracle.answered = oracle.asked;
            self.answered.notify_all();
        }
        drop(oracle);
        let leaves = leaves();
        let may_wait = self.lead.bell.sleep() && !leaves;
        let mut event = self.event.lock();
        while may_wait && !*event {
            self.came.wait(&mut event);
        }
        *event = false;
        drop(event);
        self.lead.bell.awake();
        self.driving.store(false, SeqCst);
        true
    }

    fn rouse(&self) {
        *self.event.lock() = true;
        self.came.notify_one();
    }

    fn wake(&self, wake: Wake) {
        match wake {
            Wake::Now => self.lead.wake(|| self.rouse()),
            Wake::Soon => self.lead.wake_soon(|| self.rouse()),
        }
    }

    fn ask(&self, wake: Wake) -> usize {
        let question = {
            let mut oracle = self.oracle.lock();
            oracle.asked += 1;
            oracle.asked
        };
        self.wake(wake);
        question
    }

    fn is_answered(&self, question: usize) -> bool {
        self.oracle.lock().answered >= question
    }

    fn sleep(&self, question: usize) {
        let mut oracle = self.oracle.lock();
        while oracle.answered < question {
            self.answered.wait(&mut oracle);
        }
    }

    /// Waits like a node's callers.
    fn wait(&self, question: usize) {
        self.wait_as(question, true);
    }

    fn wait_as(&self, question: usize, may_lead: bool) {
        let done = || self.is_answered(question);
        let turn = |leaves: &dyn Fn() -> bool| self.turn(leaves);
        self.lead.wait(may_lead, || self.rouse(), done, turn, || self.sleep(question));
    }

    /// Waits until [`free`](Self::free).
    fn wait_until_free(&self) {
        let turn = |leaves: &dyn Fn() -> bool| self.turn(leaves);
        let sleep = || {
            let mut free = self.free.lock();
            while !*free {
                self.freed.wait(&mut free);
            }
        };
        self.lead.wait(true, || self.rouse(), || *self.free.lock(), turn, sleep);
    }

    fn free(&self) {
        *self.free.lock() = true;
        self.freed.notify_all();
        self.lead.wake_guest(|| self.rouse());
    }

    /// Stops like the real reactor. Shuttle reports threads that wait forever.
    fn stop(&self) {
        self.stopped.store(true, SeqCst);
        self.lead.stop();
        self.wake(Wake::Now);
        self.lead.wait_closed();
        let own = self.own.lock().take();
        own.expect("it is stopped once").join().unwrap();
        let state = self.lead.state.lock();
        assert_eq!(state.visits.followers, 0);
        assert!(!state.visits.inside);
    }
}

fn check(run: impl Fn(&Arc<Reactor>) + Send + Sync + Copy + 'static) {
    let run = move || {
        let reactor = Reactor::start();
        run(&reactor);
        reactor.stop();
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 4);
}

/// Like [`check`], and once more with nothing being done merely because time has passed.
fn check_at_once(run: impl Fn(&Arc<Reactor>) + Send + Sync + Copy + 'static) {
    check(run);
    while_time_stands_still(|| check(run));
}

fn spawn(reactor: &Arc<Reactor>, run: impl FnOnce(&Reactor) + Send + 'static) -> thread::JoinHandle<()> {
    let reactor = reactor.clone();
    thread::spawn(move || run(&reactor))
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn whoever_asks_is_answered_whoever_leads() {
    check_at_once(|reactor| {
        let asks = |reactor: &Reactor| (0..2).for_each(|_| reactor.wait(reactor.ask(Wake::Soon)));
        join([spawn(reactor, asks), spawn(reactor, asks), spawn(reactor, asks)]);
    });
}

#[test]
fn whoever_may_not_lead_is_answered_too() {
    check_at_once(|reactor| {
        let guest = spawn(reactor, |reactor| reactor.wait(reactor.ask(Wake::Soon)));
        let other = spawn(reactor, |reactor| reactor.wait_as(reactor.ask(Wake::Soon), false));
        join([guest, other]);
    });
}

#[test]
fn whoever_only_wakes_the_reactor_gets_a_turn() {
    check(|reactor| {
        let guest = spawn(reactor, |reactor| reactor.wait(reactor.ask(Wake::Soon)));
        // They sleep without telling the reactor, as tasks and background calls do.
        let now = spawn(reactor, |reactor| reactor.sleep(reactor.ask(Wake::Now)));
        let soon = spawn(reactor, |reactor| reactor.sleep(reactor.ask(Wake::Soon)));
        join([guest, now, soon]);
    });
}

#[test]
fn whoever_wakes_the_reactor_gets_a_turn_at_once() {
    check_at_once(|reactor| {
        let guest = |reactor: &Reactor| reactor.wait(reactor.ask(Wake::Now));
        let guests = [spawn(reactor, guest), spawn(reactor, guest)];
        reactor.sleep(reactor.ask(Wake::Now));
        join(guests);
        reactor.sleep(reactor.ask(Wake::Now));
    });
}

#[test]
fn a_guest_that_waits_for_events_is_woken_for_others() {
    for wake in [Wake::Now, Wake::Soon] {
        check(move |reactor| {
            reactor.oracle.lock().riddle = true;
            let question = reactor.ask(Wake::Now);
            let guests = [0, 1].map(|_| spawn(reactor, move |reactor| reactor.wait(question)));
            reactor.oracle.lock().riddle = false;
            reactor.wake(wake);
            join(guests);
        });
    }
}

#[test]
fn a_guest_leaves_for_what_another_thread_has_done() {
    check_at_once(|reactor| {
        // As when a call is cancelled.
        let guests = [0, 1].map(|_| spawn(reactor, Reactor::wait_until_free));
        reactor.free();
        join(guests);
    });
}

#[test]
fn whoever_follows_is_not_left_alone() {
    check_at_once(|reactor| {
        reactor.oracle.lock().riddle = true;
        let question = reactor.ask(Wake::Now);
        let waits = spawn(reactor, move |reactor| reactor.wait(question));
        let others = [0, 1].map(|_| spawn(reactor, Reactor::wait_until_free));
        reactor.free();
        join(others);
        // The answer comes on a socket, where only a thread that leads sees it.
        reactor.oracle.lock().riddle = false;
        reactor.rouse();
        join([waits]);
    });
}

#[test]
fn whoever_wakes_it_soon_meets_guests_that_come_and_go() {
    check(|reactor| {
        let guest = spawn(reactor, |reactor| {
            reactor.wait(reactor.ask(Wake::Soon));
            reactor.wait_until_free();
        });
        reactor.sleep(reactor.ask(Wake::Soon));
        reactor.free();
        join([guest]);
        // The guest has left without a word, maybe after a long time.
        reactor.sleep(reactor.ask(Wake::Soon));
    });
}

#[test]
fn stopping_ends_every_visit() {
    check_at_once(|reactor| {
        reactor.oracle.lock().riddle = true;
        let question = reactor.ask(Wake::Now);
        let guests = [0, 1].map(|_| spawn(reactor, move |reactor| reactor.wait(question)));
        reactor.stopped.store(true, SeqCst);
        reactor.lead.stop();
        reactor.wake(Wake::Now);
        reactor.lead.wait_closed();
        // The guests have left, and wait in their own way.
        reactor.oracle.lock().answered = question;
        reactor.answered.notify_all();
        join(guests);
    });
}

#[test]
fn the_reactors_own_thread_is_back_when_guests_are_not_welcome() {
    check(|reactor| {
        reactor.oracle.lock().riddle = true;
        let question = reactor.ask(Wake::Now);
        let guests = [0, 1].map(|_| spawn(reactor, move |reactor| reactor.wait(question)));
        reactor.lead.welcome(false, || reactor.rouse());
        // It takes the lead, although nobody calls it, and keeps it.
        let mut state = reactor.lead.state.lock();
        while reactor.lead.is_vacant() || state.visits.inside {
            reactor.lead.signal.wait_for(&mut state, REST);
        }
        drop(state);
        let visits = reactor.lead.state.lock().visits.count;
        reactor.oracle.lock().riddle = false;
        reactor.wake(Wake::Now);
        join(guests);
        assert_eq!(reactor.lead.state.lock().visits.count, visits, "a guest leads that is not welcome");
    });
}
