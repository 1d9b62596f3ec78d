//! An engine's folder for the double, and an engine over it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use mainstay_conformance::reading::{Told, outputs, wait};
use mainstay_engine_abi::sdk::types_of_mainstay::{BlockHasher, HashKey, NamespaceId};
use mainstay_engine_abi::sdk::{
    Engine, EngineError, Finish, HostLog, Lanes, Output, Request, Sampling,
};
use mainstay_trtllm::TrtllmEngine;

pub(crate) const NAMESPACE: u128 = 77;
pub(crate) const BLOCK: usize = 16;

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

/// An engine, and what it told.
pub(crate) struct Rig {
    pub(crate) engine: TrtllmEngine,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) told: Told,
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
        Ok(Self { engine, lanes, told: Told::default(), next_id: 0, _folder: folder })
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
        outputs(&self.lanes, 1)
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

    /// Reads events until none has come for a while.
    pub(crate) fn settle(&mut self) {
        let before = (self.lanes.kv_position(), self.told.held.len());
        self.lanes.wait_kv(Duration::from_millis(60));
        self.told.read(&self.lanes);
        if before != (self.lanes.kv_position(), self.told.held.len()) {
            self.settle();
        }
    }

    /// Waits until what is told to be held is as it is due.
    pub(crate) fn wait_held(&mut self, what: &str, due: impl Fn(&HashMap<u128, u32>) -> bool) {
        self.told.wait(&self.lanes, what, due);
    }

    pub(crate) fn wait(&self, what: &str, due: impl Fn(&TrtllmEngine) -> bool) {
        wait(what, || due(&self.engine));
    }
}
