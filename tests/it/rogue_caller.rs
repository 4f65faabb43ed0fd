//! A caller that breaks the protocol.

use std::{
    io::{Read as _, Write as _},
    mem,
    net::Shutdown,
    os::unix::net::UnixStream,
    thread,
};

use bytes::BytesMut;
use daffi::{Bytes, FG};
use daffi_core::{
    frame::{Body, Frame, Hello, Request, VERSION},
    limits::FRAME_BYTES_MAX,
    payload::Codec,
};

use crate::support::{Count, Net};

const MIB: usize = 1024 * 1024;

/// Calls a node for results of 20 MiB and takes them from the socket, but never says that it would take more.
fn caller_that_gives_no_credit(net: &Net, calls: u64) -> UnixStream {
    let mut socket = UnixStream::connect(net.socket()).unwrap();
    let hello = Hello {
        version_min: VERSION,
        version_max: VERSION,
        capabilities: 0,
        instance: 1,
        name: "hostile",
        credentials: &[],
    };
    socket.write_all(&Frame::Hello(hello).to_bytes()).unwrap();
    let arguments = Codec::Bincode.encode_apart(&(20 * MIB,)).unwrap();
    for id in 1..=calls {
        let request = Request::new(id, "give", Body::encoded(&arguments));
        socket.write_all(&Frame::Request(request).to_bytes()).unwrap();
    }
    let (ours, begun) = (socket.try_clone().unwrap(), Count::new());
    let all_begun = begun.clone();
    thread::spawn(move || take_without_credit(ours, &begun));
    all_begun.wait(calls as usize);
    socket
}

fn take_without_credit(mut socket: UnixStream, begun: &Count) {
    let mut buffer = BytesMut::new();
    let mut more = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = socket.read(&mut more) {
        buffer.extend_from_slice(&more[..read]);
        let batch = mem::take(&mut buffer).freeze();
        let mut at = 0;
        while let Some((frame, next)) = Frame::decode(&batch, at, FRAME_BYTES_MAX).unwrap() {
            match frame {
                Frame::Ping { id } => socket.write_all(&Frame::Pong { id }.to_bytes()).unwrap(),
                Frame::Reply(_) => begun.add(),
                _ => {}
            }
            at = next;
        }
        buffer.extend_from_slice(&batch[at..]);
    }
}

#[test]
fn large_results_do_not_wait_for_callers_that_take_nothing() {
    let net = Net::new();
    let give = |size: usize| Bytes::from(vec![7; size]);
    let callee = net.node("callee").callback("give", give).callback("quick", |a: u32| a).start().unwrap();
    let caller = net.caller();
    caller.wait_function("give").unwrap();
    // More than may be on its way to one receiver.
    let hostile = caller_that_gives_no_credit(&net, 8);
    for _ in 0..3 {
        // A small one besides, for which large ones keep their distance.
        assert_eq!((caller.call.by_name::<u32, _>("quick", (7u32,)) & FG).unwrap(), 7);
        let result = caller.call.by_name::<Bytes, _>("give", (5 * MIB,)) & FG;
        assert!(result.unwrap() == give(5 * MIB));
    }
    hostile.shutdown(Shutdown::Both).unwrap();
    drop(callee);
}
