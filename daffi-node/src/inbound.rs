//! What comes in from the controller, and where it goes.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
    ops::Range,
    sync::Arc,
    sync::atomic::Ordering,
};

use bytes::Bytes;
use daffi_core::{
    Error,
    controller::{FramePort, PortError},
    fault::{Fault, FaultKind},
    frame::{ChunkHead, Failure, Frame, Refuse, RefuseCode, Request, Targets},
    host,
    limits::{FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX},
    reactor::{Connection, Expected},
    survive::wake,
};
use parking_lot::Mutex;

use crate::{
    assembly::Assembly,
    connection::send_registration,
    executor::{Arrival, Job, Origins},
    in_flight::CallId,
    link::{Flush, Port},
    node::{FAREWELL, Node},
    payload_pool::PayloadPool,
    pending::{OutOfTurn, Payload, Progress},
    remains::Remains,
    sleepers::Left,
    streams::StreamId,
};

/// What comes in on one connection.
#[derive(Debug)]
pub(crate) struct Inbound {
    node: Arc<Node>,
    port: Port,
    phase: Phase,
    /// The number of this connection among the node's.
    connection: u64,
    /// Requests whose payload is still incomplete. Together with the running ones they are bounded by
    /// `requests_held_max`.
    requests: HashMap<u64, (Job, Assembly)>,
    /// Consecutive requests for callbacks that keep no order: the executor gets them together.
    gathered: VecDeque<Job>,
    origins: Origins,
    /// A chunk that is being read straight to its place.
    placing: Option<Placing>,
    /// The length of the frame that has begun.
    ahead: usize,
    /// A chunk, or the start of a payload in chunks, came just now, so most likely a chunk comes next.
    chunks_come: bool,
    /// Tasks whose calls are over, to be woken once everything that came has been looked at, and the answers
    /// left to them.
    left: Left,
}

/// A chunk that is being read straight to its place, and that place.
#[derive(Debug)]
struct Placing {
    chunk: ChunkHead,
    buffer: Vec<u8>,
    /// What is still to be read.
    missing: Range<usize>,
}

/// The largest result that is left unread. Whatever else was read along with it is kept until it is read,
/// too.
const LEFT_BYTES_MAX: usize = 256;

/// With at least this many bytes missing, a chunk is read straight to its place.
const PLACED_BYTES_MIN: usize = 8 * 1024;

/// How far the connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `HELLO` is sent.
    Greeting,
    /// The callbacks are sent.
    Registering,
    /// Calls come and go.
    Up,
}

impl Inbound {
    pub(crate) fn new(node: Arc<Node>, port: Port) -> Self {
        let connection = node.link.new_connection();
        Self {
            node,
            port,
            phase: Phase::Greeting,
            requests: HashMap::new(),
            gathered: VecDeque::new(),
            origins: Origins::new(connection),
            connection,
            placing: None,
            ahead: 0,
            chunks_come: false,
            left: Left::default(),
        }
    }

    /// Takes all whole frames, and returns how many bytes they took up.
    fn handle_all(&mut self, batch: &Bytes) -> Result<usize, String> {
        let mut at = 0;
        loop {
            at = self.leave_answers(batch, at);
            let limit = if self.phase == Phase::Greeting { HANDSHAKE_BYTES_MAX } else { FRAME_BYTES_MAX };
            match Frame::decode(batch, at, limit).map_err(|error| error.to_string())? {
                Some((frame, next)) => {
                    self.handle(frame)?;
                    at = next;
                }
                None => {
                    if self.phase == Phase::Up {
                        self.place(batch, at);
                        self.ahead = Frame::length(batch, at).unwrap_or_default();
                    }
                    return Ok(at);
                }
            }
        }
    }

    /// Leaves answers unread, if a task is about to be woken that may read them; returns where they end.
    fn leave_answers(&mut self, batch: &Bytes, at: usize) -> usize {
        if self.left.wakers.is_empty() || !self.node.may_leave_answers() {
            return at;
        }
        let limit = LEFT_BYTES_MAX.min(self.node.limits.payload_bytes_max as usize);
        let mut end = at;
        while let Some(next) = Frame::whole_reply(batch, end, limit) {
            end = next;
        }
        if end > at {
            self.left.unread.push(batch.slice(at..end));
        }
        end
    }

    /// Arranges for the rest of a chunk to be read straight to its place, if one begins at `at`.
    fn place(&mut self, batch: &[u8], at: usize) {
        let Some((chunk, body)) = Frame::begun_chunk(batch, at) else { return };
        if chunk.length - body.len() < PLACED_BYTES_MIN {
            return;
        }
        let detach = |assembly: &mut Assembly| assembly.detach(chunk.length, chunk.more, &self.node.pool);
        let detached = match chunk.reply {
            true => {
                self.node.calls.get(CallId(chunk.id)).and_then(|call| call.with_assembly(chunk.part, detach))
            }
            false => self.requests.get_mut(&chunk.id).and_then(|(_, assembly)| detach(assembly)),
        };
        if let Some((mut buffer, place)) = detached {
            let missing = place.start + body.len()..place.end;
            buffer[place.start..missing.start].copy_from_slice(body);
            self.placing = Some(Placing { chunk, buffer, missing });
        }
    }

    /// Takes a frame. The caller must call [`hand_over`](Self::hand_over) after the last one.
    ///
    /// # Errors
    /// The reason why the connection cannot go on.
    fn handle(&mut self, frame: Frame<'_>) -> Result<(), String> {
        // Anything else may be about one of the gathered requests, or mean that no more are coming.
        if !matches!(frame, Frame::Request(_) | Frame::Reply(_)) {
            self.hand_over();
        }
        match (self.phase, frame) {
            (_, Frame::Ping { id }) => drop(self.port.push_now(&Frame::Pong { id })),
            (_, Frame::Pong { id: FAREWELL }) => {
                // What came before it must be visible to whoever waits for the farewell.
                self.node.wake_tasks(mem::take(&mut self.left));
                self.node.farewell.set(());
            }
            (_, Frame::Pong { id }) => self.node.connector.answered(id),
            (_, Frame::Goodbye { reason }) => {
                tracing::info!(node = self.node.name, reason, "the controller is stopping");
                self.node.link.drain();
            }
            (_, Frame::Refuse(refuse)) => return Err(self.refused(&refuse)),
            (Phase::Greeting, Frame::Welcome(_)) => {
                self.phase = Phase::Registering;
                send_registration(&self.node, &self.port);
            }
            (Phase::Registering, Frame::Registered { .. }) => {
                self.phase = Phase::Up;
                self.node.registered(&self.port, self.connection);
            }
            (Phase::Up, Frame::Registered { .. }) => {}
            (Phase::Up, frame) => return self.handle_up(frame),
            (phase, frame) => return Err(format!("a {} frame came while {phase:?}", frame.kind())),
        }
        Ok(())
    }

    fn handle_up(&mut self, frame: Frame<'_>) -> Result<(), String> {
        let limit = self.node.limits.payload_bytes_max;
        match frame {
            Frame::Request(request) if self.is_coming(&request) => {
                return Err("a REQUEST frame has the id of one whose payload is still coming".to_owned());
            }
            Frame::Request(request) => self.request(&request),
            Frame::Reply(reply) if !reply.more && u64::from(reply.total) <= limit => {
                let mut remains = Remains::default();
                self.node.reply(&reply, |waker| self.left.wakers.push(waker), &mut remains);
                drop(remains);
                self.node.admit_queued();
            }
            Frame::Reply(reply) => {
                self.chunks_come = true;
                self.node.answer(reply.id, true, reply.part, |pending| {
                    pending.reply(&reply, limit, &self.node.pool, wake)
                });
            }
            Frame::Failure(failure) if self.node.try_again(CallId(failure.id), &failure.fault) => {}
            Frame::Failure(failure) => {
                self.node.answer(failure.id, false, failure.part, |pending| pending.failure(failure));
            }
            Frame::Targets(targets) => self.targets(&targets)?,
            Frame::Chunk(chunk) => {
                self.chunk(chunk.head(), |assembly, pool| assembly.add(&chunk, pool));
            }
            Frame::Cancel { id } => {
                match self.requests.remove(&id) {
                    Some((job, _)) => {
                        self.arrived(Arrival::Dropped(job));
                        self.count_requests();
                    }
                    None => self.node.executor.cancel(id),
                }
                self.node.link.cancel_stream(StreamId { call: id, reply: true }, &mut Remains::default());
            }
            Frame::Credit { id, reply, bytes, .. } => {
                self.node.link.credit(StreamId { call: id, reply }, bytes);
            }
            frame => return Err(format!("a {} frame is not for a node", frame.kind())),
        }
        Ok(())
    }

    fn targets(&self, targets: &Targets<'_>) -> Result<(), String> {
        let mut seen = HashSet::new();
        if !targets.nodes.split('\n').all(|name| !name.is_empty() && seen.insert(name)) {
            return Err("a TARGETS frame names nobody, or somebody twice".to_owned());
        }
        let id = CallId(targets.id);
        let Some(pending) = self.node.calls.get(id) else { return Ok(()) };
        match pending.targets(targets) {
            // A broadcast without results is now over for its caller, and goes on alone.
            Ok(Progress::Done) => self.node.let_go(id),
            Ok(_) => {}
            Err(OutOfTurn) => return Err("a TARGETS frame came twice, or for a call to one node".to_owned()),
        }
        Ok(())
    }

    /// Returns whether a request has the id of another one that is still incomplete. One-way requests in a
    /// single frame have no id of their own.
    fn is_coming(&self, request: &Request<'_>) -> bool {
        (request.more || !request.one_way) && self.requests.contains_key(&request.id)
    }

    fn request(&mut self, request: &Request<'_>) {
        let &Request { id, one_way, more, codec, hops, fingerprint, callback, total, .. } = request;
        let limit = self.node.limits.payload_bytes_max;
        if u64::from(total) > limit {
            let fault = Fault::new(FaultKind::BadArguments, "the arguments are too large");
            return self.refuse_request(request, fault.number(total.into()).limit(limit));
        }
        if more && self.requests.len() + self.node.executor.held() >= self.node.limits.requests_held_max {
            let fault = Fault::new(FaultKind::Overloaded, "as many requests are coming as may be");
            return self.refuse_request(request, fault);
        }
        let Ok(hold) = self.node.requests_bytes.hold(total as usize) else {
            let fault = Fault::new(FaultKind::Overloaded, "as many bytes of arguments are held as may be");
            return self.refuse_request(request, fault);
        };
        let mut job = Job {
            id,
            callback,
            one_way,
            codec,
            hops,
            fingerprint,
            deadline: request.deadline().map(|left| host::now() + left),
            timeout_us: request.deadline_us,
            origin: self.origins.of(request.node, &self.node),
            body: Bytes::new(),
            hold,
            number: 0,
        };
        if more {
            self.chunks_come = true;
            let mut assembly = Assembly::new(codec, total, &request.body, &self.node.pool);
            if let Some(bytes) = assembly.take_credit() {
                self.node.credit(id, false, 0, bytes);
            }
            if let Some(reservation) = self.node.executor.reservation(&job) {
                self.arrived(Arrival::Begun(reservation));
            }
            self.requests.insert(id, (job, assembly));
            self.count_requests();
        } else {
            job.body = request.body.to_bytes();
            if self.node.executor.keeps_order(&job) {
                self.arrived(Arrival::Whole(job));
            } else {
                self.gathered.push_back(job);
            }
        }
    }

    /// Once those that are whole are known to the executor, so that whoever stops overlooks none.
    fn count_requests(&self) {
        self.node.receiving.store(self.requests.len(), Ordering::Release);
    }

    fn arrived(&self, arrival: Arrival) {
        self.node.executor.arrived(arrival);
        self.has_work();
    }

    /// Hands over the requests that have been gathered.
    fn hand_over(&mut self) {
        if !self.gathered.is_empty() {
            self.node.executor.all_arrived(&mut self.gathered);
            self.has_work();
        }
    }

    /// Notes that the executor has something to do.
    fn has_work(&self) {
        if let Port::Memory(_) = self.port {
            // It came in the controller's turn, after which the thread would go to sleep.
            self.node.reactor().wake();
        }
    }

    /// Takes more of a payload; `add` adds it to what has arrived.
    fn chunk(
        &mut self,
        chunk: ChunkHead,
        add: impl FnOnce(&mut Assembly, &PayloadPool) -> Result<Option<Payload>, &'static str>,
    ) {
        let ChunkHead { id, reply, more, part, length } = chunk;
        self.chunks_come = true;
        if reply {
            let limit = self.node.limits.payload_bytes_max;
            let add = |assembly: &mut Assembly| add(assembly, &self.node.pool);
            self.node.answer(id, true, part, |pending| pending.chunk(part, limit, add));
            if !more {
                // It may have been the last thing this node had to do, and the memory it came in is given
                // back in a turn.
                self.has_work();
            }
            return;
        }
        let Some((_, assembly)) = self.requests.get_mut(&id) else {
            // It was cancelled or refused. A sender that has not heard of that, or never will, may send the
            // rest.
            if more {
                self.node.credit(id, reply, part, length as u32);
            }
            return;
        };
        match add(assembly, &self.node.pool) {
            Ok(None) => {
                if let Some(bytes) = assembly.take_credit() {
                    self.node.credit(id, reply, part, bytes);
                }
            }
            Ok(Some(payload)) => {
                if let Some((mut job, mut assembly)) = self.requests.remove(&id) {
                    // Its sender has room for others. A one-way request has been forgotten on the way by now.
                    if let Some(bytes) = assembly.take_credit().filter(|_| !job.one_way) {
                        self.node.credit(id, reply, part, bytes);
                    }
                    job.body = payload.body.into_bytes();
                    self.arrived(Arrival::Whole(job));
                    self.count_requests();
                }
            }
            Err(problem) => {
                if let Some((job, _)) = self.requests.remove(&id) {
                    let (id, one_way) = (job.id, job.one_way);
                    self.arrived(Arrival::Dropped(job));
                    self.count_requests();
                    let fault =
                        Fault::new(FaultKind::BadArguments, format!("the payload is broken: {problem}"));
                    self.refuse(id, one_way, fault);
                }
            }
        }
    }

    fn refuse_request(&self, request: &Request<'_>, fault: Fault) {
        // A sender that is not told gets credit for what came, and may go on with the rest.
        if request.one_way && request.more && !request.body.is_empty() {
            self.node.credit(request.id, false, 0, request.body.len() as u32);
        }
        self.refuse(request.id, request.one_way, fault);
    }

    fn refuse(&self, id: u64, one_way: bool, fault: Fault) {
        if one_way {
            tracing::warn!(node = self.node.name, reason = fault.message, "a call was not run");
        } else {
            let fault = Box::new(fault.on(&self.node.name));
            self.node.link.send(&Frame::Failure(Failure { id, part: 0, fault }), Flush::Soon);
        }
    }

    fn refused(&self, refuse: &Refuse<'_>) -> String {
        let name = self.node.name.clone();
        let reason = refuse.reason.to_owned();
        match refuse.code {
            RefuseCode::Unavailable => {}
            RefuseCode::NameTaken => self.node.fatal(Error::NameTaken { name }),
            _ => self.node.fatal(Error::Refused { reason }),
        }
        format!("the controller refused: {}", refuse.reason)
    }
}

impl Connection for Inbound {
    fn received(&mut self, batch: &Bytes) -> Result<usize, String> {
        self.chunks_come = false;
        let used = self.handle_all(batch);
        self.hand_over();
        self.node.wake_tasks(mem::take(&mut self.left));
        used
    }

    fn expected(&mut self) -> Expected<'_> {
        match &mut self.placing {
            Some(Placing { buffer, missing, .. }) => Expected::Rest(&mut buffer[missing.clone()]),
            None if self.chunks_come => Expected::LargeFrame { ahead: self.ahead },
            None => Expected::Frames,
        }
    }

    fn placed(&mut self, bytes: usize) {
        if let Some(placing) = &mut self.placing {
            placing.missing.start += bytes;
        }
        if let Some(Placing { chunk, buffer, .. }) =
            self.placing.take_if(|placing| placing.missing.is_empty())
        {
            self.ahead = 0;
            self.chunk(chunk, |assembly, pool| assembly.attach(buffer, pool));
        }
    }

    fn closed(&mut self, reason: &str) {
        // One-way requests run all the same.
        self.hand_over();
        self.node.wake_tasks(mem::take(&mut self.left));
        // Before the next connection, on which other requests may reserve places under the same ids.
        for (_, (job, _)) in mem::take(&mut self.requests) {
            self.arrived(Arrival::Dropped(job));
        }
        self.count_requests();
        self.node.disconnected(reason);
    }
}

/// Where the controller of this process puts the node's frames.
#[derive(Default)]
pub(crate) struct MemoryPort {
    inbound: Mutex<Option<Inbound>>,
}

impl MemoryPort {
    /// Passes incoming frames to `inbound` from now on.
    pub(crate) fn open(&self, inbound: Inbound) {
        *self.inbound.lock() = Some(inbound);
    }
}

impl FramePort for MemoryPort {
    fn send(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        let pushed = self.push(frame);
        self.flush();
        pushed
    }

    fn push(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        let mut inbound = self.inbound.lock();
        let Some(connection) = &mut *inbound else { return Err(PortError::Closed) };
        let handled = connection.handle(frame.clone());
        connection.hand_over();
        if let Err(reason) = handled {
            tracing::error!(reason, "the controller of this process broke the protocol");
            if let Some(mut connection) = inbound.take() {
                connection.closed(&reason);
            }
            return Err(PortError::Closed);
        }
        Ok(())
    }

    fn flush(&self) {
        // Without the lock, since wakers are foreign code.
        let (node, left) = match &mut *self.inbound.lock() {
            Some(inbound) if !inbound.left.is_empty() => (inbound.node.clone(), mem::take(&mut inbound.left)),
            _ => return,
        };
        node.wake_tasks(left);
    }

    fn close(&self, reason: &str) {
        let connection = self.inbound.lock().take();
        if let Some(mut connection) = connection {
            connection.closed(reason);
        }
    }
}
