//! The golden bytes of every kind of frame, and what happens to bytes that are not a frame.

use super::{
    encode::{FAULT_DETAILS_MAX, FAULT_PAYLOAD_BYTES_MAX, FAULT_TEXT_BYTES_MAX},
    *,
};
use crate::{
    fault::FaultKind,
    limits::{FRAME_BYTES_MAX, HEAD_BYTES},
};

mod golden;
mod malformed;
mod protocol_page;

/// Decodes hex `text`, ignoring whitespace. A line may end in a comment after `#`.
fn unhex(text: &str) -> Bytes {
    let digits: String = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .flat_map(str::chars)
        .filter(|c| !c.is_whitespace())
        .collect();
    assert!(digits.len().is_multiple_of(2) && digits.is_ascii(), "half a byte in {text:?}");
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap_or_else(|_| panic!("no hex: {text:?}")))
        .collect()
}

/// Decodes the frame that takes up all of `bytes`.
fn whole(bytes: &Bytes) -> Result<Frame<'_>, ProtocolError> {
    let (frame, end) = Frame::decode(bytes, 0, FRAME_BYTES_MAX)?.expect("the bytes are a whole frame");
    assert_eq!(end, bytes.len());
    Ok(frame)
}

/// Returns one frame of every kind, with every question and every flag.
fn samples() -> Vec<Bytes> {
    golden::GOLDEN.iter().map(|(_, hex)| unhex(hex)).collect()
}
