//! The controller over real sockets, in memory, and as a program.

#![cfg(unix)]

mod common;
mod memory;
#[cfg(feature = "program")]
mod program;
mod sockets;
mod threads;
