//! An application on tokio: awaits calls, runs several at a time, and drops one to cancel it.
//!
//! The runtime is deliberately single-threaded: nothing here blocks it. Any other executor works too, since
//! daffi's futures do not depend on one.

use std::{
    sync::mpsc::{Sender, channel},
    time::Duration,
};

use daffi::{BG, Context, Error, FG, Global, fetcher};

#[fetcher]
trait Worker {
    fn square(a: u64) -> u64;
    fn sleep(millis: u64) -> u64;
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> daffi::Result<()> {
    let (cancelled_in, cancelled) = channel();
    let worker = Global::builder()
        .process_name("worker")
        .init_controller(true)
        .host("localhost")
        // The caller cannot tell whether a callback is an `fn`, which runs on its own thread, …
        .callback("square", |a: u64| a * a)
        // … or an `async fn`, which is dropped at its `.await` once nobody is waiting for it.
        .async_callback("sleep", move |ctx: Context, millis: u64| {
            let told = DropGuard(ctx, cancelled_in.clone());
            async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                drop(told);
                millis
            }
        })
        .start_async()
        .await?;
    let g = Global::builder().process_name("app").address(worker.address().clone()).start_async().await?;

    // A call is a future.
    println!("7 * 7 = {}", g.call.square(7).await?);
    println!("8 * 8 = {}", g.call.square(8).timeout(Duration::from_secs(5)).on("worker").await?);

    // Several at a time.
    let (a, b, c) = tokio::join!(g.call.square(1), g.call.square(2), g.call.square(3));
    println!("1, 2 and 3: {}, {} and {}", a?, b?, c?);

    // In the background, as in synchronous programs; only the way of waiting differs.
    let results: Vec<_> = (1..=5).map(|a| g.call.square(a) & BG).collect();
    let mut sum = 0;
    for result in &results {
        sum += result.get_async().await?;
    }
    println!("the first five squares make {sum}");

    // Dropping a call that is being awaited cancels it, here and on the other side.
    tokio::select! {
        slept = g.call.sleep(60_000) => println!("unexpected: {slept:?}"),
        () = tokio::time::sleep(Duration::from_millis(100)) => println!("that takes too long for me"),
    }
    let cancelled = tokio::task::spawn_blocking(move || cancelled.recv()).await.expect("nothing panics");
    println!("the worker has stopped sleeping, cancelled: {}", cancelled.expect("it was running"));

    // A blocking form would stall this runtime, so it returns an error instead.
    match g.call.square(9) & FG {
        Err(error @ Error::BlockingInAsync { .. }) => println!("{error}"),
        other => println!("unexpected: {other:?}"),
    }

    g.stop_async().await?;
    worker.stop_async().await
}

/// Reports when a callback ends, and whether it was cancelled.
struct DropGuard(Context, Sender<bool>);

impl Drop for DropGuard {
    fn drop(&mut self) {
        let _ = self.1.send(self.0.is_cancelled());
    }
}
