//! A value as bytes, in one piece or several.

use std::mem;

use bytes::Bytes;

/// A value as bytes: in one piece, unless there are [`Bytes`](super::Bytes) in it, which are pieces of their own.
#[derive(Debug, Clone, Default)]
pub struct Encoded {
    len: usize,
    first: Bytes,
    /// What follows it, with what has been taken off already. None of them is empty.
    more: Vec<Bytes>,
    taken: usize,
}

impl Encoded {
    /// `apart` belongs into `bytes`, each of them at its place.
    pub(super) fn new(bytes: &Bytes, apart: Vec<(usize, Bytes)>) -> Self {
        let mut encoded = Self::default();
        let mut done = 0;
        for (at, piece) in apart {
            encoded.push(bytes.slice(done..at));
            encoded.push(piece);
            done = at;
        }
        encoded.push(bytes.slice(done..));
        encoded
    }

    fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        if self.first.is_empty() {
            self.first = piece;
        } else if !piece.is_empty() {
            self.more.push(piece);
        }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the first `size` bytes off, or all of them if there are no more.
    #[must_use]
    pub fn split_to(&mut self, size: usize) -> Self {
        let mut head = Self::default();
        while head.len < size && !self.is_empty() {
            let piece = self.first.split_to(self.first.len().min(size - head.len));
            self.len -= piece.len();
            head.push(piece);
            if self.first.is_empty()
                && let Some(next) = self.more.get_mut(self.taken)
            {
                self.first = mem::take(next);
                self.taken += 1;
            }
        }
        head
    }

    /// The first of the pieces, and those behind it.
    pub(crate) fn pieces(&self) -> (&Bytes, &[Bytes]) {
        (&self.first, &self.more[self.taken..])
    }

    /// Appends all of it to `out`.
    #[cold]
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        let (first, more) = self.pieces();
        out.extend_from_slice(first);
        for piece in more {
            out.extend_from_slice(piece);
        }
    }

    /// All of it in one piece, which is a copy if there are several.
    pub fn into_bytes(self) -> Bytes {
        if self.pieces().1.is_empty() {
            return self.first;
        }
        let mut bytes = Vec::with_capacity(self.len);
        self.append_to(&mut bytes);
        bytes.into()
    }
}

impl From<Bytes> for Encoded {
    fn from(bytes: Bytes) -> Self {
        Self { len: bytes.len(), first: bytes, ..Self::default() }
    }
}
