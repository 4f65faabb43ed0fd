//! What becomes of a call between being made and its outcome.

use std::{
    cell::RefCell,
    future::pending,
    sync::{
        Mutex,
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use daffi::{BG, Bytes, Context, Error, FG, Global, Limits, NO_RETURN, callback, fetcher};

use crate::support::{BOUND, Count, CountsDrop, Net, next, run};

const SHORT: Duration = Duration::from_millis(50);

/// A callee with `hang`, an async callback that ends only by being dropped.
pub(crate) struct Hanging {
    pub(crate) entered: Count,
    pub(crate) dropped: Count,
    a: Global,
    _b: Global,
    pub(crate) net: Net,
}

pub(crate) fn hanging() -> Hanging {
    let net = Net::new();
    let (entered, dropped) = (Count::new(), Count::new());
    let counts = (entered.clone(), dropped.clone());
    let hang = move || {
        let (entered, dropped) = (counts.0.clone(), CountsDrop(counts.1.clone()));
        async move {
            let _dropped = dropped;
            entered.add();
            pending::<()>().await
        }
    };
    let b = net.node("b").async_callback("hang", hang).callback("double", |a: i64| 2 * a).start().unwrap();
    Hanging { entered, dropped, a: net.patient("caller").start().unwrap(), _b: b, net }
}

impl Hanging {
    pub(crate) fn hang(&self) -> daffi::Call<()> {
        self.a.call.by_name("hang", ())
    }

    /// The callee goes on serving.
    pub(crate) fn is_well(&self) {
        assert_eq!((self.a.call.by_name::<i64, _>("double", (4i64,)) & FG.timeout(BOUND)).unwrap(), 8);
    }
}

#[test]
fn by_name_infers_or_is_told() {
    let net = Net::new();
    let _b = net
        .node("b")
        .callback("add", |a: i64, b: i64| a + b)
        .callback("shout", |text: String| text.to_uppercase())
        .callback("nothing", || ())
        .callback("many", |a: u8, b: Option<u16>, c: Vec<String>, d: (bool, char)| (d, c, b, a))
        .start()
        .unwrap();
    let a = net.caller();
    let inferred: i64 = (a.call.by_name("add", (10i64, 3i64)) & FG).unwrap();
    let told = (a.call.by_name::<i64, _>("add", (10i64, 3i64)) & FG).unwrap();
    assert_eq!((inferred, told), (13, 13));
    // Arguments may be lent, and the name made while the program runs.
    let shouted: String = (a.call.by_name(format!("sho{}", "ut"), ("lent",)) & FG).unwrap();
    assert_eq!(shouted, "LENT");
    let () = (a.call.by_name("nothing", ()) & FG).unwrap();
    type Many = ((bool, char), Vec<String>, Option<u16>, u8);
    let many: Many =
        (a.call.by_name("many", (1u8, Some(2u16), vec!["x".to_owned()], (true, 'ü'))) & FG).unwrap();
    assert_eq!(many, ((true, 'ü'), vec!["x".to_owned()], Some(2), 1));
    run(async {
        let sum: i64 = a.call.by_name("add", (1i64, 2i64)).await.unwrap();
        assert_eq!(sum, 3);
        let sum: i64 = (a.call.by_name("add", (1i64, 2i64)) & BG).await.unwrap();
        assert_eq!(sum, 3);
    });
}

#[test]
fn a_call_is_not_made_before_its_modifier() {
    let hanging = hanging();
    drop(hanging.hang());
    drop(hanging.hang().timeout(SHORT).on("b"));
    hanging.is_well();
    assert_eq!(hanging.entered.get(), 0);
}

#[test]
fn dropping_an_awaited_call_cancels_it() {
    let hanging = hanging();
    run(async {
        // Awaited in a task that ends.
        let task = tokio::spawn(hanging.hang().into_future());
        hanging.entered.wait_async(1).await;
        task.abort();
        hanging.dropped.wait_async(1).await;
        // Given up by the runtime's own timer.
        assert!(tokio::time::timeout(SHORT, hanging.hang()).await.is_err());
        hanging.dropped.wait_async(hanging.entered.get()).await;
        // The same for the other spellings.
        assert!(tokio::time::timeout(SHORT, hanging.hang().fg_async()).await.is_err());
        assert!(tokio::time::timeout(SHORT, hanging.hang().broadcast_results_async()).await.is_err());
    });
    hanging.is_well();
    hanging.dropped.wait(hanging.entered.get());
}

#[test]
fn a_dropped_call_is_seen_by_an_fn() {
    let net = Net::new();
    let (entered, seen) = (Count::new(), Count::new());
    let counts = (entered.clone(), seen.clone());
    let spin = move |context: &Context| {
        assert!(!context.is_cancelled());
        counts.0.add();
        let end = Instant::now() + BOUND;
        while !context.is_cancelled() && Instant::now() < end {
            thread::sleep(Duration::from_millis(1));
        }
        if context.is_cancelled() {
            counts.1.add();
        }
    };
    let _b = net.node("b").callback("spin", spin).start().unwrap();
    let a = net.patient("caller").start().unwrap();
    run(async {
        let task = tokio::spawn(a.call.by_name::<(), _>("spin", ()).into_future());
        entered.wait_async(1).await;
        task.abort();
        seen.wait_async(1).await;
    });
    // Cancelled, and out of time.
    let result = a.call.by_name::<(), _>("spin", ()) & BG;
    entered.wait(2);
    result.cancel();
    seen.wait(2);
    let error = (a.call.by_name::<(), _>("spin", ()) & FG.timeout(SHORT)).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }));
    if entered.get() == 3 {
        seen.wait(3);
    }
    // The caller is gone.
    let before = entered.get();
    let _result = a.call.by_name::<(), _>("spin", ()) & BG;
    entered.wait(before + 1);
    a.stop().unwrap();
    seen.wait(before + 1);
}

#[test]
fn a_timeout_cancels_the_callee_and_says_what_it_was() {
    let hanging = hanging();
    let timeout = Duration::from_millis(200);
    let begin = Instant::now();
    let error = (hanging.hang() & FG.timeout(timeout)).unwrap_err();
    let Error::Timeout { callback, after, sent } = &error else { panic!("{error}") };
    assert_eq!((callback.as_str(), *after, *sent), ("hang", timeout, true));
    assert!(begin.elapsed() >= timeout);
    assert!(error.may_have_executed() && error.is_retryable());
    let error = (hanging.hang() & BG.timeout(timeout)).get().unwrap_err();
    assert!(matches!(error, Error::Timeout { after, sent: true, .. } if after == timeout), "{error}");
    let error = run(hanging.hang().timeout(timeout).into_future()).unwrap_err();
    assert!(matches!(error, Error::Timeout { after, sent: true, .. } if after == timeout), "{error}");
    hanging.dropped.wait(hanging.entered.get());
    hanging.is_well();
    // No time at all.
    for error in [
        (hanging.hang() & FG.timeout(Duration::ZERO)).unwrap_err(),
        (hanging.hang() & BG.timeout(Duration::ZERO)).get().unwrap_err(),
        run(hanging.hang().timeout(Duration::ZERO).into_future()).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Timeout { sent: false, .. }), "{error}");
    }
    // More time than there is.
    let double = || hanging.a.call.by_name::<i64, _>("double", (1i64,));
    assert_eq!((double() & FG.timeout(Duration::MAX)).unwrap(), 2);
    assert_eq!((double() & BG.timeout(Duration::MAX)).get_timeout(Duration::MAX).unwrap(), 2);
}

#[test]
fn the_default_timeout_is_for_calls_without_their_own() {
    let net = Net::new();
    let _b = net.node("b").async_callback("hang", pending::<()>).start().unwrap();
    let _other = net.node("c").callback("quick", || 1u8).start().unwrap();
    let a = net.node("caller").default_timeout(SHORT).start().unwrap();
    let error = (a.call.by_name::<(), _>("hang", ()) & FG).unwrap_err();
    assert!(matches!(error, Error::Timeout { after: SHORT, .. }), "{error}");
    let error = (a.call.by_name::<(), _>("hang", ()) & BG).get().unwrap_err();
    assert!(matches!(error, Error::Timeout { after: SHORT, .. }), "{error}");
    let own = 2 * SHORT;
    let error = (a.call.by_name::<(), _>("hang", ()) & FG.timeout(own)).unwrap_err();
    assert!(matches!(error, Error::Timeout { after, .. } if after == own), "{error}");
}

#[test]
fn dropping_an_async_result_detaches() {
    let net = Net::new();
    let (entered, open, done) = (Count::new(), Count::new(), Count::new());
    let counts = (entered.clone(), open.clone(), done.clone());
    let work = move |context: Context| {
        let (entered, open, done) = counts.clone();
        async move {
            entered.add();
            open.wait_async(1).await;
            assert!(!context.is_cancelled());
            done.add();
        }
    };
    let _b = net.node("b").async_callback("work", work).start().unwrap();
    let a = net.caller();
    drop(a.call.by_name::<(), _>("work", ()) & BG);
    drop((a.call.by_name::<(), _>("work", ()) & BG).into_future());
    let partly = run(async {
        let result = a.call.by_name::<(), _>("work", ()) & BG;
        let timed_out = tokio::time::timeout(SHORT, &result).await.is_err();
        timed_out && tokio::time::timeout(SHORT, result.get_async()).await.is_err()
    });
    assert!(partly, "nothing is there yet");
    entered.wait(3);
    open.add();
    done.wait(3);
}

#[test]
fn cancel_ends_a_call_in_the_background() {
    let hanging = hanging();
    let result = hanging.hang() & BG;
    hanging.entered.wait(1);
    assert!(!result.is_ready());
    result.cancel();
    assert!(result.is_ready());
    hanging.dropped.wait(1);
    for _ in 0..2 {
        let error = result.get().unwrap_err();
        assert!(matches!(&error, Error::Cancelled { callback, sent: true } if callback == "hang"), "{error}");
        assert!(error.may_have_executed() && !error.is_retryable());
        result.cancel();
    }
    // Whoever waits for it meanwhile is told.
    let result = hanging.hang() & BG;
    hanging.entered.wait(2);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| result.get());
        scope.spawn(|| result.cancel());
        assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled { .. })));
    });
    hanging.dropped.wait(2);
    // What is there stays there.
    let done = hanging.a.call.by_name::<i64, _>("double", (4i64,)) & BG;
    assert_eq!(done.get().unwrap(), 8);
    done.cancel();
    assert_eq!(done.get().unwrap(), 8);
}

#[test]
fn a_result_is_there_as_often_as_it_is_asked_for() {
    let net = Net::new();
    let (entered, open) = (Count::new(), Count::new());
    let counts = (entered.clone(), open.clone());
    let work = move |a: i64| {
        counts.0.add();
        counts.1.wait(1);
        2 * a
    };
    let _b = net.node("b").callback("work", work).start().unwrap();
    let a = net.caller();
    let result = a.call.by_name::<i64, _>("work", (4i64,)) & BG;
    entered.wait(1);
    // It runs out of time, and the call goes on.
    let error = result.get_timeout(SHORT).unwrap_err();
    assert!(matches!(error, Error::Timeout { after: SHORT, sent: true, .. }), "{error}");
    assert!(result.get_timeout(Duration::ZERO).is_err());
    assert!(!result.is_ready());
    open.add();
    assert_eq!(result.get_timeout(BOUND).unwrap(), 8);
    assert!(result.is_ready());
    assert_eq!(result.get().unwrap(), 8);
    assert_eq!(result.get().unwrap(), 8);
    assert_eq!(result.get_timeout(Duration::ZERO).unwrap(), 8);
    run(async {
        assert_eq!(result.get_async().await.unwrap(), 8);
        assert_eq!((&result).await.unwrap(), 8);
        assert_eq!((&result).await.unwrap(), 8);
        assert_eq!(result.await.unwrap(), 8);
    });
    assert_eq!(entered.get(), 1);
}

#[test]
fn several_wait_for_one_result() {
    let net = Net::new();
    let open = Count::new();
    let waits = open.clone();
    let _b = net.node("b").callback("work", move || waits.wait(1)).start().unwrap();
    let a = net.caller();
    let result = a.call.by_name::<(), _>("work", ()) & BG;
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| result.get()))
            .chain((0..3).map(|_| scope.spawn(|| run(result.get_async()))))
            .collect();
        open.add();
        for one in waiting {
            one.join().unwrap().unwrap();
        }
    });
}

#[test]
fn an_eta_is_waited_for() {
    let net = Net::new();
    let (sender, ran) = channel();
    let _b = net.node("b").callback("now", move || sender.send(Instant::now()).unwrap()).start().unwrap();
    let a = net.caller();
    let eta = Duration::from_millis(150);
    let made = Instant::now();
    let result = a.call.by_name::<(), _>("now", ()) & BG.eta(eta);
    assert!(next(&ran) >= made + eta);
    result.get().unwrap();
    // Those that are due first go first.
    let late = a.call.by_name::<(), _>("now", ()) & BG.eta(2 * eta);
    let early = a.call.by_name::<(), _>("now", ()) & BG.eta(eta);
    early.get().unwrap();
    assert!(!late.is_ready());
    late.get().unwrap();
}

#[test]
fn what_is_cancelled_before_its_eta_never_runs() {
    let hanging = hanging();
    let eta = Duration::from_millis(100);
    let result = hanging.hang() & BG.eta(eta);
    result.cancel();
    let error = result.get().unwrap_err();
    assert!(matches!(error, Error::Cancelled { sent: false, .. }), "{error}");
    assert!(!error.may_have_executed());
    // A later call with the same eta has gone out when this one would have.
    let after = hanging.a.call.by_name::<i64, _>("double", (1i64,)) & BG.eta(eta);
    assert_eq!(after.get().unwrap(), 2);
    hanging.is_well();
    assert_eq!(hanging.entered.get(), 0);
}

#[test]
fn an_eta_that_never_comes_is_waited_for_in_vain() {
    let hanging = hanging();
    let never = hanging.hang() & BG.eta(Duration::MAX);
    assert!(!never.is_ready());
    (hanging.hang() & NO_RETURN.eta(Duration::MAX)).unwrap();
    hanging.is_well();
    never.cancel();
    assert!(matches!(never.get(), Err(Error::Cancelled { sent: false, .. })));
}

#[test]
fn stopping_ends_what_waits_for_its_eta() {
    let hanging = hanging();
    let waiting = hanging.hang() & BG.eta(Duration::from_secs(3600));
    hanging.a.stop().unwrap();
    let error = waiting.get().unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    for error in [
        (hanging.hang() & FG).unwrap_err(),
        (hanging.hang() & BG).get().unwrap_err(),
        (hanging.hang() & BG.eta(SHORT)).get().unwrap_err(),
        (hanging.hang() & NO_RETURN).unwrap_err(),
        (hanging.hang() & NO_RETURN.eta(SHORT)).unwrap_err(),
        hanging.hang().broadcast_results().unwrap_err(),
        run(hanging.hang().into_future()).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
        assert!(!error.may_have_executed());
    }
}

#[test]
fn a_timeout_counts_from_the_sending() {
    let hanging = hanging();
    let (eta, timeout) = (Duration::from_millis(2500), Duration::from_millis(2000));
    let begin = Instant::now();
    let late = hanging.hang() & BG.timeout(timeout).eta(eta);
    let quick = hanging.a.call.by_name::<i64, _>("double", (4i64,)) & BG.timeout(timeout).eta(eta);
    assert_eq!(quick.get().unwrap(), 8);
    assert!(begin.elapsed() >= eta);
    let error = late.get().unwrap_err();
    assert!(matches!(error, Error::Timeout { after, sent: true, .. } if after == timeout), "{error}");
    assert!(begin.elapsed() >= eta + timeout);
    hanging.dropped.wait(1);
}

static ORDER: Mutex<Option<Sender<u32>>> = Mutex::new(None);

#[callback(name = "it.calls.one at a time", max_concurrency = 1)]
fn one_at_a_time(number: u32) {
    if let Some(order) = &*ORDER.lock().unwrap() {
        order.send(number).unwrap();
    }
}

static RUNNING: Mutex<(usize, usize)> = Mutex::new((0, 0));

#[callback(max_concurrency = 3)]
async fn it_calls_three_at_a_time() {
    {
        let mut running = RUNNING.lock().unwrap();
        running.0 += 1;
        running.1 = running.1.max(running.0);
    }
    // The first wait for the third, and all stay a while, so that a fourth would be seen.
    let deadline = Instant::now() + BOUND;
    while RUNNING.lock().unwrap().1 < 3 && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    RUNNING.lock().unwrap().0 -= 1;
}

#[callback(inline)]
fn it_calls_inline() -> Option<String> {
    thread::current().name().map(str::to_owned)
}

#[callback(inline)]
async fn it_calls_inline_async() -> [Option<String>; 2] {
    let before = thread::current().name().map(str::to_owned);
    tokio::task::yield_now().await;
    [before, thread::current().name().map(str::to_owned)]
}

#[callback(inline)]
fn it_calls_inline_blocks(context: &Context) -> String {
    (context.call.it_calls_inline() & FG).unwrap_err().to_string()
}

#[fetcher]
trait Options {
    #[fetcher(name = "it.calls.one at a time")]
    fn numbered(number: u32);
    fn it_calls_three_at_a_time();
    fn it_calls_inline() -> Option<String>;
    fn it_calls_inline_async() -> [Option<String>; 2];
    fn it_calls_inline_blocks() -> String;
}

#[test]
fn options_of_callbacks_hold() {
    let net = Net::new();
    let _b = net.node("b").link_time_callbacks(true).start().unwrap();
    let a = net.caller();
    let (sender, order) = channel();
    *ORDER.lock().unwrap() = Some(sender);
    let results: Vec<_> = (0..500).map(|number| a.call.numbered(number) & BG).collect();
    for result in results {
        result.get().unwrap();
    }
    assert!(order.try_iter().eq(0..500), "one node's calls to another keep their order");

    let results: Vec<_> = (0..100).map(|_| a.call.it_calls_three_at_a_time() & BG).collect();
    for result in results {
        result.get().unwrap();
    }
    assert_eq!(*RUNNING.lock().unwrap(), (0, 3));

    let io = "daffi-io";
    assert_eq!((a.call.it_calls_inline() & FG).unwrap().as_deref(), Some(io));
    let [before, after] = (a.call.it_calls_inline_async() & FG).unwrap();
    assert_eq!(before.as_deref(), Some(io));
    assert_ne!(after.as_deref(), Some(io));
    let error = (a.call.it_calls_inline_blocks() & FG).unwrap();
    assert!(error.contains("would block"), "{error}");
}

/// A caller that may have two calls in flight, and a callee whose `work` waits until it is let on.
pub(crate) struct Limited {
    pub(crate) entered: Count,
    pub(crate) open: Count,
    pub(crate) a: Global,
    _b: Global,
    _net: Net,
}

pub(crate) fn limited() -> Limited {
    let net = Net::new();
    let (entered, open) = (Count::new(), Count::new());
    let counts = (entered.clone(), open.clone());
    let work = move |a: u32| {
        counts.0.add();
        counts.1.wait(1);
        a
    };
    let b = net.node("b").callback("work", work).callback("quick", |a: u32| a).start().unwrap();
    let limits = Limits { calls_in_flight_max: 2, ..Limits::default() };
    Limited { entered, open, a: net.node("caller").limits(limits).start().unwrap(), _b: b, _net: net }
}

impl Limited {
    pub(crate) fn work(&self, a: u32) -> daffi::Call<u32> {
        self.a.call.by_name("work", (a,))
    }

    pub(crate) fn quick(&self, a: u32) -> daffi::Call<u32> {
        self.a.call.by_name("quick", (a,))
    }
}

#[test]
fn calls_in_flight_are_bounded_and_the_others_wait_their_turn() {
    let limited = limited();
    let first = [0, 1].map(|a| limited.work(a) & BG);
    limited.entered.wait(2);
    let second = [2, 3].map(|a| limited.work(a) & BG);
    // As many wait as are in flight; one that nobody waits for is refused beyond that.
    let refused = limited.work(4) & BG;
    let error = refused.get().unwrap_err();
    assert!(matches!(&error, Error::Overloaded { .. }), "{error}");
    assert!(!error.may_have_executed() && error.is_retryable());
    assert_eq!(limited.entered.get(), 2);
    // One that waits and is cancelled is never sent.
    second[1].cancel();
    assert!(matches!(second[1].get(), Err(Error::Cancelled { sent: false, .. })));
    limited.open.add();
    for (a, result) in (0..).zip(first.iter().chain(&second[..1])) {
        assert_eq!(result.get().unwrap(), a);
    }
    assert_eq!((limited.work(5) & FG).unwrap(), 5);
    assert_eq!(limited.entered.get(), 4);
}

#[test]
fn what_was_cancelled_leaves_room_for_others_to_wait() {
    let limited = limited();
    let _first = [0, 1].map(|a| limited.work(a) & BG);
    limited.entered.wait(2);
    for _ in 0..100 {
        let waiting = limited.quick(0) & BG;
        assert!(!waiting.is_ready());
        waiting.cancel();
        let error = (limited.quick(0) & BG.timeout(Duration::from_millis(1))).get().unwrap_err();
        assert!(matches!(error, Error::Timeout { sent: false, .. }), "{error}");
    }
    limited.open.add();
    assert_eq!((limited.quick(7) & FG).unwrap(), 7);
}

#[test]
fn blocking_callers_block_and_async_callers_wait_at_the_limit() {
    let limited = limited();
    let _first = [0, 1].map(|a| limited.work(a) & BG);
    limited.entered.wait(2);
    let limited = &limited;
    thread::scope(|scope| {
        let blocked: Vec<_> =
            (0..10).map(|a| scope.spawn(move || (limited.quick(a) & FG).unwrap())).collect();
        let awaiting = scope.spawn(|| {
            run(async {
                let calls: Vec<_> = (0..10).map(|a| tokio::spawn(limited.quick(a).into_future())).collect();
                // They are there to wait when the limit is lifted.
                tokio::task::yield_now().await;
                limited.open.add();
                let mut results = Vec::new();
                for call in calls {
                    results.push(call.await.unwrap().unwrap());
                }
                results
            })
        });
        assert!(awaiting.join().unwrap().into_iter().eq(0..10));
        let results: Vec<_> = blocked.into_iter().map(|call| call.join().unwrap()).collect();
        assert!(results.into_iter().eq(0..10));
    });
}

#[test]
fn calls_that_end_while_they_begin_leave_no_trace_at_the_limit() {
    let limited = limited();
    limited.open.add();
    for round in 0..3000u32 {
        // Its time may be up before it is sent, while it is, or after.
        let result =
            limited.quick(round) & BG.timeout(Duration::from_nanos(1 + u64::from(round % 50) * 1000));
        if round % 3 == 0 {
            result.cancel();
        }
        let _ = result.get();
    }
    let limited = &limited;
    let results = [0, 1].map(|a| limited.quick(a) & BG.timeout(BOUND));
    for (a, result) in (0..).zip(results) {
        assert_eq!(result.get().unwrap(), a);
    }
}

/// A node whose callback `work` counts how often it is entered, and ends once it is open.
fn at_work(net: &Net, limits: Limits) -> (Global, Count, Count) {
    let (entered, open) = (Count::new(), Count::new());
    let counts = (entered.clone(), open.clone());
    let work = move || {
        counts.0.add();
        counts.1.wait(1);
    };
    let node = net.node("b").limits(limits).callback("work", work).start().unwrap();
    (node, entered, open)
}

#[test]
fn a_node_holds_no_more_requests_than_its_limit() {
    let net = Net::new();
    let (_b, entered, open) = at_work(&net, Limits { requests_held_max: 3, ..Limits::default() });
    let a = net.caller();
    let held: Vec<_> = (0..3).map(|_| a.call.by_name::<(), _>("work", ()) & BG).collect();
    entered.wait(3);
    let error = (a.call.by_name::<(), _>("work", ()) & FG).unwrap_err();
    assert!(matches!(&error, Error::Overloaded { node } if node == "b"), "{error}");
    assert!(!error.may_have_executed() && error.is_retryable());
    open.add();
    for result in held {
        result.get().unwrap();
    }
    (a.call.by_name::<(), _>("work", ()) & FG).unwrap();
    assert_eq!(entered.get(), 4);
}

#[test]
fn no_more_threads_run_callbacks_than_the_limit() {
    let net = Net::new();
    let (_b, entered, open) = at_work(&net, Limits { threads_max: 4, ..Limits::default() });
    let a = net.caller();
    let held: Vec<_> = (0..12).map(|_| a.call.by_name::<(), _>("work", ()) & BG).collect();
    entered.wait(4);
    // All twelve are there before this is answered.
    a.callbacks().unwrap();
    assert_eq!(entered.get(), 4);
    open.add();
    for result in held {
        result.get().unwrap();
    }
    assert_eq!(entered.get(), 12);
}

#[callback(name = "it.calls.in line", max_concurrency = 1)]
fn in_line() {}

#[test]
fn calls_that_are_over_take_no_room_wherever_they_ran() {
    let net = Net::new();
    let limits = Limits { requests_held_max: 3, ..Limits::default() };
    // With its linked callbacks.
    let _b = net.node("b").link_time_callbacks(true).limits(limits).start().unwrap();
    let a = net.caller();
    // Some run on threads of their own, and the rest, once they have shown to be quick, on the I/O thread.
    for _ in 0..200 {
        (a.call.by_name::<(), _>("it.calls.in line", ()) & FG).unwrap();
        (a.call.it_calls_inline() & FG).unwrap();
    }
}

#[test]
fn calls_wait_for_a_lost_controller_and_take_no_room_when_given_up() {
    let mut limited = limited();
    limited.open.add();
    limited._net.stop_controller();
    // Those that were given up are not in the way of those that are wanted.
    let moment = Duration::from_millis(1);
    for _ in 0..20 {
        let error = (limited.quick(0) & BG.timeout(moment)).get().unwrap_err();
        assert!(matches!(error, Error::Timeout { .. } | Error::ControllerLost { .. }), "{error}");
        let given_up = limited.work(0) & BG;
        given_up.cancel();
        assert!(matches!(given_up.get(), Err(Error::Cancelled { .. } | Error::ControllerLost { .. })));
    }
    let waiting = [1, 2].map(|a| limited.quick(a) & BG.timeout(BOUND));
    assert!(waiting.iter().all(|result| !result.is_ready()));
    limited._net.start_controller(Limits::default());
    limited.a.wait_function_timeout("quick", BOUND).unwrap();
    // Also if the caller was faster to come back than the callee.
    for (a, result) in (1..).zip(waiting) {
        assert_eq!(result.get().unwrap(), a);
    }
    assert_eq!((limited.quick(3) & FG).unwrap(), 3);
    assert_eq!(limited.entered.get(), 0, "what was given up never ran");
}

#[test]
fn what_is_offered_is_listed_with_signatures() {
    let net = Net::new();
    let add =
        |builder: daffi::GlobalBuilder| builder.callback("add", |a: i64, b: i64| a + b).start().unwrap();
    let (_b, _c) = (add(net.node("b")), add(net.node("c")));
    let _d = net.node("d").callback("add", |text: String| text).start().unwrap();
    let a = net.caller();
    let processes = a.processes().unwrap();
    let names: Vec<_> = processes.iter().map(|process| process.name.as_str()).collect();
    assert_eq!(names, ["b", "c", "caller", "d"]);
    assert_eq!(processes[0].callbacks, ["add"]);
    assert!(processes[2].callbacks.is_empty());
    let mut callbacks: Vec<_> =
        a.callbacks().unwrap().into_iter().map(|info| (info.name, info.signature, info.nodes)).collect();
    callbacks.sort();
    let expected = |signature: &str, nodes: &[&str]| {
        ("add".to_owned(), signature.to_owned(), nodes.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(
        callbacks,
        [expected("(String) -> String", &["d"]), expected("(i64, i64) -> i64", &["b", "c"])]
    );
    run(async {
        assert_eq!(a.processes_async().await.unwrap(), processes);
        assert_eq!(a.callbacks_async().await.unwrap().len(), 2);
    });
    // Each is called with the types that it has, wherever that is.
    assert_eq!((a.call.by_name::<String, _>("add", ("x",)) & FG.on("d")).unwrap(), "x");
    assert_eq!((a.call.by_name::<i64, _>("add", (1i64, 2i64)) & FG.on("c")).unwrap(), 3);
}

#[test]
fn what_makes_no_sense_does_not_start() {
    let net = Net::new();
    let twice = net.node("b").callback("twice", || 1u8).callback("twice", || 2u8).start().unwrap_err();
    let Error::DuplicateCallback { name, first, second } = &twice else { panic!("{twice}") };
    assert_eq!(name, "twice");
    assert!([first, second].iter().all(|place| place.starts_with("tests/it/calls.rs:")), "{twice}");
    for wrong in [
        net.node("b").host("localhost").start(),
        net.node("b").port(1).start(),
        net.node("b").init_node(false).start(),
        net.node("b").default_timeout(Duration::ZERO).start(),
        net.node("b").limits(Limits { calls_in_flight_max: 0, ..Limits::default() }).start(),
        Global::builder().host("localhost").link_time_callbacks(false).start(),
    ] {
        let error = wrong.unwrap_err();
        assert!(matches!(error, Error::Configuration { .. }), "{error}");
    }
    let _b = net.node("b").start().unwrap();
    let taken = net.node("b").start().unwrap_err();
    assert!(matches!(&taken, Error::NameTaken { name } if name == "b"), "{taken}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let error = net.node("c").start().unwrap_err();
        assert!(matches!(error, Error::BlockingInAsync { .. }), "{error}");
        let c = net.node("c").start_async().await.unwrap();
        c.wait_process_async("b").await.unwrap();
        c.stop_async().await.unwrap();
    });
}

/// Its owner's thread leads while it waits for its own calls, and then it does not wait any more.
#[test]
fn others_call_through_a_controller_whose_owner_has_led() {
    let (net, owner) = Net::embedded("owner");
    let _b = net.node("b").callback("double", |a: i64| 2 * a).start().unwrap();
    let double = |g: &Global, a: i64| (g.call.by_name::<i64, _>("double", (a,)) & FG).unwrap();
    owner.wait_function("double").unwrap();
    for _ in 0..3 {
        for a in 0..200 {
            assert_eq!(double(&owner, a), 2 * a);
        }
        thread::scope(|scope| {
            let others = scope.spawn(|| {
                let caller = net.node("another").start().unwrap();
                (0..200).for_each(|a| assert_eq!(double(&caller, a), 2 * a));
                caller.stop().unwrap();
            });
            others.join().unwrap();
        });
    }
}

/// What belongs to a thread that ends may call as it goes, when most else that belongs to it is gone.
#[test]
fn calls_in_the_destructor_of_a_thread_local_value() {
    struct Last(Global, Sender<usize>);
    impl Drop for Last {
        fn drop(&mut self) {
            let Self(a, lengths) = self;
            let call = |size| a.call.by_name::<usize, _>("length", (Bytes::from(vec![7; size]),));
            (call(5) & NO_RETURN).unwrap();
            lengths.send((call(10) & FG).unwrap()).unwrap();
            lengths.send((call(100_000) & BG).get().unwrap()).unwrap();
            let echoed = a.call.by_name::<Bytes, _>("echo", (vec![7u8; 50_000],)) & FG;
            lengths.send(echoed.unwrap().len()).unwrap();
        }
    }
    // What is used first is dropped last.
    thread_local!(static LAST: RefCell<Option<Last>> = const { RefCell::new(None) });
    let net = Net::new();
    let b =
        net.node("b").callback("length", |bytes: Bytes| bytes.len()).callback("echo", |bytes: Bytes| bytes);
    let _b = b.start().unwrap();
    let a = net.caller();
    let (lengths_in, lengths) = channel();
    thread::spawn(move || {
        LAST.with_borrow_mut(|last| _ = last.insert(Last(a.clone(), lengths_in)));
        assert_eq!(
            (a.call.by_name::<usize, _>("length", (Bytes::from(vec![7; 40_000]),)) & FG).unwrap(),
            40_000
        );
    });
    for length in [10, 100_000, 50_000] {
        assert_eq!(lengths.recv_timeout(BOUND), Ok(length));
    }
}
