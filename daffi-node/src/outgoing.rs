//! A call on its way out, kept until there is a link to send it on.

use std::{borrow::Cow, sync::Arc, time::Instant};

use bytes::Bytes;
use daffi_core::{
    frame::{Body, Frame, Question, Request, Schedule, Times, Timing, UNROUTED},
    host,
    limits::CHUNK_BYTES,
    payload::{Codec, Encoded},
};

use crate::{held_bytes::Hold, in_flight::CallId};

/// A call on its way out.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) kind: Kind,
    pub(crate) name: Cow<'static, str>,
    /// The node it is pinned to, or, for a broadcast, the nodes, one per line.
    pub(crate) node: Option<Arc<str>>,
    pub(crate) fingerprint: u64,
    pub(crate) hops: u8,
    pub(crate) deadline: Option<Instant>,
    pub(crate) body: Encoded,
    /// Counts its arguments among those waiting to be sent, if no caller waits for it.
    pub(crate) hold: Option<Hold>,
}

/// What kind of call it is.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// One node answers.
    Call,
    /// One node runs it, and nobody answers.
    OneWay,
    /// Every node that offers the callback runs it, and answers if results are wanted.
    Broadcast { results: bool },
    /// The controller answers.
    Ask(Ask),
}

/// A question to the controller.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    WaitProcess,
    WaitFunction,
    Processes,
    Callbacks,
    Period(u64),
    /// Encoded as in `Times`.
    AtTimes(Bytes),
    CancelTask(u64),
    TaskStatus(u64),
}

impl Outgoing {
    /// Returns a question about `name`.
    pub(crate) fn ask(ask: Ask, name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind: Kind::Ask(ask),
            name: name.into(),
            node: None,
            fingerprint: 0,
            hops: 1,
            deadline: None,
            body: Encoded::default(),
            hold: None,
        }
    }

    /// Returns the id that an answer will carry. A large one-way call has an id, but for its chunks only.
    pub(crate) fn answered_as(&self, id: Option<CallId>) -> Option<CallId> {
        id.filter(|_| !matches!(self.kind, Kind::OneWay))
    }

    /// Returns whether it takes more than one frame.
    pub(crate) fn is_large(&self) -> bool {
        self.body.len() > CHUNK_BYTES
    }

    /// Returns the one node it is pinned to, if any.
    pub(crate) fn pinned_to(&self) -> Option<&str> {
        self.node.as_deref().filter(|_| !matches!(self.kind, Kind::Broadcast { .. }))
    }

    /// Returns whether the controller keeps a large request until its result is there.
    pub(crate) fn has_result(&self) -> bool {
        !matches!(self.kind, Kind::OneWay | Kind::Broadcast { results: false })
    }

    /// Passes the frame to `send`, or the first of several: that with the first `first` bytes of a large
    /// body. Time that has passed is subtracted from the deadline.
    pub(crate) fn with_frame<T>(&self, id: u64, first: usize, send: impl FnOnce(&Frame<'_>) -> T) -> T {
        match &self.kind {
            Kind::Ask(ask) => self.with_question(id, ask, send),
            kind => {
                let chunk;
                let body = if self.is_large() {
                    chunk = self.body.clone().split_to(first);
                    &chunk
                } else {
                    &self.body
                };
                send(&Frame::Request(Request {
                    id,
                    one_way: !self.has_result(),
                    broadcast: matches!(kind, Kind::Broadcast { .. }),
                    more: self.is_large(),
                    codec: Codec::Bincode.to_byte(),
                    hops: self.hops,
                    deadline_us: self.remaining_us(),
                    fingerprint: self.fingerprint,
                    callback: UNROUTED,
                    total: self.body.len() as u32,
                    name: &self.name,
                    node: self.node(),
                    body: Body::encoded(body),
                }))
            }
        }
    }

    fn node(&self) -> &str {
        self.node.as_deref().unwrap_or_default()
    }

    /// Returns the time left until the deadline; at least 1, since 0 means none.
    fn remaining_us(&self) -> u64 {
        self.deadline.map_or(0, |deadline| {
            let left = deadline.saturating_duration_since(host::now()).as_micros();
            u64::try_from(left).unwrap_or(u64::MAX).max(1)
        })
    }

    fn with_question<T>(&self, id: u64, ask: &Ask, send: impl FnOnce(&Frame<'_>) -> T) -> T {
        let name = &*self.name;
        let schedule = |timing| {
            Question::Schedule(Schedule {
                timing,
                codec: Codec::Bincode.to_byte(),
                fingerprint: self.fingerprint,
                name,
                node: self.node(),
                body: Body::encoded(&self.body),
            })
        };
        let question = match ask {
            Ask::WaitProcess => Question::WaitProcess { name },
            Ask::WaitFunction => Question::WaitFunction { name },
            Ask::Processes => Question::Processes,
            Ask::Callbacks => Question::Callbacks,
            Ask::Period(period) => schedule(Timing::Period(*period)),
            Ask::AtTimes(times) => {
                schedule(Timing::At(Times::parse(times).expect("they were encoded from whole times")))
            }
            Ask::CancelTask(task) => Question::CancelTask { task: *task },
            Ask::TaskStatus(task) => Question::TaskStatus { task: *task },
        };
        send(&Frame::Ask { id, codec: Codec::Bincode.to_byte(), question })
    }
}
