//! How quickly workers bring blocks in from each other, as seen from here.
//!
//! Workers do not tell. What a first token took beyond what was expected of everything else is the way of the blocks
//! that came, which is too long rather than too short: whoever looks slow is asked less. Until something was measured, a
//! token is taken to come in a quarter of the time that computing it takes.

use mainstay_route::{Fetch, PREFILL_US_PER_TOKEN_DEFAULT, WorkerView};

/// Of computing, until something was measured.
const SHARE_UNMEASURED: f64 = 0.25;
/// The weight of a new measurement.
const WEIGHT: f64 = 0.1;
/// Fewer tokens say nothing of a pace.
const TOKENS_MIN: u32 = 64;
/// No token takes longer, or less.
const US_MAX: f64 = 1e6;
const US_MIN: f64 = 0.01;

/// What a token from another worker takes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct FetchPace {
    us_per_token: Option<f64>,
}

impl FetchPace {
    /// So many tokens came while a first token took so much longer than the rest of it was expected to take.
    pub(crate) fn took(&mut self, tokens: u32, beyond_ms: f64) {
        if tokens < TOKENS_MIN || !beyond_ms.is_finite() {
            return;
        }
        let sample = (beyond_ms * 1_000.0 / f64::from(tokens)).clamp(US_MIN, US_MAX);
        let before = self.us_per_token.unwrap_or(sample);
        self.us_per_token = Some(before + WEIGHT * (sample - before));
    }

    /// What the router is told of blocks that somebody else holds; nothing where nobody does.
    pub(crate) fn fetch(&self, blocks: u32, workers: &[WorkerView]) -> Option<Fetch> {
        if blocks == 0 {
            return None;
        }
        let us_per_token = self.us_per_token.unwrap_or_else(|| {
            let paces = workers.iter().map(|w| f64::from(w.load.prefill_us_per_token));
            let quickest = paces.filter(|us| *us > 0.0).fold(f64::INFINITY, f64::min);
            let usual = PREFILL_US_PER_TOKEN_DEFAULT;
            SHARE_UNMEASURED * if quickest.is_finite() { quickest } else { usual }
        });
        Some(Fetch { blocks, us_per_token: us_per_token as f32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_counts_and_what_is_no_measurement_does_not() {
        let mut pace = FetchPace::default();
        assert_eq!(pace.fetch(0, &[]), None);
        assert_eq!(pace.fetch(3, &[]), Some(Fetch { blocks: 3, us_per_token: 50.0 }));
        for (tokens, beyond_ms) in [(10, 5.0), (1_000, f64::NAN), (1_000, f64::INFINITY)] {
            pace.took(tokens, beyond_ms);
        }
        assert_eq!(pace, FetchPace::default());
        pace.took(1_000, 20.0);
        assert_eq!(pace.fetch(3, &[]).map(|f| f.us_per_token), Some(20.0));
        // Sooner than everything else was expected to take: as quick as can be.
        pace.took(1_000, -5.0);
        assert!((pace.fetch(3, &[]).unwrap().us_per_token - 18.001).abs() < 1e-3);
    }
}
