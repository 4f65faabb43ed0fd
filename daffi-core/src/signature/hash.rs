//! FNV-1a: simple enough to be five lines in another language.

/// The 64-bit FNV-1a hash of what was written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub(super) fn write(&mut self, text: &str) {
        self.write_bytes(text.as_bytes());
    }

    pub(super) fn write_u64(&mut self, number: u64) {
        self.write_bytes(&number.to_le_bytes());
    }

    pub(super) fn write_bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    pub(super) fn finish(self) -> u64 {
        self.0
    }
}

/// Folds the hash to 32 bits; never returns 0, which stands for "unknown".
pub(super) fn fold_32(hash: u64) -> u32 {
    ((hash >> 32) as u32 ^ hash as u32).max(1)
}

/// Folds the hash to 16 bits; never returns 0, which stands for "unknown".
pub(super) fn fold_16(hash: u64) -> u16 {
    let hash = fold_32(hash);
    ((hash >> 16) as u16 ^ hash as u16).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_published_algorithm() {
        // Vectors from http://www.isthe.com/chongo/tech/comp/fnv/.
        for (text, expected) in
            [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            let mut hash = Fnv::default();
            hash.write(text);
            assert_eq!(hash.finish(), expected, "{text}");
        }
    }

    #[test]
    fn folding_never_gives_zero() {
        assert_eq!((fold_32(0), fold_16(0)), (1, 1));
        assert_eq!((fold_32(0x0000_0001_0000_0001), fold_16(0x0001_0001)), (1, 1));
        assert_eq!(fold_32(0x1234_0000_0000_5678), 0x1234_5678);
    }
}
