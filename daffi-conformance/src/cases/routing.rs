use std::collections::BTreeSet;

use daffi_core::{
    controller::{Controller, Strategy},
    fault::FaultKind,
    limits::HOPS_MAX,
};

use crate::{Bench, Call, Offered, offer};

pub(crate) fn a_call_goes_there_and_back(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    for body in [&b""[..], b"x", &[7; 60_000]] {
        let id = caller.call(&Call::new("f").body(body));
        let request = callee.expect_request();
        assert_eq!(request.body, body);
        callee.reply(&request, &[body, b"!"].concat());
        assert_eq!(caller.expect_value(id), [body, b"!"].concat());
    }
}

pub(crate) fn what_the_caller_says_is_passed_on(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let offered = Offered { index: Some(77), fingerprint: 0x1234_5678_0000_0000, ..offer("f") };
    let mut callee = bench.node_with("callee", &[offered]);
    let mut caller = bench.node("caller", &[]);
    let call = Call::new("f").body(b"abc").codec(1).hops(5).deadline_us(60_000_000);
    let id = caller.call(&call.fingerprint(0x1234_5678_0000_0000));
    let request = callee.expect_request();
    assert_eq!(request.callback, 77);
    assert_eq!(request.name, "f");
    assert_eq!(request.caller, "caller");
    assert_eq!(request.codec, 1);
    assert_eq!(request.hops, 5);
    assert_eq!(request.fingerprint, 0x1234_5678_0000_0000);
    assert_eq!((request.total, request.more, request.one_way), (3, false, false));
    assert!(
        (30_000_000..=60_000_000).contains(&request.deadline_us),
        "what is left of the deadline is {} µs",
        request.deadline_us
    );
    callee.reply(&request, b"done");
    assert_eq!(caller.expect_value(id), "done");

    let id = caller.call(&Call::new("f"));
    assert_eq!(callee.echo().deadline_us, 0, "no deadline stays none");
    caller.expect_value(id);
}

pub(crate) fn one_candidate_gets_a_call(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let callees: Vec<_> =
        ["a", "b", "c"].into_iter().map(|name| bench.node(name, &["f"]).answer_with_name()).collect();
    let mut caller = bench.node("caller", &[]);
    let ids: Vec<_> = (0..60).map(|_| caller.call(&Call::new("f"))).collect();
    for &id in &ids {
        caller.expect_value(id);
    }
    for id in ids {
        caller.expect_no_outcome(id);
    }
    drop(bench);
    let served: usize = callees.into_iter().map(|callee| callee.join().expect("a callee serves")).sum();
    assert_eq!(served, 60);
}

pub(crate) fn a_caller_is_not_its_own_callee(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut caller = bench.node("caller", &["f"]);
    let id = caller.call(&Call::new("f"));
    caller.expect_fault(id, FaultKind::NoCandidate);

    let mut other = bench.node("other", &["f"]);
    for _ in 0..20 {
        let id = caller.call(&Call::new("f"));
        other.echo();
        caller.expect_value(id);
    }
    caller.expect_no_request();
}

pub(crate) fn a_pinned_call_goes_to_its_node(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut a = bench.node("a", &["f"]);
    let mut b = bench.node("b", &["f"]);
    let mut caller = bench.node("caller", &[]);
    for _ in 0..10 {
        let id = caller.call(&Call::new("f").on("b"));
        b.echo();
        caller.expect_value(id);
    }
    a.expect_no_request();
}

pub(crate) fn a_pinned_call_fails_where_nobody_can_take_it(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let _a = bench.node("a", &["f"]);
    let _idle = bench.node("idle", &[]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f").on("ghost"));
    assert_eq!(caller.expect_fault(id, FaultKind::NoProcess).node, "ghost");
    let id = caller.call(&Call::new("f").on("idle"));
    caller.expect_fault(id, FaultKind::NoCandidate);
}

pub(crate) fn a_name_that_nobody_offers_has_a_hint(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let _callee = bench.node("callee", &["subtract", "zebra"]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("substract"));
    let fault = caller.expect_fault(id, FaultKind::NoCandidate);
    assert_eq!(fault.details, ["subtract"]);
}

pub(crate) fn signatures_are_compared(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let offered =
        Offered { fingerprint: 0x1111_1111_2222_3333, signature: "(a: i64) -> i64".to_owned(), ..offer("f") };
    let mut callee = bench.node_with("callee", &[offered]);
    let mut caller = bench.node("caller", &[]);
    // Other names, and the same names with different shapes.
    for other in [0x7777_7777_2222_3333, 0x1111_1111_7777_3333, 0x1111_1111_2222_7777] {
        let id = caller.call(&Call::new("f").fingerprint(other));
        let fault = caller.expect_fault(id, FaultKind::SignatureMismatch);
        assert_eq!((&*fault.node, &*fault.message), ("callee", "(a: i64) -> i64"));
    }
    callee.expect_no_request();
    // The same one, no fingerprint, and fingerprints with unknown shapes.
    for same in [0x1111_1111_2222_3333, 0, 0x1111_1111_0000_0000, 0x1111_1111_0000_3333] {
        let id = caller.call(&Call::new("f").fingerprint(same));
        callee.echo();
        caller.expect_value(id);
    }
}

pub(crate) fn requests_keep_their_order(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f", "g"]);
    let mut caller = bench.node("caller", &[]);
    for number in 0..300u32 {
        let body = number.to_le_bytes();
        let call = Call::new(if number % 3 == 0 { "g" } else { "f" }).body(&body);
        caller.call(&if number % 2 == 0 { call.one_way() } else { call });
    }
    for number in 0..300u32 {
        assert_eq!(callee.expect_request().body, number.to_le_bytes()[..]);
    }
}

pub(crate) fn answers_find_their_calls_in_any_order(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut one = bench.node("one", &[]);
    let mut two = bench.node("two", &[]);
    let mut calls = Vec::new();
    for number in 0..20u8 {
        // Two callers use the same ids.
        calls.push((
            number,
            one.call(&Call::new("f").body(&[number])),
            two.call(&Call::new("f").body(&[100 + number])),
        ));
    }
    let mut requests: Vec<_> = (0..40).map(|_| callee.expect_request()).collect();
    let ids: BTreeSet<_> = requests.iter().map(|request| request.id).collect();
    assert_eq!(ids.len(), 40, "the callee can tell them apart");
    requests.reverse();
    for request in requests {
        callee.reply(&request, &request.body);
    }
    for (number, of_one, of_two) in calls {
        assert_eq!(one.expect_value(of_one), [number][..]);
        assert_eq!(two.expect_value(of_two), [100 + number][..]);
    }
}

pub(crate) fn a_one_way_call_is_not_answered(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f").one_way().body(b"x"));
    let request = callee.expect_request();
    assert!(request.one_way);
    assert_eq!(request.body, "x");
    // A callee that answers anyway is ignored.
    callee.reply(&request, b"y");
    callee.settle();
    caller.expect_no_outcome(id);

    let nobody = caller.call(&Call::new("nobody").one_way());
    let ghost = caller.call(&Call::new("f").one_way().on("ghost"));
    caller.expect_no_outcome(nobody);
    caller.expect_no_outcome(ghost);
}

pub(crate) fn calls_nest_up_to_the_limit(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f").hops(HOPS_MAX));
    assert_eq!(callee.echo().hops, HOPS_MAX);
    caller.expect_value(id);
    for hops in [HOPS_MAX + 1, u8::MAX] {
        let id = caller.call(&Call::new("f").hops(hops));
        assert_eq!(caller.expect_fault(id, FaultKind::HopLimit).number, u64::from(HOPS_MAX));
    }
}

pub(crate) fn round_robin_takes_turns(controller: &dyn Controller) {
    let bench = Bench::choosing(controller, Strategy::RoundRobin);
    for name in ["a", "b", "c"] {
        bench.node(name, &["f"]).answer_with_name();
    }
    let mut caller = bench.node("caller", &[]);
    let mut turns = Vec::new();
    for _ in 0..9 {
        let id = caller.call(&Call::new("f"));
        turns.push(caller.expect_value(id));
    }
    let first: BTreeSet<_> = turns[..3].iter().collect();
    assert_eq!(first.len(), 3, "each has its turn: {turns:?}");
    assert_eq!(turns[..3], turns[3..6]);
    assert_eq!(turns[..3], turns[6..]);
}

pub(crate) fn least_busy_spares_those_at_work(controller: &dyn Controller) {
    let bench = Bench::choosing(controller, Strategy::LeastBusy);
    let mut callees = [bench.node("a", &["f"]), bench.node("b", &["f"])];
    let mut caller = bench.node("caller", &[]);
    // The callee of the pinned call stays busy, so that all others go to the other node.
    caller.call(&Call::new("f").on("a"));
    callees[0].expect_request();
    for _ in 0..10 {
        let id = caller.call(&Call::new("f"));
        callees[1].echo();
        caller.expect_value(id);
    }
    callees[0].expect_no_request();
}

pub(crate) fn random_leaves_nobody_out(controller: &dyn Controller) {
    let bench = Bench::choosing(controller, Strategy::Random);
    for name in ["a", "b"] {
        bench.node(name, &["f"]).answer_with_name();
    }
    let mut caller = bench.node("caller", &[]);
    let ids: Vec<_> = (0..100).map(|_| caller.call(&Call::new("f"))).collect();
    let served: BTreeSet<_> = ids.into_iter().map(|id| caller.expect_value(id)).collect();
    assert_eq!(served.len(), 2);
}
