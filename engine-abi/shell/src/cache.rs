//! The cache as requests find it: what of a prompt is held, what another request is about to compute, what becomes of
//! a request's blocks.

use std::collections::HashMap;
use std::ops::Bound;

use mainstay_engine_abi::sdk::types_of_mainstay::HashKey;
use mainstay_engine_abi::sdk::types_of_mainstay::hash::BlockHashKey;
use mainstay_engine_abi::sdk::{Code, Finish, Stats};
use mainstay_engine_blocks::BlockPool;

use crate::sequence::{Place, Queue, Sequence};

/// How tokens are cut into blocks, and named.
pub struct Grid {
    pub(crate) key: BlockHashKey,
    /// Tokens of a block.
    pub block_tokens: usize,
}

impl Grid {
    /// How many blocks hold so many tokens.
    #[must_use]
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }
}

/// Blocks, and who is about to compute which.
pub struct Cache {
    /// The grid.
    pub grid: Grid,
    /// The blocks.
    pub blocks: BlockPool,
    /// Blocks of prompts that running requests are about to compute, and who does.
    in_flight: HashMap<u128, Place>,
}

impl Cache {
    /// An empty cache of so many blocks, of which pins may hold a share.
    #[must_use]
    pub fn new(key: HashKey, block_tokens: usize, blocks: u32, pin_fraction: f64) -> Self {
        Self {
            grid: Grid { key: BlockHashKey::new(key), block_tokens },
            blocks: BlockPool::new(blocks, pin_fraction),
            in_flight: HashMap::new(),
        }
    }

    /// Figures of now, with its own among them.
    #[must_use]
    pub fn count(&self, stats: Stats) -> Stats {
        let counts = self.blocks.counts();
        Stats {
            blocks_used: u64::from(counts.used),
            blocks_cached: u64::from(counts.cached),
            blocks_pinned: u64::from(counts.pinned),
            evictions: counts.evictions,
            ages: Some(self.blocks.ages()),
            ..stats
        }
    }

    /// The hashes of blocks that need not be computed if they are cached. One token at least is computed, for what
    /// follows it.
    pub fn reusable<'a, T>(&self, sequence: &'a Sequence<T>) -> &'a [u128] {
        let reusable = (sequence.tokens.len() - 1) / self.grid.block_tokens;
        &sequence.hashes[..reusable.min(sequence.hashes.len())]
    }

    /// Whether a block is held or will be, since a running request computes it.
    #[must_use]
    pub fn expects(&self, hash: u128) -> bool {
        self.blocks.holds(hash) || self.in_flight.contains_key(&hash)
    }

    /// Whether a request that goes first is about to compute that block.
    fn is_computed_before(&self, hash: u128, place: Place) -> bool {
        self.in_flight.get(&hash).is_some_and(|owner| *owner < place)
    }

    /// The next in the queue that does not wait for a block.
    pub fn next_of<T>(&self, waiting: &Queue<T>, after: Bound<Place>) -> Option<Place> {
        let mut behind = waiting.range((after, Bound::Unbounded)).map(|(place, s)| (*place, s));
        let waits =
            |place, hash: Option<u128>| hash.is_some_and(|h| self.is_computed_before(h, place));
        behind.find(|(place, s)| !waits(*place, s.waits_for)).map(|(place, _)| place)
    }

    /// How many leading blocks are held.
    #[must_use]
    pub fn hits<T>(&self, sequence: &Sequence<T>) -> usize {
        self.reusable(sequence).iter().take_while(|hash| self.blocks.holds(**hash)).count()
    }

    /// Whether an earlier request is about to compute the block that this one, with so many hits, wants next, so that it
    /// waits for it. Not for a prompt's last token, which is computed in any case.
    pub fn waits<T>(&self, sequence: &mut Sequence<T>, hits: usize) -> bool {
        let place = sequence.place;
        let wanted = self.reusable(sequence).get(hits).copied();
        sequence.waits_for = wanted.filter(|hash| self.is_computed_before(*hash, place));
        sequence.waits_for.is_some()
    }

    /// Leads a request's table over its first `hits` blocks.
    pub fn attach<T>(&mut self, sequence: &mut Sequence<T>, hits: usize, now_us: u64) {
        let known = sequence.hashes[..hits].iter().copied();
        self.blocks.attach(known, &mut sequence.table, now_us / 1000);
    }

    /// Takes back what [`Cache::attach`] did.
    pub fn detach<T>(&mut self, sequence: &mut Sequence<T>, now_us: u64) {
        self.blocks.detach(&mut sequence.table, now_us / 1000);
    }

    /// A block more for a request; false where there is none.
    #[must_use]
    pub fn extend<T>(&mut self, sequence: &mut Sequence<T>, now_us: u64) -> bool {
        self.blocks.extend(&mut sequence.table, sequence.namespace, now_us / 1000)
    }

    /// Blocks that a request may have: while others run, not those that are kept for higher ones.
    #[must_use]
    pub fn available_to<T>(&self, sequence: &Sequence<T>, is_alone: bool, now_us: u64) -> u32 {
        if is_alone {
            return self.blocks.available();
        }
        let waited_ms = now_us.saturating_sub(sequence.submitted_us) / 1_000;
        self.blocks.available_to(sequence.priority(), waited_ms)
    }

    /// Begins a request whose first `hits` blocks are held; what it computes others wait for.
    pub fn begin<T>(
        &mut self,
        sequence: &mut Sequence<T>,
        hits: usize,
        counters: &mut Stats,
        now_us: u64,
    ) {
        sequence.registered = hits;
        sequence.computed = hits * self.grid.block_tokens;
        if sequence.admitted_us.is_none() {
            sequence.admitted_us = Some(now_us);
            sequence.cached_tokens = sequence.computed as u32;
            counters.query_tokens += sequence.tokens.len() as u64;
            counters.hit_tokens += sequence.computed as u64;
        }
        for hash in &sequence.hashes[hits..] {
            self.in_flight.entry(*hash).or_insert(sequence.place);
        }
    }

    /// Registers the full blocks of what is computed.
    pub fn register<T>(&mut self, sequence: &mut Sequence<T>) {
        let full = sequence.computed / self.grid.block_tokens;
        while sequence.registered < full {
            let at = sequence.registered;
            let hash = sequence.hashes[at];
            self.blocks.register(&mut sequence.table, at, hash, sequence.namespace);
            sequence.registered += 1;
            self.forget_in_flight(hash, sequence.place);
        }
    }

    fn forget_in_flight(&mut self, hash: u128, place: Place) {
        if self.in_flight.get(&hash) == Some(&place) {
            self.in_flight.remove(&hash);
        }
    }

    /// Takes all blocks of a request back, which may begin anew.
    pub fn give_back<T>(&mut self, sequence: &mut Sequence<T>, now_us: u64) {
        for hash in sequence.hashes.get(sequence.registered..).unwrap_or_default() {
            self.forget_in_flight(*hash, sequence.place);
        }
        let mut table = std::mem::take(&mut sequence.table);
        self.blocks.release(&mut table, &sequence.wishes(&self.grid), now_us / 1000);
        (sequence.computed, sequence.registered) = (0, 0);
        sequence.waits_for = None;
    }
}

/// The end of a request that could wait for ever.
#[must_use]
pub fn pinned_full() -> Finish {
    let message = "pins hold the blocks that this request needs; try again when some have ended";
    Finish::Error { rc: Code::Exhausted.rc(), message: message.to_owned() }
}
