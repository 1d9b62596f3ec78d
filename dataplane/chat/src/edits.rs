//! Edits of a context that the client asks its server to make: old thinking and old tool results leave the prompt.
//!
//! Pure, on the typed conversation: the tokens of a prompt come from the caller, who is asked only when an edit could
//! change something, since counting them means rendering the prompt. What is cleared leaves the same short text each
//! time, so that the edited prompt is a prefix that the next turn hits again.

use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::error::ApiError;
use crate::ir::{Block, Content, Conversation, Role};
use crate::limits::{EDITS_MAX, TOOLS_MAX};
use crate::parse::Node;
use crate::request::Request;

/// What stands in a cleared result's place.
const CLEARED: &str = "[old tool result cleared]";
/// Prompt tokens from which tool results are cleared, if the client names no trigger: as Anthropic has it.
const TRIGGER_TOKENS: u64 = 100_000;
/// Results that stay, if the client does not say: as Anthropic has it.
const KEEP_TOOL_USES: u64 = 3;
/// Turns whose thinking stays, if the client does not say: as Anthropic has it.
const KEEP_THINKING_TURNS: u64 = 1;

/// What a request wants done to its context, and what was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContextEdits {
    /// In the order asked for.
    pub edits: Vec<Edit>,
    /// Those that changed something.
    pub applied: Vec<AppliedEdit>,
}

/// One edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Thinking of all but the latest turns that have any.
    ClearThinking {
        /// How many of these keep theirs; `None` keeps all.
        keep_turns: Option<u64>,
    },
    /// Results of all but the latest calls.
    ClearToolUses {
        /// From when on.
        trigger: Trigger,
        /// How many results stay.
        keep: u64,
        /// Tokens that must be won, or nothing is cleared.
        clear_tokens_min: u64,
        /// Tools whose results stay.
        exclude: Vec<String>,
        /// Calls whose arguments go too.
        inputs: ClearedInputs,
    },
}

/// When an edit begins to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// With a prompt of more tokens than this.
    Tokens(u64),
    /// With more tool uses than this.
    ToolUses(u64),
}

/// Calls whose arguments are cleared with their results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClearedInputs {
    /// None.
    None,
    /// All.
    All,
    /// Those of these tools.
    Of(Vec<String>),
}

/// What an edit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppliedEdit {
    kind: Kind,
    /// Turns whose thinking, or tool uses whose result, was cleared.
    pub cleared: u64,
    /// Prompt tokens that this won.
    pub cleared_tokens: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Thinking,
    ToolUses,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::Thinking => "clear_thinking_20251015",
            Kind::ToolUses => "clear_tool_uses_20250919",
        }
    }
}

impl AppliedEdit {
    pub(crate) fn value(&self) -> Value {
        let count = match self.kind {
            Kind::Thinking => "cleared_thinking_turns",
            Kind::ToolUses => "cleared_tool_uses",
        };
        json!({
            "type": self.kind.name(), count: self.cleared, "cleared_input_tokens": self.cleared_tokens,
        })
    }
}

/// Reads `context_management`. Unknown edits are left out with a warning: the context stays whole.
pub(crate) fn parse(node: &Node<'_>, request: &mut Request) -> Result<(), ApiError> {
    let mut context = ContextEdits::default();
    if let Some(edits) = node.get("edits") {
        for edit in edits.items(EDITS_MAX)? {
            match edit.peek_str("type") {
                Some(kind) if kind == Kind::Thinking.name() => {
                    context.edits.push(clear_thinking(&edit)?);
                }
                Some(kind) if kind == Kind::ToolUses.name() => {
                    context.edits.push(clear_tool_uses(&edit)?);
                }
                _ => request.warn(format!("`{}` ignored: unknown edit", edit.path)),
            }
        }
    }
    request.context = Some(context);
    Ok(())
}

fn clear_thinking(edit: &Node<'_>) -> Result<Edit, ApiError> {
    let keep_turns = match edit.get("keep") {
        None => Some(KEEP_THINKING_TURNS),
        Some(keep) if keep.value.as_str() == Some("all") => None,
        Some(keep) if keep.peek_str("type") == Some("all") => None,
        Some(keep) => Some(u64::from(keep.require("value")?.count(0, u32::MAX)?)),
    };
    Ok(Edit::ClearThinking { keep_turns })
}

fn clear_tool_uses(edit: &Node<'_>) -> Result<Edit, ApiError> {
    let value = |name: &'static str| -> Result<Option<(bool, u64)>, ApiError> {
        let Some(node) = edit.get(name) else { return Ok(None) };
        let tool_uses = node.peek_str("type") == Some("tool_uses");
        Ok(Some((tool_uses, u64::from(node.require("value")?.count(0, u32::MAX)?))))
    };
    let names = |node: &Node<'_>| -> Result<Vec<String>, ApiError> {
        node.items(TOOLS_MAX)?.map(|name| name.str().map(str::to_owned)).collect()
    };
    let inputs = match edit.get("clear_tool_inputs") {
        None => ClearedInputs::None,
        Some(node) => match node.value.as_bool() {
            Some(true) => ClearedInputs::All,
            Some(false) => ClearedInputs::None,
            None => ClearedInputs::Of(names(&node)?),
        },
    };
    Ok(Edit::ClearToolUses {
        trigger: match value("trigger")? {
            None => Trigger::Tokens(TRIGGER_TOKENS),
            Some((true, uses)) => Trigger::ToolUses(uses),
            Some((false, tokens)) => Trigger::Tokens(tokens),
        },
        keep: value("keep")?.map_or(KEEP_TOOL_USES, |(_, keep)| keep),
        clear_tokens_min: value("clear_at_least")?.map_or(0, |(_, tokens)| tokens),
        exclude: edit
            .get("exclude_tools")
            .map(|node| names(&node))
            .transpose()?
            .unwrap_or_default(),
        inputs,
    })
}

/// Makes the edits in their order and says which of them changed something. `prompt_tokens` counts the tokens of a
/// conversation's prompt.
pub fn apply_edits(
    conversation: &mut Conversation,
    edits: &[Edit],
    prompt_tokens: impl Fn(&Conversation) -> u64,
) -> Vec<AppliedEdit> {
    let mut applied = Vec::new();
    let mut known_tokens = None;
    for edit in edits {
        let mut edited = conversation.clone();
        let (kind, cleared, clear_tokens_min) = match edit {
            Edit::ClearThinking { keep_turns: None } => continue,
            Edit::ClearThinking { keep_turns: Some(keep) } => {
                (Kind::Thinking, drop_thinking(&mut edited, *keep), 0)
            }
            Edit::ClearToolUses { trigger, keep, clear_tokens_min, exclude, inputs } => {
                let uses = results(conversation).len() as u64;
                if matches!(trigger, Trigger::ToolUses(most) if uses <= *most) {
                    continue;
                }
                let cleared = drop_results(&mut edited, *keep, exclude, inputs);
                (Kind::ToolUses, cleared, *clear_tokens_min)
            }
        };
        if cleared == 0 {
            continue;
        }
        let before = *known_tokens.get_or_insert_with(|| prompt_tokens(conversation));
        let early = |most: &u64| before <= *most;
        if matches!(edit, Edit::ClearToolUses { trigger: Trigger::Tokens(most), .. } if early(most))
        {
            continue;
        }
        let after = prompt_tokens(&edited);
        let cleared_tokens = before.saturating_sub(after);
        if cleared_tokens < clear_tokens_min {
            continue;
        }
        *conversation = edited;
        known_tokens = Some(after);
        applied.push(AppliedEdit { kind, cleared, cleared_tokens });
    }
    applied
}

fn is_thinking(block: &Block) -> bool {
    matches!(block.content, Content::Thinking { .. })
}

/// Takes thinking out of all turns but the latest `keep` that have any; says how many turns lost theirs.
fn drop_thinking(conversation: &mut Conversation, keep: u64) -> u64 {
    let messages = &mut conversation.messages;
    let turns = messages.iter().filter(|m| m.blocks.iter().any(is_thinking)).count();
    let drop = turns.saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
    let with_thinking = messages.iter_mut().filter(|m| m.blocks.iter().any(is_thinking));
    for message in with_thinking.take(drop) {
        Arc::make_mut(message).blocks.retain(|block| !is_thinking(block));
    }
    messages.retain(|m| m.role == Role::User || !m.blocks.is_empty());
    drop as u64
}

/// Where the results of tool calls stand, in order: message, block, call.
fn results(conversation: &Conversation) -> Vec<(usize, usize, &str)> {
    let mut found = Vec::new();
    for (message, m) in conversation.messages.iter().enumerate() {
        for (block, b) in m.blocks.iter().enumerate() {
            if let Content::ToolResult { call_id, .. } = &b.content {
                found.push((message, block, call_id.as_str()));
            }
        }
    }
    found
}

/// Clears all results but the latest `keep` and those of excluded tools; says how many.
fn drop_results(
    conversation: &mut Conversation,
    keep: u64,
    exclude: &[String],
    inputs: &ClearedInputs,
) -> u64 {
    let names: HashMap<String, String> =
        calls(conversation).map(|(id, name)| (id.to_owned(), name.to_owned())).collect();
    let found: Vec<(usize, usize, String)> =
        results(conversation).into_iter().map(|(m, b, id)| (m, b, id.to_owned())).collect();
    let old = found.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
    let mut emptied = HashSet::new();
    let mut cleared = 0;
    for (message, block, id) in found.into_iter().take(old) {
        let name = names.get(&id).map(String::as_str).unwrap_or_default();
        if exclude.iter().any(|tool| tool == name) {
            continue;
        }
        let Some(result) = conversation.messages.get_mut(message) else { continue };
        let content = &mut Arc::make_mut(result).blocks[block].content;
        let Content::ToolResult { blocks, .. } = content else { continue };
        let gone = matches!(blocks.as_slice(),
            [Block { content: Content::Text(text), .. }] if text == CLEARED);
        if !gone {
            *blocks = vec![Block::text(CLEARED)];
            cleared += 1;
        }
        let input_too = match inputs {
            ClearedInputs::None => false,
            ClearedInputs::All => true,
            ClearedInputs::Of(tools) => tools.iter().any(|tool| tool == name),
        };
        if input_too {
            emptied.insert(id);
        }
    }
    let is_emptied = |block: &Block| matches!(&block.content, Content::ToolCall { id, .. } if emptied.contains(id));
    for message in &mut conversation.messages {
        // What stays as it was stays shared.
        if message.blocks.iter().any(is_emptied) {
            for block in Arc::make_mut(message).blocks.iter_mut().filter(|block| is_emptied(block))
            {
                if let Content::ToolCall { arguments, .. } = &mut block.content {
                    "{}".clone_into(arguments);
                }
            }
        }
    }
    cleared
}

fn calls(conversation: &Conversation) -> impl Iterator<Item = (&str, &str)> {
    let blocks = conversation.messages.iter().flat_map(|m| &m.blocks);
    blocks.filter_map(|block| match &block.content {
        Content::ToolCall { id, name, .. } => Some((id.as_str(), name.as_str())),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
