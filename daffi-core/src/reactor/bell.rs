//! Waking the thread that leads, which costs a system call only when it sleeps.

use crate::sync::atomic::{AtomicBool, Ordering};

/// Asks the thread that leads for one more turn.
#[derive(Debug, Default)]
pub(super) struct Bell {
    /// The thread is, or is about to be, waiting for events.
    sleeping: AtomicBool,
    /// Somebody wants a turn.
    marked: AtomicBool,
}

impl Bell {
    /// Asks for a turn. A thread that does not lead then [`rouse`](Self::rouse)s the one that does.
    ///
    /// What the turn is for must be published under a lock that the turn takes too, or with `SeqCst`. Then an
    /// existing mark is enough: the thread that sees it has published before the mark is answered, and the
    /// turn after that looks.
    pub(super) fn mark(&self) {
        // Under load the mark is nearly always set, and checking is much cheaper.
        if !self.is_marked() {
            self.marked.store(true, Ordering::SeqCst);
        }
    }

    /// Calls `wake` to end the wait of the thread that leads, if it is waiting.
    pub(super) fn rouse(&self, wake: impl FnOnce()) {
        // The load is ordered with the mark, as `sleep` requires; the swap picks the first of several
        // threads.
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            wake();
        }
    }

    /// Returns whether somebody wants a turn.
    pub(super) fn is_marked(&self) -> bool {
        self.marked.load(Ordering::SeqCst)
    }

    /// Clears the mark: requests from now on are for more than the work and the turn that begin now.
    pub(super) fn answer(&self) {
        self.marked.store(false, Ordering::SeqCst);
    }

    /// Announces that the thread is about to wait. Returns whether it may, which it may not if somebody asked
    /// for a turn.
    pub(super) fn sleep(&self) -> bool {
        // The other side marks first and then looks at `sleeping`, so one of the two sees what the other did.
        self.sleeping.store(true, Ordering::SeqCst);
        !self.is_marked()
    }

    /// Announces that the wait is over.
    pub(super) fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;
