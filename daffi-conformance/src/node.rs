//! A node for tests: it says what it is told to, answers pings, and waits for what it expects.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use daffi_core::{
    Address,
    controller::{FramePort, PortError, RunningController},
    fault::{Fault, FaultKind},
    frame::{
        Body, Failure, Frame, Hello, Offer, Offers, Question, Register, Reply, Targets, VERSION, Welcome,
    },
    limits::{CHUNK_BYTES, FRAME_BYTES_MAX},
    payload::Codec,
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::{
    call::{Call, Offered, Served, send_chunks},
    wire::{PATIENCE, Wire, decoded},
};

/// A node that has been let in. Dropping it closes its connection without a goodbye, like a crash.
pub struct Node {
    name: String,
    welcome: Welcome,
    link: Arc<dyn Link>,
    inbox: Receiver<Bytes>,
    /// Frames that came while it was waiting for others.
    kept: VecDeque<Bytes>,
    next_id: u64,
}

/// How a call, or one part of a broadcast, ended.
pub type Outcome = Result<Bytes, Fault>;

/// The connection to the controller: a socket, or memory.
trait Link: Send + Sync {
    fn send(&self, frame: &Frame<'_>);
    fn close(&self);
    /// Leaves pings unanswered from now on.
    fn mute(&self);
}

impl Node {
    /// Connects to the controller at `address` and registers these callbacks; others see them on return.
    ///
    /// # Panics
    /// The controller does not let it in.
    pub fn join(address: &Address, name: &str, offers: &[Offered]) -> Self {
        Self::join_as(address, name, fresh_instance(), offers)
    }

    /// Like [`join`](Self::join), as a given instance of a process.
    pub fn join_as(address: &Address, name: &str, instance: u64, offers: &[Offered]) -> Self {
        let mut wire = Wire::connect(address);
        wire.hello(name, instance);
        let mut node = Self::over(wire, name);
        node.register(offers);
        node
    }

    /// Creates a node on a connection that has said hello.
    pub fn over(wire: Wire, name: &str) -> Self {
        let (frames, inbox) = channel();
        let link = Arc::new(SocketLink { writer: Mutex::new(wire.another()), muted: AtomicBool::new(false) });
        let reader = link.clone();
        thread::spawn(move || reader.read(wire, &frames));
        Self::welcomed(name, link, inbox)
    }

    /// Attaches a node in memory, if the controller offers that.
    pub fn attach(controller: &dyn RunningController, name: &str, offers: &[Offered]) -> Option<Self> {
        let (frames, inbox) = channel();
        let (own, answers) = channel();
        let inner = Arc::new(Inner { frames: Mutex::new(Some(frames)), answers: Mutex::new(own) });
        let port = controller.attach(inner.clone())?;
        let link = Arc::new(MemoryLink { port: port.clone(), inner, muted: Arc::default() });
        let muted = link.muted.clone();
        // The controller may call a port in the middle of its work, so pings are answered on another thread.
        thread::spawn(move || {
            for id in answers {
                if !muted.load(Ordering::Relaxed) {
                    let _ = port.send(&Frame::Pong { id });
                }
            }
        });
        link.send(&Frame::Hello(Hello {
            version_min: VERSION,
            version_max: VERSION,
            capabilities: 0,
            instance: fresh_instance(),
            name,
            credentials: &[],
        }));
        let mut node = Self::welcomed(name, link, inbox);
        node.register(offers);
        Some(node)
    }

    fn welcomed(name: &str, link: Arc<dyn Link>, inbox: Receiver<Bytes>) -> Self {
        let welcome = Welcome { version: 0, capabilities: 0, node: 0, heartbeat_ms: 0, payload_bytes_max: 0 };
        let mut node =
            Self { name: name.to_owned(), welcome, link, inbox, kept: VecDeque::new(), next_id: 1 };
        node.welcome = node.expect("a WELCOME", |frame| match frame {
            Frame::Welcome(welcome) => Some(*welcome),
            Frame::Refuse(refuse) => panic!("{name:?} is refused: {refuse:?}"),
            _ => None,
        });
        node
    }

    /// Returns the node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what the controller said when it let the node in.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    // ---- what it says

    /// Returns an id that this node has not used.
    pub fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Sends any frame.
    pub fn send(&self, frame: &Frame<'_>) {
        self.link.send(frame);
    }

    /// Registers callbacks and waits until others can see them.
    pub fn register(&mut self, offers: &[Offered]) {
        let id = self.fresh_id();
        self.send_register(id, offers, false);
        self.expect_registered(id);
    }

    /// Sends a REGISTER without waiting.
    pub fn send_register(&mut self, id: u64, offers: &[Offered], more: bool) {
        let mut bytes = Vec::new();
        for (at, offered) in offers.iter().enumerate() {
            let Offered { name, signature, fingerprint, ready, index } = offered;
            let index = index.unwrap_or(at as u32);
            Offers::push(
                &mut bytes,
                &Offer { index, fingerprint: *fingerprint, ready: *ready, name, signature },
            );
        }
        let offers = Offers::parse(&bytes).expect("it was encoded just now");
        self.send(&Frame::Register(Register { id, more, offers }));
    }

    /// Waits until a registration is visible to others.
    pub fn expect_registered(&mut self, id: u64) {
        self.expect("REGISTERED", |frame| {
            matches!(frame, Frame::Registered { id: of } if *of == id).then_some(())
        });
    }

    /// Sends a call and returns its id.
    pub fn call(&mut self, call: &Call<'_>) -> u64 {
        let id = self.fresh_id();
        call.send(id, |frame| self.send(frame));
        id
    }

    /// Asks the controller a question, to be answered in JSON, and returns the question's id.
    pub fn ask(&mut self, question: Question<'_>) -> u64 {
        let id = self.fresh_id();
        self.send(&Frame::Ask { id, codec: Codec::Json.to_byte(), question });
        id
    }

    /// Answers a request with a payload that fits in one frame.
    pub fn reply(&self, request: &Served, body: &[u8]) {
        self.send(&Frame::Reply(Reply {
            id: request.id,
            more: false,
            part: 0,
            codec: request.codec,
            total: body.len() as u32,
            body: Body::borrowed(body),
        }));
    }

    /// Answers a request with a failure.
    pub fn fail(&self, request: &Served, message: &str) {
        let fault = Fault::new(FaultKind::Failed, message).on(&self.name);
        self.send(&Frame::Failure(Failure { id: request.id, part: 0, fault: Box::new(fault) }));
    }

    /// Cancels a call or question.
    pub fn cancel(&self, id: u64) {
        self.send(&Frame::Cancel { id });
    }

    /// Says that it is about to leave.
    pub fn goodbye(&self) {
        self.send(&Frame::Goodbye { reason: "done" });
    }

    /// Leaves pings unanswered from now on, like a frozen process.
    pub fn mute(&self) {
        self.link.mute();
    }

    /// Closes the connection without a goodbye, like a crash.
    pub fn die(self) {}

    // ---- what it waits for

    /// Takes the first frame, received or still to come, for which `wanted` returns `Some`. Keeps the others.
    ///
    /// # Panics
    /// There is none within [`PATIENCE`], or the connection closes first.
    pub fn expect<T>(&mut self, what: &str, wanted: impl Fn(&Frame<'_>) -> Option<T>) -> T {
        self.wait(what, PATIENCE, wanted).unwrap_or_else(|problem| panic!("{problem}"))
    }

    fn wait<T>(
        &mut self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&Frame<'_>) -> Option<T>,
    ) -> Result<T, String> {
        let until = Instant::now() + patience;
        let mut looked_at = 0;
        loop {
            while let Some(bytes) = self.kept.get(looked_at) {
                if let Some(found) = wanted(&decoded(bytes)) {
                    self.kept.remove(looked_at);
                    return Ok(found);
                }
                looked_at += 1;
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.inbox.recv_timeout(left) {
                Ok(bytes) => self.kept.push_back(bytes),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("{self:?} waited {patience:?} for {what}"));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(format!("{self:?} waited for {what}, and its connection was closed"));
                }
            }
        }
    }

    /// Waits for the next request.
    pub fn expect_request(&mut self) -> Served {
        self.expect("a REQUEST", |frame| match frame {
            Frame::Request(request) => Some(Served::of(request)),
            _ => None,
        })
    }

    /// Returns the next request, if one comes in time.
    pub fn request_within(&mut self, patience: Duration) -> Option<Served> {
        self.wait("a REQUEST", patience, |frame| match frame {
            Frame::Request(request) => Some(Served::of(request)),
            _ => None,
        })
        .ok()
    }

    /// Serves the next request: answers it with its own arguments.
    pub fn echo(&mut self) -> Served {
        let request = self.expect_request();
        self.reply(&request, &request.body);
        request
    }

    /// Answers every request with the node's own name, on a separate thread, until the connection closes; the
    /// thread then returns how many there were.
    pub fn answer_with_name(mut self) -> thread::JoinHandle<usize> {
        thread::spawn(move || {
            let mut served = 0;
            while let Some(request) = self.request_within(2 * PATIENCE) {
                served += 1;
                self.reply(&request, self.name.as_bytes());
            }
            served
        })
    }

    /// Waits for the whole payload of a request: its first part and the chunks that follow. Gives no credit.
    pub fn expect_arguments(&mut self, request: &Served) -> Vec<u8> {
        let mut body = request.body.to_vec();
        let mut more = request.more;
        while more {
            let (bytes, goes_on) = self.expect_chunk(request.id, false);
            body.extend_from_slice(&bytes);
            more = goes_on;
        }
        body
    }

    /// Waits for the whole value that a call ended with, including chunks. Gives no credit.
    pub fn expect_result(&mut self, id: u64) -> Vec<u8> {
        let (mut body, mut more) = self.expect("a REPLY", |frame| match frame {
            Frame::Reply(reply) if reply.id == id => Some((reply.body.to_bytes().to_vec(), reply.more)),
            Frame::Failure(failure) if failure.id == id => panic!("call {id} failed: {:?}", failure.fault),
            _ => None,
        });
        while more {
            let (bytes, goes_on) = self.expect_chunk(id, true);
            body.extend_from_slice(&bytes);
            more = goes_on;
        }
        body
    }

    /// Returns the next chunk of a payload, and whether more follow.
    pub fn expect_chunk(&mut self, of: u64, of_reply: bool) -> (Bytes, bool) {
        self.expect("a CHUNK", |frame| match frame {
            Frame::Chunk(chunk) if (chunk.id, chunk.reply) == (of, of_reply) => {
                Some((chunk.body.to_bytes(), chunk.more))
            }
            _ => None,
        })
    }

    /// Answers a request with a payload of any size, in chunks if necessary. Does not wait for credit.
    pub fn reply_in_chunks(&self, request: &Served, body: &[u8]) {
        let (first, rest) = body.split_at(body.len().min(CHUNK_BYTES));
        self.send(&Frame::Reply(Reply {
            id: request.id,
            more: !rest.is_empty(),
            part: 0,
            codec: request.codec,
            total: body.len() as u32,
            body: Body::borrowed(first),
        }));
        send_chunks(request.id, true, rest, |frame| self.send(frame));
    }

    /// Returns how one part of a broadcast ended, or, as part 0, a call.
    pub fn expect_outcome(&mut self, id: u64, part: u32) -> Outcome {
        let what = format!("the outcome of {id}, part {part}");
        self.expect(&what, |frame| match frame {
            Frame::Reply(reply) if (reply.id, reply.part) == (id, part) => Some(Ok(reply.body.to_bytes())),
            Frame::Failure(failure) if (failure.id, failure.part) == (id, part) => {
                Some(Err((*failure.fault).clone()))
            }
            _ => None,
        })
    }

    /// Returns the value that a call ended with.
    pub fn expect_value(&mut self, id: u64) -> Bytes {
        self.expect_outcome(id, 0).unwrap_or_else(|fault| panic!("call {id} failed: {fault:?}"))
    }

    /// Returns the fault that a call ended with.
    pub fn expect_fault(&mut self, id: u64, kind: FaultKind) -> Fault {
        match self.expect_outcome(id, 0) {
            Err(fault) if fault.kind == kind => fault,
            other => panic!("call {id} was to fail with {kind:?}, and ended with {other:?}"),
        }
    }

    /// Returns the controller's answer to a question.
    pub fn expect_answer<T: DeserializeOwned>(&mut self, id: u64) -> T {
        let body = self.expect_value(id);
        Codec::Json.decode(&body).unwrap_or_else(|error| panic!("{error} in the answer {body:?}"))
    }

    /// Returns the targets of a broadcast.
    pub fn expect_targets(&mut self, id: u64) -> Vec<String> {
        self.expect("TARGETS", |frame| match frame {
            Frame::Targets(Targets { id: of, nodes }) if *of == id => {
                Some(nodes.split('\n').map(str::to_owned).collect())
            }
            _ => None,
        })
    }

    /// Waits until a request is cancelled.
    pub fn expect_cancel(&mut self, request: &Served) {
        self.expect("CANCEL", |frame| {
            matches!(frame, Frame::Cancel { id } if *id == request.id).then_some(())
        });
    }

    /// Waits until the controller has seen everything this node sent, and everything it sent to this node
    /// until then has arrived: a ping, and its answer.
    pub fn settle(&mut self) {
        let id = self.fresh_id();
        self.send(&Frame::Ping { id });
        self.expect("PONG", |frame| matches!(frame, Frame::Pong { id: of } if *of == id).then_some(()));
    }

    /// Fails if a frame has come for which `unwanted` returns true.
    pub fn expect_no(&mut self, what: &str, unwanted: impl Fn(&Frame<'_>) -> bool) {
        self.settle();
        if let Some(bytes) = self.kept.iter().find(|bytes| unwanted(&decoded(bytes))) {
            panic!("{self:?} got {what}: {:?}", decoded(bytes));
        }
    }

    /// Whether an outcome of a call has come.
    pub fn has_outcome(&self, id: u64) -> bool {
        self.kept.iter().any(|bytes| match decoded(bytes) {
            Frame::Reply(reply) => reply.id == id,
            Frame::Failure(failure) => failure.id == id,
            _ => false,
        })
    }

    /// Fails if a request has come.
    pub fn expect_no_request(&mut self) {
        self.expect_no("a REQUEST", |frame| matches!(frame, Frame::Request(_)));
    }

    /// Fails if an answer to `id` has come other than those that were waited for.
    pub fn expect_no_outcome(&mut self, id: u64) {
        self.expect_no("an outcome", |frame| match frame {
            Frame::Reply(reply) => reply.id == id,
            Frame::Failure(failure) => failure.id == id,
            Frame::Targets(targets) => targets.id == id,
            _ => false,
        });
    }

    /// Waits until the controller has closed the connection.
    ///
    /// # Panics
    /// It is not closed within [`PATIENCE`].
    pub fn expect_closed(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.kept.push_back(bytes),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => panic!("{self:?} was to be disconnected"),
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.link.close();
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept: Vec<_> = self.kept.iter().map(|bytes| format!("{:?}", decoded(bytes))).collect();
        write!(f, "{:?} (with {kept:?} to be looked at)", self.name)
    }
}

/// Returns a number that no other node of this program has.
pub(crate) fn fresh_instance() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

struct SocketLink {
    writer: Mutex<Wire>,
    muted: AtomicBool,
}

impl SocketLink {
    fn read(&self, mut wire: Wire, frames: &Sender<Bytes>) {
        while let Some(bytes) = wire.receive_forever() {
            if let Frame::Ping { id } = decoded(&bytes) {
                if !self.muted.load(Ordering::Relaxed) {
                    self.send(&Frame::Pong { id });
                }
            } else if frames.send(bytes).is_err() {
                break;
            }
        }
        // A controller that is stopping waits for its nodes to close their side.
        wire.close();
    }
}

impl Link for SocketLink {
    fn send(&self, frame: &Frame<'_>) {
        self.writer.lock().send(frame);
    }

    fn close(&self) {
        self.writer.lock().close();
    }

    fn mute(&self) {
        self.muted.store(true, Ordering::Relaxed);
    }
}

struct MemoryLink {
    port: Arc<dyn FramePort>,
    inner: Arc<Inner>,
    muted: Arc<AtomicBool>,
}

impl Link for MemoryLink {
    fn send(&self, frame: &Frame<'_>) {
        match self.port.send(frame) {
            Ok(()) | Err(PortError::Closed) => {}
            Err(error) => panic!("a {} frame was not taken: {error}", frame.kind()),
        }
    }

    fn close(&self) {
        self.port.close("done");
        self.inner.frames.lock().take();
    }

    fn mute(&self) {
        self.muted.store(true, Ordering::Relaxed);
    }
}

/// Where the controller puts what it sends to a node in memory.
struct Inner {
    frames: Mutex<Option<Sender<Bytes>>>,
    answers: Mutex<Sender<u64>>,
}

impl FramePort for Inner {
    fn send(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        if let Frame::Ping { id } = frame {
            return self.answers.lock().send(*id).map_err(|_| PortError::Closed);
        }
        let bytes = frame.to_bytes();
        assert!(bytes.len() <= FRAME_BYTES_MAX + 16, "a frame in memory keeps to the limits too");
        let frames = self.frames.lock();
        frames.as_ref().ok_or(PortError::Closed)?.send(bytes).map_err(|_| PortError::Closed)
    }

    fn close(&self, _reason: &str) {
        self.frames.lock().take();
    }
}
