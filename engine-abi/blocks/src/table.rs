//! The blocks of one sequence, in order: their names for the pool, and their numbers for whoever computes with them.

use mainstay_block::BlockId;

/// A sequence's blocks. It is emptied by giving it back to the pool, and must not be dropped before.
#[derive(Debug, Default)]
pub struct Table {
    ids: Vec<BlockId>,
    slots: Vec<u32>,
    found: usize,
}

impl Table {
    /// How many blocks it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Where the bytes of each lie.
    #[must_use]
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    pub(crate) fn ids(&self) -> &[BlockId] {
        &self.ids
    }

    pub(crate) fn get(&self, at: usize) -> Option<BlockId> {
        self.ids.get(at).copied()
    }

    pub(crate) fn set(&mut self, at: usize, id: BlockId) {
        self.ids[at] = id;
        self.slots[at] = id.index();
    }

    pub(crate) fn push(&mut self, id: BlockId) {
        self.ids.push(id);
        self.slots.push(id.index());
    }

    /// A block that was there already; these come first.
    pub(crate) fn found(&mut self, id: BlockId) {
        self.push(id);
        self.found = self.ids.len();
    }

    /// How many of its first blocks were there already.
    pub(crate) fn found_len(&self) -> usize {
        self.found
    }

    pub(crate) fn clear(&mut self) {
        self.ids.clear();
        self.slots.clear();
        self.found = 0;
    }
}
