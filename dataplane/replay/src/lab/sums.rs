//! What is counted while a run goes on, and the report that it becomes.
//!
//! Percentiles are over every request, so each keeps a few numbers until the end: 56 bytes with those by priority.

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
    /// Of what goes last, of the ordinary, and of what goes first.
    pub(super) classes: [ClassSums; 3],
    /// First tokens of requests without a session, and what was computed for them.
    pub(super) strangers_us: Vec<u64>,
    pub(super) strangers_tokens: u64,
    pub(super) refused: u64,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) ideal_tokens: u64,
    pub(super) output_tokens: u64,
    /// While there were sessions to start: when that ended, tokens and work until then.
    pub(super) full: Option<(u64, u64, u64, [u64; 3])>,
    /// What those who waited in the router's queue waited, and how often anybody was turned away.
    pub(super) waits_us: Vec<u64>,
    pub(super) turned_away: u64,
}

/// The same of one kind of priority.
#[derive(Default)]
pub(super) struct ClassSums {
    ttft_us: Vec<u64>,
    waited_us: Vec<u64>,
    rest_us: Vec<u64>,
    /// Thousandths of tokens.
    uncached: Vec<u64>,
    tok_ms: Vec<u64>,
    prompt_tokens: u64,
    cached_tokens: u64,
    /// Tokens said.
    tokens: u64,
}

impl ClassSums {
    pub(super) fn first(&mut self, ttft_us: u64, waited_us: u64, prompt: u32, cached: u32) {
        self.ttft_us.push(ttft_us);
        self.waited_us.push(waited_us);
        self.rest_us.push(ttft_us.saturating_sub(waited_us));
        self.uncached.push(u64::from(prompt.saturating_sub(cached)) * 1_000);
        self.prompt_tokens += u64::from(prompt);
        self.cached_tokens += u64::from(cached);
    }

    pub(super) fn ended(&mut self, tok_ms: u64, tokens: u64) {
        self.tok_ms.push(tok_ms);
        self.tokens += tokens;
    }
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
    /// Tokens said, as `classes`.
    pub(super) fn class_tokens(&self) -> [u64; 3] {
        [0, 1, 2].map(|at: usize| self.classes[at].tokens)
    }

    pub(super) fn report(mut self, run: &Run<'_>, course: Option<&Course>) -> Report {
        let Run { name, workers, end_us, sessions, counters } = *run;
        let whole = (end_us, self.output_tokens, counters.busy_us, self.class_tokens());
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
            prefill_amplification: digits(share(
                counters.prefill_tokens.saturating_sub(self.strangers_tokens),
                ideal_prefill,
            )),
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
            by_priority: classes(&mut self.classes, class_tokens, seconds),
            strangers: self.strangers_us.len() as u64,
            strangers_ttft_ms: Spread::of_thousandths(&mut self.strangers_us),
            lifecycle: false,
            after_pause: Vec::new(),
            after_traffic: Vec::new(),
            pinned: None,
            series,
        }
    }
}

/// Where figures of a priority are kept.
pub(super) fn class_place(priority: i32) -> usize {
    (priority.signum() + 1) as usize
}

/// Figures by priority, the first to go first; none where all requests are alike. `tokens` were said while the fleet was
/// full.
fn classes(sums: &mut [ClassSums; 3], tokens: [u64; 3], seconds: f64) -> Vec<Class> {
    let names = ["background", "ordinary", "urgent"];
    let classes = sums.iter_mut().zip(names).zip(tokens).rev();
    let classes: Vec<Class> = classes
        .filter(|((sums, _), _)| !sums.ttft_us.is_empty())
        .map(|((sums, priority), tokens)| {
            let hit_rate = sums.cached_tokens as f64 / sums.prompt_tokens.max(1) as f64;
            Class {
                priority,
                requests: sums.tok_ms.len() as u64,
                hit_rate: (hit_rate * 1e6).round() / 1e6,
                ttft_max_ms: sums.ttft_us.iter().max().map_or(0.0, |us| *us as f64 / 1_000.0),
                ttft_ms: Spread::of_thousandths(&mut sums.ttft_us),
                engine_queue_ms: Spread::of_thousandths(&mut sums.waited_us),
                rest_ms: Spread::of_thousandths(&mut sums.rest_us),
                uncached_tokens: Spread::of_thousandths(&mut sums.uncached),
                request_tok_s: Spread::of_thousandths(&mut sums.tok_ms),
                fleet_tok_s: rounded(tokens as f64 / seconds),
            }
        })
        .collect();
    if classes.len() > 1 { classes } else { Vec::new() }
}
