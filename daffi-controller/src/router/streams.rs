//! Chunked payloads, and the credit that paces them.

use daffi_core::{
    controller::PortError,
    fault::{Fault, FaultKind},
    frame::{Chunk, Frame},
};

use super::{
    Breach, Now, Outbound, PeerId, Router,
    calls::{Call, Origin, overloaded},
};

/// How much of a payload has passed through.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream {
    total: u32,
    passed: u32,
    /// How much of it the sender has been given credit for.
    credited: u32,
}

impl Stream {
    /// A payload of `total` bytes whose first `passed` came with the request or reply.
    pub(super) fn new(total: u32, passed: usize) -> Self {
        Self { total, passed: passed.try_into().unwrap_or(u32::MAX), credited: 0 }
    }

    /// Whether nothing more is to come.
    pub(super) fn is_over(self) -> bool {
        self.passed >= self.total
    }

    /// Counts credit given to the sender.
    pub(super) fn credit(&mut self, bytes: u32) {
        self.credited = self.credited.saturating_add(bytes);
    }

    /// Counts credit up to a total of `bytes`; returns how many of them are new.
    pub(super) fn credit_up_to(&mut self, bytes: u32) -> u32 {
        let more = bytes.saturating_sub(self.credited);
        self.credited += more;
        more
    }

    /// How much more credit the sender could be given, if it has more to send.
    fn uncredited(self) -> u32 {
        if self.is_over() { 0 } else { self.passed.saturating_sub(self.credited) }
    }

    /// Counts a chunk.
    fn pass(&mut self, chunk: &Chunk<'_>) -> Result<(), Breach> {
        let passed = self.passed as usize + chunk.body.len();
        let fits = if chunk.more { passed < self.total as usize } else { passed == self.total as usize };
        if !fits {
            return Err("the chunks of a payload do not add up to its announced size".into());
        }
        self.passed = passed as u32;
        Ok(())
    }
}

impl Router {
    /// Handles more of a request, from its caller.
    pub(super) fn request_chunk(
        &mut self,
        from: PeerId,
        chunk: &Chunk<'_>,
        now: Now,
        out: &mut impl Outbound,
    ) -> Result<(), Breach> {
        let Some(caller) = self.peers.get(from.0) else { return Ok(()) };
        match caller.calls.get(&chunk.id).copied() {
            // The call is over and its caller does not know yet or, if it is one-way, never will: without
            // credit for the rest, the caller would wait forever.
            None => {
                if chunk.more {
                    let bytes = chunk.body.len() as u32;
                    let credit = Frame::Credit { id: chunk.id, reply: false, part: 0, bytes };
                    // A peer that is gone is not waiting.
                    let _ = out.send(from, &credit, true);
                }
                Ok(())
            }
            Some(Call::Watch(_)) => Err("a CHUNK frame belongs to a question".into()),
            Some(Call::One { callee, route }) => self.chunk_to_one(callee, route, chunk, now, out),
            Some(Call::Broadcast(key)) => self.chunk_to_all(key, chunk, now, out),
        }
    }

    fn chunk_to_one(
        &mut self,
        callee: PeerId,
        route: u64,
        chunk: &Chunk<'_>,
        now: Now,
        out: &mut impl Outbound,
    ) -> Result<(), Breach> {
        let Some(to) = self.peers.get_mut(callee.0) else { return Ok(()) };
        let Some(open) = to.routes.get_mut(route) else { return Ok(()) };
        open.request.pass(chunk)?;
        to.control.credits += 1;
        let done = open.one_way && !chunk.more;
        let origin = open.origin;
        if let Err(error) = send_request_chunk(callee, route, chunk, out) {
            let fault = match error {
                PortError::Full => overloaded(&to.name),
                _ => lost(&to.name),
            };
            self.abandon(callee, route, fault, now, out);
        } else if done {
            self.close_route(callee, route);
            if let Origin::Caller { peer, id } = origin
                && let Some(caller) = self.peers.get_mut(peer.0)
            {
                caller.calls.remove(&id);
            }
        }
        Ok(())
    }

    fn chunk_to_all(
        &mut self,
        key: u64,
        chunk: &Chunk<'_>,
        now: Now,
        out: &mut impl Outbound,
    ) -> Result<(), Breach> {
        let Some(broadcast) = self.broadcasts.get_mut(key) else { return Ok(()) };
        broadcast.request.pass(chunk)?;
        let one_way = broadcast.one_way;
        for part in 0..broadcast.parts.len() {
            // A part that fails may end the broadcast.
            let Some(broadcast) = self.broadcasts.get(key) else { break };
            let Some((callee, route)) = broadcast.parts[part].route else { continue };
            if let Some(to) = self.peers.get_mut(callee.0) {
                to.control.credits += 1;
            }
            if let Err(error) = send_request_chunk(callee, route, chunk, out) {
                let name = self.peers.get(callee.0).map_or("", |peer| &peer.name);
                let fault = match error {
                    PortError::Full => overloaded(name),
                    _ => lost(name),
                };
                self.abandon(callee, route, fault, now, out);
            }
        }
        if one_way && !chunk.more {
            self.end_broadcast(key);
        }
        Ok(())
    }

    /// Handles more of a result, from its callee.
    pub(super) fn reply_chunk(
        &mut self,
        from: PeerId,
        chunk: &Chunk<'_>,
        out: &mut impl Outbound,
    ) -> Result<(), Breach> {
        let Some(callee) = self.peers.get_mut(from.0) else { return Ok(()) };
        // The caller no longer waits; its CANCEL is on the way.
        let Some(route) = callee.routes.get_mut(chunk.id) else { return Ok(()) };
        let Some(reply) = &mut route.reply else {
            return Err("a CHUNK frame of a result comes before its REPLY".into());
        };
        reply.pass(chunk)?;
        let origin = route.origin;
        let (to, id, part) = match origin {
            Origin::Caller { peer, id } => (peer, id, 0),
            Origin::Broadcast { key, part } => match self.broadcasts.get(key) {
                Some(broadcast) => (broadcast.caller, broadcast.id, part),
                None => return Ok(()),
            },
            // Its route ended with the REPLY.
            Origin::Task(_) => return Ok(()),
        };
        // It must go like any other result: the callback has run, and nobody could run it again. A caller
        // that is gone no longer needs it.
        let _ = out.send(to, &Frame::Chunk(Chunk { id, part, ..chunk.clone() }), true);
        if let Some(caller) = self.peers.get_mut(to.0) {
            caller.control.credits += 1;
        }
        if !chunk.more {
            self.close_route(from, chunk.id);
            match origin {
                Origin::Broadcast { key, part } => self.part_done(key, part, out),
                _ => {
                    if let Some(caller) = self.peers.get_mut(to.0) {
                        caller.calls.remove(&id);
                    }
                }
            }
        }
        Ok(())
    }

    /// Handles a callee's credit for more of a request.
    pub(super) fn request_credit(&mut self, from: PeerId, id: u64, bytes: u32, out: &mut impl Outbound) {
        let Some(route) = self.peers.get_mut(from.0).and_then(|callee| callee.routes.get_mut(id)) else {
            return;
        };
        match route.origin {
            Origin::Caller { peer, id } => {
                route.request.credit(bytes);
                let _ = out.send(peer, &Frame::Credit { id, reply: false, part: 0, bytes }, true);
            }
            Origin::Broadcast { key, part } => self.part_credit(key, part, bytes, out),
            // A task's request is a single frame.
            Origin::Task(_) => {}
        }
    }

    /// Handles a caller's credit for more of a result.
    pub(super) fn reply_credit(
        &mut self,
        from: PeerId,
        id: u64,
        part: u32,
        bytes: u32,
        out: &mut impl Outbound,
    ) {
        let Some(call) = self.peers.get(from.0).and_then(|caller| caller.calls.get(&id)) else { return };
        let route = match *call {
            Call::One { callee, route } => Some((callee, route)),
            Call::Broadcast(key) => self
                .broadcasts
                .get(key)
                .and_then(|broadcast| broadcast.parts.get(part as usize))
                .and_then(|part| part.route),
            Call::Watch(_) => None,
        };
        if let Some((callee, id)) = route {
            let _ = out.send(callee, &Frame::Credit { id, reply: true, part: 0, bytes }, true);
        }
    }
}

/// Credits a sender whose payload nobody takes any more. It is not told, and may have used up its credit:
/// without this it would hold the rest, and its share of the link, forever.
pub(super) fn send_to_nobody(to: PeerId, id: u64, request: Stream, out: &mut impl Outbound) {
    let bytes = request.uncredited();
    if bytes > 0 {
        let _ = out.send(to, &Frame::Credit { id, reply: false, part: 0, bytes }, true);
    }
}

fn send_request_chunk(
    callee: PeerId,
    id: u64,
    chunk: &Chunk<'_>,
    out: &mut impl Outbound,
) -> Result<(), PortError> {
    out.send(callee, &Frame::Chunk(Chunk { id, part: 0, ..chunk.clone() }), false)
}

/// The callee is leaving with part of the payload, so it cannot have begun.
fn lost(node: &str) -> Box<Fault> {
    Box::new(Fault::new(FaultKind::NoProcess, "it disconnected before the call was whole").on(node))
}
