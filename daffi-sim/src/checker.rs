//! Checks whether what happened is what daffi promises.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use daffi_core::limits::HOPS_MAX;

use crate::{
    callbacks::SERIAL,
    cluster::Cluster,
    history::{Ended, Kind, Nonce, Task, is_ordered, is_task},
    network::HostId,
    wire::Wire,
    world::{Sim, THREAD_MAX},
};

/// How long after its deadline an outcome may come.
const LATE_MAX: Duration = Duration::from_millis(100);

/// Returns all broken promises, once everything has come to rest.
pub(crate) fn check(sim: &Sim, cluster: &Cluster) -> Vec<String> {
    let mut broken = Vec::new();
    calls(sim, &mut broken);
    arrivals(sim, cluster, &mut broken);
    order(sim, &mut broken);
    nesting(sim, &mut broken);
    tasks(sim, &mut broken);
    rest(sim, cluster, &mut broken);
    let mut all = std::mem::take(&mut sim.network.lock().wire.violations);
    all.append(&mut sim.history.borrow_mut().violations);
    all.append(&mut broken);
    all
}

/// I1 to I4, and I8 as far as callers see it.
fn calls(sim: &Sim, broken: &mut Vec<String>) {
    let history = sim.history.borrow();
    let nothing = Vec::new();
    for (nonce, call) in &history.calls {
        let runs = history.runs.get(nonce).unwrap_or(&nothing);
        let to_one = matches!(call.kind, Kind::Call | Kind::OneWay);
        if to_one && runs.len() > 1 {
            broken.push(format!("I1: {nonce:#x} ran {} times", runs.len()));
        }
        if !to_one {
            let mut names = BTreeSet::new();
            for (host, _) in runs {
                let name = sim.host(*host, |host| host.name.clone());
                if !names.insert(name.clone()) {
                    broken.push(format!("I1: the broadcast {nonce:#x} ran twice on {name}"));
                }
            }
        }
        let caller_is_there = sim.host(call.caller, |host| host.alive && !host.ended);
        let Some((at, ended)) = &call.ended else {
            if call.kind != Kind::OneWay && caller_is_there && !call.abandoned {
                broken.push(format!("I2: {nonce:#x}, begun at {:?}, has no outcome", call.began));
            }
            continue;
        };
        if let Some(deadline) = call.deadline
            && *at > sim.network.lock().wire.latest(call.caller, deadline, LATE_MAX)
        {
            broken.push(format!("I2: {nonce:#x} ended at {at:?}, its deadline was {deadline:?}"));
        }
        let on =
            |name: &str| runs.iter().filter(|(host, _)| sim.host(*host, |host| host.name == name)).count();
        match ended {
            Ended::Value(host) => {
                if !runs.iter().any(|(ran_on, _)| ran_on == host) {
                    broken.push(format!("I3: {nonce:#x} has a value and did not run on {host}"));
                }
            }
            Ended::NotRun(error) => {
                if !runs.is_empty() {
                    broken.push(format!("I4: {nonce:#x} ran and its caller was told {error}"));
                }
            }
            Ended::Unknown(_) => {}
            Ended::Entries(entries) => {
                for (name, entry) in entries {
                    match entry {
                        Ended::Value(_) if on(name) == 0 => {
                            broken
                                .push(format!("I3: {nonce:#x} has a value of {name}, where it did not run"));
                        }
                        Ended::NotRun(error) if on(name) > 0 => {
                            broken.push(format!(
                                "I4: {nonce:#x} ran on {name} and its caller was told {error}"
                            ));
                        }
                        _ => {}
                    }
                }
                let names: BTreeSet<_> = entries.keys().cloned().collect();
                let ran_on = runs.iter().map(|(host, _)| sim.host(*host, |host| host.name.clone()));
                if let Some(name) = ran_on.into_iter().find(|name| !names.contains(name))
                    && call.kind == Kind::Results
                {
                    broken.push(format!("I8: {nonce:#x} ran on {name} and has entries of {names:?}"));
                }
                let network = sim.network.lock();
                if call.kind == Kind::Results
                    && let Some(targets) = network.wire.targets.get(nonce)
                    && *targets != names
                {
                    broken.push(format!("I8: {nonce:#x} went to {targets:?} and has entries of {names:?}"));
                }
            }
        }
    }
}

/// I8 at the callee, and the same for calls to one: a call that arrived and that nobody waits for runs, since
/// nobody would learn that it did not. Only a node that holds as many requests as it may refuses it.
pub(crate) fn arrivals(sim: &Sim, cluster: &Cluster, broken: &mut Vec<String>) {
    if cluster.may_refuse_requests() {
        return;
    }
    let history = sim.history.borrow();
    let network = sim.network.lock();
    for (nonce, host) in network.wire.handed_over() {
        let is_there = sim.host(host, |host| host.alive);
        let ran = history.runs.get(&nonce).is_some_and(|runs| runs.iter().any(|(ran_on, _)| *ran_on == host));
        if is_there && !ran {
            broken.push(format!("I8: {nonce:#x} came to {host} and did not run there"));
        }
    }
}

/// I7 at the callee: a callback that runs one call at a time keeps the order of each caller.
fn order(sim: &Sim, broken: &mut Vec<String>) {
    let history = sim.history.borrow();
    let network = sim.network.lock();
    for (host, ran) in &history.serial {
        let Some(given) = network.wire.given.get(host) else { continue };
        let places: BTreeMap<Nonce, usize> = (given.iter().enumerate())
            .filter(|(_, (callback, nonce))| callback == SERIAL && !is_task(*nonce))
            .map(|(place, (_, nonce))| (*nonce, place))
            .collect();
        let mut last: BTreeMap<HostId, (usize, Nonce)> = BTreeMap::new();
        for nonce in ran {
            let (Some(place), Some(call)) = (places.get(nonce), history.calls.get(nonce)) else { continue };
            let before = last.insert(call.caller, (*place, *nonce));
            if let Some((before, other)) = before
                && before > *place
            {
                broken.push(format!("I7: {nonce:#x} ran after {other:#x} on {host}, and came before it"));
            }
        }
    }
    for (host, ran) in &history.serial {
        let mut last: BTreeMap<HostId, Nonce> = BTreeMap::new();
        for nonce in ran.iter().filter(|nonce| is_ordered(**nonce) && !network.wire.again.contains(nonce)) {
            let Some(call) = history.calls.get(nonce) else { continue };
            if network.wire.calls_wait && call.kind == Kind::OneWay {
                continue;
            }
            if let Some(other) = last.insert(call.caller, *nonce).filter(|other| other > nonce) {
                broken
                    .push(format!("I7: {nonce:#x} ran after {other:#x} on {host}, and was called before it"));
            }
        }
    }
}

/// U3: nested calls go as deep as the limit and no deeper, and no process is called by itself.
fn nesting(sim: &Sim, broken: &mut Vec<String>) {
    const DEPTH_MAX: usize = HOPS_MAX as usize;
    let history = sim.history.borrow();
    let runs_of = |nonce: &Nonce| history.runs.get(nonce).map_or(0, Vec::len);
    let mut runs_within = BTreeMap::<Nonce, usize>::new();
    for (nonce, call) in &history.calls {
        let (runs, depth) = (runs_of(nonce), call.depth);
        if depth > 1 {
            *runs_within.entry(call.outermost).or_default() += runs;
        }
        if runs > 0 && depth > DEPTH_MAX {
            broken.push(format!("U3: {nonce:#x} ran {depth} deep"));
        }
        if history.runs.get(nonce).is_some_and(|runs| runs.iter().any(|(host, _)| *host == call.caller)) {
            broken.push(format!("U3: {nonce:#x} ran in the process that made it"));
        }
        let Some((_, ended)) = &call.ended else { continue };
        let too_deep = matches!(ended, Ended::NotRun(error) if error == "HopLimit");
        let expired = matches!(ended, Ended::NotRun(error) if error == "Timeout");
        if too_deep && depth <= DEPTH_MAX || depth > DEPTH_MAX && !too_deep && !expired {
            broken.push(format!("U3: {nonce:#x}, {depth} deep, ended with {ended:?}"));
        }
    }
    // Each callback makes at most one call.
    for (outermost, runs) in runs_within {
        let chains = runs_of(&outermost).max(1);
        if runs > chains * (DEPTH_MAX - 1) {
            broken.push(format!("U3: {outermost:#x} ran {chains} times and brought about {runs} calls"));
        }
    }
}

/// I9.
fn tasks(sim: &Sim, broken: &mut Vec<String>) {
    let history = sim.history.borrow();
    let network = sim.network.lock();
    let (nothing, no_runs) = (Vec::new(), Vec::new());
    for (nonce, task) in &history.tasks {
        let fires = network.wire.fires.get(nonce).unwrap_or(&nothing);
        if let Some(cancelled) = task.cancelled
            && let Some(late) = fires.iter().find(|at| **at > cancelled)
        {
            broken.push(format!("I9: {nonce:#x} called at {late:?}, cancelled at {cancelled:?}"));
        }
        let delayed = network.wire.delayed_fires.get(nonce).copied().unwrap_or(0);
        let runs = history.runs.get(nonce).unwrap_or(&no_runs);
        // Calls from a controller to the node in its own process cross no wire.
        let over_wires = |(host, _): &&(HostId, Duration)| !sim.host(*host, |host| host.with_controller);
        let ran = runs.iter().filter(over_wires).count();
        if ran > fires.len() + delayed {
            broken
                .push(format!("I1: the task {nonce:#x} ran {ran} times for {} calls", fires.len() + delayed));
        }
        if task.at_once {
            in_its_process(*nonce, task, sim, runs, broken);
        }
        if task.counted.is_some() {
            counts(*nonce, task, fires.len() + delayed, &network.wire, broken);
        }
        // If a task outlives its controller's connection to the caller, nobody knows whether it is still the
        // same one.
        if task.cancelled.is_some() {
            // A controller that wakes up makes up for a missed call, and the next one is on time again.
            let on_time = fires.iter().copied().filter(|at| !network.wire.controller_woke(*at));
            rhythm(*nonce, task.period, &on_time.collect::<Vec<_>>(), &network.wire, broken);
        }
    }
}

/// How many tasks were cancelled at about the time of a call.
pub(crate) fn cancelled_in_time(sim: &Sim) -> usize {
    let history = sim.history.borrow();
    let network = sim.network.lock();
    let close = |nonce: &Nonce, task: &Task| {
        let last = network.wire.fires.get(nonce)?.last()?;
        let since = task.cancelled?.checked_sub(*last)?.as_micros() % task.period.as_micros();
        (since.min(task.period.as_micros() - since) <= 2000).then_some(())
    };
    history.tasks.iter().filter(|(nonce, task)| close(nonce, task).is_some()).count()
}

/// Every time that came was either called or counted as skipped.
fn counts(nonce: Nonce, task: &Task, fires: usize, wire: &Wire, broken: &mut Vec<String>) {
    let (Some(cancelled), Some((known, asked)), Some((runs, skipped))) =
        (task.cancelled, task.there, task.counted)
    else {
        return;
    };
    let times = |span: Duration| (span.as_micros() / task.period.as_micros()) as u64;
    let counted = runs + skipped;
    // A controller that wakes up may learn of the cancellation before it looks at the clock.
    let awake = (asked - known).saturating_sub(wire.controllers_froze(known, cancelled));
    let (least, most) = (times(awake).saturating_sub(2), times(cancelled - task.began) + 1);
    if counted < least || counted > most {
        broken.push(format!("I9: {nonce:#x} counts {counted} times, there were {least} to {most}"));
    }
    if fires as u64 > runs {
        broken.push(format!("I9: {nonce:#x} called {fires} times and counts {runs}"));
    }
}

/// Between a controller and the node in its process lies at most a thread, so what runs there was called just
/// now.
fn in_its_process(
    nonce: Nonce,
    task: &Task,
    sim: &Sim,
    runs: &[(HostId, Duration)],
    broken: &mut Vec<String>,
) {
    let Some(cancelled) = task.cancelled else { return };
    let with_controller = |host: HostId| sim.host(host, |host| host.with_controller);
    if let Some((_, at)) =
        runs.iter().find(|(host, at)| *at > cancelled + THREAD_MAX && with_controller(*host))
    {
        broken
            .push(format!("I9: {nonce:#x} ran at {at:?} beside its controller, cancelled at {cancelled:?}"));
    }
}

/// The calls are whole periods apart from the first: no drift, no bursts.
fn rhythm(nonce: Nonce, period: Duration, fires: &[Duration], wire: &Wire, broken: &mut Vec<String>) {
    let Some(first) = fires.first() else { return };
    // A thread that sleeps here stops everything else, so that others are late by as much.
    let last_fire = fires.last().unwrap_or(first);
    let off_max = Duration::from_millis(1) + wire.slept_between(first.saturating_sub(period), *last_fire);
    if off_max * 4 > period {
        return;
    }
    let mut last = None;
    for at in fires {
        let since = (*at - *first) + off_max;
        let number = since.as_nanos() / period.as_nanos();
        let off = since.as_nanos() % period.as_nanos();
        if off > 2 * off_max.as_nanos() {
            broken
                .push(format!("I9: {nonce:#x} called at {at:?}, with a period of {period:?} from {first:?}"));
        }
        if last.is_some_and(|last| last >= number) {
            broken.push(format!("I9: {nonce:#x} called twice at {at:?}"));
        }
        last = Some(number);
    }
}

/// I6: nothing is left behind by anything that is over.
pub(crate) fn rest(sim: &Sim, cluster: &Cluster, broken: &mut Vec<String>) {
    let nodes = cluster.nodes();
    let Some(controller) = cluster.controller() else {
        return broken.push("I11: there is no controller".to_owned());
    };
    // A task may continue if its owner was gone before it learned the id.
    let going_on = sim.network.lock().wire.unknown_tasks(controller);
    for (id, name) in &nodes {
        let Some(global) = sim.host(*id, |host| host.global.clone()) else {
            broken.push(format!("I11: {name} is not up"));
            continue;
        };
        let sizes = daffi_node::simulation::sizes(&global);
        let nothing_runs = sizes.requests == 0;
        if sizes.calls > 0
            || sizes.streams
            || sizes.places > 0
            || sizes.delayed > 0
            || sizes.argument_bytes > 0 && nothing_runs
            || sizes.requests > going_on
        {
            broken.push(format!("I6: {name} still has {sizes:?}"));
        }
    }
    let Some(sizes) = cluster.controller_sizes() else {
        return broken.push("I6: the controller does not say what it has".to_owned());
    };
    let too_much = sizes.calls > 0
        || sizes.broadcasts > 0
        || sizes.watches > 0
        || sizes.handshakes > 0
        || sizes.routes > going_on
        || sizes.tasks > going_on;
    if too_much || sizes.peers != nodes.len() || sizes.names != nodes.len() {
        broken.push(format!("I6: the controller still has {sizes:?} with {} nodes", nodes.len()));
    }
    sockets(sim, cluster, controller, broken);
}

/// Each node has one socket, and the controller has one for each node outside its process.
fn sockets(sim: &Sim, cluster: &Cluster, controller: HostId, broken: &mut Vec<String>) {
    let nodes = cluster.nodes();
    let mut expected: BTreeMap<_, _> =
        nodes.iter().filter(|(id, _)| *id != controller).map(|(id, _)| (*id, 1)).collect();
    expected.insert(controller, expected.len());
    let open = sim.network.lock().open_sockets();
    if open != expected {
        broken.push(format!("I6: sockets by process: {open:?}, there should be {expected:?}"));
    }
}
