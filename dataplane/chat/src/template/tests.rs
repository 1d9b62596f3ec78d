//! Rendering: the demo model's template, other families' habits, hostile templates, breakpoints.

use serde_json::{Map, Value};

use std::sync::Arc;

use super::*;
use crate::ir::{Block, CacheControl, Content, Role, Tool, ToolKind};
use expect_test::{Expect, expect};
use serde_json::json;

const DEMO: &str = include_str!("../../../../plugins/native/demo-model/chat_template.jinja");

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, "<s>", "</s>").unwrap()
}

fn call(id: &str, name: &str, arguments: &str) -> Block {
    Block::from(Content::ToolCall {
        id: id.to_owned(),
        name: name.to_owned(),
        arguments: arguments.to_owned(),
    })
}

fn result(id: &str, text: &str) -> Block {
    Block::from(Content::ToolResult {
        call_id: id.to_owned(),
        blocks: vec![Block::text(text)],
        is_error: false,
    })
}

fn thinking(text: &str) -> Block {
    Block::from(Content::Thinking { text: text.to_owned(), signature: None })
}

fn tool(name: &str, description: &str, arguments: &[&str]) -> Tool {
    let properties: Map<String, Value> =
        arguments.iter().map(|name| ((*name).to_owned(), json!({"type": "string"}))).collect();
    Tool {
        name: name.to_owned(),
        description: description.to_owned(),
        schema: json!({"type": "object", "properties": properties}),
        client_name: None,
        namespace: None,
        kind: ToolKind::Function { strict: false },
        deferred: false,
        cache_control: None,
    }
}

fn weather() -> Conversation {
    let mut c = Conversation {
        tools: Arc::new(vec![
            tool("get_weather", "Current weather for a city", &["city"]),
            tool("add", "Add two numbers", &["a", "b"]),
        ]),
        ..Conversation::default()
    };
    c.push(Role::User, vec![Block::text("Weather in Oslo and 1 + 2?")]);
    c.push(
        Role::Assistant,
        vec![
            thinking("Two calls."),
            call("c1", "get_weather", "{\"city\":\"Oslo\"}"),
            call("c2", "add", "{\"a\":1,\"b\":2}"),
        ],
    );
    c.push(Role::Tool, vec![result("c1", "{\"sky\": \"clear\"}"), result("c2", "{\"sum\": 3}")]);
    c
}

fn check(source: &str, conversation: &Conversation, expected: Expect) {
    let text = template(source).render(conversation, RenderOptions::default()).unwrap();
    expected.assert_eq(&text);
}

#[test]
fn demo_model_takes_every_shape() {
    assert_eq!(template(DEMO).shape, Shape::FULL);
}

#[test]
fn demo_model_with_tools_and_default_system() {
    check(
        DEMO,
        &weather(),
        expect![[r#"
        <|system|>You are a helpful agent. Tools:
        get_weather(city): Current weather for a city
        add(a, b): Add two numbers<|end|><|user|>Weather in Oslo and 1 + 2?<|end|><|assistant|><think>Two calls.</think><tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call><tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call><|end|><|tool|>{"sky": "clear"}<|end|><|tool|>{"sum": 3}<|end|><|assistant|>"#]],
    );
}

#[test]
fn demo_model_with_own_system_text() {
    let mut c = weather();
    c.system.push(Block::text("Be brief."));
    c.messages.truncate(1);
    let tools = Arc::make_mut(&mut c.tools);
    tools.truncate(1);
    tools[0].description.clear();
    tools[0].schema = json!({"type": "object", "properties": 5});
    c.push(Role::Assistant, vec![call("c", "x", "not json")]);
    c.push_system(vec![Block::text("Later rule.")]);
    c.push(Role::User, vec![Block::text("a"), Block::text("b")]);
    check(
        DEMO,
        &c,
        expect![[r#"
        <|system|>Be brief.
        Tools:
        get_weather()<|end|><|user|>Weather in Oslo and 1 + 2?<|end|><|assistant|><tool_call>{"name": "x", "arguments": not json}</tool_call><|end|><|system|>Later rule.<|end|><|user|>a
        b<|end|><|assistant|>"#]],
    );
}

#[test]
fn demo_model_without_anything() {
    let mut c = Conversation::default();
    c.push(Role::User, vec![Block::text("Hello!")]);
    check(
        DEMO,
        &c,
        expect![[r#"<|system|>You are a helpful agent.<|end|><|user|>Hello!<|end|><|assistant|>"#]],
    );
}

const CHATML: &str = "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}{%- for tool in tools %}{{- \"\\n\" }}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}{%- for message in messages %}{%- if not (loop.first and message.role == 'system') %}{{- '<|im_start|>' + message.role + '\\n' }}{%- if message.reasoning_content is defined and loop.last %}{{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}{{- message.content }}{%- for c in message.tool_calls or [] %}{{- '\\n<tool_call>\\n{\"name\": \"' + c.function.name + '\", \"arguments\": ' + (c.function.arguments | tojson) + '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- elif enable_thinking %}{{- '<think>\\n' }}{%- endif %}{%- endif %}";

#[test]
fn json_is_spaced_like_python_and_not_escaped_for_html() {
    let mut c = Conversation {
        tools: Arc::new(vec![tool("f", "a < b & 'c' é", &["x"])]),
        ..Conversation::default()
    };
    c.push(Role::User, vec![Block::text("hi")]);
    check(
        CHATML,
        &c,
        expect![[r#"
        <|im_start|>system

        {"type": "function", "function": {"name": "f", "description": "a < b & 'c' é", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}}<|im_end|>
        <|im_start|>user
        hi<|im_end|>
        <|im_start|>assistant
    "#]],
    );
}

#[test]
fn tojson_options() {
    let source = "{{ messages[0].content }}{% set v = {'b': [1, 2.5], 'a': 'é', 'e': {}, 'l': []} %}{{ v | tojson(indent=2) }}{{ v | tojson(sort_keys=true, ensure_ascii=true) }}{{ v | tojson(separators=(',', ':')) }}";
    let mut c = Conversation::default();
    c.push(Role::User, vec![Block::text("-")]);
    check(
        source,
        &c,
        expect![[r#"
        -{
          "b": [
            1,
            2.5
          ],
          "a": "é",
          "e": {},
          "l": []
        }{"a": "\u00e9", "b": [1, 2.5], "e": {}, "l": []}{"b":[1,2.5],"a":"é","e":{},"l":[]}"#]],
    );
}

#[test]
fn templates_are_asked_what_becomes_of_thoughts() {
    let after = |template: &str| ChatTemplate::new(template, "<s>", "</s>").unwrap().thoughts();
    assert_eq!(after(include_str!("styles/qwen3.jinja")), Thoughts::FallAfterLoop);
    assert_eq!(after(include_str!("styles/glm.jinja")), Thoughts::FallAfterLoop);
    assert_eq!(after(include_str!("styles/deepseek.jinja")), Thoughts::Fall);
    assert_eq!(after(include_str!("styles/llama3.jinja")), Thoughts::Fall);
    let always = "{% for m in messages %}{{ m.reasoning_content }}{{ m.content }}{% endfor %}";
    assert_eq!(after(always), Thoughts::Stay);
}

#[test]
fn thinking_switch_and_opened_thinking() {
    let template = template(CHATML);
    let mut c = Conversation::default();
    c.push(Role::User, vec![Block::text("hi")]);
    let with = |thinking| RenderOptions { thinking, ..RenderOptions::default() };
    let on = template.render_with_breakpoints(&c, with(Thinking::Enabled)).unwrap();
    assert!(on.thinking_open && on.text.ends_with("<think>\n"), "{:?}", on.text);
    let off = template.render_with_breakpoints(&c, with(Thinking::Disabled)).unwrap();
    assert!(!off.thinking_open && off.text.ends_with("</think>\n\n"));
    let auto = template.render_with_breakpoints(&c, with(Thinking::Auto)).unwrap();
    assert!(auto.text.ends_with("assistant\n"));
}

#[test]
fn strict_templates_get_what_they_take() {
    let strict = "{% for message in messages %}{% if message.role not in ['user', 'assistant'] %}{{ raise_exception('role ' + message.role + ' not supported') }}{% endif %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}[{{ message.role }}] {{ message.content }}\n{% endfor %}";
    let t = template(strict);
    assert_eq!(
        t.shape,
        Shape {
            system: false,
            late_system: false,
            tool_role: false,
            tool_calls: false,
            repeated_role: false
        }
    );
    let mut c = weather();
    c.system.push(Block::text("Be brief."));
    c.push(Role::User, vec![Block::text("And?")]);
    check(
        strict,
        &c,
        expect![[r#"
        [user] Be brief.

        Weather in Oslo and 1 + 2?
        [assistant] <tool_call>{"name": "get_weather", "arguments": {"city":"Oslo"}}</tool_call><tool_call>{"name": "add", "arguments": {"a":1,"b":2}}</tool_call>
        [user] <tool_response>{"sky": "clear"}</tool_response>

        <tool_response>{"sum": 3}</tool_response>

        And?
    "#]],
    );
}

#[test]
fn a_refusal_is_the_clients_and_a_fault_is_ours() {
    let source = "{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}";
    let mut c = weather();
    c.push(Role::User, vec![Block::text("And?")]);
    let error = template(source).render(&c, RenderOptions::default()).unwrap_err();
    assert_eq!(error, TemplateError::Refused("too long".to_owned()));
    assert_eq!(ApiError::from(error).kind, ErrorKind::InvalidRequest);
    let broken = ChatTemplate::new("{{ messages[0].content }}{% if", "", "").unwrap_err();
    assert!(matches!(broken, TemplateError::Syntax(_)), "{broken}");
    let silent = ChatTemplate::new("nothing", "", "").unwrap_err();
    assert!(matches!(silent, TemplateError::Unusable(_)), "{silent}");
}

#[test]
fn a_template_can_not_run_for_ever_or_fill_memory() {
    let trap = |body: &str| {
        let source = format!(
            "{{{{ messages[0].content }}}}{{% if messages[0].content == 'trap' %}}{body}{{% endif %}}"
        );
        let mut c = Conversation::default();
        c.push(Role::User, vec![Block::text("trap")]);
        template(&source).render(&c, RenderOptions::default()).unwrap_err()
    };
    let spin = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}";
    assert_eq!(trap(spin), TemplateError::TooManySteps);
    let recursion = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(matches!(trap(recursion), TemplateError::Failed(_)));
    let flood = "{% set s = 'x' * 100000 %}{% for a in range(10000) %}{{ s }}{% endfor %}";
    assert_eq!(trap(flood), TemplateError::TooLong);
}

#[test]
fn generation_marks_vanish() {
    let source = "{% for m in messages %}\n{%- if m.role == 'user' %}U{{ m.content }}{% else %}{%- generation -%} A{{ m.content }} {%- endgeneration %}{% endif %}\n{% endfor %}";
    let mut c = Conversation::default();
    c.push(Role::User, vec![Block::text("1")]);
    c.push(Role::Assistant, vec![Block::text("2")]);
    check(source, &c, expect!["U1A2"]);
}

#[test]
fn a_tag_that_only_opens_is_refused() {
    for source in ["{%}", "{% }", "{%", "a{%}b%}"] {
        let refused = ChatTemplate::new(source, "", "").unwrap_err();
        assert!(matches!(refused, TemplateError::Syntax(_)), "{source}: {refused}");
    }
}

#[test]
fn line_breaks_of_a_template_are_newlines() {
    let source = "{% for m in messages %}\r\n{{ m.content }}\r\n{% endfor %}\rend";
    let mut c = Conversation::default();
    c.push(Role::User, vec![Block::text("keeps\r\nits own")]);
    let text = template(source).render(&c, RenderOptions::default()).unwrap();
    assert_eq!(text, "keeps\r\nits own\nend");
}

fn prefixes(source: &str, c: &Conversation) -> Vec<(u64, String)> {
    let rendered = template(source).render_with_breakpoints(c, RenderOptions::default()).unwrap();
    rendered
        .breakpoints
        .iter()
        .map(|b| (b.ttl_ms, rendered.text[..b.end_bytes].to_owned()))
        .collect()
}

#[test]
fn breakpoints_reach_as_far_as_their_prefix_stays_equal() {
    let mark = |ttl_ms| Some(CacheControl { ttl_ms });
    let mut c = weather();
    c.system = vec![Block::text("Base."), Block::text("More.")];
    Arc::make_mut(&mut c.tools)[1].cache_control = mark(1);
    c.system[0].cache_control = mark(2);
    c.system[1].cache_control = mark(3);
    Arc::make_mut(&mut c.messages[0]).blocks[0].cache_control = mark(4);
    Arc::make_mut(&mut c.messages[2]).blocks[0].cache_control = mark(5);
    Arc::make_mut(&mut c.messages[2]).blocks[1].cache_control = mark(6);
    let got = prefixes(DEMO, &c);
    let ends: Vec<(u64, &str)> = got
        .iter()
        .map(|(ttl, text)| {
            (*ttl, text.char_indices().rev().nth(27).map_or(&text[..], |(at, _)| &text[at..]))
        })
        .collect();
    expect![[r#"
        [
            (
                1,
                "y\nadd(a, b): Add two numbers",
            ),
            (
                2,
                "<|system|>Base.\n",
            ),
            (
                3,
                "d two numbers<|end|><|user|>",
            ),
            (
                4,
                "er in Oslo and 1 + 2?<|end|>",
            ),
            (
                5,
                "ool|>{\"sky\": \"clear\"}<|end|>",
            ),
            (
                6,
                "d|><|tool|>{\"sum\": 3}<|end|>",
            ),
        ]
    "#]]
    .assert_debug_eq(&ends);
}

#[test]
fn a_breakpoint_at_the_end_covers_all_but_the_generation_prompt() {
    let mut c = weather();
    Arc::make_mut(&mut c.messages[2]).blocks[1].cache_control = Some(CacheControl { ttl_ms: 9 });
    let text = template(DEMO).render(&c, RenderOptions::default()).unwrap();
    let got = prefixes(DEMO, &c);
    assert_eq!(got, [(9, text.strip_suffix("<|assistant|>").unwrap().to_owned())]);
}

#[test]
fn next_turn_extends_the_last_prefix() {
    let mut c = weather();
    Arc::make_mut(&mut c.messages[2]).blocks[1].cache_control = Some(CacheControl { ttl_ms: 9 });
    let pinned = prefixes(DEMO, &c).remove(0).1;
    c.push(Role::Assistant, vec![Block::text("Clear, and 3.")]);
    c.push(Role::User, vec![Block::text("Thanks")]);
    let next = template(DEMO).render(&c, RenderOptions::default()).unwrap();
    assert!(next.starts_with(&pinned), "{next}");
}

#[test]
fn a_prefilled_answer_is_left_open() {
    let mut c = Conversation::default();
    c.push(Role::User, vec![Block::text("Pick one")]);
    c.push(Role::Assistant, vec![Block::text("The answer is ( ")]);
    let options = RenderOptions {
        add_generation_prompt: false,
        continue_final: true,
        ..RenderOptions::default()
    };
    let text = template(DEMO).render(&c, options).unwrap();
    assert!(text.ends_with("<|assistant|>The answer is ("), "{text}");
}

#[test]
fn ids_of_calls_do_not_reach_a_prompt() {
    let source = "{% for m in messages %}{{ m.role }} {{ m.content }}{% for c in m.tool_calls or [] %} {{ c.id }} {{ c.function.name }} {{ c.function.arguments }}{% endfor %} {{ m.tool_call_id }} {{ m.name }}\n{% endfor %}";
    let template = ChatTemplate::new(source, "", "").unwrap();
    let prompt = |ids: [&str; 3]| {
        let [a, b, c] = ids;
        let mut talk = Conversation::default();
        talk.push(Role::User, vec![Block::text("go")]);
        talk.push(Role::Assistant, vec![call(a, "read", "{}"), call(b, "list", "{}")]);
        talk.push(Role::Tool, vec![result(b, "B"), result(a, "A"), result("lost", "?")]);
        talk.push(Role::Assistant, vec![call(c, "read", "{}")]);
        talk.push(Role::Tool, vec![result(c, "C")]);
        template.render(&talk, RenderOptions::default()).unwrap()
    };
    let first = prompt(["toolu_1", "toolu_2", "toolu_3"]);
    expect![[r#"
        user go  
        assistant  call00001 read {} call00002 list {}  
        tool B call00002 list
        tool A call00001 read
        tool ? call00003 
        assistant  call00004 read {}  
        tool C call00004 read
    "#]]
    .assert_eq(&first);
    assert_eq!(first, prompt(["call_9_0", "call_9_1", "call_11_0"]));
    // An id that comes twice names two calls.
    assert_eq!(first, prompt(["0", "1", "0"]));
}

#[test]
fn shared_tools_are_written_once_and_changed_ones_anew() {
    let source = "{% for m in messages %}{{ m.content }}{% endfor %}\
        {% for t in tools %}{{ t | tojson }}|{{ t | tojson(indent=1) | length }}{% endfor %}";
    let template = template(source);
    let alone = weather();
    let mut shared = weather();
    let other = shared.clone();
    let render = |c: &Conversation| template.render(c, RenderOptions::default()).unwrap();
    let written = render(&alone);
    assert!(written.contains("\"name\": \"get_weather\""), "{written}");
    for _ in 0..3 {
        assert_eq!(render(&shared), written);
        assert_eq!(render(&other), written);
    }
    Arc::make_mut(&mut shared.tools)[0].name = "other".to_owned();
    let mut changed = weather();
    changed.tools = Arc::new(shared.tools.to_vec());
    assert_eq!(render(&shared), render(&changed));
    assert_ne!(render(&shared), written);
    assert_eq!(render(&other), written);
}

#[test]
fn a_template_that_the_engine_panics_at_fails() {
    let slice = "{% if messages | length > 2 %}{{ messages[0].content[:0] | list }}{% for m in [][::-1] %}{% endfor %}{% endif %}";
    let source = format!("{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}{slice}");
    let template = template(&source);
    let mut talk = Conversation::default();
    talk.push(Role::User, vec![Block::text("one")]);
    let render = |talk: &Conversation| template.render(talk, RenderOptions::default());
    assert_eq!(render(&talk).unwrap(), "one");
    talk.push(Role::Assistant, vec![Block::text("two")]);
    talk.push(Role::User, vec![Block::text("three")]);
    assert!(matches!(render(&talk), Err(TemplateError::Failed(_))));
    // In parts, and with renderings that are cut.
    let shared = talk.clone();
    assert!(matches!(render(&shared), Err(TemplateError::Failed(_))));
    let rendered = template.render_with_breakpoints(&shared, RenderOptions::default());
    assert!(matches!(rendered, Err(TemplateError::Failed(_))));
    let everywhere = ChatTemplate::new("{% for m in [][::-1] %}{% endfor %}x", "", "");
    assert!(matches!(everywhere, Err(TemplateError::Unusable(_) | TemplateError::Failed(_))));
}
