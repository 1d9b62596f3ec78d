//! The pool beside the reference, over random schedules, and what single sequences of events promise.

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
    let span = (0..5usize, 1..4usize, class, priority.clone(), priority, duration);
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
        8 => (0..8usize, prop::option::of((0..3u128, spans())))
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
        1 => Just(Move::Reset),
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
}

/// The hashes of a path's prefixes.
fn chain(tenant: u32, path: &[u8]) -> Vec<u128> {
    let mut hash = u128::from(tenant) + 1;
    path.iter()
        .map(|step| {
            hash = hash * 4 + u128::from(*step) + 1;
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
        Self { real, model, running: Vec::new(), evicting: Vec::new(), evicted: Vec::new() }
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
            if let Change::Removed { blocks, cause } = change {
                self.evicted.extend(blocks.iter().map(|hash| (hash.0, cause)));
            }
        }
        assert_eq!(self.evicted, self.model.evicted);
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
        for step in steps {
            both.apply(step);
            both.compare();
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
