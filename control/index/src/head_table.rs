//! From the key of a run's first block to its head: what every step of a lookup starts with.
//!
//! Open addressing whose entries are the heads themselves, one cache line each, half full at most: a step costs one
//! line. Growing builds the other of two regions and then moves one word that says which region counts; a reader
//! checks that word last, so it never takes a half-built table's word for an answer.

use crate::head::{Control, Head, Line};
use crate::region::{Region, prefetch};
use crate::sync::{AtomicU64, Ordering, fence};

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

/// Where readers look runs up.
pub(crate) struct HeadTable {
    regions: [Region<Line>; 2],
    /// Log2 of the entries in the low byte; above it a count whose lowest bit names the region.
    state: AtomicU64,
}

/// A table as it was when a lookup began.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    lines: &'a [Line],
    shift: u32,
    state: u64,
}

/// A head that was found: where it lies, and what its control word said.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Found {
    pub(crate) at: u32,
    pub(crate) control: Control,
}

#[inline(always)]
fn home_of(key: u64, shift: u32) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> shift) as usize
}

impl<'a> View<'a> {
    #[inline(always)]
    pub(crate) fn prefetch(&self, key: u64) {
        prefetch(self.lines, home_of(key, self.shift));
    }

    /// The head of the run whose first block is `key`. What is there says so at one instant, and so does nothing
    /// there: a key lies in one line at most, and a line's key changes only while nobody lives in it.
    #[inline(always)]
    pub(crate) fn find(&self, key: u64) -> Option<Found> {
        let mask = self.lines.len() - 1;
        let mut at = home_of(key, self.shift);
        // Bounded, because a reader may be looking at a region that is being refilled.
        let mut left = mask + 1;
        while left > 0 {
            let line = &self.lines[at];
            let control = line.control();
            if line.first() == key && control.is_live() {
                return Some(Found { at: at as u32, control });
            }
            if !control.is_used() {
                return None;
            }
            at = (at + 1) & mask;
            left -= 1;
        }
        None
    }

    #[inline(always)]
    pub(crate) fn line(&self, at: u32) -> &'a Line {
        &self.lines[at as usize]
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
        let lines = &self.regions[(state >> 8 & 1) as usize][..1 << bits];
        View { lines, shift: 64 - bits, state }
    }

    /// The line at a place, for the writer.
    #[inline(always)]
    pub(crate) fn line(&self, at: u32) -> &Line {
        let state = self.state.load(Ordering::Relaxed);
        &self.regions[(state >> 8 & 1) as usize][at as usize]
    }

    /// Fetches the line at a place, if there is one.
    #[inline(always)]
    pub(crate) fn prefetch(&self, at: u32) {
        let state = self.state.load(Ordering::Relaxed);
        prefetch(&self.regions[(state >> 8 & 1) as usize], at as usize);
    }

    /// Lines in the table.
    pub(crate) fn lines(&self) -> usize {
        self.view().lines.len()
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
    /// Lines that probes do not stop at, empty ones too.
    used: usize,
    /// Runs.
    runs: usize,
    /// Whether the region that is not in use has lines which somebody wrote.
    dirty: bool,
}

impl TableFill {
    /// Whether so many more runs need [`TableFill::rebuild`] first.
    pub(crate) fn is_short_of(&self, table: &HeadTable, more: usize) -> bool {
        (self.used + more) * 2 > table.lines()
    }

    /// Whether no bigger table can be made.
    pub(crate) fn is_full(&self) -> bool {
        (self.runs + 1) * 2 > 1 << BITS_MAX
    }

    /// Log2 of the lines of a table for the runs that there are: a quarter full at most, and more than an eighth.
    fn bits_wanted(&self) -> u32 {
        let mut bits = BITS_MIN;
        while (self.runs + 1) * 4 > 1 << bits && bits < BITS_MAX {
            bits += 1;
        }
        bits
    }

    /// How many more bytes the table has after [`TableFill::rebuild`].
    pub(crate) fn growth_bytes(&self, table: &HeadTable) -> u64 {
        ((1_usize << self.bits_wanted()).saturating_sub(table.lines()) * size_of::<Line>()) as u64
    }

    /// Builds the table anew in the other region, of a size for its runs. `places` are where they lie, and are told
    /// where they lie afterwards.
    pub(crate) fn rebuild<'a>(
        &mut self,
        table: &HeadTable,
        places: impl Iterator<Item = &'a mut u32>,
    ) {
        let old = table.view();
        let bits = self.bits_wanted();
        let [last, region] = match old.state >> 8 & 1 {
            0 => [&table.regions[0], &table.regions[1]],
            _ => [&table.regions[1], &table.regions[0]],
        };
        // Readers of the table before the last one find the state changed: that store came before this fence.
        fence(Ordering::Release);
        region.widen_pages(1 << bits);
        if self.dirty {
            region[..1 << bits].iter().for_each(Line::clear);
        }
        let lines = View { lines: &region[..1 << bits], shift: 64 - bits, state: 0 };
        self.runs = 0;
        for place in places {
            let head = old.line(*place).head();
            *place = lines.free(head.first);
            lines.line(*place).fill(&head);
            self.runs += 1;
        }
        self.used = self.runs;
        let next = (old.state >> 8) + 1;
        table.state.store(next << 8 | u64::from(bits), Ordering::Release);
        fence(Ordering::Release);
        self.dirty = !last.discard(0, last.len());
    }

    /// Makes a run known; answers where it lies.
    pub(crate) fn insert(&mut self, table: &HeadTable, head: &Head) -> u32 {
        let view = table.view();
        let at = view.free(head.first);
        let line = view.line(at);
        self.used += usize::from(!line.control().is_used());
        self.runs += 1;
        line.fill(head);
        at
    }

    /// Forgets a run.
    pub(crate) fn remove(&mut self, table: &HeadTable, at: u32) {
        let view = table.view();
        let next = (at as usize + 1) & (view.lines.len() - 1);
        let used = view.lines[next].control().is_used();
        view.line(at).vacate(used);
        self.used -= usize::from(!used);
        self.runs -= 1;
    }
}

impl View<'_> {
    /// Where a run with this first block can move in.
    fn free(&self, key: u64) -> u32 {
        let mask = self.lines.len() - 1;
        let mut at = home_of(key, self.shift);
        while self.lines[at].control().is_live() {
            at = (at + 1) & mask;
        }
        at as u32
    }
}
