//! Sockets: TCP and UNIX behind one type, non-blocking, and what listening on each requires.

use std::{
    io::{self, IoSlice, Read, Write},
    net::{Shutdown, TcpStream as StdTcpStream, ToSocketAddrs},
    time::Duration,
};

use mio::{Interest, Registry, Token, event::Source};

use crate::{Address, Error, Result, host};

#[cfg(feature = "simulation")]
use crate::simulation::{self, SimulatedListener, SimulatedStream};

/// A connected socket, non-blocking.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP, with `TCP_NODELAY`: frames are batched before they get here.
    Tcp(mio::net::TcpStream),
    /// Over a UNIX socket.
    #[cfg(unix)]
    Unix(mio::net::UnixStream),
    /// A pipe for tests whose threads are scheduled by shuttle.
    #[cfg(all(test, shuttle))]
    Model(std::sync::Arc<crate::outbox::interleavings::Pipe>),
    /// In a simulated network.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    Simulated(SimulatedStream),
}

/// A listening socket, non-blocking.
#[derive(Debug)]
pub enum Listener {
    /// On a TCP port.
    Tcp(mio::net::TcpListener),
    /// On a socket file.
    #[cfg(unix)]
    Unix(unix::UnixListener),
    /// In a simulated network.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    Simulated(SimulatedListener),
}

/// Size of a socket's kernel buffers. UNIX sockets have 208 KiB by default, so that 1 MiB takes several
/// wake-ups; with 1 MiB, the same payloads take half to two thirds of the time.
const SOCKET_BUFFER_BYTES: usize = 1024 * 1024;

/// Size of the kernel's send buffer for an accepted peer. The kernel actually allows twice as much. A hundred
/// nodes that do not read cost a controller 50 MiB on top of everything that it limits itself; with
/// [`SOCKET_BUFFER_BYTES`], it would be four times that.
const ACCEPTED_SEND_BUFFER_BYTES: usize = 256 * 1024;

/// The same once large payloads wait for the peer, for the rest of the connection: so that more passes
/// through while it is still in the processor's cache. Nodes that request large payloads and do not read them
/// cost twice as much.
#[cfg(unix)]
const WIDE_SEND_BUFFER_BYTES: usize = 512 * 1024;

/// The least time for a host's address, however long its other addresses took: 0 would be an error.
const CONNECT_TIMEOUT_MIN: Duration = Duration::from_millis(10);

/// The time that an address gets if enough is left: a lost first packet is sent again after a second.
const SYN_AGAIN: Duration = Duration::from_millis(1500);

macro_rules! each {
    ($value:expr, $kind:ident, $inner:pat => $do:expr) => {
        match $value {
            $kind::Tcp($inner) => $do,
            #[cfg(unix)]
            $kind::Unix($inner) => $do,
            #[cfg(all(test, shuttle))]
            #[allow(unreachable_patterns, reason = "listeners have no such variant")]
            _ => unreachable!("a model is written to and closed, and nothing else"),
            #[cfg(feature = "simulation")]
            $kind::Simulated($inner) => $do,
        }
    };
}

/// Returns how long the next of this many `addresses` may take, with the time `left` for all of them.
fn share_of(left: Duration, addresses: usize) -> Duration {
    let left = left.max(CONNECT_TIMEOUT_MIN);
    (left / addresses as u32).max(SYN_AGAIN).min(left)
}

impl Stream {
    /// Connects, waiting at most `timeout` for all addresses of a host name together.
    ///
    /// This blocks, so it runs on a separate thread wherever that matters.
    ///
    /// # Errors
    /// The error of the last attempt.
    pub fn connect(address: &Address, timeout: Duration) -> io::Result<Self> {
        #[cfg(feature = "simulation")]
        if let Some(connected) = simulation::with(|world| world.connect(address)) {
            return connected.map(|pipe| Self::Simulated(SimulatedStream(pipe)));
        }
        match address {
            Address::Tcp { host, port } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host:?} has no address"));
                let addresses: Vec<_> = (host.as_str(), *port).to_socket_addrs()?.collect();
                let until = host::now() + timeout;
                for (tried, address) in addresses.iter().enumerate() {
                    // An address that does not answer must leave time for the others.
                    let left = until.saturating_duration_since(host::now());
                    match StdTcpStream::connect_timeout(address, share_of(left, addresses.len() - tried)) {
                        Ok(stream) => return Self::from_tcp(stream),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                if *address == Address::default_unix()
                    && let Some(directory) = path.parent()
                {
                    unix::check_owner(directory)?;
                }
                Self::from_unix(unix::connect(path, timeout)?)
            }
            #[cfg(not(unix))]
            Address::Unix(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "no UNIX sockets on this system"))
            }
        }
    }

    /// Takes over a connected TCP stream.
    ///
    /// # Errors
    /// The socket does not accept an option.
    pub fn from_tcp(stream: StdTcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = Self::Tcp(mio::net::TcpStream::from_std(stream));
        stream.set_options(SOCKET_BUFFER_BYTES)?;
        Ok(stream)
    }

    /// Takes over a connected UNIX stream.
    ///
    /// # Errors
    /// The socket does not accept an option.
    #[cfg(unix)]
    pub fn from_unix(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = Self::Unix(mio::net::UnixStream::from_std(stream));
        stream.set_options(SOCKET_BUFFER_BYTES)?;
        Ok(stream)
    }

    /// Ends both directions; a reader sees the end, even on another thread.
    pub fn shutdown(&self) {
        #[cfg(all(test, shuttle))]
        if let Self::Model(pipe) = self {
            return pipe.close();
        }
        // This fails if the peer closed first, which is just as well.
        let _ = each!(self, Self, stream => stream.shutdown(Shutdown::Both));
    }

    /// Ends the writing direction: the peer sees the end after what was written.
    pub fn shutdown_write(&self) {
        #[cfg(all(test, shuttle))]
        if let Self::Model(pipe) = self {
            return pipe.end();
        }
        let _ = each!(self, Self, stream => stream.shutdown(Shutdown::Write));
    }

    /// Reads what is available.
    ///
    /// # Errors
    /// As [`Read::read`]; `WouldBlock` if nothing is available.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        each!(self, Self, stream => (&*stream).read(buffer))
    }

    /// Writes as much as the kernel takes at once.
    ///
    /// # Errors
    /// As [`Write::write_vectored`]; `WouldBlock` if it takes nothing now.
    pub fn write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        #[cfg(all(test, shuttle))]
        if let Self::Model(pipe) = self {
            return pipe.write(slices);
        }
        match slices {
            [one] => each!(self, Self, stream => (&*stream).write(one)),
            many => each!(self, Self, stream => (&*stream).write_vectored(many)),
        }
    }

    /// Enlarges the kernel's send buffer, because large payloads wait for the peer. Returns whether there may
    /// be more room now.
    pub(crate) fn widen(&self) -> bool {
        match self {
            #[cfg(unix)]
            Self::Unix(stream) => {
                let socket = socket2::SockRef::from(stream);
                // Linux reports twice the size that was set, which is what it uses.
                let is_narrow =
                    socket.send_buffer_size().is_ok_and(|bytes| bytes < 2 * WIDE_SEND_BUFFER_BYTES);
                is_narrow && socket.set_send_buffer_size(WIDE_SEND_BUFFER_BYTES).is_ok()
            }
            // The buffers of TCP grow by themselves.
            _ => false,
        }
    }

    /// Returns whether it is a UNIX socket.
    pub(crate) fn is_local(&self) -> bool {
        #[cfg(unix)]
        return matches!(self, Self::Unix(_));
        #[cfg(not(unix))]
        false
    }

    /// Sets which events a registered stream reports from now on.
    ///
    /// # Errors
    /// What the operating system reports.
    #[cfg(unix)]
    pub(crate) fn set_interests(
        &self,
        registry: &Registry,
        token: Token,
        interests: Interest,
    ) -> io::Result<()> {
        use std::os::fd::AsRawFd as _;

        let descriptor = match self {
            Self::Tcp(stream) => stream.as_raw_fd(),
            Self::Unix(stream) => stream.as_raw_fd(),
            #[cfg(all(test, shuttle))]
            Self::Model(_) => return Ok(()),
            #[cfg(feature = "simulation")]
            Self::Simulated(_) => return Ok(()),
        };
        mio::unix::SourceFd(&descriptor).reregister(registry, token, interests)
    }

    fn set_options(&self, send_buffer_bytes: usize) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nodelay(true),
            #[cfg(unix)]
            Self::Unix(stream) => {
                let socket = socket2::SockRef::from(stream);
                socket.set_send_buffer_size(send_buffer_bytes)?;
                socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)
            }
            #[cfg(all(test, shuttle))]
            Self::Model(_) => Ok(()),
            #[cfg(feature = "simulation")]
            Self::Simulated(_) => Ok(()),
        }
    }
}

impl Listener {
    /// Listens on `address`, and also returns the actual address: port 0 becomes a real one.
    ///
    /// A socket file gets mode 0600; its directory, if it is created here, gets mode 0700. A file left behind
    /// by a dead process is taken over.
    ///
    /// # Errors
    /// [`Error::AddressInUse`] if somebody listens there, otherwise [`Error::AddressUnusable`].
    pub fn bind(address: &Address) -> Result<(Self, Address)> {
        let unusable = |source: io::Error| {
            if source.kind() == io::ErrorKind::AddrInUse {
                Error::AddressInUse { address: address.clone() }
            } else {
                Error::AddressUnusable { address: address.clone(), source: source.into() }
            }
        };
        #[cfg(feature = "simulation")]
        if let Some(bound) = simulation::with(|world| world.listen(address)) {
            let door = bound.map_err(unusable)?;
            return Ok((Self::Simulated(SimulatedListener(door)), address.clone()));
        }
        match address {
            Address::Tcp { host, port } => {
                let listener = bind_tcp(host, *port).map_err(unusable)?;
                let port = listener.local_addr().map_err(unusable)?.port();
                Ok((Self::Tcp(listener), Address::Tcp { host: host.clone(), port }))
            }
            #[cfg(unix)]
            Address::Unix(path) => {
                let is_default = *address == Address::default_unix();
                let listener = unix::UnixListener::bind(path, is_default).map_err(unusable)?;
                Ok((Self::Unix(listener), address.clone()))
            }
            #[cfg(not(unix))]
            Address::Unix(_) => {
                Err(unusable(io::Error::new(io::ErrorKind::Unsupported, "no UNIX sockets on this system")))
            }
        }
    }

    /// Accepts the next connection, and describes where it comes from.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; otherwise what the operating system reports.
    pub fn accept(&self) -> io::Result<(Stream, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                let stream = Stream::Tcp(stream);
                stream.set_options(ACCEPTED_SEND_BUFFER_BYTES).map_err(gone)?;
                Ok((stream, address.to_string()))
            }
            #[cfg(unix)]
            Self::Unix(listener) => {
                let stream = Stream::Unix(listener.accept()?);
                stream.set_options(ACCEPTED_SEND_BUFFER_BYTES).map_err(gone)?;
                Ok((stream, "unix socket".to_owned()))
            }
            #[cfg(feature = "simulation")]
            Self::Simulated(listener) => {
                let (pipe, from) = listener.0.accept()?;
                Ok((Stream::Simulated(SimulatedStream(pipe)), from))
            }
        }
    }
}

/// Turns the failure to set an option of an accepted socket into `ConnectionAborted`: the peer has reset it,
/// so this concerns only this one connection, whatever the operating system calls it.
fn gone(error: io::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
}

fn bind_tcp(host: &str, port: u16) -> io::Result<mio::net::TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host:?} has no address"));
    for address in (host, port).to_socket_addrs()? {
        match mio::net::TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Source for Stream {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        each!(self, Self, stream => stream.register(registry, token, interests))
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        each!(self, Self, stream => stream.reregister(registry, token, interests))
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        each!(self, Self, stream => stream.deregister(registry))
    }
}

impl Source for Listener {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        each!(self, Self, listener => listener.register(registry, token, interests))
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        each!(self, Self, listener => listener.reregister(registry, token, interests))
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        each!(self, Self, listener => listener.deregister(registry))
    }
}

#[cfg(unix)]
mod unix;

#[cfg(test)]
mod tests {
    use super::*;

    /// However many there are, if none answers.
    #[test]
    fn addresses_that_do_not_answer_take_their_time_together() {
        let timeout = Duration::from_secs(5);
        for addresses in [1, 2, 3, 4, 10, 100] {
            let (mut left, mut waited) = (timeout, Duration::ZERO);
            for tried in 0..addresses {
                let share = share_of(left, addresses - tried);
                waited += share;
                left = left.saturating_sub(share);
                // The first one gets the time that a lost packet takes, whatever is left for the others.
                assert!(
                    share >= CONNECT_TIMEOUT_MIN && (tried > 0 || share >= SYN_AGAIN),
                    "{tried}: {share:?}"
                );
            }
            assert!(waited <= timeout + CONNECT_TIMEOUT_MIN * addresses as u32, "{addresses}: {waited:?}");
            assert!(waited >= timeout, "{addresses}: {waited:?}");
        }
    }
}
