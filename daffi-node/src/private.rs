//! What expansions of `#[callback]` and `#[fetcher]` refer to. Not public API: it changes with the macros.
//!
//! Several traits here answer questions about a type that the macro sees only as tokens: can it be
//! deserialized, is it a `Result`, is its error one of `std`. The answer comes from method resolution: a
//! method is called on a [`Probe`] behind some references, the implementation for the most references is
//! found first, and if its bounds do not hold, the next one is taken. That works where the type is written
//! out, as it is in an expansion.

use std::{convert::Infallible, error::Error, fmt, marker::PhantomData};

use bytes::Bytes;
use daffi_core::{
    fault::{Fault, FaultKind},
    payload::{Codec, Whole},
    signature::type_name,
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, IgnoredAny, SeqAccess, Visitor},
};

pub use std::{
    concat, file, line,
    option::Option,
    result::Result::{self, Err, Ok},
    string::String,
    sync::{Arc, OnceLock},
    unreachable,
    vec::Vec,
};

pub use daffi_core::{
    Error as DaffiError,
    signature::{Signature, WireType},
};
pub use inventory;

pub use crate::{
    Call, Caller, Context,
    callback::{BoxFuture, Callback, Handler, Invocation, Outcome},
    registration::{Registration, linked},
    singleton::{Cell, Instance, Singleton, instance},
};

/// Decodes the arguments of a call, as a tuple.
///
/// # Errors
/// [`FaultKind::BadArguments`].
// What is wanted is passed as values, since then the compiler points at the tuple element that does not fit.
// With types it does not.
pub fn decode<W: Wants>(invocation: &Invocation, _: W) -> Result<W::Arguments, Box<Fault>> {
    arguments(invocation).map(W::arguments)
}

/// Decodes the arguments of a call, as one type.
pub(crate) fn arguments<A: DeserializeOwned>(invocation: &Invocation) -> Result<A, Box<Fault>> {
    invocation
        .codec
        .decode_from(&invocation.body)
        .map_err(|error| Box::new(Fault::new(FaultKind::BadArguments, error.to_string())))
}

/// Asks for an argument of type `T`.
#[derive(Debug)]
pub struct Want<T>(PhantomData<fn() -> T>);

/// Asks for an argument of type `T`.
pub const fn want<T>() -> Want<T> {
    Want(PhantomData)
}

/// A tuple of [`Want`].
pub trait Wants {
    /// The tuple of what is wanted.
    type Arguments;
    /// The form in which it is decoded.
    type Decoded: DeserializeOwned;

    /// Unwraps what was decoded.
    fn arguments(decoded: Self::Decoded) -> Self::Arguments;
}

impl Wants for () {
    type Arguments = NoArguments;
    type Decoded = NoArguments;

    fn arguments(decoded: NoArguments) -> NoArguments {
        decoded
    }
}

macro_rules! wants {
    ($($name:ident)*) => {
        // `DeserializeOwned` would hide serde's hint to derive `Deserialize`.
        impl<$($name: for<'de> Deserialize<'de> + 'static),*> Wants for ($(Want<$name>,)*) {
            type Arguments = ($($name,)*);
            type Decoded = ($(Whole<$name>,)*);

            #[allow(non_snake_case)]
            fn arguments(($(Whole($name),)*): Self::Decoded) -> Self::Arguments {
                ($($name,)*)
            }
        }
    };
}

wants!(A);
wants!(A B);
wants!(A B C);
wants!(A B C D);
wants!(A B C D E);
wants!(A B C D E F);
wants!(A B C D E F G);
wants!(A B C D E F G H);
wants!(A B C D E F G H I);
wants!(A B C D E F G H I J);
wants!(A B C D E F G H I J K);
wants!(A B C D E F G H I J K L);
wants!(A B C D E F G H I J K L M);
wants!(A B C D E F G H I J K L M N);
wants!(A B C D E F G H I J K L M N O);
wants!(A B C D E F G H I J K L M N O P);

/// Encodes the result of a call.
///
/// # Errors
/// [`FaultKind::BadResult`].
pub fn encode<R: Serialize + ?Sized>(codec: Codec, result: &R) -> Outcome {
    codec.encode_apart(result).map_err(|error| Box::new(Fault::new(FaultKind::BadResult, error.to_string())))
}

/// Returns the fault of a callback that returned this error.
pub fn failed<E: fmt::Display>(error: &E, sources: Vec<String>, payload: Bytes) -> Box<Fault> {
    let mut fault = Fault::new(FaultKind::Failed, error.to_string()).details(sources);
    fault.type_name = type_name::<E>();
    fault.payload = payload;
    Box::new(fault)
}

/// Boxes the future of an `async fn` for the executor.
pub fn boxed(future: impl Future<Output = Outcome> + Send + 'static) -> BoxFuture<Outcome> {
    Box::pin(future)
}

/// Returns the result type of a fetcher.
pub fn result<R: for<'de> Deserialize<'de>>() -> WireType {
    WireType::traced::<R>()
}

/// The arguments of a callback that takes none: an empty array in JSON, nothing at all in bincode.
#[derive(Debug)]
pub struct NoArguments;

impl<'de> Deserialize<'de> for NoArguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // JSON has two ways to express nothing, and callers use both.
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(Nothing)
        } else {
            deserializer.deserialize_unit(Nothing)
        }
    }
}

struct Nothing;

impl<'de> Visitor<'de> for Nothing {
    type Value = NoArguments;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no arguments")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<NoArguments, E> {
        Ok(NoArguments)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut arguments: A) -> Result<NoArguments, A::Error> {
        match arguments.next_element::<IgnoredAny>()? {
            None => Ok(NoArguments),
            Some(_) => Err(serde::de::Error::invalid_length(1, &self)),
        }
    }
}

/// Answers questions about the type `T`, without a value of it.
pub struct Probe<T: ?Sized>(PhantomData<fn(*const T)>);

impl<T: ?Sized> Probe<T> {
    /// Returns a probe for the type.
    pub const fn new() -> Self {
        Self(PhantomData)
    }

    /// Returns a probe for the value's type.
    pub const fn of(_: &T) -> Self {
        Self(PhantomData)
    }
}

impl<T: ?Sized> Default for Probe<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: ?Sized> fmt::Debug for Probe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}

/// `(&Probe::<T>::new()).wire_type()`: the type, traced if it can be.
pub trait WireTypeOf {
    /// The type in a signature.
    fn wire_type(&self) -> WireType;
}

impl<T: DeserializeOwned> WireTypeOf for Probe<T> {
    fn wire_type(&self) -> WireType {
        WireType::traced::<T>()
    }
}

impl<T: ?Sized> WireTypeOf for &Probe<T> {
    fn wire_type(&self) -> WireType {
        WireType::named::<T>()
    }
}

/// `(&&&&Probe::<R>::new()).result_type()`: the part of a result that travels, which of a `Result<T, E>` is
/// the `T`.
pub trait ResultTypeOf {
    /// The type in a signature.
    fn result_type(&self) -> WireType;
}

impl<T: DeserializeOwned, E> ResultTypeOf for &&&Probe<Result<T, E>> {
    fn result_type(&self) -> WireType {
        WireType::traced::<T>()
    }
}

impl<T, E> ResultTypeOf for &&Probe<Result<T, E>> {
    fn result_type(&self) -> WireType {
        WireType::named::<T>()
    }
}

impl<T: DeserializeOwned> ResultTypeOf for &Probe<T> {
    fn result_type(&self) -> WireType {
        WireType::traced::<T>()
    }
}

impl<T: ?Sized> ResultTypeOf for Probe<T> {
    fn result_type(&self) -> WireType {
        WireType::named::<T>()
    }
}

/// `(&Probe::<R>::new()).named_result_type()`: the same for a type with lifetimes.
///
/// Such a type must not be asked whether it can be deserialized: the answer would ignore the lifetimes, and
/// be wrong.
pub trait NamedResultTypeOf {
    /// The type in a signature.
    fn named_result_type(&self) -> WireType;
}

impl<T, E> NamedResultTypeOf for Probe<Result<T, E>> {
    fn named_result_type(&self) -> WireType {
        WireType::named::<T>()
    }
}

impl<T: ?Sized> NamedResultTypeOf for &Probe<T> {
    fn named_result_type(&self) -> WireType {
        WireType::named::<T>()
    }
}

/// `(&Probe::of(&returned)).split(returned)`: whatever a callback returns, as a `Result`.
pub trait Split<R> {
    /// What travels.
    type Value;
    /// What becomes a fault.
    type Error;

    /// The value or the error.
    fn split(&self, returned: R) -> Result<Self::Value, Self::Error>;
}

impl<T, E> Split<Result<T, E>> for Probe<Result<T, E>> {
    type Value = T;
    type Error = E;

    fn split(&self, returned: Result<T, E>) -> Result<T, E> {
        returned
    }
}

impl<T> Split<T> for &Probe<T> {
    type Value = T;
    type Error = Infallible;

    fn split(&self, returned: T) -> Result<T, Infallible> {
        Ok(returned)
    }
}

/// `(&&&&Probe::of(&error)).sources(&error)`: the texts of the error's sources, nearest first.
pub trait SourcesOf<E: ?Sized> {
    /// Returns the texts of the chain, without the error itself.
    fn sources(&self, error: &E) -> Vec<String>;
}

impl<E: Error> SourcesOf<E> for &&&Probe<E> {
    fn sources(&self, error: &E) -> Vec<String> {
        chain(error.source())
    }
}

// `Box<dyn Error>`, and errors such as anyhow's, do not implement `Error` themselves but contain one.
impl<E: AsRef<dyn Error + Send + Sync>> SourcesOf<E> for &&Probe<E> {
    fn sources(&self, error: &E) -> Vec<String> {
        chain(error.as_ref().source())
    }
}

impl<E: AsRef<dyn Error>> SourcesOf<E> for &Probe<E> {
    fn sources(&self, error: &E) -> Vec<String> {
        chain(error.as_ref().source())
    }
}

impl<E> SourcesOf<E> for Probe<E> {
    fn sources(&self, _: &E) -> Vec<String> {
        Vec::new()
    }
}

/// Returns the texts of an error and its sources. An endless chain is cut off.
pub(crate) fn chain(first: Option<&(dyn Error + 'static)>) -> Vec<String> {
    const LINKS_MAX: usize = 32;
    std::iter::successors(first, |&error| error.source()).take(LINKS_MAX).map(ToString::to_string).collect()
}

/// `(&Probe::of(&error)).payload(&error)`: the error itself, if it can travel.
pub trait PayloadOf<E: ?Sized> {
    /// Returns the error in bincode, or nothing.
    fn payload(&self, error: &E) -> Bytes;
}

impl<E: Serialize> PayloadOf<E> for Probe<E> {
    fn payload(&self, error: &E) -> Bytes {
        // Its text travels in any case.
        Codec::Bincode.encode(error).unwrap_or_default()
    }
}

impl<E> PayloadOf<E> for &Probe<E> {
    fn payload(&self, _: &E) -> Bytes {
        Bytes::new()
    }
}

#[cfg(test)]
mod tests {
    use daffi_core::payload::Bytes as Uncopied;

    use super::*;

    #[test]
    fn arguments_are_where_they_were_received_and_results_where_they_were_returned() {
        let body = Codec::Bincode.encode(&(1u8, vec![7u8; 50_000], "text")).unwrap();
        let range = body.as_ptr_range();
        let invocation = Invocation { body, codec: Codec::Bincode };
        let wanted = (want::<u8>(), want::<Uncopied>(), want::<String>());
        let (number, bytes, text) = decode(&invocation, wanted).unwrap();
        assert_eq!((number, bytes.len(), text.as_str()), (1, 50_000, "text"));
        assert!(range.contains(&bytes.as_ptr()));

        let mut result = encode(Codec::Bincode, &bytes).unwrap();
        assert_eq!(result.split_to(8).into_bytes(), 50_000u64.to_le_bytes().as_slice());
        assert_eq!(result.into_bytes().as_ptr(), bytes.as_ptr());
    }
}
