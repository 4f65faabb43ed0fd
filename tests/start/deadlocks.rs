//! Calls that wait for each other in a circle. Nobody can help them, but each of them ends with an error in time.

use std::{
    sync::{Arc, Barrier, Mutex},
    time::{Duration, Instant},
};

use daffi::{BG, Context, Error, FG, Limits};

use crate::support::{Net, PATIENCE, in_time};

/// What a callback was told of the call that it made.
type Told = Arc<Mutex<Vec<daffi::Result<()>>>>;

/// All that two nodes may hold waits for the other one: the next calls are refused at once, and everything goes on.
#[test]
fn two_nodes_that_are_full_of_calls_to_each_other() {
    in_time(|| {
        for held in [1, 2] {
            let net = Net::new();
            let told = Told::default();
            let all_run = Arc::new(Barrier::new(2 * held));
            let node = |name: &str, other: &'static str| {
                let (told, all_run) = (told.clone(), all_run.clone());
                let limits = Limits { requests_held_max: held, threads_max: held, ..Limits::default() };
                net.node(name)
                    .limits(limits)
                    .callback("back", || ())
                    .callback("across", move |ctx: &Context| {
                        all_run.wait();
                        let outcome = ctx.call.by_name("back", ()).on(other).fg();
                        told.lock().unwrap().push(outcome);
                    })
                    .start()
                    .unwrap()
            };
            let _nodes = [node("a", "b"), node("b", "a")];
            let g = net.node("driver").start().unwrap();
            let begun = Instant::now();
            let calls: Vec<_> = (0..2 * held)
                .map(|number| {
                    let to = ["a", "b"][number % 2];
                    g.call.by_name::<(), _>("across", ()) & BG.on(to).timeout(PATIENCE)
                })
                .collect();
            for call in calls {
                call.get().unwrap();
            }
            assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
            let told = std::mem::take(&mut *told.lock().unwrap());
            // Whoever comes first finds the other one full; it makes room when it ends.
            let refused = told.iter().filter(|told| matches!(told, Err(Error::Overloaded { .. }))).count();
            assert!(
                refused > 0 && told.iter().all(|told| matches!(told, Ok(()) | Err(Error::Overloaded { .. }))),
                "{told:?}"
            );
            for name in ["a", "b"] {
                g.call.by_name::<(), _>("back", ()).on(name).timeout(PATIENCE).fg().unwrap();
            }
        }
    });
}

/// A lock of the user's is held while a call comes back to whoever wants it: the deadline of the first call ends them all.
#[test]
fn a_lock_that_is_held_across_a_call() {
    const DEADLINE: Duration = Duration::from_secs(1);
    in_time(|| {
        let net = Net::new();
        let (lock, async_lock) = (Arc::new(Mutex::new(())), Arc::new(tokio::sync::Mutex::new(())));
        let _a = net
            .node("a")
            .try_callback("locks", move |ctx: &Context| {
                let _guard = lock.lock().unwrap();
                ctx.call.by_name::<(), _>("back", ()).on("b").fg()
            })
            .try_async_callback("locks async", move |ctx: Context| {
                let lock = async_lock.clone();
                async move {
                    let _guard = lock.lock().await;
                    ctx.call.by_name::<(), _>("back async", ()).on("b").await
                }
            })
            .start()
            .unwrap();
        let _b = net
            .node("b")
            .try_callback("back", move |ctx: &Context| ctx.call.by_name::<(), _>("locks", ()).on("a").fg())
            .try_async_callback("back async", move |ctx: Context| async move {
                ctx.call.by_name::<(), _>("locks async", ()).on("a").await
            })
            .start()
            .unwrap();
        let g = net.node("driver").start().unwrap();
        for name in ["locks", "locks async"] {
            // The second time shows that the lock is free again.
            for _ in 0..2 {
                let begun = Instant::now();
                let error = (g.call.by_name::<(), _>(name, ()) & FG.on("a").timeout(DEADLINE)).unwrap_err();
                let took = begun.elapsed();
                assert!(matches!(&error, Error::Timeout { sent: true, .. }), "{name}: {error:?}");
                assert!(took >= DEADLINE && took < DEADLINE + Duration::from_secs(3), "{name}: {took:?}");
            }
        }
    });
}
