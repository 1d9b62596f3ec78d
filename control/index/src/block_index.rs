//! The index itself: the one writer of a table of runs, and what it answers about them.
//!
//! Everything that leaves here as a list is sorted, so that no hash table's order can reach a log, an image or
//! another member.

use std::sync::Arc;

use mainstay_types::{BlockEvent, NamespaceId, Tier, WorkerId};

use crate::block_map::Place;
use crate::coverage::Part;
use crate::marks::Marks;
use crate::reader::IndexReader;
use crate::runs::Runs;
use crate::segments::{Edit, Segment, Stretch, stretches_of};
use crate::shared::own_number_bit;
use crate::sync::{Ordering, fence};
use crate::workers::{Claim, Workers};
use crate::{BlockName, Holder, Overlap, TierSet};

/// What an event changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Blocks that the worker did not hold before.
    pub added: u64,
    /// Blocks that the worker holds no more in any tier.
    pub removed: u64,
    /// Blocks that the index had no room for.
    pub refused: u64,
}

impl Applied {
    pub(crate) fn add(&mut self, more: Self) {
        self.added += more.added;
        self.removed += more.removed;
        self.refused += more.refused;
    }
}

/// A run record named a block that the index does not have; send the blocks themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownBlock;

/// How much an index may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexLimits {
    /// Blocks, each counted once per worker that holds it. New ones beyond are refused, in order, so that replicas
    /// that apply the same events stay equal.
    pub entries_max: u64,
    /// Bytes of memory. To stay below, the run that was written to longest ago and has no children is forgotten,
    /// unless one of its blocks carries a mark. What stays equal only by equal memory does not belong under this
    /// limit: replicas of a log set `entries_max`.
    pub bytes_max: u64,
}

impl Default for IndexLimits {
    fn default() -> Self {
        Self { entries_max: u64::MAX, bytes_max: u64::MAX }
    }
}

/// Buffers that are kept between calls.
#[derive(Default)]
pub(crate) struct Work {
    pub(crate) list: Vec<Segment>,
    pub(crate) before: Vec<Stretch>,
    pub(crate) edit: Edit,
    pub(crate) survivors: Vec<(u32, u32)>,
}

/// Which worker holds which block where.
pub struct BlockIndex {
    pub(crate) runs: Runs,
    pub(crate) workers: Workers,
    pub(crate) marks: Marks,
    pub(crate) limits: IndexLimits,
    /// Blocks held, each counted once per worker.
    pub(crate) entries: u64,
    pub(crate) refused: u64,
    pub(crate) forgotten: u64,
    /// Where the search for the coldest run goes on.
    pub(crate) hand: usize,
    /// The event at hand may not make blocks.
    pub(crate) out_of_bytes: bool,
    pub(crate) work: Work,
}

impl BlockIndex {
    /// An empty index that holds `entries_max` blocks at most, each counted once per worker that holds it.
    #[must_use]
    pub fn new(entries_max: u64) -> Self {
        Self::with_limits(IndexLimits { entries_max, ..IndexLimits::default() })
    }

    /// An empty index.
    #[must_use]
    pub fn with_limits(limits: IndexLimits) -> Self {
        Self {
            runs: Runs::new(),
            workers: Workers::default(),
            marks: Marks::default(),
            limits,
            entries: 0,
            refused: 0,
            forgotten: 0,
            hand: 0,
            out_of_bytes: false,
            work: Work::default(),
        }
    }

    /// A reader of this index, for any thread. It outlives the index and then answers what it was.
    #[must_use]
    pub fn reader(&self) -> IndexReader {
        IndexReader::new(Arc::clone(&self.runs.shared))
    }

    /// Takes in one event of `worker`. What is known already and what was never there changes nothing.
    pub fn apply(&mut self, worker: WorkerId, event: &BlockEvent) -> Applied {
        match event {
            BlockEvent::Stored { namespace, parent, blocks, tier } => {
                self.store(worker, *namespace, parent.key(), blocks, *tier)
            }
            BlockEvent::Removed { blocks, tier } => self.remove(worker, blocks, *tier),
            BlockEvent::Truncated { tail, count, tier } => {
                self.truncate(worker, *tail, *count, *tier)
            }
            BlockEvent::Cleared => {
                Applied { removed: self.remove_worker(worker), ..Applied::default() }
            }
        }
    }

    /// The slot of a worker that is about to hold something.
    #[inline(always)]
    pub(crate) fn claim(&mut self, worker: WorkerId) -> Option<u32> {
        match self.workers.claim(worker) {
            Claim::Known(slot) => Some(slot),
            Claim::New(slot) => {
                self.open_slot(slot, worker);
                Some(slot)
            }
            Claim::Full => None,
        }
    }

    fn open_slot(&mut self, slot: u32, worker: WorkerId) {
        let shared = &self.runs.shared;
        // Who sees the slot's new worker sees that the last one's runs have gone, and looks again.
        fence(Ordering::Release);
        let words = slot / 64 + 1;
        if words > shared.words.load(Ordering::Relaxed) {
            shared.words.store(words, Ordering::Relaxed);
        }
        if slot != worker.0 {
            let word = 1 << own_number_bit(slot as usize / 64);
            let own = shared.own_numbers.load(Ordering::Relaxed);
            shared.own_numbers.store(own & !word, Ordering::Relaxed);
        }
        shared.worker_ids[slot as usize].store(u64::from(worker.0) + 1, Ordering::Relaxed);
        // Whoever looks up now may have read the slot's last worker.
        shared.table.invalidate();
    }

    /// A worker holds these blocks, a stretch of one chain after `parent`, in a tier.
    pub fn store<N: BlockName>(
        &mut self,
        worker: WorkerId,
        namespace: NamespaceId,
        parent: u64,
        blocks: &[N],
        tier: Tier,
    ) -> Applied {
        let mut applied = Applied::default();
        if blocks.is_empty() {
            return applied;
        }
        let Some(slot) = self.claim(worker) else {
            applied.refused = blocks.len() as u64;
            self.refused = self.refused.saturating_add(applied.refused);
            return applied;
        };
        self.out_of_bytes = !self.keep_below_bytes(blocks.len());
        self.store_stretch(slot, namespace, parent, blocks, tier, &mut applied);
        self.refused = self.refused.saturating_add(applied.refused);
        applied
    }

    /// A worker holds these blocks no more in a tier; any order, but neighbours in one go are cheaper.
    pub fn remove<N: BlockName>(&mut self, worker: WorkerId, blocks: &[N], tier: Tier) -> Applied {
        let mut applied = Applied::default();
        let Some(slot) = self.workers.slot_of(worker) else { return applied };
        let mut at = 0;
        let mut expected: Option<Place> = None;
        while at < blocks.len() {
            let key = blocks[at].key();
            let place = match expected.filter(|place| self.runs.is_at(*place, key)) {
                Some(place) => place,
                None => match self.runs.find(key) {
                    Some(place) => place,
                    None => {
                        at += 1;
                        continue;
                    }
                },
            };
            let (low, high, count) = self.neighbours(place, &blocks[at..]);
            let skipped = self.runs.meta(place.run).skipped;
            let part = Part { run: place.run, from: low - skipped, to: high + 1 - skipped };
            expected = (low > skipped).then(|| Place { run: place.run, offset: low - 1 });
            applied.removed += u64::from(self.uncover(part, slot, tier));
            at += count;
        }
        if self.runs.map.is_too_big() {
            self.give_memory_back();
        }
        applied
    }

    /// How far the named blocks go on as neighbours in the run, downward as a rule: offsets and how many names.
    #[inline(always)]
    fn neighbours<N: BlockName>(&self, place: Place, names: &[N]) -> (u32, u32, usize) {
        let meta = self.runs.meta(place.run);
        let shared = &self.runs.shared;
        let below = (place.offset - meta.skipped) as usize;
        let names_below = &names[1..names.len().min(below + 1)];
        let down = shared.equal_downward(meta.position(place.offset), names_below);
        let low = place.offset - down as u32;
        let (mut high, mut count) = (place.offset, 1 + down);
        if down == 0 {
            while high + 1 < meta.end()
                && count < names.len()
                && shared.key(meta.position(high + 1)) == names[count].key()
            {
                high += 1;
                count += 1;
            }
        }
        (low, high, count)
    }

    /// Forgets all blocks of a worker; answers how many there were.
    pub fn remove_worker(&mut self, worker: WorkerId) -> u64 {
        let Some(slot) = self.workers.slot_of(worker) else { return 0 };
        let count = self.workers.state(slot).held;
        let mut left = count;
        while left > 0 {
            self.clear_runs(slot);
            let now = self.workers.state(slot).held;
            if now == left {
                break;
            }
            left = now;
        }
        self.give_memory_back();
        count - left
    }

    /// Goes once through all runs. Those that are made meanwhile come from cutting what is being cleared; one that
    /// took a number which was passed already is for the next time.
    fn clear_runs(&mut self, slot: u32) {
        let mut run = 1;
        while (run as usize) < self.runs.metas.len() && self.workers.state(slot).held > 0 {
            self.clear_run(run, slot);
            run += 1;
        }
    }

    /// A worker holds nothing of a run any more.
    fn clear_run(&mut self, run: u32, slot: u32) {
        for tier in Tier::ALL {
            let meta = self.runs.meta(run);
            if !meta.live || meta.length == 0 {
                return;
            }
            let head = self.runs.head(run);
            if head.segments == 0 && !head.is_full(&self.runs.shared, slot) {
                return;
            }
            self.uncover(Part { run, from: 0, to: head.length }, slot, tier);
        }
    }

    /// Whether `worker` holds the block in any tier.
    #[must_use]
    pub fn holds(&self, worker: WorkerId, name: impl BlockName) -> bool {
        !self.tiers(worker, name).is_empty()
    }

    /// Where `worker` holds the block; empty if nowhere.
    #[must_use]
    pub fn tiers(&self, worker: WorkerId, name: impl BlockName) -> TierSet {
        let Some(slot) = self.workers.slot_of(worker) else { return TierSet::default() };
        self.runs.find(name.key()).map_or(TierSet::default(), |place| self.tiers_at(place, slot))
    }

    pub(crate) fn tiers_at(&self, place: Place, slot: u32) -> TierSet {
        let head = self.runs.head(place.run);
        let full = head.is_full(&self.runs.shared, slot);
        if head.segments == 0 {
            return if full { TierSet::only(Tier::Device) } else { TierSet::default() };
        }
        let (mut list, mut stretches) = (Vec::new(), Vec::new());
        self.runs.load_list(&head, &mut list);
        stretches_of(&list, slot, full, head.length, &mut stretches);
        let at = place.offset - self.runs.meta(place.run).skipped;
        stretches
            .iter()
            .find(|stretch| stretch.from <= at && at < stretch.to)
            .map_or(TierSet::default(), |stretch| stretch.tiers)
    }

    /// Everybody who holds the block, sorted by worker.
    #[must_use]
    pub fn holders(&self, name: impl BlockName) -> Vec<Holder> {
        let Some(place) = self.runs.find(name.key()) else { return Vec::new() };
        let mut all: Vec<Holder> = self
            .holder_slots(place.run)
            .into_iter()
            .map(|slot| (slot, self.tiers_at(place, slot)))
            .filter(|(_, tiers)| !tiers.is_empty())
            .filter_map(|(slot, tiers)| {
                Some(Holder { worker: self.workers.state(slot).id?, tiers })
            })
            .collect();
        all.sort_unstable_by_key(|holder| holder.worker);
        all
    }

    /// The slots of all who hold something of a run.
    pub(crate) fn holder_slots(&self, run: u32) -> Vec<u32> {
        let head = self.runs.head(run);
        let mut slots: Vec<u32> = head.full_set(&self.runs.shared).slots().collect();
        let mut list = Vec::new();
        self.runs.load_list(&head, &mut list);
        slots.extend(list.iter().map(|segment| segment.slot()));
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    /// How many of `names` the worker holds, with gaps or without. A block named twice counts twice.
    #[must_use]
    pub fn held_of<N: BlockName>(&self, worker: WorkerId, names: &[N]) -> u64 {
        names.iter().filter(|name| self.holds(worker, **name)).count() as u64
    }

    /// For each worker that holds the first block of `prefix`, how many leading blocks it holds without a gap,
    /// sorted by worker.
    #[must_use]
    pub fn lookup<N: BlockName>(&self, prefix: &[N]) -> Vec<Overlap> {
        let mut found = Vec::new();
        self.reader().lookup_into(prefix, &mut found);
        found.sort_unstable_by_key(|overlap| overlap.worker);
        found
    }

    /// How many different blocks are held anywhere.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        self.runs.map.blocks() as u64
    }

    /// How many blocks are held, each counted once per worker: what [`IndexLimits::entries_max`] is about.
    #[must_use]
    pub fn held_count(&self) -> u64 {
        self.entries
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> IndexLimits {
        self.limits
    }

    /// How many blocks were refused for want of room, ever. More than 0 means: raise the limit.
    #[must_use]
    pub fn refused_blocks(&self) -> u64 {
        self.refused
    }

    /// How many blocks (each counted once per worker) were forgotten to stay below [`IndexLimits::bytes_max`].
    #[must_use]
    pub fn forgotten_blocks(&self) -> u64 {
        self.forgotten
    }

    /// How many blocks a worker holds.
    #[must_use]
    pub fn worker_block_count(&self, worker: WorkerId) -> u64 {
        self.workers.slot_of(worker).map_or(0, |slot| self.workers.state(slot).held)
    }

    /// The workers that hold something, in order.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> {
        self.workers.holding().into_iter().map(|(id, _)| id)
    }

    /// The sum of [`crate::entry_digest`] over what a worker holds; 0 for nothing. Order does not matter.
    #[must_use]
    pub fn digest(&self, worker: WorkerId) -> u64 {
        self.workers.slot_of(worker).map_or(0, |slot| self.workers.state(slot).digest)
    }

    /// Puts back the counter of an image.
    pub fn restore_refused(&mut self, refused_blocks: u64) {
        self.refused = refused_blocks;
    }

    /// Fetches what an event that names this block will look at first. Call it for all events of a batch, then
    /// [`BlockIndex::prefetch_runs`] for all, then apply them; [`BlockIndex::apply_batch`] does so and more.
    #[inline(always)]
    pub fn prefetch(&self, key: u64) {
        self.runs.map.prefetch(key);
    }

    /// The second round of [`BlockIndex::prefetch`].
    #[inline(always)]
    pub fn prefetch_runs(&self, key: u64) {
        self.runs.prefetch_runs(key);
    }
}

impl core::fmt::Debug for BlockIndex {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("BlockIndex")
            .field("blocks", &self.block_count())
            .field("entries", &self.entries)
            .field("runs", &self.runs.live)
            .finish_non_exhaustive()
    }
}
