//! The machine that daffi runs on here: its clock, threads and chance, all on one thread and from one seed.

mod steps;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant, SystemTime},
};

use daffi::{Address, Global, controller::Server};
use daffi_core::{
    reactor::Handle,
    simulation::{self, Door, Pipe, World},
};
use parking_lot::Mutex;

use crate::{
    history::{Ended, History, Nonce},
    network::{self, HostId, Machine, Network, Shared},
    random::Random,
};

/// A simulated world.
pub(crate) struct Sim {
    pub(crate) network: Shared,
    pub(crate) history: RefCell<History>,
    hosts: RefCell<Vec<Host>>,
    /// The process whose code is running.
    current: Cell<HostId>,
    later: RefCell<BTreeMap<u64, Later>>,
    later_last: Cell<u64>,
    /// Whether wall clocks differ by hours, and jump.
    clocks_differ: bool,
    /// How often such a clock was read.
    pub(crate) wall_reads: Cell<u64>,
    /// How many steps were taken since time last advanced.
    steps: Cell<usize>,
}

/// A process.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) alive: bool,
    /// Whether it ended in a way that tells its callers nothing.
    pub(crate) ended: bool,
    frozen_until: Duration,
    reactors: Vec<Turns>,
    runtimes: Vec<Option<Box<dyn FnMut() -> bool>>>,
    tasks: Vec<Option<Task>>,
    /// How many more times to poll its runtimes before nothing can be new for them.
    touched: u8,
    pub(crate) global: Option<Global>,
    pub(crate) server: Option<Server>,
    /// Whether the controller is in this process, too.
    pub(crate) with_controller: bool,
}

/// A reactor and when its next turn is.
struct Turns {
    handle: Handle,
    due: Option<Duration>,
    stirred: bool,
}

/// Something that is to happen at a certain time.
enum Later {
    Wake(HostId, Waker),
    Work(HostId, Box<dyn FnOnce() + Send>),
}

/// A task of a user's own runtime.
struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    flag: Arc<Flag>,
}

/// Whether a task wants to be polled.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

thread_local! {
    static SIM: RefCell<Option<Rc<Sim>>> = const { RefCell::new(None) };
}

/// The longest it takes until a thread begins.
pub(crate) const THREAD_MAX: Duration = Duration::from_millis(2);

/// Returns the world that this thread is in.
pub(crate) fn sim() -> Rc<Sim> {
    SIM.with_borrow(Clone::clone).expect("a thread of the simulation")
}

/// How far off the wall clock of a process is, in seconds: up to four days, and differently every three
/// seconds. It does not use the seed's chance, so that it cannot be what makes two runs differ.
fn wrong_by(host: HostId, now: Duration) -> u64 {
    Random::new(((host as u64) << 32) ^ (now.as_secs() / 3)).below(4 * 24 * 3600) as u64
}

/// Where virtual time begins: long ago, so that a wait with a deadline in virtual time never really waits.
fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(|| {
        let now = Instant::now();
        now.checked_sub(Duration::from_secs(100 * 24 * 3600)).unwrap_or(now)
    })
}

impl Sim {
    /// Puts this thread into a new world.
    pub(crate) fn enter(network: Network, clocks_differ: bool) -> Rc<Self> {
        let sim = Rc::new(Self {
            network: Arc::new(Mutex::new(network)),
            history: RefCell::default(),
            hosts: RefCell::default(),
            current: Cell::new(0),
            later: RefCell::default(),
            later_last: Cell::new(0),
            clocks_differ,
            wall_reads: Cell::default(),
            steps: Cell::default(),
        });
        SIM.set(Some(sim.clone()));
        simulation::enter(Some(sim.clone()));
        sim
    }

    /// Whether this thread is in a world.
    pub(crate) fn is_entered() -> bool {
        SIM.try_with(|sim| sim.borrow().is_some()).unwrap_or(false)
    }

    /// Leaves a world in which something panicked. Nothing in it is used any more.
    pub(crate) fn abandon() {
        std::mem::forget(SIM.take());
        simulation::enter(None);
    }

    /// Ends every process and leaves the world.
    pub(crate) fn leave(&self) {
        for host in self.alive() {
            self.end(host, false);
        }
        let later = std::mem::take(&mut *self.later.borrow_mut());
        drop(later);
        simulation::enter(None);
        SIM.set(None);
    }

    pub(crate) fn now(&self) -> Duration {
        self.network.lock().now
    }

    /// Converts a time of daffi's into one of this world.
    pub(crate) fn time_of(&self, at: Instant) -> Duration {
        at.saturating_duration_since(epoch())
    }

    pub(crate) fn current(&self) -> HostId {
        self.current.get()
    }

    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        self.network.lock().note(what);
    }

    pub(crate) fn chance(&self, percent: usize) -> bool {
        self.network.lock().random.chance(percent)
    }

    pub(crate) fn below(&self, bound: usize) -> usize {
        self.network.lock().random.below(bound)
    }

    pub(crate) fn millis(&self, from: u64, to: u64) -> Duration {
        self.network.lock().random.between(Duration::from_millis(from), Duration::from_millis(to))
    }

    pub(crate) fn micros(&self, from: u64, to: u64) -> Duration {
        self.network.lock().random.between(Duration::from_micros(from), Duration::from_micros(to))
    }

    // ---- processes

    /// Starts a process.
    pub(crate) fn add_host(&self, name: &str, machine: Machine) -> HostId {
        let mut network = self.network.lock();
        let id = network.add_host(machine);
        network.machine_back(machine);
        network.note(|| format!("process {id} is {name} on machine {machine}"));
        self.hosts.borrow_mut().push(Host {
            name: name.to_owned(),
            alive: true,
            ended: false,
            frozen_until: Duration::ZERO,
            reactors: Vec::new(),
            runtimes: Vec::new(),
            tasks: Vec::new(),
            touched: 0,
            global: None,
            server: None,
            with_controller: false,
        });
        id
    }

    /// Reads or changes a process.
    pub(crate) fn host<T>(&self, id: HostId, look: impl FnOnce(&mut Host) -> T) -> T {
        look(&mut self.hosts.borrow_mut()[id])
    }

    /// Returns the processes that are alive.
    pub(crate) fn alive(&self) -> Vec<HostId> {
        let hosts = self.hosts.borrow();
        hosts.iter().enumerate().filter(|(_, host)| host.alive).map(|(id, _)| id).collect()
    }

    /// Whether this process has died in the middle of something: nobody ever hears of the rest.
    pub(crate) fn has_died(&self, id: HostId) -> bool {
        self.network.lock().dead.contains(&id)
    }

    /// Records that a caller has the outcome of its call.
    pub(crate) fn ended(&self, nonce: Nonce, ended: Ended) {
        self.note(|| format!("{nonce:#x} ended: {ended:?}"));
        if !self.has_died(self.current()) {
            self.history.borrow_mut().end(nonce, ended, self.now());
        }
    }

    /// Whether any user is not finished.
    pub(crate) fn has_tasks(&self) -> bool {
        let hosts = self.hosts.borrow();
        hosts.iter().any(|host| host.alive && host.tasks.iter().any(Option::is_some))
    }

    /// Does something as this process.
    pub(crate) fn as_host<T>(&self, id: HostId, work: impl FnOnce() -> T) -> T {
        let before = self.current.replace(id);
        let done = work();
        self.current.set(before);
        self.hosts.borrow_mut()[id].touched = 2;
        done
    }

    /// Has a process do this alongside everything else.
    pub(crate) fn spawn(&self, id: HostId, future: impl Future<Output = ()> + 'static) {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let task = Task { future: Box::pin(future), flag };
        self.hosts.borrow_mut()[id].tasks.push(Some(task));
    }

    /// Ends a process. One that ends silently takes its machine with it.
    pub(crate) fn end(&self, id: HostId, silently: bool) {
        let (global, server, tasks, reactors, runtimes) = {
            let mut hosts = self.hosts.borrow_mut();
            let host = &mut hosts[id];
            if !host.alive {
                return;
            }
            host.alive = false;
            host.ended = true;
            (
                host.global.take(),
                host.server.take(),
                std::mem::take(&mut host.tasks),
                std::mem::take(&mut host.reactors),
                std::mem::take(&mut host.runtimes),
            )
        };
        {
            let mut network = self.network.lock();
            network.note(|| format!("process {id} ends{}", if silently { " silently" } else { "" }));
            network.host_ended(id, silently);
        }
        self.as_host(id, || {
            // Whatever its code still does while it ends reaches nobody.
            drop(tasks);
            drop(global);
            drop(server);
            drop(runtimes);
            drop(reactors);
        });
    }

    /// Freezes a process for a while.
    pub(crate) fn freeze(&self, id: HostId, time: Duration) {
        let now = self.now();
        self.note(|| format!("process {id} freezes for {time:?}"));
        self.network.lock().wire.froze(id, now, now + time);
        self.host(id, |host| host.frozen_until = host.frozen_until.max(now + time));
    }

    pub(crate) fn thaw(&self) {
        let now = self.now();
        self.network.lock().wire.thawed(now);
        for host in &mut *self.hosts.borrow_mut() {
            host.frozen_until = Duration::ZERO;
            host.stir();
        }
    }
}

impl Host {
    /// Notes that something may have come for it.
    fn stir(&mut self) {
        for turns in &mut self.reactors {
            turns.stirred = true;
        }
        self.touched = 2;
    }
}

impl World for Sim {
    fn now(&self) -> Instant {
        epoch() + self.network.lock().now
    }

    fn wall(&self) -> SystemTime {
        self.wall_reads.set(self.wall_reads.get() + 1);
        let now = self.now();
        let off = if self.clocks_differ { wrong_by(self.current(), now) } else { 0 };
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + off) + now
    }

    fn sleep(&self, time: Duration) {
        let mut network = self.network.lock();
        let from = network.now;
        network.now += time;
        let until = network.now;
        network.wire.slept(from, until);
    }

    fn random(&self) -> u64 {
        self.network.lock().random.number()
    }

    fn spawn(&self, work: Box<dyn FnOnce() + Send>) {
        let at = self.now() + self.micros(0, THREAD_MAX.as_micros() as u64);
        self.later(at, Later::Work(self.current(), work));
    }

    fn connect(&self, address: &Address) -> io::Result<Box<dyn Pipe>> {
        network::connect(&self.network, self.current(), &address.to_string())
    }

    fn listen(&self, address: &Address) -> io::Result<Box<dyn Door>> {
        network::listen(&self.network, self.current(), &address.to_string())
    }

    fn reactor(&self, handle: &Handle) {
        let turns = Turns { handle: handle.clone(), due: None, stirred: true };
        self.host(self.current(), |host| host.reactors.push(turns));
    }

    fn runtime(&self, poll: Box<dyn FnMut() -> bool>) {
        self.host(self.current(), |host| host.runtimes.push(Some(poll)));
    }
}

/// Resolves once this much time has passed.
pub(crate) fn sleep(time: Duration) -> Sleep {
    let sim = sim();
    Sleep { until: sim.now() + time, host: sim.current() }
}

/// A wait in virtual time.
pub(crate) struct Sleep {
    until: Duration,
    host: HostId,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let sim = sim();
        if sim.now() >= self.until {
            return Poll::Ready(());
        }
        // A task of daffi's may move away from where it was first polled, so its waker is set each time.
        sim.later(self.until, Later::Wake(self.host, context.waker().clone()));
        Poll::Pending
    }
}
