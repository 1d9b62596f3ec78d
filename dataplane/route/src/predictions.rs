//! Prefixes that were just sent somewhere: where their blocks will be soon.
//!
//! The index hears of blocks once they are computed. Subagents of one agent start within milliseconds with the
//! same prompt, and would each go to another idle worker and compute it again. A prediction is compared with a
//! prompt block by block at the depth of its common prefix; it ends after a short while, by which time the real
//! events have come, or did not and it was wrong.

use std::collections::{HashMap, VecDeque};

use mainstay_types::{Epoch, SequenceHash, WorkerId};

use crate::bookings::BookingId;

/// Predictions that are kept at most; beyond it the oldest is forgotten.
pub const PREDICTIONS_MAX: usize = 2_048;
/// Blocks of all predictions: 16 MiB.
pub const PREDICTED_BLOCKS_MAX: usize = 1 << 20;

#[derive(Debug, Clone)]
struct Prediction {
    id: BookingId,
    worker: WorkerId,
    epoch: Epoch,
    until_ms: u64,
    /// The first block, here so that most comparisons need not follow the pointer.
    root: SequenceHash,
    blocks: Box<[SequenceHash]>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Predictions {
    queue: VecDeque<Prediction>,
    blocks: usize,
}

impl Predictions {
    pub(crate) fn add(
        &mut self,
        id: BookingId,
        worker: WorkerId,
        epoch: Epoch,
        until_ms: u64,
        prompt_blocks: &[SequenceHash],
    ) {
        let kept = &prompt_blocks[..prompt_blocks.len().min(PREDICTED_BLOCKS_MAX)];
        let Some(&root) = kept.first() else { return };
        while self.queue.len() >= PREDICTIONS_MAX || self.blocks + kept.len() > PREDICTED_BLOCKS_MAX
        {
            let Some(oldest) = self.queue.pop_front() else { break };
            self.blocks -= oldest.blocks.len();
        }
        self.blocks += kept.len();
        self.queue.push_back(Prediction { id, worker, epoch, until_ms, root, blocks: kept.into() });
    }

    fn retain(&mut self, keep: impl Fn(&Prediction) -> bool) {
        let blocks = &mut self.blocks;
        self.queue.retain(|prediction| {
            let kept = keep(prediction);
            if !kept {
                *blocks -= prediction.blocks.len();
            }
            kept
        });
    }

    pub(crate) fn cancel(&mut self, id: BookingId) {
        self.retain(|prediction| prediction.id != id);
    }

    pub(crate) fn forget_worker(&mut self, worker: WorkerId) {
        self.retain(|prediction| prediction.worker != worker);
    }

    pub(crate) fn expire(&mut self, now_ms: u64) {
        self.retain(|prediction| prediction.until_ms > now_ms);
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// How many leading blocks of `prompt_blocks` are expected where.
    pub(crate) fn find(&self, prompt_blocks: &[SequenceHash]) -> HashMap<(WorkerId, Epoch), u32> {
        let root = prompt_blocks.first();
        let mut found = HashMap::new();
        // The newest first: it is the likeliest to share the most.
        for prediction in self.queue.iter().rev().filter(|p| root == Some(&p.root)) {
            let best: &mut u32 = found.entry((prediction.worker, prediction.epoch)).or_default();
            // Hashes are chained: one that differs at the depth that is known shares no more than that.
            let next = prompt_blocks.get(*best as usize);
            if next.is_some() && next == prediction.blocks.get(*best as usize) {
                *best = common_prefix(prompt_blocks, &prediction.blocks);
            }
        }
        found
    }
}

/// The number of leading blocks that both have. Hashes are chained: once they differ they differ for ever, so the
/// place can be found by halving.
fn common_prefix(a: &[SequenceHash], b: &[SequenceHash]) -> u32 {
    let (mut low, mut high) = (0, a.len().min(b.len()));
    while low < high {
        let middle = low + (high - low) / 2;
        if a[middle] == b[middle] {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    u32::try_from(low).unwrap_or(u32::MAX)
}
