//! What the bytes between nodes and controllers reveal, regardless of what either side says about itself.
//!
//! End 0 of a connection is the node's, end 1 the controller's. A call carries its number in the first eight
//! bytes of its arguments, which identifies it all along its way.

mod pauses;
mod seen;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use daffi_core::{
    frame::{Body, Chunk, Frame, Question, Reply, Request},
    limits::FRAME_BYTES_MAX,
};

use pauses::Freeze;
use seen::{Asked, Outcome, Seen, What};

use crate::{
    history::{Nonce, is_ordered, is_task},
    network::HostId,
    random::Random,
    tamper::Tamper,
    trace::Trace,
};

/// What has been seen.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    connections: BTreeMap<usize, Seen>,
    /// Promises that were seen to be broken.
    pub(crate) violations: Vec<String>,
    /// Where and when each call last came to a controller.
    came: BTreeMap<Nonce, (usize, u64)>,
    /// Calls that a node sent again because they reached nobody, and large ones where that is unknown.
    pub(crate) again: BTreeSet<Nonce>,
    /// Large calls that left a node under this id before their number could be seen: over a later connection,
    /// they do not leave for the first time.
    left_unnamed: BTreeSet<(String, u64)>,
    /// The last call that went from one connection to another, with when it came.
    went: BTreeMap<(usize, usize), (u64, Nonce)>,
    /// The last call that went to a connection from the node in the controller's own process.
    went_from_embedded: BTreeMap<usize, Nonce>,
    /// Calls in the order in which they reached each process, for callbacks that keep it.
    pub(crate) given: BTreeMap<HostId, Vec<(String, Nonce)>>,
    order: u64,
    /// When the calls of each task left, for those that left as soon as they were due.
    pub(crate) fires: BTreeMap<Nonce, Vec<Duration>>,
    /// How many had to wait for room, so that nothing is known about when they were due.
    pub(crate) delayed_fires: BTreeMap<Nonce, usize>,
    /// Calls that nobody waits for, by the connection and the id with which they were passed on.
    handed_over: BTreeMap<(usize, u64), Nonce>,
    /// When each process was frozen.
    freezes: Vec<Freeze>,
    /// When nothing ran at all.
    sleeps: Vec<(Duration, Duration)>,
    /// Tasks by controller and id.
    tasks: BTreeMap<(HostId, u64), Nonce>,
    /// Tasks that a controller was asked for and has not answered yet.
    asked_for: BTreeMap<Nonce, HostId>,
    /// When a cancellation was confirmed.
    cancelled: BTreeMap<Nonce, Duration>,
    /// The targets of each broadcast, according to the controller.
    pub(crate) targets: BTreeMap<Nonce, BTreeSet<String>>,
    pub(crate) frames: u64,
    /// Nodes that lost their name to another node.
    pub(crate) takeovers: usize,
    /// Whether nodes may have few calls in flight: others wait, and those that need no place overtake them.
    pub(crate) calls_wait: bool,
    /// Nodes in a controller's own process, about which no bytes tell anything.
    pub(crate) embedded: BTreeSet<String>,
}

impl Wire {
    pub(crate) fn connected(&mut self, id: usize, node: HostId, controller: HostId) {
        self.connections.insert(id, Seen { node, controller, ..Seen::default() });
    }

    /// Returns the tasks that this controller has by its own account.
    pub(crate) fn tasks_of(&self, controller: HostId) -> Vec<u64> {
        let of_it = |((host, _), nonce): &(&(HostId, u64), &Nonce)| {
            *host == controller && !self.cancelled.contains_key(*nonce)
        };
        self.tasks.iter().filter(of_it).map(|((_, task), _)| *task).collect()
    }

    /// Returns how many tasks this controller may have whose id nobody knows.
    pub(crate) fn unknown_tasks(&self, controller: HostId) -> usize {
        self.asked_for.values().filter(|host| **host == controller).count()
    }

    /// Returns calls that nobody waits for, with the processes that got them and still have the connection.
    pub(crate) fn handed_over(&self) -> impl Iterator<Item = (Nonce, HostId)> {
        self.handed_over.iter().filter_map(|((connection, _), nonce)| {
            let seen = self.connections.get(connection).filter(|seen| seen.over.is_none())?;
            Some((*nonce, seen.node))
        })
    }

    /// Records that an end was closed, or has seen the other one close.
    pub(crate) fn end_closed(&mut self, id: usize, end: usize, now: Duration) {
        if let Some(seen) = self.connections.get_mut(&id)
            && end == 1
        {
            seen.over.get_or_insert(now);
        }
    }

    /// Records that a lane is full.
    pub(crate) fn full(&mut self, id: usize, lane: usize) {
        if let Some(seen) = self.connections.get_mut(&id) {
            seen.full |= lane == 1;
        }
    }

    /// Records that a lane that was full has room again.
    pub(crate) fn unblocked(&mut self, id: usize, lane: usize) {
        if let Some(seen) = self.connections.get_mut(&id) {
            seen.blocked[lane] = true;
        }
    }

    /// Looks at what `end` wrote. Returns the beginning of an incomplete frame, and what is to be sent.
    #[expect(clippy::too_many_arguments, reason = "they are parts of the network, which calls this alone")]
    pub(crate) fn look(
        &mut self,
        id: usize,
        end: usize,
        written: BytesMut,
        now: Duration,
        trace: &mut Trace,
        tamper: &mut Tamper,
        random: &mut Random,
    ) -> (BytesMut, Vec<u8>) {
        if let Some(seen) = self.connections.get_mut(&id) {
            if std::mem::take(&mut seen.blocked[end]) {
                seen.unblocked[end] = Some(now);
            }
            seen.full &= end != 1;
        }
        let batch = written.freeze();
        let mut sent = Vec::new();
        let mut at = 0;
        loop {
            match Frame::decode(&batch, at, FRAME_BYTES_MAX) {
                Ok(Some((frame, next))) => {
                    at = next;
                    if tamper.is_on() {
                        for bytes in tamper.change(id, end, &frame, random) {
                            let bytes = Bytes::from(bytes);
                            if let Ok(Some((frame, _))) = Frame::decode(&bytes, 0, FRAME_BYTES_MAX) {
                                self.see(id, end, &frame, now, trace);
                            }
                            sent.extend_from_slice(&bytes);
                        }
                    } else {
                        self.see(id, end, &frame, now, trace);
                    }
                }
                Ok(None) => return (BytesMut::from(&batch[at..]), sent),
                Err(error) => {
                    self.violations.push(format!("connection {id}: end {end} wrote no frame: {error}"));
                    return (BytesMut::new(), sent);
                }
            }
        }
    }

    fn see(&mut self, id: usize, end: usize, frame: &Frame<'_>, now: Duration, trace: &mut Trace) {
        self.frames += 1;
        self.order += 1;
        let nonce = nonce_of(frame);
        trace.note(now, || {
            let arrow = if end == 0 { "->" } else { "<-" };
            let nonce = nonce.map_or(String::new(), |nonce| format!(" of {nonce:#x}"));
            format!("connection {id} {arrow} {}{nonce}", frame.kind())
        });
        let Some(mut seen) = self.connections.remove(&id) else { return };
        match end {
            0 => self.node_wrote(id, &mut seen, frame),
            _ => self.controller_wrote(id, &mut seen, frame, now),
        }
        self.connections.insert(id, seen);
    }

    fn node_wrote(&mut self, id: usize, seen: &mut Seen, frame: &Frame<'_>) {
        match frame {
            Frame::Hello(hello) => hello.name.clone_into(&mut seen.name),
            Frame::Register(_) => seen.registering = true,
            Frame::Goodbye { .. } => seen.leaving = true,
            Frame::Request(request) => {
                let nonce = nonce_of(frame);
                let sent_before = seen.unnamed.remove(&request.id).is_some()
                    || self.left_unnamed.remove(&(seen.name.clone(), request.id));
                match nonce {
                    // A large call that carries no arguments at first: its number comes with the first chunk.
                    None => {
                        seen.unnamed.insert(request.id, self.order);
                        self.left_unnamed.insert((seen.name.clone(), request.id));
                    }
                    Some(nonce) => {
                        let is_new = self.came.insert(nonce, (id, self.order)).is_none();
                        if !is_new || sent_before {
                            self.again.insert(nonce);
                        } else if self.has_its_place(nonce, request.one_way) {
                            self.keeps_order(seen, nonce);
                        }
                    }
                }
                let what = if request.broadcast { What::Broadcast } else { What::Call };
                if !request.one_way || request.broadcast {
                    seen.asked.insert(request.id, Asked { nonce, what, outcomes: BTreeMap::new() });
                }
            }
            Frame::Chunk(Chunk { id: call, reply: false, body, .. }) => {
                if let Some(nonce) = number_in(*body)
                    && let Some(order) = seen.unnamed.remove(call)
                {
                    self.left_unnamed.remove(&(seen.name.clone(), *call));
                    self.came.entry(nonce).or_insert((id, order));
                    self.again.insert(nonce);
                    seen.asked.entry(*call).and_modify(|asked| asked.nonce = Some(nonce));
                }
            }
            Frame::Ask { id: ask, question, .. } => {
                let what = match question {
                    Question::Schedule(_) => What::Schedule,
                    Question::CancelTask { task } => What::Cancel(*task),
                    _ => What::Other,
                };
                let nonce = nonce_of(frame);
                if let Some(nonce) = nonce {
                    self.asked_for.insert(nonce, seen.controller);
                }
                seen.asked.insert(*ask, Asked { nonce, what, outcomes: BTreeMap::new() });
            }
            Frame::Reply(Reply { id: route, more, .. }) => self.answered(id, seen, *route, false, *more),
            Frame::Failure(failure) => self.answered(id, seen, failure.id, true, false),
            Frame::Chunk(Chunk { id: route, reply: true, more, .. }) => {
                if let Some(outcome) = seen.given.get_mut(route) {
                    outcome.chunk(*more);
                }
            }
            _ => {}
        }
    }

    /// Whether a call must leave in the order of its node's calls.
    fn has_its_place(&self, nonce: Nonce, one_way: bool) -> bool {
        is_ordered(nonce) && !(self.calls_wait && one_way)
    }

    /// I7 at the caller: calls that its users make one after the other leave in that order.
    fn keeps_order(&mut self, seen: &mut Seen, nonce: Nonce) {
        if nonce < seen.sent_last {
            let problem =
                format!("I7: {nonce:#x} left its node after {:#x}, which was called later", seen.sent_last);
            self.violations.push(problem);
        }
        seen.sent_last = nonce;
    }

    fn answered(&mut self, id: usize, seen: &mut Seen, route: u64, failure: bool, more: bool) {
        match seen.given.get_mut(&route) {
            None => self.violations.push(format!("I5: connection {id}: an answer to what was never asked")),
            Some(outcome) => {
                if !outcome.answer(failure, more) {
                    self.violations.push(format!("I5: connection {id}: a callee answered twice"));
                }
            }
        }
    }

    fn controller_wrote(&mut self, id: usize, seen: &mut Seen, frame: &Frame<'_>, now: Duration) {
        match frame {
            Frame::Registered { .. } => seen.registered = true,
            // The controller has already forgotten the node.
            Frame::Refuse(_) => seen.over = Some(now),
            // It has also forgotten any older node with this name, except one that has not had its turn.
            Frame::Welcome(_) => {
                seen.welcomed = true;
                let of_the_name = |older: &&mut Seen| older.welcomed && older.name == seen.name;
                for older in self.connections.values_mut().filter(of_the_name) {
                    // Ended because of this one, or just now.
                    self.takeovers += usize::from(older.over.is_none_or(|over| over == now));
                    older.over.get_or_insert(now);
                }
            }
            Frame::Request(request) => self.passed_on(id, seen, request, nonce_of(frame), now),
            Frame::Cancel { id: route } => drop(self.handed_over.remove(&(id, *route))),
            Frame::Reply(reply) => {
                self.outcome(id, seen, reply.id, reply.part, false, reply.more, frame, now)
            }
            Frame::Failure(failure) => {
                self.outcome(id, seen, failure.id, failure.part, true, false, frame, now);
            }
            Frame::Chunk(Chunk { id: call, reply: true, part, more, .. }) => {
                if let Some(outcome) = seen.asked.get_mut(call).and_then(|a| a.outcomes.get_mut(part)) {
                    outcome.chunk(*more);
                }
            }
            Frame::Targets(targets) => {
                let nonce = seen.asked.get(&targets.id).and_then(|asked| asked.nonce);
                let names: BTreeSet<_> = targets.nodes.lines().map(str::to_owned).collect();
                if !seen.waited(now) {
                    self.complete(id, seen, &names, now);
                }
                if let Some(nonce) = nonce {
                    self.targets.insert(nonce, names);
                }
            }
            _ => {}
        }
    }

    fn passed_on(
        &mut self,
        id: usize,
        seen: &mut Seen,
        request: &Request<'_>,
        nonce: Option<Nonce>,
        now: Duration,
    ) {
        if !request.one_way {
            seen.given.insert(request.id, Outcome::Open);
        }
        let Some(nonce) = nonce else { return };
        self.given.entry(seen.node).or_default().push((request.name.to_owned(), nonce));
        if is_task(nonce) {
            // What waited for room was decided earlier.
            if seen.waited(now) {
                *self.delayed_fires.entry(nonce).or_default() += 1;
                return;
            }
            self.fires.entry(nonce).or_default().push(now);
            if let Some(cancelled) = self.cancelled.get(&nonce)
                && *cancelled < now
            {
                self.violations.push(format!(
                    "I9: the task {nonce:#x} called at {now:?}, after it was cancelled at {cancelled:?}"
                ));
            }
            return;
        }
        if request.one_way {
            self.handed_over.insert((id, request.id), nonce);
        }
        let Some(&(from, came)) = self.came.get(&nonce) else {
            if self.has_its_place(nonce, request.one_way) {
                let last = self.went_from_embedded.insert(id, nonce).unwrap_or_default();
                if nonce < last {
                    let problem =
                        format!("I7: {nonce:#x} was passed on after {last:#x}, which was called later");
                    self.violations.push(problem);
                }
            }
            return;
        };
        let last = self.went.entry((from, id)).or_insert((came, nonce));
        if last.0 > came {
            self.violations.push(format!(
                "I7: {nonce:#x} was passed on from connection {from} to {id} after {:#x}, which came later",
                last.1
            ));
        }
        *last = (came, nonce);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a result or failure")]
    fn outcome(
        &mut self,
        id: usize,
        seen: &mut Seen,
        call: u64,
        part: u32,
        failure: bool,
        more: bool,
        frame: &Frame<'_>,
        now: Duration,
    ) {
        let Some(asked) = seen.asked.get_mut(&call) else {
            self.violations.push(format!("I5: connection {id}: an outcome of what was never asked"));
            return;
        };
        if !asked.outcomes.entry(part).or_insert(Outcome::Open).answer(failure, more) {
            let nonce = asked.nonce.unwrap_or_default();
            self.violations.push(format!("I5: connection {id}: {nonce:#x} has two outcomes"));
        }
        let Frame::Reply(reply) = frame else {
            if let (What::Schedule, Some(nonce)) = (asked.what, asked.nonce) {
                self.asked_for.remove(&nonce);
            }
            return;
        };
        let number = number_in(reply.body);
        match (asked.what, asked.nonce, number) {
            (What::Schedule, Some(nonce), Some(task)) => {
                self.tasks.insert((seen.controller, task), nonce);
                self.asked_for.remove(&nonce);
            }
            (What::Cancel(task), ..) => {
                if let Some(nonce) = self.tasks.get(&(seen.controller, task)) {
                    self.cancelled.entry(*nonce).or_insert(now);
                }
            }
            _ => {}
        }
    }

    /// Checks that a broadcast goes to every node it must go to, and to no others.
    fn complete(&mut self, id: usize, caller: &Seen, names: &BTreeSet<String>, now: Duration) {
        let others = self.connections.values().filter(|seen| seen.name != caller.name);
        let mut may: BTreeSet<&str> = self.embedded.iter().map(String::as_str).collect();
        let mut missing = Vec::new();
        for seen in others {
            // It takes a moment until the end of a connection is noticed.
            let noticed = seen.over.map(|over| self.awake_since(seen.controller, over) + NOTICED_MAX);
            if seen.registering && noticed.is_none_or(|at| at > now) {
                may.insert(&seen.name);
            }
            if seen.registered
                && seen.over.is_none()
                && !seen.full
                && !seen.leaving
                && !names.contains(&seen.name)
            {
                missing.push(seen.name.clone());
            }
        }
        let unknown: Vec<_> = names.iter().filter(|name| !may.contains(name.as_str())).collect();
        if !missing.is_empty() || !unknown.is_empty() {
            self.violations.push(format!(
                "I8: a broadcast on connection {id} goes to {names:?}: {missing:?} are missing, {unknown:?} unknown"
            ));
        }
    }
}

/// How long after its end a connection may still count, unless the controller is frozen.
const NOTICED_MAX: Duration = Duration::from_millis(100);

/// Returns the number of the call that a frame begins.
fn nonce_of(frame: &Frame<'_>) -> Option<Nonce> {
    let body = match frame {
        Frame::Request(request) => request.body,
        Frame::Ask { question: Question::Schedule(schedule), .. } => schedule.body,
        _ => return None,
    };
    number_in(body)
}

/// Returns the number at the beginning of arguments or of a result.
fn number_in(body: Body<'_>) -> Option<u64> {
    body.to_bytes().first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}
