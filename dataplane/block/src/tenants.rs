//! What each tenant occupies of a pool, and may.
//!
//! A tenant with a budget has an order of eviction of its own, so that it pays for its own growth
//! and finds whom to evict without a look at others. Tenants without one cost a few counters. Of
//! what the whole pool has only so many of, leases and pins above all, a tenant may have as many as
//! are left for others, so that one alone gets half of them and the next one half of the rest. Since
//! halves are used up soon, a sixteenth is left for those who have nearly none yet: so sixty-four
//! tenants get a thousandth each, whatever others have taken. Past those, who comes first is served.

use super::queue::Queue;
use super::{BlockError, TENANTS_MAX};

/// A tenant's number, small and dense, chosen by whoever owns the pool: below [`TENANTS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct TenantSlot(pub u32);

impl TenantSlot {
    pub(crate) fn at(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
pub(crate) struct Tenant {
    /// Being filled or registered.
    pub(crate) blocks: u32,
    /// Registered, without user and hold.
    pub(crate) reclaimable: u32,
    /// Of these, those that a block of another tenant follows: it can't let them go itself. They count as none of its
    /// own, or others could fill its budget by going on from its blocks.
    pub(crate) lent: u32,
    /// Held by its pins.
    pub(crate) held: u32,
    /// Most blocks; all of them where nobody said less.
    pub(crate) blocks_max: u32,
    /// Most held blocks.
    pub(crate) held_max: u32,
    /// Those that may go, where there is a budget.
    pub(crate) queue: Option<Queue>,
    pub(crate) leases: usize,
    /// Leases whose time is over.
    pub(crate) leases_over: usize,
    /// Blocks of its leases.
    pub(crate) claims: usize,
    pub(crate) pins: usize,
    /// Hashes of its pins.
    pub(crate) pin_hashes: usize,
}

/// What of a limit is for those who have nearly none, as a divisor.
const RESERVED: usize = 16;
/// What nearly none is.
const NEARLY_NONE: usize = 1024;

/// Whether a tenant that has `own` of `all` may have `more` of them: as many as are left for others beside what is
/// reserved for those who have nearly none, or as long as it is one of those.
pub(crate) fn is_within_share(own: usize, more: usize, all: usize, limit: usize) -> bool {
    let own = own.saturating_add(more);
    let is_nearly_none = own <= (limit / NEARLY_NONE).max(1);
    let left = limit.saturating_sub(all);
    own <= left.saturating_sub(limit / RESERVED) || is_nearly_none && more <= left
}

/// Tenants by their number.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    tenants: Vec<Tenant>,
}

impl Tenants {
    pub(crate) fn get(&self, slot: u32) -> Option<&Tenant> {
        self.tenants.get(slot as usize)
    }

    /// A tenant that was seen before.
    pub(crate) fn known(&mut self, slot: u16) -> &mut Tenant {
        &mut self.tenants[slot as usize]
    }

    pub(crate) fn enter(&mut self, slot: TenantSlot) -> Result<&mut Tenant, BlockError> {
        if slot.0 >= TENANTS_MAX {
            return Err(BlockError::Many { what: "tenants", limit: TENANTS_MAX as usize });
        }
        while self.tenants.len() <= slot.at() {
            self.tenants.push(Tenant {
                blocks: 0,
                reclaimable: 0,
                lent: 0,
                held: 0,
                blocks_max: u32::MAX,
                held_max: u32::MAX,
                queue: None,
                leases: 0,
                leases_over: 0,
                claims: 0,
                pins: 0,
                pin_hashes: 0,
            });
        }
        Ok(&mut self.tenants[slot.at()])
    }
}
