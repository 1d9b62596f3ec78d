//! Encoders: whole streams and bodies as snapshots, one pair per protocol, and the failures.

use super::*;
use crate::error::ErrorKind;
use crate::output::TokenLogprob;
use crate::parse::{parse_chat, parse_messages, parse_responses};
use expect_test::{Expect, expect};

pub(super) fn meta() -> ResponseMeta {
    ResponseMeta {
        request_id: "req_42".to_owned(),
        model: "demo".to_owned(),
        created_unix_s: 1_700_000_000,
        sealer: None,
        pins: Vec::new(),
    }
}

pub(super) const USAGE: Usage = Usage {
    prompt_tokens: 100,
    cached_tokens: 64,
    created_tokens: 16,
    created_long_tokens: 0,
    completion_tokens: 20,
    reasoning_tokens: 5,
};

fn text_events() -> Vec<OutputEvent> {
    vec![OutputEvent::text("Hel"), OutputEvent::text("lo")]
}

fn call_events() -> Vec<OutputEvent> {
    vec![
        OutputEvent::Thinking("Look it up.".to_owned()),
        OutputEvent::text("Wait."),
        OutputEvent::ToolCallStart { index: 0, name: "get_weather".to_owned() },
        OutputEvent::ToolCallArguments("{\"city\": ".to_owned()),
        OutputEvent::ToolCallArguments("\"Oslo\"}".to_owned()),
        OutputEvent::ToolCallEnd,
    ]
}

fn chat() -> Request {
    parse_chat(br#"{"model":"demo","messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true}}"#).unwrap()
}

fn messages(thinking: &str) -> Request {
    let body = format!(
        r#"{{"model":"demo","max_tokens":50,"messages":[{{"role":"user","content":"hi"}}]{thinking}}}"#
    );
    parse_messages(body.as_bytes()).unwrap()
}

const THINKING: &str = r#","thinking":{"type":"enabled","budget_tokens":1024}"#;

fn responses() -> Request {
    let body = br#"{"model":"demo","input":"hi","instructions":"Brief.","metadata":{"k":"v"},
        "include":["reasoning.encrypted_content"],
        "tools":[{"type":"namespace","name":"city","tools":[{"type":"function","name":"get_weather","parameters":{"type":"object"}}]}]}"#;
    parse_responses(body).unwrap()
}

pub(super) fn stream(request: &Request, events: &[OutputEvent], finish: &Finish) -> String {
    let mut encoder = StreamEncoder::new(request, meta());
    let mut out = encoder.start(&Usage { completion_tokens: 0, reasoning_tokens: 0, ..USAGE });
    for event in events {
        out.push_str(&encoder.event(event));
    }
    out.push_str(&encoder.finish(finish, &USAGE, 1_700_000_002));
    out
}

pub(super) fn whole(request: &Request, events: &[OutputEvent], finish: &Finish) -> String {
    let mut transcript = Transcript::default();
    events.iter().for_each(|event| transcript.push(event));
    complete(request, &meta(), &transcript, finish, &USAGE, 1_700_000_002)
}

pub(super) fn check(got: &str, expected: Expect) {
    expected.assert_eq(got);
}

/// Names of the events of a stream, repeated ones once.
fn names(stream: &str) -> Vec<&str> {
    let mut names: Vec<&str> =
        stream.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    names.dedup();
    names
}

#[test]
fn chat_text() {
    check(
        &stream(&chat(), &text_events(), &Finish::Stop),
        expect![[r#"
        data: {"id":"chatcmpl-42","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-42","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[{"index":0,"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-42","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[{"index":0,"delta":{"content":"lo"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-42","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}

        data: {"id":"chatcmpl-42","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[],"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120,"prompt_tokens_details":{"cached_tokens":64,"cache_write_tokens":16},"completion_tokens_details":{"reasoning_tokens":5}}}

        data: [DONE]

    "#]],
    );
    check(
        &whole(&chat(), &text_events(), &Finish::Stop),
        expect![[
            r#"{"id":"chatcmpl-42","object":"chat.completion","created":1700000000,"model":"demo","choices":[{"index":0,"message":{"role":"assistant","content":"Hello","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120,"prompt_tokens_details":{"cached_tokens":64,"cache_write_tokens":16},"completion_tokens_details":{"reasoning_tokens":5}}}"#
        ]],
    );
}

#[test]
fn chat_thinking_and_call() {
    check(
        &stream(&chat(), &call_events(), &Finish::Stop),
        expect![[r#"
        data: {"id":"chatcmpl-42","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-42","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[{"index":0,"delta":{"reasoning_content":"Look it up."},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-42","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[{"index":0,"delta":{"content":"Wait."},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-42","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_42_0","type":"function","function":{"name":"get_weather","arguments":""}}]},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-42","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\": "}}]},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-42","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"\"Oslo\"}"}}]},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-42","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"tool_calls"}],"usage":null}

        data: {"id":"chatcmpl-42","object":"chat.completion.chunk","created":1700000000,"model":"demo","choices":[],"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120,"prompt_tokens_details":{"cached_tokens":64,"cache_write_tokens":16},"completion_tokens_details":{"reasoning_tokens":5}}}

        data: [DONE]

    "#]],
    );
    check(
        &whole(&chat(), &call_events(), &Finish::Stop),
        expect![[
            r#"{"id":"chatcmpl-42","object":"chat.completion","created":1700000000,"model":"demo","choices":[{"index":0,"message":{"role":"assistant","content":"Wait.","refusal":null,"reasoning_content":"Look it up.","tool_calls":[{"id":"call_42_0","type":"function","function":{"name":"get_weather","arguments":"{\"city\": \"Oslo\"}"}}]},"logprobs":null,"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120,"prompt_tokens_details":{"cached_tokens":64,"cache_write_tokens":16},"completion_tokens_details":{"reasoning_tokens":5}}}"#
        ]],
    );
}

#[test]
fn messages_text() {
    check(
        &stream(&messages(""), &text_events(), &Finish::StopString("\n\n".into())),
        expect![[r#"
            event: message_start
            data: {"type":"message_start","message":{"id":"msg_42","type":"message","role":"assistant","model":"demo","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":20,"cache_creation_input_tokens":16,"cache_read_input_tokens":64,"cache_creation":{"ephemeral_5m_input_tokens":16,"ephemeral_1h_input_tokens":0},"output_tokens":0,"service_tier":"standard"}}}

            event: content_block_start
            data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

            event: content_block_delta
            data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}

            event: content_block_delta
            data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"lo"}}

            event: content_block_stop
            data: {"type":"content_block_stop","index":0}

            event: message_delta
            data: {"type":"message_delta","delta":{"stop_reason":"stop_sequence","stop_sequence":"\n\n"},"usage":{"input_tokens":20,"cache_creation_input_tokens":16,"cache_read_input_tokens":64,"cache_creation":{"ephemeral_5m_input_tokens":16,"ephemeral_1h_input_tokens":0},"output_tokens":20,"service_tier":"standard"}}

            event: message_stop
            data: {"type":"message_stop"}

        "#]],
    );
    check(
        &whole(&messages(""), &text_events(), &Finish::Length),
        expect![[
            r#"{"id":"msg_42","type":"message","role":"assistant","model":"demo","content":[{"type":"text","text":"Hello"}],"stop_reason":"model_context_window_exceeded","stop_sequence":null,"usage":{"input_tokens":20,"cache_creation_input_tokens":16,"cache_read_input_tokens":64,"cache_creation":{"ephemeral_5m_input_tokens":16,"ephemeral_1h_input_tokens":0},"output_tokens":20,"service_tier":"standard"}}"#
        ]],
    );
}

#[test]
fn messages_thinking_and_call() {
    check(
        &stream(&messages(THINKING), &call_events(), &Finish::Stop),
        expect![[r#"
            event: message_start
            data: {"type":"message_start","message":{"id":"msg_42","type":"message","role":"assistant","model":"demo","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":20,"cache_creation_input_tokens":16,"cache_read_input_tokens":64,"cache_creation":{"ephemeral_5m_input_tokens":16,"ephemeral_1h_input_tokens":0},"output_tokens":0,"service_tier":"standard"}}}

            event: content_block_start
            data: {"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}

            event: content_block_delta
            data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Look it up."}}

            event: content_block_delta
            data: {"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"bWFpbnN0YXktdGhpbmtpbmctMQBbsOxvlRU+Ug=="}}

            event: content_block_stop
            data: {"type":"content_block_stop","index":0}

            event: content_block_start
            data: {"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}

            event: content_block_delta
            data: {"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"Wait."}}

            event: content_block_stop
            data: {"type":"content_block_stop","index":1}

            event: content_block_start
            data: {"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"toolu_42_0","name":"get_weather","input":{}}}

            event: content_block_delta
            data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"city\": "}}

            event: content_block_delta
            data: {"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"\"Oslo\"}"}}

            event: content_block_stop
            data: {"type":"content_block_stop","index":2}

            event: message_delta
            data: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":20,"cache_creation_input_tokens":16,"cache_read_input_tokens":64,"cache_creation":{"ephemeral_5m_input_tokens":16,"ephemeral_1h_input_tokens":0},"output_tokens":20,"service_tier":"standard"}}

            event: message_stop
            data: {"type":"message_stop"}

        "#]],
    );
    check(
        &whole(&messages(THINKING), &call_events(), &Finish::Stop),
        expect![[
            r#"{"id":"msg_42","type":"message","role":"assistant","model":"demo","content":[{"type":"thinking","thinking":"Look it up.","signature":"bWFpbnN0YXktdGhpbmtpbmctMQBbsOxvlRU+Ug=="},{"type":"text","text":"Wait."},{"type":"tool_use","id":"toolu_42_0","name":"get_weather","input":{"city":"Oslo"}}],"stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":20,"cache_creation_input_tokens":16,"cache_read_input_tokens":64,"cache_creation":{"ephemeral_5m_input_tokens":16,"ephemeral_1h_input_tokens":0},"output_tokens":20,"service_tier":"standard"}}"#
        ]],
    );
}

#[test]
fn responses_text() {
    check(
        &stream(&responses(), &text_events(), &Finish::Stop),
        expect![[r#"
            event: response.created
            data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_42","object":"response","created_at":1700000000,"completed_at":null,"status":"in_progress","error":null,"incomplete_details":null,"output":[],"usage":null,"model":"demo","instructions":"Brief.","previous_response_id":null,"tools":[{"type":"namespace","name":"city","tools":[{"type":"function","name":"get_weather","parameters":{"type":"object"}}]}],"tool_choice":"auto","parallel_tool_calls":true,"truncation":"disabled","text":{"format":{"type":"text"}},"reasoning":{"effort":null,"summary":null},"temperature":1.0,"top_p":1.0,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":0,"max_output_tokens":null,"max_tool_calls":null,"store":true,"background":false,"service_tier":"default","metadata":{"k":"v"},"user":null,"safety_identifier":null,"prompt_cache_key":null}}

            event: response.in_progress
            data: {"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_42","object":"response","created_at":1700000000,"completed_at":null,"status":"in_progress","error":null,"incomplete_details":null,"output":[],"usage":null,"model":"demo","instructions":"Brief.","previous_response_id":null,"tools":[{"type":"namespace","name":"city","tools":[{"type":"function","name":"get_weather","parameters":{"type":"object"}}]}],"tool_choice":"auto","parallel_tool_calls":true,"truncation":"disabled","text":{"format":{"type":"text"}},"reasoning":{"effort":null,"summary":null},"temperature":1.0,"top_p":1.0,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":0,"max_output_tokens":null,"max_tool_calls":null,"store":true,"background":false,"service_tier":"default","metadata":{"k":"v"},"user":null,"safety_identifier":null,"prompt_cache_key":null}}

            event: response.output_item.added
            data: {"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"type":"message","id":"msg_42_0","role":"assistant","status":"in_progress","content":[]}}

            event: response.content_part.added
            data: {"type":"response.content_part.added","sequence_number":3,"item_id":"msg_42_0","output_index":0,"content_index":0,"part":{"type":"output_text","text":"","annotations":[],"logprobs":[]}}

            event: response.output_text.delta
            data: {"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_42_0","output_index":0,"content_index":0,"delta":"Hel","logprobs":[]}

            event: response.output_text.delta
            data: {"type":"response.output_text.delta","sequence_number":5,"item_id":"msg_42_0","output_index":0,"content_index":0,"delta":"lo","logprobs":[]}

            event: response.output_text.done
            data: {"type":"response.output_text.done","sequence_number":6,"item_id":"msg_42_0","output_index":0,"content_index":0,"text":"Hello","logprobs":[]}

            event: response.content_part.done
            data: {"type":"response.content_part.done","sequence_number":7,"item_id":"msg_42_0","output_index":0,"content_index":0,"part":{"type":"output_text","text":"Hello","annotations":[],"logprobs":[]}}

            event: response.output_item.done
            data: {"type":"response.output_item.done","sequence_number":8,"output_index":0,"item":{"type":"message","id":"msg_42_0","role":"assistant","status":"completed","content":[{"type":"output_text","text":"Hello","annotations":[],"logprobs":[]}]}}

            event: response.completed
            data: {"type":"response.completed","sequence_number":9,"response":{"id":"resp_42","object":"response","created_at":1700000000,"completed_at":1700000002,"status":"completed","error":null,"incomplete_details":null,"output":[{"type":"message","id":"msg_42_0","role":"assistant","status":"completed","content":[{"type":"output_text","text":"Hello","annotations":[],"logprobs":[]}]}],"usage":{"input_tokens":100,"input_tokens_details":{"cached_tokens":64,"cache_write_tokens":16},"output_tokens":20,"output_tokens_details":{"reasoning_tokens":5},"total_tokens":120},"model":"demo","instructions":"Brief.","previous_response_id":null,"tools":[{"type":"namespace","name":"city","tools":[{"type":"function","name":"get_weather","parameters":{"type":"object"}}]}],"tool_choice":"auto","parallel_tool_calls":true,"truncation":"disabled","text":{"format":{"type":"text"}},"reasoning":{"effort":null,"summary":null},"temperature":1.0,"top_p":1.0,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":0,"max_output_tokens":null,"max_tool_calls":null,"store":true,"background":false,"service_tier":"default","metadata":{"k":"v"},"user":null,"safety_identifier":null,"prompt_cache_key":null}}

        "#]],
    );
}

#[test]
fn responses_thinking_and_call() {
    check(
        &stream(&responses(), &call_events(), &Finish::Stop),
        expect![[r#"
            event: response.created
            data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_42","object":"response","created_at":1700000000,"completed_at":null,"status":"in_progress","error":null,"incomplete_details":null,"output":[],"usage":null,"model":"demo","instructions":"Brief.","previous_response_id":null,"tools":[{"type":"namespace","name":"city","tools":[{"type":"function","name":"get_weather","parameters":{"type":"object"}}]}],"tool_choice":"auto","parallel_tool_calls":true,"truncation":"disabled","text":{"format":{"type":"text"}},"reasoning":{"effort":null,"summary":null},"temperature":1.0,"top_p":1.0,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":0,"max_output_tokens":null,"max_tool_calls":null,"store":true,"background":false,"service_tier":"default","metadata":{"k":"v"},"user":null,"safety_identifier":null,"prompt_cache_key":null}}

            event: response.in_progress
            data: {"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_42","object":"response","created_at":1700000000,"completed_at":null,"status":"in_progress","error":null,"incomplete_details":null,"output":[],"usage":null,"model":"demo","instructions":"Brief.","previous_response_id":null,"tools":[{"type":"namespace","name":"city","tools":[{"type":"function","name":"get_weather","parameters":{"type":"object"}}]}],"tool_choice":"auto","parallel_tool_calls":true,"truncation":"disabled","text":{"format":{"type":"text"}},"reasoning":{"effort":null,"summary":null},"temperature":1.0,"top_p":1.0,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":0,"max_output_tokens":null,"max_tool_calls":null,"store":true,"background":false,"service_tier":"default","metadata":{"k":"v"},"user":null,"safety_identifier":null,"prompt_cache_key":null}}

            event: response.output_item.added
            data: {"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"type":"reasoning","id":"rs_42_0","summary":[]}}

            event: response.reasoning_summary_part.added
            data: {"type":"response.reasoning_summary_part.added","sequence_number":3,"item_id":"rs_42_0","output_index":0,"summary_index":0,"part":{"type":"summary_text","text":""}}

            event: response.reasoning_summary_text.delta
            data: {"type":"response.reasoning_summary_text.delta","sequence_number":4,"item_id":"rs_42_0","output_index":0,"summary_index":0,"delta":"Look it up."}

            event: response.reasoning_summary_text.done
            data: {"type":"response.reasoning_summary_text.done","sequence_number":5,"item_id":"rs_42_0","output_index":0,"summary_index":0,"text":"Look it up."}

            event: response.reasoning_summary_part.done
            data: {"type":"response.reasoning_summary_part.done","sequence_number":6,"item_id":"rs_42_0","output_index":0,"summary_index":0,"part":{"type":"summary_text","text":"Look it up."}}

            event: response.output_item.done
            data: {"type":"response.output_item.done","sequence_number":7,"output_index":0,"item":{"type":"reasoning","id":"rs_42_0","summary":[{"type":"summary_text","text":"Look it up."}],"encrypted_content":"bWFpbnN0YXktdGhpbmtpbmctMQFbsOxvlRU+Ukxvb2sgaXQgdXAu"}}

            event: response.output_item.added
            data: {"type":"response.output_item.added","sequence_number":8,"output_index":1,"item":{"type":"message","id":"msg_42_1","role":"assistant","status":"in_progress","content":[]}}

            event: response.content_part.added
            data: {"type":"response.content_part.added","sequence_number":9,"item_id":"msg_42_1","output_index":1,"content_index":0,"part":{"type":"output_text","text":"","annotations":[],"logprobs":[]}}

            event: response.output_text.delta
            data: {"type":"response.output_text.delta","sequence_number":10,"item_id":"msg_42_1","output_index":1,"content_index":0,"delta":"Wait.","logprobs":[]}

            event: response.output_text.done
            data: {"type":"response.output_text.done","sequence_number":11,"item_id":"msg_42_1","output_index":1,"content_index":0,"text":"Wait.","logprobs":[]}

            event: response.content_part.done
            data: {"type":"response.content_part.done","sequence_number":12,"item_id":"msg_42_1","output_index":1,"content_index":0,"part":{"type":"output_text","text":"Wait.","annotations":[],"logprobs":[]}}

            event: response.output_item.done
            data: {"type":"response.output_item.done","sequence_number":13,"output_index":1,"item":{"type":"message","id":"msg_42_1","role":"assistant","status":"completed","content":[{"type":"output_text","text":"Wait.","annotations":[],"logprobs":[]}]}}

            event: response.output_item.added
            data: {"type":"response.output_item.added","sequence_number":14,"output_index":2,"item":{"type":"function_call","id":"fc_42_2","call_id":"call_42_0","name":"get_weather","status":"in_progress","arguments":"","namespace":"city"}}

            event: response.function_call_arguments.delta
            data: {"type":"response.function_call_arguments.delta","sequence_number":15,"item_id":"fc_42_2","output_index":2,"delta":"{\"city\": "}

            event: response.function_call_arguments.delta
            data: {"type":"response.function_call_arguments.delta","sequence_number":16,"item_id":"fc_42_2","output_index":2,"delta":"\"Oslo\"}"}

            event: response.function_call_arguments.done
            data: {"type":"response.function_call_arguments.done","sequence_number":17,"item_id":"fc_42_2","output_index":2,"name":"get_weather","arguments":"{\"city\": \"Oslo\"}"}

            event: response.output_item.done
            data: {"type":"response.output_item.done","sequence_number":18,"output_index":2,"item":{"type":"function_call","id":"fc_42_2","call_id":"call_42_0","name":"get_weather","status":"completed","arguments":"{\"city\": \"Oslo\"}","namespace":"city"}}

            event: response.completed
            data: {"type":"response.completed","sequence_number":19,"response":{"id":"resp_42","object":"response","created_at":1700000000,"completed_at":1700000002,"status":"completed","error":null,"incomplete_details":null,"output":[{"type":"reasoning","id":"rs_42_0","summary":[{"type":"summary_text","text":"Look it up."}],"encrypted_content":"bWFpbnN0YXktdGhpbmtpbmctMQFbsOxvlRU+Ukxvb2sgaXQgdXAu"},{"type":"message","id":"msg_42_1","role":"assistant","status":"completed","content":[{"type":"output_text","text":"Wait.","annotations":[],"logprobs":[]}]},{"type":"function_call","id":"fc_42_2","call_id":"call_42_0","name":"get_weather","status":"completed","arguments":"{\"city\": \"Oslo\"}","namespace":"city"}],"usage":{"input_tokens":100,"input_tokens_details":{"cached_tokens":64,"cache_write_tokens":16},"output_tokens":20,"output_tokens_details":{"reasoning_tokens":5},"total_tokens":120},"model":"demo","instructions":"Brief.","previous_response_id":null,"tools":[{"type":"namespace","name":"city","tools":[{"type":"function","name":"get_weather","parameters":{"type":"object"}}]}],"tool_choice":"auto","parallel_tool_calls":true,"truncation":"disabled","text":{"format":{"type":"text"}},"reasoning":{"effort":null,"summary":null},"temperature":1.0,"top_p":1.0,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":0,"max_output_tokens":null,"max_tool_calls":null,"store":true,"background":false,"service_tier":"default","metadata":{"k":"v"},"user":null,"safety_identifier":null,"prompt_cache_key":null}}

        "#]],
    );
    check(
        &whole(&responses(), &call_events(), &Finish::Stop),
        expect![[
            r#"{"id":"resp_42","object":"response","created_at":1700000000,"completed_at":1700000002,"status":"completed","error":null,"incomplete_details":null,"output":[{"type":"reasoning","id":"rs_42_0","summary":[{"type":"summary_text","text":"Look it up."}],"encrypted_content":"bWFpbnN0YXktdGhpbmtpbmctMQFbsOxvlRU+Ukxvb2sgaXQgdXAu"},{"type":"message","id":"msg_42_1","role":"assistant","status":"completed","content":[{"type":"output_text","text":"Wait.","annotations":[],"logprobs":[]}]},{"type":"function_call","id":"fc_42_2","call_id":"call_42_0","name":"get_weather","status":"completed","arguments":"{\"city\": \"Oslo\"}","namespace":"city"}],"usage":{"input_tokens":100,"input_tokens_details":{"cached_tokens":64,"cache_write_tokens":16},"output_tokens":20,"output_tokens_details":{"reasoning_tokens":5},"total_tokens":120},"model":"demo","instructions":"Brief.","previous_response_id":null,"tools":[{"type":"namespace","name":"city","tools":[{"type":"function","name":"get_weather","parameters":{"type":"object"}}]}],"tool_choice":"auto","parallel_tool_calls":true,"truncation":"disabled","text":{"format":{"type":"text"}},"reasoning":{"effort":null,"summary":null},"temperature":1.0,"top_p":1.0,"presence_penalty":0.0,"frequency_penalty":0.0,"top_logprobs":0,"max_output_tokens":null,"max_tool_calls":null,"store":true,"background":false,"service_tier":"default","metadata":{"k":"v"},"user":null,"safety_identifier":null,"prompt_cache_key":null}"#
        ]],
    );
}

#[test]
fn hidden_thinking_leaves_no_trace_and_omitted_thinking_comes_back() {
    let hidden = stream(&messages(""), &call_events(), &Finish::Stop);
    assert!(!hidden.contains("Look it up") && !hidden.contains("thinking"), "{hidden}");
    let omitted = messages(r#","thinking":{"type":"adaptive","display":"omitted"}"#);
    let body: Value =
        serde_json::from_str(&whole(&omitted, &call_events(), &Finish::Stop)).unwrap();
    assert_eq!(body["content"][0]["thinking"], "");
    let next = serde_json::json!({"model": "demo", "max_tokens": 5, "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": body["content"]},
        {"role": "user", "content": "go on"},
    ]});
    let next = parse_messages(next.to_string().as_bytes()).unwrap();
    let first = &next.conversation.messages[1].blocks[0].content;
    assert!(
        matches!(first, crate::Content::Thinking { text, .. } if text == "Look it up."),
        "{first:?}"
    );
}

#[test]
fn an_answer_comes_back_as_the_same_blocks() {
    let body: Value =
        serde_json::from_str(&whole(&responses(), &call_events(), &Finish::Stop)).unwrap();
    let mut input = vec![serde_json::json!({"role": "user", "content": "hi"})];
    input.extend(body["output"].as_array().unwrap().iter().cloned());
    let next = serde_json::json!({"model": "demo", "input": input}).to_string();
    let next = parse_responses(next.as_bytes()).unwrap();
    let mut transcript = Transcript::default();
    call_events().iter().for_each(|event| transcript.push(event));
    let expected = transcript.blocks(Endpoint::Responses, "req_42");
    let got = &next.conversation.messages[1].blocks;
    assert_eq!(got.len(), expected.len());
    assert_eq!(got[1], expected[1]);
    let (crate::Content::ToolCall { id: a, .. }, crate::Content::ToolCall { id: b, .. }) =
        (&got[2].content, &expected[2].content)
    else {
        panic!("{got:?}")
    };
    assert_eq!(a, b);
}

#[test]
fn failures_in_a_stream() {
    let error = ApiError::new(ErrorKind::Overloaded, "every worker is busy");
    let fail = Finish::Error(error);
    let last = |stream: String| stream.trim_end().rsplit("\n\n").next().unwrap().to_owned();
    check(
        &last(stream(&chat(), &text_events(), &fail)),
        expect![[
            r#"data: {"error":{"message":"every worker is busy","type":"server_error","param":null,"code":"server_error"}}"#
        ]],
    );
    check(
        &last(stream(&messages(""), &text_events(), &fail)),
        expect![[r#"
        event: error
        data: {"type":"error","error":{"type":"overloaded_error","message":"every worker is busy"},"request_id":"req_42"}"#]],
    );
    let failed = last(stream(&responses(), &text_events(), &fail));
    assert!(failed.starts_with("event: response.failed\n"), "{failed}");
    assert!(failed.contains(r#""error":{"code":"rate_limit_exceeded","message":"every worker is busy; please try again in 1s"}"#), "{failed}");
    check(
        &whole(&chat(), &[], &fail),
        expect![[
            r#"{"error":{"message":"every worker is busy","type":"server_error","param":null,"code":"server_error"}}"#
        ]],
    );
}

#[test]
fn length_and_cancellation_in_responses() {
    let cut = stream(&responses(), &text_events(), &Finish::Length);
    assert_eq!(names(&cut).last(), Some(&"response.incomplete"));
    assert!(cut.contains(r#""incomplete_details":{"reason":"max_output_tokens"}"#));
    // A stream has no event of its own for it; a body read later says what happened.
    let cancelled = stream(&responses(), &text_events(), &Finish::Cancelled);
    assert_eq!(names(&cancelled).last(), Some(&"response.incomplete"));
    assert!(!cancelled.contains(r#""status":"cancelled""#));
    let cancelled = whole(&responses(), &text_events(), &Finish::Cancelled);
    assert!(cancelled.contains(r#""status":"cancelled""#));
}

#[test]
fn sequence_numbers_count_every_event() {
    let out = stream(&responses(), &call_events(), &Finish::Stop);
    let numbers: Vec<u64> = out
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| {
            serde_json::from_str::<Value>(data).unwrap()["sequence_number"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    assert!(numbers.len() > 15);
}

#[test]
fn logprobs_travel_with_text() {
    let token = TokenLogprob {
        token: "é".to_owned(),
        logprob: -0.25,
        top: vec![("é".to_owned(), -0.25), ("e".to_owned(), -2.0)],
    };
    let events = [OutputEvent::Text { delta: "é".to_owned(), logprobs: vec![token] }];
    let out = stream(&chat(), &events, &Finish::Stop);
    let expected = r#""logprobs":{"content":[{"token":"é","logprob":-0.25,"bytes":[195,169],"top_logprobs":[{"token":"é","logprob":-0.25,"bytes":[195,169]},{"token":"e","logprob":-2.0,"bytes":[101]}]}],"refusal":null}"#;
    assert!(out.contains(expected), "{out}");
    let out = stream(&responses(), &events, &Finish::Stop);
    assert!(out.contains(r#""delta":"é","logprobs":[{"token":"é""#), "{out}");
    assert!(whole(&chat(), &events, &Finish::Stop).contains(expected));
}

#[test]
fn usage_never_goes_below_zero() {
    let usage = Usage { prompt_tokens: 1, cached_tokens: 5, ..Usage::default() };
    let out = complete(&messages(""), &meta(), &Transcript::default(), &Finish::Stop, &usage, 0);
    assert!(out.contains(r#""input_tokens":0"#), "{out}");
}

#[test]
fn ids_are_safe_and_bounded() {
    let hostile = format!("req_a\"\n{}", "b".repeat(200));
    let id = response_id(&hostile);
    assert_eq!(id, format!("resp_a{}", "b".repeat(63)));
    assert_eq!(response_id("req_7"), "resp_7");
    assert_eq!(count_tokens_body(12, None), r#"{"input_tokens":12}"#);
}

#[test]
fn a_refused_pin_is_told_once_at_the_end_in_all_three_shapes() {
    let note = PinNote {
        outcome: "rejected",
        reason: "session s has 8 live pins".to_owned(),
        prefix_tokens: 128,
        ttl_ms: 300_000,
    };
    let told = r#""nvext":{"pins":[{"outcome":"rejected","reason":"session s has 8 live pins","prefix_tokens":128,"ttl_ms":300000}]}"#;
    let user = r#"{"model":"demo","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let responses = r#"{"model":"demo","stream":true,"input":"hi"}"#;
    let requests = [
        parse_chat(user.as_bytes()).unwrap(),
        parse_messages(user.as_bytes()).unwrap(),
        parse_responses(responses.as_bytes()).unwrap(),
    ];
    for request in requests {
        for pins in [vec![note.clone()], Vec::new()] {
            let expected = usize::from(!pins.is_empty());
            let mut encoder = StreamEncoder::new(&request, meta());
            let mut stream = encoder.start(&USAGE);
            text_events().iter().for_each(|e| stream.push_str(&encoder.event(e)));
            encoder.note_pins(pins.clone());
            stream.push_str(&encoder.finish(&Finish::Stop, &USAGE, 1));
            assert_eq!(stream.matches(told).count(), expected, "{stream}");
            assert_eq!(stream.matches("nvext").count(), expected);
            let meta = ResponseMeta { pins, ..meta() };
            let said = encoder.transcript();
            let body = complete(&request, &meta, said, &Finish::Stop, &USAGE, 1);
            assert_eq!(body.matches(told).count(), expected, "{body}");
        }
    }
}
