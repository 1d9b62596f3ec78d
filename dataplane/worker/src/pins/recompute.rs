//! The keeper's orders on this worker: pins whose blocks it is to compute from the tokens that the cluster keeps.
//!
//! Orders are seen where pins are, in the log. The tokens are fetched for one order at a time and forgotten after
//! it; they run through the engine as a prompt of the lowest priority with one token of output, which is thrown
//! away. Before that, as for every prompt, what this worker's tiers, the store or the pin's other keepers have is brought
//! in, and only the rest is computed. What that leaves in the cache is protected and reported as for every pin, by the
//! ledger: nothing here says that a pin is whole. Where the blocks are at hand already nothing is computed. A second order for a pin joins
//! the first; one that fails is tried again, ever less often, for as long as the keeper stands by it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine_abi::sdk::{Request, Sampling, caps};
use mainstay_proto::convert::{u128_from_wire, u128_to_wire};
use mainstay_proto::v1;
use mainstay_types::{Epoch, LogIndex, PinId, WorkerId, kept};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;

use crate::backoff::Backoff;
use crate::generate::{priority, run_unread};
use crate::shared::{Life, Shared};

/// Pins that are computed at one time; the rest waits its turn.
const RUNNING_MAX: usize = 2;
/// Below everything that a client may ask for.
const PRIORITY: i32 = i32::MIN / 2;
const FETCH_DEADLINE: Duration = Duration::from_secs(2);
/// Pauses between two attempts at an order; reports of the first may be on their way meanwhile.
const RETRY_MS: u64 = 500;
const RETRY_MS_MAX: u64 = 10_000;
/// How long one attempt may take: a long prefix on a slow machine.
const ATTEMPT_MAX: Duration = Duration::from_secs(120);
/// Without anything to wait for.
const IDLE: Duration = Duration::from_secs(60);

/// An order for this worker, as the log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ordered {
    pub(crate) id: PinId,
    /// The entry that made the pin: an id may come again.
    pub(crate) made: LogIndex,
    pub(crate) worker: WorkerId,
    pub(crate) epoch: Epoch,
    /// Who keeps how many of its blocks already, by address, most first.
    pub(crate) keepers: Vec<(String, u32)>,
}

type Key = (PinId, LogIndex);

impl Ordered {
    fn key(&self) -> Key {
        (self.id, self.made)
    }
}

/// When an order that came to nothing is tried again.
struct Tried {
    last: Instant,
    next: Instant,
    backoff: Backoff,
}

/// Carries orders out until the task is aborted. Each gets one attempt at a time, the longest untried one first, so
/// that one that can't be fulfilled here keeps no other from its turn.
pub(crate) async fn obey(shared: Arc<Shared>) {
    let mut orders = shared.orders.subscribe();
    let mut tasks: JoinSet<Key> = JoinSet::new();
    let mut running: HashMap<Key, tokio::task::AbortHandle> = HashMap::new();
    let mut tried: HashMap<Key, Tried> = HashMap::new();
    loop {
        let wanted = orders.borrow_and_update().clone();
        let named: HashSet<Key> = wanted.iter().map(Ordered::key).collect();
        tried.retain(|key, _| named.contains(key));
        running.retain(|key, task| {
            let stays = named.contains(key);
            if !stays {
                // The pin is whole or has ended; a request that still runs is cancelled with its task.
                task.abort();
            }
            stays
        });
        let mut waiting: Vec<Ordered> =
            wanted.into_iter().filter(|order| !running.contains_key(&order.key())).collect();
        waiting.sort_by_key(|order| tried.get(&order.key()).map(|t| t.last));
        let now = Instant::now();
        let is_due = |order: &Ordered| tried.get(&order.key()).is_none_or(|t| t.next <= now);
        for order in waiting.iter().filter(|order| is_due(order)) {
            if running.len() >= RUNNING_MAX {
                break;
            }
            let (shared, order, key) = (Arc::clone(&shared), order.clone(), order.key());
            let task = tasks.spawn(async move {
                attempt(&shared, &order).await;
                key
            });
            running.insert(key, task);
        }
        let next = waiting.iter().filter_map(|o| tried.get(&o.key())).map(|t| t.next);
        let wake = next.filter(|next| *next > now).min().unwrap_or(now + IDLE);
        tokio::select! {
            changed = orders.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            Some(ended) = tasks.join_next() => {
                if let Ok(key) = ended {
                    running.remove(&key);
                    let now = Instant::now();
                    let backoff = Backoff::new(RETRY_MS, RETRY_MS_MAX);
                    let tried = tried.entry(key).or_insert(Tried { last: now, next: now, backoff });
                    (tried.last, tried.next) = (now, now + tried.backoff.next_pause());
                }
            }
            () = tokio::time::sleep_until(wake) => {}
        }
    }
}

/// Computes what an order asks for, unless all blocks are here: then a report is on its way, or the engine has no
/// room to protect them, and there is nothing to compute.
async fn attempt(shared: &Arc<Shared>, order: &Ordered) {
    if shared.events.lock().pins.is_at_hand(order.id) {
        return;
    }
    let computed = tokio::time::timeout(ATTEMPT_MAX, compute(shared, order)).await;
    match computed.unwrap_or_else(|_| Err(Status::deadline_exceeded("the engine took too long"))) {
        Ok(Done { cached_tokens, lacking_tokens }) => {
            tracing::info!(pin = %order.id, cached_tokens, lacking_tokens, "a pin is whole again");
            count(if lacking_tokens == 0 { "loaded" } else { "computed" });
        }
        Err(status) => {
            let reason = status.message();
            tracing::debug!(pin = %order.id, code = ?status.code(), reason, "a pin was not computed");
            count("failed");
        }
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("mainstay_worker_recomputed_total", "outcome" => outcome).increment(1);
}

/// What it took to have a pin's blocks.
struct Done {
    cached_tokens: u32,
    /// Tokens of blocks that had to be computed, though they could have been found. The last token always is.
    lacking_tokens: u32,
}

/// Brings a pin's blocks in as far as they are anywhere near, and computes the rest.
async fn compute(shared: &Arc<Shared>, order: &Ordered) -> Result<Done, Status> {
    let life = shared.life();
    let life = life.ok_or_else(|| Status::unavailable("the engine of this worker is starting"))?;
    let asked = v1::PinTokensRequest {
        id: u128_to_wire(order.id.0),
        worker: order.worker.0,
        epoch: order.epoch.0,
    };
    let reply = shared.control.call(FETCH_DEADLINE, |mut client| {
        let asked = asked.clone();
        async move { client.pin_tokens(asked).await }
    });
    let reply = reply.await?;
    let namespace = u128_from_wire(&reply.namespace, "namespace")?;
    let tokens = kept::unpack(&reply.packed)
        .ok_or_else(|| Status::invalid_argument("the tokens of the pin are malformed"))?;
    let block_tokens = life.info.block_tokens.max(1);
    let useful = (tokens.len().saturating_sub(1) as u32) / block_tokens * block_tokens;
    let source = |(address, blocks): &(String, u32)| v1::BlockSource {
        address: address.clone(),
        blocks: *blocks,
    };
    let sources = order.keepers.iter().map(source).collect();
    let cached_tokens =
        run_unread(shared, &life, prompt(&life, namespace, tokens)?, sources).await?;
    Ok(Done { cached_tokens, lacking_tokens: useful.saturating_sub(cached_tokens) })
}

fn prompt(life: &Life, namespace: u128, tokens: Vec<u32>) -> Result<Request, Status> {
    let info = &life.info;
    if tokens.is_empty() || tokens.len() >= info.context_tokens_max as usize {
        let (length, most) = (tokens.len(), info.context_tokens_max);
        return Err(Status::invalid_argument(format!("{length} tokens; this model takes {most}")));
    }
    if tokens.iter().any(|token| *token >= info.vocab) {
        return Err(Status::invalid_argument("a token is not in this model's vocabulary"));
    }
    let sampling = Sampling {
        temperature: 0.0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        tokens_max: 1,
        ignore_eos: true,
        ..Sampling::default()
    };
    Ok(Request {
        namespace,
        tokens,
        priority: priority(life.caps & caps::PRIORITY, PRIORITY),
        sampling,
        expected_output_tokens: 1,
        ..Request::default()
    })
}
