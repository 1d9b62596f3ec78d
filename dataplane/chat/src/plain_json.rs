//! JSON of strangers, read into values by what is written and by nothing else.
//!
//! `serde_json` reads an object with one certain key as JSON within a string, and each such string may be as deep as a
//! whole document: a few of them inside each other overflow the stack, which no limit of depth notices. That key is
//! refused here, however it is escaped, and values are built without a look at keys. All text that a client or a model
//! has written goes through this.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

/// The key that means more than it says.
pub(crate) const RESERVED: &str = "$serde_json::private::RawValue";
/// Arrays and objects inside each other that the library reads, at most.
const LEVELS_MAX: usize = 127;

/// Reads one value and nothing after it.
pub fn from_slice(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice::<Plain>(bytes).map(|plain| plain.0)
}

/// Reads one value and nothing after it.
pub fn from_str(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str::<Plain>(text).map(|plain| plain.0)
}

/// Reads the value that `bytes` begin with, and how many of them it takes. It is read as one that has `ABOVE` arrays
/// and objects around it, so that as many fit into it as do in a whole text. What is not read is worth no words here:
/// whoever asks has the whole text, and reads that for them.
pub(crate) fn leading<const ABOVE: usize>(bytes: &[u8]) -> Option<(Value, usize)> {
    let (Under::<ABOVE>(value), length) = first(bytes)?;
    Some((value, length))
}

/// The text that `bytes` begin with, and how many of them it takes.
pub(crate) fn leading_text(bytes: &[u8]) -> Option<(String, usize)> {
    first(bytes)
}

/// The value that `bytes` begin with, as it is written, and how many of them it takes.
pub(crate) fn leading_raw(bytes: &[u8]) -> Option<(&str, usize)> {
    let (raw, length) = first::<&RawValue>(bytes)?;
    Some((raw.get(), length))
}

fn first<'b, T: Deserialize<'b>>(bytes: &'b [u8]) -> Option<(T, usize)> {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<T>();
    let value = values.next()?.ok()?;
    Some((value, values.byte_offset()))
}

/// A value with `ABOVE` arrays and objects around it.
struct Under<const ABOVE: usize>(Value);

impl<'de, const ABOVE: usize> Deserialize<'de> for Under<ABOVE> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PlainVisitor { levels: LEVELS_MAX - ABOVE }.deserialize(deserializer).map(Under)
    }
}

/// A value as a member of something larger.
pub(crate) struct Plain(pub(crate) Value);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The library counts from where it began, which is further out.
        PlainVisitor { levels: LEVELS_MAX }.deserialize(deserializer).map(Plain)
    }
}

#[derive(Clone, Copy)]
struct PlainVisitor {
    /// Arrays and objects that may still be entered.
    levels: usize,
}

impl PlainVisitor {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let levels = self.levels.checked_sub(1);
        levels.map(|levels| Self { levels }).ok_or_else(|| E::custom("recursion limit exceeded"))
    }
}

impl<'de> DeserializeSeed<'de> for PlainVisitor {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PlainVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut out = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut out = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if name == RESERVED {
                return Err(A::Error::custom(format_args!("the key `{RESERVED}` is reserved")));
            }
            let value = members.next_value_seed(inner)?;
            out.insert(name, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{from_str, leading, leading_raw, leading_text};

    #[test]
    fn values_are_what_the_library_reads() {
        for text in [
            "null",
            "true",
            "-7",
            "18446744073709551615",
            "1e400",
            "1.50",
            "\"a\\u00e9\\n\"",
            "[]",
            "{}",
            "[1, [2, {\"a\": null}]]",
            r#"{"b": 1, "a": {"c": [true, "x"]}, "b": 2}"#,
            "",
            "[1,]",
            "{\"a\"}",
            "\"\\ud800\"",
            "1 2",
        ] {
            match (from_str(text), serde_json::from_str::<Value>(text)) {
                (Ok(ours), Ok(theirs)) => {
                    assert_eq!(ours.to_string(), theirs.to_string(), "{text}")
                }
                (Err(ours), Err(theirs)) => assert_eq!(ours.to_string(), theirs.to_string()),
                (ours, theirs) => panic!("{text}: {ours:?} beside {theirs:?}"),
            }
        }
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert!(from_str(&deep).is_err());
    }

    #[test]
    fn a_leading_value_is_as_deep_as_it_may_be_in_its_place() {
        for levels in 120..132 {
            let deep = "[".repeat(levels) + &"]".repeat(levels);
            let object = format!("{{\"a\": {deep}}}");
            let item = format!("{{\"a\": [{deep}]}}");
            let [of_object, of_item] = [&object, &item].map(|text| from_str(text).is_ok());
            assert_eq!(leading::<1>(deep.as_bytes()).is_some(), of_object, "{levels}");
            assert_eq!(leading::<2>(deep.as_bytes()).is_some(), of_item, "{levels}");
        }
        assert_eq!(leading::<1>(b" [1], 2"), Some((json!([1]), 4)));
        assert_eq!(leading::<1>(b"12,"), Some((json!(12), 2)));
        for wrong in
            ["", "12a", "[1", "nul", "\"\u{1}\"", "{\"$serde_json::private::RawValue\": 1}"]
        {
            assert_eq!(leading::<1>(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(leading_text(br#""a\u0062": 1"#), Some(("ab".to_owned(), 9)));
        assert_eq!(leading_raw(b" {\"a\": [1 ]} "), Some(("{\"a\": [1 ]}", 12)));
    }

    #[test]
    fn json_within_a_reserved_key_is_not_read() {
        let mut text = "1".to_owned();
        for _ in 0..3 {
            text = json!({"$serde_json::private::RawValue": text}).to_string();
        }
        assert!(from_str(&text).unwrap_err().to_string().contains("reserved"));
        let escaped = r#"[{"\u0024serde_json::private::RawValue": "[1]"}]"#;
        assert!(from_str(escaped).unwrap_err().to_string().contains("reserved"));
        let later = r#"{"a": 1, "$serde_json::private::RawValue": "[1]"}"#;
        assert!(from_str(later).is_err());
    }
}
