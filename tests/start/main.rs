//! How a `Global` starts, waits, stops, and lives in every kind of thread and runtime: several of them in one process.

#![cfg(unix)]
#![allow(
    unreachable_pub,
    clippy::result_large_err,
    reason = "it is one program, and its callbacks are as users write them"
)]

mod support;

mod addresses;
mod builder;
mod deadlocks;
mod mixing;
mod nesting;
mod stopping;
mod waiting;
