//! The values an engine receives and reports: requests, outputs, cache events, pins, figures.
//!
//! They are plain owned Rust, so that an engine's scheduler can keep and move them freely. A value
//! that arrives here was checked by the shims already; each type says what that means.

use crate::raw::{AGE_POWERS, CAUSES};

/// Who made the engine; readable before anything is loaded or started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub vendor: &'static str,
    pub name: &'static str,
    pub version: &'static str,
}

/// What the engine is and holds. It is asked for once, after `create`, and must not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Info {
    pub block_tokens: u32,
    pub vocab: u32,
    pub context_tokens_max: u32,
    pub requests_max: u32,
    pub blocks_total: u64,
    pub block_bytes: u64,
    /// The name for humans and for `/v1/models`.
    pub model: String,
    /// The folder with `tokenizer.json` and the chat template, or empty.
    pub model_dir: String,
    /// `cpu`, `cuda:0`, and so on.
    pub device: String,
    /// Engines of equal numbers can read each other's blocks; 0 without [`caps::TRANSFER`].
    pub kv_layout: u64,
}

/// Capabilities, the bits of `Engine::CAPS`; an optional method is reachable exactly when its bit is set.
pub mod caps {
    /// Requests of unequal namespaces never share a block; the host refuses an engine without it.
    pub const NAMESPACE: u64 = 1 << 0;
    pub const KV_EVENTS: u64 = 1 << 1;
    pub const KV_SNAPSHOT: u64 = 1 << 2;
    pub const PIN: u64 = 1 << 3;
    pub const PRIORITY: u64 = 1 << 4;
    /// Honours [`RetentionRange`](super::RetentionRange).
    pub const RETENTION: u64 = 1 << 5;
    pub const LOGPROBS: u64 = 1 << 6;
    /// Events carry Mainstay's own keyed sequence hash.
    pub const CANONICAL_HASH: u64 = 1 << 7;
    /// Honours [`Guided`](super::Guided).
    pub const GUIDED: u64 = 1 << 8;
    /// Blocks can be copied out and taken in.
    pub const TRANSFER: u64 = 1 << 9;
    /// Honours [`Request::leases`](super::Request::leases), and leases can be changed.
    pub const LEASE: u64 = 1 << 10;
    /// A sampled request that moved goes on with the very tokens it would have had; without it, only a greedy one.
    pub const RESUME: u64 = 1 << 11;
    /// Every bit that this version of the ABI knows.
    pub const KNOWN: u64 = (1 << 12) - 1;
}

/// How tokens are chosen. The shims have refused values that are not finite or out of range.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// In (0, 1]; 1 is off.
    pub top_p: f32,
    /// In [0, 1]; 0 is off.
    pub min_p: f32,
    /// Above 0; 1 is off.
    pub repetition_penalty: f32,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    /// 0 is off.
    pub top_k: u32,
    /// At least 1.
    pub tokens_max: u32,
    pub tokens_min: u32,
    /// 0: none; n + 1: the chosen token and the n likeliest.
    pub logprobs: u32,
    pub seed: Option<u64>,
    pub ignore_eos: bool,
    pub stop_tokens: Vec<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            top_k: 0,
            tokens_max: 16,
            tokens_min: 0,
            logprobs: 0,
            seed: None,
            ignore_eos: false,
            stop_tokens: Vec::new(),
        }
    }
}

/// The `end` of a [`RetentionRange`] that goes on over everything generated.
pub const TOKENS_TO_END: u32 = u32::MAX;

/// What a stretch of tokens is, in the header's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RetentionClass {
    /// Nobody said.
    #[default]
    Plain,
    /// A system prompt, with which other sessions begin too.
    System,
    /// Definitions of tools, likewise.
    Tools,
    /// Turns that were.
    History,
    /// What was said last.
    UserTurn,
    /// What is answered.
    Output,
    /// Thoughts.
    Reasoning,
    /// A request beside the conversation: nothing follows it.
    Side,
}

impl RetentionClass {
    /// All of them, each at its number in the header.
    pub const ALL: [Self; 8] = [
        Self::Plain,
        Self::System,
        Self::Tools,
        Self::History,
        Self::UserTurn,
        Self::Output,
        Self::Reasoning,
        Self::Side,
    ];

    /// Of a number on the wire.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}

/// A stretch of tokens that the cache shall keep with this priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RetentionRange {
    pub start: u32,
    /// Exclusive; [`TOKENS_TO_END`] means to the end.
    pub end: u32,
    /// 0 to 100; 100 goes last.
    pub priority: u8,
    /// Once the time is over, at most `priority`; `None` is the usual one.
    pub after: Option<u8>,
    pub class: RetentionClass,
    /// 0: of no lease; n: of the n-th of [`Request::leases`].
    pub lease: u8,
    /// From the end of the request; 0 is no limit.
    pub duration_ms: u32,
}

/// How a lease ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum LeaseEnd {
    /// Its blocks are like any others.
    Released,
    /// Its owner will not come back.
    Finished,
    /// A summary has replaced what it named.
    Compacted,
}

/// A change of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct LeaseChange {
    pub namespace: u128,
    pub lease_id: u128,
    /// `None`: it goes on, and `ranges` say by class what it claims from now on.
    pub end: Option<LeaseEnd>,
    /// Empty with an end. Each goes from 0 to the end and names no lease.
    pub ranges: Vec<RetentionRange>,
}

/// How the form of an output is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum GuidedKind {
    /// A JSON schema.
    JsonSchema,
    /// A regular expression that the whole output matches.
    Regex,
    /// A grammar in llguidance's form of Lark; `<[7]>` is the token 7.
    Lark,
}

/// A form that the output must have, from its first token on; the tokens counted by
/// [`Request::sampled_before`] are its start.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Guided {
    pub kind: GuidedKind,
    /// Never empty. What the engine does not understand ends the request with `Invalid`.
    pub spec: String,
}

/// One generation. `id` is the host's and unique among the live requests.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Request {
    pub id: u64,
    pub trace: u128,
    /// The parent of the first block's sequence hash.
    pub namespace: u128,
    /// Never empty, each below `Info::vocab`, no more than `Info::context_tokens_max`.
    pub tokens: Vec<u32>,
    /// How many of the last tokens an earlier engine sampled: a migrated request. Penalties and the
    /// sampling counter go on from there; `tokens_max` counts only what this engine shall add.
    pub sampled_before: u32,
    /// Higher first, 0 neutral.
    pub priority: i32,
    pub sampling: Sampling,
    pub ranges: Vec<RetentionRange>,
    /// A hint, 0 when unknown.
    pub expected_output_tokens: u32,
    /// Only for an engine with [`caps::GUIDED`].
    pub guided: Option<Guided>,
    /// Names of leases, which `ranges` refer to; only for an engine with [`caps::LEASE`].
    pub leases: Vec<u128>,
}

/// A lease: the engine keeps these blocks, those it holds and those it will come to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Pin {
    pub op_id: u64,
    /// A second pin with the same id renews and replaces the first.
    pub pin_id: u128,
    pub blocks: Vec<u128>,
    /// From now, by the engine's monotonic clock; never 0.
    pub ttl_ms: u64,
    /// 0 to 100.
    pub priority: u32,
}

/// The probability of one token at one position of an output.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Logprob {
    pub token: u32,
    pub logprob: f32,
    /// Index into `Output::tokens`.
    pub position: u32,
    /// 0 is the chosen token, 1 the likeliest, and so on.
    pub rank: u32,
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Finish {
    /// End-of-sequence or a stop token; that token is in the output.
    Stop,
    Length,
    Cancelled,
    /// `rc` is one of the header's codes ([`Code::rc`](super::Code::rc)).
    Error {
        rc: i32,
        message: String,
    },
}

/// Tokens of one request, or its end. Exactly one output of each accepted request has a `finish`.
#[derive(Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Output {
    pub id: u64,
    pub tokens: Vec<u32>,
    pub logprobs: Vec<Logprob>,
    /// Set on the first output of a request.
    pub first: bool,
    pub finish: Option<Finish>,
    /// Prompt tokens that came from the cache; valid on the first and on the final output.
    pub cached_tokens: u32,
    /// Valid on the first output.
    pub queue_us: u64,
    /// Valid on the first output.
    pub prefill_us: u64,
}

/// The tiers of a cache event: device memory.
pub const TIER_DEVICE: u32 = 0;
/// Host memory.
pub const TIER_HOST: u32 = 1;
/// Disk.
pub const TIER_DISK: u32 = 2;
/// Remote store.
pub const TIER_REMOTE: u32 = 3;

/// Why blocks left a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Cause {
    #[default]
    None,
    Capacity,
    Expiry,
    Lifecycle,
    Admin,
}

impl Cause {
    /// All of them, each at its number in the header.
    pub const ALL: [Self; CAUSES] =
        [Self::None, Self::Capacity, Self::Expiry, Self::Lifecycle, Self::Admin];

    /// The name in figures.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Capacity => "capacity",
            Self::Expiry => "expiry",
            Self::Lifecycle => "lifecycle",
            Self::Admin => "admin",
        }
    }
}

/// A change of what the cache holds. The RESET of a new epoch is made by [`Lanes`](super::Lanes).
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum KvEvent {
    Stored {
        namespace: u128,
        /// The sequence hash before the first of `blocks`, or the namespace.
        parent: u128,
        /// A chain: each block is the parent of the next.
        blocks: Vec<u128>,
        tier: u32,
        /// Re-emitted after a `begin_snapshot`, not new.
        snapshot: bool,
    },
    Removed {
        blocks: Vec<u128>,
        tier: u32,
        cause: Cause,
    },
    PinExpired {
        pin_id: u128,
    },
}

/// How the engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Health {
    #[default]
    Starting,
    Ok,
    Draining,
    /// The host replaces the engine.
    Fatal,
}

/// How long blocks had been without a use, in powers of two of milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ages {
    /// Of 0 ms, of 1 ms, of 2 and 3 ms, and so on; the last one has all that are older.
    pub by_power: [u64; AGE_POWERS],
    /// Of all of them.
    pub sum_ms: u64,
}

impl Default for Ages {
    fn default() -> Self {
        Self { by_power: [0; AGE_POWERS], sum_ms: 0 }
    }
}

impl Ages {
    /// How many they are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.by_power.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Takes others in.
    pub fn add(&mut self, others: &Self) {
        for (count, more) in self.by_power.iter_mut().zip(others.by_power) {
            *count = count.saturating_add(more);
        }
        self.sum_ms = self.sum_ms.saturating_add(others.sum_ms);
    }
}

/// As a sequence: arrays of this length are none of serde's.
#[cfg(feature = "serde")]
impl serde::Serialize for Ages {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.by_power.as_slice(), self.sum_ms).serialize(serializer)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Ages {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (by_power, sum_ms) = <(Vec<u64>, u64)>::deserialize(deserializer)?;
        let by_power = by_power
            .try_into()
            .map_err(|_| serde::de::Error::custom("ages of another number of powers"))?;
        Ok(Self { by_power, sum_ms })
    }
}

/// What became of blocks, and how long after their last use; only for an engine that keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BlockAges {
    /// Of registered blocks that a request found again.
    pub at_hit: Ages,
    /// Of those that went, by the number of the [`Cause`]; they add up to [`Stats::evictions`].
    pub at_eviction: [Ages; CAUSES],
}

/// Counters since `create` and gauges of now. The shims fill `epoch` and `kv_seq` from the lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Stats {
    pub epoch: u64,
    /// The sequence number that the next cache event will get.
    pub kv_seq: u64,
    pub running: u32,
    pub waiting: u32,
    pub health: Health,
    pub blocks_used: u64,
    pub blocks_cached: u64,
    pub blocks_pinned: u64,
    pub hit_tokens: u64,
    pub query_tokens: u64,
    pub prefill_tokens: u64,
    pub decode_tokens: u64,
    pub preemptions: u64,
    pub evictions: u64,
    pub waiting_prefill_tokens: u64,
    /// Tokens of answers that were guessed, each computed in a row of its own.
    pub draft_tokens: u64,
    /// Those of them that were right; they are among [`Stats::decode_tokens`].
    pub accepted_tokens: u64,
    /// `None` where the engine does not keep them.
    pub ages: Option<BlockAges>,
}
