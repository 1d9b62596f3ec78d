//! What a model answers and what its blocks hold, computed without any cache: by a scheduler of its own, in a
//! namespace of its own for each prompt, so that nothing of it was ever stored, moved or evicted.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use mainstay_engine_abi::sdk::{Finish, Request, Sampling};
use mainstay_engine_shell::{Wake, Work};
use mainstay_native::open_scheduler;
use mainstay_native::options::Options;
use mainstay_native::scheduler::Scheduler;
use mainstay_types::{BlockHashKey, HashKey, NamespaceId};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::tests::fake_control::HASH_KEY;

/// Tokens of a block: few, so that short prompts have many.
pub(super) const BLOCK_TOKENS: u32 = 4;
/// The longest sequence, prompt and answer.
pub(super) const SEQUENCE_MAX: usize = 300;

/// The models, by the folder of their files and how exactly they count.
pub(super) const MODELS: [(&str, &str); 3] =
    [("llama-f32", "exact"), ("qwen2-f32", "exact"), ("llama-bf16-legacy", "fast")];

/// The configuration of an engine with one of the models and so many blocks.
pub(super) fn engine_config(model: usize, blocks: u32, step_tokens: u32) -> Map<String, Value> {
    let (name, precision) = MODELS[model];
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
    let fixtures = PathBuf::from(here).join("../../plugins/native/fixtures");
    let config = json!({
        "model_dir": fixtures.join(name), "precision": precision, "blocks": blocks, "threads": 1,
        "block_tokens": BLOCK_TOKENS, "requests_max": 8, "step_tokens_max": step_tokens,
    });
    config.as_object().expect("an object").clone()
}

/// How an answer is drawn: greedily, or by a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Draw {
    pub(super) seed: Option<u64>,
    pub(super) tokens: u32,
}

impl Draw {
    /// The temperature and the nucleus.
    pub(super) const fn heat(self) -> (f32, f32) {
        if self.seed.is_some() { (0.9, 0.95) } else { (0.0, 1.0) }
    }
}

/// An answer with the probabilities that led to it: token, place, rank and the bits of the logarithm.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) tokens: Vec<u32>,
    pub(super) logprobs: Vec<(u32, u32, u32, u32)>,
}

/// A digest of a block's bytes.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// An answer, and the digests of the whole blocks of prompt and answer, the last token's left out.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) answer: Answer,
    pub(super) blocks: Vec<u64>,
}

struct Reference {
    scheduler: Scheduler,
    key: BlockHashKey,
    namespace: u128,
    now_us: u64,
    known: HashMap<(Vec<u32>, Draw), Arc<Known>>,
}

/// The truth about one model, remembered by prompt.
pub(super) struct Truth(Mutex<Reference>);

impl Truth {
    pub(super) fn of(model: usize) -> Self {
        let mut config = engine_config(model, 256, 512);
        config.insert("hash_key".into(), HashKey(HASH_KEY).to_hex().into());
        let options = Options::parse(&Value::Object(config).to_string()).expect("valid");
        let scheduler = open_scheduler(&options);
        Self(Mutex::new(Reference {
            scheduler: scheduler.expect("opens"),
            key: BlockHashKey::new(HashKey(HASH_KEY)),
            namespace: 1 << 100,
            now_us: 0,
            known: HashMap::new(),
        }))
    }

    /// What the model answers to a prompt.
    pub(super) fn about(&self, prompt: &[u32], draw: Draw) -> Arc<Known> {
        let mut reference = self.0.lock();
        if let Some(known) = reference.known.get(&(prompt.to_vec(), draw)) {
            return Arc::clone(known);
        }
        let known = Arc::new(reference.compute(prompt, draw));
        reference.known.insert((prompt.to_vec(), draw), Arc::clone(&known));
        known
    }

    /// Forgets what was computed; what is asked again is computed again.
    pub(super) fn forget(&self) {
        self.0.lock().known.clear();
    }
}

impl Reference {
    fn compute(&mut self, prompt: &[u32], draw: Draw) -> Known {
        self.namespace += 1;
        let (temperature, top_p) = draw.heat();
        let sampling = Sampling {
            temperature,
            top_p,
            seed: draw.seed,
            tokens_max: draw.tokens,
            logprobs: 3,
            ignore_eos: true,
            ..Sampling::default()
        };
        let (id, tokens) = (self.namespace as u64, prompt.to_vec());
        let request =
            Request { id, namespace: self.namespace, tokens, sampling, ..Request::default() };
        self.scheduler.submit(request, self.now_us);
        let answer = self.run();
        let mut all = prompt.to_vec();
        all.extend(&answer.tokens);
        all.pop();
        let mut names = Vec::new();
        self.key.chain(self.namespace, BLOCK_TOKENS, &all, &mut names);
        let names: Vec<u128> = names.iter().map(|name| name.0).collect();
        let of = self.scheduler.block_bytes();
        let mut bytes = vec![0; of * names.len()];
        assert_eq!(self.scheduler.export(&names, &mut bytes) as usize, names.len());
        Known { answer, blocks: bytes.chunks_exact(of).map(digest).collect() }
    }

    fn run(&mut self) -> Answer {
        let mut answer = Answer::default();
        loop {
            self.now_us += 1_000;
            let now_us = self.now_us;
            assert_eq!(self.scheduler.step(&|| now_us, true), Wake::Now, "it is stuck");
            // Nobody follows what this one stores.
            self.scheduler.drain_events().for_each(drop);
            for output in self.scheduler.drain_outputs() {
                assert_eq!(output.cached_tokens, 0, "the truth comes from no cache");
                let before = answer.tokens.len() as u32;
                answer.logprobs.extend(
                    output
                        .logprobs
                        .iter()
                        .map(|p| (p.token, before + p.position, p.rank, p.logprob.to_bits())),
                );
                answer.tokens.extend(&output.tokens);
                if let Some(finish) = output.finish {
                    assert_eq!(finish, Finish::Length);
                    return answer;
                }
            }
        }
    }
}

/// The names of a sequence's whole blocks for a tenant.
pub(super) fn names(key: &BlockHashKey, namespace: NamespaceId, tokens: &[u32]) -> Vec<u128> {
    key.hash_prompt(namespace, BLOCK_TOKENS, tokens).iter().map(|name| name.0).collect()
}
