//! The connection to the controller: how it is made and kept alive, and what happens when it ends.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use daffi_core::{
    Address, Error, Limits,
    controller::RunningController,
    frame::{Frame, Hello, Offers, Register, VERSION},
    heartbeat::Heartbeat,
    host,
    outbox::Budget,
    transport::Stream,
};
use parking_lot::Mutex;

use crate::{
    backoff::Backoff,
    in_flight::Deadline,
    inbound::{Inbound, MemoryPort},
    link::Port,
    node::Node,
    singleton,
};

/// Keeps the node connected.
#[derive(Debug)]
pub(crate) struct Connector {
    target: Target,
    state: Mutex<State>,
    /// How many callbacks were callable at the last registration. Locked during one, so that an older
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
    /// When the first start gives up, and how long that is.
    give_up: Option<Deadline>,
    /// Called when singletons are registered, for as long as the node lives.
    listener: Option<Arc<singleton::Listener>>,
}

/// An existing connection.
#[derive(Debug)]
struct Live {
    port: Port,
    since: Instant,
    /// Whether the controller knows the node and its callbacks.
    up: bool,
    heartbeat: Heartbeat,
    ping_at: Instant,
}

/// What to do for a connection.
#[derive(Debug)]
struct Turn {
    /// When to look again.
    next: Option<Instant>,
    /// The id of the ping that is due.
    ping: Option<u64>,
}

/// How long one attempt to connect may take, over all addresses of a host name.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Connector {
    /// Returns a connector to `target`, which gives up if the first connection takes longer than `timeout`.
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

    /// Returns the connection, whether or not the node is registered on it.
    pub(crate) fn port(&self) -> Option<Port> {
        self.state.lock().connection.as_ref().map(|live| live.port.clone())
    }

    /// Returns the address at which a socket reaches the controller. A controller in this process that takes
    /// no node in memory is connected to like any other, both at first and after the connection is lost.
    fn address(&self) -> Option<Address> {
        match &self.target {
            Target::Address(address) => Some(address.clone()),
            Target::Memory(controller) => controller.addresses().into_iter().next(),
        }
    }

    /// Called when the controller has answered a ping.
    pub(crate) fn answered(&self, id: u64) {
        if let Some(live) = &mut self.state.lock().connection {
            live.heartbeat.pong(id);
        }
    }
}

impl Node {
    /// Connects for the first time, and from now on tells the controller about registered singletons.
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

    /// Does what is due for the connection; returns when to look again.
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
            (None, Some(live)) => {
                let turn = live.turn(now, &self.limits);
                let port = live.port.clone();
                drop(state);
                // Writing drops what has been written, which may be user memory: not with the lock held.
                let turn = turn.and_then(|Turn { next, ping }| match ping.map(|id| Frame::Ping { id }) {
                    Some(ping) if port.push_now(&ping).is_err() => Err("the controller does not read"),
                    _ => Ok(next),
                });
                turn.unwrap_or_else(|problem| {
                    tracing::warn!(node = self.name, problem, "giving up the connection to the controller");
                    port.close(problem);
                    None
                })
            }
            (None, None) => None,
        };
        host::earliest([next, give_up])
    }

    /// Ends the start with an error when it has taken too long; returns when that will be.
    fn give_up(&self, now: Instant) -> Option<Instant> {
        let mut state = self.connector.state.lock();
        let deadline = state.give_up?;
        if deadline.at > now {
            return Some(deadline.at);
        }
        state.give_up = None;
        let address = self.connector.address()?;
        let reason = match state.last_error.as_str() {
            "" => "the first attempt to connect has not ended yet".to_owned(),
            said => said.to_owned(),
        };
        drop(state);
        self.started.set(Err(Error::Unreachable { address, waited: deadline.after, reason }));
        None
    }

    /// Tells the controller which callbacks are callable now.
    pub(crate) fn register_again(&self) {
        if let Some(port) = self.link.port() {
            send_registration(self, &port);
        }
    }

    fn connect_to(self: &Arc<Self>, address: Address) {
        let node = self.clone();
        // Resolving a name blocks, and connecting may: the I/O thread must do neither.
        let connect = move || match Stream::connect(&address, CONNECT_TIMEOUT) {
            Ok(stream) => node.adopt(stream),
            Err(error) => node.retry(format!("cannot connect to {address}: {error}")),
        };
        if let Err(error) = host::spawn("daffi-connect", connect) {
            self.retry(format!("no thread to connect with: {error}"));
        }
    }

    fn adopt(self: &Arc<Self>, stream: Stream) {
        let node = self.clone();
        // The memory for the node's own calls is bounded by their number and by what waits for the socket.
        let budget = Budget::unlimited();
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
        let inbound = Arc::new(MemoryPort::default());
        let port = controller.attach(inbound.clone()).map(Port::Memory);
        match port {
            Some(port) => {
                inbound.open(Inbound::new(self.clone(), port.clone()));
                self.greet(&port);
            }
            None => match self.connector.address() {
                Some(address) => self.connect_to(address),
                None => self.fatal(Error::Refused { reason: "the controller listens nowhere".to_owned() }),
            },
        }
    }

    /// Introduces the node on a new connection.
    fn greet(&self, port: &Port) {
        let now = host::now();
        let heartbeat = Heartbeat::default();
        let live = Live { port: port.clone(), since: now, up: false, heartbeat, ping_at: now };
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

    /// Called when the node is registered: calls go out from now on.
    pub(crate) fn registered(&self, port: &Port, connection: u64) {
        let now = host::now();
        {
            let mut state = self.connector.state.lock();
            state.backoff.reset();
            state.last_error.clear();
            state.give_up = None;
            if let Some(live) = &mut state.connection {
                live.up = true;
                live.ping_at = now + Heartbeat::interval(self.limits.heartbeat);
            }
        }
        if self.started.is_set() {
            // Other nodes were lost together with this one, and return one by one.
            self.watch(self.settling.begin(now));
        }
        let mark = |id, sent| self.calls.get(id).is_some_and(|pending| pending.set_sent(sent));
        let refused = self.link.up(port.clone(), connection, mark, |id, call| self.settling.keep(id, call));
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
        // An instance may have been registered after the callbacks were sent, while there was no link to
        // announce it.
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

    /// Called when the connection is gone. Another attempt follows, unless the node is stopped.
    pub(crate) fn disconnected(self: &Arc<Self>, reason: &str) {
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
        let (at, before) = {
            let mut state = self.connector.state.lock();
            let at = host::now() + state.backoff.next();
            state.retry_at = Some(at);
            (at, std::mem::replace(&mut state.last_error, reason.clone()))
        };
        self.watch(at);
        if before != reason {
            tracing::info!(node = self.name, reason, "waiting for the controller");
        }
    }

    /// Called when the controller will never accept this node.
    pub(crate) fn fatal(&self, error: Error) {
        if !self.started.set(Err(error.clone())) {
            tracing::error!(node = self.name, %error, "the controller does not take this node any more; still trying");
        }
    }
}

impl Live {
    /// Asks for a sign of life when it is time; returns when to look again.
    ///
    /// # Errors
    /// If the peer has not answered for too long.
    fn turn(&mut self, now: Instant, limits: &Limits) -> Result<Turn, &'static str> {
        if let Port::Memory(_) = self.port {
            // Both ends live and die together.
            return Ok(Turn { next: None, ping: None });
        }
        if !self.up {
            let until = self.since + limits.handshake_timeout;
            return if now < until {
                Ok(Turn { next: Some(until), ping: None })
            } else {
                Err("the controller does not answer the handshake")
            };
        }
        let mut ping = None;
        if self.ping_at <= now {
            ping = self.heartbeat.next_ping();
            if ping.is_none() {
                return Err("the controller gives no sign of life");
            }
            self.ping_at = now + Heartbeat::interval(limits.heartbeat);
        }
        Ok(Turn { next: Some(self.ping_at), ping })
    }
}

/// The id of every registration; they are answered in order, so one is enough.
const REGISTRATION: u64 = 1;

pub(crate) fn send_registration(node: &Node, port: &Port) {
    let mut registered = node.connector.registered.lock();
    *registered = node.executor.registry().callable();
    let pieces = node.executor.registry().offers();
    let last = pieces.len() - 1;
    for (number, piece) in pieces.iter().enumerate() {
        let offers = Offers::parse(piece).expect("offers are parsed as they are pushed");
        let register = Register { id: REGISTRATION, more: number < last, offers };
        // A closed connection is reported separately.
        if port.push(&Frame::Register(register)).is_err() {
            break;
        }
    }
    // Writing drops what has been written, which may be user memory.
    drop(registered);
    port.flush();
    // Large payloads that waited for what was just written go on.
    node.link.write();
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
