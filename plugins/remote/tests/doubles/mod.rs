//! Protocol doubles: they speak a server's wire and are not that server. What they say comes from a hash.
//!
//! Each has a cache of blocks that really hits, fills and evicts, so that what it tells of it can be held against
//! what it does. They run in a thread of their own and can be told to fail.

#![expect(dead_code, reason = "each test program uses its part of them")]

pub mod cache;
pub mod events;
pub mod http;
pub mod llamacpp_double;
pub mod sglang_double;
pub mod vllm_double;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use cache::Cache;
use events::Publisher;

/// Which server is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With the events of vLLM since 0.24.
    Vllm,
    /// With those of vLLM before, which are arrays and do not tell salts.
    VllmOld,
    Sglang,
    LlamaCpp,
}

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub kind: Kind,
    pub block_tokens: usize,
    pub blocks: usize,
    pub requests: usize,
    pub context: usize,
    pub vocab: u32,
    pub decode: Duration,
    /// Whether old batches can be asked for.
    pub has_replay: bool,
}

impl Setting {
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            block_tokens: 16,
            blocks: 192,
            requests: if kind == Kind::LlamaCpp { 4 } else { 16 },
            context: 2048,
            vocab: 1000,
            decode: Duration::ZERO,
            has_replay: true,
        }
    }
}

/// What goes wrong, while it does.
#[derive(Debug, Default)]
pub struct Faults {
    /// Answers 503 to everything.
    pub is_overloaded: AtomicBool,
    /// Streams end after so many tokens, without an end; 0 is never.
    pub breaks_after: AtomicU64,
    /// Streams become nonsense after so many tokens; 0 is never.
    pub garbage_after: AtomicU64,
    /// Batches of events that are not sent, though they are kept for replay.
    pub loses_events: AtomicBool,
}

/// What all parts of a double share.
pub struct State {
    pub setting: Setting,
    pub faults: Faults,
    pub cache: Mutex<Cache>,
    pub room: Notify,
    pub running: Semaphore,
    pub publisher: Publisher,
    /// Prompt tokens that were asked for, and those that were hit: the server's own counters.
    pub queried: AtomicU64,
    pub hit: AtomicU64,
    /// What lies in each of llama.cpp's slots.
    pub slots: Mutex<HashMap<u64, Vec<u32>>>,
    /// Answers that were left by their client before their end.
    pub left: AtomicU64,
}

impl State {
    pub fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().expect("no holder panics")
    }

    pub fn fails(&self, after: &AtomicU64, tokens: usize) -> bool {
        let after = after.load(Ordering::Relaxed);
        after > 0 && tokens as u64 >= after
    }
}

/// What a request wants, in any server's words.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub prompt: Vec<u32>,
    pub salt: String,
    pub tokens_max: usize,
    pub temperature: f64,
    pub seed: u64,
    pub stops: Vec<u32>,
    pub ignores_end: bool,
    pub logprobs: Option<usize>,
    pub is_stream: bool,
}

/// The end of sequence.
pub const END: u32 = 2;

/// The next token. A sampled one depends on the seed and on how many were drawn, as a generator's does.
pub fn next_token(wanted: &Wanted, said: &[u32], vocab: u32) -> u32 {
    let mut hasher = DefaultHasher::new();
    wanted.prompt.iter().chain(said).for_each(|token| token.hash(&mut hasher));
    if wanted.temperature > 0.0 {
        (wanted.seed, said.len()).hash(&mut hasher);
    }
    (hasher.finish() % u64::from(vocab)) as u32
}

/// A double that runs.
pub struct Double {
    pub state: Arc<State>,
    pub http: SocketAddr,
    pub events: SocketAddr,
    pub replay: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Double {
    pub fn start(setting: Setting) -> Self {
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::start_at(setting, free, free, free)
    }

    fn start_at(
        setting: Setting,
        http: SocketAddr,
        events: SocketAddr,
        replay: SocketAddr,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let (state, http, events, replay) = runtime.block_on(async {
            let (publisher, events, replay) = Publisher::start(events, replay).await;
            let state = Arc::new(State {
                setting,
                faults: Faults::default(),
                cache: Mutex::new(Cache::new(setting.blocks, setting.block_tokens)),
                room: Notify::new(),
                running: Semaphore::new(setting.requests),
                publisher,
                queried: AtomicU64::new(0),
                hit: AtomicU64::new(0),
                slots: Mutex::default(),
                left: AtomicU64::new(0),
            });
            let http = http::serve(http, Arc::clone(&state)).await;
            (state, http, events, replay)
        });
        Self { state, http, events, replay, runtime: Some(runtime) }
    }

    /// Ends it as a crash does: nothing is finished.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }

    /// A new one in its place, with an empty cache.
    pub fn restart(&mut self) {
        self.kill();
        *self = Self::start_at(self.state.setting, self.http, self.events, self.replay);
    }

    /// What the engine is created with.
    pub fn config(&self, events: bool) -> serde_json::Value {
        let mut config = serde_json::json!({
            "upstream": format!("http://{}", self.http),
            "vocab": self.state.setting.vocab,
            "cache": "engine",
        });
        if events {
            config["kv_events"] = format!("tcp://{}", self.events).into();
            if self.state.setting.has_replay {
                config["kv_replay"] = format!("tcp://{}", self.replay).into();
            }
        }
        config
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.kill();
    }
}
