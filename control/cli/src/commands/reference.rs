//! `mainstay completions` and `mainstay reference`: what clap and the lists in this program know, for shells, people and
//! the pages under `docs/`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Arg, ArgAction, Command};

use crate::output::print;
use crate::settings::{self, ROLES};

/// Behind this line of `docs/reference/cli.md` comes what is printed here.
#[cfg(test)]
const MARK: &str = "<!-- From here on: what `mainstay reference cli` prints. -->";

#[derive(clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `cli`, `metrics`, `doctor`, or `man` with --out
    #[arg(value_parser = ["cli", "metrics", "doctor", "man"])]
    page: String,
    /// Where to write man pages
    #[arg(long, value_name = "DIR", required_if_eq("page", "man"))]
    out: Option<PathBuf>,
}

pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut settings::command(), "mainstay", &mut script);
    print(String::from_utf8(script)?.trim_end());
    Ok(())
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match (args.page.as_str(), &args.out) {
        ("metrics", _) => print(crate::monitoring::page().trim_end()),
        ("doctor", _) => print(crate::doctor::page().trim_end()),
        ("man", Some(dir)) => man(dir)?,
        _ => print(page().trim_end()),
    }
    Ok(())
}

fn man(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let mut command = settings::command();
    command.build();
    write_man(&command, "mainstay", dir)
}

fn write_man(command: &Command, name: &str, dir: &Path) -> anyhow::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).render(&mut page)?;
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, page).with_context(|| format!("writing {}", path.display()))?;
    for sub in visible(command) {
        write_man(sub, &format!("{name}-{}", sub.get_name()), dir)?;
    }
    Ok(())
}

/// Subcommands that people type.
fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

/// Every command with every flag, as Markdown.
pub(crate) fn page() -> String {
    let mut page = String::from("## All commands and flags\n");
    let command = settings::command();
    for sub in visible(&command) {
        describe(sub, "mainstay", &mut page);
    }
    page
}

/// Text of clap in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|").replace('<', "&lt;")
}

fn describe(command: &Command, before: &str, page: &mut String) {
    let name = format!("{before} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let shown =
        |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    let args: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    let leads_on = visible(command).next().is_some();
    let _ = write!(page, "\n### `{name}`\n\n{about}.\n");
    if leads_on {
        let names: Vec<String> =
            visible(command).map(|sub| format!("`{}`", sub.get_name())).collect();
        let _ = write!(page, "\nCommands: {}.\n", names.join(", "));
    }
    if !args.is_empty() {
        let is_role = before == "mainstay" && ROLES.contains(&command.get_name());
        page.push_str("\n| argument | default | variable | |\n|---|---|---|---|\n");
        for arg in args {
            page.push_str(&row(arg, is_role.then(|| command.get_name())));
        }
    }
    for sub in visible(command) {
        describe(sub, &name, page);
    }
}

fn row(arg: &Arg, role: Option<&str>) -> String {
    let takes_value = arg.get_action().takes_values();
    let id = arg.get_id().as_str();
    let value = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let value = value.unwrap_or_else(|| id.to_uppercase());
    let is_switch = arg.get_num_args().is_some_and(|values| values.min_values() == 0);
    let flag = match arg.get_long() {
        Some(long) => {
            let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
            match (takes_value, is_switch) {
                (true, true) => format!("`{short}--{long}[={value}]`"),
                (true, false) => format!("`{short}--{long} {value}`"),
                (false, _) => format!("`{short}--{long}`"),
            }
        }
        None => format!("`{value}`"),
    };
    let required = if arg.is_required_set() { "required" } else { "" };
    let defaults: Vec<String> = arg
        .get_default_values()
        .iter()
        .filter(|_| !arg.is_hide_default_value_set() && takes_value)
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    let default = if defaults.is_empty() { required.to_owned() } else { defaults.join(", ") };
    let mut variables: Vec<String> =
        arg.get_env().iter().map(|env| format!("`{}`", env.to_string_lossy())).collect();
    if let Some(role) = role.filter(|_| id != "config") {
        let key = arg.get_long().unwrap_or(id).replace('-', "_");
        variables.push(format!("`MAINSTAY__{role}__{key}`").to_uppercase());
    }
    let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let choices: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|_| takes_value && !arg.is_hide_possible_values_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !choices.is_empty() && !matches!(arg.get_action(), ArgAction::SetTrue) {
        let _ = write!(help, ": one of {}", choices.join(", "));
    }
    format!("| {flag} | {default} | {} | {} |\n", variables.join(", "), cell(help.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_current_and_has_every_flag() {
        let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
        let path = Path::new(&here).join("../../docs/reference/cli.md");
        let text = std::fs::read_to_string(path).expect("the page is there");
        let (_, printed) = text.split_once(MARK).expect("cli.md has the line that MARK has");
        let page = page();
        assert_eq!(
            printed.trim(),
            page.trim(),
            "put what `mainstay reference cli` prints behind the mark in docs/reference/cli.md"
        );
        for words in [
            "mainstay pin add",
            "--region-penalty-ms",
            "MAINSTAY__GATEWAY__REGION_PENALTY_MS",
            "--metrics-listen",
        ] {
            assert!(page.contains(words), "{words}");
        }
    }

    /// Leaves of the tree with their words.
    fn leaves(command: &Command, words: &str, found: &mut Vec<(String, Command)>) {
        let name = format!("{words} {}", command.get_name()).trim().to_owned();
        if visible(command).next().is_none() {
            found.push((name.clone(), command.clone()));
        }
        visible(command).for_each(|sub| leaves(sub, &name, found));
    }

    /// Commands that print no answer: they run, write files, draw, or print what is a format of its own.
    const NO_ANSWER: [&str; 16] = [
        "serve",
        "gateway",
        "worker",
        "demo",
        "top",
        "control init",
        "control cert",
        "control token admin",
        "completions",
        "reference",
        "config schema",
        "bench gateway",
        "bench index",
        "bench control",
        "bench console",
        "bench engine",
    ];

    #[test]
    fn whatever_answers_prints_json_on_request() {
        let command = settings::command();
        let mut found = Vec::new();
        for sub in visible(&command) {
            leaves(sub, "", &mut found);
        }
        assert!(found.len() > 30, "{}", found.len());
        for (name, leaf) in found {
            let output = leaf.get_arguments().find(|arg| arg.get_id() == "output");
            let formats: Vec<String> = output
                .map(|arg| {
                    arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect()
                })
                .unwrap_or_default();
            let prints_json = formats.iter().any(|format| format == "json");
            assert!(prints_json || NO_ANSWER.contains(&name.as_str()), "{name} has no -o json");
        }
    }

    #[test]
    fn shells_and_man_get_every_command() {
        for shell in
            [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish]
        {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut settings::command(), "mainstay", &mut script);
            let script = String::from_utf8(script).expect("a script is text");
            assert!(script.contains("doctor") && script.contains("region-penalty-ms"), "{shell}");
        }
        let dir = tempfile::tempdir().expect("a scratch folder");
        man(dir.path()).expect("room");
        for name in ["mainstay.1", "mainstay-gateway.1", "mainstay-pin-add.1"] {
            let page = std::fs::read_to_string(dir.path().join(name)).expect(name);
            assert!(page.contains(".TH"), "{name}");
        }
    }
}
