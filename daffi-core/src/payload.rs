//! The payload codec: the only place that turns arguments and results into bytes and back.
//!
//! The controller does not use it: it forwards bodies as they are.
//!
//! What a peer sends is not trusted. Decoding never panics, checks announced lengths against the available
//! bytes before it allocates for them, and stops at [`PAYLOAD_DEPTH_MAX`](crate::limits::PAYLOAD_DEPTH_MAX)
//! levels; encoding enforces the same limits, so that the sender learns of a value that no receiver would
//! accept. How much memory elements take depends on the receiver's types, so
//! [`PAYLOAD_GROWN_BYTES_MAX`](crate::limits::PAYLOAD_GROWN_BYTES_MAX) is enforced only when decoding.
//!
//! # The layout of `Codec::Bincode`
//!
//! It is that of bincode 2 with fixed-width little-endian integers, which the tests verify:
//!
//! | value | bytes |
//! |---|---|
//! | integers, floats | their width, little-endian; `usize` and `isize` take 8 |
//! | `bool` | one byte, 0 or 1 |
//! | `char` | one to four bytes of UTF-8 |
//! | text, bytes | length as `u64`, then that many bytes |
//! | `Option` | 0, or 1 and the value |
//! | sequence, map | number of elements as `u64`, then each element, or each key and its value |
//! | tuple, array, struct | each field in order, nothing else |
//! | enum | index of the variant as `u32`, then its fields |
//! | `()`, unit struct | nothing |
//!
//! Neither names nor types are written, so both sides must use the same types.

use serde::{Serialize, de::DeserializeOwned};

mod decode;
mod encode;
mod encoded;
pub use encoded::Encoded;
pub(crate) use encoded::Pieces;
use encoded::Scratch;
mod error;
pub use error::CodecError;
mod json;
mod shared;
pub use shared::Bytes;
mod whole;
pub use whole::Whole;

/// How a body is encoded, given by the codec byte of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Codec {
    /// bincode 2 with fixed-width little-endian integers: compact and fast, for Rust on both sides.
    #[default]
    Bincode,
    /// JSON text: for tools and nodes in other languages. Arguments are an array.
    Json,
}

impl Codec {
    /// Returns the byte that stands for the codec in a frame.
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Bincode => 0,
            Self::Json => 1,
        }
    }

    /// Returns the codec that `byte` stands for, if any.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Bincode),
            1 => Some(Self::Json),
            _ => None,
        }
    }

    /// Encodes `value` into bytes in one piece.
    ///
    /// # Errors
    /// The value's `Serialize` fails, it is nested too deeply, or it has a shape that the codec cannot
    /// express.
    pub fn encode<T: Serialize + ?Sized>(self, value: &T) -> Result<bytes::Bytes, CodecError> {
        Ok(self.encode_apart(value)?.into_bytes())
    }

    /// Encodes `value`, with each large [`Bytes`] in it as a separate piece instead of a copy.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    pub fn encode_apart<T: Serialize + ?Sized>(self, value: &T) -> Result<Encoded, CodecError> {
        // The encoded length is not known beforehand. A value whose `Serialize` encodes another value finds
        // no scratch room and allocates its own.
        let mut scratch = Scratch::take();
        let out = scratch.bytes();
        // A value's size in memory is exactly what plain numbers take on the wire, and a good start for the
        // rest.
        out.reserve(size_of_val(value));
        let mut apart = Vec::new();
        match self {
            Self::Bincode => encode::append(value, out, Some(&mut apart))?,
            Self::Json => json::append(value, out)?,
        }
        Ok(Encoded::new(scratch, apart))
    }

    /// Appends the encoded `value` to `out`, which is unchanged after an error.
    ///
    /// # Errors
    /// Those of [`encode`](Self::encode).
    pub fn encode_into<T: Serialize + ?Sized>(self, value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let start = out.len();
        let result = match self {
            Self::Bincode => encode::append(value, out, None),
            Self::Json => json::append(value, out),
        };
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    /// Decodes the value in `bytes`; every byte must belong to it.
    ///
    /// # Errors
    /// The bytes are not such a value, end early, continue after its end, or are nested too deeply.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, CodecError> {
        match self {
            Self::Bincode => decode::decode(bytes),
            Self::Json => json::decode(bytes),
        }
    }

    /// Decodes the value in `bytes`, with each large [`Bytes`] in it as a slice of them.
    ///
    /// # Errors
    /// Those of [`decode`](Self::decode).
    pub fn decode_from<T: DeserializeOwned>(self, bytes: &bytes::Bytes) -> Result<T, CodecError> {
        shared::decode_from(bytes, || self.decode(bytes))
    }
}

#[cfg(test)]
mod tests;
