//! The choice itself, and the memory of what was sent where.

use mainstay_types::{SequenceHash, WorkerId};

use crate::bookings::{BookingId, Bookings};
use crate::contexts::Contexts;
use crate::cost::{Booked, Cached, Prompt, Rates, Terms, Warm, Weights, region_ms, terms};
use crate::decision::{CANDIDATES_MAX, CandidateCost, Decision, Note, RouteError};
use crate::id_map::IdMap;
use crate::inputs::{Inputs, Policy, WorkerView};
use crate::predictions::Predictions;

/// Costs that are this close are equal.
const TIE_MS: f64 = 0.05;
/// The least and the most that a booking and a prediction last, unless they are ended before. In between they
/// last twice as long as the request is expected to take to its first token.
const MEMORY_MS_MIN: u64 = 2_000;
const MEMORY_MS_MAX: u64 = 60_000;

/// Chooses workers, and remembers for a while what it sent to them.
#[derive(Debug, Clone, Default)]
pub struct Router {
    weights: Weights,
    bookings: Bookings,
    predictions: Predictions,
    contexts: Contexts,
    last_booking: u64,
    /// Whose turn it was last, for [`Policy::RoundRobin`].
    last_turn: Option<WorkerId>,
}

/// A worker that may be chosen.
struct Candidate<'a> {
    view: &'a WorkerView,
    booked: Booked,
    overlap_blocks: u32,
    predicted: bool,
    terms: Terms,
    cost_ms: f64,
}

impl Candidate<'_> {
    fn requests(&self) -> u64 {
        let load = &self.view.load;
        (u64::from(load.running) + u64::from(load.waiting)).saturating_add(self.booked.requests)
    }

    fn cost(&self) -> CandidateCost {
        CandidateCost {
            worker: self.view.id,
            cost_ms: self.cost_ms,
            terms: self.terms,
            overlap_blocks: self.overlap_blocks,
            predicted: self.predicted,
            abroad: self.view.abroad,
        }
    }
}

impl Router {
    /// A router that has sent nothing yet.
    #[must_use]
    pub fn new(weights: Weights) -> Self {
        Self { weights, ..Self::default() }
    }

    /// Chooses a worker. Nothing is booked: call [`Router::book`] once the request is on its way.
    ///
    /// # Errors
    /// If no worker is left to choose.
    pub fn choose(&mut self, inputs: &Inputs<'_>) -> Result<Decision, RouteError> {
        self.bookings.expire(inputs.now_ms);
        self.predictions.expire(inputs.now_ms);
        self.contexts.expire(inputs.now_ms);
        let (mut candidates, others) = region_first(inputs, self.candidates(inputs)?);
        let chosen = self.pick(inputs, &candidates);
        let note = note(inputs, &candidates, chosen);
        let chosen = candidates.swap_remove(chosen);
        if inputs.policy == Policy::RoundRobin {
            self.last_turn = Some(chosen.view.id);
        }
        let considered = candidates.len() + 1;
        candidates.extend(others);
        // Those that were set aside come last.
        let aside = |c: &Candidate<'_>| inputs.region_penalty_ms.is_none() && c.view.abroad;
        let order = |a: &Candidate<'_>, b: &Candidate<'_>| {
            let costs = a.cost_ms.total_cmp(&b.cost_ms);
            aside(a).cmp(&aside(b)).then(costs).then(a.view.id.cmp(&b.view.id))
        };
        // Only those that are named have to be in order: there may be a thousand.
        if candidates.len() >= CANDIDATES_MAX {
            candidates.select_nth_unstable_by(CANDIDATES_MAX - 1, order);
            candidates.truncate(CANDIDATES_MAX - 1);
        }
        candidates.sort_unstable_by(order);
        let others = candidates.iter().map(Candidate::cost);
        Ok(Decision {
            worker: chosen.view.id,
            epoch: chosen.view.epoch,
            cost_ms: chosen.cost_ms,
            terms: chosen.terms,
            overlap_blocks: chosen.overlap_blocks,
            uncached_tokens: prompt(inputs).uncached_tokens(chosen.overlap_blocks),
            considered,
            candidates: core::iter::once(chosen.cost()).chain(others).collect(),
            note,
        })
    }

    /// All workers that may be chosen, with their costs; never empty.
    fn candidates<'a>(&self, inputs: &Inputs<'a>) -> Result<Vec<Candidate<'a>>, RouteError> {
        let workers = inputs.workers;
        let slots: IdMap<WorkerId, usize> =
            workers.iter().enumerate().map(|(at, view)| (view.id, at)).collect();
        let slot = |worker: WorkerId| slots.get(&worker).copied();
        let mut booked = vec![Booked::default(); workers.len()];
        self.bookings.sum(workers, slot, &mut booked);
        let cached = self.cached(inputs, slot);
        let typical = Rates::typical(workers);
        let most = cached.iter().map(|cached| cached.blocks()).max().unwrap_or(0);
        let known = self.contexts.find(inputs.prompt_blocks, most);
        let expected_blocks = if known.is_some() { 0 } else { self.contexts.mean_blocks() };
        let mut candidates = Vec::with_capacity(workers.len());
        for (at, view) in workers.iter().enumerate() {
            if view.draining || inputs.excluded.contains(&view.id) {
                continue;
            }
            let blocks = self.contexts.warm_blocks(view.id, known.as_ref());
            let warm = Warm { blocks, expected_blocks };
            let (prompt, load, weights) = (prompt(inputs), &view.load, self.weights);
            let mut terms = terms(prompt, cached[at], load, booked[at], warm, typical, weights);
            if view.abroad {
                terms.region_ms = region_ms(inputs.region_penalty_ms);
            }
            candidates.push(Candidate {
                view,
                booked: booked[at],
                overlap_blocks: cached[at].blocks(),
                predicted: cached[at].is_predicted(),
                terms,
                cost_ms: terms.total_ms(),
            });
        }
        if candidates.is_empty() {
            return Err(nobody(inputs));
        }
        Ok(candidates)
    }

    /// For each worker what it holds of the prompt, by the index and by what was just sent to it.
    fn cached(&self, inputs: &Inputs<'_>, slot: impl Fn(WorkerId) -> Option<usize>) -> Vec<Cached> {
        let mut cached = vec![Cached::default(); inputs.workers.len()];
        let most = u32::try_from(inputs.prompt_blocks.len()).unwrap_or(u32::MAX);
        for overlap in inputs.overlaps {
            if let Some(at) = slot(overlap.worker) {
                cached[at].known_blocks = cached[at].known_blocks.max(overlap.blocks.min(most));
            }
        }
        for ((worker, epoch), blocks) in self.predictions.find(inputs.prompt_blocks) {
            if let Some(at) = slot(worker)
                && inputs.workers[at].epoch == epoch
            {
                cached[at].predicted_blocks = blocks;
            }
        }
        cached
    }

    /// The place of the chosen one in `candidates`, which is not empty.
    fn pick(&self, inputs: &Inputs<'_>, candidates: &[Candidate<'_>]) -> usize {
        match inputs.policy {
            Policy::Kv => {
                let costs = candidates.iter().map(|c| c.cost_ms);
                let least = costs.fold(f64::INFINITY, f64::min);
                any_of(candidates, inputs.random, |c| c.cost_ms <= least + TIE_MS)
            }
            Policy::LeastLoaded => {
                let least = candidates.iter().map(Candidate::requests).min();
                any_of(candidates, inputs.random, |c| Some(c.requests()) == least)
            }
            Policy::Random => any_of(candidates, inputs.random, |_| true),
            Policy::RoundRobin => {
                let by_turn = |at: &usize| {
                    let id = candidates[*at].view.id;
                    // False sorts first: those after the last one, then from the beginning again.
                    (self.last_turn.is_some_and(|last| id <= last), id)
                };
                (0..candidates.len()).min_by_key(by_turn).unwrap_or(0)
            }
        }
    }

    /// Notes that a request is on its way where `decision` says. `prompt_blocks` are expected to be there soon;
    /// an empty list predicts nothing.
    pub fn book(
        &mut self,
        now_ms: u64,
        decision: &Decision,
        prompt_blocks: &[SequenceHash],
    ) -> BookingId {
        self.last_booking += 1;
        let id = BookingId(self.last_booking);
        // A cast from a float stops at the ends of the number's range.
        let lasts_ms = (decision.cost_ms * 2.0) as u64;
        let until_ms = now_ms.saturating_add(lasts_ms.clamp(MEMORY_MS_MIN, MEMORY_MS_MAX));
        let (worker, epoch) = (decision.worker, decision.epoch);
        self.bookings.add(id, worker, epoch, decision.uncached_tokens, now_ms, until_ms);
        self.predictions.add(id, worker, epoch, until_ms, prompt_blocks);
        self.contexts.sent(now_ms, worker, prompt_blocks, decision.overlap_blocks);
        id
    }

    /// The request is done: its load counts no more, its blocks may well be there.
    pub fn release(&mut self, id: BookingId) {
        self.bookings.release(id);
    }

    /// The request never got there, or was not computed: neither load nor blocks are to be expected.
    pub fn cancel(&mut self, id: BookingId) {
        self.bookings.release(id);
        self.predictions.cancel(id);
    }

    /// The worker is gone: forgets all that was sent to it.
    pub fn forget_worker(&mut self, worker: WorkerId) {
        self.bookings.forget_worker(worker);
        self.predictions.forget_worker(worker);
        self.contexts.forget_worker(worker);
    }

    /// How many bookings are kept, for metrics.
    #[must_use]
    pub fn booking_count(&self) -> usize {
        self.bookings.len()
    }

    /// How many warm conversations are known, for metrics.
    #[must_use]
    pub fn conversation_count(&self) -> usize {
        self.contexts.len()
    }

    /// How many predictions are kept, for metrics.
    #[must_use]
    pub fn prediction_count(&self) -> usize {
        self.predictions.len()
    }
}

fn prompt(inputs: &Inputs<'_>) -> Prompt {
    Prompt {
        tokens: inputs.prompt_tokens,
        block_tokens: inputs.block_tokens,
        urgent: inputs.priority > 0,
    }
}

/// One of those that `good` accepts, all equally likely; at least one does.
fn any_of(
    candidates: &[Candidate<'_>],
    random: u64,
    good: impl Fn(&Candidate<'_>) -> bool,
) -> usize {
    let ties: Vec<usize> = (0..candidates.len()).filter(|at| good(&candidates[*at])).collect();
    let turn = random.checked_rem(ties.len() as u64).unwrap_or(0);
    ties.get(turn as usize).copied().unwrap_or(0)
}

/// Splits off the workers of other regions while there is another choice, unless a cost decides.
fn region_first<'a>(
    inputs: &Inputs<'_>,
    candidates: Vec<Candidate<'a>>,
) -> (Vec<Candidate<'a>>, Vec<Candidate<'a>>) {
    let near = candidates.iter().any(|c| !c.view.abroad);
    if inputs.region_penalty_ms.is_some() || !near {
        return (candidates, Vec::new());
    }
    candidates.into_iter().partition(|c| !c.view.abroad)
}

fn nobody(inputs: &Inputs<'_>) -> RouteError {
    let workers = inputs.workers.len();
    if workers == 0 {
        RouteError::NoWorkers
    } else if inputs.workers.iter().all(|view| view.draining) {
        RouteError::AllDraining { workers }
    } else {
        RouteError::AllExcluded { workers }
    }
}

fn note(inputs: &Inputs<'_>, candidates: &[Candidate<'_>], chosen: usize) -> Note {
    let (policy, chosen) = (inputs.policy, &candidates[chosen]);
    if chosen.view.abroad && candidates.iter().all(|c| c.view.abroad) {
        return Note::NoneInRegion;
    }
    let most = candidates.iter().max_by(|a, b| {
        a.overlap_blocks.cmp(&b.overlap_blocks).then(b.cost_ms.total_cmp(&a.cost_ms))
    });
    match most {
        _ if candidates.len() == 1 => Note::OnlyCandidate,
        _ if policy != Policy::Kv => Note::Policy(policy),
        Some(most) if most.overlap_blocks > chosen.overlap_blocks => Note::CheaperThanOverlap {
            worker: most.view.id,
            blocks: most.overlap_blocks,
            cost_ms: most.cost_ms,
        },
        _ if chosen.overlap_blocks == 0 => Note::NoOverlap,
        _ => Note::BestOverlap { blocks: chosen.overlap_blocks },
    }
}

#[cfg(test)]
mod tests;
