//! Block events: from the engine's report to the cluster's index.
//!
//! Layout: [`local_map`] is what the engine holds, `fold` makes run records of removals, [`frames`] is the numbered
//! stream of changes, `map_copy` and `snapshots` the whole state for who fell behind; [`publisher`] keeps the worker
//! registered and `feeder` brings the stream to each member. Map and stream are kept under one lock together with
//! the pins, whose held blocks follow from the map. Nothing under the lock waits, so that the engine is never held
//! up by a control plane that is away.

mod feeder;
mod fold;
pub(crate) mod frames;
pub(crate) mod local_map;
mod map_copy;
pub(crate) mod publisher;
mod snapshots;

use std::collections::HashSet;
use std::time::Duration;

use mainstay_engine_abi::sdk::{Cause, Info, KvEvent, caps};
use mainstay_tier::{BlockKey, Move};
use mainstay_types::{BlockEvent, NamespaceId, PinId, SequenceHash, Tier};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::engine::KvBatch;
use crate::pins::ledger::{PINS_MAX, PinLedger};
use crate::shared::Registration;
use frames::{FrameLimits, FrameLog};
use local_map::{Held, LocalMap, bit};
use map_copy::{MapCopy, RUN_BLOCKS_MAX};
use snapshots::Snapshots;

/// The least that the local map may hold, for engines with lower tiers.
const BLOCKS_MIN: u64 = 1 << 20;
/// The most, whatever the engine says of itself: 2 GiB of map.
const BLOCKS_MAX: u64 = 1 << 25;
/// Blocks in the map for each block of the device tier: the lower tiers are larger.
const BLOCKS_PER_DEVICE_BLOCK: u64 = 16;
/// How long the first of many events waits for others to share its frame.
const LINGER: Duration = Duration::from_millis(2);

/// What a worker knows about blocks and pins.
pub(crate) struct Events {
    state: Mutex<State>,
    /// Wakes the publisher.
    pub(crate) news: Notify,
    /// Wakes all feeders.
    pub(crate) waiting: watch::Sender<()>,
    /// Wakes the pin driver.
    pub(crate) pin_news: Notify,
    snapshots: Snapshots,
}

/// The part under the lock.
pub(crate) struct State {
    pub(crate) map: LocalMap,
    pub(crate) log: FrameLog,
    pub(crate) pins: PinLedger,
    /// The engine's hashes are ours, so that they mean something to the index.
    announces: bool,
    /// The map was emptied: lower tiers are to tell all that they hold.
    tiers_untold: bool,
    /// Since when the first of what waits in the log does.
    waiting_since: Option<Instant>,
}

impl Events {
    pub(crate) fn new(limits: FrameLimits) -> Self {
        let state = State {
            map: LocalMap::new(BLOCKS_MIN as usize),
            log: FrameLog::new(limits),
            pins: PinLedger::new(PINS_MAX),
            announces: false,
            tiers_untold: false,
            waiting_since: None,
        };
        Self {
            state: Mutex::new(state),
            news: Notify::new(),
            waiting: watch::Sender::new(()),
            pin_news: Notify::new(),
            snapshots: Snapshots::default(),
        }
    }

    /// The state; whoever holds it must not wait for anything.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// A new engine starts out empty, and knows no pins.
    pub(crate) fn engine_began(&self, engine_caps: u64, info: &Info, now_ms: u64) {
        let announces =
            engine_caps & caps::KV_EVENTS != 0 && engine_caps & caps::CANONICAL_HASH != 0;
        if !announces {
            tracing::warn!(
                "this engine does not report blocks by the cluster's hash; its cache is not indexed"
            );
        }
        let blocks_max = info.blocks_total.saturating_mul(BLOCKS_PER_DEVICE_BLOCK);
        let mut state = self.state.lock();
        state.map.set_blocks_max(blocks_max.clamp(BLOCKS_MIN, BLOCKS_MAX) as usize);
        state.announces = announces;
        state.forget_blocks();
        state.pins.engine_began(announces, now_ms);
        drop(state);
        self.pin_news.notify_one();
    }

    /// The worker has a new epoch: everything is told, and reported, again.
    pub(crate) fn epoch_began(&self, registration: Registration) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Registration { worker, epoch, plain, .. } = registration;
        state.log.begin_epoch(worker, epoch, plain, &state.map);
        state.waiting_since = None;
        state.pins.epoch_began();
    }

    /// Whether lower tiers are to tell all that they hold; asked once for each time.
    pub(crate) fn wants_tiers(&self) -> bool {
        std::mem::take(&mut self.state.lock().tiers_untold)
    }

    /// Takes in what became of a lower tier, in order.
    pub(crate) fn take_moves(&self, tier: Tier, moves: &[Move]) {
        let mut state = self.state.lock();
        if !state.announces || moves.is_empty() {
            return;
        }
        for group in moves.chunk_by(follows) {
            match group[0] {
                Move::Came { key, parent } => {
                    let run: Vec<SequenceHash> =
                        group.iter().map(|moved| key_of(moved).hash).collect();
                    state.store(key.namespace, parent, &run, tier);
                }
                Move::Went { .. } => {
                    let gone: Vec<SequenceHash> =
                        group.iter().map(|moved| key_of(moved).hash).collect();
                    state.remove(&gone, tier);
                }
            }
        }
        self.told(state);
    }

    /// Takes in all that a lower tier holds, whatever was told of it before.
    pub(crate) fn take_tier(&self, tier: Tier, keys: &[(BlockKey, SequenceHash)]) {
        let held = |(key, parent): &(BlockKey, SequenceHash)| {
            let (parent, namespace) = (*parent, key.namespace);
            (key.hash, Held { parent, namespace, tiers: bit(tier), depth: 0 })
        };
        let copy = MapCopy::new(keys.iter().map(held).collect());
        let runs = copy.runs(RUN_BLOCKS_MAX);
        let here: HashSet<SequenceHash> = keys.iter().map(|(key, _)| key.hash).collect();
        let mut state = self.state.lock();
        if !state.announces {
            return;
        }
        let gone: Vec<SequenceHash> =
            state.map.of_tier(tier).filter(|block| !here.contains(block)).collect();
        state.remove(&gone, tier);
        self.told(state);
        // A run at a time, so that the engine's reports need not wait for a large disk. If all is forgotten in
        // between, all is asked for once more.
        for run in runs {
            if let BlockEvent::Stored { namespace, parent, blocks, tier } = run {
                let mut state = self.state.lock();
                state.store(namespace, parent, &blocks, tier);
                self.told(state);
            }
        }
    }

    /// Wakes whoever passes on what changed.
    fn told(&self, mut state: MutexGuard<'_, State>) {
        if state.log.waits() && state.waiting_since.is_none() {
            state.waiting_since = Some(Instant::now());
        }
        drop(state);
        self.waiting.send_replace(());
        self.news.notify_one();
        self.pin_news.notify_one();
    }

    /// Takes in what the engine reports.
    pub(crate) fn take(&self, batch: KvBatch, now_ms: u64) {
        let mut state = self.state.lock();
        if batch.reset {
            state.forget_blocks();
        }
        let mut events = batch.events.into_iter().peekable();
        while let Some(mut event) = events.next() {
            // Engines that name one block at a time give no chain to fold otherwise.
            while let KvEvent::Removed { blocks, tier, .. } = &mut event {
                let more = events.next_if(
                    |next| matches!(next, KvEvent::Removed { tier: other, .. } if other == tier),
                );
                let Some(KvEvent::Removed { blocks: more, .. }) = more else { break };
                blocks.extend(more);
            }
            state.take_one(event, now_ms);
        }
        self.told(state);
    }
}

impl State {
    /// Seals what has waited long enough; otherwise answers when that will be.
    pub(crate) fn seal_due(&mut self, now: Instant) -> Option<Instant> {
        if !self.log.waits() {
            self.waiting_since = None;
            return None;
        }
        let due = *self.waiting_since.get_or_insert(now) + LINGER;
        if due > now {
            return Some(due);
        }
        self.log.seal();
        self.waiting_since = None;
        None
    }

    fn take_one(&mut self, event: KvEvent, now_ms: u64) {
        match event {
            KvEvent::PinExpired { pin_id } => self.pins.lease_ended(PinId(pin_id), now_ms),
            KvEvent::Stored { namespace, parent, blocks, tier, .. } if self.announces => {
                let Some(tier) = Tier::from_number(tier) else { return };
                let (namespace, parent) = (NamespaceId(namespace), SequenceHash(parent));
                self.store(namespace, parent, &hashes(blocks), tier);
            }
            KvEvent::Removed { blocks, tier, cause } if self.announces => {
                let Some(tier) = Tier::from_number(tier) else { return };
                count_removed(blocks.len(), tier, cause);
                self.remove(&hashes(blocks), tier);
            }
            KvEvent::Stored { .. } | KvEvent::Removed { .. } => {}
        }
    }

    /// Takes a run into the map and tells what was new of it, a frame's worth at a time.
    fn store(
        &mut self,
        namespace: NamespaceId,
        mut parent: SequenceHash,
        run: &[SequenceHash],
        tier: Tier,
    ) {
        let mut left = run.len();
        for part in run.chunks(self.log.limits().frame_blocks_max) {
            let pins = &mut self.pins;
            let taken = self.map.store(namespace, parent, part, tier, |block| {
                // A pin is kept in the engine's own memory; lower tiers are copies.
                if tier == Tier::Device {
                    pins.stored(block);
                }
            });
            if let Some((first, last)) = taken.fresh {
                let parent = if first == 0 { parent } else { part[first - 1] };
                let blocks = part[first..=last].to_vec();
                let stored = BlockEvent::Stored { namespace, parent, blocks, tier };
                self.log.push(stored, self.map.sum());
            }
            left -= taken.count;
            if taken.count < part.len() {
                metrics::counter!("mainstay_worker_blocks_refused_total").increment(left as u64);
                return;
            }
            parent = part[part.len() - 1];
        }
    }

    fn remove(&mut self, blocks: &[SequenceHash], tier: Tier) {
        let (pins, log) = (&mut self.pins, &mut self.log);
        let gone = |block| {
            if tier == Tier::Device {
                pins.removed(block);
            }
        };
        let event_blocks_max = log.limits().frame_blocks_max;
        self.map.remove(blocks, tier, event_blocks_max, gone, |event, sum| log.push(event, sum));
    }

    fn forget_blocks(&mut self) {
        self.map.clear();
        self.tiers_untold = true;
        self.pins.cleared();
        self.log.cleared();
    }
}

/// Whether a move goes on where the one before it ended, so that both can be told as one run.
fn follows(before: &Move, next: &Move) -> bool {
    match (before, next) {
        (Move::Came { key, .. }, Move::Came { key: next, parent }) => {
            *parent == key.hash && next.namespace == key.namespace
        }
        (Move::Went { .. }, Move::Went { .. }) => true,
        _ => false,
    }
}

const fn key_of(moved: &Move) -> &BlockKey {
    match moved {
        Move::Came { key, .. } | Move::Went { key, .. } => key,
    }
}

/// Counts blocks that left a tier, and why.
fn count_removed(count: usize, tier: Tier, cause: Cause) {
    let cause = match cause {
        Cause::None => "unsaid",
        Cause::Capacity => "capacity",
        Cause::Expiry => "expiry",
        Cause::Lifecycle => "lifecycle",
        Cause::Admin => "admin",
    };
    metrics::counter!("mainstay_worker_blocks_removed_total", "tier" => tier.name(), "cause" => cause)
        .increment(count as u64);
}

fn hashes(blocks: Vec<u128>) -> Vec<SequenceHash> {
    blocks.into_iter().map(SequenceHash).collect()
}

#[cfg(test)]
mod tests;
