//! What is counted while a run goes on, and the report that it becomes.
//!
//! Percentiles are over every request, so each keeps two numbers until the end: 48 bytes with those by priority.

use mainstay_sim_model::Counters;

use super::RAMP_US;
use crate::report::{Class, Evictions, Report, Spread, rounded};
use crate::series::{Course, Series, cdf};

#[derive(Default)]
pub(super) struct Sums {
    pub(super) ttft_us: Vec<u64>,
    /// Thousandths of tokens a second.
    pub(super) tok_ms: Vec<u64>,
    pub(super) decision_ns: Vec<u64>,
    /// First tokens and tokens a second of what goes last, of the ordinary, and of what goes first.
    pub(super) classes: [(Vec<u64>, Vec<u64>); 3],
    pub(super) refused: u64,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) ideal_tokens: u64,
    pub(super) output_tokens: u64,
    /// While there were sessions to start: when that ended, tokens and work until then.
    pub(super) full: Option<(u64, u64, u64, [u64; 3])>,
    /// Tokens said, as `classes`.
    pub(super) class_tokens: [u64; 3],
    /// Prompt tokens, and those of them that were cached.
    pub(super) class_prompts: [(u64, u64); 3],
    /// What those who waited in the router's queue waited, and how often anybody was turned away.
    pub(super) waits_us: Vec<u64>,
    pub(super) turned_away: u64,
}

/// What a report is about.
pub(super) struct Run<'a> {
    pub(super) name: &'a str,
    pub(super) workers: u32,
    pub(super) end_us: u64,
    pub(super) sessions: u64,
    pub(super) counters: Counters,
}

impl Sums {
    pub(super) fn report(mut self, run: &Run<'_>, course: Option<&Course>) -> Report {
        let Run { name, workers, end_us, sessions, counters } = *run;
        let whole = (end_us, self.output_tokens, counters.busy_us, self.class_tokens);
        // Where all sessions start at once, no time is left of the full fleet: then the whole run stands for it.
        let full = self.full.filter(|full| full.0 > RAMP_US).unwrap_or(whole);
        let (full_us, full_tokens, full_busy_us, class_tokens) = full;
        let seconds = full_us.max(1) as f64 / 1e6;
        let share = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        let digits = |value: f64| (value * 1e6).round() / 1e6;
        let ideal_prefill = self.prompt_tokens.saturating_sub(self.ideal_tokens);
        let timed = !self.decision_ns.is_empty();
        let ttft_ms = Spread::of_thousandths(&mut self.ttft_us);
        let series = course.map(|course| Series {
            ttft_cdf: cdf(&self.ttft_us),
            full_s: rounded(seconds),
            points: course.points(end_us),
        });
        Report {
            policy: name.to_owned(),
            requests: self.tok_ms.len() as u64,
            refused: self.refused,
            sessions,
            ttft_ms,
            request_tok_s: Spread::of_thousandths(&mut self.tok_ms),
            fleet_tok_s: rounded(full_tokens as f64 / seconds),
            hit_rate: digits(share(self.cached_tokens, self.prompt_tokens)),
            hit_rate_available: digits(share(self.ideal_tokens, self.prompt_tokens)),
            hit_share: digits(share(self.cached_tokens, self.ideal_tokens)),
            prefill_amplification: digits(share(counters.prefill_tokens, ideal_prefill)),
            busy: digits(full_busy_us as f64 / 1e6 / seconds / f64::from(workers)),
            preemptions: counters.preemptions,
            evictions: Evictions {
                capacity: counters.evicted_for_room,
                expiry: counters.evicted_expired,
            },
            virtual_s: rounded(end_us as f64 / 1e6),
            decision_us: timed.then(|| Spread::of_thousandths(&mut self.decision_ns)),
            loaded_tokens: counters.loaded_tokens,
            fetched_tokens: counters.fetched_tokens,
            queued: self.waits_us.len() as u64,
            queue_ms: Spread::of_thousandths(&mut self.waits_us),
            turned_away: self.turned_away,
            by_priority: classes(&mut self.classes, class_tokens, self.class_prompts, seconds),
            series,
        }
    }
}

/// Where figures of a priority are kept.
pub(super) fn class_place(priority: i32) -> usize {
    (priority.signum() + 1) as usize
}

/// Figures by priority, the first to go first; none where all requests are alike.
fn classes(
    sums: &mut [(Vec<u64>, Vec<u64>); 3],
    tokens: [u64; 3],
    prompts: [(u64, u64); 3],
    seconds: f64,
) -> Vec<Class> {
    let names = ["background", "ordinary", "urgent"];
    let share = |(of, part): (u64, u64)| part as f64 / of.max(1) as f64;
    let hit_rates = prompts.map(|prompts| (share(prompts) * 1e6).round() / 1e6);
    let classes = sums.iter_mut().zip(names).zip(tokens.into_iter().zip(hit_rates)).rev();
    let classes: Vec<Class> = classes
        .filter(|(((ttft_us, _), _), _)| !ttft_us.is_empty())
        .map(|(((ttft_us, tok_ms), name), (tokens, hit_rate))| Class {
            hit_rate,
            priority: name,
            requests: tok_ms.len() as u64,
            ttft_ms: Spread::of_thousandths(ttft_us),
            ttft_max_ms: ttft_us.iter().max().map_or(0.0, |us| *us as f64 / 1_000.0),
            request_tok_s: Spread::of_thousandths(tok_ms),
            fleet_tok_s: rounded(tokens as f64 / seconds),
        })
        .collect();
    if classes.len() > 1 { classes } else { Vec::new() }
}
