//! Scenarios played step by step: frames in, frames out, with the test moving time.

mod broadcasts;
mod calls;
mod control;
mod handshakes;
mod questions;
mod random;
mod scheduled;
mod streaming;

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use daffi_core::{
    controller::Strategy,
    frame::{Body, Chunk, Hello, Offer, Offers, Register, Reply, Request},
    limits::FRAME_BYTES_MAX,
};

use super::*;

/// What the router did, by peer.
#[derive(Default)]
struct Recorder {
    sent: HashMap<PeerId, Vec<Bytes>>,
    closed: HashMap<PeerId, String>,
    /// Peers whose queue is full for frames that need not go.
    full: HashSet<PeerId>,
    /// How many frames at the end of what a peer was sent are waiting for others.
    soon: HashMap<PeerId, usize>,
}

impl Outbound for Recorder {
    fn send(&mut self, to: PeerId, frame: &Frame<'_>, must: bool) -> Result<(), PortError> {
        assert!(!self.closed.contains_key(&to), "{} for a peer that was closed", describe(frame));
        if !must && self.full.contains(&to) {
            return Err(PortError::Full);
        }
        self.sent.entry(to).or_default().push(frame.to_bytes());
        self.soon.remove(&to);
        Ok(())
    }

    fn send_soon(&mut self, to: PeerId, frame: &Frame<'_>) -> Result<(), PortError> {
        let before = self.soon.get(&to).copied().unwrap_or_default();
        self.send(to, frame, true)?;
        self.soon.insert(to, before + 1);
        Ok(())
    }

    fn close(&mut self, peer: PeerId, reason: &str) {
        assert!(self.closed.insert(peer, reason.to_owned()).is_none(), "closed twice");
    }
}

struct World {
    router: Router,
    out: Recorder,
    now: Now,
}

impl World {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut ControllerConfig)) -> Self {
        let mut config = ControllerConfig::new(Vec::new());
        config.strategy = Strategy::RoundRobin;
        change(&mut config);
        let now = Now { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000) };
        Self { router: Router::new(&config, 7), out: Recorder::default(), now }
    }

    fn connect(&mut self) -> PeerId {
        self.router.connected("test", self.now).unwrap()
    }

    fn send(&mut self, from: PeerId, frame: &Frame<'_>) {
        self.router.handle(from, frame, self.now, &mut self.out);
    }

    fn hello(&mut self, from: PeerId, name: &str, instance: u64) {
        self.send(from, &hello(name, instance));
    }

    /// Connects a node that offers callbacks. Those with a leading `!` are not ready.
    fn join(&mut self, name: &str, callbacks: &[&str]) -> PeerId {
        let peer = self.connect();
        self.hello(peer, name, peer.0);
        self.register(peer, callbacks);
        assert_eq!(self.said(peer), ["WELCOME", "REGISTERED 1"]);
        peer
    }

    fn register(&mut self, peer: PeerId, callbacks: &[&str]) {
        let offers: Vec<_> = callbacks.iter().enumerate().map(|(at, name)| (at as u32, *name, 0)).collect();
        self.register_as(peer, &offers, false);
    }

    /// Registers callbacks with index, name and fingerprint.
    fn register_as(&mut self, peer: PeerId, callbacks: &[(u32, &str, u64)], more: bool) {
        let mut bytes = Vec::new();
        for (index, name, fingerprint) in callbacks {
            let ready = !name.starts_with('!');
            let name = name.trim_start_matches('!');
            let signature = format!("signature {fingerprint}");
            let offer =
                Offer { index: *index, fingerprint: *fingerprint, ready, name, signature: &signature };
            Offers::push(&mut bytes, &offer);
        }
        let offers = Offers::parse(&bytes).unwrap();
        self.send(peer, &Frame::Register(Register { id: 1, more, offers }));
    }

    fn call(&mut self, from: PeerId, id: u64, name: &str) {
        self.send(from, &Frame::Request(request(id, name)));
    }

    fn reply(&mut self, from: PeerId, id: u64, body: &'static str) {
        self.send(from, &reply(id, body));
    }

    fn gone(&mut self, peer: PeerId) {
        self.router.disconnected(peer, "gone", self.now, &mut self.out);
    }

    fn advance(&mut self, by: Duration) -> Option<Instant> {
        self.now.mono += by;
        self.now.wall += by;
        self.router.tick(self.now, &mut self.out);
        self.router.next()
    }

    /// Returns what the peer was sent since the last call of this.
    fn said(&mut self, peer: PeerId) -> Vec<String> {
        let frames = self.out.sent.remove(&peer).unwrap_or_default();
        frames.iter().map(|bytes| describe(&decode(bytes))).collect()
    }

    /// Returns the id of the single frame that the peer was sent, a request.
    fn id_at(&mut self, peer: PeerId) -> u64 {
        let frames = self.out.sent.remove(&peer).unwrap_or_default();
        let [frame] = &frames[..] else { panic!("{} frames instead of one", frames.len()) };
        let Frame::Request(request) = decode(frame) else { panic!("{frame:?} is no request") };
        request.id
    }

    /// Returns the fault in the single frame that the peer was sent.
    fn fault_at(&mut self, peer: PeerId) -> Fault {
        let frames = self.out.sent.remove(&peer).unwrap_or_default();
        let [frame] = &frames[..] else { panic!("{} frames instead of one", frames.len()) };
        let Frame::Failure(failure) = decode(frame) else { panic!("{frame:?} is no failure") };
        *failure.fault
    }

    /// Asserts that no call has left anything behind.
    fn assert_idle(&self) {
        let sizes = self.router.sizes();
        assert_eq!((sizes.calls, sizes.routes, sizes.broadcasts, sizes.watches), (0, 0, 0, 0));
        assert!(self.router.is_idle());
    }
}

fn hello(name: &str, instance: u64) -> Frame<'_> {
    let versions = (daffi_core::frame::VERSION, daffi_core::frame::VERSION);
    Frame::Hello(Hello {
        version_min: versions.0,
        version_max: versions.1,
        capabilities: 0,
        instance,
        name,
        credentials: &[],
    })
}

fn request(id: u64, name: &str) -> Request<'_> {
    Request::new(id, name, Body::borrowed(b"args"))
}

fn reply(id: u64, body: &str) -> Frame<'_> {
    let body = Body::borrowed(body.as_bytes());
    Frame::Reply(Reply { id, more: false, part: 0, codec: 0, total: body.len() as u32, body })
}

fn chunk(id: u64, reply: bool, more: bool, body: &str) -> Frame<'_> {
    Frame::Chunk(Chunk { id, reply, more, part: 0, body: Body::borrowed(body.as_bytes()) })
}

fn failure(id: u64, kind: daffi_core::fault::FaultKind) -> Frame<'static> {
    Frame::Failure(Failure { id, part: 0, fault: Box::new(Fault::new(kind, "no").on("forged")) })
}

fn decode(bytes: &Bytes) -> Frame<'_> {
    Frame::decode(bytes, 0, FRAME_BYTES_MAX).unwrap().unwrap().0
}

/// Describes a frame in one line, without what tests seldom need.
fn describe(frame: &Frame<'_>) -> String {
    let text = |body: &Body<'_>, more: bool| {
        let more = if more { "…" } else { "" };
        format!("{}{more}", String::from_utf8_lossy(&body.to_bytes()))
    };
    let way = |reply: bool| if reply { "reply" } else { "request" };
    match frame {
        Frame::Refuse(refuse) => format!("REFUSE {:?}", refuse.code),
        Frame::Registered { id } => format!("REGISTERED {id}"),
        Frame::Request(request) => format!(
            "REQUEST {}#{} from {}: {}",
            request.name,
            request.callback,
            request.node,
            text(&request.body, request.more)
        ),
        Frame::Reply(reply) => {
            format!("REPLY {}.{}: {}", reply.id, reply.part, text(&reply.body, reply.more))
        }
        Frame::Failure(failure) => {
            format!(
                "FAILURE {}.{} {:?} on {}",
                failure.id, failure.part, failure.fault.kind, failure.fault.node
            )
        }
        Frame::Targets(targets) => format!("TARGETS {}: {}", targets.id, targets.nodes.replace('\n', " ")),
        Frame::Cancel { id } => format!("CANCEL {id}"),
        Frame::Chunk(chunk) => {
            format!(
                "CHUNK {}.{} {}: {}",
                chunk.id,
                chunk.part,
                way(chunk.reply),
                text(&chunk.body, chunk.more)
            )
        }
        Frame::Credit { id, reply, part, bytes } => format!("CREDIT {id}.{part} {}: {bytes}", way(*reply)),
        Frame::Pong { id } => format!("PONG {id}"),
        other => other.kind().to_owned(),
    }
}
