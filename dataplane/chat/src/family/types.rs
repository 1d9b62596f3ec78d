//! Which parameters of which tools are texts, for families that write values without types.

use std::sync::Arc;

use serde_json::Value;

use crate::ir::Tool;

/// The types that a request's tools give to their parameters, looked up when a call names one.
#[derive(Clone, Debug, Default)]
pub struct ToolTypes {
    tools: Arc<Vec<Tool>>,
}

impl ToolTypes {
    /// Of a request's tools, those that the model does not see among them.
    pub fn of(tools: Arc<Vec<Tool>>) -> ToolTypes {
        ToolTypes { tools }
    }

    /// Whether a parameter is a text whatever it looks like.
    fn is_text(&self, tool: &str, parameter: &str) -> bool {
        let mut seen = self.tools.iter().filter(|tool| tool.is_callable());
        let schema = seen.find(|other| other.name == tool).map(|tool| &tool.schema);
        let properties = schema.and_then(|schema| schema.get("properties"));
        properties.and_then(|properties| properties.get(parameter)).is_some_and(is_text)
    }

    /// The JSON of a value that was written as `raw`.
    pub(crate) fn value(&self, tool: &str, parameter: &str, raw: &str) -> Value {
        let text = || Value::String(raw.to_owned());
        if self.is_text(tool, parameter) {
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
