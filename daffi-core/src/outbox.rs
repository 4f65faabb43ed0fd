//! The sending side of a connection, shared by every thread that has frames for it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{
    controller::{FramePort, PortError},
    frame::Frame,
    queue::{Lane, OutQueue},
    transport::Stream,
};

/// Frames on their way into a socket.
///
/// Any thread pushes; [`flush`](Self::flush) writes at once unless another thread is writing already, which then
/// takes along what was pushed meanwhile. So a lone frame leaves in its own thread, and many leave together.
#[derive(Debug)]
pub struct Outbox {
    stream: Stream,
    state: Mutex<State>,
    /// What is being written. Whoever holds the lock writes.
    writing: Mutex<Lane>,
    /// The kernel takes no more for now; the reactor flushes when it does again.
    blocked: AtomicBool,
    bytes_max: usize,
    budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct State {
    queue: OutQueue,
    closed: bool,
    /// Close once the queue is empty.
    finishing: bool,
}

/// Frames for one outbox that are going to be queued together, with one look at its lock and budget for all of them.
#[derive(Debug, Default)]
pub struct Batch {
    queue: OutQueue,
    /// How many bytes waited in the outbox before the first of these frames.
    before: usize,
}

/// How many bytes wait in all outboxes that share it.
#[derive(Debug)]
pub struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    /// A budget of `max` bytes.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }

    /// How many bytes wait now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// How far a write got.
enum Written {
    All,
    Blocked,
    Over,
}

/// How much more than its limit a queue takes of frames that cannot be refused, such as replies. Beyond it the peer
/// does not read at all, and the connection is closed.
const MUST_FACTOR: usize = 4;

impl Outbox {
    pub(crate) fn new(stream: Stream, bytes_max: usize, budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            stream,
            state: Mutex::default(),
            writing: Mutex::default(),
            blocked: AtomicBool::new(false),
            bytes_max,
            budget,
        })
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Queues a frame without writing it, unless the queue is at its limit.
    ///
    /// # Errors
    /// The frame was not taken, see [`PortError`].
    pub fn try_push(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        self.push_within(frame, self.bytes_max, self.budget.max)
    }

    /// Queues a frame that nobody could send again, such as a reply: beyond the limit too, for a while. A peer that
    /// has not read for that long is disconnected.
    ///
    /// # Errors
    /// The connection is closed, or was closed just now.
    pub fn push(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        let pushed = self.push_within(frame, self.bytes_max.saturating_mul(MUST_FACTOR), usize::MAX);
        pushed.map_err(|error| self.give_up_if_full(error))
    }

    /// Ends the connection of a peer that has left a frame without room which it must not miss.
    fn give_up_if_full(&self, error: PortError) -> PortError {
        if error == PortError::Full {
            // Looked up first: the arguments of a log line live while a subscriber works on it.
            let bytes = self.len();
            tracing::warn!(bytes, "a peer does not read: closing its connection");
            self.close();
        }
        PortError::Closed
    }

    /// Adds a frame to a batch for this outbox, unless the queue would be at its limit.
    ///
    /// # Errors
    /// The frame was not taken, see [`PortError`].
    pub fn try_add(&self, batch: &mut Batch, frame: &Frame<'_>) -> Result<(), PortError> {
        self.add_within(batch, frame, self.bytes_max, self.budget.max)
    }

    /// Adds a frame that nobody could send again to a batch for this outbox, as [`push`](Self::push) queues it.
    ///
    /// # Errors
    /// The connection is closed, or was closed just now.
    pub fn add(&self, batch: &mut Batch, frame: &Frame<'_>) -> Result<(), PortError> {
        let added = self.add_within(batch, frame, self.bytes_max.saturating_mul(MUST_FACTOR), usize::MAX);
        added.map_err(|error| self.give_up_if_full(error))
    }

    /// Queues the frames of a batch, which is empty then. Those for a connection that is closed are dropped.
    pub fn push_all(&self, batch: &mut Batch) {
        let mut state = self.state.lock();
        if state.closed || state.finishing {
            batch.queue = OutQueue::default();
        } else {
            self.budget.used.fetch_add(batch.queue.len(), Ordering::Relaxed);
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
            batch.before = state.queue.len();
        }
        let added = batch.queue.len();
        if batch.before + added >= bytes_max || self.budget.used().saturating_add(added) >= total_max {
            return Err(PortError::Full);
        }
        batch.queue.push(frame);
        Ok(())
    }

    fn push_within(&self, frame: &Frame<'_>, bytes_max: usize, total_max: usize) -> Result<(), PortError> {
        let mut state = self.state.lock();
        if state.closed || state.finishing {
            return Err(PortError::Closed);
        }
        if state.queue.len() >= bytes_max || self.budget.used() >= total_max {
            return Err(PortError::Full);
        }
        let grown = state.queue.push(frame);
        self.budget.used.fetch_add(grown, Ordering::Relaxed);
        Ok(())
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.state.lock().queue.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the connection takes no more frames.
    pub fn is_closed(&self) -> bool {
        let state = self.state.lock();
        state.closed || state.finishing
    }

    /// Whether the kernel has taken everything.
    pub fn is_flushed(&self) -> bool {
        self.is_empty() && self.writing.try_lock().is_some_and(|lane| lane.is_empty())
    }

    /// Writes what waits, until there is nothing or the kernel takes no more.
    pub fn flush(&self) {
        loop {
            // Whoever is writing looks again once it has let go, so nothing is left behind.
            let Some(mut lane) = self.writing.try_lock() else { return };
            let written = self.write(&mut lane);
            drop(lane);
            let again = match written {
                Written::Over => false,
                Written::Blocked => !self.blocked.load(Ordering::SeqCst),
                Written::All => {
                    let state = self.state.lock();
                    !state.queue.is_empty() || (state.finishing && !state.closed)
                }
            };
            if !again {
                return;
            }
        }
    }

    /// The kernel takes more again.
    pub(crate) fn writable(&self) {
        self.blocked.store(false, Ordering::SeqCst);
        self.flush();
    }

    fn write(&self, lane: &mut Lane) -> Written {
        loop {
            if lane.is_empty() && !self.take_next(lane) {
                return Written::Over;
            }
            if lane.is_empty() {
                return Written::All;
            }
            let (slices, count) = lane.slices();
            match self.stream.write_vectored(&slices[..count]) {
                Ok(written) => lane.advance(written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Only a second refusal, after the flag is up, is sure to be followed by `writable`.
                    if self.blocked.swap(true, Ordering::SeqCst) {
                        return Written::Blocked;
                    }
                }
                Err(_) => {
                    // The reader sees the end of the stream and reports it.
                    self.close();
                    return Written::Over;
                }
            }
        }
    }

    /// Moves what goes next into `lane`; says whether the connection goes on.
    fn take_next(&self, lane: &mut Lane) -> bool {
        let mut state = self.state.lock();
        let before = state.queue.len();
        state.queue.next(lane);
        self.budget.used.fetch_sub(before - state.queue.len(), Ordering::Relaxed);
        if lane.is_empty() && state.finishing && !state.closed {
            state.closed = true;
            self.stream.shutdown_write();
        }
        !(lane.is_empty() && state.closed)
    }

    /// Ends the connection at once; what waits is dropped.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let dropped = state.queue.len();
        state.queue = OutQueue::default();
        self.budget.used.fetch_sub(dropped, Ordering::Relaxed);
        drop(state);
        self.stream.shutdown();
    }

    /// Ends the connection once what waits has been written. Nothing more is taken.
    pub fn finish(&self) {
        self.state.lock().finishing = true;
        self.flush();
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.state.get_mut().queue.len(), Ordering::Relaxed);
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
