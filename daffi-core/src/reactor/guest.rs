//! Threads that lead while they wait.
//!
//! A thread that waits for an answer has nothing else to do. When it takes the answer from the socket itself, nobody has
//! to be woken for it, and waking a thread on another CPU takes longer than everything else about a call. So where nothing
//! but such threads depends on the reactor, its own thread rests, and whoever waits leads. Between two such visits
//! nobody leads: for so short a time that it does no harm, after which the reactor's own thread is back.

use std::time::{Duration, Instant};

use super::{
    CURRENT, Handle, Shared,
    driver::{Driver, Stay, survive},
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
const AGAIN_TIMES: u32 = 4;

/// Whether there may be guests, and whether anybody leads.
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
pub(super) enum Waiting {
    /// It leads.
    Lead,
    /// Another one leads.
    Follow,
    /// There are no guests here.
    Apart,
}

impl Handle {
    /// Lets threads that [`wait`](Self::wait) lead, or not any more.
    ///
    /// For a reactor on which nothing but they depend, and what can wait for a few milliseconds: no listeners, and no
    /// [`Service::work`](super::Service::work).
    pub fn welcome_guests(&self, welcome: bool) {
        let guests = &self.shared.lead.guests;
        // Looked at first, since that is what it is nearly always.
        if guests.welcome.load(Ordering::Relaxed) != welcome {
            guests.welcome.store(welcome, Ordering::SeqCst);
            if !welcome {
                self.shared.lead.call();
            }
        }
    }

    /// Waits until `done`, or until `deadline`. Leads meanwhile if it may; otherwise, and for whatever is left then, it
    /// calls `sleep`, which does the same its own way.
    pub fn wait<T>(
        &self,
        deadline: Option<Instant>,
        done: impl Fn() -> bool,
        sleep: impl FnOnce() -> T,
    ) -> T {
        let shared = &self.shared;
        if !shared.lead.guests.welcome.load(Ordering::Relaxed) || done() {
            return sleep();
        }
        // The thread of another reactor stays that.
        let may_lead = CURRENT.get() == 0;
        let rouse = || {
            // It may be on its way into the wait.
            shared.bell.mark();
            shared.rouse();
        };
        match shared.lead.visit(may_lead, rouse) {
            Waiting::Apart => sleep(),
            Waiting::Follow => {
                struct Follower<'a>(&'a Lead);
                impl Drop for Follower<'_> {
                    fn drop(&mut self) {
                        self.0.unfollow();
                    }
                }
                let _follower = Follower(&shared.lead);
                sleep()
            }
            Waiting::Lead => {
                shared.lead_as_guest(deadline, done);
                sleep()
            }
        }
    }
}

impl Shared {
    fn lead_as_guest(&self, deadline: Option<Instant>, done: impl Fn() -> bool) {
        struct Visit<'a>(&'a Shared);
        impl Drop for Visit<'_> {
            fn drop(&mut self) {
                CURRENT.set(0);
                self.0.lead.leave(|| self.0.bell.is_marked());
            }
        }
        CURRENT.set(self.address());
        self.lead.begin();
        let _visit = Visit(self);
        let mut services = self.driver.lock().as_ref().map(Driver::services).unwrap_or_default();
        while !done()
            && !self.stopped.load(Ordering::SeqCst)
            && self.lead.guests.welcome.load(Ordering::SeqCst)
            && deadline.is_none_or(|deadline| host::now() < deadline)
        {
            self.bell.answer();
            for service in services.iter() {
                survive(|| service.work());
            }
            let mut driver = self.driver.lock();
            let Some(running) = &mut *driver else { return };
            services = running.turn(self, || match deadline {
                _ if done() => Stay::Not,
                Some(deadline) => Stay::Until(deadline),
                None => Stay::Long,
            });
        }
    }
}

impl Lead {
    /// Whether nobody leads, since the last guest has left.
    pub(super) fn is_vacant(&self) -> bool {
        self.guests.vacant.load(Ordering::SeqCst)
    }

    /// Calls the thread back that rests.
    pub(super) fn call(&self) {
        self.state.lock().visits.called = true;
        self.signal.notify_all();
    }

    /// What a thread does that is about to wait. `rouse` has the thread that leads look whether it is to rest.
    fn visit(&self, may_lead: bool, rouse: impl FnOnce()) -> Waiting {
        thread_local! {
            static MARK: u8 = const { 0 };
        }
        let mut state = self.state.lock();
        if state.is_over() {
            return Waiting::Apart;
        }
        let is_free = |state: &State| state.vacant && self.is_vacant();
        if !may_lead {
            state.visits.followers += 1;
            state.visits.called = true;
            drop(state);
            self.signal.notify_all();
            return Waiting::Follow;
        }
        if !is_free(&state) {
            let visits = &mut state.visits;
            let now = host::now();
            let me = MARK.with(|mark| std::ptr::from_ref(mark) as usize);
            let again = |(last, at): (usize, Instant)| last == me && now < at + AGAIN_WITHIN;
            visits.times = if visits.last.is_some_and(again) { visits.times + 1 } else { 0 };
            visits.last = Some((me, now));
            if visits.inside || visits.followers > 0 || visits.times < AGAIN_TIMES {
                visits.followers += 1;
                return Waiting::Follow;
            }
            self.guests.wanted.store(true, Ordering::SeqCst);
            rouse();
            // It comes out of its wait and leaves the lead, or ends.
            while !(is_free(&state) || state.is_over()) {
                self.signal.wait(&mut state);
            }
            self.guests.wanted.store(false, Ordering::SeqCst);
            if state.is_over() {
                return Waiting::Apart;
            }
        }
        state.vacant = false;
        self.guests.vacant.store(false, Ordering::SeqCst);
        state.visits.inside = true;
        state.visits.count += 1;
        Waiting::Lead
    }

    /// A guest does not lead any more. If something is `woken`, others want the reactor to go on.
    fn leave(&self, woken: impl FnOnce() -> bool) {
        let mut state = self.state.lock();
        state.vacant = true;
        self.guests.vacant.store(true, Ordering::SeqCst);
        let visits = &mut state.visits;
        visits.inside = false;
        // Looked at after it is known that nobody leads: whoever wakes the reactor from here on sees that.
        visits.called |= woken() || visits.followers > 0;
        let call = visits.called || visits.sleeps || state.stopped;
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
            let welcome = self.guests.welcome.load(Ordering::SeqCst);
            if state.vacant && (state.visits.called || state.stopped || !welcome || quiet > 1) {
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
