//! Tasks whose calls are over and that are still to be woken.
//!
//! The answers to many calls come in one batch. Waking a task from another thread than its runtime's costs a system call
//! with some runtimes, and with tokio's for one thread each time. So the I/O thread wakes the first task of a batch
//! alone. Whoever polls a call next wakes the others: most likely that task, on the thread of their runtime, where it
//! costs next to nothing. Should nobody do so soon, the I/O thread does.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Waker,
    time::{Duration, Instant},
};

use crate::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

/// Tasks that are still to be woken.
#[derive(Default)]
pub(crate) struct Sleepers {
    /// Whether there are any, for whoever just looks. Written under the lock. A task that was woken on their behalf sees
    /// it, as they were here before; whoever else does not leaves them to that one. For the turn it is `SeqCst`, which a
    /// reactor's bell asks for.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    wakers: Vec<Waker>,
    /// When the I/O thread wakes them, from the first turn on in which it sees them.
    due: Option<Instant>,
    /// There are no more turns.
    ended: bool,
}

/// How long they are left to the task that was woken. It may be busy, or not come back to its call at all.
const PATIENCE: Duration = Duration::from_millis(1);

impl Sleepers {
    /// Wakes the first of these tasks and leaves the others to it; says whether there are any, so that a
    /// [`turn`](Self::turn) has to follow.
    pub(crate) fn wake_first(&self, wakers: Vec<Waker>) -> bool {
        let count = wakers.len();
        let mut wakers = wakers.into_iter();
        let Some(first) = wakers.next() else { return false };
        let mut others = Vec::with_capacity(count - 1);
        for waker in wakers {
            // One task may wait for many calls.
            if waker.will_wake(&first) || others.last().is_some_and(|last| waker.will_wake(last)) {
                survive(|| drop(waker));
            } else {
                others.push(waker);
            }
        }
        // Before the first one is woken, which looks for them.
        let left = !others.is_empty() && self.leave(&mut others);
        wake_all([first]);
        wake_all(others);
        left
    }

    /// Whoever polls a call, or gives one up, wakes those that are left, if it may.
    pub(crate) fn wake_others(&self, may: impl FnOnce() -> bool) {
        if self.any.load(Ordering::Relaxed) && may() {
            wake_all(self.take());
        }
    }

    /// Wakes those that nobody has woken for a while; says when there will be some.
    pub(crate) fn turn(&self, now: Instant) -> Option<Instant> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        {
            let mut state = self.state.lock();
            if state.wakers.is_empty() {
                return None;
            }
            let due = *state.due.get_or_insert(now + PATIENCE);
            if now < due {
                return Some(due);
            }
        }
        wake_all(self.take());
        None
    }

    /// Wakes everybody, from now on at once, since there are no more turns.
    pub(crate) fn end(&self) {
        self.state.lock().ended = true;
        wake_all(self.take());
    }

    /// Leaves these to others; says whether it could.
    fn leave(&self, wakers: &mut Vec<Waker>) -> bool {
        let mut state = self.state.lock();
        if state.ended {
            return false;
        }
        state.wakers.append(wakers);
        self.any.store(true, Ordering::SeqCst);
        true
    }

    fn take(&self) -> Vec<Waker> {
        let mut state = self.state.lock();
        self.any.store(false, Ordering::SeqCst);
        state.due = None;
        std::mem::take(&mut state.wakers)
    }
}

/// Wakers are other people's code: none is called under a lock, and the panic of one is not the end of the others.
fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        survive(|| waker.wake());
    }
}

fn survive(run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        tracing::error!("the waker of a task panicked; see the panic message above");
    }
}

impl fmt::Debug for Sleepers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleepers").field("any", &self.any).finish_non_exhaustive()
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Task {
        woken: AtomicUsize,
        panics: bool,
    }

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.woken.fetch_add(1, SeqCst);
            assert!(!self.panics, "this waker panics on purpose");
        }
    }

    fn tasks<const N: usize>() -> [Arc<Task>; N] {
        std::array::from_fn(|_| Arc::default())
    }

    fn wakers(tasks: &[Arc<Task>]) -> Vec<Waker> {
        tasks.iter().map(|task| task.clone().into()).collect()
    }

    fn woken<const N: usize>(tasks: &[Arc<Task>; N]) -> [usize; N] {
        tasks.each_ref().map(|task| task.woken.load(SeqCst))
    }

    #[test]
    fn the_first_is_woken_and_the_next_to_poll_wakes_the_others() {
        let sleepers = Sleepers::default();
        let tasks = tasks();
        assert!(sleepers.wake_first(wakers(&tasks)));
        assert_eq!(woken(&tasks), [1, 0, 0]);
        sleepers.wake_others(|| true);
        assert_eq!(woken(&tasks), [1, 1, 1]);
        sleepers.wake_others(|| true);
        assert_eq!(woken(&tasks), [1, 1, 1]);
        assert!(tasks.iter().all(|task| Arc::strong_count(task) == 1), "nothing of a task is kept");
    }

    #[test]
    fn a_turn_wakes_those_that_nobody_else_has_woken_in_time() {
        let sleepers = Sleepers::default();
        let tasks = tasks();
        let start = Instant::now();
        assert_eq!(sleepers.turn(start), None);
        assert!(sleepers.wake_first(wakers(&tasks[..2])));
        assert_eq!(sleepers.turn(start), Some(start + PATIENCE));
        // Those that come later do not put it off.
        assert!(sleepers.wake_first(wakers(&tasks[2..])));
        assert_eq!(sleepers.turn(start + PATIENCE / 2), Some(start + PATIENCE));
        assert_eq!(woken(&tasks), [1, 0, 1, 0]);
        assert_eq!(sleepers.turn(start + PATIENCE), None);
        assert_eq!(woken(&tasks), [1; 4]);
        assert_eq!(sleepers.turn(start + PATIENCE), None);
    }

    #[test]
    fn a_task_that_waits_for_many_calls_is_woken_once() {
        let sleepers = Sleepers::default();
        let tasks = tasks();
        let [a, b, c] = wakers(&tasks).try_into().unwrap();
        assert!(!sleepers.wake_first(vec![a.clone(), a.clone(), a.clone()]));
        assert_eq!(woken(&tasks), [1, 0, 0]);
        assert!(sleepers.wake_first(vec![a.clone(), b.clone(), b, c, a]));
        sleepers.wake_others(|| true);
        assert_eq!(woken(&tasks), [2, 1, 1]);
    }

    #[test]
    fn a_waker_that_panics_takes_no_other_one_with_it() {
        let sleepers = Sleepers::default();
        let panicking = || Arc::new(Task { panics: true, ..Task::default() });
        let tasks = [panicking(), panicking(), Arc::default()];
        assert!(sleepers.wake_first(wakers(&tasks)));
        sleepers.wake_others(|| true);
        assert_eq!(woken(&tasks), [1, 1, 1]);
    }

    #[test]
    fn nobody_is_left_at_the_end() {
        let sleepers = Sleepers::default();
        let tasks = tasks();
        sleepers.wake_first(wakers(&tasks[..2]));
        sleepers.end();
        assert_eq!(woken(&tasks), [1, 1, 0, 0]);
        assert!(!sleepers.wake_first(wakers(&tasks[2..])));
        assert_eq!(woken(&tasks), [1; 4]);
    }
}
