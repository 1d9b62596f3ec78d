//! Pins: leases on sequence hashes, of blocks that are held and of blocks still to come.
//!
//! Every worker is told of every pin of its namespace, so a pin costs nothing until its blocks are
//! here: only held blocks count against the budget. A covered block for which the budget has no
//! room is not protected, is counted as missing, and gets its protection as soon as another pin
//! ends. Ancestors that no pin names but that a pinned block needs count as well.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{BlockId, BlockPool, NONE};

/// The most pins at a time.
pub const PINS_MAX: usize = 1 << 16;
/// The most hashes of all pins together, repeats counted, per block of the pool.
const CLAIMS_PER_BLOCK: usize = 64;
/// The same for small pools.
const CLAIMS_LEAST: usize = 1 << 16;

/// Why a pin was refused; nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// The pin alone is larger than the pinned share of the pool.
    #[error(
        "the pin has more than {limit} blocks, all that pins may hold here; raise `pin_fraction`"
    )]
    Blocks {
        /// What all pins together may hold.
        limit: u32,
    },
    /// Too many pins, or too many hashes in them.
    #[error("more than {limit} {what}; let some end")]
    Many {
        /// Of which.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
}

struct Pin {
    hashes: Vec<u128>,
    ends_ms: u64,
}

pub(super) struct Pins {
    limit: u32,
    pins: HashMap<u128, Pin>,
    /// How many pins cover a hash.
    covers: HashMap<u128, u32>,
    /// Ends of pins.
    ends: BTreeSet<(u64, u128)>,
    /// Hashes of all pins, repeats counted.
    claims: usize,
    /// Blocks with a hold.
    held: u32,
    /// Blocks with a pin of their own in force.
    pinned: u32,
    /// Hashes of held blocks that are covered but found no room in the budget.
    starved: BTreeSet<u128>,
}

impl Pins {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit,
            pins: HashMap::new(),
            covers: HashMap::new(),
            ends: BTreeSet::new(),
            claims: 0,
            held: 0,
            pinned: 0,
            starved: BTreeSet::new(),
        }
    }

    pub(super) fn held(&self) -> u32 {
        self.held
    }

    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.ends.first().map(|end| end.0)
    }

    pub(super) fn due(&self, now_ms: u64) -> Vec<u128> {
        self.ends.iter().take_while(|end| end.0 <= now_ms).map(|end| end.1).collect()
    }
}

impl BlockPool {
    /// Takes, renews or replaces a pin until `ends_ms`; answers with how many of its blocks are
    /// protected now.
    pub fn pin(&mut self, pin_id: u128, hashes: &[u128], ends_ms: u64) -> Result<u32, PinError> {
        let mut distinct = HashSet::with_capacity(hashes.len().min(self.total as usize));
        let mut wanted = Vec::new();
        for hash in hashes {
            if distinct.insert(*hash) {
                wanted.push(*hash);
            }
            if wanted.len() as u64 > u64::from(self.pins.limit) {
                return Err(PinError::Blocks { limit: self.pins.limit });
            }
        }
        let old_claims = self.pins.pins.get(&pin_id).map_or(0, |pin| pin.hashes.len());
        let claims_max = CLAIMS_LEAST.max(self.total as usize * CLAIMS_PER_BLOCK);
        if !self.pins.pins.contains_key(&pin_id) && self.pins.pins.len() >= PINS_MAX {
            return Err(PinError::Many { what: "pins", limit: PINS_MAX });
        }
        if self.pins.claims - old_claims + wanted.len() > claims_max {
            return Err(PinError::Many { what: "hashes in pins", limit: claims_max });
        }
        self.cover(&wanted);
        if let Some(old) = self.pins.pins.remove(&pin_id) {
            self.pins.ends.remove(&(old.ends_ms, pin_id));
            self.uncover(&old.hashes);
        }
        let held = wanted.iter().filter(|hash| self.is_pinned(**hash)).count() as u32;
        self.pins.ends.insert((ends_ms, pin_id));
        self.pins.claims = self.pins.claims - old_claims + wanted.len();
        self.pins.pins.insert(pin_id, Pin { hashes: wanted, ends_ms });
        Ok(held)
    }

    /// Ends a pin; `None` when there is no such pin, else how many of its blocks were held.
    pub fn unpin(&mut self, pin_id: u128) -> Option<u32> {
        let pin = self.pins.pins.remove(&pin_id)?;
        let held = pin.hashes.iter().filter(|hash| self.is_pinned(**hash)).count() as u32;
        self.pins.ends.remove(&(pin.ends_ms, pin_id));
        self.pins.claims -= pin.hashes.len();
        self.uncover(&pin.hashes);
        Some(held)
    }

    fn is_pinned(&self, hash: u128) -> bool {
        self.lookup(hash).is_some_and(|id| self.blocks[id as usize].pinned)
    }

    /// A block was registered: the pins that wait for it take hold.
    pub(super) fn pin_at_birth(&mut self, hash: u128) {
        if self.pins.covers.contains_key(&hash) {
            self.protect(hash);
        }
    }

    /// Protects a covered block that is held, where the budget has room for it and for those of its
    /// ancestors that nothing holds yet.
    fn protect(&mut self, hash: u128) {
        let Some(id) = self.lookup(hash) else { return };
        if self.blocks[id as usize].pinned {
            return;
        }
        let mut unheld: u32 = 0;
        let mut at = id;
        while at != NONE && self.blocks[at as usize].holds == 0 {
            unheld += 1;
            at = self.blocks[at as usize].parent;
        }
        if u64::from(self.pins.held) + u64::from(unheld) <= u64::from(self.pins.limit) {
            self.set_pinned(id);
            self.pins.starved.remove(&hash);
        } else {
            self.pins.starved.insert(hash);
        }
    }

    /// A registered block goes; only unprotected ones do.
    pub(super) fn forget_starved(&mut self, hash: u128) {
        self.pins.starved.remove(&hash);
    }

    fn cover(&mut self, hashes: &[u128]) {
        for hash in hashes {
            *self.pins.covers.entry(*hash).or_insert(0) += 1;
            self.protect(*hash);
        }
    }

    fn uncover(&mut self, hashes: &[u128]) {
        for hash in hashes {
            let Some(count) = self.pins.covers.get_mut(hash) else { continue };
            *count -= 1;
            if *count > 0 {
                continue;
            }
            self.pins.covers.remove(hash);
            self.pins.starved.remove(hash);
            self.clear_pinned(*hash);
        }
        // Whoever found no room before may find some now.
        for hash in std::mem::take(&mut self.pins.starved) {
            self.protect(hash);
        }
    }

    fn clear_pinned(&mut self, hash: u128) {
        if let Some(id) = self.lookup(hash)
            && self.blocks[id as usize].pinned
        {
            self.blocks[id as usize].pinned = false;
            self.pins.pinned -= 1;
            self.drop_hold(id);
        }
    }

    fn set_pinned(&mut self, id: BlockId) {
        self.blocks[id as usize].pinned = true;
        self.pins.pinned += 1;
        self.add_hold(id);
    }

    /// Holds a block, and through it its ancestors.
    fn add_hold(&mut self, mut id: BlockId) {
        while id != NONE {
            let block = &mut self.blocks[id as usize];
            block.holds += 1;
            if block.holds > 1 {
                return;
            }
            self.pins.held += 1;
            let parent = block.parent;
            if block.references == 0 {
                self.reclaimable -= 1;
            }
            self.unlist(id);
            id = parent;
        }
    }

    fn drop_hold(&mut self, mut id: BlockId) {
        while id != NONE {
            let block = &mut self.blocks[id as usize];
            block.holds -= 1;
            if block.holds > 0 {
                return;
            }
            self.pins.held -= 1;
            let parent = block.parent;
            if block.references == 0 {
                self.reclaimable += 1;
            }
            self.list_if_leaf(id);
            id = parent;
        }
    }
}
