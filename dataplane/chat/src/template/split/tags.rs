//! The tags of a template's source, as far as cutting it needs them.
//!
//! Only delimiters, marks of whitespace control, first words and names are read; what stands between them is left to
//! the engine. Strings and nested brackets hide delimiters from this reader as they do from the engine's.

use std::ops::Range;

/// What encloses a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Statement,
    Expression,
}

/// One `{% … %}` or `{{ … }}`.
#[derive(Clone, Debug)]
pub(super) struct Tag<'s> {
    pub(super) kind: Kind,
    /// Where it stands, delimiters included.
    pub(super) at: Range<usize>,
    /// The marks of whitespace control: `-`, `+` or nothing.
    pub(super) left: &'s str,
    pub(super) right: &'s str,
    /// What stands between delimiters and marks.
    pub(super) inner: &'s str,
}

/// A name in a tag that is no attribute of something else.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name<'s> {
    pub(super) text: &'s str,
    /// The character after it, blanks left out.
    pub(super) next: Option<char>,
}

impl<'s> Tag<'s> {
    /// A statement's keyword; nothing of an expression.
    pub(super) fn keyword(&self) -> &'s str {
        match self.kind {
            Kind::Statement => first_name(self.inner),
            Kind::Expression => "",
        }
    }

    /// What follows the keyword.
    pub(super) fn arguments(&self) -> &'s str {
        self.inner.trim_start()[self.keyword().len()..].trim()
    }

    /// The names in it, keywords and filters among them.
    pub(super) fn names(&self) -> Vec<Name<'s>> {
        let inner = self.inner;
        let mut found = Vec::new();
        let mut at = 0;
        let mut before = None;
        while let Some(c) = inner[at..].chars().next() {
            let rest = &inner[at..];
            let length = if is_quote(c) {
                string_length(rest).unwrap_or(rest.len())
            } else if is_start(c) || c.is_ascii_digit() {
                rest.find(|c: char| !is_start(c) && !c.is_ascii_digit()).unwrap_or(rest.len())
            } else {
                c.len_utf8()
            };
            if is_start(c) && before != Some('.') {
                let next = rest[length..].trim_start().chars().next();
                found.push(Name { text: &rest[..length], next });
            }
            if !c.is_whitespace() {
                before = Some(c);
            }
            at += length;
        }
        found
    }
}

/// The parameters in the head of a macro: the first name of each argument, whatever its default is.
pub(super) fn parameters<'s>(head: &Tag<'s>) -> Vec<&'s str> {
    let inner = head.inner;
    let Some(mut at) = inner.find('(') else { return Vec::new() };
    let mut found = Vec::new();
    let mut depth = 0usize;
    while let Some(c) = inner[at..].chars().next() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        let length = if is_quote(c) { string_length(&inner[at..]) } else { None };
        at += length.unwrap_or(c.len_utf8());
        if depth == 1 && matches!(c, '(' | ',') {
            found.push(first_name(&inner[at..]));
        }
    }
    found
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'')
}

fn is_start(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

fn first_name(text: &str) -> &str {
    let text = text.trim_start();
    let end = text.find(|c: char| !is_start(c) && !c.is_ascii_digit()).unwrap_or(text.len());
    &text[..end]
}

/// The length of the string that `text` begins with, quotes included; nothing if it does not end.
fn string_length(text: &str) -> Option<usize> {
    let mut characters = text.char_indices();
    let (_, quote) = characters.next()?;
    let mut escaped = false;
    for (at, c) in characters {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// All tags of `source` in order; nothing if it is not plain where one ends.
pub(super) fn tags(source: &str) -> Option<Vec<Tag<'_>>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = source[at..].find('{').map(|found| at + found) {
        let (kind, end) = match source.as_bytes().get(start + 1) {
            Some(b'#') => {
                at = start + 2 + source[start + 2..].find("#}")? + 2;
                continue;
            }
            Some(b'%') => (Kind::Statement, "%}"),
            Some(b'{') => (Kind::Expression, "}}"),
            _ => {
                at = start + 1;
                continue;
            }
        };
        let tag = tag(source, start, kind, end)?;
        at = tag.at.end;
        found.push(tag);
    }
    Some(found)
}

fn tag<'s>(source: &'s str, start: usize, kind: Kind, end: &str) -> Option<Tag<'s>> {
    let rest = &source[start + 2..];
    let left = if rest.starts_with(['-', '+']) { &rest[..1] } else { "" };
    let mut open = 0usize;
    let mut at = left.len();
    loop {
        let c = rest[at..].chars().next()?;
        if open == 0 && rest[at..].starts_with(end) {
            break;
        }
        match c {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.checked_sub(1)?,
            _ => {}
        }
        at += if is_quote(c) { string_length(&rest[at..])? } else { c.len_utf8() };
    }
    let inner = &rest[left.len()..at];
    let right = if inner.ends_with(['-', '+']) { &inner[inner.len() - 1..] } else { "" };
    let inner = &inner[..inner.len() - right.len()];
    Some(Tag { kind, at: start..start + 2 + at + end.len(), left, right, inner })
}
