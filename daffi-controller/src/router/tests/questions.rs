use daffi_core::{
    answer::{CallbackInfo, Process},
    fault::FaultKind,
    frame::Question,
    payload::Codec,
};

use super::*;

fn ask(id: u64, question: Question<'_>) -> Frame<'_> {
    Frame::Ask { id, codec: 0, question }
}

/// Decodes the single answer that a peer got.
fn answer<T: serde::de::DeserializeOwned>(world: &mut World, peer: PeerId) -> T {
    let frames = world.out.sent.remove(&peer).unwrap();
    let [frame] = &frames[..] else { panic!("{} frames instead of one", frames.len()) };
    let Frame::Reply(reply) = decode(frame) else { panic!("no reply") };
    Codec::from_byte(reply.codec).unwrap().decode(&reply.body.to_bytes()).unwrap()
}

#[test]
fn waiting_for_a_process_ends_when_it_joins() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    world.send(a, &ask(1, Question::WaitProcess { name: "b" }));
    world.send(a, &ask(2, Question::WaitProcess { name: "a" }));
    assert_eq!(world.said(a), ["REPLY 2.0: "], "a node is there for itself");
    let b = world.connect();
    world.hello(b, "b", 1);
    assert_eq!(world.said(a), [""; 0], "its callbacks are not known yet");
    world.register(b, &[]);
    assert_eq!(world.said(a), ["REPLY 1.0: "]);
    world.send(a, &ask(3, Question::WaitProcess { name: "b" }));
    assert_eq!(world.said(a), ["REPLY 3.0: "]);
    world.assert_idle();
}

#[test]
fn waiting_for_a_function_ends_when_another_node_can_be_called() {
    let mut world = World::new();
    let a = world.join("a", &["f"]);
    world.send(a, &ask(1, Question::WaitFunction { name: "f" }));
    world.register(a, &["f"]);
    world.said(a);
    let b = world.join("b", &["!f"]);
    assert_eq!(world.said(a), [""; 0], "there is no instance yet");
    world.register(b, &["f"]);
    assert_eq!(world.said(a), ["REPLY 1.0: "]);
    world.send(a, &ask(2, Question::WaitFunction { name: "f" }));
    assert_eq!(world.said(a), ["REPLY 2.0: "]);
    world.assert_idle();
}

#[test]
fn a_nodes_own_offer_ends_the_wait_of_others_but_not_its_own() {
    let mut world = World::new();
    let (a, b) = (world.join("a", &[]), world.join("b", &[]));
    for peer in [a, b] {
        world.send(peer, &ask(1, Question::WaitFunction { name: "f" }));
    }
    world.register(a, &["f"]);
    assert_eq!(world.said(a), ["REGISTERED 1"]);
    assert_eq!(world.said(b), ["REPLY 1.0: "]);
    world.join("c", &["f"]);
    assert_eq!(world.said(a), ["REPLY 1.0: "]);
}

#[test]
fn a_wait_can_be_cancelled_and_ends_with_its_asker() {
    let mut world = World::new();
    let (a, b) = (world.join("a", &[]), world.join("b", &[]));
    world.send(a, &ask(1, Question::WaitProcess { name: "c" }));
    world.send(a, &Frame::Cancel { id: 1 });
    world.send(b, &ask(1, Question::WaitFunction { name: "f" }));
    world.gone(b);
    world.assert_idle();
    world.join("c", &["f"]);
    assert_eq!(world.said(a), [""; 0]);
}

#[test]
fn questions_and_calls_share_their_ids() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    world.send(a, &ask(1, Question::WaitProcess { name: "c" }));
    world.call(a, 1, "f");
    assert!(world.out.closed.contains_key(&a));
    world.assert_idle();
}

#[test]
fn lists_are_sorted_and_come_in_the_codec_that_is_asked_for() {
    let mut world = World::new();
    let b = world.join("b", &["g", "!f"]);
    world.join("a", &["g"]);
    let connecting = world.connect();
    world.hello(connecting, "not yet", 1);
    for codec in [0, 1] {
        world.send(b, &Frame::Ask { id: 1, codec, question: Question::Processes });
        let processes: Vec<Process> = answer(&mut world, b);
        assert_eq!(
            processes,
            [
                Process::new("a".into(), vec!["g".into()]),
                Process::new("b".into(), vec!["f".into(), "g".into()])
            ]
        );
        world.send(b, &Frame::Ask { id: 1, codec, question: Question::Callbacks });
        let callbacks: Vec<CallbackInfo> = answer(&mut world, b);
        let signature = || "signature 0".to_owned();
        assert_eq!(
            callbacks,
            [
                CallbackInfo::new("f".into(), signature(), vec!["b".into()], false),
                CallbackInfo::new("g".into(), signature(), vec!["a".into(), "b".into()], true)
            ]
        );
    }
    world.send(b, &Frame::Ask { id: 1, codec: 9, question: Question::Callbacks });
    assert_eq!(world.fault_at(b).kind, FaultKind::Refused);
}

#[test]
fn a_long_list_comes_in_chunks() {
    let mut world = World::new();
    let a = world.join("a", &[]);
    let names: Vec<String> = (0..3000).map(|n| format!("callback number {n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    world.join("b", &names);
    world.send(a, &ask(1, Question::Callbacks));
    let frames = world.out.sent.remove(&a).unwrap();
    assert!(frames.len() > 1);
    let mut bytes = Vec::new();
    for (at, frame) in frames.iter().enumerate() {
        let last = at + 1 == frames.len();
        match decode(frame) {
            Frame::Reply(reply) => {
                assert_eq!((at, reply.more), (0, true));
                bytes.extend_from_slice(&reply.body.to_bytes());
            }
            Frame::Chunk(chunk) => {
                assert_eq!((chunk.id, chunk.reply, chunk.more), (1, true, !last));
                bytes.extend_from_slice(&chunk.body.to_bytes());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(Codec::Bincode.decode::<Vec<CallbackInfo>>(&bytes).unwrap().len(), 3000);
}

#[test]
fn a_list_that_has_no_room_fails_and_costs_nobody_the_connection() {
    let mut world = World::with(|config| config.limits.queue_bytes_max = 200_000);
    let a = world.join("a", &[]);
    let names: Vec<String> = (0..2000).map(|n| format!("callback number {n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    world.join("b", &names);
    world.out.full.insert(a);
    world.send(a, &ask(1, Question::Callbacks));
    let said = world.said(a);
    assert_eq!(said.len(), 2, "the beginning, and why no more comes");
    assert_eq!(said[1], "FAILURE 1.0 Overloaded on controller");
    world.out.full.clear();
    world.join("c", &["some more", "and more"]);
    let more: Vec<String> = (0..2000).map(|n| format!("another callback {n}")).collect();
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    world.join("d", &more);
    world.advance(Duration::from_secs(1));
    // It would never fit.
    world.send(a, &ask(2, Question::Callbacks));
    let fault = world.fault_at(a);
    assert_eq!((fault.kind, fault.limit), (FaultKind::TooLarge, 200_000));
    assert!(world.out.closed.is_empty());
}

#[test]
fn an_answer_is_made_once_and_anew_when_somebody_comes_or_goes() {
    let mut world = World::new();
    let a = world.join("a", &["f"]);
    let names = |world: &mut World| -> (Vec<String>, Vec<String>) {
        world.send(a, &ask(1, Question::Processes));
        let processes: Vec<Process> = answer(world, a);
        world.send(a, &ask(1, Question::Callbacks));
        let callbacks: Vec<CallbackInfo> = answer(world, a);
        let nodes = |callback: CallbackInfo| callback.nodes.join("+");
        (processes.into_iter().map(|one| one.name).collect(), callbacks.into_iter().map(nodes).collect())
    };
    let expect = |nodes: &[&str], offers: &str| {
        (nodes.iter().map(ToString::to_string).collect::<Vec<_>>(), vec![offers.to_owned()])
    };
    for _ in 0..2 {
        assert_eq!(names(&mut world), expect(&["a"], "a"));
    }
    let b = world.join("b", &["f"]);
    assert_eq!(names(&mut world), expect(&["a", "b"], "a+b"));
    world.gone(b);
    assert_eq!(names(&mut world), expect(&["a"], "a"));
    let c = world.join("c", &["f"]);
    assert_eq!(names(&mut world), expect(&["a", "c"], "a+c"));
    world.send(c, &Frame::Goodbye { reason: "" });
    assert_eq!(names(&mut world), expect(&["a"], "a"));
}

/// Otherwise someone who changes something before each question would keep everybody else waiting.
#[test]
fn after_a_long_list_the_next_one_is_made_for_all_who_wait() {
    let mut world = World::new();
    let names: Vec<_> = (0..1000).map(|number| format!("f{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let (a, b, c) = (world.join("a", &names), world.join("b", &[]), world.join("c", &[]));
    let count = |world: &mut World, peer| answer::<Vec<CallbackInfo>>(world, peer).len();
    world.send(b, &ask(1, Question::Callbacks));
    assert_eq!(count(&mut world, b), 1000);
    world.send(b, &ask(2, Question::Callbacks));
    assert_eq!(count(&mut world, b), 1000, "nothing has changed");

    world.register(b, &["g"]);
    world.said(b);
    for peer in [a, b, c] {
        world.send(peer, &ask(3, Question::Callbacks));
    }
    assert_eq!(world.said(b), [""; 0], "it waits");
    assert!(world.router.next().is_some_and(|due| due <= world.now.mono + Duration::from_millis(21)));
    world.send(c, &Frame::Cancel { id: 3 });
    world.register(b, &["g", "h"]);
    world.said(b);
    world.advance(Duration::from_millis(25));
    assert_eq!(count(&mut world, a), 1002, "what is so by then");
    assert_eq!(count(&mut world, b), 1002);
    assert_eq!(world.said(c), [""; 0]);

    // Those who are gone by then are no obstacle, and an empty registration changes nothing.
    world.register(b, &["g"]);
    world.send(c, &ask(4, Question::Callbacks));
    world.gone(c);
    world.advance(Duration::from_millis(50));
    world.register(b, &[]);
    world.said(b);
    world.send(a, &ask(5, Question::Callbacks));
    assert_eq!(count(&mut world, a), 1002);
    world.send(b, &ask(5, Question::Processes));
    world.advance(Duration::from_millis(50));
    assert_eq!(answer::<Vec<Process>>(&mut world, b).len(), 2);
    world.assert_idle();
}

/// However many questions a node has open that its own offer does not answer.
#[test]
fn an_offer_passes_over_all_of_the_nodes_own_waits_at_once() {
    let mut world = World::new();
    let (a, b) = (world.join("a", &[]), world.join("b", &[]));
    for id in 0..5 {
        world.send(a, &ask(id, Question::WaitFunction { name: "f" }));
    }
    world.send(b, &ask(1, Question::WaitFunction { name: "f" }));
    world.said(a);
    world.register(a, &["f"]);
    assert!(world.said(a).iter().all(|said| !said.starts_with("REPLY")));
    assert_eq!(world.said(b), ["REPLY 1.0: "]);
    world.register(b, &["f"]);
    assert_eq!(world.said(a).len(), 5);
    world.assert_idle();
}
