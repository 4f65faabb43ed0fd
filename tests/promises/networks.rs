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
    support::{Process, World, eventually, until},
};

/// Three heartbeats that go unanswered.
const DETECTION: Duration = Duration::from_secs(15);
/// What is over at once in a release build without other work, for which these are.
const WITHIN_A_SECOND: Duration = Duration::from_secs(1);

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

    /// Where no heartbeat finds the dead before something else does.
    fn patient_world(&self) -> World {
        World::within_with(&["ip", "netns", "exec", &self.inside], "10.99.0.1", Duration::from_secs(60))
    }

    /// A process in one of the namespaces, which is ready.
    fn child(&self, world: &World, namespace: &str, role: &str, env: &[(&str, &str)]) -> Process {
        let name = if namespace == self.inside { role } else { "outside" };
        let child = world.child_within(&["ip", "netns", "exec", namespace], role, name, env);
        child.line("ready");
        child
    }

    /// A process that calls all the time, from outside.
    fn caller(&self, world: &World) -> Process {
        self.child(world, &self.outside, "prober", &[])
    }

    fn callee(&self, world: &World) -> Process {
        self.child(world, &self.inside, "callee", &[])
    }

    /// What leaves the caller is held back for 50 to 150 ms, so that its order changes, for as long as the process lives.
    fn delay(&self, world: &World) -> Process {
        let delays = self.child(world, &self.outside, "delays", &[]);
        sh(&format!("ip netns exec {} iptables -A OUTPUT -o v2 -j NFQUEUE --queue-num 0", self.outside));
        delays
    }

    /// The cable is out while the machine in this namespace is switched off, and in again afterwards: nobody was told.
    fn reboot(&self, namespace: &str, switch_off: impl FnOnce()) {
        self.both_ways("drop", LOCAL);
        switch_off();
        // What the kernel would still say of connections is gone with them.
        sh(&format!("ip netns exec {namespace} ss -K -t -a 'src 10.99.0.0/24' >/dev/null"));
        self.heal();
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
    told_by(caller, "call ", from)
}

/// The same of calls, or of echoes.
fn told_by(caller: &Process, of: &str, from: usize) -> Vec<(String, Duration)> {
    let printed = caller.printed();
    let lines = printed.iter().skip(from).filter_map(|line| line.strip_prefix(of));
    lines
        .map(|line| {
            let (what, millis) = line.split_once(' ').unwrap();
            (what.to_owned(), Duration::from_millis(millis.parse().unwrap()))
        })
        .collect()
}

/// With so many of a hundred packets lost in each direction over this time: gives what was told, and the p99 of calls and of a plain
/// echo over TCP next to them.
fn loss(percent: u32, time: Duration, delayed: bool) -> (Vec<(String, Duration)>, [Duration; 2]) {
    let network = Network::new();
    let world = network.world().lasting(time);
    let _callee = network.callee(&world);
    let within = ["ip", "netns", "exec", &network.inside];
    let echo = world.child_within(&within, "echo", "echo", &[(roles::ECHO, "10.99.0.1")]);
    let line = echo.line("echoes at ");
    let (_, address) = line.split_once("echoes at ").unwrap();
    let caller = network.child(&world, &network.outside, "prober", &[(roles::ECHO, address)]);
    let delays = delayed.then(|| network.delay(&world));
    network.both_ways("accept", &format!("numgen random mod 100 '<' {percent} drop"));
    let from = caller.printed().len();
    thread::sleep(time);
    let told = told(&caller, from);
    let p99s = [("calls", told.clone()), ("echoes", told_by(&caller, "echo ", from))].map(|(of, told)| {
        let mut times: Vec<_> = told.into_iter().map(|(_, time)| time).collect();
        let [p50, p99, most] = [0.5, 0.99, 1.0].map(|share| percentile(&mut times, share));
        println!(
            "{percent} % lost each way, delayed: {delayed}, {time:?}: {} {of}, p50 {p50:?}, p99 {p99:?}, most {most:?}",
            times.len()
        );
        p99
    });
    // Nobody was taken for dead, unless calls ended with that.
    if told.iter().all(|(what, _)| what == "ok") {
        assert!(!world.controller().said("is lost") && !world.controller().said("closing a connection"));
        assert!(!caller.said("giving up the connection"));
    }
    network.heal();
    drop(delays);
    well_again(&caller);
    assert!(world.executions().values().all(|count| *count == 1));
    (told, p99s)
}

/// For how long packets are lost: 60 s, or as many as `DAFFI_LOSS_SECONDS` says.
fn loss_time() -> Duration {
    let seconds = std::env::var("DAFFI_LOSS_SECONDS").map(|seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(60))
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
    a_tenth_lost(false);
}

#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_tenth_lost_and_the_rest_late_and_in_another_order_is_only_slower() {
    a_tenth_lost(true);
}

/// Each call succeeds, and 99 of a hundred within a second, or where TCP itself takes longer, in little more than that.
fn a_tenth_lost(delayed: bool) {
    let (told, [calls, echoes]) = loss(10, loss_time(), delayed);
    assert!(told.len() > 50 && told.iter().all(|(what, _)| what == "ok"), "{told:?}");
    assert!(calls < WITHIN_A_SECOND || calls < echoes * 3 / 2, "{calls:?}, and {echoes:?} for an echo");
}

#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_third_lost_has_clean_outcomes() {
    for delayed in [false, true] {
        let (told, _) = loss(30, loss_time() / 2, delayed);
        let clean = |what: &str| matches!(what, "ok" | "ControllerLost");
        assert!(!told.is_empty() && told.iter().all(|(what, _)| clean(what)), "{told:?}");
    }
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
    assert!(noticed < WITHIN_A_SECOND && back < WITHIN_A_SECOND, "{noticed:?}, {back:?}");
}

/// What the caller is told next, and after how long.
fn next_told(caller: &Process) -> (String, Duration) {
    let from = caller.printed().len();
    eventually("a call ends", || told(caller, from).into_iter().next())
}

/// Within which a write into a connection that the other end does not know any more shows that it is gone.
const AFTER_A_WRITE: Duration = Duration::from_millis(200);
/// Long enough for a reboot between two calls.
const PAUSE: &[(&str, &str)] = &[(roles::PAUSE, "4000")];

/// The controller's machine is switched off and on without a word: the next call finds out at once.
#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_rebooted_controller_is_noticed_with_the_next_write() {
    let network = Network::new();
    let mut world = network.patient_world();
    let _callee = network.callee(&world);
    let caller = network.child(&world, &network.outside, "prober", PAUSE);
    assert_eq!(next_told(&caller).0, "ok");
    network.reboot(&network.inside, || world.kill_controller());
    assert!(!caller.said("lost the controller"), "nobody has told it");
    let (what, took) = next_told(&caller);
    println!("a rebooted controller was noticed {took:?} after a write");
    assert_eq!(what, "ControllerLost");
    assert!(took < AFTER_A_WRITE, "{took:?}");
    world.start_controller();
    well_again(&caller);
}

/// So it is with the machine of a callee, of which the controller finds out.
#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_rebooted_callee_is_noticed_with_the_next_write() {
    let network = Network::new();
    let world = network.patient_world();
    let mut callee = network.child(&world, &network.outside, "callee", &[]);
    let caller = network.child(&world, &network.inside, "prober", PAUSE);
    assert_eq!(next_told(&caller).0, "ok");
    network.reboot(&network.outside, || callee.kill());
    assert!(!world.controller().said("is lost"), "nobody has told it");
    let (what, took) = next_told(&caller);
    println!("a rebooted callee was noticed {took:?} after a write");
    assert_eq!(what, "RemoteStopped");
    assert!(took < AFTER_A_WRITE, "{took:?}");
}

/// Without calls, pings find out.
#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn a_rebooted_controller_is_noticed_without_calls() {
    let network = Network::new();
    let mut world = network.world();
    let caller = network.child(&world, &network.outside, "callee", &[]);
    let begun = Instant::now();
    network.reboot(&network.inside, || world.kill_controller());
    caller.line("lost the controller");
    let took = begun.elapsed();
    println!("a rebooted controller was noticed after {took:?} without calls");
    assert!(took < DETECTION, "{took:?}");
}

/// Nobody says that a connection cannot be made, and nothing comes back: an attempt takes five seconds, and the start as long as it
/// may; then it fails with the address and the reason. Who has time waits until there is a way.
#[test]
#[ignore = "needs root: bash tests/netns/run"]
fn attempts_that_nobody_answers_end_by_themselves() {
    let network = Network::new();
    let world = network.world();
    network.rule(&network.outside, "accept", "tcp flags syn drop");
    let start = |timeout: &[(&str, &str)]| {
        world.child_within(&["ip", "netns", "exec", &network.outside], "callee", "outside", timeout)
    };
    let begun = Instant::now();
    let hurried = start(&[(roles::CONNECT_TIMEOUT, "12000")]);
    let patient = start(&[]);
    let line = patient.line("waiting for the controller");
    let attempt = begun.elapsed();
    assert!(line.contains("timed out") && line.contains(&world.address.to_string()), "{line}");
    let line = hurried.line("failed to start");
    let took = begun.elapsed();
    println!("an attempt ended after {attempt:?}, the start after {took:?}: {line}");
    assert!((4_900..6_000).contains(&attempt.as_millis()), "{attempt:?}");
    assert!((12_000..15_000).contains(&took.as_millis()), "{took:?}");
    assert!(
        line.contains("Unreachable") && line.contains("10.99.0.1") && line.contains("timed out"),
        "{line}"
    );
    network.heal();
    patient.line("ready");
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
    let caller = network.child(&world, &network.outside, "prober", &[(roles::COUNT, "16")]);
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
