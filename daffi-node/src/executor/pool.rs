//! The threads that run `fn` callbacks.
//!
//! They may block, so more are added when needed: at once when a callback waits inside daffi (its thread does
//! not count then), and soon when work waits while all threads are busy with something unknown.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use daffi_core::host;

use crate::{
    blocking::{Role, with_role},
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
        thread,
    },
};

/// Something to run.
pub(crate) trait Work: Send {
    fn run(self: Box<Self>);

    /// Returns whether there is nothing to run any more.
    fn is_over(&self) -> bool {
        false
    }
}

impl<F: FnOnce() + Send> Work for F {
    fn run(self: Box<Self>) {
        self();
    }
}

/// Threads for callbacks that may block.
#[derive(Debug)]
pub(crate) struct Pool {
    name: String,
    /// How many threads may be busy; those that wait inside daffi do not count.
    busy_max: usize,
    /// How long an idle thread is kept.
    keep_alive: Duration,
    state: Mutex<State>,
    /// Threads that count as busy but never started to work, since the system had no resources left for them.
    lost: AtomicUsize,
}

/// A thread that counts as busy. If this is dropped before the thread starts to work, the thread is lost.
struct Begins(Option<Arc<Pool>>);

#[derive(Default)]
struct State {
    queue: VecDeque<Box<dyn Work>>,
    /// Idle threads, each as what wakes it. The last to come is the first to go: in any other order, a little
    /// work would keep every thread there ever was, since each gets some of it now and then.
    idle: Vec<Arc<Condvar>>,
    /// Threads that were woken for a job and have not picked one up yet.
    waking: usize,
    /// Threads that run a job and do not wait inside daffi.
    busy: usize,
    /// When a job was last taken, or started to wait in an empty queue.
    moved: Option<Instant>,
    stopped: bool,
}

/// How many threads are started at once, without waiting to see whether others become free.
const THREADS_AT_ONCE: usize = 2;
/// How long the first job in the queue waits before threads are added.
const PATIENCE: Duration = Duration::from_millis(1);
/// How long an idle thread is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

impl Pool {
    pub(crate) fn new(name: String, busy_max: usize) -> Arc<Self> {
        Self::with_keep_alive(name, busy_max, KEEP_ALIVE)
    }

    fn with_keep_alive(name: String, busy_max: usize, keep_alive: Duration) -> Arc<Self> {
        let lost = AtomicUsize::new(0);
        Arc::new(Self { name, busy_max, keep_alive, state: Mutex::default(), lost })
    }

    /// Runs `job` on a thread of the pool; jobs start in the order of submission as far as there are threads.
    ///
    /// A stopped pool drops it.
    pub(crate) fn submit(self: &Arc<Self>, job: Box<dyn Work>) {
        let mut failed = None;
        let mut state = self.lock();
        if state.stopped {
            return;
        }
        #[cfg(feature = "simulation")]
        if daffi_core::simulation::is_on() {
            daffi_core::simulation::with(|world| world.spawn(Box::new(move || job.run())));
            return;
        }
        if state.queue.is_empty() {
            state.moved = Some(host::now());
        }
        state.queue.push_back(job);
        if let Some(thread) = state.idle.pop() {
            state.waking += 1;
            thread.notify_one();
        } else if state.busy < THREADS_AT_ONCE.min(self.busy_max) {
            failed = self.add_thread(&mut state).err();
        }
        drop(state);
        log(failed);
    }

    /// Takes out the jobs that were over before their turn.
    #[must_use = "they are to be dropped without the lock"]
    pub(crate) fn take_out_over(&self) -> VecDeque<Box<dyn Work>> {
        let mut state = self.state.lock();
        let (over, queue) = std::mem::take(&mut state.queue).into_iter().partition(|job| job.is_over());
        state.queue = queue;
        over
    }

    /// Adds threads if work has waited for too long; returns when to look again.
    pub(crate) fn turn(self: &Arc<Self>, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        if state.queue.is_empty() || state.busy >= self.busy_max {
            return None;
        }
        let due = state.moved? + PATIENCE;
        if due > now {
            return Some(due);
        }
        // Doubles the threads, so that a burst of long jobs has them within milliseconds.
        let more = state.queue.len().min(state.busy.max(1)).min(self.busy_max - state.busy);
        let mut failed = None;
        for _ in 0..more {
            failed = self.add_thread(&mut state).err().or(failed);
        }
        state.moved = Some(now);
        drop(state);
        log(failed);
        Some(now + PATIENCE)
    }

    /// Runs `wait` on this thread of the pool, while another thread may work in its place.
    pub(crate) fn while_blocked<T>(self: &Arc<Self>, wait: impl FnOnce() -> T) -> T {
        struct Blocked<'a>(&'a Pool);
        impl Drop for Blocked<'_> {
            fn drop(&mut self) {
                self.0.state.lock().busy += 1;
            }
        }
        let failed = {
            let mut state = self.lock();
            state.busy -= 1;
            // An idle thread was not needed, and a waking one already has its job.
            let adds = state.queue.len() > state.waking && state.idle.is_empty();
            if adds { self.add_thread(&mut state).err() } else { None }
        };
        log(failed);
        let _blocked = Blocked(self);
        wait()
    }

    /// Takes no more jobs, drops those that wait, and lets the threads end after their current jobs.
    pub(crate) fn stop(&self) {
        let queue = {
            let mut state = self.state.lock();
            state.stopped = true;
            let idle = std::mem::take(&mut state.idle);
            state.waking += idle.len();
            for thread in &idle {
                thread.notify_one();
            }
            std::mem::take(&mut state.queue)
        };
        drop(queue);
    }

    fn add_thread(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        state.busy += 1;
        let mut begins = Begins(Some(self.clone()));
        let spawned = thread::Builder::new().name(self.name.clone()).spawn(move || {
            let Some(pool) = begins.0.take() else { return };
            with_role(Role::Pool(pool.clone()), || pool.work());
        });
        spawned.map(drop)
    }

    /// Locks the state, and subtracts the threads that were lost.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        state.busy -= self.lost.swap(0, Ordering::Relaxed);
        state
    }

    /// The main loop of a thread, which counts as busy when it gets here.
    fn work(&self) {
        let work = Arc::new(Condvar::new());
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                state.moved = Some(host::now());
                drop(state);
                // The callback's own panics end in its run. No other panic may end the thread, which is
                // counted.
                if catch_unwind(AssertUnwindSafe(|| job.run())).is_err() {
                    tracing::error!("a panic beside a callback; its thread goes on");
                }
                state = self.state.lock();
                continue;
            }
            state.busy -= 1;
            if state.stopped {
                return;
            }
            state.idle.push(work.clone());
            work.wait_for(&mut state, self.keep_alive);
            match state.idle.iter().position(|other| Arc::ptr_eq(other, &work)) {
                // Nobody had a job for it.
                Some(at) => {
                    state.idle.remove(at);
                    return;
                }
                // It was woken, perhaps just as its time was up.
                None => state.waking -= 1,
            }
            state.busy += 1;
        }
    }
}

/// Called without the lock: logging may run user code.
fn log(failed: Option<io::Error>) {
    if let Some(error) = failed {
        tracing::error!(%error, "cannot start a thread for callbacks; the others go on");
    }
}

impl Drop for Begins {
    fn drop(&mut self) {
        // Without the lock, which whoever starts a thread holds: a thread that cannot be started is dropped
        // there.
        if let Some(pool) = &self.0 {
            pool.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { queue, idle, busy, .. } = self;
        f.debug_struct("State")
            .field("queue", &queue.len())
            .field("idle", &idle.len())
            .field("busy", busy)
            .finish()
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::sync::{Barrier, mpsc::channel};

    use super::*;

    /// Gives the pool its turns until `done` returns true, as the I/O thread does.
    fn turn_until(pool: &Arc<Pool>, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < deadline, "{pool:?}");
            if let Some(next) = pool.turn(Instant::now()) {
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        }
    }

    /// A thread that the system has no resources for ends before it begins, and counts no more.
    #[test]
    fn a_thread_that_does_not_begin_is_not_busy() {
        let pool = Pool::new("test".into(), 1);
        pool.state.lock().busy += 1;
        drop(Begins(Some(pool.clone())));
        let (done_in, done) = channel();
        pool.submit(Box::new(move || done_in.send(7).unwrap()));
        assert_eq!(done.recv_timeout(Duration::from_secs(10)), Ok(7));
    }

    /// Runs twenty jobs, none of which ends before all have begun.
    fn burst(pool: &Arc<Pool>) {
        let barrier = Arc::new(Barrier::new(20));
        let (done_in, done) = channel();
        for _ in 0..20 {
            let (barrier, done_in) = (barrier.clone(), done_in.clone());
            pool.submit(Box::new(move || {
                barrier.wait();
                done_in.send(()).unwrap();
            }));
        }
        let mut count = 0;
        turn_until(pool, || {
            count += done.try_iter().count();
            count == 20
        });
    }

    #[test]
    fn jobs_that_block_get_more_threads() {
        let pool = Pool::new("test".into(), 64);
        burst(&pool);
    }

    #[test]
    fn a_thread_that_waits_inside_daffi_does_not_count() {
        let pool = Pool::new("test".into(), 1);
        let (inner_in, inner) = channel();
        let (outer_in, outer) = channel();
        let nested = pool.clone();
        pool.submit(Box::new(move || {
            let again = nested.clone();
            let waited = nested.while_blocked(|| {
                again.submit(Box::new(move || inner_in.send(7).unwrap()));
                inner.recv_timeout(Duration::from_secs(10))
            });
            outer_in.send(waited).unwrap();
        }));
        assert_eq!(outer.recv_timeout(Duration::from_secs(10)).unwrap(), Ok(7));
    }

    /// A little work, one job after the other, does not keep the threads of a burst.
    #[test]
    fn threads_of_a_burst_go_although_there_is_work() {
        let keep_alive = Duration::from_millis(200);
        let pool = Pool::with_keep_alive("test".into(), 64, keep_alive);
        burst(&pool);
        // More often than each of twenty threads would have to work to stay.
        turn_until(&pool, || {
            let (done_in, done) = channel();
            pool.submit(Box::new(move || done_in.send(()).unwrap()));
            done.recv_timeout(Duration::from_secs(10)).unwrap();
            thread::sleep(keep_alive / 40);
            let state = pool.state.lock();
            state.idle.len() + state.busy + state.waking <= 2
        });
    }

    #[test]
    fn a_stopped_pool_drops_what_waits() {
        let pool = Pool::new("test".into(), 1);
        let (started_in, started) = channel();
        let (release, released) = channel::<()>();
        pool.submit(Box::new(move || {
            started_in.send(()).unwrap();
            let _ = released.recv();
        }));
        started.recv().unwrap();
        let (dropped_in, dropped) = channel::<()>();
        pool.submit(Box::new(move || dropped_in.send(()).unwrap()));
        pool.stop();
        assert!(dropped.recv().is_err(), "it was dropped without being run");
        drop(release);
    }
}
