//! Shuttle's `Mutex` and `Condvar` behind parking_lot's signatures.

use std::{
    cell::Cell,
    ops::{Deref, DerefMut},
    time::{Duration, Instant},
};

use shuttle::{rand::Rng, sync, thread};

std::thread_local! {
    /// Shuttle runs all threads of a test on one, so this is for each test.
    static STILL: Cell<bool> = const { Cell::new(false) };
}

/// Runs a test in which no wait ends because of time. Whoever relies on that waits for ever.
pub fn while_time_stands_still(run: impl FnOnce()) {
    STILL.set(true);
    run();
    STILL.set(false);
}

/// As `parking_lot::Mutex`.
#[derive(Debug, Default)]
pub struct Mutex<T>(sync::Mutex<T>);

/// As `parking_lot::MutexGuard`.
#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    /// `None` only while its thread waits at a [`Condvar`].
    guard: Option<sync::MutexGuard<'a, T>>,
}

/// As `parking_lot::Condvar`.
#[derive(Debug, Default)]
pub struct Condvar(sync::Condvar);

/// As `parking_lot::WaitTimeoutResult`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl<T> Mutex<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    /// Takes the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let guard = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        MutexGuard { mutex: self, guard: Some(guard) }
    }

    /// Takes the lock if nobody has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let guard = match self.0.try_lock() {
            Ok(guard) => guard,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        Some(MutexGuard { mutex: self, guard: Some(guard) })
    }

    /// The value of a lock that nobody else refers to.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_deref().expect("the lock is held outside of waits")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_deref_mut().expect("the lock is held outside of waits")
    }
}

impl<T> MutexGuard<'_, T> {
    /// Does something without the lock, and takes it again.
    pub fn unlocked<U>(guard: &mut Self, run: impl FnOnce() -> U) -> U {
        guard.guard = None;
        let result = run();
        *guard = guard.mutex.lock();
        result
    }
}

impl Condvar {
    /// A condition that nobody waits for yet.
    pub const fn new() -> Self {
        Self(sync::Condvar::new())
    }

    /// Waits until it is notified.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.guard.take().expect("the lock is held outside of waits");
        let held = self.0.wait(held).unwrap_or_else(|poisoned| poisoned.into_inner());
        guard.guard = Some(held);
    }

    /// Waits for some time, after which it may or may not have been notified.
    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) -> WaitTimeoutResult {
        if STILL.get() {
            self.wait(guard);
            return WaitTimeoutResult(false);
        }
        guard.guard = None;
        thread::yield_now();
        *guard = guard.mutex.lock();
        WaitTimeoutResult(shuttle::rand::thread_rng().r#gen())
    }

    /// As [`wait_for`](Self::wait_for).
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> WaitTimeoutResult {
        self.wait_for(guard, Duration::ZERO)
    }

    /// Wakes one of those that wait.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all of those that wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

impl WaitTimeoutResult {
    /// Whether time ran out.
    pub fn timed_out(&self) -> bool {
        self.0
    }
}
