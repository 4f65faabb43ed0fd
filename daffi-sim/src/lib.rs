//! daffi on a simulated machine and network.
//!
//! A run takes a seed, and everything else follows from it: how many nodes there are, what they call, how the
//! network treats them, which die and when. All of daffi's code is real, from `Global` and the controller's
//! `Server` down to the reads and writes of sockets; only the clock, the threads and the sockets are
//! simulated (`daffi_core::simulation`). Everything runs on one thread, and chance decides what runs next.
//!
//! ```text
//!  storm: users call, faults come         well again       all at rest
//! ├──────────────────────────────────────┼───────────────┼─────────────► check
//!                                          each node has
//!                                          to reach each
//! ```
//!
//! What is checked: each call runs at most once (I1) and has one outcome, in time (I2), which belongs to it
//! to the last byte (I3) and tells the truth about whether it ran (I4); no outcome comes twice (I5); nothing
//! is left behind at nodes, controllers and sockets (I6); the order between two nodes is kept, from how users
//! called to how callbacks ran (I7); broadcasts are complete (I8); nested calls go as deep as the limit and
//! no deeper, and no process is called by itself (U3); scheduled calls come when they are due and not after
//! their end (I9); and once everything is repaired, every node can be called within 30 s (I11). A panic in
//! daffi's code also breaks a promise, even if daffi survives it.
//!
//! A process dies a number of steps and socket operations after a random moment, and so between any two of
//! them. Wall clocks are hours apart and jump.
//!
//! ```console
//! $ cargo run --release -p daffi-sim -- --seeds 10000
//! $ cargo run --release -p daffi-sim -- --seeds 5000 --from 5000
//! $ cargo run --release -p daffi-sim -- --seed 4711 --trace
//! ```
//!
//! What is not simulated: threads that truly run at the same time (so no data races; shuttle is for these),
//! the blocking forms of the API, and whatever a kernel does beyond this network.

mod callbacks;
mod checker;
mod circle;
mod cluster;
mod crowd;
mod history;
mod network;
mod panics;
mod random;
mod ring;
mod tamper;
mod trace;
mod wire;
mod workload;
mod world;

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::Duration,
};

pub use circle::{Circle, Circled, circle};
pub use crowd::{Return, crowd};
pub use history::Summary;
pub use tamper::Bug;

use cluster::Cluster;
use network::{Network, Profile};
use random::Random;
use tamper::Tamper;
use trace::Trace;
use world::Sim;

/// How to run.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Options {
    /// Prints everything that happens.
    pub trace: bool,
    /// Plants a bug.
    pub bug: Option<Bug>,
    /// Whether wall clocks are hours apart, and jump.
    pub clocks_differ: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { trace: false, bug: None, clocks_differ: true }
    }
}

/// The result of a run.
#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Promises that were broken.
    pub violations: Vec<String>,
    /// Distinguishes this run from all others.
    pub hash: u64,
    /// What happened.
    pub summary: Summary,
    /// How many frames crossed the network.
    pub frames: u64,
    /// How much time passed in the simulated world.
    pub time: Duration,
    /// How often a wall clock was read.
    pub wall_reads: u64,
}

impl Report {
    /// How to replay this seed.
    pub fn replay(&self) -> String {
        format!("to see it again: cargo run --release -p daffi-sim -- --seed {} --trace", self.seed)
    }
}

/// How long every node may take to be reachable once everything is repaired.
const BACK_MAX: Duration = Duration::from_secs(30);
/// How long calls without a deadline may take to finish.
const FINISH_MAX: Duration = Duration::from_secs(120);
/// How often to check whether everything is at rest.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Runs a seed. A panic that nothing in daffi caught ends only this run.
pub fn run(seed: u64, options: Options) -> Report {
    panics::watch();
    let run = || run_to_the_end(seed, options);
    let mut report = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Sim::abandon();
        let violations = vec!["the run ended with a panic".to_owned()];
        let (hash, summary, frames) = (0, Summary::default(), 0);
        Report { seed, violations, hash, summary, frames, time: Duration::ZERO, wall_reads: 0 }
    });
    report.violations.extend(panics::take());
    report
}

fn run_to_the_end(seed: u64, options: Options) -> Report {
    let mut random = Random::new(seed);
    let profile = profile(&mut random);
    let network = Network::new(random, profile, Tamper::new(options.bug), Trace::new(options.trace));
    let sim = Sim::enter(network, options.clocks_differ);
    let cluster = Cluster::new(&sim);
    let storm = sim.millis(3000, 15_000);
    let faults = cluster.faults(&sim, storm);
    cluster.start(&sim);
    for (at, fault) in faults.iter().take_while(|(at, _)| *at < storm) {
        sim.run(*at, || false);
        cluster.befall(&sim, fault);
    }
    sim.run(storm.max(sim.now()), || false);
    cluster.be_quiet();
    cluster.heal(&sim);
    let mut violations = everybody_is_back(&sim, &cluster);
    come_to_rest(&sim, &cluster);
    violations.extend(checker::check(&sim, &cluster));
    let mut summary = sim.history.borrow().summary();
    summary.cancelled_in_time = checker::cancelled_in_time(&sim);
    {
        let network = sim.network.lock();
        summary.deaths = network.deaths;
        summary.one_way = network.one_way;
        summary.takeovers = network.wire.takeovers;
    }
    let (time, wall_reads) = (sim.now(), sim.wall_reads.get());
    sim.leave();
    let network = sim.network.lock();
    let (hash, frames) = (network.trace.hash(), network.wire.frames);
    Report { seed, violations, hash, summary, frames, time, wall_reads }
}

/// Lets everything in progress come to an end.
fn come_to_rest(sim: &Rc<Sim>, cluster: &Cluster) {
    // A call without a deadline waits for its callee as long as it takes, and a one-way call simply runs.
    let until = sim.now() + FINISH_MAX;
    sim.run(until, || !sim.has_tasks());
    end_tasks(sim, cluster);
    while sim.now() < until && !is_at_rest(sim, cluster) {
        sim.run(sim.now() + LOOK_EVERY, || false);
    }
}

/// Ends what was scheduled by processes that are gone: nobody else would, and it would continue forever.
fn end_tasks(sim: &Rc<Sim>, cluster: &Cluster) {
    let Some(controller) = cluster.controller() else { return };
    let tasks = sim.network.lock().wire.tasks_of(controller);
    // A node whose questions can be seen.
    let Some((id, _)) = cluster.nodes().into_iter().find(|(id, _)| *id != controller) else { return };
    let Some(global) = sim.host(id, |host| host.global.clone()) else { return };
    let done = Rc::new(Cell::new(false));
    sim.spawn(id, workload::end_tasks(global, tasks, done.clone()));
    sim.run(sim.now() + BACK_MAX, || done.get());
}

fn profile(random: &mut Random) -> Profile {
    // Bytes in transit count as buffered, so a small buffer makes a long link slow.
    let (delay_min, delay_max, buffer) =
        random.one_of(&[(0, 1, 2000), (0, 1, 64 * 1024), (0, 20, 128 * 1024), (5, 200, 4 * 1024 * 1024)]);
    Profile {
        delay_min: Duration::from_millis(delay_min),
        delay_max: Duration::from_millis(delay_max),
        buffer,
        pieces: random.one_of(&[0, 10, 60]),
    }
}

/// I11: has each node call every other node.
fn everybody_is_back(sim: &Rc<Sim>, cluster: &Cluster) -> Vec<String> {
    let until = sim.now() + BACK_MAX;
    let is_up = |id| sim.host(id, |host| host.global.is_some());
    if !sim.run(until, || cluster.nodes().into_iter().all(|(id, _)| is_up(id))) {
        let nodes = cluster.nodes().into_iter();
        let missing: Vec<_> = nodes.filter(|(id, _)| !is_up(*id)).map(|(_, name)| name).collect();
        return vec![format!("I11: {missing:?} are not connected {BACK_MAX:?} after all is well")];
    }
    let nodes = cluster.nodes();
    let done = Rc::new(Cell::new(0));
    for (id, name) in &nodes {
        let Some(global) = sim.host(*id, |host| host.global.clone()) else { continue };
        let others = nodes.iter().map(|(_, other)| other.clone()).filter(|other| other != name).collect();
        sim.spawn(*id, workload::reach_everybody(global, others, done.clone()));
    }
    if sim.run(until, || done.get() == nodes.len()) {
        return Vec::new();
    }
    let missing = nodes.len() - done.get();
    vec![format!("I11: {missing} nodes do not reach everybody {BACK_MAX:?} after all is well")]
}

/// Whether no node has an unfinished call, and nobody wants to make one.
fn is_at_rest(sim: &Sim, cluster: &Cluster) -> bool {
    let mut left = Vec::new();
    checker::rest(sim, cluster, &mut left);
    checker::arrivals(sim, cluster, &mut left);
    let history = sim.history.borrow();
    let open = |call: &history::Call| call.ended.is_none() && !call.abandoned;
    let one_way = |call: &history::Call| call.kind == history::Kind::OneWay;
    let is_there = |call: &history::Call| sim.host(call.caller, |host| host.alive);
    left.is_empty()
        && !sim.has_tasks()
        && !history.calls.values().any(|call| open(call) && !one_way(call) && is_there(call))
}
