//! The network: connections with delay, bounded buffers, partitions and sudden ends. Bytes come out in other pieces
//! than they went in.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    io::{self, ErrorKind, IoSlice},
    net::Shutdown,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use daffi_core::simulation::{Door, Pipe};
use parking_lot::Mutex;

use crate::{random::Random, tamper::Tamper, trace::Trace, wire::Wire};

/// A process, as one run of it. A restart gives another one.
pub(crate) type HostId = usize;

/// A machine, which processes come and go on.
pub(crate) type Machine = u8;

/// Time and network of a simulated world.
pub(crate) struct Network {
    pub(crate) now: Duration,
    pub(crate) random: Random,
    pub(crate) trace: Trace,
    /// What is known from looking at the bytes.
    pub(crate) wire: Wire,
    pub(crate) tamper: Tamper,
    pub(crate) profile: Profile,
    connections: BTreeMap<usize, Connection>,
    next_connection: usize,
    listeners: BTreeMap<String, Listener>,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    event_last: u64,
    /// Who has something to read, room to write, or somebody at the door.
    pub(crate) stirred: BTreeSet<HostId>,
    blocked: BTreeSet<(Machine, Machine)>,
    machines: Vec<Machine>,
}

/// What a network is like.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) delay_min: Duration,
    pub(crate) delay_max: Duration,
    /// How many bytes are on their way or unread, in one direction of a connection.
    pub(crate) buffer: usize,
    /// In so many percent of all cases fewer bytes are read or written than could be.
    pub(crate) pieces: usize,
}

/// What happens at a certain time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// Something arrives on a lane.
    Arrive(usize, usize),
    /// A timer of the world.
    Timer(u64),
}

/// Two ends and the lanes between them: lane 0 from end 0, which connected, to end 1; lane 1 back.
struct Connection {
    ends: [End; 2],
    lanes: [Lane; 2],
}

struct End {
    host: HostId,
    state: EndState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndState {
    Open,
    /// The process closed it or died. What still comes is answered with a reset.
    Closed,
    /// The machine is gone without a word.
    Gone,
}

#[derive(Default)]
struct Lane {
    on_the_way: VecDeque<(Duration, Item)>,
    readable: VecDeque<u8>,
    bytes: usize,
    /// Nothing comes any more.
    ended: bool,
    /// The end has arrived.
    end_seen: bool,
    reset: bool,
    /// The last write took nothing.
    full: bool,
    /// What was written and is not a whole frame yet.
    partial: BytesMut,
}

enum Item {
    Bytes(Vec<u8>),
    End,
    Reset,
}

struct Listener {
    host: HostId,
    waiting: VecDeque<usize>,
}

impl Network {
    pub(crate) fn new(random: Random, profile: Profile, tamper: Tamper, trace: Trace) -> Self {
        Self {
            now: Duration::ZERO,
            random,
            trace,
            wire: Wire::default(),
            tamper,
            profile,
            connections: BTreeMap::new(),
            next_connection: 0,
            listeners: BTreeMap::new(),
            events: BinaryHeap::new(),
            event_last: 0,
            stirred: BTreeSet::new(),
            blocked: BTreeSet::new(),
            machines: Vec::new(),
        }
    }

    pub(crate) fn add_host(&mut self, machine: Machine) -> HostId {
        self.machines.push(machine);
        self.machines.len() - 1
    }

    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        let now = self.now;
        self.trace.note(now, what);
    }

    pub(crate) fn at(&mut self, at: Duration, event: Event) {
        self.event_last += 1;
        self.events.push(Reverse((at.max(self.now), self.event_last, event)));
    }

    pub(crate) fn next_event(&self) -> Option<Duration> {
        self.events.peek().map(|Reverse((at, ..))| *at)
    }

    /// Takes the next event if it is due.
    pub(crate) fn pop_event(&mut self) -> Option<Event> {
        if self.next_event()? > self.now {
            return None;
        }
        self.events.pop().map(|Reverse((_, _, event))| event)
    }

    // ---- faults

    /// Lets nothing through from one machine to another, or lets it again.
    pub(crate) fn block(&mut self, from: Machine, to: Machine, block: bool) {
        self.note(|| format!("{} {from} -> {to}", if block { "block" } else { "unblock" }));
        if block {
            self.blocked.insert((from, to));
            return;
        }
        self.blocked.remove(&(from, to));
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            for lane in 0..2 {
                if !self.connections[&id].lanes[lane].on_the_way.is_empty() {
                    let at = self.now + self.delay();
                    self.at(at, Event::Arrive(id, lane));
                }
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        for (from, to) in self.blocked.clone() {
            self.block(from, to, false);
        }
    }

    /// Resets a connection of `host`, if it has one.
    pub(crate) fn cut(&mut self, host: HostId) {
        let of_host = |connection: &Connection| {
            (connection.ends.iter()).any(|end| end.host == host && end.state == EndState::Open)
        };
        let found = self.connections.iter().filter(|(_, connection)| of_host(connection));
        let ids: Vec<_> = found.map(|(id, _)| *id).collect();
        if ids.is_empty() {
            return;
        }
        let id = self.random.one_of(&ids);
        self.note(|| format!("cut connection {id}"));
        for lane in 0..2 {
            self.put(id, lane, Item::Reset);
        }
    }

    /// A process ends: what it had open is closed by its machine, or goes silent with it.
    pub(crate) fn host_ended(&mut self, host: HostId, silently: bool) {
        self.listeners.retain(|_, listener| listener.host != host);
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            for end in 0..2 {
                let Some(connection) = self.connections.get_mut(&id) else { break };
                if connection.ends[end].host == host && connection.ends[end].state == EndState::Open {
                    connection.ends[end].state = if silently { EndState::Gone } else { EndState::Closed };
                    self.wire.end_closed(id, end, self.now);
                    if !silently {
                        let unread = self.connections[&id].lanes[1 - end].bytes > 0;
                        self.put(id, end, if unread { Item::Reset } else { Item::End });
                    }
                }
            }
            self.tidy(id);
        }
    }

    /// A machine that went silently is back, and knows nothing of its connections.
    pub(crate) fn machine_back(&mut self, machine: Machine) {
        for connection in self.connections.values_mut() {
            for end in &mut connection.ends {
                if self.machines[end.host] == machine && end.state == EndState::Gone {
                    end.state = EndState::Closed;
                }
            }
        }
    }

    // ---- sockets

    fn delay(&mut self) -> Duration {
        self.random.between(self.profile.delay_min, self.profile.delay_max)
    }

    fn put(&mut self, id: usize, lane: usize, item: Item) {
        let delay = self.delay();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let lane_of = &mut connection.lanes[lane];
        if lane_of.ended {
            return;
        }
        match &item {
            Item::Bytes(bytes) => lane_of.bytes += bytes.len(),
            Item::End | Item::Reset => lane_of.ended = true,
        }
        let last = lane_of.on_the_way.back().map_or(Duration::ZERO, |(at, _)| *at);
        let at = (self.now + delay).max(last);
        lane_of.on_the_way.push_back((at, item));
        self.at(at, Event::Arrive(id, lane));
    }

    pub(crate) fn arrive(&mut self, id: usize, lane: usize) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (from, to) = (connection.ends[lane].host, connection.ends[1 - lane].host);
        if self.blocked.contains(&(self.machines[from], self.machines[to])) {
            return;
        }
        let (mut answer_reset, mut has_room) = (false, false);
        let receiver = connection.ends[1 - lane].state;
        let arriving = &mut connection.lanes[lane];
        while arriving.on_the_way.front().is_some_and(|(at, _)| *at <= self.now) {
            let Some((_, item)) = arriving.on_the_way.pop_front() else { break };
            match item {
                Item::Bytes(bytes) if receiver == EndState::Open => arriving.readable.extend(bytes),
                Item::Bytes(bytes) if receiver == EndState::Closed => {
                    arriving.bytes -= bytes.len();
                    answer_reset = true;
                    has_room |= std::mem::take(&mut arriving.full);
                }
                // Nobody says that it arrived, so the sender keeps it and gets no room.
                Item::Bytes(_) => {}
                Item::End => arriving.end_seen = true,
                Item::Reset => {
                    arriving.end_seen = true;
                    arriving.reset = true;
                    arriving.readable.clear();
                }
            }
        }
        self.stirred.insert(to);
        if has_room {
            self.wire.unblocked(id, lane);
            self.stirred.insert(from);
        }
        if answer_reset {
            self.put(id, 1 - lane, Item::Reset);
        }
        self.tidy(id);
    }

    /// Forgets a connection that neither end has any more.
    fn tidy(&mut self, id: usize) {
        let over = self.connections.get(&id).is_some_and(|connection| {
            connection.ends.iter().all(|end| end.state != EndState::Open)
                && connection.lanes.iter().all(|lane| lane.on_the_way.is_empty())
        });
        if over {
            self.connections.remove(&id);
        }
    }

    fn connect(&mut self, from: HostId, address: &str) -> io::Result<usize> {
        let refused = || io::Error::from(ErrorKind::ConnectionRefused);
        let to = self.listeners.get(address).ok_or_else(refused)?.host;
        let (here, there) = (self.machines[from], self.machines[to]);
        if self.blocked.contains(&(here, there)) || self.blocked.contains(&(there, here)) {
            return Err(ErrorKind::TimedOut.into());
        }
        let id = self.next_connection;
        self.next_connection += 1;
        let end = |host| End { host, state: EndState::Open };
        let connection = Connection { ends: [end(from), end(to)], lanes: Default::default() };
        self.connections.insert(id, connection);
        self.wire.connected(id, from, to);
        self.listeners.get_mut(address).ok_or_else(refused)?.waiting.push_back(id);
        self.stirred.insert(to);
        self.note(|| format!("connection {id} from process {from} to {to}"));
        Ok(id)
    }

    fn read(&mut self, id: usize, end: usize, buffer: &mut [u8]) -> io::Result<usize> {
        let in_pieces = self.random.chance(self.profile.pieces);
        let portion = self.random.below(buffer.len().max(1)) + 1;
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(0) };
        if connection.ends[end].state != EndState::Open {
            return Ok(0);
        }
        let lane = &mut connection.lanes[1 - end];
        if lane.readable.is_empty() && !lane.end_seen {
            return Err(ErrorKind::WouldBlock.into());
        }
        let most = buffer.len().min(lane.readable.len());
        let count = if in_pieces { most.min(portion % 4096 + 1) } else { most };
        if count == 0 {
            let reset = lane.reset;
            self.wire.end_closed(id, end, self.now);
            return if reset { Err(ErrorKind::ConnectionReset.into()) } else { Ok(0) };
        }
        for (place, byte) in buffer.iter_mut().zip(lane.readable.drain(..count)) {
            *place = byte;
        }
        lane.bytes -= count;
        let (more, was_full) = (!lane.readable.is_empty() || lane.end_seen, std::mem::take(&mut lane.full));
        if was_full {
            self.wire.unblocked(id, 1 - end);
        }
        let (reader, writer) = (connection.ends[end].host, connection.ends[1 - end].host);
        if more {
            self.stirred.insert(reader);
        }
        if was_full {
            self.stirred.insert(writer);
        }
        Ok(count)
    }

    fn write(&mut self, id: usize, end: usize, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let in_pieces = self.random.chance(self.profile.pieces);
        let portion = self.random.below(16 * 1024) + 1;
        let Some(connection) = self.connections.get_mut(&id) else {
            return Err(ErrorKind::BrokenPipe.into());
        };
        let receiver_reset = connection.lanes[1 - end].reset;
        let lane = &mut connection.lanes[end];
        if connection.ends[end].state != EndState::Open || lane.ended || receiver_reset {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let room = self.profile.buffer.saturating_sub(lane.bytes);
        if room == 0 {
            lane.full = true;
            self.wire.full(id, end);
            return Err(ErrorKind::WouldBlock.into());
        }
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut left = total.min(room);
        if in_pieces {
            left = left.min(portion);
        }
        let count = left;
        let mut bytes = Vec::with_capacity(count);
        for slice in slices {
            let take = left.min(slice.len());
            bytes.extend_from_slice(&slice[..take]);
            left -= take;
        }
        lane.partial.extend_from_slice(&bytes);
        let partial = std::mem::take(&mut lane.partial);
        let now = self.now;
        let (rest, tampered) =
            self.wire.look(id, end, partial, now, &mut self.trace, &mut self.tamper, &mut self.random);
        if let Some(lane) = self.connections.get_mut(&id).map(|connection| &mut connection.lanes[end]) {
            lane.partial = rest;
        }
        let bytes = if self.tamper.is_on() { tampered } else { bytes };
        if !bytes.is_empty() {
            self.put(id, end, Item::Bytes(bytes));
        }
        Ok(count)
    }

    fn shutdown(&mut self, id: usize, end: usize, how: Shutdown) {
        if how != Shutdown::Write {
            if let Some(connection) = self.connections.get_mut(&id)
                && connection.ends[end].state == EndState::Open
            {
                connection.ends[end].state = EndState::Closed;
                self.stirred.insert(connection.ends[end].host);
            }
            self.wire.end_closed(id, end, self.now);
        }
        if how != Shutdown::Read {
            self.wire.end_closed(id, end, self.now);
            self.put(id, end, Item::End);
        }
        self.tidy(id);
    }
}

/// The network as its sockets share it.
pub(crate) type Shared = Arc<Mutex<Network>>;

/// One end of a connection.
struct Socket {
    network: Shared,
    id: usize,
    end: usize,
}

impl Pipe for Socket {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.network.lock().read(self.id, self.end, buffer)
    }

    fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.network.lock().write(self.id, self.end, slices)
    }

    fn shutdown(&self, how: Shutdown) {
        self.network.lock().shutdown(self.id, self.end, how);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.shutdown(Shutdown::Both);
    }
}

/// A listening socket.
struct Entrance {
    network: Shared,
    address: String,
    host: HostId,
}

impl Door for Entrance {
    fn accept(&self) -> io::Result<(Box<dyn Pipe>, String)> {
        let mut network = self.network.lock();
        let listener = network.listeners.get_mut(&self.address).filter(|listener| listener.host == self.host);
        let id = listener.and_then(|listener| listener.waiting.pop_front()).ok_or(ErrorKind::WouldBlock)?;
        let socket = Socket { network: self.network.clone(), id, end: 1 };
        Ok((Box::new(socket), format!("connection {id}")))
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        let mut network = self.network.lock();
        if network.listeners.get(&self.address).is_some_and(|listener| listener.host == self.host) {
            let listener = network.listeners.remove(&self.address);
            for id in listener.into_iter().flat_map(|listener| listener.waiting) {
                network.shutdown(id, 1, Shutdown::Both);
            }
        }
    }
}

/// Connects `host` to whoever listens on `address`.
///
/// # Errors
/// Nobody does, or nothing gets through.
pub(crate) fn connect(network: &Shared, host: HostId, address: &str) -> io::Result<Box<dyn Pipe>> {
    let id = network.lock().connect(host, address)?;
    Ok(Box::new(Socket { network: network.clone(), id, end: 0 }))
}

/// Has `host` listen on `address`.
///
/// # Errors
/// Another one does.
pub(crate) fn listen(network: &Shared, host: HostId, address: &str) -> io::Result<Box<dyn Door>> {
    let mut locked = network.lock();
    if locked.listeners.contains_key(address) {
        return Err(ErrorKind::AddrInUse.into());
    }
    locked.listeners.insert(address.to_owned(), Listener { host, waiting: VecDeque::new() });
    Ok(Box::new(Entrance { network: network.clone(), address: address.to_owned(), host }))
}
