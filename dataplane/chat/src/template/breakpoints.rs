//! How far into the prompt a cache breakpoint reaches.
//!
//! Templates decide where blocks land, so positions are found by comparison: the conversation is
//! cut at the breakpoint, rendered again, and the prefix both texts share is what the breakpoint
//! covers. That is exact even where a template renders tools before the system text, or drops
//! old thinking once a new turn begins: only what stays equal can be reused.

use super::{ChatTemplate, RenderOptions, RenderedBreakpoint};
use crate::ir::{Block, Content, Conversation, Position, Role, Tool, ToolKind};

/// The breakpoints of `conversation` with their reach in `text`, its rendering. One whose cut
/// conversation the template refuses is left out.
pub(super) fn locate(
    template: &ChatTemplate,
    conversation: &Conversation,
    options: RenderOptions,
    text: &str,
) -> Vec<RenderedBreakpoint> {
    let options = RenderOptions { add_generation_prompt: false, continue_final: false, ..options };
    let mut located = Vec::new();
    for breakpoint in conversation.breakpoints() {
        let cut = cut(conversation, breakpoint.position);
        let Ok(rendered) = template.render(&cut, options) else { continue };
        located.push(RenderedBreakpoint {
            position: breakpoint.position,
            ttl_ms: breakpoint.ttl_ms,
            end_bytes: shared_prefix(text, &rendered),
        });
    }
    located
}

/// The conversation up to `position`, with something different after it.
fn cut(conversation: &Conversation, position: Position) -> Conversation {
    let mut cut = head(conversation);
    match position {
        Position::Tool { index } => {
            // The system text stays: where it precedes the tools, it is part of their prefix.
            cut.tools.truncate(index + 1);
            cut.tools.push(sentinel_tool());
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
                last.blocks.truncate(block + 1);
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
        tools: conversation.tools.clone(),
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
    let equal = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    (0..=equal).rev().find(|end| a.is_char_boundary(*end)).unwrap_or(0)
}
