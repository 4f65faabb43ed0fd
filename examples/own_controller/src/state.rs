//! All that the controller knows, and the dispatch of frames.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use daffi_core::{
    Limits,
    controller::{ControllerConfig, PortError, Strategy},
    fault::Fault,
    frame::{Failure, Frame, Refuse, RefuseCode},
    limits::{FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX},
    outbox::Outbox,
};

use crate::{
    calls::{Flight, Outstanding},
    nodes::{Node, Stage},
    questions::Watch,
    tasks::Task,
};

/// Identifies a connection. Never reused.
pub(crate) type NodeId = u64;

/// How a node violated the protocol.
pub(crate) type Violation = String;

/// What the controller knows.
pub(crate) struct State {
    pub(crate) limits: Limits,
    pub(crate) strategy: Strategy,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    /// Calls in flight at their callees, by the id that the callee sees.
    pub(crate) flights: BTreeMap<u64, Flight>,
    /// What callers are waiting for, by caller and the caller's own id.
    pub(crate) outstanding: HashMap<(NodeId, u64), Outstanding>,
    pub(crate) watches: Vec<Watch>,
    pub(crate) tasks: BTreeMap<u64, Task>,
    /// How many calls each callback has had, for taking turns.
    pub(crate) turns: HashMap<String, usize>,
    /// How many listeners are open.
    pub(crate) listeners: usize,
    pub(crate) stopping: bool,
    last_id: u64,
}

/// How long an older node has to show that it is alive when a newcomer wants its name.
const CLAIM: Duration = Duration::from_secs(1);

impl State {
    pub(crate) fn new(config: ControllerConfig) -> Self {
        Self {
            limits: config.limits,
            strategy: config.strategy,
            nodes: BTreeMap::new(),
            flights: BTreeMap::new(),
            outstanding: HashMap::new(),
            watches: Vec::new(),
            tasks: BTreeMap::new(),
            turns: HashMap::new(),
            listeners: 0,
            stopping: false,
            last_id: 0,
        }
    }

    /// Returns a number that nothing else has, small enough for JSON.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    // ---- connections

    /// Reserves an id for an incoming connection, if there is room for it.
    pub(crate) fn admit(&mut self) -> Option<NodeId> {
        let greeting = self.nodes.values().filter(|node| !node.is_welcomed()).count();
        let full = self.nodes.len() >= self.limits.connections_max || greeting >= self.limits.handshakes_max;
        (!full && !self.stopping).then(|| self.fresh_id())
    }

    pub(crate) fn connected(&mut self, id: NodeId, outbox: Arc<Outbox>) {
        let until = Instant::now() + self.limits.handshake_timeout;
        self.nodes.insert(id, Node::new(outbox, until));
    }

    /// Returns how long a frame from this node may be at this stage.
    pub(crate) fn frame_limit(&self, id: NodeId) -> usize {
        let welcomed = self.nodes.get(&id).is_some_and(Node::is_welcomed);
        if welcomed { FRAME_BYTES_MAX } else { HANDSHAKE_BYTES_MAX }
    }

    /// Tells a node why its connection ends, and ends it.
    pub(crate) fn expel(&mut self, id: NodeId, code: RefuseCode, reason: &str) {
        self.send(id, &Frame::Refuse(Refuse { code, reason }));
        if let Some(node) = self.nodes.get(&id) {
            node.outbox.close();
        }
        self.gone(id, reason);
    }

    // ---- frames out

    /// Sends a frame that must not be lost, because nobody could send it again.
    pub(crate) fn send(&self, to: NodeId, frame: &Frame<'_>) {
        if let Some(node) = self.nodes.get(&to) {
            // If the outbox is closed, its `closed` callback follows and cleans up.
            let _ = node.outbox.push(frame);
            node.outbox.flush();
        }
    }

    /// Sends a frame unless the node already has too much to read.
    pub(crate) fn try_send(&self, to: NodeId, frame: &Frame<'_>) -> Result<(), PortError> {
        let node = self.nodes.get(&to).ok_or(PortError::Closed)?;
        node.outbox.try_push(frame)?;
        node.outbox.flush();
        Ok(())
    }

    pub(crate) fn fail(&self, to: NodeId, id: u64, part: u32, fault: Fault) {
        self.send(to, &Frame::Failure(Failure { id, part, fault: Box::new(fault) }));
    }

    // ---- frames in

    pub(crate) fn handle(&mut self, from: NodeId, frame: &Frame<'_>) -> Result<(), Violation> {
        // A node that answers is alive and keeps its name. Other frames may have been sent before it died.
        if matches!(frame, Frame::Pong { id: 0 }) {
            self.refuse_claims(from);
        }
        let Some(node) = self.nodes.get_mut(&from) else { return Ok(()) };
        match frame {
            Frame::Hello(hello) if matches!(node.stage, Stage::Greeting { .. }) => {
                self.hello(from, hello);
                return Ok(());
            }
            _ if !node.is_welcomed() => return Err(format!("a {} frame comes before WELCOME", frame.kind())),
            _ => {}
        }
        match frame {
            Frame::Register(register) => self.register(from, register)?,
            Frame::Request(request) => self.request(from, request)?,
            Frame::Reply(reply) => self.reply(from, reply)?,
            Frame::Failure(failure) => self.failure(from, failure),
            Frame::Cancel { id } => self.cancel(from, *id),
            Frame::Chunk(chunk) if chunk.reply => self.reply_chunk(from, chunk)?,
            Frame::Chunk(chunk) => self.request_chunk(from, chunk)?,
            Frame::Credit { id, reply: true, part, bytes } => self.reply_credit(from, *id, *part, *bytes),
            Frame::Credit { id, reply: false, bytes, .. } => self.request_credit(from, *id, *bytes),
            Frame::Ask { id, codec, question } => self.ask(from, *id, *codec, question)?,
            Frame::Ping { id } => self.send(from, &Frame::Pong { id: *id }),
            Frame::Pong { id } => {
                node.heartbeat.pong(*id);
            }
            Frame::Goodbye { .. } => self.leave(from),
            // A second HELLO, or a frame that only controllers send.
            _ => {
                return Err(format!("a {} frame is not for a node to send now", frame.kind()));
            }
        }
        Ok(())
    }

    // ---- time

    /// Does what is due, and returns when to come back.
    pub(crate) fn turn(&mut self, now: Instant) -> Option<Instant> {
        let ids: Vec<_> = self.nodes.keys().copied().collect();
        let mut next = self.call_tasks(now);
        for id in ids {
            let due = self.look_after(id, now);
            next = next.into_iter().chain(due).min();
        }
        next
    }

    // ---- the end

    pub(crate) fn say_goodbye(&mut self) {
        self.stopping = true;
        self.tasks.clear();
        for (id, node) in &self.nodes {
            if node.is_welcomed() {
                self.send(*id, &Frame::Goodbye { reason: "the controller is stopping" });
            }
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }

    pub(crate) fn close_all(&mut self) {
        for (_, node) in std::mem::take(&mut self.nodes) {
            node.outbox.finish();
        }
        self.flights.clear();
        self.outstanding.clear();
    }

    pub(crate) fn claim_until(&self) -> Instant {
        Instant::now() + CLAIM
    }
}
