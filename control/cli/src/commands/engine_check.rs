//! `mainstay engine check`: the vendor's kit at the command line.
//!
//! Each case runs in a process of its own, which is this program again with the hidden `engine case`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use mainstay_conformance::{Child, Context, Options, Subject, cases, run as run_kit, run_case};

use crate::output::{Failure, Format, print, print_json, table};

/// A cache that the kit can fill, and few requests, so that some have to wait.
const CONFIG_OF_NATIVE: &str = r#"{"blocks":192,"requests_max":16,"context_tokens_max":2048}"#;
const CONFIG_OF_SIM: &str =
    r#"{"blocks":192,"requests_max":32,"context_tokens_max":4096,"decode_us_per_token":20}"#;
const SEED: u64 = 7;
const PATIENCE_S: u64 = 30;
const LIMIT_S: u64 = 120;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: EngineCommand,
}

#[derive(Subcommand)]
enum EngineCommand {
    /// Does an engine keep the promises of mainstay_engine.h? Exits with 1 if it breaks one
    Check {
        /// `native`, `sim`, `remote` (with the server in --config) or a vendor's FILE.so
        #[arg(required_unless_present = "list")]
        engine: Option<String>,
        /// What the engine is created with: JSON, or a file of it. A small cache lets the kit fill it
        #[arg(long)]
        config: Option<String>,
        /// Only cases whose names contain this
        #[arg(long, default_value = "")]
        case: String,
        /// Repeats a run
        #[arg(long, default_value_t = SEED)]
        seed: u64,
        /// How long a case waits for what must come, in seconds
        #[arg(long, default_value_t = PATIENCE_S)]
        patience: u64,
        /// A case that takes longer is killed, in seconds
        #[arg(long, default_value_t = LIMIT_S)]
        limit: u64,
        /// List the cases and what they are about
        #[arg(long)]
        list: bool,
        /// How the report is printed
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// One case, in the process of its own that `check` starts for it
    #[command(hide = true)]
    Case { engine: String, config: String, case: String, seed: u64, patience_ms: u64 },
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        EngineCommand::Case { engine, config, case, seed, patience_ms } => {
            let context = Context {
                subject: subject(engine)?,
                config_json: config.clone(),
                seed: *seed,
                patience: Duration::from_millis(*patience_ms),
            };
            let report = run_case(case, &context).map_err(anyhow::Error::msg)?;
            print(&format!("\n{}", serde_json::to_string(&report)?));
            Ok(())
        }
        EngineCommand::Check { list: true, .. } => {
            let rows: Vec<Vec<String>> = cases()
                .iter()
                .map(|case| [case.name, case.rule, case.about].map(str::to_owned).to_vec())
                .collect();
            print(&table(&["CASE", "RULE", "ABOUT"], &rows));
            Ok(())
        }
        EngineCommand::Check { engine, config, case, seed, patience, limit, output, .. } => {
            let engine = engine.as_deref().unwrap_or_default();
            let options = Options {
                engine: engine.to_owned(),
                pattern: case.clone(),
                seed: *seed,
                patience: Duration::from_secs(*patience),
                limit: Duration::from_secs(*limit),
            };
            check(engine, config.as_deref(), &options, *output)
        }
    }
}

fn check(
    engine: &str,
    config: Option<&str>,
    options: &Options,
    output: Format,
) -> anyhow::Result<()> {
    subject(engine)?;
    let config = config_json(engine, config)?;
    if !cases().iter().any(|case| case.name.contains(&options.pattern)) {
        bail!("no case is called like {:?}; list them with --list", options.pattern);
    }
    let words = ["engine", "case", engine, &config];
    let child = Child {
        program: std::env::current_exe().context("finding this program's own file")?,
        args: words.map(str::to_owned).to_vec(),
    };
    let all = cases().iter().filter(|case| case.name.contains(&options.pattern)).count();
    let mut done = 0;
    let report = run_kit(&child, options, |case| {
        done += 1;
        eprintln!("{done}/{all} {} {:?}", case.case, case.outcome);
    });
    match output {
        Format::Json => print_json(&serde_json::to_value(&report)?),
        Format::Table => print(report.table().trim_end()),
    }
    if report.totals.passed == 0 {
        bail!("{engine} was not put to the test: no case could begin");
    }
    if report.totals.bad > 0 {
        let message = format!(
            "{engine} breaks {} of {} promises; repeat one with --case NAME --seed {}",
            report.totals.bad,
            report.cases.len(),
            report.seed
        );
        return Err(Failure { message, exit: 1 }.into());
    }
    Ok(())
}

fn subject(engine: &str) -> anyhow::Result<Subject> {
    Ok(match engine {
        "native" => {
            let entry = mainstay_engine_abi::sdk::entry_point::<mainstay_native::NativeEngine>();
            Subject::Linked(engine.to_owned(), entry)
        }
        "sim" => Subject::Linked(engine.to_owned(), mainstay_sim::entry()),
        "remote" => Subject::Linked(engine.to_owned(), mainstay_remote::entry()),
        file if Path::new(file).is_file() => Subject::Library(PathBuf::from(file)),
        other => bail!("engine {other:?} is neither `native`, `sim`, `remote` nor a file"),
    })
}

fn config_json(engine: &str, given: Option<&str>) -> anyhow::Result<String> {
    let text = match given {
        Some(json) if json.trim_start().starts_with('{') => json.to_owned(),
        Some(file) => std::fs::read_to_string(file)
            .with_context(|| format!("reading the configuration {file}"))?,
        None => match engine {
            "native" => CONFIG_OF_NATIVE.to_owned(),
            "sim" => CONFIG_OF_SIM.to_owned(),
            _ => "{}".to_owned(),
        },
    };
    serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text)
        .context("the engine's configuration must be a JSON object")?;
    Ok(text)
}
