//! The engine behind the interface: what the host calls, and the birth and death of the one thread that works.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mainstay_engine_abi::sdk::{
    Engine, EngineError, HostLog, Identity, Info, Lanes, Request, Stats, caps,
};

use mainstay_engine_proxy::{Desk, Teller};
use tokio::sync::mpsc;

use crate::RemoteError;
use crate::dialect;
use crate::http::Client;
use crate::inner::{Inner, teller};
use crate::options::{Options, Server};
use crate::probe::{Facts, probe};

/// How long `drain` waits for the ends of what it cancelled.
const CANCEL_GRACE: Duration = Duration::from_secs(10);

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
    teller: Arc<Teller>,
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
        let (ready, is_ready) = std_mpsc::channel();
        let own = options.clone();
        let body = move || run_thread(client, own, lanes, log, &ready);
        let thread = std::thread::Builder::new().name("remote-engine".to_owned()).spawn(body);
        let thread =
            thread.map_err(|e| EngineError::internal(format!("no thread for the engine: {e}")))?;
        let opened = is_ready.recv().unwrap_or_else(|_| {
            Err(EngineError::internal("the engine's thread ended before it began"))
        });
        let (desk, facts, teller) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                // Its panics are caught inside; there is nothing more to learn from it.
                let _ = thread.join();
                return Err(error);
            }
        };
        say(&options, &facts, log);
        Ok(Self {
            info: info(&options, &facts),
            has_events: options.kv_events.is_some(),
            desk,
            thread: Some(thread),
            facts,
            teller,
            _taken: taken,
        })
    }

    fn info(&self) -> Info {
        self.info.clone()
    }

    fn stats(&self) -> Stats {
        self.teller.count(self.desk.stats())
    }

    fn submit(&self, request: Request) -> Result<(), EngineError> {
        request.check(self.facts.context_tokens_max, 1, self.facts.vocab)?;
        dialect::check(self.facts.server, &request.sampling)?;
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

type Opened = Result<(Arc<Desk>, Arc<Facts>, Arc<Teller>), EngineError>;

/// The engine's thread, from its first question to the server to its last word.
fn run_thread(
    client: Client,
    options: Options,
    lanes: Arc<Lanes>,
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
    let (sender, commands) = mpsc::unbounded_channel();
    let send = move |command| sender.send(command).is_ok();
    let desk = Desk::new(Arc::clone(&lanes), facts.requests_max, send);
    let teller = Arc::new(teller(&options, &facts, Arc::clone(&lanes)));
    let opened = (Arc::clone(&desk), Arc::clone(&facts), Arc::clone(&teller));
    if ready.send(Ok(opened)).is_err() {
        return;
    }
    let own = Arc::clone(&desk);
    let body = move || {
        let engine = Inner::new(client, options, facts, own, lanes, teller, log);
        runtime.block_on(engine.run(commands));
    };
    if catch_unwind(AssertUnwindSafe(body)).is_err() {
        log.error(TARGET, "the engine's thread has panicked");
        desk.die("the engine's thread has died");
    }
}
