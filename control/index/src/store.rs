//! Storing: following a chain through the runs that have it already, and making blocks where they end.

use mainstay_types::{NamespaceId, Tier, WorkerId};

use crate::block_index::{Applied, UnknownBlock};
use crate::block_map::Place;
use crate::coverage::Part;
use crate::head::{Head, RUN_BLOCKS_MAX};
use crate::runs::{AHEAD, prove};
use crate::segments::{Segment, Stretch, push, put_stretches, stretches_of};
use crate::sync::{Ordering, fence};
use crate::{BlockIndex, BlockName, TierSet};

/// A run grows in place while so few workers hold all of it; each of the others costs a segment.
pub(crate) const GROW_HOLDERS_MAX: u32 = 4;

/// Events of fewer blocks do not look whether the run can be joined with the one before it.
const MERGE_FROM_BLOCKS: usize = 8;
/// Blocks that one run record may name: 16 million tokens. Parents that a liar made a circle of end here.
const CHAIN_BLOCKS_MAX: u32 = 1 << 20;

/// Who stores what where.
#[derive(Clone, Copy)]
struct Store {
    slot: u32,
    namespace: NamespaceId,
    tier: Tier,
}

impl BlockIndex {
    pub(crate) fn store_stretch<N: BlockName>(
        &mut self,
        slot: u32,
        namespace: NamespaceId,
        parent: u64,
        blocks: &[N],
        tier: Tier,
        applied: &mut Applied,
    ) {
        let store = Store { slot, namespace, tier };
        let last = self.workers.state(slot).last;
        let mut at = match last.filter(|place| self.runs.is_at(*place, parent)) {
            Some(place) => Some(place),
            None if parent == namespace.0 as u64 => None,
            None => self.runs.find(parent),
        };
        let mut before = parent;
        let mut next = 0;
        while next < blocks.len() {
            let key = blocks[next].key();
            let count = match self.place_after(at, key) {
                Some(place) => {
                    let place = self.align(place, before, key, at);
                    self.take_known(store, place, &blocks[next..], &mut at, applied)
                }
                None => self.take_new(store, before, &blocks[next..], &mut at, applied),
            };
            next += count;
            before = blocks[next - 1].key();
        }
        if blocks.len() >= MERGE_FROM_BLOCKS {
            at = at.map(|place| self.merge_up(place));
        }
        self.workers.state_mut(slot).last = at;
    }

    /// Where a block lies: after the last one as a rule.
    #[inline(always)]
    fn place_after(&self, at: Option<Place>, key: u64) -> Option<Place> {
        let next = at.map(|place| Place { offset: place.offset + 1, ..place });
        match next.filter(|place| self.runs.is_at(*place, key)) {
            Some(place) => Some(place),
            None => self.runs.find(key),
        }
    }

    /// Makes sure that a block which is named under another parent than ever before starts a run, so that lookups
    /// from either side find it. Chained hashes never need it.
    #[inline(always)]
    fn align(&mut self, place: Place, before: u64, key: u64, at: Option<Place>) -> Place {
        if self.runs.key_before(place.run, place.offset) == before {
            return place;
        }
        self.realign(place, key, at)
    }

    #[cold]
    fn realign(&mut self, place: Place, key: u64, at: Option<Place>) -> Place {
        let skipped = self.runs.meta(place.run).skipped;
        if place.offset > skipped {
            self.split(place.run, place.offset - skipped);
        }
        if let Some(at) = at {
            self.note_child(at.run, key);
        }
        self.runs.find(key).unwrap_or(place)
    }

    /// Takes blocks that the index has, as far as their run goes; answers how many.
    #[inline(always)]
    fn take_known<N: BlockName>(
        &mut self,
        store: Store,
        place: Place,
        blocks: &[N],
        at: &mut Option<Place>,
        applied: &mut Applied,
    ) -> usize {
        let meta = self.runs.meta(place.run);
        let here = (meta.end() - place.offset) as usize;
        let rest = &blocks[..here.min(blocks.len())];
        let count = self.runs.shared.equal_leading(meta.position(place.offset), rest);
        let from = place.offset - meta.skipped;
        let part = Part { run: place.run, from, to: from + count as u32 };
        self.cover_within_limit(part, store.slot, store.tier, applied);
        let last = Place { run: place.run, offset: place.offset + count as u32 - 1 };
        let joined = match *at {
            Some(before) if from == 0 && before.run != place.run => self.merge(before, place.run),
            _ => false,
        };
        *at = if joined { self.runs.find(blocks[count - 1].key()) } else { Some(last) };
        count
    }

    /// [`BlockIndex::cover`] that stops at the limit on entries.
    #[inline(always)]
    fn cover_within_limit(&mut self, part: Part, slot: u32, tier: Tier, applied: &mut Applied) {
        let most = u64::from(part.to - part.from);
        if most <= self.limits.entries_max.saturating_sub(self.entries) {
            applied.added += u64::from(self.cover(part, slot, tier));
            return;
        }
        // Near the limit block by block, so that every replica refuses the same ones.
        for from in part.from..part.to {
            let offset = self.runs.meta(part.run).skipped + from;
            let held = !self.tiers_at(Place { run: part.run, offset }, slot).is_empty();
            if held || self.entries < self.limits.entries_max {
                let one = Part { from, to: from + 1, ..part };
                applied.added += u64::from(self.cover(one, slot, tier));
            } else {
                applied.refused += 1;
            }
        }
    }

    /// Takes blocks that the index does not have, up to the first that it has; answers how many.
    #[inline(always)]
    fn take_new<N: BlockName>(
        &mut self,
        store: Store,
        before: u64,
        blocks: &[N],
        at: &mut Option<Place>,
        applied: &mut Applied,
    ) -> usize {
        let room = if self.out_of_bytes {
            0
        } else {
            self.limits.entries_max.saturating_sub(self.entries)
        };
        let most = (blocks.len() as u64).min(room).min(u64::from(RUN_BLOCKS_MAX)) as usize;
        if most == 0 {
            applied.refused += 1;
            *at = None;
            return 1;
        }
        self.runs.make_map_room(most);
        let grown = match *at {
            Some(place) if self.can_grow(place, store.slot) => {
                self.grow(store, place, &blocks[..most])
            }
            _ => None,
        };
        let parent = *at;
        let placed = grown.or_else(|| self.begin(store, before, parent, &blocks[..most]));
        match placed {
            Some((place, count)) => {
                *at = Some(place);
                applied.added += count as u64;
                count
            }
            None => {
                applied.refused += 1;
                *at = None;
                1
            }
        }
    }

    #[inline(always)]
    fn can_grow(&self, place: Place, slot: u32) -> bool {
        let meta = self.runs.meta(place.run);
        place.offset + 1 == meta.end()
            && meta.length < RUN_BLOCKS_MAX
            && meta.full <= GROW_HOLDERS_MAX
            && self.runs.head(place.run).is_full(&self.runs.shared, slot)
    }

    /// Puts new blocks behind the last one of a run, up to the first that is somewhere already. Answers how many,
    /// and the filter bits of children that had lost them.
    #[inline(always)]
    pub(crate) fn put<N: BlockName>(&mut self, run: u32, blocks: &[N]) -> (u32, u32) {
        // Readers that still look at what this memory held before were sent elsewhere before this fence.
        fence(Ordering::Release);
        let mut filter = 0;
        for name in &blocks[..blocks.len().min(AHEAD)] {
            self.runs.map.prefetch(name.key());
        }
        for (count, name) in blocks.iter().enumerate() {
            if let Some(ahead) = blocks.get(count + AHEAD) {
                self.runs.map.prefetch(ahead.key());
            }
            let key = name.key();
            let offset = self.runs.meta(run).end();
            let (metas, shared) = (&self.runs.metas, &self.runs.shared);
            let known = self.runs.map.insert_or_find(key, Place { run, offset }, |run, low| {
                prove(metas, shared, run, low, key)
            });
            if known.is_some() {
                return (count as u32, filter);
            }
            let meta = self.runs.meta_mut(run);
            meta.length += 1;
            let position = meta.position(offset) as usize;
            self.runs.shared.keys[position].store(key, Ordering::Relaxed);
            if self.runs.orphans > 0 {
                filter |= self.runs.adopt(key, run);
            }
        }
        (blocks.len() as u32, filter)
    }

    /// Lets a run grow at its end, for one of the workers that hold all of it.
    fn grow<N: BlockName>(
        &mut self,
        store: Store,
        place: Place,
        blocks: &[N],
    ) -> Option<(Place, usize)> {
        let run = place.run;
        let mut head = self.runs.head(run);
        let length = head.length;
        let blocks = &blocks[..blocks.len().min((RUN_BLOCKS_MAX - length) as usize)];
        if !self.make_room_in(run, &mut head, blocks.len() as u32) {
            return None;
        }
        let (count, filter) = self.put(run, blocks);
        head.length = length + count;
        head.last = blocks[count as usize - 1].key();
        head.filter |= filter;
        if self.runs.meta(run).full > 1 || head.segments != 0 || store.tier != Tier::Device {
            self.grow_coverage(&mut head, store, run, length);
        }
        let part = Part { run, from: length, to: head.length };
        self.account(part, store.slot, store.tier, true);
        self.count(store.slot, count, true);
        self.runs.publish(run, head);
        let offset = self.runs.meta(run).end() - 1;
        Some((Place { run, offset }, count as usize))
    }

    /// The others hold no more than they did; the one that stores holds all, the new part in its tier.
    fn grow_coverage(&mut self, head: &mut Head, store: Store, run: u32, length: u32) {
        if store.tier == Tier::Device && self.hold_plainly(head, store.slot, length) {
            self.runs.meta_mut(run).full = 1;
            return;
        }
        let full = head.full_set(&self.runs.shared);
        let mut list = core::mem::take(&mut self.work.list);
        let mut stretches = core::mem::take(&mut self.work.before);
        self.runs.load_list(head, &mut list);
        for slot in full.slots().filter(|slot| *slot != store.slot) {
            stretches_of(&list, slot, true, length, &mut stretches);
            put_stretches(&mut list, slot, &stretches, head.length);
            self.runs.set_full(head, slot, false);
        }
        self.runs.meta_mut(run).full = 1;
        stretches_of(&list, store.slot, true, length, &mut stretches);
        let tiers = TierSet::only(store.tier);
        push(&mut stretches, Stretch { from: length, to: head.length, tiers });
        put_stretches(&mut list, store.slot, &stretches, head.length);
        if head.segments != 0 || !list.is_empty() {
            self.runs.store_list(head, &list);
        }
        self.work.list = list;
        self.work.before = stretches;
    }

    /// Starts a run.
    fn begin<N: BlockName>(
        &mut self,
        store: Store,
        before: u64,
        parent: Option<Place>,
        blocks: &[N],
    ) -> Option<(Place, usize)> {
        let blocks = &blocks[..blocks.len().min(RUN_BLOCKS_MAX as usize)];
        let room = (blocks.len() + blocks.len() / 8 + 2) as u32;
        let run = self.runs.make(room, before, store.namespace)?;
        let (count, filter) = self.put(run, blocks);
        if count == 0 {
            self.runs.unmake(run);
            return None;
        }
        let mut head = Head {
            start: self.runs.meta(run).position(0),
            length: count,
            first: blocks[0].key(),
            last: blocks[count as usize - 1].key(),
            filter,
            ..Head::default()
        };
        self.runs.set_full(&mut head, store.slot, true);
        self.runs.meta_mut(run).full = 1;
        if store.tier != Tier::Device {
            let tiers = TierSet::only(store.tier);
            let all = Segment::new(store.slot, Stretch { from: 0, to: count, tiers });
            self.runs.store_list(&mut head, &[all]);
        }
        self.account(Part { run, from: 0, to: count }, store.slot, store.tier, true);
        self.count(store.slot, count, true);
        self.runs.publish_new(run, head, None);
        match parent.filter(|place| self.runs.is_at(*place, before)) {
            Some(place) => self.runs.link_to(run, Some(place)),
            None => self.runs.link(run),
        }
        Some((Place { run, offset: count - 1 }, count as usize))
    }

    /// A run record: a worker holds `count` blocks of a chain, the last of which is `tail`, in a tier.
    ///
    /// # Errors
    /// If the index lacks one of them; nothing is changed then.
    pub fn hold(
        &mut self,
        worker: WorkerId,
        tail: u64,
        count: u32,
        tier: Tier,
    ) -> Result<Applied, UnknownBlock> {
        let parts = self.parts_before(tail, count)?;
        let mut applied = Applied::default();
        match self.claim(worker) {
            Some(slot) => {
                for part in parts.into_iter().rev() {
                    self.cover_within_limit(part, slot, tier, &mut applied);
                }
                self.workers.state_mut(slot).last = self.runs.find(tail);
            }
            None => applied.refused = u64::from(count),
        }
        self.refused = self.refused.saturating_add(applied.refused);
        Ok(applied)
    }

    /// A run record: a worker holds these blocks no more in a tier.
    ///
    /// # Errors
    /// If the index lacks one of them; nothing is changed then.
    pub fn release(
        &mut self,
        worker: WorkerId,
        tail: u64,
        count: u32,
        tier: Tier,
    ) -> Result<Applied, UnknownBlock> {
        self.parts_before(tail, count)?;
        let mut applied = Applied::default();
        let Some(slot) = self.workers.slot_of(worker) else { return Ok(applied) };
        let (mut tail, mut left) = (tail, count);
        // Tail first, and found anew each time: what a part leaves behind may be cut or joined.
        while left > 0 {
            let Some(place) = self.runs.find(tail) else { break };
            let meta = self.runs.meta(place.run);
            let high = place.offset - meta.skipped + 1;
            let low = high.saturating_sub(left);
            let part = Part { run: place.run, from: low, to: high };
            tail = self.runs.key_before(place.run, meta.skipped + low);
            left -= high - low;
            applied.removed += u64::from(self.uncover(part, slot, tier));
        }
        Ok(applied)
    }

    /// The parts of runs that `count` blocks up to `tail` lie in, last first.
    fn parts_before(&self, tail: u64, count: u32) -> Result<Vec<Part>, UnknownBlock> {
        let mut parts = Vec::new();
        let (mut tail, mut left) = (tail, count);
        if count > CHAIN_BLOCKS_MAX {
            return Err(UnknownBlock);
        }
        while left > 0 {
            let place = self.runs.find(tail).ok_or(UnknownBlock)?;
            let meta = self.runs.meta(place.run);
            let high = place.offset - meta.skipped + 1;
            let low = high.saturating_sub(left);
            parts.push(Part { run: place.run, from: low, to: high });
            left -= high - low;
            tail = meta.parent;
        }
        Ok(parts)
    }
}
