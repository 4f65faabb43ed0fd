//! Threads that push and write, and a reactor that is told of room, in orders chosen by shuttle; see
//! `tests/sync`.
//!
//! These tests find each of these mistakes when planted: `flush` does not look again after releasing the
//! lock, when everything is written or when the kernel refused; `write` treats the first refusal as the last;
//! `finish` closes while frames still wait.

use daffi_test_sync::shuttle::{self, thread};

use super::*;
use crate::{limits::FRAME_BYTES_MAX, sync::Condvar, transport::Stream};

const RUNS: usize = 3_000;

/// The kernel's side of a socket, with room for less than two frames.
#[derive(Debug, Default)]
pub struct Pipe {
    state: Mutex<PipeState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct PipeState {
    /// Bytes that were written and not yet read.
    waiting: Vec<u8>,
    read: Vec<u8>,
    /// A write was refused, so new room will be an event.
    refused: bool,
    /// There is room again, and the reactor has not been told.
    room: bool,
    ended: bool,
    /// Nothing crosses the pipe any more.
    closed: bool,
}

const ROOM_BYTES: usize = 20;

impl Pipe {
    pub(crate) fn write(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        assert!(!state.ended, "it is written to after its end");
        let room = ROOM_BYTES - state.waiting.len();
        if room == 0 {
            state.refused = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let before = state.waiting.len();
        for slice in slices {
            let left = ROOM_BYTES - state.waiting.len();
            state.waiting.extend_from_slice(&slice[..slice.len().min(left)]);
        }
        let written = state.waiting.len() - before;
        drop(state);
        self.changed.notify_all();
        Ok(written)
    }

    pub(crate) fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        (state.ended, state.closed) = (true, true);
        drop(state);
        self.changed.notify_all();
    }

    /// Reads `bytes` bytes, or to the end, and returns all bytes read so far.
    fn read(&self, bytes: usize) -> Vec<u8> {
        let mut state = self.state.lock();
        loop {
            let waiting = std::mem::take(&mut state.waiting);
            if !waiting.is_empty() {
                state.read.extend_from_slice(&waiting);
                state.room |= std::mem::take(&mut state.refused);
                self.changed.notify_all();
            }
            if state.read.len() >= bytes || state.ended {
                (state.ended, state.closed) = (true, true);
                self.changed.notify_all();
                return std::mem::take(&mut state.read);
            }
            self.changed.wait(&mut state);
        }
    }

    /// Waits for the event that there is room; returns `false` if it never comes.
    fn wait_for_room(&self) -> bool {
        let mut state = self.state.lock();
        while !state.room && !state.ended {
            self.changed.wait(&mut state);
        }
        std::mem::take(&mut state.room)
    }
}

/// Creates an outbox with a thread that tells it of room.
fn outbox() -> (Arc<Outbox>, Arc<Pipe>, thread::JoinHandle<()>) {
    let pipe = Arc::new(Pipe::default());
    let outbox = Outbox::new(Stream::Model(pipe.clone()), None, 1 << 20, Budget::new(1 << 20));
    let (told, room) = (outbox.clone(), pipe.clone());
    let teller = thread::spawn(move || {
        while room.wait_for_room() {
            told.writable();
        }
    });
    (outbox, pipe, teller)
}

/// Pushes and writes two frames with these ids; returns how many were accepted.
fn push(outbox: &Arc<Outbox>, ids: [u64; 2]) -> thread::JoinHandle<usize> {
    let outbox = outbox.clone();
    thread::spawn(move || ids.iter().filter(|id| outbox.send(&Frame::Cancel { id: **id }).is_ok()).count())
}

/// Returns the ids of the frames in `bytes`.
fn ids(bytes: Vec<u8>) -> Vec<u64> {
    let bytes = bytes::Bytes::from(bytes);
    let mut at = 0;
    let mut ids = Vec::new();
    while at < bytes.len() {
        let decoded = Frame::decode(&bytes, at, FRAME_BYTES_MAX).unwrap();
        let Some((Frame::Cancel { id }, next)) = decoded else { panic!("{decoded:?}") };
        ids.push(id);
        at = next;
    }
    ids
}

/// Asserts that all ids in `expected` are in `came`, in this order.
fn assert_in_order(came: &[u64], expected: &[u64]) {
    let of_these: Vec<_> = came.iter().copied().filter(|id| expected.contains(id)).collect();
    assert_eq!(of_these, expected, "of {came:?}");
}

#[test]
fn every_frame_is_written_once_and_in_order() {
    let run = || {
        let (outbox, pipe, teller) = outbox();
        let pushes = [push(&outbox, [1, 2]), push(&outbox, [3, 4])];
        // Shuttle reports it if bytes are awaited that never come.
        let came = ids(pipe.read(4 * 16));
        assert_eq!(came.len(), 4);
        assert_in_order(&came, &[1, 2]);
        assert_in_order(&came, &[3, 4]);
        for push in pushes {
            assert_eq!(push.join().unwrap(), 2);
        }
        // What the teller is writing still counts until it is done.
        teller.join().unwrap();
        assert!(outbox.is_empty());
        assert_eq!(outbox.budget.used(), 0);
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

#[test]
fn what_was_taken_before_the_end_is_written() {
    let run = || {
        let (outbox, pipe, teller) = outbox();
        let pushed = push(&outbox, [1, 2]);
        let finished = {
            let outbox = outbox.clone();
            thread::spawn(move || outbox.finish())
        };
        let came = ids(pipe.read(usize::MAX));
        let taken = pushed.join().unwrap();
        assert_eq!(came, &[1, 2][..taken]);
        finished.join().unwrap();
        // What the teller is writing still counts until it is done.
        teller.join().unwrap();
        assert!(outbox.is_closed() && outbox.is_empty());
        assert_eq!(outbox.budget.used(), 0);
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}

#[test]
fn what_closing_drops_is_not_counted() {
    let run = || {
        let (outbox, pipe, teller) = outbox();
        let pushed = push(&outbox, [1, 2]);
        let closed = {
            let outbox = outbox.clone();
            thread::spawn(move || outbox.close())
        };
        pipe.read(usize::MAX);
        pushed.join().unwrap();
        closed.join().unwrap();
        // What the teller is writing still counts until it is done.
        teller.join().unwrap();
        assert!(outbox.is_empty() && outbox.is_closed());
        assert_eq!(outbox.budget.used(), 0);
    };
    shuttle::check_random(run, RUNS);
    shuttle::check_pct(run, RUNS, 3);
}
