//! The text of calls, as each family writes it between its tags.
//!
//! The arguments keep the model's own text instead of being printed anew, so that the next
//! turn's prompt repeats what was generated. `parameters` is taken for `arguments`, and
//! arguments written as a JSON string are unwrapped: both are common slips of models.

use serde_json::Value;

use super::types::ToolTypes;
use super::{Form, Scan, pythonic, tagged};
use crate::limits::{TOOL_CALLS_MAX, TOOL_NAME_BYTES_MAX};
use crate::plain_json;

/// A call; `arguments` is the text of a JSON object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) arguments: String,
}

/// What a call's text turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// Calls: never none.
    Calls(Vec<Call>),
    /// The text ends too early.
    Incomplete,
    /// Not a call.
    Malformed,
}

/// Reads what stands between the tags of a call. `header` is the name that a header gave.
pub(crate) fn parse_calls(form: Form, text: &str, header: &str, types: &ToolTypes) -> Parsed {
    match form {
        Form::Object => object(text),
        Form::Mistral => mistral(text),
        Form::Pythonic => pythonic::parse(text),
        Form::DeepSeek => separated(text, DEEPSEEK_SEPARATOR),
        Form::Kimi => separated(text, KIMI_SEPARATOR),
        Form::Tagged(tags) => tagged::parse(text, tags, types),
        Form::Arguments => named(header, text),
    }
}

const DEEPSEEK_SEPARATOR: &str = "<｜tool▁sep｜>";
const KIMI_SEPARATOR: &str = "<|tool_call_argument_begin|>";

/// A name, a separator, arguments. DeepSeek V3 writes `function`, the separator, then the name on a line of its
/// own and the arguments in a fence; Kimi writes `functions.name:0` for a name.
fn separated(text: &str, separator: &str) -> Parsed {
    let Some((before, after)) = text.split_once(separator) else {
        return Parsed::Incomplete;
    };
    let before = before.trim();
    if before == "function" && !after.trim_start().starts_with('{') {
        let Some((name, rest)) = after.split_once("```json") else { return Parsed::Incomplete };
        let Some((arguments, "")) = rest.trim_end().rsplit_once("```") else {
            return Parsed::Incomplete;
        };
        return named(name.trim(), arguments);
    }
    let name = before.strip_prefix("functions.").unwrap_or(before);
    let name = match name.rsplit_once(':') {
        Some((name, number)) if number.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => name,
    };
    named(name, after)
}

/// A list of calls, or a name and its arguments, with `[ARGS]` and perhaps `[CALL_ID]` between them.
fn mistral(text: &str) -> Parsed {
    let text = text.trim();
    if !text.starts_with('[') {
        let Some(at) = text.find('{') else { return Parsed::Incomplete };
        let name = text[..at].split('[').next().unwrap_or_default();
        return named(name.trim(), &text[at..]);
    }
    match serde_json::from_str::<Vec<Value>>(text) {
        Ok(_) => {}
        Err(error) if error.is_eof() => return Parsed::Incomplete,
        Err(_) => return Parsed::Malformed,
    }
    let mut calls = Vec::new();
    let mut rest = &text[1..];
    while let Some(start) = rest.find('{').filter(|_| calls.len() < TOOL_CALLS_MAX as usize) {
        let mut scan = Scan::default();
        let Some(last) = rest.as_bytes()[start..].iter().position(|b| scan.take(*b)) else {
            return Parsed::Malformed;
        };
        match object(&rest[start..=start + last]) {
            Parsed::Calls(more) => calls.extend(more),
            _ => return Parsed::Malformed,
        }
        rest = &rest[start + last + 1..];
    }
    if calls.is_empty() { Parsed::Malformed } else { Parsed::Calls(calls) }
}

/// A call of `name` with the JSON text of its arguments, which may be missing.
fn named(name: &str, arguments: &str) -> Parsed {
    let arguments = arguments.trim();
    if name.is_empty() || name.len() > TOOL_NAME_BYTES_MAX || name.chars().any(char::is_whitespace)
    {
        return Parsed::Malformed;
    }
    let arguments = if arguments.is_empty() { "{}" } else { arguments };
    match plain_json::from_str(arguments) {
        Ok(Value::Object(_)) => {
            Parsed::Calls(vec![Call { name: name.to_owned(), arguments: arguments.to_owned() }])
        }
        Err(error) if error.is_eof() => Parsed::Incomplete,
        _ => Parsed::Malformed,
    }
}

/// `{"name": …, "arguments": {…}}`.
fn object(text: &str) -> Parsed {
    let text = text.trim();
    let call: Value = match plain_json::from_str(text) {
        Ok(call) => call,
        Err(error) if error.is_eof() => return Parsed::Incomplete,
        Err(_) => return Parsed::Malformed,
    };
    let name = call.get("name").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() || name.len() > TOOL_NAME_BYTES_MAX {
        return Parsed::Malformed;
    }
    let member = if call.get("arguments").is_some() { "arguments" } else { "parameters" };
    let arguments = match call.get(member) {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(Value::Object(members)) => match raw_member(text, member) {
            Some(raw) => raw.to_owned(),
            None => Value::Object(members.clone()).to_string(),
        },
        Some(Value::String(inner)) => match plain_json::from_str(inner) {
            Ok(Value::Object(_)) => inner.trim().to_owned(),
            _ => return Parsed::Malformed,
        },
        Some(_) => return Parsed::Malformed,
    };
    Parsed::Calls(vec![Call { name: name.to_owned(), arguments }])
}

/// The text of a member's value in the text of a valid JSON object; the last, if it repeats.
fn raw_member<'t>(object: &'t str, wanted: &str) -> Option<&'t str> {
    let mut rest = object.strip_prefix('{')?.trim_start();
    let mut found = None;
    while rest.starts_with('"') {
        let key_end = value_end(rest)?;
        let key: String = serde_json::from_str(rest.get(..key_end)?).ok()?;
        let value = rest.get(key_end..)?.trim_start().strip_prefix(':')?.trim_start();
        let end = value_end(value)?;
        if key == wanted {
            found = value.get(..end);
        }
        rest = value.get(end..)?.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    found
}

/// Where the value at the start of `text` ends, given that it is valid JSON.
fn value_end(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut in_string = false;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    in_string = false;
                    if depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return Some(at),
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b',' if depth == 0 => return Some(at),
            _ => {}
        }
    }
    Some(text.len())
}
