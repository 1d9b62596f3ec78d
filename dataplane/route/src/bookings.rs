//! Requests that were sent but may not be in their worker's load yet.
//!
//! A booking counts until a load arrives that must include it, until it is released, or until its time is over,
//! whichever comes first; so a lost release or a silent worker cannot make a worker look busy for ever. What counts
//! is summed for each worker as it changes: a decision looks at the workers with something booked, not at bookings.

use std::collections::VecDeque;

use mainstay_types::{Epoch, WorkerId};

use crate::contexts::Moved;
use crate::id_map::IdMap;
use crate::learned::Features;
use crate::lifetimes::Lifetimes;

/// Bookings that are kept at most; beyond it the oldest is forgotten.
pub const BOOKINGS_MAX: usize = 16_384;
/// A load heard this long after a booking includes it: workers report changes at least every 50 ms.
const SETTLE_MS: u64 = 100;
/// Names of ended bookings that may lie among live ones before they are swept out.
const ENDED_MAX: usize = 64;

/// Names a booking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BookingId(pub(crate) u64);

#[derive(Debug, Clone)]
pub(crate) struct Booking {
    pub(crate) worker: WorkerId,
    pub(crate) epoch: Epoch,
    pub(crate) prefill_tokens: u32,
    pub(crate) made_ms: u64,
    pub(crate) until_ms: u64,
    /// What it did to the warm conversations, to be undone if it never got there.
    pub(crate) moved: Option<Moved>,
    /// What the decision went by, for what is learned from how long it took.
    pub(crate) features: Option<Features>,
}

/// What a worker has booked that its load does not include.
#[derive(Debug, Clone)]
struct Pending {
    epoch: Epoch,
    /// In the order they were made; some have ended.
    queue: VecDeque<(BookingId, u64)>,
    requests: u32,
    prefill_tokens: u64,
}

impl Pending {
    /// One counts no more. A life that was left and came back may have lost its count.
    fn ends(&mut self, booking: &Booking) {
        self.requests = self.requests.saturating_sub(1);
        let tokens = u64::from(booking.prefill_tokens);
        self.prefill_tokens = self.prefill_tokens.saturating_sub(tokens);
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Bookings {
    by_id: IdMap<BookingId, (Booking, bool)>,
    by_worker: IdMap<WorkerId, Pending>,
    times: Lifetimes,
}

impl Bookings {
    pub(crate) fn add(&mut self, id: BookingId, booking: Booking) {
        while self.by_id.len() >= BOOKINGS_MAX {
            let Some(oldest) = self.times.oldest() else { break };
            self.release(oldest);
        }
        let by_id = &self.by_id;
        self.times.add(id, booking.until_ms, BOOKINGS_MAX, |id| by_id.contains_key(id));
        let counts = self.count(id, &booking);
        self.by_id.insert(id, (booking, counts));
    }

    /// Adds it to its worker's sums, unless the worker has begun another life since.
    fn count(&mut self, id: BookingId, booking: &Booking) -> bool {
        let fresh = || Pending {
            epoch: booking.epoch,
            queue: VecDeque::new(),
            requests: 0,
            prefill_tokens: 0,
        };
        let pending = self.by_worker.entry(booking.worker).or_insert_with(fresh);
        if pending.epoch > booking.epoch {
            return false;
        }
        if pending.epoch < booking.epoch {
            // What was sent to the former life counts no more, or it would be taken off a later sum.
            for (id, _) in &pending.queue {
                if let Some((_, counts)) = self.by_id.get_mut(id) {
                    *counts = false;
                }
            }
            *pending = fresh();
        }
        if pending.queue.len() >= 2 * pending.requests as usize + ENDED_MAX {
            let by_id = &self.by_id;
            pending.queue.retain(|(id, _)| by_id.get(id).is_some_and(|(_, counts)| *counts));
        }
        pending.queue.push_back((id, booking.made_ms));
        pending.requests += 1;
        pending.prefill_tokens += u64::from(booking.prefill_tokens);
        true
    }

    pub(crate) fn release(&mut self, id: BookingId) -> Option<Booking> {
        let (booking, counts) = self.by_id.remove(&id)?;
        if counts
            && let Some(pending) = self.by_worker.get_mut(&booking.worker)
            && pending.epoch == booking.epoch
        {
            pending.ends(&booking);
            if pending.requests == 0 {
                self.by_worker.remove(&booking.worker);
            }
        }
        Some(booking)
    }

    pub(crate) fn get_mut(&mut self, id: BookingId) -> Option<&mut Booking> {
        self.by_id.get_mut(&id).map(|(booking, _)| booking)
    }

    pub(crate) fn forget_worker(&mut self, worker: WorkerId) {
        self.by_id.retain(|_, (booking, _)| booking.worker != worker);
        self.by_worker.remove(&worker);
    }

    /// Ends one whose time is over; `None` once there is no more.
    pub(crate) fn expire(&mut self, now_ms: u64) -> Option<Booking> {
        while let Some(id) = self.times.due(now_ms) {
            if let Some(booking) = self.release(id) {
                return Some(booking);
            }
        }
        None
    }

    /// The worker's cache was cleared: no conversation is to be put back there.
    pub(crate) fn clear_worker(&mut self, worker: WorkerId) {
        for (booking, _) in self.by_id.values_mut() {
            if let Some(moved) = &mut booking.moved {
                moved.forget_worker(worker);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Tells for each worker how many requests and prompt tokens are on their way to it. `heard` says of which life
    /// and when a worker's load was heard, and what that includes is counted no more.
    pub(crate) fn each(
        &mut self,
        heard: impl Fn(WorkerId) -> Option<(Epoch, u64)>,
        mut tell: impl FnMut(WorkerId, u32, u64),
    ) {
        let by_id = &mut self.by_id;
        self.by_worker.retain(|worker, pending| {
            let Some((epoch, heard_ms)) = heard(*worker) else { return true };
            if epoch != pending.epoch {
                return true;
            }
            while let Some(&(id, made_ms)) = pending.queue.front() {
                if heard_ms <= made_ms.saturating_add(SETTLE_MS) {
                    break;
                }
                pending.queue.pop_front();
                if let Some((booking, counts)) = by_id.get_mut(&id)
                    && *counts
                {
                    *counts = false;
                    pending.ends(booking);
                }
            }
            if pending.requests > 0 {
                tell(*worker, pending.requests, pending.prefill_tokens);
            }
            pending.requests > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn booking(epoch: u64, until_ms: u64) -> Booking {
        Booking {
            worker: WorkerId(1),
            epoch: Epoch(epoch),
            prefill_tokens: 100,
            made_ms: 0,
            until_ms,
            moved: None,
            features: None,
        }
    }

    #[test]
    fn what_was_sent_to_a_former_life_is_taken_off_no_later_sum() {
        let mut bookings = Bookings::default();
        bookings.add(BookingId(1), booking(1, 50));
        bookings.add(BookingId(2), booking(2, 50));
        assert!(bookings.release(BookingId(2)).is_some());
        // Somebody with an old view still sends to the first life.
        bookings.add(BookingId(3), booking(1, 90));
        assert!(bookings.release(BookingId(1)).is_some());
        let told = |bookings: &mut Bookings| {
            let mut told = Vec::new();
            bookings.each(
                |_| Some((Epoch(1), 0)),
                |worker, requests, tokens| told.push((worker, requests, tokens)),
            );
            told
        };
        assert_eq!(told(&mut bookings), [(WorkerId(1), 1, 100)]);
        assert!(bookings.expire(89).is_none() && bookings.expire(90).is_some());
        assert_eq!((told(&mut bookings), bookings.len()), (vec![], 0));
    }
}
