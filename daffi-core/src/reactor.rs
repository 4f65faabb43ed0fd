//! One thread that waits for all sockets of a `Global` or controller, and for time.
//!
//! Whatever runs on it has to return quickly. Other threads hand over connections, listeners and services, and wake
//! it; frames they write themselves, through the [`Outbox`].

use std::{
    cell::Cell,
    collections::HashMap,
    fmt,
    io::{self, ErrorKind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use mio::{Events, Interest, Poll, Registry, Token, Waker, event::Source as _};
use parking_lot::Mutex;

use crate::{
    outbox::{Budget, Outbox},
    transport::{Listener, Stream},
};

/// What happens on one connection. Called on the reactor's thread alone.
pub trait Connection: Send {
    /// Bytes came in. Says how many of them were used; the rest comes again with more behind it.
    ///
    /// # Errors
    /// Why the connection is to be closed.
    fn received(&mut self, batch: &Bytes) -> Result<usize, String>;

    /// The connection is gone, for this reason. Nothing is called after it.
    fn closed(&mut self, reason: &str);
}

/// Takes connections that come in on a listener.
pub trait Acceptor: Send {
    /// A connection came in, from `peer` as text for logs. Dropping the stream closes it.
    fn accepted(&mut self, stream: Stream, peer: &str);
}

/// Something that wants a turn on the reactor's thread.
pub trait Service: Send + Sync {
    /// Does what is due. Called after each batch of events, whenever the reactor was woken, and at the time that it
    /// returned last, if it returned one.
    fn turn(&self, now: Instant) -> Option<Instant>;
}

/// A running reactor. Dropping it stops its thread and closes what is on it.
#[derive(Debug)]
pub struct Reactor {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// Reaches a reactor from any thread.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Registry,
    waker: Waker,
    /// The thread is, or is about to be, waiting in `poll`.
    sleeping: AtomicBool,
    /// Somebody wants a turn.
    woken: AtomicBool,
    stopped: AtomicBool,
    commands: Mutex<Vec<Command>>,
    token: AtomicUsize,
}

thread_local! {
    /// Which reactor this thread is, as the address of its shared part; 0 for none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

enum Command {
    Connection(Token, Arc<Outbox>, Box<dyn Connection>),
    Listener(Token, Listener, Box<dyn Acceptor>),
    CloseListener(Token),
    Service(Arc<dyn Service>),
    RemoveService(Arc<dyn Service>),
}

/// Stops listening when it is dropped.
#[derive(Debug)]
pub struct ListenerGuard {
    handle: Handle,
    token: Token,
}

const WAKE: Token = Token(0);

/// What one read brings at most, and the size of the buffer that all connections share.
const READ_BYTES: usize = 256 * 1024;
/// Below this much room in the buffer a new one is taken.
const READ_BYTES_MIN: usize = 64 * 1024;
/// How often one connection is read in a row while others wait.
const READS_IN_A_ROW: usize = 4;
/// How many connections are accepted in a row while others wait.
const ACCEPTS_IN_A_ROW: usize = 64;
/// How long accepting rests when the process has no file descriptor left.
const ACCEPT_REST: Duration = Duration::from_millis(100);

impl Reactor {
    /// Starts a reactor with a thread called `name`.
    ///
    /// # Errors
    /// The operating system gives no poll handle or no thread.
    pub fn start(name: &str) -> io::Result<Self> {
        let poll = Poll::new()?;
        let shared = Arc::new(Shared {
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKE)?,
            sleeping: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            commands: Mutex::default(),
            token: AtomicUsize::new(WAKE.0 + 1),
        });
        let handle = Handle { shared: shared.clone() };
        let thread =
            thread::Builder::new().name(name.to_owned()).spawn(move || Loop::new(poll, shared).run())?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// A handle for other threads.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Stops the thread and closes what is on it. From the thread itself it only asks for that.
    pub fn stop(&mut self) {
        self.handle.shared.stopped.store(true, Ordering::SeqCst);
        self.handle.wake();
        if let Some(thread) = self.thread.take()
            && !self.handle.is_current()
            && thread.join().is_err()
        {
            tracing::error!("the I/O thread panicked: this is a bug in daffi");
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Handle {
    /// Puts a connected stream on the reactor.
    ///
    /// At most `bytes_max` bytes, and `budget` with all that share it, wait for its socket.
    ///
    /// # Errors
    /// The operating system does not take the socket.
    pub fn add_connection(
        &self,
        mut stream: Stream,
        bytes_max: usize,
        budget: Arc<Budget>,
        connection: impl FnOnce(&Arc<Outbox>) -> Box<dyn Connection>,
    ) -> io::Result<Arc<Outbox>> {
        let token = self.token();
        stream.register(&self.shared.registry, token, Interest::READABLE | Interest::WRITABLE)?;
        let outbox = Outbox::new(stream, bytes_max, budget);
        let connection = connection(&outbox);
        self.command(Command::Connection(token, outbox.clone(), connection));
        Ok(outbox)
    }

    /// Puts a listener on the reactor.
    ///
    /// # Errors
    /// The operating system does not take the socket.
    pub fn add_listener(
        &self,
        mut listener: Listener,
        acceptor: Box<dyn Acceptor>,
    ) -> io::Result<ListenerGuard> {
        let token = self.token();
        listener.register(&self.shared.registry, token, Interest::READABLE)?;
        self.command(Command::Listener(token, listener, acceptor));
        Ok(ListenerGuard { handle: self.clone(), token })
    }

    /// Gives `service` its turns from now on.
    pub fn add_service(&self, service: Arc<dyn Service>) {
        self.command(Command::Service(service));
    }

    /// Takes the turns from `service`.
    pub fn remove_service(&self, service: Arc<dyn Service>) {
        self.command(Command::RemoveService(service));
    }

    /// Lets every service have a turn soon. Cheap while the thread is busy.
    pub fn wake(&self) {
        self.shared.woken.store(true, Ordering::SeqCst);
        if self.shared.sleeping.swap(false, Ordering::SeqCst)
            && let Err(error) = self.shared.waker.wake()
        {
            tracing::error!(%error, "cannot wake the I/O thread");
        }
    }

    /// Whether this is the reactor's own thread.
    pub fn is_current(&self) -> bool {
        CURRENT.get() == Arc::as_ptr(&self.shared) as usize
    }

    fn token(&self) -> Token {
        Token(self.shared.token.fetch_add(1, Ordering::Relaxed))
    }

    fn command(&self, command: Command) {
        self.shared.commands.lock().push(command);
        self.wake();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Drop for ListenerGuard {
    fn drop(&mut self) {
        self.handle.command(Command::CloseListener(self.token));
    }
}

/// What the thread itself has.
struct Loop {
    poll: Poll,
    shared: Arc<Shared>,
    connections: HashMap<Token, Open, foldhash::fast::FixedState>,
    listeners: HashMap<Token, (Listener, Box<dyn Acceptor>)>,
    services: Vec<Arc<dyn Service>>,
    /// Connections that have more to read than their share of a turn.
    ready: Vec<Token>,
    /// Listeners that rest until then, because accepting failed.
    resting: Vec<(Instant, Token)>,
    buffer: BytesMut,
}

struct Open {
    outbox: Arc<Outbox>,
    connection: Box<dyn Connection>,
    /// The beginning of a frame whose rest has not come yet.
    partial: Vec<u8>,
}

/// Whether a connection may have more to read.
enum Read {
    Drained,
    Ready,
}

impl Loop {
    fn new(poll: Poll, shared: Arc<Shared>) -> Self {
        Self {
            poll,
            shared,
            connections: HashMap::default(),
            listeners: HashMap::new(),
            services: Vec::new(),
            ready: Vec::new(),
            resting: Vec::new(),
            buffer: BytesMut::new(),
        }
    }

    fn run(mut self) {
        CURRENT.set(Arc::as_ptr(&self.shared) as usize);
        let mut events = Events::with_capacity(1024);
        loop {
            // Whoever wakes the thread from here on wants another turn than the one that begins now.
            self.shared.woken.store(false, Ordering::SeqCst);
            self.commands();
            let now = Instant::now();
            let next = self.turns(now);
            if self.shared.stopped.load(Ordering::SeqCst) {
                break;
            }
            self.wait(&mut events, next, now);
            for event in &events {
                self.event(event);
            }
            for token in std::mem::take(&mut self.ready) {
                self.read(token);
            }
        }
        for (_, mut open) in std::mem::take(&mut self.connections) {
            open.outbox.close();
            open.connection.closed("stopped");
        }
    }

    /// Waits for events until `next`, not at all if there is something to do.
    fn wait(&mut self, events: &mut Events, next: Option<Instant>, now: Instant) {
        let resting = self.resting.iter().map(|(until, _)| *until).min();
        let next = [next, resting].into_iter().flatten().min();
        let mut timeout = next.map(|next| next.saturating_duration_since(now));
        self.shared.sleeping.store(true, Ordering::SeqCst);
        if self.shared.woken.load(Ordering::SeqCst) || !self.ready.is_empty() {
            timeout = Some(Duration::ZERO);
        }
        if let Err(error) = self.poll.poll(events, timeout)
            && error.kind() != ErrorKind::Interrupted
        {
            // Nothing can be done about it here, and without waiting this would spin.
            tracing::error!(%error, "waiting for sockets failed");
            thread::sleep(Duration::from_millis(10));
        }
        self.shared.sleeping.store(false, Ordering::SeqCst);
    }

    fn commands(&mut self) {
        let commands = std::mem::take(&mut *self.shared.commands.lock());
        for command in commands {
            match command {
                Command::Connection(token, outbox, connection) => {
                    self.connections.insert(token, Open { outbox, connection, partial: Vec::new() });
                    // An event may have come before the connection was known here.
                    self.ready.push(token);
                }
                Command::Listener(token, listener, acceptor) => {
                    self.listeners.insert(token, (listener, acceptor));
                    self.accept(token);
                }
                Command::CloseListener(token) => {
                    self.listeners.remove(&token);
                }
                Command::Service(service) => self.services.push(service),
                Command::RemoveService(gone) => self.services.retain(|service| !Arc::ptr_eq(service, &gone)),
            }
        }
    }

    fn turns(&mut self, now: Instant) -> Option<Instant> {
        let due: Vec<_> = self.resting.extract_if(.., |(until, _)| *until <= now).collect();
        for (_, token) in due {
            self.accept(token);
        }
        self.services.iter().filter_map(|service| service.turn(now)).min()
    }

    fn event(&mut self, event: &mio::event::Event) {
        let token = event.token();
        if let Some(open) = self.connections.get(&token) {
            if event.is_writable() {
                open.outbox.writable();
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.read(token);
            }
        } else if self.listeners.contains_key(&token) {
            self.accept(token);
        }
    }

    fn read(&mut self, token: Token) {
        let Some(open) = self.connections.get_mut(&token) else { return };
        for _ in 0..READS_IN_A_ROW {
            match open.read(&mut self.buffer) {
                Ok(Read::Drained) => return,
                Ok(Read::Ready) => {}
                Err(reason) => {
                    let mut open = self.connections.remove(&token).expect("it was found above");
                    open.outbox.close();
                    open.connection.closed(&reason);
                    return;
                }
            }
        }
        self.ready.push(token);
    }

    fn accept(&mut self, token: Token) {
        let Some((listener, acceptor)) = self.listeners.get_mut(&token) else { return };
        for _ in 0..ACCEPTS_IN_A_ROW {
            match listener.accept() {
                Ok((stream, peer)) => acceptor.accepted(stream, &peer),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections for now");
                    self.resting.push((Instant::now() + ACCEPT_REST, token));
                    return;
                }
            }
        }
        self.resting.push((Instant::now(), token));
    }
}

impl Open {
    /// Reads once and passes on what came.
    fn read(&mut self, buffer: &mut BytesMut) -> Result<Read, String> {
        let kept = self.partial.len();
        if buffer.len() < kept + READ_BYTES_MIN {
            refill(buffer, kept);
        }
        buffer[..kept].copy_from_slice(&self.partial);
        let room = buffer.len() - kept;
        let read = match self.outbox.stream().read(&mut buffer[kept..]) {
            Ok(0) => return Err("the peer closed the connection".to_owned()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Read::Drained),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(Read::Ready),
            Err(error) => return Err(error.to_string()),
        };
        let batch = buffer.split_to(kept + read).freeze();
        let used = self.connection.received(&batch)?;
        self.partial.clear();
        self.partial.extend_from_slice(&batch[used..]);
        if self.partial.is_empty() && self.partial.capacity() > PARTIAL_BYTES_KEPT {
            self.partial = Vec::new();
        }
        // A read that does not fill the buffer has emptied the socket: epoll and kqueue tell of what comes later.
        // Elsewhere the poll wants to see `WouldBlock` first.
        Ok(if read < room && cfg!(unix) { Read::Drained } else { Read::Ready })
    }
}

/// How much room for a partial frame an idle connection keeps.
const PARTIAL_BYTES_KEPT: usize = 4 * 1024;

/// Makes `buffer` at least `kept` plus one full read long, in the old memory if nobody refers to it any more.
fn refill(buffer: &mut BytesMut, kept: usize) {
    let size = kept + READ_BYTES;
    buffer.clear();
    if !buffer.try_reclaim(size) {
        *buffer = BytesMut::with_capacity(size);
    }
    buffer.resize(size, 0);
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests;
