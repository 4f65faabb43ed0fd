//! Payloads of all sizes, both ways, and their limit.

use std::{
    collections::HashSet,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    thread,
    time::{Duration, Instant},
};

use daffi::{BG, BROADCAST, Bytes, Error, FG, Global, Limits, NO_RETURN, PERIOD};
use serde::{Deserialize, Serialize};

use crate::support::{BOUND, Count, Net, run};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// From nothing to several transfers' windows; the edges are those of what travels in one piece.
const SIZES: [usize; 13] = [
    0,
    1,
    255,
    4 * KIB,
    64 * KIB - 9,
    64 * KIB - 8,
    64 * KIB - 7,
    64 * KIB - 1,
    64 * KIB,
    64 * KIB + 1,
    MIB,
    MIB + 1,
    5 * MIB,
];

/// Bytes that tell where they belong.
fn bytes(size: usize) -> Bytes {
    let piece: Vec<u8> = (0..=250).collect();
    let mut bytes = piece.repeat(size / piece.len() + 1);
    bytes.truncate(size);
    bytes.into()
}

fn callee(builder: daffi::GlobalBuilder) -> Global {
    builder
        .callback("take", |bytes: Bytes| bytes.len())
        .callback("give", |size: usize| bytes(size))
        .callback("echo", |bytes: Bytes| bytes)
        .async_callback("echo async", |bytes: Bytes| async { bytes })
        .callback("quick", |a: u32| a)
        .start()
        .unwrap()
}

fn all_sizes(a: &Global) {
    for size in SIZES {
        let payload = bytes(size);
        let echo = |name: &'static str| a.call.by_name::<Bytes, _>(name, (&payload,));
        assert_eq!((a.call.by_name::<usize, _>("take", (&payload,)) & FG).unwrap(), size);
        let given = (a.call.by_name::<Bytes, _>("give", (size,)) & FG).unwrap();
        assert!(given == payload, "{size}");
        let in_background = echo("echo async") & BG;
        let awaited = run(echo("echo async").into_future());
        let mut results = (echo("echo") & BROADCAST.return_result()).unwrap();
        let results = [(echo("echo") & FG), in_background.get(), awaited, results.pop_first().unwrap().1];
        assert!(results.into_iter().all(|result| result.unwrap() == payload), "{size}");
    }
}

#[test]
fn a_vector_travels_as_well_as_bytes() {
    let net = Net::new();
    let _b = net.node("b").callback("echo", |numbers: Vec<u8>| numbers).start().unwrap();
    let a = net.caller();
    for size in [0, 1, 64 * KIB - 8, 64 * KIB, 300 * KIB] {
        let numbers = bytes(size).to_vec();
        assert!((a.call.by_name::<Vec<u8>, _>("echo", (&numbers,)) & FG).unwrap() == numbers, "{size}");
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct File {
    name: String,
    content: Bytes,
    parts: Vec<Bytes>,
    length: u64,
}

/// Whatever lies between them, and wherever chunks begin and end.
#[test]
fn bytes_travel_inside_of_other_types() {
    let net = Net::new();
    let _b = net
        .node("b")
        .callback("echo", |number: u8, file: File, text: String| (number, file, text))
        .start()
        .unwrap();
    let a = net.caller();
    for size in SIZES {
        let parts = vec![bytes(size / 2), bytes(5 * KIB), bytes(10), bytes(size)];
        let file = File { name: "name".to_owned(), content: bytes(size), parts, length: 7 };
        let echo = || a.call.by_name::<(u8, File, String), _>("echo", (1u8, &file, "text"));
        let expected = (1, file.clone(), "text".to_owned());
        assert!((echo() & FG).unwrap() == expected, "{size}");
        let mut results = (echo() & BROADCAST.return_result()).unwrap();
        assert!(results.remove("b").unwrap().unwrap() == expected, "{size}");
    }
}

/// Each side writes what suits it.
#[test]
fn bytes_of_one_side_are_a_vector_for_the_other() {
    let net = Net::new();
    let _b = net
        .node("b")
        .callback("to bytes", |numbers: Vec<u8>| Bytes::from(numbers))
        .callback("to vector", |bytes: Bytes| bytes.to_vec())
        .start()
        .unwrap();
    let a = net.caller();
    let payload = bytes(100 * KIB);
    assert!((a.call.by_name::<Vec<u8>, _>("to bytes", (&payload,)) & FG).unwrap() == *payload);
    assert!((a.call.by_name::<Bytes, _>("to vector", (&payload[..],)) & FG).unwrap() == payload);
}

/// What a callback gets is shared with the call that it came with, unless it is so small that a copy is better.
#[test]
fn a_callback_gets_bytes_without_a_copy() {
    let net = Net::new();
    let _b = net.node("b").callback("is shared", |bytes: Bytes| !bytes.is_unique()).start().unwrap();
    let a = net.caller();
    for (size, shared) in [(1, false), (KIB, false), (40 * KIB, true), (64 * KIB - 8, true), (5 * MIB, true)]
    {
        let answer = a.call.by_name::<bool, _>("is shared", (bytes(size),)) & FG;
        assert_eq!(answer.unwrap(), shared, "{size}");
    }
}

#[test]
fn all_sizes_travel_both_ways() {
    let net = Net::new();
    let _b = callee(net.node("b"));
    all_sizes(&net.caller());
}

#[test]
fn all_sizes_travel_from_beside_the_controller() {
    let (net, a) = Net::embedded("caller");
    let _b = callee(net.node("b"));
    a.wait_process("b").unwrap();
    all_sizes(&a);
}

#[test]
fn all_sizes_travel_to_beside_the_controller() {
    let (net, _unused) = {
        let (net, first) = Net::embedded("first");
        // The node beside the controller is the one that offers.
        first.stop().unwrap();
        let b = callee(net.node("b").init_controller(true));
        (net, b)
    };
    all_sizes(&net.caller());
}

/// More of them than all windows together have room for a part of each.
#[test]
fn hundreds_of_large_payloads_travel_at_once() {
    let net = Net::new();
    let _b = callee(net.node("b"));
    let a = net.caller();
    let payload = bytes(MIB / 2);
    let echoes: Vec<_> = (0..200).map(|_| a.call.by_name::<Bytes, _>("echo", (&payload,)) & BG).collect();
    for (at, echo) in echoes.into_iter().enumerate() {
        assert!(echo.get_timeout(BOUND).unwrap() == payload, "{at}");
    }
    // Nor do those that nobody answers keep others back.
    for _ in 0..200 {
        let _ = a.call.by_name::<(), _>("nowhere", (&payload,)) & NO_RETURN;
    }
    assert!((a.call.by_name::<Bytes, _>("echo", (&payload,)) & FG.timeout(BOUND)).unwrap() == payload);
}

/// However quick a callback is: decoding alone takes as long as many calls.
#[test]
fn large_arguments_are_never_decoded_on_the_io_thread() {
    let thread = || thread::current().name().unwrap().to_owned();
    let net = Net::new();
    let _b = net
        .node("b")
        .callback("thread", move |_: Bytes| thread())
        .async_callback("thread async", move |_: Bytes| async move { thread() })
        .start()
        .unwrap();
    let a = net.caller();
    for name in ["thread", "thread async"] {
        let on = |bytes: &Bytes| (a.call.by_name::<String, _>(name, (bytes,)) & FG).unwrap();
        let small = || {
            let begun = Instant::now();
            while on(&bytes(1)) != "daffi-io" {
                assert!(begun.elapsed() < BOUND, "{name} never counts as quick");
            }
        };
        small();
        for _ in 0..3 {
            let thread = on(&bytes(5 * MIB));
            assert_ne!(thread, "daffi-io", "{name}");
        }
        small();
    }
}

#[test]
fn many_large_payloads_travel_at_once() {
    let net = Net::new();
    let _b = callee(net.node("b"));
    let a = net.caller();
    let payload = bytes(2 * MIB);
    let results: Vec<_> = (0..4).map(|_| a.call.by_name::<Bytes, _>("echo", (&payload,)) & BG).collect();
    for result in results {
        assert!(result.get().unwrap() == payload);
    }
}

#[test]
fn large_payloads_without_return_arrive() {
    let net = Net::new();
    let sum = Count::new();
    let counts = sum.clone();
    let expected = bytes(2 * MIB);
    let same = expected.clone();
    let check = move |bytes: Bytes| {
        if bytes == same {
            counts.add();
        }
    };
    let _b = net.node("b").callback("check", check).start().unwrap();
    let a = net.caller();
    for _ in 0..3 {
        (a.call.by_name::<(), _>("check", (&expected,)) & NO_RETURN).unwrap();
    }
    (a.call.by_name::<(), _>("check", (&expected,)) & NO_RETURN.eta(Duration::from_millis(5))).unwrap();
    sum.wait(4);
}

/// The caller is done once the controller has passed a broadcast on, and most of the payload leaves after that.
fn broadcast_without_results_arrives(net: &Net, a: &Global) {
    let whole = Count::new();
    let expected = bytes(5 * MIB);
    let nodes: Vec<_> = ["b", "c", "d"]
        .into_iter()
        .map(|name| {
            let (whole, same) = (whole.clone(), expected.clone());
            let check = move |bytes: Bytes| {
                if bytes == same {
                    whole.add();
                }
            };
            net.node(name).callback("check", check).start().unwrap()
        })
        .collect();
    for node in &nodes {
        a.wait_process(node.process_name()).unwrap();
    }
    for round in 1..=3 {
        (a.call.by_name::<(), _>("check", (&expected,)) & BROADCAST).unwrap();
        whole.wait(3 * round);
    }
    // One that nobody can take holds up no other.
    let refused = a.call.by_name::<(), _>("check", (&expected, 1)) & BROADCAST;
    assert!(matches!(refused, Err(Error::SignatureMismatch { .. })), "{refused:?}");
    (a.call.by_name::<(), _>("check", (&expected,)) & BROADCAST.eta(Duration::from_millis(5))).unwrap();
    whole.wait(12);
}

#[test]
fn large_broadcasts_without_results_arrive() {
    let net = Net::new();
    broadcast_without_results_arrives(&net, &net.caller());
}

#[test]
fn large_broadcasts_without_results_arrive_from_beside_the_controller() {
    let (net, a) = Net::embedded("caller");
    broadcast_without_results_arrives(&net, &a);
}

/// A payload that nobody takes, or that is refused on the way, must not keep its share of a window.
#[test]
fn large_payloads_that_nobody_takes_hold_up_no_others() {
    let net = Net::new();
    let _b = callee(net.node("b"));
    let limits = Limits { payload_bytes_max: 200 * KIB as u64, ..Limits::default() };
    let _c = net.node("c").limits(limits).callback("strict", |_: Bytes| ()).start().unwrap();
    let a = net.caller();
    let payload = bytes(3 * MIB);
    for _ in 0..10 {
        (a.call.by_name::<(), _>("nobody", (&payload,)) & NO_RETURN).unwrap();
        let refused = a.call.by_name::<(), _>("nobody", (&payload,)) & FG;
        assert!(matches!(refused, Err(Error::NoCandidate { .. })), "{refused:?}");
        // Known, and refused for its types.
        (a.call.by_name::<u8, _>("echo", (&payload, 1)) & NO_RETURN).unwrap();
        // Refused by the callee, while as much as may be is on its way.
        (a.call.by_name::<(), _>("strict", (&payload,)) & NO_RETURN).unwrap();
        (a.call.by_name::<(), _>("strict", (&payload,)) & BROADCAST).unwrap();
    }
    let echoed = a.call.by_name::<Bytes, _>("echo", (&payload,)) & FG.timeout(BOUND);
    assert!(echoed.unwrap() == payload);
}

#[test]
fn payloads_without_return_wait_for_the_controller() {
    // A caller that comes back in the moment between controller and callee finds nobody, so there is another try.
    let arrived = (0..3).any(|_| {
        let (net, b) = Net::embedded("b");
        let a = net.caller();
        b.stop().unwrap();
        // Until it is known that the controller is gone, which is at once, calls go to it.
        let nobody = a.wait_process_timeout("nobody", Duration::from_millis(50));
        assert!(matches!(nobody, Err(Error::Timeout { .. })));
        let sizes = [10, 3 * MIB, 100 * KIB];
        for size in sizes {
            (a.call.by_name::<(), _>("take", (bytes(size),)) & NO_RETURN).unwrap();
        }
        let (sender, taken) = channel();
        let take = move |taken: Bytes| {
            let size = taken.len();
            sender.send((size, taken == bytes(size))).unwrap();
        };
        let _b = net.node("b").init_controller(true).callback("take", take).start().unwrap();
        let mut missing: HashSet<_> = sizes.into();
        while let Some((size, intact)) =
            (!missing.is_empty()).then(|| taken.recv_timeout(BOUND / 5).ok()).flatten()
        {
            assert!(intact);
            missing.remove(&size);
        }
        missing.is_empty()
    });
    assert!(arrived);
}

#[test]
fn small_calls_keep_flowing_while_a_large_one_travels() {
    let net = Net::new();
    let _b = callee(net.node("b"));
    let a = net.caller();
    let payload = bytes(40 * MIB);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let large = scope.spawn(|| {
            let size = (a.call.by_name::<usize, _>("take", (&payload,)) & FG.timeout(2 * BOUND)).unwrap();
            done.store(true, Ordering::SeqCst);
            size
        });
        let mut during = 0;
        for number in 0.. {
            assert_eq!((a.call.by_name::<u32, _>("quick", (number,)) & FG).unwrap(), number);
            if done.load(Ordering::SeqCst) {
                break;
            }
            during += 1;
        }
        assert_eq!(large.join().unwrap(), payload.len());
        assert!(during >= 5, "{during} small calls during a large one");
    });
}

#[test]
fn a_large_call_that_is_cancelled_leaves_the_way_free() {
    let net = Net::new();
    let _b = callee(net.node("b"));
    let a = net.caller();
    let payload = bytes(5 * MIB);
    for _ in 0..10 {
        let result = a.call.by_name::<Bytes, _>("echo", (&payload,)) & BG;
        result.cancel();
        assert!(matches!(result.get(), Err(Error::Cancelled { .. })));
    }
    assert!((a.call.by_name::<Bytes, _>("echo", (&payload,)) & FG).unwrap() == payload);
}

fn too_large<T>(result: daffi::Result<T>, expected: &str) -> (u64, u64) {
    let error = result.map(drop).unwrap_err();
    let Error::TooLarge { what, size, limit, .. } = &error else { panic!("{error}") };
    assert_eq!(*what, expected);
    assert_eq!(error.may_have_executed(), expected == "result");
    assert!(!error.is_retryable());
    (*size, *limit)
}

#[test]
fn the_limit_holds_on_either_side() {
    let limit = 200 * KIB as u64;
    let small = Limits { payload_bytes_max: limit, ..Limits::default() };
    let (below, above) = (200 * KIB - 64, 200 * KIB + 1);
    for (controller, caller, other) in [
        (Limits::default(), small.clone(), Limits::default()),
        (Limits::default(), Limits::default(), small.clone()),
        (small.clone(), Limits::default(), Limits::default()),
        (small.clone(), small.clone(), small.clone()),
    ] {
        let net = Net::with_limits(controller);
        let _b = callee(net.node("b").limits(other));
        let a = net.node("caller").limits(caller).start().unwrap();
        for _ in 0..2 {
            let (size, at) = too_large(a.call.by_name::<usize, _>("take", (bytes(above),)) & FG, "arguments");
            assert!(size > limit && at == limit, "{size} {at}");
            too_large((a.call.by_name::<usize, _>("take", (bytes(above),)) & BG).get(), "arguments");
            let (size, at) = too_large(a.call.by_name::<Bytes, _>("give", (above,)) & FG, "result");
            assert!(size > limit && at == limit, "{size} {at}");
            // What fits still goes through.
            let echo = || a.call.by_name::<Bytes, _>("echo", (bytes(below),));
            assert!((echo() & FG).unwrap() == bytes(below));
            // A node whose result is too large has that as its entry, however large it is.
            for size in [above, 3 * MIB] {
                let give = a.call.by_name::<Bytes, _>("give", (size,));
                let mut results = (give & BROADCAST.return_result()).unwrap();
                too_large(results.remove("b").unwrap(), "result");
            }
            let mut results = (echo() & BROADCAST.return_result()).unwrap();
            assert!(results.remove("b").unwrap().unwrap() == bytes(below));
        }
    }
}

/// What a node holds for others is bounded in bytes, not in number alone.
#[test]
fn a_node_holds_only_so_many_bytes_of_arguments() {
    let net = Net::new();
    let (begun, runs) = channel();
    let release = Arc::new(Barrier::new(4));
    let gate = release.clone();
    let limits = Limits { requests_held_bytes_max: 3 * MIB + KIB, ..Limits::default() };
    let hold = move |bytes: Bytes| {
        begun.send(()).unwrap();
        gate.wait();
        bytes.len()
    };
    let _b = callee(net.node("b").limits(limits).callback("hold", hold));
    let a = net.node("a").start().unwrap();
    let hold = |size: usize| a.call.by_name::<usize, _>("hold", (bytes(size),));
    let held: Vec<_> = (0..3).map(|_| hold(MIB) & BG).collect();
    (0..3).for_each(|_| runs.recv_timeout(BOUND).unwrap());
    for size in [MIB, 5 * KIB] {
        let refused = (hold(size) & FG).unwrap_err();
        assert!(matches!(&refused, Error::Overloaded { node } if node == "b"), "{refused:?}");
        assert!(!refused.may_have_executed());
    }
    assert_eq!((a.call.by_name::<u32, _>("quick", (7u32,)) & FG).unwrap(), 7, "small ones do not count");
    release.wait();
    for result in held {
        assert_eq!(result.get().unwrap(), MIB);
    }
    assert_eq!((a.call.by_name::<usize, _>("take", (bytes(3 * MIB),)) & FG).unwrap(), 3 * MIB);
    // One alone always has room.
    assert_eq!((a.call.by_name::<usize, _>("take", (bytes(5 * MIB),)) & FG).unwrap(), 5 * MIB);
}

/// Nor do calls that nobody waits for keep more than so many bytes until they are sent.
#[test]
fn calls_in_the_background_keep_only_so_many_bytes() {
    let mut net = Net::new();
    let _b = callee(net.node("b"));
    let limits = Limits { calls_waiting_bytes_max: 2 * MIB + KIB, ..Limits::default() };
    let a = net.node("a").limits(limits).start().unwrap();
    assert_eq!((a.call.by_name::<u32, _>("quick", (1u32,)) & FG).unwrap(), 1);
    net.stop_controller();
    let take = |size: usize| a.call.by_name::<usize, _>("take", (bytes(size),));
    let kept: Vec<_> = (0..2).map(|_| take(MIB) & BG).collect();
    let is_full = |error: &Error| matches!(error, Error::Overloaded { node } if node == "a");
    assert!(is_full(&(take(MIB) & BG).get().unwrap_err()));
    assert!(is_full(&(take(MIB) & NO_RETURN).unwrap_err()));
    let small = take(KIB) & BG;
    // One that was given up makes room for another.
    let [given_up, stays] = <[_; 2]>::try_from(kept).unwrap();
    given_up.cancel();
    let kept = [stays, take(MIB) & BG];
    assert!(is_full(&(take(MIB) & BG).get().unwrap_err()));
    // Whoever waits has the arguments in any case.
    thread::scope(|scope| {
        let waits = scope.spawn(|| take(2 * MIB) & FG);
        net.start_controller(Limits::default());
        assert_eq!(waits.join().unwrap().unwrap(), 2 * MIB);
    });
    for result in kept {
        assert_eq!(result.get().unwrap(), MIB);
    }
    assert_eq!(small.get().unwrap(), KIB);
    assert_eq!((take(MIB) & BG).get().unwrap(), MIB);
}

/// What is scheduled has to fit in a frame, and is told so, however little room there is for calls that wait.
#[test]
fn arguments_of_a_period_that_are_too_large_are_called_that() {
    let net = Net::new();
    let _b = callee(net.node("b"));
    let limits = Limits { calls_waiting_bytes_max: 1, ..Limits::default() };
    let a = net.node("a").limits(limits).start().unwrap();
    let take = |size: usize| a.call.by_name::<usize, _>("take", (bytes(size),));
    let waiting = take(MIB) & BG.eta(BOUND);
    let scheduled = take(MIB) & PERIOD.period(BOUND);
    let (size, limit) = too_large(scheduled, "arguments");
    assert!(size > MIB as u64 && (64 * KIB as u64..MIB as u64).contains(&limit), "{size}, {limit}");
    waiting.cancel();
}

/// After a controller has come back calls are kept for a while, since they may have to be sent again; not once they are over.
#[test]
fn a_call_that_is_over_is_not_kept_to_be_sent_again() {
    let mut net = Net::new();
    let (begun, runs) = channel();
    let (release, gate) = channel::<()>();
    let gate = Mutex::new(gate);
    let hold = move |_: Bytes| {
        begun.send(()).unwrap();
        let _ = gate.lock().unwrap().recv();
    };
    let _b = callee(net.node("b").callback("hold", hold));
    let limits = Limits { calls_waiting_bytes_max: MIB + KIB, ..Limits::default() };
    let a = net.node("a").limits(limits).start().unwrap();
    net.stop_controller();
    net.start_controller(Limits::default());
    a.wait_process_timeout("b", BOUND).unwrap();
    let held = a.call.by_name::<(), _>("hold", (bytes(MIB),)) & BG.timeout(Duration::from_millis(500));
    runs.recv_timeout(BOUND).unwrap();
    assert!(matches!(held.get(), Err(Error::Timeout { sent: true, .. })));
    // There is room for its arguments again.
    assert_eq!((a.call.by_name::<usize, _>("take", (bytes(MIB),)) & BG).get().unwrap(), MIB);
    drop(release);
}
