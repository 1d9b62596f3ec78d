//! Compares a template in parts with the whole, on conversations that have what conversations can have.
//!
//! It runs once when a template is loaded. Conversations grow message by message and what was rendered is kept, as
//! it will be in use, so that a part which is taken for known when it is not shows here and not in a prompt.

use std::sync::Arc;

use super::parts::Parts;
use super::{ChatTemplate, RenderOptions, TemplateError};
use crate::ir::{Block, Content, Conversation, Message, Role, Tool, ToolKind};
use crate::limits::TEMPLATE_STEPS_MAX;
use crate::request::Thinking;

/// Most steps that all renderings together may take; a template that needs more is costly enough to load.
const STEPS_MAX: u64 = TEMPLATE_STEPS_MAX;

/// Whether parts and the whole rendered the same text of everything.
pub(super) fn parts_agree(template: &ChatTemplate) -> bool {
    let Some(parts) = &template.parts else { return false };
    for conversation in conversations() {
        // One conversation of each kind is enough to see what the options do.
        let few = if conversation.system.is_empty() { 1 } else { usize::MAX };
        for options in options().take(few) {
            if !turns_agree(template, parts, &conversation, options) {
                parts.compared(false);
                return false;
            }
        }
        // What is never rendered in parts is not worth the attempt.
        if parts.counts().prompts == 0 {
            return false;
        }
    }
    true
}

/// Renders a conversation turn by turn in parts and as a whole. Whether that agreed, as far as there is a text at all.
fn turns_agree(
    template: &ChatTemplate,
    parts: &Parts,
    conversation: &Conversation,
    options: RenderOptions,
) -> bool {
    for length in 1..=conversation.messages.len() {
        let mut turn = conversation.clone();
        turn.messages.truncate(length);
        let context = template.context(&turn, options, template.shape, 1);
        // The second time, the last message is known as well.
        let rendered =
            [(); 2].map(|()| parts.render(&template.environment, &context, options.asker));
        let whole = template.whole(context);
        if rendered.iter().flatten().any(|texts| whole.as_ref() != Ok(&texts.concat())) {
            return false;
        }
        match whole {
            Ok(_) if parts.steps() <= STEPS_MAX => {}
            Ok(_) | Err(TemplateError::TooManySteps | TemplateError::TooLong) => return false,
            // It will not take what follows either.
            Err(_) => return true,
        }
    }
    true
}

fn options() -> impl Iterator<Item = RenderOptions> {
    let thinking = [Thinking::Auto, Thinking::Enabled, Thinking::Disabled];
    thinking.into_iter().flat_map(|thinking| {
        [true, false].map(|add_generation_prompt| RenderOptions {
            thinking,
            add_generation_prompt,
            continue_final: false,
            asker: 0,
        })
    })
}

fn conversations() -> Vec<Conversation> {
    let plain = vec![
        user("one\ntwo"),
        answer(None, "\n\nthree", 0),
        user(" four "),
        answer(Some("\nfive\n"), "six", 0),
        user(""),
        answer(None, "", 0),
        user("<tool_response>\nseven\n</tool_response>"),
    ];
    let acting = vec![
        user("one"),
        answer(Some("two"), "", 1),
        results(1),
        answer(None, "three", 2),
        results(2),
        user("four"),
        answer(Some("five"), "six", 1),
        results(1),
        answer(Some("seven"), "eight", 0),
        user("nine"),
    ];
    let mixed = vec![
        answer(None, "one</think>two", 0),
        message(Role::System, vec![Block::text("three")]),
        user("four"),
        user("five"),
        answer(Some("six"), "<think>\nseven\n</think>\n\neight", 3),
        results(3),
        results(1),
        message(Role::System, vec![Block::text("nine")]),
        answer(None, "ten", 1),
        results(1),
        user("eleven"),
    ];
    let mut all = Vec::new();
    for messages in [plain, acting, mixed] {
        for (system, tools) in [("", 0), ("Be brief.\n", 2), ("", 1)] {
            let mut conversation = Conversation::default();
            if !system.is_empty() {
                conversation.system.push(Block::text(system));
            }
            conversation.tools = Arc::new((0..tools).map(tool).collect());
            conversation.messages.clone_from(&messages);
            all.push(conversation);
        }
    }
    all
}

fn message(role: Role, blocks: Vec<Block>) -> Arc<Message> {
    Arc::new(Message { role, blocks })
}

fn user(text: &str) -> Arc<Message> {
    message(Role::User, vec![Block::text(text)])
}

fn answer(thoughts: Option<&str>, text: &str, calls: usize) -> Arc<Message> {
    let thoughts =
        thoughts.map(|text| Content::Thinking { text: text.to_owned(), signature: None });
    let mut blocks: Vec<Block> = thoughts.into_iter().map(Block::from).collect();
    blocks.push(Block::text(text));
    for number in 0..calls {
        blocks.push(Block::from(Content::ToolCall {
            id: format!("call{number}"),
            name: format!("tool{number}"),
            arguments: format!("{{\"a\":{number},\"b\":[\"x\",null,true],\"c\":{{}}}}"),
        }));
    }
    message(Role::Assistant, blocks)
}

fn results(count: usize) -> Arc<Message> {
    let result = |number| {
        Block::from(Content::ToolResult {
            call_id: format!("call{number}"),
            blocks: vec![Block::text(format!("{{\"result\": {number}}}\n"))],
            is_error: number == 1,
        })
    };
    message(Role::Tool, (0..count).map(result).collect())
}

fn tool(number: usize) -> Tool {
    Tool {
        name: format!("tool{number}"),
        description: format!("Does {number}."),
        schema: serde_json::json!({
            "type": "object",
            "properties": {"a": {"type": "integer", "description": "A number"}, "b": {"type": "array"}},
            "required": ["a"],
        }),
        client_name: None,
        namespace: None,
        kind: ToolKind::Function { strict: false },
        deferred: false,
        cache_control: None,
    }
}
