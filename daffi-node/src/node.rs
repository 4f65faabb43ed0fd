//! A node: its calls, its callbacks, and its link to the controller.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
    time::{Duration, Instant},
};

use bytes::Bytes;
use daffi_core::{
    Error, Limits, Result,
    fault::Fault,
    frame::{Failure, Frame, Reply},
    host,
    limits::FRAME_BYTES_MAX,
    payload::Codec,
    reactor::{self, Service},
};
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::{
    admission::{Admission, Admitted},
    alarm::Alarm,
    callback::Outcome,
    caller::Caller,
    connection::Connector,
    executor::{Executor, Home, Origin},
    held_bytes::{Full, HeldBytes, Hold},
    in_flight::{CallId, Deadline, InFlight},
    latch::Latch,
    link::{Flush, Link, Sent, Unwritten},
    outgoing::{Kind, Outgoing},
    payload_pool::PayloadPool,
    pending::{Payload, Pending, Progress},
    remains::Remains,
    settling::Settling,
    sleepers::{Answers, Left, Sleepers, Turn},
    streams::StreamId,
};

/// A node.
pub(crate) struct Node {
    me: Weak<Self>,
    pub(crate) name: String,
    /// Distinguishes this node from an earlier one of the same name.
    pub(crate) instance: u64,
    pub(crate) limits: Limits,
    pub(crate) default_timeout: Option<Duration>,
    pub(crate) calls: InFlight,
    pub(crate) executor: Arc<Executor>,
    pub(crate) link: Link,
    pub(crate) connector: Connector,
    /// Set when the controller knows the node for the first time, or never can.
    pub(crate) started: Latch<Result<()>>,
    /// Set when the controller knows that the node is stopping, and everything that it had passed on before
    /// has arrived.
    pub(crate) farewell: Latch<()>,
    reactor: reactor::Handle,
    stopped: AtomicBool,
    admission: Admission,
    pub(crate) settling: Settling,
    /// Tasks still to be woken, whose calls are over.
    pub(crate) sleepers: Sleepers,
    /// Arguments that wait to be sent, of calls that nobody waits for.
    pub(crate) waiting_bytes: Arc<HeldBytes>,
    /// Arguments of requests.
    pub(crate) requests_bytes: Arc<HeldBytes>,
    /// For payloads that come in chunks.
    pub(crate) pool: PayloadPool,
    delayed: Mutex<BinaryHeap<Reverse<Delayed>>>,
    /// The number of the most recently delayed call.
    delayed_last: AtomicU64,
    alarm: Alarm,
    pub(crate) late_replies: AtomicU64,
    /// How many threads are blocked waiting for calls.
    blocked: AtomicUsize,
    /// How many requests have begun to come, and are not whole yet.
    pub(crate) receiving: AtomicUsize,
}

/// A call to be sent later.
struct Delayed {
    at: Instant,
    /// Orders calls that are due at the same time by arrival.
    number: u64,
    /// Whether it has been sent before.
    again: bool,
    id: Option<CallId>,
    call: Outgoing,
}

/// What is left to do after sending calls, once no other call waits for this thread: all of it may run user
/// code.
#[derive(Debug, Default)]
#[must_use = "it is to be done"]
struct After {
    /// Mostly none, or one call to write.
    steps: SmallVec<[Step; 1]>,
    remains: Remains,
}

impl After {
    fn append(&mut self, mut other: Self) {
        self.steps.append(&mut other.steps);
        self.remains.append(other.remains);
    }
}

/// What is left to do after sending a call.
#[derive(Debug)]
enum Step {
    /// A call is still to be written.
    Write(Unwritten),
    /// The other side may have been told that a call was given up before it got the call.
    Withdraw(CallId, Arc<Pending>),
    /// There was no room for a call.
    Refuse(Arc<Pending>),
}

/// The largest arguments whose writing is left to a task.
const LEFT_BYTES_MAX: usize = 4 * 1024;

/// How long reading answers may take.
const READING: Duration = Duration::from_millis(1);

/// The id of the ping that follows a node's GOODBYE. No heartbeat uses it.
pub(crate) const FAREWELL: u64 = 0;

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
            farewell: Latch::new(),
            reactor,
            stopped: AtomicBool::new(false),
            admission: Admission::new(limits.calls_in_flight_max),
            settling: Settling::default(),
            sleepers: Sleepers::default(),
            waiting_bytes: HeldBytes::new(limits.calls_waiting_bytes_max),
            requests_bytes: HeldBytes::new(limits.requests_held_bytes_max),
            pool: PayloadPool::default(),
            delayed: Mutex::default(),
            delayed_last: AtomicU64::new(0),
            alarm: Alarm::new(host::now()),
            late_replies: AtomicU64::new(0),
            blocked: AtomicUsize::new(0),
            receiving: AtomicUsize::new(0),
            limits,
        })
    }

    /// Starts a call that is answered.
    ///
    /// The I/O thread watches `deadline`; a caller that watches it itself passes `None`. `eta` is how long
    /// the call waits before it is sent.
    ///
    /// Every failure arrives through `pending`.
    pub(crate) fn start(
        &self,
        pending: &Arc<Pending>,
        call: &Outgoing,
        deadline: Option<Deadline>,
        eta: Option<Duration>,
    ) -> CallId {
        // Before anyone else knows about the call.
        let going_on = if eta.is_none() { self.admission.enter() } else { None };
        if going_on.is_some() {
            pending.begin_admitted();
        }
        let id = self.calls.insert(pending.clone(), deadline);
        if self.stopped.load(Ordering::SeqCst) {
            self.fail(id, |pending| Error::Stopped { callback: pending.callback().to_owned() });
            return id;
        }
        if let Some(deadline) = deadline {
            self.watch(deadline.at);
        }
        match (eta, going_on) {
            (Some(_), _) if !self.has_room_to_delay() => self.fail(id, |_| self.overloaded()),
            (Some(eta), _) => self.delay(eta, Some(id), call.clone(), false),
            (None, Some(going_on)) => {
                self.finish(self.send_in_flight(pending, id, call, going_on));
                self.admit_queued();
            }
            (None, None) => self.admit(pending, id, call),
        }
        id
    }

    /// Sends a one-way call.
    ///
    /// # Errors
    /// If it cannot even be kept until there is a link.
    pub(crate) fn start_one_way(&self, call: &Outgoing, eta: Option<Duration>) -> Result<()> {
        if self.stopped.load(Ordering::SeqCst) {
            return Err(Error::Stopped { callback: call.name.to_string() });
        }
        if let Some(eta) = eta {
            if !self.has_room_to_delay() {
                return Err(self.overloaded());
            }
            self.delay(eta, None, call.clone(), false);
            return Ok(());
        }
        self.send_one_way(call)
    }

    fn send_one_way(&self, call: &Outgoing) -> Result<()> {
        let flush = Flush::with(self.admission.going_on());
        if call.is_large() {
            // A payload in chunks needs its own id, which no later call reuses.
            let pending = Arc::new(Pending::new(call.name.clone(), None));
            let id = self.calls.insert(pending, None);
            let sent = self.send_unanswered(Some(id), call, flush);
            self.calls.remove(id);
            return sent;
        }
        self.send_unanswered(None, call, flush)
    }

    fn send_unanswered(&self, id: Option<CallId>, call: &Outgoing, flush: Flush) -> Result<()> {
        let mut remains = Remains::default();
        let sent = self.link.send_call(id, call, flush, |_| true, |id| self.is_wanted(id), &mut remains);
        match sent {
            Sent::Full => return Err(self.overloaded()),
            Sent::Yes(unwritten) => self.link.write_to(unwritten),
            Sent::Waits | Sent::No => {}
        }
        Ok(())
    }

    fn is_wanted(&self, id: CallId) -> bool {
        self.calls.contains(id)
    }

    fn overloaded(&self) -> Error {
        Error::Overloaded { node: self.name.clone() }
    }

    /// Sends a call now if the limit of calls in flight permits, later otherwise.
    fn admit(&self, pending: &Arc<Pending>, id: CallId, call: &Outgoing) {
        if let Some(going_on) = self.admission.enter() {
            self.finish(self.send_admitted(pending, id, call, going_on));
        } else if !self.admission.queue(Admitted { pending: pending.clone(), id, call: call.clone() }) {
            self.fail(id, |_| self.overloaded());
        }
        // A call may have ended between the check and the queueing, and found nothing to let in.
        self.admit_queued();
    }

    /// Sends queued calls, as far as there are places for them.
    #[inline]
    pub(crate) fn admit_queued(&self) {
        self.admission.go_on(
            |Admitted { pending, id, call }, going_on, after: &mut After| {
                after.append(self.send_admitted(&pending, id, &call, going_on));
                after.remains.add(call.body);
            },
            |after| self.finish(after),
        );
    }

    /// Sends a call for which a place is reserved, and gives the place back if it cannot be sent.
    fn send_admitted(&self, pending: &Arc<Pending>, id: CallId, call: &Outgoing, going_on: usize) -> After {
        if !pending.admit() {
            // It was cancelled, or its time ran out.
            self.admission.give_back();
            return After::default();
        }
        self.send_in_flight(pending, id, call, going_on)
    }

    /// Sends a call that counts as in flight.
    fn send_in_flight(&self, pending: &Arc<Pending>, id: CallId, call: &Outgoing, going_on: usize) -> After {
        let mut after = After::default();
        self.settling.keep(id, call);
        let large = call.is_large();
        let flush = match Flush::with(going_on) {
            Flush::Soon if pending.is_awaited() && call.body.len() <= LEFT_BYTES_MAX => Flush::Later,
            flush => flush,
        };
        let mark = |sent| pending.set_sent(sent);
        let is_wanted = |id| self.is_wanted(id);
        let sent = self.link.send_call(Some(id), call, flush, mark, is_wanted, &mut after.remains);
        if pending.is_withdrawn() {
            // The other side may have been told before it got the call.
            after.steps.push(Step::Withdraw(id, pending.clone()));
        }
        let is_full = matches!(sent, Sent::Full);
        if let Sent::Yes(Some(unwritten)) = sent {
            after.steps.push(Step::Write(unwritten));
        }
        if is_full && self.calls.remove(id).is_some() {
            // The caller of this function lets the next one in.
            self.admission.leave(pending, &mut after.remains);
            after.steps.push(Step::Refuse(pending.clone()));
        } else if large && !self.is_wanted(id) && !goes_on_alone(call, pending) {
            // It was over before the link knew about the rest of its arguments.
            self.link.cancel_stream(StreamId { call: id.0, reply: false }, &mut after.remains);
        }
        after
    }

    /// Does what is left to do after sending calls.
    #[inline(always)]
    fn finish(&self, after: After) {
        if !after.steps.is_empty() {
            self.take_steps(after.steps);
        }
        drop(after.remains);
    }

    fn take_steps(&self, steps: SmallVec<[Step; 1]>) {
        for step in steps {
            match step {
                Step::Write(unwritten) => self.link.write_to(Some(unwritten)),
                Step::Withdraw(id, pending) => self.withdraw(id, &pending),
                Step::Refuse(pending) => pending.fail(self.overloaded()),
            }
        }
    }

    /// Counts the arguments of a call that nobody waits for. If there is no room, calls that were given up
    /// make some.
    pub(crate) fn hold_arguments(&self, bytes: usize) -> Result<Option<Hold>> {
        self.waiting_bytes
            .hold(bytes)
            .or_else(|Full| {
                self.link.forget_unwanted(|id| self.is_wanted(id));
                let unwanted = self.take_unwanted(&mut self.delayed.lock());
                drop(unwanted);
                self.waiting_bytes.hold(bytes)
            })
            .map_err(|Full| self.overloaded())
    }

    /// Returns whether one more call may be delayed. Those that were given up make room.
    fn has_room_to_delay(&self) -> bool {
        let max = self.limits.calls_in_flight_max;
        let mut delayed = self.delayed.lock();
        let unwanted = if delayed.len() >= max { self.take_unwanted(&mut delayed) } else { Vec::new() };
        let has_room = delayed.len() < max;
        drop(delayed);
        drop(unwanted);
        has_room
    }

    /// Takes out the delayed calls that were given up, to be dropped without the lock.
    #[must_use = "they are to be dropped without the lock"]
    fn take_unwanted(&self, delayed: &mut BinaryHeap<Reverse<Delayed>>) -> Vec<Reverse<Delayed>> {
        let is_wanted = |Reverse(delayed): &Reverse<Delayed>| delayed.id.is_none_or(|id| self.is_wanted(id));
        if delayed.iter().all(is_wanted) {
            return Vec::new();
        }
        let (kept, unwanted): (Vec<_>, _) = std::mem::take(delayed).into_iter().partition(is_wanted);
        *delayed = kept.into();
        unwanted
    }

    fn delay(&self, eta: Duration, id: Option<CallId>, call: Outgoing, again: bool) {
        // A time too far away to represent never comes.
        let Some(at) = host::now().checked_add(eta) else { return };
        let number = self.delayed_last.fetch_add(1, Ordering::Relaxed);
        self.delayed.lock().push(Reverse(Delayed { at, number, again, id, call }));
        self.watch(at);
    }

    /// Takes out of the table a call that goes on without its caller: the rest of its arguments is still
    /// sent.
    pub(crate) fn let_go(&self, id: CallId) {
        if let Some(pending) = self.calls.remove(id) {
            let mut remains = Remains::default();
            self.settling.forget(id, &mut remains);
            self.release(&pending, &mut remains);
        }
    }

    /// Takes a call out of the table, if it is still there.
    pub(crate) fn take(&self, id: CallId) -> Option<Arc<Pending>> {
        let taken = self.take_if(id, |_| true, &mut Remains::default())?;
        self.admit_queued();
        Some(taken)
    }

    /// Takes a call out of the table if `which` accepts it. What is left of its arguments is added to
    /// `remains`.
    ///
    /// The caller must call [`admit_queued`](Self::admit_queued) afterwards.
    fn take_if(
        &self,
        id: CallId,
        which: impl FnOnce(&Pending) -> bool,
        remains: &mut Remains,
    ) -> Option<Arc<Pending>> {
        let pending = self.calls.remove_if(id, which)?;
        self.settling.forget(id, remains);
        // It may have ended before all of its arguments were sent.
        self.link.cancel_stream(StreamId { call: id.0, reply: false }, remains);
        self.admission.leave(&pending, remains);
        Some(pending)
    }

    /// Sends a call again after a while, if it failed because its callee has not returned yet; returns
    /// whether it does.
    pub(crate) fn try_again(&self, id: CallId, fault: &Fault) -> bool {
        let Some((call, pause)) = self.settling.again(id, fault, host::now()) else { return false };
        self.link.cancel_stream(StreamId { call: id.0, reply: false }, &mut Remains::default());
        if let Some(pending) = self.calls.get(id) {
            pending.begin_again();
            self.delay(pause, Some(id), call, true);
        }
        true
    }

    /// Frees the place of a call that is over: the next one may go.
    fn release(&self, pending: &Pending, remains: &mut Remains) {
        self.admission.leave(pending, remains);
        self.admit_queued();
    }

    /// Wakes the first of the tasks whose calls are over, and leaves the rest of `left` to it.
    pub(crate) fn wake_tasks(&self, left: Left) {
        if left.is_empty() {
            return;
        }
        if self.sleepers.wake_first(left, |unread| self.read_answers(unread)) {
            // The I/O thread may already have had its turn.
            self.reactor.wake();
        }
        self.admit_queued();
    }

    /// Reads the answers left unread, and wakes the other tasks. Called by anyone who checks on a call, or
    /// gives it up.
    pub(crate) fn wake_others(&self) {
        // The I/O thread, in a callback that makes a call, would incur the very cost that they were left
        // unread to avoid.
        let may = || !self.reactor.is_current();
        if self.sleepers.wake_others(may, |unread| self.read_answers(unread)) {
            self.admit_queued();
        }
    }

    /// Takes answers that were left unread; returns what is left to do for the tasks that wait for them.
    ///
    /// The caller must call [`admit_queued`](Self::admit_queued) afterwards, once others may read.
    fn read_answers(&self, unread: Vec<Bytes>) -> Answers {
        let Answers { mut wakers, mut remains } = Answers::default();
        for answers in &unread {
            let mut at = 0;
            while let Ok(Some((Frame::Reply(reply), next))) = Frame::decode(answers, at, FRAME_BYTES_MAX) {
                self.reply(&reply, |waker| wakers.push(waker), &mut remains);
                at = next;
            }
            debug_assert_eq!(at, answers.len(), "what was left was looked at");
        }
        Answers { wakers, remains }
    }

    /// Takes a whole result, or one of a broadcast. Passes the wakers of tasks that wait for it to `wake`,
    /// and adds what is left of the call's arguments to `remains`.
    ///
    /// The caller must call [`admit_queued`](Self::admit_queued) afterwards.
    pub(crate) fn reply(&self, reply: &Reply<'_>, wake: impl FnMut(Waker), remains: &mut Remains) {
        // Most answers are of this kind, and need only one lookup.
        if let Some(pending) = self.take_if(CallId(reply.id), Pending::is_single, remains) {
            return pending.succeed(|| Payload::whole(reply), wake);
        }
        let limit = self.limits.payload_bytes_max;
        let give = |pending: &Pending| pending.reply(reply, limit, &self.pool, wake);
        self.answered(reply.id, true, reply.part, give, remains);
    }

    /// Passes what arrived for a call on to it; frees its place if that was the last.
    pub(crate) fn answer(&self, id: u64, counts: bool, part: u32, give: impl FnOnce(&Pending) -> Progress) {
        self.answered(id, counts, part, give, &mut Remains::default());
        self.admit_queued();
    }

    /// Like [`answer`](Self::answer), but leaves it to the caller to call
    /// [`admit_queued`](Self::admit_queued) later.
    fn answered(
        &self,
        id: u64,
        counts: bool,
        part: u32,
        give: impl FnOnce(&Pending) -> Progress,
        remains: &mut Remains,
    ) {
        let id = CallId(id);
        let Some(pending) = self.calls.get(id) else {
            if counts {
                self.late_replies.fetch_add(1, Ordering::Relaxed);
            }
            return;
        };
        match give(&pending) {
            Progress::Done => drop(self.take_if(id, |_| true, remains)),
            Progress::Refused => self.refuse_rest(id),
            Progress::Open => {}
            Progress::Credit(bytes) => self.credit(id.0, true, part, bytes),
        }
    }

    /// Allows the sender of a large payload to send more of it.
    pub(crate) fn credit(&self, id: u64, reply: bool, part: u32, bytes: u32) {
        self.link.send(&Frame::Credit { id, reply, part, bytes }, Flush::Soon);
    }

    /// Runs `wait`, which blocks this thread until its call is over.
    pub(crate) fn block<T>(&self, wait: impl FnOnce() -> T) -> T {
        struct Blocked<'a>(&'a AtomicUsize);
        impl Drop for Blocked<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.blocked.fetch_add(1, Ordering::Relaxed);
        let _blocked = Blocked(&self.blocked);
        // Its answer may already be there.
        self.wake_others();
        wait()
    }

    /// Returns whether answers may be left unread for tasks: no thread is blocked that this would hold up.
    pub(crate) fn may_leave_answers(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) == 0
    }

    /// Whether there are requests that have begun to come, and are not whole yet.
    pub(crate) fn is_receiving(&self) -> bool {
        self.receiving.load(Ordering::Acquire) > 0
    }

    fn fail(&self, id: CallId, error: impl FnOnce(&Pending) -> Error) {
        if let Some(pending) = self.take(id) {
            pending.fail(error(&pending));
        }
    }

    /// Cancels a call on behalf of its caller.
    pub(crate) fn cancel(&self, id: CallId) {
        // Its answer may already be there.
        self.wake_others();
        if let Some(pending) = self.take(id) {
            self.withdraw(id, &pending);
            pending.fail(pending.cancelled());
            // The thread that waits for the call may be waiting for I/O events.
            self.reactor.wake_guest();
        }
    }

    /// Ends a call whose time has run out.
    pub(crate) fn time_out(&self, id: CallId, after: Duration) {
        // Its answer may already be there.
        self.wake_others();
        if let Some(pending) = self.take(id) {
            self.withdraw(id, &pending);
            pending.fail(pending.timed_out(after));
        }
    }

    /// Called when the outcome is there, and the other side should send no more of it.
    pub(crate) fn refuse_rest(&self, id: CallId) {
        if let Some(pending) = self.take(id) {
            self.withdraw(id, &pending);
        }
    }

    /// Tells the other side that nobody waits any more.
    fn withdraw(&self, id: CallId, pending: &Pending) {
        pending.set_withdrawn();
        if pending.is_sent() {
            self.link.cancel_stream(StreamId { call: id.0, reply: false }, &mut Remains::default());
            self.link.send(&Frame::Cancel { id: id.0 }, Flush::Now);
        }
    }

    /// Called when the link is gone: calls already sent are lost, the others wait for the next link.
    pub(crate) fn link_lost(&self) {
        self.link.down();
        // What has arrived still counts.
        self.sleepers.finish(|unread| self.read_answers(unread));
        self.admit_queued();
        for (id, pending) in self.calls.remove_where(Pending::is_sent) {
            let mut remains = Remains::default();
            self.settling.forget(id, &mut remains);
            self.release(&pending, &mut remains);
            pending.fail(Error::ControllerLost { callback: pending.callback().to_owned() });
        }
        self.executor.cancel_all();
    }

    /// Stops sending; whatever waits fails.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.sleepers.end(|unread| self.read_answers(unread));
        self.admission.clear();
        let dropped = std::mem::take(&mut *self.delayed.lock());
        let lost = dropped.iter().filter(|delayed| delayed.0.id.is_none()).count();
        if lost > 0 {
            tracing::warn!(calls = lost, "stopped before these calls were due; they are not sent");
        }
        self.link.drop_waiting();
        for (id, pending) in self.calls.remove_where(|_| true) {
            pending.end();
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

    /// Makes sure that the I/O thread checks the time at `at` or earlier.
    pub(crate) fn watch(&self, at: Instant) {
        if self.alarm.is_later_than(at) {
            self.reactor.wake_soon();
        }
    }

    /// Returns this node, unless it is being dropped.
    pub(crate) fn me(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    pub(crate) fn reactor(&self) -> &reactor::Handle {
        &self.reactor
    }

    #[cfg(feature = "simulation")]
    pub(crate) fn sizes(&self) -> crate::simulation::Sizes {
        crate::simulation::Sizes {
            calls: self.calls.len(),
            requests: self.executor.held(),
            streams: self.link.has_streams(),
            places: self.admission.going_on(),
            delayed: self.delayed.lock().len(),
            argument_bytes: self.waiting_bytes.used() + self.requests_bytes.used(),
            late_replies: self.late_replies.load(Ordering::Relaxed),
        }
    }

    /// Ends calls whose time is up; returns when to come again if that has to wait.
    fn expire(&self, now: Instant) -> Option<Instant> {
        if self.calls.next_deadline().is_none_or(|next| next > now) {
            return None;
        }
        // A call whose answer is there is not late.
        if !self.sleepers.try_finish(|unread| self.read_answers(unread)) {
            return Some(now + READING);
        }
        self.admit_queued();
        for (id, pending, after) in self.calls.expired(now) {
            let mut remains = Remains::default();
            self.settling.forget(id, &mut remains);
            self.release(&pending, &mut remains);
            self.withdraw(id, &pending);
            pending.fail(pending.timed_out(after));
        }
        None
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
            let Some(Reverse(Delayed { id, call, again, .. })) = due else { return };
            match id.map(|id| (id, self.calls.get(id))) {
                Some((id, Some(pending))) if again => {
                    self.finish(self.send_in_flight(&pending, id, &call, self.admission.going_on()));
                }
                Some((id, Some(pending))) => self.admit(&pending, id, &call),
                // It was cancelled.
                Some((_, None)) => {}
                None => {
                    if let Err(error) = self.send_one_way(&call) {
                        tracing::warn!(callback = %call.name, %error, "a delayed call was not sent");
                    }
                }
            }
        }
    }
}

/// Returns whether a call goes on although its caller is done with it: a broadcast without results that was
/// passed on.
fn goes_on_alone(call: &Outgoing, pending: &Pending) -> bool {
    matches!(call.kind, Kind::Broadcast { results: false }) && matches!(pending.outcome.get(), Some(Ok(_)))
}

impl Service for Node {
    fn turn(&self, now: Instant) -> Option<Instant> {
        // From here to the end, anyone who adds a deadline wakes the thread, so that none is missed.
        self.alarm.unset();
        let expires = self.expire(now);
        let sleepers = match self.sleepers.turn(now, |unread| self.read_answers(unread)) {
            Turn::Nothing => None,
            Turn::At(due) => Some(due),
            Turn::Done => {
                self.admit_queued();
                None
            }
        };
        self.send_due(now);
        // After everything that makes calls.
        let link = self.link.turn(now);
        let delayed = self.delayed.lock().peek().map(|next| next.0.at);
        let connection = self.keep_connected(now);
        let settling = self.settling.turn(now);
        let executor = self.executor.turn(now);
        let pool = self.pool.turn(now);
        let expires = expires.or_else(|| self.calls.next_deadline());
        let next = host::earliest([expires, delayed, connection, settling, sleepers, pool, executor, link]);
        self.alarm.set(next);
        next
    }

    fn work(&self) {
        self.executor.work(|| self.link.write());
    }
}

impl Home for Node {
    fn executor(&self) -> &Arc<Executor> {
        &self.executor
    }

    fn outcome(&self, origin: &Origin, id: u64, codec: Codec, outcome: Outcome) {
        // The request itself is still counted.
        let flush = Flush::with(self.executor.held().saturating_sub(1));
        match outcome {
            Ok(body) => self.link.reply(origin, id, codec, body, flush),
            Err(mut fault) => {
                fault.node.clone_from(&self.name);
                self.link.answer(origin, &Frame::Failure(Failure { id, part: 0, fault }), flush);
            }
        }
    }

    fn forget(&self, origin: &Origin, id: u64) {
        self.link.forget_reply(origin, id);
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
            .field("admission", &self.admission)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}
