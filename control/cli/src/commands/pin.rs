//! `mainstay pin`: make, list, show, extend and end pins, through a gateway.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::http::Target;
use crate::output::{Format, cell, duration, print, print_json, table};
use crate::watching::WatchArgs;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: PinCommand,
}

#[derive(Subcommand)]
enum PinCommand {
    /// Pin the prefix of a conversation
    Add {
        /// The model
        #[arg(long, default_value = "demo")]
        model: String,
        /// The system prompt whose prefix to pin
        #[arg(long)]
        system: Option<String>,
        /// A file with a chat-completions body (`messages`, `tools`); `-` reads standard input
        #[arg(long, value_name = "FILE")]
        body: Option<std::path::PathBuf>,
        /// How long, such as 5m or 1h
        #[arg(long, default_value = "5m")]
        ttl: String,
        /// How many workers should hold it
        #[arg(long, default_value_t = 1)]
        copies: u32,
        /// The session that owns it
        #[arg(long)]
        session: Option<String>,
        /// Whether the cluster keeps its tokens, to compute it again when all holders are lost [default: the
        /// gateway's]
        #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        recompute: Option<bool>,
        /// Where copies have to be: region (the gateway's), region:NAME, or global, which is two regions at least
        #[arg(long, default_value = "region")]
        scope: String,
        #[command(flatten)]
        target: Target,
    },
    /// List pins
    Ls {
        /// Also those that ended lately
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        reading: Reading,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// Show one pin
    Show {
        id: String,
        #[command(flatten)]
        reading: Reading,
        #[command(flatten)]
        target: Target,
    },
    /// Let a pin end later
    Extend {
        id: String,
        /// From now on, such as 30m
        #[arg(long)]
        ttl: String,
        #[command(flatten)]
        target: Target,
    },
    /// End a pin
    Rm {
        id: String,
        #[command(flatten)]
        target: Target,
    },
}

/// How a read is answered.
#[derive(clap::Args)]
struct Reading {
    /// l: by the leader, with everything acknowledged before; s: by the gateway's own replica, at once, as old as it says
    #[arg(long, value_enum, default_value = "l")]
    consistency: Consistency,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Consistency {
    /// Linearizable
    #[value(name = "l", alias = "linearizable")]
    Linearizable,
    /// Local
    #[value(name = "s", aliases = ["serializable", "local"])]
    Local,
}

impl Consistency {
    const fn name(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::Local => "local",
        }
    }
}

/// A local answer's age, for people.
fn say_age(answer: &Value, consistency: Consistency) {
    if consistency == Consistency::Local {
        let (index, age) = (cell(answer, "log_index"), cell(answer, "index_age_ms"));
        print(&format!("as of log index {index}, at most {age} ms old\n"));
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        PinCommand::Add { model, system, body, ttl, copies, session, recompute, scope, target } => {
            let mut request = match body {
                Some(path) if path.as_os_str() == "-" => {
                    serde_json::from_str(&std::io::read_to_string(std::io::stdin())?)?
                }
                Some(path) => serde_json::from_str(&std::fs::read_to_string(path)?)?,
                None => json!({"messages": []}),
            };
            if let Some(system) = system {
                request["messages"] = json!([{"role": "system", "content": system}]);
            }
            let given = request.get("model").is_some();
            if !given {
                request["model"] = json!(model);
            }
            request["ttl"] = json!(ttl);
            request["copies_min"] = json!(copies);
            request["session"] = json!(session);
            if let Some(recompute) = recompute {
                request["recompute"] = json!(recompute);
            }
            request["scope"] = json!(scope);
            let pin = target.ask(Method::POST, "/v1/pins", Some(&request)).await?;
            show(&pin, target.output);
        }
        PinCommand::Ls { all, reading: Reading { consistency }, target, watch } => {
            watch.repeat(async || list(all, consistency, &target).await).await?;
        }
        PinCommand::Show { id, reading: Reading { consistency }, target } => {
            let path = format!("/v1/pins/{id}?consistency={}", consistency.name());
            let pin = target.get(&path).await?;
            if target.output == Format::Table {
                say_age(&pin, consistency);
            }
            show(&pin, target.output);
        }
        PinCommand::Extend { id, ttl, target } => {
            let body = json!({"ttl": ttl});
            let pin = target.ask(Method::PATCH, &format!("/v1/pins/{id}"), Some(&body)).await?;
            show(&pin, target.output);
        }
        PinCommand::Rm { id, target } => {
            let pin = target.ask(Method::DELETE, &format!("/v1/pins/{id}"), None).await?;
            show(&pin, target.output);
        }
    }
    Ok(())
}

async fn list(all: bool, consistency: Consistency, target: &Target) -> anyhow::Result<()> {
    let consistent = consistency.name();
    let list = target.get(&format!("/v1/pins?all={all}&consistency={consistent}")).await?;
    match target.output {
        Format::Json => print_json(&list),
        Format::Table => {
            say_age(&list, consistency);
            print(&pins_table(list["data"].as_array().map_or(&[], Vec::as_slice)));
        }
    }
    Ok(())
}

fn show(pin: &Value, format: Format) {
    match format {
        Format::Json => print_json(pin),
        Format::Table => print(&pins_table(std::slice::from_ref(pin))),
    }
}

/// Who holds a pin's blocks, and how many: `w1:12,w2:12`.
pub(super) fn holders(pin: &Value) -> String {
    let holders = pin["holders"].as_array().map_or(&[][..], Vec::as_slice);
    let of = |h: &Value| format!("{}:{}", cell(h, "worker"), cell(h, "blocks_held"));
    let all: Vec<String> = holders.iter().map(of).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(",") }
}

fn pins_table(pins: &[Value]) -> String {
    let row = |pin: &Value| {
        vec![
            cell(pin, "id"),
            cell(pin, "state"),
            cell(pin, "tenant"),
            cell(pin, "prefix_tokens"),
            cell(pin, "blocks"),
            format!("{}/{}", cell(pin, "copies"), cell(pin, "copies_min")),
            cell(pin, "scope"),
            holders(pin),
            duration(pin["ttl_left_ms"].as_u64().unwrap_or_default()),
            Some(cell(pin, "owner")).filter(|o| !o.is_empty()).unwrap_or_else(|| "-".to_owned()),
        ]
    };
    let rows: Vec<Vec<String>> = pins.iter().map(row).collect();
    let headers = [
        "PIN", "STATE", "TENANT", "TOKENS", "BLOCKS", "COPIES", "SCOPE", "WORKERS", "TTL LEFT",
        "OWNER",
    ];
    table(&headers, &rows)
}
