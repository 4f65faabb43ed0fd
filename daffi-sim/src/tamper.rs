//! Deliberate bugs: a layer between processes and network that occasionally breaks a promise, to show that
//! the checker notices.

use std::collections::BTreeMap;

use daffi_core::{
    fault::{Fault, FaultKind},
    frame::{Chunk, Failure, Frame, Question, Request, Targets, UNROUTED},
};

use crate::random::Random;

/// A bug that can be planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bug {
    /// The controller passes on a result twice.
    DoubleReply,
    /// The controller loses a result.
    LostReply,
    /// Two results are swapped.
    SwappedIds,
    /// A result contains a byte of another one.
    MixedPayload,
    /// A caller is told that a call that ran did not.
    Denied,
    /// A callee gets a call again under another id.
    ResentCall,
    /// A callee gets a one-way call and does not run it.
    NeverRun,
    /// Requests overtake each other on their way from the controller.
    Reordered,
    /// Requests overtake each other on their way to the controller.
    Overtaken,
    /// A target of a broadcast is left out.
    MissingTarget,
    /// A scheduled task continues after it was cancelled.
    FiresAfterCancel,
    /// The controller does not learn that nobody is waiting any more.
    Forgotten,
    /// Some nodes get no calls, but stay connected.
    Unreachable,
    /// The controller passes on calls as if they were not nested.
    HopsForgotten,
    /// Code of daffi panics while writing.
    Panics,
}

impl Bug {
    /// All bugs, each with the beginning of the violation that must be found.
    pub const ALL: [(Self, &str); 15] = [
        (Self::DoubleReply, "I5: "),
        (Self::LostReply, "I2: "),
        (Self::SwappedIds, "I3: "),
        (Self::MixedPayload, "I3: "),
        (Self::Denied, "I4: "),
        (Self::ResentCall, "I1: "),
        (Self::NeverRun, "I8: "),
        (Self::Reordered, "I7: "),
        (Self::Overtaken, "I7: "),
        (Self::MissingTarget, "I8: "),
        (Self::FiresAfterCancel, "I9: "),
        (Self::Forgotten, "I6: "),
        (Self::Unreachable, "I11: "),
        (Self::HopsForgotten, "U3: "),
        (Self::Panics, "a panic"),
    ];
}

/// The message of a planted panic.
pub(crate) const PANIC: &str = "planted";

/// Plants a bug, or none.
pub(crate) struct Tamper {
    bug: Option<Bug>,
    /// What is being held back, by lane.
    held: BTreeMap<(usize, usize), Vec<u8>>,
}

/// In this percentage of cases where the bug could show, it does.
const OFTEN: usize = 10;

impl Tamper {
    pub(crate) fn new(bug: Option<Bug>) -> Self {
        Self { bug, held: BTreeMap::new() }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.bug.is_some()
    }

    /// Returns what goes out in place of a frame written by `end` of a connection; end 1 is the controller's.
    pub(crate) fn change(
        &mut self,
        connection: usize,
        end: usize,
        frame: &Frame<'_>,
        random: &mut Random,
    ) -> Vec<Vec<u8>> {
        let as_it_is = vec![encode(frame)];
        let Some(bug) = self.bug else { return as_it_is };
        let lane = (connection, end);
        match (bug, end, frame) {
            (Bug::FiresAfterCancel, 0, Frame::Ask { id, codec, question: Question::CancelTask { task } }) => {
                // Its answer passes for that of the cancellation.
                let question = Question::TaskStatus { task: *task };
                vec![encode(&Frame::Ask { id: *id, codec: *codec, question })]
            }
            (Bug::DoubleReply, 1, Frame::Reply(reply)) if !reply.more && random.chance(OFTEN) => {
                vec![encode(frame), encode(frame)]
            }
            (Bug::LostReply, 1, Frame::Reply(reply)) if !reply.more && random.chance(OFTEN) => Vec::new(),
            (Bug::SwappedIds, 1, Frame::Reply(reply)) if !reply.more && reply.part == 0 => {
                match self.held.remove(&lane) {
                    Some(held) => swapped(held, encode(frame)),
                    None if random.chance(OFTEN) => {
                        self.held.insert(lane, encode(frame));
                        Vec::new()
                    }
                    None => as_it_is,
                }
            }
            (Bug::MixedPayload, 1, Frame::Reply(_) | Frame::Chunk(Chunk { reply: true, .. }))
                if random.chance(OFTEN) =>
            {
                let mut changed = encode(frame);
                changed.last_mut().into_iter().for_each(|byte| *byte ^= 1);
                vec![changed]
            }
            (Bug::Denied, 1, Frame::Reply(reply)) if !reply.more && random.chance(OFTEN) => {
                let fault = Fault::new(FaultKind::Overloaded, "not at all");
                vec![encode(&Frame::Failure(Failure {
                    id: reply.id,
                    part: reply.part,
                    fault: Box::new(fault),
                }))]
            }
            (Bug::Panics, ..) if random.chance(1) => panic!("{PANIC}"),
            (Bug::Forgotten, 0, Frame::Cancel { .. }) => Vec::new(),
            (Bug::Unreachable, 1, Frame::Request(_) | Frame::Chunk(Chunk { reply: false, .. }))
                if connection.is_multiple_of(4) =>
            {
                Vec::new()
            }
            (Bug::ResentCall, 1, Frame::Request(request)) if !request.more && random.chance(OFTEN) => {
                let again = Request { id: request.id ^ (1 << 50), ..request.clone() };
                vec![encode(frame), encode(&Frame::Request(again))]
            }
            (Bug::HopsForgotten, 1, Frame::Request(request)) => {
                vec![encode(&Frame::Request(Request { hops: 1, ..request.clone() }))]
            }
            (Bug::NeverRun, 1, Frame::Request(request)) if request.one_way && random.chance(OFTEN) => {
                // There is no such callback, and nobody is told.
                let lost = Request { callback: UNROUTED, ..request.clone() };
                vec![encode(&Frame::Request(lost))]
            }
            (Bug::Reordered, 1, Frame::Request(request)) | (Bug::Overtaken, 0, Frame::Request(request))
                if !request.more =>
            {
                match self.held.remove(&lane) {
                    Some(held) => vec![encode(frame), held],
                    None if random.chance(OFTEN) => {
                        self.held.insert(lane, encode(frame));
                        Vec::new()
                    }
                    None => as_it_is,
                }
            }
            (Bug::MissingTarget, 1, Frame::Targets(targets)) => {
                let mut nodes: Vec<_> = targets.nodes.lines().collect();
                nodes.pop();
                let nodes = nodes.join("\n");
                vec![encode(&Frame::Targets(Targets { id: targets.id, nodes: &nodes }))]
            }
            _ => as_it_is,
        }
    }
}

fn encode(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

/// Swaps the ids of two frames.
fn swapped(mut one: Vec<u8>, mut other: Vec<u8>) -> Vec<Vec<u8>> {
    const ID: std::ops::Range<usize> = 8..16;
    one[ID].swap_with_slice(&mut other[ID]);
    vec![one, other]
}
