//! Locks and atomics of the parts in which threads hand something over to each other. They take them from here, so
//! that [shuttle](https://docs.rs/shuttle) can put the threads in every order in tests.

#[cfg(not(all(test, shuttle)))]
pub(crate) use {
    parking_lot::{Condvar, Mutex},
    std::sync::atomic,
};

#[cfg(all(test, shuttle))]
pub(crate) use daffi_test_sync::{Condvar, Mutex, atomic};
