//! What a pool did, for people: ages are what tells a good eviction from a bad one.
//!
//! A cache is too small where blocks go at an age at which others are still hit, and an order is
//! wrong where they go young while older ones stay. So both ages are kept, by cause.

use super::{Cause, Class, PRIORITY_MAX};

/// How many powers of two of milliseconds are told apart: the last one is 17 years.
const BUCKETS: usize = 40;

/// How long blocks had been without a use, in powers of two of milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ages {
    buckets: [u64; BUCKETS],
    count: u64,
    sum_ms: u64,
}

impl Default for Ages {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], count: 0, sum_ms: 0 }
    }
}

impl Ages {
    pub(crate) fn add(&mut self, age_ms: u64) {
        let bucket = (u64::BITS - age_ms.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
        self.count += 1;
        self.sum_ms = self.sum_ms.saturating_add(age_ms);
    }

    /// One that was added is none after all.
    pub(crate) fn take_back(&mut self, age_ms: u64) {
        let bucket = (u64::BITS - age_ms.leading_zeros()) as usize;
        let bucket = &mut self.buckets[bucket.min(BUCKETS - 1)];
        *bucket = bucket.saturating_sub(1);
        self.count = self.count.saturating_sub(1);
        self.sum_ms = self.sum_ms.saturating_sub(age_ms);
    }

    /// Those that came after `earlier` was taken.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut buckets = self.buckets;
        for (bucket, before) in buckets.iter_mut().zip(earlier.buckets) {
            *bucket = bucket.saturating_sub(before);
        }
        Self {
            buckets,
            count: buckets.iter().sum(),
            sum_ms: self.sum_ms.saturating_sub(earlier.sum_ms),
        }
    }

    /// These and others.
    #[must_use]
    pub(crate) fn and(&self, others: &Self) -> Self {
        let mut buckets = self.buckets;
        for (bucket, more) in buckets.iter_mut().zip(others.buckets) {
            *bucket += more;
        }
        let sum_ms = self.sum_ms.saturating_add(others.sum_ms);
        Self { buckets, count: self.count + others.count, sum_ms }
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All of them together.
    #[must_use]
    pub fn sum_ms(&self) -> u64 {
        self.sum_ms
    }

    /// How many were at most so old, for each power of two; each bound is exclusive.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.buckets.iter().enumerate().map(|(power, count)| (1 << power, *count))
    }

    /// An age below which at least that share of them was; 0 when there are none.
    #[must_use]
    pub fn quantile_ms(&self, share: f64) -> u64 {
        let wanted = (self.count as f64 * share.clamp(0.0, 1.0)).ceil() as u64;
        let mut seen = 0;
        for (bound_ms, count) in self.buckets() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return bound_ms;
            }
        }
        0
    }

    /// The age at which the power of two begins in which that share of them is reached: those older than half of them
    /// are at least so old.
    #[must_use]
    pub(crate) fn quantile_floor_ms(&self, share: f64) -> u64 {
        match self.quantile_ms(share) {
            // Below the first bound is nothing but 0.
            0 | 1 => 0,
            bound_ms => bound_ms / 2,
        }
    }
}

/// Counts by what blocks were worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worths([u64; PRIORITY_MAX as usize + 1]);

impl Default for Worths {
    fn default() -> Self {
        Self([0; PRIORITY_MAX as usize + 1])
    }
}

impl Worths {
    pub(crate) fn add(&mut self, worth: u8) {
        self.0[worth.min(PRIORITY_MAX) as usize] += 1;
    }

    pub(crate) fn take_back(&mut self, worth: u8) {
        let count = &mut self.0[worth.min(PRIORITY_MAX) as usize];
        *count = count.saturating_sub(1);
    }

    /// Those that came after `earlier` was taken.
    #[must_use]
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut counts = *self;
        for (count, before) in counts.0.iter_mut().zip(earlier.0) {
            *count = count.saturating_sub(before);
        }
        counts
    }

    /// The counts, from 0 to the highest priority.
    pub fn counts(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().copied()
    }
}

/// What a pool did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Age of blocks that were used again.
    pub age_at_hit: Ages,
    /// Age of those that went, by the number of the [`Cause`].
    pub age_at_eviction: [Ages; Cause::COUNT],
    /// How many went, by the number of the [`Class`] that had set their priority.
    pub evictions_by_class: [u64; Class::COUNT],
    /// How many went without having been used again.
    pub evicted_unused: u64,
    /// How many blocks that could have gone were used again, by what they were worth.
    pub hits_by_worth: Worths,
    /// How many went for want of room, by the same.
    pub evictions_by_worth: Worths,
}

impl Figures {
    pub(crate) fn evicted(
        &mut self,
        cause: Cause,
        (worth, class): (u8, Class),
        age_ms: u64,
        hits: u8,
    ) {
        if matches!(cause, Cause::Capacity | Cause::Expiry | Cause::Lifecycle) {
            self.evictions_by_worth.add(worth);
        }
        self.age_at_eviction[cause as usize].add(age_ms);
        self.evictions_by_class[class as usize] += 1;
        self.evicted_unused += u64::from(hits == 0);
    }

    /// How many went.
    #[must_use]
    pub fn evictions(&self) -> u64 {
        self.age_at_eviction.iter().map(Ages::count).sum()
    }

    /// How many went for that cause.
    #[must_use]
    pub fn evictions_for(&self, cause: Cause) -> u64 {
        self.age_at_eviction[cause as usize].count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_bound_what_they_say() {
        let mut ages = Ages::default();
        assert_eq!(ages.quantile_ms(0.5), 0);
        for age_ms in [0, 1, 3, 100, 100, u64::MAX] {
            ages.add(age_ms);
        }
        assert_eq!(ages.count(), 6);
        assert_eq!(ages.quantile_ms(0.5), 4);
        assert_eq!(ages.quantile_ms(0.8), 128);
        assert_eq!(ages.quantile_ms(1.0), 1 << (BUCKETS - 1));
        assert_eq!([0.1, 0.3, 0.5, 0.8].map(|share| ages.quantile_floor_ms(share)), [0, 1, 2, 64]);
        assert_eq!(ages.sum_ms(), u64::MAX);
    }
}
