//! Tests of the local map: what it holds, its sum, and its copy, which is the map again whatever an engine reports.

use proptest::prelude::*;

use super::super::map_copy::RUN_BLOCKS_MAX;
use super::*;

const SPACE: NamespaceId = NamespaceId(1);

fn h(n: u128) -> SequenceHash {
    SequenceHash(n)
}

fn hs(numbers: &[u128]) -> Vec<SequenceHash> {
    numbers.iter().copied().map(SequenceHash).collect()
}

/// Everything that can be seen of a map, in order.
fn content(map: &LocalMap) -> Vec<(SequenceHash, SequenceHash, NamespaceId, u8)> {
    let mut all: Vec<_> = map
        .blocks
        .iter()
        .map(|(block, held)| (*block, held.parent, held.namespace, held.tiers))
        .collect();
    all.sort_unstable_by_key(|(block, ..)| *block);
    all
}

fn runs_of(map: &LocalMap) -> Vec<BlockEvent> {
    map.copy().runs(RUN_BLOCKS_MAX)
}

fn remove(map: &mut LocalMap, blocks: &[SequenceHash], tier: Tier) -> Vec<SequenceHash> {
    let mut gone = Vec::new();
    map.remove(blocks, tier, 1_024, |block| gone.push(block), |_, _| {});
    gone
}

fn replayed(runs: &[BlockEvent]) -> LocalMap {
    let mut map = LocalMap::new(usize::MAX);
    for run in runs {
        let BlockEvent::Stored { namespace, parent, blocks, tier } = run else {
            panic!("a snapshot stores only, not {run:?}");
        };
        map.store(*namespace, *parent, blocks, *tier, |_| {});
    }
    map
}

#[test]
fn a_chain_is_one_run_and_a_branch_is_another() {
    let mut map = LocalMap::new(100);
    map.store(SPACE, h(1), &hs(&[10, 11, 12, 13]), Tier::Device, |_| {});
    map.store(SPACE, h(11), &hs(&[22, 23]), Tier::Device, |_| {});
    let runs = runs_of(&map);
    assert_eq!(runs.len(), 2);
    let BlockEvent::Stored { parent, blocks, .. } = &runs[0] else { panic!("stored") };
    assert_eq!((*parent, blocks), (h(1), &hs(&[10, 11, 12, 13])));
    let BlockEvent::Stored { parent, blocks, .. } = &runs[1] else { panic!("stored") };
    assert_eq!((*parent, blocks), (h(11), &hs(&[22, 23])));
}

#[test]
fn each_tier_is_counted_and_told_apart() {
    let mut map = LocalMap::new(100);
    let mut fresh = Vec::new();
    map.store(SPACE, h(1), &hs(&[10, 11]), Tier::Device, |b| fresh.push(b));
    map.store(SPACE, h(1), &hs(&[10, 11]), Tier::Device, |b| fresh.push(b));
    map.store(SPACE, h(1), &hs(&[10]), Tier::Disk, |_| {});
    assert_eq!(fresh, hs(&[10, 11]), "what is held already is not fresh");
    let gone = remove(&mut map, &hs(&[10, 10, 99]), Tier::Device);
    assert_eq!(gone, hs(&[10]), "what is not held is not gone");
    assert_eq!((map.held(Tier::Device), map.held(Tier::Disk), map.sum().blocks), (1, 1, 2));
    assert!(map.holds(h(10), Tier::Disk) && !map.holds(h(10), Tier::Device));
    map.clear();
    assert_eq!((map.sum(), map.held(Tier::Disk)), (Sum::default(), 0));
}

#[test]
fn beyond_the_limit_nothing_new_is_taken() {
    let mut map = LocalMap::new(3);
    let taken = map.store(SPACE, h(1), &hs(&[10, 11, 12, 13, 14]), Tier::Device, |_| {});
    assert_eq!(taken, Taken { count: 3, fresh: Some((0, 2)) });
    let taken = map.store(SPACE, h(1), &hs(&[10, 11, 12]), Tier::Host, |_| {});
    assert_eq!(taken.count, 3, "known ones are");
    assert_eq!(map.sum().blocks, 3);
}

#[test]
fn what_was_fresh_of_a_run_is_answered() {
    let mut map = LocalMap::new(100);
    map.store(SPACE, h(1), &hs(&[10, 11, 13]), Tier::Device, |_| {});
    let taken = map.store(SPACE, h(1), &hs(&[10, 11, 12, 13, 14, 10]), Tier::Device, |_| {});
    assert_eq!(taken, Taken { count: 6, fresh: Some((2, 4)) });
    let taken = map.store(SPACE, h(1), &hs(&[10, 11]), Tier::Device, |_| {});
    assert_eq!(taken, Taken { count: 2, fresh: None });
}

#[test]
fn the_first_parent_stays_while_any_tier_holds_the_block() {
    let mut map = LocalMap::new(100);
    map.store(SPACE, h(1), &hs(&[10]), Tier::Device, |_| {});
    map.store(SPACE, h(5), &hs(&[10]), Tier::Disk, |_| {});
    remove(&mut map, &hs(&[10]), Tier::Device);
    let by_hand = Sum { digest: entry_digest(10, 1, Tier::Disk), blocks: 1 };
    assert_eq!(map.sum(), by_hand);
    remove(&mut map, &hs(&[10]), Tier::Disk);
    assert_eq!(map.sum(), Sum::default());
    map.store(SPACE, h(5), &hs(&[10]), Tier::Disk, |_| {});
    assert_eq!(map.sum().digest, entry_digest(10, 5, Tier::Disk));
}

#[test]
fn a_removal_of_neighbours_is_a_run_record_with_the_sum_after_it() {
    let mut map = LocalMap::new(100);
    map.store(SPACE, h(1), &hs(&[10, 11, 12, 13, 14]), Tier::Device, |_| {});
    let mut told = Vec::new();
    let tell = |event, sum| told.push((event, sum));
    map.remove(&hs(&[14, 99, 13, 12, 10]), Tier::Device, 8, |_| {}, tell);
    let mut left = LocalMap::new(100);
    left.store(SPACE, h(1), &hs(&[10, 11]), Tier::Device, |_| {});
    let between = left.sum();
    remove(&mut left, &hs(&[10]), Tier::Device);
    let tier = Tier::Device;
    assert_eq!(
        told,
        [
            (BlockEvent::Truncated { tail: h(14), count: 3, tier }, between),
            (BlockEvent::Removed { blocks: hs(&[10]), tier }, left.sum()),
        ]
    );
    assert_eq!(map.sum(), left.sum());
}

#[test]
fn a_run_longer_than_an_event_is_cut_and_stays_a_chain() {
    let blocks: Vec<_> = (10..10 + 2 * RUN_BLOCKS_MAX as u128 + 5).map(SequenceHash).collect();
    let mut map = LocalMap::new(usize::MAX);
    map.store(SPACE, h(1), &blocks, Tier::Device, |_| {});
    let runs = runs_of(&map);
    assert_eq!(runs.len(), 3);
    assert_eq!(content(&replayed(&runs)), content(&map));
}

#[test]
fn rings_and_self_parents_end() {
    let mut map = LocalMap::new(100);
    map.store(SPACE, h(12), &hs(&[10, 11, 12]), Tier::Device, |_| {});
    map.store(SPACE, h(20), &hs(&[20]), Tier::Device, |_| {});
    assert_eq!(content(&replayed(&runs_of(&map))), content(&map));
}

#[derive(Debug, Clone)]
enum Op {
    Store(u8, u8, Vec<u8>, u32),
    Remove(Vec<u8>, u32),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let store = (0_u8..3, 0_u8..40, prop::collection::vec(0_u8..40, 0..12), 0_u32..4)
        .prop_map(|(n, p, b, t)| Op::Store(n, p, b, t));
    let remove =
        (prop::collection::vec(0_u8..40, 0..6), 0_u32..4).prop_map(|(b, t)| Op::Remove(b, t));
    prop::collection::vec(prop_oneof![3 => store, 1 => remove], 0..60)
}

proptest! {
    // Parents are arbitrary here: rings, self-parents, runs across namespaces, parents never held.
    #[test]
    fn a_snapshot_is_the_map_again(ops in ops()) {
        let mut map = LocalMap::new(30);
        for op in ops {
            let blocks = |b: Vec<u8>| b.into_iter().map(|n| h(u128::from(n))).collect::<Vec<_>>();
            match op {
                Op::Store(n, p, b, t) => {
                    let tier = Tier::from_number(t).expect("in range");
                    map.store(NamespaceId(n.into()), h(p.into()), &blocks(b), tier, |_| {});
                }
                Op::Remove(b, t) => {
                    remove(&mut map, &blocks(b), Tier::from_number(t).expect("in range"));
                }
            }
        }
        let again = replayed(&runs_of(&map));
        prop_assert_eq!(content(&again), content(&map));
        prop_assert_eq!(again.sum(), map.sum());
        let pieces = map.copy().runs(3);
        prop_assert!(pieces.iter().all(|run| run.block_count() <= 3));
        prop_assert_eq!(content(&replayed(&pieces)), content(&map));
        let mut digest = 0_u64;
        for (block, parent, _, tiers) in content(&map) {
            for tier in Tier::ALL.into_iter().filter(|tier| tiers & bit(*tier) != 0) {
                digest = digest.wrapping_add(entry_digest(block.key(), parent.key(), tier));
            }
        }
        prop_assert_eq!(map.sum(), Sum { digest, blocks: map.blocks.len() as u64 });
        for tier in Tier::ALL {
            let counted = map.blocks.values().filter(|h| h.tiers & bit(tier) != 0).count();
            prop_assert_eq!(map.held(tier), counted);
        }
    }

    // A real cache: a tree of chains. Runs come parents first, and there are no more than branches need.
    #[test]
    fn runs_of_a_tree_come_parents_first(links in prop::collection::vec(any::<prop::sample::Index>(), 1..80)) {
        let mut map = LocalMap::new(usize::MAX);
        let mut leaves = std::collections::HashSet::new();
        for (at, link) in links.iter().enumerate() {
            let parent = link.index(at + 1) as u128;
            let block = at as u128 + 1;
            let namespace_is_parent = parent == 0;
            map.store(SPACE, h(if namespace_is_parent { 1 << 100 } else { parent }), &[h(block)], Tier::Device, |_| {});
            leaves.remove(&parent);
            leaves.insert(block);
        }
        let mut told = std::collections::HashSet::new();
        let runs = runs_of(&map);
        for run in &runs {
            let BlockEvent::Stored { parent, blocks, .. } = run else { unreachable!() };
            prop_assert!(parent.0 == 1 << 100 || told.contains(parent), "{parent:?} comes later");
            told.extend(blocks.iter().copied());
        }
        prop_assert_eq!(runs.len(), leaves.len(), "one run a leaf");
        prop_assert_eq!(content(&replayed(&runs)), content(&map));
    }
}
