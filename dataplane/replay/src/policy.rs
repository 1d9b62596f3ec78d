//! Who chooses the worker: the router under one of its policies, a session's first worker for ever, or Dynamo's cost.
//!
//! Each sees the same index, the same loads and the same seed, and keeps its own books. Whatever chooses is told of
//! first tokens and ends, as a gateway tells its router.

use std::collections::HashMap;
use std::sync::Arc;

use mainstay_index::Overlap;
use mainstay_route::{BookingId, Inputs, Policy, Router, Weights, WorkerView};
use mainstay_types::SequenceHash;

use crate::dynamo::DynamoCost;

/// A policy by its name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PolicyName {
    /// One of the router's own.
    Router(Policy),
    /// The router's cost, where computing a prompt counts so many times what it takes.
    Weighted {
        /// 1 is the router as it ships.
        prefill: f64,
    },
    /// A session stays where its first request went, which is where the fewest requests are.
    Sticky,
    /// Dynamo's published cost function, with the temperature of its softmax.
    Dynamo {
        /// 0 takes the least cost, as it ships.
        temperature: f64,
    },
}

impl PolicyName {
    /// What is compared where nothing else is said.
    pub const USUAL: [&str; 5] = ["kv", "round-robin", "least-loaded", "session-sticky", "dynamo"];

    /// Reads `kv`, `round-robin`, `least-loaded`, `random`, `session-sticky`, `dynamo`, `dynamo:TEMPERATURE` or
    /// `kv:WEIGHT`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            Some(("dynamo", temperature)) => {
                let temperature: f64 = temperature.parse().ok()?;
                let sane = (0.0..=1_000.0).contains(&temperature);
                sane.then_some(Self::Dynamo { temperature })
            }
            Some(("kv", prefill)) => {
                let prefill: f64 = prefill.parse().ok()?;
                (0.0..=1_000.0).contains(&prefill).then_some(Self::Weighted { prefill })
            }
            Some(_) => None,
            None if text == "session-sticky" => Some(Self::Sticky),
            None if text == "dynamo" => Some(Self::Dynamo { temperature: 0.0 }),
            None => Policy::from_name(text).map(Self::Router),
        }
    }

    /// Whether it looks at what workers hold.
    pub(crate) fn reads_index(self) -> bool {
        matches!(
            self,
            Self::Router(Policy::Kv | Policy::KvLearned)
                | Self::Weighted { .. }
                | Self::Dynamo { .. }
        )
    }
}

/// One request, as far as a choice goes.
pub(crate) struct Question<'a> {
    pub(crate) now_ms: u64,
    /// The serial of its session.
    pub(crate) session: u64,
    pub(crate) chain: &'a Arc<[SequenceHash]>,
    pub(crate) prompt_blocks: u32,
    pub(crate) prompt_tokens: u32,
    pub(crate) block_tokens: u32,
    pub(crate) priority: i32,
    pub(crate) random: u64,
}

impl Question<'_> {
    pub(crate) fn prompt(&self) -> &[SequenceHash] {
        &self.chain[..self.prompt_blocks as usize]
    }
}

/// What names a request in the books of whoever chose.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ticket {
    Booking(BookingId),
    Dynamo { worker: u32, id: u64 },
}

/// A policy with its books.
pub(crate) enum Chooser {
    Router { router: Router, policy: Policy },
    Sticky { router: Router, homes: HashMap<u64, u32> },
    Dynamo(DynamoCost),
}

impl Chooser {
    pub(crate) fn new(name: PolicyName, workers: u32, block_tokens: u32) -> Self {
        match name {
            PolicyName::Router(policy) => Self::Router { router: Router::default(), policy },
            PolicyName::Weighted { prefill } => {
                let router = Router::new(Weights { prefill, ..Weights::default() });
                Self::Router { router, policy: Policy::Kv }
            }
            PolicyName::Sticky => Self::Sticky { router: Router::default(), homes: HashMap::new() },
            PolicyName::Dynamo { temperature } => {
                Self::Dynamo(DynamoCost::new(workers, block_tokens, temperature))
            }
        }
    }

    /// Chooses one of `views`, which are not empty and named by their places.
    pub(crate) fn choose(
        &mut self,
        question: &Question<'_>,
        overlaps: &[Overlap],
        views: &[WorkerView],
    ) -> Option<(u32, Ticket)> {
        match self {
            Self::Router { router, policy } => ask(router, question, overlaps, views, *policy),
            Self::Sticky { router, homes } => {
                let home = homes.get(&question.session).map(|home| *home as usize);
                let views = home.map_or(views, |home| &views[home..=home]);
                let chosen = ask(router, question, overlaps, views, Policy::LeastLoaded)?;
                homes.insert(question.session, chosen.0);
                Some(chosen)
            }
            Self::Dynamo(cost) => Some(cost.choose(question, overlaps)),
        }
    }

    /// A request's prompt is computed.
    pub(crate) fn first_token(&mut self, now_ms: u64, ticket: Ticket) {
        match (self, ticket) {
            (Self::Router { router, .. }, Ticket::Booking(id)) => router.first_token(now_ms, id),
            (Self::Dynamo(cost), Ticket::Dynamo { worker, id }) => cost.prefilled(worker, id),
            _ => {}
        }
    }

    /// A request is done.
    pub(crate) fn ended(&mut self, ticket: Ticket) {
        match (self, ticket) {
            (Self::Router { router, .. } | Self::Sticky { router, .. }, Ticket::Booking(id)) => {
                router.release(id);
            }
            (Self::Dynamo(cost), Ticket::Dynamo { worker, id }) => cost.ended(worker, id),
            _ => {}
        }
    }

    /// A session is over.
    pub(crate) fn forget_session(&mut self, session: u64) {
        if let Self::Sticky { homes, .. } = self {
            homes.remove(&session);
        }
    }
}

fn ask(
    router: &mut Router,
    question: &Question<'_>,
    overlaps: &[Overlap],
    views: &[WorkerView],
    policy: Policy,
) -> Option<(u32, Ticket)> {
    let inputs = Inputs {
        now_ms: question.now_ms,
        prompt_blocks: question.prompt(),
        prompt_tokens: question.prompt_tokens,
        block_tokens: question.block_tokens,
        overlaps,
        workers: views,
        excluded: &[],
        priority: question.priority,
        random: question.random,
        policy,
        region_penalty_ms: None,
    };
    let decision = router.choose(&inputs).ok()?;
    let booking = router.book(question.now_ms, &decision, question.prompt());
    Some((decision.worker.0, Ticket::Booking(booking)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        for name in PolicyName::USUAL {
            assert!(PolicyName::parse(name).is_some(), "{name}");
        }
        let warm = PolicyName::parse("dynamo:0.5");
        assert_eq!(warm, Some(PolicyName::Dynamo { temperature: 0.5 }));
        for wrong in ["", "kv2", "kv:x", "dynamo:", "dynamo:nan", "dynamo:-1"] {
            assert_eq!(PolicyName::parse(wrong), None, "{wrong}");
        }
    }
}
