//! Frames: everything that crosses a connection, as typed values and as bytes.
//!
//! ```text
//!  0        4    5     6     7    8               16
//! ┌────────┬────┬─────┬─────┬────┬───────────────┬───────────────┐
//! │ length │kind│flags│codec│hops│ id            │ length bytes …│
//! └────────┴────┴─────┴─────┴────┴───────────────┴───────────────┘
//! ```
//!
//! All numbers are little-endian. `docs/PROTOCOL.md` gives the layout of each kind byte by byte, and the
//! golden bytes in the tests below keep the two in sync.
//!
//! A [`Frame`] borrows from the buffer that it was read into, so routing one copies only what is sent on.

mod decode;
mod encode;
mod layout;

use std::{fmt, iter, time::Duration};

use bytes::Bytes;

use self::{
    decode::{Input, Problem},
    encode::{put_name, put_text},
    layout::{kind, name_of},
};
use crate::{
    fault::Fault,
    payload::{Encoded, Pieces},
};

/// The first four bytes of a `HELLO`'s content.
pub const MAGIC: [u8; 4] = *b"DAFI";

/// The protocol version that this code speaks.
pub const VERSION: u16 = 1;

/// The callback index of a request that has not been routed yet.
pub const UNROUTED: u32 = u32::MAX;

/// Something a peer sent that no daffi peer would send. The connection it came from is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The length exceeds what is allowed at this point.
    #[error("a frame announces {length} bytes, the limit is {limit}{}", foreign(*.first))]
    Length {
        /// The announced length.
        length: u32,
        /// The limit that it exceeds.
        limit: usize,
        /// The first bytes, which often reveal which protocol the peer speaks.
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
}

fn foreign(first: [u8; 4]) -> &'static str {
    match &first {
        b"HTTP" | b"GET " | b"POST" | b"HEAD" | b"PUT " | b"OPTI" | b"CONN" | b"PRI " => {
            " (this looks like HTTP)"
        }
        [0x16, 0x03, ..] => " (this looks like TLS)",
        b"SSH-" => " (this looks like SSH)",
        _ => "",
    }
}

/// The opaque part of a frame, with the buffer that it lies in. In an outgoing frame, it may be in several
/// pieces.
#[derive(Clone, Copy)]
pub struct Body<'a>(Content<'a>);

#[derive(Clone, Copy)]
enum Content<'a> {
    /// The bytes and the buffer that they lie in, or `NOWHERE`.
    Piece(&'a [u8], &'a Bytes),
    Pieces(&'a Pieces),
}

/// Stands for "no buffer": unlike an `Option` next to other variants, it takes no more room than a reference.
static NOWHERE: Bytes = Bytes::new();

impl<'a> Body<'a> {
    /// Creates a body from all of `bytes`.
    pub fn shared(bytes: &'a Bytes) -> Self {
        Self::within(bytes, bytes)
    }

    /// Creates a body from all of `encoded`.
    pub fn encoded(encoded: &'a Encoded) -> Self {
        match encoded.parts() {
            Ok(few) => Self::borrowed(few),
            Err(pieces) if pieces.rest().is_empty() => Self::shared(pieces.first()),
            Err(pieces) => Self(Content::Pieces(pieces)),
        }
    }

    /// Creates a body that is copied if it has to outlive its borrow.
    pub fn borrowed(bytes: &'a [u8]) -> Self {
        Self(Content::Piece(bytes, &NOWHERE))
    }

    fn within(bytes: &'a [u8], owner: &'a Bytes) -> Self {
        Self(Content::Piece(bytes, owner))
    }

    /// Returns its pieces one by one, each as a body.
    pub(crate) fn pieces(self) -> impl Iterator<Item = Self> {
        let (first, more) = match self.0 {
            Content::Piece(..) => (self, &[][..]),
            Content::Pieces(pieces) => (Self::shared(pieces.first()), pieces.rest()),
        };
        iter::once(first).chain(more.iter().map(Self::shared))
    }

    /// Returns the number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        match self.0 {
            Content::Piece(bytes, _) => bytes.len(),
            Content::Pieces(pieces) => pieces.len(),
        }
    }

    /// Returns whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the bytes to `out`.
    #[inline]
    pub fn append_to(&self, out: &mut Vec<u8>) {
        match self.0 {
            Content::Piece(bytes, _) => out.extend_from_slice(bytes),
            Content::Pieces(pieces) => pieces.append_to(out),
        }
    }

    /// Returns the bytes if they are in one piece, as received ones always are.
    pub fn piece(&self) -> Option<&'a [u8]> {
        match self.0 {
            Content::Piece(bytes, _) => Some(bytes),
            Content::Pieces(_) => None,
        }
    }

    /// Copies the bytes, so that nothing else is kept alive.
    pub fn copied(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(self.len());
        self.append_to(&mut bytes);
        bytes.into()
    }

    /// Returns owned bytes: a slice of the buffer they lie in, if there is one, otherwise a copy.
    pub fn to_bytes(&self) -> Bytes {
        match self.0 {
            Content::Piece(bytes, owner) if !owner.is_empty() => owner.slice_ref(bytes),
            _ => self.copied(),
        }
    }
}

impl Default for Body<'_> {
    fn default() -> Self {
        Self::borrowed(&[])
    }
}

impl fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl PartialEq for Body<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.to_bytes() == other.to_bytes()
    }
}

/// A frame, borrowed from the buffer that it lies in.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Frame<'a> {
    /// Node to controller, always the first frame: who the node is and what it speaks.
    Hello(Hello<'a>),
    /// Controller to node: the node is accepted.
    Welcome(Welcome),
    /// Controller to node, before closing: why the node is not accepted.
    Refuse(Refuse<'a>),
    /// Node to controller: the callbacks that it offers.
    Register(Register<'a>),
    /// Controller to node: everything registered up to and including this `Register` is visible to others.
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
    /// Controller to caller: the nodes that a broadcast goes to.
    Targets(Targets<'a>),
    /// The caller no longer waits.
    Cancel {
        /// The id of the request.
        id: u64,
    },
    /// More of a payload that began in a request or a reply.
    Chunk(Chunk<'a>),
    /// The receiver of a chunked payload accepts more of it.
    Credit {
        /// The id of the call.
        id: u64,
        /// Whether the payload belongs to a reply rather than a request.
        reply: bool,
        /// For a broadcast, which of its targets the reply is from; otherwise 0.
        part: u32,
        /// How many more bytes.
        bytes: u32,
    },
    /// Node to controller: a question that the controller itself answers with a reply or a failure.
    Ask {
        /// The asker's id of this question.
        id: u64,
        /// The codec that the answer is to use.
        codec: u8,
        /// The question.
        question: Question<'a>,
    },
    /// Are you alive?
    Ping {
        /// Comes back in the `Pong`.
        id: u64,
    },
    /// I am alive.
    Pong {
        /// The id of the `Ping`.
        id: u64,
    },
    /// The sender takes no new requests and will close once everything running is done.
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
    /// The newest protocol version that the node speaks.
    pub version_max: u16,
    /// Optional features, one bit each; none is defined yet.
    pub capabilities: u32,
    /// Distinguishes this process from an earlier one of the same name.
    pub instance: u64,
    /// The node's name.
    pub name: &'a str,
    /// Reserved for credentials; empty in this version.
    pub credentials: &'a [u8],
}

/// The controller's answer to a node that it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both speak from now on.
    pub version: u16,
    /// Features that both have.
    pub capabilities: u32,
    /// The controller's number for the node.
    pub node: u32,
    /// How often the controller asks for a sign of life, in milliseconds.
    pub heartbeat_ms: u32,
    /// The largest payload that the controller forwards.
    pub payload_bytes_max: u64,
}

/// Why a node is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refuse<'a> {
    /// The reason as a number.
    pub code: RefuseCode,
    /// The reason as a sentence.
    pub reason: &'a str,
}

/// Why a node is not accepted, as a number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefuseCode {
    /// No protocol version in common.
    Version,
    /// A live node has the name.
    NameTaken,
    /// The name is not a valid one.
    InvalidName,
    /// The credentials are not sufficient.
    Unauthorized,
    /// The controller has as many connections as it may have, or is stopping. Worth another try.
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

/// Callbacks that a node offers. Several in a row, all but the last with `more` set, count as one.
#[derive(Debug, Clone, PartialEq)]
pub struct Register<'a> {
    /// Comes back in `Registered`.
    pub id: u64,
    /// Whether another `Register` of the same registration follows.
    pub more: bool,
    /// The callbacks, encoded.
    pub offers: Offers<'a>,
}

/// A list of [`Offer`]s in encoded form, validated once when it is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offers<'a> {
    bytes: &'a [u8],
}

/// One callback that a node offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer<'a> {
    /// The node's own number for it, which requests carry back.
    pub index: u32,
    /// The fingerprint of the signature; 0 matches every caller.
    pub fingerprint: u64,
    /// Whether it can be called now. One that is not ready is a method of a singleton that has no instance
    /// yet.
    pub ready: bool,
    /// The name that callers use.
    pub name: &'a str,
    /// The signature as text.
    pub signature: &'a str,
}

impl<'a> Offers<'a> {
    /// Returns the offers one by one.
    pub fn iter(&self) -> impl Iterator<Item = Offer<'a>> + use<'a> {
        let mut input = Input::new(self.bytes);
        iter::from_fn(move || input.offer().ok().flatten())
    }

    /// Appends an offer to `bytes`, a list in encoded form.
    ///
    /// The caller must keep names within 255 bytes and signatures within 65,535 bytes.
    pub fn push(bytes: &mut Vec<u8>, offer: &Offer<'_>) {
        let Offer { index, fingerprint, ready, name, signature } = offer;
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes.extend_from_slice(&fingerprint.to_le_bytes());
        bytes.push(u8::from(*ready));
        put_name(bytes, name);
        put_text(bytes, signature);
    }

    /// Parses a list in encoded form, as [`push`](Self::push) builds it.
    ///
    /// # Errors
    /// The bytes do not consist of complete offers.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ProtocolError> {
        Self::checked(bytes).map_err(|problem| problem.of(kind::REGISTER))
    }

    fn checked(bytes: &'a [u8]) -> Result<Self, Problem> {
        let mut input = Input::new(bytes);
        while input.offer()?.is_some() {}
        Ok(Self { bytes })
    }
}

/// A call on its way to a callback.
#[derive(Debug, Clone, PartialEq)]
pub struct Request<'a> {
    /// The id of the call: the caller's own id from caller to controller, the controller's from there to the
    /// callee.
    pub id: u64,
    /// No answer is wanted.
    pub one_way: bool,
    /// It goes to every node that offers the callback.
    pub broadcast: bool,
    /// The payload continues in chunks.
    pub more: bool,
    /// The payload's codec.
    pub codec: u8,
    /// How deep the call is nested: 1 for a call that was not made by a callback.
    pub hops: u8,
    /// The time left until its deadline, in microseconds; 0 for none.
    pub deadline_us: u64,
    /// The fingerprint of the caller's signature; 0 matches every callee.
    pub fingerprint: u64,
    /// The callee's own number for the callback; [`UNROUTED`] until the controller has routed the request.
    pub callback: u32,
    /// The size of the whole payload.
    pub total: u32,
    /// The callback's name.
    pub name: &'a str,
    /// From the caller: the node that the call is pinned to or, for a broadcast, nodes one per line; empty
    /// for any. To the callee: the caller's name.
    pub node: &'a str,
    /// The payload, or its first part.
    pub body: Body<'a>,
}

impl<'a> Request<'a> {
    /// Creates a call as its caller sends it, to any node, with a complete payload and no special options.
    pub fn new(id: u64, name: &'a str, body: Body<'a>) -> Self {
        Self {
            id,
            one_way: false,
            broadcast: false,
            more: false,
            codec: 0,
            hops: 1,
            deadline_us: 0,
            fingerprint: 0,
            callback: UNROUTED,
            total: body.len() as u32,
            name,
            node: "",
            body,
        }
    }

    /// Returns the time left until the deadline.
    pub fn deadline(&self) -> Option<Duration> {
        (self.deadline_us != 0).then(|| Duration::from_micros(self.deadline_us))
    }
}

/// A result on its way to the caller.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply<'a> {
    /// The id of the request.
    pub id: u64,
    /// The payload continues in chunks.
    pub more: bool,
    /// For a broadcast, which of its targets answered; otherwise 0.
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
    /// For a broadcast, which of its targets failed; otherwise 0.
    pub part: u32,
    /// What happened.
    pub fault: Box<Fault>,
}

/// The nodes that a broadcast goes to. A name's position is the `part` of that node's answer.
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
    /// Whether the payload belongs to a reply rather than a request.
    pub reply: bool,
    /// Whether more chunks follow.
    pub more: bool,
    /// For a broadcast, which of its targets the reply is from; otherwise 0.
    pub part: u32,
    /// The bytes.
    pub body: Body<'a>,
}

/// Everything in a CHUNK frame except its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHead {
    /// The id of the call.
    pub id: u64,
    /// Whether the payload belongs to a reply rather than a request.
    pub reply: bool,
    /// Whether more chunks follow.
    pub more: bool,
    /// For a broadcast, which of its targets the reply is from; otherwise 0.
    pub part: u32,
    /// The number of bytes.
    pub length: usize,
}

impl Chunk<'_> {
    /// Returns everything except the bytes.
    pub fn head(&self) -> ChunkHead {
        let Self { id, reply, more, part, ref body } = *self;
        ChunkHead { id, reply, more, part, length: body.len() }
    }
}

/// What a node asks the controller itself.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
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
    /// Which processes are connected? Answered as `Vec<`[`answer::Process`](crate::answer::Process)`>`.
    Processes,
    /// Which callbacks are offered? Answered as
    /// `Vec<`[`answer::CallbackInfo`](crate::answer::CallbackInfo)`>`.
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

/// A scheduled call: the request and its times.
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
    /// The node that the call is pinned to; empty for any.
    pub node: &'a str,
    /// The payload.
    pub body: Body<'a>,
}

/// When a scheduled call happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Timing<'a> {
    /// Every this many microseconds, for the first time after one period.
    Period(u64),
    /// At these times.
    At(Times<'a>),
}

/// Points in time in encoded form: microseconds since 1970 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times<'a> {
    bytes: &'a [u8],
}

impl<'a> Times<'a> {
    /// Returns the times one by one.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.bytes.chunks_exact(8).map(|time| u64::from_le_bytes(time.try_into().expect("chunks of 8")))
    }

    /// Parses a list in encoded form: eight bytes per time.
    ///
    /// # Errors
    /// The length is not a multiple of eight.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ProtocolError> {
        Self::checked(bytes).map_err(|problem| problem.of(kind::ASK))
    }

    fn checked(bytes: &'a [u8]) -> Result<Self, Problem> {
        if bytes.len().is_multiple_of(8) {
            Ok(Self { bytes })
        } else {
            Err(Problem("the times are not whole"))
        }
    }
}

impl Frame<'_> {
    /// Returns the name of the frame's kind, for logs and errors.
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
}

#[cfg(test)]
mod tests;
