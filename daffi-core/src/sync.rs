//! Locks, atomics and thread locals for code in which threads hand something over to each other. Importing
//! them from here lets [shuttle](https://docs.rs/shuttle) run the threads in every order in tests.

#[cfg(not(all(test, shuttle)))]
pub(crate) use {
    parking_lot::{Condvar, Mutex},
    std::{sync::atomic, thread_local},
};

#[cfg(all(test, shuttle))]
pub(crate) use daffi_test_sync::{Condvar, Mutex, atomic, thread_local};
