//! Traffic beside the sessions: prompts that nobody comes back to, which is what empties a cache.
//!
//! They are served as any request is, and count in no figure of sessions. They come at random, at a rate that is told
//! in caches: so many times what all workers hold each minute. They stop coming when there are no more sessions to
//! start, and from then on turns after pauses are not counted any more, since nothing presses on them.

use std::sync::Arc;

use mainstay_types::SequenceHash;

use super::{Asked, Event, Lab, Stopwatch};
use crate::live::{NAMESPACE, after};
use crate::rng::mix;
use crate::trace::Role;

/// Prompts are around this long; the mean follows from how their logarithm spreads.
const PROMPT_TOKENS: f64 = 8_000.0;
const PROMPT_SPREAD: f64 = 0.6;
const PROMPT_TOKENS_MAX: u32 = 60_000;
const OUTPUT_TOKENS: u32 = 64;
/// Sessions have smaller numbers.
const SERIALS: u64 = 1 << 48;
/// The place of no session.
pub(super) const NOBODY: u32 = u32::MAX;

/// The mean time between two of them, in microseconds; `None` where none come.
pub(super) fn interval_us(flood: f64, cache_tokens: u64, workers: u32) -> Option<f64> {
    let mean_tokens = PROMPT_TOKENS * (PROMPT_SPREAD * PROMPT_SPREAD / 2.0).exp();
    let minute = flood * cache_tokens as f64 * f64::from(workers);
    let interval_us = 60e6 * mean_tokens / minute;
    (interval_us.is_finite() && interval_us > 0.0).then_some(interval_us)
}

impl Lab<'_> {
    /// The next one comes after a random time.
    pub(super) fn await_stranger(&mut self, now_us: u64) {
        let Some(interval_us) = self.stranger_us else { return };
        let wait_us = -interval_us * self.rng.unit().ln();
        self.at(now_us + (wait_us as u64).max(1), Event::Stranger);
    }

    /// One comes, unless the last session has started.
    pub(super) fn stranger(&mut self, now_us: u64, stopwatch: &mut Option<Stopwatch<'_>>) {
        if self.sums.full.is_some() {
            return;
        }
        self.await_stranger(now_us);
        let prompt_tokens = self.rng.around(PROMPT_TOKENS, PROMPT_SPREAD, PROMPT_TOKENS_MAX);
        let blocks = prompt_tokens / self.trace.block_tokens.max(1);
        self.strangers += 1;
        let salt = mix(mix(self.strangers) ^ 0x7374_7261_6e67);
        let mut parent = NAMESPACE;
        let hashes = (0..blocks).map(|at| {
            parent = after(parent, salt ^ u64::from(at));
            SequenceHash(parent)
        });
        let chain: Arc<[SequenceHash]> = hashes.collect();
        let id = self.asked.add(Asked {
            slot: NOBODY,
            agent: 0,
            arrived_us: now_us,
            prompt_tokens,
            ideal_tokens: 0,
            output_tokens: OUTPUT_TOKENS,
            chain,
            chain_blocks: blocks,
            priority: 0,
            prompt_blocks: blocks,
            session: SERIALS + self.strangers,
            ticket: None,
            waited: None,
            served: 0,
            away: None,
            role: Role::Continues,
            calls: false,
            head_tokens: 0,
        });
        self.enter(id, now_us, stopwatch);
    }
}
