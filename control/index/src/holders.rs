//! The set of workers that hold all of a run.
//!
//! Up to 256 workers the four words of a head are the set. Beyond, a head may turn wide: its first word then names
//! up to three words by tags, or a spilled set of 128 words in the arena of lists. Most runs are held by few
//! workers, so most heads of a big fleet stay within their line.

use crate::head::{Head, WORDS, WORDS_MAX};
use crate::shared::Shared;
use crate::sync::Ordering;

const TAG_BITS: u32 = 8;
const INLINE: usize = WORDS - 1;

use mainstay_types::WorkerId;

use crate::TierSet;

/// One worker's hold on a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub worker: WorkerId,
    /// Where; never empty inside the index.
    pub tiers: TierSet,
}

/// A set of workers, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HolderSet {
    pub(crate) words: [u64; WORDS_MAX],
}

impl HolderSet {
    pub(crate) fn count(&self) -> u32 {
        self.words.iter().map(|w| w.count_ones()).sum()
    }

    /// The slots in it, in order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        slots_of(&self.words)
    }
}

/// The slots whose bits are set, in order.
pub(crate) fn slots_of(words: &[u64]) -> impl Iterator<Item = u32> + '_ {
    words.iter().enumerate().flat_map(|(word, bits)| {
        let mut rest = *bits;
        core::iter::from_fn(move || {
            let bit = (rest != 0).then(|| rest.trailing_zeros())?;
            rest &= rest - 1;
            Some(word as u32 * 64 + bit)
        })
    })
}

impl Head {
    fn spill(&self) -> u32 {
        (self.words[0] >> 32) as u32
    }

    fn tag(&self, at: usize) -> usize {
        (self.words[0] >> (TAG_BITS * at as u32)) as usize % WORDS_MAX
    }

    /// The words of a wide head that are not empty.
    #[inline(always)]
    pub(crate) fn wide_words(&self, shared: &Shared, mut take: impl FnMut(usize, u64)) {
        let spill = self.spill();
        if spill != 0 {
            for (word, bits) in shared.list(spill).iter().take(WORDS_MAX).enumerate() {
                take(word, bits.load(Ordering::Relaxed));
            }
            return;
        }
        for at in 0..INLINE {
            if self.words[at + 1] != 0 {
                take(self.tag(at), self.words[at + 1]);
            }
        }
    }

    /// Whether the worker of `slot` holds all of the run.
    #[inline(always)]
    pub(crate) fn is_full(&self, shared: &Shared, slot: u32) -> bool {
        let (word, bit) = (slot as usize / 64, 1_u64 << (slot % 64));
        if !self.wide {
            return word < WORDS && self.words[word] & bit != 0;
        }
        let mut found = false;
        self.wide_words(shared, |at, bits| found |= at == word && bits & bit != 0);
        found
    }

    /// Whether the same workers hold all of two runs.
    pub(crate) fn same_full(&self, other: &Self, shared: &Shared) -> bool {
        if self.wide || other.wide {
            return self.full_set(shared) == other.full_set(shared);
        }
        self.words == other.words
    }

    /// All who hold all of it.
    pub(crate) fn full_set(&self, shared: &Shared) -> HolderSet {
        let mut words = [0; WORDS_MAX];
        if self.wide {
            self.wide_words(shared, |at, bits| words[at] = bits);
        } else {
            words[..WORDS].copy_from_slice(&self.words);
        }
        HolderSet { words }
    }

    /// Sets or clears one bit of a narrow head, if that is all it takes.
    #[inline(always)]
    pub(crate) fn set_full_narrow(&mut self, slot: u32, on: bool) -> bool {
        let (word, bit) = (slot as usize / 64, 1_u64 << (slot % 64));
        if self.wide || word >= WORDS {
            return false;
        }
        if on {
            self.words[word] |= bit;
        } else {
            self.words[word] &= !bit;
        }
        true
    }

    /// Packs a set into the head; answers the words to spill if it does not fit.
    pub(crate) fn pack(&mut self, set: &HolderSet) -> Option<[u64; WORDS_MAX]> {
        self.words = [0; WORDS];
        self.wide = set.words[WORDS..].iter().any(|w| *w != 0);
        if !self.wide {
            self.words.copy_from_slice(&set.words[..WORDS]);
            return None;
        }
        let used: Vec<usize> = (0..WORDS_MAX).filter(|w| set.words[*w] != 0).collect();
        if used.len() > INLINE {
            return Some(set.words);
        }
        for (at, word) in used.into_iter().enumerate() {
            self.words[0] |= (word as u64) << (TAG_BITS * at as u32);
            self.words[at + 1] = set.words[word];
        }
        None
    }

    /// Where the spilled set lies, 0 if it is not spilled.
    pub(crate) fn spilled(&self) -> u32 {
        if self.wide { self.spill() } else { 0 }
    }

    /// Points at a spilled set.
    pub(crate) fn set_spill(&mut self, position: u32) {
        self.words[0] = u64::from(position) << 32;
    }
}
