//! The cost of serving one request on one worker, in milliseconds until its first token, term by term.
//!
//! ```text
//! prefill = tokens of the prompt that are not cached there            * prefill rate
//! queue   = prompt tokens that wait there, and those just sent there,
//!           less those that the request will share                    * prefill rate * share that goes first
//! decode  = requests there, and those just sent there                 * decode rate  * length of the answer
//! load    = tokens that lie in the worker's lower tiers, and those that
//!           are on their way into it                                  * load rate
//!         + tokens that another worker gives                          * fetch rate
//! memory  = tokens in blocks that must be taken from running requests * prefill rate
//!         + tokens that will come into the cache                      * prefill rate * share that pushes others out
//! region  = what was set for workers of other regions
//! away    = what was set for leaving the worker that the request belongs to
//! ```
//! Tokens that the request will share are those of its own prefix that are being computed there right now for an
//! earlier request. It waits for them about as long as it would take to compute them elsewhere, but elsewhere they
//! would be computed a second time: so here they cost nothing, or a burst of equal prompts would have every idle
//! worker compute the same blocks.
//!
//! A full cache makes room by forgetting somebody's conversation, who then computes it again. What a request brings
//! along is what is not cached, or what conversations of its namespace come to where it begins one, at most a quarter
//! of the cache; the share is the square of how full the worker is of conversations that are warm, at most a half where
//! a conversation would move. Who says that time does not matter counts memory half as much again, who says that only
//! time matters half as much; who says how long the answer will be counts the requests beside it by that.
//!
//! What can be brought in is not computed, where bringing it in takes less; what it pushes out of a worker that has lower
//! tiers comes back from them, too.
//!
//! A rate that was not measured yet is the mean of those that were: a new worker is like its peers until it shows
//! otherwise. Each term is finite and at least 0 for any input, and none grows with the overlap.

use crate::inputs::{Hints, Inputs};

/// Taken while no worker has measured its prefill.
pub const PREFILL_US_PER_TOKEN_DEFAULT: f64 = 200.0;
/// Taken while no worker has measured its decoding.
pub const DECODE_US_PER_STEP_DEFAULT: f64 = 20_000.0;
/// A measurement beyond this is taken for a fault.
const RATE_US_MAX: f64 = 60_000_000.0;
/// The highest penalty of a region.
const REGION_MS_MAX: f64 = 3_600_000.0;
/// The most that leaving a worker costs.
const AWAY_MS_MAX: f64 = 10_000.0;
/// A request above ordinary priority overtakes; it is taken to wait for half of the queue.
const QUEUE_SHARE_OF_URGENT: f64 = 0.1;

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
    /// Bringing in what lies in lower tiers or on other workers.
    pub load_ms: f64,
    /// Recomputing for others what has to make room.
    pub memory_ms: f64,
    /// The way to another region.
    pub region_ms: f64,
    /// Leaving the worker that the request belongs to.
    pub away_ms: f64,
}

impl Terms {
    /// The cost.
    #[must_use]
    pub fn total_ms(&self) -> f64 {
        let own = self.prefill_ms + self.queue_ms + self.decode_ms;
        own + self.load_ms + self.memory_ms + self.region_ms + self.away_ms
    }
}

/// Milliseconds per token and per step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) prefill_ms: f64,
    pub(crate) decode_ms: f64,
}

impl Rates {
    /// What workers that have measured nothing are taken to do, by the means of those that have.
    pub(crate) fn of_means(prefill_us: Option<f64>, decode_us: Option<f64>) -> Self {
        Self {
            prefill_ms: prefill_us.unwrap_or(PREFILL_US_PER_TOKEN_DEFAULT) / 1_000.0,
            decode_ms: decode_us.unwrap_or(DECODE_US_PER_STEP_DEFAULT) / 1_000.0,
        }
    }
}

/// A rate, if it was measured.
pub(crate) fn measured(rate_us: f32) -> Option<f64> {
    let rate_us = f64::from(rate_us);
    (rate_us > 0.0 && rate_us <= RATE_US_MAX).then_some(rate_us)
}

/// A region's penalty as it counts: what is negative or no number is 0, and an hour is for ever.
fn region_ms(penalty_ms: Option<f64>) -> f64 {
    penalty_ms.unwrap_or(0.0).clamp(0.0, REGION_MS_MAX).max(0.0)
}

/// What leaving a worker costs: bounded, so that it never outweighs any load.
pub(crate) fn away_ms(worth_ms: f64) -> f64 {
    worth_ms.clamp(0.0, AWAY_MS_MAX).max(0.0)
}

/// What the formula takes of a worker. All are finite and at least 0, but for sizes that are not known: endless.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) prefill_ms: f64,
    pub(crate) decode_ms: f64,
    pub(crate) waiting_tokens: f64,
    pub(crate) requests: f64,
    pub(crate) blocks_free: f64,
    pub(crate) blocks_total: f64,
    /// Of a token from lower tiers; that of computing it where there are none.
    pub(crate) load_ms: f64,
    pub(crate) loading_tokens: f64,
    /// 1 in another region, else 0.
    pub(crate) abroad: f64,
}

/// What is there for the request, or on the way there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct There {
    /// Leading blocks of the prompt, by the index.
    pub(crate) known_blocks: f64,
    /// By what was just sent there; 0 if nothing was.
    pub(crate) predicted_blocks: f64,
    /// Leading blocks in any of its tiers.
    pub(crate) stored_blocks: f64,
    /// Sent, and not in the worker's load yet.
    pub(crate) booked_tokens: f64,
    pub(crate) booked_requests: f64,
    /// Kept for conversations, without the one that asks.
    pub(crate) warm_blocks: f64,
}

/// How full a worker counts at most, of conversations that are warm, for one that begins.
const FULL_MAX: f64 = 2.0;
/// And for one that would move. Its square is a half: who may not move waits, and the longest prompts wait longest.
const FULL_MAX_MOVE: f64 = 0.7;
/// The share of a cache that a conversation which begins is expected to fill at most.
const EXPECTED_SHARE_MAX: f64 = 0.25;
/// An answer of so many tokens shares as many steps as one of which nothing is known.
const OUTPUT_TOKENS_USUAL: f64 = 256.0;
/// The least and the most that the length of an answer counts.
const OUTPUT_FACTOR_MIN: f64 = 0.5;
const OUTPUT_FACTOR_MAX: f64 = 4.0;

/// The request, as far as its cost goes: what is the same for all workers, worked out once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question {
    tokens: f64,
    /// Of a block, as it counts for what is cached: 0 if nobody said.
    block_tokens: f64,
    /// The same, at least 1.
    room_tokens: f64,
    /// All blocks of the prompt, the partial last one included.
    blocks: f64,
    /// 1, or 0 where blocks have no size and none can be cached.
    cacheable: f64,
    /// Blocks that a conversation which begins is expected to have; 0 if this one goes on.
    expected_blocks: f64,
    full_max: f64,
    /// Leading blocks that somebody gives, and what a token of them costs.
    fetch_blocks: f64,
    fetch_ms: f64,
    prefill: f64,
    queue: f64,
    decode: f64,
    memory: f64,
    region_ms: f64,
}

impl Question {
    /// `expected_blocks` is `None` if the conversation goes on.
    pub(crate) fn new(
        inputs: &Inputs<'_>,
        hints: &Hints,
        expected_blocks: Option<u64>,
        weights: Weights,
    ) -> Self {
        let room_tokens = inputs.block_tokens.max(1);
        let share = if inputs.priority > 0 { QUEUE_SHARE_OF_URGENT } else { 1.0 };
        let output = f64::from(hints.output_tokens) / OUTPUT_TOKENS_USUAL;
        let output = match hints.output_tokens {
            0 => 1.0,
            _ => output.clamp(OUTPUT_FACTOR_MIN, OUTPUT_FACTOR_MAX),
        };
        // What is no number is between the two ends.
        let hurry = f64::from(hints.latency_sensitivity);
        let hurry = if hurry.is_nan() { 0.5 } else { hurry.clamp(0.0, 1.0) };
        Self {
            tokens: f64::from(inputs.prompt_tokens),
            block_tokens: f64::from(inputs.block_tokens),
            room_tokens: f64::from(room_tokens),
            blocks: f64::from(inputs.prompt_tokens.div_ceil(room_tokens)),
            cacheable: f64::from(inputs.block_tokens.min(1)),
            expected_blocks: expected_blocks.unwrap_or(0) as f64,
            full_max: if expected_blocks.is_some() { FULL_MAX } else { FULL_MAX_MOVE },
            fetch_blocks: inputs.fetch.map_or(0.0, |fetch| f64::from(fetch.blocks)),
            fetch_ms: inputs.fetch.map_or(f64::INFINITY, |fetch| fetch_ms(fetch.us_per_token)),
            prefill: Weights::sane(weights.prefill),
            queue: Weights::sane(weights.queue) * share,
            decode: Weights::sane(weights.decode) * output,
            memory: Weights::sane(weights.memory) * (1.5 - hurry),
            region_ms: region_ms(inputs.region_penalty_ms),
        }
    }

    /// Costs one worker.
    #[inline(always)]
    pub(crate) fn terms(&self, worker: Standing, there: There) -> Terms {
        let cached = more(there.known_blocks, there.predicted_blocks);
        // The last token is always computed: without it there is nothing to sample from.
        let stored = more(cached, there.stored_blocks);
        // Others give nothing where computing takes no longer.
        let gives = if self.fetch_ms < worker.prefill_ms { self.fetch_blocks } else { 0.0 };
        let given = more(stored, gives);
        let uncached_tokens = more(self.tokens - given * self.block_tokens, 1.0);
        let load_tokens = (stored - cached) * self.block_tokens;
        let fetch_tokens = (given - stored) * self.block_tokens;
        // Behind what is on its way already, if anything is to come in at all.
        let behind = if load_tokens > 0.0 { worker.loading_tokens } else { 0.0 };
        let fetch_ms = if fetch_tokens > 0.0 { fetch_tokens * self.fetch_ms } else { 0.0 };
        let shared_tokens = (cached - there.known_blocks) * self.block_tokens;
        let waiting = worker.waiting_tokens + there.booked_tokens;
        let waiting_tokens = more(waiting - shared_tokens, 0.0);
        let requests = worker.requests + there.booked_requests;
        let blocks_needed = more(self.blocks - cached * self.cacheable, 1.0);
        let missing = more(blocks_needed - worker.blocks_free, 0.0);
        let expected = less(self.expected_blocks, worker.blocks_total * EXPECTED_SHARE_MAX);
        let new = more(blocks_needed, expected - cached);
        let full = less((there.warm_blocks + new) / worker.blocks_total, self.full_max);
        let pushed_tokens = (missing + new * full * full) * self.room_tokens;
        Terms {
            prefill_ms: uncached_tokens * worker.prefill_ms * self.prefill,
            queue_ms: waiting_tokens * worker.prefill_ms * self.queue,
            decode_ms: requests * worker.decode_ms * self.decode,
            load_ms: ((load_tokens + behind) * worker.load_ms + fetch_ms) * self.prefill,
            memory_ms: pushed_tokens * worker.load_ms * self.memory,
            region_ms: worker.abroad * self.region_ms,
            away_ms: 0.0,
        }
    }
}

/// What a token from another worker costs. What is no positive number is for ever: nothing is fetched.
fn fetch_ms(us_per_token: f32) -> f64 {
    measured(us_per_token).map_or(f64::INFINITY, |us| us / 1_000.0)
}

/// Tokens of a prompt to compute when `overlap_blocks` are cached.
pub(crate) fn uncached_tokens(inputs: &Inputs<'_>, overlap_blocks: u32) -> u32 {
    let cached = overlap_blocks.saturating_mul(inputs.block_tokens);
    inputs.prompt_tokens.saturating_sub(cached).max(1)
}

/// The larger of two numbers: one instruction, which [`f64::max`] is not, since it minds what is no number.
#[inline(always)]
fn more(a: f64, b: f64) -> f64 {
    if a > b { a } else { b }
}

/// The smaller of two numbers.
#[inline(always)]
fn less(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}
