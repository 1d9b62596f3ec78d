//! How fast the engine is, measured the way it serves: through the scheduler, with sampling and
//! bookkeeping.
//!
//! The three figures are those that other engines publish: the prefill of 512 tokens, decoding of
//! one stream and of eight together. Each is the median of several runs; prompts are different
//! every time, so nothing comes from the cache.

use std::time::Instant;

use mainstay_engine_abi::sdk::{Finish, Request, Sampling};
use mainstay_engine_shell::{Wake, Work};
use serde::Serialize;

use crate::LoadError;
use crate::open::open_scheduler;
use crate::options::Options;
use crate::scheduler::Scheduler;

/// Tokens of the prefill.
const PREFILL_TOKENS: usize = 512;
/// Tokens that each stream decodes.
const DECODE_TOKENS: u32 = 64;
/// Tokens of a decoding stream's prompt.
const DECODE_PROMPT_TOKENS: usize = 16;
/// Streams of the batched figure.
const STREAMS: u64 = 8;
/// The most runs per figure.
pub const REPEATS_MAX: usize = 1000;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rates {
    /// Prompt tokens per second.
    pub prefill_512_tok_s: f64,
    /// Tokens per second of one stream.
    pub decode_b1_tok_s: f64,
    /// Tokens per second of eight streams together.
    pub decode_b8_tok_s: f64,
    /// Threads.
    pub threads: usize,
    /// Format of the weights.
    pub dtype: &'static str,
    /// `exact` or `fast`.
    pub precision: &'static str,
    /// Bytes of weights in memory.
    pub weight_bytes: usize,
    /// Runs per figure.
    pub repeats: usize,
}

/// Measures the model that `config_json` names; it takes what the engine's configuration takes.
pub fn run(config_json: &str, repeats: usize) -> Result<Rates, LoadError> {
    let repeats = repeats.clamp(1, REPEATS_MAX);
    let mut options = Options::parse(config_json)?;
    // Random weights repeat themselves more than anybody does, and others are measured without guesses.
    options.draft_tokens_max = Some(0);
    let mut scheduler = open_scheduler(&options)?;
    let wanted = PREFILL_TOKENS.max(DECODE_PROMPT_TOKENS + DECODE_TOKENS as usize) + 1;
    if scheduler.limits().context_tokens_max < wanted {
        let message =
            format!("the measurement needs a context of {wanted} tokens; give more blocks");
        return Err(LoadError::Options(message));
    }
    let mut runs = 0;
    // One untimed run touches all weights and buffers.
    prefill(&mut scheduler, &mut runs)?;
    let mut median = |measure: fn(&mut Scheduler, &mut u64) -> Result<f64, LoadError>| {
        let mut rates = Vec::with_capacity(repeats);
        for _ in 0..repeats {
            rates.push(measure(&mut scheduler, &mut runs)?);
        }
        rates.sort_by(f64::total_cmp);
        Ok::<f64, LoadError>(rates[repeats / 2])
    };
    let prefill_512_tok_s = median(prefill)?;
    let decode_b1_tok_s = median(|scheduler, runs| decode(scheduler, runs, 1))?;
    let decode_b8_tok_s = median(|scheduler, runs| decode(scheduler, runs, STREAMS))?;
    let precision = match options.precision {
        mainstay_kernels::Precision::F32Math => "exact",
        mainstay_kernels::Precision::Bf16Math => "fast",
    };
    Ok(Rates {
        prefill_512_tok_s,
        decode_b1_tok_s,
        decode_b8_tok_s,
        threads: options.threads,
        dtype: scheduler.compute().dtype().name(),
        precision,
        weight_bytes: scheduler.compute().weight_bytes(),
        repeats,
    })
}

fn request(scheduler: &Scheduler, id: u64, tokens: usize, tokens_max: u32) -> Request {
    let vocab = scheduler.compute().config().vocab as u64;
    let token = |index: u64| ((index * 7919 + id * 104_729) % vocab) as u32;
    Request {
        id,
        namespace: u128::from(id),
        tokens: (0..tokens as u64).map(token).collect(),
        sampling: Sampling { tokens_max, ignore_eos: true, ..Sampling::default() },
        ..Request::default()
    }
}

fn prefill(scheduler: &mut Scheduler, runs: &mut u64) -> Result<f64, LoadError> {
    *runs += 1;
    let request = request(scheduler, *runs, PREFILL_TOKENS, 1);
    let started = Instant::now();
    scheduler.submit(request, 0);
    finish(scheduler)?;
    Ok(PREFILL_TOKENS as f64 / started.elapsed().as_secs_f64())
}

fn decode(scheduler: &mut Scheduler, runs: &mut u64, streams: u64) -> Result<f64, LoadError> {
    for _ in 0..streams {
        *runs += 1;
        let request = request(scheduler, *runs, DECODE_PROMPT_TOKENS, DECODE_TOKENS + 1);
        scheduler.submit(request, 0);
    }
    // The prompts fit into one step, whose tokens are not counted.
    scheduler.step(&|| 0, true);
    let started = Instant::now();
    finish(scheduler)?;
    Ok(streams as f64 * f64::from(DECODE_TOKENS) / started.elapsed().as_secs_f64())
}

/// Steps until nothing is live.
fn finish(scheduler: &mut Scheduler) -> Result<(), LoadError> {
    while scheduler.step(&|| 0, true) == Wake::Now {}
    scheduler.drain_events().for_each(drop);
    for output in scheduler.drain_outputs() {
        if let Some(Finish::Error { message, .. }) = output.finish {
            return Err(LoadError::Kernel {
                what: "the measured request".to_owned(),
                reason: message,
            });
        }
    }
    Ok(())
}
