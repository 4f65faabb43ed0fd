//! PERIOD: calls that the controller makes.

use std::{
    thread,
    time::{Duration, Instant, SystemTime},
};

use daffi::{Error, FG, PERIOD, TaskState};

use crate::{
    roles::Callee,
    support::{AT_ONCE, Event, World, eventually, nonce, until},
};

const PERIOD_MS: u64 = 50;

fn millis(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

/// What has run of a task, by anybody or by one node.
fn ticks(world: &World, call: u64, node: Option<&str>) -> Vec<Event> {
    let ours = |event: &Event| {
        event.what == "run" && event.nonce == call && node.is_none_or(|node| event.node == node)
    };
    world.events().into_iter().filter(ours).collect()
}

#[track_caller]
fn await_ticks(world: &World, call: u64, node: Option<&str>, more: usize) {
    let before = ticks(world, call, node).len();
    until(&format!("{more} more ticks on {node:?}"), || ticks(world, call, node).len() >= before + more);
}

/// It lives in the controller: it outlives the caller and the callee, and picks a candidate at each tick.
#[test]
fn a_task_outlives_its_caller_and_its_callees() {
    let world = World::new();
    let mut a = world.callee("a");
    let mut scheduler = world.child("scheduler", "scheduler", &[]);
    scheduler.line("ready with task");
    await_ticks(&world, 1, Some("a"), 3);
    scheduler.kill();
    await_ticks(&world, 1, Some("a"), 3);
    let mut b = world.callee("b");
    await_ticks(&world, 1, Some("b"), 1);
    let before = ticks(&world, 1, None).len();
    await_ticks(&world, 1, Some("a"), 5);
    await_ticks(&world, 1, Some("b"), 5);
    // Each tick runs on one node: there are as many of them as periods have passed, more or less, and not twice as many.
    let both = ticks(&world, 1, None).split_off(before);
    let at = || both.iter().map(|tick| tick.at);
    let times = (at().max().unwrap() - at().min().unwrap()) / PERIOD_MS + 1;
    assert!(2 * both.len() as u64 <= 3 * times, "{} ticks in {times} periods", both.len());
    a.kill();
    await_ticks(&world, 1, Some("b"), 3);
    b.kill();
    let _c = world.callee("c");
    await_ticks(&world, 1, Some("c"), 3);
}

/// A tick whose predecessor still runs is skipped and counted.
#[test]
fn a_tick_whose_predecessor_runs_is_skipped() {
    let world = World::new();
    let _callees = ["a", "b"].map(|name| world.callee(name));
    let g = world.caller();
    let call = nonce();
    let period = PERIOD.period(Duration::from_millis(PERIOD_MS));
    let task = (g.call.tick_slow(call, 230) & period).unwrap();
    until("it has run four times", || world.count("done", call) >= 4);
    let status = task.status().unwrap();
    task.cancel().unwrap();
    let done = |count: usize| world.count("done", call) >= count;
    until("what ran is done", || done(ticks(&world, call, None).len()));
    assert!(status.runs >= 4 && status.skipped >= 3 * (status.runs - 1), "{status:?}");
    assert!(status.skipped <= 10 * status.runs, "{status:?}");
    assert_eq!((status.state, status.failures), (TaskState::Active, 0));
    let events: Vec<_> = world.events().into_iter().map(|event| event.what).collect();
    let overlaps = events.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert_eq!(overlaps, 0, "never two at a time, on whichever node: {events:?}");
}

/// `at_time`: each time fires once, not before it, and near it.
#[test]
fn times_fire_once_each_and_in_time() {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let now = SystemTime::now();
    let times = [300, 500, 500, 900].map(|after| now + Duration::from_millis(after));
    let call = nonce();
    let task = (g.call.tick(call) & PERIOD.at_time(times)).unwrap();
    let single = nonce();
    let one = (g.call.tick(single) & PERIOD.at_time(times[1])).unwrap();
    until("every time has come", || {
        ticks(&world, call, None).len() >= times.len() && !ticks(&world, single, None).is_empty()
    });
    eventually("the tasks are finished", || {
        let finished = |task: &daffi::ScheduledTask| task.status().unwrap().state == TaskState::Finished;
        (finished(&task) && finished(&one)).then_some(())
    });
    let fired: Vec<_> = ticks(&world, call, None).iter().map(|event| event.at).collect();
    assert_eq!(fired.len(), times.len(), "{fired:?}");
    for (at, time) in fired.iter().zip(times.map(millis)) {
        assert!(
            *at >= time && *at < time + AT_ONCE.as_millis() as u64,
            "{fired:?} for {:?}",
            times.map(millis)
        );
    }
    assert_eq!(ticks(&world, single, None).len(), 1);
    let status = task.status().unwrap();
    assert_eq!((status.runs, status.failures, status.skipped, status.next_in), (4, 0, 0, None));
}

/// After a cancellation is acknowledged nothing runs any more.
#[test]
fn nothing_runs_after_a_cancellation() {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let call = nonce();
    let period = PERIOD.period(Duration::from_millis(5));
    let task = (g.call.tick(call) & period).unwrap();
    await_ticks(&world, call, None, 10);
    task.cancel().unwrap();
    // What was sent before it is there before this.
    (g.call.work(nonce()) & FG).unwrap();
    // A tick that was on its way may still be starting.
    let runs = task.status().unwrap().runs as usize;
    until("what was sent has run", || ticks(&world, call, None).len() >= runs);
    let later = nonce();
    let marker = SystemTime::now() + Duration::from_millis(300);
    let _marker = (g.call.tick(later) & PERIOD.at_time(marker)).unwrap();
    await_ticks(&world, later, None, 1);
    assert_eq!(ticks(&world, call, None).len(), runs);
    let status = task.status().unwrap();
    assert_eq!((status.state, status.runs as usize), (TaskState::Cancelled, runs));
}

/// Fixed rate: however late single ticks are, the lateness does not add up.
#[test]
fn a_period_does_not_drift() {
    const TICKS: usize = 200;
    const PERIOD_MS: i64 = 20;
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let call = nonce();
    let task = (g.call.tick(call) & PERIOD.period(Duration::from_millis(PERIOD_MS as u64))).unwrap();
    until("200 ticks", || ticks(&world, call, None).len() >= TICKS);
    task.cancel().unwrap();
    let skipped = task.status().unwrap().skipped as i64;
    let at: Vec<_> = ticks(&world, call, None)[..TICKS].iter().map(|event| event.at as i64).collect();
    // The most punctual of ten, at either end.
    let raster = |ticks: std::ops::Range<usize>, before: i64| {
        ticks.map(|tick| at[tick] - (tick as i64 + before) * PERIOD_MS).min().unwrap()
    };
    let drift = raster(TICKS - 10..TICKS, skipped) - raster(0..10, 0);
    // Those that were skipped may have been so after the end.
    // A lateness of 1 ms that adds up would be 200.
    let off = 5 * PERIOD_MS;
    assert!((-off - skipped * PERIOD_MS..off).contains(&drift), "{drift} ms, {skipped} skipped: {at:?}");
}

/// Fixed rate, tick by tick: each is within 20 ms of its time, and none is missing.
///
/// `cargo test --release --test promises -- --ignored --nocapture full_size_a_minute`
#[test]
#[ignore = "takes a minute without other work"]
fn full_size_a_minute_of_ticks_every_ten_milliseconds() {
    const TICKS: usize = 6_000;
    const PERIOD_MS: u64 = 10;
    let world = World::new().lasting(Duration::from_secs(60));
    let _callee = world.callee("callee");
    let g = world.caller();
    let call = nonce();
    let begun = millis(SystemTime::now());
    let task = (g.call.tick(call) & PERIOD.period(Duration::from_millis(PERIOD_MS))).unwrap();
    thread::sleep(Duration::from_millis(TICKS as u64 * PERIOD_MS));
    until("6000 ticks", || ticks(&world, call, None).len() >= TICKS);
    task.cancel().unwrap();
    let status = task.status().unwrap();
    let late: Vec<_> = (ticks(&world, call, None)[..TICKS].iter().zip(1..))
        .map(|(event, number)| event.at as i64 - (begun + number * PERIOD_MS) as i64)
        .collect();
    println!("{TICKS} ticks, {:?} to {:?} ms late", late.iter().min().unwrap(), late.iter().max().unwrap());
    assert_eq!((status.skipped, status.failures), (0, 0), "{status:?}");
    assert!(late.iter().all(|late| (-20..=20).contains(late)), "{late:?}");
}

/// A controller that was frozen for a while makes one call for all that it has missed, and counts the others.
#[test]
fn what_a_frozen_controller_missed_becomes_one_call() {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let call = nonce();
    let task = (g.call.tick(call) & PERIOD.period(Duration::from_millis(PERIOD_MS))).unwrap();
    await_ticks(&world, call, None, 3);
    let before = task.status().unwrap();
    world.controller().freeze();
    let frozen = Instant::now();
    thread::sleep(Duration::from_secs(2));
    let frozen = frozen.elapsed().as_millis() as u64;
    world.controller().thaw();
    await_ticks(&world, call, None, 3);
    let after = task.status().unwrap();
    task.cancel().unwrap();
    // It may have been frozen and thawed anywhere in a period, and one call is made.
    let missed = frozen / PERIOD_MS;
    assert!(after.skipped - before.skipped >= missed - 2, "{before:?}, then {after:?} after {frozen} ms");
    assert_eq!((after.state, after.failures), (TaskState::Active, 0));
}

/// Times in the past, an empty list, a zero period: a clear error. (Both kinds do not compile.)
#[test]
fn times_that_cannot_come_are_refused() {
    let world = World::new();
    let g = world.caller();
    let past = SystemTime::now() - Duration::from_secs(60);
    let future = SystemTime::now() + Duration::from_secs(60);
    let none: [SystemTime; 0] = [];
    for (refused, word) in [
        (g.call.tick(1) & PERIOD.period(Duration::ZERO), "period"),
        (g.call.tick(1) & PERIOD.at_time(past), "past"),
        (g.call.tick(1) & PERIOD.at_time([future, past]), "past"),
        (g.call.tick(1) & PERIOD.at_time(none), "no times"),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(&error, Error::InvalidTime { .. }), "{error:?}");
        assert!(error.to_string().contains(word), "{error}");
        assert!(!error.may_have_executed() && !error.is_retryable());
    }
}

/// A task ends with its controller: the handle says so, and does not get at a task of the next one.
#[test]
fn a_task_ends_with_its_controller() {
    let mut world = World::new();
    let callee = world.callee("callee");
    let g = world.caller();
    let hour = PERIOD.period(Duration::from_secs(3600));
    let old = (g.call.tick(1) & hour).unwrap();
    let id = old.id().unwrap();
    world.kill_controller();
    world.start_controller();
    callee.line("connected to the controller again");
    let new = (g.call.tick(2) & hour).unwrap();
    assert_ne!(new.id().unwrap(), id);
    let error = old.cancel().unwrap_err();
    assert!(matches!(&error, Error::NoTask { id: said } if *said == id), "{error:?}");
    assert_eq!(new.status().unwrap().state, TaskState::Active);
}
