//! Orders of the keeper: which worker is to compute which pin, since when, and what came of it.
//!
//! An order is an entry of the log, so that a new leader knows what the last one asked for. It is in force until the
//! worker has all blocks, its epoch ends, the pin has its copies or ends, or [`ORDER_MS`] pass in which the worker
//! reports nothing new; after that another may be asked. Orders that came to nothing stay noted, so that the next one
//! goes to somebody else first; how many there were since the pin was last whole decides how long the keeper
//! waits before it starts over. A second order to a worker that has one in force changes nothing.

use std::collections::BTreeMap;

use mainstay_types::{Epoch, ErrorCode, LogIndex, PinId, PinState, WorkerId};

use super::{Pin, Pins, unknown};
use crate::outcome::{Outcome, Refusal};

/// How long an order stands without progress.
pub const ORDER_MS: u64 = 3_000;
/// Orders that are noted of one pin; the longest overdue makes room for another.
pub const PIN_ORDERS_MAX: usize = 64;

/// One order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// The life of the worker that it was given to.
    pub epoch: Epoch,
    /// When it was given last, in cluster time.
    pub since_ms: u64,
    /// When it was given, or the worker last held more than before.
    pub moved_ms: u64,
    /// How often it was given.
    pub attempts: u32,
}

impl Order {
    /// Whether the worker may still be expected to fulfil it.
    #[must_use]
    pub fn in_force(&self, now_ms: u64) -> bool {
        now_ms < self.moved_ms.saturating_add(ORDER_MS)
    }
}

/// What the keeper has done for a pin that lacks copies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keeping {
    /// By worker; those that came to nothing too. Empty while the pin is active and once it has ended.
    pub orders: BTreeMap<WorkerId, Order>,
    /// Orders since it last had all its copies.
    pub attempts: u32,
    /// When the last one was given; 0 if there was none since then.
    pub ordered_ms: u64,
    /// When it was made, or its holders last changed.
    pub moved_ms: u64,
}

impl Keeping {
    pub(crate) fn begin(now_ms: u64) -> Self {
        Self { moved_ms: now_ms, ..Self::default() }
    }

    /// The pin has what it needs: nothing more is asked of anybody.
    pub(super) fn settle(&mut self) {
        *self = Self::begin(self.moved_ms);
    }

    /// A worker holds so many blocks now.
    pub(super) fn moved(&mut self, now_ms: u64, worker: WorkerId, grew: bool, whole: bool) {
        self.moved_ms = now_ms;
        if whole {
            self.orders.remove(&worker);
        } else if grew && let Some(order) = self.orders.get_mut(&worker) {
            order.moved_ms = now_ms;
        }
    }
}

impl Pins {
    /// Notes an order of the keeper. The worker's epoch lives.
    pub(crate) fn order(
        &mut self,
        index: LogIndex,
        now_ms: u64,
        id: PinId,
        worker: WorkerId,
        epoch: Epoch,
    ) -> Result<Outcome, Refusal> {
        let pin = self.all.get_mut(&id).ok_or_else(|| unknown(id))?;
        let refuse = |why: String| Err(Refusal::new(ErrorCode::FailedPrecondition, why));
        if !pin.lacks_copies() {
            return refuse(format!("pin {id} is {}; nothing is to be computed", pin.state.name()));
        }
        if pin.request.tokens.is_none() {
            return refuse(format!("pin {id} keeps no tokens to compute it from"));
        }
        if pin.holds_all(worker) {
            return refuse(format!("worker {worker} holds all of pin {id}"));
        }
        let orders = &mut pin.keeping.orders;
        let former = orders.get(&worker).copied();
        if former.is_some_and(|order| order.in_force(now_ms)) {
            return Ok(Outcome::Ordered);
        }
        if former.is_none() && orders.len() >= PIN_ORDERS_MAX {
            let oldest = orders.iter().min_by_key(|(id, order)| (order.moved_ms, **id));
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                orders.remove(&oldest);
            }
        }
        let attempts = former.map_or(0, |order| order.attempts).saturating_add(1);
        orders.insert(worker, Order { epoch, since_ms: now_ms, moved_ms: now_ms, attempts });
        pin.keeping.attempts = pin.keeping.attempts.saturating_add(1);
        pin.keeping.ordered_ms = now_ms;
        pin.changed_index = index;
        Ok(Outcome::Ordered)
    }

    /// Live pins with fewer copies than they should have that could be computed again.
    pub(crate) fn short(&self) -> impl Iterator<Item = &Pin> {
        self.short.iter().filter_map(|id| self.all.get(id))
    }

    /// Keeps the set of [short](Pins::short) pins true after a pin has changed.
    pub(super) fn note_short(&mut self, id: PinId) {
        let short =
            self.all.get(&id).is_some_and(|p| p.lacks_copies() && p.request.tokens.is_some());
        if short {
            self.short.insert(id);
        } else {
            self.short.remove(&id);
        }
    }
}

impl Pin {
    /// Whether it lives and fewer workers than asked for hold all of it.
    #[must_use]
    pub fn lacks_copies(&self) -> bool {
        self.is_live() && self.state != PinState::Active
    }

    /// Whether a worker keeps all its blocks.
    #[must_use]
    pub fn holds_all(&self, worker: WorkerId) -> bool {
        self.holders.get(&worker).is_some_and(|held| *held as usize >= self.request.blocks.len())
    }

    /// How many workers keep all its blocks.
    #[must_use]
    pub fn copies(&self) -> usize {
        self.holders.keys().filter(|worker| self.holds_all(**worker)).count()
    }
}
