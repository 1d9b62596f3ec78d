//! Templates of many styles, over conversations that grow, shrink and change, in parts and as a whole.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;

use super::super::{ChatTemplate, RenderOptions, hf};
use crate::ir::{Block, Content, Conversation, Message, Role, Tool, ToolKind};
use crate::request::Thinking;

const STYLES: &[(&str, &str)] = &[
    ("demo", include_str!("../../../../../plugins/native/demo-model/chat_template.jinja")),
    ("qwen25", include_str!("../styles/qwen25.jinja")),
    ("qwen3", include_str!("../styles/qwen3.jinja")),
    ("llama3", include_str!("../styles/llama3.jinja")),
    ("mistral", include_str!("../styles/mistral.jinja")),
    ("deepseek", include_str!("../styles/deepseek.jinja")),
    ("glm", include_str!("../styles/glm.jinja")),
    ("kimi", include_str!("../styles/kimi.jinja")),
    ("gptoss", include_str!("../styles/gptoss.jinja")),
    (
        "demo-like",
        "A{% for m in messages %} [{{ m.role }}{{ loop.index }}] {{ m.content }}\n{% endfor %}\nB\n",
    ),
];

fn load(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, "<s>", "</s>").unwrap()
}

fn message(role: Role, blocks: Vec<Block>) -> Arc<Message> {
    Arc::new(Message { role, blocks })
}

pub(super) fn tools(count: usize) -> Arc<Vec<Tool>> {
    let tool = |number| Tool {
        name: format!("tool{number}"),
        description: "Does \"things\"".to_owned(),
        schema: serde_json::json!({"type": "object", "properties": {"x": {"type": "string"}}}),
        client_name: None,
        namespace: None,
        kind: ToolKind::Function { strict: false },
        deferred: false,
        cache_control: None,
    };
    Arc::new((0..count).map(tool).collect())
}

/// One message of a kind that agents send.
pub(super) fn made(kind: u8, text: &str) -> Arc<Message> {
    let call = |number: usize| {
        Block::from(Content::ToolCall {
            id: format!("id{number}"),
            name: format!("tool{number}"),
            arguments: if text.len() % 7 == 3 {
                "no json".to_owned()
            } else {
                format!("{{\"x\":{text:?}}}")
            },
        })
    };
    let result = |number: usize| {
        Block::from(Content::ToolResult {
            call_id: format!("id{number}"),
            blocks: vec![Block::text(text)],
            is_error: false,
        })
    };
    let thought = Block::from(Content::Thinking { text: text.to_owned(), signature: None });
    match kind % 9 {
        0 | 1 => message(Role::User, vec![Block::text(text)]),
        2 => message(Role::Assistant, vec![Block::text(text)]),
        3 => message(Role::Assistant, vec![thought, Block::text(text)]),
        4 => message(Role::Assistant, vec![thought, Block::text("then"), call(1)]),
        5 => message(Role::Assistant, vec![call(1), call(2)]),
        6 => message(Role::Tool, vec![result(1)]),
        7 => message(Role::Tool, vec![result(2), result(1)]),
        _ => message(Role::System, vec![Block::text(text)]),
    }
}

pub(super) fn said(messages: Vec<Arc<Message>>) -> Conversation {
    Conversation { messages, ..Conversation::default() }
}

/// The same without anything that other turns share, so that nothing is known of it.
pub(super) fn alone(conversation: &Conversation) -> Conversation {
    let mut alone = conversation.clone();
    for message in &mut alone.messages {
        *message = Arc::new(Message::clone(message));
    }
    alone.tools = Arc::new(alone.tools.to_vec());
    alone
}

fn options(number: u8) -> RenderOptions {
    RenderOptions {
        thinking: [Thinking::Auto, Thinking::Enabled, Thinking::Disabled][usize::from(number % 3)],
        add_generation_prompt: !number.is_multiple_of(5),
        continue_final: number % 11 == 10,
        asker: 0,
    }
}

#[test]
fn every_style_is_rendered_in_parts() {
    for (name, source) in STYLES {
        let template = load(source);
        let counts = template.part_counts();
        assert!(counts.in_parts, "{name}");
        let mut conversation = Conversation { tools: tools(2), ..Conversation::default() };
        let mut kinds = [0, 4, 6, 2].into_iter().cycle();
        for number in 0..40 {
            let kind = kinds.next().unwrap();
            conversation.messages.push(made(kind, &format!("text {number}")));
            let turn = conversation.clone();
            let text = template.render(&turn, RenderOptions::default());
            assert_eq!(text, template.render(&alone(&turn), RenderOptions::default()), "{name}");
        }
        let after = template.part_counts();
        let (known, run) = (after.known - counts.known, after.run - counts.run);
        assert!(after.in_parts && after.differed == 0, "{name}: {after:?}");
        assert!(known > 2 * run, "{name}: {known} known, {run} run");
    }
}

#[test]
fn one_asker_finds_no_text_of_another() {
    // The first part reads the system text, and the second what the first left of it.
    let source = "{% set s = messages[0].content %}{% if s %}<{{ s }}>{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}";
    let template = load(source);
    let said_by = |asker| {
        let mut conversation = said(vec![made(0, "one"), made(2, "two")]);
        conversation.system.push(Block::text("Be brief."));
        let before = template.part_counts();
        let turn = conversation.clone();
        let rendered = template
            .render_with_breakpoints(&turn, RenderOptions { asker, ..RenderOptions::default() })
            .unwrap();
        let after = template.part_counts();
        assert_eq!(after.differed, 0);
        (rendered.text, after.known - before.known, after.run - before.run)
    };
    let (first, known, _) = said_by(1);
    assert_eq!((&*first, known), ("<Be brief.>Be brief.onetwo", 0));
    // Made anew, but the system text is known to be the same.
    let (again, known, _) = said_by(1);
    assert_eq!((again, known > 0), (first.clone(), true));
    let (other, known, _) = said_by(2);
    assert_eq!((other.clone(), known), (first.clone(), 0));
    let shared = |piece| first.pieces().iter().any(|mine| Arc::ptr_eq(mine, piece));
    assert!(!other.pieces().is_empty() && !other.pieces().iter().any(shared));
}

#[test]
fn what_no_text_shows_is_counted_as_well() {
    // Renders nothing, and leaves a long text.
    let source = "{% set s = messages[0].content | trim %}{% if true %}{% endif %}{% for m in messages %}{{ m.content if m.role != 'system' }}{% endfor %}";
    let template = load(source);
    let known_again = |length: usize| {
        let mut conversation = said(vec![made(0, "one"), made(2, "two")]);
        conversation.system.push(Block::text(" x".repeat(length / 2)));
        let turn = conversation.clone();
        template.render(&turn, RenderOptions::default()).unwrap();
        let before = template.part_counts();
        template.render(&turn, RenderOptions::default()).unwrap();
        let parts = template.parts.as_ref().unwrap();
        (template.part_counts().run - before.run, parts.kept_bytes())
    };
    let (run, before) = known_again(100 << 10);
    assert!(run == 0 && before > 100 << 10, "{before}");
    let (run, after) = known_again(600 << 10);
    assert!(run > 0 && after < before + (8 << 10), "{before} {after}");
}

#[test]
fn long_texts_beside_messages_are_paid_for_once() {
    let source = "{% set ns = namespace(s='') %}{% for m in messages %}{% if loop.first %}{% set ns.s = m.content | trim %}{% endif %}{{ m.content if m.role != 'system' }}{{ ns.s | length }}{% endfor %}";
    let template = load(source);
    let large = || template.parts.as_ref().unwrap().large.load(Relaxed);
    let loaded = large();
    let mut conversation = said((0..50).map(|n| made(2 * (n % 2), "text")).collect());
    conversation.system.push(Block::text(" x".repeat(50 << 10)));
    let turn = conversation.clone();
    template.render(&turn, RenderOptions::default()).unwrap();
    let claimed = large() - loaded;
    assert!((100 << 10..150 << 10).contains(&claimed), "{claimed}");
    let before = template.part_counts();
    template.render(&turn, RenderOptions::default()).unwrap();
    assert_eq!(template.part_counts().run, before.run);
    // What was kept goes with the messages, and so do the claims.
    template.messages.forget();
    drop((turn, conversation));
    assert_eq!(large(), loaded);
}

#[test]
fn a_template_whose_loop_counts_messages_is_right_all_the_same() {
    let source = "{% for m in messages %}{{ loop.revindex }} {{ messages | length }} {{ m.content }} {{ messages[-1].role }}\n{% endfor %}";
    let template = load(source);
    let mut conversation = Conversation::default();
    for number in 0..10 {
        conversation.messages.push(made(0, &number.to_string()));
        let turn = conversation.clone();
        let text = template.render(&turn, RenderOptions::default()).unwrap();
        assert_eq!(text, template.render(&alone(&turn), RenderOptions::default()).unwrap());
        assert!(text.starts_with(&format!("{} {} 0 user\n", number + 1, number + 1)), "{text}");
    }
    let before = template.part_counts();
    let turn = conversation.clone();
    let pieces = || {
        let options = RenderOptions::default();
        template.render_with_breakpoints(&turn, options).unwrap().text.pieces().to_vec()
    };
    let (first, again) = (pieces(), pieces());
    let counts = template.part_counts();
    assert!(counts.differed == 0 && counts.known > before.known, "{counts:?}");
    // The pieces are what is given, compared or not.
    assert!(!first.is_empty() && first.iter().zip(&again).all(|(a, b)| Arc::ptr_eq(a, b)));
}

#[test]
fn what_parts_can_not_share_is_rendered_as_a_whole() {
    let refused = [
        "{% set a = namespace(n=0) %}{% set b = a %}{% for m in messages %}{% set b.n = a.n + 1 %}{{ a.n }}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% if loop.index > 3 %}{% break %}{% endif %}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ loop.changed(m.role) }}{% endfor %}",
        "{% for m in messages recursive %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% else %}none{% endfor %}",
        "{% raw %}{% for{% endraw %}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{{ messages[0].content }}",
    ];
    for source in refused {
        let template = load(source);
        let mut conversation = Conversation::default();
        for number in 0..6 {
            conversation.messages.push(made(number, "text"));
            let turn = conversation.clone();
            let text = template.render(&turn, RenderOptions::default());
            assert_eq!(text, template.render(&alone(&turn), RenderOptions::default()), "{source}");
        }
        assert_eq!(template.part_counts().known, 0, "{source}");
    }
}

#[test]
fn a_template_that_differs_is_not_rendered_in_parts_again() {
    let template = load(STYLES[0].1);
    let parts = template.parts.as_ref().unwrap();
    assert!(template.part_counts().in_parts);
    parts.compared(false);
    let conversation = said(vec![made(0, "one"), made(2, "two")]);
    let turn = conversation.clone();
    let before = template.part_counts();
    assert!(template.render(&turn, RenderOptions::default()).is_ok());
    assert_eq!(template.part_counts(), before);
    assert!(!before.in_parts && before.differed == 1);
}

#[test]
fn a_namespace_that_a_known_part_left_is_there_for_the_next() {
    let source = "{% set ns = namespace(calls=0, last='none') %}{% for m in messages %}{% set ns.calls = ns.calls + 1 %}{{ ns.calls }}:{{ ns.last }}:{{ m.content }} {% set ns.last = m.role %}{% endfor %}{{ ns.calls }}{{ ns.last }}";
    let template = load(source);
    let mut conversation = said(vec![made(0, "a"), made(2, "b"), made(0, "c")]);
    let first = template.render(&conversation.clone(), RenderOptions::default()).unwrap();
    let turn = conversation.clone();
    assert_eq!(first, "1:none:a 2:user:b 3:assistant:c 3user");
    for _ in 0..2 {
        assert_eq!(template.render(&turn, RenderOptions::default()).unwrap(), first);
    }
    conversation.messages.push(made(2, "d"));
    let turn = conversation.clone();
    let longer = template.render(&turn, RenderOptions::default()).unwrap();
    assert_eq!(longer, "1:none:a 2:user:b 3:assistant:c 4:user:d 4assistant");
    // Another beginning: what was known of the rest is not taken.
    conversation.messages.remove(0);
    let turn = conversation.clone();
    let other = template.render(&turn, RenderOptions::default()).unwrap();
    assert_eq!(other, "1:none:b 2:assistant:c 3:user:d 3assistant");
    assert!(template.part_counts().known > 6);
}

#[test]
fn threads_that_share_a_template_disturb_nobody() {
    let template = load(STYLES[2].1);
    let kinds = [0, 4, 6, 2, 0, 5, 7];
    let shared: Vec<Arc<Message>> = (0..24)
        .map(|number| made(kinds[number % kinds.len()], &format!("text {number}")))
        .collect();
    std::thread::scope(|threads| {
        for thread in 0..4usize {
            let (template, shared) = (&template, &shared);
            threads.spawn(move || {
                for round in 0..60usize {
                    let mut turn = said(shared[..2 + (round + 5 * thread) % 22].to_vec());
                    if thread % 2 == 1 {
                        turn.messages.push(made(0, &format!("by {thread} in {round}")));
                    }
                    let turn = turn.clone();
                    let text = template.render(&turn, RenderOptions::default()).unwrap();
                    let whole = template.render(&alone(&turn), RenderOptions::default()).unwrap();
                    assert_eq!(text, whole);
                }
            });
        }
    });
    assert!(template.part_counts().known > 1_000, "{:?}", template.part_counts());
}

#[test]
fn a_template_that_takes_long_to_compare_is_rendered_as_a_whole() {
    let source = "{% for m in messages %}{{ m.content }}{% for a in range(90) %}{% for b in range(90) %}{% endfor %}{% endfor %}{% endfor %}";
    assert!(!load(source).part_counts().in_parts);
}

#[test]
fn whitespace_is_trimmed_as_in_the_whole() {
    let marks = ["", "-", "+"];
    let gaps = ["", " ", "\n", "  \n  ", " x ", "\n\t"];
    for (number, gap) in gaps.iter().cycle().take(54).enumerate() {
        let m = |n: usize| marks[number / n % 3];
        let source = format!(
            "{gap}{{%{a} set x = 1 {b}%}}{gap}{{%{b} for m in messages {c}%}}{gap}{{{{{c} m.content {a}}}}}{gap}{{%{a} endfor {b}%}}{gap}{{%{c} if x {a}%}}{gap}y{gap}{{%{a} endif {c}%}}{gap}{{#{b} z {a}#}}{gap}{{%{c} for m in messages {b}%}}{gap}{{% if m {a}%}}{gap}{{%{b} endif {c}%}}{gap}{{%{b} endfor {c}%}}{gap}",
            a = m(1),
            b = m(3),
            c = m(9),
        );
        let template = load(&source);
        assert!(template.part_counts().in_parts, "{source:?}");
        let conversation = said(vec![made(0, "one"), made(2, "two")]);
        let turn = conversation.clone();
        let text = template.render(&turn, RenderOptions::default()).unwrap();
        assert_eq!(text, template.render(&alone(&turn), RenderOptions::default()).unwrap());
    }
}

#[derive(Debug, Clone)]
enum Step {
    Say(u8, String),
    Forget(u8),
    Replace(u8, u8, String),
    Remove(u8),
    System(String),
    Tools(usize),
    Swap(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let text = "[a-c <>/{}\"\n]{0,9}|</think>x|<think>\ny\n</think>z|Ünï \u{1F600}";
    prop_oneof![
        8 => (any::<u8>(), text).prop_map(|(kind, text)| Step::Say(kind, text)),
        1 => any::<u8>().prop_map(Step::Forget),
        1 => (any::<u8>(), any::<u8>(), text).prop_map(|(at, kind, text)| Step::Replace(at, kind, text)),
        1 => any::<u8>().prop_map(Step::Remove),
        1 => text.prop_map(Step::System),
        1 => (0usize..3).prop_map(Step::Tools),
        1 => any::<u8>().prop_map(Step::Swap),
    ]
}

fn apply(conversation: &mut Conversation, step: Step) {
    let messages = &mut conversation.messages;
    let place = |at: u8| usize::from(at) % messages.len().max(1);
    match step {
        Step::Say(kind, text) => messages.push(made(kind, &text)),
        Step::Forget(at) => {
            let length = place(at);
            messages.truncate(length);
        }
        Step::Replace(at, kind, text) => {
            let at = place(at);
            if let Some(message) = messages.get_mut(at) {
                *message = made(kind, &text);
            }
        }
        Step::Remove(at) => {
            let at = place(at);
            if at < messages.len() {
                messages.remove(at);
            }
        }
        Step::System(text) => conversation.system = vec![Block::text(text)],
        Step::Tools(count) => conversation.tools = tools(count),
        Step::Swap(at) => {
            let at = place(at);
            messages.rotate_left(at);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn parts_give_what_the_whole_gives(
        steps in prop::collection::vec((step(), any::<u8>()), 1..40),
        base in any::<u8>(),
    ) {
        thread_local! {
            // The memory goes on from case to case, as it does between sessions.
            static TEMPLATES: Vec<(&'static str, ChatTemplate)> =
                STYLES.iter().map(|(name, source)| (*name, load(source))).collect();
        }
        TEMPLATES.with(|templates| {
            let mut conversation = Conversation::default();
            conversation.messages.push(made(0, "first"));
            for (step, option) in steps {
                apply(&mut conversation, step);
                // Options mostly stay the same in a session.
                let options = options(if option % 4 == 0 { option / 4 } else { base });
                for (name, template) in templates {
                    let shared = template.render_with_breakpoints(&conversation.clone(), options);
                    let turn = conversation.clone();
                    let again = template.render_with_breakpoints(&turn, options);
                    let whole = template.whole(template.context(&alone(&turn), options, template.shape, 1));
                    let whole = whole.map(|text| {
                        if options.continue_final { hf::cut_after_final(text, &turn) } else { text }
                    });
                    let text = shared.as_ref().map(|rendered| rendered.text.clone().into_string());
                    prop_assert_eq!(&text.map_err(Clone::clone), &whole, "{}", name);
                    prop_assert_eq!(&again, &shared, "{}", name);
                    prop_assert_eq!(template.part_counts().differed, 0, "{}", name);
                }
            }
            Ok(())
        })?;
    }
}
