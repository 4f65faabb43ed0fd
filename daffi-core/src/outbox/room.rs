//! Events about room in a socket's buffer, asked for while somebody waits for it.

use std::{io, sync::Arc};

use mio::{Interest, Registry, Token};

use crate::{sync::Mutex, transport::Stream};

/// What to tell a reactor's poll about one stream.
///
/// Whenever its peer has read, a UNIX socket has more room, and there is an event if anybody has asked for one. Asked for
/// all the time, each frame would wake its sender once more when it arrives, for nothing. So it is asked for when the kernel
/// has refused to take more, and given up when there is such an event while nobody waits.
#[derive(Debug)]
pub(crate) struct Room {
    registry: Arc<Registry>,
    token: Token,
    watched: Mutex<bool>,
}

#[cfg(unix)]
impl Room {
    /// What a stream is registered for.
    pub(crate) const INTERESTS: Interest = Interest::READABLE;

    pub(crate) fn new(registry: Arc<Registry>, token: Token) -> Self {
        Self { registry, token, watched: Mutex::new(false) }
    }

    /// Asks for an event as soon as there is room; at once if there is some already.
    ///
    /// # Errors
    /// What the operating system says.
    pub(crate) fn watch(&self, stream: &Stream) -> io::Result<()> {
        let mut watched = self.watched.lock();
        if !*watched {
            stream.set_interests(&self.registry, self.token, Interest::READABLE | Interest::WRITABLE)?;
            *watched = true;
        }
        Ok(())
    }

    /// There was an event for nobody: asks for no more of them, unless somebody waits by now.
    pub(crate) fn ignore(&self, stream: &Stream, is_waited_for: impl Fn() -> bool) {
        let mut watched = self.watched.lock();
        // Whoever begins to wait after this look finds the lock taken, and asks again.
        if *watched && !is_waited_for() {
            *watched = stream.set_interests(&self.registry, self.token, Self::INTERESTS).is_err();
        }
    }
}

/// Elsewhere a stream has to be its caller's alone for that, and is not. So events about room come all the time.
#[cfg(not(unix))]
impl Room {
    pub(crate) const INTERESTS: Interest = Interest::READABLE.add(Interest::WRITABLE);

    pub(crate) fn new(registry: Arc<Registry>, token: Token) -> Self {
        Self { registry, token, watched: Mutex::new(true) }
    }

    pub(crate) fn watch(&self, _: &Stream) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn ignore(&self, _: &Stream, _: impl Fn() -> bool) {}
}
