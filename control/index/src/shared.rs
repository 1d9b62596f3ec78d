//! What the writer and its readers share, and the sizes that bound it.

use crate::head::Line;
use crate::head_table::HeadTable;
use crate::region::{Region, prefetch};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::workers::SLOTS_MAX;

/// Keys in a unit of their arena.
pub(crate) const KEYS_PER_UNIT: u32 = 16;
/// Entries in a unit of the arena of lists.
pub(crate) const ENTRIES_PER_UNIT: u32 = 4;

/// Sizes of the reserved ranges; only what is touched costs memory.
#[cfg(not(any(miri, loom)))]
mod sizes {
    pub(crate) const RUNS: usize = 1 << 22;
    pub(crate) const KEY_UNITS: u32 = 1 << 27;
    pub(crate) const LIST_UNITS: u32 = 1 << 26;
}
#[cfg(miri)]
mod sizes {
    pub(crate) const RUNS: usize = 1 << 7;
    pub(crate) const KEY_UNITS: u32 = 1 << 7;
    pub(crate) const LIST_UNITS: u32 = 1 << 7;
}
#[cfg(loom)]
mod sizes {
    pub(crate) const RUNS: usize = 1 << 3;
    pub(crate) const KEY_UNITS: u32 = 1 << 3;
    pub(crate) const LIST_UNITS: u32 = 1 << 3;
}
pub(crate) use sizes::{KEY_UNITS, LIST_UNITS, RUNS};

/// A reader may hold a stale start and length; with this much room behind the last key they stay inside.
#[cfg(not(any(miri, loom)))]
const KEY_SLACK: usize = 1 << 16;
#[cfg(any(miri, loom))]
const KEY_SLACK: usize = 1 << 6;

pub(crate) struct Shared {
    pub(crate) heads: Region<Line>,
    pub(crate) keys: Region<AtomicU64>,
    pub(crate) lists: Region<AtomicU64>,
    pub(crate) table: HeadTable,
    /// Words of worker bits in use.
    pub(crate) words: AtomicU32,
    /// Words of slots whose workers have the slot's own number, as bits: see [`own_number_bit`].
    pub(crate) own_numbers: AtomicU64,
    /// Worker id plus one per slot, 0 for none.
    pub(crate) worker_ids: Region<AtomicU64>,
}

/// The bit of [`Shared::own_numbers`] that speaks for a word of slots. The last speaks for all words beyond it.
#[inline(always)]
pub(crate) fn own_number_bit(word: usize) -> u32 {
    word.min(u64::BITS as usize - 1) as u32
}

impl Shared {
    pub(crate) fn new() -> Self {
        let keys = 2 * KEY_UNITS as usize * KEYS_PER_UNIT as usize + KEY_SLACK;
        let lists = 2 * LIST_UNITS as usize * ENTRIES_PER_UNIT as usize;
        Self {
            heads: Region::new(2 * RUNS),
            keys: Region::new(keys),
            lists: Region::new(lists),
            table: HeadTable::new(),
            words: AtomicU32::new(1),
            own_numbers: AtomicU64::new(u64::MAX),
            worker_ids: Region::new(if cfg!(any(miri, loom)) { 64 } else { SLOTS_MAX as usize }),
        }
    }

    #[inline(always)]
    pub(crate) fn key(&self, at: u32) -> u64 {
        self.keys[at as usize].load(Ordering::Relaxed)
    }

    /// The list at a position: its entries. What a stale position gives is some other list, or nothing.
    #[inline(always)]
    pub(crate) fn list(&self, position: u32) -> &[AtomicU64] {
        if position == 0 {
            return &[];
        }
        let at = position as usize * ENTRIES_PER_UNIT as usize;
        let Some(count) = self.lists.get(at) else { return &[] };
        let count = count.load(Ordering::Relaxed) as u32 as usize;
        self.lists.get(at + 1..at + 1 + count).unwrap_or_default()
    }

    /// How many leading blocks of `names` are the keys before `end`, downward. There are that many keys.
    #[inline]
    pub(crate) fn equal_downward<N: crate::BlockName>(&self, end: u32, names: &[N]) -> usize {
        /// Compared at once: a branch for each would cost more than the compare.
        const STRIDE: usize = 8;
        let keys = &self.keys[end as usize - names.len()..end as usize];
        let differs = |name: &N, key: &AtomicU64| name.key() ^ key.load(Ordering::Relaxed);
        let mut count = 0;
        for (names, keys) in names.chunks_exact(STRIDE).zip(keys.rchunks_exact(STRIDE)) {
            let pairs = names.iter().zip(keys.iter().rev());
            if pairs.fold(0, |sum, (name, key)| sum | differs(name, key)) != 0 {
                break;
            }
            count += STRIDE;
        }
        let rest = names[count..].iter().zip(keys[..keys.len() - count].iter().rev());
        count + rest.take_while(|(name, key)| differs(name, key) == 0).count()
    }

    /// How many leading blocks of `names` are the keys from `start` on; the first is known to be. As keys are
    /// chained, one that is equal proves all before it.
    #[inline]
    pub(crate) fn equal_leading<N: crate::BlockName>(&self, start: u32, names: &[N]) -> usize {
        let keys = &self.keys[start as usize..start as usize + names.len()];
        let equal = |at: usize| keys[at].load(Ordering::Relaxed) == names[at].key();
        let (mut low, mut high) = (1, names.len());
        if high <= 1 || equal(high - 1) {
            return high;
        }
        high -= 1;
        // Eight probes a round: their misses overlap, so a round costs about as much as one.
        while high - low > 8 {
            let step = (high - low) / 8 + 1;
            let mut at = low;
            while at < high {
                prefetch(keys, at);
                at += step;
            }
            let (mut next_low, mut next_high) = (low, high);
            let mut at = low;
            while at < high {
                if !equal(at) {
                    next_high = at;
                    break;
                }
                next_low = at + 1;
                at += step;
            }
            (low, high) = (next_low, next_high);
        }
        while low < high && equal(low) {
            low += 1;
        }
        low
    }
}
