//! What sessions want kept, as gateways do it: leases with their requests, orders to the workers that hold their blocks.
//!
//! The rules are `mainstay_block`'s, and so is what is learnt. Here an agent is a session; its turns become the changes
//! that a gateway would see in its requests and answers, and orders reach workers at once. Two things differ from
//! gateways: how much a memory is asked for comes from its pool's own figures, where gateways know sums only, and
//! what the trace does not name (tools) is one tool. Prefetches are ordered and not carried out, there as here.

use std::collections::HashMap;
use std::ops::Range;

use foldhash::fast::FixedState;
use mainstay_block::{
    Amendment, Class, End, Ending, Event, LeaseId, Order, Pressure, Retention, SessionId,
    SpanTerms, Stakes, TenantSlot,
};
use mainstay_engine_abi::sdk::{
    LeaseChange, LeaseEnd, RetentionClass, RetentionRange, TOKENS_TO_END,
};
use mainstay_route::WorkerLoad;
use mainstay_sim_model::Figures;

use crate::live::NAMESPACE;
use crate::rng::mix;
use crate::trace::Role;

/// Workers of a session that are told of its changes, as gateways tell them.
const WORKERS_MAX: usize = 4;
/// The shortest stretch over which a memory is looked at.
const LOOK_US: u64 = 10_000_000;
/// All sessions are one tenant's.
const TENANT: TenantSlot = TenantSlot(1);

/// A session and an agent of it, by their places.
pub(super) type Agent = (u32, u32);
/// Changes, and the workers that are told of them.
pub(super) type Letters = Vec<(u32, LeaseChange)>;

struct Known {
    session: SessionId,
    /// Of its last prompt.
    blocks: u32,
    /// The last one last.
    workers: Vec<u32>,
    /// Its subagents whose results it has not taken yet.
    ended: Vec<u32>,
}

#[derive(Clone)]
struct Look {
    at_us: u64,
    figures: Figures,
    pressure: Pressure,
}

/// Follows all sessions.
pub(super) struct Keeper {
    retention: Retention,
    known: HashMap<Agent, Known, FixedState>,
    looks: Vec<Look>,
}

/// A worker as it is looked at when a session begins to wait.
pub(super) struct Sight<'a> {
    pub(super) worker: u32,
    pub(super) load: WorkerLoad,
    pub(super) figures: &'a Figures,
    pub(super) block_tokens: u32,
}

impl Keeper {
    pub(super) fn new(workers: u32) -> Self {
        let pressure = Pressure { kept_ms: None, used_share: 1.0 };
        let look = Look { at_us: 0, figures: Figures::default(), pressure };
        Self {
            retention: Retention::default(),
            known: HashMap::default(),
            looks: vec![look; workers as usize],
        }
    }

    /// An agent asks: what its request changes. Subagents whose results it brings are finished.
    pub(super) fn asks(&mut self, agent: Agent, serial: u64, role: Role, now_us: u64) -> Letters {
        let mut letters = Letters::new();
        let Some(known) = self.known.get_mut(&agent) else {
            let name = mix(mix(serial ^ 0x6167_656e) ^ u64::from(agent.1));
            let session = SessionId(u128::from(name) << 64 | u128::from(mix(name)));
            let (blocks, workers, ended) = (0, Vec::new(), Vec::new());
            self.known.insert(agent, Known { session, blocks, workers, ended });
            self.told(agent, Event::Started, now_us, &mut letters);
            return letters;
        };
        for child in std::mem::take(&mut known.ended) {
            let child = (agent.0, child);
            self.told(child, Event::Ended(Ending::Finished), now_us, &mut letters);
            self.known.remove(&child);
        }
        match role {
            Role::Continues => self.told(agent, Event::Resumed, now_us, &mut letters),
            Role::Anew => self.told(agent, Event::Compacted, now_us, &mut letters),
            Role::Beside => {}
        }
        letters
    }

    /// The names of a request's leases, and what they are on.
    pub(super) fn wishes(
        &self,
        agent: Agent,
        role: Role,
        head_tokens: u32,
        prompt_tokens: u32,
    ) -> (Vec<u128>, Vec<RetentionRange>) {
        let Some(known) = self.known.get(&agent) else { return Default::default() };
        let (head, prompt) = (head_tokens.min(prompt_tokens) as usize, prompt_tokens as usize);
        let parts: Vec<(Class, Range<usize>)> = [
            (Class::System, 0..head),
            (Class::History, head..prompt),
            (Class::Output, prompt..TOKENS_TO_END as usize),
        ]
        .into_iter()
        .filter(|(_, part)| !part.is_empty())
        .collect();
        let turn = match role {
            Role::Continues | Role::Anew => mainstay_block::Turn::Conversation,
            Role::Beside => mainstay_block::Turn::Side,
        };
        let leases = self.retention.leases(TENANT, known.session, turn, &parts);
        let ranges = leases.iter().enumerate().flat_map(|(at, (_, spans))| {
            spans.iter().map(move |span| range_of(span, at as u8 + 1))
        });
        (leases.iter().map(|(id, _)| id.0).collect(), ranges.collect())
    }

    /// A worker has taken an agent's request of so many blocks.
    pub(super) fn served(&mut self, agent: Agent, worker: u32, blocks: u32) {
        let Some(known) = self.known.get_mut(&agent) else { return };
        known.blocks = blocks;
        known.workers.retain(|known| *known != worker);
        if known.workers.len() >= WORKERS_MAX {
            known.workers.remove(0);
        }
        known.workers.push(worker);
    }

    /// An agent waits for tools.
    pub(super) fn pauses(
        &mut self,
        agent: Agent,
        tool: &str,
        sight: &Sight<'_>,
        now_us: u64,
    ) -> Letters {
        let mut letters = Letters::new();
        let Some(known) = self.known.get(&agent) else { return letters };
        let blocks = known.blocks;
        let token_ms = f64::from(sight.load.prefill_us_per_token) / 1_000.0;
        let wait_ms = sight.load.waiting_prefill_tokens as f64 * token_ms;
        let block_ms = token_ms * f64::from(sight.block_tokens);
        let pressure = self.pressure(sight.worker, sight.figures, now_us);
        let stakes = Stakes::of(blocks, block_ms, wait_ms, pressure);
        let tools = [tool];
        self.told(agent, Event::Paused { tools: &tools, stakes }, now_us, &mut letters);
        letters
    }

    /// A subagent has said its last word; `parent` takes its result with its next request.
    pub(super) fn subagent_ended(&mut self, agent: Agent, parent: u32) {
        if let Some(parent) = self.known.get_mut(&(agent.0, parent)) {
            parent.ended.push(agent.1);
        }
    }

    /// A session of so many agents is over; nobody says so, and its leases run out.
    pub(super) fn forget(&mut self, slot: u32, agents: u32) {
        (0..agents).for_each(|agent| drop(self.known.remove(&(slot, agent))));
    }

    fn pressure(&mut self, worker: u32, figures: &Figures, now_us: u64) -> Pressure {
        let Some(look) = self.looks.get_mut(worker as usize) else {
            return Pressure { kept_ms: None, used_share: 1.0 };
        };
        if now_us.saturating_sub(look.at_us) >= LOOK_US {
            let pressure = Pressure::between(&look.figures, figures);
            *look = Look { at_us: now_us, figures: *figures, pressure };
        }
        look.pressure
    }

    fn told(&mut self, agent: Agent, event: Event<'_>, now_us: u64, letters: &mut Letters) {
        let Some(known) = self.known.get(&agent) else { return };
        let orders = self.retention.told(TENANT, known.session, event, now_us / 1_000);
        for change in orders.iter().filter_map(change_of) {
            letters.extend(known.workers.iter().map(|worker| (*worker, change.clone())));
        }
    }
}

fn class_of(class: Class) -> RetentionClass {
    match class {
        Class::Plain | Class::Finished | Class::Compacted => RetentionClass::Plain,
        Class::System => RetentionClass::System,
        Class::Tools => RetentionClass::Tools,
        Class::History => RetentionClass::History,
        Class::UserTurn => RetentionClass::UserTurn,
        Class::Output => RetentionClass::Output,
        Class::Reasoning => RetentionClass::Reasoning,
        Class::Side => RetentionClass::Side,
    }
}

fn milliseconds(duration_ms: Option<u64>) -> u32 {
    duration_ms.map_or(0, |ms| u32::try_from(ms).unwrap_or(u32::MAX).max(1))
}

fn tokens(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(TOKENS_TO_END)
}

fn range_of(span: &SpanTerms, lease: u8) -> RetentionRange {
    RetentionRange {
        start: tokens(span.blocks.start),
        end: tokens(span.blocks.end),
        priority: span.priority,
        after: Some(span.after),
        class: class_of(span.class),
        lease,
        duration_ms: milliseconds(span.duration_ms),
    }
}

fn amended(amendment: &Amendment) -> RetentionRange {
    let Amendment { class, priority, after, duration_ms } = *amendment;
    let span = SpanTerms { blocks: 0..usize::MAX, class, priority, after, duration_ms };
    range_of(&span, 0)
}

/// `None` for what workers are not told.
fn change_of(order: &Order) -> Option<LeaseChange> {
    let change = |lease: &LeaseId, end, ranges| LeaseChange {
        namespace: NAMESPACE,
        lease_id: lease.0,
        end,
        ranges,
    };
    Some(match order {
        Order::Amend { lease, amendments } => {
            // What a lease becomes when it has ended is no kind of its own.
            let is_kind = |a: &&Amendment| !matches!(a.class, Class::Finished | Class::Compacted);
            change(lease, None, amendments.iter().filter(is_kind).map(amended).collect())
        }
        Order::End { lease, end } => {
            let end = match end {
                End::Released => LeaseEnd::Released,
                End::Finished => LeaseEnd::Finished,
                End::Compacted => LeaseEnd::Compacted,
            };
            change(lease, Some(end), Vec::new())
        }
        Order::Prefetch { .. } => return None,
    })
}
