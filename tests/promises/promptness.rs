//! What is to be over at once, in numbers: the gate is patient with them, and in a release build without other work they are these.
//!
//! `cargo test --release --test promises -- --ignored --nocapture full_size`

use std::{
    fmt::Debug,
    time::{Duration, Instant, SystemTime},
};

use daffi::{BG, Error, FG};

use crate::{
    crowds::percentile,
    roles::{Callee, HELD_MAX},
    support::{AT_ONCE, World, nonce, until},
};

const ROUNDS: usize = 200;
const TEN_MS: Duration = Duration::from_millis(10);

/// Does something many times, and checks that 99 % of them are over in time.
#[track_caller]
fn is_over_within<T: Debug>(
    bound: Duration,
    what: &str,
    mut run: impl FnMut() -> daffi::Result<T>,
    error: fn(&Error) -> bool,
) {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            let outcome = run();
            let took = begun.elapsed();
            assert!(matches!(&outcome, Err(told) if error(told)), "{what}: {outcome:?}");
            took
        })
        .collect();
    let (p50, p99) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    println!("{what}: p50 {p50:?}, p99 {p99:?}");
    assert!(p99 <= bound, "{what}: {p99:?}");
}

/// A callee that has as much to do as it may refuses the next call.
fn a_busy_callee_refuses(bound: Duration) {
    let world = World::new();
    let callee = world.child("callee", "callee", &[(HELD_MAX, "3")]);
    callee.line("ready");
    let g = world.caller();
    let running: Vec<_> = (0..3).map(|_| g.call.slow_async(nonce(), 60_000) & BG).collect();
    until("all calls run", || world.executions().len() == running.len());
    let refused = |error: &Error| matches!(error, Error::Overloaded { node } if node == "callee");
    is_over_within(bound, "refused by a busy callee", || g.call.work(nonce()) & FG, refused);
    assert_eq!(world.executions().len(), running.len());
}

#[test]
fn a_busy_callee_refuses_at_once() {
    a_busy_callee_refuses(AT_ONCE);
}

#[test]
#[ignore = "its bound holds in a release build, without other work"]
fn full_size_a_busy_callee_refuses_within_ten_milliseconds() {
    a_busy_callee_refuses(TEN_MS);
}

/// A call that cannot be made: of another signature, or to a name that nobody offers.
fn what_does_not_fit_is_refused(bound: Duration) {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let mismatch = |error: &Error| matches!(error, Error::SignatureMismatch { .. });
    is_over_within(bound, "another signature", || g.call.work_wrongly(nonce(), 1) & FG, mismatch);
    let nobody = |error: &Error| matches!(error, Error::NoCandidate { .. });
    is_over_within(bound, "nobody offers it", || g.call.by_name::<u64, _>("wok", (nonce(),)) & FG, nobody);
    assert!(world.executions().is_empty());
}

#[test]
fn what_does_not_fit_is_refused_at_once() {
    what_does_not_fit_is_refused(AT_ONCE);
}

#[test]
#[ignore = "its bound holds in a release build, without other work"]
fn full_size_what_does_not_fit_is_refused_within_ten_milliseconds() {
    what_does_not_fit_is_refused(TEN_MS);
}

/// A call after the stop.
fn after_the_stop_calls_fail(bound: Duration) {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    g.stop().unwrap();
    let stopped = |error: &Error| matches!(error, Error::Stopped { .. });
    is_over_within(bound, "FG after the stop", || g.call.work(nonce()) & FG, stopped);
    is_over_within(bound, "BG after the stop", || (g.call.work(nonce()) & BG).get(), stopped);
    is_over_within(bound, "a question after the stop", || g.processes(), stopped);
}

#[test]
fn after_the_stop_calls_fail_at_once() {
    after_the_stop_calls_fail(AT_ONCE);
}

#[test]
#[ignore = "its bound holds in a release build, without other work"]
fn full_size_after_the_stop_calls_fail_within_ten_milliseconds() {
    after_the_stop_calls_fail(TEN_MS);
}

/// The future of an awaited call is dropped: how long it takes until the callback is dropped, too, beyond what a call takes.
fn a_dropped_call_is_cancelled(bound: Duration) {
    let millis = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut late: Vec<_> = (0..50)
        .map(|_| {
            let call = nonce();
            let begun = Instant::now();
            (g.call.work(nonce()) & FG).unwrap();
            let round_trip = begun.elapsed();
            let dropped = runtime.block_on(async {
                let mut pending = Box::pin(g.call.slow_async(call, 60_000).into_future());
                while world.count("run", call) == 0 {
                    let early = tokio::time::timeout(Duration::from_millis(2), &mut pending).await;
                    assert!(early.is_err(), "it ended with {early:?}");
                }
                let dropped = SystemTime::now();
                drop(pending);
                dropped
            });
            world.await_event("dropped", call);
            let told =
                world.events().into_iter().find(|event| (&*event.what, event.nonce) == ("dropped", call));
            Duration::from_millis(told.unwrap().at.saturating_sub(millis(dropped))).saturating_sub(round_trip)
        })
        .collect();
    let p99 = percentile(&mut late, 0.99);
    println!("a dropped call is cancelled a round trip and {p99:?} later");
    assert!(p99 <= bound, "{p99:?}");
}

#[test]
fn a_dropped_call_is_cancelled_at_once() {
    a_dropped_call_is_cancelled(AT_ONCE);
}

#[test]
#[ignore = "its bound holds in a release build, without other work"]
fn full_size_a_dropped_call_is_cancelled_within_fifty_milliseconds() {
    a_dropped_call_is_cancelled(Duration::from_millis(50));
}
