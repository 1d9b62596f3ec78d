//! `mainstay bench index`: the block index's own figures, taken in one process and one run.
//!
//! Everything that a figure needs to be read is in the same report: the machine and its load, the corpus, the
//! miss that memory itself costs. CPU time is the main measure, since neighbours stretch wall time. A wrong answer
//! or a lost event is an error and not a figure.

mod churn;
mod corpus;
mod events;
mod fill;
mod growth;
mod hash;
mod limit;
mod lookup;
mod lru;
mod machine;
mod measure;
mod memory;
mod report;
mod rng;
mod sessions;
mod trace;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::output::{Format, print, print_json};
use corpus::{Corpus, Route, Shape};
use limit::Limits;

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// Taking in block events.
    Events,
    /// Looking prompts up.
    Lookup,
    /// Bytes of an entry.
    Memory,
    /// Lookups against depth, workers and size.
    Growth,
    /// Memory over a billion block operations.
    Churn,
    /// Naming blocks.
    Hash,
}

/// Made-up traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Traffic {
    /// Agents with deep, shared histories.
    Agent,
    /// Chats, most of them new.
    Chat,
}

impl Traffic {
    const fn route(self) -> Route {
        match self {
            Self::Agent => Route::Kv,
            Self::Chat => Route::Random,
        }
    }
}

const WORKERS_MAX: u32 = 1_024;
const CAPACITY_BLOCKS_MIN: usize = 256;
/// All caches together; what keeps the corpus's own bookkeeping within a few gigabytes.
const CACHED_BLOCKS_MAX: usize = 64 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure; everything if left out
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Made-up traffic of the parts events, lookup and memory; both if left out and no trace is given
    #[arg(long, value_enum, value_delimiter = ',')]
    traffic: Vec<Traffic>,
    /// A recorded trace: a file of chats (JSON lines with hash_ids) or a folder of coding sessions
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Workers of a corpus
    #[arg(long, default_value_t = 64)]
    workers: u32,
    /// Blocks that a worker's cache holds
    #[arg(long, default_value_t = 16_384)]
    capacity: usize,
    /// How a corpus's requests find their worker; if left out, agents by kv and chats at random
    #[arg(long, value_enum)]
    route: Option<Route>,
    /// Requests of a corpus, at most
    #[arg(long, default_value_t = 20_000)]
    requests: usize,
    /// Time for each figure
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Where all chance comes from
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// The largest index of the part growth, in entries
    #[arg(long, default_value_t = 100_000_000)]
    entries_max: u64,
    /// Block operations of the part churn
    #[arg(long, default_value_t = 1_000_000_000)]
    churn_ops: u64,
    /// Everything small: a minute in all, to see that it works
    #[arg(long)]
    quick: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Says on standard error what is going on.
fn say(what: &str) {
    use std::io::Write;
    // Nobody to read it is no reason to stop.
    let _gone = writeln!(std::io::stderr(), "bench index: {what}");
}

impl Args {
    fn check(&self) -> Result<()> {
        ensure!(
            (1..=WORKERS_MAX).contains(&self.workers),
            "--workers must be between 1 and {WORKERS_MAX}"
        );
        ensure!(
            self.capacity >= CAPACITY_BLOCKS_MIN
                && self.capacity.saturating_mul(self.workers as usize) <= CACHED_BLOCKS_MAX,
            "--capacity must be at least {CAPACITY_BLOCKS_MIN}, and at most {CACHED_BLOCKS_MAX} for all \
             workers together"
        );
        ensure!(
            (0.001..=3_600.0).contains(&self.seconds),
            "--seconds must be between 0.001 and 3600"
        );
        ensure!(
            (10..=1_000_000).contains(&self.requests),
            "--requests must be between 10 and 1000000"
        );
        ensure!(self.entries_max >= 100_000, "--entries-max must be at least 100000");
        Ok(())
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn budget(&self) -> Duration {
        let seconds = if self.quick { self.seconds.min(0.05) } else { self.seconds };
        Duration::from_secs_f64(seconds)
    }

    /// What there is to replay; each corpus is made when its turn comes, since one is hundreds of megabytes.
    fn traffic(&self) -> Vec<Traffic> {
        let mut traffic = self.traffic.clone();
        if traffic.is_empty() && self.trace.is_none() {
            traffic = vec![Traffic::Agent, Traffic::Chat];
        }
        traffic
    }

    fn shape(&self, route: Route) -> Shape {
        Shape {
            workers: self.workers,
            capacity_blocks: self.capacity,
            route: self.route.unwrap_or(route),
            requests: if self.quick { self.requests.min(1_500) } else { self.requests },
            seed: self.seed,
        }
    }

    fn made_up(&self, traffic: Traffic) -> Corpus {
        say(&format!("making the corpus {traffic:?}"));
        let (seed, shape) = (self.seed, self.shape(traffic.route()));
        match traffic {
            Traffic::Agent => corpus::build("agent", 16, &mut sessions::Agents::new(seed), &shape),
            Traffic::Chat => corpus::build("chat", 16, &mut sessions::Chats::new(seed), &shape),
        }
    }

    fn recorded(&self, path: &Path) -> Result<Corpus> {
        say(&format!("reading {}", path.display()));
        // Sessions of agents come as a folder.
        let shape = self.shape(if path.is_dir() { Route::Kv } else { Route::Random });
        let mut trace = trace::read(path, shape.requests, self.seed)?;
        let name = path.file_stem().map_or("trace".into(), |n| n.to_string_lossy().into_owned());
        let block_tokens = trace.block_tokens;
        Ok(corpus::build(&name, block_tokens, &mut trace, &shape))
    }
}

/// Measures and prints.
pub(crate) async fn run(args: Args) -> Result<()> {
    args.check()?;
    let output = args.output;
    // Minutes of CPU on a thread of its own: the runtime's threads stay free for signals.
    let report = tokio::task::spawn_blocking(move || measure(&args)).await??;
    match output {
        Format::Json => print_json(&report),
        Format::Table => print(&report::render(&report)),
    }
    Ok(())
}

fn measure(args: &Args) -> Result<Value> {
    let mut machine = machine::facts();
    machine["load_1m_start"] = json!(machine::load_1m());
    let mut report = json!({
        "machine": machine,
        "settings": {
            "workers": args.workers, "capacity_blocks": args.capacity,
            "seconds_per_figure": args.budget().as_secs_f64(),
            "seed": args.seed, "quick": args.quick,
        },
    });
    let mut limits = Limits::default();
    // First, while the process has freed nothing that the index could get for nothing.
    if args.wants(Part::Memory) {
        let entries = args.entries_max.min(if args.quick { 400_000 } else { 8_000_000 });
        report["memory"] = json!(memory::run_fills(args.seed, entries)?);
    }
    if [Part::Events, Part::Lookup, Part::Memory].into_iter().any(|part| args.wants(part)) {
        measure_corpora(args, &mut limits, &mut report)?;
    }
    if args.wants(Part::Growth) {
        let (blocks, most) = if args.quick { (1 << 19, 1_000_000) } else { (1 << 22, u64::MAX) };
        let plan = growth::Plan {
            budget: args.budget(),
            seed: args.seed,
            depth_blocks: blocks,
            entries_max: args.entries_max.min(most),
        };
        report["growth"] = growth::Growth::new(plan, &mut limits).run()?;
    }
    if args.wants(Part::Churn) {
        let mut plan = churn::Plan {
            block_ops: args.churn_ops,
            workers: args.workers,
            worker_blocks: u32::try_from(args.capacity)?,
            seed: args.seed,
        };
        if args.quick {
            // Small caches too, so that they are full after a tenth.
            plan.block_ops = plan.block_ops.min(5_000_000);
            (plan.workers, plan.worker_blocks) =
                (plan.workers.min(8), plan.worker_blocks.min(2_048));
        }
        report["churn"] = churn::run(plan)?;
    }
    if args.wants(Part::Hash) {
        report["hash"] = json!(hash::run(args.budget()));
    }
    append(&mut report, "limit", limits.rows());
    report["machine"]["load_1m_end"] = json!(machine::load_1m());
    Ok(report)
}

/// The parts that run over traffic.
fn measure_corpora(args: &Args, limits: &mut Limits, report: &mut Value) -> Result<()> {
    for traffic in args.traffic() {
        measure_corpus(args, &args.made_up(traffic), limits, report)?;
    }
    if let Some(path) = &args.trace {
        measure_corpus(args, &args.recorded(path)?, limits, report)?;
    }
    Ok(())
}

fn measure_corpus(
    args: &Args,
    corpus: &Corpus,
    limits: &mut Limits,
    report: &mut Value,
) -> Result<()> {
    append(report, "corpora", [describe(corpus)]);
    if args.wants(Part::Memory) {
        append(report, "memory", [memory::run_corpus(corpus)]);
    }
    if args.wants(Part::Events) {
        append(report, "events", events::run(corpus, args.budget())?);
    }
    if args.wants(Part::Lookup) {
        append(report, "lookup", lookup::run(corpus, args.budget(), limits)?);
        for readers in [1, 2] {
            append(report, "mixed", lookup::run_mixed(corpus, args.budget(), readers)?);
        }
    }
    Ok(())
}

/// Adds rows to a part of the report, which begins with its first row.
fn append(report: &mut Value, part: &str, rows: impl IntoIterator<Item = Value>) {
    let mut rows = rows.into_iter().peekable();
    if rows.peek().is_none() {
        return;
    }
    match report.get_mut(part).and_then(Value::as_array_mut) {
        Some(list) => list.extend(rows),
        None => report[part] = rows.collect(),
    }
}

fn describe(corpus: &Corpus) -> Value {
    let prompt_blocks: usize = corpus.queries.iter().map(ExactSizeIterator::len).sum();
    let stored: u64 = corpus
        .events
        .iter()
        .filter(|e| matches!(e.change, corpus::Change::Stored { .. }))
        .map(|e| u64::from(e.count))
        .sum();
    let mut depths: Vec<u32> = corpus.queries.iter().map(|q| q.len() as u32).collect();
    json!({
        "corpus": corpus.name, "block_tokens": corpus.block_tokens, "workers": corpus.workers,
        "route": format!("{:?}", corpus.route).to_lowercase(),
        "requests": corpus.queries.len(), "events": corpus.events.len(), "run_records": corpus.runs.len(),
        "stored_blocks": stored, "removed_blocks": corpus.victims.len(),
        "depth_p50_blocks": measure::percentile(&mut depths, 0.5),
        "depth_max_blocks": measure::percentile(&mut depths, 1.0),
        "hit_percent": measure::round(100.0 * measure::ratio(corpus.hit_blocks as f64, prompt_blocks as f64)),
    })
}
