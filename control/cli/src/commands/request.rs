//! `mainstay request explain`: the router's reasons.

use clap::Subcommand;
use serde_json::Value;

use crate::http::Target;
use crate::output::{Format, cell, print, print_json, table};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: RequestCommand,
}

#[derive(Subcommand)]
enum RequestCommand {
    /// Show every candidate and its cost
    Explain {
        /// The request's id, as in the answer's x-request-id header, or `last`
        #[arg(default_value = "last")]
        id: String,
        #[command(flatten)]
        target: Target,
    },
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let RequestCommand::Explain { id, target } = args.command;
    let explained = target.get(&format!("/api/v1/requests/{id}/explain")).await?;
    if target.output == Format::Json {
        print_json(&explained);
        return Ok(());
    }
    print(&format!(
        "request {} → {} · overlap {} of {} blocks · cost {} ms",
        cell(&explained, "request"),
        cell(&explained, "worker"),
        cell(&explained, "overlap_blocks"),
        cell(&explained, "prompt_blocks"),
        cell(&explained, "cost_ms"),
    ));
    let keys = [
        "worker",
        "region",
        "overlap_blocks",
        "prefill_ms",
        "queue_ms",
        "decode_ms",
        "region_ms",
        "cost_ms",
        "note",
    ];
    let candidates = explained["candidates"].as_array().map_or(&[][..], Vec::as_slice);
    let rows: Vec<Vec<String>> =
        candidates.iter().map(|c: &Value| keys.iter().map(|k| cell(c, k)).collect()).collect();
    print(&table(
        &["WORKER", "REGION", "OVERLAP", "PREFILL", "QUEUE", "DECODE", "AWAY", "COST", "NOTE"],
        &rows,
    ));
    Ok(())
}
