//! What the router answers: a worker, what it and the others would cost, and the reason in a sentence.

use core::fmt;

use mainstay_types::{Epoch, ErrorCode, NamespaceId, WorkerId};
use thiserror::Error;

use crate::contexts::Known;
use crate::cost::Terms;
use crate::inputs::Policy;

/// Candidates that a decision names at most: the cheapest, and the chosen one in any case.
pub const CANDIDATES_MAX: usize = 16;

/// What a request would cost on one worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CandidateCost {
    /// Who.
    pub worker: WorkerId,
    /// The sum of `terms`.
    pub cost_ms: f64,
    /// What it is made of.
    pub terms: Terms,
    /// Leading blocks of the prompt that it holds, or is expected to hold soon.
    pub overlap_blocks: u32,
    /// The same with what would come in from its lower tiers.
    pub stored_blocks: u32,
    /// The overlap is what was just sent there, not what it has reported.
    pub predicted: bool,
    /// It is in another region.
    pub abroad: bool,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Who serves it.
    pub worker: WorkerId,
    /// The life of that worker that was considered.
    pub epoch: Epoch,
    /// What it is expected to cost there.
    pub cost_ms: f64,
    /// What that is made of.
    pub terms: Terms,
    /// Leading blocks expected to be cached there.
    pub overlap_blocks: u32,
    /// The same with what comes in from its lower tiers.
    pub stored_blocks: u32,
    /// The same with what another worker gives it: more than `stored_blocks` only where fetching costs less.
    pub fetched_blocks: u32,
    /// Prompt tokens expected to be computed there.
    pub uncached_tokens: u32,
    /// How many workers were considered.
    pub considered: usize,
    /// The chosen one, then the cheapest others, [`CANDIDATES_MAX`] at most.
    pub candidates: Vec<CandidateCost>,
    /// Why.
    pub note: Note,
    /// How likely this worker was to be chosen, for evaluating other policies on the same log.
    pub propensity: f64,
    /// Whom the formula alone would have chosen: somebody else only where something was learned.
    pub plain: WorkerId,
    pub(crate) namespace: NamespaceId,
    /// The conversation that the prompt goes on with.
    pub(crate) known: Option<Known>,
}

/// Why a worker was chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Note {
    /// Nobody else could serve it.
    OnlyCandidate,
    /// Nobody holds any of the prompt: the least busy one.
    NoOverlap,
    /// It is the cheapest and nobody holds more of the prompt.
    BestOverlap {
        /// Blocks that it holds.
        blocks: u32,
    },
    /// Another one holds more, but would cost more all the same.
    CheaperThanOverlap {
        /// The one that holds the most.
        worker: WorkerId,
        /// Blocks that it holds.
        blocks: u32,
        /// What it would have cost.
        cost_ms: f64,
    },
    /// No worker of the own region could be chosen: the cheapest of another.
    NoneInRegion,
    /// The policy does not look at costs.
    Policy(Policy),
    /// A rule of somebody's own preferred it to the cheapest.
    Rule,
    /// It belongs there and nowhere else.
    Bound,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlyCandidate => f.write_str("the only worker that could serve it"),
            Self::NoOverlap => f.write_str("no worker holds any of it: the least busy one"),
            Self::BestOverlap { blocks } => {
                write!(f, "the cheapest, and nobody holds more than its {blocks} blocks")
            }
            Self::CheaperThanOverlap { worker, blocks, cost_ms } => {
                write!(
                    f,
                    "cheaper than worker {worker}, which holds {blocks} blocks but would cost {cost_ms:.1} ms"
                )
            }
            Self::NoneInRegion => {
                f.write_str("no worker of this region can take it: the cheapest of another region")
            }
            Self::Policy(policy) => write!(f, "by the policy {}", policy.name()),
            Self::Rule => f.write_str("preferred by a rule"),
            Self::Bound => f.write_str("it belongs to this worker"),
        }
    }
}

/// Why there is nowhere to send a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RouteError {
    /// No worker serves the model.
    #[error("no worker serves this model now; start one with mainstay worker")]
    NoWorkers,
    /// All that are left take nothing new.
    #[error("all {workers} workers of this model are draining; try again")]
    AllDraining {
        /// How many there are.
        workers: usize,
    },
    /// The one that it belongs to cannot be chosen.
    #[error(
        "worker {worker}, which this request belongs to, cannot take it; try again, or let it go elsewhere"
    )]
    Unbound {
        /// Who.
        worker: WorkerId,
    },
    /// All that could serve it were tried.
    #[error("none of the {workers} workers of this model is left to try; try again")]
    AllExcluded {
        /// How many there are.
        workers: usize,
    },
}

impl RouteError {
    /// The code that clients see.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        ErrorCode::Unavailable
    }
}
