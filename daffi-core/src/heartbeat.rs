//! Whether the other end of a connection is alive, by the same rule at both ends. Pure: the caller keeps the
//! time.

use std::time::Duration;

use crate::Limits;

/// The pings of one end of a connection, and which of them the other end has answered.
///
/// Only the answer to a ping proves that the other end is alive. Anything else that arrives may have been
/// sent long ago, and says nothing about the path to the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heartbeat {
    /// The id of the last ping. The first one has id 1.
    sent: u64,
    /// The id of the last ping that was answered.
    answered: u64,
}

impl Heartbeat {
    /// Returns the time from one ping to the next, given [`Limits::heartbeat`].
    ///
    /// It is slightly shorter than `heartbeat`: a delay of a few milliseconds each time must not add up to
    /// more than [`Limits::HEARTBEATS_MISSED_MAX`] heartbeats.
    pub fn interval(heartbeat: Duration) -> Duration {
        heartbeat - heartbeat / 32
    }

    /// Ends an interval: returns the id of the ping that is due, or `None` if the other end is to be given
    /// up.
    ///
    /// This counts intervals, not time: if this process itself was stopped for a while, it reads what the
    /// others sent in the meantime before it gives anyone up.
    pub fn next_ping(&mut self) -> Option<u64> {
        // The interval that ends now is one of them. The other end may have stopped at the beginning of the
        // first one, right after it answered.
        if self.sent - self.answered + 1 >= Limits::HEARTBEATS_MISSED_MAX.into() {
            return None;
        }
        self.sent += 1;
        Some(self.sent)
    }

    /// Records a pong. Returns whether it answers a ping that was not answered yet.
    pub fn pong(&mut self, id: u64) -> bool {
        let answers = self.answered < id && id <= self.sent;
        if answers {
            self.answered = id;
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_every_ping_stays() {
        let mut heartbeat = Heartbeat::default();
        for id in 1..100 {
            assert_eq!(heartbeat.next_ping(), Some(id));
            assert!(heartbeat.pong(id));
        }
    }

    #[test]
    fn who_stops_is_given_up_within_three_heartbeats() {
        let limits = Limits::default();
        let interval = Heartbeat::interval(limits.heartbeat);
        for answered in 0..5 {
            let mut heartbeat = Heartbeat::default();
            for _ in 0..answered {
                let id = heartbeat.next_ping().unwrap();
                heartbeat.pong(id);
            }
            // It stops right after its last answer, or its welcome, so every interval from then on counts as
            // silence.
            let mut silence = interval;
            while heartbeat.next_ping().is_some() {
                silence += interval;
            }
            assert!(silence <= limits.heartbeat * 3, "{silence:?}");
            assert!(silence > limits.heartbeat * 2, "{silence:?} is no time to be given up after");
        }
    }

    #[test]
    fn only_an_open_ping_can_be_answered() {
        let mut heartbeat = Heartbeat::default();
        assert!(!heartbeat.pong(0) && !heartbeat.pong(1), "nothing was asked");
        heartbeat.next_ping();
        assert!(!heartbeat.pong(0) && !heartbeat.pong(2) && !heartbeat.pong(u64::MAX));
        assert!(heartbeat.pong(1));
        assert!(!heartbeat.pong(1), "it was answered before");
    }

    #[test]
    fn a_late_answer_counts_from_its_question() {
        let mut heartbeat = Heartbeat::default();
        heartbeat.next_ping();
        heartbeat.next_ping();
        // It shows that the other end was alive at the first ping, and nothing since.
        assert!(heartbeat.pong(1));
        assert_eq!(heartbeat.next_ping(), Some(3));
        assert_eq!(heartbeat.next_ping(), None);
    }
}
