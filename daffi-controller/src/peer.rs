//! A connection's side of the controller: takes in bytes or frames and calls the router.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use daffi_core::{
    controller::{FramePort, PortError},
    frame::{Frame, ProtocolError, Question},
    limits::{FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX},
    reactor::Connection,
};
use smallvec::SmallVec;

use crate::{
    hub::{Hub, State},
    router::{Now, PeerId},
};

/// A node behind a socket.
#[derive(Debug)]
pub(crate) struct SocketPeer {
    pub(crate) hub: Arc<Hub>,
    /// `None` once the connection has been closed from this side. Bytes that still come are then discarded:
    /// if they were left unread, the operating system would drop our last frame along with them.
    pub(crate) peer: Option<PeerId>,
    pub(crate) welcomed: bool,
    /// Which of the controller's reactors it is on.
    pub(crate) reactor: usize,
}

/// A node of this process.
#[derive(Debug)]
pub(crate) struct MemoryPeer {
    pub(crate) hub: Arc<Hub>,
    pub(crate) peer: PeerId,
    /// Whether others see it, and may therefore come in.
    joined: AtomicBool,
}

impl Connection for SocketPeer {
    fn received(&mut self, batch: &Bytes) -> Result<usize, String> {
        let Some(peer) = self.peer else { return Ok(batch.len()) };
        let mut decoded = Decoded { batch, frames: SmallVec::new(), error: None, at: 0, more: true };
        loop {
            decoded.go_on(self.welcomed);
            if self.welcomed && self.hub.handle.welcomes_guests() && decoded.asks() {
                // A guest leads only while it waits itself, so it is not there for others.
                self.hub.handle.welcome_guests(false);
            }
            let welcomed = &mut self.welcomed;
            let route = |state: &mut State, now: Now| {
                for frame in &decoded.frames {
                    state.router.handle(peer, frame, now, &mut state.ports);
                }
                if let Some(error) = &decoded.error {
                    state.router.misbehaved(peer, &error.to_string(), now, &mut state.ports);
                }
                if !*welcomed {
                    *welcomed = state.router.is_welcomed(peer);
                }
                state.ports.is_open(peer)
            };
            if decoded.more {
                self.hub.with_more_to_come(route);
            } else if self.hub.with_on_reactor(route) {
                return Ok(decoded.at);
            } else {
                self.peer = None;
                return Ok(batch.len());
            }
        }
    }

    fn closed(&mut self, reason: &str) {
        if let Some(peer) = self.peer.take() {
            self.hub.disconnected(peer, reason);
        }
        self.hub.with(|state, _| state.ports.socket_closed(self.reactor));
    }
}

/// Frames that are passed to the router together. They are decoded before the lock is taken, so that several
/// threads can decode at the same time.
struct Decoded<'a> {
    batch: &'a Bytes,
    frames: SmallVec<[Frame<'a>; FRAMES_AT_A_TIME]>,
    /// The error if the bytes after them are not a frame.
    error: Option<ProtocolError>,
    /// The position after them.
    at: usize,
    /// Whether there may be more.
    more: bool,
}

/// How many frames are routed under one hold of the lock, which takes a few microseconds.
const FRAMES_AT_A_TIME: usize = 32;

impl<'a> Decoded<'a> {
    /// Whether any of them is a call or a question.
    fn asks(&self) -> bool {
        self.frames.iter().any(|frame| matches!(frame, Frame::Request(_) | Frame::Ask { .. }))
    }

    /// Decodes the next frames.
    fn go_on(&mut self, welcomed: bool) {
        // What a stranger may send next depends on the outcome of its previous frame.
        let (limit, count_max) =
            if welcomed { (FRAME_BYTES_MAX, FRAMES_AT_A_TIME) } else { (HANDSHAKE_BYTES_MAX, 1) };
        self.frames.clear();
        while self.more && self.frames.len() < count_max {
            match Frame::decode(self.batch, self.at, limit) {
                Ok(Some((frame, next))) => {
                    self.frames.push(frame);
                    self.at = next;
                    self.more = next < self.batch.len();
                }
                Ok(None) => self.more = false,
                Err(error) => {
                    self.error = Some(error);
                    self.more = false;
                }
            }
        }
    }
}

impl MemoryPeer {
    pub(crate) fn new(hub: Arc<Hub>, peer: PeerId) -> Self {
        Self { hub, peer, joined: AtomicBool::new(false) }
    }

    fn route(&self, frame: &Frame<'_>, state: &mut State, now: Now) -> Result<(), PortError> {
        if !state.ports.is_open(self.peer) {
            return Err(PortError::Closed);
        }
        if let Frame::Ask { question: Question::Schedule(_), .. } = frame {
            // Nor would a guest be there for tasks that come due.
            self.hub.handle.welcome_guests(false);
        }
        state.router.handle(self.peer, frame, now, &mut state.ports);
        if !self.joined.load(Ordering::Relaxed) && state.router.has_joined(self.peer) {
            self.joined.store(true, Ordering::Relaxed);
            self.hub.open();
        }
        Ok(())
    }
}

impl FramePort for MemoryPeer {
    fn send(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        self.hub.with(|state, now| self.route(frame, state, now))
    }

    fn push(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        self.hub.with_more_to_come(|state, now| self.route(frame, state, now))
    }

    fn flush(&self) {
        self.hub.with(|_, _| ());
    }

    fn close(&self, reason: &str) {
        self.hub.open();
        self.hub.disconnected(self.peer, reason);
    }
}

impl Drop for MemoryPeer {
    fn drop(&mut self) {
        self.close("the node was dropped");
    }
}
