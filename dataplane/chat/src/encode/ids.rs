//! Ids of an answer and its parts, all derived from the request's.
//!
//! Deterministic on purpose: a retried encoding gives the same ids, and an id in a log leads back
//! to its request.

/// Longest part of a request id that is used.
const BASE_BYTES_MAX: usize = 64;

/// Makes the ids of one answer.
#[derive(Clone, Debug)]
pub(crate) struct Ids {
    base: String,
}

impl Ids {
    /// Keeps what clients accept in ids: letters, digits, `-` and `_`.
    pub(crate) fn new(request_id: &str) -> Ids {
        let bare = ["req_", "req-"].iter().find_map(|prefix| request_id.strip_prefix(prefix));
        let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let base = bare.unwrap_or(request_id).chars().filter(allowed).take(BASE_BYTES_MAX);
        Ids { base: base.collect() }
    }

    pub(crate) fn chat(&self) -> String {
        format!("chatcmpl-{}", self.base)
    }

    pub(crate) fn message(&self) -> String {
        format!("msg_{}", self.base)
    }

    pub(crate) fn response(&self) -> String {
        format!("resp_{}", self.base)
    }

    /// An output item of a Responses answer; `prefix` names its kind.
    pub(crate) fn item(&self, prefix: &str, index: usize) -> String {
        format!("{prefix}_{}_{index}", self.base)
    }

    /// A call, in the two OpenAI protocols.
    pub(crate) fn call(&self, index: u32) -> String {
        format!("call_{}_{index}", self.base)
    }

    /// A call, in Anthropic's protocol.
    pub(crate) fn tool_use(&self, index: u32) -> String {
        format!("toolu_{}_{index}", self.base)
    }
}
