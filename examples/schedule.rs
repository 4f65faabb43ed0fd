//! Calls at certain times. The controller keeps the schedule, so it outlives the process that set it up.

use std::{
    sync::mpsc::channel,
    time::{Duration, SystemTime},
};

use daffi::{BG, Global, PERIOD, fetcher};

#[fetcher]
trait Clock {
    fn tick(text: &str);
}

fn main() -> daffi::Result<()> {
    let (ticks_in, ticks) = channel();
    let clock = Global::builder()
        .process_name("clock")
        .init_controller(true)
        .host("localhost")
        .callback("tick", move |text: String| {
            let _ = ticks_in.send(text);
        })
        .start()?;
    let app = Global::builder().process_name("app").address(clock.address().clone()).start()?;

    // Every 100 ms, starting after 100 ms. A call due while the previous one still runs is skipped.
    let task = (app.call.tick("period") & PERIOD.period(Duration::from_millis(100)))?;
    for number in 1..=3 {
        println!("{} {number}", ticks.recv().expect("the clock runs"));
    }
    task.cancel()?;
    let status = task.status()?;
    println!("it is {:?}; failures: {}, skipped: {}", status.state, status.failures, status.skipped);
    // Calls that were already under way when the task was cancelled.
    while ticks.recv_timeout(Duration::from_millis(200)).is_ok() {}

    // At certain times, in UTC: one `SystemTime` or any number of them.
    let soon = SystemTime::now() + Duration::from_millis(300);
    let task = (app.call.tick("at time") & PERIOD.at_time([soon, soon + Duration::from_millis(200)]))?;
    println!("next in {:?}", task.status()?.next_in.expect("both times are still to come"));
    // The schedule belongs to the controller: it no longer needs this process.
    app.stop()?;
    for number in 1..=2 {
        println!("{} {number}", ticks.recv().expect("the clock runs"));
    }

    // A time in the past is an immediate error.
    let past = SystemTime::now() - Duration::from_secs(60);
    let other = Global::builder().process_name("other").address(clock.address().clone()).start()?;
    match other.call.tick("never") & PERIOD.at_time(past) {
        Err(error) => println!("{error}"),
        Ok(_) => println!("unexpected"),
    }

    // A single delayed call needs no schedule: `eta` waits here and then sends.
    let later = other.call.tick("eta") & BG.eta(Duration::from_millis(200));
    println!("sent already: {}", later.is_ready());
    later.get()?;
    println!("{}", ticks.recv().expect("the clock runs"));

    other.stop()?;
    clock.stop()
}
