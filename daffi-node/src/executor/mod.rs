//! Runs callbacks: where, how many at once, and what becomes of their outcome.

#![allow(clippy::result_large_err, reason = "a fault is rare, and an `Outcome` is moved once")]

mod gate;
pub(crate) use gate::Gate;
use gate::Ticket;

mod panics;

mod pace;
pub(crate) use pace::Pace;

mod pool;
pub(crate) use pool::Pool;

mod run;
pub(crate) use run::Run;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::BuildHasher as _,
    io,
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
    reactor,
    signature::Signature,
};
use parking_lot::{Condvar, Mutex};
use tokio::{
    runtime::{Handle, Runtime},
    task::AbortHandle,
};

use crate::{
    blocking::Role,
    callback::{Handler as Function, Outcome},
    caller::Caller,
    context::Incoming,
    registry::{Entry, Registry},
};

/// Runs the callbacks of one node.
pub(crate) struct Executor {
    registry: Registry,
    pool: Arc<Pool>,
    workers: Mutex<Option<Runtime>>,
    worker_handle: Option<Handle>,
    reactor: reactor::Handle,
    /// What the I/O thread runs itself, in order.
    in_place: Mutex<VecDeque<Run>>,
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
    incoming: Arc<Incoming>,
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
    /// How much time that was when the request came, in microseconds; 0 for no deadline.
    pub(crate) timeout_us: u64,
    pub(crate) caller: Box<str>,
    pub(crate) body: Bytes,
}

/// What the I/O thread has for the executor, in the order in which it came.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A request that can run.
    Whole(Job),
    /// The first part of one.
    Begun(Reservation),
}

/// Keeps the place of a request among those of its caller, while its payload is coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reservation {
    callback: u32,
    ticket: Ticket,
}

/// Where outcomes go, and where callbacks call onwards from: the node.
pub(crate) trait Home: Send + Sync + 'static {
    /// A request that wants an answer has its outcome. `held` is how many requests are still there.
    fn outcome(&self, id: u64, codec: Codec, outcome: Outcome, held: usize);

    /// Nobody wants the rest of an outcome.
    fn forget(&self, id: u64);

    /// Makes calls for a callback that is nested so deep and has so much time.
    fn caller(self: Arc<Self>, hops: u8, deadline: Option<Instant>) -> Caller;
}

/// How many callbacks run on the I/O thread before replies leave.
const RUNS_BETWEEN_FLUSHES: usize = 64;

/// Threads for `async fn` callbacks: at least this many, so that one that wrongly blocks does not stop the others.
const WORKERS_MIN: usize = 4;

impl Executor {
    /// An executor of these callbacks, with threads named after `name`.
    ///
    /// # Errors
    /// No threads are to be had.
    pub(crate) fn new(
        registry: Registry,
        limits: &Limits,
        name: &str,
        reactor: reactor::Handle,
    ) -> io::Result<Self> {
        panics::remember_places();
        let workers = registry.has_async().then(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(std::thread::available_parallelism().map_or(1, usize::from).max(WORKERS_MIN))
                .thread_name(format!("daffi-async {name}"))
                .enable_all()
                .build()
        });
        let workers = workers.transpose()?;
        Ok(Self {
            registry,
            pool: Pool::new(format!("daffi-fn {name}"), limits.threads_max),
            worker_handle: workers.as_ref().map(|workers| workers.handle().clone()),
            workers: Mutex::new(workers),
            reactor,
            in_place: Mutex::default(),
            requests: Mutex::default(),
            held: AtomicUsize::new(0),
            held_max: limits.requests_held_max,
            payload_bytes_max: limits.payload_bytes_max,
            draining: AtomicBool::new(false),
            drained: Condvar::new(),
        })
    }

    /// What tells this executor from the others of the process.
    pub(crate) fn id(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Runs a request. Called on the I/O thread, and returns at once unless the callback is `inline`.
    pub(crate) fn run(self: &Arc<Self>, mut job: Job, home: Arc<dyn Home>) {
        let entry = match self.check(&job) {
            Ok(entry) => entry,
            Err(fault) => {
                self.forgo(&job);
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
        let ticket = entry.gate.as_ref().map(|gate| (gate, job.ticket()));
        let incoming = Incoming::new(std::mem::take(&mut job.caller), job.deadline);
        if !job.one_way {
            let held = Held { incoming: incoming.clone(), abort: None };
            self.requests.lock().insert(job.id, held);
        }
        let run = Run::new(self.clone(), home, job, incoming);
        match ticket {
            Some((gate, ticket)) => {
                gate.enter(ticket, run);
                self.place_next(entry, gate);
            }
            None => self.place(entry, run),
        }
    }

    /// Runs what is to run on the I/O thread, which this is. Replies leave through `flush` now and then, and with the
    /// turn that follows.
    pub(crate) fn work(&self, flush: impl Fn()) {
        for done in 1.. {
            let Some(run) = self.in_place.lock().pop_front() else { return };
            let Some(entry) = self.registry.get(run.callback()) else { continue };
            let inline = entry.callback.options().inline;
            let role = if inline { Role::Io } else { Role::InPlace(self.reactor.clone()) };
            let clock = entry.pace.clock();
            let leads = self.reactor.step(|| run.in_place(role));
            entry.pace.ran(clock, leads);
            if !leads {
                return;
            }
            if done % RUNS_BETWEEN_FLUSHES == 0 {
                flush();
            }
        }
    }

    /// Keeps a place for a request whose payload is still coming.
    pub(crate) fn reserve(&self, reservation: Reservation) {
        if let Some(gate) = self.registry.get(reservation.callback).and_then(|entry| entry.gate.as_ref()) {
            gate.reserve(reservation.ticket);
        }
    }

    /// A request will not be run: if a place was kept for it, that is free.
    pub(crate) fn forgo(self: &Arc<Self>, job: &Job) {
        if let Some(entry) = self.registry.get(job.callback)
            && let Some(gate) = &entry.gate
        {
            gate.forgo(job.ticket());
            self.place_next(entry, gate);
        }
    }

    /// What keeps the place of a request whose payload is still coming, if its callback has an order to keep.
    pub(crate) fn reservation(&self, job: &Job) -> Option<Reservation> {
        self.registry.get(job.callback)?.gate.as_ref()?;
        Some(Reservation { callback: job.callback, ticket: job.ticket() })
    }

    /// Nobody waits for this request any more.
    pub(crate) fn cancel(&self, id: u64) {
        // Cancelling wakes whoever waits for it, which is the user's code: the lock is released by then.
        let held = self.requests.lock().remove(&id);
        if let Some(held) = held {
            held.cancel();
        }
    }

    /// Nobody waits for anything any more, since the link is gone.
    pub(crate) fn cancel_all(&self) {
        let all = std::mem::take(&mut *self.requests.lock());
        for (_, held) in all {
            held.cancel();
        }
    }

    /// How many requests are there, running or waiting.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
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
        let workers = self.workers.lock().take();
        if let Some(workers) = workers {
            workers.shutdown_background();
        }
        // Each that is dropped may let another one in, which comes here too.
        loop {
            let dropped = std::mem::take(&mut *self.in_place.lock());
            if dropped.is_empty() {
                return;
            }
        }
    }

    /// Whether a request can be run, and what runs it.
    fn check(&self, job: &Job) -> Result<&Entry, Box<Fault>> {
        let Some(entry) = self.registry.get(job.callback) else {
            return Err(Fault::new(FaultKind::NoCandidate, "the callback is not registered").into());
        };
        let ours = entry.callback.signature();
        if !Signature::matches(ours.fingerprint(), job.fingerprint) {
            return Err(Fault::new(FaultKind::SignatureMismatch, ours.text()).into());
        }
        if Codec::from_byte(job.codec).is_none() {
            let problem = format!("codec {} is not known here", job.codec);
            return Err(Fault::new(FaultKind::BadArguments, problem).into());
        }
        if self.held() >= self.held_max {
            return Err(Fault::new(FaultKind::Overloaded, "as many requests are there as may be").into());
        }
        Ok(entry)
    }

    /// Has a callback run where it belongs: on the I/O thread if it is quick, else where it may take its time.
    fn place(self: &Arc<Self>, entry: &Entry, run: Run) {
        if entry.callback.options().inline || entry.pace.is_quick() {
            self.in_place.lock().push_back(run);
            // The I/O thread looks here before it waits again.
            if !self.reactor.is_current() {
                self.reactor.wake();
            }
            return;
        }
        match entry.callback.handler() {
            Function::Sync(_) => {
                let executor = self.clone();
                self.pool.submit(Box::new(move || {
                    let callback = run.callback();
                    let clock = Instant::now();
                    run.sync();
                    if let Some(entry) = executor.registry.get(callback) {
                        entry.pace.ran(Some(clock), true);
                    }
                }));
                // The I/O thread looks after more threads for what waits, if it knows of it.
                if !self.reactor.is_current() {
                    self.reactor.wake();
                }
            }
            Function::Async(_) => run.future(),
        }
    }

    /// Has done what may be done now of what waits at a gate.
    fn place_next(self: &Arc<Self>, entry: &Entry, gate: &Gate<Run>) {
        gate.place(|run| self.place(entry, run));
    }

    /// A request is over, one way or another.
    fn leave(self: &Arc<Self>, callback: u32) {
        // Together with `draining` in one order: either this is seen there, or that is seen here.
        self.held.fetch_sub(1, Ordering::SeqCst);
        if self.draining.load(Ordering::SeqCst) {
            // The lock orders this after the look at `held` that found it too large.
            drop(self.requests.lock());
            self.drained.notify_all();
        }
        if let Some(entry) = self.registry.get(callback)
            && let Some(gate) = &entry.gate
        {
            gate.leave();
            self.place_next(entry, gate);
        }
    }
}

impl Job {
    fn ticket(&self) -> Ticket {
        // Two callers of one number would wait for each other now and then, and no more.
        let caller = foldhash::fast::FixedState::default().hash_one(&self.caller);
        Ticket { caller, request: self.id }
    }
}

impl Held {
    /// Whether it is the request that came as this, and not another one of the same id.
    fn is_of(&self, incoming: &Arc<Incoming>) -> bool {
        Arc::ptr_eq(&self.incoming, incoming)
    }

    fn cancel(self) {
        self.incoming.cancel();
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
