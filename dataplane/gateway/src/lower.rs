//! What workers hold of a prompt, and what they would have to bring in from their lower tiers first.
//!
//! The index says in which tier blocks lie, a worker's load what a token from there takes. Nothing but the engine's own
//! memory counts as held: what lies lower costs its way up, and counts no further than where that way is shorter than
//! computing. A worker that says nothing of its tiers, as one of an older program, has them count as nothing.

use mainstay_index::{IndexReader, Overlap, TierOverlap};
use mainstay_proto::v1;
use mainstay_route::{Fetch, PREFILL_US_PER_TOKEN_DEFAULT, WorkerView};
use mainstay_types::{SequenceHash, Tier, WorkerId};

/// Of computing a token, until a worker has measured: more than was seen of disks and host memory, and less than is taken
/// for another worker's blocks, which come out of the same tiers and over the network besides.
const SHARE_UNMEASURED: f32 = 0.2;
/// A worker that has measured so few loads is believed by half.
const LOADS_HALF: f32 = 1.0;

/// Who holds what of a prompt.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// In any tier: what can be given to others, too.
    pub(crate) all: Vec<Overlap>,
    /// In the engine's memory. Not set while nobody says that there is anything below it.
    near: Vec<Overlap>,
    /// With what comes in from lower tiers sooner than it is computed.
    stored: Vec<Overlap>,
    /// Whether anybody has lower tiers.
    tiered: bool,
}

/// What is known of a worker's tiers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lower {
    has_tiers: bool,
    host: (f32, u32),
    disk: (f32, u32),
}

impl From<&v1::Load> for Lower {
    fn from(load: &v1::Load) -> Self {
        Self {
            has_tiers: load.has_tiers,
            host: (load.host_us_per_token, load.host_loads),
            disk: (load.disk_us_per_token, load.disk_loads),
        }
    }
}

impl Lower {
    /// What a token from a tier takes, where computing it takes so long.
    fn us_per_token(&self, tier: Tier, prefill_us: f32) -> f32 {
        let usual = SHARE_UNMEASURED * prefill_us;
        let (measured, loads) = if tier == Tier::Host { self.host } else { self.disk };
        // What is no pace was not measured.
        if loads == 0 || !measured.is_finite() || measured <= 0.0 {
            return usual;
        }
        let loads = loads as f32;
        (usual * LOADS_HALF + measured * loads) / (LOADS_HALF + loads)
    }

    /// How many leading blocks a worker would have once it has brought in what is quicker to bring than to compute, and
    /// what a token of those takes.
    fn price(&self, blocks: [u32; 4], prefill_us: f32) -> Option<(u32, f32)> {
        let [device, host, disk, _] = blocks;
        let (mut reach, mut us) = (device, 0.0);
        for (tier, depth) in [(Tier::Host, host), (Tier::Disk, disk)] {
            let us_per_token = self.us_per_token(tier, prefill_us);
            if depth <= reach {
                continue;
            }
            if us_per_token >= prefill_us {
                break;
            }
            us += us_per_token * (depth - reach) as f32;
            reach = depth;
        }
        (reach > device).then(|| (reach, us / (reach - device) as f32))
    }
}

/// What computing a token takes where that was measured.
fn measured(view: &WorkerView) -> Option<f32> {
    Some(view.load.prefill_us_per_token).filter(|us| us.is_finite() && *us > 0.0)
}

/// And at a worker that has not: as at the quickest.
fn quickest(workers: &[WorkerView]) -> f32 {
    let quickest = workers.iter().filter_map(measured).fold(f32::INFINITY, f32::min);
    if quickest.is_finite() { quickest } else { PREFILL_US_PER_TOKEN_DEFAULT as f32 }
}

impl Held {
    /// Looks a prompt up. `workers` are in order of their numbers, `lower` tells of the tiers of each, and they get the
    /// pace at which they would load what they lack.
    pub(crate) fn find(
        reader: &IndexReader,
        prompt: &[SequenceHash],
        workers: &mut [WorkerView],
        lower: &[Lower],
    ) -> Self {
        let tiered = lower.iter().any(|below| below.has_tiers);
        let mut held = Self { tiered, ..Self::default() };
        // A walk for each tier costs more than one for all.
        if !tiered {
            reader.lookup_into(prompt, &mut held.all);
            return held;
        }
        let quickest = quickest(workers);
        for (view, below) in workers.iter_mut().zip(lower).filter(|(_, below)| below.has_tiers) {
            // What others have to go for is loaded again from the nearest tier.
            let prefill_us = measured(view).unwrap_or(quickest);
            view.load.load_us_per_token = below.us_per_token(Tier::Host, prefill_us);
        }
        let mut tiers = Vec::new();
        reader.tiers_into(prompt, &mut tiers);
        for overlap in tiers {
            held.take(&overlap, workers, lower, quickest);
        }
        held
    }

    fn take(
        &mut self,
        overlap: &TierOverlap,
        workers: &mut [WorkerView],
        lower: &[Lower],
        quickest: f32,
    ) {
        let TierOverlap { worker, blocks } = *overlap;
        let [device, .., all] = blocks;
        self.all.push(Overlap { worker, blocks: all });
        self.near.push(Overlap { worker, blocks: device });
        let place = workers.binary_search_by_key(&worker, |view| view.id);
        let Some(at) = place.ok().filter(|_| all > device) else { return };
        let prefill_us = measured(&workers[at]).unwrap_or(quickest);
        let below = lower.get(at).filter(|below| below.has_tiers);
        if let Some((reach, us)) = below.and_then(|below| below.price(blocks, prefill_us)) {
            workers[at].load.load_us_per_token = us;
            self.stored.push(Overlap { worker, blocks: reach });
        }
    }

    /// What counts as there.
    pub(crate) fn near(&self) -> &[Overlap] {
        if self.tiered { &self.near } else { &self.all }
    }

    /// The same with what would come in from lower tiers, of those that have any of it there.
    pub(crate) fn stored(&self) -> &[Overlap] {
        &self.stored
    }

    /// The price of what a worker gives to others, where a token of its engine's takes so long: what lies lower has to be
    /// read there first.
    pub(crate) fn fetch(&self, fetch: Fetch, from: WorkerId, workers: &[WorkerView]) -> Fetch {
        let near = self.near().iter().find(|o| o.worker == from).map_or(0, |o| o.blocks);
        let place = workers.binary_search_by_key(&from, |view| view.id);
        let us = place.map_or(0.0, |at| workers[at].load.load_us_per_token);
        let share = fetch.blocks.saturating_sub(near) as f32 / fetch.blocks.max(1) as f32;
        Fetch { us_per_token: fetch.us_per_token + us * share, ..fetch }
    }
}

#[cfg(test)]
mod tests;
