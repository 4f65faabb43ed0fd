//! Calls in a circle on a network without faults, where the outcome can be predicted down to the last call.

use std::{cell::RefCell, rc::Rc, time::Duration};

use daffi::Limits;

use crate::{
    BACK_MAX, Options, checker, cluster::Cluster, come_to_rest, everybody_is_back, history::Ended,
    network::Network, panics, profile, random::Random, ring::Ring, tamper::Tamper, trace::Trace, workload,
    world::Sim,
};

/// Who calls whom.
#[derive(Debug, Clone)]
pub struct Circle {
    /// How many nodes there are.
    pub nodes: usize,
    /// The callback to call: `work`, or `serial`, which runs one call at a time on each node.
    pub callback: &'static str,
    /// The first calls, made at the same time, as pairs of caller and callee.
    pub first: Vec<(usize, usize)>,
    /// The nodes that callbacks call in turn, over and over; a node calls itself only if it is the only one
    /// here.
    pub through: Vec<usize>,
    /// How many calls each of the first calls leads to.
    pub length: u32,
    /// How long the first calls may take.
    pub timeout: Option<Duration>,
    /// The limits on what nodes may hold and have in flight.
    pub limits: Limits,
}

impl Circle {
    /// Creates a circle of `first` calls that continue through these nodes, `length` times each.
    pub fn new(first: Vec<(usize, usize)>, through: Vec<usize>, length: u32) -> Self {
        let all = first.iter().flat_map(|(from, on)| [from, on]).chain(&through);
        let nodes = all.max().map_or(0, |last| last + 1);
        let limits = Limits { grace: Duration::from_millis(20), ..Limits::default() };
        Self { nodes, callback: "work", first, through, length, timeout: None, limits }
    }
}

/// What became of the calls.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Circled {
    /// What callers were told, as the name of the error or `value`, or `nothing` if nobody was waiting any
    /// more, each with the nesting depth of the call.
    pub told: Vec<(usize, String)>,
    /// How many callbacks ran.
    pub runs: usize,
    /// When the first calls were over.
    pub took: Option<Duration>,
    /// Promises that were broken.
    pub violations: Vec<String>,
}

impl Circled {
    /// How many calls ended this way.
    pub fn count(&self, told: &str) -> usize {
        self.told.iter().filter(|(_, other)| other == told).count()
    }
}

/// Runs a circle, then checks that every node can be called and that nothing is left behind.
pub fn circle(seed: u64, circle: &Circle, options: Options) -> Circled {
    panics::watch();
    let mut random = Random::new(seed);
    let profile = profile(&mut random);
    let network = Network::new(random, profile, Tamper::new(options.bug), Trace::new(options.trace));
    let sim = Sim::enter(network, options.clocks_differ);
    let cluster = Cluster::of(&sim, circle.nodes, circle.limits.clone());
    cluster.start(&sim);
    let mut circled = Circled { violations: everybody_is_back(&sim, &cluster), ..Circled::default() };
    let began = sim.now();
    let first = Rc::new(RefCell::new(Vec::new()));
    let ids: Vec<_> = cluster.nodes().into_iter().map(|(id, _)| id).collect();
    for (from, on) in &circle.first {
        let nodes = circle.through.iter().map(|node| cluster.name(*node).to_owned()).collect();
        let ring = Ring { left: circle.length, callback: circle.callback.to_owned(), nodes };
        let Some(global) = sim.host(ids[*from], |host| host.global.clone()) else { continue };
        let on = cluster.name(*on).to_owned();
        sim.spawn(ids[*from], workload::first_of_a_ring(global, on, ring, circle.timeout, first.clone()));
    }
    let over = sim.run(began + circle.timeout.unwrap_or_default() + BACK_MAX, || !sim.has_tasks());
    circled.took = over.then(|| sim.now() - began);
    circled.violations.extend(everybody_is_back(&sim, &cluster));
    come_to_rest(&sim, &cluster);
    circled.violations.extend(checker::check(&sim, &cluster));
    {
        let history = sim.history.borrow();
        let first = first.borrow();
        for (nonce, call) in history.calls.iter().filter(|(_, call)| first.contains(&call.outermost)) {
            let told = match &call.ended {
                Some((_, Ended::NotRun(error) | Ended::Unknown(error))) => error,
                Some(_) => "value",
                None => "nothing",
            };
            circled.told.push((call.depth, told.to_owned()));
            circled.runs += history.runs.get(nonce).map_or(0, Vec::len);
        }
    }
    sim.leave();
    circled.violations.extend(panics::take());
    circled
}
