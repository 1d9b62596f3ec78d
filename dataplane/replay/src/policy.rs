//! Who chooses the worker: the router under one of its policies, a session's first worker for ever, or Dynamo's cost.
//!
//! Each sees the same index, the same loads and the same seed, and keeps its own books. Whatever chooses is told of
//! first tokens and ends, as a gateway tells its router.

use std::collections::HashMap;
use std::sync::Arc;

use mainstay_route::{
    BookingId, Decision, Fetch, Hints, Inputs, Policy, Router, Weights, WorkerView,
};
use mainstay_types::SequenceHash;

use crate::dynamo::DynamoCost;
use crate::fleet::Overlaps;

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

    /// Whether it is the router's own, with its queue and its ways to bring blocks in.
    pub(crate) fn is_routers(self) -> bool {
        matches!(self, Self::Router(Policy::Kv | Policy::KvLearned) | Self::Weighted { .. })
    }

    /// Whether it looks at what workers hold.
    pub(crate) fn reads_index(self) -> bool {
        self.is_routers() || matches!(self, Self::Dynamo { .. })
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
    /// Tokens of the answer; 0 if nobody is told.
    pub(crate) output_tokens: u32,
    /// What a token from another worker costs, where workers bring blocks in from each other.
    pub(crate) fetch_us_per_token: Option<f32>,
    pub(crate) random: u64,
}

impl Question<'_> {
    pub(crate) fn prompt(&self) -> &[SequenceHash] {
        &self.chain[..self.prompt_blocks as usize]
    }
}

/// What was chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen {
    pub(crate) worker: u32,
    pub(crate) ticket: Ticket,
    /// Who gives it blocks, up to which one, and up to which it has them itself.
    pub(crate) fetch: Option<(u32, u32, u32)>,
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
        overlaps: &Overlaps,
        views: &[WorkerView],
    ) -> Option<Chosen> {
        match self {
            Self::Router { router, policy } => ask(router, question, overlaps, views, *policy),
            Self::Sticky { router, homes } => {
                let home = homes.get(&question.session).map(|home| *home as usize);
                let views = home.map_or(views, |home| &views[home..=home]);
                let chosen = ask(router, question, overlaps, views, Policy::LeastLoaded)?;
                homes.insert(question.session, chosen.worker);
                Some(chosen)
            }
            Self::Dynamo(cost) => {
                let (worker, ticket) = cost.choose(question, overlaps);
                Some(Chosen { worker, ticket, fetch: None })
            }
        }
    }

    /// Whether some worker has at most so many tokens waiting; those without a queue send at once.
    pub(crate) fn has_room(&mut self, now_ms: u64, views: &[WorkerView], room_tokens: f64) -> bool {
        let Self::Router { router, policy } = self else { return true };
        router.has_room(&inputs(now_ms, views, *policy), room_tokens)
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
    overlaps: &Overlaps,
    views: &[WorkerView],
    policy: Policy,
) -> Option<Chosen> {
    let most = overlaps.near.iter().map(|overlap| overlap.blocks).max().unwrap_or(0);
    let fetch = question.fetch_us_per_token.filter(|_| most > 0);
    let inputs = Inputs {
        prompt_blocks: question.prompt(),
        prompt_tokens: question.prompt_tokens,
        block_tokens: question.block_tokens,
        overlaps: &overlaps.near,
        stored: &overlaps.stored,
        fetch: fetch.map(|us_per_token| Fetch { blocks: most, us_per_token }),
        priority: question.priority,
        random: question.random,
        ..inputs(question.now_ms, views, policy)
    };
    let hints = Hints { output_tokens: question.output_tokens, ..Hints::default() };
    let decision = router.choose_with(&inputs, &hints).ok()?;
    let booking = router.book(question.now_ms, &decision, question.prompt());
    let fetch = source(&decision, question, overlaps);
    Some(Chosen { worker: decision.worker.0, ticket: Ticket::Booking(booking), fetch })
}

/// What is the same for all questions of an instant.
fn inputs(now_ms: u64, views: &[WorkerView], policy: Policy) -> Inputs<'_> {
    Inputs {
        now_ms,
        prompt_blocks: &[],
        prompt_tokens: 0,
        block_tokens: 1,
        overlaps: &[],
        stored: &[],
        fetch: None,
        workers: views,
        excluded: &[],
        priority: 0,
        random: 0,
        policy,
        region_penalty_ms: None,
    }
}

/// Who gives the chosen worker what the decision counts on: any of those that hold it.
fn source(
    decision: &Decision,
    question: &Question<'_>,
    overlaps: &Overlaps,
) -> Option<(u32, u32, u32)> {
    let (blocks, own) = (decision.fetched_blocks, decision.stored_blocks);
    if blocks <= own {
        return None;
    }
    let holds = |o: &&mainstay_index::Overlap| o.blocks >= blocks && o.worker != decision.worker;
    let holders = overlaps.near.iter().filter(holds);
    let turn = question.random.checked_rem(holders.clone().count() as u64)?;
    let from = holders.map(|o| o.worker.0).nth(turn as usize)?;
    Some((from, blocks, own))
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
