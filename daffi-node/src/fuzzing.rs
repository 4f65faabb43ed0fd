//! What fuzz targets use of this crate: payloads in chunks, incoming and outgoing. Not part of the API.

use std::{sync::Arc, task::Waker};

use bytes::Bytes;
use daffi_core::{
    Result,
    controller::PortError,
    frame::{Body, Chunk, Frame},
};

use crate::{
    assembly::Assembly,
    payload_pool::PayloadPool,
    pending::{Answer, Payload, Pending, Progress},
    remains::Remains,
    streams::{Receiver, StreamId, Streams},
};

/// The window of all payloads for all receivers, provided these are few.
pub const RECEIVERS_WINDOW_BYTES: usize = crate::streams::RECEIVERS_WINDOW_BYTES;

/// Payloads that are being sent.
#[derive(Debug, Default)]
pub struct Sending(Streams);

impl Sending {
    /// Starts a payload of more than `CHUNK_BYTES`, as if its first frame were sent; returns how many bytes
    /// go with that.
    pub fn start(&self, call: u64, reply: bool, body: &Bytes) -> usize {
        let to = if reply { Receiver::Node("a") } else { Receiver::Offering("a") };
        let first = self.0.begin(StreamId { call, reply }, to, &body.clone().into(), !reply, None);
        self.0.go_on(StreamId { call, reply });
        first
    }

    /// Called when the receiver takes `bytes` more.
    pub fn credit(&self, call: u64, reply: bool, bytes: u32) {
        self.0.credit(StreamId { call, reply }, bytes);
    }

    /// Forgets the rest of it.
    pub fn cancel(&self, call: u64, reply: bool) {
        let _others_go_on = self.0.cancel(StreamId { call, reply }, &mut Remains::default());
    }

    /// Sends what may be sent.
    pub fn pump(&self, has_room: impl Fn() -> bool, send: impl Fn(&Frame<'_>) -> Result<(), PortError>) {
        drop(self.0.pump(has_room, send));
    }

    /// Returns whether any payload is being sent.
    pub fn is_active(&self) -> bool {
        self.0.is_active()
    }
}

/// Memory that payloads use one after the other.
#[derive(Debug, Default, Clone)]
pub struct Pool(Arc<PayloadPool>);

/// Arguments that arrive in chunks, at the callee.
#[derive(Debug)]
pub struct Arguments {
    assembly: Assembly,
    pool: Pool,
}

impl Arguments {
    /// Returns `total` bytes of arguments, of which the `first` have arrived.
    pub fn new(pool: &Pool, total: u32, first: &[u8]) -> Self {
        Self { assembly: Assembly::new(0, total, &Body::borrowed(first), &pool.0), pool: pool.clone() }
    }

    /// Adds what arrived, read straight to its place or not; returns the arguments when they are whole.
    ///
    /// # Errors
    /// If more or less arrived than was announced.
    pub fn add(&mut self, chunk: &Chunk<'_>, placed: bool) -> Result<Option<Bytes>, &'static str> {
        let whole = add(&mut self.assembly, chunk, placed, &self.pool.0)?;
        Ok(whole.map(|payload| payload.body.into_bytes()))
    }

    /// Returns how many more bytes may be sent, if it is time to say so.
    pub fn take_credit(&mut self) -> Option<u32> {
        self.assembly.take_credit()
    }
}

fn add(
    assembly: &mut Assembly,
    chunk: &Chunk<'_>,
    placed: bool,
    pool: &PayloadPool,
) -> Result<Option<Payload>, &'static str> {
    let bytes = chunk.body.piece().unwrap_or_default();
    match placed.then(|| assembly.detach(bytes.len(), chunk.more, pool)).flatten() {
        Some((mut buffer, place)) => {
            buffer[place].copy_from_slice(bytes);
            assembly.attach(buffer, pool)
        }
        None => assembly.add(chunk, pool),
    }
}

/// What comes back for a call, at its caller.
#[derive(Debug)]
pub struct Results {
    pending: Pending,
    pool: Pool,
    limit: u64,
}

impl Results {
    /// Returns the results of a call to one node, or to several; each of at most `limit` bytes.
    pub fn new(pool: &Pool, broadcast: bool, limit: u64) -> Self {
        let callback = "f".into();
        let pending = match broadcast {
            true => Pending::broadcast(callback, None, true),
            false => Pending::new(callback, None),
        };
        Self { pending, pool: pool.clone(), limit }
    }

    /// Takes a frame, read straight to its place or not; returns the credit to send for it.
    pub fn take(&self, frame: Frame<'_>, placed: bool) -> Option<u32> {
        let pool = &self.pool.0;
        let progress = match frame {
            Frame::Reply(reply) => self.pending.reply(&reply, self.limit, pool, Waker::wake),
            Frame::Chunk(chunk) => {
                let add = |assembly: &mut Assembly| add(assembly, &chunk, placed, pool);
                self.pending.chunk(chunk.part, self.limit, add)
            }
            Frame::Failure(failure) => self.pending.failure(failure),
            Frame::Targets(targets) => self.pending.targets(&targets).ok()?,
            _ => return None,
        };
        match progress {
            Progress::Credit(bytes) => Some(bytes),
            Progress::Done | Progress::Open | Progress::Refused => None,
        }
    }

    /// Returns the outcome, if there is one: the one result, or that of each node.
    pub fn outcome(&self) -> Option<Result<Vec<Result<Bytes>>>> {
        let answer = self.pending.outcome.get()?.clone();
        Some(answer.map(|answer| match answer {
            Answer::One(payload) => vec![Ok(payload.body.into_bytes())],
            Answer::Many(parts) => {
                parts.into_values().map(|part| part.map(|part| part.body.into_bytes())).collect()
            }
        }))
    }
}
