//! Whether the other end of a connection lives, by one rule on both ends. Pure: time is somebody else's.

use std::time::Duration;

use crate::Limits;

/// The pings of one end of a connection, and which of them the other end has answered.
///
/// Only the answer to a ping that was sent shows life. Whatever else arrives may have been sent long ago, and says nothing
/// about the way there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heartbeat {
    /// The id of the last ping. The first has 1.
    sent: u64,
    /// The id of the last ping that was answered.
    answered: u64,
}

impl Heartbeat {
    /// How long it is from one ping to the next, if `heartbeat` is what [`Limits::heartbeat`] says.
    ///
    /// It is a little less: being late by a few milliseconds each time must not add up to more than
    /// [`Limits::HEARTBEATS_MISSED_MAX`] heartbeats.
    pub fn interval(heartbeat: Duration) -> Duration {
        heartbeat - heartbeat / 32
    }

    /// An interval is over: the id of the ping that is due, or `None` if the other end is to be given up.
    ///
    /// Intervals are counted, not time: after this process itself was stopped for a while, what the others sent
    /// meanwhile is read before anybody is given up.
    pub fn next_ping(&mut self) -> Option<u64> {
        // The interval that ends now is one of them. The other end may have stopped at the beginning of the first,
        // right after it answered.
        if self.sent - self.answered + 1 >= Limits::HEARTBEATS_MISSED_MAX.into() {
            return None;
        }
        self.sent += 1;
        Some(self.sent)
    }

    /// A pong came. Says whether it answers a ping that was not answered yet.
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
            // It stops right after its last answer, or its welcome: no interval of its life is left.
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
        // It shows life at the first ping, and nothing since.
        assert!(heartbeat.pong(1));
        assert_eq!(heartbeat.next_ping(), Some(3));
        assert_eq!(heartbeat.next_ping(), None);
    }
}
