//! Conversations in the form that Hugging Face templates expect.
//!
//! Message dictionaries with string content, `reasoning_content`, `tool_calls` whose arguments
//! are objects, and role `tool`. Where a template takes less than that, the same text is given
//! in a form it does take, so that nothing said is lost.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use minijinja::value::{Enumerator, Object, ObjectExt, Serde, Value};

use crate::ir::{Block, Content, Conversation, Message, Role, Tool};

/// A dictionary whose keys are known: what a template sees of a message. It is made once a message and turn, so it is
/// a list, which is looked through faster than a map is built.
#[derive(Debug)]
pub(super) struct Dict {
    entries: Vec<(&'static str, Value)>,
    /// What the filter `tojson` made of it; tools are printed by it, and stay the same for a whole session.
    pub(super) json: OnceLock<Value>,
}

impl Dict {
    pub(super) fn new(entries: Vec<(&'static str, Value)>) -> Self {
        Self { entries, json: OnceLock::new() }
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.entries.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|dict| {
            Box::new(dict.entries.iter().map(|(name, _)| Value::from(*name)))
        })
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.entries.len())
    }
}

fn dict(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    Value::from_object(Dict::new(entries.into_iter().collect()))
}

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

/// A message on its way to the template.
struct Said<'c> {
    role: &'static str,
    content: Cow<'c, str>,
    /// What else there is: before the content for results of tools, after it for answers.
    more: Vec<(&'static str, Value)>,
}

impl Said<'_> {
    fn value(self) -> Value {
        let mut entries = Vec::with_capacity(2 + self.more.len());
        entries.push(("role", Value::from(self.role)));
        let content = ("content", Value::from(&*self.content));
        if self.role == "tool" {
            entries.extend(self.more);
            entries.push(content);
        } else {
            entries.push(content);
            entries.extend(self.more);
        }
        Value::from_object(Dict::new(entries))
    }
}

/// The `messages` variable.
pub(super) fn messages(conversation: &Conversation, shape: Shape) -> Value {
    let mut out = Vec::with_capacity(conversation.messages.len() + 1);
    let mut pending_system = Cow::default();
    let system = joined(&conversation.system, "\n");
    if !system.is_empty() {
        if shape.system {
            out.push(Said { role: "system", content: system, more: Vec::new() });
        } else {
            pending_system = system;
        }
    }
    let mut calls = Calls::default();
    for message in &conversation.messages {
        match message.role {
            Role::System if shape.late_system => {
                let content = joined(&message.blocks, "\n");
                out.push(Said { role: "system", content, more: Vec::new() });
            }
            Role::System | Role::User => {
                let mut text = joined(&message.blocks, "\n");
                if !pending_system.is_empty() {
                    text = format!("{}\n\n{text}", std::mem::take(&mut pending_system)).into();
                }
                push_text(&mut out, "user", text, shape);
            }
            Role::Assistant => push_assistant(&mut out, message, &mut calls, shape),
            Role::Tool => push_results(&mut out, message, &mut calls, shape),
        }
    }
    if !pending_system.is_empty() {
        push_text(&mut out, "user", pending_system, shape);
    }
    out.into_iter().map(Said::value).collect()
}

/// Lists of tools whose values are kept.
const KNOWN_MAX: usize = 16;
/// The largest of them, in memory.
const KNOWN_BYTES_MAX: usize = 1 << 20;

/// What lists of tools are to a template, for those that more than one conversation shares.
#[derive(Debug, Default)]
pub(super) struct KnownTools(Mutex<VecDeque<(Arc<Vec<Tool>>, Value)>>);

impl KnownTools {
    /// The `tools` variable: OpenAI's function form, or null.
    pub(super) fn value(&self, conversation: &Conversation) -> Value {
        let tools = &conversation.tools;
        // Most lists that nobody else has are not remembered where bodies are read, and will not come again.
        if Arc::strong_count(tools) < 2 {
            return tools_value(conversation);
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = known.iter().position(|(list, _)| Arc::ptr_eq(list, tools))
            && let Some(found) = known.remove(at)
        {
            let value = found.1.clone();
            known.push_front(found);
            return value;
        }
        let value = tools_value(conversation);
        if tools.iter().map(Tool::bytes).sum::<usize>() <= KNOWN_BYTES_MAX {
            known.truncate(KNOWN_MAX - 1);
            known.push_front((Arc::clone(tools), value.clone()));
        }
        value
    }
}

fn tools_value(conversation: &Conversation) -> Value {
    if conversation.callable().next().is_none() {
        return Value::from(());
    }
    let tools = conversation.callable().map(|tool| {
        let function = dict([
            ("name", Value::from(&tool.name)),
            ("description", Value::from(&tool.description)),
            ("parameters", Value::from(Serde(&tool.schema))),
        ]);
        dict([("type", Value::from("function")), ("function", function)])
    });
    tools.collect()
}

/// The calls of a conversation, under names of our own.
///
/// Ids differ between two runs of one harness, so a template that prints them would end the prefix which the runs
/// share. They are numbered instead, in the nine letters and digits that the strictest templates ask for.
#[derive(Default)]
struct Calls<'c> {
    /// By the client's id: the number, and the tool's name if a call was seen.
    known: HashMap<&'c str, (usize, Option<&'c str>)>,
    count: usize,
}

impl<'c> Calls<'c> {
    /// The number of a new call; clients that count from 0 in each turn give one id to many calls.
    fn made(&mut self, id: &'c str, name: &'c str) -> String {
        self.count += 1;
        self.known.insert(id, (self.count, Some(name)));
        Self::written(self.count)
    }

    /// The number of the call that a result answers, and the tool's name, which templates want and results lack.
    fn answered(&mut self, id: &'c str) -> (String, Option<&'c str>) {
        let next = self.count + 1;
        let (number, name) = *self.known.entry(id).or_insert((next, None));
        self.count = self.count.max(number);
        (Self::written(number), name)
    }

    fn written(number: usize) -> String {
        format!("call{number:05}")
    }
}

/// Appends a plain message, joining it to the last one if the template needs roles to alternate.
fn push_text<'c>(out: &mut Vec<Said<'c>>, role: &'static str, text: Cow<'c, str>, shape: Shape) {
    if !shape.repeated_role
        && let Some(last) = out.last_mut()
        && last.role == role
    {
        let content = last.content.to_mut();
        content.push_str("\n\n");
        content.push_str(&text);
        return;
    }
    out.push(Said { role, content: text, more: Vec::new() });
}

fn push_assistant<'c>(
    out: &mut Vec<Said<'c>>,
    message: &'c Message,
    known: &mut Calls<'c>,
    shape: Shape,
) {
    // Pieces of one answer were cut from one text, so nothing goes between them.
    let mut content = joined(&message.blocks, "");
    let mut reasoning = String::new();
    let mut calls = Vec::new();
    for block in &message.blocks {
        match &block.content {
            Content::Thinking { text, .. } => reasoning.push_str(text),
            Content::ToolCall { id, name, arguments } if shape.tool_calls => {
                let id = known.made(id, name);
                let function =
                    dict([("name", Value::from(name)), ("arguments", arguments_value(arguments))]);
                let entries =
                    [("type", Value::from("function")), ("id", id.into()), ("function", function)];
                calls.push(dict(entries));
            }
            Content::ToolCall { id, name, arguments } => {
                known.made(id, name);
                let name = serde_json::Value::from(name.as_str());
                content.to_mut().push_str(&format!(
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
    let mut more = Vec::new();
    if !reasoning.is_empty() {
        more.push(("reasoning_content", Value::from(reasoning)));
    }
    if !calls.is_empty() {
        more.push(("tool_calls", Value::from(calls)));
    }
    out.push(Said { role: "assistant", content, more });
}

fn push_results<'c>(
    out: &mut Vec<Said<'c>>,
    message: &'c Message,
    known: &mut Calls<'c>,
    shape: Shape,
) {
    for block in &message.blocks {
        let Content::ToolResult { call_id, blocks, .. } = &block.content else { continue };
        let text = joined(blocks, "\n");
        if !shape.tool_role {
            let text = format!("<tool_response>{text}</tool_response>");
            push_text(out, "user", text.into(), shape);
            continue;
        }
        let mut more = Vec::new();
        let (id, name) = known.answered(call_id);
        if let Some(name) = name {
            more.push(("name", Value::from(name)));
        }
        more.push(("tool_call_id", Value::from(id)));
        out.push(Said { role: "tool", content: text, more });
    }
}

/// Arguments as an object; text that isn't one stays text.
fn arguments_value(arguments: &str) -> Value {
    match crate::plain_json::from_str(arguments) {
        Ok(value) if value.is_object() => Value::from(Serde(value)),
        _ => Value::from(arguments),
    }
}

/// The text blocks among `blocks`, with `separator` between them.
pub(super) fn joined<'b>(blocks: &'b [Block], separator: &str) -> Cow<'b, str> {
    let mut out: Option<Cow<'b, str>> = None;
    for block in blocks {
        let Content::Text(text) = &block.content else { continue };
        match &mut out {
            None => out = Some(Cow::Borrowed(text)),
            Some(before) => {
                let before = before.to_mut();
                before.push_str(separator);
                before.push_str(text);
            }
        }
    }
    out.unwrap_or_default()
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
