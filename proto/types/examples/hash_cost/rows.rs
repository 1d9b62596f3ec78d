//! The forms of block names that are compared, and how long each takes for a whole prompt.
//!
//! All forms get the same tokens and leave one name per block in a buffer that exists before. Each round runs every
//! form once, so that a change of the clock's speed meets all of them. The plain forms get their tokens as bytes
//! for nothing.

use std::hash::Hasher;
use std::hint::black_box;

use mainstay_types::hash::BlockHashKey;
use mainstay_types::{BlockHasher, HashKey, NamespaceId, SequenceHash};
use siphasher::sip128::{Hasher128, SipHasher13};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Blocks of the prompt.
pub(crate) const BLOCKS: usize = 2_000;
/// Prompts per reading of the clock, which costs a fraction of a microsecond itself.
const PROMPTS: usize = 5;

/// What one form takes for one block.
pub(crate) struct Row {
    /// What is measured.
    pub(crate) form: &'static str,
    /// Tokens of a block.
    pub(crate) block_tokens: usize,
    /// The least of all rounds.
    pub(crate) best_ns: f64,
    /// The middle of all rounds.
    pub(crate) median_ns: f64,
    /// The least of all rounds, as a multiple of the plain chained form's.
    pub(crate) of_plain: f64,
}

/// One prompt in the two shapes that the forms take, and room for its names.
struct Prompt {
    block_tokens: usize,
    tokens: Vec<u32>,
    bytes: Vec<u8>,
    names_64: Vec<u64>,
    names: Vec<SequenceHash>,
}

impl Prompt {
    fn new(block_tokens: usize) -> Self {
        let count = (BLOCKS * block_tokens) as u32;
        let tokens: Vec<u32> = (0..count).map(|i| i.wrapping_mul(0x9e37_79b1) >> 15).collect();
        let bytes = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let (names_64, names) = (Vec::with_capacity(BLOCKS), Vec::with_capacity(BLOCKS));
        Self { block_tokens, tokens, bytes, names_64, names }
    }

    fn plain_chained(&mut self) {
        let mut parent = 1;
        self.names_64.clear();
        for block in self.bytes.chunks_exact(4 * self.block_tokens) {
            parent = xxh3_64_with_seed(block, parent);
            self.names_64.push(parent);
        }
    }

    fn plain_local_and_step(&mut self) {
        let mut parent = 1_u64;
        self.names_64.clear();
        for block in self.bytes.chunks_exact(4 * self.block_tokens) {
            let mut both = [0; 16];
            both[..8].copy_from_slice(&parent.to_le_bytes());
            both[8..].copy_from_slice(&xxh3_64(block).to_le_bytes());
            parent = xxh3_64(&both);
            self.names_64.push(parent);
        }
    }

    fn sip(&mut self, key: HashKey) {
        let mut parent = 1_u128;
        self.names.clear();
        for block in self.tokens.chunks_exact(self.block_tokens) {
            let mut hasher = SipHasher13::new_with_key(&key.0);
            hasher.write(&parent.to_le_bytes());
            for token in block {
                hasher.write(&token.to_le_bytes());
            }
            parent = hasher.finish128().as_u128();
            self.names.push(SequenceHash(parent));
        }
    }

    fn chain(&mut self, key: &BlockHashKey) {
        self.names.clear();
        key.chain(1, self.block_tokens as u32, &self.tokens, &mut self.names);
    }

    fn one_by_one(&mut self, key: &BlockHashKey) {
        let mut parent = 1;
        self.names.clear();
        for block in self.tokens.chunks_exact(self.block_tokens) {
            parent = key.block_hash(parent, block);
            self.names.push(SequenceHash(parent));
        }
    }

    fn prepare_each_time(&mut self, key: HashKey) {
        let block_tokens = self.block_tokens as u32;
        self.names = BlockHasher::hash_prompt(key, NamespaceId(1), block_tokens, &self.tokens);
    }
}

type Form = (&'static str, Box<dyn Fn(&mut Prompt)>);

fn forms() -> Vec<Form> {
    let key = HashKey(*b"a cluster secret");
    let (fast, slow) = (BlockHashKey::new(key), BlockHashKey::portable(key));
    let named = match fast.is_hardware() {
        true => "keyed 128 bits (AES instructions)",
        false => "keyed 128 bits (no AES instructions here)",
    };
    let again = fast.clone();
    vec![
        ("plain xxh3-64, seed = parent", Box::new(Prompt::plain_chained)),
        ("plain xxh3-64 of the block, then of 16 bytes", Box::new(Prompt::plain_local_and_step)),
        (named, Box::new(move |p| p.chain(&fast))),
        ("  its key expanded for each prompt", Box::new(move |p| p.prepare_each_time(key))),
        ("  one call per block", Box::new(move |p| p.one_by_one(&again))),
        ("  portable, AES by the `aes` crate", Box::new(move |p| p.chain(&slow))),
        ("SipHash-1-3-128, as it was", Box::new(move |p| p.sip(key))),
    ]
}

/// Takes the time of all forms at 16 and at 64 tokens per block. `clock_ns` reads CPU time.
pub(crate) fn measure(clock_ns: impl Fn() -> f64, rounds: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for block_tokens in [16, 64] {
        let (forms, mut prompt) = (forms(), Prompt::new(block_tokens));
        let mut samples = vec![Vec::with_capacity(rounds); forms.len()];
        for _ in 0..rounds.max(1) {
            for ((_, form), samples) in forms.iter().zip(&mut samples) {
                form(&mut prompt);
                let start_ns = clock_ns();
                for _ in 0..PROMPTS {
                    form(black_box(&mut prompt));
                }
                samples.push((clock_ns() - start_ns) / (PROMPTS * BLOCKS) as f64);
            }
        }
        for samples in &mut samples {
            samples.sort_unstable_by(f64::total_cmp);
        }
        for ((form, _), of_form) in forms.iter().zip(&samples) {
            let (best_ns, median_ns) = (of_form[0], of_form[of_form.len() / 2]);
            let of_plain = best_ns / samples[0][0];
            rows.push(Row { form, block_tokens, best_ns, median_ns, of_plain });
        }
    }
    rows
}
