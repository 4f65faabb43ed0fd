//! Four numbers and a payload: its length, where it goes, where it came from, and one for the caller.

use std::ops::Range;

pub const HEAD_BYTES: usize = 16;

/// A destination: any of the callees, in turn. With an empty payload the sender becomes one of them.
pub const ANY: u32 = 0;
/// A destination: all callees.
pub const ALL: u32 = u32::MAX;

const LENGTH: usize = 0;
const TO: usize = 4;
const FROM: usize = 8;
/// Where both of them are.
pub const ADDRESSES: Range<usize> = TO..FROM + 4;

/// The bytes of a whole frame, if its head is there.
pub fn frame_bytes(frame: &[u8]) -> Option<usize> {
    (frame.len() >= HEAD_BYTES).then(|| HEAD_BYTES + number(frame, LENGTH) as usize)
}

pub fn to(frame: &[u8]) -> u32 {
    number(frame, TO)
}

pub fn set_to(frame: &mut [u8], to: u32) {
    set(frame, TO, to);
}

pub fn from(frame: &[u8]) -> u32 {
    number(frame, FROM)
}

pub fn set_from(frame: &mut [u8], from: u32) {
    set(frame, FROM, from);
}

/// A frame with this payload.
pub fn frame(to: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEAD_BYTES];
    set(&mut frame, LENGTH, u32::try_from(payload.len()).expect("a payload below 4 GiB"));
    set_to(&mut frame, to);
    frame.extend_from_slice(payload);
    frame
}

fn number(frame: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(frame[at..at + 4].try_into().expect("four bytes"))
}

fn set(frame: &mut [u8], at: usize, number: u32) {
    frame[at..at + 4].copy_from_slice(&number.to_le_bytes());
}
