//! How long to wait before the next attempt to reach the controller.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(100);
pub(crate) const LONGEST: Duration = Duration::from_secs(5);

/// Exponential backoff with jitter from the first wait on, so that nodes that lost a controller together do
/// not come back together.
#[derive(Debug)]
pub(crate) struct Backoff {
    attempts: u32,
    random: u64,
}

impl Backoff {
    /// Returns a backoff whose jitter is derived from `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self { attempts: 0, random: seed | 1 }
    }

    /// Returns how long to wait now: at least 100 ms, at most 5 s, and on average longer after each attempt.
    pub(crate) fn next(&mut self) -> Duration {
        self.attempts = self.attempts.saturating_add(1);
        let ceiling = SHORTEST.saturating_mul(2u32.saturating_pow(self.attempts.min(16))).min(LONGEST);
        let spread = (ceiling - SHORTEST).as_millis() as u64;
        SHORTEST + Duration::from_millis(self.random() % (spread + 1))
    }

    /// Starts over after a success.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_within_their_bounds_and_differ_between_seeds() {
        let waits = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..50).map(|_| backoff.next()).collect::<Vec<_>>()
        };
        for seed in 1..200 {
            let waits = waits(seed * 7919);
            assert!(waits[0] <= 2 * SHORTEST, "{:?}", waits[0]);
            assert!(waits.iter().all(|wait| (SHORTEST..=LONGEST).contains(wait)));
        }
        let late: Duration = waits(3)[20..].iter().sum::<Duration>() / 30;
        assert!(late > Duration::from_secs(1), "{late:?}");
        assert_ne!(waits(3), waits(4));
        let first: std::collections::BTreeSet<_> = (1..100).map(|seed| waits(seed * 7919)[0]).collect();
        assert!(first.len() > 30, "{first:?}");
    }

    #[test]
    fn a_success_begins_anew() {
        let mut backoff = Backoff::new(9);
        for _ in 0..10 {
            backoff.next();
        }
        backoff.reset();
        assert!(backoff.next() <= 2 * SHORTEST);
    }
}
