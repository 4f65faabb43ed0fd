//! UNIX and TCP sockets as plain descriptors.

use std::{
    net::{TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
};

use rustix::io::Errno;

/// `unix:PATH` or `HOST:PORT`
pub enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    pub fn bind(address: &str) -> Self {
        match address.strip_prefix("unix:") {
            Some(path) => Self::Unix(UnixListener::bind(path).expect("an address")),
            None => Self::Tcp(TcpListener::bind(address).expect("an address")),
        }
    }

    /// The next connection, which does not block.
    pub fn accept(&self) -> OwnedFd {
        let socket: OwnedFd = match self {
            Self::Unix(listener) => listener.accept().expect("a connection").0.into(),
            Self::Tcp(listener) => without_delay(listener.accept().expect("a connection").0),
        };
        rustix::io::ioctl_fionbio(&socket, true).expect("a socket that does not block");
        socket
    }
}

pub fn connect(address: &str) -> OwnedFd {
    match address.strip_prefix("unix:") {
        Some(path) => UnixStream::connect(path).expect("the relay").into(),
        None => without_delay(TcpStream::connect(address).expect("the relay")),
    }
}

fn without_delay(socket: TcpStream) -> OwnedFd {
    socket.set_nodelay(true).expect("no delay");
    socket.into()
}

/// `None` if nothing can be done right now; 0 at the end of the connection, however it ended.
pub fn ready(result: Result<usize, Errno>) -> Option<usize> {
    match result {
        Ok(bytes) => Some(bytes),
        Err(Errno::WOULDBLOCK | Errno::INTR) => None,
        Err(_) => Some(0),
    }
}

/// Writes all of it to a socket that blocks.
pub fn write_all(socket: &OwnedFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let written = rustix::io::write(socket, bytes).expect("the relay");
        bytes = &bytes[written..];
    }
}
