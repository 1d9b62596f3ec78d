//! `mainstay bench`: the project's own benchmarks.

mod control;
mod gateway;
mod index;

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::output::{Format, print, print_json, table};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Prefill and decode rates of the native engine on a checkpoint
    Engine {
        /// A checkpoint in Hugging Face layout; the bundled model if left out
        model_dir: Option<PathBuf>,
        /// Threads
        #[arg(long)]
        threads: Option<usize>,
        /// `fast` or `exact`
        #[arg(long, default_value = "fast")]
        precision: String,
        /// Repetitions; medians are printed
        #[arg(long, default_value_t = 5)]
        runs: usize,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Time to first token of a running gateway, cold and warm
    Gateway {
        /// The gateway
        #[arg(long, env = "MAINSTAY_ADDR", default_value = "http://127.0.0.1:8000")]
        addr: String,
        /// The model
        #[arg(long, default_value = "demo")]
        model: String,
        /// Conversations; medians are printed
        #[arg(long, default_value_t = 10)]
        rounds: usize,
        /// Words of the first turn
        #[arg(long, default_value_t = 2_000)]
        words: u64,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// The block index: events, lookups, memory, growth, churn, and the limit that memory sets
    Index(index::Args),
    /// The control plane: block operations and pins a second on three members in this process
    Control(control::Args),
    /// A gateway before a crowd of simulated workers, until Ctrl-C: for looking at the console
    Console(control::crowd::Args),
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        BenchCommand::Engine { model_dir, threads, precision, runs, output } => {
            let value = engine(model_dir, threads, precision, runs).await?;
            show(&value, output);
        }
        BenchCommand::Gateway { addr, model, rounds, words, output } => {
            show(&gateway::run(&addr, &model, rounds, words).await?, output);
        }
        BenchCommand::Index(args) => index::run(args).await?,
        BenchCommand::Control(args) => control::run(args).await?,
        BenchCommand::Console(args) => control::crowd::run(args).await?,
    }
    Ok(())
}

async fn engine(
    model_dir: Option<PathBuf>,
    threads: Option<usize>,
    precision: String,
    runs: usize,
) -> anyhow::Result<Value> {
    let threads = threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let dir = match &model_dir {
        Some(dir) => dir.canonicalize()?,
        None => PathBuf::new(),
    };
    let config = json!({
        "model_dir": dir.to_string_lossy(), "threads": threads, "precision": precision,
    });
    let measured =
        tokio::task::spawn_blocking(move || mainstay_native::bench::run(&config.to_string(), runs));
    Ok(serde_json::to_value(measured.await??)?)
}

fn show(value: &Value, output: Format) {
    match output {
        Format::Json => print_json(value),
        Format::Table => {
            let members = value.as_object().into_iter().flatten();
            let rows: Vec<Vec<String>> =
                members.map(|(k, v)| vec![k.clone(), v.to_string()]).collect();
            print(&table(&["MEASURE", "VALUE"], &rows));
        }
    }
}

/// Free ports on loopback; nobody keeps them for the caller.
pub(crate) fn free_addresses(count: u64) -> anyhow::Result<Vec<std::net::SocketAddr>> {
    let listeners: Vec<std::net::TcpListener> = (0..count)
        .map(|_| std::net::TcpListener::bind(("127.0.0.1", 0)))
        .collect::<Result<_, _>>()
        .context("finding free ports on loopback")?;
    listeners.iter().map(|l| l.local_addr().context("reading a port")).collect()
}
