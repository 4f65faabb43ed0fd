use std::{
    thread,
    time::{Duration, Instant},
};

use daffi_core::{
    controller::{Controller, ControllerConfig},
    frame::Frame,
    reactor::Reactor,
};

use crate::{Bench, Call, wire::PATIENCE};

pub(crate) fn calls_in_flight_finish_within_the_grace(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f"));
    let request = callee.expect_request();
    let running = bench.running().clone();
    let stopping = thread::spawn(move || running.stop(2 * PATIENCE));

    let is_goodbye = |frame: &Frame<'_>| matches!(frame, Frame::Goodbye { .. }).then_some(());
    callee.expect("GOODBYE", is_goodbye);
    caller.expect("GOODBYE", is_goodbye);
    callee.reply(&request, b"done");
    assert_eq!(caller.expect_value(id), "done");
    callee.expect_closed();
    caller.expect_closed();
    stopping.join().expect("stop does not panic");
}

pub(crate) fn an_idle_controller_stops_at_once(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut node = bench.node("node", &["f"]);
    let began = Instant::now();
    bench.running().stop(2 * PATIENCE);
    assert!(began.elapsed() < PATIENCE, "nothing was to be waited for, and it took {:?}", began.elapsed());
    node.expect_closed();
    // A second call returns at once.
    bench.running().stop(2 * PATIENCE);
}

pub(crate) fn the_grace_has_an_end(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut caller = bench.node("caller", &[]);
    caller.call(&Call::new("f"));
    callee.expect_request();
    let began = Instant::now();
    bench.running().stop(Duration::from_millis(200));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(200), "it gave up after {took:?}");
    assert!(took < PATIENCE, "it took {took:?}");
    callee.expect_closed();
    caller.expect_closed();
}

pub(crate) fn a_stopped_controller_leaves_its_addresses(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let addresses = bench.running().addresses();
    let node = bench.node("node", &[]);
    // The side that closes first keeps a TCP port busy for a while; here that is the node.
    node.die();
    super::until_gone(&bench, "node");
    bench.running().stop(Duration::ZERO);
    let reactor = Reactor::start("conformance").expect("a reactor can be started");
    let again = controller.start(ControllerConfig::new(addresses.clone()), &reactor);
    let again = again.expect("the addresses are free again");
    assert_eq!(again.addresses(), addresses);
    again.stop(Duration::ZERO);
}

pub(crate) fn an_address_in_use_is_told(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let reactor = Reactor::start("conformance").expect("a reactor can be started");
    for address in bench.running().addresses() {
        let second = controller.start(ControllerConfig::new(vec![address]), &reactor);
        let error = second.expect_err("somebody listens there");
        assert!(matches!(error, daffi_core::Error::AddressInUse { .. }), "{error}");
    }
    bench.node("node", &[]).settle();
}
