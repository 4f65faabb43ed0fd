//! Other people's code, whose panic is theirs, and must not end what everything else waits for.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Waker,
};

/// Runs what may run other people's code: a waker, the `Drop` of memory that is not ours, a subscriber of the log.
pub fn survive<T>(run: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => Some(result),
        Err(panic) => {
            // What it panicked with is theirs as well, and so is whoever writes the log.
            forget_panic(|| drop(panic));
            forget_panic(|| {
                tracing::error!(
                    "caught a panic outside of a callback, for example in a waker or in the `Drop` of a value; see its message above. daffi goes on"
                );
            });
            None
        }
    }
}

fn forget_panic(run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        mem::forget(panic);
    }
}

/// Wakes a task.
pub fn wake(waker: Waker) {
    survive(|| waker.wake());
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::*;

    /// What somebody panics with.
    struct PanicsAgain;

    impl Drop for PanicsAgain {
        fn drop(&mut self) {
            panic!("as this test wants it");
        }
    }

    #[test]
    fn what_somebody_panics_with_may_panic_as_well() {
        assert_eq!(survive(|| panic_any(PanicsAgain)), None::<()>);
        assert_eq!(survive(|| 7), Some(7));
    }
}
