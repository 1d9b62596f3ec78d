//! The head of a run: all that a reader needs of it, in one cache line.
//!
//! Each run has two lines. The writer fills the one that is not in use and then points the head table at it, so a
//! reader never waits for a writer, not even for one that was put to sleep half-way. A line is told from its
//! successors by a count of changes: the low bits stand in the table's slot, the others in the line.

use crate::region::Zeroed;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Words of worker bits inside a line: 256 workers.
pub(crate) const WORDS: usize = 4;
/// Words of worker bits at most: 8,192 workers.
pub(crate) const WORDS_MAX: usize = 128;
/// Blocks of a run at most.
pub(crate) const RUN_BLOCKS_MAX: u32 = 32_768;

const LENGTH_BITS: u32 = 16;
const WIDE: u32 = 1 << LENGTH_BITS;
const CHANGES_SHIFT: u32 = LENGTH_BITS + 1;
/// Bits of the change count that stand in the head table.
pub(crate) const TABLE_CHANGE_BITS: u32 = 10;

/// A head as shared memory.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(crate) struct Line {
    start: AtomicU32,
    length: AtomicU32,
    segments: AtomicU32,
    filter: AtomicU32,
    first: AtomicU64,
    last: AtomicU64,
    words: [AtomicU64; WORDS],
}

// SAFETY: integers only.
unsafe impl Zeroed for Line {}

/// A head as a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// Where the first key lies, in keys.
    pub(crate) start: u32,
    /// Blocks.
    pub(crate) length: u32,
    /// The list of segments, in units of their arena; 0 for none.
    pub(crate) segments: u32,
    /// One bit per child head, by [`filter_bit`]; others may be set too.
    pub(crate) filter: u32,
    /// The first block.
    pub(crate) first: u64,
    /// The last block.
    pub(crate) last: u64,
    /// Workers that hold all of it: words 0 to 3 or, when `wide`, up to three named words or a spilled set.
    pub(crate) words: [u64; WORDS],
    /// See [`Head::words`].
    pub(crate) wide: bool,
    /// How often the head was changed.
    pub(crate) changes: u32,
}

/// The bit of a head's filter that stands for a child whose first block is `key`.
#[inline(always)]
pub(crate) fn filter_bit(key: u64) -> u32 {
    1 << (key.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 59)
}

impl Line {
    /// Reads the line, with its first `W` words; what it says counts only if the table's slot and [`Line::version`]
    /// stay as they were.
    #[inline(always)]
    pub(crate) fn load<const W: usize>(&self) -> Head {
        let word = |at: usize| if at < W { self.words[at].load(Ordering::Relaxed) } else { 0 };
        let length = self.length.load(Ordering::Relaxed);
        Head {
            start: self.start.load(Ordering::Relaxed),
            length: length & (WIDE - 1),
            segments: self.segments.load(Ordering::Relaxed),
            filter: self.filter.load(Ordering::Relaxed),
            first: self.first.load(Ordering::Relaxed),
            last: self.last.load(Ordering::Relaxed),
            words: [word(0), word(1), word(2), word(3)],
            wide: length & WIDE != 0,
            changes: length >> CHANGES_SHIFT,
        }
    }

    /// Changes whenever the line is written again.
    #[inline(always)]
    pub(crate) fn version(&self) -> u32 {
        self.length.load(Ordering::Relaxed) >> CHANGES_SHIFT
    }

    /// Writes the line. Readers that still look at what it said before find the table's slot changed: that store
    /// came before the fence here.
    #[inline(always)]
    pub(crate) fn store(&self, head: &Head) {
        fence(Ordering::Release);
        let wide = if head.wide { WIDE } else { 0 };
        let changes = head.changes >> TABLE_CHANGE_BITS;
        self.length.store(changes << CHANGES_SHIFT | wide | head.length, Ordering::Relaxed);
        self.start.store(head.start, Ordering::Relaxed);
        self.segments.store(head.segments, Ordering::Relaxed);
        self.filter.store(head.filter, Ordering::Relaxed);
        self.first.store(head.first, Ordering::Relaxed);
        self.last.store(head.last, Ordering::Relaxed);
        for (word, value) in self.words.iter().zip(head.words) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Lets readers look for a child. It needs no new version: a reader that misses the bit came before.
    #[inline(always)]
    pub(crate) fn add_filter(&self, bits: u32) {
        let now = self.filter.load(Ordering::Relaxed);
        if now & bits != bits {
            self.filter.store(now | bits, Ordering::Release);
        }
    }

    /// What the filter says now.
    #[inline(always)]
    pub(crate) fn filter(&self) -> u32 {
        self.filter.load(Ordering::Relaxed)
    }

    /// The key of the first block.
    #[inline(always)]
    pub(crate) fn first(&self) -> u64 {
        self.first.load(Ordering::Relaxed)
    }
}
