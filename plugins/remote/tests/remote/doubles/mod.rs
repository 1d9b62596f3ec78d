//! Protocol doubles: they speak a server's wire and are not that server. What they say comes from a hash.
//!
//! Each has a cache of blocks that really hits, fills and evicts, so that what it tells of it can be held against
//! what it does. They run in a thread of their own and can be told to fail.

pub(crate) mod cache;
pub(crate) mod events;
pub(crate) mod http;
pub(crate) mod llamacpp_double;
pub(crate) mod sglang_double;
pub(crate) mod vllm_double;

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
pub(crate) enum Kind {
    /// With the events of vLLM since 0.24.
    Vllm,
    /// With those of vLLM before, which are arrays and do not tell salts.
    VllmOld,
    Sglang,
    LlamaCpp,
}

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) kind: Kind,
    pub(crate) block_tokens: usize,
    pub(crate) blocks: usize,
    pub(crate) requests: usize,
    pub(crate) context: usize,
    pub(crate) vocab: u32,
    pub(crate) decode: Duration,
    /// Whether old batches can be asked for.
    pub(crate) has_replay: bool,
}

impl Setting {
    pub(crate) fn new(kind: Kind) -> Self {
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
pub(crate) struct Faults {
    /// Answers 503 to everything.
    pub(crate) is_overloaded: AtomicBool,
    /// Streams end after so many tokens, without an end; 0 is never.
    pub(crate) breaks_after: AtomicU64,
    /// Streams become nonsense after so many tokens; 0 is never.
    pub(crate) garbage_after: AtomicU64,
    /// Batches of events that are not sent, though they are kept for replay.
    pub(crate) loses_events: AtomicBool,
}

/// What all parts of a double share.
pub(crate) struct State {
    pub(crate) setting: Setting,
    pub(crate) faults: Faults,
    pub(crate) cache: Mutex<Cache>,
    pub(crate) room: Notify,
    pub(crate) running: Semaphore,
    pub(crate) publisher: Publisher,
    /// Prompt tokens that were asked for, and those that were hit: the server's own counters.
    pub(crate) queried: AtomicU64,
    pub(crate) hit: AtomicU64,
    /// What lies in each of llama.cpp's slots.
    pub(crate) slots: Mutex<HashMap<u64, Vec<u32>>>,
    /// Answers that were left by their client before their end.
    pub(crate) left: AtomicU64,
}

impl State {
    pub(crate) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().expect("no holder panics")
    }

    pub(crate) fn fails(&self, after: &AtomicU64, tokens: usize) -> bool {
        let after = after.load(Ordering::Relaxed);
        after > 0 && tokens as u64 >= after
    }
}

/// What a request wants, in any server's words.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) prompt: Vec<u32>,
    pub(crate) salt: String,
    pub(crate) tokens_max: usize,
    pub(crate) temperature: f64,
    pub(crate) seed: u64,
    pub(crate) stops: Vec<u32>,
    pub(crate) ignores_end: bool,
    pub(crate) logprobs: Option<usize>,
    pub(crate) is_stream: bool,
}

/// The end of sequence.
pub(crate) const END: u32 = 2;

/// The next token. A sampled one depends on the seed and on how many were drawn, as a generator's does.
pub(crate) fn next_token(wanted: &Wanted, said: &[u32], vocab: u32) -> u32 {
    let mut hasher = DefaultHasher::new();
    wanted.prompt.iter().chain(said).for_each(|token| token.hash(&mut hasher));
    if wanted.temperature > 0.0 {
        (wanted.seed, said.len()).hash(&mut hasher);
    }
    (hasher.finish() % u64::from(vocab)) as u32
}

/// A double that runs.
pub(crate) struct Double {
    pub(crate) state: Arc<State>,
    pub(crate) http: SocketAddr,
    pub(crate) events: SocketAddr,
    pub(crate) replay: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Double {
    pub(crate) fn start(setting: Setting) -> Self {
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
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }

    /// A new one in its place, with an empty cache.
    pub(crate) fn restart(&mut self) {
        self.kill();
        *self = Self::start_at(self.state.setting, self.http, self.events, self.replay);
    }

    /// What the engine is created with.
    pub(crate) fn config(&self, events: bool) -> serde_json::Value {
        let mut config = serde_json::json!({
            "upstream": format!("http://{}", self.http),
            "vocab": self.state.setting.vocab,
            "cache": "engine",
            // vLLM does not say it.
            "requests_max": self.state.setting.requests,
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
