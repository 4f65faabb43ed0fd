//! `max_concurrency`: how many calls of one callback run at once, the others waiting in order.

use std::{collections::VecDeque, fmt, num::NonZeroUsize};

use parking_lot::Mutex;

/// Lets so many through at once.
pub(crate) struct Gate<T> {
    limit: usize,
    state: Mutex<State<T>>,
}

struct State<T> {
    running: usize,
    waiting: VecDeque<T>,
}

impl<T> Gate<T> {
    pub(crate) fn new(limit: NonZeroUsize) -> Self {
        Self { limit: limit.get(), state: Mutex::new(State { running: 0, waiting: VecDeque::new() }) }
    }

    /// Gives `work` back if it may run now, and keeps it for later otherwise.
    pub(crate) fn enter(&self, work: T) -> Option<T> {
        let mut state = self.state.lock();
        if state.running < self.limit {
            state.running += 1;
            Some(work)
        } else {
            state.waiting.push_back(work);
            None
        }
    }

    /// One is done: gives what runs in its place.
    pub(crate) fn leave(&self) -> Option<T> {
        let mut state = self.state.lock();
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.running -= 1;
        }
        next
    }
}

impl<T> fmt::Debug for Gate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Gate")
            .field("running", &state.running)
            .field("waiting", &state.waiting.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_run_and_the_others_follow_in_order() {
        let gate = Gate::new(NonZeroUsize::new(2).unwrap());
        assert_eq!(
            [gate.enter(1), gate.enter(2), gate.enter(3), gate.enter(4)],
            [Some(1), Some(2), None, None]
        );
        assert_eq!([gate.leave(), gate.leave(), gate.leave(), gate.leave()], [Some(3), Some(4), None, None]);
        assert_eq!(gate.enter(5), Some(5));
    }
}
