//! A value that arrives once and is waited for by threads and tasks alike, without any runtime.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Instant,
};

use parking_lot::{Condvar, Mutex};

/// A value that arrives once.
pub(crate) struct Latch<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
}

struct State<T> {
    value: Option<T>,
    waiter: Option<Waker>,
    /// More than one task waits only when the handle is shared, so the first has a place of its own.
    more_waiters: Vec<Waker>,
    threads: usize,
}

impl<T> Latch<T> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State { value: None, waiter: None, more_waiters: Vec::new(), threads: 0 }),
            arrived: Condvar::new(),
        }
    }

    /// Sets the value unless there is one; says whether it was set.
    pub(crate) fn set(&self, value: T) -> bool {
        let (first, more, threads) = {
            let mut state = self.state.lock();
            if state.value.is_some() {
                return false;
            }
            state.value = Some(value);
            (state.waiter.take(), std::mem::take(&mut state.more_waiters), state.threads)
        };
        if threads > 0 {
            self.arrived.notify_all();
        }
        for waker in first.into_iter().chain(more) {
            waker.wake();
        }
        true
    }

    pub(crate) fn is_set(&self) -> bool {
        self.state.lock().value.is_some()
    }
}

impl<T: Clone> Latch<T> {
    /// The value, if it has arrived.
    pub(crate) fn get(&self) -> Option<T> {
        self.state.lock().value.clone()
    }

    /// Blocks this thread until the value arrives, or until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Option<T> {
        let mut state = self.state.lock();
        state.threads += 1;
        while state.value.is_none() {
            match deadline {
                None => self.arrived.wait(&mut state),
                Some(deadline) => {
                    if self.arrived.wait_until(&mut state, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        state.threads -= 1;
        state.value.clone()
    }

    /// Waits for the value. May be dropped and made again at any time.
    pub(crate) fn arrival(&self) -> Arrival<'_, T> {
        Arrival { latch: self }
    }

    fn poll(&self, context: &Context<'_>) -> Poll<T> {
        let mut state = self.state.lock();
        if let Some(value) = &state.value {
            return Poll::Ready(value.clone());
        }
        let waker = context.waker();
        if state.waiter.is_none() {
            state.waiter = Some(waker.clone());
        } else if !state.waiter.iter().chain(&state.more_waiters).any(|known| known.will_wake(waker)) {
            state.more_waiters.push(waker.clone());
        }
        Poll::Pending
    }
}

/// Resolves when the value arrives.
#[must_use = "futures do nothing unless awaited"]
pub(crate) struct Arrival<'a, T> {
    latch: &'a Latch<T>,
}

impl<T: Clone> Future for Arrival<'_, T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        self.latch.poll(context)
    }
}

impl<T> fmt::Debug for Latch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latch").field("set", &self.is_set()).finish()
    }
}

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
                thread::spawn(move || latch.wait(None))
            })
            .collect();
        let task = {
            let latch = latch.clone();
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
                runtime.block_on(latch.arrival())
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
    fn waiting_ends_at_the_deadline() {
        let latch = Latch::<()>::new();
        assert_eq!(latch.wait(Some(Instant::now() + Duration::from_millis(1))), None);
    }
}
