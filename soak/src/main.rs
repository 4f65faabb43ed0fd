//! Calls of every kind, among processes to which every kind of thing happens, for as long as one likes.
//!
//! There are two worlds at a time, each with a controller, callees and callers, all of them processes. They are killed,
//! frozen, terminated and restarted, and their wires broken, as a seed says; in one of the worlds the controller too. Every
//! half minute all is mended: then everybody has to be reachable again, all calls have to end, and what the callers
//! were told has to agree with what the callees did. Some processes are never killed; the memory that they use at these
//! quiet moments, their descriptors and their threads must not grow.
//!
//! ```sh
//! cargo run --release -p daffi-soak --bin soak -- --minutes 60 --seed 1
//! ```

#![cfg(unix)]
#![allow(
    unreachable_pub,
    clippy::result_large_err,
    reason = "it is one program, and its callbacks are as users write them"
)]

mod callee;
mod caller;
mod child;
mod held;
mod history;
mod process;
mod record;
mod report;
mod vitals;
mod warden;
mod world;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use child::Child;
use clap::{Parser, Subcommand};
use report::Report;
use vitals::Vitals;
use warden::Warden;
use world::{Plan, World};

/// Has processes call each other while they are killed, frozen, restarted and cut off, and checks what happened.
///
/// Exits with 1 if anything was wrong, and then says what.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Options {
    /// How long
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// What happens when; another one at each run if there is none
    #[arg(long)]
    seed: Option<u64>,
    /// How many calls a second all callers together make
    #[arg(long, default_value_t = 1600)]
    rate: u64,
    /// How many seconds until all has to be quiet and is judged
    #[arg(long, default_value_t = 30)]
    window: u64,
    /// The nodes' heartbeat in milliseconds; three of them make a dead one
    #[arg(long, default_value_t = 1000)]
    heartbeat_ms: u64,
    /// A file for the report as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// The `daffi-controller` program; it is built if none is given
    #[arg(long)]
    controller: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What a child is.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    Callee(Child),
    #[command(hide = true)]
    Caller(Child),
    #[command(hide = true)]
    Warden { directory: PathBuf },
}

const CALLEES: u32 = 5;
const CALLERS: u32 = 4;

fn main() -> ExitCode {
    let options = Options::parse();
    match &options.role {
        Some(Role::Callee(child)) => callee::run(child),
        Some(Role::Caller(child)) => caller::run(child),
        Some(Role::Warden { directory }) => warden::run(directory),
        None => {}
    }
    match soak(&options) {
        Ok(report) => {
            println!("{}", report.text);
            if let Some(path) = &options.json
                && let Err(error) = fs::write(path, format!("{:#}\n", report.json))
            {
                eprintln!("cannot write {}: {error}", path.display());
                return ExitCode::FAILURE;
            }
            if report.violated == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("cannot go on: {error}");
            ExitCode::FAILURE
        }
    }
}

fn soak(options: &Options) -> io::Result<Report> {
    let seed = options.seed.unwrap_or_else(|| {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |since| since.as_secs())
    });
    let program = env::current_exe()?;
    let controller = match &options.controller {
        Some(path) => path.clone(),
        None => build_controller(&program)?,
    };
    let directory = env::temp_dir().join(format!("daffi-soak-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    // Whoever builds while this runs changes the programs that children are started from.
    let (program, controller) = (keep(&program, &directory)?, keep(&controller, &directory)?);
    let warden = Arc::new(Warden::start(&program, &directory)?);
    println!("seed {seed}: to run it again, add --seed {seed}");
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(options.minutes * 60.0);
    let plans = [("steady", false), ("bouncing", true)].map(|(name, bounces)| Plan {
        name,
        bounces,
        callees: CALLEES,
        callers: CALLERS,
        rate: options.rate / u64::from(2 * CALLERS),
        seed: seed.wrapping_mul(2).wrapping_add(u64::from(bounces)),
        window: Duration::from_secs(options.window),
        heartbeat: Duration::from_millis(options.heartbeat_ms),
        controller: controller.clone(),
        program: program.clone(),
        directory: directory.clone(),
        warden: warden.clone(),
    });
    let runs = plans.map(|plan| thread::spawn(move || run(plan, end)));
    let mut own = Vitals::default();
    while !runs.iter().all(thread::JoinHandle::is_finished) {
        let held_kib = Some(held::held_kib());
        own.sample(0, "soak itself", std::process::id(), begun.elapsed(), true, held_kib);
        thread::sleep(
            Duration::from_secs(1)
                .min(end.saturating_duration_since(Instant::now()))
                .max(Duration::from_millis(100)),
        );
    }
    let mut worlds = Vec::new();
    for run in runs {
        worlds.push(run.join().map_err(|_| io::Error::other("a world panicked"))??);
    }
    Ok(Report::new(&worlds, &own, begun.elapsed(), seed))
}

/// One world, window by window.
fn run(plan: Plan, end: Instant) -> io::Result<World> {
    let name = plan.name;
    let mut world = World::start(plan)?;
    loop {
        let quiet = world.run_window()?;
        let (kept, violated) = {
            let history = process::lock(&world.history);
            (history.kept(), history.violated)
        };
        println!("{name}: window {} is over, {kept} calls kept, {violated} violations", world.windows);
        if Instant::now() >= end || !quiet {
            world.stop();
            return Ok(world);
        }
    }
}

/// A copy of a program that stays as it is.
fn keep(program: &Path, directory: &Path) -> io::Result<PathBuf> {
    let copy = directory.join(program.file_name().unwrap_or_default());
    fs::copy(program, &copy)?;
    Ok(copy)
}

/// Has cargo build the controller's program, next to this one.
fn build_controller(program: &Path) -> io::Result<PathBuf> {
    // `<target directory>/<profile>/soak`
    let profile = program.parent().ok_or_else(|| io::Error::other("this program is nowhere"))?;
    let target = profile.parent().ok_or_else(|| io::Error::other("this program has no target directory"))?;
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["build", "-p", "daffi-controller", "--bin", "daffi-controller", "--target-dir"])
        .arg(target);
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let status = command.current_dir(env!("CARGO_MANIFEST_DIR")).status()?;
    if !status.success() {
        return Err(io::Error::other("the controller's program cannot be built; give one with --controller"));
    }
    Ok(profile.join("daffi-controller"))
}
