//! Scheduled tasks: calls that the controller makes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use daffi_core::{
    Error,
    fault::{Fault, FaultKind},
    frame::{Body, Request, Schedule, Timing as FrameTiming},
    limits::{CHUNK_BYTES, TASKS_BYTES_MAX},
    names::check_name,
};
use tracing::level_filters::LevelFilter;

use super::{
    LogLine, Now, Outbound, PeerId, Router,
    calls::{Origin, Route, overloaded},
    schedule::Timing,
    streams::Stream,
};

/// A call that is made repeatedly.
#[derive(Debug)]
pub(super) struct Scheduled {
    /// The name of the node that asked for it, which the callee sees as its caller.
    pub(super) owner: Arc<str>,
    name: Box<str>,
    /// The node it is pinned to; empty for any node.
    node: Box<str>,
    codec: u8,
    fingerprint: u64,
    body: Bytes,
    _weight: Weight,
}

/// What a task takes up, counted for as long as it exists.
#[derive(Debug)]
struct Weight {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Weight {
    fn new(bytes: usize, all: &Arc<AtomicUsize>) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, all: all.clone() }
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Router {
    /// Adds a task and returns its id.
    pub(super) fn schedule(
        &mut self,
        from: PeerId,
        schedule: &Schedule<'_>,
        now: Now,
    ) -> Result<u64, Box<Fault>> {
        let Schedule { timing, codec, fingerprint, name, node, body } = schedule;
        let owner = self.peers.get(from.0).map(|peer| peer.name.clone()).unwrap_or_default();
        if let Err(problem) = check_name(name) {
            let message = format!("{name:?} is not a valid callback name: {problem}");
            return Err(Box::new(Fault::new(FaultKind::Refused, message)));
        }
        if body.len() > CHUNK_BYTES {
            let fault =
                Fault::new(FaultKind::TooLarge, "the arguments of a scheduled call have to fit in a frame");
            return Err(Box::new(fault.number(body.len() as u64).limit(CHUNK_BYTES as u64)));
        }
        if self.tasks.len() >= self.limits.tasks_max {
            return Err(overloaded("controller"));
        }
        let times = if let FrameTiming::At(times) = timing { times.iter().count() } else { 0 };
        let bytes = body.len() + times * size_of::<u64>();
        if self.task_bytes.load(Ordering::Relaxed) + bytes > TASKS_BYTES_MAX {
            return Err(overloaded("controller"));
        }
        let timing = match timing {
            FrameTiming::Period(period_us) => Timing::period(*period_us, now),
            FrameTiming::At(times) => Timing::at(times.iter(), now),
            _ => Err("this controller does not know such a schedule".to_owned()),
        };
        let timing = timing.map_err(|problem| Box::new(Fault::new(FaultKind::InvalidTime, problem)))?;
        let what = Scheduled {
            owner,
            name: (*name).into(),
            node: (*node).into(),
            codec: *codec,
            fingerprint: *fingerprint,
            // A copy, because a slice would keep everything read along with it alive as long as the task.
            body: body.copied(),
            _weight: Weight::new(bytes, &self.task_bytes),
        };
        Ok(self.tasks.insert(Arc::new(what), timing, now))
    }

    /// Makes the call of a task that is due.
    pub(super) fn call_scheduled(&mut self, task: u64, out: &mut impl Outbound) {
        let Some(what) = self.tasks.get(task).map(|task| task.what.clone()) else { return };
        let owner = self.joined(&what.owner);
        let request = Request {
            codec: what.codec,
            fingerprint: what.fingerprint,
            node: &what.node,
            ..Request::new(0, &what.name, Body::shared(&what.body))
        };
        let started =
            self.choose(owner, &what.name, &what.node, what.fingerprint).and_then(|(callee, index)| {
                let route = Route {
                    origin: Origin::Task(task),
                    one_way: false,
                    request: Stream::new(request.total, what.body.len()),
                    reply: None,
                };
                self.start(callee, index, &request, route, true, out)
            });
        match started {
            Ok(_) => self.tasks.started(task),
            Err(fault) => {
                let nobody = matches!(
                    fault.kind,
                    FaultKind::NoCandidate | FaultKind::NoProcess | FaultKind::NoInstance
                );
                let error = describe(*fault, &what.name);
                log_failure(task, "a scheduled call was not made", &error, out);
                if nobody {
                    self.tasks.not_called(task, error);
                } else {
                    self.tasks.refused(task, error);
                }
            }
        }
    }

    /// Records that a call of a task failed.
    pub(super) fn task_failed(&mut self, task: u64, fault: Fault, out: &mut impl Outbound) {
        // A task that has been cancelled in the meantime needs no error.
        let Some(what) = self.tasks.get(task).map(|task| task.what.clone()) else { return };
        let error = describe(fault, &what.name);
        log_failure(task, "a scheduled call failed", &error, out);
        self.tasks.ended(task, Some(error));
    }
}

fn log_failure(task: u64, what: &'static str, error: &str, out: &mut impl Outbound) {
    // It may fail a thousand times a second, and usually nobody is listening.
    if LevelFilter::current() >= LevelFilter::DEBUG {
        let error = error.to_owned();
        out.log(LogLine::new(move || tracing::debug!(task, error, "{what}")));
    }
}

/// Describes a fault in the words a caller would read.
fn describe(fault: Fault, callback: &str) -> String {
    if fault.kind == FaultKind::SignatureMismatch {
        return format!("{callback:?} on {:?} has another signature: {}", fault.node, fault.message);
    }
    Error::from_fault(fault, callback, "").to_string()
}
