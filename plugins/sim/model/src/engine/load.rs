//! What comes in instead of being computed: from host memory over one link, from other engines over another.
//!
//! A request that can bring in some of its blocks holds them all while they come, and is served when they are there;
//! each link serves one request after the other. Blocks that came in are the engine's own from then on.

use mainstay_engine_abi::sdk::{Cause, KvEvent, TIER_HOST};
use mainstay_types::SequenceHash;

use super::Engine;
use crate::sequence::{Request, Sequence};

/// Less than this is computed: a step computes as much in the time that it takes to ask.
const LOAD_TOKENS_MIN: u32 = 256;

/// Requests whose blocks are coming in.
#[derive(Default)]
pub(super) struct Loading {
    /// The next to be ready last.
    sequences: Vec<Sequence>,
    tokens: u64,
    /// When each link is free.
    host_free_us: u64,
    peer_free_us: u64,
    /// What host memory got and gave up.
    pub(super) events: Vec<KvEvent>,
}

impl Loading {
    pub(super) fn len(&self) -> usize {
        self.sequences.len()
    }

    pub(super) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Tokens that will have to be computed then.
    pub(super) fn unread(&self, block_tokens: u32) -> u64 {
        let unread = |s: &Sequence| s.tokens().saturating_sub(s.there_blocks * block_tokens);
        self.sequences.iter().map(|s| u64::from(unread(s))).sum()
    }

    pub(super) fn next_us(&self) -> Option<u64> {
        self.sequences.last().map(|sequence| sequence.ready_us)
    }

    pub(super) fn add(&mut self, sequence: Sequence) {
        // Of equals the first to come is the first to be ready.
        let at = self.sequences.partition_point(|other| other.ready_us > sequence.ready_us);
        self.tokens += u64::from(sequence.expected);
        self.sequences.insert(at, sequence);
    }

    fn ready(&mut self, now_us: u64) -> Option<Sequence> {
        let is_ready = self.next_us().is_some_and(|ready_us| ready_us <= now_us);
        let sequence = self.sequences.pop_if(|_| is_ready)?;
        self.tokens -= u64::from(sequence.expected);
        Some(sequence)
    }
}

impl Engine {
    pub(super) fn load_us_per_token(&self) -> f32 {
        self.profile.host_us_per_token().unwrap_or(0.0) as f32
    }

    /// How many blocks behind the first `hits` can be brought in.
    pub(super) fn can_bring_in(
        &self,
        request: &Request,
        rest: &[SequenceHash],
        hits: usize,
    ) -> usize {
        let given = request.fetch.map_or(0, |fetch| fetch.blocks as usize);
        if given <= hits && !self.host.is_there() {
            return 0;
        }
        let stops =
            |(at, hash): (usize, &SequenceHash)| !self.host.holds(hash.0) && hits + at >= given;
        let mut all = rest.iter().enumerate();
        let count = all.position(stops).unwrap_or(rest.len());
        let least = LOAD_TOKENS_MIN.div_ceil(self.block_tokens) as usize;
        if count >= least { count } else { 0 }
    }

    /// Begins to bring in what can be, behind what is cached; whether anything was. `expected` becomes the tokens that
    /// come in.
    pub(super) fn begin_load(&mut self, sequence: &mut Sequence, now_us: u64) -> bool {
        let hits = sequence.registered;
        let findable = sequence.findable(self.block_tokens);
        let count = self.can_bring_in(&sequence.request, &findable[hits..], hits);
        if count == 0 {
            return false;
        }
        let here = findable[hits..hits + count].iter().filter(|hash| self.host.holds(hash.0));
        let here = here.count() as u32 * self.block_tokens;
        let given = count as u32 * self.block_tokens - here;
        let mut ready_us = now_us;
        let take_us =
            |tokens: u32, rate: Option<f64>| (f64::from(tokens) * rate.unwrap_or(0.0)) as u64;
        if here > 0 {
            let begin_us = self.loading.host_free_us.max(now_us);
            self.loading.host_free_us = begin_us + take_us(here, self.profile.host_us_per_token());
            ready_us = ready_us.max(self.loading.host_free_us);
            self.counters.loaded_tokens += u64::from(here);
        }
        if given > 0 {
            let from_us = sequence.request.fetch.map_or(0, |fetch| fetch.from_us);
            let begin_us = self.loading.peer_free_us.max(now_us).max(from_us);
            self.loading.peer_free_us = begin_us + take_us(given, self.profile.peer_us_per_token());
            ready_us = ready_us.max(self.loading.peer_free_us);
            self.counters.fetched_tokens += u64::from(given);
        }
        sequence.ready_us = ready_us;
        sequence.there_blocks = (hits + count) as u32;
        sequence.expected = here + given;
        true
    }

    /// Takes in whose blocks have come.
    pub(super) fn come_in(&mut self, now_us: u64) {
        while let Some(mut sequence) = self.loading.ready(now_us) {
            sequence.computed = sequence.there_blocks * self.block_tokens;
            if sequence.admitted_us.is_none() {
                sequence.admitted_us = Some(now_us);
                sequence.cached_tokens = sequence.computed;
            }
            let at = self.start(sequence);
            self.register(at);
        }
    }

    /// Copies what a request leaves behind.
    pub(super) fn copy_to_host(&mut self, sequence: &Sequence) {
        if !self.host.is_there() {
            return;
        }
        let Request { namespace, chain, .. } = &sequence.request;
        let known = &chain[..sequence.registered];
        let mut new: Vec<bool> = known.iter().rev().map(|hash| self.host.take(hash.0)).collect();
        new.reverse();
        let mut at = 0_usize;
        for stretch in new.chunk_by(|a, b| a == b) {
            if stretch[0] {
                let parent = at.checked_sub(1).map_or(*namespace, |above| chain[above].0);
                let blocks = chain[at..at + stretch.len()].iter().map(|hash| hash.0).collect();
                let (namespace, tier) = (*namespace, TIER_HOST);
                let stored = KvEvent::Stored { namespace, parent, blocks, tier, snapshot: false };
                self.loading.events.push(stored);
            }
            at += stretch.len();
        }
        let gone: Vec<u128> = std::iter::from_fn(|| self.host.evict()).collect();
        if !gone.is_empty() {
            let (tier, cause) = (TIER_HOST, Cause::Capacity);
            self.loading.events.push(KvEvent::Removed { blocks: gone, tier, cause });
        }
    }
}
