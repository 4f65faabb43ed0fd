//! Memory of large payloads, used again for those that come next.

use std::time::{Duration, Instant};

use bytes::Bytes;
use daffi_core::{host, lent::Lent};

use crate::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

/// Memory that large payloads lie in while somebody refers to them, and that is used again afterwards. A page that is fresh from
/// the operating system costs more than what is written to it, and the C library gives large blocks back as soon as they are freed.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Whether there is any, for the turns that have nothing to do with large payloads.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lent: Lent,
    /// When some was taken or kept last.
    used: Option<Instant>,
}

/// How much is kept in sight: as many payloads as fit a link's window, several times over, since most are used for longer than they
/// are on their way.
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long it is kept after its last use.
const KEPT_FOR: Duration = Duration::from_secs(1);

impl Memory {
    /// Memory for so many bytes at least. It holds what it held, if anything.
    pub(crate) fn take(&self, bytes: usize) -> Vec<u8> {
        // Most payloads of a program have one size; twice as much is not wasted on another one.
        let fits = |size: usize| size >= bytes && size / 2 <= bytes;
        let mut state = self.state.lock();
        if let Some(used) = &mut state.used {
            *used = host::now();
        }
        match state.lent.take(fits) {
            Some(buffer) => buffer.into(),
            None => Vec::with_capacity(bytes),
        }
    }

    /// Uses the memory of a payload again once nobody refers to it.
    pub(crate) fn keep(&self, payload: Bytes) {
        let mut state = self.state.lock();
        state.lent.lend(payload, KEPT_BYTES_MAX);
        state.used = Some(host::now());
        self.any.store(true, Ordering::SeqCst);
    }

    /// Gives back what has not been used for a while; says when there will be some to give back.
    pub(crate) fn turn(&self, now: Instant) -> Option<Instant> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        let mut state = self.state.lock();
        let until = state.used? + KEPT_FOR;
        if now < until {
            return Some(until);
        }
        self.any.store(false, Ordering::SeqCst);
        let unused = std::mem::take(&mut *state);
        drop(state);
        drop(unused);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_for_payloads_of_about_the_size() {
        let memory = Memory::default();
        let mut bytes = memory.take(1 << 20);
        bytes.resize(1 << 20, 7);
        let (at, payload) = (bytes.as_ptr(), Bytes::from(bytes));
        memory.keep(payload.clone());
        let other = memory.take(1 << 20);
        assert_ne!(other.as_ptr(), at, "somebody refers to it");
        drop(payload);
        for size in [(1 << 20) + 1, (1 << 19) - 1] {
            let other = memory.take(size);
            assert_ne!(other.as_ptr(), at, "{size} bytes");
        }
        let again = memory.take((1 << 20) - 5);
        assert!(again.as_ptr() == at && again.len() == 1 << 20);
    }

    #[test]
    fn memory_is_given_back_after_a_while() {
        let memory = Memory::default();
        assert_eq!(memory.turn(host::now()), None);
        memory.keep(vec![7; 1 << 20].into());
        let until = memory.turn(host::now()).expect("there is some");
        assert!(memory.state.lock().lent.take(|_| false).is_none() && !memory.state.lock().lent.is_empty());
        assert_eq!(memory.turn(until), None);
        assert!(memory.state.lock().lent.is_empty());
    }
}
