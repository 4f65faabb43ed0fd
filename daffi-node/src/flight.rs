//! A started call, as held by whoever waits for it.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use daffi_core::{Error, Result};

use crate::{
    in_flight::{CallId, Deadline},
    kept::Kept,
    latch::Place,
    node::Node,
    outgoing::Outgoing,
    pending::{Answer, Payload, Pending},
};

/// A started call.
#[derive(Debug, Clone)]
pub(crate) struct Flight {
    node: Arc<Node>,
    id: CallId,
    pub(crate) pending: Arc<Pending>,
}

/// Resolves with the outcome of a call.
#[must_use = "futures do nothing unless awaited"]
pub(crate) struct Outcome<'a> {
    flight: &'a Flight,
    place: Option<Place>,
}

/// A started call that is cancelled if this is dropped before the outcome is there.
#[derive(Debug)]
pub(crate) struct CancelOnDrop {
    pub(crate) flight: Flight,
    /// Its outcome has been returned from a poll.
    over: bool,
    /// When it is polled again, it also writes what others have left.
    flushes: bool,
}

impl Flight {
    /// Starts a call; the I/O thread watches its deadline.
    pub(crate) fn start(
        node: Arc<Node>,
        pending: Arc<Pending>,
        call: &Outgoing,
        deadline: Option<Deadline>,
        eta: Option<Duration>,
    ) -> Self {
        let id = node.start(&pending, call, deadline, eta);
        Self { node, id, pending }
    }

    /// Starts a call and blocks until its outcome. The deadline is watched right here, which saves the I/O
    /// thread the work.
    pub(crate) fn run(
        node: Arc<Node>,
        pending: Arc<Pending>,
        call: &Outgoing,
        deadline: Option<Deadline>,
    ) -> Self {
        let flight = Self::start(node, pending, call, None, None);
        if let Some(Deadline { at, after }) = deadline
            && !flight.wait_until(Some(at))
        {
            flight.node.time_out(flight.id, after);
        }
        flight.wait_until(None);
        flight
    }

    /// Blocks until the outcome, or until `deadline`; returns whether the outcome is there.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>) -> bool {
        let latch = &self.pending.outcome;
        let wait = || latch.wait(deadline).is_some();
        let is_done = || latch.is_set_in_order();
        latch.is_set() || self.node.block(|| self.node.reactor().wait(deadline, is_done, wait))
    }

    /// Returns the outcome of the call, once it is there.
    pub(crate) fn answer(&self) -> Result<&Answer> {
        match self.pending.outcome.get() {
            Some(outcome) => outcome.as_ref().map_err(Error::clone),
            None => {
                debug_assert!(false, "whoever asks has seen that it is there");
                Err(Error::Stopped { callback: self.pending.callback().to_owned() })
            }
        }
    }

    /// Polls for the outcome on behalf of a task. A waiting task, unlike a waiting thread, needs the I/O
    /// thread.
    ///
    /// A task that stops waiting calls [`leave`](Self::leave).
    pub(crate) fn poll(&self, context: &Context<'_>, place: &mut Option<Place>) -> Poll<()> {
        self.node.wake_others();
        let polled = self.pending.outcome.poll(context, place).map(drop);
        if polled.is_pending() {
            self.node.reactor().welcome_guests(false);
        }
        polled
    }

    /// Called when a task has stopped waiting, or gives up.
    pub(crate) fn leave(&self, place: Option<Place>) {
        self.node.wake_others();
        self.pending.outcome.leave(place);
    }

    /// Waits for the outcome.
    pub(crate) fn outcome(&self) -> Outcome<'_> {
        Outcome { flight: self, place: None }
    }

    /// Cancels the call.
    pub(crate) fn cancel(&self) {
        self.node.cancel(self.id);
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }
}

impl<'a> Future for Outcome<'a> {
    type Output = Result<&'a Answer>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<&'a Answer>> {
        let flight = self.flight;
        flight.poll(context, &mut self.place).map(|()| flight.answer())
    }
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        self.flight.leave(self.place);
    }
}

impl CancelOnDrop {
    pub(crate) fn new(flight: Flight) -> Self {
        Self { flight, over: false, flushes: false }
    }

    /// See [`Flight::poll`].
    pub(crate) fn poll(&mut self, context: &Context<'_>, place: &mut Option<Place>) -> Poll<()> {
        self.flush();
        let polled = self.flight.poll(context, place);
        self.over = polled.is_ready();
        if !self.over && self.flight.node.link.flusher.find() {
            // Queues behind the other tasks that are ready.
            self.flushes = true;
            context.waker().wake_by_ref();
        }
        polled
    }

    fn flush(&mut self) {
        if std::mem::take(&mut self.flushes) {
            self.flight.node.link.write();
        }
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.flush();
        self.flight.node.wake_others();
        if !self.over && !self.flight.pending.outcome.is_set() {
            self.flight.cancel();
        }
    }
}

impl Answer {
    /// Returns the answer of the one that was asked.
    pub(crate) fn one(&self) -> &Payload {
        static NOTHING: Payload = Payload { codec: 0, body: Kept::EMPTY };
        match self {
            Self::One(payload) => payload,
            // A call to one node never gets a broadcast's answer.
            Self::Many(_) => &NOTHING,
        }
    }
}
