//! Why a value and its bytes do not fit together.

use std::fmt;

use crate::limits::{PAYLOAD_DEPTH_MAX, PAYLOAD_EMPTY_ELEMENTS_MAX, PAYLOAD_GROWN_BYTES_MAX, PAYLOAD_GROWTH};

/// Why a value and its bytes do not fit together, as a sentence, with the position in the bytes if it is
/// known.
///
/// It is one word in size, so that the results of a codec's many small steps stay small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodecError(Box<Inner>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    problem: Problem,
    offset: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    #[error("{needed} more bytes are needed, {left} are left")]
    End { needed: usize, left: usize },
    #[error("a length of {announced} is announced, {left} bytes are left for it")]
    Length { announced: u64, left: usize },
    #[error("more than {PAYLOAD_EMPTY_ELEMENTS_MAX} elements of sequences take no bytes")]
    EmptyElements,
    #[error(
        "elements of sequences take more than {PAYLOAD_GROWN_BYTES_MAX} bytes of memory beyond {PAYLOAD_GROWTH} times their own \
         bytes: send fewer at a time, or box what is large and often missing"
    )]
    Grown,
    #[error("the value is nested more than {PAYLOAD_DEPTH_MAX} levels deep")]
    Depth,
    #[error("{0} is not a bool")]
    Bool(u8),
    #[error("{0} is not the tag of an Option")]
    Option(u8),
    #[error("this is not a char in UTF-8")]
    Char,
    #[error("the text is not UTF-8")]
    Text,
    #[error("{0} bytes are left over after the value")]
    BytesLeft(usize),
    #[error("the type takes {0} elements fewer than there are")]
    ElementsLeft(usize),
    #[error(
        "bincode is not self-describing, and this type has to look at the data to know what it is, as flatten, \
         untagged and tag = \"…\" of serde make it: use a plain enum or struct"
    )]
    NotSelfDescribing,
    #[error(
        "bincode has to know the size of a map in advance, which flatten of serde hides: use a field of its own"
    )]
    MapOfUnknownSize,
    #[error(
        "the field {0:?} is left out, and without names in bincode the next one would be taken for it: \
         drop its skip_serializing_if"
    )]
    FieldLeftOut(&'static str),
    #[error("{0}")]
    Message(String),
}

impl CodecError {
    #[cold]
    #[inline(never)]
    pub(super) fn new(problem: Problem) -> Self {
        Self(Box::new(Inner { problem, offset: None }))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn at(offset: usize, problem: Problem) -> Self {
        Self(Box::new(Inner { problem, offset: Some(offset) }))
    }

    #[cold]
    #[expect(clippy::needless_pass_by_value, reason = "map_err passes it by value")]
    pub(super) fn json(error: serde_json::Error) -> Self {
        Self::new(Problem::Message(error.to_string()))
    }

    /// Adds `offset` to the error, unless its position is known already.
    #[cold]
    #[inline(never)]
    pub(super) fn or_at(mut self, offset: usize) -> Self {
        self.0.offset.get_or_insert(offset);
        self
    }

    /// Returns how many bytes into the payload the problem is, if that is known.
    pub fn offset(&self) -> Option<usize> {
        self.0.offset
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { problem, offset } = &*self.0;
        match offset {
            Some(offset) => write!(f, "at byte {offset}: {problem}"),
            None => problem.fmt(f),
        }
    }
}

impl std::error::Error for CodecError {}

impl serde::ser::Error for CodecError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Problem::Message(message.to_string()))
    }
}

impl serde::de::Error for CodecError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Problem::Message(message.to_string()))
    }
}
