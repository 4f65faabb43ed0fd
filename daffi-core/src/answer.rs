//! The controller's answers to questions, in the payload codec.

use serde::{Deserialize, Serialize};

/// A connected process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Process {
    /// Its name.
    pub name: String,
    /// The callbacks it offers, sorted.
    pub callbacks: Vec<String>,
}

impl Process {
    /// Creates a process of this name that offers these callbacks.
    pub fn new(name: String, callbacks: Vec<String>) -> Self {
        Self { name, callbacks }
    }
}

/// A callback, and the nodes that offer it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CallbackInfo {
    /// Its name.
    pub name: String,
    /// Its signature as text, such as `(a: i64, b: i64) -> i64`.
    pub signature: String,
    /// The nodes that offer it with this signature, sorted.
    pub nodes: Vec<String>,
    /// Whether it can be called now; a singleton's method cannot until its instance is registered.
    pub ready: bool,
}

impl CallbackInfo {
    /// Creates a callback with this signature, offered by these nodes.
    pub fn new(name: String, signature: String, nodes: Vec<String>, ready: bool) -> Self {
        Self { name, signature, nodes, ready }
    }
}

/// How a scheduled task is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TaskStatus {
    /// Whether it is still going on.
    pub state: TaskState,
    /// How many calls it has made.
    pub runs: u64,
    /// How many of them failed.
    pub failures: u64,
    /// How many times it did not call because its previous call was still running, nobody offered the
    /// callback, or the controller was not running at the time.
    pub skipped: u64,
    /// The message of the last failure; empty if there was none.
    pub last_error: String,
    /// Microseconds until the next call, if there is one.
    pub next_in_us: Option<u64>,
}

impl TaskStatus {
    /// Creates the status of a task that has not run yet.
    pub fn new(next_in_us: Option<u64>) -> Self {
        Self {
            state: TaskState::Active,
            runs: 0,
            failures: 0,
            skipped: 0,
            last_error: String::new(),
            next_in_us,
        }
    }
}

/// Whether a scheduled task is still going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TaskState {
    /// It will call again.
    Active,
    /// All its times have passed.
    Finished,
    /// It was cancelled.
    Cancelled,
}
