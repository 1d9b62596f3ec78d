//! How many blocks that could go are worth how much, so that what is kept for some is no room for others.
//!
//! The orders of eviction know leaves only; here is every block without user and hold. One number for each priority,
//! and for each block as what it is counted, so that a change costs no more than two of them.

use super::PRIORITY_MAX;

/// Of a block that is not idle.
const ABSENT: u8 = u8::MAX;

/// Idle blocks by their worth.
#[derive(Debug)]
pub(crate) struct IdleWorths {
    counts: [u32; PRIORITY_MAX as usize + 1],
    worths: Vec<u8>,
}

impl Default for IdleWorths {
    fn default() -> Self {
        Self { counts: [0; PRIORITY_MAX as usize + 1], worths: Vec::new() }
    }
}

impl IdleWorths {
    /// The pool has one block more.
    pub(crate) fn grow(&mut self) {
        self.worths.push(ABSENT);
    }

    /// Whether a block is counted.
    pub(crate) fn has(&self, id: u32) -> bool {
        self.worths.get(id as usize).is_some_and(|worth| *worth != ABSENT)
    }

    /// A block is worth so much, or is not idle any more.
    pub(crate) fn put(&mut self, id: u32, worth: Option<u8>) {
        let Some(place) = self.worths.get_mut(id as usize) else { return };
        let worth = worth.map_or(ABSENT, |worth| worth.min(PRIORITY_MAX));
        let before = std::mem::replace(place, worth);
        if let Some(count) = self.counts.get_mut(before as usize) {
            *count -= 1;
        }
        if let Some(count) = self.counts.get_mut(worth as usize) {
            *count += 1;
        }
    }

    /// How many are worth more than that.
    pub(crate) fn above(&self, worth: u8) -> u32 {
        self.counts.iter().skip(worth as usize + 1).sum()
    }

    /// As what a block is counted.
    pub(crate) fn worth(&self, id: u32) -> Option<u8> {
        self.worths.get(id as usize).copied().filter(|worth| *worth != ABSENT)
    }
}
