//! A callee: callbacks of every kind, each of which tells that it begins before it does anything else.

use std::{
    collections::HashMap,
    process,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use daffi::{Context, FG, callback, fetcher};
use signal_hook::{consts::SIGTERM, iterator::Signals};

use crate::{
    child::{Child, Order, now, obey},
    held::held_kib,
    record::{Class, Record, Way, class_of, code_of, nested, value_of},
};

static NUMBER: OnceLock<u32> = OnceLock::new();
static RUNNING: AtomicU64 = AtomicU64::new(0);

/// What callers call.
#[fetcher]
pub trait Callee {
    fn work(id: u64) -> u64;
    fn work_async(id: u64) -> u64;
    fn quick(id: u64) -> u64;
    fn slow(id: u64, millis: u64) -> u64;
    fn slow_async(id: u64, millis: u64) -> u64;
    fn echo(id: u64, payload: &[u8]) -> Vec<u8>;
    fn fails(id: u64) -> u64;
    fn panics(id: u64) -> u64;
    fn passes_on(id: u64) -> u64;
    fn notify(id: u64, millis: u64);
    fn in_order(id: u64, caller: u16, sequence: u64);
    fn everyone(id: u64) -> u64;
    fn tick(id: u64);
    #[fetcher(name = "ledger.post")]
    fn post(id: u64) -> u64;
}

/// Plays the part until it is told to stop, by SIGTERM, or killed.
pub fn run(child: &Child) -> ! {
    NUMBER.get_or_init(|| child.number);
    // What panics says so in its result; what else panics is told, and ends this run.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload_as_str() != Some(PANIC) {
            hook(info);
        }
    }));
    let mut signals = Signals::new([SIGTERM]).expect("signals can be listened to");
    Ledger { posts: Mutex::default() }.register().expect("it is the first one");
    let g = child.builder("callee").start().expect("the parent gives options that work");
    thread::spawn(move || {
        signals.forever().next();
        if let Err(error) = g.stop() {
            eprintln!("TROUBLE: stop: {error:?}");
        }
        process::exit(0);
    });
    Record::Ready.tell();
    obey(|order| {
        if let Order::Mark(number) = order {
            let running = RUNNING.load(Ordering::SeqCst);
            Record::Mark { number, running, held_kib: held_kib() }.tell();
        }
    })
}

/// A run of a callback, from the beginning to its end.
struct Run(u64);

impl Run {
    fn of(id: u64) -> Self {
        RUNNING.fetch_add(1, Ordering::SeqCst);
        let node = *NUMBER.get().expect("it is known before the node starts");
        Record::Run { id, node, at: now() }.tell();
        Self(id)
    }

    fn value(&self) -> u64 {
        value_of(self.0)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    }
}

const PANIC: &str = "as asked";

#[callback]
fn work(id: u64) -> u64 {
    Run::of(id).value()
}

#[callback]
async fn work_async(id: u64) -> u64 {
    Run::of(id).value()
}

#[callback(inline)]
fn quick(id: u64) -> u64 {
    Run::of(id).value()
}

#[callback]
fn slow(ctx: &Context, id: u64, millis: u64) -> u64 {
    let run = Run::of(id);
    let end = Instant::now() + Duration::from_millis(millis);
    while Instant::now() < end && !ctx.is_cancelled() {
        thread::sleep(Duration::from_millis(5));
    }
    run.value()
}

#[callback]
async fn slow_async(id: u64, millis: u64) -> u64 {
    let run = Run::of(id);
    tokio::time::sleep(Duration::from_millis(millis)).await;
    run.value()
}

#[callback]
fn echo(id: u64, payload: Vec<u8>) -> Vec<u8> {
    let _run = Run::of(id);
    payload
}

#[callback]
fn fails(id: u64) -> Result<u64, String> {
    let run = Run::of(id);
    Err(run.value().to_string())
}

#[callback]
fn panics(id: u64) -> u64 {
    let _run = Run::of(id);
    panic!("{PANIC}")
}

/// Has another callee do the work.
#[callback]
fn passes_on(ctx: &Context, id: u64) -> Result<u64, String> {
    let run = Run::of(id);
    let inner = nested(id);
    Record::Invoke { id: inner, way: Way::Call, value: 0 }.tell();
    let result = ctx.call.work(inner) & FG;
    let (class, code) = match &result {
        Ok(value) if *value == value_of(inner) => (Class::Good, 0),
        Ok(_) => (Class::Wrong, 0),
        Err(error) => {
            if code_of(error) == crate::record::UNEXPECTED {
                eprintln!("unexpected: {error:?}");
            }
            (class_of(error), code_of(error))
        }
    };
    Record::Outcome { id: inner, class, code, at: now() }.tell();
    result.map(|_| run.value()).map_err(|error| error.to_string())
}

#[callback]
fn notify(id: u64, millis: u64) {
    let _run = Run::of(id);
    thread::sleep(Duration::from_millis(millis));
}

/// Calls of one caller come in the order in which it made them.
#[callback(max_concurrency = 1)]
fn in_order(id: u64, caller: u16, sequence: u64) {
    static LAST: Mutex<Option<HashMap<u16, u64>>> = Mutex::new(None);
    let _run = Run::of(id);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let before = last.get_or_insert_default().insert(caller, sequence);
    if before.is_some_and(|before| before >= sequence) {
        eprintln!("TROUBLE: of process {caller}, call {sequence} came after {before:?}");
    }
}

#[callback]
fn everyone(id: u64) -> u64 {
    Run::of(id).value()
}

#[callback]
fn tick(id: u64) {
    drop(Run::of(id));
}

/// A struct with state, of which there is one.
#[callback]
struct Ledger {
    posts: Mutex<u64>,
}

#[callback(prefix = "ledger.")]
impl Ledger {
    pub fn post(&self, id: u64) -> u64 {
        let run = Run::of(id);
        *self.posts.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        run.value()
    }
}
