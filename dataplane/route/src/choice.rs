//! Who is chosen of the workers whose costs are known, and who else is named in the answer.

use core::cmp::Ordering;

use mainstay_types::WorkerId;

use crate::decision::{CANDIDATES_MAX, CandidateCost, Note};
use crate::fleet::Fleet;
use crate::inputs::Policy;
use crate::learned::Dice;

/// Costs that are this close are equal.
pub(crate) const TIE_MS: f64 = 0.05;

/// One of several that were equally good.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pick {
    pub(crate) at: usize,
    pub(crate) of: u64,
}

/// Workers that are summed up by the cheapest of them.
const CHUNK: usize = 16;

/// The cheapest of each stretch of workers: most questions about costs look into a few stretches only.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ranks {
    least: Vec<f64>,
    sorted: Vec<f64>,
    /// Open workers.
    pub(crate) considered: usize,
}

impl Ranks {
    /// Takes the costs as they are now.
    pub(crate) fn take(&mut self, costs_ms: &[f64]) {
        self.least.clear();
        let mut considered = 0;
        for chunk in costs_ms.chunks(CHUNK) {
            let mut lanes = [f64::INFINITY; 4];
            let (fours, rest) = chunk.as_chunks::<4>();
            for four in fours {
                for (lane, cost) in lanes.iter_mut().zip(four) {
                    *lane = if *cost < *lane { *cost } else { *lane };
                }
            }
            let least = lanes.iter().chain(rest).copied().fold(f64::INFINITY, f64::min);
            considered += chunk.iter().filter(|cost| **cost < f64::INFINITY).count();
            self.least.push(least);
        }
        self.considered = considered;
    }

    fn least(&self) -> f64 {
        self.least.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The places of all that cost at most so much and are open.
    fn within<'a>(
        &'a self,
        costs_ms: &'a [f64],
        limit: f64,
    ) -> impl Iterator<Item = usize> + Clone + 'a {
        let chunks = costs_ms.chunks(CHUNK).zip(&self.least).enumerate();
        let good = chunks.filter(move |(_, (_, least))| **least <= limit);
        good.flat_map(move |(at, (chunk, _))| {
            let costs = chunk.iter().enumerate();
            let cheap = costs.filter(move |(_, cost)| **cost <= limit && **cost < f64::INFINITY);
            cheap.map(move |(place, _)| at * CHUNK + place)
        })
    }

    /// A cost that at least `count` workers do not exceed, if there are as many, and not many more.
    fn limit(&mut self, count: usize) -> f64 {
        if count >= self.least.len() {
            return f64::INFINITY;
        }
        self.sorted.clone_from(&self.least);
        *self.sorted.select_nth_unstable_by(count, f64::total_cmp).1
    }
}

/// One of those that `good` accepts, all equally likely.
fn any_of(places: impl Iterator<Item = usize> + Clone, random: u64) -> Option<Pick> {
    let of = places.clone().count() as u64;
    let turn = random.checked_rem(of)? as usize;
    let mut places = places;
    Some(Pick { at: places.nth(turn)?, of })
}

/// Chooses by a policy; `None` if no worker is open.
pub(crate) fn pick(
    fleet: &Fleet,
    ranks: &Ranks,
    policy: Policy,
    random: u64,
    last_turn: Option<WorkerId>,
) -> Option<Pick> {
    let open = (0..fleet.len()).filter(|at| fleet.open(*at));
    match policy {
        Policy::Kv | Policy::KvLearned => {
            let limit = ranks.least() + TIE_MS;
            any_of(ranks.within(&fleet.costs_ms, limit), random)
        }
        Policy::LeastLoaded => {
            let least = open.clone().map(|at| fleet.all_requests(at)).fold(f64::INFINITY, f64::min);
            any_of(open.filter(|at| fleet.all_requests(*at) <= least), random)
        }
        Policy::Random => any_of(open, random),
        Policy::RoundRobin => {
            let by_turn = |at: &usize| {
                let id = fleet.id(*at);
                // False sorts first: those after the last one, then from the beginning again.
                (last_turn.is_some_and(|last| id <= last), id)
            };
            open.min_by_key(by_turn).map(|at| Pick { at, of: 1 })
        }
    }
}

/// How the candidates beside the chosen one were found, where there were more equals than places.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named {
    /// Candidates that were named for sure.
    sure: usize,
    /// How likely each of the others was.
    others: f64,
}

impl Named {
    /// How likely the candidate at a place in the list was to be named, where the first is one of equals.
    pub(crate) fn chance(self, plain: Pick, at: usize) -> f64 {
        if plain.of > CANDIDATES_MAX as u64 {
            // All candidates are of these equals, and each as likely as the others.
            CANDIDATES_MAX as f64 / plain.of as f64
        } else if at <= self.sure {
            1.0
        } else {
            self.others
        }
    }
}

/// The cheapest but for the chosen one, cheapest first; of equals for the last places any.
pub(crate) fn cheapest(
    fleet: &Fleet,
    ranks: &mut Ranks,
    chosen: Pick,
    random: u64,
    found: &mut Vec<(f64, WorkerId, usize)>,
) -> Named {
    let even_ms = ranks.least() + TIE_MS;
    // The limit must not cut through those that are equal to the least.
    let limit = ranks.limit(CANDIDATES_MAX).max(even_ms);
    let cheap = ranks.within(&fleet.costs_ms, limit).filter(|at| *at != chosen.at);
    found.clear();
    found.extend(cheap.map(|at| (fleet.costs_ms[at], fleet.id(at), at)));
    let order = |a: &(f64, WorkerId, usize), b: &(f64, WorkerId, usize)| {
        a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
    };
    // With many equal ones there may be a thousand.
    let named = if found.len() >= CANDIDATES_MAX {
        // Not the number that broke the tie of the chosen one, or they would go together.
        thin(found, CANDIDATES_MAX - 1, even_ms, &mut Dice(!random))
    } else {
        Named { sure: found.len(), others: 1.0 }
    };
    found.sort_unstable_by(order);
    named
}

/// Leaves the cheapest `places`, and chance to decide among those that are equal at the edge. All costs up to
/// `even_ms` are equal.
fn thin(
    found: &mut Vec<(f64, WorkerId, usize)>,
    places: usize,
    even_ms: f64,
    dice: &mut Dice,
) -> Named {
    let level = |one: &(f64, WorkerId, usize)| one.0.max(even_ms);
    let (_, edge, _) =
        found.select_nth_unstable_by(places - 1, |a, b| level(a).total_cmp(&level(b)));
    let edge = level(edge);
    let (mut below, mut equal) = (0, 0);
    for at in 0..found.len() {
        match level(&found[at]).total_cmp(&edge) {
            Ordering::Less => {
                found.swap(below + equal, at);
                // The first of the equal ones moves to their end.
                found.swap(below, below + equal);
                below += 1;
            }
            Ordering::Equal => {
                found.swap(below + equal, at);
                equal += 1;
            }
            Ordering::Greater => {}
        }
    }
    let left = places - below;
    for slot in 0..left {
        let taken = slot + (dice.next() % (equal - slot) as u64) as usize;
        found.swap(below + slot, below + taken);
    }
    found.truncate(places);
    Named { sure: below, others: left as f64 / equal as f64 }
}

/// The open worker that holds the most of the prompt, the cheapest of several.
fn deepest(fleet: &Fleet) -> Option<usize> {
    let held = |at: usize| fleet.overlap_blocks(at);
    let open = (0..fleet.len()).filter(|at| fleet.open(*at));
    let most = open.clone().map(held).max()?;
    let costs = |a: &usize, b: &usize| fleet.costs_ms[*a].total_cmp(&fleet.costs_ms[*b]);
    open.filter(|at| held(*at) == most).min_by(costs)
}

/// Why `chosen` was, where nobody at all holds more than `most` blocks.
pub(crate) fn note(
    fleet: &Fleet,
    policy: Policy,
    considered: usize,
    most: u32,
    chosen: &CandidateCost,
) -> Note {
    let home = |at: usize| fleet.open(at) && fleet.abroad[at] == 0.0;
    if chosen.abroad && !(0..fleet.len()).any(home) {
        return Note::NoneInRegion;
    }
    if considered == 1 {
        return Note::OnlyCandidate;
    }
    if !matches!(policy, Policy::Kv | Policy::KvLearned) {
        return Note::Policy(policy);
    }
    let deeper = if most > chosen.overlap_blocks { deepest(fleet) } else { None };
    match deeper {
        Some(most) if fleet.overlap_blocks(most) > chosen.overlap_blocks => {
            Note::CheaperThanOverlap {
                worker: fleet.id(most),
                blocks: fleet.overlap_blocks(most),
                cost_ms: fleet.costs_ms[most],
            }
        }
        _ if chosen.overlap_blocks == 0 => Note::NoOverlap,
        _ => Note::BestOverlap { blocks: chosen.overlap_blocks },
    }
}
