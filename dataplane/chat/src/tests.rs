//! The promise of the crate: one conversation told in three APIs is one conversation, one prompt,
//! and one answer.

use serde_json::{Value, json};

use crate::*;

const DEMO: &str = include_str!("../../../plugins/native/demo-model/chat_template.jinja");

fn chat() -> Value {
    json!({
        "model": "demo", "temperature": 0, "max_tokens": 64, "stop": ["<|end|>"],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather in Oslo and Rome?"},
            {"role": "assistant", "reasoning_content": "Two calls.", "content": "Looking.", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Oslo\"}"}},
                {"id": "c2", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Rome\"}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "snow"},
            {"role": "tool", "tool_call_id": "c2", "content": "sun"},
            {"role": "assistant", "content": "Snow and sun."},
            {"role": "user", "content": "Thanks!"},
        ],
        "tools": [{"type": "function", "function": {"name": "get_weather", "description": "Weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}],
    })
}

fn responses() -> Value {
    json!({
        "model": "demo", "temperature": 0, "max_output_tokens": 64, "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "Weather in Oslo and Rome?"},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Two calls."}]},
            {"type": "message", "id": "m_1", "role": "assistant", "content": [{"type": "output_text", "text": "Looking.", "annotations": []}]},
            {"type": "function_call", "id": "f_1", "call_id": "c1", "name": "get_weather", "arguments": "{\"city\":\"Oslo\"}"},
            {"type": "function_call", "id": "f_2", "call_id": "c2", "name": "get_weather", "arguments": "{\"city\":\"Rome\"}"},
            {"type": "function_call_output", "call_id": "c1", "output": "snow"},
            {"type": "function_call_output", "call_id": "c2", "output": "sun"},
            {"type": "message", "role": "assistant", "content": "Snow and sun."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Thanks!"}]},
        ],
        "tools": [{"type": "function", "name": "get_weather", "description": "Weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}],
    })
}

fn messages() -> Value {
    json!({
        "model": "demo", "temperature": 0, "max_tokens": 64, "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "Weather in Oslo and Rome?"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Two calls."},
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "c2", "name": "get_weather", "input": {"city": "Rome"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "snow"},
                {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "sun"}]}]},
            {"role": "assistant", "content": "Snow and sun."},
            {"role": "user", "content": [{"type": "text", "text": "Thanks!"}]},
        ],
        "tools": [{"name": "get_weather", "description": "Weather",
            "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}],
    })
}

fn requests() -> [Request; 3] {
    [
        parse_chat(chat().to_string().as_bytes()).unwrap(),
        parse_responses(responses().to_string().as_bytes()).unwrap(),
        parse_messages(messages().to_string().as_bytes()).unwrap(),
    ]
}

#[test]
fn three_apis_one_conversation_one_prompt() {
    let template = ChatTemplate::new(DEMO, "", "<|end|>").unwrap();
    let [a, b, c] = requests();
    assert_eq!(a.conversation, b.conversation);
    assert_eq!(a.conversation, c.conversation);
    let prompts = [&a, &b, &c]
        .map(|request| template.render(&request.conversation, RenderOptions::of(request)).unwrap());
    assert_eq!(prompts[0], prompts[1]);
    assert_eq!(prompts[0], prompts[2]);
    assert!(prompts[0].ends_with("<|user|>Thanks!<|end|><|assistant|>"), "{}", prompts[0]);
}

#[test]
fn three_apis_one_answer() {
    let output = "<think>Polite.</think>You are welcome.<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Lima\"}}</tool_call>";
    let answers = requests().map(|request| {
        let mut parser = OutputParser::new(request.output_options(false, Family::Hermes));
        let meta = ResponseMeta {
            request_id: "req_1".to_owned(),
            model: request.model.clone(),
            created_unix_s: 1,
            sealer: None,
            pins: Vec::new(),
        };
        let mut encoder = StreamEncoder::new(&request, meta.clone());
        let mut stream = encoder.start(&Usage::default());
        for event in parser.push(output).into_iter().chain(parser.finish()) {
            stream.push_str(&encoder.event(&event));
        }
        stream.push_str(&encoder.finish(&Finish::Stop, &Usage::default(), 2));
        let transcript = encoder.transcript().clone();
        let body =
            encode::complete(&request, &meta, &transcript, &Finish::Stop, &Usage::default(), 2);
        (serde_json::from_str::<Value>(&body).unwrap(), stream)
    });
    let [(chat, chat_stream), (responses, responses_stream), (messages, messages_stream)] = answers;
    let message = &chat["choices"][0]["message"];
    assert_eq!(message["content"], "You are welcome.");
    assert_eq!(responses["output"][1]["content"][0]["text"], "You are welcome.");
    assert_eq!(messages["content"][0]["text"], "You are welcome.");
    let arguments = r#"{"city": "Lima"}"#;
    assert_eq!(message["tool_calls"][0]["function"]["arguments"], arguments);
    assert_eq!(responses["output"][2]["arguments"], arguments);
    assert_eq!(messages["content"][1]["input"], json!({"city": "Lima"}));
    assert_eq!(chat["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(messages["stop_reason"], "tool_use");
    assert_eq!(responses["status"], "completed");
    assert!(chat_stream.ends_with("data: [DONE]\n\n"));
    assert!(responses_stream.contains("event: response.completed\n"));
    assert!(messages_stream.contains("event: message_stop\n"));
}
