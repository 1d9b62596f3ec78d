//! The error a client sees: one type, three wire shapes.
//!
//! Statuses and codes are client-visible policy, not taste. Harnesses decide by them whether to
//! retry: a 429 without `Retry-After` ends a Codex turn, `server_is_overloaded` in a Responses
//! stream is fatal to it, and the text of a context overflow is parsed for its two numbers. So
//! every retryable kind here carries a wait, and no code is used that a client takes for final
//! when it is not.

use serde_json::{Value, json};

use crate::request::Endpoint;

/// What went wrong, in the words shared by the three protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request can't be served as written (400).
    InvalidRequest,
    /// No or wrong credential (401).
    Authentication,
    /// The credential may not do this (403).
    Permission,
    /// No such model, response or path (404).
    NotFound,
    /// The body did not arrive in time (408).
    Timeout,
    /// The body is compressed in a way that is not understood (415).
    UnsupportedEncoding,
    /// The body is over the limit (413).
    TooLarge,
    /// The tenant's rate is used up (429).
    RateLimited,
    /// The cluster has no room now (529 for Anthropic clients, 503 for others).
    Overloaded,
    /// Prompt and output don't fit the model's context (400).
    ContextLength,
    /// A fault of ours (500).
    Internal,
    /// Something needed is away for now (503).
    Unavailable,
}

/// Seconds a client waits when a retryable error names none.
const RETRY_AFTER_DEFAULT_S: u32 = 1;

/// An error as told to a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The kind, from which status and type follow.
    pub kind: ErrorKind,
    /// What happened and what to do about it, for a person.
    pub message: String,
    /// Path of the offending member, such as `messages[2].content[0].type`.
    pub param: Option<String>,
    /// A finer code for programs; a default follows from the kind.
    pub code: Option<String>,
    /// Seconds to wait before trying again; see [`ApiError::retry_after_s`].
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    /// An error of `kind` without param or code.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> ApiError {
        ApiError { kind, message: message.into(), param: None, code: None, retry_after_s: None }
    }

    /// A malformed member, named by its path.
    pub fn invalid(param: impl Into<String>, problem: &str) -> ApiError {
        let param = param.into();
        let message = if param.is_empty() {
            format!("invalid request body: {problem}")
        } else {
            format!("invalid `{param}`: {problem}")
        };
        let param = Some(param).filter(|p| !p.is_empty());
        ApiError { param, ..ApiError::new(ErrorKind::InvalidRequest, message) }
    }

    /// A prompt that doesn't fit; the wording is what harnesses parse the numbers from.
    pub fn context_length(prompt_tokens: u64, tokens_max: u64) -> ApiError {
        let message = format!("prompt is too long: {prompt_tokens} tokens > {tokens_max} maximum");
        ApiError::new(ErrorKind::ContextLength, message)
    }

    /// The same error with a finer code.
    pub fn with_code(mut self, code: &str) -> ApiError {
        self.code = Some(code.to_owned());
        self
    }

    /// The same error with a wait before the next try.
    pub fn with_retry_after_s(mut self, seconds: u32) -> ApiError {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The value of `Retry-After`: always present on retryable kinds, since some clients give
    /// up for good without it.
    pub fn retry_after_s(&self) -> Option<u32> {
        match self.kind {
            ErrorKind::RateLimited | ErrorKind::Overloaded | ErrorKind::Unavailable => {
                Some(self.retry_after_s.unwrap_or(RETRY_AFTER_DEFAULT_S))
            }
            _ => self.retry_after_s,
        }
    }

    /// The HTTP status for this endpoint.
    pub fn status(&self, endpoint: Endpoint) -> u16 {
        match self.kind {
            ErrorKind::InvalidRequest | ErrorKind::ContextLength => 400,
            ErrorKind::Authentication => 401,
            ErrorKind::Permission => 403,
            ErrorKind::NotFound => 404,
            ErrorKind::Timeout => 408,
            ErrorKind::UnsupportedEncoding => 415,
            ErrorKind::TooLarge => 413,
            ErrorKind::RateLimited => 429,
            ErrorKind::Overloaded if endpoint.is_anthropic() => 529,
            ErrorKind::Internal => 500,
            ErrorKind::Overloaded | ErrorKind::Unavailable => 503,
        }
    }

    /// The JSON body for this endpoint.
    pub fn body(&self, endpoint: Endpoint, request_id: &str) -> String {
        self.body_value(endpoint, request_id).to_string()
    }

    pub(crate) fn body_value(&self, endpoint: Endpoint, request_id: &str) -> Value {
        if endpoint.is_anthropic() {
            return json!({
                "type": "error",
                "error": {"type": self.anthropic_type(), "message": self.message},
                "request_id": request_id,
            });
        }
        json!({"error": {
            "message": self.message,
            "type": self.openai_type(),
            "param": self.param,
            "code": self.openai_code(),
        }})
    }

    fn anthropic_type(&self) -> &'static str {
        match self.kind {
            ErrorKind::InvalidRequest
            | ErrorKind::ContextLength
            | ErrorKind::Timeout
            | ErrorKind::UnsupportedEncoding => "invalid_request_error",
            ErrorKind::Authentication => "authentication_error",
            ErrorKind::Permission => "permission_error",
            ErrorKind::NotFound => "not_found_error",
            ErrorKind::TooLarge => "request_too_large",
            ErrorKind::RateLimited => "rate_limit_error",
            ErrorKind::Overloaded => "overloaded_error",
            ErrorKind::Internal | ErrorKind::Unavailable => "api_error",
        }
    }

    fn openai_type(&self) -> &'static str {
        match self.kind {
            ErrorKind::InvalidRequest
            | ErrorKind::ContextLength
            | ErrorKind::NotFound
            | ErrorKind::Timeout
            | ErrorKind::UnsupportedEncoding
            | ErrorKind::TooLarge => "invalid_request_error",
            ErrorKind::Authentication => "authentication_error",
            ErrorKind::Permission => "permission_error",
            ErrorKind::RateLimited => "rate_limit_error",
            ErrorKind::Overloaded | ErrorKind::Internal | ErrorKind::Unavailable => "server_error",
        }
    }

    fn openai_code(&self) -> Option<&str> {
        if let Some(code) = &self.code {
            return Some(code);
        }
        match self.kind {
            ErrorKind::InvalidRequest => None,
            ErrorKind::Authentication => Some("invalid_api_key"),
            ErrorKind::Permission => Some("permission_denied"),
            ErrorKind::NotFound => Some("not_found"),
            ErrorKind::TooLarge => Some("request_too_large"),
            ErrorKind::Timeout => Some("request_timeout"),
            ErrorKind::UnsupportedEncoding => Some("unsupported_encoding"),
            ErrorKind::RateLimited => Some("rate_limit_exceeded"),
            ErrorKind::ContextLength => Some("context_length_exceeded"),
            ErrorKind::Overloaded | ErrorKind::Internal | ErrorKind::Unavailable => {
                Some("server_error")
            }
        }
    }

    /// Code and message of a `response.failed` event.
    ///
    /// Codex waits and retries on `rate_limit_exceeded` with a "try again in" text, and treats
    /// an overload code as the end, so a full cluster is told as a rate limit here.
    pub(crate) fn responses_failure(&self) -> (&str, String) {
        match self.kind {
            ErrorKind::RateLimited | ErrorKind::Overloaded | ErrorKind::Unavailable => {
                let seconds = self.retry_after_s().unwrap_or(RETRY_AFTER_DEFAULT_S);
                let message = format!("{}; please try again in {seconds}s", self.message);
                ("rate_limit_exceeded", message)
            }
            ErrorKind::ContextLength => ("context_length_exceeded", self.message.clone()),
            ErrorKind::Internal => ("server_error", self.message.clone()),
            _ => ("invalid_prompt", self.message.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn each_protocol_has_its_own_shape() {
        let error = ApiError::context_length(250_000, 200_000);
        expect![[r#"{"error":{"message":"prompt is too long: 250000 tokens > 200000 maximum","type":"invalid_request_error","param":null,"code":"context_length_exceeded"}}"#]]
            .assert_eq(&error.body(Endpoint::Chat, "req_1"));
        expect![[r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 250000 tokens > 200000 maximum"},"request_id":"req_1"}"#]]
            .assert_eq(&error.body(Endpoint::Messages, "req_1"));
        assert_eq!(error.status(Endpoint::Responses), 400);
    }

    #[test]
    fn overload_has_a_wait_everywhere() {
        let error = ApiError::new(ErrorKind::Overloaded, "no worker has room");
        assert_eq!(error.status(Endpoint::Messages), 529);
        assert_eq!(error.status(Endpoint::Chat), 503);
        assert_eq!(error.retry_after_s(), Some(1));
        assert_eq!(error.clone().with_retry_after_s(7).retry_after_s(), Some(7));
        let (code, message) = error.responses_failure();
        assert_eq!(code, "rate_limit_exceeded");
        assert!(message.contains("try again in 1s"), "{message}");
        assert_eq!(ApiError::new(ErrorKind::RateLimited, "slow down").retry_after_s(), Some(1));
        assert_eq!(ApiError::new(ErrorKind::Internal, "oops").retry_after_s(), None);
    }
}
