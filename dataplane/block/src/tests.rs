//! The pool beside the reference, over random schedules.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_types::hash::{NamespaceId, SequenceHash};
use mainstay_types::id::PinId;
use proptest::prelude::*;

use super::reference::Reference;
use super::*;

const TENANTS: u32 = 3;
const LEASES_MAX: usize = 6;
const KINDS_MAX: usize = 3;
const CLASSES: [Class; 4] = [Class::Plain, Class::System, Class::History, Class::Side];

/// Two of the tenants share one.
pub(super) fn namespace(tenant: u32) -> NamespaceId {
    NamespaceId(u128::from(tenant / 2) + 1)
}

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
    /// What a lease claims is changed.
    Amend {
        tenant: u32,
        id: u128,
        amendments: Vec<Amendment>,
    },
    /// A claim without name and end.
    Floor {
        which: usize,
        blocks: usize,
        priority: u8,
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
    let class = prop::sample::select(CLASSES.to_vec());
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

fn amendments() -> impl Strategy<Value = Vec<Amendment>> {
    let class = prop::sample::select(CLASSES.to_vec());
    let priority = prop::sample::select(vec![0u8, 10, 35, 60, 100]);
    let one = (class, priority.clone(), priority, prop::option::of(0..60u64));
    let one = one.prop_map(|(class, priority, after, duration_ms)| Amendment {
        class,
        priority,
        after,
        duration_ms,
    });
    prop::collection::vec(one, 1..3)
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
        2 => (0..TENANTS, 0..3u128, amendments())
            .prop_map(|(tenant, id, amendments)| Move::Amend { tenant, id, amendments }),
        1 => (0..8usize, 1..5usize, prop::sample::select(vec![0u8, 10, 35, 70, 255])).prop_map(
            |(which, blocks, priority)| Move::Floor { which, blocks, priority }
        ),
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
pub(super) fn chain(tenant: u32, path: &[u8]) -> Vec<u128> {
    let mut hash = namespace(tenant).0;
    path.iter()
        .map(|step| {
            hash = hash * 512 + u128::from(*step) + 1;
            hash
        })
        .collect()
}

pub(super) fn hashes(of: &[u128]) -> Vec<SequenceHash> {
    of.iter().map(|hash| SequenceHash(*hash)).collect()
}

impl Both {
    fn new(blocks: u32, pinned: u32) -> Self {
        let limits =
            Limits { blocks, pinned_blocks: pinned, leases: LEASES_MAX, claim_kinds: KINDS_MAX };
        let model = Reference::new(blocks, pinned, LEASES_MAX, KINDS_MAX);
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

    /// The worth of all that is here, by hash and by when that came.
    fn worths(&self) -> BTreeMap<(u128, u32, u32), u8> {
        let of = |(hash, id): (&u128, &u32)| {
            let generation = self.real.blocks[*id as usize].generation;
            ((*hash, *id, generation), self.real.standing(*id).priority)
        };
        self.real.by_hash.iter().map(of).collect()
    }

    /// Nothing is worth more than it was but what a step names: this knows no rule of what claims leave behind.
    fn apply(&mut self, step: Move) {
        let before = self.worths();
        let named: BTreeSet<u128> = match &step {
            Move::Finish { which, .. } | Move::Lease { which, .. } | Move::Floor { which, .. } => {
                let which = which.checked_rem(self.running.len()).unwrap_or(0);
                self.running.get(which).map_or_else(BTreeSet::new, |s| self.named(s, &step))
            }
            Move::Amend { tenant, id, .. } => {
                let spans = self.real.lease_spans(TenantSlot(*tenant), LeaseId(*id), 0);
                spans.iter().flatten().flat_map(|s| &s.blocks).map(|hash| hash.0).collect()
            }
            _ => BTreeSet::new(),
        };
        self.make(step);
        for (block, worth) in self.worths() {
            let was = before.get(&block).copied().unwrap_or(u8::MAX);
            assert!(worth <= was || named.contains(&block.0), "{block:?}: {was} became {worth}");
        }
    }

    /// Blocks of a sequence that a step claims, or lets go without a lease.
    fn named(&self, sequence: &Sequence, step: &Move) -> BTreeSet<u128> {
        let spans = match step {
            Move::Finish { lease: Some((_, spans)), .. } | Move::Lease { spans, .. } => &spans[..],
            _ => return sequence.hashes.iter().flatten().copied().collect(),
        };
        let ends = matches!(step, Move::Finish { .. });
        let claims = |at: &usize| spans.iter().any(|span| span.blocks.contains(at));
        let named = (0..sequence.hashes.len()).filter(|at| claims(at) || ends);
        named.filter_map(|at| sequence.hashes[at]).collect()
    }

    fn make(&mut self, step: Move) {
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
            Move::Amend { tenant, id, amendments } => {
                let now_ms = self.now_ms();
                let slot = TenantSlot(tenant);
                let real = self.real.amend_lease(slot, LeaseId(id), &amendments, now_ms);
                assert_eq!(real, self.model.amend(tenant, id, &amendments));
                self.real.expire(now_ms);
            }
            Move::Floor { which, blocks, priority } => {
                if !self.running.is_empty() {
                    let sequence = &self.running[which % self.running.len()];
                    let full = sequence.hashes.iter().flatten().count().min(blocks);
                    let (table, hashes) = (&sequence.table[..full], &sequence.hashes[..full]);
                    let tenant = TenantSlot(sequence.tenant);
                    self.real.raise_floor(tenant, table, priority).unwrap();
                    self.model.raise_floor(hashes, priority);
                }
            }
            Move::End { tenant, id, end } => {
                let real =
                    self.real.end_lease(TenantSlot(tenant), LeaseId(id), end, self.model.now_ms);
                assert_eq!(real, self.model.end_lease(tenant, id, end));
            }
            Move::Pin { id, tenant, path, ttl_ms } => {
                let ends_ms = self.now_ms() + 1 + ttl_ms;
                let wanted = chain(tenant, &path);
                let (now_ms, wanted_here) = (self.now_ms(), hashes(&wanted));
                let slot = TenantSlot(tenant);
                let real = self.real.pin(PinId(id), slot, &wanted_here, ends_ms, now_ms);
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
        let mut sequence = Sequence { tenant, table: Vec::new(), hashes: Vec::new() };
        let mut parent = None;
        let mut warm = !cold;
        let (mut acquired, hit_ages_ms) = (0, self.model.hit_ages_ms);
        let figures = *self.real.figures();
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
                acquired += 1;
                sequence.table.push(known);
            } else {
                let got = self.real.allocate(TenantSlot(tenant), now_ms);
                assert_eq!(got.is_ok(), self.model.allocate(tenant), "{got:?}");
                let Ok(id) = got else {
                    self.real.unacquire(&sequence.table, acquired, now_ms).unwrap();
                    assert_eq!(self.real.figures().age_at_hit, figures.age_at_hit);
                    self.model.release(tenant, &sequence.hashes, None);
                    self.model.hit_ages_ms = hit_ages_ms;
                    for hash in &chain[..acquired] {
                        self.model.find(*hash).unwrap().hits -= 1;
                    }
                    return;
                };
                sequence.table.push(id);
                if let Some(hash) = hash {
                    let hash_of = SequenceHash(hash);
                    let id = self.real.register(id, hash_of, parent, namespace(tenant)).unwrap();
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
        let model = fits.then(|| self.model.lease(sequence.tenant, id, spans, &full)).flatten();
        assert_eq!(real.ok(), model, "{real:?}");
        // As everywhere after a call: what ended until now is told.
        self.real.expire(self.model.now_ms);
        model.is_some()
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
            assert_eq!(u64::from(self.real.blocks[id.at()].hits), node.hits);
            let standing = self.real.standing(id.index);
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
    for _ in 0..2_000 {
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
