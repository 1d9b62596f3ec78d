//! The engine of a build without TensorRT-LLM: it can't be opened, and says how to build one that can.

use std::sync::Arc;
use std::time::Duration;

use mainstay_engine_abi::sdk::{
    Code, Engine, EngineError, HostLog, Identity, Info, Lanes, Request, Stats, caps,
};

/// There is none of these.
#[cfg_attr(trtllm_linked, expect(unreachable_pub, reason = "public where it is the engine"))]
#[derive(Debug)]
pub enum BareEngine {}

impl Engine for BareEngine {
    const IDENTITY: Identity =
        Identity { vendor: "mainstay", name: "trtllm", version: env!("CARGO_PKG_VERSION") };

    const CAPS: u64 = caps::NAMESPACE;

    fn create(_config: &str, _lanes: Arc<Lanes>, _log: HostLog) -> Result<Self, EngineError> {
        let message = "this build has no TensorRT-LLM in it; set TRTLLM_ROOT to a tree of its version 1.2 and build \
                       mainstay-trtllm with --features export, or serve by its server with --upstream";
        Err(EngineError::new(Code::Precondition, message))
    }

    fn info(&self) -> Info {
        match *self {}
    }

    fn stats(&self) -> Stats {
        match *self {}
    }

    fn submit(&self, _request: Request) -> Result<(), EngineError> {
        match *self {}
    }

    fn cancel(&self, _id: u64) {
        match *self {}
    }

    fn drain(&self, _timeout: Duration) -> Result<(), EngineError> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_to_set() {
        let lanes = Arc::new(Lanes::new());
        let error = BareEngine::create("{}", lanes, HostLog::silent()).unwrap_err();
        assert_eq!(error.rc, Code::Precondition);
        // An error's words are cut at 236 bytes on their way to the host.
        for word in ["TRTLLM_ROOT", "--features export", "--upstream"] {
            assert!(error.message[..error.message.len().min(236)].contains(word), "{error}");
        }
    }
}
