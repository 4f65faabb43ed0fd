//! Jobs that come while threads begin, wait, wake and go, in orders picked by shuttle; see `tests/sync`.
//!
//! These were seen to catch each of the following planted mistakes: a thread whose wait is over stays among
//! the idle ones; one that was woken counts as waking forever; `while_blocked` and `turn` add no thread;
//! `stop` wakes nobody, or the threads that it wakes look for work again.

use std::sync::atomic::{AtomicUsize as Count, Ordering::SeqCst};

use daffi_test_sync::{shuttle, while_time_stands_still};

use super::*;

const RUNS: usize = 1_000;

/// Counts jobs that have run, for a thread that waits for them.
#[derive(Default)]
struct Jobs {
    done: Mutex<usize>,
    changed: Condvar,
}

impl Jobs {
    fn done(&self) {
        *self.done.lock() += 1;
        self.changed.notify_all();
    }

    fn wait(&self, count: usize) {
        let mut done = self.done.lock();
        while *done < count {
            self.changed.wait(&mut done);
        }
    }
}

fn pool(busy_max: usize) -> Arc<Pool> {
    Pool::with_keep_alive("test".into(), busy_max, Duration::from_secs(1))
}

/// A time at which every job has waited long enough.
fn late() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// Checks `run` with waits that may end at any time, and with waits that never end before they are notified:
/// then no thread goes by itself, and a forgotten one waits forever, which shuttle reports.
fn check(run: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
    let still = move || while_time_stands_still(run);
    shuttle::check_random(still, RUNS);
    shuttle::check_pct(still, RUNS, 3);
}

#[test]
fn every_job_runs_once() {
    check(|| {
        let (pool, jobs) = (pool(2), Arc::<Jobs>::default());
        let submits = [1, 2].map(|count| {
            let (pool, jobs) = (pool.clone(), jobs.clone());
            thread::spawn(move || {
                for _ in 0..count {
                    let jobs = jobs.clone();
                    pool.submit(Box::new(move || jobs.done()));
                }
            })
        });
        // Shuttle reports a job that nobody runs.
        jobs.wait(3);
        for submit in submits {
            submit.join().unwrap();
        }
        pool.stop();
        assert_eq!(*jobs.done.lock(), 3);
    });
}

/// More jobs wait for each other than threads are started at once: the I/O thread's turns add the others.
#[test]
fn jobs_that_wait_for_each_other_get_their_threads() {
    check(|| {
        let (pool, begun, ended) = (pool(4), Arc::<Jobs>::default(), Arc::<Jobs>::default());
        for _ in 0..3 {
            let (begun, ended) = (begun.clone(), ended.clone());
            pool.submit(Box::new(move || {
                begun.done();
                begun.wait(3);
                ended.done();
            }));
        }
        while pool.turn(late()).is_some() {
            thread::yield_now();
        }
        ended.wait(3);
        pool.stop();
    });
}

/// One thread may be busy, and its job waits for another job of the pool.
#[test]
fn a_job_that_waits_inside_daffi_is_no_hindrance() {
    check(|| {
        let (pool, jobs) = (pool(1), Arc::<Jobs>::default());
        for _ in 0..2 {
            let (outer, jobs) = (pool.clone(), jobs.clone());
            pool.submit(Box::new(move || {
                let (inner, done) = (Arc::<Jobs>::default(), jobs.clone());
                let told = inner.clone();
                outer.submit(Box::new(move || {
                    told.done();
                    done.done();
                }));
                outer.while_blocked(|| inner.wait(1));
                jobs.done();
            }));
        }
        // Without a turn of the I/O thread.
        jobs.wait(4);
        pool.stop();
        assert_eq!(*jobs.done.lock(), 4);
    });
}

#[test]
fn a_job_is_run_or_dropped_when_the_pool_stops() {
    struct Dropped(Arc<Count>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    check(|| {
        let (pool, dropped) = (pool(1), Arc::<Count>::default());
        let submits = {
            let (pool, dropped) = (pool.clone(), dropped.clone());
            thread::spawn(move || {
                for _ in 0..3 {
                    let job = Dropped(dropped.clone());
                    pool.submit(Box::new(move || drop(job)));
                }
            })
        };
        pool.stop();
        submits.join().unwrap();
        // Any thread that had a job is done with it.
        while pool.state.lock().busy > 0 {
            thread::yield_now();
        }
        assert_eq!(dropped.load(SeqCst), 3);
        assert!(pool.state.lock().queue.is_empty());
    });
}
