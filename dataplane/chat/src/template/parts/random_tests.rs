//! Templates made at random, over conversations that grow: whatever they do, parts give what the whole gives.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;

use super::super::{ChatTemplate, RenderOptions};
use super::tests::{alone, made, said, tools};

/// What every random template begins with, so that later statements have something to read.
const BEGINNING: &str = "{% set ns = namespace(a=0, b='') %}{% set l = messages %}{% set x = 'x' %}\
    {% macro f(n) %}<{{ n.role }}{{ x }}>{% endmacro %}{{ messages[0].content }}";

const EXPRESSIONS: &[&str] = &[
    "ns.a",
    "ns.b",
    "x",
    "messages[0].content",
    "messages[-1].role",
    "messages[2].role",
    "messages | length",
    "messages[1:] | length",
    "l[0].content",
    "(l | last).role",
    "l | map(attribute='role') | join('+')",
    "f(messages[0])",
    "tools | tojson",
    "t is defined",
    "(first or messages[0]).role",
    "enable_thinking",
    "add_generation_prompt",
    "'%}' ~ \"}}\"",
];
const LOOPED: &[&str] = &[
    "m.content",
    "m.role",
    "loop.index0",
    "loop.last",
    "loop.revindex",
    "loop.previtem.role",
    "(loop.nextitem or m).content",
    "messages[loop.index0 - 1].role",
    "l[loop.index].role",
    "f(m)",
    "m == messages[-1]",
    "m in l",
];
const SETS: &[&str] = &[
    "x = x ~ 'y'",
    "x = ns.a",
    "x = none",
    "ns.a = ns.a + 1",
    "ns.b = messages[0].content",
    "ns.b = [ns.a, {'k': x}]",
    "l = messages[1:]",
    "l = messages",
    "l = l[1:]",
    "l = messages | selectattr('role', 'equalto', 'user') | list",
    "messages = messages[1:]",
    "t = tools",
    "first = messages[0]",
    "_hidden = x",
    "x = _hidden or 'none'",
];
const LOOPED_SETS: &[&str] =
    &["x = m.role", "ns.b = m.content", "ns.b = m", "ns.b = loop.last", "ns.a = loop.index0"];
const CONDITIONS: &[&str] = &[
    "ns.a > 2",
    "x is defined",
    "messages[0].role == 'user'",
    "messages",
    "l",
    "tools",
    "add_generation_prompt",
    "ns.b",
];
const LOOPED_CONDITIONS: &[&str] = &[
    "loop.first",
    "loop.last",
    "m.role == 'user'",
    "ns.b == m.content",
    "m.tool_calls",
    "x == m.role",
];
const LISTS: &[&str] = &[
    "messages",
    "l",
    "messages[1:]",
    "l[2:]",
    "(messages[::-1] if messages else [])",
    "messages[:2]",
];

fn mark() -> impl Strategy<Value = &'static str> {
    select(&["", "", "-", "+"][..])
}

fn gap() -> impl Strategy<Value = &'static str> {
    select(&["", "", " ", "\n", " \n ", " a "][..])
}

fn either(
    all: &'static [&'static str],
    more: &'static [&'static str],
    looped: bool,
) -> Vec<&'static str> {
    let more = if looped { more } else { &[] };
    // What a loop offers is taken more often than its share.
    all.iter().chain(more).chain(more).copied().collect()
}

fn statement(looped: bool, depth: u32) -> BoxedStrategy<String> {
    let expression = (gap(), mark(), select(either(EXPRESSIONS, LOOPED, looped)), mark())
        .prop_map(|(gap, left, what, right)| format!("{gap}{{{{{left} {what} {right}}}}}"));
    let set = (gap(), mark(), select(either(SETS, LOOPED_SETS, looped)), mark())
        .prop_map(|(gap, left, what, right)| format!("{gap}{{%{left} set {what} {right}%}}"));
    if depth == 0 {
        return prop_oneof![3 => expression, 2 => set].boxed();
    }
    let body = move |looped| {
        prop::collection::vec(statement(looped, depth - 1), 0..4).prop_map(|all| all.concat())
    };
    let condition = select(either(CONDITIONS, LOOPED_CONDITIONS, looped));
    let branches = (condition, mark(), body(looped), body(looped), mark(), gap()).prop_map(
        |(condition, left, then, other, right, gap)| {
            format!("{gap}{{%{left} if {condition} %}}{then}{{% else {right}%}}{other}{{%{left} endif {right}%}}{gap}")
        },
    );
    let name = if looped { "n" } else { "m" };
    let inner = if looped {
        Just("{{ n.role }}{{ loop.index }}".to_owned()).boxed()
    } else {
        body(true).boxed()
    };
    let repeated = (select(LISTS), mark(), mark(), inner, gap()).prop_map(
        move |(list, left, right, body, gap)| {
            format!("{gap}{{%{left} for {name} in {list} {right}%}}{gap}{body}{{%{right} endfor {left}%}}{gap}")
        },
    );
    prop_oneof![3 => expression, 2 => set, 2 => branches, 2 => repeated].boxed()
}

/// Renders a conversation turn by turn; gives back how often a part was known.
fn compare(source: &str, kinds: Vec<(u8, String, bool)>) -> Result<u64, TestCaseError> {
    // Some are refused by the engine, and some by their own first rendering.
    let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") else { return Ok(0) };
    let loaded = template.part_counts();
    let mut conversation = said(vec![made(0, "first")]);
    conversation.tools = tools(1);
    for (kind, text, forgets) in kinds {
        if forgets && conversation.messages.len() > 2 {
            conversation.messages.remove(1);
        }
        conversation.messages.push(made(kind, &text));
        for add_generation_prompt in [true, false] {
            let options = RenderOptions { add_generation_prompt, ..RenderOptions::default() };
            let turn = conversation.clone();
            let context = template.context(&alone(&turn), options, template.shape, 1);
            let whole = template.whole(context);
            for _ in 0..2 {
                prop_assert_eq!(&template.render(&turn, options), &whole, "{}", source);
            }
        }
    }
    let counts = template.part_counts();
    prop_assert_eq!(counts.differed, 0);
    Ok(counts.known - loaded.known)
}

#[test]
fn a_random_template_gives_in_parts_what_it_gives_as_a_whole() {
    let config = ProptestConfig { cases: 256, ..ProptestConfig::default() };
    let statements = prop::collection::vec(statement(false, 2), 1..6);
    let kinds = prop::collection::vec((any::<u8>(), "[a-c]{0,2}", any::<bool>()), 1..10);
    let known = Cell::new(0);
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&(statements, kinds), |(statements, kinds)| {
        let source = format!("{BEGINNING}{}", statements.concat());
        known.set(known.get() + compare(&source, kinds)?);
        Ok(())
    });
    outcome.unwrap();
    // What is never rendered in parts would not be tested.
    assert!(known.get() > 1_000, "{} parts were known", known.get());
}
