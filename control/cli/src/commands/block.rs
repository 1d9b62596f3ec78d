//! `mainstay block find`: who holds a session's prefix, or one block.

use clap::Subcommand;
use serde_json::Value;

use crate::http::{Target, segment};
use crate::output::{Format, cell, print, print_json, table};
use crate::watching::WatchArgs;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: BlockCommand,
}

#[derive(Subcommand)]
enum BlockCommand {
    /// Which workers hold it, in which tiers, and under which pins
    Find {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        watch: WatchArgs,
    },
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// The prefix of this session's last turn, by the session's key
    #[arg(long, value_name = "KEY")]
    session: Option<String>,
    /// The block of this sequence hash, such as a pin's `last_block`
    #[arg(long, value_name = "HASH")]
    hash: Option<String>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let BlockCommand::Find { what, target, watch } = args.command;
    let path = match (&what.session, &what.hash) {
        (Some(session), _) => format!("/v1/blocks?session={}", segment(session)),
        (None, hash) => format!("/v1/blocks?hash={}", segment(hash.as_deref().unwrap_or_default())),
    };
    watch.repeat(async || find(&path, &target).await).await
}

async fn find(path: &str, target: &Target) -> anyhow::Result<()> {
    let found = target.get(path).await?;
    match target.output {
        Format::Json => print_json(&found),
        Format::Table => print(&shown(&found)),
    }
    Ok(())
}

fn shown(found: &Value) -> String {
    let what = match found["session"].as_str() {
        Some(session) => format!(
            "session {session} · {} blocks of {} tokens · {} held at most by one worker",
            cell(found, "blocks"),
            cell(found, "block_tokens"),
            cell(found, "reach"),
        ),
        None => {
            format!("block {} · number {} of its chain", cell(found, "hash"), cell(found, "depth"))
        }
    };
    let row = |holder: &Value| {
        let tiers = holder["tiers"].as_array().map_or(&[][..], Vec::as_slice);
        let tiers = tiers.iter().map(|t| format!("{}:{}", cell(t, "tier"), cell(t, "blocks")));
        vec![cell(holder, "worker"), cell(holder, "blocks"), tiers.collect::<Vec<_>>().join(",")]
    };
    let rows = |key: &str, row: &dyn Fn(&Value) -> Vec<String>| -> Vec<Vec<String>> {
        found[key].as_array().into_iter().flatten().map(row).collect()
    };
    let holders = table(&["WORKER", "BLOCKS", "TIERS"], &rows("holders", &row));
    let row = |pin: &Value| {
        vec![cell(pin, "id"), cell(pin, "state"), cell(pin, "blocks"), cell(pin, "priority")]
    };
    let pins = rows("pins", &row);
    let class = cell(found, "class");
    let mut text = format!("{what} · {class}\n{holders}");
    if !pins.is_empty() {
        text.push('\n');
        text.push_str(&table(&["PIN", "STATE", "BLOCKS", "PRIORITY"], &pins));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_found_reads_well() {
        let found = json!({
            "session": "s", "hash": "00", "blocks": 9, "depth": 9, "block_tokens": 16, "reach": 8,
            "class": "pinned", "pins": [{"id": "p-1", "state": "active", "blocks": 4, "priority": 90}],
            "holders": [{"worker": "w1", "worker_id": 1, "blocks": 8,
                "tiers": [{"tier": "device", "blocks": 5}, {"tier": "host", "blocks": 3}]}],
        });
        let text = shown(&found);
        assert!(text.starts_with("session s · 9 blocks of 16 tokens · 8 held"), "{text}");
        assert!(
            text.contains("w1      8       device:5,host:3") && text.contains("p-1  active"),
            "{text}"
        );
        let nowhere = json!({"session": null, "hash": "ab", "blocks": 1, "depth": null,
            "class": "nowhere", "holders": [], "pins": []});
        let text = shown(&nowhere);
        assert_eq!(text, "block ab · number - of its chain · nowhere\nWORKER  BLOCKS  TIERS");
    }
}
