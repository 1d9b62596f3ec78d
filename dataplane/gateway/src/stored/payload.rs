//! What a stored response's payload says: the response as its client got it, and what was new in its input.
//!
//! A byte that names the form, then JSON. Where the log does not have the turns before, the payload has their items,
//! so that a chain can begin anywhere. Other bytes are an error and never a wrong history.

use mainstay_chat::{ApiError, Conversation, ErrorKind, ParseOptions, history};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Plain JSON.
const JSON: u8 = 1;

/// The meaning of a payload.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Said {
    /// The object that GET answers with.
    pub(super) response: Value,
    /// The input's items, as they were sent.
    pub(super) input: Vec<Value>,
    /// All items before them, where this is the first of its chain and yet not the first of its conversation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) before: Vec<Value>,
}

impl Said {
    pub(super) fn pack(&self) -> Vec<u8> {
        let mut bytes = vec![JSON];
        // Values write into memory without a failure.
        serde_json::to_writer(&mut bytes, self).expect("JSON values and a vector cannot fail");
        bytes
    }

    pub(super) fn unpack(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (&JSON, json) => serde_json::from_slice(json).ok(),
            _ => None,
        }
    }

    fn output(&self) -> &[Value] {
        self.response.get("output").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

/// The conversation that a chain amounts to, oldest first.
pub(super) fn conversation_of(
    chain: &[Said],
    parsing: ParseOptions,
) -> Result<Conversation, ApiError> {
    let mut conversation = Conversation::default();
    for said in chain {
        for items in [said.before.as_slice(), &said.input, said.output()] {
            history::append_items(&mut conversation, items, parsing).map_err(|error| {
                let message = format!("a stored response can't be read: {}", error.message);
                ApiError::new(ErrorKind::Internal, message)
            })?;
        }
    }
    Ok(conversation)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn turn(question: &str, answer: &str) -> Said {
        let part = json!({"type": "output_text", "text": answer});
        Said {
            response: json!({"output": [{"type": "message", "role": "assistant", "content": [part]}]}),
            input: vec![json!({"role": "user", "content": question})],
            before: Vec::new(),
        }
    }

    #[test]
    fn payloads_come_back_and_other_bytes_are_none() {
        let said = turn("a", "b");
        assert_eq!(Said::unpack(&said.pack()), Some(said));
        for bytes in [&b""[..], b"\x01", b"\x01{}", b"\x02{}", b"{}"] {
            assert_eq!(Said::unpack(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_chain_that_begins_late_says_the_same_as_a_whole_one() {
        let whole = [turn("a", "b"), turn("c", "d")];
        let whole = conversation_of(&whole, ParseOptions::default()).expect("items");
        assert_eq!(whole.messages.len(), 4);
        let first = conversation_of(&[turn("a", "b")], ParseOptions::default()).expect("items");
        let late = Said { before: history::items_of(&first), ..turn("c", "d") };
        assert_eq!(conversation_of(&[late], ParseOptions::default()).expect("items"), whole);
        let broken = Said { input: vec![json!(7)], ..Said::default() };
        let error = conversation_of(&[broken], ParseOptions::default()).expect_err("no item");
        assert_eq!(error.kind, ErrorKind::Internal);
    }
}
