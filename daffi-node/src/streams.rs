//! Large payloads on their way out: which chunk goes next, and how much the receivers take.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::atomic::{AtomicUsize, Ordering},
};

use daffi_core::{
    controller::PortError,
    frame::{Body, Chunk, Frame},
    limits::{PIECE_BYTES, STREAM_WINDOW_BYTES},
    payload::Encoded,
};
use parking_lot::Mutex;

use crate::{held_bytes::Hold, remains::Remains};

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
    /// How many bytes of them may still be sent before the window is as wide as it can be again.
    narrow: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    streams: HashMap<StreamId, Stream>,
    /// Those whose receivers take more, the one whose turn it is first.
    ready: VecDeque<StreamId>,
    /// How many bytes of all of them are on their way.
    on_their_way: usize,
}

#[derive(Debug)]
struct Stream {
    rest: Encoded,
    credit: usize,
    on_its_way: usize,
    /// How much more of it goes before it is another one's turn.
    turn_left: usize,
    /// Its receiver has credit for the last of it as well, so that it counts until it has arrived. That of a result, or of
    /// a request without one, has not: the controller forgets those when they are whole.
    to_the_end: bool,
    /// Counts it until then.
    _hold: Option<Hold>,
}

/// How many bytes of one link's large payloads are on their way, so that they fit the queue of a peer behind it.
pub(crate) const LINK_WINDOW_BYTES: usize = 4 * STREAM_WINDOW_BYTES;

/// The same while other calls use the link. Theirs wait behind what is on its way in sockets and buffers, whatever goes
/// first in queues: at 1 GiB a second for an eighth of a millisecond. Enough to keep two hops busy on one machine or in
/// one rack; it is long ways that need more.
const NARROW_WINDOW_BYTES: usize = 2 * PIECE_BYTES;

/// How many bytes of large payloads go after another call before the window is wide again.
const NARROW_FOR_BYTES: usize = 16 * STREAM_WINDOW_BYTES;

/// How much of one payload goes before it is another one's turn: with a chunk at a time all payloads would be in memory at
/// both ends from first to last, and in no cache.
const TURN_BYTES: usize = 4 * PIECE_BYTES;

impl Streams {
    /// Counts a large payload before its first frame is sent, for its receiver may take that before the sender comes back
    /// here. Says how many bytes go with that frame: none while as many of others are on their way as may be.
    pub(crate) fn begin(&self, id: StreamId, body: &Encoded, to_the_end: bool, hold: Option<Hold>) -> usize {
        let mut rest = body.clone();
        // Dropped after the lock is released, and so is what such an id had before.
        let replaced;
        let _sent;
        let mut state = self.state.lock();
        let first = if state.on_their_way < self.window() { PIECE_BYTES } else { 0 };
        _sent = rest.split_to(first);
        let credit = STREAM_WINDOW_BYTES - first;
        let stream = Stream {
            rest,
            credit,
            on_its_way: first,
            turn_left: TURN_BYTES - first,
            to_the_end,
            _hold: hold,
        };
        state.on_their_way += first;
        replaced = state.streams.insert(id, stream);
        self.count.store(state.streams.len(), Ordering::Release);
        drop(state);
        drop(replaced);
        first
    }

    /// The first frame of a payload is sent: the rest may follow, if it is wanted still.
    pub(crate) fn go_on(&self, id: StreamId) {
        let mut state = self.state.lock();
        if state.streams.contains_key(&id) {
            state.ready.push_back(id);
        }
    }

    /// The receiver takes `bytes` more.
    pub(crate) fn credit(&self, id: StreamId, bytes: u32) {
        let mut state = self.state.lock();
        let Some(stream) = state.streams.get_mut(&id) else { return };
        let waited = stream.credit == 0;
        let arrived = stream.on_its_way.min(bytes as usize);
        // A receiver that takes more than was sent is wrong; it gets no more than a window.
        stream.credit = stream.credit.saturating_add(bytes as usize).min(STREAM_WINDOW_BYTES);
        stream.on_its_way -= arrived;
        // A receiver may also take nothing, and then there is nothing to send: a chunk is never empty.
        let goes_on = waited && stream.credit > 0 && !stream.rest.is_empty();
        let is_over = stream.rest.is_empty() && stream.on_its_way == 0;
        if goes_on {
            stream.turn_left = TURN_BYTES;
        }
        state.on_their_way -= arrived;
        let mut over = None;
        if goes_on {
            state.ready.push_back(id);
        } else if is_over {
            over = state.remove(id, &self.count);
        }
        drop(state);
        drop(over);
    }

    /// A call that is not large goes over the link, or its result: large payloads keep their distance for a while.
    #[inline]
    pub(crate) fn make_way(&self) {
        if self.is_active() {
            self.narrow.store(NARROW_FOR_BYTES, Ordering::Relaxed);
        }
    }

    fn window(&self) -> usize {
        match self.narrow.load(Ordering::Relaxed) {
            0 => LINK_WINDOW_BYTES,
            _ => NARROW_WINDOW_BYTES,
        }
    }

    /// Nobody wants the rest of it, which is added to `remains`. Says whether others may go on now.
    #[inline]
    pub(crate) fn cancel(&self, id: StreamId, remains: &mut Remains) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut state = self.state.lock();
        remains.add(state.remove(id, &self.count).map(|stream| stream.rest));
        !state.ready.is_empty()
    }

    /// The link is gone, and with it whatever was on its way. It is given back, to be dropped without a lock.
    #[must_use = "it is to be dropped without a lock"]
    pub(crate) fn clear(&self) -> impl Sized + use<> {
        let lost = mem::take(&mut *self.state.lock());
        self.count.store(0, Ordering::Release);
        lost
    }

    /// Whether any payload is being sent.
    pub(crate) fn is_active(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Sends chunks, some of each payload in turn, while `has_room` says so and receivers take them. Gives back what has been
    /// sent: it may be all that is left of a payload, if it was copied.
    pub(crate) fn pump(
        &self,
        has_room: impl Fn() -> bool,
        send: impl Fn(&Frame<'_>) -> Result<(), PortError>,
    ) -> Remains {
        let mut sent = Remains::default();
        let mut state = self.state.lock();
        while state.on_their_way < self.window()
            && has_room()
            && let Some(id) = state.ready.pop_front()
        {
            let Some(stream) = state.streams.get_mut(&id) else { continue };
            let body = stream.rest.split_to(PIECE_BYTES.min(stream.credit).min(stream.rest.len()));
            let more = !stream.rest.is_empty();
            stream.credit -= body.len();
            stream.on_its_way += body.len();
            stream.turn_left = stream.turn_left.saturating_sub(body.len());
            let turn_is_over = stream.turn_left == 0;
            if turn_is_over {
                stream.turn_left = TURN_BYTES;
            }
            let goes_on = more && stream.credit > 0;
            let is_over = !more && !stream.to_the_end;
            state.on_their_way += body.len();
            // Only this counts down, under the lock; that a call may come in between and be counted for less is no harm.
            let narrow = self.narrow.load(Ordering::Relaxed);
            if narrow > 0 {
                self.narrow.store(narrow.saturating_sub(body.len()), Ordering::Relaxed);
            }
            let chunk = Chunk { id: id.call, reply: id.reply, more, part: 0, body: Body::encoded(&body) };
            let pushed = send(&Frame::Chunk(chunk));
            sent.add(body);
            if pushed.is_err() {
                // The link is gone; whoever notices it ends the call.
                break;
            }
            if goes_on && turn_is_over {
                state.ready.push_back(id);
            } else if goes_on {
                state.ready.push_front(id);
            } else if is_over {
                sent.add(state.remove(id, &self.count).map(|stream| stream.rest));
            }
        }
        sent
    }
}

impl State {
    #[must_use = "it is to be dropped without the lock"]
    fn remove(&mut self, id: StreamId, count: &AtomicUsize) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        self.on_their_way -= stream.on_its_way;
        // A call that is sent again has the same id, and two turns for it would be one too many.
        self.ready.retain(|ready| *ready != id);
        count.store(self.streams.len(), Ordering::Release);
        Some(stream)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use bytes::Bytes;

    use super::*;

    const FIRST: StreamId = StreamId { call: 1, reply: false };
    const SECOND: StreamId = StreamId { call: 2, reply: true };

    fn zeros(size: usize) -> Encoded {
        Bytes::from(vec![0; size]).into()
    }

    /// Everything that goes out now: which call, how many bytes, whether more follows.
    fn pump(streams: &Streams) -> Vec<(u64, usize, bool)> {
        let sent = RefCell::new(Vec::new());
        let send = |frame: &Frame<'_>| {
            let Frame::Chunk(chunk) = frame else { panic!("{frame:?}") };
            sent.borrow_mut().push((chunk.id, chunk.body.len(), chunk.more));
            Ok(())
        };
        drop(streams.pump(|| true, send));
        sent.into_inner()
    }

    fn start(streams: &Streams, id: StreamId, body: &Encoded) {
        assert_eq!(streams.begin(id, body, !id.reply, None), PIECE_BYTES);
        streams.go_on(id);
    }

    #[test]
    fn what_is_taken_before_its_sender_is_back_counts() {
        let streams = Streams::default();
        streams.begin(FIRST, &zeros(2 * PIECE_BYTES), true, None);
        streams.credit(FIRST, PIECE_BYTES as u32);
        assert!(pump(&streams).is_empty(), "nothing overtakes the first frame");
        streams.go_on(FIRST);
        assert_eq!(pump(&streams), [(1, PIECE_BYTES, false)]);
        streams.credit(FIRST, PIECE_BYTES as u32);
        assert!(!streams.is_active());
        assert_eq!(streams.state.lock().on_their_way, 0);
        // Nor does one go on that was cancelled meanwhile.
        streams.begin(FIRST, &zeros(2 * PIECE_BYTES), true, None);
        streams.cancel(FIRST, &mut Remains::default());
        streams.go_on(FIRST);
        assert!(pump(&streams).is_empty());
    }

    #[test]
    fn payloads_take_turns_and_end_with_their_last_byte() {
        let streams = Streams::default();
        let body = zeros(TURN_BYTES + PIECE_BYTES + 5);
        start(&streams, FIRST, &body);
        start(&streams, SECOND, &body);
        let turn = |call, chunks| vec![(call, PIECE_BYTES, true); chunks];
        // The first chunk has left with the frame that begins the payload.
        let first = TURN_BYTES / PIECE_BYTES - 1;
        let end = |call| [turn(call, 1), vec![(call, 5, false)]].concat();
        let expected = [turn(1, first), turn(2, first), end(1), end(2)].concat();
        assert_eq!(pump(&streams), expected);
        assert_eq!(
            streams.state.lock().on_their_way,
            body.len(),
            "the result is forgotten, the request is not"
        );
        streams.credit(FIRST, body.len() as u32 - 1);
        assert!(streams.is_active());
        streams.credit(FIRST, 1);
        assert!(!streams.is_active());
        assert_eq!(streams.state.lock().on_their_way, 0);
    }

    #[test]
    fn no_more_is_sent_than_the_receiver_takes() {
        let streams = Streams::default();
        start(&streams, FIRST, &zeros(3 * STREAM_WINDOW_BYTES));
        let total = |sent: Vec<(u64, usize, bool)>| sent.iter().map(|(_, bytes, _)| bytes).sum::<usize>();
        assert_eq!(total(pump(&streams)), STREAM_WINDOW_BYTES - PIECE_BYTES);
        assert!(pump(&streams).is_empty());
        streams.credit(FIRST, 0);
        assert!(pump(&streams).is_empty(), "an empty chunk would end the connection");
        streams.credit(FIRST, 100);
        assert_eq!(total(pump(&streams)), 100);
        streams.credit(FIRST, u32::MAX);
        assert_eq!(total(pump(&streams)), STREAM_WINDOW_BYTES, "however much it claims to take");
        streams.cancel(FIRST, &mut Remains::default());
        streams.credit(FIRST, 100);
        assert!(pump(&streams).is_empty());
        assert!(!streams.is_active());
    }

    #[test]
    fn a_call_that_is_sent_again_has_one_turn_at_a_time() {
        let streams = Streams::default();
        let body = zeros(3 * STREAM_WINDOW_BYTES);
        start(&streams, FIRST, &body);
        streams.cancel(FIRST, &mut Remains::default());
        start(&streams, FIRST, &body);
        let sent = pump(&streams);
        assert_eq!(sent.iter().map(|(_, bytes, _)| bytes).sum::<usize>(), STREAM_WINDOW_BYTES - PIECE_BYTES);
        assert!(sent.iter().all(|(_, bytes, _)| *bytes > 0), "an empty chunk would end the connection");
    }

    #[test]
    fn all_payloads_of_a_link_share_a_window() {
        let streams = Streams::default();
        for call in 0..20 {
            let (id, body) = (StreamId { call, reply: false }, zeros(STREAM_WINDOW_BYTES));
            streams.begin(id, &body, true, None);
            streams.go_on(id);
        }
        pump(&streams);
        assert!(streams.state.lock().on_their_way <= LINK_WINDOW_BYTES + PIECE_BYTES);
    }

    /// Receivers give credit for what came, and nothing else: however many payloads there are, all of them arrive.
    #[test]
    fn any_number_of_payloads_arrives_whole() {
        let streams = Streams::default();
        let body = zeros(STREAM_WINDOW_BYTES);
        let mut arrived = Vec::new();
        for call in 0..300 {
            let id = StreamId { call, reply: false };
            arrived.push(streams.begin(id, &body, true, None));
            streams.go_on(id);
        }
        for (call, first) in arrived.iter().enumerate() {
            streams.credit(StreamId { call: call as u64, reply: false }, *first as u32);
        }
        loop {
            let sent = pump(&streams);
            if sent.is_empty() {
                break;
            }
            for (call, bytes, _) in sent {
                arrived[call as usize] += bytes;
                assert!(streams.state.lock().on_their_way <= LINK_WINDOW_BYTES + PIECE_BYTES);
                streams.credit(StreamId { call, reply: false }, bytes as u32);
            }
        }
        assert_eq!(arrived, vec![STREAM_WINDOW_BYTES; 300]);
        assert!(!streams.is_active());
        assert_eq!(streams.state.lock().on_their_way, 0);
    }

    #[test]
    fn payloads_keep_their_distance_while_other_calls_use_the_link() {
        let streams = Streams::default();
        streams.make_way();
        start(&streams, FIRST, &zeros(64 << 20));
        let total = |sent: Vec<(u64, usize, bool)>| sent.iter().map(|(_, bytes, _)| bytes).sum::<usize>();
        let on_its_way = total(pump(&streams));
        assert_eq!(on_its_way, STREAM_WINDOW_BYTES - PIECE_BYTES, "the call before it is no reason");
        streams.make_way();
        streams.credit(FIRST, (PIECE_BYTES + on_its_way) as u32);
        // As much as that arrives now, and is sent anew, again and again.
        let mut sent = total(pump(&streams));
        assert_eq!(sent, NARROW_WINDOW_BYTES);
        let mut last = sent;
        while last <= NARROW_WINDOW_BYTES {
            streams.credit(FIRST, last as u32);
            last = total(pump(&streams));
            sent += last;
            assert!(sent <= 2 * NARROW_FOR_BYTES, "the way is free again");
        }
        assert!(sent > NARROW_FOR_BYTES);
    }
}
