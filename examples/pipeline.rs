//! A callback that makes a call: the front asks the editor, and the editor asks the counter.
//!
//! The editor and the counter do not know how long the front waits. Calls that a callback makes through
//! `ctx.call` get what is left of its own time, and end with it.

use std::{
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use daffi::{Context, FG, Global, fetcher};

#[fetcher]
trait Editor {
    fn summary(text: &str) -> String;
}

#[fetcher]
trait Counter {
    fn count(text: &str) -> usize;
}

/// Runs on the editor.
fn summary(ctx: &Context, text: String) -> daffi::Result<String> {
    thread::sleep(Duration::from_millis(1100)); // reading takes time
    let count = (ctx.call.count(&text) & FG)?;
    Ok(format!("{count} words"))
}

fn main() -> daffi::Result<()> {
    // Three nodes in one process, so that there is only one program to start. Plain functions and closures
    // are registered on one node each; `#[callback]` would offer them on all nodes of the process.
    let front = Global::builder().process_name("front").init_controller(true).host("localhost").start()?;
    let controller = front.address();

    let editor = Global::builder()
        .process_name("editor")
        .address(controller.clone())
        .try_callback("summary", summary)
        .start()?;

    // The counter takes as long as it is allowed to.
    let (reports_in, reports) = channel();
    let counter = Global::builder()
        .process_name("counter")
        .address(controller.clone())
        .callback("count", move |ctx: &Context, text: String| {
            let left = ctx.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let words = text.split_whitespace().count();
            if words > 3 {
                // A long text: works until nobody is waiting any more.
                while !ctx.is_cancelled() {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            // Fails only if `main` has already returned.
            let _ = reports_in.send((ctx.caller().to_owned(), left));
            words
        })
        .start()?;

    let answer = (front.call.summary("to be continued") & FG.timeout(Duration::from_secs(3)))?;
    println!("front: the answer is {answer:?}");
    let (caller, left) = reports.recv().expect("the counter has run");
    println!("counter: {caller} asked me");
    println!(
        "counter: of the front's 3 s less than 2 s were left: {}",
        left.is_some_and(|left| left < Duration::from_secs(2))
    );

    // This time the counter takes too long. It has no timeout of its own, yet it stops.
    let late = front.call.summary("to be or not to be") & FG.timeout(Duration::from_secs(2));
    match late {
        Err(error) => println!("front: {error}"),
        Ok(answer) => println!("front: unexpected: {answer}"),
    }
    let (caller, _) = reports.recv().expect("the counter has run");
    println!("counter: nobody waits any more, {caller} neither; I have stopped working");

    counter.stop()?;
    editor.stop()?;
    front.stop()
}
