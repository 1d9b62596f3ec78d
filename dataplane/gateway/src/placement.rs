//! Placement: the router's inputs gathered from the replica and the load streams, and its bookings kept.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use mainstay_index::Overlap;
use mainstay_proto::v1;
use mainstay_route::{
    BookingId, Decision, Fetch, Hints, Inputs, Policy, Router, WorkerLoad, WorkerView,
};
use mainstay_trace::{Kind, Span};
use mainstay_types::{Region, TenantId, WorkerId};
use parking_lot::Mutex;

use crate::config::GatewayConfig;
use crate::generate::Job;
use crate::history::unix_ms;
use crate::line::{Lines, Queued, Room};
use crate::lower::{Held, Lower};
use crate::pace::FetchPace;
use crate::random;
use crate::replica::Replica;
use crate::retention::Prefix;
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
    /// Where requests wait, if they do.
    lines: Option<Lines>,
    router: Mutex<Router>,
    fetch_pace: Mutex<FetchPace>,
    started: Instant,
    decisions: Mutex<VecDeque<Explained>>,
}

/// A decision and what it was about.
#[derive(Clone)]
pub(crate) struct Explained {
    pub(crate) request: String,
    pub(crate) tenant: TenantId,
    pub(crate) prompt_blocks: usize,
    /// When, in milliseconds since 1970.
    pub(crate) at_unix_ms: u64,
    pub(crate) decision: Decision,
    /// What came with the request, where anything did.
    pub(crate) hints: Option<Hinted>,
    /// What it went through before, if it waited.
    pub(crate) queued: Option<Queued>,
}

/// Hints of a request, and what the choice would have been without them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hinted {
    pub(crate) priority: i32,
    pub(crate) tier: u8,
    pub(crate) output_tokens: u32,
    pub(crate) latency_sensitivity: Option<f32>,
    /// Who would have been chosen.
    pub(crate) without: WorkerId,
    /// What the chosen one would have counted.
    pub(crate) without_ms: Option<f64>,
}

/// A worker with the booking for a request on it; the booking ends with this.
pub(crate) struct Placed {
    pub(crate) worker: Arc<WorkerEntry>,
    /// Who holds more of the prompt.
    pub(crate) sources: Vec<v1::BlockSource>,
    /// Of the attempt there; it ends with this.
    pub(crate) span: Span,
    /// When it was sent, what it holds itself, and what all but the way of what it lacks was expected to take.
    sent_ms: u64,
    own_tokens: u32,
    rest_ms: f64,
    booking: BookingId,
    inner: Arc<Inner>,
}

impl Placed {
    /// Its first token has come, with so many prompt tokens that it did not compute: the router learns from how long
    /// that took.
    pub(crate) fn first_token(&self, cached_tokens: u32) {
        let now_ms = self.inner.ms_of(Instant::now());
        let came = cached_tokens.saturating_sub(self.own_tokens);
        if !self.sources.is_empty() && came > 0 {
            let took_ms = now_ms.saturating_sub(self.sent_ms) as f64;
            self.inner.fetch_pace.lock().took(came, took_ms - self.rest_ms);
            return;
        }
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
            lines: Lines::new(config.queue),
            router: Mutex::new(Router::default()),
            fetch_pace: Mutex::default(),
            started: Instant::now(),
            decisions: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Where requests wait while no worker has room, if they do.
    pub(crate) fn lines(&self) -> Option<&Lines> {
        self.inner.lines.as_ref()
    }

    /// The router's clock.
    pub(crate) fn now_ms(&self) -> u64 {
        self.inner.ms_of(Instant::now())
    }

    /// Whether a worker that could take a job has at most so many prompt tokens waiting.
    pub(crate) fn room(&self, job: &Job, room_tokens: f64) -> Room {
        let entries = self.entries(job, &HashSet::new());
        if entries.is_empty() {
            return Room::Nobody;
        }
        let ((views, _), nothing) = (self.views(&entries), Held::default());
        let inputs = self.inputs(job, &views, &nothing);
        let has_room = self.inner.router.lock().has_room(&inputs, room_tokens);
        if has_room { Room::Some } else { Room::None }
    }

    /// Prompt tokens that whoever holds the most of it would have to compute.
    pub(crate) fn uncached_tokens(&self, job: &Job) -> u32 {
        let mut overlaps = Vec::new();
        self.inner.replica.index_reader().lookup_into(&job.blocks, &mut overlaps);
        let most = overlaps.iter().map(|overlap| overlap.blocks).max().unwrap_or(0);
        job.prompt_tokens.saturating_sub(most.saturating_mul(job.block_tokens)).max(1)
    }

    fn entries(&self, job: &Job, excluded: &HashSet<WorkerId>) -> Vec<Arc<WorkerEntry>> {
        let all = self.inner.workers.of_model(&job.model, &job.revision).into_iter();
        all.filter(|w| w.routable() && !excluded.contains(&w.id)).collect()
    }

    fn inputs<'a>(&self, job: &'a Job, workers: &'a [WorkerView], held: &'a Held) -> Inputs<'a> {
        Inputs {
            now_ms: self.now_ms(),
            prompt_blocks: &job.blocks,
            prompt_tokens: job.prompt_tokens,
            block_tokens: job.block_tokens,
            overlaps: held.near(),
            stored: held.stored(),
            fetch: None,
            workers,
            excluded: &[],
            priority: job.priority,
            random: random::number(),
            policy: self.inner.policy,
            region_penalty_ms: self.inner.region_penalty_ms,
        }
    }

    /// The worker for a job, or `None` while no worker can take it. `queued` is what it went through before.
    pub(crate) fn choose(
        &self,
        job: &Job,
        excluded: &HashSet<WorkerId>,
        queued: Option<Queued>,
    ) -> Option<Placed> {
        let span = job.span.child("route", Kind::Internal);
        let entries = self.entries(job, excluded);
        let (mut views, lower) = self.views(&entries);
        let reader = self.inner.replica.index_reader();
        let held = Held::find(&reader, &job.blocks, &mut views, &lower);
        let inputs = self.inputs(job, &views, &held);
        let fetch = self.fetch(&held, &entries, &views);
        let inputs = Inputs { fetch, ..inputs };
        let hints = hints_of(job);
        let mut router = self.inner.router.lock();
        let decision = router.choose_with(&inputs, &hints).ok()?;
        let hinted = is_hinted(job).then(|| without(&mut router, job, &inputs, &decision));
        let booking = router.book(inputs.now_ms, &decision, &job.blocks);
        drop(router);
        // From here on the booking is released by its guard, also when the worker has gone meanwhile.
        let worker = Arc::clone(entries.iter().find(|w| w.id == decision.worker)?);
        let inner = Arc::clone(&self.inner);
        count_held(&held.all, worker.id, job.blocks.len());
        // Only where it costs less than computing.
        let fetches = decision.fetched_blocks > decision.stored_blocks;
        let sources = if fetches { sources(&held.all, &worker, &entries) } else { Vec::new() };
        let own_tokens = decision.stored_blocks.saturating_mul(job.block_tokens);
        let rest_ms = decision.cost_ms - decision.terms.load_ms - decision.terms.memory_ms;
        let sent_ms = inputs.now_ms;
        if span.is_recorded() {
            span.set("mainstay.worker", worker.name.clone());
            span.set("mainstay.candidates", entries.len() as i64);
            span.set("mainstay.cost_ms", decision.cost_ms);
            span.set("mainstay.prompt_blocks", job.blocks.len() as i64);
            span.set("mainstay.overlap_blocks", i64::from(decision.overlap_blocks));
            span.set("mainstay.stored_blocks", i64::from(decision.stored_blocks));
        }
        let attempt = Span::default();
        let placed =
            Placed { worker, sources, span: attempt, sent_ms, own_tokens, rest_ms, booking, inner };
        self.remember(job, decision, hinted.flatten(), queued);
        Some(placed)
    }

    /// Where a session's prefix is to be brought: to who served it last, else to whom the router would choose; and who
    /// holds more of it. `None` while no worker takes requests.
    pub(crate) fn near(&self, prefix: &Prefix) -> Option<(Arc<WorkerEntry>, Vec<v1::BlockSource>)> {
        let job = Job::of_prefix(prefix);
        let entries = self.entries(&job, &HashSet::new());
        let (mut views, lower) = self.views(&entries);
        let reader = self.inner.replica.index_reader();
        let held = Held::find(&reader, &job.blocks, &mut views, &lower);
        let last = prefix.workers.last();
        let last = last.and_then(|last| entries.iter().find(|entry| entry.id == *last));
        let worker = match last {
            Some(last) => Arc::clone(last),
            None => {
                let inputs = self.inputs(&job, &views, &held);
                let chosen = self.inner.router.lock().choose_with(&inputs, &hints_of(&job)).ok()?;
                Arc::clone(entries.iter().find(|entry| entry.id == chosen.worker)?)
            }
        };
        let sources =
            if self.inner.transfer { sources(&held.all, &worker, &entries) } else { Vec::new() };
        Some((worker, sources))
    }

    /// What workers of the own region would give, where they give anything.
    fn fetch(
        &self,
        held: &Held,
        entries: &[Arc<WorkerEntry>],
        views: &[WorkerView],
    ) -> Option<Fetch> {
        if !self.inner.transfer {
            return None;
        }
        let near = |o: &&Overlap| {
            entries.iter().any(|w| w.id == o.worker && w.region == self.inner.region)
        };
        // The deepest first, so that few are looked for.
        let mut deepest: Vec<&Overlap> = held.all.iter().collect();
        deepest.sort_unstable_by_key(|o| std::cmp::Reverse(o.blocks));
        let source = deepest.into_iter().find(near)?;
        let fetch = self.inner.fetch_pace.lock().fetch(source.blocks, views)?;
        Some(held.fetch(fetch, source.worker, views))
    }

    fn remember(
        &self,
        job: &Job,
        decision: Decision,
        hints: Option<Hinted>,
        queued: Option<Queued>,
    ) {
        let mut decisions = self.inner.decisions.lock();
        if decisions.len() >= DECISIONS_MAX {
            decisions.pop_front();
        }
        let (request, tenant) = (job.request_id.clone(), job.tenant.clone());
        let prompt_blocks = job.blocks.len();
        let at_unix_ms = unix_ms();
        decisions.push_back(Explained {
            request,
            tenant,
            prompt_blocks,
            at_unix_ms,
            decision,
            hints,
            queued,
        });
    }

    /// The decision about a tenant's request, or about its latest one for `last`.
    pub(crate) fn explain(&self, tenant: &TenantId, request: &str) -> Option<Explained> {
        let decisions = self.inner.decisions.lock();
        let asked = |e: &&Explained| request == "last" || e.request == request;
        decisions.iter().rev().filter(|e| e.tenant == *tenant).find(asked).cloned()
    }

    /// The decisions about a tenant's requests that are kept, the latest first.
    pub(crate) fn recent(&self, tenant: &TenantId) -> Vec<Explained> {
        let decisions = self.inner.decisions.lock();
        decisions.iter().rev().filter(|e| e.tenant == *tenant).cloned().collect()
    }

    /// Of everybody's placements that are kept: how many, their prompts' blocks, how many of these were expected where
    /// they were placed, and how many at most anywhere.
    pub(crate) fn overlaps(&self) -> [u64; 4] {
        let decisions = self.inner.decisions.lock();
        decisions.iter().fold([0; 4], |[count, prompt, placed, best], e| {
            let most = e.decision.candidates.iter().map(|c| c.stored_blocks).max().unwrap_or(0);
            let here = u64::from(e.decision.stored_blocks);
            [
                count + 1,
                prompt + e.prompt_blocks as u64,
                placed + here,
                best + here.max(most.into()),
            ]
        })
    }

    /// Where a request was placed last.
    pub(crate) fn worker_of(&self, request: &str) -> Option<WorkerId> {
        let decisions = self.inner.decisions.lock();
        decisions.iter().rev().find(|e| e.request == request).map(|e| e.decision.worker)
    }

    /// What the router sees of workers, and what is known of the tiers of each.
    fn views(&self, entries: &[Arc<WorkerEntry>]) -> (Vec<WorkerView>, Vec<Lower>) {
        entries.iter().map(|entry| self.view(entry)).unzip()
    }

    fn view(&self, entry: &WorkerEntry) -> (WorkerView, Lower) {
        let (load, heard) = entry.load();
        let view = WorkerView {
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
                // Of each prompt: it depends on where its blocks lie.
                load_us_per_token: 0.0,
                loading_tokens: 0,
                blocks_total: Some(load.blocks_total),
                // Cached blocks may be evicted; those in use and those that pins protect may not.
                blocks_free: Some(
                    load.blocks_total.saturating_sub(load.blocks_used.max(load.blocks_pinned)),
                ),
            },
        };
        (view, Lower::from(&load))
    }
}

/// What the router is told beside the prompt.
fn hints_of(job: &Job) -> Hints {
    let usual = Hints { namespace: job.namespace, ..Hints::default() };
    Hints {
        output_tokens: job.expected_output_tokens,
        latency_sensitivity: job.latency_sensitivity.unwrap_or(usual.latency_sensitivity),
        ..usual
    }
}

/// Whether a client said anything that a decision goes by.
fn is_hinted(job: &Job) -> bool {
    let latency = job.latency_sensitivity.is_some();
    job.priority != 0 || job.tier != 0 || job.expected_output_tokens != 0 || latency
}

/// What the same moment would have come to if nothing had been said.
fn without(
    router: &mut Router,
    job: &Job,
    inputs: &Inputs<'_>,
    decision: &Decision,
) -> Option<Hinted> {
    // Turns are the only thing that asking twice would change.
    if inputs.policy == Policy::RoundRobin {
        return None;
    }
    let plain = Hints { namespace: job.namespace, ..Hints::default() };
    let plain = router.choose_with(&Inputs { priority: 0, ..*inputs }, &plain).ok()?;
    let same = plain.candidates.iter().find(|c| c.worker == decision.worker);
    Some(Hinted {
        priority: job.priority,
        tier: job.tier,
        output_tokens: job.expected_output_tokens,
        latency_sensitivity: job.latency_sensitivity,
        without: plain.worker,
        without_ms: same.map(|candidate| candidate.cost_ms),
    })
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
