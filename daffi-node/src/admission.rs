//! How many calls are in flight, and those that wait until fewer are. Pure: sending is done elsewhere.

use std::{collections::BTreeMap, fmt, sync::Arc};

use daffi_core::survive::survive;

use crate::{
    in_flight::CallId,
    outgoing::Outgoing,
    pending::Pending,
    remains::Remains,
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// Lets at most `max` calls in at once; the others wait in order.
pub(crate) struct Admission {
    max: usize,
    /// How many calls have been let in and are not over.
    admitted: AtomicUsize,
    queued: Mutex<BTreeMap<u64, Admitted>>,
    queued_count: AtomicUsize,
    /// The place of the most recently queued call.
    queued_last: AtomicU64,
    /// Above zero while a thread lets queued calls in: one thread at a time, so that they keep their order.
    admitting: AtomicUsize,
}

/// A call that may be sent.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) pending: Arc<Pending>,
    pub(crate) id: CallId,
    pub(crate) call: Outgoing,
}

impl Admission {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            admitted: AtomicUsize::new(0),
            queued: Mutex::default(),
            queued_count: AtomicUsize::new(0),
            queued_last: AtomicU64::new(0),
            admitting: AtomicUsize::new(0),
        }
    }

    /// Lets a call in if there is a place and no other waits before it; returns how many others are in.
    /// Otherwise the caller may [`queue`](Self::queue) it. In either case, it must call
    /// [`go_on`](Self::go_on) afterwards.
    pub(crate) fn enter(&self) -> Option<usize> {
        // In this order: what a thread has taken from the queue goes first, too.
        let first =
            self.queued_count.load(Ordering::SeqCst) == 0 && self.admitting.load(Ordering::SeqCst) == 0;
        first.then(|| self.reserve()).flatten()
    }

    /// Queues a call; returns whether it may wait.
    ///
    /// If its caller waits for it, blocked or awaiting, a call may wait as long as it takes; a background
    /// call is refused when as many are waiting as may be in flight.
    pub(crate) fn queue(&self, call: Admitted) -> bool {
        let pending = call.pending.clone();
        {
            let mut queued = self.queued.lock();
            if pending.is_refusable() && queued.len() >= self.max {
                return false;
            }
            let place = self.queued_last.fetch_add(1, Ordering::Relaxed) + 1;
            pending.set_place(place);
            queued.insert(place, call);
            self.queued_count.store(queued.len(), Ordering::SeqCst);
        }
        if pending.is_over() {
            self.unqueue(&pending, &mut Remains::default());
        }
        true
    }

    /// Returns how many calls are in.
    pub(crate) fn going_on(&self) -> usize {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Passes waiting calls to `send`, as far as there are places, and what `send` leaves to do to `finish`.
    /// Must be called after each call that came or ended.
    ///
    /// `send` must not run foreign code, since all other calls wait for it.
    #[inline(always)]
    pub(crate) fn go_on<T: Default>(&self, send: impl Fn(Admitted, usize, &mut T), finish: impl FnOnce(T)) {
        if self.queued_count.load(Ordering::SeqCst) > 0 {
            let mut after = T::default();
            self.let_in(|call, going_on| send(call, going_on, &mut after));
            finish(after);
        }
    }

    #[cold]
    fn let_in(&self, mut send: impl FnMut(Admitted, usize)) {
        let mut asked = self.admitting.fetch_add(1, Ordering::SeqCst) + 1;
        if asked > 1 {
            // The thread that is already doing this, which may be this one, looks again.
            return;
        }
        loop {
            while self.queued_count.load(Ordering::SeqCst) > 0 {
                let Some(going_on) = self.reserve() else { break };
                let next = {
                    let mut queued = self.queued.lock();
                    let next = queued.pop_first();
                    self.queued_count.store(queued.len(), Ordering::SeqCst);
                    next
                };
                match next {
                    // It writes to the log at most: a subscriber that panics must not hold up the others.
                    Some((_, call)) => _ = survive(|| send(call, going_on)),
                    None => self.give_back(),
                }
            }
            match self.admitting.compare_exchange(asked, 0, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return,
                Err(more) => asked = more,
            }
        }
    }

    /// Removes a call that is over, whether it was in or waiting. If it was waiting, its arguments are added
    /// to `remains`.
    #[inline]
    pub(crate) fn leave(&self, pending: &Pending, remains: &mut Remains) {
        if pending.end() {
            self.give_back();
        } else {
            self.unqueue(pending, remains);
        }
    }

    /// Frees a place that was reserved for a call.
    pub(crate) fn give_back(&self) {
        self.admitted.fetch_sub(1, Ordering::SeqCst);
    }

    /// Forgets the waiting calls.
    pub(crate) fn clear(&self) {
        let dropped = {
            let mut queued = self.queued.lock();
            self.queued_count.store(0, Ordering::SeqCst);
            std::mem::take(&mut *queued)
        };
        drop(dropped);
    }

    /// Takes a place among the calls in flight, if there is one; returns how many were taken before.
    fn reserve(&self) -> Option<usize> {
        let one_more = |count| (count < self.max).then_some(count + 1);
        self.admitted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).ok()
    }

    /// Takes a call out of the queue, if it is there.
    fn unqueue(&self, pending: &Pending, remains: &mut Remains) {
        if let Some(place) = pending.place() {
            let mut queued = self.queued.lock();
            let removed = queued.remove(&place);
            self.queued_count.store(queued.len(), Ordering::SeqCst);
            drop(queued);
            remains.add(removed.map(|queued| queued.call.body));
        }
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("max", &self.max)
            .field("admitted", &self.admitted)
            .field("queued", &self.queued_count)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::outgoing::Ask;

    fn call(number: u64) -> Admitted {
        let pending = Arc::new(Pending::new("f".into(), None));
        Admitted { pending, id: CallId(number), call: Outgoing::ask(Ask::Processes, "") }
    }

    /// Lets in what can be let in; returns the numbers of the calls.
    fn go_on(admission: &Admission) -> Vec<u64> {
        let sent = RefCell::new(Vec::new());
        let send = |call: Admitted, _, _: &mut ()| {
            call.pending.admit();
            sent.borrow_mut().push(call.id.0);
        };
        admission.go_on(send, |()| {});
        sent.into_inner()
    }

    #[test]
    fn so_many_are_in_and_the_others_follow_in_order() {
        let admission = Admission::new(2);
        let mut inside = Vec::new();
        for number in 0..2 {
            assert_eq!(admission.enter(), Some(number as usize));
            let call = call(number);
            assert!(call.pending.admit());
            inside.push(call.pending);
        }
        let waiting: Vec<_> = (2..6).map(call).collect();
        let third = waiting[1].pending.clone();
        for call in waiting {
            assert_eq!(admission.enter(), None);
            assert!(admission.queue(call));
        }
        assert!(go_on(&admission).is_empty());
        // One of the waiting calls is given up, and one that is in ends.
        admission.leave(&third, &mut Remains::default());
        admission.leave(&inside[0], &mut Remains::default());
        assert_eq!(go_on(&admission), [2]);
        admission.leave(&inside[1], &mut Remains::default());
        assert_eq!(go_on(&admission), [4]);
    }

    #[test]
    fn ending_twice_frees_one_place() {
        let admission = Admission::new(1);
        assert_eq!(admission.enter(), Some(0));
        let first = call(0);
        first.pending.admit();
        admission.leave(&first.pending, &mut Remains::default());
        admission.leave(&first.pending, &mut Remains::default());
        assert_eq!(admission.admitted.load(Ordering::SeqCst), 0);
    }

    /// What is left to do may run user code, which may wait for a call of its own.
    #[test]
    fn others_get_in_while_what_follows_is_done() {
        let admission = Admission::new(2);
        let first = call(0);
        assert!(admission.queue(call(1)));
        let send = |call: Admitted, _, sent: &mut Vec<u64>| {
            assert!(admission.enter().is_none(), "this one goes first");
            call.pending.admit();
            sent.push(call.id.0);
        };
        let finish = |sent: Vec<u64>| {
            assert_eq!(sent, [1]);
            assert_eq!(admission.enter(), Some(1));
            first.pending.admit();
        };
        admission.go_on(send, finish);
        admission.leave(&first.pending, &mut Remains::default());
        assert_eq!(admission.going_on(), 1);
    }
}
