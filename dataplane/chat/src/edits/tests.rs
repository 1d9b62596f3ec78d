//! Edits: what goes, what stays, when, and that nothing is counted in vain.

use super::*;
use crate::parse::parse_messages;
use std::cell::Cell;

/// A turn of thinking, a call and its result, `turns` times over.
fn body(turns: usize, context: &Value) -> Request {
    let mut messages = vec![json!({"role": "user", "content": "go"})];
    for n in 0..turns {
        let tool = if n % 2 == 0 { "Read" } else { "Bash" };
        messages.push(json!({"role": "assistant", "content": [
            {"type": "thinking", "thinking": format!("thought {n}"), "signature": "c2ln"},
            {"type": "tool_use", "id": format!("t{n}"), "name": tool, "input": {"n": n}}]}));
        messages.push(json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": format!("t{n}"), "content": format!("result {n}")}]}));
    }
    let body =
        json!({"model": "m", "max_tokens": 5, "messages": messages, "context_management": context});
    parse_messages(body.to_string().as_bytes()).unwrap()
}

/// Characters stand in for tokens.
fn size(conversation: &Conversation) -> u64 {
    let text = |block: &Block| match &block.content {
        Content::Text(text) | Content::Thinking { text, .. } => text.len(),
        Content::ToolCall { arguments, .. } => arguments.len(),
        Content::ToolResult { blocks, .. } => {
            blocks.iter().map(|b| format!("{:?}", b.content).len()).sum()
        }
    };
    conversation.messages.iter().flat_map(|m| &m.blocks).map(text).sum::<usize>() as u64
}

/// What each edit did, the conversation in short, and how often it was counted.
fn edited(turns: usize, context: &Value) -> (Vec<Value>, String, u32) {
    let mut request = body(turns, context);
    let edits = request.context.unwrap().edits;
    let counted = Cell::new(0);
    let applied = apply_edits(&mut request.conversation, &edits, |c| {
        counted.set(counted.get() + 1);
        size(c)
    });
    let short = |block: &Block| match &block.content {
        Content::Text(text) => text.clone(),
        Content::Thinking { text, .. } => format!("({text})"),
        Content::ToolCall { arguments, .. } => arguments.clone(),
        Content::ToolResult { blocks, .. } => format!("={:?}", blocks[0].content),
    };
    let shown = request.conversation.messages.iter().flat_map(|m| &m.blocks).map(short);
    let shown = shown.collect::<Vec<_>>().join(" ");
    (applied.iter().map(AppliedEdit::value).collect(), shown, counted.get())
}

#[test]
fn what_harnesses_send_costs_nothing() {
    let all = json!({"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]});
    let (applied, shown, counted) = edited(2, &all);
    assert_eq!((applied.len(), counted), (0, 0));
    assert!(shown.contains("(thought 0)"), "{shown}");
    // Nor does an edit that would change nothing.
    let few = json!({"edits": [{"type": "clear_tool_uses_20250919"}]});
    assert_eq!(edited(3, &few).2, 0);
}

#[test]
fn old_thinking_goes() {
    let keep = |turns: u32| json!({"edits": [{"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": turns}}]});
    let (applied, shown, _) = edited(3, &keep(1));
    assert_eq!(
        applied,
        [
            json!({"type": "clear_thinking_20251015", "cleared_thinking_turns": 2, "cleared_input_tokens": 18})
        ]
    );
    assert!(!shown.contains("(thought 1)") && shown.contains("(thought 2)"), "{shown}");
    assert!(shown.contains("{\"n\":1}"), "{shown}");
    assert_eq!(edited(3, &keep(3)).0.len(), 0);
    let default = json!({"edits": [{"type": "clear_thinking_20251015"}]});
    assert_eq!(edited(3, &default).1, shown);
}

#[test]
fn old_results_go_once_the_trigger_is_reached() {
    let edit = |trigger: Value, more: Value| {
        let mut edit = json!({"type": "clear_tool_uses_20250919", "trigger": trigger,
            "keep": {"type": "tool_uses", "value": 1}});
        edit.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"edits": [edit]})
    };
    let uses = |value: u64| json!({"type": "tool_uses", "value": value});
    let (applied, shown, counted) = edited(4, &edit(uses(3), json!({})));
    assert_eq!(applied[0]["cleared_tool_uses"], 3);
    assert_eq!(counted, 2);
    assert!(shown.matches(CLEARED).count() == 3 && shown.contains("result 3"), "{shown}");
    assert!(shown.contains("{\"n\":0}"), "arguments stay: {shown}");
    assert_eq!(edited(4, &edit(uses(4), json!({}))).0.len(), 0);
    let tokens = |value: u64| json!({"type": "input_tokens", "value": value});
    assert_eq!(edited(4, &edit(tokens(10), json!({}))).0.len(), 1);
    assert_eq!(edited(4, &edit(tokens(100_000), json!({}))).0.len(), 0);
    let (applied, shown, _) = edited(4, &edit(uses(0), json!({"exclude_tools": ["Read"]})));
    assert_eq!(applied[0]["cleared_tool_uses"], 1);
    assert!(shown.contains("result 0") && !shown.contains("result 1"), "{shown}");
    let (_, shown, _) = edited(4, &edit(uses(0), json!({"clear_tool_inputs": true})));
    assert!(!shown.contains("{\"n\":0}") && shown.contains("{\"n\":3}"), "{shown}");
    let (_, shown, _) = edited(4, &edit(uses(0), json!({"clear_tool_inputs": ["Bash"]})));
    assert!(shown.contains("{\"n\":0}") && !shown.contains("{\"n\":1}"), "{shown}");
    let much = json!({"clear_at_least": {"type": "input_tokens", "value": 1_000_000}});
    let (applied, shown, _) = edited(4, &edit(uses(0), much));
    assert!(applied.is_empty() && shown.contains("result 0"), "{shown}");
}

#[test]
fn an_edit_made_twice_is_the_same_prompt() {
    let context = json!({"edits": [{"type": "clear_tool_uses_20250919",
        "trigger": {"type": "tool_uses", "value": 0}, "keep": {"type": "tool_uses", "value": 1}}]});
    let mut request = body(4, &context);
    let edits = request.context.unwrap().edits;
    apply_edits(&mut request.conversation, &edits, size);
    let once = request.conversation.clone();
    assert!(apply_edits(&mut request.conversation, &edits, size).is_empty());
    assert_eq!(request.conversation, once);
}

#[test]
fn unknown_edits_are_left_out() {
    let request = body(1, &json!({"edits": [{"type": "clear_everything_2030"}, {"type": 5}]}));
    assert_eq!(request.context.unwrap().edits, []);
    assert_eq!(request.warnings.len(), 2);
    let bad = json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}],
        "context_management": {"edits": vec![json!({"type": "x"}); EDITS_MAX + 1]}});
    assert!(parse_messages(bad.to_string().as_bytes()).is_err());
}
