//! What the caller is told, and whether it is true.

use std::time::Duration;

use daffi::{BG, BROADCAST, Error, FG, Limits};

use crate::{
    roles::{Callee, HELD_MAX, Point},
    support::{Outcome, PATIENCE, World, eventually, nonce, until},
};

/// Whether a call may have run, and whether to try again, as the error says it.
#[track_caller]
fn says(error: &Error, may_have_executed: bool, is_retryable: bool) {
    assert_eq!(error.may_have_executed(), may_have_executed, "may_have_executed of {error:?}");
    assert_eq!(error.is_retryable(), is_retryable, "is_retryable of {error:?}");
}

/// `Error::may_have_executed()` says whether a retry is safe, `is_retryable()` whether it makes sense: the families
/// where the callback did not run.
#[test]
fn what_certainly_did_not_run_is_not_in_the_log() {
    let mut world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let not_run = |call: u64, error: &Error, is_retryable: bool| {
        says(error, false, is_retryable);
        assert_eq!(world.count("run", call), 0, "{error:?}");
    };

    let call = nonce();
    let error = (g.call.by_name::<u64, _>("wok", (call,)) & FG).unwrap_err();
    let Error::NoCandidate { callback, similar, .. } = &error else { panic!("{error:?}") };
    assert_eq!(callback, "wok");
    assert!(similar.contains(&"work".to_owned()), "near names as a hint: {similar:?}");
    assert!(error.to_string().contains("work"), "{error}");
    not_run(call, &error, true);

    let error = (g.call.work(call) & FG.on("nobody")).unwrap_err();
    assert!(matches!(&error, Error::NoProcess { name } if name == "nobody"), "{error:?}");
    not_run(call, &error, true);

    let error = (g.call.method(call) & FG).unwrap_err();
    assert!(matches!(&error, Error::NoInstance { node, .. } if node == "callee"), "{error:?}");
    not_run(call, &error, true);

    let error = (g.call.work_wrongly(call, 1) & FG).unwrap_err();
    assert!(matches!(&error, Error::SignatureMismatch { .. }), "{error:?}");
    not_run(call, &error, false);

    let small = Limits { payload_bytes_max: 1024, ..Limits::default() };
    let frugal = world.builder("frugal").limits(small).start().unwrap();
    let error = (frugal.call.echo(call, &[0; 2048]) & FG).unwrap_err();
    assert!(matches!(&error, Error::TooLarge { what: "arguments", limit: 1024, .. }), "{error:?}");
    not_run(call, &error, false);

    let error = (g.call.work(call) & FG.timeout(Duration::ZERO)).unwrap_err();
    assert!(matches!(&error, Error::Timeout { sent: false, .. }), "{error:?}");
    not_run(call, &error, true);

    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = runtime.block_on(async { g.call.work(call) & FG }).unwrap_err();
    assert!(matches!(&error, Error::BlockingInAsync { .. }), "{error:?}");
    not_run(call, &error, false);

    let stopped = world.builder("stopped").start().unwrap();
    stopped.stop().unwrap();
    let error = (stopped.call.work(call) & FG).unwrap_err();
    assert!(matches!(&error, Error::Stopped { .. }), "{error:?}");
    not_run(call, &error, false);

    world.kill_controller();
    // The first one may leave before this process has noticed.
    let error = eventually("the node notices", || {
        let error = (g.call.work(call) & FG.timeout(Duration::from_millis(100))).unwrap_err();
        (!matches!(&error, Error::ControllerLost { .. })).then_some(error)
    });
    assert!(matches!(&error, Error::Timeout { sent: false, .. }), "{error:?}");
    says(&error, false, true);
    assert_eq!(world.count("run", call), 0);
}

/// A node that has as much to do as it may: `Error::Overloaded`, and the callback did not run.
#[test]
fn an_overloaded_callee_refuses_and_does_not_run() {
    let world = World::new();
    let callee = world.child("callee", "callee", &[(HELD_MAX, "3")]);
    callee.line("ready");
    let g = world.caller();
    let running: Vec<_> = (0..3)
        .map(|_| {
            let call = nonce();
            let result = g.call.slow(call, 60_000) & BG;
            world.await_event("run", call);
            result
        })
        .collect();
    let call = nonce();
    let error = (g.call.work(call) & FG).unwrap_err();
    assert!(matches!(&error, Error::Overloaded { node } if node == "callee"), "{error:?}");
    says(&error, false, true);
    for call in running {
        call.cancel();
    }
    assert_eq!(world.count("run", call), 0);
}

/// What waits for a node that does not read is bounded: then calls to it are refused, and calls to others go on.
#[test]
fn a_frozen_callee_fills_its_queue_and_nobody_elses() {
    let world = World::with(&["--queue-max", "256KiB"]);
    let frozen = world.callee("frozen");
    let _other = world.callee("other");
    let g = world.caller();
    frozen.freeze();
    let calls: Vec<_> = (0..600)
        .map(|_| nonce())
        .map(|call| (call, g.call.echo(call, &[5; 10_000]) & BG.on("frozen")))
        .collect();
    let refused =
        |(call, result): &(u64, daffi::AsyncResult<Vec<u8>>)| match result.get_timeout(Duration::ZERO) {
            Err(error @ Error::Overloaded { .. }) => {
                assert!(matches!(&error, Error::Overloaded { node } if node == "frozen"), "{error:?}");
                says(&error, false, true);
                Some(*call)
            }
            _ => None,
        };
    until("calls are refused", || calls.iter().filter_map(refused).count() >= 100);
    let other = nonce();
    assert_eq!((g.call.echo(other, &[1]) & FG.on("other")).unwrap(), [1]);
    let refused: Vec<_> = calls.iter().filter_map(refused).collect();
    frozen.thaw();
    for (call, result) in calls.iter().filter(|(call, _)| !refused.contains(call)) {
        assert_eq!(result.outcome().unwrap(), [5; 10_000], "{call}");
    }
    let executions = world.executions();
    assert!(refused.iter().all(|call| !executions.contains_key(call)));
    assert_eq!(executions.len(), calls.len() - refused.len() + 1);
}

/// The families where the callback may have run, and here did; the others are where somebody dies.
#[test]
fn what_may_have_run_says_so() {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();

    let call = nonce();
    let error = (g.call.fails(call) & FG).unwrap_err();
    says(&error, true, false);
    assert_eq!(world.count("run", call), 1);
    let Error::Remote(remote) = &error else { panic!("{error:?}") };
    assert_eq!((remote.node(), remote.callback(), remote.is_panic()), ("callee", "fails", false));
    assert_eq!(remote.message(), "invalid digit found in string");
    assert!(remote.type_name().contains("ParseIntError"), "{remote:?}");

    let call = nonce();
    let result = g.call.slow(call, 60_000) & BG.timeout(Duration::from_secs(2));
    let error = result.outcome().unwrap_err();
    assert!(matches!(&error, Error::Timeout { sent: true, .. }), "{error:?}");
    says(&error, true, true);
    assert_eq!(world.count("run", call), 1);

    let call = nonce();
    let result = g.call.slow(call, 60_000) & BG;
    world.await_event("run", call);
    result.cancel();
    let error = result.outcome().unwrap_err();
    assert!(matches!(&error, Error::Cancelled { sent: true, .. }), "{error:?}");
    says(&error, true, false);

    // It ran, and its result is what does not fit.
    let call = nonce();
    let error = (g.call.grow(call, 70_000_000) & FG).unwrap_err();
    assert!(matches!(&error, Error::TooLarge { what: "result", .. }), "{error:?}");
    says(&error, true, false);
    assert_eq!(world.count("run", call), 1);
}

/// A callback that panics: `Error::Remote` saying so, with message and place; the node lives on.
#[test]
fn a_panic_is_one_failed_call() {
    let world = World::new();
    let callee = world.callee("callee");
    let g = world.caller();
    let pid = (g.call.pid() & FG).unwrap();
    for _ in 0..50 {
        let call = nonce();
        let error = (g.call.panics(call, "the sky fell") & FG).unwrap_err();
        says(&error, true, false);
        let Error::Remote(remote) = &error else { panic!("{error:?}") };
        assert!(remote.is_panic());
        assert_eq!((remote.node(), remote.message()), ("callee", "the sky fell"));
        assert!(remote.location().contains("tests/promises/roles.rs:"), "{remote:?}");
        assert!(error.to_string().contains("the sky fell"), "{error}");
        assert_eq!(world.count("run", call), 1);
    }
    assert_eq!((g.call.pid() & FG).unwrap(), pid);
    assert!(callee.said("the sky fell"), "the callee's own hook ran too");
}

/// A panic with a value that panics again when it is dropped is no different.
#[test]
fn a_panic_in_what_it_panics_with_is_one_failed_call() {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    for _ in 0..5 {
        for call in [g.call.panics_twice(nonce()), g.call.panics_twice_async(nonce())] {
            let error = (call & FG.timeout(PATIENCE)).unwrap_err();
            let Error::Remote(remote) = &error else { panic!("{error:?}") };
            assert!(
                remote.is_panic() && remote.location().contains("tests/promises/roles.rs:"),
                "{remote:?}"
            );
        }
    }
}

/// The caller's own node is never a candidate for its own call.
#[test]
fn a_node_never_calls_itself() {
    let world = World::new();
    let run = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let ran = run.clone();
    let lonely = world
        .builder("lonely")
        .callback("only_here", move || ran.fetch_add(1, std::sync::atomic::Ordering::SeqCst) as u64)
        .start()
        .unwrap();
    let error = (lonely.call.by_name::<u64, _>("only_here", ()) & FG).unwrap_err();
    assert!(matches!(&error, Error::NoCandidate { callback, .. } if callback == "only_here"), "{error:?}");
    let error = (lonely.call.by_name::<u64, _>("only_here", ()) & FG.on("lonely")).unwrap_err();
    assert!(matches!(&error, Error::NoCandidate { .. }), "{error:?}");
    let error = (lonely.call.by_name::<u64, _>("only_here", ()) & BROADCAST).unwrap_err();
    assert!(matches!(&error, Error::NoCandidate { .. }), "{error:?}");
    assert_eq!(run.load(std::sync::atomic::Ordering::SeqCst), 0);
    // Another node can.
    let other = world.caller();
    assert_eq!((other.call.by_name::<u64, _>("only_here", ()) & FG).unwrap(), 0);
}

/// Caller and callee disagree on types: `Error::SignatureMismatch` showing both, before anything is decoded. Here two
/// structs of one name, in two processes, have different fields.
#[test]
fn two_structs_of_one_name_are_told_apart() {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let call = nonce();
    let error = (g.call.place(call, &Point { x: 1, y: 2 }) & FG).unwrap_err();
    let Error::SignatureMismatch { callback, node, caller, callee } = &error else { panic!("{error:?}") };
    assert_eq!((callback.as_str(), node.as_str()), ("place", "callee"));
    assert!(caller.contains("Point") && callee.contains("Point"), "{error}");
    assert!(error.to_string().contains("other fields"), "{error}");
    says(&error, false, false);
    assert_eq!(world.count("run", call), 0);
}

/// Exactly one outcome: asked twice, a result is the same, and a cancellation that comes late changes nothing.
#[test]
fn an_outcome_stays_what_it_is() {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let calls: Vec<_> = (0..200).map(|_| nonce()).map(|call| (call, g.call.work(call) & BG)).collect();
    // Half of them race with a cancellation.
    for (_, result) in calls.iter().step_by(2) {
        result.cancel();
    }
    for (call, result) in &calls {
        let first = result.outcome();
        result.cancel();
        let second = result.outcome();
        match (&first, &second) {
            (Ok(a), Ok(b)) => assert_eq!((a, b), (call, call)),
            (Err(Error::Cancelled { .. }), Err(Error::Cancelled { .. })) => {}
            other => panic!("{other:?}"),
        }
    }
    let executions = world.executions();
    assert!(executions.values().all(|count| *count == 1), "{executions:?}");
}

/// An `async fn` that blocks is no harm to others, and the log says which it is: on the I/O thread, where it begins, and on the workers.
#[test]
fn an_async_callback_that_holds_its_thread_is_named_in_the_log() {
    let world = World::new();
    let callee = world.callee("callee");
    let g = world.caller();
    let told = || {
        let printed = callee.printed();
        printed.iter().filter(|line| line.contains("a callback held its thread")).cloned().collect::<Vec<_>>()
    };
    for millis in [5, 50] {
        (g.call.stubborn_async(nonce(), millis) & FG).unwrap();
    }
    (g.call.stubborn(nonce(), 1_500) & FG).unwrap();
    for times in 1..=2 {
        (g.call.stubborn_async(nonce(), 1_500) & FG).unwrap();
        until("it is told", || told().len() >= times);
    }
    // The first ones have shown that it is not quick, so these ran on the workers. A node that has only just started takes it for quick.
    let young = world.callee("young");
    (g.call.stubborn_async(nonce(), 1_500) & FG.on("young")).unwrap();
    young.line("a callback held its thread");
    for line in told() {
        assert!(line.contains("WARN") && line.contains("callback=\"stubborn_async\""), "{line}");
    }
    assert_eq!(told().len(), 2, "{:?}", told());
}
