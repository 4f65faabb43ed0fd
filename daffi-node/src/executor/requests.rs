//! The requests of one node, from arrival until nobody waits for them any more. Pure: running them is done
//! elsewhere.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use foldhash::fast::FixedState;
use tokio::task::AbortHandle;

use super::{Job, Reservation, Run};
use crate::{context::Incoming, held_bytes::Hold};

/// The requests of one node.
#[derive(Default)]
pub(super) struct Requests {
    /// How many have come.
    come: u64,
    /// Whether no more are taken.
    closed: bool,
    /// What has come for callbacks that keep an order.
    in_order: VecDeque<Arrival>,
    /// Requests that have come for other callbacks.
    ready: VecDeque<Job>,
    /// The ids of cancelled requests among those, and how many requests had come by then.
    cancelled: HashMap<u64, u64, FixedState>,
    /// What threads have taken and not yet placed, by the keys for cancelling it. It may be more than one: a
    /// thread that was held up with a request in hand is no longer the I/O thread, but still places it.
    in_hand: Vec<Option<Key>>,
    /// How many had come when everything was last cancelled.
    lost: Option<u64>,
    /// What may now run on the I/O thread, after it has waited for others.
    released: VecDeque<Run>,
    /// What the I/O thread is running. It is not in `held`, which would cost twice as much as running most of
    /// them.
    current: Option<(Key, Held)>,
    /// What else runs or waits to run, and can be cancelled, by id.
    held: HashMap<u64, Held, FixedState>,
}

/// What the I/O thread has for the executor, in order of arrival.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A request that can run.
    Whole(Job),
    /// The first part of one.
    Begun(Reservation),
    /// A request that has begun, of which no more will come.
    Dropped(Job),
}

/// What the I/O thread does next.
pub(super) enum Next {
    /// Dispatch a request to where it belongs.
    Place(Job),
    /// Run a request here.
    Run(Run),
    /// Drop a request that was cancelled while it waited.
    Drop(Run),
    /// Drop a request that was cancelled before it was looked at.
    Forget(Job),
    /// End a request whose id another one now has, which no well-behaved controller causes.
    End(Held),
}

/// What becomes of a request that goes on as a task.
pub(super) enum Continued {
    /// It can be cancelled from now on.
    Held,
    /// The same, and another request with its id is to end.
    Instead(Held),
    /// Nobody waits for it any more: the task must end.
    Unwanted(AbortHandle),
}

/// Identifies a request. Its id alone does not, since ids start over after the link is lost and found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) id: u64,
    pub(super) number: u64,
}

/// A request that runs or waits to run.
#[derive(Debug, Default)]
pub(super) struct Held {
    number: u64,
    /// Its arguments, until its turn. Nothing else about a waiting request takes up much memory, so a
    /// cancelled one gives its room back at once, wherever it is.
    arguments: Option<Arguments>,
    /// What its callback knows about it, if it has asked.
    incoming: Option<Arc<Incoming>>,
    /// Ends the task of an `async fn`.
    abort: Option<AbortHandle>,
}

/// The arguments of a request that waits.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) body: Bytes,
    pub(super) hold: Option<Hold>,
}

/// What was left when everything ended, to be dropped without the lock.
#[must_use = "it is to be dropped without the lock"]
#[derive(Default)]
pub(super) struct Rest {
    in_order: VecDeque<Arrival>,
    ready: VecDeque<Job>,
    released: VecDeque<Run>,
}

impl Arrival {
    /// Returns the key for cancelling it.
    pub(super) fn key(&self) -> Option<Key> {
        match self {
            Self::Whole(job) | Self::Dropped(job) => job.key(),
            Self::Begun(_) => None,
        }
    }
}

impl Rest {
    pub(super) fn is_empty(&self) -> bool {
        self.in_order.is_empty() && self.ready.is_empty() && self.released.is_empty()
    }
}

impl Requests {
    /// Takes something that has come, for a callback that keeps an order or for one that does not. Returns it
    /// if no more are taken.
    #[must_use = "it is to be dropped without the lock"]
    pub(super) fn push(&mut self, arrival: Arrival, in_order: bool) -> Option<Arrival> {
        if self.closed {
            return Some(arrival);
        }
        self.forget_cancelled();
        self.come += 1;
        match arrival {
            Arrival::Whole(job) if in_order => {
                self.in_order.push_back(Arrival::Whole(Job { number: self.come, ..job }));
            }
            Arrival::Whole(job) => self.ready.push_back(Job { number: self.come, ..job }),
            arrival => self.in_order.push_back(arrival),
        }
        None
    }

    /// Like [`push`](Self::push), for requests whose callbacks keep no order. If no more are taken, they are
    /// left in `jobs`.
    pub(super) fn push_all(&mut self, jobs: &mut VecDeque<Job>) {
        if self.closed {
            return;
        }
        self.forget_cancelled();
        for job in &mut *jobs {
            self.come += 1;
            job.number = self.come;
        }
        if self.ready.is_empty() {
            std::mem::swap(&mut self.ready, jobs);
        } else {
            self.ready.append(jobs);
        }
    }

    /// Forgets the cancellations so far, which are for none of the requests to come.
    fn forget_cancelled(&mut self) {
        if self.has_none() && !self.cancelled.is_empty() {
            let Self { cancelled, in_hand, .. } = self;
            cancelled.retain(|id, _| in_hand.iter().flatten().any(|key| key.id == *id));
        }
    }

    /// Lets a request that has waited for others run on the I/O thread.
    pub(super) fn release(&mut self, run: Run) {
        self.released.push_back(run);
    }

    pub(super) fn has_work(&self) -> bool {
        !(self.has_none() && self.released.is_empty())
    }

    /// Returns whether anything that has come is still to be held, or refused.
    pub(super) fn has_unplaced(&self) -> bool {
        !self.in_hand.is_empty() || !self.has_none()
    }

    /// Notes that what was taken to be placed is where it belongs. Returns whether that was the last.
    pub(super) fn placed(&mut self, key: Option<Key>) -> bool {
        if let Some(at) = self.in_hand.iter().position(|taken| *taken == key) {
            self.in_hand.swap_remove(at);
        }
        !self.has_unplaced()
    }

    /// Takes what has come next for a callback that keeps an order, to be [`placed`](Self::placed). A request
    /// that has been cancelled is to be dropped.
    pub(super) fn next_in_order(&mut self) -> Option<Arrival> {
        let arrival = self.in_order.pop_front()?;
        self.in_hand.push(arrival.key());
        Some(match arrival {
            Arrival::Whole(job) if self.is_cancelled(&job) => Arrival::Dropped(job),
            arrival => arrival,
        })
    }

    /// Returns what the I/O thread does next. A request that `is_quick` runs there; any other is to be
    /// [`placed`](Self::placed).
    pub(super) fn next(&mut self, is_quick: impl Fn(&Job) -> bool) -> Option<Next> {
        if let Some((key, held)) = self.current.take()
            // Another thread was the I/O thread when that began, and is still running it.
            && let Some(replaced) = self.held.insert(key.id, held)
        {
            return Some(Next::End(replaced));
        }
        if let Some(mut run) = self.released.pop_front() {
            return Some(if run.begin(self) { Next::Run(run) } else { Next::Drop(run) });
        }
        let job = self.ready.pop_front()?;
        if self.is_cancelled(&job) {
            return Some(Next::Forget(job));
        }
        if !is_quick(&job) {
            self.in_hand.push(job.key());
            return Some(Next::Place(job));
        }
        self.current = job.key().map(|key| (key, Held::new(key)));
        Some(Next::Run(Run::new(job)))
    }

    /// Returns whether the request that was just taken is cancelled. A later one may have its id.
    fn is_cancelled(&mut self, job: &Job) -> bool {
        job.key().is_some_and(|key| self.is_unwanted(key))
    }

    /// Returns whether nobody waits for it any more: its connection is lost, or it is cancelled.
    fn is_unwanted(&mut self, key: Key) -> bool {
        // A request of an earlier connection must not take the cancellation meant for another one with its
        // id.
        self.lost.is_some_and(|come| key.number <= come)
            || !self.cancelled.is_empty()
                && self.cancelled.remove(&key.id).is_some_and(|come| key.number <= come)
    }

    /// Returns whether everything that has come has been looked at.
    fn has_none(&self) -> bool {
        self.in_order.is_empty() && self.ready.is_empty()
    }

    /// Keeps a waiting request where it can be cancelled. Returns what is to end: this request, if it was
    /// cancelled since it was taken, or another one with its id.
    #[must_use = "it is to end, without the lock"]
    pub(super) fn hold(&mut self, key: Key, arguments: Arguments) -> Option<Held> {
        let held = Held { arguments: Some(arguments), ..Held::new(key) };
        if self.is_unwanted(key) { Some(held) } else { self.held.insert(key.id, held) }
    }

    /// Returns the arguments of a waiting request whose turn it is, unless it was cancelled.
    pub(super) fn begin(&mut self, key: Key) -> Option<Arguments> {
        self.find(key)?.arguments.take()
    }

    /// Registers what tells the callback that it is cancelled. Returns whether it is not cancelled already.
    pub(super) fn tell(&mut self, key: Key, incoming: &Arc<Incoming>) -> bool {
        let held = self.find(key);
        let is_there = held.is_some();
        held.into_iter().for_each(|held| held.incoming = Some(incoming.clone()));
        is_there
    }

    /// Turns a request into a task, unless it is already over.
    #[must_use = "what it has is to be dropped without the lock"]
    pub(super) fn continues(&mut self, key: Key, abort: AbortHandle) -> Continued {
        let current = self.current.take_if(|(current, _)| *current == key);
        let replaced = current.and_then(|(key, held)| self.held.insert(key.id, held));
        let Some(held) = self.find(key) else { return Continued::Unwanted(abort) };
        held.abort = Some(abort);
        replaced.map_or(Continued::Held, Continued::Instead)
    }

    /// Returns whether a request can still be cancelled.
    pub(super) fn has(&self, key: Key) -> bool {
        self.current.as_ref().is_some_and(|(current, _)| *current == key)
            || self.held.get(&key.id).is_some_and(|held| held.number == key.number)
    }

    /// Takes out a request whose outcome is there, if it could still be cancelled.
    pub(super) fn remove(&mut self, key: Key) -> Option<Held> {
        if let Some((_, held)) = self.current.take_if(|(current, _)| *current == key) {
            return Some(held);
        }
        self.find(key)?;
        self.held.remove(&key.id)
    }

    fn find(&mut self, key: Key) -> Option<&mut Held> {
        match &mut self.current {
            Some((current, held)) if *current == key => Some(held),
            _ => self.held.get_mut(&key.id).filter(|held| held.number == key.number),
        }
    }

    /// Cancels a request. Returns what ends it, if it was started.
    pub(super) fn cancel(&mut self, id: u64) -> Option<Held> {
        if let Some((_, held)) = self.current.take_if(|(current, _)| current.id == id) {
            return Some(held);
        }
        let held = self.held.remove(&id);
        let is_in_hand = || self.in_hand.iter().flatten().any(|key| key.id == id);
        if held.is_none() && (!self.has_none() || is_in_hand()) {
            self.cancelled.insert(id, self.come);
        }
        held
    }

    /// Cancels everything that somebody waits for. Returns what ends the requests that were started, and the
    /// others.
    #[must_use = "they are to be dropped without the lock"]
    pub(super) fn cancel_all(&mut self) -> (Vec<Held>, VecDeque<Job>) {
        let current = self.current.take().map(|(_, held)| held);
        let started = current.into_iter().chain(self.held.drain().map(|(_, held)| held)).collect();
        // One-way requests may run.
        let (kept, dropped) = std::mem::take(&mut self.ready).into_iter().partition(|job| job.one_way);
        self.ready = kept;
        for arrival in &mut self.in_order {
            if let Arrival::Whole(job) = arrival
                && !job.one_way
            {
                *arrival = Arrival::Dropped(job.clone());
            }
        }
        self.cancelled.clear();
        self.lost = Some(self.come);
        (started, dropped)
    }

    /// Takes nothing from now on.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Takes out what waits here, none of which is to run, and takes nothing from now on.
    pub(super) fn clear(&mut self) -> Rest {
        self.close();
        self.cancelled.clear();
        Rest {
            in_order: std::mem::take(&mut self.in_order),
            ready: std::mem::take(&mut self.ready),
            released: std::mem::take(&mut self.released),
        }
    }
}

impl Held {
    fn new(key: Key) -> Self {
        Self { number: key.number, ..Self::default() }
    }

    /// Returns whether it is still waiting for its turn.
    pub(super) fn waits(&self) -> bool {
        self.arguments.is_some()
    }

    /// Tells whoever runs it that nobody waits.
    pub(super) fn cancel(self) {
        if let Some(incoming) = self.incoming {
            incoming.cancel();
        }
        if let Some(abort) = self.abort {
            abort.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::nowhere::Nowhere;

    fn request(id: u64) -> Arrival {
        Arrival::Whole(job(id))
    }

    fn job(id: u64) -> Job {
        Job {
            id,
            callback: 0,
            one_way: false,
            codec: 0,
            hops: 1,
            fingerprint: 0,
            deadline: None,
            timeout_us: 0,
            origin: Nowhere::origin(1),
            body: Bytes::new(),
            hold: None,
            number: 0,
        }
    }

    /// Returns the ids of all requests that are to run, none of which is quick.
    fn placed(requests: &mut Requests) -> Vec<u64> {
        let mut ids = Vec::new();
        while let Some(next) = requests.next(|_| false) {
            if let Next::Place(job) = next {
                ids.push(job.id);
                requests.placed(job.key());
            }
        }
        ids
    }

    #[test]
    fn what_is_cancelled_before_it_is_looked_at_does_not_run() {
        let mut requests = Requests::default();
        for id in 1..=4 {
            let _ = requests.push(request(id), false);
        }
        assert!(requests.cancel(2).is_none());
        assert!(requests.cancel(9).is_none());
        assert_eq!(placed(&mut requests), [1, 3, 4]);
        // Nothing of it affects those that come later.
        let _ = requests.push(request(9), false);
        let _ = requests.push(request(2), false);
        assert_eq!(placed(&mut requests), [9, 2]);
        assert!(requests.cancelled.is_empty());
    }

    #[test]
    fn a_cancellation_is_not_for_a_later_request_of_its_id() {
        let mut requests = Requests::default();
        let _ = requests.push(request(1), false);
        // This one had already been answered.
        assert!(requests.cancel(2).is_none());
        let _ = requests.push(request(2), false);
        assert_eq!(placed(&mut requests), [1, 2]);
    }

    /// Another thread leads while one is held up with a request in hand; a cancellation that arrives
    /// meanwhile still counts.
    #[test]
    fn what_is_cancelled_while_it_is_in_hand_is_not_held() {
        let mut requests = Requests::default();
        let take = |requests: &mut Requests, id| {
            assert!(requests.push(request(id), false).is_none());
            let Some(Next::Place(job)) = requests.next(|_| false) else { panic!("it is not to be placed") };
            job.key().unwrap()
        };
        let cancelled = take(&mut requests, 1);
        assert!(requests.next(|_| false).is_none() && requests.cancel(1).is_none());
        // A request that comes now is not affected.
        assert!(requests.push(request(2), false).is_none());
        let held = requests.hold(cancelled, Arguments::default()).expect("it ends");
        assert!(held.waits() && !requests.has(cancelled));
        requests.placed(Some(cancelled));
        assert_eq!(placed(&mut requests), [2]);
        assert!(requests.cancelled.is_empty());

        // The link is lost, and on the next one another request has the same id.
        let stale = take(&mut requests, 3);
        drop(requests.cancel_all());
        let other = take(&mut requests, 3);
        assert!(requests.hold(other, Arguments::default()).is_none());
        assert!(requests.hold(stale, Arguments::default()).is_some(), "it ends");
        assert!(requests.has(other) && !requests.has(stale));
        assert!(!requests.placed(Some(stale)) && requests.placed(Some(other)));
    }

    #[test]
    fn requests_that_come_together_are_in_order_and_each_can_be_cancelled() {
        let mut requests = Requests::default();
        for _ in 0..2 {
            let _ = requests.push(request(1), false);
            let mut jobs: VecDeque<_> = (2..=4).map(job).collect();
            requests.push_all(&mut jobs);
            assert!(jobs.is_empty());
            assert!(requests.cancel(3).is_none());
            // Another request with the same id, after the link was lost.
            requests.push_all(&mut [job(3)].into());
            assert_eq!(placed(&mut requests), [1, 2, 4, 3]);
        }
        requests.close();
        requests.push_all(&mut [job(1)].into());
        assert!(!requests.has_work());
    }

    /// Only a faulty controller causes this. The first request must give its place back.
    #[test]
    fn another_request_of_an_id_that_is_in_use_ends_the_first() {
        let mut requests = Requests::default();
        let key = |number| Key { id: 1, number };
        assert!(requests.hold(key(0), Arguments::default()).is_none());
        assert!(requests.hold(key(0), Arguments::default()).is_some_and(|first| first.waits()));
        let begin = |requests: &mut Requests| {
            requests.push_all(&mut [job(1)].into());
            match requests.next(|_| true) {
                // Only executors may drop it.
                Some(Next::Run(run)) => std::mem::ManuallyDrop::new(run).key().unwrap(),
                _ => unreachable!("it is quick"),
            }
        };
        let second = begin(&mut requests);
        assert!(matches!(requests.next(|_| true), Some(Next::End(first)) if first.waits()));
        assert!(requests.has(second));
        let third = begin(&mut requests);
        let task = tokio::runtime::Builder::new_current_thread().build().unwrap().spawn(async {});
        let continued = requests.continues(third, task.abort_handle());
        assert!(matches!(continued, Continued::Instead(second) if !second.waits()));
        assert!(requests.has(third) && !requests.has(second));
    }

    #[test]
    fn whoever_runs_is_told_of_its_cancellation_and_has_no_outcome() {
        let mut requests = Requests::default();
        requests.push_all(&mut [job(1), job(2)].into());
        let mut begin = || match requests.next(|_| true) {
            // Only executors may drop it.
            Some(Next::Run(run)) => std::mem::ManuallyDrop::new(run).key().unwrap(),
            _ => unreachable!(),
        };
        // The first continues on what was the I/O thread before.
        let (first, second) = (begin(), begin());
        let incoming = Incoming::new("caller".into(), None);
        assert!(requests.tell(first, &incoming));
        requests.cancel(1).unwrap().cancel();
        assert!(incoming.is_cancelled());
        assert!(!requests.tell(first, &incoming), "whoever asks later hears it then");
        assert!(requests.remove(first).is_none());
        assert!(requests.has(second));
        assert!(requests.remove(second).is_some());
        assert!(requests.cancel(2).is_none());
    }

    #[test]
    fn what_keeps_an_order_is_taken_apart_and_gives_up_its_place_when_it_is_cancelled() {
        let mut requests = Requests::default();
        let _ = requests.push(request(1), true);
        let _ = requests.push(request(2), false);
        let _ = requests.push(request(3), true);
        requests.cancel(1);
        assert!(matches!(requests.next_in_order(), Some(Arrival::Dropped(job)) if job.id == 1));
        assert!(matches!(requests.next_in_order(), Some(Arrival::Whole(job)) if job.id == 3));
        assert!(requests.next_in_order().is_none());
        assert_eq!(placed(&mut requests), [2]);
        assert!(!requests.has_work());
    }

    #[test]
    fn when_the_link_is_lost_what_nobody_waits_for_still_runs() {
        let mut requests = Requests::default();
        for id in 1..=2 {
            let Arrival::Whole(mut job) = request(id) else { unreachable!() };
            job.one_way = id == 2;
            let _ = requests.push(Arrival::Whole(job.clone()), false);
            let _ = requests.push(Arrival::Whole(job), true);
        }
        assert!(requests.cancel_all().0.is_empty());
        assert_eq!(placed(&mut requests), [2]);
        assert!(matches!(requests.next_in_order(), Some(Arrival::Dropped(job)) if job.id == 1));
        assert!(matches!(requests.next_in_order(), Some(Arrival::Whole(job)) if job.id == 2));
    }
}
