//! The writer's view of runs: making, publishing, finding and dropping them.
//!
//! What readers see of a run changes in one place, [`Runs::publish`]. Everything else here is private to the writer:
//! where keys lie, who is whose child, which lists can be used again.

use core::ops::Range;

use mainstay_types::NamespaceId;

use crate::arena::{Arena, Piece};
use crate::block_map::{BlockMap, Place};
use crate::hasher::KeyMap;
use crate::head::{Head, WORDS, filter_bit};
use crate::head_table::{HeadTable, TableFill, line_of};
use crate::holders::HolderSet;
use crate::namespaces::Namespaces;
use crate::region::prefetch;
use crate::segments::Segment;
use crate::shared::{ENTRIES_PER_UNIT, KEY_UNITS, KEYS_PER_UNIT, LIST_UNITS, RUNS, Shared};
use crate::sync::{AtomicU64, Ordering, fence};

use std::sync::Arc;

const CHANGES_MAX: u32 = (1 << 25) - 1;
/// How far ahead the map's lines are fetched when many blocks come or go: what one takes to come from memory.
pub(crate) const AHEAD: usize = 24;
/// The same when the map is built anew, where each block takes less time.
const AHEAD_IN_REBUILD: usize = 48;

/// What the writer knows of a run besides its head, in one cache line. Offsets count from where its keys were put
/// first.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Meta {
    /// The block before the first one.
    pub(crate) parent: u64,
    /// Where offset 0 lies, in keys.
    pub(crate) base: u32,
    /// Offset of the first block: blocks before it are gone.
    pub(crate) skipped: u32,
    /// Blocks.
    pub(crate) length: u32,
    pub(crate) changes: u32,
    /// Workers that hold all of it.
    pub(crate) full: u32,
    /// Where its slot lies in the head table.
    pub(crate) at: u32,
    /// Runs that hang on one of its blocks.
    pub(crate) children: u32,
    /// The next and the last run with the same parent, 0 for none.
    pub(crate) sibling: u32,
    pub(crate) elder: u32,
    /// The run that the parent block is in, 0 for none.
    pub(crate) parent_run: u32,
    /// The number of its namespace.
    pub(crate) namespace: u32,
    /// Where its keys lie: first unit, and units.
    piece_start: u32,
    piece_units: u16,
    pub(crate) live: bool,
    /// It stands among the children of its parent.
    pub(crate) linked: bool,
    /// Its parent is not in the index, though it has one.
    pub(crate) orphan: bool,
    /// Written to since the hand of the clock came by.
    pub(crate) recent: bool,
}

const _: () = assert!(size_of::<Meta>() == 64);

impl Meta {
    const NONE: Self = Self {
        parent: 0,
        base: 0,
        skipped: 0,
        length: 0,
        changes: 0,
        full: 0,
        at: 0,
        children: 0,
        sibling: 0,
        elder: 0,
        parent_run: 0,
        namespace: 0,
        piece_start: 0,
        piece_units: 0,
        live: false,
        linked: false,
        orphan: false,
        recent: false,
    };

    /// Where its keys lie.
    pub(crate) fn piece(&self) -> Piece {
        Piece { start: self.piece_start, units: u32::from(self.piece_units) }
    }

    fn set_piece(&mut self, piece: Piece) {
        self.piece_start = piece.start;
        self.piece_units = u16::try_from(piece.units).expect("a run's keys fit 65,535 units");
    }

    /// The offset after the last one that there is room for.
    pub(crate) fn limit(&self) -> u32 {
        let end = (self.piece_start + u32::from(self.piece_units)) * KEYS_PER_UNIT;
        end.wrapping_sub(self.base)
    }

    /// The offset after the last block.
    #[inline(always)]
    pub(crate) fn end(&self) -> u32 {
        self.skipped + self.length
    }

    /// Where an offset lies, in keys.
    #[inline(always)]
    pub(crate) fn position(&self, offset: u32) -> u32 {
        self.base.wrapping_add(offset)
    }
}

/// All runs.
pub(crate) struct Runs {
    pub(crate) shared: Arc<Shared>,
    pub(crate) map: BlockMap,
    pub(crate) metas: Vec<Meta>,
    pub(crate) keys: Arena,
    pub(crate) lists: Arena,
    pub(crate) fill: TableFill,
    /// First run of those whose parent is this block.
    pub(crate) children: KeyMap<u64, u32>,
    pub(crate) orphans: usize,
    pub(crate) namespaces: Namespaces,
    free: Vec<u32>,
    /// Lists that no head names once the change at hand is published.
    dropped: Vec<u32>,
    /// The same for keys.
    dropped_keys: Vec<Piece>,
    pub(crate) live: usize,
    /// Keys in use at which huge pages are asked for next.
    widen_at: usize,
}

impl Runs {
    pub(crate) fn new() -> Self {
        Self {
            shared: Arc::new(Shared::new()),
            map: BlockMap::new(),
            metas: vec![Meta::NONE],
            keys: Arena::new(KEY_UNITS),
            lists: Arena::new(LIST_UNITS),
            fill: TableFill::default(),
            children: KeyMap::default(),
            orphans: 0,
            namespaces: Namespaces::default(),
            free: Vec::new(),
            dropped: Vec::new(),
            dropped_keys: Vec::new(),
            live: 0,
            widen_at: 1 << 17,
        }
    }

    fn table(&self) -> &HeadTable {
        &self.shared.table
    }

    #[inline(always)]
    pub(crate) fn meta(&self, run: u32) -> &Meta {
        &self.metas[run as usize]
    }

    #[inline(always)]
    pub(crate) fn meta_mut(&mut self, run: u32) -> &mut Meta {
        &mut self.metas[run as usize]
    }

    /// The head that readers see.
    #[inline(always)]
    pub(crate) fn head(&self, run: u32) -> Head {
        self.shared.heads[line_of(run, self.meta(run).changes)].load::<WORDS>()
    }

    #[inline(always)]
    pub(crate) fn key_at(&self, run: u32, offset: u32) -> u64 {
        self.shared.key(self.meta(run).position(offset))
    }

    /// The block before an offset: in the run, or the parent.
    pub(crate) fn key_before(&self, run: u32, offset: u32) -> u64 {
        let meta = self.meta(run);
        if offset > meta.skipped { self.key_at(run, offset - 1) } else { meta.parent }
    }

    /// Whether a run has the block at an offset; the place may be of long ago.
    #[inline(always)]
    pub(crate) fn is_at(&self, place: Place, key: u64) -> bool {
        let Some(meta) = self.metas.get(place.run as usize) else { return false };
        place.offset >= meta.skipped
            && place.offset < meta.end()
            && self.shared.key(meta.position(place.offset)) == key
    }

    /// Where a block lies.
    #[inline(always)]
    pub(crate) fn find(&self, key: u64) -> Option<Place> {
        let (metas, shared) = (&self.metas, &self.shared);
        self.map.find(key, |run, low| prove(metas, shared, run, low, key))
    }

    /// Fetches what [`Runs::find`] will need. Answers whether a single worker holds the run that the block seems to be
    /// in, `None` if it is in none.
    #[inline(always)]
    pub(crate) fn prefetch_runs(&self, key: u64) -> Option<bool> {
        let (metas, shared) = (&self.metas, &self.shared);
        let mut alone = None;
        self.map.find(key, |run, low| {
            let meta = &metas[run as usize];
            prefetch(&shared.heads, line_of(run, meta.changes));
            prefetch(&shared.keys, meta.position(candidate(meta, low)) as usize);
            alone = Some(meta.full <= 1);
            None
        });
        alone
    }

    /// Shows readers a changed head. Its first block must be the one it had.
    #[inline(always)]
    pub(crate) fn publish(&mut self, run: u32, mut head: Head) {
        let meta = &mut self.metas[run as usize];
        let old = line_of(run, meta.changes);
        head.filter |= self.shared.heads[old].filter();
        meta.changes = (meta.changes + 1) & CHANGES_MAX;
        meta.length = head.length;
        meta.recent = true;
        head.changes = meta.changes;
        let (at, changes) = (meta.at, meta.changes);
        self.shared.heads[line_of(run, changes)].store(&head);
        TableFill::point(self.table(), at, head.first, run, changes);
        self.release_lists();
    }

    /// Shows readers a head with another first block.
    pub(crate) fn publish_renamed(&mut self, run: u32, mut head: Head) {
        self.make_table_room();
        let meta = &mut self.metas[run as usize];
        meta.changes = (meta.changes + 1) & CHANGES_MAX;
        meta.length = head.length;
        head.changes = meta.changes;
        let (old_at, changes) = (meta.at, meta.changes);
        self.shared.heads[line_of(run, changes)].store(&head);
        let at = self.fill.insert(&self.shared.table, head.first, run, changes);
        // The old slot may have been taken over by the run that has the old first block now.
        if TableFill::names(&self.shared.table, old_at, run) {
            self.fill.remove(&self.shared.table, old_at);
        }
        self.metas[run as usize].at = at;
        self.release_lists();
    }

    /// A new run, unknown to readers until [`Runs::publish_new`]. `None` if there is no room for it.
    pub(crate) fn make(&mut self, blocks: u32, parent: u64, namespace: NamespaceId) -> Option<u32> {
        if self.fill.is_full() {
            return None;
        }
        self.make_table_room();
        if self.free.is_empty() && self.metas.len() >= RUNS {
            return None;
        }
        if self.live == 0 {
            self.namespaces.clear();
        }
        let namespace = self.namespaces.number(namespace)?;
        let piece = self.keys.take(blocks.div_ceil(KEYS_PER_UNIT))?;
        self.widen_pages();
        let run = self.free.pop().unwrap_or_else(|| {
            self.metas.push(Meta::NONE);
            self.metas.len() as u32 - 1
        });
        let changes = self.meta(run).changes;
        let base = piece.start * KEYS_PER_UNIT;
        let meta = self.meta_mut(run);
        *meta = Meta { base, changes, parent, namespace, live: true, recent: true, ..Meta::NONE };
        meta.set_piece(piece);
        self.live += 1;
        // Readers that still look at what this memory held before were sent elsewhere before this fence.
        fence(Ordering::Release);
        Some(run)
    }

    /// Asks for huge pages as the ranges grow.
    fn widen_pages(&mut self) {
        let keys = self.keys.touched() as usize * KEYS_PER_UNIT as usize;
        if keys >= self.widen_at {
            self.widen_at = keys.saturating_mul(2);
            self.shared.keys.widen_pages(keys);
            self.shared.heads.widen_pages(2 * self.metas.len());
        }
    }

    /// Gives back a run that [`Runs::make`] made and nobody saw.
    pub(crate) fn unmake(&mut self, run: u32) {
        let piece = self.meta(run).piece();
        self.keys.give(piece);
        self.meta_mut(run).live = false;
        self.free.push(run);
        self.live -= 1;
    }

    /// Shows readers a new run; `take_over` is the slot of a run that gives its first block up.
    pub(crate) fn publish_new(&mut self, run: u32, mut head: Head, take_over: Option<u32>) {
        let meta = &mut self.metas[run as usize];
        meta.changes = (meta.changes + 1) & CHANGES_MAX;
        meta.length = head.length;
        head.changes = meta.changes;
        let changes = meta.changes;
        self.shared.heads[line_of(run, changes)].store(&head);
        let at = match take_over {
            Some(at) => {
                TableFill::point(self.table(), at, head.first, run, changes);
                at
            }
            None => self.fill.insert(&self.shared.table, head.first, run, changes),
        };
        self.metas[run as usize].at = at;
        self.release_lists();
    }

    /// Drops a run whose blocks have left the map.
    pub(crate) fn drop_run(&mut self, run: u32) {
        let head = self.head(run);
        self.fill.remove(&self.shared.table, self.metas[run as usize].at);
        self.drop_list(head.segments);
        self.drop_list(head.spilled());
        self.release_lists();
        self.unlink(run);
        let meta = self.meta_mut(run);
        meta.live = false;
        meta.length = 0;
        meta.full = 0;
        let piece = meta.piece();
        self.keys.give(piece);
        self.free.push(run);
        self.live -= 1;
    }

    /// Moves a run's keys to a piece with room for `blocks`; offsets stay. The caller publishes `head`.
    pub(crate) fn move_keys(&mut self, run: u32, head: &mut Head, blocks: u32) -> bool {
        let Some(piece) = self.keys.take(blocks.div_ceil(KEYS_PER_UNIT)) else { return false };
        self.widen_pages();
        let meta = *self.meta(run);
        let start = piece.start * KEYS_PER_UNIT;
        fence(Ordering::Release);
        for at in 0..meta.length {
            let key = self.shared.key(meta.position(meta.skipped + at));
            self.shared.keys[(start + at) as usize].store(key, Ordering::Relaxed);
        }
        self.dropped_keys.push(meta.piece());
        let changed = self.meta_mut(run);
        changed.base = start.wrapping_sub(meta.skipped);
        changed.set_piece(piece);
        head.start = start;
        true
    }

    /// Moves keys and lists of a run into the ranges that are in use now.
    pub(crate) fn move_all(&mut self, run: u32) {
        let mut head = self.head(run);
        let length = head.length;
        // What lies in the range that is left is not given back piece by piece.
        let moved = self.move_keys(run, &mut head, length + length / 8);
        debug_assert!(moved, "as much was there before");
        self.dropped_keys.clear();
        let mut list = Vec::new();
        self.load_list(&head, &mut list);
        let set = (head.spilled() != 0).then(|| head.full_set(&self.shared));
        (head.segments, self.dropped) = (0, Vec::new());
        self.store_list(&mut head, &list);
        if let Some(set) = set {
            head.set_spill(0);
            self.store_full(&mut head, &set);
        }
        self.publish(run, head);
    }

    /// Numbers of runs from `after` on are not used any more.
    pub(crate) fn forget_numbers(&mut self, after: usize, before: usize) {
        self.free.retain(|run| (*run as usize) < after);
        self.free.shrink_to_fit();
        // Who comes next under one of these numbers starts counting its changes anew.
        self.shared.table.invalidate();
        self.shared.heads.discard(2 * after, 2 * before);
    }

    /// Makes sure that one more run fits into the head table.
    fn make_table_room(&mut self) {
        if self.fill.is_short(&self.shared.table) {
            self.rebuild_table();
        }
    }

    pub(crate) fn rebuild_table(&mut self) {
        let (shared, metas) = (&self.shared, &mut self.metas);
        let heads = &shared.heads;
        let known: Vec<(u64, u32, u32)> = metas
            .iter()
            .enumerate()
            .filter(|(_, meta)| meta.live && meta.length > 0)
            .map(|(run, meta)| {
                let run = run as u32;
                (heads[line_of(run, meta.changes)].first(), run, meta.changes)
            })
            .collect();
        self.fill.rebuild(&shared.table, known.into_iter(), |run, at| {
            metas[run as usize].at = at;
        });
    }

    /// Makes sure that `more` blocks fit into the map.
    #[inline(always)]
    pub(crate) fn make_map_room(&mut self, more: usize) {
        if self.map.is_short_of(more) {
            self.rebuild_map(self.map.bigger(self.map.blocks() + more));
        }
    }

    /// Puts all blocks into another map.
    #[cold]
    pub(crate) fn rebuild_map(&mut self, mut map: BlockMap) {
        for (run, meta) in self.metas.iter().enumerate().filter(|(_, meta)| meta.live) {
            let run = run as u32;
            let keys = meta.position(meta.skipped) as usize..;
            let keys = &self.shared.keys[keys][..meta.length as usize];
            for (at, key) in keys.iter().enumerate() {
                if let Some(ahead) = keys.get(at + AHEAD_IN_REBUILD) {
                    map.prefetch(ahead.load(Ordering::Relaxed));
                }
                let offset = meta.skipped + at as u32;
                map.insert(key.load(Ordering::Relaxed), Place { run, offset });
            }
        }
        self.map = map;
    }

    /// The list of a head, as values.
    pub(crate) fn load_list(&self, head: &Head, out: &mut Vec<Segment>) {
        out.clear();
        out.extend(
            self.shared.list(head.segments).iter().map(|e| Segment(e.load(Ordering::Relaxed))),
        );
    }

    /// Gives a head a new list. The old one stays until the head is published.
    pub(crate) fn store_list(&mut self, head: &mut Head, list: &[Segment]) {
        self.drop_list(head.segments);
        head.segments = self.put_list(list.iter().map(|s| s.0), list.len());
    }

    /// Sets who holds all of a run. The old spilled set stays until the head is published.
    pub(crate) fn store_full(&mut self, head: &mut Head, set: &HolderSet) {
        self.drop_list(head.spilled());
        if let Some(words) = head.pack(set) {
            let position = self.put_list(words.into_iter(), words.len());
            head.set_spill(position);
        }
    }

    /// Sets or clears one worker's bit.
    #[inline(always)]
    pub(crate) fn set_full(&mut self, head: &mut Head, slot: u32, on: bool) {
        if head.set_full_narrow(slot, on) {
            return;
        }
        let mut set = head.full_set(&self.shared);
        let (word, bit) = (slot as usize / 64, 1_u64 << (slot % 64));
        if on {
            set.words[word] |= bit;
        } else {
            set.words[word] &= !bit;
        }
        self.store_full(head, &set);
    }

    fn put_list(&mut self, entries: impl Iterator<Item = u64>, count: usize) -> u32 {
        if count == 0 {
            return 0;
        }
        let position = self.open_list(count);
        let places = self.shared.list(position);
        for (place, entry) in places.iter().zip(entries) {
            place.store(entry, Ordering::Relaxed);
        }
        position
    }

    /// A list of `count` entries, more than none, that are yet to be written.
    fn open_list(&mut self, count: usize) -> u32 {
        let units = (count as u32 + 1).div_ceil(ENTRIES_PER_UNIT);
        // Lists are bounded by workers and blocks; 16 GB of them are reserved.
        let piece = self.lists.take(units).expect("the arena of lists outlasts memory");
        let at = piece.start as usize * ENTRIES_PER_UNIT as usize;
        // Readers that still look at what this memory held before were sent elsewhere before this fence.
        fence(Ordering::Release);
        let first = u64::from(piece.units) << 32 | count as u64;
        self.shared.lists[at].store(first, Ordering::Relaxed);
        piece.start
    }

    /// Gives a head its list with other entries in a range. The old list stays until the head is published.
    pub(crate) fn splice_list(&mut self, head: &mut Head, range: Range<usize>, with: &[Segment]) {
        let old = head.segments;
        let count = self.shared.list(old).len() - range.len() + with.len();
        self.drop_list(old);
        head.segments = if count == 0 { 0 } else { self.open_list(count) };
        let (old, new) = (self.shared.list(old), self.shared.list(head.segments));
        if new.is_empty() {
            return;
        }
        let (before, rest) = new.split_at(range.start);
        let (own, after) = rest.split_at(with.len());
        copy_entries(&old[..range.start], before);
        for (place, segment) in own.iter().zip(with) {
            place.store(segment.0, Ordering::Relaxed);
        }
        copy_entries(&old[range.end..], after);
    }

    /// Gives a head its list with more entries, sorted ones. The old list stays until the head is published.
    pub(crate) fn merge_list(&mut self, head: &mut Head, with: &[Segment]) {
        let old = head.segments;
        let count = self.shared.list(old).len() + with.len();
        if with.is_empty() {
            return;
        }
        self.drop_list(old);
        head.segments = self.open_list(count);
        let (old, new) = (self.shared.list(old), self.shared.list(head.segments));
        let mut taken = 0;
        for (before, segment) in with.iter().enumerate() {
            let at = place_in(old, *segment);
            copy_entries(&old[taken..at], &new[taken + before..]);
            new[at + before].store(segment.0, Ordering::Relaxed);
            taken = at;
        }
        copy_entries(&old[taken..], &new[taken + with.len()..]);
    }

    fn drop_list(&mut self, position: u32) {
        if position != 0 {
            self.dropped.push(position);
        }
    }

    #[inline(always)]
    fn release_lists(&mut self) {
        if !self.dropped.is_empty() || !self.dropped_keys.is_empty() {
            self.release_dropped();
        }
    }

    #[cold]
    fn release_dropped(&mut self) {
        while let Some(piece) = self.dropped_keys.pop() {
            self.keys.give(piece);
        }
        while let Some(start) = self.dropped.pop() {
            let at = start as usize * ENTRIES_PER_UNIT as usize;
            let units = (self.shared.lists[at].load(Ordering::Relaxed) >> 32) as u32;
            self.lists.give(Piece { start, units });
        }
    }

    /// Whether a chain starts with this run.
    fn is_first(&self, run: u32) -> bool {
        let meta = self.meta(run);
        meta.parent == self.namespaces.id(meta.namespace).0 as u64
    }

    /// Hangs a run on its parent block, wherever that is. The first run of a chain has none.
    pub(crate) fn link(&mut self, run: u32) {
        if !self.is_first(run) {
            self.link_to(run, self.find(self.meta(run).parent));
        }
    }

    /// Hangs a run on its parent block, which is in the index if it has a place.
    pub(crate) fn link_to(&mut self, run: u32, place: Option<Place>) {
        if self.is_first(run) {
            return;
        }
        let parent = self.meta(run).parent;
        let sibling = self.children.insert(parent, run).unwrap_or(0);
        if sibling != 0 {
            self.meta_mut(sibling).elder = run;
        }
        let meta = self.meta_mut(run);
        (meta.sibling, meta.elder, meta.linked) = (sibling, 0, true);
        (meta.orphan, meta.parent_run) = (place.is_none(), place.map_or(0, |place| place.run));
        match place {
            Some(place) => {
                self.meta_mut(place.run).children += 1;
                let bit = filter_bit(self.key_at(run, self.meta(run).skipped));
                self.add_filter(place.run, bit);
            }
            None => self.orphans += 1,
        }
    }

    /// Takes a run off its parent.
    pub(crate) fn unlink(&mut self, run: u32) {
        let Meta { parent, sibling, elder, parent_run, orphan, linked, .. } = *self.meta(run);
        if !linked {
            return;
        }
        if sibling != 0 {
            self.meta_mut(sibling).elder = elder;
        }
        if elder != 0 {
            self.meta_mut(elder).sibling = sibling;
        } else if sibling != 0 {
            self.children.insert(parent, sibling);
        } else {
            self.children.remove(&parent);
        }
        let meta = self.meta_mut(run);
        (meta.sibling, meta.elder, meta.parent_run) = (0, 0, 0);
        (meta.linked, meta.orphan) = (false, false);
        if orphan {
            self.orphans -= 1;
        } else if let Some(before) = self.metas.get_mut(parent_run as usize) {
            before.children = before.children.saturating_sub(1);
        }
    }

    /// The block that a run hangs on, if it is the last one of its run.
    pub(crate) fn tail_before(&self, run: u32) -> Option<Place> {
        let Meta { parent, parent_run, .. } = *self.meta(run);
        let before = self.metas.get(parent_run as usize)?;
        let place = Place { run: parent_run, offset: before.end().checked_sub(1)? };
        (parent_run != 0 && self.is_at(place, parent)).then_some(place)
    }

    /// Lets readers of `run` look for children whose first blocks have these bits.
    #[inline(always)]
    pub(crate) fn add_filter(&self, run: u32, bits: u32) {
        self.shared.heads[line_of(run, self.meta(run).changes)].add_filter(bits);
    }

    /// A block came to `run`: its children, orphans so far or another run's, are that run's now. Answers the bits
    /// that the run's filter needs for them.
    #[must_use]
    pub(crate) fn adopt(&mut self, key: u64, run: u32) -> u32 {
        let mut at = self.children.get(&key).copied().unwrap_or(0);
        let mut bits = 0;
        while at != 0 {
            bits |= filter_bit(self.key_at(at, self.meta(at).skipped));
            let child = self.meta_mut(at);
            child.parent_run = run;
            let (orphan, next) = (core::mem::take(&mut child.orphan), child.sibling);
            self.orphans -= usize::from(orphan);
            self.meta_mut(run).children += 1;
            at = next;
        }
        bits
    }

    /// A block leaves `run`: for good, or for another run.
    pub(crate) fn disown(&mut self, key: u64, run: u32, for_good: bool) {
        let mut at = self.children.get(&key).copied().unwrap_or(0);
        while at != 0 {
            let child = self.meta_mut(at);
            let next = child.sibling;
            if for_good {
                debug_assert!(!child.orphan, "its parent was here until now");
                (child.orphan, child.parent_run) = (true, 0);
                self.orphans += 1;
            }
            let meta = self.meta_mut(run);
            meta.children = meta.children.saturating_sub(1);
            at = next;
        }
    }
}

/// Where an entry lies in a list, or would.
#[inline(always)]
pub(crate) fn place_in(list: &[AtomicU64], segment: Segment) -> usize {
    list.partition_point(|entry| entry.load(Ordering::Relaxed) < segment.0)
}

#[inline(always)]
fn copy_entries(from: &[AtomicU64], to: &[AtomicU64]) {
    for (to, from) in to.iter().zip(from) {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// The first offset of a run that ends in this byte.
#[inline(always)]
fn candidate(meta: &Meta, low: u8) -> u32 {
    let offset = meta.skipped & !0xff | u32::from(low);
    if offset < meta.skipped { offset + 0x100 } else { offset }
}

#[inline(always)]
pub(crate) fn prove(metas: &[Meta], shared: &Shared, run: u32, low: u8, key: u64) -> Option<u32> {
    let meta = &metas[run as usize];
    let (mut offset, end) = (candidate(meta, low), meta.end());
    if offset >= end {
        return None;
    }
    let is_at = |offset: u32| shared.key(meta.position(offset)) == key;
    // Chains go on at their last block, and lose that one first.
    let last = end - 1 - ((end - 1).wrapping_sub(u32::from(low)) & 0xff);
    if is_at(last) {
        return Some(last);
    }
    while offset < last {
        if is_at(offset) {
            return Some(offset);
        }
        offset += 0x100;
    }
    None
}
