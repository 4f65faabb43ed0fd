//! What callees and callers have in common: who they are, and what their parent tells them.

use std::{
    io::{self, BufRead},
    process,
    time::{Duration, SystemTime},
};

use daffi::{Address, Global, GlobalBuilder, Limits};

/// Who a child is.
#[derive(Debug, Clone, clap::Args)]
pub struct Child {
    /// Which one of its kind.
    #[arg(long)]
    pub number: u32,
    /// Which process of all.
    #[arg(long)]
    pub serial: u16,
    /// How many callees there are.
    #[arg(long)]
    pub callees: u32,
    #[arg(long)]
    pub address: Address,
    #[arg(long)]
    pub heartbeat_ms: u64,
    /// Calls a second.
    #[arg(long)]
    pub rate: u64,
    #[arg(long)]
    pub seed: u64,
    /// It is never killed.
    #[arg(long)]
    pub lasting: bool,
    /// The window in which it begins.
    #[arg(long)]
    pub window: u16,
}

impl Child {
    /// Its node, whose log the parent keeps the end of.
    pub fn builder(&self, kind: &str) -> GlobalBuilder {
        tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).log_internal_errors(false).init();
        let limits = Limits { heartbeat: Duration::from_millis(self.heartbeat_ms), ..Limits::default() };
        Global::builder()
            .process_name(format!("{kind}-{}", self.number))
            .address(self.address.clone())
            .limits(limits)
    }
}

/// What the parent wants.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    /// Begin with this window.
    Go(u16),
    /// No new calls.
    Pause,
    /// See whether all can be called.
    Probe,
    /// Say how far it is.
    Mark(u64),
}

/// Does what the parent says, until that is gone.
pub fn obey(mut what: impl FnMut(Order)) -> ! {
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        let (word, number) = line.split_once(' ').unwrap_or((&line, "0"));
        match (word, number.parse::<u64>()) {
            ("go", Ok(window)) => what(Order::Go(window as u16)),
            ("pause", _) => what(Order::Pause),
            ("probe", _) => what(Order::Probe),
            ("mark", Ok(number)) => what(Order::Mark(number)),
            _ => panic!("the parent says {line:?}"),
        }
    }
    process::exit(0);
}

/// Milliseconds since 1970, which all processes of a machine agree on.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
