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

/// A running controller on a free TCP port of 127.0.0.1 and, where there are such, on a UNIX socket.
///
/// It is stopped, and its socket file removed, when this is dropped.
#[derive(Debug)]
pub struct Bench {
    running: Option<Arc<dyn RunningController>>,
    addresses: Vec<Address>,
    joined: AtomicUsize,
    directory: PathBuf,
    // After the controller in order, which may still want its thread while it stops.
    _reactor: Reactor,
}

impl Bench {
    /// Starts it with the default limits.
    pub fn new(controller: &dyn Controller) -> Self {
        Self::with(controller, Limits::default())
    }

    /// Starts it with these limits.
    pub fn with(controller: &dyn Controller, limits: Limits) -> Self {
        Self::start(controller, limits, Strategy::default())
    }

    /// Starts it with this strategy.
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

    /// The controller.
    pub fn running(&self) -> &Arc<dyn RunningController> {
        self.running.as_ref().expect("it is only taken when the bench is dropped")
    }

    /// The controller's addresses in turn, so that nodes of both transports meet.
    pub fn address(&self) -> &Address {
        let turn = self.joined.fetch_add(1, Ordering::Relaxed);
        &self.addresses[turn % self.addresses.len()]
    }

    /// A node of this name that offers these callbacks to everybody.
    pub fn node(&self, name: &str, offers: &[&str]) -> Node {
        let offers: Vec<_> = offers.iter().map(|name| offer(name)).collect();
        self.node_with(name, &offers)
    }

    /// A node with these callbacks.
    pub fn node_with(&self, name: &str, offers: &[Offered]) -> Node {
        Node::join(self.address(), name, offers)
    }

    /// A connection on which nothing was said.
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
