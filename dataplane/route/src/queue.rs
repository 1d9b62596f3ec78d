//! Requests that wait until a worker has room: in which order they go, who shares, and who is turned away.
//!
//! A worker's own queue serves whoever was sent first, and what was sent cannot be taken back; so while every worker
//! has enough to do, requests wait here, one queue for the workers of one model. The highest tier goes first; of it the
//! tenant who got the least service while others waited; of that tenant's requests the first by the order that is set.
//! While somebody has waited for as long as anybody may, tiers of others count no more: the tenant who got the least
//! goes, and in every fourth turn it is the one of his requests that is overdue. That is the bound on starvation, and no
//! way around the shares: who is overdue because he asks for much does not hold up who asks for little. The turns
//! between are for his urgent ones: where all wait for long all are overdue, and nobody would be urgent any more.
//! A tenant who comes back is taken to have got what the least served of those who wait has: nobody saves up. Limits
//! turn away what would wait in vain, and say when to come again by how quickly the queue moves. What others do there is
//! told to nobody.
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
/// While somebody is overdue, one of so many turns is for those who are.
const OVERDUE_EVERY: u32 = 4;
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
    /// Who has waited for so long goes soon, by the tenants' shares, whatever its tier and priority.
    pub starvation_ms: u64,
    /// Requests that wait at most, of all and of one tenant.
    pub requests_max: usize,
    /// Of one tenant.
    pub tenant_requests_max: usize,
    /// Tokens to compute that wait at most. A tenant's share of them is his share of the requests.
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

    /// Tokens of one tenant that wait at most.
    #[must_use]
    pub fn tenant_tokens_max(&self) -> u64 {
        let of = self.requests_max.clamp(1, WAITING_MAX);
        let own = self.tenant_requests_max.min(of);
        let tokens = u128::from(self.tokens_max) * own as u128 / of as u128;
        // A share is no more than the whole.
        u64::try_from(tokens).unwrap_or(self.tokens_max)
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
        self.cost_with(self.output_tokens)
    }

    fn cost_with(&self, output_tokens: u32) -> u64 {
        let output = u64::from(output_tokens) * OUTPUT_TOKEN_COST;
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
    /// Too many wait, or too long ones; how many others have there is not for everybody to know.
    #[error("too many requests wait already; try again in {retry_after_ms} ms")]
    Full {
        /// When there may be room.
        retry_after_ms: u64,
    },
    /// Too many of this tenant wait, or too long ones.
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
            Self::Full { retry_after_ms } | Self::TenantFull { retry_after_ms, .. } => {
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
    by_arrival: BTreeSet<(u64, u64)>,
    /// What it got since it last had nothing waiting, by its weight.
    served: f64,
    /// What it was taken to have got when it last came back: nothing that is given back counts below it.
    served_floor: f64,
    tokens: u64,
    pace: Pace,
}

impl Tenant {
    /// When the first of its requests came.
    fn since(&self) -> (u64, u64) {
        self.by_arrival.first().copied().unwrap_or((u64::MAX, u64::MAX))
    }
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
    /// Turns since one was for those who are overdue, while there are any.
    passed: Option<u32>,
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

    /// Lets a request wait. One whose name waits already goes, unless the new one is turned away.
    ///
    /// # Errors
    /// If too many wait.
    pub fn offer(&mut self, now_ms: u64, waiting: Waiting) -> Result<(), Refusal> {
        let same = self.turns.get(&waiting.id).copied();
        let same = same.and_then(|turn| self.take(turn));
        let again = same.is_some();
        if let Err(refusal) = self.admit(now_ms, &waiting) {
            if let Some(entry) = same {
                self.put(entry);
            }
            return Err(refusal);
        }
        self.tidy();
        if self.is_empty() && !again {
            self.pace.resume(now_ms);
        }
        self.last_turn += 1;
        let turn = self.last_turn;
        let place = (u8::MAX - waiting.tier, self.key(now_ms, &waiting), turn);
        // Nobody saves up while nothing of his waits.
        let floor = self.tenants.values().filter(|tenant| !tenant.places.is_empty());
        let floor = floor.map(|tenant| tenant.served).fold(f64::INFINITY, f64::min);
        let tenant = self.tenants.entry(waiting.tenant.clone()).or_default();
        if tenant.places.is_empty() {
            tenant.pace.resume(now_ms);
            if floor < f64::INFINITY {
                tenant.served = tenant.served.max(floor);
                tenant.served_floor = tenant.served_floor.max(floor);
            }
        }
        self.put(Entry { waiting, arrived_ms: now_ms, place });
        Ok(())
    }

    fn put(&mut self, entry: Entry) {
        let Entry { ref waiting, arrived_ms, place } = entry;
        let turn = place.2;
        let tenant = self.tenants.entry(waiting.tenant.clone()).or_default();
        tenant.places.insert(place);
        tenant.by_arrival.insert((arrived_ms, turn));
        tenant.tokens += u64::from(waiting.uncached_tokens);
        self.tokens += u64::from(waiting.uncached_tokens);
        self.by_arrival.insert((arrived_ms, turn));
        self.turns.insert(waiting.id, turn);
        self.entries.insert(turn, entry);
    }

    fn admit(&self, now_ms: u64, waiting: &Waiting) -> Result<(), Refusal> {
        let all = self.len();
        let more = self.tokens.saturating_add(u64::from(waiting.uncached_tokens));
        // A single one is let in however long it is.
        let too_long = more > self.settings.tokens_max && all > 0;
        if all >= self.settings.requests_max.min(WAITING_MAX) || too_long {
            let retry_after_ms = self.pace.until_ms(now_ms, self.tokens);
            return Err(Refusal::Full { retry_after_ms });
        }
        let Some(tenant) = self.tenants.get(&waiting.tenant) else { return Ok(()) };
        let own = tenant.places.len();
        let more = tenant.tokens.saturating_add(u64::from(waiting.uncached_tokens));
        let too_long = more > self.settings.tenant_tokens_max() && own > 0;
        if own >= self.settings.tenant_requests_max || too_long {
            // By how quickly its own go, which tells nothing of others.
            let retry_after_ms = tenant.pace.until_ms(now_ms, tenant.tokens);
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
                self.programs.order(&waiting.tenant, waiting.program).to_bits()
            }
        }
    }

    /// The request that goes now; only asked while some worker has room. `None` if nobody waits.
    pub fn next(&mut self, now_ms: u64) -> Option<Waiting> {
        let turn = self.due(now_ms).or_else(|| self.fair())?;
        let entry = self.take(turn)?;
        let waiting = entry.waiting;
        let (cost, tokens) = (waiting.cost() as f64, u64::from(waiting.uncached_tokens));
        if let Some(tenant) = self.tenants.get_mut(&waiting.tenant) {
            tenant.served += cost / waiting.weight();
            tenant.pace.went(now_ms, tokens);
        }
        self.attain(now_ms, &waiting, cost);
        self.pace.went(now_ms, tokens);
        self.tidy();
        Some(waiting)
    }

    /// A request that went was answered at more, or less, length than was expected.
    pub fn answered(&mut self, now_ms: u64, waiting: &Waiting, output_tokens: u32) {
        let cost = waiting.cost_with(output_tokens) as f64 - waiting.cost() as f64;
        if let Some(tenant) = self.tenants.get_mut(&waiting.tenant) {
            let served = tenant.served + cost / waiting.weight();
            tenant.served = served.max(tenant.served_floor);
        }
        self.attain(now_ms, waiting, cost);
    }

    /// A run got more, or some of it back: those of its requests that wait go by that.
    fn attain(&mut self, now_ms: u64, waiting: &Waiting, cost: f64) {
        self.programs.add(now_ms, &waiting.tenant, waiting.program, cost);
        if self.settings.order != QueueOrder::LeastAttained || waiting.program == 0 {
            return;
        }
        let key = self.programs.order(&waiting.tenant, waiting.program).to_bits();
        let Some(tenant) = self.tenants.get_mut(&waiting.tenant) else { return };
        let Tenant { places, by_arrival, .. } = tenant;
        for (_, turn) in by_arrival.iter() {
            if let Some(entry) = self.entries.get_mut(turn)
                && entry.waiting.program == waiting.program
            {
                places.remove(&entry.place);
                entry.place.1 = key;
                places.insert(entry.place);
            }
        }
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

    /// While somebody has waited for as long as anybody may: the next of the least served tenant, whatever the tiers of
    /// others; in some turns the one of it that came first, if that is overdue. Of tenants that got the same the one who
    /// waits the longest.
    fn due(&mut self, now_ms: u64) -> Option<u64> {
        if self.overdue_at_ms()? > now_ms {
            self.passed = None;
            return None;
        }
        let passed = self.passed.map_or(OVERDUE_EVERY, |passed| passed + 1);
        let by_age = passed >= OVERDUE_EVERY;
        self.passed = Some(if by_age { 0 } else { passed });
        let waiting = self.tenants.values().filter(|tenant| !tenant.places.is_empty());
        let least = waiting
            .min_by(|a, b| a.served.total_cmp(&b.served).then_with(|| a.since().cmp(&b.since())))?;
        let (arrived_ms, turn) = least.since();
        let overdue = arrived_ms.saturating_add(self.settings.starvation_ms) <= now_ms;
        if by_age && overdue { Some(turn) } else { least.places.first().map(|head| head.2) }
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
            tenant.by_arrival.remove(&(entry.arrived_ms, turn));
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
