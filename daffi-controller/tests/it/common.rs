//! A node that speaks in literal frames over a blocking socket.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::Duration,
};

use bytes::Bytes;
use daffi_core::{
    Address,
    frame::{Body, Frame, Hello, Offer, Offers, Register, Reply, Request, VERSION},
    limits::FRAME_BYTES_MAX,
};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// What "at once" means on a busy machine.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(4);

pub(crate) trait Socket: Read + Write + Send {
    /// Returns a second handle to the same connection.
    fn another(&self) -> Box<dyn Socket>;
}

impl Socket for TcpStream {
    fn another(&self) -> Box<dyn Socket> {
        Box::new(self.try_clone().unwrap())
    }
}

impl Socket for UnixStream {
    fn another(&self) -> Box<dyn Socket> {
        Box::new(self.try_clone().unwrap())
    }
}

pub(crate) struct RawNode {
    pub(crate) socket: Box<dyn Socket>,
    pending: Vec<u8>,
}

impl RawNode {
    pub(crate) fn connect(address: &Address) -> Self {
        let socket: Box<dyn Socket> = match address {
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_nodelay(true).unwrap();
                Box::new(stream)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                Box::new(stream)
            }
        };
        Self { socket, pending: Vec::new() }
    }

    /// Connects and registers callbacks.
    pub(crate) fn join(address: &Address, name: &str, callbacks: &[&str]) -> Self {
        let mut node = Self::connect(address);
        node.send(&hello(name));
        let mut bytes = Vec::new();
        for (index, name) in callbacks.iter().enumerate() {
            let offer = Offer { index: index as u32, fingerprint: 0, ready: true, name, signature: "()" };
            Offers::push(&mut bytes, &offer);
        }
        let offers = Offers::parse(&bytes).unwrap();
        node.expect(|frame| matches!(frame, Frame::Welcome(_)));
        node.send(&Frame::Register(Register { id: 1, more: false, offers }));
        node.expect(|frame| matches!(frame, Frame::Registered { id: 1 }));
        node
    }

    /// Returns a second handle to its connection, for another thread.
    pub(crate) fn another(&self) -> Box<dyn Socket> {
        self.socket.another()
    }

    pub(crate) fn send(&mut self, frame: &Frame<'_>) {
        self.socket.write_all(&frame.to_bytes()).unwrap();
    }

    /// Returns the next frame, or `None` at the end of the connection.
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        loop {
            let bytes = Bytes::copy_from_slice(&self.pending);
            if let Some((_, used)) = Frame::decode(&bytes, 0, FRAME_BYTES_MAX).unwrap() {
                self.pending.drain(..used);
                return Some(bytes.slice(..used));
            }
            let mut buffer = [0; 64 * 1024];
            match self.socket.read(&mut buffer) {
                Ok(0) => return None,
                Ok(read) => self.pending.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// Returns the next frame that is not a ping, which must be as wanted.
    pub(crate) fn expect(&mut self, wanted: impl Fn(&Frame<'_>) -> bool) -> Bytes {
        loop {
            let bytes = self.next().expect("a frame before the end of the connection");
            match decode(&bytes) {
                Frame::Ping { id } => self.send(&Frame::Pong { id }),
                frame => {
                    assert!(wanted(&frame), "{frame:?}");
                    return bytes;
                }
            }
        }
    }

    /// Returns the id of the next frame, which must be a request.
    pub(crate) fn request(&mut self) -> u64 {
        let bytes = self.expect(|frame| matches!(frame, Frame::Request(_)));
        let Frame::Request(request) = decode(&bytes) else { unreachable!() };
        request.id
    }

    /// Reads to the end of the connection, and returns how many frames there were.
    pub(crate) fn drain(&mut self) -> usize {
        let mut frames = 0;
        while self.next().is_some() {
            frames += 1;
        }
        frames
    }
}

pub(crate) fn decode(bytes: &Bytes) -> Frame<'_> {
    Frame::decode(bytes, 0, FRAME_BYTES_MAX).unwrap().unwrap().0
}

pub(crate) fn hello(name: &str) -> Frame<'_> {
    Frame::Hello(Hello {
        version_min: VERSION,
        version_max: VERSION,
        capabilities: 0,
        instance: name.bytes().map(u64::from).sum(),
        name,
        credentials: &[],
    })
}

pub(crate) fn request(id: u64, name: &'static str, body: &Bytes) -> Frame<'static> {
    // Leaked, which is fine in a test: a frame with a static lifetime is convenient.
    let body: &'static Bytes = Box::leak(Box::new(body.clone()));
    Frame::Request(Request::new(id, name, Body::shared(body)))
}

pub(crate) fn reply(id: u64, body: &'static [u8]) -> Frame<'static> {
    Frame::Reply(Reply {
        id,
        more: false,
        part: 0,
        codec: 0,
        total: body.len() as u32,
        body: Body::borrowed(body),
    })
}
