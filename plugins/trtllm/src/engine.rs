//! The engine behind the interface: what the host calls, and the birth and death of the threads that work.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{
    Engine, EngineError, Finish, HostLog, Identity, Info, Lanes, Request, Stats, caps,
};
use mainstay_engine_proxy::mirror::Mirror;
use mainstay_engine_proxy::salts::Salts;
use mainstay_engine_proxy::{Desk, Teller};

use crate::bridge::{Executor, Told, version};
use crate::error::TrtllmError;
use crate::event::Reader;
use crate::options::Options;
use crate::work::{Shared, TARGET};

/// How long `drain` waits for the ends of what it cancelled.
const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// How long the executor may take to say how large its cache is.
const CREATED_WAIT: Duration = Duration::from_secs(10);
const CREATED_STEP_MS: u32 = 100;
/// Blocks that are believed to be held, in blocks of the device: the host's memory is larger.
const BLOCKS_PER_DEVICE_BLOCK: u64 = 16;
const BLOCKS_MIN: u64 = 1 << 16;
const BLOCKS_MAX: u64 = 1 << 24;

/// The version that this was written for.
const VERSION: &str = "1.2.";
const DOUBLE: &str = "double";

/// An engine over the C++ executor.
pub struct TrtllmEngine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    info: Info,
}

impl std::fmt::Debug for TrtllmEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrtllmEngine").field("info", &self.info).finish_non_exhaustive()
    }
}

fn checked_version() -> Result<String, TrtllmError> {
    let version = version();
    let due = if cfg!(feature = "double") { DOUBLE } else { VERSION };
    if version.starts_with(due) { Ok(version) } else { Err(TrtllmError::Version(version)) }
}

fn info(options: &Options, blocks: u64, version: &str) -> Info {
    let dir = std::path::Path::new(&options.settings.engine_dir);
    let own = dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let name = if options.model_name.is_empty() { &own } else { &options.model_name };
    Info {
        block_tokens: options.block_tokens,
        vocab: options.vocab,
        context_tokens_max: options.context_tokens_max,
        requests_max: options.requests_max,
        blocks_total: blocks,
        block_bytes: 0,
        model: if cfg!(feature = "double") { format!("{DOUBLE}-{name}") } else { name.clone() },
        model_dir: options.model_dir.clone(),
        device: format!("TensorRT-LLM {version}"),
        kv_layout: 0,
    }
}

/// The first events, and how many blocks there are by them, or by the operator.
fn await_cache(
    executor: &Executor,
    options: &Options,
) -> Result<(Reader, Vec<Told>, u64), TrtllmError> {
    let mut reader = Reader::new(options.block_tokens);
    let mut first = Vec::new();
    let began = Instant::now();
    // What is read here is read again by the thread that follows, with a reader of its own.
    while reader.blocks.is_none() && options.blocks.is_none() {
        if began.elapsed() > CREATED_WAIT {
            return Err(TrtllmError::NoCache);
        }
        let told = executor.events(CREATED_STEP_MS).map_err(|fault| TrtllmError::Open {
            dir: options.settings.engine_dir.clone(),
            fault,
        })?;
        for told in &told {
            reader.read(told);
        }
        first.extend(told);
    }
    let blocks = options.blocks.or(reader.blocks).ok_or(TrtllmError::NoCache)?;
    Ok((Reader::new(options.block_tokens), first, blocks))
}

fn teller(options: &Options, blocks: u64, lanes: Arc<Lanes>) -> Teller {
    let held_max = blocks.saturating_mul(BLOCKS_PER_DEVICE_BLOCK).clamp(BLOCKS_MIN, BLOCKS_MAX);
    let mirror = Mirror::new(options.hash_key, options.block_tokens, false, held_max as usize);
    Teller::new(mirror, Salts::new(options.block_tokens, true), lanes)
}

fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    body: impl FnOnce(&Shared) + Send + 'static,
) -> Result<JoinHandle<()>, EngineError> {
    let own = Arc::clone(shared);
    let body = move || {
        if catch_unwind(AssertUnwindSafe(|| body(&own))).is_err() {
            own.fail("a thread of the engine has panicked");
        }
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    thread.map_err(|e| EngineError::internal(format!("no thread for the engine: {e}")))
}

impl TrtllmEngine {
    fn start(
        options: &Options,
        version: &str,
        executor: Executor,
        lanes: Arc<Lanes>,
        log: HostLog,
    ) -> Result<Self, EngineError> {
        let (reader, first, blocks) = await_cache(&executor, options)?;
        let (sender, commands) = mpsc::channel();
        let send = move |command| sender.send(command).is_ok();
        let desk = Desk::new(Arc::clone(&lanes), options.requests_max, send);
        let teller = teller(options, blocks, Arc::clone(&lanes));
        let shared = Arc::new(Shared::new(executor, options, blocks, desk, teller, lanes, log));
        // From here on a thread that can't be made lets those before it end.
        let mut engine = Self { info: info(options, blocks, version), threads: Vec::new(), shared };
        let shared = Arc::clone(&engine.shared);
        let threads = &mut engine.threads;
        threads.push(spawn("trtllm-send", &shared, move |shared| shared.send(&commands))?);
        threads.push(spawn("trtllm-hear", &shared, Shared::hear)?);
        threads.push(spawn("trtllm-cache", &shared, move |shared| shared.follow(reader, &first))?);
        Ok(engine)
    }
}

impl Engine for TrtllmEngine {
    const IDENTITY: Identity = Identity {
        vendor: "mainstay",
        name: if cfg!(feature = "double") { "trtllm-double" } else { "trtllm" },
        version: env!("CARGO_PKG_VERSION"),
    };

    const CAPS: u64 = caps::NAMESPACE
        | caps::KV_EVENTS
        | caps::KV_SNAPSHOT
        | caps::PRIORITY
        | caps::RETENTION
        | caps::CANONICAL_HASH;

    fn create(config_json: &str, lanes: Arc<Lanes>, log: HostLog) -> Result<Self, EngineError> {
        let options = Options::parse(config_json)?;
        let version = checked_version()?;
        if !options.hash_key_given {
            log.warn(TARGET, "no `hash_key`: hashes can be guessed; give one where tenants share");
        }
        let executor = Executor::open(&options.settings).map_err(|fault| TrtllmError::Open {
            dir: options.settings.engine_dir.clone(),
            fault,
        })?;
        Self::start(&options, &version, executor, lanes, log)
    }

    fn info(&self) -> Info {
        self.info.clone()
    }

    fn stats(&self) -> Stats {
        self.shared.stats()
    }

    fn submit(&self, request: Request) -> Result<(), EngineError> {
        request.check(self.info.context_tokens_max, 1, self.info.vocab)?;
        if request.sampling.logprobs > 0 {
            let message = "this engine has no logprobs; ask without, or another engine";
            return Err(EngineError::invalid(message));
        }
        self.shared.desk.submit(request)
    }

    fn cancel(&self, id: u64) {
        self.shared.desk.cancel(id);
    }

    fn drain(&self, timeout: Duration) -> Result<(), EngineError> {
        self.shared.desk.drain(timeout, CANCEL_GRACE)
    }

    fn kv_snapshot(&self, op_id: u64) -> Result<(), EngineError> {
        self.shared.desk.snapshot(op_id)
    }
}

impl Drop for TrtllmEngine {
    fn drop(&mut self) {
        self.shared.desk.close();
        for thread in self.threads.drain(..) {
            // Its panics are caught inside; there is nothing more to learn from it.
            let _ = thread.join();
        }
        self.shared.desk.end_all(&Finish::Cancelled);
    }
}
