//! Runs callbacks: where, how many at once, and what becomes of their outcomes.

#![allow(clippy::result_large_err, reason = "a fault is rare, and an `Outcome` is moved once")]

mod gate;
pub(crate) use gate::Gate;
use gate::Ticket;

#[cfg(test)]
pub(crate) mod nowhere;

mod origin;
pub(crate) use origin::{Origin, Origins};

mod occupancy;
use occupancy::Occupancy;

mod panics;
pub(crate) use panics::remember_places;

mod pace;
pub(crate) use pace::Pace;

mod pool;
pub(crate) use pool::Pool;
use pool::Work;

mod requests;
pub(crate) use requests::Arrival;
use requests::{Held, Key, Next, Requests};

mod run;
pub(crate) use run::Run;

use std::{
    collections::VecDeque,
    fmt,
    hash::BuildHasher as _,
    io,
    sync::{
        Arc,
        atomic::{AtomicIsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use daffi_core::{
    Limits,
    fault::{Fault, FaultKind},
    host,
    payload::Codec,
    reactor,
    signature::Signature,
    survive::survive,
};
use tokio::runtime::{Handle, Runtime};

use crate::{
    blocking::{Role, with_role},
    callback::{Handler, Outcome},
    caller::Caller,
    held_bytes::Hold,
    registry::{Entry, Registry},
    sync::Mutex,
};

/// Runs the callbacks of one node.
pub(crate) struct Executor {
    registry: Registry,
    pool: Arc<Pool>,
    workers: Arc<Mutex<Option<Runtime>>>,
    worker_handle: Option<Handle>,
    reactor: reactor::Handle,
    requests: Mutex<Requests>,
    /// How many requests there are, running or waiting.
    occupancy: Occupancy,
    /// How many husks there are: requests that were cancelled while they waited, and are still in place. One
    /// may leave before it is counted.
    husks: AtomicIsize,
    /// The number of husks from which on they are looked for.
    sweep_at: AtomicIsize,
    held_max: usize,
    payload_bytes_max: u64,
}

/// A request whose payload is whole.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) callback: u32,
    pub(crate) one_way: bool,
    pub(crate) codec: u8,
    pub(crate) hops: u8,
    pub(crate) fingerprint: u64,
    pub(crate) deadline: Option<Instant>,
    /// The time to the deadline when the request came, in microseconds; 0 for no deadline.
    pub(crate) timeout_us: u64,
    pub(crate) origin: Arc<Origin>,
    pub(crate) body: Bytes,
    /// Counts its arguments among those that are held.
    pub(crate) hold: Option<Hold>,
    /// Its number among all that have come; 0 until it is assigned.
    pub(crate) number: u64,
}

/// Keeps the place of a request among those of its caller, while its payload is coming in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reservation {
    callback: u32,
    ticket: Ticket,
}

/// Where outcomes go, and where callbacks make nested calls from: the node.
pub(crate) trait Home: Send + Sync + 'static {
    /// Returns what runs the callbacks.
    fn executor(&self) -> &Arc<Executor>;

    /// Takes the outcome of a request from `origin` that wants an answer.
    fn outcome(&self, origin: &Origin, id: u64, codec: Codec, outcome: Outcome);

    /// Forgets the rest of an outcome.
    fn forget(&self, origin: &Origin, id: u64);

    /// Returns a caller for a callback with this nesting depth and deadline.
    fn caller(self: Arc<Self>, hops: u8, deadline: Option<Instant>) -> Caller;
}

/// How many callbacks run on the I/O thread before replies leave.
const RUNS_BETWEEN_FLUSHES: usize = 64;

/// How many callbacks run on the I/O thread before it attends to everything else.
const RUNS_IN_A_ROW: usize = 1024;

/// A body up to this size is copied when its request has to wait. Otherwise everything read along with it
/// would be kept.
const COPIED_BYTES_MAX: usize = 4 * 1024;

/// This few husks are left where they are.
const SWEEP_MIN: isize = 64;

/// Threads for `async fn` callbacks: at least this many, so that one that wrongly blocks does not stop the
/// others.
const WORKERS_MIN: usize = 4;

impl Executor {
    /// Returns an executor for these callbacks, with threads named after `name`.
    ///
    /// # Errors
    /// If no threads are available.
    pub(crate) fn new(
        registry: Registry,
        limits: &Limits,
        name: &str,
        reactor: reactor::Handle,
    ) -> io::Result<Self> {
        remember_places();
        let workers = registry.has_async().then(|| workers(name)).transpose()?;
        Ok(Self {
            registry,
            pool: Pool::new(format!("daffi-fn {name}"), limits.threads_max),
            worker_handle: workers.as_ref().map(|workers| workers.handle().clone()),
            workers: shared(workers),
            reactor,
            requests: Mutex::default(),
            occupancy: Occupancy::default(),
            husks: AtomicIsize::new(0),
            sweep_at: AtomicIsize::new(SWEEP_MIN),
            held_max: limits.requests_held_max,
            payload_bytes_max: limits.payload_bytes_max,
        })
    }

    /// Returns what identifies this executor within the process.
    pub(crate) fn id(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Takes something that has come for the executor.
    ///
    /// It is looked at once everything that came with it is here, see [`work`](Self::work): after a freeze, a
    /// process finds requests that have expired, and behind them their cancellations.
    pub(crate) fn arrived(&self, arrival: Arrival) {
        // A thread that leads while it waits for its own answer must not run what others ask for.
        self.reactor.welcome_guests(false);
        let in_order = matches!(&arrival, Arrival::Whole(job) if self.keeps_order(job));
        let refused = self.requests.lock().push(arrival, in_order);
        drop(refused);
    }

    /// Takes requests that have come for callbacks that keep no order.
    pub(crate) fn all_arrived(&self, jobs: &mut VecDeque<Job>) {
        self.reactor.welcome_guests(false);
        self.requests.lock().push_all(jobs);
        // In case no more are taken.
        jobs.clear();
    }

    /// Runs whatever has come and belongs on this thread, the I/O thread; dispatches the rest elsewhere.
    /// Replies leave through `flush` now and then, and with the turn that follows.
    pub(crate) fn work(&self, flush: impl Fn()) {
        if !self.requests.lock().has_work() {
            return;
        }
        // Before any work during which another thread may take over, or that might overtake what this one has
        // in hand.
        self.line_up();
        let role = Role::InPlace(self.reactor.clone());
        with_role(role, || {
            self.reactor.step(|step| {
                let mut entered = None;
                for done in 1..=RUNS_IN_A_ROW {
                    let run = match self.next() {
                        None => return,
                        Some(Next::Place(job)) => {
                            let key = job.key();
                            survive(|| self.run(job));
                            self.placed(key);
                            continue;
                        }
                        // What is dropped may be user memory, whose drop may wait for something.
                        Some(Next::Drop(run)) => {
                            survive(|| drop(run));
                            if step.again() { continue } else { return }
                        }
                        Some(Next::Forget(job)) => {
                            survive(|| drop(job));
                            if step.again() { continue } else { return }
                        }
                        Some(Next::End(held)) => {
                            self.end(held);
                            if step.again() { continue } else { return }
                        }
                        Some(Next::Run(run)) => run,
                    };
                    let Some(entry) = self.registry.get(run.callback()) else { continue };
                    match entry.callback.handler() {
                        // An `fn` has a runtime only if it brings its own.
                        Handler::Sync(_) => entered = None,
                        Handler::Async(_) if entered.is_some() => {}
                        Handler::Async(_) => entered = self.worker_handle.as_ref().map(Handle::enter),
                    }
                    let clock = entry.pace.clock();
                    if entry.callback.options().inline {
                        with_role(Role::Io, || run.in_place(entry));
                    } else {
                        run.in_place(entry);
                    }
                    let leads = step.again();
                    entry.pace.ran(clock, leads);
                    if !leads {
                        entry.held_its_thread(step.held_up().unwrap_or_default());
                        // By now another thread leads, and goes on with the rest.
                        return;
                    }
                    if done % RUNS_BETWEEN_FLUSHES == 0 {
                        flush();
                        if !step.again() {
                            return;
                        }
                    }
                }
                self.reactor.wake();
            })
        });
    }

    /// Lines up whatever has come for callbacks that keep an order.
    fn line_up(&self) {
        loop {
            // Not in the condition, which would keep the lock held.
            let next = self.requests.lock().next_in_order();
            let Some(arrival) = next else { return };
            let key = arrival.key();
            survive(|| match arrival {
                Arrival::Begun(reservation) => self.reserve(reservation),
                Arrival::Dropped(job) => self.forgo(&job),
                Arrival::Whole(job) => self.run(job),
            });
            self.placed(key);
        }
    }

    /// Notes that what was taken to be placed is where it belongs.
    fn placed(&self, key: Option<Key>) {
        let was_last = self.requests.lock().placed(key);
        if was_last {
            self.occupancy.looked();
        }
    }

    /// Returns what the I/O thread is to do next.
    fn next(&self) -> Option<Next> {
        let is_quick = |job: &Job| {
            let quick = self.check(job).is_ok_and(|entry| entry.is_quick(job.body.len()));
            if quick {
                self.occupancy.enter();
            }
            quick
        };
        let next = self.requests.lock().next(is_quick);
        if next.is_none() {
            self.occupancy.looked();
        }
        next
    }

    /// Dispatches a request to where it belongs. Called on the I/O thread; returns at once.
    pub(crate) fn run(&self, mut job: Job) {
        let entry = match self.check(&job) {
            Ok(entry) => entry,
            Err(fault) => {
                self.forgo(&job);
                let codec = Codec::from_byte(job.codec).unwrap_or_default();
                if job.one_way {
                    tracing::warn!(
                        caller = &*job.origin.caller,
                        reason = fault.message,
                        "a call was not run"
                    );
                } else {
                    job.origin.home.outcome(&job.origin, job.id, codec, Err(fault));
                }
                return;
            }
        };
        if job.body.len() <= COPIED_BYTES_MAX {
            job.body = Bytes::copy_from_slice(&job.body);
        }
        self.occupancy.enter();
        let ticket = entry.gate.as_ref().map(|gate| (gate, job.ticket()));
        let (run, waits) = Run::waiting(job);
        if let Some((key, arguments)) = waits {
            let replaced = self.requests.lock().hold(key, arguments);
            replaced.into_iter().for_each(|held| self.end(held));
        }
        match ticket {
            Some((gate, ticket)) => {
                gate.enter(ticket, run);
                self.place_next(entry, gate);
            }
            None => self.place(entry, run),
        }
    }

    /// Keeps a place for a request whose payload is still coming in.
    pub(crate) fn reserve(&self, reservation: Reservation) {
        if let Some(gate) = self.registry.get(reservation.callback).and_then(|entry| entry.gate.as_ref()) {
            gate.reserve(reservation.ticket);
        }
    }

    /// Called when a request will not be run: frees the place that was kept for it, if any.
    pub(crate) fn forgo(&self, job: &Job) {
        if let Some(entry) = self.registry.get(job.callback)
            && let Some(gate) = &entry.gate
        {
            gate.forgo(job.ticket());
            self.place_next(entry, gate);
        }
    }

    /// Returns whether calls of its callback must run in the order in which they come.
    pub(crate) fn keeps_order(&self, job: &Job) -> bool {
        self.registry.get(job.callback).is_some_and(|entry| entry.gate.is_some())
    }

    /// Returns what keeps the place of a request whose payload is still coming in, if its callback keeps an
    /// order.
    pub(crate) fn reservation(&self, job: &Job) -> Option<Reservation> {
        self.keeps_order(job).then(|| Reservation { callback: job.callback, ticket: job.ticket() })
    }

    /// Cancels a request.
    pub(crate) fn cancel(&self, id: u64) {
        // Cancelling wakes whoever waits for it, which is user code: the lock is released by then.
        let held = self.requests.lock().cancel(id);
        if let Some(held) = held {
            self.end(held);
        }
    }

    /// Ends a request that was started. One that still waits for its turn gives back its place and its
    /// arguments, and leaves an empty husk where it waits.
    fn end(&self, held: Held) {
        let waits = held.waits();
        survive(|| held.cancel());
        if !waits {
            return;
        }
        self.occupancy.leave(&self.requests);
        let husks = self.husks.fetch_add(1, Ordering::Relaxed) + 1;
        if husks >= self.sweep_at.load(Ordering::Relaxed) && husks.unsigned_abs() >= self.held() {
            self.sweep();
        }
    }

    /// Takes husks out of where they wait. There are at least as many as requests, so the cost for each is
    /// small.
    #[cold]
    fn sweep(&self) {
        for gate in self.registry.gates() {
            gate.take_out(Run::is_husk).into_iter().for_each(Run::drop_outside);
        }
        drop(self.pool.take_out_over());
        // Husks elsewhere are no reason to look again and again.
        let left = self.husks.load(Ordering::Relaxed).max(0);
        self.sweep_at.store(SWEEP_MIN.max(2 * left), Ordering::Relaxed);
    }

    /// Cancels everything, since the link is gone. One-way requests still run.
    pub(crate) fn cancel_all(&self) {
        let (all, dropped) = self.requests.lock().cancel_all();
        for held in all {
            self.end(held);
        }
        drop(dropped);
    }

    /// How many requests there are, running or waiting.
    pub(crate) fn held(&self) -> usize {
        self.occupancy.held()
    }

    /// Gives the pool more threads if it needs them; returns when to look again.
    pub(crate) fn turn(&self, now: Instant) -> Option<Instant> {
        self.pool.turn(now)
    }

    /// Waits until at most `but` requests are left, or until `deadline`; returns whether the former came
    /// about.
    ///
    /// Whatever comes afterwards is not run, since what would run it is about to end: its caller hears that
    /// the node has stopped.
    pub(crate) fn drain(&self, but: usize, deadline: Instant) -> bool {
        // What has come is as good as running: nobody else will get it.
        self.occupancy.drain(&self.requests, but, deadline, Requests::has_unplaced, Requests::close)
    }

    /// Ends what can be ended: tasks at their next `.await`, threads after their current job.
    pub(crate) fn stop(&self) {
        self.cancel_all();
        self.pool.stop();
        let workers = self.workers.lock().take();
        if let Some(workers) = workers {
            workers.shutdown_background();
        }
        // Each one dropped may let another in, which comes here too.
        loop {
            let dropped = self.requests.lock().clear();
            if dropped.is_empty() {
                return;
            }
        }
    }

    /// Returns what runs a request, if it can be run.
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

    /// Hands a run over to where it belongs: to the I/O thread if the callback is quick, else to where it may
    /// take its time.
    fn place(&self, entry: &Entry, run: Run) {
        if entry.is_quick(run.body_len()) {
            self.requests.lock().release(run);
            // The I/O thread looks here before it waits again.
            if !self.reactor.is_current() {
                self.reactor.wake();
            }
            return;
        }
        match entry.callback.handler() {
            Handler::Sync(_) => {
                self.pool.submit(Box::new(OnPool(run)));
                // The I/O thread adds threads for what waits, if it knows about it.
                if !self.reactor.is_current() {
                    self.reactor.wake();
                }
            }
            Handler::Async(_) => run.on_workers(),
        }
    }

    /// Places whatever may now run of what waits at a gate.
    fn place_next(&self, entry: &Entry, gate: &Gate<Run>) {
        gate.place(|run| {
            if self.husks.load(Ordering::Relaxed) > 0 && run.is_husk() {
                return;
            }
            self.place(entry, run);
        });
    }

    /// Called when a request is over, one way or another. `has_place`: it still counts as held; `is_in`: its
    /// gate had let it in.
    fn leave(&self, callback: u32, has_place: bool, is_in: bool) {
        if has_place {
            self.occupancy.leave(&self.requests);
        } else {
            let left = self.husks.fetch_sub(1, Ordering::Relaxed) - 1;
            if left <= 0 {
                self.sweep_at.store(SWEEP_MIN, Ordering::Relaxed);
            }
        }
        if is_in
            && let Some(entry) = self.registry.get(callback)
            && let Some(gate) = &entry.gate
        {
            gate.leave();
            self.place_next(entry, gate);
        }
    }
}

/// A run of an `fn` callback that waits for a thread.
struct OnPool(Run);

impl Work for OnPool {
    fn run(self: Box<Self>) {
        let Self(run) = *self;
        let origin = run.origin().clone();
        let Some(entry) = origin.home.executor().registry.get(run.callback()) else { return };
        let clock = run.says_how_quick().then(host::now);
        if run.on_pool(entry) {
            entry.pace.ran(clock, true);
        }
    }

    fn is_over(&self) -> bool {
        self.0.is_husk()
    }
}

/// Threads for `async fn` callbacks.
fn workers(name: &str) -> io::Result<Runtime> {
    #[cfg(feature = "simulation")]
    if daffi_core::simulation::is_on() {
        return tokio::runtime::Builder::new_current_thread().build();
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(1, usize::from).max(WORKERS_MIN))
        .thread_name(format!("daffi-async {name}"))
        .enable_all()
        .build()
}

fn shared(workers: Option<Runtime>) -> Arc<Mutex<Option<Runtime>>> {
    let workers = Arc::new(Mutex::new(workers));
    #[cfg(feature = "simulation")]
    crate::simulation::lend(&workers);
    workers
}

impl Job {
    fn ticket(&self) -> Ticket {
        // Two callers with the same number would merely wait for each other now and then.
        let caller = foldhash::fast::FixedState::default().hash_one(&self.origin.caller);
        Ticket { caller, request: self.id }
    }

    /// Returns the key for cancelling it, if anybody waits for it.
    fn key(&self) -> Option<Key> {
        (!self.one_way).then_some(Key { id: self.id, number: self.number })
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
