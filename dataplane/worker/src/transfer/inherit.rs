//! What blocks that come in bring with them: how much they are wanted, and for how much longer. Pure.
//!
//! Whoever loads a block takes over what was claimed for it where it came from, for what is left of the time, as if the
//! request that loads it had said so; what the request itself says counts beside it. Names of leases do not travel, so
//! nobody can end such a claim early: it ends by its time.

use mainstay_engine_abi::limits::RANGES_MAX;
use mainstay_engine_abi::sdk::RetentionRange;
use mainstay_proto::v1;
use mainstay_tier::{PRIORITY_DEFAULT, Retention};

/// Ends that differ by no more than this are one.
const SAME_END_MS: u64 = 1_000;
/// A claim that ends sooner is not worth its way.
const LEFT_MS_MIN: u64 = 1_000;
/// The longest that a claim of another worker is believed: a day.
const LEFT_MS_MAX: u64 = 86_400_000;

/// Claims on blocks of one prompt, by their places in it, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Inherited {
    runs: Vec<Run>,
}

/// Blocks of which the same is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first: usize,
    blocks: usize,
    priority: u8,
    after: u8,
    /// By the wall's clock; `u64::MAX` has no end.
    until_ms: u64,
}

impl Run {
    /// What is claimed for a block, if it is anything at this time that is not said of every block.
    fn of(at: usize, said: &Retention, now_ms: u64) -> Option<Self> {
        let left_ms = said.until_ms.saturating_sub(now_ms);
        let lasts = left_ms >= LEFT_MS_MIN && said.priority != PRIORITY_DEFAULT;
        // After its time a claim is worth no more than before.
        let after = said.after.min(said.priority);
        let priority = said.priority;
        lasts.then_some(Self { first: at, blocks: 1, priority, after, until_ms: said.until_ms })
    }

    fn goes_on(&self, next: &Self) -> bool {
        self.first + self.blocks == next.first
            && (self.priority, self.after) == (next.priority, next.after)
            && self.until_ms.abs_diff(next.until_ms) <= SAME_END_MS
    }

    /// Milliseconds from now; 0 has no end, as ranges have it.
    fn left_ms(&self, now_ms: u64) -> u64 {
        if self.until_ms == u64::MAX { 0 } else { self.until_ms.saturating_sub(now_ms).max(1) }
    }
}

impl Inherited {
    /// Takes over what was said of the block at a place.
    pub(super) fn note(&mut self, at: usize, said: &Retention, now_ms: u64) {
        let Some(next) = Run::of(at, said, now_ms) else { return };
        match self.runs.last_mut() {
            Some(last) if last.goes_on(&next) => last.blocks += 1,
            _ => self.runs.push(next),
        }
    }

    /// Takes over what another worker says of the blocks of a message, whose first is at `from`.
    pub(super) fn note_wire(
        &mut self,
        from: usize,
        count: usize,
        said: &[v1::BlockRetention],
        now_ms: u64,
    ) {
        for run in said {
            let (first, blocks) = (run.first as usize, run.blocks as usize);
            let Some(end) = first.checked_add(blocks).filter(|end| *end <= count) else { return };
            let (Ok(priority), Ok(after)) = (u8::try_from(run.priority), u8::try_from(run.after))
            else {
                return;
            };
            if priority > 100 || after > priority {
                return;
            }
            let until_ms = match run.left_ms {
                0 => u64::MAX,
                left => now_ms.saturating_add(left.min(LEFT_MS_MAX)),
            };
            let said = Retention { priority, after, until_ms, pinned_until_ms: 0 };
            (first..end).for_each(|at| self.note(from + at, &said, now_ms));
        }
    }

    /// The same for another worker.
    pub(super) fn to_wire(&self, now_ms: u64) -> Vec<v1::BlockRetention> {
        let run = |run: &Run| v1::BlockRetention {
            first: run.first as u32,
            blocks: run.blocks as u32,
            priority: u32::from(run.priority),
            after: u32::from(run.after),
            left_ms: run.left_ms(now_ms),
        };
        self.runs.iter().map(run).collect()
    }

    /// The same as ranges of a request that has so many already.
    pub(super) fn ranges(
        &self,
        block_tokens: u32,
        present: usize,
        now_ms: u64,
    ) -> Vec<RetentionRange> {
        let range = |run: &Run| RetentionRange {
            start: run.first as u32 * block_tokens,
            end: (run.first + run.blocks) as u32 * block_tokens,
            priority: run.priority,
            after: Some(run.after),
            duration_ms: u32::try_from(run.left_ms(now_ms)).unwrap_or(u32::MAX),
            ..RetentionRange::default()
        };
        // Where there is no room for all, those that are worth least are left out.
        let mut runs: Vec<&Run> = self.runs.iter().collect();
        runs.sort_by_key(|run| std::cmp::Reverse(run.priority));
        runs.truncate((RANGES_MAX as usize).saturating_sub(present));
        runs.into_iter().map(range).collect()
    }

    /// What is claimed, block by block.
    pub(super) fn said(&self) -> impl Iterator<Item = (usize, Retention)> + '_ {
        self.runs.iter().flat_map(|run| {
            let Run { priority, after, until_ms, .. } = *run;
            let said = Retention { priority, after, until_ms, pinned_until_ms: 0 };
            (run.first..run.first + run.blocks).map(move |at| (at, said))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_000_000;

    fn said(priority: u8, after: u8, until_ms: u64) -> Retention {
        Retention { priority, after, until_ms, pinned_until_ms: 9 }
    }

    #[test]
    fn what_is_over_and_what_is_said_of_all_is_not_taken_over() {
        let mut inherited = Inherited::default();
        inherited.note(0, &Retention::default(), NOW);
        inherited.note(1, &said(90, 20, NOW + 10), NOW);
        inherited.note(2, &said(PRIORITY_DEFAULT, 20, NOW + 60_000), NOW);
        assert_eq!(inherited, Inherited::default());
        inherited.note(3, &said(90, 20, NOW + 60_000), NOW);
        inherited.note(4, &said(90, 20, NOW + 60_500), NOW);
        inherited.note(6, &said(90, 95, u64::MAX), NOW);
        let ranges = inherited.ranges(16, 0, NOW);
        let told: Vec<_> = ranges
            .iter()
            .map(|r| (r.start, r.end, r.priority, r.after, r.duration_ms, r.lease))
            .collect();
        assert_eq!(told, [(48, 80, 90, Some(20), 60_000, 0), (96, 112, 90, Some(90), 0, 0)]);
    }

    #[test]
    fn nonsense_of_another_worker_is_left_out() {
        let run =
            v1::BlockRetention { first: 0, blocks: 2, priority: 90, after: 3, left_ms: 5_000 };
        let taken = |run: v1::BlockRetention| {
            let mut inherited = Inherited::default();
            inherited.note_wire(10, 4, &[run], NOW);
            inherited.said().count()
        };
        assert_eq!(taken(run), 2);
        assert_eq!(taken(v1::BlockRetention { blocks: 5, ..run }), 0);
        assert_eq!(taken(v1::BlockRetention { first: u32::MAX, ..run }), 0);
        assert_eq!(taken(v1::BlockRetention { priority: 101, ..run }), 0);
        assert_eq!(taken(v1::BlockRetention { after: 91, ..run }), 0);
        let mut long = Inherited::default();
        long.note_wire(0, 4, &[v1::BlockRetention { left_ms: u64::MAX, ..run }], NOW);
        assert_eq!(long.ranges(1, 0, NOW)[0].duration_ms, LEFT_MS_MAX as u32);
        assert!(long.ranges(1, RANGES_MAX as usize, NOW).is_empty());
    }

    proptest! {
        /// What one worker knows of its blocks the next one knows too, less what is over.
        #[test]
        fn what_travels_is_what_was_said(
            blocks in proptest::collection::vec(
                (0..101_u8, 0..101_u8, prop_oneof![Just(0), Just(u64::MAX), NOW - 10..NOW + 100_000]),
                1..60,
            ),
            late_ms in 0..50_000_u64,
        ) {
            let mut here = Inherited::default();
            for (at, (priority, after, until_ms)) in blocks.iter().enumerate() {
                here.note(at, &said(*priority, *after, *until_ms), NOW);
            }
            let mut there = Inherited::default();
            there.note_wire(5, blocks.len(), &here.to_wire(NOW), NOW + late_ms);
            let known: std::collections::HashMap<usize, Retention> = there.said().collect();
            for (at, (priority, after, until_ms)) in blocks.iter().enumerate() {
                let lasts = *until_ms >= NOW + LEFT_MS_MIN && *priority != PRIORITY_DEFAULT;
                match known.get(&(at + 5)) {
                    None => prop_assert!(!lasts),
                    Some(known) => {
                        prop_assert!(lasts);
                        prop_assert_eq!(known.priority, *priority);
                        prop_assert_eq!(known.after, (*after).min(*priority));
                        let left = known.until_ms.saturating_sub(NOW + late_ms);
                        let was = until_ms.saturating_sub(NOW);
                        let same = *until_ms == u64::MAX && known.until_ms == u64::MAX;
                        prop_assert!(same || left.abs_diff(was) <= SAME_END_MS, "{} of {}", left, was);
                    }
                }
            }
        }
    }
}
