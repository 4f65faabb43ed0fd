//! The controller of daffi.

pub mod router;
mod table;
