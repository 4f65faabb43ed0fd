//! The sending side of a connection, shared by all threads that have frames for it.

use std::{
    io::{self, IoSlice},
    sync::Arc,
};

pub(crate) use room::Room;

use crate::{
    controller::{FramePort, PortError},
    frame::Frame,
    queue::{Lane, OutQueue, Spent},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    transport::Stream,
};

/// Frames on their way into a socket.
///
/// Any thread may push; [`flush`](Self::flush) writes immediately unless another thread is already writing,
/// which then also writes what was pushed in the meantime. So a single frame is written by its own thread,
/// and many are written together.
#[derive(Debug)]
pub struct Outbox {
    stream: Stream,
    /// Requests events about room; `None` if the outbox is told of room without them.
    room: Option<Room>,
    state: Mutex<State>,
    /// What is being written. The thread that holds the lock writes.
    writing: Mutex<Lane>,
    /// How many bytes are being written, as reported by the thread that writes.
    unwritten: AtomicUsize,
    /// How many bytes the kernel has taken.
    written: AtomicU64,
    /// The kernel takes no more for now; the reactor flushes once it does.
    blocked: AtomicBool,
    /// The kernel has taken nothing for a while.
    stalled: AtomicBool,
    /// The outbox was closed because its peer does not read.
    slow: AtomicBool,
    bytes_max: usize,
    budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct State {
    queue: OutQueue,
    closed: bool,
    /// Close once the queue is empty.
    finishing: bool,
    /// The kernel has been asked for more room because large payloads wait.
    is_wide: bool,
    /// What waited when the outbox was closed. Dropping it may run the user's code, so it is dropped without
    /// a lock.
    discarded: OutQueue,
}

/// Frames for one outbox that will be queued together, so that its lock and budget are checked once for all
/// of them.
#[derive(Debug, Default)]
pub struct Batch {
    queue: OutQueue,
    /// How many bytes waited in the outbox before the first of these frames was added.
    before: usize,
}

/// Counts the bytes that wait in all outboxes that share it, including those being written, unless it is
/// unlimited.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    /// Creates a budget of `max` bytes.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    /// Creates an unlimited budget, for which nothing is counted.
    pub fn unlimited() -> Arc<Self> {
        Self::new(usize::MAX)
    }

    /// Returns how many bytes wait now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) {
        if self.max < usize::MAX {
            self.used.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn give_back(&self, bytes: usize) {
        if self.max < usize::MAX {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

mod room;

/// How far a write got.
enum Written {
    All,
    /// Some of it, including large bodies that can now be dropped.
    Some,
    Blocked,
    Over,
    /// Nobody would report new room.
    Deaf(io::Error),
}

/// How many times its limit a queue may hold in frames that cannot be refused, such as replies, if its peer
/// has not read for a while. Beyond that, the connection is closed. A peer that reads, however slowly, may
/// have as much waiting as all queues together have room for: these are answers to its own calls.
const MUST_FACTOR: usize = 4;

/// The part of its limit that a queue may hold once all queues together have reached theirs. For frames that
/// can be refused, this applies only if the peer takes what it is sent: it is more than such a peer has
/// waiting.
const FLOOR_PART: usize = 16;

/// How many bytes of written bodies a thread keeps, at most until it is done writing.
const SPENT_BYTES_KEPT: usize = 1024 * 1024;

/// The part of their limit by which all queues together may exceed it. Beyond that, a queue whose peer takes
/// nothing gets nothing more.
const MUST_TOTAL_PART: usize = 4;

impl Outbox {
    pub(crate) fn new(
        stream: Stream,
        room: Option<Room>,
        bytes_max: usize,
        budget: Arc<Budget>,
    ) -> Arc<Self> {
        Arc::new(Self {
            stream,
            room,
            state: Mutex::default(),
            writing: Mutex::default(),
            unwritten: AtomicUsize::new(0),
            written: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            bytes_max,
            budget,
        })
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Returns how many bytes may wait in it, except for frames that cannot be refused.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// Returns whether its socket is a UNIX socket.
    pub fn is_local(&self) -> bool {
        self.stream.is_local()
    }

    /// Queues a frame without writing it, unless the queue is at its limit.
    ///
    /// # Errors
    /// The frame was not accepted, see [`PortError`].
    pub fn try_push(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        let (bytes_max, total_max) = self.may_max(0);
        self.push_within(frame, bytes_max, total_max)
    }

    /// Queues a frame that cannot be sent again, such as a reply, even beyond the limit. If the peer has not
    /// read for a while and too much waits, it is disconnected.
    ///
    /// # Errors
    /// The connection is closed, or has just been closed.
    pub fn push(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        let pushed = self.push_within(frame, self.must_bytes_max(), usize::MAX);
        pushed.map_err(|error| self.give_up_if_full(error))
    }

    /// Ends the connection if there is no room for a frame that its peer must not miss.
    fn give_up_if_full(&self, error: PortError) -> PortError {
        if error == PortError::Full {
            self.slow.store(true, Ordering::Relaxed);
            // The sender may hold locks, so dropping what waits is left to the reactor, which notices the
            // end.
            self.shut();
        }
        PortError::Closed
    }

    /// Adds a frame to a batch for this outbox, unless the queue would be at its limit.
    ///
    /// # Errors
    /// The frame was not accepted, see [`PortError`].
    pub fn try_add(&self, batch: &mut Batch, frame: &Frame<'_>) -> Result<(), PortError> {
        let (bytes_max, total_max) = self.may_max(batch.queue.len());
        self.add_within(batch, frame, bytes_max, total_max)
    }

    /// Adds a frame that cannot be sent again to a batch for this outbox, under the same limits as
    /// [`push`](Self::push).
    ///
    /// # Errors
    /// The connection is closed, or has just been closed.
    pub fn add(&self, batch: &mut Batch, frame: &Frame<'_>) -> Result<(), PortError> {
        let added = self.add_within(batch, frame, self.must_bytes_max(), usize::MAX);
        added.map_err(|error| self.give_up_if_full(error))
    }

    /// Queues the frames of a batch and leaves it empty. If the connection is closed, they are dropped by the
    /// next [`flush`](Self::flush).
    pub fn push_all(&self, batch: &mut Batch) {
        let mut state = self.state.lock();
        if state.closed || state.finishing {
            state.discarded.append(&mut batch.queue);
        } else {
            self.budget.take(batch.queue.len());
            state.queue.append(&mut batch.queue);
        }
    }

    fn add_within(
        &self,
        batch: &mut Batch,
        frame: &Frame<'_>,
        bytes_max: usize,
        total_max: usize,
    ) -> Result<(), PortError> {
        if batch.queue.is_empty() {
            let state = self.state.lock();
            if state.closed || state.finishing {
                return Err(PortError::Closed);
            }
            batch.before = state.queue.len() + self.unwritten.load(Ordering::Relaxed);
        }
        let added = batch.queue.len();
        if batch.before + added >= bytes_max || self.budget.used().saturating_add(added) >= total_max {
            return Err(PortError::Full);
        }
        batch.queue.push(frame, self.blocked.load(Ordering::Relaxed));
        Ok(())
    }

    /// Returns how many bytes may wait, here and in all queues together, before a frame is refused, with
    /// `added` bytes not counted yet.
    ///
    /// Peers that do not read can use up the whole budget. Those that do read still get a little.
    fn may_max(&self, added: usize) -> (usize, usize) {
        let Budget { max, .. } = *self.budget;
        if self.budget.used().saturating_add(added) < max || self.blocked.load(Ordering::Relaxed) {
            (self.bytes_max, max)
        } else {
            (self.bytes_max / FLOOR_PART, max.saturating_add(max / MUST_TOTAL_PART))
        }
    }

    /// Returns how many bytes may wait before a frame that cannot be refused ends the connection.
    fn must_bytes_max(&self) -> usize {
        let Budget { max, .. } = *self.budget;
        let used = self.budget.used();
        if used < max {
            let waits = self.bytes_max.saturating_mul(MUST_FACTOR);
            if self.stalled.load(Ordering::Relaxed) { waits } else { waits.max(max) }
        } else if used < max.saturating_add(max / MUST_TOTAL_PART) || !self.blocked.load(Ordering::Relaxed) {
            self.bytes_max / FLOOR_PART
        } else {
            0
        }
    }

    fn push_within(&self, frame: &Frame<'_>, bytes_max: usize, total_max: usize) -> Result<(), PortError> {
        let mut state = self.state.lock();
        if state.closed || state.finishing {
            return Err(PortError::Closed);
        }
        let waiting = state.queue.len() + self.unwritten.load(Ordering::Relaxed);
        if waiting >= bytes_max || self.budget.used() >= total_max {
            return Err(PortError::Full);
        }
        let grown = state.queue.push(frame, self.blocked.load(Ordering::Relaxed));
        self.budget.take(grown);
        Ok(())
    }

    /// Returns how many bytes wait, including those being written.
    pub fn len(&self) -> usize {
        let state = self.state.lock();
        state.queue.len() + self.unwritten.load(Ordering::Relaxed)
    }

    /// Returns whether the kernel takes no more for now. Once it does, the reactor writes.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Returns how many bytes the kernel has taken so far, if it is blocked.
    pub(crate) fn progress(&self) -> Option<u64> {
        self.blocked.load(Ordering::Relaxed).then(|| self.written.load(Ordering::Relaxed))
    }

    /// Records whether the kernel has taken nothing since the last check although there was something to
    /// take.
    pub(crate) fn set_stalled(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::Relaxed);
    }

    /// Returns whether it was closed because its peer does not read.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }

    /// Returns whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether the connection takes no more frames.
    pub fn is_closed(&self) -> bool {
        let state = self.state.lock();
        state.closed || state.finishing
    }

    /// Returns whether the kernel has taken everything that it will ever take.
    pub fn is_flushed(&self) -> bool {
        self.state.lock().closed
            || self.is_empty() && self.writing.try_lock().is_some_and(|lane| lane.is_empty())
    }

    /// Writes what waits, until nothing is left or the kernel takes no more.
    pub fn flush(&self) {
        // Dropped without the lock, since a body may be the user's and its `Drop` may call into this outbox;
        // and last, since that may wait for what others have queued in the meantime.
        let mut spent = Spent::default();
        loop {
            // The thread that is writing looks again after releasing the lock, so nothing is left behind.
            let Some(mut lane) = self.writing.try_lock() else { return };
            let result = self.write(&mut lane);
            spent.append(lane.take_spent());
            drop(lane);
            let again = match result {
                Written::Some => true,
                Written::Over => {
                    self.discard_rest();
                    false
                }
                Written::Deaf(error) => {
                    tracing::error!(%error, "cannot wait for a socket that takes no more");
                    self.close();
                    false
                }
                Written::Blocked if self.state.lock().closed => {
                    // The thread that closed it found the lane locked by this one.
                    self.discard_rest();
                    false
                }
                Written::Blocked => !self.blocked.load(Ordering::SeqCst),
                Written::All => {
                    let state = self.state.lock();
                    let ends = state.finishing && !state.closed;
                    !state.queue.is_empty() || !state.discarded.is_empty() || ends
                }
            };
            if !again {
                return;
            }
            if spent.len() >= SPENT_BYTES_KEPT {
                spent = Spent::default();
            }
        }
    }

    /// Continues writing once the kernel takes more again.
    pub(crate) fn writable(&self) {
        if self.blocked.swap(false, Ordering::SeqCst) {
            self.flush();
        } else if let Some(room) = &self.room {
            room.ignore(&self.stream, || self.blocked.load(Ordering::SeqCst));
        }
    }

    fn write(&self, lane: &mut Lane) -> Written {
        loop {
            if lane.is_empty() && lane.has_spent() {
                return Written::Some;
            }
            if lane.is_empty() && !self.take_next(lane) {
                return Written::Over;
            }
            if lane.is_empty() {
                return Written::All;
            }
            let written = match lane.piece() {
                Some(piece) => self.stream.write_vectored(&[IoSlice::new(piece)]),
                None => {
                    let (slices, count) = lane.slices();
                    self.stream.write_vectored(&slices[..count])
                }
            };
            match written {
                Ok(written) => {
                    lane.advance(written);
                    self.has_left(lane, written);
                    self.written.fetch_add(written as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.widen() => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Only a second refusal, after the flag is set, is sure to be followed by `writable`.
                    if self.blocked.swap(true, Ordering::SeqCst) {
                        return Written::Blocked;
                    }
                    if let Some(Err(error)) = self.room.as_ref().map(|room| room.watch(&self.stream)) {
                        return Written::Deaf(error);
                    }
                }
                Err(_) => {
                    // Nothing can be written any more. The reader sees the end of the stream and reports it.
                    self.shut();
                    return Written::Over;
                }
            }
        }
    }

    /// Lets the kernel buffer more for the peer, once, if large payloads wait. Returns whether there may be
    /// room now.
    fn widen(&self) -> bool {
        let mut state = self.state.lock();
        let widens = !state.is_wide && state.queue.has_chunks();
        state.is_wide |= widens;
        widens && self.stream.widen()
    }

    /// Moves what goes next into `lane`; returns whether the connection goes on.
    fn take_next(&self, lane: &mut Lane) -> bool {
        let mut state = self.state.lock();
        state.queue.next(lane);
        self.unwritten.store(lane.len(), Ordering::Relaxed);
        if lane.is_empty() && state.finishing && !state.closed {
            state.closed = true;
            self.stream.shutdown_write();
        }
        !(lane.is_empty() && state.closed)
    }

    /// Records that `bytes` bytes of `lane` no longer wait.
    fn has_left(&self, lane: &Lane, bytes: usize) {
        self.unwritten.store(lane.len(), Ordering::Relaxed);
        self.budget.give_back(bytes);
    }

    /// Ends the connection at once and drops what waits.
    pub fn close(&self) {
        self.shut();
        self.discard_rest();
    }

    /// Ends the connection at once. What waits is no longer counted, and is dropped by the next flush or
    /// close.
    fn shut(&self) {
        let mut state = self.state.lock();
        let State { queue, discarded, closed, .. } = &mut *state;
        *closed = true;
        self.budget.give_back(queue.len());
        discarded.append(queue);
        drop(state);
        self.stream.shutdown();
    }

    /// Drops, without a lock, what waited and what was being written when the connection closed. A thread
    /// that is still writing notices the end and drops the rest itself.
    fn discard_rest(&self) {
        let discarded = std::mem::take(&mut self.state.lock().discarded);
        let mut spent = discarded.spend();
        if let Some(mut lane) = self.writing.try_lock() {
            let rest = std::mem::take(&mut *lane);
            self.has_left(&lane, rest.len());
            spent.append(rest.spend());
        }
    }

    /// Ends the connection once what waits has been written. No more frames are accepted.
    pub fn finish(&self) {
        self.state.lock().finishing = true;
        self.flush();
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let left = self.state.get_mut().queue.len() + self.writing.get_mut().len();
        self.budget.give_back(left);
    }
}

impl FramePort for Outbox {
    fn send(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        self.try_push(frame)?;
        self.flush();
        Ok(())
    }

    fn close(&self, _reason: &str) {
        self.finish();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::{io::Read as _, os::unix::net::UnixStream};

    use super::*;

    fn pair(bytes_max: usize, budget: &Arc<Budget>) -> (Arc<Outbox>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Outbox::new(Stream::from_unix(ours).unwrap(), None, bytes_max, budget.clone()), theirs)
    }

    #[test]
    fn what_is_being_written_counts_until_the_kernel_has_it() {
        let text = "x".repeat(60_000);
        let frame = Frame::Goodbye { reason: &text };
        let (bytes_max, total_max) = (1 << 20, 1 << 30);
        let budget = Budget::new(total_max);
        let (outbox, mut theirs) = pair(bytes_max, &budget);
        let mut pushed = 0;
        while outbox.try_push(&frame).is_ok() {
            outbox.flush();
            pushed += 60_016;
        }
        let in_kernel = outbox.written.load(Ordering::Relaxed) as usize;
        assert!(in_kernel > 0 && outbox.unwritten.load(Ordering::Relaxed) > 0, "part of a batch is written");
        assert_eq!(outbox.len(), pushed - in_kernel);
        assert!(outbox.len() <= bytes_max + 60_016);
        assert_eq!(budget.used(), outbox.len());

        theirs.read_exact(&mut vec![0; in_kernel]).unwrap();
        outbox.writable();
        assert_eq!(budget.used(), outbox.len());
        assert!(outbox.len() < pushed - in_kernel);

        outbox.close();
        assert_eq!((outbox.len(), budget.used()), (0, 0));
    }

    #[test]
    fn all_queues_together_keep_to_their_limit_whatever_must_go() {
        let text = "x".repeat(10_000);
        let frame = Frame::Goodbye { reason: &text };
        let (bytes_max, total_max) = (1 << 20, 4 << 20);
        let budget = Budget::new(total_max);
        let frozen: Vec<_> = (0..100).map(|_| pair(bytes_max, &budget)).collect();
        let mut most = 0;
        for _ in 0..1000 {
            for (outbox, _) in &frozen {
                let _ = outbox.push(&frame);
                outbox.flush();
                most = most.max(budget.used());
            }
        }
        assert!(most <= total_max + total_max / MUST_TOTAL_PART + 10_016, "{most}");
        assert!(frozen.iter().all(|(outbox, _)| outbox.try_push(&frame).is_err()));
        assert!(frozen.iter().any(|(outbox, _)| outbox.is_slow()));
        let (reads, _theirs) = pair(bytes_max, &budget);
        reads.push(&frame).expect("who reads gets what must go");
        drop((frozen, reads));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn who_reads_gets_a_little_however_much_waits_for_those_who_do_not() {
        let text = "x".repeat(10_000);
        let frame = Frame::Goodbye { reason: &text };
        let (bytes_max, total_max) = (1 << 20, 4 << 20);
        let budget = Budget::new(total_max);
        let frozen: Vec<_> = (0..10).map(|_| pair(bytes_max, &budget)).collect();
        for (outbox, _) in &frozen {
            while outbox.try_push(&frame).is_ok() {
                outbox.flush();
            }
        }
        assert!(budget.used() >= total_max);
        let (reads, mut theirs) = pair(bytes_max, &budget);
        for _ in 0..1000 {
            reads.try_push(&frame).unwrap();
            reads.flush();
            theirs.read_exact(&mut [0; 10_016]).unwrap();
        }
        let mut batch = Batch::default();
        let mut added = 0;
        while reads.try_add(&mut batch, &frame).is_ok() {
            added += 1;
        }
        reads.push_all(&mut batch);
        assert!((1..=bytes_max / FLOOR_PART / 10_016 + 1).contains(&added), "{added}");
        assert_eq!(reads.try_push(&frame), Err(PortError::Full));
    }

    /// Sends a thousand answers of 60 KB to a peer that reads a little now and then, and to one that has
    /// stopped reading.
    #[test]
    fn replies_wait_for_who_reads_and_end_the_connection_of_who_does_not() {
        let text = "x".repeat(60_000);
        let frame = Frame::Goodbye { reason: &text };
        let bytes_max = 256 << 10;
        for reads in [true, false] {
            let (outbox, mut theirs) = pair(bytes_max, &Budget::new(256 << 20));
            outbox.set_stalled(!reads);
            let mut read = 0;
            let pushed = (0..1000).take_while(|number| {
                let pushed = outbox.push(&frame);
                outbox.flush();
                if reads && number % 10 == 0 {
                    read += theirs.read(&mut [0; 4096]).unwrap();
                    outbox.writable();
                }
                pushed.is_ok()
            });
            let pushed = pushed.count();
            assert_eq!(outbox.is_slow(), !reads);
            if reads {
                assert_eq!(pushed, 1000);
                assert!(
                    outbox.len() > MUST_FACTOR * bytes_max,
                    "more than a queue that stands still may have"
                );
                // All of it arrives.
                while !outbox.is_empty() {
                    read += theirs.read(&mut [0; 65_536]).unwrap();
                    outbox.writable();
                }
                outbox.finish();
                read += theirs.read_to_end(&mut Vec::new()).unwrap();
                assert_eq!(read, 1000 * frame.to_bytes().len());
            } else {
                assert!(outbox.is_closed() && pushed < 1000);
            }
        }
    }
}
#[cfg(all(test, shuttle))]
pub(crate) mod interleavings;
