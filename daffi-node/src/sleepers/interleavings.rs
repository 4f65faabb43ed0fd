//! Tasks that wake each other, in orders that shuttle picks; see `tests/sync`.
//!
//! That these find mistakes was seen with each of these planted: the first task is woken before the others are there to be
//! found; `take` says that there are none after it has let go of the lock; `turn` takes nothing; `wake_first` does not
//! look whether there are turns still.

use std::{
    ops::Range,
    sync::Arc,
    task::{Context, Poll, Wake},
};

use daffi_test_sync::shuttle::{self, thread};

use super::*;
use crate::{latch::Latch, sync::Condvar};

const RUNS: usize = 3_000;

/// A task that is polled when it was woken and at no other time, as opposed to shuttle's own.
#[derive(Default)]
struct Task {
    woken: Mutex<bool>,
    signal: Condvar,
}

impl Task {
    fn sleep(&self) {
        let mut woken = self.woken.lock();
        while !std::mem::take(&mut *woken) {
            self.signal.wait(&mut woken);
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        *self.woken.lock() = true;
        self.signal.notify_one();
    }
}

/// A node's side of it.
struct Calls<const N: usize> {
    sleepers: Sleepers,
    answers: [Latch<()>; N],
}

impl<const N: usize> Calls<N> {
    fn new() -> Arc<Self> {
        Arc::new(Self { sleepers: Sleepers::default(), answers: std::array::from_fn(|_| Latch::new()) })
    }

    /// A task on a thread of its own, which awaits a call.
    fn awaited(self: &Arc<Self>, call: usize) -> thread::JoinHandle<()> {
        let calls = self.clone();
        thread::spawn(move || {
            let task = Arc::new(Task::default());
            let waker = task.clone().into();
            let context = Context::from_waker(&waker);
            let mut place = None;
            loop {
                calls.sleepers.wake_others(|| true);
                if calls.answers[call].poll(&context, &mut place).is_ready() {
                    return;
                }
                task.sleep();
            }
        })
    }

    /// A task looks after a call once, and never again.
    fn neglected(&self, call: usize) {
        let polled = self.answers[call].poll(&Context::from_waker(Waker::noop()), &mut None);
        assert_eq!(polled, Poll::Pending);
    }

    /// A batch of answers comes.
    fn answered(&self, calls: Range<usize>) {
        let mut wakers = Vec::new();
        for answer in &self.answers[calls] {
            answer.set_with((), |waker| wakers.push(waker));
        }
        self.sleepers.wake_first(wakers);
    }
}

#[test]
fn tasks_that_come_back_wake_all_others() {
    let run = || {
        let calls = Calls::<4>::new();
        let tasks = [0, 1, 2, 3].map(|call| calls.awaited(call));
        calls.answered(0..2);
        calls.answered(2..4);
        // Shuttle tells of a thread that waits for ever.
        tasks.into_iter().for_each(|task| task.join().unwrap());
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

#[test]
fn turns_wake_those_that_a_task_leaves_which_does_not_come_back() {
    let run = || {
        let calls = Calls::<3>::new();
        calls.neglected(0);
        let tasks = [1, 2].map(|call| calls.awaited(call));
        calls.answered(0..3);
        let now = Instant::now();
        if let Some(due) = calls.sleepers.turn(now) {
            calls.sleepers.turn(due);
        }
        tasks.into_iter().for_each(|task| task.join().unwrap());
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

#[test]
fn the_end_leaves_nobody_asleep() {
    let run = || {
        let calls = Calls::<3>::new();
        calls.neglected(0);
        let tasks = [1, 2].map(|call| calls.awaited(call));
        let io = {
            let calls = calls.clone();
            thread::spawn(move || calls.answered(0..3))
        };
        calls.sleepers.end();
        tasks.into_iter().for_each(|task| task.join().unwrap());
        io.join().unwrap();
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}
