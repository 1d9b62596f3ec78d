//! Calls in the client's words: the name that it gave a tool, and free text where it takes no JSON.

use serde_json::Value;

use crate::ir::{Tool, ToolKind};

/// The tools whose calls a client is told of in another way than plain functions'.
pub(super) fn apart(tools: &[Tool]) -> Vec<Tool> {
    let other = |tool: &&Tool| {
        let custom = matches!(tool.kind, ToolKind::Custom { .. });
        custom || tool.client_name.is_some() || tool.namespace.is_some()
    };
    tools.iter().filter(other).cloned().collect()
}

fn find<'t>(tools: &'t [Tool], name: &str) -> Option<&'t Tool> {
    tools.iter().find(|tool| tool.name == name)
}

/// The client's name of the tool that the model calls `name`.
pub(super) fn told_name<'t>(tools: &'t [Tool], name: &'t str) -> &'t str {
    find(tools, name).map_or(name, Tool::told_name)
}

/// Whether calls of this tool are free text.
pub(super) fn is_custom(tools: &[Tool], name: &str) -> bool {
    find(tools, name).is_some_and(|tool| matches!(tool.kind, ToolKind::Custom { .. }))
}

/// The text in the arguments of a custom tool's call. Models that chose another name for the one argument are
/// understood; whatever else they wrote is given as it is, so that nothing is lost.
pub(super) fn custom_input(arguments: &str) -> String {
    let Ok(Value::Object(members)) = crate::plain_json::from_str(arguments) else {
        return arguments.to_owned();
    };
    let only = || members.values().next().filter(|_| members.len() == 1);
    let text = members.get("input").or_else(only).and_then(Value::as_str);
    text.unwrap_or(arguments).to_owned()
}

#[cfg(test)]
mod tests {
    use super::custom_input;

    #[test]
    fn the_text_is_taken_out_of_whatever_a_model_wrote() {
        for (arguments, input) in [
            (r#"{"input": "let a = \"b\";\n"}"#, "let a = \"b\";\n"),
            (r#"{"code": "1"}"#, "1"),
            (r#"{"input": "1", "why": "x"}"#, "1"),
            (r#"{"input": 5}"#, r#"{"input": 5}"#),
            (r#"{"a": "1", "b": "2"}"#, r#"{"a": "1", "b": "2"}"#),
            ("{}", "{}"),
            ("not JSON", "not JSON"),
            ("", ""),
        ] {
            assert_eq!(custom_input(arguments), input, "{arguments}");
        }
    }
}
