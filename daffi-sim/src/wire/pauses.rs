//! When processes did nothing, so that they are not blamed for what they did not do then.

use std::time::Duration;

use super::{NOTICED_MAX, Wire};
use crate::network::HostId;

/// A time in which a process did nothing.
#[derive(Debug)]
pub(super) struct Freeze {
    host: HostId,
    from: Duration,
    until: Duration,
}

/// How long what is done at once may take.
const AT_ONCE: Duration = Duration::from_millis(1);

impl Wire {
    /// A process does nothing for a while.
    pub(crate) fn froze(&mut self, host: HostId, from: Duration, until: Duration) {
        self.freezes.push(Freeze { host, from, until });
    }

    /// All processes go on.
    pub(crate) fn thawed(&mut self, now: Duration) {
        for freeze in &mut self.freezes {
            freeze.until = freeze.until.min(now);
        }
    }

    /// All processes do nothing, since one sleeps without letting another one go on.
    pub(crate) fn slept(&mut self, from: Duration, until: Duration) {
        self.sleeps.push((from, until));
    }

    /// When what a process has to do at `due` has to be done, given when it was frozen and everybody slept.
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

    /// For how long nobody did anything in a certain time.
    pub(crate) fn slept_between(&self, from: Duration, until: Duration) -> Duration {
        let spans =
            self.sleeps.iter().map(|(begin, end)| (*end).min(until).saturating_sub((*begin).max(from)));
        spans.sum()
    }

    /// How long controllers did nothing in a certain time.
    pub(crate) fn controllers_froze(&self, from: Duration, until: Duration) -> Duration {
        let spans =
            self.freezes_of_controllers().map(|freeze| (freeze.from.max(from), freeze.until.min(until)));
        spans.map(|(from, until)| until.saturating_sub(from)).sum()
    }

    /// Whether a controller went on at `at` or just before, after it had done nothing for a while.
    pub(crate) fn controller_woke(&self, at: Duration) -> bool {
        self.freezes_of_controllers().any(|freeze| freeze.until <= at && at <= freeze.until + AT_ONCE)
    }

    fn freezes_of_controllers(&self) -> impl Iterator<Item = &Freeze> {
        let is_controller = |host| self.connections.values().any(|seen| seen.controller == host);
        self.freezes.iter().filter(move |freeze| is_controller(freeze.host))
    }

    /// From when on this process has done something without a break, at `since` or later.
    pub(super) fn awake_since(&self, host: HostId, since: Duration) -> Duration {
        let freezes =
            self.freezes.iter().filter(|freeze| freeze.host == host && freeze.from <= since + NOTICED_MAX);
        freezes.map(|freeze| freeze.until).chain([since]).max().unwrap_or(since)
    }
}
