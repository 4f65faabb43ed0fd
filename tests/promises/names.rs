//! A name is taken: who keeps it.

use std::time::{Duration, Instant};

use daffi::{Error, FG};

use crate::{
    roles::Callee,
    support::{AT_ONCE, Outcome, World, nonce},
};

/// The controller probes the older node; it answers, and the newcomer gets `Error::NameTaken` from `start`.
#[test]
fn a_living_node_keeps_its_name() {
    let world = World::new();
    let _older = world.callee("twin");
    let newcomer = world.child("callee", "twin", &[]);
    let line = newcomer.line("failed to start: ");
    assert!(line.contains("NameTaken"), "{line}");
    let begun = Instant::now();
    let error = world.builder("twin").start().unwrap_err();
    assert!(matches!(&error, Error::NameTaken { name } if name == "twin"), "{error:?}");
    assert!(begun.elapsed() < AT_ONCE);
    let g = world.caller();
    assert_eq!((g.call.who() & FG.on("twin")).unwrap(), "twin");
}

/// The same for the name of a node that carries the controller, which is probed in memory.
#[test]
fn a_node_with_the_controller_keeps_its_name() {
    let mut world = World::new();
    world.kill_controller();
    let g = world.builder("twin").init_controller(true).start().unwrap();
    let newcomer = world.child("callee", "twin", &[]);
    let line = newcomer.line("failed to start: ");
    assert!(line.contains("NameTaken"), "{line}");
    let _other = world.callee("other");
    assert_eq!((g.call.who() & FG).unwrap(), "other");
}

/// The older one does not answer within a second: the newcomer takes over, and the older one does not get in its way when
/// it goes on.
fn a_frozen_node_loses_its_name(late_max: Duration) {
    let world = World::new();
    let older = world.callee("twin");
    let g = world.caller();
    let old_pid = (g.call.pid() & FG).unwrap();
    older.freeze();
    let call = nonce();
    let unseen = g.call.work(call) & daffi::BG;
    let begun = Instant::now();
    let newcomer = world.builder("twin").callback("pid", std::process::id).start().unwrap();
    let took = begun.elapsed();
    println!("a name was taken over after {took:?}");
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(1) + late_max, "{took:?}");
    assert!(matches!(unseen.outcome(), Err(Error::RemoteStopped { .. })));
    assert_ne!(std::process::id(), old_pid);
    older.thaw();
    older.line("taken");
    for _ in 0..50 {
        assert_eq!((g.call.pid() & FG).unwrap(), std::process::id());
    }
    newcomer.stop().unwrap();
}

#[test]
fn a_frozen_node_loses_its_name_within_a_second() {
    a_frozen_node_loses_its_name(AT_ONCE);
}

/// `cargo test --release --test promises -- --ignored --nocapture full_size_a_frozen_node`
#[test]
#[ignore = "its bound holds in a release build, without other work"]
fn full_size_a_frozen_node_loses_its_name_within_a_second() {
    a_frozen_node_loses_its_name(Duration::from_millis(100));
}

/// A killed or stopped node leaves its name at once.
#[test]
fn a_node_that_is_gone_leaves_its_name() {
    let world = World::new();
    let mut older = world.callee("twin");
    older.kill();
    let begun = Instant::now();
    let successor = world.builder("twin").start().unwrap();
    successor.stop().unwrap();
    let _third = world.callee("twin");
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    let g = world.caller();
    assert_eq!((g.call.who() & FG).unwrap(), "twin");
}
