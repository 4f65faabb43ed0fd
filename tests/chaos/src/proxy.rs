//! The wire, and what can be done to it.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;

/// Where the wire leads.
#[derive(Debug, Clone)]
pub enum Target {
    /// A TCP port of this machine.
    Tcp(u16),
    /// The path of a UNIX socket.
    #[cfg(unix)]
    Unix(std::path::PathBuf),
}

/// A direction of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the node to the controller.
    ToController = 0,
    /// From the controller to the node.
    FromController = 1,
}

/// A TCP port that leads to a controller, until something is done to it.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    wire: Arc<Wire>,
}

#[derive(Debug, Default)]
struct Wire {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Nobody gets through.
    cut: bool,
    /// The proxy is dropped.
    ended: bool,
    /// By way: nothing moves, and nobody is told.
    stuck: [bool; 2],
    /// By way: how long each piece takes.
    delay: [Duration; 2],
    /// By way: the most bytes that are written at once, if not all.
    piece: [Option<usize>; 2],
    next: u64,
    /// How often somebody wanted to be connected.
    knocks: u64,
    lines: Vec<Line>,
}

/// One connection.
#[derive(Debug)]
struct Line {
    number: u64,
    node: Stream,
    controller: Stream,
}

impl Proxy {
    /// A wire that works.
    ///
    /// # Errors
    /// The system gives no port.
    pub fn new(target: Target) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let wire = Arc::new(Wire::default());
        let shared = wire.clone();
        thread::Builder::new().name("proxy".into()).spawn(move || accept(&listener, &target, &shared))?;
        Ok(Self { port, wire })
    }

    /// The port of 127.0.0.1 where it begins.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.wire.state().lines.len()
    }

    /// How often a node has connected so far, whether it got through or not.
    pub fn knocks(&self) -> u64 {
        self.wire.state().knocks
    }

    /// Ends the connections, and lets nobody through from now on.
    pub fn cut(&self) {
        self.change(|state| {
            state.cut = true;
            state.end(Line::close);
        });
    }

    /// Ends the connections, and lets the next ones through.
    pub fn snap(&self) {
        self.change(|state| state.end(Line::close));
    }

    /// Ends the connections as a machine does that knows nothing of them: with a reset, in the middle of whatever is
    /// on its way.
    pub fn reset(&self) {
        self.change(|state| state.end(Line::reset));
    }

    /// Says in one direction that nothing more comes; the other one goes on.
    pub fn half_close(&self, way: Way) {
        self.change(|state| {
            for line in &state.lines {
                let to = if way == Way::ToController { &line.controller } else { &line.node };
                let _ = to.shutdown(Shutdown::Write);
            }
        });
    }

    /// Nothing goes this way any more, and nobody is told.
    pub fn jam(&self, way: Way) {
        self.change(|state| state.stuck[way as usize] = true);
    }

    /// From now on what is read in one go takes this long, and nothing overtakes it.
    pub fn delay(&self, way: Way, delay: Duration) {
        self.change(|state| state.delay[way as usize] = delay);
    }

    /// From now on no more than so many bytes are written at once.
    ///
    /// # Panics
    /// If it is 0; that is what [`jam`](Self::jam) is for.
    pub fn slice(&self, way: Way, bytes: usize) {
        assert!(bytes > 0, "pieces have bytes");
        self.change(|state| state.piece[way as usize] = Some(bytes));
    }

    /// What got stuck goes on, undelayed and whole; who was cut off gets through again.
    pub fn mend(&self) {
        self.change(|state| {
            state.cut = false;
            state.stuck = Default::default();
            state.delay = Default::default();
            state.piece = Default::default();
        });
    }

    fn change(&self, how: impl FnOnce(&mut State)) {
        how(&mut self.wire.state());
        self.wire.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.change(|state| {
            state.ended = true;
            state.end(Line::close);
        });
        // Whoever accepts looks again.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until bytes may go this way on this line, and gives how many at once. `None` if the line is no more.
    fn pass(&self, way: Way, line: u64) -> Option<usize> {
        let at = way as usize;
        let mut state = self.state();
        // Each piece is late by what is asked for when it comes; nothing but a change ends that early.
        let due = Instant::now() + state.delay[at];
        loop {
            if !state.has(line) {
                return None;
            }
            let left = due.saturating_duration_since(Instant::now());
            let delayed = !state.delay[at].is_zero() && !left.is_zero();
            state = match (state.stuck[at], delayed) {
                (true, _) => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                (false, true) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                (false, false) => return Some(state.piece[at].unwrap_or(usize::MAX)),
            };
        }
    }

    /// The line ends by itself.
    fn over(&self, line: u64) {
        let mut state = self.state();
        if let Some(at) = state.lines.iter().position(|other| other.number == line) {
            state.lines.swap_remove(at).close();
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    fn has(&self, line: u64) -> bool {
        self.lines.iter().any(|other| other.number == line)
    }

    fn end(&mut self, how: fn(&Line)) {
        self.lines.drain(..).for_each(|line| how(&line));
    }
}

impl Line {
    fn close(&self) {
        let _ = self.node.shutdown(Shutdown::Both);
        let _ = self.controller.shutdown(Shutdown::Both);
    }

    fn reset(&self) {
        // The kernel says RST instead of FIN for a socket that is closed with no time to linger. The threads that
        // read close it: they come back at once, for reading is over.
        for end in [&self.node, &self.controller] {
            end.linger_not();
            let _ = end.shutdown(Shutdown::Read);
        }
    }
}

fn accept(listener: &TcpListener, target: &Target, wire: &Arc<Wire>) {
    for node in listener.incoming() {
        if wire.state().ended {
            return;
        }
        // A port that is not served any more is what the node has to cope with; the proxy itself goes on.
        let Ok(node) = node else {
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        wire.state().knocks += 1;
        let _ = node.set_nodelay(true);
        let Ok(controller) = Stream::connect(target) else { continue };
        let _ = connect(Stream::Tcp(node), controller, wire);
    }
}

fn connect(node: Stream, controller: Stream, wire: &Arc<Wire>) -> io::Result<()> {
    let number = {
        let mut state = wire.state();
        if state.cut || state.ended {
            return Ok(());
        }
        state.next += 1;
        let number = state.next;
        let line = Line { number, node: node.try_clone()?, controller: controller.try_clone()? };
        state.lines.push(line);
        number
    };
    for end in [&node, &controller] {
        end.look_up_while_writing()?;
    }
    for way in [Way::ToController, Way::FromController] {
        let (node, controller, wire) = (node.try_clone()?, controller.try_clone()?, wire.clone());
        thread::Builder::new().name("wire".into()).spawn(move || match way {
            Way::ToController => pump(node, controller, &wire, way, number),
            Way::FromController => pump(controller, node, &wire, way, number),
        })?;
    }
    Ok(())
}

fn pump(mut from: Stream, mut to: Stream, wire: &Wire, way: Way, line: u64) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let mut left = &buffer[..read];
        while !left.is_empty() {
            let Some(piece) = wire.pass(way, line) else { return };
            let now = &left[..piece.min(left.len())];
            match to.write(now) {
                Ok(written) => left = &left[written..],
                // The reader is slow; whether the line is still there is looked at again.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(_) => return wire.over(line),
            }
        }
    }
    // An end is stuck like everything else.
    if wire.pass(way, line).is_some() {
        wire.over(line);
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixStream),
}

impl Stream {
    fn connect(target: &Target) -> io::Result<Self> {
        match target {
            Target::Tcp(port) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            #[cfg(unix)]
            Target::Unix(path) => std::os::unix::net::UnixStream::connect(path).map(Self::Unix),
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            #[cfg(unix)]
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(how),
            #[cfg(unix)]
            Self::Unix(stream) => stream.shutdown(how),
        }
    }

    /// A write to somebody who does not read comes back now and then.
    fn look_up_while_writing(&self) -> io::Result<()> {
        let often = Some(Duration::from_millis(100));
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(often),
            #[cfg(unix)]
            Self::Unix(stream) => stream.set_write_timeout(often),
        }
    }

    fn linger_not(&self) {
        if let Self::Tcp(stream) = self {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            #[cfg(unix)]
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            #[cfg(unix)]
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two ends of a wire.
    fn wire() -> (Proxy, TcpStream, TcpStream, TcpListener) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Proxy::new(Target::Tcp(listener.local_addr().unwrap().port())).unwrap();
        let mut node = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        let (mut controller, _) = listener.accept().unwrap();
        for end in [&node, &controller] {
            end.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        // The proxy is accepted before it knows of its line itself; what passes shows that it does.
        node.write_all(b"?").unwrap();
        controller.read_exact(&mut [0]).unwrap();
        controller.write_all(b"!").unwrap();
        node.read_exact(&mut [0]).unwrap();
        (proxy, node, controller, listener)
    }

    #[test]
    fn bytes_arrive_both_ways() {
        let (_proxy, mut node, mut controller, _listener) = wire();
        node.write_all(b"there").unwrap();
        controller.write_all(b"back").unwrap();
        let mut read = [0; 5];
        controller.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"there");
        node.read_exact(&mut read[..4]).unwrap();
        assert_eq!(&read[..4], b"back");
    }

    #[test]
    fn what_is_stuck_comes_whole_and_in_order_once_it_is_mended() {
        let (proxy, mut node, mut controller, _listener) = wire();
        proxy.jam(Way::ToController);
        node.write_all(&[1; 1000]).unwrap();
        controller.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(controller.read(&mut [0]).is_err());
        node.write_all(&[2; 1000]).unwrap();
        proxy.mend();
        controller.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut read = vec![0; 2000];
        controller.read_exact(&mut read).unwrap();
        assert_eq!(read, [[1; 1000], [2; 1000]].concat());
    }

    #[test]
    fn pieces_are_as_small_as_asked_for() {
        let (proxy, mut node, mut controller, _listener) = wire();
        proxy.slice(Way::ToController, 1);
        node.write_all(&[7; 100]).unwrap();
        let mut read = [0; 100];
        controller.read_exact(&mut read).unwrap();
        assert_eq!(read, [7; 100]);
    }

    #[test]
    fn a_reset_is_an_error_and_a_snap_is_an_end() {
        let (proxy, mut node, mut controller, _listener) = wire();
        proxy.snap();
        assert_eq!(node.read(&mut [0]).unwrap(), 0);
        assert_eq!(controller.read(&mut [0]).unwrap(), 0);

        let (proxy, mut node, mut controller, _listener) = wire();
        proxy.reset();
        for end in [&mut node, &mut controller] {
            assert_eq!(end.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[test]
    fn half_of_it_closes_alone() {
        let (proxy, mut node, mut controller, _listener) = wire();
        proxy.half_close(Way::ToController);
        assert_eq!(controller.read(&mut [0]).unwrap(), 0);
        controller.write_all(b"x").unwrap();
        node.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn who_is_cut_off_gets_through_once_it_is_mended() {
        let (proxy, mut node, _controller, _listener) = wire();
        proxy.cut();
        assert_eq!(node.read(&mut [0]).unwrap(), 0);
        assert_eq!(proxy.connections(), 0);
        let mut refused = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        assert!(!matches!(refused.read(&mut [0]), Ok(1..)));
        proxy.mend();
        let _through = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while proxy.connections() == 0 {
            assert!(Instant::now() < deadline, "nobody gets through");
            thread::sleep(Duration::from_millis(2));
        }
    }
}
