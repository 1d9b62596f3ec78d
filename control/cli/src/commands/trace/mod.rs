//! `mainstay trace analyze`: what recorded traffic says, before any of it is played.
//!
//! The analysis is a pure crate's; here files are read, and tables, JSON or a page come out. A figure that the trace
//! does not have is a dash, and named at the end. `live` instead of a file asks a gateway for what it has seen.

mod live;
pub(crate) mod read;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use mainstay_replay::{Analysis, ReadSettings, analyze};

use crate::http::Target;
use crate::output::{Format, print, print_json, table};

/// Prompts of any length that a trace can hold are analysed, unless something else is said.
const CONTEXT_TOKENS: u32 = 1 << 24;
/// The name that is no file: a file that is called so is `./live`.
const LIVE: &str = "live";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// What a trace says: hit rates, times, growth, pauses, subagents, compactions, how long caches must keep
    Analyze(Analyze),
}

#[derive(clap::Args)]
struct Analyze {
    /// A folder of Claude Code sessions (*.json), one of them, lines as Mooncake and Dynamo write them (*.jsonl), or
    /// `live` for what a running gateway has seen
    #[arg(value_name = "FILE", conflicts_with = "mix", required_unless_present = "mix")]
    trace: Option<PathBuf>,
    /// Generated traffic instead: agents, swarm, chat or bursts
    #[arg(long)]
    mix: Option<String>,
    /// Different sessions of the mix
    #[arg(long, default_value_t = 400)]
    sessions: usize,
    /// For the mix
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write a page with tables and plots there
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// A longer prompt, answer included, ends its session
    #[arg(long, default_value_t = CONTEXT_TOKENS)]
    context_tokens: u32,
    /// Whether system prompts and tools of equal sizes are the same text in all Claude Code sessions
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    share: bool,
    /// Tokens of a block in rows
    #[arg(long, default_value_t = 512)]
    row_block_tokens: u32,
    #[command(flatten)]
    target: Target,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let Command::Analyze(args) = &args.command;
    if args.trace.as_deref().is_some_and(|path| path.as_os_str() == LIVE) {
        anyhow::ensure!(
            args.html.is_none(),
            "--html is for recorded traces; live has tables and JSON"
        );
        return live::run(&args.target).await;
    }
    let settings = ReadSettings {
        context_tokens: args.context_tokens,
        share: args.share,
        row_block_tokens: args.row_block_tokens,
        records: true,
        ..ReadSettings::default()
    };
    let (trace, source) = match (&args.mix, &args.trace) {
        (Some(name), _) => (read::mix(name, args.sessions, args.seed)?, format!("mix {name}")),
        (None, Some(path)) => (read::trace(path, &settings)?, path.display().to_string()),
        (None, None) => anyhow::bail!("give a FILE or --mix"),
    };
    let analysis = analyze(&trace);
    if let Some(file) = &args.html {
        fs::write(file, analysis.page(&source))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    match args.target.output {
        Format::Json => print_json(&serde_json::to_value(&analysis)?),
        Format::Table => print_tables(&analysis),
    }
    Ok(())
}

fn print_tables(analysis: &Analysis) {
    for part in analysis.tables() {
        print(&format!("{}\n{}\n", part.title, table(&part.headers, &part.rows)));
    }
    let absent: Vec<String> = analysis.absent.iter().map(|what| format!("- {what}")).collect();
    print(&format!("Not in this trace\n{}", absent.join("\n")));
}
