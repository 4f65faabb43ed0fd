//! Buffers that are reused once nobody refers to their contents.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// A pool of buffers that others may still refer to, and that are reused as soon as nobody does: fresh memory
/// costs as much as reading into it.
#[derive(Debug, Default)]
pub struct BufferPool {
    /// In the order they were put in, newest last.
    buffers: VecDeque<Pooled>,
    /// Their total size.
    bytes: usize,
    /// How many times [`age`](Self::age) was called.
    age: u64,
}

#[derive(Debug)]
struct Pooled {
    /// The whole buffer.
    buffer: Bytes,
    /// The pool's age when it was put in.
    age: u64,
}

impl BufferPool {
    /// Puts a whole buffer in. Returns the oldest buffers, as many as exceed a total of `bytes_max`; the
    /// caller drops them without holding a lock.
    #[must_use = "it is to be dropped without locks"]
    pub fn put(&mut self, buffer: Bytes, bytes_max: usize) -> Vec<Bytes> {
        self.bytes += buffer.len();
        self.buffers.push_back(Pooled { buffer, age: self.age });
        self.give_up(|bytes, _| bytes > bytes_max)
    }

    /// Takes a buffer that nobody refers to any more and whose size `fits`. Its contents are unchanged.
    pub fn take(&mut self, fits: impl Fn(usize) -> bool) -> Option<BytesMut> {
        // The newest is most likely still in the processor's cache.
        let is_free = |pooled: &Pooled| fits(pooled.buffer.len()) && pooled.buffer.is_unique();
        let at = self.buffers.iter().rposition(is_free)?;
        let Pooled { buffer, .. } = self.buffers.remove(at)?;
        self.bytes -= buffer.len();
        buffer.try_into_mut().ok()
    }

    /// Returns the buffers that were put in before the previous call. If called at regular intervals, it
    /// leaves no buffer in the pool for more than two of them.
    #[must_use = "it is to be dropped without locks"]
    pub fn age(&mut self) -> Vec<Bytes> {
        let now = self.age;
        self.age += 1;
        self.give_up(|_, oldest| oldest.age < now)
    }

    /// Returns whether the pool is empty.
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Returns the size of each buffer.
    pub fn sizes(&self) -> impl Iterator<Item = usize> {
        self.buffers.iter().map(|pooled| pooled.buffer.len())
    }

    fn give_up(&mut self, which: impl Fn(usize, &Pooled) -> bool) -> Vec<Bytes> {
        let mut given_up = Vec::new();
        while let Some(Pooled { buffer, .. }) = self.buffers.pop_front_if(|oldest| which(self.bytes, oldest))
        {
            self.bytes -= buffer.len();
            given_up.push(buffer);
        }
        given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(size: usize) -> Bytes {
        vec![7; size].into()
    }

    #[test]
    fn a_buffer_is_used_again_once_nobody_refers_to_it() {
        let mut pool = BufferPool::default();
        let whole = buffer(1000);
        let (part, at) = (whole.slice(100..200), whole.as_ptr());
        assert!(pool.put(whole, 1000).is_empty());
        assert!(pool.take(|_| true).is_none(), "a part of it is in use");
        drop(part);
        assert!(pool.take(|size| size > 1000).is_none());
        let again = pool.take(|size| size == 1000).expect("it is free");
        assert_eq!((again.as_ptr(), again.len()), (at, 1000));
        assert!(pool.is_empty() && pool.bytes == 0);
    }

    #[test]
    fn no_more_is_kept_than_may_be() {
        let mut pool = BufferPool::default();
        let mut given_up = 0;
        for _ in 0..5 {
            given_up += pool.put(buffer(400), 1000).len();
            assert!(pool.bytes <= 1000);
        }
        assert_eq!((pool.buffers.len(), given_up), (2, 3));
        assert_eq!(pool.put(buffer(1001), 1000).len(), 3);
        assert!(pool.is_empty() && pool.bytes == 0);
    }

    #[test]
    fn what_is_not_used_is_given_up_after_a_while() {
        let mut pool = BufferPool::default();
        assert!(pool.put(buffer(400), 1000).is_empty());
        assert!(pool.age().is_empty());
        assert!(pool.put(buffer(500), 1000).is_empty());
        // Only the new one is still in use.
        assert_eq!(pool.age().len(), 1);
        assert_eq!(pool.bytes, 500);
        assert_eq!(pool.age().len(), 1);
        assert!(pool.is_empty() && pool.bytes == 0);
    }
}
