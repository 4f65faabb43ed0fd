//! A simulated world that replaces the machine: its clock, its threads and its network.
//!
//! Only for `daffi-sim`, and only with the feature `simulation`. A thread that has [entered](enter) a world
//! gets time, random numbers, threads, sockets and reactors from it; all other threads behave as usual. A
//! reactor of such a thread has no thread of its own: the world gives it its
//! [turns](crate::reactor::Handle::simulate).

use std::{
    cell::RefCell,
    fmt,
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use mio::{Interest, Registry, Token, event::Source};

use crate::{Address, reactor::Handle};

/// A replacement for the machine.
pub trait World {
    /// Returns the time of the monotonic clock.
    fn now(&self) -> Instant;

    /// Returns the time of the wall clock.
    fn wall(&self) -> SystemTime;

    /// Makes the thread sleep for this long.
    fn sleep(&self, time: Duration);

    /// Returns a number derived from the seed.
    fn random(&self) -> u64;

    /// Does `work` later, as another thread would.
    fn spawn(&self, work: Box<dyn FnOnce() + Send>);

    /// Connects to `address`.
    ///
    /// # Errors
    /// As an operating system would.
    fn connect(&self, address: &Address) -> io::Result<Box<dyn Pipe>>;

    /// Listens on `address`.
    ///
    /// # Errors
    /// As an operating system would.
    fn listen(&self, address: &Address) -> io::Result<Box<dyn Door>>;

    /// Registers a reactor that wants its turns.
    fn reactor(&self, handle: &Handle);

    /// Calls `poll` again and again, as the threads of a runtime would, for as long as it returns `true`.
    fn runtime(&self, poll: Box<dyn FnMut() -> bool>);
}

/// One end of a connection. No method blocks.
pub trait Pipe: Send + Sync {
    /// As [`Read::read`].
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there.
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// As [`Write::write_vectored`].
    ///
    /// # Errors
    /// `WouldBlock` if it takes nothing now.
    fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Ends one direction or both.
    fn shutdown(&self, how: Shutdown);
}

/// A listening socket, where connections come in.
pub trait Door: Send + Sync {
    /// Returns the next connection, and where it comes from.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    fn accept(&self) -> io::Result<(Box<dyn Pipe>, String)>;
}

thread_local! {
    static WORLD: RefCell<Option<Rc<dyn World>>> = const { RefCell::new(None) };
}

/// Puts this thread into `world`, or back into the real one with `None`.
pub fn enter(world: Option<Rc<dyn World>>) {
    // Dropping the old one may lead here again.
    let left = WORLD.replace(world);
    drop(left);
}

/// Returns whether this thread is in a simulated world.
pub fn is_on() -> bool {
    with(|_| ()).is_some()
}

/// Asks the world that this thread is in, if any.
pub fn with<T>(ask: impl FnOnce(&dyn World) -> T) -> Option<T> {
    // A thread that is ending has left it.
    let world = WORLD.try_with(|world| world.borrow().clone()).ok().flatten()?;
    Some(ask(&*world))
}

/// A connected socket of a simulated network.
pub struct SimulatedStream(pub(crate) Box<dyn Pipe>);

/// A listening socket of a simulated network.
pub struct SimulatedListener(pub(crate) Box<dyn Door>);

impl SimulatedStream {
    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.0.shutdown(how);
        Ok(())
    }
}

impl Read for &SimulatedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for &SimulatedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.write(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Implements `Source` without a poll: the world's turns read and write everything.
macro_rules! without_poll {
    ($kind:ty) => {
        impl Source for $kind {
            fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
                Ok(())
            }

            fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
                Ok(())
            }

            fn deregister(&mut self, _: &Registry) -> io::Result<()> {
                Ok(())
            }
        }

        impl fmt::Debug for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($kind)).finish_non_exhaustive()
            }
        }
    };
}

without_poll!(SimulatedStream);
without_poll!(SimulatedListener);
