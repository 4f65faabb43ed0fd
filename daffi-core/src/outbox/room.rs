//! Events about room in a socket's buffer, requested only while somebody waits for it.

use std::{io, sync::Arc};

use mio::{Interest, Registry, Token};

use crate::{sync::Mutex, transport::Stream};

/// Controls which events a reactor's poll reports for one stream.
///
/// A UNIX socket has more room whenever its peer has read, and reports an event if one was requested. If
/// events were requested all the time, each frame would needlessly wake its sender once more on arrival. So
/// they are requested when the kernel has refused to take more, and cancelled when one arrives while nobody
/// waits.
#[derive(Debug)]
pub(crate) struct Room {
    registry: Arc<Registry>,
    token: Token,
    watched: Mutex<bool>,
}

#[cfg(unix)]
impl Room {
    /// What a stream is registered for initially.
    pub(crate) const INTERESTS: Interest = Interest::READABLE;

    pub(crate) fn new(registry: Arc<Registry>, token: Token) -> Self {
        Self { registry, token, watched: Mutex::new(false) }
    }

    /// Requests an event as soon as there is room; it comes at once if there already is some.
    ///
    /// # Errors
    /// What the operating system reports.
    pub(crate) fn watch(&self, stream: &Stream) -> io::Result<()> {
        let mut watched = self.watched.lock();
        if !*watched {
            stream.set_interests(&self.registry, self.token, Interest::READABLE | Interest::WRITABLE)?;
            *watched = true;
        }
        Ok(())
    }

    /// Requests no more events after one that nobody waited for, unless somebody waits by now.
    pub(crate) fn ignore(&self, stream: &Stream, is_waited_for: impl Fn() -> bool) {
        let mut watched = self.watched.lock();
        // Anyone who begins to wait after this check finds the lock taken, and requests events again.
        if *watched && !is_waited_for() {
            *watched = stream.set_interests(&self.registry, self.token, Self::INTERESTS).is_err();
        }
    }
}

/// On other systems, changing a stream's interests needs exclusive access, which the caller does not have. So
/// events about room come all the time.
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

#[cfg(all(test, unix, not(shuttle)))]
mod tests {
    use std::{
        io::{ErrorKind, IoSlice, Read as _},
        os::unix::net::UnixStream,
        time::Duration,
    };

    use mio::{Events, Poll, event::Source as _};

    use super::*;

    /// Returns whether there is an event about room now.
    fn writable(poll: &mut Poll) -> bool {
        let mut events = Events::with_capacity(8);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.iter().all(|event| event.token() == Token(1)));
        events.iter().any(mio::event::Event::is_writable)
    }

    #[test]
    fn there_are_events_about_room_for_those_alone_who_wait_for_it() {
        let mut poll = Poll::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut stream = Stream::from_unix(ours).unwrap();
        stream.register(poll.registry(), Token(1), Room::INTERESTS).unwrap();
        let room = Room::new(Arc::new(poll.registry().try_clone().unwrap()), Token(1));
        let write = |bytes: &[u8]| stream.write_vectored(&[IoSlice::new(bytes)]);
        let mut pass = || {
            write(b"frame").unwrap();
            theirs.read_exact(&mut [0; 5]).unwrap();
        };
        assert!(!writable(&mut poll));
        pass();
        assert!(!writable(&mut poll), "a frame was read, and nobody waits for room");

        room.watch(&stream).unwrap();
        assert!(writable(&mut poll), "there is room already");
        pass();
        assert!(writable(&mut poll), "there is more of it");
        room.ignore(&stream, || true);
        pass();
        assert!(writable(&mut poll), "somebody waits again");
        room.ignore(&stream, || false);
        pass();
        assert!(!writable(&mut poll));

        while !write(&[0; 1 << 16]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {}
        room.watch(&stream).unwrap();
        assert!(!writable(&mut poll));
        theirs.set_nonblocking(true).unwrap();
        while theirs.read(&mut [0; 1 << 16]).is_ok() {}
        assert!(writable(&mut poll));
    }
}
