//! Where the router's frames go: to sockets, and to nodes in this process.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use daffi_core::{
    controller::{FramePort, PortError},
    frame::Frame,
    host,
    outbox::{Batch, Outbox},
};

use crate::router::{LogLine, Outbound, PeerId};

/// The ways out, and the work to do on them once the router's lock is released.
#[derive(Debug)]
pub(crate) struct Ports {
    /// By [`PeerId::place`].
    slots: Vec<Option<Slot>>,
    inboxes: Vec<Inbox>,
    /// Sockets that have frames to send.
    gathered: Vec<Gathered>,
    /// Sockets with frames to be written soon, and by when at the latest.
    soon: VecDeque<(Instant, PeerId)>,
    /// Used batches, kept for their memory.
    #[expect(clippy::vec_box, reason = "they are passed on as boxes, since they are large")]
    spare: Vec<Box<Batch>>,
    finish: Vec<Arc<Outbox>>,
    /// Lines to be logged.
    log: Vec<LogLine>,
    /// Sockets that were told to end, and when they are closed by force.
    lingering: VecDeque<(Instant, Weak<Outbox>)>,
    /// How many sockets each reactor has, including those told to end.
    open: Vec<usize>,
    /// The most bytes that may wait for a node in this process.
    queue_bytes_max: usize,
}

#[derive(Debug)]
struct Slot {
    peer: PeerId,
    port: Port,
}

#[derive(Debug)]
enum Port {
    Socket {
        outbox: Arc<Outbox>,
        /// The index of its gathered frames, if there are any.
        gathered: Option<usize>,
        /// Whether queued frames are waiting to be written soon.
        soon: bool,
    },
    Memory,
}

/// Frames for a socket, queued together because taking an outbox's lock costs as much as encoding a frame.
#[derive(Debug)]
struct Gathered {
    peer: PeerId,
    outbox: Arc<Outbox>,
    batch: Box<Batch>,
    /// Whether some of them must be written at once.
    now: bool,
}

/// Frames for a node in this process. They wait because the node may send some in turn, taking the lock.
#[derive(Debug)]
struct Inbox {
    peer: PeerId,
    node: Arc<dyn FramePort>,
    queue: Vec<u8>,
    /// Why the connection ends after these frames, if it does.
    closing: Option<String>,
}

/// What was waiting for a node in this process, taken out for delivery.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) peer: PeerId,
    pub(crate) node: Arc<dyn FramePort>,
    pub(crate) frames: Bytes,
    pub(crate) closing: Option<String>,
}

/// Sockets to write to without holding the lock.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// The first one is separate, because usually it is the only one and then nothing is allocated.
    first: Option<Arc<Outbox>>,
    more: Vec<Arc<Outbox>>,
    finish: Vec<Arc<Outbox>>,
    log: Vec<LogLine>,
}

/// How many batches are kept for their memory: as many as one read of a busy controller fills.
const SPARE_MAX: usize = 16;

/// How long frames to be written soon wait for others.
const SOON: Duration = Duration::from_millis(1);

/// How many bytes of such frames may wait.
const SOON_BYTES_MAX: usize = 16 * 1024;

/// How long a peer may take to notice that it was told to end.
pub(crate) const LINGER: Duration = Duration::from_secs(1);

impl Ports {
    pub(crate) fn new(queue_bytes_max: usize, reactors: usize) -> Self {
        Self {
            slots: Vec::new(),
            inboxes: Vec::new(),
            gathered: Vec::new(),
            soon: VecDeque::new(),
            spare: Vec::new(),
            finish: Vec::new(),
            log: Vec::new(),
            lingering: VecDeque::new(),
            open: vec![0; reactors],
            queue_bytes_max,
        }
    }

    pub(crate) fn add_socket(&mut self, peer: PeerId, outbox: Arc<Outbox>) {
        self.add(Slot { peer, port: Port::Socket { outbox, gathered: None, soon: false } });
    }

    pub(crate) fn add_memory(&mut self, peer: PeerId, node: Arc<dyn FramePort>) {
        self.add(Slot { peer, port: Port::Memory });
        self.inboxes.push(Inbox { peer, node, queue: Vec::new(), closing: None });
    }

    /// Removes a connection that ended from the other side, so that nothing more is sent to it.
    ///
    /// A node of this process is returned, to be dropped without the lock: dropping it may lead back here.
    #[must_use = "it is to be dropped without the lock"]
    pub(crate) fn remove(&mut self, peer: PeerId) -> Option<Arc<dyn FramePort>> {
        let Some(Port::Memory) = self.take(peer) else { return None };
        let at = self.inboxes.iter().position(|inbox| inbox.peer == peer)?;
        Some(self.inboxes.swap_remove(at).node)
    }

    /// Returns the reactor with the fewest sockets, after counting one more for it.
    pub(crate) fn socket_opened(&mut self) -> usize {
        let (reactor, open) =
            self.open.iter_mut().enumerate().min_by_key(|(_, open)| **open).expect("there is a reactor");
        *open += 1;
        reactor
    }

    /// Records that a reactor has one socket fewer.
    pub(crate) fn socket_closed(&mut self, reactor: usize) {
        self.open[reactor] -= 1;
    }

    /// Whether no reactor has any sockets left.
    pub(crate) fn all_sockets_closed(&self) -> bool {
        self.open.iter().all(|open| *open == 0)
    }

    pub(crate) fn is_open(&self, peer: PeerId) -> bool {
        self.slots.get(peer.place()).is_some_and(|slot| slot.as_ref().is_some_and(|slot| slot.peer == peer))
    }

    /// Ends a socket once everything queued for it has been sent, or by force after a while.
    pub(crate) fn finish(&mut self, outbox: Arc<Outbox>) {
        self.lingering.push_back((host::now() + LINGER, Arc::downgrade(&outbox)));
        self.finish.push(outbox);
    }

    /// How many sockets were recently told to end.
    pub(crate) fn lingering(&self) -> usize {
        self.lingering.len()
    }

    /// Takes out the sockets that were given long enough to end by themselves, or all of them if `by_force`.
    pub(crate) fn overdue(&mut self, now: Instant, by_force: bool) -> Vec<Arc<Outbox>> {
        let mut overdue = Vec::new();
        while let Some((_, outbox)) = self.lingering.pop_front_if(|(until, _)| by_force || *until <= now) {
            overdue.extend(outbox.upgrade());
        }
        overdue
    }

    /// When [`overdue`](Self::overdue) will next have something.
    pub(crate) fn overdue_next(&self) -> Option<Instant> {
        self.lingering.front().map(|(until, _)| *until)
    }

    /// Queues what was gathered, and returns the sockets to write to.
    pub(crate) fn take_work(&mut self) -> Work {
        let mut work = Work {
            finish: std::mem::take(&mut self.finish),
            log: std::mem::take(&mut self.log),
            ..Work::default()
        };
        for Gathered { peer, outbox, mut batch, now } in self.gathered.drain(..) {
            outbox.push_all(&mut batch);
            if self.spare.len() < SPARE_MAX {
                self.spare.push(batch);
            }
            let slot = self.slots.get_mut(peer.place()).and_then(Option::as_mut);
            let waits = match slot.filter(|slot| slot.peer == peer).map(|slot| &mut slot.port) {
                Some(Port::Socket { gathered, soon, .. }) => {
                    *gathered = None;
                    let waits = !now && outbox.len() < SOON_BYTES_MAX;
                    if waits && !*soon {
                        self.soon.push_back((host::now() + SOON, peer));
                    }
                    *soon = waits;
                    waits
                }
                Some(Port::Memory) | None => false,
            };
            if !waits {
                work.flush(outbox);
            }
        }
        work
    }

    /// Takes out the sockets whose frames have waited long enough.
    pub(crate) fn take_soon(&mut self, now: Instant) -> Vec<Arc<Outbox>> {
        let mut due = Vec::new();
        while self.soon_next().is_some_and(|next| next <= now) {
            if let Some((_, peer)) = self.soon.pop_front()
                && let Some(Port::Socket { outbox, soon, .. }) = self.port(peer)
            {
                *soon = false;
                due.push(outbox.clone());
            }
        }
        due
    }

    /// When [`take_soon`](Self::take_soon) will next have something.
    pub(crate) fn soon_next(&mut self) -> Option<Instant> {
        loop {
            let (next, peer) = *self.soon.front()?;
            if let Some(Port::Socket { soon: true, .. }) = self.port(peer) {
                return Some(next);
            }
            // They were written along with something else.
            self.soon.pop_front();
        }
    }

    fn port(&mut self, peer: PeerId) -> Option<&mut Port> {
        let slot = self.slots.get_mut(peer.place())?.as_mut()?;
        (slot.peer == peer).then_some(&mut slot.port)
    }

    pub(crate) fn has_delivery(&self) -> bool {
        self.inboxes.iter().any(Inbox::has_delivery)
    }

    pub(crate) fn take_delivery(&mut self) -> Option<Delivery> {
        let at = self.inboxes.iter().position(Inbox::has_delivery)?;
        let inbox = &mut self.inboxes[at];
        let frames = Bytes::from(std::mem::take(&mut inbox.queue));
        if inbox.closing.is_some() {
            let Inbox { peer, node, closing, .. } = self.inboxes.swap_remove(at);
            return Some(Delivery { peer, node, frames, closing });
        }
        Some(Delivery { peer: inbox.peer, node: inbox.node.clone(), frames, closing: None })
    }

    /// Puts back what the node did not take, ahead of what has come since.
    pub(crate) fn return_delivery(&mut self, delivery: Delivery) {
        let Delivery { peer, node, frames, closing } = delivery;
        if let Some(inbox) = self.inboxes.iter_mut().find(|inbox| inbox.peer == peer) {
            inbox.queue.splice(..0, frames);
        } else if closing.is_some() {
            self.inboxes.push(Inbox { peer, node, queue: frames.into(), closing });
        }
    }

    fn add(&mut self, slot: Slot) {
        let place = slot.peer.place();
        if self.slots.len() <= place {
            self.slots.resize_with(place + 1, || None);
        }
        self.slots[place] = Some(slot);
    }

    fn take(&mut self, peer: PeerId) -> Option<Port> {
        let slot = self.slots.get_mut(peer.place())?;
        slot.take_if(|slot| slot.peer == peer).map(|slot| slot.port)
    }
}

impl Outbound for Ports {
    fn send(&mut self, to: PeerId, frame: &Frame<'_>, must: bool) -> Result<(), PortError> {
        self.gather(to, frame, must, true)
    }

    fn send_soon(&mut self, to: PeerId, frame: &Frame<'_>) -> Result<(), PortError> {
        self.gather(to, frame, true, false)
    }

    fn close(&mut self, peer: PeerId, reason: &str) {
        match self.take(peer) {
            Some(Port::Socket { outbox, .. }) => self.finish(outbox),
            Some(Port::Memory) => {
                if let Some(inbox) = self.inboxes.iter_mut().find(|inbox| inbox.peer == peer) {
                    inbox.closing = Some(reason.to_owned());
                }
            }
            None => {}
        }
    }

    fn log(&mut self, line: LogLine) {
        self.log.push(line);
    }
}

impl Ports {
    #[inline(always)]
    fn gather(&mut self, to: PeerId, frame: &Frame<'_>, must: bool, now: bool) -> Result<(), PortError> {
        let slot = self.slots.get_mut(to.place()).and_then(Option::as_mut).filter(|slot| slot.peer == to);
        match slot.map(|slot| &mut slot.port) {
            Some(Port::Socket { outbox, gathered, .. }) => {
                let at = *gathered.get_or_insert_with(|| {
                    let batch = self.spare.pop().unwrap_or_default();
                    self.gathered.push(Gathered { peer: to, outbox: outbox.clone(), batch, now: false });
                    self.gathered.len() - 1
                });
                let gathered = &mut self.gathered[at];
                gathered.now |= now;
                let batch = &mut gathered.batch;
                if must { outbox.add(batch, frame) } else { outbox.try_add(batch, frame) }
            }
            Some(Port::Memory) => {
                let inbox = self.inboxes.iter_mut().find(|inbox| inbox.peer == to);
                let inbox = inbox.ok_or(PortError::Closed)?;
                // A node in this process always gets its replies: a limit would only lose them.
                if !must && inbox.queue.len() >= self.queue_bytes_max {
                    return Err(PortError::Full);
                }
                frame.encode(&mut inbox.queue);
                Ok(())
            }
            None => Err(PortError::Closed),
        }
    }
}

impl Inbox {
    fn has_delivery(&self) -> bool {
        !self.queue.is_empty() || self.closing.is_some()
    }
}

impl Work {
    fn flush(&mut self, outbox: Arc<Outbox>) {
        if self.first.is_none() {
            self.first = Some(outbox);
        } else {
            self.more.push(outbox);
        }
    }

    /// Writes to the sockets.
    pub(crate) fn run(self) {
        for outbox in self.first.iter().chain(&self.more) {
            outbox.flush();
        }
        if !(self.finish.is_empty() && self.log.is_empty()) {
            self.run_rest();
        }
    }

    #[cold]
    fn run_rest(self) {
        for outbox in self.finish {
            outbox.finish();
        }
        for line in self.log {
            line.write();
        }
    }
}
