//! How much a worker's memory is asked for, from what it tells of its load anyway.
//!
//! By Little's law a block stays for as long as it takes to evict as many as are cached. That is the time of the
//! average block, and those that nobody uses again go sooner: it is what is known without a histogram of ages.

use std::time::Instant;

use mainstay_block::Pressure;
use mainstay_proto::v1;

/// The shortest stretch that a rate is taken of.
const STRETCH_MS: f64 = 1_000.0;
/// How long the past counts: half of it is forgotten in about two thirds of this.
const MEMORY_MS: f64 = 30_000.0;
/// So few evictions in all that is remembered are none.
const EVICTIONS_LEAST: f64 = 1.0;

/// What came and went of late.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    last: Option<Sample>,
    evictions_per_ms: f64,
    hits_per_ms: f64,
    /// How much of the memory is filled: the rest counts as if nothing had happened in it, which is taken out again.
    filled: f64,
    cached: f64,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    evictions: u64,
    hit_tokens: u64,
}

impl Flow {
    /// Takes a load as it came.
    pub(crate) fn take(&mut self, load: &v1::Load, block_tokens: u32, at: Instant) {
        self.cached = load.blocks_cached as f64;
        let now = Sample { at, evictions: load.evictions, hit_tokens: load.hit_tokens };
        let Some(last) = self.last else {
            self.last = Some(now);
            return;
        };
        let took_ms = at.saturating_duration_since(last.at).as_secs_f64() * 1_000.0;
        if took_ms < STRETCH_MS {
            return;
        }
        self.last = Some(now);
        let weight = 1.0 - (-took_ms / MEMORY_MS).exp();
        let blend = |rate: &mut f64, count: f64| *rate += weight * (count / took_ms - *rate);
        // A counter that went back has begun anew.
        let evicted = now.evictions.saturating_sub(last.evictions) as f64;
        let hits = now.hit_tokens.saturating_sub(last.hit_tokens) as f64;
        blend(&mut self.evictions_per_ms, evicted);
        blend(&mut self.hits_per_ms, hits / f64::from(block_tokens.max(1)));
        self.filled += weight * (1.0 - self.filled);
    }

    /// The pressure now.
    pub(crate) fn pressure(&self) -> Pressure {
        if self.evictions_per_ms * MEMORY_MS < EVICTIONS_LEAST {
            return Pressure { kept_ms: None, used_share: 1.0 };
        }
        let kept_ms = self.cached * self.filled / self.evictions_per_ms;
        let all = self.hits_per_ms + self.evictions_per_ms;
        Pressure { kept_ms: Some(kept_ms as u64), used_share: self.hits_per_ms / all }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn load(evictions: u64, hit_tokens: u64) -> v1::Load {
        v1::Load { blocks_cached: 1_000, evictions, hit_tokens, ..v1::Load::default() }
    }

    #[test]
    fn blocks_stay_for_as_long_as_it_takes_to_evict_them_all() {
        let (mut flow, start) = (Flow::default(), Instant::now());
        assert_eq!(flow.pressure().kept_ms, None);
        // A hundred blocks go each second, and three hundred are hit.
        for second in 0..300 {
            let at = start + Duration::from_secs(second);
            flow.take(&load(second * 100, second * 300 * 16), 16, at);
        }
        let pressure = flow.pressure();
        let kept_ms = pressure.kept_ms.unwrap();
        assert!((9_500..10_500).contains(&kept_ms), "{kept_ms}");
        assert!((pressure.used_share - 0.75).abs() < 0.01);
        // A short look says the same.
        let (mut short, first) = (Flow::default(), start);
        for second in 0..3 {
            let at = first + Duration::from_secs(second);
            short.take(&load(second * 100, 0), 16, at);
        }
        let kept_ms = short.pressure().kept_ms.unwrap();
        assert!((9_500..10_500).contains(&kept_ms), "{kept_ms}");
        // Nothing goes any more.
        for second in 300..700 {
            flow.take(&load(30_000, 0), 16, start + Duration::from_secs(second));
        }
        assert_eq!(flow.pressure().kept_ms, None);
    }
}
