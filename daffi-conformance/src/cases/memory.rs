//! Connections in memory. A controller need not offer them; one that does not passes all of these.

use daffi_core::{controller::Controller, fault::FaultKind, limits::CHUNK_BYTES};

use super::until_nobody_offers;
use crate::{Bench, Call, Node, offer};

pub(crate) fn a_node_in_memory_is_like_any_other(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let Some(mut inside) = Node::attach(&**bench.running(), "inside", &[offer("f")]) else { return };
    let mut outside = bench.node("outside", &["g"]);
    let id = outside.call(&Call::new("f").body(b"in"));
    assert_eq!(inside.echo().caller, "outside");
    assert_eq!(outside.expect_value(id), "in");
    let id = inside.call(&Call::new("g").body(b"out"));
    assert_eq!(outside.echo().caller, "inside");
    assert_eq!(inside.expect_value(id), "out");
    let id = inside.call(&Call::new("f"));
    inside.expect_fault(id, FaultKind::NoCandidate);
}

pub(crate) fn large_payloads_cross_memory_too(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let Some(mut inside) = Node::attach(&**bench.running(), "inside", &[offer("f")]) else { return };
    let mut outside = bench.node("outside", &[]);
    let body: Vec<u8> = (0..5 * CHUNK_BYTES).map(|at| (at % 249) as u8).collect();
    let id = outside.call(&Call::new("f").body(&body));
    let request = inside.expect_request();
    assert!(inside.expect_arguments(&request) == body, "the arguments are other bytes");
    inside.reply_in_chunks(&request, &body);
    assert!(outside.expect_result(id) == body, "the result is other bytes");
}

pub(crate) fn a_node_in_memory_can_leave(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let Some(mut inside) = Node::attach(&**bench.running(), "inside", &[offer("f")]) else { return };
    let mut outside = bench.node("outside", &[]);
    let id = outside.call(&Call::new("f"));
    inside.expect_request();
    inside.die();
    assert_eq!(outside.expect_fault(id, FaultKind::RemoteStopped).node, "inside");
    until_nobody_offers(&mut outside, "f");
}

pub(crate) fn a_node_in_memory_hears_of_lost_callees(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let Some(mut inside) = Node::attach(&**bench.running(), "inside", &[]) else { return };
    let mut outside = bench.node("outside", &["f"]);
    let id = inside.call(&Call::new("f"));
    outside.expect_request();
    outside.die();
    assert_eq!(inside.expect_fault(id, FaultKind::RemoteStopped).node, "outside");
    bench.running().stop(std::time::Duration::ZERO);
    inside.expect_closed();
}
