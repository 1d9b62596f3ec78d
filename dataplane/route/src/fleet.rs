//! The workers of one question in columns, so that a thousand of them cost a few microseconds.
//!
//! What the formula takes of a worker is worked out once and laid out by kind; the costs of all are then one loop over
//! numbers, without branches. The columns are kept from one question to the next, so that nothing is allocated.

use mainstay_types::{Epoch, WorkerId};

use crate::cost::{Question, Rates, Standing, There, measured};
use crate::id_map::IdMap;
use crate::inputs::WorkerView;

/// Ids below this are found by a table of places: clusters count their workers from one.
const DIRECT_MAX: usize = 1 << 16;
/// No place.
const NOWHERE: u32 = u32::MAX;
const MS_PER_US: f64 = 1e-3;

/// Where each worker stands in the list of the last question.
#[derive(Debug, Clone, Default)]
struct Places {
    ids: Vec<WorkerId>,
    direct: Vec<u32>,
    others: IdMap<WorkerId, u32>,
}

impl Places {
    fn get(&self, id: WorkerId) -> Option<usize> {
        let at = match self.direct.get(id.0 as usize) {
            Some(at) => *at,
            None => *self.others.get(&id)?,
        };
        (at != NOWHERE).then_some(at as usize)
    }

    fn take(&mut self, workers: &[WorkerView]) {
        let same = self.ids.len() == workers.len()
            && self.ids.iter().zip(workers).all(|(id, view)| *id == view.id);
        if same {
            return;
        }
        for id in self.ids.drain(..) {
            if let Some(at) = self.direct.get_mut(id.0 as usize) {
                *at = NOWHERE;
            }
        }
        self.others.clear();
        for (at, view) in (0..NOWHERE).zip(workers) {
            let id = view.id.0 as usize;
            if id < DIRECT_MAX {
                if id >= self.direct.len() {
                    self.direct.resize(id + 1, NOWHERE);
                }
                self.direct[id] = at;
            } else {
                self.others.insert(view.id, at);
            }
            self.ids.push(view.id);
        }
    }
}

/// Columns, all as long as the list of workers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fleet {
    places: Places,
    pub(crate) epochs: Vec<Epoch>,
    heard_ms: Vec<u64>,
    prefill_ms: Vec<f64>,
    decode_ms: Vec<f64>,
    waiting_tokens: Vec<f64>,
    requests: Vec<f64>,
    blocks_free: Vec<f64>,
    blocks_total: Vec<f64>,
    load_ms: Vec<f64>,
    loading_tokens: Vec<f64>,
    /// 0 where a worker takes requests, else endless.
    closed: Vec<f64>,
    /// 1 in another region.
    pub(crate) abroad: Vec<f64>,
    pub(crate) any_abroad: bool,
    // Of one question.
    pub(crate) known_blocks: Vec<i32>,
    pub(crate) predicted_blocks: Vec<i32>,
    stored_blocks: Vec<i32>,
    /// Somebody has lower tiers with something of the prompt.
    any_stored: bool,
    booked_tokens: Vec<f64>,
    booked_requests: Vec<f64>,
    warm_blocks: Vec<f64>,
    /// Where something was booked, warm or predicted.
    touched: Vec<usize>,
    /// Endless for those that may not be chosen.
    pub(crate) costs_ms: Vec<f64>,
}

impl Fleet {
    /// Takes the workers of a question, and forgets what was said of the last one's.
    pub(crate) fn take(&mut self, workers: &[WorkerView]) {
        self.places.take(workers);
        let length = workers.len();
        for column in [
            &mut self.prefill_ms,
            &mut self.decode_ms,
            &mut self.waiting_tokens,
            &mut self.requests,
            &mut self.blocks_free,
            &mut self.blocks_total,
            &mut self.load_ms,
            &mut self.loading_tokens,
            &mut self.closed,
            &mut self.abroad,
            &mut self.costs_ms,
            &mut self.booked_tokens,
            &mut self.booked_requests,
            &mut self.warm_blocks,
        ] {
            column.resize(length, 0.0);
        }
        self.epochs.resize(length, Epoch(0));
        self.heard_ms.resize(length, 0);
        self.predicted_blocks.resize(length, 0);
        self.known_blocks.clear();
        self.known_blocks.resize(length, 0);
        if self.any_stored || self.stored_blocks.len() != length {
            self.stored_blocks.clear();
            self.stored_blocks.resize(length, 0);
            self.any_stored = false;
        }
        // Few workers have any of these: only those are wiped.
        for at in self.touched.drain(..).filter(|at| *at < length) {
            self.booked_tokens[at] = 0.0;
            self.booked_requests[at] = 0.0;
            self.warm_blocks[at] = 0.0;
            self.predicted_blocks[at] = 0;
        }
        let unmeasured = self.lay_out(workers);
        if unmeasured {
            self.fill_in(workers);
        }
        // Where there are no lower tiers, or they are no quicker, what is missing is computed.
        for (load, prefill) in self.load_ms.iter_mut().zip(&self.prefill_ms) {
            *load = if *load > 0.0 && *load < *prefill { *load } else { *prefill };
        }
    }

    /// Fills the columns; answers whether some rate was not measured.
    fn lay_out(&mut self, workers: &[WorkerView]) -> bool {
        let n = workers.len();
        // One length for all columns, so that the loop checks no bounds.
        let (epochs, heard_ms) = (&mut self.epochs[..n], &mut self.heard_ms[..n]);
        let (prefill_ms, decode_ms) = (&mut self.prefill_ms[..n], &mut self.decode_ms[..n]);
        let (waiting, requests) = (&mut self.waiting_tokens[..n], &mut self.requests[..n]);
        let (free, total) = (&mut self.blocks_free[..n], &mut self.blocks_total[..n]);
        let (loads, loading) = (&mut self.load_ms[..n], &mut self.loading_tokens[..n]);
        let (closed, abroad) = (&mut self.closed[..n], &mut self.abroad[..n]);
        let (mut unmeasured, mut any_abroad) = (false, false);
        for (at, view) in workers.iter().enumerate() {
            let load = &view.load;
            epochs[at] = view.epoch;
            heard_ms[at] = load.heard_ms;
            prefill_ms[at] = measured(load.prefill_us_per_token).unwrap_or(0.0) * MS_PER_US;
            decode_ms[at] = measured(load.decode_us_per_step).unwrap_or(0.0) * MS_PER_US;
            unmeasured |= prefill_ms[at] <= 0.0 || decode_ms[at] <= 0.0;
            waiting[at] = float(load.waiting_prefill_tokens);
            requests[at] = f64::from(load.running) + f64::from(load.waiting);
            free[at] = load.blocks_free.map_or(f64::INFINITY, float);
            // One that does not say how large it is never fills up.
            total[at] = load.blocks_total.filter(|n| *n > 0).map_or(f64::INFINITY, float);
            loads[at] = measured(load.load_us_per_token).unwrap_or(0.0) * MS_PER_US;
            loading[at] = float(load.loading_tokens);
            closed[at] = if view.draining { f64::INFINITY } else { 0.0 };
            abroad[at] = if view.abroad { 1.0 } else { 0.0 };
            any_abroad |= view.abroad;
        }
        self.any_abroad = any_abroad;
        unmeasured
    }

    /// Workers that have measured nothing are like those that have.
    fn fill_in(&mut self, workers: &[WorkerView]) {
        let mean = |rate: fn(&WorkerView) -> f32| {
            let rates = workers.iter().filter_map(|view| measured(rate(view)));
            let (count, sum) = rates.fold((0_u32, 0.0), |(n, sum), rate| (n + 1, sum + rate));
            (count > 0).then(|| sum / f64::from(count))
        };
        let prefill_us = mean(|view| view.load.prefill_us_per_token);
        let typical = Rates::of_means(prefill_us, mean(|view| view.load.decode_us_per_step));
        for rate in self.prefill_ms.iter_mut().filter(|rate| **rate <= 0.0) {
            *rate = typical.prefill_ms;
        }
        for rate in self.decode_ms.iter_mut().filter(|rate| **rate <= 0.0) {
            *rate = typical.decode_ms;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.ids.len()
    }

    pub(crate) fn id(&self, at: usize) -> WorkerId {
        self.places.ids[at]
    }

    pub(crate) fn place(&self, worker: WorkerId) -> Option<usize> {
        self.places.get(worker)
    }

    /// In which life a worker is, and when its load was heard.
    pub(crate) fn heard(&self, worker: WorkerId) -> Option<(Epoch, u64)> {
        let at = self.places.get(worker)?;
        Some((self.epochs[at], self.heard_ms[at]))
    }

    pub(crate) fn booked(&mut self, worker: WorkerId, requests: u32, prefill_tokens: u64) {
        if let Some(at) = self.places.get(worker) {
            self.touched.push(at);
            self.booked_requests[at] = f64::from(requests);
            self.booked_tokens[at] = float(prefill_tokens);
        }
    }

    pub(crate) fn warm(&mut self, worker: WorkerId, epoch: Epoch, blocks: u64) {
        if let Some(at) = self.places.get(worker)
            && self.epochs[at] == epoch
        {
            self.touched.push(at);
            self.warm_blocks[at] = float(blocks);
        }
    }

    pub(crate) fn knows(&mut self, worker: WorkerId, blocks: i32) {
        if let Some(at) = self.places.get(worker) {
            self.known_blocks[at] = self.known_blocks[at].max(blocks);
        }
    }

    /// How much lies in any tier of a worker. One that has told no pace of loading has to compute it.
    pub(crate) fn stores(&mut self, worker: WorkerId, blocks: i32) {
        if let Some(at) = self.places.get(worker)
            && self.load_ms[at] < self.prefill_ms[at]
        {
            self.any_stored = true;
            self.stored_blocks[at] = self.stored_blocks[at].max(blocks);
        }
    }

    /// What is expected at a worker, by what it is known to have.
    pub(crate) fn predicted(&mut self, worker: WorkerId, epoch: Epoch) -> Option<&mut i32> {
        let at = self.places.get(worker)?;
        if self.epochs[at] != epoch {
            return None;
        }
        self.touched.push(at);
        Some(&mut self.predicted_blocks[at])
    }

    pub(crate) fn overlap_blocks(&self, at: usize) -> u32 {
        self.known_blocks[at].max(self.predicted_blocks[at]).max(0) as u32
    }

    /// Leading blocks in any tier.
    pub(crate) fn stored_blocks(&self, at: usize) -> u32 {
        self.overlap_blocks(at).max(self.stored_blocks[at].max(0) as u32)
    }

    /// What computing a token takes there.
    pub(crate) fn prefill_ms(&self, at: usize) -> f64 {
        self.prefill_ms[at]
    }

    /// Requests running, waiting or just sent.
    pub(crate) fn all_requests(&self, at: usize) -> f64 {
        self.requests[at] + self.booked_requests[at]
    }

    /// Whether a worker takes requests at all.
    pub(crate) fn takes(&self, at: usize) -> bool {
        self.closed[at] == 0.0
    }

    /// Whether no more prompt tokens than this wait at a worker or are on their way.
    pub(crate) fn has_room(&self, at: usize, tokens: f64) -> bool {
        self.waiting_tokens[at] + self.booked_tokens[at] <= tokens
    }

    pub(crate) fn open(&self, at: usize) -> bool {
        self.costs_ms[at] < f64::INFINITY
    }

    /// What the formula takes of one worker.
    pub(crate) fn row(&self, at: usize) -> (Standing, There) {
        let standing = Standing {
            prefill_ms: self.prefill_ms[at],
            decode_ms: self.decode_ms[at],
            waiting_tokens: self.waiting_tokens[at],
            requests: self.requests[at],
            blocks_free: self.blocks_free[at],
            blocks_total: self.blocks_total[at],
            load_ms: self.load_ms[at],
            loading_tokens: self.loading_tokens[at],
            abroad: self.abroad[at],
        };
        let there = There {
            known_blocks: f64::from(self.known_blocks[at]),
            predicted_blocks: f64::from(self.predicted_blocks[at]),
            stored_blocks: f64::from(self.stored_blocks[at]),
            booked_tokens: self.booked_tokens[at],
            booked_requests: self.booked_requests[at],
            warm_blocks: self.warm_blocks[at],
        };
        (standing, there)
    }

    /// Costs all workers.
    pub(crate) fn cost(&mut self, question: &Question) {
        let n = self.len();
        let mut costs_ms = std::mem::take(&mut self.costs_ms);
        // One length for all columns, so that the loop checks no bounds.
        let (prefill_ms, decode_ms) = (&self.prefill_ms[..n], &self.decode_ms[..n]);
        let (waiting_tokens, requests) = (&self.waiting_tokens[..n], &self.requests[..n]);
        let (blocks_free, blocks_total) = (&self.blocks_free[..n], &self.blocks_total[..n]);
        let (loads, loading) = (&self.load_ms[..n], &self.loading_tokens[..n]);
        let (closed, abroad) = (&self.closed[..n], &self.abroad[..n]);
        let stored = &self.stored_blocks[..n];
        let (known, predicted) = (&self.known_blocks[..n], &self.predicted_blocks[..n]);
        let (booked_tokens, booked_requests) =
            (&self.booked_tokens[..n], &self.booked_requests[..n]);
        let (warm_blocks, costs) = (&self.warm_blocks[..n], &mut costs_ms[..n]);
        for at in 0..n {
            let standing = Standing {
                prefill_ms: prefill_ms[at],
                decode_ms: decode_ms[at],
                waiting_tokens: waiting_tokens[at],
                requests: requests[at],
                blocks_free: blocks_free[at],
                blocks_total: blocks_total[at],
                load_ms: loads[at],
                loading_tokens: loading[at],
                abroad: abroad[at],
            };
            let there = There {
                known_blocks: f64::from(known[at]),
                predicted_blocks: f64::from(predicted[at]),
                stored_blocks: f64::from(stored[at]),
                booked_tokens: booked_tokens[at],
                booked_requests: booked_requests[at],
                warm_blocks: warm_blocks[at],
            };
            costs[at] = question.terms(standing, there).total_ms() + closed[at];
        }
        self.costs_ms = costs_ms;
    }
}

/// A count as a number; what no machine has is the largest that it can be.
fn float(count: u64) -> f64 {
    // A signed number takes one instruction.
    i64::try_from(count).unwrap_or(i64::MAX) as f64
}
