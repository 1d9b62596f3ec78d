//! The cache that never forgets and is everywhere: what could have been hit at all.
//!
//! Blocks of a prompt are in it from the prompt's arrival on, so two equal prompts at once count as one to compute;
//! no router can do better. What only one session asks for leaves with that session, which changes no answer.

use std::collections::HashSet;

use foldhash::fast::FixedState;
use mainstay_types::SequenceHash;

/// Every block that was ever asked for.
#[derive(Default)]
pub(crate) struct Ideal {
    seen: HashSet<u64, FixedState>,
}

impl Ideal {
    /// How many leading blocks were seen. A block is never there without those before it.
    pub(crate) fn hits(&self, blocks: &[SequenceHash]) -> usize {
        blocks.partition_point(|block| self.seen.contains(&(block.0 as u64)))
    }

    /// Takes blocks in.
    pub(crate) fn add(&mut self, blocks: &[SequenceHash]) {
        let new = &blocks[self.hits(blocks)..];
        self.seen.extend(new.iter().map(|block| block.0 as u64));
    }

    /// Nobody will ask for these blocks again.
    pub(crate) fn forget(&mut self, blocks: &[SequenceHash]) {
        for block in blocks {
            self.seen.remove(&(block.0 as u64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_hit_until_it_is_forgotten() {
        let blocks: Vec<SequenceHash> = (1..=9).map(SequenceHash).collect();
        let mut ideal = Ideal::default();
        assert_eq!(ideal.hits(&blocks), 0);
        ideal.add(&blocks[..4]);
        ideal.add(&blocks[..6]);
        assert_eq!((ideal.hits(&blocks), ideal.hits(&blocks[..2])), (6, 2));
        ideal.forget(&blocks[3..]);
        assert_eq!(ideal.hits(&blocks), 3);
    }
}
