//! The five modifiers, in both spellings, with all their options.

use std::{
    collections::BTreeSet,
    future::pending,
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant, SystemTime},
};

use daffi::{
    BG, BROADCAST, Error, FG, Global, GlobalBuilder, NO_RETURN, PERIOD, TaskState, TaskStatus, fetcher,
};

use crate::support::{BOUND, Count, CountsDrop, Net, eventually, next, run};

#[fetcher]
trait Peer {
    fn add(a: i64, b: i64) -> i64;
    fn who() -> String;
    fn note(text: &str);
    fn only_b() -> u8;
}

const SOON: Duration = Duration::from_millis(20);

/// Who was called, and with what.
type Notes = Receiver<(&'static str, String)>;

/// A caller and two callees, `b` and `c`.
struct Three {
    a: Global,
    notes: Notes,
    _callees: [Global; 2],
    _net: Net,
}

fn three() -> Three {
    let net = Net::new();
    let (sender, notes) = channel();
    let callees = ["b", "c"].map(|name| {
        let sender = sender.clone();
        let mut builder = net
            .node(name)
            .callback("add", |a: i64, b: i64| a + b)
            .callback("who", move || name)
            .callback("note", move |text: String| sender.send((name, text)).unwrap());
        if name == "b" {
            builder = builder.callback("only_b", || 1u8);
        }
        builder.start().unwrap()
    });
    Three { a: net.caller(), notes, _callees: callees, _net: net }
}

#[test]
fn foreground_in_both_spellings() {
    let Three { a, .. } = &three();
    assert_eq!((a.call.add(1, 2) & FG).unwrap(), 3);
    assert_eq!(a.call.add(1, 2).fg().unwrap(), 3);
    assert_eq!((a.call.add(1, 2) & FG.timeout(BOUND)).unwrap(), 3);
    assert_eq!(a.call.add(1, 2).timeout(BOUND).fg().unwrap(), 3);
    for node in ["b", "c", "b"] {
        assert_eq!((a.call.who() & FG.on(node)).unwrap(), node);
        assert_eq!((a.call.who() & FG.timeout(BOUND).on(node)).unwrap(), node);
        assert_eq!((a.call.who() & FG.on(node).timeout(BOUND)).unwrap(), node);
        assert_eq!(a.call.who().on(node).fg().unwrap(), node);
        assert_eq!(a.call.who().on(node.to_owned()).timeout(BOUND).fg().unwrap(), node);
        assert_eq!(a.call.who().timeout(BOUND).on(node).fg().unwrap(), node);
    }
}

#[test]
fn foreground_in_async_code() {
    run(async {
        let Three { a, .. } = &three();
        assert_eq!(a.call.add(1, 2).await.unwrap(), 3);
        assert_eq!(a.call.add(1, 2).fg_async().await.unwrap(), 3);
        assert_eq!(a.call.add(1, 2).timeout(BOUND).await.unwrap(), 3);
        assert_eq!(a.call.who().on("c").timeout(BOUND).await.unwrap(), "c");
        assert_eq!(a.call.who().on("b").await.unwrap(), "b");
        // On a runtime with several threads the blocking forms step aside.
        assert_eq!((a.call.who() & FG.on("c")).unwrap(), "c");
        assert_eq!(a.call.add(1, 2).fg().unwrap(), 3);
    });
}

#[test]
fn blocking_forms_on_a_current_thread_runtime_name_their_twins() {
    let three = three();
    let a = &three.a;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let twin = |error: Error| match error {
            Error::BlockingInAsync { blocking, twin } => (blocking, twin),
            other => panic!("{other}"),
        };
        assert_eq!(twin((a.call.add(1, 2) & FG).unwrap_err()), ("FG", "`.await` on the call"));
        let pending = a.call.add(1, 2) & BG;
        assert_eq!(pending.get_async().await.unwrap(), 3);
        assert_eq!(pending.get().unwrap(), 3, "what is there already blocks nobody");
        let blocked = a.call.by_name::<(), _>("note", ("x",)) & BROADCAST;
        assert_eq!(twin(blocked.unwrap_err()).1, "`.broadcast_async()`");
        let blocked = a.call.who() & BROADCAST.return_result();
        assert_eq!(twin(blocked.unwrap_err()).1, "`.broadcast_results_async()`");
        let twins = [
            (a.wait_process("b"), "wait_process"),
            (a.wait_process_timeout("b", BOUND), "wait_process"),
            (a.wait_function("who"), "wait_function"),
            (a.processes().map(drop), "processes"),
            (a.callbacks().map(drop), "callbacks"),
            (a.join(), "Global::join"),
            (a.stop(), "Global::stop"),
        ];
        for (result, expected) in twins {
            let (blocking, twin) = twin(result.unwrap_err());
            assert_eq!(blocking, expected);
            assert!(twin.ends_with("_async`"), "{twin}");
        }
        // None of it was sent, and nothing is the worse for it.
        assert_eq!(a.call.add(1, 2).await.unwrap(), 3);
        assert!(three.notes.try_recv().is_err());
        a.stop_async().await.unwrap();
    });
}

#[test]
fn background_in_both_spellings() {
    let Three { a, .. } = &three();
    assert_eq!((a.call.add(1, 2) & BG).get().unwrap(), 3);
    assert_eq!(a.call.add(1, 2).bg().get().unwrap(), 3);
    assert_eq!((a.call.add(1, 2) & BG.timeout(BOUND).eta(SOON)).get().unwrap(), 3);
    assert_eq!(a.call.add(1, 2).timeout(BOUND).eta(SOON).bg().get().unwrap(), 3);
    assert_eq!((a.call.add(1, 2) & BG.eta(SOON)).get().unwrap(), 3);
    assert_eq!(a.call.add(1, 2).eta(SOON).bg().get().unwrap(), 3);
    for node in ["b", "c"] {
        assert_eq!((a.call.who() & BG.on(node)).get().unwrap(), node);
        assert_eq!((a.call.who() & BG.eta(SOON).on(node).timeout(BOUND)).get().unwrap(), node);
        assert_eq!(a.call.who().on(node).bg().get().unwrap(), node);
        assert_eq!(a.call.who().eta(SOON).on(node).timeout(BOUND).bg().get().unwrap(), node);
    }
}

#[test]
fn no_return_in_both_spellings() {
    let Three { a, notes, .. } = &three();
    (a.call.note("and") & NO_RETURN.on("b")).unwrap();
    assert_eq!(next(notes), ("b", "and".to_owned()));
    a.call.note("method").on("c").no_return().unwrap();
    assert_eq!(next(notes), ("c", "method".to_owned()));
    (a.call.note("anywhere") & NO_RETURN).unwrap();
    assert_eq!(next(notes).1, "anywhere");
    a.call.note("anywhere too").no_return().unwrap();
    assert_eq!(next(notes).1, "anywhere too");
    let begin = Instant::now();
    (a.call.note("later") & NO_RETURN.eta(SOON).on("c")).unwrap();
    assert_eq!(next(notes), ("c", "later".to_owned()));
    assert!(begin.elapsed() >= SOON);
    a.call.note("later too").eta(SOON).on("b").no_return().unwrap();
    assert_eq!(next(notes), ("b", "later too".to_owned()));
    // Whatever becomes of it, it was handed over.
    (a.call.by_name::<(), _>("nobody offers this", ()) & NO_RETURN).unwrap();
    (a.call.note("lost") & NO_RETURN.on("nobody")).unwrap();
    (a.call.note("arrives") & NO_RETURN).unwrap();
    assert_eq!(next(notes).1, "arrives");
}

#[test]
fn broadcast_in_both_spellings() {
    let Three { a, notes, .. } = &three();
    let both = |text: &str| {
        let got: BTreeSet<_> = [next(notes), next(notes)].into();
        assert_eq!(got, [("b", text.to_owned()), ("c", text.to_owned())].into());
    };
    (a.call.note("and") & BROADCAST).unwrap();
    both("and");
    a.call.note("method").broadcast().unwrap();
    both("method");
    (a.call.note("options") & BROADCAST.timeout(BOUND).eta(SOON)).unwrap();
    both("options");
    a.call.note("options too").timeout(BOUND).eta(SOON).broadcast().unwrap();
    both("options too");
    (a.call.note("one") & BROADCAST.on_all(["c"])).unwrap();
    assert_eq!(next(notes), ("c", "one".to_owned()));
    a.call.note("one too").on_all(vec!["b".to_owned()]).broadcast().unwrap();
    assert_eq!(next(notes), ("b", "one too".to_owned()));
}

#[test]
fn broadcast_results_in_both_spellings() {
    let Three { a, .. } = &three();
    let names = |results: std::collections::BTreeMap<String, daffi::Result<String>>| {
        for (node, result) in &results {
            assert_eq!(node, result.as_ref().unwrap());
        }
        results.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(names((a.call.who() & BROADCAST.return_result()).unwrap()), ["b", "c"]);
    assert_eq!(names(a.call.who().broadcast_results().unwrap()), ["b", "c"]);
    assert_eq!(
        names((a.call.who() & BROADCAST.timeout(BOUND).return_result().eta(SOON)).unwrap()),
        ["b", "c"]
    );
    assert_eq!(names(a.call.who().timeout(BOUND).eta(SOON).broadcast_results().unwrap()), ["b", "c"]);
    assert_eq!(names((a.call.who() & BROADCAST.return_result().on_all(["c"])).unwrap()), ["c"]);
    assert_eq!(names((a.call.who() & BROADCAST.on_all(["b"]).return_result()).unwrap()), ["b"]);
    assert_eq!(names(a.call.who().on_all(["c", "b"]).broadcast_results().unwrap()), ["b", "c"]);
}

#[test]
fn broadcasts_in_async_code() {
    run(async {
        let Three { a, notes, .. } = &three();
        a.call.note("all").broadcast_async().await.unwrap();
        assert_eq!(next(notes).1, "all");
        assert_eq!(next(notes).1, "all");
        a.call.note("later").eta(SOON).on_all(["c"]).broadcast_async().await.unwrap();
        assert_eq!(next(notes), ("c", "later".to_owned()));
        let results = a.call.who().timeout(BOUND).broadcast_results_async().await.unwrap();
        assert_eq!(results["b"].as_ref().unwrap(), "b");
        assert_eq!(results["c"].as_ref().unwrap(), "c");
    });
}

#[test]
fn nodes_that_cannot_answer_are_entries_of_a_broadcast() {
    let Three { a, .. } = &three();
    let results = (a.call.who() & BROADCAST.return_result().on_all(["b", "gone"])).unwrap();
    assert_eq!(results["b"].as_ref().unwrap(), "b");
    assert!(matches!(&results["gone"], Err(Error::NoProcess { name }) if name == "gone"), "{results:?}");
    let results = (a.call.only_b() & BROADCAST.return_result()).unwrap();
    assert_eq!(results.len(), 1);
    let results = (a.call.only_b() & BROADCAST.return_result().on_all(["b", "c"])).unwrap();
    assert_eq!(*results["b"].as_ref().unwrap(), 1);
    assert!(matches!(&results["c"], Err(Error::NoCandidate { .. })), "{results:?}");
    let elsewhere = (a.call.only_b() & FG.on("c")).unwrap_err();
    assert_eq!(elsewhere.to_string(), "\"c\" does not offer \"only_b\", \"b\" does");
    // Without results there is no entry that could say so.
    let nobody = a.call.only_b() & BROADCAST.on_all(["c", "gone"]);
    assert!(matches!(nobody, Err(Error::NoCandidate { .. })), "{nobody:?}");
    (a.call.only_b() & BROADCAST.on_all(["b", "gone"])).unwrap();
    let nobody = a.call.by_name::<(), _>("whoo", ()) & BROADCAST.return_result();
    let Err(Error::NoCandidate { callback, similar, .. }) = nobody else { panic!("{nobody:?}") };
    assert_eq!((callback.as_str(), similar), ("whoo", vec!["who".to_owned()]));
    let nobody = a.call.by_name::<(), _>("nothing like it", ()) & BROADCAST;
    assert!(matches!(nobody, Err(Error::NoCandidate { .. })), "{nobody:?}");
}

#[test]
fn a_failing_and_a_slow_node_do_not_spoil_a_broadcast() {
    let net = Net::new();
    let cancelled = Count::new();
    let counts = cancelled.clone();
    let _quick = net.node("quick").callback("work", || 7u8).start().unwrap();
    let _failing = net.node("failing").try_callback("work", || Err::<u8, _>("no luck")).start().unwrap();
    let _panicking =
        net.node("panicking").callback("work", || -> u8 { panic!("dropped it") }).start().unwrap();
    let slow = move || {
        let counts = CountsDrop(counts.clone());
        async move {
            let _counts = counts;
            pending::<u8>().await
        }
    };
    let _slow = net.node("slow").async_callback("work", slow).start().unwrap();
    let a = net.caller();
    // A panic takes its time where it prints from where it came.
    let timeout = Duration::from_secs(3);
    let work = || a.call.by_name::<u8, _>("work", ());
    for results in [
        work() & BROADCAST.timeout(timeout).return_result(),
        work().timeout(timeout).broadcast_results(),
        run(work().timeout(timeout).broadcast_results_async()),
    ] {
        let results = results.unwrap();
        assert_eq!(results.len(), 4);
        assert_eq!(*results["quick"].as_ref().unwrap(), 7);
        assert!(results["failing"].as_ref().unwrap_err().to_string().ends_with("failed: no luck"));
        let Err(Error::Remote(panic)) = &results["panicking"] else { panic!("{results:?}") };
        assert!(panic.is_panic());
        assert!(matches!(results["slow"], Err(Error::Timeout { .. })), "{results:?}");
    }
    cancelled.wait(3);
}

/// Counts how often `tick` runs, on `b` and `c`.
fn ticking(net: &Net, b: &Count, c: &Count) -> [Global; 2] {
    let offer = |builder: GlobalBuilder, count: &Count| {
        let count = count.clone();
        builder.callback("tick", move || count.add()).start().unwrap()
    };
    [offer(net.node("b"), b), offer(net.node("c"), c)]
}

#[test]
fn period_in_both_spellings() {
    let net = Net::new();
    let (b, c) = (Count::new(), Count::new());
    let _nodes = ticking(&net, &b, &c);
    let a = net.caller();
    let tick = || a.call.by_name::<(), _>("tick", ());
    let first = (tick() & PERIOD.period(SOON).on("b")).unwrap();
    let second = tick().on("c").period(PERIOD.period(SOON)).unwrap();
    let third = (tick() & PERIOD.period(Duration::from_secs(3600))).unwrap();
    b.wait(3);
    c.wait(3);
    let ids: BTreeSet<_> = [&first, &second, &third].map(|task| task.id().unwrap()).into();
    assert_eq!(ids.len(), 3);
    assert_eq!(first.id().unwrap(), first.id().unwrap());
    let status = first.status().unwrap();
    assert_eq!((status.state, status.failures, status.last_error), (TaskState::Active, 0, None));
    assert!(status.runs >= 3 && status.next_in.is_some_and(|next| next <= SOON), "{:?}", status.runs);
    let status = third.status().unwrap();
    assert_eq!(status.runs, 0);
    assert!(status.next_in.is_some_and(|next| next > Duration::from_secs(3000)));

    run(async {
        first.cancel_async().await.unwrap();
        assert_eq!(first.status_async().await.unwrap().state, TaskState::Cancelled);
        assert_eq!(second.id_async().await.unwrap(), second.id().unwrap());
    });
    second.cancel().unwrap();
    third.cancel().unwrap();
    for task in [first, second, third] {
        let status = task.status().unwrap();
        assert_eq!((status.state, status.next_in), (TaskState::Cancelled, None));
    }
}

#[test]
fn a_period_outlives_its_caller_and_skips_what_still_runs() {
    let net = Net::new();
    let (entered, open) = (Count::new(), Count::new());
    let (counts, waits) = (entered.clone(), open.clone());
    let work = move || {
        counts.add();
        waits.wait(1);
    };
    let _b = net.node("b").callback("work", work).start().unwrap();
    let a = net.caller();
    let task = (a.call.by_name::<(), _>("work", ()) & PERIOD.period(Duration::from_millis(2))).unwrap();
    entered.wait(1);
    let status = || task.status().unwrap();
    let skipped = eventually("it skips ticks", || Some(status()).filter(|status| status.skipped >= 3));
    assert_eq!((skipped.runs, entered.get()), (1, 1));
    // The handle and its node go; the task stays.
    drop(task);
    a.stop().unwrap();
    open.add();
    entered.wait(5);
}

#[test]
fn at_time_takes_one_time_a_list_and_an_iterator() {
    let net = Net::new();
    let (b, c) = (Count::new(), Count::new());
    let _nodes = ticking(&net, &b, &c);
    let a = net.caller();
    let tick = || a.call.by_name::<(), _>("tick", ());
    let soon = SystemTime::now() + Duration::from_millis(500);
    let one = (tick() & PERIOD.at_time(soon).on("b")).unwrap();
    let list = tick().period(PERIOD.at_time([soon, soon + SOON]).on("b")).unwrap();
    let vec = (tick() & PERIOD.on("c").at_time(vec![soon + SOON, soon])).unwrap();
    let iterator = (tick() & PERIOD.at_time((0..3).map(|i| soon + i * SOON)).on("c")).unwrap();
    b.wait(3);
    c.wait(5);
    assert!(SystemTime::now() >= soon);
    for (task, times) in [(one, 1), (list, 2), (vec, 2), (iterator, 3)] {
        let status = || task.status().unwrap();
        let finished = |status: &TaskStatus| status.state == TaskState::Finished;
        let status = eventually("the task is finished", || Some(status()).filter(finished));
        assert_eq!((status.runs, status.failures, status.skipped, status.next_in), (times, 0, 0, None));
    }
    assert_eq!((b.get(), c.get()), (3, 5));
}

#[test]
fn times_that_cannot_be_are_errors() {
    let Three { a, .. } = &three();
    let note = || a.call.note("never");
    let past = SystemTime::now() - Duration::from_secs(10);
    let future = SystemTime::now() + Duration::from_secs(3600);
    let wrong = [
        note() & PERIOD.at_time(past),
        note() & PERIOD.at_time([future, past]),
        note() & PERIOD.at_time(Vec::new()),
        note() & PERIOD.at_time(vec![future; 1001]),
        note() & PERIOD.at_time(SystemTime::UNIX_EPOCH - Duration::from_secs(1)),
        note() & PERIOD.period(Duration::ZERO),
        note() & PERIOD.period(Duration::from_micros(999)),
        note() & PERIOD.period(Duration::MAX),
        note().period(PERIOD.on("b").period(Duration::ZERO)),
    ];
    for wrong in wrong {
        let Err(error @ Error::InvalidTime { .. }) = wrong else { panic!("{wrong:?}") };
        assert!(!error.may_have_executed() && !error.is_retryable());
    }
    let task = (note() & PERIOD.at_time(vec![future; 1000])).unwrap();
    task.id().unwrap();
    task.cancel().unwrap();
}

#[test]
fn a_scheduled_call_that_fails_says_so_in_its_status() {
    let net = Net::new();
    let _b = net.node("b").try_callback("work", || Err::<(), _>("no luck")).start().unwrap();
    let a = net.caller();
    let task = (a.call.by_name::<(), _>("work", ()) & PERIOD.period(Duration::from_millis(5))).unwrap();
    let status = || task.status().unwrap();
    let status = eventually("it fails again", || Some(status()).filter(|status| status.failures >= 2));
    assert!(status.last_error.is_some_and(|error| error.contains("no luck")));
    assert_eq!(status.state, TaskState::Active);
    task.cancel().unwrap();
}

#[test]
fn modifiers_are_values() {
    let Three { a, notes, .. } = &three();
    let fg = FG.timeout(BOUND);
    let bg = BG.timeout(BOUND).eta(Duration::ZERO);
    let no_return = NO_RETURN.eta(Duration::ZERO);
    let broadcast = BROADCAST.timeout(BOUND);
    let results = broadcast.return_result();
    let pinned = fg.on("b");
    let many = results.on_all(["b", "c"]);
    let period = PERIOD.period(Duration::from_secs(3600));
    let at_time = PERIOD.at_time(SystemTime::now() + Duration::from_secs(3600)).on("c");
    let once = || {
        assert_eq!((a.call.add(1, 2) & fg).unwrap(), 3);
        assert_eq!((a.call.add(1, 2) & bg).get().unwrap(), 3);
        (a.call.note("x") & no_return).unwrap();
        next(notes);
        (a.call.note("x") & broadcast).unwrap();
        next(notes);
        next(notes);
        assert_eq!((a.call.who() & results).unwrap().len(), 2);
        assert_eq!((a.call.who() & pinned.clone()).unwrap(), "b");
        assert_eq!((a.call.who() & many.clone()).unwrap().len(), 2);
        (a.call.note("x") & period).unwrap().cancel().unwrap();
        (a.call.note("x") & at_time.clone()).unwrap().cancel().unwrap();
    };
    once();
    once();
    run(async {
        once();
        let from_another_task = tokio::spawn({
            let call = a.call.clone();
            async move { (call.add(1, 2) & bg).await.unwrap() + (call.add(1, 2) & bg).get_async().await.unwrap() }
        });
        assert_eq!(from_another_task.await.unwrap(), 6);
    });
    // A call is a value, too.
    let call = a.call.add(20, 3);
    assert_eq!((call.clone() & fg).unwrap(), 23);
    assert_eq!(call.fg().unwrap(), 23);
}

#[test]
fn names_that_would_mean_other_nodes_are_refused() {
    let three = three();
    let who = || three.a.call.who();
    for bad in ["", "b\nc", "b\r", "\0"] {
        let refused = [
            (who() & BROADCAST.on_all([bad]).return_result()).map(drop),
            (who() & BROADCAST.on_all(["b", bad]).return_result()).map(drop),
            (who() & BROADCAST.on_all([bad, "b"])).map(drop),
            (who() & FG.on(bad)).map(drop),
            (who() & NO_RETURN.on(bad)).map(drop),
        ];
        for refused in refused {
            let error = refused.unwrap_err();
            assert!(matches!(&error, Error::InvalidName { name, .. } if name == bad), "{bad:?}: {error:?}");
        }
    }
    let nobody: [&str; 0] = [];
    let error = (who() & BROADCAST.on_all(nobody)).unwrap_err();
    assert!(matches!(&error, Error::Configuration { problem } if problem.contains("no node")), "{error:?}");
}

#[test]
fn so_many_calls_wait_for_their_time_and_no_more() {
    let net = Net::new();
    let limits = daffi::Limits { calls_in_flight_max: 10, ..Default::default() };
    let a = net.node("a").limits(limits).start().unwrap();
    let call = || a.call.who();
    let hour = Duration::from_secs(3600);
    let mut waiting: Vec<_> = (0..9).map(|_| call() & BG.eta(hour)).collect();
    (a.call.note("x") & NO_RETURN.eta(hour)).unwrap();
    let full =
        |error: Error| assert!(matches!(&error, Error::Overloaded { node } if node == "a"), "{error:?}");
    full((call() & BG.eta(hour)).get().unwrap_err());
    full((a.call.note("x") & NO_RETURN.eta(hour)).unwrap_err());
    // One that is cancelled makes room.
    waiting.pop().unwrap().cancel();
    (a.call.note("x") & NO_RETURN.eta(hour)).unwrap();
    full((a.call.note("x") & NO_RETURN.eta(hour)).unwrap_err());
}
