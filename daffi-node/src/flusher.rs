//! Frames of tasks, which one of them writes together.
//!
//! The answers to many tasks come together, and then one task after the other calls again. Left to the I/O thread, their frames would
//! leave as they come, few at a time, and each write wakes the controller. So the first task that waits again has itself woken
//! once more, behind all others that are ready by then, and writes what all of them have left. Should it not come to that soon,
//! the I/O thread writes.

use std::time::{Duration, Instant};

use crate::sync::{
    Mutex,
    atomic::{AtomicU8, Ordering},
};

/// Finds the task that writes what others have left.
#[derive(Debug, Default)]
pub(crate) struct Flusher {
    state: AtomicU8,
    /// When the I/O thread writes, from the first turn on in which it sees that something is left.
    due: Mutex<Option<Instant>>,
}

/// Nothing is left.
const IDLE: u8 = 0;
/// Something is left, and the next task that waits is going to write it.
const WANTED: u8 = 1;
/// A task is going to write it.
const FOUND: u8 = 2;

impl Flusher {
    /// How long frames are left to a task. It may be busy, or not come back to its call at all.
    const PATIENCE: Duration = Duration::from_millis(1);

    /// A frame is left, which is queued already; says whether it is the first, so that a [`turn`](Self::turn) has to follow.
    pub(crate) fn leave(&self) -> bool {
        self.state.load(Ordering::SeqCst) == IDLE && self.exchange(IDLE, WANTED)
    }

    /// Whether the task that asks is to write, once others had their turn. It [`begin`](Self::begin)s with that.
    pub(crate) fn find(&self) -> bool {
        self.state.load(Ordering::Relaxed) == WANTED && self.exchange(WANTED, FOUND)
    }

    /// Somebody writes all that is queued from here on. What is left later is for the next one.
    pub(crate) fn begin(&self) {
        if self.state.load(Ordering::Relaxed) != IDLE {
            // Before the look at the queue: whoever has seen the old state was in it before.
            self.state.store(IDLE, Ordering::SeqCst);
            *self.due.lock() = None;
        }
    }

    /// When the I/O thread is to write what is left to a task; `None` if nothing is, or it is time.
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
