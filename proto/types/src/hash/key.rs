//! The cluster's secret, prepared for hashing blocks: expanded once, used for every block after.
//!
//! It picks the processor's instructions where they exist. All forms give equal hashes; which one runs is only a
//! matter of speed.

use core::fmt;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::hardware::Hardware;
use super::portable::{self, Cipher};
use super::{HashKey, NamespaceId, SequenceHash};

/// Tokens that share one multiplication: two pieces of four.
pub(super) const PAIR_TOKENS: usize = 8;

/// Longer blocks are hashed in segments of so many tokens. It bounds the keys that are derived: half a kibibyte.
pub const SEGMENT_TOKENS: usize = PAIRS * PAIR_TOKENS;

const PAIRS: usize = 16;

/// What a step is for, in the upper half of its header. The lower half counts the segment's tokens, at most
/// [`SEGMENT_TOKENS`].
#[derive(Clone, Copy)]
enum Use {
    End = 1,
    Continuation = 2,
    Namespace = 3,
}

impl Use {
    fn header(self, tokens: usize) -> u64 {
        (self as u64) << 32 | tokens as u64
    }
}

/// What lies between the blocks of a chain. It stays inside: only its encryption, the name, is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State(pub(super) u128);

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State(secret)")
    }
}

/// The keys of the universal hash.
#[derive(Clone)]
pub(super) struct Subkeys {
    /// One key for each piece of a segment.
    pub(super) pairs: [[u128; 2]; PAIRS],
    /// What headers are multiplied with.
    pub(super) header: u128,
    /// What the state is multiplied with.
    pub(super) turn: u128,
}

/// Derived keys: the cipher's, the header's, the state's, two for each pair.
const DERIVED: usize = 3 + 2 * PAIRS;

/// The upper half of what is encrypted to derive a key; the lower one counts. Any other use of the cluster's secret
/// needs a label of its own.
const LABEL: u128 = (u64::from_le_bytes(*b"block-v2") as u128) << 64;

/// Derives the key of the cipher and those of the universal hash.
fn derive(key: HashKey) -> (u128, Subkeys) {
    let secret = Cipher::new(u128::from_le_bytes(key.0));
    let [cipher, header, turn, pairs @ ..] =
        secret.encrypt_all::<DERIVED>(core::array::from_fn(|counter| LABEL | counter as u128));
    let pairs = core::array::from_fn(|pair| [pairs[2 * pair], pairs[2 * pair + 1]]);
    (cipher, Subkeys { pairs, header, turn })
}

#[derive(Clone)]
enum Engine {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Hardware(Hardware),
    Portable(Box<Cipher>),
}

/// The cluster's secret, prepared: hold one and hash with it. Its `Debug` form never shows it.
#[derive(Clone)]
pub struct BlockHashKey {
    subkeys: Subkeys,
    engine: Engine,
}

impl fmt::Debug for BlockHashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockHashKey(secret)")
    }
}

impl BlockHashKey {
    /// Prepares `key` for the fastest form that this processor has.
    #[must_use]
    pub fn new(key: HashKey) -> Self {
        let (cipher, subkeys) = derive(key);
        Self { subkeys, engine: fastest(cipher) }
    }

    /// Prepares `key` for the form that runs everywhere; for comparisons.
    #[must_use]
    pub fn portable(key: HashKey) -> Self {
        let (cipher, subkeys) = derive(key);
        Self { subkeys, engine: Engine::Portable(Box::new(Cipher::new(cipher))) }
    }

    /// Whether the processor's instructions for AES and for multiplication without carry are in use.
    #[must_use]
    pub fn is_hardware(&self) -> bool {
        !matches!(self.engine, Engine::Portable(_))
    }

    /// Hashes one block: `parent` is the hash of the block before it, or the namespace for the first.
    #[must_use]
    pub fn block_hash(&self, parent: u128, tokens: &[u32]) -> u128 {
        self.name_of(self.after_block(self.state_of(parent), tokens))
    }

    /// Names a tenant's use of one model revision and adapter at one block size.
    #[must_use]
    pub fn namespace(
        &self,
        tenant: &str,
        model: &str,
        adapter: &str,
        block_tokens: u32,
    ) -> NamespaceId {
        let mut words = vec![block_tokens];
        for part in [tenant, model, adapter] {
            // The length comes first, so that no two lists of parts make the same words.
            let bytes = part.len() as u64;
            words.extend([bytes as u32, (bytes >> 32) as u32]);
            words.extend(part.as_bytes().chunks(4).map(|chunk| {
                let mut word = [0; 4];
                word[..chunk.len()].copy_from_slice(chunk);
                u32::from_le_bytes(word)
            }));
        }
        NamespaceId(self.name_of(self.absorb(State(0), Use::Namespace, &words)))
    }

    /// Hashes the full blocks of `tokens`; a partial last block has no hash.
    #[must_use]
    pub fn hash_prompt(
        &self,
        namespace: NamespaceId,
        block_tokens: u32,
        tokens: &[u32],
    ) -> Vec<SequenceHash> {
        let mut out = Vec::new();
        self.chain(namespace.0, block_tokens, tokens, &mut out);
        out
    }

    /// Hashes the full blocks of `tokens`, which follow `parent`, and appends their hashes to `out`; a partial last
    /// block has no hash. A block size of 0 is taken as 1.
    pub fn chain(
        &self,
        parent: u128,
        block_tokens: u32,
        tokens: &[u32],
        out: &mut Vec<SequenceHash>,
    ) {
        self.chain_from(self.state_of(parent), block_tokens, tokens, out);
    }

    /// [`BlockHashKey::chain`] from a state to the state after the last block.
    pub(super) fn chain_from(
        &self,
        state: State,
        block_tokens: u32,
        tokens: &[u32],
        out: &mut Vec<SequenceHash>,
    ) -> State {
        let block_tokens = block_tokens.max(1) as usize;
        let start = out.len();
        out.resize(start + tokens.len() / block_tokens, SequenceHash(0));
        let out = &mut out[start..];
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if let (Engine::Hardware(hardware), true) = (&self.engine, block_tokens <= SEGMENT_TOKENS) {
            let header = Use::End.header(block_tokens);
            let blocks = tokens.chunks_exact(block_tokens);
            return State(hardware.chain(&self.subkeys, state.0, header, blocks, out));
        }
        let mut state = state;
        for (slot, block) in out.iter_mut().zip(tokens.chunks_exact(block_tokens)) {
            state = self.after_block(state, block);
            *slot = SequenceHash(self.name_of(state));
        }
        state
    }

    pub(super) fn after_block(&self, state: State, tokens: &[u32]) -> State {
        self.absorb(state, Use::End, tokens)
    }

    fn absorb(&self, state: State, last: Use, tokens: &[u32]) -> State {
        let mut state = state;
        let mut tokens = tokens;
        while let Some((segment, rest)) =
            tokens.split_at_checked(SEGMENT_TOKENS).filter(|(_, rest)| !rest.is_empty())
        {
            state = self.step(state, Use::Continuation.header(SEGMENT_TOKENS), segment);
            tokens = rest;
        }
        self.step(state, last.header(tokens.len()), tokens)
    }

    /// `segment` has at most [`SEGMENT_TOKENS`], which the header counts.
    fn step(&self, State(state): State, header: u64, segment: &[u32]) -> State {
        State(match &self.engine {
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Engine::Hardware(hardware) => hardware.step(&self.subkeys, state, header, segment),
            Engine::Portable(_) => portable::step(&self.subkeys, state, header, segment),
        })
    }

    pub(super) fn name_of(&self, State(state): State) -> u128 {
        match &self.engine {
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Engine::Hardware(hardware) => hardware.encrypt(state),
            Engine::Portable(cipher) => cipher.encrypt(state),
        }
    }

    pub(super) fn state_of(&self, name: u128) -> State {
        State(match &self.engine {
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Engine::Hardware(hardware) => hardware.decrypt(name),
            Engine::Portable(cipher) => cipher.decrypt(name),
        })
    }
}

fn fastest(cipher: u128) -> Engine {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if let Some(hardware) = Hardware::detect(cipher) {
        return Engine::Hardware(hardware);
    }
    Engine::Portable(Box::new(Cipher::new(cipher)))
}

#[cfg(test)]
impl BlockHashKey {
    /// Both forms, with keys chosen by hand.
    pub(super) fn by_hand(
        cipher: u128,
        header: u128,
        turn: u128,
        pairs: [[u128; 2]; PAIRS],
    ) -> [Self; 2] {
        let subkeys = Subkeys { pairs, header, turn };
        let portable = Engine::Portable(Box::new(Cipher::new(cipher)));
        [portable, fastest(cipher)].map(|engine| Self { subkeys: subkeys.clone(), engine })
    }
}
