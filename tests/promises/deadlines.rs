//! Deadlines, and what becomes of a callback when its time is over.

use std::time::{Duration, Instant};

use daffi::{BG, Error, FG};

use crate::{
    roles::Callee,
    support::{AT_ONCE, Outcome, World, nonce, until},
};

const SHORT: Duration = Duration::from_millis(300);
/// Within which a callback has begun, also on a busy machine.
const BEGUN: Duration = Duration::from_secs(2);

/// Default deadline: none; `default_timeout(d)` on the builder; a call's own timeout goes before it.
#[test]
fn a_call_has_the_deadline_that_it_is_given_or_none() {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    assert_eq!((g.call.time_left() & FG).unwrap(), None);
    let left = (g.call.time_left() & FG.timeout(Duration::from_secs(30))).unwrap().unwrap();
    assert!((20_000..=30_000).contains(&left), "{left}");

    let impatient = world.builder("impatient").default_timeout(SHORT).start().unwrap();
    let begun = Instant::now();
    let error = (impatient.call.slow(nonce(), 60_000) & FG).unwrap_err();
    let waited = begun.elapsed();
    assert!(matches!(&error, Error::Timeout { after, sent: true, .. } if *after == SHORT), "{error:?}");
    assert!(waited >= SHORT && waited < SHORT + AT_ONCE, "{waited:?}");
    let left = (impatient.call.time_left() & FG.timeout(Duration::from_secs(30))).unwrap().unwrap();
    assert!(left > 20_000, "{left}");
    let error = (impatient.call.slow(nonce(), 60_000) & BG).outcome().unwrap_err();
    assert!(matches!(&error, Error::Timeout { after, .. } if *after == SHORT), "{error:?}");
}

/// Nested calls made through `ctx.call` inherit what is left of the deadline: a longer timeout of their own does not
/// help, a shorter one counts.
#[test]
fn a_nested_call_ends_with_the_call_that_it_is_nested_in() {
    let world = World::new();
    let _outer = world.callee("outer");
    let _inner = world.callee("inner");
    let g = world.caller();
    // What is left of a deadline when the callback begins depends on the machine; a timeout of its own begins there.
    for (own, expected) in [(None, 0..5_000), (Some(30_000), 0..5_000), (Some(400), 400..5_000)] {
        let call = nonce() + 1_000_000;
        let before = world.events().len();
        let nested = g.call.nested(call, "inner", own, 60_000).on("outer").timeout(BEGUN);
        let outcome = nested.fg();
        if own == Some(400) {
            outcome.unwrap();
        } else {
            assert!(matches!(outcome, Err(Error::Timeout { sent: true, .. })), "{outcome:?}");
        }
        until("the nested call has ended", || {
            world.events()[before..].iter().any(|event| event.what.starts_with("nested-"))
        });
        let events = world.events();
        let ended = events[before..].iter().find(|event| event.what.starts_with("nested-")).unwrap();
        assert_eq!(ended.what, "nested-timeout", "{events:?}");
        assert!(expected.contains(&ended.nonce), "{expected:?}: {ended:?}");
        // And the innermost one is told as well.
        world.await_event("cancelled", call + 1);
    }
}

/// What a callback gives back because it saw that its time is over is nobody's result, however close the race.
#[test]
fn a_result_that_comes_after_the_deadline_is_none() {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    for _ in 0..30 {
        let calls: Vec<_> = (0..4)
            .map(|_| nonce())
            .map(|call| (call, g.call.slow(call, 60_000) & BG.timeout(Duration::from_millis(20))))
            .collect();
        for (call, result) in calls {
            let error = result.outcome().unwrap_err();
            assert!(error.is_timeout(), "{error:?}");
            // The callee may say that it came too late to begin; then it has not.
            assert!(error.may_have_executed() || world.count("run", call) == 0, "{error:?}");
        }
    }
}

/// `timeout` counts from the sending, after `eta`.
#[test]
fn a_timeout_begins_with_the_sending() {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let begun = Instant::now();
    let quick = g.call.time_left() & BG.eta(BEGUN + SHORT).timeout(BEGUN);
    let slow = g.call.slow(nonce(), 60_000) & BG.eta(SHORT).timeout(SHORT);
    let left = quick.outcome().unwrap().unwrap();
    assert!(begun.elapsed() >= BEGUN + SHORT);
    assert!(left <= BEGUN.as_millis() as u64, "{left}");
    let error = slow.outcome().unwrap_err();
    assert!(begun.elapsed() >= 2 * SHORT);
    assert!(matches!(&error, Error::Timeout { after, sent: true, .. } if *after == SHORT), "{error:?}");
    // Cancelled before its time it leaves no trace.
    let call = nonce();
    let never = g.call.work(call) & BG.eta(SHORT);
    never.cancel();
    assert!(matches!(never.outcome(), Err(Error::Cancelled { sent: false, .. })));
    (g.call.work(nonce()) & BG.eta(2 * SHORT)).outcome().unwrap();
    assert_eq!(world.count("run", call), 0);
}

/// The deadline travels: an expired request is not started, even by a callee that was frozen while it expired.
#[test]
fn an_expired_request_is_not_started() {
    for _ in 0..5 {
        let world = World::new();
        let callee = world.callee("callee");
        let g = world.caller();
        (g.call.work(nonce()) & FG).unwrap();
        (g.call.work_async(nonce()) & FG).unwrap();
        callee.freeze();
        let calls: Vec<_> = (0..20)
            .flat_map(|_| {
                let fast = BG.timeout(Duration::from_millis(50));
                let (a, b, c, d) = (nonce(), nonce(), nonce(), nonce());
                [
                    (a, g.call.work(a) & fast),
                    (b, g.call.work_async(b) & fast),
                    (c, g.call.serial_answered(c, &[]) & fast),
                    (d, g.call.slow(d, 1) & fast),
                ]
            })
            .collect();
        for (_, call) in &calls {
            let error = call.outcome().unwrap_err();
            assert!(matches!(&error, Error::Timeout { sent: true, .. }), "{error:?}");
        }
        // The cancellations have been sent when what follows them has come to the controller and back.
        g.processes().unwrap();
        callee.thaw();
        let fence = nonce();
        (g.call.serial_answered(fence, &[]) & FG).unwrap();
        (g.call.work(nonce()) & FG).unwrap();
        let executions = world.executions();
        let started: Vec<_> = calls.iter().filter(|(call, _)| executions.contains_key(call)).collect();
        assert!(started.is_empty(), "{} of {} were started", started.len(), calls.len());
    }
}

/// A timed-out or cancelled or dropped result cancels the callee: an `async fn` is dropped at its next await, and
/// `ctx.is_cancelled()` for an `fn`.
#[test]
fn whoever_stops_waiting_cancels_the_callback() {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();

    let (a, b) = (nonce(), nonce());
    let timed_out =
        [g.call.slow(a, 60_000) & BG.timeout(BEGUN), g.call.slow_async(b, 60_000) & BG.timeout(BEGUN)];
    for call in timed_out {
        assert!(call.outcome().unwrap_err().is_timeout());
    }
    world.await_event("cancelled", a);
    world.await_event("dropped", b);

    let (a, b) = (nonce(), nonce());
    let cancelled = [g.call.slow(a, 60_000) & BG, g.call.slow_async(b, 60_000) & BG];
    world.await_event("run", a);
    world.await_event("run", b);
    for call in cancelled {
        call.cancel();
        let error = call.outcome().unwrap_err();
        assert!(matches!(&error, Error::Cancelled { sent: true, .. }), "{error:?}");
    }
    world.await_event("cancelled", a);
    world.await_event("dropped", b);

    let (a, b) = (nonce(), nonce());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let both = async { tokio::join!(g.call.slow(a, 60_000).into_future(), g.call.slow_async(b, 60_000)) };
        let _ = tokio::time::timeout(BEGUN, both).await.unwrap_err();
    });
    world.await_event("cancelled", a);
    world.await_event("dropped", b);

    // But a dropped `AsyncResult` lets the job go on.
    let (a, b) = (nonce(), nonce());
    drop((g.call.slow(a, 300) & BG, g.call.slow_async(b, 300) & BG));
    world.await_event("done", a);
    world.await_event("done", b);
}
