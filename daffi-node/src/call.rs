//! A call that is ready to be made, and the ways to make it.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    future::{Future, IntoFuture},
    marker::PhantomData,
    ops::BitAnd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant, SystemTime},
};

use bytes::{BufMut, BytesMut};
use daffi_core::{
    Error, Result, host,
    limits::{AT_TIMES_MAX, CHUNK_BYTES, PERIOD_MIN},
    names::check_length,
    payload::Encoded,
    signature::Signature,
};
use serde::de::DeserializeOwned;

use crate::{
    async_result::AsyncResult,
    blocking::block,
    caller::Caller,
    flight::{CancelOnDrop, Flight},
    in_flight::Deadline,
    latch::Place,
    modifier::{
        Anywhere, Background, Broadcast, Foreground, NoResults, NoReturn, On, OnAll, Period, Results, Target,
        Timing, When,
    },
    node::Node,
    outgoing::{Ask, Kind, Outgoing},
    pending::{Answer, Pending, decode},
    scheduled_task::ScheduledTask,
};

/// A call, not sent until a modifier says how.
///
/// Apply a modifier with `&` or as a method; the two are equivalent:
///
/// | | `&` | method | returns |
/// |---|---|---|---|
/// | foreground | `& FG` | `.fg()`, in async code `.await` | `Result<R>` |
/// | background | `& BG` | `.bg()` | [`AsyncResult<R>`](AsyncResult) |
/// | no return | `& NO_RETURN` | `.no_return()` | `Result<()>` |
/// | period | `& PERIOD.period(d)` | `.period(PERIOD.period(d))` | `Result<`[`ScheduledTask`]`>` |
/// | broadcast | `& BROADCAST` | `.broadcast()` | `Result<()>` |
/// | … with results | `& BROADCAST.return_result()` | `.broadcast_results()` | `Result<BTreeMap<String, Result<R>>>` |
///
/// `timeout`, `eta`, `on` and `on_all` come before the modifier. The other type parameters record which of
/// them were used, so that an option that makes no sense, such as `eta` with `fg`, does not compile.
#[must_use = "a call is not sent until a modifier is applied: `& FG`, `& BG`, `& NO_RETURN`, `.await`, …"]
#[derive(Debug, Clone)]
pub struct Call<R, T = Anywhere, const TIMED: bool = false, const DELAYED: bool = false> {
    pub(crate) caller: Caller,
    pub(crate) callback: Cow<'static, str>,
    pub(crate) signature: &'static Signature,
    /// The arguments, encoded when they were given.
    pub(crate) arguments: Result<Encoded, Box<Error>>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) eta: Option<Duration>,
    pub(crate) target: T,
    pub(crate) result: PhantomData<fn() -> R>,
}

/// Who waits for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// The thread that makes it.
    Attended,
    /// The task that makes it.
    Awaited,
    /// Nobody for now, so it is refused rather than held back when too many are in flight.
    Refusable,
    /// Nobody, ever, so a failure is logged.
    Unattended,
    /// Nobody if it has an `eta`, else the caller.
    UnattendedLater,
}

/// Everything needed to start a call.
struct Ready {
    node: Arc<Node>,
    pending: Arc<Pending>,
    outgoing: Outgoing,
    deadline: Option<Deadline>,
    eta: Option<Duration>,
}

// ---- options

impl<R, T, const TIMED: bool, const DELAYED: bool> Call<R, T, TIMED, DELAYED> {
    /// Gives up with [`Error::Timeout`] after this long, and cancels the call.
    ///
    /// The time is counted from when the call is made, after any `eta`, and includes waiting for the
    /// controller or for a free place. Default: the builder's `default_timeout`, if any.
    pub fn timeout(self, timeout: Duration) -> Call<R, T, true, DELAYED> {
        let mut call = self.retype();
        call.timeout = Some(timeout);
        call
    }

    /// Sends the call after this long. Until then it waits in this process, and is lost if the process stops.
    pub fn eta(self, eta: Duration) -> Call<R, T, TIMED, true> {
        let mut call = self.retype();
        call.eta = Some(eta);
        call
    }

    fn retype<const A: bool, const B: bool>(self) -> Call<R, T, A, B> {
        let Self { caller, callback, signature, arguments, timeout, eta, target, result } = self;
        Call { caller, callback, signature, arguments, timeout, eta, target, result }
    }

    fn to<U>(self, target: U) -> Call<R, U, TIMED, DELAYED> {
        let Self { caller, callback, signature, arguments, timeout, eta, result, .. } = self;
        Call { caller, callback, signature, arguments, timeout, eta, target, result }
    }
}

impl<R, const TIMED: bool, const DELAYED: bool> Call<R, Anywhere, TIMED, DELAYED> {
    /// Calls only this node.
    pub fn on(self, node: impl Into<Arc<str>>) -> Call<R, On, TIMED, DELAYED> {
        self.to(On(node.into()))
    }

    /// Broadcasts only to these nodes.
    pub fn on_all<N: AsRef<str>>(self, nodes: impl IntoIterator<Item = N>) -> Call<R, OnAll, TIMED, DELAYED> {
        self.to(OnAll::new(nodes))
    }
}

// ---- foreground

impl<R: DeserializeOwned + 'static, T: Unicast, const TIMED: bool> Call<R, T, TIMED, false> {
    /// Makes the call and waits for its result, blocking this thread. In async code, `.await` the call
    /// instead.
    ///
    /// # Errors
    /// Any error of the call; [`Error::BlockingInAsync`] where blocking would stall an async runtime.
    pub fn fg(self) -> Result<R> {
        let Ready { node, pending, outgoing, deadline, .. } = self.ready(Kind::Call, Manner::Attended)?;
        let flight = block("FG", "`.await` on the call", || Flight::run(node, pending, &outgoing, deadline))?;
        decode(flight.pending.callback(), flight.answer()?.one())
    }

    /// Does the same as awaiting the call.
    ///
    /// # Errors
    /// Any error of the call.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn fg_async(self) -> Result<R> {
        self.await
    }
}

impl<R: DeserializeOwned + 'static, T: Unicast, const TIMED: bool> IntoFuture for Call<R, T, TIMED, false> {
    type Output = Result<R>;
    type IntoFuture = CallFuture<R>;

    fn into_future(self) -> CallFuture<R> {
        CallFuture {
            flight: self.ready(Kind::Call, Manner::Awaited).map(|ready| CancelOnDrop::new(ready.start())),
            place: None,
            result: PhantomData,
        }
    }
}

/// The future of an awaited call.
///
/// The call is sent when the future is created, not when it is first polled. Dropping the future cancels the
/// call.
#[must_use = "dropping the future cancels the call"]
#[derive(Debug)]
pub struct CallFuture<R> {
    flight: Result<CancelOnDrop>,
    /// Needs no [`leave`](Flight::leave): dropping this cancels the call.
    place: Option<Place>,
    result: PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned + 'static> Future for CallFuture<R> {
    type Output = Result<R>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<R>> {
        let Self { flight, place, .. } = &mut *self;
        let flight = match flight {
            Ok(flight) => flight,
            Err(error) => return Poll::Ready(Err(error.clone())),
        };
        ready!(flight.poll(context, place));
        let flight = &flight.flight;
        Poll::Ready(flight.answer().and_then(|answer| decode(flight.pending.callback(), answer.one())))
    }
}

// ---- background

impl<R: DeserializeOwned + 'static, T: Unicast, const TIMED: bool, const DELAYED: bool>
    Call<R, T, TIMED, DELAYED>
{
    /// Makes the call in the background. All errors arrive through the [`AsyncResult`].
    pub fn bg(self) -> AsyncResult<R> {
        AsyncResult::new(self.ready(Kind::Call, Manner::Refusable).map(Ready::start).map_err(Box::new))
    }
}

// ---- no return

impl<R, T: Unicast, const DELAYED: bool> Call<R, T, false, DELAYED> {
    /// Hands the call over and forgets it.
    ///
    /// Nothing comes back; a call that cannot be delivered is logged and counted at the controller.
    ///
    /// # Errors
    /// If the call cannot be handed over: it is too large, there is no room for it, or the `Global` is
    /// stopped.
    pub fn no_return(self) -> Result<()> {
        let Ready { node, outgoing, eta, .. } = self.ready(Kind::OneWay, Manner::Attended)?;
        node.start_one_way(&outgoing, eta)
    }
}

// ---- period

impl<R> Call<R> {
    /// Schedules the call at the controller, at the times given by the modifier.
    ///
    /// Returns as soon as the call is handed over; the [`ScheduledTask`] tells what became of it.
    ///
    /// # Errors
    /// [`Error::InvalidTime`] for a time in the past, no times at all, more than 1,000, or a period shorter
    /// than 1 ms; [`Error::TooLarge`] for arguments above 64 KiB, since the controller keeps them.
    pub fn period<K: When, T: Unicast>(self, period: Period<K, T>) -> Result<ScheduledTask> {
        let ask = schedule(period.timing.timing())?;
        let call = self.to(period.target);
        let Ready { node, pending, mut outgoing, .. } = call.ready(Kind::Ask(ask), Manner::Unattended)?;
        outgoing.deadline = None;
        let flight = Flight::start(node, pending, &outgoing, None, None);
        Ok(ScheduledTask::new(flight))
    }
}

impl<R> Call<R, On> {
    /// Does the same on the node that the call is pinned to.
    ///
    /// # Errors
    /// Same as for a call that is not pinned.
    pub fn period<K: When>(self, period: Period<K>) -> Result<ScheduledTask> {
        let Period { timing, .. } = period;
        let on = self.target.clone();
        self.to(Anywhere(())).period(Period { timing, target: on })
    }
}

/// Returns the question to the controller that schedules calls at these times.
fn schedule(timing: Timing) -> Result<Ask> {
    let invalid = |problem: String| Err(Error::InvalidTime { problem });
    match timing {
        Timing::Every(period) if period < PERIOD_MIN => {
            invalid(format!("a period of {period:?} is too short: at least {PERIOD_MIN:?}"))
        }
        Timing::Every(period) => match u64::try_from(period.as_micros()) {
            Ok(micros) => Ok(Ask::Period(micros)),
            Err(_) => invalid(format!("a period of {period:?} is too long")),
        },
        Timing::At(times) if times.is_empty() => {
            invalid("at_time has no times: give at least one".to_owned())
        }
        Timing::At(times) if times.len() > AT_TIMES_MAX => {
            invalid(format!("at_time has {} times: at most {AT_TIMES_MAX}", times.len()))
        }
        Timing::At(times) => {
            let now = host::wall();
            let mut encoded = BytesMut::with_capacity(times.len() * 8);
            for time in times {
                if let Ok(past) = now.duration_since(time) {
                    return invalid(format!(
                        "at_time has a time that is {past:?} in the past: all have to be in the future"
                    ));
                }
                let micros = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros());
                let Ok(micros) = u64::try_from(micros) else {
                    return invalid("at_time has a time that is too far in the future".to_owned());
                };
                encoded.put_u64_le(micros);
            }
            Ok(Ask::AtTimes(encoded.freeze()))
        }
    }
}

// ---- broadcast

impl<R, T: Multicast, const TIMED: bool, const DELAYED: bool> Call<R, T, TIMED, DELAYED> {
    /// Runs the callback on every other node that offers it.
    ///
    /// Blocks this thread until the controller has passed the call on; with an `eta` it is only handed over.
    ///
    /// # Errors
    /// [`Error::NoCandidate`] if there is no such node; [`Error::BlockingInAsync`] where blocking would stall
    /// an async runtime: use [`broadcast_async`](Self::broadcast_async) there.
    pub fn broadcast(self) -> Result<()> {
        let ready = self.ready(Kind::Broadcast { results: false }, Manner::UnattendedLater)?;
        if ready.eta.is_some() {
            ready.start();
            return Ok(());
        }
        block("BROADCAST", "`.broadcast_async()`", || ready.run())?.answer()?;
        Ok(())
    }

    /// Like [`broadcast`](Self::broadcast), without blocking.
    ///
    /// # Errors
    /// Same as for the blocking form.
    ///
    /// # Cancel safety
    /// When the future is dropped, the broadcast may or may not have been passed on.
    pub async fn broadcast_async(self) -> Result<()> {
        let ready = self.ready(Kind::Broadcast { results: false }, Manner::UnattendedLater)?;
        if ready.eta.is_some() {
            ready.start();
            return Ok(());
        }
        ready.start().outcome().await?;
        Ok(())
    }
}

impl<R: DeserializeOwned + 'static, T: Multicast, const TIMED: bool, const DELAYED: bool>
    Call<R, T, TIMED, DELAYED>
{
    /// Runs the callback on every other node that offers it, and waits for all results, blocking this thread.
    ///
    /// Each node has its own entry: its result, or its error if it fails, dies or is too slow.
    ///
    /// # Errors
    /// Same as [`broadcast`](Self::broadcast); in async code use
    /// [`broadcast_results_async`](Self::broadcast_results_async).
    pub fn broadcast_results(self) -> Result<BTreeMap<String, Result<R>>> {
        let ready = self.ready(Kind::Broadcast { results: true }, Manner::Attended)?;
        let flight = block("BROADCAST", "`.broadcast_results_async()`", || ready.run())?;
        results(&flight)
    }

    /// Like [`broadcast_results`](Self::broadcast_results), without blocking.
    ///
    /// # Errors
    /// Same as for the blocking form.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call on every node.
    pub async fn broadcast_results_async(self) -> Result<BTreeMap<String, Result<R>>> {
        let ready = self.ready(Kind::Broadcast { results: true }, Manner::Attended)?;
        let CancelOnDrop { flight, .. } = &CancelOnDrop::new(ready.start());
        flight.outcome().await?;
        results(flight)
    }
}

/// Returns each node's answer.
///
/// # Errors
/// The error of the broadcast as a whole.
fn results<R: DeserializeOwned + 'static>(flight: &Flight) -> Result<BTreeMap<String, Result<R>>> {
    let Answer::Many(answers) = flight.answer()? else { return Ok(BTreeMap::new()) };
    let decode = |answer: &Result<_>| match answer {
        Ok(payload) => decode(flight.pending.callback(), payload),
        Err(error) => Err(error.clone()),
    };
    Ok(answers.iter().map(|(node, answer)| (node.clone(), decode(answer))).collect())
}

// ---- what they have in common

impl<R, T: Target, const TIMED: bool, const DELAYED: bool> Call<R, T, TIMED, DELAYED> {
    fn ready(self, kind: Kind, manner: Manner) -> Result<Ready> {
        let body = self.arguments.map_err(|error| *error)?;
        let node = self.caller.node()?;
        let limit = match kind {
            // Scheduled arguments travel and are stored as one frame.
            Kind::Ask(_) => node.limits.payload_bytes_max.min(CHUNK_BYTES as u64),
            _ => node.limits.payload_bytes_max,
        };
        if body.len() as u64 > limit {
            return Err(Error::TooLarge {
                what: "arguments",
                callback: self.callback.into_owned(),
                size: body.len() as u64,
                limit,
            });
        }
        let callback = self.callback;
        let target = self.target.node()?;
        // A name that does not fit the frame would end the connection, and every call on it.
        check_length(&callback)
            .map_err(|reason| Error::InvalidName { name: callback.to_string(), reason })?;
        let signature = Some(self.signature);
        let waits = !matches!(kind, Kind::OneWay | Kind::Ask(_));
        let timeout = self.timeout.or(node.default_timeout).filter(|_| waits);
        let parent = self.caller.parent_deadline().filter(|_| waits);
        let deadline = match (timeout, parent) {
            (None, None) => None,
            _ => deadline(timeout, self.eta, parent),
        };
        if deadline.is_some_and(|deadline| deadline.after.is_zero()) {
            return Err(Error::Timeout {
                callback: callback.into_owned(),
                after: Duration::ZERO,
                sent: false,
            });
        }
        let attended = match manner {
            Manner::Attended | Manner::Awaited => !matches!(kind, Kind::OneWay),
            Manner::UnattendedLater => self.eta.is_none(),
            Manner::Refusable | Manner::Unattended => false,
        };
        // A caller that waits keeps its arguments anyway.
        let hold = if attended { None } else { node.hold_arguments(body.len())? };
        let outgoing = Outgoing {
            hops: self.caller.hops(&callback)?,
            node: target,
            fingerprint: self.signature.fingerprint(),
            deadline: deadline.map(|deadline| deadline.at),
            name: callback.clone(),
            kind,
            body,
            hold,
        };
        let pending = match outgoing.kind {
            Kind::Broadcast { results } => Pending::broadcast(callback, signature, results),
            _ => Pending::new(callback, signature),
        };
        let pending = Arc::new(match manner {
            Manner::UnattendedLater if self.eta.is_none() => pending,
            Manner::Attended => pending,
            Manner::Awaited => pending.awaited(),
            Manner::Refusable => pending.refusable(),
            Manner::Unattended | Manner::UnattendedLater => pending.refusable().with_failure_logged(),
        });
        Ok(Ready { node: self.caller.into_node()?, pending, outgoing, deadline, eta: self.eta })
    }
}

/// Returns when the time is up: `timeout` after the call is sent, or when the calling callback itself has to
/// be done, whichever is earlier.
fn deadline(timeout: Option<Duration>, eta: Option<Duration>, parent: Option<Instant>) -> Option<Deadline> {
    let now = host::now();
    // A time too far away to represent never comes.
    let own = timeout.and_then(|after| {
        Some(Deadline { at: now.checked_add(eta.unwrap_or_default())?.checked_add(after)?, after })
    });
    let inherited = parent.map(|at| Deadline { at, after: at.saturating_duration_since(now) });
    own.into_iter().chain(inherited).min_by_key(|deadline| deadline.at)
}

impl Ready {
    fn start(self) -> Flight {
        let Self { node, pending, outgoing, deadline, eta } = self;
        Flight::start(node, pending, &outgoing, deadline, eta)
    }

    fn run(self) -> Flight {
        let Self { node, pending, outgoing, deadline, eta } = self;
        if eta.is_none() {
            return Flight::run(node, pending, &outgoing, deadline);
        }
        let flight = Flight::start(node, pending, &outgoing, deadline, eta);
        flight.wait_until(None);
        flight
    }
}

/// A call to one node: any, or with `.on(…)` a given one.
#[diagnostic::on_unimplemented(
    message = "`.on_all(…)` is for broadcasts",
    label = "this call would go to several nodes",
    note = "use `.broadcast()` or `& BROADCAST`, or pin the call to one node with `.on(…)`"
)]
pub trait Unicast: Target {}
impl Unicast for Anywhere {}
impl Unicast for On {}

/// A call to several nodes: all, or with `.on_all(…)` given ones.
#[diagnostic::on_unimplemented(
    message = "`.on(…)` pins a call to one node, and a broadcast goes to several",
    label = "this call would go to one node",
    note = "name the nodes with `.on_all([…])`, or leave it out for all"
)]
pub trait Multicast: Target {}
impl Multicast for Anywhere {}
impl Multicast for OnAll {}

// ---- the `&` forms

impl<R: DeserializeOwned + 'static, T: Unicast> BitAnd<Foreground<T>> for Call<R> {
    type Output = Result<R>;

    fn bitand(self, modifier: Foreground<T>) -> Result<R> {
        let mut call = self.to(modifier.target);
        call.timeout = modifier.timeout;
        call.fg()
    }
}

impl<R: DeserializeOwned + 'static, T: Unicast> BitAnd<Background<T>> for Call<R> {
    type Output = AsyncResult<R>;

    fn bitand(self, modifier: Background<T>) -> AsyncResult<R> {
        let mut call = self.to(modifier.target);
        call.timeout = modifier.timeout;
        call.eta = modifier.eta;
        call.bg()
    }
}

impl<R, T: Unicast> BitAnd<NoReturn<T>> for Call<R> {
    type Output = Result<()>;

    fn bitand(self, modifier: NoReturn<T>) -> Result<()> {
        let mut call = self.to(modifier.target);
        call.eta = modifier.eta;
        call.no_return()
    }
}

impl<R, K: When, T: Unicast> BitAnd<Period<K, T>> for Call<R> {
    type Output = Result<ScheduledTask>;

    fn bitand(self, modifier: Period<K, T>) -> Result<ScheduledTask> {
        self.period(modifier)
    }
}

impl<R, T: Multicast> BitAnd<Broadcast<NoResults, T>> for Call<R> {
    type Output = Result<()>;

    fn bitand(self, modifier: Broadcast<NoResults, T>) -> Result<()> {
        self.broadcasting(modifier).broadcast()
    }
}

impl<R: DeserializeOwned + 'static, T: Multicast> BitAnd<Broadcast<Results, T>> for Call<R> {
    type Output = Result<BTreeMap<String, Result<R>>>;

    fn bitand(self, modifier: Broadcast<Results, T>) -> Self::Output {
        self.broadcasting(modifier).broadcast_results()
    }
}

impl<R> Call<R> {
    fn broadcasting<W, T>(self, modifier: Broadcast<W, T>) -> Call<R, T> {
        let mut call = self.to(modifier.target);
        call.timeout = modifier.timeout;
        call.eta = modifier.eta;
        call
    }
}
