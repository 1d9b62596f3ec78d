//! The golden list against the code, the page, the dashboard and the alerts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::catalog::{self, Kind, Metric};
use super::{bounds_of, page};

/// Asked for when the test runs: a build folder that two checkouts share may have it from the other.
fn root() -> PathBuf {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
    Path::new(&here).join("../..").canonicalize().expect("the root exists")
}

/// What the code counts: name, kind, labels.
type Counted = BTreeMap<String, (Kind, BTreeSet<String>)>;

/// The text up to the bracket that closes what is open at its begin.
fn inside(text: &str) -> &str {
    let mut depth = 1;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..at];
        }
    }
    text
}

fn quoted(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (_, begun) = rest.split_once('"')?;
        let (word, after) = begun.split_once('"')?;
        rest = after;
        Some((word, after.trim_start()))
    })
}

fn count_file(text: &str, counted: &mut Counted) {
    let macros =
        [("counter!(", Kind::Counter), ("gauge!(", Kind::Gauge), ("histogram!(", Kind::Histogram)];
    for (open, kind) in macros {
        for (at, _) in text.match_indices(open) {
            let body = inside(&text[at + open.len()..]);
            let Some((name, _)) = quoted(body).next() else { continue };
            if !name.starts_with("mainstay_") || !body.trim_start().starts_with('"') {
                continue;
            }
            let labels = quoted(body).filter(|(_, after)| after.starts_with("=>"));
            let labels: BTreeSet<String> = labels.map(|(label, _)| label.to_owned()).collect();
            let entry = counted.entry(name.to_owned()).or_insert((kind, labels.clone()));
            assert_eq!(*entry, (kind, labels), "{name} is counted in two ways");
        }
    }
}

/// All Rust files of the product below `dir`.
fn visit(dir: &Path, counted: &mut Counted) {
    for entry in std::fs::read_dir(dir).expect("a readable folder").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if path.is_dir() {
            if !matches!(&*name, "tests" | "target" | "docs" | "fuzz") && !name.starts_with('.') {
                visit(&path, counted);
            }
        } else if name.ends_with(".rs") && name != "catalog.rs" && name != "tests.rs" {
            let text = std::fs::read_to_string(&path).expect("a source file is text");
            count_file(&text, counted);
        }
    }
}

#[test]
fn the_list_is_what_the_code_counts() {
    let mut counted = Counted::new();
    visit(&root(), &mut counted);
    let listed = catalog::all().map(|metric| {
        let labels = metric.labels.iter().map(|label| (*label).to_owned()).collect();
        (metric.name.to_owned(), (metric.kind, labels))
    });
    let listed: Counted = listed.collect();
    let missing: Vec<_> = counted.iter().filter(|(name, _)| !listed.contains_key(*name)).collect();
    assert!(missing.is_empty(), "write these into monitoring/catalog.rs: {missing:#?}");
    let gone: Vec<_> = listed.keys().filter(|name| !counted.contains_key(*name)).collect();
    assert!(gone.is_empty(), "nobody counts these of monitoring/catalog.rs: {gone:#?}");
    assert_eq!(counted, listed);
}

#[test]
fn the_reader_of_sources_reads() {
    let mut counted = Counted::new();
    let text = r#"metrics::counter!("mainstay_a_total", "x" => f("y"), "z" => z).increment(1);
        gauge!(
            "mainstay_b"
        ); counter!(name); counter!("other_total");"#;
    count_file(text, &mut counted);
    let labels = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect();
    assert_eq!(counted.len(), 2);
    assert_eq!(counted["mainstay_a_total"], (Kind::Counter, labels(&["x", "z"])));
    assert_eq!(counted["mainstay_b"], (Kind::Gauge, labels(&[])));
}

#[test]
fn names_are_unique_and_say_their_unit() {
    let names: BTreeSet<&str> = catalog::all().map(|metric| metric.name).collect();
    assert_eq!(names.len(), catalog::all().count());
    for Metric { name, kind, help, .. } in catalog::all() {
        let is_counter = name.ends_with("_total");
        assert!(*kind != Kind::Gauge || !is_counter, "{name}");
        assert!(*kind != Kind::Counter || name.ends_with("_total"), "{name}");
        assert!(!help.is_empty() && !help.ends_with('.') && !help.contains('|'), "{name}");
        assert_eq!(*kind == Kind::Histogram, bounds_of(name).is_some(), "{name} needs buckets");
    }
}

#[test]
fn the_page_is_current() {
    let path = root().join("docs/reference/metrics.md");
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(there, page(), "run `mainstay reference metrics > docs/reference/metrics.md`");
}

/// Names of ours in an expression, as Prometheus has them.
fn names_in(expression: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    expression
        .split(|c: char| !is_word(c))
        .filter(|word| word.starts_with("mainstay_") || word.starts_with("mainstay:"))
        .collect()
}

/// Whether a name of an expression is served: a histogram by its three parts.
fn is_served(name: &str) -> bool {
    let parts = |metric: &Metric| {
        let ends: &[&str] = match metric.kind {
            Kind::Histogram => &["_bucket", "_sum", "_count"],
            Kind::Counter | Kind::Gauge => &[""],
        };
        ends.iter().any(|end| name.strip_suffix(end) == Some(metric.name))
    };
    catalog::all().any(parts)
}

/// Labels in the braces and `by` of an expression must be the metric's own, or Prometheus'.
fn labels_in(expression: &str) -> Vec<String> {
    let mut labels = Vec::new();
    for part in expression.split('{').skip(1) {
        let selectors = part.split('}').next().unwrap_or_default();
        labels.extend(selectors.split(',').filter_map(|selector| {
            let name = selector.split(['=', '!']).next()?.trim();
            (!name.is_empty()).then(|| name.to_owned())
        }));
    }
    for word in ["by (", "by("] {
        for part in expression.split(word).skip(1) {
            let names = part.split(')').next().unwrap_or_default();
            labels.extend(names.split(',').map(|name| name.trim().to_owned()));
        }
    }
    labels
}

fn check_expression(expression: &str, recorded: &BTreeSet<String>) {
    let names = names_in(expression);
    assert!(!names.is_empty() || expression.contains("up{"), "{expression} names no metric");
    let mut known: BTreeSet<&str> = ["job", "instance", "le", "region"].into();
    for name in &names {
        assert!(is_served(name) || recorded.contains(*name), "{expression}: there is no {name}");
        let of = catalog::all().filter(|metric| name.starts_with(metric.name));
        known.extend(of.flat_map(|metric| metric.labels));
    }
    for label in labels_in(expression) {
        assert!(known.contains(label.as_str()), "{expression}: no metric in it has {label}");
    }
    let (open, close) = (expression.matches('(').count(), expression.matches(')').count());
    assert_eq!(open, close, "{expression}");
}

fn expressions(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(members) => {
            found.extend(members.get("expr").and_then(|e| e.as_str()).map(str::to_owned));
            members.values().for_each(|value| expressions(value, found));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

#[test]
fn every_panel_of_the_dashboard_names_metrics_that_exist() {
    let path = root().join("docs/operate/deploy/grafana/mainstay.json");
    let text = std::fs::read_to_string(path).expect("the dashboard is there");
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let mut found = Vec::new();
    expressions(&dashboard, &mut found);
    assert!(found.len() >= 25, "{} expressions", found.len());
    let none = BTreeSet::new();
    found.iter().for_each(|expression| check_expression(expression, &none));
    // What the seeds ask to be seen.
    let all = found.join("\n");
    for wanted in [
        "placed_blocks",
        "ttft_seconds",
        "output_tokens_per_second",
        "prompt_growth_tokens",
        "tool_pause_seconds",
        "subagent_first_prompt_tokens",
        "held=\"elsewhere\"",
        "change=\"compacted\"",
        "blocks_removed_total",
    ] {
        assert!(all.contains(wanted), "no panel shows {wanted}");
    }
    let ids: BTreeSet<u64> = dashboard["panels"]
        .as_array()
        .expect("panels")
        .iter()
        .map(|panel| panel["id"].as_u64().expect("a panel has an id"))
        .collect();
    assert_eq!(ids.len(), dashboard["panels"].as_array().map_or(0, Vec::len), "ids are unique");
}

#[test]
fn every_alert_names_metrics_that_exist_and_a_place_in_the_runbook() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).expect("a file of ours");
    let rules: serde_json::Value =
        serde_yaml_ng::from_str(&read("docs/operate/deploy/prometheus/rules.yaml")).expect("YAML");
    let runbook = read("docs/operate/monitoring.md");
    let groups = rules["groups"].as_array().expect("groups");
    let rules: Vec<_> = groups.iter().flat_map(|g| g["rules"].as_array().expect("rules")).collect();
    let text = |rule: &serde_json::Value, key: &str| rule[key].as_str().map(str::to_owned);
    let recorded: BTreeSet<String> = rules.iter().filter_map(|r| text(r, "record")).collect();
    let mut alerts = 0;
    for rule in rules {
        check_expression(&text(rule, "expr").expect("an expression"), &recorded);
        let Some(alert) = text(rule, "alert") else { continue };
        alerts += 1;
        let heading = format!("### {alert}\n");
        assert!(runbook.contains(&heading), "monitoring.md has no heading for {alert}");
        let place = format!("docs/operate/monitoring.md#{}", alert.to_lowercase());
        assert_eq!(rule["annotations"]["runbook"], place);
        let severity = rule["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("page" | "ticket")), "{alert}");
    }
    assert!(alerts >= 12);
}
