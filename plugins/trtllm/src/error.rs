//! Why the engine cannot start, in words that name what to change.

use mainstay_engine_abi::sdk::{Code, EngineError};

use crate::bridge::Fault;

/// What is wrong with the settings, the engine's folder or the library.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrtllmError {
    #[error("the trtllm engine's configuration: {0}")]
    Options(String),
    #[error(
        "TensorRT-LLM says it is {0}; this was built for 1.2, so build it again with its own headers"
    )]
    Version(String),
    #[error("TensorRT-LLM cannot open {dir}: {fault}")]
    Open { dir: String, fault: Fault },
    #[error("the executor does not say how many blocks it has; say it with `blocks`")]
    NoCache,
}

impl From<TrtllmError> for EngineError {
    fn from(error: TrtllmError) -> Self {
        let code = match &error {
            TrtllmError::Options(_) => Code::Invalid,
            TrtllmError::Version(_) | TrtllmError::Open { .. } | TrtllmError::NoCache => {
                Code::Precondition
            }
        };
        Self::new(code, error.to_string())
    }
}
