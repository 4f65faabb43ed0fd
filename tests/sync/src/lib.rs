//! What the `sync` modules of daffi's crates stand for in tests that [shuttle] schedules: the parts of parking_lot and
//! of std that they use, with the same names and signatures. Time does not pass here; a wait that has an end may end
//! whenever shuttle likes, or, `while_time_stands_still`, when it is notified and no sooner.
//!
//! [shuttle]: https://docs.rs/shuttle
#![cfg(shuttle)]

pub use shuttle;
pub use shuttle::sync::atomic;

mod local;
pub use local::LocalCell;

mod lock;
pub use lock::{Condvar, Mutex, MutexGuard, WaitTimeoutResult, while_time_stands_still};
