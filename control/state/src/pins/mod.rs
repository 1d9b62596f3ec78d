//! Pins: what is promised, to whom, until when, and who keeps it.
//!
//! A pin ends in three ways only: its time is over in cluster time, somebody releases it, or a later pin of its
//! session takes its place. The last is allowed only to a pin that promises at least as much (the same blocks
//! and maybe more, as long, on as many workers), so that no promise is ever cut short by accident; branches of a
//! conversation are kept side by side, up to [`OWNER_PINS_MAX`], and one more is refused. Ended pins are remembered for a while, because a
//! retry of a finished pin must not begin it anew, and because people ask what became of it.

mod orders;
mod put;
mod scope;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use foldhash::fast::RandomState;
use mainstay_types::{
    ClusterTime, ErrorCode, LogIndex, NamespaceId, PinId, PinRequest, PinState, SequenceHash,
    SessionId, TenantId, WorkerId,
};

use crate::limits::Limits;
use crate::outcome::{Outcome, Refusal};
use crate::workers::Workers;

pub use scope::MissingCopies;
pub(crate) use scope::matters;

pub use orders::{Keeping, ORDER_MS, Order, PIN_ORDERS_MAX};
pub(crate) use put::token_bytes;

/// Live pins that one session may have in one namespace: branches of its conversation.
pub const OWNER_PINS_MAX: usize = 8;
/// Ended pins that are remembered.
pub const ENDED_PINS_MAX: usize = 1_024;
/// Blocks of all ended pins that are remembered.
pub const ENDED_BLOCKS_MAX: u64 = 1_048_576;

/// A pin as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// What was asked for.
    pub request: PinRequest,
    /// Where it stands.
    pub state: PinState,
    /// Cluster time when it was made.
    pub created_ms: u64,
    /// Cluster time when it ends.
    pub expires_ms: u64,
    /// The entry that made it.
    pub created_index: LogIndex,
    /// The entry that last changed its state, its end or its holders.
    pub changed_index: LogIndex,
    /// How many of its blocks each worker keeps; workers that keep none are not named.
    pub holders: BTreeMap<WorkerId, u32>,
    /// It was active at least once.
    pub ever_active: bool,
    /// What the keeper does for it.
    pub keeping: Keeping,
    /// Why it ended; empty while it lives.
    pub reason: String,
}

impl Pin {
    /// Whether its promise holds.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !matches!(self.state, PinState::Expired | PinState::Released | PinState::Denied)
    }

    /// The state that the holders of a live pin amount to.
    pub(crate) fn derive_state(&mut self, workers: &Workers) {
        self.state = if self.missing(workers).is_empty() {
            self.ever_active = true;
            self.keeping.settle();
            PinState::Active
        } else if self.ever_active {
            PinState::Degraded
        } else if self.holders.is_empty() {
            PinState::Pending
        } else {
            PinState::Partial
        };
    }

    pub(crate) fn outcome(&self) -> Outcome {
        Outcome::Pin { id: self.request.id, state: self.state, expires_ms: self.expires_ms }
    }

    fn owner_key(&self) -> Option<OwnerKey> {
        owner_key(&self.request)
    }
}

/// Sessions are names within a tenant, and a session may talk to several models.
type OwnerKey = (TenantId, SessionId, NamespaceId);

fn owner_key(request: &PinRequest) -> Option<OwnerKey> {
    let owner = request.owner.clone()?;
    Some((request.tenant.clone(), owner, request.namespace))
}

/// What a tenant's live pins use of its budgets.
#[derive(Debug, Clone, Default)]
struct TenantUse {
    pins: u32,
    /// How many live pins name each block. Only counts are read, so its order is nowhere to be seen.
    blocks: HashMap<SequenceHash, u32, RandomState>,
    /// What the tokens of its live pins take.
    token_bytes: u64,
}

/// A set of blocks, which are hashes under a key that no tenant knows: a quick hasher is enough.
type BlockSet = HashSet<SequenceHash, RandomState>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Pins {
    all: BTreeMap<PinId, Pin>,
    /// Live pins by their end.
    expiries: BTreeSet<(u64, PinId)>,
    /// Live pins with an owner, oldest first.
    owners: BTreeMap<OwnerKey, BTreeSet<(LogIndex, PinId)>>,
    tenants: BTreeMap<TenantId, TenantUse>,
    live_blocks: u64,
    /// What the tokens of all live pins take.
    token_bytes: u64,
    /// Live pins that lack copies and have tokens.
    short: BTreeSet<PinId>,
    /// Ended pins, the longest ended first.
    ended: VecDeque<PinId>,
    ended_blocks: u64,
}

impl Pins {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pin> {
        self.all.values()
    }

    /// Live pins of one owner, oldest first.
    pub(crate) fn of_owner(
        &self,
        tenant: &TenantId,
        owner: &SessionId,
        namespace: NamespaceId,
    ) -> impl Iterator<Item = &Pin> {
        let key = (tenant.clone(), owner.clone(), namespace);
        self.owners.get(&key).into_iter().flatten().filter_map(|(_, id)| self.all.get(id))
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = &Pin> {
        self.all.values().filter(|pin| pin.is_live())
    }

    /// What all of them take in an image, about.
    pub(crate) fn image_bytes(&self) -> u64 {
        const PIN_BYTES: u64 = 384;
        const HASH_BYTES: u64 = 16;
        let hashes = self.live_blocks + self.ended_blocks;
        self.all.len() as u64 * PIN_BYTES + hashes * HASH_BYTES + self.token_bytes
    }

    pub(crate) fn live_count(&self) -> usize {
        self.expiries.len()
    }

    pub(crate) fn ended(&self) -> impl ExactSizeIterator<Item = &PinId> {
        self.ended.iter()
    }

    pub(crate) fn get(&self, id: PinId) -> Option<&Pin> {
        self.all.get(&id)
    }

    /// Different blocks that a tenant's live pins name.
    pub(crate) fn tenant_blocks(&self, tenant: &TenantId) -> u64 {
        self.tenants.get(tenant).map_or(0, |usage| usage.blocks.len() as u64)
    }

    /// Ends all pins whose time is over.
    pub(crate) fn expire(&mut self, index: LogIndex, now_ms: u64) {
        while let Some(&(expires_ms, id)) = self.expiries.first()
            && expires_ms <= now_ms
        {
            self.end(index, id, PinState::Expired, "its time ended".to_owned(), 0);
        }
    }

    /// The keeper's notes begin: no image of an earlier version has any.
    pub(crate) fn begin_keeping(&mut self, now_ms: u64, workers: &Workers) {
        for pin in self.all.values_mut().filter(|pin| pin.is_live()) {
            pin.keeping = Keeping::begin(now_ms);
            pin.derive_state(workers);
        }
    }

    /// Lets a pin end later; a TTL that would end it sooner changes nothing.
    pub(crate) fn extend(
        &mut self,
        index: LogIndex,
        time: ClusterTime,
        limits: &Limits,
        id: PinId,
        ttl_ms: u64,
    ) -> Result<Outcome, Refusal> {
        put::check_ttl(ttl_ms, limits)?;
        let pin = self.all.get_mut(&id).ok_or_else(|| unknown(id))?;
        if !pin.is_live() {
            return Err(Refusal::new(
                ErrorCode::FailedPrecondition,
                format!("pin {id} is {} already; make a new one", pin.state.name()),
            ));
        }
        let later_ms = time.expiry(ttl_ms);
        if later_ms > pin.expires_ms {
            self.expiries.remove(&(pin.expires_ms, id));
            self.expiries.insert((later_ms, id));
            pin.expires_ms = later_ms;
            pin.changed_index = index;
        }
        Ok(pin.outcome())
    }

    /// Ends a pin for its owner; one that ended before stays as it is.
    pub(crate) fn release(&mut self, index: LogIndex, id: PinId) -> Result<Outcome, Refusal> {
        let pin = self.all.get(&id).ok_or_else(|| unknown(id))?;
        if !pin.is_live() {
            return Ok(pin.outcome());
        }
        let expires_ms = pin.expires_ms;
        self.end(index, id, PinState::Released, "released by its owner".to_owned(), 0);
        Ok(Outcome::Pin { id, state: PinState::Released, expires_ms })
    }

    /// Notes how much of a pin a worker keeps. A report that meets an ended pin is late, not wrong.
    pub(crate) fn report(
        &mut self,
        index: LogIndex,
        now_ms: u64,
        workers: &Workers,
        id: PinId,
        (worker, blocks_held): (WorkerId, u32),
    ) -> Result<Outcome, Refusal> {
        let pin = self.all.get_mut(&id).ok_or_else(|| unknown(id))?;
        let blocks = pin.request.blocks.len();
        if blocks_held as usize > blocks {
            return Err(Refusal::new(
                ErrorCode::InvalidArgument,
                format!("pin {id} has {blocks} blocks, {blocks_held} were reported"),
            ));
        }
        let held_before = pin.holders.get(&worker).copied().unwrap_or(0);
        if pin.is_live() && held_before != blocks_held {
            if blocks_held == 0 {
                pin.holders.remove(&worker);
            } else {
                pin.holders.insert(worker, blocks_held);
            }
            pin.changed_index = index;
            let whole = blocks_held as usize == blocks;
            pin.keeping.moved(now_ms, worker, blocks_held > held_before, whole);
            pin.derive_state(workers);
            self.note_short(id);
        }
        Ok(Outcome::Reported)
    }

    /// Takes a worker out of all holders, and its orders back.
    pub(crate) fn drop_worker(
        &mut self,
        index: LogIndex,
        now_ms: u64,
        workers: &Workers,
        worker: WorkerId,
    ) {
        let mut lost = Vec::new();
        for pin in self.all.values_mut().filter(|pin| pin.is_live()) {
            if pin.keeping.orders.remove(&worker).is_some() {
                pin.changed_index = index;
            }
            if pin.holders.remove(&worker).is_some() {
                pin.changed_index = index;
                pin.keeping.moved_ms = now_ms;
                pin.derive_state(workers);
                lost.push(pin.request.id);
            }
        }
        for id in lost {
            self.note_short(id);
        }
    }

    /// Puts a live pin in and books what it uses: its first `inherited` blocks are booked already, by a pin that
    /// passes them on.
    fn insert_live(&mut self, pin: Pin, inherited: usize) {
        let id = pin.request.id;
        self.expiries.insert((pin.expires_ms, id));
        if let Some(key) = pin.owner_key() {
            self.owners.entry(key).or_default().insert((pin.created_index, id));
        }
        let usage = self.tenants.entry(pin.request.tenant.clone()).or_default();
        usage.pins += 1;
        for hash in pin.request.blocks.iter().skip(inherited) {
            *usage.blocks.entry(*hash).or_insert(0) += 1;
        }
        self.live_blocks += pin.request.blocks.len() as u64;
        let token_bytes = token_bytes(&pin.request);
        usage.token_bytes += token_bytes;
        self.token_bytes += token_bytes;
        self.all.insert(id, pin);
        self.note_short(id);
    }

    /// Ends a live pin, gives back what it used but for the first blocks, which it passes on, and forgets the oldest
    /// ended ones beyond the limits.
    fn end(
        &mut self,
        index: LogIndex,
        id: PinId,
        state: PinState,
        reason: String,
        passed_on: usize,
    ) {
        let Some(pin) = self.all.get_mut(&id) else { return };
        pin.state = state;
        pin.reason = reason;
        pin.changed_index = index;
        pin.holders.clear();
        pin.keeping = Keeping::default();
        let token_bytes = token_bytes(&pin.request);
        // A retry is still told from another request by their sum.
        if let Some(tokens) = &mut pin.request.tokens {
            tokens.withhold();
        }
        self.expiries.remove(&(pin.expires_ms, id));
        if let Some(key) = pin.owner_key()
            && let Some(pins) = self.owners.get_mut(&key)
        {
            pins.remove(&(pin.created_index, id));
            if pins.is_empty() {
                self.owners.remove(&key);
            }
        }
        if let Some(usage) = self.tenants.get_mut(&pin.request.tenant) {
            usage.pins -= 1;
            usage.token_bytes -= token_bytes;
            for hash in pin.request.blocks.iter().skip(passed_on) {
                if let Some(count) = usage.blocks.get_mut(hash) {
                    *count -= 1;
                    if *count == 0 {
                        usage.blocks.remove(hash);
                    }
                }
            }
            if usage.pins == 0 {
                self.tenants.remove(&pin.request.tenant);
            }
        }
        let blocks = pin.request.blocks.len() as u64;
        self.live_blocks -= blocks;
        self.token_bytes -= token_bytes;
        self.short.remove(&id);
        self.remember_ended(id, blocks);
    }

    fn remember_ended(&mut self, id: PinId, blocks: u64) {
        self.ended.push_back(id);
        self.ended_blocks += blocks;
        while self.ended.len() > ENDED_PINS_MAX || self.ended_blocks > ENDED_BLOCKS_MAX {
            let Some(oldest) = self.ended.pop_front() else { return };
            if let Some(pin) = self.all.remove(&oldest) {
                self.ended_blocks -= pin.request.blocks.len() as u64;
            }
        }
    }

    /// Takes back the tokens of a live pin that its image named only; false if they are not those.
    pub(crate) fn restore_tokens(&mut self, id: PinId, packed: &[u8]) -> bool {
        let pin = self.all.get_mut(&id).filter(|pin| pin.is_live());
        pin.and_then(|p| p.request.tokens.as_mut()).is_some_and(|t| t.restore(packed))
    }

    /// Rebuilds everything from an image's pins: live ones in any order, ended ones in the order of their end.
    pub(crate) fn restore(live: Vec<Pin>, ended: Vec<Pin>) -> Self {
        let mut pins = Self::default();
        for pin in live {
            pins.insert_live(pin, 0);
        }
        for pin in ended {
            pins.ended.push_back(pin.request.id);
            pins.ended_blocks += pin.request.blocks.len() as u64;
            pins.all.insert(pin.request.id, pin);
        }
        pins
    }
}

fn unknown(id: PinId) -> Refusal {
    Refusal::new(ErrorCode::NotFound, format!("no pin {id}; see mainstay pin ls --all"))
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
