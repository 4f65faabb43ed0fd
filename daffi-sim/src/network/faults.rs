//! What befalls the network and the processes on it.

use std::{collections::BTreeMap, time::Duration};

use super::{Connection, EndState, Event, HostId, Item, Machine, Network};

impl Network {
    /// Blocks everything from one machine to another, or unblocks it.
    pub(crate) fn block(&mut self, from: Machine, to: Machine, block: bool) {
        self.note(|| format!("{} {from} -> {to}", if block { "block" } else { "unblock" }));
        if block {
            self.blocked.insert((from, to));
            if self.blocked.contains(&(to, from)) {
                self.one_way = self.one_way.saturating_sub(1);
            } else {
                self.one_way += 1;
            }
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

    /// Makes a machine's link slow, or fast again.
    pub(crate) fn slow_down(&mut self, machine: Machine, bytes_per_second: Option<u64>) {
        let Some(rate) = bytes_per_second else {
            self.slow.remove(&machine);
            return self.hurry(machine);
        };
        self.slow.insert(machine, rate);
    }

    /// Delivers what a slow link has not carried yet, as a fast link would.
    fn hurry(&mut self, machine: Machine) {
        let ids: Vec<_> = self.connections.keys().copied().collect();
        for id in ids {
            let at = self.now + self.delay();
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            if connection.ends.iter().all(|end| self.machines[end.host] != machine) {
                continue;
            }
            for lane in &mut connection.lanes {
                lane.busy_until = Duration::ZERO;
                lane.on_the_way.iter_mut().for_each(|(due, _)| *due = at.min(*due));
            }
            (0..2).for_each(|lane| self.at(at, Event::Arrive(id, lane)));
        }
    }

    pub(crate) fn heal(&mut self) {
        for (from, to) in self.blocked.clone() {
            self.block(from, to, false);
        }
        for machine in std::mem::take(&mut self.slow).into_keys() {
            self.hurry(machine);
        }
        self.doomed.clear();
    }

    // ---- death in the middle of something

    /// Makes a process die after this many more steps and socket operations.
    pub(crate) fn doom(&mut self, host: HostId, after: usize, silently: bool) {
        self.note(|| format!("process {host} is to die after {after} steps"));
        self.doomed.insert(host, (after, silently));
    }

    /// Takes one step of a process. Returns whether it lives to do so.
    pub(crate) fn acts(&mut self, host: HostId) -> bool {
        if let Some((left, silently)) = self.doomed.get_mut(&host) {
            if *left > 0 {
                *left -= 1;
                return true;
            }
            let silently = *silently;
            self.doomed.remove(&host);
            self.note(|| format!("process {host} dies in the middle of something"));
            self.fallen.push((host, silently));
            self.deaths += 1;
            self.host_ended(host, silently);
        }
        !self.dead.contains(&host)
    }

    pub(super) fn end_acts(&mut self, id: usize, end: usize) {
        if let Some(host) = self.connections.get(&id).map(|connection| connection.ends[end].host) {
            self.acts(host);
        }
    }

    /// Returns how many sockets each process has open.
    pub(crate) fn open_sockets(&self) -> BTreeMap<HostId, usize> {
        let mut open = BTreeMap::new();
        let ends = self.connections.values().flat_map(|connection| &connection.ends);
        for end in ends.filter(|end| end.state == EndState::Open) {
            *open.entry(end.host).or_default() += 1;
        }
        open
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

    /// Ends a process: its machine closes what it had open, or goes silent with it.
    pub(crate) fn host_ended(&mut self, host: HostId, silently: bool) {
        if !self.dead.insert(host) {
            return;
        }
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

    /// Brings back a machine that went silent; it knows nothing about its connections.
    pub(crate) fn machine_back(&mut self, machine: Machine) {
        for connection in self.connections.values_mut() {
            for end in &mut connection.ends {
                if self.machines[end.host] == machine && end.state == EndState::Gone {
                    end.state = EndState::Closed;
                }
            }
        }
    }
}
