//! One request on its way through an engine: its tokens and their hashes, its blocks, how far it has come.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use mainstay_engine_abi::sdk::{Output, Request, RetentionRange};
use mainstay_engine_blocks::{Table, Wishes};

use crate::Grid;

/// The order of service: priority, then arrival. Less comes first.
pub type Place = (Reverse<i32>, u64);

/// Requests that wait, in the order of service.
pub type Queue<T> = BTreeMap<Place, Box<Sequence<T>>>;

/// A request between its acceptance and its end. `T` is what its engine alone knows of it.
#[derive(Debug)]
pub struct Sequence<T> {
    /// The host's name for it.
    pub id: u64,
    /// When its turn is.
    pub place: Place,
    /// The parent of its first block.
    pub namespace: u128,
    /// Prompt and answer so far.
    pub tokens: Vec<u32>,
    /// Sequence hashes of all full blocks of `tokens`.
    pub hashes: Vec<u128>,
    /// Its blocks.
    pub table: Table,
    /// Tokens that are in the cache.
    pub computed: usize,
    /// Leading blocks of the table that are registered.
    pub registered: usize,
    /// When it came.
    pub submitted_us: u64,
    /// When it was first admitted.
    pub admitted_us: Option<u64>,
    /// Of its prompt, when it was first admitted.
    pub cached_tokens: u32,
    /// The block that an earlier request is computing and this one would compute too.
    pub waits_for: Option<u128>,
    /// The engine's own.
    pub own: T,
    ranges: Vec<RetentionRange>,
    leases: Vec<u128>,
    has_spoken: bool,
}

impl<T> Sequence<T> {
    /// A request that came as the `arrival`th.
    pub fn new(request: Request, own: T, arrival: u64, now_us: u64, grid: &Grid) -> Self {
        let mut sequence = Self {
            id: request.id,
            place: (Reverse(request.priority), arrival),
            namespace: request.namespace,
            hashes: Vec::with_capacity(request.tokens.len() / grid.block_tokens),
            tokens: request.tokens,
            table: Table::default(),
            computed: 0,
            registered: 0,
            submitted_us: now_us,
            admitted_us: None,
            cached_tokens: 0,
            waits_for: None,
            own,
            ranges: request.ranges,
            leases: request.leases,
            has_spoken: false,
        };
        sequence.hash_full_blocks(grid);
        sequence
    }

    /// Hashes the full blocks that have no hash yet.
    pub fn hash_full_blocks(&mut self, grid: &Grid) {
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
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Higher goes first.
    #[must_use]
    pub fn priority(&self) -> i32 {
        self.place.0.0
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
    pub fn output(&mut self, now_us: u64) -> Output {
        let mut output = self.last_output();
        output.first = !std::mem::replace(&mut self.has_spoken, true);
        if output.first {
            let admitted_us = self.admitted_us.unwrap_or(now_us);
            output.queue_us = admitted_us.saturating_sub(self.submitted_us);
            output.prefill_us = now_us.saturating_sub(admitted_us);
        }
        output
    }

    /// An output without tokens, to end with.
    #[must_use]
    pub fn last_output(&self) -> Output {
        Output { id: self.id, cached_tokens: self.cached_tokens, ..Output::default() }
    }
}
