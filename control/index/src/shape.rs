//! Cutting runs where nobody holds a block any more, and joining them where a cut has healed.
//!
//! Every block of a run is held by somebody: that keeps lookups short and memory bounded. A hole splits its run, and
//! the smaller pieces move; two runs that follow each other and have the same holders become one when the second is
//! not longer than the first, so that a block moves a bounded number of times for each time it came.

use crate::BlockIndex;
use crate::block_map::Place;
use crate::coverage::clip_list;
use crate::head::{Head, RUN_BLOCKS_MAX, filter_bit};
use crate::runs::AHEAD;
use crate::segments::Segment;
use crate::sync::{Ordering, fence};

/// A run is joined to the one before it if it is not longer than that one, or this short.
const JOIN_BLOCKS: u32 = 64;
/// Keys move to a smaller piece once three quarters of theirs are unused and it is worth a copy.
const SHRINK_FROM_BLOCKS: u32 = 64;

impl BlockIndex {
    /// Leaves of a run only `survivors` (positions, in order, apart from each other; empty ones count for nothing).
    /// `head` has the holders as they are now, and `work.list` the segments; both in positions of the whole run.
    pub(crate) fn reshape(&mut self, run: u32, head: Head, survivors: &[(u32, u32)]) {
        let length = head.length;
        let longest = survivors.iter().copied().max_by_key(|(from, to)| to - from);
        let Some((from, to)) = longest.filter(|(from, to)| from < to) else {
            self.lose_blocks(run, 0, length);
            return self.runs.drop_run(run);
        };
        let list = core::mem::take(&mut self.work.list);
        let mut at = 0;
        for &(low, high) in survivors.iter().filter(|(low, high)| low < high) {
            if at < low {
                self.lose_blocks(run, at, low);
            }
            if (low, high) != (from, to) {
                self.carve(run, &head, &list, low, high);
            }
            at = high;
        }
        if at < length {
            self.lose_blocks(run, at, length);
        }
        self.keep(run, head, &list, from, to);
        self.work.list = list;
    }

    /// Blocks that nobody holds leave the map; their children become orphans.
    fn lose_blocks(&mut self, run: u32, from: u32, to: u32) {
        let meta = *self.runs.meta(run);
        let key_at =
            |runs: &crate::runs::Runs, at: u32| runs.shared.key(meta.position(meta.skipped + at));
        for at in from..(from + AHEAD as u32).min(to) {
            self.runs.map.prefetch(key_at(&self.runs, at));
        }
        for at in from..to {
            if at + (AHEAD as u32) < to {
                self.runs.map.prefetch(key_at(&self.runs, at + AHEAD as u32));
            }
            let key = key_at(&self.runs, at);
            if self.runs.meta(run).children > 0 {
                self.runs.disown(key, run, true);
            }
            self.runs.map.remove(key, Place { run, offset: meta.skipped + at });
        }
    }

    /// Makes a run of its own of a stretch.
    fn carve(&mut self, run: u32, head: &Head, list: &[Segment], from: u32, to: u32) {
        let skipped = self.runs.meta(run).skipped;
        let parent = self.runs.key_before(run, skipped + from);
        let namespace = self.runs.namespaces.id(self.runs.meta(run).namespace);
        let Some(new) = self.runs.make(to - from, parent, namespace) else {
            self.abandon(run, head, list, from, to);
            return self.lose_blocks(run, from, to);
        };
        let mut filter = 0;
        for at in from..to {
            if at + (AHEAD as u32) < to {
                let next = self.runs.key_at(run, skipped + at + AHEAD as u32);
                self.runs.map.prefetch(next);
            }
            let key = self.runs.key_at(run, skipped + at);
            let position = self.runs.meta(new).position(at - from);
            self.runs.shared.keys[position as usize].store(key, Ordering::Relaxed);
            let old = Place { run, offset: skipped + at };
            self.runs.map.relocate(key, old, Place { run: new, offset: at - from });
            if self.runs.meta(run).children > 0 {
                self.runs.disown(key, run, false);
                filter |= self.runs.adopt(key, new);
            }
        }
        let mut part = Head {
            start: self.runs.meta(new).position(0),
            length: to - from,
            first: self.runs.key_at(run, skipped + from),
            last: self.runs.key_at(run, skipped + to - 1),
            filter,
            ..Head::default()
        };
        self.set_coverage(new, &mut part, head, list, from, to);
        // Who looks the old first block up finds the new run from now on.
        let take_over = (from == 0).then(|| self.runs.meta(run).at);
        self.runs.publish_new(new, part, take_over);
        if from == 0 {
            self.runs.unlink(run);
        }
        self.runs.link(new);
    }

    /// Gives a head the part of the holders of `head` and `list` that lies in `from..to`.
    fn set_coverage(
        &mut self,
        run: u32,
        part: &mut Head,
        head: &Head,
        list: &[Segment],
        from: u32,
        to: u32,
    ) {
        let mut set = head.full_set(&self.runs.shared);
        let whole = set.clone();
        let is_full = |slot: u32| whole.words[slot as usize / 64] >> (slot % 64) & 1 == 1;
        let list = clip_list(list, from, to, is_full, |slot| {
            set.words[slot as usize / 64] |= 1 << (slot % 64);
        });
        self.runs.meta_mut(run).full = set.count();
        self.runs.store_full(part, &set);
        self.runs.store_list(part, &list);
    }

    /// Cuts a run down to one stretch.
    fn keep(&mut self, run: u32, head: Head, list: &[Segment], from: u32, to: u32) {
        let mut kept = head;
        let whole = from == 0 && to == head.length;
        // Without segments, who is left holds all of it already.
        if !list.is_empty() || head.segments != 0 {
            self.set_coverage(run, &mut kept, &head, list, from, to);
        }
        if whole {
            return self.runs.publish(run, kept);
        }
        let skipped = self.runs.meta(run).skipped;
        kept.length = to - from;
        kept.last = self.runs.key_at(run, skipped + to - 1);
        if from == 0 {
            self.shrink(run, &mut kept);
            return self.runs.publish(run, kept);
        }
        let parent = self.runs.key_before(run, skipped + from);
        let first = self.runs.key_at(run, skipped + from);
        self.runs.unlink(run);
        let meta = self.runs.meta_mut(run);
        meta.skipped += from;
        meta.length = kept.length;
        meta.parent = parent;
        (kept.start, kept.first) = (meta.position(meta.skipped), first);
        self.shrink(run, &mut kept);
        self.runs.publish_renamed(run, kept);
        self.runs.link(run);
    }

    /// Moves keys to a smaller piece where most of theirs is unused.
    fn shrink(&mut self, run: u32, head: &mut Head) {
        let meta = self.runs.meta(run);
        let room = meta.piece().units * crate::shared::KEYS_PER_UNIT;
        if room >= SHRINK_FROM_BLOCKS && head.length < room / 4 {
            self.runs.meta_mut(run).length = head.length;
            self.runs.move_keys(run, head, head.length + head.length / 8);
        }
    }

    /// Joins the run that a worker just stored to with the one before it, where their holders are the same; answers
    /// where its block at `place` lies afterwards. Runs that nobody stores to are left alone: most are on their way out.
    pub(crate) fn merge_up(&mut self, place: Place) -> Place {
        let skipped = self.runs.meta(place.run).skipped;
        match self.runs.tail_before(place.run) {
            Some(before) if self.merge(before, place.run) => {
                Place { run: before.run, offset: before.offset + 1 + place.offset - skipped }
            }
            _ => place,
        }
    }

    fn can_merge(&self, before: Place, run: u32) -> bool {
        let (a, b) = (self.runs.meta(before.run), self.runs.meta(run));
        if before.offset + 1 != a.end()
            || a.full != b.full
            || b.length > JOIN_BLOCKS.max(a.length)
            || a.length + b.length > RUN_BLOCKS_MAX
            || a.namespace != b.namespace
            || b.parent != self.runs.key_at(before.run, before.offset)
        {
            return false;
        }
        let (a, b) = (self.runs.head(before.run), self.runs.head(run));
        a.segments == 0 && b.segments == 0 && a.same_full(&b, &self.runs.shared)
    }

    /// Appends `run` to the run whose last block is its parent, if that may be.
    pub(crate) fn merge(&mut self, before: Place, run: u32) -> bool {
        if before.run == run || !self.can_merge(before, run) {
            return false;
        }
        let (target, from) = (before.run, *self.runs.meta(run));
        let mut head = self.runs.head(target);
        let tail = self.runs.head(run);
        if !self.make_room_in(target, &mut head, from.length) {
            return false;
        }
        fence(Ordering::Release);
        let end = self.runs.meta(target).end();
        let mut filter = 0;
        for at in 0..from.length {
            if at + (AHEAD as u32) < from.length {
                let ahead = from.skipped + at + AHEAD as u32;
                self.runs.map.prefetch(self.runs.key_at(run, ahead));
            }
            let key = self.runs.key_at(run, from.skipped + at);
            let to = Place { run: target, offset: end + at };
            let position = self.runs.meta(target).position(to.offset);
            self.runs.shared.keys[position as usize].store(key, Ordering::Relaxed);
            self.runs.map.relocate(key, Place { run, offset: from.skipped + at }, to);
            if self.runs.meta(run).children > 0 {
                self.runs.disown(key, run, false);
                filter |= self.runs.adopt(key, target);
            }
        }
        head.length += from.length;
        head.last = tail.last;
        head.filter |= filter | tail.filter;
        self.runs.publish(target, head);
        self.runs.drop_run(run);
        true
    }

    /// Makes room for more blocks at the end of a run; the caller publishes `head`.
    pub(crate) fn make_room_in(&mut self, run: u32, head: &mut Head, blocks: u32) -> bool {
        let meta = self.runs.meta(run);
        if meta.end() + blocks <= meta.limit() {
            return true;
        }
        let wanted = meta.length + blocks;
        self.runs.move_keys(run, head, wanted + wanted / 4)
    }

    /// Cuts a run in two before a position, with all its holders: somebody named its block under another parent.
    pub(crate) fn split(&mut self, run: u32, position: u32) {
        let head = self.runs.head(run);
        let mut list = core::mem::take(&mut self.work.list);
        self.runs.load_list(&head, &mut list);
        let length = head.length;
        if position <= length / 2 {
            self.carve(run, &head, &list, 0, position);
            self.keep(run, head, &list, position, length);
        } else {
            self.carve(run, &head, &list, position, length);
            self.keep(run, head, &list, 0, position);
        }
        self.work.list = list;
    }

    /// Lets readers of a run look for one more child.
    pub(crate) fn note_child(&self, run: u32, key: u64) {
        self.runs.add_filter(run, filter_bit(key));
    }
}
