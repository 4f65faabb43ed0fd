//! A serializer for single bytes, without the overhead that other values need.

use std::any::type_name;

use serde::{
    Serialize, Serializer,
    ser::{Error, Impossible},
};

use crate::payload::CodecError;

/// Returns whether values of this type are bytes, which [`ToByte`] accepts, or references to them.
///
/// The compiler evaluates this. Type names are no proof, but if another type ever has one of these names,
/// [`ToByte`] refuses it.
#[inline]
pub(super) fn is_byte<T: ?Sized>() -> bool {
    matches!(type_name::<T>(), "u8" | "&u8")
}

/// Returns the one byte that it is given.
pub(super) struct ToByte;

#[cold]
fn other<T>() -> Result<T, CodecError> {
    Err(CodecError::custom("something other than a byte passes for one"))
}

macro_rules! refuse {
    ($($method:ident($($type:ty),*);)*) => {$(
        fn $method(self, $(_: $type),*) -> Result<u8, CodecError> {
            other()
        }
    )*};
}

macro_rules! refuse_compounds {
    ($($method:ident($($type:ty),*) -> $compound:ident;)*) => {$(
        fn $method(self, $(_: $type),*) -> Result<Self::$compound, CodecError> {
            other()
        }
    )*};
}

impl Serializer for ToByte {
    type Ok = u8;
    type Error = CodecError;
    type SerializeSeq = Impossible<u8, CodecError>;
    type SerializeMap = Impossible<u8, CodecError>;
    type SerializeTuple = Impossible<u8, CodecError>;
    type SerializeTupleStruct = Impossible<u8, CodecError>;
    type SerializeTupleVariant = Impossible<u8, CodecError>;
    type SerializeStruct = Impossible<u8, CodecError>;
    type SerializeStructVariant = Impossible<u8, CodecError>;

    #[inline]
    fn serialize_u8(self, value: u8) -> Result<u8, CodecError> {
        Ok(value)
    }

    refuse! {
        serialize_bool(bool); serialize_i8(i8); serialize_i16(i16); serialize_i32(i32); serialize_i64(i64);
        serialize_u16(u16); serialize_u32(u32); serialize_u64(u64); serialize_f32(f32); serialize_f64(f64);
        serialize_char(char); serialize_str(&str); serialize_bytes(&[u8]); serialize_none(); serialize_unit();
        serialize_unit_struct(&'static str); serialize_unit_variant(&'static str, u32, &'static str);
    }

    refuse_compounds! {
        serialize_seq(Option<usize>) -> SerializeSeq; serialize_map(Option<usize>) -> SerializeMap;
        serialize_tuple(usize) -> SerializeTuple; serialize_tuple_struct(&'static str, usize) -> SerializeTupleStruct;
        serialize_struct(&'static str, usize) -> SerializeStruct;
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> SerializeTupleVariant;
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> SerializeStructVariant;
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<u8, CodecError> {
        other()
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: &T,
    ) -> Result<u8, CodecError> {
        other()
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<u8, CodecError> {
        other()
    }
}
