//! What single sequences of events promise.

mod pins;

use mainstay_types::hash::{NamespaceId, SequenceHash};
use mainstay_types::id::PinId;

use super::tests::{chain, hashes, namespace};
use super::*;

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
            let parent = table.last().copied();
            pool.register(id, SequenceHash(hash), parent, namespace(tenant)).unwrap()
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
    assert!(pool.end_lease(TenantSlot(0), LeaseId(1), End::Finished, 100));
    assert_eq!(worth(&pool), 1, "the weaker one is what stands");
    assert!(pool.end_lease(TenantSlot(0), LeaseId(2), End::Compacted, 100));
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
    assert_eq!(pool.pin(PinId(1), TenantSlot(0), &wanted, 1_000, 0), Ok(4));
    pool.release(&table, |_| false, 0).unwrap();
    for turn in 0..200u8 {
        let path = [1, turn, turn / 2, turn / 3];
        let flood = running(&mut pool, 2, &path, u64::from(turn));
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
    let mut pool = BlockManager::new(Limits { pinned_blocks: 1, leases: 1, ..Limits::new(3) });
    let table = running(&mut pool, 0, &[0, 0], 0);
    let nobody = BlockId { index: 77, generation: 0, uses: 0 };
    let stage = |block, is, wanted| Err(BlockError::Stage { block, is, wanted });
    assert_eq!(pool.acquire(nobody, 0), Err(BlockError::Unknown(nobody)));
    assert_eq!(pool.release(&[nobody], |_| true, 0), Err(BlockError::Unknown(nobody)));
    assert_eq!(pool.reclaim(table[0]), stage(table[0], Stage::Used, Stage::Free));
    let filling = pool.allocate(TenantSlot(1), 0).unwrap();
    assert_eq!(pool.acquire(filling, 0), stage(filling, Stage::Filling, Stage::Used));
    assert_eq!(pool.allocate(TenantSlot(1), 0), Err(BlockError::Full));
    assert!(pool.allocate(TenantSlot(TENANTS_MAX), 0).is_err());
    let foreign = pool.register(filling, SequenceHash(99), Some(table[1]), NamespaceId(9));
    assert_eq!(foreign, Err(BlockError::Foreign(table[1])));
    let stolen = SequenceHash(chain(0, &[0])[0]);
    let stolen = pool.register(filling, stolen, None, NamespaceId(9));
    assert_eq!(stolen, Err(BlockError::Foreign(table[0])));
    let spans = [span(0..2, 50, 0, None)];
    let terms = |tenant| LeaseTerms { tenant: TenantSlot(tenant), id: LeaseId(1), spans: &spans };
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
    assert_eq!(pool.release(&table[..1], |_| true, 0), Err(BlockError::Stale(table[0])));
    let last = pool.lookup(SequenceHash(chain(0, &[0, 0])[1])).unwrap();
    assert_eq!(pool.acquire(last, 0), Err(BlockError::Orphan(last)));
    let wanted = hashes(&chain(0, &[0, 0]));
    let large = pool.pin(PinId(1), TenantSlot(0), &wanted, 5, 0);
    assert_eq!(large, Err(BlockError::PinTooLarge { limit: 1 }));
    pool.unacquire(&[filling], 0, 0).unwrap();
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

#[test]
fn a_renewal_makes_nothing_worth_more() {
    let mut pool = BlockManager::new(Limits::new(8));
    let table = running(&mut pool, 0, &[0, 0, 0], 0);
    lease(&mut pool, &table, 1, &[span(0..1, 60, 35, None), span(1..3, 5, 0, None)], 0);
    pool.release(&table, |_| true, 0).unwrap();
    let worth = |pool: &BlockManager, at: usize| pool.worth(table[at]).unwrap().0;
    assert_eq!(worth(&pool, 2), 5);
    // The next turn's table ends before the last block, and says more of the second one.
    lease(&mut pool, &table, 1, &[span(0..1, 60, 35, None), span(1..2, 7, 0, None)], 1);
    assert_eq!([0, 1, 2].map(|at| worth(&pool, at)), [60, 7, 5]);
    // What was worth more than the default falls to it.
    lease(&mut pool, &table, 1, &[span(2..3, 1, 0, None)], 2);
    assert_eq!([0, 1, 2].map(|at| worth(&pool, at)), [35, 7, 5]);
    assert!(pool.end_lease(TenantSlot(0), LeaseId(1), End::Released, 2));
    assert_eq!(worth(&pool, 2), 5);
}

#[test]
fn an_amendment_changes_a_class_and_its_time_and_no_block() {
    let mut pool = BlockManager::new(Limits::new(8));
    let table = running(&mut pool, 0, &[0, 0], 0);
    let thought = SpanTerms { class: Class::Reasoning, ..span(1..2, 20, 5, Some(50)) };
    lease(&mut pool, &table, 1, &[span(0..1, 60, 35, Some(50)), thought], 0);
    pool.release(&table, |_| true, 0).unwrap();
    let amendment =
        |class, priority, ms| Amendment { class, priority, after: 3, duration_ms: Some(ms) };
    let held = [amendment(Class::History, 80, 30)];
    assert!(pool.amend_lease(TenantSlot(0), LeaseId(1), &held, 10));
    let worth = |pool: &BlockManager| [0, 1].map(|at| pool.worth(table[at]).unwrap().0);
    assert_eq!((worth(&pool), pool.next_expiry_ms()), ([80, 20], Some(40)));
    pool.expire(40);
    assert_eq!((worth(&pool), pool.next_expiry_ms()), ([3, 20], Some(50)));
    pool.expire(50);
    assert_eq!(worth(&pool), [3, 5]);
    assert!(pool.amend_lease(TenantSlot(0), LeaseId(1), &[amendment(Class::Reasoning, 9, 9)], 60));
    assert_eq!((worth(&pool), pool.next_expiry_ms()), ([3, 9], Some(69)));
    assert!(!pool.amend_lease(TenantSlot(1), LeaseId(1), &held, 60));
    assert!(!pool.amend_lease(TenantSlot(u32::MAX), LeaseId(1), &held, 60));
}

/// As many leases as a tenant gets, each on one block.
fn fill_leases(pool: &mut BlockManager, tenant: u32, table: &[BlockId], ms: Option<u64>) -> u128 {
    let spans = [span(0..1, 50, 0, ms)];
    let mut taken = 0;
    loop {
        let terms = LeaseTerms { tenant: TenantSlot(tenant), id: LeaseId(taken), spans: &spans };
        match pool.lease(&terms, table, 0) {
            Ok(_) => taken += 1,
            Err(error) => {
                assert!(matches!(error, BlockError::Many { what: "leases", .. }), "{error}");
                return taken;
            }
        }
    }
}

#[test]
fn no_tenant_leaves_others_without_leases() {
    let mut pool = BlockManager::new(Limits { leases: 100, ..Limits::new(16) });
    let tables = [0, 1, 2].map(|tenant| running(&mut pool, tenant, &[0], 0));
    let got =
        [0, 1, 2].map(|tenant| fill_leases(&mut pool, tenant, &tables[tenant as usize], None));
    assert_eq!(got, [47, 24, 12], "a part is left for those who have nearly none");
    // Renewing takes no room, whoever has come meanwhile.
    lease(&mut pool, &tables[0], 3, &[span(0..1, 60, 0, None)], 0);
}

#[test]
fn leases_that_are_over_make_room_where_most_are() {
    let mut pool = BlockManager::new(Limits { leases: 8, ..Limits::new(16) });
    let tables = [0, 1].map(|tenant| running(&mut pool, tenant, &[0], 0));
    assert_eq!(fill_leases(&mut pool, 0, &tables[0], Some(10)), 4);
    assert_eq!(fill_leases(&mut pool, 1, &tables[1], None), 2);
    // Nobody has called `expire`: the lease itself sees that others are over.
    let spans = [span(0..1, 50, 0, None)];
    let terms = |id| LeaseTerms { tenant: TenantSlot(1), id: LeaseId(id), spans: &spans };
    assert_eq!(pool.lease(&terms(7), &tables[1], 10), Ok(()));
    assert_eq!(pool.counts().leases, 6, "one of the other tenant's was dissolved");
    // But not for a tenant that has as many itself.
    assert!(pool.lease(&terms(8), &tables[1], 10).is_err());
}

#[test]
fn no_tenant_leaves_others_without_claims() {
    let mut pool = BlockManager::new(Limits::new(12_000));
    let table = namespaced_run(&mut pool, 0, 10_000);
    let other = running(&mut pool, 2, &[0], 0);
    let all = |from: usize| span(from..table.len(), 50, 0, None);
    let claims_max = CLAIMS_PER_BLOCK_MAX * 12_000;
    let mut id = 0;
    let refused = loop {
        let spans = [all(0), all(0), all(0), all(0)];
        let terms = LeaseTerms { tenant: TenantSlot(0), id: LeaseId(id), spans: &spans };
        match pool.lease(&terms, &table, 0) {
            Ok(_) => id += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, BlockError::Many { what: "blocks in leases", limit: claims_max });
    assert!(pool.counts().claims <= claims_max * 3 / 5, "{:?}", pool.counts());
    assert_eq!(fill_some(&mut pool, 2, &other), Ok(()));
}

fn fill_some(pool: &mut BlockManager, tenant: u32, table: &[BlockId]) -> Result<(), BlockError> {
    let spans = [span(0..1, 50, 0, None)];
    let terms = LeaseTerms { tenant: TenantSlot(tenant), id: LeaseId(1), spans: &spans };
    pool.lease(&terms, table, 0)
}

/// A long chain, in use.
fn namespaced_run(pool: &mut BlockManager, tenant: u32, blocks: usize) -> Vec<BlockId> {
    let mut table: Vec<BlockId> = Vec::new();
    for at in 0..blocks as u128 {
        let id = pool.allocate(TenantSlot(tenant), 0).unwrap();
        let hash = SequenceHash((u128::from(tenant) + 1) << 64 | at);
        let parent = table.last().copied();
        table.push(pool.register(id, hash, parent, namespace(tenant)).unwrap());
    }
    table
}

#[test]
fn who_released_a_block_has_no_part_in_its_next_use() {
    let mut pool = BlockManager::new(Limits::new(2));
    // Never registered, freed, and filled by another sequence.
    let first = pool.allocate(TenantSlot(0), 0).unwrap();
    pool.release(&[first], |_| true, 0).unwrap();
    let second = pool.allocate(TenantSlot(1), 0).unwrap();
    assert_eq!((first.index(), first == second), (second.index(), false));
    assert_eq!(pool.release(&[first], |_| true, 0), Err(BlockError::Stale(first)));
    assert_eq!(pool.unacquire(&[first], 0, 0), Err(BlockError::Stale(first)));
    let late = pool.register(first, SequenceHash(5), None, NamespaceId(1));
    assert_eq!(late, Err(BlockError::Stale(first)));
    assert_eq!(pool.stage(second), Some(Stage::Filling));
    // Registered, let go, and acquired by another sequence.
    let second = pool.register(second, SequenceHash(7), None, NamespaceId(1)).unwrap();
    pool.release(&[second], |_| true, 0).unwrap();
    let third = pool.lookup(SequenceHash(7)).unwrap();
    pool.acquire(third, 0).unwrap();
    assert_eq!(pool.release(&[second], |_| true, 0), Err(BlockError::Stale(second)));
    assert_eq!(pool.acquire(second, 0), Err(BlockError::Stale(second)));
    assert_eq!(pool.stage(third), Some(Stage::Used));
    // What is asked of its content is the same for both.
    assert_eq!(pool.worth(second), pool.worth(third));
    pool.release(&[third], |_| true, 0).unwrap();
    let gone = pool.evict(0).unwrap();
    pool.reclaim(gone.block).unwrap();
    assert_eq!(pool.reclaim(gone.block), Err(BlockError::Stale(gone.block)));
    assert_eq!(pool.worth(third), None);
}

#[test]
fn tenants_of_one_namespace_go_on_from_each_other() {
    let mut pool = BlockManager::new(Limits { pinned_blocks: 6, ..Limits::new(8) });
    let first = running(&mut pool, 0, &[0, 0], 0);
    let second = running(&mut pool, 1, &[0, 0, 1], 0);
    assert_eq!(second[..2], first[..]);
    // Who brought a block pays for it, and claims of both stand on it.
    let spans = [span(0..3, 70, 0, None)];
    let terms = LeaseTerms { tenant: TenantSlot(1), id: LeaseId(1), spans: &spans };
    assert_eq!(pool.lease(&terms, &second, 0), Ok(()));
    assert_eq!(pool.worth(first[0]).unwrap().0, 70);
    // The pin of the second holds the first one's blocks at its own expense.
    pool.set_budget(TenantSlot(0), 4, 0).unwrap();
    let wanted = hashes(&chain(1, &[0, 0, 1]));
    assert_eq!(pool.pin(PinId(1), TenantSlot(1), &wanted[2..], 10, 0), Ok(1));
    assert_eq!(pool.counts().pinned, 3);
    pool.release(&first, |_| true, 0).unwrap();
    pool.release(&second, |_| true, 0).unwrap();
    assert_eq!(pool.unpin(PinId(1)), Some(1));
    assert_eq!(pool.counts().pinned, 0);
    // The first one can't let its two go for its own sake, and they do not count while the second one's follows.
    assert_eq!(pool.available_to(TenantSlot(0)), 4);
    for _ in 0..4 {
        pool.allocate(TenantSlot(0), 0).unwrap();
    }
    let full = BlockError::TenantFull { limit: 4 };
    assert_eq!(pool.allocate(TenantSlot(0), 0), Err(full));
    // Once the second one's has gone, the two go first when it asks for more.
    pool.set_budget(TenantSlot(0), 5, 0).unwrap();
    assert_eq!(pool.evict(0).unwrap().tenant, TenantSlot(1));
    assert_eq!(pool.available_to(TenantSlot(0)), 1);
    assert!(pool.allocate(TenantSlot(0), 0).is_ok());
    assert_eq!(pool.figures().evictions_for(Cause::TenantBudget), 2);
    assert_eq!(pool.allocate(TenantSlot(0), 0), Err(BlockError::TenantFull { limit: 5 }));
}

#[test]
fn what_was_taken_back_was_no_hit() {
    let mut pool = BlockManager::new(Limits::new(4));
    let table = running(&mut pool, 0, &[0, 0], 0);
    pool.release(&table, |_| true, 0).unwrap();
    let before = *pool.figures();
    let again = running(&mut pool, 0, &[0, 0], 7);
    assert_eq!(pool.figures().age_at_hit.count(), 2);
    pool.unacquire(&again, 2, 7).unwrap();
    assert_eq!(*pool.figures(), before);
    assert_eq!(pool.evict(9).unwrap().hits, 0);
    assert_eq!(pool.figures().evicted_unused, 1);
}

#[test]
fn many_different_claims_on_a_block_demote_nobody() {
    let mut pool = BlockManager::new(Limits::new(4));
    let table = running(&mut pool, 0, &[0], 0);
    // Another tenant of the namespace was first, with more weak kinds than a list has room for.
    for (id, class) in Class::ALL.into_iter().enumerate() {
        for priority in [0, 1] {
            let spans = [SpanTerms { class, ..span(0..1, priority, 0, None) }];
            let id = LeaseId(2 * id as u128 + u128::from(priority));
            let terms = LeaseTerms { tenant: TenantSlot(1), id, spans: &spans };
            assert_eq!(pool.lease(&terms, &table, 0), Ok(()));
        }
    }
    let worth = |pool: &BlockManager| pool.worth(table[0]).unwrap().0;
    assert_eq!(worth(&pool), 1);
    lease(&mut pool, &table, 1, &[span(0..1, 93, 61, Some(100))], 0);
    assert_eq!(worth(&pool), 90, "a little less than what was claimed");
    let more = SpanTerms { class: Class::Side, ..span(0..1, 2, 2, None) };
    lease(&mut pool, &table, 2, &[more], 0);
    assert_eq!(worth(&pool), 90);
    pool.expire(100);
    assert_eq!(worth(&pool), 60);
    assert!(pool.end_lease(TenantSlot(0), LeaseId(1), End::Released, 100));
    assert_eq!(worth(&pool), PRIORITY_DEFAULT, "what any released one leaves");
}

#[test]
fn an_end_that_comes_before_the_time_was_told_counts_as_after_it() {
    let mut pool = BlockManager::new(Limits::new(4));
    let table = running(&mut pool, 0, &[0], 0);
    lease(&mut pool, &table, 1, &[span(0..1, 90, 20, Some(100))], 0);
    pool.release(&table, |_| true, 0).unwrap();
    // Nobody has called `expire`.
    assert!(pool.end_lease(TenantSlot(0), LeaseId(1), End::Released, 100));
    assert_eq!(pool.worth(table[0]).unwrap().0, 20);
}

#[test]
fn leases_on_what_has_gone_take_no_room() {
    let mut pool = BlockManager::new(Limits { leases: 40, ..Limits::new(8) });
    for turn in 0..500u64 {
        let id = pool.allocate(TenantSlot(0), turn).unwrap();
        let hash = SequenceHash(u128::from(turn) + 1);
        let id = pool.register(id, hash, None, NamespaceId(1)).unwrap();
        lease(&mut pool, &[id], u128::from(turn), &[span(0..1, 60, 0, None)], turn);
        pool.release(&[id], |_| true, turn).unwrap();
    }
    let counts = pool.counts();
    assert!((8..=20).contains(&counts.leases) && counts.claims <= 20, "{counts:?}");
    for turn in 492..500 {
        assert!(pool.end_lease(TenantSlot(0), LeaseId(turn), End::Released, 500), "{turn}");
    }
}

#[test]
fn a_claim_is_taken_out_as_what_it_was_counted() {
    let mut pool = BlockManager::new(Limits { claim_kinds: 2, ..Limits::new(4) });
    let table = running(&mut pool, 0, &[0], 0);
    for (id, priority) in [(1, 50), (2, 50), (3, 40)] {
        lease(&mut pool, &table, id, &[span(0..1, priority, 0, None)], 0);
    }
    let amendment = Amendment { class: Class::History, priority: 92, after: 0, duration_ms: None };
    assert!(pool.amend_lease(TenantSlot(0), LeaseId(1), &[amendment], 0));
    assert_eq!(pool.worth(table[0]), Some((90, Class::Plain)), "there were two kinds already");
    // Another one claims what the first could not; the end of the first leaves it alone.
    assert!(pool.end_lease(TenantSlot(0), LeaseId(3), End::Released, 0));
    assert!(pool.end_lease(TenantSlot(0), LeaseId(2), End::Released, 0));
    lease(&mut pool, &table, 4, &[span(0..1, 92, 0, None)], 0);
    assert_eq!(pool.worth(table[0]), Some((92, Class::History)));
    assert!(pool.end_lease(TenantSlot(0), LeaseId(1), End::Released, 0));
    assert_eq!(pool.worth(table[0]), Some((92, Class::History)));
    assert!(pool.end_lease(TenantSlot(0), LeaseId(4), End::Finished, 0));
    assert_eq!(pool.worth(table[0]), Some((35, Class::Plain)), "what the released ones left");
}

/// Each of forty tenants takes all that it gets, one after the other.
#[test]
fn forty_tenants_that_take_all_they_get_leave_some_to_each() {
    let mut pool = BlockManager::new(Limits { leases: 4_096, ..Limits::new(64) });
    let got: Vec<u128> = (0..40)
        .map(|tenant| {
            let table = running(&mut pool, tenant, &[0], 0);
            fill_leases(&mut pool, tenant, &table, None)
        })
        .collect();
    assert_eq!(got[..3], [1_920, 960, 480]);
    assert!(got.iter().all(|got| *got >= 4), "{got:?}");
    let mut pin = 0;
    for tenant in 0..40 {
        let before = pin;
        while pool.pin(PinId(pin), TenantSlot(tenant), &[SequenceHash(1)], 10, 0).is_ok() {
            pin += 1;
        }
        assert!(pin - before >= 64, "{tenant}: {}", pin - before);
    }
}

#[test]
fn what_another_user_let_go_meanwhile_is_not_taken_back() {
    let mut pool = BlockManager::new(Limits::new(4));
    let table = running(&mut pool, 0, &[0, 0], 0);
    pool.release(&table, |_| true, 0).unwrap();
    let first = running(&mut pool, 0, &[0, 0], 7);
    let second = running(&mut pool, 0, &[0, 0], 9);
    pool.release(&second, |_| true, 11).unwrap();
    pool.unacquire(&first, 2, 7).unwrap();
    let ages = pool.figures().age_at_hit;
    assert_eq!((ages.count(), ages.sum_ms()), (4, 2 * 7 + 2 * 9), "which of them is not known");
    assert_eq!(ages.count(), ages.buckets().map(|(_, count)| count).sum());
    assert_eq!(pool.evict(12).unwrap().hits, 1);
}
