//! BROADCAST: every node that offers the name, without the caller's own.

use std::{
    thread,
    time::{Duration, Instant},
};

use daffi::{BROADCAST, Error};

use crate::{
    roles::Callee,
    support::{AT_ONCE, World, nonce, until},
};

/// One node's failure is that node's entry, not the whole call's: one fails, one is killed, one is too slow, one is
/// frozen, one is not there, one expects something else, and the rest succeed.
#[test]
fn every_node_has_its_own_result() {
    let world = World::new();
    let _well = ["good1", "good2", "bad", "slow"].map(|name| world.callee(name));
    let mut doomed = world.callee("doomed");
    let frozen = world.callee("frozen");
    let odd = world.builder("odd").callback("varied", |_: String| 1u8).start().unwrap();
    let g = world.builder("caller").callback("varied", |_: u64| String::new()).start().unwrap();
    frozen.freeze();
    let call = nonce();
    let timeout = Duration::from_secs(3);
    let begun = Instant::now();
    let results = thread::scope(|scope| {
        let broadcast = scope.spawn(|| g.call.varied(call) & BROADCAST.timeout(timeout).return_result());
        until("five nodes run it", || world.count("run", call) == 5);
        doomed.kill();
        broadcast.join().unwrap().unwrap()
    });
    let took = begun.elapsed();
    assert!(took >= timeout && took < timeout + AT_ONCE, "{took:?}");
    let names: Vec<_> = results.keys().map(String::as_str).collect();
    assert_eq!(names, ["bad", "doomed", "frozen", "good1", "good2", "odd", "slow"], "all but the caller");
    for good in ["good1", "good2"] {
        assert_eq!(results[good].as_ref().unwrap(), good);
    }
    let error = |name: &str| results[name].as_ref().unwrap_err();
    assert!(
        matches!(error("bad"), Error::Remote(remote) if remote.message() == "this node is bad" && remote.node() == "bad")
    );
    assert!(matches!(error("doomed"), Error::RemoteStopped { node } if node == "doomed"), "{results:?}");
    assert!(matches!(error("odd"), Error::SignatureMismatch { node, .. } if node == "odd"), "{results:?}");
    for late in ["slow", "frozen"] {
        assert!(matches!(error(late), Error::Timeout { after, .. } if *after == timeout), "{results:?}");
    }
    // The slow one is told that nobody waits, and the frozen one does not begin.
    world.await_event("cancelled", call);
    frozen.thaw();
    let _: String = (g.call.who() & daffi::FG.on("frozen")).unwrap();
    assert_eq!(world.count("run", call), 5);
    drop(odd);
}

/// Without results everybody runs it once, and the call is over as soon as it is passed on.
#[test]
fn everybody_else_runs_it_once() {
    let world = World::new();
    let _callees = ["a", "b", "c"].map(|name| world.callee(name));
    let g = world.caller();
    let calls: Vec<_> = (0..100).map(|_| nonce()).collect();
    for call in &calls {
        (g.call.tick(*call) & BROADCAST).unwrap();
    }
    until("everybody has run everything", || world.events().len() >= 300);
    let large = nonce();
    let results = (g.call.echo(large, &vec![3; 500_000]) & BROADCAST.return_result()).unwrap();
    assert_eq!(results.len(), 3);
    assert!(results.values().all(|result| *result.as_ref().unwrap() == vec![3; 500_000]));
    for call in &calls {
        let mut nodes: Vec<_> =
            world.events().into_iter().filter(|event| event.nonce == *call).map(|event| event.node).collect();
        nodes.sort();
        assert_eq!(nodes, ["a", "b", "c"]);
    }
    let some = nonce();
    let results = g.call.work(some).on_all(["a", "nobody", "c"]).broadcast_results().unwrap();
    assert_eq!(results.keys().collect::<Vec<_>>(), ["a", "c", "nobody"]);
    assert!(matches!(&results["nobody"], Err(Error::NoProcess { name }) if name == "nobody"), "{results:?}");
    assert_eq!(world.count("run", some), 2);
}

/// No node at all: `Error::NoCandidate`, with results or without.
#[test]
fn a_broadcast_to_nobody_is_an_error() {
    let world = World::new();
    let g = world.builder("caller").callback("work", |nonce: u64| nonce).start().unwrap();
    let error = (g.call.work(1) & BROADCAST).unwrap_err();
    assert!(matches!(&error, Error::NoCandidate { callback, .. } if callback == "work"), "{error:?}");
    let error = (g.call.work(1) & BROADCAST.return_result()).unwrap_err();
    assert!(matches!(&error, Error::NoCandidate { .. }), "{error:?}");
    assert!(!error.may_have_executed());
}
