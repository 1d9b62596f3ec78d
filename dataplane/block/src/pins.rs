//! Pins: what must not be evicted at all, of blocks that are here and of blocks still to come.
//!
//! A pin names hashes and not blocks, since every worker is told of every pin of its namespace: it
//! costs nothing until its blocks are here, and only held blocks count against the pool's and the
//! tenant's budget. A covered block for which a budget has no room is not protected and is told as
//! missing; it gets its turn whenever another one's protection ends, those that need the fewest
//! ancestors first. Ancestors that no pin names but that a pinned block needs count as well, against
//! the tenant whose pin needed them first, whoever brought them.

use std::collections::{BTreeSet, HashMap, HashSet};

use foldhash::fast::RandomState;
use mainstay_types::hash::SequenceHash;
use mainstay_types::id::PinId;

use super::manager::BlockManager;
use super::tenants::is_within_share;
use super::{BlockError, CLAIMS_LEAST_MAX, CLAIMS_PER_BLOCK_MAX, NONE, PINS_MAX, TenantSlot};

#[derive(Debug)]
struct Pin {
    tenant: u16,
    hashes: Vec<u128>,
    ends_ms: u64,
}

/// How many pins of a tenant cover a hash.
#[derive(Debug)]
struct Cover {
    tenant: u16,
    pins: u32,
}

/// Where a block stood among those that nothing held when a round of protecting began.
#[derive(Debug, Clone, Copy)]
struct Rise {
    /// How many there were from this one up.
    depth: u32,
    /// One further up, as far as its depth allows, so that any of them is found in a logarithm of steps; itself at the
    /// upper end.
    jump: u32,
}

/// What is known of them all.
#[derive(Debug, Default)]
struct Rises {
    of: HashMap<u32, Rise, RandomState>,
    /// How many blocks were held then.
    held: u32,
}

#[derive(Debug)]
pub(crate) struct Pins {
    /// Most held blocks of all pins together.
    held_max: u32,
    pins_max: usize,
    hashes_max: usize,
    pins: HashMap<PinId, Pin, RandomState>,
    /// By tenant; one nearly always.
    covers: HashMap<u128, Vec<Cover>, RandomState>,
    ends: BTreeSet<(u64, PinId)>,
    /// Hashes of all pins, repeats counted.
    hashes: usize,
    held: u32,
    /// Protected blocks, each with the tenant whose pin it is.
    pinned: HashMap<u32, u16, RandomState>,
    /// Who pays for a held block that another tenant has brought.
    payers: HashMap<u32, u16, RandomState>,
    /// Registered blocks that a tenant's pins cover and that found no room in a budget, or that another tenant's pin
    /// protects for now.
    starved: BTreeSet<(u16, u128)>,
    /// Blocks that were looked at to find room for one.
    steps: u64,
}

impl Pins {
    pub(crate) fn new(blocks: u32, held_max: u32) -> Self {
        Self {
            held_max,
            pins_max: PINS_MAX,
            hashes_max: CLAIMS_LEAST_MAX.max(blocks as usize * CLAIMS_PER_BLOCK_MAX),
            pins: HashMap::default(),
            covers: HashMap::default(),
            ends: BTreeSet::new(),
            hashes: 0,
            held: 0,
            pinned: HashMap::default(),
            payers: HashMap::default(),
            starved: BTreeSet::new(),
            steps: 0,
        }
    }

    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        self.ends.first().map(|end| end.0)
    }

    fn cover(&mut self, tenant: u16, hash: u128) {
        let covers = self.covers.entry(hash).or_default();
        match covers.binary_search_by_key(&tenant, |cover| cover.tenant) {
            Ok(at) => covers[at].pins += 1,
            Err(at) => covers.insert(at, Cover { tenant, pins: 1 }),
        }
    }

    /// One pin less; whether none of the tenant's covers that hash any more.
    fn uncover(&mut self, tenant: u16, hash: u128) -> bool {
        let Some(covers) = self.covers.get_mut(&hash) else { return false };
        let Ok(at) = covers.binary_search_by_key(&tenant, |cover| cover.tenant) else {
            return false;
        };
        covers[at].pins -= 1;
        if covers[at].pins > 0 {
            return false;
        }
        covers.remove(at);
        if covers.is_empty() {
            self.covers.remove(&hash);
        }
        self.starved.remove(&(tenant, hash));
        true
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
        now_ms: u64,
    ) -> Result<u32, BlockError> {
        self.expire(now_ms);
        let own = self.tenants.enter(tenant)?;
        let limit = own.held_max.min(self.pins.held_max);
        let (own_pins, own_hashes) = (own.pins, own.pin_hashes);
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
        // A pin that comes to another tenant is as good as a new one of that tenant.
        let old = self.pins.pins.get(&id).filter(|pin| pin.tenant == tenant);
        let (pins, pins_max) = (self.pins.pins.len(), self.pins.pins_max);
        if old.is_none() && !is_within_share(own_pins, 1, pins, pins_max) {
            return Err(BlockError::Many { what: "pins", limit: pins_max });
        }
        let was = old.map_or(0, |pin| pin.hashes.len());
        let (all, limit) = (self.pins.hashes - was, self.pins.hashes_max);
        if wanted.len() > was && !is_within_share(own_hashes - was, wanted.len(), all, limit) {
            return Err(BlockError::Many { what: "hashes in pins", limit });
        }
        // The new one takes hold before the old one lets go, so that what both name never goes.
        for hash in &wanted {
            self.pins.cover(tenant, *hash);
        }
        self.protect_all(wanted.iter().map(|hash| (tenant, *hash)).collect());
        if let Some(old) = self.take_pin(id)
            && self.uncover(&old)
        {
            self.retry_starved();
        }
        let held = wanted.iter().filter(|hash| self.is_pinned(**hash)).count() as u32;
        self.put_pin(id, Pin { tenant, hashes: wanted, ends_ms });
        Ok(held)
    }

    /// Ends a pin; `None` when there is no such pin, else how many of its blocks were protected.
    pub fn unpin(&mut self, id: PinId) -> Option<u32> {
        let pin = self.take_pin(id)?;
        let held = pin.hashes.iter().filter(|hash| self.is_pinned(**hash)).count();
        if self.uncover(&pin) {
            self.retry_starved();
        }
        Some(held as u32)
    }

    /// Whether there is such a pin.
    #[must_use]
    pub fn has_pin(&self, id: PinId) -> bool {
        self.pins.pins.contains_key(&id)
    }

    /// All that are over let go before those that wait are looked at, once for all.
    pub(crate) fn expire_pins(&mut self, now_ms: u64) {
        let mut is_any_free = false;
        while let Some((ends_ms, id)) = self.pins.ends.first().copied() {
            if ends_ms > now_ms {
                break;
            }
            if let Some(pin) = self.take_pin(id) {
                is_any_free |= self.uncover(&pin);
            }
            self.changes.pin_expired(id);
        }
        if is_any_free {
            self.retry_starved();
        }
    }

    fn put_pin(&mut self, id: PinId, pin: Pin) {
        let own = self.tenants.known(pin.tenant);
        own.pins += 1;
        own.pin_hashes += pin.hashes.len();
        self.pins.ends.insert((pin.ends_ms, id));
        self.pins.hashes += pin.hashes.len();
        self.pins.pins.insert(id, pin);
    }

    /// Forgets a pin, but for what it covers.
    fn take_pin(&mut self, id: PinId) -> Option<Pin> {
        let pin = self.pins.pins.remove(&id)?;
        let own = self.tenants.known(pin.tenant);
        own.pins -= 1;
        own.pin_hashes -= pin.hashes.len();
        self.pins.ends.remove(&(pin.ends_ms, id));
        self.pins.hashes -= pin.hashes.len();
        Some(pin)
    }

    fn is_pinned(&self, hash: u128) -> bool {
        self.by_hash.get(&hash).is_some_and(|id| self.pins.pinned.contains_key(id))
    }

    /// A block was registered: the pins that wait for it take hold.
    pub(crate) fn pin_at_birth(&mut self, id: u32) {
        if self.pins.covers.is_empty() {
            return;
        }
        let hash = self.blocks[id as usize].hash;
        let Some(covers) = self.pins.covers.get(&hash) else { return };
        let tenants: Vec<u16> = covers.iter().map(|cover| cover.tenant).collect();
        for tenant in tenants {
            self.protect(tenant, hash, &Rises::default());
        }
    }

    /// Protects those that are here, the ones that need the fewest ancestors first: so an ancestor comes before what
    /// follows it.
    fn protect_all(&mut self, mut wanted: Vec<(u16, u128)>) {
        let mut rises = Rises { held: self.pins.held, ..Rises::default() };
        wanted.retain(|(_, hash)| self.by_hash.contains_key(hash));
        let mut order: Vec<(u32, u16, u128)> = Vec::with_capacity(wanted.len());
        for (tenant, hash) in wanted {
            let depth = self.unheld_above(hash, &mut rises);
            order.push((depth, tenant, hash));
        }
        order.sort_unstable();
        for (_, tenant, hash) in order {
            self.protect(tenant, hash, &rises);
        }
    }

    /// How many blocks nothing holds yet, from this one up; each is looked at once for all that ask.
    fn unheld_above(&mut self, hash: u128, rises: &mut Rises) -> u32 {
        let Some(mut at) = self.by_hash.get(&hash).copied() else { return 0 };
        let mut path = Vec::new();
        let mut above = loop {
            if !self.is_unheld(at) {
                break None;
            }
            if let Some(rise) = rises.of.get(&at) {
                break Some((at, *rise));
            }
            path.push(at);
            at = self.blocks[at as usize].parent;
        };
        self.pins.steps += path.len() as u64;
        for id in path.into_iter().rev() {
            let rise = match above {
                None => Rise { depth: 1, jump: id },
                Some((parent, rise)) => {
                    // Two jumps of one length become one that is longer than both.
                    let jump = rises.of.get(&rise.jump).copied().unwrap_or(rise);
                    let is_even = rise.depth - jump.depth
                        == jump.depth - rises.of.get(&jump.jump).unwrap_or(&jump).depth;
                    let jump = if is_even { jump.jump } else { parent };
                    Rise { depth: rise.depth + 1, jump }
                }
            };
            rises.of.insert(id, rise);
            above = Some((id, rise));
        }
        above.map_or(0, |(_, rise)| rise.depth)
    }

    fn is_unheld(&self, id: u32) -> bool {
        self.blocks.get(id as usize).is_some_and(|block| block.holds == 0)
    }

    /// Whether from this one up no more than `room` blocks are held by nothing. `rises` are of when fewer were held; from
    /// a block that is not in them its ancestors are walked.
    fn has_room_above(&mut self, id: u32, room: u32, rises: &Rises) -> bool {
        if !self.is_unheld(id) {
            return true;
        }
        let Some(from) = rises.of.get(&id).copied() else {
            let (mut unheld, mut at) = (0, id);
            while unheld <= room && self.is_unheld(at) {
                unheld += 1;
                self.pins.steps += 1;
                at = self.blocks[at as usize].parent;
            }
            return unheld <= room;
        };
        // It needs no more than it did, and no less where nothing was held since.
        if room == 0 || from.depth <= room || self.pins.held == rises.held {
            return room > 0 && from.depth <= room;
        }
        // The uppermost one that nothing holds: whatever holds one below it holds it too.
        let (mut at, mut top) = (id, from);
        loop {
            self.pins.steps += 1;
            let parent = self.blocks[at as usize].parent;
            at = if top.jump != at && self.is_unheld(top.jump) { top.jump } else { parent };
            match rises.of.get(&at).copied().filter(|_| self.is_unheld(at)) {
                Some(rise) => top = rise,
                None => break,
            }
        }
        from.depth - top.depth < room
    }

    /// Protects a covered block that is here, where the budgets have room for it and for those of its ancestors that
    /// nothing holds yet.
    fn protect(&mut self, tenant: u16, hash: u128, rises: &Rises) {
        let Some(id) = self.by_hash.get(&hash).copied() else { return };
        match self.pins.pinned.get(&id) {
            Some(by) if *by == tenant => return,
            // Its turn comes when that one's is over.
            Some(_) => {
                self.pins.starved.insert((tenant, hash));
                return;
            }
            None => {}
        }
        let own = self.tenants.known(tenant);
        let room = self.pins.held_max.saturating_sub(self.pins.held);
        let room = room.min(own.held_max.saturating_sub(own.held));
        // Where a budget was cut below what is held, there is no room for what costs nothing either.
        let is_within = self.pins.held <= self.pins.held_max && own.held <= own.held_max;
        if is_within && self.has_room_above(id, room, rises) {
            self.pins.pinned.insert(id, tenant);
            self.add_hold(id, tenant);
            self.pins.starved.remove(&(tenant, hash));
        } else {
            self.pins.starved.insert((tenant, hash));
        }
    }

    /// A registered block goes; only unprotected ones do.
    pub(crate) fn forget_starved(&mut self, hash: u128) {
        if self.pins.starved.is_empty() {
            return;
        }
        for cover in self.pins.covers.get(&hash).into_iter().flatten() {
            self.pins.starved.remove(&(cover.tenant, hash));
        }
    }

    /// Whoever found no room before may find some now.
    pub(crate) fn retry_starved(&mut self) {
        let starved = std::mem::take(&mut self.pins.starved);
        self.protect_all(starved.into_iter().collect());
    }

    /// Takes back what a pin covers; whether that ended a block's protection, from which alone room comes.
    fn uncover(&mut self, pin: &Pin) -> bool {
        let mut has_ended = false;
        for hash in &pin.hashes {
            if !self.pins.uncover(pin.tenant, *hash) {
                continue;
            }
            if let Some(id) = self.by_hash.get(hash).copied()
                && self.pins.pinned.get(&id) == Some(&pin.tenant)
            {
                self.pins.pinned.remove(&id);
                self.drop_hold(id);
                has_ended = true;
            }
        }
        has_ended
    }

    /// Holds a block, and through it its ancestors, at the expense of that tenant.
    fn add_hold(&mut self, mut id: u32, payer: u16) {
        while id != NONE {
            let block = &mut self.blocks[id as usize];
            if block.is_idle() {
                self.set_idle(id, false);
            }
            let block = &mut self.blocks[id as usize];
            block.holds += 1;
            if block.holds > 1 {
                return;
            }
            let (parent, owner) = (block.parent, block.tenant);
            self.pins.held += 1;
            self.tenants.known(payer).held += 1;
            if payer != owner {
                self.pins.payers.insert(id, payer);
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
            let (parent, owner, is_idle) = (block.parent, block.tenant, block.is_idle());
            let payer = self.pins.payers.remove(&id).unwrap_or(owner);
            self.pins.held -= 1;
            self.tenants.known(payer).held -= 1;
            if is_idle {
                self.set_idle(id, true);
            }
            self.list_if_leaf(id);
            id = parent;
        }
    }
}
