//! The callbacks of one node, each with its number.

use std::{collections::HashMap, time::Duration};

use daffi_core::{
    Error, Result,
    frame::{Offer, Offers},
    limits::CHUNK_BYTES,
    names::check_name,
};

use crate::{
    callback::{Callback, Handler},
    executor::{Gate, Pace, Run},
};

/// The callbacks of one node. Their order is their numbering, and does not change.
#[derive(Debug)]
pub(crate) struct Registry {
    entries: Vec<Entry>,
}

/// A callback, with what is needed to run it here.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) callback: Callback,
    pub(crate) gate: Option<Gate<Run>>,
    pub(crate) pace: Pace,
}

/// How long a callback may hold a thread that it should not hold before this is logged.
const LONG: Duration = Duration::from_secs(1);

/// The most bytes of a signature on the wire. A longer one is cut off: it is for people; the fingerprint is
/// what is compared.
const SIGNATURE_BYTES_MAX: usize = 4 * 1024;

impl Entry {
    /// Returns whether the callback runs on the I/O thread, where its calls arrive, with arguments of this
    /// many bytes. Merely decoding large ones would hold up everybody else's calls there, however quick the
    /// callback is with others.
    pub(crate) fn is_quick(&self, arguments: usize) -> bool {
        self.callback.options().inline || (arguments <= CHUNK_BYTES && self.pace.is_quick())
    }

    /// Logs if the callback held a thread that others rely on for too long, between two `.await`s or inline.
    /// Others are not held up by that, but they had to be given another thread, and there are not many.
    pub(crate) fn held_its_thread(&self, time: Duration) {
        let kind = match self.callback.handler() {
            _ if self.callback.options().inline => "inline",
            Handler::Async(_) => "async fn",
            // These are for whatever takes long or blocks.
            Handler::Sync(_) => return,
        };
        if time >= LONG {
            tracing::warn!(
                callback = self.callback.name(),
                kind,
                took = ?time,
                "a callback held its thread: it blocks, or computes for long. Make it an `fn` without `inline`, or hand \
                 the work to tokio's `spawn_blocking`"
            );
        }
    }
}

impl Registry {
    /// Returns a registry of these callbacks, sorted by name so that every start numbers them alike.
    ///
    /// # Errors
    /// [`Error::DuplicateCallback`] if two have the same name, [`Error::InvalidName`].
    pub(crate) fn new(mut callbacks: Vec<Callback>) -> Result<Self> {
        callbacks.sort_by(|a, b| (a.name(), a.source()).cmp(&(b.name(), b.source())));
        let mut places: HashMap<&str, &str> = HashMap::with_capacity(callbacks.len());
        for callback in &callbacks {
            let name = callback.name();
            check_name(name).map_err(|reason| Error::InvalidName { name: name.to_owned(), reason })?;
            if let Some(first) = places.insert(name, callback.source()) {
                return Err(Error::DuplicateCallback {
                    name: name.to_owned(),
                    first: first.to_owned(),
                    second: callback.source().to_owned(),
                });
            }
        }
        let entries = callbacks
            .into_iter()
            .map(|callback| Entry {
                gate: callback.options().max_concurrency.map(Gate::new),
                pace: Pace::new(matches!(callback.handler(), Handler::Async(_))),
                callback,
            })
            .collect();
        Ok(Self { entries })
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Entry> {
        self.entries.get(index as usize)
    }

    pub(crate) fn gates(&self) -> impl Iterator<Item = &Gate<Run>> {
        self.entries.iter().filter_map(|entry| entry.gate.as_ref())
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns how many callbacks can be called now. The number never falls.
    pub(crate) fn callable(&self) -> usize {
        self.entries.iter().filter(|entry| entry.callback.is_callable()).count()
    }

    pub(crate) fn has_async(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry.callback.handler(), Handler::Async(_)))
    }

    /// Returns all callbacks as currently offered, encoded, in pieces that each fit a frame. There is at
    /// least one piece, since a node without callbacks registers too.
    pub(crate) fn offers(&self) -> Vec<Vec<u8>> {
        let mut pieces = vec![Vec::new()];
        for (index, entry) in self.entries.iter().enumerate() {
            let mut piece = pieces.pop().expect("there is always one");
            if piece.len() + SIGNATURE_BYTES_MAX + 512 > CHUNK_BYTES {
                pieces.push(std::mem::take(&mut piece));
            }
            let callback = &entry.callback;
            let text = callback.signature().text();
            let offer = Offer {
                index: index as u32,
                fingerprint: callback.signature().fingerprint(),
                ready: callback.is_callable(),
                name: callback.name(),
                signature: &text[..text.floor_char_boundary(SIGNATURE_BYTES_MAX)],
            };
            Offers::push(&mut piece, &offer);
            pieces.push(piece);
        }
        pieces
    }
}

#[cfg(test)]
#[allow(clippy::result_large_err, reason = "a fault is rare, and an `Outcome` is moved once")]
mod tests {
    use daffi_core::{
        payload::Encoded,
        signature::{Signature, WireType},
    };

    use super::*;

    fn callback(name: String, source: &str) -> Callback {
        let signature = Signature::new([], WireType::named::<()>());
        Callback::new(name, signature, Handler::sync(|_| Ok(Encoded::default()))).written_at(source)
    }

    #[test]
    fn two_callbacks_of_one_name_are_refused_with_both_places() {
        let callbacks = vec![callback("f".into(), "b.rs:2"), callback("f".into(), "a.rs:1")];
        let error = Registry::new(callbacks).unwrap_err().to_string();
        assert!(error.contains("a.rs:1") && error.contains("b.rs:2"), "{error}");
        assert!(Registry::new(vec![callback(String::new(), "")]).is_err());
    }

    #[test]
    fn many_callbacks_are_offered_in_pieces() {
        let callbacks = (0..5000).map(|number| callback(format!("callback{number}"), "")).collect();
        let registry = Registry::new(callbacks).unwrap();
        let pieces = registry.offers();
        assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() <= CHUNK_BYTES));
        let mut seen = 0;
        for piece in &pieces {
            for offer in Offers::parse(piece).unwrap().iter() {
                assert_eq!(offer.index, seen);
                assert_eq!(registry.get(seen).unwrap().callback.name(), offer.name);
                seen += 1;
            }
        }
        assert_eq!(seen as usize, registry.len());
    }

    #[test]
    fn a_node_without_callbacks_registers_too() {
        assert_eq!(Registry::new(Vec::new()).unwrap().offers(), [Vec::<u8>::new()]);
    }
}
