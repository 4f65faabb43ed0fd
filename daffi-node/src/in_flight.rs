//! The table of calls in flight: who waits for which id, and until when. Pure: time comes as an argument.

use std::{
    cell::Cell,
    collections::BTreeSet,
    iter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use daffi_core::host;

use crate::{
    pending::Pending,
    sync::{Mutex, MutexGuard, atomic::AtomicU16},
};

/// Calls in flight, in a few separate tables so that threads do not wait for each other.
#[derive(Debug)]
pub(crate) struct InFlight {
    shards: [Mutex<Shard>; SHARDS],
    /// Which shards have deadlines, one bit each. Written with the shard's lock held.
    with_deadlines: AtomicU16,
}

/// The id of a call: shard, place and generation, so that an answer finds its place without searching and a
/// late one never finds another call there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CallId(pub(crate) u64);

/// A deadline, and the time that was given, for the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) after: Duration,
}

impl Deadline {
    /// Returns the deadline that is `timeout` from now. A time too far away to represent never comes.
    pub(crate) fn after(timeout: Option<Duration>) -> Option<Self> {
        let after = timeout?;
        Some(Self { at: host::now().checked_add(after)?, after })
    }
}

const SHARDS: usize = 16;
const _: () = assert!(SHARDS <= u16::BITS as usize, "`with_deadlines` has a bit for each");
const SHARD_BITS: u32 = SHARDS.trailing_zeros();
const PLACE_BITS: u32 = 28;

#[derive(Debug, Default)]
struct Shard {
    places: Vec<Place>,
    free: Vec<u32>,
    /// The generation that new places begin with.
    generation: u32,
    deadlines: BTreeSet<(Instant, CallId)>,
}

#[derive(Debug)]
struct Place {
    generation: u32,
    call: Option<(Arc<Pending>, Option<Deadline>)>,
}

impl InFlight {
    pub(crate) fn new() -> Self {
        Self { shards: Default::default(), with_deadlines: AtomicU16::new(0) }
    }

    /// Adds a call. [`expired`](Self::expired) finds it once its deadline, if any, has passed.
    pub(crate) fn insert(&self, call: Arc<Pending>, deadline: Option<Deadline>) -> CallId {
        let number = shard_of_this_thread();
        let mut shard = self.shards[number].lock();
        let index = shard.free.pop().unwrap_or_else(|| {
            let generation = shard.generation;
            shard.places.push(Place { generation, call: None });
            (shard.places.len() - 1) as u32
        });
        let place = &mut shard.places[index as usize];
        place.call = Some((call, deadline));
        let id = CallId::new(number, index, place.generation);
        if let Some(deadline) = deadline {
            shard.deadlines.insert((deadline.at, id));
            self.look_at_deadlines(number, &shard);
        }
        id
    }

    /// Takes a call out, if it is still there.
    pub(crate) fn remove(&self, id: CallId) -> Option<Arc<Pending>> {
        self.remove_if(id, |_| true)
    }

    /// Takes a call out, if it is still there and `which` accepts it.
    pub(crate) fn remove_if(&self, id: CallId, which: impl FnOnce(&Pending) -> bool) -> Option<Arc<Pending>> {
        let mut shard = self.shards.get(id.shard())?.lock();
        let place = shard.places.get(id.place())?;
        let (call, _) = place.call.as_ref().filter(|_| place.generation == id.generation())?;
        if !which(call) {
            return None;
        }
        let (call, deadline) = shard.remove(id)?;
        if deadline.is_some() {
            self.look_at_deadlines(id.shard(), &shard);
        }
        Some(call)
    }

    /// Returns the call with this id, which stays.
    pub(crate) fn get(&self, id: CallId) -> Option<Arc<Pending>> {
        let shard = self.shards.get(id.shard())?.lock();
        let place = shard.places.get(id.place())?;
        let (call, _) = place.call.as_ref().filter(|_| place.generation == id.generation())?;
        Some(call.clone())
    }

    /// Returns whether there is a call with this id.
    pub(crate) fn contains(&self, id: CallId) -> bool {
        let Some(shard) = self.shards.get(id.shard()).map(|shard| shard.lock()) else { return false };
        shard
            .places
            .get(id.place())
            .is_some_and(|place| place.call.is_some() && place.generation == id.generation())
    }

    /// Takes out the calls whose deadline has passed.
    pub(crate) fn expired(&self, now: Instant) -> Vec<(CallId, Arc<Pending>, Duration)> {
        let mut expired = Vec::new();
        for (number, mut shard) in self.shards_with_deadlines() {
            while let Some(&(at, id)) = shard.deadlines.first()
                && at <= now
            {
                if let Some((call, Some(deadline))) = shard.remove(id) {
                    expired.push((id, call, deadline.after));
                }
            }
            self.look_at_deadlines(number, &shard);
        }
        expired
    }

    /// Returns when the next deadline passes.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.shards_with_deadlines().filter_map(|(_, shard)| shard.deadlines.first().map(|(at, _)| *at)).min()
    }

    /// Takes out every call that `which` accepts.
    pub(crate) fn remove_where(&self, which: impl Fn(&Pending) -> bool) -> Vec<(CallId, Arc<Pending>)> {
        let mut removed = Vec::new();
        for (number, shard) in self.shards.iter().enumerate() {
            let mut shard = shard.lock();
            let chosen: Vec<_> = (shard.places.iter().enumerate())
                .filter(|(_, place)| place.call.as_ref().is_some_and(|(call, _)| which(call)))
                .map(|(index, place)| CallId::new(number, index as u32, place.generation))
                .collect();
            for id in chosen {
                removed.extend(shard.remove(id).map(|(call, _)| (id, call)));
            }
            self.look_at_deadlines(number, &shard);
        }
        removed
    }

    /// Returns how many calls there are.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn len(&self) -> usize {
        let of_shard =
            |shard: &Mutex<Shard>| shard.lock().places.iter().filter(|place| place.call.is_some()).count();
        self.shards.iter().map(of_shard).sum()
    }

    /// Returns the shards that have deadlines; most turns find none. It may miss a deadline that is being
    /// added, but not if it is called after whoever added the deadline has asked for a turn.
    fn shards_with_deadlines(&self) -> impl Iterator<Item = (usize, MutexGuard<'_, Shard>)> {
        let mut with_deadlines = self.with_deadlines.load(Ordering::SeqCst);
        iter::from_fn(move || {
            let number = with_deadlines.trailing_zeros() as usize;
            // Takes the lowest bit off.
            with_deadlines &= with_deadlines.checked_sub(1)?;
            Some((number, self.shards[number].lock()))
        })
    }

    /// Notes whether a shard has deadlines.
    fn look_at_deadlines(&self, number: usize, shard: &Shard) {
        let bit = 1 << number;
        let noted = self.with_deadlines.load(Ordering::Relaxed) & bit != 0;
        match (noted, shard.deadlines.is_empty()) {
            (false, false) => self.with_deadlines.fetch_or(bit, Ordering::SeqCst),
            (true, true) => self.with_deadlines.fetch_and(!bit, Ordering::SeqCst),
            _ => return,
        };
    }
}

impl Shard {
    fn remove(&mut self, id: CallId) -> Option<(Arc<Pending>, Option<Deadline>)> {
        let place = self.places.get_mut(id.place()).filter(|place| place.generation == id.generation())?;
        let call = place.call.take()?;
        place.generation = place.generation.wrapping_add(1);
        if let Some(deadline) = call.1 {
            self.deadlines.remove(&(deadline.at, id));
        }
        self.free.push(id.place() as u32);
        if self.free.len() == self.places.len() && self.places.len() > PLACES_KEPT {
            // Nothing is in flight: give back what a burst took. New places start with a later generation, so
            // that late answers to the burst do not find them.
            let generation = self.places.iter().map(|place| place.generation).max().unwrap_or(0);
            self.generation = generation;
            self.free = (0..PLACES_KEPT as u32).collect();
            self.places.clear();
            self.places.extend((0..PLACES_KEPT).map(|_| Place { generation, call: None }));
            self.places.shrink_to_fit();
        }
        Some(call)
    }
}

/// How many places a shard keeps when none is in use.
const PLACES_KEPT: usize = 1024;

impl CallId {
    fn new(shard: usize, place: u32, generation: u32) -> Self {
        let place = u64::from(place) << SHARD_BITS;
        Self((u64::from(generation) << (SHARD_BITS + PLACE_BITS)) | place | shard as u64)
    }

    fn shard(self) -> usize {
        (self.0 & (SHARDS as u64 - 1)) as usize
    }

    fn place(self) -> usize {
        ((self.0 >> SHARD_BITS) & ((1 << PLACE_BITS) - 1)) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> (SHARD_BITS + PLACE_BITS)) as u32
    }
}

fn shard_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
    }
    SHARD.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Arc<Pending> {
        Arc::new(Pending::new("f".into(), None))
    }

    fn deadline(at: Instant) -> Option<Deadline> {
        Some(Deadline { at, after: Duration::from_secs(1) })
    }

    #[test]
    fn a_call_is_found_once_and_a_late_answer_finds_nothing() {
        let calls = InFlight::new();
        let first = calls.insert(call(), None);
        assert!(calls.get(first).is_some());
        assert!(calls.remove(first).is_some());
        assert!(calls.remove(first).is_none());
        let second = calls.insert(call(), None);
        assert_ne!(first, second, "the place is the same, the generation is not");
        assert!(calls.get(first).is_none());
        assert_eq!(calls.len(), 1);
        assert!(calls.get(CallId(u64::MAX)).is_none());
    }

    #[test]
    fn deadlines_pass_in_order_and_leave_with_their_call() {
        let calls = InFlight::new();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let early = calls.insert(call(), deadline(at(10)));
        let done = calls.insert(call(), deadline(at(5)));
        let late = calls.insert(call(), deadline(at(20)));
        calls.remove(done);
        assert_eq!(calls.next_deadline(), Some(at(10)));
        assert!(calls.expired(at(9)).is_empty());
        let expired: Vec<_> = calls.expired(at(15)).into_iter().map(|(id, ..)| id).collect();
        assert_eq!(expired, [early]);
        assert!(calls.get(late).is_some());
        assert_eq!(calls.len(), 1);
    }

    /// Each thread has its own table.
    #[test]
    fn deadlines_of_all_threads_pass() {
        let (calls, start) = (InFlight::new(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        std::thread::scope(|scope| {
            for ms in 1..=2 * SHARDS as u64 {
                let calls = &calls;
                scope.spawn(move || calls.insert(call(), deadline(at(ms))));
            }
        });
        for ms in 1..=2 * SHARDS as u64 {
            assert_eq!(calls.next_deadline(), Some(at(ms)));
            assert_eq!(calls.expired(at(ms)).len(), 1);
        }
        assert_eq!((calls.next_deadline(), calls.len()), (None, 0));
    }

    #[test]
    fn a_burst_gives_its_memory_back_and_its_ids_stay_dead() {
        let calls = InFlight::new();
        let ids: Vec<_> = (0..5000).map(|_| calls.insert(call(), None)).collect();
        for id in &ids {
            calls.remove(*id);
        }
        assert!(calls.shards.iter().all(|shard| shard.lock().places.len() <= PLACES_KEPT));
        let again: Vec<_> = (0..5000).map(|_| calls.insert(call(), None)).collect();
        assert!(ids.iter().all(|id| calls.get(*id).is_none()));
        assert!(again.iter().all(|id| calls.get(*id).is_some()));
    }

    #[test]
    fn calls_are_picked_by_what_they_are() {
        let calls = InFlight::new();
        let sent = call();
        sent.set_sent(true);
        calls.insert(sent, None);
        let waiting = calls.insert(call(), None);
        assert_eq!(calls.remove_where(Pending::is_sent).len(), 1);
        assert!(calls.get(waiting).is_some());
    }
}
