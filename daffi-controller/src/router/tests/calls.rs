use daffi_core::fault::FaultKind;

use super::*;

#[test]
fn a_call_reaches_a_candidate_and_its_result_the_caller() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f", "g"]);
    world.call(a, 7, "g");
    assert_eq!(world.said(a), [""; 0]);
    let frames = world.out.sent.get(&b).cloned().unwrap();
    assert_eq!(describe(&decode(&frames[0])), "REQUEST g#1 from a: args");
    let id = world.id_at(b);
    world.reply(b, id, "result");
    assert_eq!(world.said(a), ["REPLY 7.0: result"]);
    world.assert_idle();
}

#[test]
fn the_same_id_of_two_callers_stays_apart() {
    let mut world = World::new();
    let (a, c) = (world.join("a", &[]), world.join("c", &[]));
    let b = world.join("b", &["f"]);
    world.call(a, 7, "f");
    let for_a = world.id_at(b);
    world.call(c, 7, "f");
    let for_c = world.id_at(b);
    world.reply(b, for_c, "c");
    world.reply(b, for_a, "a");
    assert_eq!(world.said(a), ["REPLY 7.0: a"]);
    assert_eq!(world.said(c), ["REPLY 7.0: c"]);
}

#[test]
fn deadline_hops_and_fingerprint_pass_as_they_are() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    world.send(a, &Frame::Request(Request { deadline_us: 5, hops: 32, fingerprint: 9, ..request(1, "f") }));
    let frames = world.out.sent.remove(&b).unwrap();
    let Frame::Request(got) = decode(&frames[0]) else { panic!() };
    assert_eq!((got.deadline_us, got.hops, got.fingerprint), (5, 32, 9));
}

#[test]
fn the_caller_itself_is_never_a_candidate() {
    let mut world = World::new();
    let a = world.join("a", &["f"]);
    world.call(a, 1, "f");
    let fault = world.fault_at(a);
    assert_eq!(fault.kind, FaultKind::NoCandidate);
    assert!(fault.message.contains("calling process itself"), "{}", fault.message);
    world.send(a, &Frame::Request(Request { node: "a", ..request(2, "f") }));
    assert_eq!(world.fault_at(a).kind, FaultKind::NoCandidate);
    let b = world.join("b", &["f"]);
    for id in 3..20 {
        world.call(a, id, "f");
    }
    assert_eq!(world.said(b).len(), 17);
}

#[test]
fn nobody_to_call_is_said_at_once_with_names_that_look_alike() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    world.join("b", &["func1", "other"]);
    world.call(a, 1, "fumc1");
    let fault = world.fault_at(a);
    assert_eq!((fault.kind, fault.details), (FaultKind::NoCandidate, vec!["func1".to_owned()]));
    world.assert_idle();
}

#[test]
fn a_pinned_call_goes_there_or_says_why_not() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f", "!method"]);
    let c = world.join("c", &["f", "g"]);
    for (node, name, expected) in [
        ("d", "f", "FAILURE 1.0 NoProcess on d"),
        ("b", "g", "FAILURE 1.0 NoCandidate on b"),
        ("b", "method", "FAILURE 1.0 NoInstance on b"),
    ] {
        world.send(a, &Frame::Request(Request { node, ..request(1, name) }));
        assert_eq!(world.said(a), [expected]);
    }
    for _ in 0..5 {
        world.send(a, &Frame::Request(Request { node: "b", one_way: true, ..request(1, "f") }));
    }
    assert_eq!((world.said(b).len(), world.said(c).len()), (5, 0));
}

#[test]
fn the_least_busy_node_gets_the_call() {
    let mut world = World::with(|config| config.strategy = Strategy::LeastBusy);
    let a = world.join("a", &[]);
    let (b, c) = (world.join("b", &["f"]), world.join("c", &["f", "g"]));
    world.call(a, 1, "g");
    world.id_at(c);
    world.call(a, 2, "f");
    let id = world.id_at(b);
    world.call(a, 3, "g");
    world.id_at(c);
    world.call(a, 4, "f");
    let other = world.id_at(b);
    world.call(a, 5, "g");
    world.id_at(c);
    world.reply(b, id, "done");
    world.reply(b, other, "done");
    for id in 6..9 {
        world.call(a, id, "f");
        world.id_at(b);
    }
}

#[test]
fn a_method_without_instance_is_not_called_until_it_has_one() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["!f"]);
    world.call(a, 1, "f");
    assert_eq!(world.said(a), ["FAILURE 1.0 NoInstance on b"]);
    world.register(b, &["f"]);
    assert_eq!(world.said(b), ["REGISTERED 1"]);
    world.call(a, 2, "f");
    world.id_at(b);
}

#[test]
fn a_node_is_a_candidate_only_once_its_registration_is_complete() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.connect();
    world.hello(b, "b", 1);
    world.register_as(b, &[(0, "f", 0)], true);
    assert_eq!(world.said(b), ["WELCOME"]);
    world.call(a, 1, "f");
    assert_eq!(world.said(a), ["FAILURE 1.0 NoCandidate on "]);
    world.register_as(b, &[(1, "g", 0)], false);
    world.said(b);
    world.call(a, 2, "f");
    world.id_at(b);
}

#[test]
fn a_compatible_candidate_is_preferred_and_without_one_both_signatures_are_told() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let (old, new) = (world.join("old", &[]), world.join("new", &[]));
    world.register_as(old, &[(0, "f", 1 << 32)], false);
    world.register_as(new, &[(0, "f", 2 << 32)], false);
    world.said(old);
    world.said(new);
    for id in 0..6 {
        world.send(a, &Frame::Request(Request { fingerprint: 2 << 32, ..request(id, "f") }));
    }
    assert_eq!((world.said(old).len(), world.said(new).len()), (0, 6));
    world.send(a, &Frame::Request(Request { fingerprint: 3 << 32, ..request(9, "f") }));
    let fault = world.fault_at(a);
    assert_eq!(fault.kind, FaultKind::SignatureMismatch);
    assert_eq!(fault.message, format!("signature {}", 1u64 << 32));
    assert_eq!(fault.node, "old");
    world.send(a, &Frame::Request(Request { fingerprint: 3 << 32, node: "new", ..request(9, "f") }));
    assert_eq!(world.fault_at(a).node, "new");
}

#[test]
fn limits_are_met_before_anybody_is_bothered() {
    let mut world = World::with(|config| {
        config.limits.payload_bytes_max = 10;
        config.limits.calls_in_flight_max = 1;
    });
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    world.send(a, &Frame::Request(Request { hops: 33, ..request(1, "f") }));
    assert_eq!(world.fault_at(a).kind, FaultKind::HopLimit);
    world.send(a, &Frame::Request(Request { total: 11, more: true, ..request(2, "f") }));
    let fault = world.fault_at(a);
    assert_eq!((fault.kind, fault.number, fault.limit), (FaultKind::TooLarge, 11, 10));
    assert_eq!(fault.node, "", "it is about the arguments");
    // The rest of it arrives before the caller knows.
    world.send(a, &chunk(2, false, true, "rest"));
    assert_eq!(world.said(b), [""; 0]);
    assert_eq!(world.said(a), ["CREDIT 2.0 request: 4"]);
    world.call(a, 3, "f");
    world.id_at(b);
    world.call(a, 4, "f");
    assert_eq!(world.said(a), ["FAILURE 4.0 Overloaded on controller"]);
}

#[test]
fn a_full_queue_refuses_the_call() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    world.out.full.insert(b);
    world.call(a, 1, "f");
    assert_eq!(world.said(a), ["FAILURE 1.0 Overloaded on b"]);
    world.assert_idle();
}

#[test]
fn a_call_without_answer_leaves_nothing_behind_and_is_counted_if_it_reaches_nobody() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    world.send(a, &Frame::Request(Request { one_way: true, ..request(0, "f") }));
    let id = world.id_at(b);
    world.assert_idle();
    world.send(a, &Frame::Request(Request { one_way: true, ..request(0, "nothing") }));
    assert_eq!(world.router.counters().undelivered, 1);
    // A node that answers anyway does no harm.
    world.reply(b, id, "late");
    assert_eq!(world.said(a), [""; 0]);
    assert_eq!(world.router.counters().late_replies, 1);
}

#[test]
fn failures_carry_the_name_of_who_failed() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    world.call(a, 1, "f");
    let id = world.id_at(b);
    world.send(b, &failure(id, FaultKind::Failed));
    assert_eq!(world.said(a), ["FAILURE 1.0 Failed on b"]);
    world.assert_idle();
}

#[test]
fn a_second_answer_is_dropped_and_counted() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    let c = world.join("c", &[]);
    world.call(a, 1, "f");
    let id = world.id_at(b);
    // An answer from another node means nothing: ids belong to a callee.
    world.reply(c, id, "forged");
    world.reply(b, id, "one");
    world.reply(b, id, "two");
    world.send(b, &failure(id, FaultKind::Failed));
    assert_eq!(world.said(a), ["REPLY 1.0: one"]);
    assert_eq!(world.router.counters().late_replies, 3);
    assert!(world.out.closed.is_empty());
}

#[test]
fn a_cancelled_call_is_cancelled_at_the_callee_once() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    world.call(a, 1, "f");
    let id = world.id_at(b);
    world.send(a, &Frame::Cancel { id: 1 });
    world.send(a, &Frame::Cancel { id: 1 });
    assert_eq!(world.said(b), [format!("CANCEL {id}")]);
    world.reply(b, id, "late");
    assert_eq!(world.said(a), [""; 0]);
    assert_eq!(world.router.counters().late_replies, 1);
    world.assert_idle();
}

#[test]
fn a_lost_callee_fails_every_call_in_flight_there() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    for id in 0..1000 {
        world.call(a, id, "f");
    }
    world.gone(b);
    let said = world.said(a);
    assert_eq!(said.len(), 1000);
    assert!(said.iter().all(|said| said.ends_with("RemoteStopped on b")));
    world.assert_idle();
    world.call(a, 1000, "f");
    assert_eq!(world.fault_at(a).kind, FaultKind::NoCandidate);
}

#[test]
fn a_lost_caller_cancels_what_runs_for_it() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    world.call(a, 1, "f");
    let id = world.id_at(b);
    world.gone(a);
    assert_eq!(world.said(b), [format!("CANCEL {id}")]);
    world.assert_idle();
}

#[test]
fn a_leaving_node_gets_nothing_new_and_finishes_what_runs() {
    let mut world = World::new();
    let a = world.join("a", &["g"]);
    let b = world.join("b", &["f"]);
    world.call(a, 1, "f");
    let id = world.id_at(b);
    world.send(b, &Frame::Goodbye { reason: "done" });
    world.call(a, 2, "f");
    assert_eq!(world.fault_at(a).kind, FaultKind::NoCandidate);
    world.call(b, 1, "g");
    world.id_at(a);
    world.reply(b, id, "still");
    assert_eq!(world.said(a), ["REPLY 1.0: still"]);
    // Its successor need not wait.
    let successor = world.join("b", &["f"]);
    world.gone(b);
    world.said(a);
    world.call(a, 3, "f");
    world.id_at(successor);
}

#[test]
fn who_has_said_goodbye_may_still_register_but_is_not_called() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    world.send(b, &Frame::Goodbye { reason: "done" });
    world.register(b, &["f", "g"]);
    assert_eq!(world.said(b), ["REGISTERED 1"]);
    world.call(a, 1, "g");
    assert_eq!(world.fault_at(a).kind, FaultKind::NoCandidate);
    world.send(a, &Frame::Request(Request { node: "b", ..request(2, "f") }));
    assert_eq!(world.fault_at(a).kind, FaultKind::NoProcess);
}

#[test]
fn the_id_of_a_call_in_flight_cannot_be_used_again() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    world.call(a, 1, "f");
    world.call(a, 1, "f");
    assert_eq!(world.said(a), ["REFUSE Protocol"]);
    assert!(world.out.closed[&a].contains("id of a call in flight"));
    assert_eq!(world.said(b).len(), 2, "the request and its cancellation");
    world.assert_idle();
}

#[test]
fn stopping_tells_everybody_and_lets_calls_finish() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let b = world.join("b", &["f"]);
    let stranger = world.connect();
    world.call(a, 1, "f");
    let id = world.id_at(b);
    world.router.drain(world.now, &mut world.out);
    assert_eq!(world.said(a), ["GOODBYE"]);
    assert_eq!(world.said(b), ["GOODBYE"]);
    assert_eq!(world.said(stranger), ["REFUSE Unavailable"]);
    assert_eq!(world.router.connected("test", world.now).unwrap_err().code, RefuseCode::Unavailable);
    assert!(!world.router.is_idle());
    world.reply(b, id, "result");
    assert_eq!(world.said(a), ["REPLY 1.0: result"]);
    assert!(world.router.is_idle());
    world.router.close(world.now, &mut world.out);
    assert_eq!(world.router.sizes(), Sizes::default());
}

#[test]
fn hints_are_given_so_often_and_no_more() {
    let mut world = World::new();
    let (a, _b) = (world.join("a", &[]), world.join("b", &["func1"]));
    let hinted = |world: &mut World| {
        (0..1000)
            .filter(|id| {
                world.call(a, *id, "func");
                !world.fault_at(a).details.is_empty()
            })
            .count()
    };
    assert_eq!(hinted(&mut world), 50, "whoever calls what nobody offers again and again holds nobody up");
    world.advance(Duration::from_millis(100));
    assert_eq!(hinted(&mut world), 50);
}
