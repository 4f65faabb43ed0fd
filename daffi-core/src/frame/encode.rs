//! Encodes frames.

use bytes::Bytes;

use super::{
    Body, Chunk, Failure, Frame, Hello, MAGIC, Question, Refuse, Register, Reply, Request, Schedule, Targets,
    Timing, Welcome,
    layout::{Head, ask, flag, kind},
};
use crate::{
    fault::Fault,
    limits::{FRAME_BYTES_MAX, HEAD_BYTES},
};

impl<'a> Frame<'a> {
    /// Appends everything of the frame except its body to `out`, and returns the body.
    ///
    /// The frame is complete once the body follows. They are separate so that a large body need not be
    /// copied.
    pub fn encode_prefix(&self, out: &mut Vec<u8>) -> Body<'a> {
        match self {
            // The frames that calls consist of, whose lengths are known in advance.
            Self::Request(request) => return request.encode_prefix(out),
            Self::Reply(reply) => return reply.encode_prefix(out),
            _ => {}
        }
        let start = out.len();
        let _ = put_fixed::<HEAD_BYTES>(out);
        let mut head = Head { length: 0, kind: 0, flags: 0, codec: 0, hops: 0, id: 0 };
        let body = self.encode_content(&mut head, out);
        head.length = checked(out.len() - start - HEAD_BYTES + body.len());
        head.write(&mut out[start..start + HEAD_BYTES]);
        body
    }

    /// Appends the whole frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let body = self.encode_prefix(out);
        body.append_to(out);
    }

    /// Returns the whole frame as separate bytes.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::new();
        self.encode(&mut out);
        out.into()
    }

    fn encode_content(&self, head: &mut Head, out: &mut Vec<u8>) -> Body<'a> {
        let mut set = |kind, id| {
            head.kind = kind;
            head.id = id;
        };
        match self {
            Self::Request(_) | Self::Reply(_) => unreachable!("they are encoded as a whole"),
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

impl<'a> Request<'a> {
    #[inline]
    fn encode_prefix(&self, out: &mut Vec<u8>) -> Body<'a> {
        let Self {
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
        } = self;
        let head = Head {
            length: checked(28 + name.len() + node.len() + body.len()),
            kind: kind::REQUEST,
            flags: (flag::MORE * u8::from(*more))
                | (flag::ONE_WAY * u8::from(*one_way))
                | (flag::BROADCAST * u8::from(*broadcast)),
            codec: *codec,
            hops: *hops,
            id: *id,
        };
        let (place, content) = put_fixed::<{ HEAD_BYTES + 28 }>(out).split_at_mut(HEAD_BYTES);
        head.write(place);
        content[..8].copy_from_slice(&deadline_us.to_le_bytes());
        content[8..16].copy_from_slice(&fingerprint.to_le_bytes());
        content[16..20].copy_from_slice(&callback.to_le_bytes());
        content[20..24].copy_from_slice(&total.to_le_bytes());
        content[24] = name.len() as u8;
        content[26..].copy_from_slice(&(node.len() as u16).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(node.as_bytes());
        *body
    }
}

impl<'a> Reply<'a> {
    #[inline]
    fn encode_prefix(&self, out: &mut Vec<u8>) -> Body<'a> {
        let Self { id, more, part, codec, total, body } = self;
        let head = Head {
            length: checked(8 + body.len()),
            kind: kind::REPLY,
            flags: flag::MORE * u8::from(*more),
            codec: *codec,
            hops: 0,
            id: *id,
        };
        let (place, content) = put_fixed::<{ HEAD_BYTES + 8 }>(out).split_at_mut(HEAD_BYTES);
        head.write(place);
        content[..4].copy_from_slice(&part.to_le_bytes());
        content[4..].copy_from_slice(&total.to_le_bytes());
        *body
    }
}

/// Appends `N` bytes, and returns them to be filled in place.
fn put_fixed<const N: usize>(out: &mut Vec<u8>) -> &mut [u8; N] {
    out.extend_from_slice(&[0; N]);
    out.last_chunk_mut().expect("they were put there just now")
}

/// Converts a content's length to the number in the frame's head.
fn checked(length: usize) -> u32 {
    debug_assert!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes: large payloads are sent in chunks");
    length as u32
}

pub(super) fn put_name(out: &mut Vec<u8>, name: &str) {
    debug_assert!(name.len() <= usize::from(u8::MAX));
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_blob(out, text.as_bytes());
}

fn put_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// The most bytes of each text of a fault: error messages are for people, and longer text belongs in a log.
pub(super) const FAULT_TEXT_BYTES_MAX: usize = 4 * 1024;
/// The most entries of a fault's chain or hints.
pub(super) const FAULT_DETAILS_MAX: usize = 8;
/// The most bytes of a callback's own error. A larger one is left out and its text remains.
pub(super) const FAULT_PAYLOAD_BYTES_MAX: usize = 16 * 1024;

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
