//! Encodes values in the layout shown in [the parent module](super).

use serde::{Serialize, Serializer, ser};

use super::{
    error::{CodecError, Problem},
    shared::{LENT_BYTES_MIN, lent},
};
use crate::limits::{PAYLOAD_DEPTH_MAX, PAYLOAD_EMPTY_ELEMENTS_MAX};

mod byte;

/// The most that a sequence reserves before its elements are written, which is room for the bytes of most
/// large ones. Growing step by step would copy them, and leave holes that an allocator keeps for each of its
/// threads.
const RESERVE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// `Bytes` that are not copied, and the places in the rest of the value where they belong.
pub(super) type Apart = Vec<(usize, bytes::Bytes)>;

/// Appends `value` to `out`, except for what can be added to `apart`, if given, without a copy.
pub(super) fn append<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
    apart: Option<&mut Apart>,
) -> Result<(), CodecError> {
    // The vector is moved in and out instead of being borrowed, so that each write reaches it directly.
    let mut output = Output { bytes: std::mem::take(out), apart, empty_elements: 0 };
    let result = value.serialize(Encoder { output: &mut output, depth: 0 });
    *out = output.bytes;
    result
}

struct Output<'o> {
    bytes: Vec<u8>,
    apart: Option<&'o mut Apart>,
    /// How many elements of sequences have taken no bytes so far.
    empty_elements: usize,
}

impl Output<'_> {
    #[cold]
    fn empty_element(&mut self) -> Result<(), CodecError> {
        self.empty_elements += 1;
        if self.empty_elements > PAYLOAD_EMPTY_ELEMENTS_MAX {
            return Err(CodecError::new(Problem::EmptyElements));
        }
        Ok(())
    }
}

/// Writes one value, `depth` levels below the root.
struct Encoder<'a, 'o> {
    output: &'a mut Output<'o>,
    depth: usize,
}

impl<'a, 'o> Encoder<'a, 'o> {
    #[inline]
    fn write(self, bytes: &[u8]) {
        self.output.bytes.extend_from_slice(bytes);
    }

    #[inline]
    fn write_prefixed(self, bytes: &[u8]) {
        let out = &mut self.output.bytes;
        out.reserve(8 + bytes.len());
        out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        out.extend_from_slice(bytes);
    }

    /// Returns the encoder for what is inside this value.
    #[inline]
    fn deeper(self) -> Result<Self, CodecError> {
        if self.depth == PAYLOAD_DEPTH_MAX {
            return Err(CodecError::new(Problem::Depth));
        }
        Ok(Self { output: self.output, depth: self.depth + 1 })
    }

    /// Writes the index of a variant, and returns the encoder for its fields.
    #[inline]
    fn variant(self, index: u32) -> Result<Self, CodecError> {
        self.output.bytes.extend_from_slice(&index.to_le_bytes());
        self.deeper()
    }

    #[inline]
    fn elements(self, count: usize) -> Result<Elements<'a, 'o>, CodecError> {
        let inside = self.deeper()?;
        let out = &mut inside.output.bytes;
        out.reserve(8 + count.min(RESERVE_BYTES_MAX));
        out.extend_from_slice(&(count as u64).to_le_bytes());
        let start = out.len();
        Ok(Elements { inside, start, announced: count, count: 0 })
    }
}

macro_rules! little_endian {
    ($($serialize:ident($number:ty)),* $(,)?) => {$(
        #[inline]
        fn $serialize(self, value: $number) -> Result<(), CodecError> {
            self.write(&value.to_le_bytes());
            Ok(())
        }
    )*};
}

impl<'a, 'o> Serializer for Encoder<'a, 'o> {
    type Ok = ();
    type Error = CodecError;
    type SerializeSeq = Elements<'a, 'o>;
    type SerializeMap = Elements<'a, 'o>;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    little_endian! {
        serialize_i8(i8), serialize_i16(i16), serialize_i32(i32), serialize_i64(i64), serialize_i128(i128),
        serialize_u8(u8), serialize_u16(u16), serialize_u32(u32), serialize_u64(u64), serialize_u128(u128),
        serialize_f32(f32), serialize_f64(f64),
    }

    #[inline]
    fn serialize_bool(self, value: bool) -> Result<(), CodecError> {
        self.write(&[u8::from(value)]);
        Ok(())
    }

    #[inline]
    fn serialize_char(self, value: char) -> Result<(), CodecError> {
        self.write(value.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<(), CodecError> {
        self.write_prefixed(value.as_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_bytes(self, value: &[u8]) -> Result<(), CodecError> {
        if value.len() > LENT_BYTES_MIN
            && let Some(apart) = &mut self.output.apart
            && let Some(owner) = lent(value)
        {
            self.output.bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
            apart.push((self.output.bytes.len(), owner));
        } else {
            self.write_prefixed(value);
        }
        Ok(())
    }

    #[inline]
    fn serialize_none(self) -> Result<(), CodecError> {
        self.write(&[0]);
        Ok(())
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), CodecError> {
        self.output.bytes.push(1);
        value.serialize(self.deeper()?)
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), CodecError> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), CodecError> {
        Ok(())
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
    ) -> Result<(), CodecError> {
        self.write(&index.to_le_bytes());
        Ok(())
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        value: &T,
    ) -> Result<(), CodecError> {
        value.serialize(self.deeper()?)
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        value: &T,
    ) -> Result<(), CodecError> {
        value.serialize(self.variant(index)?)
    }

    /// A sequence need not know its length: the count is corrected at the end.
    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Elements<'a, 'o>, CodecError> {
        self.elements(len.unwrap_or(0))
    }

    /// Encodes the elements of a `Vec` or slice, and those of many other types. Bytes are copied in a
    /// separate loop: through [`serialize_seq`](Self::serialize_seq), each would check again whether there is
    /// room for it.
    #[inline]
    fn collect_seq<I>(self, elements: I) -> Result<(), CodecError>
    where
        I: IntoIterator<Item: Serialize>,
    {
        let mut elements = elements.into_iter();
        let hint = elements.size_hint().0;
        if byte::is_byte::<I::Item>() {
            let Elements { inside, start, announced, .. } = self.elements(hint)?;
            let mut result = Ok(());
            let out = &mut inside.output.bytes;
            out.extend(elements.map(|element| {
                element.serialize(byte::ToByte).unwrap_or_else(|error| {
                    result = Err(error);
                    0
                })
            }));
            let count = out.len() - start;
            result?;
            return Elements { inside, start, announced, count }.finish();
        }
        let mut sequence = self.elements(hint)?;
        elements.try_for_each(|element| sequence.next(&element))?;
        sequence.finish()
    }

    /// Unlike a sequence, a map must know its length. In practice, one that does not is a struct with
    /// `flatten`, which could be encoded but never decoded; it is better to tell its sender.
    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Elements<'a, 'o>, CodecError> {
        self.elements(len.ok_or_else(|| CodecError::new(Problem::MapOfUnknownSize))?)
    }

    #[inline]
    fn serialize_tuple(self, _len: usize) -> Result<Self, CodecError> {
        self.deeper()
    }

    #[inline]
    fn serialize_tuple_struct(self, _name: &'static str, _len: usize) -> Result<Self, CodecError> {
        self.deeper()
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        _len: usize,
    ) -> Result<Self, CodecError> {
        self.variant(index)
    }

    #[inline]
    fn serialize_struct(self, _name: &'static str, _len: usize) -> Result<Self, CodecError> {
        self.deeper()
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        _name: &'static str,
        index: u32,
        _variant: &'static str,
        _len: usize,
    ) -> Result<Self, CodecError> {
        self.variant(index)
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The elements of a sequence or the entries of a map, after their count.
struct Elements<'a, 'o> {
    inside: Encoder<'a, 'o>,
    /// Where the elements begin, right after their count.
    start: usize,
    announced: usize,
    count: usize,
}

impl Elements<'_, '_> {
    /// Writes an element, or the key of an entry.
    #[inline]
    fn next<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CodecError> {
        self.count += 1;
        let before = self.inside.output.bytes.len();
        self.write(value)?;
        if self.inside.output.bytes.len() == before {
            self.inside.output.empty_element()?;
        }
        Ok(())
    }

    #[inline]
    fn write<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CodecError> {
        value.serialize(Encoder { output: self.inside.output, depth: self.inside.depth })
    }

    /// Corrects the count if there were more or fewer elements than announced.
    #[inline]
    fn finish(self) -> Result<(), CodecError> {
        let Self { inside: Encoder { output, .. }, start, announced, count } = self;
        if count != announced {
            output.bytes[start - 8..start].copy_from_slice(&(count as u64).to_le_bytes());
        }
        Ok(())
    }
}

impl ser::SerializeSeq for Elements<'_, '_> {
    type Ok = ();
    type Error = CodecError;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CodecError> {
        self.next(value)
    }

    #[inline]
    fn end(self) -> Result<(), CodecError> {
        self.finish()
    }
}

impl ser::SerializeMap for Elements<'_, '_> {
    type Ok = ();
    type Error = CodecError;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), CodecError> {
        self.next(key)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CodecError> {
        self.write(value)
    }

    #[inline]
    fn end(self) -> Result<(), CodecError> {
        self.finish()
    }
}

macro_rules! fields {
    ($($compound:ident, $method:ident);* $(;)?) => {$(
        impl ser::$compound for Encoder<'_, '_> {
            type Ok = ();
            type Error = CodecError;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), CodecError> {
                value.serialize(Encoder { output: self.output, depth: self.depth })
            }

            #[inline]
            fn end(self) -> Result<(), CodecError> {
                Ok(())
            }
        }
    )*};
}

fields! {
    SerializeTuple, serialize_element;
    SerializeTupleStruct, serialize_field;
    SerializeTupleVariant, serialize_field;
}

macro_rules! named_fields {
    ($($compound:ident),*) => {$(
        impl ser::$compound for Encoder<'_, '_> {
            type Ok = ();
            type Error = CodecError;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                _name: &'static str,
                value: &T,
            ) -> Result<(), CodecError> {
                value.serialize(Encoder { output: self.output, depth: self.depth })
            }

            fn skip_field(&mut self, name: &'static str) -> Result<(), CodecError> {
                Err(CodecError::new(Problem::FieldLeftOut(name)))
            }

            #[inline]
            fn end(self) -> Result<(), CodecError> {
                Ok(())
            }
        }
    )*};
}

named_fields!(SerializeStruct, SerializeStructVariant);
