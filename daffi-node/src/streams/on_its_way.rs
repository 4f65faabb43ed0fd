//! How much of a payload is on its way, and whether its receiver takes it promptly.

use std::time::{Duration, Instant};

use daffi_core::host;

/// A byte that is on its way for so long is late: its receiver is far away or slow, or takes nothing at all.
pub(super) const LATE_AFTER: Duration = Duration::from_millis(5);

/// What is on its way of one payload.
#[derive(Debug, Default)]
pub(super) struct OnItsWay {
    bytes: usize,
    /// One of these bytes, as the number of those that arrive up to it, and since when it has been on its way.
    timed: Option<(usize, Instant)>,
    /// The last one that was timed was late.
    was_late: bool,
    /// These bytes do not count among those for prompt receivers.
    is_late: bool,
}

impl OnItsWay {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// So many more leave. `prompt` is the count of those for all prompt receivers.
    pub(super) fn leaves(&mut self, bytes: usize, prompt: &mut usize) {
        self.bytes += bytes;
        if !self.is_late {
            *prompt += bytes;
        }
        if self.timed.is_none() && bytes > 0 {
            self.timed = Some((self.bytes, host::now()));
        }
    }

    /// So many have arrived. Says how many of them were on their way.
    pub(super) fn arrives(&mut self, bytes: usize, prompt: &mut usize) -> usize {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        if !self.is_late {
            *prompt -= bytes;
        }
        match &mut self.timed {
            Some((left, since)) if bytes >= *left => {
                let now = host::now();
                self.was_late = now >= *since + LATE_AFTER;
                self.timed = None;
                self.look(now, prompt);
            }
            Some((left, _)) => *left -= bytes,
            None => {}
        }
        bytes
    }

    /// So much time passes.
    #[cfg(test)]
    pub(super) fn passes(&mut self, time: Duration) {
        if let Some((_, since)) = &mut self.timed {
            *since -= time;
        }
    }

    /// Looks whether its receiver is late.
    pub(super) fn look(&mut self, now: Instant, prompt: &mut usize) {
        let is_late = self.was_late || self.timed.is_some_and(|(_, since)| now >= since + LATE_AFTER);
        match (self.is_late, is_late) {
            (false, true) => *prompt -= self.bytes,
            (true, false) => *prompt += self.bytes,
            _ => {}
        }
        self.is_late = is_late;
    }
}
