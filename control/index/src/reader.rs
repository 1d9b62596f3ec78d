//! Readers: lookups from any thread, which neither wait for the writer nor make it wait.

use std::sync::Arc;

use mainstay_types::WorkerId;

use crate::BlockName;
use crate::lookup::{Sink, walk_any, walk_burst, walk_tiers};
use crate::shared::{Shared, own_number_bit};
use crate::sync::Ordering;
use crate::unpack::unpack;

/// How much of a prompt a worker holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Overlap {
    /// Who.
    pub worker: WorkerId,
    /// How many of the prompt's leading blocks, in any tier.
    pub blocks: u32,
}

/// Up to 64 workers that hold equally much of a prompt: what a cost function takes whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// The workers' slots are `64 * word` and the set bits; see [`IndexReader::worker_of_slot`].
    pub word: u32,
    /// How many of the prompt's leading blocks, in any tier.
    pub depth: u32,
    /// Which of the 64.
    pub bits: u64,
}

/// How much of a prompt a worker holds how near.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierOverlap {
    /// Who.
    pub worker: WorkerId,
    /// By tier number: leading blocks that lie in that tier or a nearer one.
    pub blocks: [u32; 4],
}

/// A reader. Clones are cheap.
#[derive(Clone)]
pub struct IndexReader {
    shared: Arc<Shared>,
}

impl Sink for Vec<Group> {
    #[inline(always)]
    fn restart(&mut self) {
        self.clear();
    }

    #[inline(always)]
    fn take(&mut self, word: usize, bits: u64, depth: u32) {
        self.push(Group { word: word as u32, depth, bits });
    }
}

/// Takes groups behind what a vector has already, with slots moved up.
struct Behind<'a> {
    out: &'a mut Vec<Group>,
    start: usize,
    word: u32,
}

impl Sink for Behind<'_> {
    fn restart(&mut self) {
        self.out.truncate(self.start);
    }

    #[inline(always)]
    fn take(&mut self, word: usize, bits: u64, depth: u32) {
        self.out.push(Group { word: self.word + word as u32, depth, bits });
    }
}

/// Names workers.
struct Named<'a> {
    shared: &'a Shared,
    start: usize,
    out: &'a mut Vec<Overlap>,
    /// Words whose slots need no translation.
    own_numbers: u64,
}

impl<'a> Named<'a> {
    #[inline(always)]
    fn behind(shared: &'a Shared, out: &'a mut Vec<Overlap>) -> Self {
        Self { shared, start: out.len(), out, own_numbers: 0 }
    }
}

impl Sink for Named<'_> {
    #[inline(always)]
    fn restart(&mut self) {
        self.out.truncate(self.start);
        self.own_numbers = self.shared.own_numbers.load(Ordering::Relaxed);
    }

    #[inline(always)]
    fn take_one(&mut self, slot: u32, depth: u32) {
        let worker = if self.own_numbers >> own_number_bit(slot as usize / 64) & 1 == 1 {
            WorkerId(slot)
        } else {
            let id = self.shared.worker_ids[slot as usize].load(Ordering::Relaxed);
            WorkerId((id as u32).wrapping_sub(1))
        };
        self.out.push(Overlap { worker, blocks: depth });
    }

    #[inline(always)]
    fn take(&mut self, word: usize, bits: u64, depth: u32) {
        if self.own_numbers >> own_number_bit(word) & 1 == 1 {
            return unpack(word as u32 * 64, bits, depth, self.out);
        }
        let ids = &self.shared.worker_ids[word * 64..word * 64 + 64];
        let mut rest = bits;
        while rest != 0 {
            let id = ids[rest.trailing_zeros() as usize % 64].load(Ordering::Relaxed);
            // A slot without a worker is one that was given up meanwhile: the walk starts again.
            let worker = WorkerId((id as u32).wrapping_sub(1));
            self.out.push(Overlap { worker, blocks: depth });
            rest &= rest - 1;
        }
    }
}

/// One tier more per depth, nearest first.
const ACCEPTED: [u8; 4] = [0b0001, 0b0011, 0b0111, 0b1111];

impl IndexReader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// For each worker that holds the first block of `prefix`, how many leading blocks it holds without a gap; in
    /// no order. `out` is cleared first.
    #[inline]
    pub fn lookup_into<N: BlockName>(&self, prefix: &[N], out: &mut Vec<Overlap>) {
        out.clear();
        self.lookup_behind(prefix, out);
    }

    /// The same, behind what `out` has already.
    #[inline]
    pub(crate) fn lookup_behind<N: BlockName>(&self, prefix: &[N], out: &mut Vec<Overlap>) {
        walk_any(&self.shared, prefix, &mut Named::behind(&self.shared, out));
    }

    /// The same as groups of workers that hold equally much.
    #[inline]
    pub fn groups_into<N: BlockName>(&self, prefix: &[N], out: &mut Vec<Group>) {
        walk_any(&self.shared, prefix, out);
    }

    #[inline]
    pub(crate) fn groups_behind<N: BlockName>(
        &self,
        prefix: &[N],
        word: u32,
        out: &mut Vec<Group>,
    ) {
        let start = out.len();
        walk_any(&self.shared, prefix, &mut Behind { out, start, word });
    }

    /// Looks several prompts up at once, so that their waits for memory overlap. `out` has one vector for each.
    pub fn burst_into<N: BlockName>(&self, prefixes: &[&[N]], out: &mut [Vec<Group>]) {
        walk_burst(&self.shared, prefixes, out);
    }

    /// Depths per tier; in no order. Each depth was true at one instant.
    pub fn tiers_into<N: BlockName>(&self, prefix: &[N], out: &mut Vec<TierOverlap>) {
        out.clear();
        let mut level = Vec::new();
        self.lookup_into(prefix, &mut level);
        out.extend(level.iter().map(|o| TierOverlap { worker: o.worker, blocks: [o.blocks; 4] }));
        if out.is_empty() {
            return;
        }
        out.sort_unstable_by_key(|overlap| overlap.worker);
        for (tier, accept) in ACCEPTED.into_iter().enumerate().take(3) {
            level.clear();
            let mut named = Named::behind(&self.shared, &mut level);
            walk_tiers(&self.shared, prefix, accept, &mut named);
            level.sort_unstable_by_key(|overlap| overlap.worker);
            let mut same = true;
            for overlap in out.iter_mut() {
                let near = level
                    .binary_search_by_key(&overlap.worker, |o| o.worker)
                    .map_or(0, |at| level[at].blocks.min(overlap.blocks[3]));
                same &= near == overlap.blocks[3];
                overlap.blocks[tier] = near;
            }
            if same {
                return;
            }
        }
    }

    /// The worker of a slot. A slot changes hands only when its worker holds nothing, and after all that are free.
    #[must_use]
    pub fn worker_of_slot(&self, slot: u32) -> Option<WorkerId> {
        let id = self.shared.worker_ids.get(slot as usize)?.load(Ordering::Relaxed);
        id.checked_sub(1).map(|id| WorkerId(id as u32))
    }
}

impl core::fmt::Debug for IndexReader {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("IndexReader").finish_non_exhaustive()
    }
}
