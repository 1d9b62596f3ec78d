//! What becomes of messages, what of it is kept, and what that is counted as.

use super::*;
use crate::ir::Block;

const ASKED: Asked = Asked { asker: 1, holders: 1 };
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
    let known = KnownMessages::default();
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
    assert_eq!(known.texts.0.lock().unwrap().young.len(), 2);
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
    let known = KnownMessages::default();
    let whole = said(vec![(Role::User, Block::text("one")), (Role::Assistant, Block::text("two"))]);
    let cut = whole.clone();
    known.values(&cut, Shape::FULL, Asked { asker: 1, holders: 2 });
    assert!(known.messages.lock().unwrap().young.is_empty());
    let body = whole.clone();
    known.values(&cut, Shape::FULL, Asked { asker: 1, holders: 2 });
    assert_eq!(known.messages.lock().unwrap().young.len(), 2);
    drop(body);
}

#[test]
fn what_is_kept_is_bounded_and_nothing_is_dropped_under_the_lock() {
    let known = KnownMessages::default();
    let long = "x".repeat(GENERATION_BYTES_MAX / 50);
    let mut dropped = Vec::new();
    for _ in 0..40 {
        let conversation = said(vec![(Role::User, Block::text(long.clone()))]);
        let _body = conversation.clone();
        known.values(&conversation, Shape::FULL, ASKED);
        dropped.push(Arc::downgrade(&conversation.messages[0]));
        let generations = known.messages.lock().unwrap();
        let bytes =
            |map: &HashMap<usize, Arc<Entry>>| map.values().map(|e| e.bytes()).sum::<usize>();
        let young: usize = bytes(&generations.young);
        assert_eq!(young, generations.young_bytes);
        assert!(young + bytes(&generations.old) <= 2 * GENERATION_BYTES_MAX);
        assert!(generations.forgotten.is_empty());
    }
    assert!(dropped[0].strong_count() == 0 && dropped[39].strong_count() == 1);
}
