use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use super::*;
use crate::{Address, frame::Frame};

enum Event {
    Received(Vec<u8>),
    Closed(String),
}

/// Takes three bytes at a time, so that the rest is passed again.
struct InThrees(Sender<Event>);

impl Connection for InThrees {
    fn received(&mut self, batch: &Bytes) -> Result<usize, String> {
        if batch.starts_with(b"bad") {
            return Err("bad bytes".to_owned());
        }
        let used = batch.len() / 3 * 3;
        self.0.send(Event::Received(batch[..used].to_vec())).unwrap();
        Ok(used)
    }

    fn closed(&mut self, reason: &str) {
        self.0.send(Event::Closed(reason.to_owned())).unwrap();
    }
}

/// Takes frames of a length and that many bytes, each read to its own place.
struct Places {
    events: Sender<Event>,
    place: Vec<u8>,
    missing: std::ops::Range<usize>,
}

impl Places {
    fn is_whole(&mut self) {
        if self.missing.is_empty() {
            self.events.send(Event::Received(std::mem::take(&mut self.place))).unwrap();
        }
    }
}

impl Connection for Places {
    fn received(&mut self, batch: &Bytes) -> Result<usize, String> {
        assert!(self.missing.is_empty(), "the rest of a frame is not read to its place");
        let mut at = 0;
        while let Some(length) = batch.get(at) {
            let came = &batch[at + 1..batch.len().min(at + 1 + usize::from(*length))];
            self.place = vec![0; usize::from(*length)];
            self.place[..came.len()].copy_from_slice(came);
            self.missing = came.len()..self.place.len();
            let is_whole = self.missing.is_empty();
            self.is_whole();
            if !is_whole {
                return Ok(at);
            }
            at += 1 + came.len();
        }
        Ok(batch.len())
    }

    fn expected(&mut self) -> Expected<'_> {
        match self.missing.is_empty() {
            true => Expected::LargeFrame { ahead: 0 },
            false => Expected::Rest(&mut self.place[self.missing.clone()]),
        }
    }

    fn placed(&mut self, bytes: usize) {
        self.missing.start += bytes;
        self.is_whole();
    }

    fn closed(&mut self, reason: &str) {
        self.events.send(Event::Closed(reason.to_owned())).unwrap();
    }
}

struct Server {
    handle: Handle,
    places: bool,
    events: Sender<Event>,
    outboxes: Sender<Arc<Outbox>>,
}

impl Acceptor for Server {
    fn accepted(&mut self, stream: Stream, _peer: &str) {
        let events = self.events.clone();
        let outbox = self
            .handle
            .add_connection(stream, 1 << 20, Budget::new(1 << 20), |_| match self.places {
                true => Box::new(Places { events, place: Vec::new(), missing: 0..0 }),
                false => Box::new(InThrees(events)),
            })
            .unwrap();
        self.outboxes.send(outbox).unwrap();
    }
}

struct Fixture {
    reactor: Reactor,
    client: TcpStream,
    events: Receiver<Event>,
    outbox: Arc<Outbox>,
    _listener: ListenerGuard,
}

fn fixture() -> Fixture {
    with_patience(Patience::default())
}

fn with_patience(patience: Patience) -> Fixture {
    with(patience, false)
}

fn with(patience: Patience, places: bool) -> Fixture {
    let reactor = Reactor::start_with("test", patience).unwrap();
    let (listener, address) = Listener::bind(&Address::Tcp { host: "127.0.0.1".into(), port: 0 }).unwrap();
    let Address::Tcp { port, .. } = address else { unreachable!() };
    let (events_in, events) = channel();
    let (outboxes_in, outboxes) = channel();
    let server =
        Server { handle: reactor.handle().clone(), places, events: events_in, outboxes: outboxes_in };
    let guard = reactor.handle().add_listener(listener, Box::new(server)).unwrap();
    let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let outbox = outboxes.recv().unwrap();
    Fixture { reactor, client, events, outbox, _listener: guard }
}

#[test]
fn rests_come_again_and_frames_go_out() {
    let mut fixture = fixture();
    let mut got = Vec::new();
    for part in [&b"ab"[..], b"cde", b"f"] {
        fixture.client.write_all(part).unwrap();
    }
    while got.len() < 6 {
        match fixture.events.recv().unwrap() {
            Event::Received(bytes) => got.extend(bytes),
            Event::Closed(reason) => panic!("{reason}"),
        }
    }
    assert_eq!(got, b"abcdef");

    let ping = Frame::Ping { id: 7 };
    fixture.outbox.push(&ping).unwrap();
    fixture.outbox.flush();
    let mut bytes = [0; 16];
    fixture.client.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[..], ping.to_bytes()[..]);
}

#[test]
fn a_connection_closes_for_the_reason_that_its_handler_gives() {
    let mut fixture = fixture();
    fixture.client.write_all(b"bad").unwrap();
    assert!(matches!(fixture.events.recv().unwrap(), Event::Closed(reason) if reason == "bad bytes"));
    assert_eq!(fixture.client.read(&mut [0; 8]).unwrap_or(0), 0);
    assert!(fixture.outbox.push(&Frame::Ping { id: 1 }).is_err());
}

#[test]
fn a_frame_that_is_begun_and_not_completed_ends_the_connection() {
    let short = Duration::from_millis(200);
    let mut fixture = with_patience(Patience { frame: short, ..Patience::default() });
    fixture.client.write_all(b"abcde").unwrap();
    assert!(matches!(fixture.events.recv_timeout(SOON), Ok(Event::Received(bytes)) if bytes == b"abc"));
    let Ok(Event::Closed(reason)) = fixture.events.recv_timeout(SOON) else { panic!("it is not closed") };
    assert_eq!(reason, "a frame was not complete after 200ms");
    assert_eq!(fixture.client.read(&mut [0; 8]).unwrap_or(0), 0);
}

#[test]
fn what_belongs_to_a_place_is_read_there_however_it_is_cut() {
    let frames: Vec<Vec<u8>> = (1..=255).map(|length| (0..length).collect()).collect();
    let bytes: Vec<u8> =
        frames.iter().flat_map(|frame| [&[frame.len() as u8], &frame[..]].concat()).collect();
    for step in [1, 7, 1000, bytes.len()] {
        let mut fixture = with(Patience::default(), true);
        for part in bytes.chunks(step) {
            fixture.client.write_all(part).unwrap();
        }
        fixture.client.shutdown(std::net::Shutdown::Write).unwrap();
        for frame in &frames {
            let Ok(Event::Received(received)) = fixture.events.recv_timeout(SOON) else {
                panic!("in steps of {step}")
            };
            assert_eq!(received, *frame);
        }
        assert!(matches!(fixture.events.recv_timeout(SOON), Ok(Event::Closed(_))));
    }
}

#[test]
fn a_frame_that_does_not_fill_its_place_ends_the_connection() {
    let short = Duration::from_millis(200);
    let mut fixture = with(Patience { frame: short, ..Patience::default() }, true);
    fixture.client.write_all(&[200, 1, 2, 3]).unwrap();
    let Ok(Event::Closed(reason)) = fixture.events.recv_timeout(SOON) else { panic!("it is not closed") };
    assert_eq!(reason, "a frame was not complete after 200ms");
}

/// The time limit is for the whole frame, however often part of it arrives.
#[test]
fn a_frame_that_drips_ends_the_connection() {
    let short = Duration::from_millis(200);
    let mut fixture = with(Patience { frame: short, ..Patience::default() }, true);
    let begun = Instant::now();
    let reason = loop {
        let _ = fixture.client.write_all(&[200]);
        match fixture.events.recv_timeout(short / 4) {
            Ok(Event::Closed(reason)) => break reason,
            Ok(Event::Received(_)) => panic!("it was completed"),
            Err(_) => assert!(begun.elapsed() < SOON / 2, "it goes on"),
        }
    };
    assert_eq!(reason, "a frame was not complete after 200ms");
}

#[test]
fn who_is_between_two_frames_has_time() {
    let short = Duration::from_millis(20);
    let mut fixture = with_patience(Patience { frame: short, ..Patience::default() });
    fixture.client.write_all(b"abc").unwrap();
    assert!(matches!(fixture.events.recv_timeout(SOON), Ok(Event::Received(_))));
    assert!(fixture.events.recv_timeout(10 * short).is_err(), "it is closed");
}

#[test]
fn a_peer_that_takes_nothing_is_a_slow_consumer() {
    let short = Duration::from_millis(200);
    let fixture = with_patience(Patience { write: short, ..Patience::default() });
    let text = "x".repeat(60_000);
    while fixture.outbox.try_push(&Frame::Goodbye { reason: &text }).is_ok() {
        fixture.outbox.flush();
    }
    // Other threads may have pushed frames, of which the reactor does not learn.
    fixture.reactor.handle().wake();
    let Ok(Event::Closed(reason)) = fixture.events.recv_timeout(SOON) else { panic!("it is not closed") };
    assert!(reason.starts_with("slow consumer"), "{reason}");
}

/// A service whose turns last until `release` is dropped.
struct Held(Mutex<Receiver<()>>);

impl Service for Held {
    fn turn(&self, _now: Instant) -> Option<Instant> {
        let _ = self.0.lock().recv_timeout(SOON);
        None
    }
}

#[test]
fn an_end_that_comes_with_the_last_bytes_is_seen() {
    let mut fixture = fixture();
    fixture.client.write_all(b"abc").unwrap();
    assert!(matches!(fixture.events.recv().unwrap(), Event::Received(_)));
    // The thread is held up, so that both are reported by one event.
    let (release, released) = channel();
    fixture.reactor.handle().add_service(Arc::new(Held(Mutex::new(released))));
    thread::sleep(Duration::from_millis(20));
    fixture.client.write_all(b"def").unwrap();
    drop(fixture.client);
    drop(release);
    assert!(matches!(fixture.events.recv_timeout(SOON), Ok(Event::Received(bytes)) if bytes == b"def"));
    assert!(matches!(fixture.events.recv_timeout(SOON), Ok(Event::Closed(_))));
}

#[test]
fn finishing_writes_what_waits_and_then_ends() {
    let mut fixture = fixture();
    let ping = Frame::Ping { id: 7 };
    for _ in 0..1000 {
        fixture.outbox.push(&ping).unwrap();
    }
    fixture.outbox.finish();
    let mut bytes = Vec::new();
    fixture.client.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 16_000);
}

#[test]
fn a_queue_at_its_limit_refuses_and_stopping_closes() {
    let mut fixture = fixture();
    let text = "x".repeat(60_000);
    let frame = Frame::Goodbye { reason: &text };
    // Nobody reads, so the kernel's buffers fill up, and then the queue.
    let refused = (0..10_000).find_map(|_| {
        let refused = fixture.outbox.try_push(&frame).err();
        fixture.outbox.flush();
        refused
    });
    assert_eq!(refused, Some(crate::controller::PortError::Full));
    fixture.reactor.stop();
    assert!(matches!(fixture.events.recv().unwrap(), Event::Closed(reason) if reason == "stopped"));
}

/// Work that is done in steps, like callbacks.
struct Worker {
    handle: Handle,
    jobs: Mutex<std::collections::VecDeque<Box<dyn FnOnce() + Send>>>,
    turns: Sender<()>,
}

impl Worker {
    fn add(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        self.jobs.lock().push_back(Box::new(job));
        self.handle.wake();
    }
}

impl Service for Worker {
    fn turn(&self, _now: Instant) -> Option<Instant> {
        let _ = self.turns.send(());
        None
    }

    fn work(&self) {
        self.handle.step(|step| {
            loop {
                let Some(job) = self.jobs.lock().pop_front() else { return };
                job();
                if !step.again() {
                    return;
                }
            }
        });
    }
}

fn worker() -> (Reactor, Arc<Worker>, Receiver<()>) {
    let reactor = Reactor::start("test").unwrap();
    let (turns_in, turns) = channel();
    let worker =
        Arc::new(Worker { handle: reactor.handle().clone(), jobs: Mutex::default(), turns: turns_in });
    reactor.handle().add_service(worker.clone());
    (reactor, worker, turns)
}

const SOON: Duration = Duration::from_secs(10);

#[test]
fn work_that_blocks_holds_up_nothing() {
    let (mut reactor, worker, turns) = worker();
    let (release, released) = channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let (started_in, started) = channel();
    // Each of these holds up the thread that leads, and another one takes over.
    for _ in 0..5 {
        let (released, started_in) = (released.clone(), started_in.clone());
        worker.add(move || {
            started_in.send(()).unwrap();
            let _ = released.lock().recv();
        });
        started.recv_timeout(SOON).unwrap();
    }
    while turns.try_recv().is_ok() {}
    reactor.handle().wake();
    turns.recv_timeout(SOON).expect("the reactor has turns");
    let (done_in, done) = channel();
    worker.add(move || done_in.send(()).unwrap());
    done.recv_timeout(SOON).expect("other work goes on");
    // Stopping does not wait for them either.
    reactor.stop();
    drop(release);
}

#[test]
fn whoever_steps_aside_may_wait_for_what_the_reactor_does() {
    let (_reactor, worker, turns) = worker();
    let (result_in, result) = channel();
    let inner = worker.clone();
    worker.add(move || {
        assert!(inner.handle.is_current());
        inner.handle.step_aside();
        assert!(!inner.handle.is_current());
        while turns.try_recv().is_ok() {}
        inner.handle.wake();
        result_in.send(turns.recv_timeout(SOON).is_ok()).unwrap();
    });
    assert_eq!(result.recv_timeout(SOON), Ok(true));
}

#[test]
fn all_work_is_done_whoever_leads() {
    let (_reactor, worker, _turns) = worker();
    let (seen_in, seen) = channel();
    for number in 0..1000 {
        let seen_in = seen_in.clone();
        worker.add(move || seen_in.send(number).unwrap());
    }
    // If the system holds up a thread in the middle of its work, it is replaced like one that blocks.
    let mut numbers: Vec<_> = (0..1000).map(|_| seen.recv_timeout(SOON).unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
}

#[test]
fn what_comes_after_the_end_is_dropped() {
    let (mut reactor, worker, _turns) = worker();
    reactor.stop();
    let late = Arc::new(Worker {
        handle: reactor.handle().clone(),
        jobs: Mutex::default(),
        turns: worker.turns.clone(),
    });
    reactor.handle().add_service(late.clone());
    assert_eq!(Arc::strong_count(&late), 1, "it would keep itself alive through its handle");
}

#[test]
#[cfg(unix)]
fn finishing_while_another_thread_writes_ends_the_stream() {
    for _ in 0..2000 {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let outbox = Outbox::new(Stream::from_unix(ours).unwrap(), None, 1 << 20, Budget::new(1 << 20));
        outbox.push(&Frame::Ping { id: 7 }).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| outbox.flush());
            scope.spawn(|| outbox.finish());
        });
        theirs.set_read_timeout(Some(SOON)).unwrap();
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).expect("the stream ends");
        assert_eq!(bytes.len(), 16);
    }
}

#[test]
#[cfg(unix)]
fn a_panic_ends_neither_the_thread_nor_another_connection() {
    struct Panics;
    impl Connection for Panics {
        fn received(&mut self, _batch: &Bytes) -> Result<usize, String> {
            panic!("on purpose");
        }
        fn closed(&mut self, _reason: &str) {}
    }

    let (reactor, worker, turns) = worker();
    worker.add(|| panic!("on purpose"));
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let stream = Stream::from_unix(ours).unwrap();
    let panics = |_: &Arc<Outbox>| Box::new(Panics) as Box<dyn Connection>;
    let _outbox = reactor.handle().add_connection(stream, 1 << 20, Budget::new(1 << 20), panics).unwrap();
    theirs.write_all(b"x").unwrap();
    theirs.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(theirs.read(&mut [0; 8]).unwrap_or(0), 0, "its connection is closed");
    let (done_in, done) = channel();
    worker.add(move || done_in.send(()).unwrap());
    done.recv_timeout(SOON).expect("work goes on");
    while turns.try_recv().is_ok() {}
    reactor.handle().wake();
    turns.recv_timeout(SOON).expect("turns go on");
}

/// Answers questions in its turns, and remembers the thread on which it did so last.
#[derive(Default)]
struct Oracle {
    state: Mutex<Questions>,
    answered: parking_lot::Condvar,
}

#[derive(Default)]
struct Questions {
    asked: u64,
    answered: u64,
    thread: Option<thread::ThreadId>,
}

impl Oracle {
    fn ask(&self) -> u64 {
        let mut state = self.state.lock();
        state.asked += 1;
        state.asked
    }

    fn has_answered(&self, question: u64) -> bool {
        self.state.lock().answered >= question
    }

    /// Returns whether the answer came in time.
    fn sleep(&self, question: u64) -> bool {
        let until = Instant::now() + SOON;
        let mut state = self.state.lock();
        while state.answered < question && !self.answered.wait_until(&mut state, until).timed_out() {}
        state.answered >= question
    }

    fn thread(&self) -> Option<thread::ThreadId> {
        self.state.lock().thread
    }
}

impl Service for Oracle {
    fn turn(&self, _now: Instant) -> Option<Instant> {
        let mut state = self.state.lock();
        if state.answered < state.asked {
            state.answered = state.asked;
            state.thread = Some(thread::current().id());
            self.answered.notify_all();
        }
        None
    }
}

fn oracle() -> (Reactor, Arc<Oracle>) {
    let reactor = Reactor::start("test").unwrap();
    let oracle = Arc::new(Oracle::default());
    reactor.handle().add_service(oracle.clone());
    reactor.handle().welcome_guests(true);
    (reactor, oracle)
}

fn ask(reactor: &Reactor, oracle: &Oracle) -> bool {
    let question = oracle.ask();
    reactor.handle().wake_soon();
    reactor.handle().wait(None, || oracle.has_answered(question), || oracle.sleep(question))
}

/// Returns the id of this thread, which has then led.
fn ask_until_it_leads(reactor: &Reactor, oracle: &Oracle) -> Option<thread::ThreadId> {
    let me = Some(thread::current().id());
    let until = Instant::now() + SOON;
    // How soon it asks again is up to the system.
    while oracle.thread() != me {
        assert!(ask(reactor, oracle) && Instant::now() < until);
    }
    me
}

#[test]
fn a_thread_that_waits_again_and_again_leads_meanwhile_and_the_others_follow() {
    let (reactor, oracle) = oracle();
    let me = ask_until_it_leads(&reactor, &oracle);
    // Nobody waits now. A thread that only wakes the reactor gets its turn nevertheless, and not on this
    // thread.
    let question = oracle.ask();
    reactor.handle().wake();
    assert!(oracle.sleep(question));
    assert_ne!(oracle.thread(), me);
    // Many at once: each gets its answer, regardless of who leads.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    assert!(ask(&reactor, &oracle));
                }
            });
        }
    });
}

#[test]
fn a_guest_that_leaves_without_a_word_is_replaced() {
    let (reactor, oracle) = oracle();
    let me = ask_until_it_leads(&reactor, &oracle);
    let question = oracle.ask();
    reactor.handle().wake_soon();
    assert!(oracle.sleep(question), "the reactor's own thread is back");
    assert_ne!(oracle.thread(), me);
}

#[test]
fn a_guest_leaves_when_its_time_is_up_or_the_reactor_stops() {
    let (mut reactor, oracle) = oracle();
    ask_until_it_leads(&reactor, &oracle);
    let begun = Instant::now();
    reactor.handle().wait(Some(begun + Duration::from_millis(20)), || false, || ());
    assert!(begun.elapsed() >= Duration::from_millis(20));
    let handle = reactor.handle().clone();
    let (waits_in, waits) = channel();
    let guest = thread::spawn(move || {
        waits_in.send(()).unwrap();
        handle.wait(None, || false, || ());
    });
    waits.recv().unwrap();
    reactor.stop();
    guest.join().unwrap();
}
