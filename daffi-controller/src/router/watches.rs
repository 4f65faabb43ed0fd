//! Questions that are answered when something happens.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use daffi_core::payload::Codec;
use foldhash::fast::RandomState;

use super::PeerId;
use crate::table::Table;

/// The waiting questions, and what they wait for.
#[derive(Debug, Default)]
pub(super) struct Watches {
    all: Table<Watch>,
    by_event: HashMap<Event, BTreeSet<u64>, RandomState>,
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
}

impl Watches {
    /// Adds a question and returns its key.
    pub(super) fn insert(&mut self, asker: PeerId, id: u64, codec: Codec, event: Event) -> u64 {
        let key = self.all.insert(Watch { asker, id, codec, event: event.clone() });
        self.by_event.entry(event).or_default().insert(key);
        key
    }

    pub(super) fn remove(&mut self, key: u64) {
        let Some(watch) = self.all.remove(key) else { return };
        if let Some(keys) = self.by_event.get_mut(&watch.event) {
            keys.remove(&key);
            if keys.is_empty() {
                self.by_event.remove(&watch.event);
            }
        }
    }

    /// Takes out the questions that an event answers, except those of `except`.
    pub(super) fn take(&mut self, event: &Event, except: Option<PeerId>) -> Vec<Watch> {
        let Some(keys) = self.by_event.remove(event) else { return Vec::new() };
        let mut rest = BTreeSet::new();
        let mut answered = Vec::new();
        for key in keys {
            if self.all.get(key).is_some_and(|watch| Some(watch.asker) == except) {
                rest.insert(key);
            } else {
                answered.extend(self.all.remove(key));
            }
        }
        if !rest.is_empty() {
            self.by_event.insert(event.clone(), rest);
        }
        answered
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}
