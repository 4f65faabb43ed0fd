//! How many requests a node holds, and waiting until they are over.

use std::time::Instant;

use crate::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// How many requests are held, running or waiting to run. Others may be still to be looked at; those are elsewhere, under a lock.
#[derive(Debug, Default)]
pub(super) struct Occupancy {
    held: AtomicUsize,
    /// Somebody waits for the last request.
    draining: AtomicBool,
    drained: Condvar,
}

impl Occupancy {
    /// A request is held from now on. Called with the lock, or before what the lock protects says that it was looked at.
    pub(super) fn enter(&self) {
        self.held.fetch_add(1, Ordering::AcqRel);
    }

    /// How many are held.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// One that was held is over.
    pub(super) fn leave<T>(&self, lock: &Mutex<T>) {
        // Together with `draining` in one order: either this is seen there, or that is seen here.
        self.held.fetch_sub(1, Ordering::SeqCst);
        if self.draining.load(Ordering::SeqCst) {
            // The lock orders this after the look at `held` that found it too large.
            drop(lock.lock());
            self.drained.notify_all();
        }
    }

    /// Nothing is left to be looked at, which was found with the lock.
    pub(super) fn looked(&self) {
        if self.draining.load(Ordering::SeqCst) {
            self.drained.notify_all();
        }
    }

    /// Waits until `but` are left and nothing is still to be looked at, as `waits` says, or until `deadline`; says whether it
    /// came to that. Before anything can begin again, `close` sees to it that nothing does.
    pub(super) fn drain<T>(
        &self,
        lock: &Mutex<T>,
        but: usize,
        deadline: Instant,
        waits: impl Fn(&T) -> bool,
        close: impl FnOnce(&mut T),
    ) -> bool {
        self.draining.store(true, Ordering::SeqCst);
        let mut locked = lock.lock();
        let is_left = |locked: &T| self.held() > but || waits(locked);
        while is_left(&locked) {
            if self.drained.wait_until(&mut locked, deadline).timed_out() {
                break;
            }
        }
        close(&mut locked);
        !is_left(&locked)
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;
