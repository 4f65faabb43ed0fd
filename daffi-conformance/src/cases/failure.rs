use std::time::{Duration, Instant};

use daffi_core::{
    Limits,
    controller::Controller,
    fault::{Fault, FaultKind},
    frame::{Body, Chunk, Failure, Frame, Reply},
};

use super::until_nobody_offers;
use crate::{Bench, Call, PATIENCE};

/// Short, yet long enough that a node that answers is not lost when the machine is briefly busy.
const HEARTBEAT: Duration = Duration::from_millis(400);

pub(crate) fn a_failure_arrives_whole(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f"));
    let request = callee.expect_request();
    let fault = Fault {
        kind: FaultKind::Panicked,
        number: 1,
        limit: 2,
        node: "callee".to_owned(),
        message: "größe".to_owned(),
        type_name: "Error".to_owned(),
        location: "a.rs:1:2".to_owned(),
        details: vec!["because".to_owned(), "of that".to_owned()],
        payload: vec![0, 1, 2].into(),
    };
    callee.send(&Frame::Failure(Failure { id: request.id, part: 0, fault: Box::new(fault.clone()) }));
    assert_eq!(caller.expect_fault(id, FaultKind::Panicked), fault);
}

pub(crate) fn a_lost_callee_fails_its_calls_at_once(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let ids: Vec<_> = (0..20).map(|_| caller.call(&Call::new("f"))).collect();
    for _ in &ids {
        callee.expect_request();
    }
    callee.die();
    for id in ids {
        assert_eq!(caller.expect_fault(id, FaultKind::RemoteStopped).node, "callee");
        caller.expect_no_outcome(id);
    }
}

pub(crate) fn a_lost_caller_cancels_its_calls(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    for _ in 0..3 {
        caller.call(&Call::new("f"));
    }
    let requests: Vec<_> = (0..3).map(|_| callee.expect_request()).collect();
    caller.die();
    for request in &requests {
        callee.expect_cancel(request);
        callee.reply(request, b"too late");
    }
    callee.settle();
}

pub(crate) fn a_cancel_reaches_the_callee(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f"));
    let other = caller.call(&Call::new("f"));
    let request = callee.expect_request();
    let kept = callee.expect_request();
    caller.cancel(id);
    callee.expect_cancel(&request);
    callee.reply(&request, b"too late");
    callee.reply(&kept, b"in time");
    assert_eq!(caller.expect_value(other), "in time");
    caller.expect_no_outcome(id);
    // Again, and for a call that never existed: both are ignored.
    caller.cancel(id);
    caller.cancel(u64::MAX);
    caller.settle();
}

pub(crate) fn a_second_answer_is_dropped(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f"));
    let request = callee.expect_request();
    callee.reply(&request, b"first");
    callee.reply(&request, b"second");
    callee.fail(&request, "third");
    callee.settle();
    assert_eq!(caller.expect_value(id), "first");
    caller.expect_no_outcome(id);
}

pub(crate) fn only_the_callee_can_answer(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut forger = bench.node("forger", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f").on("callee"));
    let request = callee.expect_request();
    forger.reply(&request, b"forged");
    forger.fail(&request, "forged");
    forger.settle();
    caller.expect_no_outcome(id);
    // Nor can the caller itself.
    caller.reply(&request, b"forged");
    caller.expect_no_outcome(id);
    callee.reply(&request, b"true");
    assert_eq!(caller.expect_value(id), "true");
}

pub(crate) fn only_the_caller_can_cancel(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let mut other = bench.node("other", &[]);
    let id = caller.call(&Call::new("f"));
    let request = callee.expect_request();
    for guess in [id, request.id] {
        other.cancel(guess);
    }
    other.settle();
    callee.expect_no("a CANCEL", |frame| matches!(frame, Frame::Cancel { .. }));
    callee.reply(&request, b"done");
    caller.expect_value(id);
}

pub(crate) fn frames_for_unknown_ids_are_passed_over(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut node = bench.node("node", &["f"]);
    let body = Body::borrowed(b"x");
    for id in [0, 1, u64::MAX, 1 << 32] {
        node.send(&Frame::Reply(Reply { id, more: false, part: 0, codec: 0, total: 1, body }));
        node.send(&Frame::Cancel { id });
        node.send(&Frame::Chunk(Chunk { id, reply: true, more: false, part: 0, body }));
        node.send(&Frame::Chunk(Chunk { id, reply: false, more: false, part: 7, body }));
        node.send(&Frame::Credit { id, reply: true, part: 9, bytes: u32::MAX });
        node.send(&Frame::Pong { id });
    }
    node.settle();
}

pub(crate) fn silence_is_death(controller: &dyn Controller) {
    let limits = Limits { heartbeat: HEARTBEAT, ..Limits::default() };
    let bench = Bench::with(controller, limits);
    let mut frozen = bench.node("frozen", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f"));
    frozen.expect_request();
    frozen.mute();
    assert_eq!(caller.expect_fault(id, FaultKind::RemoteStopped).node, "frozen");
    frozen.expect_closed();
    until_nobody_offers(&mut caller, "f");
}

pub(crate) fn only_a_pong_is_a_sign_of_life(controller: &dyn Controller) {
    let limits = Limits { heartbeat: HEARTBEAT, ..Limits::default() };
    let bench = Bench::with(controller, limits);
    let mut wire = bench.wire();
    wire.hello("deaf", 1);
    wire.expect_welcome();
    // What it sends arrives, but pings do not reach it: half of its connection is gone.
    let until = Instant::now() + PATIENCE;
    loop {
        wire.send(&Frame::Ping { id: 1 });
        if wire.receive().is_none() {
            break;
        }
        assert!(Instant::now() < until, "a node that answers no ping is lost, whatever it says");
    }
}

pub(crate) fn only_what_was_asked_is_answered(controller: &dyn Controller) {
    let limits = Limits { heartbeat: HEARTBEAT, ..Limits::default() };
    let bench = Bench::with(controller, limits);
    let mut wire = bench.wire();
    wire.hello("eager", 1);
    wire.expect_welcome();
    let until = Instant::now() + PATIENCE;
    let mut asked = 0;
    while let Some(bytes) = wire.receive() {
        if let Frame::Ping { id } = crate::wire::decoded(&bytes) {
            asked = id;
        }
        for id in [asked + 1000, u64::MAX] {
            wire.send(&Frame::Pong { id });
        }
        assert!(Instant::now() < until, "a PONG for a PING that was never sent is no sign of life");
    }
}

pub(crate) fn who_answers_pings_stays(controller: &dyn Controller) {
    let limits = Limits { heartbeat: HEARTBEAT, ..Limits::default() };
    let bench = Bench::with(controller, limits);
    let mut wire = bench.wire();
    wire.hello("a", 1);
    wire.expect_welcome();
    // One more ping than a node that does not answer would get.
    for _ in 0..4 {
        let bytes = wire.receive().expect("who answers stays connected");
        match crate::wire::decoded(&bytes) {
            Frame::Ping { id } => wire.send(&Frame::Pong { id }),
            other => panic!("expected a PING, got {other:?}"),
        }
    }
}

pub(crate) fn a_ping_is_answered(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut node = bench.node("a", &[]);
    for id in [0, 1, u64::MAX] {
        node.send(&Frame::Ping { id });
        node.expect("PONG", |frame| matches!(frame, Frame::Pong { id: of } if *of == id).then_some(()));
    }
}

pub(crate) fn a_goodbye_lets_running_calls_finish(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let running = caller.call(&Call::new("f"));
    let unlucky = caller.call(&Call::new("f"));
    let request = callee.expect_request();
    callee.expect_request();
    callee.goodbye();
    callee.settle();

    until_nobody_offers(&mut caller, "f");
    callee.reply(&request, b"done");
    assert_eq!(caller.expect_value(running), "done");
    callee.expect_no_request();
    callee.die();
    assert_eq!(caller.expect_fault(unlucky, FaultKind::RemoteStopped).node, "callee");
}
