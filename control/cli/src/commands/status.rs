//! `mainstay status`: members, workers and pins on one screen.

use serde_json::Value;

use crate::http::Target;
use crate::output::{Format, cell, print, print_json, table};
use crate::watching::WatchArgs;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    watch: WatchArgs,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    args.watch.repeat(async || show(&args).await).await
}

async fn show(args: &Args) -> anyhow::Result<()> {
    let status = args.target.get("/api/v1/status").await?;
    if args.target.output == Format::Json {
        print_json(&status);
        return Ok(());
    }
    print(&format!(
        "leader m{} (term {}) · version {} · log index {} · {} live pins · {} blocks in the index · replica {} ms old · gateway in {}\n",
        cell(&status, "leader"),
        cell(&status, "term"),
        cell(&status, "version"),
        cell(&status, "applied_index"),
        cell(&status, "pins_live"),
        cell(&status, "index_blocks"),
        cell(&status["gateway"], "replica_age_ms"),
        cell(&status["gateway"], "region"),
    ));
    print(&members(&status));
    print("");
    let workers = list(&status, "workers");
    let keys = ["name", "region", "state", "model", "epoch", "blocks", "blocks_total", "address"];
    let rows: Vec<Vec<String>> =
        workers.iter().map(|w| keys.iter().map(|k| cell(w, k)).collect()).collect();
    print(&table(
        &["WORKER", "REGION", "STATE", "MODEL", "EPOCH", "BLOCKS", "OF", "ADDRESS"],
        &rows,
    ));
    Ok(())
}

fn list<'a>(status: &'a Value, key: &str) -> &'a [Value] {
    status[key].as_array().map_or(&[], Vec::as_slice)
}

/// The members' table, also of `mainstay control members`.
pub(crate) fn members(status: &Value) -> String {
    let keys = [
        "id",
        "region",
        "role",
        "version",
        "address",
        "last_log_index",
        "applied_index",
        "lag",
        "reachable",
    ];
    let rows: Vec<Vec<String>> =
        list(status, "members").iter().map(|m| keys.iter().map(|k| cell(m, k)).collect()).collect();
    let headers = [
        "MEMBER",
        "REGION",
        "ROLE",
        "VERSION",
        "ADDRESS",
        "LAST LOG",
        "APPLIED",
        "LAG",
        "REACHABLE",
    ];
    table(&headers, &rows)
}
