//! Questions that are answered when something happens.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::Arc,
};

use daffi_core::payload::Codec;
use foldhash::fast::RandomState;

use super::{PeerId, questions::List};
use crate::table::Table;

/// The waiting questions, and what they wait for.
#[derive(Debug, Default)]
pub(super) struct Watches {
    all: Table<Watch>,
    by_event: HashMap<Event, BTreeMap<PeerId, BTreeSet<u64>>, RandomState>,
}

/// A waiting question.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) asker: PeerId,
    /// The asker's id for the question.
    pub(super) id: u64,
    /// The codec for the answer.
    pub(super) codec: Codec,
    event: Event,
}

/// What can be waited for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// A process with this name joins.
    Process(Arc<str>),
    /// Another node offers a callback with this name, ready to be called.
    Function(Arc<str>),
    /// A list may be made again.
    List(List),
}

impl Watches {
    /// Adds a question and returns its key.
    pub(super) fn insert(&mut self, asker: PeerId, id: u64, codec: Codec, event: Event) -> u64 {
        let key = self.all.insert(Watch { asker, id, codec, event: event.clone() });
        self.by_event.entry(event).or_default().entry(asker).or_default().insert(key);
        key
    }

    pub(super) fn remove(&mut self, key: u64) {
        let Some(watch) = self.all.remove(key) else { return };
        let Some(askers) = self.by_event.get_mut(&watch.event) else { return };
        if let Some(keys) = askers.get_mut(&watch.asker) {
            keys.remove(&key);
            if keys.is_empty() {
                askers.remove(&watch.asker);
            }
        }
        if askers.is_empty() {
            self.by_event.remove(&watch.event);
        }
    }

    /// Takes out the questions that an event answers, except those of `except`, however many these are.
    pub(super) fn take(&mut self, event: &Event, except: Option<PeerId>) -> Vec<Watch> {
        let Some(askers) = self.by_event.get_mut(event) else { return Vec::new() };
        let kept = except.and_then(|peer| askers.remove_entry(&peer));
        let answered = mem::take(askers);
        match kept {
            Some((peer, keys)) => _ = askers.insert(peer, keys),
            None => _ = self.by_event.remove(event),
        }
        answered.into_values().flatten().filter_map(|key| self.all.remove(key)).collect()
    }

    /// Returns whether anyone waits for this.
    pub(super) fn has(&self, event: &Event) -> bool {
        self.by_event.contains_key(event)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}
