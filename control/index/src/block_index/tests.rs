//! Checks of the index against a literal model, and of its edges by hand.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NAMESPACE: NamespaceId = NamespaceId(77);

fn hashes(numbers: impl IntoIterator<Item = u128>) -> Vec<SequenceHash> {
    numbers.into_iter().map(SequenceHash).collect()
}

fn stored(numbers: impl IntoIterator<Item = u128>) -> BlockEvent {
    stored_in(numbers, Tier::Device)
}

fn stored_in(numbers: impl IntoIterator<Item = u128>, tier: Tier) -> BlockEvent {
    let parent = SequenceHash(NAMESPACE.0);
    BlockEvent::Stored { namespace: NAMESPACE, parent, blocks: hashes(numbers), tier }
}

fn removed(numbers: impl IntoIterator<Item = u128>) -> BlockEvent {
    BlockEvent::Removed { blocks: hashes(numbers), tier: Tier::Device }
}

fn overlap(worker: u32, blocks: u32) -> Overlap {
    Overlap { worker: WorkerId(worker), blocks }
}

#[test]
fn an_empty_index_and_an_empty_prompt_find_nothing() {
    let mut index = BlockIndex::new(10);
    assert_eq!(index.lookup(&hashes([1, 2])), []);
    index.apply(WorkerId(1), &stored([1, 2]));
    assert_eq!(index.lookup(&[]), []);
    assert_eq!(index.lookup(&hashes([2])), [overlap(1, 1)]);
}

#[test]
fn a_hole_in_the_middle_ends_the_overlap_there() {
    let mut index = BlockIndex::new(100);
    index.apply(WorkerId(1), &stored(1..=8));
    index.apply(WorkerId(2), &stored(1..=8));
    index.apply(WorkerId(1), &removed([4]));
    assert_eq!(index.lookup(&hashes(1..=8)), [overlap(1, 3), overlap(2, 8)]);
    index.apply(WorkerId(1), &stored_in([4], Tier::Disk));
    assert_eq!(index.lookup(&hashes(1..=8)), [overlap(1, 8), overlap(2, 8)]);
}

#[test]
fn a_block_stays_until_its_last_tier_lets_go() {
    let mut index = BlockIndex::new(100);
    let worker = WorkerId(1);
    index.apply(worker, &stored([1]));
    index.apply(worker, &stored_in([1], Tier::Host));
    assert_eq!(index.apply(worker, &removed([1])).removed, 0);
    assert!(index.holds(worker, SequenceHash(1)));
    let last = BlockEvent::Removed { blocks: hashes([1]), tier: Tier::Host };
    assert_eq!(index.apply(worker, &last).removed, 1);
    assert!(!index.holds(worker, SequenceHash(1)));
    assert_eq!((index.block_count(), index.held_count(), index.digest(worker)), (0, 0, 0));
}

#[test]
fn more_than_256_workers_share_a_prefix() {
    let mut index = BlockIndex::new(10_000);
    for worker in (0..1_000).rev() {
        index.apply(WorkerId(worker), &stored(1..=2 + u128::from(worker % 3)));
    }
    let found = index.lookup(&hashes(1..=4));
    assert_eq!(found.len(), 1_000);
    for (i, hit) in (0_u32..).zip(found) {
        assert_eq!(hit, overlap(i, 2 + i % 3));
    }
    assert_eq!(index.block_count(), 4);
}

#[test]
fn a_full_index_refuses_and_counts_and_still_takes_more_tiers() {
    let mut index = BlockIndex::new(3);
    let applied = index.apply(WorkerId(1), &stored(1..=5));
    assert_eq!(applied, Applied { added: 3, removed: 0, refused: 2 });
    assert_eq!(index.apply(WorkerId(2), &stored([1])).refused, 1);
    assert_eq!(index.apply(WorkerId(1), &stored_in([1], Tier::Host)).refused, 0);
    assert_eq!((index.held_count(), index.refused_blocks()), (3, 3));
    index.remove_worker(WorkerId(1));
    assert_eq!(index.apply(WorkerId(2), &stored([1])).added, 1);
}

#[test]
fn the_parent_of_each_block_is_the_one_before() {
    let mut index = BlockIndex::new(100);
    index.apply(WorkerId(1), &stored([10, 20]));
    let more = BlockEvent::Stored {
        namespace: NAMESPACE,
        parent: SequenceHash(20),
        blocks: hashes([30]),
        tier: Tier::Device,
    };
    index.apply(WorkerId(1), &more);
    let parents: Vec<_> = index.blocks_of(WorkerId(1)).map(|b| (b.hash.0, b.parent.0)).collect();
    assert_eq!(parents, [(10, NAMESPACE.0), (20, 10), (30, 20)]);
    assert!(index.blocks_of(WorkerId(1)).all(|b| b.namespace == NAMESPACE));
}

#[test]
fn images_with_bad_holders_are_refused() {
    let mut index = BlockIndex::new(2);
    let holder = |worker| Holder { worker: WorkerId(worker), tiers: TierSet::only(Tier::Device) };
    let nowhere = Holder { worker: WorkerId(1), tiers: TierSet::default() };
    let mut put = |hash, holders: &[Holder]| {
        let (hash, parent) = (SequenceHash(hash), SequenceHash(0));
        index.restore(BlockView { hash, parent, namespace: NAMESPACE, holders })
    };
    assert_eq!(put(1, &[]), Err(RestoreError::Holders));
    assert_eq!(put(1, &[nowhere]), Err(RestoreError::Holders));
    assert_eq!(put(1, &[holder(2), holder(1)]), Err(RestoreError::Holders));
    assert_eq!(put(1, &[holder(1), holder(1)]), Err(RestoreError::Holders));
    assert_eq!(put(1, &[holder(1)]), Ok(()));
    assert_eq!(put(1, &[holder(2)]), Err(RestoreError::Twice));
    assert_eq!(put(2, &[holder(1), holder(2)]), Err(RestoreError::Full));
}

#[test]
fn tier_sets_have_no_unknown_bits() {
    assert_eq!(TierSet::from_bits(0b1_0000), None);
    let all = TierSet::from_bits(0b1111).expect("four tiers");
    assert_eq!(all.iter().collect::<Vec<_>>(), Tier::ALL);
    assert_ne!(
        entry_digest(SequenceHash(1), Tier::Device),
        entry_digest(SequenceHash(1), Tier::Host)
    );
}

/// The literal model: one row per (worker, block).
#[derive(Default)]
struct Model {
    held: BTreeMap<(WorkerId, SequenceHash), Vec<Tier>>,
    max: usize,
}

impl Model {
    fn apply(&mut self, worker: WorkerId, event: &BlockEvent) {
        match event {
            BlockEvent::Stored { blocks, tier, .. } => {
                for hash in blocks {
                    let known = self.held.contains_key(&(worker, *hash));
                    if known || self.held.len() < self.max {
                        let tiers = self.held.entry((worker, *hash)).or_default();
                        if !tiers.contains(tier) {
                            tiers.push(*tier);
                        }
                    }
                }
            }
            BlockEvent::Removed { blocks, tier } => {
                for hash in blocks {
                    if let Some(tiers) = self.held.get_mut(&(worker, *hash)) {
                        tiers.retain(|t| t != tier);
                    }
                }
                self.held.retain(|_, tiers| !tiers.is_empty());
            }
            BlockEvent::Cleared => self.held.retain(|(w, _), _| *w != worker),
        }
    }

    fn lookup(&self, prefix: &[SequenceHash]) -> Vec<Overlap> {
        let mut workers: Vec<WorkerId> = self.held.keys().map(|(w, _)| *w).collect();
        workers.dedup();
        let depth =
            |w: WorkerId| prefix.iter().take_while(|h| self.held.contains_key(&(w, **h))).count();
        let all =
            workers.into_iter().map(|worker| Overlap { worker, blocks: depth(worker) as u32 });
        all.filter(|o| o.blocks > 0).collect()
    }

    fn digest(&self, worker: WorkerId) -> u128 {
        let mine = self.held.iter().filter(|((w, _), _)| *w == worker);
        mine.flat_map(|((_, hash), tiers)| tiers.iter().map(|tier| entry_digest(*hash, *tier)))
            .fold(0, u128::wrapping_add)
    }
}

fn tier() -> impl Strategy<Value = Tier> {
    proptest::sample::select(Tier::ALL.to_vec())
}

/// Chains branch at a few depths: the block at depth `d` of branch `b` is shared by all branches up to `d` 4.
fn chain(branch: u128, length: usize) -> Vec<SequenceHash> {
    hashes((0..length as u128).map(|d| if d < 4 { d } else { 1_000 * (branch + 1) + d }))
}

fn event() -> impl Strategy<Value = BlockEvent> {
    let run = (0_u128..3, 0_usize..12, 0_usize..12)
        .prop_map(|(branch, a, b)| chain(branch, a.max(b)).split_off(a.min(b)));
    let store = (run, tier()).prop_map(|(blocks, tier)| BlockEvent::Stored {
        namespace: NAMESPACE,
        parent: SequenceHash(0),
        blocks,
        tier,
    });
    let some = (0_u128..3, proptest::collection::vec(0_usize..12, 0..6), tier());
    let remove = some.prop_map(|(branch, depths, tier)| {
        let all = chain(branch, 12);
        BlockEvent::Removed { blocks: depths.into_iter().map(|d| all[d]).collect(), tier }
    });
    prop_oneof![8 => store, 8 => remove, 1 => Just(BlockEvent::Cleared)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_index_equals_the_model(
        steps in proptest::collection::vec((0_u32..5, event()), 0..60),
        max in prop_oneof![Just(20_usize), Just(1_000)],
    ) {
        let mut index = BlockIndex::new(max as u64);
        let mut model = Model { max, ..Model::default() };
        for (worker, event) in &steps {
            index.apply(WorkerId(*worker), event);
            model.apply(WorkerId(*worker), event);
        }
        for branch in 0..3 {
            for length in [1, 5, 12] {
                let prefix = chain(branch, length);
                prop_assert_eq!(index.lookup(&prefix), model.lookup(&prefix));
                for worker in (0..5).map(WorkerId) {
                    let held = prefix.iter().filter(|h| model.held.contains_key(&(worker, **h))).count();
                    prop_assert_eq!(index.held_of(worker, &prefix), held as u64);
                }
            }
        }
        prop_assert_eq!(index.held_count(), model.held.len() as u64);
        for worker in (0..5).map(WorkerId) {
            prop_assert_eq!(index.digest(worker), model.digest(worker));
            let held = model.held.keys().filter(|(w, _)| *w == worker).count() as u64;
            prop_assert_eq!(index.worker_block_count(worker), held);
        }
    }

    #[test]
    fn an_image_of_all_blocks_restores_the_same_index(
        steps in proptest::collection::vec((0_u32..5, event()), 0..40),
    ) {
        let mut index = BlockIndex::new(1_000);
        for (worker, event) in &steps {
            index.apply(WorkerId(*worker), event);
        }
        let mut copy = BlockIndex::new(1_000);
        for view in index.blocks() {
            prop_assert_eq!(copy.restore(view), Ok(()));
        }
        prop_assert_eq!(copy.blocks(), index.blocks());
        prop_assert_eq!(copy.held_count(), index.held_count());
        for worker in (0..5).map(WorkerId) {
            prop_assert_eq!(copy.digest(worker), index.digest(worker));
            prop_assert!(copy.blocks_of(worker).eq(index.blocks_of(worker)));
        }
    }

    #[test]
    fn digests_forget_order(mut numbers in proptest::collection::vec(any::<u128>(), 1..40)) {
        numbers.sort_unstable();
        numbers.dedup();
        let mut forward = BlockIndex::new(1_000);
        let mut backward = BlockIndex::new(1_000);
        forward.apply(WorkerId(1), &stored(numbers.iter().copied()));
        for number in numbers.iter().rev() {
            backward.apply(WorkerId(1), &stored([*number]));
        }
        prop_assert_eq!(forward.digest(WorkerId(1)), backward.digest(WorkerId(1)));
        backward.apply(WorkerId(1), &removed([numbers[0]]));
        prop_assert_ne!(forward.digest(WorkerId(1)), backward.digest(WorkerId(1)));
    }
}
