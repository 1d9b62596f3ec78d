//! The bookkeeping of a paged cache: which block holds which tokens, who uses it and what goes
//! first. Every engine of ours that manages blocks itself uses this one, so that they keep the
//! interface's promises alike.
//!
//! It is pure: no memory of the cache itself, no clock, no locks; time comes in as `now_ms`. A
//! block is free, being filled by one sequence, or *registered* under its sequence hash, when any
//! sequence may attach to it. Registered blocks form trees by their parents. A block is evicted
//! only as a leaf that no sequence refers to and no pin holds, lowest priority first, then the one
//! whose last use is longest ago. References and holds reach up the tree (whoever uses or pins a
//! block uses or pins its ancestors), so a prefix never loses its middle. Every change of what is
//! registered is one event, in the order of the changes.

#![forbid(unsafe_code)]

mod pins;
#[cfg(test)]
mod reference;
mod retention;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

use mainstay_engine_abi::sdk::{Cause, KvEvent, TIER_DEVICE};

pub use pins::{PINS_MAX, PinError};
pub use retention::{Claim, NEVER_MS, PRIORITY_DEFAULT, PRIORITY_MAX};

use pins::Pins;
use retention::Retention;

/// The index of a block in the cache's memory.
pub type BlockId = u32;

/// The most blocks a pool can have.
pub const BLOCKS_MAX: u32 = 1 << 24;

const NONE: BlockId = BlockId::MAX;

/// What is known of a block. Order of use is a count of releases, which no clock can disturb.
struct Block {
    /// Sequences that have it in their table.
    references: u32,
    /// Registered blocks whose parent it is.
    children: u32,
    /// Its own pin, as one, and its children that are held.
    holds: u32,
    /// Whether a pin that covers its hash is in force here.
    pinned: bool,
    parent: BlockId,
    hash: Option<u128>,
    namespace: u128,
    last_use: u64,
    retention: Retention,
    /// The key under which it stands in `leaves`.
    listed: Option<(u8, u64)>,
    /// When its retention changes next, as it stands in `lapses`.
    lapse_ms: u64,
}

impl Block {
    fn new() -> Self {
        Self {
            references: 0,
            children: 0,
            holds: 0,
            pinned: false,
            parent: NONE,
            hash: None,
            namespace: 0,
            last_use: 0,
            retention: Retention::default(),
            listed: None,
            lapse_ms: NEVER_MS,
        }
    }
}

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
}

/// The blocks of one cache.
pub struct BlockPool {
    total: u32,
    /// Only blocks that were handed out once have an entry: a big pool costs nothing before it is
    /// used.
    blocks: Vec<Block>,
    free: Vec<BlockId>,
    by_hash: HashMap<u128, BlockId>,
    /// Blocks that may be evicted now, the first to go in front.
    leaves: BTreeSet<(u8, u64, BlockId)>,
    /// Blocks whose retention ends some time.
    lapses: BTreeSet<(u64, BlockId)>,
    /// Registered blocks without reference and hold: all of them can be evicted, one after the
    /// other.
    reclaimable: u32,
    used: u32,
    uses: u64,
    evictions: u64,
    pins: Pins,
    events: Vec<KvEvent>,
}

impl BlockPool {
    /// A pool of `total` free blocks of which pins may hold up to `pin_fraction`.
    #[must_use]
    pub fn new(total: u32, pin_fraction: f64) -> Self {
        let total = total.min(BLOCKS_MAX);
        Self {
            total,
            blocks: Vec::new(),
            free: Vec::new(),
            by_hash: HashMap::new(),
            leaves: BTreeSet::new(),
            lapses: BTreeSet::new(),
            reclaimable: 0,
            used: 0,
            uses: 0,
            evictions: 0,
            pins: Pins::new((f64::from(total) * pin_fraction.clamp(0.0, 1.0)) as u32),
            events: Vec::new(),
        }
    }

    /// Figures of now.
    #[must_use]
    pub fn counts(&self) -> PoolCounts {
        PoolCounts {
            total: self.total,
            used: self.used,
            cached: self.by_hash.len() as u32,
            pinned: self.pins.held(),
            evictions: self.evictions,
        }
    }

    /// How many blocks can be had now: free ones and those that eviction would give.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.total - self.blocks.len() as u32 + self.free.len() as u32 + self.reclaimable
    }

    /// The registered block of that hash.
    #[must_use]
    pub fn lookup(&self, hash: u128) -> Option<BlockId> {
        self.by_hash.get(&hash).copied()
    }

    /// The registered block before it; `None` for the first of a chain.
    #[must_use]
    pub fn parent(&self, id: BlockId) -> Option<BlockId> {
        self.blocks.get(id as usize).map(|block| block.parent).filter(|parent| *parent != NONE)
    }

    /// The namespace that a registered block lies in.
    #[must_use]
    pub fn namespace(&self, id: BlockId) -> Option<u128> {
        self.blocks.get(id as usize).map(|block| block.namespace)
    }

    /// A registered block with its ancestors, the root first.
    #[must_use]
    pub fn path_to(&self, id: BlockId) -> Vec<BlockId> {
        let mut path = Vec::new();
        let mut at = id;
        while at != NONE {
            path.push(at);
            at = self.blocks[at as usize].parent;
        }
        path.reverse();
        path
    }

    /// Adds a reference of a sequence to a registered block. Ancestors must be acquired first.
    pub fn acquire(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get_mut(id as usize) else { return };
        block.references += 1;
        if block.references > 1 {
            return;
        }
        self.used += 1;
        if block.hash.is_some() && block.holds == 0 {
            self.reclaimable -= 1;
        }
        self.unlist(id);
    }

    /// A block for a sequence to fill, with one reference; evicts where none is free. `None` when
    /// all are in use or pinned.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let id = match self.free.pop() {
            Some(id) => id,
            None if (self.blocks.len() as u32) < self.total => {
                self.blocks.push(Block::new());
                self.blocks.len() as BlockId - 1
            }
            None => {
                let (_, _, id) = *self.leaves.first()?;
                self.evict(id);
                self.free.pop()?
            }
        };
        self.blocks[id as usize].references = 1;
        self.used += 1;
        Some(id)
    }

    /// Registers a filled block under its sequence hash, after `parent`, the registered block
    /// before it. If another block has that content already, the sequence gets that one and `id` is
    /// freed; the answer is the block that the sequence holds from here on.
    pub fn register(
        &mut self,
        id: BlockId,
        hash: u128,
        parent: Option<BlockId>,
        namespace: u128,
    ) -> BlockId {
        if let Some(known) = self.lookup(hash) {
            if known != id {
                self.acquire(known);
                self.drop_reference(id);
            }
            return known;
        }
        let block = &mut self.blocks[id as usize];
        block.hash = Some(hash);
        block.parent = parent.unwrap_or(NONE);
        block.namespace = namespace;
        self.by_hash.insert(hash, id);
        let mut parent_hash = namespace;
        if let Some(parent) = parent {
            let parent = &mut self.blocks[parent as usize];
            parent.children += 1;
            parent_hash = parent.hash.unwrap_or(namespace);
        }
        self.pin_at_birth(hash);
        self.report_stored(namespace, parent_hash, hash);
        id
    }

    /// Ends a sequence's use of its table. `claim` gives each block's retention by its index in the
    /// table.
    pub fn release(
        &mut self,
        table: &[BlockId],
        now_ms: u64,
        claim: impl Fn(usize) -> Option<Claim>,
    ) {
        self.uses += 1;
        // Backwards, so that a leaf is listed once and its ancestors not at all.
        for (index, id) in table.iter().enumerate().rev() {
            let block = &mut self.blocks[*id as usize];
            if block.hash.is_some() {
                block.last_use = self.uses;
                block.retention.add(claim(index), now_ms);
                self.reschedule(*id, now_ms);
            }
            self.drop_reference(*id);
        }
    }

    /// Takes back [`BlockPool::acquire`] for a whole table, as if it had not been.
    pub fn unacquire(&mut self, table: &[BlockId]) {
        table.iter().rev().for_each(|id| self.drop_reference(*id));
    }

    /// Moves time on: ends pins and retention that are over.
    pub fn expire(&mut self, now_ms: u64) {
        for pin_id in self.pins.due(now_ms) {
            self.unpin(pin_id);
            self.events.push(KvEvent::PinExpired { pin_id });
        }
        while let Some((lapse_ms, id)) = self.lapses.first().copied() {
            if lapse_ms > now_ms {
                return;
            }
            self.reschedule(id, now_ms);
            if self.blocks[id as usize].listed.is_some() {
                self.unlist(id);
                self.list_if_leaf(id);
            }
        }
    }

    /// When [`BlockPool::expire`] has something to do next.
    #[must_use]
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.pins.next_due_ms()
    }

    /// The events since the last call, in order.
    pub fn drain_events(&mut self) -> std::vec::Drain<'_, KvEvent> {
        self.events.drain(..)
    }

    /// Whether there are events to drain.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    fn drop_reference(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        block.references -= 1;
        if block.references > 0 {
            return;
        }
        self.used -= 1;
        if block.hash.is_none() {
            self.free.push(id);
            return;
        }
        if block.holds == 0 {
            self.reclaimable += 1;
        }
        self.list_if_leaf(id);
    }

    fn evict(&mut self, id: BlockId) {
        self.unlist(id);
        let block = &mut self.blocks[id as usize];
        let lapse_ms = block.lapse_ms;
        let parent = block.parent;
        let cause = if block.retention.lapsed() { Cause::Expiry } else { Cause::Capacity };
        let hash = block.hash.take();
        *block = Block::new();
        self.lapses.remove(&(lapse_ms, id));
        self.free.push(id);
        self.reclaimable -= 1;
        self.evictions += 1;
        if let Some(hash) = hash {
            self.by_hash.remove(&hash);
            self.report_removed(hash, cause);
        }
        if parent != NONE {
            self.blocks[parent as usize].children -= 1;
            self.list_if_leaf(parent);
        }
    }

    fn list_if_leaf(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        let evictable = block.hash.is_some()
            && block.references == 0
            && block.children == 0
            && block.holds == 0;
        if evictable && block.listed.is_none() {
            let key = (block.retention.priority(), block.last_use);
            block.listed = Some(key);
            self.leaves.insert((key.0, key.1, id));
        }
    }

    fn unlist(&mut self, id: BlockId) {
        if let Some((priority, last_use)) = self.blocks[id as usize].listed.take() {
            self.leaves.remove(&(priority, last_use, id));
        }
    }

    /// Drops what is over of a block's retention and notes when it changes next.
    fn reschedule(&mut self, id: BlockId, now_ms: u64) {
        let block = &mut self.blocks[id as usize];
        block.retention.expire(now_ms);
        let next_ms = block.retention.next_lapse_ms();
        if next_ms == block.lapse_ms {
            return;
        }
        if block.lapse_ms != NEVER_MS {
            self.lapses.remove(&(block.lapse_ms, id));
        }
        block.lapse_ms = next_ms;
        if next_ms != NEVER_MS {
            self.lapses.insert((next_ms, id));
        }
    }

    /// Blocks that follow each other are one event.
    fn report_stored(&mut self, namespace: u128, parent: u128, hash: u128) {
        if let Some(KvEvent::Stored { namespace: last_namespace, blocks, .. }) =
            self.events.last_mut()
            && *last_namespace == namespace
            && blocks.last() == Some(&parent)
        {
            blocks.push(hash);
            return;
        }
        self.events.push(KvEvent::Stored {
            namespace,
            parent,
            blocks: vec![hash],
            tier: TIER_DEVICE,
            snapshot: false,
        });
    }

    fn report_removed(&mut self, hash: u128, cause: Cause) {
        self.forget_starved(hash);
        if let Some(KvEvent::Removed { blocks, cause: last_cause, .. }) = self.events.last_mut()
            && *last_cause == cause
        {
            blocks.push(hash);
            return;
        }
        self.events.push(KvEvent::Removed { blocks: vec![hash], tier: TIER_DEVICE, cause });
    }
}
