//! One thread that waits for all sockets of a `Global` or controller, and for time.
//!
//! Whatever runs on it has to return quickly. A thread that waits for something may lead meanwhile, see
//! [`Handle::wait`]. Other threads hand over connections, listeners and services, and wake
//! it; frames they write themselves, through the [`Outbox`].

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

/// What happens on one connection. Called on the reactor's thread alone, except for the end of a connection that came
/// too late for the reactor.
pub trait Connection: Send {
    /// Bytes came in. Says how many of them were used; the rest comes again with more behind it, unless it has gone to a place
    /// that is [expected](Self::expected) to be filled then.
    ///
    /// # Errors
    /// Why the connection is to be closed.
    fn received(&mut self, batch: &Bytes) -> Result<usize, String>;

    /// What comes next, as far as that is known. What belongs to a [place](Expected::Rest) is read there instead of into a
    /// buffer, and [`placed`](Self::placed) is called instead of [`received`](Self::received).
    fn expected(&mut self) -> Expected<'_> {
        Expected::Frames
    }

    /// So many bytes were read to the place that was expected to be filled, which has that much less room from now on.
    fn placed(&mut self, bytes: usize) {
        debug_assert_eq!(bytes, 0, "no place was given");
    }

    /// The connection is gone, for this reason. Nothing is called after it.
    fn closed(&mut self, reason: &str);
}

/// What comes next on a connection.
#[derive(Debug)]
pub enum Expected<'a> {
    /// Frames.
    Frames,
    /// Probably a large frame whose rest has a place of its own, so that it is better to see how it begins first.
    LargeFrame {
        /// How many bytes a frame has that has begun and comes before it.
        ahead: usize,
    },
    /// The rest of a frame, which belongs here: at least one byte.
    Rest(&'a mut [u8]),
}

/// Takes connections that come in on a listener.
pub trait Acceptor: Send {
    /// Whether connections are taken by now. While they are not they wait, and this is asked again soon.
    fn is_open(&self) -> bool {
        true
    }

    /// A connection came in, from `peer` as text for logs. Dropping the stream closes it.
    fn accepted(&mut self, stream: Stream, peer: &str);
}

/// Something that wants a turn on the reactor's thread.
pub trait Service: Send + Sync {
    /// Does what is due. Called after each batch of events, whenever the reactor was woken, and at the time that it
    /// returned last, if it returned one.
    fn turn(&self, now: Instant) -> Option<Instant>;

    /// Does what others wrote, in a [`Handle::step`]. Called after each batch of events.
    fn work(&self) {}
}

/// A running reactor. Dropping it stops its thread and closes what is on it.
#[derive(Debug)]
pub struct Reactor {
    handle: Handle,
}

/// Reaches a reactor from any thread.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    lead: Lead,
    /// Held by the thread that leads, except while it works.
    driver: Mutex<Option<Driver>>,
    registry: Arc<Registry>,
    waker: Waker,
    stopped: AtomicBool,
    /// `None` once everything is closed: what would wait for ever here might keep the reactor alive itself.
    commands: Mutex<Option<Vec<Command>>>,
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

impl Reactor {
    /// Starts a reactor with a thread called `name`.
    ///
    /// # Errors
    /// The operating system gives no poll handle or no thread.
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

    /// A handle for other threads.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Stops, and waits until everything on the reactor is closed. On the reactor's own thread it only asks for that.
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
        stream.register(&self.shared.registry, token, Room::INTERESTS)?;
        let room = Room::new(self.shared.registry.clone(), token);
        let outbox = Outbox::new(stream, Some(room), bytes_max, budget);
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
        self.shared.lead.wake(|| self.shared.rouse());
    }

    /// The same, within a few milliseconds: while the last one to lead was a guest, it may be about to lead again.
    pub fn wake_soon(&self) {
        self.shared.lead.wake_soon(|| self.shared.rouse());
    }

    /// Whether nobody leads, since the last guest has just left.
    pub fn is_vacant(&self) -> bool {
        self.shared.lead.is_vacant()
    }

    /// Whether this is the thread that leads. What it leaves to do is done in the turn that follows.
    pub fn is_current(&self) -> bool {
        CURRENT.get() == self.shared.address() && self.shared.lead.is_mine()
    }

    /// Whether this thread is in a turn of any reactor, in which it must not wait.
    pub fn is_any_current() -> bool {
        CURRENT.get() != 0
    }

    /// Does `work` that may take its time, in [`Service::work`], piece by piece: after each it asks
    /// [`Step::again`] whether this thread leads still. If not, another one has taken over, and goes on with the work
    /// that is left.
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

    /// Gives the lead away in the middle of a step, since this thread is about to wait for something.
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

    /// What the reactor's thread does from one wait to the next, without waiting: everything is tried that an event might
    /// allow. Says when the next turn is due at the latest.
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

    /// Whether somebody wants a turn, and there is one to be had.
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
    /// Makes the thread that leads return from waiting, which it does just now.
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
    /// It came too late to be done.
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
