//! Letting nodes in: versions, names, and what they offer.

use std::{borrow::Cow, sync::Arc};

use daffi_core::{
    frame::{Frame, Hello, RefuseCode, Register, VERSION, Welcome},
    heartbeat::Heartbeat,
    names::check_name,
};

use super::{
    Breach, CLAIM_TIMEOUT, Claim, LogLine, Now, Outbound, PROBE, PeerId, Router,
    peers::Stage,
    registry::{NameTwice, Offer},
};

/// The most bytes kept of a signature, which is only for people to read.
const SIGNATURE_BYTES_MAX: usize = 4 * 1024;

/// The most bytes kept of all signatures of a node. The rest is dropped: otherwise every connection could
/// take up hundreds of megabytes.
const SIGNATURES_BYTES_MAX: usize = 16 * 1024 * 1024;

impl Router {
    pub(super) fn hello(&mut self, from: PeerId, hello: &Hello<'_>, now: Now, out: &mut impl Outbound) {
        let Hello { version_min, version_max, name, instance, capabilities: _, credentials: _ } = *hello;
        if !(version_min..=version_max).contains(&VERSION) {
            let reason = format!(
                "this controller speaks protocol versions {VERSION} to {VERSION}, the node {version_min} to {version_max}"
            );
            return self.expel(from, RefuseCode::Version, &reason, now, out);
        }
        if let Err(problem) = check_name(name) {
            let reason = format!("{name:?} is not a valid name: {problem}");
            return self.expel(from, RefuseCode::InvalidName, &reason, now, out);
        }
        let Some(peer) = self.peers.get_mut(from.0) else { return };
        peer.name = name.into();
        peer.instance = instance;
        self.claim(from, now, out);
    }

    /// Gives a newcomer its name, at once or when it is known whether the older node with this name is alive.
    pub(super) fn claim(&mut self, newcomer: PeerId, now: Now, out: &mut impl Outbound) {
        let Some(peer) = self.peers.get_mut(newcomer.0) else { return };
        peer.stage = Stage::Claiming;
        let older = self.names.get(&peer.name).copied();
        let Some((older, old_peer)) = older.and_then(|older| Some((older, self.peers.get(older.0)?))) else {
            return self.welcome(newcomer, now, out);
        };
        if self.peers.get(newcomer.0).is_some_and(|peer| peer.instance == old_peer.instance) {
            // The same process has a new connection, so the old one is a leftover whose end went unnoticed.
            let (node, from) = (old_peer.name.clone(), old_peer.from.clone());
            out.log(LogLine::new(move || tracing::info!(%node, %from, "a node has connected anew")));
            out.close(older, "the same process has connected anew");
            let others = self.peers.get_mut(older.0).map(|older| std::mem::take(&mut older.claimed_by));
            self.forget(older, now, out);
            self.welcome(newcomer, now, out);
            // Newcomers that wanted the name from the old connection must ask the new one.
            for other in others.into_iter().flatten() {
                self.claim(other, now, out);
            }
            return;
        }
        // Only the answer will do: on a slow network, frames sent before the process died still arrive.
        let _ = out.send(older, &Frame::Ping { id: PROBE }, true);
        if let Some(old_peer) = self.peers.get_mut(older.0) {
            old_peer.claimed_by.push(newcomer);
        }
        self.claims.push_back((now.mono + CLAIM_TIMEOUT, Claim { newcomer, older }));
    }

    /// Refuses the newcomers that want the name of the older node, because it is alive.
    pub(super) fn refuse_claims(&mut self, older: PeerId, now: Now, out: &mut impl Outbound) {
        let Some(peer) = self.peers.get_mut(older.0) else { return };
        let newcomers = std::mem::take(&mut peer.claimed_by);
        let reason = format!("a living node at {} has the name {:?}", peer.from, peer.name);
        for newcomer in newcomers {
            self.expel(newcomer, RefuseCode::NameTaken, &reason, now, out);
        }
    }

    /// Lets the newcomer take over from an older node that has been silent for too long.
    pub(super) fn take_over(&mut self, claim: Claim, now: Now, out: &mut impl Outbound) {
        let Claim { newcomer, older } = claim;
        if self.peers.get(newcomer.0).is_none() {
            return;
        }
        // If the claim ended earlier, the newcomer has already been told.
        let Some(silent) = self.peers.get_mut(older.0).filter(|peer| peer.claimed_by.contains(&newcomer))
        else {
            return;
        };
        // The newcomer is first in line now; the others must ask it.
        silent.claimed_by.retain(|other| *other != newcomer);
        silent.claimed_by.insert(0, newcomer);
        self.expel(older, RefuseCode::NameTaken, "a newcomer took over the name of a silent node", now, out);
    }

    /// Registers what a node offers, all of it at once when the last part has arrived.
    pub(super) fn register(
        &mut self,
        from: PeerId,
        register: &Register<'_>,
        out: &mut impl Outbound,
    ) -> Result<(), Breach> {
        let Some(peer) = self.peers.get_mut(from.0) else { return Ok(()) };
        for offer in register.offers.iter() {
            if let Err(problem) = check_name(offer.name) {
                return Err(Breach(
                    format!("{:?} is not a valid callback name: {problem}", offer.name).into(),
                ));
            }
            if peer.registering.len() >= self.limits.callbacks_max {
                return Err(too_many(self.limits.callbacks_max));
            }
            let kept = self.registry.signature_bytes_of(from) + peer.registering_bytes;
            let room = SIGNATURES_BYTES_MAX.saturating_sub(kept);
            let end = offer.signature.floor_char_boundary(SIGNATURE_BYTES_MAX.min(room));
            peer.registering_bytes += end;
            let signature = Arc::from(&offer.signature[..end]);
            let kept = Offer::new(from, offer.index, offer.fingerprint, offer.ready, signature);
            peer.registering.push((offer.name.into(), kept));
        }
        if register.more {
            return Ok(());
        }
        let offers = std::mem::take(&mut peer.registering);
        peer.registering_bytes = 0;
        if !offers.is_empty() || peer.stage == Stage::Welcomed {
            self.lists.clear();
        }
        // A leaving node may still register an instance in another thread; nobody must call it.
        if peer.stage != Stage::Leaving {
            let first = peer.stage == Stage::Welcomed;
            peer.stage = Stage::Joined;
            self.offer_all(from, offers, out)?;
            if first {
                self.announce(from, out);
            }
        }
        let _ = out.send(from, &Frame::Registered { id: register.id }, true);
        Ok(())
    }

    fn offer_all(
        &mut self,
        from: PeerId,
        offers: Vec<(Box<str>, Offer)>,
        out: &mut impl Outbound,
    ) -> Result<(), Breach> {
        let mut now_ready = Vec::new();
        for (name, offer) in offers {
            match self.registry.offer(&name, offer) {
                Ok(true) => now_ready.push(name),
                Ok(false) => {}
                Err(NameTwice) => {
                    return Err(Breach(format!("two of its callbacks are named {name:?}").into()));
                }
            }
        }
        if self.registry.count_of(from) > self.limits.callbacks_max {
            return Err(too_many(self.limits.callbacks_max));
        }
        for name in now_ready {
            self.function_ready(&name, from, out);
        }
        Ok(())
    }

    fn announce(&mut self, joined: PeerId, out: &mut impl Outbound) {
        let Some(peer) = self.peers.get(joined.0) else { return };
        let name = peer.name.clone();
        let (node, from, callbacks) = (name.clone(), peer.from.clone(), self.registry.count_of(joined));
        out.log(LogLine::new(move || tracing::info!(%node, %from, callbacks, "a node joined")));
        self.process_joined(&name, out);
    }

    fn welcome(&mut self, newcomer: PeerId, now: Now, out: &mut impl Outbound) {
        let Some(peer) = self.peers.get_mut(newcomer.0) else { return };
        peer.stage = Stage::Welcomed;
        self.handshakes -= 1;
        self.names.insert(peer.name.clone(), newcomer);
        self.welcomed = self.welcomed.wrapping_add(1);
        let heartbeat = self.limits.heartbeat;
        self.heartbeats.push_back((now.mono + Heartbeat::interval(heartbeat), newcomer));
        let welcome = Welcome {
            version: VERSION,
            capabilities: 0,
            node: self.welcomed,
            heartbeat_ms: heartbeat.as_millis().try_into().unwrap_or(u32::MAX),
            payload_bytes_max: self.limits.payload_bytes_max,
        };
        let _ = out.send(newcomer, &Frame::Welcome(welcome), true);
    }
}

fn too_many(limit: usize) -> Breach {
    Breach(Cow::Owned(format!("it registers more than {limit} callbacks")))
}
