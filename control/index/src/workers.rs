//! The workers that an index knows: their slots in bit sets, and what they hold in all.

use crate::hasher::KeyMap;

use mainstay_types::WorkerId;

use crate::block_map::Place;
use crate::head::{WORDS, WORDS_MAX};

/// Slots there are.
pub(crate) const SLOTS_MAX: u32 = (WORDS_MAX * 64) as u32;

/// One worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkerState {
    pub(crate) id: Option<WorkerId>,
    /// Blocks held in any tier.
    pub(crate) held: u64,
    pub(crate) digest: u64,
    /// Where its last event ended: the next one often goes on from there.
    pub(crate) last: Option<Place>,
}

impl WorkerState {
    const NONE: Self = Self { id: None, held: 0, digest: 0, last: None };
}

/// All workers.
#[derive(Debug, Default)]
pub(crate) struct Workers {
    slots: Vec<WorkerState>,
    by_id: KeyMap<WorkerId, u32>,
    free: Vec<u32>,
}

/// What became of a request for a slot.
pub(crate) enum Claim {
    Known(u32),
    /// A slot that may have belonged to another worker before.
    New(u32),
    /// 8,192 workers hold blocks already.
    Full,
}

impl Workers {
    pub(crate) fn slot_of(&self, id: WorkerId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// The slot of a worker, a fresh one if it has none.
    pub(crate) fn claim(&mut self, id: WorkerId) -> Claim {
        if let Some(slot) = self.slot_of(id) {
            return Claim::Known(slot);
        }
        // A slot changes hands late, because a reader may name the worker of a slot some time after its lookup: only
        // before bit sets would outgrow the line of a head, and at the end of all slots.
        let count = self.slots.len();
        if self.free.is_empty() && (count == WORDS * 64 || count == SLOTS_MAX as usize) {
            self.reap();
        }
        let Some(slot) = self.free_slot(id) else { return Claim::Full };
        self.slots[slot as usize] = WorkerState { id: Some(id), ..WorkerState::NONE };
        self.by_id.insert(id, slot);
        Claim::New(slot)
    }

    /// A free slot: the worker's own number if that is small, so that readers need not translate; see [`Named`].
    ///
    /// [`Named`]: crate::reader
    fn free_slot(&mut self, id: WorkerId) -> Option<u32> {
        let own = id.0 as usize;
        if own < WORDS * 64 && own >= self.slots.len() {
            for between in self.slots.len()..own {
                self.free.push(between as u32);
            }
            self.slots.resize(own + 1, WorkerState::NONE);
            return Some(own as u32);
        }
        if let Some(at) = self.free.iter().position(|slot| *slot as usize == own) {
            return Some(self.free.swap_remove(at));
        }
        self.free.pop().or_else(|| {
            let next = self.slots.len() as u32;
            (next < SLOTS_MAX).then(|| self.slots.push(WorkerState::NONE)).map(|()| next)
        })
    }

    /// Frees the slots of workers that hold nothing.
    fn reap(&mut self) {
        for slot in 0..self.slots.len() as u32 {
            if self.slots[slot as usize].held == 0 {
                self.release(slot);
            }
        }
    }

    /// Gives a slot up; its worker must hold nothing.
    fn release(&mut self, slot: u32) {
        let state = &mut self.slots[slot as usize];
        debug_assert_eq!(state.held, 0);
        if let Some(id) = state.id.take() {
            self.by_id.remove(&id);
            self.free.push(slot);
        }
    }

    #[inline(always)]
    pub(crate) fn state(&self, slot: u32) -> &WorkerState {
        &self.slots[slot as usize]
    }

    #[inline(always)]
    pub(crate) fn state_mut(&mut self, slot: u32) -> &mut WorkerState {
        &mut self.slots[slot as usize]
    }

    /// Workers that hold something, with their slots, by id.
    pub(crate) fn holding(&self) -> Vec<(WorkerId, u32)> {
        let mut all: Vec<(WorkerId, u32)> = self
            .by_id
            .iter()
            .filter(|(_, slot)| self.state(**slot).held > 0)
            .map(|(id, slot)| (*id, *slot))
            .collect();
        all.sort_unstable();
        all
    }

    /// An estimate of its memory.
    pub(crate) fn bytes(&self) -> u64 {
        (self.slots.capacity() * size_of::<WorkerState>() + self.by_id.capacity() * 16) as u64
    }
}
