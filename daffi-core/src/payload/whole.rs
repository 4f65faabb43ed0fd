//! [`Whole`]: decodes a `Vec<u8>` in one step.

use std::{any::Any, fmt};

use serde::{Deserialize, Deserializer, de::Visitor};

/// A `T`, decoded as serde does it; except that a `Vec<u8>` is decoded as bytes, where serde would take them
/// one by one.
///
/// This works only for an argument or result as a whole: what is inside another type is out of reach here.
#[derive(Debug)]
pub struct Whole<T>(pub T);

impl<'de, T: Deserialize<'de> + 'static> Deserialize<'de> for Whole<T> {
    #[inline]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The compiler knows which case it is, and removes the other.
        let mut vector = Vec::<u8>::new();
        if deserializer.is_human_readable() || !(&vector as &dyn Any).is::<T>() {
            return T::deserialize(deserializer).map(Self);
        }
        vector = deserializer.deserialize_byte_buf(Vector)?;
        let value = (&mut Some(vector) as &mut dyn Any).downcast_mut::<Option<T>>().and_then(Option::take);
        Ok(Self(value.expect("the types were compared")))
    }
}

struct Vector;

impl Visitor<'_> for Vector {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(bytes)
    }
}
