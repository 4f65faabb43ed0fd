//! Stopping: on purpose, by dropping, from everywhere, and what is left behind.

use std::{
    env, fs,
    io::Read,
    os::unix::net::UnixStream,
    process::Command,
    sync::{
        Arc, Barrier, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use daffi::{BG, Context, Error, FG, Global, Limits, NO_RETURN, PERIOD, callback};

use crate::support::{
    Gate, Net, PATIENCE, TempDir, block_on, builder, current_thread, in_time, multi_thread, until, within,
};

/// Far below the grace time.
const AT_ONCE: Duration = Duration::from_secs(4);

fn grace(grace: Duration) -> Limits {
    Limits { grace, ..Limits::default() }
}

#[test]
fn stopping_again_is_the_same_as_once() {
    in_time(|| {
        let net = Net::new();
        let a = net.node("a").start().unwrap();
        let clone = a.clone();
        a.stop().unwrap();
        a.stop().unwrap();
        clone.stop().unwrap();
        block_on(a.stop_async()).unwrap();
        a.join().unwrap();
        block_on(a.join_async()).unwrap();
        net.controller.stop().unwrap();
        net.controller.stop().unwrap();
    });
}

#[test]
fn many_threads_stop_at_once() {
    in_time(|| {
        let net = Net::new();
        let a = net.node("a").start().unwrap();
        let threads: Vec<_> = (0..16)
            .map(|number| {
                let a = a.clone();
                thread::spawn(move || if number % 2 == 0 { a.stop() } else { block_on(a.stop_async()) })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
    });
}

#[test]
fn what_runs_may_finish_within_the_grace_time() {
    in_time(|| {
        for kind in ["fn", "async fn"] {
            let net = Net::new();
            let (gate, entered) = (Gate::default(), Gate::default());
            let (first, first_entered) = (gate.clone(), entered.clone());
            let (second, second_entered) = (gate.clone(), entered.clone());
            let a = net
                .node("a")
                .limits(grace(PATIENCE))
                .callback("probe", || ())
                .callback("fn", move || {
                    first_entered.open();
                    first.pass();
                    1
                })
                .async_callback("async fn", move || {
                    let (gate, entered) = (second.clone(), second_entered.clone());
                    async move {
                        entered.open();
                        while !gate.is_open() {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                        1
                    }
                })
                .start()
                .unwrap();
            let b = net.node("b").start().unwrap();
            let result = b.call.by_name::<i32, _>(kind, ()) & BG;
            entered.pass();
            let (done, stopped) = mpsc::channel();
            let stopping = a.clone();
            thread::spawn(move || done.send(stopping.stop()));
            // It takes no new calls from then on.
            until("others are told", || {
                matches!(b.call.by_name::<(), _>("probe", ()) & FG, Err(Error::NoCandidate { .. }))
            });
            assert!(stopped.try_recv().is_err(), "it does not wait for its callback");
            gate.open();
            assert_eq!(result.get().unwrap(), 1, "{kind}");
            stopped.recv_timeout(AT_ONCE).unwrap().unwrap();
        }
    });
}

#[test]
fn the_grace_time_ends() {
    in_time(|| {
        for kind in ["fn", "async fn", "async fn that blocks"] {
            let net = Net::new();
            let (gate, entered) = (Gate::default(), Gate::default());
            let (held, told) = (gate.clone(), entered.clone());
            let async_told = entered.clone();
            let (async_held, blocks_told) = (gate.clone(), entered.clone());
            let a = net
                .node("a")
                .limits(grace(Duration::from_millis(200)))
                .callback("fn", move || {
                    told.open();
                    held.pass();
                })
                .async_callback("async fn", move || {
                    async_told.open();
                    std::future::pending::<()>()
                })
                .async_callback("async fn that blocks", move || {
                    let (held, told) = (async_held.clone(), blocks_told.clone());
                    async move {
                        told.open();
                        held.pass();
                    }
                })
                .start()
                .unwrap();
            let b = net.node("b").start().unwrap();
            let result = b.call.by_name::<(), _>(kind, ()) & BG;
            entered.pass();
            let begun = Instant::now();
            a.stop().unwrap();
            let took = begun.elapsed();
            assert!(took >= Duration::from_millis(200) && took < AT_ONCE, "{kind}: it took {took:?}");
            let error = result.get_timeout(PATIENCE).unwrap_err();
            assert!(matches!(&error, Error::RemoteStopped { node } if node == "a"), "{kind}: {error:?}");
            assert!(error.may_have_executed());
            gate.open();
        }
    });
}

#[test]
fn a_callback_that_is_dropped_at_the_end_of_the_grace_time_cleans_up() {
    struct Cleanup(Gate);
    impl Drop for Cleanup {
        fn drop(&mut self) {
            self.0.open();
        }
    }
    in_time(|| {
        let net = Net::new();
        let (entered, cleaned) = (Gate::default(), Gate::default());
        let (told, cleanup) = (entered.clone(), cleaned.clone());
        let a = net
            .node("a")
            .limits(grace(Duration::from_millis(50)))
            .async_callback("f", move || {
                let (told, cleanup) = (told.clone(), Cleanup(cleanup.clone()));
                async move {
                    let _cleanup = cleanup;
                    told.open();
                    std::future::pending::<()>().await;
                }
            })
            .start()
            .unwrap();
        let b = net.node("b").start().unwrap();
        b.call.by_name::<(), _>("f", ()).no_return().unwrap();
        entered.pass();
        a.stop().unwrap();
        cleaned.pass();
    });
}

#[test]
fn what_is_used_after_the_stop_says_so() {
    in_time(|| {
        let net = Net::new();
        let _b = net.node("b").callback("f", || 1).start().unwrap();
        let a = net.node("a").start().unwrap();
        let call = || a.call.by_name::<i32, _>("f", ());
        let before = call() & BG;
        assert_eq!(before.get().unwrap(), 1);
        let kept = call();
        a.stop().unwrap();
        assert_eq!(before.get().unwrap(), 1, "an answer stays");
        let begun = Instant::now();
        let errors = [
            (call() & FG).unwrap_err(),
            kept.fg().unwrap_err(),
            call().timeout(PATIENCE).fg().unwrap_err(),
            (call() & BG).get().unwrap_err(),
            (call() & BG.eta(PATIENCE)).get().unwrap_err(),
            (call() & NO_RETURN).unwrap_err(),
            (call() & NO_RETURN.eta(PATIENCE)).unwrap_err(),
            call().broadcast().unwrap_err(),
            call().broadcast_results().unwrap_err(),
            call().period(PERIOD.period(PATIENCE)).and_then(|task| task.id()).unwrap_err(),
            block_on(async { call().await }).unwrap_err(),
            block_on(call().broadcast_async()).unwrap_err(),
            block_on(call().broadcast_results_async()).unwrap_err(),
            a.wait_process("b").unwrap_err(),
            a.wait_process_timeout("b", PATIENCE).unwrap_err(),
            a.wait_function("f").unwrap_err(),
            block_on(a.wait_function_timeout_async("f", PATIENCE)).unwrap_err(),
            a.processes().unwrap_err(),
            a.callbacks().unwrap_err(),
            block_on(a.callbacks_async()).unwrap_err(),
        ];
        println!("{} errors took {:?} in all", errors.len(), begun.elapsed());
        for (number, error) in errors.iter().enumerate() {
            assert!(matches!(error, Error::Stopped { .. }), "{number}: {error:?}");
            assert!(!error.may_have_executed() && !error.is_retryable());
        }
    });
}

/// A node whose callback `f` opens the second gate when it begins, and gives 1 once the first one is open.
fn held_up(net: &Net, name: &str) -> (Global, Gate, Gate) {
    let (gate, entered) = (Gate::default(), Gate::default());
    let (held, told) = (gate.clone(), entered.clone());
    let f = move || {
        told.open();
        held.pass();
        1
    };
    (net.node(name).callback("f", f).start().unwrap(), gate, entered)
}

#[test]
fn calls_in_flight_end_when_their_own_global_stops() {
    in_time(|| {
        let net = Net::new();
        let (_b, gate, entered) = held_up(&net, "b");
        let a = net.node("a").start().unwrap();
        let sent = a.call.by_name::<i32, _>("f", ()) & BG;
        let delayed = a.call.by_name::<i32, _>("f", ()) & BG.eta(Duration::from_secs(3600));
        entered.pass();
        a.stop().unwrap();
        let error = sent.get().unwrap_err();
        assert!(error.may_have_executed(), "{error:?}");
        let error = delayed.get().unwrap_err();
        assert!(matches!(error, Error::Stopped { .. }), "{error:?}");
        gate.open();
    });
}

/// A node that stops itself in its callbacks, by the callback's name.
fn stops_itself(net: &Net, name: &str) -> Global {
    let slot = Arc::<OnceLock<Global>>::default();
    let (first, second, third) = (slot.clone(), slot.clone(), slot.clone());
    let g = net
        .node(name)
        .limits(grace(PATIENCE))
        .callback("stop", move || first.get().unwrap().stop().unwrap())
        .async_callback("stop_async", move || {
            let g = second.get().unwrap().clone();
            async move { g.stop_async().await.unwrap() }
        })
        .async_callback("stop_blocking", move || {
            let g = third.get().unwrap().clone();
            async move { g.stop().unwrap() }
        })
        .start()
        .unwrap();
    assert!(slot.set(g.clone()).is_ok());
    g
}

#[test]
fn a_callback_stops_its_own_process() {
    in_time(|| {
        let net = Net::new();
        let b = net.node("b").start().unwrap();
        for name in ["stop", "stop_async", "stop_blocking"] {
            let g = stops_itself(&net, name);
            let begun = Instant::now();
            (b.call.by_name::<(), _>(name, ()) & NO_RETURN.on(name)).unwrap();
            g.join().unwrap();
            assert!(begun.elapsed() < AT_ONCE, "{name} waited for itself: {:?}", begun.elapsed());
            let g = stops_itself(&net, &format!("{name} again"));
            // Its caller gets an outcome, whichever.
            let outcome = b.call.by_name::<(), _>(name, ()).on(g.process_name()).timeout(AT_ONCE).fg();
            assert!(!matches!(outcome, Err(Error::Timeout { .. })), "{outcome:?}");
            g.join().unwrap();
        }
    });
}

#[test]
fn a_callback_that_stops_its_own_process_lets_the_others_finish() {
    in_time(|| {
        let net = Net::new();
        let slot = Arc::<OnceLock<Global>>::default();
        let (gate, entered) = (Gate::default(), Gate::default());
        let (stop, held, told) = (slot.clone(), gate.clone(), entered.clone());
        let g = net
            .node("a")
            .limits(grace(PATIENCE))
            .callback("stop", move || stop.get().unwrap().stop().unwrap())
            .callback("probe", || ())
            .callback("held", move || {
                told.open();
                held.pass();
                7
            })
            .start()
            .unwrap();
        assert!(slot.set(g.clone()).is_ok());
        let b = net.node("b").start().unwrap();
        let held = b.call.by_name::<i32, _>("held", ()) & BG;
        entered.pass();
        b.call.by_name::<(), _>("stop", ()).no_return().unwrap();
        until("it is stopping", || {
            matches!(b.call.by_name::<(), _>("probe", ()) & FG, Err(Error::NoCandidate { .. }))
        });
        gate.open();
        assert_eq!(held.get().unwrap(), 7);
        g.join().unwrap();
    });
}

#[test]
fn a_callback_that_stops_another_global_lets_all_of_its_callbacks_finish() {
    in_time(|| {
        let net = Net::new();
        let (gate, entered) = (Gate::default(), Gate::default());
        let (held, told) = (gate.clone(), entered.clone());
        let a = net
            .node("a")
            .limits(grace(PATIENCE))
            .callback("probe", || ())
            .callback("held", move || {
                told.open();
                held.pass();
                7
            })
            .start()
            .unwrap();
        let victim = a.clone();
        let _c = net.node("c").callback("stop a", move || victim.stop().unwrap()).start().unwrap();
        let b = net.node("b").start().unwrap();
        let held = b.call.by_name::<i32, _>("held", ()) & BG;
        entered.pass();
        let stop = b.call.by_name::<(), _>("stop a", ()) & BG;
        until("it is stopping", || {
            matches!(b.call.by_name::<(), _>("probe", ()) & FG, Err(Error::NoCandidate { .. }))
        });
        let early = stop.get_timeout(Duration::from_millis(200));
        assert!(matches!(early, Err(Error::Timeout { .. })), "it did not wait for the callback: {early:?}");
        gate.open();
        assert_eq!(held.get().unwrap(), 7);
        stop.get().unwrap();
    });
}

#[test]
fn join_returns_when_another_thread_stops() {
    in_time(|| {
        let net = Net::new();
        let a = net.node("a").start().unwrap();
        let (done, joined) = mpsc::channel();
        let joins: [fn(&Global) -> daffi::Result<()>; 4] = [
            Global::join,
            |g| block_on(g.join_async()),
            |g| current_thread().block_on(g.join_async()),
            |g| multi_thread().block_on(async { g.join() }),
        ];
        for join in joins {
            let (a, done) = (a.clone(), done.clone());
            thread::spawn(move || done.send(join(&a)));
        }
        assert!(joined.recv_timeout(Duration::from_millis(50)).is_err(), "it is not stopped yet");
        a.stop().unwrap();
        for _ in joins {
            joined.recv_timeout(PATIENCE).unwrap().unwrap();
        }
    });
}

#[test]
fn the_last_clone_stops() {
    in_time(|| {
        let net = Net::new();
        let watcher = net.node("watcher").start().unwrap();
        let a = net.node("a").callback("f", || 1).start().unwrap();
        let clone = a.clone();
        drop(a);
        assert_eq!(watcher.call.by_name::<i32, _>("f", ()).fg().unwrap(), 1);
        drop(clone);
        until("the controller notices", || watcher.processes().unwrap().len() == 1);

        let directory = TempDir::new();
        let socket = directory.join("s");
        let controller =
            builder().process_name("c").init_controller(true).unix_sock_path(&socket).start().unwrap();
        let mut visitor = UnixStream::connect(&socket).unwrap();
        drop(controller);
        assert!(!socket.exists());
        visitor.set_read_timeout(Some(PATIENCE)).unwrap();
        // Closed, with or without a word.
        let _ = visitor.read_to_end(&mut Vec::new()).inspect_err(|error| {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        });
    });
}

#[test]
fn a_caller_that_was_kept_does_not_keep_the_global() {
    in_time(|| {
        let net = Net::new();
        let watcher = net.node("watcher").start().unwrap();
        let a = net.node("a").start().unwrap();
        let call = a.call.clone();
        drop(a);
        until("the controller notices", || watcher.processes().unwrap().len() == 1);
        let error = call.by_name::<i32, _>("f", ()).fg().unwrap_err();
        assert!(matches!(error, Error::Stopped { .. }), "{error:?}");
    });
}

#[test]
fn dropped_in_async_code_it_does_not_panic() {
    in_time(|| {
        let net = Net::new();
        let watcher = net.node("watcher").start().unwrap();
        for runtime in [current_thread(), multi_thread()] {
            runtime.block_on(async {
                // With async callbacks, so that there is a runtime to be dropped.
                let node = || net.node("a").async_callback("f", || async { 1 });
                drop(node().start_async().await.unwrap());
                watcher.wait_process_async("watcher").await.unwrap();
                let g = node().start_async().await.unwrap();
                tokio::spawn(async move {
                    tokio::task::yield_now().await;
                    drop(g);
                })
                .await
                .unwrap();
                let g = node().start_async().await.unwrap();
                let pending = tokio::spawn(async move {
                    g.wait_process_async("nobody").await.unwrap();
                });
                tokio::task::yield_now().await;
                pending.abort();
                assert!(pending.await.unwrap_err().is_cancelled());
                drop(builder().init_controller(true).host("localhost").start_async().await.unwrap());
            });
        }
        until("all are gone", || watcher.processes().unwrap().len() == 1);
    });
}

/// Nodes that are dropped in their own callbacks.
static DROPPED: Mutex<Option<Global>> = Mutex::new(None);

#[callback(inline)]
fn drop_inline() {
    drop(DROPPED.lock().unwrap().take());
}

#[callback(inline)]
async fn drop_inline_async() {
    drop(DROPPED.lock().unwrap().take());
}

#[callback]
fn drop_fn() {
    drop(DROPPED.lock().unwrap().take());
}

#[callback]
async fn drop_async_fn() {
    drop(DROPPED.lock().unwrap().take());
}

#[callback]
async fn drop_later() {
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop(DROPPED.lock().unwrap().take());
}

#[test]
fn dropped_in_its_own_callback_it_stops_too() {
    in_time(|| {
        let net = Net::new();
        let watcher = net.node("watcher").start().unwrap();
        for name in ["drop_fn", "drop_async_fn", "drop_later", "drop_inline", "drop_inline_async"] {
            let g = net.node("a").link_time_callbacks(true).start().unwrap();
            *DROPPED.lock().unwrap() = Some(g);
            (watcher.call.by_name::<(), _>(name, ()) & NO_RETURN.on("a")).unwrap();
            until(name, || watcher.processes().unwrap().len() == 1);
        }
    });
}

#[test]
fn what_was_handed_over_before_the_stop_arrives() {
    in_time(|| {
        for round in 0..20 {
            let net = Net::new();
            let count = Arc::<AtomicUsize>::default();
            let (small, large) = (count.clone(), count.clone());
            let _b = net
                .node("b")
                .callback("small", move |_: i32| {
                    small.fetch_add(1, SeqCst);
                })
                .callback("large", move |bytes: Vec<u8>| {
                    assert!(bytes.iter().all(|byte| *byte == 1));
                    large.fetch_add(bytes.len(), SeqCst);
                })
                .start()
                .unwrap();
            let a = net.node("a").start().unwrap();
            a.wait_process("b").unwrap();
            for number in 0..50 {
                (a.call.by_name::<(), _>("small", (number,)) & NO_RETURN).unwrap();
            }
            // Below a window, and far above it.
            let sizes = [300_000, 5_000_000, if round == 0 { 20_000_000 } else { 70_000 }];
            for size in sizes {
                (a.call.by_name::<(), _>("large", (vec![1u8; size],)) & NO_RETURN).unwrap();
            }
            match round % 3 {
                0 => a.stop().unwrap(),
                1 => current_thread().block_on(a.stop_async()).unwrap(),
                // Which lets them have a quarter of a second.
                _ => drop(a),
            }
            until("all of them arrive", || count.load(SeqCst) == 50 + sizes.iter().sum::<usize>());
        }
    });
}

/// A callee that stops finishes what has come, and what has begun to.
#[test]
fn large_arguments_and_results_on_their_way_are_finished() {
    in_time(|| {
        let net = Net::new();
        let a = net.node("a").start().unwrap();
        for round in 0..6 {
            let entered = Arc::new(Barrier::new(2));
            let begun = entered.clone();
            let b = net
                .node("b")
                .callback("get", move |size: usize| {
                    begun.wait();
                    vec![1u8; size]
                })
                .callback("put", |bytes: Vec<u8>| bytes.len())
                .start()
                .unwrap();
            a.wait_process("b").unwrap();
            let size = if round % 2 == 0 { 5_000_000 } else { 20_000_000 };
            let got = a.call.by_name::<Vec<u8>, _>("get", (size,)) & BG;
            let put = a.call.by_name::<usize, _>("put", (vec![1u8; size],)) & BG;
            // The arguments have begun to come by now, or are refused as by a node that is not there.
            entered.wait();
            b.stop().unwrap();
            assert_eq!(got.get().unwrap().len(), size);
            match put.get() {
                Ok(put) => assert_eq!(put, size),
                Err(error) => assert!(!error.may_have_executed(), "{error}"),
            }
        }
    });
}

#[test]
fn what_was_handed_over_to_an_own_controller_arrives() {
    in_time(|| {
        for round in 0..10 {
            let directory = TempDir::new();
            let socket = directory.join("s");
            let count = Arc::<AtomicUsize>::default();
            let a =
                builder().process_name("a").init_controller(true).unix_sock_path(&socket).start().unwrap();
            let counted = count.clone();
            let b = builder()
                .process_name("b")
                .unix_sock_path(&socket)
                .callback("small", move |_: i32| {
                    counted.fetch_add(1, SeqCst);
                })
                .start()
                .unwrap();
            a.wait_process("b").unwrap();
            for number in 0..50 {
                (a.call.by_name::<(), _>("small", (number,)) & NO_RETURN).unwrap();
            }
            if round % 2 == 0 {
                a.stop().unwrap()
            } else {
                block_on(a.stop_async()).unwrap()
            }
            until("all of them arrive", || count.load(SeqCst) == 50);
            drop(b);
        }
    });
}

#[test]
fn a_controller_that_stops_lets_the_calls_of_others_finish() {
    in_time(|| {
        let net = Net::new();
        let (_a, gate, entered) = held_up(&net, "a");
        let b = net.node("b").start().unwrap();
        let result = b.call.by_name::<i32, _>("f", ()) & BG;
        entered.pass();
        let controller = net.controller.clone();
        let stopped = Arc::<AtomicBool>::default();
        let stopping = {
            let stopped = stopped.clone();
            thread::spawn(move || {
                controller.stop().unwrap();
                stopped.store(true, SeqCst);
            })
        };
        thread::sleep(Duration::from_millis(50));
        assert!(!stopped.load(SeqCst), "it does not wait for the call");
        gate.open();
        assert_eq!(result.get().unwrap(), 1);
        stopping.join().unwrap();
    });
}

#[test]
fn a_call_that_stops_while_it_blocks_the_caller_returns() {
    in_time(|| {
        let net = Net::new();
        let (gate, entered) = (Gate::default(), Gate::default());
        let (held, told) = (gate.clone(), entered.clone());
        let _b = net
            .node("b")
            .callback("f", move |_: &Context| {
                told.open();
                held.pass();
            })
            .start()
            .unwrap();
        let a = net.node("a").start().unwrap();
        let calling = a.clone();
        let (done, returned) = mpsc::channel();
        thread::spawn(move || done.send(calling.call.by_name::<(), _>("f", ()).fg()));
        entered.pass();
        a.stop().unwrap();
        assert!(returned.recv_timeout(PATIENCE).unwrap().unwrap_err().may_have_executed());
        gate.open();
    });
}

/// How often the child starts and stops.
const CYCLES: &str = "DAFFI_TEST_CYCLES";

#[test]
fn starting_and_stopping_leaves_nothing_behind() {
    starts_and_stops(200);
}

/// `cargo test --release --test start -- --ignored --nocapture full_size`
#[test]
#[ignore = "a thousand take their time"]
fn full_size_a_thousand_starts_and_stops_leave_nothing_behind() {
    starts_and_stops(1_000);
}

fn starts_and_stops(cycles: usize) {
    if cfg!(target_os = "linux") {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "stopping::child_that_starts_and_stops", "--ignored", "--nocapture"])
            .env(CYCLES, cycles.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stdout);
        let errors = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success() && text.contains("1 passed"), "{text}{errors}");
        text.lines().filter(|line| line.contains("KiB")).for_each(|line| println!("{line}"));
    }
}

/// Memory of this process in KiB.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Threads and open files of this process.
fn held() -> (usize, usize) {
    let count = |path: &str| fs::read_dir(path).unwrap().count();
    (count("/proc/self/task"), count("/proc/self/fd"))
}

#[test]
#[ignore = "run by another test in a process of its own"]
fn child_that_starts_and_stops() {
    let Ok(cycles) = env::var(CYCLES).map(|cycles| cycles.parse::<usize>().unwrap()) else { return };
    within(PATIENCE + Duration::from_millis(200) * cycles as u32, move || {
        let directory = TempDir::new();
        let socket = directory.join("s");
        let cycle = |number: usize| {
            let controller = builder()
                .process_name("c")
                .init_controller(true)
                .unix_sock_path(&socket)
                .callback("f", || 1)
                .async_callback("g", || async { 2 })
                .start()
                .unwrap();
            let node = builder()
                .process_name("a")
                .unix_sock_path(&socket)
                .callback("slow", || thread::sleep(Duration::from_millis(1)))
                .start()
                .unwrap();
            assert_eq!(node.call.by_name::<i32, _>("f", ()).fg().unwrap(), 1);
            assert_eq!(node.call.by_name::<i32, _>("g", ()).fg().unwrap(), 2);
            controller.call.by_name::<(), _>("slow", ()).fg().unwrap();
            match number % 4 {
                0 => {
                    node.stop().unwrap();
                    controller.stop().unwrap();
                }
                1 => {
                    block_on(node.stop_async()).unwrap();
                    drop(controller);
                }
                2 => {
                    drop(node);
                    controller.stop().unwrap();
                }
                _ => {
                    drop(controller);
                    drop(node);
                }
            }
            // A start that fails leaves nothing either.
            let late = builder().unix_sock_path(&socket).connect_timeout(Duration::from_millis(1));
            assert!(late.start().is_err());
        };
        // Whatever is there once and for all, and what the allocator keeps for each thread that there was at a time.
        (0..cycles / 4).for_each(cycle);
        until("the first threads are gone", || held().0 <= 3);
        let (before, memory) = (held(), resident());
        (0..cycles).for_each(cycle);
        let more = resident().saturating_sub(memory);
        println!("{more} KiB more than {memory} KiB after {cycles} starts and stops");
        // A few cycles say little: the allocator has an arena for each of many threads, which fill up for a while.
        let more_max = if cycles < 1000 { 4096 } else { 1024 };
        assert!(more < more_max, "{more} KiB more than {memory} KiB");
        until(&format!("{before:?} are there again, not {:?}", held()), || {
            let now = held();
            now.0 <= before.0 && now.1 <= before.1
        });
    });
}
