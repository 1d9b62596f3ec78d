//! Callers that make every mistake: any call with any block number in any order.
//!
//! What they get is errors and at worst a cache of their own making, but no panic, and a pool whose
//! counts still say what is in it.

use mainstay_types::hash::{NamespaceId, SequenceHash};
use mainstay_types::id::PinId;
use proptest::prelude::*;

use super::*;

const BLOCKS: u32 = 6;

#[derive(Clone, Debug)]
enum Call {
    Acquire(u32),
    Allocate(u32),
    Register { id: u32, hash: u128, parent: Option<u32>, namespace: u128 },
    Release { table: Vec<u32>, leased: bool },
    Unacquire(Vec<u32>, usize),
    Amend(u32, u128, u8, Option<u64>),
    Lease { tenant: u32, id: u128, table: Vec<u32>, spans: Vec<(usize, usize, u8, u64)> },
    End(u32, u128, End),
    Pin(u128, u32, Vec<u128>, u64),
    Unpin(u128),
    Evict,
    Reclaim(u32),
    Budget(u32, u32, u32),
    Expire(u64),
    Reset,
}

fn calls() -> impl Strategy<Value = Call> {
    let id = 0..(BLOCKS + 1) * 16;
    let tenant = prop_oneof![9 => 0..2u32, 1 => Just(TENANTS_MAX)];
    let table = prop::collection::vec(id.clone(), 0..4);
    let end = prop::sample::select(vec![End::Released, End::Finished, End::Compacted]);
    let span = (0..5usize, 0..5usize, any::<u8>(), any::<u64>());
    prop_oneof![
        3 => id.clone().prop_map(Call::Acquire),
        6 => tenant.clone().prop_map(Call::Allocate),
        8 => (id.clone(), 1..9u128, prop::option::of(id.clone()), 1..3u128).prop_map(
            |(id, hash, parent, namespace)| Call::Register { id, hash, parent, namespace }
        ),
        4 => (table.clone(), any::<bool>())
            .prop_map(|(table, leased)| Call::Release { table, leased }),
        2 => (table.clone(), 0..4usize).prop_map(|(table, found)| Call::Unacquire(table, found)),
        1 => (tenant.clone(), 0..3u128, any::<u8>(), prop::option::of(any::<u64>())).prop_map(
            |(tenant, id, priority, ms)| Call::Amend(tenant, id, priority, ms)
        ),
        3 => (tenant.clone(), 0..3u128, table, prop::collection::vec(span, 0..3)).prop_map(
            |(tenant, id, table, spans)| Call::Lease { tenant, id, table, spans }
        ),
        1 => (tenant.clone(), 0..3u128, end).prop_map(|(t, id, end)| Call::End(t, id, end)),
        2 => (0..3u128, tenant.clone(), prop::collection::vec(0..9u128, 0..4), any::<u64>())
            .prop_map(|(id, tenant, hashes, ends_ms)| Call::Pin(id, tenant, hashes, ends_ms)),
        1 => (0..3u128).prop_map(Call::Unpin),
        1 => Just(Call::Evict),
        1 => id.prop_map(Call::Reclaim),
        1 => (tenant, 0..9u32, 0..9u32).prop_map(|(t, blocks, held)| Call::Budget(t, blocks, held)),
        1 => any::<u64>().prop_map(Call::Expire),
        1 => Just(Call::Reset),
    ]
}

fn hash_of(hash: u128) -> SequenceHash {
    SequenceHash(hash)
}

/// What is known of a block now, for most numbers; some names are old and some were never given.
fn named(pool: &BlockManager, number: u32) -> BlockId {
    let (index, age) = (number % (BLOCKS + 1), number / (BLOCKS + 1));
    let forged = BlockId { index, generation: 0, uses: 0 };
    let now = pool.blocks.get(index as usize).map_or(forged, |block| block.id(index));
    match age {
        0 => BlockId { uses: now.uses.wrapping_sub(1), ..now },
        1 => BlockId { generation: now.generation.wrapping_sub(1), ..now },
        _ => now,
    }
}

fn table_of(pool: &BlockManager, table: &[u32]) -> Vec<BlockId> {
    table.iter().map(|id| named(pool, *id)).collect()
}

/// Answers are not looked at: what counts is what is left behind.
fn make(pool: &mut BlockManager, call: Call, now_ms: &mut u64) {
    match call {
        Call::Acquire(id) => {
            let _ = pool.acquire(named(pool, id), *now_ms);
        }
        Call::Allocate(tenant) => {
            let _ = pool.allocate(TenantSlot(tenant), *now_ms);
        }
        Call::Register { id, hash, parent, namespace } => {
            let namespace = NamespaceId(namespace);
            let parent = parent.map(|parent| named(pool, parent));
            let _ = pool.register(named(pool, id), hash_of(hash), parent, namespace);
        }
        Call::Release { table, leased } => {
            let _ = pool.release(&table_of(pool, &table), |_| leased, *now_ms);
        }
        Call::Unacquire(table, found) => {
            let _ = pool.unacquire(&table_of(pool, &table), found, *now_ms);
        }
        Call::Lease { tenant, id, table, spans } => {
            let spans: Vec<SpanTerms> = spans
                .into_iter()
                .map(|(from, to, priority, duration)| SpanTerms {
                    blocks: from..to,
                    class: Class::History,
                    priority,
                    after: priority.wrapping_mul(7),
                    duration_ms: duration.is_multiple_of(2).then_some(duration),
                })
                .collect();
            let terms = LeaseTerms { tenant: TenantSlot(tenant), id: LeaseId(id), spans: &spans };
            let _ = pool.lease(&terms, &table_of(pool, &table), *now_ms);
            let _ = pool.lease_spans(TenantSlot(tenant), LeaseId(id), *now_ms);
        }
        Call::Amend(tenant, id, priority, duration_ms) => {
            let class = Class::History;
            let amendment = Amendment { class, priority, after: priority / 2, duration_ms };
            pool.amend_lease(TenantSlot(tenant), LeaseId(id), &[amendment], *now_ms);
        }
        Call::End(tenant, id, end) => {
            pool.end_lease(TenantSlot(tenant), LeaseId(id), end, *now_ms);
        }
        Call::Pin(id, tenant, hashes, ends_ms) => {
            let hashes: Vec<SequenceHash> = hashes.into_iter().map(hash_of).collect();
            let _ = pool.pin(PinId(id), TenantSlot(tenant), &hashes, ends_ms, *now_ms);
        }
        Call::Unpin(id) => {
            let _ = pool.unpin(PinId(id));
        }
        Call::Evict => {
            let _ = pool.evict(*now_ms);
        }
        Call::Reclaim(id) => {
            let _ = pool.reclaim(named(pool, id));
        }
        Call::Budget(tenant, blocks, held) => {
            let _ = pool.set_budget(TenantSlot(tenant), blocks, held);
        }
        // Also backwards, which is the caller's loss.
        Call::Expire(at_ms) => {
            *now_ms = at_ms;
            pool.expire(at_ms);
        }
        Call::Reset => {
            pool.reset(*now_ms);
        }
    }
}

fn check(pool: &mut BlockManager) {
    let at = |stage: &[Stage]| pool.blocks.iter().filter(|b| stage.contains(&b.stage)).count();
    let counts = pool.counts();
    assert_eq!(counts.used as usize, at(&[Stage::Filling, Stage::Used]));
    assert_eq!(counts.registered as usize, at(&[Stage::Used, Stage::Cached]));
    assert_eq!(pool.free.len(), at(&[Stage::Free]));
    let reclaimable = pool.blocks.iter().filter(|b| b.stage == Stage::Cached && b.holds == 0);
    assert_eq!(pool.reclaimable as usize, reclaimable.count());
    for (id, block) in pool.blocks.iter().enumerate() {
        let is_idle = block.stage == Stage::Cached && block.holds == 0;
        let worth = is_idle.then(|| pool.standing(id as u32).priority);
        assert_eq!(pool.idle.worth(id as u32), worth, "block {id}");
    }
    for worth in [0, 35, 60, 100] {
        let above = (0..pool.blocks.len() as u32).filter_map(|id| pool.idle.worth(id));
        assert_eq!(pool.reclaimable_above(worth) as usize, above.filter(|w| *w > worth).count());
    }
    for (id, block) in pool.blocks.iter().enumerate() {
        let goes = block.stage == Stage::Cached && block.children == 0 && block.holds == 0;
        assert_eq!(pool.links[id].priority().is_some(), goes, "{block:?}");
        assert_eq!(block.references > 0, matches!(block.stage, Stage::Filling | Stage::Used));
        if goes {
            assert_eq!(pool.links[id].priority(), Some(pool.standing(id as u32).priority));
        }
    }
    // What a tenant is promised it gets, whoever goes on from its blocks.
    for tenant in 0..2 {
        let own = pool.blocks.iter().enumerate().filter(|(_, b)| u32::from(b.tenant) == tenant);
        let idle: Vec<u32> = own.filter(|(_, b)| b.is_idle()).map(|(id, _)| id as u32).collect();
        let lent = idle.iter().filter(|id| pool.lent.contains_key(id)).count();
        let counted = pool.tenants.get(tenant).map_or((0, 0), |own| (own.reclaimable, own.lent));
        assert_eq!((counted.0 as usize, counted.1 as usize), (idle.len(), lent));
    }
    let lent = |id: &u32| pool.blocks[*id as usize].children > 0;
    assert!(pool.lent.keys().all(lent), "{:?}", pool.lent);
    let mut told = 0;
    pool.snapshot(|_| told += 1);
    assert!(told <= counts.registered);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn no_mistake_breaks_a_pool(plan in prop::collection::vec(calls(), 1..80)) {
        let limits = Limits { blocks: BLOCKS, pinned_blocks: 3, leases: 5, claim_kinds: 2 };
        let mut pool = BlockManager::new(limits);
        let mut now_ms = 0;
        for call in plan {
            make(&mut pool, call, &mut now_ms);
            check(&mut pool);
        }
    }
}
