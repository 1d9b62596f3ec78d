//! Prefixes that were just sent somewhere: where their blocks will be soon.
//!
//! The index hears of blocks once they are computed. Subagents of one agent start within milliseconds with the
//! same prompt, and would each go to another idle worker and compute it again. A prediction keeps what is new of a
//! prompt where it went, from the first block that was neither there nor expected there: hashes are chained, so who
//! has that block in his prompt shares all before it too. It ends after a short while, soon after the request's first
//! token at the latest, by which time the real events have come, or did not and it was wrong. If the request that a
//! part was expected from is cancelled, that part is not expected from later ones, though they may compute it: then it
//! is computed once more elsewhere.

use mainstay_types::{Epoch, SequenceHash, WorkerId};

use crate::bookings::BookingId;
use crate::id_map::IdMap;
use crate::lifetimes::Lifetimes;

/// Predictions that are kept at most; beyond it the oldest is forgotten.
pub const PREDICTIONS_MAX: usize = 2_048;
/// Blocks of all predictions: 16 MiB.
pub const PREDICTED_BLOCKS_MAX: usize = 1 << 20;
/// Predictions that one prompt is compared with at most, those that begin the deepest first. More than that begin
/// with the same new block only while hundreds of workers compute it at once.
const COMPARED_MAX: usize = 32;

#[derive(Debug, Clone)]
struct Prediction {
    id: BookingId,
    worker: WorkerId,
    epoch: Epoch,
    /// The depth of its first block.
    from: u32,
    /// Never empty.
    blocks: Box<[SequenceHash]>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Predictions {
    /// The first block of each.
    by_id: IdMap<BookingId, SequenceHash>,
    /// By their first blocks, the newest last.
    by_first: IdMap<SequenceHash, Vec<Prediction>>,
    /// The depths at which predictions begin, rising, and how many begin there.
    starts: Vec<(u32, u32)>,
    times: Lifetimes,
    blocks: usize,
}

impl Predictions {
    /// The worker has, or is expected to have, `overlap_blocks` already.
    pub(crate) fn add(
        &mut self,
        id: BookingId,
        (worker, epoch): (WorkerId, Epoch),
        until_ms: u64,
        prompt_blocks: &[SequenceHash],
        overlap_blocks: u32,
    ) {
        let new = prompt_blocks.get(overlap_blocks as usize..).unwrap_or(&[]);
        let kept = &new[..new.len().min(PREDICTED_BLOCKS_MAX)];
        let Some(&first) = kept.first() else { return };
        while self.by_id.len() >= PREDICTIONS_MAX || self.blocks + kept.len() > PREDICTED_BLOCKS_MAX
        {
            let Some(oldest) = self.times.oldest() else { break };
            self.cancel(oldest);
        }
        let by_id = &self.by_id;
        self.times.add(id, until_ms, PREDICTIONS_MAX, |id| by_id.contains_key(id));
        self.blocks += kept.len();
        let from = overlap_blocks;
        let kept = Prediction { id, worker, epoch, from, blocks: kept.into() };
        self.by_first.entry(first).or_default().push(kept);
        self.by_id.insert(id, first);
        match self.starts.binary_search_by_key(&overlap_blocks, |start| start.0) {
            Ok(at) => self.starts[at].1 += 1,
            Err(at) => self.starts.insert(at, (overlap_blocks, 1)),
        }
    }

    pub(crate) fn cancel(&mut self, id: BookingId) {
        let Some(first) = self.by_id.remove(&id) else { return };
        let Some(beside) = self.by_first.get_mut(&first) else { return };
        let Some(at) = beside.iter().position(|prediction| prediction.id == id) else { return };
        let gone = beside.remove(at);
        if beside.is_empty() {
            self.by_first.remove(&first);
        }
        self.blocks -= gone.blocks.len();
        if let Ok(at) = self.starts.binary_search_by_key(&gone.from, |start| start.0) {
            self.starts[at].1 -= 1;
            if self.starts[at].1 == 0 {
                self.starts.remove(at);
            }
        }
    }

    /// The index will know by then: it ends, if it would have lasted longer.
    pub(crate) fn end_by(&mut self, id: BookingId, until_ms: u64) {
        if self.by_id.contains_key(&id) {
            self.times.sooner(id, until_ms);
        }
    }

    pub(crate) fn forget_worker(&mut self, worker: WorkerId) {
        let all = self.by_first.values().flatten();
        let gone: Vec<BookingId> = all.filter(|p| p.worker == worker).map(|p| p.id).collect();
        gone.into_iter().for_each(|id| self.cancel(id));
    }

    pub(crate) fn expire(&mut self, now_ms: u64) {
        while let Some(id) = self.times.due(now_ms) {
            self.cancel(id);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Tells of each worker that is expected to have some of the prompt: `shared` answers how many leading blocks,
    /// or anything less if it is not more than what it is given.
    pub(crate) fn find(
        &self,
        prompt_blocks: &[SequenceHash],
        mut tell: impl FnMut(WorkerId, Epoch, &dyn Fn(i32) -> i32),
    ) {
        let mut compared = 0;
        for &(from, _) in self.starts.iter().rev() {
            let Some(first) = prompt_blocks.get(from as usize) else { continue };
            let Some(beginning) = self.by_first.get(first) else { continue };
            // The newest first: it is the likeliest to share the most.
            for prediction in beginning.iter().rev().filter(|p| p.from == from) {
                if compared >= COMPARED_MAX {
                    return;
                }
                compared += 1;
                let shared = |known| prediction.shared(prompt_blocks, known);
                tell(prediction.worker, prediction.epoch, &shared);
            }
        }
    }
}

impl Prediction {
    /// How many leading blocks it and the prompt have in common, or anything less than `known` if not more.
    fn shared(&self, prompt_blocks: &[SequenceHash], known: i32) -> i32 {
        let (from, known) = (self.from as usize, known.max(0) as usize);
        if let Some(next) = known.checked_sub(from)
            && (next >= self.blocks.len() || self.blocks.get(next) != prompt_blocks.get(known))
        {
            return 0;
        }
        let rest = &prompt_blocks[from..];
        let last = self.blocks.len() - 1;
        // Most go on with all of it.
        let shared = match rest.get(last) == self.blocks.get(last) {
            true => from + last + 1,
            false => from + common_prefix(rest, &self.blocks),
        };
        i32::try_from(shared).unwrap_or(i32::MAX)
    }
}

/// The number of leading blocks that both have. Hashes are chained: once they differ they differ for ever, so the
/// place can be found by halving.
#[must_use]
pub fn common_prefix(a: &[SequenceHash], b: &[SequenceHash]) -> usize {
    let (mut low, mut high) = (0, a.len().min(b.len()));
    while low < high {
        let middle = low + (high - low) / 2;
        if a[middle] == b[middle] {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
