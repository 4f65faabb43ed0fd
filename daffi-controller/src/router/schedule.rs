//! When scheduled tasks are due. Pure: time comes in as an argument, and making the calls is left to others.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant, SystemTime},
};

use daffi_core::{
    answer::{TaskState, TaskStatus},
    limits::{AT_TIMES_MAX, CATCH_UP_MAX, PERIOD_MIN},
};

use super::Now;

/// The times of all tasks, each with a `T` that says what to do then.
#[derive(Debug)]
pub(super) struct Timetable<T> {
    tasks: HashMap<u64, Task<T>, foldhash::fast::RandomState>,
    due: BTreeSet<(Instant, u64)>,
    /// How finished tasks ended, for the last [`REMEMBERED_MAX`] of them.
    over: HashMap<u64, TaskStatus, foldhash::fast::RandomState>,
    over_order: VecDeque<u64>,
    last_id: u64,
}

#[derive(Debug)]
pub(super) struct Task<T> {
    pub(super) what: T,
    timing: Timing,
    /// When to look at it next, as in the queue.
    next: Option<Instant>,
    /// How many of its calls are in flight.
    running: usize,
    runs: u64,
    failures: u64,
    skipped: u64,
    last_error: String,
}

/// When a task is due.
#[derive(Debug)]
pub(super) enum Timing {
    /// At `next` and then once every period.
    Period { period_us: u64, next: Instant },
    /// At these times, soonest first, in microseconds since 1970 UTC.
    At(VecDeque<u64>),
}

/// A task whose time has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// It must be called.
    Call(u64),
    /// Its time came while the previous call was still running, or passed too long ago.
    Skipped,
}

/// How many finished tasks can still be asked about.
const REMEMBERED_MAX: usize = 1000;
/// The longest sleep before a time of day, so that a change of the clock is noticed within this time.
const SLICE: Duration = Duration::from_secs(30);
/// How far in the past a time may be, because two machines' clocks differ and a request takes a moment.
const PAST_MAX: Duration = Duration::from_secs(1);
/// The longest period, a thousand years: anything longer is a mistake, and adding it to a time may overflow.
const PERIOD_MAX: Duration = Duration::from_secs(1000 * 365 * 24 * 3600);

impl Timing {
    /// Every `period_us` from now on, starting after one period.
    ///
    /// # Errors
    /// A sentence about what is wrong with it.
    pub(super) fn period(period_us: u64, now: Now) -> Result<Self, String> {
        let period = Duration::from_micros(period_us);
        if period < PERIOD_MIN {
            return Err(format!(
                "a period of {period:?} is shorter than {PERIOD_MIN:?}, the shortest there is"
            ));
        }
        match now.mono.checked_add(period).filter(|_| period <= PERIOD_MAX) {
            Some(next) => Ok(Self::Period { period_us, next }),
            None => Err("a period of more than 1000 years never comes round".to_owned()),
        }
    }

    /// At each of `times`.
    ///
    /// # Errors
    /// A sentence about what is wrong with them.
    pub(super) fn at(times: impl Iterator<Item = u64>, now: Now) -> Result<Self, String> {
        let mut times: Vec<u64> = times.take(AT_TIMES_MAX + 1).collect();
        if times.is_empty() {
            return Err("at_time needs at least one time".to_owned());
        }
        if times.len() > AT_TIMES_MAX {
            return Err(format!("at_time takes at most {AT_TIMES_MAX} times"));
        }
        times.sort_unstable();
        let wall = micros(now.wall);
        let late = wall.saturating_sub(times[0]);
        if late > PAST_MAX.as_micros() as u64 {
            let late = Duration::from_millis(late / 1000);
            return Err(format!("a time to call at is {late:?} in the past, by the controller's clock"));
        }
        Ok(Self::At(times.into()))
    }

    /// Returns when to look at it next; `None` if never again.
    fn next(&self, now: Now) -> Option<Instant> {
        match self {
            Self::Period { next, .. } => Some(*next),
            Self::At(times) => {
                let wait = times.front()?.saturating_sub(micros(now.wall));
                Some(now.mono + Duration::from_micros(wait).min(SLICE))
            }
        }
    }
}

impl<T> Default for Timetable<T> {
    fn default() -> Self {
        Self {
            tasks: HashMap::default(),
            due: BTreeSet::new(),
            over: HashMap::default(),
            over_order: VecDeque::new(),
            last_id: 0,
        }
    }
}

impl<T> Timetable<T> {
    /// Creates an empty one whose ids begin after `seed`, so that a handle to a task of an earlier controller
    /// finds nothing here rather than another task. They stay below 2^53, where JSON numbers are exact.
    pub(super) fn new(seed: u64) -> Self {
        Self { last_id: (seed & u64::from(u32::MAX)) << 16, ..Self::default() }
    }

    /// Adds a task and returns its id.
    pub(super) fn insert(&mut self, what: T, timing: Timing, now: Now) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        let mut task = Task {
            what,
            timing,
            next: None,
            running: 0,
            runs: 0,
            failures: 0,
            skipped: 0,
            last_error: String::new(),
        };
        task.next = task.timing.next(now);
        self.due.extend(task.next.map(|next| (next, id)));
        self.tasks.insert(id, task);
        id
    }

    /// Stops a task: no more of its calls start. Returns whether there is, or recently was, such a task.
    pub(super) fn cancel(&mut self, id: u64) -> bool {
        if let Some(task) = self.tasks.remove(&id) {
            if let Some(next) = task.next {
                self.due.remove(&(next, id));
            }
            self.remember(id, task.status(TaskState::Cancelled));
            return true;
        }
        self.over.contains_key(&id)
    }

    /// Returns the next task whose time has come, or `None` when no more are due.
    pub(super) fn pop_due(&mut self, now: Now) -> Option<Due> {
        while let Some(&(at, id)) = self.due.first().filter(|(at, _)| *at <= now.mono) {
            self.due.remove(&(at, id));
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            let due = task.pass(now, id);
            task.next = task.timing.next(now);
            self.due.extend(task.next.map(|next| (next, id)));
            if due == Some(Due::Skipped) {
                // It may have been the last time, and then no call will end later.
                self.change(id, |_| ());
            }
            if due.is_some() {
                return due;
            }
        }
        None
    }

    /// When to ask again.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(super) fn get(&self, id: u64) -> Option<&Task<T>> {
        self.tasks.get(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Records that a call of the task was sent.
    pub(super) fn started(&mut self, id: u64) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.running += 1;
            task.runs += 1;
        }
    }

    /// Records that no call could be made, because there was no node to take it.
    pub(super) fn not_called(&mut self, id: u64, error: String) {
        self.change(id, |task| {
            task.skipped += 1;
            task.last_error = error;
        });
    }

    /// Records that a call could not be sent.
    pub(super) fn refused(&mut self, id: u64, error: String) {
        self.change(id, |task| {
            task.runs += 1;
            task.failures += 1;
            task.last_error = error;
        });
    }

    /// Records that a call ended, with an error if there is one.
    pub(super) fn ended(&mut self, id: u64, error: Option<String>) {
        self.change(id, |task| {
            task.running -= 1;
            if let Some(error) = error {
                task.failures += 1;
                task.last_error = error;
            }
        });
    }

    /// Returns how a task is doing, or how it ended.
    pub(super) fn status(&self, id: u64, now: Now) -> Option<TaskStatus> {
        let Some(task) = self.tasks.get(&id) else { return self.over.get(&id).cloned() };
        let next_in_us = match &task.timing {
            Timing::Period { next, .. } => Some(next.saturating_duration_since(now.mono).as_micros() as u64),
            Timing::At(times) => times.front().map(|next| next.saturating_sub(micros(now.wall))),
        };
        let state = if next_in_us.is_some() { TaskState::Active } else { TaskState::Finished };
        let mut status = task.status(state);
        status.next_in_us = next_in_us;
        Some(status)
    }

    fn change(&mut self, id: u64, change: impl FnOnce(&mut Task<T>)) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        change(task);
        if task.running == 0
            && task.next.is_none()
            && let Some(task) = self.tasks.remove(&id)
        {
            self.remember(id, task.status(TaskState::Finished));
        }
    }

    fn remember(&mut self, id: u64, status: TaskStatus) {
        self.over.insert(id, status);
        self.over_order.push_back(id);
        if self.over_order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.over_order.pop_front()
        {
            self.over.remove(&oldest);
        }
    }
}

impl<T> Task<T> {
    /// Takes the time that has come, if any: the clock may have been set back since.
    fn pass(&mut self, now: Now, id: u64) -> Option<Due> {
        match &mut self.timing {
            Timing::Period { period_us, next } => {
                // One call makes up for all that were missed while the process did not run: bursts help
                // nobody. It is the latest of them, and is made unless that is too long ago.
                let late = now.mono.saturating_duration_since(*next).as_micros() as u64;
                let missed = late / *period_us;
                // Added to the last time rather than to now, so that it never drifts.
                *next += Duration::from_micros(*period_us * (missed + 1));
                self.skipped += missed;
                if self.running > 0 || is_too_late(late % *period_us) {
                    self.skipped += 1;
                    return Some(Due::Skipped);
                }
                Some(Due::Call(id))
            }
            Timing::At(times) => {
                let first = *times.front()?;
                if first > micros(now.wall) {
                    return None;
                }
                times.pop_front();
                // Every missed time gets its call: each was asked for individually, and they may overlap.
                if is_too_late(micros(now.wall) - first) {
                    self.skipped += 1;
                    return Some(Due::Skipped);
                }
                Some(Due::Call(id))
            }
        }
    }

    fn status(&self, state: TaskState) -> TaskStatus {
        let mut status = TaskStatus::new(None);
        status.state = state;
        status.runs = self.runs;
        status.failures = self.failures;
        status.skipped = self.skipped;
        status.last_error.clone_from(&self.last_error);
        status
    }
}

/// Whether it is too late to make a call that was due this long ago.
fn is_too_late(late_us: u64) -> bool {
    late_us > CATCH_UP_MAX.as_micros() as u64
}

/// Microseconds since 1970 UTC, or 0 before that.
fn micros(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A clock that is moved by hand: monotonic and wall time.
    fn clock() -> Now {
        Now { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH + 1_000_000 * SECOND }
    }

    fn later(now: Now, by: Duration) -> Now {
        Now { mono: now.mono + by, wall: now.wall + by }
    }

    fn periodic(period: Duration, now: Now) -> (Timetable<()>, u64) {
        let mut table = Timetable::default();
        let id = table.insert((), Timing::period(period.as_micros() as u64, now).unwrap(), now);
        (table, id)
    }

    fn at(times: &[Duration], now: Now) -> Result<Timing, String> {
        Timing::at(times.iter().map(|time| micros(now.wall + *time)), now)
    }

    #[test]
    fn a_period_never_drifts() {
        let start = clock();
        let (mut table, id) = periodic(Duration::from_millis(10), start);
        let mut fired = 0;
        for n in 1..=360_000u64 {
            // Checked a little late each time, which must not add up.
            let now = later(start, Duration::from_micros(n * 10_000 + n % 9_000));
            assert_eq!(table.next(), Some(start.mono + Duration::from_millis(n * 10)));
            while table.pop_due(now) == Some(Due::Call(id)) {
                table.started(id);
                table.ended(id, None);
                fired += 1;
            }
        }
        assert_eq!(fired, 360_000);
        assert_eq!(table.status(id, start).unwrap().skipped, 0);
    }

    #[test]
    fn a_tick_whose_predecessor_runs_is_skipped_and_counted() {
        let start = clock();
        let (mut table, id) = periodic(SECOND, start);
        assert_eq!(table.pop_due(later(start, SECOND)), Some(Due::Call(id)));
        table.started(id);
        assert_eq!(table.pop_due(later(start, 2 * SECOND)), Some(Due::Skipped));
        table.ended(id, Some("no".to_owned()));
        assert_eq!(table.pop_due(later(start, 3 * SECOND)), Some(Due::Call(id)));
        let status = table.status(id, later(start, 3 * SECOND)).unwrap();
        assert_eq!((status.runs, status.skipped, status.failures), (1, 1, 1));
        assert_eq!((status.last_error.as_str(), status.next_in_us), ("no", Some(1_000_000)));
    }

    #[test]
    fn what_was_missed_becomes_one_call() {
        let start = clock();
        let (mut table, id) = periodic(SECOND, start);
        let now = later(start, Duration::from_millis(5_500));
        assert_eq!(table.pop_due(now), Some(Due::Call(id)));
        assert_eq!(table.pop_due(now), None);
        assert_eq!(table.status(id, now).unwrap().skipped, 4);
        assert_eq!(table.next(), Some(start.mono + 6 * SECOND));
    }

    #[test]
    fn what_was_missed_for_too_long_is_skipped_and_counted() {
        let hour = 3600 * SECOND;
        for (late, due) in [
            (CATCH_UP_MAX, Due::Call(1)),
            (CATCH_UP_MAX + Duration::from_micros(1), Due::Skipped),
            (hour - Duration::from_micros(1), Due::Skipped),
        ] {
            let start = clock();
            let (mut table, id) = periodic(hour, start);
            // Of three missed times, the last one counts.
            let now = later(start, 3 * hour + late);
            assert_eq!(table.pop_due(now), Some(due), "{late:?}");
            assert_eq!(table.pop_due(now), None);
            let skipped = 2 + u64::from(due == Due::Skipped);
            assert_eq!(table.status(id, now).unwrap().skipped, skipped, "{late:?}");
            // Back on schedule.
            assert_eq!(table.next(), Some(start.mono + 4 * hour));
            assert_eq!(table.pop_due(later(start, 4 * hour)), Some(Due::Call(id)));
        }
    }

    #[test]
    fn a_short_period_goes_on_at_once_however_long_it_was_missed() {
        let start = clock();
        let (mut table, id) = periodic(SECOND, start);
        let now = later(start, 7200 * SECOND);
        assert_eq!((table.pop_due(now), table.pop_due(now)), (Some(Due::Call(id)), None));
        assert_eq!(table.status(id, now).unwrap().skipped, 7199);
    }

    #[test]
    fn times_that_passed_too_long_ago_are_skipped_and_counted() {
        let start = clock();
        let mut table = Timetable::default();
        let id = table.insert((), at(&[SECOND, 2 * SECOND, 3 * SECOND], start).unwrap(), start);
        // The first is a second too late, the second just in time.
        let now = later(start, CATCH_UP_MAX + 2 * SECOND);
        assert_eq!(table.pop_due(now), Some(Due::Skipped));
        for _ in 0..2 {
            assert_eq!(table.pop_due(now), Some(Due::Call(id)));
            table.started(id);
        }
        assert_eq!(table.pop_due(now), None);
        let status = table.status(id, now).unwrap();
        assert_eq!((status.runs, status.skipped, status.state), (2, 1, TaskState::Finished));
        table.ended(id, None);
        table.ended(id, None);
        assert_eq!(table.len(), 0);
        // It is also over if no call was made.
        let id = table.insert((), at(&[SECOND], start).unwrap(), start);
        assert_eq!(table.pop_due(now), Some(Due::Skipped));
        assert_eq!((table.len(), table.next()), (0, None));
        let status = table.status(id, now).unwrap();
        assert_eq!((status.runs, status.skipped, status.state), (0, 1, TaskState::Finished));
    }

    #[test]
    fn times_of_day_follow_the_clock_of_the_day() {
        let start = clock();
        let mut table = Timetable::default();
        let id = table.insert((), at(&[3600 * SECOND], start).unwrap(), start);
        assert_eq!(table.next(), Some(start.mono + SLICE));
        // The clock is set back: the task is not due although the monotonic clock has passed its time.
        let now = Now { mono: start.mono + 3601 * SECOND, wall: start.wall };
        assert_eq!(table.pop_due(now), None);
        // The clock is set forward: the task is due at the next look.
        let now = Now { mono: now.mono + SLICE, wall: start.wall + 3600 * SECOND };
        assert_eq!(table.pop_due(now), Some(Due::Call(id)));
    }

    #[test]
    fn times_may_overlap_and_a_task_finishes_with_its_last_call() {
        let start = clock();
        let mut table = Timetable::default();
        let id = table.insert((), at(&[SECOND, SECOND, 2 * SECOND], start).unwrap(), start);
        let now = later(start, 2 * SECOND);
        for _ in 0..3 {
            assert_eq!(table.pop_due(now), Some(Due::Call(id)));
            table.started(id);
        }
        assert_eq!((table.pop_due(now), table.next()), (None, None));
        for _ in 0..3 {
            table.ended(id, None);
        }
        assert_eq!(table.len(), 0);
        let status = table.status(id, now).unwrap();
        assert_eq!((status.state, status.runs), (TaskState::Finished, 3));
    }

    #[test]
    fn nothing_is_due_after_a_cancellation() {
        let start = clock();
        let (mut table, id) = periodic(SECOND, start);
        assert!(table.cancel(id));
        assert_eq!((table.pop_due(later(start, 9 * SECOND)), table.next()), (None, None));
        assert_eq!(table.status(id, start).unwrap().state, TaskState::Cancelled);
        assert!(table.cancel(id), "it is cancelled already, which is what was wanted");
        assert!(!table.cancel(id + 1));
        for _ in 0..REMEMBERED_MAX {
            let id = table.insert((), Timing::period(1_000_000, start).unwrap(), start);
            table.cancel(id);
        }
        assert_eq!(table.status(id, start), None, "only so many are remembered");
        assert_eq!(table.over.len(), REMEMBERED_MAX);
    }

    #[test]
    fn times_that_never_come_are_refused() {
        let now = clock();
        for (timing, words) in [
            (Timing::period(0, now), "shorter than"),
            (Timing::period(u64::MAX, now), "1000 years"),
            (Timing::at([].into_iter(), now), "at least one"),
            (Timing::at((0..1001).map(|_| u64::MAX), now), "at most 1000"),
            (Timing::at([micros(now.wall) - 1_000_001].into_iter(), now), "in the past"),
        ] {
            assert!(timing.unwrap_err().contains(words), "{words}");
        }
        let soon = Timing::at([micros(now.wall) - 999_999, u64::MAX].into_iter(), now).unwrap();
        let mut table = Timetable::default();
        let id = table.insert((), soon, now);
        assert_eq!(table.pop_due(now), Some(Due::Call(id)), "a time just past is due at once");
        assert_eq!(table.pop_due(now), None);
    }
}
