//! Control frames: those that cost the controller work and that nothing else paces.
//!
//! Calls and questions pace themselves: each is answered, is limited in number and may be refused. They also
//! pace what follows from them, such as a CANCEL, which is free however many come at a time. The rest is
//! counted, and a peer that floods the controller with it is disconnected. Such floods, of streams opened and
//! reset, which are both cheap, brought down HTTP/2 servers.

use std::time::{Duration, Instant};

use super::Breach;

/// The control frames of one peer.
#[derive(Debug, Default)]
pub(super) struct Control {
    /// How many CANCELs may still find nothing: one per call and question, whose outcome it may have crossed.
    pub(super) cancels: u64,
    /// How many answers may still find nothing: one per CANCEL that the peer was sent.
    pub(super) answers: u64,
    /// How many CREDITs may still come: one per part of an unfinished payload that the peer was sent.
    pub(super) credits: u64,
    /// When the second in which frames are now counted began.
    second: Option<Instant>,
    count: u32,
    /// How many seconds in a row had too many frames.
    bad_seconds: u32,
}

/// The most control frames a peer may send per second for longer than a few seconds.
const CONTROLS_A_SECOND_MAX: u32 = 1000;

/// For this many seconds in a row there may be more: a burst is not a flood.
const BAD_SECONDS_MAX: u32 = 4;

const SECOND: Duration = Duration::from_secs(1);

impl Control {
    /// Counts a control frame.
    pub(super) fn count(&mut self, now: Instant) -> Result<(), Breach> {
        let begun = *self.second.get_or_insert(now);
        if now >= begun + SECOND {
            let bad = self.count > CONTROLS_A_SECOND_MAX && now < begun + 2 * SECOND;
            self.bad_seconds = if bad { self.bad_seconds + 1 } else { 0 };
            self.second = Some(now);
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if self.count > CONTROLS_A_SECOND_MAX && self.bad_seconds >= BAD_SECONDS_MAX {
            let problem = format!(
                "too many control frames: more than {CONTROLS_A_SECOND_MAX} in each of {} seconds in a row",
                BAD_SECONDS_MAX + 1
            );
            return Err(Breach(problem.into()));
        }
        Ok(())
    }

    /// Handles a CANCEL for a call, open or not.
    pub(super) fn cancel(&mut self, is_open: bool, now: Instant) -> Result<(), Breach> {
        if take(&mut self.cancels) || is_open { Ok(()) } else { self.count(now) }
    }

    /// Handles an answer to a call that is not open.
    pub(super) fn late_answer(&mut self, now: Instant) -> Result<(), Breach> {
        if take(&mut self.answers) { Ok(()) } else { self.count(now) }
    }

    /// Handles a CREDIT.
    pub(super) fn credit(&mut self, now: Instant) -> Result<(), Breach> {
        if take(&mut self.credits) { Ok(()) } else { self.count(now) }
    }
}

fn take(left: &mut u64) -> bool {
    let some = *left > 0;
    *left = left.saturating_sub(1);
    some
}
