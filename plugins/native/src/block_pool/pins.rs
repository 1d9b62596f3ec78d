//! Pins: leases on sequence hashes, of blocks that are held and of blocks still to come.
//!
//! A pin reserves one block of the budget per distinct hash, held or not, so that a later birth
//! cannot push the pool over its bound. Ancestors that no pin names but that a pinned block needs
//! count as well. A pinned block that is born where its unnamed ancestors would burst the budget is
//! born unpinned.

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
    /// The pinned share of the pool is used up.
    #[error("pins would hold {wanted} of {limit} blocks; let some end, or raise `pin_fraction`")]
    Blocks {
        /// What pins would hold.
        wanted: u64,
        /// What they may.
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

    /// Blocks that count against the budget: every covered hash, and ancestors held only for
    /// others.
    fn cost(&self) -> u64 {
        self.covers.len() as u64 + u64::from(self.held - self.pinned)
    }
}

impl BlockPool {
    /// Takes, renews or replaces a pin until `ends_ms`; answers with how many of its blocks are
    /// held now.
    pub fn pin(&mut self, pin_id: u128, hashes: &[u128], ends_ms: u64) -> Result<u32, PinError> {
        let mut distinct = HashSet::with_capacity(hashes.len().min(self.total as usize));
        let mut wanted = Vec::new();
        for hash in hashes {
            if distinct.insert(*hash) {
                wanted.push(*hash);
            }
            if wanted.len() as u64 > u64::from(self.pins.limit) {
                let limit = self.pins.limit;
                return Err(PinError::Blocks { wanted: u64::from(limit) + 1, limit });
            }
        }
        let old = self.pins.pins.remove(&pin_id);
        let old_claims = old.as_ref().map_or(0, |pin| pin.hashes.len());
        let claims_max = CLAIMS_LEAST.max(self.total as usize * CLAIMS_PER_BLOCK);
        let refused = if old.is_none() && self.pins.pins.len() >= PINS_MAX {
            Some(PinError::Many { what: "pins", limit: PINS_MAX })
        } else if self.pins.claims - old_claims + wanted.len() > claims_max {
            Some(PinError::Many { what: "hashes in pins", limit: claims_max })
        } else {
            self.exchange(&wanted, old.as_ref().map_or(&[], |pin| &pin.hashes)).err()
        };
        if let Some(error) = refused {
            if let Some(old) = old {
                self.pins.pins.insert(pin_id, old);
            }
            return Err(error);
        }
        if let Some(old) = old {
            self.pins.ends.remove(&(old.ends_ms, pin_id));
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

    /// Covers one set instead of another, or leaves all as it was where that would cost too much.
    fn exchange(&mut self, wanted: &[u128], old: &[u128]) -> Result<(), PinError> {
        let before: Vec<(u128, bool)> =
            wanted.iter().chain(old).map(|hash| (*hash, self.is_pinned(*hash))).collect();
        self.cover(wanted);
        self.uncover(old);
        let cost = self.pins.cost();
        if cost <= u64::from(self.pins.limit) {
            return Ok(());
        }
        self.cover(old);
        self.uncover(wanted);
        // Blocks that were born unpinned for want of budget stay so.
        for (hash, pinned) in before {
            if !pinned && self.is_pinned(hash) {
                self.clear_pinned(hash);
            }
        }
        Err(PinError::Blocks { wanted: cost, limit: self.pins.limit })
    }

    fn is_pinned(&self, hash: u128) -> bool {
        self.lookup(hash).is_some_and(|id| self.blocks[id as usize].pinned)
    }

    /// A block was registered: the pins that wait for it take hold.
    pub(super) fn pin_at_birth(&mut self, id: BlockId, hash: u128) {
        if !self.pins.covers.contains_key(&hash) {
            return;
        }
        let mut unheld_ancestors = 0;
        let mut above = self.blocks[id as usize].parent;
        while above != NONE && self.blocks[above as usize].holds == 0 {
            unheld_ancestors += 1;
            above = self.blocks[above as usize].parent;
        }
        if self.pins.cost() + unheld_ancestors <= u64::from(self.pins.limit) {
            self.set_pinned(id);
        }
    }

    fn cover(&mut self, hashes: &[u128]) {
        for hash in hashes {
            *self.pins.covers.entry(*hash).or_insert(0) += 1;
            if let Some(id) = self.lookup(*hash)
                && !self.blocks[id as usize].pinned
            {
                self.set_pinned(id);
            }
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
            self.clear_pinned(*hash);
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
