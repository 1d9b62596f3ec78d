//! One tool call's JSON: `{"name": …, "arguments": {…}}`.
//!
//! The arguments keep the model's own text instead of being printed anew, so that the next
//! turn's prompt repeats what was generated. `parameters` is taken for `arguments`, and
//! arguments written as a JSON string are unwrapped: both are common slips of models.

use serde_json::Value;

use crate::limits::TOOL_NAME_BYTES_MAX;

/// What a call's text turned out to be.
pub(super) enum Parsed {
    /// A call; `arguments` is the text of a JSON object.
    Call { name: String, arguments: String },
    /// The JSON ends too early.
    Incomplete,
    /// Not a call.
    Malformed,
}

pub(super) fn parse_call(text: &str) -> Parsed {
    let text = text.trim();
    let call: Value = match serde_json::from_str(text) {
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
        Some(Value::String(inner)) => match serde_json::from_str::<Value>(inner) {
            Ok(Value::Object(_)) => inner.trim().to_owned(),
            _ => return Parsed::Malformed,
        },
        Some(_) => return Parsed::Malformed,
    };
    Parsed::Call { name: name.to_owned(), arguments }
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
