//! Bytes that are not frames: each is an error or a wait for more, and never a panic.

use super::*;
use crate::limits::{CHUNK_BYTES, HANDSHAKE_BYTES_MAX};

/// Small deterministic random numbers: the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Reads every field of a frame, so that lists that are decoded lazily are decoded too.
fn look_at(frame: &Frame<'_>) {
    let text = format!("{frame:?} {}", frame.kind());
    assert!(!text.is_empty());
    match frame {
        Frame::Register(register) => assert!(register.offers.iter().count() < FRAME_BYTES_MAX),
        Frame::Ask { question: Question::Schedule(Schedule { timing: Timing::At(times), .. }), .. } => {
            assert!(times.iter().count() < FRAME_BYTES_MAX);
        }
        _ => {}
    }
}

#[test]
fn every_truncation_waits_for_more() {
    for bytes in samples() {
        for end in 0..bytes.len() {
            let part = bytes.slice(..end);
            assert_eq!(Frame::decode(&part, 0, FRAME_BYTES_MAX), Ok(None), "{end} of {bytes:02x?}");
        }
    }
}

/// Whatever is recognized as a result without being decoded is one: whole, cut, or with any single bit
/// flipped.
#[test]
fn a_whole_reply_is_known_without_being_decoded() {
    let check = |bytes: &Bytes, limit: usize| {
        let decoded = Frame::decode(bytes, 0, FRAME_BYTES_MAX);
        let expected = match &decoded {
            Ok(Some((Frame::Reply(reply), next))) if !reply.more && reply.body.len() <= limit => Some(*next),
            _ => None,
        };
        assert_eq!(Frame::whole_reply(bytes, 0, limit), expected, "{bytes:02x?} is {decoded:?}");
        expected.is_some()
    };
    let mut known = 0;
    for bytes in samples() {
        for limit in [0, 3, 256, FRAME_BYTES_MAX] {
            known += usize::from(check(&bytes, limit));
            for end in 0..bytes.len() {
                check(&bytes.slice(..end), limit);
            }
            for bit in 0..8 * bytes.len() {
                let mut flipped = bytes.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                check(&flipped.into(), limit);
            }
        }
    }
    assert!(known > 0);
    // Following other frames.
    let stream: Bytes = samples().concat().into();
    let mut at = 0;
    while let Some((frame, next)) = Frame::decode(&stream, at, FRAME_BYTES_MAX).unwrap() {
        let is_whole = matches!(&frame, Frame::Reply(reply) if !reply.more);
        assert_eq!(Frame::whole_reply(&stream, at, FRAME_BYTES_MAX), is_whole.then_some(next));
        at = next;
    }
}

/// This allows the rest of it to be read directly to where it belongs.
#[test]
fn a_chunk_that_has_begun_is_known_by_its_head() {
    let mut chunks = 0;
    for bytes in samples() {
        let chunk = match whole(&bytes).unwrap() {
            Frame::Chunk(chunk) => Some((chunk.head(), chunk.body.to_bytes())),
            _ => None,
        };
        for end in 0..=bytes.len() {
            let begun = Frame::begun_chunk(&bytes[..end], 0);
            let (Some((head, body)), HEAD_AND_PART..) = (&chunk, end) else {
                assert_eq!(begun, None, "{end} of {bytes:02x?}");
                continue;
            };
            let came = &body[..end - HEAD_AND_PART];
            assert_eq!(begun, (came.len() < body.len()).then_some((*head, came)));
            chunks += 1;
        }
    }
    assert!(chunks > 0);
}

/// It will be refused once it is complete, so it must be recognized for what it is.
#[test]
fn a_chunk_that_is_too_long_is_none_that_has_begun() {
    for (length, known) in [(CHUNK_BYTES, true), (CHUNK_BYTES + 1, false)] {
        let body = Bytes::from(vec![7; length]);
        let chunk = Chunk { id: 1, reply: false, more: true, part: 0, body: Body::shared(&body) };
        let bytes = Frame::Chunk(chunk).to_bytes();
        assert_eq!(whole(&bytes).is_ok(), known);
        assert_eq!(Frame::begun_chunk(&bytes[..bytes.len() - 1], 0).is_some(), known);
    }
}

const HEAD_AND_PART: usize = HEAD_BYTES + 4;

/// A frame whose announced length is shorter than its layout needs: the content ends early at every offset.
#[test]
fn every_truncated_content_is_malformed_or_a_shorter_frame() {
    for bytes in samples() {
        for end in HEAD_BYTES..bytes.len() {
            let mut cut = bytes[..end].to_vec();
            cut[..4].copy_from_slice(&((end - HEAD_BYTES) as u32).to_le_bytes());
            if let Ok(frame) = whole(&cut.into()) {
                // Only if the content ends in something of open length: a body, a text, a list.
                look_at(&frame);
            }
        }
    }
}

#[test]
fn frames_are_found_however_the_bytes_arrive() {
    let frames = samples();
    let stream: Bytes = frames.concat().into();
    for step in [1, 2, 7, 64, stream.len()] {
        let mut kept = Vec::new();
        let mut found = Vec::new();
        for part in stream.chunks(step) {
            kept.extend_from_slice(part);
            let batch = Bytes::from(std::mem::take(&mut kept));
            let mut at = 0;
            while let Some((frame, next)) = Frame::decode(&batch, at, FRAME_BYTES_MAX).unwrap() {
                found.push(frame.to_bytes());
                at = next;
            }
            kept.extend_from_slice(&batch[at..]);
        }
        assert!(kept.is_empty());
        assert_eq!(found, frames, "in steps of {step}");
    }
}

fn check(hex: &str, problem: &str) {
    let bytes = unhex(hex);
    let error = match Frame::decode(&bytes, 0, FRAME_BYTES_MAX) {
        Err(error) => error.to_string(),
        other => panic!("expected an error with {problem:?}, got {other:?} from {hex}"),
    };
    assert!(error.contains(problem), "{error:?} does not say {problem:?}");
}

#[test]
fn unknown_kinds_are_refused() {
    check("00000000 00 00 00 00 0000000000000000", "unknown frame kind 0");
    check("00000000 11 00 00 00 0000000000000000", "unknown frame kind 17");
    check("00000000 ff 00 00 00 0000000000000000", "unknown frame kind 255");
}

#[test]
fn an_unknown_question_is_refused() {
    check("01000000 0d 00 00 00 0100000000000000 00", "malformed ASK frame: an unknown question");
    check("01000000 0d 00 00 00 0100000000000000 09", "malformed ASK frame: an unknown question");
}

#[test]
fn what_has_no_content_must_not_have_any() {
    for kind in ["05", "0a", "0e", "0f"] {
        check(&format!("01000000 {kind} 00 00 00 0100000000000000 00"), "bytes are left over");
    }
    // A credit has a fixed length too.
    check(&format!("20000000 0c 00 00 00 0100000000000000 {}", "00".repeat(32)), "bytes are left over");
}

#[test]
fn a_hello_begins_with_the_magic() {
    check("04000000 01 00 00 00 0000000000000000 44414649 ", "it ends early");
    check("05000000 01 00 00 00 0000000000000000 6461666900", "it does not begin with DAFI");
}

#[test]
fn texts_are_utf8() {
    // GOODBYE, TARGETS, REFUSE, and an ASK for the process "\xff".
    check("01000000 10 00 00 00 0000000000000000 ff", "a text is not UTF-8");
    check("02000000 09 00 00 00 0100000000000000 61c3", "a text is not UTF-8");
    check("02000000 03 00 00 00 0000000000000000 01ff", "a text is not UTF-8");
    check("03000000 0d 00 00 00 0100000000000000 0101ff", "a text is not UTF-8");
}

#[test]
fn names_end_within_the_frame() {
    // An ASK whose name claims 255 bytes but has one; a REQUEST likewise.
    check("03000000 0d 00 00 00 0100000000000000 01ff61", "it ends early");
    let fixed = format!("{} 00000000 ff 00 0000", "00".repeat(20));
    check(&format!("1d000000 06 00 00 01 0100000000000000 {fixed} 61"), "it ends early");
}

#[test]
fn an_offer_ends_within_the_frame() {
    // Index, fingerprint, ready, name, then a signature of 65,535 bytes that is missing.
    let offer = "00000000 0000000000000000 01 0161 ffff";
    check(
        &format!("11000000 04 00 00 00 0100000000000000 {offer}"),
        "malformed REGISTER frame: it ends early",
    );
}

#[test]
fn times_are_whole() {
    check("07000000 0d 00 00 00 0100000000000000 06 0400 01020304", "the times are not whole");
}

#[test]
fn totals_do_not_lie_about_the_first_part() {
    let request = |flags: &str, total: &str, body: &str| {
        let length = 29 + body.len() / 2;
        format!(
            "{length:02x}000000 06 {flags} 00 01 0100000000000000 {} ffffffff {total} 01 00 0000 66 {body}",
            "00".repeat(16)
        )
    };
    let lies = "the size of its payload is not the announced one";
    check(&request("00", "03000000", "0102"), lies);
    check(&request("00", "01000000", "0102"), lies);
    check(&request("00", "00000000", "0102"), lies);
    // A payload that continues must have something left to continue with.
    check(&request("01", "02000000", "0102"), lies);
    check(&request("01", "01000000", "0102"), lies);
    assert!(whole(&unhex(&request("00", "02000000", "0102"))).is_ok());
    assert!(whole(&unhex(&request("01", "03000000", "0102"))).is_ok());

    check("08000000 07 00 00 00 0100000000000000 00000000 01000000", lies);
    check("08000000 07 01 00 00 0100000000000000 00000000 00000000", lies);
}

#[test]
fn a_chunk_carries_something() {
    check("04000000 0b 00 00 00 0100000000000000 00000000", "malformed CHUNK frame: it is empty");
}

#[test]
fn a_body_is_at_most_one_chunk_long() {
    let fits = vec![7; CHUNK_BYTES];
    let chunk = |body| Frame::Chunk(Chunk { id: 1, reply: true, more: true, part: 0, body });
    assert!(whole(&chunk(Body::borrowed(&fits)).to_bytes()).is_ok());
    let longer = vec![7; CHUNK_BYTES + 1];
    let bytes = chunk(Body::borrowed(&longer)).to_bytes();
    assert!(matches!(Frame::decode(&bytes, 0, FRAME_BYTES_MAX), Err(ProtocolError::Malformed { .. })));
}

/// Whatever a node may send as a request, the controller can forward with the longest possible caller name.
#[test]
fn a_request_with_the_longest_names_and_body_is_a_frame() {
    let name = "n".repeat(255);
    let body = vec![0; CHUNK_BYTES];
    let request = Frame::Request(Request { node: &name, ..Request::new(1, &name, Body::borrowed(&body)) });
    assert_eq!(whole(&request.to_bytes()), Ok(request));
}

#[test]
fn a_length_is_refused_from_the_head_alone() {
    let head = unhex("ffffffff 06 00 00 00 0000000000000000");
    let error = Frame::decode(&head, 0, FRAME_BYTES_MAX).unwrap_err();
    assert_eq!(error, ProtocolError::Length { length: u32::MAX, limit: FRAME_BYTES_MAX, first: [0xff; 4] });
    // At the limit, it is a frame that has not arrived yet; one byte more is refused.
    let mut head = unhex("00000000 10 00 00 00 0000000000000000").to_vec();
    head[..4].copy_from_slice(&(HANDSHAKE_BYTES_MAX as u32).to_le_bytes());
    assert_eq!(Frame::decode(&head.clone().into(), 0, HANDSHAKE_BYTES_MAX), Ok(None));
    head[..4].copy_from_slice(&(HANDSHAKE_BYTES_MAX as u32 + 1).to_le_bytes());
    assert!(Frame::decode(&head.into(), 0, HANDSHAKE_BYTES_MAX).is_err());
}

#[test]
fn other_protocols_are_told_by_name() {
    for (bytes, name) in [
        (&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], "HTTP"),
        (b"POST / HTTP/1.1\r\n\r\n", "HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00\x00\x00\x00", "TLS"),
        (b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03\x00\x00\x00\x00\x00", "TLS"),
        (b"SSH-2.0-OpenSSH_9.7\r\n", "SSH"),
    ] {
        let bytes = Bytes::from_static(bytes);
        let error = Frame::decode(&bytes, 0, HANDSHAKE_BYTES_MAX).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..100_000 {
        let length = random.below(96);
        let mut bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        // Pure noise hardly ever passes the length check, so most of it gets a matching length and a known
        // kind.
        if length >= HEAD_BYTES && random.below(8) != 0 {
            bytes[..4].copy_from_slice(&((length - HEAD_BYTES) as u32).to_le_bytes());
            bytes[4] = random.below(18) as u8;
        }
        if let Ok(Some((frame, _))) = Frame::decode(&bytes.into(), 0, FRAME_BYTES_MAX) {
            look_at(&frame);
        }
    }
}

#[test]
fn frames_with_any_one_bit_flipped_never_panic() {
    for sample in samples() {
        for bit in 0..sample.len() * 8 {
            let mut bytes = sample.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(Some((frame, _))) = Frame::decode(&bytes.into(), 0, FRAME_BYTES_MAX) {
                look_at(&frame);
            }
        }
    }
}

#[test]
fn frames_with_flipped_bits_never_panic() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let samples = samples();
    for _ in 0..100_000 {
        let mut bytes = samples[random.below(samples.len())].to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        if let Ok(Some((frame, _))) = Frame::decode(&bytes.into(), 0, FRAME_BYTES_MAX) {
            look_at(&frame);
        }
    }
}
