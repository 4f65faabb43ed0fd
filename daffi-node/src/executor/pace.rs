//! How quick a callback is, going by its runs so far: quick ones run on the I/O thread, where their calls
//! arrive.
//!
//! Handing a call to another thread costs two wake-ups, more than most callbacks take. So a callback that is
//! quick time after time is spared them, until it is not.

use std::{
    sync::atomic::{AtomicI32, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use daffi_core::host;

/// How quick one callback is.
#[derive(Debug)]
pub(crate) struct Pace {
    /// How many quick runs in a row there were, up to [`QUICK_RUNS`]; negative after a run that held up the
    /// I/O thread.
    quick_runs: AtomicI32,
    /// Runs on the I/O thread, of which only some are timed.
    runs: AtomicU32,
}

/// After this many quick runs in a row, a callback runs on the I/O thread.
const QUICK_RUNS: i32 = 16;
/// What counts as quick: about what handing the call over would cost.
const QUICK: Duration = Duration::from_micros(50);
/// This many extra quick runs are needed after one that held up the I/O thread.
const HELD_UP_RUNS: i32 = 200;
/// One run in this many is timed, since reading the clock takes time too.
const TIMED_RUNS: u32 = 8;

impl Pace {
    /// Returns the pace of a callback that has not run yet. An `async fn` is not expected to block, and
    /// counts as quick at first.
    pub(crate) fn new(is_async: bool) -> Self {
        Self { quick_runs: AtomicI32::new(if is_async { QUICK_RUNS } else { 0 }), runs: AtomicU32::new(0) }
    }

    /// Returns whether the callback is to run on the I/O thread.
    pub(crate) fn is_quick(&self) -> bool {
        self.quick_runs.load(Ordering::Relaxed) >= QUICK_RUNS
    }

    /// Returns when a run on the I/O thread begins, if it is timed.
    pub(crate) fn clock(&self) -> Option<Instant> {
        // Only one thread counts at a time.
        let runs = self.runs.load(Ordering::Relaxed);
        self.runs.store(runs.wrapping_add(1), Ordering::Relaxed);
        runs.is_multiple_of(TIMED_RUNS).then(host::now)
    }

    /// Notes that a run that began at `clock` is over; it has held up the I/O thread unless it is `in_time`.
    pub(crate) fn ran(&self, clock: Option<Instant>, in_time: bool) {
        if !in_time {
            self.quick_runs.store(-HELD_UP_RUNS, Ordering::Relaxed);
        } else if let Some(clock) = clock {
            self.took(host::now().saturating_duration_since(clock));
        }
    }

    /// Notes that a run took this long.
    pub(crate) fn took(&self, time: Duration) {
        let quick_runs = self.quick_runs.load(Ordering::Relaxed);
        // Two simultaneous runs may count as one; precision does not matter here.
        if time > QUICK {
            self.quick_runs.store(quick_runs.min(0), Ordering::Relaxed);
        } else if quick_runs < QUICK_RUNS {
            self.quick_runs.store(quick_runs + 1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_millis(1);

    #[test]
    fn a_function_has_to_show_that_it_is_quick() {
        let pace = Pace::new(false);
        for _ in 0..QUICK_RUNS {
            assert!(!pace.is_quick());
            pace.took(Duration::ZERO);
        }
        assert!(pace.is_quick());
        pace.took(SLOW);
        assert!(!pace.is_quick());
    }

    #[test]
    fn whoever_held_up_the_io_thread_has_to_show_more() {
        let pace = Pace::new(true);
        assert!(pace.is_quick());
        pace.ran(None, false);
        for _ in 0..QUICK_RUNS {
            pace.took(Duration::ZERO);
        }
        assert!(!pace.is_quick());
        for _ in 0..HELD_UP_RUNS {
            pace.took(Duration::ZERO);
        }
        assert!(pace.is_quick());
        // A slow run on top of that does not change the count.
        pace.ran(None, false);
        pace.took(SLOW);
        assert_eq!(pace.quick_runs.load(Ordering::Relaxed), -HELD_UP_RUNS);
    }
}
