//! Clocks on the wall that are wrong, and that jump. `faketime` makes them so for a process; where there is none, this says SKIP.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use daffi::{BG, FG, PERIOD, TaskState};

use crate::{
    roles::Callee,
    support::{AT_ONCE, Directory, Event, Outcome, Process, QUICK_HEARTBEAT, World, nonce, until},
};

const PERIOD_MS: u64 = 50;
const HOUR_MS: i64 = 3600 * 1000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// A file that says by how much the clocks are off of the processes that are started with it. What counts seconds since the start is
/// as it is.
struct Clock {
    file: PathBuf,
    prefix: [String; 5],
    _directory: Directory,
}

impl Clock {
    /// None where there is no faketime.
    fn new() -> Option<Self> {
        // It knows where its library is.
        let Ok(faked) = Command::new("faketime").args(["-m", "-f", "+0", "env"]).output() else {
            eprintln!("SKIP(there is no faketime here)");
            return None;
        };
        let faked = String::from_utf8(faked.stdout).unwrap();
        let Some(library) = faked.lines().find(|line| line.starts_with("LD_PRELOAD=")) else {
            eprintln!("SKIP(faketime cannot be used here)");
            return None;
        };
        let directory = Directory::new();
        let file = directory.0.join("offset");
        let prefix = [
            "env".to_owned(),
            library.to_owned(),
            format!("FAKETIME_TIMESTAMP_FILE={}", file.display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ];
        let clock = Self { file, prefix, _directory: directory };
        clock.jump("+0");
        Some(clock)
    }

    fn prefix(&self) -> Vec<&str> {
        self.prefix.iter().map(String::as_str).collect()
    }

    /// All its processes see another time from now on.
    fn jump(&self, offset: &str) {
        // In one step, so that nobody reads half of it.
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{offset}\n")).unwrap();
        fs::rename(&next, &self.file).unwrap();
    }
}

/// By how much the clock is off by which a node wrote this down just now.
fn off(event: &Event) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    event.at as i64 - now as i64
}

/// Waits until so many more calls of a task have run on each of these nodes, by clocks that are off by so many days or so.
#[track_caller]
fn await_ticks(world: &World, call: u64, count: usize, nodes: &[(&str, i64)]) {
    for (node, days) in nodes {
        let ticks = || {
            let events = world.events().into_iter();
            let ours = |event: &Event| event.what == "run" && event.nonce == call && event.node == *node;
            events.filter(ours).filter(|event| (off(event) - days * DAY_MS).abs() < HOUR_MS).count()
        };
        let before = ticks();
        until(&format!("{count} more ticks on {node}, {days} days off"), || ticks() >= before + count);
    }
}

/// T2: processes whose clocks are days apart. A deadline is as long for each of them, on the way there and further on.
#[test]
fn clocks_that_are_days_apart_change_nothing() {
    let clocks = [Clock::new(), Clock::new(), Clock::new()];
    let [Some(controller), Some(ahead), Some(behind)] = clocks else { return };
    controller.jump("+5h");
    ahead.jump("+1d");
    behind.jump("-1d");
    let world = World::with_command(&controller.prefix(), QUICK_HEARTBEAT);
    let nodes = [("ahead", &ahead), ("behind", &behind)].map(|(name, clock)| {
        let node = world.child_within(&clock.prefix(), "callee", name, &[]);
        node.line("ready");
        node
    });
    let g = world.caller();
    let call = nonce();
    let task = (g.call.tick(call) & PERIOD.period(Duration::from_millis(PERIOD_MS))).unwrap();
    await_ticks(&world, call, 5, &[("ahead", 1), ("behind", -1)]);
    for (node, other) in [("ahead", "behind"), ("behind", "ahead")] {
        let left = (g.call.time_left() & FG.timeout(Duration::from_secs(30)).on(node)).unwrap().unwrap();
        assert!((20_000..=30_000).contains(&left), "{node}: {left} ms");
        // One that is long enough, and one that is not, from one of them to the other one.
        let (long, short) = (nonce() + 1_000_000, nonce() + 2_000_000);
        let nested = |call, timeout, millis| g.call.nested(call, other, Some(timeout), millis) & BG.on(node);
        let calls = [nested(long, 60_000, 300), nested(short, 300, 60_000)];
        calls.iter().for_each(|call| call.outcome().unwrap());
        ended(&world, node, "nested-ok", 300);
        ended(&world, node, "nested-timeout", 300);
        world.await_event("done", long + 1);
        world.await_event("cancelled", short + 1);
    }
    task.cancel().unwrap();
    nobody_was_lost(&world, &nodes);
}

/// A nested call of this node ended so, and took as long as it had to by what nobody has changed.
#[track_caller]
fn ended(world: &World, node: &str, how: &str, millis: u64) {
    let events = world.events();
    let ended = events.iter().find(|event| event.what == how && event.node == node);
    let took = ended.unwrap_or_else(|| panic!("no {how} of {node}: {events:?}")).nonce;
    assert!((millis..millis + AT_ONCE.as_millis() as u64).contains(&took), "{how} of {node}: {took} ms");
}

#[track_caller]
fn nobody_was_lost(world: &World, nodes: &[Process]) {
    let controller = world.controller();
    assert!(!controller.said("lost") && !controller.said("heartbeat"), "{:?}", controller.printed());
    for node in nodes {
        assert!(!node.said("again") && !node.said("WARN"), "{:?}", node.printed());
    }
}

/// T1: the clocks of all processes jump by a day, ahead and back, while calls with deadlines are on their way, a task has a
/// period, and everybody looks after everybody else. Nobody notices.
#[test]
fn clocks_that_jump_by_a_day_change_nothing() {
    /// Longer than three heartbeats.
    const TICKS: usize = 40;
    let Some(clock) = Clock::new() else { return };
    let world = World::with_command(&clock.prefix(), QUICK_HEARTBEAT);
    let nodes = ["a", "b"].map(|name| {
        let node = world.child_within(&clock.prefix(), "callee", name, &[]);
        node.line("ready");
        node
    });
    let g = world.caller();
    let (call, begun) = (nonce(), Instant::now());
    let task = g.call.tick(call) & PERIOD.period(Duration::from_millis(PERIOD_MS)).on("b");
    let task = task.unwrap();
    await_ticks(&world, call, 5, &[("b", 0)]);
    // While these are on their way the clocks jump three times, by one day and by two: what is measured by them ends at once or never.
    let (long, short) = (nonce() + 1_000_000, nonce() + 2_000_000);
    let nested = |call, timeout, millis| g.call.nested(call, "b", Some(timeout), millis) & BG.on("a");
    let calls = [nested(long, 60_000, 4000), nested(short, 4000, 60_000)];
    world.await_event("run", long + 1);
    world.await_event("run", short + 1);
    for (offset, days) in [("+1d", 1), ("-1d", -1), ("+0", 0)] {
        clock.jump(offset);
        await_ticks(&world, call, TICKS, &[("b", days)]);
    }
    assert!(begun.elapsed() > Duration::from_secs(5), "the clocks jump while calls are on their way");
    calls.iter().for_each(|call| call.outcome().unwrap());
    ended(&world, "a", "nested-ok", 4000);
    ended(&world, "a", "nested-timeout", 4000);
    world.await_event("done", long + 1);
    world.await_event("cancelled", short + 1);
    let status = task.status().unwrap();
    let periods = begun.elapsed().as_millis() as u64 / PERIOD_MS;
    task.cancel().unwrap();
    assert_eq!((status.state, status.failures), (TaskState::Active, 0));
    println!("{} ticks and {} that were skipped in {periods} periods", status.runs, status.skipped);
    // Neither those of a day come at once, nor do they stop for one.
    let counted = status.runs + status.skipped;
    assert!((periods - 20..=periods).contains(&counted), "{status:?} in {periods} periods");
    nobody_was_lost(&world, &nodes);
}
