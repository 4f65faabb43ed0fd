//! Decodes frames.

use std::str;

use bytes::Bytes;

use super::{
    Body, Chunk, ChunkHead, Failure, Frame, Hello, MAGIC, Offer, Offers, ProtocolError, Question, Refuse,
    RefuseCode, Register, Reply, Request, Schedule, Targets, Times, Timing, Welcome,
    layout::{Head, ask, flag, kind, name_of, part},
};
use crate::{
    fault::{Fault, FaultKind},
    limits::{CHUNK_BYTES, HEAD_BYTES},
};

impl<'a> Frame<'a> {
    /// Decodes the frame that starts at `at` in `batch`. Also returns where the next one starts.
    ///
    /// `None` means that more bytes are needed. `limit` is the most bytes that may follow a head at this
    /// point.
    ///
    /// # Errors
    /// The bytes are not a frame; the connection that they came from can no longer be used.
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
        let next = at + HEAD_BYTES + length;
        // The frames that calls consist of are parsed separately: if all kinds were parsed together, the
        // compiler would keep their fields apart for as long as it can, which takes twice as many
        // instructions.
        match head.kind {
            kind::REQUEST => {
                Request::parse(&head, content, batch).map(|request| (Self::Request(request), next))
            }
            kind::REPLY => Reply::parse(&head, content, batch).map(|reply| (Self::Reply(reply), next)),
            _ => Self::parse(&head, content, batch).map(|frame| (frame, next)),
        }
        .map(Some)
        .map_err(|problem| problem.of(head.kind))
    }

    /// Returns the head of the chunk that starts at `at` in `batch`, and the bytes that have arrived, if its
    /// head has arrived but not all of its bytes.
    ///
    /// A chunk that [`decode`](Self::decode) will refuse does not count.
    pub fn begun_chunk(batch: &[u8], at: usize) -> Option<(ChunkHead, &[u8])> {
        let (head, content) = batch.get(at..)?.split_first_chunk::<HEAD_BYTES>()?;
        let head = Head::parse(head);
        let (part, body) = content.split_first_chunk()?;
        let length = (head.length as usize).checked_sub(part.len())?;
        let (id, reply, more) = (head.id, head.has(flag::REPLY), head.has(flag::MORE));
        let chunk = ChunkHead { id, reply, more, part: u32::from_le_bytes(*part), length };
        (head.kind == kind::CHUNK && length <= CHUNK_BYTES && body.len() < length).then_some((chunk, body))
    }

    /// Returns the length of the frame that starts at `at` in `batch`, if its head has arrived.
    pub fn length(batch: &[u8], at: usize) -> Option<usize> {
        let head = batch.get(at..)?.first_chunk::<HEAD_BYTES>()?;
        Some(HEAD_BYTES + Head::parse(head).length as usize)
    }

    /// Returns where the frame that starts at `at` in `batch` ends, if it is a REPLY with a whole result of
    /// at most `limit` bytes. [`decode`](Self::decode) agrees with whatever this recognizes.
    pub fn whole_reply(batch: &[u8], at: usize, limit: usize) -> Option<usize> {
        let (head, content) = batch.get(at..)?.split_first_chunk::<HEAD_BYTES>()?;
        let head = Head::parse(head);
        let fixed = content.first_chunk::<8>()?;
        let (length, total) = (head.length as usize, u32::from_le_bytes(part(fixed, 4)) as usize);
        let is_whole = total <= limit && length == total + fixed.len() && length <= content.len();
        (is_whole && head.kind == kind::REPLY && !head.has(flag::MORE)).then_some(at + HEAD_BYTES + length)
    }

    #[inline(never)]
    fn parse(head: &Head, content: &'a [u8], batch: &'a Bytes) -> Result<Self, Problem> {
        let mut input = Input::new(content);
        let id = head.id;
        let frame = match head.kind {
            kind::FAILURE => {
                let part = input.u32()?;
                Self::Failure(Failure { id, part, fault: Box::new(input.fault()?) })
            }
            kind::CHUNK => {
                let part = input.u32()?;
                let body = input.body(batch)?;
                if body.is_empty() {
                    return Err(Problem("it is empty"));
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
                offers: Offers::checked(input.all())?,
            }),
            kind::REGISTERED => Self::Registered { id },
            kind::ASK => Self::Ask { id, codec: head.codec, question: input.question(head, batch)? },
            kind::GOODBYE => Self::Goodbye { reason: input.rest_str()? },
            kind::HELLO => {
                if input.take(4)? != MAGIC {
                    return Err(Problem("it does not begin with DAFI"));
                }
                let hello = Hello {
                    version_min: input.u16()?,
                    version_max: input.u16()?,
                    capabilities: input.u32()?,
                    instance: input.u64()?,
                    name: input.name()?,
                    credentials: input.blob()?,
                };
                // What a newer version appends is ignored, so that it can say hello at all.
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
            _ => return Err(UNKNOWN),
        };
        if input.rest.is_empty() { Ok(frame) } else { Err(Problem("bytes are left over")) }
    }
}

impl<'a> Request<'a> {
    #[inline]
    fn parse(head: &Head, content: &'a [u8], batch: &'a Bytes) -> Result<Self, Problem> {
        let mut input = Input::new(content);
        // One length check for all fixed fields.
        let fixed = input.array::<28>()?;
        let total = u32::from_le_bytes(part(fixed, 20));
        let name_len = usize::from(fixed[24]);
        let node_len = usize::from(u16::from_le_bytes(part(fixed, 26)));
        // And one check of the text.
        let names = input.str(name_len + node_len)?;
        let (name, node) = names.split_at_checked(name_len).ok_or(NOT_UTF8)?;
        let body = input.body(batch)?;
        let more = head.has(flag::MORE);
        check_total(total, body.len(), more)?;
        Ok(Self {
            id: head.id,
            one_way: head.has(flag::ONE_WAY),
            broadcast: head.has(flag::BROADCAST),
            more,
            codec: head.codec,
            hops: head.hops,
            deadline_us: u64::from_le_bytes(part(fixed, 0)),
            fingerprint: u64::from_le_bytes(part(fixed, 8)),
            callback: u32::from_le_bytes(part(fixed, 16)),
            total,
            name,
            node,
            body,
        })
    }
}

impl<'a> Reply<'a> {
    #[inline]
    fn parse(head: &Head, content: &'a [u8], batch: &'a Bytes) -> Result<Self, Problem> {
        let mut input = Input::new(content);
        let fixed = input.array::<8>()?;
        let total = u32::from_le_bytes(part(fixed, 4));
        let body = input.body(batch)?;
        let more = head.has(flag::MORE);
        check_total(total, body.len(), more)?;
        Ok(Self {
            id: head.id,
            more,
            part: u32::from_le_bytes(part(fixed, 0)),
            codec: head.codec,
            total,
            body,
        })
    }
}

/// What is wrong with a frame's content. The frame's kind is known where frames are told apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem(pub(super) &'static str);

const UNKNOWN: Problem = Problem("unknown kind");
const ENDS_EARLY: Problem = Problem("it ends early");
const NOT_UTF8: Problem = Problem("a text is not UTF-8");

impl Problem {
    /// Converts the problem into an error about a frame of this kind.
    #[cold]
    pub(super) fn of(self, kind: u8) -> ProtocolError {
        match self {
            UNKNOWN => ProtocolError::Kind(kind),
            Self(problem) => ProtocolError::Malformed { kind: name_of(kind), problem },
        }
    }
}

fn check_total(total: u32, length: usize, more: bool) -> Result<(), Problem> {
    let fits = if more { length < total as usize } else { length == total as usize };
    if fits { Ok(()) } else { Err(Problem("the size of its payload is not the announced one")) }
}

/// What is left to read of a frame's content.
pub(super) struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(super) fn new(content: &'a [u8]) -> Self {
        Self { rest: content }
    }

    /// Reads the next offer of a list, if there is one.
    pub(super) fn offer(&mut self) -> Result<Option<Offer<'a>>, Problem> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        Ok(Some(Offer {
            index: self.u32()?,
            fingerprint: self.u64()?,
            ready: self.u8()? != 0,
            name: self.name()?,
            signature: self.text()?,
        }))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Problem> {
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return Err(ENDS_EARLY);
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Problem> {
        let Some((taken, rest)) = self.rest.split_first_chunk() else {
            return Err(ENDS_EARLY);
        };
        self.rest = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Problem> {
        self.array().map(|&[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Problem> {
        self.array().map(|bytes| u16::from_le_bytes(*bytes))
    }

    fn u32(&mut self) -> Result<u32, Problem> {
        self.array().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn u64(&mut self) -> Result<u64, Problem> {
        self.array().map(|bytes| u64::from_le_bytes(*bytes))
    }

    fn all(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Reads the rest of the content, up to what one frame may carry. A larger body could still arrive in a
    /// frame, but perhaps not be forwarded in one: the names around it change on the way.
    fn body(&mut self, batch: &'a Bytes) -> Result<Body<'a>, Problem> {
        let bytes = self.all();
        if bytes.len() > CHUNK_BYTES {
            return Err(Problem("its body is longer than a chunk may be"));
        }
        Ok(Body::within(bytes, batch))
    }

    fn str(&mut self, length: usize) -> Result<&'a str, Problem> {
        let bytes = self.take(length)?;
        str::from_utf8(bytes).map_err(|_| NOT_UTF8)
    }

    fn rest_str(&mut self) -> Result<&'a str, Problem> {
        self.str(self.rest.len())
    }

    fn name(&mut self) -> Result<&'a str, Problem> {
        let length = self.u8()?;
        self.str(length.into())
    }

    fn text(&mut self) -> Result<&'a str, Problem> {
        let length = self.u16()?;
        self.str(length.into())
    }

    fn blob(&mut self) -> Result<&'a [u8], Problem> {
        let length = self.u16()?;
        self.take(length.into())
    }

    fn fault(&mut self) -> Result<Fault, Problem> {
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

    fn question(&mut self, head: &Head, batch: &'a Bytes) -> Result<Question<'a>, Problem> {
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
                    Timing::At(Times::checked(self.blob()?)?)
                },
                codec: head.codec,
                fingerprint: self.u64()?,
                name: self.name()?,
                node: self.name()?,
                body: self.body(batch)?,
            }),
            _ => return Err(Problem("an unknown question")),
        })
    }
}
