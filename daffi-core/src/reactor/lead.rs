//! Which thread is the I/O thread.
//!
//! The thread that leads waits for the sockets, and between two waits it runs code that others wrote:
//! callbacks that run in place, because handing them to another thread costs more than most of them do. If
//! one does not return soon, a thread that stands by takes the lead, and the delayed thread is an ordinary
//! thread from then on. So nothing that a callback does stops heartbeats or other calls for longer than twice
//! [`PATIENCE`].

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use super::{bell::Bell, guest::Guests};
use crate::{
    host,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        thread_local,
    },
};

/// How long a piece of work may take before another thread takes the lead. As this is also the interval
/// between checks, it may take up to twice as long.
const PATIENCE: Duration = Duration::from_millis(1);

/// After how many checks without any work the thread that stands by goes to sleep.
const LOOKS_WITHOUT_WORK: u32 = if cfg!(all(test, shuttle)) { 0 } else { 200 };

/// Which thread leads, and who would take over.
#[derive(Debug, Default)]
pub(super) struct Lead {
    /// Odd while the leader works. The thread that makes it even again leads: the leader when it is done, or
    /// another thread that takes over.
    steps: AtomicU64,
    /// Somebody is watching the leader's steps.
    watched: AtomicBool,
    pub(super) bell: Bell,
    pub(super) guests: Guests,
    pub(super) state: Mutex<State>,
    pub(super) signal: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Nobody leads: the leader is about to wait for something, or a guest has left.
    pub(super) vacant: bool,
    /// There is a thread that stands by.
    standing_by: bool,
    pub(super) stopped: bool,
    /// Everything on the reactor is closed.
    pub(super) closed: bool,
    pub(super) visits: super::guest::Visits,
    /// Steps during which another thread took the lead, and when it did.
    deposed: Vec<(u64, Instant)>,
}

thread_local! {
    /// The step in which this thread does work as leader; 0 outside of a step.
    static STEP: Cell<u64> = const { Cell::new(0) };
    /// Whether this thread has lost the lead during a step.
    static DEPOSED: Cell<bool> = const { Cell::new(false) };
}

/// What a thread of the reactor does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Lead,
    StandBy,
    /// Guests lead.
    Rest,
    End,
}

/// Work that this thread does as leader. Dropping it ends the step.
#[derive(Debug)]
pub struct Step<'a> {
    lead: &'a Lead,
}

impl Step<'_> {
    /// Ends a piece of the work. Returns whether this thread still leads: if not, it must leave the rest
    /// alone.
    pub fn again(&self) -> bool {
        let step = STEP.get();
        let next = step.wrapping_add(2);
        let leads = step != 0 && self.lead.exchange(step, next);
        if leads {
            STEP.set(next);
        }
        leads
    }

    /// Returns how long another thread has led because this one had not come back. `None` if this thread
    /// still leads, or gave up the lead itself.
    pub fn held_up(&self) -> Option<Duration> {
        self.lead
            .state
            .lock()
            .take_deposed(STEP.get())
            .map(|since| host::now().saturating_duration_since(since))
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        let step = STEP.replace(0);
        let leads = self.lead.end_step(step);
        DEPOSED.set(!leads);
        if !leads {
            self.lead.state.lock().take_deposed(step);
        }
    }
}

impl State {
    fn take_deposed(&mut self, step: u64) -> Option<Instant> {
        let at = self.deposed.iter().position(|(deposed, _)| *deposed == step)?;
        Some(self.deposed.swap_remove(at).1)
    }
}

impl Lead {
    /// Does `work` as leader. `stand_by` starts a thread that stands by, and returns whether it did.
    pub(super) fn step(&self, stand_by: impl FnOnce() -> bool, work: impl FnOnce(&Step<'_>)) {
        // Only the leader makes it odd.
        let step = self.steps.load(Ordering::Relaxed) + 1;
        // This precedes the check of `watched`: a thread that stops watching checks the steps once more
        // afterwards.
        self.steps.store(step, Ordering::SeqCst);
        STEP.set(step);
        // A panic ends the step like anything else.
        let running = Step { lead: self };
        if !self.watched.load(Ordering::SeqCst) {
            self.be_watched(stand_by);
        }
        work(&running);
    }

    /// Returns whether this thread leads, between two steps.
    pub(super) fn leads(&self) -> bool {
        !DEPOSED.get()
    }

    /// Gives up the lead in the middle of a step, because this thread is about to wait. `lead` starts a
    /// thread that leads, if none stands by, and returns whether it did. If it did not, nobody leads until
    /// this thread is back.
    pub(super) fn step_aside(&self, lead: impl FnOnce() -> bool) {
        let step = STEP.get();
        if step != 0 && self.end_step(step) {
            let mut state = self.state.lock();
            if state.standing_by {
                state.vacant = true;
                self.signal.notify_all();
            } else {
                drop(state);
                self.watched.store(false, Ordering::SeqCst);
                if !lead() {
                    self.state.lock().vacant = true;
                }
            }
        }
    }

    /// Begins to lead on this thread.
    pub(super) fn begin(&self) {
        DEPOSED.set(false);
    }

    /// Returns whether this thread of the reactor leads.
    pub(super) fn is_mine(&self) -> bool {
        let step = STEP.get();
        if step == 0 { self.leads() } else { self.steps.load(Ordering::SeqCst) == step }
    }

    /// Waits until there is something to lead, or everything is closed.
    pub(super) fn stand_by(&self) -> Role {
        DEPOSED.set(true);
        let mut seen = 0;
        let mut quiet = 0;
        let mut state = self.state.lock();
        while !state.closed {
            // A lead that a guest has left is for other guests, and for the thread that rests.
            if state.vacant && !self.is_vacant() {
                state.vacant = false;
                return self.take_lead(&mut state);
            }
            if !self.watched.load(Ordering::SeqCst) && !state.stopped {
                self.signal.wait(&mut state);
                continue;
            }
            self.signal.wait_for(&mut state, PATIENCE);
            let steps = self.steps.load(Ordering::SeqCst);
            if steps != seen {
                seen = steps;
                quiet = 0;
            } else if steps % 2 == 1 && self.end_step(steps) {
                state.deposed.push((steps, host::now()));
                return self.take_lead(&mut state);
            } else {
                quiet += 1;
                if quiet > LOOKS_WITHOUT_WORK {
                    quiet = 0;
                    self.watched.store(false, Ordering::SeqCst);
                    // A step that began just before this still relies on being watched.
                    if self.steps.load(Ordering::SeqCst) != steps {
                        self.watched.store(true, Ordering::SeqCst);
                    }
                }
            }
        }
        Role::End
    }

    /// Decides what a thread does that no longer leads: it stands by, unless another one does.
    pub(super) fn resign(&self) -> Role {
        if self.take_stand() { Role::StandBy } else { Role::End }
    }

    fn take_lead(&self, state: &mut State) -> Role {
        state.standing_by = false;
        // The first step makes another thread stand by.
        self.watched.store(false, Ordering::SeqCst);
        Role::Lead
    }

    fn take_stand(&self) -> bool {
        let mut state = self.state.lock();
        !state.closed && !std::mem::replace(&mut state.standing_by, true)
    }

    /// Tells the threads to end.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        self.guests.end();
        drop(state);
        self.signal.notify_all();
    }

    /// Records that everything is closed.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.signal.notify_all();
    }

    /// Waits until everything is closed.
    pub(super) fn wait_closed(&self) {
        let mut state = self.state.lock();
        while !state.closed {
            self.signal.wait(&mut state);
        }
    }

    fn end_step(&self, step: u64) -> bool {
        self.exchange(step, step + 1)
    }

    fn exchange(&self, step: u64, next: u64) -> bool {
        self.steps.compare_exchange(step, next, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    #[cold]
    fn be_watched(&self, stand_by: impl FnOnce() -> bool) {
        self.watched.store(true, Ordering::SeqCst);
        if self.take_stand() && !stand_by() {
            // The next step tries again.
            self.watched.store(false, Ordering::SeqCst);
            self.state.lock().standing_by = false;
            return;
        }
        // Taking the lock ensures that a thread that is about to sleep gets the signal.
        drop(self.state.lock());
        self.signal.notify_all();
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    /// As in a process that may have no more threads.
    #[test]
    fn a_lead_that_no_thread_could_take_is_taken_back() {
        let (role_in, role) = mpsc::channel();
        let waits = thread::spawn(move || {
            let lead = Lead::default();
            lead.begin();
            lead.step(|| false, |_| lead.step_aside(|| false));
            assert!(!lead.leads(), "it gave the lead away");
            assert_eq!(lead.resign(), Role::StandBy);
            role_in.send(lead.stand_by()).unwrap();
        });
        assert_eq!(role.recv_timeout(Duration::from_secs(20)), Ok(Role::Lead));
        waits.join().unwrap();
    }
}
