//! What sessions want kept: leases that go out with their requests, and orders to the workers that hold their blocks.
//!
//! The rules are `mainstay_block`'s. Here sessions' changes become its events, its leases become ranges on the wire,
//! and its orders find the workers that served the session. All of it is hints: what is lost on the way costs memory
//! that is used less well, and no answer.
//!
//! Only what this gateway served is known to it. A session that comes through two gateways has one name of its
//! leases at both, so that each renews the other's, until its history is replaced or ends: that reaches what the
//! gateway that saw it knows of, and the rest runs out by its time.

mod courier;
mod pressure;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ahash::RandomState;
use mainstay_block::{
    Amendment, Class, End, Ending, Event, LeaseId, Order, Retention, SessionId, SpanTerms, Stakes,
    TenantSlot, Turn,
};
use mainstay_chat::{Change, EndCause, Lived};
use mainstay_proto::convert::u128_to_wire;
use mainstay_proto::v1;
use mainstay_types::{BlockHashKey, HashKey, NamespaceId, TenantId, WorkerId};
use parking_lot::Mutex;
use tokio::sync::mpsc;

pub(crate) use courier::{Letters, deliver};
pub(crate) use pressure::Flow;

use crate::workers::Workers;

/// Sessions whose workers are known, of all tenants; the one that was served longest ago makes room.
const SERVED_MAX: usize = 1 << 16;
/// Workers of a session that are told of its changes: those that served it last.
const WORKERS_MAX: usize = 4;
/// Changes on their way to workers.
const LETTERS_MAX: usize = 8_192;
/// Tenants are told apart by so many numbers; two that fall together share what one may use of limits.
const SLOTS: u64 = 1 << 15;

/// A change for a worker.
pub(crate) struct Letter {
    pub(crate) worker: WorkerId,
    pub(crate) change: v1::LeaseChange,
}

/// Keeps sessions' leases for the whole gateway.
#[derive(Clone)]
pub(crate) struct Retainer {
    shared: Arc<Shared>,
}

struct Shared {
    on: bool,
    started: Instant,
    workers: Workers,
    /// The cluster's, once it is known: names of leases are the same at every gateway.
    key: OnceLock<HashKey>,
    slots: RandomState,
    state: Mutex<State>,
    letters: mpsc::Sender<Letter>,
}

#[derive(Default)]
struct State {
    retention: Retention,
    served: HashMap<SessionId, Served, RandomState>,
    /// In the order in which they were served; one that was served again stands in it twice.
    order: VecDeque<(SessionId, u64)>,
    clock: u64,
}

/// Where a session's blocks are.
struct Served {
    namespace: NamespaceId,
    blocks: u32,
    block_tokens: u32,
    /// The last one last.
    workers: Vec<WorkerId>,
    stamp: u64,
}

/// The parts of a prompt, by tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    /// System prompt and tools, with which other sessions begin too.
    pub(crate) head: u32,
    /// The whole.
    pub(crate) prompt: u32,
}

/// What a request wants kept.
#[derive(Clone)]
pub(crate) struct Keeping {
    retainer: Retainer,
    session: SessionId,
    namespace: NamespaceId,
    blocks: u32,
    block_tokens: u32,
    pub(crate) leases: Vec<bytes::Bytes>,
    pub(crate) ranges: Vec<v1::RetentionRange>,
}

impl Keeping {
    /// A worker has taken the request: it holds the session's blocks from here on.
    pub(crate) fn on(&self, worker: WorkerId) {
        let mut state = self.retainer.shared.state.lock();
        state.serve(self, worker);
    }
}

impl Retainer {
    /// One that knows no session, and what it has to send. Where it is off it keeps quiet.
    pub(crate) fn new(on: bool, workers: Workers) -> (Self, Letters) {
        let (letters, receiver) = mpsc::channel(LETTERS_MAX);
        let shared = Shared {
            on,
            started: Instant::now(),
            workers,
            key: OnceLock::new(),
            slots: RandomState::new(),
            state: Mutex::default(),
            letters,
        };
        (Self { shared: Arc::new(shared) }, receiver)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.shared.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn slot(&self, tenant: &str) -> TenantSlot {
        TenantSlot((self.shared.slots.hash_one(tenant) % SLOTS) as u32)
    }

    /// A session's name for everybody who keeps blocks. It is hashed under the cluster's key, so nobody finds another
    /// that has the same.
    fn session(&self, tenant: &str, key: &str) -> Option<SessionId> {
        let hash = BlockHashKey::new(*self.shared.key.get()?);
        let words = |text: &str| -> Vec<u32> { text.bytes().map(u32::from).collect() };
        Some(SessionId(hash.block_hash(hash.block_hash(0, &words(tenant)), &words(key))))
    }

    /// What a session's request wants kept, after the changes that it made itself were told. `None` for a request of
    /// no session.
    pub(crate) fn keeping(
        &self,
        (tenant, session): (&TenantId, Option<&str>),
        is_side: bool,
        (namespace, hash_key, block_tokens): (NamespaceId, HashKey, u32),
        parts: Parts,
    ) -> Option<Keeping> {
        if !self.shared.on {
            return None;
        }
        self.shared.key.get_or_init(|| hash_key);
        let session = self.session(tenant.as_str(), session?)?;
        let turn = if is_side { Turn::Side } else { Turn::Conversation };
        let stretches = stretches(parts);
        let slot = self.slot(tenant.as_str());
        let leases = self.shared.state.lock().retention.leases(slot, session, turn, &stretches);
        let (leases, ranges) = to_wire(&leases);
        Some(Keeping {
            retainer: self.clone(),
            session,
            namespace,
            blocks: parts.prompt / block_tokens.max(1),
            block_tokens,
            leases,
            ranges,
        })
    }

    /// Takes a change in a session's life, in the order in which they happen.
    pub(crate) fn told(&self, lived: &Lived) {
        if !self.shared.on {
            return;
        }
        let Some(session) = self.session(&lived.tenant, &lived.key) else { return };
        let (slot, now_ms) = (self.slot(&lived.tenant), self.now_ms());
        let mut state = self.shared.state.lock();
        let stakes = state.stakes(session, &self.shared.workers);
        let tools: Vec<&str> = match &lived.change {
            Change::Paused { tools } => tools.iter().map(String::as_str).collect(),
            _ => Vec::new(),
        };
        let event = event_of(&lived.change, &tools, stakes);
        let orders = state.retention.told(slot, session, event, now_ms);
        let Some(served) = state.served.get(&session) else { return };
        for order in &orders {
            let Some(change) = change_of(order, served.namespace) else { continue };
            for worker in &served.workers {
                let letter = Letter { worker: *worker, change: change.clone() };
                if self.shared.letters.try_send(letter).is_err() {
                    metrics::counter!("mainstay_gateway_lease_changes_total", "ended" => "lost")
                        .increment(1);
                }
            }
        }
        if matches!(lived.change, Change::Ended { .. }) {
            state.served.remove(&session);
        }
    }
}

impl State {
    fn serve(&mut self, keeping: &Keeping, worker: WorkerId) {
        self.clock += 1;
        let stamp = self.clock;
        let served = self.served.entry(keeping.session).or_insert_with(|| Served {
            namespace: keeping.namespace,
            blocks: 0,
            block_tokens: keeping.block_tokens,
            workers: Vec::new(),
            stamp,
        });
        if served.namespace != keeping.namespace {
            // Of another model, whose blocks run out by their time.
            served.namespace = keeping.namespace;
            served.workers.clear();
        }
        served.stamp = stamp;
        served.blocks = keeping.blocks;
        served.block_tokens = keeping.block_tokens;
        served.workers.retain(|known| *known != worker);
        if served.workers.len() >= WORKERS_MAX {
            served.workers.remove(0);
        }
        served.workers.push(worker);
        self.order.push_back((keeping.session, stamp));
        self.tidy();
    }

    /// Forgets whoever was served longest ago beyond the limit, and places in the order that are none any more.
    fn tidy(&mut self) {
        while self.served.len() > SERVED_MAX || self.order.len() > 2 * SERVED_MAX {
            let Some((session, stamp)) = self.order.pop_front() else { return };
            if self.served.get(&session).is_some_and(|served| served.stamp == stamp) {
                self.served.remove(&session);
            }
        }
    }

    /// What it costs to lose a session's blocks, as far as is known of the worker that served it last.
    fn stakes(&self, session: SessionId, workers: &Workers) -> Stakes {
        let served = self.served.get(&session);
        let last = served.and_then(|served| Some((served, served.workers.last()?)));
        let Some((served, entry)) = last.and_then(|(s, id)| Some((s, workers.get(*id)?))) else {
            return Stakes { reload_ms: 0.0, price_per_ms: 0.0, kept_ms: mainstay_block::NEVER_MS };
        };
        let (load, _) = entry.load();
        let token_ms = f64::from(load.prefill_us_per_token) / 1000.0;
        let wait_ms = load.waiting_prefill_tokens as f64 * token_ms;
        let block_ms = token_ms * f64::from(served.block_tokens);
        Stakes::of(served.blocks, block_ms, wait_ms, entry.pressure())
    }
}

fn stretches(parts: Parts) -> Vec<(Class, std::ops::Range<usize>)> {
    let (head, prompt) = (parts.head.min(parts.prompt) as usize, parts.prompt as usize);
    let all = [
        (Class::System, 0..head),
        (Class::History, head..prompt),
        (Class::Output, prompt..u32::MAX as usize),
    ];
    all.into_iter().filter(|(_, stretch)| !stretch.is_empty()).collect()
}

fn event_of<'a>(change: &Change, tools: &'a [&'a str], stakes: Stakes) -> Event<'a> {
    match change {
        Change::Started => Event::Started,
        Change::Paused { .. } => Event::Paused { tools, stakes },
        Change::Resumed => Event::Resumed,
        Change::Compacted => Event::Compacted,
        Change::Forked { .. } => Event::Forked,
        Change::Ended { why } => Event::Ended(match why {
            EndCause::Final | EndCause::Closed | EndCause::Finished => Ending::Finished,
            EndCause::Idle => Ending::Idle,
            EndCause::Crowded => Ending::Untracked,
        }),
    }
}

/// The number of a class on the wire, as the engines' interface has it. What a lease ends as is said by its end.
fn kind_of(class: Class) -> u32 {
    match class {
        Class::Plain | Class::Finished | Class::Compacted => 0,
        Class::System => 1,
        Class::Tools => 2,
        Class::History => 3,
        Class::UserTurn => 4,
        Class::Output => 5,
        Class::Reasoning => 6,
        Class::Side => 7,
    }
}

/// A duration of 0 is none on the wire.
fn duration_of(duration_ms: Option<u64>) -> u32 {
    duration_ms.map_or(0, |ms| u32::try_from(ms.max(1)).unwrap_or(u32::MAX))
}

fn range_of(span: &SpanTerms, lease: usize) -> v1::RetentionRange {
    v1::RetentionRange {
        start: u32::try_from(span.blocks.start).unwrap_or(u32::MAX),
        end: u32::try_from(span.blocks.end).unwrap_or(u32::MAX),
        priority: u32::from(span.priority),
        duration_ms: duration_of(span.duration_ms),
        after: u32::from(span.after) + 1,
        kind: kind_of(span.class),
        lease: u32::try_from(lease + 1).unwrap_or(u32::MAX),
    }
}

fn to_wire(leases: &[(LeaseId, Vec<SpanTerms>)]) -> (Vec<bytes::Bytes>, Vec<v1::RetentionRange>) {
    let names = leases.iter().map(|(id, _)| u128_to_wire(id.0)).collect();
    let ranges = leases
        .iter()
        .enumerate()
        .flat_map(|(at, (_, spans))| spans.iter().map(move |span| range_of(span, at)));
    (names, ranges.collect())
}

fn amendment_of(amendment: &Amendment) -> v1::RetentionRange {
    v1::RetentionRange {
        start: 0,
        end: u32::MAX,
        priority: u32::from(amendment.priority),
        duration_ms: duration_of(amendment.duration_ms),
        after: u32::from(amendment.after) + 1,
        kind: kind_of(amendment.class),
        lease: 0,
    }
}

/// `None` for what workers are not told yet.
fn change_of(order: &Order, namespace: NamespaceId) -> Option<v1::LeaseChange> {
    let (lease, end, ranges) = match order {
        Order::Amend { lease, amendments } => {
            // What a lease becomes when it has ended is no kind of its own.
            let told =
                amendments.iter().filter(|a| kind_of(a.class) > 0 || a.class == Class::Plain);
            (lease, v1::LeaseEnd::Unspecified, told.map(amendment_of).collect())
        }
        Order::End { lease, end } => {
            let end = match end {
                End::Released => v1::LeaseEnd::Released,
                End::Finished => v1::LeaseEnd::Finished,
                End::Compacted => v1::LeaseEnd::Compacted,
            };
            (lease, end, Vec::new())
        }
        Order::Prefetch { .. } => return None,
    };
    Some(v1::LeaseChange {
        namespace: u128_to_wire(namespace.0),
        lease: u128_to_wire(lease.0),
        end: end.into(),
        ranges,
    })
}

#[cfg(test)]
mod tests;
