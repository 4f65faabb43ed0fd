//! When the I/O thread next checks the time, so that only those who add something due earlier wake it.

use std::time::Instant;

use crate::sync::atomic::{AtomicU64, Ordering};

/// When the I/O thread next checks the time.
///
/// Anyone who adds something calls [`is_later_than`](Self::is_later_than) afterwards. While the thread looks
/// through what is due, no time is set, so anyone who asks then wakes it: whatever was added too late to be
/// seen is seen in the next turn.
#[derive(Debug)]
pub(crate) struct Alarm {
    /// In nanoseconds since `epoch`.
    at: AtomicU64,
    epoch: Instant,
}

/// The alarm does not go off.
const NEVER: u64 = u64::MAX;

impl Alarm {
    pub(crate) fn new(epoch: Instant) -> Self {
        Self { at: AtomicU64::new(NEVER), epoch }
    }

    /// Called when the thread begins to look through what is due.
    pub(crate) fn unset(&self) {
        self.at.store(NEVER, Ordering::SeqCst);
    }

    /// Called when the thread has found out what is due next, if anything.
    pub(crate) fn set(&self, next: Option<Instant>) {
        if let Some(next) = next {
            self.at.store(self.nanos(next), Ordering::SeqCst);
        }
    }

    /// Returns whether the thread has to be woken for something due at `at`.
    pub(crate) fn is_later_than(&self, at: Instant) -> bool {
        self.nanos(at) < self.at.load(Ordering::SeqCst)
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_nanos().try_into().unwrap_or(NEVER - 1)
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_is_due_earlier_wakes_the_thread() {
        let epoch = Instant::now();
        let at = |millis| epoch + Duration::from_millis(millis);
        let alarm = Alarm::new(epoch);
        assert!(alarm.is_later_than(at(1)), "nothing is due yet");
        alarm.set(Some(at(10)));
        assert!(alarm.is_later_than(at(9)));
        assert!(!alarm.is_later_than(at(10)) && !alarm.is_later_than(at(11)));
        alarm.unset();
        assert!(alarm.is_later_than(at(11)), "the thread is looking");
        alarm.set(None);
        assert!(alarm.is_later_than(at(11)));
    }
}
