use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{report, usage::Usage};

/// What a caller does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// One call at a time.
    OneByOne,
    /// So many calls at a time.
    Outstanding(usize),
    /// One call at a time, of so many callees, each of which answers.
    Broadcast(usize),
}

/// A workload, and how long it takes.
#[derive(Debug, Clone)]
pub struct Load {
    pub workload: Workload,
    /// Bytes of a payload, the same in both directions.
    pub size: usize,
    pub(crate) warm_up: Duration,
    pub(crate) window: Duration,
    /// The processes to count, besides this one.
    pub(crate) processes: Vec<u32>,
}

impl Load {
    /// One call after the other, each timed.
    pub fn one_by_one(&self, mut call: impl FnMut(u64) -> Result<(), String>) {
        let mut latencies = Latencies::new(self);
        while latencies.go_on() {
            let outcome = call(latencies.number);
            latencies.add(outcome);
        }
        latencies.finish();
    }

    /// As [`one_by_one`](Self::one_by_one), in an asynchronous program.
    pub async fn one_by_one_async(&self, mut call: impl AsyncFnMut(u64) -> Result<(), String>) {
        let mut latencies = Latencies::new(self);
        while latencies.go_on() {
            let outcome = call(latencies.number).await;
            latencies.add(outcome);
        }
        latencies.finish();
    }

    /// As many tasks as there are to be calls outstanding, on this thread; each calls one by one.
    pub async fn tasks<F, C>(&self, call: F)
    where
        F: Fn(u64) -> C + Clone + Send + 'static,
        C: Future<Output = Result<(), String>> + Send,
    {
        let Workload::Outstanding(outstanding) = self.workload else { panic!("not for {:?}", self.workload) };
        let counts = Arc::new(Counts::default());
        for first in 0..outstanding as u64 {
            let (call, counts) = (call.clone(), Arc::clone(&counts));
            tokio::spawn(async move {
                for number in (first..).step_by(outstanding) {
                    let outcome = call(number).await;
                    counts.add(outcome);
                }
            });
        }
        tokio::time::sleep(self.warm_up).await;
        let (begin, before) = (self.usage(), counts.now());
        tokio::time::sleep(self.window).await;
        let (end, after) = (self.usage(), counts.now());
        report::print(after.0 - before.0, after.1 - before.1, &begin, &end, None);
        // Whatever is still outstanding is not counted and need not be awaited.
        process::exit(0);
    }

    /// A window for a thread that keeps calls outstanding itself.
    pub fn window(&self) -> Window<'_> {
        Window { load: self, started: Instant::now(), begin: None, completed: 0, unwatched: 0 }
    }

    fn usage(&self) -> Usage {
        let mut processes = self.processes.clone();
        processes.push(process::id());
        Usage::now(&processes)
    }
}

/// Counts the calls that one thread completes.
#[must_use = "it prints what it counted when it is over"]
pub struct Window<'a> {
    load: &'a Load,
    started: Instant,
    begin: Option<(Usage, u64)>,
    completed: u64,
    unwatched: u64,
}

impl Window<'_> {
    /// So many more replies have come, and were right. Says whether to go on; if not, the result is printed.
    pub fn completed(&mut self, calls: u64) -> bool {
        self.completed += calls;
        self.unwatched += calls;
        // Looking at the clock costs as much as the relay does for some calls.
        if self.unwatched < 16 && self.load.size < 4096 {
            return true;
        }
        self.unwatched = 0;
        match &self.begin {
            None if self.started.elapsed() >= self.load.warm_up => {
                self.begin = Some((self.load.usage(), self.completed));
                true
            }
            Some((begin, before)) if begin.at().elapsed() >= self.load.window => {
                report::print(self.completed - before, 0, begin, &self.load.usage(), None);
                false
            }
            _ => true,
        }
    }
}

/// Times calls, one by one.
struct Latencies<'a> {
    load: &'a Load,
    number: u64,
    started: Instant,
    called: Instant,
    begin: Option<Usage>,
    nanos: Vec<u32>,
    failed: u64,
}

impl<'a> Latencies<'a> {
    fn new(load: &'a Load) -> Self {
        let now = Instant::now();
        let nanos = Vec::with_capacity(1 << 20);
        Self { load, number: 0, started: now, called: now, begin: None, nanos, failed: 0 }
    }

    fn go_on(&mut self) -> bool {
        match &self.begin {
            None if self.started.elapsed() >= self.load.warm_up => self.begin = Some(self.load.usage()),
            Some(begin) if begin.at().elapsed() >= self.load.window => return false,
            _ => {}
        }
        self.called = Instant::now();
        true
    }

    fn add(&mut self, outcome: Result<(), String>) {
        let nanos = self.called.elapsed().as_nanos();
        self.number += 1;
        let in_window = self.begin.is_some();
        match outcome {
            Ok(()) if in_window => self.nanos.push(u32::try_from(nanos).unwrap_or(u32::MAX)),
            Ok(()) => {}
            Err(reason) => {
                tell_first(self.failed, &reason);
                self.failed += 1;
            }
        }
    }

    fn finish(mut self) {
        let begin = self.begin.take().expect("the window has begun before it ends");
        let calls = self.nanos.len() as u64;
        report::print(calls, self.failed, &begin, &self.load.usage(), Some(&mut self.nanos));
    }
}

/// Of many tasks.
#[derive(Default)]
struct Counts {
    calls: AtomicU64,
    failed: AtomicU64,
}

impl Counts {
    fn add(&self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.calls.fetch_add(1, Relaxed);
            }
            Err(reason) => tell_first(self.failed.fetch_add(1, Relaxed), &reason),
        }
    }

    fn now(&self) -> (u64, u64) {
        (self.calls.load(Relaxed), self.failed.load(Relaxed))
    }
}

fn tell_first(before: u64, reason: &str) {
    if before == 0 {
        eprintln!("a call failed: {reason}");
    }
}
