//! Sockets of the simulated network.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice},
    net::Shutdown,
    sync::Arc,
};

use daffi_core::simulation::{Door, Pipe};
use parking_lot::Mutex;

use super::{HostId, Listener, Network};

/// The network, shared by its sockets.
pub(crate) type Shared = Arc<Mutex<Network>>;

/// One end of a connection.
struct Socket {
    network: Shared,
    id: usize,
    end: usize,
}

impl Pipe for Socket {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut network = self.network.lock();
        network.end_acts(self.id, self.end);
        network.read(self.id, self.end, buffer)
    }

    fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut network = self.network.lock();
        network.end_acts(self.id, self.end);
        network.write(self.id, self.end, slices)
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
        network.acts(self.host);
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

/// Connects `host` to the process that listens on `address`.
///
/// # Errors
/// Nothing is listening, or nothing gets through.
pub(crate) fn connect(network: &Shared, host: HostId, address: &str) -> io::Result<Box<dyn Pipe>> {
    let mut locked = network.lock();
    if !locked.acts(host) {
        return Err(ErrorKind::ConnectionAborted.into());
    }
    let now = locked.now;
    locked.attempts.push(now);
    let id = locked.connect(host, address)?;
    Ok(Box::new(Socket { network: network.clone(), id, end: 0 }))
}

/// Has `host` listen on `address`.
///
/// # Errors
/// Another process is already listening there.
pub(crate) fn listen(network: &Shared, host: HostId, address: &str) -> io::Result<Box<dyn Door>> {
    let mut locked = network.lock();
    if locked.dead.contains(&host) || locked.listeners.contains_key(address) {
        return Err(ErrorKind::AddrInUse.into());
    }
    locked.listeners.insert(address.to_owned(), Listener { host, waiting: VecDeque::new() });
    Ok(Box::new(Entrance { network: network.clone(), address: address.to_owned(), host }))
}
