//! Frames: everything that crosses a connection, as typed values and as bytes.
//!
//! ```text
//!  0        4    5     6     7    8               16
//! ┌────────┬────┬─────┬─────┬────┬───────────────┬───────────────┐
//! │ length │kind│flags│codec│hops│ id            │ length bytes …│
//! └────────┴────┴─────┴─────┴────┴───────────────┴───────────────┘
//! ```
//!
//! All numbers are little-endian. `docs/PROTOCOL.md` has the layout of each kind byte by byte, and the golden bytes in
//! the tests below hold the two together.
//!
//! A [`Frame`] borrows from the buffer that it was read into, so routing one copies nothing but what goes out.

use std::{fmt, str, time::Duration};

use bytes::Bytes;

use crate::{
    fault::{Fault, FaultKind},
    limits::{CHUNK_BYTES, FRAME_BYTES_MAX, HEAD_BYTES},
};

/// The first four bytes of a `HELLO`'s content.
pub const MAGIC: [u8; 4] = *b"DAFI";

/// The protocol version that this code speaks.
pub const VERSION: u16 = 1;

/// The callback index of a request that has not been routed yet.
pub const UNROUTED: u32 = u32::MAX;

/// What a peer sent that no peer of ours would send. The connection it came from is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The length exceeds what is allowed now.
    #[error("a frame announces {length} bytes, the limit is {limit}{}", foreign(*.first))]
    Length {
        /// The announced length.
        length: u32,
        /// The limit that it meets.
        limit: usize,
        /// The first bytes, which often tell what spoke.
        first: [u8; 4],
    },
    /// A kind that this version does not know.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The content does not have the layout of its kind.
    #[error("malformed {kind} frame: {problem}")]
    Malformed {
        /// The frame's kind.
        kind: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// A frame that has no meaning at this point.
    #[error("a {kind} frame {problem}")]
    Unexpected {
        /// The frame's kind.
        kind: &'static str,
        /// Why it has no meaning here.
        problem: &'static str,
    },
}

fn foreign(first: [u8; 4]) -> &'static str {
    match &first {
        b"GET " | b"POST" | b"HEAD" | b"PUT " | b"OPTI" | b"CONN" | b"PRI " => " (this looks like HTTP)",
        [0x16, 0x03, ..] => " (this looks like TLS)",
        b"SSH-" => " (this looks like SSH)",
        _ => "",
    }
}

/// The opaque part of a frame, with the buffer that it lies in.
#[derive(Clone, Copy, Default)]
pub struct Body<'a> {
    bytes: &'a [u8],
    owner: Option<&'a Bytes>,
}

impl<'a> Body<'a> {
    /// A body that is all of `bytes`.
    pub fn shared(bytes: &'a Bytes) -> Self {
        Self { bytes, owner: Some(bytes) }
    }

    /// A body that is copied when it has to outlive its borrow.
    pub fn borrowed(bytes: &'a [u8]) -> Self {
        Self { bytes, owner: None }
    }

    fn within(bytes: &'a [u8], owner: &'a Bytes) -> Self {
        Self { bytes, owner: Some(owner) }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &'a [u8] {
        self.bytes
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes for keeps: a slice of the buffer they lie in where there is one.
    pub fn to_bytes(&self) -> Bytes {
        match self.owner {
            Some(owner) => owner.slice_ref(self.bytes),
            None => Bytes::copy_from_slice(self.bytes),
        }
    }
}

impl fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

impl PartialEq for Body<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

/// A frame, borrowed from the buffer that it lies in.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame<'a> {
    /// Node to controller, first of all: who it is and what it speaks.
    Hello(Hello<'a>),
    /// Controller to node: it is in.
    Welcome(Welcome),
    /// Controller to node, before closing: why it is not in.
    Refuse(Refuse<'a>),
    /// Node to controller: callbacks that it offers.
    Register(Register<'a>),
    /// Controller to node: the registration up to this one is visible to others.
    Registered {
        /// The id of the `Register`.
        id: u64,
    },
    /// A call on its way to a callback.
    Request(Request<'a>),
    /// A result on its way to the caller.
    Reply(Reply<'a>),
    /// A failure on its way to the caller.
    Failure(Failure),
    /// Controller to caller: whom a broadcast goes to.
    Targets(Targets<'a>),
    /// The caller does not wait any more.
    Cancel {
        /// The id of the request.
        id: u64,
    },
    /// More of a payload that began in a request or reply.
    Chunk(Chunk<'a>),
    /// The receiver of a payload in chunks takes more of it.
    Credit {
        /// The id of the call.
        id: u64,
        /// Whether the payload is a reply's rather than a request's.
        reply: bool,
        /// For a broadcast's reply, whose it is; 0 else.
        part: u32,
        /// How many bytes more.
        bytes: u32,
    },
    /// Node to controller: a question that the controller itself answers with a reply or failure.
    Ask {
        /// The asker's id of this question.
        id: u64,
        /// The codec that the answer is to have.
        codec: u8,
        /// The question.
        question: Question<'a>,
    },
    /// Are you alive?
    Ping {
        /// Comes back in the `Pong`.
        id: u64,
    },
    /// I am.
    Pong {
        /// The id of the `Ping`.
        id: u64,
    },
    /// The sender takes no new requests and will close once what runs is done.
    Goodbye {
        /// Why, for the log.
        reason: &'a str,
    },
}

/// Who a node is and what it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello<'a> {
    /// The oldest protocol version that the node speaks.
    pub version_min: u16,
    /// The newest.
    pub version_max: u16,
    /// Optional abilities, one bit each; none is defined yet.
    pub capabilities: u32,
    /// Tells this process from an earlier one of the same name.
    pub instance: u64,
    /// The node's name.
    pub name: &'a str,
    /// A place for credentials; empty in this version.
    pub credentials: &'a [u8],
}

/// The controller's answer to a node that is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both speak from here on.
    pub version: u16,
    /// Abilities that both have.
    pub capabilities: u32,
    /// The number of the node in this controller.
    pub node: u32,
    /// How often the controller asks for a sign of life, in milliseconds.
    pub heartbeat_ms: u32,
    /// The largest payload that the controller passes on.
    pub payload_bytes_max: u64,
}

/// Why a node is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refuse<'a> {
    /// The reason as a number.
    pub code: RefuseCode,
    /// The reason as a sentence.
    pub reason: &'a str,
}

/// Why a node is not let in, as a number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefuseCode {
    /// No protocol version in common.
    Version,
    /// A living node has the name.
    NameTaken,
    /// The name is not one.
    InvalidName,
    /// The credentials do not suffice.
    Unauthorized,
    /// The controller has as many connections as it may, or is stopping. Worth another try.
    Unavailable,
    /// The node broke the protocol.
    Protocol,
    /// A reason that this version does not know.
    Other(u8),
}

impl RefuseCode {
    fn to_byte(self) -> u8 {
        match self {
            Self::Version => 1,
            Self::NameTaken => 2,
            Self::InvalidName => 3,
            Self::Unauthorized => 4,
            Self::Unavailable => 5,
            Self::Protocol => 6,
            Self::Other(byte) => byte,
        }
    }

    fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Version,
            2 => Self::NameTaken,
            3 => Self::InvalidName,
            4 => Self::Unauthorized,
            5 => Self::Unavailable,
            6 => Self::Protocol,
            other => Self::Other(other),
        }
    }
}

/// Callbacks that a node offers. Several in a row, all but the last with `more`, count as one.
#[derive(Debug, Clone, PartialEq)]
pub struct Register<'a> {
    /// Comes back in `Registered`.
    pub id: u64,
    /// Whether another `Register` of the same registration follows.
    pub more: bool,
    /// The callbacks, encoded.
    pub offers: Offers<'a>,
}

/// A list of [`Offer`]s in its encoded form, checked once when it is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offers<'a> {
    bytes: &'a [u8],
}

/// One callback that a node offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer<'a> {
    /// The node's own number for it, which comes back in requests.
    pub index: u32,
    /// The fingerprint of the signature; 0 matches every caller.
    pub fingerprint: u64,
    /// Whether it can be called now. One that is not ready is a method whose singleton has no instance yet.
    pub ready: bool,
    /// The name that callers use.
    pub name: &'a str,
    /// The signature as text.
    pub signature: &'a str,
}

impl<'a> Offers<'a> {
    /// The offers one by one.
    pub fn iter(&self) -> impl Iterator<Item = Offer<'a>> + use<'a> {
        let mut input = Input { rest: self.bytes, kind: "REGISTER" };
        std::iter::from_fn(move || Self::next(&mut input).ok().flatten())
    }

    /// Appends an offer to `bytes`, the encoded form of a list.
    ///
    /// The caller keeps names within 255 and signatures within 65,535 bytes.
    pub fn push(bytes: &mut Vec<u8>, offer: &Offer<'_>) {
        let Offer { index, fingerprint, ready, name, signature } = offer;
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes.extend_from_slice(&fingerprint.to_le_bytes());
        bytes.push(u8::from(*ready));
        put_name(bytes, name);
        put_text(bytes, signature);
    }

    /// A list in its encoded form, as [`push`](Self::push) makes it.
    ///
    /// # Errors
    /// The bytes are not whole offers.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ProtocolError> {
        let mut input = Input { rest: bytes, kind: "REGISTER" };
        while Self::next(&mut input)?.is_some() {}
        Ok(Self { bytes })
    }

    fn next(input: &mut Input<'a>) -> Result<Option<Offer<'a>>, ProtocolError> {
        if input.rest.is_empty() {
            return Ok(None);
        }
        Ok(Some(Offer {
            index: input.u32()?,
            fingerprint: input.u64()?,
            ready: input.u8()? != 0,
            name: input.name()?,
            signature: input.text()?,
        }))
    }
}

/// A call on its way to a callback.
#[derive(Debug, Clone, PartialEq)]
pub struct Request<'a> {
    /// From the caller, its own id of the call; to the callee, the controller's.
    pub id: u64,
    /// No answer is wanted.
    pub one_way: bool,
    /// It goes to every node that offers the name.
    pub broadcast: bool,
    /// The payload goes on in chunks.
    pub more: bool,
    /// The payload's codec.
    pub codec: u8,
    /// How deep it is nested: 1 for a call that no callback made.
    pub hops: u8,
    /// What is left of its deadline in microseconds; 0 for none.
    pub deadline_us: u64,
    /// The fingerprint of the caller's signature; 0 matches every callee.
    pub fingerprint: u64,
    /// To the callee, its own number of the callback; [`UNROUTED`] before that.
    pub callback: u32,
    /// The size of the whole payload.
    pub total: u32,
    /// The callback's name.
    pub name: &'a str,
    /// From the caller, the node it is pinned to or, for a broadcast, nodes one per line; empty for any.
    /// To the callee, the caller's name.
    pub node: &'a str,
    /// The payload, or its first part.
    pub body: Body<'a>,
}

impl Request<'_> {
    /// What is left of the deadline.
    pub fn deadline(&self) -> Option<Duration> {
        (self.deadline_us != 0).then(|| Duration::from_micros(self.deadline_us))
    }
}

/// A result on its way to the caller.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply<'a> {
    /// The id of the request.
    pub id: u64,
    /// The payload goes on in chunks.
    pub more: bool,
    /// For a broadcast, which of its targets answered; 0 else.
    pub part: u32,
    /// The payload's codec.
    pub codec: u8,
    /// The size of the whole payload.
    pub total: u32,
    /// The payload, or its first part.
    pub body: Body<'a>,
}

/// A failure on its way to the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The id of the request.
    pub id: u64,
    /// For a broadcast, which of its targets failed; 0 else.
    pub part: u32,
    /// What happened.
    pub fault: Box<Fault>,
}

/// Whom a broadcast goes to. The position of a name is the `part` of its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Targets<'a> {
    /// The id of the request.
    pub id: u64,
    /// The node names, one per line.
    pub nodes: &'a str,
}

/// More of a payload.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk<'a> {
    /// The id of the call.
    pub id: u64,
    /// Whether the payload is a reply's rather than a request's.
    pub reply: bool,
    /// Whether yet more follows.
    pub more: bool,
    /// For a broadcast's reply, whose it is; 0 else.
    pub part: u32,
    /// The bytes.
    pub body: Body<'a>,
}

/// What a node asks the controller itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Question<'a> {
    /// Answer once a process of this name is connected.
    WaitProcess {
        /// The name.
        name: &'a str,
    },
    /// Answer once another node offers this callback, ready to be called.
    WaitFunction {
        /// The name.
        name: &'a str,
    },
    /// Which processes are connected? Answered as [`answer::Processes`](crate::answer).
    Processes,
    /// Which callbacks are offered? Answered as [`answer::Callbacks`](crate::answer).
    Callbacks,
    /// Call a callback at these times. Answered with the task's id.
    Schedule(Schedule<'a>),
    /// Stop a scheduled task.
    CancelTask {
        /// The task's id.
        task: u64,
    },
    /// How is a scheduled task doing? Answered as [`TaskStatus`](crate::answer::TaskStatus).
    TaskStatus {
        /// The task's id.
        task: u64,
    },
}

/// A scheduled call: the request, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule<'a> {
    /// When to call.
    pub timing: Timing<'a>,
    /// The payload's codec.
    pub codec: u8,
    /// The fingerprint of the caller's signature.
    pub fingerprint: u64,
    /// The callback's name.
    pub name: &'a str,
    /// The node that it is pinned to; empty for any.
    pub node: &'a str,
    /// The payload.
    pub body: Body<'a>,
}

/// When a scheduled call happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing<'a> {
    /// Every so many microseconds, the first time after one period.
    Period(u64),
    /// At these times.
    At(Times<'a>),
}

/// Points in time in their encoded form: microseconds since 1970 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times<'a> {
    bytes: &'a [u8],
}

impl<'a> Times<'a> {
    /// The times one by one.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.bytes.chunks_exact(8).map(|time| u64::from_le_bytes(time.try_into().expect("chunks of 8")))
    }

    /// A list in its encoded form: eight bytes a time.
    ///
    /// # Errors
    /// The length is not a multiple of eight.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ProtocolError> {
        if bytes.len().is_multiple_of(8) {
            Ok(Self { bytes })
        } else {
            Err(ProtocolError::Malformed { kind: "ASK", problem: "the times are not whole" })
        }
    }
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const WELCOME: u8 = 2;
    pub(super) const REFUSE: u8 = 3;
    pub(super) const REGISTER: u8 = 4;
    pub(super) const REGISTERED: u8 = 5;
    pub(super) const REQUEST: u8 = 6;
    pub(super) const REPLY: u8 = 7;
    pub(super) const FAILURE: u8 = 8;
    pub(super) const TARGETS: u8 = 9;
    pub(super) const CANCEL: u8 = 10;
    pub(super) const CHUNK: u8 = 11;
    pub(super) const CREDIT: u8 = 12;
    pub(super) const ASK: u8 = 13;
    pub(super) const PING: u8 = 14;
    pub(super) const PONG: u8 = 15;
    pub(super) const GOODBYE: u8 = 16;
}

mod flag {
    /// The payload, or a registration, goes on in a further frame.
    pub(super) const MORE: u8 = 1;
    /// A request wants no answer.
    pub(super) const ONE_WAY: u8 = 2;
    /// A request goes to every node that offers the name.
    pub(super) const BROADCAST: u8 = 4;
    /// A chunk or credit belongs to a reply.
    pub(super) const REPLY: u8 = 8;
}

mod ask {
    pub(super) const WAIT_PROCESS: u8 = 1;
    pub(super) const WAIT_FUNCTION: u8 = 2;
    pub(super) const PROCESSES: u8 = 3;
    pub(super) const CALLBACKS: u8 = 4;
    pub(super) const PERIOD: u8 = 5;
    pub(super) const AT_TIMES: u8 = 6;
    pub(super) const CANCEL_TASK: u8 = 7;
    pub(super) const TASK_STATUS: u8 = 8;
}

impl<'a> Frame<'a> {
    /// The frame that starts at `at` in `batch`, and where the next one starts.
    ///
    /// `None` means that more bytes are needed. `limit` is the most bytes that may follow a head now.
    ///
    /// # Errors
    /// The bytes are no frame; the connection they came from is of no more use.
    pub fn decode(batch: &'a Bytes, at: usize, limit: usize) -> Result<Option<(Self, usize)>, ProtocolError> {
        let Some((head, content)) = batch.get(at..).and_then(|rest| rest.split_first_chunk::<HEAD_BYTES>())
        else {
            return Ok(None);
        };
        let head = Head::parse(head);
        let length = head.length as usize;
        if length > limit {
            let first = head.length.to_le_bytes();
            return Err(ProtocolError::Length { length: head.length, limit, first });
        }
        let Some(content) = content.get(..length) else { return Ok(None) };
        let frame = Self::parse(&head, content, batch)?;
        Ok(Some((frame, at + HEAD_BYTES + length)))
    }

    fn parse(head: &Head, content: &'a [u8], batch: &'a Bytes) -> Result<Self, ProtocolError> {
        let mut input = Input { rest: content, kind: name_of(head.kind) };
        let id = head.id;
        let frame = match head.kind {
            kind::REQUEST => {
                let deadline_us = input.u64()?;
                let fingerprint = input.u64()?;
                let callback = input.u32()?;
                let total = input.u32()?;
                let name_len = input.u8()?;
                let _reserved = input.u8()?;
                let node_len = input.u16()?;
                let name = input.str(name_len.into())?;
                let node = input.str(node_len.into())?;
                let body = input.body(batch)?;
                let more = head.has(flag::MORE);
                check_total(input.kind, total, body.len(), more)?;
                Self::Request(Request {
                    id,
                    one_way: head.has(flag::ONE_WAY),
                    broadcast: head.has(flag::BROADCAST),
                    more,
                    codec: head.codec,
                    hops: head.hops,
                    deadline_us,
                    fingerprint,
                    callback,
                    total,
                    name,
                    node,
                    body,
                })
            }
            kind::REPLY => {
                let part = input.u32()?;
                let total = input.u32()?;
                let body = input.body(batch)?;
                let more = head.has(flag::MORE);
                check_total(input.kind, total, body.len(), more)?;
                Self::Reply(Reply { id, more, part, codec: head.codec, total, body })
            }
            kind::FAILURE => {
                let part = input.u32()?;
                Self::Failure(Failure { id, part, fault: Box::new(input.fault()?) })
            }
            kind::CHUNK => {
                let part = input.u32()?;
                let body = input.body(batch)?;
                if body.is_empty() {
                    return Err(input.malformed("it is empty"));
                }
                Self::Chunk(Chunk {
                    id,
                    reply: head.has(flag::REPLY),
                    more: head.has(flag::MORE),
                    part,
                    body,
                })
            }
            kind::CREDIT => {
                Self::Credit { id, reply: head.has(flag::REPLY), part: input.u32()?, bytes: input.u32()? }
            }
            kind::CANCEL => Self::Cancel { id },
            kind::PING => Self::Ping { id },
            kind::PONG => Self::Pong { id },
            kind::TARGETS => Self::Targets(Targets { id, nodes: input.rest_str()? }),
            kind::REGISTER => Self::Register(Register {
                id,
                more: head.has(flag::MORE),
                offers: Offers::parse(input.all())?,
            }),
            kind::REGISTERED => Self::Registered { id },
            kind::ASK => Self::Ask { id, codec: head.codec, question: input.question(head, batch)? },
            kind::GOODBYE => Self::Goodbye { reason: input.rest_str()? },
            kind::HELLO => {
                if input.take(4)? != MAGIC {
                    return Err(input.malformed("it does not begin with DAFI"));
                }
                let hello = Hello {
                    version_min: input.u16()?,
                    version_max: input.u16()?,
                    capabilities: input.u32()?,
                    instance: input.u64()?,
                    name: input.name()?,
                    credentials: input.blob()?,
                };
                // What a newer version appends is none of our business, so that it can say hello at all.
                input.all();
                Self::Hello(hello)
            }
            kind::WELCOME => {
                let welcome = Welcome {
                    version: input.u16()?,
                    capabilities: input.u32()?,
                    node: input.u32()?,
                    heartbeat_ms: input.u32()?,
                    payload_bytes_max: input.u64()?,
                };
                input.all();
                Self::Welcome(welcome)
            }
            kind::REFUSE => {
                let code = RefuseCode::from_byte(input.u8()?);
                Self::Refuse(Refuse { code, reason: input.rest_str()? })
            }
            unknown => return Err(ProtocolError::Kind(unknown)),
        };
        if input.rest.is_empty() { Ok(frame) } else { Err(input.malformed("bytes are left over")) }
    }

    /// Appends everything of the frame but its body to `out`, and returns the body.
    ///
    /// The frame is whole once the body follows. The two are apart so that a large body need not be copied.
    pub fn encode_prefix(&self, out: &mut Vec<u8>) -> Body<'a> {
        let start = out.len();
        out.resize(start + HEAD_BYTES, 0);
        let mut head = Head { length: 0, kind: 0, flags: 0, codec: 0, hops: 0, id: 0 };
        let body = self.encode_content(&mut head, out);
        let length = out.len() - start - HEAD_BYTES + body.len();
        debug_assert!(
            length <= FRAME_BYTES_MAX,
            "a frame of {length} bytes: large payloads are sent in chunks"
        );
        head.length = length as u32;
        head.write(&mut out[start..start + HEAD_BYTES]);
        body
    }

    /// Appends the whole frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let body = self.encode_prefix(out);
        out.extend_from_slice(body.as_slice());
    }

    /// The whole frame as bytes of its own.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::new();
        self.encode(&mut out);
        out.into()
    }

    /// The name of the frame's kind, for logs and errors.
    pub fn kind(&self) -> &'static str {
        name_of(match self {
            Self::Hello(_) => kind::HELLO,
            Self::Welcome(_) => kind::WELCOME,
            Self::Refuse(_) => kind::REFUSE,
            Self::Register(_) => kind::REGISTER,
            Self::Registered { .. } => kind::REGISTERED,
            Self::Request(_) => kind::REQUEST,
            Self::Reply(_) => kind::REPLY,
            Self::Failure(_) => kind::FAILURE,
            Self::Targets(_) => kind::TARGETS,
            Self::Cancel { .. } => kind::CANCEL,
            Self::Chunk(_) => kind::CHUNK,
            Self::Credit { .. } => kind::CREDIT,
            Self::Ask { .. } => kind::ASK,
            Self::Ping { .. } => kind::PING,
            Self::Pong { .. } => kind::PONG,
            Self::Goodbye { .. } => kind::GOODBYE,
        })
    }

    fn encode_content(&self, head: &mut Head, out: &mut Vec<u8>) -> Body<'a> {
        let mut set = |kind, id| {
            head.kind = kind;
            head.id = id;
        };
        match self {
            Self::Request(request) => {
                let Request {
                    id,
                    one_way,
                    broadcast,
                    more,
                    codec,
                    hops,
                    deadline_us,
                    fingerprint,
                    callback,
                    total,
                    name,
                    node,
                    body,
                } = request;
                set(kind::REQUEST, *id);
                head.flags = (flag::MORE * u8::from(*more))
                    | (flag::ONE_WAY * u8::from(*one_way))
                    | (flag::BROADCAST * u8::from(*broadcast));
                head.codec = *codec;
                head.hops = *hops;
                let mut fixed = [0; 28];
                fixed[..8].copy_from_slice(&deadline_us.to_le_bytes());
                fixed[8..16].copy_from_slice(&fingerprint.to_le_bytes());
                fixed[16..20].copy_from_slice(&callback.to_le_bytes());
                fixed[20..24].copy_from_slice(&total.to_le_bytes());
                fixed[24] = name.len() as u8;
                fixed[26..].copy_from_slice(&(node.len() as u16).to_le_bytes());
                out.extend_from_slice(&fixed);
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(node.as_bytes());
                *body
            }
            Self::Reply(Reply { id, more, part, codec, total, body }) => {
                set(kind::REPLY, *id);
                head.flags = flag::MORE * u8::from(*more);
                head.codec = *codec;
                out.extend_from_slice(&part.to_le_bytes());
                out.extend_from_slice(&total.to_le_bytes());
                *body
            }
            Self::Failure(Failure { id, part, fault }) => {
                set(kind::FAILURE, *id);
                out.extend_from_slice(&part.to_le_bytes());
                put_fault(out, fault);
                Body::default()
            }
            Self::Chunk(Chunk { id, reply, more, part, body }) => {
                set(kind::CHUNK, *id);
                head.flags = (flag::MORE * u8::from(*more)) | (flag::REPLY * u8::from(*reply));
                out.extend_from_slice(&part.to_le_bytes());
                *body
            }
            Self::Credit { id, reply, part, bytes } => {
                set(kind::CREDIT, *id);
                head.flags = flag::REPLY * u8::from(*reply);
                out.extend_from_slice(&part.to_le_bytes());
                out.extend_from_slice(&bytes.to_le_bytes());
                Body::default()
            }
            Self::Cancel { id } => {
                set(kind::CANCEL, *id);
                Body::default()
            }
            Self::Ping { id } => {
                set(kind::PING, *id);
                Body::default()
            }
            Self::Pong { id } => {
                set(kind::PONG, *id);
                Body::default()
            }
            Self::Targets(Targets { id, nodes }) => {
                set(kind::TARGETS, *id);
                out.extend_from_slice(nodes.as_bytes());
                Body::default()
            }
            Self::Register(Register { id, more, offers }) => {
                set(kind::REGISTER, *id);
                head.flags = flag::MORE * u8::from(*more);
                out.extend_from_slice(offers.bytes);
                Body::default()
            }
            Self::Registered { id } => {
                set(kind::REGISTERED, *id);
                Body::default()
            }
            Self::Ask { id, codec, question } => {
                set(kind::ASK, *id);
                head.codec = *codec;
                put_question(out, head, question)
            }
            Self::Goodbye { reason } => {
                set(kind::GOODBYE, 0);
                out.extend_from_slice(reason.as_bytes());
                Body::default()
            }
            Self::Hello(hello) => {
                let Hello { version_min, version_max, capabilities, instance, name, credentials } = hello;
                set(kind::HELLO, 0);
                out.extend_from_slice(&MAGIC);
                out.extend_from_slice(&version_min.to_le_bytes());
                out.extend_from_slice(&version_max.to_le_bytes());
                out.extend_from_slice(&capabilities.to_le_bytes());
                out.extend_from_slice(&instance.to_le_bytes());
                put_name(out, name);
                put_blob(out, credentials);
                Body::default()
            }
            Self::Welcome(welcome) => {
                let Welcome { version, capabilities, node, heartbeat_ms, payload_bytes_max } = welcome;
                set(kind::WELCOME, 0);
                out.extend_from_slice(&version.to_le_bytes());
                out.extend_from_slice(&capabilities.to_le_bytes());
                out.extend_from_slice(&node.to_le_bytes());
                out.extend_from_slice(&heartbeat_ms.to_le_bytes());
                out.extend_from_slice(&payload_bytes_max.to_le_bytes());
                Body::default()
            }
            Self::Refuse(Refuse { code, reason }) => {
                set(kind::REFUSE, 0);
                out.push(code.to_byte());
                out.extend_from_slice(reason.as_bytes());
                Body::default()
            }
        }
    }
}

/// The fixed part of every frame.
struct Head {
    length: u32,
    kind: u8,
    flags: u8,
    codec: u8,
    hops: u8,
    id: u64,
}

impl Head {
    fn parse(bytes: &[u8; HEAD_BYTES]) -> Self {
        let [l0, l1, l2, l3, kind, flags, codec, hops, id @ ..] = *bytes;
        Self {
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            kind,
            flags,
            codec,
            hops,
            id: u64::from_le_bytes(id),
        }
    }

    fn write(&self, out: &mut [u8]) {
        let Self { length, kind, flags, codec, hops, id } = self;
        out[..4].copy_from_slice(&length.to_le_bytes());
        out[4..8].copy_from_slice(&[*kind, *flags, *codec, *hops]);
        out[8..16].copy_from_slice(&id.to_le_bytes());
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

fn name_of(kind: u8) -> &'static str {
    match kind {
        kind::HELLO => "HELLO",
        kind::WELCOME => "WELCOME",
        kind::REFUSE => "REFUSE",
        kind::REGISTER => "REGISTER",
        kind::REGISTERED => "REGISTERED",
        kind::REQUEST => "REQUEST",
        kind::REPLY => "REPLY",
        kind::FAILURE => "FAILURE",
        kind::TARGETS => "TARGETS",
        kind::CANCEL => "CANCEL",
        kind::CHUNK => "CHUNK",
        kind::CREDIT => "CREDIT",
        kind::ASK => "ASK",
        kind::PING => "PING",
        kind::PONG => "PONG",
        kind::GOODBYE => "GOODBYE",
        _ => "unknown",
    }
}

fn check_total(kind: &'static str, total: u32, length: usize, more: bool) -> Result<(), ProtocolError> {
    let fits = if more { length < total as usize } else { length == total as usize };
    if fits {
        Ok(())
    } else {
        Err(ProtocolError::Malformed { kind, problem: "the size of its payload is not the announced one" })
    }
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    debug_assert!(name.len() <= usize::from(u8::MAX));
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_blob(out, text.as_bytes());
}

fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// The most bytes of each text of a fault; an error message is for people, a log is for the rest.
const FAULT_TEXT_BYTES_MAX: usize = 4 * 1024;
/// The most entries of a fault's chain or hints.
const FAULT_DETAILS_MAX: usize = 8;
/// The most bytes of a callback's own error. A larger one is left out and its text remains.
const FAULT_PAYLOAD_BYTES_MAX: usize = 16 * 1024;

const _: () = assert!(
    (FAULT_DETAILS_MAX + 4) * (FAULT_TEXT_BYTES_MAX + 2) + FAULT_PAYLOAD_BYTES_MAX + 32 <= FRAME_BYTES_MAX
);

fn put_fault(out: &mut Vec<u8>, fault: &Fault) {
    let Fault { kind, number, limit, node, message, type_name, location, details, payload } = fault;
    out.push(kind.to_byte());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&limit.to_le_bytes());
    for text in [node, message, type_name, location] {
        put_text(out, clip(text));
    }
    let details = &details[..details.len().min(FAULT_DETAILS_MAX)];
    out.push(details.len() as u8);
    for text in details {
        put_text(out, clip(text));
    }
    let payload = if payload.len() > FAULT_PAYLOAD_BYTES_MAX { &[] } else { &payload[..] };
    put_blob(out, payload);
}

fn clip(text: &str) -> &str {
    if text.len() <= FAULT_TEXT_BYTES_MAX {
        return text;
    }
    let mut end = FAULT_TEXT_BYTES_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn put_question<'a>(out: &mut Vec<u8>, head: &mut Head, question: &Question<'a>) -> Body<'a> {
    match question {
        Question::WaitProcess { name } => {
            out.push(ask::WAIT_PROCESS);
            put_name(out, name);
        }
        Question::WaitFunction { name } => {
            out.push(ask::WAIT_FUNCTION);
            put_name(out, name);
        }
        Question::Processes => out.push(ask::PROCESSES),
        Question::Callbacks => out.push(ask::CALLBACKS),
        Question::CancelTask { task } => {
            out.push(ask::CANCEL_TASK);
            out.extend_from_slice(&task.to_le_bytes());
        }
        Question::TaskStatus { task } => {
            out.push(ask::TASK_STATUS);
            out.extend_from_slice(&task.to_le_bytes());
        }
        Question::Schedule(Schedule { timing, codec, fingerprint, name, node, body }) => {
            head.codec = *codec;
            match timing {
                Timing::Period(period) => {
                    out.push(ask::PERIOD);
                    out.extend_from_slice(&period.to_le_bytes());
                }
                Timing::At(times) => {
                    out.push(ask::AT_TIMES);
                    put_blob(out, times.bytes);
                }
            }
            out.extend_from_slice(&fingerprint.to_le_bytes());
            put_name(out, name);
            put_name(out, node);
            return *body;
        }
    }
    Body::default()
}

/// What is left to read of a frame's content.
struct Input<'a> {
    rest: &'a [u8],
    kind: &'static str,
}

impl<'a> Input<'a> {
    fn malformed(&self, problem: &'static str) -> ProtocolError {
        ProtocolError::Malformed { kind: self.kind, problem }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtocolError> {
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return Err(self.malformed("it ends early"));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let Some((taken, rest)) = self.rest.split_first_chunk() else {
            return Err(self.malformed("it ends early"));
        };
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, ProtocolError> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.array().map(u64::from_le_bytes)
    }

    fn all(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// The rest of the content, within what one frame may carry. A larger body would still be a frame that may come
    /// in, but no longer one that may go on: the names around it change on the way.
    fn body(&mut self, batch: &'a Bytes) -> Result<Body<'a>, ProtocolError> {
        let bytes = self.all();
        if bytes.len() > CHUNK_BYTES {
            return Err(self.malformed("its body is longer than a chunk may be"));
        }
        Ok(Body::within(bytes, batch))
    }

    fn str(&mut self, length: usize) -> Result<&'a str, ProtocolError> {
        let bytes = self.take(length)?;
        str::from_utf8(bytes).map_err(|_| self.malformed("a text is not UTF-8"))
    }

    fn rest_str(&mut self) -> Result<&'a str, ProtocolError> {
        self.str(self.rest.len())
    }

    fn name(&mut self) -> Result<&'a str, ProtocolError> {
        let length = self.u8()?;
        self.str(length.into())
    }

    fn text(&mut self) -> Result<&'a str, ProtocolError> {
        let length = self.u16()?;
        self.str(length.into())
    }

    fn blob(&mut self) -> Result<&'a [u8], ProtocolError> {
        let length = self.u16()?;
        self.take(length.into())
    }

    fn fault(&mut self) -> Result<Fault, ProtocolError> {
        let kind = FaultKind::from_byte(self.u8()?);
        let number = self.u64()?;
        let limit = self.u64()?;
        let node = self.text()?.to_owned();
        let message = self.text()?.to_owned();
        let type_name = self.text()?.to_owned();
        let location = self.text()?.to_owned();
        let count = self.u8()?;
        let details = (0..count).map(|_| self.text().map(str::to_owned)).collect::<Result<_, _>>()?;
        let payload = Bytes::copy_from_slice(self.blob()?);
        Ok(Fault { kind, number, limit, node, message, type_name, location, details, payload })
    }

    fn question(&mut self, head: &Head, batch: &'a Bytes) -> Result<Question<'a>, ProtocolError> {
        Ok(match self.u8()? {
            ask::WAIT_PROCESS => Question::WaitProcess { name: self.name()? },
            ask::WAIT_FUNCTION => Question::WaitFunction { name: self.name()? },
            ask::PROCESSES => Question::Processes,
            ask::CALLBACKS => Question::Callbacks,
            ask::CANCEL_TASK => Question::CancelTask { task: self.u64()? },
            ask::TASK_STATUS => Question::TaskStatus { task: self.u64()? },
            what @ (ask::PERIOD | ask::AT_TIMES) => Question::Schedule(Schedule {
                timing: if what == ask::PERIOD {
                    Timing::Period(self.u64()?)
                } else {
                    Timing::At(Times::parse(self.blob()?)?)
                },
                codec: head.codec,
                fingerprint: self.u64()?,
                name: self.name()?,
                node: self.name()?,
                body: self.body(batch)?,
            }),
            _ => return Err(self.malformed("an unknown question")),
        })
    }
}

#[cfg(test)]
mod tests;
