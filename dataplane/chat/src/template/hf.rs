//! Conversations in the form that Hugging Face templates expect.
//!
//! Message dictionaries with string content, `reasoning_content`, `tool_calls` whose arguments
//! are objects, and role `tool`. Where a template takes less than that, the same text is given
//! in a form it does take, so that nothing said is lost.

use serde_json::{Map, Value, json};
use std::collections::HashMap;

use crate::ir::{Block, Content, Conversation, Message, Role};

/// What a template takes. Found by probing; see the parent module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// A system message at the start.
    pub(super) system: bool,
    /// A system message between turns.
    pub(super) late_system: bool,
    /// Role `tool`.
    pub(super) tool_role: bool,
    /// `tool_calls` on assistant messages.
    pub(super) tool_calls: bool,
    /// Two messages of one role in a row.
    pub(super) repeated_role: bool,
}

impl Shape {
    pub(super) const FULL: Shape = Shape {
        system: true,
        late_system: true,
        tool_role: true,
        tool_calls: true,
        repeated_role: true,
    };
}

/// The `messages` variable.
pub(super) fn messages(conversation: &Conversation, shape: Shape) -> Value {
    let mut out = Vec::with_capacity(conversation.messages.len() + 1);
    let mut pending_system = String::new();
    let system = joined(&conversation.system, "\n");
    if !system.is_empty() {
        if shape.system {
            out.push(json!({"role": "system", "content": system}));
        } else {
            pending_system = system;
        }
    }
    // Results say only which call they answer; templates want the tool's name too.
    let mut called: HashMap<&str, &str> = HashMap::new();
    for message in &conversation.messages {
        match message.role {
            Role::System if shape.late_system => {
                out.push(json!({"role": "system", "content": joined(&message.blocks, "\n")}));
            }
            Role::System | Role::User => {
                let mut text = joined(&message.blocks, "\n");
                if !pending_system.is_empty() {
                    text = format!("{}\n\n{text}", std::mem::take(&mut pending_system));
                }
                push_user(&mut out, text, shape);
            }
            Role::Assistant => {
                called.extend(calls(message));
                push_assistant(&mut out, message, shape);
            }
            Role::Tool => push_results(&mut out, message, &called, shape),
        }
    }
    if !pending_system.is_empty() {
        push_user(&mut out, pending_system, shape);
    }
    Value::Array(out)
}

/// The `tools` variable: OpenAI's function form, or null.
pub(super) fn tools(conversation: &Conversation) -> Value {
    if conversation.callable().next().is_none() {
        return Value::Null;
    }
    let tools = conversation.callable().map(|tool| {
        json!({"type": "function", "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.schema,
        }})
    });
    tools.collect()
}

fn push_user(out: &mut Vec<Value>, text: String, shape: Shape) {
    push_text(out, "user", text, shape);
}

/// Appends a plain message, joining it to the last one if the template needs roles to alternate.
fn push_text(out: &mut Vec<Value>, role: &str, text: String, shape: Shape) {
    if !shape.repeated_role
        && let Some(Value::Object(last)) = out.last_mut()
        && last.get("role").and_then(Value::as_str) == Some(role)
        && let Some(Value::String(content)) = last.get_mut("content")
    {
        content.push_str("\n\n");
        content.push_str(&text);
        return;
    }
    out.push(json!({"role": role, "content": text}));
}

fn push_assistant(out: &mut Vec<Value>, message: &Message, shape: Shape) {
    // Pieces of one answer were cut from one text, so nothing goes between them.
    let mut content = joined(&message.blocks, "");
    let mut dict = Map::new();
    dict.insert("role".to_owned(), "assistant".into());
    let mut reasoning = String::new();
    let mut calls = Vec::new();
    for block in &message.blocks {
        match &block.content {
            Content::Thinking { text, .. } => reasoning.push_str(text),
            Content::ToolCall { id, name, arguments } if shape.tool_calls => {
                calls.push(json!({"type": "function", "id": id, "function": {
                    "name": name,
                    "arguments": arguments_value(arguments),
                }}));
            }
            Content::ToolCall { name, arguments, .. } => {
                let name = Value::from(name.as_str());
                content.push_str(&format!(
                    "<tool_call>{{\"name\": {name}, \"arguments\": {arguments}}}</tool_call>"
                ));
            }
            Content::Text(_) | Content::ToolResult { .. } => {}
        }
    }
    if calls.is_empty() && reasoning.is_empty() && !shape.repeated_role {
        push_text(out, "assistant", content, shape);
        return;
    }
    dict.insert("content".to_owned(), content.into());
    if !reasoning.is_empty() {
        dict.insert("reasoning_content".to_owned(), reasoning.into());
    }
    if !calls.is_empty() {
        dict.insert("tool_calls".to_owned(), calls.into());
    }
    out.push(Value::Object(dict));
}

fn push_results(
    out: &mut Vec<Value>,
    message: &Message,
    called: &HashMap<&str, &str>,
    shape: Shape,
) {
    for block in &message.blocks {
        let Content::ToolResult { call_id, blocks, .. } = &block.content else { continue };
        let text = joined(blocks, "\n");
        if !shape.tool_role {
            push_user(out, format!("<tool_response>{text}</tool_response>"), shape);
            continue;
        }
        let mut dict = Map::new();
        dict.insert("role".to_owned(), "tool".into());
        if let Some(name) = called.get(call_id.as_str()) {
            dict.insert("name".to_owned(), (*name).into());
        }
        dict.insert("tool_call_id".to_owned(), call_id.as_str().into());
        dict.insert("content".to_owned(), text.into());
        out.push(Value::Object(dict));
    }
}

/// The calls of a message: id and tool name.
fn calls(message: &Message) -> impl Iterator<Item = (&str, &str)> {
    message.blocks.iter().filter_map(|block| match &block.content {
        Content::ToolCall { id, name, .. } => Some((id.as_str(), name.as_str())),
        _ => None,
    })
}

/// Arguments as an object; text that isn't one stays text.
fn arguments_value(arguments: &str) -> Value {
    match serde_json::from_str::<Value>(arguments) {
        Ok(value) if value.is_object() => value,
        _ => Value::from(arguments),
    }
}

/// The text blocks among `blocks`, with `separator` between them.
pub(super) fn joined(blocks: &[Block], separator: &str) -> String {
    let mut out = String::new();
    let mut first = true;
    for block in blocks {
        let Content::Text(text) = &block.content else { continue };
        if !first {
            out.push_str(separator);
        }
        out.push_str(text);
        first = false;
    }
    out
}

/// Cuts a prompt right after the text of its last assistant message, leaving the turn open.
pub(super) fn cut_after_final(mut text: String, conversation: &Conversation) -> String {
    let Some(last) = conversation.messages.last() else { return text };
    let content = joined(&last.blocks, "");
    // Templates trim what they print, so the text is looked for without its outer whitespace.
    let wanted = content.trim();
    if let Some(start) = text.rfind(wanted).filter(|_| !wanted.is_empty()) {
        text.truncate(start + wanted.len());
    }
    text
}
