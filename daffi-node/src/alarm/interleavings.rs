//! Threads that add calls with deadlines while another looks for those that are due, in orders picked by
//! shuttle; see `tests/sync`.
//!
//! These were seen to catch each of the following planted mistakes: `unset` does nothing; the bit of a shard
//! with deadlines is not set.

use std::{sync::Arc, time::Duration};

use daffi_test_sync::shuttle::{self, thread};

use super::*;
use crate::{
    in_flight::{Deadline, InFlight},
    pending::Pending,
    sync::{Condvar, Mutex},
};

const RUNS: usize = 3_000;

/// A node with nothing but calls and time.
struct Node {
    calls: InFlight,
    alarm: Alarm,
    epoch: Instant,
    /// Whether the I/O thread was woken.
    woken: Mutex<bool>,
    wakes: Condvar,
}

impl Node {
    fn new() -> Arc<Self> {
        let epoch = Instant::now();
        let (calls, alarm) = (InFlight::new(), Alarm::new(epoch));
        Arc::new(Self { calls, alarm, epoch, woken: Mutex::new(false), wakes: Condvar::new() })
    }

    /// Makes a call with a deadline `seconds` from the start.
    fn call(&self, seconds: u64) {
        let after = Duration::from_secs(seconds);
        let deadline = Deadline { at: self.epoch + after, after };
        self.calls.insert(Arc::new(Pending::new("f".into(), None)), Some(deadline));
        if self.alarm.is_later_than(deadline.at) {
            *self.woken.lock() = true;
            self.wakes.notify_one();
        }
    }

    /// Does what the I/O thread does until `count` calls have expired. Whenever it sleeps until some time,
    /// that time comes.
    fn expire(&self, count: usize) {
        let (mut now, mut expired) = (self.epoch, 0);
        while expired < count {
            self.alarm.unset();
            expired += self.calls.expired(now).len();
            let next = self.calls.next_deadline();
            self.alarm.set(next);
            let mut woken = self.woken.lock();
            match next {
                Some(next) if !*woken => now = next,
                // Shuttle reports a thread that sleeps forever.
                None if expired < count => {
                    while !*woken {
                        self.wakes.wait(&mut woken);
                    }
                }
                _ => {}
            }
            *woken = false;
        }
    }
}

#[test]
fn no_deadline_is_overlooked() {
    let run = || {
        let node = Node::new();
        let callers = [[3, 1], [2, 4]].map(|seconds| {
            let node = node.clone();
            thread::spawn(move || seconds.into_iter().for_each(|seconds| node.call(seconds)))
        });
        node.expire(4);
        for caller in callers {
            caller.join().unwrap();
        }
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

/// A deadline earlier than all that the thread sleeps for is not missed.
#[test]
fn an_earlier_deadline_is_not_late() {
    let run = || {
        let node = Node::new();
        node.call(9);
        let earlier = {
            let node = node.clone();
            thread::spawn(move || node.call(1))
        };
        // One turn, at whose end the thread would sleep until `next`.
        *node.woken.lock() = false;
        node.alarm.unset();
        node.calls.expired(node.epoch);
        let next = node.calls.next_deadline();
        node.alarm.set(next);
        earlier.join().unwrap();
        let seen = next == Some(node.epoch + Duration::from_secs(1));
        assert!(seen || *node.woken.lock(), "it sleeps past a deadline");
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}
