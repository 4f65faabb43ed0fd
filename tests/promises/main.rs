//! What a call promises, line by line, among processes: children that are killed, frozen, restarted and renamed.
//!
//! Every child is this program again, in a role that the environment names, or the `daffi-controller` program. A
//! callee writes down what it executes in a file, which survives it, and the tests compare that with what the callers
//! were told.

#![cfg(unix)]
#![allow(
    unreachable_pub,
    clippy::result_large_err,
    reason = "it is one program, and its callbacks are as users write them"
)]

mod cgroup;
#[cfg(target_os = "linux")]
mod delays;
mod proxy;
mod roles;
mod support;

mod broadcast;
mod callee_death;
mod clocks;
mod controller_loss;
mod crowds;
mod deadlines;
mod names;
mod nesting;
mod networks;
mod order;
mod outcomes;
mod overload;
mod period;
mod promptness;
mod seed;
mod shortage;
mod storm;
mod strategies;
mod wires;

/// Not a test: what a child runs. Without a role there is nothing to do.
#[test]
fn role() {
    roles::run();
}
