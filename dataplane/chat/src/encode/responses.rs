//! OpenAI Responses: events and the whole object.
//!
//! Every event has a sequence number and its `event:` line, and every response object has all
//! members that the strict schemas list, null where there is nothing to say. Reasoning is an item
//! with a summary, plus opaque content if the client asked for it. Failures end in
//! `response.failed`, never in an `error` event, which Codex ignores.

use serde_json::{Map, Value, json};

use super::ids::Ids;
use super::transcript::{Item, Transcript};
use super::{Finish, Frames, ResponseMeta, Usage, chat, note_pins};
use crate::ir::{Tool, ToolChoice, ToolKind};
use crate::output::{OutputEvent, TokenLogprob};
use crate::request::{OutputFormat, Request, ResponsesEcho};
use crate::seal::seal;

pub(super) struct ResponsesStream {
    pub(super) meta: ResponseMeta,
    ids: Ids,
    frame: Echo,
    sequence: u64,
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
        ResponsesStream { meta, ids, frame, sequence: 0, open: None, output: Vec::new() }
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
            OutputEvent::ToolCallArguments(delta) => {
                if let Some(Item::ToolCall { arguments, .. }) = &mut self.open {
                    arguments.push_str(delta);
                    self.on_item(
                        "response.function_call_arguments.delta",
                        "fc",
                        json!({"delta": delta}),
                        out,
                    );
                }
            }
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
        let status = status(finish);
        self.close(if status == "completed" { "completed" } else { "incomplete" }, out);
        let answer = Answer { finish, usage, completed_unix_s };
        let mut response =
            self.frame.object(&self.meta, &self.ids, status, &self.output, Some(&answer));
        note_pins(&mut response, &self.meta.pins);
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
            Item::ToolCall { name, arguments, .. } => {
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

/// What every response object of a request repeats.
struct Echo {
    echo: ResponsesEcho,
    members: Map<String, Value>,
    tools: Vec<Tool>,
}

impl Echo {
    fn new(request: &Request) -> Echo {
        let echo = request.responses.as_deref().cloned().unwrap_or_default();
        let sampling = &request.sampling;
        let text_format = match &request.output_format {
            OutputFormat::Text => json!({"type": "text"}),
            OutputFormat::JsonObject => json!({"type": "json_object"}),
            OutputFormat::JsonSchema { name, schema, strict } => json!({
                "type": "json_schema", "name": name, "schema": schema,
                "description": null, "strict": strict,
            }),
            OutputFormat::Grammar(_) => json!({"type": "text"}),
        };
        let mut text = json!({"format": text_format});
        if let Some(verbosity) = &echo.verbosity {
            text["verbosity"] = verbosity.as_str().into();
        }
        let members = json!({
            "model": null,
            "instructions": echo.instructions,
            "previous_response_id": echo.previous_response_id,
            "tools": request.conversation.tools.iter().map(tool_value).collect::<Vec<_>>(),
            "tool_choice": choice_value(&request.conversation.tool_choice),
            "parallel_tool_calls": request.conversation.parallel_tool_calls,
            "truncation": if echo.truncation_auto { "auto" } else { "disabled" },
            "text": text,
            "reasoning": {"effort": echo.reasoning_effort, "summary": echo.reasoning_summary},
            "temperature": sampling.temperature.unwrap_or(1.0),
            "top_p": sampling.top_p.unwrap_or(1.0),
            "presence_penalty": sampling.presence_penalty.unwrap_or(0.0),
            "frequency_penalty": sampling.frequency_penalty.unwrap_or(0.0),
            "top_logprobs": sampling.logprobs.unwrap_or(0),
            "max_output_tokens": sampling.max_tokens,
            "max_tool_calls": echo.max_tool_calls,
            "store": echo.store,
            "background": false,
            "service_tier": "default",
            "metadata": echo.metadata,
            "user": echo.user,
            "safety_identifier": echo.safety_identifier,
            "prompt_cache_key": request.hints.prompt_cache_key,
        });
        let members = match members {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        Echo { echo, members, tools: request.conversation.tools.clone() }
    }

    fn object(
        &self,
        meta: &ResponseMeta,
        ids: &Ids,
        status: &str,
        output: &[Value],
        answer: Option<&Answer<'_>>,
    ) -> Value {
        let finish = answer.map(|answer| answer.finish);
        let error = match finish {
            Some(Finish::Error(error)) => {
                let (code, message) = error.responses_failure();
                json!({"code": code, "message": message})
            }
            _ => Value::Null,
        };
        let incomplete = match finish {
            Some(Finish::Length) => json!({"reason": "max_output_tokens"}),
            _ => Value::Null,
        };
        let completed_at = answer.filter(|_| status == "completed").map(|a| a.completed_unix_s);
        let mut object = json!({
            "id": ids.response(),
            "object": "response",
            "created_at": meta.created_unix_s,
            "completed_at": completed_at,
            "status": status,
            "error": error,
            "incomplete_details": incomplete,
            "output": output,
            "usage": answer.map(|answer| usage_value(answer.usage)),
        });
        merge(&mut object, Value::Object(self.members.clone()));
        object["model"] = meta.model.as_str().into();
        object
    }

    fn item(
        &self,
        meta: &ResponseMeta,
        ids: &Ids,
        index: usize,
        item: &Item,
        status: &str,
    ) -> Value {
        let begun = status == "in_progress";
        match item {
            Item::Thinking(text) => {
                let summary = json!([{"type": "summary_text", "text": text}]);
                let mut value = json!({
                    "type": "reasoning",
                    "id": ids.item("rs", index),
                    "summary": if begun { json!([]) } else { summary },
                });
                if self.echo.include_encrypted_reasoning && !begun {
                    value["encrypted_content"] =
                        seal(text, true, meta.thinking_mac.as_ref()).into();
                }
                value
            }
            Item::Text { text, logprobs } => {
                let part = text_part(text, logprobs);
                json!({
                    "type": "message",
                    "id": ids.item("msg", index),
                    "role": "assistant",
                    "status": status,
                    "content": if begun { json!([]) } else { json!([part]) },
                })
            }
            Item::ToolCall { index: call, name, arguments } => {
                let mut value = json!({
                    "type": "function_call",
                    "id": ids.item("fc", index),
                    "call_id": ids.call(*call),
                    "name": name,
                    "arguments": arguments,
                    "status": status,
                });
                if let Some(namespace) = self.namespace(name) {
                    value["namespace"] = namespace.into();
                }
                value
            }
        }
    }

    /// The namespace a tool was offered under: the client finds its tool by both names.
    fn namespace(&self, name: &str) -> Option<&str> {
        self.tools.iter().find(|tool| tool.name == name)?.namespace.as_deref()
    }
}

fn text_part(text: &str, logprobs: &[TokenLogprob]) -> Value {
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

fn tool_value(tool: &Tool) -> Value {
    json!({
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.schema,
        "strict": matches!(tool.kind, ToolKind::Function { strict: true }),
    })
}

fn choice_value(choice: &ToolChoice) -> Value {
    match choice {
        ToolChoice::Auto => "auto".into(),
        ToolChoice::None => "none".into(),
        ToolChoice::Required => "required".into(),
        ToolChoice::Named(name) => json!({"type": "function", "name": name}),
        ToolChoice::Allowed { names, required } => {
            let one = |name: &String| json!({"type": "function", "name": name});
            json!({
                "type": "allowed_tools",
                "mode": if *required { "required" } else { "auto" },
                "tools": names.iter().map(one).collect::<Vec<_>>(),
            })
        }
    }
}

fn usage_value(usage: &Usage) -> Value {
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
fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
