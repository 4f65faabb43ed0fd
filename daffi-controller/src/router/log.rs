//! What the router logs, written when nobody is waiting for it.

use std::fmt;

/// A line for the log.
///
/// A subscriber to the log may itself call daffi, so the line is written only once no lock is held.
pub struct LogLine(Box<dyn FnOnce() + Send>);

impl LogLine {
    pub(crate) fn new(write: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(write))
    }

    /// Writes the line.
    pub fn write(self) {
        (self.0)();
    }
}

impl fmt::Debug for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogLine")
    }
}
