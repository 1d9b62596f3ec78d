//! What sessions want kept: leases that go out with their requests, and orders to the workers that hold their blocks.
//!
//! The rules are `mainstay_block`'s. Here sessions' changes become its events, its leases become ranges on the wire,
//! and its orders find the workers that served the session. All of it is hints: what is lost on the way costs memory
//! that is used less well, and no answer.
//!
//! Only what this gateway served is known to it. A session that comes through two gateways has one name of its
//! leases at both, so that each renews the other's, until its history is replaced or ends: that reaches what the
//! gateway that saw it knows of, and the rest runs out by its time.

mod ahead;
mod courier;
mod prefetch;
mod pressure;
mod served;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ahash::RandomState;
use mainstay_block::{
    Amendment, Class, End, Ending, Event, LeaseId, Order, Retention, SessionId, SpanTerms, Stakes,
    TenantSlot, Turn,
};
use mainstay_chat::{Change, EndCause, Lived, OpenLoop, Thoughts};
use mainstay_proto::convert::u128_to_wire;
use mainstay_proto::v1;
use mainstay_types::{BlockHashKey, HashKey, NamespaceId, SequenceHash, TenantId, WorkerId};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use ahead::Ahead;
pub(crate) use courier::{Letters, deliver};
pub(crate) use prefetch::{HOLD_MS, Missed, WORTH, fetch_ahead};
pub(crate) use pressure::Flow;
pub(crate) use served::Prefix;
use served::{ServedTable, Turned};

use crate::model::PromptMemory;
use crate::random;
use crate::workers::Workers;

/// Turns that are computed before they come, at one time.
const WARMUPS_MAX: usize = 4;
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

struct State {
    retention: Retention,
    served: ServedTable,
    prefetches: Ahead,
    /// Sessions whose next turns are being computed as far as they are known.
    warmups: Ahead,
}

impl State {
    fn new(memory: PromptMemory) -> Self {
        let (retention, served) = (Retention::default(), ServedTable::new(memory));
        let (prefetches, warmups) = (prefetch::line(), Ahead::new(0, WARMUPS_MAX));
        Self { retention, served, prefetches, warmups }
    }
}

/// What is done ahead of sessions.
#[derive(Clone, Copy)]
enum Line {
    Prefetches,
    Warmups,
}

/// A place among those at work for a session, until it is dropped.
pub(crate) struct Place {
    retainer: Retainer,
    session: SessionId,
    stop: Arc<Notify>,
    line: Line,
}

impl Place {
    /// Resolves once the session is back, or has ended.
    pub(crate) async fn called_off(&self) {
        self.stop.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.retainer.shared.state.lock();
        let ahead = match self.line {
            Line::Prefetches => &mut state.prefetches,
            Line::Warmups => &mut state.warmups,
        };
        ahead.done(self.session, &self.stop);
    }
}

/// The parts of a prompt, by tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Parts {
    /// System prompt and tools, with which other sessions begin too.
    pub(crate) head: u32,
    /// The whole.
    pub(crate) prompt: u32,
    /// What becomes of the model's thoughts in later prompts.
    pub(crate) thoughts: Thoughts,
    /// What the model has said since the user spoke last.
    pub(crate) open_loop: OpenLoop,
}

impl Parts {
    /// Where that begins which goes when the loop is over, if it has a thought: with the loop's first thought of this
    /// prompt, else with the answer. `None` where thoughts stay.
    fn falls_from(&self, loop_from: u32) -> Option<u32> {
        match self.thoughts {
            Thoughts::Stay => None,
            Thoughts::FallAfterLoop if self.open_loop.thought => Some(loop_from),
            Thoughts::FallAfterLoop | Thoughts::Fall => Some(self.prompt),
        }
    }
}

/// What a request wants kept.
#[derive(Clone)]
pub(crate) struct Keeping {
    retainer: Retainer,
    /// The turn of its session's conversation that it is, if it is one.
    turn: Option<Turned>,
    pub(crate) leases: Vec<bytes::Bytes>,
    pub(crate) ranges: Vec<v1::RetentionRange>,
}

impl Keeping {
    /// A worker has taken the request: it holds the session's blocks from here on.
    pub(crate) fn on(&self, worker: WorkerId) {
        let shared = &self.retainer.shared;
        if let Some(turn) = &self.turn {
            shared.state.lock().served.serve(turn, worker, &shared.workers);
        }
    }
}

impl Retainer {
    /// One that knows no session, and what it has to send. Where it is off it keeps quiet.
    pub(crate) fn new(on: bool, workers: Workers) -> (Self, Letters) {
        let (letters, receiver) = mpsc::channel(LETTERS_MAX);
        let shared = Shared {
            on,
            started: Instant::now(),
            state: Mutex::new(State::new(workers.prompt_memory())),
            workers,
            key: OnceLock::new(),
            slots: RandomState::new(),
            letters,
        };
        (Self { shared: Arc::new(shared) }, receiver)
    }

    /// Whether it keeps anything.
    pub(crate) fn is_on(&self) -> bool {
        self.shared.on
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

    fn place(&self, session: SessionId, stop: Arc<Notify>, line: Line) -> Place {
        Place { retainer: self.clone(), session, stop, line }
    }

    /// A place for computing a session's next turn as far as it is known; one of no session is nobody else's. `None`
    /// where too many are at it.
    pub(crate) fn warmup(&self, tenant: &TenantId, session: Option<&str>) -> Option<Place> {
        let named = session.and_then(|session| self.session(tenant.as_str(), session));
        let session = named.unwrap_or_else(|| {
            SessionId(u128::from(random::number()) << 64 | u128::from(random::number()))
        });
        let stop = self.shared.state.lock().warmups.begin(session).ok()?;
        Some(self.place(session, stop, Line::Warmups))
    }

    /// What is known of a session's prefix.
    pub(crate) fn known_prefix(&self, tenant: &TenantId, session: &str) -> Option<Prefix> {
        self.prefix(self.session(tenant.as_str(), session)?)
    }

    /// What a session's request wants kept, after the changes that it made itself were told. `None` for a request of
    /// no session.
    pub(crate) fn keeping(
        &self,
        (tenant, session): (&TenantId, Option<&str>),
        is_side: bool,
        (namespace, hash_key, block_tokens): (NamespaceId, HashKey, u32),
        (parts, blocks): (Parts, &Arc<[SequenceHash]>),
    ) -> Option<Keeping> {
        if !self.shared.on {
            return None;
        }
        self.shared.key.get_or_init(|| hash_key);
        let session = self.session(tenant.as_str(), session?)?;
        let kind = if is_side { Turn::Side } else { Turn::Conversation };
        let slot = self.slot(tenant.as_str());
        let mut state = self.shared.state.lock();
        // What a loop began with is the prompt of its first request, if that is known and this one goes on from it.
        let before = state.served.get(session).filter(|_| parts.open_loop.begun);
        let loop_from = before.and_then(|before| before.loop_of(namespace, block_tokens, blocks));
        let loop_from = loop_from.unwrap_or(parts.prompt);
        let stretches = stretches(parts, loop_from);
        if !is_side {
            state.call_off(session);
        }
        let leases = state.retention.leases(slot, session, kind, &stretches);
        drop(state);
        let (leases, ranges) = to_wire(&leases);
        let turn = (!is_side).then(|| Turned {
            session,
            tenant: tenant.clone(),
            namespace,
            blocks: Arc::clone(blocks),
            block_tokens,
            loop_from,
            thoughts_fall: parts.thoughts != Thoughts::Stay,
        });
        Some(Keeping { retainer: self.clone(), turn, leases, ranges })
    }

    /// Takes a change in a session's life, in the order in which they happen.
    pub(crate) fn told(&self, lived: &Lived) {
        if !self.shared.on {
            return;
        }
        let Some(session) = self.session(&lived.tenant, &lived.key) else { return };
        let (slot, now_ms) = (self.slot(&lived.tenant), self.now_ms());
        let mut state = self.shared.state.lock();
        let stakes = state.served.stakes(session, &self.shared.workers);
        let tools: Vec<&str> = match &lived.change {
            Change::Paused { tools } => tools.iter().map(String::as_str).collect(),
            _ => Vec::new(),
        };
        let thoughts_fall = state.served.get(session).is_some_and(|served| served.thoughts_fall);
        let event = event_of(&lived.change, &tools, stakes, thoughts_fall);
        let orders = state.retention.told(slot, session, event, now_ms);
        if matches!(lived.change, Change::Compacted | Change::Ended { .. }) {
            state.call_off(session);
        }
        let Some(served) = state.served.get(session) else { return };
        for order in &orders {
            let Some(change) = change_of(order, served.namespace) else { continue };
            for worker in served.told_of(event) {
                let letter = Letter { worker: *worker, change: change.clone() };
                if self.shared.letters.try_send(letter).is_err() {
                    metrics::counter!("mainstay_gateway_lease_changes_total", "ended" => "lost")
                        .increment(1);
                }
            }
        }
        if matches!(lived.change, Change::Ended { .. }) {
            state.served.forget(session);
        }
    }
}

impl State {
    /// Nothing has to be done ahead of a session any more: it is back, or has ended.
    fn call_off(&mut self, session: SessionId) {
        if self.prefetches.call_off(session) {
            prefetch::called_off();
        }
        self.warmups.call_off(session);
    }
}

fn stretches(parts: Parts, loop_from: u32) -> Vec<(Class, std::ops::Range<usize>)> {
    let (head, prompt) = (parts.head.min(parts.prompt) as usize, parts.prompt as usize);
    let end = u32::MAX as usize;
    // What follows a thought is of its kind: a block can't go before those after it, and they are as dead.
    let (class, from) = match parts.falls_from(loop_from) {
        Some(from) => (Class::Reasoning, (from as usize).clamp(head, prompt)),
        None => (Class::Output, prompt),
    };
    let all = [(Class::System, 0..head), (Class::History, head..from), (class, from..end)];
    all.into_iter().filter(|(_, stretch)| !stretch.is_empty()).collect()
}

fn event_of<'a>(
    change: &Change,
    tools: &'a [&'a str],
    stakes: Stakes,
    thoughts_fall: bool,
) -> Event<'a> {
    match change {
        Change::Rested { thought } => Event::Rested { thoughts_fall: *thought && thoughts_fall },
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

/// `None` for what is no lease's.
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
mod prefetch_tests;
#[cfg(test)]
mod tests;
