//! Which values parts of a template can share, and which of them are the same.
//!
//! Scalars and texts are compared by content, dictionaries of ours by their numbers, and long texts by whether they
//! are the same allocation. Of anything else it is only known whether it may pass from part to part: it must hold
//! nothing that changes or that belongs to one part.

use minijinja::value::{Value, ValueKind};

use super::super::hf::Dict;

/// The longest text that is compared by its content. A longer one is the same where it is the same allocation: parts
/// compare what they read for every message, and a long system prompt would be read through as often.
pub(super) const COMPARED_BYTES_MAX: usize = 4 << 10;

/// The number of an object that is known by it.
pub(super) fn number(value: &Value) -> Option<u64> {
    value.downcast_object_ref::<Dict>().map(|dict| dict.number)
}

/// Whether a value is compared by its content.
pub(super) fn is_scalar(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None | ValueKind::Bool | ValueKind::String => true,
        ValueKind::Number => value.is_integer(),
        _ => false,
    }
}

pub(super) fn same(a: &Value, b: &Value) -> bool {
    a.kind() == b.kind()
        && match a.kind() {
            ValueKind::Undefined | ValueKind::None => true,
            ValueKind::Bool => a.is_true() == b.is_true(),
            ValueKind::Number => a.is_integer() && b.is_integer() && a == b,
            ValueKind::String => {
                let texts = a.as_str().zip(b.as_str());
                a.is_safe() == b.is_safe()
                    && texts.is_some_and(|(a, b)| {
                        a.len() == b.len()
                            && (a.as_ptr() == b.as_ptr() || a.len() <= COMPARED_BYTES_MAX && a == b)
                    })
            }
            _ => false,
        }
}

/// What a value keeps in memory: bytes of its own, and those texts that others may hold as well.
#[derive(Debug, Default)]
pub(in crate::template) struct Weight {
    pub(in crate::template) bytes: usize,
    /// Each longer than [`COMPARED_BYTES_MAX`].
    pub(in crate::template) long: Vec<Value>,
}

impl Weight {
    /// Adds a value that is compared by its content.
    pub(super) fn add(&mut self, value: &Value) {
        match value.as_str() {
            Some(text) if text.len() > COMPARED_BYTES_MAX => self.long.push(value.clone()),
            Some(text) => self.bytes += size_of::<Value>() + text.len(),
            None => self.bytes += size_of::<Value>(),
        }
    }
}

/// Whether a value holds nothing that may change or that belongs to one part, such as a macro.
pub(super) fn is_contained(value: &Value, depth: usize, left: &mut usize) -> bool {
    let Some(rest) = left.checked_sub(1) else { return false };
    *left = rest;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            depth > 0
                && value.len().is_some()
                && value
                    .try_iter()
                    .is_ok_and(|mut items| items.all(|item| is_contained(&item, depth - 1, left)))
        }
        ValueKind::Map if number(value).is_some() => true,
        ValueKind::Map => {
            depth > 0
                && value.try_iter().is_ok_and(|mut keys| {
                    keys.all(|key| {
                        let member = value.get_item(&key);
                        member.is_ok_and(|member| is_contained(&member, depth - 1, left))
                    })
                })
        }
        ValueKind::Plain | ValueKind::Invalid => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn long_texts_are_the_same_where_they_are_one() {
        let text = |length: usize| Value::from("x".repeat(length));
        assert!(same(&text(COMPARED_BYTES_MAX), &text(COMPARED_BYTES_MAX)));
        let long: Arc<str> = "x".repeat(COMPARED_BYTES_MAX + 1).into();
        assert!(same(&Value::from(&long), &Value::from(Arc::clone(&long))));
        assert!(!same(&Value::from(&long), &text(COMPARED_BYTES_MAX + 1)));
        assert!(!same(&text(3), &Value::from("xxy")));
    }
}
