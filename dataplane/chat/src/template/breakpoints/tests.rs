//! What is answered without rendering equals what rendering finds.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::ir::CacheControl;

const DEMO: &str = include_str!("../../../../../plugins/native/demo-model/chat_template.jinja");
/// Tools stand in the first user's message; an answer opens differently after tools.
const LATE_TOOLS: &str = "{% for m in messages %}<{{ m.role }}>{% if loop.first and tools %}\
    {% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}{{ m.content }}</>{% endfor %}\
    {% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}\
    <think></think>{% endif %}{% endif %}";
/// Says how many messages there are before anything else, so that no prefix lasts; opens by the last role.
const COUNTING: &str = "{{ messages | length }}{% for m in messages %}[{{ m.content }}]{% endfor %}\
    {% if add_generation_prompt %}{{ messages[-1].role }}>{% endif %}";
const TEMPLATES: [&str; 3] = [DEMO, LATE_TOOLS, COUNTING];

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ab]{0,3}", Just("\u{e000}x".to_owned()), Just("é".to_owned())]
}

fn mark() -> impl Strategy<Value = Option<CacheControl>> {
    prop_oneof![Just(None), Just(Some(CacheControl { ttl_ms: 7 }))]
}

fn block() -> impl Strategy<Value = Block> {
    (text(), mark()).prop_map(|(text, cache_control)| Block { cache_control, ..Block::text(text) })
}

fn tool() -> impl Strategy<Value = Tool> {
    ("[ab]", text(), mark(), prop::bool::weighted(0.2)).prop_map(
        |(name, description, cache_control, deferred)| Tool {
            name,
            description,
            schema: json!({"type": "object"}),
            cache_control,
            deferred,
            ..sentinel_tool()
        },
    )
}

fn conversation() -> impl Strategy<Value = Conversation> {
    let role = prop_oneof![Just(Role::User), Just(Role::Assistant), Just(Role::System)];
    let message = (role, prop::collection::vec(block(), 1..3));
    (
        prop::collection::vec(tool(), 0..3),
        prop::collection::vec(block(), 0..3),
        prop::collection::vec(message, 1..4),
    )
        .prop_map(|(tools, system, messages)| {
            let mut conversation =
                Conversation { tools: Arc::new(tools), system, ..Conversation::default() };
            for (role, blocks) in messages {
                conversation.push(role, blocks);
            }
            conversation
        })
}

/// The reaches as rendering alone finds them.
fn rendered(template: &mut ChatTemplate, c: &Conversation, o: RenderOptions) -> Vec<usize> {
    let known = std::mem::take(&mut template.known);
    let slow = reaches(template, c, o);
    template.known = known;
    slow
}

fn reaches(template: &ChatTemplate, c: &Conversation, o: RenderOptions) -> Vec<usize> {
    let Ok(rendered) = template.render_with_breakpoints(c, o) else { return Vec::new() };
    rendered.breakpoints.iter().map(|b| b.end_bytes).collect()
}

proptest! {
    #[test]
    fn a_memory_changes_nothing(
        turns in prop::collection::vec((conversation(), 0..3_usize, any::<bool>()), 1..12),
        which in 0..TEMPLATES.len(),
    ) {
        let mut template = ChatTemplate::new(TEMPLATES[which], "<s>", "</s>").unwrap();
        for (conversation, thinking, open) in turns {
            let thinking = [Thinking::Auto, Thinking::Enabled, Thinking::Disabled][thinking];
            let options =
                RenderOptions { thinking, add_generation_prompt: open, ..RenderOptions::default() };
            let slow = rendered(&mut template, &conversation, options);
            // Twice, since the first time may fill the memory.
            prop_assert_eq!(&reaches(&template, &conversation, options), &slow);
            prop_assert_eq!(&reaches(&template, &conversation, options), &slow);
        }
    }
}

#[test]
fn only_a_constant_opening_is_trusted() {
    let suffixes = |source| ChatTemplate::new(source, "", "").unwrap().known.suffixes;
    assert_eq!(suffixes(DEMO)[0].as_deref(), Some("<|assistant|>"));
    assert_eq!(suffixes(LATE_TOOLS)[2].as_deref(), Some("<assistant><think></think>"));
    assert_eq!(suffixes(COUNTING), [None, None, None]);
}

#[test]
fn the_memory_of_heads_has_a_limit() {
    let known = Known::default();
    for key in 0..=HEADS_MAX as u64 {
        known.remember(key, "ab", "ac", 1);
    }
    assert_eq!(known.heads.lock().unwrap().len(), 1);
    assert_eq!(known.head(HEADS_MAX as u64, "ad"), Some(1));
    assert_eq!(known.head(HEADS_MAX as u64, "ac"), None, "it agrees with the cut further");
    assert_eq!(known.head(HEADS_MAX as u64, "bd"), None);
}
