//! `mainstay control inspect`, `backup` and `restore`: work on the data directory of a member that is down.

use std::path::PathBuf;

use mainstay_raft::{Inspection, Position, RestoreTo};
use mainstay_state::{Limits, Pin};
use mainstay_types::NodeId;
use serde_json::{Value, json};

use crate::output::{Failure, Format, duration, print, print_json, table};

#[derive(clap::Args)]
pub(crate) struct InspectArgs {
    /// The member's --data-dir
    dir: PathBuf,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(clap::Args)]
pub(crate) struct BackupArgs {
    /// The member's --data-dir
    dir: PathBuf,
    /// The file to write; it must not exist
    file: PathBuf,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(clap::Args)]
pub(crate) struct RestoreArgs {
    /// A file that `mainstay control backup` wrote
    file: PathBuf,
    /// The data directory to make; it must not exist, or be empty
    dir: PathBuf,
    /// The number of the only member of the new group
    #[arg(long)]
    member: u64,
    /// Where others will reach it, as HOST:PORT
    #[arg(long, default_value = "127.0.0.1:7400")]
    advertise: String,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Exit code 1 if there are problems, so that scripts notice.
pub(crate) fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let seen = mainstay_raft::inspect(&args.dir, &Limits::standard())?;
    match args.output {
        Format::Json => print_json(&inspection_json(&seen)),
        Format::Table => print_inspection(&seen),
    }
    let problems = seen.problems.len() as u64 + seen.problems_more;
    if problems == 0 {
        return Ok(());
    }
    let message = format!("{} has {problems} problems", args.dir.display());
    Err(Failure { message, exit: 1 }.into())
}

pub(crate) fn backup(args: &BackupArgs) -> anyhow::Result<()> {
    let done = mainstay_raft::backup(&args.dir, &args.file)?;
    match args.output {
        Format::Json => print_json(&json!({
            "member": done.member, "log_entries": done.entries, "last_index": done.last_index,
            "bytes": done.bytes,
        })),
        Format::Table => print(&format!(
            "member {} up to log index {}, {} entries beside the snapshot, {} bytes in {}",
            done.member,
            done.last_index,
            done.entries,
            done.bytes,
            args.file.display()
        )),
    }
    Ok(())
}

pub(crate) fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let to = RestoreTo {
        member: NodeId(args.member),
        address: args.advertise.clone(),
        limits: Limits::standard(),
    };
    let done = mainstay_raft::restore(&args.file, &args.dir, &to)?;
    match args.output {
        Format::Json => print_json(&json!({
            "member": args.member, "instance": hex(done.instance), "from_member": done.from_member,
            "last_index": done.last_index, "index": done.index, "pins_live": done.pins_live,
        })),
        Format::Table => print(&format!(
            "{} live pins of log index {} (a backup of member {}) in {}; start it with\n  mainstay control --node-id {} --data-dir {} --listen {}\nand let other members join it with --join {} and ids that were never used",
            done.pins_live,
            done.last_index,
            done.from_member,
            args.dir.display(),
            args.member,
            args.dir.display(),
            args.advertise,
            args.advertise,
        )),
    }
    Ok(())
}

fn hex(instance: u64) -> String {
    format!("{instance:016x}")
}

fn position_json(at: Option<Position>) -> Value {
    at.map_or(Value::Null, |at| json!({"term": at.term, "index": at.index}))
}

fn pin_json(pin: &Pin, time_ms: u64) -> Value {
    let request = &pin.request;
    json!({
        "id": request.id.to_string(), "tenant": request.tenant.as_str(),
        "owner": request.owner.as_ref().map(|o| o.as_str()), "state": pin.state.name(),
        "blocks": request.blocks.len(), "prefix_tokens": request.prefix_tokens,
        "ttl_left_ms": left_ms(pin, time_ms), "created_index": pin.created_index.0,
        "reason": pin.reason,
    })
}

fn left_ms(pin: &Pin, time_ms: u64) -> u64 {
    if pin.is_live() { pin.expires_ms.saturating_sub(time_ms) } else { 0 }
}

fn inspection_json(seen: &Inspection) -> Value {
    let snapshot = seen.snapshot.as_ref().map(|s| {
        json!({
            "at": position_json(s.at), "bytes": s.bytes, "digest": format!("{:032x}", s.digest),
            "pins": s.pins.iter().map(|p| pin_json(p, s.time_ms)).collect::<Vec<_>>(),
        })
    });
    let members: Vec<Value> = seen
        .members
        .iter()
        .map(|m| {
            json!({
                "id": m.id, "address": m.address, "instance": hex(m.instance), "voter": m.voter,
            })
        })
        .collect();
    json!({
        "member": seen.member, "instance": hex(seen.instance), "format": seen.format,
        "vote": seen.vote.map(|v| json!({
            "term": v.term, "member": v.member, "committed": v.committed,
        })),
        "committed": position_json(seen.committed), "purged": position_json(seen.purged),
        "log": {
            "first": position_json(seen.log.first), "last": position_json(seen.log.last),
            "entries": seen.log.entries, "bytes": seen.log.bytes, "kinds": seen.log.kinds,
        },
        "snapshot": snapshot, "members": members, "problems": seen.problems,
        "problems_more": seen.problems_more,
    })
}

fn print_inspection(seen: &Inspection) {
    print(&table(&["WHAT", "VALUE"], &summary(seen)));
    let members: Vec<Vec<String>> = seen
        .members
        .iter()
        .map(|m| vec![m.id.to_string(), m.address.clone(), hex(m.instance), m.voter.to_string()])
        .collect();
    print(&format!("\n{}", table(&["MEMBER", "ADDRESS", "INSTANCE", "VOTER"], &members)));
    let kinds: Vec<Vec<String>> =
        seen.log.kinds.iter().map(|(kind, n)| vec![(*kind).to_owned(), n.to_string()]).collect();
    print(&format!("\n{}", table(&["ENTRIES IN THE LOG", "COUNT"], &kinds)));
    if let Some(s) = &seen.snapshot {
        let rows: Vec<Vec<String>> = s.pins.iter().map(|p| pin_row(p, s.time_ms)).collect();
        let headers = ["PIN IN THE SNAPSHOT", "STATE", "TENANT", "BLOCKS", "TTL LEFT", "OWNER"];
        print(&format!("\n{}", table(&headers, &rows)));
    }
    for problem in &seen.problems {
        print(&format!("problem: {problem}"));
    }
    if seen.problems_more > 0 {
        print(&format!("problem: and {} more", seen.problems_more));
    }
}

fn summary(seen: &Inspection) -> Vec<Vec<String>> {
    let at = |at: Option<Position>| {
        at.map_or_else(|| "-".to_owned(), |at| format!("{} (term {})", at.index, at.term))
    };
    let vote = seen.vote.map_or_else(
        || "-".to_owned(),
        |v| {
            let given = if v.committed { ", committed" } else { "" };
            format!("member {} in term {}{given}", v.member, v.term)
        },
    );
    let mut rows = vec![
        ("member", seen.member.to_string()),
        ("instance", hex(seen.instance)),
        ("format", seen.format.to_string()),
        ("vote", vote),
        ("committed", at(seen.committed)),
        ("purged", at(seen.purged)),
        ("log from", at(seen.log.first)),
        ("log to", at(seen.log.last)),
        ("log size", format!("{} entries, {} bytes", seen.log.entries, seen.log.bytes)),
    ];
    if let Some(s) = &seen.snapshot {
        rows.push(("snapshot at", at(s.at)));
        rows.push(("snapshot size", format!("{} bytes", s.bytes)));
        rows.push(("digest", format!("{:032x}", s.digest)));
    }
    rows.into_iter().map(|(what, value)| vec![what.to_owned(), value]).collect()
}

fn pin_row(pin: &Pin, time_ms: u64) -> Vec<String> {
    let request = &pin.request;
    vec![
        request.id.to_string(),
        pin.state.name().to_owned(),
        request.tenant.as_str().to_owned(),
        request.blocks.len().to_string(),
        duration(left_ms(pin, time_ms)),
        request.owner.as_ref().map_or("-", |o| o.as_str()).to_owned(),
    ]
}
