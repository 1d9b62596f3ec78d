//! The choice of a token from a row of logits.
//!
//! It is a pure function of the logits, the request's settings and how many tokens the request has
//! drawn before: the random number is a counter-based function of seed and that count, so that
//! neither batching, preemption nor a migration to another engine changes a request's tokens. The
//! order of filters is: form, penalties, minimum length, temperature, min-p, top-k, top-p. Under a
//! form the minimum length does not count: where the form is complete, the end is all there is.
//! Logits that are not finite end in an error, never in a panic.

mod philox;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use mainstay_engine_abi::limits::LOGPROBS_MAX;
use mainstay_engine_abi::sdk::{Logprob, Sampling};

use crate::guided::{Guide, GuideError};

/// How many candidates top-p sorts at first; most distributions need no more.
const TOP_P_FIRST: usize = 256;

/// How often a token occurred.
#[derive(Default, Clone, Copy)]
struct Seen {
    in_prompt: bool,
    generated: u32,
}

/// The sampling state of one request.
pub struct Sampler {
    settings: Sampling,
    seed: u64,
    /// Tokens this request has drawn, those of an earlier engine included: the counter of the
    /// random numbers.
    drawn: u64,
    /// Tokens drawn here.
    drawn_here: u32,
    /// Tokens that end the request: end-of-sequence and stop tokens.
    ends: Vec<u32>,
    /// Filled only where a penalty is on.
    seen: HashMap<u32, Seen>,
    /// What the filters have left of a row; kept to be reused, empty in greedy requests.
    candidates: Vec<(f32, u32)>,
    /// The form that the output must have, and how far it is.
    guide: Option<Guide>,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// Whether it ends the request.
    pub ends: bool,
    /// The chosen token and the likeliest, where they were asked for.
    pub logprobs: Vec<Logprob>,
}

/// The model gave no usable numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model's logits are not finite; the checkpoint is damaged or does not fit its configuration"
)]
pub struct NotFinite;

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DrawError {
    /// See [`NotFinite`].
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// The form asked for leads nowhere.
    #[error(transparent)]
    Guide(#[from] GuideError),
}

impl Sampler {
    /// `prompt` is the whole prompt; its last `sampled_before` tokens count as drawn. `random_seed`
    /// serves requests without a seed of their own.
    #[must_use]
    pub fn new(
        settings: Sampling,
        eos_tokens: &[u32],
        prompt: &[u32],
        sampled_before: usize,
        random_seed: u64,
    ) -> Self {
        let mut ends = settings.stop_tokens.clone();
        if !settings.ignore_eos {
            ends.extend_from_slice(eos_tokens);
        }
        ends.sort_unstable();
        ends.dedup();
        let sampled_before = sampled_before.min(prompt.len());
        let mut sampler = Self {
            seed: settings.seed.unwrap_or(random_seed),
            drawn: sampled_before as u64,
            drawn_here: 0,
            ends,
            seen: HashMap::new(),
            candidates: Vec::new(),
            guide: None,
            settings,
        };
        if sampler.penalises() {
            let (given, drawn) = prompt.split_at(prompt.len() - sampled_before);
            given.iter().for_each(|t| sampler.seen.entry(*t).or_default().in_prompt = true);
            drawn.iter().for_each(|t| sampler.seen.entry(*t).or_default().generated += 1);
        }
        sampler
    }

    /// Has the output follow a form.
    #[must_use]
    pub fn with_guide(mut self, guide: Guide, eos_tokens: &[u32]) -> Self {
        // A form that is complete has no other token to go on with, whatever the request ignores.
        self.ends.extend_from_slice(eos_tokens);
        self.ends.sort_unstable();
        self.ends.dedup();
        self.guide = Some(guide);
        self
    }

    /// Whether the request has all the tokens it asked for.
    #[must_use]
    pub fn exhausted(&self) -> bool {
        self.drawn_here >= self.settings.tokens_max
    }

    /// Tokens drawn by this engine.
    #[must_use]
    pub fn drawn_here(&self) -> u32 {
        self.drawn_here
    }

    /// Tokens the request may still draw.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        self.settings.tokens_max.saturating_sub(self.drawn_here)
    }

    /// Chooses the next token; `logits` is used up.
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<Choice, DrawError> {
        let raw =
            (self.settings.logprobs > 0).then(|| RawLogprobs::new(logits, self.settings.logprobs));
        if let Some(guide) = &mut self.guide {
            guide.mask(logits)?;
        }
        self.penalise(logits);
        if self.drawn_here < self.settings.tokens_min && self.guide.is_none() {
            for end in &self.ends {
                if let Some(logit) = logits.get_mut(*end as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let best = mainstay_kernels::argmax(logits);
        let top = *logits.get(best).ok_or(NotFinite)?;
        if !top.is_finite() {
            return Err(NotFinite.into());
        }
        let token = if self.settings.temperature > 0.0 {
            self.draw(logits, top, best as u32)
        } else {
            best as u32
        };
        let logprobs = raw.map(|raw| raw.with_chosen(token)).unwrap_or_default();
        self.note(token);
        if let Some(guide) = &mut self.guide {
            guide.take(token)?;
        }
        Ok(Choice { token, ends: self.ends.binary_search(&token).is_ok(), logprobs })
    }

    fn note(&mut self, token: u32) {
        self.drawn += 1;
        self.drawn_here += 1;
        if self.penalises() {
            self.seen.entry(token).or_default().generated += 1;
        }
    }

    fn penalises(&self) -> bool {
        let s = &self.settings;
        s.repetition_penalty != 1.0 || s.frequency_penalty != 0.0 || s.presence_penalty != 0.0
    }

    fn penalise(&self, logits: &mut [f32]) {
        let settings = &self.settings;
        for (token, seen) in &self.seen {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            if seen.in_prompt || seen.generated > 0 {
                let penalty = settings.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
            if seen.generated > 0 {
                *logit -=
                    settings.frequency_penalty * seen.generated as f32 + settings.presence_penalty;
            }
        }
    }

    /// Draws one of the tokens that the filters leave, by weights relative to the likeliest.
    fn draw(&mut self, logits: &[f32], top: f32, best: u32) -> u32 {
        let settings = &self.settings;
        let scale = 1.0 / settings.temperature;
        let candidates = &mut self.candidates;
        candidates.clear();
        for (token, logit) in logits.iter().enumerate() {
            // A weight below f32's range can never be drawn; NaN fails the comparison.
            let exponent = (logit - top) * scale;
            if exponent >= -80.0 {
                let weight = exponent.exp();
                if weight >= settings.min_p {
                    candidates.push((weight, token as u32));
                }
            }
        }
        let top_k = settings.top_k as usize;
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, likelier);
            candidates.truncate(top_k);
        }
        if settings.top_p < 1.0 {
            keep_top_p(candidates, settings.top_p);
        } else {
            // Selection shuffles; the draw must not depend on how.
            candidates.sort_unstable_by_key(|c| c.1);
        }
        let total: f64 = candidates.iter().map(|c| f64::from(c.0)).sum();
        let mut left = philox::uniform(self.seed, self.drawn) * total;
        for (weight, token) in candidates.iter() {
            left -= f64::from(*weight);
            if left < 0.0 {
                return *token;
            }
        }
        // Rounding may leave a crumb; the likeliest token is always among the candidates.
        best
    }
}

/// Descending weight, then ascending id, so that ties do not depend on the order of memory.
fn likelier(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Keeps the fewest likeliest candidates whose weights reach the share `top_p`, sorted.
fn keep_top_p(candidates: &mut Vec<(f32, u32)>, top_p: f32) {
    let total: f64 = candidates.iter().map(|c| f64::from(c.0)).sum();
    let wanted = total * f64::from(top_p);
    let mut sorted = TOP_P_FIRST;
    loop {
        let head = sorted.min(candidates.len());
        if head < candidates.len() {
            candidates.select_nth_unstable_by(head - 1, likelier);
        }
        candidates[..head].sort_unstable_by(likelier);
        let mut sum = 0.0;
        for (index, candidate) in candidates[..head].iter().enumerate() {
            sum += f64::from(candidate.0);
            if sum >= wanted {
                candidates.truncate(index + 1);
                return;
            }
        }
        if head == candidates.len() {
            return;
        }
        sorted *= 8;
    }
}

/// Log-probabilities of the model itself, before any penalty or temperature.
struct RawLogprobs {
    logits: Vec<f32>,
    log_sum: f64,
    top: Vec<(f32, u32)>,
}

impl RawLogprobs {
    /// `wanted` counts the chosen token too, as the request does.
    fn new(logits: &[f32], wanted: u32) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
        let count = wanted.min(LOGPROBS_MAX).saturating_sub(1) as usize;
        let mut top: Vec<(f32, u32)> = Vec::new();
        if count > 0 {
            top.extend(logits.iter().enumerate().map(|(token, logit)| (*logit, token as u32)));
            if count < top.len() {
                top.select_nth_unstable_by(count - 1, likelier);
                top.truncate(count);
            }
            top.sort_unstable_by(likelier);
        }
        Self { logits: logits.to_vec(), log_sum: f64::from(max) + sum.ln(), top }
    }

    fn with_chosen(self, token: u32) -> Vec<Logprob> {
        let logprob = |logit: f32| (f64::from(logit) - self.log_sum) as f32;
        let chosen = self.logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let first = Logprob { token, logprob: logprob(chosen), position: 0, rank: 0 };
        let top = self.top.iter().enumerate().map(|(rank, (logit, token))| Logprob {
            token: *token,
            logprob: logprob(*logit),
            position: 0,
            rank: rank as u32 + 1,
        });
        std::iter::once(first).chain(top).collect()
    }
}
