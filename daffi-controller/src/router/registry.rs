//! Which nodes offer which callbacks.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap, hash_map::Entry},
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;

use super::PeerId;

/// All callbacks that others can see, by name and by node.
///
/// Names come from peers, so they are hashed with a seed chosen by this process.
#[derive(Debug, Default)]
pub(super) struct Registry {
    by_name: HashMap<Arc<str>, Callback, RandomState>,
    /// The same names in order, for lists and for finding similar names.
    sorted: BTreeMap<Arc<str>, ()>,
    /// Each node's own numbers for its callbacks, ordered so that withdrawing always goes the same way.
    by_peer: HashMap<PeerId, BTreeMap<u32, Arc<str>>, RandomState>,
    /// The total bytes of the signatures of each node's callbacks.
    signature_bytes: HashMap<PeerId, usize, RandomState>,
}

/// A callback, and the nodes that offer it.
#[derive(Debug)]
pub(super) struct Callback {
    pub(super) name: Arc<str>,
    /// Those that can be called now come first, so that picking one looks at no others.
    offers: Vec<Offer>,
    ready: usize,
    /// Where each node's offer is.
    places: HashMap<PeerId, usize, RandomState>,
    /// Whose turn is next.
    pub(super) cursor: usize,
}

/// One node's offer of a callback.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) peer: PeerId,
    /// The node's own number for the callback.
    pub(super) index: u32,
    pub(super) fingerprint: u64,
    pub(super) ready: bool,
    pub(super) signature: Arc<str>,
}

impl Offer {
    pub(super) fn new(peer: PeerId, index: u32, fingerprint: u64, ready: bool, signature: Arc<str>) -> Self {
        Self { peer, index, fingerprint, ready, signature }
    }
}

/// Two callbacks of one node have the same name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NameTwice;

impl Registry {
    /// Adds an offer, or replaces the one under its index. Returns whether the callback became ready.
    ///
    /// # Errors
    /// The node already offers the name under another index.
    pub(super) fn offer(&mut self, name: &str, offer: Offer) -> Result<bool, NameTwice> {
        let peer = offer.peer;
        if self
            .find(name)
            .and_then(|callback| callback.offer_of(peer))
            .is_some_and(|old| old.index != offer.index)
        {
            return Err(NameTwice);
        }
        let indexes = self.by_peer.entry(peer).or_default();
        if let Some(old) = indexes.get(&offer.index).filter(|old| old.as_ref() != name).cloned() {
            self.remove(&old, peer);
        }
        let name = match self.by_name.get_key_value(name) {
            Some((name, _)) => name.clone(),
            None => Arc::from(name),
        };
        self.by_peer.entry(peer).or_default().insert(offer.index, name.clone());
        self.sorted.insert(name.clone(), ());
        let callback = self.by_name.entry(name.clone()).or_insert_with(|| Callback::new(name));
        let before = callback.offer_of(peer).map_or(0, |old| old.signature.len());
        let bytes = self.signature_bytes.entry(peer).or_default();
        *bytes = *bytes + offer.signature.len() - before;
        Ok(callback.upsert(offer))
    }

    /// Withdraws everything that the node offers.
    pub(super) fn withdraw(&mut self, peer: PeerId) {
        for name in self.by_peer.remove(&peer).unwrap_or_default().values() {
            self.remove(name, peer);
        }
        self.signature_bytes.remove(&peer);
    }

    fn remove(&mut self, name: &Arc<str>, peer: PeerId) {
        let Entry::Occupied(mut entry) = self.by_name.entry(name.clone()) else { return };
        if let Some(removed) = entry.get_mut().remove(peer)
            && let Some(bytes) = self.signature_bytes.get_mut(&peer)
        {
            *bytes -= removed.signature.len();
        }
        if entry.get().offers.is_empty() {
            entry.remove();
            self.sorted.remove(name);
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<&Callback> {
        self.by_name.get(name)
    }

    pub(super) fn find_mut(&mut self, name: &str) -> Option<&mut Callback> {
        self.by_name.get_mut(name)
    }

    /// How many callbacks a node offers.
    pub(super) fn count_of(&self, peer: PeerId) -> usize {
        self.by_peer.get(&peer).map_or(0, BTreeMap::len)
    }

    /// The total bytes of the signatures of a node's callbacks.
    pub(super) fn signature_bytes_of(&self, peer: PeerId) -> usize {
        self.signature_bytes.get(&peer).copied().unwrap_or(0)
    }

    /// The names that a node offers, in its own order.
    pub(super) fn names_of(&self, peer: PeerId) -> impl Iterator<Item = &Arc<str>> {
        self.by_peer.get(&peer).into_iter().flat_map(BTreeMap::values)
    }

    /// All callbacks, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Callback> {
        self.sorted.keys().filter_map(|name| self.by_name.get(name))
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Returns up to three names similar to `name` that a node other than `asker` offers.
    ///
    /// The work is bounded: once there are many names, only some from its first letter on are compared.
    pub(super) fn similar(&self, name: &str, asker: Option<PeerId>) -> Vec<String> {
        let first = name.chars().next().map(String::from).unwrap_or_default();
        let from = if self.sorted.len() <= COMPARED_MAX { "" } else { first.as_str() };
        let mut found: Vec<(usize, &str)> = self
            .sorted
            .range::<str, _>((Bound::Included(from), Bound::Unbounded))
            .take(COMPARED_MAX)
            .filter_map(|(other, ())| Some((likeness(name, other)?, other.as_ref())))
            .filter(|(_, other)| {
                self.find(other)
                    .is_some_and(|callback| callback.offers.iter().any(|offer| Some(offer.peer) != asker))
            })
            .collect();
        found.sort_unstable();
        found.into_iter().take(SIMILAR_MAX).map(|(_, name)| name.to_owned()).collect()
    }
}

impl Callback {
    fn new(name: Arc<str>) -> Self {
        Self { name, offers: Vec::new(), ready: 0, places: HashMap::default(), cursor: 0 }
    }

    /// The offers that can be called now.
    pub(super) fn ready(&self) -> &[Offer] {
        &self.offers[..self.ready]
    }

    /// The same, together with the cursor, which picking moves.
    pub(super) fn ready_and_cursor(&mut self) -> (&[Offer], &mut usize) {
        (&self.offers[..self.ready], &mut self.cursor)
    }

    /// All offers, those that can be called first.
    pub(super) fn offers(&self) -> &[Offer] {
        &self.offers
    }

    pub(super) fn offer_of(&self, peer: PeerId) -> Option<&Offer> {
        self.places.get(&peer).map(|at| &self.offers[*at])
    }

    /// Adds or replaces a node's offer. Returns whether this made it ready.
    fn upsert(&mut self, offer: Offer) -> bool {
        let is_ready = offer.ready;
        if let Some(at) = self.places.get(&offer.peer)
            && self.offers[*at].ready == is_ready
        {
            self.offers[*at] = offer;
            return false;
        }
        self.remove(offer.peer);
        self.insert(offer);
        is_ready
    }

    fn insert(&mut self, offer: Offer) {
        let ready = offer.ready;
        let end = self.offers.len();
        self.places.insert(offer.peer, end);
        self.offers.push(offer);
        if ready {
            self.swap(self.ready, end);
            self.ready += 1;
        }
    }

    fn remove(&mut self, peer: PeerId) -> Option<Offer> {
        let mut at = self.places.remove(&peer)?;
        if at < self.ready {
            self.ready -= 1;
            self.swap(at, self.ready);
            at = self.ready;
        }
        let offer = self.offers.swap_remove(at);
        if let Some(moved) = self.offers.get(at) {
            self.places.insert(moved.peer, at);
        }
        self.places.remove(&peer);
        Some(offer)
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.offers.swap(a, b);
        for at in [a, b] {
            self.places.insert(self.offers[at].peer, at);
        }
    }
}

/// How many more hints may be given for now. Each takes longer than passing on a hundred calls, so peers that
/// keep calling what nobody offers would hold up all others.
#[derive(Debug, Default)]
pub(super) struct Hints {
    now: Option<Instant>,
    since: Cell<Option<Instant>>,
    given: Cell<u32>,
}

impl Hints {
    /// Sets the current time.
    pub(super) fn at(&mut self, now: Instant) {
        self.now = Some(now);
    }

    /// Returns whether one more hint may be given, and counts it.
    pub(super) fn take(&self) -> bool {
        if self.since.get().is_none_or(|since| Some(since + HINTS_EVERY) <= self.now) {
            self.since.set(self.now);
            self.given.set(0);
        }
        let given = self.given.get();
        self.given.set(given.saturating_add(1));
        given < HINTS_MAX
    }
}

/// At most this many hints are given …
const HINTS_MAX: u32 = 50;
/// … in this time, so that they take at most a twentieth of it.
const HINTS_EVERY: Duration = Duration::from_millis(100);

/// How many names a hint contains.
const SIMILAR_MAX: usize = 3;
/// How many names are examined for a hint. At about 100 ns each this stays below 0.1 ms.
const COMPARED_MAX: usize = 512;
/// Longer names are only compared by their beginnings.
const COMPARED_BYTES_MAX: usize = 64;
/// How many edits apart two names may be and still look alike.
const EDITS_MAX: usize = 2;

/// How alike two names are, where smaller is more alike; `None` if they are not.
fn likeness(name: &str, other: &str) -> Option<usize> {
    let (short, long) = if name.len() < other.len() { (name, other) } else { (other, name) };
    let by_prefix = (short.len() >= 3 && long.starts_with(short)).then_some(EDITS_MAX + 1);
    if long.len() > COMPARED_BYTES_MAX {
        return by_prefix;
    }
    // One edit turns a name of two letters into too many others.
    let allowed = EDITS_MAX.min(short.len() / 2);
    edits(short.as_bytes(), long.as_bytes()).filter(|edits| *edits <= allowed).or(by_prefix)
}

/// Counts the bytes to insert, remove or replace; `None` if there are clearly too many.
fn edits(a: &[u8], b: &[u8]) -> Option<usize> {
    if b.len() - a.len() > EDITS_MAX {
        return None;
    }
    let mut row = [0; COMPARED_BYTES_MAX + 1];
    for (at, cell) in row.iter_mut().enumerate() {
        *cell = at;
    }
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(!x.eq_ignore_ascii_case(y));
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    Some(row[b.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(peer: u64, index: u32, ready: bool) -> Offer {
        Offer::new(PeerId(peer), index, 0, ready, "()".into())
    }

    fn ready(registry: &Registry, name: &str) -> Vec<u64> {
        let mut peers: Vec<_> = registry
            .find(name)
            .map(|callback| callback.ready().iter().map(|offer| offer.peer.0).collect())
            .unwrap_or_default();
        peers.sort_unstable();
        peers
    }

    #[test]
    fn an_index_is_one_callback_and_a_name_one_index() {
        let mut registry = Registry::default();
        assert_eq!(registry.offer("f", offer(1, 0, true)), Ok(true));
        assert_eq!(registry.offer("f", offer(1, 0, true)), Ok(false), "it was ready before");
        assert_eq!(registry.offer("f", offer(1, 1, true)), Err(NameTwice));
        assert_eq!(registry.offer("g", offer(1, 0, true)), Ok(true), "another name replaces");
        assert!(registry.find("f").is_none());
        assert_eq!(registry.count_of(PeerId(1)), 1);
    }

    #[test]
    fn only_what_is_ready_is_offered_and_nothing_after_withdrawal() {
        let mut registry = Registry::default();
        for peer in 1..=4 {
            registry.offer("f", offer(peer, 0, peer % 2 == 0)).unwrap();
        }
        assert_eq!(ready(&registry, "f"), [2, 4]);
        assert_eq!(registry.offer("f", offer(1, 0, true)), Ok(true));
        registry.offer("f", offer(2, 0, false)).unwrap();
        assert_eq!(ready(&registry, "f"), [1, 4]);
        for peer in [4, 1] {
            registry.withdraw(PeerId(peer));
        }
        let callback = registry.find("f").unwrap();
        for peer in [2, 3] {
            assert_eq!(callback.offer_of(PeerId(peer)).unwrap().peer, PeerId(peer));
        }
        registry.withdraw(PeerId(2));
        registry.withdraw(PeerId(3));
        assert_eq!((registry.len(), registry.sorted.len(), registry.by_peer.len()), (0, 0, 0));
    }

    #[test]
    fn places_hold_after_any_order_of_changes() {
        let mut registry = Registry::default();
        let mut state = 1u64;
        for _ in 0..10_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let peer = state >> 33 & 15;
            match state >> 40 & 3 {
                0 => registry.withdraw(PeerId(peer)),
                ready => drop(registry.offer("f", offer(peer, 0, ready == 1))),
            }
            let Some(callback) = registry.find("f") else { continue };
            assert_eq!(callback.places.len(), callback.offers.len());
            for (at, offer) in callback.offers.iter().enumerate() {
                assert_eq!(callback.places[&offer.peer], at);
                assert_eq!(offer.ready, at < callback.ready);
            }
        }
    }

    #[test]
    fn hints_are_names_that_look_alike_and_can_be_called() {
        let mut registry = Registry::default();
        for (index, name) in ["func1", "func2", "Func3", "function", "other", "func_own"].iter().enumerate() {
            registry.offer(name, offer(if index == 5 { 2 } else { 1 }, index as u32, true)).unwrap();
        }
        assert_eq!(registry.similar("func", Some(PeerId(2))), ["Func3", "func1", "func2"]);
        assert_eq!(registry.similar("othre", Some(PeerId(2))), ["other"]);
        assert_eq!(registry.similar("func_owm", Some(PeerId(2))), [] as [&str; 0]);
        assert!(registry.similar("zzz", None).is_empty());
        assert!(registry.similar("", None).is_empty());
    }

    #[test]
    fn many_names_still_give_a_hint() {
        let mut registry = Registry::default();
        for index in 0..10_000 {
            registry.offer(&format!("a{index}"), offer(1, index, true)).unwrap();
        }
        registry.offer("send_mail", offer(1, 10_000, true)).unwrap();
        assert_eq!(registry.similar("send_mial", None), ["send_mail"]);
    }
}
