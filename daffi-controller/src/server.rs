//! A controller that listens: starting, accepting, stopping.

use std::{fmt, sync::Arc, time::Duration};

use daffi_core::{
    Address, Error, Result,
    controller::{Controller, ControllerConfig, FramePort, RunningController},
    frame::{Frame, Refuse},
    host,
    reactor::{Acceptor, Handle, ListenerGuard, Reactor},
    transport::{Listener, Stream},
};
use parking_lot::Mutex;

use crate::{
    hub::{Hub, Stop},
    peer::{MemoryPeer, SocketPeer},
    ports::LINGER,
    router::{Counters, LogLine, Outbound as _, Sizes},
};

/// The controller of daffi, which `init_controller(true)` starts wherever this crate is linked.
#[derive(Debug, Clone, Copy, Default)]
pub struct DefaultController;

daffi_core::submit_controller!(DefaultController);

impl Controller for DefaultController {
    fn name(&self) -> &str {
        env!("CARGO_PKG_NAME")
    }

    fn start(&self, config: ControllerConfig, reactor: &Reactor) -> Result<Arc<dyn RunningController>> {
        Ok(Arc::new(Running::start(&config, reactor.handle())?))
    }
}

/// A controller with its own thread. Dropping it stops it without grace.
///
/// ```
/// # mod daffi { pub use {daffi_controller as controller, daffi_core::{Address, Error}}; }
/// use daffi::{Address, controller::{ControllerConfig, Server}};
///
/// let any_port = Address::Tcp { host: "127.0.0.1".into(), port: 0 };
/// let server = Server::start(ControllerConfig::new(vec![any_port]))?;
/// println!("listening on {}", server.addresses()[0]);
/// assert_eq!(server.stop(std::time::Duration::from_secs(1)), 0);
/// # Ok::<(), daffi::Error>(())
/// ```
#[derive(Debug)]
pub struct Server {
    // Dropped in this order: what runs on the reactor ends before the reactor does.
    running: Running,
    _reactor: Reactor,
}

impl Server {
    /// Starts listening on every address of `config`.
    ///
    /// # Errors
    /// [`Error::Configuration`], [`Error::AddressInUse`] or [`Error::AddressUnusable`].
    pub fn start(config: ControllerConfig) -> Result<Self> {
        let reactor = start_reactor()?;
        Ok(Self { running: Running::start(&config, reactor.handle())?, _reactor: reactor })
    }

    /// Returns where it listens, with the actual ports for port 0.
    pub fn addresses(&self) -> &[Address] {
        &self.running.addresses
    }

    /// Connects a node of this process, as [`RunningController::attach`] does.
    pub fn attach(&self, node: Arc<dyn FramePort>) -> Option<Arc<dyn FramePort>> {
        self.running.attach(node)
    }

    /// Stops like [`RunningController::stop`], and returns how many calls the end of the grace time cut off.
    pub fn stop(&self, grace: Duration) -> usize {
        self.running.stop_within(Some(grace))
    }

    /// Returns the counts of what happened without anyone being told.
    pub fn counters(&self) -> Counters {
        self.running.hub.with(|state, _| state.router.counters())
    }

    /// Returns how much the controller currently remembers.
    pub fn sizes(&self) -> Sizes {
        self.running.hub.with(|state, _| state.router.sizes())
    }
}

/// A controller on a given reactor.
struct Running {
    hub: Arc<Hub>,
    addresses: Vec<Address>,
    listeners: Mutex<Vec<ListenerGuard>>,
    /// Its reactors besides the one it was started on. Dropped once it has stopped.
    _reactors: Vec<Reactor>,
}

/// Accepts connections.
struct Door {
    hub: Arc<Hub>,
}

impl Running {
    fn start(config: &ControllerConfig, handle: &Handle) -> Result<Self> {
        config.check()?;
        let bound = config.listen.iter().map(Listener::bind).collect::<Result<Vec<_>>>()?;
        let reactors = (1..config.threads).map(|_| start_reactor()).collect::<Result<Vec<_>>>()?;
        let handles = [handle].into_iter().chain(reactors.iter().map(Reactor::handle)).cloned().collect();
        let hub = Hub::new(config, host::random(), handles);
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for (listener, address) in bound {
            warn_if_open(&address);
            let door = Box::new(Door::open(&hub));
            let guard = handle
                .add_listener(listener, door)
                .map_err(|error| Error::AddressUnusable { address: address.clone(), source: error.into() })?;
            listeners.push(guard);
            addresses.push(address);
        }
        handle.add_service(hub.clone());
        Ok(Self { hub, addresses, listeners: Mutex::new(listeners), _reactors: reactors })
    }

    /// Stops. Without a grace time it waits for nothing.
    fn stop_within(&self, grace: Option<Duration>) -> usize {
        self.listeners.lock().clear();
        let hub = &self.hub;
        let begun = hub.with(|state, now| {
            if state.stop != Stop::No {
                return false;
            }
            state.stop = Stop::Begun;
            state.router.drain(now, &mut state.ports);
            true
        });
        // On the reactor's own thread, this would wait for itself.
        let grace = grace.filter(|_| !hub.is_current());
        if begun {
            self.stop_now(grace);
        }
        if grace.is_some() {
            // If another thread is already stopping it, that will end: its waits are bounded.
            while !hub.wait(host::now() + LINGER, |state| matches!(state.stop, Stop::Done(_))) {}
        }
        hub.with(|state, _| if let Stop::Done(cut_off) = state.stop { cut_off } else { 0 })
    }

    fn stop_now(&self, grace: Option<Duration>) {
        let hub = &self.hub;
        if let Some(grace) = grace {
            let until = host::now().checked_add(grace).unwrap_or_else(|| host::now() + FOREVER);
            hub.wait(until, |state| state.router.is_idle());
        }
        let cut_off = hub.with(|state, now| {
            let cut_off = state.router.in_flight();
            state.router.close(now, &mut state.ports);
            cut_off
        });
        if cut_off > 0 {
            tracing::warn!(calls = cut_off, "stopped with calls in flight");
        }
        if grace.is_some() {
            // Peers see the end after our last frame, and close their side.
            hub.wait(host::now() + LINGER, |state| {
                state.ports.all_sockets_closed() && !state.ports.has_delivery()
            });
        }
        for outbox in hub.with(|state, now| state.ports.overdue(now.mono, true)) {
            outbox.close();
        }
        // The reactor's thread closes the listeners. Once this returns, the addresses are free for others.
        if !hub.is_current() {
            hub.wait(host::now() + LINGER, |state| state.doors == 0);
        }
        // That thread does this too, unless it is this one or nobody waited for it. In the end, a node that
        // takes no more is not waited for.
        let until = host::now() + LINGER;
        while !hub.is_current() && hub.with(|state, _| state.ports.has_delivery()) && host::now() < until {
            hub.deliver();
        }
        hub.handle.remove_service(hub.clone());
        hub.with(|state, _| state.stop = Stop::Done(cut_off));
        hub.notify_ended();
    }
}

impl RunningController for Running {
    fn addresses(&self) -> Vec<Address> {
        self.addresses.clone()
    }

    fn attach(&self, node: Arc<dyn FramePort>) -> Option<Arc<dyn FramePort>> {
        let hub = &self.hub;
        let attached = hub.with(|state, now| {
            let peer = state.router.connected("this process", now)?;
            state.ports.add_memory(peer, node);
            Ok::<_, crate::router::Refusal>(peer)
        });
        match attached {
            Ok(peer) => Some(Arc::new(MemoryPeer::new(hub.clone(), peer))),
            Err(refusal) => {
                tracing::warn!(reason = refusal.reason, "the node of this process cannot connect in memory");
                hub.open();
                None
            }
        }
    }

    fn callers_may_lead(&self) -> bool {
        true
    }

    fn stop(&self, grace: Duration) {
        self.stop_within(Some(grace));
    }

    #[cfg(feature = "simulation")]
    fn sizes(&self) -> Option<Box<dyn std::any::Any>> {
        Some(Box::new(self.hub.with(|state, _| state.router.sizes())))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop_within(None);
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Door {
    fn open(hub: &Arc<Hub>) -> Self {
        hub.with(|state, _| state.doors += 1);
        Self { hub: hub.clone() }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.hub.with(|state, _| state.doors -= 1);
    }
}

impl Acceptor for Door {
    fn is_open(&self) -> bool {
        self.hub.is_open()
    }

    fn accepted(&mut self, stream: Stream, from: &str) {
        let hub = &self.hub;
        // Even a refused connection takes a socket for a moment: in a flood there is no room for manners.
        if hub.with(|state, _| state.ports.lingering() > hub.limits.handshakes_max) {
            return;
        }
        let reactor = hub.with(|state, _| state.ports.socket_opened());
        let (bytes_max, budget) = (hub.limits.queue_bytes_max, hub.budget.clone());
        let added = hub.reactors[reactor].add_connection(stream, bytes_max, budget, |outbox| {
            let peer = hub.with(|state, now| match state.router.connected(from, now) {
                Ok(peer) => {
                    state.ports.add_socket(peer, outbox.clone());
                    Some(peer)
                }
                Err(refusal) => {
                    let (from, reason) = (from.to_owned(), refusal.reason);
                    state.ports.log(LogLine::new(move || {
                        tracing::warn!(from, reason, "refusing a connection");
                    }));
                    let refuse = Refuse { code: refusal.code, reason: refusal.reason };
                    let _ = outbox.push(&Frame::Refuse(refuse));
                    state.ports.finish(outbox.clone());
                    None
                }
            });
            Box::new(SocketPeer { hub: hub.clone(), peer, welcomed: false, reactor })
        });
        if let Err(error) = added {
            hub.with(|state, _| state.ports.socket_closed(reactor));
            tracing::warn!(from, %error, "cannot take a connection in");
        }
    }
}

fn start_reactor() -> Result<Reactor> {
    Reactor::start("daffi-controller").map_err(|error| Error::Configuration {
        problem: format!("the operating system gives no thread for input and output: {error}"),
    })
}

/// Warns of an open address: there is no authentication yet, so anyone who can connect can call everything.
fn warn_if_open(address: &Address) {
    if let Address::Tcp { host, .. } = address {
        let ip = host.parse::<std::net::IpAddr>();
        if host != "localhost" && !ip.is_ok_and(|ip| ip.is_loopback()) {
            tracing::warn!(%address, "everybody who reaches this address can call every callback");
        }
    }
}

/// Longer than anybody waits.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
