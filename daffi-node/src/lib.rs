//! The node side of [daffi](https://docs.rs/daffi): `Global`, calls and modifiers, callbacks and where they run.

mod caller;
pub use caller::{Call, Caller};

mod context;
pub use context::Context;
