//! What a session's life means for its blocks.
//!
//! A session has two leases. Its *shared* one is on the system prompt and the tools, which other
//! sessions begin with too: it runs out by its time and is never ended, since one session's end
//! says nothing about the others. Its *own* one is on all that follows, and ends with the session's
//! history: when a parent has taken a subagent's result, when a summary has replaced it, when the
//! client says so. While tools run the own one holds for as long as their durations say that it
//! pays; thoughts are worth little once the loop that they served is over.
//!
//! Nothing is decided from a client's word alone but that client's own blocks: whose lease it is
//! comes from the credential.

use std::ops::Range;

use super::durations::Durations;
use super::{Class, End, SPANS_MAX, SpanTerms, TenantSlot};

/// What follows an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The results of the calls that it made.
    Tools {
        /// How long its blocks are held for them.
        hold_ms: u64,
    },
    /// Somebody says something, some time.
    User,
    /// Nothing: it was a request beside a conversation, such as a title.
    Nothing,
}

/// What happened to a session, as far as its blocks are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It began, came back, or goes on from another's history.
    Lives,
    /// It waits for the results of calls.
    Paused,
    /// A summary has replaced its history.
    Compacted,
    /// Its client said that it is over, its parent closed it or has taken its result.
    Finished,
    /// It was silent for long.
    Idle,
    /// Nobody follows it any more, for want of room.
    Untracked,
}

impl Event {
    /// How that ends the session's own lease, if it does. A session that nobody follows may well go on: its leases run
    /// out by themselves.
    #[must_use]
    pub fn ends_own(self) -> Option<End> {
        match self {
            Self::Lives | Self::Paused | Self::Untracked => None,
            Self::Compacted => Some(End::Compacted),
            Self::Finished => Some(End::Finished),
            Self::Idle => Some(End::Released),
        }
    }
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

/// What it costs to lose a session's blocks, and to keep them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stakes {
    /// Milliseconds that the next turn takes longer without them: to compute or load them, and to wait for a turn to.
    pub reload_ms: f64,
    /// Milliseconds of others' work that a millisecond of keeping them costs: 0 in a pool with free blocks.
    pub price_per_ms: f64,
}

/// A session that waits for tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    tenant: TenantSlot,
    /// `None` for several at once: their end is that of the slowest.
    tool: Option<Box<str>>,
    since_ms: u64,
    /// How long its blocks are held, from the start.
    pub hold_ms: u64,
    /// When to begin to bring back what was evicted, from the start; `None` where nothing is known.
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
        let hold_ms = match known {
            Some(known) => known.wait_ms(stakes.reload_ms, stakes.price_per_ms),
            None => settings.hold_unknown_ms,
        };
        let early = |known: &super::durations::Sketch| {
            known.quantile_ms(1.0 - settings.prefetch_share.clamp(0.0, 1.0))
        };
        Pause {
            tenant,
            tool: tool.map(Box::from),
            since_ms: now_ms,
            // A hold that does not pay ends at once, but not before a tool that fails at once is back.
            hold_ms: hold_ms.min(settings.hold_max_ms).max(settings.hold_min_ms),
            prefetch_after_ms: known.and_then(early),
        }
    }

    /// It is back: what the pause took is learnt.
    pub fn resume(&mut self, pause: &Pause, now_ms: u64) {
        let tool = pause.tool.as_deref().unwrap_or(SEVERAL);
        self.durations.add(pause.tenant, tool, now_ms.saturating_sub(pause.since_ms));
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
            let is_shared = matches!(class, Class::System | Class::Tools);
            if is_shared && next == Next::Nothing {
                continue;
            }
            let list = if is_shared { &mut terms.shared } else { &mut terms.own };
            if list.len() < SPANS_MAX {
                list.push(self.span(*class, is_shared, blocks.clone(), next));
            }
        }
        terms
    }

    fn span(&self, class: Class, is_shared: bool, blocks: Range<usize>, next: Next) -> SpanTerms {
        let mut span = SpanTerms::of(class, blocks);
        match next {
            Next::Nothing => return SpanTerms::of(Class::Side, span.blocks),
            Next::User if class == Class::Reasoning => {
                span.priority = self.settings.past_reasoning_priority;
                span.after = span.after.min(span.priority);
            }
            Next::Tools { hold_ms } if !is_shared => {
                span.priority = span.priority.max(self.settings.hold_priority);
                span.duration_ms = Some(hold_ms);
            }
            Next::User | Next::Tools { .. } => {}
        }
        span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantSlot = TenantSlot(1);
    const STAKES: Stakes = Stakes { reload_ms: 2_000.0, price_per_ms: 0.1 };

    fn parts() -> Vec<(Class, Range<usize>)> {
        vec![
            (Class::System, 0..4),
            (Class::Tools, 4..4),
            (Class::Tools, 4..6),
            (Class::History, 6..9),
            (Class::Reasoning, 9..10),
            (Class::Output, 10..12),
        ]
    }

    fn priority_of(terms: &[SpanTerms], class: Class) -> Option<(u8, u8)> {
        terms.iter().find(|span| span.class == class).map(|span| (span.priority, span.after))
    }

    #[test]
    fn tools_hold_the_own_part_and_thoughts_fall_after_the_loop() {
        let policy = Policy::default();
        let held = policy.terms(&parts(), Next::Tools { hold_ms: 7_000 });
        assert_eq!(held.shared.len(), 2, "an empty stretch is none");
        assert!(held.own.iter().all(|s| s.priority == 80 && s.duration_ms == Some(7_000)));
        assert_eq!(priority_of(&held.shared, Class::System), Some((90, 60)));
        let waits = policy.terms(&parts(), Next::User);
        assert_eq!(priority_of(&waits.own, Class::Reasoning), Some((5, 5)));
        assert_eq!(priority_of(&waits.own, Class::History), Some((60, 35)));
    }

    #[test]
    fn a_side_request_is_worth_little_and_its_system_prompt_as_much_as_any() {
        let terms = Policy::default().terms(&parts(), Next::Nothing);
        assert!(terms.own.iter().all(|span| span.class == Class::Side && span.priority == 5));
        assert_eq!(terms.shared, [], "no lease: its use alone makes them worth what any block is");
    }

    #[test]
    fn only_ends_end_and_only_what_is_own() {
        let ends = [
            (Event::Lives, None),
            (Event::Paused, None),
            (Event::Compacted, Some(End::Compacted)),
            (Event::Finished, Some(End::Finished)),
            (Event::Idle, Some(End::Released)),
            (Event::Untracked, None),
        ];
        for (event, end) in ends {
            assert_eq!(event.ends_own(), end, "{event:?}");
        }
    }

    #[test]
    fn a_hold_is_as_long_as_the_tool_takes() {
        let mut policy = Policy::default();
        assert_eq!(policy.pause(TENANT, &["read"], STAKES, 0).hold_ms, 60_000);
        for turn in 0..20 {
            let pause = policy.pause(TENANT, &["read"], STAKES, turn * 1_000_000);
            policy.resume(&pause, turn * 1_000_000 + 5_000);
            let pause = policy.pause(TENANT, &["build", "test"], STAKES, turn * 1_000_000);
            policy.resume(&pause, turn * 1_000_000 + 600_000);
        }
        let read = policy.pause(TENANT, &["read"], STAKES, 0);
        assert!((5_001..=6_500).contains(&read.hold_ms), "{read:?}");
        assert!(read.prefetch_after_ms.is_some_and(|ms| (4_000..=6_500).contains(&ms)));
        // Ten minutes of keeping cost more than computing again; not so where there is room.
        assert_eq!(policy.pause(TENANT, &["build", "test"], STAKES, 0).hold_ms, 2_000);
        let roomy = Stakes { price_per_ms: 0.0, ..STAKES };
        assert!(policy.pause(TENANT, &["a", "b"], roomy, 0).hold_ms > 600_000);
        assert_eq!(policy.pause(TenantSlot(2), &["read"], STAKES, 0).hold_ms, 60_000);
    }
}
