//! Schemas within a model's markup, as one Lark grammar.
//!
//! Each schema is a grammar of its own (`%json`), so that its `$ref`s find its own definitions. What is
//! free text must not contain the tag that ends it: where that tag is a token, no text can; where it is
//! spelled, the texts that contain it are taken out of the language.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{Calls, Spelling, Text, Wish, is_strict, with_manner};

/// The grammar of an answer.
pub(super) fn of(
    wish: &Wish<'_>,
    schema: Option<(Value, bool)>,
    spelling: &Spelling,
    thinking_open: bool,
) -> String {
    let mut grammar = Grammar { text: String::new(), spelling };
    let thought = grammar.thought(thinking_open);
    let calls = grammar.calls(&wish.calls);
    let answer = match (&wish.text, schema) {
        (Text::Free, _) | (_, None) => grammar.free(&wish.calls),
        (_, Some((schema, strict))) => {
            grammar.rule("value", &format!("%json {}", tight(schema, strict)));
            Some("value".to_owned())
        }
    };
    let body = match (calls, answer) {
        (Some(calls), _) if wish.calls.required => calls,
        // Text may go before calls, a value stands alone.
        (Some(calls), Some(answer)) if matches!(wish.text, Text::Free) => {
            format!("{answer} ({calls})?")
        }
        (Some(calls), Some(answer)) => format!("({calls} | {answer})"),
        (Some(calls), None) => calls,
        (None, answer) => answer.unwrap_or_default(),
    };
    let start = format!("start: {thought}{body}\n");
    start + &grammar.text
}

struct Grammar<'s> {
    text: String,
    spelling: &'s Spelling,
}

impl Grammar<'_> {
    fn rule(&mut self, name: &str, body: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{name}: {body}");
    }

    /// A tag as a token or as text.
    fn tag(&self, tag: &str) -> String {
        self.spelling.token(tag).map_or_else(|| quoted(tag), |token| format!("<[{token}]>"))
    }

    /// Any text without `tag`.
    fn text_without(&mut self, name: &str, tag: &str) {
        match self.spelling.token(tag) {
            Some(_) => self.rule(name, "/(.|\\n)+/"),
            None => {
                let tag = pattern(tag);
                self.rule(name, &format!("/(.|\\n)+/ & ~/(.|\\n)*{tag}(.|\\n)*/"));
            }
        }
    }

    /// A thought, which may be left out unless the prompt began one; the space is part of what comes out.
    fn thought(&mut self, open: bool) -> String {
        let markup = self.spelling.family.markup();
        // A header opens thoughts there, which a grammar of ours does not write.
        if markup.headers.is_some() || !(self.spelling.thinks || open) {
            return String::new();
        }
        self.text_without("THOUGHT", markup.think_end);
        self.rule("BREAK", "/\\n{1,2}/");
        let end = self.tag(markup.think_end);
        if open {
            return format!("THOUGHT? {end} BREAK? ");
        }
        let think = self.tag(markup.think);
        format!("({think} THOUGHT? {end} BREAK?)? ")
    }

    fn calls(&mut self, calls: &Calls<'_>) -> Option<String> {
        if calls.tools.is_empty() {
            return None;
        }
        let section = self.spelling.family.markup().sections.first()?;
        let (open, end) = (self.tag(section.open), self.tag(section.end.tag()?));
        let mut bodies = Vec::new();
        for (at, tool) in calls.tools.iter().enumerate() {
            let (schema, strict) = match is_strict(tool) {
                true => (tool.schema.clone(), true),
                // Unless a client relies on it, any object will do, as without a form.
                false if !calls.required => (json!({"type": "object"}), false),
                false => (tool.schema.clone(), false),
            };
            self.rule(&format!("arguments_{at}"), &format!("%json {}", tight(schema, strict)));
            let name = Value::from(tool.name.as_str()).to_string();
            let head = quoted(&format!("{{\"name\": {name}, \"arguments\": "));
            bodies.push(format!("{head} arguments_{at} \"}}\""));
        }
        self.rule("body", &bodies.join(" | "));
        self.rule("call", &format!("{open} \"\\n\"? body \"\\n\"? {end}"));
        Some(if calls.many { "call (\"\\n\"? call)*".to_owned() } else { "call".to_owned() })
    }

    /// The text of an answer that may go on with calls.
    fn free(&mut self, calls: &Calls<'_>) -> Option<String> {
        if calls.required {
            return None;
        }
        let open = self.spelling.family.markup().sections.first()?.open;
        self.text_without("TEXT", open);
        Some("TEXT?".to_owned())
    }
}

/// A schema with as little white space as models write by themselves.
fn tight(schema: Value, strict: bool) -> Value {
    let manner = json!({
        "whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?",
        "coerce_one_of": true, "lenient": !strict,
    });
    with_manner(schema, &manner)
}

/// A text as the grammar quotes it, which is JSON's way.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A tag within a regular expression between slashes.
fn pattern(tag: &str) -> String {
    let mut pattern = String::new();
    for c in tag.chars() {
        // Not every sign may be escaped: `\\<` means the beginning of a word.
        if r"\.+*?()|[]{}^$/".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}
