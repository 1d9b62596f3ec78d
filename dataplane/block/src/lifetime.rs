//! What a block is worth, when it may go, and what its going changes.
//!
//! A block's worth is the maximum over the claims on it; what set it is also the cause of which one
//! speaks when the block goes. Whatever changes users, children, holds or claims ends here, so that
//! the orders of eviction are right at every moment and nothing is ever looked for.

use mainstay_types::hash::SequenceHash;

use super::manager::{BlockManager, Evicted};
use super::queue::Queue;
use super::{BlockError, Cause, Class, End, NONE, PRIORITY_DEFAULT, Stage, TenantSlot};

/// A block's worth and what sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) priority: u8,
    pub(crate) class: Class,
    pub(crate) cause: Cause,
}

impl BlockManager {
    /// The strongest of: claims, and the floor of a use without one. Without either a block whose last claim was
    /// ended is worth nothing, and any other the default.
    pub(crate) fn standing(&self, id: u32) -> Standing {
        let block = &self.blocks[id as usize];
        let top = self.levels.top(block.levels);
        let floor = block.floor().map(|priority| Standing {
            priority,
            class: Class::Plain,
            cause: Cause::Capacity,
        });
        if let Some(top) = top
            && block.floor().is_none_or(|floor| top.priority() > floor)
        {
            let cause = if top.is_live() { Cause::Capacity } else { Cause::Expiry };
            return Standing { priority: top.priority(), class: top.class(), cause };
        }
        let ended = |class| Standing { priority: 0, class, cause: Cause::Lifecycle };
        floor.unwrap_or(match block.ended {
            Some(End::Finished) => ended(Class::Finished),
            Some(End::Compacted) => ended(Class::Compacted),
            Some(End::Released) | None => {
                Standing { priority: PRIORITY_DEFAULT, class: Class::Plain, cause: Cause::Capacity }
            }
        })
    }

    /// Puts a block into the orders of eviction if it may go now.
    pub(crate) fn list_if_leaf(&mut self, id: u32) {
        let block = &self.blocks[id as usize];
        let is_leaf = block.stage == Stage::Cached && block.children == 0 && block.holds == 0;
        if !is_leaf || self.links[id as usize].priority().is_some() {
            return;
        }
        let (stamp, tenant) = (block.stamp, block.tenant);
        let priority = self.standing(id).priority;
        self.queue.insert(&mut self.links, id, priority, stamp);
        if let Some(queue) = &mut self.tenants.known(tenant).queue {
            queue.insert(&mut self.tenant_links, id, priority, stamp);
        }
    }

    /// Takes a block out of the orders of eviction.
    pub(crate) fn unlist(&mut self, id: u32) {
        if self.links[id as usize].priority().is_none() {
            return;
        }
        self.queue.remove(&mut self.links, id);
        let tenant = self.blocks[id as usize].tenant;
        if let Some(queue) = &mut self.tenants.known(tenant).queue {
            queue.remove(&mut self.tenant_links, id);
        }
    }

    /// A block's claims have changed.
    pub(crate) fn relist(&mut self, id: u32) {
        if self.idle.has(id) {
            self.idle.put(id, Some(self.standing(id).priority));
        }
        if let Some(priority) = self.links[id as usize].priority()
            && priority != self.standing(id).priority
        {
            self.unlist(id);
            self.list_if_leaf(id);
        }
    }

    /// One user of a registered block less.
    pub(crate) fn drop_reference(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        block.references -= 1;
        if block.references > 0 {
            return;
        }
        block.stage = Stage::Cached;
        block.uses = block.uses.wrapping_add(1);
        let is_idle = block.is_idle();
        self.used -= 1;
        if is_idle {
            self.set_idle(id, true);
        }
        self.list_if_leaf(id);
    }

    /// A registered block has neither user nor hold any more, or has got one.
    pub(crate) fn set_idle(&mut self, id: u32, is_idle: bool) {
        let by = if is_idle { 1 } else { -1 };
        self.reclaimable = self.reclaimable.saturating_add_signed(by);
        let worth = is_idle.then(|| self.standing(id).priority);
        self.idle.put(id, worth);
        let own = self.tenants.known(self.blocks[id as usize].tenant);
        own.reclaimable = own.reclaimable.saturating_add_signed(by);
        // What another tenant goes on from can't go for its own tenant's sake.
        if !self.lent.is_empty() && self.lent.contains_key(&id) {
            own.lent = own.lent.saturating_add_signed(by);
        }
    }

    /// Another tenant goes on from this block, which its own tenant can't let go then, nor those before it.
    pub(crate) fn lend(&mut self, mut id: u32) {
        loop {
            let count = self.lent.entry(id).or_insert(0);
            *count += 1;
            if *count > 1 {
                return;
            }
            let Some(next) = self.lent_changed(id, 1) else { return };
            id = next;
        }
    }

    /// A block of another tenant that went on from this one has gone.
    fn take_back(&mut self, mut id: u32) {
        loop {
            let Some(count) = self.lent.get_mut(&id) else { return };
            *count -= 1;
            if *count > 0 {
                return;
            }
            self.lent.remove(&id);
            let Some(next) = self.lent_changed(id, -1) else { return };
            id = next;
        }
    }

    /// Answers with the block before it, if it is of the same tenant.
    fn lent_changed(&mut self, id: u32, by: i32) -> Option<u32> {
        let block = &self.blocks[id as usize];
        let (parent, tenant) = (block.parent, block.tenant);
        if block.is_idle() {
            let own = self.tenants.known(tenant);
            own.lent = own.lent.saturating_add_signed(by);
        }
        self.blocks.get(parent as usize).filter(|before| before.tenant == tenant).map(|_| parent)
    }

    /// Takes a leaf out of everything but its memory.
    pub(crate) fn remove(&mut self, id: u32, asked: Option<Cause>, now_ms: u64) -> Evicted {
        let standing = self.standing(id);
        let cause = asked.unwrap_or(standing.cause);
        let parent_hash = self.parent_hash(id);
        self.unlist(id);
        self.set_idle(id, false);
        let block = &mut self.blocks[id as usize];
        // Claims on it and whatever else knew it are void from here on, also while its memory is still read.
        block.generation = block.generation.wrapping_add(1);
        let evicted = Evicted {
            block: block.id(id),
            hash: SequenceHash(block.hash),
            parent: SequenceHash(parent_hash),
            namespace: self.namespaces[id as usize],
            tenant: TenantSlot(u32::from(block.tenant)),
            priority: standing.priority,
            class: standing.class,
            hits: block.hits,
            cause,
        };
        block.stage = Stage::Evicting;
        self.levels.clear(&mut block.levels);
        let age_ms = now_ms.saturating_sub(block.used_ms);
        let parent = std::mem::replace(&mut block.parent, NONE);
        let slot = block.tenant;
        let was = (standing.priority, standing.class);
        self.figures.evicted(cause, was, age_ms, evicted.hits);
        self.by_hash.remove(&evicted.hash.0);
        self.tenants.known(slot).blocks -= 1;
        self.forget_starved(evicted.hash.0);
        self.changes.removed(evicted.hash.0, cause);
        if parent != NONE {
            self.blocks[parent as usize].children -= 1;
            if self.blocks[parent as usize].tenant != slot {
                self.take_back(parent);
            }
            self.list_if_leaf(parent);
        }
        evicted
    }

    /// Sets how many blocks a tenant may occupy, and how many its pins may hold. What it has beyond that goes when it
    /// asks for more.
    pub fn set_budget(
        &mut self,
        tenant: TenantSlot,
        blocks_max: u32,
        pinned_blocks_max: u32,
    ) -> Result<(), BlockError> {
        let known = self.tenants.enter(tenant)?;
        known.blocks_max = blocks_max;
        known.held_max = pinned_blocks_max;
        let bounded = blocks_max <= self.total;
        if bounded != known.queue.is_some() {
            let mut listed: Vec<(u64, u32, u8)> = Vec::new();
            for (id, block) in self.blocks.iter().enumerate() {
                if u32::from(block.tenant) == tenant.0
                    && let Some(priority) = self.links[id].priority()
                {
                    listed.push((block.stamp, id as u32, priority));
                }
            }
            listed.sort_unstable();
            let mut queue = Queue::new();
            for (stamp, id, priority) in listed {
                self.tenant_links[id as usize] = super::queue::Link::ABSENT;
                if bounded {
                    queue.insert(&mut self.tenant_links, id, priority, stamp);
                }
            }
            self.tenants.enter(tenant)?.queue = bounded.then_some(queue);
        }
        self.retry_starved();
        Ok(())
    }

    /// Within a tenant's budget, before it gets one block more.
    pub(crate) fn make_room_for(
        &mut self,
        tenant: TenantSlot,
        now_ms: u64,
    ) -> Result<(), BlockError> {
        loop {
            let known = self.tenants.known(tenant.0 as u16);
            if known.blocks - known.lent < known.blocks_max {
                return Ok(());
            }
            let limit = known.blocks_max;
            let victim = known.queue.as_ref().and_then(|queue| queue.first(&self.tenant_links));
            let Some(victim) = victim else { return Err(BlockError::TenantFull { limit }) };
            self.remove(victim, Some(Cause::TenantBudget), now_ms);
            self.give_back(victim);
        }
    }
}
