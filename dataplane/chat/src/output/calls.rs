//! Collecting a call until it is whole.
//!
//! A call is shown once it is known to be one: text that only began like a call comes out as the text
//! it is. What was looked at for an end is not looked at again, so that a long call costs its length.

use super::{Mode, OutputEvent, OutputParser};
use crate::family::{Call, End, Form, Parsed, Scan, Section, parse_calls};
use crate::limits::{TOOL_CALL_BYTES_MAX, TOOL_NAME_BYTES_MAX};

/// End tags within one call's strings before it counts as text: each costs a parse of the call.
const CALL_ENDS_MAX: u32 = 64;
/// What may stand before the arguments of a call that begins with its name.
const NAME_PART_BYTES_MAX: usize = 2 * TOOL_NAME_BYTES_MAX;

impl OutputParser {
    pub(super) fn begin_call(&mut self, section: &'static Section) {
        self.section = section;
        self.scan = Scan::new(section.form == Form::Pythonic);
        self.call_scanned = 0;
        self.call_ends = 0;
    }

    /// Looks for the end of a call in `body`, which starts right after the opening tag.
    pub(super) fn step_call(&mut self, body: &str) -> Option<usize> {
        match self.section.end {
            End::Tag(tag) => self.step_to_tag(body, tag),
            End::Value => self.step_to_value_end(body),
        }
    }

    fn step_to_tag(&mut self, body: &str, tag: &str) -> Option<usize> {
        loop {
            let found = body[self.call_scanned..].find(tag).map(|f| f + self.call_scanned);
            let searched = body.len().saturating_sub(tag.len() - 1);
            let end = match found {
                Some(end) if end <= TOOL_CALL_BYTES_MAX && self.call_ends < CALL_ENDS_MAX => end,
                None if searched <= TOOL_CALL_BYTES_MAX => {
                    let mut from = searched.max(self.call_scanned);
                    while !body.is_char_boundary(from) {
                        from -= 1;
                    }
                    self.call_scanned = from;
                    return None;
                }
                _ => {
                    self.call_is_text("");
                    return Some(0);
                }
            };
            let consumed = end + tag.len();
            match self.parse(&body[..end]) {
                Parsed::Calls(calls) => {
                    self.decided += consumed;
                    self.emit_calls(calls);
                }
                Parsed::Incomplete => {
                    // The end tag stands inside a string of the call: look for the next one.
                    self.call_scanned = consumed;
                    self.call_ends += 1;
                    continue;
                }
                Parsed::Malformed => {
                    self.decided += consumed;
                    self.call_is_text(&body[..consumed]);
                }
            }
            return Some(consumed);
        }
    }

    fn step_to_value_end(&mut self, body: &str) -> Option<usize> {
        match value_start(self.section, body) {
            Start::At(start) => self.call_scanned = self.call_scanned.max(start),
            Start::Wait => return None,
            Start::Never => {
                self.call_is_text("");
                return Some(0);
            }
        }
        let rest = &body.as_bytes()[self.call_scanned..];
        let Some(last) = rest.iter().position(|byte| self.scan.take(*byte)) else {
            self.call_scanned = body.len();
            if body.len() > TOOL_CALL_BYTES_MAX {
                self.call_is_text("");
                return Some(0);
            }
            return None;
        };
        let end = self.call_scanned + last + 1;
        self.decided += end;
        match self.parse(&body[..end]) {
            Parsed::Calls(calls) => self.emit_calls(calls),
            Parsed::Incomplete | Parsed::Malformed => self.call_is_text(&body[..end]),
        }
        Some(end)
    }

    fn parse(&self, body: &str) -> Parsed {
        parse_calls(self.section.form, body, &self.recipient, &self.options.types)
    }

    /// The text ended inside a call: models that stop on the end tag never write it.
    pub(super) fn close_call_at_end(&mut self, body: &str) {
        match self.parse(body) {
            Parsed::Calls(calls) => self.emit_calls(calls),
            _ => self.call_is_text(body),
        }
    }

    fn emit_calls(&mut self, calls: Vec<Call>) {
        self.discard_logprobs();
        self.held_newlines = 0;
        for Call { name, arguments } in calls {
            self.events.push(OutputEvent::ToolCallStart { index: self.calls, name });
            self.events.push(OutputEvent::ToolCallArguments(arguments));
            self.events.push(OutputEvent::ToolCallEnd);
            self.calls += 1;
        }
        self.mode = Mode::Text;
    }

    /// What looked like a call is text after all, with the newlines that stood before it.
    fn call_is_text(&mut self, body: &str) {
        self.mode = Mode::Text;
        self.release_newlines();
        // What is not a tag is part of the body.
        if !self.section.bare {
            self.show(self.section.open);
        }
        self.fresh = false;
        self.show(body);
    }
}

/// Where the value that a call is begins in its text.
enum Start {
    At(usize),
    /// It is not to be seen yet.
    Wait,
    /// This is no call.
    Never,
}

fn value_start(section: &Section, body: &str) -> Start {
    let trimmed = body.trim_start();
    let space = body.len() - trimmed.len();
    let Some(first) = trimmed.chars().next() else {
        return if space > NAME_PART_BYTES_MAX { Start::Never } else { Start::Wait };
    };
    match (section.form, first) {
        (Form::Mistral, '[') => Start::At(space),
        // A name comes first.
        (Form::Mistral, _) => match body.find('{') {
            Some(at) if at <= NAME_PART_BYTES_MAX => Start::At(at),
            None if body.len() <= NAME_PART_BYTES_MAX => Start::Wait,
            _ => Start::Never,
        },
        (Form::Pythonic, '[') => begins_call(trimmed, space),
        (Form::Object, '{') => match trimmed[1..].trim_start().chars().next() {
            None | Some('"') => Start::At(space),
            Some(_) => Start::Never,
        },
        _ => Start::Never,
    }
}

/// A list of calls begins with a name and a parenthesis: any other list is text, and at once.
fn begins_call(list: &str, space: usize) -> Start {
    let inner = list[1..].trim_start();
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-');
    let starts = |c: char| c.is_alphabetic() || c == '_';
    match inner.find(|c| !is_part(c)) {
        _ if !inner.is_empty() && !inner.starts_with(starts) => Start::Never,
        None if inner.len() <= TOOL_NAME_BYTES_MAX => Start::At(space),
        Some(at) if inner[at..].starts_with('(') => Start::At(space),
        _ => Start::Never,
    }
}
