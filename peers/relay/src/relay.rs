//! One thread, one epoll, one read per wake-up into a buffer that all connections share. Frames that follow each other
//! to one destination leave it by one write, straight from that buffer. A frame is passed on when all of it is there.

use std::{
    io::IoSlice,
    ops::Range,
    os::fd::{AsFd, OwnedFd},
};

use harness::{Options, ready as ready_to_serve};
use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    io::retry_on_intr,
};

use crate::{
    frame::{self, ALL, ANY, HEAD_BYTES},
    socket::{Listener, ready},
};

const READ_BYTES: usize = 256 * 1024;
/// More than the kernel takes at once.
const SLICES_MAX: usize = 1024;
const LISTENER: u64 = 0;

pub fn run(options: &Options) {
    let listener = Listener::bind(options.address());
    let mut relay = Relay::new();
    match &listener {
        Listener::Unix(listener) => relay.watch(listener, LISTENER),
        Listener::Tcp(listener) => relay.watch(listener, LISTENER),
    }
    ready_to_serve();
    let mut buffer = vec![0; READ_BYTES];
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        retry_on_intr(|| epoll::wait(&relay.epoll, spare_capacity(&mut events), None)).expect("events");
        for event in &events {
            // A packed struct: its fields have to be copied.
            let (id, flags) = (event.data.u64(), event.flags);
            if id == LISTENER {
                relay.add(listener.accept());
                continue;
            }
            let id = id as u32;
            if flags.contains(EventFlags::OUT) {
                relay.write_backlog(id);
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                relay.read(id, &mut buffer);
            }
        }
    }
}

struct Relay {
    epoll: OwnedFd,
    /// By id; the listener has the first, and those that ended are empty.
    connections: Vec<Option<Connection>>,
    callees: Vec<u32>,
    /// The callee whose turn it is.
    turn: usize,
    /// Connections for which there is something in the buffer.
    touched: Vec<u32>,
}

struct Connection {
    socket: OwnedFd,
    /// A frame that has not come completely.
    partial: Vec<u8>,
    /// What the socket did not take.
    backlog: Vec<u8>,
    backlog_written: usize,
    /// Where in the buffer there is something for this connection.
    runs: Vec<Range<usize>>,
}

impl Relay {
    fn new() -> Self {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("epoll");
        Self { epoll, connections: vec![None], callees: Vec::new(), turn: 0, touched: Vec::new() }
    }

    fn watch(&self, socket: impl AsFd, id: u64) {
        epoll::add(&self.epoll, socket, EventData::new_u64(id), EventFlags::IN).expect("a watched socket");
    }

    fn add(&mut self, socket: OwnedFd) {
        self.watch(&socket, self.connections.len() as u64);
        self.connections.push(Some(Connection {
            socket,
            partial: Vec::new(),
            backlog: Vec::new(),
            backlog_written: 0,
            runs: Vec::new(),
        }));
    }

    fn remove(&mut self, id: u32) {
        self.connections[id as usize] = None;
        self.callees.retain(|&callee| callee != id);
        self.turn = 0;
    }

    fn connection(&mut self, id: u32) -> Option<&mut Connection> {
        self.connections.get_mut(id as usize)?.as_mut()
    }

    fn read(&mut self, id: u32, buffer: &mut [u8]) {
        let Some(connection) = self.connection(id) else { return };
        let mut partial = std::mem::take(&mut connection.partial);
        let missing = frame::frame_bytes(&partial).map_or(0, |bytes| bytes - partial.len());
        let bytes = if missing > READ_BYTES / 2 {
            // Most of what comes belongs to this frame.
            partial.reserve_exact(missing);
            ready(rustix::io::read(&connection.socket, spare_capacity(&mut partial)))
        } else {
            let bytes = ready(rustix::io::read(&connection.socket, &mut *buffer));
            if !partial.is_empty() {
                partial.extend_from_slice(&buffer[..bytes.unwrap_or(0)]);
            }
            bytes
        };
        if bytes == Some(0) {
            return self.remove(id);
        }
        if partial.is_empty() {
            let all = &mut buffer[..bytes.unwrap_or(0)];
            let used = self.route(id, all);
            partial.extend_from_slice(&all[used..]);
        } else {
            let used = self.route(id, &mut partial);
            partial.drain(..used);
        }
        // It keeps its memory, if it ever had some: frames that are cut are likely to be cut again.
        if let Some(connection) = self.connection(id) {
            connection.partial = partial;
        }
    }

    /// Passes on the complete frames at the beginning of the buffer, and says how many bytes they have.
    fn route(&mut self, from: u32, buffer: &mut [u8]) -> usize {
        let mut begin = 0;
        while let Some(bytes) =
            frame::frame_bytes(&buffer[begin..]).filter(|bytes| begin + bytes <= buffer.len())
        {
            let frame = &mut buffer[begin..begin + bytes];
            frame::set_from(frame, from);
            let run = begin..begin + bytes;
            begin = run.end;
            match frame::to(frame) {
                ANY if bytes == HEAD_BYTES => self.callees.push(from),
                ANY => {
                    if let Some(&callee) = self.callees.get(self.turn) {
                        self.turn = (self.turn + 1) % self.callees.len();
                        self.add_run(callee, run);
                    }
                }
                ALL => {
                    for place in 0..self.callees.len() {
                        self.add_run(self.callees[place], run.clone());
                    }
                }
                id => self.add_run(id, run),
            }
        }
        for place in 0..self.touched.len() {
            self.write_runs(self.touched[place], buffer);
        }
        self.touched.clear();
        begin
    }

    fn add_run(&mut self, to: u32, run: Range<usize>) {
        let Some(connection) = self.connection(to) else { return };
        match connection.runs.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            Some(_) => connection.runs.push(run),
            None => {
                connection.runs.push(run);
                self.touched.push(to);
            }
        }
    }

    fn write_runs(&mut self, id: u32, buffer: &[u8]) {
        let Some(connection) = self.connection(id) else { return };
        let was_empty = connection.backlog.is_empty();
        if was_empty {
            connection.write_from(buffer);
        }
        for run in connection.runs.drain(..) {
            connection.backlog.extend_from_slice(&buffer[run]);
        }
        if was_empty && !connection.backlog.is_empty() {
            self.watch_backlog(id, EventFlags::IN | EventFlags::OUT);
        }
    }

    fn write_backlog(&mut self, id: u32) {
        let Some(connection) = self.connection(id) else { return };
        let rest = &connection.backlog[connection.backlog_written..];
        match ready(rustix::io::write(&connection.socket, rest)) {
            // Its end shows at the next read.
            Some(0) => connection.backlog_written = connection.backlog.len(),
            written => connection.backlog_written += written.unwrap_or(0),
        }
        if connection.backlog_written == connection.backlog.len() {
            connection.backlog.clear();
            connection.backlog_written = 0;
            if connection.backlog.capacity() > 1 << 20 {
                connection.backlog = Vec::new();
            }
            self.watch_backlog(id, EventFlags::IN);
        }
    }

    fn watch_backlog(&self, id: u32, flags: EventFlags) {
        let Some(connection) = &self.connections[id as usize] else { return };
        epoll::modify(&self.epoll, &connection.socket, EventData::new_u64(id.into()), flags)
            .expect("a watched socket");
    }
}

impl Connection {
    /// Writes what there is in the buffer. What remains in `runs` did not fit.
    fn write_from(&mut self, buffer: &[u8]) {
        let written = if let [run] = self.runs.as_slice() {
            rustix::io::write(&self.socket, &buffer[run.clone()])
        } else {
            let slices: Vec<_> =
                self.runs.iter().take(SLICES_MAX).map(|run| IoSlice::new(&buffer[run.clone()])).collect();
            rustix::io::writev(&self.socket, &slices)
        };
        let mut written = ready(written).unwrap_or(0);
        self.runs.retain_mut(|run| {
            let done = written.min(run.len());
            written -= done;
            run.start += done;
            run.start < run.end
        });
    }
}
