//! Threads and tasks at a latch, in orders picked by shuttle; see `tests/sync`.
//!
//! These were seen to catch each of the following planted mistakes: `set` looks for waiting threads before it
//! takes the lock; `poll` releases the lock between looking and leaving its waker; `leave` takes the first
//! waker, no matter whose; `wait` looks before it takes the lock.

use std::{sync::Arc, time::Instant};

use daffi_test_sync::shuttle::{self, future, thread};

use super::*;

const RUNS: usize = 3_000;

#[test]
fn a_value_reaches_everybody_who_waits() {
    let run = || {
        let latch = Arc::new(Latch::new());
        let blocked = {
            let latch = latch.clone();
            thread::spawn(move || latch.wait(None).copied())
        };
        let impatient = {
            let latch = latch.clone();
            thread::spawn(move || latch.wait(Some(Instant::now())).copied())
        };
        let tasks: Vec<_> = (0..2)
            .map(|_| {
                let latch = latch.clone();
                thread::spawn(move || *future::block_on(latch.arrival()))
            })
            .collect();
        let setters = [1, 2].map(|value| {
            let latch = latch.clone();
            thread::spawn(move || latch.set(value).then_some(value))
        });
        let set: Vec<_> = setters.into_iter().filter_map(|setter| setter.join().unwrap()).collect();
        let [value] = set[..] else { panic!("it was set by {} of two", set.len()) };
        assert_eq!(blocked.join().unwrap(), Some(value));
        assert!(impatient.join().unwrap().is_none_or(|seen| seen == value));
        for task in tasks {
            assert_eq!(task.join().unwrap(), value);
        }
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

#[test]
fn a_task_that_gives_up_takes_no_other_one_with_it() {
    let run = || {
        let latch = Arc::new(Latch::new());
        let gives_up = {
            let latch = latch.clone();
            thread::spawn(move || {
                let mut arrival = latch.arrival();
                let polled = Pin::new(&mut arrival).poll(&mut Context::from_waker(Waker::noop()));
                assert!(polled.is_pending() || polled == Poll::Ready(&7));
            })
        };
        let waits = {
            let latch = latch.clone();
            thread::spawn(move || *future::block_on(latch.arrival()))
        };
        assert!(latch.set(7));
        gives_up.join().unwrap();
        assert_eq!(waits.join().unwrap(), 7);
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}
