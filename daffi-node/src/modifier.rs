//! Modifiers: how a call is executed.
//!
//! They are plain values, applied with `&`: `g.call.func1(10, 3) & FG`. Each modifier has only the options
//! that make sense for it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use daffi_core::{Error, Result, limits::ON_ALL_BYTES_MAX, names::check_target};

/// Foreground: wait for the result.
///
/// `g.call.func1(10, 3) & FG` blocks this thread and returns `Result<R>`. In async code, await the call
/// itself: `g.call.func1(10, 3).await`.
///
/// ```no_run
/// # use daffi_node as daffi;
/// # fn main() -> daffi::Result<()> {
/// use std::time::Duration;
/// use daffi::{FG, Global};
///
/// let g = Global::builder().start()?;
/// let patient = FG.timeout(Duration::from_secs(15)).on("proc2");
/// let delta: i64 = (g.call.by_name("func1", (10i64, 3i64)) & patient)?;
/// # Ok(()) }
/// ```
pub const FG: Foreground = Foreground { timeout: None, target: Anywhere(()) };

/// Background: carry on, and look at the result later.
///
/// `g.call.func1(10, 3) & BG` returns an [`AsyncResult`](crate::AsyncResult) at once; all errors arrive
/// through it.
///
/// ```no_run
/// # use daffi_node as daffi;
/// # fn main() -> daffi::Result<()> {
/// use std::time::Duration;
/// use daffi::{BG, Global};
///
/// let g = Global::builder().start()?;
/// // Sent in 3 s, and given up 15 s after that.
/// let later = BG.eta(Duration::from_secs(3)).timeout(Duration::from_secs(15));
/// let sum = g.call.by_name::<i64, _>("func3", (4i64, 6i64)) & later;
/// println!("{}", sum.get()?);
/// # Ok(()) }
/// ```
pub const BG: Background = Background { timeout: None, eta: None, target: Anywhere(()) };

/// No return: the result is not wanted.
///
/// `g.call.func2() & NO_RETURN` returns `Result<()>` as soon as the call is handed over. Nothing comes back:
/// a call that cannot be delivered is logged and counted at the controller, and a callback that fails is
/// logged at its node.
pub const NO_RETURN: NoReturn = NoReturn { eta: None, target: Anywhere(()) };

/// Period: call at a regular interval, or at given times.
///
/// Takes either [`period`](Period::period) or [`at_time`](Period::at_time), and returns a
/// [`ScheduledTask`](crate::ScheduledTask). The controller keeps the schedule, which goes on without this
/// process.
///
/// ```no_run
/// # use daffi_node as daffi;
/// # fn main() -> daffi::Result<()> {
/// use std::time::{Duration, SystemTime};
/// use daffi::{Global, PERIOD};
///
/// let g = Global::builder().start()?;
/// let every_minute = (g.call.by_name::<(), _>("tick", ()) & PERIOD.period(Duration::from_secs(60)))?;
/// let soon = SystemTime::now() + Duration::from_secs(3);
/// let twice = (g.call.by_name::<(), _>("tick", ()) & PERIOD.at_time([soon, soon + Duration::from_secs(5)]))?;
/// # Ok(()) }
/// ```
pub const PERIOD: Period = Period { timing: Unset(()), target: Anywhere(()) };

/// Broadcast: every other node that offers the callback runs it.
///
/// `& BROADCAST` returns `Result<()>` once the controller has passed the call on;
/// `& BROADCAST.return_result()` waits for all nodes and returns each one's result by node name.
///
/// ```no_run
/// # use daffi_node as daffi;
/// # fn main() -> daffi::Result<()> {
/// use std::time::Duration;
/// use daffi::{BROADCAST, Global};
///
/// let g = Global::builder().start()?;
/// let all = BROADCAST.return_result().timeout(Duration::from_secs(1));
/// for (node, temperature) in (g.call.by_name::<i32, _>("temperature", ()) & all)? {
///     match temperature {
///         Ok(temperature) => println!("{node}: {temperature} °C"),
///         Err(error) => println!("{node}: {error}"),
///     }
/// }
/// # Ok(()) }
/// ```
pub const BROADCAST: Broadcast =
    Broadcast { timeout: None, eta: None, target: Anywhere(()), results: NoResults(()) };

/// The modifier [`FG`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a modifier does nothing until a call is made with it"]
pub struct Foreground<T = Anywhere> {
    pub(crate) timeout: Option<Duration>,
    pub(crate) target: T,
}

/// The modifier [`BG`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a modifier does nothing until a call is made with it"]
pub struct Background<T = Anywhere> {
    pub(crate) timeout: Option<Duration>,
    pub(crate) eta: Option<Duration>,
    pub(crate) target: T,
}

/// The modifier [`NO_RETURN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a modifier does nothing until a call is made with it"]
pub struct NoReturn<T = Anywhere> {
    pub(crate) eta: Option<Duration>,
    pub(crate) target: T,
}

/// The modifier [`PERIOD`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a modifier does nothing until a call is made with it"]
pub struct Period<K = Unset, T = Anywhere> {
    pub(crate) timing: K,
    pub(crate) target: T,
}

/// The modifier [`BROADCAST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a modifier does nothing until a call is made with it"]
pub struct Broadcast<W = NoResults, T = Anywhere> {
    pub(crate) timeout: Option<Duration>,
    pub(crate) eta: Option<Duration>,
    pub(crate) target: T,
    #[allow(dead_code, reason = "it is a type")]
    pub(crate) results: W,
}

impl<T> Foreground<T> {
    /// Gives up with [`Error::Timeout`] after this long, and cancels the call.
    ///
    /// See [`Call::timeout`](crate::Call::timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

impl Foreground {
    /// Calls only this node.
    pub fn on(self, node: impl Into<Arc<str>>) -> Foreground<On> {
        Foreground { timeout: self.timeout, target: On(node.into()) }
    }
}

impl<T> Background<T> {
    /// Gives up with [`Error::Timeout`] after this long, and cancels the call.
    ///
    /// See [`Call::timeout`](crate::Call::timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sends the call after this long; until then cancelling it leaves no trace.
    pub fn eta(mut self, eta: Duration) -> Self {
        self.eta = Some(eta);
        self
    }
}

impl Background {
    /// Calls only this node.
    pub fn on(self, node: impl Into<Arc<str>>) -> Background<On> {
        Background { timeout: self.timeout, eta: self.eta, target: On(node.into()) }
    }
}

impl<T> NoReturn<T> {
    /// Sends the call after this long. It is lost if this process stops before then.
    pub fn eta(mut self, eta: Duration) -> Self {
        self.eta = Some(eta);
        self
    }
}

impl NoReturn {
    /// Calls only this node.
    pub fn on(self, node: impl Into<Arc<str>>) -> NoReturn<On> {
        NoReturn { eta: self.eta, target: On(node.into()) }
    }
}

impl<T> Period<Unset, T> {
    /// Calls at this interval.
    ///
    /// The first call is made after one interval. The rate is fixed: a slow call does not delay the next
    /// ones. A call that would begin while the previous one is still running is skipped and counted. Of the
    /// calls that the controller missed because its process was suspended, the last is made if it is at most
    /// a minute late; the others are skipped and counted.
    pub fn period(self, period: Duration) -> Period<Every, T> {
        Period { timing: Every(period), target: self.target }
    }

    /// Calls at this time, or at each of these times.
    ///
    /// Takes a [`SystemTime`] or anything that iterates over them: at most 1,000, all in the future. A time
    /// that the controller missed by more than a minute is skipped and counted.
    pub fn at_time<M>(self, times: impl IntoTimes<M>) -> Period<At, T> {
        Period { timing: At(times.into_times()), target: self.target }
    }
}

impl<K> Period<K> {
    /// Calls only this node.
    pub fn on(self, node: impl Into<Arc<str>>) -> Period<K, On> {
        Period { timing: self.timing, target: On(node.into()) }
    }
}

impl<W, T> Broadcast<W, T> {
    /// Gives up after this long.
    ///
    /// A node that has not answered by then has [`Error::Timeout`] as its entry; the others' results are
    /// kept.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sends the call after this long.
    pub fn eta(mut self, eta: Duration) -> Self {
        self.eta = Some(eta);
        self
    }
}

impl<T> Broadcast<NoResults, T> {
    /// Waits for every node's result, and returns `Result<BTreeMap<String, Result<R>>>` by node name.
    pub fn return_result(self) -> Broadcast<Results, T> {
        let Self { timeout, eta, target, .. } = self;
        Broadcast { timeout, eta, target, results: Results(()) }
    }
}

impl<W> Broadcast<W> {
    /// Calls only these nodes. One that is not connected has its error as its entry.
    pub fn on_all<N: AsRef<str>>(self, nodes: impl IntoIterator<Item = N>) -> Broadcast<W, OnAll> {
        let Self { timeout, eta, results, .. } = self;
        Broadcast { timeout, eta, target: OnAll::new(nodes), results }
    }
}

/// Any node may run the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Anywhere(pub(crate) ());

/// One node runs the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct On(pub(crate) Arc<str>);

/// These nodes run the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnAll(Arc<[String]>);

impl OnAll {
    pub(crate) fn new<N: AsRef<str>>(nodes: impl IntoIterator<Item = N>) -> Self {
        Self(nodes.into_iter().map(|node| node.as_ref().to_owned()).collect())
    }
}

/// Where a call goes.
pub trait Target: sealed::Sealed {
    /// Returns the node, or the nodes, one per line; `None` for any.
    #[doc(hidden)]
    fn node(&self) -> Result<Option<Arc<str>>>;
}

impl Target for Anywhere {
    fn node(&self) -> Result<Option<Arc<str>>> {
        Ok(None)
    }
}

impl Target for On {
    fn node(&self) -> Result<Option<Arc<str>>> {
        check_node(&self.0)?;
        Ok(Some(self.0.clone()))
    }
}

impl Target for OnAll {
    fn node(&self) -> Result<Option<Arc<str>>> {
        if self.0.is_empty() {
            let problem = "on_all names no node, and without it a broadcast goes to all".to_owned();
            return Err(Error::Configuration { problem });
        }
        self.0.iter().try_for_each(|node| check_node(node))?;
        let lines = self.0.join("\n");
        if lines.len() > ON_ALL_BYTES_MAX {
            let problem = format!(
                "the names in on_all have {} bytes together, a frame has room for {ON_ALL_BYTES_MAX}: name fewer nodes",
                lines.len()
            );
            return Err(Error::Configuration { problem });
        }
        Ok(Some(lines.into()))
    }
}

/// Refuses names that a frame has no room for, or in which they would mean something else: an empty one means
/// any node.
fn check_node(name: &str) -> Result<()> {
    check_target(name).map_err(|reason| Error::InvalidName { name: name.to_owned(), reason })
}

/// Neither `period` nor `at_time` was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unset(());

/// At a regular interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Every(pub(crate) Duration);

/// At given times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At(pub(crate) Vec<SystemTime>);

/// When a scheduled call happens; required before a call can be made with [`PERIOD`].
#[diagnostic::on_unimplemented(
    message = "`PERIOD` does not say when",
    label = "neither a period nor times",
    note = "write `PERIOD.period(duration)` or `PERIOD.at_time(times)`"
)]
pub trait When: sealed::Sealed {
    /// Returns the interval or the times.
    #[doc(hidden)]
    fn timing(self) -> Timing;
}

/// When a scheduled call happens.
#[doc(hidden)]
#[derive(Debug)]
pub enum Timing {
    Every(Duration),
    At(Vec<SystemTime>),
}

impl When for Every {
    fn timing(self) -> Timing {
        Timing::Every(self.0)
    }
}

impl When for At {
    fn timing(self) -> Timing {
        Timing::At(self.0)
    }
}

/// The results of a broadcast are not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoResults(());

/// The results of a broadcast are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Results(());

/// One time or several, as taken by [`Period::at_time`].
///
/// `M` distinguishes the two and is always inferred.
pub trait IntoTimes<M> {
    /// Returns the times as a list.
    fn into_times(self) -> Vec<SystemTime>;
}

impl IntoTimes<One> for SystemTime {
    fn into_times(self) -> Vec<SystemTime> {
        vec![self]
    }
}

impl<I: IntoIterator<Item = SystemTime>> IntoTimes<Many> for I {
    fn into_times(self) -> Vec<SystemTime> {
        self.into_iter().collect()
    }
}

/// One time, see [`IntoTimes`].
#[derive(Debug)]
pub enum One {}

/// Several times, see [`IntoTimes`].
#[derive(Debug)]
pub enum Many {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Anywhere {}
    impl Sealed for super::On {}
    impl Sealed for super::OnAll {}
    impl Sealed for super::Every {}
    impl Sealed for super::At {}
}
