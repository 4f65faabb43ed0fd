//! The locks and atomics with which threads hand things over to each other. Taking them from here lets
//! [shuttle](https://docs.rs/shuttle) run the threads in every order in tests.

#[cfg(not(all(test, shuttle)))]
pub(crate) use {
    parking_lot::{Condvar, Mutex},
    std::sync::atomic,
};

#[cfg(all(test, shuttle))]
pub(crate) use daffi_test_sync::{Condvar, Mutex, atomic};
