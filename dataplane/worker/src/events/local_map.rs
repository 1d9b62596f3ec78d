//! What the engine holds, block by block: the worker's own copy, from which everything can be told again.
//!
//! The engine reports changes only; the index needs the whole after a gap, an overflow, a fence or a restart.
//! Beside the blocks the map keeps their [`Sum`], which every frame of the stream carries, so that whoever follows
//! the stream notices at once that it holds something else. A block keeps the parent that it was first reported
//! under for as long as any tier holds it, as the index does, or the two sums would differ.
//! The copy is bounded: an engine that reports more blocks than it can have is held to the limit, and what is
//! beyond it is simply not announced, which costs cache hits and nothing else.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use mainstay_index::{BlockName as _, entry_digest};
use mainstay_types::{BlockEvent, NamespaceId, SequenceHash, Tier};

use super::fold::Fold;
use super::map_copy::MapCopy;

/// A block of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) parent: SequenceHash,
    pub(crate) namespace: NamespaceId,
    /// One bit per tier.
    pub(crate) tiers: u8,
    /// Its place in its chain, from 1 on; 0 where what comes before it was not known.
    pub(crate) depth: u32,
}

pub(crate) const fn bit(tier: Tier) -> u8 {
    1 << tier.number()
}

/// What a map holds, in two numbers: the index's digest, and how many blocks, each counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sum {
    pub(crate) digest: u64,
    pub(crate) blocks: u64,
}

/// How much of a run was taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Blocks from the first that are held now; the rest is beyond the limit.
    pub(crate) count: usize,
    /// The first and the last that the tier did not hold before.
    pub(crate) fresh: Option<(usize, usize)>,
}

/// The blocks that an engine holds, with their parents.
pub(crate) struct LocalMap {
    blocks: HashMap<SequenceHash, Held>,
    held: [usize; Tier::ALL.len()],
    digest: u64,
    blocks_max: usize,
}

impl LocalMap {
    /// An empty map of at most `blocks_max` blocks.
    pub(crate) fn new(blocks_max: usize) -> Self {
        Self { blocks: HashMap::new(), held: [0; Tier::ALL.len()], digest: 0, blocks_max }
    }

    /// Changes the limit, for a new engine; what is held already stays.
    pub(crate) fn set_blocks_max(&mut self, blocks_max: usize) {
        self.blocks_max = blocks_max;
    }

    /// The digest and the number of blocks held in any tier.
    pub(crate) fn sum(&self) -> Sum {
        Sum { digest: self.digest, blocks: self.blocks.len() as u64 }
    }

    /// How many blocks are held in one tier.
    pub(crate) fn held(&self, tier: Tier) -> usize {
        self.held[tier.number() as usize]
    }

    /// Whether a tier holds a block.
    pub(crate) fn holds(&self, block: SequenceHash, tier: Tier) -> bool {
        self.blocks.get(&block).is_some_and(|held| held.tiers & bit(tier) != 0)
    }

    /// A block's place in its chain, from 1 on, if it is known.
    pub(crate) fn depth(&self, block: SequenceHash) -> Option<u32> {
        self.blocks.get(&block).map(|held| held.depth).filter(|depth| *depth > 0)
    }

    /// The last `count` blocks of the chain that ends with `block`, in order, and what comes before them; `None` where
    /// one of them is not known.
    pub(crate) fn chain_to(
        &self,
        block: SequenceHash,
        count: usize,
    ) -> Option<(SequenceHash, Vec<SequenceHash>)> {
        let mut chain = Vec::with_capacity(count);
        let mut next = block;
        while chain.len() < count {
            let held = self.blocks.get(&next)?;
            chain.push(next);
            next = held.parent;
        }
        chain.reverse();
        Some((next, chain))
    }

    /// The blocks of one tier.
    pub(crate) fn of_tier(&self, tier: Tier) -> impl Iterator<Item = SequenceHash> {
        let held = self.blocks.iter().filter(move |(_, held)| held.tiers & bit(tier) != 0);
        held.map(|(block, _)| *block)
    }

    /// Takes a run in; `fresh` hears of each block that the tier did not hold.
    pub(crate) fn store(
        &mut self,
        namespace: NamespaceId,
        parent: SequenceHash,
        run: &[SequenceHash],
        tier: Tier,
        mut fresh: impl FnMut(SequenceHash),
    ) -> Taken {
        let mut taken = Taken { count: run.len(), fresh: None };
        let mut parent = parent;
        // Depth behind the parent; from an unknown one on nobody knows it.
        let mut before = if parent.0 == namespace.0 { Some(0) } else { self.depth(parent) };
        for (at, &block) in run.iter().enumerate() {
            let full = self.blocks.len() >= self.blocks_max;
            let held = match self.blocks.entry(block) {
                Entry::Vacant(_) if full => {
                    taken.count = at;
                    break;
                }
                Entry::Vacant(place) => {
                    place.insert(Held { parent, namespace, tiers: 0, depth: 0 })
                }
                Entry::Occupied(known) => known.into_mut(),
            };
            before = before.map(|depth| depth.saturating_add(1));
            held.depth = before.unwrap_or(held.depth);
            if held.tiers & bit(tier) == 0 {
                held.tiers |= bit(tier);
                self.held[tier.number() as usize] += 1;
                let share = entry_digest(block.key(), held.parent.key(), tier);
                self.digest = self.digest.wrapping_add(share);
                let first = taken.fresh.map_or(at, |(first, _)| first);
                taken.fresh = Some((first, at));
                fresh(block);
            }
            parent = block;
        }
        taken
    }

    /// Takes blocks out of one tier. `gone` hears of each that the tier did hold; `told` gets the events that say
    /// the same to others, of `event_blocks_max` blocks at most, each with the sum after it.
    pub(crate) fn remove(
        &mut self,
        blocks: &[SequenceHash],
        tier: Tier,
        event_blocks_max: usize,
        mut gone: impl FnMut(SequenceHash),
        told: impl FnMut(BlockEvent, Sum),
    ) {
        let mut fold = Fold::new(tier, event_blocks_max, told);
        for &block in blocks {
            let before = self.sum();
            let Entry::Occupied(mut known) = self.blocks.entry(block) else { continue };
            let held = known.get_mut();
            if held.tiers & bit(tier) == 0 {
                continue;
            }
            let parent = held.parent;
            held.tiers &= !bit(tier);
            if held.tiers == 0 {
                known.remove();
            }
            self.held[tier.number() as usize] -= 1;
            self.digest = self.digest.wrapping_sub(entry_digest(block.key(), parent.key(), tier));
            fold.add(block, parent, before);
            gone(block);
        }
        fold.finish(self.sum());
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.held = [0; Tier::ALL.len()];
        self.digest = 0;
    }

    /// The content of this moment, for whoever has time to put it in order.
    pub(crate) fn copy(&self) -> MapCopy {
        MapCopy::new(self.blocks.iter().map(|(block, held)| (*block, *held)).collect())
    }
}

#[cfg(test)]
mod tests;
