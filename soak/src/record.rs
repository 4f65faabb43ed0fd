//! What a child tells its parent, through its standard output: 24 bytes for each thing that happens.
//!
//! A record is in the pipe before what it announces happens, so that it survives a SIGKILL right after.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    sync::OnceLock,
};

use daffi::Error;
use daffi_chaos::Dice;

/// How a call is made, which decides what is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To one node, and answered.
    Call,
    /// To one node, without an answer.
    NoReturn,
    /// To all nodes, with an answer of each.
    Broadcast,
    /// To all nodes, without answers.
    BlindBroadcast,
    /// Again and again; the value is the period in milliseconds.
    Task,
}

/// What the caller was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The value of this call.
    Good,
    /// The value of another one, or none that anybody gives.
    Wrong,
    /// The callback ran and failed.
    Failed,
    /// It did not run, and will not.
    Refused,
    /// It may have run.
    Doubt,
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// The node is connected.
    Ready,
    /// The child has got this far in what it was told, so many callbacks are running, and so much memory is in use.
    Mark { number: u64, running: u64, held_kib: u32 },
    /// All calls of this window are over.
    Quiet { window: u64 },
    /// Whether calls to everybody work again.
    Probed { well: bool },
    /// A call begins.
    Invoke { id: u64, way: Way, value: u64 },
    /// A callback begins, at this millisecond since 1970.
    Run { id: u64, node: u32, at: u64 },
    /// One node's part in a broadcast.
    Entry { id: u64, node: u32, class: Class, code: u8 },
    /// A call is over, at this millisecond since 1970.
    Outcome { id: u64, class: Class, code: u8, at: u64 },
}

/// How many bytes a record has.
pub const BYTES: usize = 24;

const WAYS: [Way; 5] = [Way::Call, Way::NoReturn, Way::Broadcast, Way::BlindBroadcast, Way::Task];
const CLASSES: [Class; 5] = [Class::Good, Class::Wrong, Class::Failed, Class::Refused, Class::Doubt];

impl Record {
    fn encode(self) -> [u8; BYTES] {
        let (kind, a, b, node, id, value) = match self {
            Self::Ready => (0, 0, 0, 0, 0, 0),
            Self::Mark { number, running, held_kib } => (1, 0, 0, held_kib, number, running),
            Self::Quiet { window } => (2, 0, 0, 0, window, 0),
            Self::Probed { well } => (3, u8::from(well), 0, 0, 0, 0),
            Self::Invoke { id, way, value } => (4, way as u8, 0, 0, id, value),
            Self::Run { id, node, at } => (5, 0, 0, node, id, at),
            Self::Entry { id, node, class, code } => (6, class as u8, code, node, id, 0),
            Self::Outcome { id, class, code, at } => (7, class as u8, code, 0, id, at),
        };
        let mut bytes = [0; BYTES];
        bytes[..3].copy_from_slice(&[kind, a, b]);
        bytes[4..8].copy_from_slice(&u32::to_le_bytes(node));
        bytes[8..16].copy_from_slice(&u64::to_le_bytes(id));
        bytes[16..].copy_from_slice(&u64::to_le_bytes(value));
        bytes
    }

    fn decode(bytes: &[u8; BYTES]) -> Option<Self> {
        let [kind, a, b, ..] = *bytes;
        let node = u32::from_le_bytes(bytes[4..8].try_into().ok()?);
        let id = u64::from_le_bytes(bytes[8..16].try_into().ok()?);
        let value = u64::from_le_bytes(bytes[16..].try_into().ok()?);
        let class = || CLASSES.get(usize::from(a)).copied();
        Some(match kind {
            0 => Self::Ready,
            1 => Self::Mark { number: id, running: value, held_kib: node },
            2 => Self::Quiet { window: id },
            3 => Self::Probed { well: a == 1 },
            4 => Self::Invoke { id, way: *WAYS.get(usize::from(a))?, value },
            5 => Self::Run { id, node, at: value },
            6 => Self::Entry { id, node, class: class()?, code: b },
            7 => Self::Outcome { id, class: class()?, code: b, at: value },
            _ => return None,
        })
    }

    /// Tells the parent.
    pub fn tell(self) {
        static OUT: OnceLock<File> = OnceLock::new();
        // Past the buffer of `Stdout`, and each record in one write: a pipe takes that whole or not at all.
        let mut out = OUT.get_or_init(|| {
            File::from(io::stdout().as_fd().try_clone_to_owned().expect("a child has its standard output"))
        });
        if out.write_all(&self.encode()).is_err() {
            // The parent is gone.
            std::process::exit(0);
        }
    }
}

/// Hands over all records that there are, in batches, until the other end is closed.
pub fn read(mut from: impl Read, mut batch: impl FnMut(&[Record])) {
    let mut bytes = vec![0; 1024 * BYTES];
    let mut filled = 0;
    let mut records = Vec::new();
    while let Ok(read @ 1..) = from.read(&mut bytes[filled..]) {
        filled += read;
        let (whole, _) = bytes[..filled].as_chunks();
        records.clear();
        records.extend(whole.iter().filter_map(Record::decode));
        batch(&records);
        let used = filled - filled % BYTES;
        bytes.copy_within(used..filled, 0);
        filled -= used;
    }
}

/// What a callback gives for this call, and for no other one.
pub fn value_of(id: u64) -> u64 {
    Dice::new(id).roll()
}

/// A call that the callback of this call makes.
pub fn nested(id: u64) -> u64 {
    id | NESTED
}

/// Whether a callback made this call.
pub fn is_nested(id: u64) -> bool {
    id & NESTED != 0
}

const NESTED: u64 = 1 << 63;

/// The number of a call: who makes it, in which window, and which one it is there.
pub fn id(serial: u16, window: u16, sequence: u32) -> u64 {
    debug_assert!(serial < 1 << 15, "the highest bit tells nested calls");
    u64::from(serial) << 48 | u64::from(window) << 32 | u64::from(sequence)
}

/// The window in which the call was made.
pub fn window_of(id: u64) -> u16 {
    (id >> 32) as u16
}

/// What an error says about the callback.
pub fn class_of(error: &Error) -> Class {
    match error {
        Error::Remote(_) => Class::Failed,
        error if error.may_have_executed() => Class::Doubt,
        _ => Class::Refused,
    }
}

/// The outcomes by number, as the report has them.
pub const NAMES: [&str; 14] = [
    "value",
    "Remote",
    "RemoteStopped",
    "ControllerLost",
    "Timeout, sent",
    "Timeout, not sent",
    "Cancelled, sent",
    "Cancelled, not sent",
    "NoCandidate",
    "NoProcess",
    "Overloaded",
    "NoTask",
    "Stopped",
    "unexpected",
];

/// The number of an error in [`NAMES`].
pub fn code_of(error: &Error) -> u8 {
    match error {
        Error::Remote(_) => 1,
        Error::RemoteStopped { .. } => 2,
        Error::ControllerLost { .. } => 3,
        Error::Timeout { sent: true, .. } => 4,
        Error::Timeout { .. } => 5,
        Error::Cancelled { sent: true, .. } => 6,
        Error::Cancelled { .. } => 7,
        Error::NoCandidate { .. } => 8,
        Error::NoProcess { .. } => 9,
        Error::Overloaded { .. } => 10,
        Error::NoTask { .. } => 11,
        // A callback that still runs when its process is told to end calls onwards.
        Error::Stopped { .. } => 12,
        _ => UNEXPECTED,
    }
}

/// The number of what never has to happen.
pub const UNEXPECTED: u8 = 13;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_however_they_are_cut() {
        let records = [
            Record::Ready,
            Record::Mark { number: 1, running: 2, held_kib: 3 },
            Record::Quiet { window: 3 },
            Record::Probed { well: true },
            Record::Invoke { id: 4, way: Way::Task, value: 5 },
            Record::Run { id: 6, node: 7, at: 8 },
            Record::Entry { id: 9, node: 10, class: Class::Doubt, code: 11 },
            Record::Outcome { id: u64::MAX, class: Class::Wrong, code: 12, at: 13 },
        ];
        struct Pieces(Vec<u8>, usize);
        impl Read for Pieces {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let piece = self.1.min(self.0.len()).min(buffer.len());
                buffer[..piece].copy_from_slice(&self.0[..piece]);
                self.0.drain(..piece);
                Ok(piece)
            }
        }
        for piece in 1..60 {
            let bytes = records.iter().flat_map(|record| record.encode()).collect();
            let mut came = Vec::new();
            read(Pieces(bytes, piece), |batch| came.extend_from_slice(batch));
            assert_eq!(came, records, "{piece} bytes at a time");
        }
    }
}
