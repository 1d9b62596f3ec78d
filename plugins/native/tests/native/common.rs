//! What the engine's tests share: the fixtures, their golden outputs, and a scheduler that is
//! stepped by hand.

use std::path::PathBuf;

use mainstay_engine_abi::sdk::{Finish, KvEvent, Logprob, Output, Request, Sampling};
use mainstay_engine_shell::{Wake, Work};
use mainstay_native::open_scheduler;
use mainstay_native::options::Options;
use mainstay_native::scheduler::Scheduler;
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// All fixtures; the first three are stored as f32.
pub(crate) const FIXTURES: [&str; 5] =
    ["llama-f32", "qwen2-f32", "qwen3-f32-sharded", "llama-bf16-legacy", "qwen3-f16-legacy"];

pub(crate) fn folder(name: &str) -> PathBuf {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
    PathBuf::from(here).join("fixtures").join(name)
}

/// What transformers computed.
pub(crate) struct Golden {
    pub(crate) input: Vec<u32>,
    pub(crate) logits: Vec<f32>,
    pub(crate) greedy: Vec<u32>,
}

pub(crate) fn golden(name: &str) -> Golden {
    let bytes = std::fs::read(folder(name).join("golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        tensors.tensor(name).unwrap().data().as_chunks().0.to_vec()
    };
    let tokens = |name: &str| words(name).into_iter().map(u32::from_le_bytes).collect();
    Golden {
        input: tokens("input_ids"),
        logits: words("logits").into_iter().map(f32::from_le_bytes).collect(),
        greedy: tokens("greedy_ids"),
    }
}

/// The engine's configuration for a fixture, with changes.
pub(crate) fn config(name: &str, changes: Value) -> String {
    let mut config = json!({
        "model_dir": folder(name), "blocks": 64, "threads": 2, "precision": "exact",
        "hash_key": "000102030405060708090a0b0c0d0e0f",
    });
    for (member, value) in changes.as_object().unwrap() {
        config[member] = value.clone();
    }
    config.to_string()
}

/// A scheduler with a clock that tests move.
pub(crate) struct Bench {
    pub(crate) scheduler: Scheduler,
    pub(crate) now_us: u64,
    pub(crate) outputs: Vec<Output>,
    pub(crate) events: Vec<KvEvent>,
}

/// What became of a request.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Ending {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<Logprob>,
    pub(crate) finish: Option<Finish>,
    pub(crate) cached_tokens: u32,
    pub(crate) outputs: usize,
}

impl Bench {
    pub(crate) fn new(name: &str, changes: Value) -> Self {
        let options = Options::parse(&config(name, changes)).unwrap();
        let scheduler = open_scheduler(&options).unwrap();
        Self { scheduler, now_us: 0, outputs: Vec::new(), events: Vec::new() }
    }

    pub(crate) fn submit(&mut self, request: Request) {
        self.scheduler.submit(request, self.now_us);
    }

    pub(crate) fn step(&mut self) -> Wake {
        self.step_with_room(true)
    }

    pub(crate) fn step_with_room(&mut self, room: bool) -> Wake {
        self.now_us += 1000;
        let now_us = self.now_us;
        let step = self.scheduler.step(&|| now_us, room);
        self.events.extend(self.scheduler.drain_events());
        self.outputs.extend(self.scheduler.drain_outputs());
        step
    }

    /// Wakes until nothing is live.
    pub(crate) fn finish(&mut self) {
        for _ in 0..100_000 {
            if self.step() != Wake::Now {
                assert!(!self.scheduler.has_requests(), "requests are stuck");
                return;
            }
        }
        panic!("no end in sight");
    }

    /// Runs one request alone.
    pub(crate) fn run(&mut self, request: Request) -> Ending {
        let id = request.id;
        self.submit(request);
        self.finish();
        self.ending(id)
    }

    /// All that was reported of a request, which must have ended exactly once, at its end.
    pub(crate) fn ending(&self, id: u64) -> Ending {
        let mut ending = Ending::default();
        for output in self.outputs.iter().filter(|o| o.id == id) {
            assert!(ending.finish.is_none(), "something follows the final output of {id}");
            assert_eq!(output.first, ending.outputs == 0 && !output.tokens.is_empty());
            ending.tokens.extend(&output.tokens);
            ending.logprobs.extend(&output.logprobs);
            ending.finish.clone_from(&output.finish);
            ending.cached_tokens = output.cached_tokens;
            ending.outputs += 1;
        }
        assert!(ending.finish.is_some(), "request {id} has not ended");
        ending
    }
}

/// A greedy request that no end token stops.
pub(crate) fn request(id: u64, tokens: &[u32], tokens_max: u32) -> Request {
    let sampling = Sampling { tokens_max, ignore_eos: true, ..Sampling::default() };
    Request { id, tokens: tokens.to_vec(), sampling, ..Request::default() }
}
