//! A pool as simple as it can be, to hold the real one against: one list of blocks, and every
//! figure looked for from scratch. It knows hashes only, no block numbers.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cause, Class, End, NEVER_MS, PRIORITY_DEFAULT, SpanTerms};

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) tenant: u32,
    pub(super) hash: u128,
    parent: Option<u128>,
    birth: u64,
    pub(super) references: u32,
    pinned: bool,
    stamp: u64,
    used_ms: u64,
    floor: Option<u8>,
    ended: Option<End>,
}

#[derive(Clone, Debug)]
struct Span {
    blocks: Vec<(u128, u64)>,
    class: Class,
    priority: u8,
    after: u8,
    ends_ms: u64,
}

#[derive(Clone, Debug)]
struct Lease {
    tenant: u32,
    id: u128,
    serial: u64,
    spans: Vec<Span>,
}

impl Lease {
    fn ends_ms(&self) -> u64 {
        self.spans.iter().map(|span| span.ends_ms).max().unwrap_or(NEVER_MS)
    }
}

#[derive(Debug, Default)]
pub(super) struct Reference {
    total: u32,
    held_max: u32,
    leases_max: usize,
    pub(super) now_ms: u64,
    pub(super) nodes: Vec<Node>,
    /// Tenants of blocks that are being filled, under no hash yet.
    filling: Vec<u32>,
    pub(super) evicting: u32,
    budgets: BTreeMap<u32, (u32, u32)>,
    leases: Vec<Lease>,
    pins: BTreeMap<u128, (u32, BTreeSet<u128>, u64)>,
    counter: u64,
    pub(super) evicted: Vec<(u128, Cause)>,
    pub(super) ages_ms: [u64; Cause::COUNT],
    pub(super) hit_ages_ms: u64,
}

impl Reference {
    pub(super) fn new(total: u32, held_max: u32, leases_max: usize) -> Self {
        Self { total, held_max, leases_max, ..Self::default() }
    }

    pub(super) fn find(&mut self, hash: u128) -> Option<&mut Node> {
        self.nodes.iter_mut().find(|node| node.hash == hash)
    }

    fn budget(&self, tenant: u32) -> (u32, u32) {
        self.budgets.get(&tenant).copied().unwrap_or((u32::MAX, u32::MAX))
    }

    /// Registered blocks that a pin keeps, itself or through a descendant.
    pub(super) fn held(&self) -> BTreeSet<u128> {
        let mut held = BTreeSet::new();
        for node in &self.nodes {
            let mut at = node.pinned.then_some(node.hash);
            while let Some(hash) = at {
                held.insert(hash);
                at = self.nodes.iter().find(|n| n.hash == hash).unwrap().parent;
            }
        }
        held
    }

    pub(super) fn standing(&self, node: &Node) -> (u8, Class, Cause) {
        let mut claims = Vec::new();
        for span in self.leases.iter().flat_map(|lease| &lease.spans) {
            for _ in span.blocks.iter().filter(|b| **b == (node.hash, node.birth)) {
                let live = span.ends_ms > self.now_ms;
                claims.push((if live { span.priority } else { span.after }, live, span.class));
            }
        }
        let top = claims.into_iter().max();
        match (top, node.floor, node.ended) {
            (Some((priority, live, class)), floor, _) if floor.is_none_or(|f| priority > f) => {
                (priority, class, if live { Cause::Capacity } else { Cause::Expiry })
            }
            (_, Some(floor), _) => (floor, Class::Plain, Cause::Capacity),
            (_, None, Some(End::Finished)) => (0, Class::Finished, Cause::Lifecycle),
            (_, None, Some(End::Compacted)) => (0, Class::Compacted, Cause::Lifecycle),
            (_, None, _) => (PRIORITY_DEFAULT, Class::Plain, Cause::Capacity),
        }
    }

    /// The next to go, of one tenant or of all.
    pub(super) fn victim(&self, tenant: Option<u32>) -> Option<u128> {
        let held = self.held();
        let parents: BTreeSet<u128> = self.nodes.iter().filter_map(|node| node.parent).collect();
        self.nodes
            .iter()
            .filter(|n| tenant.is_none_or(|tenant| n.tenant == tenant))
            .filter(|n| n.references == 0 && !held.contains(&n.hash) && !parents.contains(&n.hash))
            .min_by_key(|n| (self.standing(n).0, n.stamp))
            .map(|n| n.hash)
    }

    fn remove(&mut self, hash: u128, asked: Option<Cause>) {
        let at = self.nodes.iter().position(|node| node.hash == hash).unwrap();
        let cause = asked.unwrap_or(self.standing(&self.nodes[at]).2);
        let node = self.nodes.remove(at);
        self.ages_ms[cause as usize] += self.now_ms - node.used_ms;
        self.evicted.push((hash, cause));
    }

    pub(super) fn occupied(&self) -> u32 {
        (self.nodes.len() + self.filling.len()) as u32 + self.evicting
    }

    fn blocks_of(&self, tenant: u32) -> u32 {
        let filling = self.filling.iter().filter(|t| **t == tenant).count();
        (self.nodes.iter().filter(|n| n.tenant == tenant).count() + filling) as u32
    }

    fn kept(&self, tenant: Option<u32>) -> u32 {
        let held = self.held();
        let own = |t: u32| tenant.is_none_or(|tenant| t == tenant);
        let kept = self.nodes.iter().filter(|n| n.references > 0 || held.contains(&n.hash));
        let filling = self.filling.iter().filter(|t| own(**t)).count();
        (kept.filter(|n| own(n.tenant)).count() + filling) as u32
    }

    pub(super) fn used(&self) -> u32 {
        (self.nodes.iter().filter(|n| n.references > 0).count() + self.filling.len()) as u32
    }

    pub(super) fn available(&self) -> u32 {
        self.total - self.kept(None) - self.evicting
    }

    pub(super) fn available_to(&self, tenant: u32) -> u32 {
        self.budget(tenant).0.saturating_sub(self.kept(Some(tenant))).min(self.available())
    }

    pub(super) fn acquire(&mut self, hash: u128) {
        let now_ms = self.now_ms;
        let node = self.find(hash).unwrap();
        node.references += 1;
        let age_ms = now_ms - node.used_ms;
        self.hit_ages_ms += age_ms;
    }

    pub(super) fn allocate(&mut self, tenant: u32) -> bool {
        while self.blocks_of(tenant) >= self.budget(tenant).0 {
            let Some(victim) = self.victim(Some(tenant)) else { return false };
            self.remove(victim, Some(Cause::TenantBudget));
        }
        if self.occupied() == self.total {
            let Some(victim) = self.victim(None) else { return false };
            self.remove(victim, None);
        }
        self.filling.push(tenant);
        true
    }

    fn stop_filling(&mut self, tenant: u32) {
        let at = self.filling.iter().position(|t| *t == tenant).unwrap();
        self.filling.remove(at);
    }

    pub(super) fn register(&mut self, tenant: u32, hash: u128, parent: Option<u128>) {
        self.stop_filling(tenant);
        if let Some(node) = self.find(hash) {
            node.references += 1;
            return;
        }
        self.counter += 1;
        self.nodes.push(Node {
            tenant,
            hash,
            parent,
            birth: self.counter,
            references: 1,
            pinned: false,
            stamp: self.counter,
            used_ms: self.now_ms,
            floor: None,
            ended: None,
        });
        self.protect(tenant, hash);
    }

    /// Lets a table go; `used` is `None` where it is as if it had not been used.
    pub(super) fn release(
        &mut self,
        tenant: u32,
        table: &[Option<u128>],
        leased: Option<&dyn Fn(usize) -> bool>,
    ) {
        for (index, hash) in table.iter().enumerate().rev() {
            let Some(hash) = hash else {
                self.stop_filling(tenant);
                continue;
            };
            self.counter += u64::from(leased.is_some());
            let (stamp, now_ms) = (self.counter, self.now_ms);
            let node = self.find(*hash).unwrap();
            node.references -= 1;
            if let Some(leased) = leased {
                node.stamp = stamp;
                node.used_ms = now_ms;
                if !leased(index) {
                    node.floor = node.floor.max(Some(PRIORITY_DEFAULT));
                }
            }
        }
    }

    pub(super) fn lease(
        &mut self,
        tenant: u32,
        id: u128,
        spans: &[SpanTerms],
        table: &[u128],
    ) -> bool {
        let others = |lease: &Lease| (lease.tenant, lease.id) != (tenant, id);
        while self.leases.iter().filter(|lease| others(lease)).count() >= self.leases_max {
            let over = |lease: &&Lease| others(lease) && lease.ends_ms() <= self.now_ms;
            let order = |l: &&Lease| (l.tenant != tenant, l.tenant, l.ends_ms(), l.serial);
            let Some(oldest) = self.leases.iter().filter(over).min_by_key(order) else {
                return false;
            };
            let oldest = oldest.clone();
            self.leases.retain(|lease| lease.serial != oldest.serial);
            for span in &oldest.spans {
                for block in &span.blocks {
                    self.leave(*block, |node| node.floor = node.floor.max(Some(span.after)));
                }
            }
        }
        self.leases.retain(others);
        self.counter += 1;
        let spans = spans.iter().map(|span| Span {
            blocks: table[span.blocks.clone()]
                .iter()
                .map(|hash| (*hash, self.nodes.iter().find(|n| n.hash == *hash).unwrap().birth))
                .collect(),
            class: span.class,
            priority: span.priority,
            after: span.after.min(span.priority),
            ends_ms: span.duration_ms.map_or(NEVER_MS, |ms| self.now_ms + ms),
        });
        self.leases.push(Lease { tenant, id, serial: self.counter, spans: spans.collect() });
        true
    }

    fn leave(&mut self, (hash, birth): (u128, u64), change: impl Fn(&mut Node)) {
        self.nodes.iter_mut().filter(|n| (n.hash, n.birth) == (hash, birth)).for_each(change);
    }

    pub(super) fn end_lease(&mut self, tenant: u32, id: u128, end: End) -> bool {
        let at = self.leases.iter().position(|lease| (lease.tenant, lease.id) == (tenant, id));
        let Some(at) = at else { return false };
        let lease = self.leases.remove(at);
        for block in lease.spans.iter().flat_map(|span| &span.blocks) {
            self.leave(*block, |node| match end {
                End::Released => node.floor = node.floor.max(Some(PRIORITY_DEFAULT)),
                End::Finished | End::Compacted => node.ended = Some(end),
            });
        }
        true
    }

    pub(super) fn leases(&self) -> usize {
        self.leases.len()
    }

    fn covered(&self) -> BTreeSet<(u32, u128)> {
        self.pins.values().flat_map(|pin| pin.1.iter().map(|hash| (pin.0, *hash))).collect()
    }

    /// Protects a covered block if that keeps the budgets.
    fn protect(&mut self, tenant: u32, hash: u128) {
        if !self.covered().contains(&(tenant, hash)) {
            return;
        }
        let held_max = self.budget(tenant).1;
        let Some(node) = self.find(hash) else { return };
        if node.tenant != tenant || node.pinned {
            return;
        }
        node.pinned = true;
        let held = self.held();
        let of = |set: &BTreeSet<u128>| {
            self.nodes.iter().filter(|n| n.tenant == tenant && set.contains(&n.hash)).count()
        };
        // A block that others hold already costs nothing, unless a budget was cut below what is held.
        let fits = held.len() as u64 <= u64::from(self.held_max)
            && of(&held) as u64 <= u64::from(held_max);
        if !fits {
            self.find(hash).unwrap().pinned = false;
        }
    }

    pub(super) fn pin(&mut self, id: u128, tenant: u32, hashes: &[u128], ends_ms: u64) -> bool {
        let wanted: BTreeSet<u128> = hashes.iter().copied().collect();
        if wanted.len() as u64 > u64::from(self.held_max.min(self.budget(tenant).1)) {
            return false;
        }
        let old = self.pins.remove(&id);
        // Both are in force while the new one takes hold.
        if let Some(old) = &old {
            self.pins.insert(id + (1 << 64), old.clone());
        }
        self.pins.insert(id, (tenant, wanted, ends_ms));
        for hash in hashes {
            self.protect(tenant, *hash);
        }
        if old.is_some() {
            self.pins.remove(&(id + (1 << 64)));
            self.settle();
        }
        true
    }

    pub(super) fn unpin(&mut self, id: u128) -> bool {
        let known = self.pins.remove(&id).is_some();
        self.settle();
        known
    }

    /// Unprotects what no pin covers and protects what there is room for.
    fn settle(&mut self) {
        let covered = self.covered();
        for node in &mut self.nodes {
            node.pinned &= covered.contains(&(node.tenant, node.hash));
        }
        for (tenant, hash) in covered {
            self.protect(tenant, hash);
        }
    }

    pub(super) fn set_budget(&mut self, tenant: u32, blocks_max: u32, held_max: u32) {
        self.budgets.insert(tenant, (blocks_max, held_max));
        self.settle();
    }

    pub(super) fn advance(&mut self, ms: u64) {
        self.now_ms += ms;
        let due = |pin: (&u128, &(u32, BTreeSet<u128>, u64))| {
            (pin.1.2 <= self.now_ms).then_some((pin.1.2, *pin.0))
        };
        let mut due: Vec<(u64, u128)> = self.pins.iter().filter_map(due).collect();
        due.sort_unstable();
        for (_, id) in due {
            self.unpin(id);
        }
    }

    pub(super) fn evict(&mut self) -> Option<u128> {
        let victim = self.victim(None)?;
        self.remove(victim, None);
        self.evicting += 1;
        Some(victim)
    }

    pub(super) fn reset(&mut self) -> u32 {
        let mut count = 0;
        while let Some(victim) = self.victim(None) {
            self.remove(victim, Some(Cause::Reset));
            count += 1;
        }
        count
    }
}
