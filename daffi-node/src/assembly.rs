//! Payloads that arrive in chunks, until they are whole.

use std::{mem, ops::Range};

use bytes::Bytes;
use daffi_core::{
    frame::{Body, Chunk},
    limits::STREAM_WINDOW_BYTES,
};

use crate::{payload_pool::PayloadPool, pending::Payload};

/// A payload that arrives in chunks. It grows with what arrives, not with what was announced.
#[derive(Debug)]
pub(crate) struct Assembly {
    codec: u8,
    total: usize,
    received: usize,
    buffer: Buffer,
    /// What has arrived since the sender last got credit.
    uncredited: usize,
}

/// The buffer in which a payload is put together.
#[derive(Debug)]
enum Buffer {
    /// What has arrived, followed by what is not written yet: zeros, or the memory's old contents.
    Here(Vec<u8>),
    /// It is taken out, so that a chunk of this `length` is read straight to its place; `more` says whether
    /// another follows.
    Detached { length: usize, more: bool },
    /// There is none, since the payload exceeds the limit and is only counted.
    Unwanted,
}

/// The first allocation for a payload that arrives in chunks: as much as a sender may send before it gets
/// credit, so that 1 MiB of user data fits along with what a codec adds. Announcing a large payload costs a
/// peer nothing, so it gets no more than this before it sends, or twice that if such a buffer is at hand.
const BYTES_AT_FIRST: usize = STREAM_WINDOW_BYTES;

/// The next allocation is this many times what has arrived, so that growing copies little.
const GROWTH: usize = 16;

/// More or less arrived than was announced.
const MISFIT: &str = "its size is not the announced one";

impl Assembly {
    pub(crate) fn new(codec: u8, total: u32, first: &Body<'_>, pool: &PayloadPool) -> Self {
        let total = total as usize;
        let buffer = Buffer::Here(pool.take(total.min(BYTES_AT_FIRST)));
        let mut assembly = Self { codec, total, received: 0, buffer, uncredited: 0 };
        assembly.append(first, pool);
        assembly
    }

    /// Returns an assembly for a payload that exceeds the limit and arrives all the same.
    pub(crate) fn exceeding(total: u32, first: &Body<'_>) -> Self {
        let (total, received) = (total as usize, first.len());
        Self { codec: 0, total, received, buffer: Buffer::Unwanted, uncredited: received }
    }

    /// Adds what arrived; returns the payload when it is whole.
    ///
    /// # Errors
    /// If more or less arrived than was announced, or while another chunk was being read.
    pub(crate) fn add(
        &mut self,
        chunk: &Chunk<'_>,
        pool: &PayloadPool,
    ) -> Result<Option<Payload>, &'static str> {
        if !self.fits(chunk.body.len(), chunk.more) {
            return Err(MISFIT);
        }
        self.append(&chunk.body, pool);
        Ok(self.whole_unless(chunk.more, pool))
    }

    /// Takes the buffer out, so that a chunk can be read straight to its place; returns it with that place.
    /// Returns `None` if the chunk does not fit, or is not wanted.
    pub(crate) fn detach(
        &mut self,
        length: usize,
        more: bool,
        pool: &PayloadPool,
    ) -> Option<(Vec<u8>, Range<usize>)> {
        let place = self.received..self.received + length;
        if !self.fits(length, more) {
            return None;
        }
        self.reserve(place.end, pool);
        let Buffer::Here(buffer) = &mut self.buffer else { return None };
        let mut buffer = mem::take(buffer);
        self.buffer = Buffer::Detached { length, more };
        if buffer.len() < place.end {
            buffer.resize(place.end, 0);
        }
        Some((buffer, place))
    }

    /// Puts the buffer back, with the chunk in it; returns the payload when it is whole.
    ///
    /// # Errors
    /// If no buffer was taken out.
    pub(crate) fn attach(
        &mut self,
        buffer: Vec<u8>,
        pool: &PayloadPool,
    ) -> Result<Option<Payload>, &'static str> {
        let Buffer::Detached { length, more } = self.buffer else { return Err(MISFIT) };
        self.buffer = Buffer::Here(buffer);
        self.count(length);
        Ok(self.whole_unless(more, pool))
    }

    /// Returns whether a chunk of this length can come next.
    fn fits(&self, length: usize, more: bool) -> bool {
        let received = self.received + length;
        let fits = if more { received < self.total } else { received == self.total };
        fits && !matches!(self.buffer, Buffer::Detached { .. })
    }

    fn append(&mut self, body: &Body<'_>, pool: &PayloadPool) {
        let before = self.received;
        self.count(body.len());
        self.reserve(self.received, pool);
        let Buffer::Here(buffer) = &mut self.buffer else { return };
        match buffer.get_mut(before..self.received).zip(body.piece()) {
            Some((place, bytes)) => place.copy_from_slice(bytes),
            None => {
                buffer.truncate(before);
                body.append_to(buffer);
            }
        }
    }

    fn count(&mut self, length: usize) {
        self.received += length;
        self.uncredited += length;
    }

    fn reserve(&mut self, length: usize, pool: &PayloadPool) {
        let Buffer::Here(buffer) = &mut self.buffer else { return };
        if buffer.capacity() >= length {
            return;
        }
        let capacity = self.total.min(length.saturating_mul(GROWTH));
        match pool.find(capacity) {
            Some(mut larger) => {
                larger[..buffer.len()].copy_from_slice(buffer);
                pool.put(mem::replace(buffer, larger));
            }
            None => buffer.reserve_exact(capacity - buffer.len()),
        }
    }

    fn whole_unless(&mut self, more: bool, pool: &PayloadPool) -> Option<Payload> {
        if more {
            return None;
        }
        let body = match &mut self.buffer {
            Buffer::Here(buffer) => pool.put(mem::take(buffer)).slice(..self.received),
            Buffer::Detached { .. } | Buffer::Unwanted => Bytes::new(),
        };
        Some(Payload { codec: self.codec, body: body.into() })
    }

    /// Returns its total size.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Returns whether it exceeds the limit.
    pub(crate) fn exceeds(&self) -> bool {
        matches!(self.buffer, Buffer::Unwanted)
    }

    /// Returns how many more bytes the sender may send, as this many have arrived: all of them, however few.
    ///
    /// For the sender, whatever a receiver withholds is still on its way, and its payloads share a window:
    /// with many payloads, the withheld bytes would use it up, and none would go on.
    pub(crate) fn take_credit(&mut self) -> Option<u32> {
        (self.uncredited > 0).then(|| mem::take(&mut self.uncredited) as u32)
    }
}

#[cfg(test)]
mod tests {
    use daffi_core::payload::{Bytes as Uncopied, Codec};

    use super::*;
    use crate::pending::decode;

    fn capacity(assembly: &Assembly) -> usize {
        let Buffer::Here(buffer) = &assembly.buffer else { panic!("{assembly:?}") };
        buffer.capacity()
    }

    fn chunk(bytes: &Bytes, at: usize, more: bool) -> Chunk<'_> {
        Chunk { id: 1, reply: true, more, part: 0, body: Body::borrowed(&bytes[at..]) }
    }

    #[test]
    fn a_result_in_chunks_is_where_it_was_put_together() {
        let value = Uncopied::from(vec![7; 10_000_000]);
        let sent = Codec::Bincode.encode(&value).unwrap();
        let (step, total, pool) = (65_536, sent.len(), PayloadPool::default());
        let mut assembly = Assembly::new(0, total as u32, &Body::borrowed(&sent[..step]), &pool);
        let mut allocations = vec![capacity(&assembly)];
        let mut at = step;
        let payload = loop {
            let end = total.min(at + step);
            let part = sent.slice(..end);
            let payload = assembly.add(&chunk(&part, at, end < total), &pool).unwrap();
            at = end;
            if let Some(payload) = payload {
                break payload;
            }
            if allocations.last() != Some(&capacity(&assembly)) {
                allocations.push(capacity(&assembly));
                assert!(capacity(&assembly) <= at * GROWTH, "more than was sent warrants");
            }
        };
        // The last one holds everything, and the others copied little.
        assert_eq!(allocations.pop(), Some(total));
        assert!(allocations.iter().sum::<usize>() <= total / 8, "{allocations:?}");
        let result: Uncopied = decode("f", &payload).unwrap();
        let (inner, outer) = (result.as_ptr_range(), payload.body.into_bytes().as_ptr_range());
        assert!(result == value && outer.start <= inner.start && inner.end <= outer.end);
    }

    /// Whether memory is fresh or reused, and whichever chunks are read to their places.
    #[test]
    fn chunks_may_be_read_to_their_places() {
        let sent: Bytes = (0..3_000_000u32).map(|byte| byte as u8).collect();
        let (step, pool) = (65_536, PayloadPool::default());
        for placed in [|_| true, |_| false, |number| number % 3 == 0] {
            let mut assembly = Assembly::new(0, sent.len() as u32, &Body::borrowed(&sent[..step]), &pool);
            let mut payload = None;
            for (number, at) in (step..sent.len()).step_by(step).enumerate() {
                let end = sent.len().min(at + step);
                let more = end < sent.len();
                let too_long = sent.len() - at + usize::from(!more);
                assert_eq!(assembly.detach(too_long, more, &pool), None);
                let part = sent.slice(..end);
                if placed(number) {
                    let (mut buffer, place) = assembly.detach(end - at, more, &pool).unwrap();
                    assert_eq!(place, at..end);
                    assert!(assembly.add(&chunk(&part, at, more), &pool).is_err(), "that is coming already");
                    buffer[place].copy_from_slice(&sent[at..end]);
                    payload = assembly.attach(buffer, &pool).unwrap();
                } else {
                    payload = assembly.add(&chunk(&part, at, more), &pool).unwrap();
                    assert!(!more || assembly.attach(Vec::new(), &pool).is_err(), "nothing was taken out");
                }
                assert_eq!(payload.is_some(), !more);
            }
            assert!(payload.unwrap().body.into_bytes() == sent);
        }
    }
}
