//! A plain blocking connection to a controller, on which a test can send anything at all.

#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use daffi_core::{
    Address,
    frame::{Frame, Hello, VERSION},
    limits::FRAME_BYTES_MAX,
};

/// How long anything that must happen may take. Long, since only a failing test waits that long.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A connected socket, and received bytes that are not yet a whole frame.
#[derive(Debug)]
pub struct Wire {
    socket: Socket,
    buffer: BytesMut,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

macro_rules! each {
    ($socket:expr, $inner:ident => $do:expr) => {
        match $socket {
            Socket::Tcp($inner) => $do,
            #[cfg(unix)]
            Socket::Unix($inner) => $do,
        }
    };
}

impl Wire {
    /// Connects to a controller and says nothing.
    ///
    /// # Panics
    /// Nothing is listening there.
    pub fn connect(address: &Address) -> Self {
        let socket =
            Self::socket(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"));
        // A write that takes this long means that the controller is not reading, which will not change.
        each!(&socket, socket => socket.set_write_timeout(Some(2 * PATIENCE)))
            .expect("the timeout is not zero");
        Self { socket, buffer: BytesMut::new() }
    }

    fn socket(address: &Address) -> io::Result<Socket> {
        match address {
            Address::Tcp { host, port } => {
                let socket = TcpStream::connect((host.as_str(), *port))?;
                socket.set_nodelay(true)?;
                Ok(Socket::Tcp(socket))
            }
            #[cfg(unix)]
            Address::Unix(path) => UnixStream::connect(path).map(Socket::Unix),
            #[cfg(not(unix))]
            Address::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Returns a second handle to the same connection, for another thread.
    pub(crate) fn another(&self) -> Self {
        let socket = match &self.socket {
            Socket::Tcp(socket) => socket.try_clone().map(Socket::Tcp),
            #[cfg(unix)]
            Socket::Unix(socket) => socket.try_clone().map(Socket::Unix),
        };
        Self { socket: socket.expect("a socket can be shared"), buffer: BytesMut::new() }
    }

    /// Sends raw bytes. If the connection is gone, they are silently dropped.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = each!(&mut self.socket, socket => socket.write_all(bytes));
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &Frame<'_>) {
        self.send_bytes(&frame.to_bytes());
    }

    /// Says hello under a name, as a given instance, with the only version there is.
    pub fn hello(&mut self, name: &str, instance: u64) {
        self.send(&Frame::Hello(Hello {
            version_min: VERSION,
            version_max: VERSION,
            capabilities: 0,
            instance,
            name,
            credentials: &[],
        }));
    }

    /// Returns the bytes of the next frame, or `None` once the connection is closed.
    ///
    /// # Panics
    /// Neither happens within [`PATIENCE`], or what comes is not a frame.
    pub fn receive(&mut self) -> Option<Bytes> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(frame) = self.next_frame() {
                return Some(frame);
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the controller said nothing for {PATIENCE:?}");
            each!(&self.socket, socket => socket.set_read_timeout(Some(left)))
                .expect("the timeout is not zero");
            if !self.read() {
                return None;
            }
        }
    }

    /// Like [`receive`](Self::receive), but waits as long as it takes.
    pub(crate) fn receive_forever(&mut self) -> Option<Bytes> {
        each!(&self.socket, socket => socket.set_read_timeout(None)).expect("no timeout is always possible");
        loop {
            if let Some(frame) = self.next_frame() {
                return Some(frame);
            }
            if !self.read() {
                return None;
            }
        }
    }

    fn next_frame(&mut self) -> Option<Bytes> {
        // Decoding needs the whole batch as `Bytes`; copying it keeps a test node simple.
        let batch = Bytes::copy_from_slice(&self.buffer);
        let (_, end) = Frame::decode(&batch, 0, FRAME_BYTES_MAX)
            .unwrap_or_else(|error| panic!("the controller broke the protocol: {error}"))?;
        let _ = self.buffer.split_to(end);
        Some(batch.slice(..end))
    }

    /// Reads once and returns whether the connection still exists.
    fn read(&mut self) -> bool {
        let mut chunk = [0; 64 * 1024];
        match each!(&mut self.socket, socket => socket.read(&mut chunk)) {
            Ok(0) => false,
            Ok(read) => {
                self.buffer.extend_from_slice(&chunk[..read]);
                true
            }
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
            ),
        }
    }

    /// Waits until the controller closes the connection, whatever it sends before that.
    ///
    /// # Panics
    /// It does not.
    pub fn expect_closed(&mut self, why: &str) {
        let until = Instant::now() + PATIENCE;
        while self.receive().is_some() {
            assert!(Instant::now() < until, "the connection stays open, although {why}");
        }
    }

    /// Waits for the WELCOME.
    ///
    /// # Panics
    /// Something else comes.
    pub fn expect_welcome(&mut self) {
        let bytes = self.receive().expect("the controller closed the connection instead of a WELCOME");
        let welcome = decoded(&bytes);
        assert!(matches!(welcome, Frame::Welcome(_)), "expected a WELCOME, got {welcome:?}");
    }

    /// Closes the connection without a goodbye.
    pub fn close(&self) {
        let _ = each!(&self.socket, socket => socket.shutdown(Shutdown::Both));
    }
}

/// Decodes `bytes`, which are one whole frame.
pub(crate) fn decoded(bytes: &Bytes) -> Frame<'_> {
    match Frame::decode(bytes, 0, FRAME_BYTES_MAX) {
        Ok(Some((frame, _))) => frame,
        other => panic!("a whole frame was kept, and now it is {other:?}"),
    }
}
