//! Where a block lies: the writer's map from key to run and offset.
//!
//! One 64-byte line holds twelve slots: four bytes of run number and tag, and one byte of the offset each. The
//! offset's other bits are found by looking: a run of up to 256 blocks has one candidate. A full line passes new
//! slots on to the next one and counts them, so that nothing ever needs a tombstone. The map holds no keys; a
//! caller proves a candidate against the run itself.

use crate::region::{Region, Zeroed, prefetch};

/// Bits of a slot that tell keys of one line apart; the others are the run.
const TAG_BITS: u32 = 10;
/// Runs are numbered from 1 up to here.
pub(crate) const RUN_MAX: u32 = (1 << (32 - TAG_BITS)) - 1;
const SLOTS: usize = 12;
/// Of all slots, in percent.
const FILL_MAX: usize = 76;
const FILL_MIN: usize = 12;
const LINE_BITS_MIN: u32 = 4;
/// Below this size, 4 MB, a map grows by four instead of by two.
const QUICK_BITS_MAX: u32 = 16;

/// A block's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) run: u32,
    pub(crate) offset: u32,
}

#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    slots: [u32; SLOTS],
    low: [u8; SLOTS],
    passed: u32,
}

// SAFETY: integers only.
unsafe impl Zeroed for Line {}

impl Line {
    /// The slots that equal `value` in the bits of `mask`, as bits.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[inline(always)]
    fn equal(&self, value: u32, mask: u32) -> u32 {
        use core::arch::x86_64::{
            __m128i, _mm_and_si128, _mm_castsi128_ps, _mm_cmpeq_epi32, _mm_load_si128,
            _mm_movemask_ps, _mm_set1_epi32,
        };
        let slots = self.slots.as_ptr().cast::<__m128i>();
        // SAFETY: SSE2 is part of x86_64. The twelve slots are three vectors at the start of a line, which is
        // aligned to 64 bytes.
        unsafe {
            let (value, mask) = (_mm_set1_epi32(value as i32), _mm_set1_epi32(mask as i32));
            let part = |at: usize| {
                let slots = _mm_and_si128(_mm_load_si128(slots.add(at)), mask);
                _mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(slots, value))) as u32
            };
            part(0) | part(1) << 4 | part(2) << 8
        }
    }

    /// The slots that equal `value` in the bits of `mask`, as bits.
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    #[inline(always)]
    fn equal(&self, value: u32, mask: u32) -> u32 {
        let slots = self.slots.iter().enumerate();
        slots.fold(0, |found, (at, slot)| found | u32::from(slot & mask == value) << at)
    }

    /// The slots that carry `tag`, as bits. Empty slots carry tag 0, which [`tag_of`] never gives.
    #[inline(always)]
    fn tagged(&self, tag: u32) -> u32 {
        self.equal(tag, (1 << TAG_BITS) - 1)
    }

    #[inline(always)]
    fn place_of(&self, slot: u32, low: u8) -> Option<usize> {
        let mut found = self.equal(slot, u32::MAX);
        while found != 0 {
            let at = found.trailing_zeros() as usize;
            if self.low[at] == low {
                return Some(at);
            }
            found &= found - 1;
        }
        None
    }

    #[inline(always)]
    fn free(&self) -> Option<usize> {
        let found = self.equal(0, u32::MAX);
        (found != 0).then_some(found.trailing_zeros() as usize)
    }
}

#[inline(always)]
fn tag_of(key: u64) -> u32 {
    (key as u32 & ((1 << TAG_BITS) - 1)).max(1)
}

#[inline(always)]
fn slot_of(key: u64, place: Place) -> (u32, u8) {
    (place.run << TAG_BITS | tag_of(key), place.offset as u8)
}

/// The map.
pub(crate) struct BlockMap {
    lines: Region<Line>,
    shift: u32,
    blocks: usize,
}

impl BlockMap {
    pub(crate) fn new() -> Self {
        Self::with_bits(LINE_BITS_MIN)
    }

    fn with_bits(bits: u32) -> Self {
        let lines = Region::new(1 << bits);
        lines.widen_pages(1 << bits);
        Self { lines, shift: 64 - bits, blocks: 0 }
    }

    /// An empty map that is big enough for `blocks` and not much bigger.
    pub(crate) fn for_blocks(blocks: usize) -> Self {
        Self::with_bits(Self::bits_for(blocks))
    }

    fn bits_for(blocks: usize) -> u32 {
        let mut bits = LINE_BITS_MIN;
        while blocks * 100 >= (SLOTS << bits) * FILL_MAX {
            bits += 1;
        }
        bits
    }

    /// An empty map for when this one is full: four times as big while that is cheap, so that a filling index moves
    /// its blocks less often.
    pub(crate) fn bigger(&self, blocks: usize) -> Self {
        let bits = 64 - self.shift;
        let enough = Self::bits_for(blocks);
        Self::with_bits(enough.max(if bits < QUICK_BITS_MAX { bits + 2 } else { bits + 1 }))
    }

    /// How many more bytes the next bigger map has.
    pub(crate) fn growth_bytes(&self) -> u64 {
        self.bytes() * if 64 - self.shift < QUICK_BITS_MAX { 3 } else { 1 }
    }

    /// Whether `more` blocks need a bigger map.
    pub(crate) fn is_short_of(&self, more: usize) -> bool {
        (self.blocks + more) * 100 >= self.lines.len() * SLOTS * FILL_MAX
    }

    /// Whether a smaller map would do.
    pub(crate) fn is_too_big(&self) -> bool {
        self.lines.len() > 1 << LINE_BITS_MIN
            && self.blocks * 100 < self.lines.len() * SLOTS * FILL_MIN
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.lines.len() * size_of::<Line>()) as u64
    }

    #[inline(always)]
    fn home(&self, key: u64) -> usize {
        (key >> self.shift) as usize
    }

    #[inline(always)]
    pub(crate) fn prefetch(&self, key: u64) {
        prefetch(&self.lines, self.home(key));
    }

    /// The first candidate that `proof` accepts; it is given a run and the low byte of the offset.
    #[inline]
    pub(crate) fn find(
        &self,
        key: u64,
        mut proof: impl FnMut(u32, u8) -> Option<u32>,
    ) -> Option<Place> {
        let (mask, tag) = (self.lines.len() - 1, tag_of(key));
        let mut at = self.home(key);
        loop {
            let line = &self.lines[at];
            let mut tagged = line.tagged(tag);
            while tagged != 0 {
                let slot = tagged.trailing_zeros() as usize;
                let run = line.slots[slot] >> TAG_BITS;
                if let Some(offset) = proof(run, line.low[slot]) {
                    return Some(Place { run, offset });
                }
                tagged &= tagged - 1;
            }
            if line.passed == 0 {
                return None;
            }
            at = (at + 1) & mask;
        }
    }

    /// Puts in a block that is not there.
    #[inline]
    pub(crate) fn insert(&mut self, key: u64, place: Place) {
        let mask = self.lines.len() - 1;
        let (slot, low) = slot_of(key, place);
        let mut at = self.home(key);
        self.blocks += 1;
        loop {
            let line = &mut self.lines[at];
            if let Some(free) = line.free() {
                line.slots[free] = slot;
                line.low[free] = low;
                return;
            }
            line.passed += 1;
            at = (at + 1) & mask;
        }
    }

    /// Puts in a block unless `proof` finds it there already.
    #[inline]
    pub(crate) fn insert_or_find(
        &mut self,
        key: u64,
        place: Place,
        proof: impl FnMut(u32, u8) -> Option<u32>,
    ) -> Option<Place> {
        let found = self.find(key, proof);
        if found.is_none() {
            self.insert(key, place);
        }
        found
    }

    /// Takes a block out; one that is not there is left alone.
    #[inline]
    pub(crate) fn remove(&mut self, key: u64, place: Place) {
        let mask = self.lines.len() - 1;
        let (slot, low) = slot_of(key, place);
        let home = self.home(key);
        let mut at = home;
        loop {
            let line = &mut self.lines[at];
            if let Some(found) = line.place_of(slot, low) {
                line.slots[found] = 0;
                self.blocks -= 1;
                while at != home {
                    at = at.wrapping_sub(1) & mask;
                    self.lines[at].passed -= 1;
                }
                return;
            }
            if line.passed == 0 {
                return;
            }
            at = (at + 1) & mask;
        }
    }

    /// A block has a new place.
    pub(crate) fn relocate(&mut self, key: u64, from: Place, to: Place) {
        let mask = self.lines.len() - 1;
        let (slot, low) = slot_of(key, from);
        let mut at = self.home(key);
        loop {
            let line = &mut self.lines[at];
            if let Some(found) = line.place_of(slot, low) {
                (line.slots[found], line.low[found]) = slot_of(key, to);
                return;
            }
            if line.passed == 0 {
                return;
            }
            at = (at + 1) & mask;
        }
    }
}
