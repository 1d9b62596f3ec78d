//! What the cost formula gets wrong about single workers, learned from how long requests really took.
//!
//! A worker may be slow in ways that its load does not show: a throttled GPU, a bad link, a noisy neighbour. For each
//! request the router compares the time to the first token with what the formula said when it decided, as a logarithm.
//! What all workers have in common is a Bayesian linear regression over the request's kind, so that a formula that is
//! wrong everywhere blames nobody; what is left is the worker's own, pulled towards 0 while there is little of it, and
//! forgotten with further requests and with time, so that who was left alone is tried again. A choice draws each
//! candidate's effect from what is believed of it (Thompson sampling), ignores effects that are small, and puts the
//! rest onto the milliseconds that the request itself would take there. It draws many times and takes one draw's
//! winner: the share that the winner won is its propensity, logged for evaluating other policies on the same log.
//!
//! What is believed are sums, so several routers share it by adding what each has seen since it last said so.
//! Measurements that are no numbers teach nothing; time that goes back forgets nothing.

use mainstay_types::{Epoch, WorkerId};

use crate::decision::{CANDIDATES_MAX, CandidateCost};
use crate::id_map::IdMap;

mod common;

use common::Common;

/// Workers of which something is kept at most; beyond it the one heard of the longest ago is forgotten.
pub const LEARNED_WORKERS_MAX: usize = 4_096;
/// Kinds that a request is described by.
const KINDS: usize = 4;
/// Requests of one worker that are remembered.
const WORKER_WEIGHT_MAX: f64 = 20.0;
/// What is believed of a worker counts half after so long without news.
const HALF_LIFE_MS: f64 = 30_000.0;
/// The belief before any request: as strong as so many that took what the formula said.
const WORKER_DOUBT: f64 = 6.0;
/// How far one request is off by chance, in logarithms.
const NOISE: f64 = 0.5;
/// How wide effects are drawn, in deviations of what is believed.
const DRAW_WIDTH: f64 = 0.5;
/// A fifth more or less is the formula's to judge.
const EFFECT_MIN: f64 = 0.2;
/// A worker counts at most four times as slow as its load says, or as quick.
const EFFECT_MAX: f64 = 1.4;
/// What one measurement may say at most: a factor of twenty.
const RESIDUAL_MAX: f64 = 3.0;
/// Keeps short times from looking like large factors.
const TIME_FLOOR_MS: f64 = 5.0;
/// Draws for one choice. Who wins a share `p` of all possible draws is chosen that often, but weighed by the inverse of
/// its propensity it counts `1 - (1 - p)^DRAWS` of what it should: 96 % at a share of one in twenty, half at one in
/// ninety.
const DRAWS: u32 = 64;
/// No draw is further from what is believed than so many of its widths.
const NORMAL_MAX: f64 = 3.4642;
/// The form of a lesson's bytes; its worker's part is an id and four numbers.
const LESSON_FORM: u8 = 1;
const WORKER_BYTES: usize = 4 + 4 * 8;
/// Scores that are this close are equal.
const TIE_MS: f64 = 0.05;

/// What a decision went by, kept as it was then: loads change while the request runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Features {
    expected_ms: f64,
    kinds: [f64; KINDS],
}

impl Features {
    /// Of the costs of one candidate. Recomputing for others is none of the request's own time.
    #[must_use]
    pub fn of(cost: &CandidateCost) -> Self {
        let terms = &cost.terms;
        let waits_ms = terms.queue_ms + terms.decode_ms;
        let expected_ms = terms.prefill_ms + terms.load_ms + waits_ms + terms.region_ms;
        let whole = expected_ms.max(TIME_FLOOR_MS);
        let size = (whole / 100.0).ln().clamp(-4.0, 4.0) / 4.0;
        let share = |part_ms: f64| (part_ms / whole).clamp(0.0, 1.0);
        let kinds = [1.0, share(terms.queue_ms), share(terms.decode_ms), size];
        Self { expected_ms, kinds }
    }

    /// The logarithm of how much longer it took than expected.
    fn residual(&self, took_ms: f64) -> Option<f64> {
        let ratio = (took_ms + TIME_FLOOR_MS) / (self.expected_ms + TIME_FLOOR_MS);
        (ratio.is_finite() && ratio > 0.0).then(|| ratio.ln().clamp(-RESIDUAL_MAX, RESIDUAL_MAX))
    }
}

/// Sums of what one worker does otherwise than all.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Own {
    epoch: Epoch,
    weight: f64,
    sum: f64,
    heard_ms: u64,
}

impl Own {
    /// What is left of it by now.
    fn at(mut self, now_ms: u64) -> Self {
        let quiet_ms = now_ms.saturating_sub(self.heard_ms) as f64;
        let left = (-quiet_ms / HALF_LIFE_MS).exp2();
        self.weight *= left;
        self.sum *= left;
        self.heard_ms = self.heard_ms.max(now_ms);
        self
    }

    fn add(&mut self, weight: f64, sum: f64) {
        self.weight += weight;
        self.sum += sum;
        if self.weight > WORKER_WEIGHT_MAX {
            self.sum *= WORKER_WEIGHT_MAX / self.weight;
            self.weight = WORKER_WEIGHT_MAX;
        }
    }

    /// The mean and the deviation of what is believed.
    fn belief(&self) -> (f64, f64) {
        let weight = self.weight + WORKER_DOUBT;
        (self.sum / weight, NOISE / weight.sqrt())
    }
}

/// What one router has seen since it last said so, for others to [`Learner::merge`]. Times are by that router's clock:
/// a lesson travels as bytes, which say how long ago things were.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Lesson {
    common: Common,
    workers: Vec<(WorkerId, Own)>,
}

impl Lesson {
    /// Nothing was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty() && self.common.weight <= 0.0
    }

    /// As bytes for other routers: all numbers with their lowest byte first.
    #[must_use]
    pub fn encode(&self, now_ms: u64) -> Vec<u8> {
        let mut bytes = vec![LESSON_FORM];
        let common = &self.common;
        let sums = common.products.iter().flatten().chain(&common.targets);
        for sum in [&common.weight].into_iter().chain(sums) {
            bytes.extend_from_slice(&sum.to_le_bytes());
        }
        for (worker, own) in &self.workers {
            bytes.extend_from_slice(&worker.0.to_le_bytes());
            bytes.extend_from_slice(&own.epoch.0.to_le_bytes());
            bytes.extend_from_slice(&own.weight.to_le_bytes());
            bytes.extend_from_slice(&own.sum.to_le_bytes());
            bytes.extend_from_slice(&now_ms.saturating_sub(own.heard_ms).to_le_bytes());
        }
        bytes
    }

    /// The reverse, on the clock of whoever hears it. `None` if the bytes are of another form or length.
    #[must_use]
    pub fn decode(now_ms: u64, bytes: &[u8]) -> Option<Self> {
        let (&form, rest) = bytes.split_first()?;
        let (sums, workers) = rest.split_at_checked(8 * (1 + KINDS + KINDS * KINDS))?;
        let (workers, odd) = workers.as_chunks::<WORKER_BYTES>();
        if form != LESSON_FORM || !odd.is_empty() || workers.len() > LEARNED_WORKERS_MAX {
            return None;
        }
        let mut sums = sums.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
        let mut common = Common { weight: sums.next()?, ..Common::default() };
        let cells = common.products.iter_mut().flatten().chain(&mut common.targets);
        cells.zip(sums).for_each(|(cell, sum)| *cell = sum);
        let workers = workers.iter().map(|bytes| {
            let (id, rest) = bytes.split_first_chunk::<4>()?;
            let [epoch, weight, sum, age_ms] = *rest.as_chunks::<8>().0 else { return None };
            let own = Own {
                epoch: Epoch(u64::from_le_bytes(epoch)),
                weight: f64::from_le_bytes(weight),
                sum: f64::from_le_bytes(sum),
                heard_ms: now_ms.saturating_sub(u64::from_le_bytes(age_ms)),
            };
            Some((WorkerId(u32::from_le_bytes(*id)), own))
        });
        Some(Self { common, workers: workers.collect::<Option<_>>()? })
    }
}

/// What the learner chose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// The place in the list of candidates.
    pub at: usize,
    /// How likely it was.
    pub propensity: f64,
}

/// Learns how workers differ from what the formula says of them.
#[derive(Debug, Clone, Default)]
pub struct Learner {
    common: Common,
    coefficients: [f64; KINDS],
    workers: IdMap<WorkerId, Own>,
    unsaid: Lesson,
    unsaid_at: IdMap<WorkerId, usize>,
}

impl Learner {
    /// A request that was decided by `features` took so long to its first token.
    pub fn observe(
        &mut self,
        now_ms: u64,
        (worker, epoch): (WorkerId, Epoch),
        features: &Features,
        took_ms: f64,
    ) {
        let Some(residual) = features.residual(took_ms) else { return };
        let own = residual - self.usual(features);
        let own = own.clamp(-RESIDUAL_MAX, RESIDUAL_MAX);
        let seen = Common::of_one(features.kinds, residual);
        self.common.add(&seen);
        self.coefficients = self.common.solve();
        self.add_own(now_ms, worker, epoch, (1.0, own));
        self.unsaid.common.add(&seen);
        self.note_unsaid(now_ms, worker, epoch, own);
    }

    /// A request took at least so long, and nobody knows how long: it teaches that much, and nothing where as much is
    /// believed already.
    pub(crate) fn observe_at_least(
        &mut self,
        now_ms: u64,
        (worker, epoch): (WorkerId, Epoch),
        features: &Features,
        took_ms: f64,
    ) {
        let believed = self.usual(features) + self.effect(now_ms, worker, epoch).0;
        if features.residual(took_ms).is_some_and(|residual| residual > believed) {
            self.observe(now_ms, (worker, epoch), features, took_ms);
        }
    }

    /// What all workers have in common for a kind of request.
    fn usual(&self, features: &Features) -> f64 {
        self.coefficients.iter().zip(features.kinds).map(|(c, kind)| c * kind).sum()
    }

    fn note_unsaid(&mut self, now_ms: u64, worker: WorkerId, epoch: Epoch, own: f64) {
        let workers = &mut self.unsaid.workers;
        let at = *self.unsaid_at.entry(worker).or_insert(workers.len());
        let fresh = Own { epoch, weight: 0.0, sum: 0.0, heard_ms: now_ms };
        if at == workers.len() {
            if workers.len() >= LEARNED_WORKERS_MAX {
                self.unsaid_at.remove(&worker);
                return;
            }
            workers.push((worker, fresh));
        }
        let unsaid = &mut workers[at].1;
        if unsaid.epoch > epoch {
            return;
        }
        *unsaid = if unsaid.epoch == epoch { unsaid.at(now_ms) } else { fresh };
        unsaid.add(1.0, own);
    }

    fn add_own(&mut self, now_ms: u64, worker: WorkerId, epoch: Epoch, more: (f64, f64)) {
        if !self.workers.contains_key(&worker) && self.workers.len() >= LEARNED_WORKERS_MAX {
            let oldest = self.workers.iter().min_by_key(|(id, own)| (own.heard_ms, **id));
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.workers.remove(&oldest);
            }
        }
        let fresh = Own { epoch, weight: 0.0, sum: 0.0, heard_ms: now_ms };
        let own = self.workers.entry(worker).or_insert(fresh);
        if own.epoch > epoch {
            return;
        }
        *own = if own.epoch == epoch { own.at(now_ms) } else { fresh };
        own.add(more.0, more.1);
    }

    /// How many times as long as others a worker is believed to take, and how sure that is, as the deviation of its
    /// logarithm.
    #[must_use]
    pub fn belief(&self, now_ms: u64, worker: WorkerId, epoch: Epoch) -> (f64, f64) {
        let (mean, deviation) = self.effect(now_ms, worker, epoch);
        (mean.exp(), deviation)
    }

    fn effect(&self, now_ms: u64, worker: WorkerId, epoch: Epoch) -> (f64, f64) {
        let own = self.workers.get(&worker).filter(|own| own.epoch == epoch);
        own.map_or((0.0, NOISE / WORKER_DOUBT.sqrt()), |own| own.at(now_ms).belief())
    }

    /// Chooses one of the first [`CANDIDATES_MAX`] candidates. `None` if there are none.
    #[must_use]
    pub fn draw(
        &self,
        now_ms: u64,
        candidates: &[CandidateCost],
        epoch_of: impl Fn(WorkerId) -> Epoch,
        random: u64,
    ) -> Option<Draw> {
        let candidates = &candidates[..candidates.len().min(CANDIDATES_MAX)];
        let mut arms = [Arm::default(); CANDIDATES_MAX];
        for (arm, cost) in arms.iter_mut().zip(candidates) {
            let (mean, deviation) = self.effect(now_ms, cost.worker, epoch_of(cost.worker));
            let own_ms = Features::of(cost).expected_ms;
            let rest_ms = cost.terms.memory_ms + cost.terms.away_ms;
            *arm = Arm { own_ms, rest_ms, mean, width: deviation * DRAW_WIDTH, hopeless: false };
        }
        let arms = &mut arms[..candidates.len()];
        leave_hopeless(arms);
        let mut dice = Dice(random);
        let mut wins = [0_u32; CANDIDATES_MAX];
        let taken = dice.next() % u64::from(DRAWS);
        let mut winner = None;
        for turn in 0..u64::from(DRAWS) {
            let at = winner_of(arms, &mut dice)?;
            wins[at] += 1;
            if turn == taken {
                winner = Some(at);
            }
        }
        let at = winner?;
        Some(Draw { at, propensity: f64::from(wins[at]) / f64::from(DRAWS) })
    }

    /// What was seen since the last call.
    #[must_use]
    pub fn lesson(&mut self) -> Lesson {
        self.unsaid_at.clear();
        std::mem::take(&mut self.unsaid)
    }

    /// Adds what another router has seen, on the same clock. What no requests could have taught is left out.
    pub fn merge(&mut self, now_ms: u64, lesson: &Lesson) {
        if lesson.common.is_sane() {
            self.common.add(&lesson.common);
            self.coefficients = self.common.solve();
        }
        for (worker, own) in lesson.workers.iter().take(LEARNED_WORKERS_MAX) {
            let sane = (0.0..=WORKER_WEIGHT_MAX * 1.001).contains(&own.weight);
            if sane && own.sum.abs() <= own.weight * RESIDUAL_MAX {
                let own = own.at(now_ms);
                self.add_own(now_ms, *worker, own.epoch, (own.weight, own.sum));
            }
        }
    }

    /// Nothing that was learned of a worker counts any more.
    pub fn forget_worker(&mut self, worker: WorkerId) {
        self.workers.remove(&worker);
        if let Some(at) = self.unsaid_at.remove(&worker) {
            self.unsaid.workers.swap_remove(at);
            if let Some((moved, _)) = self.unsaid.workers.get(at) {
                self.unsaid_at.insert(*moved, at);
            }
        }
    }

    /// How many workers something is known of, for metrics.
    #[must_use]
    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }
}

/// One candidate of a draw.
#[derive(Debug, Clone, Copy, Default)]
struct Arm {
    own_ms: f64,
    rest_ms: f64,
    mean: f64,
    width: f64,
    /// It wins no draw.
    hopeless: bool,
}

impl Arm {
    /// What it costs if the worker takes so much longer, as a logarithm.
    fn score(&self, effect: f64) -> f64 {
        let effect = effect.clamp(-EFFECT_MAX, EFFECT_MAX);
        let beyond = (effect.abs() - EFFECT_MIN).max(0.0).copysign(effect);
        let factor = if beyond == 0.0 { 1.0 } else { beyond.exp() };
        self.own_ms * factor + self.rest_ms
    }
}

/// Marks those who lose to another one even if they draw the best and it the worst: most do where some hold a prefix,
/// and need not be drawn.
fn leave_hopeless(arms: &mut [Arm]) {
    let worst = arms.iter().map(|arm| arm.score(arm.mean + arm.width * NORMAL_MAX));
    let least = worst.fold(f64::INFINITY, f64::min);
    for arm in arms {
        // Equals stay: a tie may be won.
        arm.hopeless = arm.score(arm.mean - arm.width * NORMAL_MAX) > least + 2.0 * TIE_MS;
    }
}

/// The cheapest under one draw of all effects; equals are equally likely.
fn winner_of(arms: &[Arm], dice: &mut Dice) -> Option<usize> {
    let (mut best, mut least, mut ties) = (None, f64::INFINITY, 0);
    for (at, arm) in arms.iter().enumerate().filter(|(_, arm)| !arm.hopeless) {
        let score = arm.score(arm.mean + arm.width * dice.normal());
        if score < least - TIE_MS || best.is_none() {
            (best, least, ties) = (Some(at), score, 1);
        } else if score <= least + TIE_MS {
            ties += 1;
            if dice.next().is_multiple_of(ties) {
                best = Some(at);
            }
        }
    }
    best
}

/// Numbers from one seed, so that a choice is a function of its inputs.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// About normal: the sum of four even ones, which is none beyond three and a half deviations.
    fn normal(&mut self) -> f64 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xFFFF).sum();
        (sum as f64 / 65_535.0 - 2.0) * 3.0_f64.sqrt()
    }
}

#[cfg(test)]
mod tests;
