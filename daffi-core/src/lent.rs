//! Memory that is used again once nobody refers to what it held.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Buffers that others refer to, and that are used again as soon as nobody does: fresh memory costs as much as reading into it.
#[derive(Debug, Default)]
pub struct Lent {
    /// The latest last.
    buffers: VecDeque<Bytes>,
    /// How large they are together.
    bytes: usize,
}

impl Lent {
    /// Keeps sight of all of a buffer. With more than `bytes_max` together the oldest are left to those who refer to them, as is
    /// one that is larger by itself, or empty.
    pub fn lend(&mut self, buffer: Bytes, bytes_max: usize) {
        if buffer.is_empty() || buffer.len() > bytes_max {
            return;
        }
        self.bytes += buffer.len();
        self.buffers.push_back(buffer);
        while self.bytes > bytes_max
            && let Some(oldest) = self.buffers.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }

    /// A buffer that nobody refers to any more, and whose size is one that `fits`. It holds what it held.
    pub fn take(&mut self, fits: impl Fn(usize) -> bool) -> Option<BytesMut> {
        // The latest is most likely in the processor's cache.
        let unused = self.buffers.iter().rposition(|buffer| fits(buffer.len()) && buffer.is_unique())?;
        let buffer = self.buffers.remove(unused)?;
        self.bytes -= buffer.len();
        buffer.try_into_mut().ok()
    }

    /// Leaves buffers to those who refer to them, and frees the others.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
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
        let mut lent = Lent::default();
        let whole = buffer(1000);
        let (part, at) = (whole.slice(100..200), whole.as_ptr());
        lent.lend(whole, 1000);
        assert!(lent.take(|_| true).is_none(), "a part of it is in use");
        drop(part);
        assert!(lent.take(|size| size > 1000).is_none());
        let again = lent.take(|size| size == 1000).expect("it is unused");
        assert_eq!((again.as_ptr(), again.len()), (at, 1000));
        assert!(lent.is_empty());
    }

    #[test]
    fn no_more_is_kept_than_its_limit() {
        let mut lent = Lent::default();
        for _ in 0..5 {
            lent.lend(buffer(400), 1000);
            assert!(lent.bytes <= 1000);
        }
        lent.lend(buffer(1001), 1000);
        assert_eq!(lent.buffers.len(), 2);
    }
}
