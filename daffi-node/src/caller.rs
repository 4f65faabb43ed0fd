//! `g.call`: where calls are made.

use std::marker::PhantomData;

use daffi_core::signature::Signature;
use serde::{Serialize, de::DeserializeOwned};

/// Makes calls: the field `call` of a `Global`, and `ctx.call` in a callback.
#[derive(Debug, Clone)]
pub struct Caller {
    _private: (),
}

impl Caller {
    /// A call by name.
    pub fn by_name<R: DeserializeOwned, A: Serialize>(&self, callback: &str, arguments: A) -> Call<R> {
        let _ = (callback, Signature::of_call::<A, R>(), arguments);
        Call { result: PhantomData }
    }

    /// The call that an expansion of `#[fetcher]` makes.
    #[doc(hidden)]
    pub fn typed<R, A: Serialize>(
        &self,
        callback: &'static str,
        signature: &'static Signature,
        arguments: A,
    ) -> Call<R> {
        let _ = (callback, signature, arguments);
        Call { result: PhantomData }
    }
}

/// A call that is not sent until a modifier says how.
#[must_use = "a call is not sent until a modifier is applied: `& FG`, `& BG`, `& NO_RETURN`, `.await`, …"]
#[derive(Debug)]
pub struct Call<R> {
    result: PhantomData<fn() -> R>,
}
