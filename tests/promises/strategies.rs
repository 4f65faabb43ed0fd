//! Among candidates: `Strategy::{Random, RoundRobin, LeastBusy}`.

use std::collections::BTreeMap;

use daffi::{BG, FG};

use crate::{
    roles::Callee,
    support::{World, nonce},
};

/// Who answers so many calls, and how often.
fn shares(world: &World, calls: usize) -> BTreeMap<String, usize> {
    let g = world.caller();
    let mut shares = BTreeMap::new();
    for _ in 0..calls {
        *shares.entry((g.call.who() & FG).unwrap()).or_default() += 1;
    }
    shares
}

/// Random by default: about equal shares, in no order.
#[test]
fn chance_is_the_default() {
    let world = World::new();
    let _callees = ["a", "b", "c"].map(|name| world.callee(name));
    let shares = shares(&world, 300);
    // Each is within 6 standard deviations of 100.
    assert!(shares.len() == 3 && shares.values().all(|count| (50..=150).contains(count)), "{shares:?}");
    let exact = shares.values().all(|count| *count == 100);
    assert!(!exact || self::shares(&world, 301).values().any(|count| *count > 101), "that is no chance");
}

/// Round robin: exactly equal shares.
#[test]
fn round_robin_is_exact() {
    let world = World::with(&["--strategy", "round-robin"]);
    let _callees = ["a", "b", "c"].map(|name| world.callee(name));
    let shares = shares(&world, 300);
    assert!(shares.values().all(|count| *count == 100), "{shares:?}");
}

/// Least busy: whoever has the fewest calls in flight.
#[test]
fn the_least_busy_is_chosen() {
    let world = World::with(&["--strategy", "least-busy"]);
    let _callees = ["a", "b", "c"].map(|name| world.callee(name));
    let g = world.caller();
    let mut busy = Vec::new();
    for node in ["a", "b", "b"] {
        let call = nonce();
        busy.push(g.call.slow(call, 60_000) & BG.on(node));
        world.await_event("run", call);
    }
    for _ in 0..30 {
        assert_eq!((g.call.who() & FG).unwrap(), "c");
    }
    // With one call there, it has as many as `a`, and fewer than `b`.
    let call = nonce();
    busy.push(g.call.slow(call, 60_000) & BG.on("c"));
    world.await_event("run", call);
    for _ in 0..30 {
        assert_ne!((g.call.who() & FG).unwrap(), "b");
    }
    for call in busy {
        call.cancel();
    }
}
