//! What the programs of the comparison share: their options, payloads, load, and what the kernel counted meanwhile.
//!
//! Each program is started by `run` as `peer-NAME ROLE key=value …`. A caller prints one line of JSON, all others print
//! `ready` once they can be used or are connected.

mod load;
mod nodes;
mod options;
mod payload;
mod report;
mod usage;

pub use load::{Load, Window, Workload};
pub use nodes::{idle_nodes, idle_nodes_async};
pub use options::{Options, Role};
pub use payload::{check, payload};

/// Tells the driver that this router or callee can be used, or that these nodes are connected.
pub fn ready() {
    println!("ready");
}

/// A tokio runtime of one thread. On few cores it serves every peer better than several threads do.
///
/// # Panics
/// If the system has no more threads or descriptors.
pub fn run_async<T>(program: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(program)
}
