//! Blocking forms in every kind of thread and runtime, and their async twins without a runtime.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use daffi::{
    AsyncResult, BG, BROADCAST, Error, FG, Global, GlobalBuilder, PERIOD, Result, ScheduledTask, TaskState,
    callback,
};
use tokio::task::{LocalSet, spawn_blocking};

use crate::support::{
    Gate, Net, PATIENCE, TempDir, block_on, builder, current_thread, in_time, multi_thread,
};

/// Long enough never to come in a test.
const NEVER: Duration = Duration::from_secs(3600);

/// A node, another one that it calls, and something for each blocking form to work on.
struct Bench {
    net: Net,
    /// The node whose blocking forms are tried.
    a: Global,
    /// The node that it calls.
    _b: Global,
    /// A node to be stopped.
    to_stop: Global,
    /// A node to be waited for until it stops.
    to_join: Global,
    /// The answer to this is there when the gate is open, and not before.
    held: AsyncResult<i32>,
    gate: Gate,
    task: ScheduledTask,
    /// How often `b` was asked to add something.
    added: Arc<AtomicUsize>,
    /// How often it was told something.
    told: Arc<AtomicUsize>,
}

impl Bench {
    fn new() -> Arc<Self> {
        Self::with(|a| a)
    }

    /// A bench whose node is made with more options.
    fn with(options: impl FnOnce(GlobalBuilder) -> GlobalBuilder) -> Arc<Self> {
        let net = Net::new();
        let (gate, added, told) =
            (Gate::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let b = {
            let (gate, added, told) = (gate.clone(), added.clone(), told.clone());
            net.node("b")
                .callback("add", move |a: i32, b: i32| {
                    added.fetch_add(1, SeqCst);
                    a + b
                })
                .callback("held", move || {
                    gate.pass();
                    // Whoever waits really has to.
                    thread::sleep(Duration::from_millis(20));
                    7
                })
                .callback("tell", move || {
                    told.fetch_add(1, SeqCst);
                    8
                })
                .callback("tick", || ())
                .start()
                .unwrap()
        };
        let a = options(net.node("a")).start().unwrap();
        a.wait_process("b").unwrap();
        let held = a.call.by_name("held", ()) & BG;
        let task = (a.call.by_name::<(), _>("tick", ()) & PERIOD.period(NEVER)).unwrap();
        let to_stop = net.node("to stop").start().unwrap();
        let to_join = net.node("to join").start().unwrap();
        Arc::new(Self { net, a, _b: b, to_stop, to_join, held, gate, task, added, told })
    }
}

/// A blocking form: its name in errors, that of its async twin, and how it is used. Says `Ok` if all went as it should.
struct Form {
    name: &'static str,
    twin: &'static str,
    run: fn(&Bench) -> Result<()>,
}

const FORMS: &[Form] = &[
    Form { name: "start", twin: "start_async", run: |bench| bench.net.node("late").start()?.stop() },
    Form {
        name: "join",
        twin: "join_async",
        run: |bench| {
            let other = bench.to_join.clone();
            let outside = thread::spawn(move || other.stop());
            let joined = bench.to_join.join();
            if joined.is_ok() {
                outside.join().unwrap()?;
            }
            joined
        },
    },
    Form { name: "stop", twin: "stop_async", run: |bench| bench.to_stop.stop() },
    Form { name: "wait_process", twin: "wait_process_async", run: |bench| bench.a.wait_process("b") },
    Form {
        name: "wait_process",
        twin: "wait_process_timeout_async",
        run: |bench| bench.a.wait_process_timeout("b", PATIENCE),
    },
    Form { name: "wait_function", twin: "wait_function_async", run: |bench| bench.a.wait_function("add") },
    Form {
        name: "wait_function",
        twin: "wait_function_timeout_async",
        run: |bench| bench.a.wait_function_timeout("add", PATIENCE),
    },
    Form {
        name: "processes",
        twin: "processes_async",
        run: |bench| {
            assert!(bench.a.processes()?.iter().any(|process| process.name == "b"));
            Ok(())
        },
    },
    Form {
        name: "callbacks",
        twin: "callbacks_async",
        run: |bench| {
            assert!(bench.a.callbacks()?.iter().any(|callback| callback.name == "add"));
            Ok(())
        },
    },
    Form {
        name: "FG",
        twin: ".await",
        run: |bench| {
            assert_eq!((bench.a.call.by_name::<i32, _>("add", (1, 2)) & FG.timeout(PATIENCE))?, 3);
            Ok(())
        },
    },
    Form {
        name: "FG",
        twin: ".await",
        run: |bench| {
            assert_eq!(bench.a.call.by_name::<i32, _>("add", (1, 2)).on("b").fg()?, 3);
            Ok(())
        },
    },
    Form {
        name: "AsyncResult::get_timeout",
        twin: "get_async",
        run: |bench| {
            assert_eq!(bench.held.get_timeout(PATIENCE)?, 7);
            Ok(())
        },
    },
    Form {
        name: "AsyncResult::get",
        twin: "get_async",
        run: |bench| {
            assert_eq!(bench.held.get()?, 7);
            Ok(())
        },
    },
    Form {
        name: "BROADCAST",
        twin: "broadcast_async",
        run: |bench| bench.a.call.by_name::<i32, _>("tell", ()) & BROADCAST,
    },
    Form {
        name: "BROADCAST",
        twin: "broadcast_results_async",
        run: |bench| {
            let results = (bench.a.call.by_name::<i32, _>("tell", ()) & BROADCAST.return_result())?;
            let results: BTreeMap<_, _> =
                results.into_iter().map(|(node, result)| (node, result.unwrap())).collect();
            assert_eq!(results, BTreeMap::from([("b".to_owned(), 8)]));
            Ok(())
        },
    },
    Form {
        name: "ScheduledTask::status",
        twin: "status_async",
        run: |bench| {
            assert_ne!(bench.task.status()?.state, TaskState::Finished);
            Ok(())
        },
    },
    Form { name: "ScheduledTask::cancel", twin: "cancel_async", run: |bench| bench.task.cancel() },
];

/// Uses every blocking form; says what went wrong.
fn all_work(bench: &Bench) -> Vec<String> {
    bench.gate.open();
    let mut problems = Vec::new();
    for form in FORMS {
        if let Err(error) = (form.run)(bench) {
            problems.push(format!("{}: {error}", form.name));
        }
    }
    if let Err(error) = bench.task.id() {
        problems.push(format!("ScheduledTask::id: {error}"));
    }
    problems
}

/// Uses every blocking form where it must be refused; says which was not, or not in the right words.
fn all_are_refused(bench: &Bench) -> Vec<String> {
    FORMS
        .iter()
        .filter_map(|form| {
            let outcome = (form.run)(bench);
            let Err(Error::BlockingInAsync { blocking, twin }) = outcome else {
                return Some(format!("{}: {outcome:?}", form.name));
            };
            let right = blocking.contains(form.name) && twin.contains(form.twin);
            (!right).then(|| format!("{}: {blocking}, {twin}", form.name))
        })
        .collect()
}

/// What was refused left no trace.
fn nothing_happened(bench: &Bench) {
    // Calls arrive in the order in which they were sent, so this one is behind any other.
    let sum = bench.a.call.by_name::<i32, _>("add", (1, 2)).fg().unwrap();
    assert_eq!((sum, bench.added.load(SeqCst), bench.told.load(SeqCst)), (3, 1, 0), "something was sent");
    bench.a.wait_process("to stop").unwrap();
    assert!(bench.a.processes().unwrap().iter().all(|process| process.name != "late"));
    assert_eq!(bench.task.status().unwrap().state, TaskState::Active);
    bench.gate.open();
    assert_eq!(bench.held.get().unwrap(), 7);
}

#[track_caller]
fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn without_any_runtime_all_work() {
    in_time(|| none(all_work(&Bench::new())));
}

#[test]
fn in_a_multi_thread_runtime_all_work() {
    in_time(|| {
        let bench = Bench::new();
        multi_thread().block_on(async { none(all_work(&bench)) });
    });
}

#[test]
fn in_a_task_of_a_multi_thread_runtime_all_work_and_the_other_tasks_go_on() {
    in_time(|| {
        let bench = Bench::new();
        let runtime = multi_thread();
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let gate = bench.gate.clone();
        // There is one worker: it has to leave the blocked task for this one.
        let other = async move {
            let () = receiver.recv().await.unwrap();
            gate.open();
        };
        runtime.block_on(async {
            tokio::spawn(other);
            let blocked = bench.clone();
            let blocked = tokio::spawn(async move {
                sender.send(()).unwrap();
                blocked.held.get()
            });
            assert_eq!(blocked.await.unwrap().unwrap(), 7);
            tokio::spawn(async move { none(all_work(&bench)) }).await.unwrap();
        });
    });
}

#[test]
fn on_blocking_threads_of_both_runtimes_all_work() {
    in_time(|| {
        for runtime in [current_thread(), multi_thread()] {
            let bench = Bench::new();
            runtime.block_on(async { spawn_blocking(move || none(all_work(&bench))).await.unwrap() });
        }
    });
}

#[test]
fn on_a_thread_that_has_only_entered_a_runtime_all_work() {
    in_time(|| {
        for runtime in [current_thread(), multi_thread()] {
            let _entered = runtime.enter();
            none(all_work(&Bench::new()));
        }
    });
}

#[test]
fn in_a_current_thread_runtime_all_are_refused() {
    in_time(|| {
        let bench = Bench::new();
        let problems = current_thread().block_on(async { all_are_refused(&bench) });
        none(problems);
        nothing_happened(&bench);
    });
}

#[test]
fn in_a_task_of_a_current_thread_runtime_all_are_refused() {
    in_time(|| {
        let bench = Bench::new();
        let tried = bench.clone();
        let problems = current_thread()
            .block_on(async { tokio::spawn(async move { all_are_refused(&tried) }).await.unwrap() });
        none(problems);
        nothing_happened(&bench);
    });
}

#[test]
fn in_a_local_set_all_are_refused() {
    in_time(|| {
        for runtime in [current_thread(), multi_thread()] {
            let bench = Bench::new();
            let tried = bench.clone();
            let local = LocalSet::new();
            let problems = local.block_on(&runtime, async move {
                let mut problems = all_are_refused(&tried);
                problems
                    .extend(tokio::task::spawn_local(async move { all_are_refused(&tried) }).await.unwrap());
                problems
            });
            none(problems);
            nothing_happened(&bench);
        }
    });
}

#[test]
fn what_is_there_already_is_given_in_any_runtime() {
    in_time(|| {
        let bench = Bench::new();
        bench.gate.open();
        assert_eq!(bench.held.get().unwrap(), 7);
        let id = bench.task.id().unwrap();
        current_thread().block_on(async {
            assert_eq!(bench.held.get().unwrap(), 7);
            assert_eq!(bench.held.get_timeout(Duration::ZERO).unwrap(), 7);
            assert_eq!(bench.task.id().unwrap(), id);
        });
    });
}

#[test]
fn a_task_that_the_controller_has_not_got_yet_is_not_waited_for_in_a_current_thread_runtime() {
    in_time(|| {
        let net = Net::new();
        let a = net.node("a").start().unwrap();
        net.controller.stop().unwrap();
        let task = (a.call.by_name::<(), _>("tick", ()) & PERIOD.period(NEVER)).unwrap();
        current_thread().block_on(async {
            for (outcome, name) in
                [(task.id().map(drop), "id"), (task.status().map(drop), "status"), (task.cancel(), "cancel")]
            {
                let Err(Error::BlockingInAsync { blocking, twin }) = outcome else { panic!("{outcome:?}") };
                assert_eq!(blocking, format!("ScheduledTask::{name}"));
                assert_eq!(twin, format!("`{name}_async`"));
            }
        });
    });
}

/// Has the node `a` of a bench run something in a callback that another node calls. The callbacks are `run` (an `fn`), `run_async`,
/// and `run_later`, which has been suspended before.
fn in_callbacks(work: fn(&Bench) -> Vec<String>, names: &[&'static str], check: fn(&Bench)) {
    for name in names {
        // Weak, or bench and callbacks would keep each other.
        let slot = Arc::<OnceLock<Weak<Bench>>>::default();
        let (first, second, third) = (slot.clone(), slot.clone(), slot.clone());
        let bench = Bench::with(|a| {
            a.callback("run", move || work(&first.get().unwrap().upgrade().unwrap()))
                .async_callback("run_async", move || {
                    let bench = second.clone();
                    async move { work(&bench.get().unwrap().upgrade().unwrap()) }
                })
                .async_callback("run_later", move || {
                    let bench = third.clone();
                    async move {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        work(&bench.get().unwrap().upgrade().unwrap())
                    }
                })
        });
        assert!(slot.set(Arc::downgrade(&bench)).is_ok());
        let driver = bench.net.node("driver").start().unwrap();
        // Twice, for a callback that is known to be slow runs elsewhere than one that is not.
        for _ in 0..2 {
            let problems: Vec<String> = driver.call.by_name(*name, ()).timeout(PATIENCE).fg().unwrap();
            assert!(problems.is_empty(), "{name}: {problems:#?}");
        }
        check(&bench);
    }
}

#[test]
fn in_callbacks_all_work() {
    in_time(|| in_callbacks(all_work, &["run", "run_async", "run_later"], |_| ()));
}

/// As an `fn` that makes a runtime of its own.
fn refused_in_own_runtime(bench: &Bench) -> Vec<String> {
    current_thread().block_on(async { all_are_refused(bench) })
}

/// As an `fn` that makes a runtime of its own.
fn works_in_own_runtime(bench: &Bench) -> Vec<String> {
    multi_thread().block_on(async { all_work(bench) })
}

#[test]
fn in_a_runtime_that_a_callback_makes_it_is_as_in_any_other() {
    in_time(|| {
        in_callbacks(refused_in_own_runtime, &["run"], nothing_happened);
        in_callbacks(works_in_own_runtime, &["run"], |_| ());
    });
}

/// What the inline callbacks below work on.
static INLINE: Mutex<Option<Arc<Bench>>> = Mutex::new(None);

fn refused_inline() -> Vec<String> {
    let bench = INLINE.lock().unwrap().clone().unwrap();
    let mut problems = all_are_refused(&bench);
    problems.extend(refused_in_own_runtime(&bench));
    problems
}

#[callback(inline)]
fn inline_fn() -> Vec<String> {
    refused_inline()
}

#[callback(inline)]
async fn inline_async_fn() -> Vec<String> {
    refused_inline()
}

#[callback(inline)]
async fn inline_later() -> Vec<String> {
    tokio::time::sleep(Duration::from_millis(1)).await;
    let bench = INLINE.lock().unwrap().clone().unwrap();
    all_work(&bench)
}

#[test]
fn in_inline_callbacks_all_are_refused_until_they_have_moved_on() {
    in_time(|| {
        let bench = Bench::with(|a| a.link_time_callbacks(true));
        *INLINE.lock().unwrap() = Some(bench.clone());
        let driver = bench.net.node("driver").start().unwrap();
        for name in ["inline_fn", "inline_async_fn"] {
            let problems: Vec<String> = driver.call.by_name(name, ()).timeout(PATIENCE).fg().unwrap();
            assert!(problems.is_empty(), "{name}: {problems:#?}");
        }
        nothing_happened(&bench);
        none(driver.call.by_name("inline_later", ()).timeout(PATIENCE).fg().unwrap());
        *INLINE.lock().unwrap() = None;
    });
}

/// Everything that there is an async twin for, from start to stop.
async fn all_twins(net: &Net) {
    let asked = Arc::<AtomicUsize>::default();
    let count = asked.clone();
    let b = net
        .node("b")
        .async_callback("add", |a: i32, b: i32| async move { a + b })
        .callback("tell", move || {
            count.fetch_add(1, SeqCst);
            8
        })
        .start_async()
        .await
        .unwrap();
    let a = net.node("a").start_async().await.unwrap();
    a.wait_process_async("b").await.unwrap();
    a.wait_process_timeout_async("b", PATIENCE).await.unwrap();
    a.wait_function_async("add").await.unwrap();
    a.wait_function_timeout_async("add", PATIENCE).await.unwrap();
    assert_eq!(a.processes_async().await.unwrap().len(), 2);
    assert_eq!(a.callbacks_async().await.unwrap().len(), 2);
    let add = || a.call.by_name::<i32, _>("add", (1, 2));
    assert_eq!(add().await.unwrap(), 3);
    assert_eq!(add().timeout(PATIENCE).await.unwrap(), 3);
    assert_eq!(add().fg_async().await.unwrap(), 3);
    let result = add() & BG;
    assert_eq!(result.get_async().await.unwrap(), 3);
    assert_eq!((&result).await.unwrap(), 3);
    assert_eq!((add() & BG.eta(Duration::from_millis(5))).await.unwrap(), 3);
    add().no_return().unwrap();
    let tell = || a.call.by_name::<i32, _>("tell", ());
    tell().broadcast_async().await.unwrap();
    let results = tell().broadcast_results_async().await.unwrap();
    assert_eq!(results["b"].as_ref().unwrap(), &8);
    assert_eq!(asked.load(SeqCst), 2);
    let task = (a.call.by_name::<(), _>("tick", ()) & PERIOD.period(NEVER)).unwrap();
    let _id = task.id_async().await.unwrap();
    assert_eq!(task.status_async().await.unwrap().state, TaskState::Active);
    task.cancel_async().await.unwrap();
    assert_eq!(task.status_async().await.unwrap().state, TaskState::Cancelled);
    let error = a.call.by_name::<i32, _>("none", ()).await.unwrap_err();
    assert!(matches!(error, Error::NoCandidate { .. }), "{error:?}");
    b.stop_async().await.unwrap();
    b.join_async().await.unwrap();
    b.stop_async().await.unwrap();
    let error = b.wait_process_async("a").await.unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error:?}");
    a.stop_async().await.unwrap();
}

#[test]
fn the_async_twins_work_in_both_runtimes() {
    in_time(|| {
        for runtime in [current_thread(), multi_thread()] {
            let net = Net::new();
            runtime.block_on(all_twins(&net));
        }
    });
}

#[test]
fn the_async_twins_work_in_a_local_set() {
    in_time(|| {
        let net = Net::new();
        LocalSet::new().block_on(&current_thread(), all_twins(&net));
    });
}

#[test]
fn the_async_twins_need_no_tokio() {
    in_time(|| {
        let net = Net::new();
        block_on(all_twins(&net));
    });
}

#[test]
fn a_future_may_be_moved_to_another_executor_while_it_waits() {
    in_time(|| {
        let bench = Bench::new();
        let mut waiting = Box::pin({
            let bench = bench.clone();
            async move { bench.held.get_async().await }
        });
        current_thread().block_on(async {
            tokio::time::timeout(Duration::from_millis(20), &mut waiting)
                .await
                .expect_err("the gate is closed");
        });
        bench.gate.open();
        assert_eq!(block_on(waiting).unwrap(), 7);
    });
}

#[test]
fn a_modifier_is_kept_and_used_in_sync_and_in_async_code() {
    in_time(|| {
        let bench = Bench::new();
        let fg = FG.timeout(PATIENCE);
        let add = || bench.a.call.by_name::<i32, _>("add", (1, 2));
        assert_eq!((add() & fg).unwrap(), 3);
        multi_thread().block_on(async { assert_eq!((add() & fg).unwrap(), 3) });
        let error = current_thread().block_on(async { add() & fg }).unwrap_err();
        assert!(matches!(error, Error::BlockingInAsync { .. }), "{error:?}");
        assert!(error.to_string().contains(".await"), "{error}");
        assert!(!error.may_have_executed() && !error.is_retryable());
    });
}

#[test]
fn a_start_that_is_refused_starts_nothing() {
    in_time(|| {
        let directory = TempDir::new();
        let path = directory.join("other/s");
        let error = current_thread()
            .block_on(async { builder().init_controller(true).unix_sock_path(&path).start().unwrap_err() });
        assert!(matches!(error, Error::BlockingInAsync { .. }), "{error:?}");
        assert!(error.to_string().contains("start_async"), "{error}");
        assert!(!path.parent().unwrap().exists());
    });
}
