//! More than anybody can take: it is bounded, refused with an error, and over when it is over.
//!
//! What takes long at full size is `#[ignore]`d, and its command stands in docs/FAULTS.md.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use daffi::{BG, BROADCAST, Error, FG, Limits};

use crate::{
    cgroup::Group,
    crowds::percentile,
    roles::{self, Callee},
    support::{Outcome, PATIENCE, Process, Raw, World, nonce, until},
};

/// As many nodes in a process of their own, named `herd-0` and so on.
fn herd(world: &World, count: usize) -> Process {
    herd_of(world, "herd", count)
}

fn herd_of(world: &World, name: &str, count: usize) -> Process {
    let herd = world.child("herd", name, &[(roles::COUNT, &count.to_string())]);
    herd.line("ready");
    herd
}

/// The most memory that the controller has had, in MiB.
fn controller_peak_mib(world: &World) -> u64 {
    roles::resident_kib(&world.controller().id().to_string(), "VmHWM") / 1024
}

/// One consumer that does not read, and ninety-nine that do: gives the p99 of calls to these before and meanwhile, the best of so
/// many rounds, because other work on the machine only ever makes it worse.
fn one_frozen_among_a_hundred(rounds: usize) -> [Duration; 2] {
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
        percentile(&mut times, 0.99)
    };
    let best = || (0..rounds).map(|_| round()).min().unwrap();
    // To the one that does not read: each of these waits or is refused, all the time.
    let offer = || g.call.echo(nonce(), &[7; 60_000]) & BG.on("frozen");
    let is_refused = |result: &daffi::AsyncResult<_>| matches!(result.get_timeout(Duration::ZERO), Err(Error::Overloaded { node }) if node == "frozen");
    round();
    let before = best();
    frozen.freeze();
    // More than it is allowed to have waiting.
    let offered: Vec<_> = (0..300).map(|_| offer()).collect();
    until("what is too much is refused", || offered.iter().any(is_refused));
    let done = AtomicBool::new(false);
    let (meanwhile, refused) = thread::scope(|scope| {
        let goes_on = scope.spawn(|| {
            let mut refused = 0;
            while !done.load(Ordering::Relaxed) {
                match offer().get_timeout(Duration::from_secs(1)) {
                    Err(Error::Overloaded { .. }) => refused += 1,
                    Err(Error::Timeout { .. }) => {}
                    // It took so long that it is lost.
                    _ => break,
                }
                // So that it is the frozen one that could hold up others, and not this thread, which wants a processor as well.
                thread::sleep(Duration::from_millis(2));
            }
            refused
        });
        let meanwhile = best();
        done.store(true, Ordering::Relaxed);
        (meanwhile, goes_on.join().unwrap())
    });
    assert!(refused > 10, "{refused}");
    println!("p99 of calls to the others: {before:?} before, {meanwhile:?} with a frozen one");
    frozen.thaw();
    // What it took, it delivers, unless the rounds were so long that it was lost as a slow consumer.
    for result in offered {
        let told = result.outcome();
        assert!(
            matches!(&told, Ok(_) | Err(Error::Overloaded { .. } | Error::RemoteStopped { .. })),
            "{told:?}"
        );
    }
    [before, meanwhile]
}

#[test]
fn one_frozen_consumer_among_a_hundred_holds_up_nobody() {
    let [before, meanwhile] = one_frozen_among_a_hundred(2);
    assert!(meanwhile < 5 * before + Duration::from_millis(50), "{before:?}, then {meanwhile:?}");
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_one_frozen`
#[test]
#[ignore = "its bound holds in a release build, without other work"]
fn full_size_one_frozen_consumer_among_a_hundred_holds_up_nobody() {
    let [before, meanwhile] = one_frozen_among_a_hundred(10);
    assert!(meanwhile <= before * 3 / 2, "{before:?}, then {meanwhile:?}");
}

/// Frozen consumers that are offered so much in all: what waits for them is bounded for all of them together, and what
/// is too much is refused. Gives the controller's peak.
fn offered_to_the_frozen(world: &World, consumers: usize, bytes: u64) -> u64 {
    const PIECE: usize = 60_000;
    /// No more than the caller's own way to the controller takes.
    const AT_A_TIME: usize = 100;
    /// After ten seconds they would be slow consumers and lost. On a busy machine it takes longer to offer so much.
    const FROZEN_MAX: Duration = Duration::from_secs(6);
    let herd = herd(world, consumers);
    let limits = Limits { heartbeat: world.heartbeat, calls_in_flight_max: 1 << 20, ..Limits::default() };
    let g = world.builder("caller").limits(limits).start().unwrap();
    herd.freeze();
    let pieces = bytes / PIECE as u64;
    let payload = vec![7; PIECE];
    let (mut waiting, mut refused, mut kept) = (Vec::new(), 0, 0);
    // What it took, it delivers, but for those that have read nothing for so long that they are lost.
    let deliver = |waiting: &mut Vec<(u64, daffi::AsyncResult<u64>)>| {
        herd.thaw();
        for (piece, call) in waiting.drain(..) {
            match call.outcome() {
                Ok(value) => assert_eq!(value, piece),
                Err(error) => assert!(matches!(&error, Error::RemoteStopped { .. }), "{piece}: {error:?}"),
            }
        }
    };
    let mut frozen = Instant::now();
    for first in (0..pieces).step_by(AT_A_TIME) {
        if frozen.elapsed() > FROZEN_MAX {
            kept += waiting.len();
            deliver(&mut waiting);
            until("all are there", || g.processes().unwrap().len() == consumers + 1);
            herd.freeze();
            frozen = Instant::now();
        }
        let calls: Vec<_> = (first..(first + AT_A_TIME as u64).min(pieces))
            .map(|piece| {
                let consumer = format!("herd-{}", piece % consumers as u64);
                (piece, g.call.serial_answered(piece, &payload) & BG.on(consumer))
            })
            .collect();
        // The controller answers questions in their turn: what came before has been put somewhere, or refused. One that is
        // gone answers none, which is not to take the rest of the time that the test has.
        g.wait_process_timeout("caller", PATIENCE).unwrap();
        for (piece, call) in calls {
            match call.get_timeout(Duration::ZERO) {
                Err(Error::Overloaded { .. }) => refused += 1,
                Err(Error::Timeout { .. }) => waiting.push((piece, call)),
                other => panic!("{piece}: {other:?}"),
            }
        }
    }
    kept += waiting.len();
    let peak = controller_peak_mib(world);
    println!(
        "{consumers} frozen consumers were offered {} MiB in {pieces} calls: {refused} refused, {kept} kept, \
         the controller's peak is {peak} MiB",
        bytes >> 20
    );
    assert!(refused > 0 && kept > 0);
    deliver(&mut waiting);
    until("they can be called again", || (g.call.work(nonce()) & FG.on("herd-0")).is_ok());
    peak
}

#[test]
fn frozen_consumers_are_bounded_together() {
    // So little that a few hundred calls fill it, which do not take ten seconds on any machine; all of them might have 64 MiB if only each had a limit.
    let world = World::with(&["--queue-max", "8MiB", "--queue-total-max", "8MiB", "--heartbeat", "1m"]);
    let peak = offered_to_the_frozen(&world, 8, 96 << 20);
    assert!(peak < 40, "{peak} MiB");
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_ten_gigabytes`
#[test]
#[ignore = "10 GB take their time"]
fn full_size_ten_gigabytes_for_a_hundred_frozen_consumers() {
    let world = World::with(&["--heartbeat", "1m"]).lasting(Duration::from_secs(600));
    let peak = offered_to_the_frozen(&world, 100, 10_000_000_000);
    assert!(peak <= 370, "{peak} MiB");
}

/// The same where the kernel kills a controller that takes more.
#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn frozen_consumers_are_bounded_in_a_control_group() {
    let group = Group::memory_mib(400);
    let world = World::with(&["--heartbeat", "1m"]).lasting(Duration::from_secs(600));
    group.applies_to(world.controller());
    offered_to_the_frozen(&world, 100, 10_000_000_000);
}

/// Calls that wait for an answer that never comes: each expires in time, and then nothing of them is left, neither at the
/// caller, nor at the callee, nor at the controller.
fn pending_calls_expire(count: usize, timeout: Duration, late_ms_max: u64, more_kib_max: u64) {
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
    // What the first bursts leave with the allocator is there once and for all.
    let warm = round();
    let (_, controller_before, callee_before) = round();
    let (line, controller_after, callee_after) = round();
    println!("KiB of the controller and the callee after the first: {} and {}", warm.1, warm.2);
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
    assert!(number("late_ms", 1) <= late_ms_max, "{line}");
    let (before, after) = (number("kib", 1), number("kib", 3));
    assert!(after < before + before / 10 + more_kib_max, "{line}");
    // A thread that stands by may have been begun meanwhile, because the system held up another one, for each of two nodes.
    assert!(number("threads", 2) <= number("threads", 1) + 2, "{line}");
    for (before, after) in [(controller_before, controller_after), (callee_before, callee_after)] {
        assert!(after < before + before / 10 + more_kib_max, "{before} KiB, then {after} KiB");
    }
}

#[test]
fn ten_thousand_pending_calls_expire() {
    pending_calls_expire(10_000, Duration::from_secs(2), 3_000, 8 * 1024);
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_a_hundred_thousand`
#[test]
#[ignore = "a hundred thousand take their time without optimization"]
fn full_size_a_hundred_thousand_pending_calls_expire() {
    // A few bytes for each call beyond what the allocator keeps.
    pending_calls_expire(100_000, Duration::from_secs(5), 100, 1024);
}

/// A small call's time next to payloads of so many bytes on the same link, and what it is when nothing else travels: p50 and p99.
fn small_calls_beside(bytes: usize) -> [[Duration; 2]; 2] {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let timed = || {
        let begun = Instant::now();
        (g.call.work(nonce()) & FG).unwrap();
        begun.elapsed()
    };
    let p50_and_p99 = |times: &mut Vec<Duration>| [0.5, 0.99].map(|share| percentile(times, share));
    (0..200).for_each(|_| _ = timed());
    let idle = p50_and_p99(&mut (0..1_000).map(|_| timed()).collect());
    let large = vec![7; bytes];
    let flowing = AtomicUsize::new(0);
    let mut times = thread::scope(|scope| {
        let (g, large, flowing) = (&g, &large, &flowing);
        scope.spawn(move || {
            for _ in 0..3 {
                assert!((g.call.echo(nonce(), large) & FG).unwrap() == *large);
                flowing.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut times = Vec::new();
        while flowing.load(Ordering::SeqCst) < 3 {
            times.push(timed());
        }
        times
    });
    assert!(times.len() > 10, "only {} small calls passed three large ones", times.len());
    let busy = p50_and_p99(&mut times);
    println!("p50 and p99 of small calls: {idle:?} when idle, {busy:?} beside {bytes} bytes");
    [idle, busy]
}

#[test]
fn small_calls_pass_large_ones() {
    let [idle, busy] = small_calls_beside(10 << 20);
    assert!(busy[0] < 20 * idle[0] + Duration::from_millis(20), "{idle:?}, then {busy:?}");
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_small_calls`
#[test]
#[ignore = "its bound holds in a release build, without other work"]
fn full_size_small_calls_pass_large_ones() {
    // With the number of the call and the length, 64 MiB: the largest payload that there is by default.
    let [idle, busy] = small_calls_beside((64 << 20) - 16);
    assert!(busy[1] <= 5 * idle[1], "{idle:?}, then {busy:?}");
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
    // A process has only so many mappings, and each thread takes some.
    let _herds = ["herd", "other"].map(|name| herd_of(&world, name, nodes / 2));
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
    let more = peak_kib().saturating_sub(before);
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

/// A node that takes calls and reads nothing: the controller keeps as much for it as it may by default, then refuses, and after ten
/// seconds in which it takes nothing ends its connection. `cargo test --release --test promises -- --ignored --nocapture full_size_a_slow`
#[test]
#[ignore = "it takes ten seconds"]
fn full_size_a_slow_consumer_is_closed_after_ten_seconds() {
    const PIECE: usize = 60_000;
    let world = World::with(&["--heartbeat", "5m"]);
    let mut slow = Raw::join(&world.address, "slow", "takes");
    let g = world.caller();
    let payload = vec![7u8; PIECE];
    let call = || g.call.by_name::<(), _>("takes", (&payload,)) & BG.on("slow");
    let (begun, mut kept) = (Instant::now(), Vec::new());
    let refused = loop {
        let call = call();
        // The controller answers questions in their turn.
        g.processes().unwrap();
        match call.get_timeout(Duration::ZERO) {
            Err(Error::Overloaded { node }) => break node,
            Err(Error::Timeout { .. }) => kept.push(call),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused, "slow");
    let (mib, took) = ((kept.len() * PIECE) as f64 / f64::from(1 << 20), begun.elapsed());
    for call in kept {
        let error = call.get_timeout(Duration::from_secs(20)).unwrap_err();
        assert!(matches!(&error, Error::RemoteStopped { node } if node == "slow"), "{error:?}");
    }
    let closed = begun.elapsed();
    println!(
        "{mib:.1} MiB were kept for a node that does not read, after {took:?}; it was closed after {closed:?}"
    );
    // What the sockets have is beyond it.
    assert!((8.0..13.0).contains(&mib), "{mib}");
    assert!((10.0..13.0).contains(&closed.as_secs_f64()), "{closed:?}");
    world.controller().line("slow consumer");
    assert!(slow.reads_to_the_end());
}
