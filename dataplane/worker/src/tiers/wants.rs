//! How much requests want their blocks, for when those come to the tiers or go to another worker: pure.
//!
//! The engine reports a block without what its request said of it, and often before anybody copied it. What was said
//! is remembered for a while, in two halves of which the older one is dropped when the younger is full.

use std::collections::HashMap;

use mainstay_engine_abi::sdk::RetentionRange;
use mainstay_tier::{PRIORITY_DEFAULT, Retention};
use mainstay_types::SequenceHash;

/// Blocks of one half: both take some 6 MiB.
const HALF_MAX: usize = 1 << 16;

/// See the module.
#[derive(Default)]
pub(crate) struct Wants {
    young: HashMap<SequenceHash, Retention>,
    old: HashMap<SequenceHash, Retention>,
}

impl Wants {
    /// Remembers what was said of a block; more than was said before counts, and nothing less.
    pub(crate) fn note(&mut self, block: SequenceHash, said: &Retention) {
        let both = self.of(block).map_or(*said, |known| known.merge(said));
        if self.young.len() >= HALF_MAX && !self.young.contains_key(&block) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(block, both);
    }

    /// Remembers what was said of many.
    pub(crate) fn note_all(&mut self, said: &[(SequenceHash, Retention)]) {
        for (block, said) in said {
            self.note(*block, said);
        }
    }

    /// Nobody is known to claim a block any more.
    pub(crate) fn unclaim(&mut self, block: SequenceHash) {
        for half in [&mut self.young, &mut self.old] {
            if let Some(said) = half.get_mut(&block) {
                *said = said.unclaimed();
            }
        }
    }

    /// What was said of a block.
    pub(crate) fn of(&self, block: SequenceHash) -> Option<Retention> {
        self.young.get(&block).or_else(|| self.old.get(&block)).copied()
    }
}

/// What a request's ranges say of its blocks, one by one; nothing of those that no range names.
pub(crate) fn of_ranges(
    ranges: &[RetentionRange],
    blocks: &[SequenceHash],
    block_tokens: u32,
    now_ms: u64,
) -> Vec<(SequenceHash, Retention)> {
    let mut wanted: HashMap<usize, Retention> = HashMap::new();
    let tokens = block_tokens.max(1);
    for range in ranges {
        let until_ms = match range.duration_ms {
            0 => u64::MAX,
            duration => now_ms.saturating_add(u64::from(duration)),
        };
        // The end of a claim makes a block worth no more.
        let after = range.priority.min(PRIORITY_DEFAULT);
        let said = Retention { priority: range.priority, after, until_ms, pinned_until_ms: 0 };
        let (first, end) = (range.start / tokens, range.end.div_ceil(tokens));
        for at in first as usize..(end as usize).min(blocks.len()) {
            wanted.entry(at).and_modify(|known| *known = known.merge(&said)).or_insert(said);
        }
    }
    let mut told: Vec<_> = wanted.into_iter().map(|(at, said)| (blocks[at], said)).collect();
    told.sort_unstable_by_key(|(block, _)| *block);
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u32, end: u32, priority: u8, duration_ms: u32) -> RetentionRange {
        RetentionRange { start, end, priority, duration_ms, ..RetentionRange::default() }
    }

    #[test]
    fn ranges_name_blocks_and_the_most_counts() {
        let blocks: Vec<SequenceHash> = (0..4).map(SequenceHash).collect();
        let ranges = [range(0, 20, 90, 1_000), range(16, 33, 20, 0), range(16, 17, 50, 0)];
        let said = of_ranges(&ranges, &blocks, 16, 100);
        let of = |block: u128| said.iter().find(|(b, _)| b.0 == block).map(|(_, said)| *said);
        let first = of(0).expect("named");
        assert_eq!((first.priority_at(1_099), first.priority_at(1_100)), (90, 35));
        let second = of(1).expect("named");
        assert_eq!((second.priority, second.until_ms), (90, u64::MAX));
        assert_eq!(of(2).map(|said| said.priority_at(u64::MAX - 1)), Some(20));
        assert_eq!(of(3), None);
        assert!(of_ranges(&[range(0, u32::MAX, 1, 1)], &blocks, 0, 0).len() == 4);
    }

    #[test]
    fn what_was_said_is_remembered_for_a_while() {
        let mut wants = Wants::default();
        let high = Retention { priority: 90, ..Retention::default() };
        wants.note(SequenceHash(1), &high);
        wants.note(SequenceHash(1), &Retention::default());
        assert_eq!(wants.of(SequenceHash(1)), Some(high));
        wants.note(SequenceHash(2), &high);
        wants.unclaim(SequenceHash(2));
        assert_eq!(wants.of(SequenceHash(2)).map(|said| said.priority_at(0)), Some(0));
        wants.note(SequenceHash(2), &high);
        assert_eq!(wants.of(SequenceHash(2)).map(|said| said.priority), Some(90));
        for block in 2..3 * HALF_MAX as u128 {
            wants.note(SequenceHash(block), &high);
            assert!(wants.young.len() <= HALF_MAX && wants.old.len() <= HALF_MAX);
        }
        assert_eq!(wants.of(SequenceHash(1)), None);
    }
}
