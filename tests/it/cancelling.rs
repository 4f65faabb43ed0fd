//! Calls that are given up by another thread than those that wait for them, wherever they have come by then.

use std::{
    future::{Future as _, IntoFuture},
    pin::Pin,
    sync::mpsc::channel,
    task::{Context, Poll, Waker},
    thread,
    time::Instant,
};

use daffi::{BG, Call, Error, FG, Limits, Result};
use daffi_core::frame::Frame;

use crate::{
    calls::{hanging, limited},
    rogue_controller::{control, node},
    support::{BOUND, Count, Net},
};

type Awaited = Pin<Box<<Call<()> as IntoFuture>::IntoFuture>>;

/// A call that is awaited, and has been polled once.
fn awaited(call: Call<()>) -> Awaited {
    let mut call = Box::pin(call.into_future());
    let polled: Poll<Result<()>> = call.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "{polled:?}");
    call
}

fn drop_elsewhere(call: Awaited) {
    thread::spawn(|| drop(call)).join().unwrap();
}

/// Has two threads wait for a call in the background and another one cancel it, once `there` has returned. Gives what the two are
/// told.
fn cancel_elsewhere(call: Call<()>, there: impl FnOnce()) -> [Error; 2] {
    let result = call & BG;
    thread::scope(|scope| {
        let waiting = [(); 2].map(|()| scope.spawn(|| result.get_timeout(BOUND).unwrap_err()));
        there();
        scope.spawn(|| result.cancel());
        waiting.map(|waiting| waiting.join().unwrap())
    })
}

fn is_cancelled(error: &Error, was_sent: bool) -> bool {
    matches!(error, Error::Cancelled { sent, .. } if *sent == was_sent)
}

#[test]
fn what_waits_for_a_link_is_never_sent() {
    let mut hanging = hanging();
    hanging.net.stop_controller();
    // The node hears of it a moment later.
    let until = Instant::now() + BOUND;
    while !cancel_elsewhere(hanging.hang(), || ()).iter().all(|error| is_cancelled(error, false)) {
        assert!(Instant::now() < until, "there is a link still");
    }
    let errors = cancel_elsewhere(hanging.hang(), || ());
    assert!(errors.iter().all(|error| is_cancelled(error, false)), "{errors:?}");
    drop_elsewhere(awaited(hanging.hang()));
    let before = hanging.entered.get();
    hanging.net.start_controller(Limits::default());
    hanging.is_well();
    assert_eq!(hanging.entered.get(), before, "what was given up never ran");
}

#[test]
fn what_waits_for_a_place_is_never_sent() {
    let limited = limited();
    let _first = [0, 1].map(|a| limited.work(a) & BG);
    limited.entered.wait(2);
    for _ in 0..2 {
        // There is room for two more to wait, so each has to make way for the next one.
        let errors = cancel_elsewhere(limited.a.call.by_name("work", (7u32,)), || ());
        assert!(errors.iter().all(|error| is_cancelled(error, false)), "{errors:?}");
        drop_elsewhere(awaited(limited.a.call.by_name("work", (7u32,))));
    }
    limited.open.add();
    assert_eq!((limited.quick(7) & FG).unwrap(), 7);
    assert_eq!(limited.entered.get(), 2, "what was given up never ran");
}

#[test]
fn what_waits_for_the_socket_is_followed_by_its_cancellation() {
    let (starting, socket, directory) = node(200);
    let (reading_in, reading) = channel();
    let (go_on, going_on) = channel();
    let controller = thread::spawn(move || {
        let (mut asked, mut cancelled) = (Vec::new(), Vec::new());
        control(socket, &[], |_, frame| match frame {
            // From here on it reads nothing for a while.
            Frame::Request(request) if request.name == "first" => {
                reading_in.send(()).unwrap();
                going_on.recv_timeout(BOUND).unwrap();
            }
            Frame::Request(request) if request.name == "given up" => asked.push(request.id),
            Frame::Cancel { id } if asked.contains(id) => cancelled.push(*id),
            _ => {}
        });
        (asked, cancelled)
    });
    let a = starting.join().unwrap();
    let first = a.call.by_name::<(), _>("first", ()) & BG;
    reading.recv_timeout(BOUND).unwrap();
    // More than a socket takes.
    let filling: Vec<_> =
        (0..50).map(|_| a.call.by_name::<(), _>("large", (vec![7u8; 60_000],)) & BG).collect();
    // Nobody has to read for these to end.
    let errors = cancel_elsewhere(a.call.by_name("given up", ()), || ());
    assert!(errors.iter().all(|error| is_cancelled(error, true)), "{errors:?}");
    drop_elsewhere(awaited(a.call.by_name("given up", ())));
    assert!(filling.iter().chain([&first]).all(|result| !result.is_ready()));
    go_on.send(()).unwrap();
    a.stop().unwrap();
    let (asked, cancelled) = controller.join().unwrap();
    assert_eq!(asked.len(), 2);
    assert_eq!(cancelled, asked);
    let _ = std::fs::remove_dir_all(directory);
}

#[test]
fn what_has_begun_is_told() {
    let hanging = hanging();
    for round in 0..20 {
        let errors = cancel_elsewhere(hanging.hang(), || hanging.entered.wait(2 * round + 1));
        assert!(errors.iter().all(|error| is_cancelled(error, true)), "{errors:?}");
        hanging.dropped.wait(2 * round + 1);
        let call = awaited(hanging.hang());
        hanging.entered.wait(2 * round + 2);
        drop_elsewhere(call);
        hanging.dropped.wait(2 * round + 2);
    }
    hanging.is_well();
}

/// At a callee without a thread for them: no more than so many requests, and bytes of theirs, may be there.
#[test]
fn what_waits_at_a_busy_callee_makes_room() {
    let net = Net::new();
    let (entered, open) = (Count::new(), Count::new());
    let counts = (entered.clone(), open.clone());
    let work = move |bytes: Vec<u8>| {
        counts.0.add();
        counts.1.wait(1);
        bytes.len()
    };
    let limits = Limits {
        threads_max: 1,
        requests_held_max: 6,
        requests_held_bytes_max: 400_000,
        ..Limits::default()
    };
    let _b = net.node("b").limits(limits).callback("work", work).start().unwrap();
    let a = net.caller();
    let call = |size: usize| a.call.by_name::<usize, _>("work", (vec![7u8; size],));
    let first = call(10) & BG;
    entered.wait(1);
    for _ in 0..50 {
        let waiting: Vec<_> = (0..5).map(|_| call(60_000) & BG).collect();
        // Behind them, since they are in one piece each, so that they are there.
        let refused = (call(10) & BG).get_timeout(BOUND).unwrap_err();
        assert!(matches!(refused, Error::Overloaded { .. }), "{refused}");
        assert!(waiting.iter().all(|waiting| !waiting.is_ready()), "there was room for each");
        waiting.iter().for_each(daffi::AsyncResult::cancel);
    }
    let last: Vec<_> = (0..5).map(|_| call(60_000) & BG).collect();
    open.add();
    assert_eq!(first.get_timeout(BOUND).unwrap(), 10);
    for result in last {
        assert_eq!(result.get_timeout(BOUND).unwrap(), 60_000);
    }
    assert_eq!(entered.get(), 6, "what was given up never ran");
}
