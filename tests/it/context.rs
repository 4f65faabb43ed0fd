//! What a callback knows of its call, and calls that it makes itself.

use std::{
    future::pending,
    sync::mpsc::channel,
    time::{Duration, Instant},
};

use daffi::{BG, BROADCAST, Context, Error, FG, NO_RETURN, PERIOD, callback, fetcher};

use crate::support::{BOUND, Count, CountsDrop, Net, next, run};

#[callback]
fn it_context_anywhere(a: u8, context: &Context, b: u8) -> (String, u8) {
    (context.caller().to_owned(), a + b)
}

#[callback]
async fn it_context_async(context: &Context, a: u8) -> (String, u8) {
    tokio::task::yield_now().await;
    (context.caller().to_owned(), a)
}

#[fetcher(prefix = "it_context_")]
trait Peer {
    fn anywhere(a: u8, b: u8) -> (String, u8);
    #[fetcher(name = "it_context_async")]
    fn in_async(a: u8) -> (String, u8);
}

#[test]
fn the_caller_is_named() {
    let net = Net::new();
    let b = net.node("b").link_time_callbacks(true);
    let _b = b.callback("who", |context: &Context| context.caller().to_owned()).start().unwrap();
    for name in ["one", "another one"] {
        let a = net.node(name).start().unwrap();
        assert_eq!((a.call.anywhere(1, 2) & FG).unwrap(), (name.to_owned(), 3));
        assert_eq!((a.call.in_async(1) & FG).unwrap(), (name.to_owned(), 1));
        let results = (a.call.by_name::<String, _>("who", ()) & BROADCAST.return_result()).unwrap();
        assert_eq!(results["b"].as_ref().unwrap(), name);
    }
}

#[test]
fn the_deadline_travels() {
    let net = Net::new();
    let (sender, deadlines) = channel();
    let left = move |context: &Context| {
        let now = Instant::now();
        sender.send(context.deadline().map(|deadline| deadline.saturating_duration_since(now))).unwrap();
    };
    let _b = net.node("b").callback("left", left).start().unwrap();
    let a = net.patient("caller").start().unwrap();
    let left = || a.call.by_name::<(), _>("left", ());
    (left() & FG).unwrap();
    assert_eq!(next(&deadlines), None);
    (left() & NO_RETURN).unwrap();
    assert_eq!(next(&deadlines), None);
    (left() & FG.timeout(BOUND)).unwrap();
    (left() & BG.timeout(BOUND)).get().unwrap();
    // It counts from the sending.
    (left() & BG.timeout(BOUND).eta(Duration::from_millis(20))).get().unwrap();
    (left() & BROADCAST.timeout(BOUND).return_result()).unwrap();
    for _ in 0..4 {
        let left = next(&deadlines).unwrap();
        assert!(left <= BOUND && left > BOUND / 2, "{left:?}");
    }
    let patient = net.node("patient").start().unwrap();
    (patient.call.by_name::<(), _>("left", ()) & FG).unwrap();
    assert!(next(&deadlines).is_some(), "the default timeout is a timeout");
    let task = (left() & PERIOD.period(Duration::from_millis(5))).unwrap();
    next(&deadlines);
    task.cancel().unwrap();
}

#[test]
fn cancelled_resolves_for_what_outlives_the_callback() {
    let net = Net::new();
    let (entered, told, dropped) = (Count::new(), Count::new(), Count::new());
    let counts = (entered.clone(), told.clone(), dropped.clone());
    let work = move |context: Context| {
        let (entered, told, dropped) = counts.clone();
        async move {
            let _dropped = CountsDrop(dropped);
            assert!(!context.is_cancelled());
            tokio::spawn(async move {
                context.cancelled().await;
                // As often as one likes.
                context.cancelled().await;
                assert!(context.is_cancelled());
                told.add();
            });
            entered.add();
            pending::<()>().await
        }
    };
    let _b = net.node("b").async_callback("work", work).start().unwrap();
    let a = net.caller();
    let result = a.call.by_name::<(), _>("work", ()) & BG;
    entered.wait(1);
    assert_eq!(told.get(), 0);
    result.cancel();
    told.wait(1);
    dropped.wait(1);
    let result = a.call.by_name::<(), _>("work", ()) & FG.timeout(Duration::from_millis(100));
    assert!(matches!(result, Err(Error::Timeout { .. })));
    told.wait(entered.get());
    dropped.wait(entered.get());
    let _result = a.call.by_name::<(), _>("work", ()) & BG;
    entered.wait(told.get() + 1);
    a.stop().unwrap();
    told.wait(entered.get());
}

#[test]
fn a_callback_that_is_done_is_not_cancelled() {
    let net = Net::new();
    let (sender, contexts) = channel();
    let keep = move |context: Context| sender.send(context).unwrap();
    let _b = net.node("b").callback("keep", keep).callback("quick", || 1u8).start().unwrap();
    let a = net.patient("caller").start().unwrap();
    (a.call.by_name::<(), _>("keep", ()) & FG).unwrap();
    let context = next(&contexts);
    assert!(!context.is_cancelled());
    // It calls on, as long as somebody keeps it.
    let _c = net.node("c").callback("other", |a: u8| a).start().unwrap();
    assert_eq!((context.call.by_name::<u8, _>("other", (3u8,)) & FG).unwrap(), 3);
}

#[test]
fn callbacks_call_onwards_in_all_ways() {
    let net = Net::new();
    let (sender, notes) = channel();
    let _leaf = net
        .node("leaf")
        .callback("double", |a: i64| 2 * a)
        .callback("note", move |text: String| sender.send(text).unwrap())
        .start()
        .unwrap();
    let sync = |context: &Context, a: i64| {
        let double = || context.call.by_name::<i64, _>("double", (a,));
        let in_background = double() & BG;
        (context.call.by_name::<(), _>("note", ("from an fn",)) & NO_RETURN).unwrap();
        let all = (double() & BROADCAST.return_result()).unwrap();
        let sum = (double() & FG).unwrap() + in_background.get().unwrap();
        sum + all.into_values().map(Result::unwrap).sum::<i64>()
    };
    let future = |context: Context, a: i64| async move {
        let double = || context.call.by_name::<i64, _>("double", (a,));
        let in_background = double() & BG;
        (context.call.by_name::<(), _>("note", ("from an async fn",)) & NO_RETURN).unwrap();
        // Blocking forms step aside on the node's own workers.
        let blocking = (double() & FG).unwrap();
        double().await.unwrap() + in_background.await.unwrap() + blocking
    };
    let _middle = net.node("middle").callback("sync", sync).async_callback("async", future).start().unwrap();
    let a = net.caller();
    assert_eq!((a.call.by_name::<i64, _>("sync", (5i64,)) & FG).unwrap(), 30);
    assert_eq!(next(&notes), "from an fn");
    assert_eq!((a.call.by_name::<i64, _>("async", (5i64,)) & FG).unwrap(), 30);
    assert_eq!(next(&notes), "from an async fn");
}

#[test]
fn nested_calls_have_what_is_left_of_the_time() {
    let net = Net::new();
    let dropped = Count::new();
    let counts = dropped.clone();
    let hang = move || {
        let dropped = CountsDrop(counts.clone());
        async move {
            let _dropped = dropped;
            pending::<()>().await
        }
    };
    let (sender, errors) = channel();
    let onwards = move |context: &Context, own: Option<Duration>| {
        let call = context.call.by_name::<(), _>("hang", ());
        let result = match own {
            Some(own) => call & FG.timeout(own),
            None => call & FG,
        };
        sender.send(result.unwrap_err()).unwrap();
    };
    let _leaf = net.node("leaf").async_callback("hang", hang).start().unwrap();
    let _middle = net.patient("middle").callback("onwards", onwards).start().unwrap();
    let a = net.patient("caller").start().unwrap();
    let timeout = Duration::from_secs(2);
    for own in [None, Some(BOUND)] {
        // Both run out of time together, and either may be first to see it.
        let _ = a.call.by_name::<(), _>("onwards", (own,)) & FG.timeout(timeout);
        let error = next(&errors);
        assert!(matches!(error, Error::Timeout { after, .. } if after <= timeout), "{error}");
    }
    // It may have less of its own.
    let own = Duration::from_secs(1);
    (a.call.by_name::<(), _>("onwards", (Some(own),)) & FG.timeout(BOUND)).unwrap();
    assert!(matches!(next(&errors), Error::Timeout { after, .. } if after == own));
    dropped.wait(3);
}

#[test]
fn cancelling_reaches_what_was_called_onwards() {
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
    let _leaf = net.node("leaf").async_callback("hang", hang).start().unwrap();
    let onwards = |context: Context| async move { context.call.by_name::<(), _>("hang", ()).await.is_ok() };
    let _middle = net.node("middle").async_callback("onwards", onwards).start().unwrap();
    let a = net.caller();
    run(async {
        let call = tokio::spawn(a.call.by_name::<bool, _>("onwards", ()).into_future());
        entered.wait_async(1).await;
        call.abort();
        dropped.wait_async(1).await;
    });
}

#[test]
fn a_ring_of_calls_ends_at_the_hop_limit() {
    let net = Net::new();
    let ring = |other: &'static str| {
        move |context: &Context, depth: u32| -> (u32, Option<String>) {
            let deeper = context.call.by_name("ring", (depth + 1,)).on(other).fg();
            deeper.unwrap_or_else(|error| {
                assert!(matches!(error, Error::HopLimit { limit: 32, .. }), "{error}");
                (depth, Some(error.to_string()))
            })
        }
    };
    // Few threads: whoever waits inside does not count as busy.
    let limits = daffi::Limits { threads_max: 2, ..daffi::Limits::default() };
    let _b = net.node("b").limits(limits.clone()).callback("ring", ring("c")).start().unwrap();
    let _c = net.node("c").limits(limits).callback("ring", ring("b")).start().unwrap();
    let a = net.caller();
    let (depth, error) = (a.call.by_name::<(u32, Option<String>), _>("ring", (1u32,)) & FG.on("b")).unwrap();
    assert_eq!(depth, 32);
    assert!(error.unwrap().contains("nested more than 32 deep"));
    // Several rings at once do not block each other.
    let rings: Vec<_> =
        (0..4).map(|_| a.call.by_name::<(u32, Option<String>), _>("ring", (1u32,)) & BG.on("c")).collect();
    for ring in rings {
        assert_eq!(ring.get().unwrap().0, 32);
    }
}
