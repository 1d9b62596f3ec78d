//! Chat Completions: chunks and the whole body.
//!
//! Thinking travels as `reasoning_content`, the name that the agents who echo it back know. The
//! usage chunk comes only if it was asked for, and `[DONE]` always ends a stream that did not
//! fail; after an error frame nothing follows, so that no client takes a cut answer for whole.

use serde_json::{Map, Value, json};

use super::ids::Ids;
use super::transcript::{Item, Transcript};
use super::{Finish, Frames, ResponseMeta, Usage, note_pins};
use crate::output::{OutputEvent, TokenLogprob};
use crate::request::{Endpoint, Request};

pub(super) struct ChatStream {
    pub(super) meta: ResponseMeta,
    ids: Ids,
    include_usage: bool,
    call_index: u32,
}

impl ChatStream {
    pub(super) fn new(request: &Request, meta: ResponseMeta, ids: Ids) -> ChatStream {
        ChatStream { meta, ids, include_usage: request.include_usage, call_index: 0 }
    }

    pub(super) fn start(&mut self, out: &mut Frames) {
        self.delta(json!({"role": "assistant", "content": ""}), &[], out);
    }

    pub(super) fn event(&mut self, event: &OutputEvent, out: &mut Frames) {
        match event {
            OutputEvent::Thinking(delta) => {
                self.delta(json!({"reasoning_content": delta}), &[], out);
            }
            OutputEvent::Text { delta, logprobs } => {
                self.delta(json!({"content": delta}), logprobs, out);
            }
            OutputEvent::ToolCallStart { index, name } => {
                self.call_index = *index;
                let call = json!({
                    "index": index,
                    "id": self.ids.call(*index),
                    "type": "function",
                    "function": {"name": name, "arguments": ""},
                });
                self.delta(json!({"tool_calls": [call]}), &[], out);
            }
            OutputEvent::ToolCallArguments(delta) => {
                let call = json!({"index": self.call_index, "function": {"arguments": delta}});
                self.delta(json!({"tool_calls": [call]}), &[], out);
            }
            OutputEvent::ToolCallEnd => {}
        }
    }

    pub(super) fn finish(&mut self, finish: &Finish, usage: &Usage, out: &mut Frames) {
        if let Finish::Error(error) = finish {
            out.data(&error.body_value(Endpoint::Chat, &self.meta.request_id));
            return;
        }
        let choice = self.choice(json!({}), &[], finish_reason(finish).into());
        let mut chunk = self.chunk_value(vec![choice]);
        note_pins(&mut chunk, &self.meta.pins);
        out.data(&chunk);
        if self.include_usage {
            let mut chunk = self.head();
            chunk.insert("choices".to_owned(), json!([]));
            chunk.insert("usage".to_owned(), usage_value(usage));
            out.data(&Value::Object(chunk));
        }
        out.raw("[DONE]");
    }

    fn delta(&self, delta: Value, logprobs: &[TokenLogprob], out: &mut Frames) {
        self.chunk(vec![self.choice(delta, logprobs, Value::Null)], out);
    }

    fn choice(&self, delta: Value, logprobs: &[TokenLogprob], reason: Value) -> Value {
        json!({
            "index": 0,
            "delta": delta,
            "logprobs": logprobs_value(logprobs),
            "finish_reason": reason,
        })
    }

    fn chunk(&self, choices: Vec<Value>, out: &mut Frames) {
        out.data(&self.chunk_value(choices));
    }

    fn chunk_value(&self, choices: Vec<Value>) -> Value {
        let mut chunk = self.head();
        chunk.insert("choices".to_owned(), choices.into());
        if self.include_usage {
            chunk.insert("usage".to_owned(), Value::Null);
        }
        Value::Object(chunk)
    }

    fn head(&self) -> Map<String, Value> {
        head(&self.meta, &self.ids, "chat.completion.chunk")
    }
}

/// The body of an answer that is not streamed.
pub(super) fn body(
    meta: &ResponseMeta,
    ids: &Ids,
    transcript: &Transcript,
    finish: &Finish,
    usage: &Usage,
) -> Value {
    let mut message = Map::new();
    let text = transcript.text();
    let content = if text.is_empty() && transcript.has_calls() { Value::Null } else { text.into() };
    message.insert("role".to_owned(), "assistant".into());
    message.insert("content".to_owned(), content);
    message.insert("refusal".to_owned(), Value::Null);
    let thinking = transcript.thinking();
    if !thinking.is_empty() {
        message.insert("reasoning_content".to_owned(), thinking.into());
    }
    let mut calls = Vec::new();
    let mut logprobs: Vec<TokenLogprob> = Vec::new();
    for item in transcript.items() {
        match item {
            Item::ToolCall { index, name, arguments } => calls.push(json!({
                "id": ids.call(*index),
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            })),
            Item::Text { logprobs: tokens, .. } => logprobs.extend(tokens.iter().cloned()),
            Item::Thinking(_) => {}
        }
    }
    if !calls.is_empty() {
        message.insert("tool_calls".to_owned(), calls.into());
    }
    let mut body = head(meta, ids, "chat.completion");
    let choice = json!({
        "index": 0,
        "message": message,
        "logprobs": logprobs_value(&logprobs),
        "finish_reason": finish_reason(finish),
    });
    body.insert("choices".to_owned(), json!([choice]));
    body.insert("usage".to_owned(), usage_value(usage));
    Value::Object(body)
}

fn head(meta: &ResponseMeta, ids: &Ids, object: &str) -> Map<String, Value> {
    let mut head = Map::new();
    head.insert("id".to_owned(), ids.chat().into());
    head.insert("object".to_owned(), object.into());
    head.insert("created".to_owned(), meta.created_unix_s.into());
    head.insert("model".to_owned(), meta.model.clone().into());
    head
}

fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Length => "length",
        Finish::ToolUse => "tool_calls",
        Finish::Stop | Finish::StopString(_) | Finish::Cancelled | Finish::Error(_) => "stop",
    }
}

fn usage_value(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.created_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    })
}

fn logprobs_value(tokens: &[TokenLogprob]) -> Value {
    if tokens.is_empty() {
        return Value::Null;
    }
    json!({"content": tokens.iter().map(token_value).collect::<Vec<_>>(), "refusal": null})
}

/// One token's log probability, in the form both OpenAI protocols share.
pub(super) fn token_value(token: &TokenLogprob) -> Value {
    let one = |text: &str, logprob: f64| json!({"token": text, "logprob": logprob, "bytes": text.as_bytes()});
    let mut value = one(&token.token, token.logprob);
    let top: Vec<Value> = token.top.iter().map(|(text, logprob)| one(text, *logprob)).collect();
    value["top_logprobs"] = top.into();
    value
}
