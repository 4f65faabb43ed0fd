use daffi_core::{answer::Process, controller::Controller, fault::FaultKind, frame::Question};

use super::until_nobody_offers;
use crate::{Bench, Call, Node, Offered, offer};

pub(crate) fn offers_are_visible_once_all_have_come(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &[]);
    let mut caller = bench.node("caller", &[]);
    let id = callee.fresh_id();
    callee.send_register(id, &[offer("f")], true);
    callee.settle();
    let early = caller.call(&Call::new("f"));
    caller.expect_fault(early, FaultKind::NoCandidate);

    let second = Offered { index: Some(1), ..offer("g") };
    callee.send_register(id, &[second], false);
    callee.expect_registered(id);
    for name in ["f", "g"] {
        let id = caller.call(&Call::new(name));
        assert_eq!(callee.echo().name, name);
        caller.expect_value(id);
    }
}

pub(crate) fn a_node_is_visible_once_it_has_registered(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut watcher = bench.node("watcher", &[]);
    let mut wire = bench.wire();
    wire.hello("newcomer", 1);
    let mut newcomer = Node::over(wire, "newcomer");
    newcomer.settle();
    let watch = watcher.ask(Question::WaitProcess { name: "newcomer" });
    let id = watcher.ask(Question::Processes);
    let processes: Vec<Process> = watcher.expect_answer(id);
    assert_eq!(processes, [Process::new("watcher".to_owned(), Vec::new())]);
    let id = watcher.call(&Call::new("f").on("newcomer"));
    watcher.expect_fault(id, FaultKind::NoProcess);
    watcher.expect_no_outcome(watch);
    newcomer.register(&[]);
    watcher.expect_answer::<()>(watch);
}

pub(crate) fn a_later_registration_adds(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    callee.register(&[Offered { index: Some(1), ..offer("g") }]);
    for name in ["f", "g"] {
        let id = caller.call(&Call::new(name));
        assert_eq!(callee.echo().name, name);
        caller.expect_value(id);
    }
}

pub(crate) fn a_method_waits_for_its_instance(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let method = Offered { ready: false, ..offer("Group.method") };
    let mut callee = bench.node_with("callee", std::slice::from_ref(&method));
    let mut caller = bench.node("caller", &[]);
    let early = caller.call(&Call::new("Group.method"));
    assert_eq!(caller.expect_fault(early, FaultKind::NoInstance).node, "callee");

    callee.register(&[Offered { ready: true, ..method }]);
    let id = caller.call(&Call::new("Group.method"));
    callee.echo();
    caller.expect_value(id);
}

pub(crate) fn a_ready_candidate_is_preferred(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut waiting = bench.node_with("waiting", &[Offered { ready: false, ..offer("f") }]);
    let ready = bench.node("ready", &["f"]).answer_with_name();
    let mut caller = bench.node("caller", &[]);
    for _ in 0..10 {
        let id = caller.call(&Call::new("f"));
        assert_eq!(caller.expect_value(id), "ready");
    }
    waiting.expect_no_request();
    drop(bench);
    assert_eq!(ready.join().ok(), Some(10));
}

pub(crate) fn a_node_that_leaves_takes_its_callbacks_along(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    callee.die();
    until_nobody_offers(&mut caller, "f");
    let id = caller.call(&Call::new("f").on("callee"));
    assert_eq!(caller.expect_fault(id, FaultKind::NoProcess).node, "callee");
}

pub(crate) fn a_callback_needs_a_name(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut caller = bench.node("caller", &[]);
    for (node, name) in [("x", ""), ("y", "a\nb"), ("z", "daffi.f")] {
        let mut callee = bench.node(node, &[]);
        let id = callee.fresh_id();
        callee.send_register(id, &[offer(name)], false);
        callee.expect_closed();
        caller.settle();
    }
}
