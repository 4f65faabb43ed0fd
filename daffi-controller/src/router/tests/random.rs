//! Many short runs with random frames: nothing panics, every request has exactly one outcome, and nothing is
//! left behind.

use std::collections::BTreeMap;

use daffi_core::{
    fault::FaultKind,
    frame::{Question, Schedule, Timing},
};

use super::*;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const CALLBACKS: [&str; 4] = ["f", "g", "h", "!m"];

#[test]
fn any_frames_in_any_order_do_no_harm() {
    for seed in 0..10_000 {
        let mut random = Random(seed);
        let mut world = World::new();
        let mut peers: Vec<PeerId> = Vec::new();
        for _ in 0..40 {
            if peers.is_empty() || random.chance(10) {
                let peer = world.connect();
                peers.push(peer);
                if !random.chance(5) {
                    world.hello(peer, NAMES[random.below(4) as usize], random.below(3));
                    world.register(peer, &CALLBACKS[..random.below(5) as usize]);
                }
            }
            let peer = peers[random.below(peers.len() as u64) as usize];
            if random.chance(4) {
                world.out.full.insert(peer);
            } else {
                world.out.full.clear();
            }
            // Half of the ids are real.
            let id = if random.chance(2) { random.below(4) } else { (1 << 32) + random.below(4) };
            any_frame(&mut world, &mut random, peer, id);
            if random.chance(15) {
                world.gone(peer);
            }
            if random.chance(10) {
                let by = Duration::from_millis(random.below(8000));
                world.advance(by);
            }
            let sizes = world.router.sizes();
            assert_eq!(sizes.routes, world.router.in_flight(), "seed {seed}");
        }
        for peer in peers {
            world.gone(peer);
        }
        world.assert_idle();
        let sizes = world.router.sizes();
        assert_eq!(
            (sizes.peers, sizes.names, sizes.callbacks, sizes.handshakes),
            (0, 0, 0, 0),
            "seed {seed}"
        );
    }
}

fn any_frame(world: &mut World, random: &mut Random, peer: PeerId, id: u64) {
    let callback = ["f", "g", "h", "m", "nothing"][random.below(5) as usize];
    let reply = random.chance(2);
    let more = random.chance(3);
    let frame = match random.below(16) {
        0..=4 => Frame::Request(Request {
            one_way: random.chance(4),
            broadcast: random.chance(3),
            more,
            total: if more { 8 } else { 4 },
            node: ["", "", "a", "a\nb\nnobody"][random.below(4) as usize],
            fingerprint: random.below(2) << 32,
            ..request(id, callback)
        }),
        5..=6 => {
            let total = if more { 8 } else { 4 };
            Frame::Reply(Reply { id, more, part: 0, codec: 0, total, body: Body::borrowed(b"four") })
        }
        7 => failure(id, FaultKind::Failed),
        8 => Frame::Cancel { id },
        9 => chunk(id, reply, more, if random.chance(2) { "four" } else { "2b" }),
        10 => Frame::Credit { id, reply, part: random.below(3) as u32, bytes: 5 },
        11 => Frame::Ask {
            id,
            codec: 0,
            question: match random.below(4) {
                0 => Question::WaitProcess { name: "a" },
                1 => Question::WaitFunction { name: callback },
                2 => Question::Callbacks,
                _ => Question::Schedule(Schedule {
                    timing: Timing::Period(1_000_000),
                    codec: 0,
                    fingerprint: 0,
                    name: callback,
                    node: "",
                    body: Body::borrowed(b"args"),
                }),
            },
        },
        12 => Frame::Pong { id },
        13 => Frame::Ping { id },
        14 if random.chance(4) => Frame::Goodbye { reason: "" },
        _ => return world.register(peer, &CALLBACKS[..random.below(5) as usize]),
    };
    world.send(peer, &frame);
}

/// Counts how often each of a caller's requests has ended, as far as the caller was told.
fn outcomes(world: &mut World, caller: PeerId, ended: &mut BTreeMap<(u64, u32), u32>) {
    for bytes in world.out.sent.remove(&caller).unwrap_or_default() {
        match decode(&bytes) {
            Frame::Reply(reply) => *ended.entry((reply.id, reply.part)).or_default() += 1,
            Frame::Failure(failure) => *ended.entry((failure.id, failure.part)).or_default() += 1,
            _ => {}
        }
    }
}

#[test]
fn every_request_has_exactly_one_outcome() {
    for seed in 0..2_000 {
        let mut random = Random(seed);
        let mut world = World::new();
        let caller = world.join("caller", &["f"]);
        let mut callees: Vec<_> = NAMES.iter().map(|name| world.join(name, &["f", "g"])).collect();
        let mut open: Vec<(PeerId, u64)> = Vec::new();
        let mut ended = BTreeMap::new();
        let mut expected = BTreeMap::new();
        for id in 0..60 {
            let broadcast = random.chance(5);
            if random.chance(6)
                && let Some(callee) = callees.first()
            {
                world.out.full.insert(*callee);
            } else {
                world.out.full.clear();
            }
            let name = ["f", "g", "h"][random.below(3) as usize];
            world.send(caller, &Frame::Request(Request { broadcast, ..request(id, name) }));
            let targets = world.out.sent.get(&caller).into_iter().flatten().find_map(|bytes| {
                let Frame::Targets(targets) = decode(bytes) else { return None };
                (targets.id == id).then(|| targets.nodes.lines().count())
            });
            for part in 0..targets.unwrap_or(1) {
                expected.insert((id, part as u32), 1);
            }
            outcomes(&mut world, caller, &mut ended);
            for callee in &callees {
                for bytes in world.out.sent.remove(callee).unwrap_or_default() {
                    if let Frame::Request(request) = decode(&bytes) {
                        open.push((*callee, request.id));
                    }
                }
            }
            if !open.is_empty() && random.chance(2) {
                let (callee, id) = open.swap_remove(random.below(open.len() as u64) as usize);
                // Sometimes answered twice, which must not count twice.
                for _ in 0..=random.below(2) {
                    if random.chance(2) {
                        world.reply(callee, id, "done");
                    } else {
                        world.send(callee, &failure(id, FaultKind::Failed));
                    }
                }
            }
            if random.chance(25) && !callees.is_empty() {
                let callee = callees.swap_remove(random.below(callees.len() as u64) as usize);
                world.gone(callee);
                open.retain(|(peer, _)| *peer != callee);
            }
        }
        for (callee, id) in open {
            world.reply(callee, id, "done");
        }
        outcomes(&mut world, caller, &mut ended);
        assert_eq!(ended, expected, "seed {seed}");
        world.assert_idle();
    }
}

#[test]
fn the_same_seed_does_the_same() {
    let run = || {
        let mut random = Random(1);
        let mut world = World::with(|config| config.strategy = Strategy::Random);
        let caller = world.join("caller", &[]);
        let callees: Vec<_> = (0..20).map(|n| world.join(&format!("n{n}"), &["f"])).collect();
        for id in 0..200 {
            let one_way = random.chance(2);
            world.send(caller, &Frame::Request(Request { one_way, ..request(id, "f") }));
        }
        world.gone(caller);
        callees.iter().map(|callee| world.said(*callee)).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}
