//! One request on its way: its tokens and their hashes, its blocks, how far it has come.

use std::cmp::Reverse;

use mainstay_engine_abi::sdk::types_of_mainstay::HashKey;
use mainstay_engine_abi::sdk::types_of_mainstay::hash::BlockHashKey;
use mainstay_engine_abi::sdk::{Output, Request, RetentionRange, Sampling};
use mainstay_engine_blocks::{Table, Wishes};

use crate::answer::Planned;

/// The order of service: priority, then arrival.
pub(crate) type Place = (Reverse<i32>, u64);

/// What all sequences of an engine share.
pub(crate) struct Grid {
    key: BlockHashKey,
    pub(crate) block_tokens: usize,
}

impl Grid {
    pub(crate) fn new(key: HashKey, block_tokens: usize) -> Self {
        Self { key: BlockHashKey::new(key), block_tokens }
    }

    pub(crate) fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }
}

/// A request between its acceptance and its end.
pub(crate) struct Sequence {
    pub(crate) id: u64,
    pub(crate) place: Place,
    pub(crate) namespace: u128,
    /// Prompt and answer so far.
    pub(crate) tokens: Vec<u32>,
    /// Sequence hashes of all full blocks of `tokens`.
    pub(crate) hashes: Vec<u128>,
    pub(crate) table: Table,
    /// Leading blocks of the table that are registered.
    pub(crate) registered: usize,
    /// Tokens that would be in the cache of an engine that computes.
    pub(crate) computed: usize,
    pub(crate) sampling: Sampling,
    /// Tokens of the answer that came with the prompt.
    pub(crate) sampled_before: usize,
    /// Tokens of the answer that were said here.
    pub(crate) said: u32,
    /// Made when it first runs: reading the prompt takes time that `submit` has not.
    pub(crate) planned: Option<Planned>,
    /// When its next token is there.
    pub(crate) due_us: u64,
    ranges: Vec<RetentionRange>,
    leases: Vec<u128>,
    pub(crate) submitted_us: u64,
    pub(crate) admitted_us: Option<u64>,
    pub(crate) cached_tokens: u32,
    said_first: bool,
    /// The block that an earlier request is computing and this one would compute too.
    pub(crate) waits_for: Option<u128>,
    /// Tokens that it was expected to compute when it was queued.
    pub(crate) expected: usize,
}

impl Sequence {
    pub(crate) fn new(request: Request, arrival: u64, now_us: u64, grid: &Grid) -> Self {
        let mut sequence = Self {
            id: request.id,
            place: (Reverse(request.priority), arrival),
            namespace: request.namespace,
            sampled_before: (request.sampled_before as usize).min(request.tokens.len()),
            tokens: request.tokens,
            hashes: Vec::new(),
            table: Table::default(),
            registered: 0,
            computed: 0,
            sampling: request.sampling,
            said: 0,
            planned: None,
            due_us: now_us,
            ranges: request.ranges,
            leases: request.leases,
            submitted_us: now_us,
            admitted_us: None,
            cached_tokens: 0,
            said_first: false,
            waits_for: None,
            expected: 0,
        };
        sequence.hash_full_blocks(grid);
        sequence
    }

    /// Hashes the full blocks that have no hash yet.
    pub(crate) fn hash_full_blocks(&mut self, grid: &Grid) {
        let hashed = self.hashes.len() * grid.block_tokens;
        if self.tokens.len() - hashed < grid.block_tokens {
            return;
        }
        let parent = self.hashes.last().copied().unwrap_or(self.namespace);
        let mut hashes = Vec::new();
        grid.key.chain(parent, grid.block_tokens as u32, &self.tokens[hashed..], &mut hashes);
        self.hashes.extend(hashes.iter().map(|hash| hash.0));
    }

    /// The prompt without what was said of the answer.
    pub(crate) fn prompt(&self) -> &[u32] {
        let said = self.sampled_before + self.said as usize;
        &self.tokens[..self.tokens.len() - said]
    }

    /// Whether its prompt is still being computed.
    pub(crate) fn prefilling(&self) -> bool {
        self.tokens.len() - self.computed > 1
    }

    /// Forgets all blocks, after they were given back.
    pub(crate) fn restart(&mut self) {
        self.registered = 0;
        self.computed = 0;
        self.waits_for = None;
    }

    /// What the request wants for its blocks once it has ended.
    pub(crate) fn wishes(&self, grid: &Grid) -> Wishes<'_> {
        Wishes {
            namespace: self.namespace,
            block_tokens: grid.block_tokens,
            ranges: &self.ranges,
            leases: &self.leases,
        }
    }

    /// An output without tokens; the first of a request has its times.
    pub(crate) fn output(&mut self, now_us: u64) -> Output {
        let mut output = self.last_output();
        output.first = !std::mem::replace(&mut self.said_first, true);
        if output.first {
            let admitted_us = self.admitted_us.unwrap_or(now_us);
            output.queue_us = admitted_us.saturating_sub(self.submitted_us);
            output.prefill_us = now_us.saturating_sub(admitted_us);
        }
        output
    }

    /// An output without tokens, to end with.
    pub(crate) fn last_output(&self) -> Output {
        Output { id: self.id, cached_tokens: self.cached_tokens, ..Output::default() }
    }
}
