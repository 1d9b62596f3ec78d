//! What tiers below the engine are told of pins: which blocks must not go, and until when.
//!
//! A tier sees blocks and no pins, so what is told is per block: the latest end of the pins that name it, or that none
//! does any more. News wait until they are taken; of a block that changed twice only the last is told.

use std::collections::HashSet;

use mainstay_types::{NamespaceId, SequenceHash};

use super::{MARGIN_MS, PinLedger, margin};

/// Blocks about which there is news.
#[derive(Default)]
pub(super) struct Marks {
    /// Nobody is told anything before somebody asks for it.
    wanted: bool,
    news: HashSet<(NamespaceId, SequenceHash)>,
}

/// A block of a pin, or of none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) namespace: NamespaceId,
    pub(crate) block: SequenceHash,
    /// When the last pin on it ends, by this machine's monotonic clock; 0 without one.
    pub(crate) until_ms: u64,
}

impl Marks {
    pub(super) fn note(&mut self, namespace: NamespaceId, blocks: &[SequenceHash]) {
        if self.wanted {
            self.news.extend(blocks.iter().map(|block| (namespace, *block)));
        }
    }
}

impl PinLedger {
    /// Tells of all blocks of pins from now on, those that are pinned already first.
    pub(crate) fn mark_from_now(&mut self) {
        self.marks.wanted = true;
        for entry in self.pins.values() {
            self.marks.note(entry.namespace, &entry.blocks);
        }
    }

    /// Tells of those blocks again that are pinned: they came into a tier just now.
    pub(crate) fn mark_again(&mut self, namespace: NamespaceId, blocks: &[SequenceHash]) {
        for block in blocks.iter().filter(|block| self.by_block.contains_key(block)) {
            self.marks.note(namespace, &[*block]);
        }
    }

    /// The news of so many blocks.
    pub(crate) fn take_marks(&mut self, most: usize) -> Vec<Mark> {
        let taken: Vec<_> = self.marks.news.iter().take(most).copied().collect();
        for news in &taken {
            self.marks.news.remove(news);
        }
        let mark =
            |(namespace, block)| Mark { namespace, block, until_ms: self.pinned_until(block) };
        taken.into_iter().map(mark).collect()
    }

    /// When the last pin on a block ends, later than the cluster's time says, as engines are told; 0 without one.
    pub(crate) fn pinned_until(&self, block: SequenceHash) -> u64 {
        let ids = self.by_block.get(&block).map_or(&[][..], Vec::as_slice);
        let ends = ids.iter().filter_map(|id| self.pins.get(id)).map(|entry| entry.told_ms);
        ends.max().unwrap_or(0)
    }
}

/// The end that tiers are told for a pin that ends then; a small difference to what they know is not told.
pub(super) fn end_to_tell(ends_ms: u64, now_ms: u64, told_ms: u64) -> u64 {
    let end_ms = ends_ms.saturating_add(margin(ends_ms.saturating_sub(now_ms)));
    let differs = end_ms.abs_diff(told_ms);
    if differs < MARGIN_MS / 2 { told_ms } else { end_ms }
}
