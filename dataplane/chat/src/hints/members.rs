//! Members of an object of hints, read one by one.
//!
//! Nothing fails: what is absent or null gives nothing, and what has another form gives a warning and nothing.

use serde_json::{Map, Value};

use super::nat;
use crate::limits::ID_BYTES_MAX;
use crate::request::push_warning;
use crate::uses::Uses;

/// Most texts of a list that are read.
const EXTRA_FIELDS_MAX: usize = 16;

/// Members of a hint object, read leniently.
pub(super) struct Members<'a> {
    pub(super) members: &'a Map<String, Value>,
    pub(super) path: String,
    pub(super) warnings: &'a mut Vec<String>,
    pub(super) uses: &'a mut Uses,
}

impl<'a> Members<'a> {
    pub(super) fn of(
        value: &'a Value,
        path: &str,
        warnings: &'a mut Vec<String>,
        uses: &'a mut Uses,
    ) -> Option<Members<'a>> {
        match value {
            Value::Object(members) => {
                Some(Members { members, path: format!("{path}."), warnings, uses })
            }
            Value::Null => None,
            _ => {
                push_warning(warnings, format!("`{path}` ignored: expected an object"));
                None
            }
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.members.get(name).filter(|value| !value.is_null())
    }

    /// Notes a hint that has an effect, if it came.
    pub(super) fn used(&mut self, name: &'static str, came: bool) {
        if came {
            self.uses.used(name);
        }
    }

    /// Notes a hint without effect, if it came.
    pub(super) fn idle(&mut self, name: &'static str, came: bool) {
        if came {
            self.uses.idle(name);
        }
    }

    pub(super) fn priority(&mut self) -> Option<i32> {
        self.number("priority", f64::from(i32::MIN), f64::from(i32::MAX)).map(|p| p as i32)
    }

    /// A length as a number or as one of the words `LOW`, `MEDIUM`, `HIGH`.
    pub(super) fn length(&mut self, name: &str, words: nat::Words) -> Option<u32> {
        if let Some(word) = self.get(name).and_then(Value::as_str)
            && let Some(length) = words.read(word)
        {
            return Some(length);
        }
        self.number(name, 0.0, f64::from(u32::MAX)).map(|length| length as u32)
    }

    pub(super) fn ignored(&mut self, name: &str, expected: &str) {
        push_warning(self.warnings, format!("`{}{name}` ignored: expected {expected}", self.path));
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let value = self.get(name)?;
        match value.as_str().filter(|text| !text.is_empty() && text.len() <= ID_BYTES_MAX) {
            Some(text) => Some(text.to_owned()),
            None => {
                self.ignored(name, "a string of 1 to 256 bytes");
                None
            }
        }
    }

    pub(super) fn texts(&mut self, name: &str) -> Vec<String> {
        let Some(items) = self.get(name).and_then(Value::as_array) else {
            self.ignored(name, "an array of strings");
            return Vec::new();
        };
        items
            .iter()
            .filter_map(Value::as_str)
            .filter(|text| text.len() <= ID_BYTES_MAX)
            .take(EXTRA_FIELDS_MAX)
            .map(str::to_owned)
            .collect()
    }

    pub(super) fn number(&mut self, name: &str, min: f64, max: f64) -> Option<f64> {
        let value = self.get(name)?;
        let number = value.as_f64().filter(|number| (min..=max).contains(number));
        if number.is_none() {
            self.ignored(name, &format!("a number from {min} to {max}"));
        }
        number
    }

    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        let value = self.get(name)?;
        if !value.is_boolean() {
            self.ignored(name, "true or false");
        }
        value.as_bool()
    }

    pub(super) fn warn_unknown(&mut self, known: &[&str]) {
        for name in self.members.keys().filter(|name| !known.contains(&name.as_str())) {
            let shown: String = name.chars().take(64).collect();
            push_warning(self.warnings, format!("`{}{shown}` ignored: unknown", self.path));
        }
    }
}
