//! Scheduled tasks: calls that the controller makes.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use daffi_core::{
    answer::{TaskState, TaskStatus},
    fault::{Fault, FaultKind},
    frame::{Body, Request, Schedule, Timing},
    limits::{AT_TIMES_MAX, PERIOD_MIN},
};

use crate::{
    calls::Origin,
    state::{NodeId, State},
};

/// A call that is made repeatedly.
pub(crate) struct Task {
    owner: String,
    name: String,
    node: String,
    codec: u8,
    fingerprint: u64,
    body: Bytes,
    /// The period, if the task has one.
    period: Option<Duration>,
    /// When to call, soonest first; for a periodic task, only the next time.
    times: Vec<Instant>,
    running: usize,
    status: TaskStatus,
}

/// The longest period; anything longer must be a mistake.
const PERIOD_MAX: Duration = Duration::from_secs(1000 * 365 * 24 * 3600);
/// How far in the past a time may be, because clocks differ and a request takes a moment.
const PAST_MAX: Duration = Duration::from_secs(1);

impl State {
    /// Adds a task and returns its id.
    pub(crate) fn schedule(&mut self, from: NodeId, schedule: &Schedule<'_>) -> Result<u64, Fault> {
        let (period, times) =
            times(&schedule.timing).map_err(|problem| Fault::new(FaultKind::InvalidTime, problem))?;
        if self.tasks.len() >= self.limits.tasks_max {
            let over = self.tasks.iter().find(|(_, task)| task.times.is_empty() && task.running == 0);
            let Some(over) = over.map(|(id, _)| *id) else {
                return Err(Fault::new(FaultKind::Overloaded, "too many tasks").on("controller"));
            };
            self.tasks.remove(&over);
        }
        let id = self.fresh_id();
        let task = Task {
            owner: self.nodes.get(&from).map(|node| node.name.clone()).unwrap_or_default(),
            name: schedule.name.to_owned(),
            node: schedule.node.to_owned(),
            codec: schedule.codec,
            fingerprint: schedule.fingerprint,
            body: schedule.body.copied(),
            period,
            times,
            running: 0,
            status: TaskStatus::new(None),
        };
        self.tasks.insert(id, task);
        Ok(id)
    }

    pub(crate) fn cancel_task(&mut self, id: u64) -> Result<(), Fault> {
        let task = self.tasks.get_mut(&id).ok_or_else(|| no_task(id))?;
        if !task.times.is_empty() {
            task.times.clear();
            task.status.state = TaskState::Cancelled;
        }
        Ok(())
    }

    pub(crate) fn task_status(&self, id: u64) -> Result<TaskStatus, Fault> {
        let task = self.tasks.get(&id).ok_or_else(|| no_task(id))?;
        let mut status = task.status.clone();
        let next = task.times.first().map(|next| next.saturating_duration_since(Instant::now()));
        status.next_in_us = next.map(|next| next.as_micros() as u64);
        if status.state == TaskState::Active && next.is_none() {
            status.state = TaskState::Finished;
        }
        Ok(status)
    }

    pub(crate) fn task_ended(&mut self, id: u64, fault: Option<Fault>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.running -= 1;
        if let Some(fault) = fault {
            task.status.failures += 1;
            task.status.last_error = fault.message;
        }
    }

    /// Makes the calls that are due, and returns when the next one is.
    pub(crate) fn call_tasks(&mut self, now: Instant) -> Option<Instant> {
        let ids: Vec<_> = self.tasks.keys().copied().collect();
        for id in ids {
            while self.tasks.get_mut(&id).is_some_and(|task| task.pass(now)) {
                self.call_task(id);
            }
        }
        self.tasks.values().filter_map(|task| task.times.first()).min().copied()
    }

    fn call_task(&mut self, id: u64) {
        let Some(task) = self.tasks.get(&id) else { return };
        let (owner, name, node) = (task.owner.clone(), task.name.clone(), task.node.clone());
        let (codec, fingerprint, body) = (task.codec, task.fingerprint, task.body.clone());
        let owner_id =
            self.nodes.iter().find(|(_, node)| node.is_visible() && node.name == owner).map(|(id, _)| *id);
        let request =
            Request { codec, fingerprint, node: &node, ..Request::new(0, &name, Body::shared(&body)) };
        let sent = self
            .choose(owner_id, &name, &node, fingerprint)
            .and_then(|callee| self.launch(callee, Origin::Task(id), &owner, &request));
        let Some(task) = self.tasks.get_mut(&id) else { return };
        match sent {
            Ok(_) => {
                task.running += 1;
                task.status.runs += 1;
            }
            Err(fault) => {
                task.status.skipped += 1;
                task.status.last_error = fault.message;
            }
        }
    }
}

impl Task {
    /// Takes the next time, if it has come, and returns whether to make a call.
    fn pass(&mut self, now: Instant) -> bool {
        let Some(&next) = self.times.first().filter(|next| **next <= now) else { return false };
        self.times.remove(0);
        let Some(period) = self.period else { return true };
        // From the last time, not from now, so that it never drifts; one call makes up for all missed ones.
        let missed = (now - next).as_nanos() / period.as_nanos();
        self.times.push(next + period * (missed as u32 + 1));
        self.status.skipped += missed as u64 + u64::from(self.running > 0);
        self.running == 0
    }
}

/// Returns the period and the times of the calls.
fn times(timing: &Timing<'_>) -> Result<(Option<Duration>, Vec<Instant>), String> {
    let now = Instant::now();
    match timing {
        Timing::Period(us) => {
            let period = Duration::from_micros(*us);
            if !(PERIOD_MIN..=PERIOD_MAX).contains(&period) {
                return Err(format!("a period of {period:?} is not between {PERIOD_MIN:?} and 1000 years"));
            }
            Ok((Some(period), vec![now + period]))
        }
        Timing::At(times) => {
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let mut when = Vec::new();
            for time in times.iter().map(Duration::from_micros) {
                if time + PAST_MAX < wall {
                    return Err("a time to call at is in the past".to_owned());
                }
                let far = || "a time to call at is too far away".to_owned();
                when.push(now.checked_add(time.saturating_sub(wall)).ok_or_else(far)?);
            }
            if !(1..=AT_TIMES_MAX).contains(&when.len()) {
                return Err(format!("{} times to call at are not between 1 and {AT_TIMES_MAX}", when.len()));
            }
            when.sort_unstable();
            Ok((None, when))
        }
        _ => Err("such a schedule is not known".to_owned()),
    }
}

fn no_task(id: u64) -> Fault {
    Fault::new(FaultKind::NoTask, "no such task").number(id)
}
