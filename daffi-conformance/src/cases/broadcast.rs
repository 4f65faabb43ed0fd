use std::collections::BTreeMap;

use daffi_core::{
    controller::Controller,
    fault::{Fault, FaultKind},
    frame::{Body, Chunk, Frame, Reply},
    limits::CHUNK_BYTES,
};

use crate::{Bench, Call, Node};

/// Returns how each target of a broadcast ended, by name.
fn outcomes(caller: &mut Node, id: u64) -> BTreeMap<String, Result<String, Fault>> {
    let targets = caller.expect_targets(id);
    let count = targets.len();
    let outcomes: BTreeMap<_, _> = (0..)
        .zip(targets)
        .map(|(part, name)| {
            let outcome = caller.expect_outcome(id, part);
            (name, outcome.map(|body| String::from_utf8_lossy(&body).into_owned()))
        })
        .collect();
    assert_eq!(outcomes.len(), count, "no target is named twice");
    outcomes
}

pub(crate) fn a_broadcast_reaches_all_others(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    for name in ["a", "b", "c"] {
        bench.node(name, &["f"]).answer_with_name();
    }
    let _idle = bench.node("idle", &["g"]);
    let mut caller = bench.node("caller", &["f"]);
    let id = caller.call(&Call::new("f").broadcast());
    let outcomes = outcomes(&mut caller, id);
    assert_eq!(outcomes.len(), 3, "{outcomes:?}");
    for name in ["a", "b", "c"] {
        assert_eq!(outcomes[name].as_deref(), Ok(name), "each part is that of its target");
    }
    caller.expect_no_request();
    caller.expect_no_outcome(id);
}

pub(crate) fn a_failing_target_fails_alone(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut bad = bench.node("bad", &["f"]);
    let good = bench.node("good", &["f"]).answer_with_name();
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f").broadcast().body(b"x"));
    let request = bad.expect_request();
    assert_eq!((&*request.body, &*request.caller), (&b"x"[..], "caller"));
    bad.fail(&request, "on purpose");
    let outcomes = outcomes(&mut caller, id);
    assert_eq!(outcomes["good"].as_deref(), Ok("good"));
    assert_eq!(outcomes["bad"].as_ref().map_err(|fault| &*fault.message), Err("on purpose"));
    drop(bench);
    assert_eq!(good.join().ok(), Some(1));
}

pub(crate) fn a_dying_target_fails_alone(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut doomed = bench.node("doomed", &["f"]);
    bench.node("good", &["f"]).answer_with_name();
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f").broadcast());
    doomed.expect_request();
    doomed.die();
    let outcomes = outcomes(&mut caller, id);
    assert_eq!(outcomes["good"].as_deref(), Ok("good"));
    let fault = outcomes["doomed"].as_ref().expect_err("the dead do not answer");
    assert_eq!((fault.kind, &*fault.node), (FaultKind::RemoteStopped, "doomed"));
}

pub(crate) fn a_broadcast_to_some_names_them_all(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    for name in ["a", "b"] {
        bench.node(name, &["f"]).answer_with_name();
    }
    let mut left_out = bench.node("left out", &["f"]);
    let _idle = bench.node("idle", &[]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f").broadcast().on("a\nghost\nidle\nb\na"));
    let outcomes = outcomes(&mut caller, id);
    assert_eq!(outcomes.len(), 4, "{outcomes:?}");
    assert_eq!(outcomes["a"].as_deref(), Ok("a"));
    assert_eq!(outcomes["b"].as_deref(), Ok("b"));
    let kind = |name: &str| outcomes[name].as_ref().map_err(|fault| fault.kind);
    assert_eq!(kind("ghost"), Err(FaultKind::NoProcess));
    assert_eq!(kind("idle"), Err(FaultKind::NoCandidate));
    left_out.expect_no_request();
}

pub(crate) fn a_one_way_broadcast_is_acknowledged(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callees = [bench.node("a", &["f"]), bench.node("b", &["f"])];
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f").broadcast().one_way());
    let mut targets = caller.expect_targets(id);
    targets.sort();
    assert_eq!(targets, ["a", "b"]);
    for callee in &mut callees {
        let request = callee.expect_request();
        assert!(request.one_way);
        callee.reply(&request, b"not heard");
        callee.settle();
    }
    caller.expect_no_outcome(id);
}

pub(crate) fn a_broadcast_to_nobody_fails(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut caller = bench.node("caller", &["f"]);
    for call in [Call::new("f").broadcast(), Call::new("f").broadcast().one_way()] {
        let id = caller.call(&call);
        caller.expect_fault(id, FaultKind::NoCandidate);
        caller.expect_no_outcome(id);
    }
    let _idle = bench.node("idle", &["g"]);
    let id = caller.call(&Call::new("f").broadcast().one_way().on("ghost\nidle"));
    caller.expect_fault(id, FaultKind::NoCandidate);
    caller.expect_no_outcome(id);
}

pub(crate) fn a_cancelled_broadcast_is_cancelled_everywhere(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callees = [bench.node("a", &["f"]), bench.node("b", &["f"])];
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f").broadcast());
    caller.expect_targets(id);
    let requests = callees.each_mut().map(Node::expect_request);
    caller.cancel(id);
    for (callee, request) in callees.iter_mut().zip(&requests) {
        callee.expect_cancel(request);
        callee.reply(request, b"too late");
        callee.settle();
    }
    caller.expect_no_outcome(id);
}

pub(crate) fn large_arguments_reach_every_target(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callees = [bench.node("a", &["f"]), bench.node("b", &["f"])];
    let mut caller = bench.node("caller", &[]);
    let body: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
    let id = caller.call(&Call::new("f").broadcast().body(&body));
    for callee in &mut callees {
        let request = callee.expect_request();
        assert!(callee.expect_arguments(&request) == body, "{} got other bytes", callee.name());
        callee.reply(&request, b"got it");
    }
    assert_eq!(outcomes(&mut caller, id).len(), 2);
}

pub(crate) fn the_slowest_target_sets_the_pace(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut fast = bench.node("fast", &["f"]);
    let mut slow = bench.node("slow", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.fresh_id();
    let call = Call::new("f").broadcast().body(&[7; 1000]);
    call.send_announcing(id, 4 << 20, |frame| caller.send(frame));
    let (at_fast, at_slow) = (fast.expect_request().id, slow.expect_request().id);
    let credit = |frame: &Frame<'_>| match frame {
        Frame::Credit { id: of, reply: false, bytes, .. } if *of == id => Some(*bytes),
        _ => None,
    };
    fast.send(&Frame::Credit { id: at_fast, reply: false, part: 0, bytes: 500 });
    fast.settle();
    caller.expect_no("credit that one target has not given", |frame| credit(frame).is_some());
    slow.send(&Frame::Credit { id: at_slow, reply: false, part: 0, bytes: 200 });
    assert_eq!(caller.expect("CREDIT", credit), 200);
    // Once the slow one is gone, the other's credit counts.
    slow.die();
    assert_eq!(caller.expect("CREDIT", credit), 300);
}

pub(crate) fn large_results_keep_their_parts(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callees = [bench.node("a", &["f"]), bench.node("b", &["f"])];
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f").broadcast());
    let targets = caller.expect_targets(id);
    let requests = callees.each_mut().map(Node::expect_request);
    let total = 3 * CHUNK_BYTES as u32;
    let bodies = [vec![b'a'; CHUNK_BYTES], vec![b'b'; CHUNK_BYTES]];
    // Step by step, so that the parts of the two alternate.
    for step in 0..3 {
        for ((callee, request), body) in callees.iter().zip(&requests).zip(&bodies) {
            let (id, more, body) = (request.id, step < 2, Body::borrowed(body));
            callee.send(&if step == 0 {
                Frame::Reply(Reply { id, more, part: 0, codec: 0, total, body })
            } else {
                Frame::Chunk(Chunk { id, reply: true, more, part: 0, body })
            });
        }
        // The credit for each part reaches its own target.
        if step == 0 {
            for (part, (callee, request)) in callees.iter_mut().zip(&requests).enumerate() {
                let part = targets.iter().position(|name| name == callee.name()).unwrap_or(part) as u32;
                caller.send(&Frame::Credit { id, reply: true, part, bytes: 100 + part });
                let bytes = callee.expect("CREDIT", |frame| match frame {
                    Frame::Credit { id, reply: true, bytes, .. } if *id == request.id => Some(*bytes),
                    _ => None,
                });
                assert_eq!(bytes, 100 + part);
            }
        }
    }
    for (part, name) in (0..).zip(&targets) {
        for _ in 0..3 {
            let body = caller.expect("a piece of a result", |frame| match frame {
                Frame::Reply(reply) if (reply.id, reply.part) == (id, part) => Some(reply.body.to_bytes()),
                Frame::Chunk(chunk) if (chunk.id, chunk.reply, chunk.part) == (id, true, part) => {
                    Some(chunk.body.to_bytes())
                }
                _ => None,
            });
            assert!(body.iter().all(|byte| *byte == name.as_bytes()[0]), "part {part} is of {name}");
        }
    }
}
