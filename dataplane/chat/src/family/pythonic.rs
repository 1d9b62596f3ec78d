//! Calls written as Python: `[get_weather(city="Oslo", days=[1, 2]), now()]`.
//!
//! Only literals are values (texts, numbers, `True`, `None`, lists, dictionaries): anything that would
//! have to be evaluated makes the whole a text.

use serde_json::{Map, Number, Value};

use super::call::{Call, Parsed};
use crate::limits::{TOOL_NAME_BYTES_MAX, TOOL_PARAMETERS_MAX};

/// Lists within lists of a value.
const DEPTH_MAX: usize = 64;

pub(super) fn parse(text: &str) -> Parsed {
    let mut reader = Reader { rest: text.trim() };
    match reader.calls() {
        Some(calls) if reader.rest.is_empty() && !calls.is_empty() => Parsed::Calls(calls),
        _ => Parsed::Malformed,
    }
}

struct Reader<'t> {
    rest: &'t str,
}

impl Reader<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Takes `wanted` after any space.
    fn take(&mut self, wanted: char) -> bool {
        self.skip_space();
        let rest = self.rest.strip_prefix(wanted);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Items up to `close`, parted by commas; a comma may stand behind the last.
    fn items(&mut self, close: char, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        for _ in 0..TOOL_PARAMETERS_MAX {
            if self.take(close) {
                return Some(());
            }
            item(self)?;
            if !self.take(',') {
                return self.take(close).then_some(());
            }
        }
        None
    }

    fn calls(&mut self) -> Option<Vec<Call>> {
        let mut calls = Vec::new();
        self.take('[').then_some(())?;
        self.items(']', |reader| {
            let name = reader.name()?;
            reader.take('(').then_some(())?;
            let mut arguments = Map::new();
            reader.items(')', |reader| {
                let key = reader.name()?;
                reader.take('=').then_some(())?;
                let value = reader.value(0)?;
                arguments.insert(key, value);
                Some(())
            })?;
            calls.push(Call { name, arguments: Value::Object(arguments).to_string() });
            Some(())
        })?;
        Some(calls)
    }

    fn name(&mut self) -> Option<String> {
        self.skip_space();
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let name = &self.rest[..end];
        let starts = name.starts_with(|c: char| c.is_alphabetic() || c == '_');
        (starts && name.len() <= TOOL_NAME_BYTES_MAX).then(|| {
            self.rest = &self.rest[end..];
            name.to_owned()
        })
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.skip_space();
        match self.rest.chars().next()? {
            '"' | '\'' => self.text().map(Value::String),
            '[' => self.list('[', ']', depth),
            '(' => self.list('(', ')', depth),
            '{' => {
                self.take('{');
                let mut members = Map::new();
                self.items('}', |reader| {
                    reader.skip_space();
                    let key = reader.text()?;
                    reader.take(':').then_some(())?;
                    members.insert(key, reader.value(depth + 1)?);
                    Some(())
                })?;
                Some(Value::Object(members))
            }
            _ => self.word(),
        }
    }

    fn list(&mut self, open: char, close: char, depth: usize) -> Option<Value> {
        self.take(open);
        let mut items = Vec::new();
        self.items(close, |reader| {
            items.push(reader.value(depth + 1)?);
            Some(())
        })?;
        Some(Value::Array(items))
    }

    fn word(&mut self) -> Option<Value> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '_');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        self.rest = &self.rest[end..];
        match word {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            _ => {
                let whole = word.parse::<i64>().map(Value::from);
                whole.ok().or_else(|| {
                    let number = word.parse::<f64>().ok().and_then(Number::from_f64);
                    let starts = word.starts_with(|c: char| c.is_ascii_digit() || c == '-');
                    number.filter(|_| starts).map(Value::Number)
                })
            }
        }
    }

    fn text(&mut self) -> Option<String> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let mut text = String::new();
        let mut chars = self.rest[1..].char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                _ if c == quote => {
                    self.rest = &self.rest[1 + at + 1..];
                    return Some(text);
                }
                '\\' => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    '\n' => {}
                    other @ ('\\' | '\'' | '"') => text.push(other),
                    'u' => {
                        let digits: String = chars.by_ref().take(4).map(|(_, c)| c).collect();
                        text.push(char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?);
                    }
                    // As Python has it: an escape that is none stays what it is.
                    other => text.extend(['\\', other]),
                },
                c => text.push(c),
            }
        }
        None
    }
}
