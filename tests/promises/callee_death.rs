//! The callee, or the caller, is killed, frozen, or loses its link.

use std::time::{Duration, Instant};

use daffi::{BG, Error, FG};

use crate::{
    roles::{self, Callee},
    support::{AT_ONCE, Outcome, QUICK_HEARTBEAT, World, nonce, until},
};

/// Callee lost: `Error::RemoteStopped { node }` at once, for every call in flight there. Here it is killed with 200 of
/// them, and another node's calls go on.
#[test]
fn a_killed_callee_ends_every_call_at_once() {
    for world in [World::new(), World::over_tcp()] {
        let mut doomed = world.callee("doomed");
        let _other = world.callee("other");
        let g = world.caller();
        let calls: Vec<_> = (0..200)
            .map(|number| {
                let call = nonce();
                let modifier = BG.on("doomed");
                // Some are `fn` and some `async fn`; of the `fn` some wait for a thread.
                let result = if number % 4 == 0 {
                    g.call.slow(call, 60_000) & modifier
                } else {
                    g.call.slow_async(call, 60_000) & modifier
                };
                (call, result)
            })
            .collect();
        let elsewhere = g.call.slow_async(nonce(), 1_500) & BG.on("other");
        until("all calls run", || calls.iter().all(|(call, _)| world.executions().contains_key(call)));
        let killed = Instant::now();
        doomed.kill();
        for (call, result) in &calls {
            let error = result.outcome().unwrap_err();
            assert!(matches!(&error, Error::RemoteStopped { node } if node == "doomed"), "{call}: {error:?}");
            assert!(error.may_have_executed() && error.is_retryable());
        }
        let took = killed.elapsed();
        assert!(took < AT_ONCE, "{took:?}");
        elsewhere.outcome().unwrap();
        // At most once: nobody has sent them again.
        assert!(world.executions().values().all(|count| *count == 1));
        let error = (g.call.work(nonce()) & FG.on("doomed")).unwrap_err();
        assert!(matches!(&error, Error::NoProcess { .. }), "{error:?}");
    }
}

/// A killed caller's calls are cancelled, and nothing of them stays at the controller.
fn a_killed_caller(late_max: Duration) {
    let mut world = World::new();
    let _callee = world.callee("callee");
    let mut caller = world.child("caller", "doomed", &[]);
    caller.line("ready");
    until("all calls run", || world.executions().len() == 20);
    let killed = Instant::now();
    caller.kill();
    for call in 1..=10 {
        world.await_event("cancelled", call);
        world.await_event("dropped", 100 + call);
    }
    let took = killed.elapsed();
    println!("the calls of a killed caller were cancelled after {took:?}");
    assert!(took < late_max, "its end is seen, not missed heartbeats: {took:?}");
    // With a call in flight it would wait for it, and exit with 4.
    let stopped = Instant::now();
    world.controller().terminate();
    assert_eq!(world.controller_exit(), 0);
    assert!(stopped.elapsed() < late_max);
}

#[test]
fn a_killed_caller_leaves_nothing_behind() {
    a_killed_caller(AT_ONCE);
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_a_killed_caller`
#[test]
#[ignore = "its bound holds in a release build, without other work"]
fn full_size_a_killed_caller_leaves_nothing_behind_after_a_second() {
    a_killed_caller(Duration::from_secs(1));
}

/// A frozen callee: the heartbeat declares it dead and its calls fail; when it goes on it rejoins by itself.
fn a_frozen_callee(world: World, lost_after_max: Duration) {
    let heartbeat = world.heartbeat;
    let callee = world.callee("callee");
    let g = world.caller();
    let pid = (g.call.pid() & FG).unwrap();
    let (a, b) = (nonce(), nonce());
    let calls = [g.call.slow(a, 60_000) & BG, g.call.slow_async(b, 60_000) & BG];
    world.await_event("run", a);
    world.await_event("run", b);
    let frozen = Instant::now();
    callee.freeze();
    let unseen = nonce();
    let calls_meanwhile = g.call.work(unseen) & BG;
    for call in calls {
        let error = call.outcome().unwrap_err();
        assert!(matches!(&error, Error::RemoteStopped { node } if node == "callee"), "{error:?}");
    }
    let took = frozen.elapsed();
    println!("a frozen callee was lost after {took:?}, with a heartbeat of {heartbeat:?}");
    assert!(took >= 2 * heartbeat && took <= lost_after_max, "{took:?}");
    assert!(matches!(calls_meanwhile.outcome(), Err(Error::RemoteStopped { .. })));
    let error = (g.call.work(nonce()) & FG).unwrap_err();
    assert!(matches!(&error, Error::NoCandidate { .. }), "{error:?}");
    callee.thaw();
    g.wait_process_timeout("callee", Duration::from_secs(20)).unwrap();
    assert_eq!((g.call.pid() & FG).unwrap(), pid, "it is the same process");
    world.await_event("cancelled", a);
    world.await_event("dropped", b);
    let executions = world.executions();
    assert!(executions.values().all(|count| *count == 1), "{executions:?}");
}

#[test]
fn a_frozen_callee_is_lost_and_rejoins_when_it_goes_on() {
    a_frozen_callee(World::watchful(), 4 * QUICK_HEARTBEAT + AT_ONCE);
}

/// With the heartbeat that is the default. `cargo test --release --test promises -- --ignored --nocapture full_size_a_frozen_callee`
#[test]
#[ignore = "it takes a quarter of a minute"]
fn full_size_a_frozen_callee_is_lost_after_fifteen_seconds() {
    a_frozen_callee(World::new(), Duration::from_secs(15));
}

/// Exactly one outcome, and the right one: what ran when the link was lost does not answer the calls that come after
/// it, although they may have the same number on the wire.
#[test]
fn an_outcome_of_an_earlier_link_answers_nobody() {
    let mut world = World::new();
    let callee = world.callee("callee");
    let g = world.caller();
    let calls: Vec<_> = (0..6).map(|_| nonce()).collect();
    let early: Vec<_> = calls
        .iter()
        .enumerate()
        .map(|(at, call)| {
            let call = *call;
            if at % 2 == 0 { g.call.stubborn(call, 1_200) & BG } else { g.call.slow_async(call, 60_000) & BG }
        })
        .collect();
    for call in &calls {
        world.await_event("run", *call);
    }
    world.kill_controller();
    for call in early {
        assert!(matches!(call.outcome(), Err(Error::ControllerLost { .. })));
    }
    world.start_controller();
    callee.line("connected to the controller again");
    g.wait_process("callee").unwrap();
    let late: Vec<_> = (0..12)
        .map(|at| {
            let call = nonce();
            (
                call,
                if at % 2 == 0 {
                    g.call.stubborn(call, 1_500) & BG
                } else {
                    g.call.slow_async(call, 1_500) & BG
                },
            )
        })
        .collect();
    for (call, result) in &late {
        assert_eq!(result.get_timeout(Duration::from_secs(20)).unwrap(), *call);
    }
    for call in calls.iter().step_by(2) {
        world.await_event("done", *call);
    }
    assert!(world.executions().values().all(|count| *count == 1));
}

/// A frozen caller: its calls are cancelled when the heartbeat declares it dead, and when it goes on they have one
/// outcome each.
#[test]
fn a_frozen_callers_calls_are_cancelled() {
    let world = World::watchful();
    let _callee = world.callee("callee");
    let caller = world.child("caller", "frozen", &[]);
    caller.line("ready");
    until("all calls run", || world.executions().len() == 20);
    caller.freeze();
    for call in 1..=10 {
        world.await_event("cancelled", call);
        world.await_event("dropped", 100 + call);
    }
    caller.thaw();
    caller.line("20 outcomes: ControllerLost");
    assert!(world.executions().values().all(|count| *count == 1));
}

/// SIGTERM to a callee whose callbacks go on for longer than its grace time, blocked or awaiting: the process ends soon after that,
/// and its callers know.
fn a_terminated_callee_is_gone(late_max: Duration) {
    const GRACE: Duration = Duration::from_millis(300);
    let world = World::new();
    let grace = GRACE.as_millis().to_string();
    let mut callee = world.child("callee", "callee", &[(roles::GRACE, &grace)]);
    callee.line("ready");
    let g = world.caller();
    let calls = [nonce(), nonce(), nonce()];
    let results = [
        g.call.stubborn(calls[0], 30_000) & BG,
        g.call.slow_async(calls[1], 30_000) & BG,
        g.call.stubborn_async(calls[2], 30_000) & BG,
    ];
    for call in calls {
        world.await_event("run", call);
    }
    let begun = Instant::now();
    callee.terminate();
    let status = callee.exit();
    let took = begun.elapsed();
    println!("a callee with a grace time of {GRACE:?} was gone after {took:?}");
    // What it exits with is its own choice.
    assert!(status.success(), "{status}");
    assert!(took >= GRACE && took <= GRACE + late_max, "{took:?}");
    let line = callee.line("stopped before all callbacks were done");
    assert!(line.contains("callbacks=3"), "{line}");
    for result in results {
        assert!(matches!(result.outcome(), Err(Error::RemoteStopped { node }) if node == "callee"));
    }
}

#[test]
fn a_terminated_callee_does_not_wait_for_ever() {
    a_terminated_callee_is_gone(AT_ONCE);
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_a_terminated`
#[test]
#[ignore = "its bound holds in a release build, without other work"]
fn full_size_a_terminated_callee_is_gone_a_second_after_its_grace_time() {
    a_terminated_callee_is_gone(Duration::from_secs(1));
}
