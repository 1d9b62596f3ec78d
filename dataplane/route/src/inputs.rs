//! What the router is told: the request, what the index knows of its prefix, and how busy each worker is.
//!
//! Nothing here is trusted: any number may be the largest there is, any rate no number at all.

use mainstay_index::Overlap;
use mainstay_types::{Epoch, NamespaceId, SequenceHash, WorkerId};

use crate::decision::CandidateCost;
use crate::learned::Draw;

/// How a worker is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// The least cost, where cached blocks, queue and running requests all count.
    #[default]
    Kv,
    /// The same, corrected by how long requests really took there; see [`crate::Learner`].
    KvLearned,
    /// In turn, by worker id.
    RoundRobin,
    /// The fewest requests running, waiting or just sent.
    LeastLoaded,
    /// Any.
    Random,
}

impl Policy {
    /// All policies.
    pub const ALL: [Self; 5] =
        [Self::Kv, Self::KvLearned, Self::RoundRobin, Self::LeastLoaded, Self::Random];

    /// The name in settings and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kv => "kv",
            Self::KvLearned => "kv-learned",
            Self::RoundRobin => "round-robin",
            Self::LeastLoaded => "least-loaded",
            Self::Random => "random",
        }
    }

    /// The reverse of [`Policy::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

/// What a worker last said about itself.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct WorkerLoad {
    /// When it was heard, on the clock of [`Inputs::now_ms`]; 0 if it never was. Bookings from before count as
    /// part of it.
    pub heard_ms: u64,
    /// Requests being computed.
    pub running: u32,
    /// Requests that wait.
    pub waiting: u32,
    /// Prompt tokens that the waiting ones still need computed.
    pub waiting_prefill_tokens: u64,
    /// Measured; 0 until then.
    pub prefill_us_per_token: f32,
    /// Measured; 0 until then.
    pub decode_us_per_step: f32,
    /// Blocks that can be had without ending a running request: free ones and those that may be evicted. `None`
    /// if it does not say.
    pub blocks_free: Option<u64>,
    /// All its blocks; `None` if it does not say.
    pub blocks_total: Option<u64>,
    /// What a token costs that comes in from its lower tiers. Measured; 0 until then, or where it has none.
    pub load_us_per_token: f32,
    /// Tokens that are coming in from its lower tiers or from others, or wait to.
    pub loading_tokens: u64,
}

/// A worker that serves the request's model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkerView {
    /// Who.
    pub id: WorkerId,
    /// Its life; bookings and predictions of a former one do not count.
    pub epoch: Epoch,
    /// It takes nothing new.
    pub draining: bool,
    /// How busy it is.
    pub load: WorkerLoad,
    /// It is in another region than the one that asks.
    pub abroad: bool,
}

/// One question to the router.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Milliseconds on any clock that does not go back.
    pub now_ms: u64,
    /// The hashes of the prompt's full blocks.
    pub prompt_blocks: &'a [SequenceHash],
    /// Tokens of the prompt, the partial last block included.
    pub prompt_tokens: u32,
    /// Tokens per block.
    pub block_tokens: u32,
    /// What the index found for `prompt_blocks`, near enough to be used as it is.
    pub overlaps: &'a [Overlap],
    /// The same for all tiers of each worker; empty where all that is known is near.
    pub stored: &'a [Overlap],
    /// What others have of the prompt and would give.
    pub fetch: Option<Fetch>,
    /// The workers that could serve it.
    pub workers: &'a [WorkerView],
    /// Workers that were tried already.
    pub excluded: &'a [WorkerId],
    /// Higher goes first in a worker's queue; 0 is ordinary.
    pub priority: i32,
    /// Fresh for each question: it breaks ties.
    pub random: u64,
    /// How to choose.
    pub policy: Policy,
    /// What a worker abroad costs more, in milliseconds. `None` keeps to the workers of the own region while one of
    /// them can be chosen.
    pub region_penalty_ms: Option<f64>,
}

/// Blocks that a worker can get from another one instead of computing them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fetch {
    /// Leading blocks of the prompt that somebody gives.
    pub blocks: u32,
    /// What a token of them costs.
    pub us_per_token: f32,
}

/// What is known of a request beside its prompt. All of it is optional.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hints {
    /// Whose blocks it may share: how conversations go is learned for each of these apart.
    pub namespace: NamespaceId,
    /// Tokens that the answer is expected to have; 0 if nobody said. A long answer shares more steps with what runs.
    pub output_tokens: u32,
    /// From 0, where time does not matter, to 1, where only this request does. Who can wait spares the caches of
    /// others more.
    pub latency_sensitivity: f32,
    /// Whether it belongs to a worker already.
    pub affinity: Affinity,
}

impl Default for Hints {
    fn default() -> Self {
        Self {
            namespace: NamespaceId(0),
            output_tokens: 0,
            latency_sensitivity: 0.5,
            affinity: Affinity::None,
        }
    }
}

/// How much a request belongs to a worker, beside what its cache is worth.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Affinity {
    /// Not at all.
    #[default]
    None,
    /// Any other costs so many milliseconds more, ten seconds at most: load decides against it.
    Soft {
        /// Where it belongs.
        worker: WorkerId,
        /// What leaving costs.
        worth_ms: f64,
    },
    /// Nowhere else: an error if that worker cannot be chosen.
    Hard {
        /// Where it belongs.
        worker: WorkerId,
    },
}

/// A rule of somebody's own, which chooses among the cheapest instead of a [`Policy`].
pub trait Rule {
    /// Chooses one of `candidates`, the cheapest of those that may be chosen, cheapest first and never none; says how
    /// likely that was. `None`, or a place that is not there, leaves it to the cost.
    fn pick(
        &mut self,
        inputs: &Inputs<'_>,
        hints: &Hints,
        candidates: &[CandidateCost],
    ) -> Option<Draw>;
}
