//! The node side of [daffi](https://docs.rs/daffi): `Global`, calls and modifiers, callbacks and where they run.

mod caller;
pub use caller::{Call, Caller};

mod closure;
pub use closure::Closure;

mod context;
pub use context::Context;

mod callback;
mod registration;
mod singleton;

#[doc(hidden)]
pub mod private;
