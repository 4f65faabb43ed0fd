//! What a simulated world needs from a node beyond its API. For `daffi-sim` only.

use std::{
    any::Any,
    sync::{Arc, Weak},
};

use daffi_core::{Result, simulation};
use parking_lot::Mutex;
use tokio::runtime::Runtime;

use crate::{global::Global, outgoing::Ask, question::Inquiry};

/// How much a node remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Sizes {
    /// Calls without an outcome yet.
    pub calls: usize,
    /// Requests that run or wait to run.
    pub requests: usize,
    /// Whether large payloads are being sent.
    pub streams: bool,
    /// Calls that count against the limit of those in flight.
    pub places: usize,
    /// Calls that wait for their `eta`.
    pub delayed: usize,
    /// Bytes of arguments that wait to be sent, or are held for requests.
    pub argument_bytes: usize,
    /// Answers to calls that were already over.
    pub late_replies: u64,
}

/// Returns how much the node of `global` remembers.
pub fn sizes(global: &Global) -> Sizes {
    global.node().map_or_else(Sizes::default, |node| node.sizes())
}

/// Returns how much the controller in the process of `global` remembers, as a type of its crate.
pub fn controller_sizes(global: &Global) -> Option<Box<dyn Any>> {
    global.controller()?.sizes()
}

/// Ends a scheduled task, no matter whose.
///
/// # Errors
/// If the controller does not know it.
pub async fn end_task(global: &Global, task: u64) -> Result<()> {
    let Some(node) = global.node() else { return Ok(()) };
    Inquiry::new(node, Ask::CancelTask(task), "", "simulation::end_task").answer(None).await.map(drop)
}

/// Makes the simulated world do what the threads of `workers` would do.
pub(crate) fn lend(workers: &Arc<Mutex<Option<Runtime>>>) {
    let workers = Arc::downgrade(workers);
    let poll = move || poll(&workers);
    simulation::with(|world| world.runtime(Box::new(poll)));
}

/// Polls each task that wants it at least once; returns whether there can be more.
fn poll(workers: &Weak<Mutex<Option<Runtime>>>) -> bool {
    let Some(workers) = workers.upgrade() else { return false };
    let mut workers = workers.lock();
    if let Some(workers) = &mut *workers {
        workers.block_on(tokio::task::yield_now());
    }
    workers.is_some()
}
