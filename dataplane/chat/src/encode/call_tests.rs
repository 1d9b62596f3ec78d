//! Encoders: calls in the client's words, several answers in one stream, and what an answer says of its request.

use super::tests::{USAGE, check, meta, stream, whole};
use super::*;
use crate::parse::{parse_chat, parse_messages, parse_responses};
use expect_test::expect;

fn custom_call(name: &str) -> Vec<OutputEvent> {
    vec![
        OutputEvent::ToolCallStart { index: 0, name: name.to_owned() },
        OutputEvent::ToolCallArguments(r#"{"input": "let a"#.to_owned()),
        OutputEvent::ToolCallArguments(r#" = \"b\";"}"#.to_owned()),
        OutputEvent::ToolCallEnd,
    ]
}

/// Of each frame its name and what is left of it without the response object.
fn outline(stream: &str) -> String {
    let mut out = String::new();
    for data in stream.lines().filter_map(|line| line.strip_prefix("data: {")) {
        let mut value: Value = serde_json::from_str(&format!("{{{data}")).unwrap();
        let members = value.as_object_mut().unwrap();
        for gone in ["response", "sequence_number", "output_index"] {
            members.remove(gone);
        }
        out.push_str(&value.to_string());
        out.push('\n');
    }
    out
}

#[test]
fn free_text_in_responses() {
    let body = br#"{"model":"demo","input":"hi","stream":true,"tools":[
        {"type":"custom","name":"exec","format":{"type":"text"}},
        {"type":"namespace","name":"a","tools":[{"type":"function","name":"go"}]},
        {"type":"namespace","name":"b","tools":[{"type":"function","name":"go"},{"type":"custom","name":"exec"}]}]}"#;
    let request = parse_responses(body).unwrap();
    let out = outline(&stream(&request, &custom_call("exec"), &Finish::Stop));
    check(
        &out,
        expect![[r#"
            {"type":"response.created"}
            {"type":"response.in_progress"}
            {"type":"response.output_item.added","item":{"type":"custom_tool_call","id":"ctc_42_0","call_id":"call_42_0","name":"exec","status":"in_progress","input":""}}
            {"type":"response.custom_tool_call_input.delta","delta":"let a = \"b\";","item_id":"ctc_42_0"}
            {"type":"response.custom_tool_call_input.done","input":"let a = \"b\";","item_id":"ctc_42_0"}
            {"type":"response.output_item.done","item":{"type":"custom_tool_call","id":"ctc_42_0","call_id":"call_42_0","name":"exec","status":"completed","input":"let a = \"b\";"}}
            {"type":"response.completed"}
        "#]],
    );
    let renamed = [
        OutputEvent::ToolCallStart { index: 0, name: "b__go".to_owned() },
        OutputEvent::ToolCallArguments("{}".to_owned()),
        OutputEvent::ToolCallEnd,
    ];
    let out = outline(&stream(&request, &renamed, &Finish::Stop));
    assert!(
        out.contains(r#""name":"go","status":"completed","arguments":"{}","namespace":"b""#),
        "{out}"
    );
    assert!(!out.contains("b__go"), "{out}");
    let body: Value =
        serde_json::from_str(&whole(&request, &custom_call("b__exec"), &Finish::Stop)).unwrap();
    check(
        &body["output"].to_string(),
        expect![[
            r#"[{"type":"custom_tool_call","id":"ctc_42_0","call_id":"call_42_0","name":"exec","status":"completed","input":"let a = \"b\";","namespace":"b"}]"#
        ]],
    );
    // A call that was cut is told with what there is.
    let cut = whole(&request, &custom_call("exec")[..2], &Finish::Length);
    assert!(cut.contains(r#""input":"{\"input\": \"let a""#), "{cut}");
}

#[test]
fn free_text_in_chat() {
    let body = br#"{"model":"demo","messages":[{"role":"user","content":"hi"}],
        "tools":[{"type":"custom","custom":{"name":"exec"}}]}"#;
    let request = parse_chat(body).unwrap();
    let out = stream(&request, &custom_call("exec"), &Finish::Stop);
    for part in [
        r#""tool_calls":[{"index":0,"id":"call_42_0","type":"custom","custom":{"name":"exec","input":""}}]"#,
        r#""tool_calls":[{"index":0,"custom":{"input":"let a = \"b\";"}}]"#,
        r#""finish_reason":"tool_calls""#,
    ] {
        assert!(out.contains(part), "{part} in {out}");
    }
    let cut = stream(&request, &custom_call("exec")[..2], &Finish::Length);
    assert!(cut.contains(r#""custom":{"input":"{\"input\": \"let a"}"#), "{cut}");
    let out = whole(&request, &custom_call("exec"), &Finish::Stop);
    let call = r#""tool_calls":[{"id":"call_42_0","type":"custom","custom":{"name":"exec","input":"let a = \"b\";"}}]"#;
    assert!(out.contains(call), "{out}");
}

#[test]
fn several_answers_share_one_stream() {
    let body = br#"{"model":"demo","messages":[{"role":"user","content":"hi"}],"n":2,
        "stream":true,"stream_options":{"include_usage":true}}"#;
    let request = parse_chat(body).unwrap();
    assert_eq!(request.n, 2);
    let mut encoders = [0, 1].map(|n| StreamEncoder::for_choice(&request, meta(), n));
    let mut out: String = encoders.iter_mut().map(|e| e.start(&USAGE)).collect();
    out.push_str(&encoders[1].event(&OutputEvent::text("B")));
    out.push_str(&encoders[0].event(&OutputEvent::text("A")));
    for event in custom_call("f") {
        out.push_str(&encoders[1].event(&event));
    }
    out.push_str(&encoders[1].finish_choice(&Finish::Stop));
    out.push_str(&encoders[0].finish(&Finish::Length, &USAGE, 1));
    let choices: Vec<String> = out
        .lines()
        .filter_map(|line| line.strip_prefix("data: {"))
        .map(|data| {
            let value: Value = serde_json::from_str(&format!("{{{data}")).unwrap();
            let choice = &value["choices"][0];
            format!("{} {} {}", choice["index"], choice["delta"], choice["finish_reason"])
        })
        .collect();
    check(
        &choices.join("\n"),
        expect![[r#"
        0 {"role":"assistant","content":""} null
        1 {"role":"assistant","content":""} null
        1 {"content":"B"} null
        0 {"content":"A"} null
        1 {"tool_calls":[{"index":0,"id":"call_42_1_0","type":"function","function":{"name":"f","arguments":""}}]} null
        1 {"tool_calls":[{"index":0,"function":{"arguments":"{\"input\": \"let a"}}]} null
        1 {"tool_calls":[{"index":0,"function":{"arguments":" = \\\"b\\\";\"}"}}]} null
        1 {} "tool_calls"
        0 {} "length"
        null null null"#]],
    );
    assert_eq!(out.matches("[DONE]").count(), 1);
    assert_eq!(out.matches(r#""usage":{"#).count(), 1);

    let transcripts = encoders.map(|e| e.transcript().clone());
    let finishes = [Finish::Length, Finish::Stop];
    let answers: Vec<(&Transcript, &Finish)> = transcripts.iter().zip(&finishes).collect();
    let body = complete_choices(&request, &meta(), &answers, &USAGE, 1);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], "A");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["choices"][1]["index"], 1);
    assert_eq!(body["choices"][1]["message"]["tool_calls"][0]["id"], "call_42_1_0");
    assert_eq!(body["choices"][1]["finish_reason"], "tool_calls");
    assert_eq!(body["usage"]["completion_tokens"], USAGE.completion_tokens);
    let failed = [Finish::Length, Finish::Error(ApiError::new(ErrorKind::Internal, "oops"))];
    let answers: Vec<(&Transcript, &Finish)> = transcripts.iter().zip(&failed).collect();
    assert!(complete_choices(&request, &meta(), &answers, &USAGE, 1).contains(r#""error""#));
    assert!(complete_choices(&request, &meta(), &[], &USAGE, 1).contains(r#""error""#));
}

#[test]
fn only_chat_has_several_answers_and_not_too_many() {
    let chat = |n: u32| {
        format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"n":{n},"max_tokens":5}}"#
        )
    };
    assert!(parse_chat(chat(crate::limits::CHOICES_MAX).as_bytes()).is_ok());
    assert!(parse_chat(chat(crate::limits::CHOICES_MAX + 1).as_bytes()).is_err());
    assert!(parse_chat(chat(0).as_bytes()).is_err());
    assert!(parse_messages(chat(1).as_bytes()).is_ok());
    assert!(parse_messages(chat(2).as_bytes()).is_err());
}

#[test]
fn a_responses_object_repeats_what_was_sent() {
    let sent = serde_json::json!({
        "tools": [
            {"type": "custom", "name": "exec", "format": {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}},
            {"type": "web_search", "external_web_access": false},
            {"type": "namespace", "name": "b", "description": "", "tools": [{"type": "function", "name": "go", "strict": true}]},
            {"type": "function", "name": "f", "description": null, "parameters": null, "strict": true, "defer_loading": true},
        ],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "exec"}]},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true, "description": "d"}, "verbosity": "low"},
        "reasoning": {"effort": "max", "summary": "auto", "context": "all_turns"},
        "metadata": {"k": "v"},
    });
    let mut body = serde_json::json!({"model": "demo", "input": "hi"});
    body.as_object_mut().unwrap().extend(sent.as_object().unwrap().clone());
    let request = parse_responses(body.to_string().as_bytes()).unwrap();
    let out: Value = serde_json::from_str(&whole(&request, &[], &Finish::Stop)).unwrap();
    for name in sent.as_object().unwrap().keys() {
        assert_eq!(out[name], sent[name], "{name}");
    }
    let plain = parse_responses(
        br#"{"model":"demo","input":"hi","tools":[{"type":"function","name":"f"}]}"#,
    );
    let out: Value = serde_json::from_str(&whole(&plain.unwrap(), &[], &Finish::Stop)).unwrap();
    assert_eq!(
        out["tools"][0],
        serde_json::json!({"type": "function", "name": "f", "description": null, "parameters": null, "strict": false})
    );
    assert_eq!(out["reasoning"], serde_json::json!({"effort": null, "summary": null}));
    assert_eq!(out["text"], serde_json::json!({"format": {"type": "text"}}));
}

#[test]
fn messages_tell_edits_lives_and_a_full_context() {
    let body = r#"{"model":"demo","max_tokens":50,"messages":[{"role":"user","content":"hi"}],
        "context_management":{"edits":[{"type":"clear_thinking_20251015","keep":"all"}]}}"#;
    let request = parse_messages(body.as_bytes()).unwrap();
    let told = r#""context_management":{"applied_edits":[]}"#;
    let usage = Usage { created_long_tokens: 10, ..USAGE };
    let out = complete(&request, &meta(), &Transcript::default(), &Finish::Length, &usage, 1);
    for part in [
        told,
        r#""stop_reason":"model_context_window_exceeded""#,
        r#""cache_creation":{"ephemeral_5m_input_tokens":6,"ephemeral_1h_input_tokens":10}"#,
    ] {
        assert!(out.contains(part), "{part} in {out}");
    }
    assert_eq!(stream(&request, &[], &Finish::Stop).matches(told).count(), 1);
    let full = Usage { completion_tokens: 50, ..USAGE };
    let out = complete(&request, &meta(), &Transcript::default(), &Finish::Length, &full, 1);
    assert!(out.contains(r#""stop_reason":"max_tokens""#), "{out}");
    assert_eq!(
        count_tokens_body(12, Some(30)),
        r#"{"input_tokens":12,"context_management":{"original_input_tokens":30}}"#
    );
}

#[test]
fn log_probabilities_come_by_include() {
    let asked = |body: &str| parse_responses(body.as_bytes()).unwrap().sampling.logprobs;
    let include = r#""include":["message.output_text.logprobs"]"#;
    assert_eq!(asked(&format!(r#"{{"model":"m","input":"x",{include}}}"#)), Some(0));
    assert_eq!(
        asked(&format!(r#"{{"model":"m","input":"x",{include},"top_logprobs":3}}"#)),
        Some(3)
    );
    assert_eq!(asked(r#"{"model":"m","input":"x"}"#), None);
}
