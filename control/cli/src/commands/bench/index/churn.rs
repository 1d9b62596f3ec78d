//! A billion block operations on one index: does its memory come back to where it was?
//!
//! The stream is the index's own soak generator: sessions that grow, fork, compact and move, evictions, holes,
//! restarts. Memory is read at every hundredth; the level after the first tenth is what the end is held against,
//! because by then all caches are full (in less than a hundred times their size of operations they are not). What making the stream costs is measured first and given beside.

use anyhow::{Result, ensure};
use mainstay_index::churn::{Churn, ChurnConfig, ChurnOp};
use mainstay_index::{BlockIndex, BlockKey, EventRef};
use mainstay_types::{NamespaceId, Tier, WorkerId};
use serde_json::{Value, json};

use super::fill::empty;
use super::machine::resident_bytes;
use super::measure::{Stopwatch, ratio, round};

const SAMPLES: u64 = 100;
/// Samples that make a level.
const LEVEL_SAMPLES: usize = 5;
/// Events that are looked ahead at.
const BATCH: usize = 32;
/// Block operations over which the generator alone is timed.
const DRY_OPS: u64 = 4_000_000;

/// How much churn.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) block_ops: u64,
    pub(super) workers: u32,
    pub(super) worker_blocks: u32,
    pub(super) seed: u64,
}

impl Plan {
    fn stream(self) -> Churn {
        Churn::new(ChurnConfig {
            seed: self.seed,
            workers: self.workers,
            worker_blocks_max: self.worker_blocks,
            ..ChurnConfig::default()
        })
    }
}

/// An event that waits in a batch; its blocks lie in the batch's list up to `end`.
enum Change {
    Stored { namespace: NamespaceId, parent: u64 },
    Removed,
    Cleared,
}

#[derive(Default)]
struct Batch {
    events: Vec<(WorkerId, Change, usize)>,
    blocks: Vec<BlockKey>,
}

impl Batch {
    fn fill(&mut self, stream: &mut Churn) {
        self.events.clear();
        self.blocks.clear();
        while self.events.len() < BATCH {
            let (worker, change, named) = match stream.next_op() {
                ChurnOp::Stored { worker, namespace, parent, blocks } => {
                    (worker, Change::Stored { namespace, parent }, blocks)
                }
                ChurnOp::Removed { worker, blocks } => (worker, Change::Removed, blocks),
                ChurnOp::Cleared { worker } => (worker, Change::Cleared, &[][..]),
            };
            self.blocks.extend_from_slice(named);
            self.events.push((worker, change, self.blocks.len()));
        }
    }

    /// Applies everything; answers how many entries came or went.
    fn apply(&self, index: &mut BlockIndex) -> u64 {
        let (mut changed, mut from) = (0, 0);
        let mut round = Vec::with_capacity(BATCH);
        for (worker, change, end) in &self.events {
            let (worker, blocks, tier) = (*worker, &self.blocks[from..*end], Tier::Device);
            from = *end;
            match *change {
                Change::Stored { namespace, parent } => {
                    round.push(EventRef::Store { worker, namespace, parent, blocks, tier });
                }
                Change::Removed => round.push(EventRef::Remove { worker, blocks, tier }),
                Change::Cleared => {
                    changed += flush(index, &mut round) + index.remove_worker(worker);
                }
            }
        }
        changed + flush(index, &mut round)
    }
}

/// Applies what has gathered.
fn flush(index: &mut BlockIndex, round: &mut Vec<EventRef<'_, BlockKey>>) -> u64 {
    let applied = index.apply_batch(round);
    round.clear();
    applied.added + applied.removed
}

/// CPU time of making the stream, per block named.
fn generator_ns(plan: Plan) -> f64 {
    let (mut stream, mut batch, mut named) = (plan.stream(), Batch::default(), 0);
    let watch = Stopwatch::start();
    while named < DRY_OPS {
        batch.fill(&mut stream);
        named += batch.blocks.len() as u64;
    }
    ratio(watch.read().cpu_ns, named as f64)
}

/// Runs the stream and samples memory.
pub(super) fn run(plan: Plan) -> Result<Value> {
    ensure!(plan.block_ops >= SAMPLES, "--churn-ops must be at least {SAMPLES}");
    let generator_ns = generator_ns(plan);
    let (mut stream, mut batch, mut index) = (plan.stream(), Batch::default(), empty());
    let (mut done, mut samples) = (0u64, Vec::new());
    // Other parts may have left memory with the process.
    let resident_before = resident_bytes();
    let watch = Stopwatch::start();
    for sample in 1..=SAMPLES {
        let until = plan.block_ops / SAMPLES * sample;
        while done < until {
            batch.fill(&mut stream);
            done += batch.apply(&mut index);
        }
        samples.push(Sample {
            done,
            index: index.memory().total(),
            resident: resident_bytes().saturating_sub(resident_before),
            entries: index.held_count(),
        });
        if sample % 10 == 0 {
            super::say(&format!("churn: {done} block ops, {} bytes", index.memory().total()));
        }
    }
    let spent = watch.read();
    Ok(report(&samples, spent.cpu_ns / done as f64, generator_ns))
}

/// The state at one hundredth.
struct Sample {
    done: u64,
    index: u64,
    resident: u64,
    entries: u64,
}

/// The middle of a few samples in each measure: one alone may meet a worker that has just been emptied.
fn level(samples: &[Sample]) -> Sample {
    let middle = |pick: fn(&Sample) -> u64| {
        let mut values: Vec<u64> = samples.iter().map(pick).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    Sample {
        done: middle(|s| s.done),
        index: middle(|s| s.index),
        resident: middle(|s| s.resident),
        entries: middle(|s| s.entries),
    }
}

fn report(samples: &[Sample], cpu_ns: f64, generator_ns: f64) -> Value {
    let tenth = samples.len() / 10 - 1;
    let early = level(&samples[tenth..tenth + LEVEL_SAMPLES]);
    let end = level(&samples[samples.len() - LEVEL_SAMPLES..]);
    let peak = samples.iter().map(|s| s.index).max().unwrap_or(0);
    let list = samples.iter().map(|s| {
        json!({"block_ops": s.done, "index_bytes": s.index, "resident_bytes": s.resident, "entries": s.entries})
    });
    json!({
        "block_ops": samples.last().map_or(0, |s| s.done),
        "cpu_ns_per_block": round(cpu_ns - generator_ns),
        "generator_cpu_ns_per_block": round(generator_ns),
        "entries_first_tenth": early.entries, "entries_end": end.entries,
        "memory_first_tenth_bytes": early.index, "memory_end_bytes": end.index,
        "memory_peak_bytes": peak,
        "memory_ratio": round(ratio(end.index as f64, early.index as f64)),
        "resident_first_tenth_bytes": early.resident, "resident_end_bytes": end.resident,
        "resident_ratio": round(ratio(end.resident as f64, early.resident as f64)),
        "samples": list.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use mainstay_index::model::ModelIndex;

    use super::*;

    #[test]
    fn churn_says_what_it_did_and_leaves_what_the_model_has() {
        let plan = Plan { block_ops: 60_000, workers: 3, worker_blocks: 2_048, seed: 11 };
        let (mut stream, mut batch, mut index) = (plan.stream(), Batch::default(), empty());
        let (mut twin, mut model) = (plan.stream(), ModelIndex::new(u64::MAX));
        let mut changed = 0;
        while changed < plan.block_ops {
            batch.fill(&mut stream);
            changed += batch.apply(&mut index);
            for _ in 0..BATCH {
                match twin.next_op() {
                    ChurnOp::Stored { worker, namespace, parent, blocks } => {
                        model.store(worker, namespace, parent, blocks, Tier::Device);
                    }
                    ChurnOp::Removed { worker, blocks } => {
                        model.remove(worker, blocks, Tier::Device);
                    }
                    ChurnOp::Cleared { worker } => {
                        model.remove_worker(worker);
                    }
                }
            }
        }
        assert_eq!(index.held_count(), model.held_count());
        for worker in model.workers() {
            assert_eq!(index.digest(worker), model.digest(worker), "{worker}");
        }
    }

    #[test]
    fn reports_compare_the_end_with_the_first_tenth() {
        let sample = |n: u64| Sample { done: n, index: 1_000 + n, resident: 5_000, entries: 7 };
        let samples: Vec<Sample> = (1..=100).map(sample).collect();
        let value = report(&samples, 30.0, 5.0);
        assert_eq!(value["memory_first_tenth_bytes"], 1_012);
        assert_eq!(value["memory_end_bytes"], 1_098);
        assert_eq!(value["cpu_ns_per_block"], 25.0);
        assert_eq!(value["samples"].as_array().unwrap().len(), 100);
    }
}
