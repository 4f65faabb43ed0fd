//! Tasks whose calls are answered at the same time, on all kinds of runtimes.

use std::{
    future::{Future, IntoFuture},
    pin::pin,
    sync::{Arc, mpsc},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
};

use daffi::{BG, Call, FG, Global};
use tokio::{
    runtime::{Builder, Runtime},
    task::{LocalSet, spawn_local},
};

use crate::support::{BOUND, Count, Net, next, run};

/// How many calls are answered together.
const CALLS: usize = 64;

/// A callee that answers when so many calls have come, all of them at once.
struct Together {
    caller: Global,
    _callee: Global,
    net: Net,
}

impl Together {
    fn new() -> Self {
        let net = Net::new();
        let caller = net.caller();
        Self { caller, _callee: Self::callee(&net), net }
    }

    /// The caller has the controller.
    fn embedded() -> Self {
        let (net, caller) = Net::embedded("caller");
        Self { caller, _callee: Self::callee(&net), net }
    }

    fn callee(net: &Net) -> Global {
        let came = Count::new();
        let echo = move |number: usize| {
            let came = came.clone();
            async move {
                came.add();
                came.wait_async(came.get().next_multiple_of(CALLS)).await;
                number
            }
        };
        net.node("callee").async_callback("echo", echo).start().unwrap()
    }

    fn call(&self, number: usize) -> Call<usize> {
        self.caller.call.by_name("echo", (number,))
    }
}

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

async fn in_time<T>(future: impl IntoFuture<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.expect("it is woken")
}

/// What `block_on` is in executors that wake by unparking a thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn tasks_of_one_thread() {
    for together in [Together::new(), Together::embedded()] {
        current_thread().block_on(async {
            for _ in 0..8 {
                let calls = |number| tokio::spawn(together.call(number).into_future());
                let tasks: Vec<_> = (0..CALLS).map(calls).collect();
                for (number, task) in tasks.into_iter().enumerate() {
                    assert_eq!(in_time(task).await.unwrap().unwrap(), number);
                }
            }
        });
    }
}

#[test]
fn tasks_of_all_kinds_of_runtimes() {
    let together = Together::new();
    let done = Count::new();
    let check = |number, answer: daffi::Result<usize>| {
        assert_eq!(answer.unwrap(), number);
        done.add();
    };
    let parts: Vec<Vec<usize>> = (0..4).map(|part| (part..CALLS).step_by(4).collect()).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            run(async {
                let tasks = parts[0].iter().map(|&n| (n, tokio::spawn(together.call(n).into_future())));
                for (number, task) in tasks.collect::<Vec<_>>() {
                    check(number, task.await.unwrap());
                }
            });
        });
        scope.spawn(|| {
            let local = LocalSet::new();
            local.block_on(&current_thread(), async {
                let tasks = parts[1].iter().map(|&n| (n, spawn_local((together.call(n) & BG).into_future())));
                for (number, task) in tasks.collect::<Vec<_>>() {
                    check(number, in_time(task).await.unwrap());
                }
            });
        });
        scope.spawn(|| {
            let results: Vec<_> = parts[2].iter().map(|&n| (n, together.call(n) & BG)).collect();
            current_thread().block_on(async {
                for (number, result) in results {
                    check(number, in_time(result.get_async()).await);
                }
            });
        });
        for &number in &parts[3] {
            let (together, check) = (&together, &check);
            scope.spawn(move || check(number, block_on(together.call(number).into_future())));
        }
    });
    assert_eq!(done.get(), CALLS);
}

#[test]
fn a_task_that_is_never_polled_again_keeps_no_other_one_asleep() {
    let together = Together::new();
    let (done, answers) = mpsc::channel();
    // Whichever of them is woken on behalf of others: of each two calls the first is looked after once and never again.
    let neglected: Vec<_> = (0..CALLS / 2)
        .map(|number| {
            let mut call = Box::pin(together.call(number).into_future());
            assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            let (call_that_follows, done) = (together.call(number), done.clone());
            thread::spawn(move || done.send(block_on(call_that_follows.into_future())));
            call
        })
        .collect();
    for _ in &neglected {
        next(&answers).unwrap();
    }
    // They have their answers all the same.
    for (number, call) in neglected.into_iter().enumerate() {
        assert_eq!(block_on(call).unwrap(), number);
    }
}

/// Whoever would send them together is not polled, so they are sent without anybody.
#[test]
fn calls_that_nobody_has_polled_yet_are_sent() {
    let together = Together::new();
    let other = together.net.node("other").start().unwrap();
    let calls: Vec<_> = (1..CALLS).map(|number| together.call(number).into_future()).collect();
    assert_eq!((other.call.by_name::<usize, _>("echo", (0usize,)) & FG.timeout(BOUND)).unwrap(), 0);
    for (number, call) in (1..).zip(calls) {
        assert_eq!(block_on(call).unwrap(), number);
    }
}
