//! The bytes of a result, until somebody looks at it.

use std::fmt;

use bytes::Bytes;
use daffi_core::{
    frame::Body,
    payload::{Codec, CodecError},
};
use serde::de::DeserializeOwned;

/// The bytes of a result.
#[derive(Clone)]
pub(crate) enum Kept {
    /// Most results. A slice of the buffer that they were read into would keep everything read along with
    /// them, and costs more than the copy.
    Few {
        len: u8,
        bytes: Aligned,
    },
    Many(Bytes),
}

/// Aligned, since text is scanned word by word, from word boundaries.
#[derive(Clone)]
#[repr(align(8))]
pub(crate) struct Aligned([u8; IN_PLACE_BYTES_MAX]);

const IN_PLACE_BYTES_MAX: usize = 64;

/// Up to this size a copy is made, so that the buffer is not kept. The payload's own `Bytes` are copied below
/// 32 KiB anyway.
const COPIED_BYTES_MAX: usize = 4 * 1024;

impl Kept {
    pub(crate) const EMPTY: Self = Self::Many(Bytes::new());

    /// Keeps the bytes of a result that arrived in one frame.
    pub(crate) fn new(body: &Body<'_>) -> Self {
        if body.len() > COPIED_BYTES_MAX {
            return Self::Many(body.to_bytes());
        }
        let mut few = [0; IN_PLACE_BYTES_MAX];
        match few.get_mut(..body.len()).zip(body.piece()) {
            Some((place, bytes)) => {
                place.copy_from_slice(bytes);
                Self::Few { len: bytes.len() as u8, bytes: Aligned(few) }
            }
            None => Self::Many(body.copied()),
        }
    }

    /// Decodes the value.
    ///
    /// # Errors
    /// If they are no such value.
    pub(crate) fn decode<T: DeserializeOwned>(&self, codec: Codec) -> Result<T, CodecError> {
        match self {
            Self::Few { len, bytes } => codec.decode(&bytes.0[..usize::from(*len)]),
            Self::Many(bytes) => codec.decode_from(bytes),
        }
    }

    /// Returns the bytes in one piece that can be shared.
    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Self::Few { len, bytes } => Bytes::copy_from_slice(&bytes.0[..usize::from(len)]),
            Self::Many(bytes) => bytes,
        }
    }
}

impl From<Bytes> for Kept {
    fn from(bytes: Bytes) -> Self {
        Self::Many(bytes)
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = match self {
            Self::Few { len, .. } => usize::from(*len),
            Self::Many(bytes) => bytes.len(),
        };
        write!(f, "{len} bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_large_keeps_nothing_of_the_buffer_it_came_in() {
        for len in [0, 1, IN_PLACE_BYTES_MAX, IN_PLACE_BYTES_MAX + 1, COPIED_BYTES_MAX, COPIED_BYTES_MAX + 1]
        {
            let read = Bytes::from(vec![7; 2 * len + 1]);
            let before = read.clone();
            let part = read.slice(1..=len);
            let kept = Kept::new(&Body::shared(&part));
            drop((read, part));
            assert_eq!(before.is_unique(), len <= COPIED_BYTES_MAX, "{len}");
            assert_eq!(matches!(kept, Kept::Few { .. }), len <= IN_PLACE_BYTES_MAX, "{len}");
            assert_eq!(kept.into_bytes(), vec![7; len]);
        }
    }
}
