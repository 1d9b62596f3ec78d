//! Pins on the beginnings of some leads' prompts, in the pools of the engines that serve them.
//!
//! A pin is taken when a turn ends, on the worker that served it, and goes on for a while from each turn, as an operator
//! or a harness would renew it. The same stretch of those who could be pinned and are not is what it is held against.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;
use mainstay_types::SequenceHash;

use crate::fleet::Fleet;
use crate::rng::mix;

/// How long a pin goes on after a turn.
const PIN_US: u64 = 600_000_000;

struct Held {
    chain: Arc<[SequenceHash]>,
    is_pinned: bool,
    workers: Vec<u32>,
}

/// All of them.
pub(super) struct Pins {
    pub(super) tokens: u32,
    blocks: usize,
    share: f64,
    seed: u64,
    held: HashMap<u32, Held, FixedState>,
    pub(super) sessions: u64,
    pub(super) refused: u64,
}

impl Pins {
    /// Of so many tokens, for that share of sessions.
    pub(super) fn new(tokens: u32, share: f64, block_tokens: u32, seed: u64) -> Self {
        let blocks = (tokens / block_tokens.max(1)) as usize;
        let held = HashMap::default();
        Self { tokens, blocks, share, seed, held, sessions: 0, refused: 0 }
    }

    fn pin_id(serial: u64) -> u128 {
        u128::from(serial) + 1
    }

    /// A lead's turn has ended on a worker.
    pub(super) fn ended(
        &mut self,
        (slot, serial): (u32, u64),
        chain: &Arc<[SequenceHash]>,
        worker: u32,
        fleet: &mut Fleet,
        now_us: u64,
    ) {
        if self.blocks == 0 || chain.len() < self.blocks {
            return;
        }
        let drawn = mix(mix(self.seed ^ 0x7069_6e73) ^ serial) >> 11;
        let is_pinned = (drawn as f64 / (1_u64 << 53) as f64) < self.share;
        let held = self.held.entry(slot).or_insert_with(|| {
            self.sessions += u64::from(is_pinned);
            Held { chain: Arc::clone(chain), is_pinned, workers: Vec::new() }
        });
        if !held.is_pinned || !Arc::ptr_eq(&held.chain, chain) {
            return;
        }
        let hashes: Vec<u128> = chain[..self.blocks].iter().map(|hash| hash.0).collect();
        match fleet.pin(worker, Self::pin_id(serial), &hashes, now_us + PIN_US, now_us) {
            Some(_) if !held.workers.contains(&worker) => held.workers.push(worker),
            Some(_) => {}
            None => self.refused += 1,
        }
    }

    /// Whether a lead's prompt begins with a stretch that is or could be pinned: how long it is, and which of the two.
    pub(super) fn stretch(&self, slot: u32, chain: &Arc<[SequenceHash]>) -> Option<(u32, bool)> {
        let held = self.held.get(&slot).filter(|held| Arc::ptr_eq(&held.chain, chain))?;
        Some((self.tokens, held.is_pinned))
    }

    /// A session is over.
    pub(super) fn over(&mut self, slot: u32, serial: u64, fleet: &mut Fleet, now_us: u64) {
        let Some(held) = self.held.remove(&slot) else { return };
        for worker in held.workers {
            fleet.unpin(worker, Self::pin_id(serial), now_us);
        }
    }
}
