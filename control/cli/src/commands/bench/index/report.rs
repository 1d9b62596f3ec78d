//! The figures as tables for people: one table per part, columns named like the members of the JSON.
//!
//! Works on the JSON itself, so a figure can't be in one form and not in the other. Lists of samples are left to
//! programs.

use serde_json::{Map, Value};

use crate::output::table;

/// Members that only programs read.
const HIDDEN: [&str; 1] = ["samples"];

/// All parts of a report, each under its name.
pub(super) fn render(report: &Value) -> String {
    let mut out = Vec::new();
    for (name, part) in report.as_object().into_iter().flatten() {
        section(name, part, &mut out);
    }
    out.join("\n\n")
}

fn section(name: &str, part: &Value, out: &mut Vec<String>) {
    match part {
        Value::Array(rows) => out.push(format!("{name}\n{}", list(rows))),
        Value::Object(members) if members.values().any(Value::is_array) => {
            let lists = members.iter().filter(|(key, v)| v.is_array() && !hidden(key));
            for (key, value) in lists {
                section(&format!("{name}.{key}"), value, out);
            }
            let rest = members.iter().filter(|(_, v)| !v.is_array());
            let rest: Map<String, Value> = rest.map(|(k, v)| (k.clone(), v.clone())).collect();
            if !rest.is_empty() {
                out.push(format!("{name}\n{}", pairs(&rest)));
            }
        }
        Value::Object(members) => out.push(format!("{name}\n{}", pairs(members))),
        other => out.push(format!("{name}: {}", cell(other))),
    }
}

fn hidden(key: &str) -> bool {
    HIDDEN.contains(&key)
}

fn pairs(members: &Map<String, Value>) -> String {
    let rows: Vec<Vec<String>> = members.iter().map(|(k, v)| vec![k.clone(), cell(v)]).collect();
    table(&["MEASURE", "VALUE"], &rows)
}

/// Rows under the union of their members, in the order of first appearance.
fn list(rows: &[Value]) -> String {
    let mut columns: Vec<&String> = Vec::new();
    for key in rows.iter().filter_map(Value::as_object).flat_map(Map::keys) {
        if !columns.contains(&key) && !hidden(key) {
            columns.push(key);
        }
    }
    let headers: Vec<String> = columns.iter().map(|c| c.to_uppercase().replace('_', " ")).collect();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let line = |row: &Value| {
        columns.iter().map(|c| row.get(c.as_str()).map_or_else(|| "-".to_owned(), cell)).collect()
    };
    table(&headers, &rows.iter().map(line).collect::<Vec<_>>())
}

/// A value as text; whole numbers get their thousands apart.
fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Number(number) => match number.as_u64() {
            Some(whole) => thousands(whole),
            None => number.to_string().trim_end_matches(".0").to_owned(),
        },
        other => other.to_string(),
    }
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_objects_and_nested_lists_are_shown() {
        let report = json!({
            "events": [{"form": "keys", "cpu_ns": 12.5}, {"form": "runs", "extra_bytes": 1_234_567}],
            "growth": {"depth": [{"x": 16}], "samples": [1, 2], "note": "n"},
            "machine": {"cores": 2},
        });
        let text = render(&report);
        for part in [
            "events\nFORM  CPU NS  EXTRA BYTES\nkeys  12.5    -\nruns  -       1,234,567",
            "growth.depth\nX\n16",
            "MEASURE  VALUE\nnote     n",
            "machine\nMEASURE  VALUE\ncores    2",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("samples"));
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1_000, 10_000_000].map(thousands), ["0", "999", "1,000", "10,000,000"]);
    }
}
