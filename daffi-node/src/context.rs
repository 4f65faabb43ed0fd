//! What a running callback knows about its call.

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

use daffi_core::host;

use crate::{caller::Caller, latch::Latch};

/// What a running callback knows about its call.
///
/// Take it as a parameter of type `&Context`: anywhere in the parameter list of a `#[callback]` function, or
/// first in that of a closure. The caller does not pass it.
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
    /// Makes nested calls: like `g.call`, but no call gets more time than this one has left.
    pub call: Caller,
    incoming: Arc<Incoming>,
}

/// An incoming call, as shared by its callback and whatever may cancel it.
#[derive(Debug)]
pub(crate) struct Incoming {
    caller: Arc<str>,
    deadline: Option<Instant>,
    cancelled: AtomicBool,
    latch: Latch<()>,
}

impl Incoming {
    pub(crate) fn new(caller: Arc<str>, deadline: Option<Instant>) -> Arc<Self> {
        Arc::new(Self { caller, deadline, cancelled: AtomicBool::new(false), latch: Latch::new() })
    }

    /// Marks the call as no longer awaited.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.latch.set(());
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }
}

impl Context {
    pub(crate) fn new(call: Caller, incoming: Arc<Incoming>) -> Self {
        Self { call, incoming }
    }

    /// Returns a context without a node, for calling handlers in tests.
    #[doc(hidden)]
    pub fn detached() -> Self {
        Self::new(Caller::detached(), Incoming::new("".into(), None))
    }

    /// Returns the name of the calling node.
    pub fn caller(&self) -> &str {
        &self.incoming.caller
    }

    /// Returns when the caller stops waiting; `None` if it waits forever.
    pub fn deadline(&self) -> Option<Instant> {
        self.incoming.deadline
    }

    /// Returns whether the result is no longer awaited: the caller cancelled, its time ran out, or it is
    /// gone.
    ///
    /// An `fn` callback should check this from time to time. An `async fn` callback is dropped at its next
    /// `.await` anyway.
    pub fn is_cancelled(&self) -> bool {
        self.incoming.is_cancelled() || self.deadline().is_some_and(|deadline| deadline <= host::now())
    }

    /// Resolves when the caller cancels the call or is gone.
    ///
    /// When the deadline passes, the caller cancels the call, a moment after
    /// [`is_cancelled`](Self::is_cancelled) returns `true`.
    ///
    /// Meant for work that an `async fn` callback has handed to others; the callback itself is dropped at its
    /// next `.await`.
    ///
    /// # Cancel safety
    /// The future can be dropped at any time.
    pub async fn cancelled(&self) {
        self.incoming.latch.arrival().await;
    }
}

/// The callback that a thread is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its nesting depth; 0 for none.
    pub(crate) hops: u8,
    /// The address of the executor that runs it, which identifies it; 0 for none.
    pub(crate) executor: usize,
}

thread_local! {
    static PLACE: Cell<Place> = const { Cell::new(Place { hops: 0, executor: 0 }) };
}

/// Returns the nesting depth of what this thread is running.
pub(crate) fn current_hops() -> u8 {
    PLACE.get().hops
}

/// Returns the address of the executor whose callback this thread is running; 0 for none.
pub(crate) fn current_executor() -> usize {
    PLACE.get().executor
}

/// Runs `work` as a callback in this place, so that the calls it makes through any `Caller` count as nested.
pub(crate) fn at_place<T>(place: Place, work: impl FnOnce() -> T) -> T {
    struct Restore(Place);
    impl Drop for Restore {
        fn drop(&mut self) {
            PLACE.set(self.0);
        }
    }
    let _restore = Restore(PLACE.replace(place));
    work()
}

/// A future polled as a callback in this place.
pub(crate) struct AtPlace<F> {
    pub(crate) place: Place,
    pub(crate) future: F,
}

impl<F: Future + Unpin> Future for AtPlace<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<F::Output> {
        at_place(self.place, || Pin::new(&mut self.future).poll(context))
    }
}

impl<F> fmt::Debug for AtPlace<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtPlace").field("place", &self.place).finish_non_exhaustive()
    }
}
