//! One pool of blocks: taken, filled, registered, shared, let go and taken again.
//!
//! Registered blocks form trees by their parents, and a block goes as a leaf only: no user, no
//! child, and no pin on it or below it. A sequence acquires a prefix from its start, so a prefix
//! never loses its middle. Whoever needs a block gets a free one or the place of the next victim.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::RandomState;
use mainstay_types::hash::{NamespaceId, SequenceHash};

use super::block::Block;
use super::changes::Changes;
use super::idle::IdleWorths;
use super::leases::Leases;
use super::levels::Levels;
use super::pins::Pins;
use super::queue::{Link, Queue};
use super::tenants::Tenants;
use super::{
    BLOCKS_MAX, BlockError, BlockId, CLAIM_KINDS_MAX, Cause, Class, Figures, LEASES_MAX, NONE,
    Stage, TenantSlot,
};

/// How large a pool is, and how much of it may be promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// All blocks.
    pub blocks: u32,
    /// Those that pins may hold, with the ancestors that they imply.
    pub pinned_blocks: u32,
    /// Leases at a time.
    pub leases: usize,
    /// Different claims on a block.
    pub claim_kinds: usize,
}

impl Limits {
    /// A pool of so many blocks, half of which pins may hold.
    #[must_use]
    pub fn new(blocks: u32) -> Self {
        Self { blocks, pinned_blocks: blocks / 2, leases: LEASES_MAX, claim_kinds: CLAIM_KINDS_MAX }
    }
}

/// A block that was evicted and whose memory can still be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evicted {
    /// Where it lies; to be given to [`BlockManager::reclaim`].
    pub block: BlockId,
    /// What it was.
    pub hash: SequenceHash,
    /// The block before it; the namespace's own number at the start of a chain.
    pub parent: SequenceHash,
    /// Whose.
    pub namespace: NamespaceId,
    /// Who paid for it.
    pub tenant: TenantSlot,
    /// What it was worth.
    pub priority: u8,
    /// What had set that.
    pub class: Class,
    /// How often it was found again, up to 255: what a filter in front of a disk asks.
    pub hits: u8,
    /// Why.
    pub cause: Cause,
}

/// Figures of now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All blocks.
    pub total: u32,
    /// In the table of a sequence.
    pub used: u32,
    /// Registered.
    pub registered: u32,
    /// Held by pins, with the ancestors that they imply.
    pub pinned: u32,
    /// Leases.
    pub leases: usize,
    /// Blocks of all leases together.
    pub claims: usize,
    /// Blocks that came into the order of eviction out of order.
    pub late_listings: u64,
    /// Blocks that were looked at to find room for pins.
    pub pin_steps: u64,
}

/// The blocks of one pool.
#[derive(Debug)]
pub struct BlockManager {
    pub(crate) total: u32,
    /// Only blocks that were handed out once have an entry: a big pool costs nothing before it is used.
    pub(crate) blocks: Vec<Block>,
    /// Of registered blocks; read when they come and go only.
    pub(crate) namespaces: Vec<NamespaceId>,
    pub(crate) links: Vec<Link>,
    pub(crate) tenant_links: Vec<Link>,
    pub(crate) free: Vec<u32>,
    pub(crate) by_hash: HashMap<u128, u32, RandomState>,
    pub(crate) queue: Queue,
    pub(crate) tenants: Tenants,
    pub(crate) levels: Levels,
    pub(crate) leases: Leases,
    pub(crate) pins: Pins,
    /// Blocks with others after them that another tenant has brought, and how many such follow at once.
    pub(crate) lent: HashMap<u32, u32, RandomState>,
    pub(crate) changes: Changes,
    pub(crate) figures: Figures,
    pub(crate) stamps: u64,
    pub(crate) used: u32,
    /// Registered blocks without user and hold: all of them can be evicted, one after the other.
    pub(crate) reclaimable: u32,
    /// Of these, how many are worth how much, and as what each is counted.
    pub(crate) idle: IdleWorths,
}

impl BlockManager {
    /// A pool of free blocks.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let total = limits.blocks.min(BLOCKS_MAX);
        Self {
            total,
            blocks: Vec::new(),
            namespaces: Vec::new(),
            links: Vec::new(),
            tenant_links: Vec::new(),
            free: Vec::new(),
            by_hash: HashMap::default(),
            queue: Queue::new(),
            tenants: Tenants::default(),
            levels: Levels::new(limits.claim_kinds),
            leases: Leases::new(total, limits.leases),
            pins: Pins::new(total, limits.pinned_blocks.min(total)),
            lent: HashMap::default(),
            changes: Changes::default(),
            figures: Figures::default(),
            stamps: 0,
            used: 0,
            reclaimable: 0,
            idle: IdleWorths::default(),
        }
    }

    /// Figures of now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            total: self.total,
            used: self.used,
            registered: self.by_hash.len() as u32,
            pinned: self.pins.held(),
            leases: self.leases.len(),
            claims: self.leases.claims(),
            late_listings: self.queue.late_ever(),
            pin_steps: self.pins.steps(),
        }
    }

    /// What happened so far.
    #[must_use]
    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// How many blocks can be had now: free ones and those that eviction would give.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.total - self.blocks.len() as u32 + self.free.len() as u32 + self.reclaimable
    }

    /// How many of them are worth more than that: whoever may not evict such has so many fewer. Before one of less
    /// worth can go, what comes after it in its chain has to, so that there may be more in the way.
    #[must_use]
    pub fn reclaimable_above(&self, worth: u8) -> u32 {
        self.idle.above(worth)
    }

    /// The same as [`BlockManager::available`] for one tenant, within its budget.
    #[must_use]
    pub fn available_to(&self, tenant: TenantSlot) -> u32 {
        let own = self.tenants.get(tenant.0).map_or(u32::MAX, |tenant| {
            tenant.blocks_max.saturating_sub(tenant.blocks - tenant.reclaimable)
        });
        own.min(self.available())
    }

    /// The registered block of that hash.
    #[must_use]
    pub fn lookup(&self, hash: SequenceHash) -> Option<BlockId> {
        self.by_hash.get(&hash.0).map(|id| self.blocks[*id as usize].id(*id))
    }

    /// The block before a registered one, the namespace's own number at the start of a chain, and its namespace.
    #[must_use]
    pub fn place(&self, hash: SequenceHash) -> Option<(SequenceHash, NamespaceId)> {
        let id = *self.by_hash.get(&hash.0)?;
        Some((SequenceHash(self.parent_hash(id)), self.namespaces[id as usize]))
    }

    /// The registered blocks of a prompt's leading hashes, one for each, into `table`; to be acquired in this order.
    /// One loop over the hash table, so that the processor waits for many of its lines at once.
    pub fn prefix(&self, hashes: &[SequenceHash], table: &mut Vec<BlockId>) {
        table.clear();
        table.extend(hashes.iter().map_while(|hash| self.lookup(*hash)));
    }

    /// Where a block is in its life; `None` where that one is over.
    #[must_use]
    pub fn stage(&self, id: BlockId) -> Option<Stage> {
        self.same_content(id).ok().map(|block| block.stage)
    }

    /// What a registered block is worth now, and what sets that.
    #[must_use]
    pub fn worth(&self, id: BlockId) -> Option<(u8, Class)> {
        let block = self.same_content(id).ok()?;
        block.stage.is_registered().then(|| {
            let standing = self.standing(id.index);
            (standing.priority, standing.class)
        })
    }

    /// Adds a sequence to the users of a registered block; its parent must have one already.
    pub fn acquire(&mut self, id: BlockId, now_ms: u64) -> Result<(), BlockError> {
        let block = self.checked(id, Stage::Used)?;
        if !block.stage.is_registered() {
            return Err(BlockError::Stage { block: id, is: block.stage, wanted: Stage::Used });
        }
        if self.blocks.get(block.parent as usize).is_some_and(|parent| parent.references == 0) {
            return Err(BlockError::Orphan(id));
        }
        self.figures.age_at_hit.add(now_ms.saturating_sub(block.used_ms));
        if let Some(worth) = self.idle.worth(id.index) {
            self.figures.hits_by_worth.add(worth);
        }
        let block = &mut self.blocks[id.at()];
        block.hits = block.hits.saturating_add(1);
        self.use_again(id.index);
        Ok(())
    }

    fn use_again(&mut self, id: u32) {
        if self.blocks[id as usize].is_idle() {
            self.set_idle(id, false);
        }
        let block = &mut self.blocks[id as usize];
        block.references += 1;
        if block.references > 1 {
            return;
        }
        block.stage = Stage::Used;
        self.used += 1;
        self.unlist(id);
    }

    /// A block for a sequence of that tenant to fill. Where none is free, the next victim goes; where the tenant's
    /// budget is used up, the next of its own.
    pub fn allocate(&mut self, tenant: TenantSlot, now_ms: u64) -> Result<BlockId, BlockError> {
        self.expire(now_ms);
        self.tenants.enter(tenant)?;
        self.make_room_for(tenant, now_ms)?;
        let id = match self.free.pop() {
            Some(id) => id,
            None if (self.blocks.len() as u32) < self.total => {
                self.blocks.push(Block::new(0));
                self.namespaces.push(NamespaceId(0));
                self.links.push(Link::ABSENT);
                self.tenant_links.push(Link::ABSENT);
                self.idle.grow();
                self.blocks.len() as u32 - 1
            }
            None => {
                let victim = self.queue.first(&self.links).ok_or(BlockError::Full)?;
                self.remove(victim, None, now_ms);
                self.give_back(victim);
                self.free.pop().ok_or(BlockError::Full)?
            }
        };
        let block = &mut self.blocks[id as usize];
        block.stage = Stage::Filling;
        block.references = 1;
        block.used_ms = now_ms;
        block.tenant = tenant.0 as u16;
        self.used += 1;
        let name = block.id(id);
        self.tenants.known(tenant.0 as u16).blocks += 1;
        Ok(name)
    }

    /// Registers a filled block under its sequence hash, after `parent`, the block before it in the sequence's table.
    /// That one may be another tenant's, where both share a namespace: who brought a block pays for it. If another block has that content already, the sequence gets that one and `id` is freed; the answer is the
    /// block that the sequence has from here on.
    pub fn register(
        &mut self,
        id: BlockId,
        hash: SequenceHash,
        parent: Option<BlockId>,
        namespace: NamespaceId,
    ) -> Result<BlockId, BlockError> {
        let block = self.checked(id, Stage::Used)?;
        let tenant = block.tenant;
        if block.stage != Stage::Filling {
            return Err(BlockError::Stage { block: id, is: block.stage, wanted: Stage::Used });
        }
        if let Some(parent) = parent {
            let before = self.checked(parent, Stage::Used)?;
            if before.stage != Stage::Used {
                return Err(BlockError::Orphan(id));
            }
            if self.namespaces[parent.at()] != namespace {
                return Err(BlockError::Foreign(parent));
            }
        }
        let known = match self.by_hash.entry(hash.0) {
            Entry::Occupied(known) => Some(*known.get()),
            Entry::Vacant(place) => {
                place.insert(id.index);
                None
            }
        };
        if let Some(known) = known {
            let there = &self.blocks[known as usize];
            let name = there.id(known);
            if self.namespaces[known as usize] != namespace {
                return Err(BlockError::Foreign(name));
            }
            if there.parent != parent.map_or(NONE, |parent| parent.index) {
                return Err(BlockError::Orphan(name));
            }
            self.use_again(known);
            self.discard(id.index);
            return Ok(name);
        }
        self.stamps += 1;
        let block = &mut self.blocks[id.at()];
        block.stage = Stage::Used;
        block.hash = hash.0;
        block.parent = parent.map_or(NONE, |parent| parent.index);
        block.stamp = self.stamps;
        self.namespaces[id.at()] = namespace;
        if let Some(parent) = parent {
            self.blocks[parent.at()].children += 1;
            if self.blocks[parent.at()].tenant != tenant {
                self.lend(parent.index);
            }
        }
        self.pin_at_birth(id.index);
        self.changes.stored(namespace, self.parent_hash(id.index), hash.0);
        Ok(id)
    }

    /// Ends a sequence's use of its table. `leased` says by index in the table which blocks a lease of the sequence
    /// names; the others were used without one. On an error the rest of the table is released all the same.
    pub fn release(
        &mut self,
        table: &[BlockId],
        leased: impl Fn(usize) -> bool,
        now_ms: u64,
    ) -> Result<(), BlockError> {
        let mut outcome = Ok(());
        // Backwards, so that a leaf is older than its ancestors, and is listed once while they are not at all.
        for (index, id) in table.iter().enumerate().rev() {
            match self.in_use(*id) {
                Err(error) => outcome = Err(error),
                Ok(false) => self.discard(id.index),
                Ok(true) => {
                    self.stamps += 1;
                    let block = &mut self.blocks[id.at()];
                    block.stamp = self.stamps;
                    block.used_ms = block.used_ms.max(now_ms);
                    if !leased(index) {
                        block.raise_floor(super::PRIORITY_DEFAULT);
                    }
                    self.drop_reference(id.index);
                }
            }
        }
        outcome
    }

    /// Takes back [`BlockManager::acquire`] and [`BlockManager::allocate`] for a whole table, as if it had not been
    /// used. Its first `found` blocks were acquired at `now_ms`; they count as no hits then.
    pub fn unacquire(
        &mut self,
        table: &[BlockId],
        found: usize,
        now_ms: u64,
    ) -> Result<(), BlockError> {
        let mut outcome = Ok(());
        for (index, id) in table.iter().enumerate().rev() {
            match self.in_use(*id) {
                Err(error) => outcome = Err(error),
                Ok(false) => self.discard(id.index),
                Ok(true) => {
                    let block = &mut self.blocks[id.at()];
                    if index < found {
                        // Where another has let it go since, nobody knows any more which age was counted.
                        if let Some(age_ms) = now_ms.checked_sub(block.used_ms) {
                            self.figures.age_at_hit.take_back(age_ms);
                        }
                        // One that stands at the most has had more, nobody knows how many.
                        if block.hits < u8::MAX {
                            block.hits = block.hits.saturating_sub(1);
                        }
                    }
                    self.drop_reference(id.index);
                    // One that others use as well was none that could have gone.
                    if index < found
                        && let Some(worth) = self.idle.worth(id.index)
                    {
                        self.figures.hits_by_worth.take_back(worth);
                    }
                }
            }
        }
        outcome
    }

    /// Lets the next victim go whose bytes somebody wants to copy first: its memory is not used again before
    /// [`BlockManager::reclaim`]. `None` when nothing may go.
    pub fn evict(&mut self, now_ms: u64) -> Option<Evicted> {
        self.expire(now_ms);
        let victim = self.queue.first(&self.links)?;
        Some(self.remove(victim, None, now_ms))
    }

    /// Frees the memory of an evicted block.
    pub fn reclaim(&mut self, id: BlockId) -> Result<(), BlockError> {
        let block = self.checked(id, Stage::Free)?;
        if block.stage != Stage::Evicting {
            return Err(BlockError::Stage { block: id, is: block.stage, wanted: Stage::Free });
        }
        self.give_back(id.index);
        Ok(())
    }

    /// Lets everything go that nobody uses and no pin holds; answers with how many blocks that were.
    pub fn reset(&mut self, now_ms: u64) -> u32 {
        let mut count = 0;
        while let Some(victim) = self.queue.first(&self.links) {
            self.remove(victim, Some(Cause::Reset), now_ms);
            self.give_back(victim);
            count += 1;
        }
        count
    }

    /// Moves time on: ends pins, and what leases claim until now.
    pub fn expire(&mut self, now_ms: u64) {
        self.expire_pins(now_ms);
        self.expire_leases(now_ms);
    }

    /// When [`BlockManager::expire`] has something to do next.
    #[must_use]
    pub fn next_expiry_ms(&self) -> Option<u64> {
        match (self.next_pin_end_ms(), self.leases.next_due_ms()) {
            (Some(pin), Some(lease)) => Some(pin.min(lease)),
            (pin, lease) => pin.or(lease),
        }
    }

    /// When the next pin ends.
    #[must_use]
    pub fn next_pin_end_ms(&self) -> Option<u64> {
        self.pins.next_due_ms()
    }

    /// Whether the block is registered (or being filled), for one that somebody uses.
    fn in_use(&self, id: BlockId) -> Result<bool, BlockError> {
        let block = self.same_use(id)?;
        match block.stage {
            Stage::Used => Ok(true),
            Stage::Filling => Ok(false),
            is => Err(BlockError::Stage { block: id, is, wanted: Stage::Cached }),
        }
    }

    /// A block that may go to `wanted` next.
    fn checked(&self, id: BlockId, wanted: Stage) -> Result<&Block, BlockError> {
        let block = self.same_use(id)?;
        if !block.stage.may_become(wanted) {
            return Err(BlockError::Stage { block: id, is: block.stage, wanted });
        }
        Ok(block)
    }

    /// The block, if it is in the same hands as when its name was learnt.
    fn same_use(&self, id: BlockId) -> Result<&Block, BlockError> {
        let block = self.same_content(id)?;
        if block.uses == id.uses { Ok(block) } else { Err(BlockError::Stale(id)) }
    }

    /// The block, if it has the same content as when its name was learnt.
    pub(crate) fn same_content(&self, id: BlockId) -> Result<&Block, BlockError> {
        let block = self.blocks.get(id.at()).ok_or(BlockError::Unknown(id))?;
        if block.generation as u16 == id.generation {
            Ok(block)
        } else {
            Err(BlockError::Stale(id))
        }
    }

    /// Frees a block that was not registered.
    fn discard(&mut self, id: u32) {
        self.used -= 1;
        let tenant = self.blocks[id as usize].tenant;
        self.tenants.known(tenant).blocks -= 1;
        self.give_back(id);
    }

    /// The block's memory is free.
    pub(crate) fn give_back(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        *block = Block::new(block.generation.wrapping_add(1));
        self.free.push(id);
    }

    pub(crate) fn registered(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_hash.values().copied()
    }

    /// The hash of the block before it; the namespace's own number at the start of a chain.
    pub(crate) fn parent_hash(&self, id: u32) -> u128 {
        let parent = self.blocks.get(self.blocks[id as usize].parent as usize);
        parent.map_or_else(|| self.namespaces[id as usize].0, |parent| parent.hash)
    }
}
