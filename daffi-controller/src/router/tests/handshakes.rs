use daffi_core::{
    fault::FaultKind,
    frame::{Question, Refuse, Targets, Welcome},
    heartbeat::Heartbeat,
};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn welcome_says_what_the_node_has_to_know() {
    let mut world = World::with(|config| config.limits.payload_bytes_max = 1234);
    let a = world.connect();
    world.hello(a, "a", 1);
    let frames = world.out.sent.remove(&a).unwrap();
    let expected =
        Welcome { version: 1, capabilities: 0, node: 1, heartbeat_ms: 5000, payload_bytes_max: 1234 };
    assert_eq!(decode(&frames[0]), Frame::Welcome(expected));
}

#[test]
fn versions_and_names_that_do_not_fit_are_refused() {
    let mut world = World::new();
    for (min, max) in [(2, 3), (0, 0), (3, 0)] {
        let peer = world.connect();
        let Frame::Hello(hello) = hello("a", 1) else { unreachable!() };
        world.send(peer, &Frame::Hello(Hello { version_min: min, version_max: max, ..hello }));
        let sent = world.out.sent.remove(&peer).unwrap();
        let Frame::Refuse(Refuse { code, reason }) = decode(&sent[0]) else { panic!() };
        assert_eq!(code, RefuseCode::Version);
        assert!(reason.contains("1 to 1") && reason.contains(&format!("{min} to {max}")), "{reason}");
    }
    for name in ["", "a\nb", "daffi.x"] {
        let peer = world.connect();
        world.hello(peer, name, 1);
        assert_eq!(world.said(peer), ["REFUSE InvalidName"]);
    }
    assert_eq!(world.router.sizes().peers, 0);
}

#[test]
fn silence_instead_of_hello_ends_the_connection() {
    let mut world = World::new();
    let silent = world.connect();
    world.advance(4 * SECOND);
    let node = world.join("a", &[]);
    assert!(world.out.closed.is_empty());
    world.advance(SECOND);
    assert!(world.out.closed[&silent].contains("no HELLO within 5s"));
    world.advance(4 * SECOND);
    assert!(!world.out.closed.contains_key(&node));
}

#[test]
fn connections_and_handshakes_are_counted() {
    let mut world = World::with(|config| {
        config.limits.handshakes_max = 2;
        config.limits.connections_max = 3;
    });
    let first = world.connect();
    world.connect();
    assert!(world.router.connected("test", world.now).unwrap_err().reason.contains("handshakes"));
    world.hello(first, "a", 1);
    world.connect();
    assert!(world.router.connected("test", world.now).unwrap_err().reason.contains("connections"));
    world.gone(first);
    assert!(world.router.connected("test", world.now).is_err(), "two handshakes are still open");
    world.advance(5 * SECOND);
    world.connect();
}

#[test]
fn a_living_node_keeps_its_name() {
    let mut world = World::new();
    let older = world.join("a", &[]);
    let newcomer = world.connect();
    world.hello(newcomer, "a", 999);
    assert_eq!(world.said(older), ["PING"]);
    assert_eq!(world.said(newcomer), [""; 0]);
    world.send(older, &Frame::Pong { id: 0 });
    assert_eq!(world.said(newcomer), ["REFUSE NameTaken"]);
    world.advance(2 * SECOND);
    assert!(!world.out.closed.contains_key(&older));
}

#[test]
fn a_silent_node_loses_its_name_after_a_second() {
    let mut world = World::new();
    let caller = world.join("caller", &[]);
    let older = world.join("a", &["f"]);
    world.call(caller, 1, "f");
    world.id_at(older);
    let newcomer = world.connect();
    let third = world.connect();
    world.hello(newcomer, "a", 999);
    world.hello(third, "a", 998);
    world.said(older);
    world.advance(Duration::from_millis(999));
    assert_eq!(world.said(newcomer), [""; 0]);
    world.advance(Duration::from_millis(1));
    assert_eq!(world.said(older), ["REFUSE NameTaken"]);
    assert_eq!(world.said(caller), ["FAILURE 1.0 RemoteStopped on a"]);
    // The next in line must ask the node that now has the name.
    assert_eq!(world.said(newcomer), ["WELCOME", "PING"]);
    world.send(newcomer, &Frame::Pong { id: 0 });
    assert_eq!(world.said(third), ["REFUSE NameTaken"]);
    // What the older node says when it wakes up means nothing.
    world.reply(older, 1, "late");
    assert_eq!(world.said(caller), [""; 0]);
}

#[test]
fn what_a_dead_node_had_sent_does_not_keep_its_name() {
    let mut world = World::new();
    world.join("b", &["f"]);
    let older = world.join("a", &[]);
    let newcomer = world.connect();
    world.hello(newcomer, "a", 999);
    world.call(older, 1, "f");
    world.send(older, &Frame::Ping { id: 7 });
    world.send(older, &Frame::Pong { id: 7 });
    assert_eq!(world.said(newcomer), [""; 0]);
    world.advance(SECOND);
    assert_eq!(world.said(newcomer), ["WELCOME"]);
}

#[test]
fn a_claim_ends_with_either_side() {
    let mut world = World::new();
    let older = world.join("a", &[]);
    let newcomer = world.connect();
    world.hello(newcomer, "a", 999);
    world.gone(newcomer);
    world.advance(2 * SECOND);
    assert!(!world.out.closed.contains_key(&older), "nobody wants its name any more");
    let newcomer = world.connect();
    world.hello(newcomer, "a", 999);
    world.gone(older);
    assert_eq!(world.said(newcomer), ["WELCOME"]);
    let successor = world.connect();
    world.hello(successor, "a", 1000);
    world.send(newcomer, &Frame::Goodbye { reason: "restart" });
    assert_eq!(world.said(successor), ["WELCOME"], "who leaves gives up its name");
}

#[test]
fn a_new_connection_of_the_same_process_replaces_the_old_one() {
    let mut world = World::new();
    let old = world.connect();
    world.hello(old, "a", 77);
    world.register(old, &["f"]);
    let new = world.connect();
    world.hello(new, "a", 77);
    assert!(world.out.closed.contains_key(&old));
    assert_eq!(world.said(new), ["WELCOME"]);
    world.gone(old);
    assert_eq!(world.router.sizes().names, 1, "the end of the old one does not take the name along");
}

/// What every frame does in every stage: whether it closes the connection.
#[test]
fn frames_out_of_turn_end_the_connection() {
    let welcome = Welcome { version: 1, capabilities: 0, node: 1, heartbeat_ms: 1, payload_bytes_max: 1 };
    let offers = Offers::parse(&[]).unwrap();
    let frames = [
        ("HELLO", hello("n", 5)),
        ("WELCOME", Frame::Welcome(welcome)),
        ("REFUSE", Frame::Refuse(Refuse { code: RefuseCode::Version, reason: "" })),
        ("REGISTER", Frame::Register(Register { id: 1, more: false, offers })),
        ("REGISTERED", Frame::Registered { id: 1 }),
        ("REQUEST", Frame::Request(request(1, "f"))),
        ("REPLY", reply(1, "x")),
        ("FAILURE", failure(1, FaultKind::Failed)),
        ("TARGETS", Frame::Targets(Targets { id: 1, nodes: "" })),
        ("CANCEL", Frame::Cancel { id: 1 }),
        ("CHUNK", chunk(1, false, true, "x")),
        ("CREDIT", Frame::Credit { id: 1, reply: true, part: 0, bytes: 1 }),
        ("ASK", Frame::Ask { id: 1, codec: 0, question: Question::Processes }),
        ("PING", Frame::Ping { id: 1 }),
        ("PONG", Frame::Pong { id: 1 }),
        ("GOODBYE", Frame::Goodbye { reason: "" }),
    ];
    let always = ["PING", "PONG"];
    let of_nodes = [
        "REGISTER", "REQUEST", "REPLY", "FAILURE", "CANCEL", "CHUNK", "CREDIT", "ASK", "PING", "PONG",
        "GOODBYE",
    ];
    let greeting = [&always[..], &["HELLO"]].concat();
    // A goodbye before the welcome also ends the connection, but without a complaint.
    let stages: [(&str, &[&str]); 5] = [
        ("greeting", &greeting),
        ("claiming", &always),
        ("welcomed", &of_nodes),
        ("joined", &of_nodes),
        ("leaving", &of_nodes),
    ];
    for (stage, allowed) in stages {
        for (kind, frame) in &frames {
            let mut world = World::new();
            world.join("taken", &[]);
            let peer = world.connect();
            if stage != "greeting" {
                world.hello(peer, if stage == "claiming" { "taken" } else { "n" }, 5);
            }
            if stage == "joined" || stage == "leaving" {
                world.register(peer, &[]);
            }
            if stage == "leaving" {
                world.send(peer, &Frame::Goodbye { reason: "" });
            }
            world.said(peer);
            world.send(peer, frame);
            let closed = world.out.closed.contains_key(&peer);
            assert_eq!(closed, !allowed.contains(kind), "{kind} while {stage}");
            if closed && *kind != "GOODBYE" {
                assert_eq!(world.said(peer), ["REFUSE Protocol"], "{kind} while {stage}");
            }
        }
    }
}

#[test]
fn registrations_are_checked() {
    let many: Vec<String> = (0..4).map(|n| format!("f{n}")).collect();
    let many: Vec<(u32, &str, u64)> =
        many.iter().enumerate().map(|(n, name)| (n as u32, &**name, 0)).collect();
    for (offers, words) in [
        (&[(0, "f", 0), (1, "f", 0)][..], "two of its callbacks are named \"f\""),
        (&[(0, "daffi.x", 0)], "reserved"),
        (&[(0, "", 0)], "empty"),
        (&many, "more than 3 callbacks"),
    ] {
        let mut world = World::with(|config| config.limits.callbacks_max = 3);
        let peer = world.connect();
        world.hello(peer, "a", 1);
        world.register_as(peer, offers, false);
        assert!(world.out.closed[&peer].contains(words), "{:?}", world.out.closed);
        assert_eq!(world.router.sizes().callbacks, 0);
    }
    let mut world = World::with(|config| config.limits.callbacks_max = 3);
    let peer = world.join("a", &["f", "g"]);
    world.register_as(peer, &[(7, "h", 0), (8, "i", 0)], false);
    assert!(world.out.closed.contains_key(&peer), "several registrations count together");
}

#[test]
fn an_index_that_gets_another_name_loses_the_first() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    world.register(b, &["g"]);
    world.said(b);
    world.call(a, 1, "f");
    assert_eq!(world.fault_at(a).kind, FaultKind::NoCandidate);
    world.call(a, 2, "g");
    world.id_at(b);
}

#[test]
fn pings_need_answers_and_nothing_else_counts() {
    let mut world = World::new();
    let (a, b) = (world.join("a", &[]), world.join("b", &["f"]));
    world.call(a, 1, "f");
    world.id_at(b);
    let interval = Heartbeat::interval(5 * SECOND);
    let begin = world.now.mono;
    for id in 1..3 {
        let next = world.advance(interval).unwrap();
        assert!(next <= world.now.mono + interval);
        assert_eq!(world.said(a), ["PING"]);
        assert_eq!(world.said(b), ["PING"]);
        world.send(a, &Frame::Pong { id });
        // One direction of the connection works, which proves nothing about the other.
        world.send(b, &Frame::Ping { id: 1 });
        // Nor does an answer to a ping that was never sent.
        for stray in [0, id + 1, u64::MAX] {
            world.send(b, &Frame::Pong { id: stray });
        }
        world.said(b);
    }
    world.advance(interval);
    assert!(world.out.closed[&b].contains("no sign of life for 15s"));
    assert!(world.now.mono - begin < 15 * SECOND, "it may have stopped at the very beginning");
    assert_eq!(world.said(a), ["PING", "FAILURE 1.0 RemoteStopped on b"]);
    for id in 3..100 {
        world.send(a, &Frame::Pong { id });
        world.advance(interval);
    }
    assert!(!world.out.closed.contains_key(&a));
}

#[test]
fn a_late_tick_pings_each_node_once() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    world.advance(3600 * SECOND);
    assert_eq!(world.said(a), ["PING"]);
    assert!(world.out.closed.is_empty());
}

#[test]
fn a_ping_is_answered_at_once() {
    let mut world = World::new();
    let a = world.connect();
    world.send(a, &Frame::Ping { id: 42 });
    assert_eq!(world.said(a), ["PONG 42"]);
}

#[test]
fn a_name_has_one_node_when_its_process_connects_anew_while_another_claims_it() {
    let mut world = World::new();
    let old = world.connect();
    world.hello(old, "a", 1);
    let claimant = world.connect();
    world.hello(claimant, "a", 2);
    let anew = world.connect();
    world.hello(anew, "a", 1);
    assert!(world.out.closed.contains_key(&old));
    assert!(world.router.is_welcomed(anew));
    assert!(!world.router.is_welcomed(claimant));
    world.send(anew, &Frame::Pong { id: 0 });
    assert_eq!(world.said(claimant), ["REFUSE NameTaken"]);
}

#[test]
fn the_signatures_of_a_node_take_up_so_much_and_no_more() {
    let mut world = World::new();
    let peer = world.join("a", &[]);
    let signature = "s".repeat(4096);
    // Twice, so that the second set replaces the first.
    for _ in 0..2 {
        for first in (0..8192).step_by(16) {
            let mut bytes = Vec::new();
            for index in first..first + 16 {
                let name = format!("f{index}");
                let offer = Offer { index, fingerprint: 0, ready: true, name: &name, signature: &signature };
                Offers::push(&mut bytes, &offer);
            }
            let offers = Offers::parse(&bytes).unwrap();
            world.send(peer, &Frame::Register(Register { id: 1, more: false, offers }));
            assert!(world.router.registry.signature_bytes_of(peer) <= 16 << 20);
        }
        assert_eq!(world.router.registry.count_of(peer), 8192, "all can be called all the same");
    }
    assert!(world.router.registry.signature_bytes_of(peer) >= (16 << 20) - 4096 * 16);
    world.gone(peer);
    assert_eq!(world.router.registry.signature_bytes_of(peer), 0);
}
