//! The edit that nearly all others are: blocks on the device, of a worker that holds one stretch of the run there,
//! all of it, or nothing. It copies the run's list once, with the worker's entry changed on the way.

use core::ops::Range;

use mainstay_types::Tier;

use crate::coverage::Part;
use crate::head::Head;
use crate::holders::slots_of;
use crate::runs::place_in;
use crate::segments::{Segment, Stretch};
use crate::store::GROW_HOLDERS_MAX;
use crate::sync::{AtomicU64, Ordering};
use crate::{BlockIndex, TierSet};

/// Up to two stretches; an empty one counts for nothing.
type Pair = [(u32, u32); 2];

/// What an edit leaves of one stretch, and what it changed.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    kept: Pair,
    flips: Pair,
}

impl Change {
    /// `from..to` comes to the stretch `own`, which may be empty.
    fn add(own: (u32, u32), from: u32, to: u32) -> Self {
        if own.0 == own.1 {
            return Self { kept: [(from, to), (0, 0)], flips: [(from, to), (0, 0)] };
        }
        if to < own.0 {
            return Self { kept: [(from, to), own], flips: [(from, to), (0, 0)] };
        }
        if from > own.1 {
            return Self { kept: [own, (from, to)], flips: [(from, to), (0, 0)] };
        }
        let kept = (from.min(own.0), to.max(own.1));
        Self { kept: [kept, (0, 0)], flips: [(from, own.0.max(from)), (own.1.min(to), to)] }
    }

    /// `from..to` leaves the stretch `own`.
    fn remove(own: (u32, u32), from: u32, to: u32) -> Self {
        let (low, high) = (from.max(own.0), to.min(own.1));
        if low >= high {
            return Self { kept: [own, (0, 0)], flips: [(0, 0); 2] };
        }
        Self { kept: [(own.0, low), (high, own.1)], flips: [(low, high), (0, 0)] }
    }

    fn blocks(&self) -> u32 {
        self.flips.iter().map(|(from, to)| to - from).sum()
    }
}

/// Where a worker's entries lie in a list.
fn range_of(list: &[AtomicU64], slot: u32) -> Range<usize> {
    let none = Stretch { from: 0, to: 0, tiers: TierSet::default() };
    let from = place_in(list, Segment::new(slot, none));
    let slots = list[from..].iter().map(|entry| Segment(entry.load(Ordering::Relaxed)).slot());
    let own = slots.take_while(|at| *at == slot).count();
    from..from + own
}

/// Whether one entry besides `own` covers all of a stretch.
fn covered(list: &[AtomicU64], own: &Range<usize>, (from, to): (u32, u32)) -> bool {
    let segments = list.iter().map(|entry| Segment(entry.load(Ordering::Relaxed)));
    let mut others = segments.enumerate().filter(|(at, _)| !own.contains(at));
    others.any(|(_, segment)| segment.from() <= from && segment.to() >= to)
}

impl BlockIndex {
    /// The plain edit; `None`, and nothing is changed, if this is not one.
    #[inline]
    pub(crate) fn edit_plainly(
        &mut self,
        part: Part,
        head: &mut Head,
        full: bool,
        slot: u32,
        add: bool,
    ) -> Option<u32> {
        let list = self.runs.shared.list(head.segments);
        let range = range_of(list, slot);
        let device = TierSet::only(Tier::Device);
        let own = match (full, range.len()) {
            (true, 0) => (0, head.length),
            (false, 0) => (0, 0),
            (false, 1) => {
                let stretch = Segment(list[range.start].load(Ordering::Relaxed)).stretch();
                (stretch.tiers == device).then_some((stretch.from, stretch.to))?
            }
            _ => return None,
        };
        let change = match add {
            true => Change::add(own, part.from, part.to),
            false => Change::remove(own, part.from, part.to),
        };
        let blocks = change.blocks();
        if blocks == 0 {
            return Some(0);
        }
        let others = self.runs.meta(part.run).full - u32::from(full);
        if !add && others == 0 && !covered(list, &range, change.flips[0]) {
            // Perhaps nobody holds these any more.
            return None;
        }
        let full_now = change.kept[0] == (0, head.length);
        let mut named = [Segment(0); 2];
        let mut count = 0;
        for (from, to) in change.kept.into_iter().filter(|(from, to)| from < to && !full_now) {
            named[count] = Segment::new(slot, Stretch { from, to, tiers: device });
            count += 1;
        }
        for (from, to) in change.flips.into_iter().filter(|(from, to)| from < to) {
            self.account(Part { run: part.run, from, to }, slot, Tier::Device, add);
        }
        self.count(slot, blocks, add);
        if full_now != full {
            self.runs.set_full(head, slot, full_now);
            self.runs.meta_mut(part.run).full = others + u32::from(full_now);
        }
        if !range.is_empty() || count > 0 {
            self.runs.splice_list(head, range, &named[..count]);
        }
        self.runs.publish(part.run, *head);
        Some(blocks)
    }

    /// Workers that held all of a run on the device hold its first `length` blocks from now on, but for `except`;
    /// `false`, and nothing is changed, if one of them holds some of it elsewhere too.
    pub(crate) fn hold_plainly(&mut self, head: &mut Head, except: u32, length: u32) -> bool {
        if head.wide {
            return false;
        }
        let full = head.words;
        let list = self.runs.shared.list(head.segments);
        if slots_of(&full).any(|slot| !range_of(list, slot).is_empty()) {
            return false;
        }
        let stretch = Stretch { from: 0, to: length, tiers: TierSet::only(Tier::Device) };
        let mut new = [Segment(0); GROW_HOLDERS_MAX as usize];
        let mut count = 0;
        for slot in slots_of(&full).filter(|slot| *slot != except) {
            self.runs.set_full(head, slot, false);
            new[count] = Segment::new(slot, stretch);
            count += 1;
        }
        self.runs.merge_list(head, &new[..count]);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blocks of stretches, one bit each.
    fn bits(pair: &[(u32, u32)]) -> u64 {
        pair.iter().fold(0, |sum, (from, to)| sum | ((1 << to) - 1) & !((1 << from) - 1))
    }

    #[test]
    fn changes_are_those_of_sets() {
        const LENGTH: u32 = 7;
        let stretches =
            || (0..LENGTH).flat_map(|from| (from + 1..=LENGTH).map(move |to| (from, to)));
        for own in stretches().chain([(0, 0)]) {
            for (from, to) in stretches() {
                let (had, part) = (bits(&[own]), bits(&[(from, to)]));
                let added = Change::add(own, from, to);
                assert_eq!((bits(&added.kept), bits(&added.flips)), (had | part, part & !had));
                assert_eq!(added.blocks(), (part & !had).count_ones(), "{own:?} {from}..{to}");
                let removed = Change::remove(own, from, to);
                assert_eq!((bits(&removed.kept), bits(&removed.flips)), (had & !part, part & had));
                assert_eq!(removed.blocks(), (part & had).count_ones(), "{own:?} {from}..{to}");
                let kept = added.kept;
                assert!(kept[1].0 == kept[1].1 || kept[0].1 < kept[1].0, "sorted, and apart");
            }
        }
    }
}
