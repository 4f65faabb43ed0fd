//! Runs callbacks: where, how many at once, and what becomes of their outcome.

#![allow(clippy::result_large_err, reason = "a fault is rare, and an `Outcome` is moved once")]

mod gate;
pub(crate) use gate::Gate;

mod panics;

mod pool;
pub(crate) use pool::{Pool, Work};

mod run;
use run::Run;

use std::{
    collections::HashMap,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use daffi_core::{
    Limits,
    fault::{Fault, FaultKind},
    payload::Codec,
    signature::Signature,
};
use parking_lot::{Condvar, Mutex};
use tokio::{runtime::Runtime, task::AbortHandle};

use crate::{
    callback::{Handler, Outcome},
    caller::Caller,
    context::Cancellation,
    registry::{Entry, Registry},
};

/// Runs the callbacks of one node.
pub(crate) struct Executor {
    registry: Registry,
    pool: Arc<Pool>,
    workers: Mutex<Option<Runtime>>,
    requests: Mutex<Requests>,
    /// How many requests are there, running or waiting.
    held: AtomicUsize,
    held_max: usize,
    payload_bytes_max: u64,
    /// Somebody waits for the last request.
    draining: AtomicBool,
    drained: Condvar,
}

/// The requests that can be cancelled, by id.
type Requests = HashMap<u64, Held, foldhash::fast::FixedState>;

/// A request that runs or waits to.
#[derive(Debug)]
struct Held {
    cancellation: Arc<Cancellation>,
    /// Ends the task of an `async fn`.
    abort: Option<AbortHandle>,
}

/// A request whose payload is whole.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) callback: u32,
    pub(crate) one_way: bool,
    pub(crate) codec: u8,
    pub(crate) hops: u8,
    pub(crate) fingerprint: u64,
    pub(crate) deadline: Option<Instant>,
    pub(crate) caller: Box<str>,
    pub(crate) body: Bytes,
}

/// Where outcomes go, and where callbacks call onwards from: the node.
pub(crate) trait Home: Send + Sync + 'static {
    /// A request that wants an answer has its outcome. `held` is how many requests are still there.
    fn outcome(&self, id: u64, codec: Codec, outcome: Outcome, held: usize);

    /// Makes calls for a callback that is nested so deep and has so much time.
    fn caller(self: Arc<Self>, hops: u8, deadline: Option<Instant>) -> Caller;
}

/// Threads for `async fn` callbacks: at least this many, so that one that wrongly blocks does not stop the others.
const WORKERS_MIN: usize = 4;

impl Executor {
    /// An executor of these callbacks, with threads named after `name`.
    ///
    /// # Errors
    /// No threads are to be had.
    pub(crate) fn new(registry: Registry, limits: &Limits, name: &str) -> io::Result<Self> {
        panics::remember_places();
        let workers = registry.has_async().then(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(std::thread::available_parallelism().map_or(1, usize::from).max(WORKERS_MIN))
                .thread_name(format!("daffi-async {name}"))
                .enable_all()
                .build()
        });
        Ok(Self {
            registry,
            pool: Pool::new(format!("daffi-fn {name}"), limits.threads_max),
            workers: Mutex::new(workers.transpose()?),
            requests: Mutex::default(),
            held: AtomicUsize::new(0),
            held_max: limits.requests_held_max,
            payload_bytes_max: limits.payload_bytes_max,
            draining: AtomicBool::new(false),
            drained: Condvar::new(),
        })
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Runs a request. Called on the I/O thread, and returns at once unless the callback is `inline`.
    pub(crate) fn run(self: &Arc<Self>, job: Job, home: Arc<dyn Home>) {
        let entry = match self.check(&job) {
            Ok(entry) => entry,
            Err(fault) => {
                let codec = Codec::from_byte(job.codec).unwrap_or_default();
                if job.one_way {
                    tracing::warn!(caller = job.caller, reason = fault.message, "a call was not run");
                } else {
                    home.outcome(job.id, codec, Err(fault), self.held());
                }
                return;
            }
        };
        self.held.fetch_add(1, Ordering::AcqRel);
        let cancellation = Cancellation::new();
        if !job.one_way {
            let held = Held { cancellation: cancellation.clone(), abort: None };
            self.requests.lock().insert(job.id, held);
        }
        let run = Run::new(self.clone(), home, job, cancellation);
        let work: Work = match entry.callback.handler() {
            Handler::Sync(_) => Box::new(move || run.sync()),
            Handler::Async(_) => Box::new(move || run.future()),
        };
        match &entry.gate {
            Some(gate) => {
                if let Some(work) = gate.enter(work) {
                    self.place(entry, work);
                }
            }
            None => self.place(entry, work),
        }
    }

    /// Nobody waits for this request any more.
    pub(crate) fn cancel(&self, id: u64) {
        if let Some(held) = self.requests.lock().remove(&id) {
            held.cancel();
        }
    }

    /// Nobody waits for anything any more, since the link is gone.
    pub(crate) fn cancel_all(&self) {
        for (_, held) in std::mem::take(&mut *self.requests.lock()) {
            held.cancel();
        }
    }

    /// How many requests are there, running or waiting.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }

    /// Gives the pool more threads if it needs them; says when to look again.
    pub(crate) fn turn(&self, now: Instant) -> Option<Instant> {
        self.pool.turn(now)
    }

    /// Waits until `but` requests are left, or until `deadline`; says whether it came to that.
    pub(crate) fn drain(&self, but: usize, deadline: Instant) -> bool {
        self.draining.store(true, Ordering::SeqCst);
        let mut requests = self.requests.lock();
        while self.held() > but {
            if self.drained.wait_until(&mut requests, deadline).timed_out() {
                return self.held() <= but;
            }
        }
        true
    }

    /// Ends what can be ended: tasks at their next `.await`, threads after their job.
    pub(crate) fn stop(&self) {
        self.cancel_all();
        self.pool.stop();
        if let Some(workers) = self.workers.lock().take() {
            workers.shutdown_background();
        }
    }

    /// Whether a request can be run, and what runs it.
    fn check(&self, job: &Job) -> Result<&Entry, Fault> {
        let Some(entry) = self.registry.get(job.callback) else {
            return Err(Fault::new(FaultKind::NoCandidate, "the callback is not registered"));
        };
        let ours = entry.callback.signature();
        if !Signature::matches(ours.fingerprint(), job.fingerprint) {
            return Err(Fault::new(FaultKind::SignatureMismatch, ours.text()));
        }
        if Codec::from_byte(job.codec).is_none() {
            let problem = format!("codec {} is not known here", job.codec);
            return Err(Fault::new(FaultKind::BadArguments, problem));
        }
        if self.held() >= self.held_max {
            return Err(Fault::new(FaultKind::Overloaded, "as many requests are there as may be"));
        }
        Ok(entry)
    }

    /// Has work done where its callback belongs.
    fn place(self: &Arc<Self>, entry: &Entry, work: Work) {
        match entry.callback.handler() {
            Handler::Sync(_) if !entry.callback.options().inline => self.pool.submit(work),
            // A future only begins here, and is polled where it belongs.
            _ => work(),
        }
    }

    /// A request is over, one way or another.
    fn leave(self: &Arc<Self>, callback: u32) {
        self.held.fetch_sub(1, Ordering::AcqRel);
        if self.draining.load(Ordering::SeqCst) {
            // The lock orders this after the look at `held` that found it too large.
            drop(self.requests.lock());
            self.drained.notify_all();
        }
        if let Some(entry) = self.registry.get(callback)
            && let Some(next) = entry.gate.as_ref().and_then(Gate::leave)
        {
            self.place(entry, next);
        }
    }
}

impl Held {
    fn cancel(self) {
        self.cancellation.cancel();
        if let Some(abort) = self.abort {
            abort.abort();
        }
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("held", &self.held())
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}
