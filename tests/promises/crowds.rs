//! Many calls, many nodes, and one death among them.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use daffi::{BG, Error, FG, RemoteError};

use crate::{
    roles::{self, Callee},
    support::{AT_ONCE, Outcome, Over, Raw, World, nonce, until},
};

/// The time below which this share of them are.
pub fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * share) as usize]
}

/// A thousand calls in flight on a callee that is killed: each has its outcome soon after. Checks how soon the 99 % of them have it.
fn a_thousand_calls_on_a_killed_callee(p99_max: Duration) {
    for (wire, world) in [("a UNIX socket", World::new()), ("TCP", World::over_tcp())] {
        let mut doomed = world.callee("doomed");
        let g = world.caller();
        let calls: Vec<_> = (0..1_000)
            .map(|_| nonce())
            .map(|call| (call, g.call.slow_async(call, 60_000) & BG.on("doomed")))
            .collect();
        until("all calls run", || world.executions().len() == calls.len());
        let over = Mutex::new(Vec::new());
        let killed = Mutex::new(None);
        thread::scope(|scope| {
            // Each is waited for by itself, as callers do.
            for chunk in calls.chunks(50) {
                let (over, killed) = (&over, &killed);
                scope.spawn(move || {
                    for (call, result) in chunk {
                        let error = result.outcome().unwrap_err();
                        assert!(matches!(&error, Error::RemoteStopped { .. }), "{call}: {error:?}");
                        let since: Instant = killed.lock().unwrap().unwrap();
                        over.lock().unwrap().push(since.elapsed());
                    }
                });
            }
            let mut killed = killed.lock().unwrap();
            doomed.kill();
            *killed = Some(Instant::now());
        });
        let mut over = over.into_inner().unwrap();
        let p99 = percentile(&mut over, 0.99);
        println!("over {wire}: p50 {:?}, p99 {p99:?}", percentile(&mut over, 0.5));
        assert!(over.len() == 1_000 && p99 <= p99_max, "{p99:?}, at most {:?}", over.last());
        assert!(world.executions().values().all(|count| *count == 1));
    }
}

#[test]
fn a_thousand_calls_on_a_killed_callee_are_over_soon() {
    a_thousand_calls_on_a_killed_callee(AT_ONCE);
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_a_thousand_calls`
#[test]
#[ignore = "its bound holds in a release build, without other work"]
fn full_size_a_thousand_calls_on_a_killed_callee_are_over_soon() {
    a_thousand_calls_on_a_killed_callee(Duration::from_millis(100));
}

/// How soon a controller answers a ping, however many nodes come back to it.
const PONG_MAX: Duration = Duration::from_secs(1);

/// All nodes find a controller that was restarted, and each can be called again. Meanwhile it answers the pings of one that is
/// there already.
fn nodes_are_back(count: usize, within: Duration) {
    let mut world = World::new();
    let nodes: Vec<_> = (0..count)
        .map(|number| {
            let name = format!("node-{number}");
            let own = name.clone();
            world.builder(&name).callback("own_name", move || own.clone()).start().unwrap()
        })
        .collect();
    let g = world.caller();
    // Besides them there are the caller and, once it is there, the one that pings.
    let back = || g.processes().unwrap().iter().filter(|process| process.name.starts_with("node-")).count();
    let all = || back() == count;
    assert!(all());
    world.kill_controller();
    world.start_controller();
    let begun = Instant::now();
    let mut pinger = Raw::join(&world.address, "pinger", "f");
    let over = AtomicBool::new(false);
    let (took, mut pongs) = thread::scope(|scope| {
        let pongs = scope.spawn(|| {
            let mut pongs = vec![pinger.ping(0)];
            while !over.load(Ordering::SeqCst) {
                pongs.push(pinger.ping(pongs.len() as u64));
            }
            pongs
        });
        let _over = Over(&over);
        until("all nodes are back", all);
        let took = begun.elapsed();
        over.store(true, Ordering::SeqCst);
        (took, pongs.join().unwrap())
    });
    drop(pinger);
    println!("{count} nodes were back after {took:?}");
    let (p50, longest) = (percentile(&mut pongs, 0.5), percentile(&mut pongs, 1.0));
    println!("meanwhile {} pings were answered: p50 {p50:?}, the last one after {longest:?}", pongs.len());
    assert!(took < within, "{took:?}");
    assert!(longest <= PONG_MAX, "{longest:?}");
    for number in 0..count {
        let name = format!("node-{number}");
        let call = g.call.by_name::<String, _>("own_name", ()).on(name.as_str());
        assert_eq!(call.fg().unwrap(), name);
    }
    drop(nodes);
}

#[test]
fn a_hundred_nodes_are_back_after_a_restart() {
    nodes_are_back(100, Duration::from_secs(15));
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_a_thousand_nodes`, with `ulimit -n 8192`.
#[test]
#[ignore = "takes 2,000 threads and 5,000 descriptors"]
fn full_size_a_thousand_nodes_are_back_after_a_restart() {
    nodes_are_back(1_000, Duration::from_secs(15));
}

/// SIGTERM for ten nodes, one after the other, under load: what runs is finished, what is not started goes elsewhere,
/// and no call is lost.
#[test]
fn a_rolling_restart_loses_no_call() {
    const NODES: usize = 10;
    let world = World::new();
    let name = |number: usize| format!("node-{number}");
    let mut nodes: Vec<_> = (0..NODES).map(|number| world.callee(&name(number))).collect();
    let g = world.caller();
    let over = AtomicBool::new(false);
    let history = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for thread in 0..4 {
            let (g, over, history) = (&g, &over, &history);
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let calls: Vec<_> = (0..25)
                        .map(|at| {
                            let call = nonce();
                            let millis = call % 20;
                            (
                                call,
                                match (thread + at) % 4 {
                                    0 => g.call.work(call) & BG,
                                    1 => g.call.work_async(call) & BG,
                                    2 => g.call.slow(call, millis) & BG,
                                    _ => g.call.slow_async(call, millis) & BG,
                                },
                            )
                        })
                        .collect();
                    let outcomes = calls.iter().map(|(call, result)| (*call, result.outcome()));
                    history.lock().unwrap().extend(outcomes);
                }
            });
        }
        let _over = Over(&over);
        for (number, node) in nodes.iter_mut().enumerate() {
            let before = history.lock().unwrap().len();
            until("there is load", || history.lock().unwrap().len() > before + 200);
            node.terminate();
            assert!(node.exit().success(), "{number}");
            node.line("stopped");
            *node = world.callee(&name(number));
        }
    });
    let history = history.into_inner().unwrap();
    let executions = world.executions();
    for (call, outcome) in &history {
        assert_eq!(outcome.as_ref().ok(), Some(call), "{outcome:?}");
        assert_eq!(executions[call], 1, "{call}");
    }
    println!("{} calls in a rolling restart of {NODES} nodes, none lost", history.len());
}

/// A callee that dies after it has done the work and before it answers: it was done once, and the caller is told that it
/// may have been. So it is with a stack that overflows, which ends the process, too.
#[test]
fn a_callee_that_dies_when_it_is_done_has_done_it_once() {
    let world = World::new();
    let g = world.caller();
    let first = world.callee("callee");
    let call = nonce();
    let error = (g.call.dies(call) & FG).unwrap_err();
    assert!(matches!(&error, Error::RemoteStopped { .. }) && error.may_have_executed(), "{error:?}");
    drop(first);
    let second = world.callee("callee");
    // Whoever sent it again would send it to this one.
    let other = nonce();
    assert_eq!((g.call.work(other) & FG).unwrap(), other);
    assert_eq!((world.count("run", call), world.count("run", other)), (1, 1));

    let call = nonce();
    let error = (g.call.overflows(call) & FG).unwrap_err();
    assert!(matches!(&error, Error::RemoteStopped { .. }), "{error:?}");
    second.line("has overflowed its stack");
    assert_eq!(world.count("run", call), 1);
}

/// So many panics among other calls, after as many that warm it up, with pauses to make them so many a second: each is one failed
/// call, and nothing is lost or left behind. Gives the callee's KiB before and after.
fn panics(count: u64, a_second: u64) -> [u64; 2] {
    const AT_A_TIME: u64 = 100;
    let world = World::new();
    // With several arenas, what is left free in each of them is more than what is looked for here.
    let callee = world.child("callee", "callee", &[("MALLOC_ARENA_MAX", "1")]);
    callee.line("ready");
    let g = world.caller();
    let burst = |count: u64| {
        let calls: Vec<_> =
            (0..count).map(|_| (g.call.panics(nonce(), "boom") & BG, g.call.work(nonce()) & BG)).collect();
        for (panics, works) in calls {
            let Err(Error::Remote(error)) = panics.outcome() else { panic!("{panics:?}") };
            let error: &RemoteError = &error;
            assert!(error.to_string().contains("boom"), "{error}");
            works.outcome().unwrap();
        }
    };
    let storm = |count: u64| {
        let begun = Instant::now();
        for panics in (0..count).step_by(AT_A_TIME as usize) {
            let due = Duration::from_secs_f64(panics as f64 / a_second as f64);
            thread::sleep(due.saturating_sub(begun.elapsed()));
            burst(AT_A_TIME);
        }
        let took = begun.elapsed();
        println!("{count} panics in {took:?}");
        // Below a hundred thousand a second that is the pace, and not what there is time for.
        let pace = Duration::from_secs_f64(count as f64 / a_second as f64);
        assert!(a_second >= 100_000 || took < pace * 11 / 10, "{took:?} instead of {pace:?}");
        roles::resident_kib(&callee.id().to_string(), "VmRSS")
    };
    let [before, after] = [storm(count), storm(count)];
    println!("{before} KiB before {count} panics, {after} KiB after");
    [before, after]
}

#[test]
fn a_thousand_panics_are_a_thousand_failed_calls() {
    let [before, after] = panics(1_000, 100_000);
    assert!(after < before + 4 * 1024, "{before} KiB, then {after} KiB");
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_ten_seconds`
#[test]
#[ignore = "takes twenty seconds"]
fn full_size_ten_seconds_of_panics_are_as_many_failed_calls() {
    let [before, after] = panics(10_000, 1_000);
    assert!(after <= before + before / 20, "{before} KiB, then {after} KiB");
}
