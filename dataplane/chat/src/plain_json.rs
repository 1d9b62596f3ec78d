//! JSON of strangers, read into values by what is written and by nothing else.
//!
//! `serde_json` reads an object with one certain key as JSON within a string, and each such string may be as deep as a
//! whole document: a few of them inside each other overflow the stack, which no limit of depth notices. That key is
//! refused here, however it is escaped, and values are built without a look at keys. All text that a client or a model
//! has written goes through this.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The key that means more than it says.
const RESERVED: &str = "$serde_json::private::RawValue";

/// Reads one value and nothing after it.
pub fn from_slice(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice::<Plain>(bytes).map(|plain| plain.0)
}

/// Reads one value and nothing after it.
pub fn from_str(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str::<Plain>(text).map(|plain| plain.0)
}

/// A value as a member of something larger.
pub(crate) struct Plain(pub(crate) Value);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor).map(Plain)
    }
}

struct PlainVisitor;

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
        let mut out = Vec::new();
        while let Some(Plain(item)) = items.next_element()? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if name == RESERVED {
                return Err(A::Error::custom(format_args!("the key `{RESERVED}` is reserved")));
            }
            let Plain(value) = members.next_value()?;
            out.insert(name, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::from_str;

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
