//! Random numbers that are the same for the same seed.

use std::time::Duration;

/// SplitMix64: small, and good enough to choose faults with.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    /// A number in this range, both ends included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// A time in this range.
    pub fn time(&mut self, low: Duration, high: Duration) -> Duration {
        Duration::from_micros(self.between(low.as_micros() as u64, high.as_micros() as u64))
    }

    /// Whether something happens that does in `percent` of a hundred times.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// Dice of their own for a part of the whole, so that what one part does leaves the others alone.
    pub fn fork(&mut self) -> Self {
        Self(self.roll())
    }
}

/// Scatters a number over all 64 bits, so that no two numbers give the same.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence() {
        let rolls = |seed| {
            std::iter::repeat_with({
                let mut dice = Dice::new(seed);
                move || dice.roll()
            })
        };
        assert!(rolls(7).take(100).eq(rolls(7).take(100)));
        assert!(rolls(7).take(100).ne(rolls(8).take(100)));
    }

    #[test]
    fn both_ends_of_a_range_come() {
        let mut dice = Dice::new(1);
        let seen: std::collections::BTreeSet<_> = (0..200).map(|_| dice.between(3, 6)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6]);
    }
}
