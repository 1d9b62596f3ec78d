//! How far into the prompt a cache breakpoint reaches.
//!
//! Templates decide where blocks land, so positions are found by comparison: the conversation is
//! cut at the breakpoint, rendered again, and the prefix both texts share is what the breakpoint
//! covers. That is exact even where a template renders tools before the system text, or drops
//! old thinking once a new turn begins: only what stays equal can be reused.
//!
//! That costs a rendering each, so two kinds that come with every turn are answered without one: a breakpoint in
//! tools or system text, whose cut rendering is the same on every turn and is remembered by its last character,
//! and one after the very last block, which reaches to the suffix that opens the answer.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use super::{ChatTemplate, RenderOptions, Rendered, RenderedBreakpoint, Text};
use crate::ir::{Block, Content, Conversation, Position, Role, Tool, ToolKind};
use crate::request::Thinking;

/// Heads of conversations that are remembered before all are forgotten.
const HEADS_MAX: usize = 4096;

/// What is known without rendering.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What a template adds to open an answer, by [`Thinking`], where it is the same whatever was said.
    suffixes: [Option<String>; 3],
    /// By everything that a cut rendering depends on: how far the prefix reached.
    heads: Mutex<HashMap<u64, Reach>>,
}

/// How far a cut rendering and the text agreed.
#[derive(Debug, Clone, Copy)]
struct Reach {
    end_bytes: usize,
    /// Of the text up to there.
    sum: u64,
    /// What followed in the cut rendering: a text that goes on like this agrees with it further.
    next: Option<char>,
}

impl Known {
    /// Renders small conversations to see how `template` opens an answer.
    pub(super) fn of(template: &ChatTemplate) -> Self {
        let options = [Thinking::Auto, Thinking::Enabled, Thinking::Disabled];
        Self {
            suffixes: options.map(|thinking| suffix(template, thinking)),
            heads: Mutex::default(),
        }
    }

    /// The reach of a breakpoint after the last block, where the text ends as every prompt does.
    fn end(&self, conversation: &Conversation, at: Position, how: Asked<'_>) -> Option<usize> {
        let Position::Message { message, block } = at else { return None };
        let last = conversation.messages.last()?;
        let there = message + 1 == conversation.messages.len() && block + 1 == last.blocks.len();
        if !there || last.role == Role::Assistant || !how.options.add_generation_prompt {
            return None;
        }
        let suffix = self.suffixes[place(how.options.thinking)].as_ref()?;
        Some(how.text.strip_suffix(suffix.as_str())?.len())
    }

    fn head(&self, key: u64, text: &str) -> Option<usize> {
        let reach = *self.heads.lock().unwrap_or_else(PoisonError::into_inner).get(&key)?;
        let (prefix, rest) = (text.get(..reach.end_bytes)?, text.get(reach.end_bytes..)?);
        let next = rest.chars().next();
        // Where both end there is nothing more to agree on either.
        let parts = next != reach.next || next.is_none();
        (parts && sum(prefix) == reach.sum).then_some(reach.end_bytes)
    }

    fn remember(&self, key: u64, text: &str, cut: &str, end_bytes: usize) {
        let next = cut[end_bytes..].chars().next();
        let reach = Reach { end_bytes, sum: sum(&text[..end_bytes]), next };
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        if heads.len() >= HEADS_MAX {
            heads.clear();
        }
        heads.insert(key, reach);
    }
}

/// A prompt and how it was rendered.
#[derive(Clone, Copy)]
struct Asked<'a> {
    text: &'a str,
    options: RenderOptions,
}

fn place(thinking: Thinking) -> usize {
    match thinking {
        Thinking::Auto => 0,
        Thinking::Enabled => 1,
        Thinking::Disabled => 2,
    }
}

/// What opening an answer adds after a user's and after a tool's message; nothing if that differs.
fn suffix(template: &ChatTemplate, thinking: Thinking) -> Option<String> {
    let mut plain = Conversation::default();
    plain.push(Role::User, vec![Block::text("one")]);
    let mut called = plain.clone();
    let call = Content::ToolCall {
        id: "abcdefghi".to_owned(),
        name: "tool".to_owned(),
        arguments: "{}".to_owned(),
    };
    let result = Content::ToolResult {
        call_id: "abcdefghi".to_owned(),
        blocks: vec![Block::text("two")],
        is_error: false,
    };
    called.push(Role::Assistant, vec![Block::from(call)]);
    called.push(Role::Tool, vec![Block::from(result)]);
    let mut longer = called.clone();
    longer.system.push(Block::text("three"));
    longer.push(Role::Assistant, vec![Block::text("four")]);
    longer.push(Role::User, vec![Block::text("five")]);
    let options = RenderOptions { thinking, ..RenderOptions::default() };
    let mut added = [plain, called, longer].into_iter().map(|conversation| {
        let open = template.render(&conversation, options).ok()?;
        let closed = RenderOptions { add_generation_prompt: false, ..options };
        let closed = template.render(&conversation, closed).ok()?;
        open.strip_prefix(closed.as_str()).map(str::to_owned)
    });
    let first = added.next().flatten()?;
    added.all(|other| other.as_deref() == Some(first.as_str())).then_some(first)
}

/// Names everything that the cut rendering of a breakpoint in tools or system text depends on.
fn head_key(
    conversation: &Conversation,
    at: Position,
    options: RenderOptions,
    hashed: &mut Option<DefaultHasher>,
) -> Option<u64> {
    let (kind, index) = match at {
        Position::Tool { index } => (0, index),
        Position::System { index } => (1, index),
        Position::Message { .. } => return None,
    };
    // The head is long; its hash serves all breakpoints of a prompt.
    let mut hasher = hashed.get_or_insert_with(|| head_hash(conversation)).clone();
    (kind, index, place(options.thinking), options.asker).hash(&mut hasher);
    sentinel(conversation).hash(&mut hasher);
    Some(hasher.finish())
}

fn head_hash(conversation: &Conversation) -> DefaultHasher {
    let mut hasher = DefaultHasher::new();
    for tool in conversation.tools.iter() {
        (&tool.name, &tool.description, &tool.schema, tool.is_callable()).hash(&mut hasher);
    }
    for block in &conversation.system {
        if let Content::Text(text) = &block.content {
            text.hash(&mut hasher);
        }
    }
    (conversation.tools.len(), conversation.system.len()).hash(&mut hasher);
    hasher
}

fn sum(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The breakpoints of `conversation` with their reach in `text`, its rendering. One whose cut
/// conversation the template refuses is left out.
pub(super) fn locate(
    template: &ChatTemplate,
    conversation: &Conversation,
    options: RenderOptions,
    text: &Text,
) -> Vec<RenderedBreakpoint> {
    let breakpoints = conversation.breakpoints();
    if breakpoints.is_empty() {
        return Vec::new();
    }
    let asked = Asked { text, options };
    let mut hashed = None;
    let mut located = Vec::new();
    for breakpoint in breakpoints {
        let at = breakpoint.position;
        let key = head_key(conversation, at, options, &mut hashed);
        let known = template.known.end(conversation, at, asked);
        let known = known.or_else(|| template.known.head(key?, text));
        let Some(end_bytes) = known.or_else(|| compare(template, conversation, at, asked, key))
        else {
            continue;
        };
        located.push(RenderedBreakpoint { position: at, ttl_ms: breakpoint.ttl_ms, end_bytes });
    }
    located
}

/// Where the head of a conversation ends in its rendering. A breakpoint of the client's that lies there was found
/// already; any other is remembered as theirs are.
pub(super) fn head_end(
    template: &ChatTemplate,
    conversation: &Conversation,
    options: RenderOptions,
    rendered: &Rendered,
) -> Option<usize> {
    let last = |len: usize| len.checked_sub(1);
    let at = match last(conversation.system.len()) {
        Some(index) => Position::System { index },
        None => Position::Tool { index: last(conversation.tools.len())? },
    };
    if let Some(found) = rendered.breakpoints.iter().find(|b| b.position == at) {
        return Some(found.end_bytes);
    }
    let key = head_key(conversation, at, options, &mut None);
    let known = key.and_then(|key| template.known.head(key, &rendered.text));
    let asked = Asked { text: &rendered.text, options };
    known.or_else(|| compare(template, conversation, at, asked, key))
}

/// Finds the reach by a rendering of the conversation up to there; `None` if the template refuses that.
fn compare(
    template: &ChatTemplate,
    conversation: &Conversation,
    at: Position,
    Asked { text, options }: Asked<'_>,
    key: Option<u64>,
) -> Option<usize> {
    let options = RenderOptions { add_generation_prompt: false, continue_final: false, ..options };
    let rendered = template.render_cut(&cut(conversation, at), options).ok()?;
    let end_bytes = shared_prefix(text, &rendered);
    if let Some(key) = key {
        template.known.remember(key, text, &rendered, end_bytes);
    }
    Some(end_bytes)
}

/// The conversation up to `position`, with something different after it.
fn cut(conversation: &Conversation, position: Position) -> Conversation {
    let mut cut = head(conversation);
    match position {
        Position::Tool { index } => {
            // The system text stays: where it precedes the tools, it is part of their prefix.
            let tools = Arc::make_mut(&mut cut.tools);
            tools.truncate(index + 1);
            tools.push(sentinel_tool());
            cut.push(Role::User, vec![Block::text(sentinel(conversation))]);
        }
        Position::System { index } => {
            if index + 1 < cut.system.len() {
                let following = first_char(&cut.system[index + 1..]);
                cut.system.truncate(index + 1);
                cut.system.push(Block::text(unlike(following)));
            }
            cut.push(Role::User, vec![Block::text(sentinel(conversation))]);
        }
        Position::Message { message, block } => {
            cut.messages = conversation.messages[..=message].to_vec();
            if let Some(last) = cut.messages.last_mut() {
                Arc::make_mut(last).blocks.truncate(block + 1);
            }
        }
    }
    cut
}

/// Everything of a conversation but its messages.
fn head(conversation: &Conversation) -> Conversation {
    Conversation {
        system: conversation.system.clone(),
        messages: Vec::new(),
        tools: Arc::clone(&conversation.tools),
        tool_choice: conversation.tool_choice.clone(),
        parallel_tool_calls: conversation.parallel_tool_calls,
    }
}

/// A user text that differs from the first message's in its first character.
fn sentinel(conversation: &Conversation) -> String {
    let first = conversation.messages.first().and_then(|message| first_char(&message.blocks));
    unlike(first)
}

fn unlike(first: Option<char>) -> String {
    let other = if first == Some('\u{e000}') { '\u{e001}' } else { '\u{e000}' };
    other.to_string()
}

fn first_char(blocks: &[Block]) -> Option<char> {
    blocks.iter().find_map(|block| match &block.content {
        Content::Text(text) => text.chars().next(),
        _ => None,
    })
}

fn sentinel_tool() -> Tool {
    Tool {
        name: "\u{e000}".to_owned(),
        description: "\u{e000}".to_owned(),
        schema: serde_json::json!({"type": "object", "properties": {}}),
        client_name: None,
        namespace: None,
        kind: ToolKind::Function { strict: false },
        deferred: false,
        cache_control: None,
    }
}

/// Length in bytes of the longest common prefix, at a character boundary.
fn shared_prefix(a: &str, b: &str) -> usize {
    /// Compared at once, which is many times faster than one by one.
    const STEP: usize = 256;
    let steps = a.as_bytes().chunks(STEP).zip(b.as_bytes().chunks(STEP));
    let start = STEP * steps.take_while(|(x, y)| x == y).count();
    let start = start.min(a.len()).min(b.len());
    let rest = a.as_bytes()[start..].iter().zip(&b.as_bytes()[start..]);
    let equal = start + rest.take_while(|(x, y)| x == y).count();
    (0..=equal).rev().find(|end| a.is_char_boundary(*end)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
