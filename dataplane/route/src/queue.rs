//! Requests that wait until a worker has room: in which order they go, who shares, and who is turned away.
//!
//! A worker's own queue serves whoever was sent first, and what was sent cannot be taken back; so while every worker
//! has enough to do, requests wait here, one queue for the workers of one model. Whoever has waited for the longest
//! that anybody may goes next, whatever else holds: that is the bound on starvation. Otherwise the highest tier goes
//! first; of it the tenant who got the least service while others waited; of that tenant's requests the first by the
//! order that is set. A tenant who comes back is taken to have got what the least served of those who wait has: nobody
//! saves up. Limits turn away what would wait in vain, and say when to come again by how quickly the queue moves.
//!
//! Pure: the caller asks [`RequestQueue::next`] while [`crate::Router::has_room`] says yes. Time that goes back counts
//! as no time; all sums stop at the largest number.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use mainstay_types::{ErrorCode, TenantId};
use thiserror::Error;

mod pace;
mod programs;

use pace::Pace;
use programs::Programs;

/// Requests that wait at most, whatever the settings say.
pub const WAITING_MAX: usize = 65_536;
/// Tenants with nothing waiting whose service is remembered, before all of them are forgotten.
const IDLE_TENANTS_MAX: usize = 4_096;
/// A priority counts for an hour at most.
const PRIORITY_S_MAX: i32 = 3_600;
/// What a token that is said costs beside one that is read.
const OUTPUT_TOKEN_COST: u64 = 2;
/// The least and the most weight of a tenant.
const WEIGHT_MIN: f64 = 0.01;
const WEIGHT_MAX: f64 = 100.0;

/// In which order the requests of one tenant and tier go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum QueueOrder {
    /// As they came, as if each had come so many seconds earlier as its priority says.
    #[default]
    Arrival,
    /// Those with the least to compute first, where a priority of 1 makes half of it, of 2 a third, and so on.
    Shortest,
    /// Those of the program that got the least service lately, so that a long agent does not hold up short ones.
    LeastAttained,
}

impl QueueOrder {
    /// All orders.
    pub const ALL: [Self; 3] = [Self::Arrival, Self::Shortest, Self::LeastAttained];

    /// The name in settings and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Arrival => "arrival",
            Self::Shortest => "wspt",
            Self::LeastAttained => "least-attained",
        }
    }

    /// The reverse of [`QueueOrder::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|order| order.name() == name)
    }
}

/// How a queue behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueueSettings {
    /// A worker is busy while more than this share of one step's tokens waits there. `None`: nobody ever waits here.
    pub threshold: Option<f64>,
    /// Tokens that a worker computes in one step at most.
    pub step_tokens: u32,
    /// The order within a tenant and tier.
    pub order: QueueOrder,
    /// Who has waited for so long goes next.
    pub starvation_ms: u64,
    /// Requests that wait at most, of all and of one tenant.
    pub requests_max: usize,
    /// Of one tenant.
    pub tenant_requests_max: usize,
    /// Tokens to compute that wait at most.
    pub tokens_max: u64,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            threshold: None,
            step_tokens: 8_192,
            order: QueueOrder::Arrival,
            starvation_ms: 10_000,
            requests_max: 4_096,
            tenant_requests_max: 1_024,
            tokens_max: 64 << 20,
        }
    }
}

impl QueueSettings {
    /// Tokens that may wait at a worker which still has room; `None` if the queue is off. What is no number is 0.
    #[must_use]
    pub fn room_tokens(&self) -> Option<f64> {
        self.threshold.map(|share| share.max(0.0) * f64::from(self.step_tokens))
    }
}

/// A request that may have to wait.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    /// Names it for the caller.
    pub id: u64,
    /// Who pays.
    pub tenant: TenantId,
    /// How much more of the service than others the tenant gets; 1 is usual.
    pub weight: f64,
    /// The agent's run that it belongs to, as a number within the tenant; 0 if it belongs to none.
    pub program: u64,
    /// Seconds by which it goes earlier, or later, among the tenant's own.
    pub priority: i32,
    /// A higher one goes before all lower ones.
    pub tier: u8,
    /// Prompt tokens that are expected to be computed.
    pub uncached_tokens: u32,
    /// Tokens that the answer is expected to have; 0 if nobody said.
    pub output_tokens: u32,
}

impl Waiting {
    fn cost(&self) -> u64 {
        let output = u64::from(self.output_tokens) * OUTPUT_TOKEN_COST;
        u64::from(self.uncached_tokens).saturating_add(output).max(1)
    }

    fn weight(&self) -> f64 {
        // What is no number is usual.
        let weight = if self.weight.is_nan() { 1.0 } else { self.weight };
        weight.clamp(WEIGHT_MIN, WEIGHT_MAX)
    }
}

/// Why a request may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Too many wait.
    #[error("{waiting} requests wait already; try again in {retry_after_ms} ms")]
    Full {
        /// How many.
        waiting: usize,
        /// When there may be room.
        retry_after_ms: u64,
    },
    /// Too many of this tenant wait.
    #[error("{waiting} requests of this tenant wait already; try again in {retry_after_ms} ms")]
    TenantFull {
        /// How many.
        waiting: usize,
        /// When there may be room.
        retry_after_ms: u64,
    },
}

impl Refusal {
    /// The code that clients see.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        ErrorCode::ResourceExhausted
    }

    /// When to come again.
    #[must_use]
    pub const fn retry_after_ms(self) -> u64 {
        match self {
            Self::Full { retry_after_ms, .. } | Self::TenantFull { retry_after_ms, .. } => {
                retry_after_ms
            }
        }
    }
}

/// The place of a request among those of its tenant: its tier from the highest down, its key, its turn.
type Place = (u8, u64, u64);

#[derive(Debug, Clone)]
struct Entry {
    waiting: Waiting,
    arrived_ms: u64,
    place: Place,
}

#[derive(Debug, Clone, Default)]
struct Tenant {
    places: BTreeSet<Place>,
    /// What it got since it last had nothing waiting, by its weight.
    served: f64,
    tokens: u64,
}

/// Requests that wait, for the workers of one model.
#[derive(Debug, Clone, Default)]
pub struct RequestQueue {
    settings: QueueSettings,
    /// By their turn.
    entries: HashMap<u64, Entry>,
    turns: HashMap<u64, u64>,
    by_arrival: BTreeSet<(u64, u64)>,
    tenants: BTreeMap<TenantId, Tenant>,
    programs: Programs,
    pace: Pace,
    tokens: u64,
    last_turn: u64,
}

impl RequestQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(settings: QueueSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// How it behaves.
    #[must_use]
    pub const fn settings(&self) -> &QueueSettings {
        &self.settings
    }

    /// Lets a request wait. One whose name waits already takes its place.
    ///
    /// # Errors
    /// If too many wait.
    pub fn offer(&mut self, now_ms: u64, waiting: Waiting) -> Result<(), Refusal> {
        if self.remove(waiting.id).is_none() {
            self.admit(now_ms, &waiting)?;
        }
        self.last_turn += 1;
        let turn = self.last_turn;
        let place = (u8::MAX - waiting.tier, self.key(now_ms, &waiting), turn);
        // Nobody saves up while nothing of his waits.
        let floor = self.tenants.values().filter(|tenant| !tenant.places.is_empty());
        let floor = floor.map(|tenant| tenant.served).fold(f64::INFINITY, f64::min);
        let tenant = self.tenants.entry(waiting.tenant.clone()).or_default();
        if tenant.places.is_empty() && floor < f64::INFINITY {
            tenant.served = tenant.served.max(floor);
        }
        tenant.places.insert(place);
        tenant.tokens += u64::from(waiting.uncached_tokens);
        self.tokens += u64::from(waiting.uncached_tokens);
        self.by_arrival.insert((now_ms, turn));
        self.turns.insert(waiting.id, turn);
        self.entries.insert(turn, Entry { waiting, arrived_ms: now_ms, place });
        Ok(())
    }

    fn admit(&self, now_ms: u64, waiting: &Waiting) -> Result<(), Refusal> {
        let all = self.len();
        let more = self.tokens.saturating_add(u64::from(waiting.uncached_tokens));
        // A single one is let in however long it is.
        let too_long = more > self.settings.tokens_max && all > 0;
        if all >= self.settings.requests_max.min(WAITING_MAX) || too_long {
            let retry_after_ms = self.pace.until_ms(now_ms, self.tokens);
            return Err(Refusal::Full { waiting: all, retry_after_ms });
        }
        let Some(tenant) = self.tenants.get(&waiting.tenant) else { return Ok(()) };
        let own = tenant.places.len();
        if own >= self.settings.tenant_requests_max {
            // Those who wait share what the queue does.
            let sharing = self.tenants.values().filter(|tenant| !tenant.places.is_empty());
            let tokens = tenant.tokens.saturating_mul(sharing.count() as u64).min(self.tokens);
            let retry_after_ms = self.pace.until_ms(now_ms, tokens);
            return Err(Refusal::TenantFull { waiting: own, retry_after_ms });
        }
        Ok(())
    }

    fn key(&self, now_ms: u64, waiting: &Waiting) -> u64 {
        let priority = waiting.priority.clamp(-PRIORITY_S_MAX, PRIORITY_S_MAX);
        match self.settings.order {
            QueueOrder::Arrival => {
                // An hour up, so that nothing falls below 0.
                let later_ms = (PRIORITY_S_MAX - priority).unsigned_abs();
                now_ms.saturating_add(u64::from(later_ms) * 1_000)
            }
            QueueOrder::Shortest => {
                let weight = 1.0 + f64::from(priority.max(0));
                // The bits of a number that is not negative are in its order.
                (f64::from(waiting.uncached_tokens) / weight).to_bits()
            }
            QueueOrder::LeastAttained => {
                self.programs.attained(now_ms, &waiting.tenant, waiting.program).to_bits()
            }
        }
    }

    /// The request that goes now; only asked while some worker has room. `None` if nobody waits.
    pub fn next(&mut self, now_ms: u64) -> Option<Waiting> {
        let turn = self.overdue(now_ms).or_else(|| self.fair())?;
        let entry = self.take(turn)?;
        let waiting = entry.waiting;
        let cost = waiting.cost();
        if let Some(tenant) = self.tenants.get_mut(&waiting.tenant) {
            tenant.served += cost as f64 / waiting.weight();
        }
        self.programs.add(now_ms, &waiting.tenant, waiting.program, cost);
        self.pace.went(now_ms, u64::from(waiting.uncached_tokens));
        self.tidy();
        Some(waiting)
    }

    /// A request that went was answered at more, or less, length than was expected.
    pub fn answered(&mut self, now_ms: u64, waiting: &Waiting, output_tokens: u32) {
        let more = u64::from(output_tokens.saturating_sub(waiting.output_tokens));
        let cost = more.saturating_mul(OUTPUT_TOKEN_COST);
        if let Some(tenant) = self.tenants.get_mut(&waiting.tenant) {
            tenant.served += cost as f64 / waiting.weight();
        }
        self.programs.add(now_ms, &waiting.tenant, waiting.program, cost);
    }

    /// The request's client is gone.
    pub fn remove(&mut self, id: u64) -> Option<Waiting> {
        let turn = self.turns.get(&id).copied()?;
        let entry = self.take(turn)?;
        self.tidy();
        Some(entry.waiting)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Tokens to compute that wait, for metrics.
    #[must_use]
    pub const fn tokens(&self) -> u64 {
        self.tokens
    }

    /// When somebody becomes overdue, for a caller that wants to be woken; `None` if nobody waits.
    #[must_use]
    pub fn overdue_at_ms(&self) -> Option<u64> {
        let (arrived_ms, _) = self.by_arrival.first()?;
        Some(arrived_ms.saturating_add(self.settings.starvation_ms))
    }

    /// The one that came first, if it has waited for as long as anybody may.
    fn overdue(&self, now_ms: u64) -> Option<u64> {
        let (_, turn) = *self.by_arrival.first()?;
        (self.overdue_at_ms()? <= now_ms).then_some(turn)
    }

    /// The first of the tenant that got the least, among those with a request of the highest tier.
    fn fair(&self) -> Option<u64> {
        let heads =
            self.tenants.values().filter_map(|tenant| Some((tenant, tenant.places.first()?)));
        let least = heads.min_by(|(a, head_a), (b, head_b)| {
            let tiers = head_a.0.cmp(&head_b.0);
            tiers.then(a.served.total_cmp(&b.served)).then(head_a.2.cmp(&head_b.2))
        });
        least.map(|(_, head)| head.2)
    }

    fn take(&mut self, turn: u64) -> Option<Entry> {
        let entry = self.entries.remove(&turn)?;
        self.turns.remove(&entry.waiting.id);
        self.by_arrival.remove(&(entry.arrived_ms, turn));
        let tokens = u64::from(entry.waiting.uncached_tokens);
        self.tokens -= tokens;
        if let Some(tenant) = self.tenants.get_mut(&entry.waiting.tenant) {
            tenant.places.remove(&entry.place);
            tenant.tokens -= tokens;
        }
        Some(entry)
    }

    /// Forgets what tenants got once nobody waits, and of those who got least anyway.
    fn tidy(&mut self) {
        if self.is_empty() {
            self.tenants.clear();
            return;
        }
        if self.tenants.len() <= 2 * self.entries.len() + 16 {
            return;
        }
        let waiting = self.tenants.values().filter(|tenant| !tenant.places.is_empty());
        let floor = waiting.map(|tenant| tenant.served).fold(f64::INFINITY, f64::min);
        self.tenants.retain(|_, tenant| !tenant.places.is_empty() || tenant.served > floor);
        if self.tenants.len() > self.entries.len() + IDLE_TENANTS_MAX {
            self.tenants.retain(|_, tenant| !tenant.places.is_empty());
        }
    }
}

#[cfg(test)]
mod tests;
