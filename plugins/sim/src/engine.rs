//! The engine behind the interface: a door that any thread may knock at, and the one thread that
//! plays the model.
//!
//! Callers only queue commands under a lock that is never held over work. The thread drains them,
//! does what is due and reports through the lanes; where the host does not keep up it waits instead
//! of piling up. Should the thread die, every live request still gets its final output and the
//! engine says that it is broken.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{
    Code, Engine, EngineError, Finish, Health, HostLog, Identity, Info, Lanes, LeaseChange, Output,
    Pin, Request, Stats, caps,
};

use crate::DEVICE;
use crate::options::Options;
use crate::scheduler::{Limits, Scheduler, Wake, check};
use crate::script::Script;
use crate::text::Text;

/// Requests that may wait besides those that run.
const WAITING_REQUESTS_MAX: usize = 1024;
/// Prompt tokens of all live requests together.
const LIVE_TOKENS_MAX: u64 = 1 << 26;
/// Commands that may wait where leases are changed; each change is as large as a request's ranges at most.
const COMMANDS_MAX: usize = 8_192;
const LEASE_RETRY_MS: u32 = 100;
/// How long `drain` waits for the ends of what it cancelled.
const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// How often a full OUT lane is looked at again.
const HELD_WAIT: Duration = Duration::from_millis(1);

const TARGET: &str = "sim";

enum Command {
    Submit(Box<Request>),
    Cancel(u64),
    Pin(Pin),
    Unpin { op_id: u64, pin_id: u128 },
    Snapshot { op_id: u64 },
    Lease(LeaseChange),
}

struct Live {
    tokens: u64,
    cancelled: bool,
}

#[derive(Default)]
struct Inbox {
    commands: VecDeque<Command>,
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

    fn wait_quiet(&self, timeout: Duration) -> MutexGuard<'_, Inbox> {
        let busy = |inbox: &mut Inbox| !inbox.live.is_empty();
        let waited = self.quiet.wait_timeout_while(self.lock(), timeout, busy);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// An engine without a model.
pub struct SimEngine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    limits: Limits,
    info: Info,
}

fn info(options: &Options, vocab: u32) -> Info {
    let folder = options.model_dir.as_ref();
    Info {
        block_tokens: options.block_tokens as u32,
        vocab,
        context_tokens_max: options.context_tokens_max as u32,
        requests_max: options.requests_max as u32,
        blocks_total: u64::from(options.blocks),
        block_bytes: options.block_bytes(),
        model: options.model_name.clone(),
        model_dir: folder.map(|dir| dir.to_string_lossy().into_owned()).unwrap_or_default(),
        device: DEVICE.to_owned(),
        kv_layout: 0,
    }
}

impl Engine for SimEngine {
    const IDENTITY: Identity =
        Identity { vendor: "mainstay", name: "sim", version: env!("CARGO_PKG_VERSION") };

    const CAPS: u64 = caps::NAMESPACE
        | caps::KV_EVENTS
        | caps::KV_SNAPSHOT
        | caps::PIN
        | caps::PRIORITY
        | caps::RETENTION
        | caps::LOGPROBS
        | caps::CANONICAL_HASH
        | caps::LEASE
        | caps::RESUME;

    fn create(config_json: &str, lanes: Arc<Lanes>, log: HostLog) -> Result<Self, EngineError> {
        let options = Options::parse(config_json)?;
        let script = options.script.as_deref().map(Script::read).transpose()?.unwrap_or_default();
        let text = Text::load(&options)?;
        let info = info(&options, text.vocab);
        let limits = Limits {
            context_tokens_max: options.context_tokens_max,
            requests_max: options.requests_max,
            vocab: text.vocab,
        };
        log.warn(TARGET, "answers of this engine are simulated: no model is loaded");
        if !options.hash_key_given {
            log.warn(TARGET, "no `hash_key`: hashes can be guessed; give one where tenants share");
        }
        let scheduler = Scheduler::new(options, script, text);
        let shared = Arc::new(Shared {
            inbox: Mutex::new(Inbox { stats: scheduler.stats(), ..Inbox::default() }),
            bell: Condvar::new(),
            quiet: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        let body = move || {
            if catch_unwind(AssertUnwindSafe(|| run(scheduler, &theirs, &lanes))).is_err() {
                log.error(TARGET, "the engine's thread has panicked");
                die(&theirs, &lanes);
            }
        };
        let thread = std::thread::Builder::new().name("sim-engine".to_owned()).spawn(body);
        let thread =
            thread.map_err(|e| EngineError::internal(format!("no thread for the engine: {e}")))?;
        Ok(Self { shared, thread: Some(thread), limits, info })
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
        check(&request, &self.limits)?;
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
        inbox.commands.push_back(Command::Submit(Box::new(request)));
        drop(inbox);
        self.shared.bell.notify_one();
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
        self.shared.lock().draining = true;
        let inbox = self.shared.wait_quiet(timeout);
        let left: Vec<u64> = inbox.live.keys().copied().collect();
        drop(inbox);
        left.into_iter().for_each(|id| self.cancel(id));
        let inbox = self.shared.wait_quiet(CANCEL_GRACE);
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

    fn lease(&self, change: LeaseChange) -> Result<(), EngineError> {
        // Requests and operations are bounded before they come here.
        if self.shared.lock().commands.len() >= COMMANDS_MAX {
            return Err(EngineError::exhausted("too many changes at once", LEASE_RETRY_MS));
        }
        self.shared.send(Command::Lease(change))
    }
}

impl Drop for SimEngine {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.bell.notify_one();
        if let Some(thread) = self.thread.take() {
            // Its panics are caught inside; there is nothing more to learn from it.
            let _ = thread.join();
        }
    }
}

/// Works until the engine is dropped.
fn run(mut scheduler: Scheduler, shared: &Shared, lanes: &Lanes) {
    let started = Instant::now();
    let now_us = || started.elapsed().as_micros() as u64;
    let mut wake = Wake::Idle;
    loop {
        let wait = match wake {
            Wake::Now => Some(Duration::ZERO),
            Wake::Held => Some(HELD_WAIT),
            Wake::At(at_us) => Some(Duration::from_micros(at_us.saturating_sub(now_us()))),
            Wake::Idle => None,
        };
        let Some(commands) = take(shared, wait) else { break };
        for command in commands {
            obey(command, &mut scheduler, lanes, now_us());
        }
        wake = scheduler.step(now_us(), lanes.output_has_room());
        report(&mut scheduler, shared, lanes, now_us());
    }
    for command in std::mem::take(&mut shared.lock().commands) {
        refuse(&command, lanes);
    }
    scheduler.end_all(now_us());
    report(&mut scheduler, shared, lanes, now_us());
    end_left(shared, lanes, &Finish::Cancelled);
}

/// The queued commands; waits for some where there is nothing else to do. `None` when the engine is
/// dropped.
fn take(shared: &Shared, wait: Option<Duration>) -> Option<VecDeque<Command>> {
    let idle = |inbox: &mut Inbox| inbox.commands.is_empty() && !inbox.stopping;
    let mut inbox = match wait {
        Some(Duration::ZERO) => shared.lock(),
        Some(wait) => {
            let waited = shared.bell.wait_timeout_while(shared.lock(), wait, idle);
            waited.unwrap_or_else(PoisonError::into_inner).0
        }
        None => {
            let waited = shared.bell.wait_while(shared.lock(), idle);
            waited.unwrap_or_else(PoisonError::into_inner)
        }
    };
    (!inbox.stopping).then(|| std::mem::take(&mut inbox.commands))
}

fn obey(command: Command, scheduler: &mut Scheduler, lanes: &Lanes, now_us: u64) {
    match command {
        Command::Submit(request) => scheduler.submit(*request, now_us),
        Command::Cancel(id) => scheduler.cancel(id, now_us),
        Command::Pin(pin) => match scheduler.pin(pin.pin_id, &pin.blocks, pin.ttl_ms, now_us) {
            Ok(held) => lanes.op(pin.op_id, 0, held),
            Err(_) => lanes.op(pin.op_id, Code::Exhausted.rc(), 0),
        },
        Command::Unpin { op_id, pin_id } => match scheduler.unpin(pin_id) {
            Some(held) => lanes.op(op_id, 0, held),
            None => lanes.op(op_id, Code::NotFound.rc(), 0),
        },
        Command::Lease(change) => scheduler.lease(&change, now_us),
        Command::Snapshot { op_id } => {
            let count = snapshot(scheduler, lanes);
            lanes.op(op_id, 0, count);
        }
    }
}

fn snapshot(scheduler: &mut Scheduler, lanes: &Lanes) -> u32 {
    lanes.begin_snapshot();
    scheduler.snapshot(|event| lanes.kv(event))
}

/// Carries events and outputs away and publishes the figures.
fn report(scheduler: &mut Scheduler, shared: &Shared, lanes: &Lanes, now_us: u64) {
    if lanes.kv_overflowed() || scheduler.has_lost_events() {
        snapshot(scheduler, lanes);
    }
    for event in scheduler.drain_events() {
        lanes.kv(event);
    }
    let (stats, backlog_ms) = (scheduler.stats(), scheduler.backlog_ms(now_us));
    let outputs = scheduler.drain_outputs();
    let mut inbox = shared.lock();
    inbox.stats = stats;
    inbox.backlog_ms = backlog_ms;
    // An id is free before its final output can be seen, so that it can be used again at once.
    for output in outputs.as_slice().iter().filter(|output| output.finish.is_some()) {
        if let Some(live) = inbox.live.remove(&output.id) {
            inbox.live_tokens -= live.tokens;
        }
    }
    let quiet = inbox.live.is_empty();
    // Under the lock, so that whoever sees the engine quiet finds every final in the lane.
    outputs.for_each(|output| lanes.output(output));
    drop(inbox);
    if quiet {
        shared.quiet.notify_all();
    }
}

/// Ends the requests that the scheduler never saw.
fn end_left(shared: &Shared, lanes: &Lanes, finish: &Finish) {
    let mut inbox = shared.lock();
    for id in std::mem::take(&mut inbox.live).into_keys() {
        lanes.output(Output { id, finish: Some(finish.clone()), ..Output::default() });
    }
    drop(inbox);
    shared.quiet.notify_all();
}

fn refuse(command: &Command, lanes: &Lanes) {
    match command {
        Command::Submit(_) | Command::Cancel(_) | Command::Lease(_) => {}
        Command::Pin(pin) => lanes.op(pin.op_id, Code::Unavailable.rc(), 0),
        Command::Unpin { op_id, .. } | Command::Snapshot { op_id } => {
            lanes.op(*op_id, Code::Unavailable.rc(), 0);
        }
    }
}

/// The thread has panicked: nobody may wait for it any more.
fn die(shared: &Shared, lanes: &Lanes) {
    let mut inbox = shared.lock();
    inbox.dead = true;
    let commands = std::mem::take(&mut inbox.commands);
    drop(inbox);
    commands.iter().for_each(|command| refuse(command, lanes));
    let message = "the engine's thread has died".to_owned();
    end_left(shared, lanes, &Finish::Error { rc: Code::Internal.rc(), message });
    lanes.close();
}
