//! Threads that lead while they wait.
//!
//! A thread that waits for an answer has nothing else to do. If it takes the answer from the socket itself,
//! nobody has to be woken for it, and waking a thread on another CPU takes longer than everything else about
//! a call. So if nothing but such threads depends on the reactor, its own thread rests, and a thread that
//! waits leads. Between two such visits nobody leads, but so briefly that it does no harm: after that, the
//! reactor's own thread is back.

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

/// How often the thread that rests checks whether there are still guests. It may take up to twice as long
/// until it leads again.
const REST: Duration = Duration::from_millis(1);

/// A thread that waits again this soon, this many times in a row with no other in between, is worth the lead.
const AGAIN_WITHIN: Duration = Duration::from_millis(1);
const AGAIN_TIMES: u32 = if cfg!(all(test, shuttle)) { 0 } else { 4 };

/// Whether there may be guests, and whether anybody leads. Written under the lock of the state.
#[derive(Debug, Default)]
pub(super) struct Guests {
    welcome: AtomicBool,
    /// Nobody leads; a copy of the flag in the state, for checks without the lock.
    vacant: AtomicBool,
    /// A guest wants the lead.
    wanted: AtomicBool,
}

/// The guests so far.
#[derive(Debug, Default)]
pub(super) struct Visits {
    /// A guest is leading.
    inside: bool,
    /// How many times a guest has led.
    count: u64,
    /// How many threads wait while another one leads.
    followers: usize,
    /// The reactor's own thread is called back to lead.
    called: bool,
    /// The reactor's own thread sleeps until it is called, because a guest stays for long.
    sleeps: bool,
    /// Which thread waited last and until when; `times` says how many times in a row.
    last: Option<(usize, Instant)>,
    times: u32,
}

/// What a thread does while it waits.
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
    /// Allows threads that [`wait`](Self::wait) to lead, or forbids it, which makes a guest that leads leave.
    ///
    /// Meant for a reactor that nothing else depends on, except what can wait for a few milliseconds, such as
    /// new connections to a listener. Guests do no [`Service::work`](super::Service::work).
    pub fn welcome_guests(&self, welcome: bool) {
        self.shared.lead.welcome(welcome, || self.shared.rouse());
    }

    /// Returns whether threads that wait may lead.
    pub fn welcomes_guests(&self) -> bool {
        self.shared.lead.is_welcoming()
    }

    /// Waits until `done`, or until `deadline`. Leads meanwhile if it may. If not, and for whatever is left
    /// of the wait, it calls `sleep`, which waits for the same thing in its own way.
    ///
    /// A thread that makes it `done`, unless it is the one that leads, must call
    /// [`wake_guest`](Self::wake_guest). What `done` checks must be published under a lock that it takes too,
    /// or with `SeqCst`.
    pub fn wait<T>(
        &self,
        deadline: Option<Instant>,
        done: impl Fn() -> bool,
        sleep: impl FnOnce() -> T,
    ) -> T {
        let shared = &self.shared;
        // A thread of another reactor does not lead this one.
        let may_lead = CURRENT.get() == 0;
        let turn = |leaves: &dyn Fn() -> bool| shared.turn_of_guest(deadline, leaves);
        shared.lead.wait(may_lead, || shared.rouse(), done, turn, sleep)
    }

    /// Makes a thread that leads while it [`wait`](Self::wait)s check whether it is done.
    pub fn wake_guest(&self) {
        self.shared.lead.wake_guest(|| self.shared.rouse());
    }
}

impl Shared {
    /// Does one turn, which does not wait for events if the guest `leaves`. Returns whether there is time for
    /// another one.
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
        // This precedes the check: a guest that takes the lead afterwards finds the mark.
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
        // Checked without the lock first, since this is nearly always the case.
        if self.guests.welcome.load(Ordering::Relaxed) == welcome {
            return;
        }
        let state = self.state.lock();
        self.guests.welcome.store(welcome && !state.stopped, Ordering::SeqCst);
        drop(state);
        if !welcome {
            // This reaches the thread that rests, a thread that wants the lead, and a guest that waits for
            // events.
            self.signal.notify_all();
            self.bell.mark();
            self.bell.rouse(rouse);
        }
    }

    /// Returns whether nobody leads because the last guest has left.
    pub(super) fn is_vacant(&self) -> bool {
        self.guests.vacant.load(Ordering::SeqCst)
    }

    /// Returns whether guests may lead.
    pub(super) fn is_welcoming(&self) -> bool {
        self.guests.welcome.load(Ordering::SeqCst)
    }

    /// See [`Handle::wait`]. `turn` does not wait for events if its argument returns `true`, and returns
    /// whether another turn makes sense.
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
        // Checked once more within the turn: the bell that was just answered may have been rung to make the
        // guest leave.
        let leaves = || done() || !self.is_welcoming();
        while !leaves() {
            self.bell.answer();
            if !turn(&leaves) {
                return;
            }
        }
    }

    /// Decides what a thread does that is about to wait.
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
            // The thread that leads ends its wait, or does not begin one, and yields.
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

    /// Returns whether a guest may take the lead: the last guest has left it, or the reactor's own thread has
    /// yielded it. A lead given up in the middle of a step is for the thread that stands by.
    fn is_free(&self, state: &State) -> bool {
        state.vacant && self.is_vacant()
    }

    /// Ends the lead of a guest.
    fn leave(&self) {
        let mut state = self.state.lock();
        state.vacant = true;
        self.guests.vacant.store(true, Ordering::SeqCst);
        let visits = &mut state.visits;
        visits.inside = false;
        // Checked after it is known that nobody leads: a thread that wakes the reactor from here on sees
        // that.
        visits.called |= self.bell.is_marked() || visits.followers > 0;
        // Once guests are no longer welcome, only the reactor's own thread is left to lead.
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

    /// Returns whether the reactor's own thread, which leads, should rest because a guest wants the lead.
    pub(super) fn yields(&self) -> bool {
        if !self.guests.wanted.load(Ordering::SeqCst) {
            return false;
        }
        let mut state = self.state.lock();
        // The guest may have given up, or be about to, because it is no longer welcome.
        if !self.guests.wanted.load(Ordering::SeqCst) || !self.is_welcoming() {
            return false;
        }
        // The bell was answered for a turn that this thread will not do. The guest does it, or passes it on.
        self.bell.mark();
        state.vacant = true;
        state.visits.called = false;
        self.guests.vacant.store(true, Ordering::SeqCst);
        drop(state);
        self.signal.notify_all();
        true
    }

    /// Rests until there are no more guests.
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
            // A guest that stays for long wakes this thread when it leaves.
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
    /// Admits no guests from now on.
    pub(super) fn end(&self) {
        self.welcome.store(false, Ordering::SeqCst);
    }
}

impl Visits {
    /// Returns whether this thread, which is about to wait, has waited often enough just before.
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
