//! Other people's code, whose panic is theirs, and must not end what everything else waits for.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    task::Waker,
};

/// Runs what may run other people's code: a waker, the `Drop` of memory that is not ours, a subscriber of the log.
pub fn survive<T>(run: impl FnOnce() -> T) -> Option<T> {
    let survived = catch_unwind(AssertUnwindSafe(run));
    if survived.is_err() {
        tracing::error!(
            "a panic, as of a waker or of an argument that was dropped; see its message above. daffi goes on"
        );
    }
    survived.ok()
}

/// Wakes a task.
pub fn wake(waker: Waker) {
    survive(|| waker.wake());
}
