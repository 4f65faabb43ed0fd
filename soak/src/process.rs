//! A child of the soak program, and what is known of it.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use crate::{
    history::History,
    record::{self, Record},
    warden::Warden,
};

/// The last lines that are kept of what a child says.
const LINES_MAX: usize = 20;

/// What a child has told about itself.
#[derive(Debug, Default, Clone)]
pub struct Told {
    pub ready: bool,
    pub quiet: Option<u64>,
    pub probed: Option<bool>,
    pub mark: u64,
    pub running: u64,
    /// How many KiB it held at that mark.
    pub held_kib: Option<u32>,
    /// Where a controller listens.
    pub listening: bool,
    lines: VecDeque<String>,
    troubles: Vec<String>,
}

/// A running child. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    pub serial: u16,
    pub title: String,
    child: Child,
    told: Arc<Mutex<Told>>,
    warden: Arc<Warden>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts it; what it records goes into the history.
    pub fn spawn(
        serial: u16,
        title: String,
        command: &mut Command,
        history: Option<&Arc<Mutex<History>>>,
        warden: &Arc<Warden>,
    ) -> std::io::Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        warden.begins(child.id());
        let told = Arc::new(Mutex::new(Told::default()));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut readers = Vec::new();
        if let Some(stdout) = stdout {
            let (history, told) = (history.cloned(), told.clone());
            readers.push(thread::spawn(move || match history {
                Some(history) => record::read(stdout, |batch| {
                    let mut history = lock(&history);
                    batch.iter().for_each(|record| history.take(serial, *record));
                    drop(history);
                    let mut told = lock(&told);
                    batch.iter().for_each(|record| told.take(*record));
                }),
                None => {
                    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                        lock(&told).listening |= line.starts_with("listening on");
                    }
                }
            }));
        }
        if let Some(stderr) = stderr {
            let told = told.clone();
            readers.push(thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    lock(&told).hear(line);
                }
            }));
        }
        Ok(Self { serial, title, child, told, warden: warden.clone(), readers })
    }

    pub fn told(&self) -> MutexGuard<'_, Told> {
        lock(&self.told)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Tells it what to do; one that is dead does not.
    pub fn order(&mut self, line: &str) {
        if let Some(stdin) = &mut self.child.stdin {
            let _ = writeln!(stdin, "{line}");
        }
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.id().to_string()).status();
        if !sent.is_ok_and(|status| status.success()) {
            eprintln!("kill -{name} {} failed", self.title);
        }
    }

    /// Whether it has ended by now.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGKILL, unless it has ended already. Takes all that it told until then, and gives what it complained about.
    pub fn kill(mut self) -> Vec<String> {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        self.troubles()
    }

    /// What it complained about since the last time.
    pub fn troubles(&self) -> Vec<String> {
        std::mem::take(&mut self.told().troubles)
    }

    /// The last that it said, for who wonders.
    pub fn last_words(&self) -> String {
        self.told().lines.iter().map(|line| format!("\n    {line}")).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.warden.ends(self.id());
    }
}

impl Told {
    fn take(&mut self, record: Record) {
        match record {
            Record::Ready => self.ready = true,
            Record::Mark { number, running, held_kib } => {
                (self.mark, self.running, self.held_kib) = (number, running, Some(held_kib));
            }
            Record::Quiet { window } => self.quiet = Some(window),
            Record::Probed { well } => self.probed = Some(well),
            _ => {}
        }
    }

    fn hear(&mut self, line: String) {
        if line.contains("TROUBLE") || line.contains("panicked at") {
            self.troubles.push(line.clone());
        }
        self.lines.push_back(line);
        if self.lines.len() > LINES_MAX {
            self.lines.pop_front();
        }
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
