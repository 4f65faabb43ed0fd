//! Containing panics in other people's code, so that they do not end anything that others wait for.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Waker,
};

/// Runs code that may call other people's: a waker, the `Drop` of memory that is not ours, a log subscriber.
pub fn survive<T>(run: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => Some(result),
        Err(panic) => {
            // The panic's value is theirs as well, and so is the log subscriber.
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

pub fn wake(waker: Waker) {
    survive(|| waker.wake());
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::*;

    /// A panic value whose `Drop` panics.
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
