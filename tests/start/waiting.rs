//! Waiting: for a controller, for processes, for functions; and asking who is there.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use daffi::{Error, FG, Global};

use crate::support::{Net, PATIENCE, TempDir, block_on, builder, current_thread, in_time, multi_thread};

/// What is long enough to see that somebody waits.
const A_WHILE: Duration = Duration::from_millis(100);

fn controller_at(directory: &TempDir) -> Global {
    builder().init_controller(true).init_node(false).unix_sock_path(directory.join("s")).start().unwrap()
}

#[test]
fn start_waits_until_a_controller_appears() {
    in_time(|| {
        let directory = TempDir::new();
        let (done, started) = mpsc::channel();
        let socket = directory.join("s");
        thread::spawn(move || done.send(builder().process_name("a").unix_sock_path(socket).start()));
        assert!(started.recv_timeout(A_WHILE).is_err(), "there is no controller yet");
        let controller = controller_at(&directory);
        let node = started.recv_timeout(PATIENCE).unwrap().unwrap();
        node.wait_process("a").unwrap();
        node.stop().unwrap();
        controller.stop().unwrap();
    });
}

/// A node that finds the controller finds the callbacks of its process, too, however early it comes.
#[test]
fn whoever_waits_for_a_controller_finds_the_callbacks_of_its_process() {
    in_time(|| {
        for _ in 0..20 {
            let directory = TempDir::new();
            let socket = directory.join("s");
            let caller = thread::spawn(move || {
                let caller = builder().process_name("caller").unix_sock_path(socket).start().unwrap();
                caller.call.by_name::<u32, _>("there", (7u32,)) & FG
            });
            let _callee = (0..200)
                .fold(builder(), |builder, number| builder.callback(format!("other {number}"), || ()))
                .callback("there", |a: u32| a)
                .init_controller(true)
                .unix_sock_path(directory.join("s"))
                .start()
                .unwrap();
            assert_eq!(caller.join().unwrap().unwrap(), 7);
        }
    });
}

#[test]
fn start_async_waits_until_a_controller_appears() {
    in_time(|| {
        let directory = TempDir::new();
        let node = current_thread().block_on(async {
            let mut starting =
                Box::pin(builder().process_name("a").unix_sock_path(directory.join("s")).start_async());
            tokio::time::timeout(A_WHILE, &mut starting).await.expect_err("there is no controller yet");
            let _controller = builder()
                .init_controller(true)
                .init_node(false)
                .unix_sock_path(directory.join("s"))
                .start_async()
                .await
                .unwrap();
            starting.await.unwrap().wait_process_async("a").await
        });
        node.unwrap();
    });
}

#[test]
fn a_start_that_is_given_up_stops_again() {
    in_time(|| {
        let directory = TempDir::new();
        current_thread().block_on(async {
            let starting = builder().process_name("a").unix_sock_path(directory.join("s")).start_async();
            tokio::time::timeout(A_WHILE, starting).await.expect_err("there is no controller");
        });
        let controller = builder()
            .process_name("c")
            .init_controller(true)
            .unix_sock_path(directory.join("s"))
            .start()
            .unwrap();
        let error = controller.wait_process_timeout("a", A_WHILE).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    });
}

#[test]
fn with_a_connect_timeout_it_ends_in_time() {
    in_time(|| {
        let directory = TempDir::new();
        let timeout = Duration::from_millis(300);
        let unix = || builder().unix_sock_path(directory.join("s")).connect_timeout(timeout);
        // Nobody listens there, and while this is bound nobody else gets it.
        let placeholder = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = placeholder.local_addr().unwrap().port();
        // Somebody listens there, who never says a word.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let silent_port = silent.local_addr().unwrap().port();
        let tcp = || builder().host("127.0.0.1").port(port).connect_timeout(timeout);
        let mute = || builder().host("127.0.0.1").port(silent_port).connect_timeout(timeout);
        let check = |begun: Instant, error: Error| {
            let took = begun.elapsed();
            let Error::Unreachable { waited, address, .. } = &error else { panic!("{error:?}") };
            assert_eq!(*waited, timeout);
            assert!(error.to_string().contains(&address.to_string()), "{error}");
            assert!(error.is_retryable() && !error.may_have_executed());
            assert!(took >= timeout && took < timeout + Duration::from_secs(5), "it took {took:?}");
        };
        for make in [&unix as &dyn Fn() -> daffi::GlobalBuilder, &tcp, &mute] {
            let begun = Instant::now();
            check(begun, make().start().unwrap_err());
            let begun = Instant::now();
            check(begun, current_thread().block_on(make().start_async()).unwrap_err());
            let begun = Instant::now();
            check(begun, block_on(make().start_async()).unwrap_err());
        }
    });
}

#[test]
fn who_is_there_already_is_not_waited_for() {
    in_time(|| {
        let net = Net::new();
        let _a = net.node("a").callback("f", || 1).start().unwrap();
        let b = net.node("b").start().unwrap();
        b.wait_process("a").unwrap();
        b.wait_process_timeout("a", PATIENCE).unwrap();
        b.wait_function("f").unwrap();
        b.wait_function_timeout("f", PATIENCE).unwrap();
        multi_thread().block_on(async {
            b.wait_process_async("a").await.unwrap();
            b.wait_process_timeout_async("a", PATIENCE).await.unwrap();
            b.wait_function_async("f").await.unwrap();
            b.wait_function_timeout_async("f", PATIENCE).await.unwrap();
        });
    });
}

#[test]
fn who_comes_later_ends_every_wait() {
    in_time(|| {
        let net = Net::new();
        let b = net.node("b").start().unwrap();
        let (done, ended) = mpsc::channel();
        let waits: [fn(&Global) -> daffi::Result<()>; 8] = [
            |g| g.wait_process("a"),
            |g| g.wait_process_timeout("a", PATIENCE),
            |g| g.wait_function("f"),
            |g| g.wait_function_timeout("f", PATIENCE),
            |g| current_thread().block_on(g.wait_process_async("a")),
            |g| block_on(g.wait_process_timeout_async("a", PATIENCE)),
            |g| current_thread().block_on(g.wait_function_async("f")),
            |g| block_on(g.wait_function_timeout_async("f", PATIENCE)),
        ];
        for (number, wait) in waits.into_iter().enumerate() {
            let (b, done) = (b.clone(), done.clone());
            thread::spawn(move || done.send((number, wait(&b))));
        }
        assert!(ended.recv_timeout(A_WHILE).is_err(), "nobody has come yet");
        let _a = net.node("a").callback("f", || 1).start().unwrap();
        let mut numbers: Vec<_> = (0..waits.len())
            .map(|_| {
                let (number, outcome) = ended.recv_timeout(PATIENCE).unwrap();
                outcome.unwrap();
                number
            })
            .collect();
        numbers.sort();
        assert_eq!(numbers, (0..waits.len()).collect::<Vec<_>>());
    });
}

#[test]
fn who_never_comes_is_waited_for_as_long_as_was_said() {
    in_time(|| {
        let net = Net::new();
        let b = net.node("b").start().unwrap();
        let waits: [fn(&Global) -> daffi::Result<()>; 4] = [
            |g| g.wait_process_timeout("a", A_WHILE),
            |g| g.wait_function_timeout("f", A_WHILE),
            |g| current_thread().block_on(g.wait_process_timeout_async("a", A_WHILE)),
            |g| block_on(g.wait_function_timeout_async("f", A_WHILE)),
        ];
        for (wait, what) in waits.into_iter().zip(["wait_process(a)", "wait_function(f)"].into_iter().cycle())
        {
            let begun = Instant::now();
            let error = wait(&b).unwrap_err();
            let took = begun.elapsed();
            let Error::Timeout { callback, after, .. } = &error else { panic!("{error:?}") };
            assert_eq!((callback.as_str(), *after), (what, A_WHILE));
            assert!(took >= A_WHILE && took < PATIENCE / 2, "it took {took:?}");
        }
        assert_eq!(b.processes().unwrap().len(), 1, "the node is none the worse");
    });
}

#[test]
fn a_wait_with_no_time_at_all_looks_once_or_says_so() {
    in_time(|| {
        let net = Net::new();
        let b = net.node("b").start().unwrap();
        let error = b.wait_process_timeout("a", Duration::ZERO).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
        let error = block_on(b.wait_function_timeout_async("f", Duration::ZERO)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    });
}

#[test]
fn ones_own_name_is_there_and_ones_own_functions_do_not_count() {
    in_time(|| {
        let net = Net::new();
        let a = net.node("a").callback("f", || 1).start().unwrap();
        a.wait_process("a").unwrap();
        let error = a.wait_function_timeout("f", A_WHILE).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "another one has to offer it: {error:?}");
        let _b = net.node("b").callback("f", || 2).start().unwrap();
        a.wait_function("f").unwrap();
        assert_eq!(a.call.by_name::<i32, _>("f", ()).fg().unwrap(), 2);
    });
}

#[test]
fn who_is_there_and_what_they_offer() {
    in_time(|| {
        let net = Net::new();
        let a = net
            .node("a")
            .callback("add", |a: i64, b: i64| a + b)
            .async_callback("greet", |name: String| async move { format!("hello {name}") })
            .start()
            .unwrap();
        let _b = net.node("b").callback("add", |a: i64, b: i64| a + b).start().unwrap();
        let _c = net.node("c").callback("add", |a: f32| a).start().unwrap();
        let processes = a.processes().unwrap();
        assert_eq!(processes, block_on(a.processes_async()).unwrap());
        let listed: Vec<_> =
            processes.iter().map(|process| (process.name.as_str(), process.callbacks.as_slice())).collect();
        let (add, greet) = ("add".to_owned(), "greet".to_owned());
        assert_eq!(
            listed,
            [
                ("a", [add.clone(), greet].as_slice()),
                ("b", std::slice::from_ref(&add)),
                ("c", std::slice::from_ref(&add))
            ]
        );

        let callbacks = a.callbacks().unwrap();
        assert_eq!(callbacks, current_thread().block_on(a.callbacks_async()).unwrap());
        assert!(callbacks.iter().all(|callback| callback.ready));
        let listed: Vec<_> = callbacks
            .iter()
            .map(|callback| (callback.name.as_str(), callback.signature.as_str(), callback.nodes.join(" ")))
            .collect();
        let mut expected = [
            ("add", "(i64, i64) -> i64", "a b".to_owned()),
            ("add", "(f32) -> f32", "c".to_owned()),
            ("greet", "(String) -> String", "a".to_owned()),
        ];
        let mut found = listed.clone();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        assert!(listed.is_sorted_by_key(|(name, ..)| *name));
    });
}

#[test]
fn who_leaves_is_not_listed_any_more() {
    in_time(|| {
        let net = Net::new();
        let a = net.node("a").start().unwrap();
        let b = net.node("b").callback("f", || 1).start().unwrap();
        a.wait_process("b").unwrap();
        b.stop().unwrap();
        crate::support::until("it is gone", || a.processes().unwrap().len() == 1);
        assert_eq!(a.callbacks().unwrap(), []);
        let error = a.wait_process_timeout("b", A_WHILE).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    });
}

#[test]
fn waits_and_questions_survive_a_restart_of_the_controller() {
    in_time(|| {
        let mut net = Net::new();
        let a = net.node("a").callback("f", || 1).start().unwrap();
        let b = net.node("b").start().unwrap();
        let (done, ended) = mpsc::channel();
        let waits: [fn(&Global) -> daffi::Result<()>; 4] = [
            |g| g.wait_process("late"),
            |g| g.wait_function_timeout("late_function", PATIENCE),
            |g| current_thread().block_on(g.wait_process_async("late")),
            |g| block_on(g.wait_function_async("late_function")),
        ];
        for wait in waits {
            let (b, done) = (b.clone(), done.clone());
            thread::spawn(move || done.send(wait(&b)));
        }
        assert!(ended.recv_timeout(A_WHILE).is_err(), "nobody has come yet");
        net.restart();
        // Asked while there is no link, or just again.
        assert!(b.processes().unwrap().iter().any(|process| process.name == "b"));
        b.wait_process("a").unwrap();
        b.wait_function("f").unwrap();
        a.wait_process("b").unwrap();
        assert_eq!(b.call.by_name::<i32, _>("f", ()).fg().unwrap(), 1);
        let _late = net.node("late").callback("late_function", || ()).start().unwrap();
        for _ in waits {
            ended.recv_timeout(PATIENCE).unwrap().unwrap();
        }
    });
}

#[test]
fn a_wait_ends_when_its_own_global_stops() {
    in_time(|| {
        let net = Net::new();
        let b = net.node("b").start().unwrap();
        let (done, ended) = mpsc::channel();
        let waits: [fn(&Global) -> daffi::Result<()>; 3] = [
            |g| g.wait_process("a"),
            |g| g.wait_function_timeout("f", PATIENCE),
            |g| block_on(g.wait_function_async("f")),
        ];
        for wait in waits {
            let (b, done) = (b.clone(), done.clone());
            thread::spawn(move || done.send(wait(&b)));
        }
        assert!(ended.recv_timeout(A_WHILE).is_err(), "nobody has come yet");
        b.stop().unwrap();
        for _ in waits {
            let error = ended.recv_timeout(PATIENCE).unwrap().unwrap_err();
            assert!(matches!(error, Error::Stopped { .. }), "{error:?}");
        }
    });
}

/// A node whose controller is to be at a host that does not exist is told so, and one that has no time to find out, too.
#[test]
fn a_host_that_does_not_exist() {
    in_time(|| {
        // The shorter wait can end before anything is known about the host.
        for timeout in [Duration::from_nanos(1), A_WHILE] {
            let error = builder().host("host.invalid").port(1).connect_timeout(timeout).start().unwrap_err();
            let Error::Unreachable { address, reason, .. } = &error else { panic!("{error:?}") };
            assert!(address.to_string().contains("host.invalid"), "{error}");
            assert!(!reason.is_empty() && error.to_string().contains(reason), "{error:?}");
        }
    });
}
