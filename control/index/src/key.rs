//! What the index knows a block by: 64 bits of its sequence hash.
//!
//! Hashes are keyed and chained, so equal keys at one offset mean equal prefixes up to there; that is what lets a
//! lookup prove a thousand blocks with one compare. Two different blocks share a key with probability 3e-4 among
//! 1e8 of them, and the price is a wrong hint.

use mainstay_types::SequenceHash;

/// The key of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey(pub u64);

/// What names a block.
pub trait BlockName: Copy {
    /// Its key.
    fn key(self) -> u64;
}

impl BlockName for BlockKey {
    #[inline(always)]
    fn key(self) -> u64 {
        self.0
    }
}

impl BlockName for SequenceHash {
    #[inline(always)]
    fn key(self) -> u64 {
        self.0 as u64
    }
}

/// A sequence hash as it lies in a message: little-endian.
impl BlockName for [u8; 16] {
    #[inline(always)]
    fn key(self) -> u64 {
        u128::from_le_bytes(self) as u64
    }
}
