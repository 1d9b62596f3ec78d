//! Random numbers and block keys from a seed: two runs with one seed measure the same work.
//!
//! Keys come from multiply-and-fold mixing, which costs about as much as a plain hash of a block: the corpora
//! hold hundreds of millions of them, and the cost of the real hash has a part of its own. As with the real
//! hash a key fixes everything before it. No seed is refused.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use mainstay_index::BlockKey;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const FOLD_A: u64 = 0xa076_1d64_78bd_642f;
const FOLD_B: u64 = 0xe703_7ed1_a0b4_28db;

/// A bijection of 64 bits in which every bit of the input moves every bit of the output.
#[inline]
pub(super) fn mix(value: u64) -> u64 {
    let mut x = value;
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 32)
}

/// The key of the block with `content` after the block, or the namespace, with the key `parent`.
#[inline]
pub(super) fn chain(parent: u64, content: u64) -> BlockKey {
    let product = u128::from(parent ^ FOLD_A) * u128::from(mix(content) ^ FOLD_B);
    // The parent once more, because a product of two words alone is the same for swapped words.
    BlockKey(product as u64 ^ (product >> 64) as u64 ^ parent.rotate_left(29))
}

/// The key of block `position` of the chain that `seed` names. Counted instead of chained, so that a key can be
/// had without those before it; a chain's seed is its own, so its keys still have one parent each.
#[inline]
pub(super) fn counted(seed: u64, position: u64) -> BlockKey {
    BlockKey(mix(seed.wrapping_add(position.wrapping_mul(GOLDEN))))
}

/// A generator with 64 bits of state.
#[derive(Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(mix(seed ^ FOLD_B))
    }

    #[inline]
    pub(super) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `end`; 0 where `end` is 0.
    #[inline]
    pub(super) fn below(&mut self, end: u64) -> u64 {
        let product = u128::from(self.draw()) * u128::from(end);
        (product >> 64) as u64
    }

    /// A place in a list of `len`.
    #[inline]
    pub(super) fn place(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or_default()
    }

    /// A number in (0, 1].
    pub(super) fn unit(&mut self) -> f64 {
        ((self.draw() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// A log-normal draw with this median; `sigma` is the spread of its logarithm.
    pub(super) fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        let normal =
            (-2.0 * self.unit().ln()).sqrt() * (core::f64::consts::TAU * self.unit()).cos();
        median * (sigma * normal).exp()
    }

    /// The same, as a count between 1 and `max`.
    pub(super) fn log_normal_count(&mut self, median: f64, sigma: f64, max: u64) -> u64 {
        let bounded = self.log_normal(median, sigma).clamp(1.0, max as f64);
        bounded as u64
    }

    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            let other = self.place(end + 1);
            list.swap(end, other);
        }
    }
}

/// Hashes a block key as itself: it is a hash already.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// A map from block keys.
pub(super) type KeyMap<V> = HashMap<u64, V, BuildHasherDefault<KeyHasher>>;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn one_seed_gives_one_sequence() {
        let draw = |seed| {
            let mut rng = Rng::new(seed);
            (0..4).map(|_| rng.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn keys_do_not_meet() {
        let mut seen = HashSet::new();
        let mut parent = 1;
        for position in 0..20_000u64 {
            let BlockKey(key) = chain(parent, position % 7);
            assert!(seen.insert(key) && seen.insert(counted(parent, position).0));
            parent = key;
        }
        // Words that change places are other words.
        assert_ne!(chain(1, 2).0, chain(2, 1).0);
    }

    #[test]
    fn draws_keep_their_bounds() {
        let mut rng = Rng::new(3);
        assert_eq!(rng.below(0), 0);
        assert!((0..1_000).all(|_| rng.below(5) < 5 && rng.unit() > 0.0));
        let mut lengths: Vec<u64> =
            (0..4_001).map(|_| rng.log_normal_count(100.0, 1.0, 2_000)).collect();
        lengths.sort_unstable();
        assert!(lengths[0] >= 1 && lengths[4_000] <= 2_000);
        assert!((80..125).contains(&lengths[2_000]), "median {}", lengths[2_000]);
    }
}
