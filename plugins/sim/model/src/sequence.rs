//! One request in the engine: what it asks for, and how far it is.
//!
//! Its prompt and the answer that it will get are known from the trace as one chain of blocks. Where the chain is
//! shorter than what is said, the rest is the request's own and is never registered.

use std::cmp::Reverse;
use std::sync::Arc;

use mainstay_engine_abi::sdk::{RetentionRange, TOKENS_TO_END};
use mainstay_engine_blocks::Table;
use mainstay_types::SequenceHash;

/// What a request wants for all its blocks once it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// 0 to 100; 100 goes last.
    pub priority: u8,
    /// From the end of the request; `None` is for good.
    pub duration_ms: Option<u64>,
}

impl Claim {
    pub(crate) fn over_all(&self) -> RetentionRange {
        let duration_ms = self.duration_ms.map_or(0, |ms| ms.clamp(1, u64::from(u32::MAX)) as u32);
        let (end, priority) = (TOKENS_TO_END, self.priority);
        RetentionRange { end, priority, duration_ms, ..RetentionRange::default() }
    }
}

/// What an engine is asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// Names it in notes.
    pub id: u64,
    /// The parent of the first block.
    pub namespace: u128,
    /// Full blocks of the prompt, then of the answer as far as anyone will ask for them again.
    pub chain: Arc<[SequenceHash]>,
    /// How much of `chain` is this request's.
    pub chain_blocks: u32,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer; 0 counts as 1.
    pub output_tokens: u32,
    /// Higher goes first.
    pub priority: i32,
    /// What its blocks are worth afterwards; `None` is what all are.
    pub claim: Option<Claim>,
    /// What is wished for stretches of it beyond that, by tokens.
    pub ranges: Vec<RetentionRange>,
    /// The names of the leases that `ranges` are of.
    pub leases: Vec<u128>,
    /// Leading blocks that another engine gives, and from when on.
    pub fetch: Option<Fetch>,
}

/// Blocks that another engine gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// Leading blocks of the prompt.
    pub blocks: u32,
    /// When the other one can begin.
    pub from_us: u64,
}

/// The order in which requests are served: by priority, then as they came.
pub(crate) type Place = (Reverse<i32>, u64);

/// A request between its acceptance and its end.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) request: Request,
    pub(crate) place: Place,
    pub(crate) submitted_us: u64,
    pub(crate) admitted_us: Option<u64>,
    /// Of its prompt, when it was first admitted.
    pub(crate) cached_tokens: u32,
    /// Tokens of the answer so far.
    pub(crate) said: u32,
    /// Tokens in the cache.
    pub(crate) computed: u32,
    pub(crate) table: Table,
    /// Leading blocks of the table that are registered.
    pub(crate) registered: usize,
    /// Tokens of it in the step at hand.
    pub(crate) piece: u32,
    /// Tokens that it was expected to compute when it was queued.
    pub(crate) expected: u32,
    /// When all has come in that is to come in.
    pub(crate) ready_us: u64,
    /// Leading blocks of the table that have come in by then, or were there.
    pub(crate) there_blocks: u32,
}

impl Sequence {
    pub(crate) fn new(mut request: Request, arrival: u64, now_us: u64) -> Self {
        request.output_tokens = request.output_tokens.max(1);
        request.prompt_tokens = request.prompt_tokens.max(1);
        request.chain_blocks = request.chain_blocks.min(request.chain.len() as u32);
        Self {
            place: (Reverse(request.priority), arrival),
            request,
            submitted_us: now_us,
            admitted_us: None,
            cached_tokens: 0,
            said: 0,
            computed: 0,
            table: Table::default(),
            registered: 0,
            piece: 0,
            expected: 0,
            ready_us: 0,
            there_blocks: 0,
        }
    }

    /// Prompt and answer so far.
    pub(crate) fn tokens(&self) -> u32 {
        self.request.prompt_tokens.saturating_add(self.said)
    }

    /// Whether all but its last token is computed, which is what saying the next one takes.
    pub(crate) fn decodes(&self) -> bool {
        self.said > 0 && self.computed + 1 >= self.tokens()
    }

    /// Tokens to compute before the next one can be said.
    pub(crate) fn unread(&self) -> u32 {
        self.tokens().saturating_sub(self.computed)
    }

    pub(crate) fn left(&self) -> u32 {
        self.request.output_tokens.saturating_sub(self.said)
    }

    /// Its blocks that can be found in a cache of `block_tokens`: full ones, without the one of the last token.
    pub(crate) fn findable(&self, block_tokens: u32) -> &[SequenceHash] {
        let full = (self.tokens() - 1) / block_tokens;
        &self.request.chain[..full.min(self.request.chain_blocks) as usize]
    }

    /// Forgets its blocks, after they were given back.
    pub(crate) fn restart(&mut self) {
        self.registered = 0;
        self.computed = 0;
        self.piece = 0;
    }
}
