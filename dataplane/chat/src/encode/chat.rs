//! Chat Completions: chunks and the whole body.
//!
//! Thinking travels as `reasoning_content`, the name that the agents who echo it back know. The
//! usage chunk comes only if it was asked for, and `[DONE]` always ends a stream that did not
//! fail; after an error frame nothing follows, so that no client takes a cut answer for whole.

use serde_json::{Map, Value, json};

use super::ids::Ids;
use super::tools::{apart, custom_input, is_custom};
use super::transcript::{Item, Transcript};
use super::{Finish, Frames, ResponseMeta, Usage, note_nvext};
use crate::ir::Tool;
use crate::output::{OutputEvent, TokenLogprob};
use crate::request::{Endpoint, Request};

pub(super) struct ChatStream {
    pub(super) meta: ResponseMeta,
    ids: Ids,
    include_usage: bool,
    call_index: u32,
    choice: u32,
    tools: Vec<Tool>,
    /// The hints that were used, if the client asked.
    used: Option<Vec<&'static str>>,
    /// Arguments of an open call that is told as free text.
    custom: Option<String>,
}

impl ChatStream {
    pub(super) fn new(request: &Request, meta: ResponseMeta, ids: Ids, choice: u32) -> ChatStream {
        let tools = apart(&request.conversation.tools);
        let include_usage = request.include_usage;
        let used = request.used_to_tell();
        ChatStream { meta, ids, include_usage, call_index: 0, choice, tools, used, custom: None }
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
                let id = self.ids.choice_call(self.choice, *index);
                let call = if is_custom(&self.tools, name) {
                    self.custom = Some(String::new());
                    let custom = json!({"name": name, "input": ""});
                    json!({"index": index, "id": id, "type": "custom", "custom": custom})
                } else {
                    let function = json!({"name": name, "arguments": ""});
                    json!({"index": index, "id": id, "type": "function", "function": function})
                };
                self.delta(json!({"tool_calls": [call]}), &[], out);
            }
            OutputEvent::ToolCallArguments(delta) => {
                if let Some(arguments) = &mut self.custom {
                    arguments.push_str(delta);
                    return;
                }
                let call = json!({"index": self.call_index, "function": {"arguments": delta}});
                self.delta(json!({"tool_calls": [call]}), &[], out);
            }
            OutputEvent::ToolCallEnd => self.end_custom(out),
        }
    }

    /// Free text can be told only once its call is whole.
    fn end_custom(&mut self, out: &mut Frames) {
        let Some(arguments) = self.custom.take() else { return };
        let input = custom_input(&arguments);
        let call = json!({"index": self.call_index, "custom": {"input": input}});
        self.delta(json!({"tool_calls": [call]}), &[], out);
    }

    pub(super) fn finish(&mut self, finish: &Finish, usage: &Usage, out: &mut Frames) {
        self.finish_choice(finish, out);
        if matches!(finish, Finish::Error(_)) {
            return;
        }
        if self.include_usage {
            let mut chunk = self.head();
            chunk.insert("choices".to_owned(), json!([]));
            chunk.insert("usage".to_owned(), usage_value(usage));
            out.data(&Value::Object(chunk));
        }
        out.raw("[DONE]");
    }

    pub(super) fn finish_choice(&mut self, finish: &Finish, out: &mut Frames) {
        if let Finish::Error(error) = finish {
            out.data(&error.body_value(Endpoint::Chat, &self.meta.request_id));
            return;
        }
        self.end_custom(out);
        let choice = self.choice(json!({}), &[], finish_reason(finish).into());
        let mut chunk = self.chunk_value(vec![choice]);
        note_nvext(&mut chunk, &self.meta.pins, self.used.as_deref());
        out.data(&chunk);
    }

    fn delta(&self, delta: Value, logprobs: &[TokenLogprob], out: &mut Frames) {
        self.chunk(vec![self.choice(delta, logprobs, Value::Null)], out);
    }

    fn choice(&self, delta: Value, logprobs: &[TokenLogprob], reason: Value) -> Value {
        json!({
            "index": self.choice,
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
    request: &Request,
    meta: &ResponseMeta,
    ids: &Ids,
    answers: &[(&Transcript, Finish)],
    usage: &Usage,
) -> Value {
    let tools = apart(&request.conversation.tools);
    let choices = (0..).zip(answers).map(|(index, (transcript, finish))| {
        let (message, logprobs) = message(ids, index, transcript, &tools);
        json!({
            "index": index,
            "message": message,
            "logprobs": logprobs_value(&logprobs),
            "finish_reason": finish_reason(finish),
        })
    });
    let choices: Vec<Value> = choices.collect();
    let mut body = head(meta, ids, "chat.completion");
    body.insert("choices".to_owned(), choices.into());
    body.insert("usage".to_owned(), usage_value(usage));
    Value::Object(body)
}

/// One answer as a message, and the log probabilities of its text.
fn message(
    ids: &Ids,
    choice: u32,
    transcript: &Transcript,
    tools: &[Tool],
) -> (Map<String, Value>, Vec<TokenLogprob>) {
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
            Item::ToolCall { index, name, arguments } if is_custom(tools, name) => {
                calls.push(json!({
                    "id": ids.choice_call(choice, *index),
                    "type": "custom",
                    "custom": {"name": name, "input": custom_input(arguments)},
                }));
            }
            Item::ToolCall { index, name, arguments } => calls.push(json!({
                "id": ids.choice_call(choice, *index),
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
    (message, logprobs)
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
