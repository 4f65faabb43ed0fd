//! Frames of strangers into a controller's router: nobody else is harmed, every call has one outcome, nothing stays.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use arbitrary::{Arbitrary, Result, Unstructured};
use bytes::Bytes;
use daffi_controller::{
    ControllerConfig,
    router::{Now, Outbound, PeerId, Router},
};
use daffi_core::{
    controller::{PortError, Strategy},
    fault::{Fault, FaultKind},
    frame::{
        Body, Chunk, Failure, Frame, Hello, Offer, Offers, Question, Refuse, RefuseCode, Register, Reply,
        Request, Schedule, Targets, Times, Timing, UNROUTED, VERSION, Welcome,
    },
    limits::{FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX},
};

use crate::frame::comes_out_again;

/// Any bytes from one peer, a stranger at first or, if the first byte is odd, a node.
///
/// It is let in or refused, and a node that was there before does not notice.
pub fn handshake(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let mut world = World::new(Strategy::RoundRobin);
    let caller = world.join("caller", &[]);
    let witness = world.join("witness", &["f"]);
    let peer = world.connect();
    if first & 1 == 1 {
        world.send(peer, &hello("stranger", 3));
        world.register(peer, &[("g", 0, true)], false);
    }
    let batch = Bytes::copy_from_slice(bytes);
    let mut at = 0;
    while world.is_open(peer) {
        let limit = if world.router.is_welcomed(peer) { FRAME_BYTES_MAX } else { HANDSHAKE_BYTES_MAX };
        match Frame::decode(&batch, at, limit) {
            // Who knows the number of a process is the process, as far as a controller can know.
            Ok(Some((Frame::Hello(hello), _))) if hello.instance & OURS == OURS => return,
            Ok(Some((frame, next))) => {
                world.send(peer, &frame);
                at = next;
            }
            Ok(None) => break,
            Err(error) => {
                world.router.misbehaved(peer, &error.to_string(), world.now, &mut world.out);
                assert!(!world.is_open(peer), "{error}");
            }
        }
        world.live();
        let sizes = world.router.sizes();
        assert!(sizes.peers <= 3 && sizes.names <= 3 && sizes.handshakes <= 1);
        assert!(
            sizes.calls <= CALLS_MAX && sizes.routes <= CALLS_MAX && sizes.broadcasts <= CALLS_MAX,
            "{sizes:?}"
        );
    }
    // Long before its next heartbeat is due, a stranger has to be a node.
    world.pass(Duration::from_secs(5));
    world.live();
    assert_ne!(world.is_open(peer), world.out.closed.contains(&peer));
    assert_eq!(world.is_open(peer), world.router.is_welcomed(peer), "it is in or out");
    assert!(world.is_open(witness) && world.is_open(caller));
    assert_eq!(world.router.sizes().handshakes, 0);

    world.send(caller, &Frame::Request(Request { node: "witness", ..request(1, "f") }));
    let id = world.out.requests.get(&witness).and_then(|ids| ids.last()).copied().expect("it was called");
    world.send(witness, &Frame::Reply(reply(id, false, 4)));
    assert_eq!(world.out.outcomes.get(&caller), Some(&1));
    world.end();
}

/// Frames of several peers, in any order and with any fields.
pub fn router(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let strategy = match input.arbitrary::<u8>() {
        Ok(byte) if byte & 1 == 1 => Strategy::LeastBusy,
        Ok(_) => Strategy::RoundRobin,
        Err(_) => return,
    };
    let mut world = World::new(strategy);
    let mut peers = Vec::new();
    for _ in 0..STEPS_MAX {
        if input.is_empty() || step(&mut world, &mut peers, &mut input).is_err() {
            break;
        }
        let sizes = world.router.sizes();
        assert_eq!(sizes.routes, world.router.in_flight());
        assert!(world.out.waiting.len() <= sizes.calls, "an outcome is missing: {:?}", world.out.waiting);
        assert_eq!(sizes.peers, world.out.open.len());
        assert!(sizes.handshakes <= sizes.peers && sizes.names <= sizes.peers);
    }
    world.end();
}

/// What the instance numbers of nodes that [`World::join`] connects have in common.
const OURS: u64 = 1 << 63;

/// A bit in the ids of calls without results. Nothing else has it, see [`step`].
const ONE_WAY: u64 = 1 << 40;

const STEPS_MAX: usize = 300;
/// How many calls a peer may have in flight.
const CALLS_MAX: usize = 20;
const NAMES: [&str; 4] = ["a", "b", "c", "not a name\n"];
const CALLBACKS: [&str; 4] = ["f", "g", "h", "nobody offers it"];
const NODES: [&str; 6] = ["", "", "a", "b", "a\nb\nnobody", "\n\n"];
const BODY: [u8; 64] = [7; 64];

fn step(world: &mut World, peers: &mut Vec<PeerId>, input: &mut Unstructured<'_>) -> Result<()> {
    let what = input.int_in_range(0..=31u8)?;
    if peers.is_empty() || what == 0 {
        peers.retain(|peer| world.is_open(*peer));
        if peers.len() < 6 {
            peers.push(world.connect());
        }
        return Ok(());
    }
    let peer = *input.choose(peers)?;
    let id = world.any_id(peer, input)?;
    let (codec, part) = (input.int_in_range(0..=2)?, input.int_in_range(0..=2)?);
    let (more, flag): (bool, bool) = (input.arbitrary()?, input.arbitrary()?);
    let length = *input.choose(&[0, 1, 4, 64])?;
    let body = Body::borrowed(&BODY[..length]);
    // What the decoder lets through adds up.
    let total = if more { length as u32 + input.int_in_range(1..=8)? } else { length as u32 };
    let name = *input.choose(&CALLBACKS)?;
    let node = *input.choose(&NODES)?;
    let frame = match what {
        1 | 2 => hello(input.choose(&NAMES)?, input.int_in_range(1..=2)?),
        3..=5 => {
            let mut offers = Vec::new();
            for name in &CALLBACKS[..3] {
                if input.arbitrary()? {
                    offers.push((*name, input.int_in_range(0..=1)?, input.arbitrary()?));
                }
            }
            world.register(peer, &offers, more && flag);
            return Ok(());
        }
        6..=11 => Frame::Request(Request {
            // Nothing ties a call without results to its id, so whoever uses one twice is told of the wrong call.
            id: if flag { id | ONE_WAY } else { id & !ONE_WAY },
            one_way: flag,
            broadcast: input.ratio(1, 3)?,
            more,
            codec,
            hops: *input.choose(&[1, 1, 1, 0, 32, 33, 255])?,
            deadline_us: *input.choose(&[0, 1, 1_000_000, u64::MAX])?,
            fingerprint: input.int_in_range(0..=2)?,
            callback: UNROUTED,
            total: *input.choose(&[total, total, total, u32::MAX])?,
            name,
            node,
            body,
        }),
        12..=15 => Frame::Reply(Reply {
            id,
            more,
            part,
            codec,
            total: *input.choose(&[total, total, total, u32::MAX])?,
            body,
        }),
        16 | 17 => {
            let kind = FaultKind::from_byte(input.int_in_range(0..=18)?);
            let fault = Fault::new(kind, "no").on(node).number(input.arbitrary()?);
            Frame::Failure(Failure { id, part, fault: Box::new(fault) })
        }
        18..=20 if length > 0 => Frame::Chunk(Chunk { id, reply: flag, more, part, body }),
        21 => Frame::Credit { id, reply: flag, part, bytes: *input.choose(&[0, 1, 100, u32::MAX])? },
        22 => Frame::Cancel { id },
        23 | 24 => {
            let mut times = Vec::new();
            for _ in 0..input.int_in_range(0..=3)? {
                let seconds = input.int_in_range(0..=2_000_000u64)?;
                times.extend_from_slice(&(seconds * 1_000_000).to_le_bytes());
            }
            let times = Times::parse(&times).expect("it is whole");
            let timing = |input: &mut Unstructured<'_>| {
                Ok(match input.arbitrary()? {
                    true => Timing::At(times),
                    false => Timing::Period(*input.choose(&[0, 1, 1000, 1_000_000, u64::MAX])?),
                })
            };
            let question = match input.int_in_range(0..=7u8)? {
                0 => Question::WaitProcess { name: input.choose(&NAMES)? },
                1 => Question::WaitFunction { name },
                2 => Question::Processes,
                3 => Question::Callbacks,
                4 => Question::CancelTask { task: id },
                5 => Question::TaskStatus { task: id },
                _ => Question::Schedule(Schedule {
                    timing: timing(input)?,
                    codec,
                    fingerprint: input.int_in_range(0..=1)?,
                    name,
                    node,
                    body,
                }),
            };
            world.send(peer, &Frame::Ask { id: id & !ONE_WAY, codec, question });
            return Ok(());
        }
        25 => Frame::Ping { id },
        26 => Frame::Pong { id },
        27 => match input.int_in_range(0..=5u8)? {
            0 => Frame::Goodbye { reason: "" },
            1 => Frame::Welcome(Welcome {
                version: 1,
                capabilities: 0,
                node: 1,
                heartbeat_ms: 1,
                payload_bytes_max: 1,
            }),
            2 => Frame::Refuse(Refuse { code: RefuseCode::Other(9), reason: "" }),
            3 => Frame::Registered { id },
            4 => Frame::Targets(Targets { id, nodes: node }),
            _ => hello("d", 1),
        },
        28 => {
            // A full queue takes only what must go.
            if !world.out.full.remove(&peer) {
                world.out.full.insert(peer);
            }
            return Ok(());
        }
        29 => {
            world.leave(peer);
            peers.retain(|other| *other != peer);
            return Ok(());
        }
        _ => {
            world.pass(Duration::from_millis(u64::arbitrary(input)? % 8000));
            if flag {
                world.live();
            }
            return Ok(());
        }
    };
    world.send(peer, &frame);
    Ok(())
}

/// A router with its peers.
struct World {
    router: Router,
    out: Recorder,
    now: Now,
}

/// What the router did, held against what it may do.
#[derive(Default)]
struct Recorder {
    open: BTreeSet<PeerId>,
    closed: BTreeSet<PeerId>,
    /// Peers whose queue is full for what need not go.
    full: BTreeSet<PeerId>,
    /// What each caller waits for.
    waiting: BTreeMap<(PeerId, u64), Waiting>,
    /// Payloads on their way to a peer in chunks: their size, and how much of it has come.
    payloads: BTreeMap<(PeerId, u64, bool, u32), (u32, usize)>,
    /// The ids under which callees know their calls.
    requests: BTreeMap<PeerId, Vec<u64>>,
    outcomes: BTreeMap<PeerId, usize>,
    pinged: Vec<(PeerId, u64)>,
}

#[derive(Debug)]
enum Waiting {
    /// For one outcome, until it is told of several.
    One,
    /// For whom a broadcast without results goes to.
    Targets,
    /// For these parts of a broadcast.
    Parts(BTreeSet<u32>),
}

impl World {
    fn new(strategy: Strategy) -> Self {
        let mut config = ControllerConfig::new(Vec::new());
        config.strategy = strategy;
        // Small, so that they are met.
        config.limits.calls_in_flight_max = CALLS_MAX;
        config.limits.tasks_max = 8;
        config.limits.callbacks_max = 100;
        let now = Now { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) };
        Self { router: Router::new(&config, 7), out: Recorder::default(), now }
    }

    fn connect(&mut self) -> PeerId {
        let peer = self.router.connected("somewhere", self.now).expect("there is room for some");
        assert!(self.out.open.insert(peer) && !self.out.closed.contains(&peer));
        peer
    }

    /// Connects a node.
    fn join(&mut self, name: &str, callbacks: &[&str]) -> PeerId {
        let peer = self.connect();
        self.send(peer, &hello(name, OURS + peer.place() as u64));
        let offers: Vec<_> = callbacks.iter().map(|name| (*name, 0, true)).collect();
        self.register(peer, &offers, false);
        assert!(self.router.is_welcomed(peer));
        peer
    }

    fn register(&mut self, peer: PeerId, callbacks: &[(&str, u64, bool)], more: bool) {
        let mut bytes = Vec::new();
        for (index, (name, fingerprint, ready)) in callbacks.iter().enumerate() {
            let (fingerprint, ready) = (*fingerprint, *ready);
            Offers::push(
                &mut bytes,
                &Offer { index: index as u32, fingerprint, ready, name, signature: "()" },
            );
        }
        let offers = Offers::parse(&bytes).expect("it was pushed");
        self.send(peer, &Frame::Register(Register { id: 1, more, offers }));
    }

    fn send(&mut self, from: PeerId, frame: &Frame<'_>) {
        if self.is_open(from) {
            self.out.asked(from, frame, &self.router);
        }
        self.router.handle(from, frame, self.now, &mut self.out);
    }

    /// Time passes, and what is due is done.
    fn pass(&mut self, time: Duration) {
        self.now.mono += time;
        self.now.wall += time;
        self.router.tick(self.now, &mut self.out);
    }

    /// Everybody that was pinged shows that it lives.
    fn live(&mut self) {
        for (peer, id) in std::mem::take(&mut self.out.pinged) {
            self.send(peer, &Frame::Pong { id });
        }
    }

    fn leave(&mut self, peer: PeerId) {
        self.out.forget(peer);
        self.router.disconnected(peer, "gone", self.now, &mut self.out);
        self.out.forget(peer);
    }

    /// Everybody leaves, and nothing stays.
    fn end(&mut self) {
        for peer in self.out.open.clone() {
            self.leave(peer);
        }
        let sizes = self.router.sizes();
        assert_eq!((sizes.peers, sizes.handshakes, sizes.names, sizes.callbacks), (0, 0, 0, 0), "{sizes:?}");
        assert_eq!((sizes.calls, sizes.routes, sizes.broadcasts, sizes.watches), (0, 0, 0, 0), "{sizes:?}");
        assert!(self.router.is_idle() && self.out.waiting.is_empty());
    }

    fn is_open(&self, peer: PeerId) -> bool {
        self.out.open.contains(&peer)
    }

    /// An id that may mean something to this peer.
    fn any_id(&self, peer: PeerId, input: &mut Unstructured<'_>) -> Result<u64> {
        let known = self.out.requests.get(&peer).filter(|ids| !ids.is_empty());
        match known {
            Some(ids) if input.arbitrary()? => Ok(*input.choose(ids)?),
            _ => Ok(input.int_in_range(0..=3)? | *input.choose(&[0, 0, ONE_WAY])?),
        }
    }
}

impl Recorder {
    /// A peer is about to send this.
    fn asked(&mut self, from: PeerId, frame: &Frame<'_>, router: &Router) {
        let waits = match frame {
            Frame::Request(request) if !request.one_way => Some((request.id, Waiting::One)),
            Frame::Request(request) if request.broadcast => Some((request.id, Waiting::Targets)),
            Frame::Ask { id, .. } => Some((*id, Waiting::One)),
            Frame::Cancel { id } => {
                self.waiting.remove(&(from, *id));
                self.payloads.retain(|(to, call, reply, _), _| !(*to == from && call == id && *reply));
                None
            }
            _ => None,
        };
        if let Some((id, waiting)) = waits.filter(|_| router.is_welcomed(from)) {
            self.waiting.entry((from, id)).or_insert(waiting);
        }
    }

    fn forget(&mut self, peer: PeerId) {
        self.open.remove(&peer);
        self.full.remove(&peer);
        self.requests.remove(&peer);
        self.waiting.retain(|(caller, _), _| *caller != peer);
        self.payloads.retain(|(to, ..), _| *to != peer);
        self.pinged.retain(|(pinged, _)| *pinged != peer);
    }

    /// A caller is told how a call, or a part of one, ended.
    fn ended(&mut self, caller: PeerId, id: u64, part: u32) {
        *self.outcomes.entry(caller).or_default() += 1;
        self.payloads.remove(&(caller, id, true, part));
        let waiting = self.waiting.get_mut(&(caller, id)).unwrap_or_else(|| panic!("{id} has ended before"));
        let done = match waiting {
            Waiting::One | Waiting::Targets => {
                assert_eq!(part, 0);
                true
            }
            Waiting::Parts(parts) => {
                assert!(parts.remove(&part), "part {part} of {id} has ended before");
                parts.is_empty()
            }
        };
        if done {
            self.waiting.remove(&(caller, id));
        }
    }

    fn begins(&mut self, to: PeerId, id: u64, reply: bool, part: u32, total: u32, body: &Body<'_>) {
        let before = self.payloads.insert((to, id, reply, part), (total, body.len()));
        assert!(before.is_none(), "a payload begins twice");
    }
}

impl Outbound for Recorder {
    fn send(&mut self, to: PeerId, frame: &Frame<'_>, must: bool) -> std::result::Result<(), PortError> {
        assert!(!self.closed.contains(&to), "a {} frame for a peer that was closed", frame.kind());
        if !self.open.contains(&to) {
            return Err(PortError::Closed);
        }
        if !must && self.full.contains(&to) {
            return Err(PortError::Full);
        }
        comes_out_again(frame, &frame.to_bytes());
        match frame {
            Frame::Ping { id } => self.pinged.push((to, *id)),
            Frame::Request(request) => {
                assert_ne!(request.callback, UNROUTED);
                if !request.one_way || request.more {
                    self.requests.entry(to).or_default().push(request.id);
                }
                if request.more {
                    self.begins(to, request.id, false, 0, request.total, &request.body);
                }
            }
            Frame::Reply(reply) if reply.more => {
                assert!(self.waiting.contains_key(&(to, reply.id)), "{} has ended before", reply.id);
                self.begins(to, reply.id, true, reply.part, reply.total, &reply.body);
            }
            Frame::Reply(reply) => self.ended(to, reply.id, reply.part),
            Frame::Failure(failure) => self.ended(to, failure.id, failure.part),
            Frame::Targets(targets) => {
                let parts = (0..targets.nodes.split('\n').count() as u32).collect();
                match self.waiting.get_mut(&(to, targets.id)) {
                    Some(waiting @ Waiting::One) => *waiting = Waiting::Parts(parts),
                    Some(Waiting::Targets) => self.ended(to, targets.id, 0),
                    _ => panic!("nobody waits for whom {} goes to", targets.id),
                }
            }
            Frame::Chunk(chunk) => {
                let key = (to, chunk.id, chunk.reply, chunk.part);
                let (total, come) = self.payloads.get_mut(&key).expect("chunks follow their first frame");
                *come += chunk.body.len();
                if chunk.more {
                    assert!(*come < *total as usize);
                } else {
                    assert_eq!(*come, *total as usize);
                    self.payloads.remove(&key);
                    if chunk.reply {
                        self.ended(to, chunk.id, chunk.part);
                    }
                }
            }
            Frame::Cancel { id } => {
                self.payloads.remove(&(to, *id, false, 0));
            }
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self, peer: PeerId, _: &str) {
        assert!(self.open.contains(&peer), "closed twice");
        self.closed.insert(peer);
        self.forget(peer);
    }
}

fn hello(name: &str, instance: u64) -> Frame<'_> {
    let (version_min, version_max) = (VERSION, VERSION);
    Frame::Hello(Hello { version_min, version_max, capabilities: 0, instance, name, credentials: &[] })
}

fn request(id: u64, name: &str) -> Request<'_> {
    Request::new(id, name, Body::borrowed(&BODY[..4]))
}

fn reply(id: u64, more: bool, length: usize) -> Reply<'static> {
    Reply { id, more, part: 0, codec: 0, total: length as u32, body: Body::borrowed(&BODY[..length]) }
}
