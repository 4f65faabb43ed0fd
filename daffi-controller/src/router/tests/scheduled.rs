use daffi_core::{
    answer::{TaskState, TaskStatus},
    fault::FaultKind,
    frame::{Question, Schedule, Times, Timing},
    payload::Codec,
};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn schedule<'a>(timing: Timing<'a>, name: &'a str) -> Frame<'a> {
    let body = Body::borrowed(b"args");
    let schedule = Schedule { timing, codec: 0, fingerprint: 0, name, node: "", body };
    Frame::Ask { id: 1, codec: 0, question: Question::Schedule(schedule) }
}

fn every_second(name: &str) -> Frame<'_> {
    schedule(Timing::Period(1_000_000), name)
}

fn answer<T: serde::de::DeserializeOwned>(world: &mut World, peer: PeerId) -> T {
    let frames = world.out.sent.remove(&peer).unwrap();
    let Frame::Reply(reply) = decode(&frames[0]) else { panic!("{}", describe(&decode(&frames[0]))) };
    Codec::Bincode.decode(&reply.body.to_bytes()).unwrap()
}

fn status(world: &mut World, peer: PeerId, task: u64) -> TaskStatus {
    world.send(peer, &Frame::Ask { id: 9, codec: 0, question: Question::TaskStatus { task } });
    answer(world, peer)
}

/// An owner that also offers the callback, a callee, and a task that calls it every second.
fn world() -> (World, PeerId, PeerId, u64) {
    let mut world = World::with(|config| config.limits.heartbeat = 100_000 * SECOND);
    let owner = world.join("owner", &["f"]);
    let callee = world.join("callee", &["f"]);
    world.send(owner, &every_second("f"));
    let task = answer(&mut world, owner);
    (world, owner, callee, task)
}

#[test]
fn a_task_calls_on_behalf_of_its_owner_and_never_its_owner() {
    let (mut world, owner, callee, task) = world();
    for run in 1..=5 {
        world.advance(SECOND);
        let frames = world.out.sent.get(&callee).cloned().unwrap();
        assert_eq!(describe(&decode(&frames[0])), "REQUEST f#0 from owner: args");
        let id = world.id_at(callee);
        world.reply(callee, id, "ok");
        assert_eq!(world.said(owner), [""; 0]);
        assert_eq!(status(&mut world, owner, task).runs, run);
    }
    world.assert_idle();
}

#[test]
fn a_task_outlives_its_owner_and_its_callee() {
    let (mut world, owner, callee, task) = world();
    world.gone(owner);
    world.advance(SECOND);
    world.id_at(callee);
    world.gone(callee);
    let other = world.join("other", &["f"]);
    world.advance(SECOND);
    world.id_at(other);
    let status = status(&mut world, other, task);
    assert_eq!((status.runs, status.failures, status.state), (2, 1, TaskState::Active));
    assert!(status.last_error.contains("\"callee\" stopped"), "{}", status.last_error);
}

#[test]
fn a_slow_call_skips_ticks_and_the_next_one_comes_in_time() {
    let (mut world, owner, callee, task) = world();
    world.advance(SECOND);
    let id = world.id_at(callee);
    world.advance(SECOND);
    world.advance(SECOND);
    assert_eq!(world.said(callee), [""; 0]);
    world.send(callee, &failure(id, FaultKind::Failed));
    world.advance(SECOND);
    world.id_at(callee);
    let status = status(&mut world, owner, task);
    assert_eq!((status.runs, status.skipped, status.failures), (2, 2, 1));
    assert!(status.last_error.contains("no"), "{}", status.last_error);
    assert_eq!(status.next_in_us, Some(1_000_000));
}

#[test]
fn nobody_to_call_is_a_skipped_tick_and_a_mismatch_a_failed_one() {
    let (mut world, owner, callee, task) = world();
    world.gone(callee);
    world.advance(SECOND);
    let seen = status(&mut world, owner, task);
    assert_eq!((seen.runs, seen.skipped, seen.failures), (0, 1, 0));
    assert!(seen.last_error.contains("\"f\""), "{}", seen.last_error);
    let callee = world.join("callee", &["f"]);
    world.out.full.insert(callee);
    world.advance(SECOND);
    let seen = status(&mut world, owner, task);
    assert_eq!((seen.runs, seen.skipped, seen.failures), (1, 1, 1));
    assert!(seen.last_error.contains("overloaded"), "{}", seen.last_error);
}

#[test]
fn a_cancelled_task_calls_no_more_and_what_runs_goes_on() {
    let (mut world, owner, callee, task) = world();
    world.advance(SECOND);
    let id = world.id_at(callee);
    world.send(callee, &Frame::Ask { id: 1, codec: 0, question: Question::CancelTask { task } });
    assert_eq!(world.said(callee), ["REPLY 1.0: "], "anybody may cancel it, and the run is not cancelled");
    world.advance(10 * SECOND);
    assert_eq!(world.said(callee), [""; 0]);
    world.reply(callee, id, "done");
    assert_eq!(status(&mut world, owner, task).state, TaskState::Cancelled);
    world.assert_idle();
    for question in [Question::CancelTask { task: 77 }, Question::TaskStatus { task: 77 }] {
        world.send(owner, &Frame::Ask { id: 1, codec: 0, question });
        let fault = world.fault_at(owner);
        assert_eq!((fault.kind, fault.number), (FaultKind::NoTask, 77));
    }
}

#[test]
fn a_long_result_of_a_task_is_not_waited_for() {
    let (mut world, owner, callee, task) = world();
    world.advance(SECOND);
    let id = world.id_at(callee);
    let begin = Reply { id, more: true, part: 0, codec: 0, total: 100, body: Body::borrowed(b"ab") };
    world.send(callee, &Frame::Reply(begin));
    assert_eq!(world.said(callee), [format!("CANCEL {id}")]);
    world.send(callee, &chunk(id, true, true, "rest"));
    assert_eq!(status(&mut world, owner, task).failures, 0);
    world.assert_idle();
}

#[test]
fn times_of_day_each_have_their_call() {
    let mut world = World::new();
    let owner = world.join("owner", &[]);
    let callee = world.join("callee", &["f"]);
    let times: Vec<u8> =
        [2_000_000u64, 1_000_000].iter().flat_map(|us| (1_000_000_000_000 + us).to_le_bytes()).collect();
    world.send(owner, &schedule(Timing::At(Times::parse(&times).unwrap()), "f"));
    let task = answer(&mut world, owner);
    let next = world.advance(Duration::ZERO).unwrap();
    assert_eq!(next, world.now.mono + SECOND);
    for _ in 0..2 {
        world.advance(SECOND);
        let id = world.id_at(callee);
        world.reply(callee, id, "ok");
    }
    let status = status(&mut world, owner, task);
    assert_eq!((status.state, status.runs, status.next_in_us), (TaskState::Finished, 2, None));
    assert_eq!(world.router.sizes().tasks, 0);
}

#[test]
fn schedules_that_make_no_sense_are_refused() {
    let mut world = World::with(|config| config.limits.tasks_max = 1);
    let owner = world.join("owner", &[]);
    for (frame, kind) in [
        (schedule(Timing::Period(0), "f"), FaultKind::InvalidTime),
        (schedule(Timing::At(Times::parse(&[0; 8]).unwrap()), "f"), FaultKind::InvalidTime),
        (schedule(Timing::At(Times::parse(&[]).unwrap()), "f"), FaultKind::InvalidTime),
        (every_second("daffi.x"), FaultKind::Refused),
    ] {
        world.send(owner, &frame);
        assert_eq!(world.fault_at(owner).kind, kind);
    }
    world.send(owner, &every_second("f"));
    world.said(owner);
    world.send(owner, &every_second("f"));
    assert_eq!(world.said(owner), ["FAILURE 1.0 Overloaded on controller"]);
}

#[test]
fn tasks_rest_while_the_controller_stops() {
    let (mut world, _, callee, _) = world();
    world.router.drain(world.now, &mut world.out);
    world.said(callee);
    world.advance(5 * SECOND);
    assert_eq!(world.said(callee), [""; 0]);
    assert!(world.router.is_idle());
}

#[test]
fn all_tasks_together_take_up_so_much_and_no_more() {
    let mut world = World::new();
    let owner = world.join("owner", &[]);
    let body = vec![0; daffi_core::limits::CHUNK_BYTES];
    let fits = daffi_core::limits::TASKS_BYTES_MAX / body.len();
    let add = |world: &mut World| {
        let timing = Timing::Period(1_000_000);
        let body = Body::borrowed(&body);
        let schedule = Schedule { timing, codec: 0, fingerprint: 0, name: "f", node: "", body };
        world.send(owner, &Frame::Ask { id: 1, codec: 0, question: Question::Schedule(schedule) });
    };
    let mut tasks = Vec::new();
    for _ in 0..fits {
        add(&mut world);
        tasks.push(answer::<u64>(&mut world, owner));
    }
    add(&mut world);
    assert_eq!(world.fault_at(owner).kind, FaultKind::Overloaded);
    world.send(owner, &Frame::Ask { id: 1, codec: 0, question: Question::CancelTask { task: tasks[0] } });
    world.said(owner);
    add(&mut world);
    answer::<u64>(&mut world, owner);
}
