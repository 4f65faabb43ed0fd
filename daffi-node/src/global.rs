//! `Global`: the entry point to everything.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use daffi_core::{
    Address, Error, Result,
    answer::{CallbackInfo, Process},
    controller::RunningController,
    frame::Frame,
    host,
    names::check_length,
    reactor::Reactor,
};
use parking_lot::Mutex;

use crate::{
    blocking::block,
    builder::GlobalBuilder,
    caller::Caller,
    context::current_executor,
    latch::Latch,
    node::{FAREWELL, Node},
    outgoing::Ask,
    question::Inquiry,
};

/// A node, a controller, or both, in this process.
///
/// The entry point to everything: calls are made through its field [`call`](Self::call). It is cheap to
/// clone, and all clones are equivalent. Dropping the last one stops it at once, which blocks for up to
/// 250 ms: in async code, call [`stop_async`](Self::stop_async) first.
///
/// ```no_run
/// # use daffi_node as daffi;
/// use daffi::{FG, Global};
///
/// # fn main() -> daffi::Result<()> {
/// let g = Global::builder().process_name("proc1").host("localhost").port(8888).start()?;
/// g.wait_process("proc2")?;
/// let delta: i64 = (g.call.by_name("func1", (10i64, 3i64)) & FG)?;
/// g.stop()
/// # }
/// ```
#[derive(Clone)]
pub struct Global {
    /// Makes calls: `g.call.func1(10, 3) & FG`.
    pub call: Caller,
    shared: Arc<Shared>,
}

/// The state shared by all clones.
struct Shared {
    node: Option<Arc<Node>>,
    controller: Option<Arc<dyn RunningController>>,
    address: Address,
    grace: Duration,
    reactor: Mutex<Option<Reactor>>,
    stopping: AtomicBool,
    stopped: Latch<()>,
}

/// How long stopping waits for the controller to acknowledge it.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long dropping waits for the kernel to take what was handed over.
const DROP_GRACE: Duration = Duration::from_millis(250);

/// How often stopping checks whether everything has arrived and left.
const STOP_EVERY: Duration = Duration::from_millis(1);

impl Global {
    /// Returns a builder that configures how to start.
    pub fn builder() -> GlobalBuilder {
        GlobalBuilder::default()
    }

    pub(crate) fn new(
        node: Option<Arc<Node>>,
        controller: Option<Arc<dyn RunningController>>,
        address: Address,
        grace: Duration,
        reactor: Reactor,
    ) -> Self {
        let call = Caller::new(node.clone());
        let shared = Shared {
            node,
            controller,
            address,
            grace,
            reactor: Mutex::new(Some(reactor)),
            stopping: AtomicBool::new(false),
            stopped: Latch::new(),
        };
        Self { call, shared: Arc::new(shared) }
    }

    /// Returns the name of this process's node; empty for a controller alone.
    pub fn process_name(&self) -> &str {
        self.shared.node.as_ref().map_or("", |node| &node.name)
    }

    /// Returns where the controller is.
    ///
    /// This is the address that this process's own controller listens on, including the port it found if none
    /// was given, or the one that the node connects to.
    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// Waits until a process with this name is connected, blocking this thread. Returns at once if it already
    /// is.
    ///
    /// # Errors
    /// [`Error::Stopped`](crate::Error::Stopped) if this `Global` is stopped in the meantime;
    /// [`Error::BlockingInAsync`](crate::Error::BlockingInAsync).
    pub fn wait_process(&self, name: &str) -> Result<()> {
        self.inquire(Ask::WaitProcess, name, "wait_process")?.wait("`wait_process_async`", None).map(drop)
    }

    /// Like [`wait_process`](Self::wait_process), for at most this long.
    ///
    /// # Errors
    /// The same, and [`Error::Timeout`](crate::Error::Timeout).
    pub fn wait_process_timeout(&self, name: &str, timeout: Duration) -> Result<()> {
        let inquiry = self.inquire(Ask::WaitProcess, name, "wait_process")?;
        inquiry.wait("`wait_process_timeout_async`", Some(timeout)).map(drop)
    }

    /// Like [`wait_process`](Self::wait_process), without blocking.
    ///
    /// # Errors
    /// Same as for the blocking form.
    ///
    /// # Cancel safety
    /// The future can be dropped and the method called again.
    pub async fn wait_process_async(&self, name: &str) -> Result<()> {
        self.inquire(Ask::WaitProcess, name, "wait_process")?.answer(None).await.map(drop)
    }

    /// Like [`wait_process_timeout`](Self::wait_process_timeout), without blocking.
    ///
    /// # Errors
    /// Same as for the blocking form.
    ///
    /// # Cancel safety
    /// The future can be dropped and the method called again.
    pub async fn wait_process_timeout_async(&self, name: &str, timeout: Duration) -> Result<()> {
        self.inquire(Ask::WaitProcess, name, "wait_process")?.answer(Some(timeout)).await.map(drop)
    }

    /// Waits until another process offers this callback, blocking this thread. Returns at once if one already
    /// does.
    ///
    /// # Errors
    /// Same as [`wait_process`](Self::wait_process).
    pub fn wait_function(&self, name: &str) -> Result<()> {
        self.inquire(Ask::WaitFunction, name, "wait_function")?.wait("`wait_function_async`", None).map(drop)
    }

    /// Like [`wait_function`](Self::wait_function), for at most this long.
    ///
    /// # Errors
    /// The same, and [`Error::Timeout`](crate::Error::Timeout).
    pub fn wait_function_timeout(&self, name: &str, timeout: Duration) -> Result<()> {
        let inquiry = self.inquire(Ask::WaitFunction, name, "wait_function")?;
        inquiry.wait("`wait_function_timeout_async`", Some(timeout)).map(drop)
    }

    /// Like [`wait_function`](Self::wait_function), without blocking.
    ///
    /// # Errors
    /// Same as for the blocking form.
    ///
    /// # Cancel safety
    /// The future can be dropped and the method called again.
    pub async fn wait_function_async(&self, name: &str) -> Result<()> {
        self.inquire(Ask::WaitFunction, name, "wait_function")?.answer(None).await.map(drop)
    }

    /// Like [`wait_function_timeout`](Self::wait_function_timeout), without blocking.
    ///
    /// # Errors
    /// Same as for the blocking form.
    ///
    /// # Cancel safety
    /// The future can be dropped and the method called again.
    pub async fn wait_function_timeout_async(&self, name: &str, timeout: Duration) -> Result<()> {
        self.inquire(Ask::WaitFunction, name, "wait_function")?.answer(Some(timeout)).await.map(drop)
    }

    /// Returns the connected processes, including this one, sorted by name.
    ///
    /// Blocks this thread until the controller answers.
    ///
    /// ```no_run
    /// # use daffi_node as daffi;
    /// # fn main() -> daffi::Result<()> {
    /// let g = daffi::Global::builder().start()?;
    /// for process in g.processes()? {
    ///     println!("{} offers {:?}", process.name, process.callbacks);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Same as [`wait_process`](Self::wait_process).
    pub fn processes(&self) -> Result<Vec<Process>> {
        let inquiry = self.inquire(Ask::Processes, "", "processes")?;
        inquiry.decode(&inquiry.wait("`processes_async`", None)?)
    }

    /// Like [`processes`](Self::processes), without blocking.
    ///
    /// # Errors
    /// Same as for the blocking form.
    ///
    /// # Cancel safety
    /// The future can be dropped and the method called again.
    pub async fn processes_async(&self) -> Result<Vec<Process>> {
        let inquiry = self.inquire(Ask::Processes, "", "processes")?;
        inquiry.decode(&inquiry.answer(None).await?)
    }

    /// Returns the callbacks on offer, sorted by name, with signatures and nodes.
    ///
    /// Blocks this thread until the controller answers.
    ///
    /// # Errors
    /// Same as [`wait_process`](Self::wait_process).
    pub fn callbacks(&self) -> Result<Vec<CallbackInfo>> {
        let inquiry = self.inquire(Ask::Callbacks, "", "callbacks")?;
        inquiry.decode(&inquiry.wait("`callbacks_async`", None)?)
    }

    /// Like [`callbacks`](Self::callbacks), without blocking.
    ///
    /// # Errors
    /// Same as for the blocking form.
    ///
    /// # Cancel safety
    /// The future can be dropped and the method called again.
    pub async fn callbacks_async(&self) -> Result<Vec<CallbackInfo>> {
        let inquiry = self.inquire(Ask::Callbacks, "", "callbacks")?;
        inquiry.decode(&inquiry.answer(None).await?)
    }

    /// Blocks this thread until this `Global` is stopped, possibly forever. For processes that only serve
    /// calls.
    ///
    /// # Errors
    /// [`Error::BlockingInAsync`](crate::Error::BlockingInAsync).
    pub fn join(&self) -> Result<()> {
        block("Global::join", "`join_async`", || self.shared.stopped.wait(None)).map(drop)
    }

    /// Like [`join`](Self::join), without blocking.
    ///
    /// # Errors
    /// None; it returns a `Result` like everything else here.
    ///
    /// # Cancel safety
    /// The future can be dropped and the method called again.
    pub async fn join_async(&self) -> Result<()> {
        self.shared.stopped.arrival().await;
        Ok(())
    }

    /// Stops this `Global`, blocking this thread until that is done.
    ///
    /// It takes no new calls from others, lets running callbacks finish within the grace time, sends what was
    /// handed over, and says goodbye. A controller in this process lets the calls of others finish too.
    /// Stopping twice is the same as stopping once. A callback that stops its own process does not wait for
    /// itself, and its caller gets [`Error::RemoteStopped`](crate::Error::RemoteStopped).
    ///
    /// # Errors
    /// [`Error::BlockingInAsync`](crate::Error::BlockingInAsync).
    pub fn stop(&self) -> Result<()> {
        block("Global::stop", "`stop_async`", || {
            self.begin_stop();
            self.shared.stopped.wait(None)
        })
        .map(drop)
    }

    /// Like [`stop`](Self::stop), without blocking.
    ///
    /// # Errors
    /// None; it returns a `Result` like everything else here.
    ///
    /// # Cancel safety
    /// Stopping goes on if the future is dropped.
    pub async fn stop_async(&self) -> Result<()> {
        self.begin_stop();
        self.join_async().await
    }

    #[cfg(feature = "simulation")]
    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        self.shared.node.as_ref()
    }

    #[cfg(feature = "simulation")]
    pub(crate) fn controller(&self) -> Option<&dyn RunningController> {
        self.shared.controller.as_deref()
    }

    fn begin_stop(&self) {
        if self.shared.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        // A callback that stops its own process must not wait for itself.
        let own = |node: &Arc<Node>| node.executor.id() == current_executor();
        let but = usize::from(self.shared.node.as_ref().is_some_and(own));
        let shared = self.shared.clone();
        let stop = move || shared.stop(shared.grace, but);
        if let Err(error) = host::spawn("daffi-stop", stop) {
            tracing::warn!(%error, "no thread to stop with: stopping without grace");
            self.shared.stop(Duration::ZERO, but);
        }
    }

    fn inquire(&self, ask: Ask, name: &str, what: &'static str) -> Result<Inquiry> {
        check_length(name).map_err(|reason| Error::InvalidName { name: name.to_owned(), reason })?;
        Ok(Inquiry::new(self.call.node()?, ask, name, what))
    }
}

impl Shared {
    /// Stops everything within `grace`, not waiting for `but` callbacks, which themselves wait for the stop.
    fn stop(&self, grace: Duration, but: usize) {
        let deadline = host::now() + grace;
        if let Some(node) = &self.node {
            node.reactor().welcome_guests(false);
            if let Some(port) = node.link.port() {
                // A broken link needs no goodbye.
                let said = port.push_now(&Frame::Goodbye { reason: "stopping" });
                // What the controller had already passed on comes before its answer, and is to be run as
                // well.
                if said.is_ok() && !grace.is_zero() && !node.reactor().is_current() {
                    let _ = port.push_now(&Frame::Ping { id: FAREWELL });
                    node.farewell.wait(Some(deadline.min(host::now() + FAREWELL_TIMEOUT)));
                }
            }
            // A request that has begun to arrive is treated like one that has arrived.
            while node.is_receiving() && host::now() < deadline {
                host::sleep(STOP_EVERY);
            }
            if !node.executor.drain(but, deadline) && !grace.is_zero() {
                let left = node.executor.held();
                tracing::warn!(node = node.name, callbacks = left, "stopped before all callbacks were done");
            }
            node.stop();
            if let Some(port) = node.connector.port() {
                let patience = deadline.max(host::now() + DROP_GRACE);
                // Large results, and large arguments of calls that nobody waits for, leave as their receivers
                // take them. The I/O thread does the writing, and nothing signals that the kernel has taken the
                // last byte.
                let is_written = || !node.link.has_streams() && port.is_flushed();
                while !is_written() && node.link.port().is_some() && host::now() < patience {
                    host::sleep(STOP_EVERY);
                }
                if !is_written() && !grace.is_zero() {
                    tracing::warn!(node = node.name, "stopped before everything was sent");
                }
                port.finish("stopped");
            }
            node.executor.stop();
        }
        if let Some(controller) = &self.controller {
            controller.stop(deadline.saturating_duration_since(host::now()));
        }
        if let Some(mut reactor) = self.reactor.lock().take() {
            reactor.stop();
        }
        if let Some(node) = &self.node {
            node.link.down();
        }
        self.stopped.set(());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.stopping.swap(true, Ordering::SeqCst) {
            self.stop(Duration::ZERO, usize::MAX);
        }
    }
}

impl fmt::Debug for Global {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Global")
            .field("process_name", &self.process_name())
            .field("address", self.address())
            .field("controller", &self.shared.controller.is_some())
            .finish_non_exhaustive()
    }
}

/// A `Global` that is starting. If it is dropped before it is up, it stops again.
pub(crate) struct Starting(pub(crate) Global);

impl Starting {
    /// Blocks until the node is known to the controller.
    pub(crate) fn wait(self) -> Result<Global> {
        if let Some(node) = &self.0.shared.node {
            // The latch returns no value only when a deadline passes, and there is none.
            node.started.wait(None).cloned().unwrap_or(Ok(()))?;
        }
        Ok(self.0)
    }

    /// Waits until the node is known to the controller.
    pub(crate) async fn up(self) -> Result<Global> {
        if let Some(node) = &self.0.shared.node {
            node.started.arrival().await.clone()?;
        }
        Ok(self.0)
    }
}
