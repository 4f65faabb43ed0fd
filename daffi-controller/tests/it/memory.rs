use std::{
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use bytes::Bytes;
use daffi_controller::DefaultController;
use daffi_core::{
    Address,
    controller::{Controller, ControllerConfig, FramePort, PortError, RunningController, linked},
    frame::{Frame, Offer, Offers, Question, Register},
    reactor::Reactor,
};
use parking_lot::Mutex;

use crate::common::*;

/// A node in memory: the test can read what it gets, and it answers requests by itself, immediately.
#[derive(Default)]
struct Node {
    got: Mutex<Option<Sender<Bytes>>>,
    port: Mutex<Option<Arc<dyn FramePort>>>,
    answers: bool,
    /// How many more times it refuses to take anything.
    full: Mutex<usize>,
}

impl FramePort for Node {
    fn send(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        let mut full = self.full.lock();
        if *full > 0 {
            *full -= 1;
            return Err(PortError::Full);
        }
        drop(full);
        if let Some(got) = &*self.got.lock() {
            let _ = got.send(frame.to_bytes());
        }
        let port = self.port.lock().clone();
        if let (Frame::Request(request), Some(port), true) = (frame, port, self.answers) {
            port.send(&reply(request.id, b"on the spot")).unwrap();
        }
        Ok(())
    }

    fn close(&self, _reason: &str) {
        self.got.lock().take();
    }
}

struct Fixture {
    running: Arc<dyn RunningController>,
    node: Arc<Node>,
    port: Arc<dyn FramePort>,
    got: Receiver<Bytes>,
    reactor: Reactor,
}

impl Fixture {
    fn expect(&self, wanted: impl Fn(&Frame<'_>) -> bool) -> Bytes {
        loop {
            let bytes = self.got.recv_timeout(PATIENCE).expect("a frame");
            match decode(&bytes) {
                Frame::Ping { id } => self.port.send(&Frame::Pong { id }).unwrap(),
                frame => {
                    assert!(wanted(&frame), "{frame:?}");
                    return bytes;
                }
            }
        }
    }
}

fn fixture(answers: bool) -> Fixture {
    let reactor = Reactor::start("test").unwrap();
    let listen = vec![Address::Tcp { host: "127.0.0.1".into(), port: 0 }];
    let running = DefaultController.start(ControllerConfig::new(listen), &reactor).unwrap();
    let (got_in, got) = channel();
    let node = Arc::new(Node { got: Mutex::new(Some(got_in)), answers, ..Node::default() });
    let port = running.attach(node.clone()).unwrap();
    *node.port.lock() = Some(port.clone());
    let fixture = Fixture { running, node, port, got, reactor };
    fixture.port.send(&hello("memory")).unwrap();
    fixture.expect(|frame| matches!(frame, Frame::Welcome(_)));
    let mut bytes = Vec::new();
    Offers::push(&mut bytes, &Offer { index: 0, fingerprint: 0, ready: true, name: "g", signature: "()" });
    let offers = Offers::parse(&bytes).unwrap();
    fixture.port.send(&Frame::Register(Register { id: 1, more: false, offers })).unwrap();
    fixture.expect(|frame| matches!(frame, Frame::Registered { .. }));
    fixture
}

#[test]
fn linking_is_enough_to_be_found() {
    assert_eq!(linked().unwrap().name(), "daffi-controller");
}

#[test]
fn a_node_in_memory_is_called_and_answers_on_the_spot() {
    let fixture = fixture(true);
    let mut a = RawNode::join(&fixture.running.addresses()[0], "a", &[]);
    for id in 0..1000 {
        a.send(&request(id, "g", &Bytes::from_static(b"args")));
    }
    for id in 0..1000 {
        a.expect(|frame| matches!(frame, Frame::Reply(reply) if reply.id == id));
    }
}

#[test]
fn a_node_in_memory_calls_from_any_thread_and_gets_its_answers_in_order() {
    let fixture = fixture(false);
    let mut b = RawNode::join(&fixture.running.addresses()[0], "b", &["f"]);
    let callee = thread::spawn(move || {
        for _ in 0..4000 {
            let id = b.request();
            b.send(&reply(id, b"result"));
        }
        b
    });
    thread::scope(|scope| {
        for thread in 0..4u64 {
            let port = fixture.port.clone();
            scope.spawn(move || {
                for n in 0..1000 {
                    port.send(&request(thread << 32 | n, "f", &Bytes::from_static(b"args"))).unwrap();
                }
            });
        }
    });
    let mut next = [0; 4];
    for _ in 0..4000 {
        let bytes = fixture.expect(|frame| matches!(frame, Frame::Reply(_)));
        let Frame::Reply(reply) = decode(&bytes) else { unreachable!() };
        let thread = (reply.id >> 32) as usize;
        // A thread's requests go out in order and the callee answers in order, so the replies are in order
        // too.
        assert_eq!(reply.id as u32, next[thread]);
        next[thread] += 1;
    }
    drop(callee.join().unwrap());
}

#[test]
fn what_a_node_in_memory_does_not_take_comes_again() {
    let fixture = fixture(false);
    *fixture.node.full.lock() = 5;
    for id in 0..3 {
        fixture.port.send(&Frame::Ping { id }).unwrap();
    }
    for expected in 0..3 {
        fixture.expect(|frame| matches!(frame, Frame::Pong { id } if *id == expected));
    }
}

#[test]
fn a_schedule_from_memory_wakes_the_controller() {
    use daffi_core::frame::{Body, Schedule, Timing};
    let fixture = fixture(false);
    let mut b = RawNode::join(&fixture.running.addresses()[0], "b", &["f"]);
    let timing = Timing::Period(5_000);
    let schedule = Schedule { timing, codec: 0, fingerprint: 0, name: "f", node: "", body: Body::default() };
    fixture.port.send(&Frame::Ask { id: 1, codec: 0, question: Question::Schedule(schedule) }).unwrap();
    fixture.expect(|frame| matches!(frame, Frame::Reply(_)));
    for _ in 0..3 {
        let id = b.request();
        b.send(&reply(id, b""));
    }
}

#[test]
fn either_side_ends_it_for_both() {
    let fixture = fixture(false);
    let mut a = RawNode::join(&fixture.running.addresses()[0], "a", &[]);
    a.send(&request(1, "g", &Bytes::new()));
    fixture.expect(|frame| matches!(frame, Frame::Request(_)));
    fixture.port.close("done");
    a.expect(|frame| matches!(frame, Frame::Failure(_)));
    assert_eq!(fixture.port.send(&Frame::Ping { id: 1 }), Err(PortError::Closed));
}

#[test]
fn stopping_closes_the_node_in_memory_after_its_last_frames() {
    let fixture = fixture(false);
    drop(fixture.running);
    let goodbye = fixture.got.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(decode(&goodbye), Frame::Goodbye { .. }));
    assert!(fixture.got.recv_timeout(PATIENCE).is_err(), "closed");
    assert!(fixture.node.got.lock().is_none());
    assert_eq!(fixture.port.send(&Frame::Ping { id: 1 }), Err(PortError::Closed));
}

#[test]
fn threads_of_this_process_may_lead_until_somebody_else_calls() {
    let fixture = fixture(true);
    let handle = fixture.reactor.handle();
    assert!(fixture.running.callers_may_lead());
    handle.welcome_guests(true);
    let mut a = RawNode::join(&fixture.running.addresses()[0], "a", &["f"]);
    fixture.port.send(&request(1, "f", &Bytes::from_static(b"args"))).unwrap();
    let id = a.request();
    a.send(&reply(id, b"result"));
    fixture.expect(|frame| matches!(frame, Frame::Reply(_)));
    assert!(handle.welcomes_guests(), "nobody else has called");
    a.send(&request(1, "g", &Bytes::from_static(b"args")));
    a.expect(|frame| matches!(frame, Frame::Reply(_)));
    assert!(!handle.welcomes_guests());
}
