//! The engine's thread at work: what waits is ordered, sent and landed; the server is followed.
//!
//! A server that comes back as another one (its context, blocks or model differ) ends the engine, so that the host
//! opens it again as what it is now.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_engine_abi::sdk::{Code, Finish, HostLog, Lanes, Output, Request};
use mainstay_engine_proxy::mirror::Mirror;
use mainstay_engine_proxy::salts::Salts;
use mainstay_engine_proxy::{Command, Desk, Teller};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};

use crate::dialect::Manner;
use crate::flight::{Flight, Landed};
use crate::http::Client;
use crate::kv::listen::{Endpoints, Listener, Snapshot};
use crate::kv::order::Order;
use crate::options::{Cache, Options, Server};
use crate::probe::{Facts, probe};
use crate::queue::Queue;
use crate::slots::Slots;

/// How often the server is asked whether it lives.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Blocks that are believed to be held, in blocks of the device: lower tiers are larger.
const BLOCKS_PER_DEVICE_BLOCK: u64 = 16;
const BLOCKS_MIN: u64 = 1 << 16;
const BLOCKS_MAX: u64 = 1 << 24;

const TARGET: &str = "remote";

/// What is told of the server's cache, and to whom.
pub(crate) fn teller(options: &Options, facts: &Facts, lanes: Arc<Lanes>) -> Teller {
    let salts = Salts::new(facts.block_tokens, options.cache == Cache::Engine);
    let blocks_max = facts.blocks.saturating_mul(BLOCKS_PER_DEVICE_BLOCK);
    let blocks_max = blocks_max.clamp(BLOCKS_MIN, BLOCKS_MAX) as usize;
    let counts_copies = facts.server == Server::Vllm;
    let mirror = Mirror::new(options.hash_key, facts.block_tokens, counts_copies, blocks_max);
    Teller::new(mirror, salts, lanes)
}

/// A request at the server.
struct Flying {
    id: u64,
    slot: Option<u32>,
    namespace: u128,
    prompt: Vec<u32>,
}

/// What the engine's thread knows.
pub(crate) struct Inner {
    client: Client,
    options: Options,
    facts: Arc<Facts>,
    desk: Arc<Desk>,
    lanes: Arc<Lanes>,
    teller: Arc<Teller>,
    log: HostLog,
    queue: Queue,
    flights: JoinSet<Landed>,
    flying: HashMap<Id, Flying>,
    cancels: HashMap<u64, Arc<Notify>>,
    slots: Option<Slots>,
    nudge: Arc<Notify>,
}

impl Inner {
    pub(crate) fn new(
        client: Client,
        options: Options,
        facts: Arc<Facts>,
        desk: Arc<Desk>,
        lanes: Arc<Lanes>,
        teller: Arc<Teller>,
        log: HostLog,
    ) -> Self {
        let is_llama = facts.server == Server::LlamaCpp;
        Self {
            slots: is_llama.then(|| Slots::new(facts.requests_max)),
            client,
            options,
            facts,
            desk,
            lanes,
            teller,
            log,
            queue: Queue::default(),
            flights: JoinSet::new(),
            flying: HashMap::new(),
            cancels: HashMap::new(),
            nudge: Arc::new(Notify::new()),
        }
    }

    /// Works until the engine is dropped, or the server is another one.
    pub(crate) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
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
            if let Command::Snapshot(op_id) = command {
                self.lanes.op(op_id, Code::Unavailable.rc(), 0);
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
    fn listen(&self) -> (Option<mpsc::UnboundedSender<Snapshot>>, Option<JoinHandle<()>>) {
        let Some(events) = self.options.kv_events.clone() else { return (None, None) };
        let endpoints = Endpoints {
            events,
            replay: self.options.kv_replay.clone(),
            topic: self.options.kv_topic.clone(),
        };
        let listener = Listener {
            endpoints,
            teller: Arc::clone(&self.teller),
            log: self.log,
            order: Order::default(),
            has_warned: false,
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        (Some(sender), Some(tokio::spawn(listener.run(receiver))))
    }

    fn obey(&mut self, command: Command, snapshots: Option<&mpsc::UnboundedSender<Snapshot>>) {
        match command {
            Command::Submit(request) => self.queue.push(*request),
            Command::Cancel(id) => {
                if self.queue.remove(id) {
                    self.desk.end(Output { id, ..Output::default() }, Finish::Cancelled, false);
                } else if let Some(cancel) = self.cancels.get(&id) {
                    cancel.notify_one();
                }
            }
            Command::Snapshot(op_id) => {
                match snapshots.map(|listener| listener.send(Snapshot { op_id })) {
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
        let mut salts = self.teller.salts();
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
        let held = self.teller.held_tokens(request.namespace, &request.tokens);
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

    fn land(&mut self, landed: Result<(Id, Landed), JoinError>) {
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
