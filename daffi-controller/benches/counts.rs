//! Work whose instructions are counted, one case per run of the program: see `.ci/counts`.
//!
//! `counts` alone lists the cases and how often each repeats its work; `counts CASE` runs one. What
//! [`measured`] runs is counted: the same work takes the same instructions on every x86-64 machine, however
//! busy it is.

use std::{
    collections::VecDeque,
    env,
    hint::black_box,
    mem,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use daffi_controller::{
    ControllerConfig,
    router::{Now, Outbound, PeerId, Router},
};
use daffi_core::{
    controller::{PortError, Strategy},
    frame::{Body, Frame, Hello, Offer, Offers, Register, Reply, Request, VERSION},
    limits::FRAME_BYTES_MAX,
    payload::{self, Codec, Whole},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// How many calls are in flight while one more is routed.
const OUTSTANDING: u64 = 512;

/// The arguments and the result of a small call.
const BODY: &[u8; 32] = &[7; 32];

/// The size of a large argument or result that travels in one frame.
const PAYLOAD_BYTES: usize = 64 * 1024 - 8;

/// A piece of work: its name, its rounds, and a function that prepares it and returns what to count.
type Case = (&'static str, u32, fn() -> Box<dyn FnMut()>);

/// Often enough that a hash table's occasional reorganisation happens equally often in each run.
const MANY: u32 = 8192;
const FEW: u32 = 256;

const CASES: &[Case] = &[
    ("encode_request", FEW, encode_request),
    ("decode_request", FEW, decode_request),
    ("encode_reply", FEW, encode_reply),
    ("decode_reply", FEW, decode_reply),
    ("encode_64_kib_vec", FEW, || encode_payload(vec![7u8; PAYLOAD_BYTES])),
    ("encode_64_kib_vec_in_struct", FEW, || encode_payload(Holder { id: 1, bytes: vec![7; PAYLOAD_BYTES] })),
    ("encode_64_kib_string", FEW, || encode_payload("x".repeat(PAYLOAD_BYTES))),
    ("encode_64_kib_bytes", FEW, || encode_payload(payload::Bytes::from(vec![7; PAYLOAD_BYTES]))),
    ("decode_64_kib_vec", FEW, || decode_payload::<Whole<Vec<u8>>>(vec![7u8; PAYLOAD_BYTES])),
    ("decode_64_kib_vec_in_struct", FEW, || {
        decode_payload::<Holder>(Holder { id: 1, bytes: vec![7; PAYLOAD_BYTES] })
    }),
    ("decode_64_kib_string", FEW, || decode_payload::<Whole<String>>("x".repeat(PAYLOAD_BYTES))),
    ("decode_64_kib_bytes", FEW, || decode_payload::<Whole<payload::Bytes>>(vec![7u8; PAYLOAD_BYTES])),
    ("route_call", MANY, || World::new().into_calls()),
    ("route_call_pinned", MANY, || World::new().into_calls_to("node_1")),
    ("route_call_least_busy_of_8", MANY, || World::choosing(Strategy::LeastBusy).offered_by(7).into_calls()),
    ("route_call_of_100_nodes", MANY, || World::new().with_nodes(100).into_calls()),
    ("route_call_of_1000_nodes", MANY, || World::new().with_nodes(1_000).into_calls()),
    ("route_call_of_10000_nodes", MANY, || World::new().with_nodes(10_000).into_calls()),
    ("route_call_of_100_callbacks", MANY, || World::new().with_callbacks(100).into_calls()),
    ("route_call_of_1000_callbacks", MANY, || World::new().with_callbacks(1_000).into_calls()),
    ("route_call_of_10000_callbacks", MANY, || World::new().with_callbacks(10_000).into_calls()),
    ("route_call_beside_1000", MANY, || World::new().with_calls(1_000).into_calls()),
    ("route_call_beside_10000", MANY, || World::new().with_calls(10_000).into_calls()),
    ("route_call_beside_100000", MANY, || World::new().with_calls(100_000).into_calls()),
    ("broadcast_to_8", FEW, || World::new().offered_by(7).into_broadcasts()),
    ("join_with_10_callbacks", FEW, || World::new().into_joins()),
    ("join_with_10_callbacks_of_10000_nodes", FEW, || World::new().with_nodes(10_000).into_joins()),
    ("tick", FEW, || World::new().into_ticks()),
    ("tick_of_10000_nodes", FEW, || World::new().with_nodes(10_000).into_ticks()),
];

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let Some(case) = env::args().skip(1).find(|argument| argument != "--bench") else {
        for (name, rounds, _) in CASES {
            println!("{name} {rounds}");
        }
        return ExitCode::SUCCESS;
    };
    let Some((_, rounds, prepare)) = CASES.iter().find(|(name, ..)| *name == case) else {
        eprintln!("there is no case {case:?}");
        return ExitCode::FAILURE;
    };
    let mut work = prepare();
    // Warms up until buffers have reached their final size.
    for _ in 0..*rounds {
        work();
    }
    measured(*rounds, &mut *work);
    // Do not wait for all of it to be freed.
    mem::forget(work);
    ExitCode::SUCCESS
}

/// The work that is counted. `.ci/counts` gives this function's name to Callgrind.
#[inline(never)]
fn measured(rounds: u32, work: &mut dyn FnMut()) {
    for _ in 0..rounds {
        work();
    }
}

fn encode_request() -> Box<dyn FnMut()> {
    let mut out = Vec::new();
    Box::new(move || {
        out.clear();
        black_box(Frame::Request(request(1, "func1"))).encode(&mut out);
        black_box(&out);
    })
}

fn decode_request() -> Box<dyn FnMut()> {
    decode(Frame::Request(request(1, "func1")).to_bytes())
}

fn encode_reply() -> Box<dyn FnMut()> {
    let mut out = Vec::new();
    Box::new(move || {
        out.clear();
        black_box(reply(1)).encode(&mut out);
        black_box(&out);
    })
}

fn decode_reply() -> Box<dyn FnMut()> {
    decode(reply(1).to_bytes())
}

/// A foreign value, such as users have.
#[derive(Serialize, Deserialize)]
struct Holder {
    id: u64,
    bytes: Vec<u8>,
}

/// Encodes the only argument of a call.
fn encode_payload(value: impl Serialize + 'static) -> Box<dyn FnMut()> {
    Box::new(move || {
        let encoded = Codec::Bincode.encode_apart(black_box(&(&value,)));
        assert!(black_box(encoded).is_ok());
    })
}

fn decode_payload<T: DeserializeOwned>(value: impl Serialize) -> Box<dyn FnMut()> {
    let bytes = Codec::Bincode.encode(&(value,)).expect("it can be encoded");
    Box::new(move || {
        let decoded = Codec::Bincode.decode_from::<(T,)>(black_box(&bytes));
        assert!(black_box(decoded).is_ok());
    })
}

fn decode(bytes: Bytes) -> Box<dyn FnMut()> {
    Box::new(move || {
        let decoded = Frame::decode(black_box(&bytes), 0, FRAME_BYTES_MAX);
        assert!(black_box(decoded).is_ok_and(|frame| frame.is_some()));
    })
}

/// A router with a caller and a callee, and what it sends.
struct World {
    router: Router,
    out: Sent,
    now: Now,
    caller: PeerId,
    joined: u64,
}

/// Outgoing frames, encoded as an outbox encodes them.
#[derive(Default)]
struct Sent {
    bytes: Vec<u8>,
    /// Requests that have not been answered.
    requests: Vec<(PeerId, u64)>,
}

impl Outbound for Sent {
    fn send(&mut self, to: PeerId, frame: &Frame<'_>, _must: bool) -> Result<(), PortError> {
        if let Frame::Request(request) = frame {
            self.requests.push((to, request.id));
        }
        frame.encode(&mut self.bytes);
        Ok(())
    }

    fn close(&mut self, _peer: PeerId, _reason: &str) {}
}

impl World {
    fn new() -> Self {
        Self::choosing(Strategy::Random)
    }

    fn choosing(strategy: Strategy) -> Self {
        let mut config = ControllerConfig::new(Vec::new());
        config.strategy = strategy;
        config.limits.calls_in_flight_max = usize::MAX;
        let now = Now { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH };
        let mut router = Router::new(&config, 7);
        let caller = router.connected("somewhere", now).expect("there is room");
        let mut world = Self { router, out: Sent::default(), now, caller, joined: 0 };
        world.greet(caller, "caller", &[]);
        world.join(&["func1"]);
        world
    }

    /// Adds this many nodes that offer the callback.
    fn offered_by(mut self, nodes: u64) -> Self {
        for _ in 0..nodes {
            self.join(&["func1"]);
        }
        self
    }

    /// Adds this many nodes, each with its own callback.
    fn with_nodes(mut self, nodes: u64) -> Self {
        for node in 0..nodes {
            self.join(&[&format!("other_{node}")]);
        }
        self
    }

    /// Adds one node with this many callbacks.
    fn with_callbacks(mut self, callbacks: u64) -> Self {
        let names: Vec<_> = (0..callbacks).map(|number| format!("other_{number}")).collect();
        self.join(&names.iter().map(String::as_str).collect::<Vec<_>>());
        self
    }

    /// Adds this many calls between two other nodes.
    fn with_calls(mut self, calls: u64) -> Self {
        let caller = self.join(&[]);
        self.join(&["slow"]);
        for id in 1..=calls {
            self.handle(caller, &Frame::Request(request(id, "slow")));
            self.out.requests.clear();
        }
        self
    }

    /// A call and its reply, while others are in flight that began before it and end after it.
    fn into_calls(self) -> Box<dyn FnMut()> {
        self.into_calls_to("")
    }

    fn into_calls_to(mut self, node: &'static str) -> Box<dyn FnMut()> {
        let mut id = 0;
        let mut going_on = VecDeque::new();
        let mut call = move |world: &mut Self| {
            id += 1;
            let caller = world.caller;
            world.handle(caller, &Frame::Request(Request { node, ..request(id, "func1") }));
            world.out.requests.pop().expect("the call was passed on")
        };
        for _ in 0..OUTSTANDING {
            going_on.push_back(call(&mut self));
        }
        Box::new(move || {
            going_on.push_back(call(&mut self));
            let (callee, route) = going_on.pop_front().expect("there are calls going on");
            self.handle(callee, &reply(route));
        })
    }

    /// A call to all nodes that offer the callback, and their replies.
    fn into_broadcasts(mut self) -> Box<dyn FnMut()> {
        let mut id = 0;
        Box::new(move || {
            id += 1;
            let caller = self.caller;
            self.handle(caller, &Frame::Request(Request { broadcast: true, ..request(id, "func1") }));
            while let Some((callee, route)) = self.out.requests.pop() {
                self.handle(callee, &reply(route));
            }
        })
    }

    /// A node that joins and leaves.
    fn into_joins(mut self) -> Box<dyn FnMut()> {
        let names: Vec<_> = (0..10).map(|number| format!("callback_{number}")).collect();
        let offers = offers(&names.iter().map(String::as_str).collect::<Vec<_>>());
        Box::new(move || {
            let node = self.join_with("newcomer", &offers);
            self.router.disconnected(node, "gone", self.now, &mut self.out);
        })
    }

    /// A tick when nothing is due.
    fn into_ticks(mut self) -> Box<dyn FnMut()> {
        Box::new(move || {
            self.now.mono += Duration::from_nanos(1);
            self.router.tick(self.now, &mut self.out);
            black_box(self.router.next());
        })
    }

    fn join(&mut self, callbacks: &[&str]) -> PeerId {
        self.joined += 1;
        let name = format!("node_{}", self.joined);
        self.join_with(&name, &offers(callbacks))
    }

    fn join_with(&mut self, name: &str, offers: &[u8]) -> PeerId {
        let peer = self.router.connected("somewhere", self.now).expect("there is room");
        self.greet(peer, name, offers);
        peer
    }

    fn greet(&mut self, peer: PeerId, name: &str, offers: &[u8]) {
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            capabilities: 0,
            instance: self.joined,
            name,
            credentials: &[],
        };
        self.handle(peer, &Frame::Hello(hello));
        let offers = Offers::parse(offers).expect("they were encoded here");
        self.handle(peer, &Frame::Register(Register { id: 1, more: false, offers }));
    }

    fn handle(&mut self, from: PeerId, frame: &Frame<'_>) {
        self.out.bytes.clear();
        self.router.handle(from, frame, self.now, &mut self.out);
        black_box(&self.out.bytes);
    }
}

fn offers(callbacks: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, name) in callbacks.iter().enumerate() {
        let offer = Offer {
            index: index as u32,
            fingerprint: 1,
            ready: true,
            name,
            signature: "(a: i64, b: i64) -> i64",
        };
        Offers::push(&mut bytes, &offer);
    }
    bytes
}

fn request(id: u64, name: &'static str) -> Request<'static> {
    Request { deadline_us: 60_000_000, fingerprint: 1, ..Request::new(id, name, Body::borrowed(BODY)) }
}

fn reply(id: u64) -> Frame<'static> {
    Frame::Reply(Reply {
        id,
        more: false,
        part: 0,
        codec: 0,
        total: BODY.len() as u32,
        body: Body::borrowed(BODY),
    })
}
