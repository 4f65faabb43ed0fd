//! A connection's side of the controller: bytes or frames in, the router called.

use std::sync::Arc;

use bytes::Bytes;
use daffi_core::{
    controller::{FramePort, PortError},
    frame::Frame,
    limits::{FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX},
    reactor::Connection,
};

use crate::{hub::Hub, router::PeerId};

/// A node behind a socket.
#[derive(Debug)]
pub(crate) struct SocketPeer {
    pub(crate) hub: Arc<Hub>,
    /// `None` once the connection is over here, and bytes that still come are thrown away: if they were left unread,
    /// the operating system would drop our last frame along with them.
    pub(crate) peer: Option<PeerId>,
    pub(crate) welcomed: bool,
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
        let welcomed = &mut self.welcomed;
        let (used, open) = self.hub.with_on_reactor(|state, now| {
            let mut at = 0;
            loop {
                let limit = if *welcomed { FRAME_BYTES_MAX } else { HANDSHAKE_BYTES_MAX };
                match Frame::decode(batch, at, limit) {
                    Ok(Some((frame, next))) => {
                        state.router.handle(peer, &frame, now, &mut state.ports);
                        at = next;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        state.router.misbehaved(peer, &error.to_string(), now, &mut state.ports);
                        break;
                    }
                }
                if !*welcomed {
                    *welcomed = state.router.is_welcomed(peer);
                }
            }
            (at, state.ports.is_open(peer))
        });
        if open {
            return Ok(used);
        }
        self.peer = None;
        Ok(batch.len())
    }

    fn closed(&mut self, reason: &str) {
        if let Some(peer) = self.peer.take() {
            self.hub.disconnected(peer, reason);
        }
        self.hub.with(|state, _| state.ports.open -= 1);
    }
}

impl FramePort for MemoryPeer {
    fn send(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        let sent = self.hub.with(|state, now| {
            if !state.ports.is_open(self.peer) {
                return Err(PortError::Closed);
            }
            state.router.handle(self.peer, frame, now, &mut state.ports);
            Ok(())
        });
        // These may bring forward the time at which the router wants a turn.
        if matches!(frame, Frame::Hello(_) | Frame::Ask { .. }) {
            self.hub.handle.wake();
        }
        sent
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
