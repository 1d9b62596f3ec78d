//! `mainstay trace analyze`: what recorded traffic says, before any of it is played.
//!
//! The analysis is a pure crate's; here files are read, and tables, JSON or a page come out. A figure that the trace
//! does not have is a dash, and named at the end.

pub(crate) mod read;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use mainstay_replay::{Analysis, ReadSettings, analyze};

use crate::output::{Format, print, print_json, table};

/// Prompts of any length that a trace can hold are analysed, unless something else is said.
const CONTEXT_TOKENS: u32 = 1 << 24;

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
    /// A folder of Claude Code sessions (*.json), one of them, or lines as Mooncake and Dynamo write them (*.jsonl)
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
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Command::Analyze(args) = &args.command;
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
    match args.output {
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
