//! Decodes values in the layout shown in [the parent module](super).

use serde::{
    Deserializer,
    de::{
        DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
        Visitor,
    },
};

use super::error::{CodecError, Problem};
use crate::limits::{PAYLOAD_DEPTH_MAX, PAYLOAD_EMPTY_ELEMENTS_MAX, PAYLOAD_GROWN_BYTES_MAX, PAYLOAD_GROWTH};

/// How many elements a sequence may allocate for with only one byte each.
const HINT_START: usize = 1024;

/// Decodes the value that takes up all of `bytes`.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let mut input = Input { rest: bytes, size: bytes.len(), empty_elements: 0, grown: 0, owed: 0, unread: 0 };
    let value = T::deserialize(Decoder { input: &mut input, depth: 0 })
        .map_err(|error| error.or_at(input.offset()))?;
    match input.rest.len() {
        0 => Ok(value),
        left => Err(input.error(Problem::BytesLeft(left))),
    }
}

/// The bytes still to be read.
struct Input<'de> {
    rest: &'de [u8],
    /// How many bytes there were in total.
    size: usize,
    /// How many elements of sequences have taken no bytes so far. Peers could announce billions of them in 8
    /// bytes.
    empty_elements: usize,
    /// How much memory elements have taken so far beyond [`PAYLOAD_GROWTH`] times their bytes.
    grown: usize,
    /// How many elements of the enclosing sequences are still to come.
    owed: usize,
    /// How many elements the visitor of the last sequence left unread.
    unread: usize,
}

impl<'de> Input<'de> {
    #[inline]
    fn offset(&self) -> usize {
        self.size - self.rest.len()
    }

    #[inline]
    fn error(&self, problem: Problem) -> CodecError {
        CodecError::at(self.offset(), problem)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let Some((array, rest)) = self.rest.split_first_chunk() else {
            return Err(self.error(Problem::End { needed: N, left: self.rest.len() }));
        };
        self.rest = rest;
        Ok(*array)
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, CodecError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    /// Reads a length and that many bytes.
    #[inline]
    fn prefixed(&mut self) -> Result<&'de [u8], CodecError> {
        let announced = u64::from_le_bytes(self.array()?);
        let split = usize::try_from(announced).ok().and_then(|length| self.rest.split_at_checked(length));
        let Some((bytes, rest)) = split else {
            return Err(self.error(Problem::Length { announced, left: self.rest.len() }));
        };
        self.rest = rest;
        Ok(bytes)
    }

    #[inline]
    fn text(&mut self) -> Result<&'de str, CodecError> {
        let bytes = self.prefixed()?;
        str::from_utf8(bytes)
            .map_err(|error| CodecError::at(self.offset() - bytes.len() + error.valid_up_to(), Problem::Text))
    }

    /// Reads a text into a `String`. It is validated in the copy, which is word-aligned: that is faster than
    /// in place.
    #[inline]
    fn string(&mut self) -> Result<String, CodecError> {
        let bytes = self.prefixed()?;
        String::from_utf8(bytes.to_vec()).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            CodecError::at(self.offset() - bytes.len() + valid, Problem::Text)
        })
    }

    fn char(&mut self) -> Result<char, CodecError> {
        let first = *self.rest.first().ok_or_else(|| self.error(Problem::End { needed: 1, left: 0 }))?;
        let width = match first {
            0x00..=0x7F => 1,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => return Err(self.error(Problem::Char)),
        };
        let Some((bytes, rest)) = self.rest.split_at_checked(width) else {
            return Err(self.error(Problem::End { needed: width, left: self.rest.len() }));
        };
        let char = str::from_utf8(bytes).ok().and_then(|text| text.chars().next());
        let char = char.ok_or_else(|| self.error(Problem::Char))?;
        self.rest = rest;
        Ok(char)
    }

    /// Reads how many elements follow, all but a few of which need at least a byte. Elements that are owed
    /// already need theirs, so that nested sequences cannot each announce as much as there is.
    #[inline]
    fn count(&mut self) -> Result<usize, CodecError> {
        let announced = u64::from_le_bytes(self.array()?);
        let left = self.rest.len().saturating_sub(self.owed);
        match usize::try_from(announced) {
            Ok(count) if count <= left => Ok(count),
            Ok(count) if count - left <= PAYLOAD_EMPTY_ELEMENTS_MAX => Ok(count),
            _ => Err(self.error(Problem::Length { announced, left })),
        }
    }

    #[inline]
    fn empty_element(&mut self) -> Result<(), CodecError> {
        self.empty_elements += 1;
        if self.empty_elements > PAYLOAD_EMPTY_ELEMENTS_MAX {
            return Err(self.error(Problem::EmptyElements));
        }
        Ok(())
    }

    /// Counts how much of the `memory` of an element exceeds [`PAYLOAD_GROWTH`] times its bytes. `before`
    /// bytes were left before it.
    #[inline]
    fn grow(&mut self, memory: usize, before: usize) -> Result<(), CodecError> {
        let bytes = PAYLOAD_GROWTH * (before - self.rest.len());
        // Never true for numbers, so neither check costs sequences of them anything.
        if memory > bytes {
            self.grown += memory - bytes;
            if self.grown > PAYLOAD_GROWN_BYTES_MAX {
                return Err(self.error(Problem::Grown));
            }
        }
        Ok(())
    }
}

/// Reads one value, `depth` levels below the root.
struct Decoder<'a, 'de> {
    input: &'a mut Input<'de>,
    depth: usize,
}

impl<'a, 'de> Decoder<'a, 'de> {
    /// Returns the decoder for what is inside this value.
    #[inline]
    fn deeper(self) -> Result<Self, CodecError> {
        if self.depth == PAYLOAD_DEPTH_MAX {
            return Err(self.input.error(Problem::Depth));
        }
        Ok(Self { input: self.input, depth: self.depth + 1 })
    }

    /// Reads as many values as the type has.
    #[inline]
    fn fields<V: Visitor<'de>>(self, count: usize, visitor: V) -> Result<V::Value, CodecError> {
        let Self { input, depth } = self.deeper()?;
        visitor.visit_seq(Fields { input, depth, left: count })
    }

    /// Reads as many values as the bytes announce.
    #[inline]
    fn elements<R>(
        self,
        visit: impl FnOnce(Elements<'_, 'de>) -> Result<R, CodecError>,
    ) -> Result<R, CodecError> {
        let Self { input, depth } = self.deeper()?;
        let count = input.count()?;
        let inside = Input { owed: input.owed + count, ..*input };
        let value = visit(Elements { input: inside, parent: input, depth, left: count })?;
        match input.unread {
            0 => Ok(value),
            left => Err(input.error(Problem::ElementsLeft(left))),
        }
    }

    #[cold]
    fn not_self_describing<R>(self) -> Result<R, CodecError> {
        Err(self.input.error(Problem::NotSelfDescribing))
    }
}

macro_rules! little_endian {
    ($($deserialize:ident => $visit:ident($number:ty)),* $(,)?) => {$(
        #[inline]
        fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
            visitor.$visit(<$number>::from_le_bytes(self.input.array()?))
        }
    )*};
}

impl<'de> Deserializer<'de> for Decoder<'_, 'de> {
    type Error = CodecError;

    little_endian! {
        deserialize_i8 => visit_i8(i8), deserialize_u8 => visit_u8(u8),
        deserialize_i16 => visit_i16(i16), deserialize_u16 => visit_u16(u16),
        deserialize_i32 => visit_i32(i32), deserialize_u32 => visit_u32(u32),
        deserialize_i64 => visit_i64(i64), deserialize_u64 => visit_u64(u64),
        deserialize_i128 => visit_i128(i128), deserialize_u128 => visit_u128(u128),
        deserialize_f32 => visit_f32(f32), deserialize_f64 => visit_f64(f64),
    }

    #[inline]
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        let offset = self.input.offset();
        match self.input.byte()? {
            0 => visitor.visit_bool(false),
            1 => visitor.visit_bool(true),
            other => Err(CodecError::at(offset, Problem::Bool(other))),
        }
    }

    #[inline]
    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        visitor.visit_char(self.input.char()?)
    }

    #[inline]
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        visitor.visit_borrowed_str(self.input.text()?)
    }

    /// Passes a `String`: its bytes are aligned, and validating those is faster than validating them in
    /// place.
    #[inline]
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        visitor.visit_string(self.input.string()?)
    }

    #[inline]
    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        visitor.visit_borrowed_bytes(self.input.prefixed()?)
    }

    #[inline]
    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        self.deserialize_bytes(visitor)
    }

    #[inline]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        let offset = self.input.offset();
        match self.input.byte()? {
            0 => visitor.visit_none(),
            1 => visitor.visit_some(self.deeper()?),
            other => Err(CodecError::at(offset, Problem::Option(other))),
        }
    }

    #[inline]
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        visitor.visit_unit()
    }

    #[inline]
    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        visitor.visit_unit()
    }

    #[inline]
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        visitor.visit_newtype_struct(self.deeper()?)
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        self.elements(|elements| visitor.visit_seq(elements))
    }

    #[inline]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, CodecError> {
        self.elements(|elements| visitor.visit_map(elements))
    }

    #[inline]
    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, CodecError> {
        self.fields(len, visitor)
    }

    #[inline]
    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        self.fields(len, visitor)
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        self.fields(fields.len(), visitor)
    }

    #[inline]
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        visitor.visit_enum(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, CodecError> {
        self.not_self_describing()
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, CodecError> {
        self.not_self_describing()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, CodecError> {
        self.not_self_describing()
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        false
    }
}

impl<'de> EnumAccess<'de> for Decoder<'_, 'de> {
    type Error = CodecError;
    type Variant = Self;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), CodecError> {
        let offset = self.input.offset();
        let index = u32::from_le_bytes(self.input.array()?);
        let variant =
            seed.deserialize(index.into_deserializer()).map_err(|error: CodecError| error.or_at(offset))?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for Decoder<'_, 'de> {
    type Error = CodecError;

    #[inline]
    fn unit_variant(self) -> Result<(), CodecError> {
        Ok(())
    }

    #[inline]
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, CodecError> {
        seed.deserialize(self.deeper()?)
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, CodecError> {
        self.fields(len, visitor)
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, CodecError> {
        self.fields(fields.len(), visitor)
    }
}

/// The fields of a tuple, array, struct or variant.
struct Fields<'a, 'de> {
    input: &'a mut Input<'de>,
    depth: usize,
    left: usize,
}

impl<'de> SeqAccess<'de> for Fields<'_, 'de> {
    type Error = CodecError;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, CodecError> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(None);
        };
        self.left = left;
        seed.deserialize(Decoder { input: self.input, depth: self.depth }).map(Some)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

/// The elements of a sequence or the entries of a map: as many as a peer announced.
///
/// They are read from a copy of the input, which is written back when the visitor is done with it. A loop
/// over numbers then keeps its position in registers: `Vec<u8>` and `Vec<f64>` decode twice as fast as
/// through `parent`.
struct Elements<'a, 'de> {
    input: Input<'de>,
    parent: &'a mut Input<'de>,
    depth: usize,
    left: usize,
}

impl Drop for Elements<'_, '_> {
    #[inline]
    fn drop(&mut self) {
        self.parent.rest = self.input.rest;
        self.parent.empty_elements = self.input.empty_elements;
        self.parent.grown = self.input.grown;
        self.parent.unread = self.left;
    }
}

impl<'de> Elements<'_, 'de> {
    /// Reads an element, or the key of an entry.
    #[inline]
    fn next<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, CodecError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.input.owed -= 1;
        let before = self.input.rest.len();
        let value = seed.deserialize(Decoder { input: &mut self.input, depth: self.depth })?;
        // Never true for numbers, which the compiler sees.
        if self.input.rest.len() == before {
            self.input.empty_element()?;
        }
        self.input.grow(size_of::<S::Value>(), before)?;
        Ok(Some(value))
    }

    /// Returns for how many elements a visitor may allocate, whatever their size in memory. Beyond a start,
    /// every eight bytes vouch for one element; a sequence of smaller ones grows as they come.
    #[inline]
    fn hint(&self) -> Option<usize> {
        let bytes = self.input.rest.len().saturating_sub(self.parent.owed);
        Some(self.left.min(bytes).min(HINT_START + bytes / 8))
    }
}

impl<'de> SeqAccess<'de> for Elements<'_, 'de> {
    type Error = CodecError;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, CodecError> {
        self.next(seed)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

impl<'de> MapAccess<'de> for Elements<'_, 'de> {
    type Error = CodecError;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, CodecError> {
        self.next(seed)
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, CodecError> {
        let before = self.input.rest.len();
        let value = seed.deserialize(Decoder { input: &mut self.input, depth: self.depth })?;
        self.input.grow(size_of::<S::Value>(), before)?;
        Ok(value)
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}
