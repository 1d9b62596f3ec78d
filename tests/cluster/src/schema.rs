//! Whether a value is what a JSON schema says: as much of JSON Schema as `openapi.json` uses for our own answers.
//!
//! Strict where schemas are strict: a word of the schema that is not known here is an error, so that nothing is
//! believed to be checked that is not.

use serde_json::{Map, Value};

/// Words that say something to readers and nothing about values.
const SILENT: [&str; 2] = ["description", "minItems"];

/// What is wrong with `value`, as places and reasons; empty if nothing is. `document` is what references point into.
pub fn problems(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(document, schema, value, "", &mut found);
    found
}

fn check(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let Some(words) = schema.as_object() else {
        return found.push(format!("{at}: the schema is no object"));
    };
    for (word, meant) in words {
        match word.as_str() {
            "$ref" => {
                let place =
                    meant.as_str().and_then(|r| document.pointer(r.trim_start_matches('#')));
                match place {
                    Some(schema) => check(document, schema, value, at, found),
                    None => found.push(format!("{at}: {meant} leads nowhere")),
                }
            }
            "type" if !is_of(meant, value) => found.push(format!("{at}: {value} is no {meant}")),
            "const" if meant != value => found.push(format!("{at}: {value} is not {meant}")),
            "enum" if !meant.as_array().is_some_and(|all| all.contains(value)) => {
                found.push(format!("{at}: {value} is none of {meant}"));
            }
            "minimum" if value.as_f64() < meant.as_f64() && value.is_number() => {
                found.push(format!("{at}: {value} is below {meant}"));
            }
            "maxItems" if value.as_array().map(Vec::len) > meant.as_u64().map(|n| n as usize) => {
                found.push(format!("{at}: more than {meant}"));
            }
            "items" => {
                for (n, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(document, meant, item, &format!("{at}/{n}"), found);
                }
            }
            "properties" => members(document, words, value, at, found),
            "required"
            | "additionalProperties"
            | "type"
            | "const"
            | "enum"
            | "minimum"
            | "maxItems" => {}
            other if SILENT.contains(&other) => {}
            other => found.push(format!("{at}: the schema says {other}, which is not understood")),
        }
    }
}

fn members(
    document: &Value,
    words: &Map<String, Value>,
    value: &Value,
    at: &str,
    found: &mut Vec<String>,
) {
    let Some(value) = value.as_object() else { return };
    let described = words["properties"].as_object();
    for name in words.get("required").and_then(Value::as_array).into_iter().flatten() {
        if name.as_str().is_none_or(|name| !value.contains_key(name)) {
            found.push(format!("{at}: {name} is missing"));
        }
    }
    for (name, member) in value {
        match described.and_then(|d| d.get(name)) {
            Some(schema) => check(document, schema, member, &format!("{at}/{name}"), found),
            None if words.get("additionalProperties") == Some(&Value::Bool(false)) => {
                found.push(format!("{at}: {name} is not described"));
            }
            None => {}
        }
    }
}

fn is_of(kinds: &Value, value: &Value) -> bool {
    let one = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => false,
    };
    match kinds {
        Value::String(kind) => one(kind),
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).any(one),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::problems;

    #[test]
    fn it_finds_what_is_wrong() {
        let document = json!({"schemas": {"Row": {
            "type": "object", "additionalProperties": false, "required": ["a"],
            "properties": {"a": {"type": ["integer", "null"], "minimum": 0}, "b": {"enum": ["x"]}},
        }}});
        let schema = json!({"type": "array", "items": {"$ref": "#/schemas/Row"}});
        let wrong = |value| problems(&document, &schema, &value);
        assert_eq!(wrong(json!([{"a": 1, "b": "x"}, {"a": null}])), Vec::<String>::new());
        for bad in [
            json!({}),
            json!([{"b": "x"}]),
            json!([{"a": "1"}]),
            json!([{"a": 1.5}]),
            json!([{"a": -1}]),
            json!([{"a": 1, "b": "y"}]),
            json!([{"a": 1, "c": 1}]),
        ] {
            assert_eq!(wrong(bad.clone()).len(), 1, "{bad}");
        }
        assert_eq!(problems(&document, &json!({"oneOf": []}), &json!(1)).len(), 1);
        assert_eq!(problems(&document, &json!({"$ref": "#/nowhere"}), &json!(1)).len(), 1);
    }
}
