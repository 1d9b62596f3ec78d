//! Memory: the limit in bytes is kept by forgetting what is cold, marked blocks stay, and what workers leave behind
//! goes back.

use mainstay_index::{BlockIndex, BlockKey, IndexLimits, Mark, entry_digest};
use mainstay_types::{NamespaceId, Tier, WorkerId};

const NAMESPACE: NamespaceId = NamespaceId(11);
const DEVICE: Tier = Tier::Device;

fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// The first `length` blocks of a chain.
fn chain(number: u64, length: u64) -> Vec<BlockKey> {
    (0..length).map(|at| BlockKey(mix(number << 32 | (at + 1)))).collect()
}

fn store(index: &mut BlockIndex, worker: u32, blocks: &[BlockKey]) -> u64 {
    index.store(WorkerId(worker), NAMESPACE, NAMESPACE.0 as u64, blocks, DEVICE).refused
}

fn depth(index: &BlockIndex, worker: u32, blocks: &[BlockKey]) -> u32 {
    let found = index.lookup(blocks);
    found.iter().find(|o| o.worker == WorkerId(worker)).map_or(0, |o| o.blocks)
}

/// What the worker's digest and count would be if it held just what lookups of these chains say.
fn check_books(index: &BlockIndex, worker: u32, chains: u64, length: u64) {
    let (mut held, mut digest) = (0, 0_u64);
    for number in 0..chains {
        let blocks = chain(number, length);
        let mut parent = NAMESPACE.0 as u64;
        for block in &blocks {
            if index.holds(WorkerId(worker), *block) {
                held += 1;
                digest = digest.wrapping_add(entry_digest(block.0, parent, DEVICE));
            }
            parent = block.0;
        }
    }
    assert_eq!(index.worker_block_count(WorkerId(worker)), held);
    assert_eq!(index.digest(WorkerId(worker)), digest);
}

#[test]
fn the_coldest_is_forgotten_and_the_marked_stays() {
    let (chains, length) = (400, 500);
    let bytes_max = 2 << 20;
    let mut index = BlockIndex::with_limits(IndexLimits { bytes_max, ..IndexLimits::default() });
    let pinned = chain(0, length);
    assert_eq!(index.mark(&pinned[length as usize - 1..], Mark { pins: 1, ..Mark::default() }), 0);
    for number in 0..chains {
        assert_eq!(store(&mut index, 1, &chain(number, length)), 0);
        let used = index.memory();
        let needed = index.block_count() * 8;
        assert!(needed < bytes_max, "{needed} of {bytes_max} for keys alone, {used:?}");
    }
    assert!(index.forgotten_blocks() > 0, "{:?}", index.memory());
    assert!(index.memory().total() < bytes_max * 5 / 4, "{:?}", index.memory());
    assert_eq!(depth(&index, 1, &pinned), length as u32, "a marked block was forgotten");
    assert_eq!(depth(&index, 1, &chain(chains - 1, length)), length as u32, "the newest is gone");
    assert_eq!(depth(&index, 1, &chain(1, length)), 0, "the oldest is there");
    check_books(&index, 1, chains, length);
    assert_eq!(index.forgotten_blocks() + index.held_count(), chains * length);
}

#[test]
fn where_nothing_may_be_forgotten_new_blocks_are_refused() {
    let bytes_max = 1 << 20;
    let mut index = BlockIndex::with_limits(IndexLimits { bytes_max, ..IndexLimits::default() });
    let mark = Mark { class: 3, ..Mark::default() };
    let mut refused = 0;
    for number in 0..200 {
        let blocks = chain(number, 500);
        index.mark(&blocks[..1], mark);
        refused += store(&mut index, 1, &blocks);
    }
    assert!(refused > 0);
    assert_eq!(index.refused_blocks(), refused);
    assert_eq!(index.forgotten_blocks(), 0);
    assert_eq!(index.mark_of(chain(7, 1)[0]), mark);
    // What is there already costs nothing and goes on.
    assert_eq!(store(&mut index, 2, &chain(0, 500)), 0);
    check_books(&index, 1, 200, 500);
}

#[test]
fn memory_goes_back_when_workers_leave() {
    let mut index = BlockIndex::new(u64::MAX);
    let empty = index.memory().total();
    for round in 0..3 {
        for number in 0..2_000 {
            store(&mut index, 1 + (number % 20) as u32, &chain(round * 10_000 + number, 300));
        }
        let full = index.memory().total();
        assert!(full > 600_000 * 12, "{full}");
        for worker in 1..=19 {
            assert_eq!(index.remove_worker(WorkerId(worker)), 30_000);
        }
        let few = index.memory();
        assert!(few.total() < full / 5, "{few:?} of {full}");
        let last = chain(round * 10_000 + 19, 300);
        assert_eq!(depth(&index, 20, &last), 300, "what is left was moved and still answers");
        index.remove_worker(WorkerId(20));
        let left = index.memory();
        assert!(left.total() < empty + (64 << 10), "{left:?}, {empty} when it was new");
        assert_eq!((index.block_count(), index.held_count()), (0, 0));
    }
}

#[test]
fn one_worker_too_many_is_refused() {
    let mut index = BlockIndex::new(u64::MAX);
    let blocks = chain(1, 3);
    for worker in 0..8_192 {
        assert_eq!(store(&mut index, worker * 7, &blocks), 0);
    }
    assert_eq!(store(&mut index, 1, &blocks), 3);
    assert_eq!(index.lookup(&blocks).len(), 8_192);
    index.remove_worker(WorkerId(7));
    assert_eq!(store(&mut index, 1, &blocks), 0);
    assert_eq!(depth(&index, 1, &blocks), 3);
    assert_eq!(depth(&index, 7, &blocks), 0);
}

#[test]
fn workers_of_high_slots_hold_parts_of_runs() {
    let mut index = BlockIndex::new(u64::MAX);
    let blocks = chain(1, 8);
    for worker in 0..8_192 {
        let held = if worker % 2 == 0 { 8 } else { 3 };
        assert_eq!(store(&mut index, worker, &blocks[..held]), 0);
    }
    for worker in [63, 64, 4_095, 4_096, 4_097, 8_190, 8_191] {
        let held = if worker % 2 == 0 { 8 } else { 3 };
        assert_eq!(depth(&index, worker, &blocks), held, "worker {worker}");
    }
    for worker in 0..8_191 {
        let held = if worker % 2 == 0 { 8 } else { 3 };
        assert_eq!(index.remove_worker(WorkerId(worker)), held);
    }
    assert_eq!(depth(&index, 8_191, &blocks), 3);
    assert_eq!(index.held_count(), 3);
}
