//! The network: connections with delays, bounded buffers, partitions and sudden ends. Bytes come out in
//! different pieces than they went in.

mod faults;
mod sockets;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    io::{self, ErrorKind, IoSlice},
    net::Shutdown,
    time::Duration,
};

use bytes::BytesMut;

pub(crate) use sockets::{Shared, connect, listen};

use crate::{random::Random, tamper::Tamper, trace::Trace, wire::Wire};

/// One run of a process. A restart creates another.
pub(crate) type HostId = usize;

/// A machine, on which processes come and go.
pub(crate) type Machine = u16;

/// The time and network of a simulated world.
pub(crate) struct Network {
    pub(crate) now: Duration,
    pub(crate) random: Random,
    pub(crate) trace: Trace,
    /// What the bytes on the wire reveal.
    pub(crate) wire: Wire,
    pub(crate) tamper: Tamper,
    pub(crate) profile: Profile,
    connections: BTreeMap<usize, Connection>,
    next_connection: usize,
    listeners: BTreeMap<String, Listener>,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    event_last: u64,
    /// Processes with something to read, room to write, or a connection to accept.
    pub(crate) stirred: BTreeSet<HostId>,
    blocked: BTreeSet<(Machine, Machine)>,
    /// How many bytes per second a machine's link carries, if it is slow.
    slow: BTreeMap<Machine, u64>,
    machines: Vec<Machine>,
    /// After how many more steps a process dies, and whether silently.
    doomed: BTreeMap<HostId, (usize, bool)>,
    /// Processes that died within a step, and must be buried after it.
    pub(crate) fallen: Vec<(HostId, bool)>,
    /// Processes that have ended: what their code still does reaches nobody.
    pub(crate) dead: BTreeSet<HostId>,
    /// How many processes died within a step.
    pub(crate) deaths: usize,
    /// How often one machine could not reach another that could still reach it.
    pub(crate) one_way: usize,
    /// When connection attempts were made.
    pub(crate) attempts: Vec<Duration>,
}

/// What a network is like.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) delay_min: Duration,
    pub(crate) delay_max: Duration,
    /// How many bytes may be in transit or unread in one direction of a connection.
    pub(crate) buffer: usize,
    /// In this percentage of cases fewer bytes are read or written than possible.
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
    /// The process closed it or died. Anything that still comes is answered with a reset.
    Closed,
    /// The machine has gone silent.
    Gone,
}

#[derive(Default)]
struct Lane {
    on_the_way: VecDeque<(Duration, Item)>,
    readable: VecDeque<u8>,
    bytes: usize,
    /// Nothing more comes.
    ended: bool,
    /// The end has arrived.
    end_seen: bool,
    reset: bool,
    /// When a slow link will have carried what it has.
    busy_until: Duration,
    /// The last write could take nothing.
    full: bool,
    /// What was written and is not yet a whole frame.
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
            slow: BTreeMap::new(),
            machines: Vec::new(),
            doomed: BTreeMap::new(),
            fallen: Vec::new(),
            dead: BTreeSet::new(),
            deaths: 0,
            one_way: 0,
            attempts: Vec::new(),
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

    // ---- sockets

    fn delay(&mut self) -> Duration {
        self.random.between(self.profile.delay_min, self.profile.delay_max)
    }

    fn put(&mut self, id: usize, lane: usize, item: Item) {
        let delay = self.delay();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let rate = connection.ends.iter().filter_map(|end| self.slow.get(&self.machines[end.host])).min();
        let lane_of = &mut connection.lanes[lane];
        if lane_of.ended {
            return;
        }
        match &item {
            Item::Bytes(bytes) => lane_of.bytes += bytes.len(),
            Item::End | Item::Reset => lane_of.ended = true,
        }
        let carried = match (&item, rate) {
            (Item::Bytes(bytes), Some(rate)) => Duration::from_micros(bytes.len() as u64 * 1_000_000 / rate),
            _ => Duration::ZERO,
        };
        lane_of.busy_until = lane_of.busy_until.max(self.now) + carried;
        let last = lane_of.on_the_way.back().map_or(Duration::ZERO, |(at, _)| *at);
        let at = (lane_of.busy_until + delay).max(last);
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
                // Nobody acknowledges them, so the sender keeps them and gets no room.
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

    /// Forgets a connection that neither end still has.
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
        let (front, back) = lane.readable.as_slices();
        let first = count.min(front.len());
        buffer[..first].copy_from_slice(&front[..first]);
        buffer[first..count].copy_from_slice(&back[..count - first]);
        lane.readable.drain(..count);
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
        // A machine that is gone says nothing, and a dead process has said everything.
        let of_the_dead = (self.connections.get(&id))
            .is_some_and(|connection| self.dead.contains(&connection.ends[end].host));
        if of_the_dead {
            return;
        }
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
