//! `max_concurrency`: how many calls of one callback run at once, while the others wait in line.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    num::NonZeroUsize,
};

use daffi_core::survive::survive;

use crate::sync::{Mutex, MutexGuard};

/// Lets at most `limit` through at once, in order of arrival.
///
/// If a gate lets one through at a time, its order can be relied on. So work whose payload is still coming in
/// may reserve a place in line there: work of the same caller then stays behind it, while that of others
/// passes.
pub(crate) struct Gate<T> {
    limit: usize,
    state: Mutex<State<T>>,
}

struct State<T> {
    running: usize,
    line: VecDeque<Place<T>>,
    /// How many places in line are still reserved.
    reserved: usize,
    /// Whether a thread is placing what may run.
    placing: bool,
}

/// A place in line.
struct Place<T> {
    ticket: Ticket,
    /// `None` while it is reserved.
    work: Option<T>,
}

/// Identifies a place in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// The calling node, as a number.
    pub(crate) caller: u64,
    pub(crate) request: u64,
}

impl<T> Gate<T> {
    pub(crate) fn new(limit: NonZeroUsize) -> Self {
        let state = State { running: 0, line: VecDeque::new(), reserved: 0, placing: false };
        Self { limit: limit.get(), state: Mutex::new(state) }
    }

    /// Keeps a place for work that is still to come, if there is an order to keep.
    pub(crate) fn reserve(&self, ticket: Ticket) {
        if self.limit == 1 {
            let mut state = self.state.lock();
            state.line.push_back(Place { ticket, work: None });
            state.reserved += 1;
        }
    }

    /// Gives up a reserved place, whose work never comes. Others may run now, see [`place`](Self::place).
    pub(crate) fn forgo(&self, ticket: Ticket) {
        let mut state = self.state.lock();
        if let Some(at) = state.reserved(ticket) {
            state.line.remove(at);
            state.reserved -= 1;
        }
    }

    /// Puts work into its reserved place, or else at the end. [`place`](Self::place) runs whatever may run
    /// then.
    pub(crate) fn enter(&self, ticket: Ticket, work: T) {
        let mut state = self.state.lock();
        match state.reserved(ticket) {
            Some(at) => {
                state.line[at].work = Some(work);
                state.reserved -= 1;
            }
            None => state.line.push_back(Place { ticket, work: Some(work) }),
        }
    }

    /// Takes work that `is_over` before its turn out of the line. It does not [`leave`](Self::leave), as it
    /// was never in.
    #[must_use = "it is to be dropped without the lock"]
    pub(crate) fn take_out(&self, is_over: impl Fn(&T) -> bool) -> Vec<T> {
        let mut over = Vec::new();
        self.state.lock().line.retain_mut(|place| {
            let work = place.work.take_if(|work| is_over(work));
            let stays = work.is_none();
            over.extend(work);
            stays
        });
        over
    }

    /// Notes that one is done. [`place`](Self::place) runs whatever may run then.
    pub(crate) fn leave(&self) {
        self.state.lock().running -= 1;
    }

    /// Passes what may run now to `run`, one after the other; each counts as running from here on.
    ///
    /// Work that `run` drops, because it was cancelled or everything stops, leaves at once and comes back
    /// here. It finds this in progress and returns; otherwise a long line would overflow the stack.
    pub(crate) fn place(&self, mut run: impl FnMut(T)) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.placing, true) {
            return;
        }
        while let Some(work) = state.next(self.limit) {
            // Even if it panics, the others get their turn.
            MutexGuard::unlocked(&mut state, || survive(|| run(work)));
        }
        state.placing = false;
    }
}

impl<T> State<T> {
    fn next(&mut self, limit: usize) -> Option<T> {
        if self.running >= limit {
            return None;
        }
        let at = self.first()?;
        let work = self.line.remove(at)?.work?;
        self.running += 1;
        Some(work)
    }

    fn reserved(&self, ticket: Ticket) -> Option<usize> {
        if self.reserved == 0 {
            return None;
        }
        self.line.iter().position(|place| place.work.is_none() && place.ticket == ticket)
    }

    /// Returns the first in line that is there and not behind a reserved place of the same caller.
    fn first(&self) -> Option<usize> {
        let mut late = HashSet::new();
        for (at, place) in self.line.iter().enumerate() {
            if place.work.is_none() {
                late.insert(place.ticket.caller);
            } else if !late.contains(&place.ticket.caller) {
                return Some(at);
            }
        }
        None
    }
}

impl<T> fmt::Debug for Gate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Gate")
            .field("running", &state.running)
            .field("waiting", &state.line.len())
            .field("reserved", &state.reserved)
            .finish()
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(limit: usize) -> Gate<u64> {
        Gate::new(NonZeroUsize::new(limit).unwrap())
    }

    fn ticket(caller: u64, request: u64) -> Ticket {
        Ticket { caller, request }
    }

    fn running(gate: &Gate<u64>) -> Vec<u64> {
        let mut running = Vec::new();
        gate.place(|request| running.push(request));
        running
    }

    #[test]
    fn so_many_run_and_the_others_follow_in_order() {
        let gate = gate(2);
        for request in 1..=4 {
            gate.enter(ticket(1, request), request);
        }
        assert_eq!(running(&gate), [1, 2]);
        gate.leave();
        assert_eq!(running(&gate), [3]);
        gate.leave();
        gate.leave();
        assert_eq!(running(&gate), [4]);
        gate.leave();
        gate.enter(ticket(1, 5), 5);
        assert_eq!(running(&gate), [5]);
    }

    #[test]
    fn work_that_leaves_at_once_makes_room_without_recursion() {
        let gate = gate(1);
        let many = 100_000;
        for request in 0..many {
            gate.enter(ticket(1, request), request);
        }
        let mut ran = 0;
        gate.place(|request| {
            assert_eq!(request, ran);
            ran += 1;
            gate.leave();
            gate.place(|_| unreachable!("it is placed where placing began"));
        });
        assert_eq!(ran, many);
    }

    #[test]
    fn a_reserved_place_keeps_its_caller_in_order_and_nobody_else() {
        let gate = gate(1);
        gate.reserve(ticket(1, 1));
        gate.enter(ticket(1, 2), 2);
        gate.enter(ticket(7, 3), 3);
        assert_eq!(running(&gate), [3]);
        gate.leave();
        assert!(running(&gate).is_empty());
        gate.enter(ticket(1, 1), 1);
        assert_eq!(running(&gate), [1]);
        gate.leave();
        assert_eq!(running(&gate), [2]);
    }

    #[test]
    fn a_place_that_is_given_up_holds_up_nobody() {
        let gate = gate(1);
        gate.reserve(ticket(1, 1));
        gate.enter(ticket(1, 2), 2);
        gate.forgo(ticket(1, 2));
        assert!(running(&gate).is_empty(), "what is there is not a reservation");
        gate.forgo(ticket(1, 1));
        assert_eq!(running(&gate), [2]);
    }
}
