//! Memory of the user's in calls: whoever drops the last of it runs the user's code, wherever that is, and it may call
//! something here and wait for others who do.

use std::{
    io::Write as _,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    thread,
    time::Duration,
};

use daffi::{AsyncResult, BG, Bytes, Error, FG, Global, GlobalBuilder, Limits, NO_RETURN};
use daffi_core::frame::{Body, Frame, Reply};

use crate::{
    rogue_controller::{control, listening, node_with},
    support::{BOUND, Count, Net, eventually, run},
};

/// What does not happen within this time waits for a lock.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// What is done when such memory is dropped, and how often it was.
struct Watch {
    node: OnceLock<Weak<Global>>,
    /// What ends when the node is stopped, if it is to be.
    stops: Mutex<Option<AsyncResult<()>>>,
    lock: Mutex<()>,
    freed: Count,
    /// Then it panics.
    panics: AtomicBool,
    /// Whoever did it held a lock of the node's.
    stuck: Count,
}

/// Memory of the user's.
struct Mine {
    bytes: Vec<u8>,
    watch: Arc<Watch>,
}

impl AsRef<[u8]> for Mine {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        self.watch.dropped();
        assert!(!self.watch.panics.load(Ordering::SeqCst), "it panics, as this test wants it");
    }
}

impl Watch {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            node: OnceLock::new(),
            stops: Mutex::default(),
            lock: Mutex::default(),
            freed: Count::new(),
            panics: AtomicBool::new(false),
            stuck: Count::new(),
        })
    }

    fn of(node: Global) -> (Arc<Global>, Arc<Self>) {
        let (node, watch) = (Arc::new(node), Self::new());
        watch.node.set(Arc::downgrade(&node)).unwrap();
        (node, watch)
    }

    fn bytes(self: &Arc<Self>, size: usize) -> Bytes {
        let mine = Mine { bytes: vec![7; size], watch: self.clone() };
        Bytes::from(bytes::Bytes::from_owner(mine))
    }

    /// Another thread makes all kinds of calls, or stops the node, while this one waits for that.
    fn dropped(self: &Arc<Self>) {
        let Some(node) = self.node.get().and_then(Weak::upgrade) else { return self.freed.add() };
        if self.stuck.get() == 0 {
            let (done_in, done) = channel();
            let watch = self.clone();
            thread::spawn(move || {
                // Not for longer: what is written meanwhile may be dropped here.
                drop(watch.lock.lock());
                if let Some(result) = watch.stops.lock().unwrap().take() {
                    thread::spawn(move || node.stop());
                    let _ = result.get();
                } else {
                    let _ = node.call.by_name::<(), _>("small", ()) & NO_RETURN;
                    let _ = node.call.by_name::<(), _>("large", (vec![7u8; 100_000],)) & NO_RETURN;
                    for modifier in [BG, BG.eta(BOUND)] {
                        (node.call.by_name::<(), _>("small", ()) & modifier).cancel();
                    }
                }
                let _ = done_in.send(());
            });
            if done.recv_timeout(STUCK_AFTER).is_err() {
                self.stuck.add();
            }
        }
        self.freed.add();
    }

    /// All of it was dropped, and nobody held a lock.
    #[track_caller]
    fn is_well(&self, freed: usize) {
        eventually("all of it is dropped", || (self.freed.get() >= freed).then_some(()));
        assert_eq!(self.stuck.get(), 0, "it was dropped with a lock");
    }
}

/// Memory of a user's whose code is wrong.
struct Panics;

impl AsRef<[u8]> for Panics {
    fn as_ref(&self) -> &[u8] {
        &[7; 100_000]
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        panic!("as this test wants it");
    }
}

/// Wherever that is: the I/O threads of both ends go on.
#[test]
fn memory_that_panics_when_it_is_dropped() {
    let net = Net::new();
    let (length, open) = (|bytes: Vec<u8>| bytes.len(), Count::new());
    let opened = open.clone();
    let b = net.node("b").callback("length", length).callback("hang", move || opened.wait(1));
    let _b = b.start().unwrap();
    let a = net.node("a").start().unwrap();
    // With so many calls going on, others are left to the I/O thread.
    let busy: Vec<_> = (0..8).map(|_| a.call.by_name::<(), _>("hang", ()) & BG).collect();
    let panics = |size| Bytes::from(bytes::Bytes::from_owner(Panics).slice(..size));
    for round in 0..20 {
        let sizes = [5_000, 64_000, 100_000];
        let calls = sizes.map(|size| {
            // This thread may be the one that drops it.
            let call = || a.call.by_name::<usize, _>("length", (panics(size),)) & BG;
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(call))
        });
        if round % 2 == 0 {
            calls.iter().flatten().for_each(AsyncResult::cancel);
        }
        for (call, size) in calls.into_iter().zip(sizes) {
            if let Ok(call) = call
                && let Ok(length) = call.get()
            {
                assert_eq!(length, size);
            }
        }
        let well = a.call.by_name::<usize, _>("length", (vec![7u8; 10],));
        assert_eq!((well & FG).unwrap(), 10);
    }
    open.add();
    for call in busy {
        call.get().unwrap();
    }
}

/// A node whose link is lost, with room for so many calls.
fn without_link(room: usize) -> (Net, Arc<Global>, Arc<Watch>) {
    let mut net = Net::new();
    let limits = Limits { calls_in_flight_max: room, ..Limits::default() };
    let (a, watch) = Watch::of(net.patient("a").limits(limits).start().unwrap());
    net.stop_controller();
    eventually("the node hears of it", || {
        let call = a.call.by_name::<(), _>("f", ()) & BG;
        call.cancel();
        matches!(call.get(), Err(Error::Cancelled { sent: false, .. })).then_some(())
    });
    (net, a, watch)
}

/// What hangs is not waited for.
fn with_little_grace(builder: GlobalBuilder) -> GlobalBuilder {
    builder.limits(Limits { grace: Duration::from_millis(100), ..Limits::default() })
}

/// One call waits for a link, and one for its time.
#[test]
fn a_node_is_stopped_where_memory_waits_that_panics() {
    let (_net, a, watch) = without_link(10);
    watch.panics.store(true, Ordering::SeqCst);
    let call = || a.call.by_name::<(), _>("nobody", (watch.bytes(10_000),));
    let calls = [call() & BG, call() & BG.eta(BOUND * 2)];
    let (stopped_in, stopped) = channel();
    let node = a.clone();
    thread::spawn(move || stopped_in.send(node.stop()));
    stopped.recv_timeout(BOUND).expect("it stops").unwrap();
    for call in calls {
        let told = call.get_timeout(BOUND);
        assert!(matches!(told, Err(Error::Stopped { .. } | Error::Cancelled { .. })), "{told:?}");
    }
    watch.is_well(2);
}

/// They leave with others that wait, which have nothing to do with it.
#[test]
fn memory_that_panics_as_there_is_a_link_again() {
    let (mut net, a, watch) = without_link(10);
    watch.panics.store(true, Ordering::SeqCst);
    (a.call.by_name::<(), _>("nobody", (watch.bytes(10_000),)) & NO_RETURN).unwrap();
    let others: Vec<_> = (0..5).map(|_| a.call.by_name::<usize, _>("count", ()) & BG).collect();
    net.start_controller(Limits::default());
    let _b = net.node("b").callback("count", || 7usize).start().unwrap();
    for other in others {
        assert_eq!(other.get_timeout(BOUND).unwrap(), 7);
    }
    watch.is_well(1);
}

#[test]
fn calls_that_make_room_where_they_wait_for_a_link() {
    let (_net, a, watch) = without_link(2);
    let late = [(); 2].map(|()| {
        a.call.by_name::<(), _>("f", (watch.bytes(5_000),)) & BG.timeout(Duration::from_millis(20))
    });
    for call in late {
        assert!(matches!(call.get(), Err(Error::Timeout { sent: false, .. })));
    }
    let _next = [(); 2].map(|()| a.call.by_name::<(), _>("f", ()) & BG);
    watch.is_well(2);
}

#[test]
fn calls_that_make_room_where_they_wait_for_their_time() {
    let (_net, a, watch) = without_link(2);
    for _ in 0..2 {
        (a.call.by_name::<(), _>("f", (watch.bytes(5_000),)) & BG.eta(BOUND)).cancel();
    }
    let _next = a.call.by_name::<(), _>("f", ()) & BG.eta(BOUND);
    watch.is_well(2);
}

#[test]
fn calls_that_were_given_up_when_there_is_a_link_again() {
    let (mut net, a, watch) = without_link(10);
    for size in [5_000, 100_000] {
        (a.call.by_name::<(), _>("f", (watch.bytes(size),)) & BG).cancel();
    }
    net.start_controller(Limits::default());
    watch.is_well(2);
}

#[test]
fn calls_whose_callee_has_not_returned() {
    let (mut net, a, watch) = without_link(10);
    let waiting: Vec<_> =
        [5_000, 100_000].map(|size| a.call.by_name::<(), _>("f", (watch.bytes(size),)) & BG).into();
    net.start_controller(Limits::default());
    a.processes().unwrap();
    let late = a.call.by_name::<(), _>("f", (watch.bytes(5_000),)) & BG.timeout(Duration::from_millis(300));
    assert!(matches!(late.get(), Err(Error::Timeout { .. })));
    waiting.iter().for_each(AsyncResult::cancel);
    watch.is_well(3);
    let _again = a.call.by_name::<(), _>("f", (watch.bytes(5_000),)) & BG;
    net.stop_controller();
    drop(a);
    watch.is_well(4);
}

/// A node whose controller takes what comes, answers nothing and gives no credit, until it is asked to `close`.
struct Silent {
    a: Arc<Global>,
    watch: Arc<Watch>,
    controller: thread::JoinHandle<()>,
    directory: std::path::PathBuf,
}

impl Silent {
    fn new(number: u32, with: impl FnOnce(GlobalBuilder) -> GlobalBuilder) -> Self {
        Self::answering(number, with, |socket, frame| {
            if matches!(frame, Frame::Request(request) if request.name == "close") {
                socket.shutdown(Shutdown::Both).unwrap();
            }
        })
    }

    /// One that gives credit for what has come.
    fn hungry(number: u32, with: impl FnOnce(GlobalBuilder) -> GlobalBuilder) -> Self {
        Self::answering(number, with, |socket, frame| {
            let (id, bytes) = match frame {
                Frame::Request(request) if request.more => (request.id, request.body.len()),
                Frame::Chunk(chunk) if chunk.more => (chunk.id, chunk.body.len()),
                _ => return,
            };
            let credit = Frame::Credit { id, reply: false, part: 0, bytes: bytes as u32 };
            socket.write_all(&credit.to_bytes()).unwrap();
        })
    }

    fn answering(
        number: u32,
        with: impl FnOnce(GlobalBuilder) -> GlobalBuilder,
        answer: impl Fn(&mut UnixStream, &Frame<'_>) + Send + 'static,
    ) -> Self {
        let (starting, socket, directory) = node_with(number, with);
        let controller = thread::spawn(move || control(socket, &[], answer));
        let (a, watch) = Watch::of(starting.join().unwrap());
        Self { a, watch, controller, directory }
    }

    fn hang(&self, size: usize) -> AsyncResult<()> {
        self.a.call.by_name::<(), _>("hang", (self.watch.bytes(size),)) & BG
    }

    /// So many calls are going on that others are left to the I/O thread.
    fn busy(&self) -> Vec<AsyncResult<()>> {
        (0..8).map(|_| self.a.call.by_name::<(), _>("hang", ()) & BG).collect()
    }

    fn end(self) {
        let _ = self.a.stop();
        drop(self.a);
        self.controller.join().unwrap();
        let _ = std::fs::remove_dir_all(self.directory);
    }
}

#[test]
fn a_call_that_is_given_up_while_its_chunks_leave() {
    let silent = Silent::new(301, with_little_grace);
    let (first, second) = (silent.hang(4 << 20), silent.hang(4 << 20));
    first.cancel();
    silent.watch.is_well(1);
    let timed = silent.a.call.by_name::<(), _>("hang", (silent.watch.bytes(4 << 20),));
    assert!(matches!(timed & FG.timeout(Duration::from_millis(20)), Err(Error::Timeout { .. })));
    silent.watch.is_well(2);
    assert!(!second.is_ready());
    let watch = silent.watch.clone();
    silent.end();
    watch.is_well(3);
}

#[test]
fn the_last_of_a_payload_that_leaves() {
    let hungry = Silent::hungry(302, with_little_grace);
    let _busy = hungry.busy();
    // The last of it is small, and copied.
    let _calls = [5_000, 66_000].map(|size| {
        (hungry.a.call.by_name::<(), _>("one way", (hungry.watch.bytes(size),)) & NO_RETURN).unwrap()
    });
    hungry.watch.is_well(2);
    hungry.end();
}

#[test]
fn the_link_is_lost_while_chunks_leave() {
    link_is_lost_while_chunks_leave(303, false);
}

#[test]
fn the_link_is_lost_while_chunks_leave_of_memory_that_panics() {
    link_is_lost_while_chunks_leave(306, true);
}

fn link_is_lost_while_chunks_leave(number: u32, panics: bool) {
    let silent = Silent::new(number, with_little_grace);
    silent.watch.panics.store(panics, Ordering::SeqCst);
    let calls = [4 << 20, 100_000, 2 << 20].map(|size| silent.hang(size));
    (silent.a.call.by_name::<(), _>("close", ()) & NO_RETURN).unwrap();
    for call in calls {
        let error = call.get_timeout(BOUND).unwrap_err();
        assert!(matches!(error, Error::ControllerLost { .. }), "{error}");
    }
    silent.watch.is_well(3);
    silent.end();
}

#[test]
fn the_node_is_stopped_while_something_is_written() {
    let silent = Silent::new(304, with_little_grace);
    let mut busy = silent.busy();
    *silent.watch.stops.lock().unwrap() = busy.pop();
    (silent.a.call.by_name::<(), _>("one way", (silent.watch.bytes(5_000),)) & NO_RETURN).unwrap();
    silent.watch.is_well(1);
    silent.end();
}

#[test]
fn what_waits_for_a_socket_that_takes_no_more() {
    let limits = Limits { queue_bytes_max: 1 << 20, ..Limits::default() };
    let (starting, socket, directory) = node_with(305, |builder| builder.limits(limits));
    let (reading_in, reading) = channel();
    let (go_on, going_on) = channel::<()>();
    let controller = thread::spawn(move || {
        control(socket, &[], |socket, frame| {
            if matches!(frame, Frame::Request(request) if request.name == "first") {
                reading_in.send(()).unwrap();
                going_on.recv_timeout(2 * BOUND).unwrap();
                let _ = socket.shutdown(Shutdown::Both);
            }
        });
    });
    let (a, watch) = Watch::of(starting.join().unwrap());
    let _first = a.call.by_name::<(), _>("first", ()) & BG;
    reading.recv_timeout(BOUND).unwrap();
    let mut calls = Vec::new();
    let refused = loop {
        let call = a.call.by_name::<(), _>("f", (watch.bytes(60_000),)) & BG;
        if call.is_ready() {
            break call;
        }
        calls.push(call);
    };
    assert!(matches!(refused.get(), Err(Error::Overloaded { .. })));
    watch.is_well(1);
    calls[0].cancel();
    go_on.send(()).unwrap();
    for call in &calls[1..] {
        assert!(call.get_timeout(2 * BOUND).is_err());
    }
    watch.is_well(1 + calls.len());
    // It may have had a ping to answer.
    let _ = controller.join();
    let _ = a.stop();
    let _ = std::fs::remove_dir_all(directory);
}

/// The arguments of a call are kept for a while after the controller came back. Here a task finds its answer, which the I/O
/// thread has left to it together with another one's.
#[test]
fn a_task_that_reads_answers_of_others() {
    let (starting, listener, directory) = listening(306, with_little_grace);
    let controller = thread::spawn(move || {
        let (first, _) = listener.accept().unwrap();
        control(first, &[], |socket, frame| {
            if matches!(frame, Frame::Request(request) if request.name == "close") {
                socket.shutdown(Shutdown::Both).unwrap();
            }
        });
        let (second, _) = listener.accept().unwrap();
        let mut answers = Vec::new();
        control(second, &[], |socket, frame| {
            let Frame::Request(request) = frame else { return };
            if request.name == "f" {
                let reply =
                    Reply { id: request.id, more: false, part: 0, codec: 0, total: 0, body: Body::default() };
                answers.extend_from_slice(&Frame::Reply(reply).to_bytes());
            } else if request.name == "answer" {
                socket.write_all(&answers).unwrap();
            }
        });
    });
    let (a, watch) = Watch::of(starting.join().unwrap());
    (a.call.by_name::<(), _>("close", ()) & NO_RETURN).unwrap();
    eventually("there is another link", || {
        let call = a.call.by_name::<(), _>("hang", ()) & BG;
        // Over by then if it went over the link that is lost.
        let _ = call.get_timeout(Duration::from_millis(200));
        call.cancel();
        matches!(call.get(), Err(Error::Cancelled { sent: true, .. })).then_some(())
    });
    let hang = a.call.by_name::<(), _>("hang", ()) & BG;
    let first = a.call.by_name::<(), _>("f", ()) & BG;
    let second = a.call.by_name::<(), _>("f", (watch.bytes(5_000),)) & BG;
    *watch.stops.lock().unwrap() = Some(hang);
    run(async {
        let answer = async {
            // Once both are awaited.
            tokio::task::yield_now().await;
            (a.call.by_name::<(), _>("answer", ()) & NO_RETURN).unwrap();
        };
        let (first, second, ()) = tokio::join!(first.get_async(), second.get_async(), answer);
        first.unwrap();
        second.unwrap();
    });
    watch.is_well(1);
    let _ = a.stop();
    drop(a);
    controller.join().unwrap();
    let _ = std::fs::remove_dir_all(directory);
}
