//! What test nodes offer, call and serve.

use bytes::Bytes;
use daffi_core::{
    frame::{Body, Chunk, Frame, Request, UNROUTED},
    limits::CHUNK_BYTES,
};

/// A callback that a node offers.
#[derive(Debug, Clone)]
pub struct Offered {
    /// Its name.
    pub name: String,
    /// Its signature as text.
    pub signature: String,
    /// The fingerprint of the signature.
    pub fingerprint: u64,
    /// Whether it can be called.
    pub ready: bool,
    /// The node's number for it; by default its position in the list.
    pub index: Option<u32>,
}

/// Returns a callback with this name that everyone can call.
pub fn offer(name: &str) -> Offered {
    Offered { name: name.to_owned(), signature: "()".to_owned(), fingerprint: 0, ready: true, index: None }
}

/// A call to make.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    name: &'a str,
    node: &'a str,
    body: &'a [u8],
    one_way: bool,
    broadcast: bool,
    codec: u8,
    hops: u8,
    deadline_us: u64,
    fingerprint: u64,
}

impl<'a> Call<'a> {
    /// Creates a call to this callback, on any node, without arguments.
    pub fn new(name: &'a str) -> Self {
        Self {
            name,
            node: "",
            body: b"",
            one_way: false,
            broadcast: false,
            codec: 0,
            hops: 1,
            deadline_us: 0,
            fingerprint: 0,
        }
    }

    /// Pins it to this node or, for a broadcast, to these nodes, one per line.
    #[must_use]
    pub fn on(mut self, node: &'a str) -> Self {
        self.node = node;
        self
    }

    /// Sets the arguments.
    #[must_use]
    pub fn body(mut self, body: &'a [u8]) -> Self {
        self.body = body;
        self
    }

    /// Makes it one-way: no answer is wanted.
    #[must_use]
    pub fn one_way(mut self) -> Self {
        self.one_way = true;
        self
    }

    /// Sends it to every node that offers the callback.
    #[must_use]
    pub fn broadcast(mut self) -> Self {
        self.broadcast = true;
        self
    }

    /// Sets the codec byte.
    #[must_use]
    pub fn codec(mut self, codec: u8) -> Self {
        self.codec = codec;
        self
    }

    /// Sets how deeply it is nested.
    #[must_use]
    pub fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    /// Sets how many microseconds are left.
    #[must_use]
    pub fn deadline_us(mut self, deadline_us: u64) -> Self {
        self.deadline_us = deadline_us;
        self
    }

    /// Sets the fingerprint.
    #[must_use]
    pub fn fingerprint(mut self, fingerprint: u64) -> Self {
        self.fingerprint = fingerprint;
        self
    }

    /// Sends it as call `id`: one frame, plus chunks if the arguments do not fit. It does not wait for
    /// credit; callers must send arguments beyond the window by hand.
    pub(crate) fn send(&self, id: u64, send: impl FnMut(&Frame<'_>)) {
        self.send_announcing(id, self.body.len() as u32, send);
    }

    /// Like [`send`](Self::send), but announces a different total than that of the arguments.
    pub(crate) fn send_announcing(&self, id: u64, total: u32, mut send: impl FnMut(&Frame<'_>)) {
        let Self { name, node, body, one_way, broadcast, codec, hops, deadline_us, fingerprint } = *self;
        let (first, rest) = body.split_at(body.len().min(CHUNK_BYTES));
        send(&Frame::Request(Request {
            id,
            one_way,
            broadcast,
            more: first.len() < total as usize,
            codec,
            hops,
            deadline_us,
            fingerprint,
            callback: UNROUTED,
            total,
            name,
            node,
            body: Body::borrowed(first),
        }));
        send_chunks(id, false, rest, send);
    }
}

/// Sends the rest of a payload in chunks.
pub(crate) fn send_chunks(id: u64, reply: bool, bytes: &[u8], mut send: impl FnMut(&Frame<'_>)) {
    let mut chunks = bytes.chunks(CHUNK_BYTES).peekable();
    while let Some(chunk) = chunks.next() {
        let more = chunks.peek().is_some();
        send(&Frame::Chunk(Chunk { id, reply, more, part: 0, body: Body::borrowed(chunk) }));
    }
}

/// A request as a callee received it.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each is described at the field of `Request` of the same name")]
pub struct Served {
    pub id: u64,
    pub one_way: bool,
    pub more: bool,
    pub codec: u8,
    pub hops: u8,
    pub deadline_us: u64,
    pub fingerprint: u64,
    pub callback: u32,
    pub total: u32,
    pub name: String,
    /// The caller's name.
    pub caller: String,
    pub body: Bytes,
}

impl Served {
    pub(crate) fn of(request: &Request<'_>) -> Self {
        Self {
            id: request.id,
            one_way: request.one_way,
            more: request.more,
            codec: request.codec,
            hops: request.hops,
            deadline_us: request.deadline_us,
            fingerprint: request.fingerprint,
            callback: request.callback,
            total: request.total,
            name: request.name.to_owned(),
            caller: request.node.to_owned(),
            body: request.body.to_bytes(),
        }
    }
}
