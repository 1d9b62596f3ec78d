//! A body split into its members, and its history into items, where an earlier body may have begun with the same.
//!
//! What the earlier body has byte for byte is not read again: a value that ends where it began to end is the same
//! value. Everything else is read as it is within a whole body. What is in any way out of the ordinary, a member given
//! twice as well as broken JSON, is left to whoever reads bodies whole, and so are all complaints.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::json::{Apart, parse_body, parse_body_apart};
use super::known_bodies::KnownBody;
use super::turns::Offered;
use crate::error::ApiError;
use crate::ir::Block;
use crate::limits::MESSAGES_MAX;
use crate::plain_json::{self, RESERVED};
use crate::request::Endpoint;

/// Which members of a body are long, and the same in the next one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// The member that holds the items of the conversation.
    pub(super) history: &'static str,
    /// Whether `tools` are read by whoever knows lists of them.
    pub(super) tools_apart: bool,
    /// Whether there is a member `system`.
    pub(super) has_system: bool,
}

impl Shape {
    pub(super) fn of(endpoint: Endpoint) -> Shape {
        match endpoint {
            Endpoint::Chat => Shape { history: "messages", tools_apart: true, has_system: false },
            Endpoint::Responses => {
                Shape { history: "input", tools_apart: false, has_system: false }
            }
            Endpoint::Messages | Endpoint::CountTokens => {
                Shape { history: "messages", tools_apart: true, has_system: true }
            }
        }
    }
}

/// A body as its protocol reads it.
#[derive(Debug)]
pub(super) struct Split<'b> {
    /// Every member but what is kept apart below; the history of a body that was split is an empty array here.
    pub(super) value: Value,
    /// `tools`, where they are read apart.
    pub(super) tools: Option<&'b str>,
    /// What `system` was read into before.
    pub(super) system: Option<&'b [Block]>,
    /// What `tools` were read into before, where they are not read apart.
    pub(super) offered: Option<&'b Arc<Offered>>,
    /// The history, unless it is in `value`.
    pub(super) items: Option<Items<'b>>,
    /// Where members stand that the next body may have again.
    pub(super) places: Places,
}

/// Where long members stand in a body.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    /// Behind the bracket that opens the history.
    pub(super) history: usize,
    pub(super) tools: Option<Range<usize>>,
    pub(super) system: Option<Range<usize>>,
}

/// A history: so many items of a body that is known, and the others.
#[derive(Debug)]
pub(super) struct Items<'b> {
    pub(super) name: &'static str,
    pub(super) bytes: &'b [u8],
    pub(super) known: Option<&'b KnownBody>,
    /// Items that are the known body's.
    pub(super) shared: usize,
    pub(super) values: Vec<Value>,
    /// Where in the body each of them ends.
    pub(super) ends: Vec<usize>,
}

impl Items<'_> {
    pub(super) fn len(&self) -> usize {
        self.shared + self.values.len()
    }

    /// All items as they were sent.
    pub(super) fn sent(&mut self) -> Vec<Value> {
        let ends = self.known.map_or(&[][..], KnownBody::marks);
        let mut from = self.known.map_or(0, |known| known.places().history);
        let mut all = Vec::with_capacity(self.len());
        for mark in ends.iter().take(self.shared) {
            let text = self.bytes.get(from..mark.end).unwrap_or_default();
            // Before an item are a comma and space.
            let comma = |byte: &u8| *byte != b',' && !is_space(*byte);
            let start = text.iter().position(comma).unwrap_or(text.len());
            all.extend(plain_json::leading::<2>(&text[start..]).map(|(value, _)| value));
            from = mark.end;
        }
        all.append(&mut self.values);
        all
    }
}

impl<'b> Split<'b> {
    /// Reads a body as a whole, with a word for whatever is wrong with it.
    pub(super) fn whole(bytes: &'b [u8], shape: Shape) -> Result<Split<'b>, ApiError> {
        let Apart { value, tools } = match shape.tools_apart {
            true => parse_body_apart(bytes)?,
            false => Apart { value: parse_body(bytes)?, tools: None },
        };
        let tools = tools.map(serde_json::value::RawValue::get);
        let places = Places::default();
        Ok(Split { value, tools, system: None, offered: None, items: None, places })
    }

    /// Reads a body that begins with `shared` bytes of the known one; `None` if it has to be read whole.
    pub(super) fn beside(
        bytes: &'b [u8],
        shape: Shape,
        known: Option<&'b KnownBody>,
        shared: usize,
    ) -> Option<Split<'b>> {
        let value = Value::Object(Map::new());
        let places = Places::default();
        let split = Split { value, tools: None, system: None, offered: None, items: None, places };
        let mut reader = Reader { bytes, at: 0, shape, known, shared, split };
        reader.body()?;
        reader.split.items.is_some().then_some(reader.split)
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
    shape: Shape,
    known: Option<&'b KnownBody>,
    shared: usize,
    split: Split<'b>,
}

impl<'b> Reader<'b> {
    fn rest(&self) -> &'b [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn skip_space(&mut self) {
        self.at += self.rest().iter().take_while(|byte| is_space(**byte)).count();
    }

    /// The next byte that is no space, left where it is.
    fn peek(&mut self) -> Option<u8> {
        self.skip_space();
        self.rest().first().copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }

    fn body(&mut self) -> Option<()> {
        self.expect(b'{')?;
        loop {
            let (name, length) = plain_json::leading_text(self.rest())?;
            self.at += length;
            self.expect(b':')?;
            let first = self.peek()?;
            self.member(name, first)?;
            match self.next()? {
                b',' => {}
                b'}' => break,
                _ => return None,
            }
        }
        self.skip_space();
        self.rest().is_empty().then_some(())
    }

    fn member(&mut self, name: String, first: u8) -> Option<()> {
        let start = self.at;
        let known = self.known;
        if name == RESERVED {
            return None;
        }
        if name == "tools" && self.shape.tools_apart {
            if self.split.tools.is_some() {
                return None;
            }
            let place = known.and_then(|known| known.places().tools.as_ref());
            self.split.tools = match self.again(place) {
                Some(text) => Some(text),
                None => {
                    let (raw, length) = plain_json::leading_raw(self.rest())?;
                    self.at += length;
                    Some(raw)
                }
            };
            self.split.places.tools = (first == b'[').then_some(start..self.at);
            return Some(());
        }
        if name == "system" && self.shape.has_system {
            if self.split.places.system.is_some() {
                return None;
            }
            let read = known.and_then(KnownBody::prompt);
            let place = known.filter(|_| read.is_some()).and_then(|k| k.places().system.as_ref());
            if self.again(place).is_some() {
                self.split.system = read;
                self.split.places.system = Some(start..self.at);
                return self.put(name, Value::Null);
            }
        }
        if name == "tools" && self.split.places.tools.is_none() {
            let read = known.and_then(KnownBody::offered);
            let place = known.filter(|_| read.is_some()).and_then(|k| k.places().tools.as_ref());
            if self.again(place).is_some() {
                self.split.offered = read;
                self.split.places.tools = Some(start..self.at);
                return self.put(name, Value::Null);
            }
        }
        let value = if name == self.shape.history && first == b'[' {
            self.items()?;
            Value::Array(Vec::new())
        } else {
            let (value, length) = plain_json::leading::<1>(self.rest())?;
            self.at += length;
            value
        };
        if name == "system" && self.shape.has_system && matches!(first, b'[' | b'"') {
            self.split.places.system = Some(start..self.at);
        } else if name == "tools" && first == b'[' {
            self.split.places.tools = Some(start..self.at);
        }
        self.put(name, value)
    }

    fn put(&mut self, name: String, value: Value) -> Option<()> {
        self.split.value.as_object_mut()?.insert(name, value).is_none().then_some(())
    }

    /// Skips a value that stood at `place` in the known body and comes again. Only for values that say themselves where
    /// they end: texts, arrays and objects.
    fn again(&mut self, place: Option<&Range<usize>>) -> Option<&'b str> {
        let text = self.known?.text().get(place?.clone())?;
        let same_place = place.is_some_and(|p| p.start == self.at && p.end <= self.shared);
        if !same_place && !self.rest().starts_with(text.as_bytes()) {
            return None;
        }
        self.at += text.len();
        Some(text)
    }

    fn items(&mut self) -> Option<()> {
        self.expect(b'[')?;
        let (bytes, name) = (self.bytes, self.shape.history);
        let mut items =
            Items { name, bytes, known: None, shared: 0, values: Vec::new(), ends: Vec::new() };
        self.split.places.history = self.at;
        let known = self.known.filter(|k| k.places().history == self.at && self.at <= self.shared);
        if let Some(known) = known {
            // Items are objects, so that one whose bytes are all there ends there.
            let shared = known.marks().partition_point(|mark| mark.end <= self.shared);
            if let Some(last) = shared.checked_sub(1).and_then(|last| known.marks().get(last)) {
                (items.known, items.shared, self.at) = (Some(known), shared, last.end);
            }
        }
        if items.shared == 0 && self.peek()? == b']' {
            self.at += 1;
        } else {
            let mut more = items.shared == 0;
            loop {
                if more {
                    let (value, length) = plain_json::leading::<2>(self.rest())?;
                    self.at += length;
                    items.values.push(value);
                    items.ends.push(self.at);
                }
                match self.next()? {
                    b',' => more = true,
                    b']' => break,
                    _ => return None,
                }
            }
        }
        if items.len() > MESSAGES_MAX {
            return None;
        }
        self.split.items = Some(items);
        Some(())
    }
}
