//! A failure as it crosses the wire.

use bytes::Bytes;

/// Why a call failed, as a number on the wire.
///
/// A number that this version does not know is kept as [`Unknown`](Self::Unknown).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each is described at the variant of `Error` that it becomes")]
pub enum FaultKind {
    NoCandidate,
    NoProcess,
    NoInstance,
    SignatureMismatch,
    Overloaded,
    HopLimit,
    TooLarge,
    BadArguments,
    BadResult,
    InvalidTime,
    NoTask,
    Expired,
    Cancelled,
    RemoteStopped,
    Refused,
    Failed,
    Panicked,
    Unknown(u8),
}

impl FaultKind {
    const KNOWN: [Self; 17] = [
        Self::NoCandidate,
        Self::NoProcess,
        Self::NoInstance,
        Self::SignatureMismatch,
        Self::Overloaded,
        Self::HopLimit,
        Self::TooLarge,
        Self::BadArguments,
        Self::BadResult,
        Self::InvalidTime,
        Self::NoTask,
        Self::Expired,
        Self::Cancelled,
        Self::RemoteStopped,
        Self::Refused,
        Self::Failed,
        Self::Panicked,
    ];

    /// Returns the number on the wire: 1 to 17 in the order of the variants.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Unknown(byte) => byte,
            known => Self::KNOWN.iter().position(|kind| *kind == known).map_or(0, |at| at as u8 + 1),
        }
    }

    /// Returns the kind that a number stands for.
    pub fn from_byte(byte: u8) -> Self {
        let at = usize::from(byte).wrapping_sub(1);
        Self::KNOWN.get(at).copied().unwrap_or(Self::Unknown(byte))
    }
}

/// A failure with everything needed to build the caller's [`Error`](crate::Error).
///
/// Which fields are meaningful depends on the kind; the others are empty. `docs/PROTOCOL.md` has the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Why the call failed.
    pub kind: FaultKind,
    /// A number whose meaning depends on the kind: a size in bytes, a limit, an id, microseconds.
    pub number: u64,
    /// The limit that `number` exceeds, if there is one.
    pub limit: u64,
    /// The node that the failure happened on, or that was not found.
    pub node: String,
    /// A sentence for people; for a signature mismatch, the callee's signature.
    pub message: String,
    /// The type of the callback's error, as returned by
    /// [`signature::type_name`](crate::signature::type_name).
    pub type_name: String,
    /// Where a panic happened.
    pub location: String,
    /// The chain of sources, or similar names.
    pub details: Vec<String>,
    /// The callback's own error in bincode, if it can be serialized.
    pub payload: Bytes,
}

impl Fault {
    /// Creates a fault of this kind with `message`.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            number: 0,
            limit: 0,
            node: String::new(),
            message: message.into(),
            type_name: String::new(),
            location: String::new(),
            details: Vec::new(),
            payload: Bytes::new(),
        }
    }

    /// Sets the node.
    #[must_use]
    pub fn on(mut self, node: impl Into<String>) -> Self {
        self.node = node.into();
        self
    }

    /// Sets the number.
    #[must_use]
    pub fn number(mut self, number: u64) -> Self {
        self.number = number;
        self
    }

    /// Sets the limit that the number exceeds.
    #[must_use]
    pub fn limit(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }

    /// Sets the details.
    #[must_use]
    pub fn details(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }
}
