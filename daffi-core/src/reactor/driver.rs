//! Waiting for sockets and time, and handling events.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use mio::{Events, Poll, Token};

use super::{
    Acceptor, Command, Connection, Expected, Service, Shared,
    buffers::{BUFFER_BYTES, Buffers, Filled},
};
use crate::{
    host,
    limits::{FRAME_TIMEOUT, WRITE_TIMEOUT},
    outbox::Outbox,
    survive::survive,
    transport::Listener,
};

/// Everything that wants turns. Shared, so that it can be worked through without locking the driver.
pub(super) type Services = Arc<Vec<Arc<dyn Service>>>;

/// How many connections a listener accepts in a row while other sockets wait.
const ACCEPTS_IN_A_ROW: usize = 64;
/// How often an acceptor that takes no connections yet is asked again.
const OPEN_EVERY: Duration = Duration::from_millis(1);
/// How long accepting pauses if the process has no file descriptor left.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What the thread that leads works with.
pub(super) struct Driver {
    poll: Poll,
    events: Events,
    connections: HashMap<Token, Open, foldhash::fast::FixedState>,
    listeners: HashMap<Token, (Listener, Box<dyn Acceptor>)>,
    services: Services,
    /// Connections that have more to read than their share of a turn.
    ready: Vec<Token>,
    /// When connections were last checked for peers that have stopped partway.
    swept: Instant,
    patience: Patience,
    /// Listeners that rest until the given time, because accepting failed or has not begun.
    resting: Vec<(Instant, Token)>,
    buffers: Buffers,
}

struct Open {
    outbox: Arc<Outbox>,
    connection: Box<dyn Connection>,
    /// The beginning of a frame whose rest has not arrived yet.
    partial: Vec<u8>,
    /// When that beginning arrived.
    partial_since: Option<Instant>,
    /// How many bytes the socket had taken, and when, while more was waiting.
    progress: Option<(u64, Instant)>,
    /// Read the socket until nothing is left, even if a read does not fill the buffer: the peer has closed
    /// its end, which is only seen behind the last bytes, and no further event reports it.
    to_the_end: bool,
}

/// How long the thread that leads may wait for events.
pub(super) enum Stay {
    Long,
    Until(Instant),
    Not,
}

/// How long peers may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) frame: Duration,
    pub(super) write: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { frame: FRAME_TIMEOUT, write: WRITE_TIMEOUT }
    }
}

/// Whether a connection may have more to read.
enum Read {
    Drained,
    Ready,
}

impl Driver {
    pub(super) fn new(poll: Poll, patience: Patience) -> Self {
        Self {
            poll,
            events: Events::with_capacity(1024),
            connections: HashMap::default(),
            listeners: HashMap::new(),
            services: Services::default(),
            ready: Vec::new(),
            swept: host::now(),
            patience,
            resting: Vec::new(),
            buffers: Buffers::default(),
        }
    }

    /// Does what is due, waits for events, and handles them. Returns the services, which may now have work.
    ///
    /// Waits, once everything due is done, only if and for as long as `stay` allows.
    pub(super) fn turn(&mut self, shared: &Shared, stay: impl FnOnce() -> Stay) -> Services {
        self.commands(shared);
        let now = host::now();
        // This goes first, as it may read something that wants a turn.
        let swept = self.sweep(now);
        let next = host::earliest([swept, self.turns(now)]);
        match stay() {
            Stay::Long => self.wait(shared, next, now),
            Stay::Until(until) => self.wait(shared, Some(next.map_or(until, |next| next.min(until))), now),
            Stay::Not => self.wait(shared, Some(now), now),
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            self.event(event);
        }
        self.events = events;
        for token in std::mem::take(&mut self.ready) {
            self.read(token);
        }
        self.services.clone()
    }

    /// Does everything from one wait to the next: handles whatever events might bring, does the work, and
    /// returns until when to wait.
    #[cfg(feature = "simulation")]
    pub(super) fn simulate(&mut self, shared: &Shared) -> Option<Instant> {
        self.ready.clear();
        // In the order in which they were added, so that every run is the same.
        let mut tokens: Vec<_> = self.connections.keys().copied().collect();
        tokens.sort_unstable();
        for token in tokens {
            if let Some(open) = self.connections.get(&token) {
                open.outbox.writable();
            }
            self.read(token);
        }
        let mut tokens: Vec<_> = self.listeners.keys().copied().collect();
        tokens.sort_unstable();
        tokens.into_iter().for_each(|token| self.accept(token));
        shared.lead.bell.answer();
        for service in self.services().iter() {
            survive(|| service.work());
        }
        self.commands(shared);
        let now = host::now();
        // This goes first, as it may read something that wants a turn.
        let swept = self.sweep(now);
        let next = host::earliest([swept, self.turns(now)]);
        if !self.ready.is_empty() {
            shared.lead.bell.mark();
        }
        host::earliest([next, self.resting.iter().map(|(until, _)| *until).min()])
    }

    /// Returns everything that wants turns.
    pub(super) fn services(&self) -> Services {
        self.services.clone()
    }

    /// Closes every connection.
    pub(super) fn close(mut self) {
        for (_, mut open) in std::mem::take(&mut self.connections) {
            open.outbox.close();
            survive(|| open.connection.closed("stopped"));
        }
    }

    /// Waits for events until `next`, or not at all if there is something to do.
    fn wait(&mut self, shared: &Shared, next: Option<Instant>, now: Instant) {
        let next = host::earliest([next, self.resting.iter().map(|(until, _)| *until).min()]);
        let mut timeout = next.map(|next| next.saturating_duration_since(now));
        if !shared.lead.bell.sleep() || !self.ready.is_empty() {
            timeout = Some(Duration::ZERO);
        }
        if let Err(error) = self.poll.poll(&mut self.events, timeout)
            && error.kind() != ErrorKind::Interrupted
        {
            // Nothing can be done about it here, and without a pause this would spin.
            survive(|| tracing::error!(%error, "waiting for sockets failed"));
            thread::sleep(Duration::from_millis(10));
        }
        shared.lead.bell.awake();
    }

    fn commands(&mut self, shared: &Shared) {
        let commands = shared.commands.lock().as_mut().map(std::mem::take).unwrap_or_default();
        for command in commands {
            match command {
                Command::Connection(token, outbox, connection) => {
                    // Events may have come before the connection was known here, even that of its end.
                    let open = Open {
                        outbox,
                        connection,
                        partial: Vec::new(),
                        partial_since: None,
                        progress: None,
                        to_the_end: true,
                    };
                    self.connections.insert(token, open);
                    self.ready.push(token);
                }
                Command::Listener(token, listener, acceptor) => {
                    self.listeners.insert(token, (listener, acceptor));
                    self.accept(token);
                }
                Command::CloseListener(token) => {
                    self.listeners.remove(&token);
                }
                Command::Service(service) => {
                    Arc::make_mut(&mut self.services).push(service);
                    // It may already have work, and had no chance to say so.
                    shared.lead.bell.mark();
                }
                Command::RemoveService(gone) => {
                    Arc::make_mut(&mut self.services).retain(|service| !Arc::ptr_eq(service, &gone));
                }
            }
        }
    }

    fn turns(&mut self, now: Instant) -> Option<Instant> {
        let due: Vec<_> = self.resting.extract_if(.., |(until, _)| *until <= now).collect();
        for (_, token) in due {
            self.accept(token);
        }
        self.services.iter().filter_map(|service| survive(|| service.turn(now)).flatten()).min()
    }

    fn event(&mut self, event: &mio::event::Event) {
        let token = event.token();
        if let Some(open) = self.connections.get_mut(&token) {
            open.to_the_end |= event.is_read_closed() || event.is_error();
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
        // Read once, then give the others a turn: what one read brings may be work for milliseconds.
        match open.read(&mut self.buffers) {
            Ok(Read::Drained) => {}
            Ok(Read::Ready) => self.ready.push(token),
            Err(reason) => {
                let slow = open.outbox.is_slow();
                self.end(token, if slow { SLOW } else { &reason });
            }
        }
    }

    fn end(&mut self, token: Token, reason: &str) {
        let Some(mut open) = self.connections.remove(&token) else { return };
        open.outbox.close();
        survive(|| open.connection.closed(reason));
    }

    /// Ends connections whose peers begin something and do not continue. Returns when to check again, if
    /// necessary.
    fn sweep(&mut self, now: Instant) -> Option<Instant> {
        let every = SWEEP_EVERY.min(self.patience.write / 4);
        if now < self.swept + every {
            // Whatever this turn brings is checked once more, even if nothing follows it.
            let is_idle = self.connections.is_empty() && !self.buffers.are_kept();
            return (!is_idle).then_some(self.swept + every);
        }
        self.swept = now;
        self.buffers.age();
        let mut suspects = false;
        let mut late = Vec::new();
        for (token, open) in &mut self.connections {
            open.look_at_progress(now);
            suspects |= open.progress.is_some() || open.partial_since.is_some();
            if open.is_late(now, self.patience) {
                late.push(*token);
            }
        }
        for token in late {
            // If this process itself was stopped, there is something to write and to read before any peer is
            // late.
            if let Some(open) = self.connections.get_mut(&token) {
                open.outbox.writable();
                open.look_at_progress(now);
            }
            self.read(token);
            let Some(open) = self.connections.get(&token).filter(|open| open.is_late(now, self.patience))
            else {
                continue;
            };
            if open.progress.is_some_and(|(_, since)| now >= since + self.patience.write) {
                self.end(token, SLOW);
            } else {
                let reason = format!("a frame was not complete after {:?}", self.patience.frame);
                self.end(token, &reason);
            }
        }
        (suspects || self.buffers.are_kept()).then_some(now + every)
    }

    fn accept(&mut self, token: Token) {
        // Connections that arrive while it rests are accepted afterwards.
        if self.resting.iter().any(|(_, resting)| *resting == token) {
            return;
        }
        let Some((listener, acceptor)) = self.listeners.get_mut(&token) else { return };
        if !acceptor.is_open() {
            self.resting.push((host::now() + OPEN_EVERY, token));
            return;
        }
        for _ in 0..ACCEPTS_IN_A_ROW {
            match listener.accept() {
                // The acceptor writes to the log, which may panic. A stream that it had not passed on by then
                // is closed.
                Ok((stream, peer)) => _ = survive(|| acceptor.accepted(stream, &peer)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    survive(|| tracing::warn!(%error, "cannot accept connections for now"));
                    self.resting.push((host::now() + ACCEPT_REST, token));
                    return;
                }
            }
        }
        self.resting.push((host::now(), token));
    }
}

impl Open {
    /// Records since when the socket has taken nothing of what waits for it.
    fn look_at_progress(&mut self, now: Instant) {
        let written = self.outbox.progress();
        let stalled = written.is_some() && self.progress.map(|(before, _)| before) == written;
        if !stalled {
            self.progress = written.map(|written| (written, now));
        }
        self.outbox.set_stalled(stalled);
    }

    fn is_late(&self, now: Instant, patience: Patience) -> bool {
        self.progress.is_some_and(|(_, since)| now >= since + patience.write)
            || self.partial_since.is_some_and(|since| now >= since + patience.frame)
    }

    /// Reads as much as a connection may at a time, and passes on what came.
    fn read(&mut self, buffers: &mut Buffers) -> Result<Read, String> {
        let mut bytes = 0;
        loop {
            let (more, read) = match self.connection.expected() {
                Expected::Rest(_) => self.read_rest()?,
                Expected::LargeFrame { ahead } => {
                    let bytes_max = self.partial.len().max(ahead) + LARGE_FRAME_BEGIN_BYTES;
                    self.read_frames(buffers, bytes_max.min(BUFFER_BYTES))?
                }
                Expected::Frames => self.read_frames(buffers, BUFFER_BYTES)?,
            };
            bytes += read;
            // What is read to its place comes in smaller reads; together they are a batch like any other.
            let is_batch = bytes >= BUFFER_BYTES || matches!(self.connection.expected(), Expected::Frames);
            if is_batch || matches!(more, Read::Drained) {
                return Ok(more);
            }
        }
    }

    /// Reads once, up to `bytes_max` including the beginning of a frame that is there, and passes on what
    /// came; returns how much was read.
    fn read_frames(&mut self, buffers: &mut Buffers, bytes_max: usize) -> Result<(Read, usize), String> {
        let filled = buffers.fill(&self.partial, bytes_max, |room| self.outbox.stream().read(room));
        let Filled { batch, read, is_full } = match filled {
            Ok(filled) => filled,
            Err(error) => return self.did_not_read(&error),
        };
        let used = self.pass_on(read, |connection| connection.received(&batch))?;
        // The rest may have been moved to its place.
        let is_placed = matches!(self.connection.expected(), Expected::Rest(_));
        self.partial.clear();
        if !is_placed {
            self.partial.extend_from_slice(&batch[used..]);
        }
        if self.partial.is_empty() && !is_placed {
            self.partial_since = None;
        } else if used > 0 || self.partial_since.is_none() {
            self.partial_since = Some(host::now());
        }
        if self.partial.is_empty() && self.partial.capacity() > PARTIAL_BYTES_KEPT {
            self.partial = Vec::new();
        }
        Ok((self.after(is_full), read))
    }

    /// Reads once to the place where the rest of a frame belongs; returns how much was read.
    fn read_rest(&mut self) -> Result<(Read, usize), String> {
        let Expected::Rest(place) = self.connection.expected() else { return Ok((Read::Ready, 0)) };
        let room = place.len();
        let read = match self.outbox.stream().read(place) {
            Ok(read) => read,
            Err(error) => return self.did_not_read(&error),
        };
        self.pass_on(read, |connection| {
            connection.placed(read);
            Ok(())
        })?;
        if read == room {
            self.partial_since = None;
        }
        Ok((self.after(read == room), read))
    }

    /// Passes what came to the connection. A panic ends this connection; the others go on.
    fn pass_on<T>(
        &mut self,
        read: usize,
        take: impl FnOnce(&mut dyn Connection) -> Result<T, String>,
    ) -> Result<T, String> {
        if read == 0 {
            return Err("the peer closed the connection".to_owned());
        }
        let taken = survive(|| take(&mut *self.connection));
        taken.unwrap_or_else(|| Err("a panic while its frames were handled".to_owned()))
    }

    fn did_not_read(&mut self, error: &io::Error) -> Result<(Read, usize), String> {
        match error.kind() {
            ErrorKind::WouldBlock => {
                self.to_the_end = false;
                Ok((Read::Drained, 0))
            }
            ErrorKind::Interrupted => Ok((Read::Ready, 0)),
            _ => Err(error.to_string()),
        }
    }

    /// Returns whether there may be more after a read that filled its room or did not. One that did not has
    /// emptied the socket: epoll and kqueue report what arrives later. Elsewhere, the poll needs to see
    /// `WouldBlock` first.
    fn after(&self, is_full: bool) -> Read {
        if !is_full && cfg!(unix) && !self.to_the_end { Read::Drained } else { Read::Ready }
    }
}

/// How much is read first if a large frame is expected whose rest belongs elsewhere: enough for its beginning
/// and for a few small frames before it, so that little has to be copied.
const LARGE_FRAME_BEGIN_BYTES: usize = 1024;

/// How often connections are checked while a peer may have stopped partway.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Why a connection whose peer does not read is ended.
const SLOW: &str = "slow consumer: it does not read what waits for it";

/// How much room for a partial frame an idle connection keeps.
const PARTIAL_BYTES_KEPT: usize = 4 * 1024;

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::Interrupted
    )
}
