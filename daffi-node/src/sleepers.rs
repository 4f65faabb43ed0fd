//! Tasks still to be woken, whose calls are over, and answers left unread for them.
//!
//! The answers to many calls come in one batch. With some runtimes, waking a task from a thread outside its
//! runtime costs a system call; tokio's wakes one thread each time. And if one thread takes a call's answer
//! and another looks at it, all that belongs to the call moves from one processor's cache to another's and
//! back. So the I/O thread takes the first answer of a batch for which a task waits, wakes that task alone,
//! and leaves the answers behind it unread. The next thread to check on a call reads them and wakes the
//! others: most likely that task, on a thread of their runtime. If nobody does so soon, the I/O thread does.

use std::{
    fmt, mem,
    task::Waker,
    time::{Duration, Instant},
};

use bytes::Bytes;
use daffi_core::survive::{survive, wake};

use crate::{
    remains::Remains,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

/// Tasks still to be woken, and answers still to be read.
#[derive(Default)]
pub(crate) struct Sleepers {
    /// Whether anything is left, as a quick check. Written under the lock. A task that was woken on behalf of
    /// the others sees it, as they were added before; anyone else who misses it leaves them to that task. For
    /// the turn it is `SeqCst`, as a reactor's bell requires.
    any: AtomicBool,
    state: Mutex<State>,
    /// Held while a thread reads answers.
    reading: Mutex<()>,
}

#[derive(Default)]
struct State {
    left: Left,
    /// When the I/O thread wakes them, counted from the first turn that sees them.
    due: Option<Instant>,
    /// Whether there are no more turns.
    ended: bool,
}

/// What the I/O thread leaves to others.
#[derive(Debug, Default)]
pub(crate) struct Left {
    pub(crate) wakers: Vec<Waker>,
    /// Answers, as consecutive frames.
    pub(crate) unread: Vec<Bytes>,
}

/// What is left to do for answers, once no lock is held any more.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// The wakers of the tasks that wait for them.
    pub(crate) wakers: Vec<Waker>,
    /// The remains of their calls.
    pub(crate) remains: Remains,
}

/// Reads answers, and returns what is left to do. It runs no foreign code.
pub(crate) trait Read: Fn(Vec<Bytes>) -> Answers {}

impl<F: Fn(Vec<Bytes>) -> Answers> Read for F {}

/// What a turn found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing is left.
    Nothing,
    /// Something is left to others until then.
    At(Instant),
    /// It was time, and everything is done.
    Done,
}

/// How long everything is left to the task that was woken. It may be busy, or never come back to its call.
const PATIENCE: Duration = Duration::from_millis(1);

impl Left {
    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.is_empty() && self.unread.is_empty()
    }

    fn append(&mut self, other: &mut Self) {
        self.wakers.append(&mut other.wakers);
        self.unread.append(&mut other.unread);
    }
}

impl Answers {
    /// Wakes the tasks. Any lock held while reading must have been released.
    fn finish(self) {
        wake_all(self.wakers);
        drop(self.remains);
    }
}

impl Sleepers {
    /// Wakes the first of these tasks, and leaves the others and the answers to it. Returns whether there are
    /// any, so that a [`turn`](Self::turn) must follow. After the [`end`](Self::end) nothing is left to
    /// anybody.
    pub(crate) fn wake_first(&self, mut left: Left, read: impl Read) -> bool {
        let wakers = mem::take(&mut left.wakers);
        let mut first = None;
        for waker in wakers {
            let last = left.wakers.last().or(first.as_ref());
            // One task may wait for many calls.
            if first.as_ref().is_some_and(|first| waker.will_wake(first))
                || last.is_some_and(|last| waker.will_wake(last))
            {
                survive(|| drop(waker));
            } else if first.is_none() {
                first = Some(waker);
            } else {
                left.wakers.push(waker);
            }
        }
        // Before the first one is woken, since it looks for them.
        let follows = !left.is_empty() && self.leave(&mut left);
        wake_all(first);
        if !left.is_empty() {
            // It could not be left to others.
            wake_all(left.wakers);
            read(left.unread).finish();
        }
        follows
    }

    /// Does what is left, if `may` allows it; returns whether it did. Called by anyone who checks on a call,
    /// or gives one up.
    pub(crate) fn wake_others(&self, may: impl FnOnce() -> bool, read: impl Read) -> bool {
        self.any.load(Ordering::Relaxed) && may() && self.try_finish(read)
    }

    /// Does what nobody has done for a while; returns what it found.
    pub(crate) fn turn(&self, now: Instant, read: impl Read) -> Turn {
        if !self.any.load(Ordering::SeqCst) {
            return Turn::Nothing;
        }
        {
            let mut state = self.state.lock();
            if state.left.is_empty() {
                return Turn::Nothing;
            }
            let due = *state.due.get_or_insert(now + PATIENCE);
            if now < due {
                return Turn::At(due);
            }
        }
        // Otherwise another thread is reading, and has most of it.
        if self.try_finish(read) { Turn::Done } else { Turn::At(now + PATIENCE) }
    }

    /// Does what is left, unless a thread, maybe this one, is already doing so; returns whether it did. If
    /// so, no answer left before is unread, or still being read.
    pub(crate) fn try_finish(&self, read: impl Read) -> bool {
        // Twice, for those who came in the meantime and found this thread reading.
        for round in 0..2 {
            let Some(reading) = self.reading.try_lock() else { return round > 0 };
            self.finish_with(reading, &read);
            if !self.any.load(Ordering::SeqCst) {
                break;
            }
        }
        true
    }

    /// Like [`try_finish`](Self::try_finish), but waits until any other thread doing so is done.
    pub(crate) fn finish(&self, read: impl Read) {
        self.finish_with(self.reading.lock(), &read);
    }

    /// Like [`finish`](Self::finish); from then on nothing is left to anybody, since there are no more turns.
    pub(crate) fn end(&self, read: impl Read) {
        self.state.lock().ended = true;
        self.finish(read);
    }

    /// The lock is taken before what is left is: nobody gets past this while another thread still has answers
    /// unread.
    fn finish_with(&self, reading: MutexGuard<'_, ()>, read: &impl Read) {
        let Left { wakers, unread } = self.take();
        let answers = if unread.is_empty() { Answers::default() } else { read(unread) };
        drop(reading);
        wake_all(wakers);
        answers.finish();
    }

    /// Leaves these to others; returns whether it could.
    fn leave(&self, left: &mut Left) -> bool {
        let mut state = self.state.lock();
        if state.ended {
            return false;
        }
        state.left.append(left);
        self.any.store(true, Ordering::SeqCst);
        true
    }

    fn take(&self) -> Left {
        let mut state = self.state.lock();
        self.any.store(false, Ordering::SeqCst);
        state.due = None;
        mem::take(&mut state.left)
    }
}

/// Wakers are foreign code: none is called under a lock, and a panic in one does not affect the others.
fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    let mut wakers = wakers.into_iter().peekable();
    while let Some(waker) = wakers.next() {
        // One task may wait for many calls.
        if wakers.peek().is_some_and(|next| next.will_wake(&waker)) {
            survive(|| drop(waker));
        } else {
            wake(waker);
        }
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

    /// The calls of these tasks are over, and nothing is left unread.
    fn over(tasks: &[Arc<Task>]) -> Left {
        Left { wakers: wakers(tasks), unread: Vec::new() }
    }

    fn nothing(unread: Vec<Bytes>) -> Answers {
        assert!(unread.is_empty());
        Answers::default()
    }

    fn woken<const N: usize>(tasks: &[Arc<Task>; N]) -> [usize; N] {
        tasks.each_ref().map(|task| task.woken.load(SeqCst))
    }

    #[test]
    fn the_first_is_woken_and_the_next_to_poll_wakes_the_others() {
        let sleepers = Sleepers::default();
        let tasks = tasks();
        assert!(sleepers.wake_first(over(&tasks), nothing));
        assert_eq!(woken(&tasks), [1, 0, 0]);
        sleepers.wake_others(|| true, nothing);
        assert_eq!(woken(&tasks), [1, 1, 1]);
        sleepers.wake_others(|| true, nothing);
        assert_eq!(woken(&tasks), [1, 1, 1]);
        assert!(tasks.iter().all(|task| Arc::strong_count(task) == 1), "nothing of a task is kept");
    }

    #[test]
    fn a_turn_wakes_those_that_nobody_else_has_woken_in_time() {
        let sleepers = Sleepers::default();
        let tasks = tasks();
        let start = Instant::now();
        assert_eq!(sleepers.turn(start, nothing), Turn::Nothing);
        assert!(sleepers.wake_first(over(&tasks[..2]), nothing));
        assert_eq!(sleepers.turn(start, nothing), Turn::At(start + PATIENCE));
        // Later ones do not postpone it.
        assert!(sleepers.wake_first(over(&tasks[2..]), nothing));
        assert_eq!(sleepers.turn(start + PATIENCE / 2, nothing), Turn::At(start + PATIENCE));
        assert_eq!(woken(&tasks), [1, 0, 1, 0]);
        assert_eq!(sleepers.turn(start + PATIENCE, nothing), Turn::Done);
        assert_eq!(woken(&tasks), [1; 4]);
        assert_eq!(sleepers.turn(start + PATIENCE, nothing), Turn::Nothing);
    }

    #[test]
    fn a_task_that_waits_for_many_calls_is_woken_once() {
        let sleepers = Sleepers::default();
        let tasks = tasks();
        let [a, b, c] = wakers(&tasks).try_into().unwrap();
        assert!(
            !sleepers.wake_first(
                Left { wakers: vec![a.clone(), a.clone(), a.clone()], unread: Vec::new() },
                nothing
            )
        );
        assert_eq!(woken(&tasks), [1, 0, 0]);
        assert!(
            sleepers.wake_first(
                Left { wakers: vec![a.clone(), b.clone(), b, c, a], unread: Vec::new() },
                nothing
            )
        );
        sleepers.wake_others(|| true, nothing);
        assert_eq!(woken(&tasks), [2, 1, 1]);
    }

    #[test]
    fn a_waker_that_panics_takes_no_other_one_with_it() {
        let sleepers = Sleepers::default();
        let panicking = || Arc::new(Task { panics: true, ..Task::default() });
        let tasks = [panicking(), panicking(), Arc::default()];
        assert!(sleepers.wake_first(over(&tasks), nothing));
        sleepers.wake_others(|| true, nothing);
        assert_eq!(woken(&tasks), [1, 1, 1]);
    }

    #[test]
    fn nobody_is_left_at_the_end() {
        let sleepers = Sleepers::default();
        let tasks = tasks();
        sleepers.wake_first(over(&tasks[..2]), nothing);
        sleepers.end(nothing);
        assert_eq!(woken(&tasks), [1, 1, 0, 0]);
        assert!(!sleepers.wake_first(over(&tasks[2..]), nothing));
        assert_eq!(woken(&tasks), [1; 4]);
    }

    /// When answers left unread are read, which happens once, the tasks that wait for them are woken.
    #[test]
    fn whoever_looks_first_reads_what_was_left_unread() {
        let tasks = tasks::<4>();
        let read = |unread: Vec<Bytes>| {
            let calls = unread.iter().flatten();
            let wakers = calls.map(|call| tasks[*call as usize].clone().into()).collect();
            Answers { wakers, ..Answers::default() }
        };
        let left = || Left {
            wakers: wakers(&tasks[..1]),
            unread: vec![Bytes::from_static(&[1, 2]), Bytes::from_static(&[3])],
        };
        let start = Instant::now();
        let ways: [&dyn Fn(&Sleepers); 4] = [
            &|sleepers| _ = sleepers.wake_others(|| true, read),
            &|sleepers| _ = sleepers.turn(start + PATIENCE, read),
            &|sleepers| sleepers.finish(read),
            &|sleepers| sleepers.end(read),
        ];
        for (round, way) in ways.into_iter().enumerate() {
            let sleepers = Sleepers::default();
            assert!(sleepers.wake_first(left(), read));
            assert_eq!(woken(&tasks), [round + 1, round, round, round]);
            assert_eq!(sleepers.turn(start, read), Turn::At(start + PATIENCE));
            sleepers.wake_others(|| false, read);
            assert_eq!(woken(&tasks)[1], round);
            way(&sleepers);
            assert_eq!(woken(&tasks), [round + 1; 4]);
            way(&sleepers);
            assert_eq!(woken(&tasks), [round + 1; 4]);
        }
        // After the end there is nobody to leave them to.
        let sleepers = Sleepers::default();
        sleepers.end(nothing);
        assert!(!sleepers.wake_first(left(), read));
        assert_eq!(woken(&tasks), [5; 4]);
    }
}
