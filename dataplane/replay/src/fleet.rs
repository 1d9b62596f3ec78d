//! The workers as the router sees them: modelled engines, an index that hears of blocks late, loads that are old.
//!
//! A worker publishes its load at fixed times; what the router reads is the state at the last of them, even where
//! the engine has changed since. Block events become visible in the index after a fixed delay, in order.

use std::collections::VecDeque;

use mainstay_engine_abi::sdk::{KvEvent, LeaseChange};
use mainstay_index::{BlockIndex, BlockName, IndexReader, Overlap, TierOverlap};
use mainstay_route::{WorkerLoad, WorkerView};
use mainstay_sim_model::{Counters, Engine, Figures, Load, Note, Profile, Request};
use mainstay_types::{Epoch, NamespaceId, SequenceHash, Tier, WorkerId};

/// How often workers publish their loads: as the real ones do.
pub(crate) const LOAD_INTERVAL_US: u64 = 50_000;

struct Worker {
    engine: Engine,
    /// The load since `since_us`.
    load: Load,
    since_us: u64,
    /// The paces that it reports are so many times those that it has.
    reports: f32,
    /// When it can give blocks to others again.
    lends_us: u64,
}

/// What the index knows of a prompt.
#[derive(Default)]
pub(crate) struct Overlaps {
    /// In devices.
    pub(crate) near: Vec<Overlap>,
    /// In any tier; empty where there are no others.
    pub(crate) stored: Vec<Overlap>,
    pub(crate) tiers: Vec<TierOverlap>,
}

struct Late {
    at_us: u64,
    worker: u32,
    event: KvEvent,
}

struct Index {
    index: BlockIndex,
    reader: IndexReader,
    late: VecDeque<Late>,
    delay_us: u64,
}

/// All workers.
pub(crate) struct Fleet {
    workers: Vec<Worker>,
    views: Vec<WorkerView>,
    index: Option<Index>,
    /// Workers have a tier below the device.
    tiered: bool,
    peer_us_per_token: f64,
}

fn published(load: &Load, reports: f32, heard_us: u64) -> WorkerLoad {
    WorkerLoad {
        heard_ms: heard_us / 1_000,
        running: load.running,
        waiting: load.waiting,
        waiting_prefill_tokens: load.waiting_prefill_tokens,
        prefill_us_per_token: load.prefill_us_per_token * reports,
        decode_us_per_step: load.decode_us_per_step * reports,
        blocks_free: Some(load.blocks_total.saturating_sub(load.blocks_used)),
        blocks_total: Some(load.blocks_total),
        load_us_per_token: load.load_us_per_token,
        loading_tokens: load.loading_tokens,
    }
}

impl Fleet {
    /// Idle workers; with `delay_us` there is an index that hears of their blocks so much later.
    pub(crate) fn new(
        count: u32,
        profile: &Profile,
        block_tokens: u32,
        delay_us: Option<u64>,
    ) -> Self {
        let worker = |_| Worker {
            engine: Engine::new(profile.clone(), block_tokens),
            load: Load::default(),
            since_us: 0,
            reports: 1.0,
            lends_us: 0,
        };
        let mut workers: Vec<Worker> = (0..count).map(worker).collect();
        workers.iter_mut().for_each(|worker| worker.load = worker.engine.load());
        let view = |(at, worker): (usize, &Worker)| WorkerView {
            id: WorkerId(at as u32),
            epoch: Epoch(1),
            draining: false,
            load: published(&worker.load, worker.reports, 0),
            abroad: false,
        };
        let views = workers.iter().enumerate().map(view).collect();
        let tiered = workers.iter().any(|worker| worker.load.load_us_per_token > 0.0);
        let tokens = profile.kv_tokens() + profile.host_tokens();
        let blocks = tokens / u64::from(block_tokens.max(1)) + 1;
        let index = delay_us.map(|delay_us| {
            let index = BlockIndex::new(blocks.saturating_mul(u64::from(count)));
            Index { reader: index.reader(), index, late: VecDeque::new(), delay_us }
        });
        let peer_us_per_token = profile.peer_us_per_token().unwrap_or(0.0);
        Self { workers, views, index, tiered, peer_us_per_token }
    }

    pub(crate) fn submit(&mut self, worker: u32, request: Request, now_us: u64) -> Option<Note> {
        let note = self.workers[worker as usize].engine.submit(request, now_us);
        self.changed(worker, now_us);
        note
    }

    /// Makes a worker so many times as fast as its profile. Unseen, it reports the paces of one that is not.
    pub(crate) fn set_speed(&mut self, worker: u32, speed: f64, unseen: bool, now_us: u64) {
        let Some(changed) = self.workers.get_mut(worker as usize) else { return };
        changed.engine.set_speed(speed, now_us);
        changed.reports = if unseen { speed as f32 } else { 1.0 };
    }

    /// Tells a worker of a change in a lease.
    pub(crate) fn change_lease(&mut self, worker: u32, change: &LeaseChange, now_us: u64) {
        let Some(changed) = self.workers.get_mut(worker as usize) else { return };
        changed.engine.change_lease(change, now_us);
        self.changed(worker, now_us);
    }

    /// Pins blocks on a worker; how many are held, or nothing where it has no room for the pin.
    pub(crate) fn pin(
        &mut self,
        worker: u32,
        pin_id: u128,
        hashes: &[u128],
        ends_us: u64,
        now_us: u64,
    ) -> Option<u32> {
        let held = self.workers.get_mut(worker as usize)?;
        let held = held.engine.pin(pin_id, hashes, ends_us, now_us).ok();
        self.changed(worker, now_us);
        held
    }

    pub(crate) fn unpin(&mut self, worker: u32, pin_id: u128, now_us: u64) {
        let Some(held) = self.workers.get_mut(worker as usize) else { return };
        held.engine.unpin(pin_id);
        self.changed(worker, now_us);
    }

    /// Tokens that a worker's cache has taken in so far: computed, said, loaded and fetched.
    pub(crate) fn taken_in(&self, worker: u32) -> u64 {
        self.workers.get(worker as usize).map_or(0, |worker| {
            let counters = worker.engine.counters();
            let computed = counters.prefill_tokens + counters.decode_tokens;
            computed + counters.loaded_tokens + counters.fetched_tokens
        })
    }

    /// What a worker's cache did so far.
    pub(crate) fn figures(&self, worker: u32) -> &Figures {
        self.workers[worker as usize].engine.figures()
    }

    /// Lets a worker do what is due.
    pub(crate) fn advance(&mut self, worker: u32, now_us: u64, notes: &mut Vec<Note>) {
        self.workers[worker as usize].engine.advance(now_us, notes);
        self.changed(worker, now_us);
    }

    pub(crate) fn next_us(&self, worker: u32) -> Option<u64> {
        self.workers[worker as usize].engine.next_us()
    }

    pub(crate) fn is_idle(&self, worker: u32) -> bool {
        self.workers[worker as usize].engine.is_idle()
    }

    pub(crate) fn count(&self) -> u32 {
        self.workers.len() as u32
    }

    /// Sums over all workers.
    pub(crate) fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for counters in self.workers.iter().map(|worker| worker.engine.counters()) {
            sum.busy_us += counters.busy_us;
            sum.prefill_tokens += counters.prefill_tokens;
            sum.preemptions += counters.preemptions;
            sum.evicted_for_room += counters.evicted_for_room;
            sum.evicted_expired += counters.evicted_expired;
            sum.loaded_tokens += counters.loaded_tokens;
            sum.fetched_tokens += counters.fetched_tokens;
        }
        sum
    }

    /// The workers with the loads that have been heard by now.
    pub(crate) fn views(&mut self, now_us: u64) -> &[WorkerView] {
        for (worker, view) in self.workers.iter().zip(&mut self.views) {
            publish(worker, view, now_us);
        }
        &self.views
    }

    /// Makes the index hear what is due.
    pub(crate) fn catch_up(&mut self, now_us: u64) {
        let Some(index) = &mut self.index else { return };
        while index.late.front().is_some_and(|late| late.at_us <= now_us) {
            let Some(Late { worker, event, .. }) = index.late.pop_front() else { return };
            let worker = WorkerId(worker);
            let names = |blocks: Vec<u128>| -> Vec<SequenceHash> {
                blocks.into_iter().map(SequenceHash).collect()
            };
            match event {
                KvEvent::Stored { namespace, parent, blocks, tier, .. } => {
                    let parent = SequenceHash(parent).key();
                    let namespace = NamespaceId(namespace);
                    let Some(tier) = Tier::from_number(tier) else { continue };
                    index.index.store(worker, namespace, parent, &names(blocks), tier);
                }
                KvEvent::Removed { blocks, tier, .. } => {
                    let Some(tier) = Tier::from_number(tier) else { continue };
                    index.index.remove(worker, &names(blocks), tier);
                }
                KvEvent::PinExpired { .. } => {}
            }
        }
    }

    /// What the index knows of a prompt.
    pub(crate) fn overlaps(&self, prompt_blocks: &[SequenceHash], out: &mut Overlaps) {
        out.near.clear();
        out.stored.clear();
        let Some(index) = &self.index else { return };
        if !self.tiered {
            index.reader.lookup_into(prompt_blocks, &mut out.near);
            return;
        }
        index.reader.tiers_into(prompt_blocks, &mut out.tiers);
        for TierOverlap { worker, blocks: [device, .., all] } in out.tiers.iter().copied() {
            out.near.push(Overlap { worker, blocks: device });
            out.stored.push(Overlap { worker, blocks: all });
        }
    }

    /// A worker gives so many tokens to another one; when it can begin.
    pub(crate) fn lend(&mut self, from: u32, tokens: u32, now_us: u64) -> u64 {
        let Some(worker) = self.workers.get_mut(from as usize) else { return now_us };
        let begin_us = worker.lends_us.max(now_us);
        worker.lends_us = begin_us + (f64::from(tokens) * self.peer_us_per_token) as u64;
        begin_us
    }

    fn changed(&mut self, at: u32, now_us: u64) {
        let worker = &mut self.workers[at as usize];
        publish(worker, &mut self.views[at as usize], now_us);
        (worker.load, worker.since_us) = (worker.engine.load(), now_us);
        let events = worker.engine.drain_events();
        match &mut self.index {
            Some(index) => {
                let at_us = now_us.saturating_add(index.delay_us);
                index.late.extend(events.map(|event| Late { at_us, worker: at, event }));
            }
            None => events.for_each(drop),
        }
    }
}

/// Publishes what held at the last time for it, if that is not the state since then already.
fn publish(worker: &Worker, view: &mut WorkerView, now_us: u64) {
    let tick_us = now_us / LOAD_INTERVAL_US * LOAD_INTERVAL_US;
    if worker.since_us <= tick_us {
        view.load = published(&worker.load, worker.reports, tick_us);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn loads_and_blocks_are_heard_of_late() {
        let profile = Profile::named("h200-8b").unwrap();
        let mut fleet = Fleet::new(2, &profile, 64, Some(30_000));
        let chain: Arc<[SequenceHash]> = (1..=10).map(SequenceHash).collect();
        let request = Request {
            id: 1,
            namespace: 3,
            chain: Arc::clone(&chain),
            chain_blocks: 10,
            prompt_tokens: 645,
            output_tokens: 30,
            priority: 0,
            claim: None,
            ranges: Vec::new(),
            leases: Vec::new(),
            fetch: None,
        };
        let now_us = 60_000;
        assert_eq!(fleet.submit(1, request, now_us), None);
        let mut notes = Vec::new();
        fleet.advance(1, now_us, &mut notes);
        assert_eq!(fleet.views(99_999)[1].load.waiting + fleet.views(99_999)[1].load.running, 0);
        assert_eq!(fleet.views(100_000)[1].load.running, 1);
        assert_eq!(fleet.views(100_000)[1].load.heard_ms, 100);
        let first_us = fleet.next_us(1).unwrap();
        fleet.advance(1, first_us, &mut notes);
        assert_eq!(notes, [Note::First { id: 1, cached_tokens: 0, waited_us: 0 }]);
        let mut overlaps = Overlaps::default();
        for (at_us, blocks) in [(first_us + 29_999, 0), (first_us + 30_000, 10)] {
            fleet.catch_up(at_us);
            fleet.overlaps(&chain, &mut overlaps);
            let found = overlaps.near.first().map_or(0, |overlap| overlap.blocks);
            assert_eq!(found, blocks);
        }
        assert_eq!(overlaps.near[0].worker, WorkerId(1));
        let unheard = fleet.views(first_us)[0].load;
        assert_eq!((unheard.running, unheard.blocks_free), (0, Some(profile.kv_tokens() / 64)));
    }
}
