//! What a trace says about its traffic, and what it cannot say: the figures to know before hardware is bought.
//!
//! Requests are visited in the order of their times, each block with when it was last asked for, so that the answers
//! are those of a cache that never forgets, and of caches that forget after a while. Where a trace has no times, the
//! pauses between turns are added up instead, and the analysis says so. What was not recorded is `None` and named in
//! `absent`; nothing is filled in.

mod order;
mod page;
mod turns;

use std::collections::HashMap;

use foldhash::fast::FixedState;
use serde::Serialize;

use crate::report::rounded;
use crate::rng::mix;
use crate::trace::{Chain, Record, Trace, Turn};
use order::Visit;
use turns::Turns;

pub use page::Table;

/// Caches that forget a block when nobody has asked for it for so many seconds.
const TTLS_S: [f64; 12] =
    [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0, f64::INFINITY];
/// Points of the arrivals over time, at most.
const ARRIVALS_MAX: usize = 120;

/// Percentiles of what was counted or measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Dist {
    /// Of how many.
    pub count: u64,
    /// Half are at most this.
    pub p50: f64,
    /// Nine of ten are.
    pub p90: f64,
    /// Ninety-nine of a hundred are.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
}

impl Dist {
    /// Of values, which are sorted for it; `None` where there are none.
    #[must_use]
    pub fn of(values: &mut [f64]) -> Option<Self> {
        spread(values).0
    }
}

/// A part of the requests, and the value that it does not exceed.
pub type Curve = Vec<(f64, f64)>;

/// A cache that keeps blocks for so long after their last use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Kept {
    /// `None` keeps them for ever.
    pub ttl_s: Option<f64>,
    /// Prompt tokens that it has.
    pub hit_rate: f64,
    /// Prompt tokens to compute, of those that the cache without end has to.
    pub prefill_amplification: f64,
}

/// Prompts of leads by turn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TurnPoint {
    /// 1 is the first.
    pub turn: u32,
    /// Leads that came so far.
    pub sessions: u64,
    /// Prompt tokens, the median.
    pub p50: f64,
    /// Nine of ten are at most this.
    pub p90: f64,
}

/// Agents that others start.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Subagents {
    /// How many.
    pub count: u64,
    /// Sessions that have any.
    pub sessions: u64,
    /// Requests of each.
    pub turns: Dist,
    /// Tokens of its first prompt.
    pub first_prompt_tokens: Dist,
    /// Of these, those that no request before had.
    pub cold_tokens: Dist,
    /// The same, of all their first prompts together.
    pub cold_share: f64,
}

/// How often blocks are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Repeated {
    /// Full blocks of all prompts.
    pub asked_blocks: u64,
    /// Different ones.
    pub distinct_blocks: u64,
    /// Of the different ones, those that were asked for once.
    pub once_share: f64,
    /// Those that were asked for ten times or more.
    pub ten_share: f64,
    /// Cached prompt tokens that another session had asked for first, of all cached ones.
    pub from_other_sessions_share: f64,
}

/// Turns whose prompt is much shorter than the one before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Compactions {
    /// Those after which the agent goes on with the shorter context.
    pub count: u64,
    /// Sessions that have any.
    pub sessions: u64,
    /// Prompt tokens before it.
    pub before_tokens: Option<Dist>,
    /// And after.
    pub after_tokens: Option<Dist>,
    /// Tokens at the begin of the prompt that it leaves as they were.
    pub kept_tokens: Option<Dist>,
    /// Short prompts in between: the agent goes on with the long context later.
    pub side_calls: u64,
    /// Shorter prompts that begin like the one before: something at its end was taken back.
    pub taken_back: u64,
}

/// All that a trace says.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Analysis {
    /// Sessions.
    pub sessions: u64,
    /// Requests.
    pub requests: u64,
    /// Requests that were too long, and those behind them.
    pub left_out: u64,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens of all answers.
    pub output_tokens: u64,
    /// From the first to the last arrival, where sessions have times in common.
    pub span_s: Option<f64>,
    /// Requests of a session.
    pub session_turns: Option<Dist>,
    /// Tokens of a prompt.
    pub prompt: Option<Dist>,
    /// Tokens of an answer.
    pub output: Option<Dist>,
    /// The longest prompt of each session.
    pub longest_prompt: Option<Dist>,
    /// Prompt tokens that a cache without end has.
    pub hit_rate_available: f64,
    /// Those that were cached when it was recorded.
    pub hit_rate_achieved: Option<f64>,
    /// Prompt tokens that were computed then, of those that a cache without end has to.
    pub prefill_amplification: Option<f64>,
    /// As recorded.
    pub ttft_ms: Option<Dist>,
    /// From arrival to last token, as recorded.
    pub request_ms: Option<Dist>,
    /// Tokens of the answer over that time.
    pub request_tok_s: Option<Dist>,
    /// New tokens of a prompt that goes on from the one before.
    pub growth_tokens: Option<Dist>,
    /// Prompts of leads by turn.
    pub by_turn: Vec<TurnPoint>,
    /// Pauses before turns that follow a tool call.
    pub tool_pause_ms: Option<Dist>,
    /// Pauses before turns that a person starts.
    pub person_pause_ms: Option<Dist>,
    /// Pauses of which the trace does not say what they were for.
    pub other_pause_ms: Option<Dist>,
    /// Agents that others start.
    pub subagents: Option<Subagents>,
    /// How often blocks are asked for.
    pub repeated: Repeated,
    /// Shorter prompts.
    pub compactions: Compactions,
    /// Caches that forget.
    pub kept: Vec<Kept>,
    /// Requests a minute over time, where sessions have times in common: minute, requests a minute.
    pub arrivals: Curve,
    /// Percent of requests and the times, tokens a second and pauses that they do not exceed.
    pub curves: Curves,
    /// What the trace does not say.
    pub absent: Vec<&'static str>,
}

/// Distributions for plots.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Curves {
    /// Times to first token.
    pub ttft_ms: Curve,
    /// Tokens a second.
    pub request_tok_s: Curve,
    /// Pauses for tools.
    pub tool_pause_ms: Curve,
    /// Pauses for people.
    pub person_pause_ms: Curve,
    /// Others.
    pub other_pause_ms: Curve,
}

/// Percentiles and a curve of values, which are sorted for it.
pub(crate) fn spread(values: &mut [f64]) -> (Option<Dist>, Curve) {
    if values.is_empty() {
        return (None, Vec::new());
    }
    values.sort_unstable_by(f64::total_cmp);
    let at = |percent: f64| {
        let rank = (values.len() as f64 * percent / 100.0).ceil().max(1.0) as usize;
        rounded(values[rank.min(values.len()) - 1])
    };
    let mean = rounded(values.iter().sum::<f64>() / values.len() as f64);
    let count = values.len() as u64;
    let dist = Dist { count, p50: at(50.0), p90: at(90.0), p99: at(99.0), max: at(100.0), mean };
    let percents = (1..=99).map(f64::from).chain([99.5, 99.9, 100.0]);
    (Some(dist), percents.map(|percent| (percent, at(percent))).collect())
}

/// When and by whom a block was asked for.
#[derive(Clone, Copy)]
struct Seen {
    last_ms: f64,
    /// The session that asked last, and the one that asked first.
    last_session: u32,
    first_session: u32,
    asked: u32,
}

type Blocks = HashMap<u64, Seen, FixedState>;

#[derive(Default)]
struct Measured {
    ttft_ms: Vec<f64>,
    took_ms: Vec<f64>,
    tok_s: Vec<f64>,
    cached_tokens: u64,
    /// Of requests with a number of cached tokens.
    cached_of_tokens: u64,
    cached_ideal_tokens: u64,
    prompts: Vec<f64>,
    outputs: Vec<f64>,
    first_prompts: Vec<f64>,
    cold: Vec<f64>,
}

#[derive(Default)]
struct Cache {
    /// Blocks that only one session can ask for; where numbers mean the same everywhere, all blocks.
    own: Blocks,
    /// Blocks that sessions have in common.
    common: Blocks,
    prompt_tokens: u64,
    hit_tokens: u64,
    other_tokens: u64,
    /// Cached tokens by the first of [`TTLS_S`] that their time since the last use fits in.
    by_gap: [u64; TTLS_S.len()],
    asked: u64,
    distinct: u64,
    once: u64,
    ten: u64,
}

impl Cache {
    /// Asks for a turn's blocks; answers with the tokens that are there.
    fn ask(
        &mut self,
        trace: &Trace,
        visit: &Visit,
        turn: &Turn,
        chain: &Chain,
        global: bool,
    ) -> u64 {
        let salt = if global { 0 } else { mix(u64::from(visit.session) + 1) };
        let group = mix(u64::from(chain.shared_group) | 1 << 40);
        let block_tokens = u64::from(trace.block_tokens);
        // The last token of a prompt is always computed.
        let usable = (turn.prompt_tokens - 1) / trace.block_tokens;
        let (mut parent, mut leading, mut hits) = (0_u64, true, 0);
        for (at, id) in chain.ids.iter().enumerate().take(turn.chain_blocks as usize) {
            let at = at as u32;
            let common = at < chain.shared_blocks;
            let content = if common { group ^ u64::from(at) } else { salt ^ u64::from(*id) };
            parent = mix(parent.rotate_left(23) ^ mix(content));
            let blocks = if common { &mut self.common } else { &mut self.own };
            let (session, asked) = (visit.session, u32::from(at < turn.prompt_blocks));
            let seen = blocks.get(&parent).copied();
            leading &= seen.is_some();
            if let Some(seen) = seen
                && leading
                && at < usable.min(turn.prompt_blocks)
            {
                hits += 1;
                self.other_tokens += if seen.first_session == session { 0 } else { block_tokens };
                let known = global || seen.last_session == session;
                let gap_s = (visit.at_ms - seen.last_ms).max(0.0) / 1_000.0;
                let gap_s = if known { gap_s } else { f64::INFINITY };
                let place = TTLS_S.iter().position(|ttl| gap_s <= *ttl);
                self.by_gap[place.unwrap_or(TTLS_S.len() - 1)] += block_tokens;
            }
            self.asked += u64::from(asked);
            let (first_session, asked) =
                seen.map_or((session, asked), |s| (s.first_session, s.asked.saturating_add(asked)));
            let last_session = session;
            blocks
                .insert(parent, Seen { last_ms: visit.end_ms, last_session, first_session, asked });
        }
        self.prompt_tokens += u64::from(turn.prompt_tokens);
        self.hit_tokens += hits * block_tokens;
        hits * block_tokens
    }

    /// Counts and forgets blocks that nobody will ask for again.
    fn close(&mut self, all: bool) {
        let common = if all { std::mem::take(&mut self.common) } else { Blocks::default() };
        for seen in self.own.drain().chain(common).map(|(_, seen)| seen) {
            self.distinct += u64::from(seen.asked > 0);
            self.once += u64::from(seen.asked == 1);
            self.ten += u64::from(seen.asked >= 10);
        }
    }

    fn kept(&self) -> Vec<Kept> {
        let fresh = self.prompt_tokens - self.hit_tokens;
        let mut hit_tokens = 0;
        let kept = TTLS_S.iter().zip(self.by_gap).map(|(ttl_s, tokens)| {
            hit_tokens += tokens;
            Kept {
                ttl_s: ttl_s.is_finite().then_some(*ttl_s),
                hit_rate: share(hit_tokens, self.prompt_tokens),
                prefill_amplification: share(self.prompt_tokens - hit_tokens, fresh),
            }
        });
        kept.collect()
    }
}

/// Six digits after the point.
fn share(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { (part as f64 / of as f64 * 1e6).round() / 1e6 }
}

/// Analyses a trace. Read it with `records`, or nothing measured is known.
#[must_use]
pub fn analyze(trace: &Trace) -> Analysis {
    let global = trace.sessions.iter().all(|session| session.numbers_are_global);
    let (mut cache, mut measured, mut turns) =
        (Cache::default(), Measured::default(), Turns::default());
    let mut clock = Clock::default();
    let mut all = Vec::new();
    for (place, session) in trace.sessions.iter().enumerate() {
        clock.recorded &= order::visits(session, place as u32, global, &mut all);
        turns.session(session, trace.block_tokens);
        if !global {
            all.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
            all.drain(..).for_each(|v| visit(trace, &v, global, &mut cache, &mut measured));
            cache.close(false);
        }
    }
    all.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
    if global && trace.timed {
        clock.arrivals = arrivals(&all);
        clock.span_ms = all.first().zip(all.last()).map(|(a, b)| b.at_ms - a.at_ms);
    }
    all.iter().for_each(|v| visit(trace, v, global, &mut cache, &mut measured));
    cache.close(true);
    put_together(trace, &cache, measured, turns, clock)
}

struct Clock {
    /// Times of requests are the trace's own.
    recorded: bool,
    span_ms: Option<f64>,
    arrivals: Curve,
}

impl Default for Clock {
    fn default() -> Self {
        Self { recorded: true, span_ms: None, arrivals: Vec::new() }
    }
}

fn visit(trace: &Trace, visit: &Visit, global: bool, cache: &mut Cache, measured: &mut Measured) {
    let session = &trace.sessions[visit.session as usize];
    let chain = &session.chains[visit.turn.chain as usize];
    let hit_tokens = cache.ask(trace, visit, &visit.turn, chain, global);
    let (prompt, output) = (visit.turn.prompt_tokens, visit.turn.output_tokens);
    measured.prompts.push(f64::from(prompt));
    measured.outputs.push(f64::from(output));
    if visit.first_of_subagent {
        measured.first_prompts.push(f64::from(prompt));
        measured.cold.push((u64::from(prompt) - hit_tokens) as f64);
    }
    let Record { ttft_ms, took_ms, cached_tokens, .. } = visit.record;
    measured.ttft_ms.extend(ttft_ms);
    measured.took_ms.extend(took_ms);
    measured.tok_s.extend(took_ms.filter(|ms| *ms > 0.0).map(|ms| f64::from(output) * 1e3 / ms));
    if let Some(cached) = cached_tokens {
        measured.cached_tokens += u64::from(cached.min(prompt));
        measured.cached_of_tokens += u64::from(prompt);
        measured.cached_ideal_tokens += hit_tokens;
    }
}

/// Requests a minute, in at most [`ARRIVALS_MAX`] stretches of whole minutes.
fn arrivals(visits: &[Visit]) -> Curve {
    let Some((first, last)) = visits.first().zip(visits.last()) else { return Vec::new() };
    let minutes = ((last.at_ms - first.at_ms) / 60_000.0).floor() as usize + 1;
    let width = minutes.div_ceil(ARRIVALS_MAX);
    let mut counts = vec![0.0; minutes.div_ceil(width)];
    for visit in visits {
        let minute = ((visit.at_ms - first.at_ms) / 60_000.0) as usize;
        counts[minute / width] += 1.0 / width as f64;
    }
    let point = |(at, count): (usize, &f64)| ((at * width) as f64, rounded(*count));
    counts.iter().enumerate().map(point).collect()
}

fn put_together(
    trace: &Trace,
    cache: &Cache,
    mut measured: Measured,
    turns: Turns,
    clock: Clock,
) -> Analysis {
    let (ttft_ms, ttft_curve) = spread(&mut measured.ttft_ms);
    let (request_tok_s, tok_s_curve) = spread(&mut measured.tok_s);
    let achieved = measured.cached_of_tokens > 0;
    let ideal = measured.cached_of_tokens - measured.cached_ideal_tokens;
    let computed = measured.cached_of_tokens - measured.cached_tokens;
    let cold: f64 = measured.cold.iter().sum();
    let first: f64 = measured.first_prompts.iter().sum();
    let cold_share = share(cold as u64, first as u64);
    let part = turns.analysis(&mut measured.first_prompts, &mut measured.cold, cold_share);
    let mut analysis = Analysis {
        sessions: trace.sessions.len() as u64,
        requests: measured.prompts.len() as u64,
        left_out: trace.left_out,
        block_tokens: trace.block_tokens,
        prompt_tokens: cache.prompt_tokens,
        output_tokens: measured.outputs.iter().sum::<f64>() as u64,
        span_s: clock.span_ms.map(|ms| rounded(ms / 1_000.0)),
        prompt: Dist::of(&mut measured.prompts),
        output: Dist::of(&mut measured.outputs),
        hit_rate_available: share(cache.hit_tokens, cache.prompt_tokens),
        hit_rate_achieved: achieved
            .then(|| share(measured.cached_tokens, measured.cached_of_tokens)),
        prefill_amplification: (achieved && ideal > 0).then(|| share(computed, ideal)),
        ttft_ms,
        request_ms: Dist::of(&mut measured.took_ms),
        request_tok_s,
        repeated: Repeated {
            asked_blocks: cache.asked,
            distinct_blocks: cache.distinct,
            once_share: share(cache.once, cache.distinct),
            ten_share: share(cache.ten, cache.distinct),
            from_other_sessions_share: share(cache.other_tokens, cache.hit_tokens),
        },
        kept: cache.kept(),
        arrivals: clock.arrivals,
        ..part
    };
    analysis.curves.ttft_ms = ttft_curve;
    analysis.curves.request_tok_s = tok_s_curve;
    analysis.absent = absent(&analysis, clock.recorded);
    analysis
}

/// What there is no figure for, and why.
fn absent(analysis: &Analysis, recorded: bool) -> Vec<&'static str> {
    let no_pauses = analysis.tool_pause_ms.is_none() && analysis.person_pause_ms.is_none();
    let gaps = [
        (!recorded, "times of requests: pauses were added up instead, without the time of answers"),
        (analysis.ttft_ms.is_none(), "time to first token"),
        (analysis.request_tok_s.is_none(), "tokens a second"),
        (analysis.hit_rate_achieved.is_none(), "cached tokens, so the hit rate that was achieved"),
        (no_pauses, "whether a pause was a tool's or a person's"),
        (analysis.subagents.is_none(), "subagents"),
        (analysis.span_s.is_none(), "how sessions overlap in time, so arrivals"),
        (true, "evictions and their causes: `mainstay replay` models them"),
    ];
    gaps.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect()
}

#[cfg(test)]
mod tests;
