//! The I/O around the state: listeners, connections, and time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use daffi_core::{
    Address, Error, Result,
    controller::ControllerConfig,
    frame::{Frame, RefuseCode},
    outbox::Budget,
    reactor::{Acceptor, Connection, Handle, ListenerGuard, Service},
    transport::{Listener, Stream},
};
use parking_lot::{Condvar, Mutex};

use crate::state::{NodeId, State};

/// A controller that listens.
pub(crate) struct Hub {
    shared: Arc<Shared>,
    /// The same as `shared`, in the form that the reactor knows.
    service: Arc<dyn Service>,
    handle: Handle,
    addresses: Vec<Address>,
    guards: Mutex<Vec<ListenerGuard>>,
}

struct Shared {
    state: Mutex<State>,
    /// Signals a change that `stop` may be waiting for.
    changed: Condvar,
    budget: Arc<Budget>,
}

impl Hub {
    pub(crate) fn start(config: ControllerConfig, handle: &Handle) -> Result<Self> {
        // Binds all addresses first, so that nothing is left behind if one of them is taken.
        let bound = config.listen.iter().map(Listener::bind).collect::<Result<Vec<_>>>()?;
        let shared = Arc::new(Shared {
            budget: Budget::new(config.limits.queue_total_bytes_max),
            state: Mutex::new(State::new(config)),
            changed: Condvar::new(),
        });
        let mut addresses = Vec::new();
        let mut guards = Vec::new();
        for (listener, address) in bound {
            shared.state.lock().listeners += 1;
            let door = Door { shared: shared.clone(), handle: handle.clone() };
            let guard = handle
                .add_listener(listener, Box::new(door))
                .map_err(|error| Error::AddressUnusable { address: address.clone(), source: error.into() })?;
            guards.push(guard);
            addresses.push(address);
        }
        let service: Arc<dyn Service> = shared.clone();
        handle.add_service(service.clone());
        Ok(Self { shared, service, handle: handle.clone(), addresses, guards: Mutex::new(guards) })
    }

    pub(crate) fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    pub(crate) fn stop(&self, grace: Duration) {
        let until = Instant::now() + grace;
        self.guards.lock().clear();
        let mut state = self.shared.state.lock();
        state.say_goodbye();
        // On the reactor's own thread, nothing would change during the wait.
        let waits = !self.handle.is_current();
        while waits && !state.is_idle() {
            if self.shared.changed.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.close_all();
        while waits && state.listeners > 0 {
            self.shared.changed.wait(&mut state);
        }
        drop(state);
        self.handle.remove_service(self.service.clone());
    }
}

impl Service for Shared {
    fn turn(&self, now: Instant) -> Option<Instant> {
        self.state.lock().turn(now)
    }
}

/// Accepts connections.
struct Door {
    shared: Arc<Shared>,
    handle: Handle,
}

impl Acceptor for Door {
    fn accepted(&mut self, stream: Stream, peer: &str) {
        let shared = self.shared.clone();
        let mut state = self.shared.state.lock();
        let Some(id) = state.admit() else {
            tracing::warn!(peer, "refused a connection: there are as many as there may be");
            return;
        };
        let bytes_max = state.limits.queue_bytes_max;
        let added = self.handle.add_connection(stream, bytes_max, shared.budget.clone(), |outbox| {
            state.connected(id, outbox.clone());
            Box::new(Visitor { shared, id })
        });
        if let Err(error) = added {
            tracing::warn!(peer, %error, "cannot serve a connection");
            state.gone(id, "it could not be served");
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // The listener was dropped just before this, so the address is free from here on.
        self.shared.state.lock().listeners -= 1;
        self.shared.changed.notify_all();
    }
}

/// One connection.
struct Visitor {
    shared: Arc<Shared>,
    id: NodeId,
}

impl Connection for Visitor {
    fn received(&mut self, batch: &Bytes) -> Result<usize, String> {
        let mut state = self.shared.state.lock();
        let mut at = 0;
        let problem = loop {
            let limit = state.frame_limit(self.id);
            match Frame::decode(batch, at, limit) {
                Ok(Some((frame, next))) => {
                    if let Err(problem) = state.handle(self.id, &frame) {
                        break problem;
                    }
                    at = next;
                }
                Ok(None) => {
                    self.shared.changed.notify_all();
                    return Ok(at);
                }
                Err(error) => break error.to_string(),
            }
        };
        state.expel(self.id, RefuseCode::Protocol, &problem);
        Err(problem)
    }

    fn closed(&mut self, reason: &str) {
        self.shared.state.lock().gone(self.id, reason);
        self.shared.changed.notify_all();
    }
}
