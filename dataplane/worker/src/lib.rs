//! The worker: the process role that hosts an engine.
//!
//! It registers with the control plane, serves generations to gateways, tells the cluster which blocks its
//! engine holds, and has the engine keep the blocks of pins. It must go on serving while the control plane is
//! away, and must never say that it holds what it does not.
//!
//! Layout: [`start`] in `lifecycle` puts everything together; `supervisor` keeps the engine, `flights` and
//! `generate` the requests, `events` the blocks, `pins` the pins, `transfer` blocks from and to
//! other workers, `tiers` those below the engine's memory, `load` the figures; `server` is the gRPC face
//! and `engine` the host behind a trait.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod backoff;
mod config;
mod engine;
mod error;
mod events;
mod flights;
mod generate;
mod lifecycle;
mod load;
mod pins;
mod retention;
mod server;
mod shared;
mod supervisor;
mod tiers;
mod transfer;

pub use config::{MODEL_FILES_BYTES_MAX, NAME_BYTES_MAX, REQUESTS_MAX, WorkerConfig};
pub use error::WorkerError;
pub use lifecycle::{WorkerHandle, start};
pub use mainstay_engine_host::Source;
pub use tiers::{DiskConfig, RemoteConfig, TierConfig};

/// The largest message in either direction: a prompt of a million tokens fits, and a model's files do.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
pub(crate) mod tests;
