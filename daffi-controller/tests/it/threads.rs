//! A controller with several threads.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use daffi_controller::Server;
use daffi_core::{
    Address,
    controller::ControllerConfig,
    fault::FaultKind,
    frame::{Body, Frame, Request},
};

use crate::common::*;

const THREADS: usize = 4;

fn start() -> Server {
    let mut config = ControllerConfig::new(vec![Address::Tcp { host: "127.0.0.1".into(), port: 0 }]);
    config.threads = THREADS;
    Server::start(config).unwrap()
}

/// Many nodes call one another at the same time. Requests from one to another arrive in the order they were
/// sent, and each node gets its own answers.
#[test]
fn requests_of_each_pair_stay_in_order() {
    const CALLEES: usize = 6;
    const CALLERS: usize = 6;
    const CALLS: u64 = 600;

    let server = start();
    let address = &server.addresses()[0];
    let callees: Vec<_> =
        (0..CALLEES).map(|number| RawNode::join(address, &format!("callee{number}"), &["f"])).collect();
    let callers: Vec<_> =
        (0..CALLERS).map(|number| RawNode::join(address, &format!("caller{number}"), &[])).collect();

    thread::scope(|scope| {
        for mut callee in callees {
            scope.spawn(move || {
                let mut seen = HashMap::new();
                for _ in 0..CALLERS as u64 * CALLS {
                    let bytes = callee.expect(|frame| matches!(frame, Frame::Request(_)));
                    let Frame::Request(request) = decode(&bytes) else { unreachable!() };
                    let number = u64::from_le_bytes(request.body.to_bytes()[..].try_into().unwrap());
                    let next = seen.entry(request.node.to_owned()).or_insert(0);
                    assert_eq!(number, *next, "from {}", request.node);
                    *next += 1;
                    let body = request.body.to_bytes();
                    callee.send(&answer(request.id, &body));
                }
            });
        }
        for mut caller in callers {
            scope.spawn(move || {
                // All of it at once, so that each read contains many frames.
                let mut batch = Vec::new();
                for number in 0..CALLS {
                    let body = Bytes::copy_from_slice(&number.to_le_bytes());
                    for callee in 0..CALLEES {
                        let id = number * CALLEES as u64 + callee as u64;
                        let node = format!("callee{callee}");
                        pinned(id, &node, &body).encode(&mut batch);
                    }
                }
                caller.socket.write_all(&batch).unwrap();
                let mut next = [0; CALLEES];
                for _ in 0..CALLS * CALLEES as u64 {
                    let bytes = caller.expect(|frame| matches!(frame, Frame::Reply(_)));
                    let Frame::Reply(reply) = decode(&bytes) else { unreachable!() };
                    let number = u64::from_le_bytes(reply.body.to_bytes()[..].try_into().unwrap());
                    let callee = (reply.id % CALLEES as u64) as usize;
                    assert_eq!(reply.id / CALLEES as u64, number, "the answer is that of the call");
                    assert_eq!(number, next[callee], "answers of one callee stay in order, too");
                    next[callee] += 1;
                }
            });
        }
    });
    assert_eq!(server.sizes().calls, 0);
    assert_eq!(server.stop(Duration::from_secs(5)), 0);
}

#[test]
fn stopping_waits_for_calls_whose_nodes_are_on_different_threads() {
    let server = start();
    let address = server.addresses()[0].clone();
    let mut callees: Vec<_> =
        (0..THREADS).map(|number| RawNode::join(&address, &format!("callee{number}"), &["f"])).collect();
    let mut caller = RawNode::join(&address, "caller", &[]);
    let body = Bytes::from_static(b"args");
    for callee in 0..THREADS {
        caller.send(&pinned(callee as u64, &format!("callee{callee}"), &body));
    }
    let requests: Vec<_> = callees.iter_mut().map(RawNode::request).collect();
    let stopping = thread::spawn(move || server.stop(PATIENCE));
    for (callee, id) in callees.iter_mut().zip(requests) {
        callee.expect(|frame| matches!(frame, Frame::Goodbye { .. }));
        callee.send(&reply(id, b"result"));
    }
    caller.expect(|frame| matches!(frame, Frame::Goodbye { .. }));
    for _ in 0..THREADS {
        caller.expect(|frame| matches!(frame, Frame::Reply(_)));
    }
    assert_eq!(caller.drain(), 0);
    for mut callee in callees {
        callee.drain();
    }
    assert_eq!(stopping.join().unwrap(), 0);
}

#[test]
fn dropping_ends_all_threads_while_nodes_are_busy() {
    for _ in 0..20 {
        let server = start();
        let address = server.addresses()[0].clone();
        let nodes: Vec<_> = (0..2 * THREADS)
            .map(|number| RawNode::join(&address, &format!("node{number}"), &["f"]))
            .collect();
        let busy: Vec<_> = nodes
            .into_iter()
            .map(|mut node| {
                thread::spawn(move || {
                    let body = Bytes::from_static(b"args");
                    let mut batch = Vec::new();
                    for id in 0..200 {
                        request(id, "f", &body).encode(&mut batch);
                    }
                    // The controller may be gone by now.
                    let _ = node.socket.write_all(&batch);
                    while node.next().is_some() {}
                })
            })
            .collect();
        let begun = Instant::now();
        drop(server);
        assert!(begun.elapsed() < PATIENCE);
        for node in busy {
            node.join().unwrap();
        }
    }
}

#[test]
fn a_callee_that_is_gone_fails_the_calls_of_nodes_on_other_threads() {
    let server = start();
    let address = server.addresses()[0].clone();
    let mut callers: Vec<_> =
        (0..2 * THREADS).map(|number| RawNode::join(&address, &format!("caller{number}"), &[])).collect();
    let mut callee = RawNode::join(&address, "callee", &["f"]);
    for caller in &mut callers {
        caller.send(&request(1, "f", &Bytes::from_static(b"args")));
    }
    for _ in &callers {
        callee.request();
    }
    drop(callee);
    for caller in &mut callers {
        caller.expect(|frame| {
            matches!(frame, Frame::Failure(failure) if failure.id == 1 && failure.fault.kind == FaultKind::RemoteStopped)
        });
    }
}

fn pinned<'a>(id: u64, node: &'a str, body: &'a Bytes) -> Frame<'a> {
    let Frame::Request(template) = request(id, "f", &Bytes::new()) else { unreachable!() };
    Frame::Request(Request { node, total: body.len() as u32, body: Body::shared(body), ..template })
}

fn answer(id: u64, body: &Bytes) -> Frame<'_> {
    let Frame::Reply(template) = reply(id, b"") else { unreachable!() };
    Frame::Reply(daffi_core::frame::Reply { total: body.len() as u32, body: Body::shared(body), ..template })
}
