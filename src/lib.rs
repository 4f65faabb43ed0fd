//! placeholder

pub use daffi_core::{Error, Result};
pub use daffi_macros::{callback, fetcher};
pub use daffi_node::{Call, Caller, Context};

#[doc(hidden)]
pub mod __private {
    pub use daffi_node::private::*;
}
