//! Waiting for SIGINT and SIGTERM.

use std::io;

/// Reports incoming signals.
#[derive(Debug)]
pub(crate) struct Signals {
    #[cfg(unix)]
    pipe: std::os::unix::net::UnixStream,
}

#[cfg(unix)]
impl Signals {
    /// Registers for signals, which from now on wait here instead of ending the program.
    pub(crate) fn register() -> io::Result<Self> {
        use signal_hook::{
            consts::{SIGINT, SIGTERM},
            low_level::pipe::register,
        };
        let (pipe, written) = std::os::unix::net::UnixStream::pair()?;
        register(SIGINT, written.try_clone()?)?;
        register(SIGTERM, written)?;
        Ok(Self { pipe })
    }

    /// Waits for the next signal.
    pub(crate) fn wait(&mut self) {
        use std::io::Read;
        // The other end stays open as long as the program runs, so only a signal ends this.
        let _ = self.pipe.read_exact(&mut [0]);
    }
}

#[cfg(not(unix))]
impl Signals {
    /// There is nothing to register: Ctrl-C ends the program.
    pub(crate) fn register() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Waits forever.
    pub(crate) fn wait(&mut self) {
        loop {
            std::thread::park();
        }
    }
}
