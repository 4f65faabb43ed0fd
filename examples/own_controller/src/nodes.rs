//! Nodes: how they join, what they offer, and how they leave.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use daffi_core::{
    fault::{Fault, FaultKind},
    frame::{Frame, Hello, RefuseCode, Register, VERSION, Welcome},
    heartbeat::Heartbeat,
    names::check_name,
    outbox::Outbox,
};

use crate::state::{NodeId, State, Violation};

/// A connection, and the node behind it.
pub(crate) struct Node {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) stage: Stage,
    pub(crate) name: String,
    instance: u64,
    /// What it offers, by its own callback numbers.
    pub(crate) offers: BTreeMap<u32, Offer>,
    /// The parts received so far of an incomplete registration.
    registering: Vec<(u32, Offer)>,
    /// Whether a registration has been completed: from then on, others see the node.
    registered: bool,
    /// The pings it has been sent.
    pub(crate) heartbeat: Heartbeat,
    ping_at: Instant,
}

/// How far a connection has progressed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It must say hello by then.
    Greeting { until: Instant },
    /// It wants the name of an older node, and gets it if that node stays silent until then.
    Claiming { older: NodeId, until: Instant },
    /// It is in.
    Open,
    /// It is finishing the calls it runs.
    Leaving,
}

/// A callback that a node offers.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) name: String,
    pub(crate) signature: String,
    pub(crate) fingerprint: u64,
    pub(crate) ready: bool,
}

impl Node {
    pub(crate) fn new(outbox: Arc<Outbox>, until: Instant) -> Self {
        Self {
            outbox,
            stage: Stage::Greeting { until },
            name: String::new(),
            instance: 0,
            offers: BTreeMap::new(),
            registering: Vec::new(),
            registered: false,
            heartbeat: Heartbeat::default(),
            ping_at: until,
        }
    }

    pub(crate) fn is_welcomed(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Leaving)
    }

    /// Whether others can call it.
    pub(crate) fn is_visible(&self) -> bool {
        self.registered && self.stage == Stage::Open
    }

    pub(crate) fn offer(&self, name: &str) -> Option<(u32, &Offer)> {
        self.offers.iter().find(|(_, offer)| offer.name == name).map(|(index, offer)| (*index, offer))
    }
}

impl State {
    pub(crate) fn hello(&mut self, from: NodeId, hello: &Hello<'_>) {
        if !(hello.version_min..=hello.version_max).contains(&VERSION) {
            return self.expel(
                from,
                RefuseCode::Version,
                &format!("this controller speaks version {VERSION}"),
            );
        }
        if let Err(problem) = check_name(hello.name) {
            return self.expel(from, RefuseCode::InvalidName, problem);
        }
        let Some(node) = self.nodes.get_mut(&from) else { return };
        node.name = hello.name.to_owned();
        node.instance = hello.instance;
        self.claim(from);
    }

    /// Gives a newcomer its name, at once or when it is known whether the older node with this name is alive.
    fn claim(&mut self, newcomer: NodeId) {
        let Some(node) = self.nodes.get(&newcomer) else { return };
        let same_name = |(id, other): &(&NodeId, &Node)| {
            **id != newcomer && other.stage == Stage::Open && other.name == node.name
        };
        let Some((older, old)) = self.nodes.iter().find(same_name).map(|(id, old)| (*id, old)) else {
            return self.welcome(newcomer);
        };
        if old.instance == node.instance {
            // The same process has reconnected.
            old.outbox.close();
            self.gone(older, "the same process has connected anew");
            return self.welcome(newcomer);
        }
        self.send(older, &Frame::Ping { id: 0 });
        let until = self.claim_until();
        if let Some(node) = self.nodes.get_mut(&newcomer) {
            node.stage = Stage::Claiming { older, until };
        }
    }

    /// The older node is alive: refuses all newcomers that want its name.
    pub(crate) fn refuse_claims(&mut self, alive: NodeId) {
        for newcomer in self.claims_on(alive) {
            self.expel(newcomer, RefuseCode::NameTaken, "a living node has this name");
        }
    }

    fn claims_on(&self, node: NodeId) -> Vec<NodeId> {
        let claims = |other: &Node| matches!(other.stage, Stage::Claiming { older, .. } if older == node);
        self.nodes.iter().filter(|(_, other)| claims(other)).map(|(id, _)| *id).collect()
    }

    fn welcome(&mut self, id: NodeId) {
        let heartbeat = self.limits.heartbeat;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.stage = Stage::Open;
        node.ping_at = Instant::now() + Heartbeat::interval(heartbeat);
        let welcome = Welcome {
            version: VERSION,
            capabilities: 0,
            node: id as u32,
            heartbeat_ms: heartbeat.as_millis().try_into().unwrap_or(u32::MAX),
            payload_bytes_max: self.limits.payload_bytes_max,
        };
        self.send(id, &Frame::Welcome(welcome));
    }

    pub(crate) fn register(&mut self, from: NodeId, register: &Register<'_>) -> Result<(), Violation> {
        let limit = self.limits.callbacks_max;
        let Some(node) = self.nodes.get_mut(&from) else { return Ok(()) };
        for offer in register.offers.iter() {
            check_name(offer.name)
                .map_err(|problem| format!("{:?} is no callback name: {problem}", offer.name))?;
            let kept = Offer {
                name: offer.name.to_owned(),
                signature: offer.signature.to_owned(),
                fingerprint: offer.fingerprint,
                ready: offer.ready,
            };
            node.registering.push((offer.index, kept));
            if node.registering.len() > limit {
                return Err(format!("more than {limit} callbacks"));
            }
        }
        if register.more {
            return Ok(());
        }
        node.offers.extend(std::mem::take(&mut node.registering));
        node.registered = true;
        let mut names: Vec<_> = node.offers.values().map(|offer| &*offer.name).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("two callbacks are named {:?}", twice[0]));
        }
        if names.len() > limit {
            return Err(format!("more than {limit} callbacks"));
        }
        self.send(from, &Frame::Registered { id: register.id });
        self.answer_watches();
        Ok(())
    }

    /// The node takes no new calls, and its name becomes free.
    pub(crate) fn leave(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.stage = Stage::Leaving;
        }
        for newcomer in self.claims_on(id) {
            self.claim(newcomer);
        }
    }

    /// Cleans up after a lost connection and tells everyone involved with the node.
    pub(crate) fn gone(&mut self, id: NodeId, reason: &str) {
        let Some(node) = self.nodes.remove(&id) else { return };
        tracing::info!(node = node.name, reason, "a node is gone");
        self.watches.retain(|watch| watch.asker != id);
        let asked: Vec<_> = self.outstanding.keys().filter(|(caller, _)| *caller == id).copied().collect();
        for (_, call) in asked {
            self.cancel(id, call);
        }
        let served: Vec<_> =
            self.flights.iter().filter(|(_, flight)| flight.callee == id).map(|(id, _)| *id).collect();
        for flight in served {
            let fault = Fault::new(FaultKind::RemoteStopped, "it stopped before it answered").on(&*node.name);
            self.end(flight, Some(fault));
        }
        for newcomer in self.claims_on(id) {
            self.claim(newcomer);
        }
    }

    /// Does what is due for a connection, and returns when the next thing is due.
    pub(crate) fn look_after(&mut self, id: NodeId, now: Instant) -> Option<Instant> {
        let heartbeat = self.limits.heartbeat;
        let node = self.nodes.get_mut(&id)?;
        match node.stage {
            Stage::Greeting { until } | Stage::Claiming { until, .. } if now < until => Some(until),
            Stage::Greeting { .. } => {
                self.expel(id, RefuseCode::Protocol, "no HELLO in time");
                None
            }
            Stage::Claiming { older, .. } => {
                // This lets the newcomer in, because the name becomes free.
                self.expel(older, RefuseCode::NameTaken, "another process took over the name");
                None
            }
            Stage::Open | Stage::Leaving if now < node.ping_at => Some(node.ping_at),
            Stage::Open | Stage::Leaving => match node.heartbeat.next_ping() {
                Some(ping) => {
                    let next = now + Heartbeat::interval(heartbeat);
                    node.ping_at = next;
                    self.send(id, &Frame::Ping { id: ping });
                    Some(next)
                }
                None => {
                    self.expel(id, RefuseCode::Unavailable, "no sign of life");
                    None
                }
            },
        }
    }
}
