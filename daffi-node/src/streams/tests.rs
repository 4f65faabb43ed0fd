use std::{cell::RefCell, time::Duration};

use bytes::Bytes;

use super::{on_its_way::STUCK_AFTER, *};

const TO: Receiver<'_> = Receiver::Node("a");
const FIRST: StreamId = StreamId { call: 1, reply: false };
const SECOND: StreamId = StreamId { call: 2, reply: true };

fn zeros(size: usize) -> Encoded {
    Bytes::from(vec![0; size]).into()
}

/// Returns everything that goes out now: which call, how many bytes, whether more follows.
fn pump(streams: &Streams) -> Vec<(u64, usize, bool)> {
    let sent = RefCell::new(Vec::new());
    let send = |frame: &Frame<'_>| {
        let Frame::Chunk(chunk) = frame else { panic!("{frame:?}") };
        sent.borrow_mut().push((chunk.id, chunk.body.len(), chunk.more));
        Ok(())
    };
    drop(streams.pump(|| true, send));
    sent.into_inner()
}

fn local() -> Streams {
    let streams = Streams::default();
    streams.set_link(true);
    streams
}

/// Begins a payload; all requests are for one receiver, and all results for another.
fn begin(streams: &Streams, id: StreamId, body: &Encoded) -> usize {
    let to = if id.reply { Receiver::Node("a") } else { Receiver::Offering("a") };
    let first = streams.begin(id, to, body, !id.reply, None);
    streams.go_on(id);
    first
}

fn start(streams: &Streams, id: StreamId, body: &Encoded) {
    assert_eq!(begin(streams, id, body), PIECE_BYTES);
}

fn on_their_way(streams: &Streams) -> usize {
    let state = streams.state.lock();
    let sum: usize = state.streams.values().map(|stream| stream.on_its_way.bytes()).sum();
    assert_eq!(sum, state.receivers.values().map(|queue| queue.on_their_way).sum::<usize>());
    assert_eq!(state.streams.len(), state.receivers.values().map(|queue| queue.streams).sum::<usize>());
    assert!(state.on_their_way.moving() <= sum && state.on_their_way.prompt() <= state.on_their_way.moving());
    sum
}

#[test]
fn what_is_taken_before_its_sender_is_back_counts() {
    let streams = Streams::default();
    streams.begin(FIRST, TO, &zeros(2 * PIECE_BYTES), true, None);
    streams.credit(FIRST, PIECE_BYTES as u32);
    assert!(pump(&streams).is_empty(), "nothing overtakes the first frame");
    streams.go_on(FIRST);
    assert_eq!(pump(&streams), [(1, PIECE_BYTES, false)]);
    streams.credit(FIRST, PIECE_BYTES as u32);
    assert!(!streams.is_active());
    assert_eq!(on_their_way(&streams), 0);
    // Nor does a payload go on that was cancelled in the meantime.
    streams.begin(FIRST, TO, &zeros(2 * PIECE_BYTES), true, None);
    streams.cancel(FIRST, &mut Remains::default());
    streams.go_on(FIRST);
    assert!(pump(&streams).is_empty());
}

#[test]
fn payloads_take_turns_and_end_with_their_last_byte() {
    let streams = Streams::default();
    let turn = TURN_BYTES.div_ceil(PIECE_BYTES);
    let body = zeros((turn + 1) * PIECE_BYTES + 5);
    start(&streams, FIRST, &body);
    start(&streams, SECOND, &body);
    let mut calls = Vec::new();
    loop {
        let sent = pump(&streams);
        if sent.is_empty() {
            break;
        }
        for (call, bytes, more) in sent {
            let id = if call == 1 { FIRST } else { SECOND };
            // The start of the payload has arrived with the first of these.
            let begun = if calls.contains(&(call, true)) { 0 } else { PIECE_BYTES };
            calls.push((call, more));
            streams.credit(id, (begun + bytes) as u32);
        }
    }
    // The first chunk has left with the frame that begins the payload.
    let first = |call| vec![(call, true); turn - 1];
    let end = |call| vec![(call, true), (call, false)];
    assert_eq!(calls, [first(1), first(2), end(1), end(2)].concat());
    assert!(!streams.is_active());
    assert_eq!(on_their_way(&streams), 0);
}

#[test]
fn the_result_is_forgotten_once_it_is_sent_and_the_request_once_it_has_arrived() {
    let streams = Streams::default();
    let body = zeros(2 * PIECE_BYTES);
    start(&streams, FIRST, &body);
    start(&streams, SECOND, &body);
    pump(&streams);
    assert_eq!(on_their_way(&streams), body.len());
    streams.credit(FIRST, body.len() as u32 - 1);
    assert!(streams.is_active());
    streams.credit(FIRST, 1);
    assert!(!streams.is_active());
    assert_eq!(on_their_way(&streams), 0);
}

#[test]
fn no_more_is_sent_than_the_receiver_takes() {
    let streams = Streams::default();
    start(&streams, FIRST, &zeros(3 * STREAM_WINDOW_BYTES));
    assert_eq!(total(pump(&streams)), STREAM_WINDOW_BYTES - PIECE_BYTES);
    assert!(pump(&streams).is_empty());
    streams.credit(FIRST, 0);
    assert!(pump(&streams).is_empty(), "an empty chunk would end the connection");
    streams.credit(FIRST, 100);
    assert_eq!(total(pump(&streams)), 100);
    streams.credit(FIRST, u32::MAX);
    assert_eq!(total(pump(&streams)), STREAM_WINDOW_BYTES, "however much it claims to take");
    streams.cancel(FIRST, &mut Remains::default());
    streams.credit(FIRST, 100);
    assert!(pump(&streams).is_empty());
    assert!(!streams.is_active());
}

#[test]
fn a_call_that_is_sent_again_has_one_turn_at_a_time() {
    let streams = Streams::default();
    let body = zeros(3 * STREAM_WINDOW_BYTES);
    start(&streams, FIRST, &body);
    streams.cancel(FIRST, &mut Remains::default());
    start(&streams, FIRST, &body);
    let sent = pump(&streams);
    assert_eq!(sent.iter().map(|(_, bytes, _)| bytes).sum::<usize>(), STREAM_WINDOW_BYTES - PIECE_BYTES);
    assert!(sent.iter().all(|(_, bytes, _)| *bytes > 0), "an empty chunk would end the connection");
}

#[test]
fn all_payloads_of_a_link_share_a_window() {
    let body = zeros(STREAM_WINDOW_BYTES);
    for _ in 0..100 {
        let (streams, begun) = (local(), host::now());
        for call in 0..20 {
            begin(&streams, StreamId { call, reply: false }, &body);
        }
        pump(&streams);
        let sum = on_their_way(&streams);
        // On a machine that stalled they are late, and late ones do not count.
        if host::now() < begun + LATE_AFTER {
            assert!(sum <= LOCAL_WINDOW_BYTES + PIECE_BYTES, "{sum} bytes");
            return;
        }
    }
    panic!("each time it took longer than {LATE_AFTER:?}");
}

fn total(sent: Vec<(u64, usize, bool)>) -> usize {
    sent.iter().map(|(_, bytes, _)| bytes).sum()
}

/// Lets this much time pass.
fn after(streams: &Streams, time: Duration) {
    let mut state = streams.state.lock();
    state.streams.values_mut().for_each(|stream| stream.on_its_way.passes(time));
    state.looked = None;
}

/// The I/O thread comes again and again for this long, and nothing arrives.
fn go_on_for(streams: &Streams, time: Duration, every: Duration) {
    let mut passed = Duration::ZERO;
    while passed < time {
        after(streams, every);
        pump(streams);
        passed += every;
    }
}

/// Starts payloads for a receiver that takes nothing, or no more than `takes` pieces of each.
fn hold_up(streams: &Streams, body: &Encoded, narrow: bool, takes: usize) {
    for call in 10..16 {
        let id = StreamId { call, reply: false };
        streams.begin(id, Receiver::Node("frozen"), body, true, None);
        streams.go_on(id);
        pump(streams);
        if narrow {
            streams.make_way();
        }
        for _ in 0..takes {
            streams.credit(id, PIECE_BYTES as u32);
            pump(streams);
        }
    }
}

#[test]
fn payloads_wait_for_no_other_receiver_that_takes_nothing() {
    let cases =
        [(false, 0, LATE_AFTER), (true, 0, STUCK_AFTER), (false, 1, LATE_AFTER), (true, 1, STUCK_AFTER)];
    for (narrow, takes, late_after) in cases {
        for size in [64 << 20, STREAM_WINDOW_BYTES] {
            let streams = local();
            hold_up(&streams, &zeros(size), narrow, takes);
            assert!(on_their_way(&streams) <= LOCAL_WINDOW_BYTES + PIECE_BYTES);
            begin(&streams, FIRST, &zeros(64 << 20));
            go_on_for(&streams, 20 * late_after, late_after);
            assert!(on_their_way(&streams) <= RECEIVERS_WINDOW_BYTES + NARROW_WINDOW_BYTES);
            let mut taken = 0;
            for _ in 0..200 {
                if narrow {
                    streams.make_way();
                }
                after(&streams, late_after / 20);
                streams.credit(FIRST, u32::MAX);
                taken += total(pump(&streams).into_iter().filter(|(call, ..)| *call == FIRST.call).collect());
            }
            assert!(taken > 4 * STREAM_WINDOW_BYTES, "{taken}: {narrow}, {takes}, {size}");
        }
    }
}

/// If nothing arrives that makes them go on, the I/O thread comes by itself.
#[test]
fn payloads_that_wait_for_others_are_watched() {
    for narrow in [false, true] {
        let streams = local();
        assert!(!streams.are_unwatched() && streams.due(host::now()).is_none());
        hold_up(&streams, &zeros(64 << 20), narrow, 0);
        begin(&streams, FIRST, &zeros(64 << 20));
        pump(&streams);
        assert!(streams.are_unwatched());
        assert!(streams.due(host::now()).is_some());
        assert!(!streams.are_unwatched());
    }
}

#[test]
fn all_receivers_together_have_little_more_on_their_way_than_one() {
    let streams = local();
    for call in 0..100u64 {
        let name = format!("node {call}");
        let id = StreamId { call, reply: true };
        streams.begin(id, Receiver::Node(&name), &zeros(64 << 20), false, None);
        streams.go_on(id);
    }
    go_on_for(&streams, 200 * LATE_AFTER, LATE_AFTER);
    let all = on_their_way(&streams);
    assert!(all <= RECEIVERS_WINDOW_BYTES + 100 * NARROW_WINDOW_BYTES, "{all}");
    for call in 2..100 {
        streams.cancel(StreamId { call, reply: true }, &mut Remains::default());
    }
    pump(&streams);
    for call in 0..2 {
        let id = StreamId { call, reply: true };
        let on_its_way = streams.state.lock().streams[&id].on_its_way.bytes();
        assert_eq!(on_its_way, STREAM_WINDOW_BYTES, "it goes on with fewer of them");
    }
}

/// Several of them may be one node, with a queue of 8 MiB, however they follow each other.
#[test]
fn a_few_receivers_do_not_fill_a_queue() {
    let streams = local();
    for name in 0..8 {
        let name = name.to_string();
        for call in 0..4 {
            let id = StreamId { call: 10 * u64::from(name.as_bytes()[0]) + call, reply: false };
            streams.begin(id, Receiver::Offering(&name), &zeros(4 << 20), true, None);
            streams.go_on(id);
        }
        go_on_for(&streams, 20 * LATE_AFTER, LATE_AFTER);
    }
    let all = on_their_way(&streams);
    assert!(all <= RECEIVERS_WINDOW_BYTES + 8 * NARROW_WINDOW_BYTES + LOCAL_WINDOW_BYTES, "{all}");
}

/// However often the I/O thread looks: on a slow link they would fill it.
#[test]
fn payloads_keep_their_distance_while_calls_go_on_however_slowly() {
    let streams = local();
    streams.begin(FIRST, TO, &zeros(64 << 20), true, None);
    streams.go_on(FIRST);
    streams.make_way();
    let mut sent = PIECE_BYTES + total(pump(&streams));
    let mut now = host::now();
    for _ in 0..100 {
        streams.make_way();
        now += NARROW_FOR / 2;
        after(&streams, NARROW_FOR / 200);
        streams.due(now);
        sent += total(pump(&streams));
    }
    assert_eq!(sent, NARROW_WINDOW_BYTES);
}

#[test]
fn payloads_go_on_when_other_calls_do_not_use_the_link_any_more() {
    let streams = local();
    streams.begin(FIRST, TO, &zeros(64 << 20), true, None);
    streams.go_on(FIRST);
    streams.make_way();
    let narrow = PIECE_BYTES + total(pump(&streams));
    assert_eq!(narrow, NARROW_WINDOW_BYTES);
    let now = host::now();
    let until = streams.due(now).expect("it is looked after");
    assert!(until <= now + NARROW_FOR && pump(&streams).is_empty());
    assert!(streams.due(until).is_some());
    assert_eq!(narrow + total(pump(&streams)), STREAM_WINDOW_BYTES);
}

#[test]
fn payloads_for_one_receiver_take_turns() {
    let streams = Streams::default();
    let body = zeros(3 * TURN_BYTES);
    let ids = [1, 2].map(|call| StreamId { call, reply: true });
    ids.iter().for_each(|id| _ = begin(&streams, *id, &body));
    let mut order = Vec::new();
    loop {
        let sent = pump(&streams);
        if sent.is_empty() {
            break;
        }
        for (call, bytes, _) in sent {
            order.push((call, bytes));
            // The receiver takes them before the payloads run out of credit.
            streams.credit(ids[call as usize - 1], bytes as u32);
        }
    }
    let turns: Vec<_> = order.chunk_by(|(one, _), (next, _)| one == next).collect();
    assert!(turns.len() >= 5, "{} turns", turns.len());
    let longest = turns.iter().map(|turn| turn.iter().map(|(_, bytes)| bytes).sum::<usize>()).max();
    assert!(longest < Some(TURN_BYTES + 2 * PIECE_BYTES), "{longest:?}");
}

#[test]
fn receivers_take_turns_however_many_payloads_each_has() {
    let streams = local();
    let body = zeros(2 * PIECE_BYTES);
    let ids = (0..40).map(|call| StreamId { call, reply: call < 30 });
    ids.for_each(|id| _ = begin(&streams, id, &body));
    let mut order = Vec::new();
    for _ in 0..20 {
        after(&streams, LATE_AFTER);
        order.extend(pump(&streams).into_iter().filter(|(_, _, more)| !more).map(|(call, ..)| call));
    }
    let of_requests = |call: &&u64| **call >= 30;
    assert_eq!(order.len(), 40);
    assert_eq!(order[..20].iter().filter(of_requests).count(), 10, "{order:?}");
}

#[test]
fn a_receiver_that_was_late_counts_again_once_it_is_prompt() {
    let streams = Streams::default();
    start(&streams, FIRST, &zeros(64 << 20));
    let window = PIECE_BYTES + total(pump(&streams));
    let prompt = || {
        let mut state = streams.state.lock();
        state.looked = None;
        state.look(host::now());
        state.on_their_way.prompt()
    };
    assert_eq!(prompt(), window);
    after(&streams, LATE_AFTER);
    assert_eq!(prompt(), 0);
    // The first to arrive was late.
    for then in [0, window, window] {
        streams.credit(FIRST, window as u32);
        assert_eq!(total(pump(&streams)), window);
        assert_eq!(prompt(), then);
        assert_eq!(on_their_way(&streams), window);
    }
}

/// However far away a receiver is, its whole window is on its way.
#[test]
fn a_long_way_has_a_wide_window() {
    let streams = local();
    let body = zeros(64 << 20);
    let ids: Vec<_> = (0..8).map(|call| StreamId { call, reply: true }).collect();
    ids.iter().for_each(|id| _ = begin(&streams, *id, &body));
    let mut on_its_way = VecDeque::from(pump(&streams));
    for _ in 0..1000 {
        after(&streams, 2 * LATE_AFTER);
        if let Some((call, bytes, _)) = on_its_way.pop_front() {
            streams.credit(ids[call as usize], bytes as u32);
        }
        on_its_way.extend(pump(&streams));
    }
    let on_their_way = on_their_way(&streams);
    assert!(on_their_way >= RECEIVERS_WINDOW_BYTES, "{on_their_way}");
    assert!(on_their_way < RECEIVERS_WINDOW_BYTES + PIECE_BYTES, "{on_their_way}");
}

/// Receivers give credit only for what arrived: however many payloads there are, all of them arrive.
#[test]
fn any_number_of_payloads_arrives_whole() {
    let streams = local();
    let body = zeros(STREAM_WINDOW_BYTES);
    let mut arrived = Vec::new();
    for call in 0..300 {
        let id = StreamId { call, reply: false };
        arrived.push(begin(&streams, id, &body));
    }
    for (call, first) in arrived.iter().enumerate() {
        streams.credit(StreamId { call: call as u64, reply: false }, *first as u32);
    }
    loop {
        let sent = pump(&streams);
        if sent.is_empty() {
            break;
        }
        for (call, bytes, _) in sent {
            arrived[call as usize] += bytes;
            assert!(on_their_way(&streams) <= LOCAL_WINDOW_BYTES + PIECE_BYTES);
            streams.credit(StreamId { call, reply: false }, bytes as u32);
        }
    }
    assert_eq!(arrived, vec![STREAM_WINDOW_BYTES; 300]);
    assert!(!streams.is_active());
    assert_eq!(on_their_way(&streams), 0);
}

#[test]
fn payloads_keep_their_distance_while_other_calls_use_the_link() {
    let streams = Streams::default();
    streams.make_way();
    start(&streams, FIRST, &zeros(64 << 20));
    let on_its_way = total(pump(&streams));
    assert_eq!(on_its_way, STREAM_WINDOW_BYTES - PIECE_BYTES, "the call before it is no reason");
    streams.make_way();
    streams.credit(FIRST, (PIECE_BYTES + on_its_way) as u32);
    // Now as much as that arrives, and is sent anew, again and again.
    let mut sent = total(pump(&streams));
    assert_eq!(sent, NARROW_WINDOW_BYTES);
    let mut last = sent;
    while last <= NARROW_WINDOW_BYTES {
        streams.credit(FIRST, last as u32);
        last = total(pump(&streams));
        sent += last;
        assert!(sent <= 2 * NARROW_FOR_BYTES, "the way is free again");
    }
    assert!(sent > NARROW_FOR_BYTES);
}
