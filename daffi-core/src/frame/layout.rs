//! What all frames have in common on the wire: the head, and the numbers for kinds, flags and questions.

use crate::limits::HEAD_BYTES;

pub(super) mod kind {
    pub(in crate::frame) const HELLO: u8 = 1;
    pub(in crate::frame) const WELCOME: u8 = 2;
    pub(in crate::frame) const REFUSE: u8 = 3;
    pub(in crate::frame) const REGISTER: u8 = 4;
    pub(in crate::frame) const REGISTERED: u8 = 5;
    pub(in crate::frame) const REQUEST: u8 = 6;
    pub(in crate::frame) const REPLY: u8 = 7;
    pub(in crate::frame) const FAILURE: u8 = 8;
    pub(in crate::frame) const TARGETS: u8 = 9;
    pub(in crate::frame) const CANCEL: u8 = 10;
    pub(in crate::frame) const CHUNK: u8 = 11;
    pub(in crate::frame) const CREDIT: u8 = 12;
    pub(in crate::frame) const ASK: u8 = 13;
    pub(in crate::frame) const PING: u8 = 14;
    pub(in crate::frame) const PONG: u8 = 15;
    pub(in crate::frame) const GOODBYE: u8 = 16;
}

pub(super) mod flag {
    /// The payload, or the registration, continues in another frame.
    pub(in crate::frame) const MORE: u8 = 1;
    /// A request wants no answer.
    pub(in crate::frame) const ONE_WAY: u8 = 2;
    /// A request goes to every node that offers the callback.
    pub(in crate::frame) const BROADCAST: u8 = 4;
    /// A chunk or credit belongs to a reply.
    pub(in crate::frame) const REPLY: u8 = 8;
}

pub(super) mod ask {
    pub(in crate::frame) const WAIT_PROCESS: u8 = 1;
    pub(in crate::frame) const WAIT_FUNCTION: u8 = 2;
    pub(in crate::frame) const PROCESSES: u8 = 3;
    pub(in crate::frame) const CALLBACKS: u8 = 4;
    pub(in crate::frame) const PERIOD: u8 = 5;
    pub(in crate::frame) const AT_TIMES: u8 = 6;
    pub(in crate::frame) const CANCEL_TASK: u8 = 7;
    pub(in crate::frame) const TASK_STATUS: u8 = 8;
}

/// The fixed part of every frame.
pub(super) struct Head {
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) codec: u8,
    pub(super) hops: u8,
    pub(super) id: u64,
}

impl Head {
    pub(super) fn parse(bytes: &[u8; HEAD_BYTES]) -> Self {
        Self {
            length: u32::from_le_bytes(part(bytes, 0)),
            kind: bytes[4],
            flags: bytes[5],
            codec: bytes[6],
            hops: bytes[7],
            id: u64::from_le_bytes(part(bytes, 8)),
        }
    }

    pub(super) fn write(&self, out: &mut [u8]) {
        let Self { length, kind, flags, codec, hops, id } = self;
        out[..4].copy_from_slice(&length.to_le_bytes());
        out[4..8].copy_from_slice(&[*kind, *flags, *codec, *hops]);
        out[8..16].copy_from_slice(&id.to_le_bytes());
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Returns the `N` bytes that start at `at`.
pub(super) fn part<const N: usize, const OF: usize>(bytes: &[u8; OF], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("it is as long as it is cut")
}

pub(super) fn name_of(kind: u8) -> &'static str {
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
