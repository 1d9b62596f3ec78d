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
        "stored_blocks",
        "prefill_ms",
        "queue_ms",
        "decode_ms",
        "load_ms",
        "region_ms",
        "cost_ms",
        "note",
    ];
    let candidates = explained["candidates"].as_array().map_or(&[][..], Vec::as_slice);
    let rows: Vec<Vec<String>> =
        candidates.iter().map(|c: &Value| keys.iter().map(|k| cell(c, k)).collect()).collect();
    print(&table(
        &[
            "WORKER", "REGION", "OVERLAP", "STORED", "PREFILL", "QUEUE", "DECODE", "LOAD", "AWAY",
            "COST", "NOTE",
        ],
        &rows,
    ));
    print_hints(&explained);
    Ok(())
}

/// What the request was told with, and what that changed.
fn print_hints(explained: &Value) {
    if let Some(queued) = explained.get("queued").filter(|queued| !queued.is_null()) {
        print(&format!(
            "waited {} ms at the router, and went before {} that came earlier",
            cell(queued, "wait_ms"),
            cell(queued, "overtook")
        ));
    }
    let Some(hints) = explained.get("hints").filter(|hints| !hints.is_null()) else { return };
    let names = ["priority", "strict_priority", "osl", "latency_sensitivity"];
    let mut told: Vec<String> = Vec::new();
    for name in names {
        if hints[name].as_f64().is_some_and(|value| value != 0.0) {
            told.push(format!("{name} {}", cell(hints, name)));
        }
    }
    let without = &hints["without"];
    let effect = match without["changed"].as_bool() {
        Some(true) => format!("without them it would have gone to {}", cell(without, "worker")),
        _ => "it would have gone there without them, too".to_owned(),
    };
    let cost = match without["cost_ms"].as_f64() {
        Some(_) => format!("; this worker would have counted {} ms", cell(without, "cost_ms")),
        None => String::new(),
    };
    print(&format!("hints: {}: {effect}{cost}", told.join(", ")));
}
