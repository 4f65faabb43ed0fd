//! One call in flight, from the caller's side: what has arrived so far, and its outcome.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    task::Waker,
    time::Duration,
};

use daffi_core::{
    Error, Result,
    fault::Fault,
    frame::{Failure, Reply, Targets},
    payload::{Codec, Whole},
    signature::Signature,
    survive::wake,
};
use serde::de::DeserializeOwned;

use crate::{
    assembly::Assembly,
    kept::Kept,
    latch::Latch,
    payload_pool::PayloadPool,
    sync::{
        Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

/// A call in flight.
#[derive(Debug)]
pub(crate) struct Pending {
    callback: Cow<'static, str>,
    signature: Option<&'static Signature>,
    /// How far it has come: a set of stage flags.
    stages: AtomicU8,
    /// Its place in the queue for admission; 0 for none.
    place: AtomicU64,
    /// Whether it is refused if it would have to wait long for admission, since nobody waits with it.
    refusable: bool,
    /// Whether a task is going to await it.
    awaited: bool,
    /// Whether a single node answers, or the controller.
    single: bool,
    /// Whether a failure is logged, since nobody may ever look at the outcome.
    failure_logged: bool,
    /// `None` once the outcome is there.
    gathering: Mutex<Option<Gathering>>,
    pub(crate) outcome: Latch<Result<Answer>>,
}

/// It counts towards the limit of calls in flight.
const ADMITTED: u8 = 1;
/// The request may have left this process.
const SENT: u8 = 2;
/// It has left the table of calls: nothing more may be sent for it.
const OVER: u8 = 4;
/// Nobody waits for it any more, and the other side must be told.
const WITHDRAWN: u8 = 8;

/// What came back.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// From the one callee, or the controller.
    One(Payload),
    /// From each node that a broadcast went to.
    Many(BTreeMap<String, Result<Payload>>),
}

/// A result, still encoded.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    pub(crate) codec: u8,
    pub(crate) body: Kept,
}

/// What has arrived so far.
#[derive(Debug)]
enum Gathering {
    One(Option<Box<Assembly>>),
    /// Boxed, as these are rare: this way all others take up less.
    Broadcast {
        results: bool,
        targets: Option<Box<Parts>>,
    },
}

#[derive(Debug)]
struct Parts {
    nodes: Vec<String>,
    answers: Vec<Option<Result<Payload>>>,
    missing: usize,
    assemblies: HashMap<u32, Assembly>,
}

/// Whether anything is still missing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The outcome is there.
    Done,
    /// More is expected.
    Open,
    /// More is expected, and the sender may send this many more bytes.
    Credit(u32),
    /// The outcome is there, and the rest of what arrives is not wanted.
    Refused,
}

impl Progress {
    /// Returns the progress after more of a payload has arrived.
    fn of(assembly: &mut Assembly) -> Self {
        assembly.take_credit().map_or(Self::Open, Self::Credit)
    }
}

/// What arrived has no place in this call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutOfTurn;

/// What to do after something arrived.
enum Step {
    /// The call is over with this outcome.
    Finish(Result<Answer>),
    /// The call is over, and the rest of what arrives is not wanted.
    Refuse(Error),
    Wait(Progress),
}

impl Payload {
    /// Returns a result that arrived in one frame.
    pub(crate) fn whole(reply: &Reply<'_>) -> Self {
        Self { codec: reply.codec, body: Kept::new(&reply.body) }
    }
}

impl Pending {
    pub(crate) fn new(callback: Cow<'static, str>, signature: Option<&'static Signature>) -> Self {
        Self::gathering(callback, signature, Gathering::One(None))
    }

    /// Returns a broadcast, with or without results.
    pub(crate) fn broadcast(
        callback: Cow<'static, str>,
        signature: Option<&'static Signature>,
        results: bool,
    ) -> Self {
        Self::gathering(callback, signature, Gathering::Broadcast { results, targets: None })
    }

    fn gathering(
        callback: Cow<'static, str>,
        signature: Option<&'static Signature>,
        gathering: Gathering,
    ) -> Self {
        Self {
            callback,
            signature,
            stages: AtomicU8::new(0),
            place: AtomicU64::new(0),
            refusable: false,
            awaited: false,
            single: matches!(gathering, Gathering::One(_)),
            failure_logged: false,
            gathering: Mutex::new(Some(gathering)),
            outcome: Latch::new(),
        }
    }

    /// Enables logging of a failure, since nobody may ever look at it.
    pub(crate) fn with_failure_logged(mut self) -> Self {
        self.failure_logged = true;
        self
    }

    pub(crate) fn callback(&self) -> &str {
        &self.callback
    }

    /// Marks it to be refused, rather than kept, when too many wait to be admitted.
    pub(crate) fn refusable(mut self) -> Self {
        self.refusable = true;
        self
    }

    /// Marks it as awaited by the task that makes it.
    pub(crate) fn awaited(mut self) -> Self {
        self.awaited = true;
        self
    }

    pub(crate) fn is_awaited(&self) -> bool {
        self.awaited
    }

    pub(crate) fn is_refusable(&self) -> bool {
        self.refusable
    }

    pub(crate) fn is_sent(&self) -> bool {
        self.is(SENT)
    }

    /// Marks the request as about to leave, or as not having left after all. Returns whether it may leave,
    /// which it may not once the call is over.
    pub(crate) fn set_sent(&self, sent: bool) -> bool {
        let set = |stages| match sent {
            true => (stages & OVER == 0).then_some(stages | SENT),
            false => Some(stages & !SENT),
        };
        self.stages.fetch_update(Ordering::SeqCst, Ordering::SeqCst, set).is_ok()
    }

    /// Counts it towards the limit. For a call that nobody else knows about yet.
    pub(crate) fn begin_admitted(&self) {
        self.stages.store(ADMITTED, Ordering::Relaxed);
    }

    /// Counts it towards the limit from now on, unless it is over; returns whether it counts.
    pub(crate) fn admit(&self) -> bool {
        let set = |stages| (stages & OVER == 0).then_some(stages | ADMITTED);
        self.stages.fetch_update(Ordering::SeqCst, Ordering::SeqCst, set).is_ok()
    }

    /// Marks it as over; returns whether it counted towards the limit.
    pub(crate) fn end(&self) -> bool {
        self.stages.fetch_or(OVER, Ordering::SeqCst) & (ADMITTED | OVER) == ADMITTED
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is(OVER)
    }

    pub(crate) fn set_withdrawn(&self) {
        self.stages.fetch_or(WITHDRAWN, Ordering::SeqCst);
    }

    pub(crate) fn is_withdrawn(&self) -> bool {
        self.is(WITHDRAWN)
    }

    fn is(&self, stage: u8) -> bool {
        self.stages.load(Ordering::SeqCst) & stage != 0
    }

    /// Returns its place in the queue for admission.
    pub(crate) fn place(&self) -> Option<u64> {
        Some(self.place.load(Ordering::SeqCst)).filter(|place| *place > 0)
    }

    pub(crate) fn set_place(&self, place: u64) {
        self.place.store(place, Ordering::SeqCst);
    }

    /// Takes a result of at most `limit` bytes. If that ends the call, the wakers of waiting tasks are passed
    /// to `wake`.
    pub(crate) fn reply(
        &self,
        reply: &Reply<'_>,
        limit: u64,
        pool: &PayloadPool,
        wake: impl FnMut(Waker),
    ) -> Progress {
        let exceeds = u64::from(reply.total) > limit;
        let too_large = || self.too_large(reply.total as usize, limit);
        let begun = || Assembly::new(reply.codec, reply.total, &reply.body, pool);
        let whole = || Payload::whole(reply);
        self.advance_with(wake, |gathering| {
            match gathering {
                Gathering::One(_) if exceeds => return Step::Refuse(too_large()),
                Gathering::One(_) if !reply.more => return Step::Finish(Ok(Answer::One(whole()))),
                Gathering::One(assembly) => {
                    return Step::Wait(Progress::of(assembly.insert(Box::new(begun()))));
                }
                Gathering::Broadcast { targets: Some(parts), .. } if reply.more => {
                    // A result from a node that was not asked would be kept for nobody.
                    if !matches!(parts.answers.get(reply.part as usize), Some(None)) {
                        return Step::Wait(Progress::Open);
                    }
                    // The others' results are wanted, and cancelling would cancel all of them.
                    let exceeding = || Assembly::exceeding(reply.total, &reply.body);
                    let mut assembly = if exceeds { exceeding() } else { begun() };
                    let progress = Progress::of(&mut assembly);
                    parts.assemblies.insert(reply.part, assembly);
                    return Step::Wait(progress);
                }
                Gathering::Broadcast { targets: Some(parts), .. } => {
                    return parts.answered(reply.part, if exceeds { Err(too_large()) } else { Ok(whole()) });
                }
                Gathering::Broadcast { targets: None, .. } => {}
            }
            Step::Wait(Progress::Open)
        })
    }

    /// Calls `work` with the result of this part that is arriving in chunks, if there is one.
    pub(crate) fn with_assembly<T>(
        &self,
        part: u32,
        work: impl FnOnce(&mut Assembly) -> Option<T>,
    ) -> Option<T> {
        match &mut *self.gathering.lock() {
            Some(Gathering::One(Some(assembly))) => work(assembly),
            Some(Gathering::Broadcast { targets: Some(parts), .. }) => {
                parts.assemblies.get_mut(&part).and_then(work)
            }
            _ => None,
        }
    }

    /// Prepares a call that did not run for being sent again: whatever has arrived of a result is discarded.
    pub(crate) fn begin_again(&self) {
        if let Some(Gathering::One(assembly)) = &mut *self.gathering.lock() {
            *assembly = None;
        }
        self.set_sent(false);
    }

    /// Takes more of a result of at most `limit` bytes; `add` adds it to what has arrived.
    pub(crate) fn chunk(
        &self,
        part: u32,
        limit: u64,
        add: impl FnOnce(&mut Assembly) -> Result<Option<Payload>, &'static str>,
    ) -> Progress {
        let broken = |problem| Error::Decode {
            what: "result",
            callback: self.callback.to_string(),
            reason: format!("the payload is broken: {problem}"),
        };
        self.advance(|gathering| match gathering {
            Gathering::One(Some(assembly)) => match add(assembly) {
                Ok(None) => Step::Wait(Progress::of(assembly)),
                Ok(Some(payload)) => Step::Finish(Ok(Answer::One(payload))),
                Err(problem) => Step::Finish(Err(broken(problem))),
            },
            Gathering::Broadcast { targets: Some(parts), .. } => {
                let Some(assembly) = parts.assemblies.get_mut(&part) else {
                    return Step::Wait(Progress::Open);
                };
                let answer = match add(assembly) {
                    Ok(None) => return Step::Wait(Progress::of(assembly)),
                    Ok(Some(_)) if assembly.exceeds() => Err(self.too_large(assembly.total(), limit)),
                    Ok(Some(payload)) => Ok(payload),
                    Err(problem) => Err(broken(problem)),
                };
                parts.assemblies.remove(&part);
                parts.answered(part, answer)
            }
            _ => Step::Wait(Progress::Open),
        })
    }

    pub(crate) fn failure(&self, failure: Failure) -> Progress {
        let error = self.error(*failure.fault);
        self.advance(|gathering| match gathering {
            Gathering::Broadcast { targets: Some(parts), .. } => parts.answered(failure.part, Err(error)),
            _ => Step::Finish(Err(error)),
        })
    }

    /// Takes the nodes that a broadcast goes to.
    ///
    /// # Errors
    /// If they have come before, or this is no broadcast.
    pub(crate) fn targets(&self, frame: &Targets<'_>) -> Result<Progress, OutOfTurn> {
        let mut out_of_turn = false;
        let progress = self.advance(|gathering| {
            let Gathering::Broadcast { results, targets: targets @ None } = gathering else {
                out_of_turn = true;
                return Step::Wait(Progress::Open);
            };
            if !*results {
                return Step::Finish(Ok(Answer::Many(BTreeMap::new())));
            }
            let nodes: Vec<_> = frame.nodes.lines().map(str::to_owned).collect();
            let missing = nodes.len();
            let answers = vec![None; missing];
            *targets = Some(Box::new(Parts { nodes, answers, missing, assemblies: HashMap::new() }));
            Step::Wait(Progress::Open)
        });
        if out_of_turn { Err(OutOfTurn) } else { Ok(progress) }
    }

    /// Ends the call with `error`. A broadcast that knows its targets ends with what has arrived, and `error`
    /// for each node that has not answered.
    pub(crate) fn fail(&self, error: Error) {
        self.advance(|gathering| {
            let Gathering::Broadcast { targets: Some(parts), .. } = gathering else {
                return Step::Finish(Err(error));
            };
            for answer in &mut parts.answers {
                answer.get_or_insert_with(|| Err(error.clone()));
            }
            Step::Finish(Ok(parts.take()))
        });
    }

    /// Returns the error for running out of time.
    pub(crate) fn timed_out(&self, after: Duration) -> Error {
        Error::Timeout { callback: self.callback.to_string(), after, sent: self.is_sent() }
    }

    pub(crate) fn cancelled(&self) -> Error {
        Error::Cancelled { callback: self.callback.to_string(), sent: self.is_sent() }
    }

    fn too_large(&self, size: usize, limit: u64) -> Error {
        Error::TooLarge { what: "result", callback: self.callback.to_string(), size: size as u64, limit }
    }

    fn error(&self, fault: Fault) -> Error {
        Error::from_fault(fault, &self.callback, self.signature.map_or("", Signature::text))
    }

    /// Takes a step with the lock held, and finishes without it: finishing wakes waiters and may log, both
    /// foreign code.
    fn advance(&self, step: impl FnOnce(&mut Gathering) -> Step) -> Progress {
        self.advance_with(wake, step)
    }

    /// Like [`advance`](Self::advance), with the wakers of tasks passed to `wake`.
    fn advance_with(&self, wake: impl FnMut(Waker), step: impl FnOnce(&mut Gathering) -> Step) -> Progress {
        let step = {
            let mut gathering = self.gathering.lock();
            // Whatever still arrives is no longer wanted.
            let Some(open) = &mut *gathering else { return Progress::Done };
            let step = step(open);
            let over = if matches!(step, Step::Wait(_)) { None } else { gathering.take() };
            drop(gathering);
            drop(over);
            step
        };
        match step {
            Step::Finish(outcome) => self.finish(outcome, wake),
            Step::Refuse(error) => {
                self.finish(Err(error), wake);
                Progress::Refused
            }
            Step::Wait(progress) => progress,
        }
    }

    /// Returns whether the first frame of a result ends it, provided it is the only one.
    pub(crate) fn is_single(&self) -> bool {
        self.single
    }

    /// Ends the call with its whole result, and passes the wakers of waiting tasks to `wake`. The call has
    /// left the table, so nothing else arrives for it. `payload` is called with a lock held, see
    /// [`Latch::set_with`].
    pub(crate) fn succeed(&self, payload: impl FnOnce() -> Payload, wake: impl FnMut(Waker)) {
        self.outcome.set_with(|| Ok(Answer::One(payload())), wake);
    }

    fn finish(&self, outcome: Result<Answer>, wake: impl FnMut(Waker)) -> Progress {
        if let (Err(error), true) = (&outcome, self.failure_logged) {
            tracing::warn!(callback = %self.callback, %error, "a call failed that nobody waits for");
        }
        self.outcome.set_with(|| outcome, wake);
        Progress::Done
    }
}

/// Decodes a result.
///
/// # Errors
/// [`Error::Decode`].
pub(crate) fn decode<R: DeserializeOwned + 'static>(callback: &str, payload: &Payload) -> Result<R> {
    let Payload { codec, body } = payload;
    let decoded = match Codec::from_byte(*codec) {
        Some(codec) => body.decode(codec).map(|Whole(value)| value).map_err(|error| error.to_string()),
        None => Err(format!("the callee used codec {codec}, which is not known here")),
    };
    decoded.map_err(|reason| Error::Decode { what: "result", callback: callback.to_owned(), reason })
}

impl Parts {
    /// Takes one node's answer.
    fn answered(&mut self, part: u32, answer: Result<Payload>) -> Step {
        let Some(place @ None) = self.answers.get_mut(part as usize) else {
            return Step::Wait(Progress::Open);
        };
        *place = Some(answer);
        self.missing -= 1;
        if self.missing > 0 { Step::Wait(Progress::Open) } else { Step::Finish(Ok(self.take())) }
    }

    /// Takes out the answers by node name.
    fn take(&mut self) -> Answer {
        let nodes = std::mem::take(&mut self.nodes).into_iter();
        let answers = std::mem::take(&mut self.answers).into_iter().flatten();
        Answer::Many(nodes.zip(answers).collect())
    }
}

#[cfg(test)]
mod tests {
    use daffi_core::{frame::Body, payload::Bytes as Uncopied};

    use super::*;

    fn is_within(inner: &[u8], outer: &[u8]) -> bool {
        let (inner, outer) = (inner.as_ptr_range(), outer.as_ptr_range());
        outer.start <= inner.start && inner.end <= outer.end
    }

    #[test]
    fn a_result_is_where_it_was_received() {
        let value = Uncopied::from(vec![7; 60_000]);
        let read = Codec::Bincode.encode(&value).unwrap();
        let reply = Reply {
            id: 1,
            more: false,
            part: 0,
            codec: 0,
            total: read.len() as u32,
            body: Body::shared(&read),
        };
        let result: Uncopied = decode("f", &Payload::whole(&reply)).unwrap();
        assert!(result == value && is_within(&result, &read));
        let vector: Vec<u8> = decode("f", &Payload::whole(&reply)).unwrap();
        assert_eq!(vector, *value);
    }
}
