//! What the users of the nodes do: calls of every kind, with everything that a call can have.

use std::{collections::BTreeMap, future::Future, pin::Pin, time::Duration};

use daffi::{Caller, Context, Error, Global, PERIOD, Result};

use daffi_core::limits::HOPS_MAX;

use crate::{
    callbacks::{ANY, Arguments, SERIAL, how},
    cluster::Cluster,
    history::{Ended, Kind, Nonce, Out, Text, text_of},
    network::HostId,
    ring::Ring,
    world::{self, Sim, sim},
};

/// What one user does until the cluster is quiet.
pub(crate) async fn user(cluster: Cluster, global: Global) {
    let sim = sim();
    let me = sim.current();
    loop {
        world::sleep(sim.millis(1, cluster.pause_ms)).await;
        if cluster.quiet() {
            return;
        }
        let user = User { sim: sim.clone(), me, cluster: cluster.clone(), global: global.clone() };
        match sim.below(100) {
            0..40 => user.call().await,
            40..50 => sim.spawn(me, async move { user.call().await }),
            50..65 => sim.spawn(me, async move { user.background().await }),
            65..73 => user.one_way(),
            73..80 => sim.spawn(me, async move { user.broadcast_results().await }),
            80..84 => user.broadcast().await,
            84..90 => sim.spawn(me, async move { user.period().await }),
            90..95 => user.give_up().await,
            _ => user.ask().await,
        }
    }
}

/// How deep a ring of calls would go if nothing else ended it.
pub(crate) const RUNAWAY: u32 = 3 * HOPS_MAX as u32;

/// Makes a call from the callback of the call `within`, if it is told to, and accepts any outcome.
pub(crate) async fn onwards(ctx: &Context, within: Nonce, next: &str) {
    let Some((nonce, outcome)) = nested(ctx, within, next) else { return };
    let abandoned = Abandoned(nonce);
    let result = outcome.await;
    std::mem::forget(abandoned);
    record(nonce, &result);
}

fn nested(ctx: &Context, within: Nonce, next: &str) -> Option<(Nonce, Outcome)> {
    let sim = sim();
    let (me, now) = (sim.current(), sim.now());
    let (name, global) = sim.host(me, |host| (host.name.clone(), host.global.clone()));
    let (callback, on, then) = match next.split_once('@') {
        Some((callback, node)) => {
            (callback.to_owned(), (!node.is_empty()).then(|| node.to_owned()), String::new())
        }
        None => {
            let (node, ring) = Ring::parse(next)?.next(&name)?;
            (ring.callback.clone(), Some(node), ring.to_string())
        }
    };
    // A callback that calls like any other user has no deadline; its call still counts as nested.
    let plainly = !then.is_empty() && !sim.network.lock().wire.calls_wait && sim.chance(30);
    let global = global.filter(|_| plainly);
    let deadline = ctx.deadline().filter(|_| global.is_none()).map(|deadline| sim.time_of(deadline));
    let timeout = deadline.map(|deadline| deadline.saturating_sub(now));
    let to_self = on.as_ref() == Some(&name);
    let takes_us = sim.micros(0, if then.is_empty() { 50_000 } else { 2000 }).as_micros() as u64;
    let nonce = {
        let mut history = sim.history.borrow_mut();
        let nonce = history.begin_nested(me, within, now, timeout, to_self);
        history.carries(nonce, Text { there: 10, back: 10 });
        nonce
    };
    sim.note(|| format!("{nonce:#x}: {name} calls {callback} on {on:?} within {within:#x}"));
    let arguments = (nonce, how::VALUE, takes_us, 10, then, text_of(nonce, 10));
    let caller = global.as_ref().map_or(&ctx.call, |global| &global.call);
    Some((nonce, start(caller, callback, arguments, on, None)))
}

/// Marks that a call has no outcome because its callback is dropped midway.
struct Abandoned(Nonce);

impl Drop for Abandoned {
    fn drop(&mut self) {
        sim().history.borrow_mut().abandon(self.0);
    }
}

fn record(nonce: Nonce, result: &Result<Out>) {
    let sim = sim();
    let ended = sim.history.borrow_mut().judge(nonce, result);
    sim.ended(nonce, ended);
}

type Outcome = Pin<Box<dyn Future<Output = Result<Out>> + Send>>;

/// Starts a call that is awaited.
fn start(
    caller: &Caller,
    callback: String,
    arguments: Arguments,
    on: Option<String>,
    timeout: Option<Duration>,
) -> Outcome {
    let call = caller.by_name::<Out, _>(callback, arguments);
    match (on, timeout) {
        (None, None) => Box::pin(call.into_future()),
        (None, Some(timeout)) => Box::pin(call.timeout(timeout).into_future()),
        (Some(on), None) => Box::pin(call.on(on).into_future()),
        (Some(on), Some(timeout)) => Box::pin(call.timeout(timeout).on(on).into_future()),
    }
}

/// Makes the first call of a ring, with nothing in its way.
pub(crate) async fn first_of_a_ring(
    global: Global,
    on: String,
    ring: Ring,
    timeout: Option<Duration>,
    nonces: std::rc::Rc<std::cell::RefCell<Vec<Nonce>>>,
) {
    /// Long enough that others called at the same time are running, too, when it makes its call.
    const TAKES: Duration = Duration::from_millis(500);
    let sim = sim();
    let nonce = sim.history.borrow_mut().begin(sim.current(), Kind::Call, sim.now(), timeout);
    nonces.borrow_mut().push(nonce);
    sim.history.borrow_mut().carries(nonce, Text { there: 10, back: 10 });
    let takes_us = TAKES.as_micros() as u64;
    let arguments = (nonce, how::VALUE, takes_us, 10, ring.to_string(), text_of(nonce, 10));
    let outcome = start(&global.call, ring.callback, arguments, Some(on), timeout);
    record(nonce, &outcome.await);
}

/// A user of a node.
struct User {
    sim: std::rc::Rc<Sim>,
    me: HostId,
    cluster: Cluster,
    global: Global,
}

impl User {
    fn begin(&self, kind: Kind, timeout: Option<Duration>) -> Nonce {
        self.sim.history.borrow_mut().begin(self.me, kind, self.sim.now(), timeout)
    }

    fn callback(&self) -> String {
        if self.sim.chance(25) { SERIAL } else { ANY[self.sim.below(ANY.len())] }.to_owned()
    }

    fn other(&self) -> Option<String> {
        self.sim.chance(50).then(|| self.cluster.name_of_any())
    }

    fn timeout(&self) -> Option<Duration> {
        self.sim.chance(50).then(|| self.sim.millis(5, 4000))
    }

    /// Returns a ring of some or all nodes, or of one that calls itself. Every fourth one is endless.
    fn ring(&self) -> Ring {
        let sim = &self.sim;
        let left = if sim.chance(25) { RUNAWAY } else { 1 + sim.below(10) as u32 };
        let nodes = self.cluster.names_of_some().into();
        Ring { left, callback: "work".to_owned(), nodes }
    }

    /// Returns the arguments of a call; `hurries` says whether it has a deadline.
    fn arguments(&self, nonce: Nonce, callback: &str, hurries: bool) -> Arguments {
        let sim = &self.sim;
        let how = match sim.below(100) {
            0..90 => how::VALUE,
            90..97 => how::ERROR,
            _ => how::PANIC,
        };
        let takes = match sim.below(10) {
            0..5 => Duration::ZERO,
            5..9 => sim.millis(1, 300),
            _ => sim.millis(300, 3000),
        };
        let bytes = || match sim.below(100) {
            0..88 => sim.below(200),
            88..95 => sim.below(20_000),
            _ => 60_000 + sim.below(self.cluster.large_bytes),
        };
        let (back, there) = (bytes(), bytes());
        let next = match sim.below(100) {
            0..14 if callback == "work" => {
                format!("{}@{}", self.callback(), self.other().unwrap_or_default())
            }
            // Where places are few, a ring may wait for one that it holds itself, until its time is up.
            14..20 if callback == "work" && (hurries || !sim.network.lock().wire.calls_wait) => {
                self.ring().to_string()
            }
            _ => String::new(),
        };
        sim.history.borrow_mut().carries(nonce, Text { there, back });
        (nonce, how, takes.as_micros() as u64, back as u32, next, text_of(nonce, there))
    }

    fn prepared(&self, timeout: Option<Duration>) -> (Nonce, Outcome) {
        let nonce = self.begin(Kind::Call, timeout);
        let callback = self.callback();
        let arguments = self.arguments(nonce, &callback, timeout.is_some());
        let on = self.other();
        self.sim.note(|| format!("{nonce:#x}: {} calls {callback} on {on:?}, {timeout:?}", self.me));
        (nonce, start(&self.global.call, callback, arguments, on, timeout))
    }

    async fn call(&self) {
        let (nonce, outcome) = self.prepared(self.timeout());
        record(nonce, &outcome.await);
    }

    /// Makes a call whose future is dropped after a while.
    async fn give_up(&self) {
        let (nonce, outcome) = self.prepared(self.timeout());
        let patience = self.sim.millis(0, 200);
        match either(outcome, world::sleep(patience)).await {
            Some(result) => record(nonce, &result),
            None => {
                self.sim.note(|| format!("{nonce:#x} is given up"));
                self.sim.history.borrow_mut().abandon(nonce);
            }
        }
    }

    async fn background(&self) {
        let eta = self.sim.chance(40).then(|| self.sim.millis(0, 500));
        let timeout = self.timeout();
        let whole = timeout.map(|timeout| timeout + eta.unwrap_or_default());
        let nonce = match eta {
            None => self.begin(Kind::Call, whole),
            Some(_) => self.sim.history.borrow_mut().begin_later(self.me, Kind::Call, self.sim.now(), whole),
        };
        let callback = self.callback();
        let arguments = self.arguments(nonce, &callback, timeout.is_some());
        self.sim.note(|| format!("{nonce:#x}: {} calls {callback} in the background", self.me));
        let call = self.global.call.by_name::<Out, _>(callback, arguments);
        let result = match (timeout, eta) {
            (None, None) => call.bg(),
            (None, Some(eta)) => call.eta(eta).bg(),
            (Some(timeout), None) => call.timeout(timeout).bg(),
            (Some(timeout), Some(eta)) => call.timeout(timeout).eta(eta).bg(),
        };
        if self.sim.chance(30) {
            world::sleep(self.sim.millis(0, 300)).await;
            result.cancel();
            self.sim.history.borrow_mut().looks(nonce, self.sim.now());
        }
        record(nonce, &result.await);
    }

    fn one_way(&self) {
        let nonce = self.begin(Kind::OneWay, None);
        let callback = self.callback();
        let arguments = self.arguments(nonce, &callback, false);
        self.sim.note(|| format!("{nonce:#x}: {} calls {callback} one way", self.me));
        let call = self.global.call.by_name::<Out, _>(callback, arguments);
        let handed_over = match self.other() {
            Some(on) => call.on(on).no_return(),
            None => call.no_return(),
        };
        if let Err(error) = handed_over {
            self.sim.ended(nonce, Ended::of(&error));
        }
    }

    async fn broadcast_results(&self) {
        let timeout = self.timeout();
        let nonce = self.begin(Kind::Results, timeout);
        let callback = self.callback();
        let arguments = self.arguments(nonce, &callback, timeout.is_some());
        self.sim.note(|| format!("{nonce:#x}: {} calls {callback} everywhere", self.me));
        let call = self.global.call.by_name::<Out, _>(callback, arguments);
        let entries = match timeout {
            Some(timeout) => call.timeout(timeout).broadcast_results_async().await,
            None => call.broadcast_results_async().await,
        };
        let ended = match entries {
            Ok(entries) => {
                let mut history = self.sim.history.borrow_mut();
                let judged = entries.iter().map(|(node, entry)| (node.clone(), history.judge(nonce, entry)));
                Ended::Entries(judged.collect::<BTreeMap<_, _>>())
            }
            Err(error) => Ended::of(&error),
        };
        self.sim.ended(nonce, ended);
    }

    async fn broadcast(&self) {
        let nonce = self.begin(Kind::Broadcast, None);
        let callback = self.callback();
        let arguments = self.arguments(nonce, &callback, false);
        self.sim.note(|| format!("{nonce:#x}: {} tells {callback} everywhere", self.me));
        let call = self.global.call.by_name::<Out, _>(callback, arguments);
        let ended = match call.broadcast_async().await {
            Ok(()) => Ended::Entries(BTreeMap::new()),
            Err(error) => Ended::of(&error),
        };
        self.sim.ended(nonce, ended);
    }

    /// Has the controller make calls for a while, and then stop.
    async fn period(&self) {
        let period = self.sim.millis(50, 900);
        let nonce = self.sim.history.borrow_mut().begin_task(period, self.sim.now());
        let callback = self.callback();
        let takes = if self.sim.chance(30) { self.sim.millis(1, 1500) } else { Duration::ZERO };
        let text = Text { there: self.sim.below(100), back: 10 };
        {
            let mut history = self.sim.history.borrow_mut();
            history.carries(nonce, text);
            history.tasks.entry(nonce).and_modify(|task| task.at_once = callback != SERIAL);
        }
        let takes_us = takes.as_micros() as u64;
        let arguments =
            (nonce, how::VALUE, takes_us, text.back as u32, String::new(), text_of(nonce, text.there));
        self.sim.note(|| format!("{nonce:#x}: {} calls {callback} every {period:?}", self.me));
        let call = self.global.call.by_name::<Out, _>(callback, arguments);
        let Ok(task) = call.period(PERIOD.period(period)) else { return };
        if task.id_async().await.is_err() {
            return;
        }
        let known = self.sim.now();
        world::sleep(self.sim.millis(0, 4000)).await;
        if self.sim.chance(50) {
            world::sleep(self.until_next(nonce, period)).await;
        }
        let asked = self.sim.now();
        // A controller that came after the one with the task knows nothing about it.
        if let Err(error) = task.cancel_async().await {
            return self.sim.note(|| format!("{nonce:#x} cannot be cancelled: {error}"));
        }
        let cancelled = self.sim.now();
        self.sim.note(|| format!("{nonce:#x} is cancelled"));
        if let Some(task) = self.sim.history.borrow_mut().tasks.get_mut(&nonce) {
            task.cancelled = Some(cancelled);
            task.there = Some((known, asked));
        }
        if let Ok(status) = task.status_async().await
            && let Some(task) = self.sim.history.borrow_mut().tasks.get_mut(&nonce)
        {
            task.counted = Some((status.runs, status.skipped));
        }
    }

    /// Returns roughly how long it is until the next call of a task, to make something coincide with it.
    fn until_next(&self, nonce: Nonce, period: Duration) -> Duration {
        let last = (self.sim.history.borrow().runs.get(&nonce))
            .and_then(|runs| runs.last().map(|(_, at)| *at))
            .unwrap_or_default();
        let since = self.sim.now().saturating_sub(last).as_micros() as u64;
        let left = period.as_micros() as u64 - since % period.as_micros() as u64;
        let early = if self.sim.chance(50) { Duration::ZERO } else { self.sim.micros(0, 4000) };
        Duration::from_micros(left).saturating_sub(early)
    }

    async fn ask(&self) {
        let nobody = self.sim.chance(20);
        let name = if nobody { "nobody".to_owned() } else { self.cluster.name_of_any() };
        let wait = Duration::from_secs(2);
        let answered = match self.sim.below(4) {
            0 => self.global.processes_async().await.map(|_| ()),
            1 => self.global.callbacks_async().await.map(|_| ()),
            2 => self.global.wait_process_timeout_async(&name, wait).await,
            _ => self.global.wait_function_timeout_async(SERIAL, wait).await,
        };
        if let Err(error) = answered
            && !matches!(error, Error::Timeout { .. } | Error::Stopped { .. } | Error::Overloaded { .. })
        {
            let problem = format!("a question failed: {error}");
            self.sim.history.borrow_mut().violations.push(problem);
        }
    }
}

/// Calls every other node until each has answered.
pub(crate) async fn reach_everybody(
    global: Global,
    names: Vec<String>,
    done: std::rc::Rc<std::cell::Cell<usize>>,
) {
    let sim = sim();
    for name in names {
        loop {
            let now = sim.now();
            let timeout = Duration::from_secs(2);
            let nonce = sim.history.borrow_mut().begin(sim.current(), Kind::Call, now, Some(timeout));
            sim.history.borrow_mut().carries(nonce, Text { there: 10, back: 10 });
            let arguments = (nonce, how::VALUE, 0, 10, String::new(), text_of(nonce, 10));
            let result =
                start(&global.call, "work".to_owned(), arguments, Some(name.clone()), Some(timeout)).await;
            record(nonce, &result);
            if result.is_ok() {
                break;
            }
            world::sleep(Duration::from_millis(100)).await;
        }
    }
    done.set(done.get() + 1);
}

/// Returns the output of `future`, unless `other` comes first.
async fn either<T>(mut future: Pin<Box<dyn Future<Output = T> + Send>>, other: world::Sleep) -> Option<T> {
    let mut other = Box::pin(other);
    std::future::poll_fn(move |context| {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(context) {
            return std::task::Poll::Ready(Some(value));
        }
        other.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// Ends the tasks that nobody else is left to end.
pub(crate) async fn end_tasks(global: Global, tasks: Vec<u64>, done: std::rc::Rc<std::cell::Cell<bool>>) {
    for task in tasks {
        // The controller may no longer have a task with this id.
        let _ = daffi_node::simulation::end_task(&global, task).await;
    }
    done.set(true);
}
