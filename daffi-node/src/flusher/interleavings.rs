//! Tasks that leave frames and write those of others, in orders picked by shuttle; see `tests/sync`.
//!
//! These were seen to catch each of the following planted mistakes: `begin` skips a task that is found;
//! `leave` says that one is already found.

use std::sync::Arc;

use daffi_test_sync::shuttle::{self, thread};

use super::*;

const RUNS: usize = 3_000;

/// The link's side.
#[derive(Default)]
struct Link {
    flusher: Flusher,
    queue: Mutex<Vec<u32>>,
    written: Mutex<Vec<u32>>,
}

impl Link {
    fn flush(&self) {
        self.flusher.begin();
        let queued = std::mem::take(&mut *self.queue.lock());
        self.written.lock().extend(queued);
    }

    /// A task calls, waits, and is polled again if it arranged to be woken.
    fn call(&self, frame: u32) {
        self.queue.lock().push(frame);
        self.flusher.leave();
        if self.flusher.find() {
            thread::yield_now();
            self.flush();
        }
    }

    fn assert_written(&self, frames: u32) {
        let mut written = self.written.lock().clone();
        written.sort();
        assert_eq!(written, (0..frames).collect::<Vec<_>>(), "left: {:?}", self.queue.lock());
    }
}

/// Without a turn of the I/O thread.
#[test]
fn nothing_that_is_left_is_forgotten() {
    let run = || {
        let link = Arc::new(Link::default());
        let tasks = [0, 2, 4].map(|frame| {
            let link = link.clone();
            thread::spawn(move || {
                link.call(frame);
                link.call(frame + 1);
            })
        });
        for task in tasks {
            task.join().unwrap();
        }
        link.assert_written(6);
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

/// If a task does not come back, the I/O thread writes, including what others have left to it.
#[test]
fn what_is_left_to_a_task_that_does_not_come_back_is_written_in_a_turn() {
    let run = || {
        let link = Arc::new(Link::default());
        link.queue.lock().push(0);
        assert!(link.flusher.leave() && link.flusher.find());
        let task = {
            let link = link.clone();
            thread::spawn(move || link.call(1))
        };
        let mut now = Instant::now();
        // Twice: it may have looked just before the other task came.
        for _ in 0..2 {
            while let Some(due) = link.flusher.turn(now) {
                now = due;
                thread::yield_now();
            }
            link.flush();
        }
        task.join().unwrap();
        while let Some(due) = link.flusher.turn(now) {
            now = due;
        }
        link.flush();
        link.assert_written(2);
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}
