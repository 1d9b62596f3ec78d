//! Admission: from the queue to the running requests, in order of service, through the prefix
//! cache.

use std::ops::Bound;

use mainstay_engine_abi::sdk::{Code, Finish};

use super::Scheduler;
use super::sequence::{Place, Sequence};

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
            let next = self.waiting.range((after, Bound::Unbounded)).next();
            let Some((place, sequence)) = next else { return };
            let place = *place;
            after = Bound::Excluded(place);
            if sequence.waits_for.is_some_and(|hash| self.is_computed_before(hash, place)) {
                continue;
            }
            match self.admit_one(place, now_us) {
                Admission::NoRoom => return,
                Admission::Admitted | Admission::Waits | Admission::Failed => {}
            }
        }
    }

    /// Whether a request that goes first is about to compute that block.
    fn is_computed_before(&self, hash: u128, place: Place) -> bool {
        self.in_flight.get(&hash).is_some_and(|owner| *owner < place)
    }

    fn admit_one(&mut self, place: Place, now_us: u64) -> Admission {
        let Some(mut sequence) = self.dequeue(place) else { return Admission::Failed };
        // One token at least is computed, for its logits.
        let reusable = (sequence.tokens.len() - 1) / self.grid.block_tokens;
        let reusable = &sequence.hashes[..reusable.min(sequence.hashes.len())];
        let hits = reusable.iter().take_while(|hash| self.blocks.holds(**hash)).count();
        sequence.waits_for =
            reusable.get(hits).copied().filter(|hash| self.is_computed_before(*hash, place));
        if sequence.waits_for.is_some() {
            self.enqueue(sequence);
            return Admission::Waits;
        }
        let now_ms = now_us / 1000;
        let known = sequence.hashes[..hits].iter().copied();
        self.blocks.attach(known, &mut sequence.table, now_ms);
        if !self.make_room(&sequence, now_us) {
            self.blocks.detach(&mut sequence.table, now_ms);
            if self.running.is_empty() {
                // Nothing that runs could give blocks back: pins hold them.
                let message =
                    "pins hold the blocks that this request needs; try again when some have ended";
                let finish =
                    Finish::Error { rc: Code::Exhausted.rc(), message: message.to_owned() };
                self.end(sequence, now_us, None, finish);
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
            self.grid.blocks_for(sequence.tokens.len() + 1).min(self.limits.blocks as usize);
        let wanted = wanted.saturating_sub(sequence.table.len());
        loop {
            let promised: usize = self
                .running
                .iter()
                .map(|s| self.grid.blocks_for(s.tokens.len()).saturating_sub(s.table.len()))
                .sum();
            let available = if self.running.is_empty() {
                self.blocks.available()
            } else {
                let waited_ms = now_us.saturating_sub(sequence.submitted_us) / 1_000;
                self.blocks.available_to(sequence.priority(), waited_ms)
            };
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

    fn start(&mut self, mut sequence: Box<Sequence>, now_us: u64) {
        sequence.registered = sequence.table.len();
        sequence.computed = sequence.registered * self.grid.block_tokens;
        if sequence.admitted_us.is_none() {
            sequence.admitted_us = Some(now_us);
            sequence.cached_tokens = sequence.computed as u32;
            self.counters.query_tokens += sequence.tokens.len() as u64;
            self.counters.hit_tokens += sequence.computed as u64;
        }
        for hash in &sequence.hashes[sequence.registered..] {
            self.in_flight.entry(*hash).or_insert(sequence.place);
        }
        let at = self.running.partition_point(|s| s.place < sequence.place);
        self.running.insert(at, sequence);
    }

    /// Takes a running request's blocks away; it goes on later from what the cache has kept.
    pub(super) fn preempt(&mut self, index: usize, now_us: u64) {
        let mut sequence = self.running.remove(index);
        self.give_back(&mut sequence, now_us);
        sequence.restart();
        self.counters.preemptions += 1;
        self.enqueue(sequence);
    }
}
