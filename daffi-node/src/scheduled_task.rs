//! Calls that the controller makes at given times.

use std::time::Duration;

use daffi_core::{Result, answer};

use crate::{blocking::block, flight::Flight, outgoing::Ask, pending::decode, question::Inquiry};

pub use daffi_core::answer::TaskState;

/// A call that the controller makes at given times, as returned by `& PERIOD…`.
///
/// The task lives in the controller. It outlives this handle, this process, and the nodes that run the
/// callback; it ends when it is cancelled, after the last of its times, or with the controller.
///
/// ```no_run
/// # use daffi_node as daffi;
/// # fn main() -> daffi::Result<()> {
/// use std::time::Duration;
/// use daffi::{Global, PERIOD, TaskState};
///
/// let g = Global::builder().start()?;
/// let task = (g.call.by_name::<(), _>("tick", ()) & PERIOD.period(Duration::from_secs(60)))?;
/// let status = task.status()?;
/// assert_eq!(status.state, TaskState::Active);
/// println!("{} runs, {} of them failed", status.runs, status.failures);
/// task.cancel()?;
/// # Ok(()) }
/// ```
#[must_use = "a scheduled task goes on until it is cancelled; keep it, or drop it on purpose"]
#[derive(Debug)]
pub struct ScheduledTask {
    flight: Flight,
}

/// How a scheduled task is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskStatus {
    /// Whether it is still going on.
    pub state: TaskState,
    /// How many calls it has made.
    pub runs: u64,
    /// How many of them failed.
    pub failures: u64,
    /// How many calls it skipped, because the previous one was still running, nobody offered the callback, or
    /// the controller was not running at the time.
    pub skipped: u64,
    /// The last failure's message, if there was one.
    pub last_error: Option<String>,
    /// The time until the next call, if there is one.
    pub next_in: Option<Duration>,
}

impl ScheduledTask {
    pub(crate) fn new(flight: Flight) -> Self {
        Self { flight }
    }

    /// Returns the controller's number for the task.
    ///
    /// Waits until the controller has accepted the task, blocking this thread.
    ///
    /// # Errors
    /// The reason why the controller did not accept it;
    /// [`Error::BlockingInAsync`](crate::Error::BlockingInAsync).
    pub fn id(&self) -> Result<u64> {
        self.wait_id("ScheduledTask::id", "`id_async`")
    }

    /// Like [`id`](Self::id), without blocking.
    ///
    /// # Errors
    /// Same as for the blocking form.
    ///
    /// # Cancel safety
    /// The future can be dropped and the method called again.
    pub async fn id_async(&self) -> Result<u64> {
        decode("PERIOD", self.flight.outcome().await?.one())
    }

    /// Ends the task, blocking this thread until the controller confirms it.
    ///
    /// After that no call begins. A running one is not ended.
    ///
    /// # Errors
    /// Same as [`id`](Self::id); [`Error::NoTask`](crate::Error::NoTask) if the controller no longer knows
    /// it.
    pub fn cancel(&self) -> Result<()> {
        let (blocking, twin) = ("ScheduledTask::cancel", "`cancel_async`");
        let id = self.wait_id(blocking, twin)?;
        self.inquire(id, Ask::CancelTask, blocking).wait(twin, None)?;
        Ok(())
    }

    /// Like [`cancel`](Self::cancel), without blocking.
    ///
    /// # Errors
    /// Same as for the blocking form.
    ///
    /// # Cancel safety
    /// When the future is dropped, the task may or may not have ended.
    pub async fn cancel_async(&self) -> Result<()> {
        self.inquire(self.id_async().await?, Ask::CancelTask, "ScheduledTask::cancel").answer(None).await?;
        Ok(())
    }

    /// Returns how the task is doing, blocking this thread until the controller answers.
    ///
    /// # Errors
    /// Same as [`cancel`](Self::cancel).
    pub fn status(&self) -> Result<TaskStatus> {
        let (blocking, twin) = ("ScheduledTask::status", "`status_async`");
        let id = self.wait_id(blocking, twin)?;
        let inquiry = self.inquire(id, Ask::TaskStatus, blocking);
        let payload = inquiry.wait(twin, None)?;
        Ok(TaskStatus::new(inquiry.decode(&payload)?))
    }

    /// Like [`status`](Self::status), without blocking.
    ///
    /// # Errors
    /// Same as for the blocking form.
    ///
    /// # Cancel safety
    /// The future can be dropped and the method called again.
    pub async fn status_async(&self) -> Result<TaskStatus> {
        let inquiry = self.inquire(self.id_async().await?, Ask::TaskStatus, "ScheduledTask::status");
        let payload = inquiry.answer(None).await?;
        Ok(TaskStatus::new(inquiry.decode(&payload)?))
    }

    /// Waits for the id, on behalf of the blocking method `blocking` with the async twin `twin`.
    fn wait_id(&self, blocking: &'static str, twin: &'static str) -> Result<u64> {
        if !self.flight.pending.outcome.is_set() {
            block(blocking, twin, || self.flight.wait_until(None))?;
        }
        decode("PERIOD", self.flight.answer()?.one())
    }

    fn inquire(&self, id: u64, ask: impl FnOnce(u64) -> Ask, what: &'static str) -> Inquiry {
        Inquiry::new(self.flight.node(), ask(id), "", what)
    }
}

impl TaskStatus {
    fn new(status: answer::TaskStatus) -> Self {
        let answer::TaskStatus { state, runs, failures, skipped, last_error, next_in_us, .. } = status;
        let last_error = Some(last_error).filter(|error| !error.is_empty());
        Self { state, runs, failures, skipped, last_error, next_in: next_in_us.map(Duration::from_micros) }
    }
}
