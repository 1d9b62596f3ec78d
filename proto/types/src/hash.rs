//! The identity of a block: a chained, keyed 128-bit hash of its tokens and of all before them.
//!
//! Keyed with a cluster secret, so that nobody outside can make two prompts collide or test whether another
//! tenant's prefix is cached. A namespace (tenant, model revision, adapter, block size) is the parent of every
//! chain's first block, which keeps namespaces apart without any further check.
//!
//! # Construction
//!
//! A chain has a state, and the name of a block is the state after it, encrypted:
//! `state = state * r ^ X(block)`, `name = E(state)`. The state of a parent is had back by decryption, so that a name
//! is all that must be known to go on from it. `E` is AES-128 with all its rounds, off the path from one block to
//! the next, on which there is only a multiplication. `X` is a keyed universal hash of the block alone. All is
//! computed in GF(2^128), the field of AES-GCM (x^128 + x^7 + x^2 + x + 1, bit `i` of a number is the factor of
//! x^i), on 16-byte pieces `p` of the tokens, little-endian, filled up with zeros to a multiple of two pieces:
//!
//! `X = sum over i of (p[2i] ^ k[2i]) * (p[2i+1] ^ k[2i+1])  ^  header * l`
//!
//! The header is the number of tokens and the kind of use: the end of a block, its continuation, a namespace.
//! Blocks above [`SEGMENT_TOKENS`] are cut into segments of that length, which change the state one after the
//! other, the last one with the header of an end, those before it with that of a continuation. A namespace is a
//! chain of one block, from the state 0. The keys (of `E`, `r`, `l`, each `k`) are AES-128 under the cluster's secret
//! of a label and a counter.
//!
//! # Why it is safe
//!
//! Seen from its root, a state is a polynomial in `r` whose coefficients are the `X` of the segments on the way. Take
//! two different ways of at most `n` segments.
//!
//! - `X` of two different segments, headers included, differ by a given amount with a chance of 2^-128 at most: if
//!   the headers differ, only one value of `l` does it, whatever all else is; else some piece differs, and only one
//!   value of the key of the piece that it is multiplied with does it. In the same way `X` of one segment takes a
//!   given value with a chance of 2^-128, since no header is 0.
//! - So, but for 2^-128, the two polynomials differ: in the coefficient where ways of one length part, in the first
//!   coefficient of the longer one else. They agree in at most `n - 1` values of `r`.
//! - So two states are equal with a chance of `n / 2^128` at most, for ways of all lengths together.
//!
//! While states differ, their encryptions are random numbers to whoever lacks the key, and say nothing about the
//! states: it does not help to see names, to go on from them, or to choose the next prompt after looking. There
//! is no rule like CBC-MAC's that messages be free of prefixes. Who has `q` blocks named makes two names equal, or
//! tells a name from a random number, with a chance of at most `n * q^2 / 2^128`, besides what can be done to AES-128
//! itself: 2^-32 for 2^40 blocks, 2^-16 for 2^48 (a million each second for nine years), if every one of them ends a
//! prompt of a million tokens. AES in the chain itself, `E(parent ^ X)`, would spare the factor `n`, but ten rounds
//! that wait for each other cost twice the plain hash; see `examples/hash_cost`.
//!
//! What is assumed: AES-128 is a strong pseudo-random permutation; the cluster's secret is uniform and stays
//! secret. With a key that is known (tests, an engine without a cluster) names still tell honest prompts apart, but
//! anyone can construct collisions. One collision gives `r` away, as with AES-GCM: one secret serves one cluster.
//! Parts of a name have no more strength than their length: of 2^32 blocks two agree in 64 bits by chance.

mod field;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod hardware;
mod key;
mod portable;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use core::fmt;
use std::sync::Arc;

use key::State;
pub use key::{BlockHashKey, SEGMENT_TOKENS};

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
    /// Derives the namespace of a tenant's use of one model revision and adapter at one block size. Who has a
    /// prepared key calls [`BlockHashKey::namespace`].
    #[must_use]
    pub fn derive(
        key: HashKey,
        tenant: &str,
        model: &str,
        adapter: &str,
        block_tokens: u32,
    ) -> Self {
        BlockHashKey::new(key).namespace(tenant, model, adapter, block_tokens)
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

/// Hashes one block: `parent` is the hash of the block before it, or the namespace for the first. It prepares the
/// key anew; who hashes more than one block holds a [`BlockHashKey`].
#[must_use]
pub fn block_hash(key: HashKey, parent: u128, tokens: &[u32]) -> u128 {
    BlockHashKey::new(key).block_hash(parent, tokens)
}

/// Hashes the blocks of one sequence as it grows; each token is hashed once.
#[derive(Debug, Clone)]
pub struct BlockHasher {
    key: Arc<BlockHashKey>,
    block_tokens: u32,
    state: State,
    /// Tokens of the block that is not full yet; fewer than `block_tokens`.
    pending: Vec<u32>,
}

impl BlockHasher {
    /// Starts a chain in `namespace`. A block size of 0 is taken as 1, so that no caller can loop forever.
    #[must_use]
    pub fn new(key: HashKey, namespace: NamespaceId, block_tokens: u32) -> Self {
        Self::with_key(Arc::new(BlockHashKey::new(key)), namespace, block_tokens)
    }

    /// Starts a chain with a key that others use too.
    #[must_use]
    pub fn with_key(key: Arc<BlockHashKey>, namespace: NamespaceId, block_tokens: u32) -> Self {
        let state = key.state_of(namespace.0);
        Self { key, block_tokens: block_tokens.max(1), state, pending: Vec::new() }
    }

    /// Takes one token; answers with the hash of the block that it completes.
    pub fn push(&mut self, token: u32) -> Option<SequenceHash> {
        self.pending.push(token);
        self.finish_block()
    }

    /// Takes many tokens; the hashes of the blocks that they complete are appended to `out`.
    pub fn extend(&mut self, tokens: &[u32], out: &mut Vec<SequenceHash>) {
        let block_tokens = self.block_tokens as usize;
        let missing = (block_tokens - self.pending.len()) % block_tokens;
        let (head, rest) = tokens.split_at(missing.min(tokens.len()));
        self.pending.extend_from_slice(head);
        out.extend(self.finish_block());
        let (full, partial) = rest.split_at(rest.len() - rest.len() % block_tokens);
        self.state = self.key.chain_from(self.state, self.block_tokens, full, out);
        self.pending.extend_from_slice(partial);
    }

    fn finish_block(&mut self) -> Option<SequenceHash> {
        if self.pending.len() < self.block_tokens as usize {
            return None;
        }
        self.state = self.key.after_block(self.state, &self.pending);
        self.pending.clear();
        Some(SequenceHash(self.key.name_of(self.state)))
    }

    /// Hashes the full blocks of `tokens`; a partial last block has no hash. Who has a prepared key calls
    /// [`BlockHashKey::hash_prompt`].
    #[must_use]
    pub fn hash_prompt(
        key: HashKey,
        namespace: NamespaceId,
        block_tokens: u32,
        tokens: &[u32],
    ) -> Vec<SequenceHash> {
        BlockHashKey::new(key).hash_prompt(namespace, block_tokens, tokens)
    }
}

#[cfg(test)]
mod tests;
