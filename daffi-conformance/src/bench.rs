//! A controller that runs for one case.

use std::{
    env, fs,
    path::PathBuf,
    process,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use daffi_core::{
    Address, Limits,
    controller::{Controller, ControllerConfig, RunningController, Strategy},
    reactor::Reactor,
};

use crate::{
    call::{Offered, offer},
    node::Node,
    wire::Wire,
};

/// A running controller on a free TCP port of 127.0.0.1 and, where available, on a UNIX socket.
///
/// Dropping it stops the controller and removes its socket file.
#[derive(Debug)]
pub struct Bench {
    running: Option<Arc<dyn RunningController>>,
    addresses: Vec<Address>,
    joined: AtomicUsize,
    directory: PathBuf,
    // Dropped after the controller, which may need its thread while it stops.
    _reactor: Reactor,
}

impl Bench {
    /// Starts the controller with the default limits.
    pub fn new(controller: &dyn Controller) -> Self {
        Self::with(controller, Limits::default())
    }

    /// Starts the controller with these limits.
    pub fn with(controller: &dyn Controller, limits: Limits) -> Self {
        Self::start(controller, limits, Strategy::default())
    }

    /// Starts the controller with this strategy.
    pub fn choosing(controller: &dyn Controller, strategy: Strategy) -> Self {
        Self::start(controller, Limits::default(), strategy)
    }

    fn start(controller: &dyn Controller, limits: Limits, strategy: Strategy) -> Self {
        static BENCHES: AtomicUsize = AtomicUsize::new(0);
        let number = BENCHES.fetch_add(1, Ordering::Relaxed);
        let directory = env::temp_dir().join(format!("daffi-conformance-{}-{number}", process::id()));
        let mut listen = vec![Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 }];
        if cfg!(unix) {
            listen.push(Address::Unix(directory.join("sock")));
        }
        let mut config = ControllerConfig::new(listen);
        config.limits = limits;
        config.strategy = strategy;
        let reactor = Reactor::start("conformance").expect("a reactor can be started");
        let running = controller.start(config, &reactor).expect("the controller can be started");
        let addresses = running.addresses();
        assert!(!addresses.is_empty(), "a running controller says where it listens");
        Self { running: Some(running), addresses, joined: AtomicUsize::new(0), directory, _reactor: reactor }
    }

    /// Returns the controller.
    pub fn running(&self) -> &Arc<dyn RunningController> {
        self.running.as_ref().expect("it is only taken when the bench is dropped")
    }

    /// Returns the controller's addresses in turn, so that nodes on both transports meet.
    pub fn address(&self) -> &Address {
        let turn = self.joined.fetch_add(1, Ordering::Relaxed);
        &self.addresses[turn % self.addresses.len()]
    }

    /// Connects a node with this name that offers these callbacks to everyone.
    pub fn node(&self, name: &str, offers: &[&str]) -> Node {
        let offers: Vec<_> = offers.iter().map(|name| offer(name)).collect();
        self.node_with(name, &offers)
    }

    /// Connects a node with these callbacks.
    pub fn node_with(&self, name: &str, offers: &[Offered]) -> Node {
        Node::join(self.address(), name, offers)
    }

    /// Opens a connection on which nothing has been said.
    pub fn wire(&self) -> Wire {
        Wire::connect(self.address())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop(Duration::ZERO);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}
