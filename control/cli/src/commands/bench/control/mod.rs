//! `mainstay bench control`: what the control plane bears, measured on three members inside this process.
//!
//! The members are real: RocksDB with fsync, gRPC over loopback, one Raft group. The workers are simulated: their
//! frames are made beforehand from the churn of agents, so that the figures are those of the control plane; what a
//! worker's own bookkeeping costs is measured apart. Both forms of the index are run, because the plain one, in which
//! every frame is an entry of the log, is what the streams are to be judged by.

mod cluster;
pub(super) mod crowd;
mod etcd;
mod index;
mod join;
mod pins;
mod traffic;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::output::{Format, print, print_json, table};

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// Block operations a second, in both forms of the index.
    Index,
    /// Pins a second.
    Pins,
    /// How long a new member, and one that starts again, takes to have a large index.
    Join,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure; everything if left out
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Members of the group
    #[arg(long, default_value_t = 3)]
    members: u64,
    /// Blocks in the index that a member joins, in millions
    #[arg(long, default_value_t = 10.0)]
    mblocks: f64,
    /// Simulated workers; several counts are measured one after another
    #[arg(long, value_delimiter = ',', default_value = "64")]
    workers: Vec<u32>,
    /// Block operations of each run, in millions
    #[arg(long, default_value_t = 20.0)]
    mops: f64,
    /// Blocks in a frame, about
    #[arg(long, default_value_t = 512)]
    frame_blocks: usize,
    /// Leave out the plain form
    #[arg(long)]
    streams_only: bool,
    /// Clients that make pins at a time
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Pins made in a round
    #[arg(long, default_value_t = 20_000)]
    pins: usize,
    /// Rounds of pins, in turns with etcd's
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Make the pins on members that run already in plain text, HOST:PORT,…, rather than on ones in this process
    #[arg(long, value_delimiter = ',')]
    control: Vec<String>,
    /// Measure puts of as many bytes beside, on an etcd that runs already: its client addresses, HOST:PORT,…
    #[arg(long, value_delimiter = ',')]
    etcd: Vec<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let wants = |part| args.only.is_empty() || args.only.contains(&part);
    let mut report = Map::new();
    if wants(Part::Index) {
        let mut rows = Vec::new();
        for workers in &args.workers {
            let setting = index::Setting {
                members: args.members,
                workers: *workers,
                block_ops: (args.mops * 1e6) as u64,
                frame_blocks: args.frame_blocks,
            };
            rows.extend(index::run(setting, !args.streams_only).await?);
        }
        report.insert("index".into(), Value::Array(rows));
    }
    if wants(Part::Pins) {
        let setting = pins::Setting {
            members: args.members,
            control: args.control,
            etcd: args.etcd,
            clients: args.clients.max(1),
            pins: args.pins,
            rounds: args.rounds,
        };
        report.insert("pins".into(), Value::Array(pins::run(setting).await?));
    }
    if wants(Part::Join) {
        let workers = args.workers.first().copied().unwrap_or(1).max(1);
        let row = join::run(args.members, workers, (args.mblocks * 1e6) as u64).await?;
        report.insert("join".into(), Value::Array(vec![row]));
    }
    match args.output {
        Format::Json => print_json(&json!(report)),
        Format::Table => report.iter().for_each(|(part, rows)| show(part, rows)),
    }
    Ok(())
}

fn show(part: &str, rows: &Value) {
    for row in rows.as_array().into_iter().flatten() {
        let cells: Vec<Vec<String>> = row
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                vec![name.clone(), text]
            })
            .collect();
        print(&table(&[part, ""], &cells));
    }
}
