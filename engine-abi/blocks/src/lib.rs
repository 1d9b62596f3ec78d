//! The blocks of an engine that manages its cache itself: [`mainstay_block::BlockManager`] in the words of the
//! engines' interface. Every engine of ours uses it, so that they keep the interface's promises alike.
//!
//! What is decided about blocks (who uses them, what they are worth, which goes next) is the manager's business and
//! that of its reference. Here are a sequence's [`Table`], its ranges and leases as claims, and changes as events. It
//! is as pure as the manager: no memory of the cache itself, no clock, no locks; time comes in as `now_ms`.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod import;
mod keep;
mod table;
#[cfg(test)]
mod tests;
mod urgency;

use mainstay_block::{BlockError, BlockManager, Change, Limits, TenantSlot};
use mainstay_engine_abi::raw::AGE_POWERS;
use mainstay_engine_abi::sdk::types_of_mainstay::hash::{NamespaceId, SequenceHash};
use mainstay_engine_abi::sdk::types_of_mainstay::id::PinId;
use mainstay_engine_abi::sdk::{Ages, BlockAges, Cause, KvEvent, TIER_DEVICE};

pub use import::Chain;
pub use keep::Wishes;
pub use mainstay_block::{BlockError as PinError, Figures, PRIORITY_DEFAULT};
pub use table::Table;
pub use urgency::Urgency;

/// The most blocks a pool can have.
pub const BLOCKS_MAX: u32 = 1 << 24;
/// Pins come without a namespace, and are the cluster's business: all of them are of this tenant.
const OPERATOR: TenantSlot = TenantSlot(0);
/// What requests of no priority may evict while others run: blocks that were kept above this are no room for them.
const ORDINARY_REACH: u8 = 90;
/// The share of a pool that is kept from them in this way at most, so that nobody can take all of it by what he says his
/// blocks are worth.
const KEPT_SHARE_MAX: f64 = 0.5;
/// Who has waited for so long may evict what he finds.
const PATIENCE_MS: u64 = 60_000;
/// Among so many namespaces what is limited is shared out; two that fall together share one part.
const PARTS: u128 = 1_023;

/// Figures of now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// All blocks.
    pub total: u32,
    /// In the table of a sequence.
    pub used: u32,
    /// Registered.
    pub cached: u32,
    /// Held by pins, with the ancestors that they imply.
    pub pinned: u32,
    /// Evictions so far.
    pub evictions: u64,
    /// Leases of sessions and of requests.
    pub leases: usize,
    /// Leases that found no room; their blocks were kept like any others.
    pub leases_refused: u64,
}

/// The blocks of one cache.
#[derive(Debug)]
pub struct BlockPool {
    manager: BlockManager,
    /// Leases of requests without a name of their own, so far.
    unnamed: u64,
    refused: u64,
}

/// Whose part of what is limited a namespace takes. Namespaces are keyed hashes of tenants, which nobody can make
/// fall on another's place.
fn part_of(namespace: u128) -> TenantSlot {
    TenantSlot(1 + (namespace % PARTS) as u32)
}

impl BlockPool {
    /// A pool of `total` free blocks of which pins may hold up to `pin_fraction`.
    #[must_use]
    pub fn new(total: u32, pin_fraction: f64) -> Self {
        let total = total.min(BLOCKS_MAX);
        let pinned_blocks = (f64::from(total) * pin_fraction.clamp(0.0, 1.0)) as u32;
        let manager = BlockManager::new(Limits { pinned_blocks, ..Limits::new(total) });
        Self { manager, unnamed: 0, refused: 0 }
    }

    /// Figures of now.
    #[must_use]
    pub fn counts(&self) -> PoolCounts {
        let counts = self.manager.counts();
        PoolCounts {
            total: counts.total,
            used: counts.used,
            cached: counts.registered,
            pinned: counts.pinned,
            evictions: self.figures().evictions(),
            leases: counts.leases,
            leases_refused: self.refused,
        }
    }

    /// What happened so far: ages at hit and at eviction, by cause.
    #[must_use]
    pub fn figures(&self) -> &Figures {
        self.manager.figures()
    }

    /// The same in the words of the engines' interface.
    #[must_use]
    pub fn ages(&self) -> BlockAges {
        let figures = self.figures();
        let mut ages = BlockAges { at_hit: ages_of(&figures.age_at_hit), ..BlockAges::default() };
        for (cause, went) in mainstay_block::Cause::ALL.into_iter().zip(&figures.age_at_eviction) {
            ages.at_eviction[cause_of(cause) as usize].add(&ages_of(went));
        }
        ages
    }

    /// How many blocks can be had now: free ones and those that eviction would give.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.manager.available()
    }

    /// The same for a request of that priority that has waited for so long, while others run: blocks that are kept for
    /// requests of a higher one are no room for it. Where nothing runs nothing would ever become room, so that
    /// [`BlockPool::available`] is to be asked.
    #[must_use]
    pub fn available_to(&self, priority: i32, waited_ms: u64) -> u32 {
        let all = self.available();
        if priority > 0 || waited_ms >= PATIENCE_MS {
            return all;
        }
        let most = (f64::from(self.manager.counts().total) * KEPT_SHARE_MAX) as u32;
        all.saturating_sub(self.manager.reclaimable_above(ORDINARY_REACH).min(most))
    }

    /// Whether a block of that hash is registered.
    #[must_use]
    pub fn holds(&self, hash: u128) -> bool {
        self.manager.lookup(SequenceHash(hash)).is_some()
    }

    /// Where the bytes of that registered block lie.
    #[must_use]
    pub fn slot(&self, hash: u128) -> Option<u32> {
        self.manager.lookup(SequenceHash(hash)).map(|id| id.index())
    }

    /// The registered block before it, the namespace's own number at the start of a chain, and the namespace; `None`
    /// where it is not registered.
    #[must_use]
    pub fn place(&self, hash: u128) -> Option<(u128, u128)> {
        let (parent, namespace) = self.manager.place(SequenceHash(hash))?;
        Some((parent.0, namespace.0))
    }

    /// Leads a sequence's empty table over the registered blocks of `hashes` as far as they go; answers with how many.
    pub fn attach(
        &mut self,
        hashes: impl IntoIterator<Item = u128>,
        table: &mut Table,
        now_ms: u64,
    ) -> usize {
        for hash in hashes {
            let Some(id) = self.manager.lookup(SequenceHash(hash)) else { break };
            if self.manager.acquire(id, now_ms).is_err() {
                break;
            }
            table.found(id);
        }
        table.len()
    }

    /// A block more for a sequence to fill; evicts where none is free. False when all are in use or pinned.
    #[must_use]
    pub fn extend(&mut self, table: &mut Table, namespace: u128, now_ms: u64) -> bool {
        let block = self.manager.allocate(part_of(namespace), now_ms);
        block.map(|id| table.push(id)).is_ok()
    }

    /// Registers the table's block at `at` under its sequence hash, after the one before it in the table. If another
    /// block has that content already, the table gets that one. One that does not fit what is registered stays the
    /// sequence's own.
    pub fn register(&mut self, table: &mut Table, at: usize, hash: u128, namespace: u128) {
        let Some(id) = table.get(at) else { return };
        let parent = at.checked_sub(1).and_then(|above| table.get(above));
        let registered =
            self.manager.register(id, SequenceHash(hash), parent, NamespaceId(namespace));
        if let Ok(id) = registered {
            table.set(at, id);
        }
    }

    /// Ends a sequence's use of its table, which is empty then; its registered blocks are kept as it wishes.
    pub fn release(&mut self, table: &mut Table, wishes: &Wishes<'_>, now_ms: u64) {
        let leased = self.keep(table, wishes, now_ms);
        let is_leased = |at: usize| leased.get(at).is_some_and(|leased| *leased);
        // The manager is right about its blocks even where a table is not: there is nothing to do about an error.
        let outcome = self.manager.release(table.ids(), is_leased, now_ms);
        debug_assert!(outcome.is_ok(), "{outcome:?}");
        table.clear();
    }

    /// Takes a table back as if it had not been used.
    pub fn detach(&mut self, table: &mut Table, now_ms: u64) {
        let outcome = self.manager.unacquire(table.ids(), table.found_len(), now_ms);
        debug_assert!(outcome.is_ok(), "{outcome:?}");
        table.clear();
    }

    /// Takes, renews or replaces a pin until `ends_ms`; answers with how many of its blocks are protected now.
    ///
    /// # Errors
    /// Where it is larger than all that pins may hold, or there are too many of them; nothing has changed then.
    pub fn pin(
        &mut self,
        pin_id: u128,
        hashes: &[u128],
        ends_ms: u64,
        now_ms: u64,
    ) -> Result<u32, BlockError> {
        let hashes: Vec<SequenceHash> = hashes.iter().copied().map(SequenceHash).collect();
        self.manager.pin(PinId(pin_id), OPERATOR, &hashes, ends_ms, now_ms)
    }

    /// Ends a pin; `None` when there is no such pin, else how many of its blocks were held.
    pub fn unpin(&mut self, pin_id: u128) -> Option<u32> {
        self.manager.unpin(PinId(pin_id))
    }

    /// Moves time on: ends pins and retention that are over.
    pub fn expire(&mut self, now_ms: u64) {
        self.manager.expire(now_ms);
    }

    /// When [`BlockPool::expire`] has something to tell next. What leases claim ends without anybody being told: it is
    /// looked at when a block is wanted.
    #[must_use]
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.manager.next_pin_end_ms()
    }

    /// The events since the last call, in order.
    pub fn drain_events(&mut self) -> impl Iterator<Item = KvEvent> + '_ {
        self.manager.drain_changes().filter_map(|change| event_of(change, false))
    }

    /// Whether there are events to drain.
    #[must_use]
    pub fn has_events(&self) -> bool {
        self.manager.has_changes()
    }

    /// Whether events were lost, because nobody took them for millions of blocks: then a [`BlockPool::snapshot`] is due.
    #[must_use]
    pub fn has_lost_events(&self) -> bool {
        self.manager.has_lost_changes()
    }

    /// Calls `emit` with stored events that together name every registered block once, parents before children;
    /// answers with their number.
    pub fn snapshot(&self, mut emit: impl FnMut(KvEvent)) -> u32 {
        self.manager.snapshot(|change| {
            if let Some(event) = event_of(change, true) {
                emit(event);
            }
        })
    }
}

fn hashes_of(blocks: Vec<SequenceHash>) -> Vec<u128> {
    blocks.into_iter().map(|hash| hash.0).collect()
}

/// `None` for what is told in another way.
fn event_of(change: Change, snapshot: bool) -> Option<KvEvent> {
    Some(match change {
        Change::Stored { namespace, parent, blocks } => KvEvent::Stored {
            namespace: namespace.0,
            parent: parent.0,
            blocks: hashes_of(blocks),
            tier: TIER_DEVICE,
            snapshot,
        },
        Change::Removed { blocks, cause } => KvEvent::Removed {
            blocks: hashes_of(blocks),
            tier: TIER_DEVICE,
            cause: cause_of(cause),
        },
        Change::PinExpired { pin } => KvEvent::PinExpired { pin_id: pin.0 },
        Change::Lost => return None,
    })
}

fn ages_of(kept: &mainstay_block::Ages) -> Ages {
    let mut ages = Ages { sum_ms: kept.sum_ms(), ..Ages::default() };
    for (power, (_, count)) in kept.buckets().enumerate() {
        ages.by_power[power.min(AGE_POWERS - 1)] += count;
    }
    ages
}

fn cause_of(cause: mainstay_block::Cause) -> Cause {
    use mainstay_block::Cause as Block;
    match cause {
        Block::Capacity => Cause::Capacity,
        Block::Expiry => Cause::Expiry,
        Block::Lifecycle => Cause::Lifecycle,
        // The interface has no word for budgets.
        Block::TenantBudget | Block::Reset => Cause::Admin,
    }
}
