//! The cost of taking in block events, timed until every one is applied and a reader sees the last.
//!
//! A figure counts stored and removed blocks. The corpus knows what each event changes, so an index that drops
//! or refuses one fails the run here instead of looking fast.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mainstay_index::{Applied, BlockIndex, BlockKey, EventRef, IndexLimits, Overlap, ShardedIndex};
use mainstay_types::{BlockEvent, NamespaceId, SequenceHash, Tier, WorkerId};
use serde_json::{Value, json};

use super::corpus::{Change, Corpus, Run};
use super::measure::{Spent, Stopwatch, least, median, round};
use super::rng::{counted, mix};
use super::sessions::ROOT_KEY;

/// The namespace of all corpora; its key is where their chains start.
pub(super) const NAMESPACE: NamespaceId = NamespaceId(ROOT_KEY as u128);
/// Events that are looked ahead at for prefetching, as a member does with a frame.
const BATCH: usize = 32;
const RUNS_MIN: usize = 3;
const RUNS_MAX: usize = 50;

/// How events reach the index.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Nothing is applied: what reading the corpus costs.
    Floor,
    /// Block by block with 64-bit keys.
    Keys { batch: usize },
    /// Events with 128-bit hashes.
    Events,
    /// Run records.
    Runs,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Floor => "none (floor)",
            Self::Keys { batch: 1 } => "keys, no batch",
            Self::Keys { .. } => "keys",
            Self::Events => "hash events",
            Self::Runs => "run records",
        }
    }
}

/// Applies events block by block, `batch` of them at a time.
pub(super) fn apply_keys(
    index: &mut BlockIndex,
    corpus: &Corpus,
    events: &[u32],
    batch: usize,
) -> Applied {
    let mut sum = Applied::default();
    let mut round = Vec::with_capacity(batch);
    for part in events.chunks(batch.max(1)) {
        round.clear();
        round.extend(part.iter().map(|number| event_ref(corpus, *number)));
        add(&mut sum, index.apply_batch(&round));
    }
    sum
}

fn event_ref(corpus: &Corpus, number: u32) -> EventRef<'_, BlockKey> {
    let event = &corpus.events[number as usize];
    let (worker, blocks, tier) = (WorkerId(event.worker), corpus.blocks(event), Tier::Device);
    match event.change {
        Change::Stored { parent } => {
            EventRef::Store { worker, namespace: NAMESPACE, parent, blocks, tier }
        }
        Change::Removed => EventRef::Remove { worker, blocks, tier },
    }
}

/// What the index will look for first. A worker goes on where it was as a rule, so the parent is known already.
fn first_key(corpus: &Corpus, number: u32) -> Option<u64> {
    corpus.blocks(&corpus.events[number as usize]).first().map(|key| key.0)
}

fn prefetch(index: &BlockIndex, keys: impl Iterator<Item = u64> + Clone) {
    keys.clone().for_each(|key| index.prefetch(key));
    keys.for_each(|key| index.prefetch_runs(key));
}

fn add(sum: &mut Applied, one: Applied) {
    sum.added += one.added;
    sum.removed += one.removed;
    sum.refused += one.refused;
}

/// Applies the run records of events.
pub(super) fn apply_runs(
    index: &mut BlockIndex,
    corpus: &Corpus,
    events: &[u32],
) -> Result<Applied> {
    let mut sum = Applied::default();
    for part in events.chunks(BATCH) {
        prefetch(
            index,
            part.iter().flat_map(|e| corpus.runs_of(*e)).map(|run| run_key(corpus, run)),
        );
        for number in part {
            let worker = WorkerId(corpus.events[*number as usize].worker);
            for run in corpus.runs_of(*number) {
                let applied = match *run {
                    Run::Hold { tail, count } => index.hold(worker, tail, count, Tier::Device).ok(),
                    Run::Release { tail, count } => {
                        index.release(worker, tail, count, Tier::Device).ok()
                    }
                    Run::Store { parent, first, count } => {
                        let blocks = &corpus.keys[first..first + count as usize];
                        Some(index.store(worker, NAMESPACE, parent, blocks, Tier::Device))
                    }
                };
                add(&mut sum, applied.context("the index lacks blocks that a run record names")?);
            }
        }
    }
    Ok(sum)
}

fn run_key(corpus: &Corpus, run: &Run) -> u64 {
    match *run {
        Run::Hold { tail, .. } | Run::Release { tail, .. } => tail,
        Run::Store { first, .. } => corpus.keys[first].0,
    }
}

/// The 128-bit form of a key: the index looks at the lower half, the wire carries both.
pub(super) fn sequence_hash(key: BlockKey) -> SequenceHash {
    SequenceHash(u128::from(mix(key.0)) << 64 | u128::from(key.0))
}

/// The events in the form that workers send.
fn hash_events(corpus: &Corpus, events: &[u32]) -> Vec<(WorkerId, u64, BlockEvent)> {
    let convert = |number: &u32| {
        let event = &corpus.events[*number as usize];
        let blocks = corpus.blocks(event).iter().copied().map(sequence_hash).collect();
        let tier = Tier::Device;
        let converted = match event.change {
            Change::Stored { parent: ROOT_KEY } => {
                let parent = SequenceHash(NAMESPACE.0);
                BlockEvent::Stored { namespace: NAMESPACE, parent, blocks, tier }
            }
            Change::Stored { parent } => {
                let parent = sequence_hash(BlockKey(parent));
                BlockEvent::Stored { namespace: NAMESPACE, parent, blocks, tier }
            }
            Change::Removed => BlockEvent::Removed { blocks, tier },
        };
        (WorkerId(event.worker), first_key(corpus, *number).unwrap_or_default(), converted)
    };
    events.iter().map(convert).collect()
}

fn apply_hash_events(index: &mut BlockIndex, events: &[(WorkerId, u64, BlockEvent)]) -> Applied {
    let mut sum = Applied::default();
    for part in events.chunks(BATCH) {
        prefetch(index, part.iter().map(|(_, key, _)| *key));
        for (worker, _, event) in part {
            add(&mut sum, index.apply(*worker, event));
        }
    }
    sum
}

/// Reads what applying would read, and nothing else.
fn read_only(corpus: &Corpus, events: &[u32]) -> Applied {
    let mut sum = 0u64;
    for number in events {
        let event = &corpus.events[*number as usize];
        sum ^= corpus.blocks(event).iter().fold(u64::from(event.worker), |sum, key| sum ^ key.0);
    }
    std::hint::black_box(sum);
    Applied { added: corpus.block_ops(events), ..Applied::default() }
}

/// A block that only the end of a measurement stores, for a reader to find.
fn marker(number: usize) -> [BlockKey; 1] {
    [counted(mix(ROOT_KEY ^ 0x00e0_d000), number as u64)]
}

/// Looks for a marker until it is seen; a reader that never sees it fails the run.
fn await_visible(
    mut find: impl FnMut(&[BlockKey], &mut Vec<Overlap>),
    number: usize,
) -> Result<()> {
    let mut found = Vec::new();
    let started = Instant::now();
    while found.is_empty() {
        find(&marker(number), &mut found);
        ensure!(started.elapsed() < Duration::from_secs(5), "a reader misses the last event");
    }
    Ok(())
}

fn check(applied: Applied, blocks: u64, form: &str) -> Result<()> {
    let changed = applied.added + applied.removed;
    ensure!(
        changed == blocks && applied.refused == 0,
        "{form}: {blocks} block ops changed {changed} entries and {} were refused",
        applied.refused
    );
    Ok(())
}

/// One pass of one writer over the whole corpus, from an empty index.
fn one_writer(
    corpus: &Corpus,
    form: Form,
    events: &[u32],
    hashed: &[(WorkerId, u64, BlockEvent)],
) -> Result<Spent> {
    let mut index = BlockIndex::with_limits(IndexLimits::default());
    let reader = index.reader();
    let watch = Stopwatch::start();
    let applied = match form {
        Form::Floor => read_only(corpus, events),
        Form::Keys { batch } => apply_keys(&mut index, corpus, events, batch),
        Form::Events => apply_hash_events(&mut index, hashed),
        Form::Runs => apply_runs(&mut index, corpus, events)?,
    };
    index.store(WorkerId(0), NAMESPACE, ROOT_KEY, &marker(0), Tier::Device);
    await_visible(|prefix, out| reader.lookup_into(prefix, out), 0)?;
    let spent = watch.read();
    check(applied, corpus.block_ops(events), form.name())?;
    Ok(spent)
}

/// One pass of `writers` threads, each with the workers of one shard.
fn many_writers(corpus: &Corpus, writers: usize) -> Result<Spent> {
    let index = ShardedIndex::new(writers, IndexLimits::default());
    let mut parts: Vec<Vec<u32>> = vec![Vec::new(); writers];
    for (number, event) in corpus.events.iter().enumerate() {
        parts[index.shard_of(WorkerId(event.worker))].push(number as u32);
    }
    let (start, watch) = (Barrier::new(writers + 1), std::cell::OnceCell::new());
    let (index, start_ref) = (&index, &start);
    std::thread::scope(|scope| {
        let threads: Vec<_> = parts
            .iter()
            .enumerate()
            .map(|(shard, events)| {
                scope.spawn(move || -> Result<f64> {
                    start_ref.wait();
                    let watch = Stopwatch::start();
                    let mut sum = Applied::default();
                    for batch in events.chunks(BATCH) {
                        index.with_shard(shard, |shard| {
                            add(&mut sum, apply_keys(shard, corpus, batch, BATCH));
                        });
                    }
                    index.with_shard(shard, |shard_index| {
                        let last = marker(shard);
                        shard_index.store(WorkerId(0), NAMESPACE, ROOT_KEY, &last, Tier::Device);
                    });
                    let reader = index.reader();
                    await_visible(|prefix, out| reader.lookup_into(prefix, out), shard)?;
                    let cpu_ns = watch.read().cpu_ns;
                    check(sum, corpus.block_ops(events), "sharded keys")?;
                    Ok(cpu_ns)
                })
            })
            .collect();
        start.wait();
        let wall = watch.get_or_init(Instant::now);
        let mut spent = Spent::default();
        for thread in threads {
            spent.cpu_ns +=
                thread.join().map_err(|_| anyhow::anyhow!("a writer ended early"))??;
        }
        spent.wall_ns = wall.elapsed().as_nanos() as f64;
        Ok(spent)
    })
}

/// All forms over one corpus.
pub(super) fn run(corpus: &Corpus, budget: Duration) -> Result<Vec<Value>> {
    let events = corpus.all_events();
    let blocks = corpus.block_ops(&events);
    let mut rows = Vec::new();
    let mut row = |form: &str, writers: usize, records: usize, passes: &[Spent]| {
        let per_block = |pick: fn(&Spent) -> f64| {
            passes.iter().map(|p| pick(p) / blocks.max(1) as f64).collect::<Vec<_>>()
        };
        let (cpu, wall) = (per_block(|p| p.cpu_ns), per_block(|p| p.wall_ns));
        rows.push(json!({
            "corpus": corpus.name, "form": form, "writers": writers, "records": records,
            "block_ops": blocks, "passes": passes.len(),
            "cpu_ns_per_block": round(median(&cpu)), "best_cpu_ns_per_block": round(least(&cpu)),
            "wall_ns_per_block": round(median(&wall)),
            "cpu_ns_per_record": round(median(&cpu) * blocks as f64 / records.max(1) as f64),
        }));
    };
    for form in [
        Form::Floor,
        Form::Keys { batch: BATCH },
        Form::Keys { batch: 1 },
        Form::Events,
        Form::Runs,
    ] {
        super::say(&format!("{}: events as {}", corpus.name, form.name()));
        let hashed = if form == Form::Events { hash_events(corpus, &events) } else { Vec::new() };
        let passes = repeat(budget, || one_writer(corpus, form, &events, &hashed))?;
        let records = if form == Form::Runs { corpus.runs.len() } else { events.len() };
        row(form.name(), 1, records, &passes);
    }
    for writers in [1, 2] {
        super::say(&format!("{}: events, {writers} sharded writers", corpus.name));
        let passes = repeat(budget, || many_writers(corpus, writers))?;
        row("sharded keys", writers, events.len(), &passes);
    }
    Ok(rows)
}

fn repeat(budget: Duration, mut pass: impl FnMut() -> Result<Spent>) -> Result<Vec<Spent>> {
    let (started, mut passes) = (Instant::now(), Vec::new());
    while passes.len() < RUNS_MIN || (passes.len() < RUNS_MAX && started.elapsed() < budget) {
        passes.push(pass()?);
    }
    Ok(passes)
}
