//! What a running callback knows of its call.

use std::{
    cell::Cell,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Instant,
};

use crate::{caller::Caller, latch::Latch};

/// What a running callback knows of its call. Taken as a parameter of type `&Context`, anywhere in the list of a
/// `#[callback]` function and first in that of a closure; it is no argument for the caller.
///
/// ```no_run
/// # use daffi_node as daffi;
/// use daffi::{Context, FG, Global};
///
/// // A long search, with `.try_callback("search", search)` on the builder or `#[callback]` here.
/// fn search(ctx: &Context, pages: u64) -> daffi::Result<u64> {
///     println!("{} wants {pages} pages", ctx.caller());
///     let mut found = 0;
///     for page in 0..pages {
///         if ctx.is_cancelled() {
///             break; // nobody waits any more
///         }
///         // Another node's callback, which gets no more time than is left here.
///         found += (ctx.call.by_name::<u64, _>("count", (page,)) & FG)?;
///     }
///     Ok(found)
/// }
///
/// # fn main() -> daffi::Result<()> {
/// let g = Global::builder().try_callback("search", search).start()?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Context {
    /// Calls onwards: as `g.call`, but no call gets more time than is left of this one, and each counts as nested in
    /// it.
    pub call: Caller,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    caller: Box<str>,
    deadline: Option<Instant>,
    cancellation: Arc<Cancellation>,
}

/// Tells a running callback that nobody waits for it any more.
#[derive(Debug)]
pub(crate) struct Cancellation {
    cancelled: AtomicBool,
    latch: Latch<()>,
}

impl Cancellation {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { cancelled: AtomicBool::new(false), latch: Latch::new() })
    }

    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.latch.set(());
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

impl Context {
    pub(crate) fn new(
        call: Caller,
        caller: Box<str>,
        deadline: Option<Instant>,
        cancellation: Arc<Cancellation>,
    ) -> Self {
        Self { call, inner: Arc::new(Inner { caller, deadline, cancellation }) }
    }

    /// A context without a node, for calling handlers in tests.
    #[doc(hidden)]
    pub fn detached() -> Self {
        Self::new(Caller::detached(), "".into(), None, Cancellation::new())
    }

    /// The name of the node that called.
    pub fn caller(&self) -> &str {
        &self.inner.caller
    }

    /// When the caller stops waiting; `None` if it waits for ever.
    pub fn deadline(&self) -> Option<Instant> {
        self.inner.deadline
    }

    /// Whether nobody waits for the result any more: the caller cancelled, its time ran out, or it is gone.
    ///
    /// An `fn` callback looks here from time to time. An `async fn` callback is dropped at its next `.await` anyway.
    pub fn is_cancelled(&self) -> bool {
        self.inner.cancellation.is_cancelled()
            || self.deadline().is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Resolves when the call is cancelled.
    ///
    /// For work that an `async fn` callback has handed to others; the callback itself is dropped at its next
    /// `.await`.
    ///
    /// # Cancel safety
    /// May be dropped at any time.
    pub async fn cancelled(&self) {
        self.inner.cancellation.latch.arrival().await;
    }
}

thread_local! {
    /// How deep the callback that this thread runs is nested; 0 for none.
    static HOPS: Cell<u8> = const { Cell::new(0) };
}

/// How deep what runs on this thread now is nested.
pub(crate) fn current_hops() -> u8 {
    HOPS.get()
}

/// Runs `work` as a callback that is nested `hops` deep, so that calls that it makes through any `Caller` count on.
pub(crate) fn at_hops<T>(hops: u8, work: impl FnOnce() -> T) -> T {
    struct Restore(u8);
    impl Drop for Restore {
        fn drop(&mut self) {
            HOPS.set(self.0);
        }
    }
    let _restore = Restore(HOPS.replace(hops));
    work()
}

/// A future that is polled as a callback that is nested so deep.
pub(crate) struct AtHops<F> {
    pub(crate) hops: u8,
    pub(crate) future: F,
}

impl<F: Future + Unpin> Future for AtHops<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<F::Output> {
        at_hops(self.hops, || Pin::new(&mut self.future).poll(context))
    }
}

impl<F> fmt::Debug for AtHops<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtHops").field("hops", &self.hops).finish_non_exhaustive()
    }
}
