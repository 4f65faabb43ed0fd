//! A wire between nodes and their controller that misbehaves: on demand, or at random from a seed.
//!
//! It is a proxy in the test's own process and needs no privileges, so that it can run wherever the tests do. A fault
//! applies to all connections that go through it, those that are there and those that come.

mod dice;
mod proxy;
mod weather;

pub use dice::Dice;
pub use proxy::{Proxy, Target, Way};
pub use weather::{Fault, Weather};
