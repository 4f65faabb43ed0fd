//! A node whose controller breaks the protocol.

use std::{
    future::{Future as _, IntoFuture as _},
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use daffi::{BROADCAST, Error, Global, GlobalBuilder, Limits};
use daffi_core::{
    frame::{Body, Frame, Reply, Request, Targets, VERSION, Welcome},
    limits::FRAME_BYTES_MAX,
};

use crate::support::BOUND;

/// Lets a node in, tells it `once_in`, gives what it says from then on to `rogue`, and returns when the node has closed the connection.
pub(crate) fn control(
    mut socket: UnixStream,
    once_in: &[u8],
    mut rogue: impl FnMut(&mut UnixStream, &Frame<'_>),
) {
    let mut buffer = BytesMut::new();
    loop {
        let batch: Bytes = buffer.clone().freeze();
        let mut at = 0;
        while let Some((frame, next)) = Frame::decode(&batch, at, FRAME_BYTES_MAX).unwrap() {
            let answer = match &frame {
                Frame::Hello(_) => Some(Frame::Welcome(Welcome {
                    version: VERSION,
                    capabilities: 0,
                    node: 1,
                    heartbeat_ms: 5000,
                    payload_bytes_max: 1 << 20,
                })),
                Frame::Register(register) => Some(Frame::Registered { id: register.id }),
                Frame::Ping { id } => {
                    rogue(&mut socket, &frame);
                    Some(Frame::Pong { id: *id })
                }
                _ => None,
            };
            match answer {
                Some(answer) => {
                    socket.write_all(&answer.to_bytes()).unwrap();
                    if let Frame::Registered { .. } = answer {
                        socket.write_all(once_in).unwrap();
                    }
                }
                None => rogue(&mut socket, &frame),
            }
            at = next;
        }
        buffer = BytesMut::from(&batch[at..]);
        let mut more = [0; 4096];
        match socket.read(&mut more).expect("the node closes the connection in time") {
            0 => return,
            read => buffer.extend_from_slice(&more[..read]),
        }
    }
}

/// A node, and the socket on which its controller is to be.
pub(crate) fn node(number: u32) -> (thread::JoinHandle<Global>, UnixStream, PathBuf) {
    node_with(number, |builder| builder)
}

pub(crate) fn node_with(
    number: u32,
    with: impl FnOnce(GlobalBuilder) -> GlobalBuilder,
) -> (thread::JoinHandle<Global>, UnixStream, PathBuf) {
    let (starting, listener, directory) = listening(number, with);
    (starting, accepted(&listener), directory)
}

fn accepted(listener: &UnixListener) -> UnixStream {
    let (socket, _) = listener.accept().unwrap();
    socket.set_read_timeout(Some(BOUND)).unwrap();
    socket
}

/// A node, and where its controller is to be.
pub(crate) fn listening(
    number: u32,
    with: impl FnOnce(GlobalBuilder) -> GlobalBuilder,
) -> (thread::JoinHandle<Global>, UnixListener, PathBuf) {
    let directory = std::env::temp_dir().join(format!("daffi-rogue-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("socket");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let builder = Global::builder().process_name("a").unix_sock_path(path).link_time_callbacks(false);
    let builder = with(builder);
    let starting = thread::spawn(move || builder.start().unwrap());
    (starting, listener, directory)
}

#[test]
fn targets_that_make_no_sense_end_the_connection() {
    for (number, answers) in [&["a\nb", "a\nb"][..], &[""], &["b\n"], &["b\nb"]].into_iter().enumerate() {
        let (starting, socket, directory) = node(number as u32);
        let caller = thread::spawn(move || {
            let node = starting.join().unwrap();
            node.call.by_name::<(), _>("f", ()) & BROADCAST.return_result().timeout(BOUND)
        });
        control(socket, &[], |socket, frame| {
            if let Frame::Request(Request { id, broadcast: true, .. }) = *frame {
                for nodes in answers {
                    let _ = socket.write_all(&Frame::Targets(Targets { id, nodes }).to_bytes());
                }
            }
        });
        let results = caller.join().unwrap();
        let lost = |error: &Error| matches!(error, Error::ControllerLost { .. });
        match results {
            Err(error) => assert!(lost(&error), "{answers:?}: {error:?}"),
            Ok(results) => assert!(results.values().all(|result| result.as_ref().is_err_and(lost))),
        }
        let _ = std::fs::remove_dir_all(directory);
    }
}

#[test]
fn the_id_of_a_request_that_is_coming_cannot_be_used_again() {
    let (starting, socket, directory) = node(100);
    let first = Request {
        id: 7,
        one_way: false,
        broadcast: false,
        more: true,
        codec: 0,
        hops: 1,
        deadline_us: 0,
        fingerprint: 0,
        callback: 0,
        total: 10,
        name: "f",
        node: "b",
        body: Body::borrowed(b"begin"),
    };
    let again = Request { more: false, total: 5, ..first.clone() };
    let mut twice = Frame::Request(first).to_bytes().to_vec();
    twice.extend_from_slice(&Frame::Request(again).to_bytes());
    control(socket, &twice, |_, _| ());
    drop(starting.join().unwrap());
    let _ = std::fs::remove_dir_all(directory);
}

/// What was passed on before the controller knew that the node stops, nobody else gets. Found by simulation.
#[test]
fn what_was_passed_on_before_the_goodbye_arrived_runs() {
    let ran = Arc::new(AtomicUsize::new(0));
    let counted = ran.clone();
    let count = move || {
        counted.fetch_add(1, Ordering::SeqCst);
    };
    let (starting, socket, directory) = node_with(101, |builder| builder.callback("f", count));
    let controller = thread::spawn(move || {
        control(socket, &[], |socket, frame| {
            // Behind its GOODBYE it asks whether all that was passed on before is there, and this comes before the answer.
            if let Frame::Ping { id: 0 } = frame {
                let mut request = Request::new(7, "f", Body::default());
                (request.one_way, request.callback) = (true, 0);
                socket.write_all(&Frame::Request(request).to_bytes()).unwrap();
            }
        });
    });
    starting.join().unwrap().stop().unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 1);
    controller.join().unwrap();
    let _ = std::fs::remove_dir_all(directory);
}

/// Answers that come together, to tasks that do not look after them: the calls that wait for their places leave all the same, with
/// nothing else going on.
#[test]
fn calls_that_wait_for_the_places_of_neglected_ones_leave() {
    // Once a second the reactor looks at its connections, and then they leave in any case. A busy machine may take as long for it
    // now and then.
    let times: Vec<_> = (103..106).map(places_of_neglected_calls).collect();
    assert!(times.iter().any(|time| *time < Duration::from_millis(900)), "{times:?}");
}

/// How long it takes until the others leave.
fn places_of_neglected_calls(number: u32) -> Duration {
    const CALLS: usize = 64;
    // No ping comes in time.
    let limits = Limits { calls_in_flight_max: CALLS, heartbeat: 4 * BOUND, ..Limits::default() };
    let (starting, socket, directory) = node_with(number, |builder| builder.limits(limits));
    let (waits, all_wait) = mpsc::channel();
    let (came, all_came) = mpsc::channel();
    let caller = thread::spawn(move || {
        let node = starting.join().unwrap();
        let mut calls: Vec<_> =
            (0..2 * CALLS).map(|_| Box::pin(node.call.by_name::<(), _>("f", ()).into_future())).collect();
        for call in &mut calls {
            assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        waits.send(()).unwrap();
        all_came.recv_timeout(BOUND).expect("the others leave");
    });
    let (mut ids, mut answered, mut took) = (Vec::new(), Instant::now(), Duration::MAX);
    control(socket, &[], |socket, frame| {
        let Frame::Request(request) = frame else { return };
        ids.push(request.id);
        if ids.len() == CALLS {
            all_wait.recv_timeout(BOUND).unwrap();
            let reply = |id: &u64| {
                let body = Body::default();
                Frame::Reply(Reply { id: *id, more: false, part: 0, codec: 0, total: 0, body }).to_bytes()
            };
            let replies: Vec<_> = ids.iter().map(reply).collect();
            answered = Instant::now();
            socket.write_all(&replies.concat()).unwrap();
        }
        if ids.len() == 2 * CALLS {
            took = answered.elapsed();
            came.send(()).unwrap();
        }
    });
    caller.join().unwrap();
    let _ = std::fs::remove_dir_all(directory);
    took
}

/// Answers of neglected calls that come with the end of the link count, and the calls that wait for their places go over the next one.
#[test]
fn calls_that_wait_for_places_go_over_the_next_link() {
    const CALLS: usize = 64;
    let limits = Limits { calls_in_flight_max: CALLS, ..Limits::default() };
    let (starting, listener, directory) = listening(110, |builder| builder.limits(limits));
    let (waits, all_wait) = mpsc::channel();
    let (came, all_came) = mpsc::channel();
    let caller = thread::spawn(move || {
        let node = starting.join().unwrap();
        let mut calls: Vec<_> =
            (0..2 * CALLS).map(|_| Box::pin(node.call.by_name::<(), _>("f", ()).into_future())).collect();
        let mut poll = |call: usize| calls[call].as_mut().poll(&mut Context::from_waker(Waker::noop()));
        for call in 0..2 * CALLS {
            assert!(poll(call).is_pending());
        }
        waits.send(()).unwrap();
        all_came.recv_timeout(BOUND).expect("the others go over the next link");
        for call in 0..CALLS {
            assert!(matches!(poll(call), Poll::Ready(Ok(()))), "{call}");
        }
    });
    let first = accepted(&listener);
    let ends = first.try_clone().unwrap();
    let mut ids = Vec::new();
    control(first, &[], |socket, frame| {
        let Frame::Request(request) = frame else { return };
        ids.push(request.id);
        if ids.len() == CALLS {
            all_wait.recv_timeout(BOUND).unwrap();
            let reply = |id: &u64| {
                let body = Body::default();
                Frame::Reply(Reply { id: *id, more: false, part: 0, codec: 0, total: 0, body }).to_bytes()
            };
            let replies: Vec<_> = ids.iter().map(reply).collect();
            socket.write_all(&replies.concat()).unwrap();
            ends.shutdown(std::net::Shutdown::Both).unwrap();
        }
    });
    let mut count = 0;
    control(accepted(&listener), &[], |_, frame| {
        let Frame::Request(_) = frame else { return };
        count += 1;
        // One had the place of the first that was answered, and was sent before.
        if count == CALLS - 1 {
            came.send(()).unwrap();
        }
    });
    caller.join().unwrap();
    let _ = std::fs::remove_dir_all(directory);
}
