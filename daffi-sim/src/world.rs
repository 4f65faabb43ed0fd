//! The machine that daffi runs on here: its clock, its threads and its chance, all on one thread and all from one seed.

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
    history::History,
    network::{self, Event, HostId, Machine, Network, Shared},
};

/// A simulated world.
pub(crate) struct Sim {
    pub(crate) network: Shared,
    pub(crate) history: RefCell<History>,
    hosts: RefCell<Vec<Host>>,
    /// The process whose code runs now.
    current: Cell<HostId>,
    later: RefCell<BTreeMap<u64, Later>>,
    later_last: Cell<u64>,
    /// How far the clock on the wall is off, in seconds.
    wall_off: Cell<i64>,
    /// How long threads slept in all, while nothing else went on.
    pub(crate) slept: Cell<Duration>,
    /// How many steps there were since time last went on.
    steps: Cell<usize>,
}

/// More steps than there is ever reason for without time going on.
const STEPS_MAX: usize = 1_000_000;

/// A process.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) alive: bool,
    /// It ended in a way that tells its callers nothing.
    pub(crate) ended: bool,
    frozen_until: Duration,
    /// How long it was frozen in all.
    pub(crate) frozen: Duration,
    reactors: Vec<Turns>,
    runtimes: Vec<Option<Box<dyn FnMut() -> bool>>>,
    tasks: Vec<Option<Task>>,
    /// How often its runtimes are polled until nothing can be new for them.
    touched: u8,
    pub(crate) global: Option<Global>,
    pub(crate) server: Option<Server>,
}

/// A reactor and when it has its next turn.
struct Turns {
    handle: Handle,
    due: Option<Duration>,
    stirred: bool,
}

/// What is to happen at a certain time.
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

/// What can go on.
#[derive(Clone, Copy)]
enum Step {
    Reactor(HostId, usize),
    Runtimes(HostId),
    Task(HostId, usize),
}

thread_local! {
    static SIM: RefCell<Option<Rc<Sim>>> = const { RefCell::new(None) };
}

/// The world that this thread is in.
pub(crate) fn sim() -> Rc<Sim> {
    SIM.with_borrow(Clone::clone).expect("a thread of the simulation")
}

/// Where virtual time begins: long ago, so that no wait with a deadline in virtual time ever waits.
fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(|| {
        let now = Instant::now();
        now.checked_sub(Duration::from_secs(100 * 24 * 3600)).unwrap_or(now)
    })
}

impl Sim {
    /// Puts this thread into a new world.
    pub(crate) fn enter(network: Network) -> Rc<Self> {
        let sim = Rc::new(Self {
            network: Arc::new(Mutex::new(network)),
            history: RefCell::default(),
            hosts: RefCell::default(),
            current: Cell::new(0),
            later: RefCell::default(),
            later_last: Cell::new(0),
            wall_off: Cell::new(0),
            slept: Cell::default(),
            steps: Cell::default(),
        });
        SIM.set(Some(sim.clone()));
        simulation::enter(Some(sim.clone()));
        sim
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

    pub(crate) fn jump(&self, seconds: i64) {
        self.wall_off.set(self.wall_off.get() + seconds);
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
            frozen: Duration::ZERO,
            reactors: Vec::new(),
            runtimes: Vec::new(),
            tasks: Vec::new(),
            touched: 0,
            global: None,
            server: None,
        });
        id
    }

    /// Looks at a process, or changes it.
    pub(crate) fn host<T>(&self, id: HostId, look: impl FnOnce(&mut Host) -> T) -> T {
        look(&mut self.hosts.borrow_mut()[id])
    }

    /// The processes that live.
    pub(crate) fn alive(&self) -> Vec<HostId> {
        let hosts = self.hosts.borrow();
        hosts.iter().enumerate().filter(|(_, host)| host.alive).map(|(id, _)| id).collect()
    }

    /// Whether any user is not done.
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

    /// Has a process do this beside everything else.
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
            // Whatever its code still does on the way out reaches nobody.
            drop(tasks);
            drop(global);
            drop(server);
            drop(runtimes);
            drop(reactors);
        });
    }

    /// Lets a process do nothing for a while.
    pub(crate) fn freeze(&self, id: HostId, time: Duration) {
        let now = self.now();
        self.note(|| format!("process {id} freezes for {time:?}"));
        self.network.lock().wire.froze(id, now, now + time);
        self.host(id, |host| {
            host.frozen_until = now + time;
            host.frozen += time;
        });
    }

    pub(crate) fn thaw(&self) {
        let now = self.now();
        self.network.lock().wire.thawed(now);
        for host in &mut *self.hosts.borrow_mut() {
            host.frozen_until = Duration::ZERO;
            host.stir();
        }
    }

    // ---- time

    /// Goes on until `until`, or until `done` says so; says whether it did.
    pub(crate) fn run(&self, until: Duration, mut done: impl FnMut() -> bool) -> bool {
        loop {
            if done() {
                return true;
            }
            if self.now() >= until {
                return false;
            }
            self.step(until);
        }
    }

    fn step(&self, until: Duration) {
        let now = self.now();
        let stirred = std::mem::take(&mut self.network.lock().stirred);
        let mut steps = Vec::new();
        let mut next: Option<Duration> = None;
        {
            let mut hosts = self.hosts.borrow_mut();
            for id in stirred {
                hosts[id].stir();
            }
            for (id, host) in hosts.iter_mut().enumerate().filter(|(_, host)| host.alive) {
                if host.frozen_until > now {
                    next = next.into_iter().chain([host.frozen_until]).min();
                    continue;
                }
                for (number, turns) in host.reactors.iter().enumerate() {
                    if turns.stirred || turns.handle.is_woken() || turns.due.is_some_and(|due| due <= now) {
                        steps.push(Step::Reactor(id, number));
                    }
                    next = next.into_iter().chain(turns.due).min();
                }
                if host.touched > 0 && !host.runtimes.is_empty() {
                    steps.push(Step::Runtimes(id));
                }
                for (number, task) in host.tasks.iter().enumerate() {
                    if task.as_ref().is_some_and(|task| task.flag.0.load(Ordering::Relaxed)) {
                        steps.push(Step::Task(id, number));
                    }
                }
            }
        }
        if self.steps.replace(self.steps.get() + 1) == STEPS_MAX {
            let problem = format!("I6: {STEPS_MAX} steps at {now:?}, and still not at rest");
            self.history.borrow_mut().violations.push(problem);
            self.steps.set(0);
            self.network.lock().now = until;
            return;
        }
        if !steps.is_empty() {
            let step = self.network.lock().random.one_of(&steps);
            return self.take(step);
        }
        self.steps.set(0);
        {
            let mut network = self.network.lock();
            let next = next.into_iter().chain(network.next_event()).min();
            network.now = next.map_or(until, |next| next.min(until)).max(now);
        }
        loop {
            let event = self.network.lock().pop_event();
            match event {
                None => return,
                Some(Event::Arrive(id, lane)) => self.network.lock().arrive(id, lane),
                Some(Event::Timer(number)) => self.timer(number),
            }
        }
    }

    fn take(&self, step: Step) {
        match step {
            Step::Reactor(id, number) => {
                let handle = self.host(id, |host| {
                    host.reactors[number].stirred = false;
                    host.reactors[number].handle.clone()
                });
                let due = self.as_host(id, || handle.simulate());
                let due = due.map(|due| due.saturating_duration_since(epoch()));
                self.host(id, |host| {
                    if let Some(turns) = host.reactors.get_mut(number) {
                        turns.due = due;
                    }
                });
            }
            Step::Runtimes(id) => {
                let touched = self.host(id, |host| host.touched - 1);
                let count = self.host(id, |host| host.runtimes.len());
                for number in 0..count {
                    let Some(mut poll) = self.host(id, |host| host.runtimes[number].take()) else { continue };
                    if self.as_host(id, &mut poll) {
                        self.host(id, |host| host.runtimes[number] = Some(poll));
                    }
                }
                self.host(id, |host| host.touched = touched);
            }
            Step::Task(id, number) => {
                let Some(mut task) = self.host(id, |host| host.tasks[number].take()) else { return };
                task.flag.0.store(false, Ordering::Relaxed);
                let waker = Waker::from(task.flag.clone());
                let polled = self.as_host(id, || task.future.as_mut().poll(&mut Context::from_waker(&waker)));
                if polled.is_pending() && self.host(id, |host| host.alive) {
                    self.host(id, |host| host.tasks[number] = Some(task));
                } else {
                    self.as_host(id, || drop(task));
                }
            }
        }
    }

    fn timer(&self, number: u64) {
        let Some(later) = self.later.borrow_mut().remove(&number) else { return };
        let id = match &later {
            Later::Wake(id, _) | Later::Work(id, _) => *id,
        };
        let (alive, frozen_until) = self.host(id, |host| (host.alive, host.frozen_until));
        let now = self.now();
        match later {
            Later::Wake(_, waker) => {
                waker.wake();
                self.host(id, |host| host.touched = 2);
            }
            Later::Work(_, work) if alive && frozen_until <= now => self.as_host(id, work),
            Later::Work(..) if alive => self.later(frozen_until, later),
            Later::Work(..) => {}
        }
    }

    fn later(&self, at: Duration, what: Later) {
        let number = self.later_last.get() + 1;
        self.later_last.set(number);
        self.later.borrow_mut().insert(number, what);
        self.network.lock().at(at, Event::Timer(number));
    }
}

impl Host {
    /// Something may have come for it.
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
        let seconds = 1_700_000_000 + self.wall_off.get();
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds as u64) + self.now()
    }

    fn sleep(&self, time: Duration) {
        self.network.lock().now += time;
        self.slept.set(self.slept.get() + time);
    }

    fn random(&self) -> u64 {
        self.network.lock().random.number()
    }

    fn spawn(&self, work: Box<dyn FnOnce() + Send>) {
        let at = self.now() + self.millis(0, 2);
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

/// Resolves when so much time has passed.
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
        // A task of daffi's may move from where it was polled first, so its waker is set each time.
        sim.later(self.until, Later::Wake(self.host, context.waker().clone()));
        Poll::Pending
    }
}
