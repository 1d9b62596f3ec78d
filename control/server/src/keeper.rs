//! The keeper: the leader's duty to make pins whole again.
//!
//! What is to be ordered is decided in `mainstay-state`, from the machine and the index; here the orders go through
//! the log and what becomes of them is counted. What is remembered here is for figures only: a new leader finds in
//! the log all that it has to know.

use std::collections::HashMap;
use std::time::Instant;

use mainstay_raft::{Group, ProposeError};
use mainstay_state::{Machine, Outcome, Pin, decide};
use mainstay_types::{Command, Epoch, PinId, PinState, SequenceHash, WorkerId};

/// Degraded pins whose time is taken; more are counted without it.
const DEGRADED_MAX: usize = 65_536;

/// What this leader remembers between two looks.
#[derive(Default)]
pub(crate) struct Keeper {
    /// Orders in force that this leader has seen.
    orders: HashMap<(PinId, WorkerId), Epoch>,
    /// Since when pins are degraded.
    degraded: HashMap<PinId, Instant>,
}

/// What one look at the machine tells.
struct Look {
    orders: Vec<Command>,
    ends: Vec<((PinId, WorkerId), &'static str)>,
    recovered: Vec<PinId>,
    degraded: Vec<PinId>,
}

impl Keeper {
    /// Gives the orders that are due.
    pub(crate) async fn look(&mut self, group: &Group) -> Result<(), ProposeError> {
        let look = group.read(|machine| self.see(machine, group));
        self.count(&look);
        if look.orders.is_empty() {
            return Ok(());
        }
        let given = look.orders.clone();
        let answers = group.propose_many(look.orders).await?;
        for (command, (_, outcome)) in given.into_iter().zip(answers) {
            let Command::OrderPin { id, worker, epoch } = command else { continue };
            match outcome {
                Outcome::Ordered => {
                    tracing::info!(pin = %id, %worker, "a worker is to compute a pin");
                    self.orders.insert((id, worker), epoch);
                    count("ordered");
                }
                // It got its copies, ended, or lost the worker since it was looked at.
                _ => count("late"),
            }
        }
        Ok(())
    }

    fn see(&self, machine: &Machine, group: &Group) -> Look {
        let now_ms = machine.time().now_ms;
        let orders = decide(machine, now_ms, |blocks| coverage(machine, group, blocks));
        let order = |o: mainstay_state::KeeperOrder| Command::OrderPin {
            id: o.id,
            worker: o.worker,
            epoch: o.epoch,
        };
        let ends = self
            .orders
            .iter()
            .filter_map(|(key, epoch)| Some((*key, end_of(machine, now_ms, *key, *epoch)?)));
        let is_degraded = |pin: &&Pin| pin.state == PinState::Degraded;
        let recovered = self
            .degraded
            .keys()
            .filter(|id| machine.pin(**id).is_none_or(|pin| pin.state != PinState::Degraded));
        Look {
            orders: orders.into_iter().map(order).collect(),
            ends: ends.collect(),
            recovered: recovered.copied().collect(),
            degraded: machine
                .short_pins()
                .filter(is_degraded)
                .map(|pin| pin.request.id)
                .filter(|id| !self.degraded.contains_key(id))
                .collect(),
        }
    }

    fn count(&mut self, look: &Look) {
        for (key, outcome) in &look.ends {
            self.orders.remove(key);
            count(outcome);
        }
        for id in &look.recovered {
            if let Some(since) = self.degraded.remove(id) {
                metrics::histogram!("mainstay_keeper_degraded_seconds")
                    .record(since.elapsed().as_secs_f64());
            }
        }
        for id in look.degraded.iter().take(DEGRADED_MAX - self.degraded.len().min(DEGRADED_MAX)) {
            self.degraded.insert(*id, Instant::now());
        }
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("mainstay_keeper_orders_total", "outcome" => outcome).increment(1);
}

/// What became of an order; `None` while it is in force.
fn end_of(
    machine: &Machine,
    now_ms: u64,
    (id, worker): (PinId, WorkerId),
    epoch: Epoch,
) -> Option<&'static str> {
    let Some(pin) = machine.pin(id).filter(|pin| pin.is_live()) else { return Some("ended") };
    if pin.holds_all(worker) {
        return Some("fulfilled");
    }
    if machine.worker(worker).is_none_or(|w| !w.is_live() || w.epoch != epoch) {
        return Some("fenced");
    }
    match pin.keeping.orders.get(&worker) {
        Some(order) if order.in_force(now_ms) => None,
        Some(_) => Some("lapsed"),
        // Others were quicker.
        None => Some("spared"),
    }
}

/// Who holds how many leading blocks, by whichever form of the index this cluster has.
fn coverage(machine: &Machine, group: &Group, blocks: &[SequenceHash]) -> Vec<(WorkerId, u32)> {
    let mut found = machine.index().lookup(blocks);
    if found.is_empty() {
        group.streams().reader().lookup_into(blocks, &mut found);
    }
    found.into_iter().map(|overlap| (overlap.worker, overlap.blocks)).collect()
}
