//! Which parameters of which tools are texts, for families that write values without types.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use crate::ir::Tool;

/// The parameters of a request's tools that are texts whatever they look like.
#[derive(Clone, Debug, Default)]
pub struct ToolTypes {
    texts: Arc<HashMap<String, HashSet<String>>>,
}

impl ToolTypes {
    /// Reads the tools' schemas.
    pub fn of<'t>(tools: impl Iterator<Item = &'t Tool>) -> ToolTypes {
        let texts = tools.map(|tool| (tool.name.clone(), texts(&tool.schema)));
        ToolTypes { texts: Arc::new(texts.collect()) }
    }

    /// The JSON of a value that was written as `raw`.
    pub(crate) fn value(&self, tool: &str, parameter: &str, raw: &str) -> Value {
        let text = || Value::String(raw.to_owned());
        if self.texts.get(tool).is_some_and(|texts| texts.contains(parameter)) {
            return text();
        }
        match raw.trim() {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::Null,
            trimmed => crate::plain_json::from_str(trimmed).unwrap_or_else(|_| text()),
        }
    }
}

fn texts(schema: &Value) -> HashSet<String> {
    let properties = schema.get("properties").and_then(Value::as_object);
    let all = properties.into_iter().flatten();
    all.filter(|(_, schema)| is_text(schema)).map(|(name, _)| name.clone()).collect()
}

/// A text, or a text and nothing: `null` is then a word like any other.
fn is_text(schema: &Value) -> bool {
    match schema.get("type") {
        Some(Value::String(word)) => word == "string",
        Some(Value::Array(words)) => {
            let mut words = words.iter().filter_map(Value::as_str).filter(|w| *w != "null");
            words.next() == Some("string") && words.next().is_none()
        }
        _ => match schema.get("enum").or_else(|| schema.get("const")) {
            Some(Value::Array(values)) => values.iter().all(Value::is_string),
            Some(value) => value.is_string(),
            None => false,
        },
    }
}
