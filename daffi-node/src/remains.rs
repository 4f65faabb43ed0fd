//! What is left of calls that are over, until nobody holds a lock.
//!
//! Arguments and results may be the user's own memory (`bytes::Bytes::from_owner`), and dropping the last of it runs the
//! user's code, which may well call something here. So whoever takes a call out of a table gives back what it finds there.

use daffi_core::{payload::Encoded, survive::survive};

/// Payloads that are dropped with this, where no lock of ours is held.
#[derive(Debug, Default)]
#[must_use = "it is to be dropped without a lock"]
pub(crate) struct Remains(Vec<Encoded>);

impl Remains {
    pub(crate) fn add(&mut self, payload: impl Into<Option<Encoded>>) {
        self.0.extend(payload.into().filter(Encoded::is_shared));
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        for payload in self.0.drain(..) {
            survive(|| drop(payload));
        }
    }
}
