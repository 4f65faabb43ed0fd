//! Questions that nodes ask the controller itself.

use std::collections::BTreeMap;

use daffi_core::{
    answer::{CallbackInfo, Process},
    fault::{Fault, FaultKind},
    frame::{Body, Chunk, Frame, Question, Reply},
    limits::CHUNK_BYTES,
    payload::Codec,
};

use serde::Serialize;

use crate::state::{NodeId, State, Violation};

/// A question that is answered when something happens.
pub(crate) struct Watch {
    pub(crate) asker: NodeId,
    pub(crate) id: u64,
    codec: Codec,
    event: Event,
}

enum Event {
    Process(String),
    Function(String),
}

impl State {
    pub(crate) fn ask(
        &mut self,
        from: NodeId,
        id: u64,
        codec: u8,
        question: &Question<'_>,
    ) -> Result<(), Violation> {
        let waits = self.watches.iter().any(|watch| (watch.asker, watch.id) == (from, id));
        if waits || self.outstanding.contains_key(&(from, id)) {
            return Err("the id of a call in flight is used again".to_owned());
        }
        let Some(codec) = Codec::from_byte(codec) else {
            self.fail(from, id, 0, Fault::new(FaultKind::Refused, format!("codec {codec} is not known")));
            return Ok(());
        };
        match question {
            Question::WaitProcess { name } => self.watch(from, id, codec, Event::Process((*name).to_owned())),
            Question::WaitFunction { name } => {
                self.watch(from, id, codec, Event::Function((*name).to_owned()))
            }
            Question::Processes => self.answer(from, id, codec, Ok(self.processes())),
            Question::Callbacks => self.answer(from, id, codec, Ok(self.callbacks())),
            Question::Schedule(schedule) => {
                let task = self.schedule(from, schedule);
                self.answer(from, id, codec, task);
            }
            Question::CancelTask { task } => {
                let cancelled = self.cancel_task(*task);
                self.answer(from, id, codec, cancelled);
            }
            Question::TaskStatus { task } => self.answer(from, id, codec, self.task_status(*task)),
            _ => self.fail(from, id, 0, Fault::new(FaultKind::Refused, "the question is not known")),
        }
        Ok(())
    }

    /// Sends an answer in as many frames as it takes.
    fn answer<T: Serialize>(&self, to: NodeId, id: u64, codec: Codec, answer: Result<T, Fault>) {
        let encoded = answer.and_then(|value| {
            codec.encode(&value).map_err(|error| Fault::new(FaultKind::BadResult, error.to_string()))
        });
        let body = match encoded {
            Ok(body) => body,
            Err(fault) => return self.fail(to, id, 0, fault),
        };
        let (first, rest) = body.split_at(body.len().min(CHUNK_BYTES));
        self.send(
            to,
            &Frame::Reply(Reply {
                id,
                more: !rest.is_empty(),
                part: 0,
                codec: codec.to_byte(),
                total: body.len() as u32,
                body: Body::borrowed(first),
            }),
        );
        let mut chunks = rest.chunks(CHUNK_BYTES).peekable();
        while let Some(chunk) = chunks.next() {
            let more = chunks.peek().is_some();
            self.send(
                to,
                &Frame::Chunk(Chunk { id, reply: true, more, part: 0, body: Body::borrowed(chunk) }),
            );
        }
    }

    fn watch(&mut self, asker: NodeId, id: u64, codec: Codec, event: Event) {
        self.watches.push(Watch { asker, id, codec, event });
        self.answer_watches();
    }

    /// Answers the watches whose event has happened.
    pub(crate) fn answer_watches(&mut self) {
        let watches = std::mem::take(&mut self.watches);
        for watch in watches {
            let happened = self.nodes.iter().filter(|(_, node)| node.is_visible()).any(|(id, node)| {
                match &watch.event {
                    Event::Process(name) => node.name == *name,
                    Event::Function(name) => {
                        *id != watch.asker && node.offer(name).is_some_and(|(_, offer)| offer.ready)
                    }
                }
            });
            if happened {
                self.answer(watch.asker, watch.id, watch.codec, Ok(()));
            } else {
                self.watches.push(watch);
            }
        }
    }

    fn processes(&self) -> Vec<Process> {
        let visible = self.nodes.values().filter(|node| node.is_visible());
        let mut processes: Vec<_> = visible
            .map(|node| {
                let mut callbacks: Vec<_> = node.offers.values().map(|offer| offer.name.clone()).collect();
                callbacks.sort();
                Process::new(node.name.clone(), callbacks)
            })
            .collect();
        processes.sort_by(|a, b| a.name.cmp(&b.name));
        processes
    }

    fn callbacks(&self) -> Vec<CallbackInfo> {
        let mut callbacks: BTreeMap<(&str, &str), (Vec<String>, bool)> = BTreeMap::new();
        for node in self.nodes.values().filter(|node| node.is_visible()) {
            for offer in node.offers.values() {
                let (nodes, ready) = callbacks.entry((&offer.name, &offer.signature)).or_default();
                nodes.push(node.name.clone());
                *ready |= offer.ready;
            }
        }
        callbacks
            .into_iter()
            .map(|((name, signature), (mut nodes, ready))| {
                nodes.sort();
                CallbackInfo::new(name.to_owned(), signature.to_owned(), nodes, ready)
            })
            .collect()
    }
}
