//! The buffers that sockets are read into.

use std::io;

use bytes::{Bytes, BytesMut};

use crate::{
    buffer_pool::BufferPool,
    limits::{CHUNK_BYTES, FRAME_BYTES_MAX, HEAD_BYTES},
};

/// Buffers for reading, shared by all connections. Each is zeroed once, when it is allocated, and reused as
/// soon as nobody refers to its contents.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Option<BytesMut>,
    /// Buffers that frames still lie in.
    lent: BufferPool,
}

/// The result of a read.
#[derive(Debug)]
pub(super) struct Filled {
    /// What was there before, followed by what was read.
    pub(super) batch: Bytes,
    /// How much was read.
    pub(super) read: usize,
    /// There was no room for more.
    pub(super) is_full: bool,
}

/// The size of a buffer: four chunks, and a few small frames between them. As it also holds what was left of
/// a frame, a read in the middle of a large payload ends shortly after a chunk, and little of the next chunk
/// has to be copied.
pub(super) const BUFFER_BYTES: usize = 258 * 1024;

/// From this size on, a batch is passed on in the buffer that it was read into. Smaller ones are copied,
/// which costs no more than zeroing another buffer would: so anyone who keeps part of a batch keeps at most
/// about eight times what was read, and small reads go to the same place each time. Values and outboxes do
/// not keep smaller slices either.
const LENT_BYTES_MIN: usize = 32 * 1024;

/// How many bytes of lent buffers are tracked: chunks of large payloads wait in them while a socket takes no
/// more.
const LENT_BYTES_MAX: usize = 64 * BUFFER_BYTES;

const _: () = assert!(HEAD_BYTES + FRAME_BYTES_MAX <= BUFFER_BYTES / 2);
const _: () = assert!(4 * (HEAD_BYTES + CHUNK_BYTES) < BUFFER_BYTES);

impl Buffers {
    /// Reads behind `partial`, the beginning of a frame, up to a total of `bytes_max`.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) fn fill(
        &mut self,
        partial: &[u8],
        bytes_max: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<Filled> {
        let mut buffer = self.take();
        let (before, room) = buffer[..bytes_max].split_at_mut(partial.len());
        let read = match read(room) {
            Ok(read) => read,
            Err(error) => {
                self.free = Some(buffer);
                return Err(error);
            }
        };
        before.copy_from_slice(partial);
        let (is_full, length) = (read == room.len(), partial.len() + read);
        let batch = if length < LENT_BYTES_MIN {
            let batch = Bytes::copy_from_slice(&buffer[..length]);
            self.free = Some(buffer);
            batch
        } else {
            self.lend(buffer.freeze(), length)
        };
        Ok(Filled { batch, read, is_full })
    }

    /// Gives back what has not been used for a while. Called at regular intervals.
    pub(super) fn age(&mut self) {
        drop(self.lent.age());
    }

    /// Returns whether there is anything to give back.
    pub(super) fn are_kept(&self) -> bool {
        !self.lent.is_empty()
    }

    fn take(&mut self) -> BytesMut {
        if let Some(free) = self.free.take() {
            return free;
        }
        self.lent.take(|_| true).unwrap_or_else(|| BytesMut::zeroed(BUFFER_BYTES))
    }

    fn lend(&mut self, buffer: Bytes, length: usize) -> Bytes {
        let batch = buffer.slice(..length);
        drop(self.lent.put(buffer, LENT_BYTES_MAX));
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(buffers: &mut Buffers, partial: &[u8], length: usize) -> Filled {
        let read = |room: &mut [u8]| {
            let length = length.min(room.len());
            room[..length].fill(7);
            Ok(length)
        };
        buffers.fill(partial, BUFFER_BYTES, read).unwrap()
    }

    /// What is left of the last frame precedes what is read next, so all reads of a large payload end alike.
    #[test]
    fn little_of_a_large_payload_is_cut_in_two() {
        let mut buffers = Buffers::default();
        let (frame, credit) = (HEAD_BYTES + 4 + CHUNK_BYTES, HEAD_BYTES + 8);
        let mut partial = 0;
        for _ in 0..20 {
            let length = fill(&mut buffers, &vec![7; partial], BUFFER_BYTES).batch.len();
            partial = length - 4 * (frame + credit);
            assert!(partial < frame / 16, "{partial} bytes are copied");
        }
    }

    #[test]
    fn what_is_read_comes_behind_what_was_there() {
        let mut buffers = Buffers::default();
        for length in [1, 1000, LENT_BYTES_MIN, BUFFER_BYTES - 3, BUFFER_BYTES] {
            let Filled { batch, read, is_full } = fill(&mut buffers, &[1, 2, 3], length);
            assert_eq!(read, length.min(BUFFER_BYTES - 3));
            assert_eq!(is_full, length >= BUFFER_BYTES - 3);
            assert_eq!(batch[..3], [1, 2, 3]);
            assert!(batch.len() == 3 + read && batch[3..].iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn a_buffer_is_read_into_again_once_nobody_refers_to_it() {
        let mut buffers = Buffers::default();
        let first = fill(&mut buffers, &[], BUFFER_BYTES).batch;
        let at = first.as_ptr();
        let part = first.slice(1000..2000);
        drop(first);
        let second = fill(&mut buffers, &[], BUFFER_BYTES).batch;
        assert_ne!(second.as_ptr(), at, "a part of it is in use");
        drop(part);
        let third = fill(&mut buffers, &[], BUFFER_BYTES).batch;
        assert_eq!(third.as_ptr(), at);
        assert!(third.len() == BUFFER_BYTES && second.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn small_reads_are_kept_for_what_they_are_and_go_to_one_buffer() {
        let mut buffers = Buffers::default();
        let kept: Vec<_> = (0..100).map(|_| fill(&mut buffers, &[], 100).batch).collect();
        assert!(buffers.lent.is_empty() && buffers.free.is_some());
        assert!(kept.iter().all(|batch| batch.len() == 100));
    }

    #[test]
    fn a_read_that_fails_takes_nothing_away() {
        let mut buffers = Buffers::default();
        let refused = buffers.fill(&[1], BUFFER_BYTES, |_| Err(io::ErrorKind::WouldBlock.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(buffers.free.is_some());
    }
}
