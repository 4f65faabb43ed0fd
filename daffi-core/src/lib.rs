//! The foundation shared by the node and the controller of [daffi](https://docs.rs/daffi): frames, payload
//! codec, errors, transports, and the interface that a controller implements.
//!
//! The modules `frame`, `payload`, `queue`, `heartbeat`, `limits` and `names` are pure: they use neither
//! sockets nor clocks. `reactor`, `transport` and `outbox` do the I/O.

mod address;
pub use address::{Address, AddressError};

pub mod answer;
pub mod buffer_pool;

pub mod controller;

mod error;
pub use error::{Error, RemoteError, Result};

pub mod fault;
pub mod frame;
pub mod heartbeat;

#[doc(hidden)]
pub mod host;

pub mod limits;
pub use limits::Limits;

pub mod names;
pub mod outbox;
pub mod payload;
mod queue;
pub mod reactor;
pub mod signature;

#[doc(hidden)]
pub mod survive;

mod sync;

#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulation;

pub mod transport;

/// What this crate's macros expand to. Not part of the API.
#[doc(hidden)]
pub mod __private {
    pub use inventory;
}
