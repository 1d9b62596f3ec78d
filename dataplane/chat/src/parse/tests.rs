//! Parsing: what is accepted, what is refused and with which path, and that nothing panics.

use super::*;
use crate::error::{ApiError, ErrorKind};
use crate::ir::{Content, Conversation, Position, Role, ToolChoice};
use crate::request::{Endpoint, OutputFormat, Request, Thinking, ThinkingDisplay};
use expect_test::{Expect, expect};
use serde_json::{Value, json};
use std::fmt::Write;

fn chat(body: Value) -> Result<Request, ApiError> {
    parse_chat(body.to_string().as_bytes())
}

fn responses(body: Value) -> Result<Request, ApiError> {
    parse_responses(body.to_string().as_bytes())
}

fn messages(body: Value) -> Result<Request, ApiError> {
    parse_messages(body.to_string().as_bytes())
}

/// A conversation, one block a line.
fn outline(c: &Conversation) -> String {
    let mut out = String::new();
    let mut line = |who: &str, block: &crate::Block| {
        let mark = block.cache_control.map_or(String::new(), |m| format!(" [{} ms]", m.ttl_ms));
        let what = match &block.content {
            Content::Text(text) => format!("{text:?}"),
            Content::Thinking { text, .. } => format!("thinks {text:?}"),
            Content::ToolCall { id, name, arguments } => format!("calls {id} {name} {arguments}"),
            Content::ToolResult { call_id, blocks, is_error } => {
                let texts: Vec<&Content> = blocks.iter().map(|b| &b.content).collect();
                format!("{call_id} gave {texts:?}{}", if *is_error { " (error)" } else { "" })
            }
        };
        writeln!(out, "{who}: {what}{mark}").unwrap();
    };
    c.system.iter().for_each(|block| line("prompt", block));
    for message in &c.messages {
        let who = format!("{:?}", message.role).to_lowercase();
        message.blocks.iter().for_each(|block| line(&who, block));
    }
    for tool in c.tools.iter() {
        let mark = tool.cache_control.map_or(String::new(), |m| format!(" [{} ms]", m.ttl_ms));
        let space = tool.namespace.as_deref().map_or(String::new(), |n| format!("{n}/"));
        writeln!(out, "tool {space}{} {:?} {}{mark}", tool.name, tool.description, tool.schema)
            .unwrap();
    }
    out
}

fn check(request: Result<Request, ApiError>, expected: Expect) {
    let request = request.unwrap();
    let mut out = outline(&request.conversation);
    for warning in &request.warnings {
        writeln!(out, "warning: {warning}").unwrap();
    }
    expected.assert_eq(&out);
}

/// An agent's second turn as Claude Code shapes it.
fn harness_body() -> Value {
    json!({
        "model": "demo", "max_tokens": 128000, "stream": true,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0.abc; cc_is_subagent=true;"},
            {"type": "text", "text": "You are an agent.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Rules.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "<reminder>"}, {"type": "text", "text": "Read notes.txt"}]},
            {"role": "system", "content": "Mind the time.", "output_config": {"effort": "medium"}},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "I should look.", "signature": "c2ln"},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "Reading."},
                {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"file_path": "/w/notes.txt"}},
                {"type": "tool_use", "id": "toolu_2", "name": "Bash", "input": {"command": "ls"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "alpha"},
                {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": true,
                 "content": [{"type": "text", "text": "no"}], "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "Go on."},
            ]},
        ],
        "tools": [
            {"name": "Read", "description": "Reads", "input_schema": {"type": "object", "properties": {"file_path": {"type": "string"}}}},
            {"type": "web_search_20250305", "name": "web_search"},
            {"name": "Bash", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        ],
        "metadata": {"user_id": "{\"device_id\":\"d\",\"account_uuid\":\"\",\"session_id\":\"s1\"}"},
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": []},
        "output_config": {"effort": "medium"},
    })
}

#[test]
fn messages_of_a_harness() {
    check(
        messages(harness_body()),
        expect![[r#"
            prompt: "You are an agent." [300000 ms]
            prompt: "Rules." [3600000 ms]
            user: "<reminder>"
            user: "Read notes.txt"
            system: "Mind the time."
            assistant: thinks "I should look."
            assistant: "Reading."
            assistant: calls toolu_1 Read {"file_path":"/w/notes.txt"}
            assistant: calls toolu_2 Bash {"command":"ls"}
            tool: toolu_1 gave [Text("alpha")]
            tool: toolu_2 gave [Text("no")] (error) [300000 ms]
            user: "Go on."
            tool Read "Reads" {"type":"object","properties":{"file_path":{"type":"string"}}}
            tool web_search "" {"type":"object","properties":{}}
            tool Bash "" {"type":"object"} [3600000 ms]
            warning: `tools[1]` ignored: unknown type `web_search_20250305`
        "#]],
    );
    let request = messages(harness_body()).unwrap();
    assert!(request.stream && request.session.is_subagent);
    assert_eq!(request.session.session.as_deref(), Some("s1"));
    assert_eq!(request.thinking, Thinking::Auto);
    assert_eq!(request.thinking_display, ThinkingDisplay::Omitted);
    let positions: Vec<Position> =
        request.conversation.breakpoints().iter().map(|b| b.position).collect();
    assert_eq!(
        positions,
        [
            Position::Tool { index: 2 },
            Position::System { index: 0 },
            Position::System { index: 1 },
            Position::Message { message: 3, block: 1 },
        ]
    );
}

#[test]
fn billing_header_can_be_kept() {
    let options = ParseOptions { strip_billing_header: false, ..ParseOptions::default() };
    let body = harness_body().to_string();
    let request = parse(Endpoint::Messages, body.as_bytes(), options).unwrap();
    assert_eq!(request.conversation.system.len(), 3);
    let one_block = json!({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}],
        "system": "x-anthropic-billing-header: cc;\nYou are."});
    check(
        messages(one_block),
        expect![[r#"
        prompt: "You are."
        user: "x"
    "#]],
    );
}

#[test]
fn chat_of_an_agent() {
    check(
        chat(json!({
            "model": "demo", "max_tokens": 5, "max_completion_tokens": 9, "stop": "END",
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "system", "content": "And kind."},
                {"role": "user", "content": "Read it", "cache_control": {"type": "ephemeral", "ttl": "10s"}},
                {"role": "assistant", "content": null, "reasoning_content": "Look.", "refusal": null,
                 "tool_calls": [
                    {"id": "c1", "type": "function", "index": 0, "function": {"name": "read", "arguments": "{\"p\": \"a\"}", "parsed_arguments": {}}},
                    {"id": "c2", "type": "function", "function": {"name": "read", "arguments": ""}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "A"},
                {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "B"}]},
                {"role": "assistant", "content": "Done."},
                {"role": "assistant", "content": [{"type": "text", "text": " Really."}]},
                {"role": "user", "content": ""},
                {"role": "system", "content": "Later."},
                {"role": "user", "content": [{"type": "text", "text": "x"}, "y"]},
            ],
            "tools": [
                {"type": "function", "function": {"name": "read", "description": "Read a file", "parameters": {"type": "object"}, "strict": true}},
                {"type": "function", "function": {"name": "read"}},
                {"type": "custom", "custom": {"name": "free"}},
                {"type": "function", "function": {"name": "bare", "description": null}},
            ],
            "tool_choice": {"type": "function", "function": {"name": "read"}},
            "unknown_member": {"a": 1}, "store": false, "user": "u1",
        })),
        expect![[r#"
            prompt: "Be brief."
            prompt: "And kind."
            user: "Read it" [10000 ms]
            assistant: thinks "Look."
            assistant: calls c1 read {"p":"a"}
            assistant: calls c2 read {}
            tool: c1 gave [Text("A")]
            tool: c2 gave [Text("B")]
            assistant: "Done."
            assistant: " Really."
            system: "Later."
            user: "x"
            user: "y"
            tool read "Read a file" {"type":"object"}
            tool free "" {"type":"object","properties":{"input":{"type":"string","description":"The whole input, as plain text."}},"required":["input"],"additionalProperties":false}
            tool bare "" {"type":"object","properties":{}}
            warning: `tools[1]` ignored: a tool of this name was given before
        "#]],
    );
}

#[test]
fn responses_of_an_agent() {
    check(
        responses(json!({
            "model": "demo", "instructions": "First.",
            "input": [
                {"type": "additional_tools", "id": "at_1", "role": "developer", "tools": [
                    {"type": "namespace", "name": "functions", "description": "", "tools": [
                        {"type": "custom", "name": "exec", "description": "x", "format": {}},
                        {"type": "function", "name": "wait", "description": "Waits", "strict": false, "parameters": {"type": "object"}}]}]},
                {"type": "message", "id": "msg_9", "role": "developer", "content": [{"type": "input_text", "text": "Base."}]},
                {"role": "user", "content": "Go"},
                {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Think."}], "content": null, "encrypted_content": "gAAAAstub"},
                {"type": "message", "status": "completed", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "OK.", "annotations": []}]},
                {"type": "function_call", "id": "fc_1", "name": "wait", "namespace": "functions", "arguments": "{ \"s\" : 1 }", "call_id": "call_1", "status": "completed"},
                {"type": "custom_tool_call", "name": "exec", "input": "1+1", "call_id": "call_2"},
                {"type": "function_call_output", "call_id": "call_1", "output": "slept"},
                {"type": "custom_tool_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "2"}]},
                {"type": "web_search_call", "id": "ws_1"},
                {"type": "message", "role": "assistant", "phase": "final_answer", "content": "Two."},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Thanks"}]},
            ],
            "tools": [{"type": "web_search", "external_web_access": false},
                      {"type": "function", "name": "f", "parameters": null}],
            "reasoning": {"summary": "auto"}, "text": {"verbosity": "low"},
            "prompt_cache_key": "k", "prompt_cache_retention": "24h", "tool_choice": "auto",
        })),
        expect![[r#"
            prompt: "First."
            prompt: "Base."
            user: "Go"
            assistant: thinks "Think."
            assistant: "OK."
            assistant: calls call_1 wait {"s":1}
            assistant: calls call_2 exec {"input":"1+1"}
            tool: call_1 gave [Text("slept")]
            tool: call_2 gave [Text("2")]
            assistant: "Two."
            user: "Thanks"
            tool web_search "" {"type":"object","properties":{}}
            tool f "" {"type":"object","properties":{}}
            tool functions/exec "x" {"type":"object","properties":{"input":{"type":"string","description":"The whole input, as plain text."}},"required":["input"],"additionalProperties":false}
            tool functions/wait "Waits" {"type":"object"}
            warning: `tools[0]` ignored: unknown type `web_search`
            warning: `input[9]` ignored: unknown type `web_search_call`
        "#]],
    );
}

/// Kind, path and text of a refusal.
fn refusal(result: Result<Request, ApiError>) -> String {
    let error = result.err().map(|e| format!("{:?} {:?} {}", e.kind, e.param, e.message));
    error.unwrap_or_else(|| "accepted".to_owned())
}

#[test]
fn refusals_name_the_member() {
    let user = json!([{"role": "user", "content": "hi"}]);
    let chats = [
        json!({"messages": user}),
        json!({"model": "m"}),
        json!({"model": "m", "messages": []}),
        json!({"model": 7, "messages": user}),
        json!({"model": "m", "messages": "hi"}),
        json!({"model": "m", "messages": ["hi"]}),
        json!({"model": "m", "messages": [{"content": "hi"}]}),
        json!({"model": "m", "messages": [{"role": "robot", "content": "hi"}]}),
        json!({"model": "m", "messages": [{"role": "user", "content": 5}]}),
        json!({"model": "m", "messages": [{"role": "tool", "content": "x"}]}),
        json!({"model": "m", "messages": user, "n": 9}),
        json!({"model": "m", "messages": user, "max_tokens": -1}),
        json!({"model": "m", "messages": user, "max_tokens": 0}),
        json!({"model": "m", "messages": user, "max_tokens": 1.5}),
        json!({"model": "m", "messages": user, "temperature": -0.1}),
        json!({"model": "m", "messages": user, "temperature": "hot"}),
        json!({"model": "m", "messages": user, "top_p": 7}),
        json!({"model": "m", "messages": user, "stop": ["a", ""]}),
        json!({"model": "m", "messages": user, "stop": vec!["x"; 17]}),
        json!({"model": "m", "messages": user, "stream": "yes"}),
        json!({"model": "m", "messages": user, "top_logprobs": 50, "logprobs": true}),
        json!({"model": "m", "messages": user, "tools": [{"type": "function"}]}),
        json!({"model": "m", "messages": user, "tools": [{"type": "function", "function": {"name": ""}}]}),
        json!({"model": "m", "messages": user, "tool_choice": "maybe"}),
    ];
    let mut out: String = chats.into_iter().map(|body| refusal(chat(body)) + "\n").collect();
    let others = [
        refusal(messages(json!({"model": "m", "messages": user}))),
        refusal(messages(json!({"model": "m", "max_tokens": 5, "messages": []}))),
        refusal(messages(
            json!({"model": "m", "max_tokens": 5, "messages": user, "thinking": {"type": "maybe"}}),
        )),
        refusal(messages(json!({"model": "m", "max_tokens": 5, "messages": [
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "n", "input": []}]}]}))),
        refusal(responses(json!({"model": "m"}))),
        refusal(responses(json!({"model": "m", "input": []}))),
        refusal(responses(json!({"model": "m", "input": [{"type": "item_reference", "id": "x"}]}))),
        refusal(responses(json!({"model": "m", "input": "x", "background": true, "stream": true}))),
        refusal(parse_chat(b"{\"model\":")),
        refusal(parse_chat(b"[]")),
        refusal(parse_chat(b"\xff\xfe")),
    ];
    others.iter().for_each(|line| out.push_str(&format!("{line}\n")));
    expect![[r#"
        InvalidRequest Some("model") invalid `model`: this field is required
        InvalidRequest Some("messages") invalid `messages`: this field is required
        InvalidRequest Some("messages") invalid `messages`: at least one message is required
        InvalidRequest Some("model") invalid `model`: expected a string, got a number
        InvalidRequest Some("messages") invalid `messages`: expected an array, got a string
        InvalidRequest Some("messages[0]") invalid `messages[0]`: expected an object, got a string
        InvalidRequest Some("messages[0].role") invalid `messages[0].role`: this field is required
        InvalidRequest Some("messages[0].role") invalid `messages[0].role`: unknown role `robot`; use system, developer, user, assistant or tool
        InvalidRequest Some("messages[0].content") invalid `messages[0].content`: expected a string or an array of parts, got a number
        InvalidRequest Some("messages[0].tool_call_id") invalid `messages[0].tool_call_id`: this field is required
        InvalidRequest Some("n") invalid `n`: must be at most 8, got 9
        InvalidRequest Some("max_tokens") invalid `max_tokens`: must be at least 1, got -1
        InvalidRequest Some("max_tokens") invalid `max_tokens`: must be at least 1, got 0
        InvalidRequest Some("max_tokens") invalid `max_tokens`: expected a whole number, got a number
        InvalidRequest Some("temperature") invalid `temperature`: must be from 0 to 2, got -0.1
        InvalidRequest Some("temperature") invalid `temperature`: expected a number, got a string
        InvalidRequest Some("top_p") invalid `top_p`: must be from 0 to 1, got 7
        InvalidRequest Some("stop[1]") invalid `stop[1]`: a stop string must have 1 to 1024 bytes
        InvalidRequest Some("stop") invalid `stop`: at most 16 items are allowed, got 17
        InvalidRequest Some("stream") invalid `stream`: expected true or false, got a string
        InvalidRequest Some("top_logprobs") invalid `top_logprobs`: must be at most 20, got 50
        InvalidRequest Some("tools[0].function") invalid `tools[0].function`: this field is required
        InvalidRequest Some("tools[0].function.name") invalid `tools[0].function.name`: must have 1 to 256 bytes
        InvalidRequest Some("tool_choice") invalid `tool_choice`: expected `auto`, `none`, `required` or an object
        InvalidRequest Some("max_tokens") invalid `max_tokens`: this field is required
        InvalidRequest Some("messages") invalid `messages`: at least one message is required
        InvalidRequest Some("thinking.type") invalid `thinking.type`: expected `enabled`, `adaptive` or `disabled`
        InvalidRequest Some("messages[0].content[0].input") invalid `messages[0].content[0].input`: expected an object, got an array
        InvalidRequest Some("input") invalid `input`: this field is required
        InvalidRequest Some("input") invalid `input`: at least one item is required
        InvalidRequest Some("input[0]") invalid `input[0]`: items can't be referred to; send them, or use `previous_response_id`
        InvalidRequest Some("background") invalid `background`: a background response is stored and not streamed; get it by its id
        InvalidRequest None invalid request body: not valid JSON (EOF while parsing a value at line 1 column 9)
        InvalidRequest None invalid request body: expected an object, got an array
        InvalidRequest None invalid request body: not valid JSON (expected value at line 1 column 1)
    "#]].assert_eq(&out);
}

#[test]
fn media_leave_a_text_or_are_refused() {
    let image = json!({"type": "image_url", "image_url": {"url": "data:"}});
    let marked = json!({"type": "image", "source": {}, "cache_control": {"type": "ephemeral"}});
    let bodies = [
        (
            Endpoint::Chat,
            json!({"model": "m", "messages": [{"role": "user", "content": [image, image]}]}),
        ),
        (
            Endpoint::Messages,
            json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [marked]}]}]}),
        ),
        (
            Endpoint::Responses,
            json!({"model": "m", "input": [{"role": "user", "content": [{"type": "input_file"}]}]}),
        ),
    ];
    let mut out = String::new();
    for (endpoint, body) in bodies {
        let body = body.to_string();
        let request = parse(endpoint, body.as_bytes(), ParseOptions::default()).unwrap();
        write!(out, "{}", outline(&request.conversation)).unwrap();
        writeln!(out, "told: {:?} {:?}", request.told_header(), request.warnings).unwrap();
        let strict = ParseOptions { media: Media::Refuse, ..ParseOptions::default() };
        writeln!(out, "{}", refusal(parse(endpoint, body.as_bytes(), strict))).unwrap();
    }
    expect![[r#"
        user: "[image left out: this model reads text]"
        user: "[image left out: this model reads text]"
        told: Some("media-left-out;count=2") ["`messages[0].content[0]` left out: this model reads text", "`messages[0].content[1]` left out: this model reads text"]
        InvalidRequest Some("messages[0].content[0].type") invalid `messages[0].content[0].type`: content of type `image` is not supported; send text only
        tool: t gave [Text("[image left out: this model reads text]")] [300000 ms]
        told: Some("media-left-out;count=1") ["`messages[0].content[0].content[0]` left out: this model reads text"]
        InvalidRequest Some("messages[0].content[0].content[0].type") invalid `messages[0].content[0].content[0].type`: content of type `image` is not supported; send text only
        user: "[file left out: this model reads text]"
        told: Some("media-left-out;count=1") ["`input[0].content[0]` left out: this model reads text"]
        InvalidRequest Some("input[0].content[0].type") invalid `input[0].content[0].type`: content of type `file` is not supported; send text only
    "#]]
    .assert_eq(&out);
}

#[test]
fn limits_are_enforced() {
    let many = vec![json!({"role": "user", "content": "x"}); crate::limits::MESSAGES_MAX + 1];
    let error = chat(json!({"model": "m", "messages": many})).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("messages"));
    let tools: Vec<Value> = (0..=crate::limits::TOOLS_MAX)
        .map(|n| json!({"name": format!("t{n}"), "input_schema": {"type": "object"}}))
        .collect();
    let body = json!({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "tools": tools});
    assert_eq!(messages(body).unwrap_err().param.as_deref(), Some("tools"));
    let deep = format!("{{\"model\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(parse_chat(deep.as_bytes()).unwrap_err().kind, ErrorKind::InvalidRequest);
    let long = vec![b' '; crate::limits::BODY_BYTES_MAX + 1];
    assert_eq!(parse_chat(&long).unwrap_err().kind, ErrorKind::TooLarge);
}

#[test]
fn hints_never_fail_a_request() {
    let with = |nvext: Value| {
        chat(json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "nvext": nvext}))
            .unwrap()
    };
    let good = with(json!({
        "agent_hints": {"priority": -2, "strict_priority": 1, "latency_sensitivity": 0.5, "osl": 128,
            "speculative_prefill": true, "prefix_id": "p", "total_requests": 10, "iat": 250},
        "cache_control": {"type": "ephemeral", "ttl": "1h", "recompute": true}, "cache_salt": "s",
        "router": {"ttft_target": 200.0}, "extra_fields": ["timing", 5], "max_thinking_tokens": 64,
    }));
    expect![[r#"
        Hints {
            priority: Some(
                -2,
            ),
            strict_priority: Some(
                1,
            ),
            latency_sensitivity: Some(
                0.5,
            ),
            osl: Some(
                128,
            ),
            speculative_prefill: true,
            prefix_id: Some(
                "p",
            ),
            total_requests: Some(
                10,
            ),
            iat_ms: Some(
                250,
            ),
            cache_control: Some(
                CacheControl {
                    ttl_ms: 3600000,
                },
            ),
            recompute: Some(
                true,
            ),
            pin_scope: None,
            cache_salt: Some(
                "s",
            ),
            ttft_target_ms: Some(
                200.0,
            ),
            itl_target_ms: None,
            extra_fields: [
                "timing",
            ],
            prompt_cache_key: None,
            prompt_cache_retention_ms: None,
            user_id: None,
        }
    "#]]
    .assert_debug_eq(&good.hints);
    assert_eq!((good.warnings.len(), good.thinking_tokens_max), (0, Some(64)));
    let bad = with(json!({
        "agent_hints": {"priority": "high", "osl": -5, "speculative_prefill": 1, "mood": "good"},
        "cache_control": {"type": "forever"}, "cache_salt": 7, "router": [], "new_thing": {},
        "max_thinking_tokens": null, "agent_context": "x",
    }));
    expect![[r#"
        `nvext.agent_context` ignored: expected an object
        `nvext.agent_hints.mood` ignored: unknown
        `nvext.agent_hints.priority` ignored: expected a number from -2147483648 to 2147483647
        `nvext.agent_hints.osl` ignored: expected a number from 0 to 4294967295
        `nvext.agent_hints.speculative_prefill` ignored: expected true or false
        `nvext.cache_control` ignored: only type `ephemeral` is known
        `nvext.cache_salt` ignored: expected a string of 1 to 256 bytes
        `nvext.router` ignored: expected an object
        `nvext.new_thing` ignored: unknown"#]]
    .assert_eq(&bad.warnings.join("\n"));
    assert_eq!(with(json!(5)).warnings, ["`nvext` ignored: expected an object"]);
    let flood: serde_json::Map<String, Value> =
        (0..500).map(|n| (format!("k{n}"), json!(n))).collect();
    assert_eq!(with(Value::Object(flood)).warnings.len(), crate::limits::WARNINGS_MAX);
    let clipped = with(json!({"cache_control": {"type": "ephemeral", "ttl": "90d"}}));
    assert_eq!(clipped.hints.cache_control.unwrap().ttl_ms, crate::limits::TTL_MS_MAX);
    assert_eq!(clipped.warnings, ["`nvext.cache_control.ttl` clipped to 86400000 ms"]);
}

#[test]
fn scopes_are_named_or_left_out() {
    let scope = |scope: Value| {
        let cache = json!({"type": "ephemeral", "scope": scope});
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}],
            "nvext": {"cache_control": cache}});
        let request = chat(body).unwrap();
        (request.hints.pin_scope, request.warnings.len())
    };
    for fine in ["global", "region", "region:eu-1"] {
        assert_eq!(scope(json!(fine)), (Some(fine.to_owned()), 0));
    }
    assert_eq!(scope(json!(null)), (None, 0));
    let long = format!("region:{}", "x".repeat(65));
    for odd in
        [json!("planet"), json!(""), json!("region:"), json!("region:a b"), json!(3), json!(long)]
    {
        assert_eq!(scope(odd.clone()), (None, 1), "{odd}");
    }
}

#[test]
fn formats_efforts_and_choices() {
    let user = json!([{"role": "user", "content": "x"}]);
    let schema = json!({"type": "object"});
    let request = chat(json!({"model": "m", "messages": user, "reasoning_effort": "none",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        "logprobs": true, "top_logprobs": 3, "seed": -4, "top_k": -1}))
    .unwrap();
    assert_eq!(request.thinking, Thinking::Disabled);
    assert_eq!(
        request.output_format,
        OutputFormat::JsonSchema { name: "n".into(), schema: schema.clone(), strict: false }
    );
    assert_eq!(
        (request.sampling.logprobs, request.sampling.seed, request.sampling.top_k),
        (Some(3), Some(-4), None)
    );
    let request = messages(json!({"model": "m", "max_tokens": 9, "messages": user,
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true}}))
    .unwrap();
    assert!(matches!(request.output_format, OutputFormat::JsonSchema { .. }));
    assert_eq!(request.conversation.tool_choice, ToolChoice::Required);
    assert!(!request.conversation.parallel_tool_calls);
    assert_eq!(request.thinking_display, ThinkingDisplay::Hidden);
    let request = responses(json!({"model": "m", "input": "x", "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_object"}}, "tool_choice": {"type": "function", "name": "f"},
        "tools": [{"type": "function", "name": "f"}]})).unwrap();
    assert_eq!(request.thinking, Thinking::Enabled);
    assert_eq!(request.output_format, OutputFormat::JsonObject);
    assert_eq!(request.conversation.tool_choice, ToolChoice::Named("f".into()));
}

#[test]
fn count_tokens_needs_no_budget() {
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "foo"}], "tools": []});
    let request = parse_count_tokens(body.to_string().as_bytes()).unwrap();
    assert_eq!(request.sampling.max_tokens, None);
    assert_eq!(request.conversation.messages.len(), 1);
}

#[test]
fn an_assistant_message_at_the_end_is_continued() {
    let turn = |content: Value| json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": content}]});
    assert!(messages(turn(json!("The answer is ("))).unwrap().continue_final);
    let call = json!([{"type": "tool_use", "id": "t", "name": "n", "input": {}}]);
    assert!(!messages(turn(call)).unwrap().continue_final);
}

#[test]
fn a_stored_conversation_is_continued() {
    let first = responses(json!({"model": "m", "instructions": "Old.", "input": [
        {"role": "developer", "content": "Base."}, {"role": "user", "content": "One"}]}))
    .unwrap();
    let stored = first.conversation_to_store(vec![crate::Block::text("Answer.")]);
    let mut next = responses(json!({"model": "m", "instructions": "New.", "previous_response_id": "resp_1",
        "input": [{"role": "developer", "content": "Now this."}, {"role": "user", "content": "Two"}]})).unwrap();
    assert_eq!(next.responses.as_ref().unwrap().previous_response_id.as_deref(), Some("resp_1"));
    next.continue_from(&stored);
    expect![[r#"
        prompt: "New."
        prompt: "Base."
        user: "One"
        assistant: "Answer."
        system: "Now this."
        user: "Two"
    "#]]
    .assert_eq(&outline(&next.conversation));
    assert_eq!(next.conversation.messages[2].role, Role::System);
    let alone = responses(json!({"model": "m", "previous_response_id": "r", "input": []}));
    assert!(alone.is_ok());
}

mod known_tools {
    use super::*;
    use crate::parse::{KnownTools, ToolMemory};
    use std::sync::Arc;

    fn memory(known: &Arc<KnownTools>, tenant: &str) -> ParseOptions {
        let tools = ToolMemory { known: Arc::clone(known), tenant: tenant.into() };
        ParseOptions { tools: Some(tools), ..ParseOptions::default() }
    }

    fn body(tools: &str) -> String {
        format!(
            r#"{{"model": "m", "max_tokens": 9, "tools": {tools}, "messages": [{{"role": "user", "content": "u"}}]}}"#
        )
    }

    const CHAT: &str = r#"[{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]"#;
    const MESSAGES: &str = r#"[{"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}]"#;

    #[test]
    fn a_list_that_came_before_is_shared_within_its_tenant_and_reads_as_it_does_alone() {
        for (endpoint, tools) in [(Endpoint::Chat, CHAT), (Endpoint::Messages, MESSAGES)] {
            let known = Arc::default();
            let body = body(tools);
            let read = |tenant| parse(endpoint, body.as_bytes(), memory(&known, tenant)).unwrap();
            let (first, second, other) = (read("a"), read("a"), read("b"));
            let alone = parse(endpoint, body.as_bytes(), ParseOptions::default()).unwrap();
            assert_eq!(alone.conversation, second.conversation);
            assert_eq!(alone.conversation.tools.len(), 1);
            assert!(Arc::ptr_eq(&first.conversation.tools, &second.conversation.tools));
            assert!(!Arc::ptr_eq(&first.conversation.tools, &other.conversation.tools));
        }
    }

    #[test]
    fn what_is_to_be_said_of_a_list_is_said_each_time() {
        let known = Arc::default();
        for tools in [
            r#"[{"type": "web_search"}]"#,
            r#"[{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}]"#,
        ] {
            let body = body(tools);
            for _ in 0..2 {
                let read = parse(Endpoint::Chat, body.as_bytes(), memory(&known, "a")).unwrap();
                assert!(!read.warnings.is_empty(), "{tools}");
            }
        }
        for wrong in ["[{}]", "7", r#"[{"type": "function"}]"#] {
            for _ in 0..2 {
                let body = body(wrong);
                let error = parse(Endpoint::Chat, body.as_bytes(), memory(&known, "a"));
                assert!(error.unwrap_err().to_string().contains("tools"), "{wrong}");
            }
        }
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let known = Arc::default();
        for number in 0..300 {
            let tools = CHAT.replace("\"d\"", &format!("\"{number}{}\"", "x".repeat(100_000)));
            parse(Endpoint::Chat, body(&tools).as_bytes(), memory(&known, "a")).unwrap();
        }
        let tools = CHAT.replace("\"d\"", &format!("\"{}\"", "x".repeat(600_000)));
        parse(Endpoint::Chat, body(&tools).as_bytes(), memory(&known, "a")).unwrap();
        let bytes = format!("{known:?}").len();
        assert!(bytes > 4 << 20 && bytes < 40 << 20, "{bytes}");
        assert!(!format!("{known:?}").contains(&"x".repeat(600_000)), "too large a list");
    }
}
