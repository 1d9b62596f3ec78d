//! What a request or an answer shows about the session behind it.
//!
//! All of it is guessing from forms: harnesses change them without notice, and anybody may send anything. So each sign
//! is cheap to read, bounded in the text that it looks at, and a wrong guess costs a cache miss.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use serde_json::Value;

use crate::encode::{Item, Transcript};
use crate::ir::{Block, Content, Conversation, Message, Role};
use crate::limits::{ID_BYTES_MAX, RESULTS_SEARCHED_BYTES_MAX};
use crate::plain_json;
use crate::request::Request;
use crate::session::{Harness, RequestKind};

/// How much of a text tells it from another.
const TELLING_BYTES: usize = 4 << 10;
/// Harnesses put ids at the head or at the end of a result.
const RESULT_ENDS_BYTES: usize = 4 << 10;
/// Texts of one turn that are searched for ids.
const TEXTS_MAX: usize = 256;
/// Longest arguments of a call that are looked at.
const ARGUMENTS_BYTES_MAX: usize = 4 << 10;

/// What a request is to its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A turn of its conversation.
    Turn,
    /// The making of a summary.
    Compaction,
    /// Something beside it.
    Side,
}

/// Tells a turn from a side request. Agents offer tools in every turn; a request of theirs without any writes a title
/// or a summary.
pub(super) fn part_of(request: &Request, offers_tools: bool) -> Part {
    match request.session.kind {
        RequestKind::Compaction => return Part::Compaction,
        RequestKind::Side => return Part::Side,
        RequestKind::Turn if request.sampling.max_tokens == Some(0) => return Part::Side,
        RequestKind::Turn => {}
    }
    if request.conversation.callable().next().is_some() {
        return Part::Turn;
    }
    let beside = match request.session.harness {
        Harness::OpenCode => true,
        // It can be run without tools, but never without breakpoints.
        Harness::ClaudeCode => request.conversation.breakpoints().is_empty(),
        Harness::Codex | Harness::Unknown => offers_tools,
    };
    if beside { Part::Side } else { Part::Turn }
}

/// Enough of a history to see that the next one does not go on from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) messages: usize,
    pub(super) first: u64,
}

impl Mark {
    pub(super) fn of(conversation: &Conversation) -> Option<Mark> {
        let first = conversation.messages.first()?;
        Some(Mark { messages: conversation.messages.len(), first: digest([&**first]) })
    }
}

/// What tells a conversation from others: its first message and the first answer to it. `None` before there is one.
pub(super) fn head(conversation: &Conversation) -> Option<u64> {
    let messages = &conversation.messages;
    let answer = messages.iter().find(|message| message.role == Role::Assistant)?;
    Some(digest([&**messages.first()?, &**answer]))
}

/// The same for the same messages on every machine of this build; nothing outside this process sees it.
fn digest<'m>(messages: impl IntoIterator<Item = &'m Message>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for message in messages {
        (message.role as u8).hash(&mut hasher);
        let mut left = TELLING_BYTES;
        for block in &message.blocks {
            let text = match &block.content {
                Content::Text(text) => text,
                Content::ToolCall { arguments, .. } => arguments,
                // Clients leave thinking out as they like; results are told by their calls.
                Content::Thinking { .. } | Content::ToolResult { .. } => continue,
            };
            text.len().hash(&mut hasher);
            let part = &text.as_bytes()[..text.len().min(left)];
            part.hash(&mut hasher);
            left -= part.len();
        }
    }
    hasher.finish()
}

/// What the user and the tools said since the last answer, as far as it is searched.
pub(super) struct News<'a> {
    texts: Vec<&'a str>,
}

impl<'a> News<'a> {
    pub(super) fn of(conversation: &'a Conversation) -> News<'a> {
        let messages = &conversation.messages;
        let from = messages.iter().rposition(|message| message.role == Role::Assistant);
        let mut news = News { texts: Vec::new() };
        let mut left = RESULTS_SEARCHED_BYTES_MAX;
        // Nobody has started an agent before the first answer.
        for message in from.map_or(&[][..], |from| &messages[from + 1..]) {
            for block in message.blocks.iter().filter(|_| message.role != Role::System) {
                news.add(block, &mut left);
            }
        }
        news
    }

    fn add(&mut self, block: &'a Block, left: &mut usize) {
        match &block.content {
            Content::Text(text) => {
                for part in ends(text) {
                    if !part.is_empty() && part.len() <= *left && self.texts.len() < TEXTS_MAX {
                        *left -= part.len();
                        self.texts.push(part);
                    }
                }
            }
            Content::ToolResult { blocks, .. } => {
                for inner in blocks.iter().filter(|b| matches!(b.content, Content::Text(_))) {
                    self.add(inner, left);
                }
            }
            Content::Thinking { .. } | Content::ToolCall { .. } => {}
        }
    }

    /// Whether a session is spoken of by its id, as a word of its own.
    pub(super) fn mentions(&self, key: &str) -> bool {
        let alone = |text: &str, at: usize| {
            let part_of_id = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            !text[..at].ends_with(part_of_id) && !text[at + key.len()..].starts_with(part_of_id)
        };
        self.texts.iter().any(|text| text.match_indices(key).any(|(at, _)| alone(text, at)))
    }
}

/// A text, or its head and its end if it is long.
fn ends(text: &str) -> Vec<&str> {
    if text.len() <= 2 * RESULT_ENDS_BYTES {
        return vec![text];
    }
    let head = text.floor_char_boundary(RESULT_ENDS_BYTES);
    let tail = text.ceil_char_boundary(text.len() - RESULT_ENDS_BYTES);
    vec![&text[..head], &text[tail..]]
}

/// The agents that an answer closes: a call that passes through here on its way to the harness.
pub(super) fn closed_agents(transcript: &Transcript) -> Vec<String> {
    let calls = transcript.items().iter().filter_map(|item| match item {
        Item::ToolCall { name, arguments, .. } if name.ends_with("close_agent") => Some(arguments),
        _ => None,
    });
    let target = |arguments: &String| {
        let short = arguments.len() <= ARGUMENTS_BYTES_MAX;
        let value: Value = short.then(|| plain_json::from_str(arguments).ok()).flatten()?;
        let id = ["target", "agent_id", "id"].iter().find_map(|name| value.get(*name)?.as_str())?;
        (id.len() <= ID_BYTES_MAX).then(|| id.to_owned())
    };
    calls.filter_map(target).collect()
}
