//! From the key of a run's first block to its head: what every step of a lookup starts with.
//!
//! Open addressing over 8-byte slots: 32 bits of the key, the run, and the low bits of the head's change count, of
//! which the lowest says which of its two lines is in use. Half full at most. Growing builds the other of two
//! regions and then moves one word that says which region counts; a reader checks that word last, so it never
//! takes a half-built table's word for an answer.

use crate::block_map::RUN_MAX;
use crate::head::TABLE_CHANGE_BITS;
use crate::region::{Region, prefetch};
use crate::sync::{AtomicU64, Ordering, fence};

const EMPTY: u64 = 0;
const GONE: u64 = u64::MAX;
#[cfg(not(loom))]
const BITS_MIN: u32 = 6;
#[cfg(loom)]
const BITS_MIN: u32 = 1;
#[cfg(not(any(miri, loom)))]
const BITS_MAX: u32 = 24;
#[cfg(miri)]
const BITS_MAX: u32 = 10;
#[cfg(loom)]
const BITS_MAX: u32 = 4;
const CHANGE_MASK: u64 = (1 << TABLE_CHANGE_BITS) - 1;

/// Where readers look runs up.
pub(crate) struct HeadTable {
    regions: [Region<AtomicU64>; 2],
    /// Log2 of the slots in the low byte; above it a count whose lowest bit names the region.
    state: AtomicU64,
}

/// A table as it was when a lookup began.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    slots: &'a [AtomicU64],
    shift: u32,
    state: u64,
}

/// A head that was found: where its slot is, and what it said.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Found {
    pub(crate) at: u32,
    pub(crate) slot: u64,
}

impl Found {
    #[inline(always)]
    pub(crate) fn run(self) -> u32 {
        (self.slot as u32) >> TABLE_CHANGE_BITS
    }

    /// The index of its line in the region of heads.
    #[inline(always)]
    pub(crate) fn line(self) -> usize {
        line_of(self.run(), self.slot as u32)
    }
}

/// Which line holds a run's head after so many changes.
#[inline(always)]
pub(crate) fn line_of(run: u32, changes: u32) -> usize {
    (run as usize) << 1 | (changes & 1) as usize
}

#[inline(always)]
fn slot_of(key: u64, run: u32, changes: u32) -> u64 {
    debug_assert!(run != 0 && run <= RUN_MAX);
    key >> 32 << 32 | u64::from(run) << TABLE_CHANGE_BITS | u64::from(changes) & CHANGE_MASK
}

#[inline(always)]
fn home_of(key: u64, shift: u32) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> shift) as usize
}

impl<'a> View<'a> {
    #[inline(always)]
    pub(crate) fn prefetch(&self, key: u64) {
        prefetch(self.slots, home_of(key, self.shift));
    }

    /// The first slot that fits `key` and that `proof` accepts.
    #[inline(always)]
    pub(crate) fn find(&self, key: u64, mut proof: impl FnMut(Found) -> bool) -> Option<Found> {
        let mask = self.slots.len() - 1;
        let mut at = home_of(key, self.shift);
        // Bounded, because a reader may be looking at a region that is being refilled.
        let mut left = mask + 1;
        while left > 0 {
            let slot = self.slots[at].load(Ordering::Acquire);
            if slot == EMPTY {
                return None;
            }
            if (slot ^ key) >> 32 == 0 && slot != GONE {
                let found = Found { at: at as u32, slot };
                if proof(found) {
                    return Some(found);
                }
                // The line may have been written anew because the slot points elsewhere by now.
                fence(Ordering::Acquire);
                if !self.is_still(found) {
                    continue;
                }
            }
            at = (at + 1) & mask;
            left -= 1;
        }
        None
    }

    /// Whether a slot still says what it said. Call [`fence`] with `Acquire` before; the load is one too, so that the
    /// line's version, read after it, is not older.
    #[inline(always)]
    pub(crate) fn is_still(&self, found: Found) -> bool {
        self.slots[found.at as usize].load(Ordering::Acquire) == found.slot
    }

    /// What [`HeadTable::state`] was.
    #[inline(always)]
    pub(crate) fn state(&self) -> u64 {
        self.state
    }
}

impl HeadTable {
    pub(crate) fn new() -> Self {
        Self {
            regions: [Region::new(1 << BITS_MAX), Region::new(1 << BITS_MAX)],
            state: AtomicU64::new(u64::from(BITS_MIN)),
        }
    }

    /// The table as it is now.
    #[inline(always)]
    pub(crate) fn view(&self) -> View<'_> {
        let state = self.state.load(Ordering::Acquire);
        let bits = (state & 0xff) as u32;
        let slots = &self.regions[(state >> 8 & 1) as usize][..1 << bits];
        View { slots, shift: 64 - bits, state }
    }

    /// Changes whenever a view is out of date. Call [`fence`] with `Acquire` before comparing.
    #[inline(always)]
    pub(crate) fn state(&self) -> u64 {
        self.state.load(Ordering::Relaxed)
    }

    /// Makes all readers start again, because something that all lookups rest on has changed.
    pub(crate) fn invalidate(&self) {
        let state = self.state.load(Ordering::Relaxed);
        self.state.store(state + (2 << 8), Ordering::Release);
        fence(Ordering::Release);
    }
}

/// The writer's side: how full the table is.
#[derive(Debug, Default)]
pub(crate) struct TableFill {
    /// Slots that are not empty, gone ones too.
    used: usize,
    /// Runs.
    runs: usize,
}

impl TableFill {
    /// Whether one more run needs [`TableFill::rebuild`] first.
    pub(crate) fn is_short(&self, table: &HeadTable) -> bool {
        (self.used + 1) * 2 > table.view().slots.len()
    }

    /// Slots in the table.
    pub(crate) fn slots(table: &HeadTable) -> usize {
        table.view().slots.len()
    }

    /// Whether no bigger table can be made.
    pub(crate) fn is_full(&self) -> bool {
        (self.runs + 1) * 2 > 1 << BITS_MAX
    }

    /// Builds the table anew in the other region, of a size for what `runs` names (key, run, changes); `placed` is
    /// told where each run's slot lies.
    pub(crate) fn rebuild(
        &mut self,
        table: &HeadTable,
        runs: impl Iterator<Item = (u64, u32, u32)>,
        mut placed: impl FnMut(u32, u32),
    ) {
        let old = table.state.load(Ordering::Relaxed);
        let mut bits = BITS_MIN;
        while (self.runs + 1) * 4 > 1 << bits && bits < BITS_MAX {
            bits += 1;
        }
        let region = &table.regions[(old >> 8 & 1 ^ 1) as usize];
        // Readers of the table before the last one find the state changed: that store came before this fence.
        fence(Ordering::Release);
        clear(region, 1 << bits);
        let (mask, shift) = ((1_usize << bits) - 1, 64 - bits);
        self.runs = 0;
        for (key, run, changes) in runs {
            let mut at = home_of(key, shift);
            while region[at].load(Ordering::Relaxed) != EMPTY {
                at = (at + 1) & mask;
            }
            region[at].store(slot_of(key, run, changes), Ordering::Relaxed);
            placed(run, at as u32);
            self.runs += 1;
        }
        self.used = self.runs;
        let next = (old >> 8) + 1;
        table.state.store(next << 8 | u64::from(bits), Ordering::Release);
        fence(Ordering::Release);
        let last = &table.regions[(old >> 8 & 1) as usize];
        last.discard(0, last.len());
    }

    /// Makes a run known; answers where its slot lies.
    pub(crate) fn insert(&mut self, table: &HeadTable, key: u64, run: u32, changes: u32) -> u32 {
        let view = table.view();
        let mask = view.slots.len() - 1;
        let mut at = home_of(key, view.shift);
        loop {
            let slot = view.slots[at].load(Ordering::Relaxed);
            if slot == EMPTY || slot == GONE {
                self.used += usize::from(slot == EMPTY);
                self.runs += 1;
                view.slots[at].store(slot_of(key, run, changes), Ordering::Release);
                return at as u32;
            }
            at = (at + 1) & mask;
        }
    }

    /// Points a slot at a new state of a run, or at another run with the same first block.
    #[inline(always)]
    pub(crate) fn point(table: &HeadTable, at: u32, key: u64, run: u32, changes: u32) {
        table.view().slots[at as usize].store(slot_of(key, run, changes), Ordering::Release);
    }

    /// Whether a slot is the run's.
    pub(crate) fn names(table: &HeadTable, at: u32, run: u32) -> bool {
        let slot = table.view().slots[at as usize].load(Ordering::Relaxed);
        slot != EMPTY && slot != GONE && Found { at, slot }.run() == run
    }

    /// Forgets a run.
    pub(crate) fn remove(&mut self, table: &HeadTable, at: u32) {
        let view = table.view();
        let next = view.slots[(at as usize + 1) & (view.slots.len() - 1)].load(Ordering::Relaxed);
        let empties = next == EMPTY;
        view.slots[at as usize].store(if empties { EMPTY } else { GONE }, Ordering::Release);
        self.used -= usize::from(empties);
        self.runs -= 1;
    }
}

/// Zeroes the first `slots`: big regions by giving their pages back.
fn clear(region: &Region<AtomicU64>, slots: usize) {
    for slot in &region[..slots] {
        if slot.load(Ordering::Relaxed) != EMPTY {
            slot.store(EMPTY, Ordering::Relaxed);
        }
    }
}
