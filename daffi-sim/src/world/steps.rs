//! How a world proceeds: one step of one process at a time, chosen by chance, and time when none is left.

use std::{
    sync::atomic::Ordering,
    task::{Context, Waker},
    time::Duration,
};

use super::{Later, Sim, epoch};
use crate::network::{Event, HostId};

/// More steps than can ever be needed without time advancing.
const STEPS_MAX: usize = 1_000_000;

/// A possible next step.
#[derive(Clone, Copy)]
enum Step {
    Reactor(HostId, usize),
    Runtimes(HostId),
    Task(HostId, usize),
}

impl Step {
    fn host(self) -> HostId {
        match self {
            Self::Reactor(id, _) | Self::Runtimes(id) | Self::Task(id, _) => id,
        }
    }
}

impl Sim {
    /// Runs until `until`, or until `done` returns true; returns whether it did.
    pub(crate) fn run(&self, until: Duration, mut done: impl FnMut() -> bool) -> bool {
        loop {
            if done() {
                return true;
            }
            if self.now() >= until {
                return false;
            }
            self.step(until);
        }
    }

    fn step(&self, until: Duration) {
        let now = self.now();
        let stirred = std::mem::take(&mut self.network.lock().stirred);
        let mut steps = Vec::new();
        let mut next: Option<Duration> = None;
        {
            let mut hosts = self.hosts.borrow_mut();
            for id in stirred {
                hosts[id].stir();
            }
            for (id, host) in hosts.iter_mut().enumerate().filter(|(_, host)| host.alive) {
                if host.frozen_until > now {
                    next = next.into_iter().chain([host.frozen_until]).min();
                    continue;
                }
                for (number, turns) in host.reactors.iter().enumerate() {
                    if turns.stirred || turns.handle.is_woken() || turns.due.is_some_and(|due| due <= now) {
                        steps.push(Step::Reactor(id, number));
                    }
                    next = next.into_iter().chain(turns.due).min();
                }
                if host.touched > 0 && !host.runtimes.is_empty() {
                    steps.push(Step::Runtimes(id));
                }
                for (number, task) in host.tasks.iter().enumerate() {
                    if task.as_ref().is_some_and(|task| task.flag.0.load(Ordering::Relaxed)) {
                        steps.push(Step::Task(id, number));
                    }
                }
            }
        }
        if self.steps.replace(self.steps.get() + 1) == STEPS_MAX {
            let problem = format!("I6: {STEPS_MAX} steps at {now:?}, and still not at rest");
            self.history.borrow_mut().violations.push(problem);
            self.steps.set(0);
            self.network.lock().now = until;
            return;
        }
        if !steps.is_empty() {
            let step = self.network.lock().random.one_of(&steps);
            if self.network.lock().acts(step.host()) {
                self.take(step);
            }
            return self.bury();
        }
        self.steps.set(0);
        {
            let mut network = self.network.lock();
            let next = next.into_iter().chain(network.next_event()).min();
            network.now = next.map_or(until, |next| next.min(until)).max(now);
        }
        loop {
            let event = self.network.lock().pop_event();
            match event {
                None => return,
                Some(Event::Arrive(id, lane)) => self.network.lock().arrive(id, lane),
                Some(Event::Timer(number)) => self.timer(number),
            }
        }
    }

    /// Ends the processes that died within their last step.
    fn bury(&self) {
        loop {
            let fallen = self.network.lock().fallen.pop();
            let Some((id, silently)) = fallen else { return };
            self.end(id, silently);
        }
    }

    fn take(&self, step: Step) {
        match step {
            Step::Reactor(id, number) => {
                let handle = self.host(id, |host| {
                    host.reactors[number].stirred = false;
                    host.reactors[number].handle.clone()
                });
                let due = self.as_host(id, || handle.simulate());
                let due = due.map(|due| due.saturating_duration_since(epoch()));
                self.host(id, |host| {
                    if let Some(turns) = host.reactors.get_mut(number) {
                        turns.due = due;
                    }
                });
            }
            Step::Runtimes(id) => {
                let touched = self.host(id, |host| host.touched - 1);
                let count = self.host(id, |host| host.runtimes.len());
                for number in 0..count {
                    let Some(mut poll) = self.host(id, |host| host.runtimes[number].take()) else { continue };
                    if self.as_host(id, &mut poll) {
                        self.host(id, |host| host.runtimes[number] = Some(poll));
                    }
                }
                self.host(id, |host| host.touched = touched);
            }
            Step::Task(id, number) => {
                let Some(mut task) = self.host(id, |host| host.tasks[number].take()) else { return };
                task.flag.0.store(false, Ordering::Relaxed);
                let waker = Waker::from(task.flag.clone());
                let polled = self.as_host(id, || task.future.as_mut().poll(&mut Context::from_waker(&waker)));
                if polled.is_pending() && self.host(id, |host| host.alive) {
                    self.host(id, |host| host.tasks[number] = Some(task));
                } else {
                    self.as_host(id, || drop(task));
                }
            }
        }
    }

    fn timer(&self, number: u64) {
        let Some(later) = self.later.borrow_mut().remove(&number) else { return };
        let id = match &later {
            Later::Wake(id, _) | Later::Work(id, _) => *id,
        };
        let (alive, frozen_until) = self.host(id, |host| (host.alive, host.frozen_until));
        let now = self.now();
        match later {
            Later::Wake(_, waker) => {
                waker.wake();
                self.host(id, |host| host.touched = 2);
            }
            Later::Work(_, work) if alive && frozen_until <= now => {
                if self.network.lock().acts(id) {
                    self.as_host(id, work);
                }
                self.bury();
            }
            Later::Work(..) if alive => self.later(frozen_until, later),
            Later::Work(..) => {}
        }
    }

    pub(super) fn later(&self, at: Duration, what: Later) {
        let number = self.later_last.get() + 1;
        self.later_last.set(number);
        self.later.borrow_mut().insert(number, what);
        self.network.lock().at(at, Event::Timer(number));
    }
}
