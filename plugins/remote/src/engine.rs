//! The engine behind the interface: the door, and the one thread with a runtime in which requests fly.
//!
//! The thread orders what waits, follows the server's events and asks once a second whether the server lives. A
//! server that comes back as another one (its context, blocks or model differ) ends the engine, so that the host
//! opens it again as what it is now.

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{
    Code, Engine, EngineError, Finish, HostLog, Identity, Info, Lanes, Output, Request, Stats,
    caps,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{Id, JoinSet};

use crate::RemoteError;
use crate::desk::{Command, Desk, SharedMirror, SharedSalts};
use crate::dialect::{self, Manner};
use crate::flight::{Flight, Landed};
use crate::http::Client;
use crate::kv::listen::{Endpoints, Heard, Listener, Snapshot};
use crate::kv::mirror::Mirror;
use crate::kv::order::Order;
use crate::kv::salts::Salts;
use crate::options::{Cache, Options, Server};
use crate::probe::{Facts, probe};
use crate::queue::Queue;
use crate::slots::Slots;

/// How long `drain` waits for the ends of what it cancelled.
const CANCEL_GRACE: Duration = Duration::from_secs(10);
/// How often the server is asked whether it lives.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Blocks that are believed to be held, in blocks of the device: lower tiers are larger.
const BLOCKS_PER_DEVICE_BLOCK: u64 = 16;
const BLOCKS_MIN: u64 = 1 << 16;
const BLOCKS_MAX: u64 = 1 << 24;

const TARGET: &str = "remote";

/// Servers that engines of this process serve by.
static TAKEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The right to serve by a server: two engines would each claim all that it holds.
struct Taken(String);

impl Taken {
    fn take(upstream: &str) -> Result<Self, RemoteError> {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        if !taken.insert(upstream.to_owned()) {
            return Err(RemoteError::Taken(upstream.to_owned()));
        }
        Ok(Self(upstream.to_owned()))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        TAKEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// An engine that serves by another server.
pub struct RemoteEngine {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
    facts: Arc<Facts>,
    heard: Arc<Heard>,
    info: Info,
    has_events: bool,
    _taken: Taken,
}

impl std::fmt::Debug for RemoteEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteEngine").field("facts", &self.facts).finish_non_exhaustive()
    }
}

fn info(options: &Options, facts: &Facts) -> Info {
    let own = &options.model_name;
    Info {
        block_tokens: facts.block_tokens,
        vocab: facts.vocab,
        context_tokens_max: facts.context_tokens_max,
        requests_max: facts.requests_max,
        blocks_total: facts.blocks,
        block_bytes: 0,
        model: if own.is_empty() { facts.model.clone() } else { own.clone() },
        model_dir: options.model_dir.clone(),
        device: format!("{} at {}", facts.server.name(), options.upstream),
        kv_layout: 0,
    }
}

/// What the engine tells about itself before anything runs.
fn say(options: &Options, facts: &Facts, log: HostLog) {
    let name = facts.server.name();
    if options.kv_events.is_none() {
        log.warn(TARGET, &format!("{name} tells no events here: its cache is not indexed"));
    } else if options.kv_replay.is_none() {
        log.warn(TARGET, "no replay endpoint: each lost event means that all blocks are forgotten");
    }
    if !options.hash_key_given {
        log.warn(TARGET, "no `hash_key`: hashes can be guessed; give one where tenants share");
    }
}

impl Engine for RemoteEngine {
    const IDENTITY: Identity =
        Identity { vendor: "mainstay", name: "remote", version: env!("CARGO_PKG_VERSION") };

    const CAPS: u64 = caps::NAMESPACE
        | caps::KV_EVENTS
        | caps::KV_SNAPSHOT
        | caps::PRIORITY
        | caps::LOGPROBS
        | caps::CANONICAL_HASH;

    fn caps(&self) -> u64 {
        let events = if self.has_events { caps::KV_EVENTS | caps::CANONICAL_HASH } else { 0 };
        let logprobs = if self.facts.server == Server::LlamaCpp { 0 } else { caps::LOGPROBS };
        // Of what waits here the urgent go first, whatever the server does.
        caps::NAMESPACE | caps::KV_SNAPSHOT | caps::PRIORITY | events | logprobs
    }

    fn create(config_json: &str, lanes: Arc<Lanes>, log: HostLog) -> Result<Self, EngineError> {
        let options = Options::parse(config_json)?;
        let taken = Taken::take(&options.upstream)?;
        let client = Client::new(&options)?;
        let heard = Arc::new(Heard::default());
        let (ready, is_ready) = std_mpsc::channel();
        let theirs = Arc::clone(&heard);
        let own = options.clone();
        let body = move || run_thread(client, own, lanes, theirs, log, &ready);
        let thread = std::thread::Builder::new().name("remote-engine".to_owned()).spawn(body);
        let thread =
            thread.map_err(|e| EngineError::internal(format!("no thread for the engine: {e}")))?;
        let opened = is_ready.recv().unwrap_or_else(|_| {
            Err(EngineError::internal("the engine's thread ended before it began"))
        });
        let (desk, facts) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                // Its panics are caught inside; there is nothing more to learn from it.
                let _ = thread.join();
                return Err(error);
            }
        };
        if facts.server == Server::LlamaCpp && options.kv_events.is_some() {
            desk.close();
            let _ = thread.join();
            return Err(RemoteError::Options(
                "llama.cpp tells no events; leave --kv-events out".to_owned(),
            )
            .into());
        }
        say(&options, &facts, log);
        Ok(Self {
            info: info(&options, &facts),
            has_events: options.kv_events.is_some(),
            desk,
            thread: Some(thread),
            facts,
            heard,
            _taken: taken,
        })
    }

    fn info(&self) -> Info {
        self.info.clone()
    }

    fn stats(&self) -> Stats {
        let cached = self.heard.blocks.load(Ordering::Relaxed);
        let evictions = self.heard.evictions.load(Ordering::Relaxed);
        Stats { blocks_cached: cached, evictions, ..self.desk.stats() }
    }

    fn submit(&self, request: Request) -> Result<(), EngineError> {
        check(&request, &self.facts)?;
        self.desk.submit(request)
    }

    fn cancel(&self, id: u64) {
        self.desk.cancel(id);
    }

    fn drain(&self, timeout: Duration) -> Result<(), EngineError> {
        self.desk.drain(timeout, CANCEL_GRACE)
    }

    fn kv_snapshot(&self, op_id: u64) -> Result<(), EngineError> {
        self.desk.snapshot(op_id)
    }
}

impl Drop for RemoteEngine {
    fn drop(&mut self) {
        self.desk.close();
        if let Some(thread) = self.thread.take() {
            // Its panics are caught inside; there is nothing more to learn from it.
            let _ = thread.join();
        }
    }
}

/// Whether a request can be served at all.
fn check(request: &Request, facts: &Facts) -> Result<(), EngineError> {
    let (tokens, most) = (request.tokens.len(), facts.context_tokens_max);
    if tokens == 0 {
        return Err(EngineError::invalid("the prompt is empty; send at least one token"));
    }
    if tokens >= most as usize {
        let message = format!(
            "the prompt has {tokens} tokens, the context {most} with the answer; shorten the prompt"
        );
        return Err(EngineError::invalid(message));
    }
    if request.sampling.tokens_max == 0 {
        return Err(EngineError::invalid("tokens_max is 0; ask for at least one token"));
    }
    let greatest = request.tokens.iter().copied().max().unwrap_or(0);
    if greatest >= facts.vocab {
        let vocab = facts.vocab;
        let message = format!("token {greatest} is not below the vocabulary's {vocab}");
        return Err(EngineError::invalid(message));
    }
    dialect::check(facts.server, &request.sampling)
}

type Opened = Result<(Arc<Desk>, Arc<Facts>), EngineError>;

/// The engine's thread, from its first question to the server to its last word.
fn run_thread(
    client: Client,
    options: Options,
    lanes: Arc<Lanes>,
    heard: Arc<Heard>,
    log: HostLog,
    ready: &std_mpsc::Sender<Opened>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(EngineError::internal(format!("no runtime: {error}"))));
            return;
        }
    };
    let facts = match runtime.block_on(probe(&client, &options)) {
        Ok(facts) => Arc::new(facts),
        Err(error) => {
            let _ = ready.send(Err(error.into()));
            return;
        }
    };
    let (desk, commands) = Desk::new(Arc::clone(&lanes), facts.requests_max);
    if ready.send(Ok((Arc::clone(&desk), Arc::clone(&facts)))).is_err() {
        return;
    }
    let own = Arc::clone(&desk);
    let body = move || {
        let engine = Inner::new(client, options, facts, own, lanes, heard, log);
        runtime.block_on(engine.run(commands));
    };
    if catch_unwind(AssertUnwindSafe(body)).is_err() {
        log.error(TARGET, "the engine's thread has panicked");
        desk.die("the engine's thread has died");
    }
}

/// A request at the server.
struct Flying {
    id: u64,
    slot: Option<u32>,
    namespace: u128,
    prompt: Vec<u32>,
}

/// What the thread knows.
struct Inner {
    client: Client,
    options: Options,
    facts: Arc<Facts>,
    desk: Arc<Desk>,
    lanes: Arc<Lanes>,
    heard: Arc<Heard>,
    log: HostLog,
    salts: SharedSalts,
    mirror: SharedMirror,
    queue: Queue,
    flights: JoinSet<Landed>,
    flying: HashMap<Id, Flying>,
    cancels: HashMap<u64, Arc<Notify>>,
    slots: Option<Slots>,
    nudge: Arc<Notify>,
}

impl Inner {
    fn new(
        client: Client,
        options: Options,
        facts: Arc<Facts>,
        desk: Arc<Desk>,
        lanes: Arc<Lanes>,
        heard: Arc<Heard>,
        log: HostLog,
    ) -> Self {
        let salts = Salts::new(facts.block_tokens, options.cache == Cache::Engine);
        let blocks_max = facts.blocks.saturating_mul(BLOCKS_PER_DEVICE_BLOCK);
        let blocks_max = blocks_max.clamp(BLOCKS_MIN, BLOCKS_MAX) as usize;
        let counts_copies = facts.server == Server::Vllm;
        let mirror = Mirror::new(options.hash_key, facts.block_tokens, counts_copies, blocks_max);
        let is_llama = facts.server == Server::LlamaCpp;
        Self {
            slots: is_llama.then(|| Slots::new(facts.requests_max)),
            client,
            options,
            facts,
            desk,
            lanes,
            heard,
            log,
            salts: SharedSalts::new(salts),
            mirror: SharedMirror::new(mirror),
            queue: Queue::default(),
            flights: JoinSet::new(),
            flying: HashMap::new(),
            cancels: HashMap::new(),
            nudge: Arc::new(Notify::new()),
        }
    }

    /// Works until the engine is dropped, or the server is another one.
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let (snapshots, listener) = self.listen();
        let (is_back, mut back) = watch::channel(());
        let mut watching = Box::pin(follow(
            self.client.clone(),
            self.options.clone(),
            Arc::clone(&self.facts),
            Arc::clone(&self.desk),
            Arc::clone(&self.nudge),
            is_back,
        ));
        let reason = loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command, snapshots.as_ref()),
                    None => break None,
                },
                Some(landed) = self.flights.join_next_with_id() => self.land(landed),
                _ = back.changed() => {
                    if let Some(slots) = &mut self.slots {
                        slots.forget();
                    }
                }
                reason = &mut watching => break Some(reason),
            }
            if self.desk.is_away() {
                self.send_away();
            }
            self.admit();
        };
        self.flights.shutdown().await;
        match reason {
            None => self.desk.end_all(&Finish::Cancelled),
            Some(reason) => {
                self.log.error(TARGET, &reason);
                self.desk.die(&reason);
            }
        }
        while let Ok(command) = commands.try_recv() {
            if let Command::Snapshot(snapshot) = command {
                self.lanes.op(snapshot.op_id, Code::Unavailable.rc(), 0);
            }
        }
        drop(snapshots);
        if let Some(listener) = listener {
            // It ends by itself once nobody can ask it any more; a panic in it has been told.
            listener.abort();
            let _ = listener.await;
        }
    }

    /// Starts to follow the server's events, if it has any.
    fn listen(
        &self,
    ) -> (Option<mpsc::UnboundedSender<Snapshot>>, Option<tokio::task::JoinHandle<()>>) {
        let Some(events) = self.options.kv_events.clone() else { return (None, None) };
        let endpoints = Endpoints {
            events,
            replay: self.options.kv_replay.clone(),
            topic: self.options.kv_topic.clone(),
        };
        let listener = Listener {
            endpoints,
            mirror: self.mirror.clone(),
            salts: self.salts.clone(),
            lanes: Arc::clone(&self.lanes),
            log: self.log,
            heard: Arc::clone(&self.heard),
            order: Order::default(),
            has_told: false,
            has_warned: false,
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        (Some(sender), Some(tokio::spawn(listener.run(receiver))))
    }

    fn obey(&mut self, command: Command, snapshots: Option<&mpsc::UnboundedSender<Snapshot>>) {
        match command {
            Command::Submit(request) => self.queue.push(request),
            Command::Cancel(id) => {
                if self.queue.remove(id) {
                    self.desk.end(Output { id, ..Output::default() }, Finish::Cancelled, false);
                } else if let Some(cancel) = self.cancels.get(&id) {
                    cancel.notify_one();
                }
            }
            Command::Snapshot(snapshot) => {
                let op_id = snapshot.op_id;
                match snapshots.map(|listener| listener.send(snapshot)) {
                    Some(Ok(())) => {}
                    // The listener has died: what is held is not known any more.
                    Some(Err(_)) => self.lanes.op(op_id, Code::Internal.rc(), 0),
                    None => {
                        self.lanes.begin_snapshot();
                        self.lanes.op(op_id, 0, 0);
                    }
                }
            }
        }
    }

    /// Sends what waits to the server, as far as it runs so many at once.
    fn admit(&mut self) {
        while self.cancels.len() < self.facts.requests_max as usize && !self.queue.is_empty() {
            let Some(request) = self.queue.pop() else { break };
            if let Some(request) = self.start(request) {
                // There are as many slots as requests, so this does not happen; it must not turn in circles.
                self.queue.push(request);
                break;
            }
        }
        self.desk.set_running(self.cancels.len());
    }

    /// Sends one; gives it back where there is no slot for it.
    fn start(&mut self, request: Request) -> Option<Request> {
        let given = match &mut self.slots {
            None => None,
            Some(slots) => match slots.take(request.namespace, &request.tokens) {
                Some(given) => Some(given),
                None => return Some(request),
            },
        };
        let mut salts = self.salts.lock();
        salts.asked(request.namespace, &request.tokens);
        let manner = Manner {
            model: self.facts.model.clone(),
            salt: salts.salt_of(request.namespace),
            priority: self.options.priority,
            slot: given.map_or(0, |given| given.slot),
            reuse: given.is_some_and(|given| given.reuse),
            at_once: false,
        };
        drop(salts);
        let held = self.mirror.lock().held_tokens(request.namespace, &request.tokens);
        let flying = Flying {
            id: request.id,
            slot: given.map(|given| given.slot),
            namespace: request.namespace,
            prompt: request.tokens.clone(),
        };
        let cancel = Arc::new(Notify::new());
        self.cancels.insert(request.id, Arc::clone(&cancel));
        let flight = Flight {
            client: self.client.clone(),
            facts: Arc::clone(&self.facts),
            desk: Arc::clone(&self.desk),
            manner,
            request,
            cancel,
            held_tokens: held,
            began: Instant::now(),
        };
        let task = self.flights.spawn(flight.fly());
        self.flying.insert(task.id(), flying);
        None
    }

    fn land(&mut self, landed: Result<(Id, Landed), tokio::task::JoinError>) {
        let id = match &landed {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(flying) = self.flying.remove(&id) else { return };
        self.cancels.remove(&flying.id);
        let left = landed.as_ref().ok().and_then(|(_, landed)| landed.said.clone());
        if let (Some(slots), Some(slot)) = (&mut self.slots, flying.slot) {
            let content = left.map(|said| [flying.prompt.as_slice(), &said].concat());
            slots.give_back(slot, content.map(|tokens| (flying.namespace, tokens)));
        }
        let Ok((_, landed)) = landed else {
            self.log.error(TARGET, "a request has panicked");
            let message = "the engine failed at this request".to_owned();
            let finish = Finish::Error { rc: Code::Internal.rc(), message };
            let output = Output { id: flying.id, ..Output::default() };
            return self.desk.end(output, finish, true);
        };
        if landed.is_lost {
            self.nudge.notify_one();
        }
        let (prompt, hit) = (flying.prompt.len() as u64, u64::from(landed.last.cached_tokens));
        let has_run = landed.said_tokens > 0;
        self.desk.count(|stats| {
            stats.decode_tokens += landed.said_tokens;
            if has_run {
                stats.query_tokens += prompt;
                stats.hit_tokens += hit;
                stats.prefill_tokens += prompt - hit.min(prompt);
            }
        });
        self.desk.end(landed.last, landed.finish, true);
    }

    /// The server is away: what waits for it had better go elsewhere.
    fn send_away(&mut self) {
        while let Some(request) = self.queue.pop() {
            let message = "the server does not answer".to_owned();
            let finish = Finish::Error { rc: Code::Unavailable.rc(), message };
            self.desk.end(Output { id: request.id, ..Output::default() }, finish, false);
        }
    }
}

/// Asks whether the server lives, until it is another one; answers with why the engine has to end.
async fn follow(
    client: Client,
    options: Options,
    facts: Arc<Facts>,
    desk: Arc<Desk>,
    nudge: Arc<Notify>,
    is_back: watch::Sender<()>,
) -> String {
    loop {
        tokio::select! {
            () = tokio::time::sleep(WATCH_EVERY) => {}
            () = nudge.notified() => {}
        }
        if client.ask("/health").await.is_err() {
            desk.set_away(true);
            is_back.send_replace(());
            continue;
        }
        if !desk.is_away() {
            continue;
        }
        match probe(&client, &options).await {
            Ok(now) if now == *facts => {
                desk.set_away(false);
                is_back.send_replace(());
            }
            Ok(_) => return "the server is another one than it was".to_owned(),
            // It is not done with starting.
            Err(_) => {}
        }
    }
}
