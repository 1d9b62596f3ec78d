//! How a lookup's time grows: with the depth of a chain, with the workers that hold it, with the index's size.
//!
//! One thing changes at a time, the rest of the index stays as large as it was. Cold means that all caches were
//! emptied and each query goes to a chain of its own; the query's keys are made just before, as a request's are.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mainstay_index::{BlockIndex, BlockKey};
use mainstay_types::{Tier, WorkerId};
use serde_json::{Value, json};

use super::events::NAMESPACE;
use super::fill::{Family, Room, TURN_BLOCKS, empty, store, store_in_turns};
use super::limit::Limits;
use super::lookup::{BURST, Finder, Form};
use super::measure::{
    ColdWarm, Flush, Question, Stopwatch, cold_and_warm, elapsed_ns, percentile, ratio, round,
};
use super::rng::Rng;

/// Workers of the parts that do not vary them.
const WORKERS: u32 = 64;
const DEPTHS: [u32; 10] = [16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192];
const WORKER_COUNTS: [u32; 8] = [8, 16, 64, 256, 1_024, 2_048, 4_096, 8_192];
/// Chains of the part that varies workers, and their length.
const PREFIXES: u64 = 64;
const PREFIX_BLOCKS: u32 = 1_024;
/// Chains of the part that varies size, and on how many workers a replicated one lies.
const CHAIN_BLOCKS: u32 = 512;
const COPIES: u32 = 16;
const ENTRIES: [u64; 5] = [100_000, 1_000_000, 10_000_000, 30_000_000, 100_000_000];
/// After a flush a small index lies in memory too, so its misses are those of a buffer this many caches large.
const COLD_CACHES: u64 = 4;
/// Blocks of a fork off a chain.
const FORK_BLOCKS: u32 = 16;

/// How much to measure.
pub(super) struct Plan {
    pub(super) budget: Duration,
    pub(super) seed: u64,
    /// Blocks of the part that varies depth.
    pub(super) depth_blocks: u64,
    /// The largest size.
    pub(super) entries_max: u64,
}

/// Queries for whole chains of one family.
struct Chains {
    finder: Finder,
    family: Family,
    depth: u32,
}

impl Question for Chains {
    fn ask(&self, number: u64, keys: &mut Vec<BlockKey>) {
        self.family.keys(number, self.depth, keys);
    }

    fn find(&mut self, keys: &[BlockKey]) -> usize {
        self.finder.find(keys)
    }
}

/// One growth run: the flush buffer and the random numbers are shared by all of its points.
pub(super) struct Growth<'a> {
    plan: Plan,
    flush: Flush,
    rng: Rng,
    limits: &'a mut Limits,
}

impl<'a> Growth<'a> {
    pub(super) fn new(plan: Plan, limits: &'a mut Limits) -> Self {
        let (flush, rng) = (Flush::new(super::machine::l3_bytes()), Rng::new(plan.seed));
        Self { plan, flush, rng, limits }
    }

    /// All of it, one member for each thing that grows.
    pub(super) fn run(&mut self) -> Result<Value> {
        let depth = self.depth(false)?;
        let depth_branched = self.depth(true)?;
        let [workers, workers_groups, workers_one_word] = self.workers()?;
        let entries = self.entries(1)?;
        let entries_replicated = self.entries(COPIES)?;
        Ok(json!({
            "depth": depth, "depth_branched": depth_branched,
            "workers": workers, "workers_groups": workers_groups,
            "workers_one_word": workers_one_word,
            "entries": entries, "entries_replicated": entries_replicated,
        }))
    }

    fn ask(
        &mut self,
        index: &BlockIndex,
        form: Form,
        family: Family,
        depth: u32,
        count: u64,
    ) -> ColdWarm {
        let mut question = Chains { finder: Finder::new(index.reader(), form), family, depth };
        cold_and_warm(&mut question, count, &self.flush, self.plan.budget, &mut self.rng)
    }

    /// What a lookup costs in a burst that starts cold.
    fn cold_burst_ns(&mut self, index: &BlockIndex, family: Family, count: u64) -> f64 {
        let mut finder = Finder::new(index.reader(), Form::Burst);
        let mut queries = vec![Vec::new(); BURST];
        let (mut samples, started) = (Vec::new(), Instant::now());
        while samples.len() < 16 || started.elapsed() < self.plan.budget / 2 {
            self.flush.run();
            for keys in &mut queries {
                family.keys(self.rng.below(count), CHAIN_BLOCKS, keys);
            }
            // One of another burst brings code and stack back.
            finder.find(&queries[0][..1]);
            family.keys(self.rng.below(count), CHAIN_BLOCKS, &mut queries[0]);
            let prefixes: Vec<&[BlockKey]> = queries.iter().map(Vec::as_slice).collect();
            let start = Instant::now();
            black_box(finder.find_burst(black_box(&prefixes)));
            samples.push(elapsed_ns(start));
        }
        f64::from(percentile(&mut samples, 0.5)) / BURST as f64
    }

    /// A number of chains of growing length, beside others that are always the same and many more, so that the
    /// index stays as large. Branched, other workers hold each chain up to one of its turns and go their own way
    /// from there.
    fn depth(&mut self, branched: bool) -> Result<Vec<Value>> {
        let family = Family { salt: self.plan.seed ^ 0xdee9 };
        let rest = Family { salt: family.salt ^ 1 };
        let deepest = u64::from(DEPTHS[DEPTHS.len() - 1]);
        let count = (self.plan.depth_blocks / deepest).max(64);
        let mut rows = Vec::new();
        for depth in DEPTHS {
            super::say(&format!("growth: depth {depth}, branched: {branched}"));
            let (mut index, mut keys, mut others) = (empty(), Vec::new(), 0);
            fill_up(&mut index, rest, 1, self.plan.depth_blocks, &mut others, Room::now())?;
            for number in 0..count {
                family.keys(number, depth, &mut keys);
                let worker = (number % u64::from(WORKERS)) as u32;
                store_in_turns(&mut index, worker, &keys);
                if branched {
                    fork(&mut index, worker, &keys, number)?;
                }
            }
            let times = self.ask(&index, Form::List, family, depth, count);
            rows.push(row(u64::from(depth), &times));
        }
        Ok(rows)
    }

    /// Prefixes that more and more workers hold: as a list, as groups, and where only one word's worth holds them.
    fn workers(&mut self) -> Result<[Vec<Value>; 3]> {
        let family = Family { salt: self.plan.seed ^ 0x3042 };
        let (mut lists, mut groups, mut one_word) = (Vec::new(), Vec::new(), Vec::new());
        for workers in WORKER_COUNTS {
            super::say(&format!("growth: {workers} workers"));
            let index = held_by(workers, workers, family)?;
            let x = u64::from(workers);
            for (form, rows) in [(Form::List, &mut lists), (Form::Groups, &mut groups)] {
                rows.push(row(x, &self.ask(&index, form, family, PREFIX_BLOCKS, PREFIXES)));
            }
            let index = held_by(workers, workers.min(64), family)?;
            one_word.push(row(x, &self.ask(&index, Form::List, family, PREFIX_BLOCKS, PREFIXES)));
        }
        Ok([lists, groups, one_word])
    }

    /// One index that gets larger, each chain held by `copies` workers.
    fn entries(&mut self, copies: u32) -> Result<Vec<Value>> {
        let family = Family { salt: self.plan.seed ^ 0xe471_0000 ^ u64::from(copies) };
        let (room, mut index, mut chains) = (Room::now(), empty(), 0u64);
        let mut rows = Vec::new();
        let most = self.plan.entries_max;
        for target in ENTRIES.into_iter().filter(|target| *target <= most) {
            super::say(&format!("growth: {target} entries, {copies} copies"));
            let (before, watch) = (index.held_count(), Stopwatch::start());
            let filled = fill_up(&mut index, family, copies, target, &mut chains, room)?;
            let spent = watch.read();
            let stored = (index.held_count() - before) as f64;
            if stored < 1.0 {
                break;
            }
            let times = self.ask(&index, Form::List, family, CHAIN_BLOCKS, chains);
            let cold_burst_ns = self.cold_burst_ns(&index, family, chains);
            let bytes = index.memory().total();
            let misses = self.limits.at(bytes);
            let cold = self.limits.at(bytes.max(COLD_CACHES * super::machine::l3_bytes()));
            let mut row = row(index.held_count(), &times);
            row["cold_burst_ns_per_lookup"] = round(cold_burst_ns);
            row["blocks"] = json!(index.block_count());
            row["index_bytes"] = json!(bytes);
            row["store_cpu_ns_per_entry"] = round(ratio(spent.cpu_ns, stored));
            row["longest_store_us"] = round(f64::from(filled.longest_ns) / 1_000.0);
            row["dependent_miss_ns"] = round(misses.dependent_ns);
            row["independent_miss_ns"] = round(misses.independent_ns);
            row["cold_miss_ns"] = round(cold.dependent_ns);
            row["cold_misses"] = round(ratio(times.cold_ns, cold.dependent_ns));
            rows.push(row);
            if !filled.is_whole {
                super::say("growth: free memory ends here");
                break;
            }
        }
        Ok(rows)
    }
}

fn row(x: u64, times: &ColdWarm) -> Value {
    json!({
        "x": x, "cold_ns": round(times.cold_ns), "cold_p99_ns": round(times.cold_p99_ns),
        "warm_ns": round(times.warm_ns),
    })
}

/// Other workers hold the chain up to the end of each turn and store blocks of their own behind it.
fn fork(index: &mut BlockIndex, owner: u32, keys: &[BlockKey], number: u64) -> Result<()> {
    let mut branch = Vec::new();
    for (turn, end) in (TURN_BLOCKS..=keys.len() as u32).step_by(TURN_BLOCKS as usize).enumerate() {
        let worker = WorkerId((owner + 1 + turn as u32 % (WORKERS - 1)) % WORKERS);
        let tail = keys[end as usize - 1].0;
        index
            .hold(worker, tail, end, Tier::Device)
            .ok()
            .context("a chain just stored is unknown")?;
        Family { salt: tail }.keys(number, FORK_BLOCKS, &mut branch);
        index.store(worker, NAMESPACE, tail, &branch, Tier::Device);
    }
    Ok(())
}

/// An index of `workers` workers of which the first `holders` hold all prefixes.
fn held_by(workers: u32, holders: u32, family: Family) -> Result<BlockIndex> {
    let (mut index, mut keys) = (empty(), Vec::new());
    let own = Family { salt: family.salt ^ 1 };
    for worker in 0..workers {
        // Something of its own gives each worker its slot, in order.
        own.keys(u64::from(worker), FORK_BLOCKS, &mut keys);
        store(&mut index, worker, &keys);
    }
    for number in 0..PREFIXES {
        family.keys(number, PREFIX_BLOCKS, &mut keys);
        store(&mut index, 0, &keys);
        let tail = keys.last().map_or(0, |key| key.0);
        for worker in 1..holders {
            index
                .hold(WorkerId(worker), tail, PREFIX_BLOCKS, Tier::Device)
                .ok()
                .context("a prefix just stored is unknown")?;
        }
    }
    Ok(index)
}

/// What filling came to.
pub(super) struct Filled {
    /// Whether memory sufficed.
    is_whole: bool,
    /// The longest that one chain's store took, which is what a writer's stall shows in.
    longest_ns: u32,
}

/// Stores chains until the index holds `target` entries or memory ends.
pub(super) fn fill_up(
    index: &mut BlockIndex,
    family: Family,
    copies: u32,
    target: u64,
    chains: &mut u64,
    room: Room,
) -> Result<Filled> {
    let (mut keys, mut longest_ns) = (Vec::new(), 0);
    while index.held_count() < target {
        if (*chains).is_multiple_of(256) && !room.holds(index) {
            return Ok(Filled { is_whole: false, longest_ns });
        }
        family.keys(*chains, CHAIN_BLOCKS, &mut keys);
        let worker = |copy: u32| ((*chains + u64::from(copy)) % u64::from(WORKERS)) as u32;
        let start = Instant::now();
        store(index, worker(0), &keys);
        longest_ns = longest_ns.max(elapsed_ns(start));
        let tail = keys.last().map_or(0, |key| key.0);
        for copy in 1..copies {
            index
                .hold(WorkerId(worker(copy)), tail, CHAIN_BLOCKS, Tier::Device)
                .ok()
                .context("a chain just stored is unknown")?;
        }
        *chains += 1;
    }
    Ok(Filled { is_whole: true, longest_ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filling_reaches_its_target_with_its_copies() {
        let (mut index, mut chains, mut keys) = (empty(), 0, Vec::new());
        let family = Family { salt: 3 };
        assert!(fill_up(&mut index, family, 4, 10_000, &mut chains, Room::now()).unwrap().is_whole);
        assert_eq!(index.held_count(), chains * 4 * u64::from(CHAIN_BLOCKS));
        assert!((10_000..12_100).contains(&index.held_count()));
        family.keys(chains - 1, CHAIN_BLOCKS, &mut keys);
        let found = index.lookup(&keys);
        assert!(found.len() == 4 && found.iter().all(|o| o.blocks == CHAIN_BLOCKS));
    }

    #[test]
    fn forks_leave_each_worker_its_own_depth() {
        let (mut index, mut keys) = (empty(), Vec::new());
        Family { salt: 8 }.keys(0, 5 * TURN_BLOCKS + 7, &mut keys);
        store_in_turns(&mut index, 3, &keys);
        fork(&mut index, 3, &keys, 0).unwrap();
        let mut depths: Vec<u32> = index.lookup(&keys).iter().map(|o| o.blocks).collect();
        depths.sort_unstable();
        assert_eq!(depths, [48, 96, 144, 192, 240, 247]);
    }

    #[test]
    fn prefixes_lie_on_as_many_workers_as_said() {
        let family = Family { salt: 2 };
        let index = held_by(100, 64, family).unwrap();
        let mut keys = Vec::new();
        family.keys(PREFIXES - 1, PREFIX_BLOCKS, &mut keys);
        assert_eq!(index.lookup(&keys).len(), 64);
        assert_eq!(index.workers().count(), 100);
    }
}
