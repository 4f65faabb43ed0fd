//! How many bytes of arguments are held in memory, to limit it.

use std::sync::Arc;

use crate::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of arguments that are held in memory, and how many may be.
#[derive(Debug)]
pub(crate) struct HeldBytes {
    used: AtomicUsize,
    max: usize,
}

/// Held arguments: they count until the last clone of this is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Hold(#[expect(dead_code, reason = "it is there to be dropped")] Arc<Share>);

#[derive(Debug)]
struct Share {
    of: Arc<HeldBytes>,
    bytes: usize,
}

/// Up to this size arguments do not count. As many as may be held are little in total, and quick calls pay
/// nothing.
const COUNTED_BYTES_MIN: usize = 4 * 1024;

/// There is no room for the arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl HeldBytes {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    /// Counts arguments of this many bytes. Returns `None` if they are too small to count.
    ///
    /// # Errors
    /// If there is no room for them. One call always has room, however large.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Result<Option<Hold>, Full> {
        if bytes <= COUNTED_BYTES_MIN {
            return Ok(None);
        }
        let with_these = |used: usize| {
            let sum = used.saturating_add(bytes);
            (used == 0 || sum <= self.max).then_some(sum)
        };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_these).map_err(|_| Full)?;
        Ok(Some(Hold(Arc::new(Share { of: self.clone(), bytes }))))
    }

    /// Returns how many bytes are held.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_counts_until_it_is_dropped() {
        let held = HeldBytes::new(100_000);
        let first = held.hold(60_000).unwrap();
        assert_eq!(held.hold(40_001).unwrap_err(), Full);
        assert_eq!(held.used(), 60_000);
        let second = held.hold(40_000).unwrap();
        let clone = second.clone();
        drop((first, second));
        assert_eq!(held.used(), 40_000);
        drop(clone);
        assert_eq!(held.used(), 0);
    }

    #[test]
    fn one_call_always_has_room_and_small_ones_do_not_count() {
        let held = HeldBytes::new(1);
        let large = held.hold(1 << 20).unwrap();
        assert!(large.is_some());
        assert!(held.hold(COUNTED_BYTES_MIN).unwrap().is_none());
        assert!(held.hold(COUNTED_BYTES_MIN + 1).is_err());
        drop(large);
        assert_eq!(held.used(), 0);
    }
}
