//! Locks, atomics and threads for the parts in which threads hand something over to each other. They take
//! them from here so that, in tests, [shuttle](https://docs.rs/shuttle) can interleave the threads in every
//! order.

#[cfg(not(all(test, shuttle)))]
pub(crate) use {
    parking_lot::{Condvar, Mutex, MutexGuard},
    std::{sync::atomic, thread},
};

#[cfg(all(test, shuttle))]
pub(crate) use daffi_test_sync::{Condvar, Mutex, MutexGuard, atomic, shuttle::thread};
