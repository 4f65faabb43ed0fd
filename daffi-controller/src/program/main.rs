//! The `daffi-controller` program: a controller without a node.

mod signals;
mod units;

use std::{
    io::{self, Write},
    process::{self, ExitCode},
    sync::Arc,
    thread,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use daffi_controller::Server;
use daffi_core::{
    Address, Error, Limits,
    controller::{self, ControllerConfig},
};
use parking_lot::Mutex;
use signals::Signals;
use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// Routes calls between the nodes that connect to it.
///
/// Prints one line `listening on ADDRESS` for each address once it listens there, with the real port for port 0.
#[derive(Debug, Parser)]
#[command(name = "daffi-controller", version, after_help = AFTER_HELP)]
struct Options {
    /// Where to listen: tcp://HOST:PORT or unix:///PATH; may be given several times
    /// [default: unix://<temporary directory>/daffi/.sock]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<Address>,

    /// Which of several nodes that offer a callback gets a call
    #[arg(long, value_enum, default_value_t = Strategy::Random)]
    strategy: Strategy,

    /// The largest arguments or result of one call
    #[arg(long, value_name = "BYTES", value_parser = units::bytes, default_value = "64MiB")]
    payload_max: u64,

    /// The most that waits for one node before calls to it are refused
    #[arg(long, value_name = "BYTES", value_parser = units::bytes, default_value = "8MiB")]
    queue_max: u64,

    /// The most that waits for all nodes together
    #[arg(long, value_name = "BYTES", value_parser = units::bytes, default_value = "256MiB")]
    queue_total_max: u64,

    /// The most connections
    #[arg(long, value_name = "COUNT", default_value_t = 65_536)]
    connections_max: usize,

    /// How often nodes are asked for a sign of life; three in a row unanswered and a node is lost
    #[arg(long, value_name = "TIME", value_parser = units::time, default_value = "5s")]
    heartbeat: Duration,

    /// How many threads read and write. By default one for every four cores, at most 4
    #[arg(long, value_name = "COUNT")]
    threads: Option<usize>,

    /// How long stopping lets calls finish
    #[arg(long, value_name = "TIME", value_parser = units::time, default_value = "10s")]
    grace: Duration,
}

const AFTER_HELP: &str = "\
BYTES are written like 65536, 64KiB or 1GiB, TIME like 500ms, 5s or 2m.

SIGINT and SIGTERM stop the controller: nodes are told, and calls in flight may finish within the grace time.
A second signal stops it at once. The log goes to stderr; RUST_LOG says how much of it (default: info).

The program raises its limit of open files to what --connections-max needs, up to the hard limit (ulimit -Hn).

Exit codes:
  0  stopped, no call was cut off
  2  the options make no sense
  3  an address is in use or cannot be used
  4  stopped with calls in flight";

const EXIT_USAGE: u8 = 2;
const EXIT_ADDRESS: u8 = 3;
const EXIT_FORCED: u8 = 4;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Strategy {
    /// Any, with equal chances
    Random,
    /// One after the other
    RoundRobin,
    /// The one with the fewest calls in flight
    LeastBusy,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    // A thread writes the log: if nobody reads it, lines are lost and nothing waits. A log that can no longer be
    // written is no reason to stop, nor to complain on the same stderr.
    let (log, written) = NonBlocking::new(io::stderr());
    let log_end = LogEnd::new(written);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(log)
        .with_ansi(false)
        .log_internal_errors(false)
        .init();

    allow_sockets(options.connections_max);
    // Before anything is announced, so that a process that reads the announcement may send a signal.
    let mut signals = match Signals::register() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "cannot listen for signals");
            return EXIT_USAGE.into();
        }
    };
    let server = match Server::start(options.config()) {
        Ok(server) => server,
        Err(error) => return fail(&error).into(),
    };
    for address in server.addresses() {
        announce(address);
    }

    signals.wait();
    tracing::info!(grace = ?options.grace, "stopping");
    let forced_end = log_end.clone();
    thread::spawn(move || {
        signals.wait();
        tracing::warn!("stopping at once");
        forced_end.write_rest();
        process::exit(EXIT_FORCED.into());
    });
    let cut_off = server.stop(options.grace);
    tracing::info!(cut_off, "stopped");
    log_end.write_rest();
    if cut_off > 0 { EXIT_FORCED.into() } else { ExitCode::SUCCESS }
}

/// Writes what is left of the log when the program ends.
#[derive(Debug, Clone)]
struct LogEnd(Arc<Mutex<Option<WorkerGuard>>>);

impl LogEnd {
    fn new(written: WorkerGuard) -> Self {
        Self(Arc::new(Mutex::new(Some(written))))
    }

    /// Waits for about a second at most, in case nobody reads it.
    fn write_rest(&self) {
        let written = self.0.lock().take();
        drop(written);
    }
}

impl Drop for LogEnd {
    fn drop(&mut self) {
        self.write_rest();
    }
}

impl Options {
    fn config(&self) -> ControllerConfig {
        let listen = if self.listen.is_empty() { vec![Address::default_unix()] } else { self.listen.clone() };
        let mut config = ControllerConfig::new(listen);
        config.strategy = match self.strategy {
            Strategy::Random => controller::Strategy::Random,
            Strategy::RoundRobin => controller::Strategy::RoundRobin,
            Strategy::LeastBusy => controller::Strategy::LeastBusy,
        };
        config.threads = self.threads.unwrap_or_else(default_threads);
        config.limits = Limits {
            payload_bytes_max: self.payload_max,
            queue_bytes_max: usize::try_from(self.queue_max).unwrap_or(usize::MAX),
            queue_total_bytes_max: usize::try_from(self.queue_total_max).unwrap_or(usize::MAX),
            connections_max: self.connections_max,
            heartbeat: self.heartbeat,
            grace: self.grace,
            ..Limits::default()
        };
        config
    }
}

/// Raises the limit on file descriptors, of which each connection takes one: the default is often a thousand.
fn allow_sockets(connections: usize) {
    // What else the controller has open.
    const OTHERS: u64 = 64;
    let wanted = connections as u64 + OTHERS;
    match rlimit::increase_nofile_limit(wanted) {
        // Nobody has asked for as many as the default.
        Ok(allowed) if allowed < wanted && connections == Limits::default().connections_max => {
            tracing::debug!(allowed, wanted, "fewer connections than the default of --connections-max");
        }
        Ok(allowed) if allowed < wanted => {
            tracing::info!(allowed, wanted, "fewer connections than --connections-max: see `ulimit -Hn`");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open files"),
    }
}

/// The router's lock keeps more than four threads from achieving more (docs/PERFORMANCE.md), and where cores
/// are few, nodes need them as well.
fn default_threads() -> usize {
    thread::available_parallelism().map_or(1, |cores| (cores.get() / 4).clamp(1, 4))
}

fn announce(address: &Address) {
    tracing::info!(%address, "listening");
    // It is fine if nobody is reading.
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "listening on {address}").and_then(|()| stdout.flush());
}

fn fail(error: &Error) -> u8 {
    tracing::error!(error = error as &dyn std::error::Error, "cannot start");
    match error {
        Error::AddressInUse { .. } | Error::AddressUnusable { .. } => EXIT_ADDRESS,
        _ => EXIT_USAGE,
    }
}
