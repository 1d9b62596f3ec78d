//! Ages of the engine's blocks as histograms: it counts them since its start, a histogram takes each one alone.
//!
//! What came since the last time is recorded, each power of two at one value within it, such that their sum is the
//! engine's own. No more than [`RECORDS_MAX`] at a time, whatever an engine says; the rest follows.

use mainstay_engine_abi::sdk::{Ages, BlockAges, Cause};

/// Observations of one histogram that are recorded at a time: a second's, of an engine that is busy indeed.
const RECORDS_MAX: u64 = 1 << 16;
/// Within a power of two no value reaches its end, which is the next one's.
const SHARE_MAX: f64 = 0.999;

/// What was told so far.
#[derive(Default)]
pub(super) struct Told {
    life: u64,
    ages: BlockAges,
}

impl Told {
    /// Records what the engine of that life has counted since.
    pub(super) fn tell(&mut self, life: u64, now: &BlockAges) {
        if life != self.life {
            *self = Self { life, ages: BlockAges::default() };
        }
        tell(&mut self.ages.at_hit, &now.at_hit, |seconds, count| {
            metrics::histogram!("mainstay_worker_engine_age_at_hit_seconds")
                .record_many(seconds, count);
        });
        for (cause, (told, now)) in
            Cause::ALL.into_iter().zip(self.ages.at_eviction.iter_mut().zip(&now.at_eviction))
        {
            tell(told, now, |seconds, count| {
                metrics::histogram!("mainstay_worker_engine_age_at_eviction_seconds", "cause" => cause.name())
                    .record_many(seconds, count);
            });
        }
    }
}

/// The first millisecond of a power of two, and how many follow.
fn span_ms(power: usize) -> (f64, f64) {
    match power {
        0 => (0.0, 0.0),
        _ => {
            let from = 2_f64.powi(i32::try_from(power).unwrap_or(i32::MAX) - 1);
            (from, from)
        }
    }
}

fn tell(told: &mut Ages, now: &Ages, mut record: impl FnMut(f64, usize)) {
    // A request that got no room after all takes its hits back, so a count may fall a little: then it is waited for.
    let mut new = [0_u64; mainstay_engine_abi::raw::AGE_POWERS];
    for (new, (now, told)) in new.iter_mut().zip(now.by_power.iter().zip(told.by_power)) {
        *new = now.saturating_sub(told);
    }
    let (mut least_ms, mut width_ms) = (0.0, 0.0);
    for (power, count) in new.iter().enumerate() {
        let (from, width) = span_ms(power);
        least_ms += *count as f64 * from;
        width_ms += *count as f64 * width;
    }
    let sum_ms = now.sum_ms.saturating_sub(told.sum_ms) as f64;
    let share = if width_ms > 0.0 { (sum_ms - least_ms) / width_ms } else { 0.0 };
    let share = share.clamp(0.0, SHARE_MAX);
    let mut room = RECORDS_MAX;
    for (power, count) in new.into_iter().enumerate() {
        let count = count.min(room);
        if count == 0 {
            continue;
        }
        room -= count;
        let (from, width) = span_ms(power);
        let value_ms = from + share * width;
        record(value_ms / 1e3, usize::try_from(count).unwrap_or(usize::MAX));
        told.by_power[power] += count;
        told.sum_ms = told.sum_ms.saturating_add((value_ms * count as f64) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ages(list: &[u64]) -> Ages {
        let mut ages = Ages::default();
        for age_ms in list {
            ages.by_power[(u64::BITS - age_ms.leading_zeros()).min(39) as usize] += 1;
            ages.sum_ms += age_ms;
        }
        ages
    }

    fn taken(told: &mut Ages, now: &Ages) -> Vec<(f64, usize)> {
        let mut records = Vec::new();
        tell(told, now, |seconds, count| records.push((seconds, count)));
        records
    }

    #[test]
    fn what_is_recorded_adds_up_to_what_the_engine_counted() {
        let mut told = Ages::default();
        let first = ages(&[0, 1, 3, 100, 120, 5_000]);
        let records = taken(&mut told, &first);
        assert_eq!(records.iter().map(|(_, count)| count).sum::<usize>(), 6);
        let sum_ms: f64 = records.iter().map(|(value, count)| value * 1e3 * *count as f64).sum();
        assert!((sum_ms - 5_224.0).abs() < 1.0, "{sum_ms}");
        // Each lies in its own power of two.
        for (value, _) in &records {
            let age_ms = (value * 1e3) as usize;
            let power = (usize::BITS - age_ms.leading_zeros()) as usize;
            assert!(first.by_power[power] > 0, "{value}");
        }
        assert_eq!(taken(&mut told, &first), [], "nothing came since");
        let mut more = first;
        more.add(&ages(&[64]));
        assert_eq!(taken(&mut told, &more).iter().map(|(_, count)| count).sum::<usize>(), 1);
        // What was taken back is waited for, and told once.
        assert_eq!(taken(&mut told, &first), []);
        assert_eq!(taken(&mut told, &more), []);
    }

    #[test]
    fn an_engine_that_says_more_than_can_be_is_told_bit_by_bit() {
        let mut told = Ages::default();
        let mut wild = ages(&[7; 10]);
        wild.by_power[39] = u64::MAX;
        wild.sum_ms = u64::MAX;
        for _ in 0..3 {
            let records = taken(&mut told, &wild);
            let count: usize = records.iter().map(|(_, count)| count).sum();
            assert_eq!(count as u64, RECORDS_MAX);
            assert!(records.iter().all(|(value, _)| value.is_finite()));
        }
        assert_eq!(told.by_power[3], 10);
    }

    #[test]
    fn another_engine_counts_from_nothing() {
        let mut told = Told::default();
        let counted = |at_hit| BlockAges { at_hit, ..BlockAges::default() };
        told.tell(1, &counted(ages(&[5, 6, 7])));
        assert_eq!(told.ages.at_hit.count(), 3);
        told.tell(2, &counted(ages(&[5])));
        assert_eq!((told.life, told.ages.at_hit.count()), (2, 1));
    }
}
