//! The time after a controller has come back, while the nodes return to it one by one.
//!
//! A call to a callback that no node offers then is not refused yet: its callee may be on its way. It did not
//! run, so it can be sent again, until every node has had time to return.

use std::{
    collections::HashMap,
    fmt,
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use daffi_core::fault::{Fault, FaultKind};
use parking_lot::Mutex;

use crate::{
    backoff,
    in_flight::CallId,
    outgoing::{Kind, Outgoing},
    remains::Remains,
};

/// Calls that may have to be sent again while the nodes return.
#[derive(Default)]
pub(crate) struct Settling {
    /// Whether this is going on; checked for each call, so that it costs nothing at other times.
    active: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    until: Option<Instant>,
    calls: HashMap<CallId, Outgoing>,
}

/// How long it lasts: the longest that a node waits before it tries again, and some time to do so.
const TIME: Duration = backoff::LONGEST.saturating_add(Duration::from_millis(500));

/// How long a call waits before it is sent again: half the time since the controller came back, within these
/// bounds. Most nodes return at once, and many calls to one that does not must not keep the controller busy.
const PAUSE: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_millis(500);

impl Settling {
    /// Begins when the controller is back; returns when the time is over.
    pub(crate) fn begin(&self, now: Instant) -> Instant {
        let until = now + TIME;
        self.state.lock().until = Some(until);
        self.active.store(true, Ordering::SeqCst);
        until
    }

    /// Remembers a call that is about to be sent.
    pub(crate) fn keep(&self, id: CallId, call: &Outgoing) {
        if self.active.load(Ordering::SeqCst) && matches!(call.kind, Kind::Call) {
            let mut state = self.state.lock();
            let replaced = if state.until.is_some() { state.calls.insert(id, call.clone()) } else { None };
            drop(state);
            drop(replaced);
        }
    }

    /// Forgets a call that is over. Its arguments are added to `remains`.
    #[inline]
    pub(crate) fn forget(&self, id: CallId, remains: &mut Remains) {
        if self.active.load(Ordering::SeqCst) {
            remains.add(self.state.lock().calls.remove(&id).map(|call| call.body));
        }
    }

    /// Returns a call that failed, if it is to be sent again, and how long it must wait for that.
    pub(crate) fn again(&self, id: CallId, fault: &Fault, now: Instant) -> Option<(Outgoing, Duration)> {
        let absent = matches!(fault.kind, FaultKind::NoCandidate | FaultKind::NoProcess);
        if !absent || !self.active.load(Ordering::SeqCst) {
            return None;
        }
        let (until, call) = {
            let mut state = self.state.lock();
            (state.until, state.calls.remove(&id))
        };
        let (until, call) = (until?, call?);
        let left = until.saturating_duration_since(now);
        Some((call, (TIME.saturating_sub(left) / 2).clamp(*PAUSE.start(), *PAUSE.end())))
    }

    /// Ends it when the time is over; returns when that will be.
    pub(crate) fn turn(&self, now: Instant) -> Option<Instant> {
        if !self.active.load(Ordering::SeqCst) {
            return None;
        }
        let mut state = self.state.lock();
        let until = state.until?;
        if until > now {
            return Some(until);
        }
        self.active.store(false, Ordering::SeqCst);
        let ended = std::mem::take(&mut *state);
        drop(state);
        drop(ended);
        None
    }
}

impl fmt::Debug for Settling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settling").field("active", &self.active).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outgoing::Ask;

    const ID: CallId = CallId(7);

    fn call() -> Outgoing {
        Outgoing { kind: Kind::Call, ..Outgoing::ask(Ask::Processes, "f") }
    }

    fn fault(kind: FaultKind) -> Fault {
        Fault::new(kind, "")
    }

    #[test]
    fn who_is_not_back_yet_is_called_again_until_the_time_is_over() {
        let settling = Settling::default();
        let now = Instant::now();
        settling.keep(ID, &call());
        assert!(settling.again(ID, &fault(FaultKind::NoCandidate), now).is_none(), "nothing was lost");

        let until = settling.begin(now);
        settling.keep(ID, &call());
        assert!(settling.again(ID, &fault(FaultKind::Panicked), now).is_none(), "it ran");
        assert!(settling.again(ID, &fault(FaultKind::NoProcess), now).is_some());
        assert!(settling.again(ID, &fault(FaultKind::NoProcess), now).is_none(), "it has to be sent first");

        settling.keep(ID, &call());
        assert_eq!(settling.turn(now), Some(until));
        assert_eq!(settling.turn(until), None);
        assert!(settling.again(ID, &fault(FaultKind::NoCandidate), now).is_none());
        settling.keep(ID, &call());
        assert!(settling.state.lock().calls.is_empty());
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let settling = Settling::default();
        let now = Instant::now();
        settling.begin(now);
        settling.keep(ID, &call());
        settling.forget(ID, &mut Remains::default());
        assert!(settling.again(ID, &fault(FaultKind::NoCandidate), now).is_none());
        let question = Outgoing::ask(Ask::Processes, "");
        settling.keep(ID, &question);
        assert!(settling.state.lock().calls.is_empty(), "questions are not for nodes");
    }

    #[test]
    fn the_longer_it_takes_the_less_often_is_asked() {
        let settling = Settling::default();
        let start = Instant::now();
        settling.begin(start);
        let (mut now, mut times) = (start, 0);
        while now < start + TIME {
            settling.keep(ID, &call());
            let (_, pause) = settling.again(ID, &fault(FaultKind::NoCandidate), now).unwrap();
            assert!(PAUSE.contains(&pause));
            now += pause;
            times += 1;
        }
        assert!((10..=20).contains(&times), "{times}");
    }
}
