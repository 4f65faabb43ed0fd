//! Large payloads on their way out: which chunk goes next, and how much the receivers take.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use daffi_core::{
    controller::PortError,
    frame::{Body, Chunk, Frame},
    limits::{CHUNK_BYTES, STREAM_WINDOW_BYTES},
};
use parking_lot::Mutex;

/// Which call a payload belongs to, and which of its two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct StreamId {
    pub(crate) call: u64,
    pub(crate) reply: bool,
}

/// Large payloads that are being sent, in turn.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// How many there are, so that calls without large payloads pay nothing.
    count: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    streams: HashMap<StreamId, Stream>,
    /// Those whose receivers take more.
    ready: VecDeque<StreamId>,
    /// How many bytes of all of them are on their way.
    on_their_way: usize,
}

#[derive(Debug)]
struct Stream {
    rest: Bytes,
    credit: usize,
    on_its_way: usize,
}

/// How many bytes of one link's large payloads are on their way, so that they fit the queue of a peer behind it.
pub(crate) const LINK_WINDOW_BYTES: usize = 4 * STREAM_WINDOW_BYTES;

impl Streams {
    /// Goes on with a payload whose first frame, with `CHUNK_BYTES` of it, is sent.
    pub(crate) fn start(&self, id: StreamId, body: &Bytes) {
        let mut state = self.state.lock();
        let stream = Stream {
            rest: body.slice(CHUNK_BYTES..),
            credit: STREAM_WINDOW_BYTES - CHUNK_BYTES,
            on_its_way: CHUNK_BYTES,
        };
        state.on_their_way += CHUNK_BYTES;
        state.streams.insert(id, stream);
        state.ready.push_back(id);
        self.count.store(state.streams.len(), Ordering::Release);
    }

    /// The receiver takes `bytes` more.
    pub(crate) fn credit(&self, id: StreamId, bytes: u32) {
        let mut state = self.state.lock();
        let Some(stream) = state.streams.get_mut(&id) else { return };
        let waited = stream.credit == 0;
        let arrived = stream.on_its_way.min(bytes as usize);
        // A receiver that takes more than was sent is wrong; it gets no more than a window.
        stream.credit = (stream.credit + arrived).min(STREAM_WINDOW_BYTES);
        stream.on_its_way -= arrived;
        // A receiver may also take nothing, and then there is nothing to send: a chunk is never empty.
        let goes_on = waited && stream.credit > 0;
        state.on_their_way -= arrived;
        if goes_on {
            state.ready.push_back(id);
        }
    }

    /// Nobody wants the rest of it.
    pub(crate) fn cancel(&self, id: StreamId) {
        if self.count.load(Ordering::Acquire) > 0 {
            self.state.lock().remove(id, &self.count);
        }
    }

    /// The link is gone, and with it whatever was on its way.
    pub(crate) fn clear(&self) {
        *self.state.lock() = State::default();
        self.count.store(0, Ordering::Release);
    }

    /// Whether any payload is being sent.
    pub(crate) fn is_active(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Sends chunks, one of each payload in turn, while `has_room` says so and receivers take them.
    pub(crate) fn pump(
        &self,
        has_room: impl Fn() -> bool,
        send: impl Fn(&Frame<'_>) -> Result<(), PortError>,
    ) {
        let mut state = self.state.lock();
        while state.on_their_way < LINK_WINDOW_BYTES
            && has_room()
            && let Some(id) = state.ready.pop_front()
        {
            let Some(stream) = state.streams.get_mut(&id) else { continue };
            let body = stream.rest.split_to(CHUNK_BYTES.min(stream.credit).min(stream.rest.len()));
            let more = !stream.rest.is_empty();
            stream.credit -= body.len();
            stream.on_its_way += body.len();
            let goes_on = more && stream.credit > 0;
            state.on_their_way += body.len();
            let chunk = Chunk { id: id.call, reply: id.reply, more, part: 0, body: Body::shared(&body) };
            if send(&Frame::Chunk(chunk)).is_err() {
                // The link is gone; whoever notices it ends the call.
                return;
            }
            if goes_on {
                state.ready.push_back(id);
            } else if !more {
                state.remove(id, &self.count);
            }
        }
    }
}

impl State {
    fn remove(&mut self, id: StreamId, count: &AtomicUsize) {
        if let Some(stream) = self.streams.remove(&id) {
            self.on_their_way -= stream.on_its_way;
            // A call that is sent again has the same id, and two turns for it would be one too many.
            self.ready.retain(|ready| *ready != id);
            count.store(self.streams.len(), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const FIRST: StreamId = StreamId { call: 1, reply: false };
    const SECOND: StreamId = StreamId { call: 2, reply: true };

    /// Everything that goes out now: which call, how many bytes, whether more follows.
    fn pump(streams: &Streams) -> Vec<(u64, usize, bool)> {
        let sent = RefCell::new(Vec::new());
        let send = |frame: &Frame<'_>| {
            let Frame::Chunk(chunk) = frame else { panic!("{frame:?}") };
            sent.borrow_mut().push((chunk.id, chunk.body.len(), chunk.more));
            Ok(())
        };
        streams.pump(|| true, send);
        sent.into_inner()
    }

    #[test]
    fn payloads_take_turns_and_end_with_their_last_byte() {
        let streams = Streams::default();
        let body = Bytes::from(vec![0; 2 * CHUNK_BYTES + 5]);
        streams.start(FIRST, &body);
        streams.start(SECOND, &body);
        let expected = [(1, CHUNK_BYTES, true), (2, CHUNK_BYTES, true), (1, 5, false), (2, 5, false)];
        assert_eq!(pump(&streams), expected);
        assert!(!streams.is_active());
        assert_eq!(streams.state.lock().on_their_way, 0);
    }

    #[test]
    fn no_more_is_sent_than_the_receiver_takes() {
        let streams = Streams::default();
        streams.start(FIRST, &Bytes::from(vec![0; 3 * STREAM_WINDOW_BYTES]));
        let total = |sent: Vec<(u64, usize, bool)>| sent.iter().map(|(_, bytes, _)| bytes).sum::<usize>();
        assert_eq!(total(pump(&streams)), STREAM_WINDOW_BYTES - CHUNK_BYTES);
        assert!(pump(&streams).is_empty());
        streams.credit(FIRST, 0);
        assert!(pump(&streams).is_empty(), "an empty chunk would end the connection");
        streams.credit(FIRST, 100);
        assert_eq!(total(pump(&streams)), 100);
        streams.credit(FIRST, u32::MAX);
        assert_eq!(total(pump(&streams)), STREAM_WINDOW_BYTES, "however much it claims to take");
        streams.cancel(FIRST);
        streams.credit(FIRST, 100);
        assert!(pump(&streams).is_empty());
        assert!(!streams.is_active());
    }

    #[test]
    fn a_call_that_is_sent_again_has_one_turn_at_a_time() {
        let streams = Streams::default();
        let body = Bytes::from(vec![0; 3 * STREAM_WINDOW_BYTES]);
        streams.start(FIRST, &body);
        streams.cancel(FIRST);
        streams.start(FIRST, &body);
        let sent = pump(&streams);
        assert_eq!(sent.iter().map(|(_, bytes, _)| bytes).sum::<usize>(), STREAM_WINDOW_BYTES - CHUNK_BYTES);
        assert!(sent.iter().all(|(_, bytes, _)| *bytes > 0), "an empty chunk would end the connection");
    }

    #[test]
    fn all_payloads_of_a_link_share_a_window() {
        let streams = Streams::default();
        for call in 0..20 {
            streams.start(StreamId { call, reply: false }, &Bytes::from(vec![0; STREAM_WINDOW_BYTES]));
        }
        pump(&streams);
        assert!(streams.state.lock().on_their_way <= LINK_WINDOW_BYTES + CHUNK_BYTES);
    }
}
