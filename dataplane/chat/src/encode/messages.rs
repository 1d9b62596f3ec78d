//! Anthropic Messages: events and the whole body.
//!
//! Blocks open, grow and close one at a time, and every frame has its `event:` line, without
//! which Claude Code throws the stream away and asks again. `input_tokens` counts only what was
//! neither read from nor written to the cache, as the protocol has it. Thinking is shown, left
//! empty with a signature that carries it, or not sent at all, as the request wanted.

use serde_json::{Value, json};

use super::ids::Ids;
use super::transcript::{Item, Transcript};
use super::{Finish, Frames, ResponseMeta, Usage, note_nvext};
use crate::edits::AppliedEdit;
use crate::output::OutputEvent;
use crate::request::{Endpoint, Request, ThinkingDisplay};
use crate::seal::seal;

/// The body of an answer to `count_tokens`; `original_tokens` is the prompt's length before edits, if any were asked
/// for.
pub fn count_tokens_body(input_tokens: u64, original_tokens: Option<u64>) -> String {
    let mut body = json!({"input_tokens": input_tokens});
    if let Some(original) = original_tokens {
        body["context_management"] = json!({"original_input_tokens": original});
    }
    body.to_string()
}

enum Open {
    Thinking(String),
    Text,
    ToolUse,
}

pub(super) struct MessagesStream {
    pub(super) meta: ResponseMeta,
    ids: Ids,
    display: ThinkingDisplay,
    open: Option<Open>,
    index: u32,
    tokens_max: Option<u32>,
    /// The hints that were used, if the client asked.
    used: Option<Vec<&'static str>>,
    applied: Option<Value>,
}

impl MessagesStream {
    pub(super) fn new(request: &Request, meta: ResponseMeta, ids: Ids) -> MessagesStream {
        MessagesStream {
            meta,
            ids,
            display: request.thinking_display,
            open: None,
            index: 0,
            tokens_max: request.sampling.max_tokens,
            used: request.used_to_tell(),
            applied: applied_edits(request),
        }
    }

    pub(super) fn start(&mut self, usage: &Usage, out: &mut Frames) {
        let mut message = message(&self.meta, &self.ids, Vec::new());
        message["usage"] = usage_value(usage);
        out.named("message_start", &json!({"type": "message_start", "message": message}));
    }

    pub(super) fn event(&mut self, event: &OutputEvent, out: &mut Frames) {
        match event {
            OutputEvent::Thinking(delta) => self.thinking(delta, out),
            OutputEvent::Text { delta, .. } => {
                if !matches!(self.open, Some(Open::Text)) {
                    self.open(Open::Text, &json!({"type": "text", "text": ""}), out);
                }
                self.delta(&json!({"type": "text_delta", "text": delta}), out);
            }
            OutputEvent::ToolCallStart { index, name } => {
                let id = self.ids.tool_use(*index);
                let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                self.open(Open::ToolUse, &block, out);
            }
            OutputEvent::ToolCallArguments(delta) => {
                if matches!(self.open, Some(Open::ToolUse)) {
                    let delta = json!({"type": "input_json_delta", "partial_json": delta});
                    self.delta(&delta, out);
                }
            }
            OutputEvent::ToolCallEnd => self.close(out),
        }
    }

    pub(super) fn finish(&mut self, finish: &Finish, usage: &Usage, out: &mut Frames) {
        if let Finish::Error(error) = finish {
            out.named("error", &error.body_value(Endpoint::Messages, &self.meta.request_id));
            return;
        }
        self.close(out);
        let (reason, sequence) = stop_reason(finish, self.tokens_max, usage);
        let mut delta = json!({
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": usage_value(usage),
        });
        if let Some(applied) = &self.applied {
            delta["context_management"] = applied.clone();
        }
        note_nvext(&mut delta, &self.meta.pins, self.used.as_deref());
        out.named("message_delta", &delta);
        out.named("message_stop", &json!({"type": "message_stop"}));
    }

    fn thinking(&mut self, delta: &str, out: &mut Frames) {
        if self.display == ThinkingDisplay::Hidden {
            return;
        }
        if !matches!(self.open, Some(Open::Thinking(_))) {
            let block = json!({"type": "thinking", "thinking": "", "signature": ""});
            self.open(Open::Thinking(String::new()), &block, out);
        }
        if let Some(Open::Thinking(text)) = &mut self.open {
            text.push_str(delta);
        }
        if self.display == ThinkingDisplay::Full {
            self.delta(&json!({"type": "thinking_delta", "thinking": delta}), out);
        }
    }

    fn open(&mut self, kind: Open, block: &Value, out: &mut Frames) {
        self.close(out);
        self.open = Some(kind);
        let start = json!({
            "type": "content_block_start",
            "index": self.index,
            "content_block": block,
        });
        out.named("content_block_start", &start);
    }

    fn delta(&self, delta: &Value, out: &mut Frames) {
        let delta = json!({"type": "content_block_delta", "index": self.index, "delta": delta});
        out.named("content_block_delta", &delta);
    }

    fn close(&mut self, out: &mut Frames) {
        match self.open.take() {
            None => return,
            Some(Open::Thinking(text)) => {
                let carry = self.display == ThinkingDisplay::Omitted;
                let signature = seal(&text, carry, self.meta.sealer.as_ref());
                self.delta(&json!({"type": "signature_delta", "signature": signature}), out);
            }
            Some(Open::Text | Open::ToolUse) => {}
        }
        let stop = json!({"type": "content_block_stop", "index": self.index});
        out.named("content_block_stop", &stop);
        self.index += 1;
    }
}

/// The body of an answer that is not streamed.
pub(super) fn body(
    request: &Request,
    meta: &ResponseMeta,
    ids: &Ids,
    transcript: &Transcript,
    finish: &Finish,
    usage: &Usage,
) -> Value {
    let display = request.thinking_display;
    let mut content = Vec::new();
    for item in transcript.items() {
        match item {
            Item::Thinking(_) if display == ThinkingDisplay::Hidden => {}
            Item::Thinking(text) => {
                let carry = display == ThinkingDisplay::Omitted;
                let shown = if carry { "" } else { text.as_str() };
                let signature = seal(text, carry, meta.sealer.as_ref());
                content
                    .push(json!({"type": "thinking", "thinking": shown, "signature": signature}));
            }
            Item::Text { text, .. } => content.push(json!({"type": "text", "text": text})),
            Item::ToolCall { index, name, arguments } => content.push(json!({
                "type": "tool_use",
                "id": ids.tool_use(*index),
                "name": name,
                "input": input_object(arguments),
            })),
        }
    }
    let mut message = message(meta, ids, content);
    let (reason, sequence) = stop_reason(finish, request.sampling.max_tokens, usage);
    if let Some(applied) = applied_edits(request) {
        message["context_management"] = applied;
    }
    message["stop_reason"] = reason.into();
    message["stop_sequence"] = sequence.into();
    message["usage"] = usage_value(usage);
    message
}

fn message(meta: &ResponseMeta, ids: &Ids, content: Vec<Value>) -> Value {
    json!({
        "id": ids.message(),
        "type": "message",
        "role": "assistant",
        "model": meta.model,
        "content": content,
        "stop_reason": null,
        "stop_sequence": null,
        "usage": null,
    })
}

/// The protocol wants an object; the parser only lets objects through.
fn input_object(arguments: &str) -> Value {
    match crate::plain_json::from_str(arguments) {
        Ok(value) if value.is_object() => value,
        _ => json!({}),
    }
}

/// `context_management` of an answer, if the request had one.
fn applied_edits(request: &Request) -> Option<Value> {
    let applied = &request.context.as_ref()?.applied;
    let values: Vec<Value> = applied.iter().map(AppliedEdit::value).collect();
    Some(json!({"applied_edits": values}))
}

fn stop_reason<'f>(
    finish: &'f Finish,
    tokens_max: Option<u32>,
    usage: &Usage,
) -> (&'static str, Option<&'f str>) {
    match finish {
        // An answer that ended before its own limit filled the context.
        Finish::Length
            if tokens_max.is_some_and(|max| usage.completion_tokens < u64::from(max)) =>
        {
            ("model_context_window_exceeded", None)
        }
        Finish::StopString(text) => ("stop_sequence", Some(text)),
        Finish::Length => ("max_tokens", None),
        Finish::ToolUse => ("tool_use", None),
        Finish::Stop | Finish::Cancelled | Finish::Error(_) => ("end_turn", None),
    }
}

fn usage_value(usage: &Usage) -> Value {
    let known = usage.cached_tokens.saturating_add(usage.created_tokens);
    json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(known),
        "cache_creation_input_tokens": usage.created_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.created_tokens.saturating_sub(usage.created_long_tokens),
            "ephemeral_1h_input_tokens": usage.created_long_tokens.min(usage.created_tokens),
        },
        "output_tokens": usage.completion_tokens,
        "service_tier": "standard",
    })
}
