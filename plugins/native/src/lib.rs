//! The native engine: Llama, Qwen2 and Qwen3 on the CPU or a GPU behind Mainstay's engine interface.
//!
//! It exists so that Mainstay runs anywhere with nothing else to install, and as the engine that
//! keeps every promise of the interface: canonical block hashes, pins, retention ranges, migration
//! of running requests. It sees only the interface and the kernels. Everything that comes in
//! (checkpoints, configuration, requests) is hostile and ends in a typed error; a model computes
//! the same bits whatever the batch, the chunking or the blocks' places.

pub mod bench;
mod bundled;
pub mod checkpoint;
pub mod compute;
pub mod config;
pub mod draft;
mod engine;
mod error;
pub mod guided;
mod json;
pub mod model;
mod open;
pub mod options;
mod parallel;
pub mod sampler;
pub mod scheduler;

pub use bundled::{BundledModel, bundled_demo};
pub use engine::NativeEngine;
pub use error::LoadError;
pub use mainstay_kernels::cuda::{Found, Unavailable, probe};
pub use open::{load_model, open_scheduler};

#[cfg(feature = "export")]
mainstay_engine_abi::export_engine!(NativeEngine);
