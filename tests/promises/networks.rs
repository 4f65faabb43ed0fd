//! Real networks that lose packets: two namespaces of the kernel, and rules between them. By `bash tests/netns/run`.

use std::{
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    crowds::percentile,
    roles,
    support::{AT_ONCE, Process, World, eventually, until},
};

/// Three heartbeats that go unanswered, and what it takes to look.
const DETECTION: Duration = Duration::from_secs(15 + 3);

/// The callee is where the controller is, and that way stays open.
const LOCAL: &str = "oifname lo accept";

/// Two namespaces with a cable between them.
struct Network {
    /// Where the controller and a callee are.
    inside: String,
    /// Where the caller is.
    outside: String,
}

impl Network {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let network = Self { inside: format!("daffi-in-{number}"), outside: format!("daffi-out-{number}") };
        let Self { inside, outside } = &network;
        for line in [
            format!("ip netns add {inside}"),
            format!("ip netns add {outside}"),
            format!("ip -n {inside} link add v1 type veth peer name v2 netns {outside}"),
            format!("ip -n {inside} addr add 10.99.0.1/24 dev v1"),
            format!("ip -n {outside} addr add 10.99.0.2/24 dev v2"),
            format!("ip -n {inside} link set v1 up"),
            format!("ip -n {outside} link set v2 up"),
            format!("ip -n {inside} link set lo up"),
            format!("ip -n {outside} link set lo up"),
        ] {
            sh(&line);
        }
        network
    }

    /// A rule for the packets that leave a namespace.
    fn rule(&self, namespace: &str, policy: &str, rule: &str) {
        let nft = format!("ip netns exec {namespace} nft");
        sh(&format!("{nft} add table inet f"));
        sh(&format!(
            "{nft} 'add chain inet f out {{ type filter hook output priority 0 ; policy {policy} ; }}'"
        ));
        sh(&format!("{nft} add rule inet f out {rule}"));
    }

    fn both_ways(&self, policy: &str, rule: &str) {
        self.rule(&self.inside, policy, rule);
        self.rule(&self.outside, policy, rule);
    }

    fn heal(&self) {
        for namespace in [&self.inside, &self.outside] {
            sh(&format!("ip netns exec {namespace} nft flush ruleset"));
        }
    }

    fn world(&self) -> World {
        World::within(&["ip", "netns", "exec", &self.inside], "10.99.0.1")
    }

    /// A process that calls all the time, from outside.
    fn caller(&self, world: &World) -> Process {
        self.caller_with(world, 0)
    }

    /// The same, with so many payloads of 1 MiB on the same link.
    fn caller_with(&self, world: &World, payloads: usize) -> Process {
        let count = [(roles::COUNT, &*payloads.to_string())];
        let caller = world.child_within(&["ip", "netns", "exec", &self.outside], "prober", "outside", &count);
        caller.line("ready");
        caller
    }

    fn callee(&self, world: &World) -> Process {
        let callee = world.child_within(&["ip", "netns", "exec", &self.inside], "callee", "callee", &[]);
        callee.line("ready");
        callee
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.inside, &self.outside] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

fn sh(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What the caller was told from the line of this number on: what, and after how long.
fn told(caller: &Process, from: usize) -> Vec<(String, Duration)> {
    let printed = caller.printed();
    let calls = printed.iter().skip(from).filter_map(|line| line.strip_prefix("call "));
    calls
        .map(|line| {
            let (what, millis) = line.split_once(' ').unwrap();
            (what.to_owned(), Duration::from_millis(millis.parse().unwrap()))
        })
        .collect()
}

/// With so many of a hundred packets lost in each direction: gives what was told over this time.
fn loss(percent: u32, time: Duration) -> Vec<(String, Duration)> {
    let network = Network::new();
    let world = network.world();
    let _callee = network.callee(&world);
    let caller = network.caller(&world);
    network.both_ways("accept", &format!("numgen random mod 100 '<' {percent} drop"));
    let from = caller.printed().len();
    thread::sleep(time);
    let told = told(&caller, from);
    let mut times: Vec<_> = told.iter().map(|(_, time)| *time).collect();
    println!(
        "{percent} % lost each way: {} calls, p50 {:?}, p99 {:?}, most {:?}",
        times.len(),
        percentile(&mut times, 0.5),
        percentile(&mut times, 0.99),
        times.last().unwrap()
    );
    network.heal();
    well_again(&caller);
    assert!(world.executions().values().all(|count| *count == 1));
    told
}

/// Waits for a call that succeeds from now on; gives how long that took.
fn well_again(caller: &Process) -> Duration {
    let (begun, from) = (Instant::now(), caller.printed().len());
    until("calls succeed again", || told(caller, from).iter().any(|(what, _)| what == "ok"));
    begun.elapsed()
}

#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_tenth_lost_is_only_slower() {
    let told = loss(10, Duration::from_secs(20));
    assert!(told.len() > 50 && told.iter().all(|(what, _)| what == "ok"), "{told:?}");
}

#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_third_lost_has_clean_outcomes() {
    let told = loss(30, Duration::from_secs(20));
    let clean = |what: &str| matches!(what, "ok" | "ControllerLost");
    assert!(!told.is_empty() && told.iter().all(|(what, _)| clean(what)), "{told:?}");
}

/// Packets vanish without a word, in both directions or in one: both ends notice, and all is well after it.
fn partition(name: &str, cut: impl FnOnce(&Network)) {
    let network = Network::new();
    let world = network.world();
    let _callee = network.callee(&world);
    let caller = network.caller(&world);
    well_again(&caller);
    let (begun, from) = (Instant::now(), caller.printed().len());
    cut(&network);
    eventually("the caller notices", || {
        told(&caller, from).into_iter().find(|(what, _)| what == "ControllerLost")
    });
    let caller_took = begun.elapsed();
    world.controller().line("closing a connection node=outside");
    let controller_took = begun.elapsed();
    assert!(caller_took < DETECTION && controller_took < DETECTION, "{caller_took:?}, {controller_took:?}");
    network.heal();
    let back = well_again(&caller);
    println!(
        "{name}: the caller noticed after {caller_took:?}, the controller after {controller_took:?}; calls \
         succeeded {back:?} after it was healed"
    );
    assert!(world.executions().values().all(|count| *count == 1));
}

#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_partition_is_noticed_at_both_ends() {
    partition("partition", |network| network.both_ways("drop", LOCAL));
}

#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_one_way_partition_is_noticed_at_both_ends() {
    partition("nothing from the caller", |network| network.rule(&network.outside, "drop", LOCAL));
    partition("nothing from the controller", |network| network.rule(&network.inside, "drop", LOCAL));
}

#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_reset_is_noticed_at_once_and_mended_at_once() {
    let network = Network::new();
    let world = network.world();
    let _callee = network.callee(&world);
    let caller = network.caller(&world);
    well_again(&caller);
    let from = caller.printed().len();
    network.rule(&network.outside, "accept", "ip daddr 10.99.0.1 meta l4proto tcp reject with tcp reset");
    let begun = Instant::now();
    eventually("the caller notices", || {
        told(&caller, from).into_iter().find(|(what, _)| what == "ControllerLost")
    });
    let noticed = begun.elapsed();
    network.heal();
    let back = well_again(&caller);
    println!("reset: the caller noticed after {noticed:?}; calls succeeded {back:?} after it was healed");
    assert!(noticed < AT_ONCE && back < AT_ONCE, "{noticed:?}, {back:?}");
}

/// 16 MiB wait for a link of 1 Mbit/s, which takes more than two minutes for them: small calls pass them, and neither end takes the
/// other for dead.
#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_slow_link_full_of_large_payloads_carries_small_calls_too() {
    let network = Network::new();
    let world = network.world();
    let _callee = network.callee(&world);
    // The queue of the link itself is 25 KB.
    sh(&format!("tc -n {} qdisc add dev v2 root tbf rate 1mbit burst 4kb latency 200ms", network.outside));
    let caller = network.caller_with(&world, 16);
    thread::sleep(2 * DETECTION);
    let told = told(&caller, 0);
    let mut times: Vec<_> = told.iter().map(|(_, time)| *time).collect();
    println!(
        "1 Mbit/s with 16 MiB waiting: {} small calls, p50 {:?}, p99 {:?}, most {:?}",
        times.len(),
        percentile(&mut times, 0.5),
        percentile(&mut times, 0.99),
        times.last().unwrap()
    );
    assert!(told.iter().all(|(what, _)| what == "ok"), "{told:?}");
    assert!(!world.controller().said("closing a connection") && !world.controller().said("is lost"));
}
