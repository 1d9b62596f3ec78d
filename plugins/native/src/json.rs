//! Bounded reading of JSON files with errors that name file and member, because every number in a
//! model's folder is hostile until it has been compared with a limit.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::LoadError;

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, LoadError> {
    let wrap = |source| LoadError::Read { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(wrap)?;
    let mut bytes = Vec::new();
    // One byte more than allowed is enough to know, whatever the file's metadata claims.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(wrap)?;
    if bytes.len() as u64 > limit {
        let file = path.display().to_string();
        return Err(LoadError::TooLarge { file, bytes: bytes.len() as u64, limit });
    }
    Ok(bytes)
}

/// A JSON object and the name of the file it came from.
pub(crate) struct Object<'a> {
    pub(crate) file: &'a str,
    pub(crate) value: &'a Value,
}

/// Parses a document whose top level must be an object.
pub(crate) fn parse_object(file: &str, bytes: &[u8]) -> Result<Value, LoadError> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|e| LoadError::Json { file: file.to_owned(), reason: e.to_string() })?;
    if value.is_object() {
        return Ok(value);
    }
    Err(LoadError::Json { file: file.to_owned(), reason: "the top level is not an object".into() })
}

impl<'a> Object<'a> {
    pub(crate) fn error(&self, member: &str, reason: impl Into<String>) -> LoadError {
        LoadError::Member {
            file: self.file.to_owned(),
            member: member.to_owned(),
            reason: reason.into(),
        }
    }

    /// A member, where an explicit null is the same as none.
    pub(crate) fn get(&self, member: &str) -> Option<&'a Value> {
        self.value.get(member).filter(|value| !value.is_null())
    }

    pub(crate) fn object(&self, member: &str) -> Result<Option<Object<'a>>, LoadError> {
        match self.get(member) {
            None => Ok(None),
            Some(value) if value.is_object() => Ok(Some(Object { file: self.file, value })),
            Some(_) => Err(self.error(member, "must be an object")),
        }
    }

    /// A whole number within `1..=limit`.
    pub(crate) fn size(&self, member: &str, limit: usize) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(member) else { return Ok(None) };
        let number = value.as_u64().filter(|n| (1..=limit as u64).contains(n));
        let number = number
            .ok_or_else(|| self.error(member, format!("must be a whole number in 1..={limit}")))?;
        Ok(Some(number as usize))
    }

    pub(crate) fn size_required(&self, member: &str, limit: usize) -> Result<usize, LoadError> {
        self.size(member, limit)?.ok_or_else(|| self.error(member, "is missing"))
    }

    /// A finite number within `low..=high`.
    pub(crate) fn float(
        &self,
        member: &str,
        low: f64,
        high: f64,
    ) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(member) else { return Ok(None) };
        let number = value.as_f64().filter(|n| (low..=high).contains(n));
        let number = number
            .ok_or_else(|| self.error(member, format!("must be a number in {low}..={high}")))?;
        Ok(Some(number))
    }

    pub(crate) fn boolean(&self, member: &str) -> Result<Option<bool>, LoadError> {
        match self.get(member) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.error(member, "must be true or false")),
        }
    }

    pub(crate) fn string(&self, member: &str) -> Result<Option<&'a str>, LoadError> {
        match self.get(member) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(_) => Err(self.error(member, "must be a string")),
        }
    }

    /// One token id or a list of them, as `eos_token_id` comes.
    pub(crate) fn tokens(&self, member: &str, vocab: usize) -> Result<Vec<u32>, LoadError> {
        let one = |value: &Value| {
            let id = value.as_u64().filter(|id| *id < vocab as u64);
            id.map(|id| id as u32)
                .ok_or_else(|| self.error(member, format!("must hold token ids below {vocab}")))
        };
        match self.get(member) {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) if ids.len() > TOKENS_LISTED_MAX => {
                Err(self.error(member, format!("lists more than {TOKENS_LISTED_MAX} tokens")))
            }
            Some(Value::Array(ids)) => ids.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }
}

/// More end tokens than any tokenizer has.
const TOKENS_LISTED_MAX: usize = 1024;
