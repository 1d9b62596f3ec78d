//! The pool beside the reference, over random schedules, and what single sequences of events promise.

use std::collections::BTreeSet;

use mainstay_types::hash::{NamespaceId, SequenceHash};
use mainstay_types::id::PinId;
use proptest::prelude::*;

use super::reference::Reference;
use super::*;

const TENANTS: u32 = 3;

/// What happens to a pool.
#[derive(Clone, Debug)]
enum Move {
    /// A sequence begins; a cold one has not looked for its prefix.
    Start {
        tenant: u32,
        path: Vec<u8>,
        cold: bool,
        tail: bool,
    },
    /// A sequence ends, with a lease or without.
    Finish {
        which: usize,
        lease: Option<(u128, Vec<SpanTerms>)>,
    },
    /// A lease on the table of a running sequence.
    Lease {
        which: usize,
        id: u128,
        spans: Vec<SpanTerms>,
    },
    End {
        tenant: u32,
        id: u128,
        end: End,
    },
    Pin {
        id: u128,
        tenant: u32,
        path: Vec<u8>,
        ttl_ms: u64,
    },
    Unpin {
        id: u128,
    },
    Evict,
    Reclaim,
    Budget {
        tenant: u32,
        blocks: u32,
        held: u32,
    },
    Advance {
        ms: u64,
    },
    Reset,
}

fn spans() -> impl Strategy<Value = Vec<SpanTerms>> {
    let class = prop::sample::select(Class::ALL.to_vec());
    let priority = prop::sample::select(vec![0u8, 10, 35, 36, 60, 100]);
    let duration = prop::option::of(0..60u64);
    let span = (0..3usize, 1..6usize, class, priority.clone(), priority, duration);
    let span = span.prop_map(|(from, count, class, priority, after, duration_ms)| SpanTerms {
        blocks: from..from + count,
        class,
        priority,
        after,
        duration_ms,
    });
    prop::collection::vec(span, 1..3)
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0..2u8, 1..6)
}

fn moves() -> impl Strategy<Value = Move> {
    let end = prop::sample::select(vec![End::Released, End::Finished, End::Compacted]);
    prop_oneof![
        8 => (0..TENANTS, path(), any::<bool>(), any::<bool>())
            .prop_map(|(tenant, path, cold, tail)| Move::Start { tenant, path, cold, tail }),
        8 => (0..8usize, prop::option::weighted(0.8, (0..3u128, spans())))
            .prop_map(|(which, lease)| Move::Finish { which, lease }),
        2 => (0..8usize, 0..3u128, spans())
            .prop_map(|(which, id, spans)| Move::Lease { which, id, spans }),
        2 => (0..TENANTS, 0..3u128, end).prop_map(|(tenant, id, end)| Move::End { tenant, id, end }),
        2 => (0..4u128, 0..TENANTS, path(), 0..90u64)
            .prop_map(|(id, tenant, path, ttl_ms)| Move::Pin { id, tenant, path, ttl_ms }),
        1 => (0..4u128).prop_map(|id| Move::Unpin { id }),
        1 => Just(Move::Evict),
        1 => Just(Move::Reclaim),
        1 => (0..TENANTS, 1..12u32, 0..6u32)
            .prop_map(|(tenant, blocks, held)| Move::Budget { tenant, blocks, held }),
        3 => (0..40u64).prop_map(|ms| Move::Advance { ms }),
        1 => prop_oneof![3 => Just(Move::Evict), 1 => Just(Move::Reset)],
    ]
}

struct Sequence {
    tenant: u32,
    table: Vec<BlockId>,
    hashes: Vec<Option<u128>>,
}

struct Both {
    real: BlockManager,
    model: Reference,
    running: Vec<Sequence>,
    evicting: Vec<BlockId>,
    evicted: Vec<(u128, Cause)>,
    /// What changes have told to be here.
    told: BTreeSet<u128>,
}

/// The hashes of a path's prefixes.
fn chain(tenant: u32, path: &[u8]) -> Vec<u128> {
    let mut hash = u128::from(tenant) + 1;
    path.iter()
        .map(|step| {
            hash = hash * 512 + u128::from(*step) + 1;
            hash
        })
        .collect()
}

fn hashes(of: &[u128]) -> Vec<SequenceHash> {
    of.iter().map(|hash| SequenceHash(*hash)).collect()
}

impl Both {
    fn new(blocks: u32, pinned: u32) -> Self {
        let limits = Limits { blocks, pinned_blocks: pinned, leases: 4 };
        let model = Reference::new(blocks, pinned, 4);
        let real = BlockManager::new(limits);
        Self {
            real,
            model,
            running: Vec::new(),
            evicting: Vec::new(),
            evicted: Vec::new(),
            told: BTreeSet::new(),
        }
    }

    fn now_ms(&self) -> u64 {
        self.model.now_ms
    }

    fn apply(&mut self, step: Move) {
        match step {
            Move::Start { tenant, path, cold, tail } => {
                self.start(tenant, &chain(tenant, &path), cold, tail);
            }
            Move::Finish { which, lease } => self.finish(which, lease),
            Move::Lease { which, id, spans } => {
                if !self.running.is_empty() {
                    self.lease(which % self.running.len(), id, &spans);
                }
            }
            Move::End { tenant, id, end } => {
                let real = self.real.end_lease(TenantSlot(tenant), LeaseId(id), end);
                assert_eq!(real, self.model.end_lease(tenant, id, end));
            }
            Move::Pin { id, tenant, path, ttl_ms } => {
                let ends_ms = self.now_ms() + 1 + ttl_ms;
                let wanted = chain(tenant, &path);
                let real = self.real.pin(PinId(id), TenantSlot(tenant), &hashes(&wanted), ends_ms);
                assert_eq!(real.is_ok(), self.model.pin(id, tenant, &wanted, ends_ms));
            }
            Move::Unpin { id } => {
                assert_eq!(self.real.unpin(PinId(id)).is_some(), self.model.unpin(id));
            }
            Move::Evict => {
                let real = self.real.evict(self.model.now_ms);
                self.evicting.extend(real.map(|evicted| evicted.block));
                assert_eq!(real.map(|evicted| evicted.hash.0), self.model.evict());
            }
            Move::Reclaim => {
                if let Some(id) = self.evicting.pop() {
                    self.real.reclaim(id).unwrap();
                    self.model.evicting -= 1;
                }
            }
            Move::Budget { tenant, blocks, held } => {
                self.real.set_budget(TenantSlot(tenant), blocks, held).unwrap();
                self.model.set_budget(tenant, blocks, held);
            }
            Move::Advance { ms } => {
                self.model.advance(ms);
                self.real.expire(self.model.now_ms);
            }
            Move::Reset => assert_eq!(self.real.reset(self.model.now_ms), self.model.reset()),
        }
    }

    fn start(&mut self, tenant: u32, chain: &[u128], cold: bool, tail: bool) {
        let now_ms = self.now_ms();
        let namespace = NamespaceId(u128::from(tenant) + 1);
        let mut sequence = Sequence { tenant, table: Vec::new(), hashes: Vec::new() };
        let mut parent = None;
        let mut warm = !cold;
        let mut found = Vec::new();
        self.real.prefix(&hashes(chain), &mut found);
        let here = chain.iter().take_while(|hash| self.model.find(**hash).is_some()).count();
        assert_eq!(found.len(), here);
        for at in 0..chain.len() + usize::from(tail) {
            let hash = chain.get(at).copied();
            let known = hash.and_then(|hash| self.real.lookup(SequenceHash(hash)));
            warm &= known.is_some();
            if let (true, Some(known), Some(hash)) = (warm, known, hash) {
                self.real.acquire(known, now_ms).unwrap();
                self.model.acquire(hash);
                sequence.table.push(known);
            } else {
                let got = self.real.allocate(TenantSlot(tenant), now_ms);
                assert_eq!(got.is_ok(), self.model.allocate(tenant), "{got:?}");
                let Ok(id) = got else {
                    self.real.unacquire(&sequence.table).unwrap();
                    self.model.release(tenant, &sequence.hashes, None);
                    return;
                };
                sequence.table.push(id);
                if let Some(hash) = hash {
                    let id = self.real.register(id, SequenceHash(hash), parent, namespace).unwrap();
                    let before = at.checked_sub(1).map(|before| chain[before]);
                    self.model.register(tenant, hash, before);
                    sequence.table[at] = id;
                }
            }
            sequence.hashes.push(hash);
            parent = sequence.table.last().copied();
        }
        self.running.push(sequence);
    }

    /// Whether the lease was taken.
    fn lease(&mut self, which: usize, id: u128, spans: &[SpanTerms]) -> bool {
        let sequence = &self.running[which];
        let full: Vec<u128> = sequence.hashes.iter().flatten().copied().collect();
        // Most spans shall fit, and some not.
        let mut spans = spans.to_vec();
        for span in spans.iter_mut().filter(|span| span.blocks.start < full.len()) {
            span.blocks.end = span.blocks.end.min(full.len());
        }
        let spans = &spans[..];
        let fits = spans.iter().all(|span| span.blocks.end <= full.len());
        let terms = LeaseTerms { tenant: TenantSlot(sequence.tenant), id: LeaseId(id), spans };
        let real = self.real.lease(&terms, &sequence.table, self.model.now_ms);
        let model = fits && self.model.lease(sequence.tenant, id, spans, &full);
        assert_eq!(real.is_ok(), model, "{real:?}");
        // As everywhere after a call: what ended until now is told.
        self.real.expire(self.model.now_ms);
        model
    }

    fn finish(&mut self, which: usize, lease: Option<(u128, Vec<SpanTerms>)>) {
        if self.running.is_empty() {
            return;
        }
        let which = which % self.running.len();
        let spans = match lease {
            Some((id, spans)) if self.lease(which, id, &spans) => spans,
            _ => Vec::new(),
        };
        let leased = |at: usize| spans.iter().any(|span| span.blocks.contains(&at));
        let sequence = self.running.swap_remove(which);
        self.real.release(&sequence.table, leased, self.model.now_ms).unwrap();
        self.model.release(sequence.tenant, &sequence.hashes, Some(&leased));
    }

    fn compare(&mut self) {
        for change in self.real.drain_changes() {
            match change {
                Change::Stored { blocks, .. } => {
                    assert!(blocks.iter().all(|hash| self.told.insert(hash.0)), "{blocks:?}");
                }
                Change::Removed { blocks, cause } => {
                    assert!(blocks.iter().all(|hash| self.told.remove(&hash.0)), "{blocks:?}");
                    self.evicted.extend(blocks.iter().map(|hash| (hash.0, cause)));
                }
                Change::PinExpired { .. } => {}
                Change::Lost => panic!("nothing can be lost here"),
            }
        }
        assert_eq!(self.evicted, self.model.evicted);
        let here: BTreeSet<u128> = self.model.nodes.iter().map(|node| node.hash).collect();
        assert_eq!(self.told, here, "changes tell what is here");
        let counts = self.real.counts();
        assert_eq!(counts.registered as usize, self.model.nodes.len());
        assert_eq!(counts.used, self.model.used());
        assert_eq!(counts.pinned as usize, self.model.held().len());
        assert_eq!(counts.leases, self.model.leases());
        assert_eq!(self.real.available(), self.model.available());
        for tenant in 0..TENANTS {
            let real = self.real.available_to(TenantSlot(tenant));
            assert_eq!(real, self.model.available_to(tenant));
            if let Some(queue) = self.real.tenants.get(tenant).and_then(|t| t.queue.as_ref()) {
                let first = queue.first(&self.real.tenant_links);
                let hash = first.map(|id| self.real.blocks[id as usize].hash);
                assert_eq!(hash, self.model.victim(Some(tenant)));
            }
        }
        for node in &self.model.nodes {
            let id = self.real.lookup(SequenceHash(node.hash)).unwrap();
            let used = if node.references > 0 { Stage::Used } else { Stage::Cached };
            assert_eq!(self.real.stage(id), Some(used));
            let standing = self.real.standing(id.0);
            let got = (standing.priority, standing.class, standing.cause);
            assert_eq!(got, self.model.standing(node), "{node:?}");
        }
        let first = self.real.queue.first(&self.real.links);
        let hash = first.map(|id| self.real.blocks[id as usize].hash);
        assert_eq!(hash, self.model.victim(None));
        let figures = self.real.figures();
        for cause in Cause::ALL {
            let real = figures.age_at_eviction[cause as usize].sum_ms();
            assert_eq!(real, self.model.ages_ms[cause as usize], "{cause:?}");
        }
        assert_eq!(figures.age_at_hit.sum_ms(), self.model.hit_ages_ms);
        let mut told = 0;
        let count = self.real.snapshot(|change| {
            let Change::Stored { blocks, .. } = change else { panic!("no store") };
            told += blocks.len();
        });
        assert_eq!((count as usize, told), (self.model.nodes.len(), self.model.nodes.len()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Who is here, what each is worth, who goes next and why: all of it equals the reference after every step.
    #[test]
    fn any_schedule_equals_the_reference(
        blocks in 1..24u32,
        pinned in 0..12u32,
        steps in prop::collection::vec(moves(), 1..50),
    ) {
        let mut both = Both::new(blocks, pinned.min(blocks));
        for (at, step) in steps.into_iter().enumerate() {
            both.apply(step);
            // Changes of several steps at once are as true as those of each.
            if at % 3 != 2 || blocks % 2 == 0 {
                both.compare();
            }
        }
        while !both.running.is_empty() {
            both.finish(0, None);
        }
        both.compare();
        // What is left goes in the same order.
        while both.model.victim(None).is_some() {
            both.apply(Move::Evict);
            both.compare();
        }
    }
}

/// A random schedule that reaches nothing proves nothing.
#[test]
fn the_schedules_reach_every_cause_and_order() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let plan = prop::collection::vec(moves(), 30..50);
    let mut causes = [0; Cause::COUNT];
    let (mut late, mut pinned, mut hits) = (0, 0, 0);
    for _ in 0..500 {
        let mut both = Both::new(8, 4);
        for step in plan.new_tree(&mut runner).unwrap().current() {
            both.apply(step);
            pinned += u64::from(both.real.counts().pinned);
        }
        for cause in Cause::ALL {
            causes[cause as usize] += both.real.figures().evictions_for(cause);
        }
        late += both.real.counts().late_listings;
        hits += both.real.figures().age_at_hit.count();
    }
    assert!(causes.iter().all(|count| *count > 50), "{causes:?}");
    assert!(late > 10 && pinned > 100 && hits > 100, "{late} {pinned} {hits}");
}

fn span(blocks: std::ops::Range<usize>, priority: u8, after: u8, ms: Option<u64>) -> SpanTerms {
    SpanTerms { blocks, class: Class::History, priority, after, duration_ms: ms }
}

/// A chain of one tenant, in use.
fn running(pool: &mut BlockManager, tenant: u32, path: &[u8], now_ms: u64) -> Vec<BlockId> {
    let mut table: Vec<BlockId> = Vec::new();
    for hash in chain(tenant, path) {
        let known = pool.lookup(SequenceHash(hash));
        let id = known.unwrap_or_else(|| {
            let id = pool.allocate(TenantSlot(tenant), now_ms).unwrap();
            let namespace = NamespaceId(u128::from(tenant) + 1);
            pool.register(id, SequenceHash(hash), table.last().copied(), namespace).unwrap()
        });
        if known.is_some() {
            pool.acquire(id, now_ms).unwrap();
        }
        table.push(id);
    }
    table
}

fn lease(pool: &mut BlockManager, table: &[BlockId], id: u128, spans: &[SpanTerms], now_ms: u64) {
    let terms = LeaseTerms { tenant: TenantSlot(0), id: LeaseId(id), spans };
    pool.lease(&terms, table, now_ms).unwrap();
}

#[test]
fn nobody_demotes_what_another_needs_and_ends_fall_back() {
    let mut pool = BlockManager::new(Limits::new(8));
    let strong = running(&mut pool, 0, &[0, 0], 0);
    lease(&mut pool, &strong, 1, &[span(0..2, 90, 20, Some(100))], 0);
    pool.release(&strong, |_| true, 0).unwrap();
    let weak = running(&mut pool, 0, &[0, 0], 10);
    lease(&mut pool, &weak, 2, &[span(0..2, 1, 1, None)], 10);
    pool.release(&weak, |_| true, 10).unwrap();
    let worth = |pool: &BlockManager| pool.worth(weak[1]).unwrap().0;
    assert_eq!(worth(&pool), 90);
    pool.expire(99);
    assert_eq!((worth(&pool), pool.next_expiry_ms()), (90, Some(100)));
    pool.expire(100);
    assert_eq!(worth(&pool), 20);
    assert!(pool.end_lease(TenantSlot(0), LeaseId(1), End::Finished));
    assert_eq!(worth(&pool), 1, "the weaker one is what stands");
    assert!(pool.end_lease(TenantSlot(0), LeaseId(2), End::Compacted));
    assert_eq!(pool.worth(weak[1]), Some((0, Class::Compacted)));
    let evicted = pool.evict(101).unwrap();
    assert_eq!((evicted.cause, evicted.hash.0), (Cause::Lifecycle, chain(0, &[0, 0])[1]));
}

#[test]
fn a_lease_tells_what_is_left_of_it() {
    let mut pool = BlockManager::new(Limits::new(4));
    let table = running(&mut pool, 0, &[0, 0, 0], 0);
    let spans = [span(0..1, 90, 20, None), span(1..3, 60, 99, Some(100))];
    lease(&mut pool, &table, 1, &spans, 0);
    pool.release(&table, |_| true, 0).unwrap();
    pool.evict(5).unwrap();
    let views = pool.lease_spans(TenantSlot(0), LeaseId(1), 30).unwrap();
    let left: Vec<_> =
        views.iter().map(|v| (v.blocks.len(), v.priority, v.after, v.left_ms)).collect();
    assert_eq!(left, [(1, 90, 20, None), (1, 60, 60, Some(70))]);
    assert_eq!(pool.lease_spans(TenantSlot(1), LeaseId(1), 30), None);
}

#[test]
fn a_flood_takes_no_pinned_block() {
    let mut pool = BlockManager::new(Limits::new(16));
    let table = running(&mut pool, 0, &[0, 0, 0, 0], 0);
    let wanted = hashes(&chain(0, &[0, 0, 0, 0]));
    assert_eq!(pool.pin(PinId(1), TenantSlot(0), &wanted, 1_000), Ok(4));
    pool.release(&table, |_| false, 0).unwrap();
    for turn in 0..200u8 {
        let path = [1, turn, turn / 2, turn / 3];
        let flood = running(&mut pool, 1, &path, u64::from(turn));
        pool.release(&flood, |_| false, u64::from(turn)).unwrap();
    }
    assert!(wanted.iter().all(|hash| pool.lookup(*hash).is_some()));
    assert!(pool.figures().evictions_for(Cause::Capacity) > 500);
    pool.expire(1_000);
    assert!(!pool.has_pin(PinId(1)));
    assert_eq!(pool.reset(1_000), 16);
    assert_eq!(pool.available(), 16);
}

#[test]
fn mistakes_are_errors_and_leave_the_pool_whole() {
    let mut pool = BlockManager::new(Limits { blocks: 3, pinned_blocks: 1, leases: 1 });
    let table = running(&mut pool, 0, &[0, 0], 0);
    let nobody = BlockId(77);
    let stage = |block, is, wanted| Err(BlockError::Stage { block, is, wanted });
    assert_eq!(pool.acquire(nobody, 0), Err(BlockError::Unknown(nobody)));
    assert_eq!(pool.release(&[nobody], |_| true, 0), Err(BlockError::Unknown(nobody)));
    assert_eq!(pool.reclaim(table[0]), stage(table[0], Stage::Used, Stage::Free));
    let filling = pool.allocate(TenantSlot(1), 0).unwrap();
    assert_eq!(pool.acquire(filling, 0), stage(filling, Stage::Filling, Stage::Used));
    assert_eq!(pool.allocate(TenantSlot(1), 0), Err(BlockError::Full));
    assert!(pool.allocate(TenantSlot(TENANTS_MAX), 0).is_err());
    let foreign = pool.register(filling, SequenceHash(99), Some(table[1]), NamespaceId(2));
    assert_eq!(foreign, Err(BlockError::Foreign(table[1])));
    let stolen = SequenceHash(chain(0, &[0])[0]);
    let stolen = pool.register(filling, stolen, None, NamespaceId(2));
    assert_eq!(stolen, Err(BlockError::Foreign(table[0])));
    let spans = [span(0..2, 50, 0, None)];
    let terms = |tenant| LeaseTerms { tenant: TenantSlot(tenant), id: LeaseId(1), spans: &spans };
    assert_eq!(pool.lease(&terms(1), &table, 0), Err(BlockError::Foreign(table[0])));
    assert_eq!(pool.lease(&terms(0), &table[..1], 0), Err(BlockError::Span { span: 0 }));
    let most = span(0..usize::MAX, 50, 0, None);
    let over = LeaseTerms { spans: &[most.clone(), most], ..terms(0) };
    let named = BlockError::Many { what: "blocks in the spans of a lease", limit: 8 };
    assert_eq!(pool.lease(&over, &table, 0), Err(named));
    lease(&mut pool, &table, 1, &spans, 0);
    let other = LeaseTerms { tenant: TenantSlot(0), id: LeaseId(2), spans: &spans };
    let many = Err(BlockError::Many { what: "leases", limit: 1 });
    assert_eq!(pool.lease(&other, &table, 0), many, "one without an end is not dissolved");
    pool.release(&table, |_| true, 0).unwrap();
    let twice = pool.release(&table[..1], |_| true, 0);
    assert_eq!(twice, stage(table[0], Stage::Cached, Stage::Cached));
    assert_eq!(pool.acquire(table[1], 0), Err(BlockError::Orphan(table[1])));
    let wanted = hashes(&chain(0, &[0, 0]));
    let large = pool.pin(PinId(1), TenantSlot(0), &wanted, 5);
    assert_eq!(large, Err(BlockError::PinTooLarge { limit: 1 }));
    pool.unacquire(&[filling]).unwrap();
    assert_eq!((pool.available(), pool.counts().registered), (3, 2));
}

#[test]
fn changes_that_nobody_takes_are_bounded() {
    let mut pool = BlockManager::new(Limits::new(2));
    let mut told = Vec::new();
    for turn in 0..CHANGED_BLOCKS_MAX as u64 {
        let id = pool.allocate(TenantSlot(0), turn).unwrap();
        let hash = SequenceHash(u128::from(turn) + 1);
        pool.register(id, hash, None, NamespaceId(7)).unwrap();
        pool.release(&[id], |_| false, turn).unwrap();
    }
    told.extend(pool.drain_changes());
    assert_eq!(told, [Change::Lost]);
    assert_eq!(pool.snapshot(|_| ()), 2);
    pool.reset(0);
    assert!(pool.has_changes(), "they are told again");
}

#[test]
fn nothing_goes_by_what_is_over() {
    let mut pool = BlockManager::new(Limits::new(2));
    for (hash, after) in [(1, 40), (2, 10)] {
        let id = pool.allocate(TenantSlot(0), 0).unwrap();
        let id = pool.register(id, SequenceHash(hash), None, NamespaceId(7)).unwrap();
        // The first to go, while both last; then the other one.
        lease(&mut pool, &[id], hash, &[span(0..1, 90 - after, after, Some(100))], 0);
        pool.release(&[id], |_| true, 0).unwrap();
    }
    assert_eq!(pool.next_expiry_ms(), Some(100));
    // Nobody has called `expire`.
    pool.allocate(TenantSlot(0), 100).unwrap();
    assert!(pool.lookup(SequenceHash(1)).is_some() && pool.lookup(SequenceHash(2)).is_none());
    assert_eq!(pool.figures().evictions_for(Cause::Expiry), 1);
}
