//! `g.call`: where calls are made.

use std::marker::PhantomData;

/// Makes calls: the field `call` of a `Global`, and `ctx.call` in a callback.
#[derive(Debug, Clone)]
pub struct Caller {
    _private: (),
}

/// A call that is not sent until a modifier says how.
#[must_use = "a call is not sent until a modifier is applied: `& FG`, `& BG`, `& NO_RETURN`, `.await`, …"]
#[derive(Debug)]
pub struct Call<R> {
    result: PhantomData<fn() -> R>,
}
