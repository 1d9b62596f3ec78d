//! Removals as run records: neighbours of one chain become one record, whatever their number.
//!
//! An engine names each block that it lets go of, leaf first as a rule; the index knows the chain and needs only its
//! last block and a count. What comes out says exactly what removing block by block says, in the same order, and
//! each event carries the sum after it, so that a frame may end behind any of them.

use mainstay_types::{BlockEvent, SequenceHash, Tier};

use super::local_map::Sum;

/// From so many neighbours on, a record is worth its event.
pub(crate) const RECORD_BLOCKS_MIN: usize = 3;
/// The longest record, far below what a member refuses.
pub(crate) const RECORD_BLOCKS_MAX: usize = 16_384;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// Each block is the parent of the one before it.
    Up,
    /// Each block is a child of the one before it.
    Down,
}

/// The neighbours at the end of the list so far.
struct Chain {
    blocks: Vec<SequenceHash>,
    /// The parent of the last of `blocks`.
    parent: SequenceHash,
    /// Unknown while there is one block.
    direction: Option<Direction>,
    /// The sum before the first of them was removed.
    before: Sum,
}

/// Builds the events of one list of removals.
pub(crate) struct Fold<F> {
    tier: Tier,
    event_blocks_max: usize,
    told: F,
    /// Blocks before the chain that belong to no record.
    loose: Vec<SequenceHash>,
    chain: Option<Chain>,
}

impl<F: FnMut(BlockEvent, Sum)> Fold<F> {
    pub(crate) fn new(tier: Tier, event_blocks_max: usize, told: F) -> Self {
        let event_blocks_max = event_blocks_max.max(RECORD_BLOCKS_MIN);
        Self { tier, event_blocks_max, told, loose: Vec::new(), chain: None }
    }

    /// A block was held in the tier and is removed; `before` is the sum that held until then. No block comes twice.
    pub(crate) fn add(&mut self, block: SequenceHash, parent: SequenceHash, before: Sum) {
        if let Some(chain) = &mut self.chain {
            let last = chain.blocks[chain.blocks.len() - 1];
            let direction = if chain.parent == block && chain.direction != Some(Direction::Down) {
                Some(Direction::Up)
            } else if parent == last && chain.direction != Some(Direction::Up) {
                Some(Direction::Down)
            } else {
                None
            };
            if direction.is_some() && chain.blocks.len() < RECORD_BLOCKS_MAX {
                chain.direction = direction;
                chain.blocks.push(block);
                chain.parent = parent;
                return;
            }
        }
        self.end_chain(before);
        self.chain = Some(Chain { blocks: vec![block], parent, direction: None, before });
    }

    /// The list is over.
    pub(crate) fn finish(mut self, sum: Sum) {
        self.end_chain(sum);
        self.tell_loose(sum);
    }

    fn end_chain(&mut self, sum: Sum) {
        let Some(chain) = self.chain.take() else { return };
        if chain.blocks.len() < RECORD_BLOCKS_MIN {
            if self.loose.len() + chain.blocks.len() > self.event_blocks_max {
                self.tell_loose(chain.before);
            }
            self.loose.extend(chain.blocks);
            return;
        }
        self.tell_loose(chain.before);
        let at = if chain.direction == Some(Direction::Up) { 0 } else { chain.blocks.len() - 1 };
        let (tail, count) = (chain.blocks[at], chain.blocks.len() as u32);
        (self.told)(BlockEvent::Truncated { tail, count, tier: self.tier }, sum);
    }

    fn tell_loose(&mut self, sum: Sum) {
        if !self.loose.is_empty() {
            let blocks = core::mem::take(&mut self.loose);
            (self.told)(BlockEvent::Removed { blocks, tier: self.tier }, sum);
        }
    }
}

#[cfg(test)]
mod tests;
