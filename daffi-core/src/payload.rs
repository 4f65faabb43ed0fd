//! The payload codec: the one place that turns arguments and results into bytes and back.
//!
//! The controller never comes here: it passes bodies on as they are.

use bincode::config::{Configuration, Fixint, LittleEndian, NoLimit};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// How a body is encoded, as the codec byte of a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Codec {
    /// bincode 2 with fixed-width little-endian integers: compact and fast, for Rust on both sides.
    #[default]
    Bincode,
    /// JSON text: for tools and nodes in other languages. Arguments are an array.
    Json,
}

/// Why a value and its bytes do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(String);

const BINCODE: Configuration<LittleEndian, Fixint, NoLimit> =
    bincode::config::standard().with_fixed_int_encoding().with_no_limit();

impl Codec {
    /// The byte that stands for the codec in a frame.
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Bincode => 0,
            Self::Json => 1,
        }
    }

    /// The codec that `byte` stands for, if there is one.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Bincode),
            1 => Some(Self::Json),
            _ => None,
        }
    }

    /// `value` as bytes.
    ///
    /// # Errors
    /// The value's `Serialize` says no, or it has a shape that the codec cannot express.
    pub fn encode<T: Serialize + ?Sized>(self, value: &T) -> Result<Bytes, CodecError> {
        match self {
            Self::Bincode => bincode::serde::encode_to_vec(value, BINCODE)
                .map(Bytes::from)
                .map_err(|error| CodecError(error.to_string())),
            Self::Json => {
                serde_json::to_vec(value).map(Bytes::from).map_err(|error| CodecError(error.to_string()))
            }
        }
    }

    /// The value that `bytes` stand for; every byte has to belong to it.
    ///
    /// # Errors
    /// The bytes are no such value, end early, or go on after its end.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, CodecError> {
        match self {
            Self::Bincode => {
                let (value, read) = bincode::serde::decode_from_slice(bytes, BINCODE)
                    .map_err(|error| CodecError(error.to_string()))?;
                if read == bytes.len() {
                    Ok(value)
                } else {
                    Err(CodecError(format!("{} bytes are left over after the value", bytes.len() - read)))
                }
            }
            Self::Json => serde_json::from_slice(bytes).map_err(|error| CodecError(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_both_codecs() {
        for codec in [Codec::Bincode, Codec::Json] {
            let value = (7i64, "text".to_owned(), Some(vec![1.5f64]));
            let bytes = codec.encode(&value).unwrap();
            assert_eq!(codec.decode::<(i64, String, Option<Vec<f64>>)>(&bytes).unwrap(), value);
        }
    }

    #[test]
    fn left_over_bytes_are_an_error() {
        for codec in [Codec::Bincode, Codec::Json] {
            let mut bytes = codec.encode(&(1u32,)).unwrap().to_vec();
            bytes.push(b'7');
            assert!(codec.decode::<(u32,)>(&bytes).is_err(), "{codec:?}");
        }
    }
}
