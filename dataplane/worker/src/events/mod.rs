//! Block events: from the engine's report to the cluster's index.
//!
//! Layout: [`local_map`] is what the engine holds, [`frames`] the numbered stream of its changes, [`publisher`]
//! the task that brings them to the control plane; here they are kept under one lock together with the pins,
//! whose held blocks follow from the map. Nothing under the lock waits, so that the engine is never held up by
//! a control plane that is away.

pub(crate) mod frames;
pub(crate) mod local_map;
pub(crate) mod publisher;

use mainstay_engine_abi::sdk::{Info, KvEvent, caps};
use mainstay_types::{BlockEvent, Epoch, NamespaceId, PinId, SequenceHash, Tier, WorkerId};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::engine::KvBatch;
use crate::pins::ledger::{PINS_MAX, PinLedger};
use frames::{FrameLimits, FrameLog};
use local_map::LocalMap;

/// The least that the local map may hold, for engines with lower tiers.
const BLOCKS_MIN: u64 = 1 << 20;
/// The most, whatever the engine says of itself: 2 GiB of map.
const BLOCKS_MAX: u64 = 1 << 25;
/// Blocks in the map for each block of the device tier: the lower tiers are larger.
const BLOCKS_PER_DEVICE_BLOCK: u64 = 16;

/// What a worker knows about blocks and pins.
pub(crate) struct Events {
    state: Mutex<State>,
    /// Wakes the publisher.
    pub(crate) news: Notify,
    /// Wakes the pin driver.
    pub(crate) pin_news: Notify,
}

/// The part under the lock.
pub(crate) struct State {
    pub(crate) map: LocalMap,
    pub(crate) log: FrameLog,
    pub(crate) pins: PinLedger,
    /// The engine's hashes are ours, so that they mean something to the index.
    announces: bool,
}

impl Events {
    pub(crate) fn new(limits: FrameLimits) -> Self {
        let state = State {
            map: LocalMap::new(BLOCKS_MIN as usize),
            log: FrameLog::new(limits),
            pins: PinLedger::new(PINS_MAX),
            announces: false,
        };
        Self { state: Mutex::new(state), news: Notify::new(), pin_news: Notify::new() }
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
    pub(crate) fn epoch_began(&self, worker: WorkerId, epoch: Epoch) {
        let mut state = self.state.lock();
        state.log.begin_epoch(worker, epoch);
        state.pins.epoch_began();
    }

    /// Takes in what the engine reports.
    pub(crate) fn take(&self, batch: KvBatch, now_ms: u64) {
        let mut state = self.state.lock();
        if batch.reset {
            state.forget_blocks();
        }
        for event in batch.events {
            state.take_one(event, now_ms);
        }
        drop(state);
        self.news.notify_one();
        self.pin_news.notify_one();
    }
}

impl State {
    fn take_one(&mut self, event: KvEvent, now_ms: u64) {
        match event {
            KvEvent::PinExpired { pin_id } => self.pins.lease_ended(PinId(pin_id), now_ms),
            KvEvent::Stored { namespace, parent, blocks, tier, .. } if self.announces => {
                let Some(tier) = Tier::from_number(tier) else { return };
                let (namespace, parent) = (NamespaceId(namespace), SequenceHash(parent));
                let mut blocks = hashes(blocks);
                let pins = &mut self.pins;
                let taken = self.map.store(namespace, parent, &blocks, tier, |block| {
                    // A pin is kept in the engine's own memory; lower tiers are copies.
                    if tier == Tier::Device {
                        pins.stored(block);
                    }
                });
                if taken < blocks.len() {
                    metrics::counter!("mainstay_worker_blocks_refused_total")
                        .increment((blocks.len() - taken) as u64);
                    blocks.truncate(taken);
                }
                if !blocks.is_empty() {
                    self.log.push(BlockEvent::Stored { namespace, parent, blocks, tier });
                }
            }
            KvEvent::Removed { blocks, tier, .. } if self.announces => {
                let Some(tier) = Tier::from_number(tier) else { return };
                let blocks = hashes(blocks);
                let pins = &mut self.pins;
                self.map.remove(&blocks, tier, |block| {
                    if tier == Tier::Device {
                        pins.removed(block);
                    }
                });
                if !blocks.is_empty() {
                    self.log.push(BlockEvent::Removed { blocks, tier });
                }
            }
            KvEvent::Stored { .. } | KvEvent::Removed { .. } => {}
        }
    }

    fn forget_blocks(&mut self) {
        self.map.clear();
        self.pins.cleared();
        self.log.tell_all_again();
    }
}

fn hashes(blocks: Vec<u128>) -> Vec<SequenceHash> {
    blocks.into_iter().map(SequenceHash).collect()
}
