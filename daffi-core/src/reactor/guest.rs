//! Threads that lead while they wait.
//!
//! A thread that waits for an answer has nothing else to do. When it takes the answer from the socket itself, nobody has
//! to be woken for it, and waking a thread on another CPU takes longer than everything else about a call. So where nothing
//! but such threads depends on the reactor, its own thread rests, and whoever waits leads. Between two such visits
//! nobody leads: for so short a time that it does no harm, after which the reactor's own thread is back.

use std::time::{Duration, Instant};

use super::{
    CURRENT, Handle, Shared,
    driver::Stay,
    lead::{Lead, Role, State},
};
use crate::{
    host,
    sync::atomic::{AtomicBool, Ordering},
};

/// How often the thread that rests looks whether there are guests still. Up to twice that passes until it leads again.
const REST: Duration = Duration::from_millis(1);

/// A thread that waits again so soon, and so many times in a row with no other in between, is worth the lead.
const AGAIN_WITHIN: Duration = Duration::from_millis(1);
const AGAIN_TIMES: u32 = if cfg!(all(test, shuttle)) { 0 } else { 4 };

/// Whether there may be guests, and whether anybody leads. Written under the lock of the state.
#[derive(Debug, Default)]
pub(super) struct Guests {
    welcome: AtomicBool,
    /// Nobody leads; as in the state, for whoever just looks.
    vacant: AtomicBool,
    /// A guest wants the lead.
    wanted: AtomicBool,
}

/// The guests so far.
#[derive(Debug, Default)]
pub(super) struct Visits {
    /// A guest leads.
    inside: bool,
    /// How many times a guest has led.
    count: u64,
    /// Threads that wait while another one leads.
    followers: usize,
    /// The reactor's own thread is called back to lead.
    called: bool,
    /// It sleeps until it is called, since a guest stays for long.
    sleeps: bool,
    /// Who has waited last, until when, and how many times in a row.
    last: Option<(usize, Instant)>,
    times: u32,
}

/// What a thread does that waits.
#[derive(Debug, PartialEq, Eq)]
enum Waiting {
    /// It leads.
    Lead,
    /// Another one leads.
    Follow,
    /// There are no guests here.
    Apart,
}

impl Handle {
    /// Lets threads that [`wait`](Self::wait) lead, or not any more. One that leads leaves then.
    ///
    /// For a reactor on which nothing but they depend, and what can wait for a few milliseconds, as those do who knock at a listener.
    /// Guests do no [`Service::work`](super::Service::work).
    pub fn welcome_guests(&self, welcome: bool) {
        self.shared.lead.welcome(welcome, || self.shared.rouse());
    }

    /// Whether threads that wait may lead.
    pub fn welcomes_guests(&self) -> bool {
        self.shared.lead.is_welcoming()
    }

    /// Waits until `done`, or until `deadline`. Leads meanwhile if it may; otherwise, and for whatever is left then, it
    /// calls `sleep`, which does the same its own way.
    ///
    /// Whoever makes it `done`, and is not the one that leads, calls [`wake_guest`](Self::wake_guest). What `done` looks at is published
    /// under a lock that it takes too, or with `SeqCst`.
    pub fn wait<T>(
        &self,
        deadline: Option<Instant>,
        done: impl Fn() -> bool,
        sleep: impl FnOnce() -> T,
    ) -> T {
        let shared = &self.shared;
        // The thread of another reactor stays that.
        let may_lead = CURRENT.get() == 0;
        let turn = |leaves: &dyn Fn() -> bool| shared.turn_of_guest(deadline, leaves);
        shared.lead.wait(may_lead, || shared.rouse(), done, turn, sleep)
    }

    /// Has a thread that leads while it [`wait`](Self::wait)s look whether it is done.
    pub fn wake_guest(&self) {
        self.shared.lead.wake_guest(|| self.shared.rouse());
    }
}

impl Shared {
    /// One turn, which does not wait for events if the guest `leaves`. Says whether there is time for another one.
    fn turn_of_guest(&self, deadline: Option<Instant>, leaves: &dyn Fn() -> bool) -> bool {
        struct Guest;
        impl Drop for Guest {
            fn drop(&mut self) {
                CURRENT.set(0);
            }
        }
        let mut driver = self.driver.lock();
        let Some(running) = &mut *driver else { return false };
        CURRENT.set(self.address());
        let _guest = Guest;
        running.turn(self, || match deadline {
            _ if leaves() => Stay::Not,
            Some(deadline) => Stay::Until(deadline),
            None => Stay::Long,
        });
        deadline.is_none_or(|deadline| host::now() < deadline)
    }
}

impl Lead {
    /// See [`Handle::wake`]; `rouse` ends the wait for events.
    pub(super) fn wake(&self, rouse: impl FnOnce()) {
        self.bell.mark();
        if self.is_vacant() {
            self.state.lock().visits.called = true;
            self.signal.notify_all();
        } else {
            self.bell.rouse(rouse);
        }
    }

    /// See [`Handle::wake_soon`].
    pub(super) fn wake_soon(&self, rouse: impl FnOnce()) {
        // Before the look: a guest that takes the lead after it finds the mark.
        self.bell.mark();
        if !self.is_vacant() {
            self.bell.rouse(rouse);
        }
    }

    /// See [`Handle::wake_guest`].
    pub(super) fn wake_guest(&self, rouse: impl FnOnce()) {
        if self.is_welcoming() && !self.is_vacant() {
            self.bell.mark();
            self.bell.rouse(rouse);
        }
    }

    /// See [`Handle::welcome_guests`].
    pub(super) fn welcome(&self, welcome: bool, rouse: impl FnOnce()) {
        // Looked at first, since that is what it is nearly always.
        if self.guests.welcome.load(Ordering::Relaxed) == welcome {
            return;
        }
        let state = self.state.lock();
        self.guests.welcome.store(welcome && !state.stopped, Ordering::SeqCst);
        drop(state);
        if !welcome {
            // The thread that rests hears it, one that wants the lead, and a guest that waits for events.
            self.signal.notify_all();
            self.bell.mark();
            self.bell.rouse(rouse);
        }
    }

    /// Whether nobody leads, since the last guest has left.
    pub(super) fn is_vacant(&self) -> bool {
        self.guests.vacant.load(Ordering::SeqCst)
    }

    /// Whether guests may lead.
    pub(super) fn is_welcoming(&self) -> bool {
        self.guests.welcome.load(Ordering::SeqCst)
    }

    /// See [`Handle::wait`]. `turn` does not wait for events if what it is given says so, and says itself whether another
    /// turn makes sense.
    pub(super) fn wait<T>(
        &self,
        may_lead: bool,
        rouse: impl FnOnce(),
        done: impl Fn() -> bool,
        turn: impl Fn(&dyn Fn() -> bool) -> bool,
        sleep: impl FnOnce() -> T,
    ) -> T {
        if !self.guests.welcome.load(Ordering::Relaxed) || done() {
            return sleep();
        }
        match self.visit(may_lead, rouse) {
            Waiting::Apart => sleep(),
            Waiting::Follow => {
                struct Follower<'a>(&'a Lead);
                impl Drop for Follower<'_> {
                    fn drop(&mut self) {
                        self.0.unfollow();
                    }
                }
                let _follower = Follower(self);
                sleep()
            }
            Waiting::Lead => {
                self.lead_as_guest(done, turn);
                sleep()
            }
        }
    }

    fn lead_as_guest(&self, done: impl Fn() -> bool, turn: impl Fn(&dyn Fn() -> bool) -> bool) {
        struct Visit<'a>(&'a Lead);
        impl Drop for Visit<'_> {
            fn drop(&mut self) {
                self.0.leave();
            }
        }
        let _visit = Visit(self);
        // Looked at once more within the turn: the bell may just have been answered to who wanted the guest to leave.
        let leaves = || done() || !self.is_welcoming();
        while !leaves() {
            self.bell.answer();
            if !turn(&leaves) {
                return;
            }
        }
    }

    /// What a thread does that is about to wait.
    fn visit(&self, may_lead: bool, rouse: impl FnOnce()) -> Waiting {
        let mut state = self.state.lock();
        if !self.is_welcoming() {
            return Waiting::Apart;
        }
        if !may_lead {
            state.visits.followers += 1;
            state.visits.called = true;
            drop(state);
            self.signal.notify_all();
            return Waiting::Follow;
        }
        if !self.is_free(&state) {
            let is_regular = state.visits.is_regular();
            let visits = &mut state.visits;
            let others = visits.inside || visits.followers > 0 || self.guests.wanted.load(Ordering::SeqCst);
            if others || !is_regular {
                visits.followers += 1;
                return Waiting::Follow;
            }
            self.guests.wanted.store(true, Ordering::SeqCst);
            // The thread that leads comes out of its wait, or does not go into it, and yields.
            self.bell.mark();
            self.bell.rouse(rouse);
            while !self.is_free(&state) && !state.visits.inside && self.is_welcoming() {
                self.signal.wait(&mut state);
            }
            self.guests.wanted.store(false, Ordering::SeqCst);
            if !self.is_welcoming() {
                return Waiting::Apart;
            }
            if state.visits.inside {
                // Another guest was faster, and may stay for longer than this one waits.
                state.visits.followers += 1;
                return Waiting::Follow;
            }
        }
        state.vacant = false;
        self.guests.vacant.store(false, Ordering::SeqCst);
        state.visits.inside = true;
        state.visits.count += 1;
        Waiting::Lead
    }

    /// Whether a guest may take the lead: the last one has left it, or the reactor's own thread has yielded it. What is
    /// given away in the middle of a step is for the thread that stands by.
    fn is_free(&self, state: &State) -> bool {
        state.vacant && self.is_vacant()
    }

    /// A guest does not lead any more.
    fn leave(&self) {
        let mut state = self.state.lock();
        state.vacant = true;
        self.guests.vacant.store(true, Ordering::SeqCst);
        let visits = &mut state.visits;
        visits.inside = false;
        // Looked at after it is known that nobody leads: whoever wakes the reactor from here on sees that.
        visits.called |= self.bell.is_marked() || visits.followers > 0;
        // Once there are no guests any more, the reactor's own thread is the only one left to lead.
        let call = visits.called || visits.sleeps || !self.is_welcoming();
        drop(state);
        if call {
            self.signal.notify_all();
        }
    }

    fn unfollow(&self) {
        let mut state = self.state.lock();
        state.visits.followers -= 1;
        state.visits.last = state.visits.last.map(|(thread, _)| (thread, host::now()));
    }

    /// Whether the reactor's own thread, which leads, is to rest, since a guest wants the lead.
    pub(super) fn yields(&self) -> bool {
        if !self.guests.wanted.load(Ordering::SeqCst) {
            return false;
        }
        let mut state = self.state.lock();
        // It may have given up, or be about to, since it is not welcome any more.
        if !self.guests.wanted.load(Ordering::SeqCst) || !self.is_welcoming() {
            return false;
        }
        // The bell has been answered for the turn that this thread does not make. The guest makes it, or passes it on.
        self.bell.mark();
        state.vacant = true;
        state.visits.called = false;
        self.guests.vacant.store(true, Ordering::SeqCst);
        drop(state);
        self.signal.notify_all();
        true
    }

    /// Rests until there are no guests any more.
    pub(super) fn rest(&self) -> Role {
        let mut state = self.state.lock();
        let mut seen = state.visits.count;
        let mut quiet = 0;
        loop {
            if state.closed {
                return Role::End;
            }
            if state.vacant && (state.visits.called || !self.is_welcoming() || quiet > 1) {
                state.vacant = false;
                state.visits.called = false;
                self.guests.vacant.store(false, Ordering::SeqCst);
                return Role::Lead;
            }
            // A guest that stays for long says when it leaves.
            if state.visits.inside && quiet > 1 {
                state.visits.sleeps = true;
                self.signal.wait(&mut state);
                state.visits.sleeps = false;
                quiet = 0;
            } else {
                self.signal.wait_for(&mut state, REST);
                quiet = if state.visits.count == seen { quiet + 1 } else { 0 };
            }
            seen = state.visits.count;
        }
    }
}

impl Guests {
    /// There are no guests from here on.
    pub(super) fn end(&self) {
        self.welcome.store(false, Ordering::SeqCst);
    }
}

impl Visits {
    /// Whether this thread, which is about to wait, has waited often enough just before.
    fn is_regular(&mut self) -> bool {
        thread_local! {
            static MARK: u8 = const { 0 };
        }
        let now = host::now();
        let me = MARK.with(|mark| std::ptr::from_ref(mark) as usize);
        let again = |(last, at): (usize, Instant)| last == me && now < at + AGAIN_WITHIN;
        self.times = if self.last.is_some_and(again) { self.times + 1 } else { 0 };
        self.last = Some((me, now));
        self.times >= AGAIN_TIMES
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;
