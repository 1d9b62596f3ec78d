//! The pool's words, one promise after the other, and under random use: what events tell is what is registered, and
//! everything can be had back. What is evicted when is the manager's own tests' business.

use std::collections::BTreeMap;

use mainstay_engine_abi::sdk::{
    LeaseChange, LeaseEnd, RetentionClass, RetentionRange, TOKENS_TO_END,
};
use proptest::prelude::*;

use super::*;

const TOKENS: usize = 4;

/// A stand-in for the keyed hash that tells prefixes apart.
fn hash_of(parent: u128, token: u8) -> u128 {
    (parent ^ (u128::from(token) + 1)).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835) ^ 7
}

fn chain(tokens: &[u8]) -> Vec<u128> {
    let hash = |parent: &mut u128, token: &u8| {
        *parent = hash_of(*parent, *token);
        Some(*parent)
    };
    tokens.iter().scan(0, hash).collect()
}

fn wishes<'a>(ranges: &'a [RetentionRange], leases: &'a [u128]) -> Wishes<'a> {
    Wishes { namespace: 0, block_tokens: TOKENS, ranges, leases }
}

/// All of a table at that priority.
fn all(priority: u8, duration_ms: u32) -> RetentionRange {
    RetentionRange { end: TOKENS_TO_END, priority, duration_ms, ..RetentionRange::default() }
}

/// A sequence's use of the pool, as a scheduler does it; `None` when blocks run out.
fn attach(pool: &mut BlockPool, hashes: &[u128], unfilled: usize, now_ms: u64) -> Option<Table> {
    let mut table = Table::default();
    let known = pool.attach(hashes.iter().copied(), &mut table, now_ms);
    for at in known..hashes.len() + unfilled {
        if !pool.extend(&mut table, 0, now_ms) {
            pool.release(&mut table, &wishes(&[], &[]), now_ms);
            return None;
        }
        if let Some(hash) = hashes.get(at) {
            pool.register(&mut table, at, *hash, 0);
        }
    }
    Some(table)
}

/// Computes a prompt and lets it go with these wishes.
fn serve(pool: &mut BlockPool, hashes: &[u128], wishes: &Wishes<'_>, now_ms: u64) {
    let mut table = attach(pool, hashes, 0, now_ms).unwrap();
    pool.release(&mut table, wishes, now_ms);
}

/// Takes a block, so that something has to go; says what did.
fn squeeze(pool: &mut BlockPool, now_ms: u64) -> Vec<(u128, Cause)> {
    pool.drain_events().for_each(drop);
    let mut table = attach(pool, &[], 1, now_ms).unwrap();
    pool.release(&mut table, &wishes(&[], &[]), now_ms);
    let of = |event: KvEvent| match event {
        KvEvent::Removed { blocks, cause, .. } => blocks.into_iter().map(|b| (b, cause)).collect(),
        _ => Vec::new(),
    };
    pool.drain_events().flat_map(of).collect()
}

#[test]
fn equal_blocks_become_one() {
    let mut pool = BlockPool::new(8, 0.5);
    let hash = chain(b"a")[0];
    let [mut first, mut second] = [(); 2].map(|()| attach(&mut pool, &[], 1, 0).unwrap());
    pool.register(&mut first, 0, hash, 0);
    pool.register(&mut second, 0, hash, 0);
    assert_eq!(first.slots(), second.slots());
    assert_eq!((pool.counts().used, pool.available()), (1, 7));
    assert_eq!(pool.drain_events().count(), 1, "a duplicate is no event");
}

#[test]
fn stored_runs_are_one_event_with_their_parent() {
    let mut pool = BlockPool::new(8, 0.5);
    let hashes = chain(b"abc");
    let mut table = attach(&mut pool, &hashes, 0, 0).unwrap();
    let stored = |parent, blocks: &[u128], snapshot| KvEvent::Stored {
        namespace: 0,
        parent,
        blocks: blocks.to_vec(),
        tier: TIER_DEVICE,
        snapshot,
    };
    assert_eq!(pool.drain_events().collect::<Vec<_>>(), [stored(0, &hashes, false)]);
    let branch = [hashes[0], hash_of(hashes[0], b'x')];
    attach(&mut pool, &branch, 0, 0).unwrap();
    assert_eq!(pool.drain_events().collect::<Vec<_>>(), [stored(hashes[0], &branch[1..], false)]);
    let mut told = Vec::new();
    assert_eq!(pool.snapshot(|event| told.push(event)), 4);
    assert!(told.iter().all(|event| matches!(event, KvEvent::Stored { snapshot: true, .. })));
    assert_eq!(pool.place(branch[1]), Some((hashes[0], 0)));
    assert_eq!(pool.place(hashes[0]), Some((0, 0)));
    pool.release(&mut table, &wishes(&[], &[]), 0);
}

#[test]
fn priority_outlives_recency_until_its_time_is_over() {
    let mut pool = BlockPool::new(2, 0.5);
    let (precious, plain) = (chain(b"a"), chain(b"b"));
    serve(&mut pool, &precious, &wishes(&[all(80, 1000)], &[]), 0);
    serve(&mut pool, &plain, &wishes(&[], &[]), 0);
    assert_eq!(squeeze(&mut pool, 0), [(plain[0], Cause::Capacity)]);
    serve(&mut pool, &plain, &wishes(&[], &[]), 0);
    assert_eq!(squeeze(&mut pool, 1000), [(precious[0], Cause::Expiry)]);
}

#[test]
fn shared_blocks_take_the_highest_claim_and_low_ones_go_first() {
    let mut pool = BlockPool::new(2, 0.5);
    let (shared, other) = (chain(b"a"), chain(b"b"));
    serve(&mut pool, &shared, &wishes(&[all(90, 0)], &[]), 0);
    serve(&mut pool, &shared, &wishes(&[all(0, 0)], &[]), 0);
    serve(&mut pool, &other, &wishes(&[all(50, 0)], &[]), 0);
    assert_eq!(squeeze(&mut pool, 0), [(other[0], Cause::Capacity)]);
    let mut pool = BlockPool::new(2, 0.5);
    serve(&mut pool, &shared, &wishes(&[], &[]), 0);
    serve(&mut pool, &other, &wishes(&[all(5, 0)], &[]), 0);
    assert_eq!(squeeze(&mut pool, 0), [(other[0], Cause::Capacity)]);
}

#[test]
fn a_block_takes_the_highest_range_that_touches_it() {
    let mut pool = BlockPool::new(4, 0.5);
    let hashes = chain(b"abcd");
    let range = |start, end, priority| RetentionRange { start, end, priority, ..all(0, 0) };
    // The second block is touched by both, the third by none.
    let ranges = [range(0, 5, 80), range(4, 8, 90), range(12, TOKENS_TO_END, 5)];
    serve(&mut pool, &hashes, &wishes(&ranges, &[]), 0);
    let worth = |pool: &BlockPool, at: usize| {
        let id = pool.manager.lookup(SequenceHash(hashes[at])).unwrap();
        pool.manager.worth(id).unwrap().0
    };
    let worths: Vec<u8> = (0..4).map(|at| worth(&pool, at)).collect();
    assert_eq!(worths, [80, 90, PRIORITY_DEFAULT, 5]);
}

#[test]
fn a_lease_is_renewed_amended_and_ended_by_its_name() {
    let mut pool = BlockPool::new(3, 0.5);
    let (own, other) = (chain(b"ab"), chain(b"x"));
    let range = RetentionRange {
        class: RetentionClass::History,
        after: Some(30),
        lease: 1,
        ..all(60, 1000)
    };
    serve(&mut pool, &own, &wishes(&[range], &[7]), 0);
    serve(&mut pool, &other, &wishes(&[], &[]), 0);
    assert_eq!(pool.counts().leases, 1);
    assert_eq!(squeeze(&mut pool, 10), [(other[0], Cause::Capacity)]);
    serve(&mut pool, &other, &wishes(&[], &[]), 20);
    // A hold for a tool keeps it past the time that it had.
    let change = |end, ranges| LeaseChange { namespace: 0, lease_id: 7, end, ranges };
    let hold = RetentionRange { priority: 80, duration_ms: 5000, lease: 0, ..range };
    assert!(pool.change_lease(&change(None, vec![hold]), 500));
    assert_eq!(squeeze(&mut pool, 2000), [(other[0], Cause::Capacity)]);
    serve(&mut pool, &other, &wishes(&[], &[]), 2000);
    let ended = change(Some(LeaseEnd::Finished), Vec::new());
    let elsewhere = LeaseChange { namespace: 1 + PARTS, ..ended.clone() };
    assert!(!pool.change_lease(&elsewhere, 2000), "another namespace's lease is another one");
    assert!(pool.change_lease(&ended, 2000));
    assert!(!pool.change_lease(&ended, 2000), "it is gone");
    assert_eq!(squeeze(&mut pool, 2000), [(own[1], Cause::Lifecycle)]);
}

#[test]
fn pins_survive_a_flood_also_those_made_before_their_blocks() {
    let mut pool = BlockPool::new(8, 0.5);
    let (pinned, loose) = (chain(b"abc"), chain(b"xyz"));
    assert_eq!(pool.pin(1, &pinned, 1000, 0), Ok(0));
    serve(&mut pool, &pinned, &wishes(&[], &[]), 0);
    serve(&mut pool, &loose, &wishes(&[], &[]), 0);
    let taken: Vec<Table> = std::iter::from_fn(|| attach(&mut pool, &[], 1, 0)).collect();
    assert_eq!(taken.len(), 5);
    assert!(pinned.iter().all(|hash| pool.holds(*hash)));
    assert!(loose.iter().all(|hash| !pool.holds(*hash)));
    assert_eq!(pool.next_expiry_ms(), Some(1000));
    pool.expire(1000);
    assert!(pool.drain_events().any(|event| event == KvEvent::PinExpired { pin_id: 1 }));
    assert_eq!(pool.available(), 3);
    assert_eq!(pool.unpin(1), None);
}

#[test]
fn a_chain_comes_in_as_a_whole_or_not_at_all() {
    let mut pool = BlockPool::new(6, 0.5);
    let hashes = chain(b"abcd");
    let of = |parent, hashes: &'static [u128]| Chain {
        namespace: 0,
        parent,
        hashes,
        priority: 50,
        duration_ms: Some(10),
    };
    let leaked: &'static [u128] = Box::leak(hashes.clone().into_boxed_slice());
    assert_eq!(pool.import(&of(hashes[0], &leaked[1..]), 0, |_, _| ()), None, "no parent");
    let mut filled = Vec::new();
    assert_eq!(pool.import(&of(0, &leaked[..2]), 0, |_, at| filled.push(at)), Some(2));
    // What is known is not filled again.
    assert_eq!(pool.import(&of(hashes[0], &leaked[1..]), 0, |_, at| filled.push(at)), Some(3));
    assert_eq!(filled, [0, 1, 1, 2]);
    assert_eq!(pool.import(&of(0, &leaked[1..]), 0, |_, _| ()), None, "behind another parent");
    assert_eq!((pool.counts().cached, pool.counts().used, pool.available()), (4, 0, 6));
    let mut table = attach(&mut pool, &chain(b"z"), 4, 0).unwrap();
    let more: &'static [u128] = Box::leak(chain(b"qrs").into_boxed_slice());
    assert_eq!(pool.import(&of(0, more), 0, |_, _| ()), Some(1), "as far as there is room");
    pool.release(&mut table, &wishes(&[], &[]), 0);
    assert_eq!(pool.available(), 6);
}

#[derive(Debug, Clone)]
enum Op {
    Attach { tokens: Vec<u8>, unfilled: usize, ranges: Vec<RetentionRange> },
    Release(usize),
    Import { tokens: Vec<u8>, skip: usize },
    Change { lease: u128, end: Option<LeaseEnd> },
    Pin { id: u128, tokens: Vec<u8>, ttl_ms: u64 },
    Unpin(u128),
    Wait(u64),
}

fn ranges() -> impl Strategy<Value = Vec<RetentionRange>> {
    let range = (0u32..20, 1u32..20, 0u8..=100, 0u8..3, 0u32..50).prop_map(
        |(start, len, priority, lease, duration_ms)| RetentionRange {
            start,
            end: start + len,
            priority,
            after: Some(priority / 2),
            class: RetentionClass::History,
            lease,
            duration_ms,
        },
    );
    prop::collection::vec(range, 0..5)
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let tokens = || prop::collection::vec(0u8..3, 1..6);
    let ends =
        [None, Some(LeaseEnd::Released), Some(LeaseEnd::Finished), Some(LeaseEnd::Compacted)];
    let op = prop_oneof![
        4 => (tokens(), 0usize..2, ranges())
            .prop_map(|(tokens, unfilled, ranges)| Op::Attach { tokens, unfilled, ranges }),
        3 => (0usize..8).prop_map(Op::Release),
        2 => (tokens(), 0usize..4).prop_map(|(tokens, skip)| Op::Import { tokens, skip }),
        1 => (1u128..3, prop::sample::select(ends.to_vec()))
            .prop_map(|(lease, end)| Op::Change { lease, end }),
        2 => (0u128..4, tokens(), 1u64..60)
            .prop_map(|(id, tokens, ttl_ms)| Op::Pin { id, tokens, ttl_ms }),
        1 => (0u128..4).prop_map(Op::Unpin),
        1 => (1u64..30).prop_map(Op::Wait),
    ];
    prop::collection::vec(op, 1..80)
}

struct Bench {
    pool: BlockPool,
    live: Vec<(Table, Vec<RetentionRange>)>,
    /// What the events say, with parents.
    told: BTreeMap<u128, u128>,
    now_ms: u64,
}

impl Bench {
    fn step(&mut self, op: &Op) {
        let now_ms = self.now_ms;
        match op {
            Op::Attach { tokens, unfilled, ranges } => {
                if let Some(table) = attach(&mut self.pool, &chain(tokens), *unfilled, now_ms) {
                    self.live.push((table, ranges.clone()));
                }
            }
            Op::Release(index) if *index < self.live.len() => {
                let (mut table, ranges) = self.live.swap_remove(*index);
                self.pool.release(&mut table, &wishes(&ranges, &[1, 2]), now_ms);
                assert!(table.is_empty());
            }
            Op::Release(_) => {}
            Op::Import { tokens, skip } => {
                let hashes = chain(tokens);
                let skip = (*skip).min(hashes.len() - 1);
                let parent = skip.checked_sub(1).map_or(0, |above| hashes[above]);
                let fits = parent == 0 || self.pool.holds(parent);
                let (hashes, duration_ms) = (&hashes[skip..], (skip % 2 == 0).then_some(20));
                let chain = Chain { namespace: 0, parent, hashes, priority: 60, duration_ms };
                assert_eq!(self.pool.import(&chain, now_ms, |_, _| ()).is_some(), fits);
            }
            Op::Change { lease, end } => {
                let hold = RetentionRange { class: RetentionClass::History, ..all(70, 20) };
                let ranges = if end.is_none() { vec![hold] } else { Vec::new() };
                let change = LeaseChange { namespace: 0, lease_id: *lease, end: *end, ranges };
                self.pool.change_lease(&change, now_ms);
            }
            Op::Pin { id, tokens, ttl_ms } => {
                // Too large a pin is refused, which changes nothing.
                let _ = self.pool.pin(*id, &chain(tokens), now_ms + ttl_ms, now_ms);
            }
            Op::Unpin(id) => drop(self.pool.unpin(*id)),
            Op::Wait(ms) => self.now_ms += ms,
        }
        self.pool.expire(self.now_ms);
        self.listen();
    }

    fn listen(&mut self) {
        for event in self.pool.drain_events() {
            match event {
                KvEvent::Stored { namespace, mut parent, blocks, .. } => {
                    assert!(parent == namespace || self.told.contains_key(&parent));
                    for block in blocks {
                        assert!(self.told.insert(block, parent).is_none(), "stored twice");
                        parent = block;
                    }
                }
                KvEvent::Removed { blocks, .. } => {
                    for block in blocks {
                        assert!(self.told.remove(&block).is_some());
                        assert!(!self.told.values().any(|p| *p == block), "a parent went first");
                    }
                }
                KvEvent::PinExpired { .. } => {}
            }
        }
        assert_eq!(self.pool.counts().cached as usize, self.told.len());
        assert!(self.told.keys().all(|hash| self.pool.holds(*hash)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_is_done_events_tell_what_is_there(total in 1u32..14, ops in ops()) {
        let pool = BlockPool::new(total, 0.5);
        let mut bench = Bench { pool, live: Vec::new(), told: BTreeMap::new(), now_ms: 0 };
        for op in &ops {
            bench.step(op);
        }
        while !bench.live.is_empty() {
            bench.step(&Op::Release(0));
        }
        (0..4).for_each(|id| bench.step(&Op::Unpin(id)));
        prop_assert_eq!(bench.pool.available(), total, "everything can be had back");
        prop_assert_eq!(bench.pool.counts().used, 0);
    }
}
