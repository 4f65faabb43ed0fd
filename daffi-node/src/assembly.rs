//! Payloads that come in chunks, until they are whole.

use std::{mem, ops::Range};

use bytes::Bytes;
use daffi_core::{
    frame::{Body, Chunk},
    limits::STREAM_WINDOW_BYTES,
};

use crate::{memory::Memory, pending::Payload};

/// A payload that comes in chunks. It grows with what comes, not with what was announced.
#[derive(Debug)]
pub(crate) struct Assembly {
    codec: u8,
    total: usize,
    /// What came, and behind it what is not written to yet: zeros, or what this memory held before. Empty while it is lent.
    bytes: Vec<u8>,
    /// How much came; more than what is kept if it is not wanted.
    received: usize,
    /// It exceeds the limit, so it is counted and not kept.
    exceeds: bool,
    /// What came since the sender was last told to go on.
    uncredited: usize,
}

/// The first allocation for a payload that comes in chunks: what a sender may send of it before it is asked for more, so
/// that 1 MiB of a user's fits with what a codec writes around it. Announcing a large one costs a peer nothing, so it
/// gets no more than this before it sends.
const BYTES_AT_FIRST: usize = STREAM_WINDOW_BYTES;

/// And the next one is so many times what has come, so that little is copied in growing.
const GROWTH: usize = 16;

impl Assembly {
    pub(crate) fn new(codec: u8, total: u32, first: &Body<'_>, memory: &Memory) -> Self {
        let total = total as usize;
        let bytes = memory.take(total.min(BYTES_AT_FIRST));
        let mut assembly = Self { codec, total, bytes, received: 0, exceeds: false, uncredited: 0 };
        assembly.append(first);
        assembly
    }

    /// For a payload that exceeds the limit and comes all the same.
    pub(crate) fn exceeding(total: u32, first: &Body<'_>) -> Self {
        let (total, received) = (total as usize, first.len());
        Self { codec: 0, total, bytes: Vec::new(), received, exceeds: true, uncredited: received }
    }

    /// Adds what came; gives the payload when it is whole.
    ///
    /// # Errors
    /// More or less came than was announced.
    pub(crate) fn add(
        &mut self,
        chunk: &Chunk<'_>,
        memory: &Memory,
    ) -> Result<Option<Payload>, &'static str> {
        if !self.fits(chunk.body.len(), chunk.more) {
            return Err("its size is not the announced one");
        }
        self.append(&chunk.body);
        Ok(self.whole_unless(chunk.more, memory))
    }

    /// Lends its memory, so that a chunk of this length is read to its place; says which part of it that is. Not if the chunk does
    /// not fit, or is not wanted.
    pub(crate) fn lend(&mut self, length: usize, more: bool) -> Option<(Vec<u8>, Range<usize>)> {
        if self.exceeds || !self.fits(length, more) {
            return None;
        }
        let place = self.received..self.received + length;
        self.reserve(place.end);
        if self.bytes.len() < place.end {
            self.bytes.resize(place.end, 0);
        }
        Some((mem::take(&mut self.bytes), place))
    }

    /// Takes back what was lent, with the chunk in it; gives the payload when it is whole.
    pub(crate) fn take_back(
        &mut self,
        bytes: Vec<u8>,
        length: usize,
        more: bool,
        memory: &Memory,
    ) -> Option<Payload> {
        self.bytes = bytes;
        self.received += length;
        self.uncredited += length;
        self.whole_unless(more, memory)
    }

    /// Whether a chunk of this length can come next.
    fn fits(&self, length: usize, more: bool) -> bool {
        let received = self.received + length;
        if more { received < self.total } else { received == self.total }
    }

    fn append(&mut self, body: &Body<'_>) {
        let before = self.received;
        self.received += body.len();
        self.uncredited += body.len();
        if self.exceeds {
            return;
        }
        self.reserve(self.received);
        match self.bytes.get_mut(before..self.received).zip(body.piece()) {
            Some((place, bytes)) => place.copy_from_slice(bytes),
            None => {
                self.bytes.truncate(before);
                body.append_to(&mut self.bytes);
            }
        }
    }

    fn reserve(&mut self, length: usize) {
        if self.bytes.capacity() < length {
            let capacity = self.total.min(length.saturating_mul(GROWTH));
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
    }

    fn whole_unless(&mut self, more: bool, memory: &Memory) -> Option<Payload> {
        if more {
            return None;
        }
        self.bytes.truncate(self.received);
        let bytes = Bytes::from(mem::take(&mut self.bytes));
        memory.keep(bytes.clone());
        Some(Payload { codec: self.codec, body: bytes.into() })
    }

    /// How large it is as a whole.
    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Whether it exceeds the limit.
    pub(crate) fn exceeds(&self) -> bool {
        self.exceeds
    }

    /// How many bytes more the sender may send now, as so many have come: all of them, however few. What a receiver keeps
    /// to itself is on its way for the sender, whose payloads share a window: those of many payloads would use it up, and
    /// none would go on.
    pub(crate) fn take_credit(&mut self) -> Option<u32> {
        (self.uncredited > 0).then(|| mem::take(&mut self.uncredited) as u32)
    }
}

#[cfg(test)]
mod tests {
    use daffi_core::payload::{Bytes as Uncopied, Codec};

    use super::*;
    use crate::pending::decode;

    fn chunk(bytes: &Bytes, at: usize, more: bool) -> Chunk<'_> {
        Chunk { id: 1, reply: true, more, part: 0, body: Body::borrowed(&bytes[at..]) }
    }

    #[test]
    fn a_result_in_chunks_is_where_it_was_put_together() {
        let value = Uncopied::from(vec![7; 10_000_000]);
        let sent = Codec::Bincode.encode(&value).unwrap();
        let (step, total, memory) = (65_536, sent.len(), Memory::default());
        let mut assembly = Assembly::new(0, total as u32, &Body::borrowed(&sent[..step]), &memory);
        let mut allocations = vec![assembly.bytes.capacity()];
        let mut at = step;
        let payload = loop {
            let end = total.min(at + step);
            let part = sent.slice(..end);
            let payload = assembly.add(&chunk(&part, at, end < total), &memory).unwrap();
            at = end;
            if let Some(payload) = payload {
                break payload;
            }
            if allocations.last() != Some(&assembly.bytes.capacity()) {
                allocations.push(assembly.bytes.capacity());
                assert!(assembly.bytes.capacity() <= at * GROWTH, "more than was sent warrants");
            }
        };
        // The last one is all of it, and what the others copied is little.
        assert_eq!(allocations.pop(), Some(total));
        assert!(allocations.iter().sum::<usize>() <= total / 8, "{allocations:?}");
        let result: Uncopied = decode("f", &payload).unwrap();
        let (inner, outer) = (result.as_ptr_range(), payload.body.into_bytes().as_ptr_range());
        assert!(result == value && outer.start <= inner.start && inner.end <= outer.end);
    }

    /// Whether memory is fresh or was used before, and whichever of them are read to their places.
    #[test]
    fn chunks_may_be_read_to_their_places() {
        let sent: Bytes = (0..3_000_000u32).map(|byte| byte as u8).collect();
        let (step, memory) = (65_536, Memory::default());
        for placed in [|_| true, |_| false, |number| number % 3 == 0] {
            let mut assembly = Assembly::new(0, sent.len() as u32, &Body::borrowed(&sent[..step]), &memory);
            let mut payload = None;
            for (number, at) in (step..sent.len()).step_by(step).enumerate() {
                let end = sent.len().min(at + step);
                let more = end < sent.len();
                let too_long = sent.len() - at + usize::from(!more);
                assert_eq!(assembly.lend(too_long, more), None);
                if placed(number) {
                    let (mut lent, place) = assembly.lend(end - at, more).unwrap();
                    assert_eq!(place, at..end);
                    lent[place].copy_from_slice(&sent[at..end]);
                    payload = assembly.take_back(lent, end - at, more, &memory);
                } else {
                    payload = assembly.add(&chunk(&sent.slice(..end), at, more), &memory).unwrap();
                }
                assert_eq!(payload.is_some(), !more);
            }
            assert!(payload.unwrap().body.into_bytes() == sent);
        }
    }
}
