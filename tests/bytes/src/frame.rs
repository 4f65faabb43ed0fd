//! Bytes to frames and back.

use bytes::Bytes;
use daffi_core::{
    Error,
    frame::{Frame, Offers, Question, Schedule, Times, Timing},
    limits::{FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX, HEAD_BYTES},
};

/// Any bytes, as they come from a socket.
pub fn stream(bytes: &[u8]) {
    let batch = Bytes::copy_from_slice(bytes);
    for limit in [FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX] {
        let mut at = 0;
        loop {
            let whole_reply = Frame::whole_reply(&batch, at, limit);
            let decoded = Frame::decode(&batch, at, limit);
            let is_whole = |frame: &Frame<'_>| matches!(frame, Frame::Reply(reply) if !reply.more);
            match &decoded {
                Ok(Some((frame, next))) => assert_eq!(whole_reply, is_whole(frame).then_some(*next)),
                // A limit for frames counts what is around the result as well.
                _ => assert!(whole_reply.is_none_or(|next| next - at > HEAD_BYTES + limit)),
            }
            match decoded {
                Ok(Some((frame, next))) => {
                    let frame_bytes = batch.slice(at..next);
                    assert!(frame_bytes.len() <= HEAD_BYTES + limit);
                    let early = batch.slice(..next - 1);
                    assert_eq!(Frame::decode(&early, at, limit), Ok(None), "without its last byte");
                    comes_out_again(&frame, &frame_bytes);
                    look_inside(&frame);
                    at = next;
                }
                Ok(None) => break,
                Err(error) => {
                    assert!(error.to_string().len() < 1024);
                    break;
                }
            }
        }
    }
}

/// One frame of each kind with any content: the head is made so that it fits.
///
/// The first byte is the kind, the next three are flags, codec and hops, eight the id, and the rest is the content.
pub fn content(bytes: &[u8]) {
    let Some(([kind, rest @ ..], content)) = bytes.split_first_chunk::<12>() else { return };
    let content = &content[..content.len().min(FRAME_BYTES_MAX)];
    let mut frame = (content.len() as u32).to_le_bytes().to_vec();
    frame.push(kind % 18);
    frame.extend_from_slice(rest);
    frame.extend_from_slice(content);
    stream(&frame);
}

/// What was decoded is encoded to the bytes it came from, but for what this version passes over.
pub(crate) fn comes_out_again(frame: &Frame<'_>, bytes: &[u8]) {
    let again = frame.to_bytes();
    let (decoded, end) = Frame::decode(&again, 0, FRAME_BYTES_MAX)
        .unwrap_or_else(|error| panic!("{error}: {frame:?}"))
        .expect("what was encoded is whole");
    assert_eq!(end, again.len());
    assert_eq!(decoded.to_bytes(), again, "the second time");

    let mut known = bytes.to_vec();
    let flags = match frame {
        Frame::Request(_) => 0b111,
        Frame::Reply(_) | Frame::Register(_) => 0b1,
        Frame::Chunk(_) => 0b1001,
        Frame::Credit { .. } => 0b1000,
        _ => 0,
    };
    known[5] &= flags;
    if !matches!(frame, Frame::Request(_) | Frame::Reply(_) | Frame::Ask { .. }) {
        known[6] = 0;
    }
    if !matches!(frame, Frame::Request(_)) {
        known[7] = 0;
    }
    match frame {
        Frame::Hello(_) | Frame::Welcome(_) | Frame::Refuse(_) | Frame::Goodbye { .. } => {
            known[8..16].fill(0)
        }
        Frame::Request(_) => known[HEAD_BYTES + 25] = 0,
        _ => {}
    }
    match frame {
        // What a newer version appends is passed over.
        Frame::Hello(_) | Frame::Welcome(_) => {
            known.truncate(again.len());
            known[..4].copy_from_slice(&again[..4]);
        }
        // Its texts are cut where it is made, not where it is read.
        Frame::Failure(_) if again.len() < known.len() => return assert_ne!(decoded, *frame),
        _ => {}
    }
    assert_eq!(decoded, *frame);
    assert_eq!(again, known, "{frame:?}");
}

/// Everything that is decoded late is decoded, and what is shown to people is shown.
fn look_inside(frame: &Frame<'_>) {
    assert!(!frame.kind().is_empty());
    match frame {
        Frame::Register(register) => {
            let mut again = Vec::new();
            for offer in register.offers.iter() {
                Offers::push(&mut again, &offer);
            }
            let again = Offers::parse(&again).expect("it was pushed");
            assert!(again.iter().eq(register.offers.iter()));
        }
        Frame::Ask { question: Question::Schedule(Schedule { timing: Timing::At(times), .. }), .. } => {
            let again: Vec<u8> = times.iter().flat_map(u64::to_le_bytes).collect();
            assert_eq!(Times::parse(&again).as_ref(), Ok(times));
        }
        Frame::Failure(failure) => {
            let error = Error::from_fault((*failure.fault).clone(), "f", "() -> ()");
            assert!(error.to_string().len() < FRAME_BYTES_MAX);
            let _ = (error.may_have_executed(), error.is_retryable(), error.downcast::<String>());
        }
        _ => {}
    }
}
