//! Bytes into frames.

use std::str;

use bytes::Bytes;

use super::{
    Body, Chunk, Failure, Frame, Hello, MAGIC, Offer, Offers, ProtocolError, Question, Refuse, RefuseCode,
    Register, Reply, Request, Schedule, Targets, Times, Timing, Welcome,
    layout::{Head, ask, flag, kind, name_of},
};
use crate::{
    fault::{Fault, FaultKind},
    limits::{CHUNK_BYTES, HEAD_BYTES},
};

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
        let mut input = Input::new(name_of(head.kind), content);
        let id = head.id;
        let frame = match head.kind {
            kind::REQUEST => {
                // One look at the length for all of it.
                let mut fixed = Input { rest: &input.array::<28>()?, kind: input.kind };
                let deadline_us = fixed.u64()?;
                let fingerprint = fixed.u64()?;
                let callback = fixed.u32()?;
                let total = fixed.u32()?;
                let name_len = fixed.u8()?;
                let _reserved = fixed.u8()?;
                let node_len = fixed.u16()?;
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
}

fn check_total(kind: &'static str, total: u32, length: usize, more: bool) -> Result<(), ProtocolError> {
    let fits = if more { length < total as usize } else { length == total as usize };
    if fits {
        Ok(())
    } else {
        Err(ProtocolError::Malformed { kind, problem: "the size of its payload is not the announced one" })
    }
}

/// What is left to read of a frame's content.
pub(super) struct Input<'a> {
    rest: &'a [u8],
    kind: &'static str,
}

impl<'a> Input<'a> {
    /// The content of a frame of this kind.
    pub(super) fn new(kind: &'static str, content: &'a [u8]) -> Self {
        Self { rest: content, kind }
    }

    /// The next offer of a list, if there is one.
    pub(super) fn offer(&mut self) -> Result<Option<Offer<'a>>, ProtocolError> {
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
