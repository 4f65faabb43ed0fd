//! How much of a payload is on its way, and how soon its receiver takes it.

use std::time::{Duration, Instant};

use daffi_core::host;

use super::RECEIVERS_WINDOW_BYTES;

/// A byte that is on its way for so long is late: its receiver is far away or slow, or takes nothing at all.
pub(super) const LATE_AFTER: Duration = Duration::from_millis(20);

/// What is on its way for so long is stuck, however slow the link is.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(3);

/// What is on its way of one payload.
#[derive(Debug)]
pub(super) struct OnItsWay {
    bytes: usize,
    /// One of these bytes, as the number of those that arrive up to it, and since when it has been on its way.
    timed: Option<(usize, Instant)>,
    /// The last one that was timed was late.
    was_late: bool,
    /// As what these bytes count.
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
    /// Nothing.
    pub(super) fn new() -> Self {
        Self { bytes: 0, timed: None, was_late: false, pace: Pace::Prompt }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// So many more leave.
    pub(super) fn leaves(&mut self, bytes: usize, sums: &mut Sums) {
        self.bytes += bytes;
        *sums.of(self.pace) += bytes;
        if self.timed.is_none() && bytes > 0 {
            self.timed = Some((self.bytes, host::now()));
        }
    }

    /// So many have arrived. Says how many of them were on their way.
    pub(super) fn arrives(&mut self, bytes: usize, sums: &mut Sums) -> usize {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        *sums.of(self.pace) -= bytes;
        match &mut self.timed {
            Some((left, since)) if bytes >= *left => {
                let now = host::now();
                self.was_late = now >= *since + LATE_AFTER;
                // The last one that is on its way now, as nothing may follow it.
                self.timed = (self.bytes > 0).then_some((self.bytes, now));
                self.look(now, sums);
            }
            Some((left, _)) => *left -= bytes,
            None => {}
        }
        bytes
    }

    /// Looks how soon its receiver takes it.
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

    /// So much time passes.
    #[cfg(test)]
    pub(super) fn passes(&mut self, time: Duration) {
        if let Some((_, since)) = &mut self.timed {
            *since -= time;
        }
    }
}

impl Sums {
    /// To receivers that take what they are sent at once.
    pub(super) fn prompt(&self) -> usize {
        self.prompt
    }

    /// To those that take it at all.
    pub(super) fn moving(&self) -> usize {
        self.prompt + self.late
    }

    /// To all together as many as may be.
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
