//! The router as threads share it: one lock around it, and all writing outside the lock.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use daffi_core::{
    Limits,
    controller::{ControllerConfig, PortError},
    frame::Frame,
    host,
    limits::FRAME_BYTES_MAX,
    outbox::Budget,
    reactor::{Handle, Service},
};

use crate::{
    ports::{Delivery, Ports},
    router::{Now, PeerId, Router},
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// A running controller, shared by its connections.
#[derive(Debug)]
pub(crate) struct Hub {
    state: Mutex<State>,
    /// Signals that a call, a connection or the controller ended while a thread waits for it.
    ended: Condvar,
    /// The reactor that runs the listeners and timers, and that gives nodes of this process their frames.
    pub(crate) handle: Handle,
    /// The reactors that run the connections; the first of them is `handle`.
    pub(crate) reactors: Vec<Handle>,
    pub(crate) limits: Limits,
    pub(crate) budget: Arc<Budget>,
    /// Whether frames are being passed to nodes of this process.
    delivering: AtomicBool,
    /// Whether strangers are let in, and when at the latest: the node of this process comes first.
    open: AtomicBool,
    opens: Instant,
}

/// What the lock protects.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) router: Router,
    pub(crate) ports: Ports,
    pub(crate) stop: Stop,
    /// How many listeners are open.
    pub(crate) doors: usize,
    /// When the next turn is, as far as the reactor knows.
    turn: Option<Instant>,
}

/// What is left to do after work on the router.
struct Left {
    /// Whether there are frames for nodes of this process.
    delivery: bool,
    /// When the next turn is, once the reactor knows about it.
    turn: Option<Instant>,
    /// Whether that is sooner than the reactor knows.
    sooner: bool,
}

/// Marks that frames are being passed to nodes of this process, until it is dropped, even by a panic.
struct Delivering<'a>(&'a AtomicBool);

/// How far stopping has progressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    No,
    Begun,
    /// Done, with this many calls cut off.
    Done(usize),
}

/// How long strangers wait at most for the node of this process to join.
const OPENS_AFTER: Duration = Duration::from_secs(1);

/// When to try again after a node of this process could take no more.
const DELIVER_AGAIN: Duration = Duration::from_millis(1);

impl Hub {
    pub(crate) fn new(config: &ControllerConfig, seed: u64, reactors: Vec<Handle>) -> Arc<Self> {
        let limits = config.limits.clone();
        Arc::new(Self {
            state: Mutex::new(State {
                router: Router::new(config, seed),
                ports: Ports::new(limits.queue_bytes_max, reactors.len()),
                stop: Stop::No,
                doors: 0,
                turn: None,
            }),
            ended: Condvar::new(),
            handle: reactors[0].clone(),
            reactors,
            budget: Budget::new(limits.queue_total_bytes_max),
            limits,
            delivering: AtomicBool::new(false),
            open: AtomicBool::new(!config.node),
            opens: host::now() + OPENS_AFTER,
        })
    }

    /// Works on the router under the lock, then writes the resulting frames without the lock.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut State, Now) -> R) -> R {
        let (result, Left { delivery, sooner, .. }) = self.work(now(), work);
        // Nodes of this process get their frames only on the reactor's thread and one at a time, or frames
        // would overtake each other. A delivery that is running on this thread will include these.
        let is_delivering = || self.delivering.load(Ordering::Relaxed) && self.handle.is_current();
        if sooner || delivery && !is_delivering() {
            self.handle.wake();
        }
        result
    }

    /// Like `with`, but on a reactor's thread, while no node of this process is busy there.
    pub(crate) fn with_on_reactor<R>(&self, work: impl FnOnce(&mut State, Now) -> R) -> R {
        let (result, Left { delivery, sooner, .. }) = self.work(now(), work);
        // The hub's own reactor takes its turn before it waits again.
        let elsewhere = !self.handle.is_current();
        if sooner && elsewhere || delivery && (elsewhere || self.deliver()) {
            self.handle.wake();
        }
        result
    }

    /// Works on the router under the lock and leaves the resulting frames to the next call, so that with more
    /// work to follow at once they are written together.
    pub(crate) fn with_more_to_come<R>(&self, work: impl FnOnce(&mut State, Now) -> R) -> R {
        let now = now();
        work(&mut self.state.lock(), now)
    }

    /// Lets strangers in.
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::Release);
    }

    /// Whether strangers are let in.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire) || host::now() >= self.opens
    }

    /// Whether this is a reactor's thread, which connections wait for.
    pub(crate) fn is_current(&self) -> bool {
        self.reactors.iter().any(Handle::is_current)
    }

    fn work<R>(&self, now: Now, work: impl FnOnce(&mut State, Now) -> R) -> (R, Left) {
        let mut state = self.state.lock();
        let result = work(&mut state, now);
        let written = state.ports.take_work();
        let delivery = state.ports.has_delivery();
        let sooner = state.wants_turn_sooner();
        let turn = state.turn;
        if state.stop == Stop::Begun {
            self.ended.notify_all();
        }
        drop(state);
        written.run();
        (result, Left { delivery, turn, sooner })
    }

    /// Waits for `done`, at most until `until`, and returns whether it is done.
    pub(crate) fn wait(&self, until: Instant, done: impl Fn(&State) -> bool) -> bool {
        let mut state = self.state.lock();
        while !done(&state) {
            if self.ended.wait_until(&mut state, until).timed_out() {
                return done(&state);
            }
        }
        true
    }

    /// Handles a connection that ended from the other side.
    pub(crate) fn disconnected(&self, peer: PeerId, reason: &str) {
        let node = self.with(|state, now| {
            let node = state.ports.remove(peer);
            state.router.disconnected(peer, reason, now, &mut state.ports);
            node
        });
        drop(node);
    }

    /// Wakes threads in [`wait`](Self::wait).
    pub(crate) fn notify_ended(&self) {
        self.ended.notify_all();
    }

    /// Passes frames to nodes of this process. Returns whether one of them could take no more.
    pub(crate) fn deliver(&self) -> bool {
        let Some(delivering) = Delivering::begin(&self.delivering) else { return false };
        let mut full = false;
        while !full {
            let Some(delivery) = self.state.lock().ports.take_delivery() else { break };
            full = self.pass_on(delivery);
        }
        // What the nodes sent to the controller, if their turn was before this one.
        let written = self.state.lock().ports.take_work();
        // Writing may drop the user's memory, which may make calls; this loop is over and would not see them.
        drop(delivering);
        written.run();
        full
    }

    fn pass_on(&self, mut delivery: Delivery) -> bool {
        let mut at = 0;
        let mut taken = Ok(());
        while let Ok(Some((frame, next))) = Frame::decode(&delivery.frames, at, FRAME_BYTES_MAX) {
            taken = delivery.node.push(&frame);
            if taken.is_err() {
                break;
            }
            at = next;
        }
        delivery.node.flush();
        match taken {
            Ok(()) => {}
            Err(PortError::Full) => {
                delivery.frames = delivery.frames.slice(at..);
                self.state.lock().ports.return_delivery(delivery);
                return true;
            }
            Err(_) => {
                self.disconnected(delivery.peer, "the node is gone");
                return false;
            }
        }
        debug_assert_eq!(at, delivery.frames.len(), "what was encoded here can be decoded");
        if let Some(reason) = delivery.closing {
            delivery.node.close(&reason);
            self.with(|_, _| ());
        }
        false
    }
}

impl<'a> Delivering<'a> {
    /// Begins, unless a delivery is running: the end of a controller that is dropped delivers from another
    /// thread, and the two must not mix. And a node that is given a frame may send one and end up here again.
    fn begin(delivering: &'a AtomicBool) -> Option<Self> {
        (!delivering.swap(true, Ordering::Acquire)).then(|| Self(delivering))
    }
}

impl Drop for Delivering<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Service for Hub {
    fn turn(&self, now: Instant) -> Option<Instant> {
        let now = Now { mono: now, wall: host::wall() };
        let ((overdue, soon), left) = self.work(now, |state, now| {
            state.router.tick(now, &mut state.ports);
            // No turn is scheduled while this one runs: the next is found after its work, and returned.
            state.turn = None;
            (state.ports.overdue(now.mono, false), state.ports.take_soon(now.mono))
        });
        for outbox in soon {
            outbox.flush();
        }
        for outbox in overdue {
            outbox.close();
        }
        let again = (left.delivery && self.deliver()).then(|| host::now() + DELIVER_AGAIN);
        host::earliest([left.turn, again])
    }
}

impl State {
    /// When something is due if nothing happens before then.
    fn due(&mut self) -> Option<Instant> {
        host::earliest([self.router.next(), self.ports.overdue_next(), self.ports.soon_next()])
    }

    /// Whether something is due before the next turn, which is then rescheduled for it.
    fn wants_turn_sooner(&mut self) -> bool {
        let Some(due) = self.due() else { return false };
        let sooner = self.turn.is_none_or(|turn| due < turn);
        if sooner {
            self.turn = Some(due);
        }
        sooner
    }
}

fn now() -> Now {
    Now { mono: host::now(), wall: host::wall() }
}

#[cfg(all(test, shuttle))]
mod interleavings;

#[cfg(all(test, not(shuttle)))]
mod tests {
    use daffi_core::reactor::Reactor;

    use super::*;

    #[test]
    fn a_turn_says_when_the_next_one_is_due() {
        let reactor = Reactor::start("test").unwrap();
        let config = ControllerConfig::new(Vec::new());
        let patience = config.limits.handshake_timeout;
        let hub = Hub::new(&config, 7, vec![reactor.handle().clone()]);
        let begun = host::now();
        assert_eq!(hub.turn(begun), None);
        // A stranger that stays silent.
        hub.with(|state, now| state.router.connected("a stranger", now).unwrap());
        let due = hub.turn(host::now()).unwrap();
        assert!(due >= begun + patience && due <= host::now() + patience);
        assert_eq!(hub.turn(due - Duration::from_millis(1)), Some(due));
        assert_eq!(hub.turn(due), None, "it is told to end");
        // Anything due sooner than the reactor knows makes it take a turn.
        assert!(hub.state.lock().turn.is_none());
    }
}
