//! Threads that route, tick and wait concurrently, in orders that shuttle picks; see `tests/sync`.
//! `DAFFI_SHUTTLE_RUNS` sets the number of runs.
//!
//! These tests were seen to fail with each of these bugs planted: a cancelled task stays in the timetable;
//! frames for another node are delivered before older ones; `work` does not notify waiting threads; `wait`
//! releases the lock after its first look.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize as Count, Ordering::SeqCst},
    },
    time::SystemTime,
};

use daffi_core::{
    controller::FramePort,
    frame::{Body, Hello, Offer, Offers, Question, Register, Reply, Request, Schedule, Timing, VERSION},
    payload::Codec,
    reactor::Reactor,
};
use daffi_test_sync::{
    shuttle::{self, thread},
    while_time_stands_still,
};

use super::*;
use crate::peer::MemoryPeer;

/// How many orders of each kind to try.
fn runs() -> usize {
    std::env::var("DAFFI_SHUTTLE_RUNS").map_or(3_000, |runs| runs.parse().expect("a number of runs"))
}

/// Who got what, in the order of arrival.
type Log = Arc<Mutex<Vec<&'static str>>>;

/// A node of this process that offers `f` and, if `answers` is set, answers its calls at once.
struct Node {
    name: &'static str,
    log: Log,
    answers: bool,
    way_back: OnceLock<Arc<MemoryPeer>>,
    /// The id of the last call it was given.
    called: Mutex<u64>,
    /// The id of its task.
    task: OnceLock<u64>,
}

impl Node {
    fn way_back(&self) -> &MemoryPeer {
        self.way_back.get().expect("it is attached")
    }

    fn answer(&self, id: u64) {
        let reply = Reply { id, more: false, part: 0, codec: 0, total: 0, body: Body::default() };
        self.way_back().send(&Frame::Reply(reply)).unwrap();
    }
}

impl FramePort for Node {
    fn send(&self, frame: &Frame<'_>) -> Result<(), PortError> {
        match frame {
            Frame::Request(request) => {
                self.log.lock().push("call");
                *self.called.lock() = request.id;
                if self.answers {
                    self.answer(request.id);
                }
            }
            // The answer to the cancellation, or to a call.
            Frame::Reply(reply) if reply.id == 2 => self.log.lock().push("answer"),
            Frame::Reply(reply) if self.task.get().is_none() => {
                let task = Codec::Bincode.decode(&reply.body.to_bytes()).unwrap();
                self.task.set(task).unwrap();
            }
            Frame::Reply(_) | Frame::Welcome(_) | Frame::Registered { .. } | Frame::Goodbye { .. } => {}
            other => panic!("a {} frame for {}", other.kind(), self.name),
        }
        Ok(())
    }

    fn close(&self, reason: &str) {
        panic!("{} is closed: {reason}", self.name);
    }
}

/// A controller whose reactor does nothing: the test takes its turns.
fn hub() -> Arc<Hub> {
    static REACTOR: OnceLock<Reactor> = OnceLock::new();
    let reactor = REACTOR.get_or_init(|| Reactor::start("test").unwrap());
    Hub::new(&ControllerConfig::new(Vec::new()), 7, vec![reactor.handle().clone()])
}

fn join(hub: &Arc<Hub>, name: &'static str, log: &Log, answers: bool) -> Arc<Node> {
    let node = Arc::new(Node {
        name,
        log: log.clone(),
        answers,
        way_back: OnceLock::new(),
        called: Mutex::new(0),
        task: OnceLock::new(),
    });
    let peer = hub.with(|state, now| {
        let peer = state.router.connected("this process", now).unwrap();
        state.ports.add_memory(peer, node.clone());
        peer
    });
    assert!(node.way_back.set(Arc::new(MemoryPeer::new(hub.clone(), peer))).is_ok());
    let (version_min, version_max) = (VERSION, VERSION);
    let hello = Hello { version_min, version_max, capabilities: 0, instance: 1, name, credentials: &[] };
    node.way_back().send(&Frame::Hello(hello)).unwrap();
    let mut offers = Vec::new();
    Offers::push(&mut offers, &Offer { index: 0, fingerprint: 0, ready: true, name: "f", signature: "" });
    let offers = Offers::parse(&offers).unwrap();
    node.way_back().send(&Frame::Register(Register { id: 1, more: false, offers })).unwrap();
    hub.deliver();
    node
}

const PERIOD: Duration = Duration::from_secs(1);

/// No call begins after a cancellation is acknowledged, whenever the cancellation comes.
#[test]
fn no_call_follows_the_answer_to_a_cancellation() {
    /// Counts runs by how often the task had called by then.
    static CALLS: [Count; 4] = [const { Count::new(0) }; 4];
    let run = || {
        let (hub, log) = (hub(), Log::default());
        let _callee = join(&hub, "callee", &log, true);
        let owner = join(&hub, "owner", &log, true);
        let timing = Timing::Period(PERIOD.as_micros() as u64);
        let what = Schedule { timing, codec: 0, fingerprint: 0, name: "f", node: "", body: Body::default() };
        let begun = now();
        owner.way_back().send(&Frame::Ask { id: 1, codec: 0, question: Question::Schedule(what) }).unwrap();
        hub.deliver();
        let task = *owner.task.get().expect("it was told");
        let ticks = {
            let hub = hub.clone();
            thread::spawn(move || {
                for tick in 1..=3 {
                    // Like a turn of the reactor, a little after the time has come.
                    let mono = begun.mono + PERIOD * tick + PERIOD / 2;
                    let now = Now { mono, wall: SystemTime::UNIX_EPOCH };
                    hub.with(|state, _| state.router.tick(now, &mut state.ports));
                    hub.deliver();
                }
            })
        };
        let cancels = {
            let owner = owner.clone();
            thread::spawn(move || {
                let question = Question::CancelTask { task };
                owner.way_back().send(&Frame::Ask { id: 2, codec: 0, question }).unwrap();
            })
        };
        ticks.join().unwrap();
        cancels.join().unwrap();
        // Whatever came in the middle of a delivery is left to the next one.
        hub.deliver();
        let log = log.lock();
        assert_eq!(log.last(), Some(&"answer"), "{log:?}");
        let calls = log.iter().filter(|what| **what == "call").count();
        assert_eq!(log.len(), calls + 1, "{log:?}");
        CALLS[calls].fetch_add(1, SeqCst);
    };
    shuttle::check_random(run, runs());
    shuttle::check_pct(run, runs(), 3);
    let calls = CALLS.each_ref().map(|calls| calls.load(SeqCst));
    println!("it had called 0, 1, 2 and 3 times: {calls:?}");
    assert!(calls.iter().all(|calls| *calls > 0), "a cancellation never came then: {calls:?}");
}

/// A thread that stops the controller sees the last call end, and the caller has its answer.
#[test]
fn whoever_waits_for_the_last_call_sees_its_end() {
    let run = || {
        let (hub, log) = (hub(), Log::default());
        let callee = join(&hub, "callee", &log, false);
        let caller = join(&hub, "caller", &log, true);
        caller.way_back().send(&Frame::Request(Request::new(2, "f", Body::default()))).unwrap();
        hub.deliver();
        assert_eq!(*log.lock(), ["call"]);
        let stops = {
            let hub = hub.clone();
            thread::spawn(move || {
                hub.with(|state, now| {
                    state.stop = Stop::Begun;
                    state.router.drain(now, &mut state.ports);
                });
                // Shuttle reports a thread that waits forever.
                assert!(hub.wait(Instant::now(), |state| state.router.is_idle()));
            })
        };
        let answers = {
            let callee = callee.clone();
            thread::spawn(move || callee.answer(*callee.called.lock()))
        };
        stops.join().unwrap();
        answers.join().unwrap();
        hub.deliver();
        assert_eq!(*log.lock(), ["call", "answer"]);
    };
    let still = move || while_time_stands_still(run);
    shuttle::check_random(still, runs());
    shuttle::check_pct(still, runs(), 3);
}
