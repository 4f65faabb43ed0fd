use daffi_core::{
    Limits,
    controller::Controller,
    frame::{Frame, Hello, RefuseCode},
};

use super::expect_refused;
use crate::{Bench, Call, Node, offer};

fn hello(name: &str) -> Hello<'_> {
    Hello { version_min: 1, version_max: 1, capabilities: 0, instance: 7, name, credentials: &[] }
}

pub(crate) fn a_hello_is_welcomed(controller: &dyn Controller) {
    let limits = Limits { payload_bytes_max: 1 << 20, ..Limits::default() };
    let bench = Bench::with(controller, limits.clone());
    for name in ["a", "größe 7"] {
        let node = bench.node(name, &[]);
        let welcome = node.welcome();
        assert_eq!(welcome.version, 1);
        assert_eq!(welcome.payload_bytes_max, limits.payload_bytes_max);
        assert_eq!(u128::from(welcome.heartbeat_ms), limits.heartbeat.as_millis());
    }
}

pub(crate) fn a_version_within_the_range_is_chosen(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut wire = bench.wire();
    wire.send(&Frame::Hello(Hello { version_min: 1, version_max: 9, ..hello("a") }));
    assert_eq!(Node::over(wire, "a").welcome().version, 1);
}

pub(crate) fn a_version_out_of_range_is_refused(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    for (version_min, version_max) in [(2, 3), (0, 0)] {
        let mut wire = bench.wire();
        wire.send(&Frame::Hello(Hello { version_min, version_max, ..hello("a") }));
        expect_refused(&mut wire, RefuseCode::Version);
    }
}

pub(crate) fn a_name_that_is_none_is_refused(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    for name in ["", "a\nb", "\0", "daffi.a"] {
        let mut wire = bench.wire();
        wire.send(&Frame::Hello(hello(name)));
        expect_refused(&mut wire, RefuseCode::InvalidName);
    }
}

pub(crate) fn a_hello_may_come_byte_by_byte_and_longer_than_known(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut wire = bench.wire();
    let mut bytes = Frame::Hello(hello("a")).to_bytes().to_vec();
    bytes.extend_from_slice(b"of a later version");
    bytes[0] += 18;
    for byte in bytes {
        wire.send_bytes(&[byte]);
    }
    wire.expect_welcome();
}

pub(crate) fn a_taken_name_is_refused(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut first = bench.node("a", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let mut second = bench.wire();
    second.hello("a", 99);
    expect_refused(&mut second, RefuseCode::NameTaken);
    let id = caller.call(&Call::new("f"));
    first.echo();
    caller.expect_value(id);
}

pub(crate) fn a_silent_node_loses_its_name(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut frozen = bench.node("a", &["f"]);
    let mut caller = bench.node("caller", &[]);
    let in_flight = caller.call(&Call::new("f"));
    frozen.expect_request();
    frozen.mute();

    let mut successor = bench.node("a", &["f"]);
    frozen.expect_closed();
    let fault = caller.expect_fault(in_flight, daffi_core::fault::FaultKind::RemoteStopped);
    assert_eq!(fault.node, "a");
    let id = caller.call(&Call::new("f").on("a"));
    successor.echo();
    caller.expect_value(id);
}

pub(crate) fn the_same_instance_replaces_itself(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let instance = 0xfeed;
    let mut before = Node::join_as(bench.address(), "a", instance, &[offer("f")]);
    let mut after = Node::join_as(bench.address(), "a", instance, &[offer("f")]);
    before.expect_closed();
    let mut caller = bench.node("caller", &[]);
    let id = caller.call(&Call::new("f"));
    after.echo();
    caller.expect_value(id);
}
