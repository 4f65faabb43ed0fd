//! Payloads in chunks and the credit that paces them, at a node that sends and at one that receives.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    sync::LazyLock,
};

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use daffi_core::{
    fault::{Fault, FaultKind},
    frame::{Body, Chunk, Failure, Frame, Reply, Targets},
    limits::{CHUNK_BYTES, STREAM_WINDOW_BYTES},
};
use daffi_node::fuzzing::{Arguments, Pool, RECEIVERS_WINDOW_BYTES, Results, Sending};

/// Payloads between two nodes, with credit that may be wrong, and then frames to a receiver that fit nothing.
pub fn streams(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    // Running out of input ends a part early, which is as good as any other end.
    let _ = transfer(&mut input);
    let _ = gather(&mut input);
    let _ = assemble(&mut input);
}

/// Where the bytes of all payloads come from; those of each begin elsewhere.
static SOURCE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..3 * STREAM_WINDOW_BYTES).map(|_| next()).collect()
});

/// A payload on its way.
struct Payload {
    body: Bytes,
    receiver: Receiver,
    sent: usize,
    /// What was sent and not credited, as the sender has to see it.
    on_its_way: usize,
    received: Option<Bytes>,
    cancelled: bool,
}

enum Receiver {
    Arguments(Arguments),
    Results(Box<Results>),
}

struct Transfer {
    sending: Sending,
    pool: Pool,
    /// How many chunks have arrived: every other one is read to its place.
    arrived: usize,
    payloads: BTreeMap<u64, Payload>,
    /// Chunks that have not arrived yet: of which payload, whether more follow, and the bytes.
    wire: VecDeque<(u64, bool, Bytes)>,
    /// Credit that has not arrived yet.
    credit: VecDeque<(u64, u32)>,
}

fn transfer(input: &mut Unstructured<'_>) -> Result<()> {
    let mut transfer = Transfer {
        sending: Sending::default(),
        pool: Pool::default(),
        arrived: 0,
        payloads: BTreeMap::new(),
        wire: VecDeque::new(),
        credit: VecDeque::new(),
    };
    let played = transfer.play(input);
    transfer.finish();
    played
}

impl Transfer {
    fn play(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        for _ in 0..input.int_in_range(0..=60)? {
            let call = input.int_in_range(0..=5)?;
            match input.int_in_range(0..=7u8)? {
                0 | 1 => self.start(call, input)?,
                2 | 3 => self.pump(input.int_in_range(0..=20)?),
                4 => (0..input.int_in_range(1..=8)?).for_each(|_| self.arrive()),
                5 => (0..input.int_in_range(1..=4)?).for_each(|_| self.credited()),
                6 => self.give(call, *input.choose(&[0, 1, CHUNK_BYTES as u32, u32::MAX])?),
                _ => {
                    if let Some(payload) = self.payloads.get_mut(&call) {
                        payload.cancelled = true;
                        self.sending.cancel(call, payload.is_reply());
                    }
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, call: u64, input: &mut Unstructured<'_>) -> Result<()> {
        if self.payloads.contains_key(&call) {
            return Ok(());
        }
        let sizes = [CHUNK_BYTES + 1, 2 * CHUNK_BYTES, STREAM_WINDOW_BYTES, 2 * STREAM_WINDOW_BYTES + 5];
        let start = input.int_in_range(0..=255)?;
        let body = SOURCE.slice(start..start + input.choose(&sizes)?);
        let reply = !input.arbitrary::<bool>()?;
        let sent = self.sending.start(call, reply, &body);
        let (first, total) = (&body[..sent], body.len() as u32);
        let (receiver, credit) = if reply {
            let results = Results::new(&self.pool, false, u64::from(total));
            let body = Body::borrowed(first);
            let reply = Frame::Reply(Reply { id: call, more: true, part: 0, codec: 0, total, body });
            let credit = results.take(reply, false);
            (Receiver::Results(Box::new(results)), credit)
        } else {
            let mut arguments = Arguments::new(&self.pool, total, first);
            let credit = arguments.take_credit();
            (Receiver::Arguments(arguments), credit)
        };
        self.credit.extend(credit.map(|bytes| (call, bytes)));
        let payload = Payload { body, receiver, sent, on_its_way: sent, received: None, cancelled: false };
        self.payloads.insert(call, payload);
        Ok(())
    }

    /// Sends at most so many chunks.
    fn pump(&mut self, frames: usize) {
        let sent = RefCell::new(Vec::new());
        let send = |frame: &Frame<'_>| {
            let Frame::Chunk(chunk) = frame else { panic!("{frame:?} is no chunk") };
            sent.borrow_mut().push((chunk.id, chunk.reply, chunk.more, chunk.body.to_bytes()));
            Ok(())
        };
        self.sending.pump(|| sent.borrow().len() < frames, send);
        for (call, reply, more, body) in sent.into_inner() {
            let payload = self.payloads.get_mut(&call).expect("it was started");
            assert_eq!(reply, payload.is_reply());
            assert!(!payload.cancelled, "nobody wants it");
            assert!(!body.is_empty() && body.len() <= CHUNK_BYTES);
            assert_eq!(body, payload.body[payload.sent..payload.sent + body.len()]);
            payload.sent += body.len();
            payload.on_its_way += body.len();
            assert!(payload.on_its_way <= STREAM_WINDOW_BYTES, "more than the receiver takes");
            assert_eq!(more, payload.sent < payload.body.len());
            self.wire.push_back((call, more, body));
        }
        // Requests are for one receiver, results for another one.
        for reply in [false, true] {
            let is_sending = |payload: &&Payload| payload.is_sending() && payload.is_reply() == reply;
            let all: usize = self.payloads.values().filter(is_sending).map(|p| p.on_its_way).sum();
            assert!(
                all < RECEIVERS_WINDOW_BYTES + CHUNK_BYTES * (1 + self.payloads.len()),
                "more than the receiver's window"
            );
        }
    }

    /// The next chunk arrives.
    fn arrive(&mut self) {
        let Some((call, more, body)) = self.wire.pop_front() else { return };
        let placed = self.arrived.is_multiple_of(2);
        self.arrived += 1;
        let payload = self.payloads.get_mut(&call).expect("it was started");
        let reply = payload.is_reply();
        let chunk = Chunk { id: call, reply, more, part: 0, body: Body::shared(&body) };
        let credit = match &mut payload.receiver {
            Receiver::Arguments(arguments) => {
                payload.received = arguments.add(&chunk, placed).expect("it adds up");
                arguments.take_credit()
            }
            Receiver::Results(results) => {
                let credit = results.take(Frame::Chunk(chunk), placed);
                payload.received = results.outcome().map(|outcome| {
                    let mut parts = outcome.expect("it adds up");
                    parts.remove(0).expect("it is one result")
                });
                credit
            }
        };
        assert_eq!(payload.received.is_some(), !more);
        self.credit.extend(credit.map(|bytes| (call, bytes)));
    }

    /// The next credit arrives.
    fn credited(&mut self) {
        if let Some((call, bytes)) = self.credit.pop_front() {
            self.give(call, bytes);
        }
    }

    fn give(&mut self, call: u64, bytes: u32) {
        if let Some(payload) = self.payloads.get_mut(&call) {
            payload.on_its_way -= payload.on_its_way.min(bytes as usize);
            self.sending.credit(call, payload.is_reply(), bytes);
        }
    }

    /// Everything arrives, and so every payload that was not cancelled is whole.
    fn finish(&mut self) {
        while self.sending.is_active() {
            let before = self.wire.len() + self.credit.len();
            self.pump(usize::MAX);
            assert!(before + self.wire.len() > 0, "nothing goes on");
            while !self.wire.is_empty() {
                self.arrive();
            }
            while !self.credit.is_empty() {
                self.credited();
            }
        }
        while !self.wire.is_empty() {
            self.arrive();
        }
        for (call, payload) in &self.payloads {
            if !payload.cancelled {
                assert_eq!(payload.received.as_ref(), Some(&payload.body), "{call}");
            }
        }
    }
}

impl Payload {
    fn is_reply(&self) -> bool {
        matches!(self.receiver, Receiver::Results(_))
    }

    fn is_sending(&self) -> bool {
        !self.cancelled && self.sent < self.body.len()
    }
}

/// Any frames about the outcome of a call: there is at most one outcome, and it stays.
fn gather(input: &mut Unstructured<'_>) -> Result<()> {
    let limit = 3 * CHUNK_BYTES as u64 / 2;
    let results = Results::new(&Pool::default(), input.arbitrary()?, limit);
    let mut outcome = None;
    for _ in 0..input.int_in_range(0..=30)? {
        let (part, more) = (input.int_in_range(0..=3)?, input.arbitrary()?);
        let length = *input.choose(&[0, 1, 7, CHUNK_BYTES])?;
        let body = Body::borrowed(&SOURCE[..length]);
        let frame = match input.int_in_range(0..=3u8)? {
            0 => {
                // The decoder lets through only what adds up.
                let rest = *input.choose(&[1, 7, 8, CHUNK_BYTES as u32, u32::MAX - CHUNK_BYTES as u32])?;
                let total = length as u32 + if more { rest } else { 0 };
                Frame::Reply(Reply { id: 1, more, part, codec: 0, total, body })
            }
            1 if length > 0 => Frame::Chunk(Chunk { id: 1, reply: true, more, part, body }),
            2 => Frame::Targets(Targets { id: 1, nodes: input.choose(&["", "a", "a\nb", "a\na\n\nc"])? }),
            _ => {
                let fault = Box::new(Fault::new(FaultKind::Failed, "no"));
                Frame::Failure(Failure { id: 1, part, fault })
            }
        };
        // What comes after the outcome finds the call gone from the table, so credit for it is never sent.
        if let Some(credit) = results.take(frame, length % 2 == 1) {
            assert!(credit > 0);
        }
        let now = results.outcome().map(|outcome| match outcome {
            Ok(parts) => parts.into_iter().map(|part| part.map_err(|error| error.to_string())).collect(),
            Err(error) => vec![Err(error.to_string())],
        });
        for body in now.iter().flatten().flatten() {
            assert!(body.len() as u64 <= limit);
        }
        assert!(outcome.is_none() || outcome == now, "there is a second outcome");
        outcome = now;
    }
    Ok(())
}

/// Any chunks of arguments: what is whole has the announced size.
fn assemble(input: &mut Unstructured<'_>) -> Result<()> {
    let first = *input.choose(&[0, 1, CHUNK_BYTES])?;
    let total =
        first as u32 + *input.choose(&[1, 2, 3, CHUNK_BYTES as u32, u32::MAX - CHUNK_BYTES as u32])?;
    let mut arguments = Arguments::new(&Pool::default(), total, &SOURCE[..first]);
    let (mut received, mut credited) = (first, 0);
    for _ in 0..input.int_in_range(0..=20)? {
        let length = *input.choose(&[1, 2, CHUNK_BYTES])?;
        let (body, more) = (Body::borrowed(&SOURCE[..length]), input.arbitrary()?);
        let chunk = Chunk { id: 1, reply: false, more, part: 0, body };
        match arguments.add(&chunk, length % 2 == 1) {
            Ok(Some(whole)) => {
                assert_eq!(whole.len(), total as usize);
                assert!(!more);
                break;
            }
            Ok(None) => received += length,
            Err(problem) => {
                assert!(!problem.is_empty());
                break;
            }
        }
        credited += arguments.take_credit().unwrap_or(0) as usize;
        assert!(credited <= received && received < total as usize);
    }
    Ok(())
}
