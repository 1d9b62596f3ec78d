//! `mainstay session`: whose turns a gateway serves, and what there is to say of one.

use clap::Subcommand;
use reqwest::Method;
use serde_json::Value;

use crate::http::{Target, segment};
use crate::output::{Format, cell, duration, print, print_json, table};
use crate::watching::WatchArgs;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: SessionCommand,
}

#[derive(Subcommand)]
enum SessionCommand {
    /// List sessions, the one seen last first
    Ls {
        /// Also those that ended lately
        #[arg(long)]
        all: bool,
        /// How many at most
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000), default_value = "100")]
        limit: u32,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Show one session
    Show {
        /// Its key, as `ls` has it
        key: String,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Bring its prefix back to where its next turn will run
    Prefetch {
        /// Its key, or the name that its client has for it
        key: String,
        #[command(flatten)]
        target: Target,
    },
    /// End it: what it alone holds goes first
    End {
        /// Its key, or the name that its client has for it
        key: String,
        #[command(flatten)]
        target: Target,
    },
    /// End it, release its pins and forget it
    Reset {
        /// Its key, or the name that its client has for it
        key: String,
        #[command(flatten)]
        target: Target,
    },
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        SessionCommand::Ls { all, limit, target, watch } => {
            watch.repeat(async || list(all, limit, &target).await).await?;
        }
        SessionCommand::Show { key, target, watch } => {
            watch.repeat(async || show(&key, &target).await).await?;
        }
        SessionCommand::Prefetch { key, target } => {
            let told = tell(&key, "prefetch", &target).await?;
            print_answer(&told, target.output, prefetched);
        }
        SessionCommand::End { key, target } => {
            let told = tell(&key, "end", &target).await?;
            print_answer(&told, target.output, |session| {
                format!("{} has ended", cell(session, "key"))
            });
        }
        SessionCommand::Reset { key, target } => {
            let told = tell(&key, "reset", &target).await?;
            print_answer(&told, target.output, |session| {
                let (key, pins) = (cell(session, "key"), cell(session, "pins_released"));
                format!("{key} is forgotten; pins released: {pins}")
            });
        }
    }
    Ok(())
}

async fn tell(key: &str, what: &str, target: &Target) -> anyhow::Result<Value> {
    target.ask(Method::POST, &format!("/v1/sessions/{}/{what}", segment(key)), None).await
}

fn print_answer(answer: &Value, format: Format, say: impl FnOnce(&Value) -> String) {
    match format {
        Format::Json => print_json(answer),
        Format::Table => print(&say(answer)),
    }
}

async fn list(all: bool, limit: u32, target: &Target) -> anyhow::Result<()> {
    let list = target.get(&format!("/v1/sessions?all={all}&limit={limit}")).await?;
    print_answer(&list, target.output, |list| {
        let sessions = list["data"].as_array().map_or(&[][..], Vec::as_slice);
        let more = if list["has_more"] == true { "\nthere are more; raise --limit" } else { "" };
        format!("{}{more}", sessions_table(sessions))
    });
    Ok(())
}

async fn show(key: &str, target: &Target) -> anyhow::Result<()> {
    let session = target.get(&format!("/v1/sessions/{}", segment(key))).await?;
    print_answer(&session, target.output, shown);
    Ok(())
}

/// The share of prompt tokens that were found in a cache.
pub(super) fn cached(session: &Value) -> String {
    let count = |key: &str| session[key].as_u64().unwrap_or_default();
    match count("prompt_tokens") {
        0 => "-".to_owned(),
        prompt => format!("{:.0} %", 100.0 * count("cached_tokens") as f64 / prompt as f64),
    }
}

/// How it stands, and what for.
pub(super) fn state(session: &Value) -> String {
    let why = match session["ended"].as_str() {
        Some(why) => why.to_owned(),
        None => names(session, "waits_for"),
    };
    if why.is_empty() {
        cell(session, "state")
    } else {
        format!("{} ({why})", cell(session, "state"))
    }
}

fn names(session: &Value, key: &str) -> String {
    let all = session[key].as_array().map_or(&[][..], Vec::as_slice);
    all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

fn ago(session: &Value, key: &str) -> String {
    duration(session[key].as_u64().unwrap_or_default())
}

fn sessions_table(sessions: &[Value]) -> String {
    let row = |session: &Value| {
        vec![
            cell(session, "key"),
            cell(session, "client"),
            state(session),
            cell(session, "parent"),
            cell(session, "turns"),
            cell(session, "context_tokens"),
            cached(session),
            ago(session, "last_seen_ms_ago"),
        ]
    };
    let rows: Vec<Vec<String>> = sessions.iter().map(row).collect();
    let headers =
        ["SESSION", "CLIENT", "STATE", "PARENT", "TURNS", "CONTEXT", "CACHED", "SEEN AGO"];
    table(&headers, &rows)
}

fn shown(session: &Value) -> String {
    let children = names(session, "children");
    let rows = [
        ("session", cell(session, "key")),
        ("named by", cell(session, "named_by")),
        ("client", cell(session, "client")),
        ("state", state(session)),
        ("parent", cell(session, "parent")),
        ("forked from", cell(session, "forked_from")),
        ("children", if children.is_empty() { "-".to_owned() } else { children }),
        ("turns", cell(session, "turns")),
        ("side requests", cell(session, "side_requests")),
        ("compactions", cell(session, "compactions")),
        ("context", format!("{} tokens", cell(session, "context_tokens"))),
        (
            "prompts",
            format!("{} tokens, {} cached", cell(session, "prompt_tokens"), cached(session)),
        ),
        ("answers", format!("{} tokens", cell(session, "completion_tokens"))),
        ("age", ago(session, "age_ms")),
        ("seen", format!("{} ago", ago(session, "last_seen_ms_ago"))),
    ];
    let line = |(name, value): &(&str, String)| format!("{name:<13}  {value}");
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What became of a prefetch, in a line.
fn prefetched(told: &Value) -> String {
    let (key, blocks) = (cell(told, "key"), cell(told, "blocks"));
    let (worker, came) = (cell(told, "worker"), cell(told, "brought_blocks"));
    let held = cell(told, "held_blocks");
    match told["outcome"].as_str().unwrap_or_default() {
        "brought" => {
            format!("{key}: {came} of {blocks} blocks brought to {worker}, {held} were there")
        }
        "held" => format!("{key}: all {blocks} blocks are at {worker} already"),
        "nothing" => format!(
            "{key}: nobody has more than the {held} of {blocks} blocks at {worker}; the next turn computes the rest"
        ),
        "under_way" => format!("{key}: its prefix is on its way already"),
        "called_off" => format!("{key}: it is back, so nothing was brought in"),
        other => format!("{key}: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_session_reads_well() {
        let session = json!({
            "key": "a7", "client": "claude-cli/2.1", "state": "paused", "waits_for": ["Read", "Bash"],
            "ended": null, "parent": null, "turns": 2, "context_tokens": 900, "prompt_tokens": 1000,
            "cached_tokens": 250, "last_seen_ms_ago": 4_000, "age_ms": 61_000, "children": ["b1"],
        });
        let text = sessions_table(std::slice::from_ref(&session));
        let row: Vec<&str> =
            text.lines().nth(1).unwrap_or_default().split("  ").map(str::trim).collect();
        let row: Vec<&str> = row.into_iter().filter(|cell| !cell.is_empty()).collect();
        assert_eq!(
            row,
            ["a7", "claude-cli/2.1", "paused (Read,Bash)", "-", "2", "900", "25 %", "4s"]
        );
        let all = shown(&session);
        assert!(
            all.contains("children       b1") && all.contains("1000 tokens, 25 % cached"),
            "{all}"
        );
        let ended = json!({"key": "x", "state": "ended", "ended": "idle"});
        assert_eq!((state(&ended).as_str(), cached(&ended).as_str()), ("ended (idle)", "-"));
    }

    #[test]
    fn every_outcome_of_a_prefetch_says_what_it_means() {
        let told = |outcome: &str| {
            prefetched(&json!({"key": "s", "outcome": outcome, "worker": "w1", "blocks": 9,
                "held_blocks": 2, "brought_blocks": 7}))
        };
        assert_eq!(told("brought"), "s: 7 of 9 blocks brought to w1, 2 were there");
        assert!(told("held").contains("all 9") && told("nothing").contains("2 of 9"));
        assert!(told("under_way").contains("on its way") && told("called_off").contains("back"));
    }
}
