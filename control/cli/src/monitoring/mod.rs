//! The process's metrics: its recorder with help texts and buckets, and the listener of roles without HTTP of their own.

pub(crate) mod catalog;
pub(crate) mod door;
pub(crate) mod listen;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use catalog::{GROUPS, Kind, Metric};

/// How often samples are taken out of the histograms' queues: nobody else does where nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);
/// Bounds of `_seconds`: from an fsync to a long prompt.
const SECONDS: [f64; 18] = [
    0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0, 5.0,
    10.0, 30.0, 120.0,
];
/// Bounds of `tool_pause_seconds`, beyond which nothing is kept for anybody.
const PAUSES: [f64; 14] =
    [0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0];
/// Bounds of ages of blocks, which are counted in powers of two of milliseconds: from a busy cache to a day and more.
const AGES: [f64; 20] = [
    0.064,
    0.256,
    0.512,
    1.024,
    2.048,
    4.096,
    8.192,
    16.384,
    32.768,
    65.536,
    131.072,
    262.144,
    524.288,
    1_048.576,
    2_097.152,
    4_194.304,
    8_388.608,
    16_777.216,
    33_554.432,
    134_217.728,
];
/// Bounds of `_tokens`: from a tool's word to a file.
const TOKENS: [f64; 14] = [
    16.0,
    64.0,
    128.0,
    256.0,
    512.0,
    1_024.0,
    2_048.0,
    4_096.0,
    8_192.0,
    16_384.0,
    32_768.0,
    65_536.0,
    131_072.0,
    1_048_576.0,
];
/// Bounds of `_per_second`.
const PER_SECOND: [f64; 14] =
    [1.0, 2.0, 5.0, 10.0, 15.0, 25.0, 40.0, 60.0, 100.0, 150.0, 250.0, 500.0, 1_000.0, 5_000.0];

/// Buckets, by what a name ends with; the longest end counts.
const BOUNDS: [(&str, &[f64]); 6] = [
    ("_age_at_hit_seconds", &AGES),
    ("_age_at_eviction_seconds", &AGES),
    ("_tool_pause_seconds", &PAUSES),
    ("_seconds", &SECONDS),
    ("_growth_tokens", &TOKENS),
    ("_per_second", &PER_SECOND),
];

/// Buckets of a histogram.
fn bounds_of(name: &str) -> Option<&'static [f64]> {
    BOUNDS.iter().find(|(end, _)| name.ends_with(end)).map(|(_, bounds)| *bounds)
}

fn builder() -> anyhow::Result<PrometheusBuilder> {
    let mut builder = PrometheusBuilder::new();
    for metric in catalog::all().filter(|metric| metric.kind == Kind::Histogram) {
        if let Some(bounds) = bounds_of(metric.name) {
            builder =
                builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), bounds)?;
        }
    }
    Ok(builder)
}

fn describe(metric: &Metric) {
    match metric.kind {
        Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
        Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
        Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
    }
}

/// What turns metrics off: for those who measure what they cost.
const SWITCH: &str = "MAINSTAY_METRICS";

/// [`install`], unless `MAINSTAY_METRICS=off`.
pub(crate) fn install_unless_off(role: &'static str) -> anyhow::Result<Option<PrometheusHandle>> {
    match std::env::var(SWITCH).as_deref() {
        Ok("off") => Ok(None),
        Ok("on") | Err(_) => install(role).map(Some),
        Ok(other) => anyhow::bail!("{SWITCH} is `on` or `off`, and not `{other}`"),
    }
}

/// Installs the process's recorder, for a process that runs as `role`; its handle renders `/metrics`.
pub(crate) fn install(role: &'static str) -> anyhow::Result<PrometheusHandle> {
    let handle = builder()?.install_recorder()?;
    catalog::all().for_each(describe);
    metrics::gauge!("mainstay_build_info", "version" => env!("CARGO_PKG_VERSION"), "role" => role)
        .set(1.0);
    let kept = handle.clone();
    tokio::spawn(async move {
        let mut pace = tokio::time::interval(UPKEEP);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            pace.tick().await;
            kept.run_upkeep();
        }
    });
    Ok(handle)
}

/// The reference page.
pub(crate) fn page() -> String {
    let mut page = String::from(PAGE);
    for (title, metrics) in GROUPS {
        let _ = write!(page, "\n## {title}\n\n| metric | kind | labels | |\n|---|---|---|---|\n");
        for Metric { name, kind, labels, help } in metrics {
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            let _ =
                writeln!(page, "| `{name}` | {} | {} | {help} |", kind.name(), labels.join(", "));
        }
    }
    page
}

const PAGE: &str = "# Metrics

Printed by `mainstay reference metrics` from the list that the program serves its help texts from; a test compares the two, and the list with the code. Names are an interface: a rename keeps the former name for two minor versions.

| who | where |
|---|---|
| gateways, and `mainstay serve` for all of its roles | `/metrics` of the HTTP address |
| control members, workers | `/metrics` of `--metrics-listen`, which is off unless given; beside it `/livez`, and `/readyz` with 503 and a reason until the role can serve |

Units are in the names: `_seconds`, `_bytes`, `_tokens`, `_ms`, and `_total` for what only rises. Histograms have buckets. No label is a session, a request, a tenant or a text. A metric is there once something was counted. A dashboard and alerts: [operate](../operate/monitoring.md).
";
