//! Calls that come back to processes that wait for them.

use daffi::{BG, Error, FG};

use crate::{
    roles::Callee,
    support::{Event, Outcome, Process, World, nonce},
};

/// How deep calls may be nested.
const DEPTH_MAX: u64 = 32;
/// A ring that does not end by itself.
const ON_AND_ON: u64 = u64::MAX;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Five processes.
fn five(world: &World) -> [Process; 5] {
    NAMES.map(|name| world.callee(name))
}

/// The nodes of a ring of so many that begins with a call of the first one, which calls the second one.
fn ring_of(count: usize) -> Vec<String> {
    let mut nodes: Vec<_> = NAMES[..count].iter().map(|name| (*name).to_owned()).collect();
    nodes.rotate_left(1);
    nodes
}

/// A calls B, which calls A; a ring of five; and both as deep as calls may be nested, in threads and in tasks by turns.
#[test]
fn a_ring_of_processes_is_answered() {
    let world = World::new();
    let _five = five(&world);
    let g = world.caller();
    for count in [2, 5] {
        for runs in [2, count as u64, count as u64 + 1, DEPTH_MAX] {
            for in_tasks in [false, true] {
                let call = nonce();
                let ring = ring_of(count);
                let result = match in_tasks {
                    false => g.call.ring(call, runs - 1, &ring) & BG.on("a"),
                    true => g.call.ring_async(call, runs - 1, &ring) & BG.on("a"),
                };
                assert_eq!(result.outcome().unwrap(), runs, "of {count}, in tasks: {in_tasks}");
                assert_eq!(world.count("run", call) as u64, runs);
            }
        }
    }
    let wrong = |event: &&Event| event.what != "run";
    assert_eq!(world.events().iter().find(wrong), None);
}

/// Rings that go on and on, many at once and from all sides: each runs as often as calls may be nested, ends with
/// `HopLimit` there, and is answered all the way back.
#[test]
fn rings_that_go_on_and_on_end_with_the_hop_limit() {
    let world = World::new();
    let _five = five(&world);
    let g = world.caller();
    let rings: Vec<_> = (0..40)
        .map(|number| {
            let call = nonce();
            let mut ring = ring_of(if number % 2 == 0 { 2 } else { 5 });
            let start = number / 4 % ring.len();
            ring.rotate_left(start);
            let on = ring.last().unwrap().clone();
            let result = match number % 4 {
                0 | 1 => g.call.ring(call, ON_AND_ON, &ring) & BG.on(on),
                _ => g.call.ring_async(call, ON_AND_ON, &ring) & BG.on(on),
            };
            (call, result)
        })
        .collect();
    for (call, result) in rings {
        assert_eq!(result.outcome().unwrap(), DEPTH_MAX);
        assert_eq!(world.count("run", call) as u64, DEPTH_MAX);
        assert_eq!(world.count("hop-limit", call), 1);
    }
    for name in NAMES {
        assert_eq!((g.call.who() & FG.on(name)).unwrap(), name);
    }
}

/// A process that calls itself is told at once that it is no candidate, and goes on.
#[test]
fn a_process_that_calls_itself_is_told_so() {
    let world = World::new();
    let _a = world.callee("a");
    let g = world.builder("caller").callback("own", || 1u32).start().unwrap();
    let error = (g.call.by_name::<u32, _>("own", ()) & BG.on("caller")).outcome().unwrap_err();
    assert!(matches!(&error, Error::NoCandidate { .. }) && !error.may_have_executed(), "{error:?}");
    let to_itself = ["a".to_owned()];
    for in_task in [false, true] {
        let call = nonce();
        let result = match in_task {
            false => g.call.ring(call, ON_AND_ON, &to_itself) & BG.on("a"),
            true => g.call.ring_async(call, ON_AND_ON, &to_itself) & BG.on("a"),
        };
        assert_eq!(result.outcome().unwrap(), 1);
        assert_eq!((world.count("run", call), world.count("no-candidate", call)), (1, 1));
    }
    assert_eq!((g.call.who() & FG).unwrap(), "a");
}
