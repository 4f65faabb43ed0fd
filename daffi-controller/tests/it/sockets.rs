use std::time::{Duration, Instant};

use bytes::Bytes;
use daffi_controller::{DefaultController, Server};
use daffi_core::{
    Address, Error,
    controller::{Controller, ControllerConfig},
    fault::FaultKind,
    frame::{Frame, Offers, RefuseCode, Register, Request},
    reactor::Reactor,
};

use crate::common::*;

fn tcp() -> Address {
    Address::Tcp { host: "127.0.0.1".into(), port: 0 }
}

fn start(change: impl FnOnce(&mut ControllerConfig)) -> (Server, Address) {
    let mut config = ControllerConfig::new(vec![tcp()]);
    change(&mut config);
    let server = Server::start(config).unwrap();
    let address = server.addresses()[0].clone();
    (server, address)
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::yield_now();
    }
}

#[test]
fn nodes_on_different_sockets_call_each_other() {
    let directory = std::env::temp_dir().join(format!("daffi-controller-test-{}", std::process::id()));
    let unix = Address::Unix(directory.join("a.sock"));
    let server = Server::start(ControllerConfig::new(vec![tcp(), unix.clone()])).unwrap();
    let mut a = RawNode::join(&server.addresses()[0], "a", &[]);
    let mut b = RawNode::join(&unix, "b", &["f"]);
    for id in 0..100 {
        a.send(&request(id, "f", &Bytes::from_static(b"args")));
    }
    for _ in 0..100 {
        let id = b.request();
        b.send(&reply(id, b"result"));
    }
    for id in 0..100 {
        a.expect(|frame| matches!(frame, Frame::Reply(reply) if reply.id == id));
    }
    drop(b);
    wait_until("the end of b", || server.sizes().peers == 1);
    drop(server);
    a.drain();
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn frames_may_arrive_byte_by_byte() {
    let (_server, address) = start(|_| ());
    let mut b = RawNode::join(&address, "b", &["f"]);
    let mut a = RawNode::join(&address, "a", &[]);
    for byte in request(1, "f", &Bytes::from_static(b"args")).to_bytes() {
        a.socket.write_all(&[byte]).unwrap();
    }
    let id = b.request();
    b.send(&reply(id, b"result"));
    a.expect(|frame| matches!(frame, Frame::Reply(_)));
}

#[test]
fn whoever_speaks_something_else_is_told_and_closed_and_others_go_on() {
    let (server, address) = start(|_| ());
    let mut a = RawNode::join(&address, "a", &[]);
    let mut b = RawNode::join(&address, "b", &["f"]);
    let http = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec();
    let tls = [&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01][..], &[0; 500]].concat();
    let noise: Vec<u8> = (0..4000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for (bytes, words) in [(http, "HTTP"), (tls, "TLS"), (noise, "")] {
        let mut stranger = RawNode::connect(&address);
        // Sending may fail once the controller has closed the connection.
        let _ = stranger.socket.write_all(&bytes);
        let frame = stranger.next().expect("a REFUSE");
        let Frame::Refuse(refuse) = decode(&frame) else { panic!("{frame:?}") };
        assert_eq!(refuse.code, RefuseCode::Protocol);
        assert!(refuse.reason.contains(words), "{}", refuse.reason);
        assert_eq!(stranger.next(), None);
    }
    a.send(&request(1, "f", &Bytes::new()));
    b.request();
    wait_until("the end of the strangers", || server.sizes().peers == 2);
}

#[test]
fn a_length_beyond_the_limit_is_refused_from_the_head_alone() {
    let (_server, address) = start(|_| ());
    for (node, length) in
        [(RawNode::connect(&address), 8 * 1024 + 1u32), (RawNode::join(&address, "a", &[]), u32::MAX)]
    {
        let mut node = node;
        let mut head = [0; 16];
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4] = 6;
        node.socket.write_all(&head).unwrap();
        let frame = node.next().expect("a REFUSE");
        let Frame::Refuse(refuse) = decode(&frame) else { panic!("{frame:?}") };
        assert!(refuse.reason.contains(&format!("announces {length} bytes")), "{}", refuse.reason);
    }
}

#[test]
fn a_callee_that_dies_fails_its_calls_at_once() {
    let (server, address) = start(|_| ());
    let mut a = RawNode::join(&address, "a", &[]);
    let mut b = RawNode::join(&address, "b", &["f"]);
    for id in 0..1000 {
        a.send(&request(id, "f", &Bytes::new()));
    }
    for _ in 0..1000 {
        b.request();
    }
    drop(b);
    for _ in 0..1000 {
        a.expect(|frame| matches!(frame, Frame::Failure(f) if f.fault.kind == FaultKind::RemoteStopped));
    }
    let sizes = server.sizes();
    assert_eq!((sizes.calls, sizes.routes), (0, 0));
}

#[test]
fn a_callee_that_does_not_read_is_overloaded_and_holds_up_nobody() {
    let (server, address) = start(|config| {
        config.limits.queue_bytes_max = 1 << 20;
        config.limits.queue_total_bytes_max = 2 << 20;
    });
    let mut a = RawNode::join(&address, "a", &[]);
    let _frozen = RawNode::join(&address, "frozen", &["f"]);
    let mut alive = RawNode::join(&address, "alive", &["g"]);
    let body = Bytes::from(vec![7; 60 * 1024]);
    // Kernel buffers take a few MiB before the queue grows.
    let mut id = 0;
    loop {
        a.send(&request(id, "f", &body));
        // In each round, a call to another node goes through meanwhile.
        a.send(&request(1_000_000 + id, "g", &Bytes::new()));
        let at = alive.request();
        alive.send(&reply(at, b""));
        let frame = a.expect(|frame| matches!(frame, Frame::Reply(_) | Frame::Failure(_)));
        if let Frame::Failure(failure) = decode(&frame) {
            assert_eq!((failure.fault.kind, failure.fault.node.as_str()), (FaultKind::Overloaded, "frozen"));
            break;
        }
        id += 1;
        assert!(id < 2000, "120 MiB went into the queue of a node that does not read");
    }
    assert_eq!(server.sizes().peers, 3);
}

#[test]
fn connections_beyond_the_limit_are_refused_with_a_reason() {
    let (_server, address) = start(|config| config.limits.connections_max = 1);
    let _a = RawNode::join(&address, "a", &[]);
    let mut b = RawNode::connect(&address);
    b.send(&hello("b"));
    let frame = b.next().expect("a REFUSE");
    assert!(matches!(decode(&frame), Frame::Refuse(refuse) if refuse.code == RefuseCode::Unavailable));
    assert_eq!(b.next(), None);
}

#[test]
fn a_peer_that_does_not_leave_is_closed_by_force() {
    let (_server, address) = start(|_| ());
    let mut node = RawNode::connect(&address);
    node.send(&Frame::Cancel { id: 1 });
    node.expect(|frame| matches!(frame, Frame::Refuse(_)));
    assert_eq!(node.next(), None, "the controller says no more");
    // The other direction stays open until the controller closes it, and only then does writing to it fail.
    let until = Instant::now() + PATIENCE;
    while node.socket.write_all(&[0]).is_ok() {
        assert!(Instant::now() < until, "the socket stayed open");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn silence_at_the_door_and_in_the_house_ends_by_itself() {
    let (_server, address) = start(|config| {
        config.limits.handshake_timeout = Duration::from_secs(1);
        config.limits.heartbeat = Duration::from_millis(500);
    });
    let mut silent = RawNode::connect(&address);
    silent.expect(|frame| matches!(frame, Frame::Refuse(refuse) if refuse.reason.contains("no HELLO")));
    let mut frozen = RawNode::join(&address, "frozen", &[]);
    let mut pings = 0;
    loop {
        let frame = frozen.next().expect("a REFUSE");
        match decode(&frame) {
            Frame::Ping { .. } => pings += 1,
            Frame::Refuse(refuse) => {
                assert!(refuse.reason.contains("no sign of life"), "{}", refuse.reason);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    // The third would be due when it is given up.
    assert_eq!(pings, 2);
}

#[test]
fn stopping_waits_for_calls_in_flight_and_only_so_long() {
    for answers in [true, false] {
        let (server, address) = start(|_| ());
        let mut a = RawNode::join(&address, "a", &[]);
        let mut b = RawNode::join(&address, "b", &["f"]);
        a.send(&request(1, "f", &Bytes::new()));
        let id = b.request();
        let grace = if answers { PATIENCE } else { Duration::from_millis(50) };
        let begun = Instant::now();
        let stopping = std::thread::spawn(move || (server.stop(grace), server));
        b.expect(|frame| matches!(frame, Frame::Goodbye { .. }));
        a.expect(|frame| matches!(frame, Frame::Goodbye { .. }));
        if answers {
            b.send(&reply(id, b"result"));
            a.expect(|frame| matches!(frame, Frame::Reply(_)));
        }
        assert_eq!((a.drain(), b.drain()), (0, 0));
        drop((a, b));
        let (cut_off, server) = stopping.join().unwrap();
        assert_eq!(cut_off, usize::from(!answers));
        assert!(begun.elapsed() < AT_ONCE, "{grace:?}: {:?}", begun.elapsed());
        assert_eq!(server.stop(grace), cut_off, "a second time says the same");
    }
}

/// Floods of frames that nothing paces: pings, cancellations, registrations, and answers that nobody waits
/// for.
#[test]
fn whoever_floods_is_told_and_closed_after_five_seconds_and_others_go_on() {
    /// Twenty times as many per second as are allowed.
    const AT_A_TIME: u64 = 200;
    const PAUSE: Duration = Duration::from_millis(10);

    fn nothing_to_register(id: u64) -> Frame<'static> {
        Frame::Register(Register { id, more: false, offers: Offers::parse(&[]).unwrap() })
    }
    let (server, address) = start(|_| ());
    let mut callee = RawNode::join(&address, "callee", &["f"]);
    let mut caller = RawNode::join(&address, "caller", &[]);
    type Kind = (&'static str, fn(u64) -> Frame<'static>);
    let kinds: [Kind; 4] = [
        ("ping", |id| Frame::Ping { id }),
        ("cancel", |id| Frame::Cancel { id }),
        ("register", nothing_to_register),
        ("answer", |id| reply(id, b"x")),
    ];
    std::thread::scope(|scope| {
        let floods = kinds.map(|(name, frame)| {
            let mut node = RawNode::join(&address, name, &[]);
            scope.spawn(move || {
                let mut writer = node.another();
                let begun = Instant::now();
                let flood = scope.spawn(move || {
                    for batch in 0.. {
                        let frames = (0..AT_A_TIME).map(|n| frame(batch * AT_A_TIME + n).to_bytes());
                        if writer.write_all(&frames.collect::<Vec<_>>().concat()).is_err() {
                            return;
                        }
                        assert!(begun.elapsed() < PATIENCE, "{name}: nobody stops it");
                        std::thread::sleep(PAUSE);
                    }
                });
                // What it is answered is read, so that it is not closed for reading nothing.
                let reason = loop {
                    let bytes = node.next().unwrap_or_else(|| panic!("{name}: closed without a word"));
                    if let Frame::Refuse(refuse) = decode(&bytes) {
                        break refuse.reason.to_owned();
                    }
                };
                let took = begun.elapsed();
                assert!(reason.contains("too many control frames"), "{name}: {reason}");
                assert!(
                    took > Duration::from_secs(4),
                    "{name}: a burst is no flood, and it was closed after {took:?}"
                );
                drop(node);
                flood.join().unwrap();
            })
        });
        let mut calls = 0;
        while floods.iter().any(|flood| !flood.is_finished()) {
            caller.send(&request(calls, "f", &Bytes::new()));
            let id = callee.request();
            callee.send(&reply(id, b"result"));
            caller.expect(|frame| matches!(frame, Frame::Reply(reply) if reply.id == calls));
            calls += 1;
            std::thread::sleep(PAUSE);
        }
        for flood in floods {
            flood.join().unwrap();
        }
    });
    wait_until("the end of the floods", || server.sizes().peers == 2);
}

#[test]
fn an_address_in_use_is_an_error_of_its_own_and_leaves_nothing_behind() {
    let (_server, taken) = start(|_| ());
    let free = std::env::temp_dir().join(format!("daffi-controller-free-{}", std::process::id())).join("s");
    let config = ControllerConfig::new(vec![Address::Unix(free.clone()), taken.clone()]);
    let error = Server::start(config).unwrap_err();
    assert!(matches!(&error, Error::AddressInUse { address, .. } if *address == taken), "{error}");
    assert!(!free.exists());
    let _ = std::fs::remove_dir_all(free.parent().unwrap());
    assert!(matches!(Server::start(ControllerConfig::new(vec![])).unwrap_err(), Error::Configuration { .. }));
}

#[test]
fn a_stopped_controller_leaves_its_address_to_the_next() {
    let directory = std::env::temp_dir().join(format!("daffi-controller-next-{}", std::process::id()));
    let address = Address::Unix(directory.join("s"));
    for round in 0..40 {
        // On a foreign reactor, which keeps running.
        let reactor = Reactor::start("test").unwrap();
        let config = ControllerConfig::new(vec![address.clone()]);
        let running = DefaultController.start(config.clone(), &reactor).unwrap();
        let mut node = RawNode::join(&address, "a", &["f"]);
        if round % 2 == 0 {
            let stopping = std::thread::spawn(move || running.stop(PATIENCE));
            node.drain();
            drop(node);
            stopping.join().unwrap();
        } else {
            drop(running);
            node.drain();
        }
        let server = Server::start(config).expect("the address is free");
        RawNode::join(&address, "a", &[]);
        drop(server);
    }
    std::fs::remove_dir_all(directory).unwrap();
}

/// The outcomes may leave together with the last one, but do not wait for it.
#[test]
fn outcomes_of_a_broadcast_come_while_others_are_missing() {
    let (_server, address) = start(|_| ());
    let mut caller = RawNode::join(&address, "caller", &[]);
    let mut callees = ["x", "y"].map(|name| RawNode::join(&address, name, &["f"]));
    for call in 1..=50 {
        let args = Bytes::from_static(b"args");
        let Frame::Request(one) = request(call, "f", &args) else { unreachable!() };
        caller.send(&Frame::Request(Request { broadcast: true, ..one }));
        let ids = callees.each_mut().map(RawNode::request);
        caller.expect(|frame| matches!(frame, Frame::Targets(targets) if targets.id == call));
        for (callee, id) in callees.iter_mut().zip(ids) {
            callee.send(&reply(id, b"result"));
            caller.expect(|frame| matches!(frame, Frame::Reply(reply) if reply.id == call));
        }
    }
}
