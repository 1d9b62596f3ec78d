//! What a session's life means for its blocks.
//!
//! A session has two leases. Its *shared* one is on the system prompt and the tools, which other
//! sessions begin with too: it runs out by its time and is never ended, since one session's end
//! says nothing about the others. Its *own* one is on all that follows, and ends with the session's
//! history: when a parent has taken a subagent's result, when a summary has replaced it, when the
//! client says so. While tools run the own one holds for as long as their durations say that it
//! pays: until keeping costs others more than what a return in time still gains. Where its blocks
//! stay for that long anyway it is left as it is, since what comes after a hold is less than what
//! was before it. Thoughts, and what follows them in their loop, are worth little once it is over: the next prompt goes
//! on without them, and a chain of blocks is another one from there.
//!
//! Nothing is decided from a client's word alone but that client's own blocks: whose lease it is
//! comes from the credential.

use std::ops::Range;

use super::durations::{Durations, cut};
use super::{Amendment, Cause, Class, Figures, SPANS_MAX, SpanTerms, TenantSlot};

/// What follows an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The results of the calls that it made.
    Tools {
        /// How long its blocks are held for them.
        hold_ms: u64,
    },
    /// Somebody says something, some time, and the thoughts that were are in no prompt any more.
    User,
    /// Not known yet: it is still to be answered.
    Unknown,
    /// Nothing: it was a request beside a conversation, such as a title.
    Nothing,
}

/// The spans of a session's two leases; one without spans is not taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionTerms {
    /// On what other sessions begin with too.
    pub shared: Vec<SpanTerms>,
    /// On the rest.
    pub own: Vec<SpanTerms>,
}

/// The choices of an operator.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicySettings {
    /// What blocks are worth while tools run for them.
    pub hold_priority: u8,
    /// Thoughts, once their loop is over.
    pub past_reasoning_priority: u8,
    /// The shortest hold.
    pub hold_min_ms: u64,
    /// The longest one.
    pub hold_max_ms: u64,
    /// The hold for a tool of which nothing is known.
    pub hold_unknown_ms: u64,
    /// Samples from which on a distribution is believed.
    pub samples_min: u32,
    /// The share of returns that come later than a prefetch has to begin.
    pub prefetch_share: f64,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self {
            hold_priority: 80,
            past_reasoning_priority: 5,
            hold_min_ms: 2_000,
            hold_max_ms: 1_800_000,
            hold_unknown_ms: 60_000,
            samples_min: 8,
            prefetch_share: 0.9,
        }
    }
}

/// How much memory is asked for: what a block that is kept takes away from others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pressure {
    /// How long a block stays without a use before it has to go; `None` where none had to.
    pub kept_ms: Option<u64>,
    /// The share of blocks that are used again before they go, of those of the worth that has to go.
    pub used_share: f64,
}

impl Pressure {
    /// What a pool did between two looks at it.
    #[must_use]
    pub fn between(earlier: &Figures, now: &Figures) -> Self {
        // What a hold had kept goes for want of room as well, once the hold is over.
        let [gone, held] = [Cause::Capacity, Cause::Expiry].map(|cause| {
            now.age_at_eviction[cause as usize].since(&earlier.age_at_eviction[cause as usize])
        });
        let gone = gone.and(&held);
        Self {
            // At least so long: what is thought to stay and does not is lost.
            kept_ms: (gone.count() > 0).then(|| gone.quantile_floor_ms(0.5)),
            used_share: used_share(earlier, now),
        }
    }
}

/// How many of those blocks would have been used again that are denied their stay: of each worth as many as of those
/// that are worth as much, weighed by how many had to go. A session that comes back says nothing of what strangers do.
fn used_share(earlier: &Figures, now: &Figures) -> f64 {
    let hits = now.hits_by_worth.since(&earlier.hits_by_worth);
    let gone = now.evictions_by_worth.since(&earlier.evictions_by_worth);
    let (mut used, mut all) = (0.0, 0.0);
    for (hits, gone) in hits.counts().zip(gone.counts()).filter(|(_, gone)| *gone > 0) {
        let (hits, gone) = (hits as f64, gone as f64);
        used += gone * hits / (hits + gone);
        all += gone;
    }
    if all > 0.0 { used / all } else { 0.0 }
}

/// What it costs to lose a session's blocks, and to keep them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stakes {
    /// Milliseconds that the next turn takes longer without them: to compute or load them, and to wait for a turn to.
    pub reload_ms: f64,
    /// Milliseconds of others' work that a millisecond of keeping them costs: 0 in a pool with free blocks.
    pub price_per_ms: f64,
    /// How long they stay anyway.
    pub kept_ms: u64,
}

impl Stakes {
    /// Of so many blocks, each of which takes `block_ms` to bring back, after `wait_ms` for a turn to. To hold a block
    /// for as long as one is kept without a use denies one other block its stay; which is worth what it takes to bring
    /// that one back, as often as such a one is used again.
    #[must_use]
    pub fn of(blocks: u32, block_ms: f64, wait_ms: f64, pressure: Pressure) -> Self {
        let work_ms = f64::from(blocks) * block_ms;
        let price_per_ms = pressure.kept_ms.map_or(0.0, |kept_ms| {
            work_ms * pressure.used_share.clamp(0.0, 1.0) / (kept_ms.max(1) as f64)
        });
        let kept_ms = pressure.kept_ms.unwrap_or(super::NEVER_MS);
        Self { reload_ms: work_ms + wait_ms, price_per_ms, kept_ms }
    }
}

/// A session that waits for tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    tenant: TenantSlot,
    /// `None` for several at once: their end is that of the slowest.
    tool: Option<Box<str>>,
    since_ms: u64,
    /// How long its blocks are held, from the start; `None` where they stay for long enough without.
    pub hold_ms: Option<u64>,
    /// When to begin to bring back what was evicted after the hold, from the start; `None` where nobody is known to come
    /// back so late.
    pub prefetch_after_ms: Option<u64>,
}

/// The name under which calls of several tools at once are counted; no tool's name is empty.
const SEVERAL: &str = "";

/// From sessions' lives to leases.
#[derive(Debug, Default)]
pub struct Policy {
    settings: PolicySettings,
    durations: Durations,
}

impl Policy {
    /// A policy that has seen nothing yet.
    #[must_use]
    pub fn new(settings: PolicySettings) -> Self {
        Self { settings, durations: Durations::default() }
    }

    /// What was learnt about tools.
    #[must_use]
    pub fn durations(&self) -> &Durations {
        &self.durations
    }

    /// A session called tools and waits for them.
    #[must_use]
    pub fn pause(&self, tenant: TenantSlot, tools: &[&str], stakes: Stakes, now_ms: u64) -> Pause {
        let tool = match tools {
            [only] => Some(*only),
            _ => None,
        };
        let settings = &self.settings;
        let known = self.durations.of(tenant, tool.unwrap_or(SEVERAL), settings.samples_min);
        let (gain, price) = (stakes.reload_ms, stakes.price_per_ms);
        let hold_ms = match known {
            // Where nothing has to go, nothing has to be held.
            _ if stakes.kept_ms == super::NEVER_MS => None,
            Some(known) => match known.wait_ms(gain, price, stakes.kept_ms) {
                // Most are back while their blocks stay anyway, and to wait for the others does not pay.
                0 if known.share_within(stakes.kept_ms) >= 0.5 => None,
                wait_ms => Some(wait_ms),
            },
            None if settings.hold_unknown_ms <= stakes.kept_ms => None,
            // No longer than until it has cost what it can gain.
            None if price > 0.0 => Some(settings.hold_unknown_ms.min((gain / price) as u64)),
            None => Some(settings.hold_unknown_ms),
        };
        // A hold that does not pay ends at once, but not before a tool that fails at once is back.
        let hold_ms = hold_ms.map(|ms| ms.min(settings.hold_max_ms).max(settings.hold_min_ms));
        let stays_ms = hold_ms.unwrap_or(0).max(stakes.kept_ms);
        let missed_share = 1.0 - settings.prefetch_share.clamp(0.0, 1.0);
        let back_ms = known.and_then(|known| known.earliest_ms(stays_ms, missed_share));
        Pause {
            tenant,
            tool: tool.map(|tool| Box::from(cut(tool))),
            since_ms: now_ms,
            hold_ms,
            // Early enough to be done in time, but not while all of it is here.
            prefetch_after_ms: back_ms
                .map(|back_ms| back_ms.saturating_sub(gain.max(0.0) as u64).max(stays_ms)),
        }
    }

    /// It is back: what the pause took is learnt.
    pub fn resume(&mut self, pause: &Pause, now_ms: u64) {
        let tool = pause.tool.as_deref().unwrap_or(SEVERAL);
        self.durations.add(pause.tenant, tool, now_ms.saturating_sub(pause.since_ms));
    }

    /// Nobody came back.
    pub fn abandon(&mut self, pause: &Pause) {
        self.durations.add_endless(pause.tenant, pause.tool.as_deref().unwrap_or(SEVERAL));
    }

    /// What becomes of a session's own lease once it is known what follows.
    #[must_use]
    pub fn amendments(&self, next: Next) -> Vec<Amendment> {
        let own = Class::ALL.into_iter().filter(|class| !is_shared(*class));
        own.map(|class| {
            let span = self.span(class, 0..1, next);
            let SpanTerms { priority, after, duration_ms, .. } = span;
            Amendment { class, priority, after, duration_ms }
        })
        .collect()
    }

    /// What a turn's blocks are kept as, now that its answer is there. `parts` are its stretches in order, by blocks;
    /// those beyond the limit of a lease's spans go without.
    #[must_use]
    pub fn terms(&self, parts: &[(Class, Range<usize>)], next: Next) -> SessionTerms {
        let mut terms = SessionTerms::default();
        for (class, blocks) in parts {
            if blocks.is_empty() {
                continue;
            }
            let is_shared = is_shared(*class);
            if is_shared && next == Next::Nothing {
                continue;
            }
            let list = if is_shared { &mut terms.shared } else { &mut terms.own };
            if list.len() < SPANS_MAX {
                list.push(self.span(*class, blocks.clone(), next));
            }
        }
        terms
    }

    fn span(&self, class: Class, blocks: Range<usize>, next: Next) -> SpanTerms {
        let mut span = SpanTerms::of(class, blocks);
        if class == Class::Reasoning && next != Next::User {
            // While their loop goes on its every prompt repeats them.
            let SpanTerms { priority, after, duration_ms, .. } = SpanTerms::of(Class::Output, 0..0);
            (span.priority, span.after, span.duration_ms) = (priority, after, duration_ms);
        }
        match next {
            Next::Nothing => return SpanTerms::of(Class::Side, span.blocks),
            Next::User if class == Class::Reasoning => {
                span.priority = self.settings.past_reasoning_priority;
                span.after = span.after.min(span.priority);
            }
            Next::Tools { hold_ms } if !is_shared(class) => {
                span.priority = span.priority.max(self.settings.hold_priority);
                span.duration_ms = Some(hold_ms);
            }
            Next::User | Next::Unknown | Next::Tools { .. } => {}
        }
        span
    }
}

/// Whether other sessions begin with it too.
fn is_shared(class: Class) -> bool {
    matches!(class, Class::System | Class::Tools)
}

#[cfg(test)]
mod tests;
