//! OpenAI Responses: events and the whole object.
//!
//! Every event has a sequence number and its `event:` line, and every response object has all
//! members that the strict schemas list, null where there is nothing to say. Reasoning is an item
//! with a summary, plus opaque content if the client asked for it. Failures end in
//! `response.failed`, never in an `error` event, which Codex ignores.

use serde_json::{Value, json};

use super::echo::Echo;
use super::ids::Ids;
use super::tools::{custom_input, is_custom, told_name};
use super::transcript::{Item, Transcript};
use super::{Finish, Frames, ResponseMeta, Usage, chat, note_nvext};
use crate::output::{OutputEvent, TokenLogprob};
use crate::request::Request;

pub(super) struct ResponsesStream {
    pub(super) meta: ResponseMeta,
    ids: Ids,
    frame: Echo,
    sequence: u64,
    /// The hints that were used, if the client asked.
    used: Option<Vec<&'static str>>,
    open: Option<Item>,
    /// Finished output items.
    output: Vec<Value>,
}

/// How an answer ended, for the response object.
pub(super) struct Answer<'a> {
    pub(super) finish: &'a Finish,
    pub(super) usage: &'a Usage,
    pub(super) completed_unix_s: u64,
}

impl ResponsesStream {
    pub(super) fn new(request: &Request, meta: ResponseMeta, ids: Ids) -> ResponsesStream {
        let frame = Echo::new(request);
        let used = request.used_to_tell();
        ResponsesStream { meta, ids, frame, sequence: 0, used, open: None, output: Vec::new() }
    }

    pub(super) fn start(&mut self, out: &mut Frames) {
        let response = self.frame.object(&self.meta, &self.ids, "in_progress", &[], None);
        self.emit("response.created", json!({"response": response}), out);
        self.emit("response.in_progress", json!({"response": response}), out);
    }

    pub(super) fn event(&mut self, event: &OutputEvent, out: &mut Frames) {
        match event {
            OutputEvent::Thinking(delta) => self.thinking(delta, out),
            OutputEvent::Text { delta, logprobs } => self.text(delta, logprobs, out),
            OutputEvent::ToolCallStart { index, name } => {
                let (index, name) = (*index, name.clone());
                self.open(Item::ToolCall { index, name, arguments: String::new() }, out);
            }
            OutputEvent::ToolCallArguments(delta) => self.arguments(delta, out),
            OutputEvent::ToolCallEnd => self.close("completed", out),
        }
    }

    pub(super) fn finish(
        &mut self,
        finish: &Finish,
        usage: &Usage,
        completed_unix_s: u64,
        out: &mut Frames,
    ) {
        // A stream has no event of its own for an answer that was given up.
        let status = match status(finish) {
            "cancelled" => "incomplete",
            other => other,
        };
        self.close(if status == "completed" { "completed" } else { "incomplete" }, out);
        let answer = Answer { finish, usage, completed_unix_s };
        let mut response =
            self.frame.object(&self.meta, &self.ids, status, &self.output, Some(&answer));
        note_nvext(&mut response, &self.meta.pins, self.used.as_deref());
        let name = match status {
            "completed" => "response.completed",
            "failed" => "response.failed",
            _ => "response.incomplete",
        };
        self.emit(name, json!({"response": response}), out);
    }

    fn thinking(&mut self, delta: &str, out: &mut Frames) {
        if !matches!(self.open, Some(Item::Thinking(_))) {
            self.open(Item::Thinking(String::new()), out);
        }
        if let Some(Item::Thinking(text)) = &mut self.open {
            text.push_str(delta);
        }
        let part = json!({"summary_index": 0, "delta": delta});
        self.on_item("response.reasoning_summary_text.delta", "rs", part, out);
    }

    fn text(&mut self, delta: &str, logprobs: &[TokenLogprob], out: &mut Frames) {
        if !matches!(self.open, Some(Item::Text { .. })) {
            self.open(Item::Text { text: String::new(), logprobs: Vec::new() }, out);
        }
        if let Some(Item::Text { text, logprobs: all }) = &mut self.open {
            text.push_str(delta);
            all.extend(logprobs.iter().cloned());
        }
        let part =
            json!({"content_index": 0, "delta": delta, "logprobs": logprobs_value(logprobs)});
        self.on_item("response.output_text.delta", "msg", part, out);
    }

    /// Text in place of arguments can be told only once they are whole.
    fn arguments(&mut self, delta: &str, out: &mut Frames) {
        let Some(Item::ToolCall { name, arguments, .. }) = &mut self.open else { return };
        arguments.push_str(delta);
        if !is_custom(&self.frame.tools, name) {
            let part = json!({"delta": delta});
            self.on_item("response.function_call_arguments.delta", "fc", part, out);
        }
    }

    fn open(&mut self, item: Item, out: &mut Frames) {
        self.close("completed", out);
        let shown = self.frame.item(&self.meta, &self.ids, self.output.len(), &item, "in_progress");
        let index = self.output.len();
        let added = json!({"output_index": index, "item": shown});
        self.emit("response.output_item.added", added, out);
        match item {
            Item::Thinking(_) => {
                let part =
                    json!({"summary_index": 0, "part": {"type": "summary_text", "text": ""}});
                self.on_item("response.reasoning_summary_part.added", "rs", part, out);
            }
            Item::Text { .. } => {
                let part = json!({"content_index": 0, "part": text_part("", &[])});
                self.on_item("response.content_part.added", "msg", part, out);
            }
            Item::ToolCall { .. } => {}
        }
        self.open = Some(item);
    }

    fn close(&mut self, status: &str, out: &mut Frames) {
        let Some(item) = self.open.take() else { return };
        match &item {
            Item::Thinking(text) => {
                let done = json!({"summary_index": 0, "text": text});
                self.on_item("response.reasoning_summary_text.done", "rs", done, out);
                let part =
                    json!({"summary_index": 0, "part": {"type": "summary_text", "text": text}});
                self.on_item("response.reasoning_summary_part.done", "rs", part, out);
            }
            Item::Text { text, logprobs } => {
                let done = json!({
                    "content_index": 0, "text": text, "logprobs": logprobs_value(logprobs),
                });
                self.on_item("response.output_text.done", "msg", done, out);
                let part = json!({"content_index": 0, "part": text_part(text, logprobs)});
                self.on_item("response.content_part.done", "msg", part, out);
            }
            Item::ToolCall { name, arguments, .. } if is_custom(&self.frame.tools, name) => {
                let input = custom_input(arguments);
                let delta = json!({"delta": input});
                self.on_item("response.custom_tool_call_input.delta", "ctc", delta, out);
                let done = json!({"input": input});
                self.on_item("response.custom_tool_call_input.done", "ctc", done, out);
            }
            Item::ToolCall { name, arguments, .. } => {
                let name = told_name(&self.frame.tools, name);
                let done = json!({"name": name, "arguments": arguments});
                self.on_item("response.function_call_arguments.done", "fc", done, out);
            }
        }
        let shown = self.frame.item(&self.meta, &self.ids, self.output.len(), &item, status);
        let done = json!({"output_index": self.output.len(), "item": shown});
        self.emit("response.output_item.done", done, out);
        self.output.push(shown);
    }

    /// An event about the item being written.
    fn on_item(&mut self, name: &str, prefix: &str, members: Value, out: &mut Frames) {
        let index = self.output.len();
        let mut data = json!({"item_id": self.ids.item(prefix, index), "output_index": index});
        merge(&mut data, members);
        self.emit(name, data, out);
    }

    fn emit(&mut self, name: &str, members: Value, out: &mut Frames) {
        let mut data = json!({"type": name, "sequence_number": self.sequence});
        self.sequence += 1;
        merge(&mut data, members);
        out.named(name, &data);
    }
}

/// The body of an answer that is not streamed.
pub(super) fn body(
    request: &Request,
    meta: &ResponseMeta,
    ids: &Ids,
    transcript: &Transcript,
    answer: &Answer<'_>,
) -> Value {
    let frame = Echo::new(request);
    let status = status(answer.finish);
    let last = transcript.items().len();
    let items = transcript.items().iter().enumerate().map(|(index, item)| {
        let cut = index + 1 == last && status != "completed";
        frame.item(meta, ids, index, item, if cut { "incomplete" } else { "completed" })
    });
    let output: Vec<Value> = items.collect();
    frame.object(meta, ids, status, &output, Some(answer))
}

fn status(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::StopString(_) | Finish::ToolUse => "completed",
        Finish::Length => "incomplete",
        Finish::Cancelled => "cancelled",
        Finish::Error(_) => "failed",
    }
}

pub(super) fn text_part(text: &str, logprobs: &[TokenLogprob]) -> Value {
    json!({
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": logprobs_value(logprobs),
    })
}

fn logprobs_value(tokens: &[TokenLogprob]) -> Value {
    tokens.iter().map(chat::token_value).collect()
}

pub(crate) fn usage_value(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.created_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
    })
}

/// Adds the members of one object to another.
pub(super) fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
