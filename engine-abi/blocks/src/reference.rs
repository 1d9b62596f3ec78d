//! A block pool as simple as it can be, to hold the real one against: lists instead of indices, and
//! every figure computed from scratch. It knows hashes only, no block numbers.

use std::collections::{BTreeMap, BTreeSet};

use super::{Claim, PRIORITY_DEFAULT};

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) parent: Option<u128>,
    pub(super) references: u32,
    pub(super) pinned: bool,
    last_use: u64,
    claims: Vec<(u8, u64)>,
    plain: bool,
}

#[derive(Default)]
pub(super) struct Reference {
    pub(super) total: u32,
    pub(super) limit: u64,
    pub(super) nodes: BTreeMap<u128, Node>,
    /// Blocks being filled, under no hash yet.
    pub(super) filling: u32,
    pub(super) pins: BTreeMap<u128, (BTreeSet<u128>, u64)>,
    pub(super) uses: u64,
    pub(super) evicted: Vec<u128>,
}

impl Reference {
    /// Registered blocks that a pin keeps, itself or through a descendant.
    pub(super) fn held(&self) -> BTreeSet<u128> {
        let mut held = BTreeSet::new();
        for (hash, node) in &self.nodes {
            let mut at = node.pinned.then_some(*hash);
            while let Some(hash) = at {
                held.insert(hash);
                at = self.nodes[&hash].parent;
            }
        }
        held
    }

    fn covered(&self) -> BTreeSet<u128> {
        self.pins.values().flat_map(|pin| pin.0.iter().copied()).collect()
    }

    /// Protects a covered block if that keeps the budget.
    fn protect(&mut self, hash: u128) {
        if !self.covered().contains(&hash) {
            return;
        }
        let Some(node) = self.nodes.get_mut(&hash) else { return };
        let before = std::mem::replace(&mut node.pinned, true);
        if self.held().len() as u64 > self.limit {
            self.nodes.get_mut(&hash).unwrap().pinned = before;
        }
    }

    pub(super) fn available(&self) -> u32 {
        let held = self.held();
        let kept = self.nodes.iter().filter(|(h, n)| n.references > 0 || held.contains(h)).count();
        self.total - self.filling - kept as u32
    }

    fn priority(node: &Node, now_ms: u64) -> u8 {
        let live = node.claims.iter().filter(|c| c.1 > now_ms).map(|c| c.0).max();
        match (live, node.plain) {
            (Some(live), true) => live.max(PRIORITY_DEFAULT),
            (Some(live), false) => live,
            (None, _) => PRIORITY_DEFAULT,
        }
    }

    pub(super) fn allocate(&mut self, now_ms: u64) -> bool {
        if self.filling + self.nodes.len() as u32 == self.total {
            let held = self.held();
            let parents: BTreeSet<u128> = self.nodes.values().filter_map(|n| n.parent).collect();
            let victim = self
                .nodes
                .iter()
                .filter(|(h, n)| n.references == 0 && !held.contains(h) && !parents.contains(h))
                .min_by_key(|(_, n)| (Self::priority(n, now_ms), n.last_use))
                .map(|(h, _)| *h);
            let Some(victim) = victim else { return false };
            self.nodes.remove(&victim);
            self.evicted.push(victim);
        }
        self.filling += 1;
        true
    }

    pub(super) fn register(&mut self, hash: u128, parent: Option<u128>) {
        self.filling -= 1;
        if let Some(node) = self.nodes.get_mut(&hash) {
            node.references += 1;
            return;
        }
        let node = Node {
            parent,
            references: 1,
            pinned: false,
            last_use: 0,
            claims: Vec::new(),
            plain: false,
        };
        self.nodes.insert(hash, node);
        self.protect(hash);
    }

    pub(super) fn release(
        &mut self,
        table: &[u128],
        filling: u32,
        now_ms: u64,
        claim: impl Fn(usize) -> Option<Claim>,
    ) {
        self.uses += 1;
        self.filling -= filling;
        for (index, hash) in table.iter().enumerate() {
            let node = self.nodes.get_mut(hash).unwrap();
            node.references -= 1;
            node.last_use = self.uses;
            match claim(index) {
                None => node.plain = true,
                Some(c) => {
                    node.claims.push((c.priority, c.duration_ms.map_or(u64::MAX, |d| now_ms + d)));
                }
            }
        }
    }

    pub(super) fn pin(&mut self, pin_id: u128, hashes: &[u128], ends_ms: u64) -> bool {
        let wanted: BTreeSet<u128> = hashes.iter().copied().collect();
        if wanted.len() as u64 > self.limit {
            return false;
        }
        let old = self.pins.remove(&pin_id);
        // Both are in force while the new one takes hold.
        let both = old.iter().flat_map(|o| o.0.iter().copied()).chain(wanted.iter().copied());
        self.pins.insert(pin_id, (both.collect(), ends_ms));
        for hash in hashes {
            self.protect(*hash);
        }
        if old.is_some() {
            self.pins.insert(pin_id, (wanted, ends_ms));
            self.forget_uncovered();
        }
        true
    }

    pub(super) fn unpin(&mut self, pin_id: u128) -> bool {
        let known = self.pins.remove(&pin_id).is_some();
        self.forget_uncovered();
        known
    }

    pub(super) fn expire(&mut self, now_ms: u64) {
        let mut due: Vec<(u64, u128)> =
            self.pins.iter().filter(|p| p.1.1 <= now_ms).map(|p| (p.1.1, *p.0)).collect();
        due.sort_unstable();
        for (_, pin_id) in due {
            self.unpin(pin_id);
        }
    }

    fn forget_uncovered(&mut self) {
        let covered = self.covered();
        for (hash, node) in &mut self.nodes {
            node.pinned &= covered.contains(hash);
        }
        for hash in covered {
            self.protect(hash);
        }
    }
}
