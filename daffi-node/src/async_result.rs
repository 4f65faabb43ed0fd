//! The result of a background call.

use std::{
    fmt,
    future::{Future, IntoFuture},
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use daffi_core::{Error, Result, host};
use serde::de::DeserializeOwned;

use crate::{
    blocking::block,
    flight::Flight,
    latch::Place,
    pending::{Answer, decode},
};

/// The result of a background call, already there or still to come.
///
/// It can be read as often as you like, with the same answer each time. Dropping it lets the call go on;
/// [`cancel`](Self::cancel) ends it.
///
/// ```no_run
/// # use daffi_node as daffi;
/// # fn main() -> daffi::Result<()> {
/// use std::time::Duration;
/// use daffi::{BG, Global};
///
/// let g = Global::builder().start()?;
/// let result = g.call.by_name::<i64, _>("func3", (4i64, 6i64)) & BG.timeout(Duration::from_secs(15));
/// // … something else, and then:
/// println!("Calculated sum is {}", result.get()?);
/// # Ok(()) }
/// ```
#[must_use = "every error of the call arrives through its AsyncResult; use NO_RETURN if nobody looks"]
pub struct AsyncResult<R> {
    /// An error if the call could not even be started.
    flight: Result<Flight, Box<Error>>,
    result: PhantomData<fn() -> R>,
}

impl<R> AsyncResult<R> {
    pub(crate) fn new(flight: Result<Flight, Box<Error>>) -> Self {
        Self { flight, result: PhantomData }
    }

    fn flight(&self) -> Result<&Flight> {
        self.flight.as_ref().map_err(|error| (**error).clone())
    }

    /// Returns whether the result, or an error, is there.
    pub fn is_ready(&self) -> bool {
        self.flight.as_ref().map_or(true, |flight| {
            flight.node().wake_others();
            flight.pending.outcome.is_set()
        })
    }

    /// Cancels the call.
    ///
    /// An `async fn` callback is dropped at its next `.await`; an `fn` callback sees `ctx.is_cancelled()`.
    /// The result is then [`Error::Cancelled`], unless it was already there.
    pub fn cancel(&self) {
        if let Ok(flight) = &self.flight {
            flight.cancel();
        }
    }
}

impl<R: DeserializeOwned + 'static> AsyncResult<R> {
    /// Waits for the result, blocking this thread.
    ///
    /// In async code, use [`get_async`](Self::get_async) or `.await`.
    ///
    /// # Errors
    /// Any error of the call; [`Error::BlockingInAsync`] where blocking would stall an async runtime.
    pub fn get(&self) -> Result<R> {
        let flight = self.flight()?;
        if !flight.pending.outcome.is_set() {
            block("AsyncResult::get", "`get_async`", || flight.wait_until(None))?;
        }
        Self::decode(flight, flight.answer())
    }

    /// Waits for the result for at most this long, blocking this thread. The call goes on if it takes longer.
    ///
    /// # Errors
    /// Same as [`get`](Self::get); [`Error::Timeout`] if the result is not there by then.
    pub fn get_timeout(&self, timeout: Duration) -> Result<R> {
        let flight = self.flight()?;
        let Some(deadline) = host::now().checked_add(timeout) else { return self.get() };
        let is_there = flight.pending.outcome.is_set()
            || block("AsyncResult::get_timeout", "`get_async` with your runtime's timeout", || {
                flight.wait_until(Some(deadline))
            })?;
        if !is_there {
            return Err(flight.pending.timed_out(timeout));
        }
        Self::decode(flight, flight.answer())
    }

    /// Waits for the result.
    ///
    /// # Errors
    /// Any error of the call.
    ///
    /// # Cancel safety
    /// The future can be dropped and the method called again: the call goes on.
    pub async fn get_async(&self) -> Result<R> {
        let flight = self.flight()?;
        Self::decode(flight, flight.outcome().await)
    }

    fn decode(flight: &Flight, answer: Result<&Answer>) -> Result<R> {
        decode(flight.pending.callback(), answer?.one())
    }
}

impl<R: DeserializeOwned + 'static> IntoFuture for AsyncResult<R> {
    type Output = Result<R>;
    type IntoFuture = ResultFuture<R>;

    fn into_future(self) -> ResultFuture<R> {
        ResultFuture { result: self, place: None }
    }
}

impl<'a, R: DeserializeOwned + 'static> IntoFuture for &'a AsyncResult<R> {
    type Output = Result<R>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<R>> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.get_async())
    }
}

/// The future of an awaited [`AsyncResult`]. Dropping it lets the call go on.
#[must_use = "futures do nothing unless awaited"]
#[derive(Debug)]
pub struct ResultFuture<R> {
    result: AsyncResult<R>,
    place: Option<Place>,
}

impl<R> Drop for ResultFuture<R> {
    fn drop(&mut self) {
        if let Ok(flight) = &self.result.flight {
            flight.leave(self.place);
        }
    }
}

impl<R: DeserializeOwned + 'static> Future for ResultFuture<R> {
    type Output = Result<R>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<R>> {
        let Self { result, place } = &mut *self;
        let flight = match &result.flight {
            Ok(flight) => flight,
            Err(error) => return Poll::Ready(Err((**error).clone())),
        };
        ready!(flight.poll(context, place));
        Poll::Ready(AsyncResult::decode(flight, flight.answer()))
    }
}

impl<R> fmt::Debug for AsyncResult<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let callback = self.flight.as_ref().map(|flight| flight.pending.callback());
        // Not `is_ready`, which reads answers and wakes tasks.
        let ready = self.flight.as_ref().map_or(true, |flight| flight.pending.outcome.is_set());
        f.debug_struct("AsyncResult").field("callback", &callback).field("ready", &ready).finish()
    }
}
