//! Segments: which part of a run a worker holds, and in which tiers, where "all of it on the device" does not say it.
//!
//! A worker without its bit in the run's set holds just its segments. One with its bit holds all of the run: its
//! segments, if any, name the stretches that lie elsewhere than on the device alone. Lists are sorted by worker and
//! offset; stretches of one worker never overlap, and neighbours that agree are one.

use mainstay_types::Tier;

use crate::TierSet;

/// One stretch of one worker, packed so that lists sort as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Segment(pub(crate) u64);

/// A stretch without its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) tiers: TierSet,
}

impl Segment {
    pub(crate) fn new(slot: u32, stretch: Stretch) -> Self {
        Self(
            u64::from(slot) << 48
                | u64::from(stretch.from) << 32
                | u64::from(stretch.to) << 16
                | u64::from(stretch.tiers.bits()),
        )
    }

    #[inline(always)]
    pub(crate) fn slot(self) -> u32 {
        (self.0 >> 48) as u32
    }

    #[inline(always)]
    pub(crate) fn from(self) -> u32 {
        (self.0 >> 32) as u32 & 0xffff
    }

    #[inline(always)]
    pub(crate) fn to(self) -> u32 {
        (self.0 >> 16) as u32 & 0xffff
    }

    #[inline(always)]
    pub(crate) fn tier_bits(self) -> u8 {
        self.0 as u8 & 0xf
    }

    pub(crate) fn stretch(self) -> Stretch {
        let tiers = TierSet::from_bits(self.tier_bits()).unwrap_or_default();
        Stretch { from: self.from(), to: self.to(), tiers }
    }
}

/// The segments of one worker.
pub(crate) fn of_slot(list: &[Segment], slot: u32) -> core::ops::Range<usize> {
    let from = list.partition_point(|s| s.slot() < slot);
    let to = from + list[from..].partition_point(|s| s.slot() == slot);
    from..to
}

/// Appends a stretch, as part of the last one where the two agree.
pub(crate) fn push(out: &mut Vec<Stretch>, stretch: Stretch) {
    if stretch.from >= stretch.to {
        return;
    }
    match out.last_mut() {
        Some(last) if last.to == stretch.from && last.tiers == stretch.tiers => {
            last.to = stretch.to;
        }
        _ => out.push(stretch),
    }
}

/// What one worker holds of a run of `length` blocks, in full.
pub(crate) fn stretches_of(
    list: &[Segment],
    slot: u32,
    full: bool,
    length: u32,
    out: &mut Vec<Stretch>,
) {
    out.clear();
    let device = TierSet::only(Tier::Device);
    let mut at = 0;
    for segment in &list[of_slot(list, slot)] {
        let stretch = segment.stretch();
        if full {
            push(out, Stretch { from: at, to: stretch.from, tiers: device });
        }
        push(out, stretch);
        at = stretch.to;
    }
    if full {
        push(out, Stretch { from: at, to: length, tiers: device });
    }
}

/// Writes one worker's stretches back; answers whether they are all of the run.
pub(crate) fn put_stretches(
    list: &mut Vec<Segment>,
    slot: u32,
    stretches: &[Stretch],
    length: u32,
) -> bool {
    let device = TierSet::only(Tier::Device);
    let mut at = 0;
    for stretch in stretches {
        if stretch.from == at {
            at = stretch.to;
        }
    }
    let full = length > 0 && at == length;
    let range = of_slot(list, slot);
    let named = stretches
        .iter()
        .filter(|stretch| !full || stretch.tiers != device)
        .map(|stretch| Segment::new(slot, *stretch));
    list.splice(range, named);
    full
}

/// What an edit changed.
#[derive(Debug, Default)]
pub(crate) struct Edit {
    /// The stretches afterwards.
    pub(crate) after: Vec<Stretch>,
    /// Where the tier came or went.
    pub(crate) flips: Vec<(u32, u32)>,
    /// Blocks that came to be held, or are held no more, in any tier.
    pub(crate) blocks: u32,
}

impl Edit {
    fn keep(&mut self, from: u32, to: u32, tiers: TierSet) {
        push(&mut self.after, Stretch { from, to, tiers });
    }

    fn flip(&mut self, from: u32, to: u32, tiers: TierSet) {
        if from < to {
            self.flips.push((from, to));
            if !tiers.is_empty() {
                self.keep(from, to, tiers);
            }
        }
    }

    fn gap(&mut self, from: u32, to: u32, tier: Tier, add: bool) {
        if add && from < to {
            self.blocks += to - from;
            self.flip(from, to, TierSet::only(tier));
        }
    }

    /// Puts `from..to` into a tier, or takes it out.
    pub(crate) fn apply(&mut self, before: &[Stretch], from: u32, to: u32, tier: Tier, add: bool) {
        self.after.clear();
        self.flips.clear();
        self.blocks = 0;
        let mut at = from;
        for stretch in before {
            let (low, high) = (stretch.from.max(from), stretch.to.min(to));
            if low >= high {
                if stretch.from >= to {
                    self.gap(at, to, tier, add);
                    at = at.max(to);
                }
                push(&mut self.after, *stretch);
                continue;
            }
            self.keep(stretch.from, low, stretch.tiers);
            self.gap(at, low, tier, add);
            let changed = if add { stretch.tiers.with(tier) } else { stretch.tiers.without(tier) };
            if changed == stretch.tiers {
                self.keep(low, high, changed);
            } else {
                self.flip(low, high, changed);
                if changed.is_empty() {
                    self.blocks += high - low;
                }
            }
            self.keep(high, stretch.to, stretch.tiers);
            at = high;
        }
        self.gap(at, to, tier, add);
    }
}

/// How many leading blocks of a run one worker holds in an accepted tier. `segments` are the worker's own.
#[inline(always)]
pub(crate) fn leading(
    segments: impl Iterator<Item = Segment>,
    full: bool,
    length: u32,
    accept: u8,
) -> u32 {
    let mut at = 0;
    for segment in segments {
        // Between the segments of a full holder lies what is on the device, which every depth accepts.
        if segment.from() != at && !full {
            return at;
        }
        if segment.tier_bits() & accept == 0 {
            return segment.from();
        }
        at = segment.to();
    }
    if full { length } else { at }
}

#[cfg(test)]
mod tests;
