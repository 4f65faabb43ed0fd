//! A value as bytes: a few, one piece, or several.

use std::{fmt, mem};

use bytes::Bytes;

/// A value as bytes: in one piece, unless there are [`Bytes`](super::Bytes) in it, which are pieces of their own.
#[derive(Clone)]
pub struct Encoded(Content);

#[derive(Clone)]
enum Content {
    /// As most arguments and results are: too few bytes to take memory of their own for.
    Small {
        len: u8,
        bytes: [u8; SMALL_BYTES_MAX],
    },
    Pieces(Pieces),
}

/// As many as there is room for where `Pieces` are else.
const SMALL_BYTES_MAX: usize = size_of::<Pieces>() + size_of::<usize>() - 2;

/// Bytes in one piece, or in several.
#[derive(Clone, Default)]
pub(crate) struct Pieces {
    len: usize,
    first: Bytes,
    /// What follows it, with what has been taken off already. None of them is empty.
    more: Vec<Bytes>,
    taken: usize,
}

impl Encoded {
    /// `apart` belongs into `bytes`, each of them at its place.
    pub(super) fn new(bytes: &Bytes, apart: Vec<(usize, Bytes)>) -> Self {
        let mut pieces = Pieces::default();
        let mut done = 0;
        for (at, piece) in apart {
            pieces.push(bytes.slice(done..at));
            pieces.push(piece);
            done = at;
        }
        pieces.push(bytes.slice(done..));
        Self(Content::Pieces(pieces))
    }

    /// These bytes, copied.
    pub(super) fn copied(bytes: &[u8]) -> Self {
        let mut small = [0; SMALL_BYTES_MAX];
        match small.get_mut(..bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                Self(Content::Small { len: bytes.len() as u8, bytes: small })
            }
            None => Bytes::copy_from_slice(bytes).into(),
        }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Content::Small { len, .. } => (*len).into(),
            Content::Pieces(pieces) => pieces.len,
        }
    }

    /// Whether it may be somebody else's memory, so that dropping it may run other code.
    pub fn is_shared(&self) -> bool {
        !self.is_empty() && matches!(self.0, Content::Pieces(_))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the first `size` bytes off, or all of them if there are no more.
    #[must_use]
    pub fn split_to(&mut self, size: usize) -> Self {
        let mut pieces = mem::take(self).into_pieces();
        let head = pieces.split_to(size);
        self.0 = Content::Pieces(pieces);
        Self(Content::Pieces(head))
    }

    /// A few bytes, or the pieces.
    pub(crate) fn parts(&self) -> Result<&[u8], &Pieces> {
        match &self.0 {
            Content::Small { len, bytes } => Ok(&bytes[..usize::from(*len)]),
            Content::Pieces(pieces) => Err(pieces),
        }
    }

    /// All of it in one piece. It is copied if there are several, or few bytes.
    pub fn into_bytes(self) -> Bytes {
        let pieces = self.into_pieces();
        if pieces.rest().is_empty() {
            return pieces.first;
        }
        let mut bytes = Vec::with_capacity(pieces.len);
        pieces.append_to(&mut bytes);
        bytes.into()
    }

    fn into_pieces(self) -> Pieces {
        match self.0 {
            Content::Small { len, bytes } => Bytes::copy_from_slice(&bytes[..usize::from(len)]).into(),
            Content::Pieces(pieces) => pieces,
        }
    }
}

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        if self.first.is_empty() {
            self.first = piece;
        } else if !piece.is_empty() {
            self.more.push(piece);
        }
    }

    fn split_to(&mut self, size: usize) -> Self {
        let mut head = Self::default();
        while head.len < size && self.len > 0 {
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

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn first(&self) -> &Bytes {
        &self.first
    }

    /// Those behind the first.
    pub(crate) fn rest(&self) -> &[Bytes] {
        &self.more[self.taken..]
    }

    /// Appends all of it to `out`.
    #[cold]
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.first);
        for piece in self.rest() {
            out.extend_from_slice(piece);
        }
    }
}

impl Default for Encoded {
    fn default() -> Self {
        Self(Content::Small { len: 0, bytes: [0; SMALL_BYTES_MAX] })
    }
}

impl From<Bytes> for Encoded {
    fn from(bytes: Bytes) -> Self {
        Self(Content::Pieces(bytes.into()))
    }
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        Self { len: bytes.len(), first: bytes, ..Self::default() }
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
