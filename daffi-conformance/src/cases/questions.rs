use daffi_core::{
    answer::{CallbackInfo, Process},
    controller::Controller,
    frame::{Frame, Question},
    payload::Codec,
};

use crate::{Bench, Offered, offer};

pub(crate) fn processes_are_listed(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let _a = bench.node("a", &["g", "f"]);
    let mut b = bench.node("b", &[]);
    let id = b.ask(Question::Processes);
    let mut processes: Vec<Process> = b.expect_answer(id);
    processes.sort_by(|a, b| a.name.cmp(&b.name));
    let expected = [
        Process::new("a".to_owned(), vec!["f".to_owned(), "g".to_owned()]),
        Process::new("b".to_owned(), Vec::new()),
    ];
    assert_eq!(processes, expected);
}

pub(crate) fn callbacks_are_listed(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let add = Offered { signature: "(a: i64) -> i64".to_owned(), ..offer("add") };
    let method = Offered { ready: false, index: Some(1), ..offer("method") };
    let _a = bench.node_with("a", &[add.clone(), method]);
    let _b = bench.node_with("b", &[add]);
    let mut asker = bench.node("asker", &[]);
    let id = asker.ask(Question::Callbacks);
    let mut callbacks: Vec<CallbackInfo> = asker.expect_answer(id);
    callbacks.sort_by(|a, b| a.name.cmp(&b.name));
    let info = |name: &str, signature: &str, nodes: &[&str], ready| {
        let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
        CallbackInfo::new(name.to_owned(), signature.to_owned(), nodes, ready)
    };
    assert_eq!(
        callbacks,
        [info("add", "(a: i64) -> i64", &["a", "b"], true), info("method", "()", &["a"], false)]
    );
}

pub(crate) fn answers_come_in_the_codec_of_the_question(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut node = bench.node("größe", &["f"]);
    let mut answers = Vec::new();
    for codec in [Codec::Bincode, Codec::Json] {
        let id = node.fresh_id();
        node.send(&Frame::Ask { id, codec: codec.to_byte(), question: Question::Processes });
        let (of, body) = node.expect("an answer", |frame| match frame {
            Frame::Reply(reply) if reply.id == id => Some((reply.codec, reply.body.to_bytes())),
            _ => None,
        });
        assert_eq!(of, codec.to_byte());
        answers.push(codec.decode::<Vec<Process>>(&body).expect("it is in that codec"));
    }
    assert_eq!(answers[0], answers[1]);

    for (codec, nothing) in [(Codec::Bincode, &b""[..]), (Codec::Json, b"null")] {
        let id = node.fresh_id();
        let question = Question::WaitProcess { name: "größe" };
        node.send(&Frame::Ask { id, codec: codec.to_byte(), question });
        assert_eq!(node.expect_value(id), nothing);
    }
}

pub(crate) fn a_long_list_comes_in_chunks(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let offers: Vec<_> = (0..500)
        .map(|at| Offered { signature: "x".repeat(300), ..offer(&format!("callback number {at}")) })
        .collect();
    let mut node = bench.node("node", &[]);
    for (number, some) in offers.chunks(100).enumerate() {
        let some: Vec<_> = some
            .iter()
            .enumerate()
            .map(|(at, offered)| Offered { index: Some((number * 100 + at) as u32), ..offered.clone() })
            .collect();
        node.register(&some);
    }
    let id = node.ask(Question::Callbacks);
    let body = node.expect_result(id);
    let callbacks: Vec<CallbackInfo> = Codec::Json.decode(&body).expect("all chunks together are a list");
    assert_eq!(callbacks.len(), 500);
}

pub(crate) fn a_process_is_waited_for(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut asker = bench.node("asker", &[]);
    let id = asker.ask(Question::WaitProcess { name: "late" });
    let other = asker.ask(Question::WaitProcess { name: "later" });
    asker.expect_no_outcome(id);
    let _late = bench.node("late", &[]);
    asker.expect_answer::<()>(id);
    asker.expect_no_outcome(other);
    // The process is already there.
    let id = asker.ask(Question::WaitProcess { name: "late" });
    asker.expect_answer::<()>(id);
}

pub(crate) fn a_callback_is_waited_for(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut asker = bench.node("asker", &["f"]);
    let id = asker.ask(Question::WaitFunction { name: "f" });
    asker.expect_no_outcome(id);
    // A callback that is not ready is not enough, nor is a node without it.
    let waiting = Offered { ready: false, ..offer("f") };
    let mut callee = bench.node_with("callee", std::slice::from_ref(&waiting));
    let _idle = bench.node("idle", &["g"]);
    asker.expect_no_outcome(id);
    callee.register(&[Offered { ready: true, ..waiting }]);
    asker.expect_answer::<()>(id);
    let id = asker.ask(Question::WaitFunction { name: "f" });
    asker.expect_answer::<()>(id);
}

pub(crate) fn a_question_can_be_taken_back(controller: &dyn Controller) {
    let bench = Bench::new(controller);
    let mut asker = bench.node("asker", &[]);
    let process = asker.ask(Question::WaitProcess { name: "late" });
    let function = asker.ask(Question::WaitFunction { name: "f" });
    asker.cancel(process);
    asker.cancel(function);
    asker.settle();
    let mut late = bench.node("late", &["f"]);
    late.settle();
    asker.expect_no_outcome(process);
    asker.expect_no_outcome(function);
}
