//! `mainstay config`: what a role would be started with and why, whether a file is right, and what may stand in it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{ArgMatches, Subcommand};
use mainstay_gateway::GatewayConfig;
use serde_json::{Value, json};

use crate::config::FileConfig;
use crate::output::{Format, cell, print, print_json, table};
use crate::settings::{self, Key, Layers, Origin, Resolved, keys_of};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// What a role would be started with; secrets are told as set or not
    Show {
        /// `serve`, `control`, `gateway` or `worker`
        #[arg(value_parser = settings::ROLES)]
        role: String,
        /// Say where each value is from
        #[arg(long)]
        origin: bool,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
        /// The role's own flags, such as --config FILE
        #[arg(last = true, value_name = "FLAG")]
        flags: Vec<OsString>,
    },
    /// Whether a file is right, for every role that it has a section of
    Check {
        /// The file
        #[arg(env = "MAINSTAY_CONFIG")]
        file: PathBuf,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// The file as a JSON Schema
    Schema,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        ConfigCommand::Show { role, origin, output, flags } => {
            let (resolved, matches) = settings::preview(role, flags, std::env::vars_os())?;
            show(&shown(role, &resolved, &matches), *origin, *output);
        }
        ConfigCommand::Check { file, output } => check(file, *output)?,
        ConfigCommand::Schema => print_json(&settings::schema()),
    }
    Ok(())
}

/// A key's value as clap has it; `None` where nothing is set.
pub(crate) fn value_of(key: &Key, matches: &ArgMatches) -> Option<String> {
    let raw = matches.try_get_raw(&key.id).ok().flatten()?;
    let parts: Vec<String> = raw.map(|part| part.to_string_lossy().into_owned()).collect();
    Some(parts.join(","))
}

/// All keys of a role, and what else the layers hold, without secrets.
pub(crate) fn shown(role: &str, resolved: &Resolved, matches: &ArgMatches) -> Value {
    let line = |key: String, value: Option<String>, origin: &Origin| {
        let note = value.is_none().then_some("not set");
        json!({"key": key, "value": value, "origin": origin.name(), "place": origin.place(), "note": note})
    };
    let mut lines: Vec<Value> = keys_of(role)
        .iter()
        .map(|key| {
            let value = value_of(key, matches);
            let value = if key.is_secret { value.map(|_| "(set)".to_owned()) } else { value };
            let mut line =
                line(format!("{role}.{}", key.name), value, &resolved.origin(key, matches));
            if key.is_required && line["value"].is_null() {
                line["note"] = json!("required");
            }
            line
        })
        .collect();
    for (section, keys) in &resolved.layers.table {
        let Some(keys) = keys.as_table().filter(|_| !settings::ROLES.contains(&section.as_str()))
        else {
            continue;
        };
        for (key, value) in keys {
            let Some((_, origin)) = resolved.layers.get(section, key) else { continue };
            let value = if is_secret(key) { "(set)".to_owned() } else { value.to_string() };
            lines.push(line(format!("{section}.{key}"), Some(value), origin));
        }
    }
    Value::Array(lines)
}

/// Whether a key of an engine, whose words are its vendor's, sounds like a secret.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    // Tokens are counted, too: `context_tokens_max` is none.
    let is_word = |word: &str| key.split(['_', '-', '.']).any(|part| part == word);
    ["key", "apikey", "token", "secret", "password", "credential", "credentials"]
        .into_iter()
        .any(is_word)
}

fn show(lines: &Value, origin: bool, output: Format) {
    if output == Format::Json {
        return print_json(lines);
    }
    let row = |line: &Value| {
        let value = line["value"].as_str().or(line["note"].as_str()).unwrap_or("-");
        let value = if value == "not set" { "-" } else { value };
        let mut cells = vec![cell(line, "key"), value.to_owned()];
        if origin {
            cells.push(cell(line, "origin"));
            cells.push(cell(line, "place"));
        }
        cells
    };
    let rows: Vec<Vec<String>> =
        lines.as_array().map_or(&[][..], Vec::as_slice).iter().map(row).collect();
    let headers = ["KEY", "VALUE", "ORIGIN", "PLACE"];
    print(&table(&headers[..if origin { 4 } else { 2 }], &rows));
}

/// Reads the file as each role in it would; the environment has no say.
///
/// # Errors
/// What is wrong first.
pub(crate) fn check_file(file: &Path) -> anyhow::Result<Vec<&'static str>> {
    let nothing = || std::iter::empty::<(OsString, OsString)>();
    let layers = Layers::read(Some(file), nothing())?;
    let mut roles = Vec::new();
    for role in settings::ROLES {
        if !layers.table.contains_key(role) {
            continue;
        }
        settings::preview(role, &["--config".into(), file.into()], nothing())?;
        roles.push(role);
    }
    let mut gateway = GatewayConfig::new(([127, 0, 0, 1], 0).into(), Vec::new());
    FileConfig::of(layers)?.apply(&mut gateway)?;
    Ok(roles)
}

fn check(file: &Path, output: Format) -> anyhow::Result<()> {
    let roles = check_file(file)?;
    match output {
        Format::Json => print_json(&json!({"file": file.to_string_lossy(), "roles": roles})),
        Format::Table if roles.is_empty() => {
            print(&format!("{} is right; it has no section of a role", file.display()));
        }
        Format::Table => print(&format!("{} is right for {}", file.display(), roles.join(", "))),
    }
    Ok(())
}
