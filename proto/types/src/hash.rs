//! The identity of a block: a chained, keyed 128-bit hash of its tokens and of all before them.
//!
//! Keyed with a cluster secret, so that nobody outside can make two prompts collide or test whether another
//! tenant's prefix is cached. SipHash-1-3 with 128 bits of output is a keyed function made for short inputs.
//! A namespace (tenant, model revision, adapter, block size) is the parent of every chain's first block, which
//! keeps namespaces apart without any further check.

use core::fmt;
use core::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

/// The cluster's secret for hashing. Its `Debug` form never shows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub [u8; 16]);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(secret)")
    }
}

impl HashKey {
    /// Reads 32 hexadecimal digits; anything else is `None`.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        parse_hex_u128(text).map(|value| Self(value.to_be_bytes()))
    }

    /// The 32 hexadecimal digits that [`HashKey::from_hex`] reads.
    #[must_use]
    pub fn to_hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }
}

fn parse_hex_u128(text: &str) -> Option<u128> {
    let digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    digits.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// Names a set of blocks that may be shared: equal namespaces share, unequal ones never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceId(pub u128);

impl NamespaceId {
    /// Derives the namespace of a tenant's use of one model revision and adapter at one block size.
    #[must_use]
    pub fn derive(
        key: HashKey,
        tenant: &str,
        model: &str,
        adapter: &str,
        block_tokens: u32,
    ) -> Self {
        let mut hasher = SipHasher13::new_with_key(&key.0);
        for part in [tenant, model, adapter] {
            hasher.write(&(part.len() as u64).to_le_bytes());
            hasher.write(part.as_bytes());
        }
        hasher.write(&block_tokens.to_le_bytes());
        Self(hasher.finish128().as_u128())
    }
}

/// The hash of a block and of everything before it in its prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceHash(pub u128);

impl fmt::Debug for SequenceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SequenceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl SequenceHash {
    /// Reads the 32 hexadecimal digits that `Display` writes.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        parse_hex_u128(text).map(Self)
    }
}

/// Hashes one block: `parent` is the hash of the block before it, or the namespace for the first.
#[must_use]
pub fn block_hash(key: HashKey, parent: u128, tokens: &[u32]) -> u128 {
    let mut hasher = SipHasher13::new_with_key(&key.0);
    hasher.write(&parent.to_le_bytes());
    for token in tokens {
        hasher.write(&token.to_le_bytes());
    }
    hasher.finish128().as_u128()
}

/// Hashes the blocks of one sequence as it grows; each token is hashed once.
#[derive(Debug, Clone)]
pub struct BlockHasher {
    key: HashKey,
    block_tokens: usize,
    parent: u128,
    pending: Vec<u32>,
}

impl BlockHasher {
    /// Starts a chain in `namespace`. A block size of 0 is taken as 1, so that no caller can loop forever.
    #[must_use]
    pub fn new(key: HashKey, namespace: NamespaceId, block_tokens: u32) -> Self {
        let block_tokens = block_tokens.max(1) as usize;
        Self { key, block_tokens, parent: namespace.0, pending: Vec::with_capacity(block_tokens) }
    }

    /// Takes one token; answers with the hash of the block that it completes.
    pub fn push(&mut self, token: u32) -> Option<SequenceHash> {
        self.pending.push(token);
        if self.pending.len() < self.block_tokens {
            return None;
        }
        self.parent = block_hash(self.key, self.parent, &self.pending);
        self.pending.clear();
        Some(SequenceHash(self.parent))
    }

    /// Hashes the full blocks of `tokens`; a partial last block has no hash.
    #[must_use]
    pub fn hash_prompt(
        key: HashKey,
        namespace: NamespaceId,
        block_tokens: u32,
        tokens: &[u32],
    ) -> Vec<SequenceHash> {
        let mut parent = namespace.0;
        tokens
            .chunks_exact(block_tokens.max(1) as usize)
            .map(|block| {
                parent = block_hash(key, parent, block);
                SequenceHash(parent)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: HashKey = HashKey([7; 16]);

    #[test]
    fn hex_round_trips_and_refuses_other_lengths() {
        assert_eq!(HashKey::from_hex(&KEY.to_hex()), Some(KEY));
        assert_eq!(HashKey::from_hex("07"), None);
        assert_eq!(HashKey::from_hex("+0000000000000000000000000000000"), None);
        let hash = SequenceHash(u128::MAX - 5);
        assert_eq!(SequenceHash::from_hex(&hash.to_string()), Some(hash));
    }

    #[test]
    fn the_key_is_never_shown() {
        assert_eq!(format!("{KEY:?}"), "HashKey(secret)");
    }

    #[test]
    fn every_part_of_a_namespace_counts() {
        let base = NamespaceId::derive(KEY, "a", "m", "", 16);
        for other in [
            NamespaceId::derive(HashKey([8; 16]), "a", "m", "", 16),
            NamespaceId::derive(KEY, "b", "m", "", 16),
            NamespaceId::derive(KEY, "am", "", "", 16),
            NamespaceId::derive(KEY, "a", "m", "x", 16),
            NamespaceId::derive(KEY, "a", "m", "", 32),
        ] {
            assert_ne!(base, other);
        }
    }

    proptest! {
        #[test]
        fn growing_and_whole_hashing_agree(tokens in proptest::collection::vec(any::<u32>(), 0..200), size in 1u32..33) {
            let namespace = NamespaceId(9);
            let mut hasher = BlockHasher::new(KEY, namespace, size);
            let grown: Vec<_> = tokens.iter().filter_map(|&t| hasher.push(t)).collect();
            prop_assert_eq!(&grown, &BlockHasher::hash_prompt(KEY, namespace, size, &tokens));
            prop_assert_eq!(grown.len(), tokens.len() / size as usize);
        }

        #[test]
        fn a_change_in_any_token_changes_every_hash_from_there(tokens in proptest::collection::vec(any::<u32>(), 32..96), at in any::<prop::sample::Index>()) {
            let at = at.index(tokens.len());
            let mut other = tokens.clone();
            other[at] ^= 1;
            let a = BlockHasher::hash_prompt(KEY, NamespaceId(1), 16, &tokens);
            let b = BlockHasher::hash_prompt(KEY, NamespaceId(1), 16, &other);
            for (i, (x, y)) in a.iter().zip(&b).enumerate() {
                prop_assert_eq!(x == y, i < at / 16);
            }
        }
    }
}
