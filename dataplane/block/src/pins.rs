//! Pins: what must not be evicted at all, of blocks that are here and of blocks still to come.
//!
//! A pin names hashes and not blocks, since every worker is told of every pin of its namespace: it
//! costs nothing until its blocks are here, and only held blocks count against the pool's and the
//! tenant's budget. A covered block for which a budget has no room is not protected and is told as
//! missing; it gets its protection as soon as there is room. Ancestors that no pin names but that a
//! pinned block needs count as well.

use std::collections::{BTreeSet, HashMap, HashSet};

use foldhash::fast::RandomState;
use mainstay_types::hash::SequenceHash;
use mainstay_types::id::PinId;

use super::manager::BlockManager;
use super::{BlockError, CLAIMS_LEAST_MAX, CLAIMS_PER_BLOCK_MAX, NONE, PINS_MAX, TenantSlot};

#[derive(Debug)]
struct Pin {
    tenant: u16,
    hashes: Vec<u128>,
    ends_ms: u64,
}

#[derive(Debug)]
pub(crate) struct Pins {
    /// Most held blocks of all pins together.
    held_max: u32,
    claims_max: usize,
    pins: HashMap<PinId, Pin, RandomState>,
    /// How many pins of a tenant cover a hash.
    covers: HashMap<(u16, u128), u32, RandomState>,
    ends: BTreeSet<(u64, PinId)>,
    /// Hashes of all pins, repeats counted.
    claims: usize,
    held: u32,
    /// Registered blocks that are covered but found no room in a budget.
    starved: BTreeSet<(u16, u128)>,
}

impl Pins {
    pub(crate) fn new(blocks: u32, held_max: u32) -> Self {
        Self {
            held_max,
            claims_max: CLAIMS_LEAST_MAX.max(blocks as usize * CLAIMS_PER_BLOCK_MAX),
            pins: HashMap::default(),
            covers: HashMap::default(),
            ends: BTreeSet::new(),
            claims: 0,
            held: 0,
            starved: BTreeSet::new(),
        }
    }

    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        self.ends.first().map(|end| end.0)
    }

    /// Forgets a pin, but for what it covers.
    fn take(&mut self, id: PinId) -> Option<Pin> {
        let pin = self.pins.remove(&id)?;
        self.ends.remove(&(pin.ends_ms, id));
        self.claims -= pin.hashes.len();
        Some(pin)
    }
}

impl BlockManager {
    /// Takes, renews or replaces a pin until `ends_ms`; answers with how many of its blocks are protected now.
    pub fn pin(
        &mut self,
        id: PinId,
        tenant: TenantSlot,
        hashes: &[SequenceHash],
        ends_ms: u64,
    ) -> Result<u32, BlockError> {
        let limit = self.tenants.enter(tenant)?.held_max.min(self.pins.held_max);
        let tenant = tenant.0 as u16;
        let mut distinct = HashSet::with_capacity(hashes.len().min(self.total as usize));
        let mut wanted = Vec::new();
        for hash in hashes {
            if distinct.insert(hash.0) {
                wanted.push(hash.0);
            }
            if wanted.len() as u64 > u64::from(limit) {
                return Err(BlockError::PinTooLarge { limit });
            }
        }
        let old = self.pins.pins.get(&id);
        if old.is_none() && self.pins.pins.len() >= PINS_MAX {
            return Err(BlockError::Many { what: "pins", limit: PINS_MAX });
        }
        let old_claims = old.map_or(0, |pin| pin.hashes.len());
        if self.pins.claims - old_claims + wanted.len() > self.pins.claims_max {
            let limit = self.pins.claims_max;
            return Err(BlockError::Many { what: "hashes in pins", limit });
        }
        // The new one takes hold before the old one lets go, so that what both name never goes.
        for hash in &wanted {
            *self.pins.covers.entry((tenant, *hash)).or_insert(0) += 1;
            self.protect(tenant, *hash);
        }
        if let Some(old) = self.pins.take(id) {
            self.uncover(&old);
        }
        let held = wanted.iter().filter(|hash| self.is_pinned(tenant, **hash)).count() as u32;
        self.pins.ends.insert((ends_ms, id));
        self.pins.claims += wanted.len();
        self.pins.pins.insert(id, Pin { tenant, hashes: wanted, ends_ms });
        Ok(held)
    }

    /// Ends a pin; `None` when there is no such pin, else how many of its blocks were protected.
    pub fn unpin(&mut self, id: PinId) -> Option<u32> {
        let pin = self.pins.take(id)?;
        let held = pin.hashes.iter().filter(|hash| self.is_pinned(pin.tenant, **hash)).count();
        self.uncover(&pin);
        Some(held as u32)
    }

    /// Whether there is such a pin.
    #[must_use]
    pub fn has_pin(&self, id: PinId) -> bool {
        self.pins.pins.contains_key(&id)
    }

    pub(crate) fn expire_pins(&mut self, now_ms: u64) {
        while let Some((ends_ms, id)) = self.pins.ends.first().copied() {
            if ends_ms > now_ms {
                return;
            }
            self.unpin(id);
            self.changes.pin_expired(id);
        }
    }

    fn is_pinned(&self, tenant: u16, hash: u128) -> bool {
        self.by_hash.get(&hash).is_some_and(|id| {
            let block = &self.blocks[*id as usize];
            block.pinned && block.tenant == tenant
        })
    }

    /// A block was registered: the pins that wait for it take hold.
    pub(crate) fn pin_at_birth(&mut self, id: u32) {
        let block = &self.blocks[id as usize];
        let (tenant, hash) = (block.tenant, block.hash);
        if !self.pins.covers.is_empty() && self.pins.covers.contains_key(&(tenant, hash)) {
            self.protect(tenant, hash);
        }
    }

    /// Protects a covered block that is here, where the budgets have room for it and for those of its ancestors that
    /// nothing holds yet.
    fn protect(&mut self, tenant: u16, hash: u128) {
        let Some(id) = self.by_hash.get(&hash).copied() else { return };
        let block = &self.blocks[id as usize];
        if block.pinned || block.tenant != tenant {
            return;
        }
        let mut unheld: u64 = 0;
        let mut at = id;
        while let Some(block) = self.blocks.get(at as usize)
            && block.holds == 0
        {
            unheld += 1;
            at = block.parent;
        }
        let own = self.tenants.known(tenant);
        let fits = u64::from(self.pins.held) + unheld <= u64::from(self.pins.held_max)
            && u64::from(own.held) + unheld <= u64::from(own.held_max);
        if fits {
            self.blocks[id as usize].pinned = true;
            self.add_hold(id);
            self.pins.starved.remove(&(tenant, hash));
        } else {
            self.pins.starved.insert((tenant, hash));
        }
    }

    /// A registered block goes; only unprotected ones do.
    pub(crate) fn forget_starved(&mut self, tenant: u16, hash: u128) {
        if !self.pins.starved.is_empty() {
            self.pins.starved.remove(&(tenant, hash));
        }
    }

    /// Whoever found no room before may find some now.
    pub(crate) fn retry_starved(&mut self) {
        for (tenant, hash) in std::mem::take(&mut self.pins.starved) {
            self.protect(tenant, hash);
        }
    }

    fn uncover(&mut self, pin: &Pin) {
        let held = self.pins.held;
        for hash in &pin.hashes {
            let key = (pin.tenant, *hash);
            let Some(count) = self.pins.covers.get_mut(&key) else { continue };
            *count -= 1;
            if *count > 0 {
                continue;
            }
            self.pins.covers.remove(&key);
            self.pins.starved.remove(&key);
            if self.is_pinned(pin.tenant, *hash)
                && let Some(id) = self.by_hash.get(hash).copied()
            {
                self.blocks[id as usize].pinned = false;
                self.drop_hold(id);
            }
        }
        // Room for one that starves comes from nowhere else.
        if self.pins.held < held {
            self.retry_starved();
        }
    }

    /// Holds a block, and through it its ancestors.
    fn add_hold(&mut self, mut id: u32) {
        while id != NONE {
            let block = &mut self.blocks[id as usize];
            block.holds += 1;
            if block.holds > 1 {
                return;
            }
            let (parent, tenant, unused) = (block.parent, block.tenant, block.references == 0);
            self.pins.held += 1;
            let own = self.tenants.known(tenant);
            own.held += 1;
            if unused {
                own.reclaimable -= 1;
                self.reclaimable -= 1;
            }
            self.unlist(id);
            id = parent;
        }
    }

    fn drop_hold(&mut self, mut id: u32) {
        while id != NONE {
            let block = &mut self.blocks[id as usize];
            block.holds -= 1;
            if block.holds > 0 {
                return;
            }
            let (parent, tenant, unused) = (block.parent, block.tenant, block.references == 0);
            self.pins.held -= 1;
            let own = self.tenants.known(tenant);
            own.held -= 1;
            if unused {
                own.reclaimable += 1;
                self.reclaimable += 1;
            }
            self.list_if_leaf(id);
            id = parent;
        }
    }
}
