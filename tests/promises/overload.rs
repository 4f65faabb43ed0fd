//! More than anybody can take: it is bounded, refused with an error, and over when it is over.
//!
//! What takes long at full size is `#[ignore]`d, and its command stands in docs/FAULTS.md.

use std::{
    fs,
    io::Write as _,
    net::TcpStream,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use daffi::{Address, BG, BROADCAST, Error, FG, Global, Limits};
use daffi_core::frame::{Frame, Hello, VERSION};

use crate::{
    crowds::percentile,
    roles::{self, Callee},
    support::{Outcome, Process, World, nonce, until},
};

/// As many nodes in a process of their own, named `herd-0` and so on.
fn herd(world: &World, count: usize) -> Process {
    let herd = world.child("herd", "herd", &[(roles::COUNT, &count.to_string())]);
    herd.line("ready");
    herd
}

/// The most memory that the controller has had, in MiB.
fn controller_peak_mib(world: &World) -> u64 {
    roles::resident_kib(&world.controller().id().to_string(), "VmHWM") / 1024
}

/// One consumer that does not read, and ninety-nine that do: these do not notice.
#[test]
fn one_frozen_consumer_among_a_hundred_holds_up_nobody() {
    let world = World::new();
    let _herd = herd(&world, 99);
    let frozen = world.callee("frozen");
    let g = world.caller();
    let round = || {
        let mut times: Vec<_> = (0..99 * 10)
            .map(|number| {
                let begun = Instant::now();
                let call = g.call.work(number).on(format!("herd-{}", number % 99));
                assert_eq!(call.fg().unwrap(), number);
                begun.elapsed()
            })
            .collect();
        (percentile(&mut times, 0.5), percentile(&mut times, 0.99))
    };
    round();
    let before = round();
    frozen.freeze();
    // More than it is allowed to have waiting.
    let offered: Vec<_> = (0..300).map(|_| g.call.echo(nonce(), &[7; 60_000]) & BG.on("frozen")).collect();
    until("what is too much is refused", || {
        offered.iter().any(|result| {
            matches!(result.get_timeout(Duration::ZERO), Err(Error::Overloaded { node }) if node == "frozen")
        })
    });
    let meanwhile = round();
    println!("p50 and p99 of calls to the others: {before:?} before, {meanwhile:?} with a frozen one");
    frozen.thaw();
    let told = offered.into_iter().map(|result| result.outcome());
    let (taken, refused): (Vec<_>, Vec<_>) = told.partition(Result::is_ok);
    assert!(!taken.is_empty() && !refused.is_empty());
    for error in refused {
        assert!(matches!(&error, Err(Error::Overloaded { .. })), "{error:?}");
    }
}

/// Frozen consumers that are offered so much in all: what waits for them is bounded for all of them together, and what
/// is too much is refused. Gives the controller's peak.
fn offered_to_the_frozen(world: &World, consumers: usize, bytes: u64) -> u64 {
    const PIECE: usize = 60_000;
    /// No more than the caller's own way to the controller takes.
    const AT_A_TIME: usize = 100;
    let herd = herd(world, consumers);
    let limits = Limits { heartbeat: world.heartbeat, calls_in_flight_max: 1 << 20, ..Limits::default() };
    let g = world.builder("caller").limits(limits).start().unwrap();
    herd.freeze();
    let pieces = bytes / PIECE as u64;
    let payload = vec![7; PIECE];
    let mut waiting = Vec::new();
    let mut refused = 0;
    for first in (0..pieces).step_by(AT_A_TIME) {
        let calls: Vec<_> = (first..(first + AT_A_TIME as u64).min(pieces))
            .map(|piece| {
                let consumer = format!("herd-{}", piece % consumers as u64);
                (piece, g.call.serial_answered(piece, &payload) & BG.on(consumer))
            })
            .collect();
        // The controller answers questions in their turn: what came before has been put somewhere, or refused.
        g.processes().unwrap();
        for (piece, call) in calls {
            match call.get_timeout(Duration::ZERO) {
                Err(Error::Overloaded { .. }) => refused += 1,
                Err(Error::Timeout { .. }) => waiting.push((piece, call)),
                other => panic!("{piece}: {other:?}"),
            }
        }
    }
    let peak = controller_peak_mib(world);
    println!(
        "{consumers} frozen consumers were offered {} MiB in {pieces} calls: {refused} refused, {} waiting, \
         the controller's peak is {peak} MiB",
        bytes >> 20,
        waiting.len()
    );
    assert!(refused > 0 && !waiting.is_empty());
    // What it took, it delivers, but for those that have read nothing for so long that they are lost.
    herd.thaw();
    for (piece, call) in waiting {
        match call.outcome() {
            Ok(value) => assert_eq!(value, piece),
            Err(error) => assert!(matches!(&error, Error::RemoteStopped { .. }), "{piece}: {error:?}"),
        }
    }
    until("they can be called again", || (g.call.work(nonce()) & FG.on("herd-0")).is_ok());
    peak
}

#[test]
fn frozen_consumers_are_bounded_together() {
    let world = World::with(&["--queue-max", "512KiB", "--queue-total-max", "4MiB", "--heartbeat", "1m"]);
    let peak = offered_to_the_frozen(&world, 20, 48 << 20);
    assert!(peak < 32, "{peak} MiB");
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_ten_gigabytes`
#[test]
#[ignore = "10 GB take their time"]
fn full_size_ten_gigabytes_for_a_hundred_frozen_consumers() {
    let world = World::with(&["--heartbeat", "1m"]);
    let peak = offered_to_the_frozen(&world, 100, 10_000_000_000);
    assert!(peak < 400, "{peak} MiB");
}

/// Calls that wait for an answer that never comes: each expires in time, and then nothing of them is left, neither at the
/// caller, nor at the callee, nor at the controller.
fn pending_calls_expire(count: usize, timeout: Duration) {
    let world = World::new();
    let held_max = (2 * count).to_string();
    // With several arenas, what a burst leaves free in each of them is more than what is looked for here.
    let callee = world.child("callee", "callee", &[(roles::HELD_MAX, &held_max), ("MALLOC_ARENA_MAX", "1")]);
    callee.line("ready");
    let kib = |process: &Process| roles::resident_kib(&process.id().to_string(), "VmRSS");
    let millis = timeout.as_millis().to_string();
    let settings = [(roles::COUNT, count.to_string()), (roles::TIMEOUT, millis)];
    let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let round = || {
        let mut caller = world.child("pending", "pending", &settings);
        assert!(caller.exit().success());
        let line = caller.line("expired ");
        assert!(!caller.said("unexpected"));
        (line, kib(world.controller()), kib(&callee))
    };
    let (_, controller_before, callee_before) = round();
    let (line, controller_after, callee_after) = round();
    println!(
        "{line}; KiB of the controller {controller_before}, then {controller_after}; of the callee \
         {callee_before}, then {callee_after}"
    );
    let words: Vec<&str> = line.split(' ').collect();
    let number = |after: &str, at: usize| -> u64 {
        let from = words.iter().position(|word| *word == after).unwrap();
        words[from + at].parse().unwrap()
    };
    assert_eq!(number("expired", 1), count as u64);
    // On a machine that has time, it is within 100 ms.
    assert!(number("late_ms", 1) < 3_000, "{line}");
    let (before, after) = (number("kib", 1), number("kib", 3));
    assert!(after < before + before / 10 + 8 * 1024, "{line}");
    assert_eq!(number("threads", 1), number("threads", 2), "{line}");
    for (before, after) in [(controller_before, controller_after), (callee_before, callee_after)] {
        assert!(after < before + before / 10 + 8 * 1024, "{before} KiB, then {after} KiB");
    }
}

#[test]
fn ten_thousand_pending_calls_expire() {
    pending_calls_expire(10_000, Duration::from_secs(2));
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_a_hundred_thousand`
#[test]
#[ignore = "a hundred thousand take their time without optimization"]
fn full_size_a_hundred_thousand_pending_calls_expire() {
    pending_calls_expire(100_000, Duration::from_secs(5));
}

/// No descriptors are left for another connection: the controller goes on, does not spin, and lets others in as soon as
/// there are some again.
#[test]
fn a_controller_without_descriptors_goes_on() {
    let shell = ["bash", "-c", "ulimit -n 64; exec \"$0\" \"$@\""];
    let world = World::within(&shell, "127.0.0.1");
    let Address::Tcp { host, port } = &world.address else { unreachable!() };
    let g = world.caller();
    let callee = world.callee("callee");
    let strangers: Vec<_> = (0..80).map(|_| TcpStream::connect((host.as_str(), *port)).unwrap()).collect();
    world.controller().line("cannot accept connections for now");
    // Who is in already does not notice.
    let call = nonce();
    assert_eq!((g.call.work(call) & FG).unwrap(), call);
    let (before, begun) = (cpu_ticks(world.controller()), Instant::now());
    while begun.elapsed() < Duration::from_secs(1) {
        thread::sleep(Duration::from_millis(50));
    }
    let spent = cpu_ticks(world.controller()) - before;
    println!("{spent} ticks of 10 ms in {:?} without descriptors", begun.elapsed());
    // One that spins has a hundred in a second.
    assert!(spent < 30, "{spent} ticks of 10 ms in {:?}", begun.elapsed());
    drop(strangers);
    let begun = Instant::now();
    let late = world.builder("late").start().unwrap();
    println!("a node was let in {:?} after there were descriptors again", begun.elapsed());
    assert_eq!((late.call.who() & FG).unwrap(), "callee");
    drop(callee);
}

/// How much CPU a process has had, in hundredths of a second.
fn cpu_ticks(process: &Process) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// A small call's time while 64 MiB travel on the same link, next to what it is when nothing else does.
#[test]
fn small_calls_pass_large_ones() {
    small_calls_pass_payloads(10);
}

#[test]
#[ignore = "what it measures says something in a release build alone"]
fn full_size_small_calls_pass_large_ones() {
    small_calls_pass_payloads(60);
}

fn small_calls_pass_payloads(mib: usize) {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let measure = |g: &Global, count: u64| {
        let mut times: Vec<_> = (0..count)
            .map(|_| {
                let begun = Instant::now();
                (g.call.work(nonce()) & FG).unwrap();
                begun.elapsed()
            })
            .collect();
        (percentile(&mut times, 0.5), percentile(&mut times, 0.99))
    };
    measure(&g, 200);
    let idle = measure(&g, 500);
    let large = vec![7; mib << 20];
    let flowing = AtomicUsize::new(0);
    let busy = thread::scope(|scope| {
        let (g, large, flowing) = (&g, &large, &flowing);
        scope.spawn(move || {
            for _ in 0..3 {
                assert!((g.call.echo(nonce(), large) & FG).unwrap() == *large);
                flowing.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut times = Vec::new();
        while flowing.load(Ordering::SeqCst) < 3 {
            let begun = Instant::now();
            (g.call.work(nonce()) & FG).unwrap();
            times.push(begun.elapsed());
        }
        assert!(times.len() > 10, "only {} small calls passed three large ones", times.len());
        (percentile(&mut times, 0.5), percentile(&mut times, 0.99))
    });
    println!("p50 and p99 of small calls: {idle:?} when idle, {busy:?} beside payloads of {mib} MiB");
}

/// However many large calls there are at once, no more of them is sent than fits the queue of a callee that does not read.
#[test]
fn large_calls_wait_for_a_callee_that_does_not_read_for_a_while() {
    let world = World::new();
    let callee = world.callee("callee");
    let _other = world.callee("other");
    let g = world.caller();
    callee.freeze();
    let payload = [7; 80 * 1024];
    let calls: Vec<_> = (0..200)
        .map(|_| nonce())
        .map(|call| (call, g.call.serial_answered(call, &payload) & BG.on("callee")))
        .collect();
    // Behind all that could leave.
    assert_eq!((g.call.echo(nonce(), &[1]) & FG.on("other")).unwrap(), [1]);
    callee.thaw();
    for (call, result) in calls {
        assert_eq!(result.get().unwrap(), call);
    }
}

/// A payload for many nodes is in the controller's memory once, and next to it there is little for each of them.
fn a_broadcast_is_kept_once(nodes: usize) {
    const PAYLOAD: u64 = 1 << 20;
    // So many nodes in one process may not get the CPU for a while.
    let mut world = World::with(&["--heartbeat", "1m"]).lasting(Duration::from_secs(300));
    world.heartbeat = Duration::from_secs(60);
    let _herd = herd(&world, nodes);
    let g = world.caller();
    let broadcast = |bytes: u64| {
        let results =
            (g.call.serial_answered(nonce(), &vec![7; bytes as usize]) & BROADCAST.return_result()).unwrap();
        assert_eq!(results.len(), nodes);
        let failed: Vec<_> = results.values().filter_map(|result| result.as_ref().err()).collect();
        assert!(failed.is_empty(), "{} of {nodes}, such as {}", failed.len(), failed[0]);
    };
    let peak_kib = || roles::resident_kib(&world.controller().id().to_string(), "VmHWM");
    // What connections keep once they were busy.
    broadcast(1_000);
    let before = peak_kib();
    broadcast(PAYLOAD);
    let more = peak_kib() - before;
    println!(
        "a broadcast of 1 MiB to {nodes} nodes took {more} KiB at the controller, which had {before} KiB"
    );
    // A copy for each would be a hundred times as much.
    assert!(more < 2 * PAYLOAD / 1024 + 10 * nodes as u64, "{more} KiB for {nodes} nodes");
}

#[test]
fn a_large_broadcast_is_kept_once() {
    a_broadcast_is_kept_once(100);
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_a_large_broadcast`
#[test]
#[ignore = "a thousand nodes take their time without optimization"]
fn full_size_a_large_broadcast_is_kept_once() {
    a_broadcast_is_kept_once(1_000);
}

/// Strangers who send a byte now and then cost little each, and are closed when their time is over.
#[test]
fn strangers_who_drip_cost_little() {
    const STRANGERS: usize = 400;
    let world = World::over_tcp();
    let Address::Tcp { host, port } = &world.address else { unreachable!() };
    let _callee = world.callee("callee");
    let g = world.caller();
    let resident_kib = || roles::resident_kib(&world.controller().id().to_string(), "VmRSS");
    let before = resident_kib();
    let name = "n".repeat(200);
    let (version_min, version_max) = (VERSION, VERSION);
    let hello =
        Hello { version_min, version_max, capabilities: 0, instance: 1, name: &name, credentials: &[] };
    let hello = Frame::Hello(hello).to_bytes();
    let mut strangers: Vec<_> =
        (0..STRANGERS).map(|_| TcpStream::connect((host.as_str(), *port)).unwrap()).collect();
    let (begun, mut most) = (Instant::now(), 0);
    for byte in &hello[..hello.len() - 1] {
        strangers.retain_mut(|stranger| stranger.write_all(&[*byte]).is_ok());
        most = most.max(resident_kib());
        if strangers.is_empty() {
            break;
        }
        assert_eq!((g.call.work(7) & FG).unwrap(), 7);
        thread::sleep(Duration::from_millis(50));
    }
    let took = begun.elapsed();
    println!("{STRANGERS} strangers who drip: {} KiB more, all closed after {took:?}", most - before);
    assert!(strangers.is_empty(), "{} are there still after {took:?}", strangers.len());
    assert!(most - before < 64 * STRANGERS as u64, "{} KiB", most - before);
}

/// A share of a CPU.
struct Quota(PathBuf);

impl Quota {
    /// So many percent of one.
    fn percent(percent: u64) -> Self {
        const PERIOD_US: u64 = 100_000;
        let second_version = fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap();
        let root = PathBuf::from(if second_version { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/cpu" });
        let group = root.join(format!("daffi-{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        let quota = percent * PERIOD_US / 100;
        if second_version {
            fs::write(group.join("cpu.max"), format!("{quota} {PERIOD_US}")).unwrap();
        } else {
            fs::write(group.join("cpu.cfs_period_us"), PERIOD_US.to_string()).unwrap();
            fs::write(group.join("cpu.cfs_quota_us"), quota.to_string()).unwrap();
        }
        Self(group)
    }

    fn applies_to(&self, process: &Process) {
        fs::write(self.0.join("cgroup.procs"), process.id().to_string()).unwrap();
    }

    /// How often somebody had to wait because of it.
    fn throttled(&self) -> u64 {
        let stat = fs::read_to_string(self.0.join("cpu.stat")).unwrap();
        stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")).unwrap().parse().unwrap()
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        // Its processes may take a moment to be gone.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A node that gets the twentieth part of a CPU and has more to do than that is slow, and nobody takes it for dead.
#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_starved_node_is_not_taken_for_dead() {
    const TIME: Duration = Duration::from_secs(300);
    let quota = Quota::percent(5);
    let world = World::new().lasting(TIME);
    let callee = world.callee("callee");
    let g = world.caller();
    quota.applies_to(&callee);
    let (end, mut answered, mut longest) = (Instant::now() + TIME, 0u64, Duration::ZERO);
    while Instant::now() < end {
        let begun = Instant::now();
        let calls: Vec<_> = (0..200).map(|_| g.call.work_async(nonce()) & BG).collect();
        for call in calls {
            call.outcome().unwrap();
        }
        answered += 200;
        longest = longest.max(begun.elapsed());
    }
    println!(
        "{answered} calls to a node with 5 % of a CPU within {TIME:?}, which was throttled {} times; the slowest 200 took {longest:?}",
        quota.throttled()
    );
    assert!(quota.throttled() > 0, "it had nothing to wait for");
    assert!(!world.controller().said("is lost") && !world.controller().said("closing a connection"));
}
