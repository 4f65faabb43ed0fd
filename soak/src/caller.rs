//! A caller: calls of every kind, as many a second as it is told, and each outcome told to the parent.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use daffi::{BG, Error, FG, Global, PERIOD, ScheduledTask};
use daffi_chaos::Dice;
use tokio::{runtime, time};

use crate::{
    callee::Callee,
    child::{Child, Order, now, obey},
    held::held_kib,
    record::{Class, Record, Way, class_of, code_of, id, value_of},
};

/// How many calls are in flight at most; those that would be more are left out.
const IN_FLIGHT_MAX: u64 = 400;
/// How long calls to everybody may take to work again when nothing is broken any more.
const RECOVERY: Duration = Duration::from_secs(30);
const TASK_PERIOD: Duration = Duration::from_millis(50);

struct Caller {
    child: Child,
    g: Global,
    window: AtomicU16,
    sequence: AtomicU32,
    ordered: AtomicU64,
    running: AtomicBool,
    in_flight: AtomicU64,
    task: Mutex<Option<(u64, ScheduledTask)>>,
}

/// Plays the part until it is killed.
pub fn run(child: &Child) -> ! {
    let g = child.builder("caller").link_time_callbacks(false).start().expect("the options work");
    let caller = Arc::new(Caller {
        g,
        window: AtomicU16::new(child.window),
        child: child.clone(),
        sequence: AtomicU32::new(0),
        ordered: AtomicU64::new(0),
        running: AtomicBool::new(true),
        in_flight: AtomicU64::new(0),
        task: Mutex::new(None),
    });
    Record::Ready.tell();
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build();
    let runtime = Arc::new(runtime.expect("a runtime can be made"));
    caller.schedule();
    let (driver, handle) = (caller.clone(), runtime.handle().clone());
    thread::spawn(move || driver.drive(&handle));
    let blocking = caller.clone();
    thread::spawn(move || blocking.block());
    obey(|order| match order {
        Order::Go(window) => {
            caller.window.store(window, SeqCst);
            caller.running.store(true, SeqCst);
            caller.schedule();
        }
        Order::Pause => {
            caller.running.store(false, SeqCst);
            let caller = caller.clone();
            thread::spawn(move || caller.quiet());
        }
        Order::Probe => {
            let caller = caller.clone();
            thread::spawn(move || Record::Probed { well: caller.probe() }.tell());
        }
        Order::Mark(number) => {
            let running = caller.in_flight.load(SeqCst);
            Record::Mark { number, running, held_kib: held_kib() }.tell();
        }
    })
}

impl Caller {
    /// Makes calls, at the rate that was asked for.
    fn drive(self: Arc<Self>, runtime: &runtime::Handle) {
        let mut dice = Dice::new(self.child.seed);
        let mut due = Instant::now();
        let gap = Duration::from_secs(1) / u32::try_from(self.child.rate.max(1)).unwrap_or(u32::MAX);
        loop {
            // Some at a time, for waking up costs more than a call.
            thread::sleep(Duration::from_millis(5));
            if !self.running.load(SeqCst) || due + Duration::from_secs(1) < Instant::now() {
                // What was not made while it was quiet or frozen is not made up for.
                due = Instant::now();
            }
            while due < Instant::now() {
                due += gap;
                // Counted before it is looked whether to go on: who pauses this looks in the other order.
                let call = self.begin();
                if self.running.load(SeqCst) && self.in_flight.load(SeqCst) < IN_FLIGHT_MAX {
                    self.call(call, &mut dice, runtime);
                }
            }
        }
    }

    fn call(self: &Arc<Self>, flight: InFlight, dice: &mut Dice, runtime: &runtime::Handle) {
        let kind = dice.below(1000);
        let node = format!("callee-{}", dice.below(self.child.callees.into()));
        let millis = dice.between(1, 60);
        let soon = Duration::from_millis(dice.between(1, 50));
        match kind {
            // What needs no waiting.
            ..100 => {
                let id = self.invoke(Way::NoReturn);
                let result = self.g.call.notify(id, if kind < 10 { millis } else { 0 }).no_return();
                return outcome(id, result.map(|()| Class::Good));
            }
            100..180 => {
                let id = self.invoke(Way::NoReturn);
                let sequence = self.ordered.fetch_add(1, SeqCst);
                let call = self.g.call.in_order(id, self.child.serial, sequence).on(node).no_return();
                return outcome(id, call.map(|()| Class::Good));
            }
            _ => {}
        }
        let payload = (65_536 << dice.below(7)) - dice.below(1000);
        let this = self.clone();
        runtime.spawn(async move {
            let _flight = flight;
            let call = &this.g.call;
            if (180..190).contains(&kind) {
                this.broadcast().await;
                return;
            }
            let id = this.invoke(if kind == 190 { Way::BlindBroadcast } else { Way::Call });
            let known = |value: u64| if value == value_of(id) { Class::Good } else { Class::Wrong };
            let result = match kind {
                ..=190 => {
                    let passed_on = call.everyone(id).broadcast_async().await;
                    return outcome(id, passed_on.map(|()| Class::Good));
                }
                191..195 => {
                    let payload = vec![value_of(id) as u8; payload as usize];
                    let echoed = call.echo(id, &payload).await;
                    let same = |back| if back == payload { Class::Good } else { Class::Wrong };
                    return outcome(id, echoed.map(same));
                }
                195..260 => call.fails(id).await,
                260..280 => call.panics(id).await,
                280..330 => call.passes_on(id).await,
                330..380 => call.slow(id, millis).timeout(soon).await,
                380..430 => call.slow_async(id, millis).timeout(soon).await,
                430..460 => {
                    let result = call.slow(id, millis) & BG;
                    time::sleep(soon).await;
                    result.cancel();
                    result.get_async().await
                }
                460..490 => {
                    let result = call.slow_async(id, millis) & BG;
                    time::sleep(soon).await;
                    result.cancel();
                    result.get_async().await
                }
                490..510 => {
                    // Who stops listening cancels as well, and never learns what became of it.
                    return match time::timeout(soon, call.slow_async(id, millis).into_future()).await {
                        Ok(result) => outcome(id, result.map(known)),
                        Err(_) => Record::Outcome { id, class: Class::Doubt, code: 6, at: now() }.tell(),
                    };
                }
                510..560 => (call.slow(id, millis) & BG.eta(soon)).get_async().await,
                560..600 => call.slow_async(id, millis).await,
                600..650 => call.post(id).await,
                650..700 => call.quick(id).await,
                700..800 => call.work(id).on(node).await,
                800..900 => call.work_async(id).await,
                _ => (call.work(id) & BG).await,
            };
            outcome(id, result.map(known));
        });
    }

    /// Calls from a thread that waits for each.
    fn block(self: &Arc<Self>) {
        loop {
            thread::sleep(Duration::from_millis(10));
            let _flight = self.begin();
            if self.running.load(SeqCst) {
                let id = self.invoke(Way::Call);
                let result = self.g.call.work(id) & FG;
                outcome(
                    id,
                    result.map(|value| if value == value_of(id) { Class::Good } else { Class::Wrong }),
                );
            }
        }
    }

    /// Asks everybody, and gives how many answered well.
    async fn broadcast(&self) -> usize {
        let id = self.invoke(Way::Broadcast);
        let results = self.g.call.everyone(id).broadcast_results_async().await;
        let mut well = 0;
        for (name, result) in results.iter().flatten() {
            let node = name.strip_prefix("callee-").and_then(|number| number.parse().ok()).unwrap_or(31);
            let (class, code) = match result {
                Ok(value) if *value == value_of(id) => (Class::Good, 0),
                Ok(_) => (Class::Wrong, 0),
                Err(error) => (class_of(error), code_of(error)),
            };
            well += usize::from(class == Class::Good);
            Record::Entry { id, node, class, code }.tell();
        }
        outcome(id, results.map(|_| Class::Good));
        well
    }

    /// Waits until everybody can be called, one by one and together.
    fn probe(&self) -> bool {
        let deadline = Instant::now() + RECOVERY;
        let step = Duration::from_millis(50);
        for number in 0..self.child.callees {
            let reached = || {
                let id = self.invoke(Way::Call);
                let call = self.g.call.work(id).on(format!("callee-{number}"));
                let result = call.timeout(Duration::from_secs(3)).fg();
                let reached = result.is_ok();
                if let (Err(error), true) = (&result, Instant::now() > deadline) {
                    eprintln!("callee-{number} cannot be called: {error:?}");
                }
                outcome(
                    id,
                    result.map(|value| if value == value_of(id) { Class::Good } else { Class::Wrong }),
                );
                reached
            };
            while !reached() {
                if Instant::now() > deadline {
                    return false;
                }
                thread::sleep(step);
            }
        }
        let runtime = runtime::Builder::new_current_thread().build().expect("a runtime can be made");
        while runtime.block_on(self.broadcast()) != self.child.callees as usize {
            if Instant::now() > deadline {
                eprintln!("not everybody answers a broadcast");
                return false;
            }
            thread::sleep(step);
        }
        true
    }

    /// Has the controller call during this window. A task outlives its owner, so only who is never killed has one:
    /// nobody else could end it.
    fn schedule(&self) {
        if !self.child.lasting {
            return;
        }
        let id = self.next();
        let period = PERIOD.period(TASK_PERIOD);
        Record::Invoke { id, way: Way::Task, value: TASK_PERIOD.as_millis() as u64 }.tell();
        match self.g.call.tick(id) & period {
            Ok(task) => *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, task)),
            Err(error) => outcome(id, Err(error)),
        }
    }

    /// Ends what is going on, and tells when all is over.
    fn quiet(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((id, task)) = task {
            let deadline = Instant::now() + RECOVERY;
            let result = loop {
                match task.id().and_then(|_| task.cancel()) {
                    // It ended with its controller.
                    Ok(()) | Err(Error::NoTask { .. }) => break Ok(Class::Good),
                    Err(error) if task.id().is_err() || Instant::now() > deadline => break Err(error),
                    Err(_) => thread::sleep(Duration::from_millis(50)),
                }
            };
            outcome(id, result);
        }
        while self.in_flight.load(SeqCst) > 0 {
            thread::sleep(Duration::from_millis(5));
        }
        Record::Quiet { window: self.window.load(SeqCst).into() }.tell();
    }

    fn invoke(&self, way: Way) -> u64 {
        let id = self.next();
        Record::Invoke { id, way, value: 0 }.tell();
        id
    }

    fn next(&self) -> u64 {
        id(self.child.serial, self.window.load(SeqCst), self.sequence.fetch_add(1, SeqCst))
    }

    fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, SeqCst);
        InFlight(self.clone())
    }
}

/// A call that is not over.
struct InFlight(Arc<Caller>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, SeqCst);
    }
}

fn outcome(id: u64, result: daffi::Result<Class>) {
    let (class, code) = match &result {
        Ok(class) => (*class, 0),
        Err(error) => (class_of(error), code_of(error)),
    };
    if code == crate::record::UNEXPECTED {
        eprintln!("unexpected: {:?}", result);
    }
    Record::Outcome { id, class, code, at: now() }.tell();
}
