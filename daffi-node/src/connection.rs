//! One connection to the controller: how it comes to be, what comes in on it, and whether it is alive.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use daffi_core::{
    Address, Error, Limits,
    controller::{FramePort, PortError, RunningController},
    fault::{Fault, FaultKind},
    frame::{Chunk, Failure, Frame, Hello, Offers, Refuse, RefuseCode, Register, Request, VERSION},
    limits::{FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX},
    outbox::Budget,
    reactor::Connection,
    transport::Stream,
};
use parking_lot::Mutex;

use crate::{
    backoff::Backoff,
    executor::{Arrival, Job},
    in_flight::{CallId, Deadline},
    link::{Flush, Port},
    node::Node,
    pending::{Assembly, Progress},
    singleton,
    streams::StreamId,
};

/// Keeps the node connected.
#[derive(Debug)]
pub(crate) struct Connector {
    target: Target,
    state: Mutex<State>,
    /// How many callbacks could be called when they were registered last. Locked while they are, so that an older
    /// registration does not overtake a newer one.
    registered: Mutex<usize>,
}

/// Where the controller is.
pub(crate) enum Target {
    Address(Address),
    /// In this process.
    Memory(Arc<dyn RunningController>),
}

struct State {
    backoff: Backoff,
    retry_at: Option<Instant>,
    connection: Option<Live>,
    /// Why there is no connection.
    last_error: String,
    /// When to give up the first start, and how long that is.
    give_up: Option<Deadline>,
    /// Told of singletons that are registered, for as long as the node lives.
    listener: Option<Arc<singleton::Listener>>,
}

/// A connection that is there.
#[derive(Debug)]
struct Live {
    port: Port,
    since: Instant,
    /// The controller knows the node and its callbacks.
    up: bool,
    ping_at: Instant,
    /// Since when a ping has not been answered.
    unanswered: Option<Instant>,
}

/// How long one attempt to connect may take, for each address that a host name has.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Connector {
    /// Keeps a node connected to `target`; gives up if it takes longer than `timeout` for the first time.
    pub(crate) fn new(target: Target, timeout: Option<Duration>, seed: u64) -> Self {
        let state = State {
            backoff: Backoff::new(seed),
            retry_at: None,
            connection: None,
            last_error: String::new(),
            give_up: Deadline::after(timeout),
            listener: None,
        };
        Self { target, state: Mutex::new(state), registered: Mutex::new(0) }
    }

    /// The connection, whether or not the node is registered on it.
    pub(crate) fn port(&self) -> Option<Port> {
        self.state.lock().connection.as_ref().map(|live| live.port.clone())
    }

    /// Where a socket reaches the controller. One in this process that takes no node in memory is connected to like
    /// any other, and so it is again when the connection is lost.
    fn address(&self) -> Option<Address> {
        match &self.target {
            Target::Address(address) => Some(address.clone()),
            Target::Memory(controller) => controller.addresses().into_iter().next(),
        }
    }

    fn answered(&self) {
        if let Some(live) = &mut self.state.lock().connection {
            live.unanswered = None;
        }
    }
}

impl Node {
    /// Connects for the first time, and tells the controller of singletons that are registered from now on.
    pub(crate) fn connect(self: &Arc<Self>) {
        let node = Arc::downgrade(self);
        let listener: Arc<singleton::Listener> = Arc::new(move || {
            if let Some(node) = node.upgrade() {
                node.register_again();
            }
        });
        singleton::on_register(Arc::downgrade(&listener));
        self.connector.state.lock().listener = Some(listener);
        match &self.connector.target {
            Target::Address(address) => self.connect_to(address.clone()),
            Target::Memory(controller) => self.connect_in_memory(controller.as_ref()),
        }
    }

    /// Does what is due for the connection; says when to look again.
    pub(crate) fn keep_connected(&self, now: Instant) -> Option<Instant> {
        if self.is_stopped() {
            return None;
        }
        let give_up = self.give_up(now);
        let mut state = self.connector.state.lock();
        let next = match (state.retry_at, &mut state.connection) {
            (Some(at), _) if at > now => Some(at),
            (Some(_), _) => {
                state.retry_at = None;
                drop(state);
                if let (Some(node), Some(address)) = (self.me(), self.connector.address()) {
                    node.connect_to(address);
                }
                None
            }
            (None, Some(live)) => match live.turn(now, &self.limits) {
                Ok(next) => next,
                Err(problem) => {
                    let port = live.port.clone();
                    drop(state);
                    tracing::warn!(node = self.name, problem, "giving up the connection to the controller");
                    port.close(problem);
                    None
                }
            },
            (None, None) => None,
        };
        next.into_iter().chain(give_up).min()
    }

    /// Ends the start with an error when it has taken too long; says when that will be.
    fn give_up(&self, now: Instant) -> Option<Instant> {
        let mut state = self.connector.state.lock();
        let deadline = state.give_up?;
        if deadline.at > now {
            return Some(deadline.at);
        }
        state.give_up = None;
        let address = self.connector.address()?;
        let reason = state.last_error.clone();
        drop(state);
        self.started.set(Err(Error::Unreachable { address, waited: deadline.after, reason }));
        None
    }

    /// Tells the controller which callbacks can be called now.
    pub(crate) fn register_again(&self) {
        if let Some(port) = self.link.port() {
            send_registration(self, &port);
        }
    }

    fn connect_to(self: &Arc<Self>, address: Address) {
        let node = self.clone();
        // Resolving a name blocks, and connecting may: the I/O thread has no time for either.
        let connect = move || match Stream::connect(&address, CONNECT_TIMEOUT) {
            Ok(stream) => node.adopt(stream),
            Err(error) => node.retry(format!("cannot connect to {address}: {error}")),
        };
        if let Err(error) = thread::Builder::new().name("daffi-connect".to_owned()).spawn(connect) {
            self.retry(format!("no thread to connect with: {error}"));
        }
    }

    fn adopt(self: &Arc<Self>, stream: Stream) {
        let node = self.clone();
        // What the node's own calls may take up is bounded by their number and by what waits for the socket.
        let budget = Budget::new(usize::MAX);
        let added = self.reactor().add_connection(stream, self.limits.queue_bytes_max, budget, |outbox| {
            let port = Port::Socket(outbox.clone());
            node.greet(&port);
            Box::new(Inbound::new(node.clone(), port))
        });
        if let Err(error) = added {
            self.retry(format!("the connection cannot be used: {error}"));
        }
    }

    fn connect_in_memory(self: &Arc<Self>, controller: &dyn RunningController) {
        let inbound = Arc::new(MemoryPort { inbound: Mutex::new(None) });
        let port = controller.attach(inbound.clone()).map(Port::Memory);
        match port {
            Some(port) => {
                *inbound.inbound.lock() = Some(Inbound::new(self.clone(), port.clone()));
                self.greet(&port);
            }
            None => match self.connector.address() {
                Some(address) => self.connect_to(address),
                None => self.fatal(Error::Refused { reason: "the controller listens nowhere".to_owned() }),
            },
        }
    }

    /// A connection is there: says who this is.
    fn greet(&self, port: &Port) {
        let now = Instant::now();
        let live = Live { port: port.clone(), since: now, up: false, ping_at: now, unanswered: None };
        self.connector.state.lock().connection = Some(live);
        let hello = Frame::Hello(Hello {
            version_min: VERSION,
            version_max: VERSION,
            capabilities: 0,
            instance: self.instance,
            name: &self.name,
            credentials: &[],
        });
        if self.is_stopped() || port.push_now(&hello).is_err() {
            port.close("stopped");
        }
        self.watch(now + self.limits.handshake_timeout);
    }

    /// The node is registered: calls go out from now on.
    fn registered(&self, port: &Port) {
        let now = Instant::now();
        {
            let mut state = self.connector.state.lock();
            state.backoff.reset();
            state.last_error.clear();
            state.give_up = None;
            if let Some(live) = &mut state.connection {
                live.up = true;
                live.ping_at = now + self.limits.heartbeat;
            }
        }
        if self.started.is_set() {
            // Others were lost together with this node, and return one by one.
            self.watch(self.settling.begin(now));
        }
        let mark = |id, sent| self.calls.get(id).is_some_and(|pending| pending.set_sent(sent));
        let refused = self.link.up(port.clone(), mark, |id, call| self.settling.keep(id, call));
        let overloaded = Error::Overloaded { node: self.name.clone() };
        for (id, callback) in refused {
            match id.map(|id| self.take(id)) {
                Some(Some(pending)) => pending.fail(overloaded.clone()),
                Some(None) => {}
                None => {
                    tracing::warn!(%callback, error = %overloaded, "a call that nobody waits for was not sent")
                }
            }
        }
        // An instance that was registered after the callbacks were sent, while there was no link to say so.
        if self.executor.registry().callable() != *self.connector.registered.lock() {
            self.register_again();
        }
        self.watch(now + self.limits.heartbeat);
        if self.started.set(Ok(())) {
            tracing::info!(
                node = self.name,
                callbacks = self.executor.registry().len(),
                "connected to the controller"
            );
        } else {
            tracing::info!(node = self.name, "connected to the controller again");
        }
    }

    /// The connection is gone. Another attempt follows, unless the node is stopped.
    fn disconnected(self: &Arc<Self>, reason: &str) {
        let was_up = self.connector.state.lock().connection.take().is_some_and(|live| live.up);
        self.link_lost();
        if self.is_stopped() {
            return;
        }
        if was_up {
            tracing::warn!(node = self.name, reason, "lost the controller; connecting again");
        }
        self.retry(reason.to_owned());
    }

    fn retry(self: &Arc<Self>, reason: String) {
        if self.is_stopped() {
            return;
        }
        let at = {
            let mut state = self.connector.state.lock();
            let at = Instant::now() + state.backoff.next();
            if state.last_error != reason {
                tracing::info!(node = self.name, reason, "waiting for the controller");
            }
            state.last_error = reason;
            state.retry_at = Some(at);
            at
        };
        self.watch(at);
    }

    /// The controller will never take this node.
    fn fatal(&self, error: Error) {
        if !self.started.set(Err(error.clone())) {
            tracing::error!(node = self.name, %error, "the controller does not take this node any more; still trying");
        }
    }
}

impl Live {
    /// Asks for a sign of life when it is time; says when to look again.
    ///
    /// # Errors
    /// The peer has not answered for too long.
    fn turn(&mut self, now: Instant, limits: &Limits) -> Result<Option<Instant>, &'static str> {
        if let Port::Memory(_) = self.port {
            // Both ends live and die together.
            return Ok(None);
        }
        if !self.up {
            let until = self.since + limits.handshake_timeout;
            return if now < until {
                Ok(Some(until))
            } else {
                Err("the controller does not answer the handshake")
            };
        }
        let lost_at = self.unanswered.map(|since| since + limits.heartbeat * Limits::HEARTBEATS_MISSED_MAX);
        if lost_at.is_some_and(|at| at <= now) {
            return Err("the controller gives no sign of life");
        }
        if self.ping_at <= now {
            self.ping_at = now + limits.heartbeat;
            self.unanswered.get_or_insert(now);
            if self.port.push_now(&Frame::Ping { id: 0 }).is_err() {
                return Err("the controller does not read");
            }
        }
        Ok(lost_at.into_iter().chain([self.ping_at]).min())
    }
}

/// What comes in on one connection.
#[derive(Debug)]
struct Inbound {
    node: Arc<Node>,
    port: Port,
    phase: Phase,
    /// Requests whose payload is not whole yet. With those that run they are bounded by `requests_held_max`.
    requests: HashMap<u64, (Job, Assembly)>,
}

/// How far the connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `HELLO` is sent.
    Greeting,
    /// The callbacks are sent.
    Registering,
    /// Calls come and go.
    Up,
}

/// The id of every registration; they answer in order, so one is enough.
const REGISTRATION: u64 = 1;

impl Inbound {
    fn new(node: Arc<Node>, port: Port) -> Self {
        Self { node, port, phase: Phase::Greeting, requests: HashMap::new() }
    }

    /// Takes what came.
    ///
    /// # Errors
    /// Why the connection cannot go on.
    fn handle(&mut self, frame: Frame<'_>) -> Result<(), String> {
        match (self.phase, frame) {
            (_, Frame::Ping { id }) => drop(self.port.push_now(&Frame::Pong { id })),
            (_, Frame::Pong { .. }) => self.node.connector.answered(),
            (_, Frame::Goodbye { reason }) => {
                tracing::info!(node = self.node.name, reason, "the controller is stopping");
                self.node.link.drain();
            }
            (_, Frame::Refuse(refuse)) => return Err(self.refused(&refuse)),
            (Phase::Greeting, Frame::Welcome(_)) => {
                self.phase = Phase::Registering;
                send_registration(&self.node, &self.port);
            }
            (Phase::Registering, Frame::Registered { .. }) => {
                self.phase = Phase::Up;
                self.node.registered(&self.port);
            }
            (Phase::Up, Frame::Registered { .. }) => {}
            (Phase::Up, frame) => return self.handle_up(frame),
            (phase, frame) => return Err(format!("a {} frame came while {phase:?}", frame.kind())),
        }
        Ok(())
    }

    fn handle_up(&mut self, frame: Frame<'_>) -> Result<(), String> {
        let limit = self.node.limits.payload_bytes_max;
        match frame {
            Frame::Request(request) => self.request(&request),
            Frame::Reply(reply) => {
                self.answer(reply.id, true, reply.part, |pending| pending.reply(&reply, limit));
            }
            Frame::Failure(failure) if self.node.try_again(CallId(failure.id), &failure.fault) => {}
            Frame::Failure(failure) => {
                self.answer(failure.id, false, failure.part, |pending| pending.failure(failure));
            }
            Frame::Targets(targets) => self.answer(targets.id, false, 0, |pending| pending.targets(&targets)),
            Frame::Chunk(chunk) if chunk.reply => {
                self.answer(chunk.id, true, chunk.part, |pending| pending.chunk(&chunk, limit));
            }
            Frame::Chunk(chunk) => self.chunk(&chunk),
            Frame::Cancel { id } => {
                if let Some(job) = self.unstarted(id) {
                    self.node.executor.forgo(&job);
                } else {
                    self.node.executor.cancel(id);
                }
                self.node.link.cancel_stream(StreamId { call: id, reply: true });
            }
            Frame::Credit { id, reply, bytes, .. } => {
                self.node.link.credit(StreamId { call: id, reply }, bytes);
            }
            frame => return Err(format!("a {} frame is not for a node", frame.kind())),
        }
        Ok(())
    }

    fn request(&mut self, request: &Request<'_>) {
        let &Request { id, one_way, more, codec, hops, fingerprint, callback, total, .. } = request;
        let limit = self.node.limits.payload_bytes_max;
        if u64::from(total) > limit {
            let fault = Fault::new(FaultKind::BadArguments, "the arguments are too large");
            return self.refuse(id, one_way, fault.number(total.into()).limit(limit));
        }
        if more && self.requests.len() + self.node.executor.held() >= self.node.limits.requests_held_max {
            let fault = Fault::new(FaultKind::Overloaded, "as many requests are coming as may be");
            return self.refuse(id, one_way, fault);
        }
        let mut job = Job {
            id,
            callback,
            one_way,
            codec,
            hops,
            fingerprint,
            deadline: request.deadline().map(|left| Instant::now() + left),
            timeout_us: request.deadline_us,
            caller: request.node.into(),
            body: Bytes::new(),
        };
        if more {
            let assembly = Assembly::new(codec, total, request.body.as_slice());
            if let Some(reservation) = self.node.executor.reservation(&job) {
                self.arrived(Arrival::Begun(reservation));
            }
            self.requests.insert(id, (job, assembly));
        } else {
            job.body = request.body.to_bytes();
            self.arrived(Arrival::Whole(job));
        }
    }

    /// A request has come. It starts once all that came with it has been looked at: a process that was frozen finds
    /// requests that expired meanwhile, and behind them that they were cancelled.
    fn arrived(&self, arrival: Arrival) {
        self.node.arrived.lock().push(arrival);
        if let Port::Memory(_) = self.port {
            // It came in the controller's turn, after which the thread would wait.
            self.node.reactor().wake();
        }
    }

    /// Takes out a request that has not been started.
    fn unstarted(&mut self, id: u64) -> Option<Job> {
        let mut arrived = self.node.arrived.lock();
        // Those that nobody waits for have no numbers of their own.
        let whole =
            |arrival: &mut Arrival| matches!(arrival, Arrival::Whole(job) if job.id == id && !job.one_way);
        let job = match self.requests.remove(&id) {
            Some((job, _)) => job,
            None => match arrived.extract_if(.., whole).next() {
                Some(Arrival::Whole(job)) => job,
                _ => return None,
            },
        };
        // Its place may not even be reserved yet; later nobody would give it back.
        let reservation = self.node.executor.reservation(&job);
        arrived.retain(|arrival| !matches!(arrival, Arrival::Begun(begun) if Some(*begun) == reservation));
        Some(job)
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) {
        let Some((_, assembly)) = self.requests.get_mut(&chunk.id) else {
            // It was cancelled or refused. Whoever has not heard of it, or never will, may send the rest.
            if chunk.more {
                self.credit(chunk, chunk.body.len() as u32);
            }
            return;
        };
        match assembly.add(chunk) {
            Ok(None) => {
                if let Some(bytes) = assembly.take_credit() {
                    self.credit(chunk, bytes);
                }
            }
            Ok(Some(payload)) => {
                if let Some((mut job, _)) = self.requests.remove(&chunk.id) {
                    job.body = payload.body;
                    self.arrived(Arrival::Whole(job));
                }
            }
            Err(problem) => {
                if let Some(job) = self.unstarted(chunk.id) {
                    self.node.executor.forgo(&job);
                    let fault =
                        Fault::new(FaultKind::BadArguments, format!("the payload is broken: {problem}"));
                    self.refuse(job.id, job.one_way, fault);
                }
            }
        }
    }

    /// Passes what came for a call on to it; frees its place when that was the last.
    fn answer(
        &self,
        id: u64,
        counts: bool,
        part: u32,
        give: impl FnOnce(&crate::pending::Pending) -> Progress,
    ) {
        let id = CallId(id);
        let Some(pending) = self.node.calls.get(id) else {
            if counts {
                self.node.late_replies.fetch_add(1, Ordering::Relaxed);
            }
            return;
        };
        match give(&pending) {
            Progress::Done => drop(self.node.take(id)),
            Progress::Refused => self.node.refuse_rest(id),
            Progress::Open => {}
            Progress::Credit(bytes) => {
                let credit = Frame::Credit { id: id.0, reply: true, part, bytes };
                self.node.link.send(&credit, Flush::Soon);
            }
        }
    }

    fn credit(&self, chunk: &Chunk<'_>, bytes: u32) {
        let credit = Frame::Credit { id: chunk.id, reply: chunk.reply, part: chunk.part, bytes };
        self.node.link.send(&credit, Flush::Soon);
    }

    fn refuse(&self, id: u64, one_way: bool, fault: Fault) {
        if one_way {
            tracing::warn!(node = self.node.name, reason = fault.message, "a call was not run");
        } else {
            let fault = Box::new(fault.on(&self.node.name));
            self.node.link.send(&Frame::Failure(Failure { id, part: 0, fault }), Flush::Soon);
        }
    }

    fn refused(&self, refuse: &Refuse<'_>) -> String {
        let name = self.node.name.clone();
        let reason = refuse.reason.to_owned();
        match refuse.code {
            RefuseCode::Unavailable => {}
            RefuseCode::NameTaken => self.node.fatal(Error::NameTaken { name }),
            _ => self.node.fatal(Error::Refused { reason }),
        }
        format!("the controller refused: {}", refuse.reason)
    }
}

impl Connection for Inbound {
    fn received(&mut self, batch: &Bytes) -> Result<usize, String> {
        let mut at = 0;
        loop {
            let limit = if self.phase == Phase::Greeting { HANDSHAKE_BYTES_MAX } else { FRAME_BYTES_MAX };
            match Frame::decode(batch, at, limit).map_err(|error| error.to_string())? {
                Some((frame, next)) => {
                    self.handle(frame)?;
                    at = next;
                }
                None => return Ok(at),
            }
        }
    }

    fn closed(&mut self, reason: &str) {
        // Those that nobody waits for may run. The callers of the others have been told.
        let told = |arrival: &mut Arrival| matches!(arrival, Arrival::Whole(job) if !job.one_way);
        let dropped: Vec<_> = self.node.arrived.lock().extract_if(.., told).collect();
        self.node.run_arrived();
        self.node.disconnected(reason);
        for arrival in dropped {
            if let Arrival::Whole(job) = arrival {
                self.node.executor.forgo(&job);
            }
        }
        for (_, (job, _)) in self.requests.drain() {
            self.node.executor.forgo(&job);
        }
    }
}

/// Where the controller of this process puts what it has for the node.
struct MemoryPort {
    inbound: Mutex<Option<Inbound>>,
}

impl FramePort for MemoryPort {
    fn send(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        let mut inbound = self.inbound.lock();
        let Some(connection) = &mut *inbound else { return Err(PortError::Closed) };
        if let Err(reason) = connection.handle(frame.clone()) {
            tracing::error!(reason, "the controller of this process broke the protocol");
            if let Some(mut connection) = inbound.take() {
                connection.closed(&reason);
            }
            return Err(PortError::Closed);
        }
        Ok(())
    }

    fn close(&self, reason: &str) {
        let connection = self.inbound.lock().take();
        if let Some(mut connection) = connection {
            connection.closed(reason);
        }
    }
}

fn send_registration(node: &Node, port: &Port) {
    let mut registered = node.connector.registered.lock();
    *registered = node.executor.registry().callable();
    let pieces = node.executor.registry().offers();
    let last = pieces.len() - 1;
    for (number, piece) in pieces.iter().enumerate() {
        let offers = Offers::parse(piece).expect("offers are parsed as they are pushed");
        let register = Register { id: REGISTRATION, more: number < last, offers };
        // A closed connection says so by itself.
        if port.push_now(&Frame::Register(register)).is_err() {
            return;
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { retry_at, connection, last_error, .. } = self;
        f.debug_struct("State")
            .field("retry_at", retry_at)
            .field("connection", connection)
            .field("last_error", last_error)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Memory(_) => f.write_str("this process"),
        }
    }
}
