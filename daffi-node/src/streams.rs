//! Large outgoing payloads: which chunk goes next, and how much the receivers take.

mod on_its_way;

use std::{
    collections::{HashMap, VecDeque, hash_map::RandomState},
    hash::BuildHasher as _,
    mem,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use daffi_core::{
    controller::PortError,
    frame::{Body, Chunk, Frame},
    host,
    limits::{PIECE_BYTES, STREAM_WINDOW_BYTES},
    payload::Encoded,
};
use on_its_way::{LATE_AFTER, OnItsWay, Sums};
use parking_lot::Mutex;

use crate::{held_bytes::Hold, remains::Remains};

/// The call that a payload belongs to, and which of its two payloads it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct StreamId {
    pub(crate) call: u64,
    pub(crate) reply: bool,
}

/// Who a payload is for, as far as its sender knows.
#[derive(Debug, Clone, Copy, Hash)]
pub(crate) enum Receiver<'a> {
    /// The node with this name.
    Node(&'a str),
    /// Whoever offers this callback.
    Offering(&'a str),
}

/// A receiver, as a keyed hash: outsiders cannot choose a name that would be mistaken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ReceiverId(u64);

/// Large payloads that are being sent, in turn.
#[derive(Debug)]
pub(crate) struct Streams {
    /// How many there are, so that calls without large payloads pay nothing.
    count: AtomicUsize,
    /// How many bytes may be on their way to prompt receivers while other calls do not use the link.
    wide: AtomicUsize,
    /// How many bytes of large payloads are still to be sent before the window is wide again.
    narrow: AtomicUsize,
    receiver_ids: RandomState,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    streams: HashMap<StreamId, Stream>,
    receivers: HashMap<ReceiverId, Queue>,
    /// Receivers of payloads that may go on, with the one whose turn it is first.
    turns: VecDeque<ReceiverId>,
    on_their_way: Sums,
    /// When it was last checked which receivers are late.
    looked: Option<Instant>,
    /// When a chunk was last sent while other calls used the link.
    sent: Option<Instant>,
    /// Receivers that have no turns because enough is on its way to them, unless some of it has arrived
    /// since.
    capped: Vec<ReceiverId>,
    /// Whether the I/O thread will come again in time.
    is_watched: bool,
}

#[derive(Debug)]
struct Stream {
    to: ReceiverId,
    rest: Encoded,
    credit: usize,
    on_its_way: OnItsWay,
    /// How much more of it goes before it is another payload's turn.
    turn_left: usize,
    /// Whether its receiver gives credit even for the last of it, so that it counts until it has arrived. For
    /// results, and for requests without a result, it does not: the controller forgets those when they are
    /// whole.
    to_the_end: bool,
    /// Keeps it counted until then.
    _hold: Option<Hold>,
}

/// The payloads for one receiver.
#[derive(Debug, Default)]
struct Queue {
    streams: usize,
    /// Those that may go on, with the one whose turn it is first.
    ready: VecDeque<StreamId>,
    on_their_way: usize,
    /// Whether it is among those that have turns.
    has_turns: bool,
    /// Whether it is among those with enough on their way.
    is_capped: bool,
}

/// How many bytes may be on their way to prompt receivers while other calls do not use the link.
const WIDE_WINDOW_BYTES: usize = 4 * STREAM_WINDOW_BYTES;

/// The same for a UNIX socket: as much as its buffers and the processors' caches hold. More would be written
/// to memory and read back, and arrive no sooner. TCP's buffers grow.
const LOCAL_WINDOW_BYTES: usize = STREAM_WINDOW_BYTES;

/// How many bytes may be on their way, while other calls use the link, to all receivers that are not stuck.
/// Those calls wait behind what is in sockets and buffers, whatever goes first in queues: at 1 GiB per
/// second, for an eighth of a millisecond. This keeps two hops busy on one machine or in one rack; only long
/// distances need more.
const NARROW_WINDOW_BYTES: usize = 2 * PIECE_BYTES;

/// How many bytes may be on their way to all receivers, however late, so that they fit the queue of a peer
/// behind the link: several receivers may be that one peer, if they are told apart by their callbacks. Beyond
/// that each may have a narrow window, so that none keeps the others from going on.
pub(crate) const RECEIVERS_WINDOW_BYTES: usize = 4 * STREAM_WINDOW_BYTES;

/// How many bytes of large payloads are sent after another call before the window is wide again.
const NARROW_FOR_BYTES: usize = 16 * STREAM_WINDOW_BYTES;

/// Or how long after the last of either.
const NARROW_FOR: Duration = Duration::from_secs(1);

/// How much of one payload goes before it is another one's turn. With one chunk at a time, all payloads would
/// be in memory at both ends from first to last, and in no cache. One of 1 MiB has a turn to itself.
const TURN_BYTES: usize = STREAM_WINDOW_BYTES;

/// How much may be on its way.
#[derive(Debug, Clone, Copy)]
enum Window {
    /// This much to prompt receivers.
    Wide(usize),
    Narrow,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            count: AtomicUsize::new(0),
            wide: AtomicUsize::new(WIDE_WINDOW_BYTES),
            narrow: AtomicUsize::new(0),
            receiver_ids: RandomState::new(),
            state: Mutex::default(),
        }
    }
}

impl Streams {
    /// Sets whether the new link is a UNIX socket.
    pub(crate) fn set_link(&self, is_local: bool) {
        let wide = if is_local { LOCAL_WINDOW_BYTES } else { WIDE_WINDOW_BYTES };
        self.wide.store(wide, Ordering::Relaxed);
        self.narrow.store(0, Ordering::Relaxed);
    }

    /// Counts a large payload before its first frame is sent, since its receiver may take that before the
    /// sender returns here. Returns how many bytes go with that frame: none while the others already have as
    /// much on their way as allowed.
    pub(crate) fn begin(
        &self,
        id: StreamId,
        to: Receiver<'_>,
        body: &Encoded,
        to_the_end: bool,
        hold: Option<Hold>,
    ) -> usize {
        let mut rest = body.clone();
        let (to, window) = (ReceiverId(self.receiver_ids.hash_one(to)), self.window());
        let mut state = self.state.lock();
        // Dropped after the lock is released, like any previous payload with this id.
        let replaced = state.remove(id);
        let queue = state.receivers.entry(to).or_default();
        queue.streams += 1;
        let on_their_way = queue.on_their_way;
        let first =
            if on_their_way < state.enough(window) && state.has_room(window) { PIECE_BYTES } else { 0 };
        let sent = rest.split_to(first);
        let stream = Stream {
            to,
            rest,
            credit: STREAM_WINDOW_BYTES,
            on_its_way: OnItsWay::new(),
            turn_left: TURN_BYTES,
            to_the_end,
            _hold: hold,
        };
        state.streams.insert(id, stream);
        state.leaves(id, first);
        if let Window::Narrow = window {
            state.sent = Some(host::now());
        }
        self.count.store(state.streams.len(), Ordering::Release);
        drop(state);
        drop((replaced, sent));
        first
    }

    /// Called when the first frame of a payload is sent: the rest may follow, if it is still wanted.
    pub(crate) fn go_on(&self, id: StreamId) {
        let mut state = self.state.lock();
        let State { streams, receivers, .. } = &mut *state;
        if let Some(stream) = streams.get(&id)
            && let Some(queue) = receivers.get_mut(&stream.to)
        {
            let to = stream.to;
            queue.ready.push_back(id);
            state.give_turns(to);
        }
    }

    /// Called when the receiver takes `bytes` more.
    pub(crate) fn credit(&self, id: StreamId, bytes: u32) {
        let mut state = self.state.lock();
        let State { streams, receivers, on_their_way, .. } = &mut *state;
        let Some(stream) = streams.get_mut(&id) else { return };
        let to = stream.to;
        let Some(queue) = receivers.get_mut(&to) else { return };
        let waited = stream.credit == 0;
        let was_full = on_their_way.is_full();
        // A receiver that claims more than was sent is wrong; it gets no more than a window.
        stream.credit = stream.credit.saturating_add(bytes as usize).min(STREAM_WINDOW_BYTES);
        queue.on_their_way -= stream.on_its_way.arrives(bytes as usize, on_their_way);
        // A receiver may also give credit for nothing, and then there is nothing to send: a chunk is never
        // empty.
        let goes_on = waited && stream.credit > 0 && !stream.rest.is_empty();
        let is_over = stream.rest.is_empty() && stream.on_its_way.bytes() == 0;
        if goes_on {
            stream.turn_left = TURN_BYTES;
            queue.ready.push_back(id);
        }
        if was_full && !state.on_their_way.is_full() {
            state.uncap();
        }
        let over = if is_over { state.remove(id) } else { None };
        state.give_turns(to);
        self.count.store(state.streams.len(), Ordering::Release);
        drop(state);
        drop(over);
    }

    /// Called when a small call or result goes over the link: large payloads keep their distance for a while.
    #[inline]
    pub(crate) fn make_way(&self) {
        if self.is_active() {
            self.narrow.store(NARROW_FOR_BYTES, Ordering::Relaxed);
        }
    }

    fn window(&self) -> Window {
        match self.narrow.load(Ordering::Relaxed) {
            0 => Window::Wide(self.wide.load(Ordering::Relaxed)),
            _ => Window::Narrow,
        }
    }

    /// Forgets the rest of a payload, which is added to `remains`. Returns whether others may go on now.
    #[inline]
    pub(crate) fn cancel(&self, id: StreamId, remains: &mut Remains) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut state = self.state.lock();
        remains.add(state.remove(id).map(|stream| stream.rest));
        self.count.store(state.streams.len(), Ordering::Release);
        !state.turns.is_empty()
    }

    /// Forgets everything, since the link is gone. Returns it, to be dropped without a lock.
    #[must_use = "it is to be dropped without a lock"]
    pub(crate) fn clear(&self) -> impl Sized + use<> {
        let lost = mem::take(&mut *self.state.lock());
        self.count.store(0, Ordering::Release);
        lost
    }

    /// Returns whether any payload is being sent.
    pub(crate) fn is_active(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Returns when the I/O thread must resume sending at the latest, if payloads wait for others, whose
    /// receivers may turn out to be late.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        if !self.is_active() {
            return None;
        }
        let mut state = self.state.lock();
        let due = match self.window() {
            window if !state.waits(window) => None,
            Window::Wide(_) => Some(now + LATE_AFTER),
            Window::Narrow => {
                let seen = NARROW_FOR_BYTES - 1;
                if self.narrow.fetch_min(seen, Ordering::Relaxed) > seen {
                    // A call has come since.
                    state.sent = Some(now);
                }
                let until = *state.sent.get_or_insert(now) + NARROW_FOR;
                if now < until {
                    Some(until)
                } else {
                    self.widen(&mut state);
                    Some(now)
                }
            }
        };
        state.is_watched = due.is_some();
        due
    }

    /// Returns whether payloads wait for others without the I/O thread knowing.
    pub(crate) fn are_unwatched(&self) -> bool {
        self.is_active() && {
            let state = self.state.lock();
            !state.is_watched && state.waits(self.window())
        }
    }

    /// Widens the window: other calls have not used the link for a while.
    fn widen(&self, state: &mut State) {
        self.narrow.store(0, Ordering::Relaxed);
        state.sent = None;
        state.uncap();
    }

    /// Sends chunks, some of each payload in turn, as far as `has_room` and the receivers allow. Returns what
    /// has been sent: it may be all that is left of a payload, if it was copied.
    pub(crate) fn pump(
        &self,
        has_room: impl Fn() -> bool,
        send: impl Fn(&Frame<'_>) -> Result<(), PortError>,
    ) -> Remains {
        let mut sent = Remains::default();
        let mut state = self.state.lock();
        while has_room()
            && let Some((id, body, more)) = state.next(self.window())
        {
            // Only this code counts down, under the lock; if a call comes in between and counts for less, no
            // harm is done.
            let narrow = self.narrow.load(Ordering::Relaxed);
            if narrow > body.len() {
                self.narrow.store(narrow - body.len(), Ordering::Relaxed);
                state.sent = Some(host::now());
            } else if narrow > 0 {
                self.widen(&mut state);
            }
            let chunk = Chunk { id: id.call, reply: id.reply, more, part: 0, body: Body::encoded(&body) };
            let pushed = send(&Frame::Chunk(chunk));
            sent.add(body);
            if pushed.is_err() {
                // The link is gone; whoever notices ends the call.
                break;
            }
            sent.add(state.sent(id).map(|stream| stream.rest));
        }
        self.count.store(state.streams.len(), Ordering::Release);
        sent
    }
}

impl State {
    /// Takes the next chunk; returns it and whether more of its payload follows.
    ///
    /// The caller must call [`sent`](Self::sent) afterwards.
    fn next(&mut self, window: Window) -> Option<(StreamId, Encoded, bool)> {
        loop {
            let to = *self.turns.front()?;
            if !self.has_room(window) {
                return None;
            }
            let enough = self.enough(window);
            let queue = self.receivers.get_mut(&to)?;
            let has_enough = queue.on_their_way >= enough;
            let Some(id) = queue.ready.pop_front_if(|_| !has_enough) else {
                // Until it takes something, or may have more on its way.
                queue.has_turns = false;
                self.turns.pop_front();
                if has_enough && !mem::replace(&mut queue.is_capped, true) {
                    self.capped.push(to);
                }
                continue;
            };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let body = stream.rest.split_to(PIECE_BYTES.min(stream.credit).min(stream.rest.len()));
            let more = !stream.rest.is_empty();
            self.leaves(id, body.len());
            return Some((id, body, more));
        }
    }

    /// Notes that `bytes` of a payload leave.
    fn leaves(&mut self, id: StreamId, bytes: usize) {
        let Self { streams, receivers, on_their_way, .. } = self;
        if let Some(stream) = streams.get_mut(&id)
            && let Some(queue) = receivers.get_mut(&stream.to)
        {
            stream.credit -= bytes;
            stream.turn_left = stream.turn_left.saturating_sub(bytes);
            stream.on_its_way.leaves(bytes, on_their_way);
            queue.on_their_way += bytes;
        }
    }

    /// Called when a chunk was sent: its payload goes on, or another has its turn. Returns the payload if it
    /// is over.
    #[must_use = "it is to be dropped without the lock"]
    fn sent(&mut self, id: StreamId) -> Option<Stream> {
        let stream = self.streams.get_mut(&id)?;
        let queue = self.receivers.get_mut(&stream.to)?;
        let goes_on = !stream.rest.is_empty() && stream.credit > 0;
        if goes_on && stream.turn_left > 0 {
            queue.ready.push_front(id);
            return None;
        }
        if goes_on {
            stream.turn_left = TURN_BYTES;
            queue.ready.push_back(id);
        }
        let is_over = stream.rest.is_empty() && !stream.to_the_end;
        self.turns.rotate_left(1);
        if is_over { self.remove(id) } else { None }
    }

    /// Gives turns to the payloads for a receiver, if there are any.
    fn give_turns(&mut self, to: ReceiverId) {
        if let Some(queue) = self.receivers.get_mut(&to)
            && !queue.has_turns
            && !queue.ready.is_empty()
        {
            queue.has_turns = true;
            self.turns.push_back(to);
        }
    }

    /// Checks again which receivers have enough on their way.
    fn uncap(&mut self) {
        for to in mem::take(&mut self.capped) {
            self.receivers.entry(to).and_modify(|queue| queue.is_capped = false);
            self.give_turns(to);
        }
    }

    /// Returns how many bytes on their way to a receiver are enough, so that no more leave for it.
    fn enough(&self, window: Window) -> usize {
        match window {
            Window::Wide(_) if self.on_their_way.is_full() => NARROW_WINDOW_BYTES,
            Window::Wide(_) => RECEIVERS_WINDOW_BYTES,
            Window::Narrow if self.receivers.len() > 1 => PIECE_BYTES,
            Window::Narrow => NARROW_WINDOW_BYTES,
        }
    }

    /// Returns whether more may leave, after checking who is late if necessary.
    fn has_room(&mut self, window: Window) -> bool {
        if !self.fits(window) {
            self.look(host::now());
        }
        self.fits(window)
    }

    fn fits(&self, window: Window) -> bool {
        match window {
            Window::Wide(wide) => self.on_their_way.prompt() < wide,
            // If the link itself is slow, everybody is late, and that must not hold up anyone else.
            Window::Narrow => self.on_their_way.moving() < NARROW_WINDOW_BYTES,
        }
    }

    /// Returns whether payloads wait for others, with nothing expected to arrive that would make them go on.
    fn waits(&self, window: Window) -> bool {
        let goes_on_wide = |to: &ReceiverId| {
            self.receivers.get(to).is_some_and(|queue| !queue.has_turns && !queue.ready.is_empty())
        };
        !self.turns.is_empty() && !self.fits(window)
            || matches!(window, Window::Narrow) && self.capped.iter().any(goes_on_wide)
    }

    /// Checks which receivers are late, unless that was done just now.
    fn look(&mut self, now: Instant) {
        if self.looked.is_none_or(|looked| now >= looked + LATE_AFTER) {
            self.looked = Some(now);
            self.streams.values_mut().for_each(|stream| stream.on_its_way.look(now, &mut self.on_their_way));
        }
    }

    #[must_use = "it is to be dropped without the lock"]
    fn remove(&mut self, id: StreamId) -> Option<Stream> {
        let mut stream = self.streams.remove(&id)?;
        let was_full = self.on_their_way.is_full();
        let mut is_last_of_two = false;
        let on_its_way = stream.on_its_way.arrives(usize::MAX, &mut self.on_their_way);
        let to = stream.to;
        if let Some(queue) = self.receivers.get_mut(&to) {
            queue.on_their_way -= on_its_way;
            // A call that is sent again has the same id, and must not get two turns.
            queue.ready.retain(|ready| *ready != id);
            queue.streams -= 1;
            if queue.streams == 0 {
                if queue.has_turns {
                    self.turns.retain(|turn| *turn != to);
                }
                self.receivers.remove(&to);
                is_last_of_two = self.receivers.len() == 1;
            }
        }
        if was_full && !self.on_their_way.is_full() || is_last_of_two {
            // The others may now have more on their way.
            self.uncap();
        }
        self.give_turns(to);
        Some(stream)
    }
}

#[cfg(test)]
mod tests;
