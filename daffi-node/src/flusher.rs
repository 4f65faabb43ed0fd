//! Frames of many tasks, written together by one of them.
//!
//! The answers to many tasks come together, and then one task after the other calls again. If the I/O thread
//! wrote their frames, they would leave as they come, few at a time, and each write wakes the controller. So
//! the first task that waits again arranges to be woken once more, behind all others that are ready by then,
//! and writes what all of them have left. If that does not happen soon, the I/O thread writes.

use std::time::{Duration, Instant};

use crate::sync::{
    Mutex,
    atomic::{AtomicU8, Ordering},
};

/// Finds the task that writes what others have left.
#[derive(Debug, Default)]
pub(crate) struct Flusher {
    state: AtomicU8,
    /// When the I/O thread writes, counted from the first turn that sees that something is left.
    due: Mutex<Option<Instant>>,
}

/// Nothing is left.
const IDLE: u8 = 0;
/// Something is left, and the next task that waits will write it.
const WANTED: u8 = 1;
/// A task will write it.
const FOUND: u8 = 2;

impl Flusher {
    /// How long frames are left to a task. It may be busy, or never come back to its call.
    const PATIENCE: Duration = Duration::from_millis(1);

    /// Notes that a frame is left, which is already queued; returns whether it is the first, so that a
    /// [`turn`](Self::turn) must follow.
    pub(crate) fn leave(&self) -> bool {
        self.state.load(Ordering::SeqCst) == IDLE && self.exchange(IDLE, WANTED)
    }

    /// Returns whether the calling task must write, once others have had their turn. It then calls
    /// [`begin`](Self::begin).
    pub(crate) fn find(&self) -> bool {
        self.state.load(Ordering::Relaxed) == WANTED && self.exchange(WANTED, FOUND)
    }

    /// Called before everything queued is written. What is left later is for the next writer.
    pub(crate) fn begin(&self) {
        if self.state.load(Ordering::Relaxed) != IDLE {
            // Before the queue is read: a frame whose task has seen the old state was queued before.
            self.state.store(IDLE, Ordering::SeqCst);
            *self.due.lock() = None;
        }
    }

    /// Returns when the I/O thread must write what is left to a task; `None` if nothing is, or if it is time.
    pub(crate) fn turn(&self, now: Instant) -> Option<Instant> {
        if self.state.load(Ordering::SeqCst) == IDLE {
            return None;
        }
        let due = *self.due.lock().get_or_insert(now + Self::PATIENCE);
        (now < due).then_some(due)
    }

    fn exchange(&self, state: u8, next: u8) -> bool {
        self.state.compare_exchange(state, next, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_waits_writes_for_all() {
        let flusher = Flusher::default();
        assert!(!flusher.find(), "nothing is left");
        assert!(flusher.leave());
        assert!(!flusher.leave(), "it is not the first");
        assert!(flusher.find());
        assert!(!flusher.find() && !flusher.leave(), "one is found");
        flusher.begin();
        assert!(!flusher.find());
        assert!(flusher.leave() && flusher.find(), "this is for the next one");
    }

    #[test]
    fn the_io_thread_writes_what_nobody_writes_in_time() {
        let flusher = Flusher::default();
        let start = Instant::now();
        let due = start + Flusher::PATIENCE;
        assert_eq!(flusher.turn(start), None, "nothing is left");
        flusher.leave();
        assert_eq!(flusher.turn(start), Some(due));
        flusher.find();
        assert_eq!(flusher.turn(start + Flusher::PATIENCE / 2), Some(due));
        assert_eq!(flusher.turn(due), None);
        flusher.begin();
        // The next one has as long.
        flusher.leave();
        assert_eq!(flusher.turn(due), Some(due + Flusher::PATIENCE));
    }
}
