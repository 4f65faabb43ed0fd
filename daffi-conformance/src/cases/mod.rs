//! What a controller must do, case by case. The list in `lib.rs` says what each case is about.

use std::time::Instant;

use daffi_core::{
    answer::Process,
    fault::FaultKind,
    frame::{Frame, Question, Refuse, RefuseCode},
};

use crate::{
    Bench, Call, Node, Wire,
    node::fresh_instance,
    wire::{PATIENCE, decoded},
};

pub(crate) mod broadcast;
pub(crate) mod failure;
pub(crate) mod handshake;
pub(crate) mod hostile;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod payload;
pub(crate) mod questions;
pub(crate) mod registration;
pub(crate) mod routing;
pub(crate) mod schedule;
pub(crate) mod stop;

/// Waits until `holds` returns true. Each check asks the controller, so this does not spin.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "waited {PATIENCE:?} until {what}");
    }
}

/// Waits until the controller knows that nobody but `caller` offers `name`.
///
/// Until then a call may still be routed to the node that is leaving, and fail.
fn until_nobody_offers(caller: &mut Node, name: &str) {
    eventually("nobody offers it", || {
        let id = caller.call(&Call::new(name));
        match caller.expect_outcome(id, 0) {
            Err(fault) if fault.kind == FaultKind::NoCandidate => true,
            Err(fault) if matches!(fault.kind, FaultKind::RemoteStopped | FaultKind::NoProcess) => false,
            other => panic!("nobody was to answer {name:?}: {other:?}"),
        }
    });
}

/// Waits until the controller knows that a node has gone.
fn until_gone(bench: &Bench, name: &str) {
    // A watcher does not wait for another watcher to leave, so each has its own name.
    let mut watcher = bench.node(&format!("watcher {}", fresh_instance()), &[]);
    eventually("the node is gone", || {
        let id = watcher.ask(Question::Processes);
        let processes: Vec<Process> = watcher.expect_answer(id);
        processes.iter().all(|process| process.name != name)
    });
}

/// Waits for a REFUSE with this code and for the end of the connection.
fn expect_refused(wire: &mut Wire, code: RefuseCode) {
    let bytes = wire.receive().expect("the controller closed the connection without a REFUSE");
    match decoded(&bytes) {
        Frame::Refuse(Refuse { code: given, reason }) => {
            assert_eq!(given, code, "{reason}");
            assert!(!reason.is_empty(), "it says why");
        }
        other => panic!("expected a REFUSE, got {other:?}"),
    }
    wire.expect_closed("it was refused");
}
