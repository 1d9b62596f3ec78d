//! Messages as a template sees them, made once for each message that turns share.
//!
//! A message's value depends on little beside the message: the shape that the template takes, and the numbers of the
//! calls in it. So it is kept by the message's identity and given to the template again as the same object, which is
//! also how the parts of a template know that they rendered it before. Messages that nobody else holds will not come
//! again and are not kept. What is kept is bounded by bytes (see [`Memory`]).

mod calls;

use std::borrow::Cow;
use std::iter;
use std::sync::Arc;

use minijinja::Value;

use calls::{Calls, Number, written};

use super::hf::{Dict, Shape, arguments_value, dict, joined};
use crate::ir::{Block, Content, Conversation, Message, Role, weight};
#[cfg(test)]
use crate::memory::Generations;
use crate::memory::Memory;

/// Texts outside of messages, such as system prompts, get this share of what may be kept; there are few.
const TEXTS_SHARE: usize = 5;
/// What a message costs beside its texts.
const ENTRY_BYTES: usize = 256;
/// What one entry of the `messages` variable costs beside its texts, and beside what is rendered of it.
const VALUE_BYTES: usize = 600;
/// How much may be kept beside each entry of what is rendered of it, and twice its texts.
const ROOM_BYTES: usize = 1_400;
/// What the number of a call costs.
const NUMBER_BYTES: usize = 64;
/// How much of a text's start and end tells it from most others.
const SKETCH_BYTES: usize = 32;
/// The longest of them.
const TEXT_BYTES_MAX: usize = 256 << 10;

/// One entry of the `messages` variable.
#[derive(Debug)]
struct Said {
    role: &'static str,
    content: Arc<str>,
    /// What else there is: before the content for results of tools, after it for answers.
    more: Vec<(&'static str, Value)>,
    /// Whether it is joined to an entry of its role that precedes it, if the template needs roles to alternate.
    joins: bool,
    value: Value,
    /// What it takes with all that may be kept beside it.
    bytes: usize,
}

impl Said {
    fn new(
        role: &'static str,
        content: Arc<str>,
        more: Vec<(&'static str, Value)>,
        (joins, keeps): (bool, Option<usize>),
    ) -> Arc<Self> {
        let mut entries = Vec::with_capacity(2 + more.len());
        entries.push(("role", Value::from(role)));
        let text = ("content", Value::from(&content));
        if role == "tool" {
            entries.extend(more.iter().cloned());
            entries.push(text);
        } else {
            entries.push(text);
            entries.extend(more.iter().cloned());
        }
        let texts = content.len() + keeps.unwrap_or_default();
        let room = keeps.map_or(0, |_| ROOM_BYTES + 2 * texts);
        let bytes = VALUE_BYTES + texts + room;
        let kept = keeps.is_some();
        let dict = if kept { Dict::kept(entries, room) } else { Dict::new(entries) };
        Arc::new(Self { role, content, more, joins, value: Value::from_object(dict), bytes })
    }
}

/// Entries of one role that become one, put together when all are known: each text is copied once, however many
/// there are.
struct Run {
    first: Arc<Said>,
    more: Vec<Arc<Said>>,
}

impl Run {
    fn joined(self, texts: TextsOf<'_>) -> Arc<Said> {
        let Self { first, more } = self;
        if more.is_empty() {
            return first;
        }
        let all = || iter::once(&first).chain(&more);
        let mut content = String::with_capacity(all().map(|said| said.content.len() + 2).sum());
        for (place, said) in all().enumerate() {
            if place > 0 {
                content.push_str("\n\n");
            }
            content.push_str(&said.content);
        }
        if first.more.is_empty() {
            return texts.said(first.role, &content, first.joins);
        }
        Said::new(first.role, content.into(), first.more.clone(), (first.joins, None))
    }
}

/// What became of a message.
#[derive(Debug)]
struct Entry {
    message: Arc<Message>,
    shape: Shape,
    numbers: Vec<(usize, Option<Box<str>>)>,
    said: Vec<Arc<Said>>,
}

impl Entry {
    fn fits(&self, shape: Shape, numbers: &[Number<'_>]) -> bool {
        self.shape == shape
            && self.numbers.len() == numbers.len()
            && self.numbers.iter().zip(numbers).all(|(a, b)| a.0 == b.0 && a.1.as_deref() == b.1)
    }

    fn bytes(&self) -> usize {
        // The message itself, its values, and what the template's parts make of them: the room of its entries.
        let numbers = self.numbers.iter();
        let numbers = numbers.map(|(_, name)| NUMBER_BYTES + name.as_ref().map_or(0, |n| n.len()));
        ENTRY_BYTES
            + weight(&self.message.blocks)
            + 9 * argument_bytes(&self.message)
            + self.said.iter().map(|said| said.bytes).sum::<usize>()
            + numbers.sum::<usize>()
    }
}

/// How many bytes of arguments a message has; they become values, which take many times as much.
fn argument_bytes(message: &Message) -> usize {
    let bytes = |block: &Block| match &block.content {
        Content::ToolCall { name, arguments, .. } => name.len() + arguments.len(),
        _ => 0,
    };
    message.blocks.iter().map(bytes).sum()
}

/// Where to look for a text's value: much of a text is read only where this is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sketch {
    asker: u64,
    role: &'static str,
    joins: bool,
    length: usize,
    start: [u8; SKETCH_BYTES],
    end: [u8; SKETCH_BYTES],
}

impl Sketch {
    fn of(asker: u64, role: &'static str, joins: bool, text: &[u8]) -> Self {
        let take = text.len().min(SKETCH_BYTES);
        let (mut start, mut end) = ([0; SKETCH_BYTES], [0; SKETCH_BYTES]);
        start[..take].copy_from_slice(&text[..take]);
        end[..take].copy_from_slice(&text[text.len() - take..]);
        Self { asker, role, joins, length: text.len(), start, end }
    }
}

/// The values of texts that are no messages of their own: system prompts, and messages joined to others. Of two texts
/// with one sketch the later is kept.
type Texts = Memory<Sketch, Arc<Said>>;

/// The texts of one asker.
#[derive(Clone, Copy)]
struct TextsOf<'t> {
    texts: &'t Texts,
    asker: u64,
}

impl TextsOf<'_> {
    fn said(self, role: &'static str, content: &str, joins: bool) -> Arc<Said> {
        if content.len() > TEXT_BYTES_MAX {
            return Said::new(role, content.into(), Vec::new(), (joins, None));
        }
        let sketch = Sketch::of(self.asker, role, joins, content.as_bytes());
        self.texts.with(|known| {
            let found = known.find(&sketch, |found| *found.content == *content);
            found.map(Arc::clone).unwrap_or_else(|| {
                let said = Said::new(role, content.into(), Vec::new(), (joins, Some(0)));
                known.insert(sketch, Arc::clone(&said), said.bytes);
                said
            })
        })
    }
}

/// Whose prompt is rendered of what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) asker: u64,
    /// How often a message is held that is kept nowhere: once by whoever made it, and again by a conversation that was
    /// cut from that one.
    pub(super) holders: usize,
}

/// The values of messages that came before.
#[derive(Debug)]
pub(super) struct KnownMessages {
    messages: Memory<usize, Arc<Entry>>,
    texts: Texts,
}

impl KnownMessages {
    /// Room for so many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        let texts = bytes_max / TEXTS_SHARE;
        Self { messages: Memory::new(bytes_max - texts), texts: Memory::new(texts) }
    }

    /// The `messages` variable, item by item.
    pub(super) fn values(
        &self,
        conversation: &Conversation,
        shape: Shape,
        asked: Asked,
    ) -> Vec<Value> {
        let mut known = self.known(conversation);
        let mut made = Vec::new();
        let out = self.said(conversation, (shape, asked), &mut known, &mut made);
        if !made.is_empty() {
            // Weighed here, where nobody waits for it.
            let made: Vec<_> = made.into_iter().map(|entry| (entry.bytes(), entry)).collect();
            self.messages.with(|messages| {
                for (bytes, entry) in made {
                    messages.insert(Arc::as_ptr(&entry.message).addr(), entry, bytes);
                }
            });
        }
        out.into_iter().map(|said| said.value.clone()).collect()
    }

    #[cfg(test)]
    pub(super) fn forget(&self) {
        self.messages.with(Generations::clear);
        self.texts.with(Generations::clear);
    }

    /// What is known of each message.
    fn known(&self, conversation: &Conversation) -> Vec<Option<Arc<Entry>>> {
        self.messages.with(|known| {
            let find = |message: &Arc<Message>| {
                known.find(&Arc::as_ptr(message).addr(), |_| true).map(Arc::clone)
            };
            conversation.messages.iter().map(find).collect()
        })
    }

    fn said(
        &self,
        conversation: &Conversation,
        (shape, asked): (Shape, Asked),
        known: &mut [Option<Arc<Entry>>],
        made: &mut Vec<Arc<Entry>>,
    ) -> Vec<Arc<Said>> {
        let Asked { asker, holders } = asked;
        let texts = TextsOf { texts: &self.texts, asker };
        let mut out: Vec<Run> = Vec::with_capacity(conversation.messages.len() + 1);
        let system = joined(&conversation.system, "\n");
        let mut pending = None;
        if !system.is_empty() {
            if shape.system {
                push(&mut out, texts.said("system", &system, false), shape);
            } else {
                pending = Some(texts.said("user", &system, true));
            }
        }
        let mut calls = Calls::default();
        let mut numbers = Vec::new();
        for (message, known) in conversation.messages.iter().zip(known) {
            numbers.clear();
            calls.number(message, shape, &mut numbers);
            let entry = match known.take().filter(|entry| entry.fits(shape, &numbers)) {
                Some(entry) => entry,
                None => {
                    // A message that is kept somewhere will come again.
                    let keeps = Arc::strong_count(message) > holders;
                    let entry = Arc::new(entry(message, shape, &numbers, keeps));
                    if keeps {
                        made.push(Arc::clone(&entry));
                    }
                    entry
                }
            };
            for said in &entry.said {
                let takes_system = said.role == "user" && message.role != Role::Tool;
                let before = if takes_system { pending.take() } else { None };
                match before {
                    Some(system) => {
                        push(&mut out, system, shape);
                        // The two are one, whatever the template takes.
                        out.last_mut().expect("one was pushed").more.push(Arc::clone(said));
                    }
                    None => push(&mut out, Arc::clone(said), shape),
                }
            }
        }
        if let Some(system) = pending {
            push(&mut out, system, shape);
        }
        out.into_iter().map(|run| run.joined(texts)).collect()
    }
}

/// Appends an entry, joining it to the last one if the template needs roles to alternate.
fn push(out: &mut Vec<Run>, said: Arc<Said>, shape: Shape) {
    if !shape.repeated_role
        && said.joins
        && let Some(last) = out.last_mut()
        && last.first.role == said.role
    {
        last.more.push(said);
        return;
    }
    out.push(Run { first: said, more: Vec::new() });
}

fn entry(message: &Arc<Message>, shape: Shape, numbers: &[Number<'_>], keeps: bool) -> Entry {
    // What entries have that is no content of theirs.
    let others = keeps.then(|| argument_bytes(message));
    let keeps = keeps.then_some(0);
    let said = match message.role {
        Role::System if shape.late_system => {
            let content = joined(&message.blocks, "\n");
            vec![Said::new("system", (&*content).into(), Vec::new(), (false, keeps))]
        }
        Role::System | Role::User => {
            let content = joined(&message.blocks, "\n");
            vec![Said::new("user", (&*content).into(), Vec::new(), (true, keeps))]
        }
        Role::Assistant => vec![answer(message, shape, numbers, others)],
        Role::Tool => results(message, shape, numbers, keeps),
    };
    let numbers = numbers.iter().map(|(number, name)| (*number, name.map(Box::from))).collect();
    Entry { message: Arc::clone(message), shape, numbers, said }
}

fn answer(
    message: &Message,
    shape: Shape,
    numbers: &[Number<'_>],
    others: Option<usize>,
) -> Arc<Said> {
    // Pieces of one answer were cut from one text, so nothing goes between them.
    let mut content = joined(&message.blocks, "");
    let mut reasoning = String::new();
    let mut calls = Vec::new();
    let mut numbers = numbers.iter();
    for block in &message.blocks {
        match &block.content {
            Content::Thinking { text, .. } => reasoning.push_str(text),
            Content::ToolCall { name, arguments, .. } if shape.tool_calls => {
                let id = numbers.next().map_or_else(String::new, |(number, _)| written(*number));
                let function =
                    dict([("name", Value::from(name)), ("arguments", arguments_value(arguments))]);
                let entries =
                    [("type", Value::from("function")), ("id", id.into()), ("function", function)];
                calls.push(dict(entries));
            }
            Content::ToolCall { name, arguments, .. } => {
                let name = serde_json::Value::from(name.as_str());
                content.to_mut().push_str(&format!(
                    "<tool_call>{{\"name\": {name}, \"arguments\": {arguments}}}</tool_call>"
                ));
            }
            Content::Text(_) | Content::ToolResult { .. } => {}
        }
    }
    let joins = calls.is_empty() && reasoning.is_empty();
    let keeps = others.map(|others| others + reasoning.len());
    let mut more = Vec::new();
    if !reasoning.is_empty() {
        more.push(("reasoning_content", Value::from(reasoning)));
    }
    if !calls.is_empty() {
        more.push(("tool_calls", Value::from(calls)));
    }
    Said::new("assistant", content.into(), more, (joins, keeps))
}

fn results(
    message: &Message,
    shape: Shape,
    numbers: &[Number<'_>],
    keeps: Option<usize>,
) -> Vec<Arc<Said>> {
    let mut numbers = numbers.iter();
    let mut said = Vec::new();
    for block in &message.blocks {
        let Content::ToolResult { blocks, .. } = &block.content else { continue };
        let text: Cow<'_, str> = joined(blocks, "\n");
        if !shape.tool_role {
            let text = format!("<tool_response>{text}</tool_response>");
            said.push(Said::new("user", text.into(), Vec::new(), (true, keeps)));
            continue;
        }
        let mut more = Vec::new();
        if let Some((number, name)) = numbers.next() {
            if let Some(name) = name {
                more.push(("name", Value::from(*name)));
            }
            more.push(("tool_call_id", Value::from(written(*number))));
        }
        said.push(Said::new("tool", (&*text).into(), more, (false, keeps)));
    }
    said
}

#[cfg(test)]
mod tests;
