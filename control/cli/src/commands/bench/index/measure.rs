//! Clocks, percentiles and cold caches: how a figure is taken, in one place for all parts.
//!
//! CPU time of the thread is the main measure, because a neighbour's work stretches wall time but not that.
//! A clock pair's own cost is taken off single timings; an empty list of samples reads 0.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// Nanoseconds of CPU that this thread has used.
pub(super) fn thread_cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Wall and CPU time since a moment, of the thread that asks.
pub(super) struct Stopwatch {
    wall: Instant,
    cpu_ns: f64,
}

/// What a stretch of work took.
#[derive(Clone, Copy, Default)]
pub(super) struct Spent {
    pub(super) wall_ns: f64,
    pub(super) cpu_ns: f64,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self { wall: Instant::now(), cpu_ns: thread_cpu_ns() }
    }

    pub(super) fn read(&self) -> Spent {
        let cpu_ns = thread_cpu_ns() - self.cpu_ns;
        Spent { wall_ns: self.wall.elapsed().as_nanos() as f64, cpu_ns }
    }
}

/// What two readings of the clock with nothing between them say.
pub(super) fn clock_pair_ns() -> f64 {
    let mut samples: Vec<u32> = (0..2_001).map(|_| elapsed_ns(Instant::now())).collect();
    f64::from(percentile(&mut samples, 0.5))
}

/// Nanoseconds since `start`, at most 4 seconds' worth.
#[inline]
pub(super) fn elapsed_ns(start: Instant) -> u32 {
    u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX)
}

/// The value below which `part` of the samples lie. Sorts them.
pub(super) fn percentile(samples: &mut [u32], part: f64) -> u32 {
    samples.sort_unstable();
    let last = samples.len().saturating_sub(1);
    samples.get((last as f64 * part).round() as usize).copied().unwrap_or(0)
}

/// The middle of some figures.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// The least of some figures.
pub(super) fn least(values: &[f64]) -> f64 {
    values.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0)
}

/// A figure with as many digits as it deserves.
pub(super) fn round(value: f64) -> Value {
    let scale = match value.abs() {
        v if v < 10.0 => 1_000.0,
        v if v < 1_000.0 => 10.0,
        _ => 1.0,
    };
    json!((value * scale).round() / scale)
}

/// `part` of `whole`; 0 where there is no whole.
pub(super) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Empties the caches by reading a buffer of twice the last-level cache.
pub(super) struct Flush {
    lines: Vec<u64>,
}

impl Flush {
    pub(super) fn new(cache_bytes: u64) -> Self {
        let words = usize::try_from(cache_bytes * 2 / 8).unwrap_or(1 << 23);
        // Written, because pages that were only ever read may all be one page of zeros.
        Self { lines: (0..words as u64).collect() }
    }

    pub(super) fn run(&self) {
        let sum = self.lines.iter().step_by(8).fold(0u64, |sum, word| sum.wrapping_add(*word));
        black_box(sum);
    }
}

/// One question to the index, made anew each time as a request would make it.
pub(super) trait Question {
    /// Writes the keys of query `number` to `keys`; the same number gives the same query.
    fn ask(&self, number: u64, keys: &mut Vec<mainstay_index::BlockKey>);
    /// Looks it up; what it answers is only there so that the work cannot be left out.
    fn find(&mut self, keys: &[mainstay_index::BlockKey]) -> usize;
}

/// How long a lookup takes with everything and with nothing of the index in the caches.
pub(super) struct ColdWarm {
    pub(super) cold_ns: f64,
    pub(super) cold_p99_ns: f64,
    pub(super) warm_ns: f64,
}

/// Queries between two flushes. Each has a chain of its own, so none warms the next one's.
const COLD_BATCH: u64 = 8;
/// Distinct queries of the warm loop.
const WARM_QUERIES: u64 = 16;
/// Cold samples at most.
const COLD_SAMPLES_MAX: usize = 4_096;

/// Measures `question` for about `budget`, half of it cold and half of it warm, with queries 0 to `count`.
pub(super) fn cold_and_warm(
    question: &mut impl Question,
    count: u64,
    flush: &Flush,
    budget: Duration,
    rng: &mut super::rng::Rng,
) -> ColdWarm {
    let pair_ns = clock_pair_ns();
    let mut keys = Vec::new();
    let mut cold = Vec::new();
    let started = Instant::now();
    while cold.len() < COLD_SAMPLES_MAX && (cold.len() < 64 || started.elapsed() < budget / 2) {
        flush.run();
        for sample in 0..=COLD_BATCH {
            question.ask(rng.below(count), &mut keys);
            let start = Instant::now();
            black_box(question.find(black_box(&keys)));
            let took = elapsed_ns(start);
            // The first brings the code and the stack back, which is not the index's cost.
            if sample > 0 {
                cold.push(took);
            }
        }
    }
    let warm_ns = warm(question, count, budget / 2, rng);
    let net = |ns: u32| (f64::from(ns) - pair_ns).max(0.0);
    let (p50, p99) = (percentile(&mut cold, 0.5), percentile(&mut cold, 0.99));
    ColdWarm { cold_ns: net(p50), cold_p99_ns: net(p99), warm_ns }
}

/// The best of several passes over a few queries whose keys are made beforehand.
fn warm(
    question: &mut impl Question,
    count: u64,
    budget: Duration,
    rng: &mut super::rng::Rng,
) -> f64 {
    let queries: Vec<Vec<_>> = (0..WARM_QUERIES.min(count))
        .map(|_| {
            let mut keys = Vec::new();
            question.ask(rng.below(count), &mut keys);
            keys
        })
        .collect();
    let mut passes = Vec::new();
    let started = Instant::now();
    while passes.len() < 5 || started.elapsed() < budget {
        let (watch, mut lookups) = (Stopwatch::start(), 0u64);
        while lookups < 2_048 {
            for keys in &queries {
                black_box(question.find(black_box(keys)));
            }
            lookups += queries.len() as u64;
        }
        passes.push(watch.read().cpu_ns / lookups as f64);
    }
    least(&passes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_none_one_and_many() {
        assert_eq!(percentile(&mut [], 0.5), 0);
        assert_eq!(percentile(&mut [9], 0.99), 9);
        let mut many: Vec<u32> = (0..=100).rev().collect();
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|p| percentile(&mut many, p)), [0, 50, 99, 100]);
    }

    #[test]
    fn rounding_keeps_what_matters() {
        let shown = [0.123_456, 12.345, 123_456.7].map(|v| round(v).to_string());
        assert_eq!(shown, ["0.123", "12.3", "123457.0"]);
        assert!(ratio(1.0, 0.0).abs() < f64::EPSILON);
    }

    #[test]
    fn work_costs_cpu_time() {
        let watch = Stopwatch::start();
        black_box((0..3_000_000u64).fold(1u64, |a, b| a.wrapping_mul(31) ^ b));
        let spent = watch.read();
        assert!(spent.cpu_ns > 10_000.0 && spent.wall_ns >= spent.cpu_ns * 0.5);
    }
}
