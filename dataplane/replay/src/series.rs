//! What a run looked like over time, in a bounded number of buckets.
//!
//! How long a run will take is not known at its begin, so buckets start short, and two become one each time they
//! would be too many.

use serde::Serialize;

use crate::report::rounded;

/// Buckets at most.
const BUCKETS_MAX: usize = 80;
/// The width of the first buckets.
const WIDTH_US: u64 = 1_000_000;

/// A stretch of virtual time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Point {
    /// Its begin.
    pub at_s: f64,
    /// Requests that had arrived and not ended, on average.
    pub in_flight: f64,
    /// Mean time to first token, of those whose first token fell into it; none where there were none.
    pub ttft_ms: Option<f64>,
    /// Tokens of requests that ended in it, a second.
    pub tok_s: f64,
    /// Cached prompt tokens of all, of the same requests as `ttft_ms`.
    pub hit_rate: Option<f64>,
}

/// Distribution and course of a run, for plots.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// Percent of requests, and the time to first token in milliseconds that they do not exceed.
    pub ttft_cdf: Vec<(f64, f64)>,
    /// Until then there were sessions to start, so that the fleet was full; in virtual seconds.
    pub full_s: f64,
    /// The course.
    pub points: Vec<Point>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    in_flight_us: u64,
    firsts: u64,
    ttft_us: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    said_tokens: u64,
}

impl Bucket {
    fn and(self, other: Self) -> Self {
        Self {
            in_flight_us: self.in_flight_us + other.in_flight_us,
            firsts: self.firsts + other.firsts,
            ttft_us: self.ttft_us + other.ttft_us,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            cached_tokens: self.cached_tokens + other.cached_tokens,
            said_tokens: self.said_tokens + other.said_tokens,
        }
    }
}

/// Collects the course of a run. Times must not go back.
#[derive(Debug)]
pub(crate) struct Course {
    width_us: u64,
    buckets: Vec<Bucket>,
    in_flight: u64,
    since_us: u64,
}

impl Default for Course {
    fn default() -> Self {
        Self { width_us: WIDTH_US, buckets: Vec::new(), in_flight: 0, since_us: 0 }
    }
}

impl Course {
    pub(crate) fn arrived(&mut self, now_us: u64) {
        self.pass(now_us);
        self.in_flight += 1;
    }

    pub(crate) fn first(&mut self, now_us: u64, ttft_us: u64, prompt: u32, cached: u32) {
        let bucket = self.bucket(now_us);
        bucket.firsts += 1;
        bucket.ttft_us += ttft_us;
        bucket.prompt_tokens += u64::from(prompt);
        bucket.cached_tokens += u64::from(cached);
    }

    pub(crate) fn ended(&mut self, now_us: u64, said_tokens: u64) {
        self.pass(now_us);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.bucket(now_us).said_tokens += said_tokens;
    }

    /// Lets time pass with what is in flight.
    fn pass(&mut self, now_us: u64) {
        if self.in_flight == 0 {
            self.since_us = now_us;
        }
        while self.since_us < now_us {
            let in_flight = self.in_flight;
            self.bucket(now_us);
            let end_us = (self.since_us / self.width_us + 1) * self.width_us;
            let until_us = end_us.min(now_us);
            let passed_us = until_us - self.since_us;
            self.bucket(self.since_us).in_flight_us += in_flight * passed_us;
            self.since_us = until_us;
        }
    }

    fn bucket(&mut self, at_us: u64) -> &mut Bucket {
        while at_us / self.width_us >= BUCKETS_MAX as u64 {
            self.width_us *= 2;
            self.buckets = self
                .buckets
                .chunks(2)
                .map(|b| b.iter().fold(Bucket::default(), |a, b| a.and(*b)))
                .collect();
        }
        let at = (at_us / self.width_us) as usize;
        if self.buckets.len() <= at {
            self.buckets.resize(at + 1, Bucket::default());
        }
        &mut self.buckets[at]
    }

    /// The course, whose last bucket ends with the run.
    pub(crate) fn points(&self, end_us: u64) -> Vec<Point> {
        let point = |(at, bucket): (usize, &Bucket)| {
            let from_us = at as u64 * self.width_us;
            let width_us = end_us.saturating_sub(from_us).clamp(1, self.width_us) as f64;
            let seen = bucket.firsts > 0;
            let share = bucket.cached_tokens as f64 / bucket.prompt_tokens.max(1) as f64;
            Point {
                at_s: rounded(from_us as f64 / 1e6),
                in_flight: rounded(bucket.in_flight_us as f64 / width_us),
                ttft_ms: seen.then(|| rounded(bucket.ttft_us as f64 / bucket.firsts as f64 / 1e3)),
                tok_s: rounded(bucket.said_tokens as f64 * 1e6 / width_us),
                hit_rate: seen.then(|| (share * 1e6).round() / 1e6),
            }
        };
        self.buckets.iter().enumerate().map(point).collect()
    }
}

/// Percentiles of sorted values in thousandths: each whole one, and the tail more finely.
pub(crate) fn cdf(sorted: &[u64]) -> Vec<(f64, f64)> {
    let percents = (1..=99).map(f64::from).chain([99.5, 99.9, 100.0]);
    let value = |percent: f64| {
        let rank = ((sorted.len() as f64 * percent / 100.0).ceil() as usize).max(1);
        sorted.get(rank - 1).map(|value| (percent, *value as f64 / 1_000.0))
    };
    percents.filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_flight_counts_for_as_long_as_it_is() {
        let mut course = Course::default();
        course.arrived(500_000);
        course.arrived(1_500_000);
        course.first(2_000_000, 1_500_000, 100, 50);
        course.ended(2_500_000, 10);
        course.ended(3_000_000, 20);
        let points = course.points(3_500_000);
        let in_flight: Vec<f64> = points.iter().map(|p| p.in_flight).collect();
        // The last bucket is half a second long.
        assert_eq!(in_flight, [0.5, 1.5, 1.5, 0.0]);
        assert_eq!((points[2].ttft_ms, points[2].hit_rate), (Some(1_500.0), Some(0.5)));
        assert_eq!((points[2].tok_s, points[3].tok_s, points[0].ttft_ms), (10.0, 40.0, None));
    }

    #[test]
    fn a_long_run_has_longer_buckets_and_loses_nothing() {
        let mut course = Course::default();
        for second in 0..10_000 {
            course.arrived(second * 1_000_000);
            course.ended(second * 1_000_000 + 250_000, 4);
        }
        let end_us = 10_000_000_000;
        let points = course.points(end_us);
        assert!((BUCKETS_MAX / 2..=BUCKETS_MAX).contains(&points.len()), "{}", points.len());
        let width_s = points[1].at_s;
        let said: f64 = points.iter().map(|p| p.tok_s * width_s.min(10_000.0 - p.at_s)).sum();
        assert!((said - 40_000.0).abs() < 1.0, "{said}");
        assert!(points.iter().all(|p| (p.in_flight - 0.25).abs() < 0.02));
    }

    #[test]
    fn the_curve_ends_with_the_slowest() {
        let sorted: Vec<u64> = (1..=1_000).map(|v| v * 1_000).collect();
        let cdf = cdf(&sorted);
        assert_eq!((cdf[0], cdf[49], cdf[101]), ((1.0, 10.0), (50.0, 500.0), (100.0, 1_000.0)));
        assert_eq!(super::cdf(&[]), []);
    }
}
