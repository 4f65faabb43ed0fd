//! What callers asked for, what they were told, and what ran.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use daffi::{Error, Result};

use crate::network::HostId;

/// The number of a call, which it carries in its arguments.
pub(crate) type Nonce = u64;

/// Set in the numbers of scheduled tasks, which run more than once.
const TASK: Nonce = 1 << 62;

/// Set in the numbers of calls that their node sends later than the call was made.
const LATER: Nonce = 1 << 61;

/// Whether a call has a place in the order of the calls that its node makes.
pub(crate) fn is_ordered(nonce: Nonce) -> bool {
    nonce & (TASK | LATER) == 0
}

/// Whether this is the number of a scheduled task.
pub(crate) fn is_task(nonce: Nonce) -> bool {
    nonce & TASK != 0
}

/// A callback's result: the number of its call, the process it ran in, and as much text as was asked for.
pub(crate) type Out = (u64, u64, String);

/// The byte that a call's text consists of.
fn text_byte(nonce: Nonce) -> u8 {
    b'a' + (nonce % 26) as u8
}

/// Returns text for this call.
pub(crate) fn text_of(nonce: Nonce, bytes: usize) -> String {
    char::from(text_byte(nonce)).to_string().repeat(bytes)
}

fn is_text_of(nonce: Nonce, text: &str, bytes: usize) -> bool {
    text.len() == bytes && text.bytes().all(|byte| byte == text_byte(nonce))
}

/// What happened at the users' end.
#[derive(Debug, Default)]
pub(crate) struct History {
    last: u64,
    pub(crate) calls: BTreeMap<Nonce, Call>,
    pub(crate) tasks: BTreeMap<Nonce, Task>,
    /// Where and when each call ran.
    pub(crate) runs: BTreeMap<Nonce, Vec<(HostId, Duration)>>,
    /// The order in which calls ran in callbacks that keep it.
    pub(crate) serial: BTreeMap<HostId, Vec<Nonce>>,
    pub(crate) violations: Vec<String>,
}

/// What kind of call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One callee, one outcome.
    Call,
    /// One callee, no outcome.
    OneWay,
    /// All callees, no results.
    Broadcast,
    /// All callees, a result each.
    Results,
}

/// A call.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) caller: HostId,
    pub(crate) kind: Kind,
    /// How deeply it is nested; 1 for a call that no callback made.
    pub(crate) depth: usize,
    /// The outermost call that it is nested in, or its own number.
    pub(crate) outermost: Nonce,
    /// Whether its node is to call itself.
    pub(crate) to_self: bool,
    pub(crate) began: Duration,
    pub(crate) deadline: Option<Duration>,
    pub(crate) ended: Option<(Duration, Ended)>,
    /// Whether the caller has dropped what would tell it the outcome.
    pub(crate) abandoned: bool,
    /// How many bytes of text are sent, and how many are to come back.
    text: Text,
}

/// How much text goes with a call.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Text {
    pub(crate) there: usize,
    pub(crate) back: usize,
}

/// What a caller was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It ran in this process.
    Value(HostId),
    /// It did not run.
    NotRun(String),
    /// It may have run.
    Unknown(String),
    /// By node.
    Entries(BTreeMap<String, Self>),
}

/// A scheduled task.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) period: Duration,
    /// Whether the callback it calls runs as soon as a call arrives.
    pub(crate) at_once: bool,
    text: Text,
    pub(crate) began: Duration,
    /// From when to when it certainly existed.
    pub(crate) there: Option<(Duration, Duration)>,
    /// When the caller knew that it had been cancelled.
    pub(crate) cancelled: Option<Duration>,
    /// How many calls it made and how many it skipped, by its own count.
    pub(crate) counted: Option<(u64, u64)>,
}

impl History {
    /// Begins a call.
    pub(crate) fn begin(
        &mut self,
        caller: HostId,
        kind: Kind,
        now: Duration,
        timeout: Option<Duration>,
    ) -> Nonce {
        self.last += 1;
        let deadline = timeout.map(|timeout| now + timeout);
        let call = Call {
            caller,
            kind,
            depth: 1,
            outermost: self.last,
            to_self: false,
            began: now,
            deadline,
            ended: None,
            abandoned: false,
            text: Text::default(),
        };
        self.calls.insert(self.last, call);
        self.last
    }

    /// Begins a call made by a callback that runs for the call `within`.
    pub(crate) fn begin_nested(
        &mut self,
        caller: HostId,
        within: Nonce,
        now: Duration,
        timeout: Option<Duration>,
        to_self: bool,
    ) -> Nonce {
        let nonce = self.begin(caller, Kind::Call, now, timeout);
        let (depth, outermost) =
            self.calls.get(&within).map_or((1, within), |call| (call.depth, call.outermost));
        if let Some(call) = self.calls.get_mut(&nonce) {
            (call.depth, call.outermost, call.to_self) = (depth + 1, outermost, to_self);
        }
        nonce
    }

    /// Begins a call that is to be sent later.
    pub(crate) fn begin_later(
        &mut self,
        caller: HostId,
        kind: Kind,
        now: Duration,
        timeout: Option<Duration>,
    ) -> Nonce {
        let nonce = self.begin(caller, kind, now, timeout);
        if let Some(mut call) = self.calls.remove(&nonce) {
            call.outermost = nonce | LATER;
            self.calls.insert(nonce | LATER, call);
        }
        nonce | LATER
    }

    /// Records how much text goes with this call or task.
    pub(crate) fn carries(&mut self, nonce: Nonce, text: Text) {
        if let Some(call) = self.calls.get_mut(&nonce) {
            call.text = text;
        }
        if let Some(task) = self.tasks.get_mut(&nonce) {
            task.text = text;
        }
    }

    fn text(&self, nonce: Nonce) -> Option<Text> {
        let of_call = self.calls.get(&nonce).map(|call| call.text);
        of_call.or_else(|| self.tasks.get(&nonce).map(|task| task.text))
    }

    /// Checks the text that a callback got with a call.
    pub(crate) fn brought(&mut self, nonce: Nonce, text: &str) {
        if self.text(nonce).is_none_or(|sent| !is_text_of(nonce, text, sent.there)) {
            self.violations.push(format!("I3: {nonce:#x} came with other bytes than it was sent with"));
        }
    }

    /// Begins a task that is about to be scheduled.
    pub(crate) fn begin_task(&mut self, period: Duration, now: Duration) -> Nonce {
        self.last += 1;
        let nonce = self.last | TASK;
        let (at_once, text) = (false, Text::default());
        let task = Task { period, at_once, text, began: now, there: None, cancelled: None, counted: None };
        self.tasks.insert(nonce, task);
        nonce
    }

    /// Records that a callback runs.
    pub(crate) fn ran(&mut self, nonce: Nonce, host: HostId, now: Duration, serial: bool) {
        self.runs.entry(nonce).or_default().push((host, now));
        if serial {
            self.serial.entry(host).or_default().push(nonce);
        }
    }

    /// Records the outcome of a call.
    pub(crate) fn end(&mut self, nonce: Nonce, ended: Ended, now: Duration) {
        let Some(call) = self.calls.get_mut(&nonce) else { return };
        if call.ended.replace((now, ended)).is_some() {
            self.violations.push(format!("I2: {nonce:#x} ended twice"));
        }
    }

    /// Records that the caller looks at the outcome only now.
    pub(crate) fn looks(&mut self, nonce: Nonce, now: Duration) {
        if let Some(deadline) = self.calls.get_mut(&nonce).and_then(|call| call.deadline.as_mut()) {
            *deadline = now.max(*deadline);
        }
    }

    /// Records that nobody will know how a call ended.
    pub(crate) fn abandon(&mut self, nonce: Nonce) {
        if let Some(call) = self.calls.get_mut(&nonce) {
            call.abandoned = true;
        }
    }

    /// Returns what an outcome says, once it has been checked to belong to this call.
    pub(crate) fn judge(&mut self, nonce: Nonce, result: &Result<Out>) -> Ended {
        match result {
            Ok((echo, host, text)) => {
                if self.text(nonce).is_none_or(|asked| !is_text_of(nonce, text, asked.back)) {
                    self.violations.push(format!("I3: {nonce:#x} got other bytes than its callback gave"));
                }
                if *echo != nonce {
                    self.violations.push(format!("I3: {nonce:#x} got the value of {echo:#x}"));
                }
                Ended::Value(*host as HostId)
            }
            Err(error) => Ended::of(error),
        }
    }

    /// Counts the calls by kind of outcome, for a summary.
    pub(crate) fn summary(&self) -> Summary {
        let mut summary = Summary { tasks: self.tasks.len(), ..Summary::default() };
        for (nonce, call) in &self.calls {
            summary.calls += 1;
            if self.runs.contains_key(nonce) {
                summary.deepest = summary.deepest.max(call.depth);
            }
            match &call.ended {
                Some((_, Ended::NotRun(error))) if error == "HopLimit" => summary.too_deep += 1,
                Some((_, Ended::NotRun(error))) if error == "NoCandidate" && call.to_self => {
                    summary.to_self += 1;
                }
                _ => {}
            }
            match &call.ended {
                Some((_, Ended::Value(_) | Ended::Entries(_))) => summary.values += 1,
                Some((_, Ended::NotRun(_))) => summary.not_run += 1,
                Some((_, Ended::Unknown(_))) => summary.unknown += 1,
                None => {}
            }
        }
        summary.cancelled = self.tasks.values().filter(|task| task.cancelled.is_some()).count();
        let gone = |ended: &Ended| matches!(ended, Ended::Unknown(error) if error == "RemoteStopped");
        summary.ran_unknown = (self.calls.iter())
            .filter(|(nonce, call)| {
                self.runs.contains_key(*nonce) && call.ended.as_ref().is_some_and(|(_, ended)| gone(ended))
            })
            .count();
        summary.runs = self.runs.values().map(Vec::len).sum();
        summary.errors = (self.calls.values())
            .filter_map(|call| match &call.ended {
                Some((_, Ended::NotRun(error) | Ended::Unknown(error))) => Some(error.clone()),
                _ => None,
            })
            .collect();
        summary
    }
}

impl Ended {
    pub(crate) fn of(error: &Error) -> Self {
        let what = format!("{error:?}");
        let what = what.split([' ', '(', '{']).next().unwrap_or_default().to_owned();
        if error.may_have_executed() { Self::Unknown(what) } else { Self::NotRun(what) }
    }
}

/// What happened in one run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Calls that were made.
    pub calls: usize,
    /// Calls that returned a value or, for a broadcast, one outcome per node.
    pub values: usize,
    /// Calls that were refused.
    pub not_run: usize,
    /// Calls that may have run, or that ran and failed.
    pub unknown: usize,
    /// Scheduled tasks.
    pub tasks: usize,
    /// Scheduled tasks whose cancellation was acknowledged.
    pub cancelled: usize,
    /// Of these, those cancelled within two milliseconds of a time to call.
    pub cancelled_in_time: usize,
    /// Processes that died within a step.
    pub deaths: usize,
    /// How often one machine could not reach another that could still reach it.
    pub one_way: usize,
    /// Nodes that lost their name to another node.
    pub takeovers: usize,
    /// Calls that ran although their caller was told that the callee is gone.
    pub ran_unknown: usize,
    /// How deeply the deepest call that ran was nested.
    pub deepest: usize,
    /// Calls refused for being nested too deeply.
    pub too_deep: usize,
    /// Calls of nodes to themselves that were refused.
    pub to_self: usize,
    /// How often a callback ran.
    pub runs: usize,
    /// The kinds of errors that occurred.
    pub errors: BTreeSet<String>,
}
