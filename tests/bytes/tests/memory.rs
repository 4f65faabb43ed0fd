//! What bytes announce costs nothing until it comes. Alone in its process, and without a harness and its threads, since
//! it counts all that is allocated.

use bytes::Bytes;
use daffi_core::{
    frame::{Body, Chunk, Frame, Reply, Targets},
    limits::{CHUNK_BYTES, FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX, HEAD_BYTES},
    payload::Codec,
};
use daffi_node::fuzzing::{Arguments, Pool, Results};
use peak_alloc::PeakAlloc;
use serde::Deserialize;

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

/// The most that is allocated at a time while `run` runs, beyond what was before.
fn peak<T>(run: impl FnOnce() -> T) -> usize {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    drop(run());
    ALLOCATED.peak_usage().saturating_sub(before)
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "it is only decoded")]
enum Tree {
    Leaf,
    Branch(Vec<Self>),
    Named([String; 3], Option<Box<Self>>),
}

fn main() {
    what_is_announced_is_not_allocated();
    println!("test what_is_announced_is_not_allocated ... ok");
}

fn what_is_announced_is_not_allocated() {
    frames();
    payloads();
    chunks();
}

/// A head that announces a frame of any length.
fn frames() {
    for kind in 0..=u8::MAX {
        for length in [HANDSHAKE_BYTES_MAX as u32, FRAME_BYTES_MAX as u32, u32::MAX] {
            let mut head = length.to_le_bytes().to_vec();
            head.extend_from_slice(&[kind, 0, 0, 0]);
            head.resize(HEAD_BYTES, 0);
            let head = Bytes::from(head);
            for limit in [HANDSHAKE_BYTES_MAX, FRAME_BYTES_MAX] {
                let used = peak(|| drop(Frame::decode(&head, 0, limit)));
                assert_eq!(used, 0, "kind {kind}, {length} bytes of at most {limit}");
            }
        }
    }
}

/// A number of elements, then few of them.
fn payloads() {
    fn check<T: for<'de> Deserialize<'de>>(name: &str, times: usize) {
        for announced in [1 << 10, 1 << 16, 1 << 20, 1 << 32, 1 << 50, u64::MAX] {
            for come in [0, 8, 100, 10_000] {
                let mut bytes = announced.to_le_bytes().to_vec();
                bytes.resize(8 + come, 0);
                let used = peak(|| Codec::Bincode.decode::<T>(&bytes).is_ok());
                let bound = times * (bytes.len() + 1024);
                assert!(used <= bound, "{name}: {used} bytes for {announced} of which {come} bytes came");
            }
        }
    }
    // A vector takes up to three times what it holds while it grows.
    check::<Vec<u8>>("bytes", 4);
    check::<String>("text", 4);
    check::<Vec<u64>>("numbers", 4);
    check::<Vec<()>>("nothing", 4);
    // An element takes more memory than bytes: how much is the type's affair.
    check::<std::collections::BTreeSet<u64>>("a set", 8);
    check::<Vec<Vec<Vec<u8>>>>("rows", 16);
    check::<std::collections::HashMap<u16, String>>("a map", 16);
    check::<Vec<Tree>>("trees", 64);
    // There is room for as many elements at first as bytes have come.
    check::<Vec<[u64; 16]>>("large elements", 64);
}

/// A payload of 4 GiB, of which one chunk comes.
fn chunks() {
    let body = vec![7; CHUNK_BYTES];
    let first = &body[..100];
    let at_most = 1024 * 1024 + 2 * CHUNK_BYTES;
    for placed in [false, true] {
        let used = peak(|| {
            let mut arguments = Arguments::new(&Pool::default(), u32::MAX, first);
            let chunk = Chunk { id: 1, reply: false, more: true, part: 0, body: Body::borrowed(&body) };
            assert_eq!(arguments.add(&chunk, placed), Ok(None));
            arguments
        });
        assert!(used <= at_most, "{used} bytes for arguments");
    }

    let reply = |part, total| {
        Frame::Reply(Reply { id: 1, more: true, part, codec: 0, total, body: Body::borrowed(first) })
    };
    let used = peak(|| {
        let results = Results::new(&Pool::default(), false, u64::from(u32::MAX));
        results.take(reply(0, u32::MAX), false);
        results
    });
    assert!(used <= at_most, "{used} bytes for a result");

    // A result beyond the limit is not kept at all, and nor is one of a node that was not called.
    let used = peak(|| {
        let results = Results::new(&Pool::default(), false, 1000);
        results.take(reply(0, 1001), false);
        results
    });
    assert!(used <= 4096, "{used} bytes for a result that is too large");
    let used = peak(|| {
        let results = Results::new(&Pool::default(), true, u64::from(u32::MAX));
        results.take(Frame::Targets(Targets { id: 1, nodes: "a" }), false);
        for part in 1..100 {
            results.take(reply(part, u32::MAX), false);
        }
        results
    });
    assert!(used <= 64 * 1024, "{used} bytes for results of nobody");
}
