//! Routing as a state machine: a frame from a peer goes in, frames for peers come out.
//!
//! No socket, no clock, no thread: time comes in as an argument and frames leave through [`Outbound`], so
//! that every situation can be tested step by step. Payloads are never decoded. The same inputs and seed give
//! the same outputs.
//!
//! Each call is remembered as one `Route` at the callee, whose place is the id that the callee sees, and as
//! one entry at the caller from its own id to that route. Both are removed at the first outcome, whichever it
//! is.

mod broadcast;
mod calls;
mod control;
mod handshake;
mod log;
mod peers;
mod questions;
mod registry;
mod schedule;
mod strategy;
mod streams;
mod tasks;
mod watches;

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant, SystemTime},
};

use daffi_core::{
    Limits,
    controller::{ControllerConfig, PortError},
    fault::Fault,
    frame::{Failure, Frame, Refuse, RefuseCode},
    host,
};
use foldhash::fast::RandomState;

use crate::table::Table;
use broadcast::Broadcast;
use calls::Undelivered;
pub use log::LogLine;
use peers::{Peer, Stage};
use questions::Lists;
use registry::{Hints, Registry};
use schedule::Timetable;
use strategy::Picker;
use tasks::Scheduled;
use watches::Watches;

/// Identifies a connection. An id is not reused before its slot has been used 2³² times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(u64);

impl PeerId {
    /// Returns a small number that no other connection has at the same time.
    pub fn place(self) -> usize {
        self.0 as u32 as usize
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.place(), self.0 >> 32)
    }
}

/// The current time. `wall` is compared only with times of day given for tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// By the monotonic clock.
    pub mono: Instant,
    /// By the wall clock.
    pub wall: SystemTime,
}

/// Where the router's frames go.
pub trait Outbound {
    /// Queues a frame for a peer. One that `must` go cannot be refused, as nobody could send it again.
    ///
    /// # Errors
    /// The frame was not taken.
    fn send(&mut self, to: PeerId, frame: &Frame<'_>, must: bool) -> Result<(), PortError>;

    /// Queues a frame that must go, but that its receiver cannot use without those that follow: it may be
    /// written together with the next one, or a moment later. The default implementation sends it at once.
    ///
    /// # Errors
    /// The frame was not taken.
    fn send_soon(&mut self, to: PeerId, frame: &Frame<'_>) -> Result<(), PortError> {
        self.send(to, frame, true)
    }

    /// Ends a connection once what was queued for it has left. The router has already forgotten the peer.
    fn close(&mut self, peer: PeerId, reason: &str);

    /// Takes a line for the log. If the router is called under a lock, keep the line until it is released.
    fn log(&mut self, line: LogLine) {
        line.write();
    }
}

/// Why a connection cannot even begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason as a number.
    pub code: RefuseCode,
    /// The reason as a sentence.
    pub reason: &'static str,
}

/// Counts what happened without anyone being told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// One-way calls that reached nobody.
    pub undelivered: u64,
    /// Answers to calls that were over.
    pub late_replies: u64,
}

/// How many entries each table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Sizes {
    /// Connections.
    pub peers: usize,
    /// Connections whose handshake is not complete.
    pub handshakes: usize,
    /// Names in use by nodes.
    pub names: usize,
    /// Callbacks.
    pub callbacks: usize,
    /// What callers are waiting for: calls, broadcasts and watches.
    pub calls: usize,
    /// Calls at their callees.
    pub routes: usize,
    /// Broadcasts.
    pub broadcasts: usize,
    /// Questions waiting for something to happen.
    pub watches: usize,
    /// Scheduled tasks that are not over.
    pub tasks: usize,
}

/// The state of a controller.
#[derive(Debug)]
pub struct Router {
    limits: Limits,
    peers: Table<Peer>,
    /// Peers that have been welcomed and have not said goodbye, by name.
    names: HashMap<Arc<str>, PeerId, RandomState>,
    registry: Registry,
    picker: Picker,
    broadcasts: Table<Broadcast>,
    watches: Watches,
    tasks: Timetable<Arc<Scheduled>>,
    /// The number of routes of all peers.
    in_flight: usize,
    /// The number of peers that have not been welcomed yet.
    handshakes: usize,
    /// By when each connection must say hello. They share one timeout, which keeps this in order.
    greet_by: VecDeque<(Instant, PeerId)>,
    /// By when a node must show that it is alive or lose its name to a newcomer.
    claims: VecDeque<(Instant, Claim)>,
    /// When each node is next asked for a sign of life.
    heartbeats: VecDeque<(Instant, PeerId)>,
    /// How many nodes have been welcomed.
    welcomed: u32,
    stopping: bool,
    counters: Counters,
    undelivered: Undelivered,
    hints: Hints,
    /// The answers to questions about everyone.
    lists: Lists,
    /// How many bytes the calls of scheduled tasks take up.
    task_bytes: Arc<AtomicUsize>,
}

/// A newcomer that wants the name of an older node.
#[derive(Debug, Clone, Copy)]
struct Claim {
    newcomer: PeerId,
    older: PeerId,
}

/// A peer did something that ours never do, so its connection ends.
#[derive(Debug)]
struct Breach(Cow<'static, str>);

impl Breach {
    fn unexpected(frame: &Frame<'_>, problem: &str) -> Self {
        Self(format!("a {} frame {problem}", frame.kind()).into())
    }
}

impl From<&'static str> for Breach {
    fn from(problem: &'static str) -> Self {
        Self(problem.into())
    }
}

/// How many tasks are called in a row while peers wait.
const TASKS_IN_A_ROW: usize = 1000;

impl Router {
    /// Creates a router that knows no peers yet. `seed` determines its random choices.
    pub fn new(config: &ControllerConfig, seed: u64) -> Self {
        Self {
            limits: config.limits.clone(),
            peers: Table::default(),
            names: HashMap::default(),
            registry: Registry::default(),
            picker: Picker::new(config.strategy, seed),
            broadcasts: Table::default(),
            watches: Watches::default(),
            tasks: Timetable::new(seed),
            in_flight: 0,
            handshakes: 0,
            greet_by: VecDeque::new(),
            claims: VecDeque::new(),
            heartbeats: VecDeque::new(),
            welcomed: 0,
            stopping: false,
            counters: Counters::default(),
            undelivered: Undelivered::default(),
            hints: Hints::default(),
            lists: Lists::default(),
            task_bytes: Arc::default(),
        }
    }

    /// Adds an incoming connection. `from` says where it comes from, for logs.
    ///
    /// # Errors
    /// The connection is to be refused for this reason.
    pub fn connected(&mut self, from: &str, now: Now) -> Result<PeerId, Refusal> {
        let reason = if self.stopping {
            "the controller is stopping"
        } else if self.peers.len() >= self.limits.connections_max {
            "the controller has as many connections as it may"
        } else if self.handshakes >= self.limits.handshakes_max {
            "the controller has as many unfinished handshakes as it may"
        } else {
            let peer = PeerId(self.peers.insert(Peer::new(from)));
            self.handshakes += 1;
            self.greet_by.push_back((now.mono + self.limits.handshake_timeout, peer));
            return Ok(peer);
        };
        Err(Refusal { code: RefuseCode::Unavailable, reason })
    }

    /// Handles a frame from a peer.
    pub fn handle(&mut self, from: PeerId, frame: &Frame<'_>, now: Now, out: &mut impl Outbound) {
        self.hints.at(now.mono);
        // Whatever a peer sent before it noticed that it was closed is ignored.
        if self.peers.get(from.0).is_none() {
            return;
        }
        if let Err(breach) = self.dispatch(from, frame, now, out) {
            self.misbehaved(from, &breach.0, now, out);
        }
    }

    /// Ends the connection of a peer that sent bytes that are not a frame, or a frame that makes no sense.
    pub fn misbehaved(&mut self, peer: PeerId, problem: &str, now: Now, out: &mut impl Outbound) {
        self.expel(peer, RefuseCode::Protocol, problem, now, out);
    }

    /// Handles the loss of a connection.
    pub fn disconnected(&mut self, peer: PeerId, reason: &str, now: Now, out: &mut impl Outbound) {
        let Some(gone) = self.peers.get(peer.0) else { return };
        let (stage, node, from, reason) =
            (gone.stage, gone.name.clone(), gone.from.clone(), reason.to_owned());
        out.log(LogLine::new(move || match stage {
            Stage::Joined => tracing::warn!(%node, %from, reason, "a node is lost"),
            _ => tracing::debug!(%node, %from, reason, "a connection ended"),
        }));
        self.forget(peer, now, out);
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Now, out: &mut impl Outbound) {
        self.hints.at(now.mono);
        while let Some(peer) = pop_due(&mut self.greet_by, now) {
            if self.peers.get(peer.0).is_some_and(|peer| peer.stage == Stage::Greeting) {
                let problem = format!("no HELLO within {:?}", self.limits.handshake_timeout);
                self.misbehaved(peer, &problem, now, out);
            }
        }
        while let Some(claim) = pop_due(&mut self.claims, now) {
            self.take_over(claim, now, out);
        }
        // At most once through the queue, however late this runs.
        for _ in 0..self.heartbeats.len() {
            let Some(peer) = pop_due(&mut self.heartbeats, now) else { break };
            self.heartbeat(peer, now, out);
        }
        self.list_due(now, out);
        if !self.stopping {
            for _ in 0..TASKS_IN_A_ROW {
                let Some(due) = self.tasks.pop_due(now) else { break };
                if let schedule::Due::Call(task) = due {
                    self.call_scheduled(task, out);
                }
            }
        }
    }

    /// Returns when something is next due if nothing happens before then.
    pub fn next(&self) -> Option<Instant> {
        host::earliest([
            self.tasks.next().filter(|_| !self.stopping),
            self.greet_by.front().map(|(at, _)| *at),
            self.claims.front().map(|(at, _)| *at),
            self.heartbeats.front().map(|(at, _)| *at),
            self.lists_due(),
        ])
    }

    /// Begins to stop: lets nobody in, tells the nodes, and suspends scheduled tasks. Calls continue.
    pub fn drain(&mut self, now: Now, out: &mut impl Outbound) {
        self.stopping = true;
        let peers: Vec<_> = self.peers.iter().map(|(id, peer)| (PeerId(id), peer.stage)).collect();
        for (peer, stage) in peers {
            if stage.is_welcomed() {
                let _ = out.send(peer, &Frame::Goodbye { reason: "the controller is stopping" }, true);
            } else {
                self.expel(peer, RefuseCode::Unavailable, "the controller is stopping", now, out);
            }
        }
    }

    /// Ends every connection.
    pub fn close(&mut self, now: Now, out: &mut impl Outbound) {
        self.stopping = true;
        let peers: Vec<_> = self.peers.iter().map(|(id, _)| PeerId(id)).collect();
        // All connections first: nobody is told about calls that end with them.
        for peer in &peers {
            out.close(*peer, "the controller has stopped");
        }
        for peer in peers {
            self.forget(peer, now, out);
        }
    }

    /// Whether no call is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Returns how many calls are in flight at callees.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Returns whether other nodes see the peer.
    pub fn has_joined(&self, peer: PeerId) -> bool {
        self.peers.get(peer.0).is_some_and(|peer| peer.stage == Stage::Joined)
    }

    /// Returns whether the peer's handshake is complete.
    pub fn is_welcomed(&self, peer: PeerId) -> bool {
        self.peers.get(peer.0).is_some_and(|peer| peer.stage.is_welcomed())
    }

    /// Returns the counts of what happened without anyone being told.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns how much is remembered. It counts everything, so it is not for every call.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            peers: self.peers.len(),
            handshakes: self.handshakes,
            names: self.names.len(),
            callbacks: self.registry.len(),
            calls: self.peers.iter().map(|(_, peer)| peer.calls.len()).sum(),
            routes: self.peers.iter().map(|(_, peer)| peer.routes.len()).sum(),
            broadcasts: self.broadcasts.len(),
            watches: self.watches.len(),
            tasks: self.tasks.len(),
        }
    }

    fn dispatch(
        &mut self,
        from: PeerId,
        frame: &Frame<'_>,
        now: Now,
        out: &mut impl Outbound,
    ) -> Result<(), Breach> {
        let Some(peer) = self.peers.get_mut(from.0) else { return Ok(()) };
        match frame {
            Frame::Ping { id } => {
                peer.control.count(now.mono)?;
                let _ = out.send(from, &Frame::Pong { id: *id }, true);
                return Ok(());
            }
            Frame::Pong { id: PROBE } if !peer.claimed_by.is_empty() => {
                self.refuse_claims(from, now, out);
                return Ok(());
            }
            Frame::Pong { id } => {
                return if peer.heartbeat.pong(*id) { Ok(()) } else { peer.control.count(now.mono) };
            }
            Frame::Goodbye { reason } => {
                peer.control.count(now.mono)?;
                self.goodbye(from, reason, now, out);
                return Ok(());
            }
            Frame::Hello(hello) if peer.stage == Stage::Greeting => {
                self.hello(from, hello, now, out);
                return Ok(());
            }
            Frame::Hello(_) => return Err(Breach::unexpected(frame, "came twice")),
            _ if !peer.stage.is_welcomed() => {
                return Err(Breach::unexpected(frame, "came before WELCOME"));
            }
            _ => {}
        }
        match frame {
            Frame::Request(request) => {
                peer.control.cancels += 1;
                self.request(from, request, now, out)
            }
            Frame::Reply(reply) => self.reply(from, reply, now, out),
            Frame::Failure(failure) => self.failure(from, failure, now, out),
            Frame::Cancel { id } => self.cancel(from, *id, now, out),
            Frame::Chunk(chunk) if chunk.reply => self.reply_chunk(from, chunk, out),
            Frame::Chunk(chunk) => self.request_chunk(from, chunk, now, out),
            Frame::Credit { id, reply, part, bytes } => {
                peer.control.credit(now.mono)?;
                if *reply {
                    self.reply_credit(from, *id, *part, *bytes, out);
                } else {
                    self.request_credit(from, *id, *bytes, out);
                }
                Ok(())
            }
            Frame::Register(register) => {
                peer.control.count(now.mono)?;
                self.register(from, register, out)
            }
            Frame::Ask { id, codec, question } => {
                peer.control.cancels += 1;
                self.ask(from, *id, *codec, question, now, out)
            }
            _ => Err(Breach::unexpected(frame, "is for nodes, not for a controller")),
        }
    }

    /// Tells a peer why its connection ends, and ends it.
    fn expel(&mut self, peer: PeerId, code: RefuseCode, reason: &str, now: Now, out: &mut impl Outbound) {
        let Some(gone) = self.peers.get(peer.0) else { return };
        let (node, from, why) = (gone.name.clone(), gone.from.clone(), reason.to_owned());
        out.log(LogLine::new(move || tracing::warn!(%node, %from, reason = why, "closing a connection")));
        let _ = out.send(peer, &Frame::Refuse(Refuse { code, reason: clip(reason) }), true);
        out.close(peer, reason);
        self.forget(peer, now, out);
    }
}

/// Sends a failure, which must arrive: it is the call's only outcome.
fn fail(to: PeerId, id: u64, part: u32, fault: Box<Fault>, out: &mut impl Outbound) {
    let _ = out.send(to, &Frame::Failure(Failure { id, part, fault }), true);
}

fn pop_due<T>(queue: &mut VecDeque<(Instant, T)>, now: Now) -> Option<T> {
    queue.pop_front_if(|(at, _)| *at <= now.mono).map(|(_, due)| due)
}

/// Clips a reason to what fits in a frame before the handshake.
fn clip(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)]
}

const REASON_BYTES_MAX: usize = 1024;

/// How long an older node has to show that it is alive when a newcomer wants its name.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(1);

/// The id of the ping that asks whether it is. No heartbeat uses it.
const PROBE: u64 = 0;

#[cfg(test)]
mod tests;
