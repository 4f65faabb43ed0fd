//! The way to the controller: where frames go while it is up, and where calls wait while it is not.

use std::{
    borrow::Cow,
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use daffi_core::{
    controller::{FramePort, PortError},
    frame::{Body, Frame, Reply},
    host,
    limits::{CHUNK_BYTES, STREAM_WINDOW_BYTES},
    outbox::Outbox,
    payload::{Codec, Encoded},
    reactor,
};
use parking_lot::RwLock;

use crate::{
    executor::Origin,
    flusher::Flusher,
    in_flight::CallId,
    outgoing::Outgoing,
    remains::Remains,
    streams::{Receiver, StreamId, Streams},
};

/// The way to the controller.
#[derive(Debug)]
pub(crate) struct Link {
    state: RwLock<State>,
    /// The number of connections so far.
    connections: AtomicU64,
    /// The number of the one that is up, or was last. Written with the state's lock held.
    connection: AtomicU64,
    streams: Streams,
    pub(crate) flusher: Flusher,
    /// Whether there are frames that are not left to a task, and wait for the I/O thread's turn.
    wanted: AtomicBool,
    reactor: reactor::Handle,
    waiting_max: usize,
}

#[derive(Debug)]
enum State {
    /// No controller: calls wait, in order.
    Down(Waiting),
    Up(Port),
    /// The controller is stopping: it still takes answers, and calls wait for the next one.
    Draining(Port, Waiting),
}

/// Calls that wait for a link, in order.
type Waiting = VecDeque<(Option<CallId>, Outgoing)>;

/// Where frames go in.
#[derive(Clone)]
pub(crate) enum Port {
    Socket(Arc<Outbox>),
    Memory(Arc<dyn FramePort>),
}

/// Whether a frame is written at once or with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Now, on this thread: nothing else is going on, so there is nothing to write it together with.
    Now,
    /// Soon, on the I/O thread, with whatever else there is by then. Writing many frames at once is what
    /// makes many calls cheap; the price is that this one waits for the I/O thread.
    Soon,
    /// By a task, once all tasks that are ready have had their turn.
    Later,
}

/// With at most this many calls in progress, a frame is written at once.
const WRITE_AT_ONCE_MAX: usize = 4;

/// How many bytes at most wait for a thread to lead the reactor, if none does right now.
const FLUSH_BYTES: usize = 16 * 1024;

/// With this many bytes waiting for the socket, chunks of large payloads are held back.
const BACKLOG_BYTES: usize = STREAM_WINDOW_BYTES;

/// What became of a call that was to be sent.
#[derive(Debug)]
#[must_use = "it may still have to be written"]
pub(crate) enum Sent {
    /// It is on its way, or will be once this is written.
    Yes(Option<Unwritten>),
    /// It waits for the link.
    Waits,
    /// It may no longer leave.
    No,
    /// There is no room for it.
    Full,
}

/// Frames that the thread that passed them on must [`write`](Link::write_to). Writing drops what has been
/// written, which may be user memory, so it must not be done with a lock held.
#[derive(Debug)]
#[must_use = "it is to be written without a lock"]
pub(crate) struct Unwritten(Port);

impl Flush {
    /// Returns how to write when this many calls are in progress.
    pub(crate) fn with(going_on: usize) -> Self {
        if going_on <= WRITE_AT_ONCE_MAX { Self::Now } else { Self::Soon }
    }
}

impl Link {
    pub(crate) fn new(reactor: reactor::Handle, waiting_max: usize) -> Self {
        Self {
            state: RwLock::new(State::Down(Waiting::new())),
            connections: AtomicU64::new(0),
            connection: AtomicU64::new(0),
            streams: Streams::default(),
            flusher: Flusher::default(),
            wanted: AtomicBool::new(false),
            reactor,
            waiting_max,
        }
    }

    /// Passes a call on, or keeps it until there is a link.
    ///
    /// `mark(true)` is called just before the call leaves, and returns whether it still may; `mark(false)` is
    /// called if it did not leave after all. If there is no room to wait, calls no longer wanted make some,
    /// and their arguments are added to `remains`.
    pub(crate) fn send_call(
        &self,
        id: Option<CallId>,
        call: &Outgoing,
        flush: Flush,
        mark: impl Fn(bool) -> bool,
        is_wanted: impl Fn(CallId) -> bool,
        remains: &mut Remains,
    ) -> Sent {
        loop {
            let state = self.state.read();
            if let State::Up(port) = &*state {
                if !mark(true) {
                    return Sent::No;
                }
                match self.send_over(port, id, call) {
                    Ok(()) => return Sent::Yes(self.flush(port, flush)),
                    Err(error) => {
                        mark(false);
                        if error == PortError::Full {
                            return Sent::Full;
                        }
                        // The link is going down, and from then on the call waits like any other.
                    }
                }
            }
            drop(state);
            let mut state = self.state.write();
            match &mut *state {
                State::Down(waiting) | State::Draining(_, waiting) => {
                    let is_full = waiting.len() >= self.waiting_max;
                    let unwanted = if is_full { take_unwanted(waiting, &is_wanted) } else { Waiting::new() };
                    let sent = if waiting.len() >= self.waiting_max {
                        Sent::Full
                    } else {
                        waiting.push_back((id, call.clone()));
                        Sent::Waits
                    };
                    drop(state);
                    unwanted.into_iter().for_each(|(_, call)| remains.add(call.body));
                    return sent;
                }
                State::Up(port) if port.is_closed() => {
                    let down = State::Down(VecDeque::from([(id, call.clone())]));
                    let up = std::mem::replace(&mut *state, down);
                    drop(state);
                    drop(up);
                    return Sent::Waits;
                }
                State::Up(_) => {}
            }
        }
    }

    /// Passes a call on, without writing it.
    fn send_over(&self, port: &Port, id: Option<CallId>, call: &Outgoing) -> Result<(), PortError> {
        let number = id.map_or(0, |id| id.0);
        if call.is_large() {
            let id = StreamId { call: number, reply: false };
            let to = call.pinned_to().map_or(Receiver::Offering(&call.name), Receiver::Node);
            let first = self.streams.begin(id, to, &call.body, call.has_result(), call.hold.clone());
            if let Err(error) = call.with_frame(number, first, |frame| port.try_push(frame)) {
                // The caller still has the call, and with it what remains.
                self.streams.cancel(id, &mut Remains::default());
                return Err(error);
            }
            self.streams.go_on(id);
        } else {
            call.with_frame(number, 0, |frame| port.try_push(frame))?;
            self.streams.make_way();
        }
        Ok(())
    }

    /// Sends a frame that needs no answer and cannot be refused. Dropped if there is no link.
    pub(crate) fn send(&self, frame: &Frame<'_>, flush: Flush) {
        self.send_on(State::port, frame, flush);
    }

    fn send_on(&self, port: impl FnOnce(&State) -> Option<&Port>, frame: &Frame<'_>, flush: Flush) {
        let unwritten = match port(&self.state.read()) {
            Some(port) if port.push(frame).is_ok() => self.flush(port, flush),
            _ => None,
        };
        self.write_to(unwritten);
    }

    /// Returns the number for a new connection.
    pub(crate) fn new_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Returns where answers to requests from `origin` go, if their connection is still up: on another one,
    /// their ids belong to other requests.
    fn way_back<'a>(&self, state: &'a State, origin: &Origin) -> Option<&'a Port> {
        state.port().filter(|_| self.connection.load(Ordering::Relaxed) == origin.connection)
    }

    /// Sends the failure of a request from `origin`. Dropped if its connection is gone: its caller has its
    /// answer already.
    pub(crate) fn answer(&self, origin: &Origin, frame: &Frame<'_>, flush: Flush) {
        self.send_on(|state| self.way_back(state, origin), frame, flush);
    }

    /// Forgets the rest of the result of a request from `origin`.
    pub(crate) fn forget_reply(&self, origin: &Origin, id: u64) {
        // Dropped last, without the lock.
        let mut remains = Remains::default();
        let state = self.state.read();
        if self.way_back(&state, origin).is_some() {
            self.cancel_stream(StreamId { call: id, reply: true }, &mut remains);
        }
    }

    /// Sends the result of a request from `origin`. Dropped if its connection is gone: its caller has its
    /// answer already.
    pub(crate) fn reply(&self, origin: &Origin, id: u64, codec: Codec, body: Encoded, flush: Flush) {
        let state = self.state.read();
        let Some(port) = self.way_back(&state, origin) else { return };
        let more = body.len() > CHUNK_BYTES;
        let stream = StreamId { call: id, reply: true };
        let chunk;
        let part = if more {
            let first = self.streams.begin(stream, Receiver::Node(&origin.caller), &body, false, None);
            chunk = body.clone().split_to(first);
            &chunk
        } else {
            &body
        };
        let total = body.len() as u32;
        let reply = Reply { id, more, part: 0, codec: codec.to_byte(), total, body: Body::encoded(part) };
        let pushed = port.push(&Frame::Reply(reply));
        match (more, pushed) {
            (true, Ok(())) => self.streams.go_on(stream),
            // `body` still has what remains, and is dropped last.
            (true, Err(_)) => _ = self.streams.cancel(stream, &mut Remains::default()),
            (false, _) => self.streams.make_way(),
        }
        if pushed.is_err() {
            return;
        }
        let unwritten = self.flush(port, flush);
        drop(state);
        self.write_to(unwritten);
    }

    /// Called when the receiver of a large payload takes more of it.
    pub(crate) fn credit(&self, id: StreamId, bytes: u32) {
        self.streams.credit(id, bytes);
        self.write();
    }

    /// Forgets the rest of a large payload, which is added to `remains`.
    #[inline]
    pub(crate) fn cancel_stream(&self, id: StreamId, remains: &mut Remains) {
        // On its own thread, the reactor pumps before it waits.
        if self.streams.cancel(id, remains) && !self.reactor.is_current() {
            self.reactor.wake_soon();
        }
    }

    /// Brings the link up: sends the calls that have waited, as far as `mark` says that they are still
    /// wanted, and from then on any others. `keep` is told about each call that is answered. Returns the
    /// calls that there is no room for, with their names.
    pub(crate) fn up(
        &self,
        port: Port,
        connection: u64,
        mark: impl Fn(CallId, bool) -> bool,
        keep: impl Fn(CallId, &Outgoing),
    ) -> Vec<(Option<CallId>, Cow<'static, str>)> {
        let mut refused = Vec::new();
        self.streams.set_link(port.is_local());
        let mut state = self.state.write();
        self.connection.store(connection, Ordering::Relaxed);
        let waiting = state.take_waiting();
        for (id, call) in &waiting {
            let answered = call.answered_as(*id);
            if answered.is_some_and(|id| !mark(id, true)) {
                continue;
            }
            answered.inspect(|id| keep(*id, call));
            if self.send_over(&port, *id, call).is_err() {
                answered.inspect(|id| _ = mark(*id, false));
                refused.push((answered, call.name.clone()));
            }
        }
        let before = std::mem::replace(&mut *state, State::Up(port));
        drop(state);
        self.write();
        // Last: user memory may be among it, whose drop may wait for what others have sent.
        drop((before, waiting));
        refused
    }

    /// Takes the link down: calls wait from now on.
    pub(crate) fn down(&self) {
        let mut state = self.state.write();
        let down = State::Down(state.take_waiting());
        let up = std::mem::replace(&mut *state, down);
        let streams = self.streams.clear();
        drop(state);
        drop((up, streams));
    }

    /// Called when the controller is stopping: new calls wait from now on, answers still go to it.
    pub(crate) fn drain(&self) {
        let mut state = self.state.write();
        if let State::Up(port) = &*state {
            *state = State::Draining(port.clone(), Waiting::new());
        }
    }

    pub(crate) fn port(&self) -> Option<Port> {
        self.state.read().port().cloned()
    }

    /// Forgets the calls that wait for a link.
    pub(crate) fn drop_waiting(&self) {
        let waiting = self.state.write().take_waiting();
        drop(waiting);
    }

    /// Forgets the calls that wait for a link and were given up.
    pub(crate) fn forget_unwanted(&self, is_wanted: impl Fn(CallId) -> bool) {
        let unwanted = match &mut *self.state.write() {
            State::Down(waiting) | State::Draining(_, waiting) => take_unwanted(waiting, is_wanted),
            State::Up(_) => Waiting::new(),
        };
        // Without the lock.
        drop(unwanted);
    }

    /// Whether large payloads are on their way out.
    pub(crate) fn has_streams(&self) -> bool {
        self.streams.is_active()
    }

    /// Writes what waits.
    pub(crate) fn write(&self) {
        self.flusher.begin();
        self.write_to(self.port().map(Unwritten));
    }

    /// Does the I/O thread's work for the link in each of its turns.
    ///
    /// Returns when to come again: if writing is left to a task for now, or if large payloads wait for
    /// others.
    pub(crate) fn turn(&self, now: Instant) -> Option<Instant> {
        let wanted = self.wanted.swap(false, Ordering::SeqCst) || self.streams.is_active();
        let left = self.flusher.turn(now).filter(|_| !wanted);
        if left.is_none() {
            self.write();
        }
        host::earliest([left, self.streams.due(now)])
    }

    /// Arranges for what was pushed to be written; returns it if this thread is to write it.
    fn flush(&self, port: &Port, flush: Flush) -> Option<Unwritten> {
        let is_much = || matches!(port, Port::Socket(outbox) if outbox.len() >= FLUSH_BYTES);
        if self.reactor.is_current() {
            // The thread has its turn as soon as it is done with what came in, and then everything leaves at
            // once.
            self.wanted.store(true, Ordering::Relaxed);
        } else if flush == Flush::Later {
            if is_much() && !port.is_blocked() {
                return Some(Unwritten(port.clone()));
            }
            if self.flusher.leave() {
                // In case no task gets around to it.
                self.reactor.wake_soon();
            }
        } else if flush == Flush::Now {
            return Some(Unwritten(port.clone()));
        } else {
            self.wanted.store(true, Ordering::SeqCst);
            self.reactor.wake_soon();
            if self.reactor.is_vacant() && is_much() {
                return Some(Unwritten(port.clone()));
            }
        }
        None
    }

    /// Writes what waits at that port.
    pub(crate) fn write_to(&self, unwritten: Option<Unwritten>) {
        match unwritten.map(|Unwritten(port)| port) {
            Some(Port::Socket(outbox)) => {
                outbox.flush();
                // The room made lets the large payloads go on.
                while self.streams.is_active() {
                    let before = outbox.len();
                    self.pump(|port| matches!(port, Port::Socket(current) if Arc::ptr_eq(current, &outbox)));
                    if outbox.len() <= before {
                        break;
                    }
                    outbox.flush();
                }
            }
            Some(Port::Memory(memory)) => {
                if self.streams.is_active() {
                    self.pump(|port| matches!(port, Port::Memory(current) if Arc::ptr_eq(current, &memory)));
                }
                memory.flush();
            }
            None => {}
        }
        if self.streams.are_unwatched() && !self.reactor.is_current() {
            self.reactor.wake_soon();
        }
    }

    /// Passes chunks on, if the port is still the expected one: each chunk belongs to what went that way
    /// before.
    fn pump(&self, is_expected: impl Fn(&Port) -> bool) {
        let sent = {
            let state = self.state.read();
            let Some(port) = state.port().filter(|port| is_expected(port)) else { return };
            self.streams.pump(|| port.has_room(), |frame| port.push(frame))
        };
        drop(sent);
    }
}

/// Takes out the calls that were given up, to be dropped without the lock.
#[must_use = "they are to be dropped without the lock"]
fn take_unwanted(waiting: &mut Waiting, is_wanted: impl Fn(CallId) -> bool) -> Waiting {
    let wanted = |(id, call): &(Option<CallId>, Outgoing)| call.answered_as(*id).is_none_or(&is_wanted);
    if waiting.iter().all(wanted) {
        return Waiting::new();
    }
    let (kept, unwanted) = std::mem::take(waiting).into_iter().partition(wanted);
    *waiting = kept;
    unwanted
}

impl State {
    /// Returns where answers go.
    fn port(&self) -> Option<&Port> {
        match self {
            Self::Up(port) | Self::Draining(port, _) => Some(port),
            Self::Down(_) => None,
        }
    }

    fn take_waiting(&mut self) -> Waiting {
        match self {
            Self::Up(_) => Waiting::new(),
            Self::Down(waiting) | Self::Draining(_, waiting) => std::mem::take(waiting),
        }
    }
}

impl Port {
    /// Passes a frame on unless there is no room for it.
    fn try_push(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        match self {
            Self::Socket(outbox) => outbox.try_push(frame),
            Self::Memory(port) => port.push(frame),
        }
    }

    /// Passes on a frame that cannot be refused.
    pub(crate) fn push(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        match self {
            Self::Socket(outbox) => outbox.push(frame),
            Self::Memory(port) => port.push(frame),
        }
    }

    /// Passes a frame on and writes it.
    pub(crate) fn push_now(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        match self {
            Self::Socket(outbox) => {
                outbox.push(frame)?;
                outbox.flush();
                Ok(())
            }
            Self::Memory(port) => port.send(frame),
        }
    }

    /// Returns whether it is a UNIX socket.
    fn is_local(&self) -> bool {
        matches!(self, Self::Socket(outbox) if outbox.is_local())
    }

    /// Returns whether the kernel takes no more for now.
    fn is_blocked(&self) -> bool {
        matches!(self, Self::Socket(outbox) if outbox.is_blocked())
    }

    /// Returns whether there is room for chunks of large payloads.
    fn has_room(&self) -> bool {
        match self {
            // Other frames need room as well.
            Self::Socket(outbox) => outbox.len() < BACKLOG_BYTES.min(outbox.bytes_max() / 4),
            Self::Memory(_) => true,
        }
    }

    /// Writes what waits.
    pub(crate) fn flush(&self) {
        match self {
            Self::Socket(outbox) => outbox.flush(),
            Self::Memory(port) => port.flush(),
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Socket(outbox) => outbox.is_closed(),
            // Only the node itself ends it.
            Self::Memory(_) => false,
        }
    }

    /// Returns whether everything has been written.
    pub(crate) fn is_flushed(&self) -> bool {
        match self {
            Self::Socket(outbox) => outbox.is_flushed(),
            Self::Memory(_) => true,
        }
    }

    /// Ends the connection once everything is written.
    pub(crate) fn finish(&self, reason: &str) {
        match self {
            Self::Socket(outbox) => outbox.finish(),
            Self::Memory(port) => port.close(reason),
        }
    }

    /// Ends the connection at once.
    pub(crate) fn close(&self, reason: &str) {
        match self {
            Self::Socket(outbox) => outbox.close(),
            Self::Memory(port) => port.close(reason),
        }
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Socket(_) => "Socket",
            Self::Memory(_) => "Memory",
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use daffi_core::{
        fault::{Fault, FaultKind},
        frame::Failure,
        reactor::Reactor,
    };

    use super::*;
    use crate::{executor::nowhere::Nowhere, sync::Mutex};

    /// Collects the frames that leave on one connection.
    #[derive(Default)]
    struct Wire(Mutex<Vec<&'static str>>);

    impl FramePort for Wire {
        fn send(&self, frame: &Frame<'_>) -> Result<(), PortError> {
            self.0.lock().push(frame.kind());
            Ok(())
        }

        fn close(&self, _: &str) {}
    }

    /// The next connection uses the same ids for other requests.
    #[test]
    fn answers_leave_on_the_connection_that_their_requests_came_on() {
        let reactor = Reactor::start("test").unwrap();
        let link = Link::new(reactor.handle().clone(), 10);
        let connect = || {
            let (connection, wire) = (link.new_connection(), Arc::new(Wire::default()));
            drop(link.up(Port::Memory(wire.clone()), connection, |_, _| true, |_, _| {}));
            (Nowhere::origin(connection), wire)
        };
        let zeros = |size| Encoded::from(Bytes::from(vec![0; size]));
        let answer = |origin: &Origin| {
            for size in [10, CHUNK_BYTES + 1] {
                link.reply(origin, 7, Codec::Bincode, zeros(size), Flush::Now);
            }
            let fault = Box::new(Fault::new(FaultKind::Failed, ""));
            link.answer(origin, &Frame::Failure(Failure { id: 8, part: 0, fault }), Flush::Now);
        };
        let (before, lost) = connect();
        link.down();
        answer(&before);
        let (now, wire) = connect();
        answer(&before);
        assert!(lost.0.lock().is_empty() && wire.0.lock().is_empty() && !link.streams.is_active());
        // The same while the controller is stopping.
        link.drain();
        answer(&before);
        assert!(wire.0.lock().is_empty());
        answer(&now);
        assert_eq!(*wire.0.lock(), ["REPLY", "REPLY", "CHUNK", "FAILURE"]);

        link.reply(&now, 9, Codec::Bincode, zeros(100 * CHUNK_BYTES), Flush::Now);
        assert!(link.streams.is_active(), "no more than a window is on its way");
        link.forget_reply(&before, 9);
        assert!(link.streams.is_active(), "it is another one's");
        link.forget_reply(&now, 9);
        link.streams.cancel(StreamId { call: 7, reply: true }, &mut Remains::default());
        assert!(!link.streams.is_active());
    }
}
