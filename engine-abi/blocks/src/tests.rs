//! The pool against its reference model under random operations, and the promises one by one.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::reference::Reference;
use super::*;

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

/// A sequence's use of the pool, as the scheduler does it; `None` when blocks run out.
fn attach(pool: &mut BlockPool, hashes: &[u128], unfilled: usize) -> Option<Vec<BlockId>> {
    let mut table: Vec<BlockId> = Vec::new();
    let mut matching = true;
    for hash in hashes {
        matching = matching && pool.lookup(*hash).is_some();
        match pool.lookup(*hash).filter(|_| matching) {
            Some(id) => {
                pool.acquire(id);
                table.push(id);
            }
            None => match pool.allocate() {
                Some(id) => {
                    let id = pool.register(id, *hash, table.last().copied(), 0);
                    table.push(id);
                }
                None => {
                    pool.release(&table, 0, |_| None);
                    return None;
                }
            },
        }
    }
    for _ in 0..unfilled {
        match pool.allocate() {
            Some(id) => table.push(id),
            None => {
                pool.release(&table, 0, |_| None);
                return None;
            }
        }
    }
    Some(table)
}

fn removed(pool: &mut BlockPool) -> Vec<(u128, Cause)> {
    let of = |event: KvEvent| match event {
        KvEvent::Removed { blocks, cause, .. } => blocks.into_iter().map(|b| (b, cause)).collect(),
        _ => Vec::new(),
    };
    pool.drain_events().flat_map(of).collect()
}

#[test]
fn leaves_go_first_and_the_oldest_of_them() {
    let mut pool = BlockPool::new(4, 0.5);
    let (old, new) = (chain(b"ab"), chain(b"cd"));
    for hashes in [&old, &new] {
        let table = attach(&mut pool, hashes, 0).unwrap();
        pool.release(&table, 0, |_| None);
    }
    pool.drain_events();
    for _ in 0..3 {
        pool.allocate().unwrap();
    }
    let order: Vec<u128> = removed(&mut pool).into_iter().map(|r| r.0).collect();
    assert_eq!(order, [old[1], old[0], new[1]]);
}

#[test]
fn equal_blocks_become_one() {
    let mut pool = BlockPool::new(8, 0.5);
    let hash = chain(b"a")[0];
    let (first, second) = (pool.allocate().unwrap(), pool.allocate().unwrap());
    assert_eq!(pool.register(first, hash, None, 0), first);
    assert_eq!(pool.register(second, hash, None, 0), first);
    assert_eq!(pool.counts().used, 1);
    assert_eq!(pool.available(), 7);
    assert_eq!(pool.drain_events().count(), 1, "a duplicate is no event");
}

#[test]
fn stored_runs_are_one_event_with_their_parent() {
    let mut pool = BlockPool::new(8, 0.5);
    let hashes = chain(b"abc");
    let table = attach(&mut pool, &hashes, 0).unwrap();
    let events: Vec<KvEvent> = pool.drain_events().collect();
    let stored = |parent, blocks: &[u128], snapshot| KvEvent::Stored {
        namespace: 0,
        parent,
        blocks: blocks.to_vec(),
        tier: TIER_DEVICE,
        snapshot,
    };
    assert_eq!(events, [stored(0, &hashes, false)]);
    let branch = [hashes[0], hash_of(hashes[0], b'x')];
    attach(&mut pool, &branch, 0).unwrap();
    assert_eq!(pool.drain_events().collect::<Vec<_>>(), [stored(hashes[0], &branch[1..], false)]);
    let mut told = Vec::new();
    assert_eq!(pool.snapshot(|event| told.push(event)), 4);
    assert!(told.contains(&stored(0, &hashes, true)) && told.len() == 2, "{told:?}");
    pool.release(&table, 0, |_| None);
}

#[test]
fn priority_outlives_recency_until_it_lapses() {
    let mut pool = BlockPool::new(2, 0.5);
    let (precious, plain) = (chain(b"a"), chain(b"b"));
    let claim = Claim { priority: 80, duration_ms: Some(1000) };
    let table = attach(&mut pool, &precious, 0).unwrap();
    pool.release(&table, 0, |_| Some(claim));
    let table = attach(&mut pool, &plain, 0).unwrap();
    pool.release(&table, 0, |_| None);
    let taken = pool.allocate().unwrap();
    assert_eq!(removed(&mut pool), [(plain[0], Cause::Capacity)]);
    pool.release(&[taken], 0, |_| None);
    let table = attach(&mut pool, &plain, 0).unwrap();
    pool.release(&table, 0, |_| None);
    pool.expire(1000);
    pool.allocate().unwrap();
    assert_eq!(removed(&mut pool), [(precious[0], Cause::Expiry)]);
}

#[test]
fn shared_blocks_take_the_highest_claim() {
    let mut pool = BlockPool::new(2, 0.5);
    let (shared, other) = (chain(b"a"), chain(b"b"));
    for priority in [90, 0] {
        let table = attach(&mut pool, &shared, 0).unwrap();
        pool.release(&table, 0, |_| Some(Claim { priority, duration_ms: None }));
    }
    let table = attach(&mut pool, &other, 0).unwrap();
    pool.release(&table, 0, |_| Some(Claim { priority: 50, duration_ms: None }));
    pool.allocate().unwrap();
    assert!(pool.lookup(shared[0]).is_some() && pool.lookup(other[0]).is_none());
}

#[test]
fn a_low_claim_sends_a_block_away_first() {
    let mut pool = BlockPool::new(2, 0.5);
    let (old, scratch) = (chain(b"a"), chain(b"b"));
    let table = attach(&mut pool, &old, 0).unwrap();
    pool.release(&table, 0, |_| None);
    let table = attach(&mut pool, &scratch, 0).unwrap();
    pool.release(&table, 0, |_| Some(Claim { priority: 5, duration_ms: None }));
    pool.allocate().unwrap();
    assert!(pool.lookup(old[0]).is_some() && pool.lookup(scratch[0]).is_none());
}

#[test]
fn pins_survive_a_flood_also_those_made_before_their_blocks() {
    let mut pool = BlockPool::new(8, 0.5);
    let (pinned, loose) = (chain(b"abc"), chain(b"xyz"));
    assert_eq!(pool.pin(1, &pinned, 1000), Ok(0));
    for hashes in [&pinned, &loose] {
        let table = attach(&mut pool, hashes, 0).unwrap();
        pool.release(&table, 0, |_| None);
    }
    let taken: Vec<BlockId> = std::iter::from_fn(|| pool.allocate()).collect();
    assert_eq!(taken.len(), 5);
    assert!(pinned.iter().all(|hash| pool.lookup(*hash).is_some()));
    assert!(loose.iter().all(|hash| pool.lookup(*hash).is_none()));
    assert_eq!(pool.next_expiry_ms(), Some(1000));
    pool.expire(1000);
    assert!(pool.drain_events().any(|event| event == KvEvent::PinExpired { pin_id: 1 }));
    assert_eq!(pool.available(), 3);
}

#[test]
fn pins_hold_ancestors_and_keep_to_their_budget() {
    let mut pool = BlockPool::new(8, 0.5);
    let hashes = chain(b"abcde");
    let table = attach(&mut pool, &hashes, 0).unwrap();
    pool.release(&table, 0, |_| None);
    assert_eq!(pool.pin(1, &hashes[2..3], 10), Ok(1));
    assert_eq!(pool.counts().pinned, 3, "two ancestors are held with it");
    assert_eq!(pool.pin(2, &hashes[4..], 10), Ok(0), "no room for it and its ancestor");
    assert_eq!(pool.counts().pinned, 3);
    assert_eq!(pool.pin(3, &hashes, 10), Err(PinError::Blocks { limit: 4 }), "larger than all");
    assert_eq!(pool.pin(3, &[1, 2, 2], 10), Ok(0), "what is not here costs nothing");
    assert_eq!(pool.unpin(1), Some(1));
    assert_eq!(pool.counts().pinned, 0, "five ancestors do not fit into four");
    assert_eq!(pool.pin(2, &hashes[..1], 10), Ok(1));
    assert_eq!(pool.pin(1, &hashes[..2], 20), Ok(2), "a pin replaces its namesake");
    assert_eq!((pool.counts().pinned, pool.available()), (2, 6));
    assert_eq!((pool.unpin(1), pool.unpin(1)), (Some(2), None));
    assert_eq!(pool.available(), 7);
    assert_eq!(pool.unpin(2), Some(1));
    assert_eq!(pool.available(), 8);
}

#[test]
fn a_block_without_room_is_protected_once_another_pin_ends() {
    let mut pool = BlockPool::new(8, 0.5);
    let (first, second) = (chain(b"abc"), chain(b"xyz"));
    for hashes in [&first, &second] {
        let table = attach(&mut pool, hashes, 0).unwrap();
        pool.release(&table, 0, |_| None);
    }
    assert_eq!(pool.pin(1, &first, 10), Ok(3));
    assert_eq!(pool.pin(2, &second, 10), Ok(1));
    assert_eq!(pool.unpin(1), Some(3));
    assert_eq!(pool.counts().pinned, 3);
    assert_eq!(pool.pin(2, &second, 20), Ok(3), "asking again tells the new count");
}

#[derive(Debug, Clone)]
enum Op {
    Attach { tokens: Vec<u8>, unfilled: usize, claim: Option<Claim> },
    Release(usize),
    Pin { id: u128, tokens: Vec<u8>, skip: usize, ttl_ms: u64 },
    Unpin(u128),
    Wait(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let tokens = || prop::collection::vec(0u8..3, 1..6);
    let claim = prop::option::of(
        (0u8..=100, prop::option::of(1u64..50))
            .prop_map(|(priority, duration_ms)| Claim { priority, duration_ms }),
    );
    let op = prop_oneof![
        4 => (tokens(), 0usize..2, claim)
            .prop_map(|(tokens, unfilled, claim)| Op::Attach { tokens, unfilled, claim }),
        3 => (0usize..8).prop_map(Op::Release),
        2 => (0u128..4, tokens(), 0usize..4, 1u64..60)
            .prop_map(|(id, tokens, skip, ttl_ms)| Op::Pin { id, tokens, skip, ttl_ms }),
        1 => (0u128..4).prop_map(Op::Unpin),
        1 => (1u64..30).prop_map(Op::Wait),
    ];
    prop::collection::vec(op, 1..80)
}

struct Live {
    table: Vec<BlockId>,
    hashes: Vec<u128>,
    unfilled: u32,
    claim: Option<Claim>,
}

/// Both pools, the sequences on them, and what the event stream says.
struct Pair {
    pool: BlockPool,
    reference: Reference,
    live: Vec<Live>,
    told: BTreeMap<u128, u128>,
    now_ms: u64,
}

impl Pair {
    fn attach(&mut self, tokens: &[u8], unfilled: usize, claim: Option<Claim>) {
        let hashes = chain(tokens);
        let (mut table, mut done, mut filling) = (Vec::new(), Vec::new(), 0);
        let known = hashes.iter().take_while(|h| self.pool.lookup(**h).is_some()).count();
        assert_eq!(
            known,
            hashes.iter().take_while(|h| self.reference.nodes.contains_key(h)).count()
        );
        for hash in &hashes[..known] {
            let id = self.pool.lookup(*hash).unwrap();
            self.pool.acquire(id);
            self.reference.nodes.get_mut(hash).unwrap().references += 1;
            table.push(id);
            done.push(*hash);
        }
        for hash in hashes[known..].iter().map(Some).chain((0..unfilled).map(|_| None)) {
            let id = self.pool.allocate();
            assert_eq!(id.is_some(), self.reference.allocate(self.now_ms));
            let Some(mut id) = id else { break };
            match hash {
                None => filling += 1,
                Some(hash) => {
                    id = self.pool.register(id, *hash, table.last().copied(), 0);
                    self.reference.register(*hash, done.last().copied());
                    done.push(*hash);
                }
            }
            table.push(id);
        }
        self.live.push(Live { table, hashes: done, unfilled: filling, claim });
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Attach { tokens, unfilled, claim } => self.attach(tokens, *unfilled, *claim),
            Op::Release(index) => {
                if *index < self.live.len() {
                    let live = self.live.swap_remove(*index);
                    self.pool.release(&live.table, self.now_ms, |_| live.claim);
                    self.reference
                        .release(&live.hashes, live.unfilled, self.now_ms, |_| live.claim);
                }
            }
            Op::Pin { id, tokens, skip, ttl_ms } => {
                let hashes = chain(tokens);
                let hashes = &hashes[(*skip).min(hashes.len() - 1)..];
                let pinned = self.pool.pin(*id, hashes, self.now_ms + ttl_ms);
                assert_eq!(pinned.is_ok(), self.reference.pin(*id, hashes, self.now_ms + ttl_ms));
            }
            Op::Unpin(id) => {
                assert_eq!(self.pool.unpin(*id).is_some(), self.reference.unpin(*id));
            }
            Op::Wait(ms) => self.now_ms += ms,
        }
        self.pool.expire(self.now_ms);
        self.reference.expire(self.now_ms);
        self.compare();
    }

    fn compare(&mut self) {
        let mut evicted = Vec::new();
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
                        evicted.push(block);
                    }
                }
                KvEvent::PinExpired { .. } => {}
            }
        }
        assert_eq!(evicted, std::mem::take(&mut self.reference.evicted));
        let nodes = &self.reference.nodes;
        assert!(nodes.keys().eq(self.told.keys()), "events tell what is registered");
        for (hash, node) in nodes {
            let block = &self.pool.blocks[self.pool.lookup(*hash).unwrap() as usize];
            assert_eq!((block.references, block.pinned), (node.references, node.pinned));
        }
        let counts = self.pool.counts();
        assert_eq!(counts.cached as usize, nodes.len());
        assert_eq!(counts.pinned as usize, self.reference.held().len());
        assert!(u64::from(counts.pinned) <= self.reference.limit);
        assert_eq!(self.pool.available(), self.reference.available());
        let referenced = nodes.values().filter(|n| n.references > 0).count() as u32;
        assert_eq!(counts.used, referenced + self.reference.filling);
        let untouched = counts.total - self.pool.blocks.len() as u32;
        let free = untouched + self.pool.free.len() as u32;
        assert_eq!(free + counts.cached + self.reference.filling, counts.total, "a block leaked");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn random_use_agrees_with_the_reference(total in 1u32..14, ops in ops()) {
        let mut pair = Pair {
            pool: BlockPool::new(total, 0.5),
            reference: Reference { total, limit: u64::from(total) / 2, ..Reference::default() },
            live: Vec::new(),
            told: BTreeMap::new(),
            now_ms: 0,
        };
        for op in &ops {
            pair.step(op);
        }
        while !pair.live.is_empty() {
            pair.step(&Op::Release(0));
        }
        (0..4).for_each(|id| pair.step(&Op::Unpin(id)));
        prop_assert_eq!(pair.pool.available(), total, "everything can be had back");
    }
}
