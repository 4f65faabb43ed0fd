//! May this thread block? The one place that decides, for every blocking form of the API.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use daffi_core::{Error, Result, reactor};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::coop,
};

use crate::executor::Pool;

/// What a thread is to daffi.
#[derive(Clone, Default)]
pub(crate) enum Role {
    /// A user thread.
    #[default]
    User,
    /// A thread that runs `fn` callbacks.
    Pool(Arc<Pool>),
    /// The I/O thread, running a callback while another thread may have to take over the I/O.
    InPlace(reactor::Handle),
    /// The I/O thread, running an `inline` callback, which has promised not to wait.
    Io,
}

thread_local! {
    static ROLE: RefCell<Role> = const { RefCell::new(Role::User) };
}

/// Runs `work` with this thread in `role`.
pub(crate) fn with_role<T>(role: Role, work: impl FnOnce() -> T) -> T {
    struct Restore(Role);
    impl Drop for Restore {
        fn drop(&mut self) {
            ROLE.set(std::mem::take(&mut self.0));
        }
    }
    let _restore = Restore(ROLE.replace(role));
    work()
}

/// Runs `wait`, which blocks, if this thread may block; `blocking` and its async `twin` are named in the
/// error.
///
/// If this is the I/O thread or a thread of the pool, another takes its place meanwhile; if it is a worker of
/// a multi-thread runtime, the runtime's other tasks move away.
///
/// # Errors
/// [`Error::BlockingInAsync`] where waiting would stall an async runtime or daffi itself.
pub(crate) fn block<T>(blocking: &'static str, twin: &'static str, wait: impl FnOnce() -> T) -> Result<T> {
    let refused = || Error::BlockingInAsync { blocking, twin };
    // The thread-local may be gone, in a destructor on a thread that is ending.
    let role = ROLE.try_with(|role| role.borrow().clone()).unwrap_or_default();
    // A user's waker, or user memory dropped after it is written, may find itself in a turn of the I/O
    // thread.
    let in_turn = || matches!(role, Role::User) && reactor::Handle::is_any_current();
    if matches!(role, Role::Io) || in_turn() {
        return Err(refused());
    }
    let wait = || match role {
        Role::Pool(pool) => pool.while_blocked(wait),
        Role::InPlace(reactor) => {
            reactor.step_aside();
            wait()
        }
        Role::User | Role::Io => wait(),
    };
    // Checked on our threads too: a callback may run its own runtime.
    let Ok(runtime) = Handle::try_current() else { return Ok(wait()) };
    if runtime.runtime_flavor() == RuntimeFlavor::CurrentThread {
        // Otherwise it is `spawn_blocking`, or a thread that merely entered the runtime.
        return if in_task() { Err(refused()) } else { Ok(wait()) };
    }
    // Inside a `LocalSet`, tokio panics before it runs the closure, and offers no way to know beforehand.
    let mut wait = Some(wait);
    let stepped_aside = AssertUnwindSafe(|| tokio::task::block_in_place(|| wait.take().map(|wait| wait())));
    match catch_unwind(stepped_aside) {
        Ok(result) => result.ok_or_else(refused),
        Err(_) if wait.is_some() => Err(refused()),
        Err(panic) => resume_unwind(panic),
    }
}

/// Returns whether tokio is polling a future on this thread.
///
/// tokio has no function for this. `Handle::try_current` cannot tell: it also succeeds in `spawn_blocking`,
/// where blocking is fine. But only a future that is being polled has a budget of steps; it is used up here,
/// and given back at once.
///
/// A future inside `tokio::task::unconstrained` has no budget and is not noticed.
///
/// A task's budget is below `STEPS` in tokio 1.54 (128); the tests of this file and `tests/start/mixing.rs`
/// would notice if that changed.
fn in_task() -> bool {
    /// More steps than a task ever has.
    const STEPS: usize = 512;
    let mut context = Context::from_waker(Waker::noop());
    let mut used = Vec::with_capacity(STEPS);
    let limited = loop {
        match coop::poll_proceed(&mut context) {
            Poll::Ready(step) if used.len() < STEPS => used.push(step),
            Poll::Ready(_) => break false,
            Poll::Pending => break true,
        }
    };
    // Each restores the budget from before it, so the first must be dropped last.
    while used.pop().is_some() {}
    limited
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;

    use super::*;

    fn allowed() -> bool {
        block("get", "get_async", || ()).is_ok()
    }

    /// Such a task looks like no task at all, and still the others go on.
    #[test]
    fn a_worker_steps_aside_inside_unconstrained() {
        let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(async {
            let (go_on, waits) = std::sync::mpsc::channel();
            let blocked = tokio::spawn(tokio::task::unconstrained(async move {
                block("get", "get_async", || waits.recv_timeout(std::time::Duration::from_secs(20)).is_ok())
            }));
            tokio::spawn(async move { go_on.send(()).unwrap() });
            assert!(blocked.await.unwrap().unwrap());
        });
    }

    #[test]
    fn a_plain_thread_may_block_and_the_io_thread_may_not() {
        assert!(allowed());
        assert!(!with_role(Role::Io, allowed));
        assert!(allowed(), "the role ends with its work");
    }

    #[test]
    fn a_current_thread_runtime_is_never_blocked_but_its_blocking_threads_are() {
        let runtime = Builder::new_current_thread().build().unwrap();
        assert!(!runtime.block_on(async { allowed() }));
        assert!(!runtime.block_on(async { tokio::spawn(async { allowed() }).await.unwrap() }));
        assert!(runtime.block_on(async { tokio::task::spawn_blocking(allowed).await.unwrap() }));
        let _entered = runtime.enter();
        assert!(allowed());
    }

    #[test]
    fn a_multi_thread_runtime_steps_aside() {
        let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        assert!(runtime.block_on(async { allowed() }));
        assert!(runtime.block_on(async { tokio::spawn(async { allowed() }).await.unwrap() }));
        assert!(runtime.block_on(async { tokio::task::spawn_blocking(allowed).await.unwrap() }));
        // A LocalSet cannot step aside.
        let local = tokio::task::LocalSet::new();
        assert!(!runtime.block_on(local.run_until(async { allowed() })));
    }
}
