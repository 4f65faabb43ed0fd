//! Too few descriptors, too little of the CPU, too little memory, and strangers who want some of it.

use std::{
    fs,
    io::Write as _,
    net::TcpStream,
    os::unix::process::ExitStatusExt as _,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use daffi::{Address, BG, Error, FG, Limits, NO_RETURN};
use daffi_core::{
    frame::{Body, Frame, Hello, Request, VERSION},
    limits::FRAME_BYTES_MAX,
};

use crate::{
    cgroup::Group,
    crowds::percentile,
    roles::{self, Callee},
    support::{AT_ONCE, Outcome, PATIENCE, Process, Raw, World, nonce, until},
};

/// No descriptors are left for another connection: the controller goes on, does not spin, and lets others in as soon as
/// there are some again. Within so much time it spends at most this part of it while it has none, and lets somebody in afterwards.
fn without_descriptors(time: Duration, percent_max: u64, recovery_max: Duration) {
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
    // In hundredths of a second.
    let (before, begun) = (cpu_ticks(world.controller()), Instant::now());
    thread::sleep(time);
    let spent = cpu_ticks(world.controller()) - before;
    let percent = spent * 1000 / begun.elapsed().as_millis() as u64;
    println!("{percent} % of a CPU in {:?} without descriptors", begun.elapsed());
    assert!(percent <= percent_max, "{percent} % of a CPU in {:?}", begun.elapsed());
    drop(strangers);
    let begun = Instant::now();
    let late = world.builder("late").start().unwrap();
    let took = begun.elapsed();
    println!("a node was let in {took:?} after there were descriptors again");
    assert!(took <= recovery_max, "{took:?}");
    assert_eq!((late.call.who() & FG).unwrap(), "callee");
    drop(callee);
}

#[test]
fn a_controller_without_descriptors_goes_on() {
    // One that spins has all of a CPU, or half of it on a busy machine.
    without_descriptors(Duration::from_secs(1), 29, AT_ONCE);
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_a_controller_without`
#[test]
#[ignore = "its bounds hold in a release build, without other work"]
fn full_size_a_controller_without_descriptors_goes_on() {
    without_descriptors(Duration::from_secs(4), 4, Duration::from_secs(1));
}

/// How much CPU a process has had, in hundredths of a second.
fn cpu_ticks(process: &Process) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// So many strangers who send a byte now and then cost little each, and are closed when their time is over.
fn strangers_drip(count: usize, took_max: Duration) {
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
        (0..count).map(|_| TcpStream::connect((host.as_str(), *port)).unwrap()).collect();
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
    let more = most.saturating_sub(before);
    println!("{count} strangers who drip: {more} KiB more, all closed after {took:?}");
    assert!(strangers.is_empty(), "{} are there still after {took:?}", strangers.len());
    assert!(took < took_max, "{took:?}");
    assert!(more < 64 * count as u64, "{more} KiB");
}

#[test]
fn strangers_who_drip_cost_little() {
    strangers_drip(400, PATIENCE);
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_strangers`, with `ulimit -n 8192`.
#[test]
#[ignore = "takes 2,000 descriptors"]
fn full_size_strangers_who_drip_cost_little() {
    // Five seconds for a handshake, and what it takes to connect and to close so many.
    strangers_drip(1_000, Duration::from_secs(7));
}

/// Once it is let in, a frame takes half a minute at most, however many of its bytes come now and then.
/// `cargo test --release --test promises -- --ignored --nocapture full_size_a_node_that_drips`
#[test]
#[ignore = "it takes half a minute"]
fn full_size_a_node_that_drips_is_closed_after_half_a_minute() {
    let world = World::with(&["--heartbeat", "5m"]);
    let mut drips = Raw::join(&world.address, "drips", "f");
    let g = world.caller();
    let body = [7; 60_000];
    let frame = Frame::Request(Request::new(1, "g", Body::borrowed(&body))).to_bytes();
    let begun = Instant::now();
    let sent = frame.iter().take_while(|byte| {
        thread::sleep(Duration::from_millis(20));
        drips.write(&[**byte]).is_ok()
    });
    let sent = sent.count();
    let took = begun.elapsed();
    println!("a node that drips was closed after {took:?} and {sent} bytes");
    assert!((30.0..33.0).contains(&took.as_secs_f64()), "{took:?}");
    assert_eq!(g.processes().unwrap().len(), 1);
}

/// Strangers who say nothing: so many may be there, and the next is told why not, and let in once others have gone.
/// `cargo test --release --test promises -- --ignored --nocapture full_size_more_strangers`, with `ulimit -n 8192`.
#[test]
#[ignore = "takes 2,300 descriptors"]
fn full_size_more_strangers_than_may_knock_at_a_time() {
    let handshakes_max = Limits::default().handshakes_max;
    let world = World::over_tcp();
    let g = world.caller();
    let strangers: Vec<_> = (0..handshakes_max).map(|_| Raw::connect(&world.address)).collect();
    let mut refused: Vec<_> = (0..100).map(|_| Raw::connect(&world.address)).collect();
    for refused in &mut refused {
        let told = Bytes::from(refused.rest());
        let frame = Frame::decode(&told, 0, FRAME_BYTES_MAX).unwrap().expect("it is told").0;
        let Frame::Refuse(refuse) = frame else { panic!("{frame:?}") };
        assert!(refuse.reason.contains("unfinished handshakes"), "{}", refuse.reason);
    }
    assert_eq!(g.processes().unwrap().len(), 1, "who is in does not notice");
    drop(strangers);
    world.builder("late").connect_timeout(PATIENCE).start().unwrap();
}

/// A node that gets the twentieth part of a CPU and has more to do than that is slow, and nobody takes it for dead.
#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_starved_node_is_not_taken_for_dead() {
    const TIME: Duration = Duration::from_secs(300);
    let quota = Group::cpu_percent(5);
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

/// A callee that wants more memory than there is for it is killed by the kernel in the middle of its calls: each is over at once.
#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_callee_without_memory_is_a_killed_one() {
    let group = Group::memory_mib(64);
    let world = World::new();
    let mut callee = world.callee("callee");
    group.applies_to(&callee);
    let g = world.caller();
    let calls: Vec<_> =
        (0..1_000).map(|_| nonce()).map(|call| (call, g.call.slow_async(call, 60_000) & BG)).collect();
    until("all calls run", || world.executions().len() == calls.len());
    (g.call.hoards(nonce()) & NO_RETURN).unwrap();
    let status = callee.exit();
    let killed = Instant::now();
    // To a shell it is 128 + 9.
    assert_eq!(status.signal(), Some(9), "{status}");
    let mut over: Vec<_> = calls
        .iter()
        .map(|(call, result)| {
            let error = result.outcome().unwrap_err();
            assert!(matches!(&error, Error::RemoteStopped { .. }), "{call}: {error:?}");
            killed.elapsed()
        })
        .collect();
    let p99 = percentile(&mut over, 0.99);
    println!("p99 {p99:?} after the kernel has killed it");
    assert!(p99 <= Duration::from_millis(100), "{p99:?}");
    let executions = world.executions();
    assert!(executions.values().all(|count| *count == 1));
}
