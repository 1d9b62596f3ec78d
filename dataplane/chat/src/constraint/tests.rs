//! What becomes of a client's wishes, by cases; that engines understand the grammars is tested where one is.

use super::*;
use crate::parse_chat;

fn made(
    body: &Value,
    family: Family,
    tokens: bool,
) -> (Result<Option<Constraint>, ApiError>, Option<String>) {
    let mut body = body.clone();
    body["model"] = json!("m");
    body["messages"] = json!([{"role": "user", "content": "hi"}]);
    // Some of what makes no sense is refused before.
    let mut request = match parse_chat(body.to_string().as_bytes()) {
        Ok(request) => request,
        Err(error) => return (Err(error), None),
    };
    let ids = ["<think>", "</think>", "<tool_call>", "</tool_call>"];
    let token = |text: &str| {
        ids.iter().position(|id| *id == text).filter(|_| tokens).map(|at| at as u32 + 5)
    };
    let spelling = Spelling::of("", family, token);
    let made = constraint(&mut request, &spelling, false);
    (made, request.told_header())
}

fn spec(body: &Value, tokens: bool) -> Constraint {
    made(body, Family::Hermes, tokens).0.unwrap().expect("a form")
}

fn tools(strict: bool) -> Value {
    let tool = |name: &str, strict: bool| {
        json!({"type": "function", "function": {"name": name, "strict": strict,
            "parameters": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}}})
    };
    json!([tool("look", strict), tool("say \"x\"", false)])
}

#[test]
fn what_is_not_wished_for_is_free() {
    for body in [
        json!({}),
        json!({"tools": tools(false)}),
        json!({"tools": tools(true), "tool_choice": "none"}),
        json!({"response_format": {"type": "text"}}),
    ] {
        assert_eq!(made(&body, Family::Hermes, true).0.unwrap(), None, "{body}");
    }
}

#[test]
fn a_format_is_a_schema_where_the_model_does_not_think() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "x-guidance": {"lenient": true}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}});
    let made = spec(&json!({"response_format": format}), false);
    assert_eq!(made.kind, ConstraintKind::JsonSchema);
    let spec_value: Value = serde_json::from_str(&made.spec).unwrap();
    assert_eq!(spec_value["properties"], schema["properties"]);
    assert_eq!(spec_value["x-guidance"], json!({"lenient": false}), "the client has no say");
    let made = spec(&json!({"response_format": {"type": "json_object"}}), true);
    assert_eq!(made.kind, ConstraintKind::Lark);
    assert!(
        made.spec.starts_with("start: (<[5]> THOUGHT? <[6]> BREAK?)? value\n"),
        "{}",
        made.spec
    );
}

#[test]
fn a_required_call_is_all_there_may_be() {
    let made_named = |choice: Value, tokens| {
        spec(&json!({"tools": tools(false), "tool_choice": choice}), tokens).spec
    };
    let any = made_named(json!("required"), true);
    assert!(
        any.starts_with("start: (<[5]> THOUGHT? <[6]> BREAK?)? call (\"\\n\"? call)*\n"),
        "{any}"
    );
    assert!(any.contains("call: <[7]> \"\\n\"? body \"\\n\"? <[8]>\n"), "{any}");
    assert!(
        any.contains(r#""{\"name\": \"say \\\"x\\\"\", \"arguments\": " arguments_1 "}""#),
        "{any}"
    );
    let one = made_named(json!({"type": "function", "function": {"name": "look"}}), false);
    assert!(one.contains("arguments_0") && !one.contains("arguments_1"), "{one}");
    assert!(one.contains("call: \"<tool_call>\""), "{one}");
    let single = spec(
        &json!({"tools": tools(false), "tool_choice": "required", "parallel_tool_calls": false}),
        true,
    );
    assert!(
        single.spec.starts_with("start: (<[5]> THOUGHT? <[6]> BREAK?)? call\n"),
        "{}",
        single.spec
    );
}

#[test]
fn strict_tools_leave_the_text_free() {
    let made = spec(&json!({"tools": tools(true)}), false).spec;
    assert!(made.starts_with("start: TEXT? (call (\"\\n\"? call)*)?\n"), "{made}");
    assert!(made.contains(r"TEXT: /(.|\n)+/ & ~/(.|\n)*<tool_call>(.|\n)*/"), "{made}");
    let format = json!({"tools": tools(true), "response_format": {"type": "json_object"}});
    let made = spec(&format, false).spec;
    assert!(made.starts_with("start: (call (\"\\n\"? call)* | value)\n"), "{made}");
}

#[test]
fn what_cannot_be_held_to_is_told_and_what_makes_no_sense_is_refused() {
    let (free, told) = made(&json!({"tools": tools(true)}), Family::Kimi, false);
    assert_eq!(
        (free.unwrap(), told.as_deref()),
        (None, Some("form-not-enforced-for-this-model;count=1"))
    );
    let (object, told) =
        made(&json!({"response_format": {"type": "json_object"}}), Family::Kimi, false);
    assert!(
        object.unwrap().is_some() && told.is_none(),
        "a format alone is no question of families"
    );

    let (free, told) =
        made(&json!({"response_format": {"type": "json_object"}}), Family::Harmony, false);
    assert!(free.unwrap().is_none() && told.is_some(), "a message needs its header first");

    let mut deep = json!({});
    for _ in 0..SCHEMA_DEPTH_MAX {
        deep = json!({"items": deep});
    }
    let wide: Vec<u32> = (0..SCHEMA_NODES_MAX as u32).collect();
    let long = "x".repeat(FORM_BYTES_MAX);
    let format = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}});
    for (body, word) in [
        (
            json!({"tools": tools(false), "tool_choice": {"type": "function", "function": {"name": "sing"}}}),
            "sing",
        ),
        (json!({"tool_choice": "required"}), "no tool"),
        (format(deep), "deeper"),
        (format(json!({"enum": wide})), "values"),
        (format(json!({"const": long})), "bytes"),
    ] {
        let error = made(&body, Family::Hermes, true).0.expect_err(word);
        assert_eq!(error.kind, ErrorKind::InvalidRequest);
        assert!(error.message.contains(word), "{}", error.message);
    }
}
