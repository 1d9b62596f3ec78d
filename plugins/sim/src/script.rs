//! What the engine says: rules from a TOML file, each with a regular expression on the end of the
//! prompt and an answer.
//!
//! The first rule that matches wins, so what comes late in a conversation stands first in the
//! file. A rule keeps no memory between requests: any worker would answer alike, and a request
//! that is sent again gets the same answer. `$1` and `${name}` in answers stand for what the
//! expression captured; `$$` is a dollar. Expressions run in linear time over a bounded stretch of
//! text, so no prompt can hold the engine up.

use std::path::Path;

use regex::{Captures, Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::SimError;

/// The largest script.
const SCRIPT_BYTES_MAX: u64 = 1 << 20;
/// The most rules.
const RULES_MAX: usize = 1024;
/// The most memory of one compiled expression.
const REGEX_BYTES_MAX: usize = 4 << 20;
/// The longest answer of a rule, after captures are filled in.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// The most seeded words of a rule.
const WORDS_MAX: u32 = 1 << 20;

/// What it says where no rule matches.
const DEFAULT: &str = "This answer is simulated: no model has read the prompt.";

/// An answer before it is tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// In the model's own markup.
    pub(crate) text: String,
    /// Seeded random words that follow the text.
    pub(crate) words: u32,
}

/// The rules, ready to be asked.
#[derive(Debug)]
pub(crate) struct Script {
    default: String,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    when: Regex,
    unless: Option<Regex>,
    think: String,
    say: String,
    calls: Vec<Call>,
    words: u32,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawScript {
    default: Option<String>,
    rule: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    when: String,
    unless: Option<String>,
    #[serde(default)]
    think: String,
    #[serde(default)]
    say: String,
    #[serde(default)]
    call: Vec<Call>,
    #[serde(default)]
    words: u32,
}

/// A tool call of an answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    name: String,
    #[serde(default)]
    arguments: Map<String, Value>,
}

impl Default for Script {
    fn default() -> Self {
        Self { default: DEFAULT.to_owned(), rules: Vec::new() }
    }
}

impl Script {
    /// Reads a script's file.
    pub(crate) fn read(path: &Path) -> Result<Self, SimError> {
        let unread = |reason: String| SimError::Read { path: path.to_owned(), reason };
        let size = std::fs::metadata(path).map_err(|e| unread(e.to_string()))?.len();
        if size > SCRIPT_BYTES_MAX {
            return Err(unread(format!("{size} bytes; a script has at most {SCRIPT_BYTES_MAX}")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| unread(e.to_string()))?;
        Self::parse(&text, &path.display().to_string())
    }

    fn parse(text: &str, name: &str) -> Result<Self, SimError> {
        let wrong = |reason: String| SimError::File { what: format!("script {name}"), reason };
        let raw: RawScript = toml::from_str(text).map_err(|e| wrong(e.to_string()))?;
        if raw.rule.len() > RULES_MAX {
            return Err(wrong(format!("more than {RULES_MAX} rules")));
        }
        let mut rules = Vec::with_capacity(raw.rule.len());
        for (index, rule) in raw.rule.into_iter().enumerate() {
            let number = index + 1;
            let regex = |pattern: &str| {
                RegexBuilder::new(pattern)
                    .size_limit(REGEX_BYTES_MAX)
                    .build()
                    .map_err(|e| wrong(format!("rule {number}: {e}")))
            };
            if rule.words > WORDS_MAX {
                return Err(wrong(format!("rule {number}: more than {WORDS_MAX} words")));
            }
            if rule.call.iter().any(|call| call.name.is_empty()) {
                return Err(wrong(format!("rule {number}: a call needs the name of its tool")));
            }
            rules.push(Rule {
                when: regex(&rule.when)?,
                unless: rule.unless.as_deref().map(regex).transpose()?,
                think: rule.think,
                say: rule.say,
                calls: rule.call,
                words: rule.words,
            });
        }
        Ok(Self { default: raw.default.unwrap_or_else(|| DEFAULT.to_owned()), rules })
    }

    /// The answer to a prompt, of which `end` gives the last stretch: that is half of a long prompt's
    /// cost, so it is not asked for where there is no rule to read it.
    pub(crate) fn answer(&self, end: impl FnOnce() -> String) -> Answer {
        let default = || Answer { text: self.default.clone(), words: 0 };
        if self.rules.is_empty() {
            return default();
        }
        let end = end();
        let mut rules = self.rules.iter();
        let found = rules.find_map(|rule| {
            let captures = rule.when.captures(&end)?;
            let refused = rule.unless.as_ref().is_some_and(|unless| unless.is_match(&end));
            (!refused).then(|| rule.answer(&captures))
        });
        found.unwrap_or_else(default)
    }
}

impl Rule {
    fn answer(&self, captures: &Captures<'_>) -> Answer {
        let mut text = String::new();
        if !self.think.is_empty() {
            text.push_str("<think>");
            captures.expand(&self.think, &mut text);
            text.push_str("</think>");
        }
        captures.expand(&self.say, &mut text);
        for call in &self.calls {
            let mut name = String::new();
            captures.expand(&call.name, &mut name);
            let arguments = call.arguments.iter().map(|(k, v)| (k.clone(), fill(v, captures)));
            let arguments: Map<String, Value> = arguments.collect();
            let body = serde_json::json!({ "name": name, "arguments": arguments });
            text.push_str("<tool_call>");
            text.push_str(&body.to_string());
            text.push_str("</tool_call>");
        }
        if text.len() > ANSWER_BYTES_MAX {
            let cut = text.floor_char_boundary(ANSWER_BYTES_MAX);
            text.truncate(cut);
        }
        Answer { text, words: self.words }
    }
}

/// A value with captures filled into its strings.
fn fill(value: &Value, captures: &Captures<'_>) -> Value {
    match value {
        Value::String(text) => {
            let mut filled = String::new();
            captures.expand(text, &mut filled);
            Value::String(filled)
        }
        Value::Array(items) => items.iter().map(|item| fill(item, captures)).collect(),
        Value::Object(members) => {
            members.iter().map(|(key, item)| (key.clone(), fill(item, captures))).collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = r#"
        default = "nothing"
        [[rule]]
        when = '(?s)<\|tool\|>(?P<found>[a-z]+)<\|end\|><\|assistant\|>$'
        unless = 'title'
        say = "It says ${found}, for $$5."
        [[rule]]
        when = 'read (\S+)'
        think = "a file"
        [[rule.call]]
        name = "Read"
        arguments = { file_path = "/p/$1", limit = 7, deep = [{ at = "$1" }] }
        [[rule]]
        when = 'long'
        words = 9
    "#;

    fn answer(end: &str) -> Answer {
        Script::parse(SCRIPT, "test").unwrap().answer(|| end.to_owned())
    }

    #[test]
    fn the_first_rule_that_matches_answers() {
        let late = "read a.txt<|end|><|tool|>plenty<|end|><|assistant|>";
        assert_eq!(answer(late).text, "It says plenty, for $5.");
        assert_eq!(
            answer("please read a.txt").text,
            r#"<think>a file</think><tool_call>{"name":"Read","arguments":{"deep":[{"at":"a.txt"}],"file_path":"/p/a.txt","limit":7}}</tool_call>"#
        );
        assert_eq!(answer("long"), Answer { text: String::new(), words: 9 });
        assert_eq!(answer("hello").text, "nothing");
        assert_eq!(answer("title<|tool|>plenty<|end|><|assistant|>").text, "nothing");
    }

    #[test]
    fn without_a_script_the_answer_says_that_it_is_simulated_and_no_prompt_is_read() {
        let answer = Script::default().answer(|| panic!("there is no rule to read it"));
        assert!(answer.text.contains("simulated"));
    }

    #[test]
    fn a_capture_that_would_fill_memory_is_cut() {
        let script = format!("[[rule]]\nwhen = '(?s)(.*)'\nsay = \"{}\"", "$1".repeat(1000));
        let long = "ä".repeat(10_000);
        let answer = Script::parse(&script, "test").unwrap().answer(|| long);
        assert!(answer.text.len() <= ANSWER_BYTES_MAX && answer.text.len() > ANSWER_BYTES_MAX - 4);
    }

    #[test]
    fn mistakes_name_the_rule() {
        for (script, word) in [
            ("[[rule]]\nwhen = '('", "rule 1"),
            ("[[rule]]\nwhen = '(\\w{1000}){1000}'", "size"),
            ("[[rule]]\nwhen = ''\nwords = 2000000", "words"),
            ("[[rule]]\nwehn = ''", "wehn"),
            ("[[rule]]\nwhen = ''\n[[rule.call]]\nname = ''", "name"),
            ("rule = 1", "rule"),
        ] {
            let error = Script::parse(script, "test").unwrap_err().to_string();
            assert!(error.contains(word), "{script}: {error}");
        }
    }
}
