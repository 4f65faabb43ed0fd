//! How many requests a node holds, and waiting until they are over.

use std::time::Instant;

use crate::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// How many requests are held, running or waiting to run. Others may still have to be looked at; those are
/// elsewhere, under a lock.
#[derive(Debug, Default)]
pub(super) struct Occupancy {
    held: AtomicUsize,
    /// Whether somebody waits for the last request.
    draining: AtomicBool,
    drained: Condvar,
}

impl Occupancy {
    /// Counts a request as held. Called with the lock held, or before what the lock protects says that it was
    /// looked at.
    pub(super) fn enter(&self) {
        self.held.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns how many are held.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// Notes that a held request is over.
    pub(super) fn leave<T>(&self, lock: &Mutex<T>) {
        // In one order with `draining`: either the drain sees this, or this sees the drain.
        self.held.fetch_sub(1, Ordering::SeqCst);
        if self.draining.load(Ordering::SeqCst) {
            // The lock orders this after the check of `held` that found it too large.
            drop(lock.lock());
            self.drained.notify_all();
        }
    }

    /// Notes that nothing is left to be looked at, as found with the lock held.
    pub(super) fn looked(&self) {
        if self.draining.load(Ordering::SeqCst) {
            self.drained.notify_all();
        }
    }

    /// Waits until at most `but` are left and nothing is still to be looked at, which `waits` tells, or until
    /// `deadline`; returns whether the former came about. Before the lock is released, `close` sees to it
    /// that nothing more begins.
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
