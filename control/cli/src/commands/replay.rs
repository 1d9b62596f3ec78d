//! `mainstay replay`: routing policies on a trace or a generated mix, over modelled engines, in virtual time.
//!
//! The laboratory itself is a pure crate; here files are read and figures are printed. Everything that decides a
//! result is printed with it, the seed first. Files are bounded, and read one after the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use mainstay_replay::{
    PolicyName, ReadSettings, Report, Settings, Slow, Trace, comparison_page, play,
};
use mainstay_sim_model::Profile;
use serde_json::{Value, json};

use super::queue::QueueArgs;
use super::trace::read;
use crate::output::{Format, print, print_json, table};

/// Policies that others are measured beside.
const BESIDE: [&str; 2] = ["round-robin", "dynamo"];

#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Lifecycle {
    /// Blocks are alike: the least recently used goes
    Off,
    /// Leases, holds and ends
    On,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A folder of Claude Code sessions (*.json), one such session, or rows as Mooncake and Dynamo write them (*.jsonl)
    #[arg(long, conflicts_with = "mix", required_unless_present = "mix")]
    trace: Option<PathBuf>,
    /// Generated traffic instead: agents, swarm, chat or bursts
    #[arg(long)]
    mix: Option<String>,
    /// Different sessions of the mix
    #[arg(long, default_value_t = 400)]
    sessions: usize,
    /// Workers
    #[arg(long, default_value_t = 8)]
    workers: u32,
    /// Policies, with commas: kv, round-robin, least-loaded, random, session-sticky, dynamo, dynamo:TEMPERATURE, kv:WEIGHT
    #[arg(long, value_delimiter = ',', default_values_t = PolicyName::USUAL.map(str::to_owned))]
    policy: Vec<String>,
    /// Sessions alive at once for each worker; for traces with times, how much faster they come
    #[arg(long, default_value_t = 4.0)]
    load: f64,
    /// For all that is drawn: the same seed prints the same bytes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Start sessions until they have so many requests; left out, the whole trace, and again while it is too short
    #[arg(long, default_value_t = 0)]
    requests: usize,
    /// The engine: h200-8b, h200-70b, or a TOML file like those
    #[arg(long, default_value = "h200-8b")]
    profile: String,
    /// So many times the profile's arithmetic
    #[arg(long, default_value_t = 1.0)]
    arithmetic: f64,
    /// So many times the profile's bandwidth
    #[arg(long, default_value_t = 1.0)]
    bandwidth: f64,
    /// From a change in a worker's cache to the router's knowing of it
    #[arg(long, default_value_t = 20)]
    event_delay_ms: u64,
    /// A longer prompt, answer included, ends its session
    #[arg(long, default_value_t = 200_000)]
    context_tokens: u32,
    /// Longer pauses are cut to this
    #[arg(long, default_value_t = 300)]
    pause_max_s: u32,
    /// Whether system prompts and tools of equal sizes are the same text in all Claude Code sessions
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    share: bool,
    /// Tokens of a block in rows
    #[arg(long, default_value_t = 512)]
    row_block_tokens: u32,
    /// Slower workers, with commas: WORKER@SPEED or FIRST-LAST@SPEED, @SECOND appended if they become so later
    #[arg(long, value_delimiter = ',')]
    slow: Vec<String>,
    /// Slower workers report the pace of healthy ones
    #[arg(long)]
    slow_unseen: bool,
    /// So many times the profile's cache
    #[arg(long, default_value_t = 1.0)]
    cache: f64,
    /// The share of sessions whose requests go first
    #[arg(long, default_value_t = 0.0)]
    urgent: f64,
    /// The share of sessions whose requests go last
    #[arg(long, default_value_t = 0.0)]
    background: f64,
    /// Their priority; those that go last have as much below 0
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=3_600))]
    urgent_priority: i32,
    /// Their tier in the router's queue: a higher one goes before all lower ones
    #[arg(long, default_value_t = 0)]
    urgent_tier: u8,
    /// Tell neither router nor engines of priorities; figures come by priority all the same
    #[arg(long)]
    hints_off: bool,
    /// Requests tell how long their answers will be, as `osl` does
    #[arg(long)]
    tell_output: bool,
    #[command(flatten)]
    queue: QueueArgs,
    /// Host memory beside each device, as so many times its cache
    #[arg(long, default_value_t = 0.0)]
    host_cache: f64,
    /// Workers bring in what others hold instead of computing it; kv policies only
    #[arg(long)]
    transfer: bool,
    /// Whether sessions take leases and their changes become orders, as gateways have it; with both, each policy is
    /// played twice
    #[arg(long, value_enum, value_delimiter = ',', default_value = "off")]
    lifecycle: Vec<Lifecycle>,
    /// Requests that nobody comes back to bring so many times all caches each minute
    #[arg(long, default_value_t = 0.0)]
    flood: f64,
    /// Pin the first so many tokens of some leads in the engines that serve them
    #[arg(long, default_value_t = 0)]
    pin_tokens: u32,
    /// The share of sessions whose lead is pinned
    #[arg(long, default_value_t = 0.2)]
    pinned: f64,
    /// Write a page with tables and plots there
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Add the distribution and the course of each run to JSON
    #[arg(long)]
    series: bool,
    /// Time each decision, which makes two outputs differ
    #[arg(long)]
    time_decisions: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut policies = Vec::new();
    for name in &args.policy {
        let Some(policy) = PolicyName::parse(name) else {
            bail!("no policy is called {name}; use {} or random", PolicyName::USUAL.join(", "));
        };
        policies.push((name, policy));
    }
    let trace = read(args)?;
    let settings = settings(args)?;
    let began = Instant::now();
    let mut clock = || u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut reports = Vec::new();
    for (name, policy) in policies {
        for lifecycle in &args.lifecycle {
            let lifecycle = *lifecycle == Lifecycle::On;
            let settings = Settings { lifecycle, ..settings.clone() };
            let stopwatch: Option<mainstay_replay::Stopwatch<'_>> =
                if args.time_decisions { Some(&mut clock) } else { None };
            let name = if lifecycle { format!("{name}+lifecycle") } else { name.clone() };
            reports.push(play(&trace, &settings, policy, &name, stopwatch));
        }
    }
    if let Some(file) = &args.html {
        fs::write(file, page(args, &trace, &reports)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    match args.output {
        Format::Json => print_json(&as_json(args, &trace, &reports)?),
        Format::Table => print_tables(args, &trace, &reports),
    }
    Ok(())
}

fn settings(args: &Args) -> Result<Settings> {
    ensure!(args.load > 0.0, "--load must be above 0");
    ensure!(args.cache > 0.0, "--cache must be above 0");
    ensure!(args.host_cache >= 0.0, "--host-cache must not be below 0");
    let shares = [args.urgent, args.background, args.urgent + args.background];
    let shares = shares.iter().all(|share| (0.0..=1.0).contains(share));
    ensure!(shares, "--urgent and --background are shares of one whole, from 0 to 1");
    ensure!((0.0..=1_000.0).contains(&args.flood), "--flood is a number of caches, up to 1000");
    ensure!((0.0..=1.0).contains(&args.pinned), "--pinned is a share, from 0 to 1");
    let profile = profile(&args.profile)?.scaled(args.arithmetic, args.bandwidth);
    Ok(Settings {
        workers: args.workers,
        load: args.load,
        seed: args.seed,
        requests: args.requests,
        profile: profile.with_cache(args.cache).with_host(args.host_cache),
        event_delay_ms: args.event_delay_ms,
        slow: slow(args)?,
        slow_unseen: args.slow_unseen,
        urgent: args.urgent,
        background: args.background,
        queue: args.queue.settings(),
        urgent_priority: args.urgent_priority,
        urgent_tier: args.urgent_tier,
        hints: !args.hints_off,
        tell_output: args.tell_output,
        transfer: args.transfer,
        lifecycle: false,
        flood: args.flood,
        pin_tokens: args.pin_tokens,
        pinned: args.pinned,
        series: args.series || args.html.is_some(),
    })
}

/// The page: every setting that decides a result is on it.
fn page(args: &Args, trace: &Trace, reports: &[Report]) -> Result<String> {
    let Value::Object(mut settings) = as_json(args, trace, &[])? else { return Ok(String::new()) };
    settings.remove("policies");
    let plain = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let settings = settings.into_iter().filter(|(_, value)| !value.is_null());
    let settings: Vec<(String, String)> =
        settings.map(|(name, value)| (name, plain(value))).collect();
    let lead = format!(
        "{} workers ({}, modelled), load {}, seed {}, {} sessions with {} requests in the trace.",
        args.workers,
        args.profile,
        args.load,
        args.seed,
        trace.session_count(),
        trace.request_count()
    );
    Ok(comparison_page(&lead, &settings, reports))
}

fn profile(name: &str) -> Result<Profile> {
    if Path::new(name).extension().is_none_or(|e| e != "toml") {
        return Ok(Profile::named(name)?);
    }
    let text = read::file_bytes(Path::new(name))?;
    Profile::parse(&String::from_utf8_lossy(&text)).with_context(|| name.to_owned())
}

fn read(args: &Args) -> Result<Trace> {
    if let Some(name) = &args.mix {
        return read::mix(name, args.sessions, args.seed);
    }
    let path = args.trace.as_deref().context("give --trace or --mix")?;
    let settings = ReadSettings {
        context_tokens: args.context_tokens,
        pause_ms_max: args.pause_max_s.saturating_mul(1_000),
        share: args.share,
        row_block_tokens: args.row_block_tokens,
        ..ReadSettings::default()
    };
    read::trace(path, &settings)
}

fn slow(args: &Args) -> Result<Vec<Slow>> {
    let parse = |text: &String| {
        let form = "use WORKER@SPEED, FIRST-LAST@SPEED or either with @SECOND, as in 2@0.5@600";
        Slow::parse(text).with_context(|| format!("--slow {text} is not of the form; {form}"))
    };
    args.slow.iter().map(parse).collect()
}

/// How often one number goes into another; none where that makes no sense.
fn times(number: f64, into: f64) -> Option<f64> {
    (number > 0.0).then(|| (into / number * 1_000.0).round() / 1_000.0)
}

/// A report beside another: how many times lower its first tokens are, how many times more it says.
fn beside(report: &Report, other: &Report) -> Value {
    json!({
        "ttft_p50_lower": times(report.ttft_ms.p50, other.ttft_ms.p50),
        "ttft_p90_lower": times(report.ttft_ms.p90, other.ttft_ms.p90),
        "ttft_p99_lower": times(report.ttft_ms.p99, other.ttft_ms.p99),
        "request_tok_s_higher": times(other.request_tok_s.p50, report.request_tok_s.p50),
        "fleet_tok_s_higher": times(other.fleet_tok_s, report.fleet_tok_s),
    })
}

fn as_json(args: &Args, trace: &Trace, reports: &[Report]) -> Result<Value> {
    let mut policies = Vec::new();
    for report in reports {
        let mut value = serde_json::to_value(report)?;
        if let Some(members) = value.as_object_mut().filter(|_| !args.series) {
            members.remove("series");
        }
        for name in BESIDE {
            if let Some(other) = reports.iter().find(|other| other.policy == name) {
                value["beside"][name] = beside(report, other);
            }
        }
        policies.push(value);
    }
    let source = args.trace.as_ref().map(|path| path.display().to_string());
    Ok(json!({
        "seed": args.seed,
        "trace": source,
        "mix": args.mix,
        "sessions": trace.session_count(),
        "requests": trace.request_count(),
        "left_out": trace.left_out_count(),
        "block_tokens": trace.block_tokens(),
        "workers": args.workers,
        "load": args.load,
        "profile": args.profile,
        "arithmetic": args.arithmetic,
        "bandwidth": args.bandwidth,
        "cache": args.cache,
        "slow": args.slow,
        "slow_unseen": args.slow_unseen,
        "urgent": args.urgent,
        "background": args.background,
        "urgent_priority": args.urgent_priority,
        "urgent_tier": args.urgent_tier,
        "hints": !args.hints_off,
        "tell_output": args.tell_output,
        "router_queue_threshold": args.queue.router_queue_threshold,
        "router_queue_policy": args.queue.router_queue_policy.name(),
        "host_cache": args.host_cache,
        "transfer": args.transfer,
        "flood": args.flood,
        "pin_tokens": args.pin_tokens,
        "pinned": args.pinned,
        "event_delay_ms": args.event_delay_ms,
        "context_tokens": args.context_tokens,
        "pause_max_s": args.pause_max_s,
        "share": args.share,
        "engines": "modelled",
        "policies": policies,
    }))
}

fn print_tables(args: &Args, trace: &Trace, reports: &[Report]) {
    print(&format!(
        "seed {}, {} workers ({}, modelled), load {}, {} sessions with {} requests in the trace, {} left out",
        args.seed,
        args.workers,
        args.profile,
        args.load,
        trace.session_count(),
        trace.request_count(),
        trace.left_out_count(),
    ));
    let headers = [
        "POLICY",
        "TTFT P50",
        "P90",
        "P99",
        "TOK/S",
        "FLEET",
        "HIT",
        "OF",
        "SHARE",
        "BUSY",
        "VS RR",
        "VS DYNAMO",
        "DECISION P99",
    ];
    let ratio = |report: &Report, name: &str| {
        let other = reports.iter().find(|other| other.policy == name);
        let ratio = other.and_then(|other| times(report.ttft_ms.p50, other.ttft_ms.p50));
        ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}x"))
    };
    let row = |report: &Report| {
        vec![
            report.policy.clone(),
            format!("{:.0} ms", report.ttft_ms.p50),
            format!("{:.0}", report.ttft_ms.p90),
            format!("{:.0}", report.ttft_ms.p99),
            format!("{:.1}", report.request_tok_s.p50),
            format!("{:.0}", report.fleet_tok_s),
            format!("{:.2}%", report.hit_rate * 100.0),
            format!("{:.2}%", report.hit_rate_available * 100.0),
            format!("{:.2}%", report.hit_share * 100.0),
            format!("{:.0}%", report.busy * 100.0),
            ratio(report, "round-robin"),
            ratio(report, "dynamo"),
            report.decision_us.map_or("-".to_owned(), |spread| format!("{:.0} us", spread.p99)),
        ]
    };
    let rows: Vec<Vec<String>> = reports.iter().map(row).collect();
    print(&table(&headers, &rows));
    print_priorities(reports);
    print_returns(reports);
}

fn print_returns(reports: &[Report]) {
    let of = |report: &Report, what: &str, unit: &str, backs: &[mainstay_replay::Back]| {
        let row = |back: &mainstay_replay::Back| {
            vec![
                report.policy.clone(),
                format!("{what} {}{unit} on", back.from),
                back.turns.to_string(),
                format!("{:.2}%", back.hit_share * 100.0),
            ]
        };
        backs.iter().map(row).collect::<Vec<_>>()
    };
    let mut rows = Vec::new();
    for report in reports {
        rows.extend(of(report, "pause from", " s", &report.after_pause));
        rows.extend(of(report, "traffic from", " caches", &report.after_traffic));
    }
    if rows.is_empty() || !reports.iter().any(Report::is_of_returns) {
        return;
    }
    print(&format!("\n{}", table(&["POLICY", "TURNS AFTER", "COUNT", "HIT SHARE"], &rows)));
    let row = |report: &Report| {
        let pinned = report.pinned?;
        Some([report.policy.clone()].into_iter().chain(pinned.cells()).collect())
    };
    let rows: Vec<Vec<String>> = reports.iter().filter_map(row).collect();
    if !rows.is_empty() {
        let headers =
            ["POLICY", "PINNED", "TURNS", "HIT", "FLOODED", "HIT", "OTHERS HIT", "FLOODED"];
        print(&format!("\n{}", table(&headers, &rows)));
    }
}

fn print_priorities(reports: &[Report]) {
    let classes = reports.iter().flat_map(|report| {
        let row = |class: &mainstay_replay::Class| {
            vec![
                report.policy.clone(),
                class.priority.to_owned(),
                class.requests.to_string(),
                format!("{:.0} ms", class.ttft_ms.p50),
                format!("{:.0}", class.ttft_ms.p90),
                format!("{:.0}", class.ttft_ms.p99),
                format!("{:.0}", class.ttft_max_ms),
                format!("{:.0}", class.engine_queue_ms.p50),
                format!("{:.0}", class.uncached_tokens.p50),
                format!("{:.1}", class.request_tok_s.p50),
                format!("{:.0}", class.fleet_tok_s),
            ]
        };
        report.by_priority.iter().map(row).collect::<Vec<_>>()
    });
    let rows: Vec<Vec<String>> = classes.collect();
    if !rows.is_empty() {
        let headers = [
            "POLICY",
            "PRIORITY",
            "REQUESTS",
            "TTFT P50",
            "P90",
            "P99",
            "MAX",
            "QUEUE P50",
            "UNCACHED P50",
            "TOK/S",
            "FLEET",
        ];
        print(&format!("\n{}", table(&headers, &rows)));
    }
}
