use daffi_core::{
    controller::Controller,
    fault::{Fault, FaultKind},
    frame::{Body, Chunk, Failure, Frame, Reply},
    limits::{CHUNK_BYTES, STREAM_WINDOW_BYTES},
};

use super::until_nobody_offers;
use crate::{Bench, Call, Node, call::send_chunks};

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 253) as u8).collect()
}

pub(crate) fn large_payloads_go_both_ways(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    for length in [CHUNK_BYTES + 1, 5 * CHUNK_BYTES, 700_000] {
        let arguments = pattern(length);
        let id = caller.call(&Call::new("f").body(&arguments));
        let request = callee.expect_request();
        assert_eq!(request.total as usize, length);
        assert!(callee.expect_arguments(&request) == arguments, "the arguments are other bytes");
        let result = pattern(length + 7);
        callee.reply_in_chunks(&request, &result);
        assert!(caller.expect_result(id) == result, "the result is other bytes");
        caller.expect_no_outcome(id);
    }
}

/// Sends the chunks of `body` from `sender` to `receiver`, up to the window each time. The first chunk was
/// sent with the request or reply. Returns what the receiver got.
fn stream(
    (sender, sender_id): (&mut Node, u64),
    (receiver, receiver_id): (&mut Node, u64),
    reply: bool,
    body: &[u8],
) -> Vec<u8> {
    let mut got = body[..CHUNK_BYTES].to_vec();
    let mut sent = CHUNK_BYTES;
    let mut window = STREAM_WINDOW_BYTES;
    while got.len() < body.len() {
        while sent < window.min(body.len()) {
            let end = (sent + CHUNK_BYTES).min(window).min(body.len());
            let more = end < body.len();
            let part = Body::borrowed(&body[sent..end]);
            sender.send(&Frame::Chunk(Chunk { id: sender_id, reply, more, part: 0, body: part }));
            sent = end;
        }
        let mut bytes = if got.len() == CHUNK_BYTES { CHUNK_BYTES } else { 0 };
        while got.len() < sent {
            let (chunk, _) = receiver.expect_chunk(receiver_id, reply);
            got.extend_from_slice(&chunk);
            bytes += chunk.len();
        }
        if got.len() < body.len() {
            receiver.send(&Frame::Credit { id: receiver_id, reply, part: 0, bytes: bytes as u32 });
            let mut given = 0;
            // It may arrive in pieces, but must add up exactly.
            while given < bytes {
                given += sender.expect("CREDIT", |frame| match frame {
                    Frame::Credit { id, reply: of, part: 0, bytes } if (*id, *of) == (sender_id, reply) => {
                        Some(*bytes as usize)
                    }
                    _ => None,
                });
            }
            assert_eq!(given, bytes);
            window += given;
        }
    }
    got
}

pub(crate) fn credit_goes_back_to_the_sender(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let body = pattern(2 * STREAM_WINDOW_BYTES + 12_345);
    let total = body.len() as u32;

    let id = caller.fresh_id();
    let first = Call::new("f").body(&body[..CHUNK_BYTES]);
    first.send_announcing(id, total, |frame| caller.send(frame));
    let request = callee.expect_request();
    let got = stream((&mut caller, id), (&mut callee, request.id), false, &body);
    assert!(got == body, "the arguments are other bytes");

    callee.send(&Frame::Reply(Reply {
        id: request.id,
        more: true,
        part: 0,
        codec: 0,
        total,
        body: Body::borrowed(&body[..CHUNK_BYTES]),
    }));
    caller.expect("a REPLY", |frame| matches!(frame, Frame::Reply(reply) if reply.id == id).then_some(()));
    let got = stream((&mut callee, request.id), (&mut caller, id), true, &body);
    assert!(got == body, "the result is other bytes");
}

pub(crate) fn a_small_call_overtakes_a_large_one(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f", "g"]);
    let mut caller = bench.node("caller", &[]);
    let body = pattern(4 * CHUNK_BYTES);
    let large = caller.fresh_id();
    let (begin, rest) = body.split_at(CHUNK_BYTES);
    Call::new("f").body(begin).send_announcing(large, body.len() as u32, |frame| caller.send(frame));

    // The large call is well under way, and yet:
    let small = caller.call(&Call::new("g").body(b"small"));
    let large_request = callee.expect_request();
    assert_eq!(callee.echo().name, "g");
    assert_eq!(caller.expect_value(small), "small");

    send_chunks(large, false, rest, |frame| caller.send(frame));
    assert!(callee.expect_arguments(&large_request) == body, "the arguments are other bytes");
    callee.reply(&large_request, b"done");
    caller.expect_value(large);
}

pub(crate) fn payloads_do_not_mix(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut callers = [bench.node("one", &[]), bench.node("two", &[])];
    let bodies = [vec![1; 3 * CHUNK_BYTES], vec![2; 3 * CHUNK_BYTES]];
    let ids = callers.each_mut().map(Node::fresh_id);
    for at in 0..2 {
        let call = Call::new("f").body(&bodies[at][..CHUNK_BYTES]);
        call.send_announcing(ids[at], bodies[at].len() as u32, |frame| callers[at].send(frame));
    }
    for step in 1..3 {
        for at in 0..2 {
            let body = Body::borrowed(&bodies[at][..CHUNK_BYTES]);
            callers[at].send(&Frame::Chunk(Chunk {
                id: ids[at],
                reply: false,
                more: step < 2,
                part: 0,
                body,
            }));
        }
    }
    for _ in 0..2 {
        let request = callee.expect_request();
        let at = usize::from(request.caller == "two");
        assert!(callee.expect_arguments(&request) == bodies[at], "bytes of one call got into the other");
        callee.reply(&request, request.caller.as_bytes());
    }
    assert_eq!(callers[0].expect_value(ids[0]), "one");
    assert_eq!(callers[1].expect_value(ids[1]), "two");
}

pub(crate) fn arguments_of_another_size_than_announced_close_the_connection(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut bystander = bench.node("bystander", &[]);
    let body = [7; 1000];
    // Too much at the end, too little at the end, and `more` with nothing left to come.
    for (liar, length, more) in [("a", 600, false), ("b", 400, false), ("c", 500, true)] {
        let mut liar = bench.node(liar, &[]);
        let id = liar.fresh_id();
        Call::new("f").body(&body[..500]).send_announcing(id, 1000, |frame| liar.send(frame));
        let request = callee.expect_request();
        let body = Body::borrowed(&body[..length]);
        liar.send(&Frame::Chunk(Chunk { id, reply: false, more, part: 0, body }));
        liar.expect_closed();
        callee.expect_cancel(&request);
    }
    let id = bystander.call(&Call::new("f"));
    callee.echo();
    bystander.expect_value(id);
}

pub(crate) fn a_result_of_another_size_than_announced_closes_the_connection(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut caller = bench.node("caller", &[]);
    for (liar, length, more) in [("a", 600, false), ("b", 400, false), ("c", 500, true)] {
        let mut liar = bench.node(liar, &["f"]);
        let id = caller.call(&Call::new("f").on(liar.name()));
        let request = liar.expect_request();
        let body = Body::borrowed(&[7; 500]);
        liar.send(&Frame::Reply(Reply { id: request.id, more: true, part: 0, codec: 0, total: 1000, body }));
        let rest = vec![7; length];
        let body = Body::borrowed(&rest);
        liar.send(&Frame::Chunk(Chunk { id: request.id, reply: true, more, part: 0, body }));
        liar.expect_closed();
        // The caller gets the beginning of a value, and then the failure.
        let fault = caller.expect("a FAILURE", |frame| match frame {
            Frame::Failure(failure) if failure.id == id => Some((*failure.fault).clone()),
            _ => None,
        });
        assert_eq!(fault.kind, FaultKind::RemoteStopped);
    }
}

pub(crate) fn a_caller_that_dies_in_mid_payload_cancels(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.fresh_id();
    Call::new("f").body(&[7; 500]).send_announcing(id, 1000, |frame| caller.send(frame));
    let request = callee.expect_request();
    caller.die();
    callee.expect_cancel(&request);
}

pub(crate) fn a_large_one_way_call_ends_with_its_last_chunk(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let body = pattern(3 * CHUNK_BYTES);
    let id = caller.call(&Call::new("f").one_way().body(&body));
    let request = callee.expect_request();
    assert!(callee.expect_arguments(&request) == body, "the arguments are other bytes");
    // Its id is free again, because nothing more will follow.
    Call::new("f").body(b"again").send(id, |frame| caller.send(frame));
    callee.echo();
    assert_eq!(caller.expect_value(id), "again");

    // A call whose callee is lost on the way also fails silently.
    let id = caller.fresh_id();
    let begin = Call::new("f").one_way().body(&body[..CHUNK_BYTES]);
    begin.send_announcing(id, body.len() as u32, |frame| caller.send(frame));
    callee.expect_request();
    callee.die();
    until_nobody_offers(&mut caller, "f");
    caller.expect_no_outcome(id);
}

pub(crate) fn a_large_one_way_call_that_nobody_takes_gets_its_credit_back(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let body = pattern(CHUNK_BYTES);
    let total = 4 * CHUNK_BYTES as u32;
    let credited = |caller: &mut Node, call: u64| {
        caller.expect("CREDIT", |frame| match frame {
            Frame::Credit { id, reply: false, part: 0, bytes } if *id == call => Some(*bytes as usize),
            _ => None,
        })
    };

    // Its sender hears nothing else, and may be holding back everything it has for others.
    let id = caller.fresh_id();
    Call::new("nowhere").one_way().body(&body).send_announcing(id, total, |frame| caller.send(frame));
    assert_eq!(credited(&mut caller, id), CHUNK_BYTES);

    let id = caller.fresh_id();
    Call::new("f").one_way().body(&body).send_announcing(id, total, |frame| caller.send(frame));
    let request = callee.expect_request();
    callee.send(&Frame::Credit { id: request.id, reply: false, part: 0, bytes: 1000 });
    assert_eq!(credited(&mut caller, id), 1000);
    let fault = Box::new(Fault::new(FaultKind::Overloaded, "too much"));
    callee.send(&Frame::Failure(Failure { id: request.id, part: 0, fault }));
    assert_eq!(credited(&mut caller, id), CHUNK_BYTES - 1000);
}

pub(crate) fn an_early_answer_ends_a_large_call(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let body = pattern(3 * CHUNK_BYTES);
    let (begin, rest) = body.split_at(CHUNK_BYTES);
    // One call that nobody takes, and one whose callee has seen enough.
    for name in ["nobody", "f"] {
        let id = caller.fresh_id();
        Call::new(name).body(begin).send_announcing(id, body.len() as u32, |frame| caller.send(frame));
        if name == "f" {
            let request = callee.expect_request();
            callee.fail(&request, "enough");
        }
        assert!(caller.expect_outcome(id, 0).is_err());
        // Chunks that were already on their way are dropped.
        send_chunks(id, false, rest, |frame| caller.send(frame));
        caller.settle();
        callee.settle();
    }
}
