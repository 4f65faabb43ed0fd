//! What the machine provides and tests may replace: time, random numbers and threads.
//!
//! Everything with a deadline gets the time from here. Without the feature `simulation`, these are the
//! functions of the standard library under another name; with it, a thread in a simulated world asks that
//! world.

use std::{
    hash::{BuildHasher as _, RandomState},
    io, thread,
    time::{Duration, Instant, SystemTime},
};

#[cfg(feature = "simulation")]
use crate::simulation;

/// Returns the time of the monotonic clock.
#[inline]
pub fn now() -> Instant {
    #[cfg(feature = "simulation")]
    if let Some(now) = simulation::with(|world| world.now()) {
        return now;
    }
    Instant::now()
}

/// Returns the time of the wall clock.
#[inline]
pub fn wall() -> SystemTime {
    #[cfg(feature = "simulation")]
    if let Some(wall) = simulation::with(|world| world.wall()) {
        return wall;
    }
    SystemTime::now()
}

/// Returns the earliest of these times; `None` never comes.
#[inline]
pub fn earliest<const N: usize>(times: [Option<Instant>; N]) -> Option<Instant> {
    let mut first: Option<Instant> = None;
    for time in times {
        if time.is_some_and(|time| first.is_none_or(|first| time < first)) {
            first = time;
        }
    }
    first
}

/// Blocks this thread for this long.
pub fn sleep(time: Duration) {
    #[cfg(feature = "simulation")]
    if simulation::with(|world| world.sleep(time)).is_some() {
        return;
    }
    thread::sleep(time);
}

/// Returns an unpredictable number.
pub fn random() -> u64 {
    #[cfg(feature = "simulation")]
    if let Some(random) = simulation::with(|world| world.random()) {
        return random;
    }
    // The hasher's keys are the only randomness that the standard library offers.
    RandomState::new().hash_one((SystemTime::now(), std::process::id()))
}

/// Does `work` on a new thread, named `name`.
///
/// # Errors
/// The operating system provides no thread.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    #[cfg(feature = "simulation")]
    if simulation::is_on() {
        simulation::with(|world| world.spawn(Box::new(work)));
        return Ok(());
    }
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_time_is_the_first_that_comes() {
        let now = now();
        let [soon, later] = [1, 2].map(|seconds| Some(now + Duration::from_secs(seconds)));
        assert_eq!(earliest([]), None);
        assert_eq!(earliest([None, None]), None);
        assert_eq!(earliest([None, later, None]), later);
        for times in [[soon, later, None], [None, later, soon], [later, soon, soon]] {
            assert_eq!(earliest(times), soon);
        }
    }
}
