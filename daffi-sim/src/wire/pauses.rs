//! When processes were paused, so that they are not blamed for what they did not do then.

use std::time::Duration;

use super::{NOTICED_MAX, Wire};
use crate::network::HostId;

/// A time in which a process was frozen.
#[derive(Debug)]
pub(super) struct Freeze {
    host: HostId,
    from: Duration,
    until: Duration,
}

/// How long something done at once may take.
const AT_ONCE: Duration = Duration::from_millis(1);

impl Wire {
    /// Records that a process is frozen for a while.
    pub(crate) fn froze(&mut self, host: HostId, from: Duration, until: Duration) {
        self.freezes.push(Freeze { host, from, until });
    }

    /// Records that all processes continue.
    pub(crate) fn thawed(&mut self, now: Duration) {
        for freeze in &mut self.freezes {
            freeze.until = freeze.until.min(now);
        }
    }

    /// Records that all processes are paused, because one sleeps without letting others run.
    pub(crate) fn slept(&mut self, from: Duration, until: Duration) {
        self.sleeps.push((from, until));
    }

    /// Returns by when a process must do what is due at `due`, given its freezes and everyone's sleeps.
    pub(crate) fn latest(&self, host: HostId, due: Duration, late_max: Duration) -> Duration {
        let freezes = self.freezes.iter().filter(|freeze| freeze.host == host);
        let mut pauses: Vec<_> =
            freezes.map(|freeze| (freeze.from, freeze.until)).chain(self.sleeps.iter().copied()).collect();
        pauses.sort_unstable();
        let mut latest = due + late_max;
        for (from, until) in pauses {
            if from <= latest && until > due {
                latest = latest.max(until + late_max);
            }
        }
        latest
    }

    /// Returns for how long in a given time nothing ran at all.
    pub(crate) fn slept_between(&self, from: Duration, until: Duration) -> Duration {
        let spans =
            self.sleeps.iter().map(|(begin, end)| (*end).min(until).saturating_sub((*begin).max(from)));
        spans.sum()
    }

    /// Returns for how long in a given time controllers were frozen.
    pub(crate) fn controllers_froze(&self, from: Duration, until: Duration) -> Duration {
        let spans =
            self.freezes_of_controllers().map(|freeze| (freeze.from.max(from), freeze.until.min(until)));
        spans.map(|(from, until)| until.saturating_sub(from)).sum()
    }

    /// Whether a controller resumed at `at` or just before, after having been frozen.
    pub(crate) fn controller_woke(&self, at: Duration) -> bool {
        self.freezes_of_controllers().any(|freeze| freeze.until <= at && at <= freeze.until + AT_ONCE)
    }

    fn freezes_of_controllers(&self) -> impl Iterator<Item = &Freeze> {
        let is_controller = |host| self.connections.values().any(|seen| seen.controller == host);
        self.freezes.iter().filter(move |freeze| is_controller(freeze.host))
    }

    /// Returns from when on, at `since` or later, this process has run without a break.
    pub(super) fn awake_since(&self, host: HostId, since: Duration) -> Duration {
        let freezes =
            self.freezes.iter().filter(|freeze| freeze.host == host && freeze.from <= since + NOTICED_MAX);
        freezes.map(|freeze| freeze.until).chain([since]).max().unwrap_or(since)
    }
}
