//! What the router knows about a connection, and how one ends.

use std::{collections::HashMap, sync::Arc};

use daffi_core::{
    Limits,
    fault::{Fault, FaultKind},
    frame::{Frame, RefuseCode},
    heartbeat::Heartbeat,
};
use foldhash::fast::RandomState;

use super::{
    LogLine, Now, Outbound, PeerId, Router,
    calls::{Call, Route},
    clip,
    control::Control,
    registry::Offer,
};
use crate::table::Table;

/// A connection.
#[derive(Debug)]
pub(super) struct Peer {
    /// Where it comes from, for logs.
    pub(super) from: Box<str>,
    /// Empty until it has said hello.
    pub(super) name: Arc<str>,
    pub(super) instance: u64,
    pub(super) stage: Stage,
    /// The pings it has been sent.
    pub(super) heartbeat: Heartbeat,
    /// What it sends besides calls and the frames that belong to them.
    pub(super) control: Control,
    /// Newcomers that want its name.
    pub(super) claimed_by: Vec<PeerId>,
    /// The parts received so far of an incomplete registration.
    pub(super) registering: Vec<(Box<str>, Offer)>,
    /// The total bytes of the signatures in it.
    pub(super) registering_bytes: usize,
    /// Calls that it runs, by the id it sees.
    pub(super) routes: Table<Route>,
    /// What it waits for, by its own ids.
    pub(super) calls: HashMap<u64, Call, RandomState>,
    /// How many targets of its broadcasts have not answered yet.
    pub(super) parts: usize,
}

/// How far a connection has progressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has not said hello.
    Greeting,
    /// It has said hello, and its name is not decided yet.
    Claiming,
    /// It may call. Others see it once its callbacks are registered.
    Welcomed,
    /// Others see it.
    Joined,
    /// It has said goodbye and is finishing the calls it runs.
    Leaving,
}

impl Stage {
    pub(super) fn is_welcomed(self) -> bool {
        matches!(self, Self::Welcomed | Self::Joined | Self::Leaving)
    }
}

impl Peer {
    /// How many outcomes it waits for: of calls, questions, and each target of a broadcast.
    pub(super) fn in_flight(&self) -> usize {
        self.calls.len() + self.parts
    }

    pub(super) fn new(from: &str) -> Self {
        Self {
            from: from.into(),
            name: "".into(),
            instance: 0,
            stage: Stage::Greeting,
            heartbeat: Heartbeat::default(),
            control: Control::default(),
            claimed_by: Vec::new(),
            registering: Vec::new(),
            registering_bytes: 0,
            routes: Table::default(),
            calls: HashMap::default(),
            parts: 0,
        }
    }
}

impl Router {
    /// Returns the peer with this name, if others see it.
    pub(super) fn joined(&self, name: &str) -> Option<PeerId> {
        let peer = *self.names.get(name)?;
        self.peers.get(peer.0).filter(|found| found.stage == Stage::Joined).map(|_| peer)
    }

    /// Drops everything known about a peer, and tells those involved with it.
    pub(super) fn forget(&mut self, peer: PeerId, now: Now, out: &mut impl Outbound) {
        let Some(gone) = self.peers.remove(peer.0) else { return };
        if !gone.stage.is_welcomed() {
            self.handshakes -= 1;
        }
        if self.names.get(&gone.name) == Some(&peer) {
            self.names.remove(&gone.name);
        }
        self.registry.withdraw(peer);
        if gone.stage.is_welcomed() {
            self.lists.clear();
        }
        self.in_flight -= gone.routes.len();
        for (_, route) in gone.routes.iter() {
            let fault = Fault::new(FaultKind::RemoteStopped, "it stopped before it answered").on(&*gone.name);
            self.fail_origin(route, Box::new(fault), now, out);
        }
        // Sorted, because the map's own order differs between processes.
        let mut calls: Vec<_> = gone.calls.into_iter().collect();
        calls.sort_unstable_by_key(|(id, _)| *id);
        for (_, call) in calls {
            self.drop_call(call, out);
        }
        for newcomer in gone.claimed_by {
            self.claim(newcomer, now, out);
        }
    }

    /// Stops new requests to a peer. Its name is free, so that a successor need not wait for what still runs.
    pub(super) fn goodbye(&mut self, from: PeerId, reason: &str, now: Now, out: &mut impl Outbound) {
        let Some(peer) = self.peers.get_mut(from.0) else { return };
        if !peer.stage.is_welcomed() {
            out.close(from, "it said goodbye");
            self.forget(from, now, out);
            return;
        }
        if peer.stage == Stage::Leaving {
            return;
        }
        let (node, reason) = (peer.name.clone(), clip(reason).to_owned());
        out.log(LogLine::new(move || tracing::info!(%node, reason, "a node is leaving")));
        peer.stage = Stage::Leaving;
        peer.registering = Vec::new();
        peer.registering_bytes = 0;
        let newcomers = std::mem::take(&mut peer.claimed_by);
        if self.names.get(&peer.name) == Some(&from) {
            self.names.remove(&peer.name);
        }
        self.registry.withdraw(from);
        self.lists.clear();
        for newcomer in newcomers {
            self.claim(newcomer, now, out);
        }
    }

    /// Asks a peer for a sign of life, or gives it up.
    pub(super) fn heartbeat(&mut self, peer: PeerId, now: Now, out: &mut impl Outbound) {
        let Some(asked) = self.peers.get_mut(peer.0) else { return };
        let Some(id) = asked.heartbeat.next_ping() else {
            let silence = self.limits.heartbeat * Limits::HEARTBEATS_MISSED_MAX;
            let reason = format!("no sign of life for {silence:?}");
            self.expel(peer, RefuseCode::Unavailable, &reason, now, out);
            return;
        };
        let _ = out.send(peer, &Frame::Ping { id }, true);
        self.heartbeats.push_back((now.mono + Heartbeat::interval(self.limits.heartbeat), peer));
    }
}
