//! Builds and starts the two processes of the front page, `process1` and `process2`, lets them call each
//! other for two rounds, and stops them.

use std::{
    env,
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

/// The lines that must appear, and how often.
const EXPECTED: [(&str, usize); 3] = [
    ("proc1 | Calculated delta = 7", 2),
    ("proc2 | Func2 has been triggered!", 2),
    ("proc2 | Calculated sum is 10", 2),
];

/// Two rounds take 6 s; the rest is a margin for busy machines.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    if let Err(problem) = demo() {
        eprintln!("demo  | {problem}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn demo() -> Result<(), String> {
    build()?;
    let (lines_in, lines) = channel();
    let _processes =
        [start("process1", "proc1", lines_in.clone())?, start("process2", "proc2", lines_in.clone())?];
    // From here on, the channel closes when both processes have ended.
    drop(lines_in);

    let deadline = Instant::now() + PATIENCE;
    let mut missing = EXPECTED;
    while missing.iter().any(|(_, count)| *count > 0) {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("{line}");
                if let Some((_, count)) = missing.iter_mut().find(|(expected, _)| line == *expected) {
                    *count = count.saturating_sub(1);
                }
            }
            Err(RecvTimeoutError::Timeout) => return Err(format!("this did not come: {missing:?}")),
            Err(RecvTimeoutError::Disconnected) => {
                return Err("both processes ended; is another program at port 8888?".to_owned());
            }
        }
    }
    println!("demo  | Both have called each other. Stopping them.");
    Ok(())
}

/// A process that ends with this program, however this program ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has cargo build the two programs if cargo started this one: `cargo run --example demo` builds only this
/// example.
fn build() -> Result<(), String> {
    let Some(cargo) = env::var_os("CARGO") else { return Ok(()) };
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--example", "process1", "--example", "process2"])
        .args((!cfg!(debug_assertions)).then_some("--release"))
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .status();
    match built {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("cannot build the two processes: {status}")),
        Err(error) => Err(format!("cannot start cargo: {error}")),
    }
}

/// Returns the path of the program with this name, which is in the same directory as this one.
fn program(name: &str) -> std::io::Result<PathBuf> {
    let this = env::current_exe()?;
    Ok(this.with_file_name(format!("{name}{}", env::consts::EXE_SUFFIX)))
}

/// Starts a program and sends what it prints to `lines`.
fn start(role: &str, name: &'static str, lines: Sender<String>) -> Result<Process, String> {
    let problem = |error| format!("cannot start {role}: {error}");
    let mut child = Command::new(program(role).map_err(problem)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(problem)?;
    collect(name, child.stdout.take(), lines.clone());
    collect(name, child.stderr.take(), lines);
    Ok(Process(child))
}

fn collect(name: &'static str, output: Option<impl Read + Send + 'static>, lines: Sender<String>) {
    let Some(output) = output else { return };
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if lines.send(format!("{name} | {line}")).is_err() {
                return;
            }
        }
    });
}
