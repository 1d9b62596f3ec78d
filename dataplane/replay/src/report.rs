//! The figures of one policy on one trace.
//!
//! Percentiles are exact, over all requests. Rates of the fleet are over the time while there were sessions to start,
//! so that the long last ones do not count as idleness.

mod page;

use serde::Serialize;

use crate::series::Series;

pub use page::comparison_page;

/// Percentiles and the mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Half are at most this.
    pub p50: f64,
    /// Nine of ten are.
    pub p90: f64,
    /// Ninety-nine of a hundred are.
    pub p99: f64,
    /// The mean.
    pub mean: f64,
}

/// Three digits after the point: more would be noise in a table and in a file.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}

impl Spread {
    /// Of values in thousandths; zeros where there are none.
    pub(crate) fn of_thousandths(values: &mut [u64]) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        values.sort_unstable();
        let at = |hundredths: usize| {
            // The smallest value that so many are not above.
            let rank = (values.len() * hundredths).div_ceil(100).max(1);
            values[rank - 1] as f64 / 1_000.0
        };
        let sum: f64 = values.iter().map(|value| *value as f64).sum();
        let mean = rounded(sum / values.len() as f64 / 1_000.0);
        Self { p50: at(50), p90: at(90), p99: at(99), mean }
    }
}

/// Blocks that were evicted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Evictions {
    /// To make room.
    pub capacity: u64,
    /// After their retention had ended.
    pub expiry: u64,
}

/// What a policy did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Its name.
    pub policy: String,
    /// Requests that ended.
    pub requests: u64,
    /// Requests that no worker can hold.
    pub refused: u64,
    /// Sessions that were played.
    pub sessions: u64,
    /// From arrival to first token, in milliseconds.
    pub ttft_ms: Spread,
    /// Of requests: tokens of the answer over the time from arrival to its end. Low percentiles are the slow ones.
    pub request_tok_s: Spread,
    /// Of the fleet: tokens a second while it was full.
    pub fleet_tok_s: f64,
    /// Cached prompt tokens of all prompt tokens.
    pub hit_rate: f64,
    /// The same for a cache that never forgets and is everywhere.
    pub hit_rate_available: f64,
    /// One of the other.
    pub hit_share: f64,
    /// Prompt tokens that were computed, of those that had to be with the best of caches.
    pub prefill_amplification: f64,
    /// The share of time that workers computed while the fleet was full.
    pub busy: f64,
    /// Requests that lost their blocks and computed again.
    pub preemptions: u64,
    /// Evicted blocks by cause.
    pub evictions: Evictions,
    /// Tokens that came in from host memory instead of being computed.
    pub loaded_tokens: u64,
    /// Tokens that came in from other workers.
    pub fetched_tokens: u64,
    /// Requests that waited in the router's queue, and for how long.
    pub queued: u64,
    /// See `queued`.
    pub queue_ms: Spread,
    /// How often that queue turned somebody away, who came again.
    pub turned_away: u64,
    /// The whole run, in virtual seconds.
    pub virtual_s: f64,
    /// What a decision took, index included, in microseconds of real time; only where it was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision_us: Option<Spread>,
    /// By priority, where not all requests have the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_priority: Vec<Class>,
    /// Whether sessions took leases and their changes became orders.
    pub lifecycle: bool,
    /// Requests of nobody's session, which count in no other figure of requests.
    pub strangers: u64,
    /// Their first tokens.
    pub strangers_ttft_ms: Spread,
    /// Turns that went on after a pause, by how long it was in seconds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after_pause: Vec<Back>,
    /// The same by how many times its cache their worker had taken in meanwhile.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after_traffic: Vec<Back>,
    /// Leads whose beginnings were pinned, where any were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Pinned>,
    /// Distribution and course, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<Series>,
}

impl Report {
    /// Whether anything was done for turns after pauses, or against them.
    #[must_use]
    pub fn is_of_returns(&self) -> bool {
        self.lifecycle || self.strangers > 0 || self.pinned.is_some()
    }
}

/// Turns after pauses from so much on, up to where the next one begins.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Back {
    /// Seconds, or caches.
    pub from: f64,
    /// How many turns.
    pub turns: u64,
    /// Cached prompt tokens, of those that a cache without end would have had.
    pub hit_share: f64,
}

/// Pinned beginnings of leads' prompts beside those that were not pinned. Flooded are turns before which the worker took
/// in five times its cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pinned {
    /// How long the stretch is.
    pub tokens: u32,
    /// Sessions that were pinned.
    pub sessions: u64,
    /// Pins that found no room.
    pub refused: u64,
    /// Turns of pinned leads after a pause.
    pub turns: u64,
    /// The part of the stretch that they found.
    pub hit_rate: f64,
    /// Those of them that were flooded.
    pub turns_flooded: u64,
    /// See `hit_rate`.
    pub hit_rate_flooded: f64,
    /// Turns of leads that could have been pinned and were not.
    pub others_turns: u64,
    /// See `hit_rate`.
    pub others_hit_rate: f64,
    /// Those of them that were flooded.
    pub others_turns_flooded: u64,
    /// See `hit_rate`.
    pub others_hit_rate_flooded: f64,
}

impl Pinned {
    /// Its figures as cells of a table: sessions; turns and hits; of those that were flooded; hits of others, and of those
    /// that were flooded.
    #[must_use]
    pub fn cells(&self) -> [String; 7] {
        let percent = |share: f64| format!("{:.2}%", share * 100.0);
        [
            self.sessions.to_string(),
            self.turns.to_string(),
            percent(self.hit_rate),
            self.turns_flooded.to_string(),
            percent(self.hit_rate_flooded),
            percent(self.others_hit_rate),
            percent(self.others_hit_rate_flooded),
        ]
    }
}

/// Requests of one kind of priority.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Class {
    /// `urgent`, `ordinary` or `background`.
    pub priority: &'static str,
    /// Those that ended.
    pub requests: u64,
    /// As in the whole report.
    pub ttft_ms: Spread,
    /// As in the whole report.
    pub hit_rate: f64,
    /// The longest that anybody waited for a first token.
    pub ttft_max_ms: f64,
    /// Of the time to the first token, what a request waited in its engine before it was admitted.
    pub engine_queue_ms: Spread,
    /// The rest: in the router's queue, and computed.
    pub rest_ms: Spread,
    /// Prompt tokens that were not cached.
    pub uncached_tokens: Spread,
    /// As in the whole report.
    pub request_tok_s: Spread,
    /// Tokens a second of all of them while the fleet was full.
    pub fleet_tok_s: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let mut values: Vec<u64> = (1..=200).rev().map(|v| v * 1_000).collect();
        let spread = Spread::of_thousandths(&mut values);
        assert_eq!((spread.p50, spread.p90, spread.p99, spread.mean), (100.0, 180.0, 198.0, 100.5));
        assert_eq!(Spread::of_thousandths(&mut [7]).p99, 0.007);
        assert_eq!(Spread::of_thousandths(&mut []), Spread::default());
    }
}
