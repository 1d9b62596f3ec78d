//! Bodies no client would send: the parsers must answer, never panic.

use super::*;
use proptest::prelude::*;
use serde_json::Value;

/// JSON that looks enough like a body to get deep into the parsers.
fn any_json() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "user",
        "assistant",
        "system",
        "tool",
        "text",
        "tool_use",
        "tool_result",
        "thinking",
        "function",
        "function_call",
        "function_call_output",
        "message",
        "reasoning",
        "namespace",
        "custom",
        "allowed_tools",
        "grammar",
        "tool_reference",
        "document",
        "search_result",
        "clear_thinking_20251015",
        "clear_tool_uses_20250919",
        "custom_tool_call",
        "additional_tools",
        "image",
        "auto",
        "ephemeral",
        "5m",
        "99999999999h",
        "",
        "x-anthropic-billing-header: a",
        "{\"session_id\": 5}",
        "é",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        words.prop_map(Value::from),
    ];
    let keys = prop::sample::select(vec![
        "type",
        "role",
        "content",
        "text",
        "thinking",
        "signature",
        "id",
        "name",
        "input",
        "arguments",
        "function",
        "tool_calls",
        "tool_call_id",
        "tool_use_id",
        "call_id",
        "output",
        "cache_control",
        "ttl",
        "tools",
        "summary",
        "encrypted_content",
        "is_error",
        "parameters",
        "input_schema",
        "reasoning_content",
        "custom",
        "format",
        "definition",
        "syntax",
        "allowed_tools",
        "mode",
        "namespace",
        "defer_loading",
        "tool_name",
        "source",
        "edits",
        "keep",
        "trigger",
        "value",
    ]);
    leaf.prop_recursive(5, 80, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((keys.clone(), inner), 0..7).prop_map(|members| {
                members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Value>()
            }),
        ]
    })
}

fn bodies() -> impl Strategy<Value = Value> {
    let keys = prop::sample::select(vec![
        "messages",
        "input",
        "system",
        "instructions",
        "tools",
        "tool_choice",
        "max_tokens",
        "stream",
        "stop",
        "stop_sequences",
        "stream_options",
        "thinking",
        "reasoning",
        "text",
        "metadata",
        "nvext",
        "include",
        "client_metadata",
        "cache_control",
        "response_format",
        "output_config",
        "seed",
        "n",
        "top_k",
        "logprobs",
        "top_logprobs",
        "previous_response_id",
        "prompt_cache_key",
        "prompt_cache_retention",
        "temperature",
        "context_management",
    ]);
    prop::collection::vec((keys, any_json()), 0..8).prop_map(|members| {
        let mut body: Value = members.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        body["model"] = "m".into();
        if body.get("max_tokens").is_none() {
            body["max_tokens"] = 5.into();
        }
        body
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn no_body_panics(body in bodies()) {
        let text = body.to_string();
        for parse in [parse_chat, parse_responses, parse_messages, parse_count_tokens] {
            match parse(text.as_bytes()) {
                Ok(mut request) => {
                    request.apply_headers([("x-session-id", "s"), ("x-codex-turn-metadata", text.as_str())]);
                    let _ = request.conversation.breakpoints();
                    if let Some(context) = &request.context {
                        let edits = context.edits.clone();
                        crate::apply_edits(&mut request.conversation, &edits, |c| c.messages.len() as u64);
                    }
                    prop_assert!(request.warnings.len() <= crate::limits::WARNINGS_MAX);
                }
                Err(error) => prop_assert!(!error.message.is_empty()),
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for parse in [parse_chat, parse_responses, parse_messages, parse_count_tokens] {
            let _ = parse(&bytes);
        }
    }
}
