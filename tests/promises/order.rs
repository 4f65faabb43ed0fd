//! Order: requests of one node to another arrive in the order they were sent.

use daffi::{BG, Global, Limits, NO_RETURN};

use crate::{
    roles::Callee,
    support::{PATIENCE, World, at, until},
};

/// Waits until so many have run, and says in which order.
#[track_caller]
fn order(world: &World, count: usize) -> Vec<u64> {
    until(&format!("{count} calls have run"), || world.events().len() >= count);
    world.events().iter().map(|event| event.nonce).collect()
}

#[track_caller]
fn in_order(world: &World, count: u64) {
    let order = order(world, count as usize);
    let expected: Vec<_> = (0..count).collect();
    let wrong = order.iter().zip(&expected).position(|(a, b)| a != b);
    assert!(wrong.is_none() && order.len() == expected.len(), "first difference at {wrong:?}: {order:?}");
}

fn a_thousand_without_answer(world: &World) {
    let _callee = world.callee("callee");
    let g = world.caller();
    for number in 0..1_000 {
        (g.call.serial(number, &[]) & NO_RETURN).unwrap();
    }
    in_order(world, 1_000);
}

/// They run concurrently; `max_concurrency = 1` keeps order: a thousand calls without an answer.
#[test]
fn calls_without_an_answer_keep_their_order() {
    a_thousand_without_answer(&World::new());
}

/// The same over TCP.
#[test]
fn calls_without_an_answer_keep_their_order_over_tcp() {
    a_thousand_without_answer(&World::over_tcp());
}

/// The same with the controller in the caller's process.
#[test]
fn calls_from_the_controllers_process_keep_their_order() {
    let mut world = World::new();
    world.kill_controller();
    let g = at(&world.address).process_name("caller").init_controller(true).start().unwrap();
    let _callee = world.callee("callee");
    for number in 0..1_000 {
        if number % 3 == 0 {
            (g.call.serial(number, &[]) & NO_RETURN).unwrap();
        } else {
            drop(g.call.serial(number, &payload(number)) & BG);
        }
    }
    in_order(&world, 1_000);
}

/// An `async fn` keeps it as well, and so do calls that are answered and calls that are not among each other.
#[test]
fn answered_calls_keep_their_order() {
    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let results: Vec<_> = (0..1_000).map(|number| g.call.serial_async(number, &[]) & BG).collect();
    for (number, result) in results.iter().enumerate() {
        assert_eq!(result.get().unwrap(), number as u64);
    }
    in_order(&world, 1_000);
    drop(world);

    let world = World::new();
    let _callee = world.callee("callee");
    let g = world.caller();
    let mut results = Vec::new();
    for number in 0..1_000 {
        if number % 2 == 0 {
            (g.call.serial(number, &[]) & NO_RETURN).unwrap();
        } else {
            results.push(g.call.serial(number, &[]) & BG);
        }
    }
    in_order(&world, 1_000);
    for result in results {
        result.get().unwrap();
    }
}

/// Payloads of a byte to a megabyte, which travel in one frame or many.
fn payload(number: u64) -> Vec<u8> {
    vec![
        7;
        if number % 50 == 20 {
            1_000_000
        } else if number % 10 == 5 {
            100_000
        } else {
            10
        }
    ]
}

fn mixed_sizes(world: &World) {
    let _callee = world.callee("callee");
    let g = world.caller();
    send_mixed_sizes(&g);
    in_order(world, 200);
}

fn send_mixed_sizes(g: &Global) {
    for number in 0..200 {
        if number % 3 == 0 {
            drop(g.call.serial(number, &payload(number)) & BG);
        } else {
            (g.call.serial(number, &payload(number)) & NO_RETURN).unwrap();
        }
    }
}

/// A large request comes in pieces, and small ones overtake the pieces; but it is not overtaken as a call.
#[test]
fn large_requests_keep_their_place() {
    mixed_sizes(&World::new());
}

/// The same over TCP.
#[test]
fn large_requests_keep_their_place_over_tcp() {
    mixed_sizes(&World::over_tcp());
}

/// A large request whose caller dies before it is whole, or that is cancelled, does not hold up those behind it, and
/// neither do the requests of one node hold up those of another.
#[test]
fn a_request_that_never_becomes_whole_gives_up_its_place() {
    let world = World::new();
    let callee = world.callee("callee");
    let g = world.caller();
    // While the callee is frozen, no payload of this size gets through.
    callee.freeze();
    let lost = g.call.serial_answered(1, &vec![0; 30_000_000]) & BG;
    let behind = g.call.serial_answered(2, &[]) & BG;
    lost.cancel();
    callee.thaw();
    assert_eq!(behind.get().unwrap(), 2);
    let other = world.builder("other").start().unwrap();
    callee.freeze();
    let lost = g.call.serial_answered(3, &vec![0; 30_000_000]) & BG;
    drop(g.call.serial_answered(4, &[]) & BG);
    g.processes().unwrap();
    drop(g);
    let theirs = other.call.serial_answered(5, &[]) & BG;
    callee.thaw();
    assert_eq!(theirs.get().unwrap(), 5);
    drop(lost);
}

/// A node whose limit of calls in flight makes calls wait sends them in the order in which they were made.
#[test]
fn calls_that_wait_for_their_turn_keep_their_order() {
    let world = World::new();
    let _callee = world.callee("callee");
    let limits = Limits { calls_in_flight_max: 8, ..Limits::default() };
    let g = world.builder("caller").limits(limits).start().unwrap();
    // One is always about to end while the next is made.
    let mut results = std::collections::VecDeque::new();
    for number in 0..3_000 {
        results.push_back(g.call.serial_answered(number, &[]) & BG);
        if results.len() > 12 {
            results.pop_front().unwrap().get().unwrap();
        }
    }
    for result in results {
        result.get().unwrap();
    }
    in_order(&world, 3_000);
}

/// Those that are cancelled while they wait leave no gap and no room behind: as many as before may go.
#[test]
fn calls_that_are_cancelled_while_they_wait_take_no_place() {
    let world = World::new();
    let _callee = world.callee("callee");
    let limits = Limits { calls_in_flight_max: 500, ..Limits::default() };
    let g = world.builder("caller").limits(limits).start().unwrap();
    for round in 0..20 {
        let busy: Vec<_> = (0..500).map(|number| g.call.slow_async(number, 30) & BG).collect();
        let cancelled: Vec<_> = (0..490).map(|number| g.call.slow_async(1_000 + number, 30) & BG).collect();
        let last = g.call.work(2_000) & BG;
        for result in &cancelled {
            result.cancel();
        }
        for result in busy {
            result.get().unwrap();
        }
        assert_eq!(last.get_timeout(PATIENCE).unwrap(), 2_000, "round {round}");
    }
}
