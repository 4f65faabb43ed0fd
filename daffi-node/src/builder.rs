//! How to start a `Global`.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use daffi_core::{
    Address, Error, Limits, Result,
    controller::{self, Controller, ControllerConfig, RunningController, Strategy},
    host,
    names::check_name,
    reactor::{Reactor, Service},
};

use serde::Serialize;

use crate::{
    blocking::block,
    callback::Callback,
    closure::Closure,
    connection::{Connector, Target},
    executor::{Executor, remember_places},
    global::{Global, Starting},
    node::Node,
    registration::linked,
    registry::Registry,
};

/// Configures how a [`Global`] starts.
///
/// Everything has a default: a node alone, with a random name, at the default UNIX socket.
///
/// ```no_run
/// # use daffi_node as daffi;
/// use std::time::Duration;
/// use daffi::Global;
///
/// # fn main() -> daffi::Result<()> {
/// let g = Global::builder()
///     .process_name("proc1")
///     .init_controller(true)
///     .host("localhost")
///     .port(8888)
///     .default_timeout(Duration::from_secs(30))
///     .start()?;
/// # Ok(()) }
/// ```
#[must_use = "nothing is started before `start` or `start_async`"]
pub struct GlobalBuilder {
    process_name: Option<String>,
    init_controller: bool,
    init_node: bool,
    host: Option<String>,
    port: Option<u16>,
    unix_sock_path: Option<PathBuf>,
    connect_timeout: Option<Duration>,
    default_timeout: Option<Duration>,
    callbacks: Vec<Callback>,
    link_time_callbacks: bool,
    controller: Option<Box<dyn Controller>>,
    strategy: Option<Strategy>,
    limits: Limits,
}

impl Default for GlobalBuilder {
    fn default() -> Self {
        Self {
            process_name: None,
            init_controller: false,
            init_node: true,
            host: None,
            port: None,
            unix_sock_path: None,
            connect_timeout: None,
            default_timeout: None,
            callbacks: Vec::new(),
            link_time_callbacks: true,
            controller: None,
            strategy: None,
            limits: Limits::default(),
        }
    }
}

impl GlobalBuilder {
    /// Sets the name of this process's node.
    ///
    /// Others wait for the node and pin calls to it by this name. Each process needs its own. Default: the
    /// program's name with a random number.
    pub fn process_name(mut self, name: impl Into<String>) -> Self {
        self.process_name = Some(name.into());
        self
    }

    /// Sets whether this process runs the controller. Default: no.
    pub fn init_controller(mut self, init: bool) -> Self {
        self.init_controller = init;
        self
    }

    /// Sets whether this process runs a node. Default: yes.
    ///
    /// Without a node, the process neither calls nor is called: `.init_controller(true).init_node(false)` is
    /// a controller by itself.
    pub fn init_node(mut self, init: bool) -> Self {
        self.init_node = init;
        self
    }

    /// Sets the controller's host, for TCP.
    ///
    /// A controller binds exactly this address: `localhost` is the loopback, and `0.0.0.0` has to be asked
    /// for.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Sets the controller's port, for TCP.
    ///
    /// A controller without one takes a free port, which [`Global::address`] returns.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Sets the controller's UNIX socket: its path, or a directory in which it is called `.sock`.
    ///
    /// Default, if there is no host either: `<temp dir>/daffi/.sock`.
    pub fn unix_sock_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.unix_sock_path = Some(path.into());
        self
    }

    /// Sets where the controller is, as one value: from [`Global::address`], or parsed from text.
    ///
    /// Equivalent to [`host`](Self::host) and [`port`](Self::port), or
    /// [`unix_sock_path`](Self::unix_sock_path).
    ///
    /// ```no_run
    /// # mod daffi { pub use {daffi_core::Address, daffi_node::Global}; }
    /// use daffi::{Address, Global};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let address: Address = "tcp://localhost:8888".parse()?;
    /// let g = Global::builder().address(address).start()?;
    /// # Ok(()) }
    /// ```
    pub fn address(self, address: Address) -> Self {
        match address {
            Address::Tcp { host, port } => self.host(host).port(port),
            Address::Unix(path) => self.unix_sock_path(path),
        }
    }

    /// Sets how long `start` waits for a controller before it fails. Default: forever, with a log line.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = Some(timeout);
        self
    }

    /// Sets the timeout of calls that have none of their own, like [`Call::timeout`](crate::Call::timeout).
    /// Default: none.
    ///
    /// It does not apply to calls without a return, to scheduled calls, or to waits such as
    /// [`Global::wait_process`].
    pub fn default_timeout(mut self, timeout: Duration) -> Self {
        self.default_timeout = Some(timeout);
        self
    }

    /// Offers a callback on this node only.
    ///
    /// The function may block. It takes what `#[callback]` functions take: owned arguments, whose types must
    /// be written out, preceded by `&Context` if it wants to know about its call. For a function that returns a
    /// `Result`, use [`try_callback`](Self::try_callback).
    ///
    /// ```no_run
    /// # use daffi_node as daffi;
    /// # fn main() -> daffi::Result<()> {
    /// let g = daffi::Global::builder().callback("add", |a: i64, b: i64| a + b).start()?;
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn callback<M, F>(mut self, name: impl Into<Cow<'static, str>>, function: F) -> Self
    where
        F: Closure<M, Output: Serialize>,
    {
        self.callbacks.push(Callback::closure(name, function));
        self
    }

    /// Like [`callback`](Self::callback), with a function that returns a `Result`.
    ///
    /// The caller receives its `Err` as `Error::Remote`, with its text and its sources.
    #[track_caller]
    pub fn try_callback<M, F, T, E>(mut self, name: impl Into<Cow<'static, str>>, function: F) -> Self
    where
        F: Closure<M, Output = Result<T, E>>,
        T: Serialize,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.callbacks.push(Callback::try_closure(name, function));
        self
    }

    /// Like [`callback`](Self::callback), with a function that returns a future.
    ///
    /// The future runs on daffi's own tokio runtime and must not block. Take `Context` instead of `&Context`,
    /// which the future could not keep.
    ///
    /// ```no_run
    /// # use daffi_node as daffi;
    /// # fn main() -> daffi::Result<()> {
    /// let g = daffi::Global::builder().async_callback("add", |a: i64, b: i64| async move { a + b }).start()?;
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn async_callback<M, F>(mut self, name: impl Into<Cow<'static, str>>, function: F) -> Self
    where
        F: Closure<M, Output: Future<Output: Serialize> + Send>,
    {
        self.callbacks.push(Callback::async_closure(name, function));
        self
    }

    /// Like [`try_callback`](Self::try_callback), with a function that returns a future.
    #[track_caller]
    pub fn try_async_callback<M, F, T, E>(mut self, name: impl Into<Cow<'static, str>>, function: F) -> Self
    where
        F: Closure<M, Output: Future<Output = Result<T, E>> + Send>,
        T: Serialize,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.callbacks.push(Callback::try_async_closure(name, function));
        self
    }

    /// Sets whether this node offers the callbacks that `#[callback]` registers in the program. Default: yes.
    pub fn link_time_callbacks(mut self, offer: bool) -> Self {
        self.link_time_callbacks = offer;
        self
    }

    /// Runs this controller instead of the linked one. Implies
    /// [`init_controller(true)`](Self::init_controller).
    pub fn controller(mut self, controller: impl Controller + 'static) -> Self {
        self.controller = Some(Box::new(controller));
        self.init_controller = true;
        self
    }

    /// Sets which of several nodes that offer a callback gets a call, for the controller of this process.
    ///
    /// Default: [`Strategy::Random`].
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = Some(strategy);
        self
    }

    /// Sets what the node and the controller of this process take on before they refuse. Default:
    /// [`Limits::default`].
    ///
    /// Where both sides of a call have a limit, such as the size of payloads, the smaller one applies.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Starts, and waits until the node is known to a controller, blocking this thread.
    ///
    /// Waits as long as it takes, or until [`connect_timeout`](Self::connect_timeout).
    ///
    /// # Errors
    /// * [`Error::Configuration`]: options contradict each other, or the system has no more threads or files.
    /// * [`Error::AddressInUse`], [`Error::AddressUnusable`], [`Error::NoController`]: the controller cannot
    ///   be started.
    /// * [`Error::Unreachable`]: no controller was reached in time.
    /// * [`Error::NameTaken`], [`Error::InvalidName`], [`Error::DuplicateCallback`], [`Error::Refused`]: the
    ///   controller, or this process, does not accept the node.
    /// * [`Error::Stopped`]: it was stopped in the meantime.
    /// * [`Error::BlockingInAsync`]: this would block an async runtime.
    pub fn start(self) -> Result<Global> {
        block("GlobalBuilder::start", "`start_async`", || self.begin()?.wait())?
    }

    /// Like [`start`](Self::start), without blocking.
    ///
    /// # Errors
    /// Same as for the blocking form.
    ///
    /// # Cancel safety
    /// Dropping the future stops whatever was started.
    pub async fn start_async(self) -> Result<Global> {
        self.begin()?.up().await
    }

    /// Starts everything, without waiting for a controller.
    fn begin(mut self) -> Result<Starting> {
        let address = self.check()?;
        // Before the shape of any type is determined.
        remember_places();
        // Distinguishes this node from an earlier one, and seeds the jitter.
        let seed = host::random();
        let name = self.process_name.take().unwrap_or_else(|| random_name(seed));
        let registry = if self.init_node { Some(self.registry()?) } else { None };
        let reactor = Reactor::start("daffi-io").map_err(|error| no_threads(&error))?;
        let (controller, address) = match self.start_controller(&address, &reactor)? {
            Some(controller) => {
                let address = controller.addresses().into_iter().next().unwrap_or(address);
                (Some(controller), address)
            }
            None => (None, address),
        };
        let node = match registry {
            Some(registry) => {
                let target = match &controller {
                    Some(controller) => Target::Memory(controller.clone()),
                    None => Target::Address(address.clone()),
                };
                let connector = Connector::new(target, self.connect_timeout, seed);
                let executor = Executor::new(registry, &self.limits, &name, reactor.handle().clone())
                    .map_err(|error| no_threads(&error))?;
                Some(Node::new(
                    name,
                    seed,
                    self.limits.clone(),
                    self.default_timeout,
                    executor,
                    reactor.handle().clone(),
                    connector,
                ))
            }
            None => None,
        };
        if let Some(node) = &node {
            reactor.handle().add_service(node.clone() as Arc<dyn Service>);
            // A node that calls others and is never called may read its answers itself.
            let may_lead = controller.as_ref().is_none_or(|controller| controller.callers_may_lead());
            if may_lead && node.executor.registry().len() == 0 {
                reactor.handle().welcome_guests(true);
            }
            if cfg!(panic = "abort") && node.executor.registry().len() > 0 {
                tracing::warn!(
                    node = node.name,
                    "this program is built to abort on a panic: one in a callback ends the process, not the call alone"
                );
            }
            node.connect();
        }
        Ok(Starting(Global::new(node, controller, address, self.limits.grace, reactor)))
    }

    fn start_controller(
        &mut self,
        address: &Address,
        reactor: &Reactor,
    ) -> Result<Option<Arc<dyn RunningController>>> {
        if !self.init_controller {
            return Ok(None);
        }
        let mut config = ControllerConfig::new(vec![address.clone()]);
        config.strategy = self.strategy.unwrap_or_default();
        config.limits = self.limits.clone();
        config.node = self.init_node;
        let running = match &self.controller {
            Some(controller) => controller.start(config, reactor)?,
            None => controller::linked().ok_or(Error::NoController)?.start(config, reactor)?,
        };
        Ok(Some(running))
    }

    fn registry(&mut self) -> Result<Registry> {
        let mut callbacks = std::mem::take(&mut self.callbacks);
        if self.link_time_callbacks {
            callbacks.extend(linked());
        }
        Registry::new(callbacks)
    }

    /// Returns where the controller is, if the options make sense.
    fn check(&self) -> Result<Address> {
        let wrong = |problem: &str| Err(Error::Configuration { problem: problem.to_owned() });
        if !self.init_controller && !self.init_node {
            return wrong(
                "neither a controller nor a node would run: leave out init_node(false), or add init_controller(true)",
            );
        }
        if self.unix_sock_path.is_some() && (self.host.is_some() || self.port.is_some()) {
            return wrong("both TCP (host, port) and a UNIX socket (unix_sock_path) are given: choose one");
        }
        if !self.init_controller && self.strategy.is_some() {
            return wrong("the strategy is the controller's: set it where init_controller(true) is");
        }
        if !self.init_node && !self.callbacks.is_empty() {
            return wrong("a controller without a node offers no callbacks: leave out init_node(false)");
        }
        if !self.init_node && self.process_name.is_some() {
            return wrong(
                "a controller without a node has no process name: leave out process_name, or init_node(false)",
            );
        }
        if self.connect_timeout.is_some_and(|timeout| timeout.is_zero()) {
            return wrong("connect_timeout is zero: give it some time, or leave it out to wait for ever");
        }
        if self.default_timeout.is_some_and(|timeout| timeout.is_zero()) {
            return wrong("default_timeout is zero, so every call would fail: leave it out for none");
        }
        if let Err(problem) = self.limits.check() {
            return wrong(&problem);
        }
        if let Some(name) = &self.process_name {
            check_name(name).map_err(|reason| Error::InvalidName { name: name.clone(), reason })?;
        }
        match (&self.host, self.port) {
            (None, None) => {
                Ok(self.unix_sock_path.as_deref().map_or_else(Address::default_unix, unix_address))
            }
            (None, Some(_)) => wrong("a port without a host: add host(\"localhost\")"),
            (Some(host), _) if host.is_empty() => {
                wrong("the host is empty: write host(\"localhost\"), or leave it out for a UNIX socket")
            }
            (Some(_), None | Some(0)) if !self.init_controller => wrong(
                "a host without a port, and no controller in this process that could find one: add port(…)",
            ),
            (Some(host), port) => Ok(Address::Tcp { host: host.clone(), port: port.unwrap_or(0) }),
        }
    }
}

/// Returns the socket that `path` means: itself, or `.sock` in it if it is a directory.
fn unix_address(path: &Path) -> Address {
    let is_directory = path.is_dir() || path.as_os_str().to_string_lossy().ends_with('/');
    Address::Unix(if is_directory { path.join(".sock") } else { path.to_owned() })
}

fn no_threads(error: &io::Error) -> Error {
    Error::Configuration { problem: format!("the operating system gives no more threads or files: {error}") }
}

fn random_name(seed: u64) -> String {
    let program = std::env::current_exe().ok();
    let program =
        program.as_deref().and_then(Path::file_stem).map(|stem| stem.to_string_lossy().into_owned());
    let name = format!("{}-{:08x}", program.as_deref().unwrap_or("process"), seed as u32);
    if check_name(&name).is_ok() { name } else { format!("process-{:08x}", seed as u32) }
}

impl fmt::Debug for GlobalBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GlobalBuilder")
            .field("process_name", &self.process_name)
            .field("init_controller", &self.init_controller)
            .field("init_node", &self.init_node)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_has_to_be_linked() {
        // In the tests of this crate none is.
        let error = Global::builder().init_controller(true).host("localhost").start().unwrap_err();
        assert!(matches!(error, Error::NoController), "{error:?}");
        for words in ["`controller` feature", "use my_controller as _;"] {
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
