//! The families one by one: what each writes, written and read again, however it is cut.

use std::fmt::Write;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::family::Family;
use crate::ir::{Tool, ToolKind};

fn options(family: Family) -> OutputOptions {
    let tool = |name: &str, text: &str, number: &str| Tool {
        name: name.to_owned(),
        client_name: None,
        description: String::new(),
        schema: json!({"type": "object", "properties": {text: {"type": "string"}, number: {"type": "integer"}}}),
        namespace: None,
        kind: ToolKind::Function { strict: false },
        deferred: false,
        cache_control: None,
    };
    let tools = vec![tool("get_weather", "city", "days"), tool("write", "text", "line")];
    OutputOptions {
        family,
        types: ToolTypes::of(tools.into()),
        parse_thinking: true,
        parse_tools: true,
        ..OutputOptions::default()
    }
}

/// Thoughts, text and calls, neighbours of one kind joined.
fn read(family: Family, chunks: &[&str]) -> Vec<String> {
    let mut parser = OutputParser::new(options(family));
    let mut events: Vec<OutputEvent> = chunks.iter().flat_map(|chunk| parser.push(chunk)).collect();
    events.extend(parser.finish());
    let mut lines: Vec<(char, String)> = Vec::new();
    for event in events {
        let (kind, text) = match event {
            OutputEvent::Thinking(text) => ('?', text),
            OutputEvent::Text { delta, .. } => ('=', delta),
            OutputEvent::ToolCallStart { name, .. } => ('!', name),
            OutputEvent::ToolCallArguments(arguments) => (':', arguments),
            OutputEvent::ToolCallEnd => continue,
        };
        match lines.last_mut() {
            Some((last, line)) if *last == kind && kind != '!' => line.push_str(&text),
            _ => lines.push((kind, text)),
        }
    }
    lines.into_iter().map(|(kind, text)| format!("{kind}{text}")).collect()
}

fn chars(text: &str) -> Vec<&str> {
    let ends: Vec<usize> = text.char_indices().map(|(at, c)| at + c.len_utf8()).collect();
    ends.iter().scan(0, |from, end| Some(&text[std::mem::replace(from, *end)..*end])).collect()
}

fn check(family: Family, text: &str, expected: &[&str]) {
    assert_eq!(read(family, &[text]), expected, "{family:?} {text}");
    assert_eq!(read(family, &chars(text)), expected, "{family:?} by characters: {text}");
}

#[test]
fn each_family_is_read() {
    let weather = r#":{"city": "Oslo", "days": 2}"#;
    check(
        Family::Llama3Json,
        r#"{"name": "get_weather", "parameters": {"city": "Oslo", "days": 2}}; {"name": "now", "parameters": {}}"#,
        &["!get_weather", weather, "!now", ":{}"],
    );
    check(
        Family::Llama3Json,
        r#"<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Oslo", "days": 2}}"#,
        &["!get_weather", weather],
    );
    check(
        Family::Pythonic,
        r#"<|python_start|>[get_weather(city='Oslo', days=2), fs.read(path="a\n", all=True, at=[1, {"x": None}])]<|python_end|>"#,
        &[
            "!get_weather",
            r#":{"city":"Oslo","days":2}"#,
            "!fs.read",
            r#":{"path":"a\n","all":true,"at":[1,{"x":null}]}"#,
        ],
    );
    check(
        Family::Pythonic,
        r#"<|python_start|>{"name": "now", "parameters": {}}<|python_end|>"#,
        &["!now", ":{}"],
    );
    check(
        Family::Mistral,
        r#"[THINK]hm[/THINK]On it.[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}, {"name": "now", "arguments": {}, "id": "a"}]"#,
        &["?hm", "=On it.", "!get_weather", weather, "!now", ":{}"],
    );
    check(
        Family::Mistral,
        r#"[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo", "days": 2}[TOOL_CALLS]now[CALL_ID]x9[ARGS]{}"#,
        &["!get_weather", weather, "!now", ":{}"],
    );
    check(
        Family::DeepSeek,
        "<think>hm</think>Let me.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Oslo\", \"days\": 2}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        &["?hm", "=Let me.", "!get_weather", weather, "!now", ":{}"],
    );
    check(
        Family::Qwen3Coder,
        "I look.\n\n<tool_call>\n<function=write>\n<parameter=text>\nif a </parameter> b {\n  1\n}\n</parameter>\n<parameter=line>\n7\n</parameter>\n</function>\n</tool_call>\n<function=get_weather>\n<parameter=city>\n12\n</parameter>\n</function>\n</tool_call>",
        &[
            "=I look.",
            "!write",
            r#":{"text":"if a </parameter> b {\n  1\n}","line":7}"#,
            "!get_weather",
            r#":{"city":"12"}"#,
        ],
    );
    check(
        Family::Glm,
        "<think>hm</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call><tool_call>now</tool_call>",
        &["?hm", "!get_weather", r#":{"city":"Oslo","days":2}"#, "!now", ":{}"],
    );
    check(
        Family::MiniMax,
        "<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Oslo</parameter>\n<parameter name=\"days\">2</parameter>\n</invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>",
        &["!get_weather", r#":{"city":"Oslo","days":2}"#, "!now", ":{}"],
    );
    check(
        Family::Kimi,
        r#"Sure.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "Oslo", "days": 2}<|tool_call_end|><|tool_call_begin|>now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"#,
        &["=Sure.", "!get_weather", weather, "!now", ":{}"],
    );
    check(
        Family::Harmony,
        r#"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Oslo", "days": 2}"#,
        &["?hm", "=I look.", "!get_weather", weather],
    );
    check(
        Family::Harmony,
        "<|channel|>analysis<|message|>a < b<|end|><|start|>assistant to=functions.now<|channel|>commentary<|message|>{}<|call|><|start|>assistant<|channel|>final<|message|>Done, 1 < 2.<|return|>",
        &["?a < b", "!now", ":{}", "=Done, 1 < 2."],
    );
}

#[test]
fn what_only_looks_like_a_call_is_text() {
    for (family, text) in [
        (Family::Llama3Json, "{\"title\": \"x\"}"),
        (Family::Llama3Json, "{ not json"),
        (Family::Llama3Json, "So: {\"name\": \"f\", \"parameters\": {}} ; and more"),
        (Family::Pythonic, "[1] is a reference, [link](there) too"),
        (Family::Pythonic, "[f(x=g(1))]"),
        (Family::Pythonic, "[f(1)] "),
        (Family::Mistral, "[TOOL_CALLS] what is this"),
        (Family::Mistral, "a [list] of [things]"),
        (Family::DeepSeek, "<｜tool▁call▁begin｜>no arguments<｜tool▁call▁end｜>"),
        (Family::Qwen3Coder, "<tool_call>{\"name\": 1}</tool"),
        (Family::Qwen3Coder, "<function=f> <parameter=a>1"),
        (Family::Glm, "<tool_call>two words<arg_key>a</arg_key></tool_call>"),
        (Family::MiniMax, "<invoke name=\"f\">text</invoke>"),
        (Family::Kimi, "<|tool_call_begin|>f:0{}<|tool_call_end|>"),
        (Family::Harmony, "<|channel|>and nothing more"),
        (Family::Harmony, "no header at all"),
    ] {
        check(family, text, &[&format!("={text}")]);
    }
}

/// A call as its family writes it, with what stands around all calls of an answer.
fn write(family: Family, calls: &[(String, Map<String, Value>)]) -> String {
    let json = |name: &str, arguments: &Map<String, Value>, key: &str| {
        format!("{{\"name\": {}, \"{key}\": {}}}", Value::from(name), json!(arguments))
    };
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut text = String::new();
    for (at, (name, arguments)) in calls.iter().enumerate() {
        let object = json!(arguments);
        match family {
            Family::Hermes => {
                write!(text, "\n<tool_call>\n{}\n</tool_call>", json(name, arguments, "arguments"))
            }
            Family::Llama3Json => {
                let part = if at > 0 { "; " } else { "" };
                write!(text, "{part}{}", json(name, arguments, "parameters"))
            }
            Family::Pythonic => {
                let literal = |value: &Value| match value {
                    Value::Bool(true) => "True".to_owned(),
                    Value::Bool(false) => "False".to_owned(),
                    Value::Null => "None".to_owned(),
                    other => other.to_string(),
                };
                let list: Vec<String> =
                    arguments.iter().map(|(k, v)| format!("{k}={}", literal(v))).collect();
                let open = if at == 0 { "[" } else { ", " };
                let close = if at + 1 == calls.len() { "]" } else { "" };
                write!(text, "{open}{name}({}){close}", list.join(", "))
            }
            Family::Mistral => write!(text, "[TOOL_CALLS]{name}[ARGS]{object}"),
            Family::DeepSeek => write!(
                text,
                "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{object}<｜tool▁call▁end｜>"
            ),
            Family::Kimi => write!(
                text,
                "<|tool_call_begin|>functions.{name}:{at}<|tool_call_argument_begin|>{object}<|tool_call_end|>"
            ),
            Family::Harmony => {
                let end = if at + 1 == calls.len() { "" } else { "<|call|><|start|>assistant" };
                write!(
                    text,
                    "<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{object}{end}"
                )
            }
            Family::Qwen3Coder | Family::Glm | Family::MiniMax => {
                let all = arguments.iter().map(|(key, value)| (key, plain(value)));
                let parts = all.map(|(key, value)| match family {
                    Family::Glm => {
                        format!("<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n")
                    }
                    Family::MiniMax => format!("<parameter name=\"{key}\">{value}</parameter>\n"),
                    _ => format!("<parameter={key}>\n{value}\n</parameter>\n"),
                });
                let parts = parts.collect::<String>();
                match family {
                    Family::Glm => write!(text, "\n<tool_call>{name}\n{parts}</tool_call>"),
                    Family::MiniMax => write!(text, "<invoke name=\"{name}\">\n{parts}</invoke>\n"),
                    _ => write!(
                        text,
                        "\n<tool_call>\n<function={name}>\n{parts}</function>\n</tool_call>"
                    ),
                }
            }
        }
        .unwrap();
    }
    match family {
        Family::DeepSeek => format!("<｜tool▁calls▁begin｜>{text}<｜tool▁calls▁end｜>"),
        Family::Kimi => format!("<|tool_calls_section_begin|>{text}<|tool_calls_section_end|>"),
        Family::MiniMax => format!("<minimax:tool_call>\n{text}</minimax:tool_call>"),
        _ => text,
    }
}

fn family() -> impl Strategy<Value = Family> {
    proptest::sample::select(&Family::ALL[..])
}

fn calls() -> impl Strategy<Value = Vec<(String, Map<String, Value>)>> {
    // Texts that would be something else without their type, and some that look like markup.
    let text = prop_oneof![
        "[a-zA-Z0-9 _.,;:(){}'\"<>/\\\\-]{0,12}".prop_map(|s| s.trim().to_owned()),
        Just("</tool_call> x".to_owned()),
        Just("12".to_owned()),
        Just("true".to_owned()),
        Just("line\nline".to_owned()),
        Just("中文 ]}".to_owned()),
    ];
    let call = (text, proptest::option::of(-1000..1000_i64), any::<bool>());
    proptest::collection::vec(call, 1..4).prop_map(|calls| {
        let one = |(text, number, first): (String, Option<i64>, bool)| {
            let (name, text_key, number_key) =
                if first { ("get_weather", "city", "days") } else { ("write", "text", "line") };
            let mut arguments = Map::new();
            arguments.insert(text_key.to_owned(), Value::String(text));
            arguments.extend(number.map(|n| (number_key.to_owned(), Value::from(n))));
            (name.to_owned(), arguments)
        };
        calls.into_iter().map(one).collect()
    })
}

/// Pieces of markup of all families, and what stands between them.
fn debris() -> impl Strategy<Value = String> {
    let markup = Family::ALL.iter().flat_map(|family| {
        let markup = family.markup();
        let sections = markup.sections.iter().map(|section| section.open);
        let headers = markup.headers.iter().flat_map(|h| h.opens.iter().copied().chain([h.end]));
        let fixed = [markup.think, markup.think_end].into_iter();
        fixed.chain(sections).chain(markup.skipped.iter().copied()).chain(headers)
    });
    let mut pieces: Vec<&str> = markup.filter(|tag| !tag.is_empty()).collect();
    pieces.extend([
        "</tool_call>",
        "</function>",
        "</parameter>",
        "<parameter=a>",
        "</invoke>",
        "[ARGS]",
        "\n",
        "\n\n",
        " ",
        ";",
        "{\"name\": \"f\", \"arguments\": {}}",
        "{\"name\": \"f\"",
        ", \"parameters\": {\"a\": \"}\"}}",
        "f(a=1)",
        "]",
        "[",
        "{",
        "}",
        "\"",
        "'",
        "中",
        "STOP",
        "text",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<|tool_call_end|>",
        "<|tool_call_argument_begin|>",
        "<arg_key>",
        "</arg_key><arg_value>",
        "</arg_value>",
        "name",
        "to=functions.f",
    ]);
    let piece = (proptest::sample::select(pieces), 0..4_usize, any::<bool>());
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| {
        // Some tags are cut short, to look like others for a while.
        let cut = |(piece, drop, is_cut): (&str, usize, bool)| {
            let keep = piece.chars().count().saturating_sub(if is_cut { drop } else { 0 });
            piece.chars().take(keep).collect::<String>()
        };
        pieces.into_iter().map(cut).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn calls_are_read_as_they_were_written(family in family(), calls in calls(), cut in 1..9_usize) {
        let text = write(family, &calls);
        let pieces = chars(&text);
        let chunks: Vec<String> = pieces.chunks(cut).map(<[&str]>::concat).collect();
        let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
        let lines = read(family, &chunks);
        let names: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix('!')).collect();
        let written: Vec<&str> = calls.iter().map(|(name, _)| name.as_str()).collect();
        prop_assert_eq!(names, written, "{:?} {}", family, text);
        let arguments = lines.iter().filter_map(|line| line.strip_prefix(':'));
        for ((_, written), read) in calls.iter().zip(arguments) {
            let read: Value = serde_json::from_str(read).expect("arguments are JSON");
            prop_assert_eq!(read, json!(written), "{:?} {}", family, text);
        }
    }

    #[test]
    fn cutting_changes_nothing(family in family(), text in debris(), stop in any::<bool>(), cuts in proptest::collection::vec(1..6_usize, 1..40)) {
        let mut options = options(family);
        if stop {
            options.stop = vec!["STOP".to_owned()];
        }
        let all = |chunks: &[String]| {
            let mut parser = OutputParser::new(options.clone());
            let mut transcript = crate::Transcript::default();
            let mut events: Vec<OutputEvent> = chunks.iter().flat_map(|c| parser.push(c)).collect();
            events.extend(parser.finish());
            events.iter().for_each(|event| transcript.push(event));
            (format!("{:?}", transcript.items()), parser.calls(), parser.stopped().map(str::to_owned))
        };
        let pieces = chars(&text);
        let mut rest = pieces.as_slice();
        let mut chunks = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (chunk, left) = rest.split_at((*cut).min(rest.len()));
            chunks.push(chunk.concat());
            rest = left;
        }
        prop_assert_eq!(all(&chunks), all(std::slice::from_ref(&text)), "{:?}", family);
    }
}
