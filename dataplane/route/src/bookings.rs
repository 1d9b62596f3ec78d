//! Requests that were sent but may not be in their worker's load yet.
//!
//! A booking counts until a load arrives that must include it, until it is released, or until its time is over,
//! whichever comes first; so a lost release or a silent worker cannot make a worker look busy for ever.

use std::collections::BTreeMap;

use mainstay_types::{Epoch, WorkerId};

use crate::cost::Booked;
use crate::inputs::WorkerView;

/// Bookings that are kept at most; beyond it the oldest is forgotten.
pub const BOOKINGS_MAX: usize = 16_384;
/// A load heard this long after a booking includes it: workers report changes at least every 50 ms.
const SETTLE_MS: u64 = 100;

/// Names a booking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BookingId(pub(crate) u64);

#[derive(Debug, Clone)]
struct Booking {
    worker: WorkerId,
    epoch: Epoch,
    prefill_tokens: u32,
    made_ms: u64,
    until_ms: u64,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Bookings {
    by_id: BTreeMap<BookingId, Booking>,
}

impl Bookings {
    pub(crate) fn add(
        &mut self,
        id: BookingId,
        worker: WorkerId,
        epoch: Epoch,
        prefill_tokens: u32,
        made_ms: u64,
        until_ms: u64,
    ) {
        while self.by_id.len() >= BOOKINGS_MAX {
            self.by_id.pop_first();
        }
        self.by_id.insert(id, Booking { worker, epoch, prefill_tokens, made_ms, until_ms });
    }

    pub(crate) fn release(&mut self, id: BookingId) {
        self.by_id.remove(&id);
    }

    pub(crate) fn forget_worker(&mut self, worker: WorkerId) {
        self.by_id.retain(|_, booking| booking.worker != worker);
    }

    pub(crate) fn expire(&mut self, now_ms: u64) {
        self.by_id.retain(|_, booking| booking.until_ms > now_ms);
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Adds what each worker has booked to `booked`, which stands in the order of `workers`.
    pub(crate) fn sum(
        &self,
        workers: &[WorkerView],
        slot: impl Fn(WorkerId) -> Option<usize>,
        booked: &mut [Booked],
    ) {
        for booking in self.by_id.values() {
            let Some(at) = slot(booking.worker) else { continue };
            let view = &workers[at];
            let included = view.load.heard_ms > booking.made_ms.saturating_add(SETTLE_MS);
            if view.epoch == booking.epoch && !included {
                booked[at].requests += 1;
                booked[at].prefill_tokens += u64::from(booking.prefill_tokens);
            }
        }
    }
}
