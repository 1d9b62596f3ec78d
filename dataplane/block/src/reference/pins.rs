//! The reference's pins: all that are covered are looked at anew whenever anything changes.

use std::collections::BTreeSet;

use super::Reference;

impl Reference {
    pub(super) fn covered(&self) -> BTreeSet<(u32, u128)> {
        self.pins.values().flat_map(|pin| pin.1.iter().map(|hash| (pin.0, *hash))).collect()
    }

    /// Protects a covered block if that keeps the budgets.
    pub(super) fn protect(&mut self, tenant: u32, hash: u128) {
        let held_max = self.budget(tenant).1;
        let Some(node) = self.find(hash).filter(|node| node.pinned.is_none()) else { return };
        node.pinned = Some(tenant);
        let held = self.held();
        let before = self.nodes.clone();
        for node in self.nodes.iter_mut().filter(|n| held.contains(&n.hash)) {
            node.payer = node.payer.or(Some(tenant));
        }
        let paid = self.nodes.iter().filter(|node| node.payer == Some(tenant)).count();
        // A block that others hold already costs nothing, unless a budget was cut below what is held.
        let fits =
            held.len() as u64 <= u64::from(self.held_max) && paid as u64 <= u64::from(held_max);
        if !fits {
            self.nodes = before;
            self.find(hash).unwrap().pinned = None;
        }
    }

    /// Those that need the fewest blocks beside what is held come first.
    fn protect_all(&mut self, wanted: BTreeSet<(u32, u128)>) {
        let held = self.held();
        let needs = |hash: u128| {
            let (mut count, mut at) = (0, Some(hash));
            while let Some(node) = self.nodes.iter().find(|n| Some(n.hash) == at) {
                count += u32::from(!held.contains(&node.hash));
                at = node.parent;
            }
            count
        };
        let mut order: Vec<(u32, u32, u128)> =
            wanted.into_iter().map(|(tenant, hash)| (needs(hash), tenant, hash)).collect();
        order.sort_unstable();
        for (_, tenant, hash) in order {
            self.protect(tenant, hash);
        }
    }

    pub(in super::super) fn pin(
        &mut self,
        id: u128,
        tenant: u32,
        hashes: &[u128],
        ends_ms: u64,
    ) -> bool {
        let wanted: BTreeSet<u128> = hashes.iter().copied().collect();
        if wanted.len() as u64 > u64::from(self.held_max.min(self.budget(tenant).1)) {
            return false;
        }
        let old = self.pins.remove(&id);
        // Both are in force while the new one takes hold.
        if let Some(old) = &old {
            self.pins.insert(id + (1 << 64), old.clone());
        }
        self.pins.insert(id, (tenant, wanted.clone(), ends_ms));
        self.protect_all(wanted.into_iter().map(|hash| (tenant, hash)).collect());
        if old.is_some() {
            self.pins.remove(&(id + (1 << 64)));
            self.settle(false);
        }
        true
    }

    pub(in super::super) fn unpin(&mut self, id: u128) -> bool {
        let known = self.pins.remove(&id).is_some();
        self.settle(false);
        known
    }

    /// Unprotects what no pin covers; where that was anything, or a budget has changed, others may find room.
    pub(super) fn settle(&mut self, mut is_room: bool) {
        let covered = self.covered();
        for node in &mut self.nodes {
            if let Some(tenant) = node.pinned
                && !covered.contains(&(tenant, node.hash))
            {
                node.pinned = None;
                is_room = true;
            }
        }
        let held = self.held();
        for node in self.nodes.iter_mut().filter(|node| !held.contains(&node.hash)) {
            node.payer = None;
        }
        if is_room {
            self.protect_all(covered);
        }
    }

    pub(in super::super) fn set_budget(&mut self, tenant: u32, blocks_max: u32, held_max: u32) {
        self.budgets.insert(tenant, (blocks_max, held_max));
        self.settle(true);
    }

    pub(in super::super) fn advance(&mut self, ms: u64) {
        self.now_ms += ms;
        let now_ms = self.now_ms;
        self.pins.retain(|_, pin| pin.2 > now_ms);
        self.settle(false);
    }
}
