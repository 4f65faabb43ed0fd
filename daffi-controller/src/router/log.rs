//! What the router has to say, written when nobody waits for it.

use std::fmt;

/// A line for the log.
///
/// Whoever listens to the log may call daffi itself, so it is written only once no lock is held.
pub struct LogLine(Box<dyn FnOnce() + Send>);

impl LogLine {
    pub(crate) fn new(write: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(write))
    }

    /// Writes it.
    pub fn write(self) {
        (self.0)();
    }
}

impl fmt::Debug for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogLine")
    }
}
