//! Processes, signals, files and patience.

use std::{
    collections::{BTreeSet, HashMap},
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use daffi::{Address, AsyncResult, Error, Global, GlobalBuilder, Limits};
use daffi_core::{
    frame::{Frame, Hello, Offer, Offers, Register, VERSION},
    limits::FRAME_BYTES_MAX,
};

use crate::roles;

/// How long anything may take before it counts as never.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// What "at once" means on a busy machine: far below the 15 s that it takes the default heartbeat to notice.
pub const AT_ONCE: Duration = Duration::from_secs(3);
/// A heartbeat that finds the dead in a second and a half, and takes nobody for dead whom a busy machine holds up for less.
pub const QUICK_HEARTBEAT: Duration = Duration::from_millis(500);

/// Waits until `look` gives something, and says what it waited for if it never does.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "this did not come to pass within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(3));
    }
}

/// As [`eventually`], for something that is so or not.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, || holds().then_some(()));
}

/// The outcome of a call that comes sooner or later, whatever it is.
pub trait Outcome<R> {
    /// As `get`, with patience.
    fn outcome(&self) -> daffi::Result<R>;
}

impl<R: serde::de::DeserializeOwned + 'static> Outcome<R> for AsyncResult<R> {
    #[track_caller]
    fn outcome(&self) -> daffi::Result<R> {
        let outcome = self.get_timeout(PATIENCE);
        if let Err(Error::Timeout { after: PATIENCE, .. }) = &outcome {
            panic!("no outcome within {PATIENCE:?}: {self:?}");
        }
        outcome
    }
}

/// Ends the program if a test takes longer than any should, since a test that waits for ever says nothing.
struct Watchdog(#[allow(dead_code, reason = "it is dropped")] mpsc::Sender<()>);

impl Watchdog {
    fn new(patience: Duration) -> Self {
        let (alive, watched) = mpsc::channel();
        let test = thread::current().name().unwrap_or("a test").to_owned();
        thread::spawn(move || {
            if let Err(RecvTimeoutError::Timeout) = watched.recv_timeout(patience) {
                eprintln!("{test} hangs: its world is {patience:?} old");
                for child in &*CHILDREN.lock().unwrap() {
                    let _ = Command::new("kill").arg("-KILL").arg(child.to_string()).status();
                }
                std::process::exit(101);
            }
        });
        Self(alive)
    }
}

/// Says that it is over when it is dropped, also by a panic: then those end who go on until then.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A number that no other call has.
pub fn nonce() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// The children that run, for when there is no time to drop them.
static CHILDREN: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// A child, killed when this is dropped. What it printed is shown if the test fails.
pub struct Process {
    title: String,
    child: Child,
    _stdin: Option<ChildStdin>,
    printed: Arc<Mutex<Vec<String>>>,
    status: Option<ExitStatus>,
}

impl Process {
    pub fn spawn(title: &str, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let printed = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().unwrap(), &printed);
        collect(child.stderr.take().unwrap(), &printed);
        let stdin = child.stdin.take();
        CHILDREN.lock().unwrap().insert(child.id());
        Self { title: title.to_owned(), child, _stdin: stdin, printed, status: None }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn printed(&self) -> Vec<String> {
        self.printed.lock().unwrap().clone()
    }

    /// Whether it has printed a line with this in it.
    pub fn said(&self, text: &str) -> bool {
        self.printed.lock().unwrap().iter().any(|line| line.contains(text))
    }

    /// Waits until it prints a line with this in it, and gives the line.
    #[track_caller]
    pub fn line(&self, text: &str) -> String {
        eventually(&format!("{} prints {text:?}", self.title), || {
            self.printed.lock().unwrap().iter().find(|line| line.contains(text)).cloned()
        })
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.status = Some(self.child.wait().unwrap());
    }

    /// Freezes it, and waits until it is frozen.
    pub fn freeze(&self) {
        self.signal("STOP");
        let stat = format!("/proc/{}/stat", self.child.id());
        if Path::new(&stat).exists() {
            until("the process is frozen", || {
                let stat = fs::read_to_string(&stat).unwrap();
                // The name in parentheses may contain anything.
                stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
            });
        }
    }

    pub fn thaw(&self) {
        self.signal("CONT");
    }

    pub fn terminate(&self) {
        self.signal("TERM");
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.unwrap().success(), "kill -{name} {}", self.title);
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub fn exit(&mut self) -> ExitStatus {
        let status = eventually(&format!("{} exits", self.title), || self.child.try_wait().unwrap());
        self.status = Some(status);
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        CHILDREN.lock().unwrap().remove(&self.child.id());
        if thread::panicking() {
            let printed = self.printed().join("\n    ");
            eprintln!("--- {} printed:\n    {printed}", self.title);
        }
    }
}

fn collect(from: impl Read + Send + 'static, into: &Arc<Mutex<Vec<String>>>) {
    let into = into.clone();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().unwrap().push(line);
        }
    });
}

/// A directory that goes with its test.
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        // Short, since it has to fit in the address of a UNIX socket.
        let name = format!("daffi-p-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A controller in a process of its own, and a place for the nodes around it.
pub struct World {
    // Dropped first.
    controller: Option<Process>,
    pub address: Address,
    options: Vec<String>,
    /// What the controller's command begins with.
    prefix: Vec<String>,
    pub heartbeat: Duration,
    pub directory: Directory,
    _watchdog: Watchdog,
}

impl World {
    /// On a UNIX socket, with the default limits.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// With these options of `daffi-controller`.
    pub fn with(options: &[&str]) -> Self {
        let directory = Directory::new();
        let address = Address::Unix(directory.0.join("sock"));
        Self::at(directory, address, options, Limits::default().heartbeat)
    }

    pub fn over_tcp() -> Self {
        let address = Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
        Self::at(Directory::new(), address, &[], Limits::default().heartbeat)
    }

    /// With a controller whose command begins with this, on this address.
    pub fn within(prefix: &[&str], host: &str) -> Self {
        Self::within_with(prefix, host, Limits::default().heartbeat)
    }

    /// The same, where everybody has this heartbeat.
    pub fn within_with(prefix: &[&str], host: &str, heartbeat: Duration) -> Self {
        let address = Address::Tcp { host: host.to_owned(), port: 0 };
        let option = format!("{}ms", heartbeat.as_millis());
        Self::start(Directory::new(), address, &["--heartbeat", &option], heartbeat, prefix)
    }

    /// On a UNIX socket, with a controller whose command begins with this, and where everybody has this heartbeat.
    pub fn with_command(prefix: &[&str], heartbeat: Duration) -> Self {
        let directory = Directory::new();
        let address = Address::Unix(directory.0.join("sock"));
        let option = format!("{}ms", heartbeat.as_millis());
        Self::start(directory, address, &["--heartbeat", &option], heartbeat, prefix)
    }

    /// Everybody in it looks after everybody else often.
    pub fn watchful() -> Self {
        let directory = Directory::new();
        let address = Address::Unix(directory.0.join("sock"));
        let heartbeat = format!("{}ms", QUICK_HEARTBEAT.as_millis());
        Self::at(directory, address, &["--heartbeat", &heartbeat], QUICK_HEARTBEAT)
    }

    /// For a test that takes so long.
    pub fn lasting(mut self, time: Duration) -> Self {
        self._watchdog = Watchdog::new(time + 3 * PATIENCE);
        self
    }

    fn at(directory: Directory, address: Address, options: &[&str], heartbeat: Duration) -> Self {
        Self::start(directory, address, options, heartbeat, &[])
    }

    fn start(
        directory: Directory,
        address: Address,
        options: &[&str],
        heartbeat: Duration,
        prefix: &[&str],
    ) -> Self {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let prefix = prefix.iter().map(|word| (*word).to_owned()).collect();
        // It may have to be built, for longer than any test takes.
        controller_program();
        let watchdog = Watchdog::new(3 * PATIENCE);
        let mut world =
            Self { controller: None, address, options, prefix, heartbeat, directory, _watchdog: watchdog };
        world.start_controller();
        world
    }

    /// Starts a controller, where the last one was.
    pub fn start_controller(&mut self) {
        assert!(self.controller.is_none());
        let mut command = within(&self.prefix, Command::new(controller_program()));
        command.arg("--listen").arg(self.address.to_string()).args(&self.options);
        let controller = Process::spawn("controller", command.env("RUST_LOG", "info"));
        let line = controller.line("listening on ");
        let (_, address) = line.split_once("listening on ").unwrap();
        self.address = address.parse().unwrap();
        self.controller = Some(controller);
    }

    #[track_caller]
    pub fn controller(&self) -> &Process {
        self.controller.as_ref().expect("the controller runs")
    }

    pub fn kill_controller(&mut self) {
        self.controller.take().expect("the controller runs").kill();
    }

    /// Waits until the controller ends by itself, and gives its exit code.
    #[track_caller]
    pub fn controller_exit(&mut self) -> i32 {
        let mut controller = self.controller.take().expect("the controller runs");
        let status = controller.exit();
        status.code().unwrap_or_else(|| panic!("the controller died: {status}"))
    }

    /// A process with all the callbacks of [`roles`], registered and ready.
    #[track_caller]
    pub fn callee(&self, name: &str) -> Process {
        let callee = self.child("callee", name, &[]);
        callee.line("ready");
        callee
    }

    /// A process in this role, just started.
    pub fn child(&self, role: &str, name: &str, env: &[(&str, &str)]) -> Process {
        self.child_within(&[], role, name, env)
    }

    /// The same, with a command that begins with this.
    pub fn child_within(&self, prefix: &[&str], role: &str, name: &str, env: &[(&str, &str)]) -> Process {
        let mut command = roles::command(role, name, self.heartbeat, &self.log());
        command.env(roles::ADDRESS, self.address.to_string()).envs(env.iter().copied());
        Process::spawn(name, &mut within(prefix, command))
    }

    /// As [`child`](Self::child), with the controller at another address.
    pub fn child_at(&self, role: &str, name: &str, address: &Address) -> Process {
        self.child(role, name, &[(roles::ADDRESS, &address.to_string())])
    }

    /// A node in this process that offers nothing.
    #[track_caller]
    pub fn caller(&self) -> Global {
        self.builder("caller").start().unwrap()
    }

    pub fn builder(&self, name: &str) -> GlobalBuilder {
        let limits = Limits { heartbeat: self.heartbeat, ..Limits::default() };
        at(&self.address).process_name(name).limits(limits).link_time_callbacks(false)
    }

    /// Where the callees of this world write down what they do.
    pub fn log(&self) -> PathBuf {
        self.directory.0.join("log")
    }

    /// What the callees have written down, in the order in which it happened.
    pub fn events(&self) -> Vec<Event> {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        // A line that is being written is not there yet.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(Event::parse).collect()
    }

    /// How often this happened.
    pub fn count(&self, what: &str, nonce: u64) -> usize {
        self.events().iter().filter(|event| event.what == what && event.nonce == nonce).count()
    }

    /// How often each call was executed.
    pub fn executions(&self) -> HashMap<u64, usize> {
        let mut executions = HashMap::new();
        for event in self.events().iter().filter(|event| event.what == "run") {
            *executions.entry(event.nonce).or_default() += 1;
        }
        executions
    }

    /// Waits until this has happened to the call.
    #[track_caller]
    pub fn await_event(&self, what: &str, nonce: u64) {
        until(&format!("{what} {nonce} is in the log"), || self.count(what, nonce) > 0);
    }
}

/// A node of a few bytes: it says hello and registers, and does nothing by itself.
pub struct Raw {
    socket: Box<dyn RawSocket + Send>,
    /// What was read and not looked at yet.
    read: Vec<u8>,
}

/// A socket of either kind.
pub trait RawSocket: Read + Write {}

impl<S: Read + Write> RawSocket for S {}

impl Raw {
    /// Connects, and says nothing.
    pub fn connect(address: &Address) -> Self {
        match address {
            Address::Tcp { host, port } => {
                let socket = TcpStream::connect((host.as_str(), *port)).unwrap();
                socket.set_read_timeout(Some(2 * PATIENCE)).unwrap();
                Self { socket: Box::new(socket), read: Vec::new() }
            }
            Address::Unix(path) => {
                let socket = UnixStream::connect(path).unwrap();
                socket.set_read_timeout(Some(2 * PATIENCE)).unwrap();
                Self { socket: Box::new(socket), read: Vec::new() }
            }
        }
    }

    /// Joins under this name, with one callback whose signature is not compared.
    pub fn join(address: &Address, name: &str, callback: &str) -> Self {
        let mut raw = Self::connect(address);
        let (version_min, version_max) = (VERSION, VERSION);
        raw.send(&Frame::Hello(Hello {
            version_min,
            version_max,
            capabilities: 0,
            instance: 1,
            name,
            credentials: &[],
        }));
        let mut offers = Vec::new();
        Offers::push(
            &mut offers,
            &Offer { index: 0, fingerprint: 0, ready: true, name: callback, signature: "" },
        );
        let offers = Offers::parse(&offers).unwrap();
        raw.send(&Frame::Register(Register { id: 1, more: false, offers }));
        raw.skip_to(|frame| matches!(frame, Frame::Registered { .. }));
        raw
    }

    /// Reads up to a frame, and past it.
    fn skip_to(&mut self, wanted: impl Fn(&Frame<'_>) -> bool) {
        loop {
            let batch = Bytes::copy_from_slice(&self.read);
            let mut at = 0;
            while let Some((frame, next)) = Frame::decode(&batch, at, FRAME_BYTES_MAX).unwrap() {
                at = next;
                if wanted(&frame) {
                    self.read.drain(..at);
                    return;
                }
            }
            self.read.drain(..at);
            let mut more = [0; 256];
            let read = self.socket.read(&mut more).unwrap();
            assert!(read > 0, "it was closed");
            self.read.extend_from_slice(&more[..read]);
        }
    }

    /// How long the other end takes to answer a ping.
    pub fn ping(&mut self, id: u64) -> Duration {
        let begun = Instant::now();
        self.send(&Frame::Ping { id });
        self.skip_to(|frame| matches!(frame, Frame::Pong { id: answered } if *answered == id));
        begun.elapsed()
    }

    pub fn send(&mut self, frame: &Frame<'_>) {
        self.write(&frame.to_bytes()).unwrap();
    }

    /// # Errors
    /// The other end is gone.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// What is read next, until the other end closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = self.socket.read_to_end(&mut rest);
        rest
    }

    /// Whether the other end has closed it, which is seen behind what it has sent.
    pub fn reads_to_the_end(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.socket.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

/// What a callee wrote down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `run` when a callback began.
    pub what: String,
    /// The number of the call.
    pub nonce: u64,
    /// Who wrote it.
    pub node: String,
    /// Milliseconds since 1970.
    pub at: u64,
}

impl Event {
    fn parse(line: &str) -> Self {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_else(|| panic!("a torn line in the log: {line:?}"));
        Self {
            what: word().to_owned(),
            nonce: word().parse().unwrap(),
            node: word().to_owned(),
            at: word().parse().unwrap(),
        }
    }
}

/// A builder for a node whose controller is there.
pub fn at(address: &Address) -> GlobalBuilder {
    let builder = Global::builder();
    match address {
        Address::Unix(path) => builder.unix_sock_path(path),
        Address::Tcp { host, port } => builder.host(host.as_str()).port(*port),
    }
}

/// A command as the arguments of another one, which becomes it: `ip netns exec NAME`, for instance.
fn within<S: AsRef<str>>(prefix: &[S], command: Command) -> Command {
    let Some((first, others)) = prefix.split_first() else { return command };
    let mut outer = Command::new(first.as_ref());
    outer.args(others.iter().map(AsRef::as_ref)).arg(command.get_program()).args(command.get_args());
    outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    outer
}

/// The `daffi-controller` program, as it is now.
fn controller_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM
        .get_or_init(|| build(&["-p", "daffi-controller", "--bin", "daffi-controller"], "daffi-controller"))
}

/// Has cargo build a program of this workspace, since only those of the tested package itself are built for a test.
pub fn build(what: &[&str], program: &str) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let this = env::current_exe().unwrap();
    // `<target directory>/<profile>/deps/promises-…`
    let profile = this.ancestors().nth(2).unwrap();
    let mut command = Command::new(env!("CARGO"));
    command.arg("build").args(what).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.arg("--target-dir").arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let built = command.output().unwrap();
    assert!(built.status.success(), "{command:?}: {}", String::from_utf8_lossy(&built.stderr));
    profile.join(program)
}
