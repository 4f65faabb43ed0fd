//! The controller of [daffi](https://docs.rs/daffi): it knows every node and routes calls between them.
//!
//! ```text
//!  sockets ──► peer ──► ┌───────────────┐ ──► ports ──► outboxes ──► sockets
//!  node in              │ hub: one lock │
//!  memory ────► peer ──► │   ┌────────┐  │ ──► ports ──► the node's port
//!                       │   │ router │  │
//!                       └───┴────────┴──┘
//! ```
//!
//! [`router`] decides everything and does no I/O; the rest moves bytes. Payloads are never decoded.
//!
//! Linking this crate is enough for `Global::builder().init_controller(true)`. [`Server`] runs a controller
//! without a node, as the `daffi-controller` program does.

mod hub;
mod peer;
mod ports;
pub mod router;
mod server;
mod sync;
mod table;

pub use server::{DefaultController, Server};

/// What [`Server::start`] takes.
pub use daffi_core::controller::ControllerConfig;
