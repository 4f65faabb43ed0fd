//! Threads whose calls are let in, in orders picked by shuttle; see `tests/sync`.
//!
//! These were seen to catch each of the following planted mistakes: `go_on` does not look again at the end;
//! `queue` does not check whether a call that it has queued is over; `reserve` reads the number before it
//! changes it.

use std::sync::atomic::{AtomicUsize as Count, Ordering::SeqCst};

use daffi_test_sync::shuttle::{self, thread};

use super::*;
use crate::outgoing::Ask;

const RUNS: usize = 3_000;

/// The node's side: as many calls as there are threads, one place.
#[derive(Debug)]
struct Calls {
    admission: Admission,
    /// Whether a call that is in ends only here, so that no other is in with it.
    exclusive: bool,
    inside: Count,
    /// How many have been let in.
    begun: Count,
}

impl Calls {
    fn new(exclusive: bool) -> Arc<Self> {
        let (inside, begun) = (Count::new(0), Count::new(0));
        Arc::new(Self { admission: Admission::new(1), exclusive, inside, begun })
    }

    /// A call wants in. If it gets in, it is soon over.
    fn call(&self, pending: &Arc<Pending>) {
        if self.admission.enter().is_some() {
            self.send(pending);
        } else {
            let call = Outgoing::ask(Ask::Processes, "");
            let call = Admitted { pending: pending.clone(), id: CallId(1), call };
            assert!(self.admission.queue(call), "it may wait");
        }
        self.go_on();
    }

    fn send(&self, pending: &Pending) {
        if !pending.admit() {
            return self.admission.give_back();
        }
        self.begun.fetch_add(1, SeqCst);
        if self.exclusive {
            assert_eq!(self.inside.fetch_add(1, SeqCst), 0, "more are in than may be");
            thread::yield_now();
            self.inside.fetch_sub(1, SeqCst);
        }
        // In reality its answer comes on another thread, which then does the same.
        self.end(pending);
    }

    fn end(&self, pending: &Pending) {
        self.admission.leave(pending, &mut Remains::default());
        self.go_on();
    }

    fn go_on(&self) {
        self.admission.go_on(|call, _, _: &mut ()| self.send(&call.pending), |()| {});
    }

    fn assert_idle(&self) {
        assert_eq!(self.admission.admitted.load(SeqCst), 0, "a place is lost");
        assert_eq!(self.admission.queued.lock().len(), 0, "a call was left waiting");
        assert_eq!(self.admission.queued_count.load(SeqCst), 0);
        assert_eq!(self.admission.admitting.load(SeqCst), 0);
    }
}

fn pending() -> Arc<Pending> {
    Arc::new(Pending::new("f".into(), None))
}

#[test]
fn all_calls_get_in_one_by_one() {
    let run = || {
        let calls = Calls::new(true);
        let threads = [(); 3].map(|()| {
            let calls = calls.clone();
            thread::spawn(move || calls.call(&pending()))
        });
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(calls.begun.load(SeqCst), 3);
        calls.assert_idle();
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

#[test]
fn a_call_that_is_given_up_does_not_wait() {
    let run = || {
        let calls = Calls::new(false);
        let first = pending();
        assert!(calls.admission.enter().is_some() && first.admit());
        let given_up = pending();
        let enters = {
            let (calls, given_up) = (calls.clone(), given_up.clone());
            thread::spawn(move || calls.call(&given_up))
        };
        calls.end(&given_up);
        enters.join().unwrap();
        assert_eq!(calls.admission.queued.lock().len(), 0, "it waits for a place that it does not want");
        calls.end(&first);
        calls.assert_idle();
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

#[test]
fn a_call_that_is_given_up_leaves_no_place_behind() {
    let run = || {
        let calls = Calls::new(false);
        let given_up = pending();
        let threads = [pending(), given_up.clone()].map(|pending| {
            let calls = calls.clone();
            thread::spawn(move || calls.call(&pending))
        });
        calls.end(&given_up);
        for thread in threads {
            thread.join().unwrap();
        }
        let begun = calls.begun.load(SeqCst);
        assert!((1..=2).contains(&begun), "{begun} of two");
        calls.assert_idle();
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}
