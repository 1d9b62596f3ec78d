//! Why a remote engine cannot start, in words that name the option to change or the server to look at.

use mainstay_engine_abi::sdk::{Code, EngineError};

/// What is wrong with the settings or the server.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The configuration is not what it should be.
    #[error("the remote engine's configuration: {0}")]
    Options(String),
    /// The server does not answer, or not in time.
    #[error("no server answers at {url}: {reason}; start it, or name another with --upstream")]
    Away {
        /// What was asked.
        url: String,
        /// What the connection said.
        reason: String,
    },
    /// The server answers, and not as one that this engine knows.
    #[error("the server at {url}: {reason}")]
    Server {
        /// Where it is.
        url: String,
        /// What is wrong with its answer, and what to do.
        reason: String,
    },
    /// Another engine of this process serves by the same server.
    #[error(
        "another engine of this process serves by {0} already; give each engine a server of its own"
    )]
    Taken(String),
}

impl From<RemoteError> for EngineError {
    fn from(error: RemoteError) -> Self {
        let code = match &error {
            RemoteError::Options(_) => Code::Invalid,
            RemoteError::Away { .. } => Code::Unavailable,
            RemoteError::Server { .. } => Code::Precondition,
            RemoteError::Taken(_) => Code::Exhausted,
        };
        Self::new(code, error.to_string())
    }
}
