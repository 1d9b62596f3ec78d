//! Why a simulated engine cannot start, in words that name the file or member to change.

use std::path::PathBuf;

use mainstay_engine_abi::sdk::{Code, EngineError};

/// What is wrong with settings, script or tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The configuration is not what it should be.
    #[error("the sim engine's configuration: {0}")]
    Options(String),
    /// A file could not be read, or is larger than such a file may be.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file was read and makes no sense.
    #[error("{what}: {reason}")]
    File {
        /// Its name.
        what: String,
        /// What is wrong in it.
        reason: String,
    },
}

impl From<SimError> for EngineError {
    fn from(error: SimError) -> Self {
        let code = match &error {
            SimError::Read { .. } => Code::NotFound,
            SimError::Options(_) | SimError::File { .. } => Code::Invalid,
        };
        Self::new(code, error.to_string())
    }
}
