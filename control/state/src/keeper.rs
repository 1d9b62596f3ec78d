//! What the keeper decides: which workers are to compute which pins again.
//!
//! A pure function of the machine, of what the index says about who holds how much of a prefix, and of the time; the
//! leader asks it several times a second and puts its orders through the log. A pin with fewer whole copies than
//! it should have, or with none in a region where its scope wants one, gets an order for each copy that is missing: to
//! the worker of its model, in that region, that holds the longest part of it, then to one with room, with the fewest pins, with the most room. Whoever let an order lapse is asked
//! again only after everybody else, and after each round the keeper waits twice as long, a minute at most:
//! it gives up haste, never the pin. A pin that was never whole is given [`SETTLE_MS`], because most are made beside
//! the request that computes them.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use mainstay_types::{Epoch, KeptTokens, PinId, PinState, Region, SequenceHash, WorkerId};

use crate::machine::Machine;
use crate::pins::{MissingCopies, ORDER_MS, Pin};
use crate::workers::Worker;

/// How long a pin that was never whole may stand still before the keeper takes it in hand.
pub const SETTLE_MS: u64 = 2_000;
/// Orders in force that one worker has at most.
pub const WORKER_ORDERS_MAX: usize = 4;
/// Orders of one look.
pub const LOOK_ORDERS_MAX: usize = 64;
/// Copies of one pin that are thought of at a time.
const COPIES_MAX: usize = LOOK_ORDERS_MAX;
/// The longest wait between two rounds.
const ROUND_MS_MAX: u64 = 60_000;

/// An order to be put through the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeeperOrder {
    /// The pin.
    pub id: PinId,
    /// Who is to compute it.
    pub worker: WorkerId,
    /// In which life.
    pub epoch: Epoch,
}

/// What a worker has to do with pins.
struct Site<'a> {
    worker: &'a Worker,
    /// Blocks that it keeps for pins or was ordered to; one that is in several pins counts in each.
    blocks: u64,
    pins: u32,
    orders: usize,
}

impl Site<'_> {
    fn room(&self) -> u64 {
        self.worker.blocks_total.saturating_sub(self.blocks)
    }
}

/// What to order now. `coverage` tells for each worker how many leading blocks of a prefix it holds; workers that it
/// does not name hold none.
pub fn decide(
    machine: &Machine,
    now_ms: u64,
    coverage: impl Fn(&[SequenceHash]) -> Vec<(WorkerId, u32)>,
) -> Vec<KeeperOrder> {
    let mut short: Vec<&Pin> = machine.short_pins().filter(|pin| due(pin, now_ms)).collect();
    if short.is_empty() {
        return Vec::new();
    }
    // What was promised and is lost goes first, then what matters most, then what has waited longest.
    short.sort_by_key(|pin| {
        let lost = pin.state == PinState::Degraded;
        (Reverse(lost), Reverse(pin.request.priority), pin.keeping.moved_ms, pin.request.id)
    });
    let mut sites = sites(machine, now_ms);
    let mut orders = Vec::new();
    for pin in short {
        let Some(tokens) = &pin.request.tokens else { continue };
        let wanted = missing(machine, pin, now_ms);
        if wanted.is_empty() || waits(pin, tokens, &wanted, &sites, now_ms) {
            continue;
        }
        let held = held(pin, &coverage);
        for region in &wanted {
            if orders.len() >= LOOK_ORDERS_MAX {
                return orders;
            }
            let near = |site: &&Site<'_>| is_in(site.worker, region.as_ref());
            let chosen = choose((pin, tokens), &held, sites.values().filter(near), &orders, now_ms);
            let Some(worker) = chosen else { continue };
            let Some(site) = sites.get_mut(&worker) else { break };
            site.blocks += pin.request.blocks.len() as u64;
            site.pins += 1;
            site.orders += 1;
            orders.push(KeeperOrder { id: pin.request.id, worker, epoch: site.worker.epoch });
        }
    }
    orders
}

/// A pin that is being made beside its request is left alone for a while.
fn due(pin: &Pin, now_ms: u64) -> bool {
    pin.ever_active || now_ms >= pin.keeping.moved_ms.saturating_add(SETTLE_MS)
}

fn is_in(worker: &Worker, region: Option<&Region>) -> bool {
    region.is_none_or(|region| worker.region == *region)
}

/// Copies that nobody has and nobody is expected to make, each with the region where it has to be; anywhere if `None`.
fn missing(machine: &Machine, pin: &Pin, now_ms: u64) -> Vec<Option<Region>> {
    let lacking = machine.missing_copies(pin.request.id);
    let each = |lack: MissingCopies| {
        core::iter::repeat_n(lack.region, (lack.copies as usize).min(COPIES_MAX))
    };
    let mut wanted: Vec<Option<Region>> = lacking.into_iter().flat_map(each).collect();
    for (worker, order) in &pin.keeping.orders {
        if !order.in_force(now_ms) {
            continue;
        }
        // It fills a place in its own region, else one that may be anywhere.
        let region = machine.worker(*worker).map(|worker| &worker.region);
        let place = wanted.iter().position(|place| place.is_some() && place.as_ref() == region);
        if let Some(at) = place.or_else(|| wanted.iter().position(Option::is_none)) {
            wanted.remove(at);
        }
    }
    wanted
}

/// Whether all who could be asked were asked, and it is too soon to start over.
fn waits(
    pin: &Pin,
    tokens: &KeptTokens,
    wanted: &[Option<Region>],
    sites: &BTreeMap<WorkerId, Site<'_>>,
    now_ms: u64,
) -> bool {
    let near = |worker| wanted.iter().any(|region| is_in(worker, region.as_ref()));
    let able = sites.values().filter(|site| {
        near(site.worker) && !pin.holds_all(site.worker.id) && serves(site.worker, pin, tokens)
    });
    let asked =
        |site: &Site<'_>| pin.keeping.orders.get(&site.worker.id).map_or(0, |order| order.attempts);
    let rounds = able.map(asked).min().unwrap_or(0);
    if rounds == 0 {
        return false;
    }
    let pause_ms = (ORDER_MS << (rounds - 1).min(5)).min(ROUND_MS_MAX);
    now_ms < pin.keeping.ordered_ms.saturating_add(pause_ms)
}

fn sites(machine: &Machine, now_ms: u64) -> BTreeMap<WorkerId, Site<'_>> {
    let live = machine.workers().filter(|worker| worker.is_live());
    let site = |worker| Site { worker, blocks: 0, pins: 0, orders: 0 };
    let mut sites: BTreeMap<WorkerId, Site<'_>> = live.map(|w| (w.id, site(w))).collect();
    for pin in machine.pins().filter(|pin| pin.is_live()) {
        for (worker, held) in &pin.holders {
            if let Some(site) = sites.get_mut(worker) {
                site.blocks += u64::from(*held);
                site.pins += 1;
            }
        }
        let in_force = pin.keeping.orders.iter().filter(|(_, order)| order.in_force(now_ms));
        for (worker, _) in in_force {
            if let Some(site) = sites.get_mut(worker) {
                site.orders += 1;
                if !pin.holders.contains_key(worker) {
                    site.blocks += pin.request.blocks.len() as u64;
                    site.pins += 1;
                }
            }
        }
    }
    sites
}

/// Whether a worker runs the pin's model, and in blocks of the same size.
fn serves(worker: &Worker, pin: &Pin, tokens: &KeptTokens) -> bool {
    let model = &worker.model;
    let block_tokens = u64::from(model.block_tokens);
    model.name == tokens.model()
        && model.revision == tokens.revision()
        && block_tokens * pin.request.blocks.len() as u64 == u64::from(tokens.count())
        // The engine has to produce a token behind them.
        && model.context_tokens_max > tokens.count()
}

/// How much of a pin each worker holds, kept or not.
fn held(
    pin: &Pin,
    coverage: &impl Fn(&[SequenceHash]) -> Vec<(WorkerId, u32)>,
) -> BTreeMap<WorkerId, u32> {
    let mut held = pin.holders.clone();
    for (worker, blocks) in coverage(&pin.request.blocks) {
        let most = held.entry(worker).or_insert(0);
        *most = (*most).max(blocks);
    }
    held
}

fn choose<'a>(
    (pin, tokens): (&Pin, &KeptTokens),
    held: &BTreeMap<WorkerId, u32>,
    sites: impl Iterator<Item = &'a Site<'a>>,
    chosen: &[KeeperOrder],
    now_ms: u64,
) -> Option<WorkerId> {
    let id = pin.request.id;
    let blocks = pin.request.blocks.len() as u64;
    let orders = &pin.keeping.orders;
    let free = |site: &&Site<'_>| {
        let worker = site.worker.id;
        site.orders < WORKER_ORDERS_MAX
            && serves(site.worker, pin, tokens)
            && !pin.holds_all(worker)
            && !orders.get(&worker).is_some_and(|order| order.in_force(now_ms))
            && !chosen.iter().any(|order| order.id == id && order.worker == worker)
    };
    let rank = |site: &&Site<'_>| {
        let worker = site.worker.id;
        let part = held.get(&worker).copied().unwrap_or(0);
        // 0 for whoever was not asked yet; else the longest ago goes first.
        let asked_ms = orders.get(&worker).map_or(0, |order| order.since_ms.saturating_add(1));
        let fits = site.room() >= blocks.saturating_sub(u64::from(part));
        (asked_ms, Reverse(part), Reverse(fits), site.pins, Reverse(site.room()), worker)
    };
    sites.filter(free).min_by_key(rank).map(|site| site.worker.id)
}

#[cfg(test)]
mod tests;
