//! A pool as simple as it can be, to hold the real one against: one list of blocks, and every
//! figure looked for from scratch. It knows hashes only, no block numbers.

mod pins;

use std::collections::{BTreeMap, BTreeSet};

use super::{Amendment, Cause, Class, End, NEVER_MS, PRIORITY_DEFAULT, SpanTerms};

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) tenant: u32,
    pub(super) hash: u128,
    parent: Option<u128>,
    birth: u64,
    pub(super) references: u32,
    /// Whose pin it is.
    pinned: Option<u32>,
    /// Who pays while it is held.
    payer: Option<u32>,
    stamp: u64,
    used_ms: u64,
    pub(super) hits: u64,
    /// What uses without a lease, and claims that are no more, have left.
    left: Vec<u8>,
    ended: Option<End>,
}

#[derive(Clone, Debug)]
struct Span {
    blocks: Vec<(u128, u64)>,
    /// What each of them is counted as: class, priority, and the one for after.
    counted: Vec<Kind>,
    class: Class,
    priority: u8,
    after: u8,
    ends_ms: u64,
}

type Kind = (Class, u8, u8);

impl Span {
    fn counted(&self) -> impl Iterator<Item = ((u128, u64), Kind)> + '_ {
        self.blocks.iter().copied().zip(self.counted.iter().copied())
    }
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
    kinds_max: usize,
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
    pub(super) fn new(total: u32, held_max: u32, leases_max: usize, kinds_max: usize) -> Self {
        Self { total, held_max, leases_max, kinds_max, ..Self::default() }
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
            let mut at = node.pinned.map(|_| node.hash);
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
            let on_it = span.counted().filter(|(block, _)| *block == (node.hash, node.birth));
            for (_, (class, priority, after)) in on_it {
                let live = span.ends_ms > self.now_ms;
                claims.push((if live { priority } else { after }, live, class));
            }
        }
        let top = claims.into_iter().max();
        match (top, node.left.iter().copied().max(), node.ended) {
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
        let held = self.held();
        let is_kept = |n: &Node| n.references > 0 || held.contains(&n.hash);
        // What nobody uses and another tenant goes on from counts as nobody's.
        let own = self.nodes.iter().filter(|n| n.tenant == tenant);
        (own.filter(|n| is_kept(n) || !self.is_lent(n)).count() + filling) as u32
    }

    /// Whether a block that another tenant has brought follows this one.
    fn is_lent(&self, node: &Node) -> bool {
        self.nodes
            .iter()
            .filter(|n| n.parent == Some(node.hash))
            .any(|child| child.tenant != node.tenant || self.is_lent(child))
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
        node.hits += 1;
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
            pinned: None,
            payer: None,
            stamp: self.counter,
            used_ms: self.now_ms,
            hits: 0,
            left: Vec::new(),
            ended: None,
        });
        for (tenant, covered) in self.covered() {
            if covered == hash {
                self.protect(tenant, hash);
            }
        }
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
                    node.left.push(PRIORITY_DEFAULT);
                }
            }
        }
    }

    /// The lease to let go so that a tenant gets another one.
    fn spare_lease(&self, tenant: u32) -> Option<&Lease> {
        let over = |of: u32| {
            let is_over = move |l: &&Lease| l.tenant == of && l.ends_ms() <= self.now_ms;
            self.leases.iter().filter(is_over)
        };
        let has = |of: u32| self.leases.iter().filter(|lease| lease.tenant == of).count();
        let oldest = |of: u32| over(of).min_by_key(|lease| (lease.ends_ms(), lease.serial));
        let tenants: BTreeSet<u32> = self.leases.iter().map(|lease| lease.tenant).collect();
        let most = tenants.into_iter().max_by_key(|of| (over(*of).count(), *of));
        let most = most.filter(|of| has(*of) > has(tenant));
        oldest(tenant).or_else(|| most.and_then(oldest))
    }

    /// Takes a lease; `None` where there is no room.
    pub(super) fn lease(
        &mut self,
        tenant: u32,
        id: u128,
        spans: &[SpanTerms],
        table: &[u128],
    ) -> Option<()> {
        let is_old = |lease: &Lease| (lease.tenant, lease.id) == (tenant, id);
        while !self.leases.iter().any(is_old) {
            let own = self.leases.iter().filter(|lease| lease.tenant == tenant).count();
            if own < self.leases_max - self.leases.len() {
                break;
            }
            // What claims nothing that is here is no loss.
            let all = self.leases.len();
            let here = |block: &(u128, u64)| self.nodes.iter().any(|n| (n.hash, n.birth) == *block);
            self.leases.retain(|l| l.spans.iter().any(|span| span.blocks.iter().any(here)));
            if self.leases.len() < all {
                continue;
            }
            let spare = self.spare_lease(tenant)?.clone();
            self.leases.retain(|lease| lease.serial != spare.serial);
            for (block, kind) in spare.spans.iter().flat_map(Span::counted) {
                self.leave(block, kind.2);
            }
        }
        let serial = self.counter + 1;
        self.counter = serial;
        self.leases.push(Lease { tenant, id, serial, spans: Vec::new() });
        for terms in spans {
            let mut span = Span {
                blocks: Vec::new(),
                counted: Vec::new(),
                class: terms.class,
                priority: terms.priority,
                after: terms.after.min(terms.priority),
                ends_ms: terms.duration_ms.map_or(NEVER_MS, |ms| self.now_ms + ms),
            };
            for hash in &table[terms.blocks.clone()] {
                let block = (*hash, self.find(*hash).unwrap().birth);
                let kind = self.counted_as(block, (span.class, span.priority, span.after));
                span.blocks.push(block);
                span.counted.push(kind);
            }
            self.leases.last_mut().unwrap().spans.push(span);
        }
        let new = self.leases.last().unwrap().clone();
        let old = self.leases.iter().position(|lease| is_old(lease) && lease.serial != serial);
        if let Some(old) = old {
            let old = self.leases.remove(old);
            let claims =
                |block: &(u128, u64)| new.spans.iter().any(|span| span.blocks.contains(block));
            for span in &old.spans {
                for (block, kind) in span.counted().filter(|(block, _)| !claims(block)) {
                    self.leave(block, self.says(span, kind).min(PRIORITY_DEFAULT));
                }
            }
        }
        Some(())
    }

    pub(super) fn amend(&mut self, tenant: u32, id: u128, amendments: &[Amendment]) -> bool {
        let at = self.leases.iter().position(|lease| (lease.tenant, lease.id) == (tenant, id));
        let Some(at) = at else { return false };
        self.counter += 1;
        self.leases[at].serial = self.counter;
        for index in 0..self.leases[at].spans.len() {
            let span = self.leases[at].spans[index].clone();
            let Some(new) = amendments.iter().find(|a| a.class == span.class) else { continue };
            let after = new.after.min(new.priority);
            // One after the other: those that have not moved yet still stand as they did.
            for nth in 0..span.blocks.len() {
                let own = &mut self.leases[at].spans[index];
                let (block, _) = (own.blocks.remove(nth), own.counted.remove(nth));
                let kind = self.counted_as(block, (span.class, new.priority, after));
                let own = &mut self.leases[at].spans[index];
                own.blocks.insert(nth, block);
                own.counted.insert(nth, kind);
            }
            // Its time counts even where it has no block.
            let ends_ms = new.duration_ms.map_or(NEVER_MS, |ms| self.now_ms + ms);
            let span = &mut self.leases[at].spans[index];
            (span.priority, span.after, span.ends_ms) = (new.priority, after, ends_ms);
        }
        true
    }

    /// A claim of that kind on a block, or the round one below it where the block has too many kinds already.
    fn counted_as(&self, block: (u128, u64), kind: Kind) -> Kind {
        let spans = self.leases.iter().flat_map(|lease| &lease.spans);
        let on_it = spans.flat_map(Span::counted).filter(|claim| claim.0 == block);
        let kinds: BTreeSet<Kind> = on_it.map(|claim| claim.1).collect();
        if kinds.contains(&kind) || kinds.len() < self.kinds_max {
            return kind;
        }
        let (_, priority, after) = kind;
        let priority = priority - priority % 5;
        let after = match after.min(priority) {
            60.. => 60,
            35.. => 35,
            20.. => 20,
            _ => 0,
        };
        (Class::Plain, priority, after)
    }

    fn says(&self, span: &Span, (_, priority, after): Kind) -> u8 {
        if span.ends_ms > self.now_ms { priority } else { after }
    }

    pub(super) fn raise_floor(&mut self, table: &[Option<u128>], priority: u8) {
        for hash in table.iter().flatten() {
            self.find(*hash).unwrap().left.push(priority.min(100));
        }
    }

    fn leave(&mut self, (hash, birth): (u128, u64), priority: u8) {
        let nodes = self.nodes.iter_mut().filter(|n| (n.hash, n.birth) == (hash, birth));
        nodes.for_each(|node| node.left.push(priority));
    }

    pub(super) fn end_lease(&mut self, tenant: u32, id: u128, end: End) -> bool {
        let at = self.leases.iter().position(|lease| (lease.tenant, lease.id) == (tenant, id));
        let Some(at) = at else { return false };
        let lease = self.leases.remove(at);
        for span in &lease.spans {
            for ((hash, birth), kind) in span.counted() {
                if end == End::Released {
                    self.leave((hash, birth), self.says(span, kind).min(PRIORITY_DEFAULT));
                } else if let Some(node) = self.find(hash).filter(|node| node.birth == birth) {
                    node.ended = Some(end);
                }
            }
        }
        true
    }

    pub(super) fn leases(&self) -> usize {
        self.leases.len()
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
