//! One thread that waits for all sockets of a `Global` or controller, and for time.
//!
//! Everything that runs on it must return quickly. A thread that waits for something may lead in the
//! meantime, see [`Handle::wait`]. Other threads hand over connections, listeners and services, and wake it;
//! they write frames themselves, through the [`Outbox`].

mod bell;

mod buffers;

mod driver;
use driver::{Driver, Patience, Stay};

mod guest;

mod lead;
pub use lead::Step;
use lead::{Lead, Role};

use std::{
    cell::Cell,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use bytes::Bytes;
use mio::{Interest, Poll, Registry, Token, Waker, event::Source as _};
use parking_lot::Mutex;

#[cfg(feature = "simulation")]
use crate::simulation;
use crate::{
    outbox::{Budget, Outbox, Room},
    survive::survive,
    transport::{Listener, Stream},
};

/// Handles one connection. Called only on the reactor's thread, except to close a connection that was added
/// too late.
pub trait Connection: Send {
    /// Handles bytes that came in. Returns how many of them were used; the rest is passed again with more
    /// behind it, unless it has been moved to a place that is now [expected](Self::expected) to be filled.
    ///
    /// # Errors
    /// Why the connection is to be closed.
    fn received(&mut self, batch: &Bytes) -> Result<usize, String>;

    /// Returns what comes next, as far as that is known. Bytes that belong to a [place](Expected::Rest) are
    /// read there instead of into a buffer, and [`placed`](Self::placed) is called instead of
    /// [`received`](Self::received).
    fn expected(&mut self) -> Expected<'_> {
        Expected::Frames
    }

    /// Records that this many bytes were read into the place expected to be filled, which now has that much
    /// less room.
    fn placed(&mut self, bytes: usize) {
        debug_assert_eq!(bytes, 0, "no place was given");
    }

    /// Handles the end of the connection, for this reason. Nothing is called after it.
    fn closed(&mut self, reason: &str);
}

/// What comes next on a connection.
#[derive(Debug)]
pub enum Expected<'a> {
    /// Frames.
    Frames,
    /// Probably a large frame whose rest has its own place, so only its beginning should be read at first.
    LargeFrame {
        /// The length of a frame that has begun and comes before it.
        ahead: usize,
    },
    /// The rest of a frame, which belongs here: at least one byte.
    Rest(&'a mut [u8]),
}

/// Takes the connections that come in on a listener.
pub trait Acceptor: Send {
    /// Returns whether connections are accepted yet. Until then they wait, and this is called again soon.
    fn is_open(&self) -> bool {
        true
    }

    /// Takes a connection from `peer`, given as text for logs. Dropping the stream closes it.
    fn accepted(&mut self, stream: Stream, peer: &str);
}

/// Something that wants a turn on the reactor's thread.
pub trait Service: Send + Sync {
    /// Does what is due. Called after each batch of events, whenever the reactor was woken, and at the time
    /// that the last call returned, if any.
    fn turn(&self, now: Instant) -> Option<Instant>;

    /// Runs code that others wrote, in a [`Handle::step`]. Called after each batch of events.
    fn work(&self) {}
}

/// A running reactor. Dropping it stops its thread and closes everything on it.
#[derive(Debug)]
pub struct Reactor {
    handle: Handle,
}

/// A handle to a reactor for any thread.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    lead: Lead,
    /// Locked by the thread that leads, except while it does work.
    driver: Mutex<Option<Driver>>,
    registry: Arc<Registry>,
    waker: Waker,
    stopped: AtomicBool,
    /// `None` once everything is closed: a command that stayed here forever might itself keep the reactor
    /// alive.
    commands: Mutex<Option<Vec<Command>>>,
    token: AtomicUsize,
}

thread_local! {
    /// Which reactor this thread belongs to, as the address of its shared part; 0 for none.
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

impl Reactor {
    /// Starts a reactor with a thread named `name`.
    ///
    /// # Errors
    /// The operating system provides no poll handle or no thread.
    pub fn start(name: &str) -> io::Result<Self> {
        Self::start_with(name, Patience::default())
    }

    fn start_with(name: &str, patience: Patience) -> io::Result<Self> {
        let poll = Poll::new()?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            lead: Lead::default(),
            registry: Arc::new(poll.registry().try_clone()?),
            waker: Waker::new(poll.registry(), WAKE)?,
            driver: Mutex::new(Some(Driver::new(poll, patience))),
            stopped: AtomicBool::new(false),
            commands: Mutex::new(Some(Vec::new())),
            token: AtomicUsize::new(WAKE.0 + 1),
        });
        let reactor = Self { handle: Handle { shared } };
        #[cfg(feature = "simulation")]
        if simulation::with(|world| world.reactor(&reactor.handle)).is_some() {
            return Ok(reactor);
        }
        reactor.handle.shared.clone().spawn(Role::Lead)?;
        Ok(reactor)
    }

    /// Returns a handle for other threads.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Stops, and waits until everything on the reactor is closed. On the reactor's own thread, it does not
    /// wait.
    pub fn stop(&mut self) {
        let shared = &self.handle.shared;
        shared.stopped.store(true, Ordering::SeqCst);
        shared.lead.stop();
        self.handle.wake();
        #[cfg(feature = "simulation")]
        if simulation::is_on() {
            return shared.close();
        }
        if !self.handle.is_current() {
            shared.lead.wait_closed();
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Handle {
    /// Adds a connected stream to the reactor.
    ///
    /// At most `bytes_max` bytes may wait for its socket, and at most `budget` for all sockets that share it.
    ///
    /// # Errors
    /// The operating system does not accept the socket.
    pub fn add_connection(
        &self,
        mut stream: Stream,
        bytes_max: usize,
        budget: Arc<Budget>,
        connection: impl FnOnce(&Arc<Outbox>) -> Box<dyn Connection>,
    ) -> io::Result<Arc<Outbox>> {
        let token = self.token();
        stream.register(&self.shared.registry, token, Room::INTERESTS)?;
        let room = Room::new(self.shared.registry.clone(), token);
        let outbox = Outbox::new(stream, Some(room), bytes_max, budget);
        let connection = connection(&outbox);
        self.command(Command::Connection(token, outbox.clone(), connection));
        Ok(outbox)
    }

    /// Adds a listener to the reactor.
    ///
    /// # Errors
    /// The operating system does not accept the socket.
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

    /// Gives `service` no more turns.
    pub fn remove_service(&self, service: Arc<dyn Service>) {
        self.command(Command::RemoveService(service));
    }

    /// Makes every service have a turn soon. Cheap while the thread is busy.
    pub fn wake(&self) {
        self.shared.lead.wake(|| self.shared.rouse());
    }

    /// Like [`wake`](Self::wake), but the turn may be a few milliseconds later: a guest that has just left
    /// may be about to lead again.
    pub fn wake_soon(&self) {
        self.shared.lead.wake_soon(|| self.shared.rouse());
    }

    /// Returns whether nobody leads because the last guest has just left.
    pub fn is_vacant(&self) -> bool {
        self.shared.lead.is_vacant()
    }

    /// Returns whether this is the thread that leads. What it leaves to be done is done in the turn that
    /// follows.
    pub fn is_current(&self) -> bool {
        CURRENT.get() == self.shared.address() && self.shared.lead.is_mine()
    }

    /// Returns whether this thread is in a turn of any reactor, in which it must not wait.
    pub fn is_any_current() -> bool {
        CURRENT.get() != 0
    }

    /// Does `work` that may take its time, in [`Service::work`], piece by piece: after each piece, the work
    /// calls [`Step::again`] to learn whether this thread still leads. If not, another thread has taken over
    /// and continues with the remaining work.
    pub fn step(&self, work: impl FnOnce(&Step<'_>)) {
        debug_assert_eq!(CURRENT.get(), self.shared.address());
        let stand_by = || {
            // There is no other thread to take over.
            #[cfg(feature = "simulation")]
            if simulation::is_on() {
                return true;
            }
            let spawned = self.shared.clone().spawn(Role::StandBy);
            if let Err(error) = &spawned {
                tracing::error!(%error, "no thread to stand by: a callback that blocks holds up everything");
            }
            spawned.is_ok()
        };
        self.shared.lead.step(stand_by, work);
    }

    /// Gives up the lead in the middle of a step, because this thread is about to wait for something.
    pub fn step_aside(&self) {
        if CURRENT.get() == self.shared.address() {
            self.shared.lead.step_aside(|| {
                let spawned = self.shared.clone().spawn(Role::Lead);
                if let Err(error) = &spawned {
                    tracing::error!(%error, "no thread to take the lead: everything waits for a callback that blocks");
                }
                spawned.is_ok()
            });
        }
    }

    /// Does what the reactor's thread does from one wait to the next, without waiting: it tries everything
    /// that an event might allow. Returns when the next turn is due at the latest.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    pub fn simulate(&self) -> Option<Instant> {
        CURRENT.set(self.shared.address());
        let mut driver = self.shared.driver.lock().take();
        let next = driver.as_mut().and_then(|driver| driver.simulate(&self.shared));
        *self.shared.driver.lock() = driver;
        CURRENT.set(0);
        if self.shared.stopped.load(Ordering::SeqCst) {
            self.shared.close();
        }
        next
    }

    /// Returns whether somebody wants a turn, and one can be had.
    #[cfg(feature = "simulation")]
    #[doc(hidden)]
    pub fn is_woken(&self) -> bool {
        self.shared.lead.bell.is_marked() && self.shared.driver.lock().is_some()
    }

    fn token(&self) -> Token {
        Token(self.shared.token.fetch_add(1, Ordering::Relaxed))
    }

    fn command(&self, command: Command) {
        let mut commands = self.shared.commands.lock();
        if let Some(commands) = &mut *commands {
            commands.push(command);
        } else {
            drop(commands);
            return command.refuse();
        }
        drop(commands);
        self.wake();
    }
}

impl Shared {
    /// Makes the thread that leads, which is waiting, return from its wait.
    fn rouse(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake the I/O thread");
        }
    }

    /// Starts a thread of the reactor.
    fn spawn(self: Arc<Self>, mut role: Role) -> io::Result<()> {
        thread::Builder::new().name(self.name.clone()).spawn(move || {
            CURRENT.set(self.address());
            loop {
                role = match role {
                    Role::Lead => self.lead(),
                    Role::StandBy => self.lead.stand_by(),
                    Role::Rest => self.lead.rest(),
                    Role::End => return,
                };
            }
        })?;
        Ok(())
    }

    /// Leads until another thread does, or until everything is closed.
    fn lead(&self) -> Role {
        self.lead.begin();
        let mut services = self.driver.lock().as_ref().map(Driver::services).unwrap_or_default();
        loop {
            self.lead.bell.answer();
            for service in services.iter() {
                survive(|| service.work());
                if !self.lead.leads() {
                    return self.lead.resign();
                }
            }
            if self.lead.yields() {
                return Role::Rest;
            }
            let mut driver = self.driver.lock();
            let Some(running) = &mut *driver else { return Role::End };
            if self.stopped.load(Ordering::SeqCst) {
                drop(driver);
                self.close();
                return Role::End;
            }
            services = running.turn(self, || Stay::Long);
        }
    }

    /// Closes everything.
    fn close(&self) {
        let closing = self.driver.lock().take();
        closing.into_iter().for_each(Driver::close);
        let late = self.commands.lock().take();
        late.into_iter().flatten().for_each(Command::refuse);
        self.lead.close();
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }
}

impl Command {
    /// Handles a command that came too late.
    fn refuse(self) {
        if let Self::Connection(_, outbox, mut connection) = self {
            outbox.close();
            connection.closed("stopped");
        }
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

#[cfg(test)]
mod tests;
