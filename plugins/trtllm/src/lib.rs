//! The TensorRT-LLM engine: an engine of our ABI over the C++ `Executor` of TensorRT-LLM 1.2, the last line that has one.
//!
//! A request becomes the executor's, with its salt, its priority and its retention by ranges; what the executor's cache
//! tells becomes our events. It is built in one of three ways (see `build.rs`): over NVIDIA's library, over a double of
//! it that computes nothing and says so, or over neither: then it refuses to open, and says what to set. Later
//! versions of TensorRT-LLM have no C++ executor; they are served by over HTTP (`mainstay-remote`).

#[cfg(any(test, not(trtllm_linked)))]
mod bare;
#[cfg(trtllm_linked)]
#[expect(unreachable_pub, unused_qualifications, reason = "of what cxx makes")]
mod bridge;
#[cfg(trtllm_linked)]
mod engine;
#[cfg(trtllm_linked)]
mod error;
#[cfg(trtllm_linked)]
mod event;
#[cfg(trtllm_linked)]
mod flights;
#[cfg(trtllm_linked)]
mod options;
#[cfg(trtllm_linked)]
mod request;
#[cfg(trtllm_linked)]
mod salt;
#[cfg(trtllm_linked)]
mod work;

use mainstay_engine_abi::sdk::{EntryPoint, entry_point};

#[cfg(not(trtllm_linked))]
pub use bare::BareEngine as TrtllmEngine;
#[cfg(trtllm_linked)]
pub use engine::TrtllmEngine;

/// The C entry point, for a host that has the engine linked in.
#[must_use]
pub fn entry() -> EntryPoint {
    entry_point::<TrtllmEngine>()
}

// The double is never exported under the engine's name: the example `trtllm_double` exports it under its own.
#[cfg(all(feature = "export", not(feature = "double")))]
mainstay_engine_abi::export_engine!(TrtllmEngine);
