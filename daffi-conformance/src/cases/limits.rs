use std::time::Duration;

use daffi_core::{
    Limits,
    controller::Controller,
    fault::FaultKind,
    frame::{Frame, Offer, Offers, Register},
    limits::{CHUNK_BYTES, FRAME_BYTES_MAX},
};

use crate::{Bench, Call, Offered, offer};

pub(crate) fn a_payload_over_the_limit_is_refused(controller: &dyn Controller) {
    let limits = Limits { payload_bytes_max: 100_000, ..Limits::default() };
    let bench = Bench::with(controller, limits);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let body = vec![7; 100_001];
    let id = caller.call(&Call::new("f").body(&body));
    let fault = caller.expect_fault(id, FaultKind::TooLarge);
    assert_eq!((fault.number, fault.limit), (100_001, 100_000));
    callee.expect_no_request();

    let id = caller.call(&Call::new("f").body(&body[1..]));
    let request = callee.expect_request();
    assert_eq!(callee.expect_arguments(&request).len(), 100_000);
    callee.reply_in_chunks(&request, &body);
    let fault = caller.expect_fault(id, FaultKind::TooLarge);
    assert_eq!((fault.number, fault.limit, &*fault.node), (100_001, 100_000, "callee"));
}

pub(crate) fn a_full_queue_refuses_and_nobody_else_notices(controller: &dyn Controller) {
    let limits = Limits { queue_bytes_max: 2 * FRAME_BYTES_MAX, ..Limits::default() };
    let bench = Bench::with(controller, limits);
    let mut healthy = bench.node("healthy", &["g"]);
    let mut caller = bench.node("caller", &[]);

    // A callee that registers by hand, and then never reads again.
    let mut stuck = bench.wire();
    stuck.hello("stuck", 1);
    stuck.expect_welcome();
    let mut offers = Vec::new();
    Offers::push(&mut offers, &Offer { index: 0, fingerprint: 0, ready: true, name: "f", signature: "" });
    let offers = Offers::parse(&offers).expect("it was encoded just now");
    stuck.send(&Frame::Register(Register { id: 1, more: false, offers }));
    stuck.receive().expect("REGISTERED");

    // The kernel's buffers take some megabytes before the controller's queue fills.
    let body = vec![7; CHUNK_BYTES];
    let mut last = 0;
    let refused = (0..2_000).any(|_| {
        last = caller.call(&Call::new("f").body(&body));
        caller.settle();
        caller.has_outcome(last)
    });
    assert!(refused, "the queue of a node that does not read is bounded");
    assert_eq!(caller.expect_fault(last, FaultKind::Overloaded).node, "stuck");

    for _ in 0..10 {
        let id = caller.call(&Call::new("g"));
        healthy.echo();
        caller.expect_value(id);
    }
}

pub(crate) fn a_node_offers_only_so_many_callbacks(controller: &dyn Controller) {
    let limits = Limits { callbacks_max: 3, ..Limits::default() };
    let bench = Bench::with(controller, limits);
    let offers: Vec<_> = (0..4).map(|at| offer(&format!("f{at}"))).collect();
    let _modest = bench.node_with("modest", &offers[..3]);
    let mut greedy = bench.node_with("greedy", &offers[..3]);
    let id = greedy.fresh_id();
    greedy.send_register(id, &[Offered { index: Some(3), ..offers[3].clone() }], false);
    greedy.expect_closed();
}

pub(crate) fn a_handshake_takes_only_so_long(controller: &dyn Controller) {
    // Long enough for a node to get in on a busy machine.
    let limits = Limits { handshake_timeout: Duration::from_secs(1), ..Limits::default() };
    let bench = Bench::with(controller, limits);
    let mut node = bench.node("node", &[]);
    let mut silent = bench.wire();
    let mut slow = bench.wire();
    slow.send_bytes(&[28, 0, 0, 0, 1]);
    silent.expect_closed("it said nothing");
    slow.expect_closed("it said half of a HELLO");
    // A node that is in stays in.
    node.settle();
}

pub(crate) fn only_so_many_connect(controller: &dyn Controller) {
    let limits = Limits { connections_max: 2, ..Limits::default() };
    let bench = Bench::with(controller, limits);
    let mut nodes = [bench.node("a", &["f"]), bench.node("b", &[])];
    let mut third = bench.wire();
    third.hello("c", 1);
    // It may be told why, if the system delivers that before the end of the connection.
    third.expect_closed("there are as many connections as there may be");
    let id = nodes[1].call(&Call::new("f"));
    nodes[0].echo();
    nodes[1].expect_value(id);
}
