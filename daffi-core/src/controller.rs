//! The interface between a controller and everything else.
//!
//! This is all that a node crate knows of controllers, and all that a program that uses
//! `init_controller(true)` needs. A controller crate implements [`Controller`] and submits it with
//! [`submit_controller!`](crate::submit_controller); whichever one is linked is used.

use std::{fmt, sync::Arc, time::Duration};

use crate::{Address, Error, Limits, Result, frame::Frame, reactor::Reactor};

/// Starts controllers; implemented by a controller crate.
pub trait Controller: Send + Sync {
    /// Returns the controller's name, for logs.
    fn name(&self) -> &str;

    /// Starts listening on every address of `config`, with its work on `reactor`.
    ///
    /// Returns once others can connect. An implementation with its own threads may ignore the reactor.
    ///
    /// # Errors
    /// [`Error::AddressInUse`] or [`Error::AddressUnusable`], with nothing left behind.
    fn start(&self, config: ControllerConfig, reactor: &Reactor) -> Result<Arc<dyn RunningController>>;
}

/// A running controller. Dropping the last handle stops it without a grace period.
pub trait RunningController: Send + Sync {
    /// Returns the addresses it listens on, with the actual port in place of port 0.
    fn addresses(&self) -> Vec<Address>;

    /// Connects the node of this process in memory. The controller sends its frames for the node to `node`;
    /// the node sends its own to the returned port, starting with a `HELLO`, as over a socket.
    ///
    /// The controller holds no lock while it calls `node`, and never calls it from within one of the node's
    /// own `send`s. So a node may answer immediately, and may hold a lock while it sends. The controller
    /// calls `node` from one thread at a time; a frame that `node` refuses with [`PortError::Full`] is sent
    /// again later, and no other frame overtakes it.
    ///
    /// The default returns `None`: this controller does not support it, and the node uses a socket instead.
    fn attach(&self, node: Arc<dyn FramePort>) -> Option<Arc<dyn FramePort>> {
        let _ = node;
        None
    }

    /// Returns whether threads of this process that wait for answers may lead the `Reactor` that the
    /// controller was started on, so that no other thread has to be woken for them. Between two such waits,
    /// up to two milliseconds may pass in which nobody leads. A controller that returns `true` must therefore
    /// call [`Handle::welcome_guests`](crate::reactor::Handle::welcome_guests) with `false` as soon as
    /// anybody else makes calls through it. The default is `false`.
    fn callers_may_lead(&self) -> bool {
        false
    }

    /// Stops the controller: accepts no new connections, tells the nodes, lets calls in flight finish within
    /// `grace`, then closes. Returns when that is done; so does a second call.
    fn stop(&self, grace: Duration);

    /// Returns how much the controller remembers, in a type of its own crate. Only for `daffi-sim`.
    #[cfg(feature = "simulation")]
    fn sizes(&self) -> Option<Box<dyn std::any::Any>> {
        None
    }
}

/// One direction of an in-memory connection: the end into which frames are sent.
///
/// `send` may be called from any thread and must return quickly; frames sent by one thread arrive in that
/// order.
pub trait FramePort: Send + Sync {
    /// Sends a frame.
    ///
    /// # Errors
    /// The frame was not accepted, see [`PortError`].
    fn send(&self, frame: &Frame<'_>) -> Result<(), PortError>;

    /// Sends a frame when more may follow: acting on it may be deferred until [`flush`](Self::flush), which
    /// is called soon. The default calls [`send`](Self::send).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    fn push(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        self.send(frame)
    }

    /// Does what pushed frames left to do. The default does nothing.
    fn flush(&self) {}

    /// Ends the connection. Nothing is sent after this, in either direction.
    fn close(&self, reason: &str);
}

/// Why a frame was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// The queue is at its limit; the frame can be sent again later.
    #[error("the queue is full")]
    Full,
    /// The connection is gone.
    #[error("the connection is closed")]
    Closed,
}

/// How a controller is to run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ControllerConfig {
    /// The addresses to listen on; at least one.
    pub listen: Vec<Address>,
    /// Which of several nodes that offer a callback gets a call.
    pub strategy: Strategy,
    /// How much the controller accepts before it refuses.
    pub limits: Limits,
    /// How many threads read from connections and write to them. Default 1, which is the `Reactor` that the
    /// controller is started on. One thread forwards more than a million small calls a second; see
    /// `docs/PERFORMANCE.md` for when more help.
    pub threads: usize,
    /// Whether a node of this process is going to [`attach`](RunningController::attach). If so, others that
    /// connect in the meantime are accepted only once that node has registered its callbacks, so that nobody
    /// who finds the controller misses them, but after a second at the latest. Default `false`. This is a
    /// courtesy: a controller may ignore it.
    pub node: bool,
}

impl ControllerConfig {
    /// The most threads that a controller may have.
    pub const THREADS_MAX: usize = 1024;

    /// Creates a config with these addresses and defaults for the rest.
    pub fn new(listen: Vec<Address>) -> Self {
        Self { listen, strategy: Strategy::default(), limits: Limits::default(), threads: 1, node: false }
    }

    /// Checks that a controller can run with this config.
    ///
    /// # Errors
    /// [`Error::Configuration`] with everything that makes no sense.
    pub fn check(&self) -> Result<()> {
        if self.listen.is_empty() {
            let problem = "a controller needs at least one address to listen on".to_owned();
            return Err(Error::Configuration { problem });
        }
        if !(1..=Self::THREADS_MAX).contains(&self.threads) {
            let problem = format!("{} threads: a controller has 1 to {}", self.threads, Self::THREADS_MAX);
            return Err(Error::Configuration { problem });
        }
        self.limits.check().map_err(|problem| Error::Configuration { problem })
    }
}

/// Which of several nodes that offer a callback gets a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Strategy {
    /// Any of them, with equal probability.
    #[default]
    Random,
    /// Each of them in turn.
    RoundRobin,
    /// The one with the fewest calls in flight through this controller; any of those if there are several.
    LeastBusy,
}

/// A controller submitted at link time.
#[doc(hidden)]
pub struct LinkedController(pub &'static dyn Controller);

inventory::collect!(LinkedController);

/// Returns the controller that is linked into this program, if any.
///
/// If there are several, it takes the first by name and logs a warning: choose one with
/// `Global::builder().controller(…)`.
pub fn linked() -> Option<&'static dyn Controller> {
    let mut all: Vec<_> = inventory::iter::<LinkedController>().map(|linked| linked.0).collect();
    all.sort_by(|a, b| a.name().cmp(b.name()));
    if let [first, _, ..] = &all[..] {
        let names: Vec<_> = all.iter().map(|controller| controller.name()).collect();
        tracing::warn!(
            ?names,
            taken = first.name(),
            "several controllers are linked; choose one with .controller(…)"
        );
    }
    all.first().copied()
}

/// Makes a [`Controller`] the one that `init_controller(true)` starts, wherever this crate is linked.
///
/// Takes a constant expression of a type that implements `Controller`.
#[macro_export]
macro_rules! submit_controller {
    ($controller:expr) => {
        $crate::__private::inventory::submit! {
            $crate::controller::LinkedController(&$controller)
        }
    };
}

impl fmt::Debug for dyn Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Controller({})", self.name())
    }
}

impl fmt::Debug for dyn RunningController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RunningController").field(&self.addresses()).finish()
    }
}

impl fmt::Debug for dyn FramePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FramePort")
    }
}

impl fmt::Debug for LinkedController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LinkedController").field(&self.0).finish()
    }
}
