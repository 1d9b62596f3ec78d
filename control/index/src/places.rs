//! Where every block lies: the writer's map and, for a while, the one that it has outgrown.
//!
//! A full map of some size is not rebuilt at once, which would stop the writer for seconds at 1e8 blocks. What comes
//! goes into the bigger map, every event moves some of the blocks that were there before, and until that is over a
//! block is looked for in both. What is moved stays in the old map as well, even when the block goes: a candidate
//! counts only if its run has the key there, so an entry of long ago is never believed.

use crate::block_map::{BlockMap, Place};

/// From this many blocks on the map grows step by step. Never for now: while blocks move, two of one long run whose
/// tags are equal can be taken for one, and a lost block can still be found through the old map (status, issue 2).
const STEPS_FROM_BLOCKS: usize = usize::MAX;
/// Blocks that are moved for each that comes. Two would do before the bigger map is full.
const MOVES_PER_BLOCK: usize = 4;
/// Blocks that each event moves besides.
const MOVES_PER_EVENT: usize = 64;

/// A map that was outgrown, and how far it was moved: all runs before this one, and of it the offsets before.
struct Old {
    map: BlockMap,
    run: usize,
    offset: u32,
}

/// The map, or both.
pub(crate) struct Places {
    map: BlockMap,
    old: Option<Old>,
    blocks: usize,
    steps_from_blocks: usize,
}

impl Places {
    pub(crate) fn new() -> Self {
        let (map, steps_from_blocks) = (BlockMap::new(), STEPS_FROM_BLOCKS);
        Self { map, old: None, blocks: 0, steps_from_blocks }
    }

    /// From how many blocks on the map grows step by step.
    pub(crate) fn set_steps_from(&mut self, blocks: usize) {
        self.steps_from_blocks = blocks;
    }

    /// Different blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Bytes that the blocks need; those of an outgrown map are about to go.
    pub(crate) fn bytes_needed(&self) -> u64 {
        self.map.bytes()
    }

    /// Bytes in use.
    pub(crate) fn bytes(&self) -> u64 {
        self.map.bytes() + self.old.as_ref().map_or(0, |old| old.map.bytes())
    }

    /// How many more bytes the next bigger map has.
    pub(crate) fn growth_bytes(&self) -> u64 {
        self.map.growth_bytes()
    }

    /// Whether `more` blocks need a bigger map.
    #[inline(always)]
    pub(crate) fn is_short_of(&self, more: usize) -> bool {
        self.map.is_short_of(self.blocks + more)
    }

    /// Whether a smaller map would do.
    pub(crate) fn is_too_big(&self) -> bool {
        self.map.is_too_big(self.blocks)
    }

    /// Whether blocks are still to be moved.
    #[inline(always)]
    pub(crate) fn is_moving(&self) -> bool {
        self.old.is_some()
    }

    /// Takes a bigger map, which has room for `more` blocks, and answers whether they can be moved step by step;
    /// otherwise the caller puts them all in.
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        let bigger = self.map.bigger(self.blocks + more);
        let map = core::mem::replace(&mut self.map, bigger);
        let steps = self.blocks >= self.steps_from_blocks && self.old.is_none();
        self.old = steps.then_some(Old { map, run: 1, offset: 0 });
        steps
    }

    /// Takes an empty map of the right size; the caller puts all blocks in.
    pub(crate) fn fit(&mut self) {
        self.map = BlockMap::for_blocks(self.blocks);
        self.old = None;
    }

    /// How many blocks to move when so many come, and where to begin: a run, and an offset in it.
    pub(crate) fn next_moves(&self, more: usize) -> Option<(usize, usize, u32)> {
        let old = self.old.as_ref()?;
        Some((more * MOVES_PER_BLOCK + MOVES_PER_EVENT, old.run, old.offset))
    }

    /// Everything before this was moved; `None` if that was all.
    pub(crate) fn moved_to(&mut self, next: Option<(usize, u32)>) {
        match (next, &mut self.old) {
            (Some((run, offset)), Some(old)) => (old.run, old.offset) = (run, offset),
            _ => self.old = None,
        }
    }

    /// Puts in a block that is counted already.
    #[inline(always)]
    pub(crate) fn put(&mut self, key: u64, place: Place) {
        self.map.insert(key, place);
    }

    /// Puts in a block that is counted already, unless `proof` finds it there.
    #[inline(always)]
    pub(crate) fn put_or_find(
        &mut self,
        key: u64,
        place: Place,
        proof: impl FnMut(u32, u8) -> Option<u32>,
    ) {
        if self.map.find(key, proof).is_none() {
            self.map.insert(key, place);
        }
    }

    #[inline(always)]
    pub(crate) fn prefetch(&self, key: u64) {
        self.map.prefetch(key);
        if let Some(old) = &self.old {
            old.map.prefetch(key);
        }
    }

    /// Fetches what [`Places::put`] needs.
    #[inline(always)]
    pub(crate) fn prefetch_put(&self, key: u64) {
        self.map.prefetch(key);
    }

    /// The first candidate that `proof` accepts; it is given a run and the low byte of the offset.
    #[inline(always)]
    pub(crate) fn find(
        &self,
        key: u64,
        mut proof: impl FnMut(u32, u8) -> Option<u32>,
    ) -> Option<Place> {
        let found = self.map.find(key, &mut proof);
        match &self.old {
            Some(old) if found.is_none() => old.map.find(key, proof),
            _ => found,
        }
    }

    /// Puts in a block unless `proof` finds it there already.
    #[inline(always)]
    pub(crate) fn insert_or_find(
        &mut self,
        key: u64,
        place: Place,
        proof: impl FnMut(u32, u8) -> Option<u32>,
    ) -> Option<Place> {
        let found = self.find(key, proof);
        if found.is_none() {
            self.map.insert(key, place);
            self.blocks += 1;
        }
        found
    }

    /// Takes a block out; one that is not there is left alone.
    #[inline(always)]
    pub(crate) fn remove(&mut self, key: u64, place: Place) {
        let mut removed = self.map.remove(key, place);
        if let (false, Some(old)) = (removed, &mut self.old) {
            removed = old.map.remove(key, place);
        }
        self.blocks -= usize::from(removed);
    }

    /// A block has a new place.
    #[inline(always)]
    pub(crate) fn relocate(&mut self, key: u64, from: Place, to: Place) {
        if !self.map.relocate(key, from, to) && self.old.is_some() {
            self.map.insert(key, to);
        }
    }
}
