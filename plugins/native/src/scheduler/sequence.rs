//! One request on its way through the engine: its tokens, its blocks and how far it is.

use std::cmp::Reverse;

use mainstay_engine_abi::sdk::types_of_mainstay::hash::BlockHashKey;
use mainstay_engine_abi::sdk::{Logprob, Output, Request, RetentionRange};

use crate::guided::Guide;
use crate::sampler::Sampler;
use mainstay_engine_blocks::{Table, Wishes};

/// The order of service: priority, then arrival. Less comes first.
pub(super) type Place = (Reverse<i32>, u64);

pub(super) struct Sequence {
    pub(super) id: u64,
    pub(super) place: Place,
    pub(super) namespace: u128,
    /// Prompt and output.
    pub(super) tokens: Vec<u32>,
    /// Sequence hashes of the full blocks of `tokens`, as far as they were needed.
    pub(super) hashes: Vec<u128>,
    pub(super) table: Table,
    /// Tokens whose keys and values are in the cache.
    pub(super) computed: usize,
    /// Leading blocks of the table that are registered.
    pub(super) registered: usize,
    pub(super) sampler: Sampler,
    ranges: Vec<RetentionRange>,
    leases: Vec<u128>,
    pub(super) submitted_us: u64,
    pub(super) admitted_us: Option<u64>,
    pub(super) cached_tokens: u32,
    pub(super) said_first: bool,
    /// Rows in the step that is being built.
    pub(super) step_rows: usize,
    /// The block that an earlier request is computing and this one would compute too.
    pub(super) waits_for: Option<u128>,
}

/// What all sequences of an engine share.
pub(super) struct Grid {
    pub(super) key: BlockHashKey,
    pub(super) block_tokens: usize,
}

impl Grid {
    pub(super) fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }
}

impl Sequence {
    pub(super) fn new(
        request: Request,
        guide: Option<Guide>,
        arrival: u64,
        eos_tokens: &[u32],
        random_seed: u64,
        now_us: u64,
        grid: &Grid,
    ) -> Self {
        let sampled_before = request.sampled_before as usize;
        let mut sampler = Sampler::new(
            request.sampling,
            eos_tokens,
            &request.tokens,
            sampled_before,
            random_seed,
        );
        if let Some(guide) = guide {
            sampler = sampler.with_guide(guide, eos_tokens);
        }
        let mut sequence = Self {
            id: request.id,
            place: (Reverse(request.priority), arrival),
            namespace: request.namespace,
            hashes: Vec::with_capacity(request.tokens.len() / grid.block_tokens),
            tokens: request.tokens,
            table: Table::default(),
            computed: 0,
            registered: 0,
            sampler,
            ranges: request.ranges,
            leases: request.leases,
            submitted_us: now_us,
            admitted_us: None,
            cached_tokens: 0,
            said_first: false,
            step_rows: 0,
            waits_for: None,
        };
        sequence.hash_full_blocks(grid);
        sequence
    }

    /// Hashes the full blocks that have no hash yet.
    pub(super) fn hash_full_blocks(&mut self, grid: &Grid) {
        let hashed = self.hashes.len() * grid.block_tokens;
        if self.tokens.len() - hashed < grid.block_tokens {
            return;
        }
        let parent = self.hashes.last().copied().unwrap_or(self.namespace);
        let mut hashes = Vec::new();
        grid.key.chain(parent, grid.block_tokens as u32, &self.tokens[hashed..], &mut hashes);
        self.hashes.extend(hashes.iter().map(|hash| hash.0));
    }

    /// Tokens still to be computed before the next can be drawn.
    pub(super) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether the step that is being built computes its last known token.
    pub(super) fn completes(&self) -> bool {
        self.step_rows > 0 && self.step_rows == self.remaining()
    }

    pub(super) fn priority(&self) -> i32 {
        self.place.0.0
    }

    /// Forgets all that is computed, after its blocks were given back.
    pub(super) fn restart(&mut self) {
        self.computed = 0;
        self.registered = 0;
        self.step_rows = 0;
        self.waits_for = None;
    }

    /// What the request wants for its blocks once it has ended.
    pub(super) fn wishes(&self, grid: &Grid) -> Wishes<'_> {
        Wishes {
            namespace: self.namespace,
            block_tokens: grid.block_tokens,
            ranges: &self.ranges,
            leases: &self.leases,
        }
    }

    /// An output with this token.
    pub(super) fn output(&mut self, token: u32, logprobs: Vec<Logprob>, now_us: u64) -> Output {
        let first = !self.said_first;
        self.said_first = true;
        let mut output = self.empty_output();
        output.tokens.push(token);
        output.logprobs = logprobs;
        output.first = first;
        if first {
            let admitted_us = self.admitted_us.unwrap_or(now_us);
            output.queue_us = admitted_us.saturating_sub(self.submitted_us);
            output.prefill_us = now_us.saturating_sub(admitted_us);
        }
        output
    }

    /// An output without tokens, to end with.
    pub(super) fn empty_output(&self) -> Output {
        Output { id: self.id, cached_tokens: self.cached_tokens, ..Output::default() }
    }
}
