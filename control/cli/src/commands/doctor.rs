//! `mainstay doctor`: looks, and changes nothing.

use std::ffi::OsString;

use serde_json::Value;

use crate::commands::addresses;
use crate::commands::admin::Credentials;
use crate::doctor::checks::{CHECKS, Check, GROUPS};
use crate::doctor::{self, Finding, Level, Setup};
use crate::http::Target;
use crate::output::{Failure, Format, print, print_json, table};
use crate::settings;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What would be started: `serve`, `control`, `gateway` or `worker` [default: serve, without --control and --addr]
    #[arg(value_parser = settings::ROLES)]
    role: Option<String>,
    /// Members of a running cluster to ask, as HOST:PORT,…
    #[arg(long, env = "MAINSTAY_CONTROL")]
    control: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// A running gateway to ask, such as http://127.0.0.1:8000
    #[arg(long, value_name = "URL")]
    addr: Option<String>,
    /// The API key to send there
    #[arg(long, env = "MAINSTAY_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Only these checks, as ID,…
    #[arg(long, value_name = "ID,…", value_delimiter = ',', value_parser = known)]
    only: Vec<String>,
    /// Only this machine: do not ask the members that the role would call
    #[arg(long)]
    here: bool,
    /// Take warnings for failures
    #[arg(long)]
    strict: bool,
    /// List the checks
    #[arg(long)]
    list: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// The role's own flags, such as --config FILE
    #[arg(last = true, value_name = "FLAG")]
    flags: Vec<OsString>,
}

fn known(id: &str) -> Result<String, String> {
    let ids: Vec<&str> = CHECKS.iter().map(|check| check.id).collect();
    if ids.contains(&id) {
        return Ok(id.to_owned());
    }
    Err(settings::nearest(id, &ids).map_or_else(
        || "mainstay doctor --list has them".to_owned(),
        |near| format!("did you mean {near}?"),
    ))
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    if args.list {
        list(args.output);
        return Ok(());
    }
    let mut found = look(&args).await;
    found.retain(|finding| {
        args.only.is_empty() || args.only.iter().any(|id| id == finding.check.id)
    });
    match args.output {
        Format::Json => print_json(&found.iter().map(Finding::json).collect::<Value>()),
        Format::Table => show(&found),
    }
    let bad = if args.strict { Level::Warning } else { Level::Failure };
    let count = found.iter().filter(|finding| finding.level >= bad).count();
    if count == 0 {
        return Ok(());
    }
    let noun = if count == 1 { "check" } else { "checks" };
    Err(Failure { message: format!("{count} {noun} failed"), exit: 1 }.into())
}

async fn look(args: &Args) -> Vec<Finding> {
    let members = args.control.as_deref().map(addresses).unwrap_or_default();
    let asks = !args.here && (args.control.is_some() || args.addr.is_some());
    let role = args.role.as_deref().or((!asks).then_some("serve"));
    let credentials = (!args.here).then_some(&args.credentials);
    let mut found = findings(role, &args.flags, &members, credentials).await;
    if let Some(addr) = args.addr.as_ref().filter(|_| !args.here) {
        let target = Target::of(addr.clone(), args.api_key.clone(), args.output);
        found.push(doctor::look_at_gateway(&target).await);
    }
    found
}

/// Looks at what a role would be started with, and with credentials at a cluster: the members named, and those that the
/// role would call.
pub(crate) async fn findings(
    role: Option<&str>,
    flags: &[OsString],
    members: &[String],
    credentials: Option<&Credentials>,
) -> Vec<Finding> {
    let (mut found, mut members) = (Vec::new(), members.to_vec());
    if let Some(role) = role {
        match settings::preview(role, flags, std::env::vars_os()) {
            Ok((resolved, matches)) => {
                let holds_keys = resolved.layers.table.contains_key("keys");
                let setup = Setup::of(role, &matches, holds_keys);
                found.push(doctor::good_configuration(role));
                members.extend(setup.members.clone());
                // Names are resolved and disks asked: nothing that may hold up the others.
                let looked = tokio::task::spawn_blocking(move || doctor::look_at_setup(&setup));
                found.extend(looked.await.unwrap_or_default());
            }
            Err(error) => found.push(doctor::bad_configuration(&error)),
        }
    }
    if let Some(credentials) = credentials.filter(|_| !members.is_empty()) {
        found.extend(doctor::look_at_cluster(credentials, &members).await);
    }
    found
}

fn list(output: Format) {
    if output == Format::Json {
        let one = |check: &&Check| serde_json::json!({"id": check.id, "group": check.group, "about": check.about, "page": check.page()});
        return print_json(&CHECKS.iter().map(one).collect());
    }
    let rows: Vec<Vec<String>> = CHECKS
        .iter()
        .map(|check| [check.id, check.group, check.about].map(str::to_owned).to_vec())
        .collect();
    print(&table(&["CHECK", "GROUP", "FAILS WHEN"], &rows));
}

fn show(found: &[Finding]) {
    for group in GROUPS {
        let of_group: Vec<&Finding> = found.iter().filter(|f| f.check.group == group).collect();
        if of_group.is_empty() {
            continue;
        }
        print(&format!("\n{group}"));
        for finding in of_group {
            let mark = match finding.level {
                Level::Ok => "ok  ",
                Level::Skipped => "-   ",
                Level::Warning => "WARN",
                Level::Failure => "FAIL",
            };
            print(&format!("  {mark}  {}: {}", finding.check.id, finding.what));
            if let Some(next) = &finding.next {
                print(&format!("        type: {next}"));
                print(&format!("        read: {}", finding.check.page()));
            }
        }
    }
}
