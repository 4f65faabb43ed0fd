//! A controller, callees and callers, and what happens to them: window by window, faults and then quiet.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use daffi::Address;
use daffi_chaos::{Dice, Fault, Proxy, Target};

use crate::{
    history::History,
    process::{Process, lock},
    vitals::Vitals,
    warden::Warden,
};

/// How long anything may take that is to happen by itself.
const PATIENCE: Duration = Duration::from_secs(40);
/// What a controller ends with that was stopped with calls in flight.
const CUT_OFF: i32 = 4;
const STEP: Duration = Duration::from_millis(10);
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// What a world is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    pub name: &'static str,
    /// Whether the controller is killed and restarted, too.
    pub bounces: bool,
    pub callees: u32,
    pub callers: u32,
    /// Calls a second of each caller.
    pub rate: u64,
    pub seed: u64,
    pub window: Duration,
    pub heartbeat: Duration,
    pub controller: PathBuf,
    pub program: PathBuf,
    pub directory: PathBuf,
    pub warden: Arc<Warden>,
}

/// A running world.
pub struct World {
    plan: Plan,
    dice: Dice,
    begun: Instant,
    window: u16,
    marks: u64,
    controller: Member,
    /// Callees, then callers.
    nodes: Vec<Member>,
    undo: Vec<(Instant, Undo)>,
    sampled: Instant,
    pub history: Arc<Mutex<History>>,
    pub vitals: Vitals,
    pub faults: BTreeMap<String, u64>,
    pub windows: u64,
}

/// A place for a process, which has one most of the time.
struct Member {
    kind: Kind,
    number: u32,
    process: Option<Process>,
    /// It is never killed, so that its memory shows what long lives do.
    lasting: bool,
    frozen: bool,
    /// Since when it is to stop by itself.
    stopping: Option<Instant>,
    proxy: Option<Proxy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Controller,
    Callee,
    Caller,
}

/// Who: the controller, or a node by its place.
type Who = Option<usize>;

#[derive(Debug, Clone, Copy)]
enum Undo {
    Restart(Who),
    Thaw(Who),
    Mend(usize),
}

impl World {
    /// Starts everybody.
    pub fn start(plan: Plan) -> io::Result<Self> {
        let begun = Instant::now();
        let member = |kind, number, lasting| Member {
            kind,
            number,
            process: None,
            lasting,
            frozen: false,
            stopping: None,
            proxy: None,
        };
        let mut nodes = Vec::new();
        for (kind, count) in [(Kind::Callee, plan.callees), (Kind::Caller, plan.callers)] {
            for number in 0..count {
                let mut node = member(kind, number, number < 2);
                // Every other one goes through a wire that can be broken.
                if number % 2 == 1 {
                    node.proxy = Some(Proxy::new(Target::Unix(plan.socket()))?);
                }
                nodes.push(node);
            }
        }
        let mut world = Self {
            dice: Dice::new(plan.seed),
            begun,
            window: 1,
            marks: 0,
            controller: member(Kind::Controller, 0, !plan.bounces),
            nodes,
            undo: Vec::new(),
            sampled: begun,
            history: Arc::default(),
            vitals: Vitals::default(),
            faults: BTreeMap::new(),
            windows: 0,
            plan,
        };
        world.restart(None)?;
        for node in 0..world.nodes.len() {
            world.restart(Some(node))?;
        }
        Ok(world)
    }

    /// One window: faults under load, then everything is mended, has to work, and is judged. Gives whether it is worth
    /// going on.
    pub fn run_window(&mut self) -> io::Result<bool> {
        let end = Instant::now() + self.plan.window;
        let mut next = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            self.tend(Instant::now())?;
            if Instant::now() >= next {
                self.strike()?;
                next =
                    Instant::now() + self.dice.time(Duration::from_millis(200), Duration::from_millis(2000));
            }
            thread::sleep(STEP);
        }
        let quiet = self.calm()?;
        self.windows += 1;
        self.window += 1;
        let go = format!("go {}", self.window);
        self.callers().for_each(|caller| caller.order(&go));
        Ok(quiet)
    }

    /// Ends everybody, as SIGTERM does.
    pub fn stop(&mut self) {
        let callees = self.nodes.iter_mut().filter(|node| node.kind == Kind::Callee);
        for node in callees.chain([&mut self.controller]) {
            let cuts_off = node.kind == Kind::Controller;
            let Some(mut process) = node.process.take() else { continue };
            process.signal("TERM");
            let deadline = Instant::now() + PATIENCE;
            let status = loop {
                match process.ended() {
                    None if Instant::now() < deadline => thread::sleep(STEP),
                    status => break status,
                }
            };
            if !status.is_some_and(|status| status.success() || (cuts_off && status.code() == Some(CUT_OFF)))
            {
                let what = format!(
                    "{} was stopped and ended with {status:?}{}",
                    process.title,
                    process.last_words()
                );
                lock(&self.history).blame(what);
            }
        }
    }

    fn callers(&mut self) -> impl Iterator<Item = &mut Process> {
        self.nodes
            .iter_mut()
            .filter(|node| node.kind == Kind::Caller)
            .filter_map(|node| node.process.as_mut())
    }

    fn member(&mut self, who: Who) -> &mut Member {
        match who {
            None => &mut self.controller,
            Some(at) => &mut self.nodes[at],
        }
    }

    fn blame(&self, what: String) {
        lock(&self.history).blame(format!("{}: {what}", self.plan.name));
    }

    /// Undoes what has lasted long enough, restarts who has stopped, and looks at everybody.
    fn tend(&mut self, until: Instant) -> io::Result<()> {
        let (due, later) = self.undo.drain(..).partition(|(at, _)| *at <= until);
        self.undo = later;
        let due: Vec<(Instant, Undo)> = due;
        for (_, undo) in due {
            match undo {
                Undo::Restart(who) => self.restart(who)?,
                Undo::Thaw(who) => self.thaw(who),
                Undo::Mend(at) => {
                    if let Some(proxy) = &self.nodes[at].proxy {
                        proxy.mend();
                    }
                }
            }
        }
        for who in self.everybody() {
            self.look_after(who)?;
        }
        if self.sampled.elapsed() >= SAMPLE_EVERY {
            self.sample(false);
        }
        Ok(())
    }

    fn everybody(&self) -> Vec<Who> {
        (0..self.nodes.len()).map(Some).chain([None]).collect()
    }

    /// Somebody may have ended, as asked or not.
    fn look_after(&mut self, who: Who) -> io::Result<()> {
        let name = self.plan.name;
        let node = self.member(who);
        let Some(process) = &mut node.process else { return Ok(()) };
        let mut wrong: Vec<String> = process.troubles();
        let mut over = false;
        match (process.ended(), node.stopping) {
            (None, Some(since)) if since.elapsed() > PATIENCE => {
                wrong.push(format!("it did not stop within {PATIENCE:?}{}", process.last_words()));
                over = true;
            }
            (None, _) => {}
            (Some(status), stopping) => {
                // A controller that cuts calls off says so in its exit code.
                let forced = node.kind == Kind::Controller && status.code() == Some(CUT_OFF);
                if stopping.is_none() || !(status.success() || forced) {
                    wrong.push(format!("it ended with {status}{}", process.last_words()));
                }
                over = true;
            }
        }
        let title = process.title.clone();
        if over {
            if let Some(process) = node.process.take() {
                wrong.extend(self.end(process));
            }
            self.restart(who)?;
        }
        for what in wrong {
            lock(&self.history).blame(format!("{name}: {title}: {what}"));
        }
        Ok(())
    }

    fn sample(&mut self, quiet: bool) {
        self.sampled = Instant::now();
        let at = self.begun.elapsed();
        for node in self.nodes.iter().chain([&self.controller]) {
            if let Some(process) = &node.process {
                let held_kib = process.told().held_kib.filter(|_| quiet);
                self.vitals.sample(process.serial, &process.title, process.id(), at, quiet, held_kib);
            }
        }
    }

    // ---- faults

    /// Does something to somebody.
    fn strike(&mut self) -> io::Result<()> {
        let roll = self.dice.below(100);
        let after = |dice: &mut Dice, low, high| {
            Instant::now() + dice.time(Duration::from_millis(low), Duration::from_millis(high))
        };
        // What freezes for longer than this is taken for dead.
        let dead = 3 * self.plan.heartbeat.as_millis() as u64;
        let what = match roll {
            ..20 => {
                let Some(at) = self.choose(Kind::Callee, true) else { return Ok(()) };
                self.kill(Some(at));
                let back = after(&mut self.dice, 0, 2000);
                self.undo.push((back, Undo::Restart(Some(at))));
                "kill a callee"
            }
            20..35 => {
                let Some(at) = self.choose(Kind::Callee, true) else { return Ok(()) };
                // One that is still starting has no ear for the signal yet, and just ends.
                if !self.nodes[at].process.as_ref().is_some_and(|process| process.told().ready) {
                    return Ok(());
                }
                self.terminate(Some(at));
                "terminate a callee"
            }
            35..45 => {
                let Some(at) = self.choose(Kind::Callee, false) else { return Ok(()) };
                let back = after(&mut self.dice, 50, 2 * dead);
                self.freeze(Some(at), back);
                "freeze a callee"
            }
            45..52 => {
                let Some(at) = self.choose(Kind::Caller, true) else { return Ok(()) };
                self.kill(Some(at));
                let back = after(&mut self.dice, 0, 1000);
                self.undo.push((back, Undo::Restart(Some(at))));
                "kill a caller"
            }
            52..58 => {
                let Some(at) = self.choose(Kind::Caller, false) else { return Ok(()) };
                let back = after(&mut self.dice, 50, 2 * dead);
                self.freeze(Some(at), back);
                "freeze a caller"
            }
            58..62 => {
                if !self.idle(None) {
                    return Ok(());
                }
                let back = after(&mut self.dice, 50, dead + 1500);
                self.freeze(None, back);
                "freeze the controller"
            }
            62..72 => {
                if !self.plan.bounces || !self.idle(None) {
                    return Ok(());
                }
                if roll < 69 {
                    self.kill(None);
                    let back = after(&mut self.dice, 0, 1500);
                    self.undo.push((back, Undo::Restart(None)));
                    "kill the controller"
                } else {
                    // One that is still starting has no ear for the signal yet, and just ends.
                    if !self.controller.process.as_ref().is_some_and(|process| process.told().listening) {
                        return Ok(());
                    }
                    self.terminate(None);
                    "terminate the controller"
                }
            }
            _ => {
                let wired: Vec<usize> =
                    (0..self.nodes.len()).filter(|at| self.nodes[*at].proxy.is_some()).collect();
                if wired.is_empty() {
                    return Ok(());
                }
                let at = *self.dice.pick(&wired);
                let fault = Fault::any(&mut self.dice);
                if let Some(proxy) = &self.nodes[at].proxy {
                    fault.strike(proxy);
                }
                let back = after(&mut self.dice, 50, dead + 1500);
                self.undo.push((back, Undo::Mend(at)));
                let name = format!("{fault:?}");
                let name = name.split('(').next().unwrap_or_default().to_lowercase();
                *self.faults.entry(format!("wire: {name}")).or_default() += 1;
                return Ok(());
            }
        };
        *self.faults.entry(what.to_owned()).or_default() += 1;
        Ok(())
    }

    /// Somebody to whom nothing is happening.
    fn choose(&mut self, kind: Kind, mortal: bool) -> Option<usize> {
        let fit: Vec<usize> = (0..self.nodes.len())
            .filter(|at| {
                let node = &self.nodes[*at];
                node.kind == kind && !(mortal && node.lasting) && self.idle(Some(*at))
            })
            .collect();
        (!fit.is_empty()).then(|| *self.dice.pick(&fit))
    }

    fn idle(&self, who: Who) -> bool {
        let node = match who {
            None => &self.controller,
            Some(at) => &self.nodes[at],
        };
        node.process.is_some() && !node.frozen && node.stopping.is_none()
    }

    fn kill(&mut self, who: Who) {
        if let Some(process) = self.member(who).process.take() {
            let title = process.title.clone();
            for what in self.end(process) {
                self.blame(format!("{title}: {what}"));
            }
        }
    }

    /// Takes what a process has told, and it is no more.
    fn end(&mut self, process: Process) -> Vec<String> {
        let serial = process.serial;
        let troubles = process.kill();
        lock(&self.history).died(serial);
        self.vitals.forget(serial);
        troubles
    }

    fn terminate(&mut self, who: Who) {
        let node = self.member(who);
        if let Some(process) = &node.process {
            process.signal("TERM");
            node.stopping = Some(Instant::now());
        }
    }

    fn freeze(&mut self, who: Who, until: Instant) {
        let node = self.member(who);
        if let Some(process) = &node.process {
            process.signal("STOP");
            node.frozen = true;
            self.undo.push((until, Undo::Thaw(who)));
        }
    }

    fn thaw(&mut self, who: Who) {
        let node = self.member(who);
        if let (Some(process), true) = (&node.process, std::mem::take(&mut node.frozen)) {
            process.signal("CONT");
        }
    }

    fn restart(&mut self, who: Who) -> io::Result<()> {
        static SERIALS: AtomicU16 = AtomicU16::new(1);
        let serial = SERIALS.fetch_add(1, Ordering::Relaxed);
        let (plan, window, seed) = (self.plan.clone(), self.window, self.dice.roll());
        let history = self.history.clone();
        let node = self.member(who);
        if node.process.is_some() {
            return Ok(());
        }
        (node.frozen, node.stopping) = (false, None);
        let title = format!("{} {}", plan.name, node.title());
        let process = if node.kind == Kind::Controller {
            let mut command = Command::new(&plan.controller);
            command.arg("--listen").arg(Address::Unix(plan.socket()).to_string());
            command.arg("--heartbeat").arg(format!("{}ms", plan.heartbeat.as_millis()));
            command.args(["--grace", "1s"]).env("RUST_LOG", "error");
            Process::spawn(serial, title, &mut command, None, &plan.warden)?
        } else {
            let address = match &node.proxy {
                Some(proxy) => Address::Tcp { host: "127.0.0.1".to_owned(), port: proxy.port() },
                None => Address::Unix(plan.socket()),
            };
            let mut command = Command::new(&plan.program);
            command.arg(if node.kind == Kind::Callee { "callee" } else { "caller" });
            for (name, value) in [
                ("--number", node.number.to_string()),
                ("--serial", serial.to_string()),
                ("--callees", plan.callees.to_string()),
                ("--address", address.to_string()),
                ("--heartbeat-ms", plan.heartbeat.as_millis().to_string()),
                ("--rate", plan.rate.to_string()),
                ("--seed", seed.to_string()),
                ("--window", window.to_string()),
            ] {
                command.arg(name).arg(value);
            }
            if node.lasting {
                command.arg("--lasting");
            }
            Process::spawn(serial, title, &mut command, Some(&history), &plan.warden)?
        };
        node.process = Some(process);
        Ok(())
    }

    // ---- quiet

    /// Mends everything; calls have to work again, and to end when no more are made. Then the window is judged.
    fn calm(&mut self) -> io::Result<bool> {
        let far = Instant::now() + Duration::from_secs(3600);
        self.tend(far)?;
        let all = |process: &Process| process.title.contains("controller") || process.told().ready;
        let mut well = self.wait("everybody is there", all)?;
        self.callers().for_each(|caller| {
            caller.told().probed = None;
            caller.order("probe");
        });
        let probed = |process: &Process| process.told().probed.is_some();
        well &=
            self.wait("calls to everybody work again", |process| !is_caller(process) || probed(process))?;
        let failed: Vec<String> = self
            .callers()
            .filter(|caller| caller.told().probed == Some(false))
            .map(|caller| format!("{} cannot call everybody{}", caller.title, caller.last_words()))
            .collect();
        if !failed.is_empty() {
            self.look_around();
        }
        for what in failed {
            self.blame(what);
        }

        let window = u64::from(self.window);
        self.callers().for_each(|caller| caller.order("pause"));
        let quiet = self
            .wait("all calls end", |process| !is_caller(process) || process.told().quiet == Some(window))?;
        if !quiet {
            let waiting = lock(&self.history).waiting(self.window);
            eprintln!("without an outcome: {:#?}", &waiting[..waiting.len().min(20)]);
        }
        well &= quiet;
        // Memory of large payloads is given back after two seconds without any.
        thread::sleep(Duration::from_millis(2500));
        // Nobody waits for what still runs, so it ends soon.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            self.marks += 1;
            let mark = self.marks;
            let order = format!("mark {mark}");
            for node in &mut self.nodes {
                if let Some(process) = &mut node.process {
                    process.order(&order);
                }
            }
            well &= self.wait("everything is told", |process| {
                process.title.contains("controller") || process.told().mark >= mark
            })?;
            let running: Vec<(String, u64)> = self
                .nodes
                .iter()
                .filter_map(|node| node.process.as_ref())
                .map(|process| (process.title.clone(), process.told().running))
                .filter(|(_, running)| *running > 0)
                .collect();
            if running.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                self.blame(format!("something runs although nobody waits for it: {running:?}"));
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        self.sample(true);
        lock(&self.history).close(self.window);
        Ok(well)
    }

    /// Says how everybody is, for who wonders why something did not happen.
    fn look_around(&self) {
        let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
        eprintln!(
            "{}: {:?}, load {}",
            self.plan.name,
            self.begun.elapsed(),
            read("/proc/loadavg".to_owned()).trim()
        );
        for process in self.nodes.iter().chain([&self.controller]).filter_map(|node| node.process.as_ref()) {
            let status = read(format!("/proc/{}/status", process.id()));
            let state: Vec<&str> = status
                .lines()
                .filter(|line| line.starts_with("State:") || line.starts_with("Threads:"))
                .collect();
            eprintln!("  {}: {}{}", process.title, state.join(", "), process.last_words());
        }
    }

    /// Waits until this is so for every process, and blames those for which it is never so.
    fn wait(&mut self, what: &str, holds: impl Fn(&Process) -> bool) -> io::Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.tend(Instant::now())?;
            let nodes = self.nodes.iter().chain([&self.controller]);
            let late: Vec<String> = nodes
                .filter(|node| !node.process.as_ref().is_some_and(&holds))
                .map(|node| {
                    let words = node.process.as_ref().map(Process::last_words).unwrap_or_default();
                    format!("{}{words}", node.title())
                })
                .collect();
            if late.is_empty() {
                return Ok(true);
            }
            if Instant::now() > deadline {
                self.blame(format!("not within {PATIENCE:?}: {what}: {}", late.join(", ")));
                return Ok(false);
            }
            thread::sleep(STEP);
        }
    }
}

fn is_caller(process: &Process) -> bool {
    process.title.contains("caller")
}

impl Plan {
    fn socket(&self) -> PathBuf {
        self.directory.join(self.name)
    }
}

impl Member {
    fn title(&self) -> String {
        match self.kind {
            Kind::Controller => "controller".to_owned(),
            Kind::Callee => format!("callee-{}", self.number),
            Kind::Caller => format!("caller-{}", self.number),
        }
    }
}
