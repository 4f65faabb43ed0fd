//! What happened, as lines for people and as one number that distinguishes runs.

use std::time::Duration;

/// The trace of one run.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    /// Whether to print the lines as they come.
    aloud: bool,
}

impl Trace {
    pub(crate) fn new(aloud: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, aloud }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Adds a line, which must depend only on the seed.
    pub(crate) fn note(&mut self, now: Duration, what: impl FnOnce() -> String) {
        let what = what();
        if self.aloud {
            println!("{:>12.6} {what}", now.as_secs_f64());
        }
        for byte in now.as_nanos().to_le_bytes().iter().chain(what.as_bytes()) {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}
