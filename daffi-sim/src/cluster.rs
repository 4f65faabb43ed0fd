//! The controller and nodes: how they start, what befalls them, and how all is repaired.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use daffi::{
    Address, Error, Global, Limits,
    controller::{ControllerConfig, Server, router::Sizes},
};

use crate::{
    network::{HostId, Machine},
    workload,
    world::{self, Sim, sim},
};

/// A controller and nodes.
#[derive(Clone)]
pub(crate) struct Cluster {
    shared: Rc<Shared>,
    pub(crate) pause_ms: u64,
    pub(crate) large_bytes: usize,
}

struct Shared {
    names: Vec<String>,
    limits: Limits,
    /// Whether the first node runs the controller in its own process.
    embedded: bool,
    controller: Cell<Option<HostId>>,
    nodes: RefCell<Vec<Option<HostId>>>,
    impostor: Cell<Option<HostId>>,
    quiet: Cell<bool>,
}

/// What can go wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// After this many more steps, in the middle of what it is doing.
    NodeDies {
        node: usize,
        silently: bool,
        after: usize,
    },
    NodeStops {
        node: usize,
    },
    NodeStarts {
        node: usize,
    },
    ControllerDies {
        silently: bool,
        after: usize,
    },
    ControllerStarts,
    Block {
        from: Machine,
        to: Machine,
        block: bool,
    },
    Cut {
        node: usize,
    },
    NodeFreezes {
        node: usize,
        time: Duration,
    },
    ControllerFreezes {
        time: Duration,
    },
    ImpostorStarts {
        node: usize,
    },
    ImpostorDies,
    Slow {
        node: usize,
        bytes_per_second: Option<u64>,
    },
}

/// The machine of a standalone controller.
const CONTROLLER: Machine = 0;
/// The machine of a process that takes another one's name.
const IMPOSTOR: Machine = 100;

fn address() -> Address {
    Address::Tcp { host: "controller".to_owned(), port: 8888 }
}

impl Cluster {
    /// Creates a cluster as the seed determines, with nothing running yet.
    pub(crate) fn new(sim: &Sim) -> Self {
        let nodes = 2 + sim.below(4);
        let mut limits = Limits { grace: Duration::from_millis(20), ..Limits::default() };
        if sim.chance(30) {
            limits.calls_in_flight_max = 2 + sim.below(6);
            sim.network.lock().wire.calls_wait = true;
        }
        if sim.chance(20) {
            limits.requests_held_max = 2 + sim.below(6);
        }
        if sim.chance(30) {
            limits.queue_bytes_max = 160 * 1024;
        }
        limits.heartbeat = sim.millis(500, 5000);
        let shared = Shared {
            names: (0..nodes).map(|number| format!("node{number}")).collect(),
            limits,
            embedded: sim.chance(25),
            controller: Cell::new(None),
            nodes: RefCell::new(vec![None; nodes]),
            impostor: Cell::new(None),
            quiet: Cell::new(false),
        };
        let pause_ms = [20, 100, 400][sim.below(3)];
        Self { shared: Rc::new(shared), pause_ms, large_bytes: [1, 60_000, 1_500_000][sim.below(3)] }
    }

    /// Creates this many nodes around a standalone controller, with users that make no calls of their own.
    pub(crate) fn of(sim: &Sim, nodes: usize, limits: Limits) -> Self {
        let few_places = limits.calls_in_flight_max < Limits::default().calls_in_flight_max;
        sim.network.lock().wire.calls_wait = few_places;
        let shared = Shared {
            names: (0..nodes).map(|number| format!("node{number}")).collect(),
            limits,
            embedded: false,
            controller: Cell::new(None),
            nodes: RefCell::new(vec![None; nodes]),
            impostor: Cell::new(None),
            quiet: Cell::new(true),
        };
        Self { shared: Rc::new(shared), pause_ms: 20, large_bytes: 1 }
    }

    pub(crate) fn quiet(&self) -> bool {
        self.shared.quiet.get()
    }

    pub(crate) fn be_quiet(&self) {
        self.shared.quiet.set(true);
    }

    pub(crate) fn name_of_any(&self) -> String {
        self.shared.names[sim().below(self.shared.names.len())].clone()
    }

    /// Returns one or more names, in order.
    pub(crate) fn names_of_some(&self) -> Vec<String> {
        let names = &self.shared.names;
        let (first, count) = (sim().below(names.len()), 1 + sim().below(names.len()));
        names.iter().cycle().skip(first).take(count).cloned().collect()
    }

    pub(crate) fn name(&self, node: usize) -> &str {
        &self.shared.names[node]
    }

    /// Returns how much the controller remembers, wherever it is.
    pub(crate) fn controller_sizes(&self) -> Option<Sizes> {
        sim().host(self.controller()?, |host| match (&host.server, &host.global) {
            (Some(server), _) => Some(server.sizes()),
            (None, Some(global)) => {
                daffi_node::simulation::controller_sizes(global)?.downcast().ok().map(|sizes| *sizes)
            }
            (None, None) => None,
        })
    }

    /// Whether nodes may get more requests than they accept.
    pub(crate) fn may_refuse_requests(&self) -> bool {
        self.shared.limits.requests_held_max < Limits::default().requests_held_max
    }

    /// Returns the controller's process, if it is alive.
    pub(crate) fn controller(&self) -> Option<HostId> {
        self.shared.controller.get().filter(|id| sim().host(*id, |host| host.alive))
    }

    /// Returns the nodes that are alive, with their names.
    pub(crate) fn nodes(&self) -> Vec<(HostId, String)> {
        let nodes = self.shared.nodes.borrow();
        let all = nodes.iter().zip(&self.shared.names);
        let all = all.filter_map(|(id, name)| Some(((*id)?, name.clone())));
        all.filter(|(id, _)| sim().host(*id, |host| host.alive)).collect()
    }

    /// Starts the controller and all nodes.
    pub(crate) fn start(&self, sim: &Rc<Sim>) {
        sim.note(|| format!("{:?}, embedded: {}", self.shared.limits, self.shared.embedded));
        self.befall(sim, &Fault::ControllerStarts);
        for node in 0..self.shared.names.len() {
            self.befall(sim, &Fault::NodeStarts { node });
        }
    }

    /// Returns which faults come when, in a storm of this length.
    pub(crate) fn faults(&self, sim: &Sim, storm: Duration) -> Vec<(Duration, Fault)> {
        let storm = storm.as_millis() as u64;
        let nodes = self.shared.names.len();
        let mut faults = Vec::new();
        for _ in 0..sim.below(9) {
            let at = sim.millis(500, storm);
            let later = at + sim.millis(100, if sim.chance(30) { 20_000 } else { 3000 });
            let node = sim.below(nodes);
            let (fault, undo) = match sim.below(12) {
                0..2 => {
                    let (silently, after) = (sim.chance(40), sim.below(60));
                    (Fault::NodeDies { node, silently, after }, Some(Fault::NodeStarts { node }))
                }
                2 => (Fault::NodeStops { node }, Some(Fault::NodeStarts { node })),
                3..5 => {
                    let (silently, after) = (sim.chance(30), sim.below(60));
                    (Fault::ControllerDies { silently, after }, Some(Fault::ControllerStarts))
                }
                5..7 => {
                    let machine = self.machine(node);
                    let (from, to) =
                        if sim.chance(50) { (CONTROLLER, machine) } else { (machine, CONTROLLER) };
                    if sim.chance(50) {
                        // In the other direction, too.
                        faults.push((at, Fault::Block { from: to, to: from, block: true }));
                        faults.push((later, Fault::Block { from: to, to: from, block: false }));
                    }
                    (Fault::Block { from, to, block: true }, Some(Fault::Block { from, to, block: false }))
                }
                7..9 => (Fault::Cut { node }, None),
                9 => (Fault::NodeFreezes { node, time: later - at }, None),
                10 if sim.chance(50) => (Fault::ControllerFreezes { time: later - at }, None),
                10 => {
                    let rate = 1000 * sim.millis(10, 500).as_millis() as u64;
                    (
                        Fault::Slow { node, bytes_per_second: Some(rate) },
                        Some(Fault::Slow { node, bytes_per_second: None }),
                    )
                }
                _ => (Fault::ImpostorStarts { node }, Some(Fault::ImpostorDies)),
            };
            faults.push((at, fault));
            faults.extend(undo.map(|undo| (later, undo)));
        }
        faults.sort_by_key(|(at, _)| *at);
        faults
    }

    /// Makes a fault happen.
    pub(crate) fn befall(&self, sim: &Rc<Sim>, fault: &Fault) {
        sim.note(|| format!("{fault:?}"));
        match *fault {
            Fault::NodeDies { node, silently, after } => self.kill_node(sim, node, silently, after),
            Fault::NodeStops { node } => self.stop_node(sim, node),
            Fault::NodeStarts { node } => self.start_node(sim, node),
            Fault::ControllerDies { silently, after } if self.shared.embedded => {
                self.kill_node(sim, 0, silently, after);
            }
            Fault::ControllerStarts if self.shared.embedded => self.start_node(sim, 0),
            Fault::ControllerDies { silently, after } => {
                if let Some(id) = self.controller() {
                    sim.network.lock().doom(id, after, silently);
                }
            }
            Fault::ControllerStarts => self.start_controller(sim),
            Fault::Block { from, to, block } => sim.network.lock().block(from, to, block),
            Fault::Cut { node } => {
                if let Some(id) = self.shared.nodes.borrow()[node] {
                    sim.network.lock().cut(id);
                }
            }
            Fault::NodeFreezes { node, time } => {
                let id = self.shared.nodes.borrow()[node];
                id.into_iter().for_each(|id| sim.freeze(id, time));
            }
            Fault::ControllerFreezes { time } => {
                self.controller().into_iter().for_each(|id| sim.freeze(id, time));
            }
            Fault::ImpostorStarts { node } => {
                if self.shared.impostor.get().is_none() {
                    let id = sim.add_host(&self.shared.names[node], IMPOSTOR);
                    self.shared.impostor.set(Some(id));
                    self.run_node(sim, id, &self.shared.names[node], false);
                }
            }
            Fault::ImpostorDies => {
                if let Some(id) = self.shared.impostor.take() {
                    sim.end(id, false);
                }
            }
            Fault::Slow { node, bytes_per_second } => {
                sim.network.lock().slow_down(self.machine(node), bytes_per_second);
            }
        }
    }

    /// Repairs everything.
    pub(crate) fn heal(&self, sim: &Rc<Sim>) {
        sim.note(|| "everything is well again".to_owned());
        sim.network.lock().heal();
        sim.thaw();
        self.befall(sim, &Fault::ImpostorDies);
        self.befall(sim, &Fault::ControllerStarts);
        for node in 0..self.shared.names.len() {
            self.befall(sim, &Fault::NodeStarts { node });
        }
    }

    fn machine(&self, node: usize) -> Machine {
        // The first node shares its machine with the controller in its process.
        if self.shared.embedded { node as Machine } else { node as Machine + 1 }
    }

    fn start_controller(&self, sim: &Rc<Sim>) {
        if self.controller().is_some() {
            return;
        }
        let id = sim.add_host("controller", CONTROLLER);
        let mut config = ControllerConfig::new(vec![address()]);
        config.limits = self.shared.limits.clone();
        config.strategy =
            [daffi::Strategy::Random, daffi::Strategy::RoundRobin, daffi::Strategy::LeastBusy][sim.below(3)];
        let server = sim.as_host(id, || Server::start(config)).expect("the address is free");
        sim.host(id, |host| host.server = Some(server));
        self.shared.controller.set(Some(id));
    }

    fn start_node(&self, sim: &Rc<Sim>, node: usize) {
        if self.shared.nodes.borrow()[node].is_some_and(|id| sim.host(id, |host| host.alive)) {
            return;
        }
        let name = &self.shared.names[node];
        let id = sim.add_host(name, self.machine(node));
        self.shared.nodes.borrow_mut()[node] = Some(id);
        let with_controller = self.shared.embedded && node == 0;
        if with_controller {
            self.shared.controller.set(Some(id));
            sim.host(id, |host| host.with_controller = true);
            sim.network.lock().wire.embedded.insert(name.clone());
        }
        self.run_node(sim, id, name, with_controller);
    }

    /// Runs the process of a node.
    fn run_node(&self, sim: &Rc<Sim>, id: HostId, name: &str, with_controller: bool) {
        let name = name.to_owned();
        let cluster = self.clone();
        sim.spawn(id, async move {
            let global = loop {
                let builder = Global::builder()
                    .process_name(&name)
                    .address(address())
                    .init_controller(with_controller)
                    .limits(cluster.shared.limits.clone());
                match builder.start_async().await {
                    Ok(global) => break global,
                    Err(Error::NameTaken { .. }) => world::sleep(Duration::from_secs(1)).await,
                    Err(error) => {
                        let problem = format!("{name} does not start: {error}");
                        world::sim().history.borrow_mut().violations.push(problem);
                        return;
                    }
                }
            };
            let sim = world::sim();
            sim.note(|| format!("process {id} is up as {name}"));
            sim.host(id, |host| host.global = Some(global.clone()));
            for _ in 0..2 {
                sim.spawn(id, workload::user(cluster.clone(), global.clone()));
            }
        });
    }

    fn kill_node(&self, sim: &Rc<Sim>, node: usize, silently: bool, after: usize) {
        if let Some(id) = self.shared.nodes.borrow()[node].filter(|id| sim.host(*id, |host| host.alive)) {
            sim.network.lock().doom(id, after, silently);
        }
    }

    fn end_node(&self, sim: &Rc<Sim>, node: usize, silently: bool) {
        if let Some(id) = self.shared.nodes.borrow_mut()[node].take() {
            if self.shared.controller.get() == Some(id) {
                self.shared.controller.set(None);
            }
            sim.end(id, silently);
        }
    }

    /// Stops a node as its own program would. It finishes what it still does before the next fault.
    fn stop_node(&self, sim: &Rc<Sim>, node: usize) {
        let Some(id) = self.shared.nodes.borrow()[node] else { return };
        let Some(global) = sim.host(id, |host| host.global.clone()) else { return };
        let stopped = Rc::new(Cell::new(false));
        let done = stopped.clone();
        sim.spawn(id, async move {
            // This cannot fail.
            let _ = global.stop_async().await;
            done.set(true);
        });
        sim.run(sim.now() + Duration::from_millis(500), || stopped.get());
        self.end_node(sim, node, false);
    }
}
