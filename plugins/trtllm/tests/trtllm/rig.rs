//! An engine's folder for the double, and an engine over it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::types_of_mainstay::{BlockHasher, HashKey, NamespaceId};
use mainstay_engine_abi::sdk::{
    Engine, EngineError, Finish, HostLog, KvEvent, Lanes, Output, Request, Sampling,
};
use mainstay_trtllm::TrtllmEngine;

pub(crate) const NAMESPACE: u128 = 77;
pub(crate) const BLOCK: usize = 16;
const PATIENCE: Duration = Duration::from_secs(20);

/// A built engine's folder, with the double's settings in it.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new(settings: &[(&str, i64)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut text = String::new();
        for (key, value) in settings {
            writeln!(text, "{key} {value}").unwrap();
        }
        std::fs::write(folder.path().join("double.conf"), text).unwrap();
        let config = serde_json::json!({
            "pretrained_config": {"vocab_size": 1000},
            "build_config": {
                "max_seq_len": 2048, "max_batch_size": 16, "plugin_config": {"tokens_per_block": BLOCK},
            },
        });
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Self(folder)
    }

    pub(crate) fn config(&self, more: serde_json::Value) -> String {
        let mut config = more;
        config["engine_dir"] = self.0.path().to_str().unwrap().into();
        config.to_string()
    }
}

/// What is told to be held: each block's tiers.
pub(crate) type Held = HashMap<u128, u32>;

/// An engine, and what it told.
pub(crate) struct Rig {
    pub(crate) engine: TrtllmEngine,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) held: Held,
    pub(crate) resets: usize,
    next_id: u64,
    _folder: Folder,
}

pub(crate) fn prompt(seed: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|n| (seed * 131 + n * 7 + n / 100) % 1000).collect()
}

pub(crate) fn names(namespace: u128, tokens: &[u32]) -> Vec<u128> {
    let key = HashKey([0; 16]);
    let names = BlockHasher::hash_prompt(key, NamespaceId(namespace), BLOCK as u32, tokens);
    names.into_iter().map(|name| name.0).collect()
}

pub(crate) fn request(id: u64, namespace: u128, tokens: Vec<u32>, tokens_max: u32) -> Request {
    let sampling = Sampling { tokens_max, ignore_eos: true, ..Sampling::default() };
    Request { id, namespace, tokens, sampling, ..Request::default() }
}

/// All that one request said.
pub(crate) struct Said {
    pub(crate) tokens: Vec<u32>,
    pub(crate) finish: Finish,
    pub(crate) cached: u32,
    pub(crate) outputs: usize,
}

impl Rig {
    pub(crate) fn try_new(
        settings: &[(&str, i64)],
        config: serde_json::Value,
    ) -> Result<Self, EngineError> {
        let folder = Folder::new(settings);
        let lanes = Arc::new(Lanes::new());
        let config = folder.config(config);
        let engine = TrtllmEngine::create(&config, Arc::clone(&lanes), HostLog::silent())?;
        Ok(Self { engine, lanes, held: Held::new(), resets: 0, next_id: 0, _folder: folder })
    }

    pub(crate) fn new(settings: &[(&str, i64)]) -> Self {
        Self::try_new(settings, serde_json::json!({})).unwrap()
    }

    pub(crate) fn submit(&mut self, change: impl FnOnce(&mut Request)) -> u64 {
        self.next_id += 1;
        let mut request = request(self.next_id, NAMESPACE, prompt(1, 8), 4);
        change(&mut request);
        let id = request.id;
        self.engine.submit(request).unwrap();
        id
    }

    /// All outputs up to the next final one.
    pub(crate) fn outputs(&self) -> Vec<Output> {
        let (mut all, began) = (Vec::new(), Instant::now());
        while all.last().is_none_or(|output: &Output| output.finish.is_none()) {
            assert!(began.elapsed() < PATIENCE, "no end came: {all:?}");
            self.lanes.wait_outputs(Duration::from_millis(100));
            all.extend(self.lanes.take_outputs(1).1);
        }
        all
    }

    pub(crate) fn ask(&mut self, change: impl FnOnce(&mut Request)) -> Said {
        self.submit(change);
        let outputs = self.outputs();
        let last = outputs[outputs.len() - 1].clone();
        Said {
            tokens: outputs.iter().flat_map(|output| output.tokens.clone()).collect(),
            finish: last.finish.unwrap(),
            cached: last.cached_tokens,
            outputs: outputs.len(),
        }
    }

    pub(crate) fn tell(&mut self, namespace: u128, tokens: &[u32], tokens_max: u32) -> Said {
        self.ask(|request| {
            request.namespace = namespace;
            request.tokens = tokens.to_vec();
            request.sampling.tokens_max = tokens_max;
        })
    }

    pub(crate) fn read_events(&mut self) {
        loop {
            let taken = self.lanes.take_kv(1000);
            if !taken.reset && taken.events.is_empty() {
                return;
            }
            if taken.reset {
                self.held.clear();
                self.resets += 1;
            }
            for event in taken.events {
                match event {
                    KvEvent::Stored { namespace, parent, blocks, tier, .. } => {
                        assert!(
                            parent == namespace || self.held.contains_key(&parent),
                            "an orphan"
                        );
                        for block in blocks {
                            *self.held.entry(block).or_default() |= 1 << tier;
                        }
                    }
                    KvEvent::Removed { blocks, tier, .. } => {
                        for block in blocks {
                            let tiers = self.held.get_mut(&block).expect("it was held");
                            assert!(*tiers & (1 << tier) != 0, "not in tier {tier}");
                            *tiers &= !(1 << tier);
                            if *tiers == 0 {
                                self.held.remove(&block);
                            }
                        }
                    }
                    KvEvent::PinExpired { .. } => panic!("there are no pins"),
                }
            }
        }
    }

    /// Reads events until none has come for a while.
    pub(crate) fn settle(&mut self) {
        let before = (self.lanes.kv_position(), self.held.len());
        self.lanes.wait_kv(Duration::from_millis(60));
        self.read_events();
        if before != (self.lanes.kv_position(), self.held.len()) {
            self.settle();
        }
    }

    /// Waits until what is told to be held is as it is due.
    pub(crate) fn wait_held(&mut self, what: &str, due: impl Fn(&Held) -> bool) {
        let began = Instant::now();
        loop {
            self.read_events();
            if due(&self.held) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{what}: {} blocks are told", self.held.len());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn wait(&self, what: &str, due: impl Fn(&TrtllmEngine) -> bool) {
        let began = Instant::now();
        while !due(&self.engine) {
            assert!(began.elapsed() < PATIENCE, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
