//! Indexes made to measure: chains counted from a seed, as many and as replicated as a question needs.
//!
//! The keys of any chain can be made again from its number, so a hundred million entries need no list beside the
//! index. Filling stops at a bound on memory and says how far it came.

use mainstay_index::{BlockIndex, BlockKey, IndexLimits};
use mainstay_types::{Tier, WorkerId};

use super::events::NAMESPACE;
use super::machine::available_bytes;
use super::rng::{counted, mix};
use super::sessions::ROOT_KEY;

/// Blocks that a turn brings at once, and those that it decodes one by one.
const TURN_PROMPT_BLOCKS: u32 = 40;
pub(super) const TURN_BLOCKS: u32 = 48;
/// The part of free memory that an index may take.
const MEMORY_PART: f64 = 0.6;

/// What filling may use.
#[derive(Clone, Copy)]
pub(super) struct Room {
    bytes_max: u64,
    available_min: u64,
}

impl Room {
    pub(super) fn now() -> Self {
        let available = available_bytes();
        let bytes_max = (available as f64 * MEMORY_PART) as u64;
        Self { bytes_max, available_min: available - bytes_max }
    }

    /// Whether an index may still grow: by its own account and by the machine's.
    pub(super) fn holds(self, index: &BlockIndex) -> bool {
        index.memory().total() < self.bytes_max && available_bytes() > self.available_min
    }
}

/// A family of chains: the keys of chain `number` follow from the family's salt.
#[derive(Clone, Copy)]
pub(super) struct Family {
    pub(super) salt: u64,
}

impl Family {
    fn seed(self, number: u64) -> u64 {
        mix(self.salt ^ mix(number ^ ROOT_KEY))
    }

    /// Writes blocks 0 to `depth` of a chain.
    pub(super) fn keys(self, number: u64, depth: u32, keys: &mut Vec<BlockKey>) {
        let seed = self.seed(number);
        keys.clear();
        keys.extend((0..u64::from(depth)).map(|position| counted(seed, position)));
    }
}

/// An index without limits.
pub(super) fn empty() -> BlockIndex {
    BlockIndex::with_limits(IndexLimits::default())
}

/// Stores a whole chain at once.
pub(super) fn store(index: &mut BlockIndex, worker: u32, keys: &[BlockKey]) {
    index.store(WorkerId(worker), NAMESPACE, ROOT_KEY, keys, Tier::Device);
}

/// Stores a chain as a session would: a turn's prompt at once, then what it decodes block by block.
pub(super) fn store_in_turns(index: &mut BlockIndex, worker: u32, keys: &[BlockKey]) {
    let mut parent = ROOT_KEY;
    let mut put = |blocks: &[BlockKey]| {
        index.store(WorkerId(worker), NAMESPACE, parent, blocks, Tier::Device);
        parent = blocks.last().map_or(parent, |key| key.0);
    };
    for turn in keys.chunks(TURN_BLOCKS as usize) {
        let (prompt, decoded) = turn.split_at(turn.len().min(TURN_PROMPT_BLOCKS as usize));
        put(prompt);
        decoded.chunks(1).for_each(&mut put);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_can_be_made_again_and_differ() {
        let family = Family { salt: 4 };
        let (mut one, mut again, mut other) = (Vec::new(), Vec::new(), Vec::new());
        family.keys(1, 100, &mut one);
        family.keys(1, 60, &mut again);
        family.keys(2, 100, &mut other);
        assert!(one.iter().zip(&again).all(|(a, b)| a.0 == b.0) && again.len() == 60);
        assert!(one.iter().zip(&other).all(|(a, b)| a.0 != b.0));
    }

    #[test]
    fn turns_store_the_same_as_a_whole() {
        let mut keys = Vec::new();
        Family { salt: 9 }.keys(3, 131, &mut keys);
        let (mut turns, mut whole) = (empty(), empty());
        store_in_turns(&mut turns, 5, &keys);
        store(&mut whole, 5, &keys);
        let found = turns.lookup(&keys);
        assert_eq!((found.len(), found[0].blocks), (1, 131));
        assert_eq!(turns.digest(WorkerId(5)), whole.digest(WorkerId(5)));
    }
}
