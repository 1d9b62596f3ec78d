//! Conversations in the form that Hugging Face templates expect.
//!
//! Message dictionaries with string content, `reasoning_content`, `tool_calls` whose arguments
//! are objects, and role `tool`. Where a template takes less than that, the same text is given
//! in a form it does take, so that nothing said is lost.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use minijinja::value::{Enumerator, Object, ObjectExt, Serde, Value};

use super::parts::Beside;
use crate::ir::{Block, Content, Conversation, Tool};

/// A dictionary whose keys are known: what a template sees of a message. It is a list, which is looked through faster
/// than a map is built.
#[derive(Debug)]
pub(super) struct Dict {
    entries: Vec<(&'static str, Value)>,
    /// What the filter `tojson` made of it; tools are printed by it, and stay the same for a whole session.
    pub(super) json: OnceLock<Value>,
    /// Given to no other; two that have the same number are one object.
    pub(super) number: u64,
    /// How many bytes are worth keeping of what is rendered of it.
    pub(super) room: usize,
    /// What parts of the template rendered of it, if it is an object that comes again.
    pub(super) beside: Option<Beside>,
}

impl Dict {
    pub(super) fn new(entries: Vec<(&'static str, Value)>) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        Self { entries, json: OnceLock::new(), number, room: 0, beside: None }
    }

    /// One that will be given to the template again.
    pub(super) fn kept(entries: Vec<(&'static str, Value)>, room: usize) -> Self {
        Self { room, beside: Some(Beside::default()), ..Self::new(entries) }
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

pub(super) fn dict(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
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

/// Lists of tools whose values are kept.
const KNOWN_MAX: usize = 16;
/// The largest of them, in memory.
const KNOWN_BYTES_MAX: usize = 1 << 20;

/// What lists of tools are to a template, for those that more than one conversation shares.
#[derive(Debug, Default)]
pub(super) struct KnownTools(Mutex<VecDeque<(Arc<Vec<Tool>>, Value)>>);

impl KnownTools {
    /// The `tools` variable: OpenAI's function form, or null.
    pub(super) fn value(&self, conversation: &Conversation, holders: usize) -> Value {
        let tools = &conversation.tools;
        // Most lists that nobody else has are not remembered where bodies are read, and will not come again.
        if Arc::strong_count(tools) <= holders {
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

/// Arguments as an object; text that isn't one stays text.
pub(super) fn arguments_value(arguments: &str) -> Value {
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
