//! Directories, nodes and patience.

use std::{
    env, fs,
    future::Future,
    panic,
    path::{Path, PathBuf},
    pin::pin,
    process,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use daffi::{Global, GlobalBuilder};

/// How long anything may take before it counts as never.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test on a thread of its own, so that one that hangs fails.
#[track_caller]
pub fn in_time<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    within(PATIENCE, test)
}

/// As [`in_time`], for a test that takes longer by itself.
#[track_caller]
pub fn within<T: Send + 'static>(patience: Duration, test: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, outcome) = mpsc::channel();
    let runner = thread::spawn(move || {
        let result = test();
        // The receiver is gone if it took too long, which has been said by then.
        let _ = done.send(result);
    });
    match outcome.recv_timeout(patience) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Disconnected) => match runner.join() {
            Ok(()) => unreachable!("it ended without a result"),
            Err(panic) => panic::resume_unwind(panic),
        },
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("this hangs: not done within {patience:?}"),
    }
}

/// Waits until something is so, and says what it waited for if it never is.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "this did not come to pass within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A directory for one test, removed with everything in it when this is dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("daffi-start-{}-{number}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A builder that knows nothing of the callbacks of other tests.
pub fn builder() -> GlobalBuilder {
    Global::builder().link_time_callbacks(false)
}

/// A controller at a socket in a directory of its own, for several nodes.
pub struct Net {
    pub controller: Global,
    pub directory: TempDir,
}

impl Net {
    pub fn new() -> Self {
        let directory = TempDir::new();
        let controller = Self::controller(&directory);
        Self { controller, directory }
    }

    /// Stops the controller and starts another one at the same place.
    pub fn restart(&mut self) {
        self.controller.stop().unwrap();
        self.controller = Self::controller(&self.directory);
    }

    fn controller(directory: &TempDir) -> Global {
        builder().init_controller(true).init_node(false).unix_sock_path(directory.join("s")).start().unwrap()
    }

    /// A node of this name, still to be started.
    pub fn node(&self, name: &str) -> GlobalBuilder {
        builder().process_name(name).unix_sock_path(self.directory.join("s")).connect_timeout(PATIENCE)
    }
}

/// Keeps callbacks waiting until the test lets them go.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub fn pass(&self) {
        let (open, opened) = &*self.0;
        let (guard, _) = opened.wait_timeout_while(open.lock().unwrap(), PATIENCE, |open| !*open).unwrap();
        assert!(*guard, "the gate stayed closed for {PATIENCE:?}");
    }

    pub fn is_open(&self) -> bool {
        *self.0.0.lock().unwrap()
    }
}

/// The smallest executor: a thread that parks until the future wakes it. No tokio in sight.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

pub fn current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A multi-thread runtime with one worker, where whoever blocks it stops everything.
pub fn multi_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}
