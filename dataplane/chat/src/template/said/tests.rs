//! What becomes of messages, what of it is kept, and what that is counted as.

use super::*;
use crate::ir::Block;

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
    let values = known.values(&conversation, shape, 1);
    let all: Vec<String> = (0..300).map(|number| format!("text {number}")).collect();
    let first = format!("system\n\n{}", all.join("\n\n"));
    assert_eq!(contents(&values), [first.as_str(), "answer", "text 300"]);
    // The system text and the whole run.
    assert_eq!(known.texts.0.lock().unwrap().young.len(), 2);
    let again = known.values(&conversation, shape, 1);
    let number = |value: &Value| value.downcast_object_ref::<Dict>().unwrap().number;
    assert_eq!(number(&again[0]), number(&values[0]));
}
