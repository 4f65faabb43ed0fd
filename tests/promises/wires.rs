//! Wires that deliver byte by byte, late, or not to the end.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use daffi::{BG, BROADCAST, Error, FG, Global, NO_RETURN, PERIOD};
use daffi_chaos::{Dice, Weather};

use crate::{
    proxy::{Proxy, Way},
    roles::Callee,
    support::{AT_ONCE, Outcome, Process, World, at, nonce, until},
};

const WAYS: [Way; 2] = [Way::ToController, Way::FromController];

/// A node on a wire of its own that offers what it is told to.
fn far(proxy: &Proxy, name: &str) -> Global {
    let own = name.to_owned();
    at(&proxy.address)
        .process_name(name)
        .link_time_callbacks(false)
        .callback("far", move |number: u64| format!("{own} {number}"))
        .start()
        .unwrap()
}

/// Each kind of frame in both directions, from and to a node whose bytes come in pieces of this size.
fn everything_works_in_pieces_of(bytes: usize) {
    let world = World::new();
    let _callee = world.callee("callee");
    let proxy = Proxy::new(&world.address);
    for way in WAYS {
        proxy.slice(way, bytes);
    }
    // The handshake and the registration, too.
    let g = far(&proxy, "far");
    let near = world.caller();
    assert_eq!((g.call.work(1_000) & FG).unwrap(), 1_000);
    let called = near.call.by_name::<String, _>("far", (7u64,)).fg().unwrap();
    assert_eq!(called, "far 7");
    // Many frames at once, and payloads in chunks.
    let calls: Vec<_> = (2_000..2_100).map(|call| (call, g.call.work_async(call) & BG)).collect();
    for (call, result) in calls {
        assert_eq!(result.outcome().unwrap(), call);
    }
    let payload: Vec<u8> = (0..200_000u32).map(|byte| byte as u8).collect();
    assert_eq!((g.call.echo(3_000, &payload) & FG).unwrap(), payload);
    // Failures, cancellations, broadcasts, schedules, questions.
    assert!(matches!(g.call.fails(4_000) & FG, Err(Error::Remote(_))));
    assert!(matches!(g.call.panics(4_001, "boom") & FG, Err(Error::Remote(_))));
    let slow = g.call.slow_async(5_000, 60_000) & BG;
    world.await_event("run", 5_000);
    slow.cancel();
    world.await_event("dropped", 5_000);
    let results = (g.call.varied(6_000) & BROADCAST.return_result()).unwrap();
    assert_eq!(results["callee"].as_deref().unwrap(), "callee");
    (g.call.tick(7_000) & NO_RETURN).unwrap();
    world.await_event("run", 7_000);
    let task = (g.call.tick(8_000) & PERIOD.period(Duration::from_millis(20))).unwrap();
    until("it ticks", || world.count("run", 8_000) >= 3);
    task.cancel().unwrap();
    assert_eq!(g.processes().unwrap().len(), 3);
    assert!(g.callbacks().unwrap().iter().any(|callback| callback.name == "work"));
    near.stop().unwrap();
    g.stop().unwrap();
    let executions = world.executions();
    assert!(executions.iter().all(|(call, count)| *count == 1 || *call == 8_000), "{executions:?}");
}

#[test]
fn everything_works_byte_by_byte() {
    everything_works_in_pieces_of(1);
}

#[test]
fn everything_works_in_odd_pieces() {
    for bytes in [7, 17, 1_000] {
        everything_works_in_pieces_of(bytes);
    }
}

/// A wire that is reset in the middle of a payload: what was on its way may have run, what is called next works, and at
/// once.
#[test]
fn a_reset_in_mid_frame_is_mended_at_once() {
    let world = World::new();
    let _callee = world.callee("callee");
    for way in WAYS {
        let proxy = Proxy::new(&world.address);
        let g = far(&proxy, "far");
        (g.call.work(nonce()) & FG).unwrap();
        // So that it is in the middle for sure.
        proxy.delay(way, Duration::from_millis(20));
        proxy.slice(way, 10_000);
        let (large, small) = (nonce(), nonce());
        let payload = vec![3; 8_000_000];
        let on_the_way = [g.call.echo(large, &payload) & BG, g.call.grow(small, 8_000_000) & BG];
        if way == Way::FromController {
            world.await_event("run", small);
        } else {
            thread::sleep(Duration::from_millis(100));
        }
        proxy.reset();
        let reset = Instant::now();
        for result in on_the_way {
            let error = result.outcome().unwrap_err();
            assert!(matches!(&error, Error::ControllerLost { .. }), "{way:?}: {error:?}");
        }
        proxy.mend();
        let call = nonce();
        assert_eq!((g.call.work(call) & FG).unwrap(), call);
        let took = reset.elapsed();
        println!("{way:?}: called again {took:?} after the reset");
        assert!(took < AT_ONCE, "{took:?}");
        assert!(world.count("run", large) <= 1 && world.count("run", call) == 1);
        g.stop().unwrap();
    }
}

/// One direction ends: the connection is over for both, and the node comes back.
#[test]
fn half_a_wire_is_none() {
    let world = World::new();
    let _callee = world.callee("callee");
    for way in WAYS {
        let proxy = Proxy::new(&world.address);
        let g = far(&proxy, "far");
        let call = nonce();
        let result = g.call.slow(call, 60_000) & BG;
        world.await_event("run", call);
        let closed = Instant::now();
        proxy.half_close(way);
        let error = result.outcome().unwrap_err();
        assert!(matches!(&error, Error::ControllerLost { .. }), "{way:?}: {error:?}");
        world.await_event("cancelled", call);
        let call = nonce();
        assert_eq!((g.call.work(call) & FG).unwrap(), call);
        let took = closed.elapsed();
        assert!(took < AT_ONCE, "its end is seen, not missed heartbeats: {took:?}");
        g.stop().unwrap();
    }
}

/// Whatever happens to the wires of a caller and a callee, in any order: histories agree, and when it is over all calls
/// work. `DAFFI_CHAOS_SEED` runs one seed alone.
#[test]
fn any_weather_is_survived() {
    let seeds = match std::env::var("DAFFI_CHAOS_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => vec![1, 2, 3, 4],
    };
    for seed in seeds {
        // Shown if the test fails.
        println!("DAFFI_CHAOS_SEED={seed}");
        weather(seed);
    }
}

fn weather(seed: u64) {
    const RAIN: Duration = Duration::from_secs(2);
    let world = World::watchful();
    let _steady = world.callee("steady");
    let [ours, theirs] = [(); 2].map(|()| Proxy::new(&world.address));
    let limits = daffi::Limits { heartbeat: world.heartbeat, ..daffi::Limits::default() };
    let g = at(&ours.address).process_name("caller").limits(limits).link_time_callbacks(false);
    let g = g.start().unwrap();
    let wet = world.child_at("callee", "wet", &theirs.address);
    wet.line("ready");

    let mut dice = Dice::new(seed);
    let spell = Duration::from_millis(200);
    let storms = [&ours, &theirs].map(|proxy| Weather::over(proxy.wire(), dice.roll(), spell));
    let mut calls = Vec::new();
    let end = Instant::now() + RAIN;
    while Instant::now() < end {
        let call = nonce();
        let result = match dice.below(5) {
            0 => g.call.work(call) & BG,
            1 => g.call.work_async(call) & BG,
            2 => g.call.slow(call, dice.below(30)) & BG,
            3 => g.call.slow_async(call, dice.below(30)) & BG.timeout(Duration::from_millis(10)),
            _ => {
                let payload = vec![1; dice.below(300_000) as usize];
                calls.push((call, None, Some(g.call.echo(call, &payload) & BG)));
                continue;
            }
        };
        calls.push((call, Some(result), None));
        thread::sleep(Duration::from_millis(1));
    }
    let struck = storms.map(Weather::calm);
    println!("{} calls; at the caller {:?}; at a callee {:?}", calls.len(), struck[0], struck[1]);

    let told: Vec<_> = calls
        .iter()
        .map(|(call, small, large)| {
            let small = small.as_ref().map(|result| result.outcome().map(|value| value == *call));
            let large =
                large.as_ref().map(|result| result.outcome().map(|value| value.iter().all(|b| *b == 1)));
            (*call, small.or(large).expect("it is one of the two"))
        })
        .collect();
    // All is well again: with both callees.
    for name in ["steady", "wet"] {
        until("it can be called", || (g.call.who() & FG.on(name)).is_ok_and(|own| own == name));
    }
    let executions = world.executions();
    for (call, outcome) in told {
        let runs = executions.get(&call).copied().unwrap_or(0);
        match outcome {
            Ok(right) => assert!(right && runs == 1, "{call}: ran {runs} times"),
            Err(error) if error.may_have_executed() => {
                assert!(runs <= 1, "{call}: ran {runs} times: {error:?}")
            }
            Err(error) => assert_eq!(runs, 0, "{call}: {error:?}"),
        }
    }
}

/// A link that breaks and is mended for so long, each time after a while: nodes come back each time and do not knock without
/// pause, calls have one outcome, and descriptors and threads are as many as before.
fn flapping(time: Duration, every: Duration) {
    /// Waits at random between two attempts, of which the first ones are short.
    const KNOCKS_MAX: u64 = 12;
    let world = World::new().lasting(time);
    let wires = [(); 2].map(|()| Proxy::new(&world.address));
    let g = at(&wires[0].address).process_name("caller").link_time_callbacks(false).start().unwrap();
    let callee = world.child_at("callee", "callee", &wires[1].address);
    callee.line("ready");
    let well = || until("calls work", || (g.call.work_async(nonce()) & FG).is_ok());
    well();
    let held = |process: &Process| {
        ["fd", "task"].map(|what| fs::read_dir(format!("/proc/{}/{what}", process.id())).unwrap().count())
    };
    let before = [held(world.controller()), held(&callee)];
    let (end, mut flaps, mut answered) = (Instant::now() + time, 0, 0);
    while Instant::now() < end {
        wires.iter().for_each(|wire| wire.cut());
        let lost = g.call.work_async(nonce()) & BG;
        thread::sleep(every);
        wires.iter().for_each(|wire| wire.mend());
        let mended = Instant::now();
        while mended.elapsed() < every {
            answered += u64::from((g.call.work_async(nonce()) & BG.timeout(every)).outcome().is_ok());
            thread::sleep(Duration::from_millis(5));
        }
        let told = lost.outcome();
        assert!(
            matches!(
                told,
                Ok(_)
                    | Err(Error::ControllerLost { .. }
                        | Error::RemoteStopped { .. }
                        | Error::NoCandidate { .. })
            ),
            "{told:?}"
        );
        flaps += 1;
    }
    well();
    let knocks = [0, 1].map(|wire| wires[wire].knocks());
    until("nothing is left of the connections", || {
        let after = [held(world.controller()), held(&callee)];
        // A thread of the pool more or less is none that was left behind.
        (before.iter().zip(after)).all(|(before, after)| after[0] <= before[0] && after[1] <= before[1] + 2)
    });
    println!(
        "{flaps} times broken and mended within {time:?}: {answered} calls answered, {knocks:?} attempts to connect"
    );
    assert!(answered > 0 && knocks.iter().all(|knocks| *knocks <= flaps * KNOCKS_MAX + 1), "{knocks:?}");
    assert!(world.executions().values().all(|count| *count == 1));
}

#[test]
fn a_link_that_flaps_leaves_nothing_behind() {
    flapping(Duration::from_secs(3), Duration::from_millis(300));
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_five_minutes`
#[test]
#[ignore = "it takes five minutes"]
fn full_size_five_minutes_of_flapping() {
    flapping(Duration::from_secs(300), Duration::from_secs(2));
}
