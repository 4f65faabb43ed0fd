use daffi_core::fault::FaultKind;

use super::*;

fn everybody(id: u64) -> Request<'static> {
    Request { broadcast: true, ..request(id, "f") }
}

/// A caller that also offers the callback, and three others that do.
fn world() -> (World, PeerId, [PeerId; 3]) {
    let mut world = World::new();
    let caller = world.join("caller", &["f"]);
    let others = ["x", "y", "z"].map(|name| world.join(name, &["f"]));
    world.join("other", &["g"]);
    (world, caller, others)
}

#[test]
fn everybody_but_the_caller_answers_for_itself() {
    let (mut world, caller, [x, y, z]) = world();
    world.send(caller, &Frame::Request(everybody(1)));
    assert_eq!(world.said(caller), ["TARGETS 1: x y z"]);
    let ids = [x, y, z].map(|peer| world.id_at(peer));
    world.reply(z, ids[2], "from z");
    world.send(x, &failure(ids[0], FaultKind::Panicked));
    world.gone(y);
    assert_eq!(
        world.said(caller),
        ["REPLY 1.2: from z", "FAILURE 1.0 Panicked on x", "FAILURE 1.1 RemoteStopped on y"]
    );
    world.assert_idle();
}

#[test]
fn outcomes_wait_for_the_last_one() {
    let (mut world, caller, others) = world();
    world.send(caller, &Frame::Request(everybody(1)));
    let ids = others.map(|peer| world.id_at(peer));
    let waiting = |world: &World| world.out.soon.get(&caller).copied().unwrap_or_default();
    assert_eq!(waiting(&world), 0, "TARGETS say who there was when it was called");
    for (after, want) in [1, 2, 0].into_iter().enumerate() {
        world.reply(others[after], ids[after], "it");
        assert_eq!(waiting(&world), want);
    }
}

#[test]
fn one_target_in_trouble_is_one_entry() {
    let (mut world, caller, [x, y, z]) = world();
    world.register_as(y, &[(0, "f", 2 << 32)], false);
    world.said(y);
    world.out.full.insert(z);
    world.send(caller, &Frame::Request(Request { fingerprint: 1 << 32, ..everybody(1) }));
    assert_eq!(
        world.said(caller),
        ["TARGETS 1: x y z", "FAILURE 1.1 SignatureMismatch on y", "FAILURE 1.2 Overloaded on z"]
    );
    let id = world.id_at(x);
    world.reply(x, id, "x");
    assert_eq!(world.said(caller), ["REPLY 1.0: x"]);
    world.assert_idle();
}

#[test]
fn named_targets_each_have_an_entry() {
    let (mut world, caller, [_, y, _]) = world();
    world.send(caller, &Frame::Request(Request { node: "nobody\nother\ny\ny\ncaller", ..everybody(1) }));
    assert_eq!(
        world.said(caller),
        [
            "TARGETS 1: nobody other y caller",
            "FAILURE 1.0 NoProcess on nobody",
            "FAILURE 1.1 NoCandidate on other",
            "FAILURE 1.3 NoCandidate on caller"
        ]
    );
    let id = world.id_at(y);
    world.reply(y, id, "y");
    assert_eq!(world.said(caller), ["REPLY 1.2: y"]);
    world.assert_idle();
}

#[test]
fn nobody_at_all_is_a_failure_of_the_whole() {
    let mut world = World::new();
    let caller = world.join("caller", &["f"]);
    for one_way in [false, true] {
        world.send(caller, &Frame::Request(Request { one_way, ..everybody(1) }));
        assert_eq!(world.said(caller), ["FAILURE 1.0 NoCandidate on "]);
    }
    world.join("x", &["!f"]);
    world.send(caller, &Frame::Request(everybody(2)));
    assert_eq!(world.said(caller), ["FAILURE 2.0 NoInstance on x"]);
    world.assert_idle();
}

#[test]
fn without_answers_the_targets_are_the_acknowledgement() {
    let (mut world, caller, [x, y, z]) = world();
    world.out.full.insert(z);
    world.send(caller, &Frame::Request(Request { one_way: true, ..everybody(1) }));
    assert_eq!(world.said(caller), ["TARGETS 1: x y z"]);
    assert_eq!((world.said(x).len(), world.said(y).len(), world.said(z).len()), (1, 1, 0));
    assert_eq!(world.router.counters().undelivered, 1);
    world.assert_idle();
}

#[test]
fn cancelling_and_dying_cancel_every_target_that_has_not_answered() {
    for dies in [false, true] {
        let (mut world, caller, peers) = world();
        world.send(caller, &Frame::Request(everybody(1)));
        let ids = peers.map(|peer| world.id_at(peer));
        world.reply(peers[0], ids[0], "x");
        if dies {
            world.gone(caller);
        } else {
            world.send(caller, &Frame::Cancel { id: 1 });
        }
        assert_eq!(world.said(peers[0]), [""; 0]);
        for at in [1, 2] {
            assert_eq!(world.said(peers[at]), [format!("CANCEL {}", ids[at])]);
        }
        world.reply(peers[1], ids[1], "late");
        assert_eq!(world.router.counters().late_replies, 1);
        world.assert_idle();
    }
}

#[test]
fn chunks_go_to_all_at_the_pace_of_the_slowest() {
    let (mut world, caller, [x, y, z]) = world();
    world.send(caller, &Frame::Request(Request { more: true, total: 12, ..everybody(1) }));
    world.said(caller);
    let [xi, yi, zi] = [x, y, z].map(|peer| world.id_at(peer));
    let credit = |id, bytes| Frame::Credit { id, reply: false, part: 0, bytes };
    world.send(x, &credit(xi, 100));
    world.send(y, &credit(yi, 50));
    assert_eq!(world.said(caller), [""; 0], "z has given none");
    world.send(z, &credit(zi, 70));
    assert_eq!(world.said(caller), ["CREDIT 1.0 request: 50"]);
    // The slowest one is lost and no longer holds up the others.
    world.gone(y);
    assert_eq!(world.said(caller), ["FAILURE 1.1 RemoteStopped on y", "CREDIT 1.0 request: 20"]);
    world.send(caller, &chunk(1, false, true, "four"));
    world.out.full.insert(z);
    world.send(caller, &chunk(1, false, false, "more"));
    assert_eq!(world.said(caller), ["FAILURE 1.2 Overloaded on z", "CREDIT 1.0 request: 30"]);
    // The last chunk has left the router, but not arrived yet.
    world.send(x, &credit(xi, 8));
    assert_eq!(world.said(caller), ["CREDIT 1.0 request: 8"]);
    assert_eq!(
        world.said(x),
        [format!("CHUNK {xi}.0 request: four…"), format!("CHUNK {xi}.0 request: more")]
    );
    assert_eq!(world.said(z), [format!("CHUNK {zi}.0 request: four…"), format!("CANCEL {zi}")]);
    world.reply(x, xi, "x");
    assert_eq!(world.said(caller), ["REPLY 1.0: x"]);
    world.assert_idle();
}

#[test]
fn a_long_broadcast_that_nobody_takes_or_answers_gets_its_credit_back() {
    let (mut world, caller, peers) = world();
    world.out.full.extend(peers);
    let begin =
        Request { one_way: true, more: true, total: 12, body: Body::borrowed(b"one"), ..everybody(1) };
    world.send(caller, &Frame::Request(begin));
    assert_eq!(world.said(caller).last().unwrap(), "CREDIT 1.0 request: 3");
    world.assert_idle();
}

#[test]
fn long_results_carry_their_part_and_credit_finds_its_way() {
    let (mut world, caller, [x, y, z]) = world();
    world.send(caller, &Frame::Request(everybody(1)));
    world.said(caller);
    let [xi, yi, zi] = [x, y, z].map(|peer| world.id_at(peer));
    world.reply(x, xi, "x");
    world.reply(z, zi, "z");
    world.said(caller);
    let begin = Reply { id: yi, more: true, part: 9, codec: 0, total: 6, body: Body::borrowed(b"ab") };
    world.send(y, &Frame::Reply(begin));
    world.send(caller, &Frame::Credit { id: 1, reply: true, part: 1, bytes: 5 });
    world.send(caller, &Frame::Credit { id: 1, reply: true, part: 0, bytes: 5 });
    world.send(caller, &Frame::Credit { id: 1, reply: true, part: 77, bytes: 5 });
    assert_eq!(world.said(y), [format!("CREDIT {yi}.0 reply: 5")]);
    assert_eq!(world.said(x), [""; 0], "it has answered");
    world.send(y, &chunk(yi, true, false, "cdef"));
    assert_eq!(world.said(caller), ["REPLY 1.1: ab…", "CHUNK 1.1 reply: cdef"]);
    world.assert_idle();
}

#[test]
fn a_long_broadcast_without_answers_ends_with_its_last_chunk() {
    let (mut world, caller, peers) = world();
    world.send(caller, &Frame::Request(Request { more: true, one_way: true, total: 8, ..everybody(1) }));
    assert_eq!(world.router.sizes().routes, 3);
    world.send(caller, &chunk(1, false, false, "rest"));
    assert_eq!(peers.map(|peer| world.said(peer).len()), [2, 2, 2]);
    assert_eq!(world.said(caller), ["TARGETS 1: x y z"]);
    world.assert_idle();
}

#[test]
fn a_long_broadcast_that_nobody_answers_or_takes_gets_its_credit_back() {
    let (mut world, caller, peers) = world();
    let request = everybody(1);
    let first = request.body.len();
    world.send(caller, &Frame::Request(Request { more: true, one_way: true, total: 20, ..request }));
    assert_eq!(world.said(caller), ["TARGETS 1: x y z"]);
    for peer in peers {
        assert_eq!(world.said(caller), [""; 0]);
        world.gone(peer);
    }
    assert_eq!(world.said(caller), [format!("CREDIT 1.0 request: {first}")]);
    world.assert_idle();
}

#[test]
fn more_names_than_a_frame_holds_are_refused() {
    let mut world = World::new();
    let caller = world.join("caller", &[]);
    for n in 0..300 {
        world.join(&format!("{n:0250}"), &["f"]);
    }
    world.send(caller, &Frame::Request(everybody(1)));
    let fault = world.fault_at(caller);
    assert_eq!(fault.kind, FaultKind::Refused);
    assert!(fault.message.contains("300 nodes"), "{}", fault.message);
    world.assert_idle();
}

#[test]
fn targets_count_as_calls_in_flight_until_they_answer() {
    let mut world = World::with(|config| config.limits.calls_in_flight_max = 8);
    let caller = world.join("caller", &[]);
    let callees = ["a", "b", "c"].map(|name| world.join(name, &["f"]));
    // Each counts as one call plus three that wait to be answered.
    for id in 1..3 {
        world.send(caller, &Frame::Request(everybody(id)));
        assert_eq!(world.said(caller), [format!("TARGETS {id}: a b c")]);
    }
    world.send(caller, &Frame::Request(everybody(3)));
    assert_eq!(world.fault_at(caller).kind, FaultKind::Overloaded);
    let answer = |world: &mut World, at: usize| {
        for frame in world.out.sent.remove(&callees[at]).unwrap_or_default() {
            if let Frame::Request(request) = decode(&frame) {
                world.reply(callees[at], request.id, "x");
            }
        }
        world.said(caller);
    };
    answer(&mut world, 0);
    world.send(caller, &Frame::Request(everybody(3)));
    assert_eq!(world.said(caller), ["TARGETS 3: a b c"]);
    // However they end, none of them is counted any more.
    world.send(caller, &Frame::Cancel { id: 3 });
    answer(&mut world, 1);
    world.gone(callees[2]);
    assert_eq!(world.router.peers.get(caller.0).unwrap().in_flight(), 0);
    world.assert_idle();
}
