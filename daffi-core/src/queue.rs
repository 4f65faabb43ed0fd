//! Frames that wait to be written, already encoded. Pure: the socket is elsewhere.

use std::{collections::VecDeque, io::IoSlice, mem};

use bytes::Bytes;

use crate::{
    frame::{Body, Frame},
    limits::{CHUNK_BYTES, HEAD_BYTES},
    survive::survive,
};

/// Bodies up to this size are copied behind their head, so that many small frames leave as one slice. Above
/// it, the copy costs more than the extra slice.
pub(crate) const FLATTEN_BYTES_MAX: usize = 4 * 1024;

/// Bodies from this size on wait as slices of the buffer that they were read into, which is at most about
/// eight times as large. Chunks are twice this size, and copying them would cost those who move the most
/// data.
const PART_BYTES_MIN: usize = CHUNK_BYTES / 2;

/// Once this many bytes of chunks have been put between other frames, no more are added for now. That is two
/// large chunks, and no small frame waits for more than that.
const CHUNKS_AT_A_TIME_BYTES: usize = CHUNK_BYTES / 2 * 3;

/// How many bytes of other frames go into one lane: signs of life never wait for much more than this.
const LANE_BYTES: usize = CHUNK_BYTES;

/// How much room for small frames a connection keeps after a burst: as much as the other side takes in one
/// read.
const FLAT_BYTES_KEPT: usize = 256 * 1024;

/// The most slices of one vectored write.
const SLICES_MAX: usize = 64;

/// Frames that wait for a socket. Chunks of large payloads wait separately and are sent when nothing else
/// waits, or a few at a time in between.
#[derive(Debug, Default)]
pub(crate) struct OutQueue {
    /// Pings and pongs, which are time-critical. They belong to no call, so they may overtake any frame.
    urgent: Lane,
    /// The first lane of the other frames; those behind it are in `later`.
    frames: Lane,
    later: VecDeque<Lane>,
    /// Each entry is a run of small chunks and the head of a large one, followed by the large one's body.
    chunks: VecDeque<(Vec<u8>, Bytes)>,
    bytes: usize,
}

/// Encoded frames in order: small ones back to back in one buffer, large bodies as they are.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    flat: Vec<u8>,
    flat_written: usize,
    /// Large bodies, each with the length of the part of `flat` that precedes it.
    shared: VecDeque<(usize, Bytes)>,
    /// Large bodies that have been written.
    spent: Spent,
    bytes: usize,
}

/// Bodies that are no longer needed. Dropping one may run the user's code, so it must be done without holding
/// a lock.
#[derive(Debug, Default)]
pub(crate) struct Spent(Vec<Bytes>);

impl OutQueue {
    /// Returns how many bytes wait.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Returns whether chunks of large payloads wait.
    pub(crate) fn has_chunks(&self) -> bool {
        !self.chunks.is_empty()
    }

    /// Adds a frame, and returns by how many bytes the queue grew. If the frame will `wait` and its body is
    /// small, the body is copied, because a slice would keep alive everything that was read together with it.
    pub(crate) fn push(&mut self, frame: &Frame<'_>, wait: bool) -> usize {
        let grown = if let Frame::Chunk(chunk) = frame {
            self.push_chunk(frame, &chunk.body, wait)
        } else if wait && matches!(frame, Frame::Ping { .. } | Frame::Pong { .. }) {
            self.urgent.push(frame, wait)
        } else {
            self.last_lane().push(frame, wait)
        };
        self.bytes += grown;
        grown
    }

    /// Returns the lane that the next frame goes to.
    fn last_lane(&mut self) -> &mut Lane {
        if self.later.back().unwrap_or(&self.frames).len() >= LANE_BYTES {
            self.later.push_back(Lane::default());
        }
        self.later.back_mut().unwrap_or(&mut self.frames)
    }

    fn push_chunk(&mut self, frame: &Frame<'_>, body: &Body<'_>, wait: bool) -> usize {
        // A separate allocation for each small chunk would take a multiple of its size.
        let small = body.len() <= FLATTEN_BYTES_MAX;
        let run = self.chunks.back_mut().filter(|(run, after)| after.is_empty() && run.len() < CHUNK_BYTES);
        let run = match run {
            Some((run, _)) if small => run,
            _ => {
                let room = HEAD_BYTES + 4 + if small { body.len() } else { 0 };
                self.chunks.push_back((Vec::with_capacity(room), Bytes::new()));
                &mut self.chunks.back_mut().expect("it was pushed just now").0
            }
        };
        let before = run.len();
        frame.encode_prefix(run);
        if small {
            body.append_to(run);
            return run.len() - before;
        }
        let grown = run.len() - before + body.len();
        if let Some((_, after)) = self.chunks.back_mut() {
            *after = keep(body, wait);
        }
        grown
    }

    /// Moves all frames of `other` behind those of this queue.
    pub(crate) fn append(&mut self, other: &mut Self) {
        if self.is_empty() {
            return mem::swap(self, other);
        }
        self.urgent.append(&mut other.urgent);
        self.last_lane().append(&mut other.frames);
        self.later.append(&mut other.later);
        self.chunks.append(&mut other.chunks);
        self.bytes += mem::take(&mut other.bytes);
    }

    /// Moves the frames that go next into `lane`, which must be empty.
    pub(crate) fn next(&mut self, lane: &mut Lane) {
        debug_assert!(lane.is_empty());
        if !self.urgent.is_empty() {
            mem::swap(&mut self.urgent, lane);
            self.bytes -= lane.bytes;
            return;
        }
        mem::swap(&mut self.frames, lane);
        if let Some(next) = self.later.pop_front() {
            self.frames = next;
        }
        // A chunk must not overtake the frame that begins its payload, which is among the other frames.
        let mut chunk_bytes = 0;
        while self.frames.is_empty()
            && chunk_bytes < CHUNKS_AT_A_TIME_BYTES
            && let Some((prefix, body)) = self.chunks.pop_front()
        {
            chunk_bytes += prefix.len() + body.len();
            lane.push_parts(&prefix, body);
        }
        self.bytes -= lane.bytes;
    }

    /// Gives up all frames that are still in the queue.
    pub(crate) fn spend(self) -> Spent {
        let mut spent = Spent(self.chunks.into_iter().map(|(_, body)| body).collect());
        for lane in [self.urgent, self.frames].into_iter().chain(self.later) {
            spent.append(lane.spend());
        }
        spent
    }
}

impl Spent {
    #[inline]
    pub(crate) fn append(&mut self, mut other: Self) {
        if !other.0.is_empty() {
            self.0.append(&mut other.0);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    #[cold]
    fn drop_all(&mut self) {
        for body in self.0.drain(..) {
            survive(|| drop(body));
        }
    }
}

impl Drop for Spent {
    #[inline]
    fn drop(&mut self) {
        if !self.0.is_empty() {
            self.drop_all();
        }
    }
}

impl Lane {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Returns how many bytes are left to write.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, frame: &Frame<'_>, wait: bool) -> usize {
        let before = self.flat.len();
        let body = frame.encode_prefix(&mut self.flat);
        let mut shared = 0;
        if body.len() <= FLATTEN_BYTES_MAX {
            body.append_to(&mut self.flat);
        } else {
            for piece in body.pieces() {
                if piece.len() <= FLATTEN_BYTES_MAX {
                    piece.append_to(&mut self.flat);
                } else {
                    shared += piece.len();
                    self.shared.push_back((self.flat.len(), keep(&piece, wait)));
                }
            }
        }
        let grown = self.flat.len() - before + shared;
        self.bytes += grown;
        grown
    }

    fn push_parts(&mut self, prefix: &[u8], body: Bytes) {
        self.bytes += prefix.len() + body.len();
        self.flat.extend_from_slice(prefix);
        if !body.is_empty() {
            self.shared.push_back((self.flat.len(), body));
        }
    }

    /// Moves the frames of `other`, of which nothing has been written, behind those of this lane.
    fn append(&mut self, other: &mut Self) {
        let before = self.flat.len();
        self.flat.append(&mut other.flat);
        self.shared.extend(other.shared.drain(..).map(|(at, body)| (before + at, body)));
        self.bytes += mem::take(&mut other.bytes);
    }

    /// Returns what is left to write as one piece if it includes no large body, which is the usual case.
    pub(crate) fn piece(&self) -> Option<&[u8]> {
        self.shared.is_empty().then(|| &self.flat[self.flat_written..])
    }

    /// Returns what to write next, as slices in order.
    pub(crate) fn slices(&self) -> ([IoSlice<'_>; SLICES_MAX], usize) {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let mut at = self.flat_written;
        let ends = self.shared.iter().map(|(before, body)| (*before, &body[..]));
        for (end, body) in ends.chain([(self.flat.len(), &[][..])]) {
            for part in [&self.flat[at..end], body] {
                if !part.is_empty() && count < SLICES_MAX {
                    slices[count] = IoSlice::new(part);
                    count += 1;
                }
            }
            if count == SLICES_MAX {
                break;
            }
            at = end;
        }
        (slices, count)
    }

    /// Takes out the bodies that have been written.
    pub(crate) fn take_spent(&mut self) -> Spent {
        mem::take(&mut self.spent)
    }

    pub(crate) fn has_spent(&self) -> bool {
        !self.spent.0.is_empty()
    }

    /// Gives up all frames that are still in the lane.
    pub(crate) fn spend(self) -> Spent {
        let mut spent = self.spent;
        spent.0.extend(self.shared.into_iter().map(|(_, body)| body));
        spent
    }

    /// Removes the first `written` bytes. Their large bodies stay until [`take_spent`](Self::take_spent).
    pub(crate) fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while written > 0 {
            let flat_end = self.shared.front().map_or(self.flat.len(), |(before, _)| *before);
            let flat = written.min(flat_end - self.flat_written);
            self.flat_written += flat;
            written -= flat;
            if let Some((_, body)) = self.shared.front_mut()
                && self.flat_written == flat_end
            {
                let shared = written.min(body.len());
                let written_whole = shared == body.len();
                if !written_whole {
                    let _ = body.split_to(shared);
                }
                written -= shared;
                if written_whole {
                    self.spent.0.extend(self.shared.pop_front().map(|(_, body)| body));
                }
            }
        }
        if self.bytes == 0 {
            self.flat.clear();
            self.flat.shrink_to(FLAT_BYTES_KEPT);
            self.flat_written = 0;
        }
    }
}

/// Holds a body until it is written. If it will `wait` and is small, it is copied, see [`PART_BYTES_MIN`].
fn keep(body: &Body<'_>, wait: bool) -> Bytes {
    if wait && body.len() < PART_BYTES_MIN { body.copied() } else { body.to_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        frame::{Chunk, Reply},
        payload::Codec,
    };

    fn reply(id: u64, body: &Bytes) -> Frame<'_> {
        reply_of(id, Body::shared(body))
    }

    fn reply_of(id: u64, body: Body<'_>) -> Frame<'_> {
        Frame::Reply(Reply { id, more: false, part: 0, codec: 0, total: body.len() as u32, body })
    }

    fn chunk(id: u64, body: &Bytes) -> Frame<'_> {
        Frame::Chunk(Chunk { id, reply: true, more: true, part: 0, body: Body::shared(body) })
    }

    /// Returns everything that the queue gives, written in steps of `step` bytes.
    fn drain(queue: &mut OutQueue, step: usize) -> Vec<u8> {
        let mut lane = Lane::default();
        let mut out = Vec::new();
        loop {
            if lane.is_empty() {
                queue.next(&mut lane);
            }
            if lane.is_empty() {
                assert!(queue.is_empty());
                return out;
            }
            let mut written = 0;
            let (slices, count) = lane.slices();
            if let Some(piece) = lane.piece() {
                let whole: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                assert_eq!(piece, whole);
            }
            for slice in &slices[..count] {
                let take = slice.len().min(step - written);
                out.extend_from_slice(&slice[..take]);
                written += take;
            }
            lane.advance(written);
        }
    }

    #[test]
    fn frames_leave_as_they_were_encoded_however_they_are_cut() {
        let small = Bytes::from_static(b"small");
        let large = Bytes::from(vec![7; 10_000]);
        for step in [1, 7, 100, 5_000, usize::MAX] {
            let mut queue = OutQueue::default();
            let mut expected = Vec::new();
            let mut grown = 0;
            for id in 0..200 {
                let frame = reply(id, if id % 3 == 0 { &large } else { &small });
                frame.encode(&mut expected);
                grown += queue.push(&frame, id % 2 == 0);
            }
            assert_eq!(queue.len(), grown);
            assert_eq!(drain(&mut queue, step), expected);
        }
    }

    #[test]
    fn a_body_in_pieces_leaves_as_one() {
        let value = |size| crate::payload::Bytes::from(vec![7; size]);
        let mut expected = Vec::new();
        let mut queue = OutQueue::default();
        let mut encoded = Codec::Bincode.encode_apart(&(1u8, value(20_000), "text", value(30_000))).unwrap();
        let body = Body::encoded(&encoded);
        assert_eq!(body.pieces().count(), 4);
        let request = reply_of(1, body);
        request.encode(&mut expected);
        queue.push(&request, true);
        let first = encoded.split_to(10_000);
        for (part, more) in [(&first, true), (&encoded, false)] {
            let chunk = Frame::Chunk(Chunk { id: 1, reply: true, more, part: 0, body: Body::encoded(part) });
            chunk.encode(&mut expected);
            queue.push(&chunk, true);
        }
        assert_eq!(queue.len(), expected.len());
        assert!(drain(&mut queue, 999) == expected);
    }

    /// Returns, for a chunk and a reply with a body of `size` bytes, whether the queued body still lies in
    /// the buffer that it was read into.
    fn lies_where_it_was_read(size: usize, wait: bool) -> [bool; 2] {
        let read = Bytes::from(vec![7; 4 * CHUNK_BYTES]);
        let chunk = Chunk { id: 1, reply: true, more: true, part: 0, body: Body::borrowed(&read[..size]) };
        let mut bytes = Frame::Chunk(chunk).to_bytes().to_vec();
        reply_of(2, Body::borrowed(&read[..size])).encode(&mut bytes);
        bytes.extend_from_slice(&read);
        let batch = Bytes::from(bytes);
        let (chunk, at) = Frame::decode(&batch, 0, usize::MAX).unwrap().unwrap();
        let (reply, _) = Frame::decode(&batch, at, usize::MAX).unwrap().unwrap();
        [chunk, reply].map(|frame| {
            let (mut queue, mut lane) = (OutQueue::default(), Lane::default());
            queue.push(&frame, wait);
            queue.next(&mut lane);
            let (slices, count) = lane.slices();
            slices[..count].iter().any(|slice| batch.as_ptr_range().contains(&slice.as_ptr()))
        })
    }

    #[test]
    fn only_small_parts_of_what_was_read_are_copied() {
        for (size, at_once, waiting) in [
            (FLATTEN_BYTES_MAX, false, false),
            (FLATTEN_BYTES_MAX + 1, true, false),
            (PART_BYTES_MIN - 1, true, false),
            (PART_BYTES_MIN, true, true),
            (CHUNK_BYTES, true, true),
        ] {
            assert_eq!(lies_where_it_was_read(size, false), [at_once; 2], "{size} bytes");
            assert_eq!(lies_where_it_was_read(size, true), [waiting; 2], "{size} bytes that wait");
        }
    }

    #[test]
    fn queues_that_are_joined_keep_their_order() {
        let small = Bytes::from_static(b"small");
        let large = Bytes::from(vec![7; 10_000]);
        // Each of them begins and ends with a small or a large frame, or is empty.
        for (first, second) in [(0, 5), (5, 0), (1, 1), (3, 4), (4, 3), (6, 6)] {
            let (mut queue, mut other) = (OutQueue::default(), OutQueue::default());
            let mut expected = Vec::new();
            for id in 0..first + second {
                let frame = reply(id, if id % 3 == 0 { &large } else { &small });
                frame.encode(&mut expected);
                if id < first {
                    queue.push(&frame, false)
                } else {
                    other.push(&frame, false)
                };
            }
            let chunked = chunk(100, &large);
            chunked.encode(&mut expected);
            other.push(&chunked, false);
            queue.append(&mut other);
            assert!(other.is_empty());
            assert_eq!(queue.len(), expected.len());
            assert_eq!(drain(&mut queue, usize::MAX), expected);
            // The emptied queue can be reused.
            other.push(&reply(1, &small), false);
            assert_eq!(drain(&mut other, 7), reply(1, &small).to_bytes());
        }
    }

    #[test]
    fn a_burst_gives_its_memory_back() {
        let small = Bytes::from_static(b"small");
        let mut queue = OutQueue::default();
        for id in 0..100_000 {
            queue.push(&reply(id, &small), false);
        }
        let mut lane = Lane::default();
        while !queue.is_empty() {
            queue.next(&mut lane);
            lane.advance(lane.bytes);
        }
        let lanes = [&lane, &queue.frames, &queue.urgent].into_iter().chain(&queue.later);
        let kept: usize = lanes.map(|lane| lane.flat.capacity()).sum();
        assert!(kept <= FLAT_BYTES_KEPT, "{kept}");
        assert_eq!(queue.later.len(), 0);
    }

    #[test]
    fn a_sign_of_life_waits_for_little_of_what_waits() {
        let body = Bytes::from(vec![1; CHUNK_BYTES - 100]);
        let small = Bytes::from_static(b"small");
        let mut queue = OutQueue::default();
        let mut expected = Vec::new();
        for id in 0..1000 {
            let frame = reply(id, if id % 2 == 0 { &body } else { &small });
            frame.encode(&mut expected);
            queue.push(&frame, true);
        }
        let mut lane = Lane::default();
        queue.next(&mut lane);
        assert!(lane.len() < LANE_BYTES + CHUNK_BYTES, "{} bytes are written first", lane.len());
        // Queued directly, or together with others.
        queue.push(&Frame::Ping { id: 7 }, true);
        let mut more = OutQueue::default();
        let frame = reply(1000, &small);
        frame.encode(&mut expected);
        more.push(&frame, true);
        more.push(&Frame::Pong { id: 8 }, true);
        queue.append(&mut more);
        let mut out = Vec::new();
        while !lane.is_empty() {
            let (slices, count) = lane.slices();
            out.extend(slices[..count].iter().flat_map(|slice| slice.to_vec()));
            let written = slices[..count].iter().map(|slice| slice.len()).sum();
            lane.advance(written);
        }
        queue.next(&mut lane);
        let signs = [Frame::Ping { id: 7 }.to_bytes(), Frame::Pong { id: 8 }.to_bytes()].concat();
        let (slices, count) = lane.slices();
        let next: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
        assert_eq!(next, signs);
        lane.advance(signs.len());
        out.extend(drain(&mut queue, usize::MAX));
        assert!(out == expected, "the others keep their order");
    }

    #[test]
    fn a_chunk_never_overtakes_what_begins_its_payload() {
        let body = Bytes::from(vec![1; CHUNK_BYTES - 100]);
        let mut queue = OutQueue::default();
        let mut expected = Vec::new();
        for id in 0..10 {
            reply(id, &body).encode(&mut expected);
            queue.push(&reply(id, &body), false);
        }
        for id in 0..10 {
            chunk(id, &body).encode(&mut expected);
            queue.push(&chunk(id, &body), false);
        }
        assert!(drain(&mut queue, usize::MAX) == expected);
    }

    #[test]
    fn a_small_frame_waits_for_a_few_chunks_at_most() {
        let body = Bytes::from(vec![1; CHUNK_BYTES]);
        let mut queue = OutQueue::default();
        for _ in 0..20 {
            queue.push(&chunk(1, &body), false);
        }
        let mut lane = Lane::default();
        queue.next(&mut lane);
        assert!(lane.bytes < 3 * CHUNK_BYTES);
        queue.push(&reply(2, &Bytes::new()), false);
        lane.advance(lane.bytes);
        queue.next(&mut lane);
        let (slices, _) = lane.slices();
        assert_eq!(slices[0][4], 7, "the reply goes before the other chunks");
    }
    #[test]
    fn chunks_of_all_sizes_leave_in_order_and_small_ones_share_their_memory() {
        let small = Bytes::from_static(b"s");
        let large = Bytes::from(vec![7; 10_000]);
        for step in [1, 5_000, usize::MAX] {
            let mut queue = OutQueue::default();
            let mut expected = Vec::new();
            for id in 0..1000 {
                let frame = chunk(id, if id % 100 == 50 { &large } else { &small });
                frame.encode(&mut expected);
                queue.push(&frame, false);
            }
            assert_eq!(queue.len(), expected.len());
            assert_eq!(queue.chunks.len(), 21, "runs of small ones, and the large ones between them");
            assert_eq!(drain(&mut queue, step), expected);
        }
    }

    #[test]
    fn a_frame_that_waits_keeps_nothing_but_itself() {
        let read = Bytes::from(vec![0; 256 * 1024]);
        let body = read.slice(..8 * 1024);
        for frame in [reply(1, &body), chunk(1, &body)] {
            for wait in [true, false] {
                let mut queue = OutQueue::default();
                queue.push(&frame, wait);
                let mut lane = Lane::default();
                queue.next(&mut lane);
                assert_eq!(lane.shared[0].1.as_ptr() == read.as_ptr(), !wait);
            }
        }
    }
}
