//! What the memory under an index allows: one dependent miss, and misses that wait for nothing.
//!
//! A lookup that starts cold cannot be faster than the misses that depend on each other on its way, so its time
//! is given as a multiple of one. Measured in the same run over a buffer as large as the index, rounded to a power
//! of two and bounded by a quarter of the free memory. Where no buffer can be had the misses read 0.

use std::collections::BTreeMap;
use std::hint::black_box;

use memmap2::{Advice, MmapMut};
use serde_json::{Value, json};

use super::machine::available_bytes;
use super::measure::{Stopwatch, least, round};

const LINE_BYTES: usize = 64;
const BUFFER_BYTES_MIN: u64 = 1 << 20;
const STEPS: usize = 200_000;
const PASSES: usize = 5;
/// Full period over any power of two, by the rule of Hull and Dobell.
const STEP_FACTOR: usize = 0x5851_f42d_4c95_7f2d;
const STEP_ADD: usize = 0x1405_7b7e_f767_814f;

/// The cost of one line of memory.
#[derive(Clone, Copy, Default)]
pub(super) struct Misses {
    pub(super) dependent_ns: f64,
    pub(super) independent_ns: f64,
}

/// Probes that were made, by size.
#[derive(Default)]
pub(super) struct Limits {
    /// With huge pages, and with small ones.
    probed: BTreeMap<u64, [Misses; 2]>,
}

impl Limits {
    /// The misses of a working set of about `bytes` on huge pages.
    pub(super) fn at(&mut self, bytes: u64) -> Misses {
        let size = rounded(bytes, available_bytes() / 4);
        let probed = self.probed.entry(size).or_insert_with(|| {
            super::say(&format!("misses over {} MiB", size >> 20));
            [true, false].map(|huge| probe(size, huge))
        });
        probed[0]
    }

    pub(super) fn rows(&self) -> Vec<Value> {
        let row = |(bytes, [huge, small]): (&u64, &[Misses; 2])| {
            json!({
                "buffer_bytes": bytes,
                "dependent_miss_ns": round(huge.dependent_ns),
                "independent_miss_ns": round(huge.independent_ns),
                "small_pages_dependent_miss_ns": round(small.dependent_ns),
                "small_pages_independent_miss_ns": round(small.independent_ns),
            })
        };
        self.probed.iter().map(row).collect()
    }
}

/// The power of two nearest to `bytes` that is not over `most`.
fn rounded(bytes: u64, most: u64) -> u64 {
    let bytes = bytes.clamp(BUFFER_BYTES_MIN, most.max(BUFFER_BYTES_MIN));
    let above = bytes.checked_next_power_of_two().unwrap_or(BUFFER_BYTES_MIN);
    if above > bytes + bytes / 2 || above > most.max(BUFFER_BYTES_MIN) { above / 2 } else { above }
}

/// Both misses over a buffer of `bytes`; `huge` asks for huge pages, as the index does for its tables.
fn probe(bytes: u64, huge: bool) -> Misses {
    let bytes = usize::try_from(bytes).unwrap_or(1 << 20);
    let Ok(mut map) = MmapMut::map_anon(bytes) else {
        return Misses::default();
    };
    // A refusal leaves small pages, which only makes the miss dearer.
    let advice = if huge { Advice::HugePage } else { Advice::NoHugePage };
    let _small = map.advise(advice);
    // Written with other than zeros, so that every page is a page of its own.
    map.fill(1);
    let buffer = black_box(&map[..]);
    let lines = bytes / LINE_BYTES;
    let shift = usize::BITS - lines.trailing_zeros();
    let step = |state: usize| state.wrapping_mul(STEP_FACTOR).wrapping_add(STEP_ADD);
    // The upper bits of the state jump about; the lower ones alone would walk in a pattern.
    let read = |state: usize| buffer[(state >> shift) * LINE_BYTES];
    let dependent = |mut state: usize| {
        for _ in 0..STEPS {
            state = step(state).wrapping_add(usize::from(read(state)) << 40);
        }
        state
    };
    let independent = |mut state: usize| {
        let mut sum = 0usize;
        for _ in 0..STEPS {
            state = step(state);
            sum = sum.wrapping_add(usize::from(read(state)));
        }
        state ^ sum
    };
    Misses { dependent_ns: best_of(dependent), independent_ns: best_of(independent) }
}

fn best_of(walk: impl Fn(usize) -> usize) -> f64 {
    let mut state = 12_345;
    let passes = (0..PASSES).map(|_| {
        let watch = Stopwatch::start();
        state = black_box(walk(black_box(state)));
        watch.read().cpu_ns / STEPS as f64
    });
    least(&passes.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_round_to_powers_of_two_within_bounds() {
        let most = 1 << 30;
        for (bytes, size) in
            [(0, 1 << 20), (3 << 20, 4 << 20), (5 << 20, 4 << 20), (u64::MAX, 1 << 30)]
        {
            assert_eq!(rounded(bytes, most), size);
        }
        assert_eq!(rounded(7 << 20, 6 << 20), 4 << 20);
        assert_eq!(rounded(u64::MAX, 0), 1 << 20);
    }

    #[test]
    fn waiting_costs_more_than_not_waiting() {
        let misses = probe(16 << 20, true);
        assert!(misses.dependent_ns > misses.independent_ns && misses.independent_ns > 0.0);
    }
}
