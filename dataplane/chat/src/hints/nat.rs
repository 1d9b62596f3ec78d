//! Hints that NVIDIA's NeMo Agent Toolkit sends: as headers, as annotations, and within `agent_hints`.
//!
//! Three transports of four facts, of which its versions use one or two at a time: a name for the requests that share
//! a prefix, how many there will be, how long the answer is, and how soon the next comes. Lengths come as numbers or
//! as the words `LOW`, `MEDIUM` and `HIGH`. What was told twice counts as the more explicit form has it: members of
//! `agent_hints`, then annotations, then headers.

use serde_json::Value;

use super::{HINT_IGNORED, Hints};
use crate::limits::ANNOTATIONS_MAX;
use crate::request::Request;
use crate::session::id;
use crate::uses::Uses;

/// What the words of a length stand for.
#[derive(Clone, Copy)]
pub(super) struct Words {
    low: u32,
    medium: u32,
    high: u32,
}

/// Tokens of an answer: the toolkit calls fewer than 256 low and 1,024 and more high.
pub(super) const OSL_TOKENS: Words = Words { low: 128, medium: 512, high: 2_048 };
/// Milliseconds until the next request: the toolkit calls less than 100 low and 500 and more high.
pub(super) const IAT_MS: Words = Words { low: 50, medium: 250, high: 1_000 };

impl Words {
    pub(super) fn read(self, word: &str) -> Option<u32> {
        let is = |name: &str| word.eq_ignore_ascii_case(name);
        match () {
            () if is("low") => Some(self.low),
            () if is("medium") => Some(self.medium),
            () if is("high") => Some(self.high),
            () => None,
        }
    }

    /// A word, or a number in digits.
    fn parse(self, text: &str) -> Option<u32> {
        self.read(text).or_else(|| text.parse().ok())
    }
}

/// The four facts.
#[derive(Default)]
pub(super) struct Nat {
    pub(super) prefix_id: Option<String>,
    pub(super) total_requests: Option<u32>,
    pub(super) osl: Option<u32>,
    pub(super) iat_ms: Option<u32>,
}

/// What the facts are called in one of the transports, in the order of [`Nat`]'s members.
pub(super) struct Names([&'static str; 4]);

pub(super) const AGENT_HINTS: Names = Names([
    "agent_hints.prefix_id",
    "agent_hints.total_requests",
    "agent_hints.osl",
    "agent_hints.iat",
]);
const ANNOTATIONS: Names = Names([
    "annotations.prefix_id",
    "annotations.total_requests",
    "annotations.osl",
    "annotations.iat",
]);
const HEADERS: Names =
    Names(["x-prefix-id", "x-prefix-total-requests", "x-prefix-osl", "x-prefix-iat"]);

impl Nat {
    /// Takes over what is not known yet.
    pub(super) fn apply(self, hints: &mut Hints, uses: &mut Uses, names: &Names) {
        let Names([prefix_id, total_requests, osl, iat]) = names;
        if self.prefix_id.is_some() {
            uses.idle(prefix_id);
            hints.prefix_id = hints.prefix_id.take().or(self.prefix_id);
        }
        if self.total_requests.is_some() {
            uses.idle(total_requests);
            hints.total_requests = hints.total_requests.or(self.total_requests);
        }
        if self.iat_ms.is_some() {
            uses.idle(iat);
            hints.iat_ms = hints.iat_ms.or(self.iat_ms);
        }
        if self.osl.is_some() {
            uses.idle(osl);
            if hints.osl.is_none() {
                hints.osl = self.osl;
                uses.used(osl);
            }
        }
    }

    /// Takes the fact of that name; false if its value makes no sense, `None` if there is no such fact.
    fn read(&mut self, name: &str, value: &str) -> Option<bool> {
        let value = value.trim();
        match name {
            "prefix_id" => self.prefix_id = id(value),
            "total_requests" => self.total_requests = value.parse().ok(),
            "osl" => self.osl = OSL_TOKENS.parse(value),
            "iat" => self.iat_ms = IAT_MS.parse(value),
            _ => return None,
        }
        Some(match name {
            "prefix_id" => self.prefix_id.is_some(),
            "total_requests" => self.total_requests.is_some(),
            "osl" => self.osl.is_some(),
            _ => self.iat_ms.is_some(),
        })
    }
}

/// Reads `nvext.annotations`: texts, some of them `name:value`. Others ask for events that are not made here.
pub(super) fn parse_annotations(value: &Value, request: &mut Request) {
    let Some(items) = value.as_array() else {
        if !value.is_null() {
            request.warn("`nvext.annotations` ignored: expected an array of strings");
        }
        return;
    };
    let mut nat = Nat::default();
    for (at, item) in items.iter().take(ANNOTATIONS_MAX).enumerate() {
        let Some(text) = item.as_str() else {
            request.warn(format!("`nvext.annotations[{at}]` ignored: expected a string"));
            continue;
        };
        let fact = text.split_once(':').and_then(|(name, value)| nat.read(name, value));
        match fact {
            Some(true) => {}
            Some(false) => {
                request.warn(format!("`nvext.annotations[{at}]` ignored: not understood"));
            }
            None => request.uses.idle("nvext.annotations"),
        }
    }
    if items.len() > ANNOTATIONS_MAX {
        request
            .warn(format!("`nvext.annotations` ignored: those after the first {ANNOTATIONS_MAX}"));
    }
    nat.apply(&mut request.hints, &mut request.uses, &ANNOTATIONS);
}

/// Hints in headers, as they are met.
#[derive(Default)]
pub(crate) struct HeaderHints {
    priority: Option<i32>,
    strict_priority: Option<u32>,
    nat: Nat,
    ignored: u32,
}

impl HeaderHints {
    /// Takes a header, by its name in small letters.
    pub(crate) fn header(&mut self, name: &str, value: &str) {
        let understood = match name {
            "x-dynamo-request-priority" => {
                self.priority = value.parse().ok();
                self.priority.is_some()
            }
            "x-dynamo-request-strict-priority" => {
                self.strict_priority = value.parse().ok();
                self.strict_priority.is_some()
            }
            "x-prefix-id" => self.nat.read("prefix_id", value) == Some(true),
            "x-prefix-total-requests" => self.nat.read("total_requests", value) == Some(true),
            "x-prefix-osl" => self.nat.read("osl", value) == Some(true),
            "x-prefix-iat" => self.nat.read("iat", value) == Some(true),
            _ => return,
        };
        self.ignored += u32::from(!understood);
    }

    /// The client's name for what its requests have in common.
    pub(crate) fn prefix_id(&self) -> Option<&str> {
        self.nat.prefix_id.as_deref()
    }

    /// Adds what the headers say to what the body said.
    pub(crate) fn apply(self, request: &mut Request) {
        let (hints, uses) = (&mut request.hints, &mut request.uses);
        if let Some(priority) = self.priority {
            hints.priority = Some(priority);
            uses.had_no_effect(&["agent_hints.priority", "nvext.priority"]);
            uses.used("x-dynamo-request-priority");
        }
        if let Some(priority) = self.strict_priority {
            hints.strict_priority = Some(priority);
            uses.had_no_effect(&["agent_hints.strict_priority"]);
            uses.used("x-dynamo-request-strict-priority");
        }
        self.nat.apply(hints, uses, &HEADERS);
        for _ in 0..self.ignored {
            request.tell(HINT_IGNORED);
        }
    }
}
