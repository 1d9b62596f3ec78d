//! What is known of single blocks beside who holds them: pins and retention class.
//!
//! A side table, because few blocks carry a mark and because a mark outlives the holders: a pinned block that no
//! worker holds any more is still pinned, and its keeper looks for it.

use crate::hasher::KeyMap;
use crate::{BlockIndex, BlockName};

/// Blocks that can carry a mark.
pub const MARKS_MAX: usize = 1 << 24;

/// The mark of a block. The default is no mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// Live pins that name it.
    pub pins: u32,
    /// Retention class, as its owner numbers it.
    pub class: u8,
    /// Retention priority, 0 to 100.
    pub priority: u8,
}

impl Mark {
    /// Whether there is nothing to remember.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Marks {
    marked: KeyMap<u64, Mark>,
}

impl Marks {
    pub(crate) fn is_empty(&self) -> bool {
        self.marked.is_empty()
    }

    pub(crate) fn has(&self, key: u64) -> bool {
        self.marked.contains_key(&key)
    }

    /// An estimate of its memory.
    pub(crate) fn bytes(&self) -> u64 {
        (self.marked.capacity() * (size_of::<(u64, Mark)>() + 1)) as u64
    }
}

impl BlockIndex {
    /// Sets the mark of these blocks, known or not. Answers how many found no room; see [`MARKS_MAX`].
    pub fn mark<N: BlockName>(&mut self, blocks: &[N], mark: Mark) -> u64 {
        let mut refused = 0;
        for name in blocks {
            if mark.is_none() {
                self.marks.marked.remove(&name.key());
            } else if self.marks.marked.len() < MARKS_MAX || self.marks.has(name.key()) {
                self.marks.marked.insert(name.key(), mark);
            } else {
                refused += 1;
            }
        }
        refused
    }

    /// The mark of a block.
    #[must_use]
    pub fn mark_of(&self, name: impl BlockName) -> Mark {
        self.marks.marked.get(&name.key()).copied().unwrap_or_default()
    }

    /// How many blocks carry a mark.
    #[must_use]
    pub fn marked_count(&self) -> u64 {
        self.marks.marked.len() as u64
    }
}

impl BlockIndex {
    pub(crate) fn copy_marks(&mut self, from: &Self) {
        self.marks.marked.clone_from(&from.marks.marked);
    }
}
