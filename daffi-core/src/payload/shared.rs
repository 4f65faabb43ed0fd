//! [`Bytes`]: values that are sent and received without being copied.
//!
//! serde shows serializers and visitors a slice, never the buffer that it lies in. So the buffer is put where
//! the codec, or the value, finds it on the same thread: in `LENT` while a `Bytes` is encoded, and in
//! `SOURCE` while a payload is decoded. Code that finds a buffer there compares addresses, and copies if they
//! do not match.

use std::{cell::Cell, fmt, ops::Deref, thread::LocalKey};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{SeqAccess, Visitor},
};

thread_local! {
    /// The buffer that is being encoded.
    static LENT: Cell<Option<bytes::Bytes>> = const { Cell::new(None) };
    /// The buffer that is being decoded.
    static SOURCE: Cell<Option<bytes::Bytes>> = const { Cell::new(None) };
}

/// Up to this size, bytes are copied when they are encoded: that costs less than a separate piece on the way.
pub(super) const LENT_BYTES_MIN: usize = 4 * 1024;

/// Below this size, bytes are copied when they are decoded. A slice keeps alive everything that was read from
/// a socket together with it, up to 258 KiB: at most about eight times its own size.
pub(super) const SOURCE_BYTES_MIN: usize = 32 * 1024;

/// Bytes as an argument or result, or anywhere in one, that daffi does not copy.
///
/// This wraps a [`bytes::Bytes`]: cheap to clone, cheap to slice, and readable as a `&[u8]`. On the wire it
/// is the same as `Vec<u8>` and `&[u8]`, so one side may use one and the other side another.
///
/// * When sent, it goes to the socket from where it lies. Up to 4 KiB are copied, which is cheaper.
/// * When received, it is a slice of the received data, and keeps that in memory: up to 258 KiB that were
///   read together, or the whole payload if that is larger than 64 KiB, and at most as much again. Below 32
///   KiB it is copied instead. To keep a small part of it for long, copy that part. Once the last slice is
///   dropped, the memory is used for what is received next, or given back within two seconds.
///
/// Other codecs treat it like `bytes::Bytes`: as bytes, which JSON writes as an array of numbers.
///
/// ```
/// use daffi_core::payload::Bytes;
///
/// let bytes = Bytes::from(vec![1, 2, 3]);
/// assert_eq!(bytes[1..], [2, 3]);
/// let inner: bytes::Bytes = bytes.into();
/// ```
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(bytes::Bytes);

impl Bytes {
    /// Creates empty bytes.
    pub const fn new() -> Self {
        Self(bytes::Bytes::new())
    }

    /// Wraps bytes that are part of the program.
    pub const fn from_static(bytes: &'static [u8]) -> Self {
        Self(bytes::Bytes::from_static(bytes))
    }

    /// Copies `bytes`.
    pub fn copy_from_slice(bytes: &[u8]) -> Self {
        Self(bytes::Bytes::copy_from_slice(bytes))
    }
}

impl Deref for Bytes {
    type Target = bytes::Bytes;

    fn deref(&self) -> &bytes::Bytes {
        &self.0
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! from {
    ($($type:ty),*) => {$(
        impl From<$type> for Bytes {
            fn from(bytes: $type) -> Self {
                Self(bytes.into())
            }
        }
    )*};
}

from!(bytes::Bytes, Vec<u8>, Box<[u8]>, String, &'static [u8], &'static str);

impl From<Bytes> for bytes::Bytes {
    fn from(bytes: Bytes) -> Self {
        bytes.0
    }
}

impl From<Bytes> for Vec<u8> {
    /// Does not copy if nothing else refers to the bytes. daffi itself may refer to received bytes for a
    /// second or two, to reuse their memory: where a `Vec` is needed, receiving one is just as good.
    fn from(bytes: Bytes) -> Self {
        bytes.0.into()
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.len() <= LENT_BYTES_MIN || serializer.is_human_readable() {
            return serializer.serialize_bytes(self);
        }
        replace(&LENT, Some(self.0.clone()));
        let result = serializer.serialize_bytes(self);
        replace(&LENT, None);
        result
    }
}

/// Puts `bytes` into `place`, and returns what was there. A thread that is ending may still encode and
/// decode, in destructors of its thread locals, and then finds nothing there.
fn replace(
    place: &'static LocalKey<Cell<Option<bytes::Bytes>>>,
    bytes: Option<bytes::Bytes>,
) -> Option<bytes::Bytes> {
    place.try_with(|place| place.replace(bytes)).ok().flatten()
}

/// Returns the buffer that consists of exactly `bytes`, if it was lent for encoding.
pub(super) fn lent(bytes: &[u8]) -> Option<bytes::Bytes> {
    replace(&LENT, None).filter(|lent| lent.as_ptr_range() == bytes.as_ptr_range())
}

/// Runs `decode` while bytes that lie in `source` can be taken as slices of it.
pub(super) fn decode_from<R>(source: &bytes::Bytes, decode: impl FnOnce() -> R) -> R {
    struct Restore(Option<bytes::Bytes>);

    impl Drop for Restore {
        fn drop(&mut self) {
            replace(&SOURCE, self.0.take());
        }
    }

    if source.len() < SOURCE_BYTES_MIN {
        return decode();
    }
    // A `Deserialize` may decode something else in between.
    let _restore = Restore(replace(&SOURCE, Some(source.clone())));
    decode()
}

/// Returns a slice of what is being decoded, or a copy.
fn taken(bytes: &[u8]) -> bytes::Bytes {
    if bytes.len() < SOURCE_BYTES_MIN {
        return bytes::Bytes::copy_from_slice(bytes);
    }
    let source = replace(&SOURCE, None);
    let (inner, outer) = (bytes.as_ptr_range(), source.as_deref().unwrap_or_default().as_ptr_range());
    let taken = match &source {
        Some(source) if outer.start <= inner.start && inner.end <= outer.end => source.slice_ref(bytes),
        _ => bytes::Bytes::copy_from_slice(bytes),
    };
    replace(&SOURCE, source);
    taken
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(Whole).map(Self)
    }
}

struct Whole;

impl<'de> Visitor<'de> for Whole {
    type Value = bytes::Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<bytes::Bytes, E> {
        Ok(taken(bytes))
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<bytes::Bytes, E> {
        Ok(bytes.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<bytes::Bytes, A::Error> {
        // The announced length is trusted only up to this limit.
        let mut bytes = Vec::with_capacity(elements.size_hint().unwrap_or(0).min(LENT_BYTES_MIN));
        while let Some(byte) = elements.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}
