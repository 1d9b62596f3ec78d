//! What becomes of messages, what of it is kept, and what that is counted as.

use super::*;
use crate::ir::Block;

const ASKED: Asked = Asked { asker: 1, holders: 1 };
/// What may be kept.
const ROOM: usize = 8 << 20;
const STRICT: Shape = Shape { repeated_role: false, ..Shape::FULL };

fn said(messages: Vec<(Role, Block)>) -> Conversation {
    let mut conversation = Conversation::default();
    for (role, block) in messages {
        conversation.messages.push(Arc::new(Message { role, blocks: vec![block] }));
    }
    conversation
}

fn contents(values: &[Value]) -> Vec<String> {
    let content = |value: &Value| value.get_attr("content").unwrap().as_str().unwrap().to_owned();
    values.iter().map(content).collect()
}

#[test]
fn a_run_of_one_role_is_joined_once_and_nothing_on_the_way_is_kept() {
    let known = KnownMessages::new(ROOM);
    let user = |number: usize| (Role::User, Block::text(format!("text {number}")));
    let mut messages: Vec<_> = (0..300).map(user).collect();
    messages.push((Role::Assistant, Block::text("answer")));
    messages.push(user(300));
    let mut conversation = said(messages);
    conversation.system.push(Block::text("system"));
    let shape = Shape { system: false, ..STRICT };
    let values = known.values(&conversation, shape, ASKED);
    let all: Vec<String> = (0..300).map(|number| format!("text {number}")).collect();
    let first = format!("system\n\n{}", all.join("\n\n"));
    assert_eq!(contents(&values), [first.as_str(), "answer", "text 300"]);
    // The system text and the whole run.
    assert_eq!(known.texts.with(|texts| texts.values()), 2);
    let again = known.values(&conversation, shape, ASKED);
    let number = |value: &Value| value.downcast_object_ref::<Dict>().unwrap().number;
    assert_eq!(number(&again[0]), number(&values[0]));
}

fn entry_bytes(role: Role, blocks: Vec<Block>) -> usize {
    let message = Arc::new(Message { role, blocks });
    let mut numbers = Vec::new();
    Calls::default().number(&message, Shape::FULL, &mut numbers);
    entry(&message, Shape::FULL, &numbers, true).bytes()
}

#[test]
fn all_that_a_message_holds_is_counted() {
    const LONG: usize = 1 << 20;
    let long = || "x".repeat(LONG);
    let thought = |signature| Content::Thinking { text: "so".to_owned(), signature };
    assert!(entry_bytes(Role::Assistant, vec![Block::from(thought(Some(long())))]) > LONG);
    let result = |call_id| {
        Block::from(Content::ToolResult {
            call_id,
            blocks: vec![Block::text("done")],
            is_error: false,
        })
    };
    assert!(entry_bytes(Role::Tool, vec![result(long())]) > LONG);
    let results = |count: usize| (0..count).map(|number| result(number.to_string())).collect();
    let (one, many) = (entry_bytes(Role::Tool, results(1)), entry_bytes(Role::Tool, results(100)));
    assert!(many > 90 * one, "{one} {many}");
    let texts = vec![Block::text(""); 1_000];
    assert!(entry_bytes(Role::User, texts) > 1_000 * size_of::<Block>());
}

#[test]
fn a_message_that_only_a_cut_conversation_shares_is_not_kept() {
    let known = KnownMessages::new(ROOM);
    let whole = said(vec![(Role::User, Block::text("one")), (Role::Assistant, Block::text("two"))]);
    let cut = whole.clone();
    known.values(&cut, Shape::FULL, Asked { asker: 1, holders: 2 });
    assert_eq!(known.messages.with(|messages| messages.values()), 0);
    let body = whole.clone();
    known.values(&cut, Shape::FULL, Asked { asker: 1, holders: 2 });
    assert_eq!(known.messages.with(|messages| messages.values()), 2);
    drop(body);
}

#[test]
fn messages_are_counted_whole_and_those_that_ended_leave() {
    let known = KnownMessages::new(ROOM);
    let long = "x".repeat(ROOM / 100);
    let mut dropped = Vec::new();
    for _ in 0..80 {
        let conversation = said(vec![(Role::User, Block::text(long.clone()))]);
        let _body = conversation.clone();
        known.values(&conversation, Shape::FULL, ASKED);
        dropped.push(Arc::downgrade(&conversation.messages[0]));
        let (bytes, kept) = known.messages.with(|messages| (messages.bytes(), messages.values()));
        assert!(bytes <= ROOM && bytes > kept * 2 * long.len(), "{bytes} of {kept}");
    }
    assert!(dropped[0].strong_count() == 0 && dropped[79].strong_count() == 1);
}
