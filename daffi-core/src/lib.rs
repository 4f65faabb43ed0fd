//! The foundation that node and controller of [daffi](https://docs.rs/daffi) share.
#![doc = ""]

mod address;
pub use address::{Address, AddressError};

mod error;
pub use error::{Error, RemoteError, Result};

pub mod fault;
pub mod payload;
pub mod signature;
