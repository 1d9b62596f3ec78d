//! Calls whose parameters stand between tags: `<parameter=key>value</parameter>` and its like.
//!
//! Values are raw text, without escapes, so that a value may contain the very tag that ends it. What
//! counts as an end is therefore an end tag after which the call goes on as a call does.

use serde_json::{Map, Value};

use super::call::{Call, Parsed};
use super::types::ToolTypes;
use crate::limits::{TOOL_NAME_BYTES_MAX, TOOL_PARAMETERS_MAX};

/// The tags of one way to write parameters.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tags {
    /// Before the name, where it is not the tag that opened the call.
    pub(crate) name: &'static str,
    /// After the name; empty where the first parameter or the end comes next.
    pub(crate) name_end: &'static str,
    pub(crate) key: &'static str,
    pub(crate) key_end: &'static str,
    pub(crate) value: &'static str,
    pub(crate) value_end: &'static str,
    /// What ends the call within the text given, if anything does.
    pub(crate) end: &'static str,
}

pub(crate) static FUNCTION: Tags = Tags {
    name: "<function=",
    name_end: ">",
    key: "<parameter=",
    key_end: ">",
    value: "",
    value_end: "</parameter>",
    end: "</function>",
};

pub(crate) static FUNCTION_OPENED: Tags = Tags {
    name: "",
    name_end: ">",
    key: "<parameter=",
    key_end: ">",
    value: "",
    value_end: "</parameter>",
    end: "",
};

pub(crate) static KEYS: Tags = Tags {
    name: "",
    name_end: "",
    key: "<arg_key>",
    key_end: "</arg_key>",
    value: "<arg_value>",
    value_end: "</arg_value>",
    end: "",
};

pub(crate) static INVOKE: Tags = Tags {
    name: "",
    name_end: "\">",
    key: "<parameter name=\"",
    key_end: "\">",
    value: "",
    value_end: "</parameter>",
    end: "",
};

pub(super) fn parse(text: &str, tags: &Tags, types: &ToolTypes) -> Parsed {
    let Some(rest) = text.trim_start().strip_prefix(tags.name) else {
        // What is there may still become the tag.
        let begun = tags.name.starts_with(text.trim_start());
        return if begun { Parsed::Incomplete } else { Parsed::Malformed };
    };
    let name_end = if tags.name_end.is_empty() {
        Some(rest.find(tags.key).unwrap_or(rest.len()))
    } else {
        rest.find(tags.name_end)
    };
    let Some(name_end) = name_end else { return Parsed::Incomplete };
    let name = rest[..name_end].trim();
    let is_name = |c: char| !c.is_whitespace() && !c.is_control() && c != '<' && c != '>';
    if name.is_empty() || name.len() > TOOL_NAME_BYTES_MAX || !name.chars().all(is_name) {
        return Parsed::Malformed;
    }
    let mut rest = rest[name_end + tags.name_end.len()..].trim_start();
    let mut arguments = Map::new();
    while let Some(after) = rest.strip_prefix(tags.key) {
        let Some((key, value, next)) = parameter(after, tags) else { return Parsed::Incomplete };
        if arguments.len() >= TOOL_PARAMETERS_MAX {
            return Parsed::Malformed;
        }
        arguments.insert(key.to_owned(), types.value(name, key, value));
        rest = next;
    }
    let ended = if tags.end.is_empty() { rest.is_empty() } else { rest.trim_end() == tags.end };
    if !ended {
        return Parsed::Incomplete;
    }
    let arguments = Value::Object(arguments).to_string();
    Parsed::Calls(vec![Call { name: name.to_owned(), arguments }])
}

/// A key, its value, and what follows; `text` begins right after the opening tag.
fn parameter<'t>(text: &'t str, tags: &Tags) -> Option<(&'t str, &'t str, &'t str)> {
    let (key, rest) = text.split_once(tags.key_end)?;
    let rest = if tags.value.is_empty() { rest } else { rest.trim_start() };
    let rest = rest.strip_prefix(tags.value)?;
    let mut from = 0;
    loop {
        let end = from + rest[from..].find(tags.value_end)?;
        let next = rest[end + tags.value_end.len()..].trim_start();
        let goes_on = next.starts_with(tags.key)
            || if tags.end.is_empty() { next.is_empty() } else { next.starts_with(tags.end) };
        if goes_on {
            let value = &rest[..end];
            // Templates put each value on lines of its own.
            let value = value.strip_prefix('\n').unwrap_or(value);
            let value = value.strip_suffix('\n').unwrap_or(value);
            return Some((key.trim(), value, next));
        }
        from = end + tags.value_end.len();
    }
}
