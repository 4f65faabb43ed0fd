//! Memory that large payloads lay in, for those that come next.

use std::time::{Duration, Instant};

use bytes::Bytes;
use daffi_core::{
    buffer_pool::BufferPool,
    host,
    limits::{CHUNK_BYTES, POOL_BYTES_MAX},
};

use crate::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

/// Memory of large payloads, used again once nobody refers to them. A page that is fresh from the operating system costs more than
/// what is written to it, and the C library gives large blocks back as soon as they are freed.
#[derive(Debug, Default)]
pub(crate) struct PayloadPool {
    /// Whether there is any, for the turns that have nothing to do with large payloads.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pool: BufferPool,
    /// When the next look is due at what was not used.
    due: Option<Instant>,
}

/// How large a buffer is kept at most: a quarter of all, so that a very large payload does not displace many others.
const BUFFER_BYTES_MAX: usize = POOL_BYTES_MAX / 4;

/// How often unused buffers are looked at: after one to two such times they are given back.
const AGE: Duration = Duration::from_secs(1);

impl PayloadPool {
    /// Memory for so many bytes at least, and twice as many at most. It holds what it held, if anything.
    pub(crate) fn take(&self, bytes: usize) -> Vec<u8> {
        self.find(bytes).unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    /// The same, unless it would be fresh.
    pub(crate) fn find(&self, bytes: usize) -> Option<Vec<u8>> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        let found = self.state.lock().pool.take(|size| size >= bytes && size / 2 <= bytes);
        found.map(Vec::from)
    }

    /// Gives a buffer as something to refer to, and uses it again once nobody does.
    pub(crate) fn put(&self, mut buffer: Vec<u8>) -> Bytes {
        // All of it has to be in sight of whoever counts how much is kept.
        buffer.resize(buffer.capacity(), 0);
        let buffer = Bytes::from(buffer);
        if (CHUNK_BYTES..=BUFFER_BYTES_MAX).contains(&buffer.len()) {
            let mut state = self.state.lock();
            let given_up = state.pool.put(buffer.clone(), POOL_BYTES_MAX);
            state.due.get_or_insert_with(|| host::now() + AGE);
            self.any.store(true, Ordering::SeqCst);
            drop(state);
            drop(given_up);
        }
        buffer
    }

    /// Gives back what has not been used for a while; says when to look again.
    pub(crate) fn turn(&self, now: Instant) -> Option<Instant> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        let mut state = self.state.lock();
        let due = state.due?;
        if now < due {
            return Some(due);
        }
        let given_up = state.pool.age();
        state.due = (!state.pool.is_empty()).then_some(now + AGE);
        self.any.store(state.due.is_some(), Ordering::SeqCst);
        let due = state.due;
        drop(state);
        drop(given_up);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn memory_is_used_again_for_payloads_of_about_the_size() {
        let pool = PayloadPool::default();
        let payload = pool.put(vec![7; MIB]);
        let at = payload.as_ptr();
        assert!(pool.find(MIB).is_none(), "somebody refers to it");
        drop(payload);
        assert!(pool.find(MIB + 1).is_none() && pool.find(MIB / 2 - 1).is_none());
        let again = pool.find(MIB / 2).expect("it is free");
        assert_eq!((again.as_ptr(), again.len()), (at, MIB));
    }

    /// However small the payloads are that it is used for: each buffer counts as what it takes up.
    #[test]
    fn no_more_is_kept_than_may_be() {
        let pool = PayloadPool::default();
        for round in 0..100 {
            let mut size = 4 * MIB;
            while size > CHUNK_BYTES {
                let mut buffer = pool.take(size);
                assert!(buffer.capacity() <= 2 * size);
                buffer.resize(size.max(buffer.len()), round);
                drop(pool.put(buffer));
                size = size * 7 / 10;
            }
            let state = pool.state.lock();
            let bytes: usize = state.pool.sizes().sum();
            assert!(bytes <= POOL_BYTES_MAX, "{bytes}");
        }
        for other in [CHUNK_BYTES - 1, BUFFER_BYTES_MAX + 1] {
            drop(pool.put(vec![7; other]));
            assert!(pool.state.lock().pool.sizes().all(|size| size != other), "{other} bytes are not kept");
        }
    }

    #[test]
    fn memory_is_given_back_after_a_while_whatever_else_is_used() {
        let pool = PayloadPool::default();
        assert_eq!(pool.turn(host::now()), None);
        drop(pool.put(vec![7; MIB]));
        let mut due = pool.turn(host::now()).expect("there is some");
        for _ in 0..2 {
            drop(pool.put(pool.take(CHUNK_BYTES)));
            due = pool.turn(due).expect("some is used");
        }
        assert!(pool.state.lock().pool.sizes().all(|size| size < MIB));
        assert_eq!(pool.turn(due), None);
        assert!(pool.state.lock().pool.is_empty());
    }
}
