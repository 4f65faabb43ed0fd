//! Many nodes that lose their controller together, and how they come back.

use std::{rc::Rc, time::Duration};

use daffi::{
    Address, Global, Limits,
    controller::{ControllerConfig, Server},
};

use crate::{
    Options,
    network::{HostId, Machine, Network, Profile},
    panics,
    random::Random,
    tamper::Tamper,
    trace::Trace,
    world::Sim,
};

/// How a crowd came back.
#[derive(Debug)]
#[non_exhaustive]
pub struct Return {
    /// When each attempt to connect was made, counted from the death of the controller.
    pub attempts: Vec<Duration>,
    /// When the last node was back, counted from when there was a controller again.
    pub all_back: Option<Duration>,
    /// What else went wrong.
    pub violations: Vec<String>,
}

/// How long to wait for all of them.
const PATIENCE: Duration = Duration::from_secs(120);

/// Has `nodes` nodes lose their controller, which returns after `away`, while they have calls to make.
pub fn crowd(seed: u64, nodes: u16, away: Duration, options: Options) -> Return {
    panics::watch();
    let profile = Profile {
        delay_min: Duration::ZERO,
        delay_max: Duration::from_millis(2),
        buffer: 64 * 1024,
        pieces: 0,
    };
    let network = Network::new(Random::new(seed), profile, Tamper::new(None), Trace::new(options.trace));
    let sim = Sim::enter(network, options.clocks_differ);
    let first = start_controller(&sim);
    let ids: Vec<_> = (0..nodes).map(|number| start_node(&sim, number)).collect();
    let mut violations = Vec::new();
    if !sim.run(PATIENCE, || is_known(&sim, first, &ids)) {
        violations.push("not all nodes are there at first".to_owned());
    }
    // So that they are at different points of their heartbeats.
    sim.run(sim.now() + sim.millis(0, 10_000), || false);
    let lost = sim.now();
    let before = sim.network.lock().attempts.len();
    sim.end(first, false);
    sim.run(lost + away, || false);
    let second = start_controller(&sim);
    let all_back = sim.run(sim.now() + PATIENCE, || is_known(&sim, second, &ids));
    let all_back = all_back.then(|| sim.now() - lost - away);
    let attempts = sim.network.lock().attempts[before..].iter().map(|at| *at - lost).collect();
    sim.leave();
    violations.extend(panics::take());
    Return { attempts, all_back, violations }
}

fn address() -> Address {
    Address::Tcp { host: "controller".to_owned(), port: 8888 }
}

fn start_controller(sim: &Rc<Sim>) -> HostId {
    let id = sim.add_host("controller", 0);
    let server = sim.as_host(id, || Server::start(ControllerConfig::new(vec![address()])));
    sim.host(id, |host| host.server = server.ok());
    id
}

fn start_node(sim: &Rc<Sim>, number: u16) -> HostId {
    let name = format!("node{number}");
    let id = sim.add_host(&name, Machine::from(number + 1));
    let sim_again = sim.clone();
    sim.spawn(id, async move {
        let builder = Global::builder().process_name(&name).address(address()).limits(Limits::default());
        if let Ok(global) = builder.start_async().await {
            sim_again.host(id, |host| host.global = Some(global));
        }
    });
    id
}

/// Whether a controller knows all nodes and what they offer.
fn is_known(sim: &Sim, controller: HostId, nodes: &[HostId]) -> bool {
    let all_up = nodes.iter().all(|id| sim.host(*id, |host| host.global.is_some()));
    let names = sim.host(controller, |host| host.server.as_ref().map_or(0, |server| server.sizes().names));
    all_up && names == nodes.len()
}
