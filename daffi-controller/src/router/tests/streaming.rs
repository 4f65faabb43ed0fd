use daffi_core::fault::FaultKind;

use super::*;

/// A request with more to come.
fn long(id: u64, total: u32) -> Request<'static> {
    Request { more: true, total, ..request(id, "f") }
}

fn long_reply(id: u64, total: u32) -> Frame<'static> {
    Frame::Reply(Reply { id, more: true, part: 0, codec: 0, total, body: Body::borrowed(b"begin") })
}

fn pair() -> (World, PeerId, PeerId) {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    (world, a, b)
}

#[test]
fn chunks_and_credit_pass_in_both_directions() {
    let (mut world, a, b) = pair();
    world.send(a, &Frame::Request(long(1, 10)));
    let id = world.id_at(b);
    world.send(a, &chunk(1, false, true, "one"));
    world.send(b, &Frame::Credit { id, reply: false, part: 0, bytes: 500 });
    world.send(a, &chunk(1, false, false, "two"));
    assert_eq!(world.said(b), [format!("CHUNK {id}.0 request: one…"), format!("CHUNK {id}.0 request: two")]);
    assert_eq!(world.said(a), ["CREDIT 1.0 request: 500"]);
    world.send(b, &long_reply(id, 9));
    world.send(a, &Frame::Credit { id: 1, reply: true, part: 0, bytes: 600 });
    world.send(b, &chunk(id, true, true, "ab"));
    world.send(b, &chunk(id, true, false, "cd"));
    assert_eq!(world.said(b), [format!("CREDIT {id}.0 reply: 600")]);
    assert_eq!(world.said(a), ["REPLY 1.0: begin…", "CHUNK 1.0 reply: ab…", "CHUNK 1.0 reply: cd"]);
    world.assert_idle();
}

#[test]
fn all_of_a_result_goes_however_much_waits_for_its_caller() {
    let (mut world, a, b) = pair();
    world.call(a, 1, "f");
    let id = world.id_at(b);
    world.out.full.insert(a);
    world.send(b, &long_reply(id, 9));
    world.send(b, &chunk(id, true, true, "ab"));
    world.send(b, &chunk(id, true, false, "cd"));
    assert_eq!(world.said(a), ["REPLY 1.0: begin…", "CHUNK 1.0 reply: ab…", "CHUNK 1.0 reply: cd"]);
    world.assert_idle();
}

#[test]
fn chunks_have_to_add_up() {
    for (more, body) in [(false, "short"), (true, "exact!"), (true, "too long"), (false, "too long")] {
        let (mut world, a, b) = pair();
        world.send(a, &Frame::Request(long(1, 10)));
        let id = world.id_at(b);
        world.send(a, &chunk(1, false, more, body));
        assert!(world.out.closed[&a].contains("do not add up"), "{body}");
        assert_eq!(world.said(b), [format!("CANCEL {id}")]);
        world.assert_idle();

        let (mut world, a, b) = pair();
        world.call(a, 1, "f");
        let id = world.id_at(b);
        world.send(b, &long_reply(id, 11));
        world.send(b, &chunk(id, true, more, body));
        assert!(world.out.closed.contains_key(&b), "{body}");
        assert_eq!(world.said(a), ["REPLY 1.0: begin…", "FAILURE 1.0 RemoteStopped on b"]);
        world.assert_idle();
    }
}

#[test]
fn chunks_of_a_result_come_after_it() {
    let (mut world, a, b) = pair();
    world.call(a, 1, "f");
    let id = world.id_at(b);
    world.send(b, &chunk(id, true, false, "x"));
    assert!(world.out.closed.contains_key(&b));
    assert_eq!(world.said(a), ["FAILURE 1.0 RemoteStopped on b"]);
}

#[test]
fn chunks_of_a_call_that_is_over_are_dropped_and_credited() {
    let (mut world, a, b) = pair();
    world.send(a, &Frame::Request(long(1, 10)));
    let id = world.id_at(b);
    world.send(b, &failure(id, FaultKind::Failed));
    world.send(a, &chunk(1, false, true, "rest"));
    world.send(a, &Frame::Credit { id: 1, reply: true, part: 0, bytes: 1 });
    world.send(b, &chunk(id, true, true, "rest"));
    world.send(b, &Frame::Credit { id, reply: false, part: 0, bytes: 1 });
    // Otherwise a caller that does not know yet would wait forever.
    assert_eq!(world.said(a), ["FAILURE 1.0 Failed on b", "CREDIT 1.0 request: 4"]);
    assert_eq!(world.said(b), [""; 0]);
    assert!(world.out.closed.is_empty());
}

#[test]
fn a_full_queue_in_the_middle_of_the_arguments_fails_the_call_on_both_sides() {
    let (mut world, a, b) = pair();
    world.send(a, &Frame::Request(long(1, 10)));
    let id = world.id_at(b);
    world.out.full.insert(b);
    world.send(a, &chunk(1, false, true, "one"));
    assert_eq!(world.said(a), ["FAILURE 1.0 Overloaded on b"]);
    assert_eq!(world.said(b), [format!("CANCEL {id}")]);
    world.assert_idle();
}

#[test]
fn a_long_call_without_answer_is_remembered_until_its_last_chunk() {
    let (mut world, a, b) = pair();
    world.send(a, &Frame::Request(Request { one_way: true, ..long(1, 10) }));
    let id = world.id_at(b);
    assert_eq!(world.router.sizes().routes, 1);
    world.send(a, &chunk(1, false, true, "one"));
    world.send(a, &chunk(1, false, false, "two"));
    world.assert_idle();
    assert_eq!(world.said(b).len(), 2);
    world.reply(b, id, "unwanted");
    assert_eq!(world.said(a), [""; 0]);

    world.send(a, &Frame::Request(Request { one_way: true, ..long(2, 10) }));
    world.gone(b);
    assert_eq!(world.said(a), ["CREDIT 2.0 request: 4"], "what it may send goes on to nobody");
    assert_eq!(world.router.counters().undelivered, 1);
    world.assert_idle();
}

#[test]
fn a_long_call_that_nobody_answers_or_takes_gets_its_credit_back() {
    let (mut world, a, b) = pair();
    for id in [1, 2] {
        world.send(a, &Frame::Request(Request { one_way: true, ..long(id, 20) }));
    }
    let ids: Vec<_> = world.out.sent[&b]
        .iter()
        .map(|bytes| {
            let Frame::Request(request) = decode(bytes) else { panic!("{bytes:?} is no request") };
            request.id
        })
        .collect();
    world.send(a, &chunk(1, false, true, "one"));
    world.send(b, &Frame::Credit { id: ids[0], reply: false, part: 0, bytes: 2 });
    assert_eq!(world.said(a), ["CREDIT 1.0 request: 2"]);
    // Refused midway: the caller may have used up its credit.
    world.send(b, &failure(ids[0], FaultKind::Overloaded));
    assert_eq!(world.said(a), ["CREDIT 1.0 request: 5"]);
    // Chunks that were already on their way.
    world.send(a, &chunk(1, false, true, "two"));
    world.send(a, &chunk(1, false, false, "end"));
    world.send(b, &Frame::Credit { id: ids[0], reply: false, part: 0, bytes: 3 });
    assert_eq!(world.said(a), ["CREDIT 1.0 request: 3"]);
    world.gone(b);
    assert_eq!(world.said(a), ["CREDIT 2.0 request: 4"]);
    world.assert_idle();
}

#[test]
fn a_result_beyond_the_limit_is_refused_and_the_callee_told_to_stop() {
    let mut world = World::with(|config| config.limits.payload_bytes_max = 10);
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    world.call(a, 1, "f");
    let id = world.id_at(b);
    world.send(b, &long_reply(id, 11));
    let fault = world.fault_at(a);
    assert_eq!((fault.kind, fault.number, fault.limit), (FaultKind::TooLarge, 11, 10));
    assert_eq!(fault.node, "b", "it is about the result, so the callback ran");
    assert!(daffi_core::Error::from_fault(fault, "f", "").may_have_executed());
    assert_eq!(world.said(b), [format!("CANCEL {id}")]);
    world.assert_idle();
}

#[test]
fn two_results_in_chunks_for_one_call_are_a_breach() {
    let (mut world, a, b) = pair();
    world.call(a, 1, "f");
    let id = world.id_at(b);
    world.send(b, &long_reply(id, 11));
    world.send(b, &long_reply(id, 11));
    assert!(world.out.closed.contains_key(&b));
    assert_eq!(world.said(a), ["REPLY 1.0: begin…", "FAILURE 1.0 RemoteStopped on b"]);
}
