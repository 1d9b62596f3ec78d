//! Placement: the router's inputs gathered from the replica and the load streams, and its bookings kept.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use mainstay_index::Overlap;
use mainstay_proto::v1;
use mainstay_route::{BookingId, Decision, Hints, Inputs, Policy, Router, WorkerLoad, WorkerView};
use mainstay_types::{Region, TenantId, WorkerId};
use parking_lot::Mutex;

use crate::config::GatewayConfig;
use crate::generate::Job;
use crate::random;
use crate::replica::Replica;
use crate::workers::{WorkerEntry, Workers};

/// Decisions kept for `request explain`.
const DECISIONS_MAX: usize = 256;
/// Workers named to the chosen one as holding more of the prompt; more would only be asked if these all failed.
const SOURCES_MAX: usize = 3;

/// Chooses workers for the whole gateway.
#[derive(Clone)]
pub(crate) struct Placement {
    inner: Arc<Inner>,
}

struct Inner {
    workers: Workers,
    replica: Replica,
    policy: Policy,
    region: Region,
    region_penalty_ms: Option<f64>,
    transfer: bool,
    router: Mutex<Router>,
    started: Instant,
    decisions: Mutex<VecDeque<Explained>>,
}

/// A decision and what it was about.
#[derive(Clone)]
pub(crate) struct Explained {
    pub(crate) request: String,
    pub(crate) tenant: TenantId,
    pub(crate) prompt_blocks: usize,
    pub(crate) decision: Decision,
}

/// A worker with the booking for a request on it; the booking ends with this.
pub(crate) struct Placed {
    pub(crate) worker: Arc<WorkerEntry>,
    /// Who holds more of the prompt.
    pub(crate) sources: Vec<v1::BlockSource>,
    booking: BookingId,
    inner: Arc<Inner>,
}

impl Placed {
    /// Its first token has come: the router learns from how long that took.
    pub(crate) fn first_token(&self) {
        // With what another worker held it came sooner, or later, than it was priced.
        if !self.sources.is_empty() {
            return;
        }
        let now_ms = self.inner.ms_of(Instant::now());
        self.inner.router.lock().first_token(now_ms, self.booking);
    }

    /// The attempt failed: nobody should expect the prompt's blocks there.
    pub(crate) fn cancel(&self) {
        self.inner.router.lock().cancel(self.booking);
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        self.inner.router.lock().release(self.booking);
    }
}

impl Inner {
    /// The router's clock.
    fn ms_of(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Placement {
    pub(crate) fn new(workers: Workers, replica: Replica, config: &GatewayConfig) -> Self {
        let inner = Inner {
            workers,
            replica,
            policy: config.policy,
            region: config.region.clone(),
            region_penalty_ms: config.region_penalty_ms,
            transfer: config.transfer,
            router: Mutex::new(Router::default()),
            started: Instant::now(),
            decisions: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The worker for a job, or `None` while no worker can take it.
    pub(crate) fn choose(&self, job: &Job, excluded: &HashSet<WorkerId>) -> Option<Placed> {
        let entries: Vec<_> = self
            .inner
            .workers
            .of_model(&job.model, &job.revision)
            .into_iter()
            .filter(|w| w.routable() && !excluded.contains(&w.id))
            .collect();
        let views: Vec<WorkerView> = entries.iter().map(|w| self.view(w)).collect();
        let reader = self.inner.replica.index_reader();
        let mut overlaps = Vec::new();
        reader.lookup_into(&job.blocks, &mut overlaps);
        let now_ms = self.inner.ms_of(Instant::now());
        let inputs = Inputs {
            now_ms,
            prompt_blocks: &job.blocks,
            prompt_tokens: job.prompt_tokens,
            block_tokens: job.block_tokens,
            overlaps: &overlaps,
            workers: &views,
            excluded: &[],
            priority: job.priority,
            random: random::number(),
            policy: self.inner.policy,
            region_penalty_ms: self.inner.region_penalty_ms,
        };
        let (namespace, output_tokens) = (job.namespace, job.expected_output_tokens);
        let hints = Hints { namespace, output_tokens, ..Hints::default() };
        let mut router = self.inner.router.lock();
        let decision = router.choose_with(&inputs, &hints).ok()?;
        let booking = router.book(now_ms, &decision, &job.blocks);
        drop(router);
        // From here on the booking is released by its guard, also when the worker has gone meanwhile.
        let worker = Arc::clone(entries.iter().find(|w| w.id == decision.worker)?);
        let inner = Arc::clone(&self.inner);
        let sources =
            if inner.transfer { sources(&overlaps, &worker, &entries) } else { Vec::new() };
        count_held(&overlaps, worker.id, job.blocks.len());
        let placed = Placed { worker, sources, booking, inner };
        self.remember(job, decision);
        Some(placed)
    }

    fn remember(&self, job: &Job, decision: Decision) {
        let mut decisions = self.inner.decisions.lock();
        if decisions.len() >= DECISIONS_MAX {
            decisions.pop_front();
        }
        let (request, tenant) = (job.request_id.clone(), job.tenant.clone());
        let prompt_blocks = job.blocks.len();
        decisions.push_back(Explained { request, tenant, prompt_blocks, decision });
    }

    /// The decision about a tenant's request, or about its latest one for `last`.
    pub(crate) fn explain(&self, tenant: &TenantId, request: &str) -> Option<Explained> {
        let decisions = self.inner.decisions.lock();
        let asked = |e: &&Explained| request == "last" || e.request == request;
        decisions.iter().rev().filter(|e| e.tenant == *tenant).find(asked).cloned()
    }

    fn view(&self, entry: &WorkerEntry) -> WorkerView {
        let (load, heard) = entry.load();
        WorkerView {
            id: entry.id,
            epoch: entry.epoch,
            draining: load.draining,
            abroad: entry.region != self.inner.region,
            load: WorkerLoad {
                heard_ms: heard.map_or(0, |at| self.inner.ms_of(at)),
                running: load.running,
                waiting: load.waiting,
                waiting_prefill_tokens: load.waiting_prefill_tokens,
                prefill_us_per_token: load.prefill_us_per_token,
                decode_us_per_step: load.decode_us_per_step,
                blocks_total: Some(load.blocks_total),
                // Cached blocks may be evicted; those in use and those that pins protect may not.
                blocks_free: Some(
                    load.blocks_total.saturating_sub(load.blocks_used.max(load.blocks_pinned)),
                ),
            },
        }
    }
}

/// How many leading blocks of a prompt the chosen worker holds, how many more only others, and how many nobody.
fn split_held(overlaps: &[Overlap], chosen: WorkerId, prompt_blocks: usize) -> [u64; 3] {
    let all = prompt_blocks as u64;
    let held = |of: &Overlap| u64::from(of.blocks).min(all);
    let own = overlaps.iter().find(|o| o.worker == chosen).map_or(0, held);
    let most = overlaps.iter().map(held).max().unwrap_or(0);
    [own, most - own, all - most]
}

/// Counts that: what was found, what is computed again although somebody has it, and what is new.
fn count_held(overlaps: &[Overlap], chosen: WorkerId, prompt_blocks: usize) {
    let counts = split_held(overlaps, chosen, prompt_blocks);
    for (held, count) in ["chosen", "elsewhere", "nowhere"].into_iter().zip(counts) {
        metrics::counter!("mainstay_gateway_placed_blocks_total", "held" => held).increment(count);
    }
}

/// Who of `entries` holds more of the prompt than the chosen worker, the most first. Those of its own region only: far
/// ones are slower than computing as often as not.
fn sources(
    overlaps: &[Overlap],
    chosen: &WorkerEntry,
    entries: &[Arc<WorkerEntry>],
) -> Vec<v1::BlockSource> {
    let own = overlaps.iter().find(|o| o.worker == chosen.id).map_or(0, |o| o.blocks);
    let mut more: Vec<Overlap> = overlaps.iter().filter(|o| o.blocks > own).copied().collect();
    more.sort_unstable_by_key(|o| (std::cmp::Reverse(o.blocks), o.worker));
    let near = more.iter().filter_map(|o| {
        let entry = entries.iter().find(|w| w.id == o.worker && w.region == chosen.region)?;
        Some(v1::BlockSource { address: entry.address.clone(), blocks: o.blocks })
    });
    near.take(SOURCES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_prompt_are_counted_once_each() {
        let overlap = |worker, blocks| Overlap { worker: WorkerId(worker), blocks };
        let overlaps = [overlap(1, 4), overlap(2, 7)];
        assert_eq!(split_held(&overlaps, WorkerId(1), 10), [4, 3, 3]);
        assert_eq!(split_held(&overlaps, WorkerId(2), 10), [7, 0, 3]);
        assert_eq!(split_held(&overlaps, WorkerId(3), 10), [0, 7, 3]);
        assert_eq!(split_held(&overlaps, WorkerId(2), 5), [5, 0, 0]);
        assert_eq!(split_held(&[], WorkerId(2), 5), [0, 0, 5]);
    }
}
