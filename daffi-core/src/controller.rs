//! The seam behind which a controller stands.
//!
//! A node crate knows only what is here, and so does a program that starts a controller with `init_controller(true)`.
//! A controller crate implements [`Controller`] and submits it with [`submit_controller!`](crate::submit_controller);
//! whichever one is linked is used.

use std::{fmt, sync::Arc, time::Duration};

use crate::{Address, Error, Limits, Result, frame::Frame, reactor::Reactor};

/// Makes a running controller: what a controller crate offers.
pub trait Controller: Send + Sync {
    /// What it calls itself, for logs.
    fn name(&self) -> &str;

    /// Starts listening on every address of `config`, with its work on `reactor`.
    ///
    /// Returns once others can connect. An implementation with threads of its own may leave the reactor alone.
    ///
    /// # Errors
    /// [`Error::AddressInUse`] or
    /// [`Error::AddressUnusable`], with nothing left behind.
    fn start(&self, config: ControllerConfig, reactor: &Reactor) -> Result<Arc<dyn RunningController>>;
}

/// A controller that runs. Dropping the last handle stops it without grace.
pub trait RunningController: Send + Sync {
    /// Where it listens, with the ports that were found for port 0.
    fn addresses(&self) -> Vec<Address>;

    /// Connects the node of this process in memory. What the controller has for the node goes to `node`, and the
    /// node's frames go into the port that is returned, a `HELLO` first, as over a socket.
    ///
    /// The controller holds no lock while it calls `node`, and does not do so from within a `send` of the node's own:
    /// so a node may answer on the spot, and may hold a lock while it sends. It calls on one thread at a time, and
    /// what `node` refuses as [`PortError::Full`] it tries again, with nothing overtaking it.
    ///
    /// `None`, the default, says that this controller has no such thing: the node then uses a socket.
    fn attach(&self, node: Arc<dyn FramePort>) -> Option<Arc<dyn FramePort>> {
        let _ = node;
        None
    }

    /// Whether threads of this process that wait for answers may lead the `Reactor` that the controller was started on, so that they
    /// need no other thread for them. Between two waits up to two milliseconds pass in which nobody leads. So a controller that says `true` ends it by
    /// [`Handle::welcome_guests`](crate::reactor::Handle::welcome_guests) with `false` as soon as anybody else calls through it. The default is `false`.
    fn callers_may_lead(&self) -> bool {
        false
    }

    /// Stops: accepts nobody new, tells the nodes, lets calls in flight finish within `grace`, then closes.
    /// Returns when that is done. A second call returns once the first is done.
    fn stop(&self, grace: Duration);

    /// How much it remembers, in a type of its own crate. For `daffi-sim` alone.
    #[cfg(feature = "simulation")]
    fn sizes(&self) -> Option<Box<dyn std::any::Any>> {
        None
    }
}

/// One direction of a connection in memory: where frames go in.
///
/// `send` is called on any thread and has to return quickly; frames that one thread sends arrive in that order.
pub trait FramePort: Send + Sync {
    /// Passes a frame on.
    ///
    /// # Errors
    /// The frame was not taken, see [`PortError`].
    fn send(&self, frame: &Frame<'_>) -> Result<(), PortError>;

    /// Passes a frame on, where more may follow: what comes of it may wait until [`flush`](Self::flush), which is called
    /// soon. The default sends it.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    fn push(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        self.send(frame)
    }

    /// Does what was left of frames that were pushed. The default has nothing left.
    fn flush(&self) {}

    /// Ends the connection. Nothing is sent after this, in either direction.
    fn close(&self, reason: &str);
}

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// As many bytes wait as may wait; the frame can be sent again later.
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
    /// Where to listen; at least one address.
    pub listen: Vec<Address>,
    /// Which of several nodes that offer a callback gets a call.
    pub strategy: Strategy,
    /// What it takes on before it refuses.
    pub limits: Limits,
    /// How many threads read from its connections and write to them. Default 1, which is the `Reactor` that it is started
    /// on. One passes on more than a million small calls a second; see `docs/PERFORMANCE.md` for when more help.
    pub threads: usize,
    /// A node of this process is going to [`attach`](RunningController::attach). Whoever connects meanwhile is let in once it has
    /// registered its callbacks, so that nobody who finds the controller misses them, but after a second in any case. Default
    /// `false`. It is a matter of courtesy: a controller may ignore it.
    pub node: bool,
}

impl ControllerConfig {
    /// The most threads that a controller may have.
    pub const THREADS_MAX: usize = 1024;

    /// A controller on these addresses, with defaults for the rest.
    pub fn new(listen: Vec<Address>) -> Self {
        Self { listen, strategy: Strategy::default(), limits: Limits::default(), threads: 1, node: false }
    }

    /// Says whether a controller can run like this.
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
    /// Any, with equal chances.
    #[default]
    Random,
    /// One after the other.
    RoundRobin,
    /// The one with the fewest calls in flight through this controller; any of those if there are several.
    LeastBusy,
}

/// A controller that was submitted at link time.
#[doc(hidden)]
pub struct LinkedController(pub &'static dyn Controller);

inventory::collect!(LinkedController);

/// The controller that is linked into this program, if any.
///
/// With several, the first by name is taken and a warning logged: choose one with `Global::builder().controller(…)`.
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
/// Takes an expression of a constant type that implements `Controller`.
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
