//! The choice itself, and the memory of what was sent where.
//!
//! Everything that a question needs is kept from the last one, so a decision allocates only its own answer. A
//! router that is not told how requests went on still forgets them in time.

use mainstay_types::{Epoch, SequenceHash, WorkerId};

use crate::bookings::{Booking, BookingId, Bookings};
use crate::choice::{Named, Pick, Ranks, cheapest, note, pick};
use crate::contexts::{Contexts, Known};
use crate::cost::{Question, Weights, away_ms, measured, uncached_tokens};
use crate::decision::{CANDIDATES_MAX, CandidateCost, Decision, Note, RouteError};
use crate::fleet::Fleet;
use crate::inputs::{Affinity, Hints, Inputs, Policy, Rule};
use crate::learned::{Draw, Features, Learner};
use crate::predictions::Predictions;

/// The least and the most that a booking and a prediction last, unless they are ended before. In between they
/// last twice as long as the request is expected to take to its first token. A prediction lasts the least from that
/// token on.
const MEMORY_MS_MIN: u64 = 2_000;
const MEMORY_MS_MAX: u64 = 60_000;

/// Chooses workers, and remembers for a while what it sent to them.
#[derive(Debug, Clone, Default)]
pub struct Router {
    weights: Weights,
    bookings: Bookings,
    predictions: Predictions,
    contexts: Contexts,
    learner: Learner,
    last_booking: u64,
    /// Whose turn it was last, for [`Policy::RoundRobin`].
    last_turn: Option<WorkerId>,
    fleet: Fleet,
    ranks: Ranks,
    /// What was booked where.
    booked: Vec<(WorkerId, u32, u64)>,
    others: Vec<(f64, WorkerId, usize)>,
    /// Workers of other regions that are not considered, with their costs.
    aside: Vec<(f64, WorkerId, usize)>,
    /// Whoever calls says when first tokens come: only then does their absence teach anything.
    hears_first_tokens: bool,
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
        self.choose_with(inputs, &Hints::default())
    }

    /// The same for a request of which more is known than its prompt.
    ///
    /// # Errors
    /// If no worker is left to choose.
    pub fn choose_with(
        &mut self,
        inputs: &Inputs<'_>,
        hints: &Hints,
    ) -> Result<Decision, RouteError> {
        self.decide(inputs, hints, None)
    }

    /// The same by a rule of the caller's own, which chooses among the cheapest by cost.
    ///
    /// # Errors
    /// If no worker is left to choose.
    pub fn choose_by(
        &mut self,
        inputs: &Inputs<'_>,
        hints: &Hints,
        rule: &mut dyn Rule,
    ) -> Result<Decision, RouteError> {
        self.decide(&Inputs { policy: Policy::Kv, ..*inputs }, hints, Some(rule))
    }

    fn decide(
        &mut self,
        inputs: &Inputs<'_>,
        hints: &Hints,
        rule: Option<&mut dyn Rule>,
    ) -> Result<Decision, RouteError> {
        self.expire_bookings(inputs.now_ms);
        self.predictions.expire(inputs.now_ms);
        self.contexts.expire(inputs.now_ms);
        let (known, most) = self.cost(inputs, hints);
        self.bind(hints.affinity);
        self.leave_out(inputs);
        self.ranks.take(&self.fleet.costs_ms);
        let considered = self.ranks.considered;
        let plain = pick(&self.fleet, &self.ranks, inputs.policy, inputs.random, self.last_turn);
        let plain = plain.ok_or_else(|| nobody(inputs, hints))?;
        let named = cheapest(&self.fleet, &mut self.ranks, plain, inputs.random, &mut self.others);
        let mut candidates = self.named(inputs, hints, known.as_ref(), plain.at);
        let rule_chose = rule.is_some();
        let open = &mut candidates[..considered.min(CANDIDATES_MAX)];
        let propensity = match rule {
            Some(rule) => prefer(rule.pick(inputs, hints, open), plain, named, open),
            None => prefer(self.draw(inputs, open), plain, named, open),
        };
        let chosen = candidates[0];
        if inputs.policy == Policy::RoundRobin {
            self.last_turn = Some(chosen.worker);
        }
        let place = self.fleet.place(chosen.worker).unwrap_or(plain.at);
        let stored_blocks = self.fleet.stored_blocks(place);
        let gives = inputs.fetch.filter(|fetch| {
            let fetch_ms = measured(fetch.us_per_token).unwrap_or(f64::INFINITY) / 1_000.0;
            fetch_ms < self.fleet.prefill_ms(place)
        });
        let fetched_blocks = gives.map_or(0, |fetch| fetch.blocks).max(stored_blocks);
        Ok(Decision {
            worker: chosen.worker,
            epoch: self.fleet.epochs[place],
            cost_ms: chosen.cost_ms,
            terms: chosen.terms,
            overlap_blocks: chosen.overlap_blocks,
            stored_blocks,
            fetched_blocks,
            uncached_tokens: uncached_tokens(inputs, fetched_blocks),
            considered,
            note: match hints.affinity {
                Affinity::Hard { .. } => Note::Bound,
                _ if rule_chose && chosen.worker != self.fleet.id(plain.at) => Note::Rule,
                _ => note(&self.fleet, inputs.policy, considered, most, &chosen),
            },
            candidates,
            propensity,
            plain: self.fleet.id(plain.at),
            namespace: hints.namespace,
            known,
        })
    }

    /// Whether one of the workers that could be chosen has at most so many prompt tokens waiting, those just sent to it
    /// included. While none has, requests had better wait in a [`crate::RequestQueue`]; where none could be chosen at
    /// all, [`Router::choose`] says why.
    pub fn has_room(&mut self, inputs: &Inputs<'_>, room_tokens: f64) -> bool {
        self.has_room_with(inputs, &Hints::default(), room_tokens)
    }

    /// The same for a request of which more is known: one that belongs to a worker for sure needs room there.
    pub fn has_room_with(&mut self, inputs: &Inputs<'_>, hints: &Hints, room_tokens: f64) -> bool {
        self.expire_bookings(inputs.now_ms);
        let Self { fleet, bookings, booked, .. } = self;
        fleet.take(inputs.workers);
        take_booked(fleet, bookings, booked);
        let open = |at: &usize| {
            let id = fleet.id(*at);
            let bound = matches!(hints.affinity, Affinity::Hard { worker } if worker != id);
            fleet.takes(*at) && !bound && !inputs.excluded.contains(&id)
        };
        let home = |at: &usize| fleet.abroad[*at] == 0.0;
        let mut opens = (0..fleet.len()).filter(open);
        // Room abroad is none while a decision would keep to the own region.
        let anywhere = inputs.region_penalty_ms.is_some() || !opens.clone().any(|at| home(&at));
        opens.any(|at| (anywhere || home(&at)) && fleet.has_room(at, room_tokens))
    }

    /// Ends bookings whose time is over. One whose first token has not come by then teaches that it takes at least as
    /// long, or those who hang would never teach anything.
    fn expire_bookings(&mut self, now_ms: u64) {
        while let Some(booking) = self.bookings.expire(now_ms) {
            let Some(features) = booking.features.filter(|_| self.hears_first_tokens) else {
                continue;
            };
            let took_ms = booking.until_ms.saturating_sub(booking.made_ms) as f64;
            let whose = (booking.worker, booking.epoch);
            self.learner.observe_at_least(now_ms, whose, &features, took_ms);
        }
    }

    /// Costs all workers; answers the conversation that the prompt goes on with, and the most that anybody holds.
    fn cost(&mut self, inputs: &Inputs<'_>, hints: &Hints) -> (Option<Known>, u32) {
        let Self { fleet, bookings, predictions, contexts, booked, .. } = self;
        fleet.take(inputs.workers);
        let length = i32::try_from(inputs.prompt_blocks.len()).unwrap_or(i32::MAX);
        let mut most = 0;
        for overlap in inputs.overlaps {
            let blocks = i32::try_from(overlap.blocks).unwrap_or(i32::MAX).min(length);
            fleet.knows(overlap.worker, blocks);
            most = most.max(blocks);
        }
        for overlap in inputs.stored {
            let blocks = i32::try_from(overlap.blocks).unwrap_or(i32::MAX).min(length);
            fleet.stores(overlap.worker, blocks);
        }
        predictions.find(inputs.prompt_blocks, |worker, epoch, shared| {
            if let Some(blocks) = fleet.predicted(worker, epoch) {
                *blocks = (*blocks).max(shared(*blocks));
                most = most.max(*blocks);
            }
        });
        take_booked(fleet, bookings, booked);
        let most = most.max(0) as u32;
        let known = contexts.find(inputs.prompt_blocks, most);
        contexts.each_warm(known.as_ref(), |worker, epoch, blocks| {
            fleet.warm(worker, epoch, blocks);
        });
        fleet.cost(&question(contexts, inputs, hints, known.as_ref(), self.weights));
        (known, most)
    }

    /// Makes all but the worker that the request belongs to dearer, or closes them.
    fn bind(&mut self, affinity: Affinity) {
        let (worker, more_ms) = match affinity {
            Affinity::None => return,
            Affinity::Soft { worker, worth_ms } => (worker, away_ms(worth_ms)),
            Affinity::Hard { worker } => (worker, f64::INFINITY),
        };
        for at in 0..self.fleet.len() {
            if self.fleet.id(at) != worker {
                self.fleet.costs_ms[at] += more_ms;
            }
        }
    }

    /// Closes those that were tried already, and those of other regions while there is another choice, unless a cost
    /// decides.
    fn leave_out(&mut self, inputs: &Inputs<'_>) {
        let fleet = &mut self.fleet;
        self.aside.clear();
        if !inputs.excluded.is_empty() {
            for at in 0..fleet.len() {
                if inputs.excluded.contains(&fleet.id(at)) {
                    fleet.costs_ms[at] = f64::INFINITY;
                }
            }
        }
        if inputs.region_penalty_ms.is_some() || !fleet.any_abroad {
            return;
        }
        let near = (0..fleet.len()).any(|at| fleet.open(at) && fleet.abroad[at] == 0.0);
        for at in (0..fleet.len()).filter(|_| near) {
            if fleet.abroad[at] > 0.0 && fleet.open(at) {
                self.aside.push((fleet.costs_ms[at], fleet.id(at), at));
                fleet.costs_ms[at] = f64::INFINITY;
            }
        }
        self.aside.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    }

    /// The chosen one, the cheapest others, then those that were set aside.
    fn named(
        &mut self,
        inputs: &Inputs<'_>,
        hints: &Hints,
        known: Option<&Known>,
        chosen: usize,
    ) -> Vec<CandidateCost> {
        let question = question(&self.contexts, inputs, hints, known, self.weights);
        let places = self.others.iter().chain(&self.aside).map(|(_, _, at)| *at);
        let places = core::iter::once(chosen).chain(places).take(CANDIDATES_MAX);
        let cost = |at: usize| {
            let (standing, there) = self.fleet.row(at);
            let mut terms = question.terms(standing, there);
            if let Affinity::Soft { worker, worth_ms } = hints.affinity
                && self.fleet.id(at) != worker
            {
                terms.away_ms = away_ms(worth_ms);
            }
            CandidateCost {
                worker: self.fleet.id(at),
                cost_ms: terms.total_ms(),
                terms,
                overlap_blocks: self.fleet.overlap_blocks(at),
                stored_blocks: self.fleet.stored_blocks(at),
                predicted: self.fleet.predicted_blocks[at] > self.fleet.known_blocks[at],
                abroad: self.fleet.abroad[at] > 0.0,
            }
        };
        places.map(cost).collect()
    }

    /// What was learned chooses among the candidates, where it may.
    fn draw(&self, inputs: &Inputs<'_>, candidates: &[CandidateCost]) -> Option<Draw> {
        if inputs.policy != Policy::KvLearned {
            return None;
        }
        let epoch_of = |worker| self.fleet.heard(worker).map_or(Epoch(0), |heard| heard.0);
        self.learner.draw(inputs.now_ms, candidates, epoch_of, inputs.random)
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
        let (worker, epoch, overlap) = (decision.worker, decision.epoch, decision.overlap_blocks);
        self.predictions.add(id, (worker, epoch), until_ms, prompt_blocks, overlap);
        let whose = (worker, epoch, decision.namespace);
        let known = decision.known.as_ref();
        let booking = Booking {
            worker,
            epoch,
            prefill_tokens: decision.uncached_tokens,
            made_ms: now_ms,
            until_ms,
            moved: self.contexts.sent(now_ms, whose, prompt_blocks, overlap, known),
            features: decision.candidates.first().map(Features::of),
        };
        self.bookings.add(id, booking);
        id
    }

    /// The request's first token has come: what is learned of its worker goes by this. A booking whose time is over
    /// has taught already that it takes long.
    pub fn first_token(&mut self, now_ms: u64, id: BookingId) {
        self.hears_first_tokens = true;
        // Its prompt is computed, and what the worker keeps of it is on its way to the index.
        self.predictions.end_by(id, now_ms.saturating_add(MEMORY_MS_MIN));
        let Some(booking) = self.bookings.get_mut(id) else { return };
        let Some(features) = booking.features.take() else { return };
        let took_ms = now_ms.saturating_sub(booking.made_ms) as f64;
        let whose = (booking.worker, booking.epoch);
        self.learner.observe(now_ms, whose, &features, took_ms);
    }

    /// The request is done: its load counts no more, its blocks may well be there.
    pub fn release(&mut self, id: BookingId) {
        self.bookings.release(id);
    }

    /// The request never got there, or was not computed: neither load nor blocks are to be expected, and its
    /// conversation is where it was before.
    pub fn cancel(&mut self, id: BookingId) {
        self.predictions.cancel(id);
        let moved = self.bookings.release(id).and_then(|booking| booking.moved);
        if let Some(moved) = moved {
            self.contexts.undo(&moved);
        }
    }

    /// The worker is gone: forgets all that was sent to it.
    pub fn forget_worker(&mut self, worker: WorkerId) {
        self.bookings.forget_worker(worker);
        self.learner.forget_worker(worker);
        self.clear_worker(worker);
    }

    /// The worker lives, but its cache was cleared: forgets what was expected to be there.
    pub fn clear_worker(&mut self, worker: WorkerId) {
        self.predictions.forget_worker(worker);
        self.contexts.forget_worker(worker);
        self.bookings.clear_worker(worker);
    }

    /// What was learned of workers, to be shared between routers.
    pub fn learner(&mut self) -> &mut Learner {
        &mut self.learner
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

/// Adds to each worker what is on its way there.
fn take_booked(fleet: &mut Fleet, bookings: &mut Bookings, booked: &mut Vec<(WorkerId, u32, u64)>) {
    booked.clear();
    bookings.each(
        |worker| fleet.heard(worker),
        |worker, requests, tokens| booked.push((worker, requests, tokens)),
    );
    for (worker, requests, tokens) in booked.drain(..) {
        fleet.booked(worker, requests, tokens);
    }
}

fn question(
    contexts: &Contexts,
    inputs: &Inputs<'_>,
    hints: &Hints,
    known: Option<&Known>,
    weights: Weights,
) -> Question {
    let expected = known.is_none().then(|| contexts.expected_blocks(hints.namespace));
    Question::new(inputs, hints, expected, weights)
}

/// Puts the preferred candidate first; answers how likely it was: to be named at all, and then to be preferred.
fn prefer(
    preferred: Option<Draw>,
    plain: Pick,
    named: Named,
    candidates: &mut [CandidateCost],
) -> f64 {
    match preferred.filter(|draw| draw.at < candidates.len()) {
        Some(draw) => {
            let chance = named.chance(plain, draw.at);
            candidates[..=draw.at].rotate_right(1);
            draw.propensity * chance
        }
        None => 1.0 / plain.of as f64,
    }
}

fn nobody(inputs: &Inputs<'_>, hints: &Hints) -> RouteError {
    let workers = inputs.workers.len();
    if workers == 0 {
        RouteError::NoWorkers
    } else if let Affinity::Hard { worker } = hints.affinity {
        RouteError::Unbound { worker }
    } else if inputs.workers.iter().all(|view| view.draining) {
        RouteError::AllDraining { workers }
    } else {
        RouteError::AllExcluded { workers }
    }
}

#[cfg(test)]
mod tests;
