//! What a running gateway says about its traffic: its metrics, and the sessions that it knows.
//!
//! It is a look at one moment of one gateway. What needs every request (growth, repeated blocks, how long caches must
//! keep) is named as absent: record a trace for it. Sessions are the caller's tenant's, at most a thousand.

use std::collections::BTreeMap;

use anyhow::Result;
use mainstay_replay::Dist;
use serde_json::{Value, json};

use crate::http::Target;
use crate::output::{Format, print, print_json, table};

/// Lines of metrics that are looked at, at most.
const LINES_MAX: usize = 100_000;
const ABSENT: [&str; 5] = [
    "growth of prompts, repeated blocks and how long caches must keep: record a trace",
    "the hit rate that was available",
    "tokens a second of requests",
    "pauses that are over: only those under way are seen",
    "evictions and their causes: they are in the metrics of workers",
];

pub(super) async fn run(target: &Target) -> Result<()> {
    let metrics = target.get("/metrics").await?;
    let sessions = target.get("/v1/sessions?all=true&limit=1000").await?;
    let figures = figures(metrics.as_str().unwrap_or_default(), &sessions);
    match target.output {
        Format::Json => print_json(&figures),
        Format::Table => print_tables(&figures),
    }
    Ok(())
}

/// Values of a metric by one of its labels; those that lack it are under the empty name.
fn by_label(metrics: &str, name: &str, label: &str, with: &str) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for line in metrics.lines().take(LINES_MAX) {
        let Some(rest) = line.strip_prefix(name) else { continue };
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once('}').unwrap_or_default(),
            None if rest.starts_with(' ') => ("", rest),
            None => continue,
        };
        let Ok(value) = value.trim().parse::<f64>() else { continue };
        if !labels.contains(with) {
            continue;
        }
        let marked = format!("{label}=\"");
        let named = labels.split_once(&marked).and_then(|(_, rest)| rest.split_once('"'));
        *found.entry(named.map_or("", |(name, _)| name).to_owned()).or_default() += value;
    }
    found
}

fn sum(metrics: &str, name: &str) -> f64 {
    by_label(metrics, name, "", "").values().sum()
}

/// The value that a share of observations does not exceed, by counts up to each bound: linear within a bucket, and the
/// last bound for what is beyond it.
fn quantile(buckets: &BTreeMap<String, f64>, share: f64) -> Option<f64> {
    let mut counts: Vec<(f64, f64)> = buckets
        .iter()
        .map(|(bound, count)| (bound.parse().unwrap_or(f64::INFINITY), *count))
        .collect();
    counts.sort_by(|a, b| a.0.total_cmp(&b.0));
    let wanted = counts.last().map(|(_, all)| all * share).filter(|wanted| *wanted > 0.0)?;
    let (mut from, mut below) = (0.0, 0.0);
    for (bound, count) in counts {
        if count >= wanted {
            let part = (wanted - below) / (count - below);
            return Some(if bound.is_finite() { from + (bound - from) * part } else { from });
        }
        (from, below) = (bound, count);
    }
    None
}

fn endpoints(metrics: &str) -> Vec<Value> {
    let name = "mainstay_gateway_ttft_seconds";
    let of =
        |suffix: &str, with: &str| by_label(metrics, &format!("{name}{suffix}"), "endpoint", with);
    let (counts, sums) = (of("_count", ""), of("_sum", ""));
    let requests = by_label(metrics, "mainstay_gateway_requests_total", "endpoint", "");
    let quantiles = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];
    let seen = requests.iter().filter(|(_, requests)| **requests > 0.0);
    let figures = seen.map(|(endpoint, requests)| {
        let ms = |seconds: f64| (seconds * 1e6).round() / 1e3;
        // Only answers that are streamed have a first token of their own.
        let count = counts.get(endpoint).copied().filter(|count| *count > 0.0);
        let mut figures = json!({"endpoint": endpoint, "requests": requests, "streamed": count});
        let with = format!("endpoint=\"{endpoint}\"");
        let buckets = by_label(metrics, &format!("{name}_bucket"), "le", &with);
        for (name, share) in quantiles {
            let value = count.and_then(|_| quantile(&buckets, share));
            figures[format!("ttft_{name}_ms")] = json!(value.map(ms));
        }
        let mean = sums.get(endpoint).zip(count).map(|(sum, count)| ms(sum / count));
        figures["ttft_mean_ms"] = json!(mean);
        figures
    });
    figures.collect()
}

fn figures(metrics: &str, sessions: &Value) -> Value {
    let empty = Vec::new();
    let all = sessions["data"].as_array().unwrap_or(&empty);
    let number = |session: &Value, member: &str| session[member].as_f64().unwrap_or(0.0);
    let total = |member: &str| all.iter().map(|s| number(s, member)).sum::<f64>();
    let dist = |sessions: &mut dyn Iterator<Item = &Value>, member: &str| {
        let mut values: Vec<f64> = sessions.map(|s| number(s, member)).collect();
        Dist::of(&mut values)
    };
    let share = |part: f64, of: f64| (of > 0.0).then(|| (part / of * 1e6).round() / 1e6);
    let subagents = || all.iter().filter(|s| !s["parent"].is_null());
    let waiting = |s: &&Value| s["state"] == "waiting";
    let first = |s: &&Value| number(s, "turns") == 1.0;
    let cold = |member: &str| subagents().filter(first).map(|s| number(s, member)).sum::<f64>();
    let (prompt, cached) = (
        sum(metrics, "mainstay_gateway_prompt_tokens_total"),
        sum(metrics, "mainstay_gateway_cached_tokens_total"),
    );
    json!({
        "endpoints": endpoints(metrics),
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "output_tokens": sum(metrics, "mainstay_gateway_completion_tokens_total"),
        "hit_rate_achieved": share(cached, prompt),
        "sessions": {
            "count": all.len(),
            "more": sessions["has_more"],
            "turns": dist(&mut all.iter(), "turns"),
            "context_tokens": dist(&mut all.iter(), "context_tokens"),
            "hit_rate": share(total("cached_tokens"), total("prompt_tokens")),
            "compactions": total("compactions"),
            "side_requests": total("side_requests"),
            "subagents": subagents().count(),
            "subagents_first_prompt_cold_share":
                share(cold("prompt_tokens") - cold("cached_tokens"), cold("prompt_tokens")),
            "waiting": all.iter().filter(waiting).count(),
            "waiting_for_ms": dist(&mut all.iter().filter(waiting), "last_seen_ms_ago"),
        },
        "absent": ABSENT,
    })
}

fn print_tables(figures: &Value) {
    let text = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let keys = [
        "endpoint",
        "requests",
        "streamed",
        "ttft_p50_ms",
        "ttft_p90_ms",
        "ttft_p99_ms",
        "ttft_mean_ms",
    ];
    let empty = Vec::new();
    let endpoints = figures["endpoints"].as_array().unwrap_or(&empty);
    let rows: Vec<Vec<String>> =
        endpoints.iter().map(|e| keys.iter().map(|key| text(&e[*key])).collect()).collect();
    let headers = ["ENDPOINT", "REQUESTS", "STREAMED", "TTFT P50 MS", "P90", "P99", "MEAN"];
    print(&format!("{}\n", table(&headers, &rows)));
    let mut rows = Vec::new();
    for (prefix, values) in [("", figures), ("sessions: ", &figures["sessions"])] {
        for (name, value) in values.as_object().into_iter().flatten() {
            match value {
                Value::Array(_) => {}
                Value::Object(dist) if dist.contains_key("p50") => {
                    let part = |key: &str| dist.get(key).map(text).unwrap_or_default();
                    let spread =
                        format!("p50 {}, p90 {}, p99 {}", part("p50"), part("p90"), part("p99"));
                    rows.push(vec![format!("{prefix}{name}"), spread]);
                }
                Value::Object(_) => {}
                plain => rows.push(vec![format!("{prefix}{name}"), text(plain)]),
            }
        }
    }
    print(&format!("{}\n", table(&["MEASURE", "VALUE"], &rows)));
    let absent: Vec<String> = ABSENT.iter().map(|what| format!("- {what}")).collect();
    print(&format!("Not to be seen here\n{}", absent.join("\n")));
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = r#"mainstay_gateway_requests_total{endpoint="chat"} 5
mainstay_gateway_requests_total{endpoint="responses"} 1
mainstay_gateway_requests_total{endpoint="messages"} 0
# TYPE mainstay_gateway_ttft_seconds histogram
mainstay_gateway_ttft_seconds_bucket{endpoint="chat",le="0.1"} 1
mainstay_gateway_ttft_seconds_bucket{endpoint="chat",le="0.15"} 3
mainstay_gateway_ttft_seconds_bucket{endpoint="chat",le="2"} 3
mainstay_gateway_ttft_seconds_bucket{endpoint="chat",le="+Inf"} 4
mainstay_gateway_ttft_seconds_bucket{endpoint="messages",le="+Inf"} 0
mainstay_gateway_ttft_seconds_sum{endpoint="chat"} 3
mainstay_gateway_ttft_seconds_count{endpoint="chat"} 4
mainstay_gateway_ttft_seconds_count{endpoint="messages"} 0
mainstay_gateway_prompt_tokens_total 200
mainstay_gateway_cached_tokens_total 150
mainstay_gateway_cached_tokens_totality 9
mainstay_gateway_completion_tokens_total nonsense
"#;

    #[test]
    fn metrics_and_sessions_become_figures() {
        let sessions = json!({"has_more": false, "data": [
            {"parent": null, "state": "waiting", "turns": 9, "context_tokens": 100, "prompt_tokens": 500,
             "cached_tokens": 400, "compactions": 2, "last_seen_ms_ago": 1500},
            {"parent": "p", "state": "running", "turns": 1, "context_tokens": 50, "prompt_tokens": 50, "cached_tokens": 20},
        ]});
        let figures = figures(METRICS, &sessions);
        let chat = &figures["endpoints"][0];
        assert_eq!(figures["endpoints"].as_array().map(Vec::len), Some(2));
        assert_eq!((&chat["requests"], &chat["streamed"]), (&json!(5.0), &json!(4.0)));
        assert_eq!(figures["endpoints"][1]["ttft_mean_ms"], Value::Null);
        assert_eq!((&chat["ttft_p50_ms"], &chat["ttft_mean_ms"]), (&json!(125.0), &json!(750.0)));
        // What is beyond the last bound is told as that bound.
        assert_eq!((&chat["ttft_p90_ms"], &chat["ttft_p99_ms"]), (&json!(2000.0), &json!(2000.0)));
        assert_eq!(figures["hit_rate_achieved"], 0.75);
        assert_eq!(figures["output_tokens"], 0.0);
        let sessions = &figures["sessions"];
        assert_eq!((&sessions["count"], &sessions["subagents"]), (&json!(2), &json!(1)));
        assert_eq!(sessions["subagents_first_prompt_cold_share"], 0.6);
        assert_eq!(
            (&sessions["waiting"], &sessions["waiting_for_ms"]["p50"]),
            (&json!(1), &json!(1500.0))
        );
        assert_eq!(sessions["compactions"], 2.0);
    }

    #[test]
    fn nothing_is_made_of_nothing() {
        let figures = figures("}{ x\nmainstay_gateway_ttft_seconds_count{", &Value::Null);
        assert_eq!(
            (&figures["hit_rate_achieved"], &figures["sessions"]["turns"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(figures["endpoints"], json!([]));
    }
}
