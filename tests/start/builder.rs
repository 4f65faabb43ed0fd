//! Options that contradict each other are errors that say what to write instead.

use std::time::Duration;

use daffi::{Error, GlobalBuilder, Limits, Strategy};

use crate::support::{Net, PATIENCE, TempDir, block_on, builder, current_thread, in_time};

/// Both ways to start end with the same error, at once, and its text has these words.
#[track_caller]
fn refused(make: impl Fn() -> GlobalBuilder, words: &[&str]) -> Error {
    let error = make().start().expect_err("these options cannot work");
    let twin = block_on(make().start_async()).expect_err("these options cannot work");
    let text = error.to_string();
    assert_eq!(text, twin.to_string());
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    assert!(!error.may_have_executed());
    assert!(!error.is_retryable(), "{error}");
    error
}

#[track_caller]
fn contradiction(make: impl Fn() -> GlobalBuilder, words: &[&str]) {
    let error = refused(make, words);
    assert!(matches!(error, Error::Configuration { .. }), "{error:?}");
}

#[test]
fn neither_controller_nor_node() {
    contradiction(|| builder().init_node(false), &["neither", "init_node(false)", "init_controller(true)"]);
    contradiction(|| builder().init_node(false).host("localhost").port(1), &["neither"]);
}

#[test]
fn tcp_and_a_unix_socket() {
    contradiction(|| builder().host("localhost").port(1).unix_sock_path("s"), &["host", "unix_sock_path"]);
    contradiction(|| builder().host("localhost").unix_sock_path("s"), &["host", "unix_sock_path"]);
    contradiction(|| builder().port(1).unix_sock_path("s"), &["port", "unix_sock_path"]);
    contradiction(
        || builder().init_controller(true).host("localhost").unix_sock_path("s"),
        &["host", "unix_sock_path"],
    );
    let address: daffi::Address = "tcp://localhost:1".parse().unwrap();
    contradiction(|| builder().address(address.clone()).unix_sock_path("s"), &["TCP", "UNIX", "choose"]);
}

#[test]
fn a_port_without_a_host() {
    contradiction(|| builder().port(8888), &["port without a host", "host(\"localhost\")"]);
    contradiction(|| builder().init_controller(true).port(8888), &["port without a host"]);
}

#[test]
fn a_host_without_a_port_and_nobody_who_could_choose_one() {
    contradiction(|| builder().host("localhost"), &["host without a port", "port("]);
    contradiction(|| builder().host("localhost").port(0), &["port("]);
}

#[test]
fn a_host_that_is_empty() {
    contradiction(|| builder().host("").port(1), &["host is empty", "localhost"]);
    contradiction(|| builder().init_controller(true).host(""), &["host is empty"]);
}

#[test]
fn a_controller_with_a_host_alone_finds_a_port_and_tells_it() {
    in_time(|| {
        for port in [None, Some(0)] {
            let mut first = builder().process_name("first").init_controller(true).host("localhost");
            if let Some(port) = port {
                first = first.port(port);
            }
            let first = first.start().unwrap();
            let daffi::Address::Tcp { host, port } = first.address().clone() else {
                panic!("{:?}", first.address());
            };
            assert_eq!(host, "localhost");
            assert_ne!(port, 0);
            let second = builder().process_name("second").address(first.address().clone()).start().unwrap();
            assert_eq!(second.address(), first.address());
            second.wait_process("first").unwrap();
            first.wait_process("second").unwrap();
        }
    });
}

#[test]
fn names_that_the_wire_does_not_carry() {
    for name in ["", "a\nb", "\0", "daffi.stats", &"x".repeat(256)] {
        let error = refused(|| builder().process_name(name), &["not a valid name"]);
        assert!(matches!(&error, Error::InvalidName { name: told, .. } if told == name), "{error:?}");
        let error = refused(|| builder().callback(name.to_owned(), || ()), &["not a valid name"]);
        assert!(matches!(&error, Error::InvalidName { name: told, .. } if told == name), "{error:?}");
    }
}

#[test]
fn the_longest_name_and_one_that_is_not_ascii_are_good_names() {
    in_time(|| {
        let net = Net::new();
        for name in [&"x".repeat(255), "größe 7/a.b:c"] {
            let node = net.node(name).start().unwrap();
            assert_eq!(node.process_name(), name);
            node.wait_process(name).unwrap();
        }
    });
}

#[test]
fn a_strategy_without_a_controller() {
    contradiction(|| builder().strategy(Strategy::RoundRobin), &["strategy", "init_controller(true)"]);
}

#[test]
fn a_controller_alone_has_no_callbacks_and_no_name() {
    let alone = || builder().init_controller(true).init_node(false);
    contradiction(|| alone().callback("f", || ()), &["callbacks", "init_node(false)"]);
    contradiction(|| alone().async_callback("f", || async {}), &["callbacks", "init_node(false)"]);
    contradiction(|| alone().process_name("a"), &["process_name", "init_node(false)"]);
}

#[test]
fn a_controller_alone_starts_and_its_callers_are_told() {
    in_time(|| {
        let net = Net::new();
        assert_eq!(net.controller.process_name(), "");
        let errors = [
            net.controller.call.by_name::<(), _>("f", ()).fg().unwrap_err(),
            net.controller.wait_process("a").unwrap_err(),
            net.controller.processes().unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, Error::Configuration { .. }), "{error:?}");
            assert!(error.to_string().contains("init_node(false)"), "{error}");
        }
    });
}

#[test]
fn limits_that_cannot_work() {
    let with = |limits: Limits| contradiction(|| builder().limits(limits.clone()), &["has to be"]);
    let default = Limits::default;
    with(Limits { payload_bytes_max: 0, ..default() });
    with(Limits { payload_bytes_max: u64::MAX, ..default() });
    with(Limits { queue_bytes_max: 1, ..default() });
    with(Limits { queue_total_bytes_max: 1, ..default() });
    with(Limits { calls_in_flight_max: 0, ..default() });
    with(Limits { calls_in_flight_max: usize::MAX, ..default() });
    with(Limits { requests_held_max: 0, ..default() });
    with(Limits { threads_max: 0, ..default() });
    with(Limits { connections_max: 0, ..default() });
    with(Limits { handshakes_max: 0, ..default() });
    with(Limits { handshake_timeout: Duration::ZERO, ..default() });
    with(Limits { heartbeat: Duration::ZERO, ..default() });
    with(Limits { heartbeat: Duration::from_millis(9), ..default() });
    contradiction(
        || builder().limits(Limits { threads_max: 0, heartbeat: Duration::ZERO, ..default() }),
        &["threads_max", "heartbeat"],
    );
}

#[test]
fn limits_that_no_clock_can_count_to() {
    let default = Limits::default;
    for (limits, name) in [
        (Limits { handshake_timeout: Duration::MAX, ..default() }, "handshake_timeout"),
        (Limits { heartbeat: Duration::MAX, ..default() }, "heartbeat"),
        (Limits { grace: Duration::MAX, ..default() }, "grace"),
    ] {
        contradiction(|| builder().limits(limits.clone()), &[name, "at most a year"]);
        contradiction(
            || builder().init_controller(true).init_node(false).limits(limits.clone()),
            &[name, "at most a year"],
        );
    }
}

#[test]
fn the_largest_durations_and_numbers_do_not_overflow() {
    in_time(|| {
        let net = Net::new();
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        let endless = Limits {
            handshake_timeout: year,
            heartbeat: year,
            grace: year,
            queue_bytes_max: usize::MAX,
            queue_total_bytes_max: usize::MAX,
            requests_held_max: usize::MAX,
            threads_max: usize::MAX,
            callbacks_max: usize::MAX,
            tasks_max: usize::MAX,
            connections_max: usize::MAX,
            handshakes_max: usize::MAX,
            ..Limits::default()
        };
        let node = net
            .node("a")
            .connect_timeout(Duration::MAX)
            .default_timeout(Duration::MAX)
            .limits(endless.clone())
            .callback("f", || 1)
            .start()
            .unwrap();
        let other = net.node("b").limits(endless.clone()).start().unwrap();
        assert_eq!(other.call.by_name::<i32, _>("f", ()).timeout(Duration::MAX).fg().unwrap(), 1);
        other.wait_process_timeout("a", Duration::MAX).unwrap();
        node.stop().unwrap();
        let directory = TempDir::new();
        let socket = directory.join("s");
        let both = builder()
            .process_name("both")
            .init_controller(true)
            .unix_sock_path(&socket)
            .limits(endless)
            .callback("f", || 2)
            .start()
            .unwrap();
        let caller = builder().unix_sock_path(&socket).connect_timeout(Duration::MAX).start().unwrap();
        assert_eq!(caller.call.by_name::<i32, _>("f", ()).fg().unwrap(), 2);
        caller.stop().unwrap();
        both.stop().unwrap();
    });
}

#[test]
fn a_call_that_is_to_be_sent_after_the_end_of_time_waits_until_it_is_cancelled() {
    in_time(|| {
        let net = Net::new();
        let node = net.node("a").start().unwrap();
        let never = node.call.by_name::<i32, _>("f", ()).eta(Duration::MAX).bg();
        node.call.by_name::<i32, _>("f", ()).eta(Duration::MAX).no_return().unwrap();
        assert!(!never.is_ready());
        never.cancel();
        let error = never.get().unwrap_err();
        assert!(matches!(error, Error::Cancelled { sent: false, .. }), "{error:?}");
        let never = node.call.by_name::<i32, _>("f", ()).eta(Duration::MAX).bg();
        node.stop().unwrap();
        let error = never.get().unwrap_err();
        assert!(matches!(error, Error::Stopped { .. }), "{error:?}");
    });
}

#[test]
fn timeouts_of_zero() {
    contradiction(|| builder().connect_timeout(Duration::ZERO), &["connect_timeout is zero"]);
    contradiction(|| builder().default_timeout(Duration::ZERO), &["default_timeout is zero"]);
}

#[test]
fn two_callbacks_of_one_name() {
    let first = line!() + 2;
    let twice = || {
        let once = builder().callback("same", || 1);
        once.async_callback("same", || async { "2" })
    };
    let error = refused(twice, &["same", "rename"]);
    let Error::DuplicateCallback { name, first: one, second: other } = &error else { panic!("{error:?}") };
    assert_eq!(name, "same");
    for (place, line) in [(one, first), (other, first + 1)] {
        assert!(place.contains("builder.rs"), "{place}");
        assert!(place.contains(&line.to_string()), "{place} is not line {line}");
    }
}

#[test]
fn the_name_of_a_live_process() {
    in_time(|| {
        let net = Net::new();
        let first = net.node("a").callback("f", || 1).start().unwrap();
        let error = net.node("a").start().unwrap_err();
        assert!(matches!(&error, Error::NameTaken { name } if name == "a"), "{error:?}");
        let error = current_thread().block_on(net.node("a").start_async()).unwrap_err();
        assert!(matches!(&error, Error::NameTaken { name } if name == "a"), "{error:?}");
        assert!(error.to_string().contains("process_name"), "{error}");
        let caller = net.node("b").start().unwrap();
        assert_eq!(caller.call.by_name::<i32, _>("f", ()).fg().unwrap(), 1);
        first.stop().unwrap();
        net.node("a").start().unwrap();
    });
}

#[test]
fn without_a_name_each_has_a_random_one() {
    in_time(|| {
        let directory = TempDir::new();
        let socket = directory.join("s");
        let first = builder().init_controller(true).unix_sock_path(&socket).start().unwrap();
        let others: Vec<_> = (0..3)
            .map(|_| builder().unix_sock_path(&socket).connect_timeout(PATIENCE).start().unwrap())
            .collect();
        let mut names: Vec<_> = others.iter().chain([&first]).map(|g| g.process_name().to_owned()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 4, "{names:?}");
        let listed: Vec<_> = first.processes().unwrap().into_iter().map(|process| process.name).collect();
        assert_eq!(listed, names);
    });
}

#[test]
fn a_start_that_fails_leaves_nothing_on_the_address() {
    in_time(|| {
        let directory = TempDir::new();
        let twice = || {
            let once = builder().init_controller(true).unix_sock_path(directory.join("s"));
            once.callback("f", || ()).callback("f", || ())
        };
        refused(twice, &["two callbacks"]);
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
        builder().init_controller(true).unix_sock_path(directory.join("s")).start().unwrap();
    });
}
