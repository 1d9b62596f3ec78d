//! What this gateway did and heard lately, for the console: sums that requests add to in passing, read once a second
//! into rings of fixed size.
//!
//! Prometheus has the long histories, this one has the last quarter of an hour by the second and the last day by the
//! minute, so that a page shows something at 3 a.m. on a machine where nothing else is installed. Nothing rests on it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mainstay_chat::Usage;
use mainstay_proto::v1;
use mainstay_types::WorkerId;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::workers::Workers;

/// Samples of a second: a quarter of an hour.
const SECONDS_MAX: usize = 900;
/// Samples of a minute: a day.
const MINUTES_MAX: usize = 1_440;
/// Seconds in a sample of the longer ring.
const MERGED: usize = 60;
/// Seconds in a step of what is shown of the shorter one: single ones are noise.
const SHOWN_STEP_MS: u64 = 5_000;
/// Between two samples.
const PACE: Duration = Duration::from_secs(1);
/// Buckets of times to the first token; the last takes all that is longer.
const BUCKETS: usize = 48;
/// Where the first bucket ends, in milliseconds, and how much wider each one is than the one before: 45 s at the last.
const BUCKET_MS: f64 = 1.0;
const BUCKET_GROWTH: f64 = 1.25;

/// Milliseconds since 1970, as browsers count.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Times to the first token, by bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times([u32; BUCKETS]);

impl Default for Times {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

/// The bucket of a time; what is no time is in the first.
fn bucket(ms: f64) -> usize {
    if ms.is_nan() || ms <= BUCKET_MS {
        return 0;
    }
    let at = ((ms / BUCKET_MS).ln() / BUCKET_GROWTH.ln()).ceil();
    // A cast ends at the type's bounds.
    (at as usize).min(BUCKETS - 1)
}

impl Times {
    fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum = sum.saturating_add(count);
        }
    }

    /// The time that `share` of them do not exceed, to within a bucket, in milliseconds; `None` without any.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let all: u64 = self.0.iter().map(|n| u64::from(*n)).sum();
        let wanted = (share * all as f64).max(1.0);
        let mut before = 0.0;
        for (at, count) in self.0.iter().enumerate().filter(|(_, n)| **n > 0) {
            let count = f64::from(*count);
            if before + count >= wanted {
                let part = (wanted - before) / count;
                let exponent = at as f64 - 1.0 + part;
                return Some(BUCKET_MS * BUCKET_GROWTH.powf(exponent.max(0.0)));
            }
            before += count;
        }
        None
    }
}

/// Sums since the start, added to by requests.
#[derive(Debug)]
pub(crate) struct Tally {
    requests: AtomicU64,
    refused: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    times: [AtomicU64; BUCKETS],
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            requests: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            prompt_tokens: AtomicU64::new(0),
            cached_tokens: AtomicU64::new(0),
            completion_tokens: AtomicU64::new(0),
            times: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl Tally {
    /// A request came.
    pub(crate) fn asked(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// It was refused or failed before its first token.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The first token of a stream came after so long.
    pub(crate) fn first_token(&self, after: Duration) {
        self.times[bucket(after.as_secs_f64() * 1_000.0)].fetch_add(1, Ordering::Relaxed);
    }

    /// An answer took this much.
    pub(crate) fn used(&self, usage: &Usage) {
        self.prompt_tokens.fetch_add(usage.prompt_tokens, Ordering::Relaxed);
        self.cached_tokens.fetch_add(usage.cached_tokens, Ordering::Relaxed);
        self.completion_tokens.fetch_add(usage.completion_tokens, Ordering::Relaxed);
    }

    fn read(&self) -> Sums {
        let of = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        Sums {
            requests: of(&self.requests),
            refused: of(&self.refused),
            prompt_tokens: of(&self.prompt_tokens),
            cached_tokens: of(&self.cached_tokens),
            completion_tokens: of(&self.completion_tokens),
            times: self.times.each_ref().map(of),
        }
    }
}

/// A [`Tally`] at one moment.
#[derive(Debug, Clone, Copy)]
struct Sums {
    requests: u64,
    refused: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
    times: [u64; BUCKETS],
}

/// What happened in a stretch of time, and how things stood at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sample {
    /// Its end.
    pub(crate) at_unix_ms: u64,
    pub(crate) requests: u64,
    pub(crate) refused: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) times: Times,
    /// Of all workers that this gateway hears, whoever asked them.
    pub(crate) fleet: Fleet,
}

/// Sums over the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Fleet {
    pub(crate) running: u64,
    pub(crate) waiting: u64,
    pub(crate) blocks_total: u64,
    pub(crate) blocks_used: u64,
    pub(crate) blocks_pinned: u64,
    pub(crate) blocks_cached: u64,
    /// Since the sample before.
    pub(crate) evictions: u64,
    pub(crate) computed_tokens: u64,
    pub(crate) decoded_tokens: u64,
}

impl Sample {
    /// What came between two readings.
    fn between(before: &Sums, after: &Sums, at_unix_ms: u64, fleet: Fleet) -> Self {
        let mut times = Times::default();
        for (at, count) in times.0.iter_mut().enumerate() {
            let passed = after.times[at].saturating_sub(before.times[at]);
            *count = u32::try_from(passed).unwrap_or(u32::MAX);
        }
        Self {
            at_unix_ms,
            requests: after.requests.saturating_sub(before.requests),
            refused: after.refused.saturating_sub(before.refused),
            prompt_tokens: after.prompt_tokens.saturating_sub(before.prompt_tokens),
            cached_tokens: after.cached_tokens.saturating_sub(before.cached_tokens),
            completion_tokens: after.completion_tokens.saturating_sub(before.completion_tokens),
            times,
            fleet,
        }
    }

    /// Goes on with the stretch that follows.
    pub(crate) fn and_then(&mut self, next: &Self) {
        self.at_unix_ms = next.at_unix_ms;
        self.requests += next.requests;
        self.refused += next.refused;
        self.prompt_tokens += next.prompt_tokens;
        self.cached_tokens += next.cached_tokens;
        self.completion_tokens += next.completion_tokens;
        self.times.add(&next.times);
        let before = self.fleet;
        self.fleet = next.fleet;
        self.fleet.evictions += before.evictions;
        self.fleet.computed_tokens += before.computed_tokens;
        self.fleet.decoded_tokens += before.decoded_tokens;
    }
}

/// The latest samples, oldest first.
#[derive(Debug, Default)]
struct Rings {
    seconds: VecDeque<Sample>,
    minutes: VecDeque<Sample>,
    /// The minute that is not over, and how many seconds it has.
    open: (Sample, usize),
}

impl Rings {
    fn push(&mut self, sample: Sample) {
        bounded(&mut self.seconds, sample, SECONDS_MAX);
        let (open, seconds) = &mut self.open;
        open.and_then(&sample);
        *seconds += 1;
        if *seconds >= MERGED {
            bounded(&mut self.minutes, *open, MINUTES_MAX);
            self.open = Default::default();
        }
    }
}

/// Seconds taken together to whole steps of the clock; the first and the last, which may lack some, are left out.
fn steps<'a>(seconds: impl Iterator<Item = &'a Sample>) -> Vec<Sample> {
    let mut steps: Vec<Sample> = Vec::new();
    for second in seconds {
        let step = |sample: &Sample| sample.at_unix_ms / SHOWN_STEP_MS;
        match steps.last_mut().filter(|last| step(last) == step(second)) {
            Some(last) => last.and_then(second),
            None => steps.push(*second),
        }
    }
    steps.pop();
    steps.drain(..steps.len().min(1));
    steps
}

fn bounded(ring: &mut VecDeque<Sample>, sample: Sample, most: usize) {
    if ring.len() >= most {
        ring.pop_front();
    }
    ring.push_back(sample);
}

/// What workers count since they began, as last heard.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    epoch: u64,
    evictions: u64,
    computed_tokens: u64,
    decoded_tokens: u64,
}

/// The rings, shared by the task that fills them and by those who look.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    rings: Arc<Mutex<Rings>>,
}

/// How far back is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    /// A quarter of an hour, in steps of five seconds.
    Short,
    /// A day by the minute.
    Long,
}

impl History {
    /// Reads the sums once a second, for ever.
    pub(crate) async fn follow(self, tally: Arc<Tally>, workers: Workers) {
        let mut clock = tokio::time::interval(PACE);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut before, mut heard) = (tally.read(), HashMap::new());
        clock.tick().await;
        loop {
            clock.tick().await;
            let now = tally.read();
            let loads = workers.all().into_iter().map(|w| (w.id, w.load().0));
            let fleet = fleet_of(loads, &mut heard);
            self.push(Sample::between(&before, &now, unix_ms(), fleet));
            before = now;
        }
    }

    fn push(&self, sample: Sample) {
        self.rings.lock().push(sample);
    }

    /// The last `seconds` taken together.
    pub(crate) fn last(&self, seconds: usize) -> Sample {
        let rings = self.rings.lock();
        let mut sum = Sample::default();
        for sample in rings.seconds.iter().rev().take(seconds).rev() {
            sum.and_then(sample);
        }
        sum
    }

    /// All samples of a ring, a column for each figure.
    pub(crate) fn columns(&self, span: Span) -> Value {
        let samples: Vec<Sample> = {
            let rings = self.rings.lock();
            match span {
                Span::Short => steps(rings.seconds.iter()),
                Span::Long => rings.minutes.iter().copied().collect(),
            }
        };
        let column = |of: fn(&Sample) -> Value| samples.iter().map(of).collect::<Value>();
        json!({
            "step_ms": match span { Span::Short => SHOWN_STEP_MS, Span::Long => 60_000 },
            "at_unix_ms": column(|s| s.at_unix_ms.into()),
            "requests": column(|s| s.requests.into()),
            "refused": column(|s| s.refused.into()),
            "prompt_tokens": column(|s| s.prompt_tokens.into()),
            "cached_tokens": column(|s| s.cached_tokens.into()),
            "completion_tokens": column(|s| s.completion_tokens.into()),
            "ttft_p50_ms": column(|s| shown_ms(s.times.quantile(0.5))),
            "ttft_p95_ms": column(|s| shown_ms(s.times.quantile(0.95))),
            "running": column(|s| s.fleet.running.into()),
            "waiting": column(|s| s.fleet.waiting.into()),
            "evictions": column(|s| s.fleet.evictions.into()),
        })
    }
}

/// Milliseconds for a page: no more digits than a bucket is worth.
pub(crate) fn shown_ms(ms: Option<f64>) -> Value {
    ms.map_or(Value::Null, |ms| json!((ms * 10.0).round() / 10.0))
}

/// Sums over what workers said last. Counters of a worker that began anew begin at 0.
fn fleet_of(
    loads: impl Iterator<Item = (WorkerId, v1::Load)>,
    heard: &mut HashMap<WorkerId, Heard>,
) -> Fleet {
    let mut fleet = Fleet::default();
    let mut now = HashMap::new();
    for (id, load) in loads {
        fleet.running += u64::from(load.running);
        fleet.waiting += u64::from(load.waiting);
        fleet.blocks_total += load.blocks_total;
        fleet.blocks_used += load.blocks_used;
        fleet.blocks_pinned += load.blocks_pinned;
        fleet.blocks_cached += load.blocks_cached;
        let latest = Heard {
            epoch: load.epoch,
            evictions: load.evictions,
            computed_tokens: load.prefill_tokens,
            decoded_tokens: load.decode_tokens,
        };
        // Whom nobody heard before may have counted for days.
        let before = heard.get(&id).copied().unwrap_or(latest);
        let before = if before.epoch == latest.epoch { before } else { Heard::default() };
        fleet.evictions += latest.evictions.saturating_sub(before.evictions);
        fleet.computed_tokens += latest.computed_tokens.saturating_sub(before.computed_tokens);
        fleet.decoded_tokens += latest.decoded_tokens.saturating_sub(before.decoded_tokens);
        now.insert(id, latest);
    }
    *heard = now;
    fleet
}

#[cfg(test)]
mod tests;
