//! Why an engine could not be opened, why a call failed, why an engine ended.
//!
//! `LoadError` is read by operators, so each kind says what was found, what was wanted and what to do
//! next. It crosses the pipe from a child as it is.

use std::path::PathBuf;

use mainstay_engine_abi::sdk::{Code, EngineError};
use serde::{Deserialize, Serialize};

/// Why an engine could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum LoadError {
    #[error("no engine at {}: {reason}; give the path of the engine's .so", path.display())]
    FileMissing { path: PathBuf, reason: String },
    #[error(
        "{} is not a shared library: {reason}; build or download the engine's .so again",
        path.display()
    )]
    NotALibrary { path: PathBuf, reason: String },
    #[error(
        "{} could not be loaded: {reason}; check its dependencies with ldd",
        path.display()
    )]
    Refused { path: PathBuf, reason: String },
    #[error(
        "{} is not a Mainstay engine: it exports no {symbol}; see mainstay_engine.h",
        path.display()
    )]
    NotAnEngine { path: PathBuf, symbol: String },
    #[error("{engine} is not a Mainstay engine: its magic is {found:?}; see mainstay_engine.h")]
    OtherMagic { engine: String, found: String },
    #[error(
        "{engine} speaks engine ABI {engine_version}, this host {host_version}; \
         take a build of the engine for this release"
    )]
    OtherVersion { engine: String, engine_version: String, host_version: String },
    #[error(
        "{engine} was not built against engine ABI {version}, as it says (layout {engine_layout:#018x}, \
         which is {layout:#018x} there); rebuild it with this release's mainstay_engine.h"
    )]
    OtherLayout { engine: String, version: String, engine_layout: u64, layout: u64 },
    #[error(
        "{engine} lacks the capability {capability}, without which tenants could see each other's \
         cache; this engine can't be used"
    )]
    MissingCapability { engine: String, capability: String },
    #[error("{engine} breaks the engine ABI: {reason}; tell its vendor")]
    Contract { engine: String, reason: String },
    #[error("{engine} did not start: {error}")]
    Create { engine: String, error: EngineError },
    #[error("the configuration is longer than {max} bytes; shorten it")]
    ConfigTooLong { max: u64 },
    #[error(
        "the engine's process {program} could not be started: {reason}; check the path and rights",
        program = program.display()
    )]
    ChildNotStarted { program: PathBuf, reason: String },
    #[error(
        "the engine's process ended while loading ({how}); the engine is at fault, look at its last \
         lines on stderr"
    )]
    ChildCrashed { how: String },
    #[error("the engine's process did not answer within {seconds} s while loading; it was ended")]
    ChildSilent { seconds: u64 },
    #[error("the engine's process does not speak this host's protocol: {reason}; use one release")]
    ChildProtocol { reason: String },
    #[error("the host is out of {what}: {reason}")]
    Resources { what: String, reason: String },
}

/// Why a call on an [`EngineHandle`](crate::EngineHandle) failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the engine refused, {0}")]
    Refused(EngineError),
    #[error("the engine has ended, {0}")]
    Ended(ExitReason),
    #[error("too many calls wait for the engine, retry in {retry_after_ms} ms")]
    Busy { retry_after_ms: u32 },
    #[error("the engine lacks the capability {0}")]
    Unsupported(&'static str),
}

impl HostError {
    /// The ABI's code of this error.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(error) => error.rc,
            Self::Ended(_) => Code::Unavailable,
            Self::Busy { .. } => Code::Exhausted,
            Self::Unsupported(_) => Code::Unimplemented,
        }
    }

    /// When to come again, if the engine or the host said so.
    pub fn retry_after_ms(&self) -> Option<u32> {
        match self {
            Self::Refused(error) => Some(error.retry_after_ms).filter(|ms| *ms > 0),
            Self::Busy { retry_after_ms } => Some(*retry_after_ms),
            Self::Ended(_) | Self::Unsupported(_) => None,
        }
    }
}

/// Why an engine ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ExitReason {
    /// The last handle was dropped.
    #[error("it was stopped")]
    Stopped,
    /// The engine closed its lanes.
    #[error("it closed its lanes")]
    Closed,
    /// The engine said that it is broken.
    #[error("it reported a fatal error: {0}")]
    Fatal(String),
    /// The engine broke the ABI in a way that makes its words worthless.
    #[error("it broke the engine ABI: {0}")]
    Broken(String),
    /// The child process ended by itself.
    #[error("its process ended ({0})")]
    ProcessEnded(String),
}
