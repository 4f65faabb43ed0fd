//! Controllers, nodes and events.

use std::{
    future::Future,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::Receiver,
    },
    time::{Duration, Instant},
};

use daffi::{Global, GlobalBuilder, Limits};
use tokio::sync::watch;

/// What does not happen within this time does not happen. Nothing takes nearly as long when all is well.
pub(crate) const BOUND: Duration = Duration::from_secs(15);

/// A controller of its own, behind a socket in a directory of its own.
pub(crate) struct Net {
    directory: PathBuf,
    controller: Option<Global>,
}

impl Net {
    /// With a controller that has no node.
    pub(crate) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    /// With a controller that has no node.
    pub(crate) fn with_limits(limits: Limits) -> Self {
        let mut net = Self::without_controller();
        net.start_controller(limits);
        net
    }

    pub(crate) fn start_controller(&mut self, limits: Limits) {
        let builder = Global::builder().init_controller(true).init_node(false).limits(limits);
        self.controller = Some(builder.unix_sock_path(self.socket()).start().unwrap());
    }

    pub(crate) fn stop_controller(&mut self) {
        self.controller.take().unwrap().stop().unwrap();
    }

    /// With a controller in the process of the first node, `name`.
    pub(crate) fn embedded(name: &str) -> (Self, Global) {
        let net = Self::without_controller();
        let first = net.node(name).init_controller(true).start().unwrap();
        (net, first)
    }

    fn without_controller() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("daffi-it-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        Self { directory, controller: None }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// A node without callbacks, whose calls end at [`BOUND`].
    pub(crate) fn node(&self, name: &str) -> GlobalBuilder {
        self.patient(name).default_timeout(BOUND)
    }

    /// A node without callbacks, whose calls have no deadline.
    pub(crate) fn patient(&self, name: &str) -> GlobalBuilder {
        let builder = Global::builder().process_name(name).unix_sock_path(self.socket());
        builder.link_time_callbacks(false).connect_timeout(BOUND)
    }

    /// A node without callbacks, to call from.
    pub(crate) fn caller(&self) -> Global {
        self.node("caller").start().unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.controller = None;
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Runs a test that is async, on a runtime with several threads.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(2 * BOUND, test).await.expect("the test ends") })
}

/// The next event, which has to come.
#[track_caller]
pub(crate) fn next<T>(events: &Receiver<T>) -> T {
    events.recv_timeout(BOUND).expect("the event comes")
}

/// Looks again and again until there is something, which has to come.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + BOUND;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "this did not come to pass within {BOUND:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Something that callbacks count and tests wait for, or the other way round.
#[derive(Clone)]
pub(crate) struct Count(Arc<(Mutex<usize>, Condvar, watch::Sender<usize>)>);

impl Count {
    pub(crate) fn new() -> Self {
        Self(Arc::new((Mutex::new(0), Condvar::new(), watch::Sender::new(0))))
    }

    pub(crate) fn add(&self) {
        let (count, changed, watched) = &*self.0;
        *count.lock().unwrap() += 1;
        changed.notify_all();
        watched.send_modify(|count| *count += 1);
    }

    pub(crate) fn get(&self) -> usize {
        *self.0.0.lock().unwrap()
    }

    /// Blocks until the count is as high.
    #[track_caller]
    pub(crate) fn wait(&self, wanted: usize) {
        let deadline = Instant::now() + BOUND;
        let (count, changed, _) = &*self.0;
        let mut count = count.lock().unwrap();
        while *count < wanted {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {wanted}", *count);
            count = changed.wait_timeout(count, left).unwrap().0;
        }
    }

    /// Waits until the count is as high.
    pub(crate) async fn wait_async(&self, wanted: usize) {
        let mut watched = self.0.2.subscribe();
        let high = watched.wait_for(|count| *count >= wanted);
        tokio::time::timeout(BOUND, high).await.expect("it is counted").unwrap();
    }
}

/// Counts when it is dropped.
pub(crate) struct CountsDrop(pub(crate) Count);

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.add();
    }
}
