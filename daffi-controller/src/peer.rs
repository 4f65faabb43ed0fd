//! A connection's side of the controller: bytes or frames in, the router called.

use std::sync::Arc;

use bytes::Bytes;
use daffi_core::{
    controller::{FramePort, PortError},
    frame::{Frame, ProtocolError},
    limits::{FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX},
    reactor::Connection,
};

use crate::{
    hub::{Hub, State},
    router::{Now, PeerId},
};

/// A node behind a socket.
#[derive(Debug)]
pub(crate) struct SocketPeer {
    pub(crate) hub: Arc<Hub>,
    /// `None` once the connection is over here, and bytes that still come are thrown away: if they were left unread,
    /// the operating system would drop our last frame along with them.
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
}

impl Connection for SocketPeer {
    fn received(&mut self, batch: &Bytes) -> Result<usize, String> {
        let Some(peer) = self.peer else { return Ok(batch.len()) };
        let mut used = 0;
        loop {
            let (decoded, next) = Decoded::new(batch, used, self.welcomed);
            let more = decoded.more;
            let welcomed = &mut self.welcomed;
            let route = |state: &mut State, now: Now| {
                for frame in decoded.frames.iter().map_while(Option::as_ref) {
                    state.router.handle(peer, frame, now, &mut state.ports);
                }
                if let Some(error) = decoded.error {
                    state.router.misbehaved(peer, &error.to_string(), now, &mut state.ports);
                }
                if !*welcomed {
                    *welcomed = state.router.is_welcomed(peer);
                }
                state.ports.is_open(peer)
            };
            let open = if more { self.hub.with_more_to_come(route) } else { self.hub.with_on_reactor(route) };
            used = next;
            if !more {
                if open {
                    return Ok(used);
                }
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

/// Frames that are passed to the router together. They are decoded before the lock is taken for them, so that several
/// threads can do so at a time.
struct Decoded<'a> {
    /// Those that there are come first.
    frames: [Option<Frame<'a>>; FRAMES_AT_A_TIME],
    /// What comes behind them is no frame.
    error: Option<ProtocolError>,
    /// There may be more.
    more: bool,
}

/// How many frames are routed while the lock is held, which is for a few microseconds.
const FRAMES_AT_A_TIME: usize = 32;

impl<'a> Decoded<'a> {
    /// Decodes what begins at `at`, and says where the rest does.
    fn new(batch: &'a Bytes, mut at: usize, welcomed: bool) -> (Self, usize) {
        let mut decoded = Self { frames: [const { None }; FRAMES_AT_A_TIME], error: None, more: true };
        // What a stranger may send depends on what became of the frame before.
        let (limit, count) =
            if welcomed { (FRAME_BYTES_MAX, FRAMES_AT_A_TIME) } else { (HANDSHAKE_BYTES_MAX, 1) };
        for place in &mut decoded.frames[..count] {
            match Frame::decode(batch, at, limit) {
                Ok(Some((frame, next))) => {
                    *place = Some(frame);
                    at = next;
                }
                Ok(None) => {
                    decoded.more = false;
                    break;
                }
                Err(error) => {
                    decoded.error = Some(error);
                    decoded.more = false;
                    break;
                }
            }
        }
        decoded.more &= at < batch.len();
        (decoded, at)
    }
}

impl MemoryPeer {
    fn route(&self, frame: &Frame<'_>, state: &mut State, now: Now) -> Result<(), PortError> {
        if !state.ports.is_open(self.peer) {
            return Err(PortError::Closed);
        }
        state.router.handle(self.peer, frame, now, &mut state.ports);
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
        self.hub.disconnected(self.peer, reason);
    }
}

impl Drop for MemoryPeer {
    fn drop(&mut self) {
        self.close("the node was dropped");
    }
}
