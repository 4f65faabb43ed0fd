//! Tasks that wake each other, in orders picked by shuttle; see `tests/sync`.
//!
//! These were seen to catch each of the following planted mistakes: the first task is woken before the others
//! can be found; `take` says that there are none after it has released the lock; `turn` takes nothing;
//! `wake_first` does not check whether there are still turns; answers are taken before the lock under which
//! they are read, or without it.

use std::{
    ops::Range,
    sync::Arc,
    task::{Context, Poll, Wake},
};

use daffi_test_sync::shuttle::{self, thread};

use super::*;
use crate::{latch::Latch, sync::Condvar};

const RUNS: usize = 3_000;

/// A task that is polled only when it was woken, unlike shuttle's own.
#[derive(Default)]
struct Task {
    woken: Mutex<bool>,
    signal: Condvar,
}

impl Task {
    fn sleep(&self) {
        let mut woken = self.woken.lock();
        while !mem::take(&mut *woken) {
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

/// The node's side.
struct Calls<const N: usize> {
    sleepers: Sleepers,
    answers: [Latch<()>; N],
}

impl<const N: usize> Calls<N> {
    fn new() -> Arc<Self> {
        Arc::new(Self { sleepers: Sleepers::default(), answers: std::array::from_fn(|_| Latch::new()) })
    }

    /// A task on its own thread, which awaits a call.
    fn awaited(self: &Arc<Self>, call: usize) -> thread::JoinHandle<()> {
        let calls = self.clone();
        thread::spawn(move || {
            let task = Arc::new(Task::default());
            let waker = task.clone().into();
            let context = Context::from_waker(&waker);
            let mut place = None;
            loop {
                calls.look();
                if calls.answers[call].poll(&context, &mut place).is_ready() {
                    return;
                }
                task.sleep();
            }
        })
    }

    /// A task checks on a call once, and never again.
    fn neglected(&self, call: usize) {
        let polled = self.answers[call].poll(&Context::from_waker(Waker::noop()), &mut None);
        assert_eq!(polled, Poll::Pending);
    }

    /// A batch of answers arrives.
    fn answered(&self, calls: Range<usize>) {
        let wakers = self.set(calls);
        self.sleepers.wake_first(Left { wakers, unread: Vec::new() }, |unread| self.read(unread));
    }

    /// The first of these is answered, and the answers of the others are left unread.
    fn left_unread(&self, calls: Range<usize>) {
        let wakers = self.set(calls.start..calls.start + 1);
        let unread = (calls.start + 1..calls.end).map(|call| vec![call as u8].into()).collect();
        self.sleepers.wake_first(Left { wakers, unread }, |unread| self.read(unread));
    }

    fn look(&self) {
        self.sleepers.wake_others(|| true, |unread| self.read(unread));
    }

    fn read(&self, unread: Vec<Bytes>) -> Answers {
        let calls = unread.iter().map(|call| usize::from(call[0]));
        let wakers = calls.flat_map(|call| self.set(call..call + 1)).collect();
        Answers { wakers, ..Answers::default() }
    }

    fn set(&self, calls: Range<usize>) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for answer in &self.answers[calls] {
            assert!(answer.set_with(|| (), |waker| wakers.push(waker)), "it is read twice");
        }
        wakers
    }

    /// Takes turns as the I/O thread does, for longer than its patience.
    fn turns(&self) {
        let mut now = Instant::now();
        for _ in 0..4 {
            match self.sleepers.turn(now, |unread| self.read(unread)) {
                Turn::At(due) => now = due,
                Turn::Nothing | Turn::Done => return,
            }
            thread::yield_now();
        }
    }
}

#[test]
fn tasks_that_come_back_wake_all_others() {
    let run = || {
        let calls = Calls::<4>::new();
        let tasks = [0, 1, 2, 3].map(|call| calls.awaited(call));
        calls.answered(0..2);
        calls.answered(2..4);
        // Shuttle reports a thread that waits forever.
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
        calls.turns();
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
        calls.sleepers.end(|unread| calls.read(unread));
        tasks.into_iter().for_each(|task| task.join().unwrap());
        io.join().unwrap();
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

/// A task reads what was left unread before it checks on its own call, so nobody waits forever.
#[test]
fn tasks_that_come_back_read_what_was_left_unread() {
    let run = || {
        let calls = Calls::<5>::new();
        let tasks = [0, 1, 2, 3, 4].map(|call| calls.awaited(call));
        calls.left_unread(0..3);
        calls.left_unread(3..5);
        // As the I/O thread does: anyone who came while another was reading left it to that one, which may
        // already have looked.
        calls.turns();
        tasks.into_iter().for_each(|task| task.join().unwrap());
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

#[test]
fn turns_read_what_a_task_leaves_which_does_not_come_back() {
    let run = || {
        let calls = Calls::<3>::new();
        calls.neglected(0);
        let tasks = [1, 2].map(|call| calls.awaited(call));
        calls.left_unread(0..3);
        calls.turns();
        tasks.into_iter().for_each(|task| task.join().unwrap());
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

/// Before calls fail along with their link, everything that has arrived is read, no matter by whom.
#[test]
fn nothing_is_unread_that_was_left_before() {
    let run = || {
        let calls = Calls::<3>::new();
        calls.neglected(0);
        calls.left_unread(0..3);
        let reads = {
            let calls = calls.clone();
            thread::spawn(move || calls.look())
        };
        calls.sleepers.finish(|unread| calls.read(unread));
        assert!(calls.answers.iter().all(Latch::is_set), "an answer that has come is lost");
        reads.join().unwrap();
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

#[test]
fn the_end_leaves_nothing_unread() {
    let run = || {
        let calls = Calls::<3>::new();
        calls.neglected(0);
        let tasks = [1, 2].map(|call| calls.awaited(call));
        let io = {
            let calls = calls.clone();
            thread::spawn(move || calls.left_unread(0..3))
        };
        calls.sleepers.end(|unread| calls.read(unread));
        tasks.into_iter().for_each(|task| task.join().unwrap());
        io.join().unwrap();
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}
