//! Memory of large payloads, for the next ones.

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

/// Memory of large payloads, reused once nobody refers to it.
///
/// A fresh page from the operating system costs more than writing to it, and the C library returns large
/// blocks to the system as soon as they are freed.
#[derive(Debug, Default)]
pub(crate) struct PayloadPool {
    /// Whether there is any, as a quick check for turns that have nothing to do with large payloads.
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pool: BufferPool,
    /// When to look next for what was not used.
    due: Option<Instant>,
}

/// The largest buffer that is kept: a quarter of the pool, so that a very large payload does not displace
/// many others.
const BUFFER_BYTES_MAX: usize = POOL_BYTES_MAX / 4;

/// How often unused buffers are looked for: they are given back after one to two such periods.
const AGE: Duration = Duration::from_secs(1);

impl PayloadPool {
    /// Returns memory for at least this many bytes, and at most twice as many. It still holds its old
    /// contents, if any.
    pub(crate) fn take(&self, bytes: usize) -> Vec<u8> {
        self.find(bytes).unwrap_or_else(|| Vec::with_capacity(bytes))
    }

    /// Like [`take`](Self::take), but returns only memory that was used before.
    pub(crate) fn find(&self, bytes: usize) -> Option<Vec<u8>> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        let found = self.state.lock().pool.take(|size| size >= bytes && size / 2 <= bytes);
        found.map(Vec::from)
    }

    /// Makes a buffer shareable, and reuses it once nobody refers to it.
    pub(crate) fn put(&self, mut buffer: Vec<u8>) -> Bytes {
        // Its length must be its capacity, for whoever counts how much is kept.
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

    /// Gives back what has not been used for a while; returns when to look again.
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

    /// However small the payloads it is used for: each buffer counts with its full size.
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
