//! Histories in their wire form: items of the Responses API into a conversation, and a conversation into items.
//!
//! What a server keeps of a response is what the client saw of it, so a stored turn is read back by the same rules as
//! one that a client sends again, and both give the same prompt. The way back exists for turns whose items nobody
//! kept: it says all that a template can see, without the marks and ids that only one client knew.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::ir::{Block, Content, Conversation, Role};
use crate::parse::{ParseOptions, add_items};

/// Appends items to a conversation as if a client had sent them. Tools that came as items are for their own turn only.
pub fn append_items(
    conversation: &mut Conversation,
    items: &[Value],
    options: ParseOptions,
) -> Result<(), ApiError> {
    let tools = std::mem::take(&mut conversation.tools);
    let mut joined = add_items(std::mem::take(conversation), items, options)?;
    joined.tools = tools;
    *conversation = joined;
    Ok(())
}

/// A conversation as items, without its tools.
pub fn items_of(conversation: &Conversation) -> Vec<Value> {
    let mut items = Vec::new();
    if !conversation.system.is_empty() {
        items.push(message("developer", "input_text", &conversation.system));
    }
    for turn in &conversation.messages {
        match turn.role {
            Role::System => items.push(message("developer", "input_text", &turn.blocks)),
            Role::User => items.push(message("user", "input_text", &turn.blocks)),
            Role::Assistant => items.extend(turn.blocks.iter().map(said)),
            Role::Tool => items.extend(turn.blocks.iter().map(said)),
        }
    }
    items
}

fn message(role: &str, kind: &str, blocks: &[Block]) -> Value {
    let texts = blocks.iter().filter_map(|block| match &block.content {
        Content::Text(text) => Some(json!({"type": kind, "text": text})),
        _ => None,
    });
    json!({"type": "message", "role": role, "content": texts.collect::<Vec<_>>()})
}

/// One block of the model's or of a tool's as an item.
fn said(block: &Block) -> Value {
    match &block.content {
        Content::Text(_) => message("assistant", "output_text", std::slice::from_ref(block)),
        Content::Thinking { text, .. } => json!({
            "type": "reasoning", "summary": [{"type": "summary_text", "text": text}],
        }),
        Content::ToolCall { id, name, arguments } => json!({
            "type": "function_call", "call_id": id, "name": name, "arguments": arguments,
        }),
        Content::ToolResult { call_id, blocks, .. } => {
            let texts = blocks.iter().filter_map(|block| match &block.content {
                Content::Text(text) => Some(json!({"type": "input_text", "text": text})),
                _ => None,
            });
            json!({
                "type": "function_call_output", "call_id": call_id,
                "output": texts.collect::<Vec<_>>(),
            })
        }
    }
}

/// The call id of the first result that no call came before. A client that sends a whole history may have cut it; one
/// that continues what the server keeps has made a mistake.
pub fn orphan_result(conversation: &Conversation) -> Option<&str> {
    let mut calls = HashSet::new();
    for block in conversation.messages.iter().flat_map(|message| &message.blocks) {
        match &block.content {
            Content::ToolCall { id, .. } => {
                calls.insert(id.as_str());
            }
            Content::ToolResult { call_id, .. } if !calls.contains(call_id.as_str()) => {
                return Some(call_id);
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::parse_responses;

    fn sent(items: &Value) -> Conversation {
        let body = json!({"model": "m", "input": items}).to_string();
        parse_responses(body.as_bytes()).unwrap().conversation
    }

    fn turn() -> Value {
        json!([
            {"type": "message", "role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"x\":1}"},
            {"type": "function_call_output", "call_id": "c1", "output": "done"},
            {"type": "message", "role": "developer", "content": "Now faster."},
            {"type": "message", "role": "user", "content": ""},
        ])
    }

    #[test]
    fn a_turn_that_was_kept_reads_like_one_that_is_sent_again() {
        let all = turn();
        let all = all.as_array().unwrap();
        for cut in 1..all.len() {
            let mut conversation = sent(&json!(all[..cut]));
            append_items(&mut conversation, &all[cut..], ParseOptions::default()).unwrap();
            assert_eq!(conversation, sent(&json!(all)), "cut at {cut}");
        }
    }

    #[test]
    fn a_conversation_comes_back_from_its_items() {
        let conversation = sent(&turn());
        assert_eq!(sent(&json!(items_of(&conversation))), conversation);
    }

    #[test]
    fn tools_of_a_kept_turn_stay_behind_and_the_own_ones_stay() {
        let tools =
            json!([{"type": "additional_tools", "tools": [{"type": "function", "name": "g"}]}]);
        let mut conversation = sent(&turn());
        let before = conversation.clone();
        append_items(&mut conversation, tools.as_array().unwrap(), ParseOptions::default())
            .unwrap();
        assert_eq!(conversation, before);
    }

    #[test]
    fn what_is_no_item_is_refused() {
        for bad in [json!([3]), json!([{"type": "message", "role": "nobody", "content": "x"}])] {
            let mut conversation = Conversation::default();
            let bad = bad.as_array().unwrap();
            assert!(append_items(&mut conversation, bad, ParseOptions::default()).is_err());
        }
    }

    #[test]
    fn a_result_needs_a_call_before_it() {
        assert_eq!(orphan_result(&sent(&turn())), None);
        let items = json!([{"type": "function_call_output", "call_id": "c9", "output": "x"}]);
        assert_eq!(orphan_result(&sent(&items)), Some("c9"));
    }
}
