//! Threads that ring for the one that leads, in orders chosen by shuttle; see `tests/sync`.
//!
//! This test finds each of these mistakes when planted: `sleep` looks for a mark before it announces that it
//! sleeps; the thread is roused before the mark is set; `answer` comes after the look at what there is to do.

use std::sync::Arc;

use daffi_test_sync::shuttle::{self, thread};

use super::*;
use crate::sync::{Condvar, Mutex};

const RUNS: usize = 10_000;
const RINGS: usize = 3;

/// A reactor that only counts.
#[derive(Default)]
struct Counter {
    bell: Bell,
    commands: Mutex<usize>,
    /// What `mio::Waker` is to `mio::Poll`.
    event: Mutex<bool>,
    came: Condvar,
}

impl Counter {
    fn command(&self) {
        *self.commands.lock() += 1;
        self.bell.mark();
        self.bell.rouse(|| {
            *self.event.lock() = true;
            self.came.notify_one();
        });
    }

    fn lead(&self) {
        let mut done = 0;
        while done < RINGS {
            self.bell.answer();
            done += std::mem::take(&mut *self.commands.lock());
            let may_wait = self.bell.sleep() && done < RINGS;
            let mut event = self.event.lock();
            while may_wait && !*event {
                self.came.wait(&mut event);
            }
            *event = false;
            drop(event);
            self.bell.awake();
        }
    }
}

#[test]
fn whoever_rings_is_heard() {
    let run = || {
        let counter = Arc::new(Counter::default());
        for _ in 0..RINGS {
            let counter = counter.clone();
            thread::spawn(move || counter.command());
        }
        // Shuttle reports a thread that waits forever.
        counter.lead();
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}
