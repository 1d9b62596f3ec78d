//! Staying within memory: what is counted, what is forgotten at the limit, and what goes back to the system.

use crate::BlockIndex;
use crate::block_map::BlockMap;
use crate::coverage::Part;
use crate::head::{Head, Line};
use crate::head_table::TableFill;
use crate::runs::Meta;
use crate::segments::{Segment, of_slot, stretches_of};
use crate::shared::{ENTRIES_PER_UNIT, KEYS_PER_UNIT};

/// Units below which ranges are not worth compacting.
const COMPACT_FROM_UNITS: u64 = 1 << 14;

/// Bytes by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Keys of blocks.
    pub keys: u64,
    /// The writer's map from key to place.
    pub block_map: u64,
    /// Heads of runs, and what the writer knows of them.
    pub heads: u64,
    /// Lists of segments and spilled sets of workers.
    pub lists: u64,
    /// The table that lookups start at.
    pub head_table: u64,
    /// Children, workers, marks.
    pub other: u64,
}

impl Memory {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.keys + self.block_map + self.heads + self.lists + self.head_table + self.other
    }
}

/// Counts for tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Runs.
    pub runs: u64,
    /// Different blocks.
    pub blocks: u64,
    /// Blocks, each counted once per worker.
    pub entries: u64,
    /// Entries of all lists.
    pub segments: u64,
    /// Runs whose parent block is not in the index.
    pub orphans: u64,
}

impl BlockIndex {
    /// Memory in use: what was touched and not given back.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let runs = &self.runs;
        self.memory_of(runs.keys.touched(), runs.lists.touched(), runs.metas.len())
    }

    /// Memory that blocks which are there need; the rest waits in free lists.
    fn memory_needed(&self) -> u64 {
        let runs = &self.runs;
        self.memory_of(runs.keys.used(), runs.lists.used(), runs.live).total()
    }

    fn memory_of(&self, key_units: u64, list_units: u64, heads: usize) -> Memory {
        let runs = &self.runs;
        let child = size_of::<(u64, u32)>() + 1;
        Memory {
            keys: key_units * u64::from(KEYS_PER_UNIT) * 8,
            block_map: runs.map.bytes(),
            heads: (heads * (2 * size_of::<Line>() + size_of::<Meta>())) as u64,
            lists: list_units * u64::from(ENTRIES_PER_UNIT) * 8,
            head_table: (TableFill::slots(&runs.shared.table) * 8) as u64,
            other: (runs.children.capacity() * child) as u64
                + self.workers.bytes()
                + runs.namespaces.bytes()
                + self.marks.bytes(),
        }
    }

    /// Counts. Walks all runs: for status pages, not for requests.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let live = (1..self.runs.metas.len() as u32).filter(|run| self.runs.meta(*run).live);
        let segments = live.map(|run| self.runs.shared.list(self.runs.head(run).segments).len());
        Stats {
            runs: self.runs.live as u64,
            blocks: self.block_count(),
            entries: self.entries,
            segments: segments.sum::<usize>() as u64,
            orphans: self.runs.orphans as u64,
        }
    }

    /// Makes room for `more` new blocks below the limit on bytes, by forgetting what is coldest; answers whether
    /// there is.
    #[inline(always)]
    pub(crate) fn keep_below_bytes(&mut self, more: usize) -> bool {
        if self.runs.keys.touched() > 2 * self.runs.keys.used() + COMPACT_FROM_UNITS {
            self.compact();
        }
        self.limits.bytes_max == u64::MAX || self.forget_until(more)
    }

    fn forget_until(&mut self, more: usize) -> bool {
        loop {
            let short = self.runs.map.is_short_of(more);
            let map = if short { self.runs.map.growth_bytes() } else { 0 };
            let need = more as u64 * 9 + 512 + map;
            if self.memory_needed().saturating_add(need) <= self.limits.bytes_max {
                return true;
            }
            if !self.forget_coldest() {
                return false;
            }
        }
    }

    /// Forgets one run that has no children and was not written to for one round of the clock's hand.
    fn forget_coldest(&mut self) -> bool {
        for _ in 0..2 * self.runs.metas.len() {
            self.hand += 1;
            if self.hand >= self.runs.metas.len() {
                self.hand = 1;
            }
            let run = self.hand as u32;
            let Some(meta) = self.runs.metas.get_mut(run as usize) else { return false };
            if !meta.live || meta.children > 0 {
                continue;
            }
            if core::mem::take(&mut meta.recent) || self.is_marked(run) {
                continue;
            }
            self.forget_run(run);
            return true;
        }
        false
    }

    fn is_marked(&self, run: u32) -> bool {
        let meta = self.runs.meta(run);
        !self.marks.is_empty()
            && (meta.skipped..meta.end()).any(|at| self.marks.has(self.runs.key_at(run, at)))
    }

    fn forget_run(&mut self, run: u32) {
        let head = self.runs.head(run);
        let mut list = Vec::new();
        self.runs.load_list(&head, &mut list);
        self.abandon(run, &head, &list, 0, head.length);
        self.work.list.clear();
        self.reshape(run, head, &[]);
    }

    /// Books that all holders of a stretch lost it because the index forgets it.
    pub(crate) fn abandon(&mut self, run: u32, head: &Head, list: &[Segment], from: u32, to: u32) {
        let full = head.full_set(&self.runs.shared);
        let mut slots: Vec<u32> = full.slots().chain(list.iter().map(|s| s.slot())).collect();
        slots.sort_unstable();
        slots.dedup();
        let mut stretches = Vec::new();
        for slot in slots {
            let whole = full.words[slot as usize / 64] >> (slot % 64) & 1 == 1;
            debug_assert!(whole || !of_slot(list, slot).is_empty());
            stretches_of(list, slot, whole, head.length, &mut stretches);
            for stretch in &stretches {
                let (low, high) = (stretch.from.max(from), stretch.to.min(to));
                if low >= high {
                    continue;
                }
                for tier in stretch.tiers.iter() {
                    self.account(Part { run, from: low, to: high }, slot, tier, false);
                }
                self.count(slot, high - low, false);
                self.forgotten += u64::from(high - low);
            }
        }
    }

    /// Gives memory back after much has left.
    pub(crate) fn give_memory_back(&mut self) {
        if self.runs.map.is_too_big() {
            self.runs.rebuild_map(BlockMap::for_blocks(self.runs.map.blocks()));
            self.drop_dead_runs();
            self.runs.rebuild_table();
            self.runs.children.shrink_to_fit();
            self.compact();
        }
    }

    /// Lets go of run numbers at the end that no run has.
    fn drop_dead_runs(&mut self) {
        let metas = &mut self.runs.metas;
        let before = metas.len();
        while metas.len() > 1 && metas.last().is_some_and(|meta| !meta.live) {
            metas.pop();
        }
        let after = metas.len();
        metas.shrink_to_fit();
        self.runs.forget_numbers(after, before);
    }

    /// Copies keys and lists together into fresh ranges and gives the old ones back.
    pub(crate) fn compact(&mut self) {
        let old_keys = self.runs.keys.flip();
        let old_lists = self.runs.lists.flip();
        for run in 1..self.runs.metas.len() as u32 {
            if self.runs.meta(run).live {
                self.runs.move_all(run);
            }
        }
        let keys = |unit: u32| unit as usize * KEYS_PER_UNIT as usize;
        let lists = |unit: u32| unit as usize * ENTRIES_PER_UNIT as usize;
        let shared = &self.runs.shared;
        shared.keys.discard(keys(old_keys.start), keys(old_keys.end));
        shared.lists.discard(lists(old_lists.start), lists(old_lists.end));
    }
}
