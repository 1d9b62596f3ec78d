//! The engine behind the interface: a door that any thread may knock at, and the one thread that
//! does the work.
//!
//! Callers only queue commands under a lock that is never held over work. The thread drains them,
//! steps the scheduler and reports through the lanes; where the host does not keep up it waits
//! instead of piling up. Should the thread die, every live request still gets its final output and
//! the engine says that it is broken.

mod forms;
mod work;

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{
    Code, Engine, EngineError, Export, Finish, Health, HostLog, Identity, Import, Info, Lanes,
    LeaseChange, Pin, Request, Stats, caps,
};

use crate::LoadError;
use crate::guided::{Compiler, Guide};
use crate::open::{load_model, open_scheduler};
use crate::options::{ModelPlace, Options};
use crate::scheduler::{Limits, Scheduler, check};

/// Requests that may wait besides those that run.
pub const WAITING_REQUESTS_MAX: usize = 1024;
/// Prompt tokens of all live requests together.
pub const LIVE_TOKENS_MAX: u64 = 1 << 26;
/// Commands that may wait where leases are changed; each change is as large as a request's ranges at most.
const COMMANDS_MAX: usize = 8_192;
const LEASE_RETRY_MS: u32 = 100;
/// How long `drain` waits for the ends of what it cancelled.
const CANCEL_GRACE: Duration = Duration::from_secs(10);

const TARGET: &str = "native";

enum Command {
    Submit(Box<Request>, Option<Box<Guide>>),
    /// Its form could not be made, or nobody waits for it any more.
    Refuse(u64, Finish),
    Cancel(u64),
    Pin(Pin),
    Unpin {
        op_id: u64,
        pin_id: u128,
    },
    Snapshot {
        op_id: u64,
    },
    Export(Export),
    Import(Import),
    Lease(LeaseChange),
}

struct Live {
    tokens: u64,
    cancelled: bool,
}

#[derive(Default)]
struct Inbox {
    commands: VecDeque<Command>,
    /// Requests whose form is not compiled yet; among the live ones, so bounded with them.
    forms: VecDeque<Request>,
    live: HashMap<u64, Live>,
    live_tokens: u64,
    draining: bool,
    stopping: bool,
    dead: bool,
    stats: Stats,
    backlog_ms: u32,
}

struct Shared {
    inbox: Mutex<Inbox>,
    /// Rung for the thread.
    bell: Condvar,
    /// Rung for the thread that compiles forms.
    forms_bell: Condvar,
    /// Rung when no request is live.
    quiet: Condvar,
}

impl Shared {
    // Each change under the lock is one whole step, so a poisoned inbox is as good as any.
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, command: Command) -> Result<(), EngineError> {
        let mut inbox = self.lock();
        if inbox.dead {
            return Err(EngineError::unavailable("the engine's thread has died").fatal());
        }
        inbox.commands.push_back(command);
        drop(inbox);
        self.bell.notify_one();
        Ok(())
    }
}

/// Llama, Qwen2 and Qwen3 on the CPU.
pub struct NativeEngine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    limits: Limits,
    vocab: usize,
    info: Info,
}

impl From<LoadError> for EngineError {
    fn from(error: LoadError) -> Self {
        let code = match &error {
            LoadError::Read { .. } => Code::NotFound,
            LoadError::Memory { .. } => Code::Exhausted,
            _ => Code::Invalid,
        };
        Self::new(code, error.to_string())
    }
}

fn info(options: &Options, scheduler: &Scheduler) -> Info {
    let limits = scheduler.limits();
    let model_dir = match &options.place {
        ModelPlace::Bundled => String::new(),
        ModelPlace::Folder(folder) => folder.to_string_lossy().into_owned(),
    };
    Info {
        block_tokens: limits.block_tokens as u32,
        vocab: scheduler.model().config().vocab as u32,
        context_tokens_max: limits.context_tokens_max as u32,
        requests_max: limits.requests_max as u32,
        blocks_total: u64::from(limits.blocks),
        block_bytes: scheduler.block_bytes() as u64,
        model: options.model_name.clone(),
        model_dir,
        device: "cpu".to_owned(),
        kv_layout: scheduler.kv_layout(),
    }
}

impl Engine for NativeEngine {
    const IDENTITY: Identity =
        Identity { vendor: "mainstay", name: "native", version: env!("CARGO_PKG_VERSION") };

    const CAPS: u64 = caps::NAMESPACE
        | caps::KV_EVENTS
        | caps::KV_SNAPSHOT
        | caps::PIN
        | caps::PRIORITY
        | caps::RETENTION
        | caps::LOGPROBS
        | caps::CANONICAL_HASH
        | caps::GUIDED
        | caps::TRANSFER
        | caps::LEASE
        | caps::RESUME;

    fn create(config_json: &str, lanes: Arc<Lanes>, log: HostLog) -> Result<Self, EngineError> {
        let options = Options::parse(config_json)?;
        let started = Instant::now();
        let scheduler = open_scheduler(load_model(&options)?, &options)?;
        let model = scheduler.model();
        let line = format!(
            "loaded {} ({}, {} MiB of weights) in {} ms; {} blocks of {} tokens, {} threads",
            options.model_name,
            model.dtype().name(),
            model.weight_bytes() >> 20,
            started.elapsed().as_millis(),
            scheduler.limits().blocks,
            options.block_tokens,
            options.threads,
        );
        log.info(TARGET, &line);
        if !options.hash_key_given {
            log.warn(TARGET, "no `hash_key`: hashes can be guessed; give one where tenants share");
        }
        let (info, limits) = (info(&options, &scheduler), *scheduler.limits());
        let shared = Arc::new(Shared {
            inbox: Mutex::new(Inbox { stats: scheduler.stats(), ..Inbox::default() }),
            bell: Condvar::new(),
            forms_bell: Condvar::new(),
            quiet: Condvar::new(),
        });
        let eos_tokens = &scheduler.model().config().eos_tokens;
        let compiler = Compiler::new(options.place.clone(), info.vocab as usize, eos_tokens);
        let forms_thread = forms::spawn(compiler, Arc::clone(&shared))?;
        let theirs = Arc::clone(&shared);
        let body = move || {
            let work = AssertUnwindSafe(|| work::run(scheduler, &theirs, &lanes, started));
            if catch_unwind(work).is_err() {
                log.error(TARGET, "the engine's thread has panicked");
                work::die(&theirs, &lanes);
            }
        };
        let thread = std::thread::Builder::new().name("native-engine".to_owned()).spawn(body);
        let thread =
            thread.map_err(|e| EngineError::internal(format!("no thread for the engine: {e}")))?;
        let threads = vec![thread, forms_thread];
        Ok(Self { shared, threads, limits, vocab: info.vocab as usize, info })
    }

    fn info(&self) -> Info {
        self.info.clone()
    }

    fn stats(&self) -> Stats {
        let inbox = self.shared.lock();
        let health = match (inbox.dead, inbox.draining) {
            (true, _) => Health::Fatal,
            (false, true) => Health::Draining,
            (false, false) => inbox.stats.health,
        };
        Stats { health, ..inbox.stats }
    }

    fn submit(&self, request: Request) -> Result<(), EngineError> {
        check(&request, &self.limits, self.vocab)?;
        let tokens = request.tokens.len() as u64;
        let mut inbox = self.shared.lock();
        if inbox.dead {
            return Err(EngineError::unavailable("the engine's thread has died").fatal());
        }
        if inbox.draining || inbox.stopping {
            return Err(EngineError::unavailable("the engine is draining; use another"));
        }
        if inbox.live.contains_key(&request.id) {
            let message = format!("request {} is live already; choose another id", request.id);
            return Err(EngineError::new(Code::Exists, message));
        }
        let live_max = self.limits.requests_max + WAITING_REQUESTS_MAX;
        if inbox.live.len() >= live_max || inbox.live_tokens + tokens > LIVE_TOKENS_MAX {
            let message = format!("{} requests are live; come again later", inbox.live.len());
            return Err(EngineError::exhausted(message, inbox.backlog_ms.max(1)));
        }
        inbox.live.insert(request.id, Live { tokens, cancelled: false });
        inbox.live_tokens += tokens;
        let bell = if request.guided.is_some() {
            inbox.forms.push_back(request);
            &self.shared.forms_bell
        } else {
            inbox.commands.push_back(Command::Submit(Box::new(request), None));
            &self.shared.bell
        };
        drop(inbox);
        bell.notify_one();
        Ok(())
    }

    fn cancel(&self, id: u64) {
        let mut inbox = self.shared.lock();
        let Some(live) = inbox.live.get_mut(&id).filter(|live| !live.cancelled) else { return };
        live.cancelled = true;
        inbox.commands.push_back(Command::Cancel(id));
        drop(inbox);
        self.shared.bell.notify_one();
    }

    fn drain(&self, timeout: Duration) -> Result<(), EngineError> {
        let mut inbox = self.shared.lock();
        inbox.draining = true;
        inbox = self.wait_quiet(inbox, timeout);
        let left: Vec<u64> =
            inbox.live.iter().filter(|(_, live)| !live.cancelled).map(|(id, _)| *id).collect();
        drop(inbox);
        left.into_iter().for_each(|id| self.cancel(id));
        let inbox = self.wait_quiet(self.shared.lock(), CANCEL_GRACE);
        if inbox.live.is_empty() {
            return Ok(());
        }
        Err(EngineError::internal(format!("{} requests do not end", inbox.live.len())))
    }

    fn kv_snapshot(&self, op_id: u64) -> Result<(), EngineError> {
        self.shared.send(Command::Snapshot { op_id })
    }

    fn pin(&self, pin: Pin) -> Result<(), EngineError> {
        self.shared.send(Command::Pin(pin))
    }

    fn unpin(&self, op_id: u64, pin_id: u128) -> Result<(), EngineError> {
        self.shared.send(Command::Unpin { op_id, pin_id })
    }

    fn kv_export(&self, export: Export) -> Result<(), EngineError> {
        self.shared.send(Command::Export(export))
    }

    fn kv_import(&self, import: Import) -> Result<(), EngineError> {
        self.shared.send(Command::Import(import))
    }

    fn lease(&self, change: LeaseChange) -> Result<(), EngineError> {
        // Requests and operations are bounded before they come here.
        if self.shared.lock().commands.len() >= COMMANDS_MAX {
            return Err(EngineError::exhausted("too many changes at once", LEASE_RETRY_MS));
        }
        self.shared.send(Command::Lease(change))
    }
}

impl NativeEngine {
    fn wait_quiet<'a>(
        &self,
        inbox: MutexGuard<'a, Inbox>,
        timeout: Duration,
    ) -> MutexGuard<'a, Inbox> {
        let waited =
            self.shared.quiet.wait_timeout_while(inbox, timeout, |inbox| !inbox.live.is_empty());
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for NativeEngine {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.bell.notify_one();
        self.shared.forms_bell.notify_one();
        for thread in self.threads.drain(..) {
            // Their panics are caught inside; there is nothing more to learn from them.
            let _ = thread.join();
        }
    }
}
