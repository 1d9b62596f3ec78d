//! What every object of a Responses answer repeats, and its items.
//!
//! Strict clients compare what they sent with what comes back, so tools, choice and format are repeated as they
//! came. All members that the strict schemas list are there, null where there is nothing to say.

use serde_json::{Map, Value, json};

use super::ids::Ids;
use super::responses::{Answer, merge, text_part, usage_value};
use super::tools::{apart, custom_input, is_custom, told_name};
use super::transcript::Item;
use super::{Finish, ResponseMeta};
use crate::ir::Tool;
use crate::request::{Request, ResponsesEcho};
use crate::seal::seal;

/// What every response object of a request repeats.
pub(super) struct Echo {
    echo: ResponsesEcho,
    members: Map<String, Value>,
    pub(super) tools: Vec<Tool>,
}

impl Echo {
    pub(super) fn new(request: &Request) -> Echo {
        let echo = request.responses.as_deref().cloned().unwrap_or_default();
        let sampling = &request.sampling;
        let format = echo.format.clone().unwrap_or_else(|| json!({"type": "text"}));
        let mut text = json!({"format": format});
        if let Some(verbosity) = &echo.verbosity {
            text["verbosity"] = verbosity.as_str().into();
        }
        let members = json!({
            "model": null,
            "instructions": echo.instructions,
            "previous_response_id": echo.previous_response_id,
            "tools": *echo.tools,
            "tool_choice": echo.tool_choice.clone().unwrap_or_else(|| "auto".into()),
            "parallel_tool_calls": request.conversation.parallel_tool_calls,
            "truncation": if echo.truncation_auto { "auto" } else { "disabled" },
            "text": text,
            "reasoning": echo.reasoning,
            "temperature": sampling.temperature.unwrap_or(1.0),
            "top_p": sampling.top_p.unwrap_or(1.0),
            "presence_penalty": sampling.presence_penalty.unwrap_or(0.0),
            "frequency_penalty": sampling.frequency_penalty.unwrap_or(0.0),
            "top_logprobs": sampling.logprobs.unwrap_or(0),
            "max_output_tokens": sampling.max_tokens,
            "max_tool_calls": echo.max_tool_calls,
            "store": echo.store,
            "background": echo.background,
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
        Echo { echo, members, tools: apart(&request.conversation.tools) }
    }

    pub(super) fn object(
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

    pub(super) fn item(
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
                    value["encrypted_content"] = seal(text, true, meta.sealer.as_ref()).into();
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
                self.call(ids, index, *call, name, arguments, status)
            }
        }
    }

    fn call(
        &self,
        ids: &Ids,
        index: usize,
        call: u32,
        name: &str,
        arguments: &str,
        status: &str,
    ) -> Value {
        let mut value = json!({
            "type": "function_call",
            "id": ids.item("fc", index),
            "call_id": ids.call(call),
            "name": told_name(&self.tools, name),
            "status": status,
        });
        if is_custom(&self.tools, name) {
            let begun = status == "in_progress";
            let input = if begun { String::new() } else { custom_input(arguments) };
            value["type"] = "custom_tool_call".into();
            value["id"] = ids.item("ctc", index).into();
            value["input"] = input.into();
        } else {
            value["arguments"] = arguments.into();
        }
        if let Some(namespace) = self.namespace(name) {
            value["namespace"] = namespace.into();
        }
        value
    }

    /// The namespace a tool was offered under: the client finds its tool by both names.
    fn namespace(&self, name: &str) -> Option<&str> {
        self.tools.iter().find(|tool| tool.name == name)?.namespace.as_deref()
    }
}
