//! An encoded value: a few bytes, one piece, or several.

use std::{cell::Cell, fmt, iter, mem};

use bytes::Bytes;

use crate::{queue::FLATTEN_BYTES_MAX, survive::survive};

/// An encoded value: in one piece, unless it contains large [`Bytes`](super::Bytes), which are separate
/// pieces.
#[derive(Clone)]
pub struct Encoded(Content);

#[derive(Clone)]
enum Content {
    /// The usual form of arguments and results.
    Few(Scratch),
    Pieces(Box<Pieces>),
}

/// Room for a few bytes, which the thread that drops it keeps for the next value. A clone has no more room
/// than it needs, so clone it to keep it for long.
#[derive(Clone, Default)]
pub(super) struct Scratch(Vec<u8>);

/// Up to this size, bytes stay in scratch room.
const FEW_BYTES_MAX: usize = 4 * 1024;

/// The largest scratch room that a thread keeps, and that a few bytes may stay in: as much as a vector has
/// that grew step by step, or was allocated for a value that takes more in memory.
const SCRATCH_BYTES_KEPT: usize = 4 * FEW_BYTES_MAX;

const _: () =
    assert!(size_of::<Encoded>() == 3 * size_of::<usize>(), "it is passed on by value again and again");
const _: () = assert!(FEW_BYTES_MAX <= FLATTEN_BYTES_MAX, "few bytes are copied once, behind their head");

thread_local! {
    /// Only one: usually a value has been sent before the next one is encoded.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes in one piece, or in several.
#[derive(Clone, Default)]
pub(crate) struct Pieces {
    len: usize,
    first: Bytes,
    /// The pieces after `first`, including the `taken` ones that were split off. None was added empty.
    more: Vec<Bytes>,
    taken: usize,
}

impl Scratch {
    /// Returns empty scratch room, reusing this thread's if it has any.
    pub(super) fn take() -> Self {
        // A thread that is ending may still make calls, in destructors of its thread locals.
        Self(SCRATCH.try_with(Cell::take).unwrap_or_default())
    }

    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut bytes = mem::take(&mut self.0);
        if bytes.capacity() > SCRATCH_BYTES_KEPT {
            return;
        }
        bytes.clear();
        // A thread that is ending keeps nothing.
        let _ = SCRATCH.try_with(|scratch| {
            let kept = scratch.take();
            scratch.set(if kept.capacity() > bytes.capacity() { kept } else { bytes });
        });
    }
}

impl Encoded {
    /// Combines the bytes in `scratch` with the pieces in `apart`, each of which belongs at its offset there.
    pub(super) fn new(mut scratch: Scratch, apart: Vec<(usize, Bytes)>) -> Self {
        let are_few = scratch.0.len() <= FEW_BYTES_MAX;
        if apart.is_empty() && are_few {
            let fits = scratch.0.capacity() <= SCRATCH_BYTES_KEPT;
            return Self(Content::Few(if fits { scratch } else { scratch.clone() }));
        }
        let bytes = if are_few {
            // The pieces would keep the whole scratch room alive.
            Bytes::copy_from_slice(&scratch.0)
        } else {
            mem::take(&mut scratch.0).into()
        };
        if apart.is_empty() {
            return bytes.into();
        }
        let mut pieces = Pieces::default();
        let mut done = 0;
        for (at, piece) in apart {
            pieces.push(bytes.slice(done..at));
            pieces.push(piece);
            done = at;
        }
        pieces.push(bytes.slice(done..));
        pieces.into()
    }

    /// Returns the number of bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Content::Few(scratch) => scratch.0.len(),
            Content::Pieces(pieces) => pieces.len,
        }
    }

    /// Returns whether it may be somebody else's memory, so that dropping it may run other code.
    pub fn is_shared(&self) -> bool {
        !self.is_empty() && matches!(self.0, Content::Pieces(_))
    }

    /// Returns whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Splits off the first `size` bytes, or all of them if there are fewer.
    #[must_use]
    pub fn split_to(&mut self, size: usize) -> Self {
        if let Content::Few(_) = &self.0 {
            *self = mem::take(self).into_pieces().into();
        }
        match &mut self.0 {
            Content::Pieces(pieces) => pieces.split_to(size).into(),
            Content::Few(_) => unreachable!("they were made pieces just now"),
        }
    }

    /// Returns a few bytes as a slice, or otherwise the pieces.
    pub(crate) fn parts(&self) -> Result<&[u8], &Pieces> {
        match &self.0 {
            Content::Few(scratch) => Ok(&scratch.0),
            Content::Pieces(pieces) => Err(pieces),
        }
    }

    /// Returns all bytes in one piece. They are copied if there are several pieces, or only a few bytes.
    pub fn into_bytes(self) -> Bytes {
        let mut pieces = self.into_pieces();
        if pieces.rest().is_empty() {
            return mem::take(&mut pieces.first);
        }
        let mut bytes = Vec::with_capacity(pieces.len);
        pieces.append_to(&mut bytes);
        bytes.into()
    }

    fn into_pieces(self) -> Pieces {
        match self.0 {
            Content::Few(scratch) => Bytes::copy_from_slice(&scratch.0).into(),
            Content::Pieces(pieces) => *pieces,
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

    /// Returns the pieces after the first.
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

/// The pieces may be the user's memory, whose `Drop` may panic. That must not end what the dropping code is
/// about to do, which may be somebody else's call.
impl Drop for Pieces {
    fn drop(&mut self) {
        for piece in iter::once(mem::take(&mut self.first)).chain(self.more.drain(..)) {
            if !piece.is_empty() {
                survive(|| drop(piece));
            }
        }
    }
}

impl Default for Encoded {
    fn default() -> Self {
        Self(Content::Few(Scratch::default()))
    }
}

impl From<Bytes> for Encoded {
    fn from(bytes: Bytes) -> Self {
        Pieces::from(bytes).into()
    }
}

impl From<Pieces> for Encoded {
    fn from(pieces: Pieces) -> Self {
        Self(Content::Pieces(Box::new(pieces)))
    }
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        Self { len: bytes.len(), first: bytes, more: Vec::new(), taken: 0 }
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
