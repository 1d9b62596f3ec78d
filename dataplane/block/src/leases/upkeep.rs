//! The tables behind leases: whose time is over, and what claims leave on their blocks.
//!
//! A claim is a number and the generation of what was there, so that one on a block that has gone
//! is void without anybody having looked for it.

use std::collections::HashSet;

use foldhash::fast::RandomState;

use super::super::block::Block;
use super::super::levels::Level;
use super::super::manager::BlockManager;
use super::super::{NEVER_MS, PRIORITY_DEFAULT};
use super::{Claim, Lease, SWEPT_MAX};

impl BlockManager {
    pub(crate) fn expire_leases(&mut self, now_ms: u64) {
        while let Some((ends_ms, serial, index)) = self.leases.ends.first().copied() {
            if ends_ms > now_ms {
                return;
            }
            self.leases.ends.pop_first();
            let Some(lease) = self.leases.leases.get_mut(&serial) else { continue };
            let span = &mut lease.spans[index as usize];
            span.over = true;
            let (stretch, kind) = (span.claims.clone(), span.kind);
            if lease.ends_ms <= ends_ms {
                let over = (lease.tenant, lease.ends_ms, serial);
                self.list_over(over);
            }
            let Some(lease) = self.leases.leases.get_mut(&serial) else { continue };
            let claims = std::mem::take(&mut lease.claims);
            for claim in &claims[stretch] {
                if let Some(block) = claimed(&mut self.blocks, *claim) {
                    self.levels.run_out(block.levels, kind.counted(claim.is_round()));
                    self.relist(claim.block());
                }
            }
            if let Some(lease) = self.leases.leases.get_mut(&serial) {
                lease.claims = claims;
            }
        }
    }

    /// Forgets leases whose blocks have gone: of each call a stretch, so that in time all are looked at.
    pub(super) fn forget_void_leases(&mut self, spare: Option<u64>) {
        let leases = &self.leases.leases;
        let next = leases.range(self.leases.swept..).chain(leases.range(..self.leases.swept));
        let is_here = |claim: &Claim| {
            let block = self.blocks.get(claim.block() as usize);
            block.is_some_and(|block| block.generation == claim.generation)
        };
        let is_void = |lease: &Lease| {
            !lease.root.as_ref().is_some_and(is_here) && !lease.claims.iter().any(is_here)
        };
        let stretch: Vec<(u64, bool)> =
            next.take(SWEPT_MAX).map(|(serial, lease)| (*serial, is_void(lease))).collect();
        for (serial, is_void) in stretch {
            self.leases.swept = serial + 1;
            if is_void && Some(serial) != spare {
                self.take_lease(serial);
            }
        }
    }

    /// A lease is over; it was listed already where several of its spans end at once.
    fn list_over(&mut self, over: (u16, u64, u64)) {
        if self.leases.over.insert(over) {
            self.count_over(over.0, 1);
        }
    }

    fn count_over(&mut self, tenant: u16, by: isize) {
        let count = &mut self.tenants.known(tenant).leases_over;
        self.leases.most_over.remove(&(*count, tenant));
        *count = count.saturating_add_signed(by);
        if *count > 0 {
            self.leases.most_over.insert((*count, tenant));
        }
    }

    pub(super) fn put_lease(&mut self, lease: Lease) {
        let leases = &mut self.leases;
        leases.serials += 1;
        for (index, span) in lease.spans.iter().enumerate() {
            if span.ends_ms != NEVER_MS && !span.over {
                leases.ends.insert((span.ends_ms, leases.serials, index as u32));
            }
        }
        let own = self.tenants.known(lease.tenant);
        own.leases += 1;
        own.claims += lease.claims.len();
        leases.claims += lease.claims.len();
        leases.names.insert((lease.tenant, lease.id), leases.serials);
        let over = (lease.tenant, lease.ends_ms, leases.serials);
        let is_over = lease.spans.iter().all(|span| span.over);
        leases.leases.insert(leases.serials, lease);
        if is_over {
            self.list_over(over);
        }
    }

    /// Takes a lease out of all tables.
    pub(super) fn take_lease(&mut self, serial: u64) -> Option<Lease> {
        let lease = self.leases.leases.remove(&serial)?;
        self.leases.names.remove(&(lease.tenant, lease.id));
        self.leases.claims -= lease.claims.len();
        let own = self.tenants.known(lease.tenant);
        own.leases -= 1;
        own.claims -= lease.claims.len();
        if self.leases.over.remove(&(lease.tenant, lease.ends_ms, serial)) {
            self.count_over(lease.tenant, -1);
        }
        for (index, span) in lease.spans.iter().enumerate() {
            self.leases.ends.remove(&(span.ends_ms, serial, index as u32));
        }
        Some(lease)
    }

    /// Takes the claims of a lease that is in no table any more off its blocks; `leave` says, by the number of the
    /// claim, what stays behind.
    pub(super) fn drop_claims(&mut self, lease: &Lease, leave: impl Fn(usize, &mut Block, Level)) {
        for span in &lease.spans {
            for at in span.claims.clone() {
                let claim = lease.claims[at];
                if let Some(block) = claimed(&mut self.blocks, claim) {
                    let kind = span.kind.counted(claim.is_round());
                    self.levels.remove(&mut block.levels, kind, span.over);
                    leave(at, block, kind.level(span.over));
                    self.relist(claim.block());
                }
            }
        }
    }
}

/// The block of a claim, unless it has gone since.
pub(super) fn claimed(blocks: &mut [Block], claim: Claim) -> Option<&mut Block> {
    let block = blocks.get_mut(claim.block() as usize);
    block.filter(|block| block.generation == claim.generation)
}

/// What a claim without which a block goes on leaves behind.
pub(super) fn leave_at_most_default(block: &mut Block, level: Level) {
    block.raise_floor(level.priority().min(PRIORITY_DEFAULT));
}

/// Which claims, by their number in `old`, `new` does not repeat. A turn's table goes on from the last one's nearly
/// always, so that no set is built.
pub(super) fn dropped(old: &[Claim], new: &[Claim]) -> impl Fn(usize) -> bool {
    let same = old.iter().zip(new).take_while(|(old, new)| old.place() == new.place()).count();
    let missing: HashSet<usize> = if same == old.len() {
        HashSet::new()
    } else {
        let repeated: HashSet<(u32, u32), RandomState> =
            new.iter().map(|claim| claim.place()).collect();
        (same..old.len()).filter(|at| !repeated.contains(&old[*at].place())).collect()
    };
    move |at| missing.contains(&at)
}
