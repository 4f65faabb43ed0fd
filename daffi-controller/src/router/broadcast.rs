//! Calls to every node that offers a name.

use std::{collections::HashSet, sync::Arc};

use daffi_core::{
    fault::{Fault, FaultKind},
    frame::{Frame, Request, Targets},
    limits::CHUNK_BYTES,
    signature::Signature,
};

use super::{
    Now, Outbound, PeerId, Router,
    calls::{Call, Origin, Route},
    fail,
    streams::{Stream, send_to_nobody},
};

/// A call to several nodes.
#[derive(Debug)]
pub(super) struct Broadcast {
    pub(super) caller: PeerId,
    /// The caller's id for it.
    pub(super) id: u64,
    pub(super) one_way: bool,
    /// The payload, which goes to all targets at once.
    pub(super) request: Stream,
    /// Whether the payload comes in several frames, for which there is credit.
    in_chunks: bool,
    /// One for each target, in the order of `TARGETS`.
    pub(super) parts: Vec<Part>,
    /// How many parts have a route.
    pending: usize,
}

/// A broadcast's call to one node.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    /// Where it runs; `None` once it has an outcome.
    pub(super) route: Option<(PeerId, u64)>,
    /// How many bytes of credit the node has given.
    granted: u32,
}

impl Broadcast {
    /// Whether more outcomes will follow that of one of its parts.
    pub(super) fn awaits_others(&self) -> bool {
        self.pending > 1
    }
}

struct Target {
    name: Arc<str>,
    /// The node and its index for the callback, or why it cannot be called.
    callee: Result<(PeerId, u32), Box<Fault>>,
}

/// The most bytes that all target names may have together, so that they fit in one frame.
const NAMES_BYTES_MAX: usize = CHUNK_BYTES;

impl Router {
    pub(super) fn broadcast(
        &mut self,
        from: PeerId,
        request: &Request<'_>,
        now: Now,
        out: &mut impl Outbound,
    ) {
        let targets = if request.node.is_empty() {
            self.targets(from, request)
        } else {
            self.named_targets(from, request)
        };
        if targets.is_empty() {
            return fail(from, request.id, 0, self.no_candidate(request.name, Some(from)), out);
        }
        if request.one_way && targets.iter().all(|target| target.callee.is_err()) {
            return fail(from, request.id, 0, nobody_of(targets, request.name), out);
        }
        let names: Vec<&str> = targets.iter().map(|target| &*target.name).collect();
        let nodes = names.join("\n");
        if nodes.len() > NAMES_BYTES_MAX {
            let message = format!(
                "the names of the {} nodes that a broadcast would go to exceed {NAMES_BYTES_MAX} bytes: name fewer",
                targets.len()
            );
            return fail(from, request.id, 0, Box::new(Fault::new(FaultKind::Refused, message)), out);
        }
        let _ = out.send(from, &Frame::Targets(Targets { id: request.id, nodes: &nodes }), true);

        let key = self.broadcasts.insert(Broadcast {
            caller: from,
            id: request.id,
            one_way: request.one_way,
            request: Stream::new(request.total, request.body.len()),
            in_chunks: request.more,
            parts: vec![Part::default(); targets.len()],
            pending: 0,
        });
        let kept = !request.one_way || request.more;
        for (part, target) in targets.into_iter().enumerate() {
            let started = target.callee.and_then(|(callee, index)| {
                let route = Route {
                    origin: Origin::Broadcast { key, part: part as u32 },
                    one_way: request.one_way,
                    request: Stream::new(0, 0),
                    reply: None,
                };
                Ok((callee, self.start(callee, index, request, route, kept, out)?))
            });
            match started {
                Ok(route) if kept => {
                    if let Some(broadcast) = self.broadcasts.get_mut(key) {
                        broadcast.parts[part].route = Some(route);
                        broadcast.pending += 1;
                    }
                }
                Ok(_) => {}
                Err(fault) if request.one_way => self.undeliverable(from, &fault, now, out),
                Err(fault) => fail(from, request.id, part as u32, fault, out),
            }
        }
        if self.broadcasts.get(key).is_some_and(|broadcast| broadcast.pending == 0) {
            self.broadcasts.remove(key);
            if request.one_way {
                // The caller was told the targets, and keeps sending.
                send_to_nobody(from, request.id, Stream::new(request.total, request.body.len()), out);
            }
        } else if let (Some(broadcast), Some(caller)) = (self.broadcasts.get(key), self.peers.get_mut(from.0))
        {
            caller.parts += broadcast.pending;
            caller.calls.insert(request.id, Call::Broadcast(key));
        }
    }

    /// Records that a part has its outcome.
    pub(super) fn part_done(&mut self, key: u64, part: u32, out: &mut impl Outbound) {
        let Some(broadcast) = self.broadcasts.get_mut(key) else { return };
        if broadcast.parts[part as usize].route.take().is_none() {
            return;
        }
        broadcast.pending -= 1;
        let &mut Broadcast { caller, id, one_way, request, pending, .. } = broadcast;
        if let Some(caller) = self.peers.get_mut(caller.0) {
            caller.parts -= 1;
        }
        if pending == 0 {
            if one_way {
                send_to_nobody(caller, id, request, out);
            }
            self.end_broadcast(key);
        } else {
            // It may have been the slowest part.
            self.grant(key, out);
        }
    }

    /// Handles a target's credit for more of the payload.
    pub(super) fn part_credit(&mut self, key: u64, part: u32, bytes: u32, out: &mut impl Outbound) {
        let Some(broadcast) = self.broadcasts.get_mut(key) else { return };
        let granted = &mut broadcast.parts[part as usize].granted;
        *granted = granted.saturating_add(bytes);
        self.grant(key, out);
    }

    /// Gives the caller as much credit as the slowest target has given.
    fn grant(&mut self, key: u64, out: &mut impl Outbound) {
        // If there are results, the last chunk is credited too: its sender counts it until it has arrived.
        let counts = |broadcast: &&mut Broadcast| {
            broadcast.in_chunks && (!broadcast.one_way || !broadcast.request.is_over())
        };
        let Some(broadcast) = self.broadcasts.get_mut(key).filter(counts) else { return };
        let pending = broadcast.parts.iter().filter(|part| part.route.is_some());
        let slowest = pending.map(|part| part.granted).min().unwrap_or(0);
        let bytes = broadcast.request.credit_up_to(slowest);
        if bytes > 0 {
            let credit = Frame::Credit { id: broadcast.id, reply: false, part: 0, bytes };
            let _ = out.send(broadcast.caller, &credit, true);
        }
    }

    /// Drops a broadcast and its remaining routes without telling anyone.
    pub(super) fn end_broadcast(&mut self, key: u64) {
        let Some(broadcast) = self.broadcasts.remove(key) else { return };
        for (callee, route) in broadcast.parts.into_iter().filter_map(|part| part.route) {
            self.close_route(callee, route);
        }
        if let Some(caller) = self.peers.get_mut(broadcast.caller.0) {
            caller.parts -= broadcast.pending;
            caller.calls.remove(&broadcast.id);
        }
    }

    /// Cancels what is still running of a broadcast that its caller no longer waits for.
    pub(super) fn drop_broadcast(&mut self, key: u64, out: &mut impl Outbound) {
        let Some(broadcast) = self.broadcasts.remove(key) else { return };
        if let Some(caller) = self.peers.get_mut(broadcast.caller.0) {
            caller.parts -= broadcast.pending;
        }
        for (callee, route) in broadcast.parts.into_iter().filter_map(|part| part.route) {
            if self.close_route(callee, route).is_some() {
                self.send_cancel(callee, route, out);
            }
        }
    }

    /// Returns all other nodes that offer the callback and are ready.
    fn targets(&self, from: PeerId, request: &Request<'_>) -> Vec<Target> {
        let Some(callback) = self.registry.find(request.name) else { return Vec::new() };
        let others = callback.ready().iter().filter(|offer| offer.peer != from);
        others
            .filter_map(|offer| {
                let name = self.peers.get(offer.peer.0)?.name.clone();
                let callee = if Signature::matches(offer.fingerprint, request.fingerprint) {
                    Ok((offer.peer, offer.index))
                } else {
                    Err(self.mismatch(offer.peer, &offer.signature))
                };
                Some(Target { name, callee })
            })
            .collect()
    }

    /// Returns the nodes that the request names, each once.
    fn named_targets(&self, from: PeerId, request: &Request<'_>) -> Vec<Target> {
        let mut seen = HashSet::new();
        let names = request.node.split('\n').filter(|name| !name.is_empty() && seen.insert(*name));
        names
            .map(|name| Target {
                name: name.into(),
                callee: self.pinned(Some(from), request.name, name, request.fingerprint),
            })
            .collect()
    }
}

/// Why none of them is called, where no reply says it of each by itself.
fn nobody_of(targets: Vec<Target>, name: &str) -> Box<Fault> {
    let mut faults = targets.into_iter().filter_map(|target| target.callee.err());
    let mismatch = faults.find(|fault| fault.kind == FaultKind::SignatureMismatch);
    mismatch.unwrap_or_else(|| {
        Box::new(Fault::new(
            FaultKind::NoCandidate,
            format!("none of the nodes that the broadcast is for offers {name:?}"),
        ))
    })
}
