//! Calls at certain times. The controller keeps the schedule, so it goes on without whoever set it up.

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

    // Every 100 ms, the first time after 100 ms. A call that would begin while the one before runs is skipped.
    let task = (app.call.tick("period") & PERIOD.period(Duration::from_millis(100)))?;
    for number in 1..=3 {
        println!("{} {number}", ticks.recv().expect("the clock runs"));
    }
    task.cancel()?;
    let status = task.status()?;
    println!("it is {:?}; failures: {}, skipped: {}", status.state, status.failures, status.skipped);
    // What was on its way when it was cancelled.
    while ticks.recv_timeout(Duration::from_millis(200)).is_ok() {}

    // At certain times, in UTC: one `SystemTime` or any number of them.
    let soon = SystemTime::now() + Duration::from_millis(300);
    let task = (app.call.tick("at time") & PERIOD.at_time([soon, soon + Duration::from_millis(200)]))?;
    println!("next in {:?}", task.status()?.next_in.expect("both times are still to come"));
    // The schedule is the controller's: it does not need this process any more.
    app.stop()?;
    for number in 1..=2 {
        println!("{} {number}", ticks.recv().expect("the clock runs"));
    }

    // A time that has passed is an error at once.
    let past = SystemTime::now() - Duration::from_secs(60);
    let other = Global::builder().process_name("other").address(clock.address().clone()).start()?;
    match other.call.tick("never") & PERIOD.at_time(past) {
        Err(error) => println!("{error}"),
        Ok(_) => println!("unexpected"),
    }

    // A single call later does not need a schedule: `eta` waits here and then sends.
    let later = other.call.tick("eta") & BG.eta(Duration::from_millis(200));
    println!("sent already: {}", later.is_ready());
    later.get()?;
    println!("{}", ticks.recv().expect("the clock runs"));

    other.stop()?;
    clock.stop()
}
