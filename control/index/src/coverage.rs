//! Putting a stretch of one run into a worker's hands, and taking it out.
//!
//! The common cases (a worker takes or drops a whole run on the device, or is the only one that holds it) touch one
//! bit; all others go through the run's list of segments. What nobody holds any more leaves at once, by
//! [`BlockIndex::reshape`].

use mainstay_types::Tier;

use crate::BlockIndex;
use crate::digest::stretch_digest;
use crate::head::Head;
use crate::segments::{Segment, Stretch, put_stretches, stretches_of};

/// A stretch of a run, by positions: counted from its first block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) run: u32,
    pub(crate) from: u32,
    pub(crate) to: u32,
}

impl BlockIndex {
    /// Books that blocks `from..to` of a run came into a tier of a worker's or left it.
    #[inline(always)]
    pub(crate) fn account(&mut self, part: Part, slot: u32, tier: Tier, add: bool) {
        let skipped = self.runs.meta(part.run).skipped;
        let last = self.runs.key_at(part.run, skipped + part.to - 1);
        let before = self.runs.key_before(part.run, skipped + part.from);
        let digest = stretch_digest(last, before, tier);
        let state = self.workers.state_mut(slot);
        state.digest =
            if add { state.digest.wrapping_add(digest) } else { state.digest.wrapping_sub(digest) };
    }

    /// Books how many blocks a worker came to hold, or holds no more.
    #[inline(always)]
    pub(crate) fn count(&mut self, slot: u32, blocks: u32, add: bool) {
        let state = self.workers.state_mut(slot);
        if add {
            state.held += u64::from(blocks);
            self.entries += u64::from(blocks);
        } else {
            state.held -= u64::from(blocks);
            self.entries -= u64::from(blocks);
        }
    }

    /// A worker holds a stretch of a run. Answers how many blocks it did not hold before.
    #[inline]
    pub(crate) fn cover(&mut self, part: Part, slot: u32, tier: Tier) -> u32 {
        let mut head = self.runs.head(part.run);
        let full = head.is_full(&self.runs.shared, slot);
        if head.segments == 0 && tier == Tier::Device {
            if full {
                self.runs.meta_mut(part.run).recent = true;
                return 0;
            }
            if part.from == 0 && part.to == head.length {
                self.runs.set_full(&mut head, slot, true);
                self.runs.meta_mut(part.run).full += 1;
                self.account(part, slot, tier, true);
                self.count(slot, part.to, true);
                self.runs.publish(part.run, head);
                return part.to;
            }
        }
        self.edit(part, head, full, slot, tier, true)
    }

    /// A worker holds a stretch of a run no more in a tier. Answers how many blocks it holds no more at all.
    #[inline]
    pub(crate) fn uncover(&mut self, part: Part, slot: u32, tier: Tier) -> u32 {
        let mut head = self.runs.head(part.run);
        let full = head.is_full(&self.runs.shared, slot);
        let count = part.to - part.from;
        if head.segments == 0 {
            if !full || tier != Tier::Device {
                return 0;
            }
            let whole = count == head.length;
            let holders = self.runs.meta(part.run).full;
            if holders == 1 || whole {
                self.account(part, slot, tier, false);
                self.count(slot, count, false);
            }
            if holders == 1 {
                self.work.list.clear();
                let survivors = [(0, part.from), (part.to, head.length)];
                self.reshape(part.run, head, &survivors);
                return count;
            }
            if whole {
                self.runs.set_full(&mut head, slot, false);
                self.runs.meta_mut(part.run).full -= 1;
                self.runs.publish(part.run, head);
                return count;
            }
        }
        self.edit(part, head, full, slot, tier, false)
    }

    /// The general case of both.
    fn edit(
        &mut self,
        part: Part,
        mut head: Head,
        full: bool,
        slot: u32,
        tier: Tier,
        add: bool,
    ) -> u32 {
        if tier == Tier::Device
            && let Some(blocks) = self.edit_plainly(part, &mut head, full, slot, add)
        {
            return blocks;
        }
        let mut work = core::mem::take(&mut self.work);
        self.runs.load_list(&head, &mut work.list);
        stretches_of(&work.list, slot, full, head.length, &mut work.before);
        work.edit.apply(&work.before, part.from, part.to, tier, add);
        let blocks = work.edit.blocks;
        if work.edit.flips.is_empty() {
            self.work = work;
            return 0;
        }
        for (from, to) in &work.edit.flips {
            self.account(Part { run: part.run, from: *from, to: *to }, slot, tier, add);
        }
        self.count(slot, blocks, add);
        let full_now = put_stretches(&mut work.list, slot, &work.edit.after, head.length);
        if full_now != full {
            self.runs.set_full(&mut head, slot, full_now);
            let meta = self.runs.meta_mut(part.run);
            meta.full = if full_now { meta.full + 1 } else { meta.full - 1 };
        }
        let mut survivors = core::mem::take(&mut work.survivors);
        let unheld = !add && blocks > 0 && self.runs.meta(part.run).full == 0;
        let dead = unheld && find_survivors(&work.list, head.length, &mut survivors);
        self.work = work;
        if dead {
            self.reshape(part.run, head, &survivors);
        } else {
            self.store_work_list(&mut head);
            self.runs.publish(part.run, head);
        }
        self.work.survivors = survivors;
        blocks
    }

    /// Gives the head the list that is being worked on.
    pub(crate) fn store_work_list(&mut self, head: &mut Head) {
        if head.segments != 0 || !self.work.list.is_empty() {
            self.runs.store_list(head, &self.work.list);
        }
    }
}

/// The stretches of a run that somebody's segments cover; answers whether that is less than all.
fn find_survivors(list: &[Segment], length: u32, out: &mut Vec<(u32, u32)>) -> bool {
    out.clear();
    let mut sorted: Vec<(u32, u32)> = list.iter().map(|s| (s.from(), s.to())).collect();
    sorted.sort_unstable();
    for (from, to) in sorted {
        match out.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            _ => out.push((from, to)),
        }
    }
    out.as_slice() != [(0, length)]
}

/// Cuts a list to `from..to`; answers through `filled` who now holds all of that. `is_full` says who held all of
/// the run before.
pub(crate) fn clip_list(
    list: &[Segment],
    from: u32,
    to: u32,
    is_full: impl Fn(u32) -> bool,
    mut filled: impl FnMut(u32),
) -> Vec<Segment> {
    let mut out = Vec::new();
    for own in list.chunk_by(|a, b| a.slot() == b.slot()) {
        let slot = own[0].slot();
        let stretches: Vec<Stretch> = own
            .iter()
            .map(|segment| segment.stretch())
            .filter(|s| s.from < to && s.to > from)
            .map(|s| Stretch { from: s.from.max(from) - from, to: s.to.min(to) - from, ..s })
            .collect();
        if is_full(slot) {
            out.extend(stretches.iter().map(|s| Segment::new(slot, *s)));
        } else if put_stretches(&mut out, slot, &stretches, to - from) {
            filled(slot);
        }
    }
    out
}
