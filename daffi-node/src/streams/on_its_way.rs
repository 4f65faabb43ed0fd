//! How much of a payload is on its way, and how soon its receiver takes it.

use std::time::{Duration, Instant};

use daffi_core::host;

use super::RECEIVERS_WINDOW_BYTES;

/// A byte that has been on its way for this long is late: its receiver is far away or slow, or takes nothing
/// at all.
pub(super) const LATE_AFTER: Duration = Duration::from_millis(20);

/// What has been on its way for this long is stuck, however slow the link.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(3);

/// What is on its way of one payload.
#[derive(Debug)]
pub(super) struct OnItsWay {
    bytes: usize,
    /// One of these bytes: how many arrive up to and including it, and since when it has been on its way.
    timed: Option<(usize, Instant)>,
    /// Whether the last timed byte was late.
    was_late: bool,
    /// What these bytes count as.
    pace: Pace,
}

/// How soon a receiver takes what it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Prompt,
    Late,
    Stuck,
}

/// How many bytes of all payloads are on their way.
#[derive(Debug, Default)]
pub(super) struct Sums {
    prompt: usize,
    late: usize,
    stuck: usize,
}

impl OnItsWay {
    /// Returns a count with nothing on its way.
    pub(super) fn new() -> Self {
        Self { bytes: 0, timed: None, was_late: false, pace: Pace::Prompt }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Notes that this many more bytes leave.
    pub(super) fn leaves(&mut self, bytes: usize, sums: &mut Sums) {
        self.bytes += bytes;
        *sums.of(self.pace) += bytes;
        if self.timed.is_none() && bytes > 0 {
            self.timed = Some((self.bytes, host::now()));
        }
    }

    /// Notes that this many bytes have arrived. Returns how many of them were on their way.
    pub(super) fn arrives(&mut self, bytes: usize, sums: &mut Sums) -> usize {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        *sums.of(self.pace) -= bytes;
        match &mut self.timed {
            Some((left, since)) if bytes >= *left => {
                let now = host::now();
                self.was_late = now >= *since + LATE_AFTER;
                // The last byte now on its way, as nothing may follow it.
                self.timed = (self.bytes > 0).then_some((self.bytes, now));
                self.look(now, sums);
            }
            Some((left, _)) => *left -= bytes,
            None => {}
        }
        bytes
    }

    /// Checks how soon its receiver takes it.
    pub(super) fn look(&mut self, now: Instant, sums: &mut Sums) {
        let is_on_its_way_for = |time| self.timed.is_some_and(|(_, since)| now >= since + time);
        let pace = if is_on_its_way_for(STUCK_AFTER) {
            Pace::Stuck
        } else if self.was_late || is_on_its_way_for(LATE_AFTER) {
            Pace::Late
        } else {
            Pace::Prompt
        };
        *sums.of(self.pace) -= self.bytes;
        *sums.of(pace) += self.bytes;
        self.pace = pace;
    }

    /// Lets this much time pass.
    #[cfg(test)]
    pub(super) fn passes(&mut self, time: Duration) {
        if let Some((_, since)) = &mut self.timed {
            *since -= time;
        }
    }
}

impl Sums {
    /// Returns how many are on their way to receivers that take what they are sent at once.
    pub(super) fn prompt(&self) -> usize {
        self.prompt
    }

    /// Returns how many are on their way to receivers that take anything at all.
    pub(super) fn moving(&self) -> usize {
        self.prompt + self.late
    }

    /// Returns whether all receivers together have as much on their way as is allowed.
    pub(super) fn is_full(&self) -> bool {
        self.prompt + self.late + self.stuck >= RECEIVERS_WINDOW_BYTES
    }

    fn of(&mut self, pace: Pace) -> &mut usize {
        match pace {
            Pace::Prompt => &mut self.prompt,
            Pace::Late => &mut self.late,
            Pace::Stuck => &mut self.stuck,
        }
    }
}
