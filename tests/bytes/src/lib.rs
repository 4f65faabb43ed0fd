//! What strangers' bytes may do to each part of daffi.
//!
//! Each check takes any bytes and panics where something does not hold that has to. The fuzz targets in `fuzz/` look
//! for such bytes; `tests/corpus.rs` runs what they have found interesting so far, on stable and in the gate.

mod frame;
pub use frame::{content, stream};

mod payload;
pub use payload::payload;

mod router;
pub use router::{handshake, router};

mod streams;
pub use streams::streams;

/// A check.
pub type Check = fn(&[u8]);

/// Every check by the name of its fuzz target.
pub const CHECKS: [(&str, Check); 6] = [
    ("stream", stream),
    ("content", content),
    ("handshake", handshake),
    ("router", router),
    ("streams", streams),
    ("payload", payload),
];
