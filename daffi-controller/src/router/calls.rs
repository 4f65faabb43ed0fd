//! Calls: from the caller to one candidate, and the outcome back.

use std::{
    collections::hash_map::Entry,
    time::{Duration, Instant},
};

use daffi_core::{
    controller::PortError,
    fault::{Fault, FaultKind},
    frame::{Failure, Frame, Reply, Request},
    limits::HOPS_MAX,
    signature::Signature,
};

use super::{
    Breach, LogLine, Now, Outbound, PeerId, Router, fail,
    registry::Callback,
    streams::{Stream, send_to_nobody},
};

/// A call at its callee. Its place in the callee's table is the id that the callee sees.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) origin: Origin,
    /// No answer is wanted; the route is kept only for the rest of the payload.
    pub(super) one_way: bool,
    /// The payload on its way to the callee. That of a broadcast is counted once, at the broadcast.
    pub(super) request: Stream,
    /// The result on its way back, once it has begun.
    pub(super) reply: Option<Stream>,
}

/// Where the outcome of a call goes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin {
    /// A peer, which knows the call by this id.
    Caller { peer: PeerId, id: u64 },
    /// One part of a broadcast.
    Broadcast { key: u64, part: u32 },
    /// A scheduled task.
    Task(u64),
}

/// What a caller is waiting for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    /// A route at a callee.
    One { callee: PeerId, route: u64 },
    /// A broadcast.
    Broadcast(u64),
    /// Something that has not happened yet.
    Watch(u64),
}

/// Keeps the log readable when many one-way calls reach nobody.
#[derive(Debug, Default)]
pub(super) struct Undelivered {
    said: Option<Instant>,
    unsaid: u64,
}

const ID_IN_FLIGHT: &str = "a REQUEST frame has the id of a call in flight";

/// How often calls that reached nobody are logged.
const SAID_EVERY: Duration = Duration::from_secs(1);

impl Router {
    pub(super) fn request(
        &mut self,
        from: PeerId,
        request: &Request<'_>,
        now: Now,
        out: &mut impl Outbound,
    ) -> Result<(), Breach> {
        let Some(caller) = self.peers.get(from.0) else { return Ok(()) };
        let mut admitted = self.admit(request, caller.in_flight());
        if admitted.is_ok() && !request.broadcast {
            match self.choose(Some(from), request.name, request.node, request.fingerprint) {
                Ok((callee, index)) => return self.request_one(from, callee, index, request, now, out),
                Err(fault) => admitted = Err(fault),
            }
        }
        let kept = !request.one_way || request.more;
        if kept && self.peers.get(from.0).is_some_and(|caller| caller.calls.contains_key(&request.id)) {
            return Err(ID_IN_FLIGHT.into());
        }
        match admitted {
            Ok(()) => self.broadcast(from, request, now, out),
            Err(fault) => self.refuse(from, request, fault, now, out),
        }
        Ok(())
    }

    fn request_one(
        &mut self,
        from: PeerId,
        callee: PeerId,
        index: u32,
        request: &Request<'_>,
        now: Now,
        out: &mut impl Outbound,
    ) -> Result<(), Breach> {
        let kept = !request.one_way || request.more;
        if kept {
            let Some(to) = self.peers.get(callee.0) else { return Ok(()) };
            let call = Call::One { callee, route: to.routes.next_id() };
            let Some(caller) = self.peers.get_mut(from.0) else { return Ok(()) };
            // One table lookup both adds it and checks whether the id is taken.
            match caller.calls.entry(request.id) {
                Entry::Vacant(place) => place.insert(call),
                Entry::Occupied(_) => return Err(ID_IN_FLIGHT.into()),
            };
        }
        let route = Route {
            origin: Origin::Caller { peer: from, id: request.id },
            one_way: request.one_way,
            request: Stream::new(request.total, request.body.len()),
            reply: None,
        };
        if let Err(fault) = self.start(callee, index, request, route, kept, out) {
            if kept && let Some(caller) = self.peers.get_mut(from.0) {
                caller.calls.remove(&request.id);
            }
            self.refuse(from, request, fault, now, out);
        }
        Ok(())
    }

    pub(super) fn reply(
        &mut self,
        from: PeerId,
        reply: &Reply<'_>,
        now: Now,
        out: &mut impl Outbound,
    ) -> Result<(), Breach> {
        let Some(callee) = self.peers.get_mut(from.0) else { return Ok(()) };
        let Some(route) = callee.routes.get_mut(reply.id).filter(|route| !route.one_way) else {
            self.counters.late_replies += 1;
            return callee.control.late_answer(now.mono);
        };
        if route.reply.is_some() {
            return Err("a REPLY frame answers a call that is being answered".into());
        }
        let origin = route.origin;
        let limit = self.limits.payload_bytes_max;
        if u64::from(reply.total) > limit {
            let fault = Fault::new(FaultKind::TooLarge, "the result exceeds the limit of the controller")
                .on(&*callee.name)
                .number(reply.total.into())
                .limit(limit);
            self.abandon(from, reply.id, Box::new(fault), now, out);
            return Ok(());
        }
        if reply.more {
            route.reply = Some(Stream::new(reply.total, reply.body.len()));
        } else {
            callee.routes.remove(reply.id);
            self.in_flight -= 1;
        }
        match origin {
            Origin::Caller { peer, id } => {
                if let Some(caller) = self.peers.get_mut(peer.0) {
                    if reply.more {
                        caller.control.credits += 1;
                    } else {
                        caller.calls.remove(&id);
                    }
                }
                let _ = out.send(peer, &Frame::Reply(Reply { id, part: 0, ..reply.clone() }), true);
            }
            Origin::Broadcast { key, part } => {
                if let Some(broadcast) = self.broadcasts.get(key) {
                    let id = broadcast.id;
                    if reply.more
                        && let Some(caller) = self.peers.get_mut(broadcast.caller.0)
                    {
                        caller.control.credits += 1;
                    }
                    let (caller, part_reply) =
                        (broadcast.caller, Frame::Reply(Reply { id, part, ..reply.clone() }));
                    // The caller waits for all of them.
                    let _ = match broadcast.awaits_others() && !reply.more {
                        true => out.send_soon(caller, &part_reply),
                        false => out.send(caller, &part_reply, true),
                    };
                }
                if !reply.more {
                    self.part_done(key, part, out);
                }
            }
            Origin::Task(task) => {
                self.tasks.ended(task, None);
                // Nobody wants the result, so the rest of it need not come.
                if reply.more {
                    self.close_route(from, reply.id);
                    self.send_cancel(from, reply.id, out);
                }
            }
        }
        Ok(())
    }

    pub(super) fn failure(
        &mut self,
        from: PeerId,
        failure: &Failure,
        now: Now,
        out: &mut impl Outbound,
    ) -> Result<(), Breach> {
        let route = self.close_route(from, failure.id);
        let Some(callee) = self.peers.get_mut(from.0) else { return Ok(()) };
        let Some(route) = route else {
            self.counters.late_replies += 1;
            return callee.control.late_answer(now.mono);
        };
        // Which node failed is known here, whatever the callee says about it.
        let fault = Box::new((*failure.fault).clone().on(&*callee.name));
        self.fail_origin(&route, fault, now, out);
        Ok(())
    }

    pub(super) fn cancel(
        &mut self,
        from: PeerId,
        id: u64,
        now: Now,
        out: &mut impl Outbound,
    ) -> Result<(), Breach> {
        let Some(caller) = self.peers.get_mut(from.0) else { return Ok(()) };
        // The outcome may have crossed the caller's CANCEL; then there is nothing left to do.
        let call = caller.calls.remove(&id);
        caller.control.cancel(call.is_some(), now.mono)?;
        if let Some(call) = call {
            self.drop_call(call, out);
        }
        Ok(())
    }

    /// Tells a callee that nobody waits for a call any more, after its route was closed.
    pub(super) fn send_cancel(&mut self, callee: PeerId, route: u64, out: &mut impl Outbound) {
        let _ = out.send(callee, &Frame::Cancel { id: route }, true);
        if let Some(callee) = self.peers.get_mut(callee.0) {
            callee.control.answers += 1;
        }
    }

    /// Ends what a caller no longer waits for, after its own entry was removed.
    pub(super) fn drop_call(&mut self, call: Call, out: &mut impl Outbound) {
        match call {
            Call::One { callee, route } => {
                if self.close_route(callee, route).is_some() {
                    self.send_cancel(callee, route, out);
                }
            }
            Call::Broadcast(key) => self.drop_broadcast(key, out),
            Call::Watch(key) => self.watches.remove(key),
        }
    }

    /// Chooses the node whose callback gets a call.
    pub(super) fn choose(
        &mut self,
        caller: Option<PeerId>,
        name: &str,
        node: &str,
        fingerprint: u64,
    ) -> Result<(PeerId, u32), Box<Fault>> {
        if !node.is_empty() {
            return self.pinned(caller, name, node, fingerprint);
        }
        let Some(callback) = self.registry.find_mut(name) else {
            return Err(self.no_candidate(name, caller));
        };
        let (ready, cursor) = callback.ready_and_cursor();
        let (peers, picker) = (&self.peers, &mut self.picker);
        let load = |peer: PeerId| peers.get(peer.0).map_or(0, |peer| peer.routes.len());
        let picked = picker.pick(
            ready,
            cursor,
            |offer| Some(offer.peer) != caller && Signature::matches(offer.fingerprint, fingerprint),
            load,
        );
        if let Some(at) = picked {
            return Ok((ready[at].peer, ready[at].index));
        }
        let other = ready.iter().find(|offer| Some(offer.peer) != caller);
        match other.map(|offer| (offer.peer, offer.signature.clone())) {
            Some((peer, signature)) => Err(self.mismatch(peer, &signature)),
            None => Err(self.no_candidate(name, caller)),
        }
    }

    /// Does the same for a call that names its node.
    pub(super) fn pinned(
        &self,
        caller: Option<PeerId>,
        name: &str,
        node: &str,
        fingerprint: u64,
    ) -> Result<(PeerId, u32), Box<Fault>> {
        let Some(peer) = self.joined(node) else {
            let message = format!("no process named {node:?} is connected");
            return Err(Box::new(Fault::new(FaultKind::NoProcess, message).on(node)));
        };
        if Some(peer) == caller {
            let message = format!(
                "{name:?} was not called: {node:?} is the calling process itself, which is no candidate"
            );
            return Err(Box::new(Fault::new(FaultKind::NoCandidate, message).on(node)));
        }
        let Some(offer) = self.registry.find(name).and_then(|callback| callback.offer_of(peer)) else {
            return Err(self.not_offered(name, node, caller));
        };
        if !offer.ready {
            return Err(no_instance(name, node));
        }
        if !Signature::matches(offer.fingerprint, fingerprint) {
            return Err(self.mismatch(peer, &offer.signature));
        }
        Ok((peer, offer.index))
    }

    /// Sends a request to its callee and, if anything more of it is to come, opens a route.
    pub(super) fn start(
        &mut self,
        callee: PeerId,
        index: u32,
        request: &Request<'_>,
        route: Route,
        kept: bool,
        out: &mut impl Outbound,
    ) -> Result<u64, Box<Fault>> {
        let Some(to) = self.peers.get(callee.0) else { return Err(gone("")) };
        let id = to.routes.next_id();
        let frame = Request {
            id,
            broadcast: false,
            callback: index,
            node: self.caller_name(route.origin),
            ..request.clone()
        };
        match out.send(callee, &Frame::Request(frame), false) {
            Ok(()) => {}
            Err(PortError::Full) => return Err(overloaded(&to.name)),
            // The loss of its connection has not been noticed here yet.
            Err(_) => return Err(gone(&to.name)),
        }
        if kept && let Some(to) = self.peers.get_mut(callee.0) {
            to.routes.insert(route);
            to.control.credits += u64::from(request.more);
            self.in_flight += 1;
        }
        Ok(id)
    }

    /// Removes a route from its callee.
    pub(super) fn close_route(&mut self, callee: PeerId, route: u64) -> Option<Route> {
        let route = self.peers.get_mut(callee.0)?.routes.remove(route)?;
        self.in_flight -= 1;
        Some(route)
    }

    /// Gives up a call on both sides: the origin gets `fault`, the callee is told to stop.
    pub(super) fn abandon(
        &mut self,
        callee: PeerId,
        route: u64,
        fault: Box<Fault>,
        now: Now,
        out: &mut impl Outbound,
    ) {
        let Some(closed) = self.close_route(callee, route) else { return };
        self.send_cancel(callee, route, out);
        self.fail_origin(&closed, fault, now, out);
    }

    /// Sends a fault to the origin of a closed route.
    pub(super) fn fail_origin(
        &mut self,
        route: &Route,
        fault: Box<Fault>,
        now: Now,
        out: &mut impl Outbound,
    ) {
        let one_way = route.one_way;
        match route.origin {
            Origin::Caller { peer, id } => {
                if let Some(caller) = self.peers.get_mut(peer.0) {
                    caller.calls.remove(&id);
                }
                if one_way {
                    send_to_nobody(peer, id, route.request, out);
                    self.undeliverable(peer, &fault, now, out);
                } else {
                    fail(peer, id, 0, fault, out);
                }
            }
            Origin::Broadcast { key, part } => {
                if let Some(broadcast) = self.broadcasts.get(key) {
                    let (caller, id) = (broadcast.caller, broadcast.id);
                    if one_way {
                        self.undeliverable(caller, &fault, now, out);
                    } else {
                        fail(caller, id, part, fault, out);
                    }
                }
                self.part_done(key, part, out);
            }
            Origin::Task(task) => self.task_failed(task, *fault, out),
        }
    }

    /// Answers a request that was not passed on.
    fn refuse(
        &mut self,
        from: PeerId,
        request: &Request<'_>,
        fault: Box<Fault>,
        now: Now,
        out: &mut impl Outbound,
    ) {
        if request.one_way && !request.broadcast {
            send_to_nobody(from, request.id, Stream::new(request.total, request.body.len()), out);
            self.undeliverable(from, &fault, now, out);
        } else {
            fail(from, request.id, 0, fault, out);
        }
    }

    /// Records a one-way call that reached nobody.
    pub(super) fn undeliverable(&mut self, caller: PeerId, fault: &Fault, now: Now, out: &mut impl Outbound) {
        self.counters.undelivered += 1;
        let Undelivered { said, unsaid } = &mut self.undelivered;
        if said.is_some_and(|said| now.mono < said + SAID_EVERY) {
            *unsaid += 1;
            return;
        }
        let caller = self.peers.get(caller.0).map_or("", |caller| &*caller.name).to_owned();
        let (node, reason, not_logged_before) = (fault.node.clone(), fault.message.clone(), *unsaid);
        out.log(LogLine::new(move || {
            tracing::warn!(
                caller,
                node,
                reason,
                not_logged_before,
                "a call without an answer was not delivered"
            );
        }));
        *said = Some(now.mono);
        *unsaid = 0;
    }

    /// Whether a request is within the limits.
    fn admit(&self, request: &Request<'_>, in_flight: usize) -> Result<(), Box<Fault>> {
        if request.hops > HOPS_MAX {
            let fault = Fault::new(FaultKind::HopLimit, "calls are nested too deep");
            return Err(Box::new(fault.number(HOPS_MAX.into())));
        }
        let limit = self.limits.payload_bytes_max;
        if u64::from(request.total) > limit {
            let fault = Fault::new(FaultKind::TooLarge, "the payload exceeds the limit of the controller");
            return Err(Box::new(fault.number(request.total.into()).limit(limit)));
        }
        // Nodes enforce their own limit; this one is for those that do not.
        if in_flight >= self.limits.calls_in_flight_max {
            return Err(overloaded("controller"));
        }
        Ok(())
    }

    fn caller_name(&self, origin: Origin) -> &str {
        let peer = match origin {
            Origin::Caller { peer, .. } => peer,
            Origin::Broadcast { key, .. } => match self.broadcasts.get(key) {
                Some(broadcast) => broadcast.caller,
                None => return "",
            },
            Origin::Task(task) => return self.tasks.get(task).map_or("", |task| &task.what.owner),
        };
        self.peers.get(peer.0).map_or("", |peer| &peer.name)
    }

    /// Returns the fault for a name that nobody can be called by.
    pub(super) fn no_candidate(&self, name: &str, caller: Option<PeerId>) -> Box<Fault> {
        let offers = self.registry.find(name).map_or(&[][..], Callback::offers);
        if let Some(offer) = offers.iter().find(|offer| Some(offer.peer) != caller) {
            let node = self.peers.get(offer.peer.0).map_or("", |peer| &peer.name);
            return no_instance(name, node);
        }
        let message = if offers.is_empty() {
            format!("no process offers {name:?}")
        } else {
            format!("only the calling process itself offers {name:?}")
        };
        Box::new(Fault::new(FaultKind::NoCandidate, message).details(self.hints(name, caller)))
    }

    /// Returns why the node that a call is pinned to cannot run it.
    fn not_offered(&self, name: &str, node: &str, caller: Option<PeerId>) -> Box<Fault> {
        let offers = self.registry.find(name).map_or(&[][..], Callback::offers);
        let other = offers.iter().find(|offer| Some(offer.peer) != caller);
        let fault = match other.and_then(|offer| self.peers.get(offer.peer.0)) {
            Some(other) => {
                let message = format!("{node:?} does not offer {name:?}, {:?} does", other.name);
                Fault::new(FaultKind::NoCandidate, message)
            }
            None => {
                let message = format!("{node:?} does not offer {name:?}");
                Fault::new(FaultKind::NoCandidate, message).details(self.hints(name, caller))
            }
        };
        Box::new(fault.on(node))
    }

    /// Returns similar names, unless too many have been asked for lately.
    fn hints(&self, name: &str, caller: Option<PeerId>) -> Vec<String> {
        if self.hints.take() { self.registry.similar(name, caller) } else { Vec::new() }
    }

    pub(super) fn mismatch(&self, callee: PeerId, signature: &str) -> Box<Fault> {
        let node = self.peers.get(callee.0).map_or("", |peer| &peer.name);
        Box::new(Fault::new(FaultKind::SignatureMismatch, signature).on(node))
    }
}

pub(super) fn overloaded(node: &str) -> Box<Fault> {
    Box::new(Fault::new(FaultKind::Overloaded, "its queue is at the limit").on(node))
}

fn no_instance(name: &str, node: &str) -> Box<Fault> {
    let message = format!("{name:?} on {node:?} has no instance yet");
    Box::new(Fault::new(FaultKind::NoInstance, message).on(node))
}

fn gone(node: &str) -> Box<Fault> {
    Box::new(Fault::new(FaultKind::NoProcess, "it is just disconnecting").on(node))
}
