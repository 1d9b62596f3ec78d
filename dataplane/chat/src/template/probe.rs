//! Finds out once what a template takes, by rendering tiny conversations.
//!
//! A feature counts as taken only if rendering succeeds and the marked text comes out: templates
//! that ignore a role silently would lose what was said, which is worse than refusing it.

use super::hf::Shape;
use super::{ChatTemplate, RenderOptions, TemplateError, Text, Thoughts};
use crate::ir::{Block, Content, Conversation, Role};

const MARK: &str = "probe-mark";
const OTHER: &str = "probe-other";

/// The shape of `template`; an error if it can't render even one user message.
pub(super) fn probe(template: &ChatTemplate) -> Result<Shape, TemplateError> {
    let plain = conversation(&[(Role::User, Block::text(MARK))]);
    let rendered = render(template, &plain, Shape::FULL)?;
    if !rendered.contains(MARK) {
        return Err(TemplateError::Unusable("the message's text is missing".to_owned()));
    }
    let mut shape = Shape::FULL;
    let mut system = plain.clone();
    system.system.push(Block::text(OTHER));
    shape.system = shows(template, &system, shape, &[MARK, OTHER]);

    let user = |text: &str| (Role::User, Block::text(text));
    let answer = |text: &str| (Role::Assistant, Block::text(text));
    let repeated = conversation(&[user(MARK), user(OTHER)]);
    shape.repeated_role = shows(template, &repeated, shape, &[MARK, OTHER]);
    let late =
        conversation(&[user("one"), answer("two"), (Role::System, Block::text(MARK)), user(OTHER)]);
    shape.late_system = shows(template, &late, shape, &[MARK, OTHER]);

    let call = Block::from(Content::ToolCall {
        id: "abcdefghi".to_owned(),
        name: OTHER.to_owned(),
        arguments: "{\"key\":\"probe-argument\"}".to_owned(),
    });
    let calling = conversation(&[user("one"), (Role::Assistant, call.clone())]);
    shape.tool_calls = shows(template, &calling, shape, &[OTHER, "probe-argument"]);
    let result = Block::from(Content::ToolResult {
        call_id: "abcdefghi".to_owned(),
        blocks: vec![Block::text(MARK)],
        is_error: false,
    });
    let answered = conversation(&[user("one"), (Role::Assistant, call), (Role::Tool, result)]);
    shape.tool_role = shows(template, &answered, shape, &[MARK]);
    Ok(shape)
}

/// What becomes of thoughts in later prompts of `template`.
pub(super) fn thoughts(template: &ChatTemplate) -> Thoughts {
    let user = |text: &str| (Role::User, Block::text(text));
    let thought = Block::from(Content::Thinking { text: MARK.to_owned(), signature: None });
    let thinking = [user("one"), (Role::Assistant, thought)];
    let call = Block::from(Content::ToolCall {
        id: "abcdefghi".to_owned(),
        name: OTHER.to_owned(),
        arguments: "{}".to_owned(),
    });
    let result = Block::from(Content::ToolResult {
        call_id: "abcdefghi".to_owned(),
        blocks: vec![Block::text("three")],
        is_error: false,
    });
    let said = (Role::Assistant, Block::text("two"));
    let over = conversation(&[thinking.as_slice(), &[said, user(OTHER)]].concat());
    let calling = [(Role::Assistant, call), (Role::Tool, result)];
    let open = conversation(&[thinking.as_slice(), &calling].concat());
    let hides = |probe| {
        let rendered = render(template, probe, template.shape);
        rendered.is_ok_and(|rendered| !rendered.contains(MARK))
    };
    match (hides(&over), hides(&open)) {
        (false, _) => Thoughts::Stay,
        (true, false) => Thoughts::FallAfterLoop,
        (true, true) => Thoughts::Fall,
    }
}

fn conversation(messages: &[(Role, Block)]) -> Conversation {
    let mut conversation = Conversation::default();
    for (role, block) in messages {
        conversation.push(*role, vec![block.clone()]);
    }
    conversation
}

fn shows(template: &ChatTemplate, probe: &Conversation, shape: Shape, texts: &[&str]) -> bool {
    let rendered = render(template, probe, shape);
    rendered.is_ok_and(|rendered| texts.iter().all(|text| rendered.contains(text)))
}

fn render(
    template: &ChatTemplate,
    probe: &Conversation,
    shape: Shape,
) -> Result<String, TemplateError> {
    template.render_shaped(probe, RenderOptions::default(), shape, 1).map(Text::into_string)
}
