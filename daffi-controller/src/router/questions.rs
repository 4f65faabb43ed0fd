//! Questions that nodes ask the controller itself.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use bytes::Bytes;
use daffi_core::{
    answer::{CallbackInfo, Process},
    controller::PortError,
    fault::{Fault, FaultKind},
    frame::{Body, Chunk, Frame, Question, Reply},
    limits::CHUNK_BYTES,
    payload::{Codec, CodecError},
};

use super::{
    Breach, Now, Outbound, PeerId, Router,
    calls::{Call, overloaded},
    fail,
    watches::Event,
};

/// The lists of all processes and of all callbacks, encoded, which are the same for every asker.
///
/// Making one takes time proportional to the number of callbacks, and everyone else waits meanwhile. So each is made
/// once and kept until something changes. After a long one, questions wait for a while and are then answered
/// together: otherwise a node that changes something before each question could keep the controller busy.
#[derive(Debug, Default)]
pub(super) struct Lists {
    known: HashMap<(List, u8), Result<Bytes, Box<Fault>>>,
    rests_until: Option<Instant>,
}

/// Which list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum List {
    Processes,
    Callbacks,
}

/// How long no further list is made after one, for each of its entries: about ten times as long as making it took.
const REST_OF_AN_ENTRY: Duration = Duration::from_micros(20);

/// Shorter rests are left out.
const REST_MIN: Duration = Duration::from_millis(1);

impl Lists {
    /// Forgets the lists, since something has changed.
    pub(super) fn clear(&mut self) {
        self.known.clear();
    }

    fn rests(&self, now: Now) -> bool {
        self.rests_until.is_some_and(|until| now.mono < until)
    }
}

impl Router {
    pub(super) fn ask(
        &mut self,
        from: PeerId,
        id: u64,
        codec: u8,
        question: &Question<'_>,
        now: Now,
        out: &mut impl Outbound,
    ) -> Result<(), Breach> {
        let Some(asker) = self.peers.get(from.0) else { return Ok(()) };
        if asker.calls.contains_key(&id) {
            return Err("an ASK frame has the id of a call in flight".into());
        }
        let Some(codec) = Codec::from_byte(codec) else {
            let message = format!("the controller answers in codec 0 or 1, not in {codec}");
            fail(from, id, 0, Box::new(Fault::new(FaultKind::Refused, message)), out);
            return Ok(());
        };
        match question {
            Question::WaitProcess { name } => {
                let there = self.joined(name).is_some();
                self.wait((from, id, codec), there, Event::Process((*name).into()), out);
            }
            Question::WaitFunction { name } => {
                let callback = self.registry.find(name);
                let there = callback
                    .is_some_and(|callback| callback.ready().iter().take(2).any(|offer| offer.peer != from));
                self.wait((from, id, codec), there, Event::Function((*name).into()), out);
            }
            Question::Processes | Question::Callbacks => {
                let list = match question {
                    Question::Callbacks => List::Callbacks,
                    _ => List::Processes,
                };
                if self.lists.rests(now) && !self.lists.known.contains_key(&(list, codec.to_byte())) {
                    self.wait((from, id, codec), false, Event::List(list), out);
                } else {
                    self.list((from, id, codec), list, now, out);
                }
            }
            Question::Schedule(schedule) => match self.schedule(from, schedule, now) {
                Ok(task) => answer(from, id, codec, self.within_limit(codec.encode(&task)), out),
                Err(fault) => fail(from, id, 0, fault, out),
            },
            Question::CancelTask { task } => {
                if self.tasks.cancel(*task) {
                    yes(from, id, codec, out);
                } else {
                    fail(from, id, 0, no_task(*task), out);
                }
            }
            Question::TaskStatus { task } => match self.tasks.status(*task, now) {
                Some(status) => answer(from, id, codec, self.within_limit(codec.encode(&status)), out),
                None => fail(from, id, 0, no_task(*task), out),
            },
            _ => {
                let message = "this controller does not know the question";
                fail(from, id, 0, Box::new(Fault::new(FaultKind::Refused, message)), out);
            }
        }
        Ok(())
    }

    /// Answers with a list.
    fn list(
        &mut self,
        (from, id, codec): (PeerId, u64, Codec),
        list: List,
        now: Now,
        out: &mut impl Outbound,
    ) {
        let key = (list, codec.to_byte());
        let known = self.lists.known.get(&key).cloned();
        let body = known.unwrap_or_else(|| {
            let encoded = match list {
                List::Callbacks => codec.encode(&self.callbacks()),
                List::Processes => codec.encode(&self.processes()),
            };
            let body = self.within_limit(encoded);
            let rest = REST_OF_AN_ENTRY * (self.registry.len() + self.names.len()) as u32;
            if rest >= REST_MIN {
                let from = self.lists.rests_until.map_or(now.mono, |until| until.max(now.mono));
                self.lists.rests_until = Some(from + rest);
            }
            self.lists.known.insert(key, body.clone());
            body
        });
        let parts = body.as_ref().map_or(0, |body| body.len().div_ceil(CHUNK_BYTES));
        if let Some(asker) = self.peers.get_mut(from.0) {
            asker.control.credits += parts as u64;
        }
        answer(from, id, codec, body, out);
    }

    /// Answers the questions that wait for lists, if their rest is over.
    #[inline]
    pub(super) fn list_due(&mut self, now: Now, out: &mut impl Outbound) {
        if self.lists.rests_until.is_some() && !self.lists.rests(now) {
            self.list_all(now, out);
        }
    }

    #[cold]
    fn list_all(&mut self, now: Now, out: &mut impl Outbound) {
        self.lists.rests_until = None;
        for list in [List::Processes, List::Callbacks] {
            for watch in self.watches.take(&Event::List(list), None) {
                if let Some(asker) = self.peers.get_mut(watch.asker.0) {
                    asker.calls.remove(&watch.id);
                    self.list((watch.asker, watch.id, watch.codec), list, now, out);
                }
            }
        }
    }

    /// Returns when questions that wait for lists are answered, if there are any.
    #[inline]
    pub(super) fn lists_due(&self) -> Option<Instant> {
        self.lists.rests_until.filter(|_| self.is_asked_for_lists())
    }

    #[cold]
    fn is_asked_for_lists(&self) -> bool {
        [List::Processes, List::Callbacks].into_iter().any(|list| self.watches.has(&Event::List(list)))
    }

    /// Answers the questions that wait for a node to join.
    pub(super) fn process_joined(&mut self, name: &str, out: &mut impl Outbound) {
        self.happened(&Event::Process(name.into()), None, out);
    }

    /// Answers the questions that wait for a callback, except those of the node that offers it.
    pub(super) fn function_ready(&mut self, name: &str, on: PeerId, out: &mut impl Outbound) {
        self.happened(&Event::Function(name.into()), Some(on), out);
    }

    fn happened(&mut self, event: &Event, except: Option<PeerId>, out: &mut impl Outbound) {
        for watch in self.watches.take(event, except) {
            if let Some(asker) = self.peers.get_mut(watch.asker.0) {
                asker.calls.remove(&watch.id);
                yes(watch.asker, watch.id, watch.codec, out);
            }
        }
    }

    /// Answers at once if it has already happened, otherwise when it happens.
    fn wait(
        &mut self,
        (from, id, codec): (PeerId, u64, Codec),
        there: bool,
        event: Event,
        out: &mut impl Outbound,
    ) {
        if there {
            return yes(from, id, codec, out);
        }
        let Some(asker) = self.peers.get_mut(from.0) else { return };
        if asker.in_flight() >= self.limits.calls_in_flight_max {
            return fail(from, id, 0, overloaded("controller"), out);
        }
        asker.calls.insert(id, Call::Watch(self.watches.insert(from, id, codec, event)));
    }

    /// Returns the processes that have joined, by name.
    fn processes(&self) -> Vec<Process> {
        let mut processes: Vec<_> = self
            .names
            .keys()
            .filter_map(|name| Some((name, self.joined(name)?)))
            .map(|(name, peer)| {
                let mut callbacks: Vec<_> =
                    self.registry.names_of(peer).map(|name| name.to_string()).collect();
                callbacks.sort_unstable();
                Process::new(name.to_string(), callbacks)
            })
            .collect();
        processes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        processes
    }

    /// Returns the callbacks that are offered, by name and signature.
    fn callbacks(&self) -> Vec<CallbackInfo> {
        let mut callbacks = Vec::new();
        for callback in self.registry.iter() {
            let mut by_signature: BTreeMap<&str, (Vec<String>, bool)> = BTreeMap::new();
            for offer in callback.offers() {
                let Some(peer) = self.peers.get(offer.peer.0) else { continue };
                let (nodes, ready) = by_signature.entry(&offer.signature).or_default();
                nodes.push(peer.name.to_string());
                *ready |= offer.ready;
            }
            callbacks.extend(by_signature.into_iter().map(|(signature, (mut nodes, ready))| {
                nodes.sort_unstable();
                CallbackInfo::new(callback.name.to_string(), signature.to_owned(), nodes, ready)
            }));
        }
        callbacks
    }

    /// Returns the answer if it is within the limits, otherwise what is wrong with it.
    fn within_limit(&self, encoded: Result<Bytes, CodecError>) -> Result<Bytes, Box<Fault>> {
        // All of it is queued at once.
        let limit = self.limits.payload_bytes_max.min(self.limits.queue_bytes_max as u64);
        match encoded {
            Ok(body) if body.len() as u64 <= limit => Ok(body),
            Ok(body) => {
                let fault = Fault::new(FaultKind::TooLarge, "the answer exceeds the limit of the controller");
                Err(Box::new(fault.on("controller").number(body.len() as u64).limit(limit)))
            }
            Err(error) => Err(Box::new(Fault::new(FaultKind::BadResult, error.to_string()).on("controller"))),
        }
    }
}

/// Sends an answer, in chunks if it is long.
///
/// It does not wait for credit, so that none of it has to be kept here. If there is no room for all of it, a
/// failure cuts it short: a peer that asks for a lot and reads slowly is not disconnected for that.
fn answer(to: PeerId, id: u64, codec: Codec, body: Result<Bytes, Box<Fault>>, out: &mut impl Outbound) {
    let mut rest = match body {
        Ok(body) => body,
        Err(fault) => return fail(to, id, 0, fault, out),
    };
    let total = rest.len() as u32;
    let first = rest.split_to(rest.len().min(CHUNK_BYTES));
    let more = !rest.is_empty();
    let body = Body::shared(&first);
    let reply = Reply { id, more, part: 0, codec: codec.to_byte(), total, body };
    let mut sent = out.send(to, &Frame::Reply(reply), true);
    // Nobody reads the rest if the connection is closed.
    while sent.is_ok() && !rest.is_empty() {
        let next = rest.split_to(rest.len().min(CHUNK_BYTES));
        let body = Body::shared(&next);
        let chunk = Chunk { id, reply: true, more: !rest.is_empty(), part: 0, body };
        sent = out.send(to, &Frame::Chunk(chunk), false);
    }
    if sent == Err(PortError::Full) {
        fail(to, id, 0, overloaded("controller"), out);
    }
}

/// Sends an answer that only confirms: the unit value, which is no bytes or the word `null`.
fn yes(to: PeerId, id: u64, codec: Codec, out: &mut impl Outbound) {
    let body: &[u8] = match codec {
        Codec::Json => b"null",
        _ => b"",
    };
    let total = body.len() as u32;
    let reply = Reply { id, more: false, part: 0, codec: codec.to_byte(), total, body: Body::borrowed(body) };
    let _ = out.send(to, &Frame::Reply(reply), true);
}

fn no_task(task: u64) -> Box<Fault> {
    Box::new(Fault::new(FaultKind::NoTask, "no such task").number(task))
}
