//! A value that arrives once, for which threads and tasks alike can wait, without any runtime.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::OnceLock,
    task::{Context, Poll, Waker},
    time::Instant,
};

use daffi_core::survive::wake;

use crate::sync::{Condvar, Mutex};

/// A value that arrives once. After that it can be read without a lock.
pub(crate) struct Latch<T> {
    /// Set with the lock of `waiters` held: anyone who looks with that lock, finds nothing and waits, is seen
    /// by the setter.
    value: OnceLock<T>,
    waiters: Mutex<Waiters>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiters {
    first: Option<(Place, Waker)>,
    /// More than one task waits only if the handle is shared, so the first needs no allocation.
    more: Option<BTreeMap<Place, Waker>>,
    last_place: u64,
    threads: usize,
}

/// Identifies a waiting task's waker, so that the task can replace it and take it back, however often it
/// polls. Otherwise the wakers of tasks that gave up would pile up in a long-lived latch, and keep the tasks'
/// memory alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(u64);

impl<T> Latch<T> {
    pub(crate) fn new() -> Self {
        Self { value: OnceLock::new(), waiters: Mutex::default(), arrived: Condvar::new() }
    }

    /// Sets the value unless there is one, and wakes everyone who waits; returns whether it was set.
    pub(crate) fn set(&self, value: T) -> bool {
        self.set_with(|| value, wake)
    }

    /// Like [`set`](Self::set), but makes the value in place, and passes the wakers of tasks to `wake`.
    /// `value` is called with the lock held: it must not run foreign code, and must not panic.
    pub(crate) fn set_with(&self, value: impl FnOnce() -> T, mut wake: impl FnMut(Waker)) -> bool {
        let (first, more, threads) = {
            let mut waiters = self.waiters.lock();
            if self.is_set() {
                return false;
            }
            self.value.get_or_init(value);
            (waiters.first.take(), waiters.more.take(), waiters.threads)
        };
        if threads > 0 {
            self.arrived.notify_all();
        }
        if let Some((_, waker)) = first {
            wake(waker);
        }
        if let Some(more) = more {
            more.into_values().for_each(wake);
        }
        true
    }

    pub(crate) fn is_set(&self) -> bool {
        self.value.get().is_some()
    }

    /// Like [`is_set`](Self::is_set), but looks with the lock held, and so in one order with everything else
    /// that is done under locks: for threads that meanwhile wait for, and are woken by, something else.
    pub(crate) fn is_set_in_order(&self) -> bool {
        let _waiters = self.waiters.lock();
        self.is_set()
    }

    /// Returns the value, if it has arrived.
    pub(crate) fn get(&self) -> Option<&T> {
        self.value.get()
    }

    /// Blocks this thread until the value arrives, or until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Option<&T> {
        if let Some(value) = self.get() {
            return Some(value);
        }
        let mut waiters = self.waiters.lock();
        waiters.threads += 1;
        while !self.is_set() {
            match deadline {
                None => self.arrived.wait(&mut waiters),
                Some(deadline) => {
                    if self.arrived.wait_until(&mut waiters, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        waiters.threads -= 1;
        self.get()
    }

    /// Waits for the value. The future can be dropped and created again at any time.
    pub(crate) fn arrival(&self) -> Arrival<'_, T> {
        Arrival { latch: self, place: None }
    }

    /// Waits for the value on behalf of a future that owns `place`, which starts out empty. A future that
    /// gives up before the value is there calls [`leave`](Self::leave).
    pub(crate) fn poll(&self, context: &Context<'_>, place: &mut Option<Place>) -> Poll<&T> {
        if let Some(value) = self.get() {
            return Poll::Ready(value);
        }
        // Wakers are foreign code, even when cloned or dropped: not with the lock held.
        let mut waker = place.is_none().then(|| context.waker().clone());
        loop {
            let mut waiters = self.waiters.lock();
            if let Some(value) = self.get() {
                return Poll::Ready(value);
            }
            let place = *place.get_or_insert_with(|| {
                waiters.last_place += 1;
                Place(waiters.last_place)
            });
            if waker.is_none() && !waiters.is_known(place, context.waker()) {
                drop(waiters);
                waker = Some(context.waker().clone());
                continue;
            }
            let replaced = waker.take().and_then(|waker| waiters.wait_at(place, waker));
            drop(waiters);
            drop(replaced);
            return Poll::Pending;
        }
    }

    /// Called when the task at this place no longer waits.
    pub(crate) fn leave(&self, place: Option<Place>) {
        let Some(place) = place else { return };
        let mut waiters = self.waiters.lock();
        let first = waiters.first.take_if(|(owner, _)| *owner == place).map(|(_, waker)| waker);
        let waker = first.or_else(|| waiters.more.as_mut()?.remove(&place));
        drop(waiters);
        drop(waker);
    }
}

impl Waiters {
    /// Returns whether this waker, or one for the same task, is at this place.
    fn is_known(&self, place: Place, waker: &Waker) -> bool {
        let known = match &self.first {
            Some((owner, known)) if *owner == place => Some(known),
            _ => self.more.as_ref().and_then(|more| more.get(&place)),
        };
        known.is_some_and(|known| known.will_wake(waker))
    }

    /// Puts a waker at a place; returns the previous one.
    #[must_use = "it is to be dropped without the lock"]
    fn wait_at(&mut self, place: Place, waker: Waker) -> Option<Waker> {
        match &mut self.first {
            Some((owner, known)) if *owner == place => Some(std::mem::replace(known, waker)),
            first @ None if self.more.is_none() => {
                *first = Some((place, waker));
                None
            }
            _ => self.more.get_or_insert_default().insert(place, waker),
        }
    }
}

/// Resolves when the value arrives.
#[must_use = "futures do nothing unless awaited"]
pub(crate) struct Arrival<'a, T> {
    latch: &'a Latch<T>,
    place: Option<Place>,
}

impl<'a, T> Future for Arrival<'a, T> {
    type Output = &'a T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<&'a T> {
        let latch = self.latch;
        latch.poll(context, &mut self.place)
    }
}

impl<T> Drop for Arrival<'_, T> {
    fn drop(&mut self) {
        self.latch.leave(self.place);
    }
}

impl<T> fmt::Debug for Latch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latch").field("set", &self.is_set()).finish()
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread, time::Duration};

    use super::*;

    #[test]
    fn the_first_value_stays_and_reaches_threads_and_tasks() {
        let latch = Arc::new(Latch::new());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let latch = latch.clone();
                thread::spawn(move || latch.wait(None).copied())
            })
            .collect();
        let task = {
            let latch = latch.clone();
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
                *runtime.block_on(latch.arrival())
            })
        };
        assert!(latch.set(7));
        assert!(!latch.set(8));
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Some(7));
        }
        assert_eq!(task.join().unwrap(), 7);
    }

    #[test]
    fn whoever_gives_up_leaves_nothing_behind() {
        struct Task;
        impl std::task::Wake for Task {
            fn wake(self: Arc<Self>) {}
        }
        let latch = Latch::<()>::new();
        let tasks: Vec<_> = (0..100).map(|_| Arc::new(Task)).collect();
        let mut moving = latch.arrival();
        for task in &tasks {
            let waker = task.clone().into();
            let mut context = Context::from_waker(&waker);
            assert!(Pin::new(&mut moving).poll(&mut context).is_pending());
            assert!(Pin::new(&mut latch.arrival()).poll(&mut context).is_pending());
        }
        let held = |task: &Arc<Task>| Arc::strong_count(task) - 1;
        assert_eq!(tasks.iter().map(held).sum::<usize>(), 1, "that of the one that waits, as it was last");
        drop(moving);
        assert_eq!(tasks.iter().map(held).sum::<usize>(), 0);
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let latch = Latch::<()>::new();
        assert_eq!(latch.wait(Some(Instant::now() + Duration::from_millis(1))), None);
    }
}
