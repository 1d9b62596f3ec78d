//! Blocks by worker, tier, copies and pins: a walk over the whole index, for people and not for requests.
//!
//! A walk keeps the frames of workers waiting, so there is one at a time, at most every few seconds, and none over a
//! large index; what it found is shared by all who look. The index knows namespaces and no tenants: a caller sees the
//! runs of those namespaces that are its own, and sums of all others.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_chat::{ApiError, ErrorKind};
use mainstay_index::RunSnapshot;
use mainstay_state::Machine;
use mainstay_types::{BlockHashKey, NamespaceId, TenantId, Tier, WorkerId};
use serde_json::{Value, json};

use super::App;
use crate::prompt::namespace_of;

/// A larger index is not walked: half a million entries take tens of milliseconds.
pub(in crate::http) const ENTRIES_MAX: u64 = 1 << 19;
/// Between two walks.
const PACE: Duration = Duration::from_secs(5);
/// Stretches and blocks in one worker's map.
const STRETCHES_MAX: usize = 20_000;
const BLOCKS_MAX: u64 = 131_072;

/// Blocks of one worker in one tier, each in exactly one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    /// A live pin names them.
    pub(super) pinned: u64,
    /// No pin does, and no other worker has them.
    pub(super) sole: u64,
    /// No pin does, and others have them, too.
    pub(super) shared: u64,
}

/// Counts by [`Tier::ALL`].
pub(super) type Tiers = [Counts; 4];

/// What a walk found. The last one is kept: some tens of bytes for each of at most [`ENTRIES_MAX`] entries.
pub(super) struct Census {
    at: Instant,
    /// `None` for an index that is too large.
    found: Option<Found>,
}

struct Found {
    workers: HashMap<WorkerId, Tiers>,
    runs: Vec<RunSnapshot>,
    pinned: HashSet<u64>,
}

impl Census {
    /// The worker's blocks by tier and class; zeros for one without, `None` if nobody counted.
    pub(super) fn of(&self, worker: WorkerId) -> Option<Tiers> {
        let found = self.found.as_ref()?;
        Some(found.workers.get(&worker).copied().unwrap_or_default())
    }
}

/// The census, a fresh one if the last is old and nobody else is at it. Blocks its thread.
pub(super) fn census(app: &App) -> Arc<Census> {
    let mut kept = app.console.census.lock();
    if let Some(census) = kept.as_ref().filter(|census| census.at.elapsed() < PACE) {
        return Arc::clone(census);
    }
    let found = app.replica.runs(ENTRIES_MAX).map(|runs| {
        let pinned = app.replica.read(pinned_keys);
        count(runs, pinned)
    });
    let census = Arc::new(Census { at: Instant::now(), found });
    *kept = Some(Arc::clone(&census));
    census
}

/// Looks at the runs of the last walk; `None` for an index that is too large. Blocks its thread.
pub(in crate::http) fn with_runs<T>(
    app: &App,
    look: impl FnOnce(&[RunSnapshot]) -> T,
) -> Option<T> {
    census(app).found.as_ref().map(|found| look(&found.runs))
}

/// The keys of all blocks that live pins name, up to as many as an index may have to be walked.
fn pinned_keys(machine: &Machine) -> HashSet<u64> {
    let live = machine.pins().filter(|pin| pin.is_live());
    let blocks = live.flat_map(|pin| pin.request.blocks.iter());
    // A key is the low half of a hash.
    blocks.take(ENTRIES_MAX as usize).map(|hash| hash.0 as u64).collect()
}

fn count(runs: Vec<RunSnapshot>, pinned: HashSet<u64>) -> Found {
    let mut workers: HashMap<WorkerId, Tiers> = HashMap::new();
    for run in &runs {
        let copies = copies(run);
        for (worker, stretches) in &run.holders {
            let tiers = workers.entry(*worker).or_default();
            for stretch in stretches {
                let blocks = stretch.from as usize..stretch.to as usize;
                for (key, copies) in run.keys[blocks.clone()].iter().zip(&copies[blocks]) {
                    let is_pinned = pinned.contains(&key.0);
                    for tier in stretch.tiers.iter() {
                        let counts = &mut tiers[tier.number() as usize];
                        match (is_pinned, *copies) {
                            (true, _) => counts.pinned += 1,
                            (false, 1) => counts.sole += 1,
                            (false, _) => counts.shared += 1,
                        }
                    }
                }
            }
        }
    }
    Found { workers, runs, pinned }
}

/// How many workers hold each block of a run.
fn copies(run: &RunSnapshot) -> Vec<u32> {
    let mut copies = vec![0; run.keys.len()];
    for stretch in run.holders.iter().flat_map(|(_, stretches)| stretches) {
        for count in &mut copies[stretch.from as usize..stretch.to as usize] {
            *count += 1;
        }
    }
    copies
}

/// Counts as JSON, tiers that hold nothing left out.
pub(super) fn tiers_json(tiers: Tiers) -> Value {
    let held = Tier::ALL.into_iter().zip(tiers).filter(|(_, c)| *c != Counts::default());
    held.map(|(tier, c)| {
        json!({"tier": tier.name(), "pinned": c.pinned, "sole": c.sole, "shared": c.shared})
    })
    .collect()
}

/// Blocks of equal kind that follow each other in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    blocks: u64,
    /// Bits by the numbers of tiers.
    tiers: u8,
    copies: u32,
    pinned: bool,
}

impl Piece {
    fn json(&self) -> Value {
        json!([self.blocks, self.tiers, self.copies, u8::from(self.pinned)])
    }
}

/// What one worker holds of a run, piece by piece.
fn pieces(run: &RunSnapshot, worker: WorkerId, pinned: &HashSet<u64>) -> Vec<Piece> {
    let Some((_, stretches)) = run.holders.iter().find(|(id, _)| *id == worker) else {
        return Vec::new();
    };
    let copies = copies(run);
    let mut pieces: Vec<Piece> = Vec::new();
    for stretch in stretches {
        let blocks = stretch.from as usize..stretch.to as usize;
        let tiers = stretch.tiers.iter().fold(0, |bits, tier| bits | 1 << tier.number());
        for (key, copies) in run.keys[blocks.clone()].iter().zip(&copies[blocks]) {
            let pinned = pinned.contains(&key.0);
            let one = Piece { blocks: 1, tiers, copies: *copies, pinned };
            match pieces.last_mut() {
                Some(last) if (Piece { blocks: 1, ..*last }) == one => last.blocks += 1,
                _ => pieces.push(one),
            }
        }
    }
    pieces
}

/// The blocks of one worker: the caller's runs one by one, all others as sums. Blocks its thread.
pub(super) fn map(app: &App, tenant: &TenantId, worker: WorkerId) -> Result<Value, ApiError> {
    let census = census(app);
    let Some(found) = &census.found else {
        let text =
            format!("the index has more than {ENTRIES_MAX} entries, too many to show one by one");
        return Err(ApiError::new(ErrorKind::Unavailable, text));
    };
    let own = own_namespaces(app, tenant);
    let name = app.replica.read(|m| m.worker(worker).map(|w| w.name.clone()));
    Ok(map_json(found, &own, worker, name.as_deref()))
}

fn map_json(
    found: &Found,
    own: &HashSet<NamespaceId>,
    worker: WorkerId,
    name: Option<&str>,
) -> Value {
    let (mut runs, mut others) = (Vec::new(), HashMap::<(u8, bool, bool), u64>::new());
    let (mut stretches, mut shown, mut left_out) = (0, 0, 0);
    for run in &found.runs {
        let pieces = pieces(run, worker, &found.pinned);
        let blocks: u64 = pieces.iter().map(|p| p.blocks).sum();
        if blocks == 0 {
            continue;
        }
        if !own.contains(&run.namespace) {
            for p in pieces {
                *others.entry((p.tiers, p.copies > 1, p.pinned)).or_default() += p.blocks;
            }
        } else if stretches + pieces.len() > STRETCHES_MAX || shown + blocks > BLOCKS_MAX {
            left_out += blocks;
        } else {
            (stretches, shown) = (stretches + pieces.len(), shown + blocks);
            runs.push(pieces);
        }
    }
    // The longest first: what a prefix tree's trunk is.
    runs.sort_by_key(|pieces| std::cmp::Reverse(pieces.iter().map(|p| p.blocks).sum::<u64>()));
    let mut others: Vec<_> = others.into_iter().collect();
    others.sort_unstable();
    let runs_json: Vec<Vec<Value>> =
        runs.iter().map(|pieces| pieces.iter().map(Piece::json).collect()).collect();
    let others_json: Vec<Value> = others
        .iter()
        .map(|((tiers, shared, pinned), blocks)| {
            let copies = if *shared { 2 } else { 1 };
            Piece { blocks: *blocks, tiers: *tiers, copies, pinned: *pinned }.json()
        })
        .collect();
    json!({
        "object": "console.blocks", "worker": worker.0, "name": name,
        "blocks": shown, "left_out": left_out, "runs": runs_json, "others": others_json,
    })
}

/// Where the caller's prompts are cached, those under a salt of its own excepted.
pub(in crate::http) fn own_namespaces(app: &App, tenant: &TenantId) -> HashSet<NamespaceId> {
    let Some(key) = app.replica.read(Machine::hash_key) else { return HashSet::new() };
    let key = BlockHashKey::new(key);
    let names = app.workers.model_names();
    let cards = names.iter().filter_map(|name| app.workers.model(name));
    cards.map(|card| namespace_of(&key, tenant, &card, "")).collect()
}

#[cfg(test)]
mod tests {
    use mainstay_index::{BlockKey, HeldStretch, TierSet};

    use super::*;

    fn run(namespace: u128, first: u64, holders: &[(u32, u32, u32, Tier)]) -> RunSnapshot {
        let stretch = |(worker, from, to, tier): &(u32, u32, u32, Tier)| {
            let tiers = TierSet::only(*tier);
            (WorkerId(*worker), vec![HeldStretch { from: *from, to: *to, tiers }])
        };
        RunSnapshot {
            namespace: NamespaceId(namespace),
            parent: 0,
            keys: (first..first + 4).map(BlockKey).collect(),
            holders: holders.iter().map(stretch).collect(),
        }
    }

    fn found() -> Found {
        let runs = vec![
            run(1, 10, &[(1, 0, 4, Tier::Device), (2, 0, 2, Tier::Device)]),
            run(2, 20, &[(1, 1, 4, Tier::Host)]),
        ];
        count(runs, HashSet::from([10, 21]))
    }

    #[test]
    fn every_block_is_counted_once_in_its_tier() {
        let found = found();
        let of = |worker| found.workers[&WorkerId(worker)];
        assert_eq!(of(1)[0], Counts { pinned: 1, sole: 2, shared: 1 });
        assert_eq!(of(1)[1], Counts { pinned: 1, sole: 2, shared: 0 });
        assert_eq!(of(2)[0], Counts { pinned: 1, sole: 0, shared: 1 });
        assert_eq!(tiers_json(of(2)).as_array().map(Vec::len), Some(1), "empty tiers are left out");
    }

    #[test]
    fn a_caller_sees_its_own_runs_and_sums_of_all_others() {
        let found = found();
        let own = HashSet::from([NamespaceId(1)]);
        let map = map_json(&found, &own, WorkerId(1), Some("w1"));
        // One pinned block on two workers, one shared, two alone: in order.
        assert_eq!(map["runs"], json!([[[1, 1, 2, 1], [1, 1, 2, 0], [2, 1, 1, 0]]]));
        assert_eq!(map["others"], json!([[2, 2, 1, 0], [1, 2, 1, 1]]));
        assert_eq!((&map["blocks"], &map["left_out"]), (&json!(4), &json!(0)));
        let nobody = map_json(&found, &HashSet::new(), WorkerId(1), None);
        assert_eq!(nobody["runs"], json!([]));
        assert!(!nobody.to_string().contains("\"keys\""), "keys are nobody's business");
    }

    #[test]
    fn a_map_is_bounded() {
        let long = |n: u64| RunSnapshot {
            namespace: NamespaceId(1),
            parent: 0,
            keys: (n * 100_000..(n + 1) * 100_000).map(BlockKey).collect(),
            holders: vec![(
                WorkerId(1),
                vec![HeldStretch { from: 0, to: 100_000, tiers: TierSet::only(Tier::Device) }],
            )],
        };
        let found = count(vec![long(0), long(1)], HashSet::new());
        let map = map_json(&found, &HashSet::from([NamespaceId(1)]), WorkerId(1), None);
        assert_eq!((&map["blocks"], &map["left_out"]), (&json!(100_000), &json!(100_000)));
    }
}
