//! Waking the thread that leads, which costs a system call only when it sleeps.

use crate::sync::atomic::{AtomicBool, Ordering};

/// Calls the thread that leads for one more turn.
#[derive(Debug, Default)]
pub(super) struct Bell {
    /// The thread is, or is about to be, waiting for events.
    sleeping: AtomicBool,
    /// Somebody wants a turn.
    marked: AtomicBool,
}

impl Bell {
    /// Asks for a turn. A thread that does not lead [`rouse`](Self::rouse)s the one that does then.
    ///
    /// What the turn is for has to be published under a lock that the turn takes too, or with `SeqCst`. Then a mark that is
    /// there already is enough: whoever sees it has published before it is answered, and the turn after that looks.
    pub(super) fn mark(&self) {
        // While much is going on it is there nearly always, and looking is much cheaper.
        if !self.is_marked() {
            self.marked.store(true, Ordering::SeqCst);
        }
    }

    /// Ends the wait of the thread that leads with `wake`, where it waits.
    pub(super) fn rouse(&self, wake: impl FnOnce()) {
        // The look is in one order with the mark, as `sleep` is; the swap is for whoever is first.
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            wake();
        }
    }

    /// Whether somebody wants a turn.
    pub(super) fn is_marked(&self) -> bool {
        self.marked.load(Ordering::SeqCst)
    }

    /// Whoever asks from here on wants more than the work and the turn that begin now.
    pub(super) fn answer(&self) {
        self.marked.store(false, Ordering::SeqCst);
    }

    /// The thread is about to wait; says whether it may, which it may not after somebody asked.
    pub(super) fn sleep(&self) -> bool {
        // In this order, as the other side has it the other way round: one of the two sees what the other has done.
        self.sleeping.store(true, Ordering::SeqCst);
        !self.is_marked()
    }

    /// The wait is over.
    pub(super) fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }
}

#[cfg(all(test, shuttle))]
mod interleavings;
