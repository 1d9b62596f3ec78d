//! The output parser: cases by table, and the property that splitting changes nothing.

use super::*;
use crate::limits::TOOL_CALL_BYTES_MAX;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use std::fmt::Write;

fn options() -> OutputOptions {
    OutputOptions { parse_thinking: true, parse_tools: true, ..OutputOptions::default() }
}

/// All events of `chunks`, neighbours of one kind joined, one a line.
fn run(options: OutputOptions, chunks: &[&str]) -> String {
    let mut parser = OutputParser::new(options);
    let mut events = Vec::new();
    for chunk in chunks {
        events.extend(parser.push(chunk));
    }
    events.extend(parser.finish());
    let mut transcript = crate::Transcript::default();
    for event in &events {
        transcript.push(event);
    }
    let mut lines = String::new();
    for item in transcript.items() {
        match item {
            crate::encode::Item::Thinking(text) => writeln!(lines, "think {text:?}"),
            crate::encode::Item::Text { text, .. } => writeln!(lines, "text {text:?}"),
            crate::encode::Item::ToolCall { index, name, arguments } => {
                writeln!(lines, "call {index} {name} {arguments}")
            }
        }
        .unwrap();
    }
    if let Some(stop) = parser.stopped() {
        writeln!(lines, "stop {stop:?}").unwrap();
    }
    lines
}

fn check(options: OutputOptions, text: &str, expected: Expect) {
    expected.assert_eq(&run(options.clone(), &[text]));
    let chars: Vec<String> = text.chars().map(String::from).collect();
    let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
    expected.assert_eq(&run(options, &chars));
}

#[test]
fn thinking_text_and_calls() {
    check(
        options(),
        "<think>\nA city.\nSo: weather.\n</think>\n\nLet me look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\",  \"n\": 1.0}}\n</tool_call>\n<tool_call>{\"name\":\"add\",\"arguments\":{}}</tool_call>",
        expect![[r#"
            think "A city.\nSo: weather."
            text "Let me look."
            call 0 get_weather {"city": "Oslo",  "n": 1.0}
            call 1 add {}
        "#]],
    );
}

#[test]
fn demo_model_form() {
    check(
        options(),
        "<think>I should look.</think><tool_call>{\"name\": \"read_file\", \"arguments\": {\"path\": \"a.rs\"}}</tool_call>",
        expect![[r#"
            think "I should look."
            call 0 read_file {"path": "a.rs"}
        "#]],
    );
}

#[test]
fn malformed_calls_are_text() {
    check(
        options(),
        "So\n\n<tool_call>{\"name\": oops}</tool_call> and <tool_call>[1]</tool_call>!\n",
        expect![[r#"
            text "So\n\n<tool_call>{\"name\": oops}</tool_call> and <tool_call>[1]</tool_call>!\n"
        "#]],
    );
    check(
        options(),
        "<tool_call>{\"name\": \"f\", \"arguments\": 5}</tool_call>",
        expect![[r#"
            text "<tool_call>{\"name\": \"f\", \"arguments\": 5}</tool_call>"
        "#]],
    );
}

#[test]
fn a_call_cut_at_its_end_counts_if_whole() {
    check(
        options(),
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n",
        expect![[r#"
            call 0 f {"a": 1}
        "#]],
    );
    check(
        options(),
        "Hm <tool_call>{\"name\": \"f\", \"argum",
        expect![[r#"
            text "Hm <tool_call>{\"name\": \"f\", \"argum"
        "#]],
    );
}

#[test]
fn an_end_tag_inside_a_string_does_not_end_the_call() {
    check(
        options(),
        "<tool_call>{\"name\": \"write\", \"arguments\": {\"text\": \"use </tool_call> here\"}}</tool_call>ok",
        expect![[r#"
            call 0 write {"text": "use </tool_call> here"}
            text "ok"
        "#]],
    );
}

#[test]
fn slips_of_models_are_mended() {
    check(
        options(),
        "<tool_call>{\"parameters\": {\"q\": \"}\\\"{\"}, \"name\": \"s\"}</tool_call><tool_call>{\"name\": \"t\", \"arguments\": \"{\\\"a\\\": 2}\"}</tool_call><tool_call>{\"name\": \"u\"}</tool_call>",
        expect![[r#"
            call 0 s {"q": "}\"{"}
            call 1 t {"a": 2}
            call 2 u {}
        "#]],
    );
}

#[test]
fn thinking_opened_by_the_prompt() {
    let open = OutputOptions { thinking_open: true, ..options() };
    check(
        open.clone(),
        "\nfirst\n</think>\n\nthen",
        expect![[r#"
            think "first"
            text "then"
        "#]],
    );
    check(
        open,
        "cut off in thou",
        expect![[r#"
            think "cut off in thou"
        "#]],
    );
}

#[test]
fn tags_count_only_where_they_can_stand() {
    check(
        options(),
        "a <think> tag, a </think> tag, 1 < 2, <tool_box>, <",
        expect![[r#"
            text "a <think> tag, a </think> tag, 1 < 2, <tool_box>, <"
        "#]],
    );
    check(
        OutputOptions::default(),
        "<think>x</think><tool_call>{\"name\":\"f\"}</tool_call>",
        expect![[r#"
            text "<think>x</think><tool_call>{\"name\":\"f\"}</tool_call>"
        "#]],
    );
    check(
        options(),
        "<think>\n\n</think>\n\nplain\n\n",
        expect![[r#"
        text "plain\n\n"
    "#]],
    );
}

#[test]
fn stop_strings_end_visible_text_only() {
    let stop = |stops: &[&str]| OutputOptions {
        stop: stops.iter().map(|s| (*s).to_owned()).collect(),
        ..options()
    };
    check(
        stop(&["END"]),
        "<think>END of it</think>so EN END more END",
        expect![[r#"
        think "END of it"
        text "so EN "
        stop "END"
    "#]],
    );
    check(
        stop(&["\n\n"]),
        "one\ntwo\n\nthree",
        expect![[r#"
        text "one\ntwo"
        stop "\n\n"
    "#]],
    );
    check(
        stop(&["abcd", "bc"]),
        "xabcdx",
        expect![[r#"
        text "xa"
        stop "bc"
    "#]],
    );
    check(
        stop(&["never"]),
        "nev<tool_call>{\"name\":\"f\"}</tool_call>er",
        expect![[r#"
        text "nev"
        call 0 f {}
        text "er"
    "#]],
    );
    check(
        stop(&["ß!"]),
        "straß?ß!",
        expect![[r#"
        text "straß?"
        stop "ß!"
    "#]],
    );
}

#[test]
fn no_event_ever_holds_part_of_a_tag_or_stop_string() {
    let mut parser = OutputParser::new(OutputOptions { stop: vec!["STOP".into()], ..options() });
    let mut shown = Vec::new();
    for piece in ["Hi", " <", "tool", "_cal", "l>{\"na", "me\":\"f\"}</tool_", "call>", "S", "T"] {
        shown.push(format!("{:?}", parser.push(piece)));
    }
    expect![[r#"
        [Text { delta: "Hi", logprobs: [] }]
        [Text { delta: " ", logprobs: [] }]
        []
        []
        []
        []
        [ToolCallStart { index: 0, name: "f" }, ToolCallArguments("{}"), ToolCallEnd]
        []
        []
    "#]]
    .assert_eq(&(shown.join("\n") + "\n"));
}

#[test]
fn a_call_over_the_limit_is_text() {
    let body = "x".repeat(TOOL_CALL_BYTES_MAX + 100);
    let text = format!("<tool_call>\"{body}\"</tool_call>");
    let whole = run(options(), &[&text]);
    assert!(whole.starts_with("text \"<tool_call>"), "{}", &whole[..40]);
    let (a, b) = text.split_at(TOOL_CALL_BYTES_MAX / 2);
    assert_eq!(whole, run(options(), &[a, b]));
    let ends = format!("<tool_call>\"{}", "</tool_call>".repeat(10_000));
    assert!(run(options(), &[&ends]).starts_with("text \"<tool_call>"));
}

#[test]
fn logprobs_follow_visible_text() {
    let token = |text: &str| TokenLogprob { token: text.to_owned(), logprob: -0.5, top: vec![] };
    let mut parser = OutputParser::new(OutputOptions { stop: vec!["world!".into()], ..options() });
    let mut seen = Vec::new();
    let tokens = [
        "<think>",
        "no",
        "</think>",
        "Hello",
        " wor",
        "ld",
        "<tool_call>",
        "{\"name\":",
        "\"f\"}",
        "</tool_call>",
        "end",
    ];
    for piece in tokens {
        seen.extend(parser.push_token(piece, token(piece)));
    }
    seen.extend(parser.finish());
    let mut shown = String::new();
    for event in seen {
        if let OutputEvent::Text { delta, logprobs } = event {
            let names: Vec<&str> = logprobs.iter().map(|l| l.token.as_str()).collect();
            writeln!(shown, "{delta:?} {names:?}").unwrap();
        }
    }
    expect![[r#"
        "Hello" ["Hello"]
        " " [" wor"]
        "world" ["ld"]
        "end" ["end"]
    "#]]
    .assert_eq(&shown);
}

const PIECES: [&str; 22] = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "{\"name\": \"f\", \"arguments\": {\"a\": 1}}",
    "{\"name\": \"f\", ",
    "\n",
    "\n\n",
    " ",
    "text",
    "<",
    "<th",
    "ink>",
    "STOP",
    "ST",
    "OP",
    "\"",
    "}",
    "é",
    "\\",
    "{\"name\":\"g\",\"arguments\":{\"s\":\"</tool_call>\"}}",
    "\u{1F600}",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn splitting_changes_nothing(
        pieces in prop::collection::vec(0..PIECES.len(), 0..24),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        thinking_open: bool,
        tools: bool,
    ) {
        let text: String = pieces.iter().map(|piece| PIECES[*piece]).collect();
        let options = OutputOptions {
            parse_thinking: true,
            thinking_open,
            parse_tools: tools,
            stop: vec!["STOP".to_owned(), "xt<".to_owned()],
            ..OutputOptions::default()
        };
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        ends.retain(|end| text.is_char_boundary(*end));
        ends.extend([0, text.len()]);
        ends.sort_unstable();
        let chunks: Vec<&str> = ends.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        prop_assert_eq!(run(options.clone(), &[&text]), run(options.clone(), &chunks));
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
        prop_assert_eq!(run(options.clone(), &[&text]), run(options, &chars));
    }

    #[test]
    fn plain_text_passes_unchanged(text in "[^<]{0,80}") {
        let mut parser = OutputParser::new(options());
        let mut out = crate::Transcript::default();
        for event in parser.push(&text).into_iter().chain(parser.finish()) {
            out.push(&event);
        }
        prop_assert_eq!(out.text(), text);
    }
}
