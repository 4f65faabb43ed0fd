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
    payload::Codec,
};

use super::{Executor, Home, Job, panics};
use crate::{
    callback::{BoxFuture, Handler, Invocation, Outcome},
    context::{AtPlace, Context, Incoming, Place, at_place},
};

/// One run of one callback. Dropping it before its outcome counts as cancelled.
pub(crate) struct Run {
    home: Arc<dyn Home>,
    job: Job,
    incoming: Arc<Incoming>,
}

impl Run {
    pub(super) fn new(home: Arc<dyn Home>, job: Job, incoming: Arc<Incoming>) -> Self {
        Self { home, job, incoming }
    }

    pub(super) fn home(&self) -> &Arc<dyn Home> {
        &self.home
    }

    fn executor(&self) -> &Executor {
        self.home.executor()
    }

    pub(super) fn callback(&self) -> u32 {
        self.job.callback
    }

    /// How many bytes the arguments have.
    pub(super) fn body_len(&self) -> usize {
        self.job.body.len()
    }

    /// Whether this run shows how quick the callback is. With large arguments it never runs on the I/O thread, so how
    /// long it takes with them is no reason not to with others.
    pub(super) fn says_how_quick(&self) -> bool {
        self.job.body.len() <= CHUNK_BYTES
    }

    /// Runs the callback on the I/O thread, where its call arrived: an `async fn` until it first waits. The thread has
    /// its role, and is in the runtime of the workers, already.
    pub(super) fn in_place(self) {
        let Some(entry) = self.executor().registry.get(self.job.callback) else { return };
        match entry.callback.handler() {
            Handler::Sync(_) => self.sync(),
            Handler::Async(_) => self.first_poll(),
        }
    }

    /// Runs an `fn` callback, here and now.
    pub(super) fn sync(mut self) {
        if let Some(fault) = self.refusal() {
            return self.refuse(fault);
        }
        let invocation = self.invocation();
        let Some(entry) = self.executor().registry.get(self.job.callback) else { return };
        let Handler::Sync(function) = entry.callback.handler() else { return };
        let place = self.place();
        let call = AssertUnwindSafe(|| at_place(place, || function(invocation)));
        let outcome = catch_unwind(call).unwrap_or_else(|panic| Err(panics::fault(panic)));
        self.finish(outcome);
    }

    /// Begins an `async fn` callback here; the workers go on with it if it waits.
    fn first_poll(self) {
        if let Some(fault) = self.refusal() {
            return self.refuse(fault);
        }
        let mut task = Task { run: Some(self), future: None, timed: false };
        let mut context = TaskContext::from_waker(Waker::noop());
        // Whatever wakes it meanwhile is seen in the first poll on the workers.
        if Pin::new(&mut task).poll(&mut context).is_pending() {
            task.spawn();
        }
    }

    /// Runs an `async fn` callback on the workers.
    pub(super) fn future(self) {
        match self.refusal() {
            Some(fault) => self.refuse(fault),
            None => {
                let timed = self.says_how_quick();
                Task { run: Some(self), future: None, timed }.spawn();
            }
        }
    }

    /// Why the callback is not to run at all any more.
    fn refusal(&self) -> Option<Box<Fault>> {
        if self.incoming.is_cancelled() {
            Some(Fault::new(FaultKind::Cancelled, "the call was cancelled before it ran").into())
        } else if self.is_expired() {
            let fault = Fault::new(FaultKind::Expired, "the call's time ran out before it ran");
            Some(fault.number(self.job.timeout_us).into())
        } else {
            None
        }
    }

    fn place(&self) -> Place {
        Place { hops: self.job.hops, executor: self.executor().id() }
    }

    fn invocation(&mut self) -> Invocation {
        let Job { hops, deadline, body, .. } = &mut self.job;
        let call = self.home.clone().caller(*hops, *deadline);
        let context = Context::new(call, self.incoming.clone());
        Invocation { body: std::mem::take(body), codec: self.codec(), context }
    }

    fn codec(&self) -> Codec {
        Codec::from_byte(self.job.codec).expect("it was checked before the run was made")
    }

    /// The callback does not run.
    fn refuse(self, fault: Box<Fault>) {
        if self.job.one_way {
            tracing::warn!(reason = fault.message, "a call that nobody waits for was not run");
        } else if self.withdraw() {
            self.answer(Err(fault));
        }
    }

    fn answer(&self, outcome: Outcome) {
        self.home.outcome(self.job.id, self.codec(), outcome);
    }

    fn finish(self, outcome: Outcome) {
        let outcome = outcome.and_then(|body| {
            let (size, limit) = (body.len() as u64, self.executor().payload_bytes_max);
            if size <= limit {
                return Ok(body);
            }
            Err(Fault::new(FaultKind::TooLarge, "the result is too large").number(size).limit(limit).into())
        });
        if self.job.one_way {
            if let Err(fault) = outcome {
                let entry = self.executor().registry.get(self.job.callback);
                let callback = entry.map(|entry| entry.callback.name());
                tracing::warn!(callback, error = fault.message, "a callback failed that nobody waits for");
            }
            return;
        }
        if outcome.as_ref().is_ok_and(|body| body.len() > CHUNK_BYTES) {
            // The rest leaves in chunks later on. A cancellation that comes before the rest is known to the link has
            // to find the request, or the rest would wait for ever.
            if self.is_there() && !self.is_expired() {
                self.answer(outcome);
                if !self.withdraw() {
                    self.home.forget(self.job.id);
                }
            }
        } else if self.withdraw() && !self.is_expired() {
            self.answer(outcome);
        }
    }
}

impl Run {
    /// Whether the caller's time is up. Its own clock tells it so, and it began to run before this one: an answer would
    /// come too late, or just in time to pass for a result what a callback left undone because `is_cancelled()`.
    fn is_expired(&self) -> bool {
        self.job.deadline.is_some_and(|deadline| deadline <= host::now())
    }

    /// Takes this run out of the requests that can be cancelled, and says whether it was there: otherwise its caller
    /// must not get an outcome.
    fn withdraw(&self) -> bool {
        self.executor().requests.lock().remove(self.job.id, &self.incoming)
    }

    /// Whether this run is among the requests that can be cancelled.
    fn is_there(&self) -> bool {
        self.executor().requests.lock().has(self.job.id, &self.incoming)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.job.one_way {
            self.withdraw();
        }
        self.executor().leave(self.job.callback);
    }
}

/// An `async fn` callback as a task. Dropping it drops the callback at the `.await` where it is.
struct Task {
    run: Option<Run>,
    /// Made in the first poll, since that is where the arguments are decoded.
    future: Option<AtPlace<BoxFuture<Outcome>>>,
    /// Whether the first poll is timed, so that a callback that has become quick can return to the I/O thread.
    timed: bool,
}

impl Task {
    /// Has the workers go on with it.
    fn spawn(self) {
        let Some(run) = &self.run else { return };
        let (home, id, incoming) = (run.home.clone(), run.job.id, run.incoming.clone());
        let executor = home.executor();
        let Some(workers) = &executor.worker_handle else { return };
        let abort = workers.spawn(self).abort_handle();
        let unwanted = executor.requests.lock().continues(id, &incoming, abort);
        if let Some(task) = unwanted {
            task.abort();
        }
    }
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<()> {
        let Self { run, future, timed } = &mut *self;
        let Some(running) = run else { return Poll::Ready(()) };
        let clock = std::mem::take(timed).then(host::now);
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let future = match future {
                Some(future) => future,
                None => {
                    let invocation = running.invocation();
                    let Some(entry) = running.executor().registry.get(running.job.callback) else {
                        return Poll::Pending;
                    };
                    let Handler::Async(function) = entry.callback.handler() else { return Poll::Pending };
                    let place = running.place();
                    future.insert(AtPlace { place, future: at_place(place, || function(invocation)) })
                }
            };
            Pin::new(future).poll(context)
        }));
        if clock.is_some()
            && let Some(entry) = running.executor().registry.get(running.job.callback)
        {
            entry.pace.ran(clock, true);
        }
        let outcome = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(outcome)) => outcome,
            Err(panic) => Err(panics::fault(panic)),
        };
        // The callback's own values are gone before its caller hears of the outcome.
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
        sync::mpsc,
        time::{Duration, Instant},
    };

    use bytes::Bytes;
    use daffi_core::{
        Limits,
        reactor::Reactor,
        signature::{Signature, WireType},
    };

    use super::*;
    use crate::{callback::Callback, caller::Caller, executor::Arrival, registry::Registry};

    /// Where each result is cancelled just as it leaves.
    struct Hasty {
        executor: Arc<Executor>,
        forgotten: mpsc::Sender<u64>,
    }

    impl Home for Hasty {
        fn executor(&self) -> &Arc<Executor> {
            &self.executor
        }

        fn outcome(&self, id: u64, _: Codec, _: Outcome) {
            self.executor.cancel(id);
        }

        fn forget(&self, id: u64) {
            self.forgotten.send(id).unwrap();
        }

        fn caller(self: Arc<Self>, _: u8, _: Option<Instant>) -> Caller {
            Caller::detached()
        }
    }

    fn job() -> Job {
        Job {
            id: 7,
            callback: 0,
            one_way: false,
            codec: Codec::Bincode.to_byte(),
            hops: 1,
            fingerprint: 0,
            deadline: None,
            timeout_us: 0,
            caller: "caller".into(),
            body: Bytes::new(),
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
        executor.run(job(), Arc::new(Hasty { executor: executor.clone(), forgotten: forgotten_in }));
        assert_eq!(forgotten.recv_timeout(Duration::from_secs(10)), Ok(7));
        executor.stop();
    }

    /// The controller may have been too slow to say that nothing more comes.
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
        let deadline = Instant::now() + Duration::from_secs(10);
        assert!(executor.drain(0, deadline));
        executor.arrived(Arrival::Whole(job()));
        assert!(executor.drain(0, Instant::now()), "it has been taken");
        executor.work(|| unreachable!("there is nothing to run"), || {});
        executor.stop();
    }
}
