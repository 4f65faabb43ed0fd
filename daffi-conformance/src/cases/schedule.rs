use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use daffi_core::{
    answer::{TaskState, TaskStatus},
    controller::Controller,
    fault::FaultKind,
    frame::{Body, Frame, Question, Schedule, Times, Timing},
    limits::AT_TIMES_MAX,
};

use super::eventually;
use crate::{Bench, Node};

const MS: u64 = 1000;

fn schedule<'a>(timing: Timing<'a>, name: &'a str) -> Schedule<'a> {
    Schedule { timing, codec: 1, fingerprint: 0, name, node: "", body: Body::borrowed(b"[1]") }
}

fn every<'a>(period_ms: u64, name: &'a str) -> Schedule<'a> {
    schedule(Timing::Period(period_ms * MS), name)
}

/// Encodes times, given in milliseconds from now.
fn from_now(offsets_ms: &[i64]) -> Vec<u8> {
    let now =
        SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970").as_micros() as i64;
    offsets_ms.iter().flat_map(|offset| (now + offset * MS as i64).to_le_bytes()).collect()
}

fn at(encoded: &[u8]) -> Timing<'_> {
    Timing::At(Times::parse(encoded).expect("eight bytes a time"))
}

fn start(owner: &mut Node, schedule: Schedule<'_>) -> u64 {
    let id = owner.ask(Question::Schedule(schedule));
    owner.expect_answer(id)
}

fn status(owner: &mut Node, task: u64) -> TaskStatus {
    let id = owner.ask(Question::TaskStatus { task });
    owner.expect_answer(id)
}

pub(crate) fn a_period_calls_at_a_fixed_rate(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut owner = bench.node("owner", &[]);
    let began = Instant::now();
    let task = start(&mut owner, every(40, "f"));
    for count in 1..=5 {
        let request = callee.echo();
        assert!(
            began.elapsed() >= Duration::from_millis(count * 40),
            "call {count} came after {:?}",
            began.elapsed()
        );
        assert_eq!((&*request.caller, &*request.body, request.codec), ("owner", &b"[1]"[..], 1));
        assert_eq!((request.hops, request.deadline_us), (1, 0));
    }
    // The rate does not drift: even a late machine loses less than a period beyond those it skipped.
    let status = status(&mut owner, task);
    assert_eq!(status.state, TaskState::Active);
    assert!(status.runs >= 5, "{status:?}");
    assert!(status.next_in_us.is_some_and(|next| next <= 40 * MS), "{status:?}");
}

pub(crate) fn points_in_time_are_kept(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut owner = bench.node("owner", &[]);
    let began = Instant::now();
    // Out of order, as a person may write them.
    let times = from_now(&[180, 60]);
    let task = start(&mut owner, schedule(at(&times), "f"));
    for after in [60, 180] {
        callee.echo();
        // The wall clock and this one may differ by a little.
        assert!(began.elapsed() >= Duration::from_millis(after - 10), "after {:?}", began.elapsed());
    }
    eventually("the task is over", || status(&mut owner, task).state == TaskState::Finished);
    let status = status(&mut owner, task);
    assert_eq!((status.runs, status.failures, status.next_in_us), (2, 0, None));
    callee.expect_no_request();
}

pub(crate) fn a_tick_is_skipped_while_the_call_before_runs(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut owner = bench.node("owner", &[]);
    let task = start(&mut owner, every(20, "f"));
    let request = callee.expect_request();
    eventually("two ticks are skipped", || status(&mut owner, task).skipped >= 2);
    assert_eq!(status(&mut owner, task).runs, 1);
    callee.expect_no_request();
    callee.reply(&request, b"");
    callee.echo();
}

pub(crate) fn a_task_outlives_its_owner(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut owner = bench.node("owner", &[]);
    let task = start(&mut owner, every(20, "f"));
    owner.die();
    let mut other = bench.node("other", &[]);
    for _ in 0..3 {
        assert_eq!(callee.echo().caller, "owner");
    }
    assert!(status(&mut other, task).runs >= 3, "anybody may ask");
}

pub(crate) fn a_task_outlives_its_callee(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut doomed = bench.node("doomed", &["f"]);
    let mut owner = bench.node("owner", &[]);
    let task = start(&mut owner, every(20, "f"));
    doomed.expect_request();
    doomed.die();
    eventually("a tick finds nobody", || {
        let status = status(&mut owner, task);
        status.failures >= 1 && status.skipped >= 1
    });
    let mut successor = bench.node("successor", &["f"]);
    for _ in 0..2 {
        successor.echo();
    }
    assert_eq!(status(&mut owner, task).state, TaskState::Active);
}

pub(crate) fn nothing_is_called_after_a_cancel_is_acknowledged(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f", "g"]);
    let mut owner = bench.node("owner", &[]);
    let task = start(&mut owner, every(10, "f"));
    callee.echo();
    let id = owner.ask(Question::CancelTask { task });
    owner.expect_answer::<()>(id);
    callee.settle();
    while callee.request_within(Duration::ZERO).is_some() {}

    // Another task shows that the time of several ticks has passed.
    let times = from_now(&[100]);
    start(&mut owner, schedule(at(&times), "g"));
    assert_eq!(callee.echo().name, "g");
    callee.expect_no_request();
    assert_eq!(status(&mut owner, task).state, TaskState::Cancelled);
}

pub(crate) fn failures_are_counted(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut owner = bench.node("owner", &[]);
    let times = from_now(&[30]);
    let task = start(&mut owner, schedule(at(&times), "f"));
    let before = status(&mut owner, task);
    assert_eq!((before.runs, before.failures, before.state), (0, 0, TaskState::Active));
    let request = callee.expect_request();
    callee.fail(&request, "on purpose");
    eventually("the failure is counted", || status(&mut owner, task).failures == 1);
    let after = status(&mut owner, task);
    assert_eq!(after.runs, 1);
    assert!(after.last_error.contains("on purpose"), "{after:?}");
}

pub(crate) fn a_task_may_be_pinned(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut a = bench.node("a", &["f"]);
    let mut b = bench.node("b", &["f"]);
    let mut owner = bench.node("owner", &[]);
    start(&mut owner, Schedule { node: "b", ..every(10, "f") });
    for _ in 0..8 {
        b.echo();
    }
    a.expect_no_request();
}

pub(crate) fn times_that_cannot_come_are_refused(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut owner = bench.node("owner", &[]);
    let past = from_now(&[60_000, -60_000]);
    let many = from_now(&vec![60_000; AT_TIMES_MAX + 1]);
    for timing in [Timing::Period(0), Timing::Period(999), at(&[]), at(&past), at(&many)] {
        let id = owner.ask(Question::Schedule(schedule(timing, "f")));
        let fault = owner.expect_fault(id, FaultKind::InvalidTime);
        assert!(!fault.message.is_empty(), "it says what is wrong");
    }
}

pub(crate) fn an_unknown_task_is_told(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut owner = bench.node("owner", &[]);
    for question in [Question::TaskStatus { task: 77 }, Question::CancelTask { task: 77 }] {
        let id = owner.ask(question);
        assert_eq!(owner.expect_fault(id, FaultKind::NoTask).number, 77);
    }
}

pub(crate) fn a_task_does_not_call_its_owner(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut callee = bench.node("callee", &["f"]);
    let mut owner = bench.node("owner", &["f"]);
    start(&mut owner, every(10, "f"));
    for _ in 0..8 {
        callee.echo();
    }
    owner.expect_no("a REQUEST", |frame| matches!(frame, Frame::Request(_)));
}
