//! One run of one callback, from its start to its outcome.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll, Waker},
};

use daffi_core::{
    fault::{Fault, FaultKind},
    host,
    limits::CHUNK_BYTES,
    payload::{Codec, Encoded},
};

use super::{
    Executor, Job, Key, Origin, panics,
    requests::{Arguments, Continued, Requests},
};
use crate::{
    callback::{BoxFuture, Function, Handler, Invocation, Outcome},
    context::{AtPlace, Context, Incoming, Place, at_place},
    registry::Entry,
};

/// One run of one callback. Dropping it before its outcome counts as cancelling it.
pub(crate) struct Run {
    job: Job,
    /// The key for cancelling it, until it no longer can be.
    key: Option<Key>,
    /// Whether its arguments are kept where they can be dropped separately, until its turn.
    waits: bool,
    /// The size of the arguments in bytes.
    body_len: usize,
    /// Whether it counts as running at its gate, if there is one.
    is_in: bool,
}

impl Run {
    pub(super) fn new(job: Job) -> Self {
        Self { key: job.key(), waits: false, body_len: job.body.len(), is_in: true, job }
    }

    /// Returns a run that has to wait for its turn, and its arguments, which are to be held for it if it can
    /// be cancelled.
    pub(super) fn waiting(job: Job) -> (Self, Option<(Key, Arguments)>) {
        let mut run = Self::new(job);
        let Some(key) = run.key else { return (run, None) };
        run.waits = true;
        let body = std::mem::take(&mut run.job.body);
        let hold = run.job.hold.take();
        (run, Some((key, Arguments { body, hold })))
    }

    /// Takes its arguments, as it is its turn; returns `false` if it was cancelled.
    pub(super) fn begin(&mut self, requests: &mut Requests) -> bool {
        if !self.waits {
            return true;
        }
        let Some(arguments) = self.key.and_then(|key| requests.begin(key)) else { return false };
        let Arguments { body, hold } = arguments;
        (self.job.body, self.job.hold, self.waits) = (body, hold, false);
        true
    }

    /// Returns whether it was cancelled while it waited: it has already given its place back, and there is
    /// nothing to run.
    pub(super) fn is_husk(&self) -> bool {
        self.waits && !self.is_there()
    }

    /// Drops a run that its gate has never let in.
    pub(super) fn drop_outside(mut self) {
        self.is_in = false;
    }

    pub(super) fn origin(&self) -> &Arc<Origin> {
        &self.job.origin
    }

    #[cfg(test)]
    pub(super) fn key(&self) -> Option<Key> {
        self.key
    }

    fn executor(&self) -> &Executor {
        self.job.origin.home.executor()
    }

    pub(super) fn callback(&self) -> u32 {
        self.job.callback
    }

    /// The size of the arguments in bytes.
    pub(super) fn body_len(&self) -> usize {
        self.body_len
    }

    /// Returns whether this run shows how quick the callback is. With large arguments it never runs on the
    /// I/O thread, so slowness with those is no reason to keep it away from there with others.
    pub(super) fn says_how_quick(&self) -> bool {
        self.body_len <= CHUNK_BYTES
    }

    /// Runs the callback on the I/O thread, where its call arrived: an `async fn` until it first waits. The
    /// thread already has its role, and is in the workers' runtime.
    pub(super) fn in_place(self, entry: &Entry) {
        if self.is_expired() {
            return self.refuse();
        }
        match entry.callback.handler() {
            Handler::Sync(function) => self.sync(function),
            Handler::Async(function) => self.first_poll(function),
        }
    }

    /// Runs an `fn` callback on this thread of the pool, unless nobody waits for it any more; returns whether
    /// it did.
    pub(super) fn on_pool(self, entry: &Entry) -> bool {
        let Handler::Sync(function) = entry.callback.handler() else { return false };
        let Some(run) = self.after_waiting() else { return false };
        run.sync(function);
        true
    }

    /// Runs an `async fn` callback on the workers.
    pub(super) fn on_workers(self) {
        let timed = self.says_how_quick();
        Task { run: Some(self), future: None, timed }.spawn();
    }

    fn sync(mut self, function: &Function<Outcome>) {
        let place = self.place();
        let call = AssertUnwindSafe(|| at_place(place, || self.call(function)));
        let outcome = catch_unwind(call).unwrap_or_else(|panic| Err(panics::fault(panic)));
        self.finish(outcome);
    }

    /// Begins an `async fn` callback here; if it waits, the workers go on with it.
    fn first_poll(mut self, function: &Function<BoxFuture<Outcome>>) {
        let place = self.place();
        // The first poll on the workers sees whatever would wake it in the meantime.
        let mut context = TaskContext::from_waker(Waker::noop());
        let begin = || {
            let mut future = self.call(function);
            match future.as_mut().poll(&mut context) {
                Poll::Ready(outcome) => Ok(outcome),
                Poll::Pending => Err(future),
            }
        };
        match catch_unwind(AssertUnwindSafe(|| at_place(place, begin))) {
            Ok(Ok(outcome)) => self.finish(outcome),
            Ok(Err(future)) => {
                let future = Some(AtPlace { place, future });
                Task { run: Some(self), future, timed: false }.spawn();
            }
            Err(panic) => self.finish(Err(panics::fault(panic))),
        }
    }

    /// Returns this run, unless it was cancelled while it waited, or its time ran out.
    fn after_waiting(mut self) -> Option<Self> {
        let origin = self.origin().clone();
        if !self.begin(&mut origin.home.executor().requests.lock()) {
            return None;
        }
        if self.is_expired() {
            self.refuse();
            return None;
        }
        Some(self)
    }

    /// Calls the function, which returns the outcome or a future of it.
    fn call<T>(&mut self, function: &Function<T>) -> T {
        let invocation = Invocation { body: std::mem::take(&mut self.job.body), codec: self.codec() };
        function.call(invocation, || self.context())
    }

    /// Returns what the callback may ask about its call.
    fn context(&self) -> Context {
        let Job { hops, deadline, origin, .. } = &self.job;
        let incoming = Incoming::new(origin.caller.clone(), *deadline);
        if let Some(key) = self.key
            && !self.executor().requests.lock().tell(key, &incoming)
        {
            incoming.cancel();
        }
        Context::new(origin.home.clone().caller(*hops, *deadline), incoming)
    }

    fn place(&self) -> Place {
        Place { hops: self.job.hops, executor: self.executor().id() }
    }

    fn codec(&self) -> Codec {
        Codec::from_byte(self.job.codec).expect("it was checked before the run was made")
    }

    /// Refuses to run the callback, since its caller's time is up.
    fn refuse(mut self) {
        let fault = Fault::new(FaultKind::Expired, "the call's time ran out before it ran");
        if self.job.one_way {
            tracing::warn!(reason = fault.message, "a call that nobody waits for was not run");
        } else if self.withdraw() {
            self.answer(Err(fault.number(self.job.timeout_us).into()));
        }
    }

    fn answer(&self, outcome: Outcome) {
        let origin = &self.job.origin;
        origin.home.outcome(origin, self.job.id, self.codec(), outcome);
    }

    fn finish(mut self, mut outcome: Outcome) {
        // Before its caller, which may then send the next one, can know that it is over.
        self.job.hold = None;
        let (size, limit) = (outcome.as_ref().map_or(0, Encoded::len), self.executor().payload_bytes_max);
        if size as u64 > limit {
            let fault = Fault::new(FaultKind::TooLarge, "the result is too large");
            outcome = Err(fault.number(size as u64).limit(limit).into());
        }
        if self.job.one_way {
            if let Err(fault) = outcome {
                let entry = self.executor().registry.get(self.job.callback);
                let callback = entry.map(|entry| entry.callback.name());
                tracing::warn!(callback, error = fault.message, "a callback failed that nobody waits for");
            }
        } else if outcome.as_ref().is_ok_and(|body| body.len() > CHUNK_BYTES) {
            // The rest leaves in chunks later. A cancellation that comes before the link knows about the rest
            // must find the request, or the rest would wait forever.
            if self.is_there() && !self.is_expired() {
                self.answer(outcome);
                if !self.withdraw() {
                    self.job.origin.home.forget(&self.job.origin, self.job.id);
                }
            }
        } else if self.withdraw() && !self.is_expired() {
            self.answer(outcome);
        }
    }

    /// Returns whether the caller's time is up. The caller knows this from its own clock, which started
    /// before this one. An answer sent now would arrive too late, or pass off partial work, abandoned because
    /// `is_cancelled()` was true, as a result.
    fn is_expired(&self) -> bool {
        self.job.deadline.is_some_and(|deadline| deadline <= host::now())
    }

    /// Takes this run out of the requests that can be cancelled; returns whether it was among them. If not,
    /// its caller must not get an outcome.
    fn withdraw(&mut self) -> bool {
        // What it holds may be user memory, and is dropped without the lock.
        let held = self.key.take().and_then(|key| self.executor().requests.lock().remove(key));
        held.is_some()
    }

    /// Returns whether this run is among the requests that can be cancelled.
    fn is_there(&self) -> bool {
        self.key.is_some_and(|key| self.executor().requests.lock().has(key))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let was_there = self.withdraw();
        // Whoever cancels a waiting run gives its place back.
        let has_place = !self.waits || was_there;
        self.executor().leave(self.job.callback, has_place, self.is_in);
    }
}

/// An `async fn` callback as a task. Dropping it drops the callback at its current `.await`.
struct Task {
    run: Option<Run>,
    /// Made in the first poll, which is where the arguments are decoded.
    future: Option<AtPlace<BoxFuture<Outcome>>>,
    /// Whether the first poll is timed, so that a callback that has become quick can return to the I/O
    /// thread.
    timed: bool,
}

impl Task {
    /// Spawns it on the workers.
    fn spawn(self) {
        let Some(run) = &self.run else { return };
        let (origin, key) = (run.origin().clone(), run.key);
        let executor = origin.home.executor();
        let Some(workers) = &executor.worker_handle else { return };
        let abort = workers.spawn(self).abort_handle();
        let Some(key) = key else { return };
        // Not in the condition, which would keep the lock held.
        let continued = executor.requests.lock().continues(key, abort);
        match continued {
            Continued::Unwanted(task) => task.abort(),
            Continued::Instead(other) => executor.end(other),
            Continued::Held => {}
        }
    }
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<()> {
        let Self { run, future, timed } = &mut *self;
        if future.is_none() {
            *run = run.take().and_then(Run::after_waiting);
        }
        let Some(running) = run else { return Poll::Ready(()) };
        let (begun, timed) = (host::now(), std::mem::take(timed));
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let future = match future {
                Some(future) => future,
                None => {
                    let (origin, place) = (running.origin().clone(), running.place());
                    let entry = origin.home.executor().registry.get(running.callback());
                    let Some(Handler::Async(function)) = entry.map(|entry| entry.callback.handler()) else {
                        return Poll::Pending;
                    };
                    future.insert(AtPlace { place, future: at_place(place, || running.call(function)) })
                }
            };
            Pin::new(future).poll(context)
        }));
        let took = host::now().saturating_duration_since(begun);
        if let Some(entry) = running.executor().registry.get(running.callback()) {
            entry.held_its_thread(took);
            if timed {
                entry.pace.took(took);
            }
        }
        let outcome = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(outcome)) => outcome,
            Err(panic) => Err(panics::fault(panic)),
        };
        // The callback's own values are dropped before its caller learns the outcome.
        *future = None;
        if let Some(run) = run.take() {
            run.finish(outcome);
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
        time::{Duration, Instant},
    };

    use bytes::Bytes;
    use daffi_core::{
        Limits,
        reactor::Reactor,
        signature::{Signature, WireType},
    };

    use super::*;
    use crate::{
        callback::Callback,
        caller::Caller,
        executor::{Arrival, Home},
        held_bytes::HeldBytes,
        registry::Registry,
    };

    /// A home that cancels each result just as it leaves.
    struct Hasty {
        executor: Arc<Executor>,
        forgotten: mpsc::Sender<u64>,
    }

    impl Home for Hasty {
        fn executor(&self) -> &Arc<Executor> {
            &self.executor
        }

        fn outcome(&self, _: &Origin, id: u64, _: Codec, _: Outcome) {
            self.executor.cancel(id);
        }

        fn forget(&self, _: &Origin, id: u64) {
            self.forgotten.send(id).unwrap();
        }

        fn caller(self: Arc<Self>, _: u8, _: Option<Instant>) -> Caller {
            Caller::detached()
        }
    }

    fn job(home: Arc<dyn Home>) -> Job {
        Job {
            id: 7,
            callback: 0,
            one_way: false,
            codec: Codec::Bincode.to_byte(),
            hops: 1,
            fingerprint: 0,
            deadline: None,
            timeout_us: 0,
            origin: Arc::new(Origin { home, caller: "caller".into(), connection: 1 }),
            body: Bytes::new(),
            hold: None,
            number: 0,
        }
    }

    #[test]
    fn a_large_result_that_is_cancelled_as_it_leaves_is_forgotten() {
        let large = Handler::sync(|_| Ok(Bytes::from(vec![0; CHUNK_BYTES + 1]).into()));
        let callback = Callback::new("large", Signature::new([], WireType::named::<()>()), large);
        let registry = Registry::new(vec![callback]).unwrap();
        let reactor = Reactor::start("test").unwrap();
        let executor = Executor::new(registry, &Limits::default(), "test", reactor.handle().clone()).unwrap();
        let executor = Arc::new(executor);
        let (forgotten_in, forgotten) = mpsc::channel();
        let home = Arc::new(Hasty { executor: executor.clone(), forgotten: forgotten_in });
        executor.run(job(home));
        assert_eq!(forgotten.recv_timeout(Duration::from_secs(10)), Ok(7));
        executor.stop();
    }

    /// The controller may have been too slow to say that nothing more is coming.
    #[test]
    fn what_comes_after_the_last_request_is_not_run() {
        let callback = Callback::new(
            "late",
            Signature::new([], WireType::named::<()>()),
            Handler::sync(|_| Ok(Bytes::new().into())),
        );
        let registry = Registry::new(vec![callback]).unwrap();
        let reactor = Reactor::start("test").unwrap();
        let executor = Executor::new(registry, &Limits::default(), "test", reactor.handle().clone()).unwrap();
        let executor = Arc::new(executor);
        let home = Arc::new(Hasty { executor: executor.clone(), forgotten: mpsc::channel().0 });
        let deadline = Instant::now() + Duration::from_secs(10);
        assert!(executor.drain(0, deadline));
        executor.arrived(Arrival::Whole(job(home)));
        assert!(executor.drain(0, Instant::now()), "it has been taken");
        executor.work(|| unreachable!("there is nothing to run"));
        executor.stop();
    }

    /// Counts its drops.
    struct Counted(Arc<AtomicUsize>);

    impl AsRef<[u8]> for Counted {
        fn as_ref(&self) -> &[u8] {
            &[7; 10_000]
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Both at a gate and where no threads are left.
    #[test]
    fn requests_that_are_cancelled_while_they_wait_give_their_room_back_at_once() {
        const WAITING: u64 = 7;
        for max_concurrency in [None, Some(1)] {
            let (begun_in, begun) = mpsc::channel();
            let (go_on, going_on) = mpsc::channel::<()>();
            let going_on = std::sync::Mutex::new(going_on);
            let handler = Handler::sync(move |invocation| {
                begun_in.send(invocation.body.len()).unwrap();
                let _ = going_on.lock().unwrap().recv();
                Ok(Bytes::new().into())
            });
            let mut callback = Callback::new("busy", Signature::new([], WireType::named::<()>()), handler);
            if let Some(limit) = max_concurrency {
                callback = callback.max_concurrency(limit);
            }
            let registry = Registry::new(vec![callback]).unwrap();
            let reactor = Reactor::start("test").unwrap();
            let limits =
                Limits { threads_max: 1, requests_held_max: 1 + WAITING as usize, ..Limits::default() };
            let executor = Executor::new(registry, &limits, "test", reactor.handle().clone()).unwrap();
            let executor = Arc::new(executor);
            let home = Arc::new(Hasty { executor: executor.clone(), forgotten: mpsc::channel().0 });
            let (dropped, held_bytes) = (Arc::new(AtomicUsize::new(0)), HeldBytes::new(200_000));
            let run = |id: u64| {
                let body = Bytes::from_owner(Counted(dropped.clone()));
                let hold = held_bytes.hold(body.len()).expect("there is room for their bytes");
                executor.run(Job { id, number: id, body, hold, ..job(home.clone()) });
            };
            run(1);
            assert_eq!(begun.recv_timeout(Duration::from_secs(10)), Ok(10_000));
            let mut id = 1;
            for round in 0..200 {
                let first = id + 1;
                while id < first + WAITING - 1 {
                    id += 1;
                    run(id);
                }
                assert_eq!(executor.held(), limits.requests_held_max, "{round}");
                let before = dropped.load(Ordering::SeqCst);
                if round % 2 == 0 {
                    (first..=id).for_each(|id| executor.cancel(id));
                } else {
                    executor.cancel_all();
                }
                assert_eq!(dropped.load(Ordering::SeqCst) - before, WAITING as usize, "{round}");
                assert_eq!(executor.held(), 1, "{round}");
                let husks = executor.husks.load(Ordering::SeqCst);
                assert!(husks <= 2 * 64, "{husks} are left where they waited");
            }
            // A request that comes now does not wait for those that were cancelled.
            run(id + 1);
            drop(go_on);
            assert_eq!(begun.recv_timeout(Duration::from_secs(10)), Ok(10_000));
            let deadline = Instant::now() + Duration::from_secs(10);
            assert!(executor.drain(0, deadline));
            assert_eq!(held_bytes.used(), 0);
            executor.stop();
        }
    }
}
