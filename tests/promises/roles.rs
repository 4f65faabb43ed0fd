//! What the children are, and the callbacks that they offer.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{self, Command},
    sync::OnceLock,
    thread,
    time::{Duration, Instant, SystemTime},
};

use daffi::{BG, Context, Error, FG, Global, Limits, NO_RETURN, PERIOD, callback, fetcher};

use crate::support::at;

const ROLE: &str = "DAFFI_TEST_ROLE";
const NAME: &str = "DAFFI_TEST_NAME";
const LOG: &str = "DAFFI_TEST_LOG";
const HEARTBEAT: &str = "DAFFI_TEST_HEARTBEAT_MS";
/// Where the controller is.
pub const ADDRESS: &str = "DAFFI_TEST_ADDRESS";
/// How many requests a callee holds at most.
pub const HELD_MAX: &str = "DAFFI_TEST_HELD_MAX";
/// How many there are to be, of whatever the role is about.
pub const COUNT: &str = "DAFFI_TEST_COUNT";
/// How long calls wait, in milliseconds.
pub const TIMEOUT: &str = "DAFFI_TEST_TIMEOUT_MS";
/// How long a callee lets its callbacks finish when it stops, in milliseconds.
pub const GRACE: &str = "DAFFI_TEST_GRACE_MS";
/// How long a prober waits between two calls, in milliseconds.
pub const PAUSE: &str = "DAFFI_TEST_PAUSE_MS";
/// Where plain TCP is echoed, for a prober to compare with.
pub const ECHO: &str = "DAFFI_TEST_ECHO";
/// For how long a node tries to connect when it starts, in milliseconds; for ever without it.
pub const CONNECT_TIMEOUT: &str = "DAFFI_TEST_CONNECT_TIMEOUT_MS";

/// This program again, in another role.
pub fn command(role: &str, name: &str, heartbeat: Duration, log: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "role", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env(NAME, name).env(LOG, log);
    command.env(HEARTBEAT, heartbeat.as_millis().to_string());
    command
}

/// Plays the role that the environment names; in the test's own process there is none.
pub fn run() {
    let Ok(role) = env::var(ROLE) else { return };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    // Nobody is left behind when the test ends, however it ends.
    thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        process::exit(0);
    });
    match role.as_str() {
        "callee" => callee(),
        "herd" => herd(),
        "pending" => pending(),
        #[cfg(target_os = "linux")]
        "delays" => crate::delays::run(),
        "prober" => prober(),
        "echo" => mirror(),
        "caller" => caller(),
        "scheduler" => scheduler(),
        "seed1" => seed1(),
        "seed2" => seed2(),
        other => panic!("no role {other}"),
    }
    process::exit(0);
}

/// Offers everything in this file, until it is killed or terminated.
fn callee() {
    match builder().start() {
        Ok(g) => {
            let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM]).unwrap();
            let stopped = g.clone();
            thread::spawn(move || {
                signals.forever().next();
                stopped.stop().unwrap();
                println!("stopped");
                process::exit(0);
            });
            println!("ready");
            g.join().unwrap();
            // Whoever stopped it ends the process.
            thread::park();
        }
        Err(error) => println!("failed to start: {error:?}"),
    }
}

/// As many nodes as it is told, each of which offers everything in this file.
fn herd() {
    let nodes: Vec<_> = (0..setting(COUNT))
        .map(|number| builder().process_name(format!("{}-{number}", name())).start().unwrap())
        .collect();
    println!("ready");
    nodes[0].join().unwrap();
}

/// Sends back what it is sent over plain TCP, at the address that it is told.
fn mirror() {
    let listener = TcpListener::bind((env::var(ECHO).unwrap(), 0)).unwrap();
    println!("echoes at {}", listener.local_addr().unwrap());
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut bytes = [0; 8];
        while stream.read_exact(&mut bytes).is_ok() {
            stream.write_all(&bytes).unwrap();
        }
    }
}

/// What plain TCP takes for the same, as often, said in the same way.
fn probe_echo(address: &str, pause: Duration) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    for number in 0u64.. {
        let (begun, mut bytes) = (Instant::now(), [0; 8]);
        stream.write_all(&number.to_le_bytes()).unwrap();
        stream.read_exact(&mut bytes).unwrap();
        println!("echo ok {}", begun.elapsed().as_millis());
        thread::sleep(pause);
    }
}

/// Calls `work` all the time, and says how each call ended and after how many milliseconds; with as many payloads of 1 MiB
/// on the same link as it is told, and next to a plain echo where there is one.
fn prober() {
    let g = builder().link_time_callbacks(false).start().unwrap();
    let large = if env::var(COUNT).is_ok() { setting(COUNT) } else { 0 };
    let pause = Duration::from_millis(if env::var(PAUSE).is_ok() { setting(PAUSE) } else { 20 });
    if let Ok(address) = env::var(ECHO) {
        thread::spawn(move || probe_echo(&address, pause));
    }
    let payload = vec![7; 1 << 20];
    let _on_the_way: Vec<_> =
        (0..large).map(|number| g.call.serial_answered(u64::MAX - number, &payload) & BG).collect();
    println!("ready");
    for nonce in 1.. {
        let begun = Instant::now();
        let what = match g.call.work(nonce) & FG {
            Ok(value) if value == nonce => "ok",
            Ok(_) => "wrong",
            Err(Error::ControllerLost { .. }) => "ControllerLost",
            Err(Error::RemoteStopped { .. }) => "RemoteStopped",
            Err(_) => "other",
        };
        println!("call {what} {}", begun.elapsed().as_millis());
        thread::sleep(pause);
    }
}

/// Has as many calls as it is told waiting for an answer that never comes, and says what that took.
fn pending() {
    let count = setting(COUNT);
    let timeout = Duration::from_millis(setting(TIMEOUT));
    // Two nodes, for the controller lets one have so many calls in flight and no more.
    let nodes = ["one", "two"]
        .map(|part| format!("{}-{part}", name()))
        .map(|name| builder().process_name(name).link_time_callbacks(false).start().unwrap());
    let held = || (resident_kib("self", "VmRSS"), fs::read_dir("/proc/self/task").unwrap().count());
    let round = || {
        let begun = Instant::now();
        let calls: Vec<_> = (0..count)
            .map(|nonce| {
                let call = nodes[nonce as usize % 2].call.never(nonce) & BG.timeout(timeout);
                (Instant::now(), call)
            })
            .collect();
        let sent = begun.elapsed();
        let most = held();
        let (mut expired, mut late) = (0, Duration::ZERO);
        for (made, call) in &calls {
            match call.get() {
                Err(Error::Timeout { .. }) => expired += 1,
                other => println!("unexpected: {other:?}"),
            }
            // They expire in the order in which they were made.
            late = late.max(made.elapsed().saturating_sub(timeout));
        }
        assert!(begun.elapsed() >= timeout, "none is early");
        (expired, late, sent, most)
    };
    // What is there once and for all, such as what bursts leave with the allocator: the second one lies otherwise than the first.
    round();
    round();
    let before = held();
    let (expired, late, sent, most) = round();
    let after = held();
    println!(
        "expired {expired} late_ms {} sent_ms {} kib {} {} {} threads {} {}",
        late.as_millis(),
        sent.as_millis(),
        before.0,
        most.0,
        after.0,
        before.1,
        after.1
    );
}

/// A number of a process's `/proc/…/status`, in KiB.
pub fn resident_kib(process: &str, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

/// Leaves calls in flight, of `slow` and `slow_async`, and waits to be killed.
fn caller() {
    let g = builder().link_time_callbacks(false).start().unwrap();
    let calls: Vec<_> = (1..=10)
        .flat_map(|nonce| [g.call.slow(nonce, 60_000) & BG, g.call.slow_async(100 + nonce, 60_000) & BG])
        .collect();
    println!("ready");
    let outcomes: Vec<_> = calls.iter().map(|call| call.get()).collect();
    let lost = outcomes.iter().filter(|outcome| matches!(outcome, Err(Error::ControllerLost { .. }))).count();
    println!("{lost} outcomes: ControllerLost");
    g.join().unwrap();
}

/// Schedules `tick` and waits to be killed.
fn scheduler() {
    let g = builder().link_time_callbacks(false).start().unwrap();
    let task = (g.call.tick(1) & PERIOD.period(Duration::from_millis(50))).unwrap();
    println!("ready with task {}", task.id().unwrap());
    g.join().unwrap();
}

fn builder() -> daffi::GlobalBuilder {
    let builder = at(&env::var(ADDRESS).unwrap().parse().unwrap()).process_name(name()).limits(limits());
    match env::var(CONNECT_TIMEOUT) {
        Ok(millis) => builder.connect_timeout(Duration::from_millis(millis.parse().unwrap())),
        Err(_) => builder,
    }
}

fn limits() -> Limits {
    let mut limits = Limits { heartbeat: Duration::from_millis(setting(HEARTBEAT)), ..Limits::default() };
    if env::var(HELD_MAX).is_ok() {
        limits.requests_held_max = setting(HELD_MAX) as usize;
    }
    if env::var(GRACE).is_ok() {
        limits.grace = Duration::from_millis(setting(GRACE));
    }
    limits
}

fn setting(name: &str) -> u64 {
    env::var(name).unwrap().parse().unwrap()
}

fn name() -> String {
    env::var(NAME).unwrap()
}

/// Writes down that this happened to a call.
fn note(what: &str, nonce: u64) {
    static FILE: OnceLock<(File, String)> = OnceLock::new();
    let (file, name) = FILE.get_or_init(|| {
        let file = OpenOptions::new().append(true).create(true).open(env::var_os(LOG).unwrap()).unwrap();
        (file, name())
    });
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    // In one write, so that the lines of several processes do not mix.
    let mut file = file;
    file.write_all(format!("{what} {nonce} {name} {at}\n").as_bytes()).unwrap();
}

// ---- the two programs of the README, with a place for the log and without long pauses

fn seed_node(name: &str) -> daffi::GlobalBuilder {
    // Where the test says so over TCP, and otherwise where everybody looks.
    let builder = match env::var(ADDRESS) {
        Ok(address) => at(&address.parse().unwrap()),
        Err(_) => Global::builder(),
    };
    builder.process_name(name).link_time_callbacks(false)
}

fn seed1() {
    let func3 = |a: i64, b: i64| {
        thread::sleep(Duration::from_millis(300));
        a + b
    };
    let g = seed_node("proc1").init_controller(true).callback("func3", func3).start().unwrap();
    println!("listening on {}", g.address());
    g.wait_process("proc2").unwrap();
    for _ in 0..3 {
        let delta = (g.call.func1(10, 3) & FG).unwrap();
        println!("Calculated delta = {delta}");
        (g.call.func2() & NO_RETURN).unwrap();
    }
    println!("done");
    g.join().unwrap();
}

fn seed2() {
    let run = async {
        let g = seed_node("proc2")
            .async_callback("func1", |a: i64, b: i64| async move { a - b })
            .callback("func2", || println!("Func2 has been triggered!"))
            .start_async()
            .await
            .unwrap();
        for _ in 0..3 {
            let future = g.call.func3(4, 6) & BG;
            println!("Calculated sum is {}", future.get_async().await.unwrap());
        }
        println!("done");
        g.join_async().await.unwrap();
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(run);
}

#[fetcher]
trait Proc2 {
    fn func1(a: i64, b: i64) -> i64;
    fn func2();
}

#[fetcher]
trait Proc1 {
    fn func3(a: i64, b: i64) -> i64;
}

// ---- callbacks, all of which write down when they begin

/// What a callee offers.
#[fetcher]
pub trait Callee {
    fn work(nonce: u64) -> u64;
    fn work_async(nonce: u64) -> u64;
    fn echo(nonce: u64, payload: &[u8]) -> Vec<u8>;
    fn grow(nonce: u64, bytes: u64) -> Vec<u8>;
    fn who() -> String;
    fn pid() -> u32;
    fn slow(nonce: u64, millis: u64) -> u64;
    fn slow_async(nonce: u64, millis: u64) -> u64;
    fn stubborn(nonce: u64, millis: u64) -> u64;
    fn stubborn_async(nonce: u64, millis: u64) -> u64;
    fn serial(nonce: u64, payload: &[u8]);
    fn serial_answered(nonce: u64, payload: &[u8]) -> u64;
    fn serial_async(nonce: u64, payload: &[u8]) -> u64;
    fn time_left() -> Option<u64>;
    fn nested(nonce: u64, node: &str, timeout: Option<u64>, millis: u64);
    fn ring(nonce: u64, left: u64, nodes: &[String]) -> u64;
    fn ring_async(nonce: u64, left: u64, nodes: &[String]) -> u64;
    fn fails(nonce: u64) -> u64;
    fn panics(nonce: u64, text: &str) -> u64;
    fn panics_twice(nonce: u64) -> u64;
    fn panics_twice_async(nonce: u64) -> u64;
    fn dies(nonce: u64) -> u64;
    fn overflows(nonce: u64) -> u64;
    fn hoards(nonce: u64);
    fn never(nonce: u64) -> u64;
    fn tick(nonce: u64);
    fn tick_slow(nonce: u64, millis: u64);
    fn varied(nonce: u64) -> String;
    fn place(nonce: u64, point: &Point) -> i64;
    fn method(nonce: u64) -> u64;
    /// The callee expects an argument less.
    #[fetcher(name = "work")]
    fn work_wrongly(nonce: u64, more: u64) -> u64;
}

#[callback]
fn work(nonce: u64) -> u64 {
    note("run", nonce);
    nonce
}

#[callback]
async fn work_async(nonce: u64) -> u64 {
    note("run", nonce);
    nonce
}

#[callback]
fn echo(nonce: u64, payload: Vec<u8>) -> Vec<u8> {
    note("run", nonce);
    payload
}

#[callback]
fn grow(nonce: u64, bytes: u64) -> Vec<u8> {
    note("run", nonce);
    vec![0; bytes as usize]
}

#[callback]
fn who() -> String {
    name()
}

#[callback]
fn pid() -> u32 {
    process::id()
}

/// Waits until its time is over or nobody waits for it, looking often.
#[callback]
fn slow(ctx: &Context, nonce: u64, millis: u64) -> u64 {
    note("run", nonce);
    let end = Instant::now() + Duration::from_millis(millis);
    while Instant::now() < end {
        if ctx.is_cancelled() {
            note("cancelled", nonce);
            return nonce;
        }
        thread::sleep(Duration::from_millis(2));
    }
    note("done", nonce);
    nonce
}

#[callback]
async fn slow_async(nonce: u64, millis: u64) -> u64 {
    struct Dropped(u64);
    impl Drop for Dropped {
        fn drop(&mut self) {
            note("dropped", self.0);
        }
    }
    note("run", nonce);
    let dropped = Dropped(nonce);
    tokio::time::sleep(Duration::from_millis(millis)).await;
    std::mem::forget(dropped);
    note("done", nonce);
    nonce
}

/// Never looks whether anybody waits.
#[callback]
fn stubborn(nonce: u64, millis: u64) -> u64 {
    note("run", nonce);
    thread::sleep(Duration::from_millis(millis));
    note("done", nonce);
    nonce
}

/// Wrongly blocks the thread that it is given.
#[callback]
async fn stubborn_async(nonce: u64, millis: u64) -> u64 {
    note("run", nonce);
    thread::sleep(Duration::from_millis(millis));
    note("done", nonce);
    nonce
}

#[callback(max_concurrency = 1)]
fn serial(nonce: u64, _payload: Vec<u8>) {
    note("run", nonce);
}

#[callback(max_concurrency = 1)]
fn serial_answered(nonce: u64, _payload: Vec<u8>) -> u64 {
    note("run", nonce);
    nonce
}

#[callback(max_concurrency = 1)]
async fn serial_async(nonce: u64, _payload: Vec<u8>) -> u64 {
    note("run", nonce);
    nonce
}

/// How many milliseconds are left of the deadline.
#[callback]
fn time_left(ctx: &Context) -> Option<u64> {
    ctx.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()).as_millis() as u64)
}

/// Calls `slow` on another node, and writes down how that ended and after how many milliseconds.
#[callback]
fn nested(ctx: &Context, nonce: u64, node: String, timeout: Option<u64>, millis: u64) {
    note("run", nonce);
    let begun = Instant::now();
    let call = ctx.call.slow(nonce + 1, millis).on(node);
    let result = match timeout {
        Some(timeout) => call.timeout(Duration::from_millis(timeout)).fg(),
        None => call.fg(),
    };
    let after = begun.elapsed().as_millis() as u64;
    match result {
        Ok(_) => note("nested-ok", after),
        Err(Error::Timeout { sent: true, .. }) => note("nested-timeout", after),
        Err(_) => note("nested-other", after),
    }
}

/// Calls the next of these nodes, as often as is left, and gives how many callbacks ran. Writes down why one was not called.
#[callback]
fn ring(ctx: &Context, nonce: u64, left: u64, mut nodes: Vec<String>) -> u64 {
    note("run", nonce);
    let Some(left) = left.checked_sub(1) else { return 1 };
    let next = nodes[0].clone();
    nodes.rotate_left(1);
    after_all(nonce, ctx.call.ring_async(nonce, left, &nodes).on(next).fg())
}

#[callback]
async fn ring_async(ctx: &Context, nonce: u64, left: u64, mut nodes: Vec<String>) -> u64 {
    note("run", nonce);
    let Some(left) = left.checked_sub(1) else { return 1 };
    let next = nodes[0].clone();
    nodes.rotate_left(1);
    after_all(nonce, ctx.call.ring(nonce, left, &nodes).on(next).await)
}

fn after_all(nonce: u64, others: daffi::Result<u64>) -> u64 {
    match others {
        Ok(others) => return 1 + others,
        Err(Error::HopLimit { .. }) => note("hop-limit", nonce),
        Err(Error::NoCandidate { .. }) => note("no-candidate", nonce),
        Err(_) => note("other-error", nonce),
    }
    1
}

#[callback]
fn fails(nonce: u64) -> Result<u64, std::num::ParseIntError> {
    note("run", nonce);
    "seven".parse()
}

#[callback]
fn panics(nonce: u64, text: String) -> u64 {
    note("run", nonce);
    panic!("{text}");
}

/// What it panics with panics again when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("once more");
    }
}

#[callback]
fn panics_twice(nonce: u64) -> u64 {
    note("run", nonce);
    std::panic::panic_any(Bomb)
}

#[callback]
async fn panics_twice_async(nonce: u64) -> u64 {
    note("run", nonce);
    std::panic::panic_any(Bomb)
}

/// Has done its work when its process dies.
#[callback]
fn dies(nonce: u64) -> u64 {
    note("run", nonce);
    process::abort()
}

/// Calls itself until there is no stack left.
#[callback]
fn overflows(nonce: u64) -> u64 {
    fn deeper(level: u64) -> u64 {
        let frame = std::hint::black_box([level; 64]);
        if frame[0] == u64::MAX { 0 } else { deeper(level + 1) + frame[1] }
    }
    note("run", nonce);
    deeper(nonce)
}

/// Takes memory until it is killed for it, or until it has a GiB.
#[callback]
fn hoards(nonce: u64) {
    note("run", nonce);
    let hoard: Vec<_> = (0..1024).map(|_| vec![1_u8; 1 << 20]).collect();
    note("done", hoard.len() as u64);
}

/// Never answers, and writes nothing down.
#[callback]
async fn never(_nonce: u64) -> u64 {
    std::future::pending().await
}

#[callback]
fn tick(nonce: u64) {
    note("run", nonce);
}

#[callback]
fn tick_slow(nonce: u64, millis: u64) {
    note("run", nonce);
    thread::sleep(Duration::from_millis(millis));
    note("done", nonce);
}

/// Does something else on each node: `bad` fails, `slow` and `doomed` take a minute, the others give their name.
#[callback]
fn varied(ctx: &Context, nonce: u64) -> Result<String, String> {
    match name().as_str() {
        "bad" => {
            note("run", nonce);
            Err("this node is bad".to_owned())
        }
        "slow" | "doomed" => {
            slow(ctx, nonce, 60_000);
            Err("it was cancelled".to_owned())
        }
        _ => {
            note("run", nonce);
            Ok(name())
        }
    }
}

/// As the caller has it; the callee has another one of the same name.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Point {
    pub x: i64,
    pub y: i64,
}

mod callees {
    use super::{callback, note};

    #[derive(serde::Serialize, serde::Deserialize)]
    pub(super) struct Point {
        x: i64,
        y: i64,
        z: Option<i64>,
    }

    #[callback]
    fn place(nonce: u64, point: Point) -> i64 {
        note("run", nonce);
        point.x + point.y + point.z.unwrap_or_default()
    }

    #[callback]
    pub(super) struct Unborn;

    #[callback]
    impl Unborn {
        pub fn method(&self, nonce: u64) -> u64 {
            note("run", nonce);
            nonce
        }
    }
}
