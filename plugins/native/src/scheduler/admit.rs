//! Admission: from the queue to the running requests, in order of service, through the prefix
//! cache.

use std::ops::Bound;

use mainstay_engine_shell::{Place, pinned_full};

use super::Scheduler;
use super::sequence::Sequence;

enum Admission {
    Admitted,
    /// Another request is computing what this one needs next.
    Waits,
    /// No blocks; nobody behind it may overtake, or it would starve.
    NoRoom,
    /// It ended with an error.
    Failed,
}

impl Scheduler {
    pub(super) fn admit(&mut self, now_us: u64) {
        let mut after = Bound::Unbounded;
        while self.running.len() < self.limits.requests_max {
            let Some(place) = self.cache.next_of(&self.waiting, after) else { return };
            after = Bound::Excluded(place);
            match self.admit_one(place, now_us) {
                Admission::NoRoom => return,
                Admission::Admitted | Admission::Waits | Admission::Failed => {}
            }
        }
    }

    fn admit_one(&mut self, place: Place, now_us: u64) -> Admission {
        let Some(mut sequence) = self.dequeue(place) else { return Admission::Failed };
        let hits = self.cache.hits(&sequence);
        if self.cache.waits(&mut sequence, hits) {
            self.enqueue(sequence);
            return Admission::Waits;
        }
        self.cache.attach(&mut sequence, hits, now_us);
        if !self.make_room(&sequence, now_us) {
            self.cache.detach(&mut sequence, now_us);
            if self.running.is_empty() {
                // Nothing that runs could give blocks back: pins hold them.
                self.end(sequence, now_us, None, pinned_full());
                return Admission::Failed;
            }
            self.enqueue(sequence);
            return Admission::NoRoom;
        }
        self.start(sequence, now_us);
        Admission::Admitted
    }

    /// Whether the rest of its known tokens fits beside what the running requests were promised;
    /// preempts requests of lower priority to get there.
    fn make_room(&mut self, sequence: &Sequence, now_us: u64) -> bool {
        let wanted =
            self.cache.grid.blocks_for(sequence.tokens.len() + 1).min(self.limits.blocks as usize);
        let wanted = wanted.saturating_sub(sequence.table.len());
        loop {
            let promised = self.promised();
            let available = self.cache.available_to(sequence, self.running.is_empty(), now_us);
            if available as usize >= wanted + promised {
                return true;
            }
            match self.running.last() {
                Some(last) if last.priority() < sequence.priority() => {
                    self.preempt(self.running.len() - 1, now_us);
                }
                _ => return false,
            }
        }
    }

    /// Blocks that the running requests still need for what they know.
    pub(super) fn promised(&self) -> usize {
        let needed = |s: &Sequence| self.cache.grid.blocks_for(s.tokens.len());
        self.running.iter().map(|s| needed(s).saturating_sub(s.table.len())).sum()
    }

    fn start(&mut self, mut sequence: Box<Sequence>, now_us: u64) {
        let hits = sequence.table.len();
        self.cache.begin(&mut sequence, hits, &mut self.counters, now_us);
        let at = self.running.partition_point(|s| s.place < sequence.place);
        self.running.insert(at, sequence);
    }

    /// Takes a running request's blocks away; it goes on later from what the cache has kept.
    pub(super) fn preempt(&mut self, index: usize, now_us: u64) {
        let mut sequence = self.running.remove(index);
        self.cache.give_back(&mut sequence, now_us);
        sequence.own.leave_step();
        self.counters.preemptions += 1;
        self.enqueue(sequence);
    }
}
