//! The shelf beside a list that is searched from end to end.

use mainstay_types::NamespaceId;
use proptest::prelude::*;

use super::*;
use crate::LayoutId;

const SLOTS: u32 = 6;

#[derive(Debug, Clone)]
struct Plain {
    slot: u32,
    key: BlockKey,
    parent: SequenceHash,
    retention: Retention,
    used: u64,
    readers: u32,
    ready: bool,
}

#[derive(Debug, Default)]
struct Model {
    blocks: Vec<Plain>,
    clock: u64,
}

impl Model {
    fn at(&mut self, slot: u32) -> Option<&mut Plain> {
        self.blocks.iter_mut().find(|b| b.slot == slot)
    }

    fn victim(&self, priority: u8, now_ms: u64) -> Option<u32> {
        let may = |b: &&Plain| b.ready && b.readers == 0 && !b.retention.pinned_at(now_ms);
        let leaf = |b: &&Plain| !self.blocks.iter().any(|c| c.parent == b.key.hash);
        let place = |b: &&Plain| (b.retention.priority_at(now_ms), b.used);
        let first = self.blocks.iter().filter(may).filter(leaf).min_by_key(place);
        let first = first.or_else(|| self.blocks.iter().filter(may).min_by_key(place));
        first.filter(|b| b.retention.priority_at(now_ms) <= priority).map(|b| b.slot)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Begin(u32, u8, u8, Retention),
    Publish(u32),
    Remove(u32),
    Touch(u32),
    Hold(u32),
    Unhold(u32),
    Retain(u32, Retention),
    Pass(u64),
}

fn retention() -> impl Strategy<Value = Retention> {
    (0u8..4, 0u8..4, 0u64..60, prop_oneof![3 => Just(0u64), 1 => 0u64..60]).prop_map(
        |(priority, after, until_ms, pinned_until_ms)| Retention {
            priority,
            after,
            until_ms,
            pinned_until_ms,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..SLOTS;
    prop_oneof![
        4 => (slot.clone(), 0u8..8, 0u8..8, retention()).prop_map(|(s, k, p, r)| Step::Begin(s, k, p, r)),
        4 => slot.clone().prop_map(Step::Publish),
        1 => slot.clone().prop_map(Step::Remove),
        2 => slot.clone().prop_map(Step::Touch),
        1 => slot.clone().prop_map(Step::Hold),
        1 => slot.clone().prop_map(Step::Unhold),
        1 => (slot, retention()).prop_map(|(s, r)| Step::Retain(s, r)),
        2 => (1u64..20).prop_map(Step::Pass),
    ]
}

fn key(number: u8) -> BlockKey {
    BlockKey {
        namespace: NamespaceId(1),
        hash: SequenceHash(u128::from(number)),
        layout: LayoutId(1),
    }
}

fn apply(shelf: &mut Shelf, model: &mut Model, now_ms: &mut u64, step: &Step) {
    model.clock += 1;
    let clock = model.clock;
    match *step {
        Step::Begin(slot, k, p, retention) => {
            let taken = model.blocks.iter().any(|b| b.slot == slot || b.key == key(k));
            let parent = SequenceHash(u128::from(p));
            assert_eq!(shelf.begin(slot, key(k), parent, retention, *now_ms), !taken);
            if !taken {
                let block = Plain {
                    slot,
                    key: key(k),
                    parent,
                    retention,
                    used: clock,
                    readers: 0,
                    ready: false,
                };
                model.blocks.push(block);
            }
        }
        Step::Publish(slot) => {
            shelf.publish(slot, *now_ms);
            if let Some(b) = model.at(slot) {
                b.ready = true;
            }
        }
        Step::Remove(slot) => {
            let gone = shelf.remove(slot);
            assert_eq!(gone, model.at(slot).map(|b| b.key));
            model.blocks.retain(|b| b.slot != slot);
        }
        Step::Touch(slot) => {
            shelf.touch(slot);
            if let Some(b) = model.at(slot) {
                b.used = clock;
            }
        }
        Step::Hold(slot) => {
            shelf.hold(slot);
            if let Some(b) = model.at(slot) {
                b.readers += 1;
            }
        }
        Step::Unhold(slot) => {
            shelf.unhold(slot);
            if let Some(b) = model.at(slot) {
                b.readers = b.readers.saturating_sub(1);
            }
        }
        Step::Retain(slot, retention) => {
            shelf.retain(slot, retention, *now_ms);
            if let Some(b) = model.at(slot) {
                b.retention = retention;
            }
        }
        Step::Pass(ms) => *now_ms += ms,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn it_is_the_plain_list(steps in prop::collection::vec(step(), 1..80)) {
        let (mut shelf, mut model, mut now_ms) = (Shelf::new(SLOTS), Model::default(), 0);
        for step in &steps {
            apply(&mut shelf, &mut model, &mut now_ms, step);
            shelf.expire(now_ms);
            for priority in [0, 1, 2, 3, 100] {
                prop_assert_eq!(
                    shelf.victim(priority, None), model.victim(priority, now_ms), "after {:?}", step
                );
            }
            prop_assert_eq!(shelf.len(), model.blocks.len());
            for number in 0..8 {
                let ready = model.blocks.iter().find(|b| b.key == key(number) && b.ready);
                prop_assert_eq!(shelf.find(&key(number)), ready.map(|b| b.slot));
            }
        }
        // Nothing is left behind once all is gone.
        for slot in 0..SLOTS {
            shelf.remove(slot);
        }
        prop_assert!(shelf.children.is_empty() && shelf.leaves.is_empty());
        prop_assert!(shelf.inner.is_empty() && shelf.changes.is_empty() && shelf.slots.is_empty());
    }
}

#[test]
fn a_circle_does_not_fill_the_shelf() {
    let mut shelf = Shelf::new(2);
    for (slot, own, parent) in [(0, 1, 2), (1, 2, 1)] {
        let parent = SequenceHash(parent);
        assert!(shelf.begin(slot, key(own), parent, Retention::default(), 0));
        shelf.publish(slot, 0);
    }
    assert_eq!(shelf.victim(100, None), Some(0));
    assert_eq!(shelf.victim(0, None), None);
}
