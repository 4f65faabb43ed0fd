//! Questions to the controller, blocking and not.

use std::{sync::Arc, time::Duration};

use daffi_core::{Error, Result};
use serde::de::DeserializeOwned;

use crate::{
    blocking::block,
    flight::{CancelOnDrop, Flight},
    in_flight::Deadline,
    node::Node,
    outgoing::{Ask, Outgoing},
    pending::{Answer, Payload, Pending, decode},
};

/// A question to the controller.
#[derive(Debug, Clone)]
pub(crate) struct Inquiry {
    node: Arc<Node>,
    ask: Ask,
    name: String,
    /// Its name in errors.
    what: &'static str,
}

impl Inquiry {
    pub(crate) fn new(node: &Arc<Node>, ask: Ask, name: &str, what: &'static str) -> Self {
        Self { node: node.clone(), ask, name: name.to_owned(), what }
    }

    /// Asks, and blocks until the answer is there.
    pub(crate) fn wait(&self, twin: &'static str, timeout: Option<Duration>) -> Result<Payload> {
        let deadline = Deadline::after(timeout);
        loop {
            let (pending, outgoing) = self.parts();
            let flight =
                block(self.what, twin, || Flight::run(self.node.clone(), pending, &outgoing, deadline))?;
            match flight.answer() {
                // Asking again does no harm, and waits for the next link.
                Err(Error::ControllerLost { .. }) => {}
                answer => return Self::answered(answer),
            }
        }
    }

    /// Asks, and waits for the answer. Dropping the future withdraws the question.
    pub(crate) async fn answer(&self, timeout: Option<Duration>) -> Result<Payload> {
        let deadline = Deadline::after(timeout);
        loop {
            let (pending, outgoing) = self.parts();
            let flight =
                CancelOnDrop::new(Flight::start(self.node.clone(), pending, &outgoing, deadline, None));
            match flight.flight.outcome().await {
                Err(Error::ControllerLost { .. }) => {}
                answer => return Self::answered(answer),
            }
        }
    }

    /// Unwraps an answer. Nobody can cancel a question that is still being waited for: it ends early only
    /// with the whole `Global`.
    fn answered(answer: Result<&Answer>) -> Result<Payload> {
        match answer {
            Err(Error::Cancelled { callback, .. }) => Err(Error::Stopped { callback }),
            answer => Ok(answer?.one().clone()),
        }
    }

    /// Decodes an answer.
    pub(crate) fn decode<T: DeserializeOwned + 'static>(&self, payload: &Payload) -> Result<T> {
        decode(self.what, payload)
    }

    fn parts(&self) -> (Arc<Pending>, Outgoing) {
        let what =
            if self.name.is_empty() { self.what.to_owned() } else { format!("{}({})", self.what, self.name) };
        (Arc::new(Pending::new(what.into(), None)), Outgoing::ask(self.ask.clone(), self.name.clone()))
    }
}
