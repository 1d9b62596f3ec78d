//! The closed set of codes an engine may answer with, and the error that carries one.
//!
//! A closed enum keeps an engine from inventing codes that the host then has to guess at; the raw
//! number of the header is one call away.

use std::fmt;

/// A code of the header, without `MSE_OK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Code {
    /// The caller's arguments are wrong.
    Invalid,
    NotFound,
    /// That request id is live already.
    Exists,
    /// Queue, cache or pin budget is full; `retry_after_ms` says when to come again.
    Exhausted,
    Precondition,
    Unimplemented,
    Internal,
    /// Draining or dead.
    Unavailable,
    /// Something critical is unknown to this side.
    TooNew,
}

impl Code {
    /// The header's number.
    pub const fn rc(self) -> i32 {
        match self {
            Self::Invalid => -3,
            Self::NotFound => -5,
            Self::Exists => -6,
            Self::Exhausted => -8,
            Self::Precondition => -9,
            Self::Unimplemented => -12,
            Self::Internal => -13,
            Self::Unavailable => -14,
            Self::TooNew => -100,
        }
    }

    /// The code of a number; what is unknown is `Internal`, since the other side broke the contract.
    pub const fn from_rc(rc: i32) -> Self {
        match rc {
            -3 => Self::Invalid,
            -5 => Self::NotFound,
            -6 => Self::Exists,
            -8 => Self::Exhausted,
            -9 => Self::Precondition,
            -12 => Self::Unimplemented,
            -14 => Self::Unavailable,
            -100 => Self::TooNew,
            _ => Self::Internal,
        }
    }

    /// One word for logs and messages.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not found",
            Self::Exists => "exists",
            Self::Exhausted => "exhausted",
            Self::Precondition => "precondition failed",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::TooNew => "too new",
        }
    }
}

/// A refusal or a failure, with words for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct EngineError {
    pub rc: Code,
    /// Lower case, no full stop; cut at 236 bytes when it crosses the boundary.
    pub message: String,
    /// 0 when there is no advice.
    pub retry_after_ms: u32,
    /// The engine is broken and shall be replaced.
    pub fatal: bool,
}

impl EngineError {
    /// An error without advice and not fatal.
    pub fn new(rc: Code, message: impl Into<String>) -> Self {
        Self { rc, message: message.into(), retry_after_ms: 0, fatal: false }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::Invalid, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, message)
    }

    /// Full for now: come again after so long.
    pub fn exhausted(message: impl Into<String>, retry_after_ms: u32) -> Self {
        Self { retry_after_ms, ..Self::new(Code::Exhausted, message) }
    }

    /// The same error, marked as the end of the engine.
    #[must_use]
    pub fn fatal(self) -> Self {
        Self { fatal: true, ..self }
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rc.word(), self.message)
    }
}

impl std::error::Error for EngineError {}
