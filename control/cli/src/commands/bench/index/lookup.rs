//! The cost of a lookup: what a request pays to learn who holds how much of its prompt.
//!
//! Two sets of queries: natural, the requests that follow the events applied so far, with the hits that they
//! have; and hot, requests just served, which go deep. A sample of the answers is held against the reference
//! index first, and one wrong answer fails the run. Single timings have the clock's own cost taken off.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mainstay_index::model::ModelIndex;
use mainstay_index::{BlockIndex, BlockKey, Group, IndexLimits, IndexReader, Overlap, TierOverlap};
use mainstay_types::{Tier, WorkerId};
use serde_json::{Value, json};

use super::corpus::{Change, Corpus};
use super::events::{NAMESPACE, apply_keys};
use super::limit::Limits;
use super::measure::{Stopwatch, clock_pair_ns, elapsed_ns, least, percentile, ratio, round};
use super::rng::Rng;

/// Queries of a burst, as a gateway that takes requests in batches would ask them.
pub(super) const BURST: usize = 8;
/// Answers that are held against the reference.
const CHECKED: usize = 200;
/// Timings kept of a mixed run.
const SAMPLES_MAX: usize = 4 << 20;
const EVENT_BATCH: usize = 32;

/// What a lookup answers with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    List,
    Groups,
    Burst,
    Tiers,
}

impl Form {
    const fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Groups => "groups",
            Self::Burst => "burst of 8",
            Self::Tiers => "tiers",
        }
    }
}

/// A reader with the buffers that it fills.
pub(super) struct Finder {
    reader: IndexReader,
    form: Form,
    overlaps: Vec<Overlap>,
    groups: Vec<Group>,
    burst: Vec<Vec<Group>>,
    tiers: Vec<TierOverlap>,
}

impl Finder {
    pub(super) fn new(reader: IndexReader, form: Form) -> Self {
        let burst = vec![Vec::new(); BURST];
        Self { reader, form, overlaps: Vec::new(), groups: Vec::new(), burst, tiers: Vec::new() }
    }

    #[inline]
    pub(super) fn find(&mut self, prefix: &[BlockKey]) -> usize {
        match self.form {
            Form::List => {
                self.reader.lookup_into(prefix, &mut self.overlaps);
                self.overlaps.len()
            }
            Form::Groups => {
                self.reader.groups_into(prefix, &mut self.groups);
                self.groups.len()
            }
            Form::Tiers => {
                self.reader.tiers_into(prefix, &mut self.tiers);
                self.tiers.len()
            }
            Form::Burst => self.find_burst(&[prefix]),
        }
    }

    pub(super) fn find_burst(&mut self, prefixes: &[&[BlockKey]]) -> usize {
        let out = &mut self.burst[..prefixes.len()];
        self.reader.burst_into(prefixes, out);
        out.iter().map(Vec::len).sum()
    }

    /// Looks up all of them, in bursts where that is the form.
    fn find_all(&mut self, corpus: &Corpus, queries: &[u32]) -> usize {
        if self.form != Form::Burst {
            return queries.iter().map(|q| self.find(corpus.query(*q))).sum();
        }
        let mut found = 0;
        for part in queries.chunks(BURST) {
            let mut prefixes: [&[BlockKey]; BURST] = [&[]; BURST];
            for (prefix, query) in prefixes.iter_mut().zip(part) {
                *prefix = corpus.query(*query);
            }
            found += self.find_burst(&prefixes[..part.len()]);
        }
        found
    }
}

/// An index that has taken in the given events. With `tiers` a worker in four keeps its blocks in host memory
/// only, and one in four in both places.
fn filled(corpus: &Corpus, events: &[u32], tiers: bool) -> BlockIndex {
    let mut index = BlockIndex::with_limits(IndexLimits::default());
    if !tiers {
        apply_keys(&mut index, corpus, events, EVENT_BATCH);
        return index;
    }
    for number in events {
        let event = &corpus.events[*number as usize];
        let (worker, blocks) = (WorkerId(event.worker), corpus.blocks(event));
        let places: &[Tier] = match event.worker % 4 {
            1 => &[Tier::Host],
            2 => &[Tier::Device, Tier::Host],
            _ => &[Tier::Device],
        };
        for &tier in places {
            match event.change {
                Change::Stored { parent } => {
                    index.store(worker, NAMESPACE, parent, blocks, tier);
                }
                Change::Removed => {
                    index.remove(worker, blocks, tier);
                }
            }
        }
    }
    index
}

/// What the answers of a set look like.
#[derive(Default)]
struct SetFacts {
    depth_blocks: f64,
    match_blocks: f64,
    workers: f64,
}

/// Holds a sample of the answers, in all forms, against the reference.
fn check(
    index: &BlockIndex,
    model: &ModelIndex,
    corpus: &Corpus,
    queries: &[u32],
) -> Result<SetFacts> {
    let reader = index.reader();
    let (mut overlaps, mut groups, mut tiers) = (Vec::new(), Vec::new(), Vec::new());
    let (mut facts, mut count) = (SetFacts::default(), 0.0);
    for number in queries.iter().step_by((queries.len() / CHECKED).max(1)) {
        let prefix = corpus.query(*number);
        let expected: Vec<_> = model.lookup(prefix).iter().map(|o| (o.worker, o.blocks)).collect();
        reader.lookup_into(prefix, &mut overlaps);
        let listed = sorted(overlaps.iter().map(|o| (o.worker, o.blocks)));
        reader.groups_into(prefix, &mut groups);
        let grouped = sorted(groups.iter().flat_map(|g| members(&reader, g)));
        reader.tiers_into(prefix, &mut tiers);
        let tiered = sorted(tiers.iter().map(|t| (t.worker, t.blocks[3])));
        ensure!(
            listed == expected && grouped == expected && tiered == expected,
            "{}: query {number} is answered wrongly; expected {expected:?}, got {listed:?}, \
             {grouped:?} and {tiered:?}",
            corpus.name
        );
        facts.depth_blocks += prefix.len() as f64;
        facts.match_blocks += f64::from(expected.iter().map(|e| e.1).max().unwrap_or(0));
        facts.workers += expected.len() as f64;
        count += 1.0;
    }
    Ok(SetFacts {
        depth_blocks: ratio(facts.depth_blocks, count),
        match_blocks: ratio(facts.match_blocks, count),
        workers: ratio(facts.workers, count),
    })
}

fn sorted(answers: impl Iterator<Item = (WorkerId, u32)>) -> Vec<(WorkerId, u32)> {
    let mut list: Vec<_> = answers.collect();
    list.sort_unstable();
    list
}

fn members(reader: &IndexReader, group: &Group) -> Vec<(WorkerId, u32)> {
    let bits = (0..64u32).filter(|bit| group.bits >> bit & 1 == 1);
    let worker = |bit| Some((reader.worker_of_slot(group.word * 64 + bit)?, group.depth));
    bits.filter_map(worker).collect()
}

/// CPU time per lookup of each of `readers` threads at once; the best pass of each.
fn mean_cpu_ns(
    index: &BlockIndex,
    corpus: &Corpus,
    queries: &[u32],
    form: Form,
    readers: usize,
    budget: Duration,
) -> f64 {
    let start = Barrier::new(readers);
    let reading = |number: usize| {
        let mut order = queries.to_vec();
        Rng::new(number as u64).shuffle(&mut order);
        let mut finder = Finder::new(index.reader(), form);
        start.wait();
        let (begun, mut passes) = (Instant::now(), Vec::new());
        while passes.len() < 3 || begun.elapsed() < budget {
            let (watch, mut lookups) = (Stopwatch::start(), 0);
            // A pass is long against the clock, whatever the size of the set.
            while lookups < 4_096 {
                black_box(finder.find_all(corpus, &order));
                lookups += order.len();
            }
            passes.push(watch.read().cpu_ns / lookups as f64);
        }
        least(&passes)
    };
    let reading = &reading;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..readers).map(|number| scope.spawn(move || reading(number))).collect();
        let times: Vec<f64> = threads.into_iter().filter_map(|t| t.join().ok()).collect();
        times.iter().sum::<f64>() / times.len().max(1) as f64
    })
}

/// Single timings: of each query the least of three passes, which leaves interruptions out, and all of them raw.
fn percentiles(index: &BlockIndex, corpus: &Corpus, queries: &[u32], form: Form) -> Value {
    let mut finder = Finder::new(index.reader(), form);
    let (mut quickest, mut raw) = (vec![u32::MAX; queries.len()], Vec::new());
    let mut order: Vec<usize> = (0..queries.len()).collect();
    for pass in 0..3 {
        Rng::new(pass).shuffle(&mut order);
        for place in &order {
            let prefix = corpus.query(queries[*place]);
            let start = Instant::now();
            black_box(finder.find(black_box(prefix)));
            let took = elapsed_ns(start);
            raw.push(took);
            quickest[*place] = quickest[*place].min(took);
        }
    }
    let pair_ns = clock_pair_ns();
    let at = |samples: &mut [u32], part| {
        round((f64::from(percentile(samples, part)) - pair_ns).max(0.0))
    };
    json!({
        "p50_ns": at(&mut quickest, 0.5), "p99_ns": at(&mut quickest, 0.99),
        "max_ns": at(&mut quickest, 1.0), "raw_p99_ns": at(&mut raw, 0.99),
    })
}

/// Lookups of one corpus in all forms.
pub(super) fn run(corpus: &Corpus, budget: Duration, limits: &mut Limits) -> Result<Vec<Value>> {
    let (events, _) = corpus.part(0, 80);
    let sets = [("natural", corpus.part(80, 100).1), ("hot", corpus.part(72, 80).1)];
    let index = filled(corpus, &events, false);
    let with_tiers = filled(corpus, &events, true);
    let mut model = ModelIndex::new(u64::MAX);
    for number in &events {
        let event = &corpus.events[*number as usize];
        let (worker, blocks) = (WorkerId(event.worker), corpus.blocks(event));
        match event.change {
            Change::Stored { parent } => {
                model.store(worker, NAMESPACE, parent, blocks, Tier::Device);
            }
            Change::Removed => {
                model.remove(worker, blocks, Tier::Device);
            }
        }
    }
    let index_bytes = index.memory().total();
    let miss_ns = limits.at(index_bytes).dependent_ns;
    let mut rows = Vec::new();
    for (set, queries) in &sets {
        if queries.is_empty() {
            continue;
        }
        let facts = check(&index, &model, corpus, queries)?;
        check(&with_tiers, &model, corpus, queries)?;
        let forms = [(Form::List, 1), (Form::List, 2), (Form::Groups, 1), (Form::Burst, 1)];
        for (form, readers) in forms.into_iter().chain([(Form::Tiers, 1)]) {
            super::say(&format!(
                "{}: lookup, {set}, {}, {readers} readers",
                corpus.name,
                form.name()
            ));
            let index = if form == Form::Tiers { &with_tiers } else { &index };
            let cpu_ns = mean_cpu_ns(index, corpus, queries, form, readers, budget);
            let mut row = json!({
                "corpus": corpus.name, "set": set, "form": form.name(), "readers": readers,
                "queries": queries.len(), "depth_blocks": round(facts.depth_blocks),
                "match_blocks": round(facts.match_blocks), "workers": round(facts.workers),
                "cpu_ns": round(cpu_ns), "misses": round(ratio(cpu_ns, miss_ns)),
            });
            if readers == 1 && form != Form::Burst {
                let members = percentiles(index, corpus, queries, form);
                if let (Some(row), Value::Object(members)) = (row.as_object_mut(), members) {
                    row.extend(members);
                }
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Lookups while a writer takes in the rest of the corpus as fast as it can.
pub(super) fn run_mixed(
    corpus: &Corpus,
    budget: Duration,
    readers: usize,
) -> Result<Option<Value>> {
    let (before, _) = corpus.part(0, 80);
    let (after, queries) = corpus.part(80, 100);
    if queries.is_empty() || after.is_empty() {
        return Ok(None);
    }
    let blocks = corpus.block_ops(&after);
    let (mut samples, mut passes) = (Vec::new(), 0u32);
    let (mut read_ns, mut write_ns, begun) = (0.0, 0.0, Instant::now());
    super::say(&format!("{}: lookups beside a writer, {readers} readers", corpus.name));
    while passes < 3 || (begun.elapsed() < budget * 4 && samples.len() < SAMPLES_MAX) {
        let mut index = filled(corpus, &before, false);
        let reader = index.reader();
        let (start, done) = (Barrier::new(readers + 1), std::sync::atomic::AtomicBool::new(false));
        let (start, done, queries) = (&start, &done, &queries);
        std::thread::scope(|scope| -> Result<()> {
            let threads: Vec<_> = (0..readers)
                .map(|number| {
                    let finder = Finder::new(reader.clone(), Form::List);
                    scope.spawn(move || {
                        start.wait();
                        read_until(finder, corpus, queries, done, number)
                    })
                })
                .collect();
            start.wait();
            let watch = Stopwatch::start();
            let applied = apply_keys(&mut index, corpus, &after, EVENT_BATCH);
            write_ns += watch.read().cpu_ns;
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            ensure!(applied.added + applied.removed == blocks, "events were lost beside readers");
            for thread in threads {
                let (times, cpu_ns) =
                    thread.join().map_err(|_| anyhow::anyhow!("a reader ended"))?;
                samples.extend(times);
                read_ns += cpu_ns;
            }
            Ok(())
        })?;
        passes += 1;
    }
    let pair_ns = clock_pair_ns();
    let lookups = samples.len();
    let mut at = |part| round((f64::from(percentile(&mut samples, part)) - pair_ns).max(0.0));
    Ok(Some(json!({
        "corpus": corpus.name, "readers": readers, "lookups": lookups, "passes": passes,
        "cpu_ns": round(ratio(read_ns, lookups as f64)),
        "p50_ns": at(0.5), "p99_ns": at(0.99), "raw_max_ns": at(1.0),
        "writer_cpu_ns_per_block": round(ratio(write_ns, blocks as f64 * f64::from(passes))),
    })))
}

/// Reads until the writer is done; at least one query, so that a quick writer leaves a sample.
fn read_until(
    mut finder: Finder,
    corpus: &Corpus,
    queries: &[u32],
    done: &std::sync::atomic::AtomicBool,
    number: usize,
) -> (Vec<u32>, f64) {
    let mut rng = Rng::new(number as u64 + 77);
    let (watch, mut times) = (Stopwatch::start(), Vec::new());
    while times.is_empty() || !done.load(std::sync::atomic::Ordering::Relaxed) {
        let prefix = corpus.query(queries[rng.place(queries.len())]);
        let start = Instant::now();
        black_box(finder.find(black_box(prefix)));
        times.push(elapsed_ns(start));
    }
    (times, watch.read().cpu_ns)
}
