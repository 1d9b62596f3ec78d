//! The cost of serving one request on one worker, in milliseconds until its first token, term by term.
//!
//! ```text
//! prefill = tokens of the prompt that are not cached there            * prefill rate
//! queue   = prompt tokens that wait there, and those just sent there,
//!           less those that the request will share                    * prefill rate * share that goes first
//! decode  = requests there, and those just sent there                 * decode rate
//! memory  = tokens in blocks that must be taken from running requests * prefill rate
//!         + tokens that will come into the cache                      * prefill rate * share that pushes others out
//! region  = what was set for workers of other regions
//! ```
//! Tokens that the request will share are those of its own prefix that are being computed there right now for an
//! earlier request. It waits for them about as long as it would take to compute them elsewhere, but elsewhere they
//! would be computed a second time: so here they cost nothing, or a burst of equal prompts would have every idle
//! worker compute the same blocks.
//!
//! A full cache makes room by forgetting somebody's conversation, who then computes it again. What a request brings
//! along is what is not cached, or what an average conversation has where it begins one; the share is the square of
//! how full the worker is of conversations that are warm, at most a half where a conversation would move.
//!
//! A rate that was not measured yet is the mean of those that were: a new worker is like its peers until it shows
//! otherwise. Each term is finite and at least 0 for any input, and none grows with the overlap.

use crate::inputs::{WorkerLoad, WorkerView};

/// Taken while no worker has measured its prefill.
pub const PREFILL_US_PER_TOKEN_DEFAULT: f64 = 200.0;
/// Taken while no worker has measured its decoding.
pub const DECODE_US_PER_STEP_DEFAULT: f64 = 20_000.0;
/// A measurement beyond this is taken for a fault.
const RATE_US_MAX: f64 = 60_000_000.0;
/// The highest penalty of a region.
const REGION_MS_MAX: f64 = 3_600_000.0;
/// A request above ordinary priority overtakes; it is taken to wait for half of the queue.
const QUEUE_SHARE_OF_URGENT: f64 = 0.5;

/// How much each term counts. 1 takes the milliseconds as they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Of uncached prompt tokens.
    pub prefill: f64,
    /// Of what waits.
    pub queue: f64,
    /// Of what runs.
    pub decode: f64,
    /// Of blocks that must be taken away.
    pub memory: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { prefill: 1.0, queue: 1.0, decode: 1.0, memory: 1.0 }
    }
}

impl Weights {
    /// Weights that are negative, endless or not numbers count as 0 or as a thousand.
    fn sane(weight: f64) -> f64 {
        weight.clamp(0.0, 1_000.0).max(0.0)
    }
}

/// The terms of a cost, weighted.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Terms {
    /// Computing what is not cached.
    pub prefill_ms: f64,
    /// Waiting for what came before.
    pub queue_ms: f64,
    /// Sharing steps with what runs.
    pub decode_ms: f64,
    /// Recomputing for others what has to make room.
    pub memory_ms: f64,
    /// The way to another region.
    pub region_ms: f64,
}

impl Terms {
    /// The cost.
    #[must_use]
    pub fn total_ms(&self) -> f64 {
        self.prefill_ms + self.queue_ms + self.decode_ms + self.memory_ms + self.region_ms
    }
}

/// Microseconds per token and per step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    prefill_us: f64,
    decode_us: f64,
}

impl Rates {
    /// What workers that have measured nothing are taken to do.
    pub(crate) fn typical(workers: &[WorkerView]) -> Self {
        Self {
            prefill_us: mean(workers, |load| load.prefill_us_per_token)
                .unwrap_or(PREFILL_US_PER_TOKEN_DEFAULT),
            decode_us: mean(workers, |load| load.decode_us_per_step)
                .unwrap_or(DECODE_US_PER_STEP_DEFAULT),
        }
    }

    fn of(self, load: &WorkerLoad) -> Self {
        Self {
            prefill_us: measured(load.prefill_us_per_token).unwrap_or(self.prefill_us),
            decode_us: measured(load.decode_us_per_step).unwrap_or(self.decode_us),
        }
    }
}

fn measured(rate: f32) -> Option<f64> {
    let rate = f64::from(rate);
    (rate > 0.0 && rate <= RATE_US_MAX).then_some(rate)
}

fn mean(workers: &[WorkerView], rate: impl Fn(&WorkerLoad) -> f32) -> Option<f64> {
    let rates = workers.iter().filter_map(|worker| measured(rate(&worker.load)));
    let (count, sum) = rates.fold((0_u32, 0.0), |(count, sum), rate| (count + 1, sum + rate));
    (count > 0).then(|| sum / f64::from(count))
}

/// A region's penalty as it counts: what is negative or no number is 0, and an hour is for ever.
pub(crate) fn region_ms(penalty_ms: Option<f64>) -> f64 {
    penalty_ms.unwrap_or(0.0).clamp(0.0, REGION_MS_MAX).max(0.0)
}

/// What was sent to a worker and is not in its load yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Booked {
    pub(crate) requests: u64,
    pub(crate) prefill_tokens: u64,
}

/// Leading blocks of a prompt that a worker holds or will hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cached {
    /// By the index.
    pub(crate) known_blocks: u32,
    /// By what was just sent there; 0 if nothing was.
    pub(crate) predicted_blocks: u32,
}

impl Cached {
    pub(crate) fn blocks(self) -> u32 {
        self.known_blocks.max(self.predicted_blocks)
    }

    pub(crate) fn is_predicted(self) -> bool {
        self.predicted_blocks > self.known_blocks
    }
}

/// How full a worker counts at most, of conversations that are warm, for one that begins.
const FULL_MAX: f64 = 2.0;
/// And for one that would move. Its square is a half: who may not move waits, and the longest prompts wait longest.
const FULL_MAX_MOVE: f64 = 0.7;

/// The conversations of a worker, without the one that asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Warm {
    /// Blocks that it keeps for them.
    pub(crate) blocks: u64,
    /// Blocks that the request's own conversation is expected to have; 0 if it has gone on before.
    pub(crate) expected_blocks: u64,
}

impl Warm {
    /// Blocks that come into the cache, and the share of them that pushes others out.
    fn pressure(self, uncached: u64, overlap: u64, total: Option<u64>) -> (f64, f64) {
        let Some(total) = total.filter(|total| *total > 0) else { return (0.0, 0.0) };
        let new = uncached.max(self.expected_blocks.saturating_sub(overlap));
        let full = self.blocks.saturating_add(new) as f64 / total as f64;
        let most = if self.expected_blocks > 0 { FULL_MAX } else { FULL_MAX_MOVE };
        (new as f64, full.min(most).powi(2))
    }
}

/// The request, as far as its cost goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prompt {
    pub(crate) tokens: u32,
    pub(crate) block_tokens: u32,
    pub(crate) urgent: bool,
}

impl Prompt {
    /// Tokens to compute when `overlap_blocks` are cached. The last token is always computed: without it there is
    /// nothing to sample from.
    pub(crate) fn uncached_tokens(&self, overlap_blocks: u32) -> u32 {
        let cached = overlap_blocks.saturating_mul(self.block_tokens);
        self.tokens.saturating_sub(cached).max(1)
    }
}

/// Costs one worker.
pub(crate) fn terms(
    prompt: Prompt,
    cached: Cached,
    load: &WorkerLoad,
    booked: Booked,
    warm: Warm,
    typical: Rates,
    weights: Weights,
) -> Terms {
    let rates = typical.of(load);
    let uncached_tokens = prompt.uncached_tokens(cached.blocks());
    let shared_blocks = cached.predicted_blocks.saturating_sub(cached.known_blocks);
    let shared_tokens = u64::from(shared_blocks) * u64::from(prompt.block_tokens);
    let waiting_tokens = load
        .waiting_prefill_tokens
        .saturating_add(booked.prefill_tokens)
        .saturating_sub(shared_tokens);
    let requests =
        (u64::from(load.running) + u64::from(load.waiting)).saturating_add(booked.requests);
    let share = if prompt.urgent { QUEUE_SHARE_OF_URGENT } else { 1.0 };
    let block_tokens = prompt.block_tokens.max(1);
    let blocks_needed = u64::from(uncached_tokens.div_ceil(block_tokens));
    let missing = load.blocks_free.map_or(0, |free| blocks_needed.saturating_sub(free));
    let overlap = u64::from(cached.blocks());
    let (new, share_pushed) = warm.pressure(blocks_needed, overlap, load.blocks_total);
    let pushed_tokens = (missing as f64 + new * share_pushed) * f64::from(block_tokens);
    let prefill_ms = rates.prefill_us / 1_000.0;
    Terms {
        prefill_ms: f64::from(uncached_tokens) * prefill_ms * Weights::sane(weights.prefill),
        queue_ms: waiting_tokens as f64 * prefill_ms * share * Weights::sane(weights.queue),
        decode_ms: requests as f64 * rates.decode_us / 1_000.0 * Weights::sane(weights.decode),
        memory_ms: pushed_tokens * prefill_ms * Weights::sane(weights.memory),
        region_ms: 0.0,
    }
}
