//! A JSON value with its path, so that every complaint can say where.
//!
//! `null` counts as absent everywhere: SDKs differ in whether they leave an unset member out or
//! send it as null.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::error::{ApiError, ErrorKind};
use crate::limits::BODY_BYTES_MAX;
use crate::plain_json::{self, Plain};

/// Parses a whole body, which must be a JSON object.
pub(crate) fn parse_body(bytes: &[u8]) -> Result<Value, ApiError> {
    if bytes.len() > BODY_BYTES_MAX {
        let message = format!("the request body is over the limit of {BODY_BYTES_MAX} bytes");
        return Err(ApiError::new(ErrorKind::TooLarge, message));
    }
    let value = plain_json::from_slice(bytes).map_err(not_json)?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(ApiError::invalid("", &format!("expected an object, got {}", kind_of(&value))))
    }
}

fn not_json(error: serde_json::Error) -> ApiError {
    ApiError::invalid("", &format!("not valid JSON ({error})")).with_code("invalid_json")
}

/// A body whose `tools` were not read yet: they are long, and the same each turn.
pub(crate) struct Apart<'b> {
    pub(crate) value: Value,
    pub(crate) tools: Option<&'b RawValue>,
}

/// Parses a body as [`parse_body`] does, but for its tools.
pub(crate) fn parse_body_apart(bytes: &[u8]) -> Result<Apart<'_>, ApiError> {
    if bytes.len() > BODY_BYTES_MAX || bytes.trim_ascii_start().first() != Some(&b'{') {
        // Refused, in its words.
        return parse_body(bytes).map(|value| Apart { value, tools: None });
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let apart = deserializer.deserialize_map(ApartVisitor);
    apart.and_then(|apart| deserializer.end().map(|()| apart)).map_err(not_json)
}

/// Parses a part of a body that was left out before.
pub(crate) fn parse_part(raw: &str) -> Result<Value, ApiError> {
    plain_json::from_str(raw).map_err(not_json)
}

struct ApartVisitor;

impl<'de> Visitor<'de> for ApartVisitor {
    type Value = Apart<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Apart<'de>, A::Error> {
        let mut value = Map::new();
        let mut tools = None;
        while let Some(name) = members.next_key::<Cow<'de, str>>()? {
            if name == "tools" {
                tools = Some(members.next_value()?);
            } else {
                let Plain(member) = members.next_value()?;
                value.insert(name.into_owned(), member);
            }
        }
        Ok(Apart { value: Value::Object(value), tools })
    }
}

/// Steps that a path tells; what lies deeper is named by where these end.
const STEPS_MAX: usize = 8;

#[derive(Clone, Copy)]
enum Step {
    Member(&'static str),
    Item(usize),
}

/// How to reach a value from the body, written out only where something is wrong with it.
#[derive(Clone, Copy)]
pub(crate) struct Path {
    steps: [Step; STEPS_MAX],
    length: usize,
}

impl Path {
    pub(crate) const ROOT: Path = Path { steps: [Step::Item(0); STEPS_MAX], length: 0 };

    pub(crate) fn member(self, name: &'static str) -> Path {
        self.step(Step::Member(name))
    }

    pub(crate) fn item(self, index: usize) -> Path {
        self.step(Step::Item(index))
    }

    fn step(mut self, step: Step) -> Path {
        if let Some(next) = self.steps.get_mut(self.length) {
            *next = step;
            self.length += 1;
        }
        self
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, step) in self.steps[..self.length].iter().enumerate() {
            match step {
                Step::Member(name) if place == 0 => f.write_str(name)?,
                Step::Member(name) => write!(f, ".{name}")?,
                Step::Item(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// A value and how to reach it from the body.
#[derive(Clone)]
pub(crate) struct Node<'a> {
    pub(crate) value: &'a Value,
    pub(crate) path: Path,
}

impl<'a> Node<'a> {
    pub(crate) fn root(value: &'a Value) -> Node<'a> {
        Node { value, path: Path::ROOT }
    }

    /// The member's path, whether or not it exists.
    pub(crate) fn path_of(&self, name: &'static str) -> String {
        self.path.member(name).to_string()
    }

    /// The member, unless absent or null.
    pub(crate) fn get(&self, name: &'static str) -> Option<Node<'a>> {
        let value = self.value.get(name).filter(|value| !value.is_null())?;
        Some(Node { value, path: self.path.member(name) })
    }

    /// The member; an error if it is absent or null.
    pub(crate) fn require(&self, name: &'static str) -> Result<Node<'a>, ApiError> {
        self.get(name).ok_or_else(|| {
            ApiError::invalid(self.path_of(name), "this field is required")
                .with_code("missing_required_parameter")
        })
    }

    /// The member's text if it is a string; `None` for anything else.
    pub(crate) fn peek_str(&self, name: &str) -> Option<&'a str> {
        self.value.get(name).and_then(Value::as_str)
    }

    pub(crate) fn str(&self) -> Result<&'a str, ApiError> {
        self.value.as_str().ok_or_else(|| self.wrong_type("a string"))
    }

    pub(crate) fn bool(&self) -> Result<bool, ApiError> {
        self.value.as_bool().ok_or_else(|| self.wrong_type("true or false"))
    }

    pub(crate) fn object(&self) -> Result<&'a Map<String, Value>, ApiError> {
        self.value.as_object().ok_or_else(|| self.wrong_type("an object"))
    }

    /// The items of an array with at most `max` of them.
    pub(crate) fn items(&self, max: usize) -> Result<impl Iterator<Item = Node<'a>>, ApiError> {
        let items = self.value.as_array().ok_or_else(|| self.wrong_type("an array"))?;
        if items.len() > max {
            let problem = format!("at most {max} items are allowed, got {}", items.len());
            return Err(self.error(&problem));
        }
        let path = self.path;
        Ok(items
            .iter()
            .enumerate()
            .map(move |(index, value)| Node { value, path: path.item(index) }))
    }

    /// A number within `min..=max`.
    pub(crate) fn number(&self, min: f64, max: f64) -> Result<f64, ApiError> {
        let number = self.value.as_f64().ok_or_else(|| self.wrong_type("a number"))?;
        if (min..=max).contains(&number) {
            Ok(number)
        } else {
            Err(self.error(&format!("must be from {min} to {max}, got {number}")))
        }
    }

    /// A whole number of at least `min`; larger than `max` counts as `max`.
    pub(crate) fn count(&self, min: u32, max: u32) -> Result<u32, ApiError> {
        let whole = |number: f64| number.fract() == 0.0;
        let number = self.value.as_f64().filter(|number| whole(*number));
        let number = number.ok_or_else(|| self.wrong_type("a whole number"))?;
        if number < f64::from(min) {
            return Err(self.error(&format!("must be at least {min}, got {number}")));
        }
        Ok(number.min(f64::from(max)) as u32)
    }

    pub(crate) fn error(&self, problem: &str) -> ApiError {
        ApiError::invalid(self.path.to_string(), problem)
    }

    pub(crate) fn wrong_type(&self, expected: &str) -> ApiError {
        self.error(&format!("expected {expected}, got {}", kind_of(self.value)))
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
