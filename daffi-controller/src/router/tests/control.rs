use daffi_core::{fault::FaultKind, frame::Question};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Sends this many frames per second, and returns after how many seconds the peer was closed.
fn flood(
    world: &mut World,
    peer: PeerId,
    a_second: u64,
    frame: impl Fn(u64) -> Frame<'static>,
) -> Option<u64> {
    for second in 0..20 {
        for n in 0..a_second {
            world.send(peer, &frame(second * a_second + n));
            if world.out.closed.contains_key(&peer) {
                return Some(second);
            }
        }
        world.now.mono += SECOND;
    }
    None
}

fn nothing_to_register(id: u64) -> Frame<'static> {
    Frame::Register(Register { id, more: false, offers: Offers::parse(&[]).unwrap() })
}

#[test]
fn a_flood_of_control_frames_ends_the_connection_after_five_seconds() {
    type Make = fn(u64) -> Frame<'static>;
    let frames: [(&str, Make); 8] = [
        ("PING", |id| Frame::Ping { id }),
        ("PONG", |id| Frame::Pong { id: id + 1 }),
        ("CANCEL", |id| Frame::Cancel { id }),
        ("REGISTER", nothing_to_register),
        ("CREDIT", |id| Frame::Credit { id, reply: id % 2 == 0, part: 0, bytes: 1 }),
        ("REPLY", |id| reply(id, "x")),
        ("FAILURE", |id| failure(id, FaultKind::Failed)),
        ("GOODBYE", |_| Frame::Goodbye { reason: "again" }),
    ];
    for (kind, frame) in frames {
        let mut world = World::new();
        let peer = world.join("a", &["f"]);
        assert_eq!(flood(&mut world, peer, 1000, frame), None, "{kind}: as many as may be");
        assert_eq!(flood(&mut world, peer, 1001, frame), Some(4), "{kind}");
        assert!(world.out.closed[&peer].contains("too many control frames"), "{:?}", world.out.closed);
        assert_eq!(world.said(peer).last().unwrap(), "REFUSE Protocol");
    }
}

#[test]
fn a_burst_is_no_flood() {
    let mut world = World::new();
    let peer = world.join("a", &[]);
    for _ in 0..10 {
        for id in 0..100_000 {
            world.send(peer, &Frame::Ping { id });
        }
        world.out.sent.clear();
        // Now and then it pauses.
        world.now.mono += 2 * SECOND;
    }
    assert!(!world.out.closed.contains_key(&peer));
}

#[test]
fn who_cancels_many_of_his_own_calls_is_no_flood() {
    let mut world = World::new();
    let (a, b) = (world.join("a", &[]), world.join("b", &["f"]));
    let mut id = 0;
    for second in 0..10 {
        for n in 0..5000 {
            id += 1;
            world.said(b);
            world.call(a, id, "f");
            let at_callee = world.id_at(b);
            // Some are cancelled in time and answered in vain; for the others the outcome crosses the CANCEL.
            let in_time = n % 2 == 0;
            if in_time {
                world.send(a, &Frame::Cancel { id });
            }
            world.reply(b, at_callee, "x");
            if !in_time {
                world.send(a, &Frame::Cancel { id });
            }
            id += 1;
            world.send(a, &Frame::Ask { id, codec: 0, question: Question::WaitProcess { name: "nobody" } });
            world.send(a, &Frame::Cancel { id });
            // There is nobody to call: the failure crosses the CANCEL.
            id += 1;
            world.call(a, id, "nobody");
            world.send(a, &Frame::Cancel { id });
        }
        assert!(world.out.closed.is_empty(), "in second {second}: {:?}", world.out.closed);
        world.out.sent.clear();
        world.now.mono += SECOND;
    }
    world.assert_idle();
    // The allowance is used up.
    assert_eq!(flood(&mut world, b, 1001, |id| reply(id, "x")), Some(4));
}

#[test]
fn credit_for_what_was_sent_is_no_flood() {
    let mut world = World::new();
    let (a, b) = (world.join("a", &[]), world.join("b", &["f"]));
    for second in 0..10 {
        let id = second + 1;
        let parts = 5000;
        world.send(a, &Frame::Request(Request { more: true, total: 4 + parts, ..request(id, "f") }));
        let at_callee = world.id_at(b);
        for part in 0..parts {
            let more = part + 1 < parts;
            world.send(a, &chunk(id, false, more, "x"));
            world.send(b, &Frame::Credit { id: at_callee, reply: false, part: 0, bytes: 1 });
        }
        let body = Body::borrowed(b"x");
        let total = 1 + parts;
        world.send(b, &Frame::Reply(Reply { id: at_callee, more: true, part: 0, codec: 0, total, body }));
        for part in 0..parts {
            let more = part + 1 < parts;
            world.send(b, &chunk(at_callee, true, more, "x"));
            world.send(a, &Frame::Credit { id, reply: true, part: 0, bytes: 1 });
        }
        assert!(world.out.closed.is_empty(), "{:?}", world.out.closed);
        world.out.sent.clear();
        world.now.mono += SECOND;
    }
    world.assert_idle();
}
