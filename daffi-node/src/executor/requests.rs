//! The requests of one node, from their arrival until nobody waits for them any more. Pure: running is elsewhere.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use foldhash::fast::FixedState;
use tokio::task::AbortHandle;

use super::{Home, Job, Reservation, Run};
use crate::context::Incoming;

/// The requests of one node.
#[derive(Default)]
pub(super) struct Requests {
    /// What has come, in order, and has not been looked at.
    arrived: VecDeque<Arrival>,
    /// How many have been taken from the front of those.
    taken: u64,
    /// The ids that nobody waits for any more, of those that had come by then: so many in all.
    cancelled: HashMap<u64, u64, FixedState>,
    /// What may run on the I/O thread now, after it has waited for others.
    released: VecDeque<Run>,
    /// What the I/O thread runs at the moment. It is not among `held`, which would cost it twice as much as most of them
    /// take.
    current: Option<(u64, Arc<Incoming>)>,
    /// What else runs or waits to, and can be cancelled, by id.
    held: HashMap<u64, Held, FixedState>,
}

/// What the I/O thread has for the executor, in the order in which it came.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A request that can run.
    Whole(Job),
    /// The first part of one.
    Begun(Reservation),
    /// One that has begun comes no further.
    Dropped(Job),
}

/// What is to be done with what has come.
pub(super) enum Next {
    /// Keep a place for a request.
    Reserve(Reservation),
    /// Give up the place of a request.
    Forgo(Job),
    /// Have a request run where it belongs.
    Place(Job),
    /// Run a request here.
    Run(Run),
}

/// A request that runs or waits to.
#[derive(Debug)]
pub(super) struct Held {
    incoming: Arc<Incoming>,
    /// Ends the task of an `async fn`.
    abort: Option<AbortHandle>,
}

impl Requests {
    /// Something has come.
    pub(super) fn push(&mut self, arrival: Arrival) {
        self.arrived.push_back(arrival);
    }

    /// Something may run on the I/O thread, after it has waited for others.
    pub(super) fn release(&mut self, run: Run) {
        self.released.push_back(run);
    }

    pub(super) fn has_work(&self) -> bool {
        !(self.arrived.is_empty() && self.released.is_empty())
    }

    /// What the I/O thread does next. A request that `is_quick` runs there.
    pub(super) fn next(&mut self, is_quick: impl Fn(&Job) -> bool, home: &Arc<dyn Home>) -> Option<Next> {
        if let Some((id, incoming)) = self.current.take() {
            // Another thread was the I/O thread when that began, and is still at it.
            self.hold(id, incoming);
        }
        if let Some(run) = self.released.pop_front() {
            return Some(Next::Run(run));
        }
        let arrival = self.arrived.pop_front()?;
        self.taken += 1;
        let next = match arrival {
            Arrival::Begun(reservation) => Next::Reserve(reservation),
            Arrival::Dropped(job) => Next::Forgo(job),
            Arrival::Whole(job) if !job.one_way && self.is_cancelled(job.id) => Next::Forgo(job),
            Arrival::Whole(job) if is_quick(&job) => {
                let incoming = Incoming::new(job.caller.clone(), job.deadline);
                if !job.one_way {
                    self.current = Some((job.id, incoming.clone()));
                }
                Next::Run(Run::new(home.clone(), job, incoming))
            }
            Arrival::Whole(job) => Next::Place(job),
        };
        if self.arrived.is_empty() && !self.cancelled.is_empty() {
            self.cancelled.clear();
        }
        Some(next)
    }

    /// Whether the request that was taken last is cancelled. A later one may have its id.
    fn is_cancelled(&mut self, id: u64) -> bool {
        !self.cancelled.is_empty() && self.cancelled.remove(&id).is_some_and(|come| self.taken <= come)
    }

    /// Keeps a request where it can be cancelled.
    pub(super) fn hold(&mut self, id: u64, incoming: Arc<Incoming>) {
        self.held.insert(id, Held { incoming, abort: None });
    }

    /// A request goes on as a task, unless it is over already. Gives the handle back if the task is to end.
    pub(super) fn continues(
        &mut self,
        id: u64,
        incoming: &Arc<Incoming>,
        abort: AbortHandle,
    ) -> Option<AbortHandle> {
        if incoming.is_cancelled() {
            return Some(abort);
        }
        if let Some((id, incoming)) = self.current.take_if(|(_, current)| Arc::ptr_eq(current, incoming)) {
            self.held.insert(id, Held { incoming, abort: Some(abort) });
        } else if let Some(held) = self.held.get_mut(&id).filter(|held| held.is_of(incoming)) {
            held.abort = Some(abort);
        }
        None
    }

    /// Whether a request can still be cancelled. Another one may have its id by now, since ids begin anew after the link
    /// was lost and found again.
    pub(super) fn has(&self, id: u64, incoming: &Arc<Incoming>) -> bool {
        self.current.as_ref().is_some_and(|(_, current)| Arc::ptr_eq(current, incoming))
            || self.held.get(&id).is_some_and(|held| held.is_of(incoming))
    }

    /// Takes out a request whose outcome is there; says whether it could still be cancelled.
    pub(super) fn remove(&mut self, id: u64, incoming: &Arc<Incoming>) -> bool {
        if self.current.take_if(|(_, current)| Arc::ptr_eq(current, incoming)).is_some() {
            return true;
        }
        self.held.get(&id).is_some_and(|held| held.is_of(incoming)) && self.held.remove(&id).is_some()
    }

    /// Nobody waits for this request any more. Gives what ends it, if it was started.
    pub(super) fn cancel(&mut self, id: u64) -> Option<Held> {
        if let Some((_, incoming)) = self.current.take_if(|(current, _)| *current == id) {
            return Some(Held { incoming, abort: None });
        }
        let held = self.held.remove(&id);
        if held.is_none() && !self.arrived.is_empty() {
            self.cancelled.insert(id, self.taken + self.arrived.len() as u64);
        }
        held
    }

    /// Nobody waits for anything any more. Gives what ends those that were started, and those that were not.
    pub(super) fn cancel_all(&mut self) -> (Vec<Held>, Vec<Job>) {
        let current = self.current.take().map(|(_, incoming)| Held { incoming, abort: None });
        let started = current.into_iter().chain(self.held.drain().map(|(_, held)| held)).collect();
        let mut unstarted = Vec::new();
        // Those that nobody waits for may run.
        let arrived = self.arrived.drain(..).filter_map(|arrival| match arrival {
            Arrival::Whole(job) if !job.one_way => {
                unstarted.push(job);
                None
            }
            arrival => Some(arrival),
        });
        self.arrived = arrived.collect();
        self.cancelled.clear();
        (started, unstarted)
    }

    /// Nothing that waits here is to run.
    pub(super) fn clear(&mut self) -> VecDeque<Run> {
        self.arrived.clear();
        self.cancelled.clear();
        std::mem::take(&mut self.released)
    }
}

impl Held {
    /// Whether it is the request that came as this, and not another one of the same id.
    fn is_of(&self, incoming: &Arc<Incoming>) -> bool {
        Arc::ptr_eq(&self.incoming, incoming)
    }

    /// Tells whoever runs it that nobody waits.
    pub(super) fn cancel(self) {
        self.incoming.cancel();
        if let Some(abort) = self.abort {
            abort.abort();
        }
    }
}
