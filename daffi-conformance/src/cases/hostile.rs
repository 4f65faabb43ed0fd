use daffi_core::{
    Limits,
    controller::Controller,
    fault::{Fault, FaultKind},
    frame::{
        Body, Chunk, Failure, Frame, Offers, Question, Refuse, RefuseCode, Register, Reply, Request, Targets,
        Welcome,
    },
    limits::{FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX},
};

use crate::{Bench, Call, Offered, PATIENCE, Wire, offer};

/// A controller that closes no connection for a slow handshake, but only for what is said in it.
fn bench(controller: &dyn Controller) -> Bench {
    Bench::with(controller, Limits { handshake_timeout: 12 * PATIENCE, ..Limits::default() })
}

/// Checks that `attack` gets its connection closed, and that two existing nodes can still call each other.
fn check(bench: &Bench, why: &str, attack: impl Fn(&mut Wire)) {
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let mut wire = bench.wire();
    attack(&mut wire);
    wire.expect_closed(why);
    let id = caller.call(&Call::new("f"));
    // Calls from the attacker may come first.
    while callee.echo().caller != "caller" {}
    caller.expect_value(id);
    // The next check reuses the names.
    for node in [callee, caller] {
        let name = node.name().to_owned();
        node.die();
        super::until_gone(bench, &name);
    }
}

/// Like [`check`], but after a handshake.
fn check_open(bench: &Bench, why: &str, attack: impl Fn(&mut Wire)) {
    check(bench, why, |wire| {
        wire.hello("attacker", 66);
        wire.expect_welcome();
        attack(wire);
    });
}

fn request(id: u64) -> Frame<'static> {
    Frame::Request(Request::new(id, "f", Body::default()))
}

fn head(length: u32, kind: u8) -> Vec<u8> {
    let mut head = length.to_le_bytes().to_vec();
    head.extend_from_slice(&[kind, 0, 0, 0]);
    head.extend_from_slice(&[0; 8]);
    head
}

pub(crate) fn a_length_over_the_limit_closes_at_once(controller: &dyn Controller) {
    let bench = bench(controller);
    for length in [HANDSHAKE_BYTES_MAX as u32 + 1, FRAME_BYTES_MAX as u32, u32::MAX] {
        check(&bench, "its handshake is too long", |wire| wire.send_bytes(&head(length, 1)));
    }
    for length in [FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
        check_open(&bench, "its frame is too long", |wire| wire.send_bytes(&head(length, 6)));
    }
}

pub(crate) fn other_protocols_are_closed(controller: &dyn Controller) {
    let bench = bench(controller);
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\x00\x00\x00",
        b"SSH-2.0-OpenSSH_9.7\r\n\r\n",
    ] {
        check(&bench, "it speaks another protocol", |wire| wire.send_bytes(bytes));
    }
}

pub(crate) fn random_bytes_are_closed(controller: &dyn Controller) {
    let bench = bench(controller);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..20 {
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(200)
        .collect();
        let mut wire = bench.wire();
        wire.send_bytes(&bytes);
        wire.expect_closed("it sent noise");
        let mut wire = bench.wire();
        wire.hello("noise", 1);
        wire.expect_welcome();
        // Begins with bytes that make the length too large, so that the controller does not wait for more.
        wire.send_bytes(&[&[0xff; 4][..], &bytes].concat());
        wire.expect_closed("it sent noise");
        super::until_gone(&bench, "noise");
    }
}

pub(crate) fn nothing_comes_before_the_hello(controller: &dyn Controller) {
    let bench = bench(controller);
    for frame in [
        request(1),
        Frame::Ask { id: 1, codec: 1, question: Question::Processes },
        Frame::Register(Register {
            id: 1,
            more: false,
            offers: Offers::parse(b"").expect("no offers are offers"),
        }),
        Frame::Goodbye { reason: "" },
    ] {
        check(&bench, "it did not say hello", |wire| wire.send(&frame));
    }
}

pub(crate) fn a_hello_without_the_magic_is_closed(controller: &dyn Controller) {
    let bench = bench(controller);
    check(&bench, "its HELLO is of another protocol", |wire| {
        wire.send_bytes(&head(23, 1));
        wire.send_bytes(b"DAFX\x01\0\x01\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0");
    });
}

pub(crate) fn frames_of_a_controller_close_a_node(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let welcome = Welcome { version: 1, capabilities: 0, node: 1, heartbeat_ms: 1, payload_bytes_max: 1 };
    for frame in [
        Frame::Welcome(welcome),
        Frame::Refuse(Refuse { code: RefuseCode::Protocol, reason: "" }),
        Frame::Registered { id: 1 },
        Frame::Targets(Targets { id: 1, nodes: "a" }),
    ] {
        check_open(&bench, "it spoke like a controller", |wire| wire.send(&frame));
    }
}

pub(crate) fn a_second_hello_closes(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    check_open(&bench, "it said hello twice", |wire| wire.hello("attacker", 66));
}

pub(crate) fn malformed_frames_close(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    check_open(&bench, "its frame has no such kind", |wire| wire.send_bytes(&head(0, 99)));
    check_open(&bench, "its request ends early", |wire| {
        wire.send_bytes(&head(3, 6));
        wire.send_bytes(&[0; 3]);
    });
    check_open(&bench, "its question is none", |wire| {
        wire.send_bytes(&head(1, 13));
        wire.send_bytes(&[99]);
    });
    check_open(&bench, "its text is not UTF-8", |wire| {
        wire.send_bytes(&head(1, 16));
        wire.send_bytes(&[0xff]);
    });
    check_open(&bench, "its payload is of another size", |wire| {
        let mut bytes = request(1).to_bytes().to_vec();
        bytes[16 + 20] = 1;
        wire.send_bytes(&bytes);
    });
}

pub(crate) fn half_a_frame_and_the_end_do_no_harm(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    check_open(&bench, "it closed", |wire| {
        wire.send_bytes(&request(1).to_bytes()[..20]);
        wire.close();
    });
}

pub(crate) fn an_id_in_flight_is_not_used_again(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    check_open(&bench, "it used the id of its call again", |wire| {
        wire.send(&request(1));
        wire.send(&request(1));
    });
    check_open(&bench, "it used the id of its question again", |wire| {
        for _ in 0..2 {
            let question = Question::WaitProcess { name: "nobody" };
            wire.send(&Frame::Ask { id: 1, codec: 1, question });
        }
    });
}

pub(crate) fn a_node_offers_a_name_once(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut watcher = bench.node("watcher", &[]);
    let mut node = bench.node("node", &["f"]);
    let id = node.fresh_id();
    node.send_register(id, &[Offered { index: Some(9), ..offer("f") }], false);
    node.expect_closed();
    watcher.settle();
}

pub(crate) fn a_result_comes_in_order_and_once(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut caller = bench.node("caller", &[]);
    // A chunk before its REPLY, and a second REPLY before the first one is complete.
    for (name, begun) in [("a", false), ("b", true)] {
        let mut liar = bench.node(name, &["f"]);
        let id = caller.call(&Call::new("f").on(name));
        let served = liar.expect_request();
        let body = Body::borrowed(b"x");
        let reply = Frame::Reply(Reply { id: served.id, more: true, part: 0, codec: 0, total: 9, body });
        if begun {
            liar.send(&reply);
            liar.send(&reply);
        } else {
            liar.send(&Frame::Chunk(Chunk { id: served.id, reply: true, more: true, part: 0, body }));
        }
        liar.expect_closed();
        let fault = caller.expect("a FAILURE", |frame| match frame {
            Frame::Failure(failure) if failure.id == id => Some(failure.fault.kind),
            _ => None,
        });
        assert_eq!(fault, FaultKind::RemoteStopped);
    }
}

/// Answers to calls that a node never got, in every form, with ids that belong to others.
pub(crate) fn forged_answers_do_no_harm(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f"));
    let served = callee.expect_request();
    let mut forger = bench.wire();
    forger.hello("forger", 1);
    forger.expect_welcome();
    for guess in (0..200).chain([served.id, id, served.id ^ 1 << 32]) {
        for part in [0, 1, u32::MAX] {
            let body = Body::borrowed(b"forged");
            forger.send(&Frame::Reply(Reply { id: guess, more: false, part, codec: 0, total: 6, body }));
            let fault = Box::new(Fault::new(FaultKind::Failed, "forged"));
            forger.send(&Frame::Failure(Failure { id: guess, part, fault }));
        }
    }
    callee.settle();
    callee.reply(&served, b"true");
    assert_eq!(caller.expect_value(id), "true");
    caller.expect_no_outcome(id);
}
