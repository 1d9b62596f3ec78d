//! The `tojson` filter as Hugging Face's renderer has it: Python's `json.dumps` spacing, no HTML
//! escapes, and characters beyond ASCII as they are.
//!
//! The engine's own filter escapes `<` and `'` for HTML, which would show the model other text
//! than the one it was trained on. Sorting, `indent` and `separators` are honoured because
//! published templates use them.

use super::hf::Dict;
use minijinja::value::{Kwargs, Value as JinjaValue};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use serde_json::{Map, Value};
use std::io;

/// Deepest indentation honoured; hostile templates could ask for gigabytes of spaces.
const INDENT_MAX: usize = 16;

/// `value | tojson(indent=…, ensure_ascii=…, separators=…, sort_keys=…)`.
pub(super) fn tojson(value: JinjaValue, kwargs: Kwargs) -> Result<JinjaValue, Error> {
    let Some(dict) = value.downcast_object_ref::<Dict>().filter(|_| kwargs.args().next().is_none())
    else {
        return written(&value, &kwargs);
    };
    if let Some(json) = dict.json.get() {
        return Ok(json.clone());
    }
    let json = written(&value, &kwargs)?;
    Ok(dict.json.get_or_init(|| json).clone())
}

fn written(value: &JinjaValue, kwargs: &Kwargs) -> Result<JinjaValue, Error> {
    let unserialisable =
        |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut json = serde_json::to_value(value).map_err(unserialisable)?;
    if kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false) {
        json = sorted(json);
    }
    let indent = kwargs.get::<Option<usize>>("indent")?.map(|indent| indent.min(INDENT_MAX));
    let separators = kwargs.get::<Option<Vec<String>>>("separators")?.unwrap_or_default();
    let ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let default_item = if indent.is_some() { "," } else { ", " };
    let format = PythonFormat {
        indent,
        depth: 0,
        has_value: false,
        item: separators.first().map_or(default_item, String::as_str).to_owned(),
        key: separators.get(1).map_or(": ", String::as_str).to_owned(),
        ascii,
    };
    let mut out = Vec::new();
    json.serialize(&mut Serializer::with_formatter(&mut out, format)).map_err(unserialisable)?;
    let text = String::from_utf8(out)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(JinjaValue::from_safe_string(text))
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut members: Vec<(String, Value)> = members.into_iter().collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            let sorted = members.into_iter().map(|(name, value)| (name, sorted(value)));
            Value::Object(sorted.collect::<Map<String, Value>>())
        }
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

struct PythonFormat {
    indent: Option<usize>,
    depth: usize,
    has_value: bool,
    item: String,
    key: String,
    ascii: bool,
}

impl PythonFormat {
    fn open(&mut self) {
        self.depth += 1;
        self.has_value = false;
    }

    fn close<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth -= 1;
        if self.has_value {
            self.new_line(writer)?;
        }
        self.has_value = true;
        Ok(())
    }

    fn next<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.new_line(writer)
    }

    fn new_line<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = self.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        for _ in 0..self.depth * indent {
            writer.write_all(b" ")?;
        }
        Ok(())
    }
}

impl Formatter for PythonFormat {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open();
        writer.write_all(b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer)?;
        writer.write_all(b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open();
        writer.write_all(b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer)?;
        writer.write_all(b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.ascii || fragment.is_ascii() {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0u16; 2];
        for c in fragment.chars() {
            if c.is_ascii() {
                writer.write_all(&[c as u8])?;
            } else {
                for unit in c.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}
