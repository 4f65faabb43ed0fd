//! Entries found by id. An id is not reused before its slot has been used 2³² times.

/// A slab whose ids carry a generation, so that the id of a removed entry finds nothing.
#[derive(Debug)]
pub(crate) struct Table<T> {
    slots: Vec<Slot<T>>,
    /// The first free slot; each free slot points to the next.
    free: u32,
    len: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    content: Content<T>,
}

#[derive(Debug)]
enum Content<T> {
    Taken(T),
    Free { next: u32 },
}

/// The generation of a new slot: not 0, so that no id is 0, which would look like none.
const FIRST: u32 = 1;
/// No free slot.
const NONE: u32 = u32::MAX;

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: NONE, len: 0 }
    }
}

impl<T> Table<T> {
    /// Returns the id that the next entry will have.
    pub(crate) fn next_id(&self) -> u64 {
        match self.slots.get(self.free as usize) {
            Some(slot) => id(slot.generation, self.free),
            None => id(FIRST, self.slots.len() as u32),
        }
    }

    pub(crate) fn insert(&mut self, value: T) -> u64 {
        let id = self.next_id();
        let at = id as u32;
        if let Some(slot) = self.slots.get_mut(at as usize) {
            if let Content::Free { next } = slot.content {
                self.free = next;
            }
            slot.content = Content::Taken(value);
        } else {
            self.slots.push(Slot { generation: FIRST, content: Content::Taken(value) });
        }
        self.len += 1;
        id
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let at = id as u32;
        let slot = self.slots.get_mut(at as usize).filter(|slot| slot.generation == (id >> 32) as u32)?;
        if matches!(slot.content, Content::Free { .. }) {
            return None;
        }
        slot.generation = slot.generation.checked_add(1).unwrap_or(FIRST);
        let content = std::mem::replace(&mut slot.content, Content::Free { next: self.free });
        self.free = at;
        self.len -= 1;
        match content {
            Content::Taken(value) => Some(value),
            Content::Free { .. } => None,
        }
    }

    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        match self.slots.get(id as u32 as usize) {
            Some(Slot { generation, content: Content::Taken(value) }) if *generation == (id >> 32) as u32 => {
                Some(value)
            }
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        match self.slots.get_mut(id as u32 as usize) {
            Some(Slot { generation, content: Content::Taken(value) }) if *generation == (id >> 32) as u32 => {
                Some(value)
            }
            _ => None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Iterates over all entries, by place.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slots.iter().enumerate().filter_map(|(at, slot)| match &slot.content {
            Content::Taken(value) => Some((id(slot.generation, at as u32), value)),
            Content::Free { .. } => None,
        })
    }
}

fn id(generation: u32, at: u32) -> u64 {
    (u64::from(generation) << 32) | u64::from(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_finds_its_own_entry_or_nothing() {
        let mut table = Table::default();
        let a = table.insert('a');
        let b = table.insert('b');
        assert_eq!(table.remove(a), Some('a'));
        assert_eq!(table.remove(a), None);
        let expected = table.next_id();
        let c = table.insert('c');
        assert_eq!(c, expected);
        assert_eq!(c as u32, a as u32, "the place is used again");
        assert_eq!((table.get(a), table.get(b), table.get(c)), (None, Some(&'b'), Some(&'c')));
        assert_eq!(table.get_mut(a), None);
        assert_eq!(table.iter().map(|(id, _)| id).collect::<Vec<_>>(), [c, b]);
        assert_eq!(table.len(), 2);
    }
}
