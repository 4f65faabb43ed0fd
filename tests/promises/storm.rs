//! Many calls, many restarts, and whether the history of both sides agrees.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use daffi::{BG, Error, Global, Result};

use crate::{
    proxy::Proxy,
    roles::Callee,
    support::{Over, PATIENCE, QUICK_HEARTBEAT, World, at, eventually, nonce, until},
};

const THREADS: usize = 6;
const IN_FLIGHT: usize = 60;

/// What the callers were told, call by call.
type History = Mutex<Vec<(u64, Result<u64>)>>;

/// Keeps hundreds of calls in flight while `disturb` does its worst.
fn under_load(g: &Global, disturb: impl FnOnce(&AtomicUsize)) -> Vec<(u64, Result<u64>)> {
    let history = History::default();
    let succeeded = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (history, succeeded, over) = (&history, &succeeded, &over);
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let calls: Vec<_> = (0..IN_FLIGHT).map(|at| start(g, number + at)).collect();
                    for (call, result) in calls {
                        // No call has a deadline, and none is silent for ever.
                        let outcome = result.get_timeout(PATIENCE);
                        succeeded.fetch_add(usize::from(outcome.is_ok()), Ordering::SeqCst);
                        history.lock().unwrap().push((call, outcome));
                    }
                    // Without a callee every call fails at once, and this would be a busy loop.
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
        let _over = Over(&over);
        disturb(&succeeded);
    });
    history.into_inner().unwrap()
}

/// A call of one of the kinds that there are.
fn start(g: &Global, kind: usize) -> (u64, daffi::AsyncResult<u64>) {
    let call = nonce();
    let result = match kind % 4 {
        0 => g.call.work(call) & BG,
        1 => g.call.work_async(call) & BG,
        2 => g.call.slow(call, call % 40) & BG,
        _ => g.call.slow_async(call, call % 40) & BG,
    };
    (call, result)
}

/// At most once, exactly one outcome, and what the caller was told is what happened.
#[track_caller]
fn check(world: &World, history: &[(u64, Result<u64>)]) {
    // What was told to be lost may still be running to its end; it has begun, or it never will.
    let executions = world.executions();
    let mut told = std::collections::HashMap::new();
    for (call, outcome) in history {
        assert!(told.insert(call, outcome).is_none(), "two outcomes of {call}");
        let executed = executions.get(call).copied().unwrap_or(0);
        assert!(executed <= 1, "{call} was executed {executed} times: {outcome:?}");
        match outcome {
            Ok(value) => assert_eq!((value, executed), (call, 1), "{call}"),
            Err(Error::Timeout { .. }) => panic!("{call} was silent, and executed {executed} times"),
            Err(error) if !error.may_have_executed() => assert_eq!(executed, 0, "{call}: {error:?}"),
            Err(Error::ControllerLost { .. } | Error::RemoteStopped { .. }) => {}
            Err(error) => panic!("{call}: {error:?}"),
        }
    }
    assert!(executions.keys().all(|call| told.contains_key(call)), "nobody called what was executed");
}

/// So many restarts of the controller, by SIGKILL and SIGTERM, with hundreds of calls in flight. Gives how many calls there were.
fn restarts_of_the_controller(rounds: usize) -> usize {
    let mut world = World::with(&["--grace", "100ms"]).lasting(rounds as u32 * PATIENCE);
    let _callees = ["a", "b"].map(|name| world.callee(name));
    let g = world.caller();
    let history = under_load(&g, |succeeded| {
        for round in 0..rounds {
            let before = succeeded.load(Ordering::SeqCst);
            until("calls succeed again", || succeeded.load(Ordering::SeqCst) > before + 300);
            if round % 3 == 2 {
                world.controller().terminate();
                world.controller_exit();
            } else {
                world.kill_controller();
            }
            world.start_controller();
        }
        let before = succeeded.load(Ordering::SeqCst);
        until("calls succeed again", || succeeded.load(Ordering::SeqCst) > before + 300);
    });
    let lost =
        history.iter().filter(|(_, outcome)| matches!(outcome, Err(Error::ControllerLost { .. }))).count();
    println!("{} calls over {rounds} restarts, of which {lost} were lost with a controller", history.len());
    assert!(lost >= rounds, "only {lost} of {} calls were in flight when it mattered", history.len());
    check(&world, &history);
    history.len()
}

#[test]
fn histories_agree_over_ten_restarts_of_the_controller() {
    restarts_of_the_controller(10);
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_histories`
#[test]
#[ignore = "a hundred take their time"]
fn full_size_histories_agree_over_a_hundred_restarts_of_the_controller() {
    assert!(restarts_of_the_controller(100) > 10_000);
}

/// The callees are killed and come back, and the caller's own link is cut.
#[test]
fn histories_agree_while_callees_die_and_wires_break() {
    let world = World::new();
    let _steady = world.callee("steady");
    let proxy = Proxy::new(&world.address);
    let g = at(&proxy.address).process_name("caller").link_time_callbacks(false).start().unwrap();
    let history = under_load(&g, |succeeded| {
        for round in 0..8 {
            let mut doomed = world.callee("doomed");
            let before = succeeded.load(Ordering::SeqCst);
            until("calls succeed", || succeeded.load(Ordering::SeqCst) > before + 200);
            if round % 2 == 0 {
                doomed.kill();
            } else {
                proxy.cut();
                proxy.mend();
            }
            eventually("calls succeed again", || {
                (succeeded.load(Ordering::SeqCst) > before + 400).then_some(())
            });
        }
    });
    check(&world, &history);
}

/// A callee and the controller are frozen for longer than anybody waits for a sign of life, or for less, and go on.
#[test]
fn histories_agree_while_processes_freeze_and_go_on() {
    let world = World::watchful();
    let callees = ["a", "b"].map(|name| world.callee(name));
    let g = world.caller();
    let history = under_load(&g, |succeeded| {
        for round in 0..6 {
            let before = succeeded.load(Ordering::SeqCst);
            until("calls succeed", || succeeded.load(Ordering::SeqCst) > before + 200);
            let frozen = if round % 3 == 2 { world.controller() } else { &callees[round % 2] };
            frozen.freeze();
            thread::sleep(if round % 2 == 0 { 5 * QUICK_HEARTBEAT } else { QUICK_HEARTBEAT });
            frozen.thaw();
        }
        let before = succeeded.load(Ordering::SeqCst);
        until("calls succeed again", || succeeded.load(Ordering::SeqCst) > before + 200);
    });
    let lost = history.iter().filter(|(_, outcome)| {
        matches!(outcome, Err(Error::RemoteStopped { .. } | Error::ControllerLost { .. }))
    });
    assert!(lost.count() > 0, "nobody was frozen for long");
    check(&world, &history);
}
