//! The controller is killed, stopped or frozen, or the way to it breaks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use daffi::{BG, Error, FG, NO_RETURN};

use crate::{
    proxy::{Proxy, Way},
    roles::Callee,
    support::{AT_ONCE, Outcome, Over, PATIENCE, QUICK_HEARTBEAT, World, at, eventually, nonce, until},
};

/// A call that is tried again for as long as it certainly did not run.
#[track_caller]
fn work_again(g: &daffi::Global) -> u64 {
    let call = nonce();
    eventually("a call succeeds again", || match g.call.work(call) & FG.timeout(AT_ONCE) {
        Ok(result) => Some(result),
        Err(error) => {
            assert!(!error.may_have_executed(), "{error:?}");
            None
        }
    });
    call
}

/// Controller lost: `Error::ControllerLost` for every call in flight, at once. The nodes reconnect by themselves and
/// register again.
#[test]
fn a_killed_controller_ends_every_call_at_once_and_its_successor_knows_everybody() {
    for mut world in [World::new(), World::over_tcp()] {
        let callee = world.callee("callee");
        let g = world.caller();
        let pid = (g.call.pid() & FG).unwrap();
        let calls: Vec<_> =
            (0..200).map(|_| nonce()).map(|call| (call, g.call.slow_async(call, 60_000) & BG)).collect();
        until("all calls run", || world.executions().len() == 200);
        let killed = Instant::now();
        world.kill_controller();
        for (_, result) in &calls {
            let error = result.outcome().unwrap_err();
            assert!(matches!(&error, Error::ControllerLost { .. }), "{error:?}");
            assert!(error.may_have_executed() && error.is_retryable());
        }
        assert!(killed.elapsed() < AT_ONCE, "{:?}", killed.elapsed());
        // Nobody waits any more, and the callee knows.
        world.await_event("dropped", calls[0].0);
        world.await_event("dropped", calls[199].0);

        world.start_controller();
        callee.line("connected to the controller again");
        let call = work_again(&g);
        assert_eq!((g.call.pid() & FG).unwrap(), pid);
        assert!(world.executions().values().all(|count| *count == 1));
        assert_eq!(world.count("run", call), 1);
    }
}

/// Calls made without a controller wait for the link up to their timeout, and then `Timeout { sent: false }`.
#[test]
fn a_call_without_a_link_waits_for_its_timeout_and_was_not_sent() {
    let mut world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    world.kill_controller();
    let modifiers = [50, 200].map(Duration::from_millis);
    for after in modifiers {
        let begun = Instant::now();
        let call = nonce();
        let background = g.call.work(call) & BG.timeout(after);
        let foreground = g.call.work(call) & FG.timeout(after);
        for outcome in [foreground, background.outcome()] {
            let error = outcome.unwrap_err();
            match &error {
                Error::Timeout { after: said, sent: false, .. } => assert_eq!(*said, after),
                // The first one may leave before this process has noticed.
                Error::ControllerLost { .. } if after == modifiers[0] => {}
                _ => panic!("{error:?}"),
            }
        }
        assert!(begun.elapsed() < after + AT_ONCE);
    }
    assert!(world.executions().is_empty());
}

/// … and are executed exactly once when the link comes in time. What nobody answers waits as well, large or small.
#[test]
fn calls_made_without_a_link_are_executed_once_there_is_one() {
    let world = World::new();
    let _callee = world.callee("callee");
    let proxy = Proxy::new(&world.address);
    let g = at(&proxy.address).process_name("caller").link_time_callbacks(false).start().unwrap();
    (g.call.work(nonce()) & FG).unwrap();
    proxy.cut();
    until("the node has noticed", || {
        matches!(
            g.call.work(1) & FG.timeout(Duration::from_millis(20)),
            Err(Error::Timeout { sent: false, .. })
        )
    });
    let begun = Instant::now();
    let answered: Vec<_> = (0..50)
        .map(|_| nonce())
        .map(|call| (call, g.call.work(call) & BG.timeout(Duration::from_secs(30))))
        .collect();
    let large: Vec<_> = (0..3)
        .map(|_| nonce())
        .map(|call| (call, g.call.echo(call, &vec![9; 300_000]) & BG.timeout(Duration::from_secs(30))))
        .collect();
    let ordered: Vec<_> = (0..60).map(|_| nonce() + 1_000_000).collect();
    for (at, call) in ordered.iter().enumerate() {
        let payload = vec![0; if at % 7 == 3 { 200_000 } else { 5 }];
        (g.call.serial(*call, &payload) & NO_RETURN).unwrap();
    }
    assert!(begun.elapsed() < AT_ONCE, "nobody blocks");
    proxy.mend();
    for (call, result) in &answered {
        assert_eq!(result.outcome().unwrap(), *call);
    }
    for (_, result) in &large {
        assert_eq!(result.outcome().unwrap(), vec![9; 300_000]);
    }
    let ran = || -> Vec<u64> {
        world.events().iter().map(|event| event.nonce).filter(|call| *call > 1_000_000).collect()
    };
    until("all that nobody answers has run", || ran().len() >= ordered.len());
    assert_eq!(ran(), ordered, "in order");
    assert!(
        world.executions().iter().all(|(call, count)| *count == 1 || *call == 1),
        "{:?}",
        world.executions()
    );
}

/// SIGTERM: the controller lets calls in flight finish and exits with 0; calls made meanwhile are carried out by the
/// next one, exactly once.
#[test]
fn a_terminated_controller_drains() {
    let mut world = World::new();
    let callee = world.callee("callee");
    let g = world.caller();
    let (a, b) = (nonce(), nonce());
    let running = [g.call.slow(a, 800) & BG, g.call.slow_async(b, 800) & BG];
    world.await_event("run", a);
    world.await_event("run", b);
    world.controller().terminate();
    callee.line("the controller is stopping");
    let meanwhile = nonce();
    let waiting = g.call.work(meanwhile) & BG;
    for (result, call) in running.iter().zip([a, b]) {
        assert_eq!(result.outcome().unwrap(), call);
    }
    assert_eq!(world.controller_exit(), 0);
    world.start_controller();
    // Also if the caller is back before the callee is.
    assert_eq!(waiting.outcome().unwrap(), meanwhile);
    assert_eq!(world.count("run", meanwhile), 1);
    work_again(&g);
    assert!(world.executions().values().all(|count| *count == 1));
}

/// SIGTERM under load: no call is lost, neither of those in flight nor of those that are made meanwhile.
#[test]
fn a_terminated_controller_drains_under_load() {
    const CALLERS: usize = 4;
    let mut world = World::new();
    let _callees = ["a", "b"].map(|name| world.callee(name));
    let g = world.caller();
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let more = |calls: usize| {
        let before = answered.load(Ordering::SeqCst);
        until("calls are answered", || answered.load(Ordering::SeqCst) >= before + calls);
    };
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let calls: Vec<_> = (0..20)
                        .map(|_| nonce())
                        .map(|call| {
                            let kind = call % 3;
                            let result = match kind {
                                0 => g.call.work(call) & BG,
                                1 => g.call.slow(call, call % 100) & BG,
                                _ => g.call.slow_async(call, call % 100) & BG,
                            };
                            (call, result)
                        })
                        .collect();
                    for (call, result) in calls {
                        let outcome = result.outcome();
                        over.fetch_or(outcome.is_err(), Ordering::SeqCst);
                        assert_eq!(outcome.unwrap(), call);
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        let _over = Over(&over);
        for _ in 0..3 {
            more(300);
            let begun = Instant::now();
            world.controller().terminate();
            assert_eq!(world.controller_exit(), 0);
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
            world.start_controller();
        }
        more(300);
    });
    let executions = world.executions();
    assert!(executions.values().all(|count| *count == 1));
    assert_eq!(executions.len(), answered.load(Ordering::SeqCst));
}

/// The same with tasks that await their calls: an answer that came with the end of the connection counts.
#[test]
fn a_terminated_controller_drains_under_load_of_tasks() {
    const TASKS: u64 = 100;
    let mut world = World::new();
    let _callees = ["a", "b"].map(|name| world.callee(name));
    let g = world.caller();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let more = |calls: usize| {
        let before = answered.load(Ordering::SeqCst);
        until("calls are answered", || answered.load(Ordering::SeqCst) >= before + calls);
    };
    let tasks: Vec<_> = (0..TASKS)
        .map(|number| {
            let (g, over, answered) = (g.clone(), over.clone(), answered.clone());
            runtime.spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let call = nonce();
                    let outcome = match number % 4 {
                        0 => g.call.slow_async(call, call % 30).await,
                        1 => g.call.work(call).await,
                        _ => g.call.work_async(call).await,
                    };
                    assert_eq!(outcome.unwrap(), call);
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for _ in 0..5 {
        more(500);
        world.controller().terminate();
        assert_eq!(world.controller_exit(), 0);
        world.start_controller();
    }
    more(500);
    over.store(true, Ordering::SeqCst);
    for task in tasks {
        runtime.block_on(task).unwrap();
    }
    let executions = world.executions();
    assert!(executions.values().all(|count| *count == 1));
    assert_eq!(executions.len(), answered.load(Ordering::SeqCst));
}

/// SIGTERM with a call that does not end within the grace time: it is cut off, and the exit code says so.
fn a_terminated_controller_stops_after_its_grace_time(late_max: Duration) {
    let mut world = World::with(&["--grace", "200ms"]);
    let _callee = world.callee("callee");
    let g = world.caller();
    let call = nonce();
    let result = g.call.slow(call, 60_000) & BG;
    world.await_event("run", call);
    let begun = Instant::now();
    world.controller().terminate();
    let error = result.outcome().unwrap_err();
    assert!(matches!(&error, Error::ControllerLost { .. } | Error::RemoteStopped { .. }), "{error:?}");
    assert_eq!(world.controller_exit(), 4);
    // By itself it would wait for 10 s.
    let took = begun.elapsed();
    println!("after a grace time of 200 ms the controller was gone after {took:?}");
    assert!(took < Duration::from_millis(200) + late_max, "{took:?}");
    world.await_event("cancelled", call);
}

#[test]
fn a_terminated_controller_does_not_wait_for_ever() {
    a_terminated_controller_stops_after_its_grace_time(AT_ONCE);
}

/// A second SIGTERM: it does not wait at all.
fn a_controller_that_is_terminated_twice(late_max: Duration) {
    let mut world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let call = nonce();
    let result = g.call.slow(call, 60_000) & BG;
    world.await_event("run", call);
    let begun = Instant::now();
    world.controller().terminate();
    world.controller().line("stopping");
    world.controller().terminate();
    assert_eq!(world.controller_exit(), 4);
    let took = begun.elapsed();
    println!("terminated twice, the controller was gone after {took:?}");
    assert!(took < late_max, "{took:?}");
    assert!(matches!(result.outcome(), Err(Error::ControllerLost { .. })));
}

#[test]
fn a_controller_that_is_terminated_twice_stops_at_once() {
    a_controller_that_is_terminated_twice(AT_ONCE);
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_a_terminated`
#[test]
#[ignore = "its bounds hold in a release build, without other work"]
fn full_size_a_terminated_controller_is_gone_within_a_second() {
    a_terminated_controller_stops_after_its_grace_time(Duration::from_secs(1));
    a_controller_that_is_terminated_twice(Duration::from_secs(1));
}

/// A frozen controller: heartbeats, not timers, find it, on both sides. When it goes on everybody comes back.
#[test]
fn a_frozen_controller_is_noticed_and_found_again() {
    let world = World::watchful();
    let callee = world.callee("callee");
    let g = world.caller();
    let call = nonce();
    let result = g.call.slow(call, 60_000) & BG;
    world.await_event("run", call);
    let frozen = Instant::now();
    world.controller().freeze();
    let error = result.outcome().unwrap_err();
    assert!(matches!(&error, Error::ControllerLost { .. }), "{error:?}");
    let took = frozen.elapsed();
    assert!(took >= 2 * QUICK_HEARTBEAT && took < 5 * QUICK_HEARTBEAT + AT_ONCE, "{took:?}");
    callee.line("lost the controller");
    world.await_event("cancelled", call);
    world.controller().thaw();
    callee.line("connected to the controller again");
    work_again(&g);
    assert!(world.executions().values().all(|count| *count == 1));
}

/// A partition that nobody is told of, one way or both: heartbeats find it at both ends.
#[test]
fn a_wire_that_swallows_everything_is_noticed_at_both_ends() {
    for ways in
        [vec![Way::ToController], vec![Way::FromController], vec![Way::ToController, Way::FromController]]
    {
        let world = World::watchful();
        let _callee = world.callee("callee");
        let proxy = Proxy::new(&world.address);
        let limits = daffi::Limits { heartbeat: QUICK_HEARTBEAT, ..Default::default() };
        let g =
            at(&proxy.address).process_name("far").limits(limits).link_time_callbacks(false).start().unwrap();
        let call = nonce();
        let result = g.call.slow(call, 60_000) & BG;
        world.await_event("run", call);
        let begun = Instant::now();
        for way in &ways {
            proxy.jam(*way);
        }
        let error = result.outcome().unwrap_err();
        assert!(matches!(&error, Error::ControllerLost { .. }), "{ways:?}: {error:?}");
        assert!(begun.elapsed() < 5 * QUICK_HEARTBEAT + AT_ONCE, "{ways:?}: {:?}", begun.elapsed());
        // The controller has noticed too, and has told the callee.
        world.await_event("cancelled", call);
        proxy.mend();
        work_again(&g);
        assert!(world.executions().values().all(|count| *count == 1), "{ways:?}");
    }
}

/// NO_RETURN: what could not be delivered is logged at the controller.
#[test]
fn what_nobody_takes_is_logged_at_the_controller() {
    let world = World::new();
    let g = world.caller();
    (g.call.work(nonce()) & NO_RETURN).unwrap();
    (g.call.work(nonce()) & NO_RETURN.on("nobody")).unwrap();
    let line = world.controller().line("a call without an answer was not delivered");
    assert!(line.contains("WARN") && line.contains("caller=\"caller\""), "{line}");
    assert!(line.contains("work"), "it says what for: {line}");
}

/// A call that waited for the controller waits for its callee, too, when that comes back later.
#[test]
fn a_waiting_call_outlasts_a_callee_that_returns_late() {
    let mut world = World::new();
    let callee = world.callee("callee");
    let g = world.caller();
    let running = nonce();
    let lost = g.call.slow(running, 60_000) & BG;
    world.await_event("run", running);
    callee.freeze();
    world.kill_controller();
    assert!(matches!(lost.outcome(), Err(Error::ControllerLost { .. })));
    let call = nonce();
    let waiting = g.call.work(call) & BG;
    world.start_controller();
    g.wait_process_timeout(g.process_name(), PATIENCE).unwrap();
    assert!(!waiting.is_ready(), "its callee is frozen");
    callee.thaw();
    assert_eq!(waiting.outcome().unwrap(), call);
    assert_eq!(world.count("run", call), 1);
}
