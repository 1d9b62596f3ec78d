//! Maps from ids and hashes, looked up some thousand times for one decision.
//!
//! Worker ids are given out by the cluster and block hashes are keyed with its secret, so nobody outside can choose
//! them to collide, and one multiplication spreads them well enough.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// An odd number with bits in no order.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Spreads a number over 64 bits.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spreading(u64);

impl Hasher for Spreading {
    fn finish(&self) -> u64 {
        // The map takes high bits and low ones.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(SPREAD);
    }

    fn write_u128(&mut self, number: u128) {
        self.write_u64(number as u64);
    }
}

/// A map from ids or hashes.
pub(crate) type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<Spreading>>;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use mainstay_types::{SequenceHash, WorkerId};

    use super::*;

    #[test]
    fn neighbours_fall_apart() {
        let slot = |hash: u64| (hash & 0xFFF, hash >> 57);
        let hash = |write: &dyn Fn(&mut Spreading)| {
            let mut hasher = Spreading::default();
            write(&mut hasher);
            slot(hasher.finish())
        };
        let slots: HashSet<_> = (0..1_000_u32).map(|id| hash(&|h| h.write_u32(id))).collect();
        assert!(slots.len() > 990, "{}", slots.len());
        let mut map: IdMap<SequenceHash, WorkerId> = IdMap::default();
        map.extend((0..1_000).map(|at| (SequenceHash(at << 3), WorkerId(at as u32))));
        assert!((0..1_000).all(|at| map[&SequenceHash(at << 3)] == WorkerId(at as u32)));
    }
}
