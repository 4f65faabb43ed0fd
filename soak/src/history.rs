//! Whether what callers were told is what callees did.
//!
//! Calls are kept by window: the time between two moments at which everything is quiet. A window is judged when it is
//! closed, and kept for two more, so that what happens too late is seen; memory does not grow with the run.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::record::{Class, NAMES, Record, UNEXPECTED, Way, is_nested, window_of};

/// How many windows are kept: the current one, and closed ones in which something might still happen.
const WINDOWS: usize = 3;
/// How many violations are kept with their text; all are counted.
const VIOLATIONS_MAX: usize = 50;

/// All calls of the last windows.
#[derive(Debug, Default)]
pub struct History {
    windows: VecDeque<Window>,
    /// Tasks of which nobody knows whether the controller has them: they may go on.
    adrift: HashSet<u64>,
    /// Children that were killed. Nobody has to tell their calls' outcomes.
    dead: HashSet<u16>,
    /// What was told how often, by [`NAMES`].
    pub outcomes: [u64; NAMES.len()],
    /// How many calls were made, by [`Way`].
    pub calls: [u64; 5],
    /// How many callbacks began.
    pub runs: u64,
    /// What should never be, in words.
    pub violations: Vec<String>,
    /// How often something was that should never be.
    pub violated: u64,
}

#[derive(Debug, Default)]
struct Window {
    number: u16,
    closed: bool,
    calls: HashMap<u64, Call>,
    tasks: BTreeMap<u64, Task>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Call {
    way: Option<Way>,
    caller: u16,
    class: Option<Class>,
    code: u8,
    /// It ran twice on one node.
    twice: bool,
    runs: u16,
    /// A bit for each node on which it ran, and for each of which the caller was told something, by what it was.
    ran: u32,
    entries: u32,
    good: u32,
    refused: u32,
    /// It has been complained about.
    blamed: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Task {
    period: u64,
    runs: u64,
    first: u64,
    last: u64,
    /// When its end was acknowledged, if it was.
    ended: Option<u64>,
}

impl History {
    /// A child tells something.
    pub fn take(&mut self, serial: u16, record: Record) {
        match record {
            Record::Invoke { id, way: Way::Task, value } => {
                self.calls[Way::Task as usize] += 1;
                if let Some(window) = self.window(id) {
                    let task = window.tasks.entry(id).or_default();
                    task.period = value;
                    // Another child may have told of its first runs already.
                    task.runs += window.calls.remove(&id).map_or(0, |call| u64::from(call.runs));
                }
            }
            Record::Invoke { id, way, .. } => {
                self.calls[way as usize] += 1;
                self.change(id, |call| {
                    call.way = Some(way);
                    call.caller = serial;
                });
            }
            Record::Run { id, node, at } => self.run(id, node, at),
            Record::Entry { id, node, class, code } => {
                self.outcomes[usize::from(code)] += 1;
                self.change(id, |call| {
                    let bit = 1 << node;
                    call.entries |= bit;
                    call.good |= if class == Class::Good { bit } else { 0 };
                    call.refused |= if class == Class::Refused { bit } else { 0 };
                    if class == Class::Wrong || code == UNEXPECTED {
                        (call.class, call.code) = (Some(Class::Wrong), code);
                    }
                });
            }
            Record::Outcome { id, class, code, at } => {
                self.outcomes[usize::from(code)] += 1;
                if self.window(id).is_some_and(|window| window.tasks.contains_key(&id)) {
                    return self.task_over(id, class, at);
                }
                let again = self.change(id, |call| {
                    let again = call.class.is_some_and(|class| class != Class::Wrong);
                    if call.class.is_none() {
                        (call.class, call.code) = (Some(class), code);
                    }
                    again
                });
                if again == Some(true) {
                    self.blame(format!("{} was told two outcomes", name(id)));
                }
            }
            Record::Ready | Record::Mark { .. } | Record::Quiet { .. } | Record::Probed { .. } => {}
        }
    }

    /// This child was killed, and all it had told has been taken.
    pub fn died(&mut self, serial: u16) {
        self.dead.insert(serial);
    }

    /// All is quiet, and everything told: judges the calls of this window.
    pub fn close(&mut self, number: u16) {
        let mut verdicts = Vec::new();
        for window in self.windows.iter_mut().filter(|window| window.number <= number) {
            // What a callback calls onwards may outlast the call that it is nested in, but not for a whole window.
            let grown = window.closed;
            window.closed = true;
            for (id, call) in &mut window.calls {
                let patient = is_nested(*id) && !grown;
                if let Some(verdict) = judge(call, &self.dead, patient)
                    && !std::mem::replace(&mut call.blamed, true)
                {
                    verdicts.push(format!("{}: {verdict} ({call:?})", name(*id)));
                }
            }
        }
        verdicts.into_iter().for_each(|verdict| self.blame(verdict));
        while self.windows.len() >= WINDOWS {
            self.windows.pop_front();
        }
    }

    /// How many calls are kept.
    pub fn kept(&self) -> usize {
        self.windows.iter().map(|window| window.calls.len()).sum()
    }

    /// The calls of this window that wait for their outcome, for whoever wonders why it is not quiet.
    pub fn waiting(&self, number: u16) -> Vec<String> {
        let window = self.windows.iter().find(|window| window.number == number);
        let calls = window.into_iter().flat_map(|window| &window.calls);
        let waits = calls.filter(|(_, call)| call.class.is_none() && !self.dead.contains(&call.caller));
        waits.map(|(id, call)| format!("{} {call:?}", name(*id))).collect()
    }

    /// Something is wrong.
    pub fn blame(&mut self, what: String) {
        self.violated += 1;
        if self.violations.len() < VIOLATIONS_MAX {
            eprintln!("VIOLATION: {what}");
            self.violations.push(what);
        }
    }

    fn run(&mut self, id: u64, node: u32, at: u64) {
        self.runs += 1;
        let Some(window) = self.window(id) else {
            if !self.adrift.contains(&id) {
                self.blame(format!("{} ran long after it was over", name(id)));
            }
            return;
        };
        if let Some(task) = window.tasks.get_mut(&id) {
            task.runs += 1;
            task.first = if task.first == 0 { at } else { task.first.min(at) };
            task.last = task.last.max(at);
            if window.closed && task.ended.is_some() {
                let task = *task;
                self.blame(format!(
                    "{} is a task that ran after its end was acknowledged ({task:?})",
                    name(id)
                ));
            }
            return;
        }
        let closed = window.closed;
        let call = window.calls.entry(id).or_default();
        call.runs += 1;
        call.twice |= call.ran & (1 << node) != 0;
        call.ran |= 1 << node;
        // A window that is closed is not judged again.
        if closed && !call.blamed {
            let call = *call;
            if let Some(verdict) = judge(&call, &self.dead, true) {
                self.blame(format!("{} ran late: {verdict} ({call:?})", name(id)));
            }
        }
    }

    fn task_over(&mut self, id: u64, class: Class, at: u64) {
        let Some(window) = self.window(id) else { return };
        let Some(task) = window.tasks.get_mut(&id) else { return };
        if class == Class::Doubt {
            self.adrift.insert(id);
            return;
        }
        task.ended = Some(at);
        let task = *task;
        // One at each end, and none that makes up for another one.
        let most = task.last.saturating_sub(task.first) / task.period.max(1) + 2;
        if class == Class::Refused && task.runs > 0 {
            self.blame(format!("{} is a task that was refused and ran ({task:?})", name(id)));
        } else if task.runs > most + most / 5 {
            self.blame(format!("{} is a task that ran more than {most} times ({task:?})", name(id)));
        }
    }

    fn change<T>(&mut self, id: u64, how: impl FnOnce(&mut Call) -> T) -> Option<T> {
        let window = self.window(id)?;
        Some(how(window.calls.entry(id).or_default()))
    }

    /// The window in which the call was made, unless it is forgotten.
    fn window(&mut self, id: u64) -> Option<&mut Window> {
        let number = window_of(id);
        if self.windows.back().is_none_or(|last| last.number < number) {
            self.windows.push_back(Window { number, ..Window::default() });
        }
        self.windows.iter_mut().rev().find(|window| window.number == number)
    }
}

/// What is wrong with a call whose time is over. Patience is for what may still be told.
fn judge(call: &Call, dead: &HashSet<u16>, patient: bool) -> Option<&'static str> {
    let Some(way) = call.way else { return Some("it ran, and nobody had called it") };
    if call.twice {
        return Some("it ran twice on one node");
    }
    let many = matches!(way, Way::Broadcast | Way::BlindBroadcast);
    if !many && call.runs > 1 {
        return Some("it ran more than once");
    }
    let Some(class) = call.class else {
        return (!patient && !dead.contains(&call.caller)).then_some("it has no outcome");
    };
    if call.code == UNEXPECTED {
        return Some("it failed for no reason that there was");
    }
    let ran = call.runs > 0;
    match (way, class) {
        (_, Class::Wrong) => Some("it was given the value of another call"),
        (_, Class::Refused) if ran => Some("it ran, although it was refused"),
        (Way::Call, Class::Good | Class::Failed) if !ran => Some("it was answered, and did not run"),
        (Way::Broadcast, Class::Good) if call.ran & !call.entries != 0 => {
            Some("it ran on a node of which nothing was told")
        }
        (Way::Broadcast, Class::Good) if call.good & !call.ran != 0 => {
            Some("a node answered on which it did not run")
        }
        (Way::Broadcast, Class::Good) if call.refused & call.ran != 0 => {
            Some("a node refused it on which it ran")
        }
        _ => None,
    }
}

fn name(id: u64) -> String {
    let nested = if is_nested(id) { ", nested" } else { "" };
    format!("call {id:#018x} (window {}{nested})", window_of(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{self, nested};

    const CALLER: u16 = 3;
    const ID: u64 = (CALLER as u64) << 48 | 1 << 32 | 7;

    fn invoke(way: Way) -> Record {
        Record::Invoke { id: ID, way, value: 10 }
    }

    fn run(node: u32) -> Record {
        Record::Run { id: ID, node, at: 1000 }
    }

    fn outcome(class: Class) -> Record {
        Record::Outcome { id: ID, class, code: 0, at: 2000 }
    }

    fn entry(node: u32, class: Class) -> Record {
        Record::Entry { id: ID, node, class, code: 0 }
    }

    fn of(records: &[Record]) -> History {
        let mut history = History::default();
        for record in records {
            history.take(CALLER, *record);
        }
        history.close(1);
        history
    }

    #[track_caller]
    fn good(records: &[Record]) {
        assert_eq!(of(records).violations, Vec::<String>::new());
    }

    #[track_caller]
    fn bad(records: &[Record], why: &str) {
        let violations = of(records).violations;
        assert!(violations.len() == 1 && violations[0].contains(why), "{violations:?}");
    }

    #[test]
    fn an_id_tells_its_window() {
        assert_eq!(record::id(CALLER, 1, 7), ID);
        assert_eq!(window_of(nested(ID)), 1);
    }

    #[test]
    fn what_is_right_is_right() {
        use Class::*;
        good(&[invoke(Way::Call), run(0), outcome(Good)]);
        // Pipes are read one by one.
        good(&[run(0), outcome(Good), invoke(Way::Call)]);
        good(&[invoke(Way::Call), run(0), outcome(Failed)]);
        good(&[invoke(Way::Call), run(0), outcome(Doubt)]);
        good(&[invoke(Way::Call), outcome(Doubt)]);
        good(&[invoke(Way::Call), outcome(Refused)]);
        good(&[invoke(Way::NoReturn), outcome(Good)]);
        good(&[invoke(Way::NoReturn), outcome(Good), run(4)]);
        good(&[invoke(Way::Broadcast), run(0), run(1), entry(0, Good), entry(1, Doubt), outcome(Good)]);
        good(&[invoke(Way::BlindBroadcast), run(0), run(1), outcome(Good)]);
        good(&[invoke(Way::Task), run(0), run(0), outcome(Good)]);
    }

    #[test]
    fn each_kind_of_wrong_is_found() {
        use Class::*;
        bad(&[invoke(Way::Call), run(0), run(1), outcome(Good)], "more than once");
        bad(&[invoke(Way::Call), run(0), run(0), outcome(Good)], "twice on one node");
        bad(&[invoke(Way::NoReturn), run(0), run(0), outcome(Good)], "twice on one node");
        bad(&[invoke(Way::Call), run(0), outcome(Wrong)], "value of another");
        bad(&[invoke(Way::Call), run(0), outcome(Refused)], "although it was refused");
        bad(&[invoke(Way::Call), outcome(Good)], "did not run");
        bad(&[invoke(Way::Call), run(0)], "no outcome");
        bad(&[run(0)], "nobody had called");
        bad(&[invoke(Way::Call), run(0), outcome(Good), outcome(Good)], "two outcomes");
        bad(&[invoke(Way::Broadcast), run(0), run(0), entry(0, Good), outcome(Good)], "twice on one node");
        bad(&[invoke(Way::Broadcast), run(0), run(1), entry(0, Good), outcome(Good)], "nothing was told");
        bad(&[invoke(Way::Broadcast), entry(0, Good), outcome(Good)], "did not run");
        bad(
            &[invoke(Way::Broadcast), run(0), entry(0, Refused), outcome(Good)],
            "refused it on which it ran",
        );
        let unexpected = Record::Outcome { id: ID, class: Refused, code: UNEXPECTED, at: 0 };
        bad(&[invoke(Way::Call), unexpected], "for no reason");
    }

    #[test]
    fn a_task_that_catches_up_is_found() {
        let mut records = vec![invoke(Way::Task)];
        records.extend((0..20).map(|at| Record::Run { id: ID, node: 0, at: 1000 + at }));
        records.push(outcome(Class::Good));
        bad(&records, "more than 3 times");
    }

    #[test]
    fn the_dead_need_not_tell_outcomes() {
        let mut history = History::default();
        history.take(CALLER, invoke(Way::Call));
        history.died(CALLER);
        history.close(1);
        assert_eq!(history.violations, Vec::<String>::new());
    }

    #[test]
    fn what_comes_too_late_is_found() {
        let mut late = of(&[invoke(Way::Call), outcome(Class::Refused)]);
        late.take(CALLER, run(0));
        assert_eq!(late.violated, 1, "{:?}", late.violations);

        let mut twice = of(&[invoke(Way::Call), run(0), outcome(Class::Good)]);
        twice.take(CALLER, run(1));
        assert_eq!(twice.violated, 1, "{:?}", twice.violations);

        let mut task = of(&[invoke(Way::Task), run(0), outcome(Class::Good)]);
        task.take(CALLER, run(0));
        assert_eq!(task.violated, 1, "{:?}", task.violations);

        let mut doubt = of(&[invoke(Way::Call), outcome(Class::Doubt)]);
        doubt.take(CALLER, run(0));
        assert_eq!(doubt.violations, Vec::<String>::new());
        // Windows later it is forgotten, and cannot run any more.
        for window in 2..6 {
            let other = record::id(CALLER, window, 0);
            doubt.take(CALLER, Record::Invoke { id: other, way: Way::NoReturn, value: 0 });
            doubt.take(CALLER, Record::Outcome { id: other, class: Class::Good, code: 0, at: 0 });
            doubt.close(window);
        }
        doubt.take(CALLER, run(0));
        assert_eq!(doubt.violated, 1, "{:?}", doubt.violations);
        assert!(doubt.kept() <= WINDOWS);
    }

    #[test]
    fn a_nested_call_has_a_window_more() {
        let mut history = History::default();
        history.take(CALLER, Record::Invoke { id: nested(ID), way: Way::Call, value: 0 });
        history.close(1);
        assert_eq!(history.violations, Vec::<String>::new());
        history.close(2);
        assert_eq!(history.violated, 1);
    }
}
