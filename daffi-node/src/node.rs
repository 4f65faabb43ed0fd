//! A node: its calls, its callbacks, and its link to the controller.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use daffi_core::{
    Error, Limits, Result,
    frame::{Failure, Frame},
    payload::Codec,
    reactor::{self, Service},
};
use parking_lot::Mutex;

use crate::{
    callback::Outcome,
    caller::Caller,
    connection::Connector,
    executor::{Arrival, Executor, Home},
    in_flight::{CallId, Deadline, InFlight},
    latch::Latch,
    link::{Flush, Link, Sent},
    outgoing::Outgoing,
    pending::{Payload, Pending},
    streams::StreamId,
};

/// A node.
pub(crate) struct Node {
    me: Weak<Self>,
    pub(crate) name: String,
    /// Tells this node from an earlier one of the same name.
    pub(crate) instance: u64,
    pub(crate) limits: Limits,
    pub(crate) default_timeout: Option<Duration>,
    pub(crate) calls: InFlight,
    pub(crate) executor: Arc<Executor>,
    pub(crate) link: Link,
    pub(crate) connector: Connector,
    /// Set when the node is known to the controller for the first time, or cannot ever be.
    pub(crate) started: Latch<Result<()>>,
    reactor: reactor::Handle,
    stopped: AtomicBool,
    /// How many calls have been sent, or wait for the link, and are not done.
    admitted: AtomicUsize,
    /// Calls beyond the limit, in order.
    queued: Mutex<VecDeque<(CallId, Outgoing)>>,
    queued_count: AtomicUsize,
    delayed: Mutex<BinaryHeap<Reverse<Delayed>>>,
    /// Requests that have come, and start when the I/O thread has looked at all that came.
    pub(crate) arrived: Mutex<Vec<Arrival>>,
    /// When the I/O thread looks after time next, in nanoseconds since `epoch`.
    wakes_at: AtomicU64,
    epoch: Instant,
    pub(crate) late_replies: AtomicU64,
}

/// A call that is to be sent later.
struct Delayed {
    at: Instant,
    /// In order of arrival among those of one time.
    number: u64,
    id: Option<CallId>,
    call: Outgoing,
}

/// Nothing is waited for: whoever has a deadline has to wake the I/O thread.
const NEVER: u64 = u64::MAX;

impl Node {
    pub(crate) fn new(
        name: String,
        instance: u64,
        limits: Limits,
        default_timeout: Option<Duration>,
        executor: Executor,
        reactor: reactor::Handle,
        connector: Connector,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            name,
            instance,
            default_timeout,
            calls: InFlight::new(),
            executor: Arc::new(executor),
            link: Link::new(reactor.clone(), limits.calls_in_flight_max),
            connector,
            started: Latch::new(),
            reactor,
            stopped: AtomicBool::new(false),
            admitted: AtomicUsize::new(0),
            queued: Mutex::default(),
            queued_count: AtomicUsize::new(0),
            delayed: Mutex::default(),
            arrived: Mutex::default(),
            wakes_at: AtomicU64::new(NEVER),
            epoch: Instant::now(),
            late_replies: AtomicU64::new(0),
            limits,
        })
    }

    /// Starts a call that is answered. `deadline` is watched by the I/O thread; a caller that watches it itself
    /// passes `None`. `eta` is how long the call waits before it is sent.
    ///
    /// Every failure arrives through `pending`.
    pub(crate) fn start(
        &self,
        pending: &Arc<Pending>,
        call: Outgoing,
        deadline: Option<Deadline>,
        eta: Option<Duration>,
    ) -> CallId {
        let id = self.calls.insert(pending.clone(), deadline);
        if self.stopped.load(Ordering::SeqCst) {
            self.fail(id, |pending| Error::Stopped { callback: pending.callback().to_owned() });
            return id;
        }
        if let Some(deadline) = deadline {
            self.watch(deadline.at);
        }
        match eta {
            Some(eta) => self.delay(eta, Some(id), call),
            None => self.admit(pending, id, call),
        }
        id
    }

    /// Sends a call that nobody answers.
    ///
    /// # Errors
    /// It cannot even be kept until there is a link.
    pub(crate) fn start_one_way(&self, call: Outgoing, eta: Option<Duration>) -> Result<()> {
        if self.stopped.load(Ordering::SeqCst) {
            return Err(Error::Stopped { callback: call.name.into_owned() });
        }
        if let Some(eta) = eta {
            self.delay(eta, None, call);
            return Ok(());
        }
        self.send_one_way(call)
    }

    fn send_one_way(&self, call: Outgoing) -> Result<()> {
        let flush = Flush::with(self.calls.len());
        if call.is_large() {
            // A payload in chunks needs an id of its own, which is free again once the first frame is out.
            let pending = Arc::new(Pending::new(call.name.clone(), None).one_way());
            let id = self.calls.insert(pending, None);
            let sent = self.link.send_call(Some(id), call, flush, |_| {});
            if sent != Sent::Waits {
                self.calls.remove(id);
            }
            return self.taken(sent);
        }
        let sent = self.link.send_call(None, call, flush, |_| {});
        self.taken(sent)
    }

    fn taken(&self, sent: Sent) -> Result<()> {
        if sent == Sent::Full { Err(self.overloaded()) } else { Ok(()) }
    }

    fn overloaded(&self) -> Error {
        Error::Overloaded { node: self.name.clone() }
    }

    /// Sends a call now if no more than the limit are in flight, later otherwise.
    fn admit(&self, pending: &Arc<Pending>, id: CallId, call: Outgoing) {
        let before = self.admitted.fetch_add(1, Ordering::AcqRel);
        if before < self.limits.calls_in_flight_max {
            pending.set_admitted();
            return self.send_admitted(pending, id, call, before);
        }
        self.admitted.fetch_sub(1, Ordering::AcqRel);
        {
            let mut queued = self.queued.lock();
            if queued.len() >= self.limits.calls_in_flight_max {
                drop(queued);
                return self.fail(id, |_| self.overloaded());
            }
            queued.push_back((id, call));
            self.queued_count.store(queued.len(), Ordering::SeqCst);
        }
        // A call may have ended between the look and the queueing, and found nothing to let in.
        if self.admitted.load(Ordering::SeqCst) < self.limits.calls_in_flight_max {
            self.admit_next();
        }
    }

    fn admit_next(&self) {
        let next = {
            let mut queued = self.queued.lock();
            let next = queued.pop_front();
            self.queued_count.store(queued.len(), Ordering::SeqCst);
            next
        };
        if let Some((id, call)) = next {
            match self.calls.get(id) {
                Some(pending) => self.admit(&pending, id, call),
                // It was cancelled, or its time ran out.
                None => self.admit_next(),
            }
        }
    }

    fn send_admitted(&self, pending: &Arc<Pending>, id: CallId, call: Outgoing, going_on: usize) {
        let flush = Flush::with(going_on);
        let sent = self.link.send_call(Some(id), call, flush, |sent| pending.set_sent(sent));
        if sent == Sent::Full {
            self.fail(id, |_| self.overloaded());
        }
    }

    fn delay(&self, eta: Duration, id: Option<CallId>, call: Outgoing) {
        // A time that cannot be counted to never comes.
        let Some(at) = Instant::now().checked_add(eta) else { return };
        {
            let mut delayed = self.delayed.lock();
            let number = delayed.len() as u64;
            delayed.push(Reverse(Delayed { at, number, id, call }));
        }
        self.watch(at);
    }

    /// Takes a call out of the table, if nobody was faster.
    pub(crate) fn take(&self, id: CallId) -> Option<Arc<Pending>> {
        let pending = self.calls.remove(id)?;
        self.release(&pending);
        Some(pending)
    }

    /// A call is over: the next one may go.
    fn release(&self, pending: &Pending) {
        if pending.is_admitted() {
            self.admitted.fetch_sub(1, Ordering::SeqCst);
            if self.queued_count.load(Ordering::SeqCst) > 0 {
                self.admit_next();
            }
        }
    }

    fn fail(&self, id: CallId, error: impl FnOnce(&Pending) -> Error) {
        if let Some(pending) = self.take(id) {
            pending.fail(error(&pending));
        }
    }

    /// The caller does not wait any more.
    pub(crate) fn cancel(&self, id: CallId) {
        if let Some(pending) = self.take(id) {
            self.withdraw(id, &pending);
            pending.fail(pending.cancelled());
        }
    }

    /// The caller's time has run out.
    pub(crate) fn time_out(&self, id: CallId, after: Duration) {
        if let Some(pending) = self.take(id) {
            self.withdraw(id, &pending);
            pending.fail(pending.timed_out(after));
        }
    }

    /// Tells the other side that nobody waits.
    fn withdraw(&self, id: CallId, pending: &Pending) {
        if pending.is_sent() {
            self.link.cancel_stream(StreamId { call: id.0, reply: false });
            self.link.send(&Frame::Cancel { id: id.0 }, Flush::Now);
        }
    }

    /// The link is gone: what was on its way is lost, what was not waits for the next link.
    pub(crate) fn link_lost(&self) {
        self.link.down();
        for (_, pending) in self.calls.remove_where(Pending::is_sent) {
            self.release(&pending);
            pending.fail(Error::ControllerLost { callback: pending.callback().to_owned() });
        }
        self.executor.cancel_all();
    }

    /// Nothing is sent from here on; what waits fails.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.queued.lock().clear();
        self.queued_count.store(0, Ordering::SeqCst);
        let dropped = std::mem::take(&mut *self.delayed.lock());
        let lost = dropped.iter().filter(|delayed| delayed.0.id.is_none()).count();
        if lost > 0 {
            tracing::warn!(calls = lost, "stopped before these calls were due; they are not sent");
        }
        self.link.drop_waiting();
        for (id, pending) in self.calls.remove_where(|_| true) {
            self.withdraw(id, &pending);
            let callback = pending.callback().to_owned();
            let sent = pending.is_sent();
            pending.fail(if sent {
                Error::Cancelled { callback, sent }
            } else {
                Error::Stopped { callback }
            });
        }
        self.started.set(Err(Error::Stopped { callback: "start".to_owned() }));
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Makes sure that the I/O thread looks after time at `at` or before.
    pub(crate) fn watch(&self, at: Instant) {
        if self.nanos(at) < self.wakes_at.load(Ordering::SeqCst) {
            self.reactor.wake();
        }
    }

    /// This node, unless it is being dropped.
    pub(crate) fn me(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    pub(crate) fn reactor(&self) -> &reactor::Handle {
        &self.reactor
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_nanos().try_into().unwrap_or(NEVER - 1)
    }

    /// Starts the requests that have come. One that came with its cancellation is not among them any more.
    pub(crate) fn run_arrived(&self) {
        let arrived = std::mem::take(&mut *self.arrived.lock());
        if arrived.is_empty() {
            return;
        }
        if let Some(me) = self.me() {
            for arrival in arrived {
                match arrival {
                    Arrival::Whole(job) => self.executor.run(job, me.clone()),
                    Arrival::Begun(reservation) => self.executor.reserve(reservation),
                }
            }
        }
    }

    fn expire(&self, now: Instant) {
        for (id, pending, after) in self.calls.expired(now) {
            self.release(&pending);
            self.withdraw(id, &pending);
            pending.fail(pending.timed_out(after));
        }
    }

    fn send_due(&self, now: Instant) {
        loop {
            let due = {
                let mut delayed = self.delayed.lock();
                if delayed.peek().is_none_or(|next| next.0.at > now) {
                    return;
                }
                delayed.pop()
            };
            let Some(Reverse(Delayed { id, call, .. })) = due else { return };
            match id.map(|id| (id, self.calls.get(id))) {
                Some((id, Some(pending))) => self.admit(&pending, id, call),
                // It was cancelled.
                Some((_, None)) => {}
                None => {
                    let name = call.name.clone();
                    if let Err(error) = self.send_one_way(call) {
                        tracing::warn!(callback = %name, %error, "a delayed call was not sent");
                    }
                }
            }
        }
    }
}

impl Service for Node {
    fn turn(&self, now: Instant) -> Option<Instant> {
        // From here on until the end whoever adds a deadline wakes the thread, so that none is overlooked.
        self.wakes_at.store(NEVER, Ordering::SeqCst);
        self.expire(now);
        self.send_due(now);
        self.link.turn();
        let delayed = self.delayed.lock().peek().map(|next| next.0.at);
        let connection = self.keep_connected(now);
        let next = [self.calls.next_deadline(), delayed, connection, self.executor.turn(now)];
        let next = next.into_iter().flatten().min();
        if let Some(next) = next {
            self.wakes_at.store(self.nanos(next), Ordering::SeqCst);
        }
        next
    }

    fn work(&self) {
        self.run_arrived();
        self.executor.work(|| self.link.turn());
    }
}

impl Home for Node {
    fn outcome(&self, id: u64, codec: Codec, outcome: Outcome, held: usize) {
        let flush = Flush::with(held);
        match outcome {
            Ok(body) => self.link.reply(id, &Payload { codec: codec.to_byte(), body }, flush),
            Err(mut fault) => {
                fault.node.clone_from(&self.name);
                self.link.send(&Frame::Failure(Failure { id, part: 0, fault }), flush);
            }
        }
    }

    fn caller(self: Arc<Self>, hops: u8, deadline: Option<Instant>) -> Caller {
        Caller::nested(self, hops, deadline)
    }
}

impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Delayed {}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name)
            .field("calls", &self.calls.len())
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}
