//! Calls: from a caller to one or many nodes, and the outcomes back.

use std::hash::{BuildHasher as _, RandomState};

use daffi_core::{
    controller::{PortError, Strategy},
    fault::{Fault, FaultKind},
    frame::{Chunk, Failure, Frame, Reply, Request, Targets},
    limits::{CHUNK_BYTES, HOPS_MAX},
    signature::Signature,
};

use crate::{
    nodes::Offer,
    state::{NodeId, State, Violation},
};

/// A call at its callee.
pub(crate) struct Flight {
    pub(crate) callee: NodeId,
    pub(crate) origin: Origin,
    pub(crate) one_way: bool,
    pub(crate) request: Progress,
    pub(crate) reply: Option<Progress>,
    /// How many bytes of credit the callee has given.
    pub(crate) granted: u64,
}

/// Where an outcome goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Origin {
    /// A node, with its own id for the call and the index of this target in a broadcast.
    Node { node: NodeId, id: u64, part: u32 },
    /// A scheduled task.
    Task(u64),
}

/// What a caller is waiting for: one flight, or one per target of a broadcast.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    flights: Vec<u64>,
    /// How many bytes of credit were passed on to the caller.
    granted: u64,
}

/// How much of a payload has passed through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    pub(crate) total: u32,
    pub(crate) passed: usize,
}

impl Progress {
    fn pass(&mut self, chunk: &Chunk<'_>) -> Result<(), Violation> {
        self.passed += chunk.body.len();
        let total = self.total as usize;
        let fits = if chunk.more { self.passed < total } else { self.passed == total };
        if fits { Ok(()) } else { Err("a payload has another size than announced".to_owned()) }
    }
}

/// A node and its number for the callback, or why it cannot be called.
type Callee = Result<(NodeId, u32), Fault>;

impl State {
    pub(crate) fn request(&mut self, from: NodeId, request: &Request<'_>) -> Result<(), Violation> {
        let Request { id, one_way, broadcast, more, .. } = *request;
        if self.outstanding.contains_key(&(from, id)) {
            return Err("the id of a call in flight is used again".to_owned());
        }
        let calls = self.outstanding.keys().filter(|(caller, _)| *caller == from).count();
        let targets = match self.admit_call(request, calls) {
            Err(fault) => vec![Err(fault)],
            Ok(()) if !broadcast => {
                vec![self.choose(Some(from), request.name, request.node, request.fingerprint)]
            }
            Ok(()) => match self.targets(from, request) {
                Ok(targets) => targets,
                Err(fault) => {
                    self.fail(from, id, 0, fault);
                    return Ok(());
                }
            },
        };
        let caller = self.nodes.get(&from).map(|node| node.name.clone()).unwrap_or_default();
        for (part, callee) in (0..).zip(targets) {
            let origin = Origin::Node { node: from, id, part };
            let sent = callee.and_then(|callee| self.launch(callee, origin, &caller, request));
            match sent {
                Ok(flight) if !one_way || more => {
                    self.outstanding.entry((from, id)).or_default().flights.push(flight);
                }
                Ok(flight) => {
                    self.flights.remove(&flight);
                }
                Err(fault) if one_way => tracing::warn!(caller, ?fault, "a call was not delivered"),
                Err(fault) => self.fail(from, id, part, fault),
            }
        }
        // A one-way caller hears nothing else about its call.
        if one_way && more && !self.outstanding.contains_key(&(from, id)) {
            self.give_back(from, id, request.body.len() as u64);
        }
        Ok(())
    }

    /// Gives a sender credit for bytes that no callee will take.
    fn give_back(&self, to: NodeId, id: u64, bytes: u64) {
        if bytes > 0 {
            self.send(to, &Frame::Credit { id, reply: false, part: 0, bytes: bytes as u32 });
        }
    }

    fn admit_call(&self, request: &Request<'_>, in_flight: usize) -> Result<(), Fault> {
        let limit = self.limits.payload_bytes_max;
        if request.hops > HOPS_MAX {
            Err(Fault::new(FaultKind::HopLimit, "calls are nested too deep").number(HOPS_MAX.into()))
        } else if u64::from(request.total) > limit {
            Err(Fault::new(FaultKind::TooLarge, "too large").number(request.total.into()).limit(limit))
        } else if in_flight >= self.limits.calls_in_flight_max {
            Err(Fault::new(FaultKind::Overloaded, "too many calls in flight").on("controller"))
        } else {
            Ok(())
        }
    }

    /// Sends a request to its callee, and remembers it under a new id.
    pub(crate) fn launch(
        &mut self,
        (callee, index): (NodeId, u32),
        origin: Origin,
        caller: &str,
        request: &Request<'_>,
    ) -> Result<u64, Fault> {
        let id = self.fresh_id();
        let frame = Request { id, broadcast: false, callback: index, node: caller, ..request.clone() };
        self.try_send(callee, &Frame::Request(frame)).map_err(|error| self.not_sent(callee, error))?;
        let passed = request.body.len();
        let flight = Flight {
            callee,
            origin,
            one_way: request.one_way,
            request: Progress { total: request.total, passed },
            reply: None,
            granted: 0,
        };
        self.flights.insert(id, flight);
        Ok(id)
    }

    fn not_sent(&self, callee: NodeId, error: PortError) -> Fault {
        let name = self.nodes.get(&callee).map(|node| node.name.clone()).unwrap_or_default();
        match error {
            PortError::Full => Fault::new(FaultKind::Overloaded, "its queue is full").on(name),
            _ => Fault::new(FaultKind::NoProcess, "it is just disconnecting").on(name),
        }
    }

    // ---- who is called

    /// Returns all other nodes that offer a callback, ready or not.
    fn offers(&self, caller: Option<NodeId>, name: &str) -> Vec<(NodeId, u32, &Offer)> {
        let others = self.nodes.iter().filter(|(id, node)| Some(**id) != caller && node.is_visible());
        others.filter_map(|(id, node)| node.offer(name).map(|(index, offer)| (*id, index, offer))).collect()
    }

    /// Chooses the node that gets a call.
    pub(crate) fn choose(
        &mut self,
        caller: Option<NodeId>,
        name: &str,
        node: &str,
        fingerprint: u64,
    ) -> Callee {
        if !node.is_empty() {
            return self.pinned(caller, name, node, fingerprint);
        }
        let offers = self.offers(caller, name);
        let Some(&(first, ..)) = offers.first() else { return Err(self.no_candidate(caller, name)) };
        let ready: Vec<_> = offers.into_iter().filter(|(.., offer)| offer.ready).collect();
        let Some(&(other, _, shown)) = ready.first() else { return Err(self.no_instance(first)) };
        let matching: Vec<_> = ready
            .iter()
            .filter(|(.., offer)| Signature::matches(offer.fingerprint, fingerprint))
            .map(|(id, index, _)| (*id, *index))
            .collect();
        if matching.is_empty() {
            return Err(self.mismatch(other, shown));
        }
        let turn = match self.strategy {
            Strategy::RoundRobin => {
                let turn = self.turns.entry(name.to_owned()).or_default();
                *turn += 1;
                *turn
            }
            Strategy::LeastBusy => {
                let load = |id| self.flights.values().filter(|flight| flight.callee == id).count();
                let least = matching.iter().map(|(id, _)| load(*id)).min();
                matching.iter().position(|(id, _)| Some(load(*id)) == least).unwrap_or(0)
            }
            // A new hasher has a random key, which makes it a source of random numbers.
            _ => RandomState::new().hash_one(0) as usize,
        };
        Ok(matching[turn % matching.len()])
    }

    fn pinned(&self, caller: Option<NodeId>, name: &str, node: &str, fingerprint: u64) -> Callee {
        let Some((id, found)) = self.nodes.iter().find(|(_, found)| found.is_visible() && found.name == node)
        else {
            return Err(Fault::new(FaultKind::NoProcess, "no such process").on(node));
        };
        match found.offer(name).filter(|_| Some(*id) != caller) {
            None => Err(self.no_candidate(caller, name).on(node)),
            Some((_, offer)) if !offer.ready => Err(self.no_instance(*id)),
            Some((_, offer)) if !Signature::matches(offer.fingerprint, fingerprint) => {
                Err(self.mismatch(*id, offer))
            }
            Some((index, _)) => Ok((*id, index)),
        }
    }

    /// Returns the targets of a broadcast after announcing them to its caller.
    fn targets(&self, from: NodeId, request: &Request<'_>) -> Result<Vec<Callee>, Fault> {
        let mut names: Vec<String> = request.node.lines().map(str::to_owned).collect();
        if names.is_empty() {
            let ready = self.offers(Some(from), request.name).into_iter().filter(|(.., offer)| offer.ready);
            names = ready.map(|(id, ..)| self.nodes[&id].name.clone()).collect();
        }
        names.sort();
        names.dedup();
        if names.is_empty() {
            return Err(self.no_candidate(Some(from), request.name));
        }
        let nodes = names.join("\n");
        if nodes.len() > CHUNK_BYTES {
            return Err(Fault::new(FaultKind::Refused, "too many targets to be named"));
        }
        let callee = |name: &String| self.pinned(Some(from), request.name, name, request.fingerprint);
        let callees: Vec<Callee> = names.iter().map(callee).collect();
        if request.one_way && callees.iter().all(Result::is_err) {
            // Without results there is no entry that could say so.
            let mut faults = callees.into_iter().filter_map(Result::err);
            let mismatch = faults.find(|fault| fault.kind == FaultKind::SignatureMismatch);
            return Err(mismatch.unwrap_or_else(|| self.no_candidate(Some(from), request.name)));
        }
        self.send(from, &Frame::Targets(Targets { id: request.id, nodes: &nodes }));
        Ok(callees)
    }

    fn no_candidate(&self, caller: Option<NodeId>, name: &str) -> Fault {
        let others = self.nodes.iter().filter(|(id, _)| Some(**id) != caller);
        let mut similar: Vec<_> = others
            .flat_map(|(_, node)| node.offers.values())
            .map(|offer| (distance(name, &offer.name), offer.name.clone()))
            .filter(|(distance, other)| *distance <= 1 + other.len() / 4)
            .collect();
        similar.sort();
        similar.dedup();
        let details = similar.into_iter().take(3).map(|(_, name)| name).collect();
        Fault::new(FaultKind::NoCandidate, format!("no other process offers {name:?}")).details(details)
    }

    fn no_instance(&self, node: NodeId) -> Fault {
        Fault::new(FaultKind::NoInstance, "it has no instance yet").on(&*self.nodes[&node].name)
    }

    fn mismatch(&self, node: NodeId, offer: &Offer) -> Fault {
        Fault::new(FaultKind::SignatureMismatch, &*offer.signature).on(&*self.nodes[&node].name)
    }

    // ---- outcomes

    pub(crate) fn reply(&mut self, from: NodeId, reply: &Reply<'_>) -> Result<(), Violation> {
        // Only the callee may answer, and only once.
        let served = |flight: &&mut Flight| flight.callee == from && !flight.one_way;
        let Some(flight) = self.flights.get_mut(&reply.id).filter(served) else { return Ok(()) };
        if flight.reply.is_some() {
            return Err("a call is answered twice at once".to_owned());
        }
        let limit = self.limits.payload_bytes_max;
        if u64::from(reply.total) > limit {
            let name = self.nodes.get(&from).map(|node| node.name.clone()).unwrap_or_default();
            let fault = Fault::new(FaultKind::TooLarge, "too large").on(name);
            self.send(from, &Frame::Cancel { id: reply.id });
            self.end(reply.id, Some(fault.number(reply.total.into()).limit(limit)));
            return Ok(());
        }
        flight.reply = Some(Progress { total: reply.total, passed: reply.body.len() });
        match flight.origin {
            Origin::Node { node, id, part } => {
                self.send(node, &Frame::Reply(Reply { id, part, ..reply.clone() }));
            }
            // Nobody wants the result, so the rest of it need not come.
            Origin::Task(_) if reply.more => self.send(from, &Frame::Cancel { id: reply.id }),
            Origin::Task(_) => {}
        }
        let for_task = matches!(self.flights[&reply.id].origin, Origin::Task(_));
        if !reply.more || for_task {
            self.end(reply.id, None);
        }
        Ok(())
    }

    pub(crate) fn failure(&mut self, from: NodeId, failure: &Failure) {
        if self.flights.get(&failure.id).is_some_and(|flight| flight.callee == from) {
            let name = self.nodes.get(&from).map(|node| node.name.clone()).unwrap_or_default();
            self.end(failure.id, Some((*failure.fault).clone().on(name)));
        }
    }

    /// Forgets a flight. Its origin gets the fault, if any; otherwise it already has its value.
    pub(crate) fn end(&mut self, id: u64, fault: Option<Fault>) {
        let Some(flight) = self.flights.remove(&id) else { return };
        match flight.origin {
            Origin::Task(task) => self.task_ended(task, fault),
            Origin::Node { node, id: of, part } => {
                if let Some(outstanding) = self.outstanding.get_mut(&(node, of)) {
                    outstanding.flights.retain(|other| *other != id);
                    if outstanding.flights.is_empty() {
                        let open = (flight.request.passed as u64).saturating_sub(outstanding.granted);
                        self.outstanding.remove(&(node, of));
                        if flight.one_way && fault.is_some() {
                            self.give_back(node, of, open);
                        }
                    }
                }
                match fault {
                    Some(fault) if flight.one_way => tracing::warn!(?fault, "a call was not delivered"),
                    Some(fault) => self.fail(node, of, part, fault),
                    None => {}
                }
                // It may have been the slowest target of a broadcast.
                self.grant(node, of);
            }
        }
    }

    pub(crate) fn cancel(&mut self, from: NodeId, id: u64) {
        self.watches.retain(|watch| (watch.asker, watch.id) != (from, id));
        let Some(outstanding) = self.outstanding.remove(&(from, id)) else { return };
        for flight in outstanding.flights {
            if let Some(Flight { callee, .. }) = self.flights.remove(&flight) {
                self.send(callee, &Frame::Cancel { id: flight });
            }
        }
    }

    // ---- large payloads

    pub(crate) fn request_chunk(&mut self, from: NodeId, chunk: &Chunk<'_>) -> Result<(), Violation> {
        let Some(outstanding) = self.outstanding.get(&(from, chunk.id)) else {
            // The call is over. A sender that does not know yet may send the rest.
            if chunk.more {
                let bytes = chunk.body.len() as u32;
                self.send(from, &Frame::Credit { id: chunk.id, reply: false, part: 0, bytes });
            }
            return Ok(());
        };
        for id in outstanding.flights.clone() {
            let Some(flight) = self.flights.get_mut(&id) else { continue };
            flight.request.pass(chunk)?;
            let (callee, one_way) = (flight.callee, flight.one_way);
            let frame = Frame::Chunk(Chunk { id, part: 0, ..chunk.clone() });
            if let Err(error) = self.try_send(callee, &frame) {
                self.send(callee, &Frame::Cancel { id });
                let fault = self.not_sent(callee, error);
                self.end(id, Some(fault));
            } else if one_way && !chunk.more {
                self.end(id, None);
            }
        }
        Ok(())
    }

    pub(crate) fn reply_chunk(&mut self, from: NodeId, chunk: &Chunk<'_>) -> Result<(), Violation> {
        let Some(flight) = self.flights.get_mut(&chunk.id).filter(|flight| flight.callee == from) else {
            return Ok(());
        };
        let Some(reply) = &mut flight.reply else {
            return Err("a chunk of a result before its REPLY".to_owned());
        };
        reply.pass(chunk)?;
        let Origin::Node { node, id, part } = flight.origin else { return Ok(()) };
        if self.try_send(node, &Frame::Chunk(Chunk { id, part, ..chunk.clone() })).is_err() {
            self.send(from, &Frame::Cancel { id: chunk.id });
            self.end(
                chunk.id,
                Some(Fault::new(FaultKind::Failed, "its result did not fit into the caller's queue")),
            );
        } else if !chunk.more {
            self.end(chunk.id, None);
        }
        Ok(())
    }

    /// Handles a callee's credit for more of a request.
    pub(crate) fn request_credit(&mut self, from: NodeId, id: u64, bytes: u32) {
        let Some(flight) = self.flights.get_mut(&id).filter(|flight| flight.callee == from) else { return };
        flight.granted += u64::from(bytes);
        if let Origin::Node { node, id, .. } = flight.origin {
            self.grant(node, id);
        }
    }

    /// Passes on as much credit as the slowest callee has given.
    fn grant(&mut self, node: NodeId, id: u64) {
        let Some(outstanding) = self.outstanding.get_mut(&(node, id)) else { return };
        let flights = outstanding.flights.iter().filter_map(|flight| self.flights.get(flight));
        let slowest = flights.map(|flight| flight.granted).min().unwrap_or(0);
        let more = slowest.saturating_sub(outstanding.granted).min(u32::MAX.into());
        outstanding.granted += more;
        if more > 0 {
            self.send(node, &Frame::Credit { id, reply: false, part: 0, bytes: more as u32 });
        }
    }

    /// Handles a caller's credit for more of a result.
    pub(crate) fn reply_credit(&self, from: NodeId, id: u64, part: u32, bytes: u32) {
        let Some(outstanding) = self.outstanding.get(&(from, id)) else { return };
        for flight in &outstanding.flights {
            if let Some(Flight { callee, origin: Origin::Node { part: of, .. }, .. }) =
                self.flights.get(flight)
                && *of == part
            {
                self.send(*callee, &Frame::Credit { id: *flight, reply: true, part: 0, bytes });
            }
        }
    }
}

/// Counts the characters to add, remove or change to turn one name into the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = corner + usize::from(from != *to);
            corner = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}
