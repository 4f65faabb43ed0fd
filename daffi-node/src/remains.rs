//! What is left of calls that are over, until no lock is held.
//!
//! Arguments and results may be user memory (`bytes::Bytes::from_owner`), and dropping the last reference
//! runs user code, which may well call something here. So whoever takes a call out of a table returns what it
//! finds there.

use daffi_core::{payload::Encoded, survive::survive};

/// Payloads dropped along with this, where none of our locks is held. Mostly there are none, which costs
/// nothing.
#[derive(Debug, Default)]
#[must_use = "it is to be dropped without a lock"]
pub(crate) struct Remains(Option<Box<Payloads>>);

#[derive(Debug, Default)]
struct Payloads(Vec<Encoded>);

impl Remains {
    #[inline]
    pub(crate) fn add(&mut self, payload: impl Into<Option<Encoded>>) {
        if let Some(payload) = payload.into()
            && payload.is_shared()
        {
            self.0.get_or_insert_default().0.push(payload);
        }
    }

    pub(crate) fn append(&mut self, other: Self) {
        if let Some(mut others) = other.0 {
            self.0.get_or_insert_default().0.append(&mut others.0);
        }
    }
}

impl Drop for Payloads {
    fn drop(&mut self) {
        for payload in self.0.drain(..) {
            survive(|| drop(payload));
        }
    }
}
